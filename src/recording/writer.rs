//! Writes a file, a whole chunk at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mcap::records::MessageHeader;
use mcap::write::{Metadata, NoSeek, WriteOptions};
use mcap::{McapError, McapResult};

use super::{ABOUT, FILTERS, FROM, FROM_NAME, FileError, LOST, MESH, SEQ_HIGH, encoding};
use crate::mesh::{Codec, MeshName, NodeId, NodeName, Topic, TopicFilter};

/// A file that messages are written to. What stands in it is whole chunks at any time, so that it can be read however this
/// ends; those that are not full are written when [`tick`](Self::tick) says so.
pub(crate) struct Writer {
    path: PathBuf,
    /// Where the file is that this one takes the place of.
    replaced: Option<PathBuf>,
    /// The file once more, to look at and cut while the other one belongs to `to`.
    file: File,
    /// None once it failed.
    to: Option<mcap::Writer<NoSeek<BufWriter<File>>>>,
    about: About,
    channels: HashMap<Origin, u16>,
    topics: HashSet<Topic>,
    /// Bytes in the chunk that is begun, and on how many channels.
    begun: usize,
    begun_on: HashSet<u16>,
    /// What the index of the chunks takes in memory, by estimate.
    index_bytes: usize,
    ticks: u32,
    messages: u64,
    lost: u64,
    lost_said: u64,
    /// Bytes of the file that are whole chunks.
    whole: u64,
}

/// What a file tells of itself.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) mesh: MeshName,
    pub(crate) filters: Vec<TopicFilter>,
}

/// Who sends what kind of message where: a channel of the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Origin {
    topic: Topic,
    codec: Codec,
    /// None when there are so many senders that they are not told apart any more.
    from: Option<(NodeId, u32)>,
}

/// A message to be written.
#[derive(Debug)]
pub(crate) struct Arrived<'a> {
    pub(crate) topic: Topic,
    pub(crate) codec: Codec,
    pub(crate) from: NodeId,
    pub(crate) from_name: &'a NodeName,
    pub(crate) seq: u64,
    /// When it arrived: nanoseconds since 1970.
    pub(crate) time_ns: u64,
    pub(crate) payload: &'a [u8],
}

/// What is in a file that was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) messages: u64,
    pub(crate) topics: usize,
    pub(crate) lost: u64,
    /// Of the file.
    pub(crate) bytes: u64,
}

impl Writer {
    /// A new file. If `replace` says so, it takes the place of one that is there, which comes back if there is no message.
    ///
    /// # Errors
    /// It is there already, or cannot be written.
    pub(crate) fn create(path: &Path, replace: bool, about: About) -> Result<Self, FileError> {
        let failed = |error| FileError::io("write", path, error);
        let replaced = if replace { set_aside(path).map_err(failed)? } else { None };
        // A device stays what it is.
        let device = replace && fs::symlink_metadata(path).is_ok();
        let file = File::options().write(true).create_new(!device).open(path).map_err(failed)?;
        let to = NoSeek::new(BufWriter::with_capacity(WRITE_BYTES, file.try_clone().map_err(failed)?));
        let options = WriteOptions::new().compression(None).chunk_size(None).disable_seeking(true);
        let options = options.profile(PROFILE).library(concat!("meshd/", env!("CARGO_PKG_VERSION")));
        let to = options.create(to).map_err(|error| FileError::mcap("write", path, error))?;
        let mut writer = Self {
            path: path.to_owned(),
            replaced,
            file,
            to: Some(to),
            about,
            channels: HashMap::new(),
            topics: HashSet::new(),
            begun: 0,
            begun_on: HashSet::new(),
            index_bytes: 0,
            ticks: 0,
            messages: 0,
            lost: 0,
            lost_said: 0,
            whole: 0,
        };
        writer.guarded(Self::tell)?;
        Ok(writer)
    }

