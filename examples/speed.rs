//! How fast a link is: 64-byte messages one way and there and back, and calls of 64 bytes, one by one and 64 at a time, between two processes over the encrypted connection,
//! beside a bare libp2p stream (TCP, Noise, yamux) in the same run. Run by `scripts/bench.sh`; prints a table.
//!
//! Both halves work in tasks of the runtime, as programs do. Messages are counted where they arrive. Rounds are interleaved, medians are shown: one machine's numbers vary, their
//! ratios less.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a measurement prints what it measured")]

use std::error::Error;
use std::future::poll_fn;
use std::io::{BufRead, BufReader as StdBufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::core::{Endpoint, Transport};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, noise, tcp, yamux};
use meshd::{Codec, ListenOptions, NetworkKey, Node, Overflow, Request, ServeOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::task::block_in_place;
use tokio_util::compat::FuturesAsyncReadCompatExt;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const SIZE: usize = 64;
const ONE_WAY: u64 = 2_000_000;
const ROUND_TRIPS: usize = 20_000;
const IN_FLIGHT: usize = 64;
const CALLS: usize = 400_000;
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => measure().await,
        ["mesh", folder] => tokio::spawn(mesh_receiver(folder.into(), false)).await?,
        ["mesh", folder, "slow"] => tokio::spawn(mesh_receiver(folder.into(), true)).await?,
        ["bare"] => tokio::spawn(bare_receiver()).await?,
        _ => Err("no arguments: measures, and starts its other half itself".into()),
    }
}

async fn measure() -> Outcome<()> {
    let mut rows: [Vec<f64>; 7] = Default::default();
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        let alone = tokio::spawn(mesh(false)).await??;
        rows[0].push(alone.rate);
        rows[2].push(alone.trip);
        rows[5].push(alone.call);
        rows[6].push(alone.calls);
        rows[4].push(tokio::spawn(mesh(true)).await??.rate);
        let (rate, trip) = tokio::spawn(bare()).await??;
        rows[1].push(rate);
        rows[3].push(trip);
    }
    let [rate, bare_rate, trip, bare_trip, beside_slow, call, calls] = rows.map(|mut row| {
        row.sort_by(f64::total_cmp);
        row[row.len() / 2]
    });
    println!("| 64 B, two processes, encrypted TCP on loopback | meshd | bare libp2p stream | ratio |");
    println!("|---|---|---|---|");
    println!("| one way, messages/s | {rate:.0} | {bare_rate:.0} | {:.2} |", rate / bare_rate);
    println!(
        "| the same beside a listener that takes 50 ms per message | {beside_slow:.0} | {rate:.0} (alone) | {:.2} |",
        beside_slow / rate
    );
    println!("| round trip p50, us | {trip:.1} | {bare_trip:.1} | {:.2} |", trip / bare_trip);
    println!("| one call at a time p50, us | {call:.1} | {bare_trip:.1} | {:.2} |", call / bare_trip);
    println!("| calls/s, {IN_FLIGHT} in flight | {calls:.0} | | |");
    Ok(())
}

/// The other half, and the lines that it prints.
fn other_half(words: &[&str]) -> Outcome<(Child, impl FnMut() -> Outcome<String> + use<>)> {
    let mut child = Command::new(std::env::current_exe()?).args(words).stdout(Stdio::piped()).spawn()?;
    let mut lines = StdBufReader::new(child.stdout.take().ok_or("no output")?).lines();
    Ok((child, move || Ok(lines.next().ok_or("the other half ended")??)))
}

// meshd.

async fn node(name: &str, folder: &Path) -> Outcome<Node> {
    let key = NetworkKey::read(folder.join("key"))?;
    let builder = Node::builder(name).mesh("speed").key(key).mdns(false).listen(["127.0.0.1:0"]);
    Ok(builder.runtime_dir(folder.join("run")).start().await?)
}

/// What one run with meshd gave.
struct Figures {
    /// Messages per second, one way.
    rate: f64,
    /// p50 of a round trip and of a single call, in microseconds.
    trip: f64,
    call: f64,
    /// Calls per second.
    calls: f64,
}

