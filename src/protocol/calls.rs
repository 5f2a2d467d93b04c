//! What this peer's nodes ask of services: who gets a call, what waits for an answer, and what becomes of it when a link
//! is lost.

mod options;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};

pub use self::options::{CallError, CallOptions, CallReply, Callee};
use super::guard::Guard;
use crate::mesh::{
    Action, Codec, Failure, Group, Member, NodeId, NodeName, NotAllowed, PeerId, Policy, RemoteFailure, Routes, Rules,
    ServiceName, ServiceStats, Turns,
};
use crate::net::{Link, Links, Order, Place, Refused, Room};
use crate::wire::frame::{self, Answer, Call, Outcome, STATS, THE_PEER};
use crate::wire::message::decode;

/// What all nodes of a peer share for calling.
#[derive(Debug)]
pub(crate) struct Calls {
    host: String,
    links: Links,
    rules: Rules,
    guard: Arc<Guard>,
    max_message: usize,
    timeout: Duration,
    next: AtomicU64,
    peers: Mutex<HashMap<PeerId, Arc<Pending>>>,
    turns: Mutex<HashMap<ServiceName, Arc<Mutex<Turns>>>>,
}

/// Calls to one peer.
#[derive(Debug)]
pub(crate) struct Pending {
    waiting: Mutex<HashMap<u64, Waiting>>,
    /// Calls in flight per node of the peer.
    loads: Mutex<HashMap<u32, Arc<AtomicUsize>>>,
    room: Arc<Semaphore>,
}

/// A call that is not answered yet.
#[derive(Debug)]
struct Waiting {
    end: oneshot::Sender<End>,
    /// Its place among the frames of the link.
    place: Place,
}

/// What becomes of a call.
#[derive(Debug)]
enum End {
    Answered(Answer),
    /// The link was lost. What was never written did not run.
    Lost {
        written: bool,
    },
}

/// How a node calls one service: resolved once, kept as long as the routes hold.
#[derive(Debug)]
pub(crate) struct Caller {
    service: ServiceName,
    from: NodeId,
    policy: Policy,
    routes: watch::Receiver<Arc<Routes>>,
    turns: Arc<Mutex<Turns>>,
    plan: Mutex<Plan>,
}

#[derive(Debug)]
struct Plan {
    generation: Option<u64>,
    /// All that offer the service, if there are any.
    group: Option<Group>,
    providers: Vec<Provider>,
    /// One of those that this peer's own rules leave out, and the rule.
    left_out: Option<(Member, NotAllowed)>,
    rng: SmallRng,
}

/// A node that offers the service, and how it is reached.
#[derive(Clone, Debug)]
struct Provider {
    id: NodeId,
    name: NodeName,
    link: Option<Link>,
    pending: Arc<Pending>,
    load: Arc<AtomicUsize>,
}

impl Calls {
    pub(crate) fn new(
        host: String,
        links: Links,
        rules: Rules,
        guard: Arc<Guard>,
        max_message: usize,
        timeout: Duration,
    ) -> Self {
        let (peers, turns) = (Mutex::default(), Mutex::default());
        Self { host, links, rules, guard, max_message, timeout, next: AtomicU64::new(1), peers, turns }
    }

