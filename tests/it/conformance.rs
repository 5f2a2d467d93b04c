//! Behaviours that users of systems of this kind rely on, where no other test is about them. `docs/CONFORMANCE.md` lists all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, stream};
use meshd::{
    CallError, CallOptions, Callee, Channel, ChannelError, Codec, Failure, Node, NodeId, OpenError, SendError,
    SendOptions, SendReport, ServeOptions, Service, Target, What,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Barrier, Notify};

use crate::cluster::{Cluster, PATIENCE, address, happens, listened_by, next, now, see_each_other, until, within};
use crate::daemon::{Daemon, Home, two_daemons, wait_until};
use crate::proxy::Proxy;
use crate::verbs::ended;

async fn offered(node: &Node, service: &str, by: usize) -> Service {
    let service = node.service(service).unwrap();
    assert_eq!(service.wait_for_providers(by, PATIENCE).await.len(), by, "{} is offered", service.name());
    let patient = CallOptions { timeout: Some(PATIENCE), ..CallOptions::default() };
    service.with(patient)
}

async fn serve_echo(node: &Node, service: &str) -> meshd::Serving {
    let handler = |request: meshd::Request| async move { Ok((request.codec, request.payload)) };
    node.serve_requests(service, ServeOptions::default(), handler).await.unwrap()
}

/// E-LB: three nodes are picked once each, then again in the same order, for messages and for calls.
#[tokio::test(flavor = "multi_thread")]
async fn turns_go_round_in_the_same_order() {
    let [a, b, c, sender] = Cluster::new().start_all(["worker", "worker", "worker", "sender"]).await;
    let (mut listeners, mut services) = (Vec::new(), Vec::new());
    for node in [&a, &b, &c] {
        listeners.push((node.id(), node.listen("t").await.unwrap()));
        services.push(serve_echo(node, "s").await);
    }
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 3).await;
    let mut took = BTreeMap::new();
    for _ in 0..9 {
        topic.send(&()).await.unwrap();
    }
    for (id, listener) in &mut listeners {
        for _ in 0..3 {
            took.insert(next(listener).await.seq, *id);
        }
    }
    let service = offered(&sender, "s", 3).await;
    let mut answered = Vec::new();
    for _ in 0..9 {
        answered.push(service.call_bytes(Codec::Bytes, "").await.unwrap().node);
    }
    for turns in [took.into_values().collect(), answered] {
        assert_eq!(turns[..3].iter().collect::<HashSet<_>>().len(), 3, "each once: {turns:?}");
        assert!(turns[..3] == turns[3..6] && turns[..3] == turns[6..], "the same order: {turns:?}");
    }
}

/// E-LB: turns of one service move neither those of another nor those of a topic.
#[tokio::test(flavor = "multi_thread")]
async fn services_used_alternately_do_not_disturb_each_others_turns() {
    let [a, b, client] = Cluster::new().start_all(["worker", "worker", "client"]).await;
    let (mut listeners, mut services) = (Vec::new(), Vec::new());
    for node in [&a, &b] {
        listeners.push(node.listen("x").await.unwrap());
        services.push((serve_echo(node, "x").await, serve_echo(node, "y").await));
    }
    let (x, y) = (offered(&client, "x", 2).await, offered(&client, "y", 2).await);
    let topic = client.publisher("x").unwrap();
    listened_by(&topic, 2).await;
    let mut shares: HashMap<(&str, NodeId), u32> = HashMap::new();
    for _ in 0..20 {
        for (name, service) in [("x", &x), ("y", &y)] {
            *shares.entry((name, service.call_bytes(Codec::Bytes, "").await.unwrap().node)).or_default() += 1;
        }
    }
    assert_eq!((shares.len(), shares.values().max()), (4, Some(&10)), "{shares:?}");
    for _ in 0..20 {
        topic.send(&()).await.unwrap();
        x.call_bytes(Codec::Bytes, "").await.unwrap();
    }
    for listener in &mut listeners {
        for _ in 0..10 {
            next(listener).await;
        }
    }
}

