//! What clients are told when something is not done.

use crate::RotationError;
use crate::files::FileError;
use crate::mesh::{self, NodeId, NodeInfo, NodeName, NotAllowed, RemoteFailure};
use crate::node::{AdoptError, CallError, ChannelError, ListenError, OpenError, SendError};
use crate::socket::SocketError;
use crate::wire::control::{Failure, FailureKind, Remote};

pub(super) fn stopping() -> Failure {
    Failure::new(FailureKind::Stopping, "the daemon is stopping").hint("start it again with: meshd run")
}

pub(super) fn misunderstood(error: &SocketError, hint: &str) -> Failure {
    let kind = if matches!(error, SocketError::TooLong(_)) { FailureKind::Refused } else { FailureKind::Usage };
    Failure::new(kind, error).hint(hint)
}

pub(super) fn nobody(target: &str) -> Failure {
    Failure::new(FailureKind::NobodyThere, format!("there is no peer or node {target}")).hint(SEE_NODES)
}

pub(super) fn listen_failure(error: ListenError) -> Failure {
    match error {
        ListenError::Name(error) => Failure::new(FailureKind::Usage, error),
        ListenError::Limit(error) => Failure::new(FailureKind::Refused, error),
        ListenError::Closed(_) => stopping(),
    }
}

pub(super) fn send_failure(error: SendError) -> Failure {
    match error {
        SendError::Topic(error) => Failure::new(FailureKind::Usage, error),
        SendError::TooLarge { .. } => Failure::new(FailureKind::Refused, error).hint(TOO_LARGE),
        SendError::Closed => stopping(),
        SendError::Encode(_) => Failure::new(FailureKind::Failed, error),
    }
}

pub(super) fn rotate_failure(error: RotationError) -> Failure {
    let kind = match error {
        RotationError::Closed => return stopping(),
        RotationError::Refused(_) | RotationError::Oneself => FailureKind::Refused,
        RotationError::Keys(_) | RotationError::NoHome => FailureKind::Failed,
    };
    Failure { hint: error.hint(), ..Failure::new(kind, error) }
}

/// Nobody there or refused: the call did not run. Timed out: it may have. Failed with what the service said: it ran.
/// Failed without: the link was lost, so it may have run.
pub(super) fn call_failure(error: CallError, nodes: &[NodeInfo]) -> Failure {
    let kind = match &error {
        CallError::NoProvider(_) | CallError::NoSuchNode(_) | CallError::NotOffered { .. } => FailureKind::NobodyThere,
        CallError::Busy(_) | CallError::TooLarge { .. } | CallError::Refused { .. } => FailureKind::Refused,
        CallError::TimedOut(_) => FailureKind::TimedOut,
        CallError::Name(_) | CallError::NotCalled(_) => FailureKind::Usage,
        CallError::Closed => return stopping(),
        _ => FailureKind::Failed,
    };
    let failure = Failure::new(kind, &error);
    match error {
        CallError::NoProvider(_) | CallError::NoSuchNode(_) | CallError::NotOffered { .. } => {
            failure.hint(SEE_SERVICES)
        }
        CallError::Busy(_) => failure.hint("nothing ran: try again later, or have more nodes serve it"),
        CallError::TooLarge { .. } => failure.hint(TOO_LARGE),
        CallError::TimedOut(after) => {
            let message = format!("no reply within {}: it may have run", humantime::format_duration(after));
            Failure::new(kind, message)
                .hint("wait longer with a longer timeout; see how long calls take with: meshd services")
        }
        CallError::Disconnected(_) => {
            let message = format!("{error}: it may have run");
            Failure::new(kind, message).hint("if it may run twice, call again; --idempotent does so by itself")
        }
        CallError::NotCalled(service) => {
            failure.hint(format!("for replies as they come: meshd call --stream {service}"))
        }
        CallError::Refused { .. } => failure.hint(NotAllowed::HINT),
        CallError::Remote(failed) => {
            let refused = failed.failure.kind == mesh::Failure::REFUSED;
            let name = nodes.iter().find(|known| known.id == failed.node).map(|known| known.name.clone());
            let failure = remote(failed, name);
            if refused {
                return Failure { kind: FailureKind::Refused, ..failure }.hint(NotAllowed::HINT);
            }
            failure.hint("it ran there and failed; what it says comes from there")
        }
        _ => failure,
    }
}

