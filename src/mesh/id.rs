//! Who is who: peers, identities, nodes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One process in a mesh: the Ed25519 public key that it made at its start.
///
/// 32 bytes; printed and parsed as libp2p prints it (`12D3KooW…`). New at each start, so it never names a machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerId(#[serde(with = "bytes32")] [u8; 32]);

/// The lasting Ed25519 public key of a home. Printed as `id1-` and 52 base32 characters.
///
/// The only name on which a permission may rest: records are signed with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(#[serde(with = "bytes32")] [u8; 32]);

/// One node: the peer that hosts it and its number there. Numbers are not used again while the peer runs.
///
/// Printed as `<peer>/<number>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId {
    /// The process that hosts the node.
    pub peer: PeerId,
    /// Its number in that process, from 0.
    pub index: u32,
}

/// What was to be an id is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct BadId {
    what: &'static str,
    text: String,
}

impl PeerId {
    /// The peer whose public key these bytes are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The public key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The last eight characters of the printed form: enough for a person to tell peers apart.
    #[must_use]
    pub fn short(&self) -> String {
        let text = self.to_string();
        text[text.len() - SHORT..].to_owned()
    }
}

impl Identity {
    /// The identity whose public key these bytes are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The public key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut multihash = [0; 38];
        multihash[..MULTIHASH.len()].copy_from_slice(&MULTIHASH);
        multihash[MULTIHASH.len()..].copy_from_slice(&self.0);
        f.write_str(&bs58::encode(multihash).into_string())
    }
}

impl FromStr for PeerId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { what: "a peer id (12D3KooW…)", text: text.to_owned() };
        let mut multihash = [0; 38];
        let length = bs58::decode(text).onto(&mut multihash).map_err(|_| bad())?;
        let key = multihash[..length].strip_prefix(&MULTIHASH).ok_or_else(bad)?;
        key.try_into().map(Self).map_err(|_| bad())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = data_encoding::BASE32_NOPAD.encode(&self.0).to_ascii_lowercase();
        write!(f, "{IDENTITY_PREFIX}{text}")
    }
}

impl FromStr for Identity {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { what: "an identity (id1-…)", text: text.to_owned() };
        let base32 = text.strip_prefix(IDENTITY_PREFIX).ok_or_else(bad)?.to_ascii_uppercase();
        let bytes = data_encoding::BASE32_NOPAD.decode(base32.as_bytes()).map_err(|_| bad())?;
        bytes.try_into().map(Self).map_err(|_| bad())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.peer, self.index)
    }
}

impl FromStr for NodeId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { what: "a node id (12D3KooW…/0)", text: text.to_owned() };
        let (peer, index) = text.rsplit_once('/').ok_or_else(bad)?;
        Ok(Self { peer: peer.parse().map_err(|_| bad())?, index: index.parse().map_err(|_| bad())? })
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.short())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.peer.short(), self.index)
    }
}

/// Byte strings on the wire, not lists of 32 numbers.
pub(crate) mod bytes32 {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = [u8; 32];
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("32 bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<[u8; 32], E> {
                bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// What precedes an Ed25519 key in a libp2p peer id: identity multihash, 36 bytes, protobuf key of type 1, 32 bytes.
const MULTIHASH: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
const IDENTITY_PREFIX: &str = "id1-";
const SHORT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_as_printed() {
        let peer = PeerId([7; 32]);
        assert!(peer.to_string().starts_with("12D3KooW"), "{peer}");
        assert_eq!(peer.to_string().parse(), Ok(peer));
        let identity = Identity([200; 32]);
        assert_eq!(identity.to_string().parse(), Ok(identity));
        let node = NodeId { peer, index: 12 };
        assert_eq!(node.to_string().parse(), Ok(node));
    }

    #[test]
    fn nonsense_is_not_an_id() {
        for text in ["", "12D3", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "id1-", "\u{1F600}"] {
            assert!(text.parse::<PeerId>().is_err(), "{text}");
            assert!(text.parse::<Identity>().is_err(), "{text}");
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
    }
}
