//! Which connection carries the link to each peer, from the first handshake to what is left when it is lost.
//!
//! Two peers may dial each other at once. The one of the lower id decides: it greets on the first connection that stands
//! and closes the others. A connection that comes later replaces the first only if that has stood for a while: then the
//! other side has lost it, and this side does not know yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use libp2p::Multiaddr;
use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

use super::actor::Actor;
use super::discovery::{Source, without_peer};
use super::inlet::Inlet;
use super::link::{Link, Remains};
use super::peer_id::{from_libp2p, to_libp2p};
use super::session::{self, ControlSender, Ended, SessionEvent, Start, Vitals};
use super::streams::{self, ConnectionStreams};
use crate::keys::KeyId;
use crate::mesh::engine::{Known, Say};
use crate::mesh::{DownReason, LinkKind, PeerId, SignedRecord, What};
use crate::wire::message::{Control, Received, WireRecord, read_record};

/// One connection with a member.
pub(super) struct Connection {
    pub(super) peer: PeerId,
    pub(super) address: Multiaddr,
    dialed: bool,
    since: Instant,
    pub(super) admitted_by: Option<KeyId>,
    pub(super) vitals: Arc<Vitals>,
    session: Option<AbortHandle>,
    /// Set once both sides greeted.
    pub(super) up: Option<Up>,
}

/// A connection that carries the link.
pub(super) struct Up {
    link: Link,
    control: ControlSender,
    /// What carries our frames.
    pub(super) kind: LinkKind,
    /// How often the peer's network key was rotated, as far as it told.
    pub(super) key_epoch: u64,
}

/// What is kept of a peer from one connection to the next.
#[derive(Default)]
pub(super) struct Remote {
    inlet: Arc<Inlet>,
    /// What the last link left undone, until the peer tells how far it had got.
    remains: Option<Remains>,
    /// When the way over a Unix socket last broke; until when it is not taken.
    local_broke: Option<Instant>,
    not_local_until: Option<Instant>,
}

impl Remote {
    /// A link over a Unix socket broke. Once may be an accident; if it breaks again soon, the connection has to do.
    fn local_broke(&mut self, now: Instant) {
        let again =
            self.local_broke.replace(now).is_some_and(|before| now.saturating_duration_since(before) < NOT_LOCAL);
        if again {
            self.not_local_until = Some(now + NOT_LOCAL);
        }
    }

    fn may_be_local(&self, now: Instant) -> bool {
        self.not_local_until.is_none_or(|until| until <= now)
    }
}

impl Connection {
    /// Whether something that is to be told is not yet.
    pub(super) fn has_to_tell(&self) -> bool {
        self.up.as_ref().is_some_and(|up| !up.control.is_idle())
    }

    pub(super) fn abort(&self) {
        if let Some(session) = &self.session {
            session.abort();
        }
        if let Some(up) = &self.up {
            up.link.close();
        }
    }
}

impl Actor {
    pub(super) fn on_connected(&mut self, peer: libp2p::PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let Some(peer) = from_libp2p(&peer) else { return self.close(id) };
        let address = endpoint.get_remote_address().clone();
        let dial = self.dials.remove(&id);
        if dial.as_ref().is_some_and(|dial| dial.peer.is_none()) {
            let named = self.bootstrap.contains(&without_peer(address.clone()));
            let source = if named { Source::Bootstrap } else { Source::Cache };
            self.discovery.heard(source, peer, SystemTime::now());
        }
        self.dialer.linked(peer, dial.as_ref().map(|dial| (dial, &address)), self.now);
        let admitted_by = self.admitted.latest(&peer);
        debug!(%peer, %address, dialed = endpoint.is_dialer(), "connected");
        let connection = Connection {
            peer,
            address,
            dialed: endpoint.is_dialer(),
            since: self.now,
            admitted_by,
            vitals: Arc::default(),
            session: None,
            up: None,
        };
        self.connections.insert(id, connection);
        if !self.still_accepted(admitted_by) {
            self.close(id);
        }
    }

