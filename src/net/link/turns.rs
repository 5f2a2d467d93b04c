//! Large frames on their way out: cut into parts, which take turns.
//!
//! What has to keep its order shares a lane, and waits there behind the frame that is being written; lanes take turns, one
//! part each. Pure: what is taken, and when, is decided here; writing it is the link's.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::LinkLimits;
use crate::mesh::{MAX_SMALL, NodeName, Size, Topic};
use crate::wire::LENGTH;
use crate::wire::frame;
use crate::wire::parts::{self, BEGIN_HEAD, BEYOND, MAX_BEGUN, PART_HEAD};

/// What has to keep its order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Order {
    /// Nothing: frames that stand for themselves, and are never large.
    Free,
    /// Messages from one node on one topic.
    Topic(u32, Topic),
    /// A call of ours, with what takes it back.
    Call(u64),
    /// The answer to a call.
    Answer(u64),
    /// What one end of a channel says.
    End(u64),
}

/// Frames and bytes that wait, as far as they share a limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    pub(super) frames: usize,
    pub(super) bytes: usize,
}

impl Waiting {
    pub(super) fn refuses(&self, bytes: usize, limits: LinkLimits) -> bool {
        self.frames >= limits.frames || (self.frames > 0 && self.bytes + bytes > limits.bytes)
    }

    fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.frames -= 1;
        self.bytes -= bytes;
    }
}

/// All lanes of one link.
#[derive(Debug)]
pub(super) struct Turns {
    lanes: HashMap<Order, Lane>,
    /// Lanes that go on, in turn.
    active: VecDeque<Order>,
    /// Lanes whose first frame begins when the receiver has room for all of it: medium ones, large ones.
    to_begin: [VecDeque<Order>; 2],
    /// What waits in all lanes, and what has begun, again by size.
    waiting: [Waiting; 2],
    begun: [Waiting; 2],
    /// The longest body of a frame that the receiver takes.
    max_frame: usize,
    next_number: u32,
    next_place: u64,
    /// How many frames outside of lanes have to be taken before anything begins: see [`Turns::abandoned`].
    abandoned: u64,
}

#[derive(Debug, Default)]
struct Lane {
    /// With their places.
    frames: VecDeque<(u64, Parcel)>,
    /// Of the first frame.
    begun: Option<Begun>,
}

/// A frame of which parts are written.
#[derive(Clone, Copy, Debug)]
struct Begun {
    number: u32,
    /// Bytes of its body that are.
    sent: usize,
}

/// A frame that waits in a lane.
#[derive(Debug)]
pub(super) struct Parcel {
    /// All of it but its payload, with its length.
    pub(super) head: BytesMut,
    pub(super) payload: Bytes,
    /// When its time is over, if it is a message.
    pub(super) until: Option<Instant>,
    /// Who sends it, if it is a message: the receiver has to know the name when the frame ends.
    pub(super) from: Option<(u32, NodeName)>,
    /// How many frames outside of lanes are to be written before it.
    pub(super) after: u64,
}

/// What is written in one turn.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) head: BytesMut,
    pub(super) payload: Bytes,
    /// Frames that end with it, and messages that begin with it.
    pub(super) frames: usize,
    pub(super) messages: u64,
    /// Bytes of it that are of a part.
    pub(super) part: usize,
}

/// Whose turn it is.
#[derive(Debug)]
pub(super) enum Turn {
    Piece(Piece),
    /// The receiver has to be told of this name first.
    Introduce(u32, NodeName),
    /// Nobody's, until what is outside of the lanes is written.
    Nobody,
}

/// What was taken out of a lane.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Withdrawn {
    pub(super) frames: usize,
    /// The number of the frame of which parts are written.
    pub(super) number: Option<u32>,
}

impl Piece {
    /// Copies the start of the payload behind the head, for both to be written at once.
    pub(super) fn join(&mut self, len: usize) {
        let joins = self.payload.len().min(len.saturating_sub(self.head.len()));
        self.head.extend_from_slice(&self.payload.split_to(joins));
    }
}

