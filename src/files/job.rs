//! What a job means: which nodes are its targets, and what goes where at each of them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use futures::future::try_join_all;
use regex::bytes::Regex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::FileError;
use super::compare::Terms;
use super::far::{self, Far, Teller};
use super::partial::Partials;
use super::place::Place;
use super::store::{Guard, Store};
use super::target::{Leg, Source, Tally, Target, joined};
use super::tree::Tree;
use super::trouble::Kind;
use super::words::Purpose;
use crate::mesh::{FarPlace, FileEvent, FileJob, FileKind, FilePlace, JobKind, NodeId, NodeName, SharePath};
use crate::node::Node;

type Events = mpsc::Sender<Result<FileEvent, FileError>>;
type Taken = Arc<Mutex<BTreeSet<NodeId>>>;

/// A job that makes sense, and whose nodes are there.
#[derive(Debug)]
pub(super) struct Job {
    node: Node,
    sources: From,
    targets: Vec<To>,
    kind: JobKind,
    regex: Option<Regex>,
}

/// A place, all nodes that are meant, and whether by their name.
type Meant = (FarPlace, Vec<(NodeId, NodeName)>, bool);

#[derive(Debug)]
enum From {
    Here(Vec<PathBuf>),
    /// Each with all nodes that are meant by its name.
    There(Vec<Meant>),
}

#[derive(Debug)]
enum To {
    Here(PathBuf),
    There(FarPlace, (NodeId, NodeName), bool),
}

impl Job {
    /// # Errors
    /// It makes no sense, or there is no such node.
    pub(super) fn new(node: &Node, job: FileJob) -> Result<Self, FileError> {
        let usage = |text: &str| Err(FileError::Usage(text.to_owned()));
        let regex = expression(job.regex.as_deref())?;
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for from in job.from {
            match from {
                FilePlace::Here(path) => here.push(absolute(path)?),
                FilePlace::There(place) => there.push(place),
            }
        }
        let sources = match (here.is_empty(), there.is_empty()) {
            (true, true) => return usage("there is nothing to move"),
            (false, false) => return usage("all that is moved is here, or all of it is at other nodes"),
            (false, true) => From::Here(here),
            (true, false) => {
                let found = there.into_iter().map(|place| {
                    let (nodes, by_name) = far::nodes(node, &place.node)?;
                    Ok((place, nodes, by_name))
                });
                From::There(found.collect::<Result<_, FileError>>()?)
            }
        };
        let count = match &sources {
            From::Here(all) => all.len(),
            From::There(all) => all.len(),
        };
        if count > 1 && matches!(job.kind, JobKind::Sync { .. }) {
            return usage("a directory is made like one other, not like several");
        }
        let mut targets = Vec::new();
        let several = job.to.len() > 1;
        for to in job.to {
            match (to, &sources) {
                (FilePlace::Here(_), From::Here(_)) => {
                    return usage("both sides are here: one is to be at another node");
                }
                (FilePlace::There(_), From::There(_)) => {
                    return usage("both sides are at other nodes: one is to be here");
                }
                (FilePlace::Here(_), From::There(_)) if several => return usage("files are got to one place"),
                (FilePlace::Here(path), From::There(_)) => targets.push(To::Here(absolute(path)?)),
                (FilePlace::There(place), From::Here(_)) => {
                    let (nodes, by_name) = far::nodes(node, &place.node)?;
                    targets.extend(nodes.into_iter().map(|node| To::There(place.clone(), node, by_name)));
                }
            }
        }
        if targets.is_empty() {
            return usage("it is not said where to"); // X-RS: no targets
        }
        Ok(Self { node: node.clone(), sources, targets, kind: job.kind, regex })
    }

    pub(super) fn targets(&self) -> u32 {
        u32::try_from(self.targets.len()).unwrap_or(u32::MAX)
    }

