//! Whether a sender is slower where much is listened to: the same sends beside ten peers with one filter each, and beside ten
//! with 100,000 filters and a thousand idle publishers. Run by `scripts/micro.sh`; prints a table.
//!
//! All in one process, rounds interleaved: the ratios count.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a measurement prints what it measured")]

use std::error::Error;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meshd::{Codec, ListenOptions, NetworkKey, Node, Overflow, Publisher, SendOptions, Subscription};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const MESSAGES: u64 = 300_000;
const ROUNDS: usize = 7;
const PEERS: usize = 10;
/// As many as one node may have.
const FILTERS: usize = 10_000;
const IDLE_PUBLISHERS: usize = 1000;
const CHURN: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(120);

/// A sender, a receiver, and others.
struct Mesh {
    sender: Node,
    flood: Publisher,
    receiver: Subscription,
    /// Listens to something else, and again not.
    restless: Node,
    others: Vec<(Node, Vec<Subscription>)>,
    idle: Vec<Publisher>,
    _folder: TempDir,
}

/// By what, and how often the routes change meanwhile.
#[derive(Clone, Copy)]
enum By {
    Publisher,
    Topic,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    if std::env::args().any(|word| word == "--test") {
        return Ok(());
    }
    tokio::spawn(measure()).await?
}

async fn measure() -> Outcome<()> {
    let mut alone = Mesh::start(1).await?;
    eprintln!("{PEERS} peers listen with {FILTERS} filters each");
    let mut crowd = Mesh::start(FILTERS).await?;
    let kinds = [
        ("through a publisher", By::Publisher, false),
        ("by topic", By::Topic, false),
        ("through a publisher, while a filter comes or goes every 5 ms", By::Publisher, true),
    ];
    let mut rates = vec![(Vec::new(), Vec::new()); kinds.len()];
    for round in 0..ROUNDS {
        for ((_, by, churn), (one, other)) in kinds.iter().zip(&mut rates) {
            // Each goes first as often as the other, or nearly.
            if round % 2 == 0 {
                one.push(alone.rate(*by, *churn).await?);
                other.push(crowd.rate(*by, *churn).await?);
            } else {
                other.push(crowd.rate(*by, *churn).await?);
                one.push(alone.rate(*by, *churn).await?);
            }
        }
    }
    let filters = PEERS * FILTERS;
    println!("| 64 B, messages/s | {PEERS} filters | {filters} filters, {IDLE_PUBLISHERS} idle publishers | ratio |");
    println!("|---|---|---|---|");
    let mut slower = false;
    for ((what, _, churn), (one, other)) in kinds.iter().zip(rates) {
        let (one, other) = (median(one), median(other));
        println!("| {what} | {one:.0} | {other:.0} | {:.2} |", other / one);
        slower |= !churn && other < one * 0.9;
    }
    alone.stop().await;
    crowd.stop().await;
    if slower { Err("sends are slower by more than a tenth".into()) } else { Ok(()) }
}

impl Mesh {
    async fn start(filters: usize) -> Outcome<Self> {
        let folder = TempDir::new()?;
        let (key, run) = (NetworkKey::generate(), folder.path().join("run"));
        let start = |name: String| {
            let builder = Node::builder(name).mesh("crowd").key(key.clone()).mdns(false).listen(["127.0.0.1:0"]);
            builder.runtime_dir(&run).start()
        };
        let sender = start("sender".to_owned()).await?;
        let options = ListenOptions { messages: 1 << 16, overflow: Overflow::Block, ..ListenOptions::default() };
        let receiver = start("receiver".to_owned()).await?.listen_with("flood", options).await?;
        let restless = start("restless".to_owned()).await?;
        let mut all = Vec::new();
        for peer in 0..PEERS {
            let node = start(format!("other-{peer}")).await?;
            let mut subscriptions = Vec::with_capacity(filters);
            for n in 0..filters {
                let number = peer * filters + n;
                let filter = match (n + 1) % 10 {
                    0 => format!("idle/{}", n / 10),
                    2 => format!("*/{number}"),
                    _ => format!("sensor/{number}/temperature"),
                };
                subscriptions.push(node.listen(&filter).await?);
            }
            all.push((node, subscriptions));
        }
        let flood = sender.publisher("flood")?;
        let idle = if filters == 1 { 0 } else { IDLE_PUBLISHERS };
        let idle: Vec<Publisher> =
            (0..idle).map(|n| sender.publisher(&format!("idle/{n}"))).collect::<Result<_, _>>()?;
        let heard = async |publisher: &Publisher, count: usize| {
            let there = publisher.wait_for_listeners(count, PATIENCE).await;
            if there == count { Ok(()) } else { Err(format!("{there} of {count} nodes listen")) }
        };
        heard(&flood, 1).await?;
        for publisher in &idle {
            heard(publisher, PEERS).await?;
        }
        for peer in 0..PEERS {
            heard(&sender.publisher(&format!("sensor/{}/temperature", peer * filters))?, 1).await?;
        }
        while sender.topics().len() < (filters - filters / 10) * PEERS {
            sleep(CHURN).await; // looks again: the last records come
        }
        Ok(Self { sender, flood, receiver, restless, others: all, idle, _folder: folder })
    }

    /// Messages per second, from the first that is sent to the last that arrives.
    async fn rate(&mut self, by: By, churn: bool) -> Outcome<f64> {
        let restless = self.restless.clone();
        let _churn = churn.then(|| {
            AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    let listens = restless.listen("something/else").await;
                    sleep(CHURN).await; // its work
                    drop(listens);
                    sleep(CHURN).await;
                }
            }))
        });
        let payload = Bytes::from_static(&[7; 64]);
        let (sender, flood) = (self.sender.clone(), self.flood.clone());
        let began = now();
        let sends = tokio::spawn(async move {
            for _ in 0..MESSAGES {
                let report = match by {
                    By::Publisher => flood.send_bytes(payload.clone()).await?,
                    By::Topic => {
                        sender.publish("flood", Codec::Bytes, payload.clone(), &SendOptions::default()).await?
                    }
                };
                if report.sent != 1 {
                    return Err(format!("not sent: {report:?}").into());
                }
            }
            Outcome::Ok(())
        });
        for _ in 0..MESSAGES {
            timeout(PATIENCE, self.receiver.next()).await?.ok_or("the mesh ended")?;
        }
        let rate = MESSAGES as f64 / began.elapsed().as_secs_f64();
        sends.await??;
        Ok(rate)
    }

    async fn stop(self) {
        drop((self.idle, self.flood));
        for (node, subscriptions) in self.others {
            drop(subscriptions);
            node.shutdown().await;
        }
        self.restless.shutdown().await;
        self.sender.shutdown().await;
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}
