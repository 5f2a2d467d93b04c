//! Files: shares, and what moves files between them and directories here.
//!
//! `store` answers what is asked about the files of one directory, `words` are the questions; `share` answers for a node's shares
//! over the mesh, `place` asks there or here alike. A `job` is done leg by leg (`target`): `compare` reads the lists of both sides
//! (`walk`), `moving` moves what differs. `tree` is the only way to files, `partial` what is not whole yet, `chunks` the arithmetic.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

mod chunks;
mod compare;
mod error;
mod far;
mod job;
mod moving;
mod partial;
mod place;
mod share;
mod store;
mod target;
mod tree;
mod trouble;
mod walk;
mod words;

pub use self::error::{FileError, ShareError};
use self::far::Far;
use self::job::Job;
use self::place::Place;
use self::walk::{Found, Wanted};
use self::words::{Answer, Ask, Purpose};
use crate::config::ShareConfig;
use crate::mesh::{FarPlace, FileEvent, FileInfo, FileJob, FileKind, NodeId, NodeName, ShareInfo};
use crate::node::{ChannelService, Node, Serving};

/// Whether a node could share these.
///
/// # Errors
/// A name is not one or comes twice.
pub(crate) fn check(shares: &[ShareConfig]) -> Result<(), ShareError> {
    share::named(shares.to_vec()).map(drop)
}

/// The shares of a node. Dropping it ends them: transfers under way find nobody.
#[derive(Debug)]
pub struct Sharing {
    _serving: Serving,
    _lists: ChannelService,
    _tidy: AbortOnDropHandle<()>,
}

/// The files that were asked for, as they come.
#[derive(Debug)]
pub struct Listing {
    files: mpsc::Receiver<Result<(NodeId, NodeName, FileInfo), FileError>>,
    _task: AbortOnDropHandle<()>,
}

/// A job with files that runs. Dropping it stops the job; what is verified stays, and the same job goes on from there.
///
/// What happens has to be read: a job does not go on while 1024 events wait.
#[derive(Debug)]
pub struct Transfer {
    targets: u32,
    events: mpsc::Receiver<Result<FileEvent, FileError>>,
    _task: AbortOnDropHandle<()>,
}

impl Node {
    /// Offers directories of this machine to the mesh, as `meshd.files`. Paths are taken as they are. With no shares, whoever
    /// asks is told that there are none.
    ///
    /// # Errors
    /// A name is not one or comes twice, the node shares already, or the process has left the mesh. A directory that cannot be
    /// opened is no error: who asks for it is told.
    pub async fn share(&self, shares: Vec<ShareConfig>) -> Result<Sharing, ShareError> {
        share::share(self, shares).await
    }

    /// All shares of the nodes of that name or id, or of all nodes; each has `patience` to answer.
    ///
    /// # Errors
    /// There is no such node, or none of them has shares. Among several, those that have none, or do not answer, are passed over.
    pub async fn shares(&self, node: Option<&str>, patience: Duration) -> Result<Vec<ShareInfo>, FileError> {
        let (nodes, _) = match node {
            Some(node) => far::nodes(self, node)?,
            None => (self.service(words::SERVICE).map_err(|_| FileError::Closed)?.providers(), false),
        };
        let asked = nodes.into_iter().map(|(id, name)| async move {
            let far = Far::new(self, (id, name.clone()), false, &Arc::default(), None);
            let answer = timeout(patience, far.ask("", Ask::Shares, Bytes::new(), false)).await;
            match answer {
                Ok(Ok((Answer::Shares(shares), _))) => Ok(shares
                    .into_iter()
                    .map(|(share, mode)| ShareInfo { node: id, name: name.clone(), share, mode })
                    .collect::<Vec<_>>()),
                Ok(Ok(_)) => Err(place::unexpected().of(name.to_string())),
                Ok(Err(trouble)) => Err(trouble.of(name.to_string())),
                Err(_) => Err(FileError::Lost { node: name.to_string(), waited: patience }),
            }
        });
        let (mut shares, mut why) = (Vec::new(), None);
        for answer in futures::future::join_all(asked).await {
            match answer {
                Ok(more) => shares.extend(more),
                Err(error) => why = why.or(Some(error)),
            }
        }
        shares.sort_unstable_by(|a, b| (&a.name, a.node, &a.share).cmp(&(&b.name, b.node, &b.share)));
        match why {
            Some(error) if shares.is_empty() && node.is_some() => Err(error),
            _ => Ok(shares),
        }
    }

