//! The membership proof: Noise, then proof that both ends hold a common network key, before anything else is heard.
//!
//! It is a security upgrade around Noise, so neither the multiplexer nor any behaviour ever sees a stranger. After the
//! Noise handshake, on the encrypted connection, with D the dialer and L the listener:
//!
//! 1. Both send a nonce of 32 random bytes.
//! 2. D sends a count and as many proofs, one for each key that it holds, newest first: `key id (8) | tag (32)`.
//! 3. L answers `1 | key id (8) | tag (32)` for the first of them that it accepts, else `0`, and closes.
//!
//! The tag is an HMAC-SHA256 over a label, the role of who proves, the key id, both nonces and both peer ids. The role
//! keeps our own bytes from being echoed to us, the peer ids (which Noise has authenticated) keep them from being relayed
//! through a third machine, the nonces keep them from being replayed. The key id on the wire is a MAC over the nonces: it
//! tells L which key is meant, and tells nobody else whether two connections used the same one.
//!
//! All fields have fixed sizes: nothing is allocated for a stranger.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::{fmt, io, iter};

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use hmac::{Hmac, KeyInit, Mac};
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::noise;
use libp2p::swarm::DialError;
use sha2::Sha256;

use super::peer_id::from_libp2p;
use crate::keys::Secrets;
use crate::mesh::PeerId;

/// The security upgrade: Noise, then the proof.
#[derive(Clone)]
pub(crate) struct Membership {
    noise: noise::Config,
    local: libp2p::PeerId,
    accepted: AcceptedKeys,
    admitted: AdmittedBy,
}

/// The network keys that open the door, newest first. Cheap to clone: all clones see what [`set`](Self::set) puts in.
#[derive(Clone, Default)]
pub(crate) struct AcceptedKeys(Arc<RwLock<Arc<Vec<Secrets>>>>);

/// By which key each peer came in. Cheap to clone; the proof writes it, the event loop reads it.
#[derive(Clone, Debug, Default)]
pub(crate) struct AdmittedBy(Arc<Mutex<VecDeque<(PeerId, KeyId)>>>);

/// The two ends hold no common network key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wrong network key")]
pub(crate) struct WrongNetworkKey;