    /// What a node calls a service with.
    pub(crate) fn caller(&self, service: ServiceName, from: NodeId, routes: watch::Receiver<Arc<Routes>>) -> Caller {
        let turns = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            if turns.len() >= MAX_TURNS {
                turns.retain(|_, turns| Arc::strong_count(turns) > 1);
            }
            Arc::clone(turns.entry(service.clone()).or_default())
        };
        let rng = SmallRng::from_rng(&mut rand::rng());
        let plan = Plan { generation: None, group: None, providers: Vec::new(), left_out: None, rng };
        Caller { policy: self.rules.for_service(&service), service, from, routes, turns, plan: Mutex::new(plan) }
    }

    /// Calls, and waits for the answer.
    ///
    /// Cancelled, the call is taken back: a provider that has not begun does not begin, one that runs is stopped.
    pub(crate) async fn call(
        &self,
        caller: &Caller,
        codec: Codec,
        payload: &Bytes,
        options: &CallOptions,
    ) -> Result<CallReply, CallError> {
        if payload.len() > self.max_message {
            return Err(CallError::TooLarge { len: payload.len(), max: Some(self.max_message) });
        }
        let timeout = options.timeout.unwrap_or(self.timeout);
        let now = Instant::now();
        let deadline = now.checked_add(timeout).unwrap_or(now + FOR_EVER);
        match timeout_at(deadline, self.attempts(caller, codec, payload, options)).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::TimedOut(timeout)),
        }
    }

    /// Tries one provider after the other, as long as the call surely did not run.
    async fn attempts(
        &self,
        caller: &Caller,
        codec: Codec,
        payload: &Bytes,
        options: &CallOptions,
    ) -> Result<CallReply, CallError> {
        let mut tried = Tried::default();
        let mut pause = FIRST_PAUSE;
        loop {
            let provider = match self.choose(caller, options, &tried.nodes) {
                Ok(provider) => provider,
                Err(_) if tried.busy && options.wait_when_busy => {
                    sleep(pause).await; // others finish meanwhile; the call's deadline ends it
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    tried = tried.anew();
                    continue;
                }
                Err(none) => return Err(tried.why(&caller.service).unwrap_or(none)),
            };
            let Some(permit) = provider.permit(options.wait_when_busy).await else {
                tried.busy(provider.id);
                continue;
            };
            let (end, flight) = match self.launch(caller, &provider, codec, payload, permit).await {
                Ok(launched) => launched,
                Err(Refused::TooLarge) => return Err(CallError::TooLarge { len: payload.len(), max: None }),
                Err(_) => {
                    tried.nodes.push(provider.id);
                    continue;
                }
            };
            let end = end.await;
            drop(flight);
            match end {
                Ok(End::Answered(Answer { outcome: Outcome::Done, codec, payload, .. })) => {
                    return Ok(CallReply { node: provider.id, name: provider.name, codec, payload });
                }
                Ok(End::Answered(Answer { outcome: Outcome::Failed, payload, .. })) => {
                    let failure = decode(&payload).unwrap_or_else(|_| Failure::new("unknown", "it does not say why"));
                    if failure.kind != Failure::DISCONNECTED {
                        return Err(RemoteFailure { node: provider.id, failure }.into());
                    }
                    tried.lost(provider.id, options)?;
                }
                Ok(End::Answered(Answer { outcome: Outcome::Busy, .. })) => tried.busy(provider.id),
                Ok(End::Answered(Answer { outcome: Outcome::NotOffered, .. })) => tried.nodes.push(provider.id),
                Ok(End::Answered(Answer { outcome: Outcome::Refused, payload, .. })) => {
                    let (action, resource, rule) =
                        (Action::Call, caller.service.to_string(), frame::rule_from(&payload));
                    let refused = frame::Refused { action, resource, rule };
                    self.guard.refused_there(provider.id.peer, &refused);
                    tried.refused(provider.id, refused.rule);
                }
                Ok(End::Answered(Answer { outcome: Outcome::NotCalled, .. })) => {
                    return Err(CallError::NotCalled(caller.service.clone()));
                }
                Ok(End::Lost { written: true }) | Err(_) => tried.lost(provider.id, options)?,
                Ok(End::Lost { written: false }) => tried.nodes.push(provider.id),
            }
        }
    }

    /// Puts the call on the provider's link, waiting for room.
    async fn launch(
        &self,
        caller: &Caller,
        provider: &Provider,
        codec: Codec,
        payload: &Bytes,
        permit: OwnedSemaphorePermit,
    ) -> Result<(oneshot::Receiver<End>, Flight), Refused> {
        let Some(link) = &provider.link else { return Err(Refused::Closed) };
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let service = caller.service.clone();
        let (node, from) = (provider.id.index, caller.from.index);
        let call = Call { call, node, from, codec, service, payload: payload.clone() };
        let end = match provider.pending.push(&call, link) {
            // Only who has to wait gets in line for room: the line is one for all, and has a lock.
            Err(Refused::Full) => loop {
                let mut changed = pin!(link.changed());
                changed.as_mut().enable();
                match provider.pending.push(&call, link) {
                    Err(Refused::Full) => changed.await,
                    done => break done?,
                }
            },
            done => done?,
        };
        provider.load.fetch_add(1, Ordering::Relaxed);
        let (pending, load) = (Arc::clone(&provider.pending), Arc::clone(&provider.load));
        Ok((end, Flight { pending, link: link.clone(), call: call.call, load, _permit: permit }))
    }

    /// Who is to answer, of those not tried yet.
    fn choose(&self, caller: &Caller, options: &CallOptions, tried: &[NodeId]) -> Result<Provider, CallError> {
        let mut plan = caller.plan();
        self.refresh(caller, &mut plan)?;
        let Plan { group, providers, left_out, rng, .. } = &mut *plan;
        let fits = |provider: &Provider| match &options.callee {
            Callee::Any => true,
            Callee::Node(id) => provider.id == *id,
            Callee::Group(name) => provider.name == *name,
        };
        let up = |provider: &Provider| provider.link.as_ref().is_some_and(|link| !link.is_closed());
        let can = |provider: &Provider| fits(provider) && up(provider) && !tried.contains(&provider.id);
        let mut turns = caller.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let key = options.key.as_deref();
        let load = |at: usize| providers[at].load.load(Ordering::Relaxed);
        let fits_left_out = |(member, _): &&(Member, NotAllowed)| match &options.callee {
            Callee::Any => true,
            Callee::Node(id) => member.id == *id,
            Callee::Group(name) => member.name == *name,
        };
        if let Some((member, NotAllowed { rule })) = left_out.as_ref().filter(fits_left_out)
            && !providers.iter().any(fits)
        {
            return Err(CallError::Refused { node: member.id, rule: rule.clone() });
        }
        let Some(group) = group else { return Err(self.nobody(caller, options, false)) };
        if options.callee == Callee::Any {
            // Nearly always, the first choice can.
            let provider = &providers[turns.pick(&caller.policy, group, load, key, rng)];
            if can(provider) {
                return Ok(provider.clone());
            }
        }
        let able: SmallVec<[usize; 8]> = (0..providers.len()).filter(|at| can(&providers[*at])).collect();
        if able.is_empty() {
            return Err(self.nobody(caller, options, providers.iter().any(fits)));
        }
        let members = able.iter().map(|at| group.members[*at].clone()).collect();
        let others = Group { members, ..group.clone() };
        let pick = turns.pick(&caller.policy, &others, |at| load(able[at]), key, rng);
        Ok(providers[able[pick]].clone())
    }

    /// Why nobody can answer.
    fn nobody(&self, caller: &Caller, options: &CallOptions, offered: bool) -> CallError {
        let service = caller.service.clone();
        let exists = |wanted: &dyn Fn(NodeId, &NodeName) -> bool| {
            let routes = caller.routes.borrow();
            routes.records().any(|record| {
                record.nodes.iter().any(|node| wanted(NodeId { peer: record.peer, index: node.index }, &node.name))
            })
        };
        let (text, there) = match &options.callee {
            Callee::Any => return CallError::NoProvider(service),
            Callee::Node(id) => (id.to_string(), exists(&|node, _| node == *id)),
            Callee::Group(name) => (name.to_string(), exists(&|_, known| known == name)),
        };
        match (offered, there) {
            (true, _) => CallError::NoProvider(service), // it was there a moment ago
            (false, true) => CallError::NotOffered { node: text, service },
            (false, false) => CallError::NoSuchNode(text),
        }
    }

    /// Looks up again who offers the service, if routes have changed since.
    fn refresh(&self, caller: &Caller, plan: &mut Plan) -> Result<(), CallError> {
        if caller.routes.has_changed().is_err() {
            return Err(CallError::Closed); // who made the routes is gone
        }
        let routes = caller.routes.borrow();
        if plan.generation == Some(routes.generation()) {
            return Ok(());
        }
        let mut group = routes.providers(&caller.service, &self.host);
        plan.left_out = group.as_mut().and_then(|group| {
            self.guard.admit_providers(caller.from.peer, &routes, &caller.service, &mut group.members)
        });
        let group = group.filter(|group| !group.members.is_empty());
        plan.generation = Some(routes.generation());
        drop(routes);
        let provider = |member: &Member| {
            let pending = self.pending(member.id.peer);
            let load = pending.load(member.id.index);
            Provider { id: member.id, name: member.name.clone(), link: self.links.get(member.id.peer), pending, load }
        };
        plan.providers = group.iter().flat_map(|group| &group.members).map(provider).collect();
        plan.group = group;
        Ok(())
    }

    /// The nodes that offer a service now.
    pub(crate) fn providers(&self, caller: &Caller) -> Vec<(NodeId, NodeName)> {
        let mut plan = caller.plan();
        if self.refresh(caller, &mut plan).is_err() {
            return Vec::new();
        }
        plan.providers.iter().map(|provider| (provider.id, provider.name.clone())).collect()
    }

    /// Asks a peer for the counts of its services.
    pub(crate) async fn stats(&self, peer: PeerId, patience: Duration) -> Option<Vec<ServiceStats>> {
        let pending = self.pending(peer);
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let service = ServiceName::new(STATS).ok()?;
        let call = Call { call, node: THE_PEER, from: THE_PEER, codec: Codec::Bytes, service, payload: Bytes::new() };
        let permit = Arc::clone(&pending.room).try_acquire_owned().ok()?;
        let link = self.links.get(peer)?;
        let end = pending.push(&call, &link).ok()?;
        let load = Arc::default();
        let _flight = Flight { pending, link, call: call.call, load, _permit: permit };
        match tokio::time::timeout(patience, end).await.ok()?.ok()? {
            End::Answered(answer) if answer.outcome == Outcome::Done => decode(&answer.payload).ok(),
            _ => None,
        }
    }

    /// What waits for answers of a peer.
    pub(crate) fn pending(&self, peer: PeerId) -> Arc<Pending> {
        Arc::clone(self.peers.lock().unwrap_or_else(PoisonError::into_inner).entry(peer).or_default())
    }

    /// The link to a peer is lost: nothing that it had taken will be answered.
    pub(super) fn down(&self, peer: PeerId, link: &Link) {
        let waiting = std::mem::take(&mut *self.pending(peer).waiting());
        for (_, Waiting { end, place }) in waiting {
            let _ = end.send(End::Lost { written: link.was_taken(place) }); // who called may have given up
        }
    }

    /// The peer has left: no answer will come.
    pub(crate) fn end(&self) {
        let peers: Vec<Arc<Pending>> =
            self.peers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for pending in peers {
            for (_, Waiting { end, .. }) in std::mem::take(&mut *pending.waiting()) {
                let _ = end.send(End::Lost { written: true }); // who called may have given up
            }
        }
    }

    pub(super) fn forget(&self, peer: PeerId) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }
}

