//! The services of one client: calls are handed to it, a few at a time, and it answers them when it likes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use super::outbox::Outbox;
use crate::mesh::{Codec, Failure};
use crate::node::{ListenError, Node, Request, ServeOptions, Serving};
use crate::wire::control::{self as wire, Answer, Called};

/// All services of one client.
pub(super) struct Offers {
    desk: Arc<Desk>,
    open: HashMap<u64, Offer>,
    next: u64,
}

/// One service of a client.
pub(super) struct Offer {
    number: u64,
    serving: Serving,
    state: watch::Sender<State>,
    /// Tells the client of calls that nobody waits for any more.
    _cancellations: AbortOnDropHandle<()>,
}

/// Whether calls are handed to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not yet: it does not know of the service.
    Soon,
    Open,
    /// Not any more: they go to other nodes.
    Closed,
}

/// Calls that the client has and has not answered. Gone with the client: its calls then fail where they were made.
struct Desk {
    outbox: Outbox,
    next: AtomicU64,
    calls: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
}

type Reply = Result<(Codec, Bytes), Failure>;

impl Offers {
    pub(super) fn new(outbox: Outbox) -> Self {
        let desk = Desk { outbox, next: AtomicU64::new(0), calls: Mutex::default() };
        Self { desk: Arc::new(desk), open: HashMap::new(), next: 0 }
    }

    /// Offers a service. Its calls wait until it is opened.
    pub(super) async fn offer(&mut self, node: &Node, serve: wire::Serve) -> Result<Offer, ListenError> {
        let default = ServeOptions::default();
        let options = ServeOptions {
            concurrency: serve.concurrency.unwrap_or(default.concurrency).clamp(1, MAX_CONCURRENCY),
            waiting: serve.waiting.unwrap_or(default.waiting).min(MAX_WAITING_CALLS),
            ..default
        };
        let number = self.number();
        let (state, _) = watch::channel(State::Soon);
        // Never full: each of them holds a place.
        let (cancelled, cancellations) = mpsc::channel(options.concurrency);
        let hatch = Hatch {
            desk: Arc::downgrade(&self.desk),
            serving: number,
            state: state.subscribe(),
            places: Arc::new(Semaphore::new(options.concurrency)),
            cancelled,
        };
        let handler = move |request| hatch.clone().hand_over(request);
        let serving = node.serve_requests(&serve.service, options, handler).await?;
        let forwarder = tokio::spawn(tell_cancellations(cancellations, self.desk.outbox.clone()));
        Ok(Offer { number, serving, state, _cancellations: AbortOnDropHandle::new(forwarder) })
    }

    /// A number that no service of the client had.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Its calls go to the client from now on.
    pub(super) fn open(&mut self, offer: Offer) {
        offer.state.send_replace(State::Open);
        self.open.insert(offer.number, offer);
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Offer> {
        self.open.remove(&number)
    }

    /// What the client says to a call. Nothing becomes of it if nobody waits any more.
    pub(super) fn answer(&self, call: u64, reply: Reply) {
        if let Some(caller) = self.desk.calls().remove(&call) {
            let _ = caller.send(reply); // cancelled just now
        }
    }
}

impl Offer {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// No more calls for the client: those that wait go to other nodes.
    pub(super) fn turn_away(&self) {
        self.state.send_replace(State::Closed);
    }

    /// Ends the service, and waits until its calls are answered.
    pub(super) async fn drain(self) {
        self.serving.drain().await;
    }
}

impl Desk {
    fn calls(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Reply>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What calls of one service are handed to the client through.
#[derive(Clone)]
struct Hatch {
    desk: Weak<Desk>,
    serving: u64,
    state: watch::Receiver<State>,
    /// The client has no more calls than that, those included of which it does not know that they are cancelled.
    places: Arc<Semaphore>,
    cancelled: mpsc::Sender<Cancelled>,
}

/// A call that nobody waits for any more, and its place, free when the client was told.
type Cancelled = (u64, OwnedSemaphorePermit);

impl Hatch {
    /// Hands one call to the client and waits for its answer. Dropped when nobody waits for that any more.
    async fn hand_over(mut self, request: Request) -> Reply {
        let not_taken = || Failure::new(Failure::BUSY, "the program that offered it has gone");
        let Ok(place) = self.places.acquire_owned().await else { return Err(not_taken()) };
        match self.state.wait_for(|state| *state != State::Soon).await.map(|state| *state) {
            Ok(State::Open) => {}
            _ => return Err(not_taken()),
        }
        let (mut had, answer) = {
            let Some(desk) = self.desk.upgrade() else { return Err(not_taken()) };
            let (reply, answer) = oneshot::channel();
            let call = desk.next.fetch_add(1, Ordering::Relaxed);
            desk.calls().insert(call, reply);
            let mut had = Had { desk: self.desk, call, told: None };
            let Request { from, service, codec, payload } = request;
            let called = Answer::Called(Called { serving: self.serving, call, from, service, codec, payload });
            tokio::select! {
                pushed = desk.outbox.push(&called) => if pushed.is_err() { return Err(not_taken()) },
                // If it is both, either will do.
                _ = self.state.wait_for(|state| *state == State::Closed) => return Err(not_taken()),
            }
            had.told = Some((self.cancelled, place));
            (had, answer)
        };
        let reply = answer.await;
        had.told = None; // nothing to take back
        let lost = "the program that ran it has gone: it may have run";
        reply.unwrap_or_else(|_| Err(Failure::new(Failure::DISCONNECTED, lost)))
    }
}

/// A call that the client has, or is about to have.
struct Had {
    desk: Weak<Desk>,
    call: u64,
    /// How the client is told that nobody waits any more, once it knows of the call.
    told: Option<(mpsc::Sender<Cancelled>, OwnedSemaphorePermit)>,
}

impl Drop for Had {
    fn drop(&mut self) {
        // Locks for no longer than a look-up takes.
        if let Some(desk) = self.desk.upgrade() {
            desk.calls().remove(&self.call);
        }
        if let Some((cancelled, place)) = self.told.take() {
            let _ = cancelled.try_send((self.call, place)); // there is room, unless the client has gone
        }
    }
}

async fn tell_cancellations(mut cancellations: mpsc::Receiver<Cancelled>, outbox: Outbox) {
    while let Some((call, place)) = cancellations.recv().await {
        if outbox.push(&Answer::Cancelled { call }).await.is_err() {
            return;
        }
        drop(place);
    }
}

/// Most calls of one service that a client can have at a time: each is a request in the daemon's memory.
const MAX_CONCURRENCY: usize = 1024;
/// Most calls of one service that can wait for a client.
const MAX_WAITING_CALLS: usize = 1 << 16;
