//! Long-lived streams to a peer, two lanes on each connection.
//!
//! Whoever owns a connection's [`ConnectionStreams`] opens and accepts its streams directly: requests go to the
//! connection's own task, and streams come from there. The swarm's event loop only hands the ends over, once per
//! connection, so it neither slows streams down nor is slowed down by them.

use std::array;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::iter;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    StreamUpgradeError, SubstreamProtocol, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

/// The behaviour: one [`Connection`] for each connection that the swarm establishes.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// Ends of connections that another behaviour may still refuse.
    prepared: HashMap<ConnectionId, ConnectionStreams>,
    /// Connections to tell of. No more than there are connections.
    established: VecDeque<Connection>,
}

/// A connection was established, and these are its streams.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) peer: PeerId,
    pub(crate) connection: ConnectionId,
    pub(crate) streams: ConnectionStreams,
}

/// Both ends of a connection's streams. An opener keeps an idle connection open.
#[derive(Debug)]
pub(crate) struct ConnectionStreams {
    /// Opens streams to the peer.
    pub(crate) opener: StreamOpener,
    /// Streams that the peer opened; `None` once the connection is closed. When [`MAX_WAITING`] of them wait here,
    /// further ones are reset. Boxed: a channel makes room for 32 at once, and a connection has two.
    pub(crate) incoming: mpsc::Receiver<(Lane, Box<Stream>)>,
}

/// What a stream is for, as its protocol name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Records, beats and acknowledgements, which bulk must not delay.
    Control,
    /// Messages, calls and channels.
    Data,
}

/// Opens streams on one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct StreamOpener(mpsc::Sender<Request>);

/// Why no stream was opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The connection is closed. Nothing more can be done on it.
    #[error("the connection is closed")]
    Closed,
    /// The connection did not get to it within [`OPEN_TIMEOUT`].
    #[error("no stream was opened within {OPEN_TIMEOUT:?}")]
    TimedOut,
    /// The peer does not know the lane: it speaks another version.
    #[error("the peer does not speak this protocol")]
    Unsupported,
    /// The connection broke while the stream was negotiated.
    #[error("the stream broke while it was opened")]
    Io(#[source] std::io::Error),
}

type Request = (Lane, oneshot::Sender<Result<Stream, OpenError>>);

impl StreamOpener {
    /// Opens a stream.
    ///
    /// The peer hears of it with the first bytes that are flushed, not before. A peer that refuses it lets the first
    /// read fail.
    ///
    /// # Cancel safety
    ///
    /// A stream that nobody waits for any more is reset; the peer saw no bytes of it.
    pub(crate) async fn open(&self, lane: Lane) -> Result<Stream, OpenError> {
        let (reply, answer) = oneshot::channel();
        self.0.send((lane, reply)).await.map_err(|_| OpenError::Closed)?;
        answer.await.unwrap_or(Err(OpenError::Closed))
    }
}

impl Streams {
    fn prepare(&mut self, connection: ConnectionId) -> Handler {
        let (opener, requests) = mpsc::channel(MAX_OPENING);
        let (accepted, incoming) = mpsc::channel(MAX_WAITING);
        self.prepared.insert(connection, ConnectionStreams { opener: StreamOpener(opener), incoming });
        Handler { requests, opening: 0, accepted }
    }
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = Connection;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.prepare(connection))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        _peer: PeerId,
        _address: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.prepare(connection))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                let connection = established.connection_id;
                if let Some(streams) = self.prepared.remove(&connection) {
                    self.established.push_back(Connection { peer: established.peer_id, connection, streams });
                }
            }
            FromSwarm::ListenFailure(failure) => drop(self.prepared.remove(&failure.connection_id)),
            FromSwarm::DialFailure(failure) => drop(self.prepared.remove(&failure.connection_id)),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Connection, THandlerInEvent<Self>>> {
        match self.established.pop_front() {
            Some(connection) => Poll::Ready(ToSwarm::GenerateEvent(connection)),
            None => Poll::Pending, // the swarm polls again after each event that it gave us
        }
    }
}

/// The part that lives in the connection's task.
#[derive(Debug)]
pub(crate) struct Handler {
    requests: mpsc::Receiver<Request>,
    /// Requests that are being negotiated.
    opening: usize,
    accepted: mpsc::Sender<(Lane, Box<Stream>)>,
}

