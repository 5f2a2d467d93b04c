//! `meshd listen`.

use std::collections::HashMap;
use std::future::pending;
use std::time::{Duration, UNIX_EPOCH};

use futures::FutureExt;
use serde::Serialize;
use serde_json::json;

use super::Place;
use super::args::ListenArgs;
use super::client::{Client, ask};
use super::output::{Output, rfc3339};
use super::payload::{Content, content};
use super::stop::Stop;
use super::trouble::{Exit, Trouble};
use crate::mesh::{Codec, NodeId, NodeName, Topic, TopicFilter};
use crate::wire::control::{Acknowledge, Answer, Delivery, Listen, Overflow, Reply, Request};

pub(super) async fn listen(place: Place, args: ListenArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let mut stop = Stop::new()?;
    let mut client = Client::connect(&place).await?;
    let name = args.name.map_or_else(own_group, |name| name.to_string());
    ask!(client, Request::Attach { name } => Reply::Attached { .. } => ());
    // In the order of the filters: an earlier one prints what several select.
    let mut subscriptions = Vec::with_capacity(args.filters.len());
    for filter in args.filters {
        let (overflow, acknowledge) = (Overflow::DropOldest, Acknowledge::Handled);
        let listen = Listen { filter: filter.to_string(), messages: None, bytes: None, overflow, acknowledge };
        let id = ask!(client, Request::Listen(listen) => Reply::Listening { subscription } => subscription);
        subscriptions.push(Subscribed { id, filter, handled: Vec::new() });
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
    let mut listener = Listener {
        client,
        subscriptions,
        raw: args.raw,
        printed: 0,
        unacknowledged: 0,
        newest: HashMap::new(),
        copies: Vec::new(),
    };
    let is_over = tokio::select! {
        ended = listener.print(args.count, out) => {
            ended?;
            false
        }
        () = timeout => true,
        () = stop.wanted() => false,
    };
    let finished = tokio::time::timeout(PATIENCE, listener.finish(out));
    finished.await.map_err(|_| Trouble::new(Exit::TimedOut, "the daemon does not answer"))??;
    match args.count {
        Some(count) if is_over && listener.printed < count => {
            Err(Trouble::new(Exit::TimedOut, format!("{} of {count} messages came in time", listener.printed))
                .hint("wait longer with --timeout, or see who is there with: meshd nodes"))
        }
        _ => Ok(Exit::Done),
    }
}

struct Listener {
    client: Client,
    subscriptions: Vec<Subscribed>,
    raw: bool,
    printed: u64,
    /// How many messages are handled and not acknowledged.
    unacknowledged: usize,
    /// Where several filters select a message: the newest that was printed, by sender and topic, ...
    newest: HashMap<(NodeId, Topic), u64>,
    /// ... and copies of what was not printed yet. Acknowledged sooner, they would stand for it.
    copies: Vec<Copy>,
}

struct Subscribed {
    id: u64,
    filter: TopicFilter,
    /// What is printed, by what it is acknowledged by.
    handled: Vec<u64>,
}

struct Copy {
    of: (NodeId, Topic),
    seq: u64,
    /// Index of the subscription.
    at: usize,
    ack: u64,
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
    ///
    /// # Cancel safety
    /// What is printed is remembered, for [`finish`](Self::finish).
    async fn print(&mut self, count: Option<u64>, out: &mut Output) -> Result<(), Trouble> {
        while count.is_none_or(|count| self.printed < count) {
            // Written together while more are there, at once when none is.
            let answer = match self.client.exchange().now_or_never() {
                Some(answer) => answer?,
                None => {
                    self.acknowledge(out)?;
                    self.client.exchange().await?
                }
            };
            if let Some(Answer::Message(delivery)) = answer {
                self.receive(&delivery, out)?;
            }
            if self.unacknowledged >= ACKS {
                self.acknowledge(out)?;
            }
        }
        Ok(())
    }

    /// Ends the listening: what is printed is acknowledged, and the daemon hands the rest back.
    async fn finish(&mut self, out: &mut Output) -> Result<(), Trouble> {
        self.acknowledge(out)?;
        for at in 0..self.subscriptions.len() {
            let subscription = self.subscriptions[at].id;
            // When that is answered, what was said before is done too.
            ask!(self.client, Request::Unlisten { subscription, drain: false } => Reply::Done => ());
        }
        Ok(())
    }

    /// Lets go of what is printed, and says so then: who wants to know that it was handled must not be told sooner.
    fn acknowledge(&mut self, out: &mut Output) -> Result<(), Trouble> {
        out.flush()?;
        for Subscribed { id, handled, .. } in &mut self.subscriptions {
            if !handled.is_empty() {
                let (subscription, acks) = (*id, std::mem::take(handled));
                self.client.enqueue(Request::Acknowledge { subscription, acks })?;
            }
        }
        self.unacknowledged = 0;
        Ok(())
    }

    fn receive(&mut self, delivery: &Delivery, out: &mut Output) -> Result<(), Trouble> {
        let Some(at) = self.subscriptions.iter().position(|one| one.id == delivery.subscription) else {
            return Ok(());
        };
        let filter = &self.subscriptions[at].filter;
        match delivery.lagged {
            0 => {}
            lagged if out.json => out.object(&json!({ "lagged": lagged, "filter": filter }))?,
            lagged => out.talk.say(&format!("missed {lagged} messages on {filter}: this listener was too slow")),
        }
        let selects = |one: &Subscribed| one.filter.matches(&delivery.topic);
        if self.subscriptions[..at].iter().any(selects) {
            self.skip(at, delivery);
            return Ok(());
        }
        let has_copies = delivery.ack.is_some() && self.subscriptions[at + 1..].iter().any(selects);
        self.write(delivery, out)?;
        self.printed += 1;
        if let Some(ack) = delivery.ack {
            self.handled(at, ack);
        }
        if has_copies {
            let (of, seq) = ((delivery.from, delivery.topic.clone()), delivery.seq);
            let printed: Vec<Copy> = self.copies.extract_if(.., |copy| copy.of == of && copy.seq <= seq).collect();
            printed.iter().for_each(|copy| self.handled(copy.at, copy.ack));
            if self.newest.len() >= MOST_NEWEST {
                self.newest.clear(); // copies of what came before wait for the next message
            }
            self.newest.insert(of, seq);
        }
        Ok(())
    }

    /// Another subscription prints it, or has done so.
    fn skip(&mut self, at: usize, delivery: &Delivery) {
        let Some(ack) = delivery.ack else { return };
        let (of, seq) = ((delivery.from, delivery.topic.clone()), delivery.seq);
        if self.newest.get(&of).is_some_and(|newest| *newest >= seq) {
            self.handled(at, ack);
        } else {
            self.copies.push(Copy { of, seq, at, ack });
        }
    }

    fn handled(&mut self, at: usize, ack: u64) {
        self.subscriptions[at].handled.push(ack);
        self.unacknowledged += 1;
    }

    fn write(&self, delivery: &Delivery, out: &mut Output) -> Result<(), Trouble> {
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

/// Messages to acknowledge at once while more come: fewer than may be under way to one node.
const ACKS: usize = 64;
/// Senders and topics to remember.
const MOST_NEWEST: usize = 1 << 14;
/// How long the daemon may take to end the listening.
const PATIENCE: Duration = Duration::from_secs(5);
