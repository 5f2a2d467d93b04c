//! The control plane of one peer: its own record, its view of the others, and what to tell whom when.
//!
//! Every method that takes something in leaves [`Effect`]s behind; [`Engine::effects`] hands them out. Changes to one's
//! own record are published together: the first at once, those that follow within a few milliseconds as one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use super::changes::differences;
use super::record::{MAX_NAMES_PER_NODE, MAX_NODES_PER_PEER, MAX_RECORD, NodeEntry, Record, Sign, SignedRecord};
use super::routes::Routes;
use super::view::{Merged, View};
use super::{DownReason, Edition, NodeId, NodeName, PeerId, ServiceName, TopicFilter, What};

/// What one peer knows, decides and is about to say.
pub(crate) struct Engine {
    own: Record,
    own_bytes: usize,
    signed: SignedRecord,
    signer: Box<dyn Sign>,
    next_index: u32,
    view: View,
    /// What can be reached: this peer's own nodes and those of linked peers.
    routes: Routes,
    nodes_changed: bool,
    why_down: HashMap<PeerId, DownReason>,
    generation: u64,
    routes_changed: bool,
    own_changed: bool,
    unpublished: bool,
    may_publish: Instant,
    next_sync: Instant,
    sync_every: Duration,
    effects: Vec<Effect>,
}

/// What the world outside has to do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Spread one's own record to all, by gossip.
    Publish(SignedRecord),
    /// Say something to one linked peer.
    Tell(PeerId, Say),
    /// Somebody to be linked to: here is where it listens.
    Learned(Arc<Record>),
    /// Nothing was heard of the peer for long: what is kept of past links with it can go.
    Forget(PeerId),
    /// From now on, sends go this way.
    Routes(Arc<Routes>),
    /// Tell who watches.
    Happened(What),
}

/// What engines say to each other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Say {
    /// What I know: whoever knows newer answers with it. With `answer`, I want the same from you.
    Digest {
        /// What is known of each peer, the speaker included.
        known: Vec<Known>,
        /// Whether the other is to send its own digest back.
        answer: bool,
    },
    /// Records, and how long ago each peer gave a sign of life.
    Records(Vec<(Duration, SignedRecord)>),
    /// Send me these.
    Want(Vec<PeerId>),
}

/// One entry of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) peer: PeerId,
    pub(crate) edition: Edition,
    /// How long ago the peer gave a sign of life.
    pub(crate) age: Duration,
}

/// A node cannot have what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// The peer hosts as many nodes as it may.
    #[error("this peer has {MAX_NODES_PER_PEER} nodes, and more are not allowed")]
    Nodes,
    /// The node has as many filters and services as it may.
    #[error("this node has {MAX_NAMES_PER_NODE} filters and services, and more are not allowed")]
    Names,
    /// The peer's record would not fit what others take.
    #[error("the record of this peer would be larger than {MAX_RECORD} bytes: listen with fewer or shorter filters")]
    Record,
    /// The node offers this service already.
    #[error("this node offers {0} already")]
    Serves(ServiceName),
    /// The node is gone already.
    #[error("the node has ended")]
    NoSuchNode,
}

impl Engine {
    /// A peer that knows nobody yet. `own` has no nodes.
    pub(crate) fn new(own: Record, signer: Box<dyn Sign>, config: &EngineConfig, now: Instant) -> Self {
        let signed = signer.sign(own.clone());
        let mut engine = Self {
            routes: Routes::default(),
            nodes_changed: true,
            own_bytes: size_of_own(&own),
            view: View::new(own.peer, config.forget_after),
            signed,
            own,
            signer,
            next_index: 0,
            why_down: HashMap::new(),
            generation: 0,
            routes_changed: false,
            own_changed: true,
            unpublished: true,
            may_publish: now,
            next_sync: now + config.sync_every,
            sync_every: config.sync_every,
            effects: Vec::new(),
        };
        engine.settle(now);
        engine
    }

    /// What is to be done since the last call.
    pub(crate) fn effects(&mut self) -> impl Iterator<Item = Effect> + use<> {
        std::mem::take(&mut self.effects).into_iter()
    }

    // What this peer does.

