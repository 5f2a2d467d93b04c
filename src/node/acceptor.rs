//! Services that are spoken with over channels: who opens one, who accepts it, and streams of replies.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::{Channel, ChannelError, ListenError, Node, codec};
use crate::mesh::engine::LimitError;
use crate::mesh::{BadName, Codec, Failure, Item, Member, NodeId, NotAllowed, ServiceName};
use crate::net::KeepAlive;
use crate::protocol::calls::Callee;
use crate::protocol::channel::{Incoming, NoChannel, Speaker};
use crate::wire::channel::Refusal;

/// The channels that others open to one service of a node: a [`Stream`] of [`Channel`]. Dropping it ends the service, and
/// closes what was not accepted.
///
/// 64 channels wait to be accepted; beyond, who opens one is told that the service is busy.
#[derive(Debug)]
pub struct Acceptor {
    node: Node,
    service: ServiceName,
    incoming: mpsc::Receiver<Incoming>,
    /// `None` only until others are promised that it is there.
    alive: Option<KeepAlive>,
}

/// A service whose channels a handler speaks with. Dropping it ends the service and all handlers; their channels close.
#[derive(Debug)]
pub struct ChannelService(#[expect(dead_code, reason = "holds the task")] AbortOnDropHandle<()>);

/// How a channel is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Who is to answer.
    pub callee: Callee,
    /// Time until somebody did. `None`: as configured for calls, 10 s by default.
    pub timeout: Option<Duration>,
    /// What the other end finds in [`Channel::request`].
    pub request: Item,
}

/// Why no channel was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No node that can be reached offers the service: try again when one does.
    #[error("no node offers the service {0}")]
    NoProvider(ServiceName),
    /// There is no such node.
    #[error("there is no node {0}")]
    NoSuchNode(String),
    /// The node is there, but does not offer this service.
    #[error("{node} does not offer the service {service}")]
    NotOffered {
        /// Who was asked.
        node: String,
        /// For what.
        service: ServiceName,
    },
    /// A rule does not allow it: one of the node's peer about who may call, or one of this peer about who may serve.
    #[error("no channel to {node}: refused by the rule '{rule}'")]
    Refused {
        /// Who was asked, or is left out.
        node: NodeId,
        /// The name of the rule.
        rule: String,
    },
    /// The service is called, not spoken with.
    #[error("the service {0} answers calls: call it, instead of opening a channel")]
    Called(ServiceName),
    /// All nodes that offer the service have as many channels waiting as they may, or are about to leave: try again later.
    #[error("all nodes that offer the service {0} are busy")]
    Busy(ServiceName),
    /// 1000 channels to the peer are open: close some first.
    #[error("as many channels to the peer of {0} are open as may be")]
    TooMany(NodeId),
    /// Nobody answered in that time. A node that answers later is told that nobody is there any more.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The link was lost before the answer, and no other node is left to ask. The request may have reached the node.
    #[error("the link to {0} was lost before it answered")]
    Disconnected(NodeId),
    /// The request is larger than the mesh, or the provider, takes.
    #[error("a request of {len} bytes, over the limit")]
    TooLarge {
        /// Its size in bytes.
        len: usize,
    },
    /// The service's name is not one.
    #[error(transparent)]
    Name(#[from] BadName),
    /// The request cannot be encoded.
    #[error("the request cannot be encoded: {0}")]
    Encode(String),
    /// The peer has shut down.
    #[error("the peer has shut down")]
    Closed,
}

/// Replies to one request, as they come: a [`Stream`]. Dropping it stops whoever makes them.
///
/// The stream ends after the last reply, or after an error.
#[derive(Debug)]
pub struct ReplyStream<R> {
    channel: Channel,
    over: bool,
    reply: PhantomData<fn() -> R>,
}