    /// A connection's streams can be used: the lower id decides whether they are.
    pub(super) fn on_streams(&mut self, streams::Connection { peer, connection, streams }: streams::Connection) {
        let Some(peer) = from_libp2p(&peer) else { return };
        // The swarm reports connections before their behaviours do.
        let Some(new) = self.connections.get(&connection) else { return self.close(connection) };
        if self.leaving.is_some() {
            return self.close(connection);
        }
        let leads = self.me < peer;
        if leads && let Some((old, since)) = self.in_use(peer, connection) {
            if new.dialed || self.now.saturating_duration_since(since) < RACE {
                return self.close(connection);
            }
            debug!(%peer, "the peer dialled anew: its old connection must be dead");
            self.end(old, DownReason::Closed);
        }
        self.start_session(peer, connection, streams, leads);
    }

    /// The connection to the peer that has or will have the link, other than this one.
    fn in_use(&self, peer: PeerId, except: ConnectionId) -> Option<(ConnectionId, Instant)> {
        let used = |(id, connection): &(&ConnectionId, &Connection)| {
            connection.peer == peer && **id != except && connection.session.is_some()
        };
        self.connections.iter().find(used).map(|(id, connection)| (*id, connection.since))
    }

    fn start_session(&mut self, peer: PeerId, id: ConnectionId, streams: ConnectionStreams, leads: bool) {
        /// Epochs only grow in the life of a process, whatever connections come and go.
        static EPOCH: AtomicU64 = AtomicU64::new(1);
        let remote = self.remotes.entry(peer).or_default();
        let inlet = Arc::clone(&remote.inlet);
        let local = self.local_links.clone().filter(|_| remote.may_be_local(self.now));
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let start = Start {
            peer,
            connection: id,
            streams,
            leads,
            record: self.engine.own().bytes().clone(),
            key_epoch: self.config.ring.epoch(),
            inlet,
            epoch: EPOCH.fetch_add(1, Ordering::Relaxed),
            limits: self.config.limits,
            max_message: self.config.max_message,
            vitals: Arc::clone(&connection.vitals),
            clock: self.began,
            edition: self.edition.subscribe(),
            carried: Arc::clone(&self.config.carried),
            local,
            events: self.sessions.clone(),
        };
        connection.session = Some(tokio::spawn(session::run(start)).abort_handle());
    }

    pub(super) fn on_session_event(&mut self, id: ConnectionId, event: SessionEvent) {
        let Some(peer) = self.connections.get(&id).map(|connection| connection.peer) else { return };
        match event {
            SessionEvent::Up { hello, record, link, kind, control } => {
                let up = Up { link, control, kind, key_epoch: hello.key_epoch };
                self.on_up(id, hello.received, record, up);
            }
            SessionEvent::Edition(edition) => self.engine.current_edition(peer, edition),
            SessionEvent::Heard(control) => self.on_control(id, peer, *control),
            SessionEvent::Ended { why, remains } => {
                if remains.is_none() || matches!(why, Ended::Bye(_)) {
                    self.dialer.greeted(peer, false); // dialling again would end the same way
                }
                if let Ended::Local(_) = why {
                    self.remotes.entry(peer).or_default().local_broke(self.now);
                }
                match &why {
                    Ended::Bye(_) | Ended::Version { .. } => warn!(%peer, reason = %why, "the link ended"),
                    why => debug!(%peer, reason = why as &dyn std::error::Error, "the link ended"),
                }
                if let (Some(remains), Some(connection)) = (remains, self.connections.get(&id))
                    && connection.up.is_some()
                {
                    self.remotes.entry(peer).or_default().remains = Some(remains);
                }
                self.end(id, why.reason());
            }
        }
    }