    /// Hosts one more node.
    pub(crate) fn add_node(&mut self, name: NodeName) -> Result<NodeId, LimitError> {
        if self.own.nodes.len() >= MAX_NODES_PER_PEER {
            return Err(LimitError::Nodes);
        }
        self.reserve(name.as_str())?;
        let index = self.next_index;
        self.next_index += 1; // 4 billion nodes in the life of a process: not reached
        self.own.nodes.push(NodeEntry { index, name: name.clone(), filters: Vec::new(), services: Vec::new() });
        self.own_changed = true;
        self.nodes_changed = true;
        let id = NodeId { peer: self.own.peer, index };
        self.effects.push(Effect::Happened(What::NodeUp { node: id, name }));
        Ok(id)
    }

    /// Hosts it no more.
    pub(crate) fn remove_node(&mut self, index: u32) {
        let Some(position) = self.position(index) else { return };
        let (node, id) = (self.own.nodes.remove(position), self.id(index));
        node.filters.iter().for_each(|filter| self.routes.unlisten(id, filter));
        node.services.iter().for_each(|service| self.routes.unserve(id, service));
        let names = node.filters.iter().map(TopicFilter::as_str).chain(node.services.iter().map(ServiceName::as_str));
        self.own_bytes -= names.map(cost).sum::<usize>() + cost(node.name.as_str());
        self.own_changed = true;
        self.nodes_changed = true;
        self.effects.push(Effect::Happened(What::NodeDown { node: id, name: node.name }));
    }

    /// One of its nodes listens. A filter that it has already is counted once in the record; the caller counts uses.
    pub(crate) fn listen(&mut self, index: u32, filter: TopicFilter) -> Result<(), LimitError> {
        let position = self.room_for_name(index)?;
        self.reserve(filter.as_str())?;
        let (node, name) = (self.id(index), self.own.nodes[position].name.clone());
        self.own.nodes[position].filters.push(filter.clone());
        self.own_changed = true;
        self.routes.listen(node, &name, &self.own.host, &filter);
        self.effects.push(Effect::Happened(What::Listening { node, name, filter }));
        Ok(())
    }

    /// It listens no more.
    pub(crate) fn unlisten(&mut self, index: u32, filter: &TopicFilter) {
        let Some(position) = self.position(index) else { return };
        let node = &mut self.own.nodes[position];
        let Some(at) = node.filters.iter().rposition(|known| known == filter) else { return };
        node.filters.remove(at);
        let name = node.name.clone();
        self.own_bytes -= cost(filter.as_str());
        self.own_changed = true;
        self.routes.unlisten(self.id(index), filter);
        self.effects.push(Effect::Happened(What::NotListening { node: self.id(index), name, filter: filter.clone() }));
    }

    /// One of its nodes offers a service.
    pub(crate) fn serve(&mut self, index: u32, service: ServiceName) -> Result<(), LimitError> {
        let position = self.room_for_name(index)?;
        if self.own.nodes[position].services.contains(&service) {
            return Err(LimitError::Serves(service));
        }
        self.reserve(service.as_str())?;
        let (node, name) = (self.id(index), self.own.nodes[position].name.clone());
        self.own.nodes[position].services.push(service.clone());
        self.own_changed = true;
        self.routes.serve(node, &name, &self.own.host, &service);
        if !service.is_reserved() {
            self.effects.push(Effect::Happened(What::Serving { node, name, service }));
        }
        Ok(())
    }

    /// It offers it no more.
    pub(crate) fn unserve(&mut self, index: u32, service: &ServiceName) {
        let Some(position) = self.position(index) else { return };
        let node = &mut self.own.nodes[position];
        let Some(at) = node.services.iter().position(|known| known == service) else { return };
        node.services.remove(at);
        let name = node.name.clone();
        self.own_bytes -= cost(service.as_str());
        self.own_changed = true;
        self.routes.unserve(self.id(index), service);
        if !service.is_reserved() {
            let (node, service) = (self.id(index), service.clone());
            self.effects.push(Effect::Happened(What::NotServing { node, name, service }));
        }
    }

    /// None of its nodes listens or serves any more: others choose others from now on.
    pub(crate) fn retire(&mut self) {
        let names: Vec<(u32, Vec<TopicFilter>, Vec<ServiceName>)> =
            self.own.nodes.iter().map(|node| (node.index, node.filters.clone(), node.services.clone())).collect();
        for (index, filters, services) in names {
            filters.iter().rev().for_each(|filter| self.unlisten(index, filter));
            services.iter().rev().for_each(|service| self.unserve(index, service));
        }
    }

