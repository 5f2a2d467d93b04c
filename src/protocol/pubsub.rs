//! Messages on topics: from a sending node along the routes to links and to nodes of this process, and from links into
//! subscriptions.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use smallvec::SmallVec;
use tokio::sync::{Mutex as OrderedMutex, MutexGuard as OrderedGuard, watch};
use tokio::time::{Instant, timeout_at};

use super::delivery::{Content, Lanes, NotPosted, Slot};
use super::ping::Pings;
use super::receipt::{Following, Receipt, UnderWay};
use super::retain::{Listens, Retained};
use super::subscription::{Inbox, Inboxes, Put};
use crate::mesh::delivery::{Claim, Claimed};
use crate::mesh::{
    Codec, DropReason, Group, Message, NodeId, NodeName, PeerId, Route, Routes, SendReport, Target, Topic, Turns,
};
use crate::net::{Link, Links, Outgoing, Refused};
use crate::wire::frame;

/// What all nodes of a peer share for sending and receiving.
#[derive(Debug)]
pub(crate) struct PubSub {
    host: String,
    links: Links,
    inboxes: Inboxes,
    pings: Pings,
    turns: Mutex<HashMap<Topic, Arc<Mutex<Turns>>>>,
    lanes: Lanes,
    max_message: usize,
    times: SendTimes,
    sent: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
}

/// How long sends wait, unless their options say otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendTimes {
    /// For room.
    pub(crate) room: Duration,
    /// For room and acknowledgements.
    pub(crate) acknowledgement: Duration,
}

/// One node's sending on one topic: what makes its messages leave in order.
#[derive(Debug)]
pub(crate) struct Outlet {
    topic: Topic,
    from: NodeId,
    from_name: NodeName,
    routes: watch::Receiver<Arc<Routes>>,
    turns: Arc<Mutex<Turns>>,
    /// Whether the last message is kept for who comes later.
    retains: AtomicBool,
    /// Held while a message is sent. A fair lock: who comes first sends first.
    state: OrderedMutex<State>,
}

#[derive(Debug)]
struct State {
    seq: u64,
    plan: Plan,
    rng: SmallRng,
    retained: Option<Box<Retained>>,
}

/// A route with the links looked up. Holds for one snapshot of the routes.
#[derive(Debug, Default)]
struct Plan {
    generation: Option<u64>,
    route: Arc<Route>,
    /// For each member of each group, in the order of the route.
    ways: Vec<Vec<Way>>,
}

/// How a node is reached.
#[derive(Clone, Debug)]
enum Way {
    /// In this process.
    Here,
    Link {
        link: Link,
        alias: u32,
    },
    /// Its link went down a moment ago; the routes will follow.
    Down,
}

/// How one message is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SendOptions {
    /// To whom it goes.
    pub target: Target,
    /// How long a full link or subscription may hold it up before it is dropped for that node. `None`: as configured,
    /// 1 s by default. Zero never waits. If it is to be acknowledged, that has to be done in this time too, by default 10 s.
    pub timeout: Option<Duration>,
    /// Whether the report waits until each receiver has taken the message. If its link is lost meanwhile, it goes out again
    /// over the next, and still comes once.
    pub acked: bool,
    /// Whether a receiver that cannot take it is replaced by another of its group. Implies `acked`.
    pub redeliver: bool,
    /// For how long it is of use. Later it is not delivered any more, wherever it is. `None`: for ever.
    pub ttl: Option<Duration>,
}

impl SendOptions {
    /// The send waits until every receiver has taken the message, and the report says who did.
    ///
    /// While a peer's link is down, the message waits for the next link, for `times.resume` (3 s); it comes at most once, and
    /// in order with all others that come.
    #[must_use]
    pub fn acked(mut self) -> Self {
        self.acked = true;
        self
    }

    /// A receiver that is gone, is full, hands the message back or does not listen any more is replaced by another of its
    /// group, and waited for if there is none, until time is up. Acknowledged too.
    ///
    /// So the message is handled at least once: twice if a worker ended after it had handled the message and before it said
    /// so, or was out of reach for longer than `times.resume`. What goes to another node comes out of order there.
    #[must_use]
    pub fn redeliver(mut self) -> Self {
        self.redeliver = true;
        self
    }

    /// After this time the message is not delivered any more: not sent from a queue, not taken out of a subscription.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    fn is_acked(&self) -> bool {
        self.acked || self.redeliver
    }
}