/// E-NODE: a node has one id, which reads back as printed; names may hold spaces, and need not be unique.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_who_it_is() {
    let [node, other] = Cluster::new().start_all(["front door", "front door"]).await;
    let id = node.id();
    assert_eq!(id.to_string(), format!("{}/{}", id.peer, id.index));
    assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
    assert_ne!(id, other.id());
    let seen = other.nodes().into_iter().find(|seen| seen.id == id).unwrap();
    assert_eq!((seen.name.as_str(), seen.id.peer), ("front door", id.peer));
    let clone = node.clone();
    within("it stops", node.shutdown()).await;
    assert_eq!((clone.id(), clone.name().as_str()), (id, "front door"), "also after the end");
}

/// E-CONN: what never answers, refuses, or leads nowhere delays neither the start nor anything between others.
#[tokio::test(flavor = "multi_thread")]
async fn places_that_cannot_be_reached_hold_up_nobody() {
    let cluster = Cluster::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap(); // never accepts
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let places = [silent.local_addr().unwrap().to_string(), closed.to_string(), "192.0.2.1:4001".to_owned()];
    let began = now();
    let sender = cluster.builder("sender").bootstrap(places).start().await.unwrap();
    let listener = cluster.start("listener").await;
    let mut messages = listener.listen("t").await.unwrap();
    let _echo = serve_echo(&listener, "echo").await;
    let topic = sender.publisher("t").unwrap();
    listened_by(&topic, 1).await;
    let service = offered(&sender, "echo", 1).await;
    println!("started and met in {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let mut slowest = Duration::ZERO;
    for seq in 1..=500 {
        let began = now();
        assert_eq!(topic.send(&seq).await.unwrap().sent, 1);
        assert_eq!(next(&mut messages).await.seq, seq);
        service.call_bytes(Codec::Bytes, "").await.unwrap();
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

/// E-CONN: one connection between two peers carries everything, both ways, and is made again when it is lost.
#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_everything() {
    let (here, there, proxy) = over_a_proxy().await;
    let (_here, _there) = (serve_echo(&here, "here").await, serve_echo(&there, "there").await);
    let mut acceptor = there.accept("talk").await.unwrap();
    let mut messages = there.listen("t/*").await.unwrap();
    let (theirs, ours) = (offered(&here, "there", 1).await, offered(&there, "here", 1).await);
    listened_by(&here.publisher("t/0").unwrap(), 1).await;
    offered(&here, "talk", 1).await;
    let made = proxy.connections();
    for n in 0..200_u64 {
        assert_eq!(here.send(&format!("t/{n}"), &n).await.unwrap().sent, 1);
        assert_eq!(next(&mut messages).await.decode::<u64>().unwrap(), n);
        assert_eq!(theirs.call::<_, u64>(&n).await.unwrap(), n);
        assert_eq!(ours.call::<_, u64>(&n).await.unwrap(), n);
        let channel = within("it opens", here.open("talk")).await.unwrap();
        channel.send(&n).await.unwrap();
        assert_eq!(within("it comes", acceptor.next()).await.unwrap().receive().await, Ok(Some(n)));
    }
    assert_eq!(proxy.connections(), made);
    assert_eq!(here.status().await.unwrap().counts.links_lost, 0);
    proxy.cut();
    until("it is lost", async || here.status().await.unwrap().counts.links_lost == 1).await;
    offered(&here, "there", 1).await;
    assert_eq!(within("an answer", theirs.call::<_, u64>(&7)).await.unwrap(), 7);
}

/// E-SVC: a reply that nobody waits for any more is passed over, and the connection goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_comes_too_late_harms_nothing() {
    let (client, server, proxy) = over_a_proxy().await;
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, waits) = (Arc::clone(&begun), Arc::clone(&go_on));
    let handler = move |n: u32| {
        let (begins, waits) = (Arc::clone(&begins), Arc::clone(&waits));
        async move {
            begins.notify_one();
            waits.notified().await;
            Ok::<_, Failure>(n)
        }
    };
    let serving = server.serve("late", handler).await.unwrap();
    let service = offered(&client, "late", 1).await;
    let hasty = CallOptions { timeout: Some(Duration::from_millis(300)), ..CallOptions::default() };
    let hasty = tokio::spawn({
        let hasty = service.clone().with(hasty);
        async move { hasty.call::<_, u32>(&1).await }
    });
    within("it begins", begun.notified()).await;
    proxy.set_flows(false); // the reply, and that it is not wanted any more, are on their way
    go_on.notify_one();
    until("it is answered", async || serving.stats().calls == 1).await;
    let error = within("an answer", hasty).await.unwrap();
    assert!(matches!(error, Err(CallError::TimedOut(_))), "{error:?}");
    proxy.set_flows(true);
    for n in 2..10 {
        go_on.notify_one();
        assert_eq!(within("an answer", service.call::<_, u32>(&n)).await.unwrap(), n);
    }
    assert_eq!(client.status().await.unwrap().counts.links_lost, 0);
}

