//! What arrived for a node and was not taken yet: bounded, with a policy for when it is full.

mod waiting;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll};

pub(crate) use self::waiting::Batch;
use self::waiting::Waiting;
use futures::task::AtomicWaker;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::mesh::delivery::{self, Claimed, Verdict};
use crate::mesh::{FilterTable, Message, NodeId, PeerId, Topic, TopicFilter};
use crate::net::ControlSender;

/// What happens to messages for a subscription whose queue is full. A slow subscription never slows another, whichever it
/// has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The oldest in the queue is dropped; the next message taken says how many were. For who wants the present.
    #[default]
    DropOldest,
    /// The new message is dropped; the next that fits says how many were. For who wants what came first.
    DropNewest,
    /// Senders are told to pause on this topic for this node alone: their `send` waits for its timeout, then reports the
    /// message as dropped. Nothing is lost silently. What is on its way already is still taken, beyond the limit.
    Block,
}

/// How much a subscription holds, and what happens beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenOptions {
    /// Messages. More rides out longer pauses of the reader and holds more memory.
    pub messages: usize,
    /// Bytes of payload. One message is always taken, however large.
    pub bytes: usize,
    /// What happens when either is reached.
    pub overflow: Overflow,
    /// When senders that want to know are told that a message was taken.
    pub acknowledge: Acknowledge,
}

/// When a message counts as taken, for senders that asked for an acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acknowledge {
    /// When the program takes it from the subscription.
    #[default]
    Taken,
    /// When the program says so: [`Message::acknowledge`]. A message that is dropped without, by a panic too, is handed
    /// back: its sender learns of it, or it goes to another node of the group.
    Handled,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { messages: 1024, bytes: 64 << 20, overflow: Overflow::default(), acknowledge: Acknowledge::default() }
    }
}

/// The queue of one subscription.
#[derive(Debug)]
pub(crate) struct Inbox {
    options: ListenOptions,
    state: Mutex<State>,
    reader: AtomicWaker,
    /// Senders of this process wait here for room, and a drain for the end.
    room: Notify,
    /// Messages dropped because their time was over.
    expired: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    messages: Waiting,
    /// A message was refused for want of room: who sends it waits.
    refused: bool,
    /// Dropped before the front of the queue; dropped behind its end.
    lagged_front: u64,
    lagged_back: u64,
    /// Whom this queue asked to pause, and how many messages came since.
    paused: HashMap<(PeerId, u32, Topic), (ControlSender, usize)>,
    /// Of senders that keep their last message, the number of the newest that came: what they send again is not newer.
    newest: HashMap<(NodeId, Topic), u64>,
    /// Closed as soon as it is empty.
    draining: bool,
    closed: bool,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is in the queue.
    Taken,
    /// It is in the queue, and another was dropped for it; or it was dropped.
    Dropped,
    /// The queue is full and blocks: not taken. Only senders of this process are told so.
    Full,
    /// Nobody reads any more.
    Closed,
}

impl Inbox {
    pub(crate) fn new(options: ListenOptions, expired: Arc<AtomicU64>) -> Self {
        let options = ListenOptions { messages: options.messages.max(1), ..options };
        Self { options, state: Mutex::default(), reader: AtomicWaker::new(), room: Notify::new(), expired }
    }

    /// Takes a message of this process, unless the queue blocks.
    pub(crate) fn offer(&self, message: Message) -> Put {
        let mut state = self.state();
        if self.options.overflow == Overflow::Block && self.is_full(&state) {
            if state.closed {
                return Put::Closed;
            }
            state.refused = true;
            return Put::Full;
        }
        self.put(&mut state, message)
    }

    /// Takes a message of this process even if the queue blocks: what is bounded elsewhere.
    pub(crate) fn force(&self, message: Message) -> Put {
        self.put(&mut self.state(), message)
    }

    /// Takes a message that came over a link. A queue that blocks asks the sender to pause when it is full.
    pub(crate) fn deliver(&self, message: Message, node: u32, control: impl FnOnce() -> Option<ControlSender>) -> Put {
        let mut state = self.state();
        let (peer, topic) = (message.from.peer, message.topic.clone());
        let put = self.put(&mut state, message);
        if put == Put::Taken {
            self.pause(&mut state, (peer, node, topic), 1, control);
        }
        put
    }

