//! Our [`PeerId`] and libp2p's: the same 32 bytes of Ed25519 key, with and without libp2p's wrapping.

use libp2p::multihash::Multihash;

use crate::mesh::PeerId;

/// The peer, as libp2p names it.
pub(crate) fn to_libp2p(peer: PeerId) -> libp2p::PeerId {
    let mut digest = [0; PREFIX.len() + 32];
    digest[..PREFIX.len()].copy_from_slice(&PREFIX);
    digest[PREFIX.len()..].copy_from_slice(peer.as_bytes());
    let multihash = Multihash::wrap(IDENTITY_CODE, &digest).expect("36 bytes fit into 64");
    libp2p::PeerId::from_multihash(multihash).expect("an identity multihash of 36 bytes is a peer id")
}

/// The peer whom libp2p names so; `None` if its key is not an Ed25519 key, which no peer of ours has.
pub(crate) fn from_libp2p(peer: &libp2p::PeerId) -> Option<PeerId> {
    let multihash: &Multihash<64> = peer.as_ref();
    if multihash.code() != IDENTITY_CODE {
        return None;
    }
    let key = multihash.digest().strip_prefix(&PREFIX)?;
    key.try_into().ok().map(PeerId::from_bytes)
}

/// The multihash that hashes nothing: the peer id carries the key itself.
const IDENTITY_CODE: u64 = 0;
/// What precedes an Ed25519 key in its protobuf: key type 1, then 32 bytes.
const PREFIX: [u8; 4] = [0x08, 0x01, 0x12, 0x20];

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use super::*;

    #[test]
    fn an_ed25519_peer_id_survives_the_way_there_and_back() {
        let theirs = Keypair::generate_ed25519().public().to_peer_id();
        let ours = from_libp2p(&theirs).unwrap();
        assert_eq!(to_libp2p(ours), theirs);
        assert_eq!(ours.to_string(), theirs.to_string());
    }

    #[test]
    fn a_hashed_or_misshapen_key_is_nobody() {
        let hashed = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N".parse().unwrap();
        assert_eq!(from_libp2p(&hashed), None);
        let short = libp2p::PeerId::from_multihash(Multihash::wrap(IDENTITY_CODE, &PREFIX).unwrap()).unwrap();
        assert_eq!(from_libp2p(&short), None);
    }
}
