//! A service and who calls it: the smallest server and client.
//!
//! ```sh
//! cargo run --example call
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::Duration;

use meshd::{CallError, Failure, NetworkKey, Node};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::generate();
    // A peer each, as if they were programs on two machines. Here they meet through this host alone.
    let peer = |name: &str| Node::builder(name).key(key.clone()).listen(["127.0.0.1:0"]).mdns(false);

    let server = peer("server").start().await?;
    let multiply = |(a, b): (i64, i64)| async move { Ok::<_, Failure>(a * b) };
    let divide = |(a, b): (i64, i64)| async move {
        a.checked_div(b).ok_or_else(|| Failure::new("undefined", format!("{a} divided by {b}")))
    };
    let _multiply = server.serve("multiply", multiply).await?; // until it is dropped
    let _divide = server.serve("divide", divide).await?;

    let client = peer("client").start().await?;
    client.service("divide")?.wait_for_providers(1, Duration::from_secs(10)).await;
    let product: i64 = client.call("multiply", &(6, 7)).await?;
    println!("6 * 7 = {product}");
    for (a, b) in [(42, 6), (1, 0)] {
        match client.call::<_, i64>("divide", &(a, b)).await {
            Ok(quotient) => println!("{a} / {b} = {quotient}"),
            Err(CallError::Remote(remote)) => println!("{a} / {b} failed there: {}", remote.failure),
            Err(error) => return Err(error.into()),
        }
    }
    client.shutdown().await;
    server.shutdown().await;
    Ok(())
}
