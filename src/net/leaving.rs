//! How a peer leaves: the goodbye, what is queued, connections, sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::swarm::{ConnectionId, SwarmEvent};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::actor::Actor;
use super::connections::Connection;

/// A goodbye that is being said.
pub(super) struct Leaving {
    /// When to look whether it is out, and when that does not matter any more.
    pub(super) until: Instant,
    latest: Instant,
    reply: Option<oneshot::Sender<()>>,
}

impl Actor {
    /// Says goodbye. The loop goes on for a moment, so that it goes out.
    pub(super) fn leave(&mut self, reply: Option<oneshot::Sender<()>>) {
        self.save_cache();
        self.engine.leave(self.now);
        self.same_host = None; // takes the file away
        let (until, latest) = (self.now + GOODBYE, self.now + LONGEST_GOODBYE);
        self.leaving = Some(Leaving { until, latest, reply });
    }

    /// Whether the goodbye is out. On a busy machine that takes longer than usual.
    pub(super) fn has_left(&mut self) -> bool {
        let Some(leaving) = &mut self.leaving else { return false };
        if self.now < leaving.until && !self.connections.is_empty() {
            return false;
        }
        let told = !self.connections.values().any(Connection::has_to_tell);
        leaving.until = self.now + GOODBYE / 5;
        told || self.now >= leaving.latest
    }

    pub(super) async fn stop(mut self) {
        // 1. What was queued is written, as far as time allows.
        let flush =
            futures::future::join_all(self.links.all().into_iter().map(|link| async move { link.flushed().await }));
        let drive = async {
            loop {
                self.swarm.select_next_some().await;
            }
        };
        tokio::select! {
            _ = timeout(FLUSH, flush) => {}
            () = drive => {}
        }
        // 2. Connections close in order: what their streams still hold goes out first.
        self.connections.values().for_each(Connection::abort);
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in ids {
            self.swarm.close_connection(id);
        }
        let closed = async {
            while !self.connections.is_empty() {
                if let SwarmEvent::ConnectionClosed { connection_id, .. } = self.swarm.select_next_some().await {
                    self.connections.remove(&connection_id);
                }
            }
        };
        let _ = timeout(CLOSE, closed).await; // who does not take our last bytes is left behind
        self.links.clear();
        self.routes.send_replace(Arc::default());
        // 3. Multicast goodbye.
        if let Some(mdns) = self.mdns.take() {
            mdns.shutdown().await;
        }
        // 4. The swarm closes its sockets when it is dropped.
        let reply = self.leaving.take().and_then(|leaving| leaving.reply);
        drop(self);
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }
}

/// Time for the goodbye to leave before connections are closed.
const GOODBYE: Duration = Duration::from_millis(50);
const LONGEST_GOODBYE: Duration = Duration::from_secs(1);
/// Time for what is queued on links at the end.
const FLUSH: Duration = Duration::from_secs(3);
/// Time for connections to close.
const CLOSE: Duration = Duration::from_millis(500);
