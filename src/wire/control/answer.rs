//! What the daemon says to clients of the local socket.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

#[cfg(doc)]
use super::Request;
use super::{JobEvent, JobStarted, ListedFile, NotDone, Spoken};
use crate::mesh::{
    Codec, Event, KeyInfo, NodeId, NodeInfo, NodeName, PeerId, PeerInfo, SendReport, ServiceInfo, ServiceName,
    ShareInfo, Status, Topic, TopicInfo,
};
use crate::wire::fields::{payload, secret};

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
    /// Somebody opened a channel to a service of this client.
    Incoming(Incoming),
    /// What the other end of a channel said.
    Item(Spoken),
    /// Nothing more comes from the other end of a channel, which goes on hearing.
    Ended { channel: u64 },
    /// A channel is over.
    Closed {
        channel: u64,
        /// Why, if not in order.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Failure>,
    },
    /// What one node answers to [`Request::CallAll`].
    Part(Part),
    /// A file that [`Request::Files`] lists.
    File(ListedFile),
    /// A job of [`Request::Transfer`] is begun.
    JobStarted(JobStarted),
    /// Something that happened in a job of [`Request::Transfer`].
    Job(JobEvent),
    /// What one node was to do for [`Request::Files`] or [`Request::Transfer`], and did not.
    NotDone(NotDone),
    /// Something happened in the mesh.
    Event(Event),
    /// So many events were not told, because the client was slow to read.
    EventsMissed(u64),
    /// The daemon says no more: the connection ends here.
    Goodbye(Failure),
}

impl Answer {
    /// Bytes of the payload in it.
    pub(crate) fn payload_len(&self) -> usize {
        match self {
            Self::Message(delivery) => delivery.payload.len(),
            Self::Called(called) => called.payload.len(),
            Self::Item(spoken) => spoken.payload.len(),
            Self::Reply { reply: Reply::Answered(answered), .. } => answered.payload.len(),
            Self::Part(Part { outcome: Outcome::Answered(answered), .. }) => answered.payload.len(),
            _ => 0,
        }
    }
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
    Opened {
        channel: u64,
        /// Who is at the other end.
        node: NodeId,
        /// That node's name, if it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<NodeName>,
    },
    /// What takes over an end of a channel.
    Handle(Secret),
    Providers(usize),
    Services(Vec<ServiceInfo>),
    /// That daemon stops: its own node, and what that is called if it is known.
    Stopping {
        node: NodeId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<NodeName>,
    },
    Shares(Vec<ShareInfo>),
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

/// A channel that somebody opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Incoming {
    pub(crate) serving: u64,
    /// What the client speaks in it by.
    pub(crate) channel: u64,
    /// Who opened it.
    pub(crate) from: NodeId,
    pub(crate) codec: Codec,
    /// What it was opened with.
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
    /// What the client acknowledges it by, if that is left to it and the sender waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ack: Option<u64>,
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

/// A text that opens something. Wiped from memory when dropped, and not shown by `Debug`.
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