    /// This is where it can be dialled now.
    pub(crate) fn set_addresses(&mut self, addresses: Vec<String>) {
        if self.own.addresses != addresses {
            self.own_bytes -= self.own.addresses.iter().map(|text| cost(text)).sum::<usize>();
            self.own_bytes += addresses.iter().map(|text| cost(text)).sum::<usize>();
            self.own.addresses = addresses;
            self.own_changed = true;
        }
    }

    /// The last thing that this peer says: to everybody, both by gossip and directly.
    pub(crate) fn leave(&mut self, now: Instant) {
        self.own.leaving = true;
        self.own_changed = true;
        self.may_publish = now;
        self.settle(now);
        let linked: Vec<PeerId> = self.view.linked().collect();
        for peer in linked {
            self.tell(peer, Say::Records(vec![(Duration::ZERO, self.signed.clone())]));
        }
    }

    // What it hears.

    /// A link stands; the peer's record came with its greeting.
    pub(crate) fn linked(&mut self, signed: SignedRecord, now: Instant) {
        let peer = signed.peer();
        self.merge(signed, now);
        self.why_down.remove(&peer);
        if self.view.set_linked(peer, true, now) {
            self.refresh(peer);
        }
        let digest = self.digest(false, now);
        self.tell(peer, digest);
    }

    /// The link is gone.
    pub(crate) fn lost(&mut self, peer: PeerId, why: DownReason, now: Instant) {
        if self.view.set_linked(peer, false, now) {
            let left = self.view.signed(peer).is_some_and(|signed| signed.record().leaving);
            self.why_down.insert(peer, if left { DownReason::Left } else { why });
            self.refresh(peer);
        }
    }

    /// A record came by gossip: its owner was alive just now.
    pub(crate) fn gossiped(&mut self, signed: SignedRecord, now: Instant) {
        self.merge(signed, now);
    }

    /// A linked peer says which edition of its record is the last: gossip may have lost it.
    pub(crate) fn current_edition(&mut self, peer: PeerId, edition: Edition) {
        if self.view.edition(peer).is_some_and(|known| known < edition) {
            self.tell(peer, Say::Want(vec![peer]));
        }
    }

    /// Whether a record of that edition would be no news. Its sign of life is taken either way.
    pub(crate) fn knows(&mut self, known: Known, now: Instant) -> bool {
        self.view.vouched(known.peer, now.checked_sub(known.age).unwrap_or(now));
        known.peer == self.own.peer || self.view.edition(known.peer).is_some_and(|edition| edition >= known.edition)
    }

    /// A linked peer says something.
    pub(crate) fn heard(&mut self, from: PeerId, say: Say, now: Instant) {
        match say {
            Say::Records(records) => {
                for (age, signed) in records {
                    self.merge(signed, now.checked_sub(age).unwrap_or(now));
                }
            }
            Say::Want(peers) => {
                let peers: HashSet<PeerId> = peers.into_iter().collect();
                let records = peers.iter().filter_map(|peer| self.record_for_sync(*peer, now)).collect();
                self.tell_records(from, records);
            }
            Say::Digest { known, answer } => {
                let mut theirs = HashMap::with_capacity(known.len());
                for Known { peer, edition, age } in known {
                    theirs.insert(peer, edition);
                    if self.view.edition(peer) == Some(edition) {
                        self.view.vouched(peer, now.checked_sub(age).unwrap_or(now));
                    }
                }
                let newer =
                    |signed: &SignedRecord| theirs.get(&signed.peer()).is_none_or(|known| *known < signed.edition());
                let mut lacking: Vec<PeerId> = self
                    .view
                    .iter()
                    .map(|(signed, _)| signed)
                    .filter(|signed| newer(signed))
                    .map(SignedRecord::peer)
                    .collect();
                if newer(&self.signed) {
                    lacking.push(self.own.peer);
                }
                let records = lacking.into_iter().filter_map(|peer| self.record_for_sync(peer, now)).collect();
                self.tell_records(from, records);
                if answer {
                    let digest = self.digest(false, now);
                    self.tell(from, digest);
                }
            }
        }
    }

    // Time.

