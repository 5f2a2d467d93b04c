//! Messages from links into subscriptions: the receiving half of [`pubsub`](super::pubsub).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::delivery;
use super::guard::{Visitor, tell};
use super::pubsub::PubSub;
use super::subscription::{Batch, Inbox, Inboxes, Put};
use crate::mesh::delivery::{Claim, Claimed, Verdict};
use crate::mesh::{Action, Message, NodeId, NodeName, PeerId, Topic};
use crate::net::{Link, MAX_ALIASES, MAX_INTRODUCED};
use crate::wire::frame::{self, BadFrame, Plain};

/// What reads one peer's messages.
pub(crate) struct Arrivals {
    pubsub: Arc<PubSub>,
    visitor: Visitor,
    peer: PeerId,
    /// Topics by alias, from 1.
    topics: Vec<Arrived>,
    names: HashMap<u32, NodeName>,
    last_name: Option<(u32, NodeName)>,
    gathered: Option<Gathered>,
    /// The highest number that an acknowledged message of the peer had before the first on this stream.
    since: Option<u64>,
}

/// Messages of one block that go to one subscription together.
struct Gathered {
    alias: u32,
    node: u32,
    inbox: Arc<Inbox>,
    batch: Batch,
}

/// A topic that a peer sends on, and where its messages go here.
struct Arrived {
    topic: Topic,
    /// Set if the peer may not send on it.
    refused: Option<Box<Refused>>,
    generation: u64,
    inboxes: Vec<(u32, Vec<Arc<Inbox>>)>,
}

/// That a peer may not send on a topic.
struct Refused {
    /// What it is to be told, until it was.
    untold: Option<frame::Refused>,
}

impl Arrivals {
    pub(crate) fn new(pubsub: Arc<PubSub>, visitor: Visitor) -> Self {
        let (topics, names) = Default::default();
        Self { pubsub, peer: visitor.peer(), visitor, topics, names, last_name: None, gathered: None, since: None }
    }

    fn name(&mut self, index: u32) -> Result<NodeName, BadFrame> {
        if let Some((last, name)) = &self.last_name
            && *last == index
        {
            return Ok(name.clone());
        }
        let name = self.names.get(&index).ok_or(BadFrame::Unannounced)?.clone();
        self.last_name = Some((index, name.clone()));
        Ok(name)
    }
}

impl Arrivals {
    /// A number stands for a topic from now on.
    pub(super) fn topic(&mut self, alias: u32, topic: Topic) -> Result<(), BadFrame> {
        if alias as usize != self.topics.len() + 1 || self.topics.len() >= MAX_ALIASES {
            return Err(BadFrame::Alias);
        }
        self.topics.push(Arrived::new(topic, &self.visitor));
        Ok(())
    }

    /// An index stands for a node's name from now on.
    pub(super) fn node(&mut self, index: u32, name: NodeName) {
        // The sender starts over at the same count: see `Link`.
        if self.names.len() >= MAX_INTRODUCED {
            self.names.clear();
        }
        self.names.insert(index, name);
        self.last_name = None;
    }

    /// Takes a message as it stands in a block, if it goes to one subscription and needs nothing but to be put there. `false`:
    /// it does not.
    pub(super) fn gather(&mut self, block: &Bytes, body: Range<usize>) -> Result<bool, BadFrame> {
        let Some(Plain { codec, alias, from, seq, node }) = Plain::peek(&block[body.clone()]) else { return Ok(false) };
        let same = |g: &Gathered| (g.alias, g.node, g.batch.from.index) == (alias, node, from);
        if !self.gathered.as_ref().is_some_and(same) {
            self.flush();
            let from_name = self.name(from)?;
            let arrived = self.topics.get_mut((alias as usize).wrapping_sub(1)).ok_or(BadFrame::Unannounced)?;
            if arrived.refused.is_some() {
                return Ok(false);
            }
            let [inbox] = arrived.inboxes(node, self.pubsub.inboxes()) else { return Ok(false) };
            let inbox = Arc::clone(inbox);
            let from = NodeId { peer: self.peer, index: from };
            let batch = Batch::new(arrived.topic.clone(), from, from_name, block.clone());
            self.gathered = Some(Gathered { alias, node, inbox, batch });
        }
        if let Some(gathered) = &mut self.gathered {
            let at = body.start + Plain::HEAD;
            gathered.batch.push(seq, codec, at, body.end - at);
        }
        Ok(true)
    }

