//! What the CLI and attached programs say to the daemon over its local socket, and what it answers.
//!
//! Blocks of a big-endian `u32` length and that many bytes of CBOR. The client sends [`Question`]s and receives [`Answer`]s.
//! Described for other languages in docs/LOCAL.md: change both together.

mod answer;
mod files;
mod request;

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::answer::{
    Answer, Answered, Called, Delivery, Failure, FailureKind, Incoming, Outcome, Part, Remote, Reply, Secret, Welcome,
};
pub(crate) use self::files::{JobEvent, JobStarted, ListFiles, ListedFile, MoveFiles, NotDone};
pub(crate) use self::request::{
    Acknowledge, Call, Callee, Listen, Open, Overflow, Question, Request, Send, Serve, Spoken,
};
use super::{LENGTH, TooLong};

/// A block that says `value`.
///
/// # Errors
/// It would be longer than any block may be.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, TooLong> {
    let mut block = BytesMut::new();
    block.put_u32(0);
    ciborium::into_writer(value, (&mut block).writer()).expect("memory takes all bytes, and all our types are CBOR");
    let len = block.len() - LENGTH;
    let prefix = u32::try_from(len).ok().filter(|_| len <= MAX_BLOCK).ok_or(TooLong { len, max: MAX_BLOCK })?;
    block[..LENGTH].copy_from_slice(&prefix.to_be_bytes());
    Ok(block.freeze())
}

/// What the body of a block says.
///
/// # Errors
/// It is not CBOR, not one of ours, or has something behind it.
pub(crate) fn decode<T: DeserializeOwned>(mut body: &[u8]) -> Result<T, Garbage> {
    let value = ciborium::de::from_reader_with_recursion_limit(&mut body, MAX_DEPTH)
        .map_err(|error| Garbage(without_positions(&error)))?;
    if body.is_empty() { Ok(value) } else { Err(Garbage(format!("{} bytes too many", body.len()))) }
}

/// What was received means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of the local protocol: {0}")]
pub(crate) struct Garbage(String);

fn without_positions<E: fmt::Debug>(error: &ciborium::de::Error<E>) -> String {
    match error {
        ciborium::de::Error::Semantic(_, message) => message.clone(),
        ciborium::de::Error::RecursionLimitExceeded => "nested too deeply".to_owned(),
        ciborium::de::Error::Io(_) => "cut short".to_owned(),
        ciborium::de::Error::Syntax(at) => format!("no CBOR at byte {at}"),
    }
}

