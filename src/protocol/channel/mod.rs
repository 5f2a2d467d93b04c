//! Channels: two nodes that speak with each other, both ways, for as long as they like.
//!
//! What one end keeps and says is decided in [`mesh::channel`](crate::mesh::channel); here it is carried over links that
//! come and go, and goes from hand to hand. Frames are addressed to ends, which have numbers of their own at each peer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::sleep;

mod ends;
mod talk;

pub(super) use self::ends::Ends;
use self::talk::{Answer, Far, Phase};
pub(crate) use self::talk::{NotSent, Speaker, Talk, Waiter};
use super::guard::Guard;
use crate::mesh::channel::{Lost, Say, WINDOW};
use crate::mesh::{
    Action, Failure, Group, GroupKey, Item, Member, NodeId, NotAllowed, PeerId, Routes, Rules, ServiceName, Turns,
};
use crate::net::{Link, Links, Order, Refused, Room};
use crate::wire::channel::{Accepted, Adopt, ChannelFrame, Open, Refusal, Token};
use crate::wire::frame;

/// The channels of this peer's nodes.
#[derive(Debug)]
pub(crate) struct Channels {
    me: Weak<Self>,
    host: String,
    links: Links,
    rules: Rules,
    guard: Arc<Guard>,
    max_message: usize,
    timeout: Duration,
    next: AtomicU64,
    talks: RwLock<HashMap<u64, Seated>>,
    offers: RwLock<HashMap<(u32, ServiceName), mpsc::Sender<Incoming>>>,
    counts: Mutex<HashMap<PeerId, Counts>>,
    turns: Mutex<HashMap<ServiceName, Turns>>,
    draining: AtomicBool,
    /// Told when no end is left.
    empty: Notify,
}

/// An end, and whom it counts for.
#[derive(Debug)]
struct Seated {
    talk: Arc<Talk>,
    peer: PeerId,
    opened: bool,
}

/// Ends between this peer and another.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Opened or adopted here.
    opened: usize,
    /// Opened there.
    accepted: usize,
}

/// A channel that somebody opened.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) speaker: Speaker,
    /// What came with the opening.
    pub(crate) request: Item,
}

/// Why there is no channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoChannel {
    /// As many as may be.
    TooMany,
    /// The request is larger than the peer takes.
    TooLarge,
    /// No link stands, or it was lost before the answer.
    Lost,
    Refused(Refusal),
}

