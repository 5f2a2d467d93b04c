//! The round trip of a link: a ping frame goes where messages go, and comes back as a pong.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::net::Link;

/// Pings that are not answered yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pings(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    pings: HashMap<u64, oneshot::Sender<()>>,
}

impl Pings {
    /// Measures one round trip. `None`: no answer in that time.
    pub(crate) async fn ping(&self, link: &Link, patience: Duration) -> Option<Duration> {
        let (answer, answered) = oneshot::channel();
        let nonce = {
            let mut waiting = self.waiting();
            waiting.pings.retain(|_, ping| !ping.is_closed()); // who gave up waits no more
            waiting.next += 1;
            let nonce = waiting.next;
            waiting.pings.insert(nonce, answer);
            nonce
        };
        #[expect(clippy::disallowed_methods, reason = "a round trip is measured where it begins and ends")]
        let began = Instant::now();
        link.ping(nonce, false);
        timeout(patience, answered).await.ok()?.ok()?;
        Some(began.elapsed())
    }

    /// An answer came.
    pub(crate) fn answered(&self, nonce: u64) {
        if let Some(ping) = self.waiting().pings.remove(&nonce) {
            let _ = ping.send(()); // who asked may have given up
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
