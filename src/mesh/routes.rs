//! The view as senders need it: snapshots that share all that did not change between them.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::changes::without_common_ends;
use super::filters::{FilterTable, List, Lists};
use super::record::{NodeEntry, Record};
use super::trie::{Keep, Trie};
use super::{GroupBy, NodeId, NodeName, PeerId, ServiceName, Topic, TopicFilter};

/// Where sends can go now: the nodes of this peer and of all linked ones. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    /// Differs between any two snapshots of one peer.
    generation: u64,
    filters: FilterTable<Arc<Seat>>,
    services: Trie<ServiceName, List<Arc<Seat>>>,
    records: Trie<PeerId, Arc<Record>>,
}

/// A node, as it is found by what it listens to or offers.
#[derive(Debug)]
struct Seat {
    id: NodeId,
    name: NodeName,
    host: Arc<str>,
}

/// What the routes of a topic are made from. Equal to that of another snapshot if nothing changed for the topic in between:
/// told without a look at the nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listening(Lists<Arc<Seat>>);

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

/// What of one peer comes and goes, by the names that it is found by: so that each list is changed once.
#[derive(Debug, Default)]
struct Edit<'a> {
    filters: HashMap<&'a TopicFilter, Delta>,
    services: HashMap<&'a ServiceName, Delta>,
}

/// A change of one list.
#[derive(Debug, Default)]
struct Delta {
    /// How often each of the peer's nodes goes.
    gone: HashMap<u32, usize>,
    come: Vec<Arc<Seat>>,
}

impl Routes {
    /// Differs between any two snapshots of one peer: a cached route holds as long as this does.
    #[must_use]
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// What the route of a topic is made from. Costs what matches.
    #[must_use]
    pub(crate) fn listening(&self, topic: &Topic) -> Listening {
        Listening(self.filters.matching(topic))
    }

    /// Who listens to a topic. Costs what matches.
    #[must_use]
    pub(crate) fn resolve(&self, topic: &Topic, my_host: &str, group_by: GroupBy) -> Route {
        self.listening(topic).route(my_host, group_by)
    }

    /// Who offers a service; none if nobody does. Costs what matches.
    #[must_use]
    pub(crate) fn providers(&self, service: &ServiceName, my_host: &str) -> Option<Group> {
        let mut members: Vec<Member> = self.services.get(service)?.iter().map(|seat| seat.member(my_host, 0)).collect();
        members.sort_unstable_by_key(|member| member.id);
        members.dedup_by_key(|member| member.id);
        Some(Group { key: GroupKey::Providers, members })
    }

    /// The records that the snapshot was made from.
    pub(crate) fn records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.records.values()
    }

    /// That of a linked peer.
    pub(crate) fn record(&self, peer: PeerId) -> Option<&Arc<Record>> {
        self.records.get(&peer)
    }

    /// The routes as they are now, under a number of their own.
    pub(crate) fn snapshot(&mut self, generation: u64) -> Self {
        self.generation = generation;
        self.clone()
    }

    /// What is said of a peer besides what it listens to and offers.
    pub(super) fn describe(&mut self, record: &Arc<Record>) {
        self.records.update(
            &record.peer,
            || (record.peer, Arc::clone(record)),
            |known| {
                known.clone_from(record);
                Keep::Yes
            },
        );
    }

    /// A peer says something else of itself than before; it comes, or goes. Costs what its record has, not what others' have.
    pub(crate) fn replace(&mut self, peer: PeerId, before: Option<&Record>, after: Option<&Arc<Record>>) {
        match after {
            Some(record) => self.describe(record),
            None => self.records.remove(&peer),
        }
        let edit = Edit::between(peer, before, after.map(|record| &**record));
        for (filter, delta) in edit.filters {
            self.filters.update(filter, |list| delta.apply(peer, list));
        }
        for (service, delta) in edit.services {
            change_service(&mut self.services, service, |list| delta.apply(peer, list));
        }
    }

    /// A node of this peer listens.
    pub(super) fn listen(&mut self, id: NodeId, name: &NodeName, host: &str, filter: &TopicFilter) {
        self.filters.insert(filter, Arc::new(Seat::new(id, name, host.into())));
    }

    /// It does so no more.
    pub(super) fn unlisten(&mut self, id: NodeId, filter: &TopicFilter) {
        self.filters.update(filter, |list| remove_one(list, id));
    }

    /// A node of this peer offers a service.
    pub(super) fn serve(&mut self, id: NodeId, name: &NodeName, host: &str, service: &ServiceName) {
        let seat = Arc::new(Seat::new(id, name, host.into()));
        change_service(&mut self.services, service, |list| list.push(seat));
    }

    /// It does so no more.
    pub(super) fn unserve(&mut self, id: NodeId, service: &ServiceName) {
        change_service(&mut self.services, service, |list| remove_one(list, id));
    }
}