    /// Puts what was gathered into its subscription.
    pub(super) fn flush(&mut self) {
        let Some(Gathered { node, inbox, mut batch, .. }) = self.gathered.take() else { return };
        self.pubsub.received(batch.len());
        let control = || self.pubsub.links().control(self.peer);
        let dropped = match batch.len() {
            1 => batch.next().map_or(0, |message| usize::from(inbox.deliver(message, node, control) == Put::Dropped)),
            _ => inbox.deliver_all(batch, node, control),
        };
        self.pubsub.dropped(dropped);
    }

    /// A message for nodes of this peer; `link` is the way back.
    pub(super) fn message(&mut self, mut message: frame::Message, link: &Link) -> Result<(), BadFrame> {
        self.pubsub.received(1);
        let from_name = self.name(message.head.from)?;
        let mut inline;
        let arrived = if let Some(topic) = message.topic.take() {
            inline = Arrived::new(topic, &self.visitor);
            &mut inline
        } else {
            let at = (message.head.alias as usize).wrapping_sub(1);
            self.topics.get_mut(at).ok_or(BadFrame::Unannounced)?
        };
        let head = message.head;
        let mut received = Message {
            topic: arrived.topic.clone(),
            from: NodeId { peer: self.peer, index: head.from },
            from_name,
            seq: head.seq,
            codec: head.codec,
            payload: std::mem::take(&mut message.payload),
            lagged: 0,
            retains: head.retains,
            claimed: Claimed::default(),
        };
        let lane = head.delivery.map(|_| self.pubsub.lanes().get(self.peer));
        if let (Some(lane), Some(delivery)) = (&lane, head.delivery)
            && !lane.accept(delivery, &mut self.since)
        {
            return Ok(()); // it came before, and what is said of it will be or was
        }
        if let Some(refused) = &mut arrived.refused {
            refused.answer(&self.visitor, link);
            for node in message.targets() {
                if let (Some(lane), Some(delivery)) = (&lane, head.delivery) {
                    lane.claim(delivery.id, node, None, false).settle(Verdict::Refused);
                }
            }
            return Ok(());
        }
        let expires = head.left.map(|left| Instant::now() + Duration::from_millis(left.into()));
        for node in message.targets() {
            if let (Some(lane), Some(delivery)) = (&lane, head.delivery) {
                received.claimed = Claimed(Some(lane.claim(delivery.id, node, expires, false)));
            } else if let Some(expires) = expires {
                received.claimed = Claimed(Some(Arc::new(Claim::new(Some(expires.into_std()), None))));
            }
            if head.left == Some(0) {
                self.pubsub.dropped(1);
                if let Claimed(Some(claim)) = std::mem::take(&mut received.claimed) {
                    claim.settle(Verdict::Expired);
                }
                continue;
            }
            let inboxes = arrived.inboxes(node, self.pubsub.inboxes());
            delivery::give(&received, inboxes, |inbox, message| {
                let put = inbox.deliver(message, node, || self.pubsub.links().control(self.peer));
                self.pubsub.dropped(usize::from(put == Put::Dropped));
                put
            });
        }
        Ok(())
    }
}

impl Refused {
    /// Counts a message that is not taken, and tells its sender so at the first.
    fn answer(&mut self, visitor: &Visitor, link: &Link) {
        let Some(refused) = self.untold.take() else { return visitor.refused_again() };
        visitor.refused(refused.action, &refused.resource, &refused.rule);
        tell(link, refused);
    }
}

impl Arrived {
    fn new(topic: Topic, visitor: &Visitor) -> Self {
        let refused = visitor.refusal(Action::Send, topic.as_str()).map(|rule| {
            let untold = frame::Refused { action: Action::Send, resource: topic.to_string(), rule };
            Box::new(Refused { untold: Some(untold) })
        });
        Self { topic, refused, generation: 0, inboxes: Vec::new() }
    }

