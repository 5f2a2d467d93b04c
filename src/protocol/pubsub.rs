//! Messages on topics: from a sending node along the routes to links and to nodes of this process, and from links into
//! subscriptions.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use smallvec::SmallVec;
use tokio::sync::{Mutex as OrderedMutex, MutexGuard as OrderedGuard, watch};
use tokio::time::{Instant, timeout_at};

use super::ping::Pings;
use super::subscription::{Inbox, Inboxes, Put};
use crate::mesh::{
    Codec, DropReason, GroupBy, Message, NodeId, NodeName, PeerId, Policy, Routes, Rules, SendReport, Target, Topic,
    Turns,
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
    rules: Rules,
    turns: Mutex<HashMap<Topic, Arc<Mutex<Turns>>>>,
    max_message: usize,
    send_timeout: Duration,
    sent: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
}

/// One node's sending on one topic: what makes its messages leave in order.
#[derive(Debug)]
pub(crate) struct Outlet {
    topic: Topic,
    from: NodeId,
    from_name: NodeName,
    routes: watch::Receiver<Arc<Routes>>,
    policy: Policy,
    group_by: GroupBy,
    turns: Arc<Mutex<Turns>>,
    /// Held while a message is sent. A fair lock: who comes first sends first. Shared with outlets of another policy, so
    /// that the numbers of a node's topic are one sequence.
    state: Arc<OrderedMutex<State>>,
}

#[derive(Debug)]
struct State {
    seq: u64,
    plan: Plan,
    rng: SmallRng,
}

/// A route with the links looked up. Holds for one snapshot of the routes and one way of grouping.
#[derive(Debug, Default)]
struct Plan {
    generation: Option<u64>,
    group_by: GroupBy,
    route: crate::mesh::Route,
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
    /// 1 s by default. Zero never waits.
    pub timeout: Option<Duration>,
    /// What [`Policy::Hash`] goes by: messages of one key go to one node of each group. Does not travel.
    pub key: Option<Bytes>,
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
}

impl PubSub {
    pub(crate) fn new(host: String, links: Links, rules: Rules, max_message: usize, send_timeout: Duration) -> Self {
        Self {
            host,
            links,
            inboxes: Inboxes::default(),
            pings: Pings::default(),
            rules,
            turns: Mutex::default(),
            max_message,
            send_timeout,
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
        (read(&self.sent), read(&self.received), read(&self.dropped))
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
        let (policy, group_by) = self.rules.for_topic(&topic);
        let state = State { seq: 0, plan: Plan::default(), rng: SmallRng::from_rng(&mut rand::rng()) };
        let state = Arc::new(OrderedMutex::new(state));
        Outlet { topic, from, from_name, routes, policy, group_by, turns, state }
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
            let timeout = options.timeout.unwrap_or(self.send_timeout);
            sending.finish(timeout).await;
        }
        Ok(self.count(sending.report))
    }

    /// Sends one message to whom there is room for; the others are in the report. Never waits.
    pub(crate) fn try_send(
        &self,
        outlet: &Outlet,
        codec: Codec,
        payload: &Bytes,
        options: &SendOptions,
    ) -> Result<Option<SendReport>, SendError> {
        self.check(outlet, payload)?;
        let Ok(mut state) = outlet.state.try_lock() else { return Ok(None) };
        let mut sending = self.begin(outlet, &mut state, codec, payload, options);
        sending.give_up();
        Ok(Some(self.count(sending.report)))
    }