impl Parcel {
    fn body(&self) -> usize {
        self.head.len() - LENGTH + self.payload.len()
    }

    fn size(&self) -> usize {
        large(self.payload.len())
    }

    fn is_cut(&self) -> bool {
        Size::of(self.payload.len()) != Size::Small
    }

    /// Brings its time up to date. When that is over, the payload stays here.
    fn is_over(&mut self, now: Instant) -> bool {
        let left = self.until.map(|until| milliseconds(until, now));
        if let Some(left) = left {
            frame::set_left(&mut self.head, left);
        }
        left == Some(0)
    }
}

/// Which of two kinds of room a frame takes.
fn large(payload: usize) -> usize {
    usize::from(Size::of(payload) == Size::Large)
}

impl Turns {
    pub(super) fn new(max_message: usize) -> Self {
        Self {
            lanes: HashMap::new(),
            active: VecDeque::new(),
            to_begin: Default::default(),
            waiting: Default::default(),
            begun: Default::default(),
            max_frame: parts::max_frame(max_message),
            next_number: 0,
            next_place: 0,
            abandoned: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Whether a part of something is taken and not all of it.
    #[cfg(test)]
    pub(super) fn has_begun(&self) -> bool {
        self.lanes.values().any(|lane| lane.begun.is_some_and(|begun| begun.sent > 0))
    }

    /// Whether something of that order waits, so that what comes has to queue behind it.
    pub(super) fn holds(&self, order: &Order) -> bool {
        *order != Order::Free && self.lanes.contains_key(order)
    }

    /// Whether there is no room for a frame with such a payload.
    pub(super) fn refuse(&self, payload: usize, bytes: usize, limits: LinkLimits) -> bool {
        self.waiting[large(payload)].refuses(bytes, limits)
    }

    /// Queues a frame. Gives its place among all that ever were.
    pub(super) fn push(&mut self, order: Order, parcel: Parcel) -> u64 {
        self.waiting[parcel.size()].add(parcel.body());
        let lane = self.lanes.entry(order.clone()).or_default();
        let place = self.next_place;
        self.next_place += 1;
        lane.frames.push_back((place, parcel));
        if lane.frames.len() == 1 {
            self.line_up(order);
        }
        place
    }

    /// Gives the next turn. `taken` is how many frames outside of the lanes are taken, `known` at which place among them a
    /// node's name was told.
    pub(super) fn next(&mut self, taken: u64, known: impl Fn(u32) -> Option<u64>, now: Instant) -> Turn {
        self.begin(taken);
        for _ in 0..self.active.len() {
            let Some(order) = self.active.pop_front() else { break };
            let Some(lane) = self.lanes.get(&order) else { continue };
            let Some((_, parcel)) = lane.frames.front() else { continue };
            // What is over crosses as its header alone, in the turn in which it would begin.
            let is_over = parcel.until.is_some_and(|until| milliseconds(until, now) == 0);
            let last =
                lane.begun.is_none_or(|begun| parcel.body() - begun.sent <= MAX_PART || (begun.sent == 0 && is_over));
            let is_known = match &parcel.from {
                Some((index, name)) if last => match known(*index) {
                    None => {
                        let introduce = Turn::Introduce(*index, name.clone());
                        self.active.push_front(order);
                        return introduce;
                    }
                    Some(place) => place < taken,
                },
                _ => true,
            };
            if !is_known || parcel.after > taken {
                self.active.push_back(order);
                continue;
            }
            return Turn::Piece(self.take(order, taken, now));
        }
        Turn::Nobody
    }

    /// Nothing begins before so many frames outside of lanes are taken: the last of them gives room back.
    pub(super) fn abandoned(&mut self, pushed: u64) {
        self.abandoned = pushed;
    }

    /// Takes all of a lane back.
    pub(super) fn withdraw(&mut self, order: &Order) -> Withdrawn {
        let Some(lane) = self.lanes.remove(order) else { return Withdrawn::default() };
        self.active.retain(|other| other != order);
        self.to_begin.iter_mut().for_each(|line| line.retain(|other| other != order));
        let frames = lane.frames.len();
        let mut sent = lane.begun.map_or(0, |begun| begun.sent);
        for (at, (_, parcel)) in lane.frames.iter().enumerate() {
            self.waiting[parcel.size()].remove(parcel.body() - std::mem::take(&mut sent));
            if at == 0 && lane.begun.is_some() {
                self.begun[parcel.size()].remove(parcel.body());
            }
        }
        let number = lane.begun.filter(|begun| begun.sent > 0).map(|begun| begun.number);
        Withdrawn { frames, number }
    }

    /// Lets go of everything. Gives the places of frames of which nothing was taken.
    pub(super) fn close(&mut self) -> HashSet<u64> {
        let lanes = std::mem::replace(self, Self::new(0)).lanes.into_values();
        let untaken = lanes.flat_map(|lane| {
            let begun = lane.begun.is_some_and(|begun| begun.sent > 0);
            lane.frames.into_iter().skip(usize::from(begun)).map(|(place, _)| place)
        });
        untaken.collect()
    }

    /// Whether the receiver has room for one more of that size. Never refused if nothing of it has begun.
    fn fits(&self, size: usize, body: usize) -> bool {
        let most = if size == 0 { BEYOND } else { self.max_frame };
        let begun = &self.begun[size];
        begun.frames == 0 || (begun.frames < MAX_BEGUN / 2 && begun.bytes + body <= most)
    }

    /// Begins what fits, in the order in which it came: so the small among the large wait for their like alone, and the
    /// large ones do not wait for ever.
    fn begin(&mut self, taken: u64) {
        if taken < self.abandoned {
            return;
        }
        for size in 0..self.to_begin.len() {
            while let Some(order) = self.to_begin[size].front() {
                let Some((_, parcel)) = self.lanes.get(order).and_then(|lane| lane.frames.front()) else {
                    self.to_begin[size].pop_front();
                    continue;
                };
                let (body, after) = (parcel.body(), parcel.after);
                if after > taken || !self.fits(size, body) {
                    break;
                }
                let Some(order) = self.to_begin[size].pop_front() else { break };
                self.begun[size].add(body);
                let number = self.next_number;
                self.next_number = number.wrapping_add(1);
                if let Some(lane) = self.lanes.get_mut(&order) {
                    lane.begun = Some(Begun { number, sent: 0 });
                }
                self.active.push_back(order);
            }
        }
    }

    /// Lets a lane begin with its first frame: in turn, or when there is room for it.
    fn line_up(&mut self, order: Order) {
        match self.lanes.get(&order).and_then(|lane| lane.frames.front()) {
            Some((_, parcel)) if parcel.is_cut() => self.to_begin[parcel.size()].push_back(order),
            Some(_) => self.active.push_back(order),
            None => drop(self.lanes.remove(&order)),
        }
    }

    /// Takes what one turn of a lane brings.
    fn take(&mut self, order: Order, taken: u64, now: Instant) -> Piece {
        let piece = self.take_part(&order, now).unwrap_or_else(|| self.take_small(&order, taken, now));
        match self.lanes.get(&order) {
            Some(lane) if lane.begun.is_some() => self.active.push_back(order),
            _ => self.line_up(order),
        }
        piece
    }

    /// The next part of the frame that has begun.
    fn take_part(&mut self, order: &Order, now: Instant) -> Option<Piece> {
        let lane = self.lanes.get_mut(order)?;
        let Begun { number, sent } = lane.begun?;
        let (_, parcel) = lane.frames.front_mut()?;
        let (size, body) = (parcel.size(), parcel.body());
        let mut piece = Piece::default();
        let is_over = sent == 0 && parcel.is_over(now);
        let bytes = if is_over { body } else { (body - sent).min(MAX_PART) };
        if sent == 0 {
            piece.messages = u64::from(parcel.from.is_some());
        }
        if is_over {
            piece.head = std::mem::take(&mut parcel.head);
        } else {
            if sent == 0 {
                parts::put_begin(&mut piece.head, number, body, bytes);
            } else {
                parts::put_part(&mut piece.head, number, bytes);
            }
            let head = &parcel.head[LENGTH..];
            let headed = head.len().saturating_sub(sent).min(bytes);
            piece.head.extend_from_slice(&head[head.len().min(sent)..][..headed]);
            piece.part = bytes;
            let at = (sent + headed).saturating_sub(head.len());
            piece.payload = parcel.payload.slice(at..at + bytes - headed);
        }
        self.waiting[size].bytes -= bytes;
        lane.begun = Some(Begun { number, sent: sent + bytes });
        if sent + bytes == body {
            piece.frames = 1;
            lane.begun = None;
            lane.frames.pop_front();
            self.waiting[size].frames -= 1;
            self.begun[size].remove(body);
        }
        Some(piece)
    }

    /// The small frames that are next, together.
    fn take_small(&mut self, order: &Order, taken: u64, now: Instant) -> Piece {
        let mut piece = Piece::default();
        let Some(lane) = self.lanes.get_mut(order) else { return piece };
        while let Some((_, parcel)) = lane.frames.front_mut() {
            let fits = piece.head.is_empty() || piece.head.len() + parcel.body() < MAX_PART;
            if parcel.is_cut() || parcel.after > taken || !fits {
                break;
            }
            self.waiting[parcel.size()].remove(parcel.body());
            let is_over = parcel.is_over(now);
            piece.head.extend_from_slice(&parcel.head);
            if !is_over {
                piece.head.extend_from_slice(&parcel.payload);
            }
            piece.frames += 1;
            piece.messages += u64::from(parcel.from.is_some());
            lane.frames.pop_front();
        }
        piece
    }
}

/// The time that is left, as the header of a message says it.
pub(super) fn milliseconds(until: Instant, now: Instant) -> u32 {
    u32::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u32::MAX)
}

/// Most bytes of a body in one part: with its head, a part is as large as the largest small payload.
const MAX_PART: usize = MAX_SMALL - BEGIN_HEAD;
const _: () = assert!(BEGIN_HEAD >= PART_HEAD);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::parts::{Assembly, Taken};
    use crate::wire::split_block;

