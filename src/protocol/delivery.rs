//! Messages whose sender wants to hear what became of them: both halves, for each peer one [`Lane`].
//!
//! A push on the link and the note that the message is unsettled happen under one lock, so that what goes out again on the
//! next link goes out in the same order. Nodes of this process go the same way, without frames.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::subscription::{Inbox, Put};
use crate::mesh::delivery::{Claim, Claimed, Ledger, Outbox, Settle, Verdict};
use crate::mesh::{Codec, DropReason, Message, NodeId, NodeName, PeerId, Topic};
use crate::net::{Link, Order, Outgoing, Refused, Room};
use crate::wire::frame::{self, Delivery};

/// The lanes to all peers.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: RwLock<HashMap<PeerId, Arc<Lane>>>,
    max_bytes: usize,
    arrived: Arc<Arrived>,
}

/// How many messages arrived here of which nothing was said yet.
#[derive(Debug, Default)]
struct Arrived {
    open: AtomicUsize,
    settled: Notify,
}

/// What goes to and fro between this peer and another, or itself.
#[derive(Debug)]
pub(crate) struct Lane {
    max_bytes: usize,
    out: Mutex<Out>,
    /// Senders wait here for others' messages to be settled.
    room: Notify,
    back: Mutex<Back>,
    arrived: Arc<Arrived>,
}

/// What this peer sent.
#[derive(Debug, Default)]
struct Out {
    outbox: Outbox<Arc<Content>, oneshot::Sender<Settled>>,
    link: Option<Link>,
    gone: bool,
}

/// What this peer received.
#[derive(Debug, Default)]
struct Back {
    ledger: Ledger,
    link: Option<Link>,
}

/// A message, as it goes out and goes out again.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) topic: Topic,
    pub(crate) from: NodeId,
    pub(crate) from_name: NodeName,
    pub(crate) seq: u64,
    pub(crate) codec: Codec,
    pub(crate) payload: Bytes,
    /// When its time is over.
    pub(crate) until: Option<Instant>,
    pub(crate) retains: bool,
}

/// A message under way to one node.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) node: NodeId,
    lane: Arc<Lane>,
    id: u64,
    /// Ends without a verdict when the peer is gone.
    pub(crate) verdict: oneshot::Receiver<Settled>,
}

/// What became of a message at one node: taken, or why not.
pub(crate) type Settled = Result<(), DropReason>;

/// Why a lane takes no message.
#[derive(Clone, Debug)]
pub(crate) enum NotPosted {
    /// It never will.
    Never(DropReason),
    /// The link has no room, or others' verdicts have to come first.
    Wait(DropReason),
}

impl Lanes {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { lanes: RwLock::default(), max_bytes, arrived: Arc::default() }
    }

    pub(crate) fn get(&self, peer: PeerId) -> Arc<Lane> {
        if let Some(lane) = self.lanes.read().unwrap_or_else(PoisonError::into_inner).get(&peer) {
            return Arc::clone(lane);
        }
        let new = || {
            let (out, back) = (Mutex::default(), Mutex::default());
            let (max_bytes, arrived) = (self.max_bytes, Arc::clone(&self.arrived));
            Arc::new(Lane { max_bytes, out, room: Notify::new(), back, arrived })
        };
        Arc::clone(self.lanes.write().unwrap_or_else(PoisonError::into_inner).entry(peer).or_insert_with(new))
    }

    /// A link stands that nobody else sends on yet: what is unsettled goes out again, before all that is new.
    pub(crate) fn up(&self, peer: PeerId, link: &Link) {
        self.get(peer).up(link);
    }

    /// The link is lost: what is sent now waits for the next.
    pub(crate) fn down(&self, peer: PeerId) {
        let lane = self.get(peer);
        lane.out().link = None;
        lane.back().link = None;
    }

    /// The peer does not come back in time: nothing will be said of what it was sent.
    pub(crate) fn gone(&self, peer: PeerId) {
        let lane = self.get(peer);
        let mut out = lane.out();
        out.gone = true;
        let unsettled = std::mem::take(&mut out.outbox);
        drop(out);
        drop(unsettled); // whoever waits learns of it
        lane.room.notify_waiters();
    }

    pub(crate) fn forget(&self, peer: PeerId) {
        self.gone(peer);
        self.lanes.write().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }

    /// This peer is at its end: nothing will be heard of what it sent.
    pub(crate) fn end(&self) {
        let peers: Vec<PeerId> = self.lanes.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        peers.into_iter().for_each(|peer| self.gone(peer));
    }

    /// How many messages that arrived, and whose senders want to hear of them, are not settled yet.
    pub(crate) fn unsettled(&self) -> usize {
        self.arrived.open.load(Ordering::Acquire)
    }
}

