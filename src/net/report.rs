//! What the event loop tells when asked.

use std::time::SystemTime;

use super::actor::Actor;
use super::discovery::Source;
use crate::keys::{Ticket, fingerprint};
use crate::mesh::{DiscoveryInfo, ForeignInfo, PeerInfo, Status};

impl Actor {
    pub(super) fn peers(&self) -> Vec<PeerInfo> {
        let mut peers: Vec<PeerInfo> = self
            .connections
            .values()
            .filter_map(|connection| {
                let up = connection.up.as_ref()?;
                // Who said goodbye is gone, even if its connection is not closed yet.
                let signed = self.engine.view().signed(connection.peer).filter(|signed| !signed.record().leaving)?;
                let record = signed.record();
                Some(PeerInfo {
                    peer: record.peer,
                    identity: record.identity,
                    host: record.host.clone(),
                    addresses: record.addresses.clone(),
                    connected_to: connection.address.to_string(),
                    link: up.kind,
                    rtt_us: connection.vitals.rtt(),
                    nodes: record.nodes.iter().map(|node| node.name.clone()).collect(),
                    version: record.software.clone(),
                    admitted_by: connection.admitted_by.as_ref().map(fingerprint).unwrap_or_default(),
                    key_epoch: up.key_epoch,
                })
            })
            .collect();
        peers.sort_unstable_by(|a, b| (&a.host, a.peer).cmp(&(&b.host, b.peer)));
        peers
    }

    pub(super) fn status(&mut self) -> Status {
        if let Some(mdns) = &self.mdns {
            self.discovery.set_state(Source::Mdns, mdns.status());
        } else {
            self.discovery.set_state(Source::Mdns, "off");
        }
        let ago = |at: SystemTime| at.elapsed().unwrap_or_default().as_secs();
        let discovery = self.discovery.status().into_iter().map(|status| DiscoveryInfo {
            source: status.source.to_string(),
            state: status.state,
            heard: status.heard,
            last_s: status.last.map(ago),
        });
        let own = self.engine.own().record();
        Status {
            mesh: self.config.mesh.to_string(),
            peer: self.me,
            identity: self.config.identity.identity(),
            host: self.config.host.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: ago(self.started),
            addresses: self.engine.own_addresses().to_vec(),
            peers: self.engine.view().reachable().count(),
            nodes: self.engine.view().reachable().map(|record| record.nodes.len()).sum::<usize>() + own.nodes.len(),
            discovery: discovery.collect(),
            foreign: ForeignInfo {
                addresses: self.dialer.foreign_addresses().map(ToString::to_string).collect(),
                refused: self.refused,
                crowded_out: self.swarm.behaviour().gate.refused(),
            },
            counts: self.counts,
        }
    }

    pub(super) fn ticket(&self) -> Ticket {
        let addresses = self.engine.own_addresses().to_vec();
        Ticket::new(self.config.mesh.clone(), self.config.ring.current().clone(), self.config.ring.epoch(), addresses)
    }
}