impl Caller {
    pub(crate) fn service(&self) -> &ServiceName {
        &self.service
    }

    pub(crate) fn routes(&self) -> &watch::Receiver<Arc<Routes>> {
        &self.routes
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Provider {
    /// The right to have one more call in flight; `None` if there are too many and the caller does not wait.
    async fn permit(&self, wait: bool) -> Option<OwnedSemaphorePermit> {
        let room = Arc::clone(&self.pending.room);
        match Arc::clone(&room).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) if wait => room.acquire_owned().await.ok(),
            Err(_) => None,
        }
    }
}

impl Default for Pending {
    fn default() -> Self {
        let room = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        Self { waiting: Mutex::default(), loads: Mutex::default(), room }
    }
}

impl Pending {
    /// Puts a call on the link and notes that it waits. The lock is held over both: an answer finds the note, and so does
    /// the end of the link.
    fn push(&self, call: &Call, link: &Link) -> Result<oneshot::Receiver<End>, Refused> {
        let mut waiting = self.waiting();
        let put = |out: &mut BytesMut| frame::put_call(out, call);
        let place = link.push(Order::Call(call.call), put, &call.payload, Room::Limited)?;
        let (end, ended) = oneshot::channel();
        waiting.insert(call.call, Waiting { end, place });
        Ok(ended)
    }

