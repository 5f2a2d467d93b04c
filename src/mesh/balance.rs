//! Which node of a group gets the next message, and what makes a group.

use std::collections::HashMap;
use std::fmt;
use std::mem::discriminant;
use std::sync::Arc;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::NodeId;
use super::routes::{Group, GroupKey, Member};

/// How one node of a group is chosen.
///
/// In `config.toml` as `"round_robin"`, `"random"`, `"least_loaded"`, `"local_first"`, `"hash"`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Policy {
    /// One after the other, from a random start; counted for each topic and group alone, so shares differ by one at most.
    #[default]
    RoundRobin,
    /// By chance. Shares even out over many messages; nothing can be told about the next one.
    Random,
    /// The next in turn, unless another one drawn by chance has less to do: fewer frames in this peer's queue to it. A node
    /// that lags behind gets less; while all keep up, this is [`Policy::RoundRobin`].
    LeastLoaded,
    /// In turns among the nodes on the sender's machine; if it has none, among all.
    LocalFirst,
    /// By the key of the message ([`SendOptions::key`](crate::SendOptions::key)): one key goes to one node, from every
    /// sender, and when a node goes, only its keys move. Without a key, in turns.
    Hash,
    /// As one's own code says.
    #[serde(skip)]
    Custom(Arc<dyn Balance>),
}

/// What makes nodes one group: of each group that listens, one node gets a message.
///
/// In `config.toml` as `"name"`, `"host"`, `"name_and_host"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GroupBy {
    /// Their name: each job goes to one worker.
    #[default]
    Name,
    /// The name of their machine, whatever theirs is: each machine gets the message once.
    Host,
    /// Both: each machine's nodes of one name get it once.
    NameAndHost,
}

/// A policy of one's own.
///
/// It is asked while a message is being sent, with the order of the sender's messages held up: answer soon, and send nothing
/// from within.
pub trait Balance: fmt::Debug + Send + Sync {
    /// The position among the candidates of who gets the message. There is at least one; they stand in order of their ids.
    /// A position past the end counts on from the start. `key` is what the sender gave with the message.
    fn pick(&self, candidates: &[Candidate], key: Option<&[u8]>) -> usize;
}

/// A node that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Whether it is on the sender's machine.
    pub local: bool,
    /// Frames in the sender's queue to it: 0 for a node of this process, [`usize::MAX`] if its link just went down.
    pub load: usize,
}

/// Where one topic's groups are in their turns.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    next: HashMap<GroupKey, usize>,
    /// The routes that the groups were last compared with.
    generation: u64,
}

impl PartialEq for Policy {
    /// Two custom policies are equal if they are one object.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Custom(one), Self::Custom(other)) => Arc::ptr_eq(one, other),
            _ => discriminant(self) == discriminant(other),
        }
    }
}

impl Eq for Policy {}

impl Turns {
    /// The position among the group's members of who gets the next message. The group has members. `load` tells how much a
    /// member, by its position, has to do; only policies that weigh it ask.
    pub(crate) fn pick(
        &mut self,
        policy: &Policy,
        group: &Group,
        load: impl Fn(usize) -> usize,
        key: Option<&[u8]>,
        rng: &mut impl Rng,
    ) -> usize {
        let members = &group.members;
        match (policy, key) {
            (Policy::RoundRobin, _) | (Policy::Hash, None) => self.turn(group, rng, |_| true),
            (Policy::Random, _) => rng.random_range(0..members.len()),
            (Policy::LeastLoaded, _) => {
                let turn = self.turn(group, rng, |_| true);
                less_loaded(turn, members.len(), load, rng)
            }
            (Policy::LocalFirst, _) => self.turn(group, rng, |member| member.local),
            (Policy::Hash, Some(key)) => highest(members, key),
            (Policy::Custom(balance), _) => {
                let candidate =
                    |(at, member): (usize, &Member)| Candidate { node: member.id, local: member.local, load: load(at) };
                let candidates: Vec<_> = members.iter().enumerate().map(candidate).collect();
                balance.pick(&candidates, key) % members.len()
            }
        }
    }

