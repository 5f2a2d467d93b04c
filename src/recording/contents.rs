//! What is in a file, without reading all of it where its index tells.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use mcap::records::{Metadata, Record, op};
use mcap::sans_io::summary_reader::{SummaryReadEvent, SummaryReader, SummaryReaderOptions};
use mcap::{Summary, parse_record};

use super::reader::{Cut, Origin, Reader, lost, origin, topic};
use super::{ABOUT, FILTERS, FileError, MESH};
use crate::mesh::{Codec, Topic};

/// What is in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Bytes of the file.
    pub(crate) size: u64,
    /// What wrote it.
    pub(crate) library: String,
    /// Where it was recorded, and what.
    pub(crate) mesh: Option<String>,
    pub(crate) filters: Vec<String>,
    pub(crate) messages: u64,
    /// As its index counts them, if it has one that holds.
    pub(crate) indexed: Option<u64>,
    /// Messages that its recorder was too slow for.
    pub(crate) lost: u64,
    /// First and last time of a message: nanoseconds since 1970.
    pub(crate) span_ns: Option<(u64, u64)>,
    /// By name.
    pub(crate) topics: Vec<TopicContents>,
    /// How it is compressed, if it is: then its index can be read, its messages not.
    pub(crate) compression: Option<String>,
    /// Where and why it ends early. Damage before an index is found by [`check`](Self::check) alone.
    pub(crate) cut: Option<Cut>,
}

/// The messages of one kind on one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicContents {
    /// As it is in the file.
    pub(crate) name: String,
    /// What it is sent to. None: no topic can be called so.
    pub(crate) topic: Option<Topic>,
    pub(crate) codec: Codec,
    pub(crate) messages: u64,
    /// Nodes that have sent them; 0 if the file does not tell.
    pub(crate) senders: usize,
}

impl Contents {
    /// Looks into a file: at its index, or else at all of it.
    ///
    /// # Errors
    /// It is no MCAP file, cannot be read, or is compressed and has no index.
    pub(crate) fn of(path: &Path) -> Result<Self, FileError> {
        let failed = |error| FileError::io("read", path, error);
        let mut file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let mut reader = Reader::open(path)?;
        // A file that ends too early has no index, or none that holds.
        let Some(summary) = summary(&mut file, size) else { return Self::scan(reader, size) };
        let Some(stats) = &summary.stats else { return Self::scan(reader, size) };
        let mut topics = Topics::default();
        for (id, channel) in &summary.channels {
            let channel = mcap::records::Channel {
                id: *id,
                schema_id: 0,
                topic: channel.topic.clone(),
                message_encoding: channel.message_encoding.clone(),
                metadata: channel.metadata.clone(),
            };
            let messages = stats.channel_message_counts.get(id).copied().unwrap_or_default();
            topics.add(&origin(&channel), messages);
        }
        let about = summary.metadata_indexes.iter().rfind(|index| index.name == ABOUT);
        let about = about.and_then(|index| metadata(&mut file, index.offset, index.length));
        let compression =
            summary.chunk_indexes.into_iter().map(|chunk| chunk.compression).find(|name| !name.is_empty());
        // The header, which names the library, is before the first message. That may be one that cannot be read.
        let _ = reader.next();
        let span_ns = (stats.message_count > 0).then_some((stats.message_start_time, stats.message_end_time));
        Ok(Self {
            messages: stats.message_count,
            indexed: Some(stats.message_count),
            span_ns,
            compression,
            ..Self::new(size, &reader, about.as_ref(), topics)
        })
    }

    /// Reads all of a file, whatever its index says: its messages are those that can be read. Memory: one chunk, and the index.
    ///
    /// # Errors
    /// It is no MCAP file, cannot be read, or is compressed.
    pub(crate) fn check(path: &Path) -> Result<Self, FileError> {
        let failed = |error| FileError::io("read", path, error);
        let mut file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let indexed = summary(&mut file, size).and_then(|summary| summary.stats).map(|stats| stats.message_count);
        Ok(Self { indexed, ..Self::scan(Reader::open(path)?, size)? })
    }

