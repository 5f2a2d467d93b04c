//! Having a program run by another node: what to run, and what stands for it while it runs.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::mesh::exec::{
    EXEC_CHUNK, EXEC_SERVICE, ExecRequest, ExecSaid, ExecTold, MAX_LINE, NOT_EXECUTABLE, NOT_FOUND, REFUSED,
    STDIN_ROOM, SentScript, TIMED_OUT, Word, interpreter,
};
use crate::mesh::{Codec, Failure, Item, NodeId, ProcessExit, ProcessSignal};
use crate::node::{Callee, Channel, ChannelError, Node, OpenError, OpenOptions};

/// What is to be run by another node.
#[derive(Clone, Debug)]
pub struct Command {
    request: ExecRequest,
    script: Option<Bytes>,
}

/// A program that runs at another node. When it is dropped, the program and all that it started is ended there.
#[derive(Debug)]
pub struct Process {
    /// Where it reads from. Dropped or shut down, the program sees the end.
    pub stdin: Option<ProcessInput>,
    /// What it prints. Dropped, that is thrown away; not read, the program waits when a few 100 KiB are on their way, and so does
    /// `stderr`.
    pub stdout: Option<ProcessOutput>,
    /// What it prints as errors. As for `stdout`.
    pub stderr: Option<ProcessOutput>,
    channel: Channel,
    pid: u32,
    over: watch::Receiver<Option<Result<ProcessExit, ExecError>>>,
    _feeding: AbortOnDropHandle<()>,
    _hearing: AbortOnDropHandle<()>,
}

/// What a program reads: bytes, or lines that are messages.
#[derive(Debug)]
pub struct ProcessInput(DuplexStream);

/// How much may be sent for stdin.
#[derive(Debug)]
struct Room {
    free: Semaphore,
    /// What items were larger than all the room there was: the far end grants that first.
    debt: AtomicUsize,
}

/// What a program prints: bytes, or lines that are messages.
#[derive(Debug)]
pub struct ProcessOutput(DuplexStream);

/// All that came of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub exit: ProcessExit,
    /// What it printed.
    pub stdout: Bytes,
    /// What it printed as errors.
    pub stderr: Bytes,
}

/// Why a program was not run, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// That node does not allow it: says which setting, or rule. Nothing ran.
    #[error("refused: {0}")]
    Refused(String),
    /// As many run there as may. Nothing ran.
    #[error("busy: {0}")]
    Busy(String),
    /// There is no such program at that node. Nothing ran.
    #[error("{0}")]
    NotFound(String),
    /// It is there, and cannot be run. Nothing ran.
    #[error("{0}")]
    NotExecutable(String),
    /// It took longer than it may, and was ended.
    #[error("{0}")]
    TimedOut(String),
    /// No node that could be reached would run it. Nothing ran.
    #[error("no node runs it: {0}")]
    NotOpened(String),
    /// The link to the node was lost, or the node has ended. The program is ended there.
    #[error("lost: {0}")]
    Lost(String),
    /// Something else went wrong at that node: what it says.
    #[error("{0}")]
    Failed(Failure),
}

/// A program whose first line does not say what runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the first line of the program does not say what runs it: it is no #! line")]
pub struct NoInterpreter;

impl Command {
    /// A program by its name, which is looked up where it runs, or by an absolute path there.
    pub fn new(program: impl Into<OsString>) -> Self {
        let command = vec![Word::from(program.into())];
        Self { request: ExecRequest { command, ..ExecRequest::default() }, script: None }
    }

    /// A program that is sent along, and run by what its first line names after `#!`. Nothing is left of it there.
    ///
    /// # Errors
    /// It has no such line.
    pub fn script(name: &str, program: impl Into<Bytes>) -> Result<Self, NoInterpreter> {
        let program = program.into();
        let command = interpreter(&program).ok_or(NoInterpreter)?;
        Ok(Self::sent(command, name, program))
    }

    /// A program that is sent along, and run by this one, which is looked up where it runs.
    pub fn script_with(interpreter: impl Into<OsString>, name: &str, program: impl Into<Bytes>) -> Self {
        Self::sent(vec![interpreter.into().into()], name, program.into())
    }

