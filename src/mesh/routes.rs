//! The view as senders need it: immutable, swapped whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::record::{Edition, Record};
use super::topic::{ANY_PART, ANY_PARTS};
use super::{NodeId, NodeName, Topic, TopicFilter};

/// Where sends can go now: the nodes of this peer and of all linked ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    /// Differs between any two snapshots of one peer.
    generation: u64,
    peers: Vec<Arc<PeerRoutes>>,
}

/// What one peer's record contributes. Built once per edition, shared by all snapshots.
#[derive(Debug)]
pub(crate) struct PeerRoutes {
    record: Arc<Record>,
    filters: FilterTable,
    /// Whether it adds to what another entry of the same peer says.
    adds: bool,
}

/// Who gets the messages on one topic, by group. Groups stand in order of name, members in order of id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// One entry a group that listens.
    pub(crate) groups: Vec<Group>,
}

/// The nodes of one name that listen to a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Their name.
    pub(crate) name: NodeName,
    /// The nodes, at least one.
    pub(crate) members: Vec<Member>,
}

/// One node that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The node.
    pub(crate) id: NodeId,
    /// Whether it is on the sender's machine.
    pub(crate) local: bool,
    pub(crate) name: NodeName,
    /// How many of its filters select the topic, each counted as often as it was given. 0 for a service.
    pub(crate) filters: u32,
}

impl Default for Group {
    fn default() -> Self {
        Self { name: NodeName::new("x").expect("x"), members: Vec::new() }
    }
}

impl Routes {
    /// The snapshot for this view: one's own record first, then those of linked peers.
    pub(crate) fn new(generation: u64, mut peers: Vec<Arc<PeerRoutes>>) -> Self {
        peers.sort_unstable_by_key(|routes| routes.record.peer);
        Self { generation, peers }
    }

    /// Differs between any two snapshots of one peer: a cached route holds as long as this does.
    #[must_use]
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Who listens to a topic. Costs what matches, and a look at each linked peer.
    #[must_use]
    pub(crate) fn resolve(&self, topic: &Topic, my_host: &str) -> Route {
        let mut groups: BTreeMap<NodeName, Vec<Member>> = BTreeMap::new();
        for peer in &self.peers {
            let mut positions = peer.filters.matching(topic);
            positions.sort_unstable();
            // Overlapping filters of one node are one listener.
            for same in positions.chunk_by(|one, next| one == next) {
                let node = &peer.record.nodes[same[0] as usize];
                let id = NodeId { peer: peer.record.peer, index: node.index };
                let (local, filters) = (peer.record.host == my_host, same.len() as u32);
                groups.entry(node.name.clone()).or_default().push(Member {
                    id,
                    local,
                    name: node.name.clone(),
                    filters,
                });
            }
        }
        groups.values_mut().for_each(merge);
        Route { groups: groups.into_iter().map(|(name, members)| Group { name, members }).collect() }
    }

    /// Stub.
    #[must_use]
    pub(crate) fn providers(&self, service: &super::ServiceName, my_host: &str) -> Vec<Member> {
        let mut found = Vec::new();
        for peer in &self.peers {
            for node in &peer.record.nodes {
                if node.services.contains(service) {
                    let id = NodeId { peer: peer.record.peer, index: node.index };
                    found.push(Member { id, local: peer.record.host == my_host, name: node.name.clone(), filters: 0 });
                }
            }
        }
        found.sort_unstable_by_key(|member| member.id);
        found.dedup();
        found
    }

    /// The records that the snapshot was made from.
    pub(crate) fn records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.peers.iter().filter(|peer| !peer.adds).map(|peer| &peer.record)
    }
}

/// Puts members in order of their ids, each once: by an addition, a node may be there twice.
fn merge(members: &mut Vec<Member>) {
    members.sort_unstable_by_key(|member| member.id);
    members.dedup_by(|again, member| {
        let same = again.id == member.id;
        member.filters += if same { again.filters } else { 0 };
        same
    });
}

impl PeerRoutes {
    pub(crate) fn new(record: Arc<Record>) -> Self {
        let mut filters = FilterTable::default();
        for (position, node) in (0u32..).zip(&record.nodes) {
            for filter in &node.filters {
                filters.insert(filter, position);
            }
        }
        Self { record, filters, adds: false }
    }

