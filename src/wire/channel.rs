//! Frames of channels: how one comes to be, what its ends say to each other, and how an end goes from hand to hand.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::LENGTH;
use super::frame::{BadFrame, codec_from, codec_to, cut, rule_from, text};
use super::message::{decode, encode};
use crate::mesh::channel::{Closing, Say, Standing, WINDOW};
use crate::mesh::{Failure, Item, ServiceName};

/// One frame of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChannelFrame {
    /// A node wants to speak with one that offers a service.
    Open(Open),
    /// Whoever has an end's token takes over the other one.
    Adopt(Adopt),
    /// Yes.
    Accepted(Accepted),
    /// No.
    Refused {
        /// The end that asked.
        to: u64,
        why: Refusal,
    },
    /// What one end says to another.
    Said { to: u64, end: u64, say: Say },
}

/// What lets its holder take over the other end of a channel.
pub(crate) type Token = [u8; 16];

/// Asks for a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    /// The opener's end.
    pub(crate) end: u64,
    /// Index of the node that is to answer.
    pub(crate) node: u32,
    /// Index of the opening node.
    pub(crate) from: u32,
    /// How much the opener takes.
    pub(crate) window: u32,
    /// The opener's end's token.
    pub(crate) token: Token,
    pub(crate) service: ServiceName,
    /// The request.
    pub(crate) request: Item,
}

/// Asks to take over the far side of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Adopt {
    /// The end whose other side is taken over, and its token.
    pub(crate) to: u64,
    pub(crate) theirs: Token,
    /// The adopter's end, the index of its node, how much it takes, and its token.
    pub(crate) end: u64,
    pub(crate) from: u32,
    pub(crate) window: u32,
    pub(crate) token: Token,
}

/// Agrees to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// The end that asked.
    pub(crate) to: u64,
    /// The end that answers, the index of its node, how much it takes, and its token.
    pub(crate) end: u64,
    pub(crate) node: u32,
    pub(crate) window: u32,
    pub(crate) token: Token,
    /// Where the conversation stands: all zero for a new one.
    pub(crate) standing: Standing,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The node does not offer that service.
    NotOffered,
    /// The service is called.
    Called,
    /// As many wait as may, or the node is about to leave.
    Busy,
    /// There is no such end to take over, or the token does not fit.
    NotThere,
    /// The end was handed over itself, at the same time.
    HandedOver,
    /// The opener may not use that service: the name of the rule.
    NotAllowed(String),
}

impl ChannelFrame {
    /// Whether the kind of a frame is one of these.
    pub(super) fn has_kind(kind: u8) -> bool {
        (OPEN..=DETACH).contains(&kind)
    }

    /// Reads what follows the kind.
    pub(super) fn parse(kind: u8, mut body: Bytes) -> Result<Self, BadFrame> {
        if kind == OPEN {
            return Open::parse(body).map(Self::Open);
        }
        let (to, end) = (long(&mut body)?, if kind == REFUSED { 0 } else { long(&mut body)? });
        let say = match kind {
            ADOPT => {
                let (from, window) = (short(&mut body)?, read_window(&mut body)?);
                let (theirs, token) = (read_token(&mut body)?, read_token(&mut body)?);
                return Ok(Self::Adopt(Adopt { to, theirs, end, from, window, token }));
            }
            ACCEPTED => {
                let (node, window, token) = (short(&mut body)?, read_window(&mut body)?, read_token(&mut body)?);
                let (received, next) = (read_place(&mut body)?, read_place(&mut body)?);
                let held = short(&mut body)? as usize;
                let standing = Standing { received, next, held, ended: byte(&mut body)? != 0 };
                return Ok(Self::Accepted(Accepted { to, end, node, window, token, standing }));
            }
            REFUSED => return Ok(Self::Refused { to, why: Refusal::parse(byte(&mut body)?, &body)? }),
            ITEM => Say::Item { seq: long(&mut body)?, item: read_item(body)? },
            RETURN => Say::Return { seq: long(&mut body)?, item: read_item(body)? },
            CREDIT => Say::Credit { consumed: long(&mut body)? },
            CLOSE => {
                let seq = long(&mut body)?;
                match byte(&mut body)? {
                    0 => Say::Close { seq, closing: Closing::Ended },
                    1 => Say::Close { seq, closing: Closing::Closed },
                    2 => Say::Close { seq, closing: Closing::Failed(read_failure(&body)) },
                    3 => Say::Done,
                    4 => Say::Gone,
                    other => return Err(BadFrame::Outcome(other)),
                }
            }
            RESUME => Say::Resume { received: long(&mut body)?, consumed: long(&mut body)? },
            DETACH => Say::Detach { seq: long(&mut body)?, consumed: long(&mut body)? },
            other => return Err(BadFrame::Kind(other)),
        };
        Ok(Self::Said { to, end, say })
    }

