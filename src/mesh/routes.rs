//! The view as senders need it: immutable, swapped whole.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::record::{Edition, Record};
use super::topic::{ANY_PART, ANY_PARTS};
use super::{GroupBy, NodeId, NodeName, ServiceName, Topic, TopicFilter};

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
    /// That of the record, shared by all members.
    host: Arc<str>,
    filters: FilterTable,
    /// The positions in the record of who offers a service.
    services: HashMap<ServiceName, Vec<u32>>,
    /// Whether it adds to what another entry of the same peer says.
    adds: bool,
}

/// Who gets the messages on one topic, by group. Groups stand in order of their keys, members in order of id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// One entry a group that listens.
    pub(crate) groups: Vec<Group>,
}

/// Nodes of which one gets a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// What they have in common.
    pub(crate) key: GroupKey,
    /// The nodes, at least one.
    pub(crate) members: Vec<Member>,
}

/// What tells a group from the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GroupKey {
    /// The nodes of one name.
    Name(NodeName),
    /// The nodes on machines of one name.
    Host(Arc<str>),
    /// The nodes of one name on machines of one name.
    NameAndHost(NodeName, Arc<str>),
    /// All that offer the service in question.
    Providers,
}

/// One node that listens, or offers a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The node.
    pub(crate) id: NodeId,
    /// Whether it is on the sender's machine.
    pub(crate) local: bool,
    /// Its name.
    pub(crate) name: NodeName,
    /// The name of its machine.
    pub(crate) host: Arc<str>,
    /// How many of its filters select the topic, each counted as often as it was given. 0 for a service.
    pub(crate) filters: u32,
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
    pub(crate) fn resolve(&self, topic: &Topic, my_host: &str, group_by: GroupBy) -> Route {
        let mut groups: BTreeMap<GroupKey, Vec<Member>> = BTreeMap::new();
        for peer in &self.peers {
            let mut positions = peer.filters.matching(topic);
            positions.sort_unstable();
            for same in positions.chunk_by(|one, next| one == next) {
                // Overlapping filters of one node are one listener.
                let member = peer.member(same[0], my_host, same.len() as u32);
                groups.entry(GroupKey::of(&member, group_by)).or_default().push(member);
            }
        }
        groups.values_mut().for_each(merge);
        Route { groups: groups.into_iter().map(|(key, members)| Group { key, members }).collect() }
    }

    /// Who offers a service; none if nobody does. Costs what matches, and a look at each linked peer.
    #[must_use]
    pub(crate) fn providers(&self, service: &ServiceName, my_host: &str) -> Option<Group> {
        let of_peer = |peer: &Arc<PeerRoutes>| {
            let positions = peer.services.get(service).into_iter().flatten();
            positions.map(|position| peer.member(*position, my_host, 0)).collect::<Vec<_>>()
        };
        let mut members: Vec<Member> = self.peers.iter().flat_map(of_peer).collect();
        merge(&mut members);
        (!members.is_empty()).then_some(Group { key: GroupKey::Providers, members })
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

impl Hash for GroupKey {
    /// Without the kind, which would make a look-up in each send a fifth slower (15 to 19 ns): one table hardly holds two.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Name(name) => name.hash(state),
            Self::Host(host) => host.hash(state),
            Self::NameAndHost(name, host) => (name, host).hash(state),
            Self::Providers => {}
        }
    }
}

impl GroupKey {
    fn of(member: &Member, group_by: GroupBy) -> Self {
        match group_by {
            GroupBy::Name => Self::Name(member.name.clone()),
            GroupBy::Host => Self::Host(Arc::clone(&member.host)),
            GroupBy::NameAndHost => Self::NameAndHost(member.name.clone(), Arc::clone(&member.host)),
        }
    }
}

impl PeerRoutes {
    pub(crate) fn new(record: Arc<Record>) -> Self {
        let mut filters = FilterTable::default();
        let mut services: HashMap<ServiceName, Vec<u32>> = HashMap::new();
        for (position, node) in (0u32..).zip(&record.nodes) {
            for filter in &node.filters {
                filters.insert(filter, position);
            }
            for service in &node.services {
                services.entry(service.clone()).or_default().push(position);
            }
        }
        Self { host: record.host.as_str().into(), record, filters, services, adds: false }
    }

    /// What some of a peer's nodes listen to and offer besides what another entry says.
    pub(crate) fn addition(record: Arc<Record>) -> Self {
        Self { adds: true, ..Self::new(record) }
    }