/// Why a message was not sent to anybody.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// It is larger than the mesh takes. Nothing was sent.
    #[error("a message of {len} bytes, over the limit of {max}")]
    TooLarge {
        /// Its size in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The topic is not one. Nothing was sent.
    #[error(transparent)]
    Topic(#[from] crate::mesh::BadName),
    /// The value cannot be encoded. Nothing was sent.
    #[error("the value cannot be encoded: {0}")]
    Encode(String),
    /// The peer has shut down.
    #[error("the peer has shut down")]
    Closed,
}

/// Who gets one message. On the stack for as many as there mostly are.
type Receivers = SmallVec<[(NodeId, Way); FEW]>;

/// A message that is being sent.
struct Sending<'a> {
    pubsub: &'a PubSub,
    outlet: &'a Outlet,
    seq: u64,
    codec: Codec,
    payload: &'a Bytes,
    /// When its time is over.
    until: Option<Instant>,
    retains: bool,
    /// Set if it is to be acknowledged, with who it is under way to.
    content: Option<Arc<Content>>,
    slots: Vec<Slot>,
    /// Where to find another of the group for who cannot take it.
    others: Option<Arc<Route>>,
    report: SendReport,
    waiting: Vec<Waiting>,
}

/// Nodes for which the message found no room yet.
struct Waiting {
    via: Via,
    targets: Vec<u32>,
    peer: PeerId,
    why: DropReason,
}

/// What came of another try.
enum Again {
    Given,
    Not(DropReason),
    /// Something changed: try again.
    Wait(DropReason),
}

enum Via {
    Link(Link, u32),
    /// Subscriptions of one node of this process.
    Inboxes(Vec<Arc<Inbox>>),
    /// What is to be acknowledged.
    Lane,
}

impl PubSub {
    /// `max_unsettled`: bytes per peer that wait to be acknowledged.
    pub(crate) fn new(host: String, links: Links, max_message: usize, max_unsettled: usize, times: SendTimes) -> Self {
        Self {
            host,
            links,
            inboxes: Inboxes::default(),
            pings: Pings::default(),
            turns: Mutex::default(),
            lanes: Lanes::new(max_unsettled),
            max_message,
            times,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    pub(crate) fn inboxes(&self) -> &Inboxes {
        &self.inboxes
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    pub(crate) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn pings(&self) -> &Pings {
        &self.pings
    }

    /// A message came over a link.
    pub(super) fn received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// A message was dropped here.
    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages sent, received over links, and dropped, since the start.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.sent), read(&self.received), read(&self.dropped) + self.inboxes.expired())
    }

