//! One end of a channel as tasks share it: the program that speaks, the reader that hears, and the link between.

use std::future::poll_fn;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::Channels;
use crate::mesh::channel::{End, Lost, Say, Standing, Taken, TheirEnd, WINDOW};
use crate::mesh::{Failure, Item, NodeId, PeerId};
use crate::net::{Link, Order, Refused, Room};
use crate::wire::channel::{Accepted, Adopt, ChannelFrame, Refusal, Token};

/// One end of a channel at this peer.
#[derive(Debug)]
pub(crate) struct Talk {
    pub(super) id: u64,
    /// Index of the node whose it is.
    pub(super) node: u32,
    channels: Weak<Channels>,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) end: End,
    pub(super) phase: Phase,
    /// The node at the other end, now or last.
    pub(super) far_node: NodeId,
    /// What is said there is addressed to. `None`: nobody yet, or the far end is on its way from hand to hand.
    pub(super) far: Option<Far>,
    /// Lets its holder take over the far end.
    pub(super) token: Token,
    /// What the last who did so showed.
    pub(super) used: Option<Token>,
    /// Who wants to take over the far end, before its holder has said that it gives it away.
    pub(super) adopter: Option<(Adopt, PeerId, Link)>,
    link: Option<Link>,
    epoch: u64,
    /// A task waits for room on the link.
    pumping: bool,
    /// Nothing more is heard or said: it is not in the table any more.
    forgotten: bool,
    /// Who waits for items, for room, and for the end.
    readers: Waiters,
    writers: Waiters,
    watchers: Waiters,
}

/// Who waits for something, each under a number of its own.
#[derive(Debug, Default)]
struct Waiters {
    last: u64,
    wakers: Vec<(u64, Waker)>,
}

/// One that waits: its number, once it has one.
#[derive(Debug, Default)]
pub(crate) struct Waiter(u64);

impl Clone for Waiter {
    fn clone(&self) -> Self {
        Self::default() // waits for itself
    }
}

/// Takes a waiter off its list when it waits no more.
struct Waiting<'a> {
    talk: &'a Talk,
    list: fn(&mut State) -> &mut Waiters,
    waiter: Waiter,
}

/// The other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Far {
    pub(super) peer: PeerId,
    pub(super) end: u64,
    /// Lets its holder take over this end.
    pub(super) token: Token,
}

/// How far it has come.
#[derive(Debug)]
pub(super) enum Phase {
    /// Waits for the peer's answer to a frame.
    Asking {
        peer: PeerId,
        frame: ChannelFrame,
        /// It went out once.
        asked: bool,
        answer: Option<oneshot::Sender<Answer>>,
    },
    /// Speaks.
    Open,
}

/// What a program holds of an end. Dropped, it closes the channel.
#[derive(Debug)]
pub(crate) struct Speaker(pub(super) Arc<Talk>);

impl Deref for Speaker {
    type Target = Arc<Talk>;

    fn deref(&self) -> &Arc<Talk> {
        &self.0
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        if self.0.state().give_up() {
            self.0.forget(); // an answer that comes now finds nobody, and the other end is told
        } else {
            self.0.close(None);
        }
    }
}

/// What came of asking for a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Accepted,
    Refused(Refusal),
    /// The link was lost, or the peer.
    Lost,
}

/// Why an item was not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// Closed, or finished, here.
    Closed,
    /// The far end reads no more.
    Far(TheirEnd),
}

impl Talk {
    pub(super) fn new(
        channels: &Weak<Channels>,
        id: u64,
        node: u32,
        far_node: NodeId,
        token: Token,
        phase: Phase,
    ) -> Self {
        let state = State {
            end: End::new(WINDOW),
            phase,
            far_node,
            far: None,
            token,
            used: None,
            adopter: None,
            link: None,
            epoch: 0,
            pumping: false,
            forgotten: false,
            readers: Waiters::default(),
            writers: Waiters::default(),
            watchers: Waiters::default(),
        };
        Self { id, node, channels: Weak::clone(channels), state: Mutex::new(state) }
    }

    /// The end of a conversation that is over.
    pub(crate) fn over(far_node: NodeId, end: TheirEnd) -> Speaker {
        let talk = Self::new(&Weak::new(), 0, 0, far_node, Token::default(), Phase::Open);
        talk.state().end = End::over(end);
        Speaker(Arc::new(talk))
    }

    /// Does something with the state, says what is then to be said, and wakes who waits for what then is.
    pub(super) fn act<T>(self: &Arc<Self>, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let done = act(&mut state);
        self.pump(&mut state);
        let over = state.end.is_over() && !std::mem::replace(&mut state.forgotten, true);
        let woken = state.woken();
        drop(state);
        woken.into_iter().flatten().for_each(|(_, waker)| waker.wake());
        if over {
            self.forget();
        }
        done
    }

