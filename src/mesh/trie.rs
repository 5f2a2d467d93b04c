//! A map of which a changed copy shares with the original all but the way to what changed.
//!
//! A hash array mapped trie: P. Bagwell, Ideal Hash Trees, EPFL 2001. Routes are made anew with every change in the mesh, and
//! a change of one filter in 100,000 has to cost one filter.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// Values by key. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Trie<K, V> {
    root: Option<Arc<Place<K, V>>>,
    hasher: RandomState,
}

#[derive(Clone, Debug)]
enum Place<K, V> {
    /// A few entries, in no order.
    Few(Vec<Entry<K, V>>),
    /// Where to go on, by the next bits of the hash.
    Fan(Box<[Option<Arc<Self>>; FAN]>),
}

#[derive(Clone, Debug)]
struct Entry<K, V> {
    hash: u64,
    key: K,
    value: V,
}

impl<K, V> Default for Trie<K, V> {
    fn default() -> Self {
        Self { root: None, hasher: RandomState::new() }
    }
}

impl<K, V> Trie<K, V> {
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let mut place = self.root.as_ref()?;
        let hash = self.hasher.hash_one(key);
        let mut bits = hash;
        loop {
            match &**place {
                Place::Few(entries) => {
                    return entries.iter().find(|entry| entry.is(hash, key)).map(|entry| &entry.value);
                }
                Place::Fan(places) => place = places[bits as usize % FAN].as_ref()?,
            }
            bits >>= BITS;
        }
    }

    /// All values, in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        let mut ways: Vec<&Arc<Place<K, V>>> = self.root.iter().collect();
        let entries = std::iter::from_fn(move || {
            loop {
                match &**ways.pop()? {
                    Place::Few(entries) => return Some(entries),
                    Place::Fan(places) => ways.extend(places.iter().flatten()),
                }
            }
        });
        entries.flatten().map(|entry| &entry.value)
    }
}

impl<K: Clone, V: Clone> Trie<K, V> {
    /// Changes the value of a key. If there is none, the two are made. They go if `change` says so.
    pub(super) fn update<Q: Hash + Eq + ?Sized>(
        &mut self,
        key: &Q,
        make: impl FnOnce() -> (K, V),
        change: impl FnOnce(&mut V) -> Keep,
    ) where
        K: Borrow<Q>,
    {
        let hash = self.hasher.hash_one(key);
        let root = self.root.get_or_insert_with(|| Arc::new(Place::Few(Vec::new())));
        if Arc::make_mut(root).update(key, hash, 0, make, change) {
            self.root = None;
        }
    }

    /// Takes a key out, if it is there.
    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        if self.get(key).is_some() {
            self.update(key, || unreachable!("it is there"), |_| Keep::No);
        }
    }
}

impl<K, V> Entry<K, V> {
    fn is<Q: Eq + ?Sized>(&self, hash: u64, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.hash == hash && self.key.borrow() == key
    }
}

/// Whether a value stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Yes,
    No,
}

impl<K: Clone, V: Clone> Place<K, V> {
    /// Says whether nothing is left here.
    fn update<Q: Eq + ?Sized>(
        &mut self,
        key: &Q,
        hash: u64,
        depth: u32,
        make: impl FnOnce() -> (K, V),
        change: impl FnOnce(&mut V) -> Keep,
    ) -> bool
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Few(entries) => {
                let at = entries.iter().position(|entry| entry.is(hash, key)).unwrap_or_else(|| {
                    let (key, value) = make();
                    entries.push(Entry { hash, key, value });
                    entries.len() - 1
                });
                if change(&mut entries[at].value) == Keep::No {
                    entries.swap_remove(at);
                } else if entries.len() > FEW && depth < DEEPEST {
                    self.spread(depth);
                }
                matches!(self, Self::Few(entries) if entries.is_empty())
            }
            Self::Fan(places) => {
                let place = &mut places[slot(hash, depth)];
                let next = place.get_or_insert_with(|| Arc::new(Self::Few(Vec::new())));
                if Arc::make_mut(next).update(key, hash, depth + 1, make, change) {
                    *place = None;
                }
                places.iter().all(Option::is_none)
            }
        }
    }

    /// Makes a fan of a few entries that became many.
    fn spread(&mut self, depth: u32) {
        let Self::Few(entries) = self else { return };
        let mut fan: [Vec<Entry<K, V>>; FAN] = std::array::from_fn(|_| Vec::new());
        entries.drain(..).for_each(|entry| fan[slot(entry.hash, depth)].push(entry));
        let place = |entries: Vec<_>| (!entries.is_empty()).then(|| Arc::new(Self::Few(entries)));
        *self = Self::Fan(Box::new(fan.map(place)));
    }
}

