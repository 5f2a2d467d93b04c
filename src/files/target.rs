//! One target of a job: what is done there, a few things at a time, and what is said about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::chunks::CHUNK;
use super::compare::{Offer, Offers, Step, Terms, Was, compare};
use super::far::Teller;
use super::place::{Place, unexpected};
use super::store::MOST_OF_MANY;
use super::trouble::{Kind, Trouble};
use super::walk::{Pattern, Wanted};
use super::words::{Answer, Ask, Change, Purpose};
use crate::mesh::{FileDone, FileEvent, NodeName, SharePath};

/// A target, and what becomes of it.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) teller: Teller,
    /// The node at the far end.
    pub(super) node: NodeName,
    pub(super) dry_run: bool,
    pub(super) tally: Tally,
    /// Chunks under way.
    pub(super) room: Semaphore,
    pub(super) began: Instant,
}

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) planned: AtomicU64,
    pub(super) planned_bytes: AtomicU64,
    pub(super) resumed: AtomicU64,
    pub(super) done: AtomicU64,
    /// The resumed ones included.
    pub(super) bytes: AtomicU64,
    pub(super) unchanged: AtomicU64,
    pub(super) deleted: AtomicU64,
    pub(super) failed: AtomicU64,
    told_plan: AtomicU64,
    told_bytes: AtomicU64,
}

/// One thing to be copied: from where to where.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) target: Arc<Target>,
    pub(super) sources: Vec<Source>,
    pub(super) sink: Place,
    /// Where it goes, and where that is below the target.
    pub(super) to: SharePath,
    pub(super) below: SharePath,
    /// Whether there may be directories in it.
    pub(super) directories: bool,
    pub(super) terms: Terms,
}

/// A place that has it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) place: Place,
    pub(super) root: SharePath,
    pub(super) pattern: Option<Pattern>,
    pub(super) lost: AtomicBool,
}

impl Target {
    pub(super) async fn told_plan(&self) {
        let tally = &self.tally;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (files, bytes, resumed) = (of(&tally.planned), of(&tally.planned_bytes), of(&tally.resumed));
        // Never 0: it comes once at least.
        let sum = 1 + files.wrapping_mul(3).wrapping_add(bytes).wrapping_add(resumed.wrapping_mul(5));
        if tally.told_plan.swap(sum, Ordering::Relaxed) != sum {
            let (target, node) = (self.teller.target, self.node.clone());
            self.teller.tell(FileEvent::Planned { target, node, files, bytes, resumed }).await;
        }
    }

    async fn told_progress(&self) {
        let bytes = self.tally.bytes.load(Ordering::Relaxed);
        let files = self.tally.done.load(Ordering::Relaxed);
        let sum = bytes.wrapping_add(files.wrapping_mul(7));
        if self.tally.told_bytes.swap(sum, Ordering::Relaxed) != sum {
            self.teller.tell(FileEvent::Progress { target: self.teller.target, bytes, files }).await;
        }
    }

    /// Says how far it is, for as long as it is polled.
    pub(super) async fn tell_progress(&self) {
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.tally.told_plan.load(Ordering::Relaxed) != 0 {
                self.told_plan().await;
                self.told_progress().await;
            }
        }
    }

    pub(super) async fn finished(&self) {
        self.told_plan().await;
        self.told_progress().await;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Tally { resumed, bytes, done, unchanged, deleted, failed, .. } = &self.tally;
        let event = FileEvent::Finished {
            target: self.teller.target,
            files: of(done),
            bytes: of(bytes).saturating_sub(of(resumed)),
            resumed: of(resumed),
            unchanged: of(unchanged),
            deleted: of(deleted),
            failed: of(failed),
            millis: self.began.elapsed().as_millis() as u64,
        };
        self.teller.tell(event).await;
    }

    pub(super) async fn begun(&self, path: SharePath, bytes: u64) {
        self.teller.tell(FileEvent::Begun { target: self.teller.target, path, bytes }).await;
    }

    pub(super) async fn done(&self, path: SharePath, bytes: u64, what: FileDone) {
        if what != FileDone::Deleted {
            self.tally.done.fetch_add(1, Ordering::Relaxed);
        }
        self.teller.tell(FileEvent::Done { target: self.teller.target, path, bytes, what }).await;
    }

    pub(super) async fn failed(&self, path: SharePath, message: String) {
        let message = without_path(&path, message);
        self.tally.failed.fetch_add(1, Ordering::Relaxed);
        self.teller.tell(FileEvent::Failed { target: self.teller.target, path, message }).await;
    }
}

