//! A cache in front of a slow service: who asks again gets the answer at once, and the service is asked once.
//!
//! ```sh
//! cargo run --example cache
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use meshd::{Failure, NetworkKey, Node};
use tokio::sync::Mutex;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::generate();
    let peer = |name: &str| Node::builder(name).key(key.clone()).listen(["127.0.0.1:0"]).mdns(false);

    let origin = peer("origin").start().await?;
    let _origin = origin
        .serve("population/origin", |town: String| async move {
            println!("  the origin looks {town} up");
            tokio::time::sleep(Duration::from_millis(200)).await; // a slow disk
            Ok::<_, Failure>(town.len() as u64 * 10_000)
        })
        .await?;

    let cache = peer("cache").start().await?;
    let behind = cache.service("population/origin")?;
    behind.wait_for_providers(1, Duration::from_secs(10)).await;
    let known: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
    let _cache = cache
        .serve("population", move |town: String| {
            let (known, behind) = (Arc::clone(&known), behind.clone());
            async move {
                let mut known = known.lock().await;
                if let Some(population) = known.get(&town) {
                    return Ok::<u64, Failure>(*population);
                }
                let population = behind.call(&town).await?; // its failures are passed on, and not kept
                known.insert(town, population);
                Ok(population)
            }
        })
        .await?;

    let client = peer("client").start().await?;
    let population = client.service("population")?;
    population.wait_for_providers(1, Duration::from_secs(10)).await;
    for town in ["Turku", "Turku", "Oulu", "Turku"] {
        println!("{town} has {} people", population.call::<_, u64>(town).await?);
    }
    client.shutdown().await;
    Ok(())
}
