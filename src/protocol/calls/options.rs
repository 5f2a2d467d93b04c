//! How a call is made, and what it brings.

use std::time::Duration;

use bytes::Bytes;

use crate::mesh::{Codec, NodeId, NodeName, RemoteFailure, ServiceName};

/// How one call is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallOptions {
    /// Who is to answer.
    pub callee: Callee,
    /// Time until the answer, from the moment of the call. `None`: as configured, 10 s by default.
    pub timeout: Option<Duration>,
    /// The call may run more than once: it goes to another provider also when the first was lost while it may have run.
    pub idempotent: bool,
    /// When all providers are busy, or as many calls are in flight as may be: try again until time is up, instead of an
    /// error at once.
    pub wait_when_busy: bool,
    /// For the policy `hash`: calls of one key go to one node.
    pub key: Option<Bytes>,
}

/// Who is to answer a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Callee {
    /// Any node that offers the service.
    #[default]
    Any,
    /// This node.
    Node(NodeId),
    /// Any node of this name that offers the service.
    Group(NodeName),
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallReply {
    /// The node that answered.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// How the payload is encoded.
    pub codec: Codec,
    /// What it says.
    pub payload: Bytes,
}

/// Why a call brought no reply: whether it ran, and whether it can be made again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No node that can be reached offers the service. Nothing ran: try again when one does.
    #[error("no node offers the service {0}")]
    NoProvider(ServiceName),
    /// There is no such node. Nothing ran.
    #[error("there is no node {0}")]
    NoSuchNode(String),
    /// The node is there, but does not offer this service. Nothing ran.
    #[error("{node} does not offer the service {service}")]
    NotOffered {
        /// Who was asked.
        node: String,
        /// For what.
        service: ServiceName,
    },
    /// The service is used over a channel, not called. Nothing ran.
    #[error("the service {0} is used over a channel: open one, or ask for a stream of replies")]
    NotCalled(ServiceName),
    /// A rule does not allow it: one of the node's peer about who may call, or one of this peer about who may serve. Nothing ran.
    #[error("{node} is not called: refused by the rule '{rule}'")]
    Refused {
        /// Who was asked, or is left out.
        node: NodeId,
        /// The name of the rule.
        rule: String,
    },
    /// All nodes that offer the service do as much as they may, or are about to leave. Nothing ran: try again later.
    #[error("all nodes that offer the service {0} are busy")]
    Busy(ServiceName),
    /// No reply in that time. It may have run; a provider that still works on it was told to stop.
    #[error("no reply within {0:?}")]
    TimedOut(Duration),
    /// The node was lost, or the link to it. The call may have run.
    #[error("{0} was lost while it had the call")]
    Disconnected(NodeId),
    /// It ran, and failed.
    #[error(transparent)]
    Remote(#[from] RemoteFailure),
    /// The request is larger than the mesh, or the provider, takes. Nothing ran.
    #[error("a request of {len} bytes, over the limit{}", max.map(|max| format!(" of {max}")).unwrap_or_default())]
    TooLarge {
        /// Its size in bytes.
        len: usize,
        /// The limit in bytes, if it is this peer's.
        max: Option<usize>,
    },
    /// The service's name is not one. Nothing ran.
    #[error(transparent)]
    Name(#[from] crate::mesh::BadName),
    /// The request cannot be encoded. Nothing ran.
    #[error("the request cannot be encoded: {0}")]
    Encode(String),
    /// It ran, but the reply is no such value.
    #[error("the reply of {node} cannot be decoded: {why}")]
    Decode {
        /// Who answered.
        node: NodeId,
        /// What is wrong.
        why: String,
    },
    /// The peer has shut down.
    #[error("the peer has shut down")]
    Closed,
}

impl CallError {
    /// Whether the call surely did not run, so that making it again cannot make it run twice.
    #[must_use]
    pub fn did_not_run(&self) -> bool {
        !matches!(self, Self::TimedOut(_) | Self::Disconnected(_) | Self::Remote(_) | Self::Decode { .. })
    }
}