impl Node {
    /// Opens a channel to a node that offers the service.
    ///
    /// Nodes take turns; one that is busy, or lost before it answered, is passed over for the next.
    ///
    /// # Errors
    /// See [`OpenError`].
    ///
    /// # Cancel safety
    /// Dropped before it returns, no channel is open. The other end may have seen one, and sees its end.
    pub async fn open(&self, service: &str) -> Result<Channel, OpenError> {
        self.open_with(service, OpenOptions::default()).await
    }

    /// Opens a channel to whom, and with what, the options say. Otherwise like [`Node::open`].
    ///
    /// # Errors
    /// As for [`Node::open`].
    pub async fn open_with(&self, service: &str, options: OpenOptions) -> Result<Channel, OpenError> {
        let service = ServiceName::new(service)?;
        let channels = &self.0.host.protocols.channels;
        let OpenOptions { callee, timeout, request } = options;
        if request.payload.len() > channels.max_message() {
            return Err(OpenError::TooLarge { len: request.payload.len() });
        }
        let timeout = timeout.unwrap_or_else(|| channels.timeout());
        let now = Instant::now();
        let deadline = now.checked_add(timeout).unwrap_or(now + FOR_EVER);
        let speaker = timeout_at(deadline, self.open_any(&service, &callee, request)).await;
        speaker.unwrap_or(Err(OpenError::TimedOut(timeout))).map(|speaker| Channel::new(self.clone(), speaker, None))
    }

    /// Asks one provider after the other.
    async fn open_any(&self, service: &ServiceName, callee: &Callee, request: Item) -> Result<Speaker, OpenError> {
        let channels = &self.0.host.protocols.channels;
        let mut members = self.providers(service, callee)?;
        let mut why = None;
        while !members.is_empty() {
            let member = members.remove(channels.pick(service, &members));
            match self.open_to(&member, service, request.clone()).await {
                Ok(speaker) => return Ok(speaker),
                Err(error @ (OpenError::Busy(_) | OpenError::Disconnected(_) | OpenError::TooMany(_))) => {
                    why = Some(error);
                }
                Err(error @ (OpenError::NotOffered { .. } | OpenError::Refused { .. })) => {
                    why.get_or_insert(error); // its record says that it does: a moment ago, or in a moment
                }
                Err(error) => return Err(error),
            }
        }
        Err(why.unwrap_or_else(|| OpenError::NoProvider(service.clone())))
    }

    pub(super) async fn open_to(
        &self,
        member: &Member,
        service: &ServiceName,
        request: Item,
    ) -> Result<Speaker, OpenError> {
        let len = request.payload.len();
        let opened = self.0.host.protocols.channels.open(self.id().index, member.id, service.clone(), request).await;
        opened.map_err(|why| match why {
            NoChannel::TooMany => OpenError::TooMany(member.id),
            NoChannel::TooLarge => OpenError::TooLarge { len },
            NoChannel::Lost => OpenError::Disconnected(member.id),
            NoChannel::Refused(Refusal::Busy) => OpenError::Busy(service.clone()),
            NoChannel::Refused(Refusal::Called) => OpenError::Called(service.clone()),
            NoChannel::Refused(Refusal::NotAllowed(rule)) => OpenError::Refused { node: member.id, rule },
            NoChannel::Refused(_) => {
                OpenError::NotOffered { node: format!("{} ({})", member.name, member.id), service: service.clone() }
            }
        })
    }

    /// Who can be asked: at least one node.
    pub(super) fn providers(&self, service: &ServiceName, callee: &Callee) -> Result<Vec<Member>, OpenError> {
        let routes = self.0.host.net.routes();
        if routes.has_changed().is_err() {
            return Err(OpenError::Closed); // who made the routes is gone
        }
        let routes = Arc::clone(&routes.borrow());
        let fits = |id: NodeId, name: &crate::mesh::NodeName| match callee {
            Callee::Any => true,
            Callee::Node(wanted) => id == *wanted,
            Callee::Group(wanted) => name == wanted,
        };
        let (mut members, left_out) = self.0.host.protocols.channels.providers(self.id().peer, &routes, service);
        members.retain(|member| fits(member.id, &member.name));
        if !members.is_empty() {
            return Ok(members);
        }
        if let Some((member, NotAllowed { rule })) = left_out.filter(|(member, _)| fits(member.id, &member.name)) {
            return Err(OpenError::Refused { node: member.id, rule });
        }
        let node = match callee {
            Callee::Any => return Err(OpenError::NoProvider(service.clone())),
            Callee::Node(id) => id.to_string(),
            Callee::Group(name) => name.to_string(),
        };
        let there = routes.records().any(|record| {
            record.nodes.iter().any(|node| fits(NodeId { peer: record.peer, index: node.index }, &node.name))
        });
        let service = service.clone();
        Err(if there { OpenError::NotOffered { node, service } } else { OpenError::NoSuchNode(node) })
    }

