//! Requests that wait for others, each in a task of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::failures::{SEE_NODES, call_failure, nobody, rotate_failure, send_failure, stopping};
use super::files;
use super::outbox::{Gone, Outbox};
use crate::mesh::{Codec, NodeId, NodeInfo, NodeName, PeerId};
use crate::node::{CallOptions, Callee, Node, PingError, Service};
use crate::wire::control::{
    self as wire, Answer, Answered, Failure, FailureKind, Outcome, Part, Reply, Request, Secret,
};

/// What one client waits for, at most [`MAX_WAITING`] at a time. A client that asks more at once waits for itself.
pub(super) struct Errands {
    room: Arc<Semaphore>,
    /// By request. A client may use an id again as soon as it is answered, when the task has not quite ended.
    tasks: HashMap<u64, SmallVec<[AbortOnDropHandle<()>; 1]>>,
}

impl Default for Errands {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(MAX_WAITING)), tasks: HashMap::new() }
    }
}

impl Errands {
    /// Runs what a request asks for, and answers it by itself.
    pub(super) async fn run(&mut self, id: u64, errand: impl Future<Output = ()> + Send + 'static) -> Result<(), Gone> {
        let place = self.place().await?;
        if self.tasks.len() >= 2 * MAX_WAITING {
            self.tasks.retain(|_, tasks| tasks.iter().any(|task| !task.is_finished()));
        }
        let task = tokio::spawn(async move {
            errand.await;
            drop(place);
        });
        let tasks = self.tasks.entry(id).or_default();
        tasks.retain(|task| !task.is_finished());
        tasks.push(AbortOnDropHandle::new(task));
        Ok(())
    }

    /// A place among what the client waits for. Waits until there is one.
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, Gone> {
        Arc::clone(&self.room).acquire_owned().await.map_err(|_| Gone)
    }

    /// Takes a request back. When this is done, nothing more is said about it.
    pub(super) async fn cancel(&mut self, id: u64) {
        for task in self.tasks.remove(&id).unwrap_or_default() {
            task.abort();
            let _ = task.await; // ended, one way or the other
        }
    }
}

/// The requests that wait for others.
pub(super) async fn patient(node: &Node, id: u64, request: Request, outbox: &Outbox) -> Result<Reply, Failure> {
    match request {
        Request::Rotate { grace, without } => {
            node.rotate_key(grace, &without).await.map(Reply::Keys).map_err(rotate_failure)
        }
        Request::Invite => {
            let ticket = node.invite().await.map_err(|_| stopping())?;
            Ok(Reply::Ticket(Secret::new(ticket.encode())))
        }
        Request::Ping { target, timeout } => {
            let peer = find_peer(node, &target).ok_or_else(|| nobody(&target))?;
            match node.ping(peer, timeout).await {
                Ok(rtt) => Ok(Reply::Pong { peer, rtt_us: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX) }),
                Err(error @ PingError::NotLinked(_)) => {
                    Err(Failure::new(FailureKind::NobodyThere, error).hint(SEE_NODES))
                }
                Err(PingError::TimedOut(_)) => {
                    let message = format!("no answer from {target} within {}", humantime::format_duration(timeout));
                    let hint = "see whether it is still linked with: meshd peers";
                    Err(Failure::new(FailureKind::TimedOut, message).hint(hint))
                }
            }
        }
        Request::WaitForListeners { topic, count, timeout } => {
            let publisher = node.publisher(&topic).map_err(send_failure)?;
            Ok(Reply::Listeners(publisher.wait_for_listeners(count, timeout).await))
        }
        Request::Call(call) => {
            let service = node.service(&call.service).map_err(|error| call_failure(error, &[]))?;
            let options = options(&call)?;
            answered(node, service.with(options), call.codec, call.payload).await.map(Reply::Answered)
        }
        Request::CallAll(call) => call_all(node, id, call, outbox).await,
        Request::WaitForProviders { service, count, timeout } => {
            let service = node.service(&service).map_err(|error| call_failure(error, &[]))?;
            Ok(Reply::Providers(service.wait_for_providers(count, timeout).await.len()))
        }
        Request::Shares { node: of } => files::shares(node, of).await,
        Request::Files(list) => files::list(node, id, list, outbox).await,
        Request::Transfer(job) => files::transfer(node, id, job, outbox).await,
        Request::Services => Ok(Reply::Services(node.services(STATS_PATIENCE).await)),
        other => Err(Failure::new(FailureKind::Usage, format!("{other:?} does not wait"))),
    }
}

/// The peer that is meant by its id, by the id or name of one of its nodes, or by the end of its id that lists show.
fn find_peer(node: &Node, target: &str) -> Option<PeerId> {
    let by_id = target.parse::<PeerId>().ok().or_else(|| target.parse::<NodeId>().ok().map(|node| node.peer));
    by_id.or_else(|| {
        let nodes = node.nodes();
        let named = nodes.iter().find(|node| node.name.as_str() == target);
        named.or_else(|| nodes.iter().find(|node| node.id.peer.short() == target)).map(|node| node.id.peer)
    })
}