/// What the other end of a call or channel said.
fn remote(RemoteFailure { node, failure: said }: RemoteFailure, name: Option<NodeName>) -> Failure {
    let at = name.as_ref().map_or_else(|| node.to_string(), ToString::to_string);
    let message = format!("{} at {at}: {said}", said.kind);
    let remote = Remote { node, name, kind: said.kind, message: said.message, causes: said.causes };
    Failure { remote: Some(Box::new(remote)), ..Failure::new(FailureKind::Failed, message) }
}

pub(super) fn open_failure(error: OpenError) -> Failure {
    let kind = match &error {
        OpenError::NoProvider(_) | OpenError::NoSuchNode(_) | OpenError::NotOffered { .. } => FailureKind::NobodyThere,
        OpenError::Busy(_) | OpenError::TooMany(_) | OpenError::TooLarge { .. } | OpenError::Refused { .. } => {
            FailureKind::Refused
        }
        OpenError::TimedOut(_) => FailureKind::TimedOut,
        OpenError::Called(_) | OpenError::Name(_) => FailureKind::Usage,
        OpenError::Closed => return stopping(),
        _ => FailureKind::Failed,
    };
    let failure = Failure::new(kind, &error);
    match error {
        OpenError::NoProvider(_) | OpenError::NoSuchNode(_) | OpenError::NotOffered { .. } => {
            failure.hint(SEE_SERVICES)
        }
        OpenError::Refused { .. } => failure.hint(NotAllowed::HINT),
        OpenError::Busy(_) => failure.hint("try again later, or have more nodes offer it"),
        OpenError::TooMany(_) => failure.hint("close some first"),
        OpenError::TooLarge { .. } => failure.hint(TOO_LARGE),
        OpenError::TimedOut(after) => {
            let message = format!("no answer within {}", humantime::format_duration(after));
            Failure::new(kind, message).hint("wait longer with a longer timeout")
        }
        OpenError::Called(service) => failure.hint(format!("it gives one reply: meshd call {service}")),
        _ => failure,
    }
}

pub(super) fn adopt_failure(error: AdoptError) -> Failure {
    let kind = match error {
        AdoptError::NotThere(_) => FailureKind::NobodyThere,
        AdoptError::TooMany(_) => FailureKind::Refused,
        AdoptError::TimedOut(_) => FailureKind::TimedOut,
        _ => FailureKind::Failed,
    };
    Failure::new(kind, error)
}

/// Why an item was not sent, or a channel ended out of order. The name is of the node at the other end.
pub(super) fn channel_failure(error: ChannelError, name: impl FnOnce(NodeId) -> Option<NodeName>) -> Failure {
    match error {
        ChannelError::Failed(failed) => {
            let name = name(failed.node);
            remote(failed, name)
        }
        ChannelError::Shutdown => stopping(),
        ChannelError::TooLarge { .. } => Failure::new(FailureKind::Refused, error).hint(TOO_LARGE),
        _ => Failure::new(FailureKind::Failed, error),
    }
}

/// What is refused, missing or senseless was not begun. What was lost goes on when it is asked for again.
pub(super) fn file_failure(error: FileError) -> Failure {
    let (kind, hint) = match &error {
        FileError::NoSuchNode(_) => (FailureKind::NobodyThere, "see who shares what with: meshd ls"),
        FileError::Refused { .. } => (FailureKind::Refused, "config.toml there decides: [[share]], and [[allow]]"),
        FileError::NotThere { .. } => (FailureKind::Failed, "see what is there with: meshd ls NODE[:SHARE]"),
        FileError::Lost { .. } => (FailureKind::TimedOut, "what has come is kept: the same command goes on from there"),
        FileError::Far { .. } => (FailureKind::Failed, "it is about the disk or the permissions there"),
        FileError::Here { path, source } => {
            let failure = Failure::new(FailureKind::Failed, format!("{}: {source}", path.display()));
            return failure.hint("files here are read and written by the daemon, as the user who runs it");
        }
        FileError::Pattern(_) | FileError::Usage(_) | FileError::Path(_) => {
            (FailureKind::Usage, "see: meshd get --help, meshd put --help, meshd sync --help")
        }
        FileError::Closed => return stopping(),
    };
    Failure::new(kind, error).hint(hint)
}

pub(super) const SEE_NODES: &str = "see who is there with: meshd nodes";
const SEE_SERVICES: &str = "see who offers what with: meshd services";
pub(super) const TOO_LARGE: &str = "send less at once, or raise limits.message_bytes in config.toml on both sides";
pub(super) const NOT_OURS: &str = "docs/LOCAL.md describes what the daemon understands";
