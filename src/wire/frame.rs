//! Data frames: what a link carries. A fixed binary header, then the payload, uncopied.
//!
//! docs/PROTOCOL.md has every byte. All numbers are big-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::LENGTH;
use super::channel::ChannelFrame;
use crate::mesh::delivery::Verdict;
use crate::mesh::{Action, BadName, Codec, MAX_NAME, MAX_RULE, NodeName, ServiceName, Topic};

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// From now on, this number stands for this topic on this stream.
    Topic { alias: u32, topic: Topic },
    /// From now on, messages of the sender's node of that index are from this name.
    Node { index: u32, name: NodeName },
    /// A message for some of the receiver's nodes.
    Message(Message),
    /// To be answered with a pong of the same number.
    Ping { nonce: u64 },
    /// The answer to a ping.
    Pong { nonce: u64 },
    /// A call of a service.
    Call(Call),
    /// What came of a call.
    Answer(Answer),
    /// Who called wants no answer any more.
    Cancel { call: u64 },
    /// What became of a message that the sender wants to hear of, at one node.
    Ack { id: u64, node: u32, verdict: Verdict },
    /// So many bytes of parts have come from the receiver of this, on its stream.
    Came { bytes: u64 },
    /// The sender of this does not let the receiver do that.
    Refused(Refused),
    /// Something of a channel.
    Channel(ChannelFrame),
}

/// A call on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The caller's number for it.
    pub(crate) call: u64,
    /// Index of the node that is to answer.
    pub(crate) node: u32,
    /// Index of the calling node.
    pub(crate) from: u32,
    pub(crate) codec: Codec,
    pub(crate) service: ServiceName,
    /// The request.
    pub(crate) payload: Bytes,
}

/// What came of a call, on its way back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The caller's number for the call.
    pub(crate) call: u64,
    pub(crate) outcome: Outcome,
    pub(crate) codec: Codec,
    /// The reply, or the failure in CBOR.
    pub(crate) payload: Bytes,
}

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ran, and this is the reply.
    Done,
    /// It ran and failed.
    Failed,
    /// It did not run: as many run and wait as may, or the node is about to leave.
    Busy,
    /// It did not run: the node does not offer that service.
    NotOffered,
    /// It did not run: the service is not called, but spoken with over a channel.
    NotCalled,
    /// It did not run: the caller may not call that service. The payload is the name of the rule: see [`rule_from`].
    Refused,
}

/// What a peer does not let another do, by which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) action: Action,
    /// A topic to send on, a filter to listen with, a service to serve: at most [`MAX_NAME`] bytes.
    pub(crate) resource: String,
    /// At most [`MAX_RULE`] bytes.
    pub(crate) rule: String,
}

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// What is known before the targets.
    pub(crate) head: MessageHead,
    /// Indices of the receiver's nodes, as they came: 4 bytes each.
    pub(crate) targets: Bytes,
    /// The topic itself, if it has no alias.
    pub(crate) topic: Option<Topic>,
    /// The content.
    pub(crate) payload: Bytes,
}

/// The fixed part of a message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MessageHead {
    pub(crate) codec: Codec,
    /// The number that stands for the topic, or [`INLINE`].
    pub(crate) alias: u32,
    /// Index of the sending node at the sender.
    pub(crate) from: u32,
    pub(crate) seq: u64,
    /// Set if the sender wants to hear what becomes of it.
    pub(crate) delivery: Option<Delivery>,
    /// Milliseconds until its time is over. With 0 there is no payload: it is over.
    pub(crate) left: Option<u32>,
    /// The sender keeps its last message on the topic for who comes later.
    pub(crate) retains: bool,
}

/// The number of a message that is to be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// Higher than that of all messages before, to the same peer.
    pub(crate) id: u64,
    /// The sender knows what became of all messages of lower numbers.
    pub(crate) settled: u64,
}

/// What most messages are: for one node, on a topic with a number, neither to be acknowledged nor limited in time nor kept. Read
/// where it stands, because many come in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plain {
    pub(crate) codec: Codec,
    pub(crate) alias: u32,
    pub(crate) from: u32,
    pub(crate) seq: u64,
    /// The one target.
    pub(crate) node: u32,
}

