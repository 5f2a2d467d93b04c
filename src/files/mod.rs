//! Files: shares, and what moves files between them and directories here.

use std::time::Duration;

mod error;

pub use self::error::{FileError, ShareError};
use crate::config::ShareConfig;
use crate::mesh::{FarPlace, FileEvent, FileInfo, FileJob, NodeId, NodeName, ShareInfo};
use crate::node::Node;

/// The shares of a node. Dropping it ends them: transfers under way find nobody.
#[derive(Debug)]
pub struct Sharing {}

/// The files that were asked for, as they come.
#[derive(Debug)]
pub struct Listing {}

/// A job with files that runs. Dropping it stops the job; what is verified stays, and the same job goes on from there.
#[derive(Debug)]
pub struct Transfer {}

impl Node {
    /// Offers directories of this machine to the mesh, as `meshd.files`. Paths are taken as they are. With no shares, whoever
    /// asks is told that there are none.
    ///
    /// # Errors
    /// A name is not one or comes twice, the node shares already, or the process has left the mesh. A directory that cannot be
    /// opened is no error: who asks for it is told.
    pub async fn share(&self, shares: Vec<ShareConfig>) -> Result<Sharing, ShareError> {
        drop(shares);
        Ok(Sharing {})
    }

    /// All shares of the nodes of that name or id, or of all nodes; each has `patience` to answer.
    ///
    /// # Errors
    /// There is no such node, or it refuses. Among all nodes, those that do not answer are passed over.
    pub async fn shares(&self, node: Option<&str>, patience: Duration) -> Result<Vec<ShareInfo>, FileError> {
        drop(patience);
        Err(FileError::NoSuchNode(node.unwrap_or("*").to_owned()))
    }

    /// Lists files of a share: what the path names, or what is in the directory that it names; with `recursive`, all below.
    /// Paths are those within the share. `regex` selects files by their path below what the place names.
    ///
    /// # Errors
    /// The pattern or the regular expression is none, or there is no such node.
    pub fn list_files(&self, place: &FarPlace, recursive: bool, regex: Option<&str>) -> Result<Listing, FileError> {
        let _ = (recursive, regex);
        Err(FileError::NoSuchNode(place.node.clone()))
    }

    /// Starts a job with files.
    ///
    /// # Errors
    /// The job makes no sense, or there is no such node.
    pub fn transfer(&self, job: FileJob) -> Result<Transfer, FileError> {
        drop(job);
        Err(FileError::Usage("nothing to do".to_owned()))
    }
}

impl Listing {
    /// The next file, and who has it. An error ends the list of one node; others go on. `None` at the end.
    ///
    /// # Cancel safety
    /// No file is lost.
    pub async fn next(&mut self) -> Option<Result<(NodeId, NodeName, FileInfo), FileError>> {
        None
    }
}

impl Transfer {
    /// What happens next. An error ends one target, or what is got from there; others go on. `None` at the end.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub async fn next(&mut self) -> Option<Result<FileEvent, FileError>> {
        None
    }
}