/// Why a connection was not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProofError {
    /// The other end does not speak Noise, or not well.
    #[error("the noise handshake failed")]
    Noise(#[source] noise::Error),
    /// The other end went away, or the network did.
    #[error("the connection broke during the membership proof")]
    Io(#[from] io::Error),
    /// It is a member of another mesh. Dialling it again is of no use.
    #[error("the membership proof failed")]
    WrongKey(#[from] WrongNetworkKey),
    /// Its key is not of the one kind that peers have.
    #[error("the peer has no ed25519 key")]
    NotEd25519,
    /// What it sent is no membership proof.
    #[error("the membership proof is malformed")]
    Malformed,
}

/// Whether a failed connection failed because of [`WrongNetworkKey`].
///
/// Takes the errors of failed connections, of dials and any below them.
pub(crate) fn is_wrong_key(error: &(dyn Error + 'static)) -> bool {
    iter::successors(Some(error), |error| below(*error)).any(|error| {
        // A dial has one error for each address, and none of them is its `source()`.
        let of_dial = |(_, error): &(_, libp2p::TransportError<io::Error>)| is_wrong_key(error);
        error.is::<WrongNetworkKey>()
            || matches!(error.downcast_ref(), Some(DialError::Transport(errors)) if errors.iter().any(of_dial))
    })
}

impl Membership {
    /// A proof for `local`, whose key `noise` carries.
    pub(crate) fn new(
        noise: noise::Config,
        local: libp2p::PeerId,
        accepted: AcceptedKeys,
        admitted: AdmittedBy,
    ) -> Self {
        Self { noise, local, accepted, admitted }
    }
}

impl AcceptedKeys {
    /// These keys, newest first. Only the newest [`MAX_KEYS`] count.
    pub(crate) fn new(keys: Vec<Secrets>) -> Self {
        let accepted = Self::default();
        accepted.set(keys);
        accepted
    }

    /// Replaces the keys. Connections that are proving themselves right now still use those before: after dropping a
    /// key, look at [`AdmittedBy`] for each connection that is established.
    pub(crate) fn set(&self, mut keys: Vec<Secrets>) {
        keys.truncate(MAX_KEYS);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// The keys as they are now.
    pub(crate) fn get(&self) -> Arc<Vec<Secrets>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AdmittedBy {
    /// The id of the key by which the peer's latest connection came in. There from before the swarm reports the
    /// connection, and for long after; to be read when it does.
    ///
    /// When two connections to one peer are established at once, both show the later one's key: the peer holds it.
    pub(crate) fn latest(&self, peer: &PeerId) -> Option<KeyId> {
        let admitted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.iter().rev().find(|(other, _)| other == peer).map(|(_, key)| *key)
    }

    fn record(&self, peer: PeerId, key: KeyId) {
        let mut admitted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.retain(|(other, _)| *other != peer);
        if admitted.len() >= MAX_ADMITTED {
            admitted.pop_front();
        }
        admitted.push_back((peer, key));
    }
}

impl UpgradeInfo for Membership {
    type Info = &'static str;
    type InfoIter = iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(PROTOCOL)
    }
}

impl<T> InboundConnectionUpgrade<T> for Membership
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = (libp2p::PeerId, noise::Output<T>);
    type Error = ProofError;
    type Future = BoxFuture<'static, Result<Self::Output, ProofError>>;

    fn upgrade_inbound(self, socket: T, protocol: Self::Info) -> Self::Future {
        Box::pin(async move {
            let (remote, mut socket) = self.noise.upgrade_inbound(socket, protocol).await.map_err(ProofError::Noise)?;
            let (dialer, listener) = (ed25519(&remote)?, ed25519(&self.local)?);
            let key = answer(&mut socket, dialer, listener, &self.accepted.get()).await?;
            self.admitted.record(dialer, key);
            Ok((remote, socket))
        })
    }
}

impl<T> OutboundConnectionUpgrade<T> for Membership
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = (libp2p::PeerId, noise::Output<T>);
    type Error = ProofError;
    type Future = BoxFuture<'static, Result<Self::Output, ProofError>>;

    fn upgrade_outbound(self, socket: T, protocol: Self::Info) -> Self::Future {
        Box::pin(async move {
            let (remote, mut socket) =
                self.noise.upgrade_outbound(socket, protocol).await.map_err(ProofError::Noise)?;
            let (dialer, listener) = (ed25519(&self.local)?, ed25519(&remote)?);
            let key = prove(&mut socket, dialer, listener, &self.accepted.get()).await?;
            self.admitted.record(listener, key);
            Ok((remote, socket))
        })
    }
}

impl fmt::Debug for AcceptedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AcceptedKeys({})", self.get().len())
    }
}

/// What binds the tags to this connection.
struct Exchange {
    nonce_d: Nonce,
    nonce_l: Nonce,
    dialer: PeerId,
    listener: PeerId,
}

/// Who makes a tag.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Role {
    Dialer = b'D',
    Listener = b'L',
}

impl Exchange {
    /// The name of a key on this connection, and on no other.
    fn key_id(&self, key: &Secrets) -> Hmac<Sha256> {
        keyed(key).chain_update(KEY_ID_LABEL).chain_update(self.nonce_d).chain_update(self.nonce_l)
    }

    fn tag(&self, key: &Secrets, role: Role, key_id: &KeyId) -> Hmac<Sha256> {
        keyed(key)
            .chain_update(TAG_LABEL)
            .chain_update([role as u8])
            .chain_update(key_id)
            .chain_update(self.nonce_d)
            .chain_update(self.nonce_l)
            .chain_update(self.dialer.as_bytes())
            .chain_update(self.listener.as_bytes())
    }