    /// Offers a service that others open channels to.
    ///
    /// When this returns, channels can be opened in this process, and from linked peers within 50 ms.
    ///
    /// # Errors
    /// The name is not one, the node offers it already, or the process has left the mesh.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the service is not offered.
    pub async fn accept(&self, service: &str) -> Result<Acceptor, ListenError> {
        let service = ServiceName::new(service)?;
        let (index, protocols) = (self.id().index, &self.0.host.protocols);
        let taken = || LimitError::Serves(service.clone());
        if !protocols.services.insert_channels(index, service.clone()) {
            return Err(taken().into());
        }
        // First the line, then the promise to others that it is there.
        let incoming = protocols.channels.offer(index, service.clone()).ok_or_else(taken)?;
        // Dropped here, by an error or with this future, it withdraws the line.
        let mut acceptor = Acceptor { node: self.clone(), service: service.clone(), incoming, alive: None };
        acceptor.alive = Some(self.0.host.net.serve(index, service).await??);
        Ok(acceptor)
    }

    fn withdraw(&self, service: &ServiceName) {
        let (index, protocols) = (self.id().index, &self.0.host.protocols);
        protocols.channels.remove_offer(index, service);
        protocols.services.remove(index, service);
    }

    /// Offers a service whose channels are each handled by a task of its own. It ends when the guard is dropped.
    ///
    /// A handler that fails, or panics, closes its channel with that failure; one that returns `Ok` lets it be: it closes
    /// when the channel is dropped. 4096 handlers run at a time; more channels wait to be accepted.
    ///
    /// # Errors
    /// As for [`Node::accept`].
    pub async fn serve_channels<H, F>(&self, service: &str, handler: H) -> Result<ChannelService, ListenError>
    where
        H: Fn(Channel) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let mut acceptor = self.accept(service).await?;
        let handler = Arc::new(handler);
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            loop {
                tokio::select! {
                    channel = acceptor.next(), if running.len() < HANDLERS => match channel {
                        Some(channel) => drop(running.spawn(handle(Arc::clone(&handler), channel))),
                        None => break,
                    },
                    Some(_) = running.join_next() => {} // a handler's panic is its channel's failure
                }
            }
        });
        Ok(ChannelService(AbortOnDropHandle::new(task)))
    }

    /// Offers a service that answers each request with a stream of replies.
    ///
    /// The stream is asked for as many replies as there is room for on their way. It is dropped when it ends or fails, and
    /// as soon as nobody wants its replies any more, whatever it waits for then.
    ///
    /// # Errors
    /// As for [`Node::accept`].
    pub async fn serve_stream<T, R, H, S>(&self, service: &str, handler: H) -> Result<ChannelService, ListenError>
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + Sync + 'static,
        H: Fn(T) -> S + Send + Sync + 'static,
        S: Stream<Item = Result<R, Failure>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let speak = move |channel: Channel| {
            let handler = Arc::clone(&handler);
            async move { reply(&channel, &*handler).await }
        };
        self.serve_channels(service, speak).await
    }

    /// Asks a service for a stream of replies.
    ///
    /// # Errors
    /// As for [`Node::open`]. What the service itself fails with comes in the stream.
    ///
    /// # Cancel safety
    /// Dropped before it returns, nobody goes on replying.
    pub async fn call_stream<T, R>(&self, service: &str, request: &T) -> Result<ReplyStream<R>, OpenError>
    where
        T: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let payload = codec::to_cbor(request).map_err(|error| OpenError::Encode(error.to_string()))?;
        let request = Item { codec: Codec::Cbor, payload };
        let channel = self.open_with(service, OpenOptions { request, ..OpenOptions::default() }).await?;
        Ok(ReplyStream { channel, over: false, reply: PhantomData })
    }
}

