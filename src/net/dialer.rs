//! Whom to dial, where and when: a table of known addresses, backoff, and marks on addresses of other meshes.
//!
//! Pure: time and chance are arguments, and what comes out is a list of dials. After any call, ask [`Dialer::next`] for
//! dials that are due and [`Dialer::deadline`] for when to ask again.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use rand::{Rng, RngExt};

use super::discovery::{Found, Source, ip_of, is_dialable, without_peer};
use crate::mesh::PeerId;

/// The connection policy of one peer.
#[derive(Debug)]
pub(crate) struct Dialer {
    me: PeerId,
    started: u64,
    config: DialerConfig,
    peers: HashMap<PeerId, Known>,
    /// Addresses without a name: bootstrap and cache.
    places: HashMap<Multiaddr, Place>,
    marks: HashMap<Multiaddr, Mark>,
    under_way: HashSet<Target>,
}

/// How eagerly to dial.
#[derive(Clone, Debug)]
pub(crate) struct DialerConfig {
    /// Dials under way at once. More joins a large mesh sooner, at a file descriptor and a handshake each.
    pub(crate) concurrent: usize,
    /// How long the peer that started first leaves the dial to the other. Longer makes double connections rarer, and
    /// joins later where only one side can dial.
    pub(crate) courtesy: Duration,
    /// A peer that nobody has heard of for so long, and that does not answer, is forgotten.
    pub(crate) give_up: Duration,
}

/// One dial to start. Hand it back to [`Dialer::linked`] or [`Dialer::failed`]; until then it counts as under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dial {
    /// Who has to answer; `None` if whoever answers is welcome.
    pub(crate) peer: Option<PeerId>,
    /// Where, best first; at least one.
    pub(crate) addresses: Vec<Multiaddr>,
}

/// What went wrong at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialFailure {
    /// Another mesh: the membership proof failed.
    WrongKey,
    /// Another member answered than the one that was sought.
    WrongPeer,
    /// This peer itself answered.
    Myself,
    /// Something answered, but not as a peer does.
    Handshake,
    /// Nobody answered: refused, no route, no time left.
    Unreachable,
}

/// A peer that was heard of or linked.
#[derive(Debug)]
struct Known {
    addresses: Vec<Address>,
    /// Microseconds since the Unix epoch; 0 if unknown.
    started: u64,
    linked: bool,
    /// Last sign that it exists: told of by a source, linked or lost.
    heard: Instant,
    /// A source told of it since it was lost.
    fresh: bool,
    /// Connections in a row that stood but were of no use: another version, a bad greeting.
    useless: u32,
    retry: Retry,
}

#[derive(Debug)]
struct Address {
    address: Multiaddr,
    /// The last link went there.
    proven: bool,
    rank: Rank,
    /// When it was last told of or proven: the oldest goes when there are too many.
    heard: Instant,
}

/// Order of addresses in a dial, after the one that worked last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Loopback, told by a source that knows that the peer is on this host.
    SameHost,
    PrivateV4,
    Other,
    /// Loopback of who knows which host.
    Loopback,
}

/// An address without a name.
#[derive(Debug)]
struct Place {
    /// Bootstrap: tried for as long as no linked peer is there. Otherwise a few attempts are all.
    lasting: bool,
    /// Which linked peer is there.
    used_by: Option<PeerId>,
    retry: Retry,
}

/// When to dial again.
#[derive(Debug)]
struct Retry {
    /// Failures since the last good news.
    attempts: u32,
    due: Instant,
    tried: Option<Instant>,
    lost: Option<Instant>,
}

/// What is remembered of an address that did not answer as a member does.
#[derive(Debug)]
struct Mark {
    strikes: u32,
    /// How long it is left alone; zero while it is only suspected.
    hold: Duration,
    until: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Target {
    Peer(PeerId),
    Place(Multiaddr),
}

impl Default for DialerConfig {
    fn default() -> Self {
        Self { concurrent: 32, courtesy: Duration::from_millis(250), give_up: Duration::from_secs(3600) }
    }
}

impl Dialer {
    /// A dialer for the peer `me`, which started at `started` (microseconds since the Unix epoch).
    pub(crate) fn new(me: PeerId, started: u64, config: DialerConfig) -> Self {
        let (peers, places, marks, under_way) = (HashMap::new(), HashMap::new(), HashMap::new(), HashSet::new());
        Self { me, started, config, peers, places, marks, under_way }
    }

    /// Remembers where a peer may be reached. News of a peer in backoff makes it due.
    pub(crate) fn found(&mut self, found: Found, now: Instant) {
        let addresses: Vec<_> = found.addresses.into_iter().map(without_peer).filter(is_dialable).collect();
        match found.peer {
            Some(peer) if peer == self.me => {}
            Some(peer) => self.found_peer(peer, found.started, found.source, addresses, now),
            None => self.found_places(found.source == Source::Bootstrap, addresses, now),
        }
    }

