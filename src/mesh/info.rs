//! What a peer tells of itself and of the mesh when asked.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::delivery::Claimed;
use super::{Identity, NodeId, NodeName, PeerId, ServiceName, Topic, TopicFilter};

/// One peer that this one is linked to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its id.
    pub peer: PeerId,
    /// The home that runs it.
    pub identity: Identity,
    /// Name of its machine.
    pub host: String,
    /// Where it listens, as multiaddresses.
    pub addresses: Vec<String>,
    /// Where the connection leads.
    pub connected_to: String,
    /// What carries the frames.
    pub link: LinkKind,
    /// Round trip of the last beat in microseconds, once there was one.
    pub rtt_us: Option<u64>,
    /// Names of its nodes.
    pub nodes: Vec<NodeName>,
    /// Version of its software.
    pub version: String,
    /// Fingerprint of the network key that it came in by.
    pub admitted_by: String,
    /// How often its network key was rotated, as far as it told.
    pub key_epoch: u64,
}

/// What carries the frames between two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LinkKind {
    /// A Unix socket on one machine.
    Unix,
    /// A stream over the encrypted TCP connection.
    Tcp,
}

/// One node that can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// Its name, which is its group.
    pub name: NodeName,
    /// Name of its machine.
    pub host: String,
    /// What it listens to.
    pub filters: Vec<TopicFilter>,
    /// What it serves.
    pub services: Vec<ServiceName>,
}

/// Who listens with one filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicInfo {
    /// The filter, which may be a plain topic.
    pub filter: TopicFilter,
    /// The names of the nodes that listen.
    pub groups: Vec<NodeName>,
    /// How many nodes they are.
    pub nodes: usize,
}

/// What one service of one node has done so far, as its peer counts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStats {
    /// Index of the node at its peer.
    pub node: u32,
    /// The service.
    pub service: ServiceName,
    /// Calls that ran to their end, failed ones included.
    pub calls: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Calls that were turned away because too many ran and waited.
    pub busy: u64,
    /// Calls that were taken back while they ran: by a timeout, by their caller, or because their caller was lost.
    pub cancelled: u64,
    /// Calls that run now.
    pub running: usize,
    /// Calls that wait for their turn now.
    pub waiting: usize,
    /// Half of the calls took no longer than this, from arrival to answer, in microseconds within 7 %. `None` before the first.
    pub p50_us: Option<u64>,
    /// 99 of 100 calls took no longer.
    pub p99_us: Option<u64>,
}

impl ServiceStats {
    pub(crate) fn new(node: u32, service: ServiceName) -> Self {
        let (calls, errors, busy, cancelled, running, waiting) = (0, 0, 0, 0, 0, 0);
        Self { node, service, calls, errors, busy, cancelled, running, waiting, p50_us: None, p99_us: None }
    }
}

/// One service of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// The service.
    pub service: ServiceName,
    /// The node that offers it.
    pub node: NodeId,
    /// The node's name.
    pub name: NodeName,
    /// Name of its machine.
    pub host: String,
    /// What it has done. `None`: its peer did not answer in time, or the service is used over channels.
    pub stats: Option<ServiceStats>,
}

/// This peer, all in one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the mesh.
    pub mesh: String,
    /// Its id.
    pub peer: PeerId,
    /// The home that runs it.
    pub identity: Identity,
    /// Name of the machine.
    pub host: String,
    /// Version of the software.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Where it listens, as multiaddresses.
    pub addresses: Vec<String>,
    /// How many peers are linked.
    pub peers: usize,
    /// How many nodes can be reached, one's own included.
    pub nodes: usize,
    /// Each way of finding peers and what it heard.
    pub discovery: Vec<DiscoveryInfo>,
    /// Who is near but not of this mesh.
    pub foreign: ForeignInfo,
    /// Counts since the start.
    pub counts: Counts,
}

/// One way of finding peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoveryInfo {
    /// `same-host`, `mdns`, `bootstrap`, `kad`, `cache` or `member`.
    pub source: String,
    /// `ok`, `off`, or what is wrong.
    pub state: String,
    /// How many sightings of peers it brought.
    pub heard: u64,
    /// Seconds since the last.
    pub last_s: Option<u64>,
}

/// Who is near but not of this mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignInfo {
    /// Addresses that are known to answer with another key and are left alone for a while.
    pub addresses: Vec<String>,
    /// Connections that failed the membership proof, in either direction.
    pub refused: u64,
    /// Connections turned away because too many were pending.
    pub crowded_out: u64,
}

