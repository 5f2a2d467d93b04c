//! Reads a file from its start to its end, or to where it is whole.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use mcap::records::{Metadata, Record};
use mcap::sans_io::linear_reader::{LinearReadEvent, LinearReader, LinearReaderOptions};
use mcap::{McapError, parse_record};

use super::{ABOUT, FROM, FROM_NAME, FileError, LOST, SEQ_HIGH, codec};
use crate::mesh::{Codec, Topic};

/// The messages of a file, in the order in which they were written. Memory: one chunk.
pub(crate) struct Reader {
    path: PathBuf,
    from: BufReader<File>,
    reader: LinearReader,
    channels: HashMap<u16, Arc<Origin>>,
    about: Option<Metadata>,
    library: String,
    /// Bytes that were read, and those up to which all was whole.
    read: u64,
    whole: u64,
    ended: bool,
    cut: Option<Cut>,
}

/// Where a file ends before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Bytes before it: they are whole, as far as each has a checksum of its own.
    pub(crate) at: u64,
    pub(crate) why: String,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.at, self.why)
    }
}

/// Who sends what kind of message where, as a file says it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    /// As it is in the file.
    pub(crate) name: String,
    /// What it is sent to. None: no topic can be called so.
    pub(crate) topic: Option<Topic>,
    pub(crate) codec: Codec,
    /// The sender's node id and name, where the file tells them.
    pub(crate) from: Option<(String, String)>,
    seq_high: u64,
}

/// A message of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) origin: Arc<Origin>,
    pub(crate) seq: u64,
    /// When it was received: nanoseconds since 1970.
    pub(crate) time_ns: u64,
    pub(crate) payload: Bytes,
}

impl Reader {
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|error| FileError::io("read", path, error))?;
        let options =
            LinearReaderOptions::default().with_prevalidate_chunk_crcs(true).with_validate_data_section_crc(true);
        Ok(Self {
            path: path.to_owned(),
            from: BufReader::with_capacity(READ_BYTES, file),
            reader: LinearReader::new_with_options(options.with_record_length_limit(MAX_RECORD)),
            channels: HashMap::new(),
            about: None,
            library: String::new(),
            read: 0,
            whole: 0,
            ended: false,
            cut: None,
        })
    }

    /// The next message; `None` at the end, and where the file ends too early or is damaged: [`cut`](Self::cut) tells.
    ///
    /// # Errors
    /// It is no MCAP file, cannot be read, or is compressed.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, FileError> {
        while !self.ended {
            let wanted = match self.reader.next_event() {
                None => {
                    self.ended = true;
                    break;
                }
                Some(Ok(LinearReadEvent::ReadRequest(wanted))) => wanted,
                Some(Ok(LinearReadEvent::Record { opcode, data })) => {
                    // Nothing behind a record, or behind its chunk, is read before it is given.
                    let begin = std::mem::replace(&mut self.whole, self.read);
                    match parse_record(opcode, data) {
                        Ok(Record::Message { header, data }) => {
                            let Some(origin) = self.channels.get(&header.channel_id) else {
                                let why = format!("a message is on channel {}, which it lacks", header.channel_id);
                                self.end_early(begin, why);
                                break;
                            };
                            return Ok(Some(Entry {
                                seq: origin.seq_high << 32 | u64::from(header.sequence),
                                origin: Arc::clone(origin),
                                time_ns: header.log_time,
                                payload: Bytes::copy_from_slice(&data),
                            }));
                        }
                        Ok(Record::Channel(channel)) => {
                            self.channels.insert(channel.id, Arc::new(origin(&channel)));
                        }
                        Ok(Record::Header(header)) => self.library = header.library,
                        Ok(Record::Metadata(metadata)) if metadata.name == ABOUT => self.about = Some(metadata),
                        // All messages are before it.
                        Ok(Record::DataEnd(_)) => self.ended = true,
                        // What a disk has left in place of what was not written.
                        Ok(Record::Unknown { opcode: 0, .. }) => {
                            self.end_early(begin, "it goes on with zeros".to_owned());
                        }
                        Ok(_) => {}
                        Err(error) => self.end_early(begin, error.to_string()),
                    }
                    continue;
                }
                Some(Err(error)) => {
                    self.fail(error)?;
                    break;
                }
            };
            let room = self.reader.insert(wanted.min(READ_BYTES));
            let read = self.from.read(room).map_err(|error| FileError::io("read", &self.path, error))?;
            self.reader.notify_read(read);
            self.read += read as u64;
        }
        Ok(None)
    }

    /// Where and why the file ended before its end, once it has.
    pub(crate) fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }

    /// What the file tells of itself, as far as it was read.
    pub(super) fn about(&self) -> Option<&Metadata> {
        self.about.as_ref()
    }

    /// What wrote the file.
    pub(super) fn library(&self) -> &str {
        &self.library
    }

    fn fail(&mut self, error: McapError) -> Result<(), FileError> {
        match error {
            McapError::UnexpectedEof if self.library.is_empty() && self.channels.is_empty() && self.about.is_none() => {
                Err(FileError::NotMcap(self.path.clone()))
            }
            McapError::UnexpectedEof => {
                let why = match self.has_end() {
                    true => "a length in it is wrong",
                    false => {
                        "its end is missing: it is still being written, who wrote it was killed, or the rest was lost"
                    }
                };
                self.end_early(self.whole, why.to_owned());
                Ok(())
            }
            error @ (McapError::BadMagic | McapError::UnsupportedCompression(_)) => {
                Err(FileError::mcap("read", &self.path, error))
            }
            McapError::BadDataCrc { .. } => {
                self.end_early(self.whole, "what is before it does not match the checksum of it all".to_owned());
                Ok(())
            }
            error => {
                self.end_early(self.whole, error.to_string());
                Ok(())
            }
        }
    }

    /// Whether the file ends as whole files do.
    fn has_end(&mut self) -> bool {
        let mut end = [0; mcap::MAGIC.len()];
        let found = self.from.seek(SeekFrom::End(-(end.len() as i64))).and_then(|_| self.from.read_exact(&mut end));
        found.is_ok() && end == *mcap::MAGIC
    }

    fn end_early(&mut self, at: u64, why: String) {
        self.ended = true;
        self.cut = Some(Cut { at, why });
    }
}

/// How many messages a file's own record says were lost.
pub(super) fn lost(about: Option<&Metadata>) -> u64 {
    about.and_then(|about| about.metadata.get(LOST)?.parse().ok()).unwrap_or_default()
}

/// What a channel's messages are sent to. Topics of ROS begin with a slash.
pub(super) fn topic(name: &str) -> Option<Topic> {
    Topic::new(name.strip_prefix('/').unwrap_or(name)).ok()
}

pub(super) fn origin(channel: &mcap::records::Channel) -> Origin {
    let said = |key: &str| channel.metadata.get(key).cloned();
    let seq_high: u32 = said(SEQ_HIGH).and_then(|high| high.parse().ok()).unwrap_or_default();
    Origin {
        name: channel.topic.clone(),
        topic: topic(&channel.topic),
        codec: codec(&channel.message_encoding),
        from: said(FROM).map(|from| (from, said(FROM_NAME).unwrap_or_default())),
        seq_high: seq_high.into(),
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Bytes to read at once: memory grows by what is there, whatever lengths a file claims.
const READ_BYTES: usize = 1 << 20;
/// Bytes of the largest record, and so of the largest chunk: the largest message, and what is before it in its chunk.
const MAX_RECORD: usize = (1 << 30) + (64 << 20);