/// Who has a file says what is the matter with it behind its path there; an event names it already.
fn without_path(path: &SharePath, message: String) -> String {
    let below =
        |one: &str, other: &str| one.strip_suffix(other).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
    let path = path.to_string();
    match message.split_once(": ") {
        Some((named, rest)) if below(named, &path) || below(&path, named) => rest.to_owned(),
        _ => message,
    }
}

/// Files that go together, and their bytes.
#[derive(Default)]
struct Batch {
    offers: Vec<(Offer, Was)>,
    changes: Vec<(Change, FileDone)>,
    bytes: u64,
}

impl Batch {
    fn len(&self) -> usize {
        self.offers.len().max(self.changes.len())
    }

    fn is_full(&self) -> bool {
        self.bytes >= CHUNK || self.len() >= MOST_OF_MANY / 2
    }
}

impl Leg {
    fn lists(&self, directories: bool) -> (Offers, super::place::List) {
        let wanted = |root: &SharePath, pattern: &Option<Pattern>| Wanted {
            root: root.clone(),
            pattern: pattern.clone(),
            recursive: true,
            directories,
            ..Wanted::default()
        };
        let waits = self.sources.len() == 1;
        let lists = self
            .sources
            .iter()
            .map(|source| source.place.list(Purpose::Get, wanted(&source.root, &source.pattern), waits));
        let pattern = self.sources.first().and_then(|source| source.pattern.clone());
        (Offers::new(lists.collect()), self.sink.list(Purpose::Put, wanted(&self.to, &pattern), true))
    }

    /// Does all of it.
    ///
    /// # Errors
    /// It cannot go on. What concerns one file alone is told.
    pub(super) async fn run(self: &Arc<Self>) -> Result<(), Trouble> {
        let (steps, queue) = mpsc::channel(STEPS);
        let (source, sink) = self.lists(false);
        let before = self.target.tally.done.load(Ordering::Relaxed) + self.target.tally.deleted.load(Ordering::Relaxed);
        let comparing = async {
            let compared = compare(source, sink, &self.terms, &steps).await;
            drop(steps);
            compared
        };
        let (compared, did) = tokio::join!(comparing, self.work(queue));
        did.and(compared)?;
        let after = self.target.tally.done.load(Ordering::Relaxed) + self.target.tally.deleted.load(Ordering::Relaxed);
        if self.directories && after != before && !self.target.dry_run {
            self.set_directories().await?;
        }
        Ok(())
    }

    async fn work(self: &Arc<Self>, mut queue: mpsc::Receiver<Step>) -> Result<(), Trouble> {
        let turns = Arc::new(Semaphore::new(BATCHES));
        let files = Arc::new(Semaphore::new(FILES));
        let mut running: JoinSet<Result<(), Trouble>> = JoinSet::new();
        let mut batch = Batch::default();
        // What can be known in no time is said before anything else.
        tokio::time::sleep(PLAN_AHEAD).await;
        loop {
            while let Some(ended) = running.try_join_next() {
                joined(ended)?;
            }
            let step = if batch.len() == 0 {
                queue.recv().await
            } else if batch.is_full() || queue.is_empty() {
                let more = async { if batch.is_full() { std::future::pending().await } else { queue.recv().await } };
                tokio::select! {
                    biased; // what is there goes out first: it is bounded by the turns
                    turn = Arc::clone(&turns).acquire_owned() => {
                        let (leg, batch, turn) = (Arc::clone(self), std::mem::take(&mut batch), turn);
                        running.spawn(async move {
                            let _turn = turn;
                            leg.together(batch).await
                        });
                        continue;
                    }
                    step = more => step,
                }
            } else {
                queue.recv().await
            };
            let Some(step) = step else {
                if batch.len() == 0 {
                    break;
                }
                self.together(std::mem::take(&mut batch)).await?;
                continue;
            };
            self.plan(&step);
            let Some(step) = self.at_once(step).await else { continue };
            match step {
                Step::Move { offer, was } if offer.info.bytes <= CHUNK && !matches!(was, Was::Alike { .. }) => {
                    batch.bytes += offer.info.bytes;
                    batch.offers.push((offer, was));
                }
                Step::Move { offer, was } => {
                    let turn = Arc::clone(&files).acquire_owned().await;
                    let leg = Arc::clone(self);
                    running.spawn(async move {
                        let _turn = turn;
                        leg.alone(offer, was).await
                    });
                }
                // What goes into it is not begun before it is there.
                step @ Step::Directory { was: Was::InTheWay, .. } => {
                    self.make_changes(self.change(step).into_iter().collect()).await?;
                }
                step => {
                    if let Some(change) = self.change(step) {
                        batch.changes.push(change);
                    }
                }
            }
        }
        while let Some(ended) = running.join_next().await {
            joined(ended)?;
        }
        self.target.told_plan().await;
        Ok(())
    }