    /// Takes many as [`Inbox::deliver`] takes one. Gives how many were dropped.
    pub(crate) fn deliver_all(
        &self,
        batch: Batch,
        node: u32,
        control: impl FnOnce() -> Option<ControlSender>,
    ) -> usize {
        let mut state = self.state();
        if state.closed {
            return 0;
        }
        let key = (batch.from.peer, node, batch.topic.clone());
        let (mut dropped, count) = (0, batch.len());
        if self.has_room(&state, &batch) {
            let lagged = std::mem::take(&mut state.lagged_back);
            state.messages.push_all(batch, lagged);
            self.reader.wake();
        } else {
            for message in batch {
                dropped += usize::from(self.put(&mut state, message) == Put::Dropped);
            }
        }
        self.pause(&mut state, key, count - dropped, control);
        dropped
    }

    /// Whether all of them can wait together, and as they are.
    fn has_room(&self, state: &State, batch: &Batch) -> bool {
        // Behind others it may wait long: then it keeps no buffer that may be many times its size.
        if batch.is_mostly_other() || (batch.bytes() < WAITS_AS_IT_IS && !state.messages.is_empty()) {
            return false;
        }
        let (messages, bytes) = (state.messages.len() + batch.len(), state.messages.bytes() + batch.bytes());
        let ListenOptions { messages: most, bytes: most_bytes, .. } = self.options;
        match self.options.overflow {
            Overflow::Block => messages <= most + FLOOD_MESSAGES && bytes <= 2 * most_bytes,
            Overflow::DropOldest | Overflow::DropNewest => messages <= most && bytes <= most_bytes,
        }
    }

    /// Asks the sender of so many messages that were taken to pause, if the queue blocks and is full.
    fn pause(
        &self,
        state: &mut State,
        key: (PeerId, u32, Topic),
        taken: usize,
        control: impl FnOnce() -> Option<ControlSender>,
    ) {
        if self.options.overflow != Overflow::Block || taken == 0 || !self.is_full(state) {
            return;
        }
        // Asked once, and again if messages go on coming: another subscription of the node may have let them go on, or the
        // link is another by now.
        let (before, since) = state.paused.get_mut(&key).map_or((None, 0), |(_, since)| {
            let before = *since;
            *since += taken;
            (Some(before), *since)
        });
        if before.is_none_or(|before| before / ASK_AGAIN < since / ASK_AGAIN)
            && state.paused.len() < MAX_PAUSED
            && let Some(control) = control()
        {
            control.set_paused(key.1, key.2.clone(), true);
            state.paused.insert(key, (control, since));
        }
    }

