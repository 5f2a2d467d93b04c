//! How many connections strangers may have in the making, and members at once.
//!
//! Whoever reaches the port holds a pending slot until the membership proof succeeds, fails or times out. The slots are
//! limited in all and per source address, so that one stranger cannot keep members out.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use libp2p::{Multiaddr, PeerId};
use tracing::debug;

/// Refuses connections above the limits of this file, and counts what it refused.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Inbound connections that have not proven membership yet, with the address that their share is counted for.
    pending: HashMap<ConnectionId, Option<IpAddr>>,
    pending_by_source: HashMap<IpAddr, usize>,
    established: HashMap<PeerId, usize>,
    refused: u64,
}

/// Why the gate refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// [`MAX_PENDING`] inbound connections are being set up.
    #[error("too many connections are being set up")]
    Pending,
    /// [`MAX_PENDING_PER_SOURCE`] of them are from this address.
    #[error("too many connections from this address are being set up")]
    PendingFromSource,
    /// The peer has [`MAX_PER_PEER`] connections already.
    #[error("too many connections to this peer")]
    PerPeer,
}

impl Gate {
    /// How many connections were refused so far.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    fn admit(&mut self, connection: ConnectionId, source: Option<IpAddr>) -> Result<(), Refused> {
        if self.pending.len() >= MAX_PENDING {
            return Err(Refused::Pending);
        }
        if let Some(source) = source {
            let share = self.pending_by_source.entry(source).or_default();
            if *share >= MAX_PENDING_PER_SOURCE {
                return Err(Refused::PendingFromSource);
            }
            *share += 1;
        }
        self.pending.insert(connection, source);
        Ok(())
    }

    fn release(&mut self, connection: ConnectionId) {
        let Some(source) = self.pending.remove(&connection).flatten() else { return };
        if let Some(share) = self.pending_by_source.get_mut(&source) {
            *share -= 1;
            if *share == 0 {
                self.pending_by_source.remove(&source);
            }
        }
    }

    fn check_peer(&mut self, peer: PeerId) -> Result<THandler<Self>, ConnectionDenied> {
        if self.established.get(&peer).is_some_and(|count| *count >= MAX_PER_PEER) {
            return Err(self.refuse(Refused::PerPeer));
        }
        Ok(dummy::ConnectionHandler)
    }

    fn refuse(&mut self, why: Refused) -> ConnectionDenied {
        self.refused += 1;
        ConnectionDenied::new(why)
    }
}

