//! What the rest of the program asks of the event loop.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::keys::{KeyError, RotateError, Ticket};
use crate::mesh::engine::LimitError;
use crate::mesh::{Identity, KeyInfo, NodeId, NodeName, PeerInfo, ServiceName, Status, TopicFilter};

/// One request to the event loop. Each is answered on `reply`; a reply that nobody waits for is dropped.
#[derive(Debug)]
pub(super) enum Command {
    /// Host a node until `alive` is dropped.
    AddNode {
        name: NodeName,
        alive: Alive,
        reply: oneshot::Sender<Result<NodeId, LimitError>>,
    },
    /// Let the node listen until `alive` is dropped.
    Listen {
        node: u32,
        filter: TopicFilter,
        alive: Alive,
        reply: oneshot::Sender<Result<(), LimitError>>,
    },
    /// Let the node offer a service until `alive` is dropped.
    Serve {
        node: u32,
        service: ServiceName,
        alive: Alive,
        reply: oneshot::Sender<Result<(), LimitError>>,
    },
    Peers {
        reply: oneshot::Sender<Vec<PeerInfo>>,
    },
    Status {
        reply: oneshot::Sender<Status>,
    },
    Keys {
        reply: oneshot::Sender<KeyInfo>,
    },
    Rotate {
        grace: Duration,
        without: Vec<Identity>,
        reply: oneshot::Sender<Result<KeyInfo, RotationError>>,
    },
    ReloadKeys {
        reply: oneshot::Sender<Result<(), RotationError>>,
    },
    Invite {
        reply: oneshot::Sender<Ticket>,
    },
    /// Let no node listen or serve any more.
    Retire {
        reply: oneshot::Sender<()>,
    },
    /// Say goodbye and end.
    Leave {
        reply: oneshot::Sender<()>,
    },
}

/// The end that the event loop holds of what a handle holds: it learns of the handle's end without the handle doing
/// anything in its `drop`.
pub(super) type Alive = oneshot::Receiver<std::convert::Infallible>;

/// Held by a handle for as long as what it stands for is wanted.
pub(crate) type KeepAlive = oneshot::Sender<std::convert::Infallible>;

/// Why the keys did not change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotationError {
    /// The request makes no sense. Nothing changed.
    #[error(transparent)]
    Refused(#[from] RotateRefused),
    /// The keys could not be read or written.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// It would exclude the machine that it is made on. Nothing changed.
    #[error("a rotation cannot exclude the machine that makes it")]
    Oneself,
    /// The peer has no home directory to read keys from.
    #[error("this peer has no home to read keys from")]
    NoHome,
    /// The peer has shut down.
    #[error("the peer has shut down")]
    Closed,
}

/// Why a rotation was refused: see the message and [`RotationError::hint`].
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RotateRefused(#[from] RotateError);

impl RotationError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(RotateRefused(error)) => Some(error.hint()),
            Self::Keys(error) => error.hint(),
            Self::Oneself => Some("run it on a machine that stays in the mesh".into()),
            Self::NoHome | Self::Closed => None,
        }
    }
}