    pub(super) fn answered(&self, answer: Answer) {
        let waiting = self.waiting().remove(&answer.call);
        if let Some(waiting) = waiting {
            let _ = waiting.end.send(End::Answered(answer)); // who called may have given up
        }
    }

    fn load(&self, node: u32) -> Arc<AtomicUsize> {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        if loads.len() >= MAX_LOADS {
            loads.retain(|_, load| Arc::strong_count(load) > 1);
        }
        Arc::clone(loads.entry(node).or_default())
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is on its way. Dropped before its answer came, it is taken back.
struct Flight {
    pending: Arc<Pending>,
    link: Link,
    call: u64,
    load: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
        // Locks for no longer than a look-up takes.
        if self.pending.waiting().remove(&self.call).is_some() {
            self.link.cancel(self.call);
        }
    }
}

/// What became of earlier attempts at one call.
#[derive(Default)]
struct Tried {
    nodes: SmallVec<[NodeId; 4]>,
    /// Those that this peer may not call, and a rule of theirs.
    refused: Vec<NodeId>,
    rule: Option<(NodeId, String)>,
    busy: bool,
    /// Where it may have run.
    lost: Option<NodeId>,
}

impl Tried {
    fn busy(&mut self, node: NodeId) {
        self.busy = true;
        self.nodes.push(node);
    }