    /// When [`Engine::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Instant {
        let publish = self.unpublished.then_some(self.may_publish);
        [publish, self.view.next_expiry()].into_iter().flatten().fold(self.next_sync, Instant::min)
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Instant, rng: &mut impl Rng) {
        for record in self.view.expire(now) {
            self.why_down.remove(&record.peer);
            self.effects.push(Effect::Forget(record.peer));
        }
        if now >= self.next_sync {
            let linked: Vec<PeerId> = self.view.linked().collect();
            if !linked.is_empty() {
                let digest = self.digest(true, now);
                self.tell(linked[rng.random_range(0..linked.len())], digest);
            }
            // Between 80 and 120 %: so that peers that started together do not stay in step.
            self.next_sync = now + self.sync_every * rng.random_range(80..=120) / 100;
        }
        self.settle(now);
    }

    /// Turns what changed into one new snapshot and one new edition. To be called after any change.
    pub(crate) fn settle(&mut self, now: Instant) {
        if std::mem::take(&mut self.own_changed) {
            self.unpublished = true;
            self.routes_changed = true;
        }
        let publishes = self.unpublished && now >= self.may_publish;
        let nodes_changed = std::mem::take(&mut self.nodes_changed);
        if publishes {
            self.unpublished = false;
            self.own.edition.version += 1;
            self.signed = self.signer.sign(self.own.clone());
            // Large records cost everybody more, so they come less often: 60 KiB every 35 ms.
            self.may_publish = now + PUBLISH_GAP + PUBLISH_GAP_PER_KIB * (self.signed.bytes().len() / 1024) as u32;
            self.effects.push(Effect::Publish(self.signed.clone()));
            self.routes.describe(self.signed.record());
            self.routes_changed = true;
        } else if nodes_changed {
            self.routes.describe(&Arc::new(self.own.clone()));
            self.routes_changed = true;
        }
        if std::mem::take(&mut self.routes_changed) {
            self.generation += 1;
            let routes = self.routes.snapshot(self.generation);
            self.effects.push(Effect::Routes(Arc::new(routes)));
        }
    }

    // What it knows.

    /// One's own record as last published.
    pub(crate) fn own(&self) -> &SignedRecord {
        &self.signed
    }

    /// Where others are told to dial.
    pub(crate) fn own_addresses(&self) -> &[String] {
        &self.own.addresses
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    fn merge(&mut self, signed: SignedRecord, seen: Instant) {
        let (peer, record) = (signed.peer(), Arc::clone(signed.record()));
        match self.view.merge(signed, seen) {
            Merged::Old | Merged::Full => {}
            Merged::New | Merged::Newer(_) => {
                if !record.leaving {
                    self.effects.push(Effect::Learned(record));
                } else if self.view.is_linked(peer) {
                    self.why_down.insert(peer, DownReason::Left);
                }
                self.refresh(peer);
            }
        }
    }

    /// Brings what can be reached at that peer up to date, and tells the difference.
    fn refresh(&mut self, peer: PeerId) {
        let now = self.view.signed(peer).filter(|signed| self.view.is_linked(peer) && !signed.record().leaving);
        let before = self.routes.record(peer).cloned();
        if before.as_ref().map(|record| record.edition) == now.map(SignedRecord::edition) {
            return;
        }
        let after = now.map(|signed| Arc::clone(signed.record()));
        self.routes.replace(peer, before.as_deref(), after.as_ref());
        self.routes_changed = true;
        let why = self.why_down.get(&peer).copied().unwrap_or(DownReason::Closed);
        let changes = differences(before.as_deref(), after.as_deref(), why);
        self.effects.extend(changes.into_iter().map(Effect::Happened));
    }

    fn digest(&self, answer: bool, now: Instant) -> Say {
        let known = |signed: &SignedRecord| Known {
            peer: signed.peer(),
            edition: signed.edition(),
            age: self.view.age(signed.peer(), now).unwrap_or_default(),
        };
        let known = self.view.iter().map(|(signed, _)| signed).chain([&self.signed]).map(known).collect();
        Say::Digest { known, answer }
    }

    fn record_for_sync(&self, peer: PeerId, now: Instant) -> Option<(Duration, SignedRecord)> {
        if peer == self.own.peer {
            return Some((Duration::ZERO, self.signed.clone()));
        }
        Some((self.view.age(peer, now)?, self.view.signed(peer)?.clone()))
    }

    /// Says them in portions, so that no single message holds up what comes behind it.
    fn tell_records(&mut self, to: PeerId, records: Vec<(Duration, SignedRecord)>) {
        let (mut portion, mut bytes) = (Vec::new(), 0);
        for (age, signed) in records {
            let size = signed.bytes().len();
            if bytes + size > SYNC_PORTION && !portion.is_empty() {
                self.tell(to, Say::Records(std::mem::take(&mut portion)));
                bytes = 0;
            }
            bytes += size;
            portion.push((age, signed));
        }
        if !portion.is_empty() {
            self.tell(to, Say::Records(portion));
        }
    }

    fn tell(&mut self, peer: PeerId, say: Say) {
        self.effects.push(Effect::Tell(peer, say));
    }

    fn id(&self, index: u32) -> NodeId {
        NodeId { peer: self.own.peer, index }
    }

    fn position(&self, index: u32) -> Option<usize> {
        self.own.nodes.binary_search_by_key(&index, |node| node.index).ok()
    }

    fn room_for_name(&self, index: u32) -> Result<usize, LimitError> {
        let position = self.position(index).ok_or(LimitError::NoSuchNode)?;
        let node = &self.own.nodes[position];
        if node.filters.len() + node.services.len() >= MAX_NAMES_PER_NODE {
            return Err(LimitError::Names);
        }
        Ok(position)
    }

    /// Counts a name towards the record's size, or says that it does not fit.
    fn reserve(&mut self, name: &str) -> Result<(), LimitError> {
        let bytes = self.own_bytes + cost(name);
        if bytes > MAX_RECORD {
            return Err(LimitError::Record);
        }
        self.own_bytes = bytes;
        Ok(())
    }
}