    /// Writes all of a frame but its payload; the length counts the payload too.
    pub(crate) fn put(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32(0); // the length, once it is known
        match self {
            Self::Open(open) => open.put(out),
            Self::Adopt(Adopt { to, theirs, end, from, window, token }) => {
                put_head(out, ADOPT, *to, *end);
                out.put_u32(*from);
                out.put_u32(*window);
                out.put_slice(theirs);
                out.put_slice(token);
            }
            Self::Accepted(Accepted { to, end, node, window, token, standing }) => {
                put_head(out, ACCEPTED, *to, *end);
                out.put_u32(*node);
                out.put_u32(*window);
                out.put_slice(token);
                out.put_u64(standing.received);
                out.put_u64(standing.next);
                out.put_u32(u32::try_from(standing.held).unwrap_or(u32::MAX));
                out.put_u8(u8::from(standing.ended));
            }
            Self::Refused { to, why } => {
                out.put_u8(REFUSED);
                out.put_u64(*to);
                why.put(out);
            }
            Self::Said { to, end, say } => put_say(out, *to, *end, say),
        }
        let length = (out.len() - start - LENGTH + self.payload().len()) as u32;
        out[start..start + LENGTH].copy_from_slice(&length.to_be_bytes());
    }

    /// The end that says it, if it has one.
    pub(crate) fn end(&self) -> Option<u64> {
        match self {
            Self::Open(Open { end, .. })
            | Self::Adopt(Adopt { end, .. })
            | Self::Accepted(Accepted { end, .. })
            | Self::Said { end, .. } => Some(*end),
            Self::Refused { .. } => None,
        }
    }

    /// The payload that goes behind the head.
    pub(crate) fn payload(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        match self {
            Self::Open(open) => &open.request.payload,
            Self::Said { say: Say::Item { item, .. } | Say::Return { item, .. }, .. } => &item.payload,
            _ => &NONE,
        }
    }
}

impl Open {
    fn parse(mut body: Bytes) -> Result<Self, BadFrame> {
        let (end, node, from) = (long(&mut body)?, short(&mut body)?, short(&mut body)?);
        let window = read_window(&mut body)?;
        let token = read_token(&mut body)?;
        let codec = codec_from(byte(&mut body)?)?;
        let len = usize::from(byte(&mut body)?);
        let service = ServiceName::new(text(&cut(&mut body, len)?)?)?;
        Ok(Self { end, node, from, window, token, service, request: Item { codec, payload: body } })
    }

    fn put(&self, out: &mut BytesMut) {
        let name = self.service.as_str();
        out.put_u8(OPEN);
        out.put_u64(self.end);
        out.put_u32(self.node);
        out.put_u32(self.from);
        out.put_u32(self.window);
        out.put_slice(&self.token);
        out.put_u8(codec_to(self.request.codec));
        out.put_u8(name.len() as u8);
        out.put_slice(name.as_bytes());
    }
}

impl Refusal {
    /// `rest` is what follows the number.
    fn parse(byte: u8, rest: &[u8]) -> Result<Self, BadFrame> {
        Ok(match byte {
            0 => Self::NotOffered,
            1 => Self::Called,
            2 => Self::Busy,
            3 => Self::NotThere,
            4 => Self::HandedOver,
            5 => Self::NotAllowed(rule_from(rest)),
            other => return Err(BadFrame::Outcome(other)),
        })
    }

