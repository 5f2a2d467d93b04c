//! Work that is not lost: a worker dies in the middle of a job, and another does what it had.
//!
//! ```sh
//! cargo run --example redelivery
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::Duration;

use meshd::{Acknowledge, Codec, ListenOptions, NetworkKey, Node, SendOptions, Subscription};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::generate();
    let peer = |name: &str| Node::builder(name).key(key.clone()).listen(["127.0.0.1:0"]).mdns(false);

    // A job counts as done when the worker says so, not when it takes it.
    let when_done = ListenOptions { acknowledge: Acknowledge::Handled, ..ListenOptions::default() };
    for (worker, strength) in [("Ann", 2), ("Ben", usize::MAX)] {
        let jobs = peer("worker").start().await?.listen_with("jobs", when_done).await?;
        tokio::spawn(work(worker, strength, jobs));
    }

    let boss = peer("boss").start().await?;
    let jobs = boss.publisher("jobs")?;
    jobs.wait_for_listeners(2, Duration::from_secs(10)).await;
    let mut receipts = Vec::new();
    for number in 1..=8 {
        let job = format!("job {number}").into();
        receipts.push(jobs.submit(Codec::Text, job, &SendOptions::default().redeliver()).await?);
    }
    let (mut done, mut again) = (0, 0);
    for receipt in receipts {
        let report = receipt.await; // once a worker has done it
        done += report.acknowledged;
        again += report.redelivered;
    }
    println!("{done} of 8 jobs are done, {again} of them by another worker than the first");
    boss.shutdown().await;
    Ok(())
}

/// Does so many jobs, and dies in the middle of the next. `jobs` holds its node, so that one lives as long as this.
async fn work(name: &str, strength: usize, mut jobs: Subscription) {
    let mut done = 0;
    while let Some(job) = jobs.next().await {
        let text = job.text().unwrap_or("what is that?");
        println!("{name} begins {text}");
        tokio::time::sleep(Duration::from_millis(20)).await; // the work
        if done == strength {
            println!("{name} dies, with {text} half done and others waiting");
            return; // a panic does the same, and so does the end of its process
        }
        println!("{name} has done {text}");
        job.acknowledge();
        done += 1;
    }
}