    /// How many nodes listen to the outlet's topic.
    pub(crate) fn listeners(&self, outlet: &Outlet) -> usize {
        let count = |route: &crate::mesh::Route| route.groups.iter().map(|group| group.members.len()).sum();
        match outlet.state.try_lock() {
            Ok(mut state) => {
                self.refresh(outlet, &mut state.plan, outlet.group_by);
                count(&state.plan.route)
            }
            // A send is waiting; the answer does not have to.
            Err(_) => {
                let routes = Arc::clone(&outlet.routes.borrow());
                count(&routes.resolve(&outlet.topic, &self.host, outlet.group_by))
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

    fn count(&self, report: SendReport) -> SendReport {
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
        let State { seq, plan, rng } = &mut **state;
        let target = &options.target;
        // The group that a target names is that of a name, however messages to all groups are grouped.
        self.refresh(outlet, plan, if matches!(target, Target::Group(_)) { GroupBy::Name } else { outlet.group_by });
        *seq += 1;
        let report = SendReport::default();
        let mut sending = Sending { pubsub: self, outlet, seq: *seq, codec, payload, report, waiting: Vec::new() };
        let mut turns = None; // locked only if there is a choice
        let mut several: Receivers = SmallVec::new();
        for (group, ways) in plan.route.groups.iter().zip(&plan.ways) {
            match target {
                Target::EachGroup => {}
                Target::Group(name) if *name == group.members[0].name => {}
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
                let turns = turns.get_or_insert_with(|| outlet.turns(plan));
                turns.pick(&outlet.policy, group, |at| ways[at].load(), options.key.as_deref(), rng)
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

    /// Looks the route up again if routes have changed since, or were last grouped otherwise.
    fn refresh(&self, outlet: &Outlet, plan: &mut Plan, group_by: GroupBy) {
        let routes = outlet.routes.borrow();
        if plan.generation == Some(routes.generation()) && plan.group_by == group_by {
            return;
        }
        let route = routes.resolve(&outlet.topic, &self.host, group_by);
        (plan.generation, plan.group_by) = (Some(routes.generation()), group_by);
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
        plan.route = route;
    }
}

impl Outlet {
    pub(crate) fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The same node's sending on the same topic, balanced otherwise. Both number their messages in one sequence.
    pub(crate) fn balanced(&self, policy: Policy, group_by: GroupBy) -> Self {
        Self {
            topic: self.topic.clone(),
            from: self.from,
            from_name: self.from_name.clone(),
            routes: self.routes.clone(),
            policy,
            group_by,
            turns: Arc::default(),
            state: Arc::clone(&self.state),
        }
    }

    /// Whether somebody else sends with it, or with one made of it.
    pub(crate) fn is_shared(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || Arc::strong_count(&self.state) > 1
    }

    /// Where the plan's groups are in their turns.
    fn turns(&self, plan: &Plan) -> MutexGuard<'_, Turns> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.keep_up(plan.generation.unwrap_or_default(), &plan.route.groups);
        turns
    }
}

impl SendOptions {
    /// With what [`Policy::Hash`] goes by.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
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

    /// Frames that wait on it.
    fn load(&self) -> usize {
        match self {
            Self::Here => 0,
            Self::Link { link, .. } => link.queued(),
            Self::Down => usize::MAX,
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
                    let via = Via::Link(link.clone(), *alias);
                    self.waiting.push(Waiting { via, targets: targets.to_vec(), peer, why });
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
            let (via, targets) = (Via::Inboxes(full), vec![node]);
            self.waiting.push(Waiting { via, targets, peer, why: DropReason::SubscriptionFull });
        }
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
        }
    }

    /// Waits for room, for all that wait together no longer than `timeout`.
    async fn finish(&mut self, timeout: Duration) {
        if timeout.is_zero() {
            return self.give_up();
        }
        // A time so long that it cannot be counted is for ever, or near enough.
        let now = Instant::now();
        let deadline = now.checked_add(timeout).unwrap_or(now + FOR_EVER);
        for Waiting { mut via, targets, peer, mut why } in std::mem::take(&mut self.waiting) {
            let given = loop {
                match self.again(&mut via, &targets, deadline).await {
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
                self.drop_for(peer, &targets, why);
            }
        }
    }

    /// Tries once more, and waits for a change if there is no room yet.
    async fn again(&self, via: &mut Via, targets: &[u32], deadline: Instant) -> Again {
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

    fn give_up(&mut self) {
        for Waiting { targets, peer, why, .. } in std::mem::take(&mut self.waiting) {
            self.drop_for(peer, &targets, why);
        }
    }

    fn drop_for(&mut self, peer: PeerId, targets: &[u32], why: DropReason) {
        self.report.dropped.extend(targets.iter().map(|index| (NodeId { peer, index: *index }, why)));
    }
}

/// Receivers that most messages have at most.
const FEW: usize = 4;
/// A day: who waits longer for one message is not helped by waiting on.
const FOR_EVER: Duration = Duration::from_secs(86_400);
/// Topics whose turns are remembered after their last sender went. Beyond, those without a sender start over.
const MAX_TURNS: usize = 1 << 14;