/// Why a frame is refused. The stream that brought it is not read any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFrame {
    #[error("a frame of the unknown kind {0}")]
    Kind(u8),
    #[error("a verdict of the unknown kind {0}")]
    Verdict(u8),
    #[error("a payload of the unknown codec {0}")]
    Codec(u8),
    #[error("an answer of the unknown kind {0}")]
    Outcome(u8),
    #[error("a refusal of the unknown action {0}")]
    Action(u8),
    #[error("a channel with a window of {0} bytes, over the limit")]
    Window(u32),
    #[error("a channel that goes on from item {0}")]
    Place(u64),
    #[error("a frame that ends before its header does")]
    Short,
    #[error("a name that is not UTF-8")]
    Utf8,
    #[error(transparent)]
    Name(#[from] BadName),
    #[error("a number for a topic that is out of turn")]
    Alias,
    #[error("a message from a node or on a topic that was not announced")]
    Unannounced,
    #[error("a frame of {0} bytes in parts, over the limit")]
    Total(usize),
    #[error("more frames in parts at a time than may be, or more bytes")]
    TooMuchBegun,
    #[error("the first part of a frame {0} of which parts are missing")]
    BegunTwice(u32),
    #[error("a part of a frame {0} that has not begun")]
    NotBegun(u32),
    #[error("more parts of the frame {0} than were announced")]
    Overrun(u32),
    #[error("a part without bytes")]
    EmptyPart,
}

impl Frame {
    /// Reads one frame, without its length.
    pub(crate) fn parse(mut body: Bytes) -> Result<Self, BadFrame> {
        let kind = body.try_get_u8().map_err(|_| BadFrame::Short)?;
        match kind {
            MESSAGE => Message::parse(body).map(Self::Message),
            TOPIC => Ok(Self::Topic { alias: number(&mut body)?, topic: Topic::new(text(&body)?)? }),
            NODE => Ok(Self::Node { index: number(&mut body)?, name: NodeName::new(text(&body)?)? }),
            PING => Ok(Self::Ping { nonce: body.try_get_u64().map_err(|_| BadFrame::Short)? }),
            PONG => Ok(Self::Pong { nonce: body.try_get_u64().map_err(|_| BadFrame::Short)? }),
            CALL => Call::parse(body).map(Self::Call),
            ANSWER => Answer::parse(body).map(Self::Answer),
            CANCEL => Ok(Self::Cancel { call: body.try_get_u64().map_err(|_| BadFrame::Short)? }),
            ACK => {
                let id = body.try_get_u64().map_err(|_| BadFrame::Short)?;
                let node = number(&mut body)?;
                let verdict = body.try_get_u8().map_err(|_| BadFrame::Short)?;
                Ok(Self::Ack { id, node, verdict: Verdict::new(verdict).ok_or(BadFrame::Verdict(verdict))? })
            }
            CAME => Ok(Self::Came { bytes: body.try_get_u64().map_err(|_| BadFrame::Short)? }),
            REFUSED => Refused::parse(body).map(Self::Refused),
            kind if ChannelFrame::has_kind(kind) => ChannelFrame::parse(kind, body).map(Self::Channel),
            kind => Err(BadFrame::Kind(kind)),
        }
    }
}

impl Call {
    fn parse(mut body: Bytes) -> Result<Self, BadFrame> {
        if body.len() < CALL_HEAD - LENGTH - 1 {
            return Err(BadFrame::Short);
        }
        let (call, node, from) = (body.get_u64(), body.get_u32(), body.get_u32());
        let codec = codec_from(body.get_u8())?;
        let len = usize::from(body.get_u8());
        let service = ServiceName::new(text(&cut(&mut body, len)?)?)?;
        Ok(Self { call, node, from, codec, service, payload: body })
    }
}

impl Answer {
    fn parse(mut body: Bytes) -> Result<Self, BadFrame> {
        if body.len() < ANSWER_HEAD - LENGTH - 1 {
            return Err(BadFrame::Short);
        }
        let call = body.get_u64();
        let outcome = match body.get_u8() {
            0 => Outcome::Done,
            1 => Outcome::Failed,
            2 => Outcome::Busy,
            3 => Outcome::NotOffered,
            4 => Outcome::NotCalled,
            5 => Outcome::Refused,
            other => return Err(BadFrame::Outcome(other)),
        };
        Ok(Self { call, outcome, codec: codec_from(body.get_u8())?, payload: body })
    }
}

