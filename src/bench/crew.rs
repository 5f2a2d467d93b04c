//! The peer processes of a measurement: started, told what to do, and ended, all of them, however it ends.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{join_all, try_join_all};
use futures::stream::FuturesUnordered;
use rand::Rng;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::order::{Answer, Join, Order};
use super::{BenchError, PATIENCE};
use crate::LinkKind;

/// Peers of one mesh, each in a process of its own and linked to all others.
#[derive(Debug)]
pub(super) struct Crew {
    /// Ended before the folder goes.
    peers: Vec<Peer>,
    folder: Folder,
    key: [u8; 32],
    link: LinkKind,
    bootstrap: Vec<String>,
    started: usize,
}

impl Crew {
    /// Starts peers that have links of a kind.
    pub(super) async fn start(link: LinkKind, peers: usize) -> Result<Self, BenchError> {
        let mut key = [0; 32];
        rand::rng().fill_bytes(&mut key);
        let (folder, bootstrap) = (Folder::create().map_err(BenchError::Folder)?, Vec::new());
        let mut crew = Self { peers: Vec::new(), folder, key, link, bootstrap, started: 0 };
        crew.grow(peers).await?;
        Ok(crew)
    }

    /// Starts more, until there are so many.
    pub(super) async fn grow(&mut self, to: usize) -> Result<(), BenchError> {
        if self.peers.is_empty() {
            let number = self.add()?;
            self.bootstrap = self.joined(number).await?;
        }
        let first = self.peers.len();
        for _ in first..to {
            self.add()?;
        }
        for number in first..self.peers.len() {
            self.tell(number, &self.join(number)).await?;
        }
        for number in first..self.peers.len() {
            match self.answer(number, Duration::ZERO).await? {
                Answer::Joined(_) => {}
                answer => return Err(self.unexpected(number, &answer)),
            }
        }
        self.check().await
    }

    /// Starts one more process, which is told nothing yet. Gives its number.
    pub(super) fn add(&mut self) -> Result<usize, BenchError> {
        self.peers.push(Peer::start(self.started).map_err(BenchError::Start)?);
        self.started += 1;
        Ok(self.peers.len() - 1)
    }

    /// The order to join.
    pub(super) fn join(&self, number: usize) -> Order {
        let name = format!("peer-{}", self.peers[number].number);
        let (folder, bootstrap) = (self.folder.0.clone(), self.bootstrap.clone());
        Order::Join(Join { name, key: self.key, link: self.link, folder, bootstrap })
    }

    async fn joined(&mut self, number: usize) -> Result<Vec<String>, BenchError> {
        match self.ask(number, &self.join(number), Duration::ZERO).await? {
            Answer::Joined(addresses) => Ok(addresses),
            answer => Err(self.unexpected(number, &answer)),
        }
    }

    /// Makes sure that every link is of the kind that figures will be said to be of.
    pub(super) async fn check(&mut self) -> Result<(), BenchError> {
        let others = self.peers.len() - 1;
        let order = Order::Meet { peers: others, link: self.link };
        for number in 0..self.peers.len() {
            self.tell(number, &order).await?;
        }
        for number in 0..self.peers.len() {
            match self.answer(number, Duration::ZERO).await? {
                Answer::Links(links) => {
                    if let Some(found) = links.into_iter().find(|link| *link != self.link) {
                        return Err(BenchError::OtherLinks { wanted: self.link, found });
                    }
                }
                answer => return Err(self.unexpected(number, &answer)),
            }
        }
        Ok(())
    }

    pub(super) async fn tell(&mut self, number: usize, order: &Order) -> Result<(), BenchError> {
        let told = self.peers[number].tell(order).await;
        match told {
            Ok(()) => Ok(()),
            Err(_) => Err(self.blame(number, BenchError::Silent { peer: number, patience: PATIENCE }).await),
        }
    }

    /// What a peer answers, `work` after all else that it may take. That another ends is noticed at once.
    pub(super) async fn answer(&mut self, number: usize, work: Duration) -> Result<Answer, BenchError> {
        let patience = work + PATIENCE;
        let silent = BenchError::Silent { peer: number, patience };
        let (mut answers, mut others) = (None, FuturesUnordered::new());
        for (at, peer) in self.peers.iter_mut().enumerate() {
            if at == number {
                answers = Some(&mut peer.answers);
            } else {
                let child = &mut peer.child;
                others.push(async move { (at, child.wait().await) });
            }
        }
        let answers = answers.expect("the peer is one of them");
        let line = tokio::select! {
            line = timeout(patience, answers.next_line()) => line,
            Some((ended, _)) = others.next() => {
                drop(others);
                return Err(self.blame(ended, silent).await);
            }
        };
        drop(others);
        let error = match line {
            Ok(Ok(Some(line))) => match serde_json::from_str(&line) {
                Ok(Answer::Failed(why)) => BenchError::Failed { peer: number, why },
                Ok(answer) => return Ok(answer),
                Err(_) => BenchError::Failed { peer: number, why: format!("it said {line:?}") },
            },
            Ok(_) | Err(_) => silent,
        };
        Err(self.blame(number, error).await)
    }

