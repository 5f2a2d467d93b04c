//! The keys that open the door of one mesh: the current one and its predecessors, and how a rotation spreads.
//!
//! A rotation is a statement, [`NewKey`]. Statements have a total order, so members that hear them in any order, twice or
//! not at all, end with the same current key: a higher epoch wins; of two rotations at the same moment the one that shuts
//! the old key out wins (else whom it shuts out could come back by the other); then the higher key id. Exclusions only add up.

mod store;

use std::collections::BTreeSet;
use std::iter;
use std::mem;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::key::{self, KeyId, NetworkKey, Secrets};
use crate::mesh::{Identity, MeshName};

/// All keys of one mesh that this peer holds, and whom rotations shut out.
#[derive(Clone, Debug)]
pub(crate) struct KeyRing {
    mesh: MeshName,
    epoch: u64,
    current: NetworkKey,
    /// When keys older than the current one cease to hold, in seconds since 1970. `None`: at once, by decree.
    previous_until: Option<u64>,
    /// Newest first, none held longer than the one before it, at most [`MAX_PREVIOUS`].
    previous: Vec<Previous>,
    without: BTreeSet<Identity>,
}

/// A rotation, as one member tells it to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewKey {
    /// How many rotations there have been.
    pub(crate) epoch: u64,
    /// The key from now on.
    #[serde(with = "key::bytes")]
    pub(crate) key: NetworkKey,
    /// Until when older keys hold, in seconds since 1970. `None`: no longer.
    pub(crate) previous_until: Option<u64>,
    /// Whom to shut out: never hand them a key. At most 1024.
    #[serde(deserialize_with = "few")]
    pub(crate) without: Vec<Identity>,
}

/// Why the key was not rotated. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RotateError {
    /// The excluded machine holds the old key, so a grace time would let it fetch the new one.
    #[error("a machine can only be shut out with no grace time: it still holds the old key")]
    ExclusionNeedsNoGrace,
    /// An old key that holds for years is not being replaced.
    #[error("the grace time is at most {} days", max.as_secs() / DAY)]
    GraceTooLong {
        /// The limit.
        max: Duration,
    },
    /// The list of those shut out is full.
    #[error("no more than {max} identities can be shut out of a mesh")]
    TooManyExcluded {
        /// The limit.
        max: usize,
    },
    /// The counter is at its end, which takes malice. Start a new mesh: `meshd key new` and new tickets.
    #[error("the key of this mesh cannot be rotated again")]
    Exhausted,
}

impl RotateError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::ExclusionNeedsNoGrace => "add `--grace 0`: machines that are away then need a new ticket",
            Self::GraceTooLong { .. } => "take a shorter `--grace`",
            Self::TooManyExcluded { .. } | Self::Exhausted => {
                "start a new mesh: `meshd key new`, then `meshd invite` for each machine"
            }
        }
        .to_owned()
    }
}

impl KeyRing {
    /// A ring of one key. `epoch` is 0, or the ticket's that the key came with.
    pub(crate) fn new(mesh: MeshName, key: NetworkKey, epoch: u64) -> Self {
        Self {
            mesh,
            epoch: epoch.min(MAX_EPOCH),
            current: key,
            // Nothing is known of older keys, and nothing decreed.
            previous_until: Some(0),
            previous: Vec::new(),
            without: BTreeSet::new(),
        }
    }

    /// The mesh.
    pub(crate) const fn mesh(&self) -> &MeshName {
        &self.mesh
    }

    /// How often the key was rotated.
    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The newest key.
    pub(crate) const fn current(&self) -> &NetworkKey {
        &self.current
    }

    /// The keys that still open the door besides the current one, newest first, and for how long.
    pub(crate) fn previous(&self, now: SystemTime) -> impl Iterator<Item = (&NetworkKey, Duration)> {
        let now = seconds(now);
        let left = move |previous: &Previous| Duration::from_secs(previous.until.saturating_sub(now));
        self.previous.iter().map(move |previous| (&previous.key, left(previous))).filter(|(_, left)| !left.is_zero())
    }

    /// Whether rotations shut this identity out: it is not to be linked, nor handed a key.
    pub(crate) fn excludes(&self, identity: &Identity) -> bool {
        self.without.contains(identity)
    }