    /// Does it, all targets at once. Each fails on its own.
    pub(super) async fn run(self, events: Events) {
        let job = Arc::new(self);
        let taken: Taken = Arc::default();
        let mut running = JoinSet::new();
        // All are known to be in use before one of them is lost.
        let mut targets: Vec<(u32, Option<Arc<Far>>)> = Vec::new();
        for (number, to) in (0..).zip(&job.targets) {
            let teller = Teller { target: number, events: events.clone() };
            let far = match to {
                To::There(_, node, by_name) => {
                    Some(Arc::new(Far::new(&job.node, node.clone(), *by_name, &taken, Some(teller))))
                }
                To::Here(_) => None,
            };
            targets.push((number, far));
        }
        for (number, far) in targets {
            let (job, events, taken) = (Arc::clone(&job), events.clone(), Arc::clone(&taken));
            running.spawn(async move {
                if let Err(error) = job.target(number, far, &events, &taken).await {
                    let _ = events.send(Err(error)).await; // nobody reads it any more: it ends anyway
                }
                Ok(())
            });
        }
        while let Some(ended) = running.join_next().await {
            if let Err(trouble) = joined(ended) {
                let _ = events.send(Err(trouble.of("this machine".to_owned()))).await; // as above
            }
        }
    }

    async fn target(
        &self,
        number: u32,
        far: Option<Arc<Far>>,
        events: &Events,
        taken: &Taken,
    ) -> Result<(), FileError> {
        let teller = Teller { target: number, events: events.clone() };
        let node = match (&far, &self.sources) {
            (Some(far), _) => far.name().clone(),
            (None, From::There(all)) => all[0].1[0].1.clone(),
            (None, From::Here(_)) => self.node.name().clone(),
        };
        let dry_run = matches!(self.kind, JobKind::Sync { dry_run: true, .. });
        let sources = match &self.sources {
            From::There(all) => all.iter().map(|(_, nodes, _)| nodes.len()).max().unwrap_or(1),
            From::Here(_) => 1,
        };
        let room = Semaphore::new((CHUNKS * sources).min(MOST_CHUNKS));
        let (tally, began) = (Tally::default(), Instant::now());
        let target = Arc::new(Target { teller, node, dry_run, tally, room, began });
        let run = async {
            match &self.sources {
                From::Here(paths) => {
                    let names: Vec<_> =
                        paths.iter().map(|path| path.file_name().unwrap_or_default().as_bytes()).collect();
                    for some in paths.chunks(at_once(&names)) {
                        let legs = some.iter().map(|path| async {
                            let (source, leaf, is_directory) = here(path).await?;
                            let sources = vec![source];
                            self.leg(&target, number, &far, sources, leaf, is_directory, paths.len() > 1).await
                        });
                        try_join_all(legs).await?;
                    }
                }
                From::There(all) => {
                    let leaf = |place: &FarPlace| {
                        place.path.split().map_or(place.share.as_bytes(), |(_, leaf)| leaf).to_owned()
                    };
                    let leaves: Vec<_> = all.iter().map(|(place, ..)| leaf(place)).collect();
                    let names: Vec<_> = leaves.iter().map(Vec::as_slice).collect();
                    // What a pattern finds may be anywhere.
                    let has_pattern = |place: &FarPlace| place.path.as_bytes().iter().any(|byte| b"*?[".contains(byte));
                    let patterns = all.iter().any(|(place, ..)| has_pattern(place));
                    for some in all.chunks(if patterns { 1 } else { at_once(&names) }) {
                        let legs = some.iter().map(|(place, nodes, by_name)| async {
                            let (sources, is_directory) = self.there(&target, place, nodes, *by_name, taken).await?;
                            self.leg(&target, number, &far, sources, leaf(place), is_directory, all.len() > 1).await
                        });
                        try_join_all(legs).await?;
                    }
                }
            }
            Ok::<_, FileError>(())
        };
        tokio::select! {
            ended = run => ended?,
            () = target.tell_progress() => {}
        }
        target.finished().await;
        Ok(())
    }

