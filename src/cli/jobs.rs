//! Commands that run on behalf of calls: each a process group, none of which outlives us.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::trouble::Trouble;
use crate::keeper::Keeper;
use crate::mesh::{Codec, Failure, NodeId};
use crate::wire::control::Called;

/// All that run. There are no more of them than the daemon hands out calls.
pub(super) struct Jobs {
    command: OsString,
    mesh: String,
    most: usize,
    keeper: Arc<Keeper>,
    running: FuturesUnordered<BoxFuture<'static, Job>>,
    cancels: HashMap<u64, CancellationToken>,
}

/// A call whose command has ended.
pub(super) struct Job {
    pub(super) call: u64,
    pub(super) from: NodeId,
    pub(super) took: Duration,
    /// What it printed, or why that is no reply. None: it was cancelled.
    pub(super) result: Option<Result<Vec<u8>, Failure>>,
}

impl Jobs {
    /// Runs `command` for each call, in the name of a mesh; replies have `most` bytes at most.
    pub(super) fn new(command: OsString, mesh: String, most: usize) -> Result<Self, Trouble> {
        let keeper = Arc::new(Keeper::new(GRACE));
        keeper.ready().map_err(|error| Trouble::failed("cannot start sh", &error).hint("commands are run by sh"))?;
        Ok(Self { command, mesh, most, keeper, running: FuturesUnordered::new(), cancels: HashMap::new() })
    }

    pub(super) fn start(&mut self, called: Called) {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("MESHD_SERVICE", called.service.as_str()).env("MESHD_FROM", called.from.to_string());
        command.env("MESHD_CODEC", codec_name(called.codec)).env("MESHD_MESH", &self.mesh);
        command.process_group(0);
        let (cancel, keeper, most) = (CancellationToken::new(), Arc::clone(&self.keeper), self.most);
        self.cancels.insert(called.call, cancel.clone());
        let Called { call, from, payload, .. } = called;
        self.running.push(Box::pin(async move {
            let began = Instant::now();
            let result = run(command, payload, most, &cancel, &keeper).await;
            Job { call, from, took: began.elapsed(), result }
        }));
    }

    /// Ends a command: nobody waits for it.
    pub(super) fn cancel(&self, call: u64) {
        if let Some(cancel) = self.cancels.get(&call) {
            cancel.cancel();
        }
    }

    /// The next that has ended; `None` while none runs.
    ///
    /// # Cancel safety
    /// Nothing is lost if this is dropped.
    pub(super) async fn next(&mut self) -> Option<Job> {
        let job = self.running.next().await?;
        self.cancels.remove(&job.call);
        Some(job)
    }

    /// Ends all.
    pub(super) async fn end(&mut self) {
        self.cancels.values().for_each(CancellationToken::cancel);
        while self.next().await.is_some() {}
    }
}

/// Runs one command to its end. None: it was cancelled before.
async fn run(
    mut command: Command,
    input: Bytes,
    most: usize,
    cancel: &CancellationToken,
    keeper: &Keeper,
) -> Option<Result<Vec<u8>, Failure>> {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Some(Err(Failure::new(NOT_STARTED, format!("sh cannot be started: {error}")))),
    };
    let group = Group::of(&child, keeper)?;
    let ended = tokio::select! {
        () = cancel.cancelled() => None,
        ended = work(&mut child, &input, most) => Some(ended),
    };
    group.end(&mut child).await; // it may have left something behind
    match ended? {
        Ok((status, reply, _)) if status.success() => Some(Ok(reply)),
        Ok((status, _, talk)) => Some(Err(failure(status, &talk))),
        Err(TooMuch) => {
            let text = format!("the command printed more than the {most} bytes that a message may have");
            Some(Err(Failure::new(TOO_LARGE, text)))
        }
    }
}

/// The command printed more than can be sent.
struct TooMuch;

/// Feeds a command, reads what it prints, and waits until it has ended and nobody holds its output open.
async fn work(child: &mut Child, input: &[u8], most: usize) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), TooMuch> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command that has closed its stdin has read enough.
            let _ = stdin.write_all(input).await;
        }
        Ok(())
    };
    let (reply, talk, ()) = tokio::try_join!(head(stdout, most), tail(stderr), feed)?;
    let status = child.wait().await.unwrap_or_else(|_| ExitStatus::from_raw(1 << 8)); // nobody else waits for it
    Ok((status, reply, talk))
}

/// All of a command's stdout, if that is not too much.
async fn head(from: Option<impl AsyncRead + Unpin>, most: usize) -> Result<Vec<u8>, TooMuch> {
    let mut all = Vec::new();
    if let Some(from) = from {
        // What cannot be read any more has ended.
        let _ = from.take(most as u64 + 1).read_to_end(&mut all).await;
    }
    if all.len() > most { Err(TooMuch) } else { Ok(all) }
}

/// The end of a command's stderr.
async fn tail(from: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, TooMuch> {
    let mut last = Vec::new();
    if let Some(mut from) = from {
        while from.read_buf(&mut last).await.is_ok_and(|read| read > 0) {
            if last.len() > 2 * MAX_TALK {
                last.drain(..last.len() - MAX_TALK);
            }
        }
    }
    let start = last.len().saturating_sub(MAX_TALK);
    Ok(last.split_off(start))
}

fn failure(status: ExitStatus, talk: &[u8]) -> Failure {
    let kind = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit-{code}"),
        (None, Some(signal)) => format!("signal-{signal}"),
        (None, None) => "ended".to_owned(),
    };
    let talk = String::from_utf8_lossy(talk);
    let message = if talk.trim().is_empty() { format!("the command ended with {status}") } else { talk.trim().into() };
    Failure::new(kind, message)
}