    /// Makes a new key, to be handed to all linked members but `without`. The present one holds for `grace` longer; with
    /// no grace, it and all older ones cease to hold now.
    pub(crate) fn rotate(
        &mut self,
        grace: Duration,
        without: &[Identity],
        now: SystemTime,
    ) -> Result<NewKey, RotateError> {
        if !grace.is_zero() && !without.is_empty() {
            return Err(RotateError::ExclusionNeedsNoGrace);
        }
        if grace > MAX_GRACE {
            return Err(RotateError::GraceTooLong { max: MAX_GRACE });
        }
        let excluded: BTreeSet<_> = self.without.iter().chain(without).copied().collect();
        if excluded.len() > MAX_EXCLUDED {
            return Err(RotateError::TooManyExcluded { max: MAX_EXCLUDED });
        }
        if self.epoch >= MAX_EPOCH {
            return Err(RotateError::Exhausted);
        }
        self.without = excluded;
        self.epoch += 1;
        // Rounded up: a grace of half a second is not none.
        let until = (!grace.is_zero()).then(|| seconds(now).saturating_add(grace.as_secs() + 1));
        self.succeed(NetworkKey::generate(), until, now);
        Ok(self.offer())
    }

    /// Takes over a rotation made elsewhere, if it outranks ours; exclusions in any case. True if anything changed: save
    /// the ring and tell the other members.
    ///
    /// A machine that a losing rotation was to shut out may hold the winning key. It stays excluded by its identity; to be
    /// rid of it for good, rotate once more with no grace time.
    pub(crate) fn adopt(&mut self, new: &NewKey, now: SystemTime) -> bool {
        // A member that counts wildly must not bring the counter to its end, where nobody could rotate any more.
        if new.epoch > MAX_EPOCH.min(self.epoch.saturating_add(MAX_EPOCH_STEP)) {
            return false;
        }
        let mut changed = self.exclude(&new.without);
        let until = new.previous_until.map(|until| until.min(seconds(now).saturating_add(MAX_GRACE.as_secs())));
        if new.key == self.current {
            changed |= self.learn(new.epoch, until);
        } else if self.rank_of(new) > self.rank() {
            self.epoch = new.epoch;
            self.succeed(new.key.clone(), until, now);
            changed = true;
        }
        changed
    }

    /// Whether a rotation is older than ours: who told it is to be told ours.
    pub(crate) fn outranks(&self, other: &NewKey) -> bool {
        other.key != self.current && self.rank() > self.rank_of(other)
    }

    /// What to tell a member that came in by an older key, or told of an older rotation.
    pub(crate) fn offer(&self) -> NewKey {
        NewKey {
            epoch: self.epoch,
            key: self.current.clone(),
            previous_until: self.previous_until,
            without: self.without.iter().copied().collect(),
        }
    }

    /// What opens the door now, newest first: one to three.
    pub(crate) fn accepted(&self, now: SystemTime) -> Vec<Secrets> {
        let previous = self.previous.iter().filter(|previous| seconds(now) < previous.until);
        iter::once(&self.current)
            .chain(previous.map(|previous| &previous.key))
            .map(|key| key.secrets(&self.mesh))
            .collect()
    }

    /// Forgets the keys whose grace time is over. True if there were any: save the ring, and close what came in by them.
    pub(crate) fn expire(&mut self, now: SystemTime) -> bool {
        let before = self.previous.len();
        self.previous.retain(|previous| seconds(now) < previous.until);
        self.previous.len() < before
    }

    /// When [`expire`](Self::expire) has something to do next.
    pub(crate) fn next_expiry(&self) -> Option<SystemTime> {
        let until = self.previous.iter().map(|previous| previous.until).min()?;
        UNIX_EPOCH.checked_add(Duration::from_secs(until))
    }

    /// Puts `key` in the place of the current one, which holds as long as `until`; older ones no longer than that.
    fn succeed(&mut self, key: NetworkKey, until: Option<u64>, now: SystemTime) {
        let old = mem::replace(&mut self.current, key);
        self.previous_until = until;
        self.previous.insert(0, Previous { key: old, until: until.unwrap_or(0) });
        self.limit_previous();
        self.expire(now);
    }

