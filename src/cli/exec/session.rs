//! The conversation with all nodes that run the program.

use std::collections::VecDeque;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, Stdin, stdin};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::show::{Lines, Outcome, Show};
use super::targets::Target;
use crate::cli::client::Client;
use crate::cli::output::{Output, Printed, print_all};
use crate::cli::trouble::{Exit, Trouble};
use crate::mesh::Codec;
use crate::mesh::exec::{
    EXEC_CHUNK, EXEC_SERVICE, ExecRequest, ExecSaid, ExecTold, MAX_LINE, ProcessSignal, STDIN_ROOM,
};
use crate::wire::control::{Answer, Callee, Open, Reply, Request, Spoken};

/// A program on all nodes that it is to run on.
pub(super) struct Session {
    client: Client,
    runs: Vec<Run>,
    request: ExecRequest,
    script: Bytes,
    show: Show,
    input: Input,
    /// What is to be written here.
    unprinted: VecDeque<Printed>,
}

/// The program on one node.
struct Run {
    target: Target,
    /// The request that opens its channel.
    asked: u64,
    channel: Option<u64>,
    is_started: bool,
    /// Bytes that may be sent for its stdin. One item may be larger.
    room: i64,
    is_deaf: bool,
    /// How much of the program that is sent along is on its way, and how many items of it the daemon has not taken yet.
    script_at: usize,
    script_items: Vec<u64>,
    began: Instant,
    lines: Lines,
    outcome: Option<(Outcome, u64)>,
}

/// Our stdin.
struct Input {
    from: Stdin,
    /// What was read and not sent.
    data: BytesMut,
    is_over: bool,
    /// All have been told that it is over.
    is_told: bool,
}

impl Session {
    pub(super) fn new(
        client: Client,
        targets: Vec<Target>,
        request: ExecRequest,
        script: Option<Bytes>,
        show: Show,
    ) -> Self {
        let run = |target| Run {
            target,
            asked: 0,
            channel: None,
            is_started: false,
            room: STDIN_ROOM as i64,
            is_deaf: false,
            script_at: 0,
            script_items: Vec::new(),
            began: Instant::now(),
            lines: Lines::default(),
            outcome: None,
        };
        let input = Input { from: stdin(), data: BytesMut::new(), is_over: false, is_told: false };
        let runs = targets.into_iter().map(run).collect();
        Self { client, runs, request, script: script.unwrap_or_default(), show, input, unprinted: VecDeque::new() }
    }

