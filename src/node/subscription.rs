//! Receiving.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;

use super::{ListenError, Node, Publisher};
use crate::mesh::{Message, TopicFilter};
use crate::net::KeepAlive;
use crate::protocol::subscription::Inbox;

/// What a node receives by one filter: a [`Stream`] of messages. Dropping it ends the listening.
///
/// It ends when the process leaves the mesh.
#[derive(Debug)]
pub struct Subscription {
    inbox: Arc<Inbox>,
    filter: TopicFilter,
    /// Holds the node, and so the process, in the mesh.
    _node: Node,
    alive: Option<KeepAlive>,
}

impl Subscription {
    pub(super) fn new(node: Node, filter: TopicFilter, inbox: Arc<Inbox>) -> Self {
        Self { inbox, filter, _node: node, alive: None }
    }

    pub(super) fn hold(&mut self, alive: KeepAlive) {
        self.alive = Some(alive);
    }

    /// What it listens to.
    #[must_use]
    pub fn filter(&self) -> &TopicFilter {
        &self.filter
    }

    /// Waits for the next message. `None` at the end.
    ///
    /// # Cancel safety
    /// No message is lost when this is dropped.
    pub async fn next(&mut self) -> Option<Message> {
        poll_fn(|context| self.inbox.poll_next(context)).await
    }

    /// Listens no more, and gives what arrived and is still on its way: then it ends. What comes too late is handed back to
    /// senders that want to know.
    pub fn drain(&mut self) {
        self.alive = None;
        self.inbox.drain();
    }

    /// The next message, if one is there already.
    pub fn try_next(&mut self) -> Option<Message> {
        self.inbox.try_next().flatten()
    }
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.inbox.poll_next(context)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // Locks for as long as it takes to empty a queue: senders that were asked to pause have to hear of the end.
        self.inbox.close();
    }
}

/// A subscription that is there only while somebody listens downstream: see [`Publisher::while_listened`].
#[derive(Debug)]
pub struct WhileListened {
    downstream: Publisher,
    upstream: String,
    subscription: Option<Subscription>,
}

impl WhileListened {
    pub(super) fn new(downstream: Publisher, upstream: String) -> Self {
        Self { downstream, upstream, subscription: None }
    }

    /// Whether it listens now.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.subscription.is_some()
    }

    /// Waits for the next message from upstream, and meanwhile follows whether anybody listens downstream. `None` when the
    /// process has left the mesh.
    ///
    /// # Errors
    /// The filter is not one, or the node may not have another.
    ///
    /// # Cancel safety
    /// No message is lost when this is dropped.
    pub async fn next(&mut self) -> Result<Option<Message>, ListenError> {
        loop {
            let Some(subscription) = &mut self.subscription else {
                self.downstream.listened(true).await;
                if !self.downstream.has_listeners() {
                    return Ok(None); // it stopped waiting because the routes ended
                }
                self.subscription = Some(self.downstream.listen(&self.upstream).await?);
                continue;
            };
            tokio::select! {
                message = subscription.next() => return Ok(message),
                () = self.downstream.listened(false) => self.subscription = None,
            }
        }
    }
}