    /// Waits for room after [`Put::Full`]. Enable before trying again.
    pub(crate) fn room(&self) -> tokio::sync::futures::Notified<'_> {
        self.room.notified()
    }

    /// The next message; ready with `None` when the inbox is closed and empty.
    pub(crate) fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Message>> {
        if let Some(next) = self.try_next() {
            return Poll::Ready(next);
        }
        self.reader.register(context.waker());
        self.try_next().map_or(Poll::Pending, Poll::Ready)
    }

    /// The next message, if one is there.
    pub(crate) fn try_next(&self) -> Option<Option<Message>> {
        let mut state = self.state();
        let popped = self.pop(&mut state);
        let ends = popped.is_none() && state.draining && !state.closed;
        state.closed |= ends;
        let closed = state.closed;
        let waits = state.refused || !state.paused.is_empty();
        let room = waits && self.options.overflow == Overflow::Block && self.is_half_empty(&state);
        if room {
            state.refused = false;
            for ((_, node, topic), (control, _)) in state.paused.drain() {
                control.set_paused(node, topic, false);
            }
        }
        drop(state);
        if room || ends {
            self.room.notify_waiters();
        }
        let Some(mut message) = popped else { return closed.then_some(None) };
        if self.options.acknowledge == Acknowledge::Taken
            && let Some(claim) = message.claimed.0.take()
        {
            claim.settle(Verdict::Taken);
        }
        Some(Some(message))
    }

    /// Takes the first message whose time is not over off the queue.
    fn pop(&self, state: &mut State) -> Option<Message> {
        while let Some(mut message) = state.messages.pop() {
            message.lagged += std::mem::take(&mut state.lagged_front);
            if !is_over(&message) {
                return Some(message);
            }
            state.lagged_front = message.lagged;
            self.expired.fetch_add(1, Ordering::Relaxed);
            note(&message, Verdict::Expired);
        }
        None
    }

    /// Nobody reads any more: nothing is taken, nobody waits.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.messages.clear();
        for ((_, node, topic), (control, _)) in state.paused.drain() {
            control.set_paused(node, topic, false);
        }
        drop(state);
        self.room.notify_waiters();
        self.reader.wake();
    }

    /// What is there can still be read, then comes the end.
    pub(crate) fn finish(&self) {
        self.state().closed = true;
        self.room.notify_waiters();
        self.reader.wake();
    }

    /// What is there, and what still comes until then, can be read; when nothing is there, comes the end.
    pub(crate) fn drain(&self) {
        let mut state = self.state();
        state.draining = true;
        state.closed |= state.messages.is_empty();
        drop(state);
        self.room.notify_waiters();
        self.reader.wake();
    }

    /// Messages that wait to be taken.
    pub(crate) fn len(&self) -> usize {
        self.state().messages.len()
    }

    /// Takes nothing more, and hands back what senders want to hear of. The rest can still be read.
    pub(crate) fn hand_back(&self) {
        let mut state = self.state();
        state.messages.remove_awaited();
        drop(state);
        self.finish();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    fn put(&self, state: &mut State, mut message: Message) -> Put {
        if state.closed {
            return Put::Closed;
        }
        if message.retains && !state.is_newer(&message) {
            return Put::Taken; // it was, before
        }
        let mut put = Put::Taken;
        let blocks = self.options.overflow == Overflow::Block;
        // Even what blocks has an end: a sender that does not pause must not fill the memory.
        if if blocks { self.is_flooded(state) } else { self.is_full(state) || self.is_too_much(state, &message) } {
            put = Put::Dropped;
            if self.options.overflow == Overflow::DropNewest {
                state.lagged_back += 1;
                note(&message, Verdict::Overflow);
                return put;
            }
            while !state.messages.is_empty() && (blocks || self.is_full(state) || self.is_too_much(state, &message)) {
                if let Some(oldest) = state.messages.pop() {
                    state.lagged_front += 1 + oldest.lagged;
                    note(&oldest, Verdict::Overflow);
                }
                if blocks {
                    break;
                }
            }
            if state.lagged_front == 0 {
                put = Put::Taken; // one message over the byte limit is taken alone
            }
        }
        message.lagged = std::mem::take(&mut state.lagged_back);
        if message.retains {
            state.remember(&message);
        }
        if !state.messages.is_empty() {
            delivery::to_wait(&mut message.payload);
        }
        state.messages.push(message);
        self.reader.wake();
        put
    }

    fn is_full(&self, state: &State) -> bool {
        state.messages.len() >= self.options.messages || state.messages.bytes() > self.options.bytes
    }

    fn is_too_much(&self, state: &State, message: &Message) -> bool {
        !state.messages.is_empty() && state.messages.bytes() + message.payload.len() > self.options.bytes
    }

    fn is_half_empty(&self, state: &State) -> bool {
        state.messages.len() <= self.options.messages / 2 && state.messages.bytes() <= self.options.bytes / 2
    }

    fn is_flooded(&self, state: &State) -> bool {
        state.messages.len() >= self.options.messages + FLOOD_MESSAGES
            || state.messages.bytes() >= 2 * self.options.bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether a message of a sender that sends its last one again is not that. One that is to be acknowledged never is.
    fn is_newer(&self, message: &Message) -> bool {
        let awaited = message.claimed.0.as_ref().is_some_and(|claim| claim.is_awaited());
        let key = (message.from, message.topic.clone());
        awaited || self.newest.get(&key).is_none_or(|newest| message.seq > *newest)
    }

    fn remember(&mut self, message: &Message) {
        if self.newest.len() >= MAX_RETAINED {
            self.newest.clear();
        }
        let newest = self.newest.entry((message.from, message.topic.clone())).or_default();
        *newest = message.seq.max(*newest);
    }
}

/// Notes why a message is dropped, for who wants to hear it.
fn note(message: &Message, verdict: Verdict) {
    if let Claimed(Some(claim)) = &message.claimed {
        claim.note(verdict);
    }
}

fn is_over(message: &Message) -> bool {
    let expires = message.claimed.0.as_ref().and_then(|claim| claim.expires());
    expires.is_some_and(|expires| Instant::now().into_std() >= expires)
}

/// The inboxes of this peer's nodes.
#[derive(Debug, Default)]
pub(crate) struct Inboxes {
    by_node: RwLock<HashMap<u32, Subscribed>>,
    generation: AtomicU64,
    expired: Arc<AtomicU64>,
}

/// The subscriptions of one node.
#[derive(Debug, Default)]
struct Subscribed {
    all: Vec<(TopicFilter, Arc<Inbox>)>,
    /// The same, by filter: a node may have ten thousand.
    by_filter: FilterTable<Arc<Inbox>>,
}

impl Inboxes {
    /// Differs after each change: what [`Inboxes::matching`] gave holds as long as this does.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Messages dropped by subscriptions because their time was over.
    pub(crate) fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// A new subscription of a node.
    pub(crate) fn insert(&self, node: u32, filter: TopicFilter, options: ListenOptions) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox::new(options, Arc::clone(&self.expired)));
        let mut by_node = self.by_node.write().unwrap_or_else(PoisonError::into_inner);
        by_node.entry(node).or_default().insert(filter, Arc::clone(&inbox));
        self.generation.fetch_add(1, Ordering::Release);
        inbox
    }

    /// All that are read.
    pub(crate) fn open(&self) -> Vec<Arc<Inbox>> {
        let by_node = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        let inboxes = by_node.values().flat_map(|node| &node.all).map(|(_, inbox)| inbox);
        inboxes.filter(|inbox| !inbox.is_closed()).cloned().collect()
    }

    /// Where messages on a topic for a node go. Costs what matches.
    pub(crate) fn matching(&self, node: u32, topic: &Topic) -> Vec<Arc<Inbox>> {
        let by_node = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        let Some(subscribed) = by_node.get(&node) else { return Vec::new() };
        let lists = subscribed.by_filter.matching(topic);
        lists.iter().flat_map(|list| list.iter()).filter(|inbox| !inbox.is_closed()).cloned().collect()
    }

    /// The node is gone, and so are its subscriptions.
    pub(crate) fn remove(&self, node: u32) {
        self.by_node.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// What is there can still be read; then every subscription ends.
    pub(crate) fn finish(&self) {
        let by_node = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        by_node.values().flat_map(|node| &node.all).for_each(|(_, inbox)| inbox.finish());
    }
}