impl Refused {
    fn parse(mut body: Bytes) -> Result<Self, BadFrame> {
        let action = body.try_get_u8().map_err(|_| BadFrame::Short)?;
        let action = Action::new(action).ok_or(BadFrame::Action(action))?;
        let len = usize::from(body.try_get_u8().map_err(|_| BadFrame::Short)?);
        let resource = text(&cut(&mut body, len)?)?.to_owned();
        Ok(Self { action, resource, rule: rule_from(&body) })
    }
}

impl Plain {
    /// Bytes of the body before the payload.
    pub(crate) const HEAD: usize = MESSAGE_HEAD - LENGTH + 4;

    /// Reads the head of a frame's body, if it is such a message.
    pub(crate) fn peek(body: &[u8]) -> Option<Self> {
        let [MESSAGE, codec, 0, 1, head @ ..] = body.first_chunk::<{ Self::HEAD }>()? else { return None };
        let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (alias, from, node) = (number(0), number(4), number(16));
        let seq = u64::from(number(8)) << 32 | u64::from(number(12));
        let codec = codec_from(*codec).ok()?; // flags make it none
        (alias != INLINE).then_some(Self { codec, alias, from, seq, node })
    }
}

impl Message {
    /// The indices of the receiver's nodes.
    pub(crate) fn targets(&self) -> impl Iterator<Item = u32> {
        self.targets.chunks_exact(4).map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn parse(mut body: Bytes) -> Result<Self, BadFrame> {
        if body.len() < MESSAGE_HEAD - LENGTH - 1 {
            return Err(BadFrame::Short);
        }
        let kind = body.get_u8();
        let codec = codec_from(kind & !(ACKED | EXPIRES | RETAINS))?;
        let count = usize::from(body.get_u16());
        let (alias, from, seq) = (body.get_u32(), body.get_u32(), body.get_u64());
        let delivery = if kind & ACKED == 0 {
            None
        } else if body.len() < 16 {
            return Err(BadFrame::Short);
        } else {
            Some(Delivery { id: body.get_u64(), settled: body.get_u64() })
        };
        let left = if kind & EXPIRES == 0 { None } else { Some(number(&mut body)?) };
        let head = MessageHead { codec, alias, from, seq, delivery, left, retains: kind & RETAINS != 0 };
        let targets = cut(&mut body, count * 4)?;
        let topic = if head.alias == INLINE {
            let len = usize::from(body.try_get_u8().map_err(|_| BadFrame::Short)?);
            Some(Topic::new(text(&cut(&mut body, len)?)?)?)
        } else {
            None
        };
        Ok(Self { head, targets, topic, payload: body })
    }
}

/// Writes all of a message but its payload; the length counts the payload too.
///
/// `topic` is given where there is no alias for it.
pub(crate) fn put_message(
    out: &mut BytesMut,
    head: MessageHead,
    targets: impl ExactSizeIterator<Item = u32>,
    topic: Option<&Topic>,
    payload: usize,
) {
    let inline = topic.map_or(0, |topic| 1 + topic.as_str().len());
    let more = head.delivery.map_or(0, |_| 16) + head.left.map_or(0, |_| 4);
    let length = MESSAGE_HEAD - LENGTH + more + targets.len() * 4 + inline + payload;
    out.reserve(LENGTH + length - payload);
    let flag = |on: bool, flag: u8| if on { flag } else { 0 };
    let flags = flag(head.delivery.is_some(), ACKED) | flag(head.left.is_some(), EXPIRES) | flag(head.retains, RETAINS);
    // Put together first: each piece that is put makes sure of room again.
    let mut fixed = [0; MESSAGE_HEAD];
    fixed[..4].copy_from_slice(&(length as u32).to_be_bytes());
    fixed[4..6].copy_from_slice(&[MESSAGE, codec_to(head.codec) | flags]);
    fixed[6..8].copy_from_slice(&(targets.len() as u16).to_be_bytes());
    fixed[8..12].copy_from_slice(&head.alias.to_be_bytes());
    fixed[12..16].copy_from_slice(&head.from.to_be_bytes());
    fixed[16..].copy_from_slice(&head.seq.to_be_bytes());
    out.put_slice(&fixed);
    if let Some(Delivery { id, settled }) = head.delivery {
        out.put_u64(id);
        out.put_u64(settled);
    }
    if let Some(left) = head.left {
        out.put_u32(left);
    }
    targets.for_each(|index| out.put_u32(index));
    if let Some(topic) = topic {
        out.put_u8(topic.as_str().len() as u8);
        out.put_slice(topic.as_str().as_bytes());
    }
}

/// Brings the time left in a message's header up to date. When it is over, the header says that no payload follows.
pub(crate) fn set_left(head: &mut [u8], left: u32) {
    let at = MESSAGE_HEAD + if head[LENGTH + 1] & ACKED == 0 { 0 } else { 16 };
    head[at..at + 4].copy_from_slice(&left.to_be_bytes());
    if left == 0 {
        let length = (head.len() - LENGTH) as u32;
        head[..LENGTH].copy_from_slice(&length.to_be_bytes());
    }
}

/// Says what became of a message.
pub(crate) fn put_ack(out: &mut BytesMut, id: u64, node: u32, verdict: Verdict) {
    out.put_u32(14);
    out.put_u8(ACK);
    out.put_u64(id);
    out.put_u32(node);
    out.put_u8(verdict as u8);
}

/// Announces what a number stands for.
pub(crate) fn put_topic(out: &mut BytesMut, alias: u32, topic: &Topic) {
    put_named(out, TOPIC, alias, topic.as_str());
}

/// Announces the name of a sending node.
pub(crate) fn put_node(out: &mut BytesMut, index: u32, name: &NodeName) {
    put_named(out, NODE, index, name.as_str());
}

/// Asks for, or gives, a sign of life of the link itself.
pub(crate) fn put_ping(out: &mut BytesMut, nonce: u64, answer: bool) {
    out.put_u32(9);
    out.put_u8(if answer { PONG } else { PING });
    out.put_u64(nonce);
}

/// Writes all of a call but its payload.
pub(crate) fn put_call(out: &mut BytesMut, call: &Call) {
    let name = call.service.as_str();
    out.put_u32((CALL_HEAD - LENGTH + name.len() + call.payload.len()) as u32);
    out.put_u8(CALL);
    out.put_u64(call.call);
    out.put_u32(call.node);
    out.put_u32(call.from);
    out.put_u8(codec_to(call.codec));
    out.put_u8(name.len() as u8);
    out.put_slice(name.as_bytes());
}

/// Writes all of an answer but its payload.
pub(crate) fn put_answer(out: &mut BytesMut, answer: &Answer) {
    out.put_u32((ANSWER_HEAD - LENGTH + answer.payload.len()) as u32);
    out.put_u8(ANSWER);
    out.put_u64(answer.call);
    out.put_u8(match answer.outcome {
        Outcome::Done => 0,
        Outcome::Failed => 1,
        Outcome::Busy => 2,
        Outcome::NotOffered => 3,
        Outcome::NotCalled => 4,
        Outcome::Refused => 5,
    });
    out.put_u8(codec_to(answer.codec));
}

/// Takes a call back.
pub(crate) fn put_cancel(out: &mut BytesMut, call: u64) {
    out.put_u32(9);
    out.put_u8(CANCEL);
    out.put_u64(call);
}

/// Says how many bytes of parts came.
pub(crate) fn put_came(out: &mut BytesMut, bytes: u64) {
    out.put_u32(9);
    out.put_u8(CAME);
    out.put_u64(bytes);
}

/// Says what the receiver may not do.
pub(crate) fn put_refused(out: &mut BytesMut, refused: &Refused) {
    let Refused { action, resource, rule } = refused;
    debug_assert!(resource.len() <= MAX_NAME && rule.len() <= MAX_RULE, "names are checked where they are made");
    out.put_u32((3 + resource.len() + rule.len()) as u32);
    out.put_slice(&[REFUSED, *action as u8, resource.len() as u8]);
    out.put_slice(resource.as_bytes());
    out.put_slice(rule.as_bytes());
}

/// The name of a rule, as far as it may be long.
pub(crate) fn rule_from(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_RULE)]).into_owned()
}