/// Version of this protocol. Counted up when a client of the old one could no longer be served.
pub(crate) const VERSION: u32 = 1;
/// Bytes of the largest block: the largest message and what is said about it.
pub(crate) const MAX_BLOCK: usize = MAX_PAYLOAD + BLOCK_OVERHEAD;
/// Bytes of the largest payload that any configuration allows: 1 GiB, so that lengths stay far from 32 bits.
pub(crate) const MAX_PAYLOAD: usize = 1 << 30;
/// Bytes that a block may have besides the payload: names are short, lists of excluded identities are not.
pub(crate) const BLOCK_OVERHEAD: usize = 64 * 1024;
/// Bytes of a client's first block, which only says hello.
pub(crate) const MAX_HELLO: usize = 1024;
/// How deeply values may be nested; ours have five levels.
const MAX_DEPTH: usize = 32;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;
    use crate::mesh::{
        self, Codec, FarPlace, FileEvent, FileInfo, FileJob, FileKind, FilePlace, Identity, JobKind, NodeId, NodeName,
        PeerId, ServiceName, SharePath, Target, Topic,
    };
    use crate::wire::split_block;

    fn through<T: Serialize + DeserializeOwned + PartialEq + fmt::Debug>(value: &T) {
        let mut block = BytesMut::from(&encode(value).unwrap()[..]);
        let body = split_block(&mut block, MAX_BLOCK).unwrap().unwrap();
        assert!(block.is_empty());
        assert_eq!(&decode::<T>(&body).unwrap(), value);
    }

    fn send(payload: Vec<u8>) -> Question {
        let target = Target::Group(NodeName::new("workers").unwrap());
        let timeout = Some(Duration::from_millis(1500));
        let send = Send {
            topic: "a/b".to_owned(),
            codec: Codec::Json,
            payload: payload.into(),
            target,
            timeout,
            acked: true,
            redeliver: true,
            ttl: timeout,
            key: Some(Bytes::from_static(b"\x00key")),
            retain: Some(false),
        };
        Question { id: u64::MAX, request: Request::Send(send) }
    }

    #[test]
    fn what_is_said_is_heard() {
        let peer = PeerId::from_bytes([200; 32]);
        let from = NodeId { peer, index: 3 };
        let sender = from;
        through(&Question { id: 0, request: Request::Hello { version: VERSION } });
        through(&Question { id: 1, request: Request::Status });
        let without = vec![Identity::from_bytes([9; 32])];
        through(&Question { id: 2, request: Request::Rotate { grace: Duration::from_secs(604_800), without } });
        let overflow = Overflow::Block;
        let acknowledge = Acknowledge::Handled;
        let listen = Listen { filter: "a/**".to_owned(), messages: Some(3), bytes: None, overflow, acknowledge };
        through(&Question { id: 3, request: Request::Listen(listen) });
        through(&send(vec![0; 100_000]));
        through(&Answer::Message(Delivery {
            subscription: 1,
            topic: Topic::new("a/b").unwrap(),
            from,
            from_name: NodeName::new("camera").unwrap(),
            seq: 7,
            codec: Codec::Bytes,
            payload: Bytes::from_static(b"\xff\x00"),
            lagged: 2,
            time_us: 1_700_000_000_000_000,
            ack: Some(8),
        }));
        let payload = Bytes::from_static(b"\xff\x00");
        through(&Answer::Called(Called {
            serving: 0,
            call: 1,
            from,
            service: ServiceName::new("add").unwrap(),
            codec: Codec::Json,
            payload: payload.clone(),
        }));
        let name = NodeName::new("camera").unwrap();
        let answered = Answered { node: from, name: name.clone(), codec: Codec::Bytes, payload, latency_us: 7 };
        let outcome = Outcome::Answered(answered);
        through(&Answer::Part(Part { id: 3, node: from, name: name.clone(), outcome }));
        let (kind, message, causes) = ("exit-1".to_owned(), "no".to_owned(), vec!["because".to_owned()]);
        let remote = Some(Box::new(Remote { node: from, name: Some(name), kind, message, causes }));
        let failure = Failure { remote, ..Failure::new(FailureKind::Failed, "it failed") };
        through(&Answer::Failed { id: 4, failure });
        through(&Answer::Reply { id: 4, reply: Reply::Pong { peer, rtt_us: 45 } });
        let acks = vec![0, 1, u64::MAX];
        through(&Question { id: 6, request: Request::Acknowledge { subscription: 1, acks } });
        let failure = Some(mesh::Failure::new("lost", "it is gone"));
        through(&Question { id: 7, request: Request::CloseChannel { channel: 1, failure } });
        let payload = Bytes::from_static(b"\x00item");
        let spoken = Spoken { channel: 1, codec: Codec::Bytes, payload };
        through(&Question { id: 8, request: Request::Item(spoken.clone()) });
        through(&Answer::Item(spoken));
        through(&Answer::Closed { channel: 1, failure: None });
        through(&Answer::Reply { id: 9, reply: Reply::Opened { channel: 1, node: from, name: None } });
        let far = FarPlace {
            node: "n".to_owned(),
            share: "s".to_owned(),
            path: SharePath::new(&b"a/\xff"[..]).unwrap(),
            within: true,
        };
        let list = ListFiles { place: far.clone(), recursive: true, regex: Some("a".to_owned()) };
        through(&Question { id: 11, request: Request::Files(list) });
        through(&Question { id: 12, request: Request::Shares { node: None } });
        let (from, to) = (vec![FilePlace::Here(b"/\xff".to_vec())], vec![FilePlace::There(far.clone())]);
        let kind = JobKind::Sync { delete: true, dry_run: false };
        let job = FileJob { from, to, kind, regex: None };
        through(&Question { id: 13, request: Request::Transfer(MoveFiles { job, each: true }) });
        let name = NodeName::new("camera").unwrap();
        let kind = FileKind::Link(b"../\xff".to_vec());
        let file = FileInfo { path: far.path.clone(), kind, bytes: 0, modified_ns: -1, mode: 0o777 };
        through(&Answer::File(ListedFile { id: 11, node: sender, name, file }));
        let event = FileEvent::Failed { target: 1, path: far.path, message: "no".to_owned() };
        through(&Answer::Job(JobEvent { id: 13, event }));
        through(&Answer::JobStarted(JobStarted { id: 13, targets: 2 }));
        through(&Answer::NotDone(NotDone { id: 13, failure: Failure::new(FailureKind::Refused, "no") }));
        let handle = Secret::new(Zeroizing::new("secret".to_owned()));
        through(&Question { id: 10, request: Request::Adopt { handle } });
        through(&Answer::Goodbye(Failure::new(FailureKind::Stopping, "the daemon is stopping").hint("wait")));
        through(&Answer::Reply { id: 5, reply: Reply::Ticket(Secret::new(Zeroizing::new("secret".to_owned()))) });
    }

    #[test]
    fn what_docs_show_is_what_is_sent() {
        let hello = encode(&Question { id: 1, request: Request::Hello { version: 1 } }).unwrap();
        let cbor = b"\xa2\x62id\x01\x67request\xa1\x65Hello\xa1\x67version\x01";
        assert_eq!(&hello[..], [&[0, 0, 0, cbor.len() as u8], &cbor[..]].concat());
        let status = encode(&Question { id: 2, request: Request::Status }).unwrap();
        assert_eq!(&status[4..], b"\xa2\x62id\x02\x67request\x66Status");
        // Optional fields can be left out.
        let cbor = b"\xa2\x62id\x03\x67request\xa1\x64Send\xa2\x65topic\x61a\x67payload\x42hi";
        let call: Question = decode(cbor).unwrap();
        assert!(matches!(call.request, Request::Send(Send { codec: Codec::Bytes, target: Target::EachGroup, .. })));
    }

    #[test]
    fn garbage_is_an_error() {
        for body in [&b""[..], b"\xff", b"\xa0", b"hello", &[0x81; 1000], b"\xa2\x62id\x01\x67request\x64What"] {
            assert!(decode::<Question>(body).is_err(), "{body:?}");
        }
        let mut body = encode(&Question { id: 1, request: Request::Status }).unwrap()[4..].to_vec();
        body.push(0);
        assert_eq!(decode::<Question>(&body), Err(Garbage("1 bytes too many".to_owned())));
        // A payload that claims to be huge is cut short, not allocated.
        let huge =
            b"\xa2\x62id\x03\x67request\xa1\x64Send\xa2\x65topic\x61a\x67payload\x5b\x7f\xff\xff\xff\xff\xff\xff\xffhi";
        assert!(decode::<Question>(huge).is_err());
    }

    #[test]
    fn a_secret_is_not_shown() {
        let reply = Reply::Ticket(Secret::new(Zeroizing::new("meshd-ticket-1:abc".to_owned())));
        assert!(!format!("{reply:?}").contains("meshd-ticket"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (decode::<Question>(&body), decode::<Answer>(&body));
        }

        #[test]
        fn payloads_of_all_sizes_arrive(payload in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            through(&send(payload));
        }

        #[test]
        fn a_damaged_block_is_an_error_or_another_question(at in 0_usize..60, byte: u8) {
            let mut body = encode(&send(vec![1, 2, 3])).unwrap()[4..].to_vec();
            let at = at % body.len();
            body[at] = byte;
            let _ = decode::<Question>(&body);
        }
    }
}