impl Lane {
    /// Sends a message to nodes of the peer. If there is no link just now, it goes out with the next.
    pub(crate) fn post(
        self: &Arc<Self>,
        content: &Arc<Content>,
        peer: PeerId,
        targets: &[u32],
    ) -> Result<Vec<Slot>, NotPosted> {
        let mut out = self.out();
        let id = self.number(&out, content, targets)?;
        let delivery = Delivery { id, settled: out.outbox.settled(id) };
        if let Some(link) = &out.link {
            match link.try_push(&content.outgoing(link.alias(&content.topic), Some(delivery), targets)) {
                Ok(()) | Err(Refused::Closed) => {}
                Err(Refused::TooLarge) => return Err(NotPosted::Never(DropReason::TooLarge)),
                Err(Refused::NotAllowed) => {
                    let rule = link.refusal(&content.topic).unwrap_or_default();
                    return Err(NotPosted::Never(DropReason::Refused(rule)));
                }
                Err(Refused::Full) => return Err(NotPosted::Wait(DropReason::LinkFull)),
                Err(Refused::Paused) => return Err(NotPosted::Wait(DropReason::SubscriptionFull)),
            }
        }
        Ok(self.note(&mut out, id, content, peer, targets))
    }

    /// Gives a message to a node of this process.
    pub(crate) fn post_here(
        self: &Arc<Self>,
        content: &Arc<Content>,
        node: NodeId,
        inboxes: &[Arc<Inbox>],
    ) -> Result<Vec<Slot>, NotPosted> {
        let mut out = self.out();
        let id = self.number(&out, content, &[node.index])?;
        let slots = self.note(&mut out, id, content, node.peer, &[node.index]);
        drop(out); // a queue that drops another message for this one says so to its lane
        let claim = self.claim(id, node.index, content.until, true);
        let message = Message { claimed: Claimed(Some(claim)), ..content.message() };
        give(&message, inboxes, Inbox::force);
        Ok(slots)
    }

    /// Waits until something was settled, or the link changed. Make it before trying.
    pub(crate) fn room(&self) -> tokio::sync::futures::Notified<'_> {
        self.room.notified()
    }

    /// The number for the next message, if there is room for it.
    fn number(&self, out: &Out, content: &Content, targets: &[u32]) -> Result<u64, NotPosted> {
        /// One counter for all lanes, so that numbers grow along a lane even if it was forgotten in between.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if out.gone {
            return Err(NotPosted::Never(DropReason::LinkDown));
        }
        if !out.outbox.has_room(targets, content.bytes(targets), self.max_bytes) {
            return Err(NotPosted::Wait(DropReason::SubscriptionFull));
        }
        Ok(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn note(
        self: &Arc<Self>,
        out: &mut Out,
        id: u64,
        content: &Arc<Content>,
        peer: PeerId,
        targets: &[u32],
    ) -> Vec<Slot> {
        let mut waiting = Vec::with_capacity(targets.len());
        let slot = |index: &u32| {
            let (tell, verdict) = oneshot::channel();
            waiting.push((*index, tell));
            Slot { node: NodeId { peer, index: *index }, lane: Arc::clone(self), id, verdict }
        };
        let slots = targets.iter().map(slot).collect();
        out.outbox.add(id, Arc::clone(content), content.bytes(targets), waiting);
        slots
    }

    /// The receiver said what became of a message.
    pub(crate) fn hear(&self, id: u64, node: u32, verdict: Verdict) {
        let waiting = self.out().outbox.settle(id, node);
        if let Some(waiting) = waiting {
            let _ = waiting.send(settled(verdict)); // nobody may want to know any more
            self.room.notify_waiters();
        }
    }

    /// A message arrived. `false`: it did so before. `since` is kept with the stream that brings them.
    pub(crate) fn accept(&self, delivery: Delivery, since: &mut Option<u64>) -> bool {
        let mut back = self.back();
        let since = *since.get_or_insert(back.ledger.last());
        back.ledger.accept(delivery.id, delivery.settled, since)
    }

    /// What goes with a message for one node: says what became of it.
    pub(crate) fn claim(self: &Arc<Self>, id: u64, node: u32, expires: Option<Instant>, here: bool) -> Arc<Claim> {
        self.arrived.open.fetch_add(1, Ordering::AcqRel);
        let reply = Reply { lane: Arc::clone(self), id, node, here };
        Arc::new(Claim::new(expires.map(Instant::into_std), Some(Box::new(reply))))
    }

    fn tell(&self, id: u64, node: u32, verdict: Verdict) {
        let mut back = self.back();
        back.ledger.tell(id, node, verdict);
        if let Some(link) = &back.link {
            // Refused by a link that is down: it is said again on the next.
            let _ = link.push(Order::Free, |out| frame::put_ack(out, id, node, verdict), &Bytes::new(), Room::Always);
        }
    }

    fn up(&self, link: &Link) {
        let mut out = self.out();
        out.gone = false;
        let settled = out.outbox.settled(0);
        let mut too_large = Vec::new();
        for pending in out.outbox.pending() {
            let targets: Vec<u32> = pending.targets().collect();
            let delivery = Some(Delivery { id: pending.id, settled });
            let alias = link.alias(&pending.parcel.topic);
            match link.push_again(&pending.parcel.outgoing(alias, delivery, &targets)) {
                // Nothing else waits on a new link, so what may be unsettled has room.
                Ok(()) | Err(Refused::Full | Refused::Paused | Refused::NotAllowed) => {}
                // It was noted while there was no link to say so.
                Err(Refused::TooLarge) => too_large.extend(targets.into_iter().map(|node| (pending.id, node))),
                Err(Refused::Closed) => break, // it is down already: the rest goes out with the next
            }
        }
        for (id, node) in too_large {
            if let Some(waiting) = out.outbox.settle(id, node) {
                let _ = waiting.send(Err(DropReason::TooLarge)); // nobody may want to know any more
            }
        }
        out.link = Some(link.clone());
        drop(out);
        let mut back = self.back();
        for (id, node, verdict) in back.ledger.told() {
            let _ = link.push(Order::Free, |out| frame::put_ack(out, id, node, verdict), &Bytes::new(), Room::Always);
        }
        back.link = Some(link.clone());
        drop(back);
        self.room.notify_waiters();
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn back(&self) -> MutexGuard<'_, Back> {
        self.back.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Nobody waits any more: if the link is lost now, the message does not go out again.
    pub(crate) fn give_up(&self) {
        drop(self.lane.out().outbox.settle(self.id, self.node.index));
        self.lane.room.notify_waiters();
    }
}

/// The way back for a verdict.
#[derive(Debug)]
struct Reply {
    lane: Arc<Lane>,
    id: u64,
    node: u32,
    here: bool,
}

impl Settle for Reply {
    fn settle(&self, verdict: Verdict) {
        if self.here {
            self.lane.hear(self.id, self.node, verdict);
        } else {
            self.lane.tell(self.id, self.node, verdict);
        }
        let arrived = &self.lane.arrived;
        if arrived.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            arrived.settled.notify_waiters();
        }
    }
}

