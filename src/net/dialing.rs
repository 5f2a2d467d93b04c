//! From addresses that somebody told of to dials, and what becomes of them.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::{Duration, SystemTime};

use libp2p::core::upgrade::NegotiationError;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use libp2p::{Multiaddr, noise};
use tracing::{debug, info, warn};

use super::actor::Actor;
use super::dialer::DialFailure;
use super::discovery::local::SameHost;
use super::discovery::{Found, Source, cache, ip_of};
use super::peer_id::to_libp2p;
use super::proof::{ProofError, below, is_wrong_key};
use crate::mesh::What;

impl Actor {
    pub(super) fn found(&mut self, found: Found) {
        if found.source != Source::Member
            && let Some(peer) = found.peer.filter(|peer| *peer != self.me)
        {
            self.discovery.heard(found.source, peer, SystemTime::now());
        }
        self.dialer.found(found, self.now);
    }

    pub(super) fn scan(&mut self) {
        self.next_scan = self.now + SCAN_EVERY;
        let found = self.same_host.as_mut().map(SameHost::scan).unwrap_or_default();
        found.into_iter().for_each(|found| self.found(found));
    }

    pub(super) fn load_cache(&mut self) {
        let Some(path) = self.config.folder.as_deref().map(|folder| folder.join(CACHE)).filter(|_| self.config.cache)
        else {
            return self.discovery.set_state(Source::Cache, "off");
        };
        match cache::load(&path) {
            Ok(addresses) if addresses.is_empty() => {}
            Ok(addresses) => self.found(Found { peer: None, addresses, source: Source::Cache, started: 0 }),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => self.discovery.set_state(Source::Cache, error.to_string()),
        }
    }

    pub(super) fn save_cache(&mut self) {
        let Some(path) = self.config.folder.as_deref().map(|folder| folder.join(CACHE)).filter(|_| self.config.cache)
        else {
            return;
        };
        let addresses: Vec<Multiaddr> = self
            .engine
            .view()
            .iter()
            .filter(|(_, linked)| *linked)
            .flat_map(|(signed, _)| signed.record().addresses.iter().filter_map(|text| text.parse().ok()).take(2))
            .collect();
        // An empty list is the truth of this moment only: the last one that had somebody is worth more.
        if !addresses.is_empty()
            && let Err(error) = cache::save(&path, addresses)
        {
            debug!(%error, "cannot keep the peers' addresses");
        }
    }

    pub(super) fn dial(&mut self) {
        for dial in self.dialer.next(self.now, &mut self.rng) {
            let addresses = dial.addresses.clone();
            // A port of its own for each dial: with a shared one, two peers that dial each other at once end in a
            // simultaneous TCP open, where both are initiators.
            let opts = match dial.peer {
                Some(peer) => DialOpts::peer_id(to_libp2p(peer))
                    .condition(PeerCondition::Disconnected)
                    .addresses(addresses)
                    .allocate_new_port()
                    .build(),
                None => match addresses.into_iter().next() {
                    Some(address) => DialOpts::unknown_peer_id().address(address).allocate_new_port().build(),
                    None => continue,
                },
            };
            let connection = opts.connection_id();
            debug!(peer = ?dial.peer, addresses = ?dial.addresses, "dialling");
            self.dials.insert(connection, dial);
            if let Err(error) = self.swarm.dial(opts) {
                self.on_dial_error(connection, &error);
            }
        }
    }

    pub(super) fn on_dial_error(&mut self, connection: ConnectionId, error: &DialError) {
        let Some(dial) = self.dials.remove(&connection) else { return };
        debug!(peer = ?dial.peer, error = error as &dyn Error, "dial failed");
        let each = |failure| dial.addresses.iter().map(|address| (address.clone(), failure)).collect::<Vec<_>>();
        let failures = match error {
            DialError::Transport(errors) => {
                errors.iter().map(|(address, error)| (address.clone(), failure_of(error))).collect()
            }
            DialError::WrongPeerId { .. } => each(DialFailure::WrongPeer),
            DialError::LocalPeerId { .. } => each(DialFailure::Myself),
            _ => Vec::new(),
        };
        if failures.iter().any(|(_, failure)| *failure == DialFailure::WrongKey) {
            self.refused += 1;
        }
        // A process that ended, or another one at its address: what was under way with it waits for nothing.
        let ended = match error {
            // One address of several may be another machine's from here.
            DialError::Transport(errors) => !errors.is_empty() && errors.iter().all(|(_, error)| is_refused(error)),
            DialError::WrongPeerId { .. } => true,
            _ => false,
        };
        if let Some(peer) = dial.peer.filter(|_| ended) {
            self.gone(peer);
        }
        for address in self.dialer.failed(&dial, &failures, self.now, &mut self.rng) {
            self.foreign(&address);
        }
    }

