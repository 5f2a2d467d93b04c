//! Shares: what this node lets others read and write.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::partial::Partials;
use super::store::{Guard, Store};
use super::tree::Tree;
use super::trouble::{Kind, Trouble};
use super::walk::{Found, Walk};
use super::words::{self, Answer, Ask, Asked, LISTS, ListAsked, Page, SERVICE};
use super::{ShareError, Sharing};
use crate::config::{ShareConfig, ShareMode};
use crate::mesh::{Codec, Failure, PeerId, SharePath};
use crate::node::{Channel, Node, ServeOptions};

/// All shares of a node.
#[derive(Debug)]
pub(super) struct Shares {
    shares: HashMap<String, ShareConfig>,
    partials: Arc<Partials>,
    /// Directories that are read for lists: each takes a thread for as long as a page takes.
    lists: Semaphore,
    /// Lists that are open, of each peer: each holds directories open, and their names, for as long as it is not read.
    open: Mutex<HashMap<PeerId, Arc<Semaphore>>>,
}

/// Says when nobody waits any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The shares by their names, if these can be.
pub(super) fn named(shares: Vec<ShareConfig>) -> Result<HashMap<String, ShareConfig>, ShareError> {
    let mut named = HashMap::new();
    for share in shares {
        let is_name = SharePath::default().child(share.name.as_bytes()).is_some();
        if !is_name || share.name.contains(':') || share.name.chars().any(char::is_control) {
            return Err(ShareError::Name(share.name));
        }
        if let Some(twice) = named.insert(share.name.clone(), share) {
            return Err(ShareError::Twice(twice.name));
        }
    }
    Ok(named)
}

pub(super) async fn share(node: &Node, shares: Vec<ShareConfig>) -> Result<Sharing, ShareError> {
    let named = named(shares)?;
    let partials = Arc::new(Partials::default());
    let (lists, open) = (Semaphore::new(LISTS_AT_ONCE), Mutex::default());
    let shares = Arc::new(Shares { shares: named, partials: Arc::clone(&partials), lists, open });
    let (here, all) = (node.clone(), Arc::clone(&shares));
    let handler = move |request: crate::node::Request| {
        let (node, shares) = (here.clone(), Arc::clone(&all));
        async move { Ok::<_, Failure>((Codec::Bytes, answer(node, shares, request.from.peer, request.payload).await?)) }
    };
    let options = ServeOptions { concurrency: ANSWERS_AT_ONCE, ..ServeOptions::default() };
    let serving = node.serve_requests(SERVICE, options, handler).await?;
    let here = node.clone();
    let lister = move |channel: Channel| {
        let (node, shares) = (here.clone(), Arc::clone(&shares));
        async move { Ok(list(node, shares, channel).await?) }
    };
    let lists = node.serve_channels(LISTS, lister).await?;
    let tidy = tokio::spawn(async move {
        loop {
            tokio::time::sleep(TIDY_EVERY).await; // as long as files are shared: what nobody goes on with is closed
            partials.close_idle();
        }
    });
    Ok(Sharing { _serving: serving, _lists: lists, _tidy: AbortOnDropHandle::new(tidy) })
}

async fn answer(node: Node, shares: Arc<Shares>, peer: PeerId, payload: Bytes) -> Result<Bytes, Trouble> {
    let stop = Arc::new(AtomicBool::new(false));
    let _stops = StopOnDrop(Arc::clone(&stop));
    let work = move || {
        let (Asked { share, ask }, data) = words::unpack(payload)?;
        if let Ask::Shares = ask {
            return words::pack(Bytes::new(), &Answer::Shares(shares.names()?));
        }
        let (answer, data) = shares.store(&node, peer, &share)?.answer(ask, &data, &stop)?;
        words::pack(data, &answer)
    };
    blocking(work).await
}

/// Sends pages as they are taken.
async fn list(node: Node, shares: Arc<Shares>, channel: Channel) -> Result<(), Trouble> {
    let request = channel.request().map(|item| item.payload.clone()).unwrap_or_default();
    let ListAsked { share, purpose, wanted } = words::decode(&request)?;
    let (root, peer, of) = (wanted.root.clone(), channel.far().peer, Arc::clone(&shares));
    let open = shares.lists_of(peer);
    let place = open.acquire().await.map_err(|_| Trouble::new(Kind::Closed, "it ends"))?;
    let opened = blocking(move || {
        let store = of.store(&node, peer, &share)?;
        Ok((store.walk(purpose, wanted)?, store))
    });
    let mut going = opened.await?;
    loop {
        let turn = shares.lists.acquire().await.map_err(|_| Trouble::new(Kind::Closed, "it ends"))?;
        let root = root.clone();
        let (page, walk, store, over) = blocking(move || {
            let (mut walk, store) = going;
            let (found, over) = page(&mut walk, |found| store.shows(purpose, &root, found));
            Ok((words::encode(&Page::from(found))?, walk, store, over))
        })
        .await?;
        drop(turn);
        going = (walk, store);
        if channel.send_bytes(page).await.is_err() {
            return Ok(()); // nobody wants it any more
        }
        if over {
            drop((going, place));
            let _ = channel.send_bytes(words::encode(&Page::END)?).await; // as above
            channel.finish();
            let _ = channel.closed().await; // the pages are to be taken before the channel goes
            return Ok(());
        }
    }
}

