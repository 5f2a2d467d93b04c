//! One program that runs for somebody else: from its start until it and all that it started are gone.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::keeper::Keeper;
use crate::mesh::Failure;
use crate::mesh::exec::{EXEC_CHUNK, ExecSaid, ExecTold, MAX_LINE, ProcessExit, ProcessSignal, STDIN_ROOM, TIMED_OUT};
use crate::node::Channel;

/// A program that runs, and who speaks with it.
pub(super) struct Run {
    channel: Channel,
    child: Child,
    group: Group,
    /// Lines are messages.
    messages: bool,
    patience: Option<Duration>,
    /// Whoever runs programs here goes on no more.
    stop: CancellationToken,
}

/// A process group: a program and all that it started, as far as these did not leave it on purpose.
#[derive(Debug)]
struct Group {
    id: Pid,
    keeper: Arc<Keeper>,
    is_over: AtomicBool,
}

/// Why a program is to end, or has.
enum End {
    /// By itself.
    Exited(ExitStatus),
    /// Nobody is there any more who wanted it.
    Unwanted,
    /// Time is up.
    Late(Duration),
    /// We are told to stop.
    Stopped,
    /// It, or its caller, does what it may not.
    Wrong(Failure),
}

impl Run {
    /// Starts a program whose three streams are to be pipes.
    ///
    /// # Errors
    /// It cannot be started. Nothing runs.
    pub(super) fn start(
        mut command: Command,
        channel: Channel,
        messages: bool,
        patience: Option<Duration>,
        keeper: &Arc<Keeper>,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        keeper.ready()?;
        let child = command.process_group(0).spawn()?;
        let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let id = id.ok_or_else(|| io::Error::other("it has no process id"))?;
        keeper.started(id);
        let group = Group { id, keeper: Arc::clone(keeper), is_over: AtomicBool::new(false) };
        Ok(Self { channel, child, group, messages, patience, stop })
    }

