//! `meshd send` and `meshd listen`.

use std::ffi::OsString;
use std::future::pending;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures::FutureExt;
use serde::Serialize;
use serde_json::json;
use tokio::io::BufReader;

use super::Place;
use super::args::{ListenArgs, SendArgs};
use super::client::{Client, ask};
use super::output::{Output, rfc3339};
use super::payload::{Content, all_of_stdin, content, message, next_line};
use super::trouble::{Exit, Trouble};
use crate::mesh::{Codec, NodeId, NodeName, SendReport, Target, Topic, TopicFilter};
use crate::wire::control::{self, Answer, Delivery, Listen, Overflow, Reply, Request};

pub(super) async fn send(place: Place, args: SendArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let from_stdin = args.lines || args.data.as_ref().is_some_and(|data| data == "-");
    if args.lines && args.data.as_ref().is_some_and(|data| data != "-") {
        return Err(Trouble::new(Exit::Usage, "--lines reads stdin").hint("leave DATA out, or write - for it"));
    }
    let target = target(&args)?;
    let wait = if args.no_wait { Duration::ZERO } else { args.wait };
    let mut sender =
        Sender { client: Client::connect(&place).await?, topic: args.topic, target, wait, exit: Exit::Done };
    if args.lines {
        let mut lines = BufReader::new(tokio::io::stdin());
        let mut first = true;
        while let Some(line) = next_line(&mut lines).await? {
            pause(args.interval.filter(|_| !first)).await;
            first = false;
            let (codec, payload) = message(line, args.format)?;
            sender.send(codec, payload, out).await?;
        }
    } else {
        let data =
            if from_stdin { all_of_stdin().await? } else { args.data.map(OsString::into_vec).unwrap_or_default() };
        let (codec, payload) = message(data, args.format)?;
        for round in 0..args.repeat {
            pause(args.interval.filter(|_| round > 0)).await;
            sender.send(codec, payload.clone(), out).await?;
        }
    }
    Ok(sender.exit)
}

/// Sends messages to one topic, and keeps the worst that happened.
struct Sender {
    client: Client,
    topic: Topic,
    target: Target,
    /// How long the first message may still wait for somebody.
    wait: Duration,
    exit: Exit,
}

/// A report as `--json` prints it.
#[derive(Serialize)]
struct Report<'a> {
    topic: &'a Topic,
    matched: usize,
    sent: usize,
    dropped: Vec<Dropped>,
}

#[derive(Serialize)]
struct Dropped {
    node: String,
    reason: &'static str,
}

impl Sender {
    async fn send(&mut self, codec: Codec, payload: Bytes, out: &mut Output) -> Result<(), Trouble> {
        let report = match std::mem::take(&mut self.wait) {
            Duration::ZERO => self.try_send(codec, payload).await?,
            wait => self.send_when_heard(codec, payload, wait).await?,
        };
        if report.matched == 0 {
            // Of many messages, that is worth saying once.
            if self.exit != Exit::Nobody {
                out.talk.say(&format!("nobody listens to {}{}", self.topic, whom(&self.target)));
                out.talk.hint("see who listens to what with: meshd topics");
            }
            self.exit = Exit::Nobody;
        } else if !report.dropped.is_empty() && self.exit == Exit::Done {
            self.exit = Exit::Failed;
        }
        self.print(&report, out)
    }

    /// Sends once there is somebody to hear it, or when time is up.
    async fn send_when_heard(&mut self, codec: Codec, payload: Bytes, wait: Duration) -> Result<SendReport, Trouble> {
        let deadline = tokio::time::Instant::now() + wait;
        let request = Request::WaitForListeners { topic: self.topic.to_string(), count: 1, timeout: wait };
        ask!(self.client, request => Reply::Listeners(count) => count);
        loop {
            let report = self.try_send(codec, payload.clone()).await?;
            // Others may listen, but not the one that is meant. What matched nobody went nowhere: it can be sent again.
            if report.matched > 0 || tokio::time::Instant::now() >= deadline {
                return Ok(report);
            }
            tokio::time::sleep(RETRY).await; // then looks again; `deadline` ends it
        }
    }

    async fn try_send(&mut self, codec: Codec, payload: Bytes) -> Result<SendReport, Trouble> {
        let (topic, target) = (self.topic.to_string(), self.target.clone());
        let send = control::Send { topic, codec, payload, target, timeout: None };
        Ok(ask!(self.client, Request::Send(send) => Reply::Sent(report) => report))
    }