    /// A connection with this peer stands. `dial` is the dial that led to it and the address that answered, `None` if
    /// the peer came to us. Call it for each connection, also for one that is about to be closed as the second.
    pub(crate) fn linked(&mut self, peer: PeerId, dial: Option<(&Dial, &Multiaddr)>, now: Instant) {
        let known = self.peers.entry(peer).or_insert_with(|| Known::new(now));
        let lost = known.retry.lost.take();
        (known.linked, known.heard, known.retry.attempts) = (true, now, 0);
        if let Some((dial, address)) = dial {
            let address = without_peer(address.clone());
            known.add(address.clone(), Rank::of(&address, Source::Bootstrap), now);
            known.addresses.iter_mut().for_each(|own| own.proven = own.address == address);
            self.marks.remove(&address);
            if let Some(place) = self.places.get_mut(&address) {
                (place.used_by, place.retry.attempts, place.retry.lost) = (Some(peer), 0, None);
            }
            self.under_way.remove(&dial.target());
        }
        // The cache has served its purpose where its addresses lead to peers that are linked.
        let known = &self.peers[&peer];
        self.places
            .retain(|address, place| place.lasting || !known.addresses.iter().any(|own| own.address == *address));
        if let Some(lost) = lost {
            self.hurry_lost_with(lost, now);
        }
        self.make_room();
    }

