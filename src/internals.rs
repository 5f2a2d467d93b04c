//! What `benches/` measures: pieces of the core, each behind a handle that does one thing. Nothing of it is for programs.

#![expect(missing_debug_implementations, reason = "handles of benchmarks are never printed")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::watch;

use crate::mesh::engine::{Effect, Engine, EngineConfig};
use crate::mesh::{
    Codec, Edition, Group, GroupBy, GroupKey, Identity, Member, NodeEntry, NodeId, NodeName, PeerId, Policy, Record,
    Routes, Rules, Sign, SignedRecord, Topic, TopicFilter, Turns,
};
use crate::net::{Link, LinkLimits, Links};
use crate::protocol::pubsub::{Outlet, PubSub, SendOptions, SendTimes};
use crate::protocol::subscription::{Inbox, Inboxes, ListenOptions};
use crate::wire::frame::{self, Frame, MessageHead};

/// A peer's knowledge of others, and its routes to them.
pub struct Mesh {
    engine: Engine,
    routes: Arc<Routes>,
    now: Instant,
    others: Vec<Record>,
    me: NodeId,
}

/// A node of a [`Mesh`] that sends on one topic.
pub struct Sender {
    pubsub: PubSub,
    outlet: Outlet,
    routes: watch::Sender<Arc<Routes>>,
    inbox: Arc<Inbox>,
}

/// A group, and its turns.
pub struct Choice {
    group: Group,
    policy: Policy,
    turns: Turns,
    rng: SmallRng,
}

/// A message as it stands in a link's queue.
pub struct Message {
    head: MessageHead,
    targets: Vec<u32>,
    topic: Topic,
    payload: Bytes,
    out: BytesMut,
}

/// The subscriptions of one node.
pub struct Subscriptions(Inboxes);

/// Nobody verifies these records.
struct Unsigned;

impl Sign for Unsigned {
    fn sign(&self, record: Record) -> SignedRecord {
        SignedRecord::new(record, Bytes::new())
    }
}

impl Mesh {
    /// Linked to as many peers as there are lists. Each has one node, of a name of its own, that listens with these filters.
    #[must_use]
    pub fn linked(filters: &[Vec<String>]) -> Self {
        let mut mesh = Self::new(filters);
        for record in mesh.others.clone() {
            mesh.engine.linked(Unsigned.sign(record), mesh.now);
        }
        mesh.settle();
        mesh
    }

    /// Knows as many peers, and has no link to any.
    #[must_use]
    pub fn heard_of(filters: &[Vec<String>]) -> Self {
        let mut mesh = Self::new(filters);
        for record in mesh.others.clone() {
            mesh.engine.gossiped(Unsigned.sign(record), mesh.now);
        }
        mesh.settle();
        mesh
    }

    #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
    fn new(filters: &[Vec<String>]) -> Self {
        let now = Instant::now();
        let mut engine = Engine::new(record(u32::MAX, &[]), Box::new(Unsigned), &EngineConfig::default(), now);
        let me = engine.add_node(name("me")).expect("the first node");
        let others = (0..).zip(filters).map(|(n, filters)| record(n, filters)).collect();
        let mut mesh = Self { engine, routes: Arc::default(), now, others, me };
        mesh.settle();
        mesh
    }

    /// How many nodes listen to the topic, by looking at the routes.
    #[must_use]
    pub fn resolve(&self, topic: &Topic) -> usize {
        let route = self.routes.resolve(topic, "me", GroupBy::Name);
        route.groups.iter().map(|group| group.members.len()).sum()
    }

    /// A new edition of a peer's record comes by gossip: it listens with one filter more, or with that one no more.
    pub fn change(&mut self, peer: usize, filter: &TopicFilter) {
        let record = &mut self.others[peer];
        record.edition.version += 1;
        if record.nodes[0].filters.last() == Some(filter) {
            record.nodes[0].filters.pop();
        } else {
            record.nodes[0].filters.push(filter.clone());
        }
        self.engine.gossiped(Unsigned.sign(self.others[peer].clone()), self.now);
        self.settle();
    }

    /// A record that is known already comes once more.
    pub fn repeat(&mut self, peer: usize) {
        self.engine.gossiped(Unsigned.sign(self.others[peer].clone()), self.now);
        self.settle();
    }

    /// This peer's own node listens, and does so no more.
    pub fn listen(&mut self, filter: &TopicFilter) {
        self.engine.listen(self.me.index, filter.clone()).expect("room for one filter");
        self.settle();
        self.engine.unlisten(self.me.index, filter);
        self.settle();
    }

    fn settle(&mut self) {
        self.now += Duration::from_millis(1);
        self.engine.settle(self.now);
        for effect in self.engine.effects() {
            if let Effect::Routes(routes) = effect {
                self.routes = routes;
            }
        }
    }