impl NetworkBehaviour for Gate {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.admit(connection, counted_source(remote)).map_err(|why| {
            debug!(%remote, %why, "inbound connection refused");
            self.refuse(why)
        })
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.release(connection);
        self.check_peer(peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _connection: ConnectionId,
        peer: PeerId,
        _address: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check_peer(peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ListenFailure(failure) => self.release(failure.connection_id),
            FromSwarm::ConnectionEstablished(established) => {
                self.established.insert(established.peer_id, established.other_established + 1);
            }
            FromSwarm::ConnectionClosed(closed) if closed.remaining_established == 0 => {
                self.established.remove(&closed.peer_id);
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.established.insert(closed.peer_id, closed.remaining_established);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// The address whose share a connection uses up; `None` for this host, where many peers share one address.
fn counted_source(remote: &Multiaddr) -> Option<IpAddr> {
    let source = match remote.iter().next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip).to_canonical(),
        _ => return None,
    };
    (!source.is_loopback()).then_some(source)
}

/// Inbound connections in the making at once; more are closed at once. Each costs a descriptor for at most the connection
/// timeout, so this is far below the usual limit of 1024 descriptors and far above what members need, who take milliseconds.
const MAX_PENDING: usize = 256;
/// Of these, from one address. A stranger that connects and stays silent holds this many slots, not all.
const MAX_PENDING_PER_SOURCE: usize = 16;
/// Connections to one peer. One is the rule and two happen when both dial; the rest is against abuse only, because a lower
/// limit makes two peers that dial each other refuse each other's connection.
const MAX_PER_PEER: usize = 4;

#[cfg(test)]
mod tests {
    use libp2p::core::ConnectedPoint;
    use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished, ListenFailure};
    use libp2p::swarm::{ConnectionDenied, ListenError};

    use super::*;

    fn knock(gate: &mut Gate, id: usize, from: &str) -> Result<(), Refused> {
        let denied = |denied: ConnectionDenied| denied.downcast().unwrap();
        let (local, remote) = ("/ip4/10.0.0.1/tcp/1".parse().unwrap(), from.parse().unwrap());
        gate.handle_pending_inbound_connection(ConnectionId::new_unchecked(id), &local, &remote).map_err(denied)
    }

    fn fail(gate: &mut Gate, id: usize) {
        let address = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
        gate.on_swarm_event(FromSwarm::ListenFailure(ListenFailure {
            local_addr: &address,
            send_back_addr: &address,
            error: &ListenError::Aborted,
            connection_id: ConnectionId::new_unchecked(id),
            peer_id: None,
        }));
    }

    fn prove(gate: &mut Gate, id: usize, peer: PeerId) -> Result<(), Refused> {
        let address = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
        gate.handle_established_inbound_connection(ConnectionId::new_unchecked(id), peer, &address, &address)
            .map(|_| ())
            .map_err(|denied| denied.downcast().unwrap())
    }

    #[test]
    fn one_address_never_takes_every_slot() {
        let mut gate = Gate::default();
        for id in 0..MAX_PENDING_PER_SOURCE {
            assert_eq!(knock(&mut gate, id, "/ip4/10.0.0.2/tcp/1"), Ok(()));
        }
        assert_eq!(knock(&mut gate, 100, "/ip4/10.0.0.2/tcp/2"), Err(Refused::PendingFromSource));
        assert_eq!(knock(&mut gate, 101, "/ip6/fe80::1/tcp/2"), Ok(()));
        fail(&mut gate, 100); // the swarm reports the refusal too: it frees nobody's slot
        assert_eq!(knock(&mut gate, 102, "/ip4/10.0.0.2/tcp/2"), Err(Refused::PendingFromSource));
        fail(&mut gate, 0);
        assert_eq!(knock(&mut gate, 103, "/ip4/10.0.0.2/tcp/2"), Ok(()));
        assert_eq!(prove(&mut gate, 103, PeerId::random()), Ok(()));
        assert_eq!(knock(&mut gate, 104, "/ip4/10.0.0.2/tcp/2"), Ok(()));
        assert_eq!(gate.refused(), 2);
    }

    #[test]
    fn this_host_shares_the_total_only() {
        let mut gate = Gate::default();
        for id in 0..MAX_PENDING {
            assert_eq!(knock(&mut gate, id, ["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"][id % 2]), Ok(()));
        }
        assert_eq!(knock(&mut gate, 1000, "/ip4/127.0.0.1/tcp/1"), Err(Refused::Pending));
        assert_eq!(knock(&mut gate, 1001, "/ip4/10.0.0.2/tcp/1"), Err(Refused::Pending));
        (0..MAX_PENDING).for_each(|id| fail(&mut gate, id));
        assert!(gate.pending.is_empty() && gate.pending_by_source.is_empty());
    }

    #[test]
    fn a_peer_has_at_most_four_connections() {
        let (mut gate, peer, address) = (Gate::default(), PeerId::random(), Multiaddr::empty());
        let endpoint = ConnectedPoint::Listener { local_addr: address.clone(), send_back_addr: address };
        for id in 0..MAX_PER_PEER {
            assert_eq!(prove(&mut gate, id, peer), Ok(()));
            gate.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id: peer,
                connection_id: ConnectionId::new_unchecked(id),
                endpoint: &endpoint,
                failed_addresses: &[],
                other_established: id,
            }));
        }
        assert_eq!(prove(&mut gate, 9, peer), Err(Refused::PerPeer));
        assert_eq!(prove(&mut gate, 10, PeerId::random()), Ok(()));
        for remaining in (0..MAX_PER_PEER).rev() {
            gate.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id: peer,
                connection_id: ConnectionId::new_unchecked(remaining),
                endpoint: &endpoint,
                cause: None,
                remaining_established: remaining,
            }));
            assert_eq!(prove(&mut gate, 11, peer), Ok(()));
        }
        assert!(gate.established.is_empty());
    }
}