    fn scan(mut reader: Reader, size: u64) -> Result<Self, FileError> {
        let (mut topics, mut counts) = (Topics::default(), BTreeMap::<usize, (Arc<Origin>, u64)>::new());
        let mut span_ns: Option<(u64, u64)> = None;
        while let Some(entry) = reader.next()? {
            let time = entry.time_ns;
            span_ns = Some(span_ns.map_or((time, time), |(first, last)| (first.min(time), last.max(time))));
            // Origins are read once for each channel and chunk that names it: by address they are counted fast.
            counts.entry(Arc::as_ptr(&entry.origin).addr()).or_insert_with(|| (entry.origin, 0)).1 += 1;
            if counts.len() > MOST_COUNTS {
                std::mem::take(&mut counts).into_values().for_each(|(origin, count)| topics.add(&origin, count));
            }
        }
        counts.into_values().for_each(|(origin, count)| topics.add(&origin, count));
        let messages = topics.0.values().map(|topic| topic.messages).sum();
        let about = reader.about().cloned();
        Ok(Self { messages, span_ns, ..Self::new(size, &reader, about.as_ref(), topics) })
    }

    fn new(size: u64, reader: &Reader, about: Option<&Metadata>, topics: Topics) -> Self {
        let said = |key: &str| about.and_then(|about| about.metadata.get(key)).cloned();
        let filters = said(FILTERS).and_then(|filters| serde_json::from_str(&filters).ok());
        let topics = topics.0.into_iter().map(|((name, _), counted)| TopicContents {
            topic: topic(&name),
            name,
            codec: counted.codec,
            messages: counted.messages,
            senders: counted.senders.len(),
        });
        Self {
            size,
            library: reader.library().to_owned(),
            mesh: said(MESH),
            filters: filters.unwrap_or_default(),
            lost: lost(about),
            topics: topics.filter(|topic| topic.messages > 0).collect(),
            cut: reader.cut().cloned(),
            ..Self::default()
        }
    }
}

/// What was counted, by the topic's name and by codec.
#[derive(Default)]
struct Topics(BTreeMap<(String, &'static str), Counted>);

struct Counted {
    codec: Codec,
    messages: u64,
    senders: HashSet<String>,
}

impl Topics {
    fn add(&mut self, origin: &Origin, messages: u64) {
        let key = (origin.name.clone(), super::encoding(origin.codec));
        let empty = || Counted { codec: origin.codec, messages: 0, senders: HashSet::new() };
        let counted = self.0.entry(key).or_insert_with(empty);
        counted.messages = counted.messages.saturating_add(messages); // an index may say anything
        if let Some((from, _)) = origin.from.as_ref().filter(|_| messages > 0) {
            counted.senders.insert(from.clone());
        }
    }
}

/// The index at the end of a file, if there is one that holds.
fn summary(file: &mut File, size: u64) -> Option<Summary> {
    let options = SummaryReaderOptions::default().with_file_size(size).with_record_length_limit(MAX_RECORD);
    let mut reader = SummaryReader::new_with_options(options);
    while let Some(event) = reader.next_event() {
        match event.ok()? {
            SummaryReadEvent::ReadRequest(wanted) => {
                let read = file.read(reader.insert(wanted)).ok()?;
                reader.notify_read(read);
            }
            SummaryReadEvent::SeekRequest(to) => reader.notify_seeked(file.seek(to).ok()?),
        }
    }
    reader.finish()
}

/// A record of metadata, where the index says that it is.
fn metadata(file: &mut File, offset: u64, length: u64) -> Option<Metadata> {
    let length = usize::try_from(length).ok().filter(|length| (RECORD_HEAD..MAX_RECORD).contains(length))?;
    let mut record = vec![0; length];
    file.seek(SeekFrom::Start(offset)).ok()?;
    file.read_exact(&mut record).ok()?;
    match parse_record(op::METADATA, &record[RECORD_HEAD..]).ok()? {
        Record::Metadata(metadata) if record[0] == op::METADATA => Some(metadata),
        _ => None,
    }
}

/// Bytes before the body of a record: what it is, and its length.
const RECORD_HEAD: usize = 9;
/// Bytes of the largest record of an index that is looked at.
const MAX_RECORD: usize = 16 << 20;
/// Channels to count by their addresses at a time.
const MOST_COUNTS: usize = 4096;