impl Content {
    fn bytes(&self, targets: &[u32]) -> usize {
        frame::overhead(targets.len()) + self.payload.len()
    }

    pub(crate) fn outgoing<'a>(&'a self, alias: u32, delivery: Option<Delivery>, targets: &'a [u32]) -> Outgoing<'a> {
        Outgoing {
            topic: &self.topic,
            alias,
            from: self.from.index,
            from_name: &self.from_name,
            seq: self.seq,
            codec: self.codec,
            targets,
            payload: &self.payload,
            delivery,
            until: self.until,
            retains: self.retains,
        }
    }

    /// The message as a subscription of this process gets it.
    pub(crate) fn message(&self) -> Message {
        Message {
            topic: self.topic.clone(),
            from: self.from,
            from_name: self.from_name.clone(),
            seq: self.seq,
            codec: self.codec,
            payload: self.payload.clone(),
            lagged: 0,
            retains: self.retains,
            claimed: Claimed(self.until.map(|until| Arc::new(Claim::new(Some(until.into_std()), None)))),
        }
    }

    /// Whether its time is over.
    pub(crate) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }
}

fn settled(verdict: Verdict) -> Settled {
    match verdict {
        Verdict::Taken => Ok(()),
        Verdict::HandedBack => Err(DropReason::HandedBack),
        Verdict::Overflow => Err(DropReason::Overflow),
        Verdict::Expired => Err(DropReason::Expired),
        Verdict::NotListening => Err(DropReason::NotListening),
        Verdict::Refused => Err(DropReason::Refused(String::new())), // which rule, was told before
    }
}

/// Puts a message into all subscriptions of one node that select it.
pub(crate) fn give(message: &Message, inboxes: &[Arc<Inbox>], mut put: impl FnMut(&Inbox, Message) -> Put) {
    let mut listens = false;
    for inbox in inboxes {
        listens |= put(inbox, message.clone()) != Put::Closed;
    }
    if !listens && let Claimed(Some(claim)) = &message.claimed {
        claim.note(Verdict::NotListening);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::LinkLimits;

    #[test]
    fn what_is_too_large_for_the_next_link_is_settled_and_stops_nothing_behind_it() {
        let peer = PeerId::from_bytes([1; 32]);
        let content = |size| {
            Arc::new(Content {
                topic: Topic::new("t").unwrap(),
                from: NodeId { peer: PeerId::from_bytes([2; 32]), index: 0 },
                from_name: NodeName::new("n").unwrap(),
                seq: 1,
                codec: Codec::Bytes,
                payload: Bytes::from(vec![0; size]),
                until: None,
                retains: false,
            })
        };
        let lanes = Lanes::new(1 << 20);
        let post = |size| lanes.get(peer).post(&content(size), peer, &[0]).unwrap().pop().unwrap();
        let (mut first, mut large, mut last) = (post(1), post(100), post(1));
        let link = Link::new(1, LinkLimits { frames: 100, bytes: 1000 }, 10);
        lanes.up(peer, &link);
        assert_eq!(large.verdict.try_recv(), Ok(Err(DropReason::TooLarge)));
        assert_eq!(link.queued(), 4, "a topic, a name, and the two others");
        lanes.get(peer).hear(first.id, 0, Verdict::Taken);
        lanes.get(peer).hear(last.id, 0, Verdict::HandedBack);
        assert_eq!(first.verdict.try_recv(), Ok(Ok(())));
        assert_eq!(last.verdict.try_recv(), Ok(Err(DropReason::HandedBack)));
    }
}
