//! Three workers of one name share the jobs; an auditor of another name sees each job too.
//!
//! ```sh
//! cargo run --example workers
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::Duration;

use meshd::{Builder, NetworkKey, Node, Subscription};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::generate();
    // A peer each, as if they were programs on three machines. Here they meet through this host alone.
    let peer = |name: &str| -> Builder { Node::builder(name).key(key.clone()).listen(["127.0.0.1:0"]).mdns(false) };

    let mut listeners = Vec::new();
    for name in ["worker", "worker", "worker", "auditor"] {
        let node = peer(name).start().await?;
        let jobs = node.listen("jobs/*").await?;
        listeners.push(tokio::spawn(count(jobs)));
    }

    let boss = peer("boss").start().await?;
    let jobs = boss.publisher("jobs/resize")?;
    jobs.wait_for_listeners(4, Duration::from_secs(10)).await;
    for number in 0..300 {
        let report = jobs.send(&number).await?;
        assert_eq!(report.sent, 2, "one worker and the auditor");
    }
    boss.shutdown().await; // what is queued goes out before that

    for listener in listeners {
        println!("{}", listener.await?);
    }
    Ok(())
}

/// Takes jobs until none came for a second. `jobs` holds its node, so that one lives as long as this.
async fn count(mut jobs: Subscription) -> String {
    let mut taken: Vec<u32> = Vec::new();
    while let Ok(Some(job)) = tokio::time::timeout(patience(&taken), jobs.next()).await {
        taken.extend(job.decode::<u32>());
    }
    format!("took {} jobs, in order: {}, such as {:?}", taken.len(), taken.is_sorted(), &taken[..taken.len().min(4)])
}

fn patience(taken: &[u32]) -> Duration {
    Duration::from_secs(if taken.is_empty() { 10 } else { 1 })
}