    /// What a node sends on a topic with.
    pub(crate) fn outlet(
        &self,
        topic: Topic,
        from: NodeId,
        from_name: NodeName,
        routes: watch::Receiver<Arc<Routes>>,
    ) -> Outlet {
        let turns = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            if turns.len() >= MAX_TURNS {
                turns.retain(|_, turns| Arc::strong_count(turns) > 1);
            }
            Arc::clone(turns.entry(topic.clone()).or_default())
        };
        let rng = SmallRng::from_rng(&mut rand::rng());
        let state = OrderedMutex::new(State { seq: 0, plan: Plan::default(), rng, retained: None });
        Outlet { topic, from, from_name, routes, turns, retains: AtomicBool::new(false), state }
    }

    /// Sends one message, waiting for room at most as long as the options say.
    ///
    /// Cancelled while it waits, it stays sent to whom it was sent already, and goes to nobody else.
    pub(crate) async fn send(
        &self,
        outlet: &Outlet,
        codec: Codec,
        payload: &Bytes,
        options: &SendOptions,
    ) -> Result<SendReport, SendError> {
        self.check(outlet, payload)?;
        let mut state = match outlet.state.try_lock() {
            Ok(state) => state,
            Err(_) => outlet.state.lock().await,
        };
        let mut sending = self.begin(outlet, &mut state, codec, payload, options);
        if !sending.waiting.is_empty() {
            sending.finish(deadline(options.timeout.unwrap_or(self.times.room))).await;
        }
        Ok(self.count(sending.report))
    }

    /// Sends one message, and gives what will tell what became of it. Waits for room as [`PubSub::send`] does.
    pub(crate) async fn submit(
        self: &Arc<Self>,
        outlet: &Arc<Outlet>,
        codec: Codec,
        payload: &Bytes,
        options: &SendOptions,
    ) -> Result<Receipt, SendError> {
        if !options.is_acked() {
            return self.send(outlet, codec, payload, options).await.map(Receipt::known);
        }
        self.check(outlet, payload)?;
        let deadline = deadline(options.timeout.unwrap_or(self.times.acknowledgement));
        let mut state = outlet.state.lock().await;
        let mut sending = self.begin(outlet, &mut state, codec, payload, options);
        if !sending.waiting.is_empty() {
            sending.finish(deadline).await;
        }
        let Sending { content: Some(content), slots, mut report, .. } = sending else {
            return Ok(Receipt::known(self.count(sending.report)));
        };
        let mut at: Vec<Result<Slot, (NodeId, DropReason)>> = slots.into_iter().map(Ok).collect();
        if options.redeliver {
            at.extend(report.dropped.drain(..).map(Err));
        }
        if at.is_empty() {
            return Ok(Receipt::known(self.count(report)));
        }
        report.sent = 0; // counted as each of them goes on
        let group = |at: &Result<Slot, (NodeId, DropReason)>| {
            let node = at.as_ref().map_or_else(|(node, _)| *node, |slot| slot.node);
            let mut groups = state.plan.route.groups.iter().filter(|_| options.redeliver);
            groups.find(|group| group.members.iter().any(|member| member.id == node)).map(|group| group.name.clone())
        };
        let under_way = at.into_iter().map(|at| UnderWay { group: group(&at), at }).collect();
        let redeliver = options.redeliver.then(|| options.target.clone());
        let (pubsub, outlet) = (Arc::clone(self), Arc::clone(outlet));
        Ok(Receipt::follow(Following { pubsub, outlet, content, report, deadline, redeliver }, under_way))
    }

    /// Sends a message that is to be acknowledged to nodes of one peer; to one node if that is this peer itself.
    pub(super) fn post(&self, content: &Arc<Content>, peer: PeerId, targets: &[u32]) -> Result<Vec<Slot>, NotPosted> {
        let lane = self.lanes.get(peer);
        if peer != content.from.peer {
            return lane.post(content, peer, targets);
        }
        let Some(index) = targets.first().copied() else { return Ok(Vec::new()) };
        lane.post_here(content, NodeId { peer, index }, &self.inboxes.matching(index, &content.topic))
    }

    /// All subscriptions end once what they hold is taken. What is not taken and settled in time is handed back.
    pub(crate) async fn drain(&self, patience: Duration) {
        let open = self.inboxes.open();
        open.iter().for_each(|inbox| inbox.drain());
        let drained = async {
            for inbox in &open {
                inbox.drained().await;
            }
            self.lanes.all_settled().await;
        };
        if timeout_at(deadline(patience), drained).await.is_err() {
            open.iter().for_each(|inbox| inbox.hand_back());
        }
    }

    /// Keeps the last message of an outlet for who comes later, or does so no more.
    pub(crate) fn retain(self: &Arc<Self>, outlet: &Arc<Outlet>, retain: bool) {
        if outlet.retains.swap(retain, Ordering::AcqRel) || !retain {
            return;
        }
        let (pubsub, outlet, mut routes) = (Arc::clone(self), Arc::downgrade(outlet), outlet.routes.clone());
        // Ends with the outlet, with the routes, or when nothing is kept any more.
        tokio::spawn(async move {
            while routes.changed().await.is_ok() {
                let Some(outlet) = outlet.upgrade().filter(|outlet| outlet.is_retaining()) else { return };
                let mut state = outlet.state.lock().await;
                pubsub.refresh(&outlet, &mut state.plan);
                pubsub.catch_up(&outlet, &mut state);
            }
        });
    }

    /// Gives the message that is kept to all that came since, before any newer one.
    fn catch_up(&self, outlet: &Outlet, state: &mut State) {
        let State { plan, retained, .. } = state;
        let Some(retained) = retained else { return };
        if !retained.is_behind(plan.generation) {
            return;
        }
        let listening = || {
            let groups = plan.route.groups.iter().zip(&plan.ways);
            groups.flat_map(|(group, ways)| group.members.iter().zip(ways))
        };
        let there = listening().filter_map(|(member, way)| {
            let link = match way {
                Way::Here => 0,
                Way::Link { link, .. } => link.epoch(),
                Way::Down => return None,
            };
            Some((member.id, Listens { link, filters: member.filters }))
        });
        let lacking = retained.lacking(plan.generation, there);
        let Some(last) = retained.last().filter(|last| !lacking.is_empty() && !last.is_over()) else { return };
        for (member, way) in listening().filter(|(member, _)| lacking.contains(&member.id)) {
            match way {
                Way::Here => {
                    let inboxes = self.inboxes.matching(member.id.index, &outlet.topic);
                    for inbox in &inboxes {
                        inbox.force(last.message());
                    }
                }
                // Refused by a link that is down: it comes with the next.
                Way::Link { link, alias } => drop(link.push_again(&last.outgoing(*alias, None, &[member.id.index]))),
                Way::Down => {}
            }
        }
    }

    /// Sends one message to whom there is room for; the others are in the report. Never waits.
    pub(crate) fn try_send(
        &self,
        outlet: &Outlet,
        codec: Codec,
        payload: &Bytes,
        target: &Target,
    ) -> Result<Option<SendReport>, SendError> {
        self.check(outlet, payload)?;
        let Ok(mut state) = outlet.state.try_lock() else { return Ok(None) };
        let options = SendOptions { target: target.clone(), ..SendOptions::default() };
        let mut sending = self.begin(outlet, &mut state, codec, payload, &options);
        sending.give_up();
        Ok(Some(self.count(sending.report)))
    }

    /// How many nodes listen to the outlet's topic.
    pub(crate) fn listeners(&self, outlet: &Outlet) -> usize {
        let count = |route: &Route| route.groups.iter().map(|group| group.members.len()).sum();
        match outlet.state.try_lock() {
            Ok(mut state) => {
                self.refresh(outlet, &mut state.plan);
                count(&state.plan.route)
            }
            // A send is waiting; the answer does not have to.
            Err(_) => {
                let routes = Arc::clone(&outlet.routes.borrow());
                count(&routes.resolve(&outlet.topic, &self.host))
            }
        }
    }

    fn check(&self, outlet: &Outlet, payload: &Bytes) -> Result<(), SendError> {
        if outlet.routes.has_changed().is_err() {
            return Err(SendError::Closed); // who made the routes is gone
        }
        if payload.len() > self.max_message {
            return Err(SendError::TooLarge { len: payload.len(), max: self.max_message });
        }
        Ok(())
    }

    pub(super) fn count(&self, report: SendReport) -> SendReport {
        self.sent.fetch_add(report.sent as u64, Ordering::Relaxed);
        if !report.dropped.is_empty() {
            self.dropped.fetch_add(report.dropped.len() as u64, Ordering::Relaxed);
        }
        report
    }

    /// Chooses the receivers and gives the message to all that have room.
    fn begin<'a>(
        &'a self,
        outlet: &'a Outlet,
        state: &mut OrderedGuard<'_, State>,
        codec: Codec,
        payload: &'a Bytes,
        options: &SendOptions,
    ) -> Sending<'a> {
        self.refresh(outlet, &mut state.plan);
        state.seq += 1;
        let mut sending = Sending {
            pubsub: self,
            outlet,
            seq: state.seq,
            codec,
            payload,
            until: options.ttl.map(deadline),
            retains: outlet.is_retaining(),
            content: None,
            slots: Vec::new(),
            others: None,
            report: SendReport::default(),
            waiting: Vec::new(),
        };
        if sending.retains {
            state.retained.get_or_insert_default();
            self.catch_up(outlet, state);
            state.retained.get_or_insert_default().keep(Arc::new(sending.content()));
        } else {
            state.retained = None;
        }
        if options.is_acked() {
            sending.content = Some(Arc::new(sending.content()));
            let one_of_a_group = matches!(options.target, Target::EachGroup | Target::Group(_));
            sending.others = (options.redeliver && one_of_a_group).then(|| Arc::clone(&state.plan.route));
        }
        let State { plan, rng, .. } = &mut **state;
        let target = &options.target;
        let mut turns = None; // locked only if there is a choice
        let mut several: Receivers = SmallVec::new();
        for (group, ways) in plan.route.groups.iter().zip(&plan.ways) {
            match target {
                Target::EachGroup => {}
                Target::Group(name) if *name == group.name => {}
                Target::Group(_) => continue,
                Target::All | Target::Node(_) => {
                    let wanted = |id: &NodeId| !matches!(target, Target::Node(node) if node != id);
                    let members = group.members.iter().zip(ways).filter(|(member, _)| wanted(&member.id));
                    several.extend(members.map(|(member, way)| (member.id, way.clone())));
                    continue;
                }
            }
            let first = if group.members.len() == 1 {
                0
            } else {
                let turns = turns.get_or_insert_with(|| outlet.turns.lock().unwrap_or_else(PoisonError::into_inner));
                turns.pick(&crate::mesh::Policy::RoundRobin, group, |_| 0, None, rng)
            };
            // If the link of the chosen one just went down, the next of the group takes the message.
            let alive = (0..ways.len()).map(|step| (first + step) % ways.len()).find(|at| ways[*at].is_up());
            let at = alive.unwrap_or(first);
            several.push((group.members[at].id, ways[at].clone()));
        }
        drop(turns);
        sending.report.matched = several.len();
        if let [(id, way)] = &several[..] {
            sending.give(way, id.peer, &[id.index]); // nearly always
        } else {
            sending.give_all(several);
        }
        sending
    }

    /// Looks the route up again if routes have changed since.
    fn refresh(&self, outlet: &Outlet, plan: &mut Plan) {
        let routes = outlet.routes.borrow();
        if plan.generation == Some(routes.generation()) {
            return;
        }
        let route = routes.resolve(&outlet.topic, &self.host);
        plan.generation = Some(routes.generation());
        drop(routes);
        let me = outlet.from.peer;
        let mut ways: HashMap<PeerId, Way> = HashMap::new();
        let mut way = |peer: PeerId| {
            let find = || match self.links.get(peer) {
                _ if peer == me => Way::Here,
                Some(link) => Way::Link { alias: link.alias(&outlet.topic), link },
                None => Way::Down,
            };
            ways.entry(peer).or_insert_with(find).clone()
        };
        plan.ways =
            route.groups.iter().map(|group| group.members.iter().map(|member| way(member.id.peer)).collect()).collect();
        outlet.turns.lock().unwrap_or_else(PoisonError::into_inner).retain(&route.groups);
        plan.route = Arc::new(route);
    }
}