/// The most that a message's frame is larger than its payload.
pub(crate) const fn overhead(targets: usize) -> usize {
    MESSAGE_HEAD + 16 + 4 + targets * 4 + 1 + MAX_NAME
}

fn put_named(out: &mut BytesMut, kind: u8, number: u32, name: &str) {
    out.put_u32(5 + name.len() as u32);
    out.put_u8(kind);
    out.put_u32(number);
    out.put_slice(name.as_bytes());
}

fn number(body: &mut Bytes) -> Result<u32, BadFrame> {
    body.try_get_u32().map_err(|_| BadFrame::Short)
}

pub(super) fn cut(body: &mut Bytes, len: usize) -> Result<Bytes, BadFrame> {
    if body.len() < len { Err(BadFrame::Short) } else { Ok(body.split_to(len)) }
}

pub(super) fn text(bytes: &[u8]) -> Result<&str, BadFrame> {
    std::str::from_utf8(bytes).map_err(|_| BadFrame::Utf8)
}

pub(super) fn codec_to(codec: Codec) -> u8 {
    match codec {
        Codec::Bytes => 0,
        Codec::Text => 1,
        Codec::Json => 2,
        Codec::Cbor => 3,
    }
}

pub(super) fn codec_from(byte: u8) -> Result<Codec, BadFrame> {
    Ok(match byte {
        0 => Codec::Bytes,
        1 => Codec::Text,
        2 => Codec::Json,
        3 => Codec::Cbor,
        other => return Err(BadFrame::Codec(other)),
    })
}

