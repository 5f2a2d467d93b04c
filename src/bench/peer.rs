//! A process that is measured: a peer that does what it is told on its stdin, and ends when that does.

use std::error::Error;
use std::fs;
use std::io::BufRead;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::asking::{self, Echo};
use super::crew::clear;
use super::order::{Answer, Join, Order, Usage};
use super::{MEETING, PATIENCE, stream};
use crate::{LinkKind, NetworkKey, Node, Subscription};

/// Why an order was not carried out.
pub(super) type Refusal = Box<dyn Error + Send + Sync>;

/// Does what stdin says, from now on, and gives what is to be said on stdout, as lines of JSON. Ends the process when stdin
/// ends: so no peer outlives the one that measures, however that ends.
///
/// # Panics
/// Outside of a tokio runtime.
pub(crate) fn answers() -> mpsc::Receiver<impl serde::Serialize + use<>> {
    let (orders, todo) = mpsc::channel(WAITING);
    let (answers, said) = mpsc::channel(WAITING);
    // A thread of its own: it has to notice the end whatever the others are busy with.
    std::thread::spawn(move || listen(&orders));
    tokio::spawn(work(todo, answers));
    said
}

fn listen(orders: &mpsc::Sender<Order>) -> ! {
    let mut folder: Option<PathBuf> = None;
    for line in std::io::stdin().lock().lines() {
        let Some(order) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else { break };
        match &order {
            Order::Join(join) => folder = Some(join.folder.clone()),
            Order::Leave => folder = None, // the others stay and need it
            _ => {}
        }
        if orders.try_send(order).is_err() {
            break; // nobody is told so much at a time
        }
    }
    // Who measures may have been killed.
    if let Some(folder) = folder {
        clear(&folder);
    }
    std::process::exit(0)
}

async fn work(mut todo: mpsc::Receiver<Order>, answers: mpsc::Sender<Answer>) {
    let mut peer = None;
    while let Some(order) = todo.recv().await {
        let answer = match (order, peer.take()) {
            (Order::Leave, peer) => {
                if let Some(Peer { node, echo, echoes }) = peer {
                    drop((echo, echoes));
                    node.shutdown().await;
                }
                let _ = answers.send(Answer::Done).await;
                return; // all that is said is printed, then the process ends
            }
            (Order::Join(order), _) => match join(order).await {
                Ok((joined, addresses)) => {
                    peer = Some(joined);
                    Ok(Answer::Joined(addresses))
                }
                Err(refusal) => Err(refusal),
            },
            (order, Some(mut joined)) => {
                let answer = joined.carry_out(order, &answers).await;
                peer = Some(joined);
                answer
            }
            (_, None) => Err("it has not joined".into()),
        };
        let answer = answer.unwrap_or_else(|refusal| Answer::Failed(refusal.to_string()));
        if answers.send(answer).await.is_err() {
            return;
        }
    }
}

/// What runs in this process.
struct Peer {
    node: Node,
    echo: Option<Echo>,
    echoes: Option<Subscription>,
}

async fn join(order: Join) -> Result<(Peer, Vec<String>), Refusal> {
    let builder = Node::builder(order.name).mesh("bench").key(NetworkKey::from_bytes(order.key));
    let builder = builder.mdns(false).listen(["127.0.0.1:0"]);
    let builder = match order.link {
        LinkKind::Unix => builder.local(true).runtime_dir(order.folder.join("run")),
        LinkKind::Tcp => builder.local(false).bootstrap(order.bootstrap),
    };
    let node = builder.start().await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let addresses = node.status().await?.addresses;
        if !addresses.is_empty() {
            return Ok((Peer { node, echo: None, echoes: None }, addresses));
        }
        if Instant::now() >= deadline {
            return Err("it listens nowhere".into());
        }
        sleep(LOOK_AGAIN).await; // no event tells
    }
}