    pub(super) async fn ask(&mut self, number: usize, order: &Order, work: Duration) -> Result<Answer, BenchError> {
        self.tell(number, order).await?;
        self.answer(number, work).await
    }

    /// Asks all at once.
    pub(super) async fn ask_all(&mut self, order: &Order) -> Result<Vec<Answer>, BenchError> {
        for number in 0..self.peers.len() {
            self.tell(number, order).await?;
        }
        let mut answers = Vec::new();
        for number in 0..self.peers.len() {
            answers.push(self.answer(number, Duration::ZERO).await?);
        }
        Ok(answers)
    }

    pub(super) fn unexpected(&self, peer: usize, answer: &Answer) -> BenchError {
        BenchError::Failed { peer, why: format!("it answered {answer:?}") }
    }

    /// The error, or that a process has ended if one has: what others say then is a consequence.
    async fn blame(&mut self, number: usize, error: BenchError) -> BenchError {
        // Who waits for a peer that ended may say so before its end can be seen.
        let patience = if matches!(error, BenchError::Silent { .. }) { DYING } else { SOON };
        let gone = |peer: &mut Peer| matches!(peer.child.try_wait(), Ok(Some(_)));
        let ended = if gone(&mut self.peers[number]) {
            Some(number)
        } else {
            let mut ends = FuturesUnordered::new();
            for (at, peer) in self.peers.iter_mut().enumerate() {
                ends.push(async move { peer.child.wait().await.map(|_| at).ok() });
            }
            timeout(patience, ends.next()).await.ok().flatten().flatten()
        };
        let Some(peer) = ended else { return error };
        let Peer { child, talk, .. } = &mut self.peers[peer];
        let Ok(Some(status)) = child.try_wait() else { return error };
        let said = match talk.take() {
            Some(talk) => timeout(DYING, talk).await.ok().and_then(Result::ok).unwrap_or_default(),
            None => String::new(),
        };
        BenchError::Ended { peer, status, said }
    }

    /// Ends the last one in order, and waits until its process is gone.
    pub(super) async fn dismiss_last(&mut self) -> Result<(), BenchError> {
        let number = self.peers.len() - 1;
        self.ask(number, &Order::Leave, Duration::ZERO).await?;
        if let Some(mut peer) = self.peers.pop() {
            let _ = timeout(PATIENCE, peer.child.wait()).await; // one that does not end is killed
        }
        Ok(())
    }

    /// Ends all, and waits until they are gone.
    pub(super) async fn end(mut self) {
        for peer in &mut self.peers {
            peer.orders = None; // a peer without orders ends
        }
        let ended = join_all(self.peers.iter_mut().map(|peer| peer.child.wait()));
        let _ = timeout(DYING, ended).await; // those that do not are killed
        let _ = try_join_all(self.peers.iter_mut().map(|peer| peer.child.kill())).await; // gone already, mostly
    }
}

/// One process.
#[derive(Debug)]
struct Peer {
    number: usize,
    /// Killed when dropped.
    child: Child,
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    /// The end of what it says on stderr.
    talk: Option<JoinHandle<String>>,
}

impl Peer {
    fn start(number: usize) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(super::PEER_VERB).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for the one that measures: it ends the others in order.
        command.process_group(0);
        let mut child = command.spawn()?;
        let missing = || io::Error::from(io::ErrorKind::BrokenPipe);
        let orders = Some(child.stdin.take().ok_or_else(missing)?);
        let answers = BufReader::new(child.stdout.take().ok_or_else(missing)?).lines();
        let talk = Some(tokio::spawn(end_of(child.stderr.take().ok_or_else(missing)?)));
        Ok(Self { number, child, orders, answers, talk })
    }

    async fn tell(&mut self, order: &Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        let orders = self.orders.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        timeout(PATIENCE, orders.write_all(&line)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

/// Reads to the end, and keeps the end.
async fn end_of(mut stderr: ChildStderr) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        kept.drain(..kept.len().saturating_sub(MOST_TALK));
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// A directory for this measurement, removed with all that is in it when dropped.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn create() -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("{FOLDER}{:08x}", rand::rng().next_u32()));
        DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        clear(&self.0); // blocks for as long as it takes to remove a few files
    }
}

/// Removes the folder of a measurement, whatever peers that still end put into it meanwhile.
pub(super) fn clear(folder: &Path) {
    let ours = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FOLDER));
    for _ in 0..3 {
        if !ours || fs::remove_dir_all(folder).is_ok() || !folder.exists() {
            return;
        }
    }
}

/// Time for a process that is to end, or that seems to have ended.
const DYING: Duration = Duration::from_secs(2);
/// Time until the end of a process shows, when others noticed it.
const SOON: Duration = Duration::from_millis(50);
/// Bytes of stderr that are kept of each.
const MOST_TALK: usize = 2048;
/// How the names of folders begin.
const FOLDER: &str = "meshd-bench-";
