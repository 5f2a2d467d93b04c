#![allow(
    clippy::all,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::allow_attributes_without_reason,
    missing_docs
)]
use bytes::Bytes;
use meshd::*;
use std::time::{Duration, Instant};
type R<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
#[tokio::main]
async fn main() -> R<()> {
    let a: Vec<String> = std::env::args().collect();
    let dir = std::path::PathBuf::from(&a[2]);
    if a[1] == "s" {
        return tokio::spawn(server(dir)).await?;
    }
    tokio::spawn(client(dir)).await?
}
async fn node(name: &str, dir: &std::path::Path) -> R<Node> {
    let key = NetworkKey::read(dir.join("key"))?;
    Ok(Node::builder(name).key(key).mdns(false).listen(["127.0.0.1:0"]).runtime_dir(dir.join("run")).start().await?)
}
async fn server(dir: std::path::PathBuf) -> R<()> {
    let n = node("s", &dir).await?;
    let _g =
        n.serve_requests("echo", ServeOptions::default(), |r: Request| async move { Ok((r.codec, r.payload)) }).await?;
    let mut ping = n.listen("ping").await?;
    let pong = n.publisher("pong")?;
    while let Some(m) = ping.next().await {
        let _ = pong.send_bytes(m.payload).await;
    }
    Ok(())
}
async fn client(dir: std::path::PathBuf) -> R<()> {
    let n = node("c", &dir).await?;
    let echo = n.service("echo")?;
    echo.wait_for_providers(1, Duration::from_secs(10)).await;
    let mut pong = n.listen("pong").await?;
    let ping = n.publisher("ping")?;
    ping.wait_for_listeners(1, Duration::from_secs(10)).await;
    let payload = Bytes::from(vec![7u8; 64]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..3 {
        let mut t = vec![];
        for _ in 0..20000 {
            let b = Instant::now();
            ping.send_bytes(payload.clone()).await?;
            pong.next().await;
            t.push(b.elapsed());
        }
        t.sort();
        let trip = t[10000];
        let mut t = vec![];
        for _ in 0..20000 {
            let b = Instant::now();
            echo.call_bytes(Codec::Bytes, payload.clone()).await?;
            t.push(b.elapsed());
        }
        t.sort();
        let b = Instant::now();
        let hs: Vec<_> = (0..64)
            .map(|_| {
                let (e, p) = (echo.clone(), payload.clone());
                tokio::spawn(async move {
                    for _ in 0..6250 {
                        e.call_bytes(Codec::Bytes, p.clone()).await.unwrap();
                    }
                })
            })
            .collect();
        for h in hs {
            h.await?;
        }
        println!(
            "trip p50 {:.1} us  call p50 {:.1} us p99 {:.1}  calls/s {:.0}",
            trip.as_secs_f64() * 1e6,
            t[10000].as_secs_f64() * 1e6,
            t[19800].as_secs_f64() * 1e6,
            400000.0 / b.elapsed().as_secs_f64()
        );
    }
    Ok(())
}
