//! The network: everything that names libp2p or mDNS. Upward it offers [`NetHandle`], [`Link`] and events.
//!
//! Two planes. The event loop ([`actor`]) owns the swarm and the engine and decides who is where; it publishes immutable
//! routes. Senders read those and queue frames on links, and never wait for the loop.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

mod actor;
mod addresses;
mod behaviour;
mod command;
mod connections;
mod dialer;
mod dialing;
mod discovery;
mod gate;
mod inlet;
mod leaving;
mod link;
mod listening;
mod local;
mod lookup;
mod loopback;
mod names;
mod peer_id;
mod proof;
mod report;
mod rotation;
mod session;
mod streams;
mod transport;

pub(crate) use command::KeepAlive;
pub use command::{RotateRefused, RotationError};
pub(crate) use inlet::Receive;
pub(crate) use link::{Link, LinkLimits, MAX_ALIASES, MAX_INTRODUCED, Order, Outgoing, Place, Refused, Room};
pub(crate) use session::ControlSender;

use self::command::Command;
use crate::keys::{IdentityKey, KeyRing, Ticket};
use crate::mesh::engine::LimitError;
use crate::mesh::{
    Event, Identity, KeyInfo, MeshName, NodeId, NodeName, PeerId, PeerInfo, Routes, ServiceName, Status, TopicFilter,
    What,
};

/// What a peer is started with.
pub(crate) struct NetConfig {
    pub(crate) mesh: MeshName,
    pub(crate) ring: KeyRing,
    pub(crate) identity: IdentityKey,
    /// Name of the machine, as others are told.
    pub(crate) host: String,
    /// `<home>/<mesh>`, where rotated keys and the addresses of peers are kept. `None`: nothing is kept.
    pub(crate) folder: Option<PathBuf>,
    /// Addresses as people write them.
    pub(crate) listen: Vec<String>,
    pub(crate) bootstrap: Vec<String>,
    /// Where peers of one host find each other. `None` switches that off.
    pub(crate) runtime_dir: Option<PathBuf>,
    pub(crate) mdns: bool,
    pub(crate) kad: bool,
    pub(crate) cache: bool,
    pub(crate) limits: LinkLimits,
    /// Most bytes in one message, either way.
    pub(crate) max_message: usize,
    /// How long what was under way with a lost peer waits for it to come back.
    pub(crate) resume: Duration,
    /// What links are for.
    pub(crate) carried: Arc<dyn Carried>,
    /// What happens on links that is to be told to who watches.
    pub(crate) notices: mpsc::Receiver<What>,
}

/// What links carry, and what has to know at once of links that come and go. Called by the event loop and by readers:
/// nothing here waits.
pub(crate) trait Carried: Send + Sync {
    /// What reads one data stream of a peer, whose signed record proves that identity. `None`: of this peer itself.
    fn receiver(&self, peer: PeerId, identity: Option<Identity>) -> Box<dyn Receive>;
    /// A link stands. Nobody else can send on it yet: what has to go out again goes out before all that is new.
    fn up(&self, peer: PeerId, link: &Link);
    /// The link is lost: `link` says which frames were never written. The peer may come back.
    fn down(&self, peer: PeerId, link: &Link);
    /// The peer ended, or did not come back in time: nothing under way with it will go on.
    fn gone(&self, peer: PeerId);
    /// Nothing was heard of the peer for long, and it is linked to nobody: what is kept of it can go.
    fn forgotten(&self, peer: PeerId);
}

/// The links that stand, by peer; one leads back to this peer itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Links(Arc<RwLock<HashMap<PeerId, Linked>>>);

/// A link, and what speaks to the peer besides it, if that is another.
type Linked = (Link, Option<ControlSender>);

impl Links {
    pub(crate) fn get(&self, peer: PeerId) -> Option<Link> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&peer).map(|(link, _)| link.clone())
    }

    pub(crate) fn control(&self, peer: PeerId) -> Option<ControlSender> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&peer).and_then(|(_, control)| control.clone())
    }

    pub(crate) fn insert(&self, peer: PeerId, link: Link, control: Option<ControlSender>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(peer, (link, control));
    }

    fn remove(&self, peer: PeerId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }

    /// Takes all links down.
    fn clear(&self) {
        for (_, (link, _)) in self.0.write().unwrap_or_else(PoisonError::into_inner).drain() {
            link.close();
        }
    }

    fn all(&self) -> Vec<Link> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().map(|(link, _)| link.clone()).collect()
    }
}

/// The peer, for those who use it. Cheap to clone. When the last one is dropped, the peer leaves the mesh.
#[derive(Clone, Debug)]
pub(crate) struct NetHandle {
    commands: mpsc::Sender<Command>,
    routes: watch::Receiver<Arc<Routes>>,
    /// Weak, so that events end with the event loop.
    events: broadcast::WeakSender<Event>,
}

/// The peer has shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer has shut down")]
pub struct Closed;