    /// `key id | tag`.
    fn proof(&self, key: &Secrets, role: Role) -> Proof {
        let mut proof = [0; PROOF_LEN];
        let (key_id, tag) = proof.split_first_chunk_mut().expect("a proof starts with a key id");
        key_id.copy_from_slice(&self.key_id(key).finalize().into_bytes()[..KEY_ID_LEN]);
        tag.copy_from_slice(&self.tag(key, role, key_id).finalize().into_bytes());
        proof
    }

    /// The key that this proves knowledge of, if it is one of ours. Compares in constant time.
    fn verify<'a>(&self, proof: &Proof, role: Role, keys: &'a [Secrets]) -> Option<&'a Secrets> {
        let (key_id, tag) = proof.split_first_chunk()?;
        let named = |key: &Secrets| self.key_id(key).verify_truncated_left(key_id).is_ok();
        let proven = |key: &Secrets| self.tag(key, role, key_id).verify_slice(tag).is_ok();
        keys.iter().find(|key| named(key) && proven(key))
    }
}

/// The dialer's half. Returns the id of the key that both hold.
async fn prove<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    dialer: PeerId,
    listener: PeerId,
    keys: &[Secrets],
) -> Result<KeyId, ProofError> {
    let nonce_d = rand::random();
    let nonce_l = swap_nonces(socket, &nonce_d).await?;
    let exchange = Exchange { nonce_d, nonce_l, dialer, listener };

    let keys = &keys[..keys.len().min(MAX_KEYS)];
    socket.write_all(&[keys.len() as u8]).await?;
    for key in keys {
        socket.write_all(&exchange.proof(key, Role::Dialer)).await?;
    }
    socket.flush().await?;

    match read(socket).await? {
        [ACCEPTED] => {
            let proof = read(socket).await?;
            let proven = exchange.verify(&proof, Role::Listener, keys);
            proven.map(|key| key.key_id).ok_or(ProofError::WrongKey(WrongNetworkKey))
        }
        [REFUSED] => Err(WrongNetworkKey.into()),
        _ => Err(ProofError::Malformed),
    }
}

/// The listener's half. Returns the id of the key that the dialer proved.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    dialer: PeerId,
    listener: PeerId,
    keys: &[Secrets],
) -> Result<KeyId, ProofError> {
    let nonce_l = rand::random();
    let nonce_d = swap_nonces(socket, &nonce_l).await?;
    let exchange = Exchange { nonce_d, nonce_l, dialer, listener };

    let [count] = read(socket).await?;
    if usize::from(count) > MAX_KEYS {
        return Err(ProofError::Malformed);
    }
    let mut proven = None;
    for _ in 0..count {
        let proof = read(socket).await?; // all of them: bytes left unread would reset the connection under our answer
        proven = proven.or_else(|| exchange.verify(&proof, Role::Dialer, keys));
    }

    match proven {
        Some(key) => {
            socket.write_all(&[ACCEPTED]).await?;
            socket.write_all(&exchange.proof(key, Role::Listener)).await?;
            socket.flush().await?;
            Ok(key.key_id)
        }
        None => {
            socket.write_all(&[REFUSED]).await?;
            socket.close().await?; // flushes
            Err(WrongNetworkKey.into())
        }
    }
}

async fn swap_nonces<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut S, ours: &Nonce) -> Result<Nonce, io::Error> {
    socket.write_all(ours).await?;
    socket.flush().await?;
    read(socket).await
}

async fn read<const N: usize>(socket: &mut (impl AsyncRead + Unpin)) -> Result<[u8; N], io::Error> {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn keyed(key: &Secrets) -> Hmac<Sha256> {
    Hmac::new_from_slice(key.proof.as_slice()).expect("HMAC takes keys of any length")
}

fn ed25519(peer: &libp2p::PeerId) -> Result<PeerId, ProofError> {
    from_libp2p(peer).ok_or(ProofError::NotEd25519)
}

/// The error that this one wraps. An `io::Error` hides what it was made of from `source()`, which shows the level below.
pub(crate) fn below<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>() {
        Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    }
}

