//! A node that has the files: asked by calls, waited for when it is lost.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::FileError;
use super::trouble::{Kind, Trouble};
use super::words::{self, Answer, Ask, Asked, LISTS, ListAsked, SERVICE};
use crate::mesh::{Codec, FileEvent, Identity, Item, NodeId, NodeName, PeerId};
use crate::node::{CallError, CallOptions, Callee, Channel, ChannelError, Node, OpenOptions};

/// One node.
pub(super) struct Far {
    node: Node,
    name: NodeName,
    /// It was meant by its name: one that restarted is the same, although its id is another.
    by_name: bool,
    identity: Option<Identity>,
    now: Mutex<NodeId>,
    /// All that are in use: none stands in for another.
    taken: Arc<Mutex<BTreeSet<NodeId>>>,
    waiting: tokio::sync::Mutex<()>,
    teller: Option<Teller>,
}

/// Where it is said what happens to one target.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    pub(super) target: u32,
    pub(super) events: mpsc::Sender<Result<FileEvent, FileError>>,
}

impl Teller {
    /// Waits until there is room: who does not read what happens holds it up. Nobody reads it any more: it ends anyway.
    pub(super) async fn tell(&self, event: FileEvent) {
        let _ = self.events.send(Ok(event)).await;
    }
}

/// The nodes that share files and have that id or name, or are at that peer.
///
/// # Errors
/// There is none.
pub(super) fn nodes(node: &Node, wanted: &str) -> Result<(Vec<(NodeId, NodeName)>, bool), FileError> {
    let none = || FileError::NoSuchNode(wanted.to_owned());
    let service = node.service(SERVICE).map_err(|_| none())?;
    let mut all = service.providers();
    let by_name = match (wanted.parse::<NodeId>(), wanted.parse::<PeerId>()) {
        (Ok(id), _) => {
            all.retain(|(known, _)| *known == id);
            false
        }
        (_, Ok(peer)) => {
            all.retain(|(known, _)| known.peer == peer);
            false
        }
        _ => {
            all.retain(|(_, name)| name.as_str() == wanted);
            true
        }
    };
    all.sort_unstable_by_key(|(id, _)| *id);
    if all.is_empty() { Err(none()) } else { Ok((all, by_name)) }
}

impl Far {
    pub(super) fn new(
        node: &Node,
        (id, name): (NodeId, NodeName),
        by_name: bool,
        taken: &Arc<Mutex<BTreeSet<NodeId>>>,
        teller: Option<Teller>,
    ) -> Self {
        taken.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        let identity = node.identity_of(id.peer);
        let (taken, waiting) = (Arc::clone(taken), tokio::sync::Mutex::default());
        Self { node: node.clone(), name, by_name, identity, now: Mutex::new(id), taken, waiting, teller }
    }

    pub(super) fn name(&self) -> &NodeName {
        &self.name
    }

