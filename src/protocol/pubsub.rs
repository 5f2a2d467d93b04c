//! Messages on topics: from a sending node along the routes to links and to nodes of this process, and from links into
//! subscriptions.

mod kept;
mod options;
pub(crate) mod receipt;
mod retain;
mod sending;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use smallvec::SmallVec;
use tokio::sync::{Mutex as OrderedMutex, MutexGuard as OrderedGuard, watch};
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::kept::Kept;
pub use self::options::{SendError, SendOptions};
use self::retain::Retained;
use self::sending::Sending;
use super::delivery::{Content, Lanes, NotPosted, Slot};
use super::guard::Guard;
use super::ping::Pings;
use super::subscription::Inboxes;
use crate::mesh::{
    Action, Codec, Group, GroupBy, Listening, NodeId, NodeName, PeerId, Policy, Route, Routes, Rules, SendReport,
    Target, Topic, Turns,
};
use crate::net::{Link, Links};

/// What all nodes of a peer share for sending and receiving.
#[derive(Debug)]
pub(crate) struct PubSub {
    host: String,
    links: Links,
    inboxes: Inboxes,
    pings: Pings,
    rules: Rules,
    guard: Arc<Guard>,
    turns: Mutex<Kept<Arc<Mutex<Turns>>>>,
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

/// One node's sending on one topic, balanced in one way.
#[derive(Debug)]
pub(crate) struct Outlet {
    origin: Arc<Origin>,
    policy: Policy,
    group_by: GroupBy,
    turns: Arc<Mutex<Turns>>,
}

/// One node's sending on one topic, however balanced: what makes its messages leave in order, and numbers them in one
/// sequence.
#[derive(Debug)]
struct Origin {
    topic: Topic,
    from: NodeId,
    from_name: NodeName,
    routes: watch::Receiver<Arc<Routes>>,
    /// Whether the last message is kept for who comes later, and what gives it to them.
    retains: AtomicBool,
    keeper: Mutex<Option<AbortOnDropHandle<()>>>,
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

/// A route with the links looked up. Holds for one snapshot of the routes and one way of grouping.
#[derive(Debug, Default)]
struct Plan {
    generation: Option<u64>,
    /// Knows at a glance whether there are other routes since.
    seen: Option<watch::Receiver<Arc<Routes>>>,
    group_by: GroupBy,
    listening: Listening,
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

/// Who gets one message. On the stack for as many as there mostly are.
type Receivers<'a> = SmallVec<[(NodeId, &'a Way); FEW]>;

impl PubSub {
    /// `max_unsettled`: bytes per peer that wait to be acknowledged.
    pub(crate) fn new(
        host: String,
        links: Links,
        rules: Rules,
        guard: Arc<Guard>,
        max_message: usize,
        max_unsettled: usize,
        times: SendTimes,
    ) -> Self {
        Self {
            host,
            links,
            inboxes: Inboxes::default(),
            pings: Pings::default(),
            rules,
            guard,
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

    pub(crate) fn pings(&self) -> &Pings {
        &self.pings
    }

    /// So many messages came over a link.
    pub(super) fn received(&self, count: usize) {
        self.received.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// So many messages were dropped here.
    pub(super) fn dropped(&self, count: usize) {
        if count > 0 {
            self.dropped.fetch_add(count as u64, Ordering::Relaxed);
        }
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
        let in_use = |turns: &Arc<Mutex<Turns>>| Arc::strong_count(turns) > 1;
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner).of(&topic, in_use, Arc::default);
        let rng = SmallRng::from_rng(&mut rand::rng());
        let (policy, group_by) = self.rules.for_topic(&topic);
        let state = OrderedMutex::new(State { seq: 0, plan: Plan::default(), rng, retained: None });
        let (retains, keeper) = (AtomicBool::new(false), Mutex::default());
        let origin = Arc::new(Origin { topic, from, from_name, routes, retains, keeper, state });
        Outlet { origin, policy, group_by, turns }
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
        let mut state = match outlet.origin.state.try_lock() {
            Ok(state) => state,
            Err(_) => outlet.origin.state.lock().await,
        };
        let mut sending = self.begin(outlet, &mut state, codec, payload, options);
        if !sending.waiting.is_empty() {
            sending.finish(deadline(options.timeout.unwrap_or(self.times.room))).await;
        }
        Ok(self.count(sending.report))
    }

    /// Sends a message that is to be acknowledged to nodes of one peer; only to one at a time if that is this peer itself.
    fn post(&self, content: &Arc<Content>, peer: PeerId, targets: &[u32]) -> Result<Vec<Slot>, NotPosted> {
        let lane = self.lanes.get(peer);
        if peer != content.from.peer {
            return lane.post(content, peer, targets);
        }
        let Some(index) = targets.first().copied() else { return Ok(Vec::new()) };
        lane.post_here(content, NodeId { peer, index }, &self.inboxes.matching(index, &content.topic))
    }

    /// All subscriptions end once what they hold is taken. Waits for that as long as their programs go on taking, and no longer
    /// than `most`; then what is not taken and settled is handed back.
    pub(crate) async fn drain(&self, most: Duration) {
        let (open, until) = (self.inboxes.open(), deadline(most));
        if open.is_empty() {
            return;
        }
        // What others sent before they heard is still on its way, and is taken like all else.
        sleep(LATE).await;
        open.iter().for_each(|inbox| inbox.drain());
        let held = || open.iter().map(|inbox| inbox.len()).sum::<usize>();
        let (mut left, mut progress) = (held() + self.lanes.unsettled(), Instant::now());
        while left > 0 && Instant::now() < until {
            let patience = if self.lanes.unsettled() > 0 { IN_HAND } else { UNREAD };
            if progress.elapsed() > patience {
                break;
            }
            sleep(LOOK).await; // looks again; the two deadlines end it
            let now = held() + self.lanes.unsettled();
            if now < left {
                progress = Instant::now();
            }
            left = now;
        }
        open.iter().for_each(|inbox| inbox.hand_back());
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
        let Ok(mut state) = outlet.origin.state.try_lock() else { return Ok(None) };
        let mut sending = self.begin(outlet, &mut state, codec, payload, options);
        sending.give_up();
        Ok(Some(self.count(sending.report)))
    }

    /// How many nodes listen to the outlet's topic.
    pub(crate) fn listeners(&self, outlet: &Outlet) -> usize {
        let count = |route: &Route| route.groups.iter().map(|group| group.members.len()).sum();
        match outlet.origin.state.try_lock() {
            Ok(mut state) => {
                self.refresh(&outlet.origin, &mut state.plan, outlet.group_by);
                count(&state.plan.route)
            }
            // A send is waiting; the answer does not have to.
            Err(_) => {
                let routes = Arc::clone(&outlet.origin.routes.borrow());
                count(&self.resolve(&outlet.origin, &routes, outlet.group_by))
            }
        }
    }

    fn check(&self, outlet: &Outlet, payload: &Bytes) -> Result<(), SendError> {
        if outlet.origin.routes.has_changed().is_err() {
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
        self.refresh(&outlet.origin, &mut state.plan, outlet.grouping(&options.target));
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
            let _ = self.catch_up(&outlet.origin, state); // who has no room for it gets the new one, if need be later
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
                Target::Group(name) if *name == group.members[0].name => {}
                Target::Group(_) => continue,
                Target::All | Target::Node(_) => {
                    let wanted = |id: &NodeId| !matches!(target, Target::Node(node) if node != id);
                    let members = group.members.iter().zip(ways).filter(|(member, _)| wanted(&member.id));
                    several.extend(members.map(|(member, way)| (member.id, way)));
                    continue;
                }
            }
            if let ([member], [way]) = (&group.members[..], &ways[..]) {
                several.push((member.id, way)); // no choice
                continue;
            }
            let turns = turns.get_or_insert_with(|| outlet.turns(plan));
            let first = turns.pick(&outlet.policy, group, |at| ways[at].load(), options.key.as_deref(), rng);
            // If the link of the chosen one just went down, the next of the group takes the message.
            // So it does if that one is known not to let this peer send.
            let takes = |at: &usize| ways[*at].takes(outlet.topic());
            let at = (0..ways.len()).map(|step| (first + step) % ways.len()).find(takes).unwrap_or(first);
            several.push((group.members[at].id, &ways[at]));
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

    /// Who listens to the topic, and may.
    fn resolve(&self, origin: &Origin, routes: &Routes, group_by: GroupBy) -> Route {
        let mut route = routes.resolve(&origin.topic, &self.host, group_by);
        self.guard.admit_listeners(origin.from.peer, routes, &origin.topic, &mut route);
        route
    }

    /// Looks the route up again if something has changed for the topic since, or it was last grouped otherwise. Most changes
    /// are about other topics, and with many publishers each of them would look all its listeners up at each.
    fn refresh(&self, origin: &Origin, plan: &mut Plan, group_by: GroupBy) {
        let seen = plan.seen.get_or_insert_with(|| {
            let mut routes = origin.routes.clone();
            routes.mark_changed();
            routes
        });
        if plan.group_by == group_by && seen.has_changed().is_ok_and(|changed| !changed) {
            return;
        }
        let routes = seen.borrow_and_update();
        let generation = Some(routes.generation());
        if plan.generation == generation && plan.group_by == group_by {
            return;
        }
        let listening = routes.listening(&origin.topic);
        let asks = self.guard.is_about(Action::Listen).then(|| Arc::clone(&routes));
        drop(routes);
        let resolved = plan.generation.is_some();
        plan.generation = generation;
        if resolved && plan.listening == listening && plan.group_by == group_by && plan.is_up() {
            return;
        }
        let mut route = listening.route(&self.host, group_by);
        if let Some(routes) = asks {
            self.guard.admit_listeners(origin.from.peer, &routes, &origin.topic, &mut route);
        }
        (plan.listening, plan.group_by) = (listening, group_by);
        let me = origin.from.peer;
        let mut ways: HashMap<PeerId, Way> = HashMap::new();
        let mut way = |peer: PeerId| {
            let find = || match self.links.get(peer) {
                _ if peer == me => Way::Here,
                Some(link) => Way::Link { alias: link.alias(&origin.topic), link },
                None => Way::Down,
            };
            ways.entry(peer).or_insert_with(find).clone()
        };
        plan.ways =
            route.groups.iter().map(|group| group.members.iter().map(|member| way(member.id.peer)).collect()).collect();
        plan.route = Arc::new(route);
    }
}

impl Outlet {
    pub(crate) fn topic(&self) -> &Topic {
        &self.origin.topic
    }

    /// Whether it keeps its last message.
    pub(crate) fn is_retaining(&self) -> bool {
        self.origin.retains.load(Ordering::Acquire)
    }

    pub(super) fn routes(&self) -> &watch::Receiver<Arc<Routes>> {
        &self.origin.routes
    }

    /// Which of these nodes gets a message that another could not take.
    pub(super) fn pick_again(&self, group: &Group, key: Option<&[u8]>, rng: &mut SmallRng) -> NodeId {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        group.members[turns.pick(&self.policy, group, |_| 0, key, rng)].id
    }

    /// How listeners are grouped. The group that a target names is that of a name, however messages to all groups are
    /// grouped.
    fn grouping(&self, target: &Target) -> GroupBy {
        if matches!(target, Target::Group(_)) { GroupBy::Name } else { self.group_by }
    }

    /// The same node's sending on the same topic, balanced otherwise. Both number their messages in one sequence.
    pub(crate) fn balanced(&self, policy: Policy, group_by: GroupBy) -> Self {
        Self { origin: Arc::clone(&self.origin), policy, group_by, turns: Arc::default() }
    }

    /// Whether somebody else sends with it, or with one made of it.
    pub(crate) fn is_shared(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || Arc::strong_count(&self.origin) > 1
    }

    /// Where the plan's groups are in their turns.
    fn turns(&self, plan: &Plan) -> MutexGuard<'_, Turns> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.keep_up(plan.generation.unwrap_or_default(), &plan.route.groups);
        turns
    }
}

impl Plan {
    /// Whether every link of it stood when it was last looked at, and stands now.
    fn is_up(&self) -> bool {
        self.ways.iter().flatten().all(Way::is_up)
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

    /// Whether a message on the topic can go that way: its link stands, and its peer did not say that it may not.
    fn takes(&self, topic: &Topic) -> bool {
        self.is_up() && !matches!(self, Self::Link { link, .. } if link.refusal(topic).is_some())
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

/// After that time. One so long that it cannot be counted is for ever, or near enough.
fn deadline(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now + FOR_EVER)
}

/// Time in which what is under way arrives at a peer that drains.
const LATE: Duration = Duration::from_millis(50);
/// How long a drain waits for a program that takes nothing: longer for what its sender wants to hear of.
const UNREAD: Duration = Duration::from_millis(300);
const IN_HAND: Duration = Duration::from_secs(1);
/// Between looks at what a drain has left.
const LOOK: Duration = Duration::from_millis(10);
/// Receivers that most messages have at most.
const FEW: usize = 4;
/// A day: who waits longer for one message is not helped by waiting on.
const FOR_EVER: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::kit;
    use crate::net::LinkLimits;

    /// What comes of a send after each of these changes of the routes, by the plan that it was sent with.
    #[tokio::test]
    async fn a_plan_holds_until_something_changes_for_its_topic() {
        let links = Links::default();
        let link = |epoch| Link::new(epoch, LinkLimits { frames: 100, bytes: 1 << 20 }, 1000);
        let first = link(1);
        links.insert(kit::peer(2), first.clone(), None);
        let times = SendTimes { room: Duration::ZERO, acknowledgement: Duration::ZERO };
        let pubsub = PubSub::new(String::new(), links, Rules::default(), Arc::default(), 1000, 1000, times);
        let record = |filters: &[&str]| kit::record_with(2, [kit::listener(0, "n", filters)]);
        let (before, more, less) = (record(&["t", "a"]), record(&["t", "a", "b", "*/t"]), record(&["a"]));
        let (more, less) = (Arc::new(more), Arc::new(less));
        let mut now = kit::routes_to(before.clone(), 1);
        let (routes, seen) = watch::channel(Arc::new(now.clone()));
        let outlet = pubsub.outlet(kit::topic("t"), NodeId { peer: kit::peer(1), index: 0 }, kit::node_name("s"), seen);
        let plan = || {
            let sent = pubsub.try_send(&outlet, Codec::Bytes, &Bytes::new(), &SendOptions::default());
            let state = outlet.origin.state.try_lock().unwrap();
            (sent.unwrap().unwrap().sent, Arc::clone(&state.plan.route))
        };
        let (sent, planned) = plan();
        assert_eq!(sent, 1);
        now.replace(kit::peer(2), Some(&before), Some(&more));
        routes.send_replace(Arc::new(now.snapshot(2)));
        let (sent, still) = plan();
        assert!(sent == 1 && Arc::ptr_eq(&planned, &still), "nothing changed for the topic");

        pubsub.links.insert(kit::peer(2), link(2), None);
        first.close();
        routes.send_replace(Arc::new(now.snapshot(3)));
        let (sent, over_another) = plan();
        assert!(sent == 1 && !Arc::ptr_eq(&planned, &over_another), "the link is another");

        now.replace(kit::peer(2), Some(&more), Some(&less));
        routes.send_replace(Arc::new(now.snapshot(4)));
        assert_eq!(plan().0, 0, "nobody listens any more");
    }
}
