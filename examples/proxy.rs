//! A proxy for a service: it passes requests and replies on as they are, without knowing what is in them, and lets only a
//! few through at a time.
//!
//! ```sh
//! cargo run --example proxy
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::Duration;

use futures::future::join_all;
use meshd::{CallError, Failure, NetworkKey, Node, Request, ServeOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::generate();
    let peer = |name: &str| Node::builder(name).key(key.clone()).listen(["127.0.0.1:0"]).mdns(false);

    let inside = peer("inside").start().await?;
    let _shout = inside
        .serve("inside/shout", |text: String| async move {
            tokio::time::sleep(Duration::from_millis(20)).await; // its work
            if text.is_empty() { Err(Failure::new("empty", "nothing to shout")) } else { Ok(text.to_uppercase()) }
        })
        .await?;

    let proxy = peer("proxy").start().await?;
    let behind = proxy.service("inside/shout")?;
    behind.wait_for_providers(1, Duration::from_secs(10)).await;
    let pass_on = move |request: Request| {
        let behind = behind.clone();
        async move {
            match behind.call_bytes(request.codec, request.payload).await {
                Ok(reply) => Ok((reply.codec, reply.payload)),
                Err(CallError::Remote(remote)) => Err(remote.failure), // as if it had failed here
                Err(error) => Err(error.into()),
            }
        }
    };
    let few = ServeOptions { concurrency: 2, ..ServeOptions::default() };
    let proxied = proxy.serve_requests("shout", few, pass_on).await?;

    let client = peer("client").start().await?;
    let shout = client.service("shout")?;
    shout.wait_for_providers(1, Duration::from_secs(10)).await;
    let words = ["not", "", "so", "loud"];
    for (word, reply) in words.iter().zip(join_all(words.iter().map(|word| shout.call::<_, String>(*word))).await) {
        match reply {
            Ok(shouted) => println!("{word} -> {shouted}"),
            Err(error) => println!("{word:?} failed: {error}"),
        }
    }
    println!("{} calls went through, {} failed", proxied.stats().calls, proxied.stats().errors);
    client.shutdown().await;
    Ok(())
}