    /// The next in turn of those that fit; if none does, of all.
    fn turn(&mut self, group: &Group, rng: &mut impl Rng, fits: impl Fn(&Member) -> bool) -> usize {
        let members = group.members.len();
        let from = |start: usize| {
            let mut turns = (start..start + members).map(|at| at % members);
            turns.find(|at| fits(&group.members[*at])).unwrap_or(start % members)
        };
        // Two look-ups at the first pick, so that all others clone no name.
        let Some(next) = self.next.get_mut(&group.key) else {
            let first = from(rng.random_range(0..members));
            self.next.insert(group.key.clone(), first + 1);
            return first;
        };
        let turn = from(*next);
        *next = turn + 1;
        turn
    }

    /// Drops the turns of groups that no longer listen, once for each generation of routes.
    pub(crate) fn keep_up(&mut self, generation: u64, groups: &[Group]) {
        if self.generation == generation {
            return;
        }
        self.generation = generation;
        if self.next.len() > groups.len() {
            self.next.retain(|key, _| groups.iter().any(|group| group.key == *key));
        }
    }
}

/// The one in turn, or one drawn by chance if that has less to do.
///
/// Two choices are nearly as good as knowing all, and do not rush to whoever was idle a moment ago: M. Mitzenmacher, The
/// Power of Two Choices in Randomized Load Balancing, thesis, Berkeley 1996, and IEEE TPDS 12(10), 2001. Here the first of
/// the two is not drawn, so that shares are even while nobody lags behind.
fn less_loaded(turn: usize, members: usize, load: impl Fn(usize) -> usize, rng: &mut impl Rng) -> usize {
    if members == 1 {
        return turn;
    }
    let busy = load(turn);
    if busy == 0 {
        return turn; // nobody has less
    }
    let other = (turn + rng.random_range(1..members)) % members;
    if load(other) < busy { other } else { turn }
}

/// The member whose score for the key is highest: D. Thaler, C. Ravishankar, Using Name-Based Mappings to Increase Hit
/// Rates, IEEE/ACM Transactions on Networking 6(1), 1998. A score depends on nobody else, so the others keep their keys when
/// one comes or goes.
fn highest(members: &[Member], key: &[u8]) -> usize {
    let key = fnv(FNV_OFFSET, key);
    let score = |member: &Member| {
        let NodeId { peer, index } = member.id;
        mix(fnv(fnv(key, peer.as_bytes()), &index.to_be_bytes()))
    };
    let (at, _) = members.iter().enumerate().max_by_key(|(_, member)| (score(member), member.id)).unzip();
    at.unwrap_or_default()
}

/// FNV-1a in 64 bits: the same in every process and version, as all senders have to agree.
fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

