//! Delivery that can be relied on: acknowledged, sent again, handed on, limited in time, kept for who comes later.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use meshd::{
    Acknowledge, Codec, DropReason, ListenOptions, Message, Node, NodeId, Overflow, Publisher, Receipt, SendOptions,
    SendReport, Subscription,
};
use tokio::sync::mpsc;

use crate::cluster::{Cluster, PATIENCE, address, listened_by, next, now, see_each_other, stays, until, within};
use crate::daemon::Daemon;
use crate::proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_send_waits_until_the_message_is_taken() {
    let cluster = Cluster::new();
    let [sender, receiver] = cluster.start_all(["sender", "receiver"]).await;
    for (listener, from) in [(&receiver, &sender), (&receiver, &receiver)] {
        let mut messages = listener.listen("t").await.unwrap();
        let topic = from.publisher("t").unwrap();
        listened_by(&topic, 1).await;
        let mut receipt = submit(&topic, 7, &acked()).await;
        stays(Duration::from_millis(200), "nobody took it", async || (&mut receipt).now_or_never().is_none()).await;
        assert_eq!(number(&next(&mut messages).await), 7);
        assert_eq!(within("the report", receipt).await, taken(1));
        drop(messages);
        until("it listens no more", async || topic.listeners() == 0).await;
    }
    assert_eq!(publish(&sender.publisher("nobody").unwrap(), 1, &acked()).await, SendReport::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_several_nodes_of_a_peer_is_acknowledged_by_each_and_taken_if_any_subscription_takes_it() {
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let siblings = [here.sibling("b").await.unwrap(), there.sibling("c").await.unwrap()];
    let mut subscriptions = Vec::new();
    for node in [&here, &there].into_iter().chain(&siblings) {
        subscriptions.push((node.listen("t").await.unwrap(), node.listen("*").await.unwrap()));
    }
    let topic = here.publisher("t").unwrap();
    listened_by(&topic, 4).await;
    let mut receipt = submit(&topic, 1, &acked()).await;
    for (mut one, other) in subscriptions {
        assert!((&mut receipt).now_or_never().is_none(), "one has not taken it yet");
        drop(other); // hands its copy back, and the first still has its own
        assert_eq!(number(&next(&mut one).await), 1);
    }
    assert_eq!(within("the report", receipt).await, taken(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_acknowledged_sends_are_under_way_at_once_and_a_slow_worker_is_not_overrun() {
    // Q-API: the future of a send is resolved when the other side has the message.
    const SENDS: u32 = 3000; // three times what the subscription holds
    let cluster = Cluster::new();
    let [sender, receiver] = cluster.start_all(["sender", "receiver"]).await;
    let mut messages = receiver.listen("t").await.unwrap();
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 1).await;
    let (receipts, mut issued) = mpsc::channel(SENDS as usize);
    let sending = tokio::spawn(async move {
        for n in 0..SENDS {
            receipts.send(submit(&topic, n, &acked()).await).await.unwrap();
        }
    });
    stays(Duration::from_millis(300), "the sender waits", async || !sending.is_finished()).await;
    for n in 0..SENDS {
        let message = next(&mut messages).await;
        assert_eq!((number(&message), message.lagged), (n, 0));
    }
    while let Some(receipt) = issued.recv().await {
        assert_eq!(within("each is reported", receipt).await, taken(1));
    }
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_acknowledges_itself_hands_back_what_it_drops() {
    let cluster = Cluster::new();
    let [sender, receiver] = cluster.start_all(["sender", "receiver"]).await;
    for from in [&sender, &receiver] {
        let mut messages = receiver.listen_with("t", handled()).await.unwrap();
        let topic = from.publisher("t").unwrap();
        listened_by(&topic, 1).await;
        let handed_back = SendReport { dropped: vec![(receiver.id(), DropReason::HandedBack)], ..sent(1) };

        let mut receipt = submit(&topic, 1, &acked()).await;
        let message = next(&mut messages).await;
        stays(Duration::from_millis(100), "not handled yet", async || (&mut receipt).now_or_never().is_none()).await;
        let copy = message.clone();
        drop(message);
        copy.acknowledge();
        copy.acknowledge();
        assert_eq!(within("the report", receipt).await, taken(1));

        let receipt = submit(&topic, 2, &acked()).await;
        drop(next(&mut messages).await);
        assert_eq!(within("the report", receipt).await, handed_back);

        let receipt = submit(&topic, 3, &acked()).await;
        let message = next(&mut messages).await;
        let failed = tokio::spawn(async move { assert_eq!(number(&message), 0, "a program that fails") }).await;
        assert!(failed.is_err());
        assert_eq!(within("the report", receipt).await, handed_back);

        // What was queued and never looked at is handed back too.
        let receipt = submit(&topic, 4, &acked()).await;
        until("it is queued", async || receiver.status().await.unwrap().counts.received % 4 == 0).await;
        drop(messages);
        let report = within("the report", receipt).await;
        let why = &report.dropped[0].1;
        assert!(matches!(why, DropReason::HandedBack | DropReason::NotListening), "{report:?}");
        until("it listens no more", async || topic.listeners() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_to_many_is_settled_when_all_of_them_are_whatever_becomes_of_them() {
    // E-OUTBOX, Q-API: a broadcast is acknowledged when all peers have it; with one that is gone, it never was.
    let cluster = Cluster::new();
    let [sender, fast, slow, deaf] = cluster.start_all(["sender", "fast", "slow", "deaf"]).await;
    let mut quick = fast.listen("t").await.unwrap();
    let mut held = slow.listen("t").await.unwrap();
    let unread = deaf.listen("t").await.unwrap();
    let daemon = Daemon::with_key(&cluster.key, &address(&sender).await);
    let _listener = daemon.listener("t", "frozen");
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 4).await;
    let frozen = sender.nodes().iter().find(|node| node.name.as_str() == "frozen").unwrap().id;
    freeze(&daemon, &sender, frozen).await;
    let mut receipt = submit(&topic, 1, &acked()).await;
    next(&mut quick).await;
    until("it is queued", async || deaf.status().await.unwrap().counts.received == 1).await;
    drop(unread);
    drop(daemon); // killed
    stays(Duration::from_millis(200), "not all are settled", async || (&mut receipt).now_or_never().is_none()).await;
    next(&mut held).await;
    let mut report = within("the report", receipt).await;
    report.dropped.sort_unstable_by_key(|(_, why)| why.name());
    let dropped = vec![(frozen, DropReason::Gone), (deaf.id(), DropReason::HandedBack)];
    assert_eq!(report, SendReport { matched: 4, sent: 4, acknowledged: 2, dropped, ..SendReport::default() });

    // One that never answers: time is up.
    let options = SendOptions { timeout: Some(Duration::from_millis(300)), ..acked() };
    let mut silent = publish(&topic, 2, &options).await;
    let mut dropped = vec![(fast.id(), DropReason::NoAnswer), (slow.id(), DropReason::NoAnswer)];
    dropped.sort_unstable_by_key(|(node, _)| *node);
    silent.dropped.sort_unstable_by_key(|(node, _)| *node);
    assert_eq!(silent, SendReport { dropped, ..sent(2) });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_subscription_drops_is_reported() {
    let cluster = Cluster::new();
    let [sender, receiver] = cluster.start_all(["sender", "receiver"]).await;
    let topic = sender.publisher("t").unwrap();
    for (overflow, kept) in [(Overflow::DropOldest, [2, 3]), (Overflow::DropNewest, [0, 1])] {
        let options = ListenOptions { messages: 2, overflow, ..ListenOptions::default() };
        let mut messages = receiver.listen_with("t", options).await.unwrap();
        listened_by(&topic, 1).await;
        let mut receipts = Vec::new();
        for n in 0..4 {
            receipts.push(submit(&topic, n, &acked()).await);
        }
        let mut reports = BTreeMap::new();
        for (n, receipt) in (0..4).zip(receipts) {
            if !kept.contains(&n) {
                reports.insert(n, within("the report", receipt).await);
            }
        }
        let overflowed = SendReport { dropped: vec![(receiver.id(), DropReason::Overflow)], ..sent(1) };
        assert!(reports.values().all(|report| *report == overflowed), "{reports:?}");
        assert_eq!([number(&next(&mut messages).await), number(&next(&mut messages).await)], kept);
        drop(messages);
        until("it listens no more", async || topic.listeners() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_costs_no_acknowledged_message_and_none_comes_twice_or_out_of_order() {
    // E-CONN: what was under way when a connection broke was lost, or came twice.
    for cut_at in [0u32, 1, 300, 999, 1999] {
        let Cut { sender, receiver: _receiver, proxy, topic, mut messages } = Cut::new().await;
        let (receipts, mut issued) = mpsc::channel(2000);
        let sending = tokio::spawn(async move {
            for n in 0..2000u32 {
                if n == cut_at.saturating_sub(50) {
                    proxy.set_flows(false); // acknowledgements are lost as well as messages
                }
                receipts.send(submit_when_heard(&topic, n, &acked()).await).await.unwrap();
                if n == cut_at {
                    proxy.cut();
                    proxy.set_flows(true);
                }
            }
            proxy
        });
        for n in 0..2000 {
            assert_eq!(number(&next(&mut messages).await), n, "cut at {cut_at}");
        }
        while let Some(receipt) = issued.recv().await {
            assert_eq!(within("each is reported", receipt).await, taken(1));
        }
        sending.await.unwrap();
        assert_eq!(messages.try_next(), None, "none comes twice");
        assert!(sender.status().await.unwrap().counts.links_lost > 0, "the link was cut");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_message_that_is_cut_within_goes_out_again_and_comes_once_among_small_ones() {
    const HUGE: usize = 48 << 20;
    for cut_at in [1u32, 5, 20] {
        let Cut { sender, receiver, proxy, topic, mut messages } = Cut::new().await;
        let mut files = receiver.listen("files").await.unwrap();
        let file = sender.publisher("files").unwrap();
        listened_by(&file, 1).await;
        let huge = Bytes::from(vec![7; HUGE]);
        let submitted = within("it is on its way", file.submit(Codec::Bytes, huge, &acked())).await.unwrap();
        let behind = submit(&file, 1, &acked()).await;
        let mut receipts = Vec::new();
        for n in 0..100u32 {
            receipts.push(submit_when_heard(&topic, n, &acked()).await);
            if n <= cut_at {
                // It overtakes what has begun, if that still goes on: the machine may be quicker than that.
                assert_eq!(number(&next(&mut messages).await), n);
            }
            if n == cut_at {
                proxy.cut();
            }
        }
        for n in cut_at + 1..100 {
            assert_eq!(number(&next(&mut messages).await), n, "cut at {cut_at}");
        }
        assert_eq!(next(&mut files).await.payload.len(), HUGE);
        assert_eq!(number(&next(&mut files).await), 1);
        for receipt in receipts {
            assert_eq!(within("each is reported", receipt).await, taken(1));
        }
        assert_eq!(within("the huge one is reported", submitted).await, taken(1));
        assert_eq!(within("what was behind it is", behind).await, taken(1));
        assert_eq!((messages.try_next(), files.try_next()), (None, None), "none comes twice");
        assert!(sender.status().await.unwrap().counts.links_lost > 0, "the link was cut");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_cut_plain_messages_may_be_lost_but_none_is_swapped_with_acknowledged_ones() {
    // E-CONN.
    let Cut { sender: _sender, receiver: _receiver, proxy, topic, mut messages } = Cut::new().await;
    let sending = tokio::spawn(async move {
        let mut receipts = Vec::new();
        for n in 0..1000u32 {
            if n == 350 {
                proxy.set_flows(false);
            }
            if n % 3 == 0 {
                receipts.push(submit_when_heard(&topic, n, &acked()).await);
            } else {
                publish(&topic, n, &SendOptions::default()).await;
            }
            if n == 500 {
                proxy.cut();
                proxy.set_flows(true);
            }
        }
        for receipt in receipts {
            assert_eq!(within("each is reported", receipt).await, taken(1));
        }
        proxy
    });
    let mut got = Vec::new();
    while got.last() != Some(&999) {
        got.push(number(&next(&mut messages).await));
    }
    sending.await.unwrap();
    assert!(got.is_sorted_by(|a, b| a < b), "in order, each once: {got:?}");
    let missing: Vec<u32> = (0..1000).filter(|n| !got.contains(n)).collect();
    println!("{} plain messages were lost", missing.len());
    assert!(missing.iter().all(|n| n % 3 != 0), "all acknowledged ones are there: {missing:?}");
    assert!(!missing.is_empty(), "the cut was felt");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_that_shuts_down_has_queued_is_handled_by_another() {
    let cluster = Cluster::new();
    let [sender, leaving, staying] = cluster.start_all(["sender", "worker", "worker"]).await;
    let unread = leaving.listen("jobs").await.unwrap();
    let jobs = sender.publisher("jobs").unwrap();
    listened_by(&jobs, 1).await;
    let mut receipts = Vec::new();
    for n in 0..100 {
        receipts.push(submit(&jobs, n, &redelivered()).await);
    }
    until("they are queued there", async || leaving.status().await.unwrap().counts.received >= 100).await;
    let mut messages = staying.listen("jobs").await.unwrap();
    listened_by(&jobs, 2).await;
    let began = now();
    let ends = tokio::spawn(leaving.shutdown());
    let got = numbers(&mut messages, 100).await;
    println!("handed on {:?} after the end began", began.elapsed());
    assert_eq!(got, (0..100).collect::<HashSet<_>>());
    for receipt in receipts {
        assert_eq!(within("the report", receipt).await, SendReport { redelivered: 1, ..taken(1) });
    }
    within("it ends", ends).await.unwrap();
    drop(unread);
    assert_eq!(messages.try_next(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_shuts_down_handles_what_it_has_if_it_is_quick() {
    let cluster = Cluster::new();
    let [sender, leaving] = cluster.start_all(["sender", "worker"]).await;
    let mut messages = leaving.listen_with("jobs", handled()).await.unwrap();
    let jobs = sender.publisher("jobs").unwrap();
    listened_by(&jobs, 1).await;
    let mut receipts = Vec::new();
    for n in 0..100 {
        receipts.push(submit(&jobs, n, &redelivered()).await);
    }
    until("they are queued there", async || leaving.status().await.unwrap().counts.received >= 100).await;
    let ends = tokio::spawn(leaving.clone().shutdown());
    let mut handled = 0;
    while let Some(message) = within("a message or the end", messages.next()).await {
        message.acknowledge();
        handled += 1;
    }
    assert_eq!(handled, 100);
    for receipt in receipts {
        assert_eq!(within("the report", receipt).await, taken(1));
    }
    within("it ends", ends).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_did_not_acknowledge_goes_to_another_or_waits_for_one() {
    // Q-API.
    let cluster = Cluster::new();
    let sender = cluster.start("sender").await;
    let daemon = Daemon::with_key(&cluster.key, &address(&sender).await);
    let _listener = daemon.listener("jobs", "worker");
    let jobs = sender.publisher("jobs").unwrap();
    listened_by(&jobs, 1).await;
    let worker = sender.nodes().iter().find(|node| node.name.as_str() == "worker").unwrap().id;
    freeze(&daemon, &sender, worker).await;
    let mut receipts = Vec::new();
    for n in 0..20 {
        receipts.push(submit(&jobs, n, &SendOptions { timeout: Some(PATIENCE), ..redelivered() }).await);
    }
    let killed = now();
    drop(daemon);
    until("nobody listens", async || jobs.listeners() == 0).await;
    let worker = cluster.start("worker").await;
    let mut messages = worker.listen("jobs").await.unwrap();
    assert_eq!(numbers(&mut messages, 20).await, (0..20).collect::<HashSet<_>>());
    println!("handed on {:?} after the kill", killed.elapsed());
    for receipt in receipts {
        assert_eq!(within("the report", receipt).await, SendReport { redelivered: 1, ..taken(1) });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_a_worker_hands_back_goes_to_another_and_to_the_same_if_there_is_none() {
    let cluster = Cluster::new();
    let [sender, fails, works] = cluster.start_all(["sender", "worker", "worker"]).await;
    let jobs = sender.publisher("jobs").unwrap();
    let mut failing = fails.listen_with("jobs", handled()).await.unwrap();
    listened_by(&jobs, 1).await;
    let receipt = submit(&jobs, 1, &redelivered()).await;
    drop(next(&mut failing).await);
    next(&mut failing).await.acknowledge();
    assert_eq!(within("the report", receipt).await, taken(1));

    let mut working = works.listen_with("jobs", handled()).await.unwrap();
    listened_by(&jobs, 2).await;
    let mut receipts = Vec::new();
    for n in 0..10 {
        receipts.push(submit(&jobs, n, &redelivered()).await);
    }
    let failing = tokio::spawn(async move { while failing.next().await.is_some() {} });
    let mut handled = HashSet::new();
    while handled.len() < 10 {
        let message = next(&mut working).await;
        message.acknowledge();
        assert!(handled.insert(number(&message)), "each comes once");
    }
    for receipt in receipts {
        let report = within("the report", receipt).await;
        assert_eq!(SendReport { redelivered: 0, ..report }, taken(1));
    }
    failing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_stuck_holds_up_no_work_that_others_can_do() {
    const JOBS: u32 = 1000;
    let cluster = Cluster::new();
    let [sender, stuck, works] = cluster.start_all(["sender", "worker", "worker"]).await;
    let _unread = stuck.listen("jobs").await.unwrap();
    let mut messages = works.listen("jobs").await.unwrap();
    let jobs = sender.publisher("jobs").unwrap();
    listened_by(&jobs, 2).await;
    let began = now();
    let options = SendOptions { timeout: Some(Duration::from_secs(60)), ..redelivered() };
    let sending = tokio::spawn(async move {
        let mut receipts = Vec::new();
        for n in 0..JOBS {
            receipts.push(submit(&jobs, n, &options).await);
        }
        receipts
    });
    // What the stuck one may have at a time is with it, all else is done.
    let held = 256;
    let mut done = numbers(&mut messages, JOBS as usize - held).await;
    let receipts = within("all are sent", sending).await.unwrap();
    println!("{} of {JOBS} done in {:?}", done.len(), began.elapsed());
    stuck.shutdown().await;
    done.extend(numbers(&mut messages, held).await);
    assert_eq!(done, (0..JOBS).collect::<HashSet<_>>());
    let mut redelivered = 0;
    for receipt in receipts {
        let report = within("the report", receipt).await;
        redelivered += report.redelivered;
        assert_eq!(SendReport { redelivered: 0, ..report }, taken(1));
    }
    assert_eq!(redelivered, held);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_the_sender_its_receipts_say_that_no_answer_will_come() {
    let cluster = Cluster::new();
    let [sender, receiver] = cluster.start_all(["sender", "receiver"]).await;
    let _unread = receiver.listen("t").await.unwrap();
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 1).await;
    let receipt = submit(&topic, 1, &acked()).await;
    within("it ends", sender.shutdown()).await;
    let ended = now();
    let report = within("the report", receipt).await;
    assert_eq!(report, SendReport { dropped: vec![(receiver.id(), DropReason::Gone)], ..sent(1) });
    assert!(ended.elapsed() < Duration::from_secs(2), "{:?}", ended.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_time_is_over_is_not_delivered_and_stops_no_other() {
    // E-OUTBOX: an expired message is skipped, and what comes behind it goes on.
    let Cut { sender, receiver, proxy, topic, mut messages } = Cut::new().await;
    let brief = Duration::from_millis(100);
    // In the subscription.
    let receipt = submit(&topic, 1, &acked().ttl(brief)).await;
    publish(&topic, 2, &SendOptions::default().ttl(brief)).await;
    publish(&topic, 3, &SendOptions::default().ttl(PATIENCE)).await;
    let (arrived, sent_at) = (receiver.status().await.unwrap().counts, now());
    until("they arrived", async || receiver.status().await.unwrap().counts.received >= 3).await;
    until("their time is over", async || sent_at.elapsed() > 2 * brief).await;
    assert_eq!(number(&next(&mut messages).await), 3);
    let expired = SendReport { dropped: vec![(receiver.id(), DropReason::Expired)], ..sent(1) };
    assert_eq!(within("the report", receipt).await, expired);
    assert_eq!(receiver.status().await.unwrap().counts.dropped - arrived.dropped, 2);
    // On the link.
    proxy.set_flows(false);
    let (filler, sent_at) = (Bytes::from(vec![0; 4 << 20]), now());
    topic.publish(Codec::Bytes, filler.clone(), &SendOptions::default()).await.unwrap(); // fills what lies between
    let receipt = submit(&topic, 4, &acked().ttl(brief)).await;
    publish(&topic, 5, &SendOptions::default().ttl(brief)).await;
    publish(&topic, 6, &SendOptions::default().ttl(PATIENCE)).await;
    until("their time is over", async || sent_at.elapsed() > 2 * brief).await;
    proxy.set_flows(true);
    assert_eq!(next(&mut messages).await.payload.len(), filler.len());
    assert_eq!(number(&next(&mut messages).await), 6);
    assert_eq!(within("the report", receipt).await, expired);
    // Those that are in time, here too.
    let mut own = sender.listen("t").await.unwrap();
    listened_by(&topic, 2).await;
    let receipt = submit(&topic, 8, &acked().ttl(PATIENCE)).await;
    assert_eq!((number(&next(&mut messages).await), number(&next(&mut own).await)), (8, 8));
    assert_eq!(within("the report", receipt).await, taken(2));
    assert_eq!(messages.try_next(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_later_gets_the_last_message_first_and_once() {
    let cluster = Cluster::new();
    let [sender, there] = cluster.start_all(["sender", "there"]).await;
    let topic = sender.publisher("state").unwrap();
    topic.retain(true);
    for n in 1..=3 {
        publish(&topic, n, &SendOptions::default()).await; // nobody listens
    }
    for listener in [&there, &sender] {
        let mut first = listener.listen("state").await.unwrap();
        assert_eq!(number(&next(&mut first).await), 3, "without another send");
        let mut second = listener.listen("*").await.unwrap();
        assert_eq!(number(&next(&mut second).await), 3);
        let mut third = listener.listen("state").await.unwrap();
        assert_eq!(number(&next(&mut third).await), 3);
        let receipt = submit(&topic, 4, &acked()).await;
        for messages in [&mut first, &mut second, &mut third] {
            assert_eq!((number(&next(messages).await), messages.try_next()), (4, None), "each once");
        }
        assert_eq!(within("the report", receipt).await, taken(1));
        publish(&topic, 3, &SendOptions::default()).await;
        for messages in [&mut first, &mut second, &mut third] {
            assert_eq!((number(&next(messages).await), messages.try_next()), (3, None), "each once");
        }
        drop((first, second, third));
        until("nobody listens", async || topic.listeners() == 0).await;
    }
    // Who comes while messages go out: the last first, then each newer one.
    let late = cluster.start("late").await;
    let mut messages = late.listen("state").await.unwrap();
    let mut n = 3;
    while publish(&topic, n + 1, &SendOptions::default()).await.matched == 0 {
        n += 1;
    }
    assert_eq!([number(&next(&mut messages).await), number(&next(&mut messages).await)], [n, n + 1]);
    topic.retain(false);
    publish(&topic, 9, &SendOptions::default()).await;
    next(&mut messages).await;
    let mut none = late.listen("state").await.unwrap();
    stays(Duration::from_millis(200), "nothing is kept any more", async || none.try_next().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_message_comes_again_over_a_new_link_if_it_was_lost_with_the_old_one() {
    let Cut { sender: _sender, receiver: _receiver, proxy, topic, mut messages } = Cut::new().await;
    topic.retain(true);
    publish(&topic, 1, &SendOptions::default()).await;
    assert_eq!(number(&next(&mut messages).await), 1);
    proxy.set_flows(false);
    publish(&topic, 2, &SendOptions::default()).await;
    proxy.cut();
    proxy.set_flows(true);
    assert_eq!(number(&next(&mut messages).await), 2);
    publish(&topic, 3, &SendOptions::default()).await;
    assert_eq!(number(&next(&mut messages).await), 3);
    assert_eq!(messages.try_next(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_drains_gives_what_is_queued_and_hands_back_the_rest() {
    let cluster = Cluster::new();
    let [sender, receiver] = cluster.start_all(["sender", "receiver"]).await;
    let mut messages = receiver.listen("t").await.unwrap();
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 1).await;
    let mut receipts = Vec::new();
    for n in 0..10 {
        receipts.push(submit(&topic, n, &acked()).await);
    }
    until("they are queued", async || receiver.status().await.unwrap().counts.received >= 10).await;
    messages.drain();
    for n in 0..10 {
        assert_eq!(number(&next(&mut messages).await), n);
    }
    assert_eq!(within("the end", messages.next()).await, None);
    for receipt in receipts {
        assert_eq!(within("the report", receipt).await, taken(1));
    }
    until("it listens no more", async || topic.listeners() == 0).await;
}

/// A sender and a receiver whose link leads over a proxy, until that cuts it.
struct Cut {
    sender: Node,
    receiver: Node,
    proxy: Proxy,
    topic: Publisher,
    messages: Subscription,
}

impl Cut {
    async fn new() -> Self {
        let cluster = Cluster::new();
        let sender = cluster.builder("sender").local(false).kad(false).start().await.unwrap();
        let proxy = Proxy::to(&address(&sender).await).await;
        let receiver =
            cluster.builder("receiver").local(false).kad(false).bootstrap([proxy.address()]).start().await.unwrap();
        see_each_other(&[sender.clone(), receiver.clone()]).await;
        let messages = receiver.listen("t").await.unwrap();
        let topic = sender.publisher("t").unwrap();
        listened_by(&topic, 1).await;
        Self { sender, receiver, proxy, topic, messages }
    }
}

/// Stops a daemon where it is, and sees that it does nothing any more.
async fn freeze(daemon: &Daemon, other: &Node, node: NodeId) {
    daemon.freeze(true);
    let patience = Duration::from_millis(100);
    until("it stands still", async || other.ping(node.peer, patience).await.is_err()).await;
}

fn acked() -> SendOptions {
    SendOptions::default().acked()
}

fn redelivered() -> SendOptions {
    SendOptions::default().redeliver()
}

fn handled() -> ListenOptions {
    ListenOptions { acknowledge: Acknowledge::Handled, ..ListenOptions::default() }
}

async fn submit(topic: &Publisher, n: u32, options: &SendOptions) -> Receipt {
    within("it is on its way", topic.submit(Codec::Bytes, payload(n), options)).await.unwrap()
}

/// Submits again until somebody listens: while a link is down, nobody does as far as is known.
async fn submit_when_heard(topic: &Publisher, n: u32, options: &SendOptions) -> BoxFuture<'static, SendReport> {
    loop {
        topic.wait_for_listeners(1, PATIENCE).await; // who listens may be gone again by then
        let mut receipt = submit(topic, n, options).await;
        match (&mut receipt).now_or_never() {
            Some(report) if report.matched == 0 => {}
            Some(report) => return async { report }.boxed(),
            None => return receipt.boxed(),
        }
    }
}

async fn publish(topic: &Publisher, n: u32, options: &SendOptions) -> SendReport {
    within("the report", topic.publish(Codec::Bytes, payload(n), options)).await.unwrap()
}

fn payload(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

fn number(message: &Message) -> u32 {
    u32::from_be_bytes(message.payload[..].try_into().unwrap())
}

/// The numbers of so many messages.
async fn numbers(messages: &mut Subscription, count: usize) -> HashSet<u32> {
    let mut numbers = HashSet::new();
    for _ in 0..count {
        numbers.insert(number(&next(messages).await));
    }
    numbers
}

/// The report of a message that was sent to so many nodes.
fn sent(to: usize) -> SendReport {
    SendReport { matched: to, sent: to, ..SendReport::default() }
}

/// The report of a message that all took.
fn taken(by: usize) -> SendReport {
    SendReport { acknowledged: by, ..sent(by) }
}
