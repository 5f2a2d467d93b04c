//! Addresses as people write them, ports to listen on, and which addresses are worth telling others.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

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
        let host = address.iter().next();
        if !host.is_some_and(|host| {
            use Protocol::{Dns, Dns4, Dns6, Ip4, Ip6};
            matches!(host, Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_))
        }) {
            return Err(bad("it begins with ip4, ip6, dns, dns4 or dns6: /dns/host.name/tcp/4001"));
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

/// Addresses to listen on, and those of peers to try first, read: all that can be wrong with them, whatever machine this is.
pub(super) fn read(listen: &[String], bootstrap: &[String]) -> Result<(Vec<Multiaddr>, Vec<Multiaddr>), NetError> {
    let all = |texts: &[String]| texts.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>();
    let (listen, bootstrap) = (all(listen)?, all(bootstrap)?);
    listen.iter().try_for_each(|address| own(address).map(drop))?;
    Ok((listen, bootstrap))
}

/// The IP address of one to listen on.
fn own(address: &Multiaddr) -> Result<IpAddr, NetError> {
    ip_of(address).ok_or_else(|| NetError::Listen {
        address: address.to_string(),
        source: io::Error::other("only IP addresses can be listened on"),
    })
}

/// What to listen on.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// At once. With port 0, the system chooses one that nobody has.
    pub(super) now: Vec<Multiaddr>,
    /// On the port that the system chose for the first that asked for any: one port for all is easier to tell.
    pub(super) same_port: Vec<IpAddr>,
}

/// Makes sure that nobody else listens where a port is named.
///
/// libp2p's listeners share ports, so a second program on the same port would be given half of the connections instead of
/// an error: hence the look before. A port that the system chooses is nobody else's.
pub(super) fn plan(listen: &[Multiaddr]) -> Result<Plan, NetError> {
    let mut plan = Plan::default();
    let mut any_port = false;
    for address in listen {
        let error = |source| NetError::Listen { address: address.to_string(), source };
        let ip = own(address)?;
        let port = tcp_port(address).unwrap_or(0);
        let local = Multiaddr::from(ip).with(Protocol::Tcp(port));
        let free = TcpListener::bind((ip, port));
        match free {
            Ok(_) if port == 0 && any_port => plan.same_port.push(ip),
            Ok(_) => {
                any_port |= port == 0;
                plan.now.push(local);
            }
            // A machine without one of the families is no error unless somebody asked for a certain address.
            Err(problem) if ip.is_unspecified() && problem.kind() != io::ErrorKind::AddrInUse && listen.len() > 1 => {}
            Err(problem) => return Err(error(problem)),
        }
    }
    if plan.now.is_empty() && !listen.is_empty() {
        let source = io::Error::other("this machine has neither IPv4 nor IPv6");
        return Err(NetError::Listen { address: listen[0].to_string(), source });
    }
    Ok(plan)
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
        for bad in
            ["", "10.0.0.7", "10.0.0.7:x", "/ip4/10.0.0.7", "a b:1", ":1", "/nonsense", "/dnsaddr/a.b/tcp/1", "/tcp/1"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_port_is_for_all_that_ask_for_any() {
        let listen = ["/ip4/0.0.0.0/tcp/0", "/ip4/127.0.0.1/tcp/0"].map(|text| text.parse().unwrap());
        let plan = plan(&listen).unwrap();
        assert_eq!((plan.now, plan.same_port), (vec![listen[0].clone()], vec![[127, 0, 0, 1].into()]));
    }

    #[test]
    fn a_port_in_use_is_an_error() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = format!("/ip4/127.0.0.1/tcp/{}", holder.local_addr().unwrap().port());
        assert!(matches!(plan(&[taken.parse().unwrap()]), Err(NetError::Listen { .. })));
    }
}