    /// Lets it run, and says what comes of it. When this is done, nothing that it started is left.
    pub(super) async fn finish(self) -> Result<ProcessExit, Failure> {
        let Self { channel, mut child, group, messages, patience, stop } = self;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let last = CancellationToken::new();
        let started = ExecTold::Started(group.id.as_raw_pid().unsigned_abs());
        let _ = say(&channel, &started).await; // who is gone is noticed below
        let mut hearing = pin!(hear(&channel, stdin, messages, &group));
        let output = async {
            let (out, err) = (Stdout { messages }, Stdout { messages: false });
            let told = tokio::try_join!(
                out.tell(stdout, &channel, ExecTold::Stdout, &last),
                err.tell(stderr, &channel, ExecTold::Stderr, &last)
            );
            told.err()
        };
        let mut output = pin!(output);
        let mut printed = None;
        let late = async {
            match patience {
                Some(patience) => sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        let mut late = pin!(late);
        let end = loop {
            tokio::select! {
                status = child.wait() => break End::Exited(ended(status)),
                end = &mut hearing => break end,
                () = &mut late => break End::Late(patience.unwrap_or_default()),
                () = stop.cancelled() => break End::Stopped,
                wrong = &mut output, if printed.is_none() => {
                    printed = Some(());
                    if let Some(wrong) = wrong {
                        break End::Wrong(wrong);
                    }
                }
            }
        };
        // What it printed last goes out, and what it started may finish that, for a moment.
        if matches!(end, End::Exited(_)) && printed.is_none() {
            tokio::select! {
                _ = &mut output => printed = Some(()),
                () = sleep(LINGER) => {}
            }
        }
        group.signal(Signal::TERM);
        let exited = if let End::Exited(status) = &end { Some(*status) } else { None };
        let mut telling = pin!(tell_end(&channel, exited));
        let mut is_told = exited.is_none();
        let mut ending = pin!(group.end(&mut child));
        loop {
            tokio::select! {
                () = &mut ending => break,
                // All is said. Nobody needs to wait until what it left behind has ended too, and that not for who does not read.
                () = &mut telling, if printed.is_some() && !is_told => is_told = true,
                _ = &mut output, if printed.is_none() => printed = Some(()),
            }
        }
        if printed.is_none() && !matches!(end, End::Unwanted | End::Wrong(_)) {
            // Somebody who left the group may hold the pipes for ever: what is in them is all that is waited for.
            last.cancel();
            tokio::select! {
                _ = &mut output => {}
                _ = channel.closed() => {}
                () = stop.cancelled() => {}
            }
        }
        match end {
            End::Exited(status) => tokio::select! {
                biased; // what can be told is
                () = telling, if !is_told => Ok(exit(status)),
                () = stop.cancelled(), if !is_told => Err(stopped()),
                else => Ok(exit(status)),
            },
            End::Unwanted => Err(Failure::new(Failure::DISCONNECTED, "the caller has gone: it was ended")),
            End::Late(patience) => {
                let patience = humantime::format_duration(patience);
                Err(Failure::new(TIMED_OUT, format!("it took longer than {patience}, and was ended")))
            }
            End::Stopped => Err(stopped()),
            End::Wrong(failure) => Err(failure),
        }
    }
}

async fn tell_end(channel: &Channel, exited: Option<ExitStatus>) {
    let Some(status) = exited else { return };
    let _ = say(channel, &ExecTold::Ended(exit(status))).await; // who is gone needs no end
    channel.close();
}

fn stopped() -> Failure {
    Failure::new(Failure::DISCONNECTED, "whoever ran it there is stopping: it was ended")
}

async fn say(channel: &Channel, told: &ExecTold) -> Result<(), crate::node::ChannelError> {
    channel.send_bytes(told.encode()).await
}

/// Does what the caller says, until that is gone. Never waits for the program to read, so that signals come through.
async fn hear(channel: &Channel, mut stdin: Option<ChildStdin>, messages: bool, group: &Group) -> End {
    // What is not written yet: as much as the caller may send.
    let mut unwritten = BytesMut::new();
    let (mut ended, mut is_over, mut owed, mut room) = (false, false, 0, STDIN_ROOM as i64);
    loop {
        if ended && unwritten.is_empty() {
            stdin = None; // all is written: the program sees the end
        }
        let told = match &stdin {
            None if !ended => Some(ExecTold::StdinClosed),
            Some(_) if owed >= STDIN_ROOM / 4 => u32::try_from(owed).ok().map(ExecTold::Wants),
            _ => None,
        };
        tokio::select! {
            item = channel.next(), if !is_over => match item {
                Ok(Some(item)) => match ExecSaid::decode(item.payload) {
                    Ok(ExecSaid::Stdin(_)) if room <= 0 && stdin.is_some() => return wrong("more for stdin than was asked for"),
                    Ok(ExecSaid::Stdin(data)) => {
                        room -= data.len() as i64 + i64::from(messages);
                        if stdin.is_some() && !ended {
                            unwritten.extend_from_slice(&data);
                            unwritten.extend_from_slice(if messages { b"\n" } else { b"" });
                        }
                    }
                    Ok(ExecSaid::StdinEnd) => ended = true,
                    Ok(ExecSaid::Signal(signal)) => group.signal(system(signal)),
                    Ok(ExecSaid::Script(_) | ExecSaid::ScriptEnd) | Err(_) => return wrong("not a message to a program that runs"),
                },
                Ok(None) => (ended, is_over) = (true, true),
                Err(_) => return End::Unwanted,
            },
            _ = channel.closed(), if is_over => return End::Unwanted,
            written = write(&mut stdin, &unwritten), if stdin.is_some() && !unwritten.is_empty() => match written {
                Ok(written) => {
                    unwritten.advance(written);
                    owed += written;
                }
                // It wants no more. That is no reason for it to end.
                Err(_) => {
                    stdin = None;
                    unwritten = BytesMut::new();
                }
            },
            told = tell(channel, told.as_ref()), if told.is_some() => match told {
                Ok(ExecTold::StdinClosed) => ended = true, // said once
                Ok(ExecTold::Wants(bytes)) => {
                    owed -= bytes as usize;
                    room += i64::from(bytes);
                }
                _ => {}
            },
        }
    }
}

/// # Cancel safety
/// Dropped while it waits, nothing is told.
async fn tell(channel: &Channel, told: Option<&ExecTold>) -> Result<ExecTold, crate::node::ChannelError> {
    match told {
        Some(told) => say(channel, told).await.map(|()| told.clone()),
        None => std::future::pending().await,
    }
}

/// # Cancel safety
/// Dropped while it waits, nothing is written.
async fn write(stdin: &mut Option<ChildStdin>, data: &[u8]) -> io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.write(data).await,
        None => std::future::pending().await,
    }
}

fn wrong(what: &str) -> End {
    End::Wrong(Failure::new(Failure::PROTOCOL, what))
}

