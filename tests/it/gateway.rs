//! A machine that offers subroutines to several programs: single replies, streams, bytes, and what must not hurt it.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream;
use meshd::{CallError, CallOptions, Codec, Failure, Node, Request, ServeOptions, Service};

use crate::cluster::{Cluster, PATIENCE, now, see_each_other, until, within};

async fn subroutine(node: &Node, name: &str) -> Service {
    let service = node.service(name).unwrap();
    assert_eq!(service.wait_for_providers(1, PATIENCE).await.len(), 1, "{name} is offered");
    service.with(CallOptions { timeout: Some(PATIENCE), ..CallOptions::default() })
}

/// P-1, P-5, P-6, P-7: a ping; the same subroutine with different arguments; bytes with named arguments; none at all.
#[tokio::test(flavor = "multi_thread")]
async fn subroutines_take_arguments_of_all_sorts_and_none() {
    let [here, there] = Cluster::new().start_all(["here", "there"]).await;
    assert!(within("a round trip", here.ping(there.id().peer, PATIENCE)).await.unwrap() > Duration::ZERO);
    let _scaled = there.serve("scaled", |(value, factor): (i64, i64)| async move { Ok::<_, Failure>(value * factor) });
    let _scaled = _scaled.await.unwrap();
    let _none = there.serve("zero", |(): ()| async move { Ok::<_, Failure>(0_u8) }).await.unwrap();
    // Named arguments first, as far as the line goes; then bytes, which nobody decodes.
    let pwm = |request: Request| async move {
        let end =
            request.payload.iter().position(|byte| *byte == b'\n').ok_or_else(|| Failure::new("malformed", ""))?;
        let named = String::from_utf8_lossy(&request.payload[..end]).into_owned();
        Ok((Codec::Text, Bytes::from(format!("{named}, {} bytes", request.payload.len() - end - 1))))
    };
    let _pwm = there.serve_requests("pwm", ServeOptions::default(), pwm).await.unwrap();

    let scaled = subroutine(&here, "scaled").await;
    assert_eq!(scaled.call::<_, i64>(&(4, 55)).await.unwrap(), 220);
    assert_eq!(scaled.call::<_, i64>(&(-1, 7)).await.unwrap(), -7);
    assert_eq!(subroutine(&here, "zero").await.call::<_, u8>(&()).await.unwrap(), 0);
    let reply = subroutine(&here, "pwm").await.call_bytes(Codec::Bytes, &b"pin=2\n\x00\xff\x00"[..]).await.unwrap();
    assert_eq!((reply.codec, &reply.payload[..]), (Codec::Text, &b"pin=2, 3 bytes"[..]));
}

/// P-4: a stream of ten numbered items, its end, and a second one with other arguments.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_numbered_items_ends() {
    let [here, there] = Cluster::new().start_all(["here", "there"]).await;
    let sensor = |(first, count): (u64, u64)| stream::iter((first..first + count).map(Ok::<_, Failure>));
    let _sensor = there.serve_stream("sensor", sensor).await.unwrap();
    subroutine(&here, "sensor").await;
    for (first, count) in [(0, 10), (55, 4)] {
        let mut items = within("it begins", here.call_stream::<_, u64>("sensor", &(first, count))).await.unwrap();
        for item in first..first + count {
            assert_eq!(within("an item", items.next()).await, Some(Ok(item)));
        }
        assert_eq!(within("the end", items.next()).await, None);
    }
}

/// P-8: when the client is done, nothing of it is left at the other side; to be done twice harms nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_leaves_nothing_behind() {
    let cluster = Cluster::new();
    let [there, client] = cluster.start_all(["there", "client"]).await;
    let _zero = there.serve("zero", |(): ()| async move { Ok::<_, Failure>(0_u8) }).await.unwrap();
    let zero = subroutine(&client, "zero").await;
    assert_eq!(zero.call::<_, u8>(&()).await.unwrap(), 0);
    let again = client.clone();
    within("it ends", client.shutdown()).await;
    within("again", again.shutdown()).await;
    assert!(matches!(zero.call::<_, u8>(&()).await, Err(CallError::Closed | CallError::NoProvider(_))));
    until("it is forgotten", async || there.peers().await.unwrap().is_empty()).await;
    assert_eq!(there.nodes().len(), 1);
}

/// Elsewhere, of ten that came at a time two were served. And one that failed ended what served it.
#[tokio::test(flavor = "multi_thread")]
async fn ten_that_come_at_once_are_all_served_and_a_failure_is_nobody_elses() {
    let cluster = Cluster::new();
    let there = cluster.start("there").await;
    let handler = |fails: bool| async move { if fails { Err(Failure::new("broken", "as asked")) } else { Ok(42_u8) } };
    let _answer = there.serve("answer", handler).await.unwrap();
    let starts = join_all((0..10).map(|number| cluster.builder(&format!("client {number}")).start())).await;
    let clients: Vec<Node> = starts.into_iter().map(Result::unwrap).collect();
    let ask = async |client: &Node| {
        let answer = subroutine(client, "answer").await;
        for round in 0..20 {
            match answer.call::<_, u8>(&(round % 4 == 0)).await {
                Ok(reply) => assert_eq!((reply, round % 4 == 0), (42, false)),
                Err(CallError::Remote(failed)) => assert_eq!((&failed.failure.kind[..], round % 4), ("broken", 0)),
                Err(other) => panic!("{other}"),
            }
        }
    };
    within("all are served", join_all(clients.iter().map(ask))).await;
    see_each_other(&clients).await;
}

/// Elsewhere, half of all requests took 44 to 92 ms: small writes waited for acknowledgements of the ones before.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_request_waits_for_no_timer() {
    let cluster = Cluster::new();
    let (here, there) = (cluster.builder("here").local(false), cluster.builder("there").local(false));
    let there = there.start().await.unwrap();
    let here = here.bootstrap([crate::cluster::address(&there).await]).start().await.unwrap();
    let _zero = there.serve("zero", |(): ()| async move { Ok::<_, Failure>(0_u8) }).await.unwrap();
    let zero = subroutine(&here, "zero").await;
    let mut took = Vec::new();
    for _ in 0..100 {
        let began = now();
        zero.call::<_, u8>(&()).await.unwrap();
        took.push(began.elapsed());
    }
    took.sort_unstable();
    assert!(took[50] < Duration::from_millis(20), "half took longer than {:?}", took[50]);
}
