//! Zenoh: peers that are told each other's address. Nothing is dropped: congestion control blocks. As in its own benchmarks,
//! publishers and those that wait for a pong are threads, subscribers are callbacks, and latency is measured with `express`,
//! throughput with batching.

use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use zenoh::bytes::ZBytes;
use zenoh::config::Config;
use zenoh::qos::{CongestionControl, Reliability};
use zenoh::query::{ConsolidationMode, Querier};
use zenoh::shm::{BlockOn, GarbageCollect, ShmProviderBuilder};
use zenoh::{Session, Wait};

use crate::Outcome;
use crate::part::{self, Exchange, Line, receiver, rest, say};
use crate::work::{PATIENCE, STARTS, Setup, Work, now, quantiles};

/// Room for messages that are on their way in shared memory.
const SHARED: usize = 128 << 20;

/// What is called one at a time, with `express`, and what is called many at a time, with batching.
const SERVICES: [(&str, bool); 2] = [("bench/echo", true), ("bench/echoes", false)];

/// Removes what processes that were ended left in shared memory.
pub fn clean() {
    zenoh::shm::cleanup_orphaned_shm_segments();
}

fn config(setup: &Setup, listen: &[String], connect: &[String]) -> Outcome<Config> {
    let mut config = Config::default();
    let file = |name: &str| serde_json::to_string(&setup.folder.join(name)).expect("a path");
    let mut set =
        |key: &str, value: String| config.insert_json5(key, &value).map_err(|error| format!("{key}: {error}"));
    set("mode", "\"peer\"".into())?;
    set("scouting/multicast/enabled", "false".into())?;
    set("listen/endpoints", serde_json::to_string(listen)?)?;
    set("connect/endpoints", serde_json::to_string(connect)?)?;
    set("transport/shared_memory/enabled", (setup.system == "zenoh-shm").to_string())?;
    if setup.system == "zenoh-tls" {
        set("transport/link/tls/root_ca_certificate", file("ca.pem"))?;
        set("transport/link/tls/listen_certificate", file("cert.pem"))?;
        set("transport/link/tls/listen_private_key", file("key.pem"))?;
    }
    Ok(config)
}

pub async fn first(setup: Setup) -> Outcome<()> {
    let endpoint = match setup.system.as_str() {
        "zenoh-tls" => format!("tls/127.0.0.1:{}", setup.port),
        "zenoh-unix" => format!("unixsock-stream/{}", setup.folder.join("socket").display()),
        _ => format!("tcp/127.0.0.1:{}", setup.port),
    };
    let session = zenoh::open(config(&setup, std::slice::from_ref(&endpoint), &[])?).await?;
    let pong =
        session.declare_publisher("bench/pong").congestion_control(CongestionControl::Block).express(true).await?;
    let answer = move |sample: zenoh::sample::Sample| drop(pong.put(sample.payload().clone()).wait());
    session.declare_subscriber("bench/ping").callback(answer).background().await?;
    for (key, express) in SERVICES {
        let queryable = session.declare_queryable(key).await?;
        tokio::spawn(async move {
            while let Ok(query) = queryable.recv_async().await {
                let payload = query.payload().cloned().unwrap_or_default();
                if let Err(error) = query.reply(key, payload).express(express).await {
                    eprintln!("bench_peers: zenoh: a reply was not sent: {error}");
                }
            }
        });
    }
    for _ in 0..setup.work.listeners().1 {
        let tally = Mutex::new(receiver());
        let take = move |sample: zenoh::sample::Sample| {
            let mut byte = [0];
            let _ = std::io::Read::read(&mut sample.payload().reader(), &mut byte);
            (tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner))(byte[0]);
        };
        session.declare_subscriber("bench/flood").callback(take).background().await?;
    }
    say(&Line::Ready(endpoint));
    rest().await
}

pub async fn second(setup: Setup) -> Outcome<()> {
    if setup.work == Work::Start {
        return spawn_blocking(move || starts(&setup)).await?;
    }
    let session = zenoh::open(config(&setup, &[], &setup.addresses)?).await?;
    match setup.work {
        Work::Trip => spawn_blocking(move || trips(&session, &setup)).await??,
        Work::Calls => {
            let [single, many] = SERVICES.map(|service| caller(&session, service));
            part::calls(&setup, single.await?, many.await?).await?;
        }
        _ => spawn_blocking(move || flood(&session, &setup)).await??,
    }
    rest().await
}

