//! Channels: what two nodes speak with each other through.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{Node, codec};
use crate::mesh::channel::{Lost, Taken, TheirEnd};
use crate::mesh::{Codec, Failure, Item, NodeId, RemoteFailure};
use crate::protocol::channel::{NoChannel, NotSent, Speaker, Talk, Waiter};
use crate::wire::channel::Refusal;

/// One end of a conversation between two nodes: ordered, both ways. Also a [`Stream`] of items.
///
/// What one end sends the other gets once and in order, also when the link between their peers is lost and comes back in
/// time. An end may send until 256 KiB (and one item) are on their way or not yet taken by the other program; then it waits.
/// Clones are the same end; when the last is dropped, the channel closes.
#[derive(Clone, Debug)]
pub struct Channel {
    speaker: Arc<Speaker>,
    request: Option<Item>,
    /// The stream has given its error.
    over: bool,
    waiter: Waiter,
    /// Holds the node, and so the process, in the mesh.
    node: Node,
}

/// Why nothing more comes, or nothing can be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// One of the ends closed the channel, or this end had finished. The item was not sent.
    #[error("the channel is closed")]
    Closed,
    /// The other end closed it with a failure.
    #[error(transparent)]
    Failed(#[from] RemoteFailure),
    /// The other end's peer ended, or its link did not come back in time. What it had not taken is lost.
    #[error("the link to {0} was lost, and did not come back")]
    Disconnected(NodeId),
    /// The other end's peer knows nothing of it any more: it took this one for lost.
    #[error("{0} does not know the channel any more")]
    Gone(NodeId),
    /// The other end was handed over, and nobody took it within a minute.
    #[error("the other end was handed over, and nobody took it")]
    NotAdopted,
    /// Both ends were handed over at the same time: neither finds the other.
    #[error("both ends were handed over at the same time")]
    BothHandedOver,
    /// The peer has shut down.
    #[error("the peer has shut down")]
    Shutdown,
    /// The item is larger than the mesh takes. It was not sent, and the channel goes on.
    #[error("an item of {len} bytes, over the limit of {max}")]
    TooLarge {
        /// Its size in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The value cannot be encoded. It was not sent, and the channel goes on.
    #[error("the value cannot be encoded: {0}")]
    Encode(String),
    /// The item is no such value. It is taken, and the channel goes on.
    #[error("the item cannot be decoded: {0}")]
    Decode(String),
}

/// What takes over one end of a channel: a value to be sent in any message, item or call. See [`Channel::into_handle`].
///
/// Whoever holds it can take over the conversation: it is a secret of those two nodes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelHandle {
    far: NodeId,
    rest: Rest,
}

/// What is left of a conversation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Rest {
    /// It goes on with this end of the far node.
    Goes { end: u64, token: Bytes },
    /// It is over.
    Over(TheirEnd),
}

/// Why a conversation was not taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// No link to the far end's peer stands. Nothing changed: the handle is good for a minute.
    #[error("no link to {0}")]
    NotLinked(NodeId),
    /// The far end is there no more, or somebody else has used the handle.
    #[error("the other end at {0} is there no more, or the handle was used already")]
    NotThere(NodeId),
    /// Both ends were handed over at the same time: neither finds the other.
    #[error("both ends were handed over at the same time")]
    BothHandedOver,
    /// 1000 channels to that peer are open. Nothing changed.
    #[error("as many channels to the peer of {0} are open as may be")]
    TooMany(NodeId),
    /// No answer in the time that a call takes by default. Whether the conversation is taken over is not known; if it is, it
    /// is closed.
    #[error("no answer from {0}")]
    TimedOut(NodeId),
}

impl Channel {
    pub(super) fn new(node: Node, speaker: Speaker, request: Option<Item>) -> Self {
        Self { speaker: Arc::new(speaker), request, over: false, waiter: Waiter::default(), node }
    }

    /// The node at the other end. When that end is handed over, it is another.
    #[must_use]
    pub fn far(&self) -> NodeId {
        self.speaker.far_node()
    }

    /// What it was opened with, at the end that accepted it.
    #[must_use]
    pub fn request(&self) -> Option<&Item> {
        self.request.as_ref()
    }

