//! NATS: a server of its own for each measurement, and clients. Nothing is dropped for being late: the server may hold 512 MB
//! for a client, a subscription 1,048,576 messages.

use std::fs;
use std::path::Path;

use async_nats::{Client, ConnectOptions, Subscriber};
use bytes::Bytes;
use futures::StreamExt;

use crate::Outcome;
use crate::part::{self, Exchange, Line, receive, rest, say};
use crate::work::{STARTS, Setup, Work, now, quantiles};

/// Bytes that a client takes before its sender has to wait.
const QUEUE: usize = 64 << 20;

/// Writes what the server reads.
pub fn configure(folder: &Path, port: u16, tls: bool) -> Outcome<std::path::PathBuf> {
    let mut text = format!("listen: \"127.0.0.1:{port}\"\nmax_pending: 512MB\nwrite_deadline: \"30s\"\n");
    if tls {
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        text += &format!("tls {{ cert_file: {cert:?}, key_file: {key:?}, timeout: 10 }}\n");
    }
    let path = folder.join("nats.conf");
    fs::write(&path, text)?;
    Ok(path)
}

async fn client(setup: &Setup) -> Outcome<Client> {
    // Its default of 2048 messages would be 2 GiB of the largest, which are not on their way yet.
    let capacity = (QUEUE / setup.work.size()).min(2048);
    let options = ConnectOptions::new().subscription_capacity(1 << 20).client_capacity(capacity);
    Ok(match setup.system.as_str() {
        "nats-tls" => {
            let options = options.require_tls(true).add_root_certificates(setup.folder.join("ca.pem"));
            options.connect(format!("tls://127.0.0.1:{}", setup.port)).await?
        }
        _ => options.connect(format!("nats://127.0.0.1:{}", setup.port)).await?,
    })
}

pub async fn first(setup: Setup) -> Outcome<()> {
    let client = client(&setup).await?;
    let mut ping = client.subscribe("ping").await?;
    let mut echo = client.subscribe("echo").await?;
    let mut floods = Vec::new();
    for _ in 0..setup.work.listeners().1 {
        floods.push(client.subscribe("flood").await?);
    }
    client.flush().await?;
    let (pings, echoes) = (client.clone(), client.clone());
    tokio::spawn(async move {
        while let Some(message) = ping.next().await {
            let _ = pings.publish("pong", message.payload).await;
        }
    });
    tokio::spawn(async move {
        while let Some(message) = echo.next().await {
            if let Some(reply) = message.reply {
                let _ = echoes.publish(reply, message.payload).await;
            }
        }
    });
    let listening = floods.into_iter().map(|flood| tokio::spawn(receive(flood.map(|message| message.payload[0]))));
    let listening: Vec<_> = listening.collect();
    say(&Line::Ready(String::new()));
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
    let client = client(&setup).await?;
    match setup.work {
        Work::Trip => {
            let pong = client.subscribe("pong").await?;
            client.flush().await?;
            part::trips(&setup, Trip { client, pong }).await
        }
        Work::Calls => part::calls(&setup, Call(client.clone()), Call(client)).await,
        _ => part::flood(&setup, Flood(client)).await,
    }
}

struct Flood(Client);

impl Exchange for Flood {
    async fn once(&mut self, payload: Bytes) -> Outcome<()> {
        Ok(self.0.publish("flood", payload).await?)
    }
}

struct Trip {
    client: Client,
    pong: Subscriber,
}

impl Exchange for Trip {
    async fn once(&mut self, payload: Bytes) -> Outcome<()> {
        self.client.publish("ping", payload).await?;
        self.pong.next().await.ok_or("the server ended")?;
        Ok(())
    }
}

#[derive(Clone)]
struct Call(Client);

impl Exchange for Call {
    async fn once(&mut self, payload: Bytes) -> Outcome<()> {
        self.0.request("echo", payload).await?;
        Ok(())
    }
}

async fn starts(setup: Setup) -> Outcome<()> {
    let mut taken = Vec::new();
    for _ in 0..STARTS {
        let began = now();
        let client = client(&setup).await?;
        let mut pong = client.subscribe("pong").await?;
        client.publish("ping", Bytes::from_static(b"hello")).await?;
        pong.next().await.ok_or("the server ended")?;
        taken.push(began.elapsed());
        drop(pong);
        client.drain().await?;
    }
    say(&Line::Start { p50: quantiles(&mut taken).0 });
    say(&Line::Done);
    rest().await
}