async fn caller(session: &Session, (key, express): (&'static str, bool)) -> Outcome<Call> {
    let querier = session.declare_querier(key).consolidation(ConsolidationMode::None).timeout(PATIENCE);
    let querier = querier.congestion_control(CongestionControl::Block).express(express).await?;
    let began = now();
    while !querier.matching_status().await?.matching() {
        if began.elapsed() > PATIENCE {
            return Err("nobody answers".into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(Call(Arc::new(querier)))
}

#[derive(Clone)]
struct Call(Arc<Querier<'static>>);

impl Exchange for Call {
    async fn once(&mut self, payload: Bytes) -> Outcome<()> {
        let replies = self.0.get().payload(payload).await?;
        replies.recv_async().await.map_err(|_| "no reply")?.into_result().map_err(|error| error.to_string())?;
        Ok(())
    }
}

fn trips(session: &Session, setup: &Setup) -> Outcome<()> {
    let (put, pong) = sync_channel(64);
    let subscriber = session.declare_subscriber("bench/pong").callback(move |sample| drop(put.send(sample))).wait()?;
    let ping =
        session.declare_publisher("bench/ping").congestion_control(CongestionControl::Block).express(true).wait()?;
    matching(&|| Ok(ping.matching_status().wait()?.matching()))?;
    std::thread::sleep(Duration::from_millis(200)); // until the other half knows this subscriber
    part::trips_blocking(setup, |payload| {
        ping.put(payload.clone()).wait()?;
        pong.recv()?;
        Ok(())
    })?;
    drop(subscriber);
    Ok(())
}

fn flood(session: &Session, setup: &Setup) -> Outcome<()> {
    let publisher = session.declare_publisher("bench/flood").congestion_control(CongestionControl::Block);
    let publisher = publisher.reliability(Reliability::Reliable).express(false).wait()?;
    let began = now();
    while session.info().peers_zid().wait().count() < setup.addresses.len() {
        if began.elapsed() > PATIENCE {
            return Err("not all receivers are there".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    matching(&|| Ok(publisher.matching_status().wait()?.matching()))?;
    std::thread::sleep(Duration::from_millis(200)); // until all of them are known
    if setup.system != "zenoh-shm" {
        // Made once: a clone is a reference.
        let mut known: Vec<(u8, ZBytes)> = Vec::new();
        return part::flood_blocking(setup, |payload| {
            let bytes = match known.iter().find(|(kind, _)| *kind == payload[0]) {
                Some((_, bytes)) => bytes.clone(),
                None => {
                    known.push((payload[0], payload.clone().into()));
                    ZBytes::from(payload.clone())
                }
            };
            publisher.put(bytes).wait()
        });
    }
    let provider = ShmProviderBuilder::default_backend(SHARED).wait()?;
    part::flood_blocking(setup, |payload| {
        let mut buffer = provider.alloc(payload.len()).with_policy::<BlockOn<GarbageCollect>>().wait()?;
        buffer.copy_from_slice(payload);
        publisher.put(buffer).wait()
    })
}

fn matching(there: &dyn Fn() -> Outcome<bool>) -> Outcome<()> {
    let began = now();
    while !there()? {
        if began.elapsed() > PATIENCE {
            return Err("nobody listens".into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn starts(setup: &Setup) -> Outcome<()> {
    let mut taken = Vec::new();
    for _ in 0..STARTS {
        let began = now();
        let session = zenoh::open(config(setup, &[], &setup.addresses)?).wait()?;
        let (put, pong) = sync_channel(64);
        let _subscriber =
            session.declare_subscriber("bench/pong").callback(move |sample| drop(put.send(sample))).wait()?;
        let ping = session
            .declare_publisher("bench/ping")
            .congestion_control(CongestionControl::Block)
            .express(true)
            .wait()?;
        matching(&|| Ok(ping.matching_status().wait()?.matching()))?;
        // A message that comes before the other half knows who listens here is answered to nobody.
        loop {
            ping.put(&b"hello"[..]).wait()?;
            if pong.recv_timeout(Duration::from_millis(5)).is_ok() {
                break;
            }
        }
        taken.push(began.elapsed());
        drop(ping);
        session.close().wait()?;
    }
    say(&Line::Start { p50: quantiles(&mut taken).0 });
    say(&Line::Done);
    Ok(())
}