/// Two peers whose link leads over a proxy, until that cuts it.
async fn over_a_proxy() -> (Node, Node, Proxy) {
    let cluster = Cluster::new();
    let apart = |name| cluster.builder(name).local(false).kad(false);
    let one = apart("one").start().await.unwrap();
    let proxy = Proxy::to(&address(&one).await).await;
    let other = apart("other").bootstrap([proxy.address()]).start().await.unwrap();
    see_each_other(&[one.clone(), other.clone()]).await;
    (one, other, proxy)
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Nothing,
    One(i8),
    Two(u8, Box<Self>),
    Named { a: Option<bool>, b: () },
}

/// Sends a value in a message, a call, over a channel and as a stream of replies, and has it back each time.
async fn everywhere<T>(here: &Node, there: &Node, value: T)
where
    T: Serialize + DeserializeOwned + Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let mut messages = there.listen("value").await.unwrap();
    listened_by(&here.publisher("value").unwrap(), 1).await;
    here.send("value", &value).await.unwrap();
    assert_eq!(next(&mut messages).await.decode::<T>().unwrap(), value);
    let serving = there.serve("call", async |value: T| Ok::<_, Failure>(value)).await.unwrap();
    assert_eq!(offered(here, "call", 1).await.call::<_, T>(&value).await.unwrap(), value);
    let replying = there.serve_stream("stream", |value: T| stream::iter([Ok(value.clone()), Ok(value)])).await.unwrap();
    offered(here, "stream", 1).await;
    let replies = within("it begins", here.call_stream::<_, T>("stream", &value)).await.unwrap();
    assert_eq!(within("replies", replies.collect::<Vec<_>>()).await, [Ok(value.clone()), Ok(value.clone())]);
    let mut acceptor = there.accept("channel").await.unwrap();
    offered(here, "channel", 1).await;
    let channel = within("it opens", here.open("channel")).await.unwrap();
    channel.send(&value).await.unwrap();
    let far = within("it comes", acceptor.next()).await.unwrap();
    assert_eq!(within("an item", far.receive::<T>()).await, Ok(Some(value)));
    drop((messages, serving, replying, acceptor));
    let gone = async || here.nodes().iter().all(|node| node.services.is_empty() && node.filters.is_empty());
    until("nothing is offered", gone).await;
}

/// E-CODEC, Z-MSG, X-SER: numbers at their bounds, texts, sequences, maps, nested and empty ones, by every way there is.
#[tokio::test(flavor = "multi_thread")]
async fn values_of_all_kinds_arrive_as_they_were() {
    let [here, there] = Cluster::new().start_all(["here", "there"]).await;
    everywhere(&here, &there, (u8::MAX, u16::MAX, u32::MAX, u64::MAX, u64::MIN)).await;
    everywhere(&here, &there, (i8::MIN, i16::MIN, i32::MIN, i64::MIN, i64::MAX)).await;
    everywhere(&here, &there, [-(1_i64 << 31) - 1, -1, 0, 23, 24, 255, 256, 65_535, 65_536, 1 << 32]).await;
    everywhere(&here, &there, (i128::MIN, i128::MAX, u128::MAX)).await;
    everywhere(&here, &there, [f64::MIN, f64::MAX, f64::MIN_POSITIVE, f64::INFINITY, f64::NEG_INFINITY, 0.1]).await;
    everywhere(&here, &there, ["".to_owned(), "\0".to_owned(), "grüße 🦀".to_owned(), "x".repeat(100_000)]).await;
    everywhere(&here, &there, (Bytes::new(), Bytes::from_static(&[0, 255]), 'ß', true)).await;
    everywhere(&here, &there, ()).await;
    everywhere(&here, &there, Vec::<Vec<()>>::new()).await;
    everywhere(&here, &there, vec![vec![], vec![((), Vec::<u8>::new())]]).await;
    everywhere(&here, &there, HashMap::<String, u8>::new()).await;
    everywhere(&here, &there, BTreeMap::from([(-1, BTreeMap::from([(String::new(), None::<u8>)])), (2, [].into())]))
        .await;
    let two = Shape::Two(0, Box::new(Shape::Two(1, Box::new(Shape::Nothing))));
    let named = [Shape::Named { a: None, b: () }, Shape::Named { a: Some(false), b: () }];
    everywhere(&here, &there, (Shape::Nothing, Shape::One(-128), two, named)).await;
}