    /// Its node as a sender on the topic, to which it listens itself.
    #[must_use]
    pub fn sender(&mut self, topic: &Topic) -> Sender {
        let filter = TopicFilter::from(topic.clone());
        self.engine.listen(self.me.index, filter.clone()).expect("room for one filter");
        self.settle();
        let second = Duration::from_secs(1);
        let times = SendTimes { room: second, acknowledgement: second };
        let links = Links::default();
        for record in &self.others {
            let limits = LinkLimits { frames: 1 << 12, bytes: 1 << 20 };
            links.insert(record.peer, Link::new(1, limits, 1 << 20), None);
        }
        let pubsub = PubSub::new("me".to_owned(), links, Rules::default(), Arc::default(), 1 << 20, 1 << 20, times);
        let inbox = pubsub.inboxes().insert(self.me.index, filter, ListenOptions::default());
        let (routes, seen) = watch::channel(Arc::clone(&self.routes));
        let outlet = pubsub.outlet(topic.clone(), self.me, name("me"), seen);
        Sender { pubsub, outlet, routes, inbox }
    }

    /// The routes as they are now, for [`Sender::see`].
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(Arc::clone(&self.routes))
    }
}

/// Routes of one moment.
pub struct Snapshot(Arc<Routes>);

impl Sender {
    /// From now on, these are the routes.
    pub fn see(&self, snapshot: &Snapshot) {
        self.routes.send_replace(Arc::clone(&snapshot.0));
    }

    /// How many nodes listen, as a send would find them.
    #[must_use]
    pub fn listeners(&self) -> usize {
        self.pubsub.listeners(&self.outlet)
    }

    /// Sends to its own subscription, and takes the message there.
    #[must_use]
    pub fn send(&self, payload: &Bytes) -> bool {
        let report = self.pubsub.try_send(&self.outlet, Codec::Bytes, payload, &SendOptions::default());
        report.is_ok() && self.inbox.try_next().is_some()
    }
}

impl Choice {
    /// Among that many nodes.
    #[must_use]
    pub fn new(policy: Policy, members: u32) -> Self {
        let member = |n: u32| Member {
            id: NodeId { peer: peer(n), index: 0 },
            local: n.is_multiple_of(2),
            name: name("worker"),
            host: format!("host-{n}").into(),
            filters: 1,
        };
        let group = Group { key: GroupKey::Name(name("worker")), members: (0..members).map(member).collect() };
        Self { group, policy, turns: Turns::default(), rng: SmallRng::seed_from_u64(1) }
    }

    /// The next of them. All are equally busy.
    pub fn pick(&mut self, key: Option<&[u8]>) -> usize {
        self.turns.pick(&self.policy, &self.group, |_| 1, key, &mut self.rng)
    }
}

impl Message {
    /// For that many nodes of one peer. `inline`: with the topic itself instead of a number for it.
    #[must_use]
    pub fn new(topic: &Topic, inline: bool, targets: u32, payload: usize) -> Self {
        let alias = if inline { frame::INLINE } else { 1 };
        let head =
            MessageHead { codec: Codec::Bytes, alias, from: 0, seq: 1, delivery: None, left: None, retains: false };
        let (targets, payload) = ((0..targets).collect(), Bytes::from(vec![7; payload]));
        Self { head, targets, topic: topic.clone(), payload, out: BytesMut::with_capacity(1 << 17) }
    }

    /// Writes the frame, with its payload. Gives its length.
    pub fn encode(&mut self) -> usize {
        self.out.clear();
        let topic = (self.head.alias == frame::INLINE).then_some(&self.topic);
        frame::put_message(&mut self.out, self.head, self.targets.iter().copied(), topic, self.payload.len());
        self.out.extend_from_slice(&self.payload);
        self.out.len()
    }

    /// The frame without its length, for [`decode`].
    #[must_use]
    pub fn bytes(&mut self) -> Bytes {
        self.encode();
        Bytes::copy_from_slice(&self.out[4..])
    }
}

/// Reads a frame. Gives how many nodes and bytes are in it; `None`: it is not a message.
#[must_use]
pub fn decode(body: &Bytes) -> Option<usize> {
    match Frame::parse(body.clone()) {
        Ok(Frame::Message(message)) => Some(message.targets().count() + message.payload.len()),
        _ => None,
    }
}

impl Subscriptions {
    /// One for each filter.
    #[must_use]
    pub fn new(filters: &[String]) -> Self {
        let inboxes = Inboxes::default();
        for text in filters {
            inboxes.insert(0, filter(text), ListenOptions::default());
        }
        Self(inboxes)
    }

    /// How many take a message on the topic.
    #[must_use]
    pub fn matching(&self, topic: &Topic) -> usize {
        self.0.matching(0, topic).len()
    }
}

fn record(n: u32, filters: &[String]) -> Record {
    let nodes = if filters.is_empty() {
        Vec::new()
    } else {
        let filters = filters.iter().map(|text| filter(text)).collect();
        vec![NodeEntry { index: 0, name: name(&format!("node-{n}")), filters, services: Vec::new() }]
    };
    Record {
        peer: peer(n),
        identity: Identity::from_bytes([0; 32]),
        edition: Edition { incarnation: 1, version: 1 },
        host: format!("host-{n}"),
        software: String::new(),
        addresses: Vec::new(),
        nodes,
        leaving: false,
    }
}

fn peer(n: u32) -> PeerId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    PeerId::from_bytes(bytes)
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).expect("a name")
}

fn filter(text: &str) -> TopicFilter {
    TopicFilter::new(text).expect("a filter")
}