    /// The node at that position of the record.
    fn member(&self, position: u32, my_host: &str, filters: u32) -> Member {
        let node = &self.record.nodes[position as usize];
        let id = NodeId { peer: self.record.peer, index: node.index };
        Member { id, local: *self.host == *my_host, name: node.name.clone(), host: Arc::clone(&self.host), filters }
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

    /// The values of all filters that select the topic, each as often as filters with it do.
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

    fn resolve(routes: &Routes, text: &str, group_by: GroupBy) -> Vec<Group> {
        routes.resolve(&topic(text), "host-1", group_by).groups
    }

    #[test]
    fn nodes_of_one_name_are_one_group_wherever_they_are() {
        let routes = routes([
            record_with(1, [listener(0, "worker", &["jobs/*"]), listener(1, "log", &["**"])]),
            record_with(2, [listener(0, "worker", &["jobs/a"])]),
        ]);
        let groups = resolve(&routes, "jobs/a", GroupBy::Name);
        let names: Vec<_> = groups.into_iter().map(|group| (group.key, group.members.len())).collect();
        let key = |name| GroupKey::Name(node_name(name));
        assert_eq!(names, [(key("log"), 1), (key("worker"), 2)]);
        assert_eq!(resolve(&routes, "other", GroupBy::Name).len(), 1);
    }

    #[test]
    fn groups_can_be_those_of_a_machine_instead() {
        let nodes = || [listener(0, "a", &["x"]), listener(1, "a", &["x"]), listener(2, "b", &["x"])];
        let routes = routes([record_with(1, nodes()), record_with(2, nodes())]);
        let keys = |group_by| -> Vec<_> {
            let groups = resolve(&routes, "x", group_by).into_iter();
            groups.map(|group| (group.key, group.members.len())).collect()
        };
        let (a, b, one, two) = (node_name("a"), node_name("b"), Arc::from("host-1"), Arc::from("host-2"));
        assert_eq!(keys(GroupBy::Host), [(GroupKey::Host(Arc::clone(&one)), 3), (GroupKey::Host(Arc::clone(&two)), 3)]);
        let both = |name: &NodeName, host: &Arc<str>| GroupKey::NameAndHost(name.clone(), Arc::clone(host));
        let expected = [(both(&a, &one), 2), (both(&a, &two), 2), (both(&b, &one), 1), (both(&b, &two), 1)];
        assert_eq!(keys(GroupBy::NameAndHost), expected);
    }

    #[test]
    fn overlapping_filters_of_a_node_make_it_one_member_that_knows_how_many() {
        let record = record_with(1, [listener(0, "a", &["x/*", "x/**", "x/y", "**/y", "x/y", "x/*", "z"])]);
        let count = |routes: &Routes| -> Vec<u32> {
            resolve(routes, "x/y", GroupBy::Name)[0].members.iter().map(|member| member.filters).collect()
        };
        assert_eq!(count(&routes([record.clone()])), [6]);
        let addition = PeerRoutes::addition(Arc::new(record_with(1, [listener(0, "a", &["x/y", "x/y"])])));
        let added = Routes::new(1, vec![Arc::new(PeerRoutes::new(Arc::new(record))), Arc::new(addition)]);
        assert_eq!(count(&added), [8]);
    }

    #[test]
    fn members_say_who_and_where_they_are() {
        let routes = routes([record_with(1, [listener(0, "a", &["x"])])]);
        let member = |host| routes.resolve(&topic("x"), host, GroupBy::Name).groups[0].members[0].clone();
        assert!(member("host-1").local && !member("host-2").local);
        assert_eq!(member("").id.peer, peer(1));
        assert_eq!((member("").name, &*member("").host), (node_name("a"), "host-1"));
    }

    #[test]
    fn all_that_offer_a_service_are_one_group() {
        // E-TOPO.
        let (resize, other) = (ServiceName::new("resize").unwrap(), ServiceName::new("other").unwrap());
        let offers = |index, name, services: &[&ServiceName]| {
            let services = services.iter().map(|service| (*service).clone()).collect();
            crate::mesh::NodeEntry { services, ..listener(index, name, &["x"]) }
        };
        let first =
            record_with(2, [offers(0, "a", &[&resize, &resize]), offers(1, "b", &[]), offers(2, "c", &[&resize])]);
        let second = record_with(1, [offers(0, "b", &[&resize])]);
        let addition = record_with(2, [offers(0, "a", &[&resize]), offers(1, "b", &[&other])]);
        let entries = [
            PeerRoutes::new(Arc::new(first)),
            PeerRoutes::new(Arc::new(second)),
            PeerRoutes::addition(Arc::new(addition)),
        ];
        let routes = Routes::new(1, entries.map(Arc::new).into());
        let group = routes.providers(&resize, "host-1").unwrap();
        let found: Vec<_> = group.members.iter().map(|one| (one.id, one.local, one.filters)).collect();
        let id = |n, index| NodeId { peer: peer(n), index };
        assert_eq!(found, [(id(1, 0), true, 0), (id(2, 0), false, 0), (id(2, 2), false, 0)]);
        assert_eq!(routes.providers(&other, "").unwrap().members.len(), 1);
        assert_eq!(routes.providers(&ServiceName::new("unknown").unwrap(), ""), None);
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
            let expected: Vec<u32> =
                filters.iter().zip(0..).filter(|(filter, _)| filter.matches(&topic(&text))).map(|(_, value)| value).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
