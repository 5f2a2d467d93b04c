//! The queue of an inbox: messages one by one, or many of one kind as they stand in the buffer that brought them.
//!
//! What reads a link and what takes the messages are two threads as a rule. Handing over one message at a time has both
//! touch the same counts for each, and each time the other has to fetch them: with batches, the reader does so once per
//! read, and who takes a message touches what nobody else does.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::mesh::delivery::Claimed;
use crate::mesh::{Codec, Message, NodeId, NodeName, Topic};

/// Messages that wait, in order.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    entries: VecDeque<Entry>,
    len: usize,
    bytes: usize,
}

#[derive(Debug)]
enum Entry {
    One(Message),
    Many(Batch),
}

/// Messages of one node on one topic, none of them to be acknowledged or limited in time.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) topic: Topic,
    pub(crate) from: NodeId,
    pub(crate) from_name: NodeName,
    /// Dropped before the first.
    lagged: u64,
    buffer: Bytes,
    parts: VecDeque<Part>,
    bytes: usize,
}

/// One message of a batch.
#[derive(Debug)]
struct Part {
    seq: u64,
    codec: Codec,
    /// Where its payload stands in the buffer.
    at: usize,
    len: usize,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of payload.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, message: Message) {
        self.len += 1;
        self.bytes += message.payload.len();
        self.entries.push_back(Entry::One(message));
    }

    /// Adds messages, before the first of which so many were dropped.
    pub(super) fn push_all(&mut self, mut batch: Batch, lagged: u64) {
        batch.lagged = lagged;
        self.len += batch.len();
        self.bytes += batch.bytes;
        self.entries.push_back(Entry::Many(batch));
    }

    pub(super) fn pop(&mut self) -> Option<Message> {
        let message = match self.entries.front_mut()? {
            Entry::Many(batch) if batch.len() > 1 => batch.next()?,
            _ => match self.entries.pop_front()? {
                Entry::One(message) => message,
                Entry::Many(mut batch) => batch.next()?,
            },
        };
        self.len -= 1;
        self.bytes -= message.payload.len();
        Some(message)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes out what senders want to hear of.
    pub(super) fn remove_awaited(&mut self) {
        self.entries.retain(|entry| match entry {
            Entry::One(message) if message.claimed.is_awaited() => {
                self.len -= 1;
                self.bytes -= message.payload.len();
                false
            }
            Entry::One(_) | Entry::Many(_) => true,
        });
    }
}

impl Batch {
    pub(crate) fn new(topic: Topic, from: NodeId, from_name: NodeName, buffer: Bytes) -> Self {
        Self { topic, from, from_name, lagged: 0, buffer, parts: VecDeque::new(), bytes: 0 }
    }

    /// Adds a message whose payload stands there in the buffer.
    pub(crate) fn push(&mut self, seq: u64, codec: Codec, at: usize, len: usize) {
        self.bytes += len;
        self.parts.push_back(Part { seq, codec, at, len });
    }

    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Bytes of payload.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether most of the block in which it came was something else.
    pub(crate) fn is_mostly_other(&self) -> bool {
        self.bytes < self.buffer.len() / MOSTLY
    }
}

impl Iterator for Batch {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let Part { seq, codec, at, len } = self.parts.pop_front()?;
        self.bytes -= len;
        Some(Message {
            topic: self.topic.clone(),
            from: self.from,
            from_name: self.from_name.clone(),
            seq,
            codec,
            payload: self.buffer.slice(at..at + len),
            lagged: std::mem::take(&mut self.lagged),
            retains: false,
            claimed: Claimed::default(),
        })
    }
}

/// How many times as large as its payloads a buffer may be to wait with them. Headers of small messages take most of it.
const MOSTLY: usize = 4;