type KeyId = [u8; KEY_ID_LEN];
type Nonce = [u8; 32];
/// `key id | tag`
type Proof = [u8; PROOF_LEN];

const KEY_ID_LEN: usize = 8;
const TAG_LEN: usize = 32;
const PROOF_LEN: usize = KEY_ID_LEN + TAG_LEN;

/// Not Noise's own name: foreign libp2p programs fail at once, in both directions. The number is the proof's version, too.
const PROTOCOL: &str = "/meshd/noise/1";
/// What the MACs are for. Neither is the start of the other.
const TAG_LABEL: &[u8] = b"meshd/proof/1/tag";
const KEY_ID_LABEL: &[u8] = b"meshd/proof/1/key-id";

/// The listener's answers.
const REFUSED: u8 = 0;
const ACCEPTED: u8 = 1;

/// Keys that a peer may hold at once: the current one, the one before, and one to spare for a second rotation.
const MAX_KEYS: usize = 3;
/// Peers whose key is remembered. An entry is needed from the proof until the event loop hears of the connection; there
/// are never this many connections in the making.
const MAX_ADMITTED: usize = 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::{FutureExt, StreamExt, future};
    use libp2p::core::Transport as _;
    use libp2p::core::muxing::StreamMuxerBox;
    use libp2p::core::upgrade::Version;
    use libp2p::identity::Keypair;
    use libp2p::swarm::{self, ListenError, NetworkBehaviour, Swarm, SwarmEvent, dummy};
    use libp2p::{Multiaddr, tcp, yamux};
    use tokio::time::timeout;
    use zeroize::Zeroizing;

    use super::*;
    use crate::net::transport::{self, kit};

    type Dummy = Swarm<dummy::Behaviour>;

    /// The longest that a wrong key may take.
    const AT_ONCE: Duration = Duration::from_millis(100);
    const DEADLINE: Duration = Duration::from_secs(10);

    fn member(keys: &[u8]) -> Dummy {
        kit::swarm(kit::keys(keys), |_| dummy::Behaviour)
    }

    /// How a connection attempt ended for one side; `None` is success.
    async fn outcome<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> Option<Box<dyn Error + Send + Sync>> {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { .. } => return None,
                SwarmEvent::IncomingConnectionError { error, .. } => return Some(error.into()),
                SwarmEvent::OutgoingConnectionError { error, .. } => return Some(error.into()),
                _ => {}
            }
        }
    }

    /// Lets one dial the other. Outcomes of dialer and listener.
    async fn dial<A: NetworkBehaviour, B: NetworkBehaviour>(
        dialer: &mut Swarm<A>,
        listener: &mut Swarm<B>,
        within: Duration,
    ) -> (Option<Box<dyn Error + Send + Sync>>, Option<Box<dyn Error + Send + Sync>>) {
        let address = kit::listen(listener).await;
        dialer.dial(address).unwrap();
        timeout(within, future::join(outcome(dialer), outcome(listener))).await.expect("in time")
    }

    fn named(error: &Option<Box<dyn Error + Send + Sync>>) -> bool {
        error.as_ref().is_some_and(|error| is_wrong_key(&**error))
    }

    #[tokio::test]
    async fn holders_of_one_key_connect() {
        let (dialer, listener) = dial(&mut member(&[1]), &mut member(&[1]), DEADLINE).await;
        assert!(dialer.is_none() && listener.is_none(), "{dialer:?} {listener:?}");
    }

    #[tokio::test]
    async fn a_wrong_key_is_named_on_both_sides_at_once() {
        for (ours, theirs) in [(&[1][..], &[2][..]), (&[1, 2, 3], &[4, 5, 6]), (&[], &[1]), (&[1], &[])] {
            let (dialer, listener) = dial(&mut member(ours), &mut member(theirs), AT_ONCE).await;
            assert!(named(&dialer) && named(&listener), "{dialer:?} {listener:?}");
        }
    }

    #[tokio::test]
    async fn every_level_of_the_error_shows_the_wrong_key() {
        let (mut dialer, mut listener) = (member(&[1]), member(&[2]));
        let (dialed, heard) = dial(&mut dialer, &mut listener, AT_ONCE).await;
        let (dialed, heard) = (dialed.unwrap(), heard.unwrap());
        let Some(DialError::Transport(errors)) = dialed.downcast_ref() else { panic!("{dialed:?}") };
        let [(_, libp2p::TransportError::Other(io))] = &errors[..] else { panic!("{errors:?}") };
        assert!(is_wrong_key(io) && is_wrong_key(&errors[0].1));
        let Some(ListenError::Transport(error)) = heard.downcast_ref() else { panic!("{heard:?}") };
        assert!(is_wrong_key(error));
        assert!(!is_wrong_key(&io::Error::other(ProofError::Malformed)));
    }

    #[tokio::test]
    async fn either_side_may_be_ahead_in_a_rotation() {
        const NEW: u8 = 2;
        const OLD: u8 = 1;
        for (ours, theirs, by) in
            [(&[NEW, OLD][..], &[OLD][..], OLD), (&[OLD], &[NEW, OLD], OLD), (&[NEW, OLD], &[NEW, OLD], NEW)]
        {
            let (dialer_by, listener_by) = (AdmittedBy::default(), AdmittedBy::default());
            let swarm = |keys, by: &AdmittedBy| -> Dummy {
                let key = Zeroizing::new(rand::random());
                transport::swarm(&key, kit::keys(keys), by.clone(), |_| dummy::Behaviour).unwrap()
            };
            let (mut dialer, mut listener) = (swarm(ours, &dialer_by), swarm(theirs, &listener_by));
            let (dialed, heard) = dial(&mut dialer, &mut listener, DEADLINE).await;
            assert!(dialed.is_none() && heard.is_none(), "{dialed:?} {heard:?}");
            let peer = |swarm: &Dummy| from_libp2p(swarm.local_peer_id()).unwrap();
            assert_eq!(dialer_by.latest(&peer(&listener)), Some([by; 8]));
            assert_eq!(listener_by.latest(&peer(&dialer)), Some([by; 8]));
        }
    }

    #[tokio::test]
    async fn new_keys_count_from_the_next_connection_on() {
        let (keys, mut listener) = (kit::keys(&[1]), member(&[2]));
        let mut dialer = kit::swarm(keys.clone(), |_| dummy::Behaviour);
        assert!(named(&dial(&mut dialer, &mut listener, DEADLINE).await.0));
        keys.set(kit::keys(&[2]).get().to_vec());
        assert!(dial(&mut dialer, &mut listener, DEADLINE).await.0.is_none());
    }

    #[test]
    fn key_memory_is_bounded_and_keeps_the_latest() {
        let admitted = AdmittedBy::default();
        let peer = |number: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            PeerId::from_bytes(bytes)
        };
        admitted.record(peer(0), [1; 8]);
        admitted.record(peer(0), [2; 8]);
        assert_eq!(admitted.latest(&peer(0)), Some([2; 8]));
        (1..=MAX_ADMITTED).for_each(|number| admitted.record(peer(number), [3; 8]));
        assert_eq!(admitted.latest(&peer(0)), None);
        assert_eq!(admitted.latest(&peer(MAX_ADMITTED)), Some([3; 8]));
    }

    #[test]
    fn a_proof_serves_on_its_own_connection_in_its_own_role_only() {
        let (here, there, elsewhere) = ([1; 32], [2; 32], [3; 32]);
        let exchange = |nonce_d, nonce_l, dialer, listener| {
            let [dialer, listener] = [dialer, listener].map(PeerId::from_bytes);
            Exchange { nonce_d, nonce_l, dialer, listener }
        };
        let (original, keys) = (exchange([8; 32], [9; 32], here, there), kit::keys(&[2, 1]).get());
        let proof = original.proof(&keys[1], Role::Dialer);
        assert_eq!(original.verify(&proof, Role::Dialer, &keys).unwrap().key_id, [1; 8]);
        assert!(original.verify(&proof, Role::Listener, &keys).is_none());
        assert!(original.verify(&proof, Role::Dialer, &keys[..1]).is_none());
        for other in [
            exchange([7; 32], [9; 32], here, there),
            exchange([8; 32], [7; 32], here, there),
            exchange([8; 32], [9; 32], elsewhere, there),
            exchange([8; 32], [9; 32], here, elsewhere),
        ] {
            assert!(other.verify(&proof, Role::Dialer, &keys).is_none());
        }
        for byte in 0..PROOF_LEN {
            let mut bent = proof;
            bent[byte] ^= 1;
            assert!(original.verify(&bent, Role::Dialer, &keys).is_none());
        }
        let again = exchange([8; 32], [7; 32], here, there).proof(&keys[1], Role::Dialer);
        assert_ne!(again[..KEY_ID_LEN], proof[..KEY_ID_LEN], "the key id would name the key");
    }

    /// What somebody without the key does after the Noise handshake.
    #[derive(Clone, Copy)]
    enum Attack {
        /// Sends every byte back.
        Echo,
        /// As a dialer, which has to speak first: sends the nonce back, and that as a proof, too.
        EchoNonce,
        /// Claims more keys than there can be.
        Flood,
        /// Nothing.
        Silence,
    }

    #[derive(Clone)]
    struct Attacker(noise::Config, Attack);

    impl Attack {
        async fn run<S: AsyncRead + AsyncWrite + Unpin>(self, socket: &mut S) -> Result<(), io::Error> {
            match self {
                Self::Echo => {
                    let mut bytes = [0; 256];
                    loop {
                        let count = socket.read(&mut bytes).await?;
                        if count == 0 {
                            return Ok(());
                        }
                        socket.write_all(&bytes[..count]).await?;
                        socket.flush().await?;
                    }
                }
                Self::EchoNonce | Self::Flood => {
                    let nonce: Nonce = read(socket).await?;
                    let count = if matches!(self, Self::Flood) { u8::MAX } else { 1 };
                    socket.write_all(&[&nonce[..], &[count], &nonce[..], &nonce[..8]].concat()).await?;
                    socket.flush().await?;
                }
                Self::Silence => {}
            }
            future::pending().await
        }
    }

    impl UpgradeInfo for Attacker {
        type Info = &'static str;
        type InfoIter = iter::Once<&'static str>;
        fn protocol_info(&self) -> Self::InfoIter {
            iter::once(PROTOCOL)
        }
    }

    impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<T> for Attacker {
        type Output = (libp2p::PeerId, noise::Output<T>);
        type Error = ProofError;
        type Future = BoxFuture<'static, Result<Self::Output, ProofError>>;
        fn upgrade_inbound(self, socket: T, protocol: Self::Info) -> Self::Future {
            async move {
                let (peer, mut socket) = self.0.upgrade_inbound(socket, protocol).await.map_err(ProofError::Noise)?;
                self.1.run(&mut socket).await?;
                Ok((peer, socket))
            }
            .boxed()
        }
    }

    impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<T> for Attacker {
        type Output = (libp2p::PeerId, noise::Output<T>);
        type Error = ProofError;
        type Future = BoxFuture<'static, Result<Self::Output, ProofError>>;
        fn upgrade_outbound(self, socket: T, protocol: Self::Info) -> Self::Future {
            async move {
                let (peer, mut socket) = self.0.upgrade_outbound(socket, protocol).await.map_err(ProofError::Noise)?;
                self.1.run(&mut socket).await?;
                Ok((peer, socket))
            }
            .boxed()
        }
    }

    /// A program that is not ours: `security` is all that differs.
    fn stranger<U, E>(security: impl FnOnce(noise::Config) -> U) -> Dummy
    where
        U: Clone + Send + Unpin + 'static + UpgradeInfo<Info = &'static str, InfoIter = iter::Once<&'static str>>,
        U: InboundConnectionUpgrade<Socket, Output = Secured, Error = E, Future: Send>,
        U: OutboundConnectionUpgrade<Socket, Output = Secured, Error = E, Future: Send>,
        E: Error + Send + Sync + 'static,
    {
        let key = Keypair::generate_ed25519();
        let transport = tcp::tokio::Transport::new(tcp::Config::default())
            .upgrade(Version::V1Lazy)
            .authenticate(security(noise::Config::new(&key).unwrap()))
            .multiplex(yamux::Config::default())
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .boxed();
        Swarm::new(transport, dummy::Behaviour, key.public().to_peer_id(), swarm::Config::with_tokio_executor())
    }

    type Socket = libp2p::core::Negotiated<tcp::tokio::TcpStream>;
    type Secured = (libp2p::PeerId, noise::Output<Socket>);

    fn attacker(attack: Attack) -> Dummy {
        stranger(|noise| Attacker(noise, attack))
    }

    /// How the dial of a swarm ends for it, with the other driven meanwhile.
    async fn dials(dialer: &mut Dummy, address: Multiaddr, other: &mut Dummy) -> Box<dyn Error + Send + Sync> {
        dialer.dial(address).unwrap();
        drive(outcome(dialer), other).await
    }

    async fn drive(
        outcome: impl Future<Output = Option<Box<dyn Error + Send + Sync>>>,
        other: &mut Dummy,
    ) -> Box<dyn Error + Send + Sync> {
        let forever = async {
            loop {
                other.select_next_some().await;
            }
        };
        tokio::select! {
            outcome = timeout(AT_ONCE * 10, outcome) => outcome.expect("in time").expect("no connection"),
            never = forever => never,
        }
    }

    #[tokio::test]
    async fn our_own_proof_sent_back_proves_nothing() {
        let (mut us, mut them) = (member(&[1]), attacker(Attack::Echo));
        let address = kit::listen(&mut them).await;
        let error = dials(&mut us, address, &mut them).await;
        assert!(is_wrong_key(&*error), "{error:?}");
    }

    #[tokio::test]
    async fn a_dialer_without_the_key_is_refused() {
        for (attack, wrong_key) in [(Attack::EchoNonce, true), (Attack::Flood, false)] {
            let (mut us, mut them) = (member(&[1]), attacker(attack));
            let address = kit::listen(&mut us).await;
            them.dial(address).unwrap();
            let error = drive(outcome(&mut us), &mut them).await;
            assert_eq!(is_wrong_key(&*error), wrong_key, "{error:?}");
        }
    }

    #[tokio::test]
    async fn who_stays_silent_is_dropped_after_the_timeout() {
        let patience = Duration::from_millis(200);
        let (mut us, mut them) = (kit::impatient(kit::keys(&[1]), patience), attacker(Attack::Silence));
        let address = kit::listen(&mut us).await;
        them.dial(address).unwrap();
        let error = drive(outcome(&mut us), &mut them).await;
        assert!(!is_wrong_key(&*error), "{error:?}");
    }

    #[tokio::test]
    async fn foreign_libp2p_programs_fail_at_once_in_both_directions() {
        let (dialed, heard) = dial(&mut stranger(|noise| noise), &mut member(&[1]), AT_ONCE).await;
        assert!(dialed.is_some() && heard.is_some_and(|error| !is_wrong_key(&*error)));
        let (dialed, heard) = dial(&mut member(&[1]), &mut stranger(|noise| noise), AT_ONCE).await;
        assert!(dialed.is_some_and(|error| !is_wrong_key(&*error)) && heard.is_some());
    }
}