impl Channels {
    pub(crate) fn new(
        host: String,
        links: Links,
        rules: Rules,
        guard: Arc<Guard>,
        max_message: usize,
        timeout: Duration,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            host,
            links,
            rules,
            guard,
            max_message,
            timeout,
            next: AtomicU64::new(1),
            talks: RwLock::default(),
            offers: RwLock::default(),
            counts: Mutex::default(),
            turns: Mutex::default(),
            draining: AtomicBool::new(false),
            empty: Notify::new(),
        })
    }

    /// Most bytes in one item.
    pub(crate) fn max_message(&self) -> usize {
        self.max_message
    }

    /// How long opening takes at most, unless said otherwise.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    // Services.

    /// Channels to the service come here from now on. `None`: the node offers it already.
    pub(crate) fn offer(&self, node: u32, service: ServiceName) -> Option<mpsc::Receiver<Incoming>> {
        let mut offers = self.offers.write().unwrap_or_else(PoisonError::into_inner);
        if offers.get(&(node, service.clone())).is_some_and(|line| !line.is_closed()) {
            return None;
        }
        let (line, incoming) = mpsc::channel(LINE);
        offers.insert((node, service), line);
        Some(incoming)
    }

    pub(crate) fn remove_offer(&self, node: u32, service: &ServiceName) {
        self.offers.write().unwrap_or_else(PoisonError::into_inner).remove(&(node, service.clone()));
    }

    /// New channels are turned away from now on: the peer is about to leave.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Waits until no end is open, and all that was sent is taken.
    pub(crate) async fn drained(&self) {
        loop {
            let empty = self.empty.notified();
            if self.talks().is_empty() {
                return;
            }
            empty.await;
        }
    }

    /// Everything ends: the peer has left.
    pub(crate) fn finish(&self) {
        self.drain();
        self.offers.write().unwrap_or_else(PoisonError::into_inner).clear();
        for talk in self.all() {
            talk.lose(Lost::Shutdown);
        }
    }

    // Opening.

    /// The nodes that offer a service now and may; and one of those that may not, with the rule that says so.
    pub(crate) fn providers(
        &self,
        me: PeerId,
        routes: &Routes,
        service: &ServiceName,
    ) -> (Vec<Member>, Option<(Member, NotAllowed)>) {
        let mut members = routes.providers(service, &self.host).map_or_else(Vec::new, |group| group.members);
        let left_out = self.guard.admit_providers(me, routes, service, &mut members);
        (members, left_out)
    }

    /// The position among the members of who is asked first. There are members.
    pub(crate) fn pick(&self, service: &ServiceName, members: &[Member]) -> usize {
        let loads: Vec<usize> = {
            let counts = self.counts();
            members.iter().map(|member| counts.get(&member.id.peer).map_or(0, |counts| counts.opened)).collect()
        };
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= MAX_TURNS {
            turns.clear();
        }
        let group = Group { key: GroupKey::Providers, members: members.to_vec() };
        let mut rng = SmallRng::from_rng(&mut rand::rng());
        let turns = turns.entry(service.clone()).or_default();
        turns.pick(&self.rules.for_service(service), &group, |at| loads[at], None, &mut rng)
    }

    /// Opens a channel to one node. Cancelled, there is none.
    pub(crate) async fn open(
        &self,
        from: u32,
        to: NodeId,
        service: ServiceName,
        request: Item,
    ) -> Result<Speaker, NoChannel> {
        self.ask(from, to, |end, token| {
            ChannelFrame::Open(Open { end, node: to.index, from, window: WINDOW as u32, token, service, request })
        })
        .await
    }

    /// Takes over the far side of an end. Cancelled, the conversation ends.
    pub(crate) async fn adopt(&self, from: u32, far: NodeId, to: u64, theirs: Token) -> Result<Speaker, NoChannel> {
        self.ask(from, far, |end, token| {
            ChannelFrame::Adopt(Adopt { to, theirs, end, from, window: WINDOW as u32, token })
        })
        .await
    }

    async fn ask(
        &self,
        from: u32,
        far: NodeId,
        frame: impl FnOnce(u64, Token) -> ChannelFrame,
    ) -> Result<Speaker, NoChannel> {
        let link = self.links.get(far.peer).ok_or(NoChannel::Lost)?;
        self.seat(far.peer, true).ok_or(NoChannel::TooMany)?;
        let (answer, answered) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let token = rand::random();
        let frame = frame(id, token);
        let service = if let ChannelFrame::Open(open) = &frame { open.service.to_string() } else { String::new() };
        let phase = Phase::Asking { peer: far.peer, frame: frame.clone(), asked: false, answer: Some(answer) };
        let speaker = Speaker(Arc::new(Talk::new(&self.me, id, from, far, token, phase)));
        self.insert(Arc::clone(&speaker), far.peer, true);
        match link.push_when_room(Order::End(id), |out| frame.put(out), frame.payload()).await {
            Ok(_) => speaker.state().has_asked(),
            Err(Refused::TooLarge) => return Err(NoChannel::TooLarge),
            Err(_) => return Err(NoChannel::Lost),
        }
        match answered.await {
            Ok(Answer::Accepted) => Ok(speaker),
            Ok(Answer::Refused(why)) => {
                if let Refusal::NotAllowed(rule) = &why {
                    let refused = frame::Refused { action: Action::Call, resource: service, rule: rule.clone() };
                    self.guard.refused_there(far.peer, &refused);
                }
                Err(NoChannel::Refused(why))
            }
            Ok(Answer::Lost) | Err(_) => Err(NoChannel::Lost),
        }
    }

    // The table of ends.

    /// Counts one more end with a peer; `None` if there are too many.
    fn seat(&self, peer: PeerId, opened: bool) -> Option<()> {
        let mut counts = self.counts();
        let counts = counts.entry(peer).or_default();
        let (count, most) =
            if opened { (&mut counts.opened, MAX_OPENED) } else { (&mut counts.accepted, MAX_ACCEPTED) };
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(())
    }

    fn insert(&self, talk: Arc<Talk>, peer: PeerId, opened: bool) {
        let id = talk.id;
        let seated = Seated { talk, peer, opened };
        self.talks.write().unwrap_or_else(PoisonError::into_inner).insert(id, seated);
    }

    /// The end is forgotten: its number is not used again.
    fn remove(&self, id: u64) {
        let (removed, left) = {
            let mut talks = self.talks.write().unwrap_or_else(PoisonError::into_inner);
            (talks.remove(&id), talks.len())
        };
        let Some(Seated { peer, opened, .. }) = removed else { return };
        {
            let mut all = self.counts();
            if let Some(counts) = all.get_mut(&peer) {
                let count = if opened { &mut counts.opened } else { &mut counts.accepted };
                *count -= 1;
                if counts.opened + counts.accepted == 0 {
                    all.remove(&peer);
                }
            }
        }
        if left == 0 {
            self.empty.notify_waiters();
        }
    }

    fn find(&self, id: u64) -> Option<Arc<Talk>> {
        self.talks().get(&id).map(|seated| Arc::clone(&seated.talk))
    }

    fn all(&self) -> Vec<Arc<Talk>> {
        self.talks().values().map(|seated| Arc::clone(&seated.talk)).collect()
    }

    fn talks(&self) -> std::sync::RwLockReadGuard<'_, HashMap<u64, Seated>> {
        self.talks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<PeerId, Counts>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Links that come and go.

    pub(super) fn up(&self, peer: PeerId, link: &Link) {
        for talk in self.all() {
            talk.up(peer, link);
        }
    }

    pub(super) fn down(&self, peer: PeerId, link: &Link) {
        for talk in self.all() {
            talk.down(peer, link);
        }
    }

    pub(super) fn gone(&self, peer: PeerId) {
        for talk in self.all() {
            talk.gone(peer);
        }
    }
}