    fn sent(command: Vec<Word>, name: &str, program: Bytes) -> Self {
        let script = Some(SentScript { name: name.to_owned(), args: Vec::new() });
        Self { request: ExecRequest { command, script, ..ExecRequest::default() }, script: Some(program) }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        let args = match &mut self.request.script {
            Some(script) => &mut script.args,
            None => &mut self.request.command,
        };
        args.push(arg.into().into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// A variable of its environment, besides those of whoever runs it.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.request.env.insert(name.into().into(), value.into().into());
        self
    }

    /// The directory in which it runs there.
    #[must_use]
    pub fn chdir(mut self, dir: impl AsRef<Path>) -> Self {
        self.request.chdir = Some(dir.as_ref().as_os_str().to_owned().into());
        self
    }

    /// How long it may take. Then it is ended, which is an error.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.request.timeout_ms = Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Each line is a message of its own: it travels at once, and as a whole. Lines have 16 MiB at most.
    #[must_use]
    pub fn messages(mut self) -> Self {
        self.request.messages = true;
        self
    }
}

impl Node {
    /// Has a program run by a node: one of those that run programs, and that `target` selects.
    ///
    /// # Errors
    /// Nothing ran.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the program is not run, or ended.
    pub async fn exec(&self, target: Callee, command: Command) -> Result<Process, ExecError> {
        let Command { request, script } = command;
        if !request.is_sound() {
            return Err(ExecError::Failed(Failure::new(Failure::BAD_REQUEST, "a word of the command holds a byte 0")));
        }
        let messages = request.messages;
        let request = Item { codec: Codec::Cbor, payload: request.encode() };
        let options = OpenOptions { callee: target, request, ..OpenOptions::default() };
        let channel = self.open_with(EXEC_SERVICE, options).await.map_err(|error| match error {
            OpenError::Busy(_) => ExecError::Busy(error.to_string()),
            error => ExecError::NotOpened(error.to_string()),
        })?;
        if let Some(script) = script {
            // That it is not wanted is said by the channel's end.
            let _ = send(&channel, script).await;
        }
        // Before it is started nothing else is said.
        let first = channel.next().await.map_err(lost)?;
        let first = first.ok_or_else(|| ExecError::Lost("the node has closed the channel".to_owned()))?;
        let Ok(ExecTold::Started(pid)) = ExecTold::decode(first.payload) else { return Err(strange()) };
        Ok(Process::new(channel, pid, messages))
    }
}

async fn send(channel: &Channel, script: Bytes) -> Result<(), ChannelError> {
    for part in script.chunks(EXEC_CHUNK) {
        channel.send_bytes(ExecSaid::Script(Bytes::copy_from_slice(part)).encode()).await?;
    }
    channel.send_bytes(ExecSaid::ScriptEnd.encode()).await
}

impl Process {
    fn new(channel: Channel, pid: u32, messages: bool) -> Self {
        let ((stdin, from), (out, stdout), (err, stderr)) =
            (duplex(EXEC_CHUNK), duplex(EXEC_CHUNK), duplex(EXEC_CHUNK));
        let (tell, over) = watch::channel(None);
        let room = Arc::new(Room { free: Semaphore::new(STDIN_ROOM), debt: AtomicUsize::new(0) });
        let feeding = tokio::spawn(feed(channel.clone(), from, Arc::clone(&room), messages));
        let hearing = {
            let channel = channel.clone();
            tokio::spawn(async move {
                let end = hear(&channel, out, err, &room, messages).await;
                channel.close();
                room.free.close();
                tell.send_replace(Some(end));
            })
        };
        Self {
            stdin: Some(ProcessInput(stdin)),
            stdout: Some(ProcessOutput(stdout)),
            stderr: Some(ProcessOutput(stderr)),
            channel,
            pid,
            over,
            _feeding: AbortOnDropHandle::new(feeding),
            _hearing: AbortOnDropHandle::new(hearing),
        }
    }

    /// The node that runs it.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.channel.far()
    }

    /// Its process id there, which is that of its process group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Closes its stdin, and waits until it has ended. What it prints has to be taken meanwhile, or `stdout` and `stderr`
    /// dropped.
    ///
    /// # Errors
    /// It was not run to its end.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the program goes on.
    pub async fn wait(&mut self) -> Result<ProcessExit, ExecError> {
        self.stdin = None;
        let over = self.over.wait_for(Option::is_some).await;
        over.ok().and_then(|over| over.clone()).unwrap_or_else(|| Err(strange()))
    }

    /// Waits until it has ended, and gives all that it printed: only for what fits into memory.
    ///
    /// # Errors
    /// It was not run to its end.
    pub async fn output(mut self) -> Result<Output, ExecError> {
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let all = async |pipe: Option<ProcessOutput>| {
            let mut all = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut all).await; // our own pipes do not fail
            }
            Bytes::from(all)
        };
        let (exit, stdout, stderr) = tokio::join!(self.wait(), all(stdout), all(stderr));
        Ok(Output { exit: exit?, stdout, stderr })
    }

    /// Sends it, and all that it started, a signal.
    ///
    /// # Errors
    /// It has ended.
    pub async fn signal(&self, signal: ProcessSignal) -> Result<(), ExecError> {
        self.channel.send_bytes(ExecSaid::Signal(signal).encode()).await.map_err(lost)
    }

    /// Ends it, and all that it started, without asking: SIGKILL.
    ///
    /// # Errors
    /// It has ended.
    pub async fn kill(&self) -> Result<(), ExecError> {
        self.signal(ProcessSignal::Kill).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.channel.close();
    }
}

