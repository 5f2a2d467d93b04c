//! Stopping when somebody asks: a program of this machine, or a peer that may.

use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::errands::{daemon_of, no_daemon};
use super::failures::call_failure;
use crate::mesh::{self, Action, Codec, NodeId};
use crate::node::{CallError, CallOptions, Callee, ListenError, Node, Request, ServeOptions, Serving};
use crate::wire::control::{Failure, FailureKind, Reply};

/// Lets peers that may stop this daemon: each is answered first. Until dropped.
pub(super) async fn offer(node: &Node, wanted: CancellationToken) -> Result<Serving, ListenError> {
    let me = node.clone();
    let handler = move |request: Request| {
        let answer = answer(&me, &request, &wanted);
        async move { answer.map(|()| (Codec::Bytes, Bytes::new())) }
    };
    node.serve_requests(SERVICE, ServeOptions::default(), handler).await
}

fn answer(me: &Node, request: &Request, wanted: &CancellationToken) -> Result<(), mesh::Failure> {
    let peer = request.from.peer;
    // A refusal is logged where all are, so often and no more.
    me.permits(peer, Action::Stop, me.name().as_str())
        .map_err(|refusal| mesh::Failure::new(mesh::Failure::REFUSED, refusal.to_string()))?;
    let identity = me.identity_of(peer).map_or_else(|| "unknown".to_owned(), |identity| identity.to_string());
    info!(%peer, identity, "another peer wants this daemon to stop");
    wanted.cancel(); // the drain that follows waits for this answer
    Ok(())
}

/// Asks a daemon elsewhere to stop. If it is this one that is meant, the caller has to see to that: once it has replied.
pub(super) async fn stop(node: &Node, here: NodeId, target: Option<&str>) -> Result<Reply, Failure> {
    let (id, name) = match target {
        Some(target) => daemon_of(node, target)?,
        None => (here, node.nodes().into_iter().find(|known| known.id == here).map(|known| known.name)),
    };
    let stopping = Reply::Stopping { node: id, name: name.clone() };
    if id.peer == here.peer {
        return Ok(stopping);
    }
    let options = CallOptions { callee: Callee::Node(id), timeout: Some(PATIENCE), ..CallOptions::default() };
    let service = node.service(SERVICE).map_err(|error| call_failure(error, &[]))?.with(options);
    let shown = name.map_or_else(|| id.peer.to_string(), |name| name.to_string());
    match service.call_bytes(Codec::Bytes, Bytes::new()).await {
        Ok(_) => Ok(stopping),
        Err(CallError::Remote(failed)) if failed.failure.kind == mesh::Failure::REFUSED => {
            let message = format!("{shown} may not be stopped from here: {}", failed.failure.message);
            let hint = format!(
                "whoever runs {shown} can allow it in its config.toml: [[allow]] action = [\"stop\"], who = [\"{}\"], \
                 pattern = \"**\"",
                node.identity()
            );
            Err(Failure::new(FailureKind::Refused, message).hint(hint))
        }
        Err(CallError::NotOffered { .. } | CallError::NoSuchNode(_) | CallError::NoProvider(_)) => {
            Err(no_daemon(&shown))
        }
        Err(error) => Err(call_failure(error, &node.nodes())),
    }
}

/// What daemons are asked by. Its name is reserved, and not listed.
const SERVICE: &str = "meshd.stop";
/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
