//! What clients of the local socket say.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::{Answer, Reply};
use super::{ListFiles, MoveFiles, Secret};
use crate::mesh::{Codec, Failure, Identity, NodeId, Target};
use crate::wire::fields::{millis, optional_millis, optional_payload, payload};

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
    Unlisten {
        subscription: u64,
        /// Whether that is answered only when the client has all that had arrived.
        #[serde(default)]
        drain: bool,
    },
    /// Messages are handled, of a subscription that leaves that to the client. Has no answer.
    Acknowledge {
        subscription: u64,
        /// By what deliveries say.
        acks: Vec<u64>,
    },
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
    /// Stops this daemon, or asks another to stop: the one that is meant by its peer's id, or the id or name of its own node.
    /// [`Reply::Stopping`].
    Stop {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
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
    /// Who offers a service, one of meshd's own too. [`Reply::Nodes`].
    WhoOffers { service: String },
    /// Opens a channel, from the attached node or else from the daemon's own. [`Reply::Opened`], then [`Answer::Item`] for each
    /// item and [`Answer::Closed`] at the end.
    Open(Open),
    /// Says something in a channel. [`Reply::Done`] when there was room for it.
    Item(Spoken),
    /// Says that nothing more comes from this end, which goes on hearing. [`Reply::Done`].
    Finish { channel: u64 },
    /// Closes a channel both ways, after what was said in it. [`Reply::Done`].
    CloseChannel {
        channel: u64,
        /// Why, if not in order.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Failure>,
    },
    /// Gives this end of a channel away. [`Reply::Handle`].
    Handle { channel: u64 },
    /// Takes over an end that somebody gave away. [`Reply::Opened`].
    Adopt { handle: Secret },
    /// What is shared, by all nodes, by one, or by those of a name. [`Reply::Shares`].
    Shares {
        /// A node's id or name. None: all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
    },
    /// Lists files of a share: [`Answer::File`] for each, then [`Reply::Done`].
    Files(ListFiles),
    /// Moves files between this machine and others: [`Answer::Job`] for what happens, then [`Reply::Done`].
    Transfer(MoveFiles),
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
    /// Whether others open channels to it, instead of calling it: [`Answer::Incoming`] for each.
    #[serde(default)]
    pub(crate) channels: bool,
}

/// A channel to be opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Open {
    pub(crate) service: String,
    /// How the payload is encoded.
    #[serde(default)]
    pub(crate) codec: Codec,
    /// What the other end is told with it.
    #[serde(default, with = "payload")]
    pub(crate) payload: Bytes,
    /// Who is to answer.
    #[serde(default)]
    pub(crate) callee: Callee,
    /// Time until somebody did. None: as configured.
    #[serde(default, rename = "timeout_ms", with = "optional_millis", skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<Duration>,
}

/// What is said in a channel, by either end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spoken {
    pub(crate) channel: u64,
    #[serde(default)]
    pub(crate) codec: Codec,
    #[serde(with = "payload")]
    pub(crate) payload: Bytes,
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
    /// When a sender that wants to know is told that a message was taken.
    #[serde(default)]
    pub(crate) acknowledge: Acknowledge,
}

/// When a message counts as taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Acknowledge {
    /// When it was written to the client.
    #[default]
    Taken,
    /// When the client says so.
    Handled,
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
    /// How long to wait for room, and for acknowledgements. None: as configured.
    #[serde(default, rename = "timeout_ms", with = "optional_millis", skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<Duration>,
    /// Whether the reply comes when every receiver has taken it, or never will.
    #[serde(default)]
    pub(crate) acked: bool,
    /// Whether another node of a group gets it if one cannot take it.
    #[serde(default)]
    pub(crate) redeliver: bool,
    /// How long it is of use.
    #[serde(default, rename = "ttl_ms", with = "optional_millis", skip_serializing_if = "Option::is_none")]
    pub(crate) ttl: Option<Duration>,
    /// Messages of one key go to one node of each group, where balancing goes by it.
    #[serde(default, with = "optional_payload", skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<Bytes>,
    /// Whether the last message on the topic is kept for who comes later, from this one on. None: as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retain: Option<bool>,
}
