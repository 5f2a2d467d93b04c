//! What the tests of the core share: peers, records and instants by number.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::record::{Edition, NodeEntry, Record, SignedRecord};
use super::routes::{Group, GroupKey, Member, Routes};
use super::{Identity, NodeId, NodeName, PeerId, Topic, TopicFilter};

pub(crate) fn peer(n: u32) -> PeerId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    PeerId::from_bytes(bytes)
}

/// The instant that many seconds after the start of all tests.
#[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
pub(crate) fn at(seconds: u64) -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_secs(1_000_000) + Duration::from_secs(seconds)
}

pub(crate) fn dice(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

pub(crate) fn topic(text: &str) -> Topic {
    Topic::new(text).unwrap()
}

pub(crate) fn node_name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

pub(crate) fn listener(index: u32, name: &str, filters: &[&str]) -> NodeEntry {
    let filters = filters.iter().map(|text| TopicFilter::new(text).unwrap()).collect();
    NodeEntry { index, name: node_name(name), filters, services: Vec::new() }
}

pub(crate) fn record_with(n: u32, nodes: impl IntoIterator<Item = NodeEntry>) -> Record {
    Record {
        peer: peer(n),
        identity: Identity::from_bytes([0; 32]),
        edition: Edition { incarnation: 1, version: 1 },
        host: format!("host-{n}"),
        software: String::new(),
        addresses: Vec::new(),
        nodes: nodes.into_iter().collect(),
        leaving: false,
    }
}

/// The routes to that peer's nodes alone.
pub(crate) fn routes_to(record: Record, generation: u64) -> Routes {
    let mut routes = Routes::default();
    routes.replace(record.peer, None, Some(&Arc::new(record)));
    routes.snapshot(generation)
}

/// A record of the peer, in that version, that nobody needs to verify.
pub(crate) fn record(n: u32, version: u64) -> SignedRecord {
    let mut record = record_with(n, []);
    record.edition.version = version;
    SignedRecord::new(record, Bytes::new())
}

pub(crate) fn group(name: &str, members: u32) -> Group {
    let member = |n| Member {
        id: NodeId { peer: peer(n), index: 0 },
        local: false,
        name: node_name(name),
        host: format!("host-{n}").into(),
        filters: 1,
    };
    Group { key: GroupKey::Name(node_name(name)), members: (0..members).map(member).collect() }
}