/// Spreads what differs in a few bits over all: scores are compared, and FNV alone leaves the high bits of like inputs alike.
/// The end of `SplitMix64` (Steele, Lea, Flood 2014).
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// The parameters of FNV-1a in 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::kit::{dice, group};
    use super::*;

    /// Answers beyond the end as well.
    #[derive(Debug, Default)]
    struct Counter(AtomicUsize);

    impl Balance for Counter {
        fn pick(&self, candidates: &[Candidate], _: Option<&[u8]>) -> usize {
            assert!(candidates.is_sorted_by_key(|candidate| candidate.node), "they stand in order of their ids");
            self.0.fetch_add(1, Ordering::Relaxed)
        }
    }

    /// As many messages of different keys; how often each member was picked.
    fn spread(turns: &mut Turns, policy: &Policy, group: &Group, sends: u32) -> Vec<usize> {
        spread_by_load(turns, policy, group, sends, |_| 0)
    }

    fn spread_by_load(
        turns: &mut Turns,
        policy: &Policy,
        group: &Group,
        sends: u32,
        load: impl Fn(usize) -> usize,
    ) -> Vec<usize> {
        let mut rng = dice(7);
        let mut sent = vec![0; group.members.len()];
        for number in 0..sends {
            sent[turns.pick(policy, group, &load, Some(&number.to_be_bytes()), &mut rng)] += 1;
        }
        sent
    }

    fn even(sent: &[usize]) -> bool {
        sent.iter().max().unwrap() - sent.iter().min().unwrap() <= 1
    }

    fn policies() -> [Policy; 6] {
        [
            Policy::RoundRobin,
            Policy::Random,
            Policy::LeastLoaded,
            Policy::LocalFirst,
            Policy::Hash,
            Policy::Custom(Arc::new(Counter::default())),
        ]
    }

    /// What every policy keeps to. A pick out of range panics in `spread`.
    fn check_policy(policy: &Policy) {
        for members in 1..=5 {
            let group = group("g", members);
            let sent = spread(&mut Turns::default(), policy, &group, 1000);
            assert!(sent.iter().all(|sent| *sent > 0), "{policy:?}: nobody starves: {sent:?}");
            assert_eq!(sent.iter().sum::<usize>(), 1000, "{policy:?}: each message is somebody's");
            let sent = spread_by_load(&mut Turns::default(), policy, &group, 100, |_| usize::MAX);
            assert_eq!(sent.iter().sum::<usize>(), 100, "{policy:?}: also when all are busy or gone");
            let mut rng = dice(3);
            let mut turns = Turns::default();
            let mut pick = || turns.pick(policy, &group, |_| 0, None, &mut rng);
            assert!((0..100).all(|_| pick() < members as usize), "{policy:?}: also without a key");
        }
        let mut turns = Turns::default();
        for members in [5, 2, 1, 4] {
            let sent = spread(&mut turns, policy, &group("g", members), 400);
            assert!(sent.iter().all(|sent| *sent > 0), "{policy:?}: {members} after a change: {sent:?}");
        }
    }

    /// E-LB.
    #[test]
    fn every_policy_keeps_to_the_contract() {
        policies().iter().for_each(check_policy);
    }

    #[test]
    fn load_is_asked_for_only_by_policies_that_weigh_it() {
        for policy in policies() {
            let asked = RefCell::new(0);
            spread_by_load(&mut Turns::default(), &policy, &group("g", 3), 10, |_| {
                *asked.borrow_mut() += 1;
                1
            });
            let weighs = matches!(policy, Policy::LeastLoaded | Policy::Custom(_));
            assert_eq!(asked.into_inner() > 0, weighs, "{policy:?}");
        }
    }

    /// E-LB.
    #[test]
    fn shares_differ_by_at_most_one() {
        let idle_or_far = [Policy::RoundRobin, Policy::LeastLoaded, Policy::LocalFirst];
        for (policy, members) in idle_or_far.iter().flat_map(|policy| (1..=5).map(move |members| (policy, members))) {
            let sent = spread(&mut Turns::default(), policy, &group("g", members), 1000);
            assert!(even(&sent), "{policy:?}: {sent:?}");
        }
    }

    /// E-LB, for k groups of n nodes; two groups of two get 500 each of 1000.
    #[test]
    fn groups_take_turns_apart() {
        for (policy, groups, members) in
            [(Policy::RoundRobin, 2, 2), (Policy::LeastLoaded, 2, 2), (Policy::RoundRobin, 3, 4)]
        {
            let groups: Vec<Group> = (0..groups).map(|n| group(&format!("g{n}"), members)).collect();
            let (mut turns, mut rng) = (Turns::default(), dice(1));
            let mut sent = vec![vec![0; members as usize]; groups.len()];
            for _ in 0..1000 {
                for (group, sent) in groups.iter().zip(&mut sent) {
                    sent[turns.pick(&policy, group, |_| 0, None, &mut rng)] += 1;
                }
            }
            let share = 1000 / members as usize;
            assert_eq!(sent, vec![vec![share; members as usize]; groups.len()], "{policy:?}");
        }
    }

    #[test]
    fn chance_favours_nobody() {
        // E-LB.
        let sent = spread(&mut Turns::default(), &Policy::Random, &group("g", 4), 4000);
        assert!(sent.iter().all(|sent| (850..1150).contains(sent)), "{sent:?}"); // 5 standard deviations of 27
    }

    #[test]
    fn who_does_not_get_on_gets_no_more() {
        let (group, mut turns, mut rng) = (group("g", 4), Turns::default(), dice(5));
        let loads = RefCell::new([0; 4]);
        let mut sent = [0; 4];
        for _ in 0..1000 {
            let at = turns.pick(&Policy::LeastLoaded, &group, |at| loads.borrow()[at], None, &mut rng);
            sent[at] += 1;
            // All but the first are done at once.
            loads.borrow_mut()[0] += usize::from(at == 0);
        }
        assert_eq!((sent[0], sent.iter().sum::<usize>()), (1, 1000), "{sent:?}");
        assert!(sent[1..].iter().all(|sent| *sent > 250), "{sent:?}");
    }

    #[test]
    fn nodes_of_the_senders_machine_come_first_if_it_has_any() {
        let mut group = group("g", 5);
        for local in [1, 2, 4] {
            group.members[local].local = true;
        }
        let mut turns = Turns::default();
        assert_eq!(spread(&mut turns, &Policy::LocalFirst, &group, 300), [0, 100, 100, 0, 100]);
        group.members.iter_mut().for_each(|member| member.local = false);
        assert_eq!(spread(&mut turns, &Policy::LocalFirst, &group, 300), [60; 5]);
    }

    #[test]
    fn a_key_goes_to_one_node_and_moves_only_with_it() {
        let full = group("g", 5);
        let owner = |group: &Group, key: u32| {
            // Turns and dice do not matter.
            let at =
                Turns::default().pick(&Policy::Hash, group, |_| 0, Some(&key.to_be_bytes()), &mut dice(key.into()));
            group.members[at].id
        };
        let owners: Vec<NodeId> = (0..1000).map(|key| owner(&full, key)).collect();
        for gone in &full.members {
            let keys = owners.iter().filter(|owner| **owner == gone.id).count();
            assert!((150..250).contains(&keys), "{keys} keys of 1000 on one of five"); // 4 standard deviations of 13
            let mut rest = full.clone();
            rest.members.retain(|member| member.id != gone.id);
            for (key, before) in (0..).zip(&owners) {
                let now = owner(&rest, key);
                assert!(now == *before || *before == gone.id, "key {key} moved without need");
            }
        }
    }

    #[test]
    fn the_hash_is_the_same_in_every_version() {
        // Published test vectors of FNV-1a; the first output of SplitMix64 from 0 is the mix of its increment.
        assert_eq!(fnv(FNV_OFFSET, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(FNV_OFFSET, b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv(FNV_OFFSET, b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn a_custom_policy_learns_who_is_near_and_how_busy() {
        #[derive(Debug)]
        struct Near;
        impl Balance for Near {
            fn pick(&self, candidates: &[Candidate], key: Option<&[u8]>) -> usize {
                assert_eq!(key, Some(&b"k"[..]));
                candidates.iter().position(|one| one.local && one.load == 2).unwrap()
            }
        }
        let mut group = group("g", 3);
        group.members[2].local = true;
        let policy = Policy::Custom(Arc::new(Near));
        assert_eq!(Turns::default().pick(&policy, &group, |at| at, Some(b"k"), &mut dice(0)), 2);
    }

    #[test]
    fn turns_of_groups_that_went_are_dropped() {
        let (mut turns, one, two) = (Turns::default(), group("one", 2), group("two", 2));
        for group in [&one, &two] {
            spread(&mut turns, &Policy::RoundRobin, group, 1);
        }
        turns.keep_up(1, &[one.clone(), two]);
        assert_eq!(turns.next.len(), 2);
        turns.keep_up(2, std::slice::from_ref(&one));
        assert!(turns.next.keys().eq([&one.key]));
    }

    #[test]
    fn policies_are_written_in_small_letters() {
        let names = ["round_robin", "random", "least_loaded", "local_first", "hash"];
        for (name, policy) in names.iter().zip(policies()) {
            assert_eq!(serde_json::to_value(&policy).unwrap(), *name);
            assert_eq!(serde_json::from_value::<Policy>((*name).into()).unwrap(), policy);
        }
        let custom = Policy::Custom(Arc::new(Counter::default()));
        assert!(serde_json::to_value(&custom).is_err() && serde_json::from_str::<Policy>("\"custom\"").is_err());
        assert!(custom == custom.clone() && custom != Policy::Custom(Arc::new(Counter::default())));
    }
}