    fn on_up(&mut self, id: ConnectionId, received: Option<Received>, record: SignedRecord, up: Up) {
        let peer = record.peer();
        // The other side decided for this connection.
        let others: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(other, c)| c.peer == peer && **other != id)
            .map(|(other, _)| *other)
            .collect();
        others.into_iter().for_each(|other| self.end(other, DownReason::Closed));
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (link, control) = (up.link.clone(), up.control.clone());
        connection.up = Some(up);
        if self.config.ring.excludes(&record.record().identity) {
            return self.shut_out(id);
        }
        if let Some(remains) = self.remotes.entry(peer).or_default().remains.take() {
            // Whoever read another stream last has read nothing of this one.
            let arrived = received.filter(|received| received.epoch == remains.epoch);
            let in_flight = remains.taken.saturating_sub(arrived.map_or(0, |received| received.messages));
            self.lost_messages(peer, remains.unsent, in_flight, true);
        }
        self.away.remove(&peer);
        self.config.carried.up(peer, &link);
        self.links.insert(peer, link, Some(control));
        let addresses: Vec<Multiaddr> = record.record().addresses.iter().filter_map(|text| text.parse().ok()).collect();
        self.engine.linked(record, self.now);
        self.cache_due.get_or_insert(self.now + CACHE_AFTER_CHANGE);
        if self.config.kad {
            let behaviour = self.swarm.behaviour_mut();
            addresses.into_iter().take(4).for_each(|address| {
                behaviour.kad.add_address(&to_libp2p(peer), address);
            });
            let soon = self.now + KAD_AFTER_CHANGE;
            self.kad_due = Some(self.kad_due.map_or(soon, |due| due.min(soon)));
        }
        self.compare_keys(id);
    }

    fn on_control(&mut self, id: ConnectionId, peer: PeerId, control: Control) {
        match control {
            Control::Digest { known, answer } => {
                let known = known.into_iter().map(Known::from).collect();
                self.engine.heard(peer, Say::Digest { known, answer }, self.now);
            }
            Control::Want(peers) => self.engine.heard(peer, Say::Want(peers), self.now),
            Control::Records(records) => {
                let mut read = Vec::with_capacity(records.len());
                for WireRecord { known, record } in records {
                    // When many join at once, most records come many times; verifying one costs more than all the rest.
                    let known = Known::from(known);
                    if self.engine.knows(known, self.now) {
                        continue;
                    }
                    match read_record(&record) {
                        Ok(signed) => read.push((known.age, signed)),
                        Err(error) => drop(self.bad_record(peer, &error.to_string())),
                    }
                }
                self.engine.heard(peer, Say::Records(read), self.now);
            }
            Control::NewKey(new) => self.on_new_key(id, &new),
            Control::KeyHeld { epoch } => self.on_key_held(id, epoch),
            // Greetings come once, and the rest never leaves the session.
            Control::Hello(_)
            | Control::Beat(_)
            | Control::Echo(_)
            | Control::Pause { .. }
            | Control::Resume { .. }
            | Control::Bye { .. } => {
                debug!(%peer, "a control message out of place");
                self.end(id, DownReason::Closed);
            }
        }
    }

    /// Says something to a peer, if it is linked.
    pub(super) fn tell(&mut self, peer: PeerId, message: &Control) {
        let up = |(id, connection): (&ConnectionId, &Connection)| {
            connection.up.as_ref().filter(|_| connection.peer == peer).map(|up| (*id, up.control.clone()))
        };
        let Some((id, control)) = self.connections.iter().find_map(up) else { return };
        if !control.say(message) {
            info!(%peer, "the peer does not read what it is told: the link is closed");
            self.end(id, DownReason::Silent);
        }
    }

    /// Ends what runs on a connection, and the connection.
    pub(super) fn end(&mut self, id: ConnectionId, why: DownReason) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Some(session) = connection.session.take() {
            session.abort();
        }
        let (peer, up) = (connection.peer, connection.up.take());
        let lasted = self.now.saturating_duration_since(connection.since);
        if up.is_some() && lasted >= STEADY {
            self.dialer.greeted(peer, true);
        }
        if let Some(up) = up {
            let remains = up.link.close();
            let remote = self.remotes.entry(peer).or_default();
            remote.remains.get_or_insert(remains);
            self.counts.links_lost += 1;
            self.links.remove(peer);
            self.swarm.behaviour_mut().kad.remove_peer(&to_libp2p(peer));
            self.engine.lost(peer, why, self.now);
            self.config.carried.down(peer, &up.link);
            self.away.insert(peer, self.now + self.config.resume);
        }
        self.close(id);
    }

    /// What was under way with the peer will not go on.
    pub(super) fn gone(&mut self, peer: PeerId) {
        if self.away.remove(&peer).is_some() {
            self.config.carried.gone(peer);
        }
    }

    fn close(&mut self, id: ConnectionId) {
        self.swarm.close_connection(id);
    }

    pub(super) fn on_disconnected(&mut self, peer: libp2p::PeerId, id: ConnectionId, left: u32) {
        // What it said before it went counts: that it leaves, most of all.
        while let Ok((connection, event)) = self.session_events.try_recv() {
            self.on_session_event(connection, event);
        }
        self.end(id, DownReason::Closed);
        self.connections.remove(&id);
        if let Some(peer) = from_libp2p(&peer)
            && left == 0
        {
            self.dialer.lost(peer, self.now, &mut self.rng);
            let left = self.engine.view().signed(peer).is_some_and(|signed| signed.record().leaving);
            if left {
                self.dialer.forget(peer);
                self.gone(peer);
            }
            if self.engine.view().signed(peer).is_none() {
                self.forget(peer); // it never greeted
            }
        }
    }

    /// Nothing was heard of the peer for long, or it said goodbye: what is kept of it goes.
    pub(super) fn forget(&mut self, peer: PeerId) {
        if self.connections.values().any(|connection| connection.peer == peer) {
            return; // it is coming back: what is kept of it is in use
        }
        self.gone(peer);
        self.config.carried.forgotten(peer);
        if let Some(remains) = self.remotes.remove(&peer).and_then(|remote| remote.remains) {
            self.lost_messages(peer, remains.unsent, remains.taken, false);
        }
    }

    fn lost_messages(&mut self, peer: PeerId, unsent: u64, in_flight: u64, exact: bool) {
        if unsent + in_flight > 0 {
            self.happened(What::MessagesLost { peer, unsent, in_flight, exact });
        }
    }

    /// Says why, and closes the connection of a peer that is not welcome any more.
    pub(super) fn shut_out(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else { return };
        info!(peer = %connection.peer, "shut out by a rotation of the network key");
        let identity = self.engine.view().signed(connection.peer).map(|signed| signed.record().identity);
        let excluded = identity.is_none_or(|identity| self.config.ring.excludes(&identity));
        if let Some(up) = &connection.up {
            let reason = if excluded { EXCLUDED } else { SHUT_OUT };
            up.control.say(&Control::Bye { reason: reason.to_owned() });
        }
        self.dialer.greeted(connection.peer, false);
        self.closing.push((self.now + LAST_WORD, id));
        if let Some(connection) = self.connections.get(&id) {
            let peer = connection.peer;
            self.links.remove(peer);
            self.engine.lost(peer, DownReason::ShutOut, self.now);
            self.config.carried.gone(peer);
        }
    }
}

/// Two connections that stand within this time of each other were dialled at the same time.
const RACE: Duration = Duration::from_secs(4);
/// A link that stood so long was of use.
const STEADY: Duration = Duration::from_secs(10);
/// How long links of a peer whose Unix socket broke twice stay with the connection.
const NOT_LOCAL: Duration = Duration::from_secs(60);
/// What is kept of the peers' addresses for the next start follows changes after this time.
const CACHE_AFTER_CHANGE: Duration = Duration::from_secs(2);
/// After a change, others may still be arriving.
const KAD_AFTER_CHANGE: Duration = Duration::from_secs(1);
/// Time for the reason to reach who is shut out.
const LAST_WORD: Duration = Duration::from_millis(200);
const EXCLUDED: &str = "the identity of this machine was excluded by a rotation (`meshd key rotate --without`): to be let in \
                        again, it needs a new identity (remove the file `identity` in its home) and a new ticket";
const SHUT_OUT: &str = "the network key was rotated without this machine: it needs a new ticket (`meshd invite`)";