impl Subscribed {
    fn insert(&mut self, filter: TopicFilter, inbox: Arc<Inbox>) {
        // Those that were closed go when the list would grow, so that dropping a subscription takes no lock of all others.
        if self.all.len() == self.all.capacity() {
            let closed = self.all.extract_if(.., |(_, inbox)| inbox.is_closed());
            for (filter, _) in closed {
                self.by_filter.update(&filter, |list| list.retain(|inbox| !inbox.is_closed()));
            }
        }
        self.by_filter.insert(&filter, Arc::clone(&inbox));
        self.all.push((filter, inbox));
    }
}

/// What a queue that blocks takes beyond its limit: the frames that a link queues and a stream's window holds, of small
/// messages, several times over.
const FLOOD_MESSAGES: usize = 1 << 17;
/// Bytes of payload that are worth keeping the buffer in which they came, and what else was read into it.
const WAITS_AS_IT_IS: usize = 8 << 10;
/// Messages from a paused sender after which it is asked again.
const ASK_AGAIN: usize = 256;
/// Senders and topics that one subscription pauses at a time.
const MAX_PAUSED: usize = 1 << 16;

/// Senders and topics whose last message is told from one that is sent again, per subscription. Then it starts over, and one
/// may come twice.
const MAX_RETAINED: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mesh::{Codec, NodeName};

    fn message(seq: u64, size: usize) -> Message {
        Message {
            topic: Topic::new("t").unwrap(),
            from: NodeId { peer: PeerId::from_bytes([1; 32]), index: 0 },
            from_name: NodeName::new("n").unwrap(),
            seq,
            codec: Codec::Bytes,
            payload: Bytes::from(vec![0; size]),
            lagged: 0,
            retains: false,
            claimed: Claimed::default(),
        }
    }

    #[test]
    fn what_was_dropped_before_a_batch_is_told_with_its_first_message() {
        let inbox = inbox(4, 1000, Overflow::DropNewest);
        for seq in 1..=6 {
            inbox.force(message(seq, 1));
        }
        assert_eq!(std::iter::from_fn(|| inbox.try_next().flatten()).count(), 4);
        let Message { topic, from, from_name, .. } = message(0, 0);
        let mut batch = Batch::new(topic, from, from_name, Bytes::from_static(&[1, 2, 3]));
        (0..3).for_each(|at| batch.push(7 + at as u64, Codec::Text, at, 1));
        assert_eq!(inbox.deliver_all(batch, 0, || None), 0);
        let taken: Vec<_> = std::iter::from_fn(|| inbox.try_next().flatten()).collect();
        let seen: Vec<_> = taken.iter().map(|one| (one.seq, one.lagged, &one.payload[..])).collect();
        assert_eq!(seen, [(7, 2, &[1][..]), (8, 0, &[2]), (9, 0, &[3])]);
    }

    fn inbox(messages: usize, bytes: usize, overflow: Overflow) -> Inbox {
        Inbox::new(ListenOptions { messages, bytes, overflow, ..ListenOptions::default() }, Arc::default())
    }

    fn taken(inbox: &Inbox) -> Vec<(u64, u64)> {
        std::iter::from_fn(|| inbox.try_next().flatten()).map(|message| (message.seq, message.lagged)).collect()
    }

    #[test]
    fn drop_oldest_keeps_the_newest_and_says_how_many_went() {
        let inbox = inbox(3, 1000, Overflow::DropOldest);
        let puts: Vec<Put> = (1..=5).map(|seq| inbox.offer(message(seq, 1))).collect();
        assert_eq!(puts[2..], [Put::Taken, Put::Dropped, Put::Dropped]);
        assert_eq!(taken(&inbox), [(3, 2), (4, 0), (5, 0)]);
    }

    #[test]
    fn drop_newest_keeps_the_oldest_and_says_how_many_went() {
        let inbox = inbox(2, 1000, Overflow::DropNewest);
        for seq in 1..=5 {
            inbox.offer(message(seq, 1));
        }
        assert_eq!(taken(&inbox), [(1, 0), (2, 0)]);
        inbox.offer(message(6, 1));
        assert_eq!(taken(&inbox), [(6, 3)]);
    }

    #[test]
    fn block_refuses_until_half_is_taken() {
        let inbox = inbox(2, 1000, Overflow::Block);
        assert_eq!(inbox.offer(message(1, 1)), Put::Taken);
        assert_eq!(inbox.offer(message(2, 1)), Put::Taken);
        assert_eq!(inbox.offer(message(3, 1)), Put::Full);
        inbox.try_next();
        assert_eq!(inbox.offer(message(3, 1)), Put::Taken);
        assert_eq!(taken(&inbox), [(2, 0), (3, 0)]);
    }

    #[test]
    fn bytes_count_as_messages_do_and_one_large_message_fits_alone() {
        let inbox = inbox(100, 10, Overflow::DropOldest);
        assert_eq!(inbox.offer(message(1, 6)), Put::Taken);
        assert_eq!(inbox.offer(message(2, 6)), Put::Dropped);
        assert_eq!(taken(&inbox), [(2, 1)]);
        assert_eq!(inbox.offer(message(3, 50)), Put::Taken);
        assert_eq!(taken(&inbox), [(3, 0)]);
    }

    #[test]
    fn small_messages_that_wait_behind_others_do_not_keep_what_they_were_read_from() {
        let inbox = inbox(9, 1000, Overflow::DropOldest);
        let buffer = Bytes::from(vec![7; 64 << 10]);
        for seq in 1..=3 {
            inbox.offer(Message { payload: buffer.slice(1000..1010), ..message(seq, 0) });
        }
        assert_eq!(inbox.try_next().flatten().map(|first| first.payload.as_ptr()), Some(buffer[1000..].as_ptr()));
        assert!(buffer.is_unique());
        assert_eq!(inbox.try_next().flatten().map(|next| next.payload), Some(Bytes::from(vec![7; 10])));
    }

    #[test]
    fn what_arrived_can_be_read_after_the_end() {
        let inbox = inbox(9, 100, Overflow::DropOldest);
        inbox.offer(message(1, 1));
        inbox.finish();
        assert_eq!(inbox.offer(message(2, 1)), Put::Closed);
        assert_eq!(inbox.try_next().flatten().map(|message| message.seq), Some(1));
        assert_eq!(inbox.try_next(), Some(None));
    }

    #[test]
    fn each_subscription_is_found_by_its_filter_until_it_is_closed_and_then_takes_no_memory() {
        let (all, filter) = (Inboxes::default(), |text: &str| TopicFilter::new(text).unwrap());
        let topic = Topic::new("t/1").unwrap();
        let kept = all.insert(7, filter("t/*"), ListenOptions::default());
        for n in 0..1000 {
            let inbox = all.insert(7, filter(&format!("t/{}", n % 3)), ListenOptions::default());
            assert_eq!(all.matching(7, &topic).len(), if n % 3 == 1 { 2 } else { 1 });
            inbox.close();
        }
        assert!(Arc::ptr_eq(&all.matching(7, &topic)[0], &kept));
        assert!(all.matching(8, &topic).is_empty(), "another node");
        let by_node = all.by_node.read().unwrap();
        let listed: usize = by_node[&7].by_filter.matching(&topic).iter().map(|list| list.len()).sum();
        assert!(
            listed <= by_node[&7].all.len() && by_node[&7].all.len() < 10,
            "closed ones go when the list would grow"
        );
    }
}