    /// Puts what is to be said on the link. What finds no room is put there by a task, once there is some.
    fn pump(self: &Arc<Self>, state: &mut State) {
        if state.pump(self.id) || state.pumping {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return }; // without one, everything ends
        state.pumping = true;
        runtime.spawn(Arc::clone(self).pump_when_room());
    }

    async fn pump_when_room(self: Arc<Self>) {
        loop {
            let link;
            let mut changed = {
                let mut state = self.state(); // held over both: the link that has no room is the one that is waited for
                let Some(now) = state.link.clone() else { break };
                link = now;
                let mut changed = Box::pin(link.changed());
                changed.as_mut().enable();
                if state.pump(self.id) {
                    break;
                }
                changed
            };
            changed.as_mut().await; // or the link is lost: then it is another, or none
        }
        self.act(|state| state.pumping = false);
    }

    /// Nothing more is heard or said.
    pub(super) fn forget(&self) {
        if let Some(channels) = self.channels.upgrade() {
            channels.remove(self.id);
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // For the program.

    pub(crate) fn far_node(&self) -> NodeId {
        self.state().far_node
    }

    /// Sends an item, and waits until there is room for it. Cancelled, it is not sent.
    pub(crate) async fn send(self: &Arc<Self>, item: Item) -> Result<(), NotSent> {
        let mut item = Some(item);
        let mut waiting = Waiting { talk: self, list: |state| &mut state.writers, waiter: Waiter::default() };
        poll_fn(|context| self.poll_send(&mut item, &mut waiting.waiter, context)).await
    }

    fn poll_send(
        self: &Arc<Self>,
        item: &mut Option<Item>,
        waiter: &mut Waiter,
        context: &Context<'_>,
    ) -> Poll<Result<(), NotSent>> {
        self.act(|state| {
            if !state.end.is_sending() {
                let end = state.end.their_end().filter(|_| !state.end.is_closed_here());
                let end = end.filter(|end| **end != TheirEnd::Ended).cloned();
                return Poll::Ready(Err(end.map_or(NotSent::Closed, NotSent::Far)));
            }
            if !state.end.has_room() {
                state.writers.wait(waiter, context);
                return Poll::Pending;
            }
            if let Some(item) = item.take() {
                state.end.send(item);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Waits for the next item, or the end, which comes again and again.
    pub(crate) async fn take(self: &Arc<Self>) -> Taken {
        let mut waiting = Waiting { talk: self, list: |state| &mut state.readers, waiter: Waiter::default() };
        poll_fn(|context| self.poll_take(&mut waiting.waiter, context)).await
    }

    pub(crate) fn poll_take(self: &Arc<Self>, waiter: &mut Waiter, context: &Context<'_>) -> Poll<Taken> {
        self.act(|state| match state.end.take() {
            Some(taken) => Poll::Ready(taken),
            None => {
                state.readers.wait(waiter, context);
                Poll::Pending
            }
        })
    }

    /// The next item or the end, if it is there.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Taken> {
        self.act(|state| state.end.take())
    }

    /// Waits until the far end closed both ways, or this one did. What it sent before may wait to be taken.
    pub(crate) async fn closed(self: &Arc<Self>) -> TheirEnd {
        let mut waiting = Waiting { talk: self, list: |state| &mut state.watchers, waiter: Waiter::default() };
        poll_fn(|context| {
            let mut state = self.state();
            match state.over() {
                Some(end) => Poll::Ready(end),
                None => {
                    state.watchers.wait(&mut waiting.waiter, context);
                    Poll::Pending
                }
            }
        })
        .await
    }

    pub(crate) fn finish(self: &Arc<Self>) {
        self.act(|state| state.end.finish());
    }

    pub(crate) fn close(self: &Arc<Self>, failure: Option<Failure>) {
        self.act(|state| state.end.close(failure));
    }

    /// Gives the end away: where the far end is, and what takes over this one.
    pub(crate) fn hand_over(self: &Arc<Self>) -> Result<(NodeId, u64, Token), TheirEnd> {
        self.act(|state| {
            let far = state.far;
            match state.end.hand_over() {
                Ok(()) => {}
                Err(end) => {
                    state.end.close(None);
                    return Err(end);
                }
            }
            let Some(far) = far else {
                // The far end is on its way too: who adopts it finds nobody.
                state.end.lose(Lost::BothHandedOver);
                return Err(TheirEnd::Lost(Lost::BothHandedOver));
            };
            Ok((state.far_node, far.end, far.token))
        })
    }
}

impl State {
    /// Says all that is to be said. `false`: the link has no room.
    fn pump(&mut self, id: u64) -> bool {
        let (Some(link), Some(far)) = (&self.link, self.far) else { return true };
        while let Some(say) = self.end.say() {
            let room = if matches!(say, Say::Item { .. } | Say::Return { .. }) { Room::Limited } else { Room::Always };
            let frame = ChannelFrame::Said { to: far.end, end: id, say };
            let pushed = link.push(Order::End(id), |out| frame.put(out), frame.payload(), room);
            let ChannelFrame::Said { say, .. } = frame else { return true };
            match pushed {
                Ok(_) => self.end.was_said(&say),
                Err(Refused::Full | Refused::Paused | Refused::NotAllowed) => return false,
                Err(Refused::Closed) => {
                    self.cut();
                    return true;
                }
                Err(Refused::TooLarge) => {
                    let failure = Failure::new(Failure::TOO_LARGE, "an item is larger than the far end takes");
                    self.break_off(id, &failure);
                    return true;
                }
            }
        }
        true
    }

    /// Both programs are told that it cannot go on.
    pub(super) fn break_off(&mut self, id: u64, failure: &Failure) {
        if let (Some(link), Some(far)) = (&self.link, self.far) {
            let frame = ChannelFrame::Said { to: far.end, end: id, say: self.end.fail(failure) };
            // A link that is down brings the far end back, which then is told that nobody is here.
            let _ = link.push(Order::End(id), |out| frame.put(out), &Bytes::new(), Room::Always);
        } else {
            self.end.fail(failure);
        }
    }

    /// The far end is there.
    pub(super) fn open(&mut self, far: Far, link: &Link) {
        self.phase = Phase::Open;
        self.far = Some(far);
        (self.link, self.epoch) = (Some(link.clone()), link.epoch());
    }

    /// The question went out.
    pub(super) fn has_asked(&mut self) {
        if let Phase::Asking { asked, .. } = &mut self.phase {
            *asked = true;
        }
    }

    /// Nobody wants the answer any more, if one is waited for.
    fn give_up(&mut self) -> bool {
        let Phase::Asking { answer, .. } = &mut self.phase else { return false };
        *answer = None;
        true
    }

    /// It said yes.
    pub(super) fn accepted(&mut self, id: u64, accepted: &Accepted, link: &Link) {
        let Phase::Asking { peer, frame, answer, .. } = &mut self.phase else { return };
        let is_new = matches!(frame, ChannelFrame::Open(_));
        let far = Far { peer: *peer, end: accepted.end, token: accepted.token };
        self.far_node = NodeId { peer: *peer, index: accepted.node };
        if let Some(answer) = answer.take() {
            let _ = answer.send(Answer::Accepted); // who asked may be gone; then the end is closed
        }
        self.end.go_on(accepted.window as usize, &accepted.standing);
        self.open(far, link);
        if is_new && accepted.standing != Standing::default() {
            self.break_off(id, &Failure::new(Failure::PROTOCOL, "a new channel goes on from where nothing is"));
        }
    }

    /// A link to the far end's peer stands. It may be known already: readers can be ahead of who tells of links.
    pub(super) fn relink(&mut self, link: &Link) {
        if link.epoch() > self.epoch {
            (self.link, self.epoch) = (Some(link.clone()), link.epoch());
            self.end.link();
        }
    }

    /// The link is lost, unless there is a newer one.
    pub(super) fn unlink(&mut self, link: &Link) {
        if link.epoch() == self.epoch {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.link = None;
        self.end.unlink();
    }

    /// The far end has no holder now.
    pub(super) fn orphan(&mut self) {
        self.far = None;
        self.link = None;
    }

    /// How it ended for good, if it did.
    fn over(&self) -> Option<TheirEnd> {
        if self.end.is_closed_here() {
            return Some(TheirEnd::Closed);
        }
        self.end.their_end().filter(|end| **end != TheirEnd::Ended).cloned()
    }

    /// Who has something to do now.
    fn woken(&mut self) -> [Vec<(u64, Waker)>; 3] {
        let over = !self.watchers.wakers.is_empty() && self.over().is_some();
        [
            self.readers.woken(self.end.is_readable()),
            self.writers.woken(self.end.has_room() || !self.end.is_sending()),
            self.watchers.woken(over),
        ]
    }
}

impl Waiters {
    fn wait(&mut self, waiter: &mut Waiter, context: &Context<'_>) {
        if waiter.0 == 0 {
            self.last += 1;
            waiter.0 = self.last;
        }
        match self.wakers.iter_mut().find(|(number, _)| *number == waiter.0) {
            Some((_, waker)) => waker.clone_from(context.waker()),
            None => self.wakers.push((waiter.0, context.waker().clone())),
        }
    }

    fn woken(&mut self, woken: bool) -> Vec<(u64, Waker)> {
        if woken { std::mem::take(&mut self.wakers) } else { Vec::new() }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Locks only if it had to wait, for as long as a look-up takes.
        if self.waiter.0 != 0 {
            (self.list)(&mut self.talk.state()).wakers.retain(|(number, _)| *number != self.waiter.0);
        }
    }
}