fn change_service(
    services: &mut Trie<ServiceName, List<Arc<Seat>>>,
    service: &ServiceName,
    change: impl FnOnce(&mut Vec<Arc<Seat>>),
) {
    services.update(
        service,
        || (service.clone(), List::default()),
        |list| {
            change(Arc::make_mut(list));
            if list.is_empty() { Keep::No } else { Keep::Yes }
        },
    );
}

fn remove_one(list: &mut Vec<Arc<Seat>>, id: NodeId) {
    if let Some(at) = list.iter().position(|seat| seat.id == id) {
        list.swap_remove(at);
    }
}

impl Listening {
    /// Who listens, by group.
    #[must_use]
    pub(crate) fn route(&self, my_host: &str, group_by: GroupBy) -> Route {
        let mut seats: Vec<&Arc<Seat>> = self.0.iter().flat_map(|list| list.iter()).collect();
        seats.sort_unstable_by_key(|seat| seat.id);
        let mut groups: BTreeMap<GroupKey, Vec<Member>> = BTreeMap::new();
        for same in seats.chunk_by(|one, next| one.id == next.id) {
            // Overlapping filters of one node are one listener.
            let member = same[0].member(my_host, same.len() as u32);
            groups.entry(GroupKey::of(&member, group_by)).or_default().push(member);
        }
        Route { groups: groups.into_iter().map(|(key, members)| Group { key, members }).collect() }
    }
}

impl PartialEq for Listening {
    /// A list that changed is another list. As long as this one is kept, no other can be in its place.
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(one, other)| Arc::ptr_eq(one, other))
    }
}

impl Seat {
    fn new(id: NodeId, name: &NodeName, host: Arc<str>) -> Self {
        Self { id, name: name.clone(), host }
    }

    fn member(&self, my_host: &str, filters: u32) -> Member {
        let (local, name, host) = (*self.host == *my_host, self.name.clone(), Arc::clone(&self.host));
        Member { id: self.id, local, name, host, filters }
    }
}

impl<'a> Edit<'a> {
    /// From one edition of a peer's record to the next.
    fn between(peer: PeerId, before: Option<&'a Record>, after: Option<&'a Record>) -> Self {
        let mut edit = Self::default();
        let moved = before.map(|record| &record.host) != after.map(|record| &record.host);
        let nodes = |record: Option<&'a Record>| record.map_or(&[][..], |record| &record.nodes[..]);
        let host: Arc<str> = after.map_or("", |record| &record.host).into();
        let seat =
            |node: &NodeEntry| Arc::new(Seat::new(NodeId { peer, index: node.index }, &node.name, Arc::clone(&host)));
        let mut old: HashMap<u32, &NodeEntry> = nodes(before).iter().map(|node| (node.index, node)).collect();
        for node in nodes(after) {
            // Who is called otherwise than before is found as somebody else.
            let same = |known: &&NodeEntry| !moved && known.name == node.name;
            let known = if old.get(&node.index).is_some_and(same) { old.remove(&node.index) } else { None };
            edit.add(&seat(node), known, Some(node));
        }
        old.into_values().for_each(|node| edit.add(&seat(node), Some(node), None));
        edit
    }