    /// A frame whose body says which one it is.
    fn parcel(number: u64, size: usize) -> Parcel {
        let mut head = BytesMut::new();
        frame::put_cancel(&mut head, number);
        let length = (head.len() - LENGTH + size) as u32;
        head[..LENGTH].copy_from_slice(&length.to_be_bytes());
        Parcel { head, payload: Bytes::from(vec![number as u8; size]), until: None, from: None, after: 0 }
    }

    /// The other side: what came, in the order in which it ended.
    struct Far {
        assembly: Assembly,
        came: Vec<(u64, usize)>,
    }

    impl Far {
        fn new(max_message: usize) -> Self {
            Self { assembly: Assembly::new(parts::max_frame(max_message)), came: Vec::new() }
        }

        /// Gives how many frames ended.
        fn read(&mut self, piece: &Piece) -> usize {
            assert!(
                piece.head.len() + piece.payload.len() <= MAX_SMALL + BEGIN_HEAD,
                "no turn is longer than a small frame"
            );
            let mut received = BytesMut::from(&piece.head[..]);
            received.extend_from_slice(&piece.payload);
            let before = self.came.len();
            while let Some(body) = split_block(&mut received, 2 * MAX_SMALL).unwrap() {
                let body = match self.assembly.take(body, || Instant::now().into_std()).expect("no rule is broken") {
                    Taken::Part => continue,
                    Taken::Frame(body) => body,
                    Taken::Whole(whole) => whole.body,
                };
                let number = u64::from_be_bytes(*body[1..].first_chunk().unwrap());
                assert!(body[9..] == vec![number as u8; body.len() - 9]);
                self.came.push((number, body.len() - 9));
            }
            assert!(received.is_empty());
            self.came.len() - before
        }
    }

