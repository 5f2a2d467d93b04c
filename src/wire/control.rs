//! What the CLI and attached programs say to the daemon over its local socket, and what it answers.
//!
//! Blocks of a big-endian `u32` length and that many bytes of CBOR. The client sends [`Question`]s and receives [`Answer`]s.
//! Described for other languages in docs/LOCAL.md: change both together.

use std::fmt;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::fields::{millis, optional_millis, payload, secret};
use super::{LENGTH, TooLong};
use crate::mesh::{
    Codec, Event, Identity, KeyInfo, NodeId, NodeInfo, NodeName, PeerId, PeerInfo, SendReport, ServiceInfo,
    ServiceName, Status, Target, Topic, TopicInfo,
};

/// One request. Answers to requests in flight may come in any order; `id` tells them apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    /// Chosen by the client.
    pub(crate) id: u64,
    /// What it wants.
    pub(crate) request: Request,
}

/// What a client can want. The first request is [`Request::Hello`].
///
/// Names are plain texts here: a bad one is answered as such, while a block that does not decode ends the connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum Request {
    /// Which version of this protocol the client speaks. Answered by [`Reply::Welcome`].
    Hello { version: u32 },
    /// [`Reply::Status`].
    Status,
    /// [`Reply::Peers`].
    Peers,
    /// [`Reply::Nodes`].
    Nodes,
    /// [`Reply::Topics`].
    Topics,
    /// [`Reply::Keys`].
    Keys,
    /// Makes a new network key and hands it round. [`Reply::Keys`].
    Rotate {
        /// How long the previous keys still open the door.
        #[serde(rename = "grace_ms", with = "millis")]
        grace: Duration,
        /// Whom to shut out.
        #[serde(default)]
        without: Vec<Identity>,
    },
    /// [`Reply::Ticket`].
    Invite,
    /// [`Reply::Pong`].
    Ping {
        /// A peer id, a node id or a node's name.
        target: String,
        #[serde(rename = "timeout_ms", with = "millis")]
        timeout: Duration,
    },
    /// [`Reply::Done`], then [`Answer::Event`] for each event until the connection ends.
    Watch,
    /// Makes the connection a node of this name, for as long as it lasts. [`Reply::Attached`].
    Attach { name: String },
    /// [`Reply::Listening`], then [`Answer::Message`] for each message. Wants an attached node.
    Listen(Listen),
    /// Ends a subscription. [`Reply::Done`].
    Unlisten { subscription: u64 },
    /// Sends a message, from the attached node or else from the daemon's own. [`Reply::Sent`].
    Send(Send),
    /// Waits until so many nodes listen. [`Reply::Listeners`], also when time is up before that.
    WaitForListeners {
        topic: String,
        count: usize,
        #[serde(rename = "timeout_ms", with = "millis")]
        timeout: Duration,
    },
    /// [`Reply::Config`].
    Config,
    /// Offers a service. [`Reply::Serving`], then [`Answer::Called`] for each call. Wants an attached node.
    Serve(Serve),
    /// Ends a service. [`Reply::Done`].
    Unserve {
        serving: u64,
        /// Whether that is answered only when all calls are, those that wait included. Else these go to other nodes.
        #[serde(default)]
        drain: bool,
    },
    /// The reply to a call. Has no answer of its own, so that whoever serves need not read while it writes.
    Answer {
        call: u64,
        #[serde(default)]
        codec: Codec,
        #[serde(with = "payload")]
        payload: Bytes,
    },
    /// A call failed. Has no answer of its own.
    Fail {
        call: u64,
        kind: String,
        message: String,
        #[serde(default)]
        causes: Vec<String>,
    },
    /// Calls a service, from the attached node or else from the daemon's own. [`Reply::Answered`].
    Call(Call),
    /// Calls all nodes that offer a service: [`Answer::Part`] for each, then [`Reply::Done`].
    CallAll(Call),
    /// Waits until so many nodes offer a service. [`Reply::Providers`], also when time is up before that.
    WaitForProviders {
        service: String,
        count: usize,
        #[serde(rename = "timeout_ms", with = "millis")]
        timeout: Duration,
    },
    /// [`Reply::Services`].
    Services,
    /// Takes back a request that is not answered yet. [`Reply::Done`]; that request is then not answered any more.
    Cancel { id: u64 },
}

/// A service to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Serve {
    pub(crate) service: String,
    /// Most calls that the client has at a time. None: as many as the library's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) concurrency: Option<usize>,
    /// Most calls that wait in the daemon meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) waiting: Option<usize>,
}

