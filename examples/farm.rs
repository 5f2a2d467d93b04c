//! A task farm: four workers of different speeds, each takes the next task when it is done with the last.
//!
//! ```sh
//! cargo run --example farm
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use meshd::{CallOptions, Failure, NetworkKey, Node, ServeOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::generate();
    let peer = |name: &str| Node::builder(name).key(key.clone()).listen(["127.0.0.1:0"]).mdns(false);

    // One task at a time and none that waits: a worker that is at work is busy, and the task goes to another.
    let one_at_a_time = ServeOptions { concurrency: 1, waiting: 0, ..ServeOptions::default() };
    let (mut workers, mut services) = (Vec::new(), Vec::new());
    for number in 1..=4 {
        let worker = peer("worker").start().await?;
        let square = move |n: u64| async move {
            tokio::time::sleep(Duration::from_millis(10 << number)).await; // its work
            Ok::<_, Failure>((number, n * n))
        };
        services.push(worker.serve_with("square", one_at_a_time, square).await?);
        workers.push(worker);
    }

    let farmer = peer("farmer").start().await?;
    let square = farmer.service("square")?;
    square.wait_for_providers(4, Duration::from_secs(10)).await;
    // A task waits until a worker is free, and goes to another one if its worker dies.
    let square = square.with(CallOptions { wait_when_busy: true, idempotent: true, ..CallOptions::default() });
    let mut tasks: FuturesUnordered<_> = (1..=30)
        .map(|n| {
            let square = &square;
            async move { (n, square.call::<u64, (u64, u64)>(&n).await) }
        })
        .collect();
    let mut done = [0; 4];
    while let Some((n, result)) = tasks.next().await {
        let (worker, squared) = result?;
        println!("worker {worker}: {n} * {n} = {squared}");
        done[worker as usize - 1] += 1;
    }
    println!("tasks done by each worker: {done:?}");
    farmer.shutdown().await;
    Ok(())
}