/// One of the streams that a program prints to.
struct Stdout {
    /// Each line is an item.
    messages: bool,
}

impl Stdout {
    /// Passes on what is printed, until nobody can print there any more. `last`: until nothing is there.
    async fn tell(
        &self,
        pipe: Option<impl AsyncRead + Unpin>,
        channel: &Channel,
        wrap: fn(Bytes) -> ExecTold,
        last: &CancellationToken,
    ) -> Result<(), Failure> {
        let Some(mut pipe) = pipe else { return Ok(()) };
        let idle = async || {
            last.cancelled().await;
            sleep(IDLE).await; // what is in the pipe is read in less
        };
        let (mut buffer, mut is_heard) = (BytesMut::new(), true);
        loop {
            buffer.reserve(EXEC_CHUNK);
            let read = tokio::select! {
                biased; // what is there comes before the end of waiting
                read = pipe.read_buf(&mut buffer) => read.unwrap_or(0),
                () = idle() => 0,
            };
            let is_over = read == 0;
            while let Some(part) = self.next_part(&mut buffer, read, is_over)? {
                // Nobody listens: what it prints while it ends is read all the same, so that it can.
                is_heard = is_heard && say(channel, &wrap(part)).await.is_ok();
            }
            if is_over {
                return Ok(());
            }
        }
    }

    /// What is to be an item of its own.
    fn next_part(&self, buffer: &mut BytesMut, read: usize, is_over: bool) -> Result<Option<Bytes>, Failure> {
        if !self.messages {
            return Ok((!buffer.is_empty()).then(|| buffer.split().freeze()));
        }
        // What was left of the last read has no end of a line in it.
        let new = buffer.len().saturating_sub(read);
        match buffer[new..].iter().position(|byte| *byte == b'\n').map(|at| at + new) {
            Some(end) => {
                let line = buffer.split_to(end).freeze();
                buffer.advance(1);
                Ok(Some(line))
            }
            None if is_over => Ok((!buffer.is_empty()).then(|| buffer.split().freeze())),
            None if buffer.len() > MAX_LINE => {
                Err(Failure::new(Failure::TOO_LARGE, format!("it printed a line of more than {MAX_LINE} bytes")))
            }
            None => Ok(None),
        }
    }
}

impl Group {
    fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.id, signal); // nobody may be left in it
    }

    /// Waits until all have ended that were told to, for as long as they may take; then ends them.
    async fn end(&self, child: &mut Child) {
        let gone = async {
            let _ = child.wait().await; // how it ended is known, or of no interest
            while test_kill_process_group(self.id).is_ok() {
                sleep(LOOK).await; // the system tells of no process but our own; the deadline is GRACE
            }
        };
        if timeout(GRACE, gone).await.is_err() {
            self.signal(Signal::KILL);
            let _ = child.wait().await;
        }
        self.is_over.store(true, Ordering::Relaxed);
        self.keeper.ended(self.id);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !*self.is_over.get_mut() {
            self.keeper.left(self.id); // which asks first, and does not wait for ever either
        }
    }
}

/// How the program ended. Nobody else waits for it, so this is known.
fn ended(status: io::Result<ExitStatus>) -> ExitStatus {
    status.unwrap_or_else(|_| ExitStatus::from_raw(1 << 8))
}

fn exit(status: ExitStatus) -> ProcessExit {
    match (status.code(), status.signal()) {
        (Some(code), _) => ProcessExit::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        (None, signal) => ProcessExit::Signal(signal.and_then(|signal| u8::try_from(signal).ok()).unwrap_or(0)),
    }
}

fn system(signal: ProcessSignal) -> Signal {
    match signal {
        ProcessSignal::Hangup => Signal::HUP,
        ProcessSignal::Interrupt => Signal::INT,
        ProcessSignal::Quit => Signal::QUIT,
        ProcessSignal::Kill => Signal::KILL,
        ProcessSignal::User1 => Signal::USR1,
        ProcessSignal::User2 => Signal::USR2,
        ProcessSignal::Terminate => Signal::TERM,
    }
}

/// Time to end in order, before it is ended without being asked.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// How long what a program started may go on printing when it has ended itself.
const LINGER: Duration = Duration::from_secs(1);
/// Time without anything in a pipe that only strangers hold.
const IDLE: Duration = Duration::from_millis(100);
/// Between looks whether a group is gone.
const LOOK: Duration = Duration::from_millis(20);