    /// Runs it to its end everywhere, and says how it ended.
    pub(super) async fn run(mut self, out: &mut Output) -> Result<Exit, Trouble> {
        let mut signals = Signals::new()?;
        let (print, printing) = mpsc::channel(PRINTING);
        let mut printing = tokio::spawn(print_all(printing));
        for at in 0..self.runs.len() {
            self.open(at)?;
        }
        let interrupted = loop {
            self.feed()?;
            if self.runs.iter().all(|run| run.outcome.is_some()) && self.unprinted.is_empty() {
                break None;
            }
            let Self { client, input, unprinted, runs, .. } = &mut self;
            input.data.reserve(EXEC_CHUNK);
            let (has_room, wants) = (unprinted.is_empty(), wants_input(runs, input, client));
            tokio::select! {
                answer = client.exchange_if(has_room) => if let Some(answer) = answer? {
                    self.hear(answer, out)?;
                },
                room = print.reserve(), if !has_room => match (room, unprinted.pop_front()) {
                    (Ok(room), Some(printed)) => room.send(printed),
                    _ => break None, // nobody reads it any more
                },
                read = input.from.read_buf(&mut input.data), if wants => {
                    // What cannot be read has an end.
                    input.is_over |= !matches!(read, Ok(1..));
                }
                signal = signals.next() => if !self.pass(signal, &mut signals)? {
                    break Some(signal);
                },
            }
        };
        drop(print);
        let written = match interrupted {
            Some(signal) => return Ok(Exit::Program(ending_code(signal))),
            None => tokio::select! {
                written = &mut printing => written,
                signal = signals.next() => return Ok(Exit::Program(ending_code(signal))),
            },
        };
        written.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).map_err(|error| Trouble::writing(&error))?;
        self.sum_up(out)
    }

    fn open(&mut self, at: usize) -> Result<(), Trouble> {
        let run = &mut self.runs[at];
        let open = Open {
            service: EXEC_SERVICE.to_owned(),
            codec: Codec::Cbor,
            payload: self.request.encode(),
            callee: Callee::Node(run.target.id),
            timeout: None,
        };
        run.asked = self.client.enqueue(Request::Open(open))?;
        run.began = Instant::now();
        Ok(())
    }

    fn hear(&mut self, answer: Answer, out: &Output) -> Result<(), Trouble> {
        match answer {
            Answer::Reply { id, reply: Reply::Opened { channel, .. } } => {
                if let Some(run) = self.runs.iter_mut().find(|run| run.asked == id) {
                    run.channel = Some(channel);
                }
            }
            // An item of a program that is sent along has been taken.
            Answer::Reply { id, .. } => {
                self.runs.iter_mut().for_each(|run| run.script_items.retain(|item| *item != id));
            }
            Answer::Failed { id, failure } => {
                // What fails within a channel is told by its end.
                if let Some(at) = self.runs.iter().position(|run| run.asked == id) {
                    let outcome = self.show.failed(&self.runs[at].target, failure);
                    self.end(at, outcome, out);
                }
            }
            Answer::Item(Spoken { channel, payload, .. }) => {
                if let Some(at) = self.running(channel) {
                    self.told(at, payload, out);
                }
            }
            Answer::Ended { channel } => {
                if let Some(at) = self.running(channel) {
                    let outcome = Outcome::lost(&self.runs[at].target, "the node has left the conversation");
                    self.end(at, outcome, out);
                }
            }
            Answer::Closed { channel, failure } => {
                if let Some(at) = self.running(channel) {
                    let target = &self.runs[at].target;
                    let outcome = match failure {
                        Some(failure) => self.show.failed(target, failure),
                        None => Outcome::lost(target, "the node has left the conversation"),
                    };
                    self.end(at, outcome, out);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn running(&self, channel: u64) -> Option<usize> {
        self.runs.iter().position(|run| run.channel == Some(channel) && run.outcome.is_none())
    }

    fn told(&mut self, at: usize, item: Bytes, out: &Output) {
        let run = &mut self.runs[at];
        let printed = match ExecTold::decode(item) {
            Ok(ExecTold::Started(_)) => {
                run.is_started = true;
                return;
            }
            Ok(ExecTold::Wants(bytes)) => {
                run.room += i64::from(bytes);
                return;
            }
            Ok(ExecTold::StdinClosed) => {
                run.is_deaf = true;
                return;
            }
            Ok(ExecTold::Stdout(data)) => Printed::Stdout(data),
            Ok(ExecTold::Stderr(data)) => Printed::Stderr(data),
            Ok(ExecTold::Ended(exit)) => return self.end(at, Outcome::Ended(exit), out),
            Err(error) => {
                let outcome = Outcome::lost(&run.target, &error.to_string());
                return self.end(at, outcome, out);
            }
        };
        self.unprinted.extend(self.show.printed(&run.target, at, &mut run.lines, printed, out));
    }

    fn end(&mut self, at: usize, outcome: Outcome, out: &Output) {
        let run = &mut self.runs[at];
        let millis = u64::try_from(run.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.unprinted.extend(self.show.rest(&run.target, at, std::mem::take(&mut run.lines), out));
        if out.json {
            self.unprinted.push_back(self.show.end(&run.target, &outcome, millis));
        }
        run.outcome = Some((outcome, millis));
    }

    /// Sends what there is room for: first the program that is sent along, then what came by stdin.
    fn feed(&mut self) -> Result<(), Trouble> {
        let Self { client, runs, script, input, request, .. } = self;
        let mut live: Vec<&mut Run> = runs.iter_mut().filter(|run| run.outcome.is_none()).collect();
        for run in &mut live {
            let Some(channel) = run.channel.filter(|_| request.script.is_some()) else { continue };
            while run.script_at <= script.len() && run.script_items.len() < SCRIPT_ITEMS {
                let end = script.len().min(run.script_at + EXEC_CHUNK);
                let part = script.slice(run.script_at..end);
                let said = if part.is_empty() { ExecSaid::ScriptEnd } else { ExecSaid::Script(part) };
                run.script_at = if said == ExecSaid::ScriptEnd { script.len() + 1 } else { end };
                run.script_items.push(say(client, channel, &said)?);
            }
        }
        live.retain(|run| !run.is_deaf);
        if live.is_empty() || !live.iter().all(|run| run.is_started) {
            return Ok(());
        }
        while live.iter().all(|run| run.room > 0) && client.unwritten() < UNWRITTEN {
            let Some((data, cost)) = input.next_part(request.messages)? else { break };
            for run in &mut live {
                run.room -= cost;
                if let Some(channel) = run.channel {
                    say(client, channel, &ExecSaid::Stdin(data.clone()))?;
                }
            }
        }
        if input.is_over && input.data.is_empty() && !input.is_told {
            input.is_told = true;
            for channel in live.iter().filter_map(|run| run.channel) {
                say(client, channel, &ExecSaid::StdinEnd)?;
            }
        }
        Ok(())
    }

    /// Passes a signal on. False: this is to end, since it is the second that asks for an end, or nothing runs yet.
    fn pass(&mut self, signal: ProcessSignal, signals: &mut Signals) -> Result<bool, Trouble> {
        let ends = !matches!(signal, ProcessSignal::User1 | ProcessSignal::User2);
        let live = || self.runs.iter().filter(|run| run.outcome.is_none() && run.is_started);
        if ends && (signals.asked || live().next().is_none()) {
            return Ok(false);
        }
        signals.asked |= ends;
        let channels: Vec<u64> = live().filter_map(|run| run.channel).collect();
        for channel in channels {
            say(&mut self.client, channel, &ExecSaid::Signal(signal))?;
        }
        Ok(true)
    }

    /// How it ended everywhere: the worst counts.
    fn sum_up(self, out: &Output) -> Result<Exit, Trouble> {
        let mut ends: Vec<(Target, Outcome, u64)> = Vec::new();
        for run in self.runs {
            if let Some((outcome, millis)) = run.outcome {
                ends.push((run.target, outcome, millis));
            }
        }
        if !self.show.apart
            && let Some((_, outcome, _)) = ends.pop()
        {
            return outcome.into();
        }
        let worst = ends.iter().map(|(_, outcome, _)| outcome.exit()).max_by_key(|exit| exit.code());
        for (_, outcome, _) in &ends {
            if let Outcome::Failed { exit, message, hint } = outcome.clone() {
                out.talk.trouble(Trouble { exit, message, hint });
            }
        }
        if !out.json {
            let rows: Vec<[String; 4]> = ends
                .iter()
                .map(|(target, outcome, millis)| {
                    let peer = format!("{}/{}", target.id.peer.short(), target.id.index);
                    [target.name.clone(), peer, outcome.text(), format!("{:.2} s", *millis as f64 / 1e3)]
                })
                .collect();
            out.talk.table(["NODE", "PEER", "EXIT", "TIME"], &rows);
        }
        Ok(worst.unwrap_or(Exit::Done))
    }
}

impl Input {
    /// What is to be sent next, and what room it takes.
    fn next_part(&mut self, messages: bool) -> Result<Option<(Bytes, i64)>, Trouble> {
        if self.data.is_empty() {
            return Ok(None);
        }
        if !messages {
            let len = self.data.len().min(EXEC_CHUNK);
            return Ok(Some((self.data.split_to(len).freeze(), len as i64)));
        }
        let line = match self.data.iter().position(|byte| *byte == b'\n') {
            Some(end) => self.data.split_to(end + 1).freeze().slice(..end),
            None if self.is_over => self.data.split().freeze(),
            None if self.data.len() > MAX_LINE => {
                let message = format!("a line of stdin has more than {} MiB", MAX_LINE >> 20);
                return Err(Trouble::new(Exit::Usage, message).hint("send it without --messages"));
            }
            None => return Ok(None),
        };
        let cost = line.len() as i64 + 1;
        Ok(Some((line, cost)))
    }
}

/// Whether more of our stdin is of use now: never before the program runs, so that nothing is taken from whoever reads it else.
fn wants_input(runs: &[Run], input: &Input, client: &Client) -> bool {
    let mut live = runs.iter().filter(|run| run.outcome.is_none() && !run.is_deaf).peekable();
    !input.is_over
        && live.peek().is_some()
        && live.all(|run| run.is_started && run.room > 0)
        && client.unwritten() < UNWRITTEN
}

fn say(client: &mut Client, channel: u64, said: &ExecSaid) -> Result<u64, Trouble> {
    client.enqueue(Request::Item(Spoken { channel, codec: Codec::Bytes, payload: said.encode() }))
}

/// The signals that are passed on.
struct Signals {
    all: Vec<(ProcessSignal, Signal)>,
    /// One of those that ask for an end has come.
    asked: bool,
}

impl Signals {
    fn new() -> Result<Self, Trouble> {
        let mut all = Vec::new();
        for (which, kind) in [
            (ProcessSignal::Interrupt, SignalKind::interrupt()),
            (ProcessSignal::Terminate, SignalKind::terminate()),
            (ProcessSignal::Hangup, SignalKind::hangup()),
            (ProcessSignal::Quit, SignalKind::quit()),
            (ProcessSignal::User1, SignalKind::user_defined1()),
            (ProcessSignal::User2, SignalKind::user_defined2()),
        ] {
            let signal = signal(kind).map_err(|error| Trouble::failed("cannot watch for signals", &error))?;
            all.push((which, signal));
        }
        Ok(Self { all, asked: false })
    }

    /// # Cancel safety
    /// No signal is lost.
    async fn next(&mut self) -> ProcessSignal {
        std::future::poll_fn(|context| {
            for (which, signal) in &mut self.all {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*which);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// As shells say that a signal ended a process.
fn ending_code(signal: ProcessSignal) -> u8 {
    match signal {
        ProcessSignal::Hangup => 129,
        ProcessSignal::Quit => 131,
        ProcessSignal::Terminate => 143,
        _ => 130,
    }
}

/// What waits to be written here: a few items, so that the far ends go no faster than who reads it.
const PRINTING: usize = 4;
/// Bytes that wait to be written to the daemon.
const UNWRITTEN: usize = 256 * 1024;
/// Items of a program that is sent along that are on their way to the daemon at once.
const SCRIPT_ITEMS: usize = 4;