    /// Both sides greeted: the connection is of use. Or it ended without that, as [`Dialer::lost`] will tell.
    pub(crate) fn greeted(&mut self, peer: PeerId, successfully: bool) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.useless = if successfully { 0 } else { known.useless.saturating_add(1) };
        }
    }

    /// The last connection with this peer is gone.
    pub(crate) fn lost(&mut self, peer: PeerId, now: Instant, rng: &mut impl Rng) {
        for place in self.places.values_mut().filter(|place| place.used_by == Some(peer)) {
            place.used_by = None;
            place.retry.lose(now, rng);
        }
        let courtesy = self.courtesy(peer);
        let Some(known) = self.peers.get_mut(&peer) else { return };
        (known.linked, known.fresh, known.heard) = (false, false, now);
        known.retry.lose(now, rng);
        let hold = match known.useless {
            0 => Duration::ZERO,
            times => RETRY_MIN.saturating_mul(2 << times.min(16)).min(USELESS_MAX),
        };
        known.retry.due += courtesy + hold;
        for place in self.places.values_mut().filter(|place| place.retry.lost == Some(now)) {
            place.retry.due += hold;
        }
        if known.addresses.is_empty() {
            self.peers.remove(&peer); // it came to us and can only come back
        }
    }

    /// A dial led nowhere: what happened at each address that was tried. Returns the addresses that are foreign from
    /// now on and were not before.
    pub(crate) fn failed(
        &mut self,
        dial: &Dial,
        failures: &[(Multiaddr, DialFailure)],
        now: Instant,
        rng: &mut impl Rng,
    ) -> Vec<Multiaddr> {
        self.under_way.remove(&dial.target());
        let mut foreign = Vec::new();
        let mut myself = false;
        for (address, failure) in failures {
            let address = without_peer(address.clone());
            match failure {
                DialFailure::WrongKey => foreign.extend(self.mark(address, true, now)),
                DialFailure::Handshake => foreign.extend(self.mark(address, false, now)),
                DialFailure::WrongPeer | DialFailure::Myself => {
                    myself |= *failure == DialFailure::Myself;
                    if let Some(known) = dial.peer.and_then(|peer| self.peers.get_mut(&peer)) {
                        known.addresses.retain(|known| known.address != address);
                    }
                }
                DialFailure::Unreachable => {}
            }
        }
        match dial.target() {
            Target::Peer(peer) => {
                let courtesy = self.courtesy(peer);
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.retry.fail(now, rng);
                    known.retry.due += courtesy;
                    if known.addresses.is_empty() && !known.linked {
                        self.peers.remove(&peer);
                    }
                }
            }
            Target::Place(address) => {
                if let Some(place) = self.places.get_mut(&address) {
                    place.retry.fail(now, rng);
                    if myself {
                        place.retry.due = now + HOLD_MAX;
                    }
                    if !place.lasting && (myself || place.retry.attempts >= CACHE_ATTEMPTS) {
                        self.places.remove(&address);
                    }
                }
            }
        }
        foreign
    }

    /// Forgets a peer that said goodbye.
    pub(crate) fn forget(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
    }

    /// Takes all foreign marks away: the keys of this peer changed, so strangers may have become members.
    pub(crate) fn forgive(&mut self) {
        self.marks.clear();
    }

    /// The dials that are due, the longest due first. They count as under way from now on.
    pub(crate) fn next(&mut self, now: Instant, rng: &mut impl Rng) -> Vec<Dial> {
        self.give_up(now);
        let due = self.waiting().filter(|(due, _)| *due <= now);
        // After a partition many are due at once: the dice give every peer another order.
        let mut due: Vec<_> = due.map(|(due, target)| (due, rng.next_u32(), target)).collect();
        due.sort_unstable_by_key(|(due, dice, _)| (*due, *dice));
        due.truncate(self.config.concurrent.saturating_sub(self.under_way.len()));
        due.into_iter().map(|(_, _, target)| self.start(target, now)).collect()
    }

    /// When to call [`next`](Self::next) again; `None` if nothing is due before some other call.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        // With all slots in use, the end of a dial is what to wait for.
        let free = self.under_way.len() < self.config.concurrent;
        free.then(|| self.waiting().map(|(due, _)| due).min()).flatten()
    }

    /// The addresses that are known to belong to other meshes.
    pub(crate) fn foreign_addresses(&self) -> impl Iterator<Item = &Multiaddr> {
        self.marks.iter().filter(|(_, mark)| mark.is_foreign()).map(|(address, _)| address)
    }

    fn found_peer(&mut self, peer: PeerId, started: u64, source: Source, addresses: Vec<Multiaddr>, now: Instant) {
        let first = !self.peers.contains_key(&peer);
        if first && addresses.is_empty() {
            return;
        }
        let known = self.peers.entry(peer).or_insert_with(|| Known::new(now));
        known.heard = now;
        if started != 0 {
            known.started = started;
        }
        let mut news = !std::mem::replace(&mut known.fresh, true);
        for address in addresses {
            let rank = Rank::of(&address, source);
            news |= known.add(address, rank, now);
        }
        let courtesy = self.courtesy(peer);
        let retry = &mut self.peers.get_mut(&peer).expect("just added").retry;
        // Even the best news waits a moment after a failure: sources that contradict each other make no storm.
        if first {
            retry.due = now + courtesy;
        } else if news {
            retry.attempts = 0;
            retry.hurry(now + courtesy, RETRY_MIN);
        } else if source == Source::Member {
            retry.hurry(now + courtesy, RESIGHTED);
        }
        self.make_room();
    }

    fn found_places(&mut self, lasting: bool, addresses: Vec<Multiaddr>, now: Instant) {
        for address in addresses {
            if let Some(place) = self.places.get_mut(&address) {
                place.lasting |= lasting;
            } else if self.places.len() < MAX_PLACES {
                self.places.insert(address, Place { lasting, used_by: None, retry: Retry::new(now) });
            }
        }
    }

    /// How long to leave the dial to the other side. The later one to start is the one that knows nobody yet.
    fn courtesy(&self, peer: PeerId) -> Duration {
        let theirs = self.peers.get(&peer).map_or(0, |known| known.started);
        let first = if self.started == 0 || theirs == 0 || self.started == theirs {
            self.me < peer
        } else {
            self.started > theirs
        };
        if first { Duration::ZERO } else { self.config.courtesy }
    }

    /// Peers that were lost together, by one cable or one sleep, mostly come back together.
    fn hurry_lost_with(&mut self, lost: Instant, now: Instant) {
        let together = |other: &Instant| other.max(&lost).duration_since(*other.min(&lost)) < LOST_TOGETHER;
        let peers: Vec<PeerId> =
            self.peers.iter().filter(|(_, k)| k.retry.lost.as_ref().is_some_and(together)).map(|(p, _)| *p).collect();
        for peer in peers {
            let due = now + self.courtesy(peer);
            let retry = &mut self.peers.get_mut(&peer).expect("just listed").retry;
            retry.attempts = 0;
            retry.hurry(due, RETRY_MIN);
        }
    }

    /// What could be dialled and from when on.
    fn waiting(&self) -> impl Iterator<Item = (Instant, Target)> {
        let idle = |target: &Target| !self.under_way.contains(target);
        let peers = self.peers.iter().filter(|(_, known)| !known.linked).filter_map(|(peer, known)| {
            let allowed = known.addresses.iter().map(|own| self.held_until(&own.address)).min()?;
            Some((allowed.map_or(known.retry.due, |until| until.max(known.retry.due)), Target::Peer(*peer)))
        });
        let places = self.places.iter().filter(|(_, place)| place.used_by.is_none()).map(|(address, place)| {
            let due = self.held_until(address).map_or(place.retry.due, |until| until.max(place.retry.due));
            (due, Target::Place(address.clone()))
        });
        peers.chain(places).filter(move |(_, target)| idle(target))
    }

    fn held_until(&self, address: &Multiaddr) -> Option<Instant> {
        self.marks.get(address).filter(|mark| mark.is_foreign()).map(|mark| mark.until)
    }

    fn start(&mut self, target: Target, now: Instant) -> Dial {
        let dial = match &target {
            Target::Peer(peer) => {
                let known = self.peers.get(peer);
                let mut usable: Vec<&Address> = known.iter().flat_map(|known| &known.addresses).collect();
                usable.retain(|own| self.held_until(&own.address).is_none_or(|until| until <= now));
                usable.sort_by_key(|own| (!own.proven, own.rank));
                Dial { peer: Some(*peer), addresses: usable.into_iter().map(|own| own.address.clone()).collect() }
            }
            Target::Place(address) => Dial { peer: None, addresses: vec![address.clone()] },
        };
        let retry = match &target {
            Target::Peer(peer) => self.peers.get_mut(peer).map(|known| &mut known.retry),
            Target::Place(address) => self.places.get_mut(address).map(|place| &mut place.retry),
        };
        if let Some(retry) = retry {
            retry.tried = Some(now);
        }
        self.under_way.insert(target);
        dial
    }

    /// Remembers that an address answered as no member does; tells it if it is foreign from now on.
    fn mark(&mut self, address: Multiaddr, certain: bool, now: Instant) -> Option<Multiaddr> {
        if self.marks.len() >= MAX_MARKS && !self.marks.contains_key(&address) {
            let oldest = self.marks.iter().min_by_key(|(_, mark)| mark.until).map(|(address, _)| address.clone());
            oldest.and_then(|oldest| self.marks.remove(&oldest));
        }
        let mark = self.marks.entry(address.clone()).or_insert(Mark { strikes: 0, hold: Duration::ZERO, until: now });
        let (was_foreign, held) = (mark.is_foreign(), mark.until > now);
        mark.strikes += 1;
        // Two dials at once may bring the same answer: that is one lesson.
        if (certain || was_foreign || mark.strikes >= STRIKES) && !held {
            mark.hold = (mark.hold * 2).clamp(HOLD_MIN, HOLD_MAX);
            mark.until = now + mark.hold;
        }
        (mark.is_foreign() && !was_foreign).then_some(address)
    }

    fn give_up(&mut self, now: Instant) {
        let old = |heard: Instant| now.saturating_duration_since(heard) >= self.config.give_up;
        self.peers
            .retain(|peer, known| known.linked || self.under_way.contains(&Target::Peer(*peer)) || !old(known.heard));
        self.marks.retain(|_, mark| !old(mark.until));
    }

    fn make_room(&mut self) {
        while self.peers.len() > MAX_PEERS {
            let unlinked = self.peers.iter().filter(|(_, known)| !known.linked);
            let Some(oldest) = unlinked.min_by_key(|(_, known)| known.heard).map(|(peer, _)| *peer) else { return };
            self.peers.remove(&oldest);
        }
    }
}