    /// Sends a value in CBOR, and waits until there is room for it. When this returns, it is on its way, not yet taken.
    ///
    /// # Errors
    /// The channel is over, or the value is too large or cannot be encoded.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the value is not sent.
    pub async fn send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), ChannelError> {
        let payload = codec::to_cbor(value).map_err(|error| ChannelError::Encode(error.to_string()))?;
        self.send_item(Item { codec: Codec::Cbor, payload }).await
    }

    /// Sends bytes as they are. Otherwise like [`Channel::send`].
    ///
    /// # Errors
    /// As for [`Channel::send`].
    pub async fn send_bytes(&self, payload: impl Into<Bytes>) -> Result<(), ChannelError> {
        self.send_item(Item { codec: Codec::Bytes, payload: payload.into() }).await
    }

    /// Sends what is encoded already. Otherwise like [`Channel::send`].
    ///
    /// # Errors
    /// As for [`Channel::send`].
    pub async fn send_item(&self, item: Item) -> Result<(), ChannelError> {
        let max = self.node.0.host.protocols.channels.max_message();
        if item.payload.len() > max {
            return Err(ChannelError::TooLarge { len: item.payload.len(), max });
        }
        self.speaker.send(item).await.map_err(|not_sent| match not_sent {
            NotSent::Closed => ChannelError::Closed,
            NotSent::Far(end) => self.error(end).unwrap_or(ChannelError::Closed),
        })
    }

    /// Waits for the next item, as a value. `None` at an orderly end, again and again.
    ///
    /// # Errors
    /// The channel ended otherwise (again and again), or the item is no such value.
    ///
    /// # Cancel safety
    /// No item is lost when this is dropped.
    pub async fn receive<T: DeserializeOwned>(&self) -> Result<Option<T>, ChannelError> {
        let Some(item) = self.next().await? else { return Ok(None) };
        item.decode().map(Some).map_err(|error| ChannelError::Decode(error.to_string()))
    }

    /// Waits for the next item. `None` at an orderly end, again and again.
    ///
    /// # Errors
    /// The channel ended otherwise. All that came before is given before; then the error, again and again.
    ///
    /// # Cancel safety
    /// No item is lost when this is dropped.
    pub async fn next(&self) -> Result<Option<Item>, ChannelError> {
        let taken = self.speaker.take().await;
        self.taken(taken)
    }

    /// What [`Channel::next`] would give, if it is there already.
    pub fn try_next(&self) -> Option<Result<Option<Item>, ChannelError>> {
        self.speaker.try_take().map(|taken| self.taken(taken))
    }

    /// Says that nothing more comes from this end, which goes on receiving: the other one gets all that was sent, then the
    /// end, and can still answer.
    pub fn finish(&self) {
        self.speaker.finish();
    }

    /// Closes the channel both ways, without waiting: the other end gets all that was sent, then the end. What it sends is not
    /// received any more.
    pub fn close(&self) {
        self.speaker.close(None);
    }

    /// Closes the channel both ways, and says why: the other end gets all that was sent, then the failure.
    pub fn close_with(&self, failure: impl Into<Failure>) {
        self.speaker.close(Some(failure.into()));
    }

    /// Waits until either end has closed the channel both ways. Items that came before may still be taken, and an end that
    /// waits for room closes only when they are.
    ///
    /// # Errors
    /// It was closed with a failure, or was lost.
    pub async fn closed(&self) -> Result<(), ChannelError> {
        let end = self.speaker.closed().await;
        self.error(end).map_or(Ok(()), Err)
    }

    /// Gives this end away: whoever gets the handle goes on with the other end where this one stopped, see [`Node::adopt`].
    ///
    /// The other end notices nothing. What it sent and this one did not take goes to whoever adopts; what this one sent comes
    /// before what the adopter sends. Somebody has to adopt within a minute: after that, the other end is told. Clones of
    /// this end are closed.
    #[must_use = "the handle is all that is left of this end"]
    pub fn into_handle(self) -> ChannelHandle {
        match self.speaker.hand_over() {
            Ok((far, end, token)) => {
                ChannelHandle { far, rest: Rest::Goes { end, token: Bytes::copy_from_slice(&token) } }
            }
            Err(end) => ChannelHandle { far: self.far(), rest: Rest::Over(end) },
        }
    }

    pub(super) fn poll_item(&mut self, context: &Context<'_>) -> Poll<Option<Result<Item, ChannelError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        self.speaker.poll_take(&mut self.waiter, context).map(|taken| {
            let taken = self.taken(taken);
            self.over = taken.is_err();
            taken.transpose()
        })
    }

    fn taken(&self, taken: Taken) -> Result<Option<Item>, ChannelError> {
        match taken {
            Taken::Item(item) => Ok(Some(item)),
            Taken::End(end) => self.error(end).map_or(Ok(None), Err),
        }
    }

    /// What is wrong with an end, if anything.
    fn error(&self, end: TheirEnd) -> Option<ChannelError> {
        Some(match end {
            TheirEnd::Ended | TheirEnd::Closed => return None,
            TheirEnd::Failed(failure) => RemoteFailure { node: self.far(), failure }.into(),
            TheirEnd::Lost(Lost::Disconnected) => ChannelError::Disconnected(self.far()),
            TheirEnd::Lost(Lost::Gone) => ChannelError::Gone(self.far()),
            TheirEnd::Lost(Lost::NotAdopted) => ChannelError::NotAdopted,
            TheirEnd::Lost(Lost::BothHandedOver) => ChannelError::BothHandedOver,
            TheirEnd::Lost(Lost::Shutdown) => ChannelError::Shutdown,
        })
    }
}

impl Stream for Channel {
    type Item = Result<Item, ChannelError>;

    /// Gives the error that the channel ended with once, and then the end.
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(context)
    }
}

impl Node {
    /// Takes over a conversation that somebody gave away.
    ///
    /// # Errors
    /// See [`AdoptError`]. That the conversation is over is none: the channel then says so.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the conversation is closed if it was taken over.
    pub async fn adopt(&self, handle: ChannelHandle) -> Result<Channel, AdoptError> {
        let ChannelHandle { far, rest } = handle;
        let (end, token) = match rest {
            Rest::Goes { end, token } => (end, token),
            Rest::Over(TheirEnd::Lost(Lost::BothHandedOver)) => return Err(AdoptError::BothHandedOver),
            Rest::Over(end) => return Ok(Channel::new(self.clone(), Talk::over(far, end), None)),
        };
        let Ok(token) = token[..].try_into() else { return Err(AdoptError::NotThere(far)) };
        let channels = &self.0.host.protocols.channels;
        let adopted = timeout(channels.timeout(), channels.adopt(self.id().index, far, end, token)).await;
        let speaker = adopted.map_err(|_| AdoptError::TimedOut(far))?.map_err(|why| match why {
            NoChannel::TooMany => AdoptError::TooMany(far),
            NoChannel::Lost => AdoptError::NotLinked(far),
            NoChannel::Refused(Refusal::HandedOver) => AdoptError::BothHandedOver,
            NoChannel::TooLarge | NoChannel::Refused(_) => AdoptError::NotThere(far),
        })?;
        Ok(Channel::new(self.clone(), speaker, None))
    }
}

impl fmt::Debug for ChannelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelHandle").field("far", &self.far).finish_non_exhaustive() // the rest is secret
    }
}
