//! Large frames in parts, which take turns with other frames, and how a receiver puts them together again.
//!
//! The parts of one frame, one behind the other, are its body. The receiver keeps one buffer of the announced size for each
//! frame that has begun, and no more of them than [`window`] allows: whoever begins more breaks the protocol.

use std::collections::HashMap;
use std::time::Instant;

use bytes::buf::Limit;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::LENGTH;
use super::frame::{self, BadFrame};
use crate::memory;

/// The frames that are coming in parts on one stream.
#[derive(Debug)]
pub(crate) struct Assembly {
    /// The longest body of a frame.
    max: usize,
    begun: HashMap<u32, Begun>,
    /// Bytes announced by all that has begun.
    announced: usize,
    /// Bytes of parts that came, and of those that the sender was told of.
    came: u64,
    told: u64,
    /// The part that is read right now, and how many of its bytes are missing.
    open: Option<(u32, usize)>,
}

/// A frame of which not all is there.
#[derive(Debug)]
struct Begun {
    body: BytesMut,
    total: usize,
    at: Instant,
}

/// A frame that came in parts and is complete.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) body: Bytes,
    /// When its first part came.
    pub(crate) began: Instant,
}

/// What a frame turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// No part: to be parsed as it is.
    Frame(Bytes),
    /// A part, and more are to come.
    Part,
    /// The last part.
    Whole(Whole),
}

/// What stands before the bytes of a part.
#[derive(Clone, Copy, Debug)]
struct PartHead {
    number: u32,
    /// Bytes of the whole body, if it is the first part.
    total: Option<usize>,
}

impl PartHead {
    /// Reads it, if it is one and is there whole.
    fn parse(body: &mut impl Buf) -> Option<Self> {
        match body.chunk() {
            [BEGIN, ..] if body.remaining() >= BEGIN_HEAD - LENGTH => {
                body.advance(1);
                Some(Self { number: body.get_u32(), total: Some(body.get_u32() as usize) })
            }
            [PART, ..] if body.remaining() >= PART_HEAD - LENGTH => {
                body.advance(1);
                Some(Self { number: body.get_u32(), total: None })
            }
            _ => None,
        }
    }
}

impl Assembly {
    /// For a stream whose frames have at most `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, begun: HashMap::new(), announced: 0, came: 0, told: 0, open: None }
    }

    /// Takes a frame that is there whole.
    pub(crate) fn take(&mut self, mut body: Bytes, now: impl FnOnce() -> Instant) -> Result<Taken, BadFrame> {
        match body.first() {
            Some(&(BEGIN | PART)) => {
                let head = PartHead::parse(&mut body).ok_or(BadFrame::Short)?;
                let begun = self.enter(head, body.len(), now)?;
                begun.body.extend_from_slice(&body);
                self.came += body.len() as u64;
                Ok(self.finish(head.number).map_or(Taken::Part, Taken::Whole))
            }
            Some(&ABANDON) => {
                body.advance(1);
                let number = body.try_get_u32().map_err(|_| BadFrame::Short)?;
                let begun = self.begun.remove(&number).ok_or(BadFrame::NotBegun(number))?;
                self.announced -= begun.total;
                Ok(Taken::Part)
            }
            _ => Ok(Taken::Frame(body)),
        }
    }

    /// If what was received ends within a part: moves what is there of it to its place, and expects the rest at
    /// [`Assembly::rest`].
    pub(crate) fn open(&mut self, received: &mut BytesMut, now: impl FnOnce() -> Instant) -> Result<bool, BadFrame> {
        let Some(len) = part_len(received, self.max) else { return Ok(false) };
        let mut peeked = &received[LENGTH..];
        let Some(head) = PartHead::parse(&mut peeked) else { return Ok(false) };
        let head_len = received.len() - peeked.len() - LENGTH;
        // A length that ends before the head does comes to `take`, which refuses it.
        let Some(bytes) = len.checked_sub(head_len).filter(|bytes| *bytes > peeked.len()) else { return Ok(false) };
        let begun = self.enter(head, bytes, now)?;
        begun.body.extend_from_slice(peeked);
        self.came += bytes as u64; // as soon as the rest is there
        self.open = Some((head.number, bytes - peeked.len()));
        received.clear();
        Ok(true)
    }

    /// Where the rest of the part belongs that [`Assembly::open`] began. `None` when it is there.
    pub(crate) fn rest(&mut self) -> Option<Limit<&mut BytesMut>> {
        let (number, missing) = self.open.filter(|(_, missing)| *missing > 0)?;
        self.begun.get_mut(&number).map(|begun| (&mut begun.body).limit(missing))
    }

    /// So many bytes were put there. The frame, when that was its end.
    pub(crate) fn read(&mut self, bytes: usize) -> Option<Whole> {
        let (number, missing) = self.open.as_mut()?;
        *missing = missing.saturating_sub(bytes);
        if *missing > 0 {
            return None;
        }
        let number = *number;
        self.open = None;
        self.finish(number)
    }

    /// How many bytes of parts came, if it is time to tell.
    pub(crate) fn report(&mut self) -> Option<u64> {
        if self.came - self.told < REPORT_EVERY as u64 {
            return None;
        }
        self.told = self.came;
        Some(self.came)
    }

    /// Where a part of so many bytes belongs, if it may come.
    fn enter(&mut self, head: PartHead, bytes: usize, now: impl FnOnce() -> Instant) -> Result<&mut Begun, BadFrame> {
        let PartHead { number, total } = head;
        if bytes == 0 {
            return Err(BadFrame::EmptyPart);
        }
        if let Some(total) = total {
            if total > self.max {
                return Err(BadFrame::Total(total));
            }
            if self.begun.len() >= MAX_BEGUN || self.announced + total > window(self.max) {
                return Err(BadFrame::TooMuchBegun);
            }
            if self.begun.contains_key(&number) {
                return Err(BadFrame::BegunTwice(number));
            }
            if bytes > total {
                return Err(BadFrame::Overrun(number));
            }
            self.announced += total;
            memory::keep_freed();
            // At once: a buffer that grows takes twice the memory while it does.
            let begun = Begun { body: BytesMut::with_capacity(total), total, at: now() };
            return Ok(self.begun.entry(number).or_insert(begun));
        }
        let begun = self.begun.get_mut(&number).ok_or(BadFrame::NotBegun(number))?;
        if begun.body.len() + bytes > begun.total {
            return Err(BadFrame::Overrun(number));
        }
        Ok(begun)
    }

    fn finish(&mut self, number: u32) -> Option<Whole> {
        if self.begun.get(&number).is_none_or(|begun| begun.body.len() < begun.total) {
            return None;
        }
        let Begun { body, total, at } = self.begun.remove(&number)?;
        self.announced -= total;
        Some(Whole { body: memory::freed_apart(body.freeze()), began: at })
    }
}