/// Instead of an alias: the topic stands in the frame. For links that carry more topics than they may number.
pub(crate) const INLINE: u32 = 0;
/// Most targets of one frame; a message for more nodes of one peer goes out in several.
pub(crate) const MAX_TARGETS: usize = 1024;
/// Index that stands for the peer itself, which answers what is asked about it.
pub(crate) const THE_PEER: u32 = u32::MAX;
/// What a peer is called by for the counts of its services.
pub(crate) const STATS: &str = "services";
/// Length, kind, codec, count of targets, alias, sender, sequence number.
const MESSAGE_HEAD: usize = LENGTH + 1 + 1 + 2 + 4 + 4 + 8;

/// Length, kind, number, node, sender, codec, length of the name.
const CALL_HEAD: usize = LENGTH + 1 + 8 + 4 + 4 + 1 + 1;
/// Length, kind, number, outcome, codec.
const ANSWER_HEAD: usize = LENGTH + 1 + 8 + 1 + 1;

/// Flags of a message, in the upper bits of its codec.
const ACKED: u8 = 0x80;
const EXPIRES: u8 = 0x40;
const RETAINS: u8 = 0x20;

const MESSAGE: u8 = 1;
const TOPIC: u8 = 2;
const NODE: u8 = 3;
const PING: u8 = 4;
const PONG: u8 = 5;
const ACK: u8 = 6;
const CALL: u8 = 7;
const ANSWER: u8 = 8;
const CANCEL: u8 = 9;
const CAME: u8 = 23;
const REFUSED: u8 = 24;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::split_block;
    use super::*;

    fn read_one(mut bytes: BytesMut) -> Frame {
        let body = split_block(&mut bytes, 1 << 20).unwrap().unwrap();
        assert!(bytes.is_empty());
        Frame::parse(body).unwrap()
    }

    #[test]
    fn announcements_read_back_as_written() {
        let mut out = BytesMut::new();
        put_topic(&mut out, 7, &Topic::new("a/b").unwrap());
        assert_eq!(read_one(out), Frame::Topic { alias: 7, topic: Topic::new("a/b").unwrap() });
        let mut out = BytesMut::new();
        put_node(&mut out, 3, &NodeName::new("camera").unwrap());
        assert_eq!(read_one(out), Frame::Node { index: 3, name: NodeName::new("camera").unwrap() });
        let mut out = BytesMut::new();
        put_ping(&mut out, 5, true);
        assert_eq!(read_one(out), Frame::Pong { nonce: 5 });
        let verdicts = (0..6).map(|number| Verdict::new(number).unwrap());
        for verdict in verdicts {
            let mut out = BytesMut::new();
            put_ack(&mut out, 9, 2, verdict);
            assert_eq!(read_one(out), Frame::Ack { id: 9, node: 2, verdict });
        }
    }

    #[test]
    fn refusals_read_back_as_written() {
        for action in [Action::Send, Action::Listen, Action::Call, Action::Serve] {
            let refused = Refused { action, resource: "a/b".into(), rule: "x".repeat(MAX_RULE) };
            let mut out = BytesMut::new();
            put_refused(&mut out, &refused);
            assert_eq!(read_one(out), Frame::Refused(refused));
        }
        assert_eq!(Frame::parse(Bytes::from_static(&[REFUSED, 9, 0])), Err(BadFrame::Action(9)));
        assert_eq!(Frame::parse(Bytes::from_static(&[REFUSED, 0, 5, b'a'])), Err(BadFrame::Short));
        assert_eq!(rule_from(&[b'x'; 1000]).len(), MAX_RULE);
    }

    #[test]
    fn a_topic_with_wildcards_or_control_characters_is_refused() {
        for bad in ["a/*", "", "a\u{1}"] {
            let mut out = BytesMut::new();
            put_named(&mut out, TOPIC, 1, bad);
            assert!(matches!(Frame::parse(out.split_off(LENGTH).freeze()), Err(BadFrame::Name(_))), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn messages_read_back_as_written(
            targets in prop::collection::vec(any::<u32>(), 0..20),
            (from, seq) in any::<(u32, u64)>(),
            payload in prop::collection::vec(any::<u8>(), 0..200),
            (inline, retains) in any::<(bool, bool)>(),
            (numbers, left) in any::<(Option<(u64, u64)>, Option<u32>)>(),
        ) {
            let topic = Topic::new("x/y").unwrap();
            let alias = if inline { INLINE } else { 9 };
            let delivery = numbers.map(|(id, settled)| Delivery { id, settled });
            let head = MessageHead { codec: Codec::Cbor, alias, from, seq, delivery, left, retains };
            let mut out = BytesMut::new();
            put_message(&mut out, head, targets.iter().copied(), inline.then_some(&topic), payload.len());
            if left.is_some() {
                let mut over = out.clone();
                set_left(&mut over, 0);
                let Frame::Message(message) = read_one(over) else { panic!("not a message") };
                prop_assert_eq!((message.head.left, message.head.delivery), (Some(0), delivery));
                prop_assert_eq!(message.targets().count(), targets.len());
                prop_assert!(message.payload.is_empty());
                set_left(&mut out, 7);
            }
            out.extend_from_slice(&payload);
            prop_assert!(out.len() <= overhead(targets.len()) + payload.len());
            let head = MessageHead { left: left.map(|_| 7), ..head };
            let Frame::Message(message) = read_one(out) else { panic!("not a message") };
            prop_assert_eq!(message.head, head);
            prop_assert_eq!(message.targets().collect::<Vec<_>>(), targets);
            prop_assert_eq!(message.topic, inline.then_some(topic));
            prop_assert_eq!(&message.payload[..], &payload[..]);
        }

        /// Z-MSG.
        #[test]
        fn calls_and_answers_read_back_as_written(
            (call, node, from) in any::<(u64, u32, u32)>(),
            payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let (service, payload) = (ServiceName::new("add").unwrap(), Bytes::from(payload));
            let asked = Call { call, node, from, codec: Codec::Json, service, payload: payload.clone() };
            let mut out = BytesMut::new();
            put_call(&mut out, &asked);
            out.extend_from_slice(&payload);
            prop_assert!(out.len() <= overhead(0) + payload.len());
            prop_assert_eq!(read_one(out), Frame::Call(asked));
            let did_not_run = [Outcome::Busy, Outcome::NotOffered, Outcome::NotCalled, Outcome::Refused];
            for outcome in [Outcome::Done, Outcome::Failed].into_iter().chain(did_not_run) {
                let answer = Answer { call, outcome, codec: Codec::Cbor, payload: payload.clone() };
                let mut out = BytesMut::new();
                put_answer(&mut out, &answer);
                out.extend_from_slice(&payload);
                prop_assert_eq!(read_one(out), Frame::Answer(answer));
            }
            let mut out = BytesMut::new();
            put_cancel(&mut out, call);
            prop_assert_eq!(read_one(out), Frame::Cancel { call });
            let mut out = BytesMut::new();
            put_came(&mut out, call);
            prop_assert_eq!(read_one(out), Frame::Came { bytes: call });
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            // E-SVC.
            let _ = Frame::parse(Bytes::from(bytes));
        }
    }
}