/// A call to make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    pub(crate) service: String,
    /// How the payload is encoded.
    #[serde(default)]
    pub(crate) codec: Codec,
    /// What is asked.
    #[serde(with = "payload")]
    pub(crate) payload: Bytes,
    /// Who is to answer. Not for [`Request::CallAll`].
    #[serde(default)]
    pub(crate) callee: Callee,
    /// Time until the answer. None: as configured.
    #[serde(default, rename = "timeout_ms", with = "optional_millis", skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<Duration>,
    /// It may run more than once.
    #[serde(default)]
    pub(crate) idempotent: bool,
    /// Whether to try until time is up while all providers are busy.
    #[serde(default)]
    pub(crate) wait_when_busy: bool,
}

/// Who is to answer a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Callee {
    /// Any node that offers the service.
    #[default]
    Any,
    Node(NodeId),
    /// Any node of this name that does.
    Group(String),
}

/// A subscription to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listen {
    /// Which topics.
    pub(crate) filter: String,
    /// Most messages that wait in the daemon. None: its configuration's limit, which is also the most that can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) messages: Option<usize>,
    /// Most bytes that wait in the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<usize>,
    /// What happens when that is reached because the client does not read.
    #[serde(default)]
    pub(crate) overflow: Overflow,
}

/// What a full subscription does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Overflow {
    /// The oldest messages go; the next one tells how many.
    #[default]
    DropOldest,
    /// The newest messages go; the next one that fits tells how many.
    DropNewest,
    /// Nothing goes; the senders wait.
    Block,
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Send {
    /// Where.
    pub(crate) topic: String,
    /// How the payload is encoded.
    #[serde(default)]
    pub(crate) codec: Codec,
    /// The content.
    #[serde(with = "payload")]
    pub(crate) payload: Bytes,
    /// To whom of those who listen.
    #[serde(default)]
    pub(crate) target: Target,
    /// How long to wait for room. None: as configured.
    #[serde(default, rename = "timeout_ms", with = "optional_millis", skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<Duration>,
}

/// What the daemon says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The request of this id was done.
    Reply { id: u64, reply: Reply },
    /// The request of this id was not done.
    Failed { id: u64, failure: Failure },
    /// A message for a subscription.
    Message(Delivery),
    /// Somebody calls a service of this client.
    Called(Called),
    /// Nobody waits for that call any more.
    Cancelled { call: u64 },
    /// What one node answers to [`Request::CallAll`].
    Part(Part),
    /// Something happened in the mesh.
    Event(Event),
    /// So many events were not told, because the client was slow to read.
    EventsMissed(u64),
    /// The daemon says no more: the connection ends here.
    Goodbye(Failure),
}

/// The answer to a request that was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Welcome(Welcome),
    Status(Status),
    Peers(Vec<PeerInfo>),
    Nodes(Vec<NodeInfo>),
    Topics(Vec<TopicInfo>),
    Keys(KeyInfo),
    Ticket(Secret),
    Pong {
        peer: PeerId,
        rtt_us: u64,
    },
    Attached {
        node: NodeId,
    },
    Listening {
        subscription: u64,
    },
    Sent(SendReport),
    Listeners(usize),
    Serving {
        serving: u64,
    },
    Answered(Answered),
    Providers(usize),
    Services(Vec<ServiceInfo>),
    /// Key, value and source of each setting.
    Config(Vec<(String, String, String)>),
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// Version of this protocol.
    pub(crate) version: u32,
    /// Version of the software.
    pub(crate) software: String,
    pub(crate) mesh: String,
    pub(crate) peer: PeerId,
    /// The daemon's process.
    pub(crate) pid: u32,
    /// Bytes of the largest payload that it takes.
    pub(crate) message_bytes: usize,
}

/// A call that the client is to answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Called {
    pub(crate) serving: u64,
    /// What the client answers it by.
    pub(crate) call: u64,
    /// Who asks.
    pub(crate) from: NodeId,
    pub(crate) service: ServiceName,
    pub(crate) codec: Codec,
    #[serde(with = "payload")]
    pub(crate) payload: Bytes,
}

/// The reply to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// Who gave it.
    pub(crate) node: NodeId,
    pub(crate) name: NodeName,
    pub(crate) codec: Codec,
    #[serde(with = "payload")]
    pub(crate) payload: Bytes,
    /// Time between the daemon's call and the reply.
    pub(crate) latency_us: u64,
}

/// What one of many nodes answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// The request that it belongs to.
    pub(crate) id: u64,
    pub(crate) node: NodeId,
    pub(crate) name: NodeName,
    pub(crate) outcome: Outcome,
}

/// How one call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Answered(Answered),
    Failed(Failure),
}

