//! From one edition of a peer's record to the next: what happened.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use super::record::{NodeEntry, Record};
use super::{DownReason, NodeId, ServiceName, What};

/// What changed for who can reach the peer.
pub(super) fn differences(before: Option<&Record>, after: Option<&Record>, why: DownReason) -> Vec<What> {
    let mut changes = Vec::new();
    if let (None, Some(record)) = (before, after) {
        changes.push(What::PeerUp { peer: record.peer, host: record.host.clone() });
    }
    fn nodes(record: Option<&Record>) -> HashMap<u32, &NodeEntry> {
        record.into_iter().flat_map(|record| &record.nodes).map(|node| (node.index, node)).collect()
    }
    let Some(peer) = before.or(after).map(|record| record.peer) else { return changes };
    let (old, new) = (nodes(before), nodes(after));
    let mut indices: Vec<u32> = old.keys().chain(new.keys()).copied().collect();
    indices.sort_unstable();
    indices.dedup();
    for index in indices {
        let node = NodeId { peer, index };
        let (old, new) = (old.get(&index).copied(), new.get(&index).copied());
        let Some(name) = new.or(old).map(|entry| entry.name.clone()) else { continue };
        if old.is_none() {
            changes.push(What::NodeUp { node, name: name.clone() });
        }
        let (gone, come) = minus_both(old.map(|node| &node.filters[..]), new.map(|node| &node.filters[..]));
        let name_of = || name.clone();
        changes.extend(gone.into_iter().map(|filter| What::NotListening { node, name: name_of(), filter }));
        changes.extend(come.into_iter().map(|filter| What::Listening { node, name: name_of(), filter }));
        let (gone, come) = minus_both(old.map(|node| &node.services[..]), new.map(|node| &node.services[..]));
        let told = |service: &ServiceName| !service.is_reserved();
        let gone = gone.into_iter().filter(told);
        changes.extend(gone.map(|service| What::NotServing { node, name: name_of(), service }));
        let come = come.into_iter().filter(told);
        changes.extend(come.map(|service| What::Serving { node, name: name_of(), service }));
        if new.is_none() {
            changes.push(What::NodeDown { node, name });
        }
    }
    if let (Some(record), None) = (before, after) {
        changes.push(What::PeerDown { peer, host: record.host.clone(), reason: why });
    }
    changes
}

/// What stands only in the first list, and what only in the second.
fn minus_both<T: Clone + Eq + Hash>(old: Option<&[T]>, new: Option<&[T]>) -> (Vec<T>, Vec<T>) {
    let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
    let (old_rest, new_rest) = without_common_ends(old, new);
    (minus(old_rest, new), minus(new_rest, old))
}

/// What stands in the first list alone, each once.
fn minus<T: Clone + Eq + Hash>(these: &[T], others: &[T]) -> Vec<T> {
    let mut rest: HashSet<&T> = these.iter().collect();
    if rest.len() <= FEW {
        rest.retain(|one| !others.contains(one));
    } else {
        for other in others {
            rest.remove(other);
        }
    }
    rest.into_iter().cloned().collect()
}

/// The lists without what both begin with, and without what both end with: a long one differs in little from one edition to
/// the next, mostly at its end.
pub(super) fn without_common_ends<'a, T: PartialEq>(mut one: &'a [T], mut other: &'a [T]) -> (&'a [T], &'a [T]) {
    while let ([first, rest @ ..], [same, others @ ..]) = (one, other)
        && first == same
    {
        (one, other) = (rest, others);
    }
    while let ([rest @ .., last], [others @ .., same]) = (one, other)
        && last == same
    {
        (one, other) = (rest, others);
    }
    (one, other)
}

/// So few are looked for faster by comparing them with all others than by hashing those.
const FEW: usize = 8;
