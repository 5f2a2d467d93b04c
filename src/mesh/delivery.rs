//! Acknowledged messages between two peers: what the sender keeps until it knows, what the receiver remembers of what it
//! said, and what a program holds while it works on a message.
//!
//! Numbers grow along each pair of peers, but large messages take longer than small ones that are sent after them. All that
//! is unsettled goes out again on a new link, and nothing comes twice on one. So a receiver remembers which numbers it saw, and
//! what it said of them, until the sender tells that it knows.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use bytes::Bytes;

use super::Size;

/// What a receiver says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Verdict {
    /// The program took it, or has handled it if it said so itself.
    Taken,
    /// The program let go of it unhandled, or will not get to it.
    HandedBack,
    /// A full subscription dropped it.
    Overflow,
    /// Its time was over.
    Expired,
    /// The node does not listen.
    NotListening,
    /// The receiver's rules do not let the sender send on the topic.
    Refused,
}

impl Verdict {
    /// By its number on the wire.
    pub(crate) fn new(number: u8) -> Option<Self> {
        let all = [Self::Taken, Self::HandedBack, Self::Overflow, Self::Expired, Self::NotListening, Self::Refused];
        all.into_iter().find(|verdict| *verdict as u8 == number)
    }
}

/// What one peer sent another and was told nothing of yet. `P` is what sends it again, `W` who waits for the verdict.
#[derive(Debug)]
pub(crate) struct Outbox<P, W> {
    /// In order of their numbers.
    pending: VecDeque<Pending<P, W>>,
    /// Unsettled receivers in `pending`.
    unsettled: usize,
    /// Of each size.
    bytes: [usize; 3],
    by_node: HashMap<u32, usize>,
}

/// A message that is not settled for all of its receivers.
#[derive(Debug)]
pub(crate) struct Pending<P, W> {
    pub(crate) id: u64,
    pub(crate) parcel: P,
    bytes: usize,
    waiting: Vec<(u32, W)>,
}

impl<P, W> Pending<P, W> {
    /// Nodes whose verdict is missing.
    pub(crate) fn targets(&self) -> impl Iterator<Item = u32> {
        self.waiting.iter().map(|(node, _)| *node)
    }
}

impl<P, W> Default for Outbox<P, W> {
    fn default() -> Self {
        Self { pending: VecDeque::new(), unsettled: 0, bytes: [0; 3], by_node: HashMap::new() }
    }
}

impl<P, W> Outbox<P, W> {
    /// Whether a message for those nodes may be sent. One is always taken, however large; and it takes no room from those of
    /// another size.
    pub(crate) fn has_room(&self, targets: &[u32], bytes: usize, max_bytes: usize) -> bool {
        let ready = |node: &u32| self.by_node.get(node).is_none_or(|open| *open < PREFETCH);
        let kept = self.bytes[Size::of(bytes) as usize];
        let fits = kept == 0 || kept + bytes <= max_bytes;
        fits && self.unsettled + targets.len() <= MAX_PENDING.max(targets.len()) && targets.iter().all(ready)
    }

    /// A message went out, with a higher number than all before.
    pub(crate) fn add(&mut self, id: u64, parcel: P, bytes: usize, waiting: Vec<(u32, W)>) {
        debug_assert!(self.pending.back().is_none_or(|last| last.id < id), "numbers grow");
        for (node, _) in &waiting {
            *self.by_node.entry(*node).or_default() += 1;
        }
        self.unsettled += waiting.len();
        self.bytes[Size::of(bytes) as usize] += bytes;
        self.pending.push_back(Pending { id, parcel, bytes, waiting });
    }

    /// All numbers below are settled, now and for ever. `next` is what the next message would get.
    pub(crate) fn settled(&self, next: u64) -> u64 {
        self.pending.front().map_or(next, |first| first.id)
    }

    /// The receiver said something, or nobody waits for that any more. Gives who waited, the first time.
    pub(crate) fn settle(&mut self, id: u64, node: u32) -> Option<W> {
        let at = self.pending.binary_search_by_key(&id, |pending| pending.id).ok()?;
        let pending = &mut self.pending[at];
        let waiting = pending.waiting.iter().position(|(waiting, _)| *waiting == node)?;
        let (_, who) = pending.waiting.swap_remove(waiting);
        if let Some(open) = self.by_node.get_mut(&node) {
            *open -= 1;
            if *open == 0 {
                self.by_node.remove(&node);
            }
        }
        self.unsettled -= 1;
        if pending.waiting.is_empty() {
            self.bytes[Size::of(pending.bytes) as usize] -= pending.bytes;
            self.pending.remove(at);
        }
        Some(who)
    }

