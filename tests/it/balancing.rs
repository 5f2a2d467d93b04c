//! Who of a group gets a message: policies, grouping, rules.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use meshd::{
    Balance, Candidate, Codec, GroupBy, Node, NodeId, Policy, Publisher, SendOptions, StartError, Subscription, Target,
};
use tempfile::TempDir;

use crate::cluster::{Cluster, MESH, end, listened_by, to_the_end, until};

/// E-LB. What every policy keeps to between peers: each group gets each message once, and nobody starves.
#[tokio::test(flavor = "multi_thread")]
async fn every_policy_gives_each_group_each_message_once() {
    let policies = [
        (Policy::RoundRobin, true),
        (Policy::Random, false),
        (Policy::LeastLoaded, false), // even only while no queue grows
        (Policy::LocalFirst, true),   // all are on this machine
        (Policy::Hash, false),
        (Policy::Custom(Arc::new(Alternate::default())), false), // one count for both groups
    ];
    let cluster = Cluster::new();
    let nodes = cluster.start_all(["sender", "a", "a", "b", "b"]).await;
    for (number, (policy, even)) in policies.iter().enumerate() {
        let topic = format!("jobs/{number}");
        let mut listeners = listen(&nodes[1..], &topic).await;
        let jobs = nodes[0].publisher(&topic).unwrap().with_policy(policy.clone(), GroupBy::Name);
        listened_by(&jobs, 4).await;
        for key in 0..MESSAGES {
            assert_eq!(send(&jobs, key).await, 2, "{policy:?}");
        }
        end(&jobs).await;
        let mut shares = Vec::new();
        for listener in &mut listeners {
            shares.push(keys(listener).await);
        }
        for group in shares.chunks(2) {
            let (one, other) = (group[0].len(), group[1].len());
            assert!(one > 0 && other > 0 && one + other == MESSAGES as usize, "{policy:?}: {one} and {other}");
            assert!(!even || one == other, "{policy:?}: {one} and {other}");
            assert!(group[0].is_disjoint(&group[1]), "{policy:?}: each message once");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_goes_to_one_node_from_every_sender_and_moves_only_with_it() {
    let cluster = Cluster::new();
    let [one, two, a, b, c] = cluster.start_all(["one", "two", "worker", "worker", "worker"]).await;
    let mut listeners = listen(&[a.clone(), b, c], "jobs").await;
    let senders = [&one, &two].map(|node| node.publisher("jobs").unwrap().with_policy(Policy::Hash, GroupBy::Name));
    for sender in &senders {
        listened_by(sender, 3).await;
        for key in 0..MESSAGES {
            assert_eq!(send(sender, key).await, 1);
        }
    }
    let before = owners(&senders[0], &senders[1], &mut listeners).await;
    let sizes: HashSet<NodeId> = before.values().copied().collect();
    assert_eq!((before.len(), sizes.len()), (MESSAGES as usize, 3));
    let gone = a.id();
    listeners.retain(|listener| listener.0.id() != gone);
    a.shutdown().await;
    for sender in &senders {
        until("it is gone", async || sender.listeners() == 2).await;
        for key in 0..MESSAGES {
            assert_eq!(send(sender, key).await, 1);
        }
    }
    let after = owners(&senders[0], &senders[1], &mut listeners).await;
    for (key, owner) in before {
        assert!(after[&key] == owner || owner == gone, "key {key} moved without need");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_ones_own_is_told_who_there_is() {
    /// Always the last, and what it was asked.
    #[derive(Debug, Default)]
    struct Last(Mutex<Vec<(Vec<Candidate>, Option<Bytes>)>>);
    impl Balance for Last {
        fn pick(&self, candidates: &[Candidate], key: Option<&[u8]>) -> usize {
            self.0.lock().unwrap().push((candidates.to_vec(), key.map(Bytes::copy_from_slice)));
            candidates.len() - 1
        }
    }
    let cluster = Cluster::new();
    let nodes = cluster.start_all(["sender", "worker", "worker"]).await;
    let mut listeners = listen(&nodes[1..], "jobs").await;
    let last = Arc::new(Last::default());
    let jobs = nodes[0].publisher("jobs").unwrap();
    let jobs = jobs.with_policy(Policy::Custom(Arc::<Last>::clone(&last)), GroupBy::Name);
    listened_by(&jobs, 2).await;
    for key in 0..10 {
        assert_eq!(send(&jobs, key).await, 1);
    }
    jobs.send_bytes("no key").await.unwrap();
    end(&jobs).await;
    let mut ids: Vec<NodeId> = nodes[1..].iter().map(Node::id).collect();
    ids.sort_unstable();
    for (node, listener) in &mut listeners {
        assert_eq!(to_the_end(listener).await.len(), if node.id() == ids[1] { 11 } else { 0 });
    }
    let asked = last.0.lock().unwrap();
    assert_eq!(asked.len(), 11);
    for (number, (candidates, key)) in (0u32..).zip(asked.iter()) {
        assert!(
            candidates.iter().map(|one| one.node).eq(ids.iter().copied()) && candidates.iter().all(|one| one.local)
        );
        assert_eq!(*key, (number < 10).then(|| Bytes::copy_from_slice(&number.to_be_bytes())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_can_be_a_group_and_targets_still_name_groups_of_a_name() {
    // E-LB.
    let cluster = Cluster::new();
    let nodes = cluster.start_all(["sender", "a", "a", "b"]).await; // one machine
    let mut listeners = listen(&nodes[1..], "news").await;
    let by_name = nodes[0].publisher("news").unwrap();
    let by_host = by_name.with_policy(Policy::RoundRobin, GroupBy::Host);
    let by_both = by_name.with_policy(Policy::RoundRobin, GroupBy::NameAndHost);
    listened_by(&by_host, 3).await;
    let target = |target| SendOptions { target, ..SendOptions::default() };
    let publish = async |publisher: &Publisher, options| {
        let payload = Bytes::from_static(b"x");
        publisher.publish(Codec::Bytes, payload, &options).await.unwrap().matched
    };
    for _ in 0..30 {
        assert_eq!(publish(&by_host, target(Target::EachGroup)).await, 1);
    }
    for (publisher, each_group) in [(&by_name, 2), (&by_host, 1), (&by_both, 2)] {
        assert_eq!(publish(publisher, target(Target::EachGroup)).await, each_group);
        assert_eq!(publish(publisher, target(Target::Group("a".try_into().unwrap()))).await, 1);
        assert_eq!(publish(publisher, target(Target::Group("sender".try_into().unwrap()))).await, 0);
        assert_eq!(publish(publisher, target(Target::All)).await, 3);
        assert_eq!(publisher.listeners(), 3);
    }
    end(&by_host).await;
    let mut seqs = HashSet::new();
    for (_, listener) in &mut listeners {
        let messages = to_the_end(listener).await;
        // The machine's turns: 10 each of the 30.
        assert_eq!(messages.iter().filter(|message| message.seq <= 30).count(), 10);
        // However the sender balances, its messages are one sequence.
        assert!(messages.is_sorted_by(|one, next| one.seq < next.seq));
        seqs.extend(messages.iter().map(|message| message.seq));
    }
    // Nobody got those for a group that does not listen.
    let unheard: Vec<u64> = (1..=42).filter(|seq| !seqs.contains(seq)).collect();
    assert_eq!((unheard, seqs.len()), (vec![33, 37, 41], 39));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_come_from_the_settings_and_the_programs_own_come_first() {
    // E-LB.
    let cluster = Cluster::new();
    let home = TempDir::new().unwrap();
    let folder = home.path().join(MESH);
    fs::DirBuilder::new().mode(0o700).create(&folder).unwrap();
    let rules = "[[balance]]\ntopic = \"jobs/**\"\npolicy = \"hash\"\n[[balance]]\ntopic = \"**\"\npolicy = \"random\"\n\
                 group_by = \"host\"\n";
    fs::write(folder.join("config.toml"), rules).unwrap();
    let builder = cluster.builder("sender").home(home.path());
    let sender = builder.balance_topics("jobs/own", Policy::RoundRobin, GroupBy::Host).start().await.unwrap();
    let nodes = [cluster.start("a").await, cluster.start("a").await, cluster.start("b").await];
    let mut listeners = listen(&nodes, "**").await;
    // The topic; how many get each message; whether a key stays with one node.
    for (topic, groups, sticky) in [("jobs/x", 2, true), ("jobs/own", 1, false), ("other", 1, false)] {
        let publisher = sender.publisher(topic).unwrap();
        listened_by(&publisher, 3).await;
        for _ in 0..100 {
            assert_eq!(send(&publisher, 7).await, groups, "{topic}");
        }
        end(&publisher).await;
        let mut shares = Vec::new();
        for (_, listener) in &mut listeners {
            shares.push(to_the_end(listener).await.len());
        }
        assert_eq!(shares.iter().sum::<usize>(), groups * 100, "{topic}");
        assert_eq!(shares[..2].contains(&0), sticky, "{topic}: {shares:?}");
        assert!(topic != "jobs/own" || shares.iter().all(|share| (33..=34).contains(share)), "{topic}: {shares:?}");
    }
}

#[tokio::test]
async fn a_rule_for_no_topic_is_an_error_at_the_start() {
    let builder = Cluster::new().builder("node").balance_topics("a//b", Policy::Hash, GroupBy::Name);
    assert!(matches!(builder.start().await, Err(StartError::Name(_))));
    let builder = Cluster::new().builder("node").balance_service("", Policy::Hash);
    assert!(matches!(builder.start().await, Err(StartError::Name(_))));
}

/// Picks one after the other, out of range most of the time.
#[derive(Debug, Default)]
struct Alternate(Mutex<usize>);

impl Balance for Alternate {
    fn pick(&self, _: &[Candidate], key: Option<&[u8]>) -> usize {
        let mut picks = self.0.lock().unwrap();
        *picks += 1;
        *picks / 2 + key.map_or(0, <[u8]>::len)
    }
}

async fn listen(nodes: &[Node], filter: &str) -> Vec<(Node, Subscription)> {
    let mut listeners = Vec::new();
    for node in nodes {
        let subscription = node.listen(filter).await.unwrap();
        listeners.push((node.clone(), subscription));
    }
    listeners
}

/// Sends a number under itself as the key. Gives how many it was sent to.
async fn send(publisher: &Publisher, key: u32) -> usize {
    let payload = Bytes::copy_from_slice(&key.to_be_bytes());
    let options = SendOptions::default().key(payload.clone());
    publisher.publish(Codec::Bytes, payload, &options).await.unwrap().sent
}

/// The numbers that came to a listener, each once.
async fn keys((_, listener): &mut (Node, Subscription)) -> HashSet<u32> {
    let messages = to_the_end(listener).await;
    assert!(messages.iter().all(|message| message.lagged == 0));
    let keys: HashSet<u32> =
        messages.iter().map(|one| u32::from_be_bytes(one.payload[..].try_into().unwrap())).collect();
    assert_eq!(keys.len(), messages.len(), "each message once");
    keys
}

/// To whom each number of both senders went, which is the same for both.
async fn owners(one: &Publisher, two: &Publisher, listeners: &mut [(Node, Subscription)]) -> HashMap<u32, NodeId> {
    let mut owners = HashMap::new();
    for sender in [one, two] {
        end(sender).await;
    }
    for (node, listener) in listeners {
        // Two ends come, in between messages of the other sender.
        let mut messages = to_the_end(listener).await;
        messages.extend(to_the_end(listener).await);
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for message in messages {
            *counts.entry(u32::from_be_bytes(message.payload[..].try_into().unwrap())).or_default() += 1;
        }
        for (key, count) in counts {
            assert_eq!(count, 2, "key {key}: both senders chose {:?}", node.id());
            owners.insert(key, node.id());
        }
    }
    owners
}

const MESSAGES: u32 = 500;
