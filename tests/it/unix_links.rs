//! Links over Unix sockets: who takes them, and that nothing is lost, swapped or doubled when the socket is pulled away.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use meshd::{Channel, Codec, Failure, LinkKind, ListenOptions, Node, Overflow, Publisher, SendOptions};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use rustix::io::Errno;
use rustix::net::{Shutdown, getsockname, shutdown};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::cluster::{
    Cluster, PATIENCE, address, end, listened_by, next, now, see_each_other, to_the_end, until, within,
};

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_one_host_send_over_unix_sockets_unless_told_otherwise() {
    let cluster = Cluster::new();
    let [a, b] = cluster.start_all(["a", "b"]).await;
    let apart = cluster.builder("apart").local(false).bootstrap([address(&a).await]).start().await.unwrap();
    see_each_other(&[a.clone(), b.clone(), apart.clone()]).await;
    until("all are linked", async || a.peers().await.unwrap().len() == 2).await;
    assert_eq!(kind(&a, &b).await, LinkKind::Unix);
    assert_eq!(kind(&b, &a).await, LinkKind::Unix);
    assert_eq!(kind(&a, &apart).await, LinkKind::Tcp);
    assert_eq!(kind(&apart, &b).await, LinkKind::Tcp);
    for (from, to) in [(&a, &b), (&b, &a), (&a, &apart), (&apart, &b)] {
        let mut messages = to.listen("t").await.unwrap();
        let topic = from.publisher("t").unwrap();
        listened_by(&topic, 1).await;
        topic.send_bytes("x").await.unwrap();
        assert_eq!(next(&mut messages).await.from_name.as_str(), from.name().as_str());
        drop(messages);
        until("it listens no more", async || topic.listeners() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_reach_the_socket_stays_with_the_connection() {
    // As in two containers that share a network: each has a runtime directory of its own.
    let (one, two) = (Cluster::new(), Cluster::new());
    let a = one.start("a").await;
    let b = two.builder("b").key(one.key.clone()).bootstrap([address(&a).await]).start().await.unwrap();
    see_each_other(&[a.clone(), b.clone()]).await;
    until("they are linked", async || a.peers().await.unwrap().len() == 1).await;
    assert_eq!((kind(&a, &b).await, kind(&b, &a).await), (LinkKind::Tcp, LinkKind::Tcp));
    let mut messages = b.listen("t").await.unwrap();
    let topic = a.publisher("t").unwrap();
    listened_by(&topic, 1).await;
    topic.send_bytes("x").await.unwrap();
    assert_eq!(next(&mut messages).await.payload, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_was_given_a_token_gets_in_at_the_socket() {
    let cluster = Cluster::new();
    let [a, b] = cluster.start_all(["a", "b"]).await;
    let folder = cluster.runtime().join("links");
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let sockets: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(sockets.len(), 2);
    for socket in sockets {
        let metadata = fs::metadata(&socket).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let mut stranger = UnixStream::connect(&socket).await.unwrap();
        stranger.write_all(&[7; 32]).await.unwrap();
        let mut answer = Vec::new();
        assert!(matches!(within("it is cut", stranger.read_to_end(&mut answer)).await, Ok(0) | Err(_)));
        let mut silent = UnixStream::connect(&socket).await.unwrap();
        within("who says nothing is let go", silent.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty());
        // Many at once are let go as well, and keep nobody out for long.
        let crowd: Vec<UnixStream> =
            futures::future::try_join_all((0..100).map(|_| UnixStream::connect(&socket))).await.unwrap();
        drop(crowd);
    }
    assert_eq!(kind(&a, &b).await, LinkKind::Unix);
    let late = cluster.start("late").await;
    until("it is linked", async || late.peers().await.unwrap().len() == 2).await;
    assert_eq!((kind(&late, &a).await, kind(&b, &late).await), (LinkKind::Unix, LinkKind::Unix));
    within("they leave", futures::future::join_all([a, b, late].map(|node| async move { node.shutdown().await })))
        .await;
    assert!(!folder.exists(), "the last one takes the directory away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_left_behind_by_a_crash_is_swept() {
    let cluster = Cluster::new();
    let first = cluster.start("first").await;
    let dead = cluster.runtime().join("links/left-behind.s");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(dead.exists());
    // One that was never finished, and one that somebody is about to finish.
    let [unfinished, begun] = ["unfinished.new", "begun.new"].map(|name| cluster.runtime().join("links").join(name));
    for path in [&unfinished, &begun] {
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    }
    let long_ago = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: long_ago, last_modification: long_ago };
    utimensat(CWD, &unfinished, &times, AtFlags::empty()).unwrap();
    let second = cluster.start("second").await;
    until("they are swept", async || !dead.exists() && !unfinished.exists()).await;
    assert!(begun.exists());
    fs::remove_file(begun).unwrap();
    see_each_other(&[first.clone(), second.clone()]).await;
    until("they are linked", async || first.peers().await.unwrap().len() == 1).await;
    assert_eq!(kind(&first, &second).await, LinkKind::Unix, "what is alive was not swept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_pulled_away_under_load_costs_no_order_and_no_acknowledged_message() {
    // E-CONN.
    for gone_for_good in [false, true] {
        let cluster = Cluster::new();
        let [a, b] = cluster.start_all(["a", "b"]).await;
        assert_eq!(kind(&a, &b).await, LinkKind::Unix);
        let mut plain = b.listen_with("plain", blocking()).await.unwrap();
        let mut acked = b.listen("acked").await.unwrap();
        let _echo = b.serve_channels("echo", echo).await.unwrap();
        let (flood, sure) = (a.publisher("plain").unwrap(), a.publisher("acked").unwrap());
        listened_by(&flood, 1).await;
        listened_by(&sure, 1).await;
        assert_eq!(a.service("echo").unwrap().wait_for_providers(1, PATIENCE).await.len(), 1);
        let channel = within("it opens", a.open("echo")).await.unwrap();

        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let flooding = tokio::spawn(async move {
            let mut report = (0u64, 0u64);
            for n in (0..u32::MAX).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                flood.wait_for_listeners(1, PATIENCE).await; // who listens may be gone again by then
                let said = flood.publish(Codec::Bytes, payload(n), &SendOptions::default()).await.unwrap();
                report.0 += said.sent as u64;
                report.1 += said.dropped.len() as u64;
            }
            listened_by(&flood, 1).await;
            end(&flood).await;
            report
        });
        let acknowledging = tokio::spawn(acknowledged(sure));
        let talking = tokio::spawn(talk(channel));
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            for message in to_the_end(&mut plain).await {
                got.push(number(&message.payload));
            }
            got
        });
        for n in 0..ACKED {
            if n == 500 {
                if gone_for_good {
                    for entry in fs::read_dir(cluster.runtime().join("links")).unwrap() {
                        fs::remove_file(entry.unwrap().path()).unwrap();
                    }
                }
                assert!(pull(&cluster.runtime()) >= 2, "one in each direction");
                until("the link is lost", async || a.status().await.unwrap().counts.links_lost >= 1).await;
                // What says that the flood is at its end must not be lost with the link.
                until("they are linked again", async || a.peers().await.unwrap().len() == 1).await;
                over.store(true, Ordering::Relaxed);
            }
            assert_eq!(number(&next(&mut acked).await.payload), n);
        }
        within("all are acknowledged", acknowledging).await.unwrap();
        within("the channel goes on", talking).await.unwrap();
        let (sent, dropped) = within("the flood ends", flooding).await.unwrap();
        let got = within("the flood is read", reading).await.unwrap();
        assert!(got.is_sorted_by(|a, b| a < b), "in order, each once");
        let counts = a.status().await.unwrap().counts;
        println!("of {sent} sent {} came; {dropped} reported, {} counted as lost", got.len(), counts.dropped);
        assert!(counts.links_lost >= 1, "the link was cut");
        let missing = sent - got.len() as u64;
        assert!(missing <= counts.dropped, "{missing} are missing, {} were said to be lost", counts.dropped);
        until("they are linked again", async || a.peers().await.unwrap().len() == 1).await;
        let expected = if gone_for_good { LinkKind::Tcp } else { LinkKind::Unix };
        assert_eq!(kind(&a, &b).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_breaks_again_and_again_is_not_taken_any_more() {
    let cluster = Cluster::new();
    let [a, b] = cluster.start_all(["a", "b"]).await;
    let mut messages = b.listen("t").await.unwrap();
    let topic = a.publisher("t").unwrap();
    let began = now();
    let mut breaks = 0;
    loop {
        until("they are linked", async || a.peers().await.unwrap().len() == 1).await;
        if kind(&a, &b).await == LinkKind::Tcp {
            break;
        }
        pull(&cluster.runtime());
        breaks += 1;
        until("the link is gone", async || a.status().await.unwrap().counts.links_lost >= breaks).await;
    }
    println!("{breaks} breaks, {:?}", began.elapsed());
    assert!((2..=4).contains(&breaks), "{breaks}");
    listened_by(&topic, 1).await;
    topic.send_bytes("still there").await.unwrap();
    assert_eq!(next(&mut messages).await.payload, "still there");
}

const ACKED: u32 = 2000;

async fn acknowledged(topic: Publisher) {
    let mut receipts = Vec::new();
    for n in 0..ACKED {
        loop {
            topic.wait_for_listeners(1, PATIENCE).await; // who listens may be gone again by then
            let mut receipt = topic.submit(Codec::Bytes, payload(n), &SendOptions::default().acked()).await.unwrap();
            match futures::FutureExt::now_or_never(&mut receipt) {
                Some(report) if report.matched == 0 => continue, // the link went in between: nothing was sent
                Some(report) => assert_eq!(report.acknowledged, 1),
                None => receipts.push(receipt),
            }
            break;
        }
    }
    for receipt in receipts {
        assert_eq!(within("each is acknowledged", receipt).await.acknowledged, 1);
    }
}

async fn talk(channel: Channel) {
    for n in 0..3000u32 {
        channel.send(&n).await.unwrap();
        assert_eq!(within("an answer", channel.receive::<u32>()).await.unwrap(), Some(n));
    }
}

async fn echo(channel: Channel) -> Result<(), Failure> {
    while let Ok(Some(n)) = channel.receive::<u32>().await {
        if channel.send(&n).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Shuts down all links over Unix sockets of that runtime directory, as if somebody had cut them. Gives how many ends.
fn pull(runtime: &Path) -> usize {
    let me = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let mut pulled = 0;
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(number) = entry.file_name().to_str().unwrap().parse() else { continue };
        let copy: OwnedFd = match pidfd_getfd(&me, number, PidfdGetfdFlags::empty()) {
            Ok(copy) => copy,
            Err(Errno::BADF) => continue, // closed meanwhile
            Err(error) => panic!("{error}"),
        };
        let Ok(name) = getsockname(&copy) else { continue };
        let Ok(name) = rustix::net::SocketAddrUnix::try_from(name) else { continue };
        let Some(path) = name.path() else { continue };
        let is_listener = rustix::net::sockopt::socket_acceptconn(&copy).unwrap();
        if path.to_str().is_ok_and(|path| Path::new(path).starts_with(runtime.join("links"))) && !is_listener {
            shutdown(&copy, Shutdown::Both).unwrap();
            pulled += 1;
        }
    }
    pulled
}

fn blocking() -> ListenOptions {
    ListenOptions { overflow: Overflow::Block, ..ListenOptions::default() }
}

/// What carries the link, once there is one.
async fn kind(of: &Node, with: &Node) -> LinkKind {
    let mut link = None;
    until("they are linked", async || {
        let peers = of.peers().await.unwrap();
        link = peers.iter().find(|peer| peer.peer == with.id().peer).map(|peer| peer.link);
        link.is_some()
    })
    .await;
    link.unwrap()
}

fn payload(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

fn number(payload: &Bytes) -> u32 {
    u32::from_be_bytes(payload[..].try_into().unwrap())
}