impl Room {
    /// The far end wants so much more.
    fn grow(&self, bytes: usize) {
        let paid = self.debt.load(Ordering::Relaxed).min(bytes);
        self.debt.fetch_sub(paid, Ordering::Relaxed); // nobody else makes it less
        self.free.add_permits((bytes - paid).min(STDIN_ROOM));
    }
}

/// Passes on what is for stdin, as far as the far end wants it.
async fn feed(channel: Channel, mut from: DuplexStream, room: Arc<Room>, messages: bool) {
    let mut buffer = BytesMut::new();
    let mut is_over = false;
    while !is_over {
        // What was left of the last read has no end of a line in it.
        let mut searched = buffer.len();
        buffer.reserve(EXEC_CHUNK);
        is_over = from.read_buf(&mut buffer).await.is_ok_and(|read| read == 0);
        while let Some(part) = next_part(&mut buffer, std::mem::take(&mut searched), messages, is_over) {
            let cost = part.len() + usize::from(messages);
            // One item may be larger than all the room there is.
            let taken = cost.min(STDIN_ROOM);
            let Ok(permit) = room.free.acquire_many(u32::try_from(taken).unwrap_or(u32::MAX)).await else {
                return; // nobody reads it any more
            };
            permit.forget();
            room.debt.fetch_add(cost - taken, Ordering::Relaxed); // before the far end can know of it
            if channel.send_bytes(ExecSaid::Stdin(part).encode()).await.is_err() {
                return;
            }
        }
        if messages && buffer.len() > MAX_LINE {
            break; // the far end would not take it: the pipe breaks, and the program sees the end
        }
    }
    let _ = channel.send_bytes(ExecSaid::StdinEnd.encode()).await; // who is gone needs no end
}

/// What is to be sent next: all that is there, or one line.
fn next_part(buffer: &mut BytesMut, searched: usize, messages: bool, is_over: bool) -> Option<Bytes> {
    if buffer.is_empty() {
        return None;
    }
    if !messages {
        let len = buffer.len().min(EXEC_CHUNK);
        return Some(buffer.split_to(len).freeze());
    }
    match buffer[searched..].iter().position(|byte| *byte == b'\n').map(|at| searched + at) {
        Some(end) => {
            let line = buffer.split_to(end + 1).freeze();
            Some(line.slice(..end))
        }
        None => is_over.then(|| buffer.split().freeze()),
    }
}

/// Hands over what it prints, until it ends.
async fn hear(
    channel: &Channel,
    out: DuplexStream,
    err: DuplexStream,
    room: &Room,
    messages: bool,
) -> Result<ProcessExit, ExecError> {
    let (mut out, mut err) = (Some(out), Some(err));
    loop {
        let item = channel.next().await.map_err(lost)?;
        let item = item.ok_or_else(|| ExecError::Lost("the node has closed the channel".to_owned()))?;
        match ExecTold::decode(item.payload).map_err(|_| strange())? {
            ExecTold::Stdout(data) => write(&mut out, &data, messages).await,
            ExecTold::Stderr(data) => write(&mut err, &data, false).await,
            ExecTold::Wants(bytes) => room.grow(bytes as usize),
            ExecTold::StdinClosed => room.free.close(),
            ExecTold::Ended(exit) => return Ok(exit),
            ExecTold::Started(_) => return Err(strange()),
        }
    }
}

/// Writes to a pipe, unless nobody reads it any more.
async fn write(pipe: &mut Option<DuplexStream>, data: &[u8], messages: bool) {
    if let Some(to) = pipe {
        let mut written = to.write_all(data).await;
        if messages && written.is_ok() {
            written = to.write_all(b"\n").await;
        }
        if written.is_err() {
            *pipe = None;
        }
    }
}

fn lost(error: ChannelError) -> ExecError {
    match error {
        ChannelError::Failed(failed) => match &failed.failure.kind[..] {
            REFUSED => ExecError::Refused(failed.failure.message),
            Failure::BUSY => ExecError::Busy(failed.failure.message),
            NOT_FOUND => ExecError::NotFound(failed.failure.message),
            NOT_EXECUTABLE => ExecError::NotExecutable(failed.failure.message),
            TIMED_OUT => ExecError::TimedOut(failed.failure.message),
            Failure::DISCONNECTED => ExecError::Lost(failed.failure.message),
            _ => ExecError::Failed(failed.failure),
        },
        error => ExecError::Lost(error.to_string()),
    }
}

fn strange() -> ExecError {
    ExecError::Failed(Failure::new(Failure::PROTOCOL, "the node says what means nothing"))
}

impl AsyncWrite for ProcessInput {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl AsyncRead for ProcessOutput {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, to)
    }
}
