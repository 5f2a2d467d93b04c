//! One way from this peer to another: a bounded queue, the task that writes it, and its counterpart that reads.
//!
//! Frames are encoded into the queue, so that what is small is joined there and written at once; larger payloads are
//! queued as they are and written uncopied. What is larger than 64 KiB is written in parts that take turns with
//! everything else ([`turns`]). A link lives as long as one connection: a new connection is a new link with
//! a higher epoch, and the receiver reads nothing of an older epoch once it greeted on a newer connection. So nothing
//! comes twice and nothing out of order, across reconnects too.

mod pace;
mod queue;
mod turns;
mod writing;

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::queue::Queue;
pub(crate) use self::turns::Order;
use self::writing::Writing;
use crate::mesh::{Codec, NodeName, Topic};
use crate::wire::frame::{self, BadFrame, Delivery, INLINE};
use crate::wire::message::{BadMessage, PROTOCOL};
use crate::wire::{TooLong, parts};

/// The sending end: what protocols put frames on. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Link(Arc<Shared>);

struct Shared {
    epoch: u64,
    limits: LinkLimits,
    /// Most bytes of payload that the receiver takes.
    max_message: usize,
    /// A send gave up waiting, and nothing was written since: others need not wait as well.
    stalled: AtomicBool,
    /// All that was queued is written and flushed.
    idle: AtomicBool,
    /// As the queue says, for who asks often and needs no more.
    closed: AtomicBool,
    /// Whether the receiver refuses any topic.
    refuses: AtomicBool,
    queue: Mutex<Queue>,
    /// The stream, once it is open, and what is being written to it.
    writing: Mutex<Option<Writing>>,
    began: Instant,
    /// When a frame last came to an empty queue, in microseconds since then, and whether it came after a rest.
    last_wake: AtomicU64,
    rested: AtomicBool,
    /// The writer waits here for frames.
    filled: Notify,
    /// Senders wait here for room.
    drained: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// How much may wait for one peer: of small, of medium and of large frames each. When full, `send` waits: a slow peer slows
/// its own senders only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkLimits {
    /// Frames. More smooths longer stalls and holds more memory.
    pub(crate) frames: usize,
    /// Bytes. One frame is always taken, however large.
    pub(crate) bytes: usize,
}

/// A message to put on a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) topic: &'a Topic,
    /// What [`Link::alias`] gave for the topic.
    pub(crate) alias: u32,
    pub(crate) from: u32,
    pub(crate) from_name: &'a NodeName,
    pub(crate) seq: u64,
    pub(crate) codec: Codec,
    /// Indices of the receiving nodes; at most [`frame::MAX_TARGETS`].
    pub(crate) targets: &'a [u32],
    pub(crate) payload: &'a Bytes,
    /// Set if it is to be acknowledged.
    pub(crate) delivery: Option<Delivery>,
    /// When its time is over.
    pub(crate) until: Option<Instant>,
    pub(crate) retains: bool,
}

/// Whether a frame waits its turn when the link is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Refused when as much is queued as may be.
    Limited,
    /// Always taken, up to a bound that no peer that keeps to the protocol reaches: for what makes room elsewhere.
    Always,
}

/// Where a frame stands among those of a link, for [`Link::was_taken`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Among those that are written as they came.
    Queued(u64),
    /// Among those that take turns.
    InTurn(u64),
}

/// Why a link takes no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// As much is queued as may be.
    Full,
    /// A target asked for a pause on this topic.
    Paused,
    /// The receiver does not let this peer send on this topic: see [`Link::refusal`].
    NotAllowed,
    /// The receiver takes no messages of this size.
    TooLarge,
    /// The link is down.
    Closed,
}

/// What a link that is down leaves undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remains {
    pub(crate) epoch: u64,
    /// Messages that the writer never took.
    pub(crate) unsent: u64,
    /// Messages that it took: how many of them arrived, only the other side knows.
    pub(crate) taken: u64,
}

impl Link {
    pub(crate) fn new(epoch: u64, limits: LinkLimits, max_message: usize) -> Self {
        let queue = Mutex::new(Queue::new(max_message));
        let (filled, drained) = (Notify::new(), Notify::new());
        let (stalled, idle, closed) = (AtomicBool::new(false), AtomicBool::new(true), AtomicBool::new(false));
        let began = Instant::now();
        let (writing, last_wake, rested) = (Mutex::new(None), AtomicU64::new(0), AtomicBool::new(false));
        Self(Arc::new(Shared {
            epoch,
            limits,
            max_message,
            stalled,
            idle,
            closed,
            refuses: AtomicBool::new(false),
            queue,
            writing,
            began,
            last_wake,
            rested,
            filled,
            drained,
        }))
    }

    /// Differs between any two links to one peer: later ones have higher numbers.
    pub(crate) fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// Whether they are one.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The number that stands for a topic on this link. Announced at the first call.
    pub(crate) fn alias(&self, topic: &Topic) -> u32 {
        let mut queue = self.queue();
        if let Some(alias) = queue.aliases.get(topic) {
            return *alias;
        }
        if queue.aliases.len() >= MAX_ALIASES || queue.closed {
            return INLINE;
        }
        let alias = queue.aliases.len() as u32 + 1;
        queue.aliases.insert(topic.clone(), alias);
        queue.join(|out| frame::put_topic(out, alias, topic), 0);
        drop(queue);
        self.0.filled.notify_one();
        alias
    }

    /// Whether a send gave up waiting, and nothing was written since.
    pub(crate) fn is_stalled(&self) -> bool {
        self.0.stalled.load(Ordering::Relaxed)
    }

    /// A send gave up waiting.
    pub(crate) fn set_stalled(&self) {
        self.0.stalled.store(true, Ordering::Relaxed);
    }