    fn put(&self, out: &mut BytesMut) {
        out.put_u8(match self {
            Self::NotOffered => 0,
            Self::Called => 1,
            Self::Busy => 2,
            Self::NotThere => 3,
            Self::HandedOver => 4,
            Self::NotAllowed(_) => 5,
        });
        if let Self::NotAllowed(rule) = self {
            out.put_slice(rule.as_bytes());
        }
    }
}

fn put_say(out: &mut BytesMut, to: u64, end: u64, say: &Say) {
    let mut head = |kind, first| {
        put_head(out, kind, to, end);
        out.put_u64(first);
    };
    match say {
        Say::Item { seq, item } => {
            head(ITEM, *seq);
            out.put_u8(codec_to(item.codec));
        }
        Say::Return { seq, item } => {
            head(RETURN, *seq);
            out.put_u8(codec_to(item.codec));
        }
        Say::Credit { consumed } => head(CREDIT, *consumed),
        Say::Resume { received, consumed } => {
            head(RESUME, *received);
            out.put_u64(*consumed);
        }
        Say::Detach { seq, consumed } => {
            head(DETACH, *seq);
            out.put_u64(*consumed);
        }
        Say::Close { seq, closing } => {
            head(CLOSE, *seq);
            match closing {
                Closing::Ended => out.put_u8(0),
                Closing::Closed => out.put_u8(1),
                Closing::Failed(failure) => {
                    out.put_u8(2);
                    out.put_slice(&encode(&failure.shortened()));
                }
            }
        }
        Say::Done => {
            head(CLOSE, 0);
            out.put_u8(3);
        }
        Say::Gone => {
            head(CLOSE, 0);
            out.put_u8(4);
        }
    }
}

fn put_head(out: &mut BytesMut, kind: u8, to: u64, end: u64) {
    out.put_u8(kind);
    out.put_u64(to);
    out.put_u64(end);
}

fn read_item(mut body: Bytes) -> Result<Item, BadFrame> {
    Ok(Item { codec: codec_from(byte(&mut body)?)?, payload: body })
}

fn read_failure(body: &[u8]) -> Failure {
    decode(body).unwrap_or_else(|_| Failure::new("unknown", "it does not say why"))
}

fn long(body: &mut Bytes) -> Result<u64, BadFrame> {
    body.try_get_u64().map_err(|_| BadFrame::Short)
}

fn short(body: &mut Bytes) -> Result<u32, BadFrame> {
    body.try_get_u32().map_err(|_| BadFrame::Short)
}

fn byte(body: &mut Bytes) -> Result<u8, BadFrame> {
    body.try_get_u8().map_err(|_| BadFrame::Short)
}

/// What the far end takes is kept here until it is taken there: no more than this end agrees to keep.
fn read_window(body: &mut Bytes) -> Result<u32, BadFrame> {
    short(body).and_then(|window| if window <= MAX_WINDOW { Ok(window) } else { Err(BadFrame::Window(window)) })
}

/// The number of an item to go on from: others can be counted from it for as long as a channel lasts.
fn read_place(body: &mut Bytes) -> Result<u64, BadFrame> {
    long(body).and_then(|place| if place < MAX_PLACE { Ok(place) } else { Err(BadFrame::Place(place)) })
}

fn read_token(body: &mut Bytes) -> Result<Token, BadFrame> {
    let mut token = Token::default();
    body.try_copy_to_slice(&mut token).map_err(|_| BadFrame::Short)?;
    Ok(token)
}

/// Largest window of an end.
const MAX_WINDOW: u32 = 16 * WINDOW as u32;
const MAX_PLACE: u64 = 1 << 63;