/// E-CODEC, X-CH: what cannot be encoded is an error before anything is sent; what is no such value, one where it is read.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_do_not_fit_are_errors() {
    struct Unspeakable;
    impl Serialize for Unspeakable {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("it has no words"))
        }
    }
    let [here, there] = Cluster::new().start_all(["here", "there"]).await;
    let mut messages = there.listen("t").await.unwrap();
    listened_by(&here.publisher("t").unwrap(), 1).await;
    let (_echo, mut acceptor) = (serve_echo(&there, "echo").await, there.accept("talk").await.unwrap());
    let service = offered(&here, "echo", 1).await;
    offered(&here, "talk", 1).await;
    let channel = within("it opens", here.open("talk")).await.unwrap();
    let far = within("it comes", acceptor.next()).await.unwrap();
    assert!(matches!(here.send("t", &Unspeakable).await, Err(SendError::Encode(_))));
    assert!(matches!(service.call::<_, ()>(&Unspeakable).await, Err(CallError::Encode(_))));
    assert!(matches!(channel.send(&Unspeakable).await, Err(ChannelError::Encode(_))));
    assert!(matches!(here.call_stream::<_, ()>("talk", &Unspeakable).await, Err(OpenError::Encode(_))));
    // They go on, and what did not fit left nothing behind.
    here.send("t", &65_536).await.unwrap();
    let message = next(&mut messages).await;
    assert_eq!((message.seq, message.decode::<u32>().ok()), (1, Some(65_536)));
    assert!(message.decode::<u16>().is_err() && message.decode::<String>().is_err());
    assert!(matches!(service.call::<_, u8>(&-1).await, Err(CallError::Decode { .. })));
    assert_eq!(service.call::<_, i8>(&-1).await.unwrap(), -1);
    channel.send(&-1).await.unwrap();
    channel.send(&-2).await.unwrap();
    assert!(matches!(within("an item", far.receive::<u8>()).await, Err(ChannelError::Decode(_))));
    assert_eq!(within("an item", far.receive::<i8>()).await, Ok(Some(-2)));
    // Bytes that claim to be CBOR: an unknown kind, an end too early, a nest without bottom.
    for bytes in [vec![0xfc], vec![0x82, 1], vec![], vec![0x81; 1 << 20]] {
        here.publish("t", Codec::Cbor, bytes.into(), &SendOptions::default()).await.unwrap();
        assert!(next(&mut messages).await.decode::<ciborium::Value>().is_err());
    }
}

/// Z-RPC: callers of other processes are answered while one of this process is.
#[tokio::test(flavor = "multi_thread")]
async fn callers_of_several_processes_are_answered_at_the_same_time() {
    let cluster = Cluster::new();
    let [server, client] = cluster.start_all(["server", "client"]).await;
    let daemon = Daemon::with_key(&cluster.key, &address(&server).await);
    let all_are_here = Arc::new(Barrier::new(4));
    let handler = move |request: meshd::Request| {
        let all_are_here = Arc::clone(&all_are_here);
        async move {
            all_are_here.wait().await;
            Ok((request.codec, request.payload))
        }
    };
    let _serving = server.serve_requests("meet", ServeOptions::default(), handler).await.unwrap();
    let others = ["a", "b", "c"].map(|name| (name, daemon.home.spawn(&["call", "meet", name])));
    let ours = offered(&client, "meet", 1).await;
    assert_eq!(within("an answer", ours.call_bytes(Codec::Text, "us")).await.unwrap().payload, "us");
    for (name, caller) in others {
        let (status, output, errors) = caller.wait();
        assert_eq!((status.code(), output.trim_end()), (Some(0), name), "{errors}");
    }
}

