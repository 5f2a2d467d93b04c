//! `meshd send` and `meshd listen`.

use std::ffi::OsString;
use std::future::pending;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures::FutureExt;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::Place;
use super::args::{Format, ListenArgs, SendArgs};
use super::client::{Client, ask};
use super::output::{Output, rfc3339};
use super::trouble::{Exit, Trouble};
use crate::config::MAX_MESSAGE_BYTES;
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

/// What was given, as it goes out.
fn message(data: Vec<u8>, format: Option<Format>) -> Result<(Codec, Bytes), Trouble> {
    let bad = |what: &str, hint: &str| Err(Trouble::new(Exit::Usage, format!("the data is not {what}")).hint(hint));
    let text = std::str::from_utf8(&data).is_ok();
    match format {
        Some(Format::Bytes) => Ok((Codec::Bytes, data.into())),
        None if !text => Ok((Codec::Bytes, data.into())),
        Some(Format::Text) if !text => bad("text in UTF-8", "send it with --format bytes"),
        None | Some(Format::Text) => Ok((Codec::Text, data.into())),
        Some(format) => match serde_json::from_slice::<Value>(&data) {
            Ok(_) if format == Format::Json => Ok((Codec::Json, data.into())),
            Ok(value) => {
                let mut cbor = Vec::new();
                ciborium::into_writer(&value, &mut cbor)
                    .map_err(|error| Trouble::failed("cannot make CBOR", &error))?;
                Ok((Codec::Cbor, cbor.into()))
            }
            Err(error) => bad(&format!("JSON: {error}"), "quote it for the shell: '{\"key\": \"text\"}'"),
        },
    }
}

async fn all_of_stdin() -> Result<Vec<u8>, Trouble> {
    let mut data = Vec::new();
    let read = tokio::io::stdin().take(MAX_MESSAGE_BYTES as u64 + 1).read_to_end(&mut data).await;
    read.map_err(|error| Trouble::failed("cannot read stdin", &error))?;
    within_limit(data)
}

/// The next line, without its end.
async fn next_line(lines: &mut BufReader<tokio::io::Stdin>) -> Result<Option<Vec<u8>>, Trouble> {
    let mut line = Vec::new();
    let read = lines.take(MAX_MESSAGE_BYTES as u64 + 1).read_until(b'\n', &mut line).await;
    if read.map_err(|error| Trouble::failed("cannot read stdin", &error))? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    within_limit(line).map(Some)
}

fn within_limit(data: Vec<u8>) -> Result<Vec<u8>, Trouble> {
    if data.len() > MAX_MESSAGE_BYTES {
        return Err(Trouble::new(Exit::Usage, "a message has at most 1 GiB").hint("send it in parts"));
    }
    Ok(data)
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

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Content {
    Data(Value),
    Base64(String),
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
            return out.object(&Line { topic, node: from_name, peer, seq: *seq, time, content: content(delivery) });
        }
        let head = format!(
            "{}  {}  ",
            out.strong(&out.foreign(delivery.topic.as_str())),
            out.foreign(delivery.from_name.as_str())
        );
        out.bytes(head.as_bytes())?;
        match (delivery.codec, content(delivery)) {
            (Codec::Cbor, Content::Data(value)) => out.foreign_bytes(value.to_string().as_bytes())?,
            _ => out.foreign_bytes(&delivery.payload)?,
        }
        out.bytes(b"\n")
    }
}

/// The payload as JSON, as far as it can be.
fn content(delivery: &Delivery) -> Content {
    let payload = &delivery.payload[..];
    let value = match delivery.codec {
        Codec::Text => String::from_utf8(payload.to_vec()).ok().map(Value::from),
        Codec::Json => serde_json::from_slice(payload).ok(),
        // Byte strings, tags and keys that are no text have no JSON.
        Codec::Cbor => control::decode(payload).ok(),
        Codec::Bytes => None,
    };
    value.map_or_else(|| Content::Base64(data_encoding::BASE64.encode(payload)), Content::Data)
}

/// The name of a group that nobody else is in.
fn own_group() -> String {
    let letters: String = (0..8).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    format!("listen-{letters}")
}

/// Time between tries to reach a node or group that does not listen yet.
const RETRY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use crate::mesh::PeerId;

    use super::*;

    fn received(codec: Codec, payload: &[u8]) -> Content {
        content(&Delivery {
            subscription: 0,
            topic: Topic::new("a").unwrap(),
            from: NodeId { peer: PeerId::from_bytes([1; 32]), index: 0 },
            from_name: NodeName::new("n").unwrap(),
            seq: 1,
            codec,
            payload: Bytes::copy_from_slice(payload),
            lagged: 0,
            time_us: 0,
        })
    }

    #[test]
    fn what_is_sent_in_a_format_is_shown_in_it() {
        for (format, data, codec, shown) in [
            (None, &b"hello"[..], Codec::Text, Content::Data("hello".into())),
            (None, b"\xff", Codec::Bytes, Content::Base64("/w==".to_owned())),
            (Some(Format::Bytes), b"hello", Codec::Bytes, Content::Base64("aGVsbG8=".to_owned())),
            (Some(Format::Json), b"{\"a\": [1, null]}", Codec::Json, Content::Data(json!({ "a": [1, null] }))),
            (Some(Format::Cbor), b"{\"a\": -1.5}", Codec::Cbor, Content::Data(json!({ "a": -1.5 }))),
        ] {
            let (sent, payload) = message(data.to_vec(), format).unwrap();
            assert_eq!((sent, received(sent, &payload)), (codec, shown), "{format:?}");
        }
    }

    #[test]
    fn data_that_is_not_in_its_format_is_not_sent() {
        for (format, data) in [(Format::Json, &b"{"[..]), (Format::Cbor, b"hello"), (Format::Text, b"\xff")] {
            assert_eq!(message(data.to_vec(), Some(format)).unwrap_err().exit, Exit::Usage);
        }
    }

    #[test]
    fn what_does_not_decode_is_shown_in_base64() {
        for (codec, payload) in
            [(Codec::Json, &b"{"[..]), (Codec::Cbor, b"\xff"), (Codec::Cbor, b"\x41a"), (Codec::Text, b"\xff")]
        {
            assert!(matches!(received(codec, payload), Content::Base64(_)), "{codec:?}");
        }
    }
}
