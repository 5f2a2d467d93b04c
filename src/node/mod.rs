//! Nodes: what a program uses to take part in a mesh.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

mod acceptor;
mod builder;
mod channel;
mod codec;
mod events;
mod group;
mod publisher;
mod service;
mod subscription;

pub use self::acceptor::{Acceptor, ChannelService, OpenError, OpenOptions, ReplyStream};
pub(crate) use self::builder::check;
pub use self::builder::{Builder, StartError};
pub use self::channel::{AdoptError, Channel, ChannelError, ChannelHandle};
pub use self::codec::DecodeError;
pub use self::events::Events;
pub use self::group::ChannelGroup;
pub use self::publisher::Publisher;
pub use self::service::{Replies, Service, Serving};
pub use self::subscription::{Subscription, WhileListened};
pub use crate::protocol::calls::{CallError, CallOptions, CallReply, Callee};
pub use crate::protocol::pubsub::receipt::Receipt;
pub use crate::protocol::pubsub::{SendError, SendOptions};
pub use crate::protocol::services::{Request, ServeOptions};
pub use crate::protocol::subscription::{Acknowledge, ListenOptions, Overflow};

use crate::keys::Ticket;
use crate::mesh::engine::LimitError;
use crate::mesh::{
    Action, BadName, Codec, Identity, KeyInfo, MeshName, NodeId, NodeInfo, NodeName, NotAllowed, PeerId, PeerInfo,
    SendReport, ServiceName, Status, Topic, TopicFilter, TopicInfo,
};
use crate::net::{Closed, KeepAlive, NetHandle, RotationError};
use crate::protocol::Protocols;
use crate::protocol::calls::Caller;
use crate::protocol::pubsub::{Kept, Outlet};

/// A named participant in a mesh. Cheap to clone.
///
/// All nodes of one name are a group: a message goes to one of them. When the last handle of a node and its last
/// subscription are dropped, the node ends; when the last node of a process ends, the process leaves the mesh.
#[derive(Clone, Debug)]
pub struct Node(Arc<Inner>);

impl Drop for Inner {
    fn drop(&mut self) {
        self.host.protocols.pubsub.inboxes().remove(self.id.index); // no subscription is left: each holds the node
    }
}

#[derive(Debug)]
struct Inner {
    id: NodeId,
    name: NodeName,
    host: Arc<Host>,
    /// Beyond what is kept, the numbers of topics without a [`Publisher`] start again at 1.
    outlets: Mutex<Kept<Arc<Outlet>>>,
    callers: Mutex<HashMap<ServiceName, Arc<Caller>>>,
    _alive: KeepAlive,
}

/// What the nodes of one process share.
#[derive(Debug)]
struct Host {
    net: NetHandle,
    protocols: Arc<Protocols>,
    mesh: MeshName,
    identity: Identity,
    listen_options: ListenOptions,
    event_loop: Mutex<Option<JoinHandle<()>>>,
    drained: AtomicBool,
}