    /// Tells of an address of another mesh, once.
    pub(super) fn foreign(&mut self, address: &Multiaddr) {
        let place = ip_of(address).map_or_else(|| address.to_string(), |ip| ip.to_string());
        if self.foreign_seen.len() < MAX_FOREIGN_SEEN && self.foreign_seen.insert(place.clone()) {
            if self.engine.view().linked().next().is_none() {
                // Perhaps it is not them who are foreign.
                warn!(
                    address = place,
                    "a peer there holds another network key: if this mesh's key was rotated, this \
                    machine needs a new ticket (`meshd invite` on a member, `meshd join` here)"
                );
            } else {
                info!(address = place, "a peer there holds another network key: it is left alone");
            }
            self.happened(What::Foreign { address: place });
        }
    }
}

/// What a connection that failed says of who is there.
///
/// Whoever is not reached, or leaves in the middle, says nothing: only a clear answer that no peer gives counts against an
/// address.
pub(super) fn failure_of(error: &(dyn Error + 'static)) -> DialFailure {
    if is_wrong_key(error) {
        return DialFailure::WrongKey;
    }
    let mut failure = DialFailure::Unreachable;
    for error in std::iter::successors(Some(error), |error| below(*error)) {
        // `NegotiationError::Failed` is what a connection that is closed at once looks like: by a peer that dies, or by
        // one at whose door is a crowd.
        if matches!(error.downcast_ref(), Some(NegotiationError::ProtocolError(_))) || error.is::<ProofError>() {
            failure = DialFailure::Handshake;
        }
        let io = match error.downcast_ref() {
            Some(ProofError::Noise(noise::Error::Io(io))) => Some(io), // which its `source` does not give
            _ => error.downcast_ref::<io::Error>(),
        };
        match io.map(io::Error::kind) {
            None | Some(ErrorKind::Other | ErrorKind::InvalidData | ErrorKind::InvalidInput) => {}
            Some(_) => return DialFailure::Unreachable,
        }
    }
    failure
}

/// Whether the machine answered that nobody listens there.
fn is_refused(error: &(dyn Error + 'static)) -> bool {
    let refused = |error: &io::Error| error.kind() == ErrorKind::ConnectionRefused;
    std::iter::successors(Some(error), |error| below(*error)).any(|error| error.downcast_ref().is_some_and(refused))
}

/// File in the mesh's folder that keeps the addresses of the last run.
const CACHE: &str = "peers";
/// Time between looks at the runtime directory. Who joins dials at once, so this only repairs.
const SCAN_EVERY: Duration = Duration::from_secs(2);
/// Most addresses of other meshes that are told of; more are only counted.
const MAX_FOREIGN_SEEN: usize = 1024;

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use libp2p::swarm::{Swarm, SwarmEvent, dummy};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::super::transport::kit;
    use super::*;

    /// What a dial to that address says of who is there.
    async fn dialled(address: Multiaddr) -> DialFailure {
        let mut swarm: Swarm<dummy::Behaviour> = kit::swarm(kit::keys(&[1]), |_| dummy::Behaviour);
        swarm.dial(address).unwrap();
        loop {
            if let SwarmEvent::OutgoingConnectionError { error: DialError::Transport(errors), .. } =
                swarm.select_next_some().await
            {
                return failure_of(&errors[0].1);
            }
        }
    }

    /// Written with an address and with a name.
    fn addresses(listener: &TcpListener) -> [Multiaddr; 2] {
        let port = listener.local_addr().unwrap().port();
        ["/ip4/127.0.0.1", "/dns4/localhost"].map(|host| format!("{host}/tcp/{port}").parse().unwrap())
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_unreachable() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = addresses(&listener);
        drop(listener);
        for address in addresses {
            assert_eq!(dialled(address).await, DialFailure::Unreachable);
        }
        assert_eq!(dialled("/dns4/no..where/tcp/1".parse().unwrap()).await, DialFailure::Unreachable);
    }

    #[tokio::test]
    async fn a_program_of_another_kind_is_told_from_a_peer_that_dies() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let [there, named] = addresses(&listener);
        let text = format!("HTTP/1.1 400 Bad Request\r\n\r\n{}", "and more ".repeat(30));
        let answer = async {
            let (mut web, _) = listener.accept().await.unwrap();
            web.write_all(text.as_bytes()).await.unwrap();
            web
        };
        let (_web, failure) = tokio::join!(answer, dialled(named));
        assert_eq!(failure, DialFailure::Handshake);
        let die = async { drop(listener.accept().await.unwrap()) };
        let ((), failure) = tokio::join!(die, dialled(there));
        assert_eq!(failure, DialFailure::Unreachable);
    }
}
