//! From addresses that somebody told of to dials, and what becomes of them.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::{Duration, SystemTime};

use libp2p::Multiaddr;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use tracing::{debug, info};

use super::actor::Actor;
use super::dialer::DialFailure;
use super::discovery::local::SameHost;
use super::discovery::{Found, Source, cache, ip_of};
use super::peer_id::to_libp2p;
use super::proof::is_wrong_key;
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
        let Some(path) = self.config.folder.as_deref().map(|folder| folder.join(CACHE)).filter(|_| self.config.cache) else {
            return self.discovery.set_state(Source::Cache, "off");
        };
        match cache::load(&path) {
            Ok(addresses) if addresses.is_empty() => {}
            Ok(addresses) => self.found(Found { peer: None, addresses, source: Source::Cache, started: 0 }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => self.discovery.set_state(Source::Cache, error.to_string()),
        }
    }

    pub(super) fn save_cache(&mut self) {
        let Some(path) = self.config.folder.as_deref().map(|folder| folder.join(CACHE)).filter(|_| self.config.cache) else {
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
        debug!(peer = ?dial.peer, %error, "dial failed");
        let each = |failure| dial.addresses.iter().map(|address| (address.clone(), failure)).collect::<Vec<_>>();
        let failures = match error {
            DialError::Transport(errors) => errors
                .iter()
                .map(|(address, error)| (address.clone(), failure_of(error)))
                .collect(),
            DialError::WrongPeerId { .. } => each(DialFailure::WrongPeer),
            DialError::LocalPeerId { .. } => each(DialFailure::Myself),
            _ => Vec::new(),
        };
        if failures.iter().any(|(_, failure)| *failure == DialFailure::WrongKey) {
            self.refused += 1;
        }
        for address in self.dialer.failed(&dial, &failures, self.now, &mut self.rng) {
            self.foreign(&address);
        }
    }

    /// Tells of an address of another mesh, once.
    pub(super) fn foreign(&mut self, address: &Multiaddr) {
        let place = ip_of(address).map_or_else(|| address.to_string(), |ip| ip.to_string());
        if self.foreign_seen.len() < MAX_FOREIGN_SEEN && self.foreign_seen.insert(place.clone()) {
            info!(address = place, "a peer there holds another network key: it is left alone");
            self.happened(What::Foreign { address: place });
        }
    }
}

/// What an error of one address says of who is there.
fn failure_of(error: &(dyn Error + 'static)) -> DialFailure {
    if is_wrong_key(error) {
        return DialFailure::WrongKey;
    }
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        match io.map(io::Error::kind) {
            Some(ErrorKind::Other) | None => {}
            Some(ErrorKind::InvalidData | ErrorKind::InvalidInput) => return DialFailure::Handshake,
            Some(_) => return DialFailure::Unreachable,
        }
        next = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    DialFailure::Handshake
}

/// File in the mesh's folder that keeps the addresses of the last run.
const CACHE: &str = "peers";
/// Time between looks at the runtime directory. Who joins dials at once, so this only repairs.
const SCAN_EVERY: Duration = Duration::from_secs(2);
/// Most addresses of other meshes that are told of; more are only counted.
const MAX_FOREIGN_SEEN: usize = 1024;