    fn add(&mut self, seat: &Arc<Seat>, before: Option<&'a NodeEntry>, after: Option<&'a NodeEntry>) {
        let filters = |node: Option<&'a NodeEntry>| node.map_or(&[][..], |node| &node.filters[..]);
        count(&mut self.filters, seat, filters(before), filters(after));
        let services = |node: Option<&'a NodeEntry>| node.map_or(&[][..], |node| &node.services[..]);
        count(&mut self.services, seat, services(before), services(after));
    }
}

/// Notes which names a node has more often than before, and which less often.
fn count<'a, N: Eq + Hash>(deltas: &mut HashMap<&'a N, Delta>, seat: &Arc<Seat>, before: &'a [N], after: &'a [N]) {
    let (before, after) = without_common_ends(before, after);
    let mut more: HashMap<&N, isize> = HashMap::new();
    after.iter().for_each(|name| *more.entry(name).or_default() += 1);
    before.iter().for_each(|name| *more.entry(name).or_default() -= 1);
    for (name, more) in more.into_iter().filter(|(_, more)| *more != 0) {
        let delta = deltas.entry(name).or_default();
        if more > 0 {
            delta.come.extend((0..more).map(|_| Arc::clone(seat)));
        } else {
            *delta.gone.entry(seat.id.index).or_default() += more.unsigned_abs();
        }
    }
}

impl Delta {
    fn apply(mut self, peer: PeerId, list: &mut Vec<Arc<Seat>>) {
        if !self.gone.is_empty() {
            list.retain(|seat| match self.gone.get_mut(&seat.id.index).filter(|_| seat.id.peer == peer) {
                Some(left) if *left > 0 => {
                    *left -= 1;
                    false
                }
                _ => true,
            });
        }
        list.append(&mut self.come);
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kit::{listener, node_name, peer, record_with, topic};
    use super::*;

    fn routes(records: impl IntoIterator<Item = Record>) -> Routes {
        let mut routes = Routes::default();
        records.into_iter().for_each(|record| routes.replace(record.peer, None, Some(&Arc::new(record))));
        routes
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
        let mut routes = routes([record]);
        let id = NodeId { peer: peer(1), index: 0 };
        (0..2).for_each(|_| routes.listen(id, &node_name("a"), "host-1", &TopicFilter::new("x/y").unwrap()));
        assert_eq!(count(&routes), [8]);
        routes.unlisten(id, &TopicFilter::new("x/y").unwrap());
        assert_eq!(count(&routes), [7]);
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
            NodeEntry { services, ..listener(index, name, &["x"]) }
        };
        let first =
            record_with(2, [offers(0, "a", &[&resize, &resize]), offers(1, "b", &[]), offers(2, "c", &[&resize])]);
        let second = record_with(1, [offers(0, "b", &[&resize])]);
        let mut routes = routes([first, second]);
        let (a, b) = (NodeId { peer: peer(2), index: 0 }, NodeId { peer: peer(2), index: 1 });
        routes.serve(a, &node_name("a"), "host-2", &resize);
        routes.serve(b, &node_name("b"), "host-2", &other);
        let group = routes.providers(&resize, "host-1").unwrap();
        let found: Vec<_> = group.members.iter().map(|one| (one.id, one.local, one.filters)).collect();
        let id = |n, index| NodeId { peer: peer(n), index };
        assert_eq!(found, [(id(1, 0), true, 0), (id(2, 0), false, 0), (id(2, 2), false, 0)]);
        assert_eq!(routes.providers(&other, "").unwrap().members.len(), 1);
        routes.unserve(b, &other);
        assert_eq!(routes.providers(&other, ""), None);
        assert_eq!(routes.providers(&ServiceName::new("unknown").unwrap(), ""), None);
    }

