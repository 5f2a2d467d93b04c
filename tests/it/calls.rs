//! Services and calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use futures::{FutureExt, StreamExt};
use meshd::{CallError, CallOptions, Callee, Codec, Failure, Node, NodeName, ServeOptions, Service};
use tokio::sync::{Notify, mpsc};

use crate::cluster::{Cluster, PATIENCE, now, until, within};

async fn offered(node: &Node, service: &str, by: usize) -> Service {
    let service = node.service(service).unwrap();
    assert_eq!(service.wait_for_providers(by, PATIENCE).await.len(), by, "{} is offered", service.name());
    service
}

fn patient() -> CallOptions {
    CallOptions { timeout: Some(PATIENCE), ..CallOptions::default() }
}

/// Calls that count at the node what they do: how many began, how many are still at it.
#[derive(Clone, Default)]
struct Works {
    began: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    go_on: Arc<Notify>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Works {
    async fn wait(self) -> Result<(), Failure> {
        self.began.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        let _open = Open(self.open);
        self.go_on.notified().await;
        Ok(())
    }

    fn began(&self) -> usize {
        self.began.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// Z-RPC, E-SVC, E-NODE: the demonstrations of both, 17 + 25 = 42 and 2 * 2 = 4; a handler sees the state that it was given.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_gives_back_what_the_handler_returns() {
    let [server, client] = Cluster::new().start_all(["server", "client"]).await;
    let _add = server.serve("add", |(a, b): (i64, i64)| async move { Ok::<_, Failure>(a + b) }).await.unwrap();
    let _multiply =
        server.serve("multiply", |(a, b): (i64, i64)| async move { Ok::<_, Failure>(a * b) }).await.unwrap();
    let factor = Arc::new(AtomicUsize::new(10));
    let state = Arc::clone(&factor);
    let scale = move |n: usize| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Failure>(n * state.load(Ordering::SeqCst)) }
    };
    let _scale = server.serve("scale", scale).await.unwrap();
    offered(&client, "scale", 1).await;
    assert_eq!(client.call::<_, i64>("add", &(17, 25)).await.unwrap(), 42);
    assert_eq!(client.call::<_, i64>("multiply", &(2, 2)).await.unwrap(), 4);
    factor.store(3, Ordering::SeqCst);
    assert_eq!(client.call::<_, usize>("scale", &5).await.unwrap(), 15);
    // A node calls itself and its siblings as it calls others.
    assert_eq!(server.call::<_, i64>("add", &(1, 2)).await.unwrap(), 3);
}

/// Z-DISC: nobody before the start, one after, nobody after the end; two, then one whichever stops first.
#[tokio::test(flavor = "multi_thread")]
async fn providers_come_and_go() {
    let [a, b, client] = Cluster::new().start_all(["a", "b", "client"]).await;
    let service = client.service("question").unwrap();
    let began = now();
    assert_eq!(service.wait_for_providers(1, Duration::from_millis(50)).await, []);
    assert!(began.elapsed() >= Duration::from_millis(50), "the time to wait is used up");
    let answer = |(): ()| async { Ok::<_, Failure>(42) };
    for first_in_first_out in [true, false] {
        let on_a = a.serve("question", answer).await.unwrap();
        assert_eq!(service.wait_for_providers(1, PATIENCE).await, [(a.id(), a.name().clone())]);
        let on_b = b.serve("question", answer).await.unwrap();
        assert_eq!(service.wait_for_providers(2, PATIENCE).await.len(), 2);
        // Fewer than wanted: what is there when time runs out.
        assert_eq!(service.wait_for_providers(3, Duration::from_millis(20)).await.len(), 2);
        let (stops, stays, left) = if first_in_first_out { (on_a, on_b, &b) } else { (on_b, on_a, &a) };
        drop(stops);
        until("one is left", async || service.providers() == [(left.id(), left.name().clone())]).await;
        assert_eq!(service.call::<_, i32>(&()).await.unwrap(), 42);
        drop(stays);
        until("nobody is left", async || !service.has_providers()).await;
    }
    assert!(matches!(service.call::<_, i32>(&()).await, Err(CallError::NoProvider(_))));
}

