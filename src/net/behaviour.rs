//! What runs on every connection.

use std::num::NonZeroUsize;
use std::time::Duration;

use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity, ValidationMode};
use libp2p::identity::Keypair;
use libp2p::kad::store::MemoryStore;
use libp2p::swarm::NetworkBehaviour;
use libp2p::{StreamProtocol, kad};

use super::gate::Gate;
use super::streams::Streams;

/// All behaviours of a peer. Bulk never passes through here: [`Streams`] hands streams to tasks of their own.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) gate: Gate,
    pub(super) streams: Streams,
    pub(super) gossip: gossipsub::Behaviour,
    pub(super) kad: kad::Behaviour<MemoryStore>,
}

impl Behaviour {
    pub(super) fn new(key: &Keypair) -> Self {
        Self { gate: Gate::default(), streams: Streams::default(), gossip: gossip(key), kad: kademlia(key) }
    }
}

/// The one topic that membership changes travel on.
pub(super) fn members_topic() -> IdentTopic {
    IdentTopic::new("/meshd/members/1")
}

fn gossip(key: &Keypair) -> gossipsub::Behaviour {
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .validate_messages() // a record is forwarded only when its signatures are right
        .heartbeat_initial_delay(Duration::from_secs(1))
        .build()
        .unwrap_or_else(|error| unreachable!("constants: {error}"));
    let mut gossip = gossipsub::Behaviour::new(MessageAuthenticity::Signed(key.clone()), config)
        .unwrap_or_else(|error| unreachable!("constants: {error}"));
    gossip.subscribe(&members_topic()).unwrap_or_else(|error| unreachable!("no filter is set: {error}"));
    gossip
}

fn kademlia(key: &Keypair) -> kad::Behaviour<MemoryStore> {
    let me = key.public().to_peer_id();
    let mut config = kad::Config::new(StreamProtocol::new("/meshd/kad/1"));
    config
        .set_kbucket_size(BUCKET) // the table is allocated whole
        .set_kbucket_inserts(kad::BucketInserts::Manual) // only linked members, see the event loop
        .set_periodic_bootstrap_interval(None) // the event loop asks when the mesh changed
        .set_record_filtering(kad::StoreInserts::FilterBoth) // nothing is stored for others
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_provider_publication_interval(None);
    let mut kad = kad::Behaviour::with_config(me, MemoryStore::new(me), config);
    kad.set_mode(Some(kad::Mode::Server)); // on a LAN nothing confirms an external address
    kad
}

/// Entries in each of the 256 buckets. The table leads to a first few members; their records lead to all others.
const BUCKET: NonZeroUsize = NonZeroUsize::new(2).expect("not zero");