/// Counts since the start of the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages put on a link or handed to a node of this peer.
    pub sent: u64,
    /// Messages received over links.
    pub received: u64,
    /// Messages dropped by senders here, by subscriptions' policies here, or lost with a link.
    pub dropped: u64,
    /// Records from others that were refused: bad signature, another's name, over a limit.
    pub bad_records: u64,
    /// Links lost.
    pub links_lost: u64,
    /// Messages, calls, channels and whatever else was refused to other peers here, by `[[allow]]`.
    #[serde(default)]
    pub refused: u64,
}

/// Which network keys are in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Fingerprint of the current key.
    pub fingerprint: String,
    /// How often the key was rotated.
    pub epoch: u64,
    /// Fingerprints of the keys that still open the door, and for how many seconds.
    pub previous: Vec<(String, u64)>,
}

/// What became of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendReport {
    /// Nodes that it was for: one of each group that listens, unless told otherwise.
    pub matched: usize,
    /// Nodes for which it was put on a link or into a subscription's queue.
    pub sent: usize,
    /// Nodes that took it, as they said themselves. 0 unless the send was to be acknowledged.
    #[serde(default)]
    pub acknowledged: usize,
    /// Nodes for which it went to another of their group at last, because they could not take it.
    #[serde(default)]
    pub redelivered: usize,
    /// Nodes for which it was dropped, and why.
    pub dropped: Vec<(NodeId, DropReason)>,
}

/// Why a message was dropped for one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DropReason {
    /// The link's queue was full for as long as the sender waits.
    LinkFull,
    /// The node's subscription blocks and was full for as long as the sender waits.
    SubscriptionFull,
    /// The link went down, and no other node of the group could take the message.
    LinkDown,
    /// The node's peer is configured to take no messages of this size.
    TooLarge,
    /// The peer ended or was away for too long before the node said that it took the message. It may have received it.
    Gone,
    /// The node did not say in time that it took the message. It may still do so.
    NoAnswer,
    /// The node's subscription was full and dropped it.
    Overflow,
    /// The node's program let go of it unhandled, or its subscription ended before it came to it.
    HandedBack,
    /// Its time was over before the node took it.
    Expired,
    /// When it arrived, the node did not listen any more.
    NotListening,
    /// The node's peer does not let this one send on the topic: by the rule of that name. Empty if it did not say.
    Refused(String),
}

impl DropReason {
    /// In a few words.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::LinkFull => "link full",
            Self::SubscriptionFull => "subscription full",
            Self::LinkDown => "link down",
            Self::TooLarge => "too large",
            Self::Gone => "gone",
            Self::NoAnswer => "no answer",
            Self::Overflow => "subscription overflowed",
            Self::HandedBack => "handed back",
            Self::Expired => "expired",
            Self::NotListening => "not listening",
        }
    }
}

impl fmt::Display for DropReason {
    /// As [`DropReason::name`], with the rule if it is one that refuses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(rule) if !rule.is_empty() => write!(f, "refused by the rule '{rule}'"),
            other => f.write_str(other.name()),
        }
    }
}

impl LinkKind {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Tcp => "tcp",
        }
    }
}

/// To whom a message goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Target {
    /// One node of each group that listens.
    #[default]
    EachGroup,
    /// Every node that listens.
    All,
    /// This node, if it listens.
    Node(NodeId),
    /// One node of this group, if it listens.
    Group(NodeName),
}

/// How a payload is encoded. Travels with the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Codec {
    /// Nothing is said of the bytes.
    #[default]
    Bytes,
    /// UTF-8.
    Text,
    /// JSON.
    Json,
    /// CBOR: what typed sends use.
    Cbor,
}

/// One message that a subscription received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The topic that it was sent to.
    pub topic: Topic,
    /// The node that sent it.
    pub from: NodeId,
    /// That node's name.
    pub from_name: NodeName,
    /// Counts the sender's messages on this topic, from 1. Others of the sender's messages may have gone to other nodes.
    pub seq: u64,
    /// How the payload is encoded.
    pub codec: Codec,
    /// The content.
    pub payload: bytes::Bytes,
    /// How many messages this subscription dropped just before this one, because it was full.
    pub lagged: u64,
    /// The sender keeps its last message on the topic for who comes later.
    pub(crate) retains: bool,
    pub(crate) claimed: Claimed,
}

impl Message {
    /// Says that the message is handled, where the subscription leaves that to the program
    /// ([`Acknowledge::Handled`](crate::Acknowledge::Handled)). Elsewhere, and for senders that do not ask, it does nothing.
    ///
    /// Clones of a message are one: the first that says so speaks for all, and only when all are dropped without is the
    /// message handed back.
    pub fn acknowledge(&self) {
        self.claimed.acknowledge();
    }
}
