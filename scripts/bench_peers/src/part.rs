//! One half of a measurement, in a process of its own. It says what it has to say in lines of JSON, and ends when its standard
//! input does.

use std::future::Future;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::systems;
use crate::work::{Counted, IN_FLIGHT, Kind, PAUSE, Pace, Payloads, Setup, Tally, Trips, now};

/// What a half says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// The other half may start, and finds this one there.
    Ready(String),
    /// What carries the messages, where that is for the system to choose.
    Link(String),
    /// What a sender sent after its warm-up, its last message not counted.
    Sent(u64),
    /// What one listener received of it.
    Counted(Counted),
    /// Microseconds: half, and 99 of 100, took no longer.
    Trip {
        p50: f64,
        p99: f64,
    },
    Call {
        p50: f64,
        p99: f64,
    },
    /// How many were answered in a second, how many were made, and how many of them failed.
    Calls {
        per_second: f64,
        made: u64,
        failed: u64,
    },
    Start {
        p50: f64,
    },
    /// There is nothing more to say.
    Done,
    Skip(String),
}

/// `part first|second SETUP`: the first half receives or answers, and is started first.
pub fn main(words: &[String]) -> Outcome<()> {
    let [half, setup] = words else { return Err("part first|second SETUP".into()) };
    let setup: Setup = serde_json::from_str(setup)?;
    let first = half == "first";
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async move {
        if let Err(error) = tokio::spawn(systems::part(setup, first)).await? {
            say(&Line::Skip(error.to_string()));
            rest().await?;
        }
        Ok(())
    })
}

pub fn say(line: &Line) {
    let text = serde_json::to_string(line).expect("plain data");
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Waits to be ended.
pub async fn rest() -> Outcome<()> {
    std::future::pending().await
}

/// What is done again and again: a message is sent, or sent and answered.
pub trait Exchange: Send {
    fn once(&mut self, payload: Bytes) -> impl Future<Output = Outcome<()>> + Send;
}

/// Sends a flood with what sends one message.
pub async fn flood(setup: &Setup, mut sender: impl Exchange) -> Outcome<()> {
    let payloads = Payloads::new(setup.work.size());
    let mut warming = Pace::new(setup.work, setup.warm);
    while warming.goes_on() {
        sender.once(payloads.of(Kind::Data).clone()).await?;
    }
    sender.once(payloads.of(Kind::Start).clone()).await?;
    tokio::time::sleep(PAUSE).await;
    let mut pace = Pace::new(setup.work, setup.seconds);
    while pace.goes_on() {
        sender.once(payloads.of(Kind::Data).clone()).await?;
    }
    say(&Line::Sent(pace.sent));
    loop {
        sender.once(payloads.of(Kind::End).clone()).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The same on a thread, for what blocks.
pub fn flood_blocking(setup: &Setup, mut send: impl FnMut(&Bytes) -> Outcome<()>) -> Outcome<()> {
    let payloads = Payloads::new(setup.work.size());
    let mut warming = Pace::new(setup.work, setup.warm);
    while warming.goes_on() {
        send(payloads.of(Kind::Data))?;
    }
    send(payloads.of(Kind::Start))?;
    std::thread::sleep(PAUSE);
    let mut pace = Pace::new(setup.work, setup.seconds);
    while pace.goes_on() {
        send(payloads.of(Kind::Data))?;
    }
    say(&Line::Sent(pace.sent));
    loop {
        send(payloads.of(Kind::End))?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Receives a flood, of which it gets the first bytes.
pub async fn receive(mut flood: impl Stream<Item = u8> + Unpin) -> Outcome<()> {
    let mut tally = Tally::default();
    while let Some(byte) = flood.next().await {
        if let Some(counted) = tally.take(byte) {
            say(&Line::Counted(counted));
            return Ok(());
        }
    }
    Err("the other half ended".into())
}

/// A listener that is told of each message by a callback.
pub fn receiver() -> impl FnMut(u8) + Send + 'static {
    let mut tally = Some(Tally::default());
    move |first_byte| {
        if let Some(counted) = tally.as_mut().and_then(|tally| tally.take(first_byte)) {
            say(&Line::Counted(counted));
            tally = None;
        }
    }
}

/// A message there and back, again and again.
pub async fn trips(setup: &Setup, mut trip: impl Exchange) -> Outcome<()> {
    let (p50, p99) = repeated(setup, &mut trip).await?;
    say(&Line::Trip { p50, p99 });
    say(&Line::Done);
    rest().await
}

pub fn trips_blocking(setup: &Setup, trip: impl FnMut(&Bytes) -> Outcome<()>) -> Outcome<()> {
    let (p50, p99) = repeated_blocking(setup, trip)?;
    say(&Line::Trip { p50, p99 });
    say(&Line::Done);
    Ok(())
}

pub fn repeated_blocking(setup: &Setup, mut trip: impl FnMut(&Bytes) -> Outcome<()>) -> Outcome<(f64, f64)> {
    let payload = Payloads::new(setup.work.size()).of(Kind::Data).clone();
    let mut trips = Trips::new(setup);
    loop {
        let began = now();
        trip(&payload)?;
        if !trips.note(began) {
            return Ok(trips.quantiles());
        }
    }
}

async fn repeated(setup: &Setup, trip: &mut impl Exchange) -> Outcome<(f64, f64)> {
    let payload = Payloads::new(setup.work.size()).of(Kind::Data).clone();
    let mut trips = Trips::new(setup);
    loop {
        let began = now();
        trip.once(payload.clone()).await?;
        if !trips.note(began) {
            return Ok(trips.quantiles());
        }
    }
}

/// Calls: one at a time, then by `IN_FLIGHT` tasks, each one at a time. Half of the time for each.
pub async fn calls(setup: &Setup, mut single: impl Exchange, call: impl Exchange + Clone + 'static) -> Outcome<()> {
    let half = Setup { seconds: setup.seconds / 2.0, ..setup.clone() };
    let (p50, p99) = repeated(&half, &mut single).await?;
    say(&Line::Call { p50, p99 });
    let began = now();
    let (warm, whole) = (Duration::from_secs_f64(half.warm), Duration::from_secs_f64(half.warm + half.seconds));
    let payload = Payloads::new(setup.work.size()).of(Kind::Data).clone();
    let (done, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let callers = (0..IN_FLIGHT).map(|_| {
        let (mut call, payload) = (call.clone(), payload.clone());
        let (done, failed) = (Arc::clone(&done), Arc::clone(&failed));
        tokio::spawn(async move {
            loop {
                let answered = call.once(payload.clone()).await.is_ok();
                let elapsed = began.elapsed();
                if elapsed > whole {
                    return Outcome::Ok(());
                }
                if elapsed > warm {
                    (if answered { &done } else { &failed }).fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await??;
    }
    let (done, failed) = (done.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    if done == 0 {
        return Err("no call of those in flight was answered in time".into());
    }
    say(&Line::Calls { per_second: done as f64 / half.seconds, made: done + failed, failed });
    say(&Line::Done);
    rest().await
}