impl Talk {
    /// Something is said to this end. `false`: it does not speak with who says it.
    fn hear(self: &Arc<Self>, peer: PeerId, end: u64, say: Say, link: &Link) -> bool {
        let mut orphaned = false;
        let known = self.act(|state| {
            if matches!(state.phase, Phase::Asking { .. }) {
                return true; // the answer is still to come: it says all anew
            }
            let Some(far) = state.far.filter(|far| (far.peer, far.end) == (peer, end)) else { return false };
            state.relink(link);
            let detaches = matches!(say, Say::Detach { .. });
            if let Err(violation) = state.end.hear(say) {
                state.break_off(self.id, &Failure::new(Failure::PROTOCOL, violation.to_string()));
                return true;
            }
            if detaches {
                let done = ChannelFrame::Said { to: far.end, end: self.id, say: Say::Done };
                answer(link, &done);
                if state.end.is_handed_over() {
                    state.end.lose(Lost::BothHandedOver);
                    return true;
                }
                state.orphan();
                orphaned = !self.take_adopter(state);
            }
            true
        });
        if orphaned {
            self.expire();
        }
        known
    }

    /// Nobody holds the far end. If somebody wants to, it is theirs.
    fn take_adopter(&self, state: &mut talk::State) -> bool {
        // Over a link that is closed, it asks again once there is another.
        let Some((adopt, peer, link)) = state.adopter.take().filter(|(_, _, link)| !link.is_closed()) else {
            return false;
        };
        self.give_to(state, &adopt, peer, &link);
        true
    }

