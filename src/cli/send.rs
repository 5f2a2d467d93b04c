//! `meshd send`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::future::ready;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};

use super::Place;
use super::args::{Format, SendArgs};
use super::client::{Client, ask, unexpected};
use super::output::Output;
use super::payload::{Lines, all_of_stdin, message};
use super::trouble::{Exit, Trouble};
use crate::mesh::{Codec, DropReason, NodeId, NodeName, NotAllowed, SendReport, Target, Topic};
use crate::wire::control::{self, Answer, Failure, Reply, Request};

pub(super) async fn send(place: Place, args: SendArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let from_stdin = args.lines || args.data.as_ref().is_some_and(|data| data == "-");
    if args.lines && args.data.as_ref().is_some_and(|data| data != "-") {
        return Err(Trouble::new(Exit::Usage, "--lines reads stdin").hint("leave DATA out, or write - for it"));
    }
    let template = control::Send {
        topic: args.topic.to_string(),
        codec: Codec::Bytes,
        payload: Bytes::new(),
        target: target(&args)?,
        timeout: args.timeout,
        acked: args.acked,
        redeliver: args.redeliver,
        ttl: args.ttl,
        key: args.key.map(|key| OsString::into_vec(key).into()),
        retain: args.retain.then_some(true),
    };
    let client = Client::connect(&place).await?;
    let messages = if args.lines {
        Messages::Lines(Lines::of_stdin(), args.format)
    } else {
        let data =
            if from_stdin { all_of_stdin().await? } else { args.data.map(OsString::into_vec).unwrap_or_default() };
        let (codec, payload) = message(data, args.format)?;
        Messages::Same { codec, payload, left: args.repeat }
    };
    let source = Source { messages, interval: args.interval, not_before: None };
    // What is kept for who comes later needs nobody now.
    let wait = if args.no_wait || args.retain { Duration::ZERO } else { args.wait };
    let mut sender =
        Sender { client, topic: args.topic, template, under_way: VecDeque::new(), hinted: false, exit: Exit::Done };
    sender.run(source, wait, out).await?;
    Ok(sender.exit)
}

/// What is to be sent, at its pace.
struct Source {
    messages: Messages,
    interval: Option<Duration>,
    not_before: Option<Instant>,
}

enum Messages {
    Lines(Lines, Option<Format>),
    Same { codec: Codec, payload: Bytes, left: u64 },
}

impl Source {
    /// The next message, when it is time for it.
    ///
    /// # Cancel safety
    /// None is lost.
    async fn next(&mut self) -> Result<Option<(Codec, Bytes)>, Trouble> {
        if let Some(time) = self.not_before {
            sleep_until(time).await; // the pace that was asked for
        }
        let next = match &mut self.messages {
            Messages::Lines(lines, format) => match lines.next().await? {
                Some(line) => Some(message(line, *format)?),
                None => None,
            },
            Messages::Same { left: 0, .. } => None,
            Messages::Same { codec, payload, left } => {
                *left -= 1;
                Some((*codec, payload.clone()))
            }
        };
        self.not_before = self.interval.map(|interval| Instant::now() + interval);
        Ok(next)
    }
}

/// Sends messages to one topic, and keeps the worst that happened.
struct Sender {
    client: Client,
    topic: Topic,
    /// All of a request but the payload.
    template: control::Send,
    /// Requests, by consecutive ids, and what is known of them.
    under_way: VecDeque<(u64, Option<Result<SendReport, Failure>>)>,
    /// What to do about a refusal was said: once is enough.
    hinted: bool,
    exit: Exit,
}

/// A report as `--json` prints it.
#[derive(Serialize)]
struct Report<'a> {
    topic: &'a Topic,
    matched: usize,
    sent: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledged: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redelivered: Option<usize>,
    dropped: Vec<Dropped<'a>>,
}

#[derive(Serialize)]
struct Dropped<'a> {
    node: String,
    reason: &'static str,
    /// By which it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
}

impl<'a> Dropped<'a> {
    fn new((node, why): &'a (NodeId, DropReason)) -> Self {
        let rule = if let DropReason::Refused(rule) = why { Some(&rule[..]) } else { None };
        Self { node: node.to_string(), reason: why.name(), rule }
    }
}

impl Sender {
    /// Sends all, without waiting for the reports of some before the next go out.
    async fn run(&mut self, mut source: Source, wait: Duration, out: &mut Output) -> Result<(), Trouble> {
        if !wait.is_zero() {
            let Some((codec, payload)) = source.next().await? else { return Ok(()) };
            let report = self.send_when_heard(codec, payload, wait).await?;
            self.report(&report, out)?;
            out.flush()?;
        }
        let (mut ended, mut unflushed) = (None, false);
        while ended.is_none() || !self.under_way.is_empty() {
            let room = ended.is_none() && self.under_way.len() < WINDOW && self.client.unwritten() < BATCH_BYTES;
            tokio::select! {
                biased;
                next = source.next(), if room => match next {
                    Ok(Some((codec, payload))) => self.begin(codec, payload)?,
                    Ok(None) => ended = Some(Ok(())),
                    // What went before is reported first.
                    Err(trouble) => ended = Some(Err(trouble)),
                },
                answer = self.client.exchange(), if !self.under_way.is_empty() => {
                    if let Some(answer) = answer? {
                        self.note(answer);
                        unflushed |= self.report_known(out)?;
                    }
                }
                // When there is nothing else to do.
                () = ready(()), if unflushed => {
                    out.flush()?;
                    unflushed = false;
                }
            }
        }
        ended.unwrap_or(Ok(()))
    }