impl Peer {
    async fn carry_out(&mut self, order: Order, answers: &mpsc::Sender<Answer>) -> Result<Answer, Refusal> {
        let node = self.node.clone();
        // In tasks of the runtime, as programs work.
        let task = match order {
            Order::Join(_) | Order::Leave => return Err("it has joined".into()),
            Order::Usage => return Ok(Answer::Usage(usage())),
            Order::Meet { peers, link } => tokio::spawn(async move { meet(&node, peers, link).await }),
            Order::Serve { in_flight } => {
                self.echo = Some(Echo::start(&node, in_flight).await?);
                return Ok(Answer::Ready);
            }
            Order::Take(take) => {
                let answers = answers.clone();
                tokio::spawn(async move { Ok(Answer::Taken(stream::take(&node, take, &answers).await?)) })
            }
            Order::Flood(flood) => tokio::spawn(async move { Ok(Answer::Sent(stream::flood(&node, flood).await?)) }),
            Order::Trips(work) => {
                let mut echoes = match self.echoes.take() {
                    Some(echoes) => echoes,
                    None => asking::echoes(&node).await?,
                };
                let trips = async move { (asking::trips(&node, &mut echoes, work).await, echoes) };
                let (ended, echoes) = tokio::spawn(trips).await?;
                self.echoes = Some(echoes);
                return ended.map(|(latency, lost)| Answer::Echoed { latency, lost });
            }
            Order::Calls { work, in_flight } => tokio::spawn(async move {
                let (calls, nanos, latency) = asking::calls(&node, work, in_flight).await?;
                Ok(Answer::Called { calls, nanos, latency })
            }),
            Order::Await { topic } => {
                let mut subscription = node.listen(&topic).await?;
                answers.send(Answer::Ready).await?;
                subscription.next().await.ok_or("the mesh ended")?;
                return Ok(Answer::Arrived { at: super::clock::now() });
            }
            Order::Announce { topic } => {
                let publisher = node.publisher(&topic)?;
                publisher.wait_for_listeners(1, MEETING).await;
                let sent = publisher.send_bytes("here").await?.sent;
                return if sent == 1 { Ok(Answer::Done) } else { Err("nobody listens".into()) };
            }
        };
        task.await?
    }
}

/// Waits for links, and then a little for them to be of a kind: they may change when they stand.
async fn meet(node: &Node, peers: usize, link: LinkKind) -> Result<Answer, Refusal> {
    let deadline = Instant::now() + PATIENCE;
    let mut patience = None;
    loop {
        let links: Vec<LinkKind> = node.peers().await?.iter().map(|peer| peer.link).collect();
        let now = Instant::now();
        if links.len() >= peers {
            let deadline = *patience.get_or_insert(now + SETTLING);
            if links.iter().all(|kind| *kind == link) || now >= deadline {
                return Ok(Answer::Links(links));
            }
        }
        if now >= deadline {
            return Err(format!("after {PATIENCE:?} it is linked to {} of {peers} peers", links.len()).into());
        }
        sleep(LOOK_AGAIN).await; // no event tells of kinds
    }
}

fn usage() -> Option<Usage> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let rss = kibibytes(&status, "VmRSS:")?;
    let pss = fs::read_to_string("/proc/self/smaps_rollup").ok().and_then(|rollup| kibibytes(&rollup, "Pss:"));
    Some(Usage { cpu: super::clock::processor_time(), rss, pss })
}

/// The value of a line such as `VmRSS:   1234 kB`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Orders and answers that wait: two at most are under way.
const WAITING: usize = 16;
/// Between two looks at something of which no event tells.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long links may take to be of their kind, once they stand.
const SETTLING: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_linux_tells_it() {
        let status = "Name:\tmeshd\nVmHWM:\t    9000 kB\nVmRSS:\t    1234 kB\nThreads:\t3\n";
        assert_eq!(kibibytes(status, "VmRSS:"), Some(1234));
        assert_eq!((kibibytes(status, "Pss:"), kibibytes(status, "Threads:")), (None, None));
    }
}