    /// Somebody wants to take over the far end.
    fn adopt(self: &Arc<Self>, adopt: Adopt, peer: PeerId, link: &Link) {
        let refused = self.act(|state| {
            if link.is_closed() {
                return None; // it asks again over the next one
            }
            if state.end.is_handed_over() {
                return Some(Refusal::HandedOver);
            }
            let again = state.used == Some(adopt.theirs)
                && state.far.is_some_and(|far| (far.peer, far.end) == (peer, adopt.end));
            if again || (adopt.theirs == state.token && state.far.is_none()) {
                self.give_to(state, &adopt, peer, link);
                return None;
            }
            if adopt.theirs == state.token && !matches!(state.phase, Phase::Asking { .. }) {
                state.adopter = Some((adopt, peer, link.clone())); // once its holder says that it gives it away
                return None;
            }
            Some(Refusal::NotThere)
        });
        if let Some(why) = refused {
            answer(link, &ChannelFrame::Refused { to: adopt.end, why });
        }
    }

    fn give_to(&self, state: &mut talk::State, adopt: &Adopt, peer: PeerId, link: &Link) {
        state.used = Some(adopt.theirs);
        state.far_node = NodeId { peer, index: adopt.from };
        if state.token == adopt.theirs {
            state.token = rand::random(); // who held the far end before can do nothing with it
        }
        let standing = state.end.adopted(adopt.window as usize);
        let accepted = Accepted {
            to: adopt.end,
            end: self.id,
            node: self.node,
            window: WINDOW as u32,
            token: state.token,
            standing,
        };
        answer(link, &ChannelFrame::Accepted(accepted));
        state.open(Far { peer, end: adopt.end, token: adopt.token }, link);
    }

    /// Nobody holds the far end: it has so long to be taken.
    fn expire(self: &Arc<Self>) {
        let talk = Arc::downgrade(self);
        let token = self.state().token;
        tokio::spawn(async move {
            sleep(ADOPTION).await;
            if let Some(talk) = talk.upgrade() {
                talk.act(|state| {
                    if state.far.is_none() && state.token == token {
                        state.end.lose(Lost::NotAdopted);
                    }
                });
            }
        });
    }

    /// The answer is yes. `false`: nobody asked, or wants it any more.
    fn accepted(self: &Arc<Self>, accepted: &Accepted, peer: PeerId, link: &Link) -> bool {
        self.act(|state| match &state.phase {
            Phase::Asking { peer: asked, answer: Some(answer), .. } if *asked == peer && !answer.is_closed() => {
                state.accepted(self.id, accepted, link);
                true
            }
            Phase::Asking { .. } => false,
            Phase::Open => state.far.is_some_and(|far| (far.peer, far.end) == (peer, accepted.end)),
        })
    }

    /// The answer is no, or never comes.
    fn answered(&self, peer: PeerId, what: Answer) {
        if let Phase::Asking { peer: asked, answer, .. } = &mut self.state().phase
            && *asked == peer
            && let Some(answer) = answer.take()
        {
            let _ = answer.send(what); // who asked may have given up
        }
    }

    fn lose(self: &Arc<Self>, lost: Lost) {
        self.act(|state| {
            state.end.lose(lost);
            if let Phase::Asking { answer, .. } = &mut state.phase
                && let Some(answer) = answer.take()
            {
                let _ = answer.send(Answer::Lost); // who asked may have given up
            }
        });
    }

    fn up(self: &Arc<Self>, peer: PeerId, link: &Link) {
        self.act(|state| match &state.phase {
            Phase::Asking { peer: to, frame: frame @ ChannelFrame::Adopt(_), asked: true, .. } if *to == peer => {
                answer(link, frame); // it may have been answered already; then it is again
            }
            Phase::Open if state.far.is_some_and(|far| far.peer == peer) => state.relink(link),
            _ => {}
        });
    }

    fn down(self: &Arc<Self>, peer: PeerId, link: &Link) {
        let opening = self.act(|state| {
            if state.far.is_some_and(|far| far.peer == peer) {
                state.unlink(link);
            }
            matches!(&state.phase, Phase::Asking { frame: ChannelFrame::Open(_), .. })
        });
        if opening {
            self.answered(peer, Answer::Lost);
        }
    }

    fn gone(self: &Arc<Self>, peer: PeerId) {
        self.answered(peer, Answer::Lost);
        let orphaned = self.act(|state| {
            state.adopter.take_if(|(_, adopter, _)| *adopter == peer);
            if state.far.is_none_or(|far| far.peer != peer) {
                return false;
            }
            if state.adopter.is_none() {
                state.end.lose(Lost::Disconnected);
                return false;
            }
            // It was handed over before, as who holds the token shows; how far its program came is not known.
            state.end.abandon();
            state.orphan();
            !self.take_adopter(state)
        });
        if orphaned {
            self.expire();
        }
    }
}