/// The length of the part that what was received begins with, if not all of it is there.
pub(crate) fn part_len(received: &[u8], max: usize) -> Option<usize> {
    let (prefix, body) = received.split_first_chunk::<LENGTH>()?;
    let len = u32::from_be_bytes(*prefix) as usize;
    (matches!(body.first(), Some(&(BEGIN | PART))) && len > body.len() && len <= max).then_some(len)
}

/// Writes the head of a first part, of a frame whose body has `total` bytes, with `bytes` of them in this part.
pub(crate) fn put_begin(out: &mut BytesMut, number: u32, total: usize, bytes: usize) {
    out.put_u32((BEGIN_HEAD - LENGTH + bytes) as u32);
    out.put_u8(BEGIN);
    out.put_u32(number);
    out.put_u32(total as u32);
}

/// Writes the head of a further part.
pub(crate) fn put_part(out: &mut BytesMut, number: u32, bytes: usize) {
    out.put_u32((PART_HEAD - LENGTH + bytes) as u32);
    out.put_u8(PART);
    out.put_u32(number);
}

/// Says that no more parts of a frame come, and that it is to be forgotten.
pub(crate) fn put_abandon(out: &mut BytesMut, number: u32) {
    out.put_u32(5);
    out.put_u8(ABANDON);
    out.put_u32(number);
}

/// The longest body of a frame, where payloads have at most `max_message` bytes.
pub(crate) const fn max_frame(max_message: usize) -> usize {
    max_message.saturating_add(frame::overhead(frame::MAX_TARGETS))
}

/// Bytes that all frames that have begun on one stream may announce together.
pub(crate) const fn window(max_frame: usize) -> usize {
    max_frame.saturating_add(BEYOND)
}

/// Frames of one stream that may have begun and not ended.
pub(crate) const MAX_BEGUN: usize = 64;
/// What may have begun besides one frame of the largest size.
pub(crate) const BEYOND: usize = 8 << 20;
/// Bytes of parts of which the sender is told together.
pub(crate) const REPORT_EVERY: usize = 256 << 10;
/// Length, kind, number, total.
pub(crate) const BEGIN_HEAD: usize = LENGTH + 1 + 4 + 4;
/// Length, kind, number.
pub(crate) const PART_HEAD: usize = LENGTH + 1 + 4;