/// A message that a subscription received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delivery {
    pub(crate) subscription: u64,
    pub(crate) topic: Topic,
    pub(crate) from: NodeId,
    pub(crate) from_name: NodeName,
    pub(crate) seq: u64,
    pub(crate) codec: Codec,
    #[serde(with = "payload")]
    pub(crate) payload: Bytes,
    /// How many messages were dropped just before this one.
    pub(crate) lagged: u64,
    /// When the daemon passed it on: microseconds since 1970.
    pub(crate) time_us: u64,
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// For people.
    pub(crate) message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// What the service said, if a call ran and failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remote: Option<Box<Remote>>,
}

/// What a service says when a call fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remote {
    /// Where it ran.
    pub(crate) node: NodeId,
    /// That node's name, if it is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<NodeName>,
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) causes: Vec<String>,
}

/// Kinds of failures: each is an exit code of the CLI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FailureKind {
    /// Something went wrong.
    Failed,
    /// The request makes no sense.
    Usage,
    /// No such peer or node, or nobody who offers the service.
    NobodyThere,
    /// No answer in time.
    TimedOut,
    /// A limit is reached, or it is not allowed.
    Refused,
    /// The daemon is going down.
    Stopping,
}

/// A text that holds a key. Wiped from memory when dropped, and not shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(#[serde(with = "secret")] Zeroizing<String>);

impl Secret {
    pub(crate) fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl ToString) -> Self {
        Self { kind, message: message.to_string(), hint: None, remote: None }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// A block that says `value`.
///
/// # Errors
/// It would be longer than any block may be.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, TooLong> {
    let mut block = BytesMut::new();
    block.put_u32(0);
    ciborium::into_writer(value, (&mut block).writer()).expect("memory takes all bytes, and all our types are CBOR");
    let len = block.len() - LENGTH;
    let prefix = u32::try_from(len).ok().filter(|_| len <= MAX_BLOCK).ok_or(TooLong { len, max: MAX_BLOCK })?;
    block[..LENGTH].copy_from_slice(&prefix.to_be_bytes());
    Ok(block.freeze())
}

/// What the body of a block says.
///
/// # Errors
/// It is not CBOR, not one of ours, or has something behind it.
pub(crate) fn decode<T: DeserializeOwned>(mut body: &[u8]) -> Result<T, Garbage> {
    let value = ciborium::de::from_reader_with_recursion_limit(&mut body, MAX_DEPTH)
        .map_err(|error| Garbage(without_positions(&error)))?;
    if body.is_empty() { Ok(value) } else { Err(Garbage(format!("{} bytes too many", body.len()))) }
}

/// What was received means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of the local protocol: {0}")]
pub(crate) struct Garbage(String);

fn without_positions<E: fmt::Debug>(error: &ciborium::de::Error<E>) -> String {
    match error {
        ciborium::de::Error::Semantic(_, message) => message.clone(),
        ciborium::de::Error::RecursionLimitExceeded => "nested too deeply".to_owned(),
        ciborium::de::Error::Io(_) => "cut short".to_owned(),
        ciborium::de::Error::Syntax(at) => format!("no CBOR at byte {at}"),
    }
}