    fn begin(&mut self, codec: Codec, payload: Bytes) -> Result<(), Trouble> {
        let id = self.client.enqueue(self.request(codec, payload))?;
        self.under_way.push_back((id, None));
        Ok(())
    }

    fn note(&mut self, answer: Answer) {
        let (answered, outcome) = match answer {
            Answer::Reply { id, reply: Reply::Sent(report) } => (id, Ok(report)),
            Answer::Reply { id, reply } => {
                (id, Err(Failure::new(control::FailureKind::Failed, unexpected(&reply).message)))
            }
            Answer::Failed { id, failure } => (id, Err(failure)),
            _ => return,
        };
        let first = self.under_way.front().map_or(0, |(id, _)| *id);
        let at = answered.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        if let Some((_, known)) = at.and_then(|at| self.under_way.get_mut(at)) {
            *known = Some(outcome);
        }
    }

    /// Reports in order what is known. Whether there was something.
    fn report_known(&mut self, out: &mut Output) -> Result<bool, Trouble> {
        let mut some = false;
        while let Some((_, known @ Some(_))) = self.under_way.front_mut() {
            let outcome = known.take();
            self.under_way.pop_front();
            if let Some(outcome) = outcome {
                self.report(&outcome?, out)?;
            }
            some = true;
        }
        Ok(some)
    }

    /// Sends once there is somebody to hear it, or when time is up.
    async fn send_when_heard(&mut self, codec: Codec, payload: Bytes, wait: Duration) -> Result<SendReport, Trouble> {
        let deadline = Instant::now() + wait;
        let request = Request::WaitForListeners { topic: self.topic.to_string(), count: 1, timeout: wait };
        ask!(self.client, request => Reply::Listeners(count) => count);
        loop {
            let request = self.request(codec, payload.clone());
            let report = ask!(self.client, request => Reply::Sent(report) => report);
            // Others may listen, but not the one that is meant. What matched nobody went nowhere: it can be sent again.
            if report.matched > 0 || Instant::now() >= deadline {
                return Ok(report);
            }
            sleep(RETRY).await; // then looks again; `deadline` ends it
        }
    }

    fn request(&self, codec: Codec, payload: Bytes) -> Request {
        Request::Send(control::Send { codec, payload, ..self.template.clone() })
    }

    fn is_acked(&self) -> bool {
        self.template.acked || self.template.redeliver
    }

    fn report(&mut self, report: &SendReport, out: &mut Output) -> Result<(), Trouble> {
        let SendReport { matched, sent, acknowledged, redelivered, dropped } = report;
        if *matched == 0 && self.template.retain.is_none() {
            // Of many messages, that is worth saying once.
            if self.exit != Exit::Nobody {
                out.talk.say(&format!("nobody listens to {}{}", self.topic, whom(&self.template.target)));
                out.talk.hint("see who listens to what with: meshd topics");
            }
            self.exit = Exit::Nobody;
        } else if !dropped.is_empty() || (self.is_acked() && acknowledged < matched) {
            let late = dropped.iter().all(|(_, why)| *why == DropReason::NoAnswer);
            let refused = !dropped.is_empty() && dropped.iter().all(|(_, why)| matches!(why, DropReason::Refused(_)));
            self.exit = match (self.exit, late) {
                (Exit::Done | Exit::Refused, false) if refused => Exit::Refused,
                (Exit::Done | Exit::TimedOut, true) => Exit::TimedOut,
                (Exit::Done | Exit::TimedOut | Exit::Refused, _) => Exit::Failed,
                (worse, _) => worse,
            };
        }
        if out.json {
            let dropped = dropped.iter().map(Dropped::new);
            return out.object(&Report {
                topic: &self.topic,
                matched: *matched,
                sent: *sent,
                acknowledged: self.is_acked().then_some(*acknowledged),
                redelivered: self.is_acked().then_some(*redelivered),
                dropped: dropped.collect(),
            });
        }
        let undone = if self.is_acked() { "not acknowledged by" } else { "dropped for" };
        for (node, why) in dropped {
            out.talk.say(&format!("{undone} {node}: {why}"));
        }
        if !self.hinted && dropped.iter().any(|(_, why)| matches!(why, DropReason::Refused(_))) {
            self.hinted = true;
            out.talk.hint(NotAllowed::HINT);
        }
        if out.verbose && *matched > 0 {
            let acknowledged =
                if self.is_acked() { format!(", acknowledged by {acknowledged}") } else { String::new() };
            out.line(&format!("sent {} to {sent} of {matched}{acknowledged}", self.topic))?;
        }
        Ok(())
    }
}

fn target(args: &SendArgs) -> Result<Target, Trouble> {
    Ok(match &args.to {
        _ if args.all => Target::All,
        None => Target::EachGroup,
        Some(to) => match to.parse::<NodeId>() {
            Ok(node) => Target::Node(node),
            Err(_) => Target::Group(NodeName::new(to)?),
        },
    })
}

fn whom(target: &Target) -> String {
    match target {
        Target::Node(node) => format!(" at {node}"),
        Target::Group(name) => format!(" in group {name}"),
        _ => String::new(),
    }
}

/// Messages whose reports are awaited at a time: as many as the daemon lets one client wait for.
const WINDOW: usize = 1024;
/// Bytes of requests to write at once.
const BATCH_BYTES: usize = 32 * 1024;
/// Time between tries to reach a node or group that does not listen yet.
const RETRY: Duration = Duration::from_millis(50);