fn slot(hash: u64, depth: u32) -> usize {
    (hash >> (depth * BITS)) as usize % FAN
}

/// Ways from one place, and the bits of a hash that choose one.
const FAN: usize = 1 << BITS;
const BITS: u32 = 4;
/// Entries that stay in one place: looked through faster than spread.
const FEW: usize = 8;
/// Where the bits of a hash end. Entries whose hashes are alike up to there stay together.
const DEEPEST: u32 = u64::BITS / BITS - 1;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn put(trie: &mut Trie<u32, u32>, key: u32, value: u32) {
        trie.update(
            &key,
            || (key, 0),
            |old| {
                *old = value;
                Keep::Yes
            },
        );
    }

    fn remove(trie: &mut Trie<u32, u32>, key: u32) {
        trie.remove(&key);
    }

    proptest! {
        #[test]
        fn it_holds_what_was_put_and_not_removed_and_copies_stay_as_they_were(
            steps in prop::collection::vec((0u32..300, any::<bool>()), 0..600),
        ) {
            let (mut trie, mut known) = (Trie::default(), HashMap::new());
            let mut copies: Vec<(Trie<u32, u32>, HashMap<u32, u32>)> = Vec::new();
            for (value, (key, stays)) in (0u32..).zip(steps) {
                if stays {
                    put(&mut trie, key, value);
                    known.insert(key, value);
                } else {
                    remove(&mut trie, key);
                    known.remove(&key);
                }
                if value % 50 == 0 {
                    copies.push((trie.clone(), known.clone()));
                }
            }
            copies.push((trie, known));
            for (trie, known) in copies {
                prop_assert_eq!(trie.is_empty(), known.is_empty());
                for key in 0..300 {
                    prop_assert_eq!(trie.get(&key), known.get(&key));
                }
                let sorted = |mut values: Vec<u32>| { values.sort_unstable(); values };
                prop_assert_eq!(sorted(trie.values().copied().collect()), sorted(known.into_values().collect()));
            }
        }
    }

    #[test]
    fn keys_whose_hashes_are_alike_are_told_apart() {
        let mut place: Place<u32, u32> = Place::Few(Vec::new());
        for n in 0..100 {
            assert!(!place.update(&n, 7, 0, || (n, n), |_| Keep::Yes));
        }
        for n in 0..100 {
            let empty = place.update(
                &n,
                7,
                0,
                || unreachable!("it is there"),
                |value| {
                    assert_eq!(*value, n);
                    Keep::No
                },
            );
            assert_eq!(empty, n == 99);
        }
    }

    #[test]
    fn a_change_copies_the_way_to_it_and_shares_the_rest() {
        let mut trie = Trie::default();
        (0..100_000).for_each(|key| put(&mut trie, key, key));
        let before = trie.clone();
        put(&mut trie, 7, 8);
        let address = |trie: &Trie<u32, u32>, key| std::ptr::from_ref(trie.get(&key).unwrap());
        let copied = (0..100_000).filter(|key| address(&trie, *key) != address(&before, *key)).count();
        assert!((1..=FEW).contains(&copied), "{copied} of 100,000 entries copied");
    }
}
