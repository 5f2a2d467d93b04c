//! From one edition of a peer's record to the next: what happened.

use std::collections::{HashMap, HashSet};

use super::record::{NodeEntry, Record};
use super::{DownReason, NodeId, What};

/// What changed for who can reach the peer.
pub(super) fn differences(before: Option<&Record>, after: Option<&Record>, why: DownReason) -> Vec<What> {
    let mut changes = Vec::new();
    if let (None, Some(record)) = (before, after) {
        changes.push(What::PeerUp { peer: record.peer, host: record.host.clone() });
    }
    let nodes = |record: Option<&Record>| -> HashMap<u32, NodeEntry> {
        record.into_iter().flat_map(|record| &record.nodes).map(|node| (node.index, node.clone())).collect()
    };
    let Some(peer) = before.or(after).map(|record| record.peer) else { return changes };
    let (old, new) = (nodes(before), nodes(after));
    let mut indices: Vec<u32> = old.keys().chain(new.keys()).copied().collect();
    indices.sort_unstable();
    indices.dedup();
    for index in indices {
        let node = NodeId { peer, index };
        let (old, new) = (old.get(&index), new.get(&index));
        let Some(name) = new.or(old).map(|entry| entry.name.clone()) else { continue };
        if old.is_none() {
            changes.push(What::NodeUp { node, name: name.clone() });
        }
        let (gone, come) = minus_both(old.map(|node| &node.filters[..]), new.map(|node| &node.filters[..]));
        let name_of = || name.clone();
        changes.extend(gone.into_iter().map(|filter| What::NotListening { node, name: name_of(), filter }));
        changes.extend(come.into_iter().map(|filter| What::Listening { node, name: name_of(), filter }));
        let (gone, come) = minus_both(old.map(|node| &node.services[..]), new.map(|node| &node.services[..]));
        changes.extend(gone.into_iter().map(|service| What::NotServing { node, name: name_of(), service }));
        changes.extend(come.into_iter().map(|service| What::Serving { node, name: name_of(), service }));
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
fn minus_both<T: Clone + Eq + std::hash::Hash>(old: Option<&[T]>, new: Option<&[T]>) -> (Vec<T>, Vec<T>) {
    let set = |list: Option<&[T]>| -> HashSet<T> { list.unwrap_or_default().iter().cloned().collect() };
    let (old, new) = (set(old), set(new));
    (old.difference(&new).cloned().collect(), new.difference(&old).cloned().collect())
}
