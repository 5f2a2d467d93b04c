//! Where this peer can be dialled: what the system gives it, and who is told.

use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tracing::{debug, warn};

use super::actor::Actor;
use super::addresses::{is_loopback, is_public, parse, tcp_port};
use super::discovery::{Source, ip_of};
use crate::mesh::MAX_ADDRESSES;

impl Actor {
    /// The system chose a port, or confirmed the one that was asked for.
    pub(super) fn on_port(&mut self, address: &Multiaddr) {
        let Some(port) = tcp_port(address) else { return };
        if self.listening.is_empty()
            && let Some(mdns) = &self.mdns
        {
            mdns.set_port(port);
        }
        for ip in std::mem::take(&mut self.same_port) {
            // Only we can have the port in the other family: whoever takes a port takes it in both.
            let at = |port| Multiaddr::from(ip).with(Protocol::Tcp(port));
            if let Err(error) = self.swarm.listen_on(at(port)) {
                debug!(%ip, %error, "not listened on: this machine may not have that family");
            }
        }
    }

    pub(super) fn on_addresses(&mut self) {
        // Loopback is told to others only where somebody asked for just that.
        let asked = |address: &Multiaddr| {
            self.config.listen.iter().filter_map(|text| parse(text).ok()).any(|listen| ip_of(&listen) == ip_of(address))
        };
        let mut public: Vec<&Multiaddr> = self
            .listening
            .iter()
            .filter(|address| is_public(address) || (is_loopback(address) && asked(address)))
            .collect();
        public.sort_by_key(|address| ip_of(address).is_some_and(|ip| ip.is_ipv6())); // more networks route IPv4
        self.engine.set_addresses(public.iter().take(MAX_ADDRESSES).map(ToString::to_string).collect());
        let mut local = self.listening.clone();
        local.sort_by_key(|address| !is_loopback(address));
        if let Some(same_host) = &mut self.same_host
            && let Err(error) = same_host.announce(&local)
        {
            warn!(%error, "peers of this host may not find this one");
            self.discovery.set_state(Source::Local, error.to_string());
        }
        // Loopback comes first; on a machine without a network nothing else will.
        if self.engine.own_addresses().is_empty() {
            self.ready_at.get_or_insert(self.now + MORE_ADDRESSES);
        } else {
            self.tell_ready();
        }
    }

    pub(super) fn tell_ready(&mut self) {
        self.ready_at = None;
        if let Some(ready) = self.ready.take() {
            let _ = ready.send(()); // who started us may have given up waiting
        }
    }
}

/// How long the first address, which is loopback, waits for others before the start is done.
const MORE_ADDRESSES: Duration = Duration::from_millis(10);