/// How often things happen by themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineConfig {
    /// Silence after which a peer's record is dropped. Longer remembers peers through longer outages.
    pub(crate) forget_after: Duration,
    /// Time between comparisons with a random peer. Shorter repairs lost gossip sooner, at one exchange each time.
    pub(crate) sync_every: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { forget_after: Duration::from_secs(30), sync_every: Duration::from_secs(25) }
    }
}

/// An upper bound of what the record takes without nodes: keys, numbers, texts and two signatures.
fn size_of_own(record: &Record) -> usize {
    1024 + record.addresses.iter().map(|text| cost(text)).sum::<usize>()
}

/// An upper bound of what a name adds to an encoded record: its bytes, its header, and for a node the entry around it.
fn cost(name: &str) -> usize {
    name.len() + 64
}

/// Time between two editions of one's own record, so that a loop of listens is not a storm of gossip.
const PUBLISH_GAP: Duration = Duration::from_millis(5);
const PUBLISH_GAP_PER_KIB: Duration = Duration::from_micros(500);
/// Records that are sent in one message when views are compared.
const SYNC_PORTION: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::super::GroupBy;
    use super::super::kit::{at, dice, node_name, peer, record, record_with, topic};
    use super::*;

    struct NoSignature;
    impl Sign for NoSignature {
        fn sign(&self, record: Record) -> SignedRecord {
            SignedRecord::new(record, bytes::Bytes::new())
        }
    }

    fn engine(n: u32) -> Engine {
        let mut engine = Engine::new(record_with(n, []), Box::new(NoSignature), &EngineConfig::default(), at(0));
        engine.effects().for_each(drop);
        engine
    }

    fn happened(engine: &mut Engine) -> Vec<&'static str> {
        let events = engine
            .effects()
            .filter_map(|effect| if let Effect::Happened(what) = effect { Some(what.name()) } else { None });
        events.collect()
    }

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::new(text).unwrap()
    }

    #[test]
    fn what_a_node_listens_to_is_routed_and_published_at_once() {
        let mut engine = engine(1);
        let node = engine.add_node(node_name("a")).unwrap();
        engine.listen(node.index, filter("x/*")).unwrap();
        engine.settle(at(1));
        let effects: Vec<_> = engine.effects().collect();
        let Some(Effect::Routes(routes)) = effects.iter().rfind(|effect| matches!(effect, Effect::Routes(_))) else {
            panic!("no routes")
        };
        assert_eq!(routes.resolve(&topic("x/y"), "", GroupBy::Name).groups[0].members[0].id, node);
        let published = effects.iter().filter(|effect| matches!(effect, Effect::Publish(_))).count();
        assert_eq!(published, 1, "{effects:?}");
    }

    #[test]
    fn a_link_that_was_replaced_concerns_all_topics_of_its_peer_and_no_others() {
        let record = |n, name: &str, filter| {
            SignedRecord::new(record_with(n, [super::super::kit::listener(0, name, &[filter])]), bytes::Bytes::new())
        };
        let mut engine = engine(1);
        engine.linked(record(2, "a", "x"), at(0));
        engine.linked(record(3, "b", "y"), at(0));
        let mut routes = || {
            engine.settle(at(1));
            let routes = engine.effects().filter_map(|effect| match effect {
                Effect::Routes(routes) => Some(routes),
                _ => None,
            });
            let last = routes.last().unwrap();
            engine.lost(peer(2), DownReason::Closed, at(1));
            engine.linked(record(2, "a", "x"), at(1));
            last
        };
        let (before, after) = (routes(), routes());
        assert_ne!(before.generation(), after.generation());
        assert!(before.listening(&topic("x")) != after.listening(&topic("x")));
        assert!(before.listening(&topic("y")) == after.listening(&topic("y")));
    }

    #[test]
    fn changes_in_quick_succession_are_published_as_one() {
        let mut engine = engine(1);
        let node = engine.add_node(node_name("a")).unwrap();
        engine.settle(at(1));
        for n in 0..100 {
            engine.listen(node.index, filter(&format!("t/{n}"))).unwrap();
            engine.settle(at(1));
        }
        engine.tick(at(2), &mut dice(1));
        let published: Vec<_> = engine
            .effects()
            .filter_map(|effect| if let Effect::Publish(signed) = effect { Some(signed) } else { None })
            .collect();
        assert_eq!(published.len(), 2);
        assert_eq!(published[1].record().nodes[0].filters.len(), 100);
    }

    #[test]
    fn a_peer_is_up_while_it_is_linked_and_has_not_left() {
        let mut engine = engine(1);
        engine.gossiped(record(2, 1), at(0));
        assert!(happened(&mut engine).is_empty());
        engine.linked(record(2, 1), at(0));
        assert_eq!(happened(&mut engine), ["peer-up"]);
        let mut left = record_with(2, []);
        left.edition.version = 5;
        left.leaving = true;
        engine.gossiped(SignedRecord::new(left, bytes::Bytes::new()), at(1));
        let events: Vec<_> = engine.effects().collect();
        let left = What::PeerDown { peer: peer(2), host: "host-2".into(), reason: DownReason::Left };
        assert!(matches!(&events[..], [Effect::Happened(what)] if *what == left), "{events:?}");
        engine.lost(peer(2), DownReason::Closed, at(2));
        assert!(happened(&mut engine).is_empty());
    }

    #[test]
    fn a_digest_is_answered_with_what_the_other_lacks() {
        let mut engine = engine(1);
        for n in 2..6 {
            engine.gossiped(record(n, 3), at(0));
        }
        engine.effects().for_each(drop);
        let known = [(2, 3), (3, 2), (4, 9)].map(|(n, version)| Known {
            peer: peer(n),
            edition: Edition { incarnation: 1, version },
            age: Duration::ZERO,
        });
        engine.heard(peer(9), Say::Digest { known: known.to_vec(), answer: false }, at(1));
        let mut sent: Vec<PeerId> = Vec::new();
        for effect in engine.effects() {
            let Effect::Tell(to, Say::Records(records)) = effect else { panic!("{effect:?}") };
            assert_eq!(to, peer(9));
            sent.extend(records.iter().map(|(_, signed)| signed.peer()));
        }
        sent.sort_unstable();
        assert_eq!(sent, [peer(1), peer(3), peer(5)]);
    }

    #[test]
    fn limits_are_errors_at_the_node_that_breaks_them() {
        let mut engine = engine(1);
        let node = engine.add_node(node_name("a")).unwrap().index;
        for n in 0..MAX_NAMES_PER_NODE {
            if let Err(error) = engine.listen(node, filter(&format!("{n}"))) {
                panic!("{n}: {error}");
            }
        }
        assert_eq!(engine.listen(node, filter("more")), Err(LimitError::Names));
        let second = engine.add_node(node_name("b")).unwrap().index;
        let long = "x".repeat(250);
        let refused = (0..MAX_NAMES_PER_NODE).find_map(|_| engine.listen(second, filter(&long)).err());
        assert_eq!(refused, Some(LimitError::Record));
        assert_eq!(engine.listen(99, filter("x")), Err(LimitError::NoSuchNode));
        engine.remove_node(node);
        assert_eq!(engine.listen(second, filter(&long)), Ok(()));
    }

    #[test]
    fn a_lost_gossip_message_is_noticed_by_the_next_beat() {
        let mut engine = engine(1);
        engine.linked(record(2, 1), at(0));
        engine.effects().for_each(drop);
        engine.current_edition(peer(2), Edition { incarnation: 1, version: 2 });
        let effects: Vec<_> = engine.effects().collect();
        assert!(matches!(&effects[..], [Effect::Tell(_, Say::Want(wanted))] if *wanted == [peer(2)]), "{effects:?}");
    }
}