    fn plan(&self, step: &Step) {
        let tally = &self.target.tally;
        match step {
            Step::Move { offer, .. } => {
                tally.planned.fetch_add(1, Ordering::Relaxed);
                tally.planned_bytes.fetch_add(offer.info.bytes, Ordering::Relaxed);
            }
            Step::Directory { .. } | Step::Link { .. } | Step::Attributes { .. } => {
                tally.planned.fetch_add(1, Ordering::Relaxed);
            }
            Step::Delete { .. } | Step::Goes | Step::Failed { .. } | Step::Same => {}
        }
    }

    /// What needs nothing to be done, or nothing more than to be said. The rest is given back.
    async fn at_once(&self, step: Step) -> Option<Step> {
        let target = &self.target;
        if target.tally.told_plan.load(Ordering::Relaxed) == 0 && !matches!(step, Step::Same) {
            target.told_plan().await;
        }
        match step {
            Step::Same => {
                target.tally.unchanged.fetch_add(1, Ordering::Relaxed);
            }
            Step::Failed { path, message } => target.failed(self.below.join(&path), message).await,
            Step::Goes if target.dry_run => drop(target.tally.deleted.fetch_add(1, Ordering::Relaxed)),
            Step::Goes => {} // counted where it is deleted
            step if target.dry_run => {
                let (path, bytes, what) = match step {
                    Step::Move { offer, was } => (offer.info.path, offer.info.bytes, was.done()),
                    Step::Directory { path, was } | Step::Link { path, was, .. } => (path, 0, was.done()),
                    Step::Attributes { info } => (info.path, 0, FileDone::Touched),
                    Step::Delete { path } => {
                        target.tally.deleted.fetch_add(1, Ordering::Relaxed);
                        (path, 0, FileDone::Deleted)
                    }
                    Step::Goes | Step::Failed { .. } | Step::Same => return None,
                };
                target.done(self.below.join(&path), bytes, what).await;
            }
            step => return Some(step),
        }
        None
    }

    fn change(&self, step: Step) -> Option<(Change, FileDone)> {
        Some(match step {
            // What is in the way is deleted by a change of its own, just before.
            Step::Directory { path, was } => (Change::Directory { path: self.to.join(&path) }, was.done()),
            Step::Link { path, to, modified_ns, was } => {
                (Change::Link { path: self.to.join(&path), to, modified_ns }, was.done())
            }
            Step::Attributes { info } => {
                let (mode, modified_ns) = (info.mode, info.modified_ns);
                (Change::Attributes { path: self.to.join(&info.path), mode, modified_ns }, FileDone::Touched)
            }
            Step::Delete { path } => (Change::Delete { path: self.to.join(&path) }, FileDone::Deleted),
            Step::Move { .. } | Step::Goes | Step::Failed { .. } | Step::Same => return None,
        })
    }

    /// Where something is, below the target.
    pub(super) fn told(&self, path: &SharePath) -> SharePath {
        let parts: Vec<&[u8]> = path.parts().skip(self.to.parts().count()).collect();
        self.below.join(&SharePath::new(parts.join(&b'/')).unwrap_or_default())
    }