    /// Statements about the same key add up: whoever has it from a file or ticket knows neither epoch nor grace time.
    fn learn(&mut self, epoch: u64, until: Option<u64>) -> bool {
        let known = (self.epoch, self.previous_until);
        if epoch > self.epoch {
            (self.epoch, self.previous_until) = (epoch, until);
        } else if epoch == self.epoch {
            self.previous_until = self.previous_until.zip(until).map(|(ours, theirs)| ours.max(theirs));
        }
        self.limit_previous();
        known != (self.epoch, self.previous_until)
    }

    fn limit_previous(&mut self) {
        let limit = self.previous_until.unwrap_or(0);
        self.previous.iter_mut().for_each(|previous| previous.until = previous.until.min(limit));
        self.previous.retain(|previous| previous.until > 0 && previous.key != self.current);
        self.previous.truncate(MAX_PREVIOUS);
    }

    fn exclude(&mut self, identities: &[Identity]) -> bool {
        let before = self.without.len();
        let room = MAX_EXCLUDED.saturating_sub(before);
        let new: Vec<_> = identities.iter().filter(|identity| !self.excludes(identity)).take(room).copied().collect();
        self.without.extend(new);
        self.without.len() > before
    }

    fn rank(&self) -> Rank {
        (self.epoch, self.previous_until.is_none(), self.current.key_id(&self.mesh))
    }

    fn rank_of(&self, new: &NewKey) -> Rank {
        (new.epoch, new.previous_until.is_none(), new.key.key_id(&self.mesh))
    }
}

/// Which of two rotations wins: epoch, shuts the old key out, key id.
type Rank = (u64, bool, KeyId);

/// A key that still opens the door.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Previous {
    #[serde(with = "store::as_line")]
    key: NetworkKey,
    /// Seconds since 1970. From then on it does not.
    until: u64,
}

/// No more identities than a ring takes. The frame that brings them bounds what is read until then.
fn few<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Identity>, D::Error> {
    let identities = Vec::<Identity>::deserialize(deserializer)?;
    if identities.len() > MAX_EXCLUDED {
        return Err(de::Error::invalid_length(identities.len(), &"at most 1024 identities"));
    }
    Ok(identities)
}

/// Whole seconds since 1970; 0 before that, when every key holds.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).min(MAX_TIME)
}

