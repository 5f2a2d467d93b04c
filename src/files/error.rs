//! Why files are not listed or moved.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::mesh::BadPath;
use crate::node::ListenError;

/// Why files were not listed, or a job with files came to nothing, at one node or at all. What was verified is kept where it
/// was to go: the same job goes on from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// No node of that name or id can be reached that shares files. Nothing was done.
    #[error("there is no node {0} that shares files")]
    NoSuchNode(String),
    /// The node does not allow it. The text names the rule or the setting.
    #[error("{node} refuses: {why}")]
    Refused {
        /// Who refuses.
        node: String,
        /// By what.
        why: String,
    },
    /// The node has no such share, or nothing of that path in it.
    #[error("{node}: {what}")]
    NotThere {
        /// Who was asked.
        node: String,
        /// What there is not.
        what: String,
    },
    /// The node was lost, and has not come back in that time. What it has, or what came from it, is kept.
    #[error("{node} was lost and did not come back within {waited:?}")]
    Lost {
        /// Who.
        node: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The node cannot do it: its disk, its permissions. The text is its own.
    #[error("{node} failed: {message}")]
    Far {
        /// Who.
        node: String,
        /// What it says.
        message: String,
    },
    /// A file or directory of this machine.
    #[error("{}", path.display())]
    Here {
        /// Which.
        path: PathBuf,
        /// What is the matter.
        source: io::Error,
    },
    /// A regular expression or a pattern is none. Nothing was done.
    #[error("{0}")]
    Pattern(String),
    /// The job makes no sense. Nothing was done.
    #[error("{0}")]
    Usage(String),
    /// A path is none. Nothing was done.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// The process has left the mesh.
    #[error("the peer has shut down")]
    Closed,
}

/// Why a node does not share.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// The name of a share is one part, without `/` and `:`.
    #[error("'{0}' names no share: it is not empty, '.' or '..', and has no '/', ':' or control characters")]
    Name(String),
    /// Two shares have one name.
    #[error("two shares are named '{0}'")]
    Twice(String),
    /// The node shares already, or the process has left the mesh.
    #[error(transparent)]
    Listen(#[from] ListenError),
}