    fn print(&self, report: &SendReport, out: &mut Output) -> Result<(), Trouble> {
        let SendReport { matched, sent, dropped, .. } = report;
        if out.json {
            let dropped = dropped.iter().map(|(node, why)| Dropped { node: node.to_string(), reason: why.name() });
            out.object(&Report { topic: &self.topic, matched: *matched, sent: *sent, dropped: dropped.collect() })?;
        } else {
            for (node, why) in dropped {
                out.talk.say(&format!("dropped for {node}: {}", why.name()));
            }
            if out.verbose && *matched > 0 {
                out.line(&format!("sent {} to {sent} of {matched}", self.topic))?;
            }
        }
        out.flush()
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

async fn pause(interval: Option<Duration>) {
    if let Some(interval) = interval {
        tokio::time::sleep(interval).await; // the pace that was asked for
    }
}

pub(super) async fn listen(place: Place, args: ListenArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let mut client = Client::connect(&place).await?;
    let name = args.name.map_or_else(own_group, |name| name.to_string());
    ask!(client, Request::Attach { name } => Reply::Attached { .. } => ());
    // In the order of the filters: an earlier one prints what several select.
    let mut subscriptions = Vec::with_capacity(args.filters.len());
    for filter in args.filters {
        let listen = Listen { filter: filter.to_string(), messages: None, bytes: None, overflow: Overflow::DropOldest };
        let id = ask!(client, Request::Listen(listen) => Reply::Listening { subscription } => subscription);
        subscriptions.push((id, filter));
    }
    if out.verbose {
        out.talk.say("listening");
    }
    let timeout = async {
        match args.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await, // raced against the messages
            None => pending().await,
        }
    };
    let mut listener = Listener { client, subscriptions, raw: args.raw, printed: 0 };
    tokio::select! {
        ended = listener.print(args.count, out) => return ended.map(|()| Exit::Done),
        () = timeout => {}
    }
    match args.count {
        Some(count) => {
            Err(Trouble::new(Exit::TimedOut, format!("{} of {count} messages came in time", listener.printed))
                .hint("wait longer with --timeout, or see who is there with: meshd nodes"))
        }
        None => Ok(Exit::Done),
    }
}

struct Listener {
    client: Client,
    subscriptions: Vec<(u64, TopicFilter)>,
    raw: bool,
    printed: u64,
}

/// A message as `--json` prints it.
#[derive(Serialize)]
struct Line<'a> {
    topic: &'a Topic,
    node: &'a NodeName,
    peer: String,
    seq: u64,
    time: String,
    #[serde(flatten)]
    content: Content,
}

impl Listener {
    /// Prints messages, `count` of them if that is said.
    async fn print(&mut self, count: Option<u64>, out: &mut Output) -> Result<(), Trouble> {
        while count.is_none_or(|count| self.printed < count) {
            // Written together while more are there, at once when none is.
            let answer = match self.client.next().now_or_never() {
                Some(answer) => answer?,
                None => {
                    out.flush()?;
                    self.client.next().await?
                }
            };
            if let Answer::Message(delivery) = answer {
                self.receive(&delivery, out)?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, delivery: &Delivery, out: &mut Output) -> Result<(), Trouble> {
        let Some(at) = self.subscriptions.iter().position(|(id, _)| *id == delivery.subscription) else {
            return Ok(());
        };
        let filter = &self.subscriptions[at].1;
        match delivery.lagged {
            0 => {}
            lagged if out.json => out.object(&json!({ "lagged": lagged, "filter": filter }))?,
            lagged => out.talk.say(&format!("missed {lagged} messages on {filter}: this listener was too slow")),
        }
        if self.subscriptions[..at].iter().any(|(_, earlier)| earlier.matches(&delivery.topic)) {
            return Ok(());
        }
        self.printed += 1;
        if self.raw {
            return out.bytes(&delivery.payload);
        }
        if out.json {
            let Delivery { topic, from, from_name, seq, .. } = delivery;
            let time = rfc3339(UNIX_EPOCH + Duration::from_micros(delivery.time_us));
            let peer = from.peer.to_string();
            return out.object(&Line {
                topic,
                node: from_name,
                peer,
                seq: *seq,
                time,
                content: content(delivery.codec, &delivery.payload),
            });
        }
        let head = format!(
            "{}  {}  ",
            out.strong(&out.foreign(delivery.topic.as_str())),
            out.foreign(delivery.from_name.as_str())
        );
        out.bytes(head.as_bytes())?;
        match (delivery.codec, content(delivery.codec, &delivery.payload)) {
            (Codec::Cbor, Content::Data(value)) => out.foreign_bytes(value.to_string().as_bytes())?,
            _ => out.foreign_bytes(&delivery.payload)?,
        }
        out.bytes(b"\n")
    }
}

/// The name of a group that nobody else is in.
fn own_group() -> String {
    let letters: String = (0..8).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    format!("listen-{letters}")
}

/// Time between tries to reach a node or group that does not listen yet.
const RETRY: Duration = Duration::from_millis(50);
