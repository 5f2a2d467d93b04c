//! The subscriptions of one client: messages are handed to it, and acknowledged when it has them, or has handled them.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::failures::listen_failure;
use super::outbox::{Gone, Outbox};
use crate::mesh::Message;
use crate::mesh::delivery::Claimed;
use crate::node::{self, ListenOptions, Node, Subscription};
use crate::wire::control::{Acknowledge, Answer, Delivery, Failure, FailureKind, Listen, Overflow, Reply};

/// All subscriptions of one client.
pub(super) struct Subscriptions {
    outbox: Outbox,
    open: HashMap<u64, Listening>,
    next: u64,
}

/// One subscription.
struct Listening {
    /// None once it drains: then it ends by itself.
    forwarder: Option<AbortOnDropHandle<()>>,
    drain: CancellationToken,
    unhandled: Arc<Unhandled>,
}

/// Messages that the client has and has not acknowledged. Handed back with the subscription, or when the client goes.
struct Unhandled {
    room: Arc<Semaphore>,
    messages: Mutex<Handed>,
}

#[derive(Default)]
struct Handed {
    next: u64,
    by_ack: HashMap<u64, (Claimed, OwnedSemaphorePermit)>,
}

impl Subscriptions {
    pub(super) fn new(outbox: Outbox) -> Self {
        Self { outbox, open: HashMap::new(), next: 0 }
    }

    /// Begins one, and answers that request.
    pub(super) async fn listen(
        &mut self,
        id: u64,
        node: &Node,
        listen: Listen,
        limits: &ListenOptions,
    ) -> Result<(), Gone> {
        let options = ListenOptions {
            // Small ones may be many, for who says so: bytes are what memory is.
            messages: listen
                .messages
                .map_or(limits.messages, |wanted| wanted.clamp(1, limits.messages.max(MOST_WAITING))),
            bytes: listen.bytes.unwrap_or(usize::MAX).clamp(1, limits.bytes),
            overflow: overflow(listen.overflow),
            // What is taken from the daemon's queue is not with the client yet.
            acknowledge: node::Acknowledge::Handled,
        };
        let messages = match node.listen_with(&listen.filter, options).await {
            Ok(messages) => messages,
            Err(error) => return self.outbox.reply(id, Err(listen_failure(error))).await,
        };
        let subscription = self.next;
        self.next += 1;
        // The client hears of the subscription before it hears from it.
        self.outbox.reply(id, Ok(Reply::Listening { subscription })).await?;
        let (unhandled, drain) = (Arc::new(Unhandled::new()), CancellationToken::new());
        let forwarder = Forwarder {
            subscription,
            drain: drain.clone(),
            outbox: self.outbox.clone(),
            unhandled: (listen.acknowledge == Acknowledge::Handled).then(|| Arc::clone(&unhandled)),
        };
        let forwarder = Some(AbortOnDropHandle::new(tokio::spawn(forwarder.forward(messages))));
        self.open.insert(subscription, Listening { forwarder, drain, unhandled });
        Ok(())
    }

    pub(super) async fn unlisten(&mut self, subscription: u64) -> Result<Reply, Failure> {
        let Some(Listening { forwarder, .. }) = self.open.remove(&subscription) else {
            return Err(no_subscription(subscription));
        };
        if let Some(forwarder) = forwarder {
            forwarder.abort();
            // When it has ended, nothing more can come behind the reply.
            let _ = forwarder.await;
        }
        Ok(Reply::Done)
    }

    /// Ends one, when the client has all that had arrived. It can still acknowledge that.
    pub(super) fn drain(&mut self, subscription: u64) -> Result<impl Future<Output = ()> + use<>, Failure> {
        let listening = self.open.get_mut(&subscription).ok_or_else(|| no_subscription(subscription))?;
        listening.drain.cancel();
        let forwarder = listening.forwarder.take().ok_or_else(|| no_subscription(subscription))?;
        Ok(async move {
            let _ = forwarder.await; // however it ended
        })
    }

    /// The client has handled messages. What it does not have is passed over.
    pub(super) fn acknowledge(&self, subscription: u64, acks: &[u64]) {
        if let Some(listening) = self.open.get(&subscription) {
            let mut handed = listening.unhandled.messages();
            for (message, _) in acks.iter().filter_map(|ack| handed.by_ack.remove(ack)) {
                message.acknowledge();
            }
        }
    }
}

impl Unhandled {
    fn new() -> Self {
        Self { room: Arc::new(Semaphore::new(MAX_UNHANDLED)), messages: Mutex::default() }
    }

    /// Takes a message in, and gives what the client acknowledges it by. Waits for room.
    async fn add(&self, message: Claimed) -> Option<u64> {
        let room = Arc::clone(&self.room).acquire_owned().await.ok()?;
        let mut handed = self.messages();
        let ack = handed.next;
        handed.next += 1;
        handed.by_ack.insert(ack, (message, room));
        Some(ack)
    }

    fn messages(&self) -> MutexGuard<'_, Handed> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands the messages of one subscription to the client.
struct Forwarder {
    subscription: u64,
    outbox: Outbox,
    drain: CancellationToken,
    /// Where the client is to acknowledge messages.
    unhandled: Option<Arc<Unhandled>>,
}

impl Forwarder {
    async fn forward(self, mut messages: Subscription) {
        let mut is_draining = false;
        let mut drained = pin!(self.drain.cancelled());
        loop {
            let next = tokio::select! {
                biased; // Once: after that, messages alone are waited for.
                () = drained.as_mut(), if !is_draining => {
                    messages.drain();
                    is_draining = true;
                    continue;
                }
                next = messages.next() => next,
            };
            let Some(message) = next else { return };
            let (ack, taken) = match &self.unhandled {
                _ if !message.claimed.is_awaited() => (None, None),
                Some(unhandled) => (unhandled.add(message.claimed.clone()).await, None),
                None => (None, Some(message.claimed.clone())),
            };
            if self.outbox.deliver(&Answer::Message(self.delivery(message, ack)), taken).await.is_err() {
                return;
            }
        }
    }

    fn delivery(&self, message: Message, ack: Option<u64>) -> Delivery {
        let Message { topic, from, from_name, seq, codec, payload, lagged, .. } = message;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        Delivery { subscription: self.subscription, topic, from, from_name, seq, codec, payload, lagged, time_us, ack }
    }
}

fn no_subscription(subscription: u64) -> Failure {
    Failure::new(FailureKind::Usage, format!("there is no subscription {subscription}"))
}

fn overflow(wanted: Overflow) -> node::Overflow {
    match wanted {
        Overflow::DropOldest => node::Overflow::DropOldest,
        Overflow::DropNewest => node::Overflow::DropNewest,
        Overflow::Block => node::Overflow::Block,
    }
}

/// Messages of one subscription that the client may have and not have acknowledged: then the next ones wait.
const MAX_UNHANDLED: usize = 1024;
/// Messages that may wait in one subscription, if the client says so and the configuration does not say more: a second of
/// many small ones.
const MOST_WAITING: usize = 1 << 17;