    /// Lists files of a share: what the path names, or what is in the directory that it names; with `recursive`, all below.
    /// Paths are those within the share, links resolved. `regex` selects files by their path below what the place names.
    ///
    /// # Errors
    /// The regular expression is none, or there is no such node.
    pub fn list_files(&self, place: &FarPlace, recursive: bool, regex: Option<&str>) -> Result<Listing, FileError> {
        let regex = job::expression(regex)?;
        let (nodes, by_name) = far::nodes(self, &place.node)?;
        let (tell, files) = mpsc::channel(EVENTS);
        let (node, place) = (self.clone(), place.clone());
        let task = tokio::spawn(async move {
            let taken = Arc::new(Mutex::new(BTreeSet::new()));
            for (id, name) in nodes {
                let far = Arc::new(Far::new(&node, (id, name.clone()), by_name, &taken, None));
                let there = Place::There(Arc::clone(&far), place.share.clone());
                let listed = list(&far, &there, &place, recursive, regex.as_ref(), &tell);
                if let Err(trouble) = listed.await {
                    let _ = tell.send(Err(trouble.of(name.to_string()))).await; // as above
                }
            }
        });
        Ok(Listing { files, _task: AbortOnDropHandle::new(task) })
    }

    /// Starts a job with files.
    ///
    /// # Errors
    /// The job makes no sense, or there is no such node.
    pub fn transfer(&self, job: FileJob) -> Result<Transfer, FileError> {
        let job = Job::new(self, job)?;
        let (tell, events) = mpsc::channel(EVENTS);
        let targets = job.targets();
        Ok(Transfer { targets, events, _task: AbortOnDropHandle::new(tokio::spawn(job.run(tell))) })
    }
}

/// Tells all that a place names. Of a directory, what is in it.
async fn list(
    far: &Far,
    there: &Place,
    place: &FarPlace,
    recursive: bool,
    regex: Option<&regex::bytes::Regex>,
    tell: &mpsc::Sender<Result<(NodeId, NodeName, FileInfo), FileError>>,
) -> Result<(), trouble::Trouble> {
    let looked = there.look(&place.path, Purpose::Get, true).await?;
    let is_directory = looked.info.is_some_and(|info| info.kind == FileKind::Directory);
    let leaf = looked.root.split().map(|(_, leaf)| leaf.to_owned()).unwrap_or_default();
    let wanted = Wanted { root: looked.root.clone(), pattern: looked.pattern, recursive, ..Wanted::default() };
    let mut files = there.list(Purpose::Get, wanted, true);
    while let Some(found) = files.next().await? {
        match found {
            Found::File(info) if info.path.is_root() && is_directory => {}
            Found::File(info) => {
                let below = if info.path.is_root() { &leaf } else { info.path.as_bytes() };
                let selected = regex.is_none_or(|regex| info.kind != FileKind::Directory && regex.is_match(below));
                let path = looked.root.join(&info.path);
                if selected && tell.send(Ok((far.id(), far.name().clone(), FileInfo { path, ..info }))).await.is_err() {
                    return Ok(()); // nobody wants it any more
                }
            }
            Found::Unread(path, why) => {
                let text = format!("{}: {why}", looked.root.join(&path));
                return Err(trouble::Trouble::new(trouble::Kind::Failed, text));
            }
        }
    }
    Ok(())
}

impl Listing {
    /// The next file, and who has it. An error ends the list of one node; others go on. `None` at the end.
    ///
    /// # Cancel safety
    /// No file is lost.
    pub async fn next(&mut self) -> Option<Result<(NodeId, NodeName, FileInfo), FileError>> {
        self.files.recv().await
    }
}

impl Transfer {
    /// How many targets it has: places, and nodes that a name means.
    #[must_use]
    pub fn targets(&self) -> u32 {
        self.targets
    }

    /// What happens next. An error ends one target, or what is got from there; others go on. `None` at the end.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub async fn next(&mut self) -> Option<Result<FileEvent, FileError>> {
        self.events.recv().await
    }
}

/// Events, or files of a list, that wait to be read.
const EVENTS: usize = 1024;
