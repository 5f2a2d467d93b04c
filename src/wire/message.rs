//! What peers say to each other besides data frames: greetings, beats, records, digests, keys. CBOR.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::LENGTH;
use crate::keys::{IdentityKey, NewKey, RunKey, verify};
use crate::mesh::engine::{Known, Say};
use crate::mesh::{Edition, MAX_RECORD, PeerId, Record, Sign, SignedRecord};

/// One message on the control stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Control {
    /// The first message in either direction.
    Hello(Hello),
    /// Sent every second by the peer of the lower id: I live.
    Beat(Beat),
    /// The answer, at once: so do I.
    Echo(Echo),
    /// What the sender knows of the mesh.
    Digest { known: Vec<WireKnown>, answer: bool },
    /// Signed records of which the receiver may know some.
    Records(Vec<WireRecord>),
    /// Please send me the records of these.
    Want(Vec<PeerId>),
    /// The network key was rotated: this is the new one.
    NewKey(NewKey),
    /// I hold the key of this epoch.
    KeyHeld { epoch: u64 },
    /// Send no more messages on this topic to this node of mine for now: it cannot take them.
    Pause { node: u32, topic: crate::mesh::Topic },
    /// It can again.
    Resume { node: u32, topic: crate::mesh::Topic },
    /// I close this connection, for this reason.
    Bye { reason: String },
}

/// How peers greet each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Version of the protocol. Equal, or the connection is closed with both numbers in the error.
    pub(crate) protocol: u32,
    /// The sender's signed record.
    pub(crate) record: Bytes,
    /// How often the sender's network key was rotated.
    pub(crate) key_epoch: u64,
    /// Most bytes of payload that the sender takes in one message.
    pub(crate) max_message: u64,
    /// What the sender had received over the last link with this peer, if there was one.
    pub(crate) received: Option<Received>,
    /// Who brings it to the sender's socket, on the same host, may speak there instead.
    pub(crate) local: Option<LocalToken>,
}

/// Lets one peer in at the other's Unix socket, once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct LocalToken(#[serde(with = "crate::mesh::bytes32")] pub(crate) [u8; 32]);

impl fmt::Debug for LocalToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LocalToken(..)") // it is a secret of two peers
    }
}

/// A sign of life, with what rides along.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Beat {
    /// The sender's clock in microseconds, to come back in the answer.
    pub(crate) time: u64,
    /// The last round trip that the sender measured, in microseconds.
    pub(crate) rtt: Option<u64>,
    /// The sender's record has this edition.
    pub(crate) edition: Edition,
}

/// The answer to a beat.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Echo {
    /// The `time` of the beat.
    pub(crate) time: u64,
    /// The sender's record has this edition.
    pub(crate) edition: Edition,
}

/// How far one came in reading the other's data stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Received {
    /// Which of the other's data streams.
    pub(crate) epoch: u64,
    /// How many messages came over it.
    pub(crate) messages: u64,
}

/// One entry of a digest, short.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct WireKnown(PeerId, u64, u64, u64);

/// A signed record, with what tells whether it is worth verifying.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WireRecord {
    /// Whose it is, and in which edition, as the sender says.
    pub(crate) known: WireKnown,
    /// What the owner signed.
    pub(crate) record: Bytes,
}

/// What travels by gossip.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Gossip {
    /// The publisher's signed record.
    Record(Bytes),
    /// The publisher's record has this edition; it is too large to be gossiped.
    Changed { peer: PeerId, edition: Edition },
}

impl Gossip {
    /// What a peer says of its own record: all of it, unless it is large.
    pub(crate) fn of(own: &SignedRecord) -> Self {
        if own.bytes().len() <= MAX_GOSSIP_RECORD {
            Self::Record(own.bytes().clone())
        } else {
            Self::Changed { peer: own.peer(), edition: own.edition() }
        }
    }
}

/// The first block on a data stream, and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DataHello {
    /// Version of the protocol.
    pub(crate) protocol: u32,
    /// Counts the sender's data streams to this receiver. Streams of an older epoch are not read any more.
    pub(crate) epoch: u64,
}

/// Why bytes from a peer are refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadMessage {
    #[error("not what the protocol says: {0}")]
    Malformed(String),
    #[error("a record that breaks a limit: {0}")]
    Limit(&'static str),
    #[error("a record whose signature of the {0} is wrong")]
    Signature(&'static str),
}

/// What signs a peer's records.
#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) run: RunKey,
    pub(crate) identity: IdentityKey,
}

/// A record and who vouches for it.
#[derive(Serialize, Deserialize)]
struct Envelope {
    /// The record in CBOR.
    record: Bytes,
    /// Ed25519 by the peer's key over [`LABEL`] and the record.
    peer: Bytes,
    /// The same by the identity's key.
    identity: Bytes,
}

impl Sign for Signer {
    fn sign(&self, record: Record) -> SignedRecord {
        let encoded = encode(&record);
        let signed = labelled(&encoded);
        let envelope = Envelope {
            peer: Bytes::copy_from_slice(&self.run.sign(&signed)),
            identity: Bytes::copy_from_slice(&self.identity.sign(&signed)),
            record: encoded,
        };
        SignedRecord::new(record, encode(&envelope))
    }
}

