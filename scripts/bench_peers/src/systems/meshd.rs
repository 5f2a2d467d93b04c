//! meshd. `meshd-local`: peers of one host, which meet in a runtime directory. `meshd-tcp`: peers that do not know that they
//! share a host, found by their addresses; encrypted.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use meshd::{
    Codec, ListenOptions, NetworkKey, Node, Overflow, Publisher, Request, ServeOptions, Service, Subscription,
};
use tokio::time::timeout;

use crate::Outcome;
use crate::part::{self, Exchange, Line, receive, rest, say};
use crate::work::{PATIENCE, STARTS, Setup, Work, now, quantiles};

async fn node(setup: &Setup, name: &str) -> Outcome<Node> {
    let key = NetworkKey::read(setup.folder.join("key"))?;
    let builder = Node::builder(name).mesh("bench").key(key).mdns(false).listen(["127.0.0.1:0"]);
    let builder = match setup.system.as_str() {
        "meshd-local" => builder.runtime_dir(setup.folder.join("run")),
        _ => builder.local(false).bootstrap(&setup.addresses),
    };
    Ok(builder.start().await?)
}

/// What both halves need before they start.
pub fn prepare(folder: &std::path::Path) -> Outcome<()> {
    Ok(NetworkKey::generate().write_new(folder.join("key"))?)
}

pub async fn first(setup: Setup) -> Outcome<()> {
    let node = node(&setup, &format!("receiver{}", setup.half)).await?;
    let pong = node.publisher("pong")?;
    let answer = |request: Request| async move { Ok((request.codec, request.payload)) };
    let _serving = match setup.work {
        Work::Calls => Some(node.serve_requests("echo", ServeOptions::default(), answer).await?),
        _ => None,
    };
    let mut ping = node.listen("ping").await?;
    tokio::spawn(async move {
        while let Some(message) = ping.next().await {
            let _ = pong.send_bytes(message.payload).await;
        }
    });
    let mut listening = Vec::new();
    for number in 0..setup.work.listeners().1 {
        let node = node.sibling(format!("listener{}-{number}", setup.half)).await?;
        let options = ListenOptions { messages: 65_536, overflow: Overflow::Block, ..ListenOptions::default() };
        let flood = node.listen_with("flood", options).await?;
        listening.push(tokio::spawn(receive(flood.map(|message| message.payload[0]))));
    }
    say(&Line::Ready(node.status().await?.addresses.into_iter().next().ok_or("no address")?));
    for listening in listening {
        listening.await??;
    }
    say(&Line::Done);
    rest().await
}

pub async fn second(setup: Setup) -> Outcome<()> {
    if setup.work == Work::Start {
        return starts(setup).await;
    }
    let (processes, each) = setup.work.listeners();
    let node = node(&setup, "sender").await?;
    let mut pong = node.listen("pong").await?;
    let (ping, flood) = (node.publisher("ping")?, node.publisher("flood")?);
    if flood.wait_for_listeners(processes * each, PATIENCE).await < processes * each
        || ping.wait_for_listeners(processes, PATIENCE).await < processes
    {
        return Err("the other half does not listen".into());
    }
    greet(&ping, &mut pong).await?;
    // Late answers may come, and links may move once they are there.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = now();
    while setup.system == "meshd-local" && link(&node).await? != "unix" && began.elapsed() < Duration::from_millis(500)
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while pong.try_next().is_some() {}
    match setup.work {
        Work::Trip => {
            say(&Line::Link(link(&node).await?));
            part::trips(&setup, Trip { ping, pong }).await
        }
        Work::Calls => {
            let echo = node.service("echo")?;
            echo.wait_for_providers(1, PATIENCE).await;
            say(&Line::Link(link(&node).await?));
            part::calls(&setup, Call(echo.clone()), Call(echo)).await
        }
        _ => {
            say(&Line::Link(link(&node).await?));
            part::flood(&setup, Flood(flood)).await
        }
    }
}

struct Flood(Publisher);

impl Exchange for Flood {
    async fn once(&mut self, payload: Bytes) -> Outcome<()> {
        self.0.send_bytes(payload).await?;
        Ok(())
    }
}

struct Trip {
    ping: Publisher,
    pong: Subscription,
}

impl Exchange for Trip {
    async fn once(&mut self, payload: Bytes) -> Outcome<()> {
        self.ping.send_bytes(payload).await?;
        self.pong.next().await.ok_or("the mesh ended")?;
        Ok(())
    }
}

#[derive(Clone)]
struct Call(Service);

impl Exchange for Call {
    async fn once(&mut self, payload: Bytes) -> Outcome<()> {
        self.0.call_bytes(Codec::Bytes, payload).await?;
        Ok(())
    }
}

/// Waits for the first answer. A message that comes before the other half knows who listens here is answered to nobody.
async fn greet(ping: &Publisher, pong: &mut Subscription) -> Outcome<()> {
    loop {
        ping.send_bytes(Bytes::from_static(b"hello")).await?;
        if timeout(Duration::from_millis(5), pong.next()).await.is_ok() {
            return Ok(());
        }
    }
}

/// How the other halves are linked: the figures stand under that name.
async fn link(node: &Node) -> Outcome<String> {
    let mut kinds: Vec<String> =
        node.peers().await?.iter().map(|peer| format!("{:?}", peer.link).to_lowercase()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    Ok(kinds.join("+"))
}

async fn starts(setup: Setup) -> Outcome<()> {
    let mut taken = Vec::new();
    let mut kind = String::new();
    for number in 0..STARTS {
        let began = now();
        let node = node(&setup, &format!("starter{number}")).await?;
        let mut pong = node.listen("pong").await?;
        let ping = node.publisher("ping")?;
        if ping.wait_for_listeners(1, PATIENCE).await == 0 {
            return Err("nobody listens".into());
        }
        greet(&ping, &mut pong).await?;
        taken.push(began.elapsed());
        kind = link(&node).await?;
        node.shutdown().await;
    }
    say(&Line::Link(kind));
    say(&Line::Start { p50: quantiles(&mut taken).0 });
    say(&Line::Done);
    rest().await
}
