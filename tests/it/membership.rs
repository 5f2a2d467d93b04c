//! Who is there: coming, going, limits, and how soon others know.

use std::collections::HashSet;
use std::time::Duration;

use meshd::{
    BadName, DownReason, LimitError, ListenError, MAX_NAMES_PER_NODE, Node, NodeId, PingError, RotationError,
    SendError, StartError, What,
};

use crate::cluster::{
    Cluster, PATIENCE, address, happens, listened_by, next, now, see_each_other, stays, until, within,
};
use crate::daemon::Daemon;

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_one_host_meet_without_being_told_of_each_other() {
    // E-NODE: start means found and served.
    let cluster = Cluster::new();
    let nodes = cluster.start_all(["a", "b", "c"]).await;
    for node in &nodes {
        let peers = within("an answer", node.peers()).await.unwrap();
        assert_eq!(peers.len(), 2);
        for peer in peers {
            let other = nodes.iter().find(|node| node.id().peer == peer.peer).unwrap();
            assert_eq!((peer.identity, &peer.nodes[..]), (other.identity(), &[other.name().clone()][..]));
            assert!(!peer.addresses.is_empty() && !peer.version.is_empty());
        }
        let names: Vec<String> = node.nodes().into_iter().map(|node| node.name.to_string()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let status = node.status().await.unwrap();
        assert_eq!((status.peers, status.nodes, status.peer), (2, 3, node.id().peer));
        let round_trip = node.ping(nodes[0].id().peer, PATIENCE).await.unwrap();
        assert!(round_trip < PATIENCE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_has_started_says_where_it_listens() {
    // E-SRV. At once: whoever starts a peer and then asks for its address, or a ticket, is not told that there is none yet.
    for _ in 0..10 {
        let node = Cluster::new().start("node").await;
        let (addresses, ticket) = (node.status().await.unwrap().addresses, node.invite().await.unwrap());
        assert!(matches!(&addresses[..], [one] if one.starts_with("/ip4/127.0.0.1/tcp/")), "{addresses:?}");
        assert_eq!(ticket.addresses(), addresses);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_told_to_who_watches() {
    // E-TOPO: who came, who went, and what they listen to.
    let cluster = Cluster::new();
    let watcher = cluster.start("watcher").await;
    let mut events = watcher.events();
    let guest = cluster.start("guest").await;
    let (peer, id) = (guest.id().peer, guest.id());
    let is_guest = |node: &NodeId, name: &meshd::NodeName| *node == id && name.as_str() == "guest";
    happens(&mut events, "the peer is up", |what| matches!(what, What::PeerUp { peer: up, .. } if *up == peer)).await;
    happens(&mut events, "its node is up", |what| matches!(what, What::NodeUp { node, name } if is_guest(node, name)))
        .await;
    let subscription = guest.listen("a/*").await.unwrap();
    happens(&mut events, "it listens", |what| {
        matches!(what, What::Listening { node, name, filter } if is_guest(node, name) && filter.as_str() == "a/*")
    })
    .await;
    drop(subscription);
    happens(&mut events, "it listens no more", |what| {
        matches!(what, What::NotListening { node, name, filter } if is_guest(node, name) && filter.as_str() == "a/*")
    })
    .await;
    let sibling = guest.sibling("second").await.unwrap();
    let second = sibling.id();
    happens(&mut events, "another node is up", |what| matches!(what, What::NodeUp { node, .. } if *node == second))
        .await;
    drop(sibling);
    happens(&mut events, "and down", |what| matches!(what, What::NodeDown { node, .. } if *node == second)).await;
    guest.shutdown().await;
    let mut down = Vec::new();
    happens(&mut events, "the peer is down", |what| match what {
        What::NodeDown { node, name } => {
            assert!(is_guest(node, name));
            down.push("node");
            down.len() == 2
        }
        What::PeerDown { peer: down_peer, reason, .. } => {
            assert_eq!((*down_peer, *reason), (peer, DownReason::Left));
            down.push("peer");
            down.len() == 2
        }
        other => panic!("{other:?}"),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_filters_are_seen_whole() {
    // E-TOPO. Where all that a node listens to has to fit one multicast packet, others silently keep the old set.
    const FILTERS: usize = 2000;
    let cluster = Cluster::new();
    let [busy, a, b] = cluster.start_all(["busy", "a", "b"]).await;
    let mut subscriptions = Vec::new();
    let began = now();
    for n in 0..FILTERS {
        subscriptions.push(busy.listen(&format!("sensors/{n:05}/temperature")).await.unwrap());
    }
    let listened = now();
    for other in [&a, &b] {
        let seen = || other.nodes().iter().find(|node| node.id == busy.id()).map_or(0, |node| node.filters.len());
        until("all filters are seen", async || seen() == FILTERS).await;
    }
    let took = listened.elapsed();
    println!("{FILTERS} filters in {:?}, seen whole {took:?} after the last", listened - began);
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(a.send("sensors/01999/temperature", &1).await.unwrap().sent, 1);
    assert_eq!(next(&mut subscriptions[1999]).await.seq, 1);
    drop(subscriptions);
    until("all are gone", async || a.topics().is_empty() && b.topics().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_is_known_to_linked_peers_soon_after_it_is_known_at_home() {
    // E-NODE.
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let mut times = Vec::new();
    for n in 0..20 {
        let topic = there.publisher(&format!("t/{n}")).unwrap();
        let _subscription = here.listen(topic.topic().as_str()).await.unwrap();
        let acknowledged = now();
        listened_by(&topic, 1).await;
        times.push(acknowledged.elapsed());
    }
    times.sort_unstable();
    println!("median {:?}, longest {:?}", times[10], times[19]);
    assert!(times[10] < Duration::from_millis(50), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_is_gone_at_once_and_who_comes_back_under_the_same_name_is_in_the_group_again() {
    // E-NODE: stopping is told, and can be asked for twice. E-CONN: who left takes its connections along. Z-DISC.
    let cluster = Cluster::new();
    let [sender, worker, other] = cluster.start_all(["sender", "worker", "worker"]).await;
    let (_first, mut second) = (worker.listen("jobs").await.unwrap(), other.listen("jobs").await.unwrap());
    let jobs = sender.publisher("jobs").unwrap();
    listened_by(&jobs, 2).await;
    let mut events = sender.events();
    let (old, again) = (worker.id(), worker.clone());
    let (began, waiting) = (now(), tokio::spawn(worker.shutdown()));
    let left = |what: &What| matches!(what, What::PeerDown { peer, reason: DownReason::Left, .. } if *peer == old.peer);
    happens(&mut events, "it left", left).await;
    println!("seen to leave after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    until("it is out of the group", async || jobs.listeners() == 1).await;
    for seq in 1..=10 {
        assert_eq!(jobs.send(&seq).await.unwrap().sent, 1);
        assert_eq!(next(&mut second).await.seq, seq);
    }
    within("it stops", waiting).await.unwrap();
    within("it stops twice", again.shutdown()).await;

    let began = now();
    let worker = cluster.start("worker").await;
    let mut first = worker.listen("jobs").await.unwrap();
    listened_by(&jobs, 2).await;
    println!("back in its group after {:?}", began.elapsed());
    assert_ne!(worker.id(), old);
    assert!(sender.nodes().iter().all(|node| node.id != old));
    jobs.send(&1).await.unwrap();
    jobs.send(&2).await.unwrap();
    let (a, b) = (next(&mut first).await.seq, next(&mut second).await.seq);
    assert_eq!(HashSet::from([a, b]), HashSet::from([11, 12]), "one each");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_peer_delays_no_send_to_others_and_is_taken_out_until_it_lives_again() {
    // E-CONN, and what it does not hold: one peer that does not answer held up each send to all others.
    let cluster = Cluster::new();
    let [sender, fast] = cluster.start_all(["sender", "fast"]).await;
    let daemon = Daemon::with_key(&cluster.key, &address(&sender).await);
    let _listener = daemon.listener("t", "frozen");
    let mut messages = fast.listen("t").await.unwrap();
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 2).await;
    let mut events = sender.events();
    daemon.freeze(true);
    let frozen = now();
    let mut slowest = Duration::ZERO;
    for seq in 1..=1000 {
        let began = now();
        assert_eq!(topic.send(&seq).await.unwrap().matched, 2);
        assert_eq!(next(&mut messages).await.seq, seq);
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    let is_silent = |what: &What| matches!(what, What::PeerDown { reason: DownReason::Silent, .. });
    happens(&mut events, "it is silent", is_silent).await;
    println!("slowest of 1000 sends {slowest:?}; taken out after {:?}", frozen.elapsed());
    assert!(frozen.elapsed() < Duration::from_millis(4500), "{:?}", frozen.elapsed());
    until("it gets nothing more", async || topic.listeners() == 1).await;
    daemon.freeze(false);
    listened_by(&topic, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_one_of_two_workers_is_killed_the_other_gets_everything() {
    // Q-API.
    let cluster = Cluster::new();
    let [sender, worker] = cluster.start_all(["sender", "worker"]).await;
    let daemon = Daemon::with_key(&cluster.key, &address(&sender).await);
    let _listener = daemon.listener("jobs", "worker");
    let mut messages = worker.listen("jobs").await.unwrap();
    let jobs = sender.publisher("jobs").unwrap();
    listened_by(&jobs, 2).await;
    let mut events = sender.events();
    let killed = now();
    drop(daemon);
    let is_closed = |what: &What| matches!(what, What::PeerDown { reason: DownReason::Closed, .. });
    happens(&mut events, "its end is noticed", is_closed).await;
    until("it is out of the group", async || jobs.listeners() == 1).await;
    println!("noticed after {:?}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    for seq in 1..=100 {
        assert_eq!(jobs.send(&seq).await.unwrap().sent, 1);
        assert_eq!(next(&mut messages).await.seq, seq);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_last_handle_of_a_process_is_dropped_it_leaves() {
    let cluster = Cluster::new();
    let [stays, goes] = cluster.start_all(["stays", "goes"]).await;
    let sibling = goes.sibling("sibling").await.unwrap();
    let subscription = sibling.listen("t").await.unwrap();
    until("three nodes", async || stays.nodes().len() == 3).await;
    drop(goes);
    drop(sibling);
    until("its node is gone, that of the subscription is not", async || stays.nodes().len() == 2).await;
    assert_eq!(stays.peers().await.unwrap().len(), 1);
    drop(subscription);
    until("the peer is gone", async || stays.peers().await.unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_of_is_to_be_seen_already() {
    let cluster = Cluster::new();
    let watcher = cluster.start("watcher").await;
    let mut events = watcher.events();
    for _ in 0..20 {
        let guest = cluster.start("guest").await;
        let peer = guest.id().peer;
        happens(&mut events, "up", |what| matches!(what, What::NodeUp { node, .. } if node.peer == peer)).await;
        assert_eq!(watcher.nodes().len(), 2, "the node that is up");
        guest.shutdown().await;
        happens(&mut events, "down", |what| matches!(what, What::NodeDown { node, .. } if node.peer == peer)).await;
        assert_eq!(watcher.nodes().len(), 1, "nor the node that is down");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_end_every_question_is_answered_with_that() {
    // E-NODE.
    let node = Cluster::new().start("node").await;
    within("it stops", node.clone().shutdown()).await;
    assert!(matches!(node.listen("t").await, Err(ListenError::Closed(_))));
    assert!(matches!(node.sibling("s").await, Err(ListenError::Closed(_))));
    assert!(node.peers().await.is_err() && node.status().await.is_err() && node.keys().await.is_err());
    assert!(matches!(node.rotate_key(Duration::ZERO, &[]).await, Err(RotationError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_end_there_are_no_events_and_nobody_to_ping() {
    let cluster = Cluster::new();
    let [node, other] = cluster.start_all(["node", "other"]).await;
    let mut events = node.events();
    within("it stops", node.clone().shutdown()).await;
    let began = now();
    let no_answer = node.ping(other.id().peer, Duration::from_secs(2)).await;
    assert!(matches!(no_answer, Err(PingError::NotLinked(_))), "{no_answer:?} after {:?}", began.elapsed());
    within("the events end", async { while events.next().await.is_some() {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sending_after_the_end_is_an_error() {
    // E-OUTBOX: a send after the stop is an error.
    let cluster = Cluster::new();
    let [node, other] = cluster.start_all(["node", "other"]).await;
    let _messages = other.listen("t").await.unwrap();
    let topic = node.publisher("t").unwrap();
    listened_by(&topic, 1).await;
    within("it stops", node.clone().shutdown()).await;
    for report in [topic.send(&1).await, node.send("t", &1).await, node.send("new", &1).await] {
        assert!(matches!(report, Err(SendError::Closed)), "{report:?}");
    }
    let report = topic.try_send(vec![1]);
    assert!(matches!(report, Err(SendError::Closed)), "{report:?}");
    assert_eq!(topic.wait_for_listeners(1, PATIENCE).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_over_the_limits_are_errors_at_the_node_that_uses_them() {
    let cluster = Cluster::new();
    let node = cluster.start("node").await;
    let long = "x".repeat(256);
    assert!(matches!(node.listen(&long).await, Err(ListenError::Name(BadName::TooLong { len: 256, max: 255, .. }))));
    assert!(matches!(node.sibling(long.clone()).await, Err(ListenError::Name(BadName::TooLong { .. }))));
    assert!(matches!(cluster.builder(&long).start().await, Err(StartError::Name(BadName::TooLong { .. }))));
    assert!(matches!(cluster.builder("a\tb").start().await, Err(StartError::Name(BadName::Control { .. }))));
    assert!(matches!(cluster.builder("a").mesh("../x").start().await, Err(StartError::Name(BadName::NotAMesh(_)))));
    assert!(matches!(node.listen("a//b").await, Err(ListenError::Name(BadName::EmptyPart { .. }))));
    assert!(matches!(node.listen("a*").await, Err(ListenError::Name(BadName::Wildcard { .. }))));
    node.listen(&"x".repeat(255)).await.unwrap();
    // Names may hold what people write: spaces, other scripts, 255 bytes.
    let guest = cluster.start("Kamera 1 – übersicht").await;
    see_each_other(&[node, guest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_over_the_limit_are_errors_and_those_below_hold() {
    let cluster = Cluster::new();
    let [node, other] = cluster.start_all(["node", "other"]).await;
    let began = now();
    let mut subscriptions = Vec::new();
    for n in 0..MAX_NAMES_PER_NODE {
        subscriptions.push(node.listen(&format!("{n}")).await.unwrap());
    }
    println!("{MAX_NAMES_PER_NODE} filters in {:?}", began.elapsed());
    assert!(matches!(node.listen("more").await, Err(ListenError::Limit(LimitError::Names))));
    until("the other sees all", async || other.topics().len() == MAX_NAMES_PER_NODE).await;
    subscriptions.pop();
    until("one may come again", async || node.listen("again").await.is_ok()).await;
    assert!(other.send("7", &1).await.unwrap().sent == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_over_its_limit_is_an_error_and_the_mesh_goes_on() {
    // E-TOPO.
    let cluster = Cluster::new();
    let [node, other] = cluster.start_all(["node", "other"]).await;
    let mut subscriptions = Vec::new();
    let refused = loop {
        let filter = format!("{:05}/{}", subscriptions.len(), "x".repeat(249));
        match node.listen(&filter).await {
            Ok(subscription) => subscriptions.push(subscription),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ListenError::Limit(LimitError::Record)), "{refused}");
    println!("{} filters of 255 bytes fit", subscriptions.len());
    until("the other sees all", async || other.topics().len() == subscriptions.len()).await;
    let last = format!("{:05}/{}", subscriptions.len() - 1, "x".repeat(249));
    assert_eq!(other.send(&last, &1).await.unwrap().sent, 1);
    assert_eq!(next(subscriptions.last_mut().unwrap()).await.seq, 1);
    assert_eq!(other.status().await.unwrap().counts.bad_records, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_come_in_by_one_at_the_same_moment_hear_of_each_other() {
    // E-TOPO. Each had greeted the first before that knew of the other, and nobody was there yet to hear of them.
    let cluster = Cluster::new();
    let first = Daemon::with_key(&cluster.key, "127.0.0.1:1");
    let by = first.json(&["status"])["addresses"][0].as_str().unwrap().to_owned();
    let join = async || cluster.builder("guest").local(false).kad(false).bootstrap([&by]).start().await.unwrap();
    let mut slowest = Duration::ZERO;
    for _ in 0..30 {
        let began = now();
        let guests = [join().await, join().await];
        until("they are linked", async || guests[0].peers().await.unwrap().len() == 2).await;
        slowest = slowest.max(began.elapsed());
        let [a, b] = guests;
        tokio::join!(a.shutdown(), b.shutdown());
    }
    println!("slowest of 30 meetings: {slowest:?}");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_start_together_form_a_full_mesh() {
    const PEERS: usize = 30;
    let cluster = Cluster::new();
    let began = now();
    let names: Vec<String> = (0..PEERS).map(|n| format!("peer-{n:02}")).collect();
    let nodes: Vec<Node> = futures::future::join_all(names.iter().map(|name| cluster.start(name))).await;
    println!("{PEERS} peers started in {:?}", began.elapsed());
    for node in &nodes {
        until("linked to all others", async || node.peers().await.unwrap().len() == PEERS - 1).await;
        until("all nodes are seen", async || node.nodes().len() == PEERS).await;
    }
    println!("a full mesh after {:?}", began.elapsed());
    assert!(began.elapsed() < PATIENCE);
    let mut heard = Vec::new();
    for node in &nodes {
        heard.push(node.listen("all").await.unwrap());
    }
    let topic = nodes[7].publisher("all").unwrap();
    listened_by(&topic, PEERS).await;
    assert_eq!(topic.send(&1).await.unwrap().sent, PEERS);
    for messages in &mut heard {
        next(messages).await;
    }
    stays(Duration::from_millis(500), "a full mesh", async || nodes[0].peers().await.unwrap().len() == PEERS - 1).await;
    futures::future::join_all(nodes.into_iter().map(Node::shutdown)).await;
}
