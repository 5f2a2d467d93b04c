//! All records that a peer knows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::PeerId;
use super::record::{Edition, Record, SignedRecord};

/// The records of all other peers, each in its highest edition.
///
/// Merging is idempotent and commutative: order and repetition of what is heard do not matter (a state-based CRDT, last
/// writer wins, one writer per key).
#[derive(Debug)]
pub(crate) struct View {
    me: PeerId,
    entries: HashMap<PeerId, Entry>,
    forget_after: Duration,
}

#[derive(Debug)]
struct Entry {
    signed: SignedRecord,
    linked: bool,
    /// Last sign of life: a new edition, a link, somebody linked to it.
    seen: Instant,
}

/// What [`View::merge`] did with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Merged {
    /// The first that is heard of this peer.
    New,
    /// It replaces this one.
    Newer(Arc<Record>),
    /// Known already, or older than what is known.
    Old,
    /// As many peers are known as may be.
    Full,
}

impl View {
    pub(crate) fn new(me: PeerId, forget_after: Duration) -> Self {
        Self { me, entries: HashMap::new(), forget_after }
    }

    /// Takes a record if it is newer than what is known of its peer. `seen` is the peer's last sign of life as far as
    /// who passed the record on knows: so that the dead are not kept alive by being talked about.
    pub(crate) fn merge(&mut self, signed: SignedRecord, seen: Instant) -> Merged {
        let full = self.entries.len() >= MAX_PEERS;
        match self.entries.get_mut(&signed.peer()) {
            Some(entry) if entry.signed.edition() >= signed.edition() => Merged::Old,
            Some(entry) => {
                let before = std::mem::replace(&mut entry.signed, signed);
                entry.seen = entry.seen.max(seen);
                Merged::Newer(Arc::clone(before.record()))
            }
            None if signed.peer() == self.me => Merged::Old, // nobody tells us what we are
            None if full => Merged::Full,
            None => {
                self.entries.insert(signed.peer(), Entry { signed, linked: false, seen });
                Merged::New
            }
        }
    }

    /// A link to the peer stands, or no longer does. Says whether that changed anything.
    pub(crate) fn set_linked(&mut self, peer: PeerId, linked: bool, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(&peer) else { return false };
        entry.seen = now;
        std::mem::replace(&mut entry.linked, linked) != linked
    }

    /// Somebody else had a sign of life of the peer: it lives, though perhaps not within our reach.
    pub(crate) fn vouched(&mut self, peer: PeerId, seen: Instant) {
        if let Some(entry) = self.entries.get_mut(&peer) {
            entry.seen = entry.seen.max(seen);
        }
    }

    /// Takes out the peers of which nothing was heard for too long.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Arc<Record>> {
        let limit = self.forget_after;
        let silent = |entry: &Entry| !entry.linked && now.saturating_duration_since(entry.seen) >= limit;
        self.entries.extract_if(|_, entry| silent(entry)).map(|(_, entry)| Arc::clone(entry.signed.record())).collect()
    }

    /// When [`View::expire`] next has something to do.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.entries.values().filter(|entry| !entry.linked).map(|entry| entry.seen + self.forget_after).min()
    }

    pub(crate) fn edition(&self, peer: PeerId) -> Option<Edition> {
        self.entries.get(&peer).map(|entry| entry.signed.edition())
    }

    pub(crate) fn signed(&self, peer: PeerId) -> Option<&SignedRecord> {
        self.entries.get(&peer).map(|entry| &entry.signed)
    }

    pub(crate) fn is_linked(&self, peer: PeerId) -> bool {
        self.entries.get(&peer).is_some_and(|entry| entry.linked)
    }

    /// Every record known, with whether its peer is linked.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&SignedRecord, bool)> {
        self.entries.values().map(|entry| (&entry.signed, entry.linked))
    }

    /// How long ago the peer's last sign of life was.
    pub(crate) fn age(&self, peer: PeerId, now: Instant) -> Option<Duration> {
        let entry = self.entries.get(&peer)?;
        Some(if entry.linked { Duration::ZERO } else { now.saturating_duration_since(entry.seen) })
    }

    pub(crate) fn linked(&self) -> impl Iterator<Item = PeerId> {
        self.entries.iter().filter(|(_, entry)| entry.linked).map(|(peer, _)| *peer)
    }

    /// The records of the peers that can be reached.
    pub(crate) fn reachable(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.entries
            .values()
            .filter(|entry| entry.linked && !entry.signed.record().leaving)
            .map(|entry| entry.signed.record())
    }
}

/// Most peers whose records are kept. Further ones are not taken in.
pub(crate) const MAX_PEERS: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kit::{at, peer, record};
    use super::*;

    fn view() -> View {
        View::new(peer(0), Duration::from_secs(30))
    }

    #[test]
    fn the_higher_edition_holds_whatever_the_order() {
        let mut view = view();
        assert_eq!(view.merge(record(1, 2), at(0)), Merged::New);
        assert_eq!(view.merge(record(1, 1), at(0)), Merged::Old);
        assert!(matches!(view.merge(record(1, 3), at(0)), Merged::Newer(_)));
        assert_eq!(view.edition(peer(1)).map(|edition| edition.version), Some(3));
    }

    #[test]
    fn nobody_tells_a_peer_what_it_is() {
        assert_eq!(view().merge(record(0, 9), at(0)), Merged::Old);
    }

    #[test]
    fn a_silent_peer_is_forgotten_a_linked_or_vouched_one_is_not() {
        let mut view = view();
        for n in 1..=3 {
            view.merge(record(n, 1), at(0));
        }
        view.set_linked(peer(1), true, at(0));
        view.vouched(peer(2), at(20));
        assert_eq!(view.next_expiry(), Some(at(30)));
        assert!(view.expire(at(29)).is_empty());
        assert_eq!(view.expire(at(30)).iter().map(|record| record.peer).collect::<Vec<_>>(), [peer(3)]);
        assert_eq!(view.expire(at(50)).iter().map(|record| record.peer).collect::<Vec<_>>(), [peer(2)]);
        assert!(view.expire(at(5000)).is_empty());
        view.set_linked(peer(1), false, at(6000));
        assert_eq!(view.expire(at(6030)).len(), 1);
    }

    #[test]
    fn a_view_takes_in_no_more_peers_than_its_limit() {
        let mut view = view();
        for n in 1..=MAX_PEERS as u32 {
            assert_eq!(view.merge(record(n, 1), at(0)), Merged::New);
        }
        assert_eq!(view.merge(record(MAX_PEERS as u32 + 1, 1), at(0)), Merged::Full);
        assert!(matches!(view.merge(record(1, 2), at(0)), Merged::Newer(_)));
    }

    proptest! {
        #[test]
        fn merging_in_any_order_with_repeats_gives_one_view(mut heard in prop::collection::vec((1u32..5, 1u64..6), 0..40), seed in any::<u64>()) {
            let collect = |heard: &[(u32, u64)]| {
                let mut view = view();
                for (n, version) in heard {
                    view.merge(record(*n, *version), at(0));
                }
                let mut editions: Vec<_> = view.iter().map(|(signed, _)| (signed.peer(), signed.edition())).collect();
                editions.sort_unstable();
                editions
            };
            let first = collect(&heard);
            let middle = seed as usize % (heard.len() + 1);
            heard.rotate_left(middle);
            heard.reverse();
            let repeated: Vec<_> = heard.iter().chain(&heard).copied().collect();
            prop_assert_eq!(first, collect(&repeated));
        }
    }
}
