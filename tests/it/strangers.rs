//! Whoever reaches the port without the key: never listed, never in the way, and gone in the end.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use meshd::{Codec, ListenOptions, Node, Overflow, SendOptions, Target};

use crate::cluster::{Cluster, PATIENCE, address, listened_by, next, until, within};
use crate::daemon::Daemon;

#[tokio::test(flavor = "multi_thread")]
async fn one_that_echoes_every_byte_is_refused() {
    // E-AUTH, and what its challenge and response do not hold: what is sent back is no proof.
    check(1, |mut stream| {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_says_nothing_is_let_go() {
    check(3, wait_for_the_end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_sends_random_bytes_is_refused() {
    // E-SRV.
    check(3, |mut stream| {
        let noise: Vec<u8> = (0..100_000).map(|_| rand::random()).collect();
        let _ = stream.write_all(&noise); // it is cut off in the middle
        wait_for_the_end(stream);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stops_in_the_middle_of_a_greeting_is_let_go() {
    check(3, |mut stream| {
        let header = b"\x13/multistream/1.0.0\n\x07/no"; // whole, then half of what is proposed
        stream.write_all(header).unwrap();
        wait_for_the_end(stream);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_are_let_go() {
    check(200, wait_for_the_end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_may_be_pending_are_turned_away_and_members_still_come_in() {
    let cluster = Cluster::new();
    let node = cluster.start("node").await;
    let address = socket_address(&address(&node).await);
    let mut strangers: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(address).unwrap()).collect();
    until("some are turned away", async || node.status().await.unwrap().foreign.crowded_out > 0).await;
    // A member that comes now waits for its turn, no longer than strangers may stay silent.
    let guest = cluster.start("guest").await;
    until("the member is in", async || !node.peers().await.unwrap().is_empty()).await;
    until("and knows it", async || guest.peers().await.unwrap().len() == 1).await;
    let ended = tokio::task::spawn_blocking(move || strangers.drain(..).for_each(wait_for_the_end));
    within("all strangers are let go", ended).await.unwrap();
    assert_eq!(node.nodes().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_took_of_a_daemon_comes_back() {
    let cluster = Cluster::new();
    let member = cluster.start("member").await;
    let daemon = Daemon::with_key(&cluster.key, &address(&member).await);
    until("linked", async || !member.peers().await.unwrap().is_empty()).await;
    let address = socket_address(daemon.json(&["status"])["addresses"][0].as_str().unwrap());
    let before = daemon.open_files();
    let strangers: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    until("they are accepted", async || daemon.open_files() >= before + 150).await;
    until("their descriptors are free again", async || daemon.open_files() <= before + 2).await;
    drop(strangers);
    assert_eq!(member.peers().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_counted_whatever_they_do() {
    let node = Cluster::new().start("node").await;
    let door = socket_address(&address(&node).await);
    let refused = async || node.status().await.unwrap().foreign.refused;
    let mut noisy = TcpStream::connect(door).unwrap();
    noisy.write_all(&[0xff; 100]).unwrap();
    until("one that speaks another language", async || refused().await == 1).await;
    let _silent = TcpStream::connect(door).unwrap();
    until("one that says nothing", async || refused().await == 2).await;
}

/// Lets so many strangers at two members that send each other numbered messages meanwhile. They are let go within
/// [`PATIENCE`], nobody lists them, and no message is lost.
async fn check(count: usize, stranger: impl Fn(TcpStream) + Clone + Send + 'static) {
    let cluster = Cluster::new();
    let nodes = cluster.start_all(["a", "b"]).await;
    let [a, b] = &nodes;
    let options = ListenOptions { overflow: Overflow::Block, ..ListenOptions::default() };
    let mut messages = b.listen_with("numbers", options).await.unwrap();
    let topic = a.publisher("numbers").unwrap();
    listened_by(&topic, 1).await;
    let enough = Arc::new(AtomicBool::new(false));
    let sending = tokio::spawn({
        let enough = Arc::clone(&enough);
        async move {
            let options = SendOptions { target: Target::EachGroup, timeout: Some(PATIENCE), ..SendOptions::default() };
            let mut sent = 0;
            while !enough.load(Ordering::Relaxed) {
                assert_eq!(topic.publish(Codec::Bytes, Bytes::new(), &options).await.unwrap().sent, 1);
                sent += 1;
                if sent % 100 == 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await; // a steady stream, no flood
                }
            }
            sent
        }
    });
    let doors = [socket_address(&address(a).await), socket_address(&address(b).await)];
    let mut strangers: Vec<JoinHandle<()>> = Vec::new();
    for number in 0..count {
        let (to, stranger) = (doors[number % 2], stranger.clone());
        strangers.push(std::thread::spawn(move || stranger(TcpStream::connect(to).unwrap())));
    }
    let mut received = 0;
    until("all strangers are let go", async || {
        while let Some(message) = messages.try_next() {
            received += 1;
            assert_eq!((message.seq, message.lagged), (received, 0));
        }
        check_members(&nodes).await;
        strangers.iter().all(JoinHandle::is_finished)
    })
    .await;
    enough.store(true, Ordering::Relaxed);
    let sent = sending.await.unwrap();
    while received < sent {
        received += 1;
        assert_eq!(next(&mut messages).await.seq, received);
    }
    strangers.into_iter().for_each(|stranger| stranger.join().unwrap());
    check_members(&nodes).await;
    for node in &nodes {
        assert_eq!(node.status().await.unwrap().counts.links_lost, 0);
    }
    assert!(sent > 0);
}

/// Only members are listed, by the peers they are.
async fn check_members(nodes: &[Node]) {
    let members: HashSet<_> = nodes.iter().map(|node| node.id().peer).collect();
    for node in nodes {
        let peers = node.peers().await.unwrap();
        assert_eq!(peers.len(), nodes.len() - 1);
        assert!(peers.iter().all(|peer| members.contains(&peer.peer)) && node.nodes().len() == nodes.len());
    }
}

/// Reads until the other side ends it.
fn wait_for_the_end(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = stream.read(&mut buffer) {}
    let _ = stream.shutdown(Shutdown::Both); // it may be gone altogether
}

/// `/ip4/127.0.0.1/tcp/4001` as an address to connect to.
fn socket_address(multiaddress: &str) -> SocketAddr {
    let parts: Vec<&str> = multiaddress.split('/').collect();
    format!("{}:{}", parts[2], parts[4]).parse().unwrap()
}