/// A command and all that it started, as far as these stay in its process group.
struct Group<'a> {
    id: Pid,
    keeper: &'a Keeper,
    is_over: bool,
}

impl<'a> Group<'a> {
    fn of(child: &Child, keeper: &'a Keeper) -> Option<Self> {
        let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))?;
        keeper.started(id);
        Some(Self { id, keeper, is_over: false })
    }

    /// Asks it to end, and sees to it that it does.
    async fn end(mut self, child: &mut Child) {
        // It may have ended by itself: then there is nobody to tell.
        let _ = kill_process_group(self.id, Signal::TERM);
        let gone = async {
            let _ = child.wait().await; // how it ended is of no interest
            while test_kill_process_group(self.id).is_ok() {
                sleep(LOOK).await; // the system tells of no process but our own; the deadline is GRACE
            }
        };
        if timeout(GRACE, gone).await.is_err() {
            let _ = kill_process_group(self.id, Signal::KILL);
            let _ = child.wait().await;
        }
        self.is_over = true;
        self.keeper.ended(self.id);
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.keeper.left(self.id); // whoever ran it has broken off
        }
    }
}

fn codec_name(codec: Codec) -> &'static str {
    match codec {
        Codec::Bytes => "bytes",
        Codec::Text => "text",
        Codec::Json => "json",
        Codec::Cbor => "cbor",
    }
}

/// Kind of a failure whose command could not be started.
const NOT_STARTED: &str = "not-started";
/// Kind of a failure whose command printed too much.
const TOO_LARGE: &str = "too-large";
/// Bytes of stderr that a failure tells: the last ones say why.
const MAX_TALK: usize = 4096;
/// Time to end in order, before it is ended without being asked.
const GRACE: Duration = Duration::from_secs(1);
/// Between looks whether a group is gone.
const LOOK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(line: &str, input: &'static [u8], most: usize) -> Option<Result<Vec<u8>, Failure>> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(line).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        let keeper = Keeper::new(GRACE);
        run(command, Bytes::from_static(input), most, &CancellationToken::new(), &keeper).await
    }

    #[tokio::test]
    async fn a_command_answers_or_says_why_not() {
        assert_eq!(sh("wc -c", b"hello", 100).await, Some(Ok(b"5\n".to_vec())));
        assert_eq!(sh("exit 3", b"", 100).await.unwrap().unwrap_err().kind, "exit-3");
        let failure = sh("echo first >&2; echo last >&2; kill -9 $$", b"", 100).await.unwrap().unwrap_err();
        assert_eq!((&failure.kind[..], &failure.message[..]), ("signal-9", "first\nlast"));
        // More than a pipe holds, and a command that reads nothing.
        assert_eq!(sh("exit 0", &[7; 1 << 20], 100).await, Some(Ok(Vec::new())));
    }

    #[tokio::test]
    async fn a_command_that_does_not_want_to_end_is_ended() {
        let mut command = Command::new("sh");
        command.arg("-c").arg("trap '' TERM; echo on; while :; do sleep 1; done");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let (keeper, mut child) = (Keeper::new(GRACE), command.spawn().unwrap());
        let group = Group::of(&child, &keeper).unwrap();
        let mut on = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut on).await.unwrap(); // it is deaf now
        group.end(&mut child).await;
        assert_eq!(child.wait().await.unwrap().signal(), Some(9));
    }

    /// A command that says who it is, and goes on.
    async fn talker(line: &str, folder: &tempfile::TempDir) -> (Jobs, Pid) {
        let file = folder.path().join("pid");
        let line = line.replace("FILE", file.to_str().unwrap());
        let mut jobs = Jobs::new(line.into(), "mesh".to_owned(), 100).unwrap();
        let from = NodeId { peer: crate::mesh::PeerId::from_bytes([1; 32]), index: 0 };
        let service = crate::mesh::ServiceName::new("s").unwrap();
        jobs.start(Called { serving: 1, call: 1, service, from, codec: Codec::Bytes, payload: Bytes::new() });
        let mut pid = None;
        while pid.is_none() {
            let _ = timeout(LOOK, jobs.next()).await; // carries it on
            pid = std::fs::read_to_string(&file).ok().and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
        }
        (jobs, pid.unwrap())
    }

    async fn ends(pid: Pid) {
        let gone = async {
            let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            while rustix::process::test_kill_process(pid).is_ok() && !stat().contains(") Z ") {
                sleep(LOOK).await; // looks again until the deadline
            }
        };
        timeout(Duration::from_secs(10), gone).await.unwrap();
    }

    #[tokio::test]
    async fn commands_end_when_whoever_runs_them_breaks_off() {
        let folder = tempfile::TempDir::new().unwrap();
        let (jobs, pid) = talker("echo $$ > FILE.new; mv FILE.new FILE; exec sleep 1000", &folder).await;
        drop(jobs);
        ends(pid).await;
    }

    #[tokio::test]
    async fn what_a_command_leaves_behind_ends_with_it() {
        let folder = tempfile::TempDir::new().unwrap();
        let line = "sleep 1000 >/dev/null 2>&1 </dev/null & echo $! > FILE.new; mv FILE.new FILE";
        let (_jobs, pid) = talker(line, &folder).await;
        ends(pid).await;
    }

    #[tokio::test]
    async fn what_a_command_prints_is_bounded() {
        assert_eq!(sh("yes", b"", 1000).await.unwrap().unwrap_err().kind, TOO_LARGE);
        let failure = sh("yes no | head -c 100000 >&2; echo end >&2; exit 1", b"", 10).await.unwrap().unwrap_err();
        assert!(failure.message.len() <= MAX_TALK && failure.message.ends_with("end"), "{}", failure.message.len());
    }
}