async fn mesh(beside_slow: bool) -> Outcome<Figures> {
    let folder = tempfile::tempdir()?;
    NetworkKey::generate().write_new(folder.path().join("key"))?;
    let path = folder.path().to_str().ok_or("path")?;
    let (mut child, mut line) = other_half(&["mesh", path, "slow"][..if beside_slow { 3 } else { 2 }])?;
    let receivers = if beside_slow { 2 } else { 1 };
    let node = node("source", folder.path()).await?;
    let mut pong = node.listen("pong").await?;
    let (ping, flood) = (node.publisher("ping")?, node.publisher("flood")?);
    if ping.wait_for_listeners(1, PATIENCE).await == 0
        || flood.wait_for_listeners(receivers, PATIENCE).await < receivers
    {
        return Err("the other half does not listen".into());
    }
    let payload = bytes::Bytes::from(vec![7; SIZE]);
    let mut trips = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let began = now();
        ping.send_bytes(payload.clone()).await?;
        pong.next().await.ok_or("the mesh ended")?;
        trips.push(began.elapsed());
    }
    let echo = node.service("echo")?;
    let mut single = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let began = now();
        echo.call_bytes(Codec::Bytes, payload.clone()).await?;
        single.push(began.elapsed());
    }
    let began = now();
    let callers = (0..IN_FLIGHT).map(|_| {
        let (echo, payload) = (echo.clone(), payload.clone());
        tokio::spawn(async move {
            for _ in 0..CALLS / IN_FLIGHT {
                echo.call_bytes(Codec::Bytes, payload.clone()).await?;
            }
            Outcome::Ok(())
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await??;
    }
    let calls = CALLS as f64 / began.elapsed().as_secs_f64();
    for _ in 0..ONE_WAY {
        let report = flood.send_bytes(payload.clone()).await?;
        if report.sent != receivers {
            return Err(format!("not sent: {report:?}").into());
        }
    }
    let rate = block_in_place(&mut line)?.parse()?;
    block_in_place(|| child.wait())?;
    Ok(Figures { rate, trip: p50(trips), call: p50(single), calls })
}

async fn mesh_receiver(folder: PathBuf, beside_slow: bool) -> Outcome<()> {
    let node = node("receiver", &folder).await?;
    let options = ListenOptions { messages: 65_536, overflow: Overflow::Block, ..ListenOptions::default() };
    let mut flood = node.listen_with("flood", options).await?;
    let mut ping = node.listen("ping").await?;
    let pong = node.publisher("pong")?;
    let answer = |request: Request| async move { Ok((request.codec, request.payload)) };
    let _echo = node.serve_requests("echo", ServeOptions::default(), answer).await?;
    if beside_slow {
        let mut slow = node.sibling("slow").await?.listen("flood").await?;
        tokio::spawn(async move {
            while let Some(message) = slow.next().await {
                eprintln!("the slow one got {} after it missed {}", message.seq, message.lagged);
                tokio::time::sleep(Duration::from_millis(50)).await; // its work
            }
        });
    }
    tokio::spawn(async move {
        while let Some(message) = ping.next().await {
            let _ = pong.send_bytes(message.payload).await;
        }
    });
    flood.next().await.ok_or("the mesh ended")?;
    let began = now();
    for _ in 1..ONE_WAY {
        flood.next().await.ok_or("the mesh ended")?;
    }
    println!("{}", rate(began));
    node.shutdown().await;
    Ok(())
}

// A bare stream.

async fn bare() -> Outcome<(f64, f64)> {
    let (mut child, mut line) = other_half(&["bare"])?;
    let address: Multiaddr = block_in_place(&mut line)?.parse()?;
    let mut transport = transport();
    let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
    let (_, mut connection) = transport.dial(address, options)?.await?;
    let stream = poll_fn(|context| {
        let _ = connection.poll_unpin(context)?;
        connection.poll_outbound_unpin(context)
    })
    .await?;
    tokio::spawn(async move {
        let _ = poll_fn(|context| connection.poll_unpin(context)).await;
    });
    let mut stream = BufWriter::with_capacity(16 << 10, stream.compat());
    let (message, mut answer) = ([7; SIZE], [0; SIZE]);
    let mut trips = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let began = now();
        stream.write_all(&message).await?;
        stream.flush().await?;
        stream.read_exact(&mut answer).await?;
        trips.push(began.elapsed());
    }
    for sent in 1..=ONE_WAY {
        stream.write_u32(SIZE as u32).await?;
        stream.write_all(&message).await?;
        if sent % 32 == 0 {
            stream.flush().await?;
        }
    }
    stream.flush().await?;
    let rate = block_in_place(&mut line)?.parse()?;
    block_in_place(|| child.wait())?;
    Ok((rate, p50(trips)))
}

async fn bare_receiver() -> Outcome<()> {
    let mut transport = transport();
    transport.listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse()?)?;
    let mut connection = loop {
        match transport.next().await.ok_or("no listener")? {
            TransportEvent::NewAddress { listen_addr, .. } => println!("{listen_addr}"),
            TransportEvent::Incoming { upgrade, .. } => break upgrade.await?.1,
            _ => {}
        }
    };
    let stream = poll_fn(|context| {
        let _ = connection.poll_unpin(context)?;
        connection.poll_inbound_unpin(context)
    })
    .await?;
    tokio::spawn(async move {
        let _ = poll_fn(|context| connection.poll_unpin(context)).await;
    });
    let mut stream = BufReader::with_capacity(64 << 10, stream.compat());
    let mut message = [0; SIZE];
    for _ in 0..ROUND_TRIPS {
        stream.read_exact(&mut message).await?;
        stream.write_all(&message).await?;
        stream.flush().await?;
    }
    let mut began = None;
    for _ in 0..ONE_WAY {
        let size = stream.read_u32().await?;
        stream.read_exact(&mut message[..size as usize]).await?;
        began.get_or_insert_with(now);
    }
    println!("{}", began.map_or(0.0, rate));
    Ok(())
}

fn transport() -> Boxed<(PeerId, StreamMuxerBox)> {
    let key = Keypair::generate_ed25519();
    tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(&key).expect("a fresh key signs"))
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed()
}

fn rate(began: Instant) -> f64 {
    (ONE_WAY - 1) as f64 / began.elapsed().as_secs_f64()
}

fn p50(mut trips: Vec<Duration>) -> f64 {
    trips.sort_unstable();
    trips[trips.len() / 2].as_secs_f64() * 1e6
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}
