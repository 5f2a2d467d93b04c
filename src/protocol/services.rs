//! What this peer's nodes offer: calls that came over links, run by handlers, a few at a time.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use hdrhistogram::Histogram;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::guard::Visitor;
use crate::mesh::{Action, Codec, Failure, NodeId, PeerId, ServiceName, ServiceStats};
use crate::net::{Link, Order, Refused, Room};
use crate::wire::frame::{self, Answer, Call, Outcome, STATS, THE_PEER};
use crate::wire::message::encode;

/// A request that a service is to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The node that asks.
    pub from: NodeId,
    /// The service that is asked.
    pub service: ServiceName,
    /// How the payload is encoded.
    pub codec: Codec,
    /// What is asked.
    pub payload: Bytes,
}

/// How much a service takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// Calls that run at a time. More use more of the machine at once; with one, calls are served one after the other.
    pub concurrency: usize,
    /// Calls that wait for their turn. Beyond, callers are told that the service is busy, and try another node.
    pub waiting: usize,
    /// Bytes of the requests that wait, together.
    pub waiting_bytes: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self { concurrency: 64, waiting: 1024, waiting_bytes: 64 << 20 }
    }
}

/// What answers the calls of one service.
pub(crate) type Handler =
    Arc<dyn Fn(Request) -> BoxFuture<'static, Result<(Codec, Bytes), Failure>> + Send + Sync + 'static>;

/// The services of this peer's nodes.
#[derive(Debug, Default)]
pub(crate) struct Services {
    offers: RwLock<HashMap<(u32, ServiceName), Offer>>,
    draining: AtomicBool,
}

/// How a service is used.
#[derive(Clone, Debug)]
enum Offer {
    Calls(Arc<Server>),
    /// Over channels only: whoever calls it is told so.
    Channels,
}

/// One service of one node.
pub(crate) struct Server {
    node: u32,
    service: ServiceName,
    handler: Handler,
    options: ServeOptions,
    state: Mutex<State>,
    /// How many calls in a row were done in no time.
    quick: AtomicU32,
    /// Told when nothing runs and nothing waits.
    idle: Notify,
}

struct State {
    running: usize,
    waiting: BTreeMap<u64, Incoming>,
    waiting_bytes: usize,
    next_ticket: u64,
    /// Calls that ran and whose answers wait for room.
    answering: usize,
    /// It takes nothing more.
    closed: bool,
    counts: ServiceStats,
    latency: Histogram<u32>,
}

/// A call that is to be answered.
struct Incoming {
    call: Call,
    peer: PeerId,
    link: Link,
    works: Arc<Works>,
    arrived: Instant,
}

/// The calls of one data stream that are not answered yet.
#[derive(Debug, Default)]
struct Works(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    calls: HashMap<u64, Work>,
    /// Bytes of answers that found no room on the link yet.
    unsent: usize,
}

#[derive(Debug)]
enum Work {
    Runs(AbortHandle, Arc<Server>),
    Waits(Arc<Server>, u64),
}

/// What reads the calls that one data stream brings. When the stream ends, so do they: nobody waits for them.
pub(crate) struct Callers {
    services: Arc<Services>,
    visitor: Visitor,
    /// Services that the peer called, and the rules by which it may not. Empty where no rule is about calls.
    rules: HashMap<ServiceName, Option<String>>,
    works: Arc<Works>,
}

impl Services {
    /// Calls of the service go to the handler from now on. `None`: the node offers it already.
    pub(crate) fn insert(
        &self,
        node: u32,
        service: ServiceName,
        options: ServeOptions,
        handler: Handler,
    ) -> Option<Arc<Server>> {
        let server = Arc::new(Server::new(node, service.clone(), options, handler));
        self.offer_new(node, service, Offer::Calls(Arc::clone(&server))).then_some(server)
    }

    /// The service is used over channels. False: the node offers it already.
    pub(crate) fn insert_channels(&self, node: u32, service: ServiceName) -> bool {
        self.offer_new(node, service, Offer::Channels)
    }

    /// Whether the node offers the service for calls.
    pub(crate) fn is_called(&self, node: u32, service: &ServiceName) -> bool {
        matches!(self.offer(node, service), Some(Offer::Calls(_)))
    }

    /// Calls of the service find nobody from now on. What runs and waits goes on.
    pub(crate) fn remove(&self, node: u32, service: &ServiceName) {
        let removed = self.offers_mut().remove(&(node, service.clone()));
        if let Some(Offer::Calls(server)) = removed {
            server.state().closed = true;
        }
    }

    /// New calls are turned away from now on: the peer is about to leave.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Waits until nothing runs and nothing waits.
    pub(crate) async fn drained(&self) {
        let servers: Vec<Arc<Server>> = self.servers();
        for server in servers {
            server.drained().await;
        }
    }