/// Puts a frame on a link that is never waited for.
fn answer(link: &Link, frame: &ChannelFrame) {
    // A link that is down brings both sides back, and they say how far they are.
    let _ = link.push(frame.end().map_or(Order::Free, Order::End), |out| frame.put(out), frame.payload(), Room::Always);
}

fn gone(to: u64, end: u64) -> ChannelFrame {
    ChannelFrame::Said { to, end, say: Say::Gone }
}

/// Channels that are not accepted yet, per service. Beyond, whoever opens one is told that the service is busy.
const LINE: usize = 64;
/// Channels that this peer has opened to another.
pub(crate) const MAX_OPENED: usize = 1000;
/// Channels that another peer has opened to this one: some may be over there already, and not yet here.
const MAX_ACCEPTED: usize = 2 * MAX_OPENED;
/// How long an end that was handed over waits to be taken.
const ADOPTION: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(60) };
/// Services whose turns are remembered.
const MAX_TURNS: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::channel::{Standing, TheirEnd};
    use crate::net::LinkLimits;

    #[tokio::test]
    async fn an_end_whose_adopter_is_not_linked_when_its_peer_is_forgotten_waits_for_it_but_not_for_ever() {
        let peer = |n| PeerId::from_bytes([n; 32]);
        let link = || Link::new(1, LinkLimits { frames: 100, bytes: 1 << 20 }, 1 << 20);
        for comes_back in [false, true] {
            let channels =
                Channels::new("host".into(), Links::default(), Rules::default(), Arc::default(), 1 << 20, ADOPTION);
            let far_node = NodeId { peer: peer(1), index: 0 };
            let talk = Arc::new(Talk::new(&channels.me, 1, 0, far_node, Token::default(), Phase::Open));
            talk.state().open(Far { peer: peer(1), end: 5, token: Token::default() }, &link());
            talk.state().end.open(WINDOW);
            let adopt =
                Adopt { to: 1, theirs: Token::default(), end: 6, from: 0, window: WINDOW as u32, token: [1; 16] };
            let lost = link();
            talk.adopt(adopt, peer(2), &lost);
            lost.close();
            talk.gone(peer(1));
            if comes_back {
                talk.adopt(adopt, peer(2), &link());
                assert_eq!(talk.far_node().peer, peer(2));
                assert_eq!(talk.state().end.their_end(), None);
            } else {
                let closed = tokio::time::timeout(Duration::from_secs(20), talk.closed()).await;
                assert_eq!(closed, Ok(TheirEnd::Lost(Lost::NotAdopted)));
            }
        }
    }

    #[test]
    fn a_new_channel_that_claims_to_go_on_fails() {
        let peer = PeerId::from_bytes([1; 32]);
        let (link, token, window) = (Link::new(1, LinkLimits { frames: 100, bytes: 1 << 20 }, 1 << 20), [1; 16], 100);
        for (received, fails) in [(0, false), (1, true)] {
            let (end, service) = (1, ServiceName::new("speak").unwrap());
            let open = Open { end, node: 0, from: 0, window, token, service, request: Item::default() };
            let (answer, mut answered) = oneshot::channel();
            let frame = ChannelFrame::Open(open);
            let phase = Phase::Asking { peer, frame, asked: true, answer: Some(answer) };
            let talk = Arc::new(Talk::new(&Weak::new(), end, 0, NodeId { peer, index: 0 }, token, phase));
            let standing = Standing { received, ..Standing::default() };
            assert!(talk.accepted(&Accepted { to: end, end: 2, node: 0, window, token, standing }, peer, &link));
            assert_eq!(answered.try_recv(), Ok(Answer::Accepted));
            let end = talk.state().end.their_end().cloned();
            assert_eq!(matches!(end, Some(TheirEnd::Failed(why)) if why.kind == Failure::PROTOCOL), fails);
        }
    }
}
