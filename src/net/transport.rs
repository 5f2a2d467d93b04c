//! From an address to a multiplexed connection with a proven member: names, TCP, Noise, membership proof, yamux.

use std::num::NonZeroUsize;
use std::time::Duration;

use libp2p::core::Transport as _;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::transport::timeout::TransportTimeout;
use libp2p::core::upgrade::Version;
use libp2p::identity::{DecodingError, Keypair};
use libp2p::swarm::NetworkBehaviour;
use libp2p::{PeerId, Swarm, noise, swarm, tcp, yamux};
use zeroize::Zeroizing;

use super::lookup::Lookups;
use super::names::Named;
use super::proof::{AcceptedKeys, AdmittedBy, Membership};

/// The run's key does not serve. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadRunKey {
    /// The bytes are not an Ed25519 secret key.
    #[error("the key of this run is not an Ed25519 key")]
    Key(#[from] DecodingError),
    /// The Noise key could not be signed with it.
    #[error("the key of this run cannot sign")]
    Sign(#[from] noise::Error),
}

/// The TCP connection itself failed: nobody there, or no way there.
#[derive(Debug, thiserror::Error)]
#[error("no connection")]
struct CannotConnect(#[source] std::io::Error);

/// A swarm that connects to members only. `key` is the Ed25519 secret of this run; its public half names the peer.
///
/// To be called, and the swarm driven, inside a tokio runtime.
pub(crate) fn swarm<B: NetworkBehaviour>(
    key: &Zeroizing<[u8; 32]>,
    accepted: AcceptedKeys,
    admitted: AdmittedBy,
    behaviour: impl FnOnce(&Keypair) -> B,
) -> Result<Swarm<B>, BadRunKey> {
    let key = Keypair::ed25519_from_bytes(key.clone().as_mut_slice())?;
    let membership = Membership::new(noise::Config::new(&key)?, key.public().to_peer_id(), accepted, admitted);
    let transport = transport(membership, CONNECTION_TIMEOUT);
    Ok(Swarm::new(transport, behaviour(&key), key.public().to_peer_id(), swarm_config()))
}

/// The only transport: whatever comes out of it has passed `membership`.
fn transport(membership: Membership, timeout: Duration) -> Boxed<(PeerId, StreamMuxerBox)> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true).listen_backlog(LISTEN_BACKLOG))
        // Named, because the layers above hide the error of the socket otherwise.
        .map_err(CannotConnect)
        .upgrade(Version::V1Lazy)
        .authenticate(membership)
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    // Within: each address of a name has that time.
    Named::new(TransportTimeout::new(tcp, timeout), Lookups::of_system()).boxed()
}

fn swarm_config() -> swarm::Config {
    swarm::Config::with_tokio_executor()
        .with_smart_dial() // the next address only when the last did not answer: no handshakes for nothing
        .with_idle_connection_timeout(IDLE_TIMEOUT)
        .with_notify_handler_buffer_size(NOTIFY_BUFFER)
        .with_per_connection_event_buffer_size(EVENT_BUFFER)
        .with_max_negotiating_inbound_streams(MAX_NEGOTIATING)
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
}

/// From the TCP connection to the multiplexer, the proof included. A member needs milliseconds, or a few round trips; a
/// stranger that stays silent holds its slot this long.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(4);
/// Connections that the kernel completes before we accept them. A mesh of 256 that restarts at once redials what is lost.
const LISTEN_BACKLOG: u32 = 128;
/// Long enough to be never: who opens connections also closes them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Events on their way to a connection. When full, the swarm polls no behaviour until the connection takes one; hence eight
/// times the default.
const NOTIFY_BUFFER: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Events on their way from a connection. When full, the connection's streams wait for the swarm; hence nine times the
/// default.
const EVENT_BUFFER: usize = 64;
/// Streams of one connection whose protocol is being negotiated; more wait.
const MAX_NEGOTIATING: usize = 64;

/// What tests of this layer share.
#[cfg(test)]
pub(crate) mod kit {
    use futures::StreamExt;
    use libp2p::Multiaddr;
    use libp2p::swarm::SwarmEvent;

    use super::*;
    use crate::keys::Secrets;

    /// Keys made of one byte each, newest first.
    pub(crate) fn keys(bytes: &[u8]) -> AcceptedKeys {
        let secrets = |byte| Secrets { key_id: [byte; 8], proof: Zeroizing::new([byte; 32]), tag: String::new() };
        AcceptedKeys::new(bytes.iter().map(|byte| secrets(*byte)).collect())
    }

    /// A swarm with a new key.
    pub(crate) fn swarm<B: NetworkBehaviour>(keys: AcceptedKeys, behaviour: impl FnOnce(&Keypair) -> B) -> Swarm<B> {
        super::swarm(&Zeroizing::new(rand::random()), keys, AdmittedBy::default(), behaviour).unwrap()
    }

    /// A swarm whose handshakes are given up after `timeout`.
    pub(crate) fn impatient(keys: AcceptedKeys, timeout: Duration) -> Swarm<swarm::dummy::Behaviour> {
        let key = Keypair::generate_ed25519();
        let (noise, peer) = (noise::Config::new(&key).unwrap(), key.public().to_peer_id());
        let transport = transport(Membership::new(noise, peer, keys, AdmittedBy::default()), timeout);
        Swarm::new(transport, swarm::dummy::Behaviour, peer, swarm_config())
    }

    /// Listens on loopback; the address, with the peer.
    pub(crate) async fn listen<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> Multiaddr {
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                return address.with_p2p(*swarm.local_peer_id()).unwrap();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use libp2p::swarm::{SwarmEvent, dummy};

    use super::*;

    #[tokio::test]
    async fn listening_everywhere_reports_loopback_too() {
        let mut swarm = kit::swarm(kit::keys(&[1]), |_| dummy::Behaviour);
        swarm.listen_on("/ip4/0.0.0.0/tcp/0".parse().unwrap()).unwrap();
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await
                && address.to_string().starts_with("/ip4/127.0.0.1/tcp/")
            {
                break;
            }
        }
    }
}