    fn inboxes(&mut self, node: u32, all: &Inboxes) -> &[Arc<Inbox>] {
        let generation = all.generation();
        if self.generation != generation || self.inboxes.len() > MAX_CACHED_NODES {
            self.inboxes.clear();
            self.generation = generation;
        }
        if let Some(at) = self.inboxes.iter().position(|(known, _)| *known == node) {
            return &self.inboxes[at].1;
        }
        // Only who listens is remembered: a peer may name any number of nodes that there are not.
        let found = all.matching(node, &self.topic);
        if found.is_empty() {
            return &[];
        }
        self.inboxes.push((node, found));
        self.inboxes.last().map_or(&[], |(_, inboxes)| inboxes)
    }
}

/// Nodes whose inboxes are remembered per topic of a link.
const MAX_CACHED_NODES: usize = 1024;

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::super::guard::Guard;
    use super::super::pubsub::SendTimes;
    use super::*;
    use crate::mesh::{AllowRule, Codec, Identity, Permissions, Rules, TopicFilter};
    use crate::net::{LinkLimits, Links};
    use crate::protocol::subscription::{ListenOptions, Overflow};
    use crate::wire::frame::{Frame, MessageHead};
    use crate::wire::next_block;

    const NODES: u32 = 3;

    /// One message of a block: from which node, on which topic, to which node, how it is marked, and how long it is.
    type Sent = (u32, u32, u32, u8, usize);

    /// What all subscriptions hold after these messages came, read at once or one by one.
    fn received(sent: &[Sent], options: ListenOptions, at_once: bool) -> (Vec<Vec<Message>>, (u64, u64, u64)) {
        let links = Links::default();
        let times = SendTimes { room: Duration::ZERO, acknowledgement: Duration::ZERO };
        let pubsub =
            Arc::new(PubSub::new(String::new(), links, Rules::default(), Arc::default(), 1 << 20, 1 << 20, times));
        let filters = [(0, "a"), (0, "b"), (1, "a"), (1, "*"), (2, "b")];
        let listen =
            |(node, filter): &(u32, &str)| pubsub.inboxes().insert(*node, TopicFilter::new(filter).unwrap(), options);
        let inboxes: Vec<Arc<Inbox>> = filters.iter().map(listen).collect();
        let visitor = Arc::<Guard>::default().visitor(PeerId::from_bytes([1; 32]), None);
        let link = Link::new(1, LinkLimits { frames: 100, bytes: 1 << 20 }, 1 << 20);
        let mut arrivals = Arrivals::new(Arc::clone(&pubsub), visitor);
        for (alias, name) in [(1, "a"), (2, "b")] {
            arrivals.topic(alias, Topic::new(name).unwrap()).unwrap();
        }
        (0..NODES).for_each(|index| arrivals.node(index, NodeName::new(format!("n{index}")).unwrap()));
        let mut block = BytesMut::new();
        for (seq, (from, alias, node, mark, len)) in (1..).zip(sent) {
            let (retains, left) = (*mark == 1, (*mark == 2).then_some(60_000));
            let (codec, delivery) = (Codec::Text, None);
            let head = MessageHead { codec, alias: *alias, from: *from, seq, delivery, left, retains };
            let more = if *mark == 3 { 1..=2 } else { *node..=*node };
            let targets: Vec<u32> = more.collect();
            frame::put_message(&mut block, head, targets.into_iter(), None, *len);
            block.extend_from_slice(&vec![seq as u8; *len]);
        }
        let block = block.freeze();
        let mut rest = 0..block.len();
        let mut taken: Vec<Vec<Message>> = vec![Vec::new(); inboxes.len()];
        let mut take = |most: usize| {
            for (inbox, taken) in inboxes.iter().zip(&mut taken) {
                taken.extend(std::iter::from_fn(|| inbox.try_next().flatten()).take(most));
            }
        };
        for (.., mark, _) in sent {
            let body = next_block(&block, &mut rest).unwrap();
            if *mark == 4 {
                arrivals.flush();
                take(7);
            }
            if at_once && arrivals.gather(&block, body.clone()).unwrap() {
                continue;
            }
            arrivals.flush();
            let Frame::Message(message) = Frame::parse(block.slice(body)).unwrap() else { panic!("only messages") };
            arrivals.message(message, &link).unwrap();
        }
        arrivals.flush();
        take(usize::MAX);
        (taken, pubsub.counts())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn messages_that_are_handed_on_together_are_the_same_as_one_by_one(
            runs in prop::collection::vec(((0..2u32, 1..3u32, 0..2u32, 0..8u8, 0..200usize), 1..60usize), 0..5),
            (messages, bytes) in (1..60usize, 1..5000usize),
            overflow in prop::sample::select(vec![Overflow::DropOldest, Overflow::DropNewest, Overflow::Block]),
        ) {
            let options = ListenOptions { messages, bytes, overflow, ..ListenOptions::default() };
            let sent: Vec<Sent> = runs.into_iter().flat_map(|(one, times)| vec![one; times]).collect();
            prop_assert_eq!(received(&sent, options, true), received(&sent, options, false));
        }
    }

    /// Of a peer that may send on `b` alone: messages on topics with numbers and without, some of which it wants to hear of.
    #[test]
    fn what_a_peer_may_not_send_reaches_nobody_and_it_hears_so_once_for_each_number() {
        let rule = AllowRule { name: None, who: vec![], action: vec![Action::Send], pattern: "a".into() };
        let guard = Guard::new(Permissions::new(vec![rule]), Links::default(), tokio::sync::mpsc::channel(9).0);
        let guard = Arc::new(guard);
        let peer = PeerId::from_bytes([1; 32]);
        let times = SendTimes { room: Duration::ZERO, acknowledgement: Duration::ZERO };
        let guards = Arc::clone(&guard);
        let pubsub = PubSub::new(String::new(), Links::default(), Rules::default(), guards, 1 << 20, 1 << 20, times);
        let pubsub = Arc::new(pubsub);
        let inbox = pubsub.inboxes().insert(0, TopicFilter::new("**").unwrap(), ListenOptions::default());
        let visitor = guard.visitor(peer, Some(Identity::from_bytes([1; 32])));
        let mut arrivals = Arrivals::new(Arc::clone(&pubsub), visitor);
        let link = Link::new(1, LinkLimits { frames: 100, bytes: 1 << 20 }, 1 << 20);
        let acks = Link::new(2, LinkLimits { frames: 100, bytes: 1 << 20 }, 1 << 20);
        pubsub.lanes().up(peer, &acks);
        for (alias, topic) in [(1, "a"), (2, "b")] {
            arrivals.topic(alias, Topic::new(topic).unwrap()).unwrap();
        }
        arrivals.node(0, NodeName::new("n").unwrap());
        for (n, (alias, inline, acked)) in (1..).zip([
            (1, None, false),
            (1, None, true),
            (2, None, false),
            (frame::INLINE, Some("a"), false),
            (frame::INLINE, Some("b"), true),
        ]) {
            let delivery = acked.then_some(frame::Delivery { id: n, settled: 1 });
            let head = MessageHead { codec: Codec::Text, alias, from: 0, seq: n, delivery, left: None, retains: false };
            let topic = inline.map(|topic| Topic::new(topic).unwrap());
            let mut block = BytesMut::new();
            frame::put_message(&mut block, head, [0].into_iter(), topic.as_ref(), 0);
            let (block, mut rest) = (block.freeze(), 0..0);
            rest.end = block.len();
            let body = next_block(&block, &mut rest).unwrap();
            if arrivals.gather(&block, body.clone()).unwrap() {
                arrivals.flush();
                continue;
            }
            let Frame::Message(message) = Frame::parse(block.slice(body)).unwrap() else { panic!("only messages") };
            arrivals.message(message, &link).unwrap();
        }
        let got: Vec<u64> = std::iter::from_fn(|| inbox.try_next().flatten()).map(|message| message.seq).collect();
        assert_eq!(got, [3, 5]);
        assert_eq!((link.queued(), guard.refused()), (2, 3), "one word for the number, one for what has none");
        assert_eq!(acks.queued(), 2, "both that it wants to hear of are settled");
    }

    #[test]
    fn nodes_that_do_not_listen_take_no_memory_and_those_that_do_are_found_again() {
        let all = Inboxes::default();
        let inbox = all.insert(7, TopicFilter::new("t").unwrap(), ListenOptions::default());
        let oneself = Arc::<Guard>::default().visitor(PeerId::from_bytes([1; 32]), None);
        let mut arrived = Arrived::new(Topic::new("t").unwrap(), &oneself);
        for node in 0..100 {
            assert_eq!(arrived.inboxes(node, &all).len(), usize::from(node == 7));
        }
        assert!(Arc::ptr_eq(&arrived.inboxes(7, &all)[0], &inbox));
        assert_eq!(arrived.inboxes.len(), 1);
    }
}