/// Q-API: clients each say hello, the server tells all of them something and knows that all have it, then each something of
/// its own; then all close. Payloads that look like ids or ends are payloads.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_hears_tells_all_and_answers_each_of_its_clients() {
    for count in [1, 8] {
        let cluster = Cluster::new();
        let server = cluster.start("server").await;
        let mut hellos = server.listen("hello").await.unwrap();
        let client = async |_| {
            let client = cluster.start("client").await;
            let heard = (client.listen("news").await.unwrap(), client.listen("yours").await.unwrap());
            let hello = client.publisher("hello").unwrap();
            listened_by(&hello, 1).await;
            assert_eq!(hello.send("Hello, World!").await.unwrap().sent, 1);
            (client, heard)
        };
        let mut clients = join_all((0..count).map(client)).await;
        let mut from = HashSet::new();
        for _ in 0..count {
            let hello = next(&mut hellos).await;
            assert_eq!(hello.decode::<String>().unwrap(), "Hello, World!");
            from.insert(hello.from);
        }
        assert_eq!(from, clients.iter().map(|(client, _)| client.id()).collect());
        let (news, yours) = (server.publisher("news").unwrap(), server.publisher("yours").unwrap());
        listened_by(&news, count).await;
        listened_by(&yours, count).await;
        let to = |target| SendOptions { target, timeout: Some(PATIENCE), ..SendOptions::default() }.acked();
        for payload in ["Hello, World!".into(), server.id().to_string().into(), Bytes::new()] {
            let told = news.submit(Codec::Bytes, payload.clone(), &to(Target::All)).await.unwrap();
            for (_, (heard, _)) in &mut clients {
                assert_eq!(next(heard).await.payload, payload);
            }
            let all = SendReport { matched: count, sent: count, acknowledged: count, ..SendReport::default() };
            assert_eq!(within("all have it", told).await, all);
        }
        for (client, (_, heard)) in &mut clients {
            let payload = Bytes::from(client.id().to_string());
            let told = yours.submit(Codec::Bytes, payload.clone(), &to(Target::Node(client.id()))).await.unwrap();
            assert_eq!(next(heard).await.payload, payload);
            assert_eq!(within("it has it", told).await.acknowledged, 1);
        }
        assert!(clients.iter_mut().all(|(_, (news, yours))| news.try_next().or_else(|| yours.try_next()).is_none()));
        let mut left = HashSet::new();
        let mut events = server.events();
        let close = |(client, heard): (Node, _)| async move {
            client.shutdown().await;
            drop(heard);
        };
        within("all close", join_all(clients.into_iter().map(close))).await;
        while left.len() < count {
            let gone = |what: &What| matches!(what, What::PeerDown { .. });
            let What::PeerDown { peer, .. } = happens(&mut events, "it left", gone).await.what else { unreachable!() };
            left.insert(peer);
        }
        within("it closes", server.shutdown()).await;
    }
}

/// X-CH: what came before somebody looked, what comes then, and the end, once, as the last, also if it is an error; who has
/// finished goes on receiving.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_can_be_iterated_from_the_first_item_to_the_end() {
    let [here, there] = Cluster::new().start_all(["here", "there"]).await;
    let mut acceptor = there.accept("talk").await.unwrap();
    offered(&here, "talk", 1).await;
    for fails in [false, true] {
        let ours = within("it opens", here.open("talk")).await.unwrap();
        let theirs = within("it comes", acceptor.next()).await.unwrap();
        theirs.finish();
        for n in 0..3 {
            ours.send(&n).await.unwrap();
        }
        let (looked, mut looks) = tokio::sync::mpsc::channel(10);
        let mut iterated = theirs.clone();
        tokio::spawn(async move {
            while let Some(item) = StreamExt::next(&mut iterated).await {
                let item = item.map(|item| item.decode::<u32>().unwrap());
                looked.send(item).await.unwrap();
            }
        });
        for n in 0..3 {
            assert_eq!(within("an item", looks.recv()).await, Some(Ok(n)));
        }
        ours.send(&3).await.unwrap();
        assert_eq!(within("an item", looks.recv()).await, Some(Ok(3)), "it came while somebody looked");
        if fails {
            ours.close_with(Failure::new("over", "no more"));
            let error = within("the error", looks.recv()).await;
            assert!(
                matches!(&error, Some(Err(ChannelError::Failed(failed))) if failed.failure.kind == "over"),
                "{error:?}"
            );
        } else {
            ours.close();
        }
        assert_eq!(within("the end", looks.recv()).await, None);
    }
}