/// Why a peer could not start. Nothing was left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// An address cannot be read.
    #[error("{text:?} is not an address")]
    Address {
        /// The text.
        text: String,
        /// What would be right.
        hint: &'static str,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The encrypted transport could not be set up.
    #[error("cannot set up the transport")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl NetError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Address { hint, .. } => Some((*hint).to_owned()),
            Self::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                Some("another program uses the port: choose another, or 0 for any that is free".into())
            }
            Self::Listen { .. } => Some("choose an address of this machine, or 0.0.0.0:0 for all of them".into()),
            Self::Transport(_) => None,
        }
    }
}

/// Whether such addresses can be: to listen on, and of peers to try first.
///
/// # Errors
/// One of them is nonsense. That somebody else has it, only starting tells.
pub(crate) fn check(listen: &[String], bootstrap: &[String]) -> Result<(), NetError> {
    addresses::read(listen, bootstrap).map(drop)
}

/// Starts a peer. Gives its handle, its links, and the task of the event loop, which ends when the peer has left.
///
/// # Errors
/// An address is nonsense or taken. Discovery that does not work is no error: the status says so.
pub(crate) async fn start(config: NetConfig, links: Links) -> Result<(NetHandle, JoinHandle<()>), NetError> {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (events, _) = broadcast::channel(EVENTS);
    let (ready, listening) = oneshot::channel();
    let watched = events.downgrade();
    let (actor, routes) = actor::Actor::start(config, links, inbox, events, ready)?;
    let task = tokio::spawn(actor.run());
    // With no interface up there is no address to wait for.
    let _ = tokio::time::timeout(FIRST_ADDRESS, listening).await;
    Ok((NetHandle { commands, routes, events: watched }, task))
}

impl NetHandle {
    /// Where sends go now.
    pub(crate) fn routes(&self) -> &watch::Receiver<Arc<Routes>> {
        &self.routes
    }

    /// What happens from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        // After the end: one that is closed already.
        self.events.upgrade().map_or_else(|| broadcast::channel(1).1, |events| events.subscribe())
    }

    /// Hosts a node until the [`KeepAlive`] is dropped.
    pub(crate) async fn add_node(&self, name: NodeName) -> Result<Result<(NodeId, KeepAlive), LimitError>, Closed> {
        let (keep, alive) = oneshot::channel();
        let added = self.ask(|reply| Command::AddNode { name, alive, reply }).await?;
        Ok(added.map(|id| (id, keep)))
    }

    /// Lets a node listen until the [`KeepAlive`] is dropped.
    pub(crate) async fn listen(&self, node: u32, filter: TopicFilter) -> Result<Result<KeepAlive, LimitError>, Closed> {
        let (keep, alive) = oneshot::channel();
        let listening = self.ask(|reply| Command::Listen { node, filter, alive, reply }).await?;
        Ok(listening.map(|()| keep))
    }

    /// Lets a node offer a service until the [`KeepAlive`] is dropped.
    pub(crate) async fn serve(&self, node: u32, service: ServiceName) -> Result<Result<KeepAlive, LimitError>, Closed> {
        let (keep, alive) = oneshot::channel();
        let serving = self.ask(|reply| Command::Serve { node, service, alive, reply }).await?;
        Ok(serving.map(|()| keep))
    }

    pub(crate) async fn peers(&self) -> Result<Vec<PeerInfo>, Closed> {
        self.ask(|reply| Command::Peers { reply }).await
    }

    pub(crate) async fn status(&self) -> Result<Status, Closed> {
        self.ask(|reply| Command::Status { reply }).await
    }

    pub(crate) async fn keys(&self) -> Result<KeyInfo, Closed> {
        self.ask(|reply| Command::Keys { reply }).await
    }

    pub(crate) async fn rotate(&self, grace: Duration, without: Vec<Identity>) -> Result<KeyInfo, RotationError> {
        self.ask(|reply| Command::Rotate { grace, without, reply }).await.map_err(|Closed| RotationError::Closed)?
    }

    pub(crate) async fn reload_keys(&self) -> Result<(), RotationError> {
        self.ask(|reply| Command::ReloadKeys { reply }).await.map_err(|Closed| RotationError::Closed)?
    }

    pub(crate) async fn invite(&self) -> Result<Ticket, Closed> {
        self.ask(|reply| Command::Invite { reply }).await
    }

    /// None of this peer's nodes listens or serves any more, as others see it.
    pub(crate) async fn retire(&self) {
        let _ = self.ask(|reply| Command::Retire { reply }).await; // who has left is not chosen either
    }

    /// Says goodbye to all and ends the event loop.
    pub(crate) async fn leave(&self) {
        let _ = self.ask(|reply| Command::Leave { reply }).await; // closed is what we want
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Closed> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Closed)?;
        answer.await.map_err(|_| Closed)
    }
}

/// Requests that wait for the event loop. When full, who asks waits.
const COMMANDS: usize = 256;
/// Events that a slow watcher may be behind. Beyond, it is told how many it missed.
const EVENTS: usize = 1024;
/// How long a start waits for the system to name an address.
const FIRST_ADDRESS: Duration = Duration::from_millis(500);
