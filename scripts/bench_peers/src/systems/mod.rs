//! What is compared. Each system has the same two halves, done as its own documentation and benchmarks do it.

pub mod meshd;
pub mod nats;
pub mod python;
pub mod streams;
pub mod zenoh;
pub mod zmq;

use futures::future::BoxFuture;
use tokio::task::spawn_blocking;

use crate::Outcome;
use crate::work::{Setup, Work};

/// One row of the tables.
pub struct System {
    /// By which it is asked for.
    pub word: &'static str,
    /// By which it is shown.
    pub name: &'static str,
    pub class: Class,
    pub works: &'static [Work],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Meshd,
    /// Encrypted on the way.
    Encrypted,
    /// Not encrypted.
    Plain,
    /// No messaging system: what the transport alone could do.
    Floor,
}

use Work::{Calls, Flood1K, Flood1M, Flood64, Flood64K, Trip};

const FLOODS: &[Work] = &[Flood64, Flood1K, Flood64K, Flood1M, Trip];

pub const SYSTEMS: &[System] = &[
    System { word: "meshd-local", name: "meshd, one host", class: Class::Meshd, works: &Work::ALL },
    System { word: "meshd-tcp", name: "meshd, encrypted TCP", class: Class::Meshd, works: &Work::ALL },
    System { word: "zenoh-tcp", name: "Zenoh, TCP, plaintext", class: Class::Plain, works: &Work::ALL },
    System { word: "zenoh-tls", name: "Zenoh, TLS", class: Class::Encrypted, works: &Work::ALL },
    System {
        word: "zenoh-unix",
        name: "Zenoh, Unix socket",
        class: Class::Plain,
        works: &[Flood64, Flood1K, Flood64K, Flood1M, Trip, Calls],
    },
    System { word: "zenoh-shm", name: "Zenoh, shared memory", class: Class::Plain, works: &[Flood64K, Flood1M] },
    System { word: "nats-tcp", name: "NATS, plaintext", class: Class::Plain, works: &Work::ALL },
    System { word: "nats-tls", name: "NATS, TLS", class: Class::Encrypted, works: &Work::ALL },
    System {
        word: "zmq-tcp",
        name: "ZeroMQ, TCP, plaintext",
        class: Class::Plain,
        works: &[Flood64, Flood1K, Flood64K, Flood1M, Trip, Calls],
    },
    System {
        word: "zmq-ipc",
        name: "ZeroMQ, Unix socket",
        class: Class::Plain,
        works: &[Flood64, Flood1K, Flood64K, Flood1M, Trip, Calls],
    },
    System { word: "execnet", name: "execnet, pipe", class: Class::Plain, works: FLOODS },
    System { word: "rosy", name: "rosy, Unix socket", class: Class::Plain, works: FLOODS },
    System { word: "libp2p", name: "bare libp2p stream (TCP, Noise, yamux)", class: Class::Floor, works: FLOODS },
    System { word: "unix", name: "bare Unix socket", class: Class::Floor, works: FLOODS },
    System { word: "tcp", name: "bare TCP, plaintext", class: Class::Floor, works: FLOODS },
];

/// Runs one half.
pub async fn part(setup: Setup, first: bool) -> Outcome<()> {
    let part: BoxFuture<'static, Outcome<()>> = match (setup.system.split('-').next().unwrap_or_default(), first) {
        ("meshd", true) => Box::pin(meshd::first(setup)),
        ("meshd", false) => Box::pin(meshd::second(setup)),
        ("zenoh", true) => Box::pin(zenoh::first(setup)),
        ("zenoh", false) => Box::pin(zenoh::second(setup)),
        ("nats", true) => Box::pin(nats::first(setup)),
        ("nats", false) => Box::pin(nats::second(setup)),
        ("zmq", first) => Box::pin(async move { spawn_blocking(move || zmq::part(&setup, first)).await? }),
        (_, true) => Box::pin(streams::first(setup)),
        (_, false) => Box::pin(streams::second(setup)),
    };
    part.await
}