/// Version of this protocol. Counted up when a client of the old one could no longer be served.
pub(crate) const VERSION: u32 = 1;
/// Bytes of the largest block: the largest message and what is said about it.
pub(crate) const MAX_BLOCK: usize = MAX_PAYLOAD + BLOCK_OVERHEAD;
/// Bytes of the largest payload that any configuration allows: 1 GiB, so that lengths stay far from 32 bits.
pub(crate) const MAX_PAYLOAD: usize = 1 << 30;
/// Bytes that a block may have besides the payload: names are short, lists of excluded identities are not.
pub(crate) const BLOCK_OVERHEAD: usize = 64 * 1024;
/// Bytes of a client's first block, which only says hello.
pub(crate) const MAX_HELLO: usize = 1024;
/// How deeply values may be nested; ours have five levels.
const MAX_DEPTH: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::split_block;

    fn through<T: Serialize + DeserializeOwned + PartialEq + fmt::Debug>(value: &T) {
        let mut block = BytesMut::from(&encode(value).unwrap()[..]);
        let body = split_block(&mut block, MAX_BLOCK).unwrap().unwrap();
        assert!(block.is_empty());
        assert_eq!(&decode::<T>(&body).unwrap(), value);
    }

    fn send(payload: Vec<u8>) -> Question {
        let target = Target::Group(NodeName::new("workers").unwrap());
        let timeout = Some(Duration::from_millis(1500));
        let send = Send { topic: "a/b".to_owned(), codec: Codec::Json, payload: payload.into(), target, timeout };
        Question { id: u64::MAX, request: Request::Send(send) }
    }

    #[test]
    fn what_is_said_is_heard() {
        let peer = PeerId::from_bytes([200; 32]);
        let from = NodeId { peer, index: 3 };
        through(&Question { id: 0, request: Request::Hello { version: VERSION } });
        through(&Question { id: 1, request: Request::Status });
        let without = vec![Identity::from_bytes([9; 32])];
        through(&Question { id: 2, request: Request::Rotate { grace: Duration::from_secs(604_800), without } });
        let overflow = Overflow::Block;
        let listen = Listen { filter: "a/**".to_owned(), messages: Some(3), bytes: None, overflow };
        through(&Question { id: 3, request: Request::Listen(listen) });
        through(&send(vec![0; 100_000]));
        through(&Answer::Message(Delivery {
            subscription: 1,
            topic: Topic::new("a/b").unwrap(),
            from,
            from_name: NodeName::new("camera").unwrap(),
            seq: 7,
            codec: Codec::Bytes,
            payload: Bytes::from_static(b"\xff\x00"),
            lagged: 2,
            time_us: 1_700_000_000_000_000,
        }));
        let payload = Bytes::from_static(b"\xff\x00");
        through(&Answer::Called(Called {
            serving: 0,
            call: 1,
            from,
            service: ServiceName::new("add").unwrap(),
            codec: Codec::Json,
            payload: payload.clone(),
        }));
        let name = NodeName::new("camera").unwrap();
        let answered = Answered { node: from, name: name.clone(), codec: Codec::Bytes, payload, latency_us: 7 };
        let outcome = Outcome::Answered(answered);
        through(&Answer::Part(Part { id: 3, node: from, name: name.clone(), outcome }));
        let (kind, message, causes) = ("exit-1".to_owned(), "no".to_owned(), vec!["because".to_owned()]);
        let remote = Some(Box::new(Remote { node: from, name: Some(name), kind, message, causes }));
        let failure = Failure { remote, ..Failure::new(FailureKind::Failed, "it failed") };
        through(&Answer::Failed { id: 4, failure });
        through(&Answer::Reply { id: 4, reply: Reply::Pong { peer, rtt_us: 45 } });
        through(&Answer::Goodbye(Failure::new(FailureKind::Stopping, "the daemon is stopping").hint("wait")));
        through(&Answer::Reply { id: 5, reply: Reply::Ticket(Secret::new(Zeroizing::new("secret".to_owned()))) });
    }

    #[test]
    fn what_docs_show_is_what_is_sent() {
        let hello = encode(&Question { id: 1, request: Request::Hello { version: 1 } }).unwrap();
        let cbor = b"\xa2\x62id\x01\x67request\xa1\x65Hello\xa1\x67version\x01";
        assert_eq!(&hello[..], [&[0, 0, 0, cbor.len() as u8], &cbor[..]].concat());
        let status = encode(&Question { id: 2, request: Request::Status }).unwrap();
        assert_eq!(&status[4..], b"\xa2\x62id\x02\x67request\x66Status");
        // Optional fields can be left out.
        let cbor = b"\xa2\x62id\x03\x67request\xa1\x64Send\xa2\x65topic\x61a\x67payload\x42hi";
        let call: Question = decode(cbor).unwrap();
        assert!(matches!(call.request, Request::Send(Send { codec: Codec::Bytes, target: Target::EachGroup, .. })));
    }

    #[test]
    fn garbage_is_an_error() {
        for body in [&b""[..], b"\xff", b"\xa0", b"hello", &[0x81; 1000], b"\xa2\x62id\x01\x67request\x64What"] {
            assert!(decode::<Question>(body).is_err(), "{body:?}");
        }
        let mut body = encode(&Question { id: 1, request: Request::Status }).unwrap()[4..].to_vec();
        body.push(0);
        assert_eq!(decode::<Question>(&body), Err(Garbage("1 bytes too many".to_owned())));
        // A payload that claims to be huge is cut short, not allocated.
        let huge =
            b"\xa2\x62id\x03\x67request\xa1\x64Send\xa2\x65topic\x61a\x67payload\x5b\x7f\xff\xff\xff\xff\xff\xff\xffhi";
        assert!(decode::<Question>(huge).is_err());
    }

    #[test]
    fn a_secret_is_not_shown() {
        let reply = Reply::Ticket(Secret::new(Zeroizing::new("meshd-ticket-1:abc".to_owned())));
        assert!(!format!("{reply:?}").contains("meshd-ticket"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (decode::<Question>(&body), decode::<Answer>(&body));
        }

        #[test]
        fn payloads_of_all_sizes_arrive(payload in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            through(&send(payload));
        }

        #[test]
        fn a_damaged_block_is_an_error_or_another_question(at in 0_usize..60, byte: u8) {
            let mut body = encode(&send(vec![1, 2, 3])).unwrap()[4..].to_vec();
            let at = at % body.len();
            body[at] = byte;
            let _ = decode::<Question>(&body);
        }
    }
}