/// Z-RPC: a call picks any of two providers, evenly; `node=` picks exactly that one.
#[tokio::test(flavor = "multi_thread")]
async fn calls_share_out_evenly_and_can_be_addressed() {
    let [a, b, client] = Cluster::new().start_all(["a", "b", "client"]).await;
    let counts = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let mut guards = Vec::new();
    for (node, count) in [&a, &b].into_iter().zip(&counts) {
        let count = Arc::clone(count);
        let name = node.name().to_string();
        let handler = move |(): ()| {
            count.fetch_add(1, Ordering::SeqCst);
            let name = name.clone();
            async move { Ok::<_, Failure>(name) }
        };
        guards.push(node.serve("who", handler).await.unwrap());
    }
    let service = offered(&client, "who", 2).await;
    for _ in 0..1000 {
        service.call::<_, String>(&()).await.unwrap();
    }
    let shares = counts.map(|count| count.load(Ordering::SeqCst));
    assert_eq!(shares, [500, 500]);
    for node in [&a, &b] {
        for callee in [Callee::Node(node.id()), Callee::Group(node.name().clone())] {
            let to = service.clone().with(CallOptions { callee, ..patient() });
            for _ in 0..5 {
                assert_eq!(to.call::<_, String>(&()).await.unwrap(), node.name().as_str());
            }
        }
    }
}

/// Z-RPC, E-SVC: an unknown service, node or method is its own error, at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_an_error_of_its_own_at_once() {
    let [server, client] = Cluster::new().start_all(["server", "client"]).await;
    let _other = server.serve("other", |(): ()| async { Ok::<_, Failure>(()) }).await.unwrap();
    let began = now();
    let call = async |service: &str, callee| {
        let service = client.service(service).unwrap().with(CallOptions { callee, ..CallOptions::default() });
        service.call::<_, ()>(&()).await.unwrap_err()
    };
    let error = call("nothing", Callee::Any).await;
    assert!(matches!(error, CallError::NoProvider(_)) && error.did_not_run(), "{error:?}");
    let nobody = Callee::Group(NodeName::new("nobody").unwrap());
    assert!(matches!(call("nothing", nobody).await, CallError::NoSuchNode(name) if name == "nobody"));
    let group = Callee::Group(server.name().clone());
    assert!(matches!(call("nothing", group).await, CallError::NotOffered { .. }));
    let error = call("nothing", Callee::Node(server.id())).await;
    assert!(matches!(error, CallError::NotOffered { .. }), "{error:?}");
    assert!(matches!(client.service("a\nb"), Err(CallError::Name(_))));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[derive(Debug, thiserror::Error)]
#[error("the map is torn")]
struct Torn(#[source] std::num::ParseIntError);

/// Z-RPC, E-SVC, X-CH: a remote failure keeps its kind, message and causes; a panic is one too; the service lives on.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_handler_fails_its_call_alone() {
    let [server, client] = Cluster::new().start_all(["server", "client"]).await;
    let handler = |how: String| async move {
        match how.as_str() {
            "panic" => panic!("no way"),
            "own" => Err(Failure::new("not-found", "there is no such map")),
            "error" => Err(Torn("x".parse::<i32>().unwrap_err()).into()),
            _ => Ok(how),
        }
    };
    let serving = server.serve("map", handler).await.unwrap();
    let service = offered(&client, "map", 1).await;
    for (how, kind, message, causes) in [
        ("panic", Failure::PANICKED, "no way", 0),
        ("own", "not-found", "there is no such map", 0),
        ("error", "Torn", "the map is torn", 1),
    ] {
        let error = service.call::<_, String>(how).await.unwrap_err();
        let CallError::Remote(remote) = error else { panic!("{error:?}") };
        assert_eq!(remote.node, server.id());
        assert!(remote.failure.kind.ends_with(kind), "{remote:?}");
        assert_eq!((remote.failure.message.as_str(), remote.failure.causes.len()), (message, causes));
    }
    // A request that is no such value is the caller's error, not the service's end.
    let error = service.call::<_, String>(&7).await.unwrap_err();
    assert!(matches!(&error, CallError::Remote(remote) if remote.failure.kind == Failure::BAD_REQUEST), "{error:?}");
    assert!(matches!(service.call::<_, i32>("fine").await, Err(CallError::Decode { .. })));
    assert_eq!(service.call::<_, String>("fine").await.unwrap(), "fine");
    let stats = serving.stats();
    assert_eq!((stats.calls, stats.errors, stats.running), (6, 4, 0));
    assert!(stats.p50_us.is_some_and(|p50| p50 > 0 && p50 < 1_000_000), "{stats:?}");
    let seen = client.services(PATIENCE).await;
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].node, seen[0].stats.as_ref().map(|stats| stats.calls)), (server.id(), Some(6)));
}

