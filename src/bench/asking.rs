//! Round trips and calls: both halves.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::clock::{self, Latencies, Latency};
use super::order::Work;
use super::peer::Refusal;
use super::{GONE, MEETING, PATIENCE};
use crate::{Codec, Node, Publisher, Request, SendOptions, ServeOptions, Service, Serving, Subscription};

/// What answers, until it is dropped.
#[derive(Debug)]
pub(super) struct Echo {
    _serving: Serving,
    _messages: JoinSet<()>,
}

impl Echo {
    /// Sends every message back, and answers every call with what it asks.
    pub(super) async fn start(node: &Node, in_flight: usize) -> Result<Self, Refusal> {
        let mut pings = node.listen(PING).await?;
        let pong = node.publisher(PONG)?;
        let mut messages = JoinSet::new();
        messages.spawn(async move {
            while let Some(message) = pings.next().await {
                let _ = pong.send_bytes(message.payload).await; // who waits for it says that it did not come
            }
        });
        let defaults = ServeOptions::default();
        let options = ServeOptions { concurrency: in_flight.max(defaults.concurrency), ..defaults };
        let answer = |request: Request| async move { Ok((request.codec, request.payload)) };
        Ok(Self { _serving: node.serve_requests(SERVICE, options, answer).await?, _messages: messages })
    }
}

/// Where echoes come. Kept for all that is measured: whoever listens anew is not heard of by others for some milliseconds.
pub(super) async fn echoes(node: &Node) -> Result<Subscription, Refusal> {
    Ok(node.listen(PONG).await?)
}

/// Sends a message and waits until it is back, one after the other. Gives how long that took, and how many did not come back.
pub(super) async fn trips(node: &Node, pongs: &mut Subscription, work: Work) -> Result<(Latency, u64), Refusal> {
    let ping = node.publisher(PING)?;
    if ping.wait_for_listeners(1, MEETING).await == 0 {
        return Err("nobody echoes".into());
    }
    hear_an_echo(&ping, pongs).await?;
    let options = SendOptions { timeout: Some(PATIENCE), ..SendOptions::default() };
    let payload = Bytes::from(vec![7; work.size]);
    let (start, end) = span(&work);
    let mut latencies = Latencies::new();
    let (mut measured, mut lost) = (0, 0);
    // One timer for many trips: to set one costs a part of what a trip takes.
    let mut timer = pin!(sleep(LOST));
    let mut timer_set = clock::now();
    while measured < work.count {
        let sent = clock::now();
        if sent >= end && measured > 0 {
            break;
        }
        if sent - timer_set > clock::nanos(LOST / 2) {
            timer.as_mut().reset(Instant::now() + LOST);
            timer_set = sent;
        }
        if ping.publish(Codec::Bytes, payload.clone(), &options).await?.sent == 0 {
            return Err(GONE.into());
        }
        let back = tokio::select! {
            biased; // an echo that is there is not lost
            back = pongs.next() => back.ok_or("the mesh ended")?,
            () = timer.as_mut() => {
                lost += 1;
                if lost >= MOST_LOST {
                    return Err(format!("{lost} echoes did not come back").into());
                }
                hear_an_echo(&ping, pongs).await?; // and none that comes late after all
                timer.as_mut().reset(Instant::now() + LOST);
                timer_set = clock::now();
                continue;
            }
        };
        if back.payload.len() != work.size {
            return Err("an echo is not what was sent".into());
        }
        if sent >= start {
            latencies.record(clock::now() - sent);
            measured += 1;
        }
    }
    let latency = latencies.summary().ok_or("nothing was measured")?;
    Ok((latency, lost))
}

/// Whoever echoes may not know yet that somebody listens to the echo. Leaves no echo behind.
async fn hear_an_echo(ping: &Publisher, pongs: &mut Subscription) -> Result<(), Refusal> {
    for attempt in 0..(MEETING.as_millis() / AGAIN.as_millis()) as u64 {
        let probe = Bytes::from(attempt.to_be_bytes().to_vec());
        ping.send_bytes(probe.clone()).await?;
        let heard = async { while pongs.next().await.is_some_and(|pong| pong.payload != probe) {} };
        if timeout(AGAIN, heard).await.is_ok() {
            return Ok(());
        }
    }
    Err("no echo comes back".into())
}

/// Calls, so many at a time. Gives how many calls were answered in how many nanoseconds, and how long each took.
pub(super) async fn calls(node: &Node, work: Work, in_flight: usize) -> Result<(u64, u64, Latency), Refusal> {
    let service = node.service(SERVICE)?;
    if service.wait_for_providers(1, MEETING).await.is_empty() {
        return Err("nobody offers the service".into());
    }
    let payload = Bytes::from(vec![7; work.size]);
    let (start, end) = span(&work);
    let caller = Arc::new((service, payload, start, end));
    let (each, more) = (work.count / in_flight as u64, work.count % in_flight as u64);
    let counts = (0..in_flight as u64).map(|nth| each + u64::from(nth < more)).filter(|count| *count > 0);
    let callers = counts.map(|count| {
        let (caller, work) = (Arc::clone(&caller), Work { count, ..work });
        tokio::spawn(async move {
            let (service, payload, start, end) = &*caller;
            call_on(service, payload, &work, *start, *end).await
        })
    });
    let mut latencies = Latencies::new();
    let (mut first, mut last) = (u64::MAX, 0);
    for one in try_join_all(callers).await? {
        let (one, begun, ended) = one?;
        latencies.add(&one);
        (first, last) = (first.min(begun), last.max(ended));
    }
    let latency = latencies.summary().ok_or("nothing was measured")?;
    Ok((latency.samples, last - first, latency))
}

/// Calls one after the other. Gives when the first call that counts began, and when the last ended.
async fn call_on(
    service: &Service,
    payload: &Bytes,
    work: &Work,
    start: u64,
    end: u64,
) -> Result<(Latencies, u64, u64), Refusal> {
    let mut latencies = Latencies::new();
    let (mut first, mut last) = (u64::MAX, 0);
    let mut measured = 0;
    while measured < work.count {
        let asked = clock::now();
        if asked >= end && measured > 0 {
            break;
        }
        let reply = service.call_bytes(Codec::Bytes, payload.clone()).await?;
        if reply.payload.len() != work.size {
            return Err("a reply is not what was asked for".into());
        }
        if asked >= start {
            last = clock::now();
            first = first.min(asked);
            latencies.record(last - asked);
            measured += 1;
        }
    }
    Ok((latencies, first, last))
}

/// When measuring starts and ends.
fn span(work: &Work) -> (u64, u64) {
    let start = clock::now() + clock::nanos(work.warm);
    (start, start + clock::nanos(work.time))
}

const PING: &str = "ping";
const PONG: &str = "pong";
const SERVICE: &str = "echo";
/// Until a message whose echo did not come is sent again.
const AGAIN: Duration = Duration::from_millis(200);
/// After this time an echo counts as lost; after half of it at the earliest.
const LOST: Duration = Duration::from_secs(2);
/// So many lost echoes are no measurement any more.
const MOST_LOST: u64 = 5;