const BEGIN: u8 = 20;
const PART: u8 = 21;
const ABANDON: u8 = 22;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::split_block;
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    fn now() -> Instant {
        Instant::now()
    }

    fn begin(number: u32, total: usize, bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        put_begin(&mut out, number, total, bytes.len());
        out.extend_from_slice(bytes);
        out.split_off(LENGTH).freeze()
    }

    fn part(number: u32, bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        put_part(&mut out, number, bytes.len());
        out.extend_from_slice(bytes);
        out.split_off(LENGTH).freeze()
    }

    fn abandon(number: u32) -> Bytes {
        let mut out = BytesMut::new();
        put_abandon(&mut out, number);
        out.split_off(LENGTH).freeze()
    }

    #[test]
    fn each_way_to_break_the_rules_has_its_own_name() {
        let all = |bodies: &[Bytes]| {
            let mut assembly = Assembly::new(100);
            bodies.iter().try_for_each(|body| assembly.take(body.clone(), now).map(drop))
        };
        assert_eq!(all(&[begin(1, 101, b"x")]), Err(BadFrame::Total(101)));
        assert_eq!(all(&[begin(1, 9, b"x"), begin(1, 9, b"x")]), Err(BadFrame::BegunTwice(1)));
        assert_eq!(all(&[part(7, b"x")]), Err(BadFrame::NotBegun(7)));
        assert_eq!(all(&[abandon(7)]), Err(BadFrame::NotBegun(7)));
        assert_eq!(all(&[begin(1, 3, b"abcd")]), Err(BadFrame::Overrun(1)));
        assert_eq!(all(&[begin(1, 3, b"ab"), part(1, b"cd")]), Err(BadFrame::Overrun(1)));
        assert_eq!(all(&[begin(1, 3, b"ab"), part(1, b"c"), part(1, b"d")]), Err(BadFrame::NotBegun(1)), "it is over");
        assert_eq!(all(&[begin(1, 3, b"")]), Err(BadFrame::EmptyPart));
        assert_eq!(all(&[begin(1, 3, b"a"), part(1, b"")]), Err(BadFrame::EmptyPart));
        assert_eq!(all(&[Bytes::from_static(&[BEGIN, 0, 0, 0, 1])]), Err(BadFrame::Short));
        assert_eq!(all(&[Bytes::from_static(&[PART, 0])]), Err(BadFrame::Short));
        assert_eq!(all(&[Bytes::from_static(&[ABANDON])]), Err(BadFrame::Short));
        let many: Vec<Bytes> = (0..=MAX_BEGUN as u32).map(|number| begin(number, 9, b"x")).collect();
        assert_eq!((all(&many[1..]), all(&many)), (Ok(()), Err(BadFrame::TooMuchBegun)));
    }

    #[test]
    fn what_was_begun_is_bounded_in_bytes_and_room_comes_back() {
        let max = 10 << 20;
        let mut assembly = Assembly::new(max);
        assert_eq!(assembly.take(begin(1, max, b"x"), now), Ok(Taken::Part));
        assert_eq!(assembly.take(begin(2, BEYOND, b"x"), now), Ok(Taken::Part));
        assert_eq!(assembly.take(begin(3, 1, b"x"), now), Err(BadFrame::TooMuchBegun));
        assert_eq!(assembly.take(abandon(1), now), Ok(Taken::Part));
        assert!(matches!(assembly.take(begin(3, 1, b"x"), now), Ok(Taken::Whole(whole)) if &whole.body[..] == b"x"));
        assert_eq!(assembly.take(begin(1, max, b"x"), now), Ok(Taken::Part));
    }

    proptest! {
        /// Whatever the stream is cut into, what comes out is what was cut, in the order of the last parts.
        #[test]
        fn parts_read_back_as_one_frame_however_they_come(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..6),
            turns in prop::collection::vec((0..6usize, 1..100usize), 0..60),
            reads in prop::collection::vec(1..120usize, 1..30),
        ) {
            let (mut wire, mut expected) = (BytesMut::new(), Vec::new());
            let mut sent = vec![0; bodies.len()];
            let rest = (0..bodies.len()).map(|which| (which, usize::MAX));
            for (which, bytes) in turns.into_iter().chain(rest) {
                let Some(body) = bodies.get(which) else { continue };
                let (from, to) = (sent[which], body.len().min(bytes.saturating_add(sent[which])));
                if from == to {
                    continue;
                }
                if from == 0 {
                    put_begin(&mut wire, which as u32, body.len(), to);
                } else {
                    put_part(&mut wire, which as u32, to - from);
                }
                wire.extend_from_slice(&body[from..to]);
                sent[which] = to;
                if to == body.len() {
                    expected.push(body.clone());
                }
            }
            let (mut assembly, mut received, mut came) = (Assembly::new(1000), BytesMut::new(), Vec::new());
            let mut reads = reads.into_iter().cycle();
            while !wire.is_empty() {
                let most = reads.next().unwrap().min(wire.len());
                if let Some(mut rest) = assembly.rest() {
                    let most = most.min(rest.remaining_mut());
                    rest.put(wire.split_to(most));
                    came.extend(assembly.read(most).map(|whole| whole.body.to_vec()));
                    continue;
                }
                received.extend_from_slice(&wire.split_to(most));
                while part_len(&received, 1000).is_none() && let Some(body) = split_block(&mut received, 1000).unwrap() {
                    if let Taken::Whole(whole) = assembly.take(body, now).unwrap() {
                        came.push(whole.body.to_vec());
                    }
                }
                assembly.open(&mut received, now).unwrap();
            }
            prop_assert_eq!(came, expected);
            prop_assert_eq!((assembly.announced, assembly.begun.len()), (0, 0));
        }

        #[test]
        fn no_bytes_panic(bodies in prop::collection::vec(prop::collection::vec(19..24u8, 0..12), 0..20)) {
            let mut assembly = Assembly::new(40_000_000);
            for body in bodies {
                let mut received = BytesMut::from(&body[..]);
                let _ = assembly.open(&mut received, now);
                let _ = assembly.take(Bytes::from(body), now);
            }
        }
    }
}
