//! What happens in a mesh, as a peer sees it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Action, NodeId, NodeName, PeerId, ServiceName, TopicFilter};

/// Something that happened, and when this peer saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When this peer saw it.
    pub time: SystemTime,
    /// What happened.
    pub what: What,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum What {
    /// A link to the peer stands; its nodes can be reached.
    PeerUp {
        /// Which.
        peer: PeerId,
        /// Name of its machine.
        host: String,
    },
    /// The peer cannot be reached any more.
    PeerDown {
        /// Which.
        peer: PeerId,
        /// Name of its machine.
        host: String,
        /// Why.
        reason: DownReason,
    },
    /// A node can be reached.
    NodeUp {
        /// Which.
        node: NodeId,
        /// Its name.
        name: NodeName,
    },
    /// A node cannot be reached any more.
    NodeDown {
        /// Which.
        node: NodeId,
        /// Its name.
        name: NodeName,
    },
    /// A node began to listen.
    Listening {
        /// Which.
        node: NodeId,
        /// Its name.
        name: NodeName,
        /// To what.
        filter: TopicFilter,
    },
    /// A node ceased to listen.
    NotListening {
        /// Which.
        node: NodeId,
        /// Its name.
        name: NodeName,
        /// To what.
        filter: TopicFilter,
    },
    /// A node began to serve.
    Serving {
        /// Which.
        node: NodeId,
        /// Its name.
        name: NodeName,
        /// What.
        service: ServiceName,
    },
    /// A node ceased to serve.
    NotServing {
        /// Which.
        node: NodeId,
        /// Its name.
        name: NodeName,
        /// What.
        service: ServiceName,
    },
    /// Somebody at that address holds no key of this mesh. Told once per address.
    Foreign {
        /// Where.
        address: String,
    },
    /// A link was lost and with it messages that had been taken for sending: `unsent` never left, `in_flight` left and
    /// were not received. Told when the peer is back or forgotten; exact if it came back.
    MessagesLost {
        /// To whom.
        peer: PeerId,
        /// Still queued here.
        unsent: u64,
        /// On their way.
        in_flight: u64,
        /// Whether the peer came back and told how far it had got; otherwise `in_flight` is the most it can be.
        exact: bool,
    },
    /// A rule (`[[allow]]`) did not let somebody do something: another peer here, or this one there. Told at most once a
    /// minute for one peer, action and resource; [`Counts::refused`](crate::Counts::refused) counts all that was refused here.
    Refused {
        /// The other peer.
        peer: PeerId,
        /// Whether this peer refused it to the other one; else the other one refused it to this one.
        here: bool,
        /// What was not allowed.
        action: Action,
        /// On what: a topic, a service, `share/path`, a program; for `listen` the filter with which the refused one listens.
        resource: String,
        /// The name of the rule.
        rule: String,
    },
    /// The network key was rotated; this peer holds the new one.
    KeyRotated {
        /// How often this mesh's key was rotated so far.
        epoch: u64,
    },
}

/// Why a peer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DownReason {
    /// It said goodbye.
    Left,
    /// The connection was closed: its process ended.
    Closed,
    /// It was silent for longer than a living peer is: its machine or network is down, or the process is frozen.
    Silent,
    /// A rotation shut its key or identity out.
    ShutOut,
}

impl What {
    /// The name of the kind of event, as `meshd watch` prints it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::PeerUp { .. } => "peer-up",
            Self::PeerDown { .. } => "peer-down",
            Self::NodeUp { .. } => "node-up",
            Self::NodeDown { .. } => "node-down",
            Self::Listening { .. } => "listening",
            Self::NotListening { .. } => "not-listening",
            Self::Serving { .. } => "serving",
            Self::NotServing { .. } => "not-serving",
            Self::Foreign { .. } => "foreign",
            Self::MessagesLost { .. } => "messages-lost",
            Self::Refused { .. } => "refused",
            Self::KeyRotated { .. } => "key-rotated",
        }
    }
}

impl DownReason {
    /// In one word, as `meshd watch` prints it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::ShutOut => "shut-out",
        }
    }
}