    /// Counts of all services, by node and name.
    pub(crate) fn stats(&self) -> Vec<ServiceStats> {
        let mut stats: Vec<ServiceStats> = self.servers().iter().map(|server| server.stats()).collect();
        stats.sort_unstable_by(|a, b| (&a.service, a.node).cmp(&(&b.service, b.node)));
        stats
    }

    fn servers(&self) -> Vec<Arc<Server>> {
        let offers = self.offers.read().unwrap_or_else(PoisonError::into_inner);
        let called = |offer: &Offer| if let Offer::Calls(server) = offer { Some(Arc::clone(server)) } else { None };
        offers.values().filter_map(called).collect()
    }

    fn offer(&self, node: u32, service: &ServiceName) -> Option<Offer> {
        self.offers.read().unwrap_or_else(PoisonError::into_inner).get(&(node, service.clone())).cloned()
    }

    fn offer_new(&self, node: u32, service: ServiceName, offer: Offer) -> bool {
        match self.offers_mut().entry((node, service)) {
            Entry::Vacant(place) => {
                place.insert(offer);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    fn offers_mut(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<(u32, ServiceName), Offer>> {
        self.offers.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    fn new(node: u32, service: ServiceName, options: ServeOptions, handler: Handler) -> Self {
        let options = ServeOptions { concurrency: options.concurrency.max(1), ..options };
        let state = State {
            running: 0,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            next_ticket: 0,
            answering: 0,
            closed: false,
            counts: ServiceStats::new(node, service.clone()),
            latency: Histogram::new_with_bounds(1, LONGEST_US, 1)
                .unwrap_or_else(|error| unreachable!("the bounds are in order: {error}")),
        };
        Self {
            node,
            service,
            handler,
            options,
            state: Mutex::new(state),
            quick: AtomicU32::new(0),
            idle: Notify::new(),
        }
    }

    /// What it has done so far.
    pub(crate) fn stats(&self) -> ServiceStats {
        let state = self.state();
        let quantile = |q| (!state.latency.is_empty()).then(|| state.latency.value_at_quantile(q));
        ServiceStats {
            running: state.running,
            waiting: state.waiting.len(),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            ..state.counts.clone()
        }
    }

    /// Waits until nothing runs and nothing waits.
    pub(crate) async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            {
                let state = self.state();
                if state.is_idle() {
                    return;
                }
            }
            idle.await;
        }
    }

    /// Runs the call, lets it wait, or turns it away.
    fn take(self: &Arc<Self>, incoming: Incoming) {
        let mut state = self.state();
        if state.closed {
            drop(state);
            return answer_at_once(&incoming.link, incoming.call.call, Outcome::NotOffered);
        }
        if state.running < self.options.concurrency {
            state.running += 1;
            drop(state);
            self.start(incoming, false);
            return;
        }
        let bytes = state.waiting_bytes + incoming.call.payload.len();
        if state.waiting.len() >= self.options.waiting
            || (bytes > self.options.waiting_bytes && state.waiting_bytes > 0)
        {
            state.counts.busy += 1;
            drop(state);
            return answer_at_once(&incoming.link, incoming.call.call, Outcome::Busy);
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting_bytes = bytes;
        let work = Work::Waits(Arc::clone(self), ticket);
        incoming.works.lock().calls.insert(incoming.call.call, work);
        state.waiting.insert(ticket, incoming);
    }

    /// Runs a call. One that has waited runs only if it was not taken back meanwhile.
    fn start(self: &Arc<Self>, incoming: Incoming, waited: bool) -> bool {
        let (works, call) = (Arc::clone(&incoming.works), incoming.call.call);
        let turn = Turn { server: Arc::clone(self), held: Arc::default() };
        let held = Arc::clone(&turn.held);
        if !waited && self.quick.load(Ordering::Relaxed) >= QUICK_CALLS {
            // Done before a task would have begun, as a rule. Otherwise it goes on in one.
            let mut begun = Box::pin(run(turn, incoming));
            if begun.as_mut().now_or_never().is_none() {
                self.quick.store(0, Ordering::Relaxed);
                let mut noted = works.lock();
                let task = tokio::spawn(begun);
                noted.calls.insert(call, Work::Runs(task.abort_handle(), Arc::clone(self)));
            }
            return true;
        }
        // Held until it is noted: the task may be done before.
        let mut noted = works.lock();
        if waited && !noted.calls.contains_key(&call) {
            return false;
        }
        let task = tokio::spawn(run(turn, incoming));
        held.store(true, Ordering::Release);
        noted.calls.insert(call, Work::Runs(task.abort_handle(), Arc::clone(self)));
        true
    }

    /// A call does not wait any more.
    fn give_up(&self, ticket: u64) {
        let mut state = self.state();
        if let Some(incoming) = state.waiting.remove(&ticket) {
            state.waiting_bytes -= incoming.call.payload.len();
        }
    }

    /// A call has ended, one way or another: the next has its turn.
    fn next(self: &Arc<Self>) {
        let mut state = self.state();
        // Without a runtime, everything ends.
        while Handle::try_current().is_ok()
            && let Some((_, incoming)) = state.waiting.pop_first()
        {
            state.waiting_bytes -= incoming.call.payload.len();
            drop(state);
            if self.start(incoming, true) {
                return;
            }
            state = self.state();
        }
        state.running -= 1;
        self.tell_if_idle(&state);
    }

    /// A handler was done in that time.
    fn took(&self, time: Duration) {
        let quick = self.quick.load(Ordering::Relaxed);
        let next = if time < QUICK { (quick + 1).min(QUICK_CALLS) } else { 0 };
        if next != quick {
            self.quick.store(next, Ordering::Relaxed); // one count more or less does not matter
        }
    }

    fn tell_if_idle(&self, state: &State) {
        if state.is_idle() {
            self.idle.notify_waiters();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.running == 0 && self.waiting.is_empty() && self.answering == 0
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("node", &self.node).field("service", &self.service).finish_non_exhaustive()
    }
}

/// One of as many calls as may run. Given on when the call ends, is cancelled, also before it began, or panics.
struct Turn {
    server: Arc<Server>,
    /// False only in a task that could not be spawned because the runtime ends, and all with it: there is no next then.
    held: Arc<AtomicBool>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.held.load(Ordering::Acquire) {
            self.server.next();
        }
    }
}

async fn run(turn: Turn, incoming: Incoming) {
    turn.held.store(true, Ordering::Release); // it may end before it is noted
    let server = Arc::clone(&turn.server);
    let Incoming { call, peer, link, works, arrived } = incoming;
    let Call { call, from, codec, service, payload, .. } = call;
    let request = Request { from: NodeId { peer, index: from }, service, codec, payload };
    let began = now();
    let handled = AssertUnwindSafe(async { (server.handler)(request).await }).catch_unwind().await;
    let result = handled.unwrap_or_else(|panic| Err(Failure::panicked(&*panic)));
    server.took(began.elapsed());
    let busy = result.as_ref().is_err_and(|failure| failure.kind == Failure::BUSY);
    {
        let mut state = server.state();
        if busy {
            state.counts.busy += 1; // it did not run
        } else {
            state.counts.calls += 1;
            state.counts.errors += u64::from(result.is_err());
            let took = u64::try_from(arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
            state.latency.saturating_record(took.clamp(1, LONGEST_US));
        }
    }
    let answer = answer(call, result);
    let order = Order::Answer(call);
    let put =
        |answer: &Answer, room| link.push(order.clone(), |out| frame::put_answer(out, answer), &answer.payload, room);
    match put(&answer, Room::Limited) {
        Err(Refused::TooLarge) => {
            let text = format!("a reply of {} bytes is more than the caller takes", answer.payload.len());
            let answer = self::answer(call, Err(Failure::new(Failure::BAD_REPLY, text)));
            let _ = put(&answer, Room::Always); // a link that is closed has nobody at its other end who waits
        }
        // A caller that reads slowly keeps its answer, and nobody from the service.
        Err(Refused::Full) => {
            let _unsent = Unsent::new(&server, &works, answer.payload.len());
            drop(turn);
            let _ = link.push_when_room(order.clone(), |out| frame::put_answer(out, &answer), &answer.payload).await;
        }
        Ok(_) | Err(Refused::Closed | Refused::Paused | Refused::NotAllowed) => {}
    }
    works.lock().calls.remove(&call);
}

fn answer(call: u64, result: Result<(Codec, Bytes), Failure>) -> Answer {
    let (outcome, codec, payload) = match result {
        Ok((codec, payload)) => (Outcome::Done, codec, payload),
        Err(failure) if failure.kind == Failure::BUSY => (Outcome::Busy, Codec::Bytes, Bytes::new()),
        Err(failure) => (Outcome::Failed, Codec::Cbor, encode(&failure.shortened())),
    };
    Answer { call, outcome, codec, payload }
}

/// An answer that waits for room on its link.
struct Unsent<'a> {
    server: &'a Server,
    works: &'a Works,
    bytes: usize,
}

impl<'a> Unsent<'a> {
    fn new(server: &'a Server, works: &'a Works, bytes: usize) -> Self {
        let bytes = bytes + UNSENT_EACH;
        server.state().answering += 1;
        works.lock().unsent += bytes;
        Self { server, works, bytes }
    }
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.works.lock().unsent -= self.bytes;
        let mut state = self.server.state();
        state.answering -= 1;
        self.server.tell_if_idle(&state);
    }
}

/// Answers what did not run. Does not wait: who reads nothing hears nothing.
fn answer_at_once(link: &Link, call: u64, outcome: Outcome) {
    say_at_once(link, &Answer { call, outcome, codec: Codec::Bytes, payload: Bytes::new() });
}

/// Answers that a rule does not let the caller call.
fn refuse(link: &Link, call: u64, rule: String) {
    say_at_once(link, &Answer { call, outcome: Outcome::Refused, codec: Codec::Text, payload: rule.into() });
}

fn say_at_once(link: &Link, answer: &Answer) {
    let call = answer.call;
    let put = |out: &mut BytesMut| frame::put_answer(out, answer);
    let _ = link.push(Order::Answer(call), put, &answer.payload, Room::Always);
}

impl Callers {
    pub(super) fn new(services: Arc<Services>, visitor: Visitor) -> Self {
        Self { services, visitor, rules: HashMap::new(), works: Arc::default() }
    }

    pub(super) fn call(&mut self, call: Call, link: &Link) {
        if call.node == THE_PEER {
            return self.call_peer(&call, link);
        }
        if self.visitor.asks(Action::Call)
            && let Some(rule) = self.refusal(&call.service)
        {
            self.visitor.refused(Action::Call, call.service.as_str(), &rule);
            return refuse(link, call.call, rule);
        }
        match self.services.offer(call.node, &call.service) {
            None => answer_at_once(link, call.call, Outcome::NotOffered),
            Some(Offer::Channels) => answer_at_once(link, call.call, Outcome::NotCalled),
            Some(Offer::Calls(_)) if self.services.draining.load(Ordering::Relaxed) || self.works.are_too_many() => {
                answer_at_once(link, call.call, Outcome::Busy);
            }
            Some(Offer::Calls(server)) => server.take(Incoming {
                call,
                peer: self.visitor.peer(),
                link: link.clone(),
                works: Arc::clone(&self.works),
                arrived: now(),
            }),
        }
    }

    /// The rule by which the peer may not call a service. Looked up once.
    fn refusal(&mut self, service: &ServiceName) -> Option<String> {
        if let Some(known) = self.rules.get(service) {
            return known.clone();
        }
        let refusal = self.visitor.refusal(Action::Call, service.as_str());
        if self.rules.len() >= MAX_RULES {
            self.rules.clear(); // a peer may make up any number of names
        }
        self.rules.insert(service.clone(), refusal.clone());
        refusal
    }

    /// Answers what is asked of the peer itself: open to all members, as its record is.
    fn call_peer(&self, call: &Call, link: &Link) {
        if call.service.as_str() != STATS {
            return answer_at_once(link, call.call, Outcome::NotOffered);
        }
        let payload = encode(&self.services.stats());
        let answer = Answer { call: call.call, outcome: Outcome::Done, codec: Codec::Cbor, payload };
        let put = |out: &mut BytesMut| frame::put_answer(out, &answer);
        if link.push(Order::Answer(call.call), put, &answer.payload, Room::Limited).is_err() {
            answer_at_once(link, call.call, Outcome::Busy);
        }
    }

    pub(super) fn cancel(&self, call: u64) {
        let work = self.works.lock().calls.remove(&call);
        match work {
            Some(Work::Runs(task, server)) => {
                task.abort();
                server.state().counts.cancelled += 1;
            }
            Some(Work::Waits(server, ticket)) => server.give_up(ticket),
            None => {} // answered already
        }
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        let calls: Vec<u64> = self.works.lock().calls.keys().copied().collect();
        calls.into_iter().for_each(|call| self.cancel(call));
    }
}

impl Works {
    /// Whether the caller leaves so many answers unread that it gets no more.
    fn are_too_many(&self) -> bool {
        self.lock().unsent > MAX_UNSENT
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a call takes is measured where it arrives")]
fn now() -> Instant {
    Instant::now()
}

/// A handler that is done in this time, so many times in a row, is run by what reads the link: a task of its own costs about as
/// much. What takes longer runs beside the reading, and beside other calls.
const QUICK: Duration = Duration::from_micros(20);
const QUICK_CALLS: u32 = 64;
/// Bytes of answers that wait for room on one link, each counted with what it takes besides: beyond, its calls are turned away.
const MAX_UNSENT: usize = 64 << 20;
const UNSENT_EACH: usize = 1 << 10;
/// Services of which it is remembered whether one peer may call them.
const MAX_RULES: usize = 1 << 10;
/// Calls that take longer count as an hour.
const LONGEST_US: u64 = Duration::from_secs(3600).as_micros() as u64;