/// The daemon that is meant by the id of its peer, or by the id or name of its own node: never by what is attached to it, which
/// could be stopped without it. A daemon's own node is the first of its peer.
pub(super) fn daemon_of(node: &Node, target: &str) -> Result<(NodeId, Option<NodeName>), Failure> {
    let nodes = node.nodes();
    let own = |known: &&NodeInfo| known.id.index == 0;
    let of_peer = |peer| nodes.iter().find(|known| known.id == NodeId { peer, index: 0 });
    let by_id = target.parse::<PeerId>().ok().and_then(of_peer);
    let named = |known: &&NodeInfo| known.id.to_string() == target || known.name.as_str() == target;
    let mut meant: Vec<&NodeInfo> = by_id.into_iter().chain(nodes.iter().filter(named)).collect();
    if meant.is_empty() {
        meant = nodes.iter().filter(own).filter(|known| known.id.peer.short() == target).collect();
    }
    let daemons: Vec<&NodeInfo> = meant.iter().copied().filter(own).collect();
    match (&daemons[..], &meant[..]) {
        ([daemon], _) => Ok((daemon.id, Some(daemon.name.clone()))),
        ([], []) => Err(nobody(target)),
        ([], [attached, ..]) => {
            let daemon =
                of_peer(attached.id.peer).map_or_else(|| attached.id.peer.to_string(), |own| own.name.to_string());
            let message = format!("{target} is a program beside {daemon}, and ends where it was started");
            Err(Failure::new(FailureKind::Usage, message)
                .hint(format!("to stop {daemon} with all beside it: meshd stop {daemon}")))
        }
        _ => {
            let peers: Vec<String> = daemons.iter().map(|daemon| daemon.id.peer.to_string()).collect();
            let message = format!("{} peers are called {target}", peers.len());
            Err(Failure::new(FailureKind::Usage, message).hint(format!("say which: {}", peers.join(", "))))
        }
    }
}

pub(super) fn no_daemon(target: &str) -> Failure {
    Failure::new(FailureKind::NobodyThere, format!("{target} is no daemon that can be stopped from here"))
        .hint("a node within a program ends with that program; a daemon that is about to leave needs no more")
}

/// One call, and how long it took.
async fn answered(node: &Node, service: Service, codec: Codec, payload: Bytes) -> Result<Answered, Failure> {
    let began = now();
    let reply = service.call_bytes(codec, payload).await.map_err(|error| call_failure(error, &node.nodes()))?;
    let latency_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(Answered { node: reply.node, name: reply.name, codec: reply.codec, payload: reply.payload, latency_us })
}

/// Calls all that offer the service now, and passes on what each says when it does.
async fn call_all(node: &Node, id: u64, call: wire::Call, outbox: &Outbox) -> Result<Reply, Failure> {
    if call.callee != wire::Callee::Any {
        return Err(Failure::new(FailureKind::Usage, "a call goes to all nodes or to one")
            .hint("leave the callee out, or make a single call"));
    }
    let service = node.service(&call.service).map_err(|error| call_failure(error, &[]))?;
    let options = options(&call)?;
    let providers = service.providers();
    if providers.is_empty() {
        let error = crate::node::CallError::NoProvider(service.name().clone());
        return Err(call_failure(error, &[]));
    }
    let one = |(provider, name): (NodeId, NodeName)| {
        let service = service.clone().with(CallOptions { callee: Callee::Node(provider), ..options.clone() });
        let payload = call.payload.clone();
        async move { (provider, name, answered(node, service, call.codec, payload).await) }
    };
    let mut calls: FuturesUnordered<_> = providers.into_iter().map(one).collect();
    while let Some((node, name, answer)) = calls.next().await {
        let outcome = answer.map_or_else(Outcome::Failed, Outcome::Answered);
        if outbox.push(&Answer::Part(Part { id, node, name, outcome })).await.is_err() {
            break; // it is gone: the other calls are taken back
        }
    }
    Ok(Reply::Done)
}

pub(super) fn callee(callee: &wire::Callee) -> Result<Callee, Failure> {
    Ok(match callee {
        wire::Callee::Any => Callee::Any,
        wire::Callee::Node(node) => Callee::Node(*node),
        wire::Callee::Group(name) => {
            Callee::Group(NodeName::new(name.as_str()).map_err(|error| Failure::new(FailureKind::Usage, error))?)
        }
    })
}

fn options(call: &wire::Call) -> Result<CallOptions, Failure> {
    let callee = callee(&call.callee)?;
    let (timeout, idempotent, wait_when_busy) = (call.timeout, call.idempotent, call.wait_when_busy);
    Ok(CallOptions { callee, timeout, idempotent, wait_when_busy, key: None })
}

#[expect(clippy::disallowed_methods, reason = "how long a call takes is measured where it is made")]
fn now() -> Instant {
    Instant::now()
}

/// Requests of one client that wait for others at once.
pub(super) const MAX_WAITING: usize = 1024;
/// How long peers may take to tell what their services have done.
const STATS_PATIENCE: Duration = Duration::from_secs(2);