    /// Its rules do not let this peer call it: they do not change while it runs.
    fn refused(&mut self, node: NodeId, rule: String) {
        self.nodes.push(node);
        self.refused.push(node);
        self.rule = Some((node, rule));
    }

    /// Those that were busy, or not there, are asked again.
    fn anew(self) -> Self {
        Self { nodes: self.refused.iter().copied().collect(), busy: false, ..self }
    }

    /// It may have run there: only a call that may run twice is tried again.
    fn lost(&mut self, node: NodeId, options: &CallOptions) -> Result<(), CallError> {
        if !options.idempotent {
            return Err(CallError::Disconnected(node));
        }
        self.nodes.push(node);
        self.lost = Some(node);
        Ok(())
    }

    /// What to say when nobody is left to try.
    fn why(&self, service: &ServiceName) -> Option<CallError> {
        let lost = self.lost.map(CallError::Disconnected);
        let busy = || self.busy.then(|| CallError::Busy(service.clone()));
        let refused = || self.rule.clone().map(|(node, rule)| CallError::Refused { node, rule });
        lost.or_else(busy).or_else(refused)
    }
}

/// Calls in flight to one peer, at most: more wait, or are refused.
pub(crate) const MAX_IN_FLIGHT: usize = 1 << 16;
/// Nodes of one peer whose load is remembered after the last caller went.
const MAX_LOADS: usize = 1 << 14;
/// Services whose turns are remembered after their last caller went.
const MAX_TURNS: usize = 1 << 14;
/// A day: who waits longer for one call is not helped by waiting on.
const FOR_EVER: Duration = Duration::from_secs(86_400);
/// Between tries when all are busy.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