/// On one thread, a call and its end are read before anything runs: the handler is stopped before it began.
#[tokio::test]
async fn calls_that_are_taken_back_before_they_began_leave_their_turns() {
    let [server, client] = Cluster::new().start_all(["server", "client"]).await;
    let options = ServeOptions { concurrency: 2, ..ServeOptions::default() };
    let _echo = server.serve_with("echo", options, |n: u64| async move { Ok::<_, Failure>(n) }).await.unwrap();
    let service = offered(&client, "echo", 1).await.with(patient());
    for n in 0..100 {
        let nobody_waits = service.call::<u64, u64>(&n).now_or_never();
        assert!(nobody_waits.is_none(), "it is on its way");
    }
    assert_eq!(within("the service is free", service.call::<u64, u64>(&7)).await.unwrap(), 7);
}

/// Z-RPC: a call that timed out leaves the server free; a cancelled one stops its handler.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_waits_for_stops() {
    let [server, client] = Cluster::new().start_all(["server", "client"]).await;
    let works = Works::default();
    let mine = works.clone();
    let options = ServeOptions { concurrency: 1, ..ServeOptions::default() };
    let _slow = server.serve_with("slow", options, move |(): ()| mine.clone().wait()).await.unwrap();
    let service = offered(&client, "slow", 1).await;

    let short = CallOptions { timeout: Some(Duration::from_millis(100)), ..CallOptions::default() };
    let hasty = service.clone().with(short);
    let error = hasty.call::<_, ()>(&()).await.unwrap_err();
    assert!(matches!(error, CallError::TimedOut(_)) && !error.did_not_run(), "{error:?}");
    until("the handler is stopped", async || works.open() == 0).await;

    // One runs, one waits; the one that waits is taken back before it began.
    let running = tokio::spawn({
        let service = service.clone().with(patient());
        async move { service.call::<_, ()>(&()).await }
    });
    until("it runs", async || works.began() == 2 && works.open() == 1).await;
    assert!(matches!(hasty.call::<_, ()>(&()).await, Err(CallError::TimedOut(_))));
    running.abort();
    until("the handler is stopped", async || works.open() == 0).await;
    assert_eq!(works.began(), 2, "what was taken back never began");

    works.go_on.notify_one();
    within("the service is free", service.call::<_, ()>(&())).await.unwrap();
}

/// A limit of concurrency and of the line: beyond, `Busy` at once, and another provider if there is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_service_says_so_and_others_step_in() {
    let [a, b, client] = Cluster::new().start_all(["a", "b", "client"]).await;
    let works = Works::default();
    let mine = works.clone();
    let options = ServeOptions { concurrency: 2, waiting: 3, ..ServeOptions::default() };
    let serving = a.serve_with("work", options, move |(): ()| mine.clone().wait()).await.unwrap();
    let service = offered(&client, "work", 1).await.with(patient());
    let calls: Vec<_> = (0..5)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move { service.call::<_, ()>(&()).await })
        })
        .collect();
    until("two run and three wait", async || serving.stats().running == 2 && serving.stats().waiting == 3).await;
    let error = within("it is refused", service.call::<_, ()>(&())).await.unwrap_err();
    assert!(matches!(error, CallError::Busy(_)) && error.did_not_run(), "{error:?}");
    assert_eq!(serving.stats().busy, 1);

    // Whoever waits gets its turn when there is room.
    let waits = service.clone().with(CallOptions { wait_when_busy: true, ..patient() });
    let waiting = tokio::spawn(async move { waits.call::<_, ()>(&()).await });
    let helps = b.serve("work", |(): ()| async { Ok::<_, Failure>(()) }).await.unwrap();
    offered(&client, "work", 2).await;
    within("the other provider answers", waiting).await.unwrap().unwrap();
    within("the other provider answers", service.call::<_, ()>(&())).await.unwrap();
    drop(helps);
    until("it is alone again", async || service.providers().len() == 1).await;
    until("all are answered", async || {
        works.go_on.notify_waiters();
        calls.iter().all(tokio::task::JoinHandle::is_finished)
    })
    .await;
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(works.began(), 5);
}

