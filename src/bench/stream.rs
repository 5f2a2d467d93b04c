//! One sender, many listeners, as fast as it goes or at a pace: both halves.
//!
//! What is measured lies between two marks on the topic: before is warming up. Marks are told from messages by their codec.

use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::clock::{self, Latencies, Latency};
use super::order::{Answer, Work};
use super::peer::Refusal;
use super::{GONE, MEETING, PATIENCE};
use crate::{Codec, ListenOptions, Node, Overflow, Publisher, SendOptions, Subscription, Target};

/// What is sent, and to how many.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Flood {
    pub(super) topic: String,
    pub(super) listeners: usize,
    pub(super) work: Work,
    /// Messages per second. `None`: as many as go.
    pub(super) rate: Option<f64>,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Sent {
    /// Messages that are measured.
    pub(super) messages: u64,
    /// All messages, the marks too.
    pub(super) all: u64,
}

/// What is listened to, by how many nodes of one peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Take {
    pub(super) topic: String,
    /// Begins the names of the nodes: no two takers have the same.
    pub(super) name: String,
    pub(super) nodes: usize,
}

/// What the nodes of one peer received.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Taken {
    /// Messages, of all nodes together.
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// When the first message came, and when nothing came any more.
    pub(super) first: u64,
    pub(super) last: u64,
    /// Messages that came over the links of the peer, the marks too.
    pub(super) frames: u64,
    /// From when a message was to be sent until it was received, if it was sent at a pace.
    pub(super) latency: Option<Latency>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Mark {
    Begin(Option<Pace>),
    End,
}

/// When each message is to be sent. Latency counts from then: who falls behind the pace does not hide it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Pace {
    start: u64,
    /// Nanoseconds from one to the next.
    interval: f64,
}

impl Pace {
    fn new(start: u64, rate: f64) -> Self {
        Self { start, interval: 1e9 / rate }
    }

    fn due(&self, number: u64) -> u64 {
        self.start + (number as f64 * self.interval) as u64
    }
}

/// Sends a flood.
pub(super) async fn flood(node: &Node, flood: Flood) -> Result<Sent, Refusal> {
    let publisher = node.publisher(&flood.topic)?;
    if publisher.wait_for_listeners(flood.listeners, MEETING).await < flood.listeners {
        return Err("the listeners were not seen in time".into());
    }
    let Work { size, warm, time, count } = flood.work;
    let payload = Bytes::from(vec![7; size]);
    let mut sender = Sender { publisher, payload, listeners: flood.listeners, all: 0 };
    sender.burst(warm, count, flood.rate.map(|rate| Pace::new(clock::now(), rate))).await?;
    let pace = flood.rate.map(|rate| Pace::new(clock::now() + clock::nanos(HEAD_START), rate));
    sender.mark(&Mark::Begin(pace)).await?;
    let messages = sender.burst(time, count, pace).await?;
    sender.mark(&Mark::End).await?;
    Ok(Sent { messages, all: sender.all })
}

struct Sender {
    publisher: Publisher,
    payload: Bytes,
    listeners: usize,
    all: u64,
}

impl Sender {
    /// Sends for that long, and at most so many.
    async fn burst(&mut self, time: Duration, count: u64, pace: Option<Pace>) -> Result<u64, Refusal> {
        let options = SendOptions { timeout: Some(PATIENCE), ..SendOptions::default() };
        let until = pace.map_or_else(clock::now, |pace| pace.start) + clock::nanos(time);
        // The clock costs a part of what a small message costs.
        let every = if self.payload.len() < 8192 { 32 } else { 1 };
        let mut sent = 0;
        while sent < count {
            match pace {
                // All that is due in that time is sent, unless it takes twice as long.
                Some(pace) if pace.due(sent) >= until || clock::now() >= until + clock::nanos(time) => break,
                Some(pace) => wait_until(pace.due(sent)).await,
                None if sent % every == 0 && sent > 0 && clock::now() >= until => break,
                None => {}
            }
            let report = self.publisher.publish(Codec::Bytes, self.payload.clone(), &options).await?;
            if report.matched < self.listeners {
                return Err(GONE.into());
            }
            sent += 1;
        }
        self.all += sent;
        Ok(sent)
    }