impl Dial {
    fn target(&self) -> Target {
        match (self.peer, self.addresses.first()) {
            (Some(peer), _) => Target::Peer(peer),
            (None, first) => Target::Place(first.cloned().unwrap_or_else(Multiaddr::empty)),
        }
    }
}

impl Known {
    fn new(now: Instant) -> Self {
        let (addresses, retry) = (Vec::new(), Retry::new(now));
        Self { addresses, started: 0, linked: false, heard: now, fresh: false, useless: 0, retry }
    }

    /// Adds an address or notes that it was told again; tells whether it is new.
    fn add(&mut self, address: Multiaddr, rank: Rank, now: Instant) -> bool {
        if let Some(own) = self.addresses.iter_mut().find(|own| own.address == address) {
            (own.rank, own.heard) = (own.rank.min(rank), now);
            return false;
        }
        if self.addresses.len() >= MAX_ADDRESSES {
            let oldest = self.addresses.iter().enumerate().min_by_key(|(_, own)| own.heard).map(|(index, _)| index);
            oldest.map(|index| self.addresses.remove(index));
        }
        self.addresses.push(Address { address, proven: false, rank, heard: now });
        true
    }
}

impl Rank {
    fn of(address: &Multiaddr, source: Source) -> Self {
        match ip_of(address) {
            Some(ip) if ip.is_loopback() => match source {
                Source::Local | Source::Mdns => Self::SameHost,
                _ => Self::Loopback,
            },
            Some(IpAddr::V4(ip)) if ip.is_private() => Self::PrivateV4,
            _ => Self::Other,
        }
    }
}

impl Retry {
    fn new(due: Instant) -> Self {
        Self { attempts: 0, due, tried: None, lost: None }
    }

    /// Due at `due`, or sooner if it already was; `pause` after the last attempt at the earliest.
    fn hurry(&mut self, due: Instant, pause: Duration) {
        let earliest = self.tried.map_or(due, |tried| due.max(tried + pause));
        self.due = self.due.min(earliest);
    }

    fn lose(&mut self, now: Instant, rng: &mut impl Rng) {
        (self.attempts, self.lost) = (0, Some(now));
        self.due = now + jitter(RETRY_MIN, rng);
    }

    fn fail(&mut self, now: Instant, rng: &mut impl Rng) {
        let recent = self.lost.is_some_and(|lost| now.saturating_duration_since(lost) < RECENT);
        let most = if recent { RETRY_RECENT } else { RETRY_MAX };
        let delay = RETRY_MIN.saturating_mul(1 << self.attempts.min(16)).min(most);
        self.attempts = self.attempts.saturating_add(1);
        self.due = now + jitter(delay, rng);
    }
}

impl Mark {
    fn is_foreign(&self) -> bool {
        !self.hold.is_zero()
    }
}