async fn handle<H, F>(handler: Arc<H>, channel: Channel)
where
    H: Fn(Channel) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    let speaker = channel.clone(); // the handler drops its own before it is known how it ended
    let handled = AssertUnwindSafe(async { handler(channel).await }).catch_unwind().await;
    if let Err(failure) = handled.unwrap_or_else(|panic| Err(Failure::panicked(&*panic))) {
        speaker.close_with(failure);
    }
}

async fn reply<T, R, S>(channel: &Channel, handler: &(impl Fn(T) -> S + ?Sized)) -> Result<(), Failure>
where
    T: DeserializeOwned,
    R: Serialize,
    S: Stream<Item = Result<R, Failure>>,
{
    let request = channel.request().cloned().unwrap_or_default();
    let request = request.decode().map_err(|error| Failure::new(Failure::BAD_REQUEST, error.to_string()))?;
    let mut replies = pin!(handler(request));
    loop {
        let reply = tokio::select! {
            reply = replies.next() => reply,
            _ = channel.closed() => return Ok(()), // nobody wants it any more
        };
        let Some(reply) = reply else {
            channel.close();
            return Ok(());
        };
        match channel.send(&reply?).await {
            Ok(()) => {}
            Err(error @ (ChannelError::TooLarge { .. } | ChannelError::Encode(_))) => {
                return Err(Failure::new(Failure::BAD_REPLY, error.to_string()));
            }
            Err(_) => return Ok(()),
        }
    }
}

impl Acceptor {
    /// The service.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Waits for the next channel that somebody opens. `None` when the process has left the mesh.
    ///
    /// # Cancel safety
    /// No channel is lost when this is dropped.
    pub async fn next(&mut self) -> Option<Channel> {
        poll_fn(|context| self.poll_accept(context)).await
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<Option<Channel>> {
        let node = &self.node;
        self.incoming.poll_recv(context).map(|incoming| {
            incoming.map(|Incoming { speaker, request }| Channel::new(node.clone(), speaker, Some(request)))
        })
    }
}

impl Stream for Acceptor {
    type Item = Channel;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Channel>> {
        self.poll_accept(context)
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.alive = None; // others open none any more; who does so still is told that it is not there
        self.node.withdraw(&self.service); // locks for as long as a look-up takes
    }
}

impl<R: DeserializeOwned> ReplyStream<R> {
    /// The node that replies.
    #[must_use]
    pub fn far(&self) -> NodeId {
        self.channel.far()
    }

    /// Waits for the next reply. `None` after the last, and after an error.
    ///
    /// # Cancel safety
    /// No reply is lost when this is dropped.
    pub async fn next(&mut self) -> Option<Result<R, ChannelError>> {
        poll_fn(|context| self.poll_reply(context)).await
    }

    fn poll_reply(&mut self, context: &Context<'_>) -> Poll<Option<Result<R, ChannelError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        self.channel.poll_item(context).map(|item| {
            let reply = item.map(|item| item?.decode().map_err(|error| ChannelError::Decode(error.to_string())));
            self.over = !matches!(reply, Some(Ok(_)));
            reply
        })
    }
}

impl<R: DeserializeOwned> Stream for ReplyStream<R> {
    type Item = Result<R, ChannelError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_reply(context)
    }
}

/// Handlers of one service that run at a time.
const HANDLERS: usize = 4096;
/// A day: who waits longer for one answer is not helped by waiting on.
const FOR_EVER: Duration = Duration::from_secs(86_400);