    async fn together(self: &Arc<Self>, batch: Batch) -> Result<(), Trouble> {
        if !batch.changes.is_empty() {
            self.make_changes(batch.changes).await?;
        }
        if batch.offers.is_empty() { Ok(()) } else { self.small(batch.offers).await }
    }

    async fn make_changes(&self, changes: Vec<(Change, FileDone)>) -> Result<(), Trouble> {
        let (mut all, mut told) = (Vec::new(), Vec::new());
        for (change, done) in changes {
            let replaces = done == FileDone::Replaced;
            if replaces {
                all.push(Change::Delete { path: change.path().clone() });
                told.push(None);
            }
            told.push(Some((self.told(change.path()), done)));
            all.push(change);
        }
        let outcomes = self.changed(all).await?;
        for (outcome, told) in outcomes.into_iter().zip(told) {
            let Some((path, done)) = told else { continue };
            match outcome {
                Ok(count) if done == FileDone::Deleted => {
                    self.target.tally.deleted.fetch_add(count, Ordering::Relaxed);
                    if count > 0 {
                        self.target.done(path, 0, done).await;
                    }
                }
                Ok(_) => self.target.done(path, 0, done).await,
                Err(trouble) => self.target.failed(path, trouble.message).await,
            }
        }
        Ok(())
    }

    /// Makes changes, and says of each what became of it.
    pub(super) async fn changed(&self, changes: Vec<Change>) -> Result<Vec<Result<u64, Trouble>>, Trouble> {
        let mut outcomes = Vec::with_capacity(changes.len());
        for some in changes.chunks(MOST_OF_MANY) {
            match self.sink.ask(Ask::Change { changes: some.to_vec() }, Bytes::new()).await?.0 {
                Answer::Done(done) if done.len() == some.len() => {
                    outcomes.extend(done.into_iter().map(super::words::Outcome::into_result));
                }
                _ => return Err(unexpected()),
            }
        }
        Ok(outcomes)
    }

    /// Sets modes and times of directories, which change as long as anything changes in them.
    async fn set_directories(&self) -> Result<(), Trouble> {
        let (steps, mut queue) = mpsc::channel(STEPS);
        let (source, sink) = self.lists(true);
        let terms = Terms { regex: None, delete: false, ..self.terms.clone() };
        let comparing = async {
            let compared = compare(source, sink, &terms, &steps).await;
            drop(steps);
            compared
        };
        let setting = async {
            let mut batch = Vec::new();
            while let Some(step) = queue.recv().await {
                if let Step::Attributes { .. } = &step {
                    batch.extend(self.change(step).map(|(change, _)| change));
                }
                if batch.len() >= MOST_OF_MANY / 2 || (queue.is_empty() && !batch.is_empty()) {
                    let _ = self.changed(std::mem::take(&mut batch)).await?; // the files are there; one may have gone meanwhile
                }
            }
            Ok(())
        };
        let (compared, set) = tokio::join!(comparing, setting);
        set.and(compared)
    }
}

pub(super) fn joined(ended: Result<Result<(), Trouble>, tokio::task::JoinError>) -> Result<(), Trouble> {
    ended.unwrap_or_else(|error| Err(Trouble::new(Kind::Failed, format!("it did not end well: {error}"))))
}

/// Steps that are known and not begun.
const STEPS: usize = 1024;
/// Batches of small files, and larger files, under way.
const BATCHES: usize = 6;
const FILES: usize = 8;
/// How long a plan is gathered before it is first told.
const PLAN_AHEAD: Duration = Duration::from_millis(5);
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_said_once() {
        let path = SharePath::new("many/a").unwrap();
        for (message, said) in [
            ("many/a: no space left", "no space left"),
            ("a: no space left", "no space left"),
            ("below/many/a: no space left", "no space left"),
            ("any/a: no space left", "any/a: no space left"),
            ("no space left", "no space left"),
            ("why: no space left", "why: no space left"),
        ] {
            assert_eq!(without_path(&path, message.to_owned()), said);
        }
    }
}