/// X-GRP: a call of all gives a queue of node and reply, with an end; one that left is no hang.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_all_ends_when_all_answered_or_left() {
    let [a, b, c, client] = Cluster::new().start_all(["a", "b", "c", "client"]).await;
    let mut guards = Vec::new();
    for node in [&a, &b] {
        let name = node.name().to_string();
        let handler = move |(): ()| {
            let name = name.clone();
            async move { Ok::<_, Failure>(name) }
        };
        guards.push(node.serve("name", handler).await.unwrap());
    }
    let works = Works::default();
    let mine = works.clone();
    guards.push(c.serve("name", move |(): ()| mine.clone().wait()).await.unwrap());
    let service = offered(&client, "name", 3).await.with(patient());
    let mut replies = service.call_all(&()).unwrap();
    let mut names = Vec::new();
    for _ in 0..2 {
        let (node, reply) = within("a reply comes", replies.next_as::<String>()).await.unwrap();
        names.push((node, reply.unwrap()));
    }
    names.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(names, [(a.id(), "a".to_owned()), (b.id(), "b".to_owned())]);
    until("the third is at it", async || works.open() == 1).await;
    guards.truncate(2);
    let id = c.id();
    c.shutdown().await;
    let (node, reply) = within("the one that left is told of", replies.next()).await.unwrap();
    assert_eq!(node, id);
    assert!(matches!(reply, Err(CallError::Disconnected(_))), "{reply:?}");
    assert!(replies.next().await.is_none());
}

/// 100,000 calls at once from one client: bounded, never a closed connection. E-SVC: when all numbers are in use, an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_calls_is_answered_or_told_busy() {
    let [server, client] = Cluster::new().start_all(["server", "client"]).await;
    let wide = ServeOptions { concurrency: 100_000, waiting: 0, ..ServeOptions::default() };
    let works = Works::default();
    let mine = works.clone();
    let _serving = server.serve_with("hold", wide, move |(): ()| mine.clone().wait()).await.unwrap();
    let service = offered(&client, "hold", 1).await.with(patient());
    let (results, mut done) = mpsc::channel(1000);
    for _ in 0..100_000 {
        let (service, results) = (service.clone(), results.clone());
        tokio::spawn(async move {
            let result = service.call::<_, ()>(&()).await;
            let _ = results.send(result).await;
        });
    }
    drop(results);
    let mut busy = 0;
    while busy < 100_000 - 65_536 {
        let result = within("those beyond the limit are refused", done.recv()).await.unwrap();
        assert!(matches!(result, Err(CallError::Busy(_))), "{result:?}");
        busy += 1;
    }
    until("65,536 run at once over one link", async || works.open() == 65_536).await;
    works.go_on.notify_waiters();
    let mut answered = 0;
    while let Some(result) = within("all are answered", done.recv()).await {
        result.unwrap();
        answered += 1;
    }
    assert_eq!(answered, 65_536);
    assert_eq!(client.status().await.unwrap().counts.links_lost, 0);
}

/// E-SVC: a provider that goes fails only the calls that it had, all of them, at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_provider_fails_only_the_calls_that_it_had() {
    let [a, b, client] = Cluster::new().start_all(["a", "b", "client"]).await;
    let answer = |n: u64| async move { Ok::<_, Failure>(n) };
    let guard = a.serve("echo", answer).await.unwrap();
    let _stays = b.serve("echo", answer).await.unwrap();
    let service = offered(&client, "echo", 2).await.with(patient());
    let idempotent = service.clone().with(CallOptions { idempotent: true, ..patient() });
    let left = a.id();
    let call = async |service: &Service| {
        for n in 0..500 {
            match service.call::<_, u64>(&n).await {
                Ok(reply) => assert_eq!(reply, n),
                Err(CallError::Disconnected(node)) if node == left => return 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        0
    };
    let callers = join_all((0..64).map(|n| call(if n % 2 == 0 { &service } else { &idempotent })));
    let leave = async {
        drop(guard);
        a.shutdown().await;
    };
    let (lost, ()) = within("no call hangs", async { tokio::join!(callers, leave) }).await;
    assert!(lost.iter().skip(1).step_by(2).all(|lost| *lost == 0), "idempotent calls all succeed");
    assert_eq!(service.providers(), [(b.id(), b.name().clone())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_replies_of_all_sizes_and_codecs_arrive() {
    // Z-MSG: requests and replies, empty ones too.
    let [server, client] = Cluster::new().start_all(["server", "client"]).await;
    let echo = |request: meshd::Request| async move { Ok((request.codec, request.payload)) };
    let _echo = server.serve_requests("echo", ServeOptions::default(), echo).await.unwrap();
    let service = offered(&client, "echo", 1).await;
    for size in [0, 1, 8 << 10, (8 << 10) + 1, 1 << 20, 10 << 20] {
        let reply = service.call_bytes(Codec::Json, vec![7; size]).await.unwrap();
        assert_eq!((reply.codec, reply.payload.len(), reply.node), (Codec::Json, size, server.id()));
    }
    let error = service.call_bytes(Codec::Bytes, vec![0; (64 << 20) + 1]).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { max: Some(_), .. }), "{error:?}");
}

/// E-NODE: a service is offered once by a node, and can be offered again after its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_offers_a_service_once_at_a_time() {
    let node = Cluster::new().start("node").await;
    let one = |(): ()| async { Ok::<_, Failure>(1) };
    let serving = node.serve("x", one).await.unwrap();
    assert!(node.serve("x", one).await.is_err());
    assert_eq!(node.call::<_, i32>("x", &()).await.unwrap(), 1);
    serving.drain().await;
    // Its end and the next beginning come in that order, however often.
    for round in 0..50 {
        let again = node.serve("x", move |(): ()| async move { Ok::<_, Failure>(round) }).await.unwrap();
        assert_eq!(node.call::<_, i32>("x", &()).await.unwrap(), round);
        drop(again);
    }
}

/// A process that leaves leaves no call of its own hanging.
#[tokio::test(flavor = "multi_thread")]
async fn calls_end_when_their_caller_leaves() {
    let [server, client] = Cluster::new().start_all(["server", "client"]).await;
    let works = Works::default();
    let mine = works.clone();
    let _slow = server.serve("slow", move |(): ()| mine.clone().wait()).await.unwrap();
    let service = offered(&client, "slow", 1).await.with(patient());
    let call = tokio::spawn(async move { service.call::<_, ()>(&()).await });
    until("it runs", async || works.open() == 1).await;
    let began = now();
    client.shutdown().await;
    let error = within("the call ends", call).await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Disconnected(_) | CallError::Closed), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    until("the handler is stopped", async || works.open() == 0).await;
}