    pub(super) fn id(&self) -> NodeId {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and if the node is lost meanwhile and it `waits`, asks again when it is back: all that is asked may be done twice.
    pub(super) async fn ask(
        &self,
        share: &str,
        ask: Ask,
        data: Bytes,
        waits: bool,
    ) -> Result<(Answer, Bytes), Trouble> {
        let payload = words::pack(data, &Asked { share: share.to_owned(), ask })?;
        let mut tries = 0;
        loop {
            let id = self.id();
            match self.once(id, payload.clone()).await {
                Err(trouble) if trouble.kind == Kind::Lost && waits && tries < TRIES => self.back(id).await?,
                done => return done,
            }
            tries += 1;
        }
    }

    async fn once(&self, id: NodeId, payload: Bytes) -> Result<(Answer, Bytes), Trouble> {
        let options = CallOptions {
            callee: Callee::Node(id),
            timeout: Some(ANSWER_TAKES),
            wait_when_busy: true,
            ..CallOptions::default()
        };
        let service = self.node.service(SERVICE).map_err(|error| self.trouble(error))?.with(options);
        let reply = service.call_bytes(Codec::Bytes, payload).await.map_err(|error| self.trouble(error))?;
        words::unpack(reply.payload)
    }

    fn trouble(&self, error: CallError) -> Trouble {
        match error {
            CallError::Remote(remote) => Trouble::from_failure(remote.failure),
            CallError::Closed => Trouble::new(Kind::Closed, error.to_string()),
            CallError::NoProvider(_)
            | CallError::NoSuchNode(_)
            | CallError::NotOffered { .. }
            | CallError::Busy(_)
            | CallError::TimedOut(_)
            | CallError::Disconnected(_) => Trouble::new(Kind::Lost, format!("{} is lost: {error}", self.name)),
            _ => Trouble::new(Kind::Failed, error.to_string()),
        }
    }

    /// Opens a channel on which a list comes.
    pub(super) async fn list(&self, asked: &ListAsked) -> Result<Channel, Trouble> {
        let request = Item { codec: Codec::Bytes, payload: words::encode(asked)?.into() };
        let options = OpenOptions { callee: Callee::Node(self.id()), request, ..OpenOptions::default() };
        let opened = self.node.open_with(LISTS, options).await;
        opened.map_err(|error| Trouble::new(Kind::Lost, format!("{} is lost: {error}", self.name)))
    }

    /// What it means that a channel does not go on.
    pub(super) fn list_trouble(&self, error: ChannelError) -> Trouble {
        match error {
            ChannelError::Failed(remote) if remote.failure.kind != "disconnected" => {
                Trouble::from_failure(remote.failure)
            }
            ChannelError::Shutdown => Trouble::new(Kind::Closed, error.to_string()),
            error => Trouble::new(Kind::Lost, format!("{} is lost: {error}", self.name)),
        }
    }

    /// Waits until the node can be asked again.
    ///
    /// # Errors
    /// It has not come back in time.
    pub(super) async fn back(&self, lost: NodeId) -> Result<(), Trouble> {
        let _one_waits_for_all = self.waiting.lock().await;
        if self.id() != lost {
            return Ok(());
        }
        let began = Instant::now();
        tokio::time::sleep(LOOK_EVERY).await; // who was lost a moment ago may still be listed
        let mut told = false;
        loop {
            if self.find(lost, began.elapsed() > STANDS_IN) {
                return Ok(());
            }
            if let Some(teller) = self.teller.as_ref().filter(|_| !told) {
                told = true;
                teller.tell(FileEvent::Waiting { target: teller.target, node: self.name.clone() }).await;
            }
            if began.elapsed() > PATIENCE {
                return Err(Trouble::new(Kind::Lost, format!("{} was lost and did not come back", self.name)));
            }
            tokio::time::sleep(LOOK_EVERY).await; // then looks again; PATIENCE ends it
        }
    }

    /// Whether it is there, under its id or, if it was meant by name, as one that is new.
    fn find(&self, lost: NodeId, others_too: bool) -> bool {
        let Ok(service) = self.node.service(SERVICE) else { return false };
        let providers = service.providers();
        if providers.iter().any(|(id, _)| *id == lost) {
            return true;
        }
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |(id, name): &&(NodeId, NodeName)| {
            let is_it = self.identity.is_some() && self.node.identity_of(id.peer) == self.identity;
            self.by_name && *name == self.name && !taken.contains(id) && (is_it || others_too)
        };
        let found = providers.iter().find(fits).map(|(id, _)| *id);
        if let Some(id) = found {
            taken.remove(&lost);
            taken.insert(id);
            *self.now.lock().unwrap_or_else(PoisonError::into_inner) = id;
        }
        found.is_some()
    }
}

impl fmt::Debug for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Far").field("name", &self.name).field("now", &self.id()).finish_non_exhaustive()
    }
}

/// How long a node that was lost is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a node is asked that is there, and is lost each time: for as long, about.
pub(super) const TRIES: usize = 1000;
/// After that, a new node of the name is taken for the lost one, though its identity is another: it may have none that lasts.
const STANDS_IN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The longest that is asked for is the hash of a file of terabytes; who is lost is noticed by the link, long before.
const ANSWER_TAKES: Duration = Duration::from_secs(3600);
