//! Files for clients: what is shared here, and jobs that the daemon does for them.

use std::path::Path;
use std::time::Duration;

use tracing::warn;

use super::failures::file_failure;
use super::outbox::{Gone, Outbox};
use crate::config::ShareConfig;
use crate::files::{ShareError, Sharing};
use crate::mesh::FileEvent;
use crate::node::Node;
use crate::wire::control::{Answer, Failure, JobEvent, JobStarted, ListFiles, ListedFile, MoveFiles, NotDone, Reply};

/// Shares what the settings say, as long as the guard lives. Relative paths start at `dir`.
pub(super) async fn share(node: &Node, shares: &[ShareConfig], dir: &Path) -> Result<Sharing, ShareError> {
    let absolute = |share: &ShareConfig| ShareConfig { path: dir.join(&share.path), ..share.clone() };
    let shares: Vec<_> = shares.iter().map(absolute).collect();
    for ShareConfig { name, path, .. } in &shares {
        // It may be there later: a disk that is not mounted yet is no reason not to start.
        if !path.is_dir() {
            warn!(share = name, path = %path.display(), "there is no such directory: who asks for this share is refused");
        }
    }
    node.share(shares).await
}

pub(super) async fn shares(node: &Node, of: Option<String>) -> Result<Reply, Failure> {
    node.shares(of.as_deref(), PATIENCE).await.map(Reply::Shares).map_err(file_failure)
}

pub(super) async fn list(node: &Node, id: u64, list: ListFiles, outbox: &Outbox) -> Result<Reply, Failure> {
    let ListFiles { place, recursive, regex } = list;
    let mut files = node.list_files(&place, recursive, regex.as_deref()).map_err(file_failure)?;
    while let Some(file) = files.next().await {
        let answer = match file {
            Ok((node, name, file)) => Answer::File(ListedFile { id, node, name, file }),
            Err(error) => Answer::NotDone(NotDone { id, failure: file_failure(error) }),
        };
        if outbox.push(&answer).await.is_err() {
            break;
        }
    }
    Ok(Reply::Done)
}

/// Does a job, and tells of it as fast as the client reads. Dropped with the client, and the job with it.
pub(super) async fn transfer(node: &Node, id: u64, what: MoveFiles, outbox: &Outbox) -> Result<Reply, Failure> {
    let MoveFiles { job, each } = what;
    let mut transfer = node.transfer(job).map_err(file_failure)?;
    let started = Answer::JobStarted(JobStarted { id, targets: transfer.targets() });
    if let Err(Gone) = outbox.push(&started).await {
        return Ok(Reply::Done);
    }
    while let Some(news) = transfer.next().await {
        let answer = match news {
            Ok(FileEvent::Done { .. }) if !each => continue,
            Ok(event) => Answer::Job(JobEvent { id, event }),
            Err(error) => Answer::NotDone(NotDone { id, failure: file_failure(error) }),
        };
        if let Err(Gone) = outbox.push(&answer).await {
            break;
        }
    }
    Ok(Reply::Done)
}

/// How long nodes may take to tell what they share.
const PATIENCE: Duration = Duration::from_secs(3);