/// X-GRP: members in order, each once; a group can be closed twice; a member that does not answer holds up neither the others
/// nor, for long, the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_with_a_member_that_stands_still_comes_to_an_end() {
    let cluster = Cluster::new();
    let here = cluster.start("here").await;
    let near = cluster.start("worker").await;
    let proxy = Proxy::to(&address(&here).await).await;
    let far = cluster.builder("worker").local(false).kad(false).bootstrap([proxy.address()]).start().await.unwrap();
    until("they see each other", async || here.nodes().len() == 3).await;
    let give_back = async |channel: Channel| {
        while let Some(item) = channel.next().await? {
            channel.send_item(item).await?;
        }
        Ok(())
    };
    let _near = near.serve_channels("echo", give_back).await.unwrap();
    let _far = far.serve_channels("echo", give_back).await.unwrap();
    offered(&here, "echo", 2).await;
    let mut group = within("it opens", here.open_all("echo")).await.unwrap();
    let ids: Vec<NodeId> = group.members().iter().map(|(id, _)| *id).collect();
    assert!(ids.is_sorted() && HashSet::from([near.id(), far.id()]) == ids.into_iter().collect());
    assert_eq!(group.send_each(&1).await, Ok(vec![]));
    for _ in 0..2 {
        let answer = within("an answer", group.next()).await;
        assert!(matches!(answer, Some((_, Ok(Some(_))))), "{answer:?}");
    }
    proxy.set_flows(false);
    assert_eq!(within("sent", group.send_each(&2)).await, Ok(vec![]));
    let (who, answer) = within("an answer", group.next()).await.unwrap();
    assert!(who == near.id() && answer.unwrap().unwrap().decode() == Ok(2));
    let began = now();
    group.close();
    group.close();
    let _ = within("it is closed", group.closed()).await; // an error, if the far one is lost before
    println!("closed after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(group);
    within("it leaves", here.shutdown()).await;
}