    /// What goes out again on a new link, in this order.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &Pending<P, W>> {
        self.pending.iter()
    }
}

/// What one peer received from another and told it of it.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The highest number seen.
    last: u64,
    /// All lower numbers count as seen.
    settled: u64,
    /// Those that were, from there on, in order; what was seen up to `forgotten` is not among them any more.
    seen: VecDeque<u64>,
    forgotten: u64,
    /// What was said, as far as the sender may not know it.
    told: BTreeMap<(u64, u32), Verdict>,
}

impl Ledger {
    /// The highest number seen. What comes on a later link with a higher one is new.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Whether a message is new. `settled`: the sender knows all that was said of lower numbers; `since`: the highest number
    /// seen when the link began on which it came.
    pub(crate) fn accept(&mut self, id: u64, settled: u64, since: u64) -> bool {
        if settled > self.settled {
            self.settled = settled;
            self.told = self.told.split_off(&(settled, 0));
            while self.seen.front().is_some_and(|seen| *seen < settled) {
                self.seen.pop_front();
            }
        }
        let Err(at) = self.seen.binary_search(&id) else { return false };
        if id < self.settled || (id <= since && id <= self.forgotten) {
            return false; // it came before, or may have: then it is rather reported as lost than taken twice
        }
        self.seen.insert(at, id);
        if self.seen.len() > MAX_TOLD {
            self.forgotten = self.forgotten.max(self.seen.pop_front().unwrap_or_default());
        }
        self.last = self.last.max(id);
        true
    }

    /// Notes what is said, to say it again if need be.
    pub(crate) fn tell(&mut self, id: u64, node: u32, verdict: Verdict) {
        if id >= self.settled {
            self.told.insert((id, node), verdict);
            if self.told.len() > MAX_TOLD {
                self.told.pop_first();
            }
        }
    }

    /// What is said again on a new link.
    pub(crate) fn told(&self) -> impl Iterator<Item = (u64, u32, Verdict)> {
        self.told.iter().map(|((id, node), verdict)| (*id, *node, *verdict))
    }
}

/// What hears the verdict on one message for one node.
pub(crate) trait Settle: std::fmt::Debug + Send + Sync {
    fn settle(&self, verdict: Verdict);
}

/// What goes with a message that its sender wants to hear of, or whose time is limited. All copies for one node share it:
/// if any is taken the message is; when the last is dropped, it is handed back.
#[derive(Debug)]
pub(crate) struct Claim {
    /// When its time is over.
    expires: Option<Instant>,
    back: Option<Box<dyn Settle>>,
    /// What is said if nobody takes it; [`SAID`] when a verdict was given.
    verdict: AtomicU8,
}

impl Claim {
    pub(crate) fn new(expires: Option<Instant>, back: Option<Box<dyn Settle>>) -> Self {
        Self { expires, back, verdict: AtomicU8::new(Verdict::HandedBack as u8) }
    }

    pub(crate) fn expires(&self) -> Option<Instant> {
        self.expires
    }

    /// Whether the sender wants to hear of it.
    pub(crate) fn is_awaited(&self) -> bool {
        self.back.is_some()
    }

    /// Why a copy will not be taken: what is said if no other is.
    pub(crate) fn note(&self, verdict: Verdict) {
        let _ = self
            .verdict
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| (old != SAID).then_some(verdict as u8));
    }

    /// Says it, unless something was said.
    pub(crate) fn settle(&self, verdict: Verdict) {
        if self.verdict.swap(SAID, Ordering::AcqRel) != SAID
            && let Some(back) = &self.back
        {
            back.settle(verdict);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(verdict) = Verdict::new(*self.verdict.get_mut()) {
            self.settle(verdict);
        }
    }
}

/// The claim of a message, if there is one. No part of what the message says: any two are equal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claimed(pub(crate) Option<Arc<Claim>>);

impl Claimed {
    /// Whether the sender wants to hear of it.
    pub(crate) fn is_awaited(&self) -> bool {
        self.0.as_ref().is_some_and(|claim| claim.is_awaited())
    }