/// Answers that a slow caller does not read keep nobody else from the service.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_does_not_read_keeps_nobody_from_a_service() {
    let [server, other] = Cluster::new().start_all(["server", "other"]).await;
    // Bytes as they are: to decode forty vectors takes both cores for seconds, and then it is beats that are late.
    let large = |request: meshd::Request| async move {
        let size = String::from_utf8_lossy(&request.payload).parse().unwrap();
        Ok::<_, Failure>((Codec::Bytes, vec![7_u8; size].into()))
    };
    let two = ServeOptions { concurrency: 2, ..ServeOptions::default() };
    let _serving = server.serve_requests("large", two, large).await.unwrap();
    let greedy = offered(&other, "large", 1).await.with(patient());
    // More than the link holds at once, asked for together.
    let size = 1 << 20;
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let greedy = greedy.clone();
            tokio::spawn(async move { greedy.call_bytes(Codec::Text, size.to_string()).await })
        })
        .collect();
    for call in calls {
        assert_eq!(within("each is answered", call).await.unwrap().unwrap().payload.len(), size);
    }
    let small = server.service("large").unwrap().call_bytes(Codec::Text, "3").await.unwrap();
    assert_eq!(small.payload, [7; 3][..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_was_quick_and_then_takes_long_runs_calls_beside_each_other_as_before() {
    let cluster = Cluster::new();
    let [caller, provider] = cluster.start_all(["caller", "provider"]).await;
    let (release, released) = tokio::sync::watch::channel(false);
    let handler = move |request: meshd::Request| {
        let mut released = released.clone();
        async move {
            if request.payload == "wait" {
                let _ = released.wait_for(|released| *released).await;
            }
            assert_ne!(request.payload, "panic");
            Ok((request.codec, request.payload))
        }
    };
    let _serving = provider.serve_requests("echo", ServeOptions::default(), handler).await.unwrap();
    let echo = caller.service("echo").unwrap();
    assert_eq!(echo.wait_for_providers(1, PATIENCE).await.len(), 1);
    let call = async |payload: &'static str| within("an answer", echo.call_bytes(Codec::Bytes, payload)).await;
    for _ in 0..3 {
        for _ in 0..200 {
            assert_eq!(call("quick").await.unwrap().payload, "quick");
        }
        assert!(matches!(call("panic").await, Err(CallError::Remote(failure)) if failure.failure.kind == "panicked"));
        for _ in 0..200 {
            call("quick").await.unwrap();
        }
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let echo = echo.clone();
                tokio::spawn(async move { echo.call_bytes(Codec::Bytes, "wait").await })
            })
            .collect();
        // Ten wait, and others are answered meanwhile.
        until("all ten run", async || provider.services(PATIENCE).await[0].stats.as_ref().unwrap().running == 10).await;
        call("quick").await.unwrap();
        // One that is given up is stopped.
        waiting[0].abort();
        until("nine run", async || provider.services(PATIENCE).await[0].stats.as_ref().unwrap().running == 9).await;
        release.send_replace(true);
        for waited in waiting.into_iter().skip(1) {
            assert_eq!(within("it goes on", waited).await.unwrap().unwrap().payload, "wait");
        }
        release.send_replace(false);
    }
}
