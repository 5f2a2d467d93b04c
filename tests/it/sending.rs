//! Topics: groups, targets, reports, order.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use meshd::config::Config;
use meshd::{Codec, ListenOptions, Message, Node, Overflow, Publisher, SendError, SendOptions, SendReport, Target};

use crate::cluster::{Cluster, MESH, PATIENCE, end, listened_by, next, now, to_the_end, until, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_reaches_a_listener_of_another_peer() {
    let cluster = Cluster::new();
    let [viewer, camera] = cluster.start_all(["viewer", "camera"]).await;
    let mut frames = viewer.listen("frames/*").await.unwrap();
    let left = camera.publisher("frames/left").unwrap();
    listened_by(&left, 1).await;
    assert_eq!(left.send(&("frame", 7)).await.unwrap(), sent(1));
    let message = next(&mut frames).await;
    assert_eq!(message.decode::<(String, u8)>().unwrap(), ("frame".to_owned(), 7));
    assert_eq!((message.topic.as_str(), message.from_name.as_str(), message.seq), ("frames/left", "camera", 1));
    assert_eq!((message.from, message.lagged), (camera.id(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_topic_keeps_its_order_however_large_its_messages_are() {
    let cluster = Cluster::new();
    let [viewer, camera] = cluster.start_all(["viewer", "camera"]).await;
    let sizes = [4, 100_000, 65_536, 65_537, 4, 5 << 20, 70_000, 4];
    let mut sending = Vec::new();
    for topic in ["a", "b", "c"] {
        let messages = viewer.listen(topic).await.unwrap();
        let publisher = camera.publisher(topic).unwrap();
        listened_by(&publisher, 1).await;
        let send = tokio::spawn(async move {
            for n in 0..40u32 {
                let mut payload = vec![n as u8; sizes[n as usize % sizes.len()]];
                payload[..4].copy_from_slice(&n.to_be_bytes());
                let patient = SendOptions { timeout: Some(PATIENCE), ..SendOptions::default() };
                let report = publisher.publish(Codec::Bytes, payload.into(), &patient);
                assert_eq!(within("room", report).await.unwrap(), sent(1));
            }
        });
        sending.push((messages, send));
    }
    for (mut messages, send) in sending {
        for n in 0..40u32 {
            let payload = next(&mut messages).await.payload;
            assert_eq!((&payload[..4], payload.len()), (&n.to_be_bytes()[..], sizes[n as usize % sizes.len()]));
            assert!(payload[4..].iter().all(|byte| *byte == n as u8));
        }
        send.await.unwrap();
    }
}

// E-LB, with fairness for k groups of n nodes. The systems that count per topic give one node of two groups of two all
// messages; those that count over all topics pin each of two topics to one node.

#[tokio::test(flavor = "multi_thread")]
async fn each_group_gets_each_message_once_and_its_nodes_share_them() {
    // E-LB.
    for size in [1, 2, 3, 5] {
        check_shares(&[("workers", size)], &["jobs"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_do_not_disturb_each_others_turns() {
    // E-LB.
    check_shares(&[("a", 2), ("b", 2)], &["jobs"]).await;
    check_shares(&[("a", 1), ("b", 2), ("c", 3)], &["jobs"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_sent_alternately_do_not_disturb_each_others_turns() {
    // E-LB.
    check_shares(&[("workers", 2)], &["jobs/small", "jobs/large"]).await;
}

/// Sends 1000 messages on each topic, in turn, to groups of so many nodes, each in a peer of its own.
async fn check_shares(groups: &[(&str, usize)], topics: &[&str]) {
    let cluster = Cluster::new();
    let sender = cluster.start("sender").await;
    let mut listeners = Vec::new();
    for name in groups.iter().flat_map(|(name, size)| std::iter::repeat_n(*name, *size)) {
        let node = cluster.start(name).await;
        for topic in topics {
            listeners.push((name, *topic, node.listen(topic).await.unwrap()));
        }
    }
    let publishers: Vec<Publisher> = topics.iter().map(|topic| sender.publisher(topic).unwrap()).collect();
    for publisher in &publishers {
        listened_by(publisher, listeners.len() / topics.len()).await;
    }
    for number in 0..MESSAGES {
        for publisher in &publishers {
            assert_eq!(publisher.send(&number).await.unwrap(), sent(groups.len()));
        }
    }
    for publisher in &publishers {
        end(publisher).await;
    }
    let mut shares: HashMap<(&str, &str), Vec<Vec<u32>>> = HashMap::new();
    for (name, topic, listener) in &mut listeners {
        let messages = to_the_end(listener).await;
        assert!(messages.iter().all(|message| message.lagged == 0 && message.topic.as_str() == *topic));
        shares.entry((name, topic)).or_default().push(messages.iter().map(number).collect());
    }
    for ((name, topic), shares) in shares {
        let sizes: Vec<usize> = shares.iter().map(Vec::len).collect();
        assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{groups:?} {name} {topic}: {sizes:?}");
        let mut all = shares.concat();
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..MESSAGES), "{groups:?} {name} {topic}: each message once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_process_and_of_others_are_one_group() {
    let cluster = Cluster::new();
    let [sender, other] = cluster.start_all(["sender", "workers"]).await;
    let near = [sender.sibling("workers").await.unwrap(), sender.sibling("workers").await.unwrap()];
    let far = [other.clone(), other.sibling("workers").await.unwrap()];
    let mut listeners = Vec::new();
    for node in near.iter().chain(&far) {
        listeners.push(node.listen("jobs").await.unwrap());
    }
    let jobs = sender.publisher("jobs").unwrap();
    listened_by(&jobs, 4).await;
    for number in 0..MESSAGES {
        assert_eq!(jobs.send(&number).await.unwrap(), sent(1));
    }
    end(&jobs).await;
    let mut all = Vec::new();
    for listener in &mut listeners {
        let share: Vec<u32> = to_the_end(listener).await.iter().map(number).collect();
        assert_eq!(share.len(), MESSAGES as usize / 4);
        all.extend(share);
    }
    all.sort_unstable();
    assert!(all.into_iter().eq(0..MESSAGES));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_hears_itself_and_its_siblings_without_any_network() {
    // E-CONN: what a node sends to itself needs no connection.
    let node = Cluster::new().start("alone").await;
    let sibling = node.sibling("sibling").await.unwrap();
    let (mut own, mut others) = (node.listen("t/**").await.unwrap(), sibling.listen("t/*").await.unwrap());
    assert_eq!(node.send("t/a", "hello").await.unwrap(), sent(2));
    assert_eq!(sibling.send("t", "hello").await.unwrap(), sent(1));
    assert_eq!(next(&mut own).await.topic.as_str(), "t/a");
    let (second, other) = (next(&mut own).await, next(&mut others).await);
    assert_eq!((second.topic.as_str(), second.from, second.seq), ("t", sibling.id(), 1));
    assert_eq!((other.from, other.decode::<String>().unwrap()), (node.id(), "hello".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_narrows_down_who_gets_a_message() {
    // E-LB: all, one, one of a group.
    let cluster = Cluster::new();
    let [sender, a, b] = cluster.start_all(["sender", "a", "b"]).await;
    let a2 = a.sibling("a").await.unwrap();
    let mut listeners = [
        (a.id(), a.listen("t").await.unwrap()),
        (a2.id(), a2.listen("*").await.unwrap()),
        (b.id(), b.listen("**").await.unwrap()),
    ];
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 3).await;
    let targets = [
        (Target::All, 3),
        (Target::Node(a2.id()), 1),
        (Target::Group("b".try_into().unwrap()), 1),
        (Target::Group("a".try_into().unwrap()), 1),
        (Target::Group("a".try_into().unwrap()), 1),
        (Target::Node(sender.id()), 0),
        (Target::Group("nobody".try_into().unwrap()), 0),
        (Target::EachGroup, 2),
    ];
    for (number, (target, matched)) in (0u32..).zip(&targets) {
        let options = SendOptions { target: target.clone(), timeout: None, ..SendOptions::default() };
        let report = topic.publish(Codec::Bytes, number.to_be_bytes().to_vec().into(), &options).await.unwrap();
        assert_eq!(report, sent(*matched), "{target:?}");
    }
    end(&topic).await;
    let mut got = HashMap::new();
    for (id, listener) in &mut listeners {
        let messages = to_the_end(listener).await;
        let numbers = messages.iter().map(|message| u32::from_be_bytes(message.payload[..].try_into().unwrap()));
        got.insert(*id, numbers.collect::<Vec<_>>());
    }
    assert_eq!(got[&b.id()], [0, 2, 7]);
    let (first, second) = (&got[&a.id()], &got[&a2.id()]);
    assert!(first.contains(&0) && second.contains(&0) && second.contains(&1) && !first.contains(&1));
    for number in [3, 4, 7] {
        assert!(first.contains(&number) != second.contains(&number), "one of the group got {number}");
    }
    assert!(first.contains(&3) != first.contains(&4), "the group takes turns");
}

#[tokio::test(flavor = "multi_thread")]
async fn wildcards_select_topics_at_other_peers() {
    let cluster = Cluster::new();
    let [sender, listener] = cluster.start_all(["sender", "listener"]).await;
    let filters = ["a/b", "a/*", "a/**", "**/c", "*/b/*", "other"];
    let mut subscriptions = Vec::new();
    for filter in filters {
        let node = listener.sibling(filter).await.unwrap(); // a group each
        let subscription = node.listen(filter).await.unwrap();
        subscriptions.push((filter, subscription));
    }
    let topics = ["a", "a/b", "a/b/c", "c", "x/b/y", "d"];
    listened_by(&sender.publisher("other").unwrap(), 1).await;
    let matched = [1, 3, 3, 1, 1, 0];
    for (topic, matched) in topics.into_iter().zip(matched) {
        assert_eq!(sender.send(topic, topic).await.unwrap(), sent(matched), "{topic}");
    }
    let expected: [&[&str]; 6] =
        [&["a/b"], &["a/b"], &["a", "a/b", "a/b/c"], &["a/b/c", "c"], &["a/b/c", "x/b/y"], &[]];
    for ((filter, mut subscription), expected) in subscriptions.into_iter().zip(expected) {
        for topic in expected {
            assert_eq!(next(&mut subscription).await.topic.as_str(), *topic, "{filter}");
        }
        assert_eq!(subscription.try_next(), None, "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_filters_of_one_node_are_one_receiver_and_each_subscription_gets_the_message() {
    let cluster = Cluster::new();
    let [sender, listener] = cluster.start_all(["sender", "listener"]).await;
    let (mut exact, mut wild) = (listener.listen("a/b").await.unwrap(), listener.listen("a/*").await.unwrap());
    let topic = sender.publisher("a/b").unwrap();
    until("both are known", async || sender.topics().len() == 2).await;
    assert_eq!(topic.send(&1).await.unwrap(), sent(1));
    assert_eq!((next(&mut exact).await.seq, next(&mut wild).await.seq), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn that_nobody_listens_is_said_and_costs_nothing() {
    // E-LB: of nobody, nobody is picked. E-NODE: has_listeners; a lazy send does not run its closure without listeners. E-TOPO: an unknown topic has nobody.
    let cluster = Cluster::new();
    let [sender, listener] = cluster.start_all(["sender", "listener"]).await;
    let topic = sender.publisher("t").unwrap();
    assert!(!topic.has_listeners());
    assert_eq!(topic.send(&1).await.unwrap(), sent(0));
    assert_eq!(topic.try_send(vec![1]).unwrap(), Some(sent(0)));
    let report = topic.send_with(|| -> u32 { panic!("nobody wants this") }).await.unwrap();
    assert_eq!(report, sent(0));
    let mut subscription = listener.listen("t").await.unwrap();
    listened_by(&topic, 1).await;
    assert_eq!(topic.send_with(|| 7).await.unwrap(), sent(1));
    assert_eq!(next(&mut subscription).await.decode::<u32>().unwrap(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_listeners_ends_when_they_are_there_or_when_time_is_up() {
    // Z-DISC: none before the start, one after; the timeout really times out; two, then one after either stops. E-NODE:
    // waiting for a listener.
    let cluster = Cluster::new();
    let [sender, a, b] = cluster.start_all(["sender", "a", "b"]).await;
    let topic = sender.publisher("t").unwrap();
    let began = now();
    assert_eq!(topic.wait_for_listeners(1, Duration::from_millis(100)).await, 0);
    assert!(began.elapsed() >= Duration::from_millis(100));
    assert_eq!(topic.wait_for_listeners(0, PATIENCE).await, 0);
    for last_first in [false, true] {
        let waiting = tokio::spawn({
            let topic = topic.clone();
            async move { topic.wait_for_listeners(2, PATIENCE).await }
        });
        let first = a.listen("t").await.unwrap();
        assert_eq!(topic.wait_for_listeners(1, PATIENCE).await, 1);
        assert_eq!(topic.wait_for_listeners(2, Duration::from_millis(50)).await, 1);
        let second = b.listen("*").await.unwrap();
        assert_eq!(within("both are there", waiting).await.unwrap(), 2);
        let (goes, stays) = if last_first { (second, first) } else { (first, second) };
        drop(goes);
        until("one has stopped", async || topic.listeners() == 1).await;
        drop(stays);
        until("both have stopped", async || topic.listeners() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_stages_works_only_while_somebody_wants_its_result() {
    // E-NODE: a stage listens upstream only while it is listened to.
    async fn stage(node: Node, from: &'static str, to: &'static str) {
        let downstream = node.publisher(to).unwrap();
        let mut upstream = downstream.while_listened(from);
        while let Ok(Some(message)) = upstream.next().await {
            downstream.send(&(message.decode::<u32>().unwrap() + 1)).await.unwrap();
        }
    }
    let cluster = Cluster::new();
    let [source, first, second, third, sink] = cluster.start_all(["source", "first", "second", "third", "sink"]).await;
    let stages = [
        tokio::spawn(stage(first, "raw", "a")),
        tokio::spawn(stage(second, "a", "b")),
        tokio::spawn(stage(third, "b", "c")),
    ];
    let raw = source.publisher("raw").unwrap();
    assert_eq!(raw.wait_for_listeners(1, Duration::from_millis(200)).await, 0, "nobody wants anything");
    for round in 0..2 {
        let mut results = sink.listen("c").await.unwrap();
        listened_by(&raw, 1).await;
        raw.send(&round).await.unwrap();
        assert_eq!(next(&mut results).await.decode::<u32>().unwrap(), round + 3);
        drop(results);
        until("the chain pauses", async || !raw.has_listeners()).await;
    }
    stages.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_numbered_per_sender_and_topic() {
    // E-NODE: a publisher does what its node does.
    let cluster = Cluster::new();
    let [sender, listener] = cluster.start_all(["sender", "listener"]).await;
    let sibling = sender.sibling("sibling").await.unwrap();
    let mut all = listener.listen("n/*").await.unwrap();
    listened_by(&sender.publisher("n/a").unwrap(), 1).await;
    let (a, also_a) = (sender.publisher("n/a").unwrap(), sender.publisher("n/a").unwrap());
    a.send(&0).await.unwrap();
    sender.send("n/a", &0).await.unwrap();
    sender.send("n/b", &0).await.unwrap();
    sibling.send("n/a", &0).await.unwrap();
    also_a.send(&0).await.unwrap();
    let mut got = Vec::new();
    for _ in 0..5 {
        let message = next(&mut all).await;
        got.push((message.from.index, message.topic.to_string(), message.seq));
    }
    let (us, sibling) = (sender.id().index, sibling.id().index);
    let expected = [(us, "n/a", 1), (us, "n/a", 2), (us, "n/b", 1), (sibling, "n/a", 1), (us, "n/a", 3)];
    assert_eq!(got, expected.map(|(from, topic, seq)| (from, topic.to_owned(), seq)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_several_nodes_of_a_peer_crosses_the_link_once() {
    let cluster = Cluster::new();
    let [sender, host] = cluster.start_all(["sender", "host"]).await;
    let mut listeners = Vec::new();
    for n in 0..50 {
        let node = host.sibling(format!("listener-{n}")).await.unwrap();
        listeners.push(node.listen("t").await.unwrap());
    }
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 50).await;
    let payload = Bytes::from(vec![7; 100_000]);
    assert_eq!(topic.send_bytes(payload.clone()).await.unwrap(), sent(50));
    for listener in &mut listeners {
        assert_eq!(next(listener).await.payload, payload);
    }
    assert_eq!(host.status().await.unwrap().counts.received, 1);
    assert_eq!(sender.status().await.unwrap().counts.sent, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_an_error_at_its_sender_and_one_at_the_limit_arrives() {
    let cluster = Cluster::new();
    let [sender, listener] = cluster.start_all(["sender", "listener"]).await;
    let mut messages = listener.listen("t").await.unwrap();
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 1).await;
    let max = Config::default().limits.message_bytes.get();
    let error = topic.send_bytes(vec![0; max + 1]).await.unwrap_err();
    assert!(matches!(error, SendError::TooLarge { len, max: limit } if len == max + 1 && limit == max), "{error}");
    assert!(matches!(topic.try_send(vec![0; max + 1]), Err(SendError::TooLarge { .. })));
    assert_eq!(topic.send_bytes(vec![5; max]).await.unwrap(), sent(1));
    // Read at once: it fills the subscription's queue, which drops it for the next one.
    let large = next(&mut messages).await;
    assert!(large.payload.len() == max && large.payload.iter().all(|byte| *byte == 5));
    assert_eq!(large.seq, 1, "what was refused has no number");
    assert_eq!(topic.send_bytes(vec![]).await.unwrap(), sent(1));
    assert_eq!(next(&mut messages).await.payload, Bytes::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_smaller_limit_holds_where_it_is_configured_and_does_not_cost_the_link() {
    let cluster = Cluster::new();
    let mut config = Config::default();
    config.limits.message_bytes = NonZeroUsize::new(1000).unwrap();
    config.discovery.mdns = false;
    config.runtime_dir = cluster.runtime();
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
    let small = Node::builder("small").mesh(MESH).key(cluster.key.clone()).config(config).start().await.unwrap();
    let large = cluster.start("large").await;
    let mut messages = small.listen("t").await.unwrap();
    let _heard = large.listen("t").await.unwrap();
    listened_by(&small.publisher("t").unwrap(), 2).await;
    assert!(matches!(small.send_bytes("t", vec![0; 1001]).await, Err(SendError::TooLarge { len: 1001, max: 1000 })));
    assert_eq!(small.send_bytes("t", vec![0; 1000]).await.unwrap(), sent(2));
    assert_eq!(next(&mut messages).await.payload.len(), 1000);
    // A peer that is allowed more sends more than this one takes: the message may be lost, but not the peer.
    let topic = large.publisher("t").unwrap();
    listened_by(&topic, 2).await;
    let to_small = SendOptions { target: Target::Node(small.id()), timeout: Some(PATIENCE), ..SendOptions::default() };
    let _ = topic.publish(Codec::Bytes, vec![0; 10_000].into(), &to_small).await.unwrap();
    until("a small message gets through again", async || {
        let report = topic.publish(Codec::Text, "small".into(), &to_small).await.unwrap();
        report.sent == 1 && tokio::time::timeout(Duration::from_millis(300), messages.next()).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_topics_are_errors_and_nothing_is_sent() {
    let node = Cluster::new().start("node").await;
    let _all = node.listen("**").await.unwrap();
    for bad in ["", "a//b", "/a", "a/", "a/*", "a\n", &"x".repeat(256)] {
        assert!(matches!(node.send(bad, &1).await, Err(SendError::Topic(_))), "{bad:?}");
        assert!(node.publisher(bad).is_err(), "{bad:?}");
    }
    assert_eq!(node.send(&"x".repeat(255), &1).await.unwrap(), sent(1));
    assert_eq!(node.status().await.unwrap().counts.sent, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_codec_arrives_as_it_was_sent() {
    // E-CODEC.
    let cluster = Cluster::new();
    let [sender, listener] = cluster.start_all(["sender", "listener"]).await;
    let mut messages = listener.listen("t").await.unwrap();
    listened_by(&sender.publisher("t").unwrap(), 1).await;
    sender.send("t", &[1, 2]).await.unwrap();
    sender.send_text("t", "grüße").await.unwrap();
    sender.send_bytes("t", vec![0xff, 0]).await.unwrap();
    sender.publish("t", Codec::Json, "{\"a\":1}".into(), &SendOptions::default()).await.unwrap();
    assert_eq!(next(&mut messages).await.decode::<[u8; 2]>().unwrap(), [1, 2]);
    let text = next(&mut messages).await;
    assert_eq!((text.codec, text.text()), (Codec::Text, Some("grüße")));
    let bytes = next(&mut messages).await;
    assert_eq!((bytes.codec, &bytes.payload[..], bytes.text()), (Codec::Bytes, &[0xff, 0][..], None));
    assert_eq!(next(&mut messages).await.decode::<HashMap<String, u8>>().unwrap()["a"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_arrive_in_order_and_exactly_once() {
    // Q-API: FIFO per sender, topic and receiver.
    const TOPICS: [&str; 3] = ["order/a", "order/b", "order/c"];
    let cluster = Cluster::new();
    let senders = cluster.start_all(["sender-1", "sender-2", "sender-3"]).await;
    let receivers = [cluster.start("receiver-1").await, cluster.start("receiver-2").await];
    let options = ListenOptions { overflow: Overflow::Block, ..ListenOptions::default() };
    let mut reading = Vec::new();
    for receiver in &receivers {
        let mut all = receiver.listen_with("order/*", options).await.unwrap();
        reading.push(tokio::spawn(async move {
            let mut last: HashMap<_, u32> = HashMap::new();
            for _ in 0..ORDERED as usize * 9 {
                let message = next(&mut all).await;
                assert_eq!(message.lagged, 0);
                let (number, from) = (u32::from_be_bytes(message.payload[..].try_into().unwrap()), message.from);
                let expected = last.entry((from, message.topic)).or_default();
                assert_eq!((number, message.seq), (*expected, u64::from(number) + 1), "from {from}");
                *expected += 1;
            }
            assert_eq!(all.try_next(), None);
        }));
    }
    let began = now();
    let mut sending = Vec::new();
    for (sender, topic) in senders.iter().flat_map(|sender| TOPICS.map(|topic| (sender, topic))) {
        let publisher = sender.publisher(topic).unwrap();
        sending.push(tokio::spawn(async move {
            listened_by(&publisher, 2).await;
            let options = SendOptions { target: Target::EachGroup, timeout: Some(PATIENCE), ..SendOptions::default() };
            for number in 0..ORDERED {
                let payload = Bytes::copy_from_slice(&number.to_be_bytes());
                assert_eq!(publisher.publish(Codec::Bytes, payload, &options).await.unwrap(), sent(2));
            }
        }));
    }
    for task in sending.into_iter().chain(reading) {
        task.await.unwrap();
    }
    println!("{} messages in {:?}", ORDERED * 9 * 2, began.elapsed());
}

fn number(message: &Message) -> u32 {
    message.decode().unwrap()
}

/// The report of a message that went to all it was for.
fn sent(to: usize) -> SendReport {
    SendReport { matched: to, sent: to, ..SendReport::default() }
}

/// Fewer than fit into a subscription's queue.
const MESSAGES: u32 = 1000;
/// From each sender on each topic to each receiver.
const ORDERED: u32 = 100_000;