    fn next(turns: &mut Turns) -> Piece {
        let Turn::Piece(piece) = turns.next(0, |_| None, Instant::now()) else { panic!("nobody's turn") };
        piece
    }

    fn is_at_rest(turns: &Turns) -> bool {
        let rooms = turns.waiting.iter().chain(&turns.begun);
        let is_room = rooms.map(|room| room.frames + room.bytes).sum::<usize>() == 0;
        turns.is_empty() && turns.active.is_empty() && turns.to_begin.iter().all(VecDeque::is_empty) && is_room
    }

    const MAX_MESSAGE: usize = 6 << 20;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Lanes are carried in any order of pushes and turns: each keeps its order, no limit of the receiver is passed, all
        /// ends, and the room is given back.
        #[test]
        fn all_arrives_whole_each_lane_in_order_within_the_limits(
            steps in prop::collection::vec((0..6u64, 0..7usize, 0..4usize), 1..60),
        ) {
            let sizes = [0, 100, MAX_SMALL, MAX_SMALL + 1, 200_000, 3 << 20, MAX_MESSAGE];
            let (mut turns, mut far) = (Turns::new(MAX_MESSAGE), Far::new(MAX_MESSAGE));
            let mut sent: Vec<Vec<(u64, usize)>> = vec![Vec::new(); 6];
            let mut ended = 0;
            for (number, (lane, size, turn)) in (0..).zip(steps) {
                let order = Order::Call(lane);
                if sizes[size] > MAX_SMALL || turns.holds(&order) {
                    turns.push(order, parcel(number, sizes[size]));
                    sent[lane as usize].push((number, sizes[size]));
                }
                for _ in 0..if turns.is_empty() { 0 } else { turn } {
                    if turns.is_empty() {
                        break;
                    }
                    let piece = next(&mut turns);
                    prop_assert_eq!(far.read(&piece), piece.frames);
                    ended += piece.frames;
                }
            }
            while !turns.is_empty() {
                let piece = next(&mut turns);
                prop_assert_eq!(far.read(&piece), piece.frames);
                ended += piece.frames;
            }
            prop_assert!(is_at_rest(&turns));
            prop_assert_eq!(ended, sent.iter().map(Vec::len).sum::<usize>());
            for of_lane in sent {
                let came: Vec<_> = far.came.iter().filter(|frame| of_lane.contains(frame)).copied().collect();
                prop_assert_eq!(came, of_lane);
            }
        }
    }

    #[test]
    fn lanes_take_turns_part_by_part() {
        let (mut turns, mut far) = (Turns::new(8 << 20), Far::new(8 << 20));
        turns.push(Order::Call(1), parcel(1, 8 << 20));
        turns.push(Order::Call(2), parcel(2, MAX_PART * 3));
        turns.push(Order::Call(2), parcel(3, 10));
        turns.push(Order::Call(2), parcel(4, 10));
        let pieces = (1..).take_while(|_| far.read(&next(&mut turns)) == 0).count();
        assert_eq!(pieces, 6, "three parts, and then a rest of nine bytes, with one of the other's behind each");
        far.read(&next(&mut turns));
        assert_eq!(far.came, [(2, MAX_PART * 3)]);
        far.read(&next(&mut turns));
        assert_eq!(far.came[1..], [(3, 10), (4, 10)], "small ones go together");
        while !turns.is_empty() {
            far.read(&next(&mut turns));
        }
        assert_eq!(far.came.last(), Some(&(1, 8 << 20)));
    }

    #[test]
    fn medium_ones_do_not_wait_for_large_ones_that_have_no_room() {
        let (mut turns, mut far) = (Turns::new(16 << 20), Far::new(16 << 20));
        turns.push(Order::Call(1), parcel(1, 16 << 20));
        turns.push(Order::Call(2), parcel(2, 16 << 20));
        turns.push(Order::Call(3), parcel(3, 1 << 20));
        while !turns.is_empty() {
            far.read(&next(&mut turns));
        }
        assert_eq!(far.came.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [3, 1, 2]);
    }

    #[test]
    fn what_was_queued_before_goes_before_and_a_name_before_the_end() {
        let mut turns = Turns::new(1 << 20);
        let from = Some((7, NodeName::new("n").unwrap()));
        turns.push(Order::Call(1), Parcel { from, after: 5, ..parcel(1, MAX_SMALL + 1) });
        assert!(matches!(turns.next(4, |_| None, Instant::now()), Turn::Nobody));
        assert!(matches!(turns.next(5, |_| None, Instant::now()), Turn::Piece(Piece { messages: 1, frames: 0, .. })));
        assert!(matches!(turns.next(5, |_| None, Instant::now()), Turn::Introduce(7, _)));
        assert!(matches!(turns.next(5, |_| Some(5), Instant::now()), Turn::Nobody), "it is not written yet");
        assert!(matches!(
            turns.next(6, |_| Some(5), Instant::now()),
            Turn::Piece(Piece { messages: 0, frames: 1, .. })
        ));
        assert!(is_at_rest(&turns));
    }

    #[test]
    fn what_is_withdrawn_or_closed_leaves_nothing_behind() {
        let mut turns = Turns::new(8 << 20);
        turns.push(Order::Call(1), parcel(1, 5 << 20));
        turns.push(Order::Call(1), parcel(2, 10));
        turns.push(Order::Call(2), parcel(3, 5 << 20));
        assert_eq!(turns.withdraw(&Order::Call(2)), Withdrawn { frames: 1, number: None });
        next(&mut turns);
        assert_eq!(turns.withdraw(&Order::Call(1)), Withdrawn { frames: 2, number: Some(0) });
        assert!(is_at_rest(&turns));
        let [_, behind, other] =
            [(4, 1), (5, 1), (6, 2)].map(|(number, lane)| turns.push(Order::Call(lane), parcel(number, 5 << 20)));
        next(&mut turns);
        assert_eq!(turns.close(), HashSet::from([behind, other]));
        assert!(is_at_rest(&turns));
    }

    #[test]
    fn what_is_over_when_its_turn_comes_crosses_without_its_payload() {
        let mut turns = Turns::new(1 << 20);
        let mut head = BytesMut::new();
        let message = frame::MessageHead {
            codec: crate::mesh::Codec::Bytes,
            alias: 1,
            from: 0,
            seq: 1,
            delivery: None,
            left: Some(0),
            retains: false,
        };
        frame::put_message(&mut head, message, [0].into_iter(), None, 100_000);
        let now = Instant::now();
        let until = Some(now + Duration::from_millis(50));
        for order in [1, 2] {
            let payload = Bytes::from(vec![0; 100_000]);
            let from = Some((0, NodeName::new("n").unwrap()));
            turns.push(Order::Call(order), Parcel { head: head.clone(), payload, until, from, after: 0 });
        }
        let piece = turns.next(1, |_| Some(0), now);
        assert!(matches!(piece, Turn::Piece(Piece { frames: 0, messages: 1, .. })), "in time");
        let late = now + Duration::from_millis(60);
        let Turn::Piece(over) = turns.next(1, |_| Some(0), late) else { panic!("nobody's turn") };
        let Ok(Some(body)) = split_block(&mut over.head.clone(), 1000) else { panic!("not whole") };
        let Ok(frame::Frame::Message(message)) = frame::Frame::parse(body) else { panic!("not a message") };
        assert_eq!((message.head.left, message.payload.len(), over.payload.len(), over.frames), (Some(0), 0, 0, 1));
        assert!(matches!(turns.next(1, |_| Some(0), late), Turn::Piece(Piece { frames: 1, .. })));
        assert!(is_at_rest(&turns), "what had begun in time goes on");
    }
}
