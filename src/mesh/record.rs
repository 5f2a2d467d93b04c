//! What a peer says of itself.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Identity, NodeName, PeerId, ServiceName, TopicFilter};

/// A peer's statement of itself. Only its owner writes it; of two, the one of the higher [`Edition`] holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The process that it describes.
    pub(crate) peer: PeerId,
    /// The home that runs it.
    pub(crate) identity: Identity,
    /// Which edition of the record this is.
    #[serde(flatten)]
    pub(crate) edition: Edition,
    /// Name of its machine: a label for people.
    pub(crate) host: String,
    /// Version of its software.
    pub(crate) software: String,
    /// Where it listens, as multiaddresses.
    pub(crate) addresses: Vec<String>,
    /// The nodes that it hosts, in order of their index.
    pub(crate) nodes: Vec<NodeEntry>,
    /// Set in the last edition: the peer leaves on its own will.
    pub(crate) leaving: bool,
}

/// When the peer started (microseconds since 1970), then how often its record changed since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Edition {
    /// Start of the process, in microseconds since 1970.
    pub(crate) incarnation: u64,
    /// Counts the changes since the start.
    pub(crate) version: u64,
}

/// One node in a [`Record`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeEntry {
    /// Its number within the peer.
    pub(crate) index: u32,
    /// Its name, which is its group.
    pub(crate) name: NodeName,
    /// What it listens to.
    pub(crate) filters: Vec<TopicFilter>,
    /// What it serves.
    pub(crate) services: Vec<ServiceName>,
}

/// A record as its owner signed it. The bytes are what other peers verify, so they are passed on unchanged.
///
/// Made by signing one's own record or by decoding and verifying another's, nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignedRecord {
    record: Arc<Record>,
    bytes: Bytes,
}

/// Signs a peer's own records. The pure core knows no keys.
pub(crate) trait Sign: Send {
    /// The record as other peers can verify it.
    fn sign(&self, record: Record) -> SignedRecord;
}

impl Record {
    /// Says which limit the record breaks, if one.
    pub(crate) fn check_limits(&self) -> Result<(), &'static str> {
        if self.nodes.len() > MAX_NODES_PER_PEER {
            return Err("a peer has at most 10,000 nodes");
        }
        if self.nodes.iter().any(|node| node.filters.len() + node.services.len() > MAX_NAMES_PER_NODE) {
            return Err("a node has at most 10,000 filters and services");
        }
        if self.addresses.len() > MAX_ADDRESSES {
            return Err("a peer has at most 32 addresses");
        }
        if self.addresses.iter().chain([&self.host, &self.software]).any(|text| text.len() > MAX_TEXT) {
            return Err("host, version and addresses have at most 255 bytes each");
        }
        if !self.nodes.is_sorted_by(|a, b| a.index < b.index) {
            return Err("nodes stand in order of their index, each once");
        }
        Ok(())
    }
}

impl SignedRecord {
    /// Pairs a record with the signed bytes that it was encoded into or verified from.
    pub(crate) fn new(record: Record, bytes: Bytes) -> Self {
        Self { record: Arc::new(record), bytes }
    }

    /// What the peer says.
    pub(crate) fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// What the peer signed.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.record.peer
    }

    pub(crate) fn edition(&self) -> Edition {
        self.record.edition
    }
}

/// Largest signed record, in bytes. 10,000 filters of 100 bytes.
pub const MAX_RECORD: usize = 1 << 20;
/// Most nodes in one process.
pub const MAX_NODES_PER_PEER: usize = 10_000;
/// Most filters and services of one node, together.
pub const MAX_NAMES_PER_NODE: usize = 10_000;
/// Most addresses in a record: more interfaces than that are not worth dialling.
pub(crate) const MAX_ADDRESSES: usize = 32;
const MAX_TEXT: usize = 255;