    #[test]
    fn what_changes_elsewhere_does_not_concern_a_topic() {
        let others = |n| record_with(n, [listener(0, "b", &["y", "x/z", "*/z", "x/*/z"])]);
        let first = record_with(1, [listener(0, "a", &["x/y"]), listener(1, "a", &["x/*"])]);
        let mut routes = routes([first.clone()]);
        let before = routes.listening(&topic("x/y"));
        routes.replace(peer(2), None, Some(&Arc::new(others(2))));
        let mut second = first.clone();
        second.nodes[0].filters.push(TopicFilter::new("more").unwrap());
        second.addresses.push("somewhere".to_owned());
        second.nodes.push(listener(2, "c", &["x", "x/y/z"]));
        routes.replace(peer(1), Some(&first), Some(&Arc::new(second.clone())));
        routes.replace(peer(2), Some(&others(2)), None);
        assert!(routes.listening(&topic("x/y")) == before);
        routes.replace(peer(1), Some(&second), None);
        routes.replace(peer(1), None, Some(&Arc::new(second)));
        assert!(routes.listening(&topic("x/y")) != before, "who went and came back is reached over another link");
    }

    #[test]
    fn who_is_called_otherwise_or_is_elsewhere_is_somebody_else() {
        let first = record_with(1, [listener(0, "a", &["x"])]);
        let renamed = record_with(1, [listener(0, "b", &["x"])]);
        let moved = Record { host: "host-2".to_owned(), ..renamed.clone() };
        let mut routes = routes([first.clone()]);
        let key = |routes: &Routes| resolve(routes, "x", GroupBy::NameAndHost)[0].key.clone();
        for (before, after, name, host) in [(&first, &renamed, "b", "host-1"), (&renamed, &moved, "b", "host-2")] {
            routes.replace(peer(1), Some(before), Some(&Arc::new(after.clone())));
            assert_eq!(key(&routes), GroupKey::NameAndHost(node_name(name), host.into()));
        }
    }

    fn some_record(n: u32) -> impl Strategy<Value = Record> {
        let filters = prop::collection::vec(prop::sample::select(vec!["a", "b", "a/b", "*", "**", "a/*"]), 0..5);
        let node = ("[ab]", filters, prop::collection::vec("[st]", 0..3));
        (prop::collection::btree_map(0u32..4, node, 0..4), "[hi]").prop_map(move |(nodes, host)| {
            let nodes = nodes.into_iter().map(|(index, (name, filters, services))| {
                let services = services.iter().map(|text| ServiceName::new(text).unwrap()).collect();
                NodeEntry { services, ..listener(index, &name, &filters) }
            });
            Record { host, ..record_with(n, nodes) }
        })
    }

    proptest! {
        #[test]
        fn routes_that_followed_every_change_are_those_made_from_what_is_known_now(
            steps in prop::collection::vec((1u32..4, prop::option::of(some_record(0))), 1..12),
        ) {
            let (mut routes, mut known) = (Routes::default(), BTreeMap::new());
            for (n, record) in steps {
                let before: Option<Arc<Record>> = known.remove(&n);
                let after = record.map(|record| Arc::new(Record { peer: peer(n), ..record }));
                let kept = routes.snapshot(1); // so that what changes is copied
                routes.replace(peer(n), before.as_deref(), after.as_ref());
                known.extend(after.map(|record| (n, record)));
                drop(kept);
            }
            let mut anew = Routes::default();
            known.values().for_each(|record| anew.replace(record.peer, None, Some(record)));
            for group_by in [GroupBy::Name, GroupBy::Host, GroupBy::NameAndHost] {
                for text in ["a", "b", "a/b", "c"] {
                    prop_assert_eq!(resolve(&routes, text, group_by), resolve(&anew, text, group_by));
                }
            }
            for text in ["s", "t"] {
                let service = ServiceName::new(text).unwrap();
                prop_assert_eq!(routes.providers(&service, "h"), anew.providers(&service, "h"));
            }
            let mut records: Vec<_> = routes.records().cloned().collect();
            records.sort_unstable_by_key(|record| record.peer);
            prop_assert_eq!(records, known.into_values().collect::<Vec<_>>());
        }
    }
}