impl Handler {
    fn hand_over(&self, lane: Lane, stream: Stream) {
        if self.accepted.try_send((lane, Box::new(stream))).is_err() {
            debug!(?lane, "inbound stream refused: nobody accepts the ones before it");
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = AnyLane;
    type OutboundProtocol = Lane;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Result<Stream, OpenError>>;

    fn listen_protocol(&self) -> SubstreamProtocol<AnyLane> {
        SubstreamProtocol::new(AnyLane, ())
    }

    fn connection_keep_alive(&self) -> bool {
        !self.requests.is_closed()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Lane, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        // At the limit no waker is left behind; none is needed, because the connection polls again after each outcome.
        while self.opening < MAX_OPENING {
            match self.requests.poll_recv(cx) {
                Poll::Ready(Some((_, reply))) if reply.is_closed() => {}
                Poll::Ready(Some((lane, reply))) => {
                    self.opening += 1;
                    let protocol = SubstreamProtocol::new(lane, reply).with_timeout(OPEN_TIMEOUT);
                    return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, AnyLane, Lane, Self::InboundOpenInfo, Self::OutboundOpenInfo>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: (lane, stream), .. }) => {
                self.hand_over(lane, stream);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info: reply }) => {
                self.opening -= 1;
                drop(reply.send(Ok(protocol))); // who asked may have gone
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: reply, error }) => {
                self.opening -= 1;
                drop(reply.send(Err(error.into())));
            }
            _ => {}
        }
    }
}

impl From<StreamUpgradeError<Infallible>> for OpenError {
    fn from(error: StreamUpgradeError<Infallible>) -> Self {
        match error {
            StreamUpgradeError::Timeout => Self::TimedOut,
            StreamUpgradeError::NegotiationFailed => Self::Unsupported,
            StreamUpgradeError::Io(error) => Self::Io(error),
            StreamUpgradeError::Apply(never) => match never {},
        }
    }
}

impl AsRef<str> for Lane {
    fn as_ref(&self) -> &str {
        match self {
            Self::Control => "/meshd/control/1",
            Self::Data => "/meshd/data/1",
        }
    }
}

impl UpgradeInfo for Lane {
    type Info = Self;
    type InfoIter = iter::Once<Self>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(*self)
    }
}

impl OutboundUpgrade<Stream> for Lane {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: Self) -> Self::Future {
        ready(Ok(stream))
    }
}

/// What we accept: a stream of either lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnyLane;

impl UpgradeInfo for AnyLane {
    type Info = Lane;
    type InfoIter = array::IntoIter<Lane, 2>;

    fn protocol_info(&self) -> Self::InfoIter {
        [Lane::Control, Lane::Data].into_iter()
    }
}

impl InboundUpgrade<Stream> for AnyLane {
    type Output = (Lane, Stream);
    type Error = Infallible;
    type Future = Ready<Result<(Lane, Stream), Infallible>>;

    fn upgrade_inbound(self, stream: Stream, lane: Lane) -> Self::Future {
        ready(Ok((lane, stream)))
    }
}