/// Reads and verifies a record: signed by the peer and the identity that it names, and within the limits.
pub(crate) fn read_record(bytes: &Bytes) -> Result<SignedRecord, BadMessage> {
    if bytes.len() > MAX_SIGNED_RECORD {
        return Err(BadMessage::Limit("a record has at most 1 MiB"));
    }
    let envelope: Envelope = decode(bytes)?;
    let record: Record = decode(&envelope.record)?;
    record.check_limits().map_err(BadMessage::Limit)?;
    let signed = labelled(&envelope.record);
    let fits = |key: &[u8; 32], signature: &Bytes| {
        <&[u8; 64]>::try_from(&signature[..]).is_ok_and(|signature| verify(key, &signed, signature))
    };
    if !fits(record.peer.as_bytes(), &envelope.peer) {
        return Err(BadMessage::Signature("peer"));
    }
    if !fits(record.identity.as_bytes(), &envelope.identity) {
        return Err(BadMessage::Signature("identity"));
    }
    Ok(SignedRecord::new(record, bytes.clone()))
}

impl From<Say> for Control {
    fn from(say: Say) -> Self {
        match say {
            Say::Digest { known, answer } => {
                Self::Digest { known: known.into_iter().map(WireKnown::from).collect(), answer }
            }
            Say::Records(records) => {
                let entry = |(age, signed): (Duration, SignedRecord)| WireRecord {
                    known: Known { peer: signed.peer(), edition: signed.edition(), age }.into(),
                    record: signed.bytes().clone(),
                };
                Self::Records(records.into_iter().map(entry).collect())
            }
            Say::Want(peers) => Self::Want(peers),
        }
    }
}

impl From<Known> for WireKnown {
    fn from(known: Known) -> Self {
        Self(known.peer, known.edition.incarnation, known.edition.version, millis(known.age))
    }
}

impl From<WireKnown> for Known {
    fn from(WireKnown(peer, incarnation, version, age): WireKnown) -> Self {
        Self { peer, edition: Edition { incarnation, version }, age: Duration::from_millis(age.min(MAX_AGE_MS)) }
    }
}

/// A value in CBOR.
pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    let mut out = BytesMut::new().writer();
    put(value, &mut out);
    out.into_inner().freeze()
}

/// A value in CBOR, behind its length.
pub(crate) fn encode_block<T: Serialize>(value: &T) -> Bytes {
    let mut out = BytesMut::zeroed(LENGTH).writer();
    put(value, &mut out);
    let mut block = out.into_inner();
    let len = (block.len() - LENGTH) as u32;
    block[..LENGTH].copy_from_slice(&len.to_be_bytes());
    block.freeze()
}

/// Reads a value.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadMessage> {
    // Nothing that peers say nests deeply; without the limit, a few KiB of nested arrays would use up the stack.
    ciborium::de::from_reader_with_recursion_limit(bytes, MAX_NESTING)
        .map_err(|error| BadMessage::Malformed(error.to_string()))
}

fn put<T: Serialize>(value: &T, out: &mut impl io::Write) {
    // Our own types serialize, and memory does not run out of space.
    ciborium::into_writer(value, out).unwrap_or_else(|error| unreachable!("{error}"));
}

fn labelled(record: &[u8]) -> Vec<u8> {
    [LABEL, record].concat()
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

/// Version of all that peers say to each other. A change that older peers cannot read gets another number.
pub(crate) const PROTOCOL: u32 = 3;
/// Largest message on the control stream: a record, or the digest of as many peers as a view may hold.
pub(crate) const MAX_CONTROL: usize = MAX_SIGNED_RECORD + (64 << 10);
/// Largest record that is gossiped whole. Gossip takes 64 KiB; several may share a packet.
const MAX_GOSSIP_RECORD: usize = 32 << 10;
const MAX_SIGNED_RECORD: usize = MAX_RECORD + 256;
const MAX_NESTING: usize = 32;
/// A day: far longer than any record is kept. Bounded, so that no arithmetic on instants overflows.
const MAX_AGE_MS: u64 = 86_400_000;
const LABEL: &[u8] = b"meshd/record/1";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mesh::Identity;

    fn signer() -> Signer {
        Signer { run: RunKey::generate(), identity: IdentityKey::generate() }
    }

    fn record_of(signer: &Signer) -> Record {
        Record {
            peer: signer.run.peer_id(),
            identity: signer.identity.identity(),
            edition: Edition { incarnation: 5, version: 2 },
            host: "host".into(),
            software: "0".into(),
            addresses: vec![],
            nodes: vec![],
            leaving: false,
        }
    }

    #[test]
    fn a_record_that_its_owner_signed_is_read() {
        let signer = signer();
        let signed = signer.sign(record_of(&signer));
        assert_eq!(read_record(signed.bytes()).unwrap(), signed);
    }

    #[test]
    fn a_member_can_claim_neither_anothers_peer_nor_anothers_identity() {
        let (mallory, alice) = (signer(), signer());
        let claims = |record: Record| read_record(mallory.sign(record).bytes());
        let peer = Record { peer: alice.run.peer_id(), ..record_of(&mallory) };
        assert!(matches!(claims(peer), Err(BadMessage::Signature("peer"))));
        let identity = Record { identity: alice.identity.identity(), ..record_of(&mallory) };
        assert!(matches!(claims(identity), Err(BadMessage::Signature("identity"))));
        let nobody = Record { identity: Identity::from_bytes([0; 32]), ..record_of(&mallory) };
        assert!(claims(nobody).is_err());
    }

    #[test]
    fn a_changed_record_is_refused_wherever_the_change_is() {
        let signer = signer();
        let bytes = signer.sign(record_of(&signer)).bytes().clone();
        for at in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1;
            assert!(read_record(&changed.into()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_record_over_a_limit_is_refused() {
        let signer = signer();
        let record = Record { host: "x".repeat(300), ..record_of(&signer) };
        assert!(matches!(read_record(signer.sign(record).bytes()), Err(BadMessage::Limit(_))));
    }

    #[test]
    fn nested_arrays_do_not_use_up_the_stack() {
        assert!(decode::<Control>(&[0x81; 100_000]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (decode::<Control>(&bytes), decode::<Gossip>(&bytes), read_record(&bytes.into()));
        }
    }
}