    /// What some of a peer's nodes listen to besides what another entry says.
    pub(crate) fn addition(record: Arc<Record>) -> Self {
        Self { adds: true, ..Self::new(record) }
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    pub(crate) fn edition(&self) -> Edition {
        self.record.edition
    }
}

/// Filters as a tree of their parts, so that a topic finds its filters without looking at the others.
#[derive(Debug, Default)]
pub(crate) struct FilterTable {
    /// Whole filters without a wildcard: most are, and one look-up finds them.
    exact: HashMap<Box<str>, Vec<u32>>,
    wild: Branch,
}

#[derive(Debug, Default)]
struct Branch {
    here: Vec<u32>,
    parts: HashMap<Box<str>, Self>,
    any_part: Option<Box<Self>>,
    any_parts: Option<Box<Self>>,
}

impl FilterTable {
    /// Adds a filter with the value that [`FilterTable::matching`] gives for it.
    pub(crate) fn insert(&mut self, filter: &TopicFilter, value: u32) {
        if !filter.as_str().contains('*') {
            self.exact.entry(filter.as_str().into()).or_default().push(value);
            return;
        }
        let branch = filter.parts().fold(&mut self.wild, |branch, part| match part {
            ANY_PART => branch.any_part.get_or_insert_default(),
            ANY_PARTS => branch.any_parts.get_or_insert_default(),
            part => branch.parts.entry(part.into()).or_default(),
        });
        branch.here.push(value);
    }

    /// The values of all filters that select the topic; a value may come more than once.
    pub(crate) fn matching(&self, topic: &Topic) -> Vec<u32> {
        let mut found = self.exact.get(topic.as_str()).cloned().unwrap_or_default();
        if !self.wild.is_empty() {
            let parts: Vec<&str> = topic.parts().collect();
            let mut walk = Walk { parts: &parts, seen: std::collections::HashSet::new(), found: &mut found };
            walk.from(&self.wild, 0);
        }
        found
    }
}

/// One search. A branch is visited once per position, so filters of many `**` cost no more than their size times the
/// topic's.
struct Walk<'a> {
    parts: &'a [&'a str],
    seen: std::collections::HashSet<(*const Branch, usize)>,
    found: &'a mut Vec<u32>,
}

impl Walk<'_> {
    fn from(&mut self, branch: &Branch, at: usize) {
        if !self.seen.insert((std::ptr::from_ref(branch), at)) {
            return;
        }
        if let Some(part) = self.parts.get(at) {
            if let Some(next) = branch.parts.get(*part) {
                self.from(next, at + 1);
            }
            if let Some(next) = &branch.any_part {
                self.from(next, at + 1);
            }
        } else {
            self.found.extend_from_slice(&branch.here);
        }
        if let Some(next) = &branch.any_parts {
            (at..=self.parts.len()).for_each(|at| self.from(next, at));
        }
    }
}

impl Branch {
    fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.any_part.is_none() && self.any_parts.is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kit::{listener, node_name, peer, record_with, topic};
    use super::*;

    fn routes(records: impl IntoIterator<Item = Record>) -> Routes {
        Routes::new(1, records.into_iter().map(|record| Arc::new(PeerRoutes::new(Arc::new(record)))).collect())
    }

    #[test]
    fn nodes_of_one_name_are_one_group_wherever_they_are() {
        let routes = routes([
            record_with(1, [listener(0, "worker", &["jobs/*"]), listener(1, "log", &["**"])]),
            record_with(2, [listener(0, "worker", &["jobs/a"])]),
        ]);
        let route = routes.resolve(&topic("jobs/a"), "here");
        let names: Vec<_> = route.groups.iter().map(|group| (group.name.as_str(), group.members.len())).collect();
        assert_eq!(names, [("log", 1), ("worker", 2)]);
        assert_eq!(routes.resolve(&topic("other"), "here").groups.len(), 1);
    }

    #[test]
    fn overlapping_filters_of_a_node_make_it_one_member() {
        let routes = routes([record_with(1, [listener(0, "a", &["x/*", "x/**", "x/y", "**/y"])])]);
        assert_eq!(routes.resolve(&topic("x/y"), "").groups[0].members.len(), 1);
    }

    #[test]
    fn members_say_whether_they_are_on_the_senders_machine() {
        let routes = routes([record_with(1, [listener(0, "a", &["x"])])]);
        let local = |host| routes.resolve(&topic("x"), host).groups[0].members[0].local;
        assert!(local("host-1") && !local("host-2"));
        assert_eq!(routes.resolve(&topic("x"), "").groups[0].members[0].id.peer, peer(1));
        assert_eq!(routes.resolve(&topic("x"), "").groups[0].name, node_name("a"));
    }

    proptest! {
        #[test]
        fn the_table_finds_what_each_filter_matches(
            filters in prop::collection::vec("(a|b|\\*|\\*\\*)(/(a|b|\\*|\\*\\*)){0,4}", 0..20),
            text in "[ab](/[ab]){0,4}",
        ) {
            let filters: Vec<_> = filters.iter().map(|text| TopicFilter::new(text).unwrap()).collect();
            let mut table = FilterTable::default();
            filters.iter().zip(0..).for_each(|(filter, value)| table.insert(filter, value));
            let mut found = table.matching(&topic(&text));
            found.sort_unstable();
            found.dedup();
            let expected: Vec<u32> =
                filters.iter().zip(0..).filter(|(filter, _)| filter.matches(&topic(&text))).map(|(_, value)| value).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
