//! Bounded queues: what happens to messages that a receiver is too slow for, and that nobody else notices.
//!
//! E-OUTBOX: a full queue drops the oldest and says so; one receiver's trouble does not stop sending to others.

use std::time::Duration;

use bytes::Bytes;
use meshd::{
    Codec, DropReason, ListenOptions, Node, Overflow, Publisher, SendOptions, SendReport, Subscription, Target,
};

use crate::cluster::{Cluster, PATIENCE, end, listened_by, next, now, to_the_end, until, within};

#[tokio::test(flavor = "multi_thread")]
async fn drop_oldest_keeps_the_newest_and_says_how_many_went() {
    // E-OUTBOX.
    let (sender, receiver, mut messages) = linked(small(Overflow::DropOldest)).await;
    send_and_arrive(&sender, &receiver, 100).await;
    let first = next(&mut messages).await;
    assert_eq!((first.seq, first.lagged), (91, 90));
    for seq in 92..=100 {
        let message = next(&mut messages).await;
        assert_eq!((message.seq, message.lagged), (seq, 0));
    }
    assert_eq!(messages.try_next(), None);
    assert_eq!(receiver.status().await.unwrap().counts.dropped, 90);
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_newest_keeps_the_oldest_and_says_how_many_went() {
    let (sender, receiver, mut messages) = linked(small(Overflow::DropNewest)).await;
    send_and_arrive(&sender, &receiver, 100).await;
    for seq in 1..=10 {
        let message = next(&mut messages).await;
        assert_eq!((message.seq, message.lagged), (seq, 0));
    }
    assert_eq!(messages.try_next(), None);
    sender.send(&()).await.unwrap();
    let message = next(&mut messages).await;
    assert_eq!((message.seq, message.lagged), (101, 90));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_count_as_messages_do() {
    let options =
        ListenOptions { messages: 1000, bytes: 100_000, overflow: Overflow::DropOldest, ..ListenOptions::default() };
    let (sender, receiver, mut messages) = linked(options).await;
    for _ in 0..5 {
        sender.send_bytes(vec![1; 40_000]).await.unwrap();
    }
    until("all arrived", async || receiver.status().await.unwrap().counts.received == 5).await;
    assert_eq!((next(&mut messages).await.lagged, next(&mut messages).await.seq), (3, 5));
    // One message is always taken, however large.
    sender.send_bytes(vec![1; 200_000]).await.unwrap();
    assert_eq!(next(&mut messages).await.payload.len(), 200_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_waits_for_a_subscription_that_blocks_and_then_says_so_and_nothing_is_lost() {
    let (sender, receiver, mut messages) = linked(small(Overflow::Block)).await;
    let timeout = Duration::from_millis(100);
    let mut sent = fill(&sender, timeout).await;
    // It stays so: each further send waits its time, and is dropped with the same reason.
    for _ in 0..3 {
        let began = now();
        assert_eq!(send_for(&sender, timeout).await, refused(&receiver));
        assert!(began.elapsed() >= timeout, "it waited {:?}", began.elapsed());
    }
    // What was reported as sent is all there, and nothing else.
    let mut got = 0;
    let mut last = 0;
    while got < sent {
        let message = next(&mut messages).await;
        assert!(message.lagged == 0 && message.seq > last);
        (got, last) = (got + 1, message.seq);
    }
    assert_eq!(messages.try_next(), None);
    // With room, it goes on; the numbers of what was dropped are missing.
    assert_eq!(send_for(&sender, PATIENCE).await.sent, 1);
    sent += 1;
    let message = next(&mut messages).await;
    assert_eq!((message.lagged, message.seq), (0, last + 5));
    assert_eq!(receiver.status().await.unwrap().counts.received, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_steady_but_slow_reader_that_blocks_gets_everything_at_its_own_pace() {
    // E-OUTBOX.
    let (sender, _receiver, mut messages) = linked(small(Overflow::Block)).await;
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        for _ in 0..500 {
            sent += send_for(&sender, PATIENCE).await.sent;
        }
        end(&sender).await;
        sent
    });
    for seq in 1..=500 {
        if seq % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await; // the pace of this reader
        }
        let message = next(&mut messages).await;
        assert_eq!((message.seq, message.lagged), (seq, 0));
    }
    assert_eq!(to_the_end(&mut messages).await.len(), 0);
    assert_eq!(sending.await.unwrap(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_in_the_same_process_waits_for_a_subscription_that_blocks() {
    let node = Cluster::new().start("node").await;
    let reader = node.sibling("reader").await.unwrap();
    let mut messages = reader.listen_with("t", small(Overflow::Block)).await.unwrap();
    let topic = node.publisher("t").unwrap();
    assert_eq!(fill(&topic, Duration::from_millis(50)).await, 10, "exactly as many as it holds");
    assert_eq!(send_for(&topic, Duration::ZERO).await, refused(&reader));
    let waiting = tokio::spawn({
        let topic = topic.clone();
        async move { send_for(&topic, PATIENCE).await }
    });
    for seq in 1..=10 {
        assert_eq!(next(&mut messages).await.seq, seq);
    }
    assert_eq!(within("there is room", waiting).await.unwrap().sent, 1);
    assert_eq!(next(&mut messages).await.seq, 13);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_blocks_holds_up_neither_other_nodes_nor_other_topics() {
    // E-OUTBOX: nor does one that blocks on purpose.
    let cluster = Cluster::new();
    let [sender, near, far] = cluster.start_all(["sender", "near", "far"]).await;
    let slow = near.sibling("slow").await.unwrap();
    let mut stuck = slow.listen_with("t", small(Overflow::Block)).await.unwrap();
    let mut fast = [near.listen("t").await.unwrap(), far.listen("t").await.unwrap()];
    let mut other = near.listen("u").await.unwrap();
    let (t, u) = (sender.publisher("t").unwrap(), sender.publisher("u").unwrap());
    listened_by(&t, 3).await;
    listened_by(&u, 1).await;
    let mut seq = 0;
    loop {
        let options = SendOptions {
            target: Target::EachGroup,
            timeout: Some(Duration::from_millis(50)),
            ..SendOptions::default()
        };
        let report = t.publish(Codec::Bytes, Bytes::new(), &options).await.unwrap();
        seq += 1;
        for messages in &mut fast {
            assert_eq!(next(messages).await.seq, seq);
        }
        if report.dropped == refused(&slow).dropped {
            assert_eq!((report.matched, report.sent), (3, 2));
            break;
        }
        assert_eq!(report.sent, 3);
    }
    // While one send waits for the slow one, the fast ones have that message already, and other topics go on.
    let waiting = tokio::spawn({
        let t = t.clone();
        async move { send_for(&t, PATIENCE).await }
    });
    for messages in &mut fast {
        assert_eq!(next(messages).await.seq, seq + 1);
    }
    for number in 1..=500 {
        assert_eq!(u.send(&number).await.unwrap().sent, 1);
        assert_eq!(next(&mut other).await.seq, number);
    }
    assert!(!waiting.is_finished(), "the slow one still has its message to come");
    while !waiting.is_finished() {
        next(&mut stuck).await;
    }
    assert_eq!(waiting.await.unwrap().sent, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscription_that_drops_holds_up_nobody_at_all() {
    // Q-API: E-OUTBOX: a slow consumer never blocks other topics.
    let cluster = Cluster::new();
    let [sender, near, far] = cluster.start_all(["sender", "near", "far"]).await;
    let slow = near.sibling("slow").await.unwrap();
    let mut stuck = slow.listen_with("t", small(Overflow::DropOldest)).await.unwrap();
    let room = ListenOptions { messages: 20_000, ..ListenOptions::default() };
    let mut fast = [near.listen_with("t", room).await.unwrap(), far.listen_with("t", room).await.unwrap()];
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 3).await;
    for _ in 0..10_000 {
        let report = send_for(&topic, PATIENCE).await;
        assert_eq!((report.matched, report.sent), (3, 3));
    }
    end(&topic).await;
    for messages in &mut fast {
        let got = to_the_end(messages).await;
        assert!(got.len() == 10_000 && got.iter().all(|message| message.lagged == 0));
    }
    // What the slow one missed and what it has make up the whole.
    until("the end has come", async || near.status().await.unwrap().counts.received == 10_001).await;
    let lagged = next(&mut stuck).await;
    assert_eq!(lagged.lagged + 1 + to_the_end(&mut stuck).await.len() as u64, 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_bounded_under_a_flood_and_every_message_is_accounted_for() {
    // E-OUTBOX.
    const FLOOD: u64 = 50_000;
    let options = ListenOptions { messages: 100, ..ListenOptions::default() };
    let (sender, receiver, mut messages) = linked(options).await;
    let reading = tokio::spawn(async move {
        let (mut got, mut lagged) = (0, 0);
        loop {
            let message = next(&mut messages).await;
            lagged += message.lagged;
            if message.codec == Codec::Text {
                return (got, lagged);
            }
            got += 1;
            if got % 50 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await; // the pace of this reader
            }
        }
    });
    for _ in 0..FLOOD {
        assert_eq!(send_for(&sender, PATIENCE).await.sent, 1);
    }
    end(&sender).await;
    let (got, lagged) = within("the end comes", reading).await.unwrap();
    assert_eq!(got + lagged, FLOOD);
    assert_eq!(receiver.status().await.unwrap().counts.dropped, lagged);
    println!("{got} read, {lagged} dropped and told");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_subscription_ends_the_listening_and_frees_who_waits_for_it() {
    let (sender, receiver, messages) = linked(small(Overflow::Block)).await;
    fill(&sender, Duration::from_millis(50)).await;
    let waiting = tokio::spawn({
        let sender = sender.clone();
        async move { send_for(&sender, PATIENCE).await }
    });
    until("a send waits", async || sender.try_send(vec![]).unwrap().is_none()).await;
    drop(messages);
    within("the waiting send ends", waiting).await.unwrap();
    until("nobody listens", async || !sender.has_listeners()).await;
    assert_eq!(sender.send(&1).await.unwrap(), SendReport::default());
    // Whoever listens next is not paused.
    let mut messages = receiver.listen("t").await.unwrap();
    listened_by(&sender, 1).await;
    assert_eq!(send_for(&sender, PATIENCE).await.sent, 1);
    next(&mut messages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_equal_subscriptions_of_a_node_can_end() {
    let cluster = Cluster::new();
    let [sender, receiver] = cluster.start_all(["sender", "receiver"]).await;
    let (first, mut second) = (receiver.listen("t").await.unwrap(), receiver.listen("t").await.unwrap());
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 1).await;
    let filters = |node: &Node| node.nodes().iter().map(|node| node.filters.len()).sum::<usize>();
    drop(first);
    until("one filter is left", async || filters(&receiver) == 1 && filters(&sender) == 1).await;
    assert_eq!(topic.send(&1).await.unwrap().sent, 1);
    assert_eq!(next(&mut second).await.seq, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn try_send_never_waits() {
    let (sender, receiver, mut messages) = linked(small(Overflow::Block)).await;
    fill(&sender, Duration::from_millis(50)).await;
    let began = now();
    for _ in 0..100 {
        assert_eq!(sender.try_send(vec![1]).unwrap(), Some(refused(&receiver)));
    }
    assert!(began.elapsed() < Duration::from_secs(1), "100 took {:?}", began.elapsed());
    // Behind a send that waits, it does not overtake.
    let waiting = tokio::spawn({
        let sender = sender.clone();
        async move { send_for(&sender, PATIENCE).await }
    });
    until("a send waits", async || sender.try_send(vec![1]).unwrap().is_none()).await;
    while !waiting.is_finished() {
        next(&mut messages).await;
    }
    assert_eq!(waiting.await.unwrap().sent, 1);
    assert_eq!(sender.try_send(vec![1]).unwrap().unwrap().sent, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_is_given_up_while_it_waits_leaves_the_others_in_order() {
    let (sender, _receiver, mut messages) = linked(small(Overflow::Block)).await;
    let sent = fill(&sender, Duration::from_millis(50)).await;
    let given_up = tokio::time::timeout(Duration::from_millis(50), send_for(&sender, PATIENCE)).await;
    assert!(given_up.is_err());
    let waiting = tokio::spawn({
        let sender = sender.clone();
        async move { send_for(&sender, PATIENCE).await }
    });
    for _ in 0..sent {
        next(&mut messages).await;
    }
    assert_eq!(waiting.await.unwrap().sent, 1);
    assert_eq!(next(&mut messages).await.seq, sent + 3, "one was refused, one given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_a_stream_that_ends_with_the_mesh() {
    let (sender, receiver, mut messages) = linked(ListenOptions::default()).await;
    sender.send(&1).await.unwrap();
    until("it arrived", async || receiver.status().await.unwrap().counts.received == 1).await;
    receiver.shutdown().await;
    let stream = &mut messages;
    let all = within("the stream ends", futures::StreamExt::collect::<Vec<_>>(stream)).await;
    assert_eq!(all.len(), 1, "what had arrived can still be read");
    assert_eq!(messages.next().await, None);
}

/// A sender on the topic `t` and a subscription to it at another peer.
async fn linked(options: ListenOptions) -> (Publisher, Node, Subscription) {
    let cluster = Cluster::new();
    let [sender, receiver] = cluster.start_all(["sender", "receiver"]).await;
    let messages = receiver.listen_with("t", options).await.unwrap();
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 1).await;
    (topic, receiver, messages)
}

/// Sends until the subscription blocks; how many it took.
async fn fill(sender: &Publisher, timeout: Duration) -> u64 {
    let mut sent = 0;
    loop {
        match &send_for(sender, timeout).await.dropped[..] {
            [] => sent += 1,
            [(_, DropReason::SubscriptionFull)] => return sent,
            other => panic!("{other:?}"),
        }
    }
}

async fn send_and_arrive(sender: &Publisher, receiver: &Node, count: u64) {
    for _ in 0..count {
        assert_eq!(sender.send(&()).await.unwrap().sent, 1);
    }
    until("all arrived", async || receiver.status().await.unwrap().counts.received == count).await;
}

async fn send_for(sender: &Publisher, timeout: Duration) -> SendReport {
    let options = SendOptions { target: Target::EachGroup, timeout: Some(timeout), ..SendOptions::default() };
    sender.publish(Codec::Bytes, Bytes::new(), &options).await.unwrap()
}

fn refused(node: &Node) -> SendReport {
    SendReport {
        matched: 1,
        sent: 0,
        dropped: vec![(node.id(), DropReason::SubscriptionFull)],
        ..SendReport::default()
    }
}

fn small(overflow: Overflow) -> ListenOptions {
    ListenOptions { messages: 10, bytes: 1 << 20, overflow, ..ListenOptions::default() }
}
