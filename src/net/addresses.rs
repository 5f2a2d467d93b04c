//! Addresses as people write them, ports to listen on, and which addresses are worth telling others.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use super::NetError;
use super::discovery::ip_of;

/// Reads `/ip4/10.0.0.7/tcp/4001`, `10.0.0.7:4001`, `[fd00::7]:4001` or `host.name:4001`.
pub(super) fn parse(text: &str) -> Result<Multiaddr, NetError> {
    let bad = |hint: &'static str| NetError::Address { text: text.to_owned(), hint };
    if text.starts_with('/') {
        let address: Multiaddr = text.parse().map_err(|_| bad("write it like /ip4/10.0.0.7/tcp/4001"))?;
        if !address.iter().any(|part| matches!(part, Protocol::Tcp(_))) {
            return Err(bad("it names no TCP port: /ip4/10.0.0.7/tcp/4001"));
        }
        return Ok(address);
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Ok(Multiaddr::from(socket.ip()).with(Protocol::Tcp(socket.port())));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("add a port: 10.0.0.7:4001"))?;
    let port = port.parse().map_err(|_| bad("the port is a number up to 65535"))?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || !host.chars().all(fits) {
        return Err(bad("write it like 10.0.0.7:4001, [fd00::7]:4001 or host.name:4001"));
    }
    Ok(Multiaddr::empty().with(Protocol::Dns(host.into())).with(Protocol::Tcp(port)))
}

/// Chooses ports where 0 is asked for, one for all, and makes sure that nobody else listens where a port is named.
///
/// libp2p's listeners share ports, so a second program on the same port would be given half of the connections instead
/// of an error: hence the look before.
pub(super) fn with_ports(listen: &[Multiaddr]) -> Result<Vec<Multiaddr>, NetError> {
    let mut chosen = 0;
    let mut addresses = Vec::new();
    for address in listen {
        let error = |source| NetError::Listen { address: address.to_string(), source };
        let ip = ip_of(address).ok_or_else(|| error(io::Error::other("only IP addresses can be listened on")))?;
        let asked = tcp_port(address).unwrap_or(0);
        let port = if asked == 0 { chosen } else { asked };
        // A dual-stack socket finds a port that is free for both families.
        let probe = if ip.is_unspecified() && port == 0 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { ip };
        let bound = match TcpListener::bind((probe, port)) {
            // A machine without IPv6 is no error unless somebody asked for a certain address.
            Err(_) if probe.is_ipv6() && ip.is_ipv4() => TcpListener::bind((ip, port)),
            Err(problem) if ip.is_ipv6() && ip.is_unspecified() && problem.kind() != io::ErrorKind::AddrInUse => {
                continue;
            }
            // The other family's listener of ours may hold it already by a dual-stack socket; never with libp2p's.
            other => other,
        };
        let port = bound.and_then(|socket| socket.local_addr()).map_err(error)?.port();
        if asked == 0 {
            chosen = port;
        }
        addresses.push(Multiaddr::from(ip).with(Protocol::Tcp(port)));
    }
    if addresses.is_empty() && !listen.is_empty() {
        let source = io::Error::other("this machine has no IPv6");
        return Err(NetError::Listen { address: listen[0].to_string(), source });
    }
    Ok(addresses)
}

/// Whether other machines could use it: no loopback, no link-local IPv6 (its zone means something else elsewhere).
pub(super) fn is_public(address: &Multiaddr) -> bool {
    ip_of(address).is_none_or(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_unicast_link_local(),
    })
}

pub(super) fn is_loopback(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_loopback())
}

pub(super) fn tcp_port(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| if let Protocol::Tcp(port) = part { Some(port) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, expected) in [
            ("/ip4/10.0.0.7/tcp/4001", "/ip4/10.0.0.7/tcp/4001"),
            ("10.0.0.7:4001", "/ip4/10.0.0.7/tcp/4001"),
            ("[fd00::7]:4001", "/ip6/fd00::7/tcp/4001"),
            ("host.name:80", "/dns/host.name/tcp/80"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), expected);
        }
        for bad in ["", "10.0.0.7", "10.0.0.7:x", "/ip4/10.0.0.7", "a b:1", ":1", "/nonsense"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn both_families_get_one_port() {
        let listen = ["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0"].map(|text| text.parse().unwrap());
        let ports: Vec<_> = with_ports(&listen).unwrap().iter().filter_map(tcp_port).collect();
        assert!(ports.iter().all(|port| *port != 0 && *port == ports[0]), "{ports:?}");
    }

    #[test]
    fn a_port_in_use_is_an_error() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = format!("/ip4/127.0.0.1/tcp/{}", holder.local_addr().unwrap().port());
        assert!(matches!(with_ports(&[taken.parse().unwrap()]), Err(NetError::Listen { .. })));
    }
}