/// Between half the delay and all of it, so that many peers do not dial in step.
fn jitter(delay: Duration, rng: &mut impl Rng) -> Duration {
    delay.mul_f64(rng.random_range(0.5..=1.0))
}

/// Longest time between dials to a peer that answers but cannot be talked to.
const USELESS_MAX: Duration = Duration::from_secs(60);
/// Peers remembered: the same as a view holds.
const MAX_PEERS: usize = 4096;
/// Addresses remembered per peer: several interfaces, two families, two ports.
const MAX_ADDRESSES: usize = 16;
/// Bootstrap and cached addresses.
const MAX_PLACES: usize = 1024;
/// Marks on addresses.
const MAX_MARKS: usize = 1024;
/// First delay between dials, and the least after any failure.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest delay while a loss is recent: a partition that heals is bridged within 3 s.
const RETRY_RECENT: Duration = Duration::from_secs(2);
/// How long a loss is recent: a switch restarts in this time, a machine too.
const RECENT: Duration = Duration::from_secs(120);
/// Longest delay later.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Least time between dials to a peer of which members go on telling.
const RESIGHTED: Duration = Duration::from_secs(2);
/// Losses this close have one cause: liveness checks notice a dead host within 3 s, others take a bit longer to fail.
const LOST_TOGETHER: Duration = Duration::from_secs(10);
/// Attempts at a cached address: a second one because the first moments of a network often fail.
const CACHE_ATTEMPTS: u32 = 2;
/// Failed handshakes after which an address is taken for foreign: one can be a peer that was just being killed.
const STRIKES: u32 = 2;
/// How long a foreign address is left alone, at first and at most.
const HOLD_MIN: Duration = Duration::from_secs(60);
const HOLD_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for test time")]
    static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

    fn at(milliseconds: u64) -> Instant {
        *ORIGIN + Duration::from_millis(milliseconds)
    }

    fn peer(n: u16) -> PeerId {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        PeerId::from_bytes(bytes)
    }

    fn address(n: u16) -> Multiaddr {
        format!("/ip4/10.0.{}.{}/tcp/4001", n >> 8, n & 255).parse().unwrap()
    }

    fn sighting(n: u16, source: Source, started: u64) -> Found {
        Found { peer: Some(peer(n)), addresses: vec![address(n)], source, started }
    }

    fn places(source: Source, numbers: &[u16]) -> Found {
        Found { peer: None, addresses: numbers.iter().map(|n| address(*n)).collect(), source, started: 0 }
    }

    /// A dialer of peer 100 that started at 100, with dice and a clock in milliseconds.
    struct Bench {
        dialer: Dialer,
        rng: SmallRng,
    }

    impl Bench {
        fn new() -> Self {
            let dialer = Dialer::new(peer(100), 100, DialerConfig::default());
            Self { dialer, rng: SmallRng::seed_from_u64(7) }
        }

        fn found(&mut self, n: u16, now: u64) {
            self.dialer.found(sighting(n, Source::Mdns, 1), at(now));
        }

        fn next(&mut self, now: u64) -> Vec<Dial> {
            self.dialer.next(at(now), &mut self.rng)
        }

        /// The only dial due.
        fn one(&mut self, now: u64) -> Dial {
            let mut dials = self.next(now);
            assert_eq!(dials.len(), 1, "{dials:?}");
            dials.remove(0)
        }

        fn link(&mut self, n: u16, now: u64) {
            self.dialer.linked(peer(n), None, at(now));
        }

        fn lose(&mut self, n: u16, now: u64) {
            self.dialer.lost(peer(n), at(now), &mut self.rng);
        }

        fn fail(&mut self, dial: &Dial, why: DialFailure, now: u64) -> Vec<Multiaddr> {
            let failures: Vec<_> = dial.addresses.iter().map(|address| (address.clone(), why)).collect();
            self.dialer.failed(dial, &failures, at(now), &mut self.rng)
        }

        /// When the dialer wants to be asked again, in milliseconds.
        fn deadline(&self) -> Option<u64> {
            let nanos = self.dialer.deadline()?.duration_since(at(0)).as_nanos();
            Some(u64::try_from(nanos.div_ceil(1_000_000)).unwrap())
        }

        /// Lets every dial fail until `end`; the times of the dials.
        fn keep_failing(&mut self, why: DialFailure, end: u64) -> Vec<u64> {
            let mut times = Vec::new();
            while let Some(now) = self.deadline().filter(|now| *now <= end) {
                for dial in self.next(now) {
                    times.push(now);
                    self.fail(&dial, why, now);
                }
            }
            times
        }
    }

    #[test]
    fn a_peer_that_is_found_is_dialled_once_where_it_is() {
        let mut bench = Bench::new();
        bench.found(1, 0);
        assert_eq!(bench.deadline(), Some(0));
        assert_eq!(bench.one(0), Dial { peer: Some(peer(1)), addresses: vec![address(1)] });
        bench.found(1, 1);
        assert_eq!((bench.next(100_000), bench.deadline()), (vec![], None), "a dial is under way");
    }

    #[test]
    fn nobody_dials_oneself_or_a_linked_peer() {
        let mut bench = Bench::new();
        bench.dialer.found(sighting(100, Source::Local, 100), at(0));
        bench.link(1, 0);
        bench.found(1, 0);
        assert_eq!((bench.next(1_000_000), bench.deadline()), (vec![], None));
    }

    #[test]
    fn the_later_to_start_dials_at_once_and_the_other_waits() {
        let first_dial = |n, started| {
            let mut bench = Bench::new();
            bench.dialer.found(sighting(n, Source::Mdns, started), at(0));
            bench.deadline().unwrap()
        };
        assert_eq!(first_dial(1, 99), 0);
        assert_eq!(first_dial(200, 99), 0);
        assert_eq!(first_dial(1, 101), 250);
        for unknown_or_same in [0, 100] {
            assert_eq!(first_dial(200, unknown_or_same), 0, "the lower peer id dials");
            assert_eq!(first_dial(1, unknown_or_same), 250);
        }
    }

    #[test]
    fn dials_under_way_are_limited() {
        let mut bench = Bench::new();
        (1..=50).for_each(|n| bench.found(n, 0));
        let dials = bench.next(0);
        assert_eq!((dials.len(), bench.deadline()), (32, None));
        bench.fail(&dials[0], DialFailure::Unreachable, 10);
        assert_eq!(bench.deadline(), Some(0));
        assert_eq!(bench.next(10).len(), 1);
    }

    #[test]
    fn an_unreachable_peer_is_dialled_less_and_less_and_given_up_after_an_hour() {
        // E-CONN.
        let mut bench = Bench::new();
        bench.found(1, 0);
        let times = bench.keep_failing(DialFailure::Unreachable, 10_000_000);
        let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!((125..=251).contains(&gaps[0]) && (250..=501).contains(&gaps[1]), "{gaps:?}");
        assert!(gaps[8..].iter().all(|gap| (15_000..=30_001).contains(gap)), "{gaps:?}");
        assert!((3_500_000..3_600_000).contains(times.last().unwrap()), "{:?}", times.last());
        assert!(bench.dialer.peers.is_empty());
    }

    #[test]
    fn a_lost_peer_is_tried_every_two_seconds_for_two_minutes() {
        let mut bench = Bench::new();
        bench.found(1, 0);
        bench.link(1, 0);
        bench.lose(1, 1000);
        let times = bench.keep_failing(DialFailure::Unreachable, 600_000);
        assert!((1125..=1250).contains(&times[0]), "{}", times[0]);
        let gap = |pair: &[u64]| pair[1] - pair[0];
        assert!(times.windows(2).filter(|pair| pair[0] < 121_000).all(|pair| gap(pair) <= 2001), "{times:?}");
        assert!(times.windows(2).filter(|pair| pair[0] > 200_000).all(|pair| gap(pair) >= 15_000), "{times:?}");
    }

    #[test]
    fn news_of_a_peer_in_backoff_makes_it_due() {
        let mut bench = Bench::new();
        bench.found(1, 0);
        bench.keep_failing(DialFailure::Unreachable, 100_000);
        let due = bench.deadline().unwrap();
        bench.found(1, 100_001);
        assert_eq!(bench.deadline(), Some(due), "the same again is no news");
        let elsewhere = Found { addresses: vec![address(2)], ..sighting(1, Source::Mdns, 1) };
        bench.dialer.found(elsewhere, at(100_002));
        assert!(bench.deadline().unwrap() <= 100_002);
        assert_eq!(bench.one(100_002).addresses, [address(1), address(2)]);
    }

    #[test]
    fn a_lost_peer_that_is_heard_of_again_is_due_once() {
        let mut bench = Bench::new();
        bench.found(1, 0);
        bench.link(1, 0);
        bench.lose(1, 0);
        bench.keep_failing(DialFailure::Unreachable, 300_000);
        bench.found(1, 300_001);
        let dial = bench.one(300_001);
        bench.fail(&dial, DialFailure::Unreachable, 300_001);
        bench.found(1, 300_002);
        assert!(bench.deadline().unwrap() >= 300_126, "not at once a second time");
    }

    #[test]
    fn what_a_member_tells_of_is_due_but_not_in_a_loop() {
        let mut bench = Bench::new();
        bench.found(1, 0);
        bench.keep_failing(DialFailure::Unreachable, 100_000);
        let last = bench.dialer.peers[&peer(1)].retry.tried.unwrap();
        for now in 100_001..100_100 {
            bench.dialer.found(sighting(1, Source::Member, 1), at(now));
        }
        assert!(bench.dialer.deadline().unwrap() <= at(100_001).max(last + RESIGHTED));
        let before = bench.deadline().unwrap().max(100_100);
        let dial = bench.one(before);
        bench.fail(&dial, DialFailure::Unreachable, before);
        bench.dialer.found(sighting(1, Source::Member, 1), at(before + 1));
        assert!((before + 2000..=before + 2001).contains(&bench.deadline().unwrap()));
    }

    #[test]
    fn when_one_of_those_lost_together_returns_all_are_due() {
        let mut bench = Bench::new();
        for n in 1..=3 {
            bench.found(n, 0);
            bench.link(n, 0);
        }
        bench.lose(3, 0); // long before, for a reason of its own
        bench.lose(1, 60_000);
        bench.lose(2, 63_000);
        bench.keep_failing(DialFailure::Unreachable, 400_000);
        bench.link(1, 400_001);
        assert_eq!(bench.one(400_001).peer, Some(peer(2)));
    }

    #[test]
    fn a_peer_that_can_only_come_to_us_is_not_dialled() {
        let mut bench = Bench::new();
        bench.link(1, 0);
        bench.lose(1, 1);
        assert!(bench.dialer.peers.is_empty() && bench.deadline().is_none());
    }

    #[test]
    fn who_says_goodbye_is_not_redialled() {
        let mut bench = Bench::new();
        bench.found(1, 0);
        bench.link(1, 0);
        bench.dialer.forget(peer(1));
        bench.lose(1, 1);
        assert_eq!(bench.deadline(), None);
    }

    #[test]
    fn bootstrap_addresses_are_tried_for_ever() {
        let mut bench = Bench::new();
        bench.dialer.found(places(Source::Bootstrap, &[1]), at(0));
        let times = bench.keep_failing(DialFailure::Unreachable, 86_400_000);
        assert_eq!(times[0], 0);
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= 30_001));
        assert!(*times.last().unwrap() > 86_300_000);
    }

    #[test]
    fn a_bootstrap_address_rests_while_a_linked_peer_is_there() {
        let mut bench = Bench::new();
        bench.dialer.found(places(Source::Bootstrap, &[1]), at(0));
        let dial = bench.one(0);
        assert_eq!(dial, Dial { peer: None, addresses: vec![address(1)] });
        bench.dialer.linked(peer(1), Some((&dial, &address(1))), at(5));
        assert_eq!(bench.deadline(), None);
        bench.lose(1, 1000);
        let mut targets: Vec<_> = bench.next(2000).into_iter().map(|dial| dial.peer).collect();
        targets.sort();
        assert_eq!(targets, [None, Some(peer(1))], "whoever is there now, and the peer that was");
    }

    #[test]
    fn cached_addresses_are_tried_twice_at_most() {
        let mut bench = Bench::new();
        bench.dialer.found(places(Source::Cache, &[1, 2]), at(0));
        let dials = bench.next(0);
        bench.dialer.linked(peer(1), Some((&dials[0], &dials[0].addresses[0])), at(5));
        bench.fail(&dials[1], DialFailure::Unreachable, 5);
        let times = bench.keep_failing(DialFailure::Unreachable, 1_000_000);
        assert_eq!(times.len(), 1);
        assert!(bench.dialer.places.is_empty());
    }

    #[test]
    fn another_mesh_is_left_alone_for_longer_and_longer() {
        let mut bench = Bench::new();
        bench.found(1, 0);
        let dial = bench.one(0);
        assert_eq!(bench.fail(&dial, DialFailure::WrongKey, 0), [address(1)]);
        assert_eq!((bench.dialer.foreign_addresses().count(), bench.deadline()), (1, Some(60_000)));
        // The same address under another name is no way around, nor are news of it.
        let renamed = Found { addresses: vec![address(1)], ..sighting(2, Source::Mdns, 1) };
        bench.dialer.found(renamed, at(1));
        bench.dialer.found(places(Source::Bootstrap, &[1]), at(1));
        bench.dialer.found(sighting(1, Source::Member, 1), at(1));
        assert_eq!(bench.next(59_999), []);
        let dials = bench.next(60_000);
        assert_eq!(dials.len(), 3);
        for dial in dials {
            assert_eq!(bench.fail(&dial, DialFailure::WrongKey, 60_000), [], "told once");
        }
        assert_eq!(bench.deadline(), Some(180_000), "three dials at once teach one lesson");
        bench.dialer.forget(peer(2));
        bench.dialer.forget(peer(1));
        let times = bench.keep_failing(DialFailure::WrongKey, 10_000_000);
        let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps[..3], [240_000, 480_000, 600_000]);
        assert!(gaps[3..].iter().all(|gap| *gap == 600_000));
    }

    #[test]
    fn new_keys_forgive() {
        let mut bench = Bench::new();
        bench.found(1, 0);
        let dial = bench.one(0);
        bench.fail(&dial, DialFailure::WrongKey, 0);
        bench.dialer.forgive();
        assert_eq!(bench.dialer.foreign_addresses().count(), 0);
        assert!(bench.deadline().unwrap() <= 250);
    }

    #[test]
    fn two_failed_handshakes_in_a_row_are_foreign_too() {
        let mut bench = Bench::new();
        bench.found(1, 0);
        let dial = bench.one(0);
        assert_eq!(bench.fail(&dial, DialFailure::Handshake, 0), []);
        assert_eq!(bench.dialer.foreign_addresses().count(), 0);
        let now = bench.deadline().unwrap();
        let dial = bench.one(now);
        assert_eq!(bench.fail(&dial, DialFailure::Handshake, now), [address(1)]);
        let until = bench.deadline().unwrap();
        assert_eq!(until, now + 60_000);
        let dial = bench.one(until);
        bench.dialer.linked(peer(1), Some((&dial, &address(1))), at(until));
        assert_eq!(bench.dialer.foreign_addresses().count(), 0, "a link proves the contrary");
    }

    #[test]
    fn a_foreign_address_does_not_bar_the_others_of_a_peer() {
        let mut bench = Bench::new();
        let both = Found { addresses: vec![address(1), address(2)], ..sighting(1, Source::Mdns, 1) };
        bench.dialer.found(both, at(0));
        let dial = bench.one(0);
        let failures = [(address(1), DialFailure::WrongKey), (address(2), DialFailure::Unreachable)];
        bench.dialer.failed(&dial, &failures, at(0), &mut bench.rng);
        assert_eq!(bench.one(250).addresses, [address(2)]);
    }

    #[test]
    fn an_address_where_another_peer_answers_is_dropped() {
        // E-CONN.
        let mut bench = Bench::new();
        let both = Found { addresses: vec![address(1), address(2)], ..sighting(1, Source::Mdns, 1) };
        bench.dialer.found(both, at(0));
        let dial = bench.one(0);
        let failures = [(address(1), DialFailure::WrongPeer), (address(2), DialFailure::Unreachable)];
        bench.dialer.failed(&dial, &failures, at(0), &mut bench.rng);
        let dial = bench.one(250);
        assert_eq!(dial.addresses, [address(2)]);
        bench.fail(&dial, DialFailure::Myself, 250);
        assert!(bench.dialer.peers.is_empty());
    }

    #[test]
    fn the_nearest_address_comes_first() {
        // E-CONN.
        let mut bench = Bench::new();
        let mesh = |text: &str| -> Multiaddr { text.parse().unwrap() };
        let (loopback, private, public, v6) = (
            mesh("/ip4/127.0.0.1/tcp/1"),
            mesh("/ip4/192.168.1.1/tcp/1"),
            mesh("/ip4/203.0.113.1/tcp/1"),
            mesh("/ip6/fd00::1/tcp/1"),
        );
        let addresses = vec![v6.clone(), public.clone(), private.clone(), loopback.clone()];
        let here = Found { addresses: addresses.clone(), ..sighting(1, Source::Local, 1) };
        let there = Found { addresses, ..sighting(2, Source::Member, 1) };
        bench.dialer.found(here, at(0));
        let near = bench.one(0);
        assert_eq!(near.addresses, [loopback.clone(), private.clone(), v6.clone(), public.clone()]);
        bench.dialer.found(there, at(0));
        assert_eq!(bench.one(0).addresses, [private.clone(), v6.clone(), public.clone(), loopback.clone()]);
        bench.dialer.linked(peer(1), Some((&near, &public)), at(1));
        bench.lose(1, 2);
        assert_eq!(bench.one(1000).addresses[0], public, "what worked last time");
    }

    #[test]
    fn tables_are_bounded() {
        let mut bench = Bench::new();
        bench.link(5000, 0);
        for n in 0..5000 {
            bench.dialer.found(sighting(n, Source::Mdns, 1), at(u64::from(n)));
        }
        assert_eq!(bench.dialer.peers.len(), MAX_PEERS);
        assert!(bench.dialer.peers.contains_key(&peer(5000)) && !bench.dialer.peers.contains_key(&peer(0)));
        for n in 0..100 {
            bench.dialer.found(Found { addresses: vec![address(n)], ..sighting(4999, Source::Kad, 1) }, at(6000));
        }
        assert_eq!(bench.dialer.peers[&peer(4999)].addresses.len(), MAX_ADDRESSES);
        for n in 0..2000 {
            bench.dialer.found(places(Source::Cache, &[n]), at(0));
            bench.dialer.mark(address(n), true, at(u64::from(n)));
        }
        assert_eq!((bench.dialer.places.len(), bench.dialer.foreign_addresses().count()), (MAX_PLACES, MAX_MARKS));
        assert!(bench.dialer.held_until(&address(1999)).is_some() && bench.dialer.held_until(&address(0)).is_none());
    }

    #[test]
    fn both_sides_of_a_healed_partition_meet_within_three_seconds() {
        for seed in 0..200 {
            let mut bench = Bench::new();
            bench.rng = SmallRng::seed_from_u64(seed);
            bench.dialer.found(sighting(1, Source::Mdns, 200), at(0)); // the other side would dial first
            bench.link(1, 0);
            bench.lose(1, 0);
            bench.keep_failing(DialFailure::Unreachable, 60_000);
            assert!(bench.deadline().unwrap() <= 63_000, "seed {seed}");
        }
    }
}