    async fn mark(&mut self, mark: &Mark) -> Result<(), Refusal> {
        let options = SendOptions { target: Target::All, timeout: Some(PATIENCE), ..SendOptions::default() };
        let text = serde_json::to_vec(mark)?;
        let report = self.publisher.publish(Codec::Json, text.into(), &options).await?;
        self.all += 1;
        if report.sent < self.listeners { Err(GONE.into()) } else { Ok(()) }
    }
}

/// Waits for a time that may be less than a microsecond off, which no timer can.
async fn wait_until(due: u64) {
    loop {
        match Duration::from_nanos(due.saturating_sub(clock::now())) {
            Duration::ZERO => return,
            left if left > TIMERS => sleep(left - TIMERS).await, // the rest is waited for awake
            _ => {
                tokio::task::yield_now().await;
                std::thread::yield_now(); // the receiver may need this processor
            }
        }
    }
}

/// Listens until the end, with so many nodes.
pub(super) async fn take(node: &Node, take: Take, answers: &mpsc::Sender<Answer>) -> Result<Taken, Refusal> {
    let options = ListenOptions { overflow: Overflow::Block, ..ListenOptions::default() };
    let before = node.status().await?.counts.received;
    let mut takers = Vec::new();
    for number in 0..take.nodes {
        let sibling = node.sibling(format!("{}-{number}", take.name)).await?;
        takers.push(tokio::spawn(take_one(sibling.listen_with(&take.topic, options).await?)));
    }
    answers.send(Answer::Ready).await?;
    let mut all = Taken { messages: 0, bytes: 0, first: u64::MAX, last: 0, frames: 0, latency: None };
    let mut latencies = Latencies::new();
    for one in try_join_all(takers).await? {
        let one = one?;
        all.messages += one.messages;
        all.bytes += one.bytes;
        all.first = all.first.min(one.first);
        all.last = all.last.max(one.last);
        latencies.add(&one.latencies);
    }
    all.frames = node.status().await?.counts.received - before;
    all.latency = latencies.summary();
    if all.messages == 0 { Err("no message came".into()) } else { Ok(all) }
}

struct One {
    messages: u64,
    bytes: u64,
    first: u64,
    last: u64,
    latencies: Latencies,
}

async fn take_one(mut subscription: Subscription) -> Result<One, Refusal> {
    let mut one = One { messages: 0, bytes: 0, first: u64::MAX, last: 0, latencies: Latencies::new() };
    let mut begun: Option<(u64, Option<Pace>)> = None;
    while let Some(message) = subscription.next().await {
        if message.codec == Codec::Json {
            match serde_json::from_slice(&message.payload)? {
                Mark::Begin(pace) => begun = Some((message.seq + 1, pace)),
                Mark::End => {
                    one.last = clock::now();
                    return Ok(one);
                }
            }
            continue;
        }
        let Some((first, pace)) = &begun else { continue }; // warming up
        if one.messages == 0 {
            one.first = clock::now();
        }
        one.messages += 1;
        one.bytes += message.payload.len() as u64;
        if let Some(pace) = pace {
            one.latencies.record(clock::now().saturating_sub(pace.due(message.seq - first)));
        }
    }
    Err("the mesh ended".into())
}

/// Until the first message of a pace is due: its mark is on its way by then.
const HEAD_START: Duration = Duration::from_millis(2);
/// How far off timers are, at most.
const TIMERS: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_says_when_each_message_is_due() {
        let pace = Pace::new(1_000, 250_000.0);
        assert_eq!([0, 1, 1_000_000].map(|number| pace.due(number)), [1_000, 5_000, 4_000_001_000]);
    }
}
