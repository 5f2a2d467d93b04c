//! Finding other peers: on this host, by multicast, from the last run. What is found is for the dialer; nothing here dials.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::mesh::PeerId;

pub(crate) mod cache;
pub(crate) mod local;
pub(crate) mod mdns;

/// Where some peer may be reached, according to one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Who is said to be there; `None` if only the addresses are known.
    pub(crate) peer: Option<PeerId>,
    /// Where, best first.
    pub(crate) addresses: Vec<Multiaddr>,
    /// Who says so.
    pub(crate) source: Source,
    /// When that peer started, in microseconds since the Unix epoch; 0 if unknown.
    pub(crate) started: u64,
}

/// A way to learn of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    /// A file in the runtime directory of this host.
    Local,
    /// Multicast DNS.
    Mdns,
    /// An address that the configuration or a ticket names.
    Bootstrap,
    /// The Kademlia routing table.
    Kad,
    /// The addresses of the last run.
    Cache,
    /// The record of a member, told by another member.
    Member,
}

/// What each source heard: the numbers behind `meshd status`.
#[derive(Debug, Default)]
pub(crate) struct Discovery {
    sources: BTreeMap<Source, Heard>,
}

/// One source in `meshd status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceStatus {
    /// Which source.
    pub(crate) source: Source,
    /// `ok`, `off`, or what keeps it from working.
    pub(crate) state: String,
    /// How many different peers it told of, in this run.
    pub(crate) heard: u64,
    /// When it last told of one.
    pub(crate) last: Option<SystemTime>,
}

#[derive(Debug, Default)]
struct Heard {
    state: String,
    peers: HashSet<PeerId>,
    last: Option<SystemTime>,
}

impl Discovery {
    /// Notes how a source fares. A source appears in the status once it has a state or told of a peer.
    pub(crate) fn set_state(&mut self, source: Source, state: impl Into<String>) {
        self.sources.entry(source).or_default().state = state.into();
    }

    /// Notes that a source told of a peer; for an address without a name, call this once the peer there is known.
    pub(crate) fn heard(&mut self, source: Source, peer: PeerId, at: SystemTime) {
        let heard = self.sources.entry(source).or_default();
        heard.last = Some(at);
        if heard.peers.len() < MAX_COUNTED {
            heard.peers.insert(peer);
        }
    }

    /// All sources that were set up, in a fixed order.
    pub(crate) fn status(&self) -> Vec<SourceStatus> {
        let status = |(source, heard): (&Source, &Heard)| SourceStatus {
            source: *source,
            state: if heard.state.is_empty() { "ok".to_owned() } else { heard.state.clone() },
            heard: heard.peers.len() as u64,
            last: heard.last,
        };
        self.sources.iter().map(status).collect()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "same-host",
            Self::Mdns => "mdns",
            Self::Bootstrap => "bootstrap",
            Self::Kad => "kad",
            Self::Cache => "cache",
            Self::Member => "member",
        })
    }
}

/// The address without the peer that it names: PeerIds change at each start, sockets do not.
pub(crate) fn without_peer(mut address: Multiaddr) -> Multiaddr {
    while matches!(address.iter().last(), Some(Protocol::P2p(_))) {
        address.pop();
    }
    address
}

/// The IP address that a multiaddr starts with, if it does.
pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    }
}

/// Whether a connection to this address could mean anything: it names one host, and a port.
pub(crate) fn is_dialable(address: &Multiaddr) -> bool {
    let names_a_host = ip_of(address).is_none_or(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    });
    let has_port = !address.iter().any(|part| matches!(part, Protocol::Tcp(0) | Protocol::Udp(0)));
    names_a_host && has_port && !address.is_empty()
}

/// Replaces a file in one step: a reader sees the old content or the new, never a part. Mode 0600.
fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || {
        // Not `create_new`: what an earlier process of this pid left behind is overwritten.
        let options = File::options().write(true).create(true).truncate(true).mode(0o600).clone();
        options.open(&temporary)?.write_all(content)?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Peers that are counted one by one per source: as many as the dialer remembers.
const MAX_COUNTED: usize = 4096;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_status_counts_peers_not_sightings() {
        let mut discovery = Discovery::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let peer = |n| PeerId::from_bytes([n; 32]);
        discovery.set_state(Source::Mdns, "port 5353 is taken");
        for (n, second) in [(1, 1), (2, 2), (1, 3)] {
            discovery.heard(Source::Local, peer(n), at(second));
        }
        let local = SourceStatus { source: Source::Local, state: "ok".into(), heard: 2, last: Some(at(3)) };
        let mdns = SourceStatus { source: Source::Mdns, state: "port 5353 is taken".into(), heard: 0, last: None };
        assert_eq!(discovery.status(), [local, mdns]);
    }

    #[test]
    fn an_address_that_names_no_host_is_not_dialled() {
        for nonsense in [
            "/ip4/0.0.0.0/tcp/1",
            "/ip4/224.0.0.251/tcp/1",
            "/ip6/::/tcp/1",
            "/ip4/10.0.0.1/tcp/0",
            "/ip6/ff02::1/tcp/1",
        ] {
            assert!(!is_dialable(&nonsense.parse().unwrap()), "{nonsense}");
        }
        assert!(!is_dialable(&Multiaddr::empty()));
        for fine in ["/ip4/10.0.0.1/tcp/1", "/dns4/host/tcp/1", "/ip6/fd00::1/tcp/1"] {
            assert!(is_dialable(&fine.parse().unwrap()), "{fine}");
        }
    }

    #[test]
    fn the_peer_in_an_address_is_dropped() {
        let address = format!("/ip4/10.0.0.1/tcp/1/p2p/{}", PeerId::from_bytes([7; 32]));
        // Not every 32 bytes are a key, but any is a peer id.
        assert_eq!(without_peer(address.parse().unwrap()), "/ip4/10.0.0.1/tcp/1".parse().unwrap());
    }
}
