//! The local socket's server: one session per client. Whatever a client does, it does to itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::failures::stopping;
use super::outbox::Outbox;
use super::session::Session;
use crate::config::Loaded;
use crate::mesh::Status;
use crate::node::{ListenOptions, Node};
use crate::wire::control::{self as wire, Answer, Welcome};

/// What all sessions share.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) node: Node,
    pub(super) welcome: Welcome,
    /// Key, value, source.
    pub(super) settings: Vec<(String, String, String)>,
    pub(super) limits: ListenOptions,
    pub(super) max_block: usize,
    /// Cancelled when the daemon is to stop.
    pub(super) halt: CancellationToken,
    ending: Ending,
}

/// The two steps of the end.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending {
    /// Clients finish what they have begun, and begin nothing more.
    pub(super) drain: CancellationToken,
    /// Clients are told, and let go.
    pub(super) stop: CancellationToken,
}

impl Server {
    pub(super) fn new(node: Node, loaded: &Loaded, halt: CancellationToken, ending: Ending, status: &Status) -> Self {
        let limits = &loaded.config.limits;
        Self {
            node,
            welcome: Welcome {
                version: wire::VERSION,
                software: status.version.clone(),
                mesh: status.mesh.clone(),
                peer: status.peer,
                pid: std::process::id(),
                message_bytes: limits.message_bytes.get(),
            },
            settings: loaded.settings.iter().cloned().map(|one| (one.key, one.value, one.source)).collect(),
            limits: ListenOptions {
                messages: limits.subscription_messages.get(),
                bytes: limits.subscription_bytes.get(),
                ..ListenOptions::default()
            },
            max_block: limits.message_bytes.get() + wire::BLOCK_OVERHEAD,
            halt,
            ending,
        }
    }

    /// Whether nothing is begun any more.
    pub(super) fn is_draining(&self) -> bool {
        self.ending.drain.is_cancelled()
    }
}

/// Serves clients until told to stop; then tells them, and ends when they are gone.
pub(super) async fn serve(server: Arc<Server>, listener: UnixListener) {
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            () = server.ending.stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let room = sessions.len() < MAX_CLIENTS;
                    sessions.spawn(session(Arc::clone(&server), stream, room));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: clients that go will free some. Spinning helps nobody.
                    warn!(%error, "cannot accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = sessions.join_next() => watch_for_panic(ended),
        }
    }
    drop(listener);
    while let Some(ended) = sessions.join_next().await {
        watch_for_panic(ended);
    }
}

fn watch_for_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a client's session panicked; the others go on");
    }
}

/// One client, from hello to goodbye.
async fn session(server: Arc<Server>, stream: UnixStream, room: bool) {
    let (from, to) = stream.into_split();
    let (outbox, writer) = Outbox::open(to);
    let stop = server.ending.stop.clone();
    let mut session = Session::new(server, outbox.clone());
    let goodbye = tokio::select! {
        () = stop.cancelled() => Some(stopping()),
        () = outbox.closed() => None,
        goodbye = session.run(from, room) => goodbye,
    };
    // Subscriptions and the node end here; what they had queued for the client still goes out.
    drop(session);
    let last_words = async {
        if let Some(failure) = goodbye {
            debug!(%failure, "ending a client's session");
            let _ = outbox.push(&Answer::Goodbye(failure)).await; // It may be gone itself.
        }
        drop(outbox);
        let _ = writer.await; // Likewise.
    };
    if timeout(GOODBYE, last_words).await.is_err() {
        debug!("a client did not read its last messages");
    }
}

/// Programs attached at once: each may hold an outbox and a node.
pub(super) const MAX_CLIENTS: usize = 1024;
/// How long a client may take to read its last messages.
const GOODBYE: Duration = Duration::from_millis(500);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