    /// Says that the message is handled.
    pub(crate) fn acknowledge(&self) {
        if let Some(claim) = &self.0 {
            claim.settle(Verdict::Taken);
        }
    }
}

impl PartialEq for Claimed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Claimed {}

/// Unsettled messages per peer. Beyond, sends wait as for a full link.
const MAX_PENDING: usize = 1 << 16;
/// Unsettled messages per receiving node: a quarter of the queue that a subscription has by default, so that a slow worker
/// is not overrun by one sender. More keeps workers busy over slower links.
const PREFETCH: usize = 256;
/// Verdicts and numbers remembered per sender. It takes one message that stays unsettled while so many others are.
const MAX_TOLD: usize = 2 * MAX_PENDING;
/// A verdict was given.
const SAID: u8 = u8::MAX;

/// What is to wait behind others: a small payload is copied out of the large buffer that it was read into, so that a slow
/// reader keeps no more than what it has to read.
pub(crate) fn to_wait(payload: &mut Bytes) {
    if payload.len() < SMALL {
        *payload = Bytes::copy_from_slice(payload);
    }
}

/// Payloads from so many bytes on take a fair part of the buffer that they were read into: copying them costs more than it
/// saves.
const SMALL: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What keeps its order among itself alone.
    const KINDS: u64 = 3;

    /// Two peers and a wire that is cut at any place, whatever is on it.
    #[derive(Default)]
    struct Wire {
        outbox: Outbox<u64, u64>,
        ledger: Ledger,
        /// What the ledger had seen when the link began.
        since: u64,
        there: VecDeque<(u64, u64)>,
        back: VecDeque<(u64, Verdict)>,
        next: u64,
        /// Taken in by the receiver and not yet handled.
        queued: VecDeque<u64>,
        handled: Vec<u64>,
        told: Vec<u64>,
    }

    impl Wire {
        fn send(&mut self) {
            if self.outbox.has_room(&[0], 1, 1000) {
                self.next += 1;
                let settled = self.outbox.settled(self.next);
                self.outbox.add(self.next, self.next, 1, vec![(0, self.next)]);
                self.there.push_back((self.next, settled));
            }
        }

        /// What is next of a kind arrives: kinds overtake each other.
        fn arrive(&mut self, kind: u64) {
            let at = self.there.iter().position(|(id, _)| id % KINDS == kind);
            if let Some((id, settled)) = at.and_then(|at| self.there.remove(at))
                && self.ledger.accept(id, settled, self.since)
            {
                self.queued.push_back(id);
            }
        }

        fn handle(&mut self) {
            if let Some(id) = self.queued.pop_front() {
                self.handled.push(id);
                self.ledger.tell(id, 0, Verdict::Taken);
                self.back.push_back((id, Verdict::Taken));
            }
        }

        fn hear(&mut self) {
            if let Some((id, _)) = self.back.pop_front() {
                self.told.extend(self.outbox.settle(id, 0));
            }
        }

        /// All that is under way is lost, either way; a new link comes up.
        fn cut(&mut self) {
            let settled = self.outbox.settled(self.next + 1);
            self.since = self.ledger.last();
            self.there = self.outbox.pending().map(|pending| (pending.id, settled)).collect();
            self.back = self.ledger.told().map(|(id, _, verdict)| (id, verdict)).collect();
        }
    }

    proptest! {
        #[test]
        fn over_a_wire_that_is_cut_anywhere_all_is_handled_once_in_order_and_settled(
            steps in prop::collection::vec((0..5u8, 0..KINDS), 0..400),
        ) {
            let mut wire = Wire::default();
            for (step, kind) in steps {
                match step {
                    0 => wire.send(),
                    1 => wire.arrive(kind),
                    2 => wire.handle(),
                    3 => wire.hear(),
                    _ => wire.cut(),
                }
            }
            wire.cut();
            while !(wire.there.is_empty() && wire.queued.is_empty() && wire.back.is_empty()) {
                (0..KINDS).rev().for_each(|kind| wire.arrive(kind));
                wire.handle();
                wire.hear();
            }
            for kind in 0..KINDS {
                let of_kind = wire.handled.iter().copied().filter(|id| id % KINDS == kind);
                let sent = (1..=wire.next).filter(|id| id % KINDS == kind);
                prop_assert_eq!(of_kind.collect::<Vec<_>>(), sent.collect::<Vec<_>>());
            }
            prop_assert_eq!(wire.told.len() as u64, wire.next, "each is told of once");
            prop_assert_eq!(wire.told.iter().copied().collect::<BTreeSet<_>>().len() as u64, wire.next);
            prop_assert_eq!((wire.outbox.unsettled, wire.outbox.bytes, wire.outbox.by_node.len()), (0, [0; 3], 0));
            wire.ledger.accept(wire.next, wire.outbox.settled(wire.next + 1), wire.since);
            prop_assert_eq!(wire.ledger.seen.len(), 0);
            prop_assert_eq!(wire.ledger.told().count(), 0, "what the sender knows is forgotten");
        }
    }

    #[test]
    fn what_comes_late_on_a_link_is_taken_however_much_came_before_and_never_again_on_the_next() {
        let mut ledger = Ledger::default();
        assert!((2..=MAX_TOLD as u64 + 9).all(|id| ledger.accept(id, 1, 0)));
        assert_eq!(ledger.seen.len(), MAX_TOLD, "what is remembered is bounded");
        assert!(ledger.accept(1, 1, 0), "one link brings nothing twice");
        let since = ledger.last();
        assert!((1..=since).all(|id| !ledger.accept(id, 1, since)), "what was forgotten counts as seen");
        assert!(ledger.accept(since + 1, 1, since));
    }

    #[test]
    fn a_huge_message_takes_no_room_from_small_ones() {
        let mut outbox = Outbox::default();
        outbox.add(1, (), 1 << 30, vec![(7, ())]);
        assert!(outbox.has_room(&[7], 100, 1000) && outbox.has_room(&[7], 1 << 20, 1000));
        assert!(!outbox.has_room(&[7], 1 << 30, 1000));
        outbox.add(2, (), 950, vec![(7, ())]);
        assert!(!outbox.has_room(&[7], 100, 1000));
        outbox.settle(1, 7);
        assert!(outbox.has_room(&[7], 1 << 30, 1000));
    }

    #[test]
    fn a_message_for_several_is_pending_until_all_have_spoken() {
        let mut outbox = Outbox::default();
        outbox.add(5, "five", 10, vec![(1, 'a'), (2, 'b')]);
        outbox.add(9, "nine", 10, vec![(1, 'c')]);
        assert_eq!(outbox.settle(5, 1), Some('a'));
        assert_eq!(outbox.settle(5, 1), None, "once");
        assert_eq!((outbox.settled(20), outbox.settle(9, 1), outbox.settled(20)), (5, Some('c'), 5));
        assert_eq!(outbox.pending().map(|pending| pending.targets().collect::<Vec<_>>()).collect::<Vec<_>>(), [[2]]);
        assert_eq!((outbox.settle(5, 2), outbox.settled(20)), (Some('b'), 20));
    }

    #[test]
    fn a_node_that_has_enough_to_do_gets_no_more_and_others_do() {
        let mut outbox = Outbox::default();
        (1..=PREFETCH as u64).for_each(|id| outbox.add(id, (), 1, vec![(7, ())]));
        assert!(!outbox.has_room(&[7], 1, 1 << 20) && outbox.has_room(&[8], 1, 1 << 20));
        assert!(!outbox.has_room(&[8], 1, PREFETCH), "bytes count too");
        outbox.settle(1, 7);
        assert!(outbox.has_room(&[7], 1, 1 << 20));
        assert!(Outbox::<(), ()>::default().has_room(&[7], 1 << 30, 1), "one always fits");
    }

    #[derive(Clone, Debug, Default)]
    struct Said(Arc<std::sync::Mutex<Vec<Verdict>>>);

    impl Settle for Said {
        fn settle(&self, verdict: Verdict) {
            self.0.lock().unwrap().push(verdict);
        }
    }

    #[test]
    fn a_claim_speaks_once_and_hands_back_what_nobody_took() {
        let said = Said::default();
        let claim = || Claim::new(None, Some(Box::new(said.clone())));
        drop(claim());
        let taken = claim();
        taken.note(Verdict::Overflow);
        taken.settle(Verdict::Taken);
        taken.note(Verdict::Expired);
        drop(taken);
        claim().note(Verdict::Overflow);
        assert_eq!(*said.0.lock().unwrap(), [Verdict::HandedBack, Verdict::Taken, Verdict::Overflow]);
    }
}