const OPEN: u8 = 10;
const ADOPT: u8 = 11;
const ACCEPTED: u8 = 12;
const REFUSED: u8 = 13;
const ITEM: u8 = 14;
const RETURN: u8 = 15;
const CREDIT: u8 = 16;
const CLOSE: u8 = 17;
const RESUME: u8 = 18;
const DETACH: u8 = 19;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::Frame;
    use super::super::split_block;
    use super::*;
    use crate::mesh::{Codec, MAX_FAILURE};

    fn there_and_back(frame: ChannelFrame) {
        let mut out = BytesMut::new();
        frame.put(&mut out);
        out.extend_from_slice(frame.payload());
        let body = split_block(&mut out, 1 << 20).unwrap().unwrap();
        assert!(out.is_empty());
        assert_eq!(Frame::parse(body), Ok(Frame::Channel(frame)));
    }

    proptest! {
        #[test]
        fn frames_read_back_as_written(
            (to, end, a, b) in any::<(u64, u64, u64, u64)>(),
            (node, from, window) in (any::<u32>(), any::<u32>(), 0..=MAX_WINDOW),
            (token, theirs) in any::<(Token, Token)>(),
            payload in prop::collection::vec(any::<u8>(), 0..200),
            why in 0..6u8,
        ) {
            let item = Item { codec: Codec::Json, payload: payload.into() };
            let service = ServiceName::new("speak").unwrap();
            there_and_back(ChannelFrame::Open(Open { end, node, from, window, token, service, request: item.clone() }));
            there_and_back(ChannelFrame::Adopt(Adopt { to, theirs, end, from, window, token }));
            let standing = Standing { received: a % MAX_PLACE, next: b % MAX_PLACE, held: window as usize, ended: why == 1 };
            there_and_back(ChannelFrame::Accepted(Accepted { to, end, node, window, token, standing }));
            there_and_back(ChannelFrame::Refused { to, why: Refusal::parse(why, b"ops only").unwrap() });
            let failure = Failure { causes: vec!["c".into()], ..Failure::new("kind", "text") };
            for say in [
                Say::Item { seq: a, item: item.clone() },
                Say::Return { seq: a, item },
                Say::Credit { consumed: a },
                Say::Resume { received: a, consumed: b },
                Say::Detach { seq: a, consumed: b },
                Say::Close { seq: a, closing: Closing::Ended },
                Say::Close { seq: a, closing: Closing::Closed },
                Say::Close { seq: a, closing: Closing::Failed(failure) },
                Say::Done,
                Say::Gone,
            ] {
                there_and_back(ChannelFrame::Said { to, end, say });
            }
        }

        #[test]
        fn no_bytes_panic(kind in OPEN..=DETACH, bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = ChannelFrame::parse(kind, Bytes::from(bytes));
        }
    }

    #[test]
    fn who_takes_too_much_or_goes_on_from_the_end_of_all_numbers_is_refused() {
        let refused = |window, received, next| {
            let standing = Standing { received, next, ..Standing::default() };
            let service = ServiceName::new("speak").unwrap();
            let token = Token::default();
            let accepted = Accepted { to: 1, end: 2, node: 3, window, token, standing };
            let open = Open { end: 1, node: 2, from: 3, window, token, service, request: Item::default() };
            let adopt = Adopt { to: 1, theirs: token, end: 2, from: 3, window, token };
            [ChannelFrame::Accepted(accepted), ChannelFrame::Open(open), ChannelFrame::Adopt(adopt)].map(|frame| {
                let mut out = BytesMut::new();
                frame.put(&mut out);
                Frame::parse(split_block(&mut out, 1 << 20).unwrap().unwrap()).err()
            })
        };
        assert_eq!(refused(MAX_WINDOW, MAX_PLACE - 1, MAX_PLACE - 1), [None, None, None]);
        let large = Some(BadFrame::Window(u32::MAX));
        assert_eq!(refused(u32::MAX, 0, 0), [large.clone(), large.clone(), large]);
        assert_eq!(refused(0, MAX_PLACE, 0)[0], Some(BadFrame::Place(MAX_PLACE)));
        assert_eq!(refused(0, 0, u64::MAX)[0], Some(BadFrame::Place(u64::MAX)));
    }

    #[test]
    fn a_failure_that_is_too_long_is_cut() {
        let failure = Failure { causes: vec!["é".repeat(1000); 100], ..Failure::new("k", "ä".repeat(1 << 20)) };
        let mut out = BytesMut::new();
        ChannelFrame::Said { to: 1, end: 2, say: Say::Close { seq: 3, closing: Closing::Failed(failure) } }
            .put(&mut out);
        assert!(out.len() <= MAX_FAILURE + 30, "{}", out.len());
    }
}
