//! Network keys while the peer runs: rotating, taking a rotation over from others, shutting out who has no key any more.

use std::time::{Duration, Instant, SystemTime};

use libp2p::swarm::ConnectionId;
use tracing::{debug, warn};

use super::actor::{Actor, tags};
use super::command::{RotateRefused, RotationError};
use crate::keys::{KeyId, KeyRing, NewKey, fingerprint};
use crate::mesh::{Identity, KeyInfo, PeerId, What};
use crate::wire::message::Control;

impl Actor {
    pub(super) fn key_info(&self) -> KeyInfo {
        let ring = &self.config.ring;
        let now = SystemTime::now();
        let previous = ring.previous(now).map(|(key, left)| (key.fingerprint(ring.mesh()), left.as_secs())).collect();
        KeyInfo { fingerprint: ring.current().fingerprint(ring.mesh()), epoch: ring.epoch(), previous }
    }

    pub(super) fn rotate(&mut self, grace: Duration, without: &[Identity]) -> Result<KeyInfo, RotationError> {
        if grace.is_zero() && without.contains(&self.config.identity.identity()) {
            return Err(RotationError::Oneself);
        }
        let new = self.config.ring.rotate(grace, without, SystemTime::now()).map_err(RotateRefused::from)?;
        if let Some(folder) = &self.config.folder {
            self.config.ring.save(folder)?;
        }
        self.keys_changed(&new, None);
        Ok(self.key_info())
    }

    /// Reads the keys from the home again: after `meshd join`, or by hand.
    pub(super) fn reload_keys(&mut self) -> Result<(), RotationError> {
        let folder = self.config.folder.as_ref().ok_or(RotationError::NoHome)?;
        if let Some(ring) = KeyRing::load(folder, &self.config.mesh)? {
            self.config.ring = ring;
            self.apply_keys();
        }
        Ok(())
    }

    /// A member hands over a key.
    pub(super) fn on_new_key(&mut self, id: ConnectionId, new: &NewKey) {
        let Some(peer) = self.connections.get(&id).map(|connection| connection.peer) else { return };
        if self.config.ring.adopt(new, SystemTime::now()) {
            if let Some(folder) = &self.config.folder
                && let Err(error) = self.config.ring.save(folder)
            {
                warn!(%error, "the new network key holds until the next start only: it cannot be stored");
            }
            let offer = self.config.ring.offer();
            self.on_key_held(id, new.epoch);
            self.keys_changed(&offer, Some(id));
        } else if self.config.ring.outranks(new) {
            self.tell(peer, &Control::NewKey(self.config.ring.offer()));
        }
        self.tell(peer, &Control::KeyHeld { epoch: self.config.ring.epoch() });
    }

    pub(super) fn on_key_held(&mut self, id: ConnectionId, epoch: u64) {
        if let Some(up) = self.connections.get_mut(&id).and_then(|connection| connection.up.as_mut()) {
            up.key_epoch = epoch;
        }
    }

    /// Two peers just greeted: the one with the older key is given the newer.
    pub(super) fn compare_keys(&mut self, id: ConnectionId) {
        let ring = &self.config.ring;
        let Some(connection) = self.connections.get(&id) else { return };
        let Some(up) = &connection.up else { return };
        let current = ring.current().key_id(ring.mesh());
        if up.key_epoch < ring.epoch() || (up.key_epoch == ring.epoch() && connection.admitted_by != Some(current)) {
            let peer = connection.peer;
            self.tell(peer, &Control::NewKey(ring.offer()));
        }
    }

    /// Passes a key on to all but whom it came from, and to nobody who is excluded.
    fn keys_changed(&mut self, new: &NewKey, from: Option<ConnectionId>) {
        self.apply_keys();
        let mut excluded = Vec::new();
        let mut others: Vec<PeerId> = Vec::new();
        for (id, connection) in &self.connections {
            if connection.up.is_none() {
                continue;
            }
            let identity = self.engine.view().signed(connection.peer).map(|signed| signed.record().identity);
            if identity.is_some_and(|identity| self.config.ring.excludes(&identity)) {
                excluded.push(*id);
            } else if Some(*id) != from {
                others.push(connection.peer); // who has it says so, and no more
            }
        }
        excluded.into_iter().for_each(|id| self.shut_out(id));
        others.into_iter().for_each(|peer| self.tell(peer, &Control::NewKey(new.clone())));
        self.shut_out_at = Some(self.now + CONFIRM);
        self.happened(What::KeyRotated { epoch: self.config.ring.epoch() });
    }

    /// Lets the door, multicast and the runtime directory know which keys hold now.
    fn apply_keys(&mut self) {
        let now = SystemTime::now();
        self.accepted.set(self.config.ring.accepted(now));
        self.dialer.forgive();
        let tags = tags(&self.config.ring, now);
        if let Some(same_host) = &mut self.same_host
            && let Err(error) = same_host.set_tags(&tags)
        {
            warn!(%error, "peers of this host may not find this one");
        }
        if let Some(mdns) = &self.mdns {
            mdns.set_tags(tags);
        }
    }

    /// Whether a key still opens the door.
    pub(super) fn still_accepted(&self, key: Option<KeyId>) -> bool {
        key.is_some_and(|key| self.accepted.get().iter().any(|secrets| secrets.key_id == key))
    }

    /// When a previous key's grace time ends.
    pub(super) fn next_key_expiry(&self) -> Option<Instant> {
        let at = self.config.ring.next_expiry()?;
        Some(self.now + at.duration_since(SystemTime::now()).unwrap_or_default())
    }

    pub(super) fn on_key_timers(&mut self) {
        let now = SystemTime::now();
        if self.config.ring.next_expiry().is_some_and(|at| at <= now) && self.config.ring.expire(now) {
            if let Some(folder) = &self.config.folder
                && let Err(error) = self.config.ring.save(folder)
            {
                warn!(%error, "cannot store that a previous network key has expired");
            }
            self.apply_keys();
            self.shut_out_at = Some(self.now);
        }
        if self.shut_out_at.is_some_and(|at| self.now >= at) {
            self.shut_out_at = None;
            let epoch = self.config.ring.epoch();
            let holds = |key_epoch: u64, admitted: Option<KeyId>| key_epoch >= epoch || self.still_accepted(admitted);
            let without: Vec<ConnectionId> = self
                .connections
                .iter()
                .filter(|(_, c)| c.up.as_ref().is_some_and(|up| !holds(up.key_epoch, c.admitted_by)))
                .map(|(id, _)| *id)
                .collect();
            for id in without {
                if let Some(key) = self.connections.get(&id).and_then(|connection| connection.admitted_by) {
                    debug!(key = fingerprint(&key), "came in by a key that does not hold any more");
                }
                self.shut_out(id);
            }
        }
        let (due, later) = std::mem::take(&mut self.closing).into_iter().partition(|(at, _)| *at <= self.now);
        self.closing = later;
        let due: Vec<(Instant, ConnectionId)> = due;
        due.into_iter().for_each(|(_, id)| self.end(id, crate::mesh::DownReason::ShutOut));
    }
}

/// Time for peers to confirm a new key before a rotation without grace shuts them out.
const CONFIRM: Duration = Duration::from_secs(5);
