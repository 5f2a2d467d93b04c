//! What is said about files over the local socket.

use serde::{Deserialize, Serialize};

use super::Failure;
use crate::mesh::{FarPlace, FileEvent, FileInfo, FileJob, NodeId, NodeName};

/// Files to be listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListFiles {
    /// Where. Its path may hold `*`, `?`, `[..]` and `**`.
    pub(crate) place: FarPlace,
    /// Everything below, not only what is directly in it.
    #[serde(default)]
    pub(crate) recursive: bool,
    /// Only files whose path in the share matches this regular expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) regex: Option<String>,
}

/// A job to be done with files of this machine and of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MoveFiles {
    pub(crate) job: FileJob,
    /// Whether each file that is done is told. Else only large ones that are begun, and how far all of them are.
    #[serde(default)]
    pub(crate) each: bool,
}

/// A file of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListedFile {
    /// The request that it belongs to.
    pub(crate) id: u64,
    /// Who has it.
    pub(crate) node: NodeId,
    /// That node's name.
    pub(crate) name: NodeName,
    pub(crate) file: FileInfo,
}

/// A part of a request was not done: that of one node. The others go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotDone {
    /// The request that it belongs to.
    pub(crate) id: u64,
    pub(crate) failure: Failure,
}

/// A job makes sense, and is begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobStarted {
    /// The request that it belongs to.
    pub(crate) id: u64,
    /// How many targets there are: places, and nodes that a name means.
    pub(crate) targets: u32,
}

/// Something that happened in a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobEvent {
    /// The request that it belongs to.
    pub(crate) id: u64,
    pub(crate) event: FileEvent,
}