/// Why a node does not listen or serve, or is not hosted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The filter or name is not one. Nothing changed.
    #[error(transparent)]
    Name(#[from] BadName),
    /// A limit is reached. Nothing changed.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The peer has shut down.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Why there is no round trip.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// No link to that peer stands.
    #[error("no link to {0}")]
    NotLinked(PeerId),
    /// No answer in that time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

impl Node {
    /// Describes a node to start: see [`Builder`].
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    /// Which node this is.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.0.id
    }

    /// Its name, which is its group.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.0.name
    }

    /// The mesh that it is in.
    #[must_use]
    pub fn mesh(&self) -> &MeshName {
        &self.0.host.mesh
    }

    /// The lasting identity of its home, or the one that this process made for itself.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.0.host.identity
    }

    /// The identity that a peer has proved, if it is linked or was a moment ago: what permissions rest on.
    #[must_use]
    pub fn identity_of(&self, peer: PeerId) -> Option<Identity> {
        if peer == self.0.id.peer {
            return Some(self.0.host.identity);
        }
        self.0.host.protocols.guard.identity(peer)
    }

    /// Whether the rules of this process (`[[allow]]`) let a peer do something here. It may do to itself what it likes. A refusal
    /// is counted, and told to who watches: so ask when it is about to be done.
    ///
    /// # Errors
    /// Names the rule that would have to allow it.
    pub fn permits(&self, peer: PeerId, action: Action, resource: &str) -> Result<(), NotAllowed> {
        if peer == self.0.id.peer {
            return Ok(());
        }
        self.0.host.protocols.guard.permits(peer, action, resource)
    }

    /// Whether a peer may do something here with what has several names: a rule about one of them is about it.
    pub(crate) fn permits_by_any_name(&self, peer: PeerId, action: Action, names: &[&str]) -> Result<(), NotAllowed> {
        if peer == self.0.id.peer {
            return Ok(());
        }
        self.0.host.protocols.guard.permits_by_any_name(peer, action, names)
    }

    /// Hosts another node in the same process.
    ///
    /// # Errors
    /// The name is not one, the process has 10,000 nodes, or it has left the mesh.
    pub async fn sibling(&self, name: impl Into<String>) -> Result<Self, ListenError> {
        Self::host(Arc::clone(&self.0.host), NodeName::new(name.into())?).await
    }

    async fn host(host: Arc<Host>, name: NodeName) -> Result<Self, ListenError> {
        let (id, alive) = host.net.add_node(name.clone()).await??;
        Ok(Self(Arc::new(Inner {
            id,
            name,
            host,
            outlets: Mutex::default(),
            callers: Mutex::default(),
            _alive: alive,
        })))
    }

    // Sending.

    /// Sends a value, in CBOR, to one node of each group that listens to the topic.
    ///
    /// Waits up to `send_timeout` (1 s) for receivers whose queue is full, then drops the message for those alone. The
    /// report says what happened; that nobody listens is no error.
    ///
    /// # Errors
    /// The topic is not one, the value cannot be encoded or is too large: then nothing was sent.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the message stays sent to those who had room, and goes to nobody else.
    pub async fn send<T: Serialize + ?Sized>(&self, topic: &str, value: &T) -> Result<SendReport, SendError> {
        let payload = codec::to_cbor(value).map_err(SendError::Encode)?;
        self.publish(topic, Codec::Cbor, payload, &SendOptions::default()).await
    }

    /// Sends bytes as they are. Otherwise like [`Node::send`].
    ///
    /// # Errors
    /// As for [`Node::send`].
    pub async fn send_bytes(&self, topic: &str, payload: impl Into<Bytes>) -> Result<SendReport, SendError> {
        self.publish(topic, Codec::Bytes, payload.into(), &SendOptions::default()).await
    }

    /// Sends a text. Otherwise like [`Node::send`].
    ///
    /// # Errors
    /// As for [`Node::send`].
    pub async fn send_text(&self, topic: &str, text: impl Into<String>) -> Result<SendReport, SendError> {
        self.publish(topic, Codec::Text, text.into().into(), &SendOptions::default()).await
    }

    /// Sends a payload that is encoded already, to whom and for how long the options say.
    ///
    /// # Errors
    /// As for [`Node::send`].
    pub async fn publish(
        &self,
        topic: &str,
        codec: Codec,
        payload: Bytes,
        options: &SendOptions,
    ) -> Result<SendReport, SendError> {
        self.publisher(topic)?.publish(codec, payload, options).await
    }

    /// Sends a value only if somebody listens: the closure is not run otherwise.
    ///
    /// # Errors
    /// As for [`Node::send`].
    pub async fn send_with<T: Serialize>(
        &self,
        topic: &str,
        make: impl FnOnce() -> T,
    ) -> Result<SendReport, SendError> {
        self.publisher(topic)?.send_with(make).await
    }

    /// What sends on one topic: resolved once, so the fast way to send often.
    ///
    /// # Errors
    /// The topic is not one.
    pub fn publisher(&self, topic: &str) -> Result<Publisher, SendError> {
        let mut outlets = self.0.outlets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outlet) = outlets.get(topic) {
            return Ok(Publisher::new(self.clone(), outlet));
        }
        let topic = Topic::new(topic)?;
        let in_use = |outlet: &Arc<Outlet>| outlet.is_shared() || outlet.is_retaining();
        let outlet = outlets.of(&topic, in_use, || {
            let (name, routes) = (self.0.name.clone(), self.0.host.net.routes().clone());
            Arc::new(self.0.host.protocols.pubsub.outlet(topic.clone(), self.0.id, name, routes))
        });
        Ok(Publisher::new(self.clone(), outlet))
    }

    // Listening.

    /// Listens to all topics that the filter selects, with a queue of the configured size that drops the oldest.
    ///
    /// When this returns, this process sends to the subscription already, and linked peers within 50 ms.
    ///
    /// # Errors
    /// The filter is not one, the node has 10,000 of them, or the process has left the mesh.
    pub async fn listen(&self, filter: &str) -> Result<Subscription, ListenError> {
        self.listen_with(filter, self.0.host.listen_options).await
    }

    /// Listens with a queue of one's own choice.
    ///
    /// # Errors
    /// As for [`Node::listen`].
    pub async fn listen_with(&self, filter: &str, options: ListenOptions) -> Result<Subscription, ListenError> {
        let filter = TopicFilter::new(filter)?;
        // First the inbox, then the promise to others that it is there.
        let inbox = self.0.host.protocols.pubsub.inboxes().insert(self.0.id.index, filter.clone(), options);
        let mut subscription = Subscription::new(self.clone(), filter.clone(), inbox);
        subscription.hold(self.0.host.net.listen(self.0.id.index, filter).await??);
        Ok(subscription)
    }

    // Looking around.

    /// All nodes that can be reached, those of this process included.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let routes = Arc::clone(&self.0.host.net.routes().borrow());
        let mut nodes: Vec<NodeInfo> = routes
            .records()
            .flat_map(|record| {
                record.nodes.iter().map(|node| NodeInfo {
                    id: NodeId { peer: record.peer, index: node.index },
                    name: node.name.clone(),
                    host: record.host.clone(),
                    filters: node.filters.clone(),
                    services: node.services.iter().filter(|service| !service.is_reserved()).cloned().collect(),
                })
            })
            .collect();
        nodes.sort_unstable_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        nodes
    }

    /// All filters that somebody listens with, and who.
    #[must_use]
    pub fn topics(&self) -> Vec<TopicInfo> {
        let mut topics: std::collections::BTreeMap<TopicFilter, TopicInfo> = std::collections::BTreeMap::new();
        for node in self.nodes() {
            let mut filters = node.filters;
            filters.sort_unstable();
            filters.dedup();
            for filter in filters {
                let info = TopicInfo { filter: filter.clone(), groups: Vec::new(), nodes: 0 };
                let info = topics.entry(filter).or_insert(info);
                info.nodes += 1;
                if info.groups.last() != Some(&node.name) {
                    info.groups.push(node.name.clone()); // nodes come in order of name
                }
            }
        }
        topics.into_values().collect()
    }

    /// All linked peers.
    ///
    /// # Errors
    /// The process has left the mesh.
    pub async fn peers(&self) -> Result<Vec<PeerInfo>, Closed> {
        self.0.host.net.peers().await
    }

    /// This peer, all in one.
    ///
    /// # Errors
    /// The process has left the mesh.
    pub async fn status(&self) -> Result<Status, Closed> {
        let mut status = self.0.host.net.status().await?;
        let (sent, received, dropped) = self.0.host.protocols.pubsub.counts();
        status.counts.sent = sent;
        status.counts.received = received;
        status.counts.dropped += dropped;
        status.counts.refused = self.0.host.protocols.guard.refused();
        Ok(status)
    }

    /// What happens in the mesh from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(self.0.host.net.events())
    }

    /// Measures one round trip over the link to a peer.
    ///
    /// # Errors
    /// There is no link, or no answer in time.
    pub async fn ping(&self, peer: PeerId, patience: Duration) -> Result<Duration, PingError> {
        if peer == self.0.id.peer {
            return Ok(Duration::ZERO);
        }
        let pubsub = &self.0.host.protocols.pubsub;
        let link = pubsub.links().get(peer).ok_or(PingError::NotLinked(peer))?;
        pubsub.pings().ping(&link, patience).await.ok_or(PingError::TimedOut(patience))
    }

    // Keys.

    /// Which network keys are in use.
    ///
    /// # Errors
    /// The process has left the mesh.
    pub async fn keys(&self) -> Result<KeyInfo, Closed> {
        self.0.host.net.keys().await
    }

    /// Makes a new network key and hands it to all linked peers but those of the identities `without`.
    ///
    /// The previous key opens the door until `grace` is over, and who comes in by it is given the new one. Without grace,
    /// who is not linked now needs a new ticket.
    ///
    /// # Errors
    /// Identities are excluded although the old key goes on to hold, or the keys cannot be stored.
    pub async fn rotate_key(&self, grace: Duration, without: &[Identity]) -> Result<KeyInfo, RotationError> {
        self.0.host.net.rotate(grace, without.to_vec()).await
    }

    /// Reads the network keys from the home again.
    ///
    /// # Errors
    /// There is no home, or its keys cannot be read; the keys in use then stay.
    pub async fn reload_keys(&self) -> Result<(), RotationError> {
        self.0.host.net.reload_keys().await
    }

    /// A ticket: what another machine needs to join. It holds the network key.
    ///
    /// # Errors
    /// The process has left the mesh.
    pub async fn invite(&self) -> Result<Ticket, Closed> {
        self.0.host.net.invite().await
    }

    /// Finishes what the nodes of this process have in hand, and takes on nothing more: others choose other nodes from now on,
    /// and who calls or opens a channel still is told that this one is busy.
    ///
    /// Calls that run or wait are answered. Subscriptions end once what they hold is taken, which the program has to go on
    /// doing meanwhile; what it leaves for a second is handed back to who sent it acknowledged. Channels have a second to end.
    /// All in all this takes 2.5 s at most. To be followed by [`Node::shutdown`], which does it too.
    ///
    /// # Cancel safety
    /// Dropped, nothing more is waited for; what is under way goes on.
    pub async fn drain(&self) {
        let Host { net, protocols, .. } = &*self.0.host;
        protocols.services.drain();
        protocols.channels.drain();
        net.retire().await;
        let calls = timeout(DRAIN, protocols.services.drained());
        let channels = timeout(CHANNELS, protocols.channels.drained());
        let _ = tokio::join!(calls, channels, protocols.pubsub.drain(DRAIN)); // what is not done by then is given up
        self.0.host.drained.store(true, Ordering::Release);
    }

    /// Leaves the mesh with all nodes of this process: after a [`drain`](Node::drain), what is queued goes out, others are told,
    /// subscriptions end. Takes 5 s at most.
    pub async fn shutdown(self) {
        let until = Instant::now() + SHUTDOWN;
        // What has drained takes nothing more: there is nothing that could be waited for again.
        if !self.0.host.drained.load(Ordering::Acquire) {
            self.drain().await;
        }
        let host = &self.0.host;
        let event_loop = host.event_loop.lock().unwrap_or_else(PoisonError::into_inner).take();
        if timeout_at(until, host.net.leave()).await.is_err() {
            warn!("the peer was stopped before it had said goodbye");
        }
        if let Some(mut event_loop) = event_loop {
            match timeout_at(until + CLOSING, &mut event_loop).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%error, "the event loop failed"),
                Err(_) => event_loop.abort(),
            }
        }
        host.protocols.pubsub.inboxes().finish();
        host.protocols.pubsub.lanes().end();
        host.protocols.calls.end();
        host.protocols.channels.finish();
    }
}

/// Time for what is in hand when a process leaves.
const DRAIN: Duration = Duration::from_millis(2500);
/// Time for channels to end by themselves.
const CHANNELS: Duration = Duration::from_secs(1);
/// Time for leaving, a drain included, and for the event loop to end after that.
const SHUTDOWN: Duration = Duration::from_millis(4500);
const CLOSING: Duration = Duration::from_millis(250);