    /// Queues a message, or says at once why not.
    pub(crate) fn try_push(&self, message: &Outgoing<'_>) -> Result<(), Refused> {
        self.push_message(message, Room::Limited)
    }

    /// Queues a message whatever waits already: what goes out again before all that is new, and is bounded elsewhere.
    pub(crate) fn push_again(&self, message: &Outgoing<'_>) -> Result<(), Refused> {
        self.push_message(message, Room::Always)
    }

    fn push_message(&self, message: &Outgoing<'_>, room: Room) -> Result<(), Refused> {
        let mut queue = self.queue();
        if queue.closed {
            return Err(Refused::Closed);
        }
        if message.payload.len() > self.0.max_message {
            return Err(Refused::TooLarge);
        }
        let lane = queue.lane(message.payload.len(), || Order::Topic(message.from, message.topic.clone()));
        let pauses = |target: &u32| queue.paused.contains(&(*target, message.topic.clone()));
        if !queue.refused.is_empty() && queue.refused.contains_key(message.topic) {
            return Err(Refused::NotAllowed);
        }
        if !queue.paused.is_empty() && room == Room::Limited && message.targets.iter().any(pauses) {
            return Err(Refused::Paused);
        }
        let bytes = frame::overhead(message.targets.len()) + message.payload.len();
        if queue.refuses(lane.is_some(), message.payload.len(), bytes, room, self.0.limits) {
            return Err(Refused::Full);
        }
        let (idle, takes_turns) = (queue.rests(), lane.is_some());
        queue.put(message, lane);
        drop(queue);
        self.queued_one(idle, takes_turns);
        Ok(())
    }

    /// The writer looks again before it sleeps, so only the first frame has to wake it.
    fn queued_one(&self, idle: bool, takes_turns: bool) {
        if idle && takes_turns {
            self.0.filled.notify_one(); // nobody else writes what is large
        } else if idle {
            self.wake_writer();
        }
    }

    /// Queues a frame that is no message: what `put` writes, and the payload behind it. It stays behind all before it of
    /// the same order.
    pub(crate) fn push(
        &self,
        order: Order,
        put: impl FnOnce(&mut BytesMut),
        payload: &Bytes,
        room: Room,
    ) -> Result<Place, Refused> {
        let mut queue = self.queue();
        if queue.closed {
            return Err(Refused::Closed);
        }
        if payload.len() > self.0.max_message {
            return Err(Refused::TooLarge);
        }
        let lane = queue.lane(payload.len(), || order);
        let bytes = frame::overhead(0) + payload.len();
        if queue.refuses(lane.is_some(), payload.len(), bytes, room, self.0.limits) {
            return Err(Refused::Full);
        }
        let (idle, takes_turns) = (queue.rests(), lane.is_some());
        let place = if let Some(order) = lane {
            let mut head = BytesMut::new();
            put(&mut head);
            queue.put_in_turn(order, head, payload, None, None)
        } else {
            let place = Place::Queued(queue.pushed);
            queue.join_with(put, payload, 0);
            place
        };
        drop(queue);
        self.queued_one(idle, takes_turns);
        Ok(place)
    }

    /// Queues a frame as [`Link::push`] does, and waits for room as long as it takes.
    pub(crate) async fn push_when_room(
        &self,
        order: Order,
        put: impl Fn(&mut BytesMut),
        payload: &Bytes,
    ) -> Result<Place, Refused> {
        loop {
            let mut changed = pin!(self.changed());
            changed.as_mut().enable();
            match self.push(order.clone(), &put, payload, Room::Limited) {
                Err(Refused::Full) => changed.await,
                done => return done,
            }
        }
    }

    /// Whether the writer took the frame of that place, or a part of it. To be asked once the link is closed: what was not
    /// taken then never left.
    pub(crate) fn was_taken(&self, place: Place) -> bool {
        match place {
            Place::Queued(place) => place < self.queue().taken_frames,
            Place::InTurn(place) => !self.queue().untaken.contains(&place),
        }
    }

    /// Takes a call back: as far as it has not left, it does not any more; else the receiver is told.
    pub(crate) fn cancel(&self, call: u64) {
        let mut queue = self.queue();
        let order = Order::Call(call);
        if queue.turns.holds(&order) {
            let withdrawn = queue.turns.withdraw(&order);
            queue.frames_in_turn -= withdrawn.frames;
            if let Some(number) = withdrawn.number {
                queue.join(|out| parts::put_abandon(out, number), 0);
                let pushed = queue.pushed;
                queue.turns.abandoned(pushed);
            }
            drop(queue);
            self.0.filled.notify_one();
            self.0.drained.notify_waiters();
        } else {
            drop(queue);
            // Refused by a link that is down: then the call is over.
            let _ = self.push(order, |out| frame::put_cancel(out, call), &Bytes::new(), Room::Always);
        }
    }

    /// Queues a ping or its answer. Dropped when the link is full or down: pings are for measuring.
    pub(crate) fn ping(&self, nonce: u64, answer: bool) {
        let mut queue = self.queue();
        if !queue.closed && queue.queued.frames < self.0.limits.frames {
            queue.join(|out| frame::put_ping(out, nonce, answer), 0);
            drop(queue);
            self.0.filled.notify_one();
        }
    }

    /// The receiver says how many bytes of parts have come.
    pub(crate) fn parts_came(&self, bytes: u64) {
        let mut queue = self.queue();
        queue.pace.hear(bytes, Instant::now());
        let has_turn = queue.has_turn();
        drop(queue);
        if has_turn {
            self.0.filled.notify_one();
        }
    }

