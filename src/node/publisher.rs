//! Sending on one topic.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::time::timeout;

use super::{Node, Subscription, WhileListened, codec};
use crate::mesh::{Codec, GroupBy, Policy, SendReport, Topic};
use crate::protocol::pubsub::receipt::Receipt;
use crate::protocol::pubsub::{Outlet, SendError, SendOptions};

/// Sends on one topic. Cheap to clone; all clones of one node's publisher share its order and numbers.
#[derive(Clone, Debug)]
pub struct Publisher {
    node: Node,
    outlet: Arc<Outlet>,
}

impl Publisher {
    pub(super) fn new(node: Node, outlet: Arc<Outlet>) -> Self {
        Self { node, outlet }
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        self.outlet.topic()
    }

    /// A publisher that chooses receivers otherwise than the rules say, in turns of its own. Its messages are in one order,
    /// and numbered in one sequence, with all others of this node on the topic.
    ///
    /// Two publishers of a topic that group in different ways look the route up again whenever they take turns.
    #[must_use]
    pub fn with_policy(&self, policy: Policy, group_by: GroupBy) -> Self {
        Self::new(self.node.clone(), Arc::new(self.outlet.balanced(policy, group_by)))
    }

    /// Sends a value in CBOR: see [`Node::send`].
    ///
    /// # Errors
    /// The value cannot be encoded or is too large.
    pub async fn send<T: Serialize + ?Sized>(&self, value: &T) -> Result<SendReport, SendError> {
        self.publish(Codec::Cbor, codec::to_cbor(value).map_err(SendError::Encode)?, &SendOptions::default()).await
    }

    /// Sends bytes as they are: see [`Node::send`].
    ///
    /// # Errors
    /// They are too many.
    pub async fn send_bytes(&self, payload: impl Into<Bytes>) -> Result<SendReport, SendError> {
        self.publish(Codec::Bytes, payload.into(), &SendOptions::default()).await
    }

    /// Sends a value only if somebody listens: the closure is not run otherwise.
    ///
    /// # Errors
    /// As for [`Publisher::send`].
    pub async fn send_with<T: Serialize>(&self, make: impl FnOnce() -> T) -> Result<SendReport, SendError> {
        if self.has_listeners() { self.send(&make()).await } else { Ok(SendReport::default()) }
    }

    /// Sends a payload that is encoded already, to whom and for how long the options say: see [`Node::send`].
    ///
    /// # Errors
    /// The payload is too large.
    pub async fn publish(&self, codec: Codec, payload: Bytes, options: &SendOptions) -> Result<SendReport, SendError> {
        if options.acked || options.redeliver {
            return Ok(self.submit(codec, payload, options).await?.await);
        }
        self.node.0.host.protocols.pubsub.send(&self.outlet, codec, &payload, options).await
    }

    /// Sends a payload as [`Publisher::publish`] does, but waits for room only: what became of it tells the [`Receipt`].
    ///
    /// # Errors
    /// The payload is too large.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the message stays sent to those who had room, and goes to nobody else.
    pub async fn submit(&self, codec: Codec, payload: Bytes, options: &SendOptions) -> Result<Receipt, SendError> {
        self.node.0.host.protocols.pubsub.submit(&self.outlet, codec, &payload, options).await
    }

    /// Whether the last message from now on is kept for who comes later: each subscription of a node that begins to listen,
    /// or comes back, gets it once, before any newer one; one that has no room for it just then gets what is the last message when
    /// it has. It is kept by this node, and ends with it. A subscription that takes
    /// the place of one with the same filter within a few milliseconds may pass for that, and get nothing.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn retain(&self, retain: bool) {
        self.node.0.host.protocols.pubsub.retain(&self.outlet, retain);
    }

    /// Sends bytes to whom there is room for, without waiting; the others are in the report. `None`: another send on this
    /// topic is waiting, and this one must not overtake it.
    ///
    /// # Errors
    /// They are too many.
    pub fn try_send(&self, payload: impl Into<Bytes>) -> Result<Option<SendReport>, SendError> {
        let pubsub = &self.node.0.host.protocols.pubsub;
        pubsub.try_send(&self.outlet, Codec::Bytes, &payload.into(), &SendOptions::default())
    }

    /// How many nodes listen now.
    #[must_use]
    pub fn listeners(&self) -> usize {
        self.node.0.host.protocols.pubsub.listeners(&self.outlet)
    }

    /// Whether somebody listens now.
    #[must_use]
    pub fn has_listeners(&self) -> bool {
        self.listeners() > 0
    }

    /// Waits until at least `count` nodes listen. Gives how many do, when that is so or when time is up.
    pub async fn wait_for_listeners(&self, count: usize, patience: Duration) -> usize {
        let mut routes = self.node.0.host.net.routes().clone();
        let enough = async { while self.listeners() < count && routes.changed().await.is_ok() {} };
        let _ = timeout(patience, enough).await; // either way, the count is the answer
        self.listeners()
    }

    /// Listens to `upstream` only while somebody listens to this publisher's topic: a stage in a chain of stages costs
    /// nothing while nobody wants its result.
    #[must_use]
    pub fn while_listened(&self, upstream: impl Into<String>) -> WhileListened {
        WhileListened::new(self.clone(), upstream.into())
    }

    /// Waits until somebody listens, or nobody does any more.
    pub(super) async fn listened(&self, wanted: bool) {
        let mut routes = self.node.0.host.net.routes().clone();
        while self.has_listeners() != wanted && routes.changed().await.is_ok() {}
    }

    pub(super) async fn listen(&self, filter: &str) -> Result<Subscription, super::ListenError> {
        self.node.listen(filter).await
    }
}