/// As much of a list as goes out at once, `None` for what is not shown between two, and whether that is the end. It may be nothing:
/// who waits for what is rare among much else may have gone meanwhile, and others wait for a turn.
pub(super) fn page(walk: &mut Walk, shows: impl Fn(&Found) -> bool) -> (Vec<Option<Found>>, bool) {
    let (mut found, mut bytes, mut seen) = (Vec::new(), 0, 0);
    while bytes < PAGE_BYTES && seen < PAGE {
        let Some(next) = walk.look() else { return (found, true) };
        seen += 1;
        match next {
            Some(next) if shows(&next) => {
                bytes += next.path().as_bytes().len() + 32;
                found.push(Some(next));
            }
            Some(_) if !matches!(found.last(), Some(None)) => found.push(None),
            _ => {}
        }
    }
    (found, false)
}

/// Runs what blocks where it may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Trouble::new(Kind::Failed, format!("it did not end well: {error}"))))
}

impl Shares {
    fn lists_of(&self, peer: PeerId) -> Arc<Semaphore> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, lists| Arc::strong_count(lists) > 1);
        Arc::clone(open.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(LISTS_OF_PEER))))
    }

    fn names(&self) -> Result<Vec<(String, String)>, Trouble> {
        if self.shares.is_empty() {
            return Err(nothing_shared());
        }
        let mode = |mode| match mode {
            ShareMode::Read => "read",
            ShareMode::Write => "write",
            ShareMode::Both => "both",
        };
        let mut names: Vec<(String, String)> =
            self.shares.values().map(|share| (share.name.clone(), mode(share.mode).to_owned())).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn store(&self, node: &Node, peer: PeerId, share: &str) -> Result<Store, Trouble> {
        if self.shares.is_empty() {
            return Err(nothing_shared());
        }
        let no = || Trouble::new(Kind::NotThere, format!("there is no share '{share}'"));
        let config = self.shares.get(share).ok_or_else(no)?;
        let tree = Tree::open(&config.path);
        let tree = tree.map_err(|error| {
            Trouble::new(Kind::Failed, format!("the directory of the share '{share}' cannot be opened: {error}"))
        })?;
        let guard = Guard::Share { share: share.to_owned(), mode: config.mode, node: node.clone(), peer };
        Ok(Store { tree, guard, partials: Arc::clone(&self.partials) })
    }
}

fn nothing_shared() -> Trouble {
    Trouble::new(Kind::Refused, "it shares no files: a directory is shared by a [[share]] in its config.toml")
}

/// Requests that are answered at a time: what they wait for is the disk.
const ANSWERS_AT_ONCE: usize = 32;
const LISTS_AT_ONCE: usize = 8;
/// Lists that one peer has open: more wait. A job has one for each of the words that it does at once.
const LISTS_OF_PEER: usize = 32;
/// Entries that are looked at for a page, and bytes of their paths, about.
const PAGE: usize = 512;
const PAGE_BYTES: usize = 48 << 10;
const TIDY_EVERY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::super::walk::{Wanted, pattern};
    use super::*;

    #[test]
    fn what_is_hidden_is_told_of_without_its_name_and_once_for_several() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "hidden-1", "hidden-2", "hidden-3/x", "i", "z/hidden"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let tree = Tree::open(folder.path()).unwrap();
        let mut walk = Walk::new(&tree, Wanted { recursive: true, ..Wanted::default() }).unwrap();
        let (found, over) = page(&mut walk, |found| !found.path().to_string().contains("hidden"));
        let sent = words::encode(&Page::from(found)).unwrap();
        assert!(over && !sent.windows(6).any(|part| part == b"hidden"));
        let heard = words::decode::<Page>(&sent).unwrap().found().unwrap();
        let heard: Vec<_> = heard.iter().map(|found| found.as_ref().map(|found| found.path().to_string())).collect();
        let heard: Vec<_> = heard.iter().map(Option::as_deref).collect();
        assert_eq!(heard, [Some(""), Some("a"), None, Some("i"), Some("z"), None]);
    }

    #[test]
    fn a_page_is_sent_after_a_while_though_nothing_was_found() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..3 * PAGE {
            std::fs::write(folder.path().join(number.to_string()), "").unwrap();
        }
        let tree = Tree::open(folder.path()).unwrap();
        let wanted = Wanted { pattern: Some(pattern("**/rare")), recursive: true, ..Wanted::default() };
        let mut walk = Walk::new(&tree, wanted).unwrap();
        let pages = std::iter::from_fn(|| Some(page(&mut walk, |_| true)).filter(|(_, over)| !over));
        assert_eq!(pages.count(), 3);
    }
}