    /// Tells the other side how many bytes of its parts have come.
    pub(crate) fn tell_came(&self, bytes: u64) {
        // Refused by a link that is down: then nothing comes any more.
        let _ = self.push(Order::Free, |out| frame::put_came(out, bytes), &Bytes::new(), Room::Always);
    }

    /// Waits until something changed since `try_push` refused: room, a pause that ended, the end of the link.
    ///
    /// Enable before trying: `let mut changed = pin!(link.changed()); changed.as_mut().enable();`
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.0.drained.notified()
    }

    /// The receiver cannot take this topic for this node of its, or can again.
    pub(crate) fn set_paused(&self, node: u32, topic: Topic, paused: bool) {
        let mut queue = self.queue();
        if !paused {
            queue.paused.remove(&(node, topic));
        } else if queue.paused.len() < MAX_PAUSED {
            queue.paused.insert((node, topic));
        }
        drop(queue);
        self.0.drained.notify_waiters();
    }

    /// The receiver does not let this peer send on the topic, as long as this link stands. Who waits for room learns of it.
    pub(crate) fn set_refused(&self, topic: Topic, rule: String) {
        let mut queue = self.queue();
        if queue.refused.len() < MAX_REFUSED {
            queue.refused.insert(topic, rule);
            self.0.refuses.store(true, Ordering::Release);
        }
        drop(queue);
        self.0.drained.notify_waiters();
    }

    /// The rule by which the receiver does not let this peer send on the topic, if it said so.
    pub(crate) fn refusal(&self, topic: &Topic) -> Option<String> {
        // Nearly all refuse nothing: then this costs no lock.
        if !self.0.refuses.load(Ordering::Acquire) {
            return None;
        }
        self.queue().refused.get(topic).cloned()
    }

    /// Frames queued or being written.
    pub(crate) fn queued(&self) -> usize {
        self.queue().frames()
    }

    /// Waits until all that was queued is written, or the link is down.
    pub(crate) async fn flushed(&self) {
        loop {
            let changed = self.changed();
            {
                let queue = self.queue();
                if queue.closed || (queue.frames() == 0 && self.0.idle.load(Ordering::Relaxed)) {
                    return;
                }
            }
            changed.await;
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Takes nothing more; whoever waits for room learns of it.
    pub(crate) fn close(&self) -> Remains {
        let mut queue = self.queue();
        queue.closed = true;
        self.0.closed.store(true, Ordering::Release);
        queue.segments.clear();
        if !queue.turns.is_empty() {
            queue.untaken = queue.turns.close();
        }
        let remains = Remains { epoch: self.0.epoch, unsent: queue.waiting, taken: queue.taken };
        drop(queue);
        self.0.filled.notify_one();
        self.0.drained.notify_waiters();
        remains
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while the lock is held; if it did, the numbers are still sound enough to go on.
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the stream failed")]
    Io(#[from] io::Error),
    #[error("the stream ended in the middle of a frame")]
    Cut,
    #[error("no greeting on the data stream within {HELLO_TIMEOUT:?}")]
    Silent,
    #[error("a data stream of an epoch that is over")]
    OldEpoch,
    #[error("the other side speaks version {theirs} of the protocol, this one {PROTOCOL}")]
    Version { theirs: u32 },
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("a bad frame")]
    Frame(#[from] BadFrame),
    #[error("a bad greeting")]
    Greeting(#[from] BadMessage),
}

/// Most topics that a link numbers; further ones are written out in each frame.
pub(crate) const MAX_ALIASES: usize = 1 << 16;
/// Most node names remembered per link; then both ends start over.
pub(crate) const MAX_INTRODUCED: usize = 1 << 14;
/// Most pauses remembered per link. Beyond, the receiver's queue limit alone protects it.
const MAX_PAUSED: usize = 1 << 16;
/// Most refused topics remembered per link. Beyond, messages go out and are refused there.
const MAX_REFUSED: usize = 1 << 12;
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, duplex};

    use std::collections::HashSet;

    use super::super::inlet::{Inlet, Receive};
    use super::queue::{JOIN_UP_TO, MAX_ALWAYS};
    use super::*;
    use crate::mesh::{MAX_SMALL, ServiceName};
    use crate::wire::frame::{Call, Frame};
    use crate::wire::message::Received;
    use crate::wire::message::{DataHello, encode_block};
    use crate::wire::split_block;

    impl Link {
        /// Whether parts of something are written.
        fn was_begun(&self) -> bool {
            self.queue().turns.has_begun()
        }
    }

    const ROOM: LinkLimits = LinkLimits { frames: 4096, bytes: 8 << 20 };

    fn topic() -> Topic {
        Topic::new("a/b").unwrap()
    }

    fn push(link: &Link, seq: u64, payload: &[u8]) -> Result<(), Refused> {
        push_from(link, 0, &topic(), seq, payload)
    }

    fn push_from(link: &Link, from: u32, topic: &Topic, seq: u64, payload: &[u8]) -> Result<(), Refused> {
        let name = NodeName::new("sender").unwrap();
        let (alias, payload) = (link.alias(topic), Bytes::copy_from_slice(payload));
        let targets = &[0];
        link.try_push(&Outgoing {
            topic,
            alias,
            from,
            from_name: &name,
            seq,
            codec: Codec::Bytes,
            targets,
            payload: &payload,
            delivery: None,
            until: None,
            retains: false,
        })
    }

    /// Keeps what a stream brought.
    #[derive(Default)]
    struct Kept {
        messages: Vec<(u64, Bytes)>,
        names: Vec<String>,
        topics: Vec<(u32, Topic)>,
        /// Nodes whose names are known, as a receiver remembers them.
        known: HashSet<u32>,
        calls: Vec<(u64, usize)>,
        cancelled: Vec<u64>,
    }

    impl Receive for Kept {
        fn receive(&mut self, frame: Frame, _link: &Link) -> Result<(), BadFrame> {
            match frame {
                Frame::Topic { alias, topic } => self.topics.push((alias, topic)),
                Frame::Node { index, name } => {
                    if self.known.len() >= MAX_INTRODUCED {
                        self.known.clear();
                    }
                    self.known.insert(index);
                    self.names.push(name.to_string());
                }
                Frame::Message(message) if !self.known.contains(&message.head.from) => {
                    return Err(BadFrame::Unannounced);
                }
                Frame::Message(message) => {
                    if self.topics.get(message.head.alias as usize - 1).is_none() {
                        return Err(BadFrame::Unannounced);
                    }
                    self.messages.push((message.head.seq, message.payload));
                }
                Frame::Call(call) => self.calls.push((call.call, call.payload.len())),
                Frame::Cancel { call } => self.cancelled.push(call),
                _ => {}
            }
            Ok(())
        }
    }

    /// Writes all that is queued through a pipe and reads it.
    async fn carry(link: &Link, inlet: &Inlet, pipe: usize) -> (Kept, Result<(), LinkError>) {
        let (ours, theirs) = duplex(pipe);
        let mut kept = Kept::default();
        let flush_then_close = async {
            link.flushed().await;
            link.close();
        };
        let (written, read, ()) = tokio::join!(
            link.write(async { Ok(ours) }),
            inlet.read(theirs, 16 << 20, link, &mut kept, || ()), // as a link to oneself
            flush_then_close
        );
        written.unwrap();
        (kept, read)
    }

    #[tokio::test]
    async fn messages_of_all_sizes_arrive_whole_and_in_order() {
        let link = Link::new(1, ROOM, 1 << 20);
        let sizes = [0, 1, 64, JOIN_UP_TO, JOIN_UP_TO + 1, 100_000, 3, 1 << 20];
        for (seq, size) in sizes.iter().enumerate() {
            push(&link, seq as u64, &vec![seq as u8; *size]).unwrap();
        }
        assert_eq!(link.queued(), sizes.len() + 2, "the topic and the name are frames too");
        let inlet = Inlet::default();
        let (kept, read) = carry(&link, &inlet, 1000).await;
        read.unwrap();
        assert_eq!(link.queued(), 0);
        assert_eq!(kept.messages.iter().map(|(_, payload)| payload.len()).collect::<Vec<_>>(), sizes);
        assert!(kept.messages.iter().all(|(seq, payload)| payload.iter().all(|byte| u64::from(*byte) == *seq)));
        assert_eq!((kept.names, kept.topics), (vec!["sender".to_owned()], vec![(1, topic())]));
        assert_eq!(inlet.freeze(), Some(Received { epoch: 1, messages: 8 }));
    }

    #[tokio::test]
    async fn a_full_link_refuses_and_says_when_there_is_room() {
        let link = Link::new(1, LinkLimits { frames: 4, bytes: 1 << 20 }, 1 << 20);
        let refused = (0..10).find_map(|seq| push(&link, seq, b"x").err());
        assert_eq!(refused, Some(Refused::Full));
        let mut changed = pin!(link.changed());
        changed.as_mut().enable();
        let (inlet, back, mut kept) = (Inlet::default(), Link::new(1, ROOM, 1 << 20), Kept::default());
        let (ours, theirs) = duplex(1000);
        let waiting = async {
            changed.await;
            push(&link, 99, b"y").unwrap();
            link.flushed().await;
            link.close();
        };
        let (written, read, ()) =
            tokio::join!(link.write(async { Ok(ours) }), inlet.read(theirs, 100, &back, &mut kept, || ()), waiting);
        written.unwrap();
        read.unwrap();
        assert_eq!(kept.messages.last().map(|(seq, _)| *seq), Some(99));
    }

    #[tokio::test]
    async fn on_a_slow_path_there_is_room_as_soon_as_some_is_written() {
        let link = Link::new(1, LinkLimits { frames: 200, bytes: 8 << 20 }, 1 << 20);
        let queued = (0..).take_while(|seq| push(&link, *seq, &[0; 1000]).is_ok()).count();
        let (ours, mut theirs) = duplex(1000);
        let hello = encode_block(&DataHello { protocol: PROTOCOL, epoch: 1 });
        let read_a_part = async {
            let mut greeting = vec![0; hello.len()];
            theirs.read_exact(&mut greeting).await.unwrap();
            theirs.write_all(&greeting).await.unwrap();
            let part = queued * 1000 / 2;
            theirs.read_exact(&mut vec![0; part]).await.unwrap();
            while push(&link, 999, b"").is_err() {
                link.changed().await;
            }
            link.close();
            drop(theirs); // most of the queue was never read
        };
        let (written, ()) = tokio::join!(link.write(async { Ok(ours) }), read_a_part);
        assert!(written.is_err());
    }

    #[test]
    fn what_is_always_taken_has_an_end_too() {
        let link = Link::new(1, LinkLimits { frames: 1, bytes: 1 }, 1);
        let (topic, from_name, payload) = (topic(), NodeName::new("sender").unwrap(), Bytes::new());
        let again = Outgoing {
            topic: &topic,
            alias: INLINE,
            from: 0,
            from_name: &from_name,
            seq: 0,
            codec: Codec::Bytes,
            targets: &[0],
            payload: &payload,
            delivery: None,
            until: None,
            retains: false,
        };
        let taken = (0..=MAX_ALWAYS).take_while(|_| link.push_again(&again).is_ok()).count();
        assert_eq!((taken + 1, link.push_again(&again)), (MAX_ALWAYS, Err(Refused::Full)), "a name is a frame too");
    }

    #[test]
    fn one_message_over_the_byte_limit_is_taken_alone() {
        let link = Link::new(1, LinkLimits { frames: 100, bytes: 10 }, 1 << 20);
        link.queue().introduced.insert(0, 0);
        link.queue().last_from = Some(0);
        link.queue().aliases.insert(topic(), 1);
        assert_eq!(push(&link, 1, &[0; 1000]), Ok(()));
        assert_eq!(push(&link, 2, b""), Err(Refused::Full));
    }

    #[test]
    fn what_is_large_takes_no_room_from_what_is_small() {
        let link = Link::new(1, LinkLimits { frames: 100, bytes: 2 << 20 }, 16 << 20);
        let [small, medium, large] = [1 << 10, 1 << 20, 16 << 20].map(|size| vec![0; size]);
        let other = |n: u32| Topic::new(format!("other/{n}")).unwrap();
        assert_eq!(push_from(&link, 0, &other(0), 1, &large), Ok(()));
        assert_eq!(push_from(&link, 0, &other(1), 1, &large), Err(Refused::Full));
        assert_eq!(push_from(&link, 0, &other(1), 1, &medium), Ok(()));
        assert_eq!(push_from(&link, 0, &other(2), 1, &medium), Err(Refused::Full), "with its head it is too much");
        assert!((0..50).all(|seq| push(&link, seq, &small).is_ok()));
        assert_eq!(push_from(&link, 0, &other(0), 2, &small), Ok(()), "behind the large one");
    }

    /// Reads frames up to the next message. Gives how many parts of others came before it.
    async fn parts_before(stream: &mut (impl AsyncRead + Unpin), received: &mut BytesMut) -> usize {
        let mut parts = 0;
        loop {
            while let Some(body) = split_block(received, 1 << 20).unwrap() {
                match body[0] {
                    1 => return parts,
                    20.. => parts += 1,
                    _ => {}
                }
            }
            assert_ne!(stream.read_buf(received).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn a_small_message_waits_for_one_part_of_a_huge_one() {
        const PIPE: usize = 1000;
        let link = Link::new(1, ROOM, 64 << 20);
        let huge = Topic::new("huge").unwrap();
        push_from(&link, 0, &huge, 1, &vec![0; 32 << 20]).unwrap();
        let (ours, mut theirs) = duplex(PIPE);
        let hello = encode_block(&DataHello { protocol: PROTOCOL, epoch: 1 });
        let reading = async {
            let mut greeting = vec![0; hello.len()];
            theirs.read_exact(&mut greeting).await.unwrap();
            theirs.write_all(&greeting).await.unwrap();
            let mut received = BytesMut::new();
            let mut most = 0;
            for seq in 0..100 {
                push(&link, seq, b"small").unwrap();
                most = most.max(parts_before(&mut theirs, &mut received).await);
            }
            assert!(
                (1..=2).contains(&most),
                "they waited for {most} parts: one is in the pipe, one in the writer's hands"
            );
        };
        tokio::select! {
            _ = link.write(async { Ok(ours) }) => panic!("not all of it is read"),
            () = reading => {}
        }
    }

    #[tokio::test]
    async fn each_topic_and_each_call_keeps_its_order_among_sizes_around_the_limit() {
        let link = Link::new(1, LinkLimits { frames: 4096, bytes: 64 << 20 }, 16 << 20);
        let topics = [0, 1, 2].map(|n| Topic::new(format!("topic/{n}")).unwrap());
        let sizes = [10, MAX_SMALL + 1, 3, MAX_SMALL, 5 << 20, 0, JOIN_UP_TO + 1, 300_000, 1, MAX_SMALL - 1, 7];
        for (n, size) in sizes.iter().cycle().take(33).enumerate() {
            push_from(&link, n as u32 % 2, &topics[n % 3], n as u64, &vec![n as u8; *size]).unwrap();
            let call = Call {
                call: n as u64,
                node: 0,
                from: 0,
                codec: Codec::Bytes,
                service: ServiceName::new("s").unwrap(),
                payload: Bytes::from(vec![0; *size]),
            };
            link.push(Order::Call(call.call), |out| frame::put_call(out, &call), &call.payload, Room::Limited).unwrap();
        }
        let inlet = Inlet::default();
        let (kept, read) = carry(&link, &inlet, 10_000).await;
        read.unwrap();
        assert_eq!((link.queued(), kept.messages.len(), kept.calls.len()), (0, 33, 33));
        assert!(kept.messages.iter().all(|(seq, payload)| *payload == vec![*seq as u8; payload.len()]));
        assert!(!kept.messages.is_sorted_by_key(|(seq, _)| *seq), "the small overtake the large of other topics");
        for lane in 0..6 {
            let of_lane = kept.messages.iter().filter(|(seq, _)| seq % 6 == lane);
            assert!(of_lane.is_sorted_by_key(|(seq, _)| *seq));
        }
        assert_eq!(inlet.freeze(), Some(Received { epoch: 1, messages: 33 }));
    }

    #[tokio::test]
    async fn a_name_that_was_forgotten_while_its_message_was_on_the_way_is_told_again() {
        let link = Link::new(1, LinkLimits { frames: 1 << 17, bytes: 64 << 20 }, 64 << 20);
        push_from(&link, 7, &Topic::new("before").unwrap(), 1, b"").unwrap();
        push_from(&link, 7, &Topic::new("huge").unwrap(), 2, &vec![0; 12 << 20]).unwrap();
        for index in 0..MAX_INTRODUCED as u32 + 100 {
            push_from(&link, 100 + index, &topic(), 3, b"").unwrap();
        }
        let (kept, read) = carry(&link, &Inlet::default(), 100_000).await;
        read.unwrap();
        assert_eq!(kept.messages.last().map(|(seq, _)| *seq), Some(2));
        assert_eq!(kept.names.len(), MAX_INTRODUCED + 102);
    }

    #[tokio::test]
    async fn a_link_that_ends_within_a_huge_message_says_what_it_took_and_what_it_left() {
        let link = Link::new(3, ROOM, 16 << 20);
        let huge = Topic::new("huge").unwrap();
        push(&link, 1, b"small").unwrap();
        push_from(&link, 0, &huge, 2, &vec![0; 5 << 20]).unwrap();
        push_from(&link, 0, &huge, 3, b"behind it").unwrap();
        let call = |number| {
            link.push(
                Order::Call(number),
                |out| frame::put_cancel(out, 0),
                &Bytes::from(vec![0; 8 << 20]),
                Room::Always,
            )
        };
        let [_, unsent] = [call(1), call(2)].map(Result::unwrap);
        let (ours, theirs) = duplex(1000);
        let (inlet, back, mut kept) = (Inlet::default(), Link::new(1, ROOM, 1 << 20), Kept::default());
        {
            let mut cut = theirs.take(900 << 10);
            let (mut reader, mut writer) = (BytesMut::new(), 0);
            let hello = encode_block(&DataHello { protocol: PROTOCOL, epoch: 3 });
            let reading = async {
                while reader.len() < 900 << 10 {
                    cut.read_buf(&mut reader).await.unwrap();
                    if reader.len() >= hello.len() && writer == 0 {
                        writer = cut.get_mut().write(&hello).await.unwrap();
                    }
                }
            };
            tokio::select! {
                _ = link.write(async { Ok(ours) }) => panic!("it cannot be written"),
                () = reading => {}
            }
            let (mut far, near) = duplex(4 << 20);
            far.write_all(&reader).await.unwrap();
            drop(tokio::join!(inlet.read(near, 16 << 20, &back, &mut kept, || ()), async move {
                far.read_exact(&mut vec![0; hello.len()]).await.unwrap();
                drop(far);
            }));
        }
        let remains = link.close();
        assert_eq!(remains, Remains { epoch: 3, unsent: 1, taken: 2 });
        assert_eq!(inlet.freeze(), Some(Received { epoch: 3, messages: 1 }), "of the huge one not all has come");
        assert!(!link.was_taken(unsent));
        assert_eq!(push_from(&link, 0, &huge, 4, b""), Err(Refused::Closed));
        link.flushed().await;
    }

    #[tokio::test]
    async fn a_call_that_is_taken_back_does_not_go_on() {
        let link = Link::new(1, ROOM, 64 << 20);
        let call = |number, size| {
            let service = ServiceName::new("s").unwrap();
            let payload = Bytes::from(vec![0; size]);
            let call = Call { call: number, node: 0, from: 0, codec: Codec::Bytes, service, payload };
            link.push(Order::Call(number), |out| frame::put_call(out, &call), &call.payload, Room::Limited).unwrap()
        };
        call(1, 32 << 20); // begins
        call(2, 1 << 20); // does not begin
        call(3, 10);
        link.cancel(2);
        let (ours, theirs) = duplex(1000);
        let (inlet, mut kept) = (Inlet::default(), Kept::default());
        let taking_back = async {
            while !link.was_begun() {
                tokio::task::yield_now().await;
            }
            link.cancel(1);
            link.cancel(3);
            call(4, 1 << 20);
            link.flushed().await;
            link.close();
        };
        let (written, read, ()) = tokio::join!(
            link.write(async { Ok(ours) }),
            inlet.read(theirs, 64 << 20, &link, &mut kept, || ()),
            taking_back
        );
        written.unwrap();
        read.unwrap();
        assert_eq!((kept.calls, kept.cancelled), (vec![(3, 10), (4, 1 << 20)], vec![3]));
        assert_eq!(link.queued(), 0);
    }

    #[tokio::test]
    async fn whatever_is_sent_and_taken_back_the_rest_arrives_whole_once_and_in_its_order() {
        use rand::{Rng, SeedableRng};
        for seed in 0..40u64 {
            let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
            let max = 9 << 20;
            let link = Link::new(1, LinkLimits { frames: 4096, bytes: 64 << 20 }, max);
            let mut kept = Kept::default();
            let inlet = Inlet::default();
            let (ours, theirs) = duplex(*[1000usize, 10_000, 1 << 20].get(rng.next_u32() as usize % 3).unwrap());
            let mut pushed: Vec<(u64, u32, usize, usize)> = Vec::new();
            let mut live: HashSet<u64> = HashSet::new();
            let mut all_calls: Vec<u64> = Vec::new();
            let mut cancelled: HashSet<u64> = HashSet::new();
            let driving = async {
                let topics = [0, 1, 2].map(|n| Topic::new(format!("topic/{n}")).unwrap());
                let names = [0, 1, 2, 3].map(|n| NodeName::new(format!("n{n}")).unwrap());
                let mut nested = 0u64;
                for step in 0..150u64 {
                    let size = match rng.next_u32() % 8 {
                        0 => 0,
                        1..4 => rng.next_u32() as usize % 2000,
                        4 => 60_000 + rng.next_u32() as usize % 10_000,
                        5 => 100_000 + rng.next_u32() as usize % 300_000,
                        6 => (3 << 20) + rng.next_u32() as usize % (2 << 20),
                        _ => rng.next_u32() as usize % max,
                    };
                    match rng.next_u32() % 10 {
                        0..6 => {
                            let (t, f) = (rng.next_u32() as usize % 3, rng.next_u32() % 4);
                            let over = rng.next_u32() % 5 == 0;
                            let payload = Bytes::from(vec![step as u8; size]);
                            let alias = link.alias(&topics[t]);
                            let until =
                                over.then(|| Instant::now() + Duration::from_millis((rng.next_u32() % 4) as u64 * 3));
                            let ok = link.try_push(&Outgoing {
                                topic: &topics[t],
                                alias,
                                from: f,
                                from_name: &names[f as usize],
                                seq: step,
                                codec: Codec::Bytes,
                                targets: &[0],
                                payload: &payload,
                                delivery: None,
                                until,
                                retains: false,
                            });
                            if ok.is_ok() {
                                pushed.push((step, f, t, size));
                            }
                        }
                        6..8 => {
                            let call = Call {
                                call: step,
                                node: 0,
                                from: 0,
                                codec: Codec::Bytes,
                                service: ServiceName::new("s").unwrap(),
                                payload: Bytes::from(vec![0; size]),
                            };
                            if link
                                .push(
                                    Order::Call(step),
                                    |out| frame::put_call(out, &call),
                                    &call.payload,
                                    Room::Limited,
                                )
                                .is_ok()
                            {
                                live.insert(step);
                                all_calls.push(step);
                            }
                        }
                        _ => {
                            if let Some(call) = live.iter().copied().max()
                                && rng.next_u32() % 4 != 0
                            {
                                live.remove(&call);
                                cancelled.insert(call);
                                link.cancel(call);
                            }
                        }
                    }
                    for _ in 0..rng.next_u32() % 6 {
                        nested += 1;
                        tokio::task::yield_now().await;
                    }
                }
                let _ = nested;
                link.flushed().await;
                link.close();
            };
            let both = async { tokio::join!(link.write(async { Ok(ours) }), driving) };
            let run = async {
                let read = tokio::join!(inlet.read(theirs, max, &link, &mut kept, || ()), async { both.await.0 });
                read
            };
            let (read, written) = tokio::time::timeout(Duration::from_secs(60), run)
                .await
                .unwrap_or_else(|_| panic!("seed {seed} hangs"));
            if read.is_err() || written.is_err() {
                panic!("seed {seed}: {read:?} {written:?}");
            }
            assert_eq!(kept.messages.len(), pushed.len(), "seed {seed}");
            let mut last: std::collections::HashMap<(u32, usize), u64> = Default::default();
            let by: std::collections::HashMap<u64, (u32, usize, usize)> =
                pushed.iter().map(|(s, f, t, z)| (*s, (*f, *t, *z))).collect();
            for (seq, payload) in &kept.messages {
                let (f, t, size) = by[seq];
                assert!(payload.is_empty() || payload.len() == size, "seed {seed}");
                assert!(payload.iter().all(|b| *b == *seq as u8));
                let before = last.insert((f, t), *seq);
                assert!(before.is_none_or(|b| b < *seq), "seed {seed}: order");
            }
            let came: HashSet<u64> = kept.calls.iter().map(|(c, _)| *c).collect();
            assert_eq!(came.len(), kept.calls.len());
            for call in all_calls {
                assert!(came.contains(&call) || cancelled.contains(&call), "seed {seed}: call lost");
            }
            for call in &kept.cancelled {
                assert!(cancelled.contains(call));
            }
            let q = link.queue();
            assert_eq!((q.queued.frames, q.queued.bytes, q.frames_in_turn, q.waiting), (0, 0, 0, 0), "seed {seed}");
        }
    }

    #[tokio::test]
    async fn a_large_message_that_is_over_comes_after_the_name_of_its_sender() {
        let link = Link::new(1, ROOM, 16 << 20);
        let (topic, name, payload) = (topic(), NodeName::new("sender").unwrap(), Bytes::from(vec![0; 1 << 20]));
        let alias = link.alias(&topic);
        let over = Outgoing {
            topic: &topic,
            alias,
            from: 0,
            from_name: &name,
            seq: 1,
            codec: Codec::Bytes,
            targets: &[0],
            payload: &payload,
            delivery: None,
            until: Some(Instant::now()),
            retains: false,
        };
        link.try_push(&over).unwrap();
        let (kept, read) = carry(&link, &Inlet::default(), 100_000).await;
        read.unwrap();
        assert_eq!(kept.messages.len(), 1);
    }

    #[tokio::test]
    async fn nothing_begins_in_the_room_of_what_was_abandoned_before_the_receiver_knows() {
        let link = Link::new(1, LinkLimits { frames: 4096, bytes: 64 << 20 }, 16 << 20);
        let call = |number, size| {
            let service = ServiceName::new("s").unwrap();
            let payload = Bytes::from(vec![0; size]);
            let call = Call { call: number, node: 0, from: 0, codec: Codec::Bytes, service, payload };
            link.push(Order::Call(number), |out| frame::put_call(out, &call), &call.payload, Room::Limited).unwrap()
        };
        call(1, 16 << 20);
        call(2, 16 << 20); // waits for room at the receiver
        let (ours, theirs) = duplex(1000);
        let (inlet, mut kept) = (Inlet::default(), Kept::default());
        let taking_back = async {
            while !link.was_begun() {
                tokio::task::yield_now().await;
            }
            (0..500).for_each(|seq| push(&link, seq, &[0; 1000]).unwrap()); // half a megabyte waits
            link.cancel(1);
            link.flushed().await;
            link.close();
        };
        let both = async { tokio::join!(link.write(async { Ok(ours) }), taking_back) };
        let read = tokio::select! {
            read = inlet.read(theirs, 16 << 20, &link, &mut kept, || ()) => read,
            _ = both => Ok(()),
        };
        read.unwrap();
    }

    #[tokio::test]
    async fn what_came_in_a_part_of_its_own_is_told_at_once() {
        let (inlet, mut kept, back) = (Inlet::default(), Kept::default(), Link::new(1, ROOM, 1 << 20));
        let (mut ours, theirs) = duplex(1000);
        let hello = encode_block(&DataHello { protocol: PROTOCOL, epoch: 1 });
        let mut out = BytesMut::new();
        parts::put_begin(&mut out, 1, 600 << 10, 300 << 10);
        out.resize(out.len() + (300 << 10), 0);
        let writing = async {
            ours.write_all(&[&hello[..], &out].concat()).await.unwrap();
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            read = inlet.read(theirs, 1 << 20, &back, &mut kept, || ()) => panic!("{read:?}"),
            () = writing => {}
        }
        assert_eq!(back.queued(), 1, "a came");
    }

    #[tokio::test]
    async fn parts_against_the_rules_end_the_stream_each_by_its_name() {
        let begin = |number, total, bytes: usize| {
            let mut out = BytesMut::new();
            parts::put_begin(&mut out, number, total, bytes);
            out.resize(out.len() + bytes, 0);
            out
        };
        let part = |number, bytes: usize| {
            let mut out = BytesMut::new();
            parts::put_part(&mut out, number, bytes);
            out.resize(out.len() + bytes, 0);
            out
        };
        let many = (0..=parts::MAX_BEGUN as u32).flat_map(|number| begin(number, 100, 1)).collect();
        let window = (0..9).flat_map(|number| begin(number, 1 << 20, 1)).chain(begin(9, 1 << 20, 1)).collect();
        let bad: [(&str, BytesMut, BadFrame); 9] = [
            ("a total over the limit", begin(1, 2 << 20, 9), BadFrame::Total(2 << 20)),
            ("too many", many, BadFrame::TooMuchBegun),
            ("too large together", window, BadFrame::TooMuchBegun),
            ("a part of nothing", part(5, 3), BadFrame::NotBegun(5)),
            ("begun twice", [begin(1, 9, 2), begin(1, 9, 2)].into_iter().flatten().collect(), BadFrame::BegunTwice(1)),
            ("too long a start", begin(1, 9, 10), BadFrame::Overrun(1)),
            ("too long", [begin(1, 9, 2), part(1, 8)].into_iter().flatten().collect(), BadFrame::Overrun(1)),
            ("an empty start", begin(1, 9, 0), BadFrame::EmptyPart),
            ("an empty part", [begin(1, 9, 1), part(1, 0)].into_iter().flatten().collect(), BadFrame::EmptyPart),
        ];
        for (what, bytes, why) in bad {
            for pipe in [100, 1 << 20] {
                let (inlet, mut kept, back) = (Inlet::default(), Kept::default(), Link::new(1, ROOM, 1 << 20));
                let (ours, theirs) = duplex(pipe);
                let (_listening, mut ours) = tokio::io::split(ours); // the answer is left alone
                let hello = encode_block(&DataHello { protocol: PROTOCOL, epoch: 1 });
                let sent = [&hello[..], &bytes].concat();
                let (_, read) =
                    tokio::join!(ours.write_all(&sent), inlet.read(theirs, 1 << 20, &back, &mut kept, || ()));
                assert!(matches!(&read, Err(LinkError::Frame(bad)) if *bad == why), "{what}: {read:?}");
            }
        }
    }

    #[test]
    fn a_paused_topic_is_refused_for_that_node_alone() {
        let link = Link::new(1, ROOM, 1 << 20);
        link.set_paused(0, topic(), true);
        assert_eq!(push(&link, 1, b""), Err(Refused::Paused));
        link.set_paused(0, topic(), false);
        link.set_paused(1, topic(), true);
        assert_eq!(push(&link, 1, b""), Ok(()));
    }

    #[tokio::test]
    async fn a_closed_link_says_what_it_left_undone() {
        let link = Link::new(7, ROOM, 1 << 20);
        push(&link, 1, b"x").unwrap();
        push(&link, 2, b"x").unwrap();
        assert_eq!(link.close(), Remains { epoch: 7, unsent: 2, taken: 0 });
        assert_eq!(push(&link, 3, b"x"), Err(Refused::Closed));
        assert!(link.is_closed());
        link.flushed().await;
    }

    #[tokio::test]
    async fn once_a_newer_stream_is_read_an_older_one_is_not() {
        let (inlet, link) = (Inlet::default(), Link::new(5, ROOM, 1 << 20));
        push(&link, 1, b"x").unwrap();
        assert!(carry(&link, &inlet, 1000).await.1.is_ok());
        let old = Link::new(4, ROOM, 1 << 20);
        push(&old, 2, b"x").unwrap();
        let (ours, theirs) = duplex(1000);
        let mut kept = Kept::default();
        let back = Link::new(1, ROOM, 1 << 20);
        let (written, read) =
            tokio::join!(old.write(async { Ok(ours) }), inlet.read(theirs, 100, &back, &mut kept, || ()));
        assert!(written.is_err() && matches!(read, Err(LinkError::OldEpoch)));
        assert!(kept.messages.is_empty());
        assert_eq!(inlet.freeze(), Some(Received { epoch: 5, messages: 1 }));
    }

    #[tokio::test]
    async fn garbage_and_oversized_frames_end_the_stream() {
        for bad in [&[0, 0, 0, 1, 99][..], &[0xff, 0, 0, 0], &[0, 0, 0, 0]] {
            let (inlet, mut kept, back) = (Inlet::default(), Kept::default(), Link::new(1, ROOM, 1 << 20));
            let (mut ours, theirs) = duplex(1000);
            let hello = encode_block(&DataHello { protocol: PROTOCOL, epoch: 1 });
            ours.write_all(&[&hello[..], bad].concat()).await.unwrap();
            assert!(inlet.read(theirs, 100, &back, &mut kept, || ()).await.is_err(), "{bad:?}");
        }
    }
}