    /// All nodes that have what is to be got.
    async fn there(
        &self,
        target: &Arc<Target>,
        place: &FarPlace,
        nodes: &[(NodeId, NodeName)],
        by_name: bool,
        taken: &Taken,
    ) -> Result<(Vec<Source>, bool), FileError> {
        let (mut sources, mut refused, mut is_directory) = (Vec::new(), None, false);
        let deletes = matches!(self.kind, JobKind::Sync { delete: true, .. });
        for node in nodes {
            let far = Arc::new(Far::new(&self.node, node.clone(), by_name, taken, Some(target.teller.clone())));
            let name = far.name().to_string();
            let from = Place::There(far, place.share.clone());
            match from.look(&place.path, Purpose::Get, place.within).await {
                Ok(looked) => {
                    let directory = looked.info.is_some_and(|info| info.kind == FileKind::Directory);
                    let (root, pattern, lost) = (looked.root, looked.pattern, AtomicBool::new(false));
                    if sources.is_empty() {
                        is_directory = directory;
                    }
                    let alike = sources.first().is_none_or(|first: &Source| first.pattern == pattern);
                    if alike && directory == is_directory {
                        sources.push(Source { place: from, root, pattern, lost });
                    }
                }
                // What it has is not known: nothing can be deleted because others have it not.
                Err(trouble) if trouble.kind != Kind::NotThere && deletes => return Err(trouble.of(name)),
                Err(trouble) => {
                    refused.get_or_insert_with(|| trouble.of(name));
                }
            }
        }
        match refused {
            Some(refused) if sources.is_empty() => Err(refused),
            _ => Ok((sources, is_directory)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all that is known of both sides")]
    async fn leg(
        &self,
        target: &Arc<Target>,
        number: u32,
        far: &Option<Arc<Far>>,
        sources: Vec<Source>,
        leaf: Vec<u8>,
        is_directory: bool,
        several: bool,
    ) -> Result<(), FileError> {
        let has_pattern = sources.first().is_some_and(|source| source.pattern.is_some());
        let syncs = matches!(self.kind, JobKind::Sync { .. });
        if syncs && !(is_directory || has_pattern) {
            return Err(FileError::Usage("only a directory is made like another".to_owned()));
        }
        let goes_in = several || has_pattern || syncs;
        let (sink, root, into) = match (&self.targets[number as usize], far) {
            (To::There(place, ..), Some(far)) => {
                let sink = Place::There(Arc::clone(far), place.share.clone());
                let looked = sink.look(&place.path, Purpose::Put, true).await;
                let looked = looked.map_err(|trouble| trouble.of(far.name().to_string()))?;
                let is_directory = looked.info.is_some_and(|info| info.kind == FileKind::Directory);
                (sink, looked.root, goes_in || place.within || is_directory)
            }
            (To::Here(path), _) => self.open_here(path, goes_in, target.dry_run).await?,
            (To::There(..), None) => return Err(FileError::Closed),
        };
        // Where it goes, and its name there. What a pattern finds, and what a directory is made like, has none.
        let (to, below) = match (into, syncs || has_pattern) {
            (true, true) => (root, SharePath::default()),
            (true, false) => {
                let below = SharePath::default().child(&leaf).ok_or_else(|| {
                    FileError::Usage(format!("'{}' has no name to go by", String::from_utf8_lossy(&leaf)))
                })?;
                (root.join(&below), below)
            }
            (false, _) => {
                let below = root.split().and_then(|(_, name)| SharePath::default().child(name)).unwrap_or_default();
                (root, below)
            }
        };
        let delete = matches!(self.kind, JobKind::Sync { delete: true, .. });
        let terms = Terms { regex: self.regex.clone(), name: leaf, delete };
        let name = match (&sink, sources.first()) {
            (Place::There(far, _), _) => far.name().to_string(),
            (_, Some(source)) => source.place.name(),
            _ => target.node.to_string(),
        };
        let directories = is_directory || has_pattern;
        let leg = Arc::new(Leg { target: Arc::clone(target), sources, sink, to, below, directories, terms });
        leg.run().await.map_err(|trouble| trouble.of(name))
    }

    async fn open_here(
        &self,
        path: &Path,
        goes_in: bool,
        dry_run: bool,
    ) -> Result<(Place, SharePath, bool), FileError> {
        let (path, slash) = (path.to_owned(), path.as_os_str().as_bytes().ends_with(b"/"));
        let opened = super::share::blocking(move || Ok(open_here(&path, goes_in || slash, dry_run))).await;
        opened.map_err(|trouble| trouble.of("this machine".to_owned()))?
    }
}

/// Opens the directory that things go into: the one that is named, or the one in which a file is.
fn open_here(path: &Path, goes_in: bool, dry_run: bool) -> Result<(Place, SharePath, bool), FileError> {
    let here = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| FileError::Here { path, source }
    };
    let into = goes_in || path.is_dir();
    let (directory, root) = if into {
        (path, SharePath::default())
    } else {
        let name = path.file_name().and_then(|name| SharePath::default().child(name.as_bytes()));
        let name = name.ok_or_else(|| FileError::Usage(format!("'{}' names no file", path.display())))?;
        (path.parent().unwrap_or(path), name)
    };
    if !directory.exists() {
        if dry_run {
            return Ok((Place::Nowhere, root, into));
        }
        if into {
            std::fs::create_dir_all(directory).map_err(here(directory))?;
        }
    }
    let tree = Tree::open(directory).map_err(here(directory))?;
    let store = Store { tree, guard: Guard::Own, partials: Arc::new(Partials::default()) };
    Ok((Place::Here(Arc::new(store)), root, into))
}

/// Opens what is put: its directory, its name, and whether it is one itself.
async fn here(path: &Path) -> Result<(Source, Vec<u8>, bool), FileError> {
    let path = path.to_owned();
    let opened = super::share::blocking(move || Ok(open_source(&path))).await;
    opened.map_err(|trouble| trouble.of("this machine".to_owned()))?
}

fn open_source(path: &Path) -> Result<(Source, Vec<u8>, bool), FileError> {
    let wrong = |source| FileError::Here { path: path.to_owned(), source };
    let through = path.as_os_str().as_bytes().ends_with(b"/");
    let found = if through { path.metadata() } else { path.symlink_metadata() }.map_err(wrong)?;
    let name = path.file_name().map(|name| name.as_bytes().to_owned());
    // `..` and `/` are called what they are.
    let whole = || std::fs::canonicalize(path).ok()?.file_name().map(|name| name.as_bytes().to_owned());
    let leaf = name.clone().or_else(whole).unwrap_or_default();
    let (directory, root) = match name {
        _ if found.is_dir() => (path.to_owned(), SharePath::default()),
        Some(name) => {
            let bytes = path.as_os_str().as_bytes();
            let trimmed = Path::new(OsStr::from_bytes(bytes.strip_suffix(b"/").unwrap_or(bytes)));
            let parent = trimmed.parent().unwrap_or_else(|| Path::new("/")).to_owned();
            (parent, SharePath::new(name)?)
        }
        None => return Err(FileError::Usage(format!("'{}' names no file", path.display()))),
    };
    if !found.is_dir() && !found.is_file() && !found.is_symlink() {
        return Err(FileError::Usage(format!("'{}' is neither file, directory nor link", path.display())));
    }
    let store = Store { tree: Tree::open(&directory).map_err(wrong)?, guard: Guard::Own, partials: Arc::default() };
    let source = Source { place: Place::Here(Arc::new(store)), root, pattern: None, lost: AtomicBool::new(false) };
    Ok((source, leaf, found.is_dir()))
}

/// How many of these go at once: one after the other, if two may come to the same file.
fn at_once(names: &[&[u8]]) -> usize {
    let distinct: BTreeSet<_> = names.iter().collect();
    if distinct.len() < names.len() { 1 } else { LEGS }
}

/// # Errors
/// It is none.
pub(super) fn expression(regex: Option<&str>) -> Result<Option<Regex>, FileError> {
    let parsed = |text: &str| {
        Regex::new(text).map_err(|error| {
            // It draws a picture of where; what is wrong stands below.
            let error = error.to_string();
            let what = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            FileError::Pattern(format!("'{text}' is no regular expression: {what}"))
        })
    };
    regex.map(parsed).transpose()
}

fn absolute(path: Vec<u8>) -> Result<PathBuf, FileError> {
    let path = PathBuf::from(OsStr::from_bytes(&path));
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(FileError::Usage(format!("'{}' is to be an absolute path", path.display())))
    }
}

/// Words of a job that are done at once: each waits for answers, and most are about one file.
const LEGS: usize = 16;
/// Chunks under way to or from one node.
const CHUNKS: usize = 8;
/// Chunks under way for one target, however many nodes they come from.
const MOST_CHUNKS: usize = 32;
