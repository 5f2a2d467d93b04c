//! What waits on a link, and what of it is written next.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::pace::Pace;
use super::turns::{Order, Parcel, Piece, Turn, Turns, Waiting};
use super::{LinkLimits, MAX_INTRODUCED, Outgoing, Place, Room};
use crate::memory;
use crate::mesh::{MAX_SMALL, NodeName, Topic};
use crate::wire::frame::{self, INLINE, MessageHead};

/// What waits to be written.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) segments: VecDeque<Segment>,
    /// What is in segments, queued or being written.
    pub(super) queued: Waiting,
    /// What is written in parts, and what waits for it.
    pub(super) turns: Turns,
    pub(super) pace: Pace,
    /// Frames that came from there, or are there, and are not written.
    pub(super) frames_in_turn: usize,
    /// Messages queued and not yet taken by the writer; messages that it took.
    pub(super) waiting: u64,
    pub(super) taken: u64,
    /// Frames put into segments so far; how many of them the writer took.
    pub(super) pushed: u64,
    pub(super) taken_frames: u64,
    /// Places in turns that the writer never took, once the link is closed.
    pub(super) untaken: HashSet<u64>,
    pub(super) aliases: HashMap<Topic, u32>,
    /// Names that the receiver knows, and which frame tells it.
    pub(super) introduced: HashMap<u32, u64>,
    pub(super) last_from: Option<u32>,
    pub(super) paused: HashSet<(u32, Topic)>,
    /// Topics on which the receiver lets this peer not send, and the rules that say so.
    pub(super) refused: HashMap<Topic, String>,
    pub(super) closed: bool,
}

/// What is written in one go.
#[derive(Debug)]
pub(super) enum Segment {
    /// Whole frames one behind the other, and possibly the header of the payload that comes next.
    Joined { joined: BytesMut, frames: usize, messages: u64 },
    /// The payload of the frame before.
    Payload(Bytes),
    /// One message whose time is limited, its header and its payload. What is over when its turn comes crosses as its
    /// header alone: the receiver counts it, and says so to who wants to hear it.
    Timed { head: BytesMut, payload: Bytes, until: Instant },
}

impl Queue {
    pub(super) fn new(max_message: usize) -> Self {
        Self {
            segments: VecDeque::new(),
            queued: Waiting::default(),
            turns: Turns::new(max_message),
            pace: Pace::default(),
            frames_in_turn: 0,
            waiting: 0,
            taken: 0,
            pushed: 0,
            taken_frames: 0,
            untaken: HashSet::new(),
            aliases: HashMap::new(),
            introduced: HashMap::new(),
            last_from: None,
            paused: HashSet::new(),
            refused: HashMap::new(),
            closed: false,
        }
    }

    /// Whether there is nothing to write now.
    pub(super) fn rests(&self) -> bool {
        self.segments.is_empty() && !self.has_turn()
    }

    /// Whether it is somebody's turn, or will be as soon as what is queued is taken.
    pub(super) fn has_turn(&self) -> bool {
        !self.turns.is_empty() && self.pace.is_open()
    }

    pub(super) fn frames(&self) -> usize {
        self.queued.frames + self.frames_in_turn
    }

    /// The order of a frame that has to take turns: because it is large, or because such a one is before it.
    pub(super) fn lane(&self, payload: usize, order: impl FnOnce() -> Order) -> Option<Order> {
        if payload > MAX_SMALL {
            return Some(order());
        }
        if self.turns.is_empty() {
            return None; // as nearly always
        }
        Some(order()).filter(|order| self.turns.holds(order))
    }

    pub(super) fn put(&mut self, message: &Outgoing<'_>, lane: Option<Order>) {
        let head = MessageHead {
            codec: message.codec,
            alias: message.alias,
            from: message.from,
            seq: message.seq,
            delivery: message.delivery,
            left: message.until.map(|_| 0),
            retains: message.retains,
        };
        let inline = (message.alias == INLINE).then_some(message.topic);
        let targets = message.targets.iter().copied();
        let put = |out: &mut BytesMut| frame::put_message(out, head, targets, inline, message.payload.len());
        self.waiting += 1;
        if let Some(order) = lane {
            let mut head = BytesMut::new();
            put(&mut head);
            let from = Some((message.from, message.from_name.clone()));
            self.put_in_turn(order, head, message.payload, message.until, from);
            return;
        }
        if self.last_from != Some(message.from) {
            self.introduce(message.from, message.from_name);
        }
        if let Some(until) = message.until {
            self.put_timed(put, message.payload, until);
        } else {
            self.join_with(put, message.payload, 1);
        }
    }

    pub(super) fn refuses(
        &self,
        takes_turns: bool,
        payload: usize,
        bytes: usize,
        room: Room,
        limits: LinkLimits,
    ) -> bool {
        match room {
            Room::Limited if takes_turns => self.turns.refuse(payload, bytes, limits),
            Room::Limited => self.queued.refuses(bytes, limits),
            Room::Always => self.frames() >= MAX_ALWAYS,
        }
    }

    pub(super) fn put_in_turn(
        &mut self,
        order: Order,
        head: BytesMut,
        payload: &Bytes,
        until: Option<Instant>,
        from: Option<(u32, NodeName)>,
    ) -> Place {
        memory::keep_freed();
        self.frames_in_turn += 1;
        let parcel = Parcel { head, payload: payload.clone(), until, from, after: self.pushed };
        Place::InTurn(self.turns.push(order, parcel))
    }