/// Keys besides the current one: a dialer proves three at most.
const MAX_PREVIOUS: usize = 2;
/// Identities that one mesh shuts out, ever.
const MAX_EXCLUDED: usize = 1024;
const DAY: u64 = 24 * 60 * 60;
/// Longest time that an old key goes on to hold.
const MAX_GRACE: Duration = Duration::from_secs(366 * DAY);
/// Rotations of one mesh, ever. TOML and JSON hold it exactly.
const MAX_EPOCH: u64 = 1 << 53;
/// Rotations that a peer can have missed.
const MAX_EPOCH_STEP: u64 = 1 << 20;
/// Seconds since 1970. TOML has signed integers; so far a clock does not get.
const MAX_TIME: u64 = 1 << 53;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn mesh() -> MeshName {
        MeshName::new("lab").unwrap()
    }

    pub(super) fn key(byte: u8) -> NetworkKey {
        NetworkKey::from_bytes([byte; 32])
    }

    fn ring() -> KeyRing {
        KeyRing::new(mesh(), key(1), 0)
    }

    pub(super) fn identity(number: u16) -> Identity {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        Identity::from_bytes(bytes)
    }

    pub(super) fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    pub(super) fn accepts(ring: &KeyRing, now: SystemTime) -> Vec<KeyId> {
        ring.accepted(now).iter().map(|secrets| secrets.key_id).collect()
    }

    pub(super) fn same(one: &KeyRing, other: &KeyRing) -> bool {
        one.offer() == other.offer()
    }

    pub(super) const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn the_old_key_opens_the_door_until_its_grace_time_ends() {
        let mut ring = ring();
        let old = ring.current().clone();
        let new = ring.rotate(HOUR, &[], at(0)).unwrap();
        assert_eq!((new.epoch, &new.key), (1, ring.current()));
        assert_ne!(*ring.current(), old);
        let both = [new.key.key_id(&mesh()), old.key_id(&mesh())];
        assert_eq!(accepts(&ring, at(0)), both);
        assert_eq!(accepts(&ring, at(3600)), both);
        assert!(!ring.expire(at(3600)));
        let end = ring.next_expiry().unwrap();
        assert_eq!(end, at(3601));
        assert_eq!(accepts(&ring, end), both[..1]);
        assert!(ring.expire(end) && !ring.expire(end));
        assert_eq!(ring.next_expiry(), None);
    }

    #[test]
    fn three_keys_at_most_and_no_older_key_outlives_a_newer_one() {
        let mut ring = ring();
        for epoch in 1..=4 {
            ring.rotate(HOUR * 10, &[], at(epoch)).unwrap();
        }
        assert_eq!(accepts(&ring, at(5)).len(), 3);
        ring.rotate(HOUR, &[], at(5)).unwrap();
        assert_eq!(accepts(&ring, at(3605)).len(), 3);
        assert_eq!(accepts(&ring, at(3606)).len(), 1);
    }

    #[test]
    fn without_grace_all_older_keys_are_shut_out_at_once() {
        let mut ring = ring();
        ring.rotate(HOUR, &[], at(0)).unwrap();
        let mut other = ring.clone();
        let new = ring.rotate(Duration::ZERO, &[identity(1)], at(1)).unwrap();
        assert_eq!(accepts(&ring, at(1)), [new.key.key_id(&mesh())]);
        assert!(ring.excludes(&identity(1)));
        assert!(other.adopt(&new, at(2)));
        assert_eq!(accepts(&other, at(2)), accepts(&ring, at(2)));
        assert!(other.excludes(&identity(1)) && !other.excludes(&identity(2)));
    }

    #[test]
    fn what_cannot_be_rotated_is_refused_and_changes_nothing() {
        let mut ring = ring();
        let before = ring.offer();
        assert_eq!(ring.rotate(HOUR, &[identity(1)], at(0)), Err(RotateError::ExclusionNeedsNoGrace));
        assert!(matches!(ring.rotate(HOUR * 9000, &[], at(0)), Err(RotateError::GraceTooLong { .. })));
        let many: Vec<_> = (0..1025).map(identity).collect();
        assert_eq!(ring.rotate(Duration::ZERO, &many, at(0)), Err(RotateError::TooManyExcluded { max: 1024 }));
        assert_eq!(ring.offer(), before);
        assert!(ring.rotate(Duration::ZERO, &many[..1024], at(0)).is_ok());
        let mut last = KeyRing::new(mesh(), key(1), u64::MAX);
        assert_eq!(last.rotate(HOUR, &[], at(0)), Err(RotateError::Exhausted));
    }

    #[test]
    fn a_rotation_is_adopted_once_and_an_older_one_never() {
        let (mut here, mut there) = (ring(), ring());
        let first = here.rotate(HOUR, &[], at(0)).unwrap();
        let second = here.rotate(HOUR, &[], at(1)).unwrap();
        assert!(there.adopt(&second, at(2)));
        assert!(!there.adopt(&second, at(2)));
        assert!(!there.adopt(&first, at(2)) && there.outranks(&first));
        assert!(!there.outranks(&second) && !here.outranks(&there.offer()));
        assert!(same(&here, &there));
        // The peer that missed the first rotation still lets in whoever missed the second as well.
        assert_eq!(accepts(&there, at(2)), [second.key.key_id(&mesh()), key(1).key_id(&mesh())]);
    }

    #[test]
    fn a_rotation_told_after_its_grace_time_brings_no_old_key() {
        let (mut here, mut there) = (ring(), ring());
        let new = here.rotate(HOUR, &[], at(0)).unwrap();
        assert!(there.adopt(&new, at(4000)));
        assert_eq!(accepts(&there, at(4000)), [new.key.key_id(&mesh())]);
        assert_eq!(there.next_expiry(), None);
    }

    #[test]
    fn of_two_rotations_at_once_the_one_that_shuts_out_wins_on_both_sides() {
        for _ in 0..8 {
            let (mut gentle, mut strict) = (ring(), ring());
            let soft = gentle.rotate(HOUR, &[], at(0)).unwrap();
            let hard = strict.rotate(Duration::ZERO, &[identity(7)], at(0)).unwrap();
            assert!(gentle.adopt(&hard, at(1)) && !strict.adopt(&soft, at(1)));
            assert_eq!(*gentle.current(), hard.key);
            assert_eq!(accepts(&gentle, at(1)).len(), 1);
            assert!(same(&gentle, &strict));
        }
    }

    #[test]
    fn who_joined_by_a_key_alone_learns_epoch_and_grace_time() {
        let mut here = ring();
        let new = here.rotate(HOUR, &[], at(0)).unwrap();
        let mut joined = KeyRing::new(mesh(), new.key.clone(), 0);
        assert!(!here.adopt(&joined.offer(), at(1)));
        assert!(joined.adopt(&new, at(1)) && !joined.adopt(&new, at(1)));
        assert!(same(&here, &joined));
        assert_eq!(accepts(&here, at(1)).len(), 2);
        let mut by_ticket = KeyRing::new(mesh(), new.key.clone(), 1);
        assert!(!here.adopt(&by_ticket.offer(), at(1)));
        assert!(by_ticket.adopt(&new, at(1)));
        assert!(same(&here, &by_ticket));
    }

    #[test]
    fn a_hostile_statement_neither_ends_the_count_nor_grows_the_ring() {
        let mut ring = ring();
        let wild = |epoch, until| NewKey { epoch, key: key(9), previous_until: until, without: Vec::new() };
        assert!(!ring.adopt(&wild(u64::MAX, None), at(0)));
        assert!(!ring.adopt(&wild(MAX_EPOCH, None), at(0)));
        assert!(ring.adopt(&wild(5, Some(u64::MAX)), at(0)));
        assert!(ring.next_expiry().unwrap() <= at(0) + MAX_GRACE);
        for start in [0, 1000, 2000] {
            let new = NewKey { without: (start..start + 1000).map(identity).collect(), ..wild(0, None) };
            ring.adopt(&new, at(0));
        }
        assert_eq!(ring.offer().without.len(), MAX_EXCLUDED);
    }

    proptest! {
        #[test]
        fn members_end_with_one_key_in_whatever_order_they_hear_of_rotations(
            rotations in prop::collection::vec((0..4_usize, any::<bool>(), 0..4_u16), 1..6),
            told in prop::collection::vec((0..4_usize, 0..4_usize), 0..12),
        ) {
            let mut members = [(); 4].map(|()| ring());
            let mut told = told.into_iter();
            for (member, strict, who) in rotations {
                let (grace, without) = if strict { (Duration::ZERO, vec![identity(who)]) } else { (HOUR, vec![]) };
                members[member].rotate(grace, &without, at(0)).unwrap();
                for (from, to) in told.by_ref().take(2) {
                    let offer = members[from].offer();
                    members[to].adopt(&offer, at(1));
                }
            }
            // Everybody tells the next one, around the ring, until nothing changes.
            let mut rounds = 0;
            while (0..4).fold(false, |changed, from| {
                let offer = members[from].offer();
                members[(from + 1) % 4].adopt(&offer, at(2)) || changed
            }) {
                rounds += 1;
                prop_assert!(rounds < 4);
            }
            for member in &members[1..] {
                prop_assert!(same(member, &members[0]));
            }
        }
    }

    #[test]
    fn a_new_key_crosses_the_wire_and_shows_no_key() {
        let new = NewKey { without: vec![identity(1)], previous_until: Some(5), ..ring().offer() };
        let mut bytes = Vec::new();
        ciborium::into_writer(&new, &mut bytes).unwrap();
        // 0x58 0x20: a byte string of 32.
        assert!(bytes.windows(34).any(|window| window[..2] == [0x58, 0x20] && window[2..] == [1; 32]));
        assert_eq!(ciborium::from_reader::<NewKey, _>(&bytes[..]).unwrap(), new);
        let crowd = NewKey { without: (0..1025).map(identity).collect(), ..new.clone() };
        bytes.clear();
        ciborium::into_writer(&crowd, &mut bytes).unwrap();
        assert!(ciborium::from_reader::<NewKey, _>(&bytes[..]).is_err());
        for shown in [format!("{new:?}"), format!("{:?}", ring())] {
            assert!(shown.contains("NetworkKey(…)") && !shown.contains("1, 1, 1"), "{shown}");
        }
    }
}