/// E-SVC. A provider's process is killed while it has calls: they fail at once, and all others are answered by who is left.
#[tokio::test(flavor = "multi_thread")]
async fn when_a_provider_is_killed_its_calls_fail_at_once_and_others_go_on() {
    let cluster = Cluster::new();
    let [stays, client] = cluster.start_all(["stays", "client"]).await;
    let daemon = Daemon::with_key(&cluster.key, &address(&client).await);
    let _serve = daemon.home.spawn(&["serve", "work", "--exec", "sleep 1000", "--name", "killed"]);
    let service = offered(&client, "work", 1).await;
    let (killed, _) = service.providers().remove(0);
    let _echo = serve_echo(&stays, "work").await;
    offered(&client, "work", 2).await;
    let call = |idempotent, callee| {
        let options = CallOptions { callee, idempotent, timeout: Some(PATIENCE), ..CallOptions::default() };
        let service = service.clone().with(options);
        tokio::spawn(async move { service.call_bytes(Codec::Text, "x").await })
    };
    let lost: Vec<_> = (0..10).map(|_| call(false, Callee::Node(killed))).collect();
    let moved: Vec<_> = (0..10).map(|_| call(true, Callee::Any)).collect();
    let has_calls = async || {
        let seen = client.services(PATIENCE).await;
        seen.iter().any(|one| one.node == killed && one.stats.as_ref().is_some_and(|stats| stats.running > 0))
    };
    until("it has calls", has_calls).await;
    let began = now();
    drop(daemon);
    for call in lost {
        let result = within("an answer", call).await.unwrap();
        assert!(matches!(result, Err(CallError::Disconnected(node)) if node == killed), "{result:?}");
    }
    for call in moved {
        assert_eq!(within("an answer", call).await.unwrap().unwrap().node, stays.id());
    }
    println!("all have an answer {:?} after the kill", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    for _ in 0..200 {
        assert_eq!(service.call_bytes(Codec::Text, "x").await.unwrap().node, stays.id());
    }
    assert_eq!(service.providers(), [(stays.id(), stays.name().clone())]);
}

/// Z-RPC. A client's process is killed while it waits: its calls are stopped, and the server neither spins nor hangs at its end.
#[test]
fn when_a_client_is_killed_the_server_is_rid_of_it() {
    let (server, client) = two_daemons();
    let scratch = TempDir::new().unwrap();
    let pid = scratch.path().join("pid");
    let exec = format!("sleep 1000 & echo $! $$ > {}.new; mv {0}.new {0}; wait", pid.display());
    let _serve = server.home.spawn(&["serve", "work", "--exec", &exec]);
    let _listen = client.home.spawn(&["listen", "t", "--name", "reader"]);
    let _call = client.home.spawn(&["call", "work", "x", "--timeout", "1m"]);
    wait_until("the call runs", || pid.exists());
    wait_until("it listens", || server.home.ok(&["topics", "--json"]).contains("reader"));
    let began = now();
    drop(client);
    ended(&pid);
    wait_until("it is gone", || server.home.ok(&["peers", "--json"]).is_empty());
    println!("gone {:?} after the kill", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(server.home.meshd(&["send", "t", "x", "--no-wait"]).0, 3, "nobody is there");
    let worked = server.processor_time();
    std::thread::sleep(Duration::from_millis(500)); // a span to measure
    let worked = server.processor_time() - worked;
    assert!(worked < Duration::from_millis(200), "{worked:?} of half a second");
    let began = now();
    assert!(server.stop().0.success());
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

/// E-TOPO. Whoever stood for a coordinator, the peer by which all others came in, is killed: those who are there go on, can listen to
/// and offer new things, and others come in by them.
#[tokio::test(flavor = "multi_thread")]
async fn the_peer_by_which_all_came_in_may_be_killed() {
    let cluster = Cluster::new();
    let daemon = Daemon::with_key(&cluster.key, "127.0.0.1:1");
    let first = daemon.json(&["status"])["addresses"][0].as_str().unwrap().to_owned();
    let join = async |name: &str, by: &str| cluster.builder(name).local(false).bootstrap([by]).start().await.unwrap();
    let (a, b) = (join("a", &first).await, join("b", &first).await);
    until("they are linked", async || a.peers().await.unwrap().len() == 2 && b.peers().await.unwrap().len() == 2).await;
    drop(daemon);
    until("it is gone", async || a.peers().await.unwrap().len() == 1 && b.peers().await.unwrap().len() == 1).await;
    let mut new = b.listen("new").await.unwrap();
    listened_by(&a.publisher("new").unwrap(), 1).await;
    assert_eq!(a.send("new", &1).await.unwrap().sent, 1);
    assert_eq!(next(&mut new).await.decode::<u32>().unwrap(), 1);
    let c = join("c", &address(&a).await).await;
    let _echo = serve_echo(&c, "echo").await;
    assert_eq!(offered(&b, "echo", 1).await.call::<_, u32>(&7).await.unwrap(), 7, "c came in by a, and b calls it");
}

/// E-CLI: the version; the same message again and again, with time between.
#[test]
fn the_command_line_repeats_and_says_its_version() {
    let home = Home::new();
    assert_eq!(home.ok(&["--version"]).trim_end(), concat!("meshd ", env!("CARGO_PKG_VERSION")));
    let _daemon = home.run(&[]);
    let listener = home.spawn(&["listen", "t", "--count", "3"]);
    let began = now();
    home.ok(&["send", "t", "again", "--repeat", "3", "--interval", "100ms"]);
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    let (status, output, _) = listener.wait();
    assert!(status.success());
    assert_eq!(output.lines().filter(|line| line.ends_with("again")).count(), 3, "{output}");
}

/// The list of behaviours names tests that are there.
#[test]
fn every_test_in_the_list_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = fs::read_to_string(root.join("docs/CONFORMANCE.md")).unwrap();
    let mut known = 0;
    for (file, test) in list.split('`').skip(1).step_by(2).filter_map(|name| name.split_once("::")) {
        if file == "file" {
            continue; // how they are named
        }
        let path = if file.contains('/') { format!("src/{file}.rs") } else { format!("tests/it/{file}.rs") };
        let text = fs::read_to_string(root.join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "no test {test} in {path}");
        known += 1;
    }
    assert!(known > 50, "{known} are named");
}