    /// Writes a frame of a head and a payload: the payload too if it is small, else it follows uncopied.
    pub(super) fn join_with(&mut self, put: impl FnOnce(&mut BytesMut), payload: &Bytes, messages: u64) {
        let joins = payload.len() <= JOIN_UP_TO;
        let put = |out: &mut BytesMut| {
            put(out);
            if joins {
                out.extend_from_slice(payload);
            }
        };
        self.join(put, messages);
        if !joins {
            self.queued.bytes += payload.len();
            self.segments.push_back(Segment::Payload(payload.clone()));
        }
    }

    fn put_timed(&mut self, put: impl FnOnce(&mut BytesMut), payload: &Bytes, until: Instant) {
        let mut head = BytesMut::with_capacity(FIRST_CAPACITY.min(frame::overhead(0) + payload.len()));
        put(&mut head);
        self.queued.frames += 1;
        self.pushed += 1;
        self.queued.bytes += head.len() + payload.len();
        self.segments.push_back(Segment::Timed { head, payload: payload.clone(), until });
    }

    /// Tells the receiver the name behind a node's index, if it does not know it. Both ends forget all at the same
    /// count, so that nodes that come and go for years take no more memory.
    fn introduce(&mut self, index: u32, name: &NodeName) {
        if !self.introduced.contains_key(&index) {
            if self.introduced.len() >= MAX_INTRODUCED {
                self.introduced.clear();
            }
            self.introduced.insert(index, self.pushed);
            self.join(|out| frame::put_node(out, index, name), 0);
        }
        self.last_from = Some(index);
    }

    /// Writes a frame, or all of it but its payload, behind what is queued: into the last buffer, unless that is full or a
    /// payload stands behind it.
    pub(super) fn join(&mut self, put: impl FnOnce(&mut BytesMut), messages: u64) {
        if !matches!(self.segments.back(), Some(Segment::Joined { joined, .. }) if joined.len() < SEGMENT) {
            let joined = BytesMut::with_capacity(FIRST_CAPACITY);
            self.segments.push_back(Segment::Joined { joined, frames: 0, messages: 0 });
        }
        let Some(Segment::Joined { joined, frames, messages: all }) = self.segments.back_mut() else {
            unreachable!("just pushed")
        };
        let before = joined.len();
        put(joined);
        *frames += 1;
        *all += messages;
        self.queued.frames += 1;
        self.pushed += 1;
        self.queued.bytes += joined.len() - before;
    }

    /// Takes what is written next: what is queued, and where something takes turns, some of it and then one turn. All of it
    /// counts as queued until it is written.
    pub(super) fn take(&mut self, turns_too: bool) -> (VecDeque<Segment>, Option<Piece>) {
        if self.closed {
            return Default::default(); // what was queued was let go, and counts as never taken
        }
        if self.turns.is_empty() {
            self.taken += std::mem::take(&mut self.waiting);
            self.taken_frames = self.pushed;
            return (std::mem::take(&mut self.segments), None);
        }
        loop {
            let segments = self.take_some();
            let introduced = &self.introduced;
            let known = |index| introduced.get(&index).copied();
            let now = Instant::now();
            let goes_on = turns_too && self.pace.is_open();
            let turn = if goes_on { self.turns.next(self.taken_frames, known, now) } else { Turn::Nobody };
            match turn {
                Turn::Piece(piece) => {
                    self.waiting -= piece.messages;
                    self.taken += piece.messages;
                    if piece.part > 0 {
                        self.pace.send(piece.part, now);
                    }
                    return (segments, Some(piece));
                }
                Turn::Introduce(index, name) => self.introduce(index, &name),
                Turn::Nobody => return (segments, None),
            }
            if !segments.is_empty() {
                return (segments, None); // the name comes first
            }
        }
    }

    /// Takes whole frames from the front, about as much as goes between two turns.
    fn take_some(&mut self) -> VecDeque<Segment> {
        let (mut some, mut bytes) = (VecDeque::new(), 0);
        while bytes < BETWEEN_TURNS
            && let Some(mut segment) = self.segments.pop_front()
        {
            loop {
                let (frames, messages, len) = match &segment {
                    Segment::Joined { joined, frames, messages } => (*frames as u64, *messages, joined.len()),
                    Segment::Payload(payload) => (0, 0, payload.len()),
                    Segment::Timed { head, payload, .. } => (1, 1, head.len() + payload.len()),
                };
                self.taken_frames += frames;
                self.waiting -= messages;
                self.taken += messages;
                bytes += len;
                some.push_back(segment);
                // The payload belongs to the frame before.
                if !matches!(self.segments.front(), Some(Segment::Payload(_))) {
                    break;
                }
                let Some(payload) = self.segments.pop_front() else { break };
                segment = payload;
            }
        }
        some
    }
}

/// Payloads up to this size are copied behind their header; larger ones are written from where they are. The copy costs
/// less than a write of its own.
pub(super) const JOIN_UP_TO: usize = 8 << 10;
/// Bytes after which a joined buffer is closed: what one write gives the stream.
const SEGMENT: usize = 64 << 10;
/// Bytes that are written between two turns of what is written in parts, while more is queued.
const BETWEEN_TURNS: usize = 128 << 10;
const FIRST_CAPACITY: usize = 4 << 10;
/// Most frames that wait for a peer that reads nothing, whatever they are.
pub(super) const MAX_ALWAYS: usize = 1 << 18;