impl Outlet {
    pub(crate) fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Whether it keeps its last message.
    pub(crate) fn is_retaining(&self) -> bool {
        self.retains.load(Ordering::Acquire)
    }

    pub(super) fn routes(&self) -> &watch::Receiver<Arc<Routes>> {
        &self.routes
    }

    /// Which of these nodes gets a message that another could not take.
    pub(super) fn pick_again(&self, group: &Group, rng: &mut SmallRng) -> NodeId {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        group.members[turns.pick(&crate::mesh::Policy::RoundRobin, group, |_| 0, None, rng)].id
    }
}

impl Way {
    fn is_up(&self) -> bool {
        match self {
            Self::Here => true,
            Self::Link { link, .. } => !link.is_closed(),
            Self::Down => false,
        }
    }
}

impl Sending<'_> {
    /// Groups the receivers by peer, so that the message crosses each link once.
    fn give_all(&mut self, mut receivers: Receivers) {
        receivers.sort_unstable_by_key(|(id, _)| *id);
        let mut rest = &receivers[..];
        while let Some((first, way)) = rest.first() {
            let same = rest.iter().take_while(|(id, _)| id.peer == first.peer).count().min(frame::MAX_TARGETS);
            let targets: SmallVec<[u32; FEW]> = rest[..same].iter().map(|(id, _)| id.index).collect();
            self.give(way, first.peer, &targets);
            rest = &rest[same..];
        }
    }

    /// Gives the message to nodes of one peer, or notes that it has to wait.
    fn give(&mut self, way: &Way, peer: PeerId, targets: &[u32]) {
        if let Some(content) = &self.content {
            match self.pubsub.post(content, peer, targets) {
                Ok(slots) => {
                    self.report.sent += slots.len();
                    self.slots.extend(slots);
                }
                // One node's pause is not the others', and nodes of this process are served one by one.
                Err(_) if targets.len() > 1 => targets.iter().for_each(|target| self.give(way, peer, &[*target])),
                Err(NotPosted::Never(why)) => self.drop_for(peer, targets, why),
                Err(_) if self.post_to_another(peer, targets) => self.report.sent += 1,
                Err(NotPosted::Link(_, why)) => self.wait(Via::Lane, targets, peer, why),
                Err(NotPosted::Wait) => self.wait(Via::Lane, targets, peer, DropReason::SubscriptionFull),
            }
            return;
        }
        match way {
            Way::Here => targets.iter().for_each(|target| self.give_here(*target)),
            Way::Down => self.drop_for(peer, targets, DropReason::LinkDown),
            Way::Link { link, alias } => match self.push(link, *alias, targets) {
                Ok(()) => self.report.sent += targets.len(),
                Err(Refused::Closed) => self.drop_for(peer, targets, DropReason::LinkDown),
                // One node's pause is not the others'.
                Err(Refused::Paused) if targets.len() > 1 => {
                    targets.iter().for_each(|target| self.give(way, peer, &[*target]));
                }
                Err(Refused::TooLarge) => self.drop_for(peer, targets, DropReason::TooLarge),
                // A send has waited in vain already: a stuck receiver costs the others that once.
                Err(Refused::Full) if link.is_stalled() => self.drop_for(peer, targets, DropReason::LinkFull),
                Err(refused) => {
                    let why =
                        if refused == Refused::Full { DropReason::LinkFull } else { DropReason::SubscriptionFull };
                    self.wait(Via::Link(link.clone(), *alias), targets, peer, why);
                }
            },
        }
    }

    fn give_here(&mut self, node: u32) {
        let peer = self.outlet.from.peer;
        let mut full = Vec::new();
        for inbox in self.pubsub.inboxes.matching(node, &self.outlet.topic) {
            match inbox.offer(self.message()) {
                Put::Full => full.push(inbox),
                Put::Dropped => drop(self.pubsub.dropped.fetch_add(1, Ordering::Relaxed)),
                Put::Taken | Put::Closed => {}
            }
        }
        if full.is_empty() {
            self.report.sent += 1;
        } else {
            self.wait(Via::Inboxes(full), &[node], peer, DropReason::SubscriptionFull);
        }
    }

    fn wait(&mut self, via: Via, targets: &[u32], peer: PeerId, why: DropReason) {
        self.waiting.push(Waiting { via, targets: targets.to_vec(), peer, why });
    }

    fn push(&self, link: &Link, alias: u32, targets: &[u32]) -> Result<(), Refused> {
        link.try_push(&Outgoing {
            topic: &self.outlet.topic,
            alias,
            from: self.outlet.from.index,
            from_name: &self.outlet.from_name,
            seq: self.seq,
            codec: self.codec,
            targets,
            payload: self.payload,
            delivery: None,
            until: self.until,
            retains: self.retains,
        })
    }

    fn message(&self) -> Message {
        Message {
            topic: self.outlet.topic.clone(),
            from: self.outlet.from,
            from_name: self.outlet.from_name.clone(),
            seq: self.seq,
            codec: self.codec,
            payload: self.payload.clone(),
            lagged: 0,
            retains: self.retains,
            claimed: timed(self.until),
        }
    }

    /// The message, as it is kept.
    fn content(&self) -> Content {
        Content {
            topic: self.outlet.topic.clone(),
            from: self.outlet.from,
            from_name: self.outlet.from_name.clone(),
            seq: self.seq,
            codec: self.codec,
            payload: self.payload.clone(),
            until: self.until,
            retains: self.retains,
        }
    }

    /// Waits for room, for all that wait together no longer than to the deadline.
    async fn finish(&mut self, deadline: Instant) {
        if deadline <= Instant::now() {
            return self.give_up();
        }
        let deadline = self.until.map_or(deadline, |until| until.min(deadline));
        for Waiting { mut via, targets, peer, mut why } in std::mem::take(&mut self.waiting) {
            let given = loop {
                match self.again(&mut via, peer, &targets, deadline).await {
                    Again::Given => break true,
                    Again::Not(reason) => {
                        why = reason;
                        break false;
                    }
                    Again::Wait(reason) => why = reason,
                }
            };
            if given {
                self.report.sent += targets.len();
            } else {
                if let (Via::Link(link, _), DropReason::LinkFull) = (&via, why) {
                    link.set_stalled();
                }
                let over = self.until.is_some_and(|until| until <= Instant::now());
                let why = if over { DropReason::Expired } else { why };
                self.drop_for(peer, &targets, why);
            }
        }
    }

    /// Tries once more, and waits for a change if there is no room yet.
    async fn again(&mut self, via: &mut Via, peer: PeerId, targets: &[u32], deadline: Instant) -> Again {
        match via {
            Via::Link(link, alias) => {
                let mut changed = pin!(link.changed());
                changed.as_mut().enable();
                let why = match self.push(link, *alias, targets) {
                    Ok(()) => return Again::Given,
                    Err(Refused::Closed) => return Again::Not(DropReason::LinkDown),
                    Err(Refused::TooLarge) => return Again::Not(DropReason::TooLarge),
                    Err(Refused::Full) => DropReason::LinkFull,
                    Err(Refused::Paused) => DropReason::SubscriptionFull,
                };
                if timeout_at(deadline, changed).await.is_err() { Again::Not(why) } else { Again::Wait(why) }
            }
            Via::Lane => self.post_again(peer, targets, deadline).await,
            Via::Inboxes(full) => {
                let Some(inbox) = full.last().cloned() else { return Again::Given };
                let mut room = pin!(inbox.room());
                room.as_mut().enable();
                if inbox.offer(self.message()) != Put::Full {
                    full.pop();
                    return Again::Wait(DropReason::SubscriptionFull);
                }
                if timeout_at(deadline, room).await.is_err() {
                    return Again::Not(DropReason::SubscriptionFull);
                }
                Again::Wait(DropReason::SubscriptionFull)
            }
        }
    }

    /// Gives the message to another of the group that has room, if it may go to any.
    fn post_to_another(&mut self, peer: PeerId, targets: &[u32]) -> bool {
        let (Some(route), Some(content), [index]) = (&self.others, &self.content, targets) else { return false };
        let full = NodeId { peer, index: *index };
        let mut groups = route.groups.iter().map(|group| &group.members);
        let Some(members) = groups.find(|members| members.iter().any(|member| member.id == full)) else { return false };
        let mut others = members.iter().map(|member| member.id).filter(|id| *id != full);
        let posted = others.find_map(|id| self.pubsub.post(content, id.peer, &[id.index]).ok());
        let Some(slots) = posted else { return false };
        self.slots.extend(slots);
        true
    }

    /// Tries once more to send what is to be acknowledged.
    async fn post_again(&mut self, peer: PeerId, targets: &[u32], deadline: Instant) -> Again {
        let Some(content) = &self.content else { return Again::Given };
        let lane = self.pubsub.lanes.get(peer);
        let mut changed = pin!(lane.room());
        changed.as_mut().enable();
        let (why, refused) = match self.pubsub.post(content, peer, targets) {
            Ok(slots) => {
                self.slots.extend(slots);
                return Again::Given;
            }
            Err(NotPosted::Never(why)) => return Again::Not(why),
            Err(NotPosted::Wait) => (DropReason::SubscriptionFull, None),
            Err(NotPosted::Link(link, why)) => (why, Some(link)),
        };
        let payload = content.payload.len();
        if self.post_to_another(peer, targets) {
            return Again::Given;
        }
        // Another of the group may have room before this one has.
        let until = if self.others.is_some() { deadline.min(Instant::now() + ASK_OTHERS) } else { deadline };
        let waited = match refused {
            None => timeout_at(until, changed).await,
            Some(link) => timeout_at(until, link.has_room(payload)).await,
        };
        if waited.is_err() && until == deadline { Again::Not(why) } else { Again::Wait(why) }
    }

    fn give_up(&mut self) {
        for Waiting { targets, peer, why, .. } in std::mem::take(&mut self.waiting) {
            self.drop_for(peer, &targets, why);
        }
    }

    fn drop_for(&mut self, peer: PeerId, targets: &[u32], why: DropReason) {
        self.report.dropped.extend(targets.iter().map(|index| (NodeId { peer, index: *index }, why)));
    }
}

/// What goes with a message of limited time.
fn timed(until: Option<Instant>) -> Claimed {
    Claimed(until.map(|until| Arc::new(Claim::new(Some(until.into_std()), None))))
}

/// After that time. One so long that it cannot be counted is for ever, or near enough.
fn deadline(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now + FOR_EVER)
}

/// Receivers that most messages have at most.
const FEW: usize = 4;
/// How often all of a group are asked for room while all are full.
const ASK_OTHERS: Duration = Duration::from_millis(20);
/// A day: who waits longer for one message is not helped by waiting on.
const FOR_EVER: Duration = Duration::from_secs(86_400);
/// Topics whose turns are remembered after their last sender went. Beyond, those without a sender start over.
const MAX_TURNS: usize = 1 << 14;