/// Streams of one connection being opened at once; further requests wait. A link needs two.
const MAX_OPENING: usize = 8;
/// Streams of one connection that a peer opened and nobody accepted yet; further ones are reset. A link needs two, and two
/// more while it is replaced.
const MAX_WAITING: usize = 8;
/// Time for opening a stream, which costs no round trip: only a connection that is stuck takes this long.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures::future::{join_all, select_all};
    use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
    use libp2p::Swarm;
    use libp2p::swarm::SwarmEvent;
    use tokio::time::timeout;

    use super::*;
    use crate::net::transport::kit;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn swarm() -> Swarm<Streams> {
        kit::swarm(kit::keys(&[1]), |_| Streams::default())
    }

    async fn connection(swarm: &mut Swarm<Streams>) -> Connection {
        loop {
            if let SwarmEvent::Behaviour(connection) = swarm.select_next_some().await {
                return connection;
            }
        }
    }

    /// Two connected swarms, each driven by a task until the returned swarm tasks are dropped.
    async fn pair() -> (Connection, Connection, tokio::task::JoinSet<()>) {
        let (mut a, mut b) = (swarm(), swarm());
        let address = kit::listen(&mut a).await;
        b.dial(address).unwrap();
        let (to_b, to_a) = futures::join!(connection(&mut a), connection(&mut b));
        let mut tasks = tokio::task::JoinSet::new();
        for mut swarm in [a, b] {
            tasks.spawn(async move {
                loop {
                    swarm.select_next_some().await;
                }
            });
        }
        (to_b, to_a, tasks)
    }

    #[tokio::test]
    async fn thirty_peers_open_streams_at_once_and_none_is_lost() {
        const PEERS: u8 = 30;
        let mut hub = swarm();
        let address = kit::listen(&mut hub).await;
        let mut peers = tokio::task::JoinSet::new();
        for peer in 0..PEERS {
            let address = address.clone();
            peers.spawn(async move {
                let mut swarm = swarm();
                swarm.dial(address).unwrap();
                let streams = connection(&mut swarm).await.streams;
                let open = join_all([Lane::Control, Lane::Data].map(async |lane| {
                    let mut stream = streams.opener.open(lane).await.unwrap();
                    stream.write_all(&[peer]).await.unwrap();
                    stream.flush().await.unwrap();
                    stream
                }));
                let _streams = tokio::select! {
                    streams = open => streams,
                    never = async { loop { swarm.select_next_some().await; } } => never,
                };
                loop {
                    swarm.select_next_some().await;
                }
            });
        }
        let (heard, mut all) = mpsc::channel(2 * usize::from(PEERS));
        let collect = async {
            loop {
                let mut streams = connection(&mut hub).await.streams;
                let heard = heard.clone();
                tokio::spawn(async move {
                    while let Some((lane, mut stream)) = streams.incoming.recv().await {
                        let mut peer = [0];
                        stream.read_exact(&mut peer).await.unwrap();
                        heard.send((peer[0], lane.as_ref().to_owned())).await.unwrap();
                    }
                });
            }
        };
        let count = async {
            let mut seen = BTreeSet::new();
            while seen.len() < 2 * usize::from(PEERS) {
                seen.insert(all.recv().await.unwrap());
            }
        };
        tokio::select! {
            () = collect => {}
            counted = timeout(DEADLINE, count) => counted.expect("every stream arrives"),
        }
    }

    #[tokio::test]
    async fn what_nobody_accepts_is_refused_beyond_the_limit_only() {
        let (mut to_b, to_a, _tasks) = pair().await;
        let mut streams = Vec::new();
        for _ in 0..=MAX_WAITING {
            let mut stream = to_a.streams.opener.open(Lane::Data).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            stream.flush().await.unwrap();
            streams.push(Box::pin(async move { stream.read(&mut [0]).await }));
        }
        let (refused, _, _waiting) = timeout(DEADLINE, select_all(streams)).await.unwrap();
        assert!(matches!(refused, Ok(0) | Err(_)), "{refused:?}");
        for _ in 0..MAX_WAITING {
            timeout(DEADLINE, to_b.streams.incoming.recv()).await.unwrap().unwrap();
        }
        assert!(to_b.streams.incoming.try_recv().is_err());
    }

    #[tokio::test]
    async fn more_openers_than_places_all_get_their_stream() {
        let (mut to_b, to_a, _tasks) = pair().await;
        let opened = join_all((0..100).map(|_| to_a.streams.opener.open(Lane::Control)));
        assert!(timeout(DEADLINE, opened).await.unwrap().iter().all(Result::is_ok));
        assert!(to_b.streams.incoming.try_recv().is_err()); // nothing was written: the peer knows of none
    }

    #[tokio::test]
    async fn a_closed_connection_ends_both_directions() {
        let (mut a, mut b) = (swarm(), swarm());
        let address = kit::listen(&mut a).await;
        b.dial(address).unwrap();
        let (to_b, to_a) = futures::join!(connection(&mut a), connection(&mut b));
        let (mut streams, opener) = (to_a.streams, to_b.streams.opener.clone());
        b.disconnect_peer_id(to_a.peer).unwrap();
        let drive = async {
            loop {
                tokio::select! {
                    _ = a.select_next_some() => {}
                    _ = b.select_next_some() => {}
                }
            }
        };
        let ends = async {
            assert!(streams.incoming.recv().await.is_none());
            assert!(matches!(streams.opener.open(Lane::Data).await, Err(OpenError::Closed)));
            while opener.open(Lane::Data).await.is_ok() {} // until the other side noticed, too
        };
        tokio::select! {
            () = drive => {}
            ended = timeout(DEADLINE, ends) => ended.expect("both directions end"),
        }
    }
}