    /// Takes a message. It is in the file once its chunk is.
    ///
    /// # Errors
    /// The file cannot be written any more; what is in it can be read. Nothing else can be done with it then.
    pub(crate) fn write(&mut self, message: Arrived<'_>) -> Result<(), FileError> {
        self.guarded(|writer| {
            let Arrived { topic, codec, from, from_name, seq, time_ns, payload } = message;
            let channel_id = writer.channel(topic, codec, (from, (seq >> 32) as u32), from_name)?;
            let header = MessageHeader { channel_id, sequence: seq as u32, log_time: time_ns, publish_time: time_ns };
            writer.to()?.write_to_known_channel(&header, payload)?;
            writer.messages += 1;
            writer.begun += payload.len() + MESSAGE_OVERHEAD;
            writer.begun_on.insert(channel_id);
            if writer.begun >= CHUNK_BYTES << writer.thinned().min(MOST_DOUBLED) { writer.end_chunk() } else { Ok(()) }
        })
    }

    /// Messages are missing before the next one.
    pub(crate) fn lost(&mut self, count: u64) {
        self.lost += count;
    }

    /// To be called every second: writes what waits. Once the index is large, not every time, so that memory stays bounded
    /// however long this goes on.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub(crate) fn tick(&mut self) -> Result<(), FileError> {
        self.ticks = self.ticks.wrapping_add(1);
        self.still_there()?;
        let every = 1_u32 << self.thinned().min(16);
        if self.begun == 0 || !self.ticks.is_multiple_of(every) {
            return Ok(());
        }
        self.guarded(Self::end_chunk)
    }

    /// Writes the rest and the index. A file without messages is removed: there is nothing in it.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub(crate) fn finish(mut self) -> Result<Sealed, FileError> {
        self.guarded(|writer| {
            writer.end_chunk()?;
            writer.tell()?;
            writer.to()?.finish().map(drop)?;
            writer.look()
        })?;
        self.still_there()?;
        if self.messages == 0 && self.is_at_its_place() {
            let gone = fs::remove_file(&self.path);
            let back = gone.and_then(|()| self.replaced.take().map_or(Ok(()), |old| fs::rename(old, &self.path)));
            back.map_err(|error| FileError::io("remove", &self.path, error))?;
        }
        Ok(self.sealed())
    }

    /// Whether it can be found: one that was removed is written for nobody.
    fn still_there(&self) -> Result<(), FileError> {
        let removed = self.file.metadata().is_ok_and(|file| file.is_file() && file.nlink() == 0);
        let error = || FileError::io("write", &self.path, io::Error::new(io::ErrorKind::NotFound, "it was removed"));
        if removed { Err(error()) } else { Ok(()) }
    }

    /// Whether it is what its path leads to. It may have been moved, and another one be there.
    fn is_at_its_place(&self) -> bool {
        let (own, there) = (self.file.metadata(), fs::symlink_metadata(&self.path));
        let same = |(own, there): (fs::Metadata, fs::Metadata)| (own.dev(), own.ino()) == (there.dev(), there.ino());
        own.ok().filter(fs::Metadata::is_file).zip(there.ok()).is_some_and(same)
    }

    /// What is in the file now, as far as it was written.
    pub(crate) fn sealed(&self) -> Sealed {
        Sealed { messages: self.messages, topics: self.topics.len(), lost: self.lost, bytes: self.whole }
    }

    fn to(&mut self) -> McapResult<&mut mcap::Writer<NoSeek<BufWriter<File>>>> {
        self.to.as_mut().ok_or(McapError::AttemptedWriteAfterFailure)
    }

    /// Does what writes. If that fails, half a chunk may stand at the end of the file: it is cut off.
    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> McapResult<()>) -> Result<(), FileError> {
        work(self).map_err(|error| {
            if let Some(to) = self.to.take() {
                // What is still in the buffer is part of what failed.
                let (_file, _unwritten) = to.into_inner().into_inner().into_parts();
                // If that fails too, readers stop there all the same.
                let _ = self.file.set_len(self.whole);
            }
            FileError::mcap("write", &self.path, error)
        })
    }

    fn channel(&mut self, topic: Topic, codec: Codec, from: (NodeId, u32), name: &NodeName) -> McapResult<u16> {
        let mut origin = Origin { topic, codec, from: Some(from) };
        if let Some(id) = self.channels.get(&origin) {
            return Ok(*id);
        }
        if self.channels.len() >= MOST_SENDERS {
            origin.from = None;
            if let Some(id) = self.channels.get(&origin) {
                return Ok(*id);
            }
        }
        let mut metadata = BTreeMap::new();
        if let Some((from, seq_high)) = origin.from {
            metadata.insert(FROM.to_owned(), from.to_string());
            metadata.insert(FROM_NAME.to_owned(), name.to_string());
            if seq_high != 0 {
                metadata.insert(SEQ_HIGH.to_owned(), seq_high.to_string());
            }
        }
        let id = self.to()?.add_channel(0, origin.topic.as_str(), encoding(codec), &metadata)?;
        self.topics.insert(origin.topic.clone());
        self.channels.insert(origin, id);
        Ok(id)
    }

    fn end_chunk(&mut self) -> McapResult<()> {
        if self.lost != self.lost_said {
            self.tell()?;
        }
        self.to()?.flush()?;
        if self.begun > 0 {
            self.index_bytes += INDEX_BYTES + INDEX_BYTES_EACH * self.begun_on.len();
        }
        self.begun = 0;
        self.begun_on.clear();
        self.look()
    }

    /// Notes how long the file is now that all of it is whole.
    fn look(&mut self) -> McapResult<()> {
        self.whole = self.file.stream_position()?; // Both handles share it.
        Ok(())
    }

    fn tell(&mut self) -> McapResult<()> {
        self.lost_said = self.lost;
        let filters: Vec<&str> = self.about.filters.iter().map(TopicFilter::as_str).collect();
        let facts = [
            (MESH, self.about.mesh.to_string()),
            (FILTERS, serde_json::to_string(&filters).unwrap_or_default()),
            (LOST, self.lost.to_string()),
        ];
        let metadata = facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let to = self.to()?;
        to.write_metadata(&Metadata { name: ABOUT.to_owned(), metadata })?;
        to.flush()?;
        self.look()
    }

    /// How often the time between chunks, and their size, is doubled: each time that the index has grown by a step.
    fn thinned(&self) -> u32 {
        u32::try_from(self.index_bytes / INDEX_STEP).unwrap_or(u32::MAX)
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // What was to be replaced is, once there is something in its place.
        if self.messages > 0
            && let Some(old) = &self.replaced
        {
            drop(fs::remove_file(old));
        }
    }
}

/// Puts the file that is there out of the way, and says where it is now.
fn set_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_file() => {}
        Ok(there) if there.file_type().is_char_device() => return Ok(None),
        Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "what is there is no file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.replaced"));
    fs::rename(path, &aside)?;
    Ok(Some(aside))
}

/// What the header says these files are: names with `x-` are free for everybody.
const PROFILE: &str = "x-meshd";
/// Bytes of messages in a chunk: what is lost at most when this process is killed.
const CHUNK_BYTES: usize = 1 << 20;
/// How often that is doubled at most.
const MOST_DOUBLED: u32 = 4;
/// Bytes that a message takes in a file besides its payload.
const MESSAGE_OVERHEAD: usize = 31;
/// Bytes to hand to the system at once. What is larger is handed over as it is.
const WRITE_BYTES: usize = 64 * 1024;
/// Channels from which on senders are not told apart, so that there is room for topics.
const MOST_SENDERS: usize = 60_000;
/// Bytes of memory that the index takes for each chunk, ...
const INDEX_BYTES: usize = 200;
/// ... and for each channel with messages in it.
const INDEX_BYTES_EACH: usize = 24;
/// Bytes of the index after which chunks become rarer.
const INDEX_STEP: usize = 16 << 20;
