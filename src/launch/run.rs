//! Carrying out what the supervisor decides.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncRead;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::file::{Need, Program};
use super::lines::Lines;
use super::orphans::Orphans;
use super::plan::Step;
use super::process::{Process, Surroundings};
use super::supervisor::{Effect, Ended, Fate, Id, Supervisor, Told};
use crate::keeper::Keeper;

/// What is there to be shown, in this order.
#[derive(Debug)]
pub(crate) enum Shown {
    /// What a process printed: whole lines, unless one is very long or the last.
    Lines {
        id: Id,
        stream: Stream,
        text: Bytes,
    },
    Told(Told),
}

/// Where a process printed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// What came of it all.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) fates: Vec<Fate>,
    /// Whether something failed for good.
    pub(crate) failed: bool,
}

/// Runs programs until all are over: by themselves, or because `told` says so, which kills them when it says so again.
///
/// If `based`, the first step is what the others need until their end. `ask` finds out whether something is there. What is to be
/// shown goes to `shown`, and programs wait with printing when that is full; if nobody takes it any more, all end.
pub(crate) async fn run<A, F>(
    steps: Vec<Step>,
    based: bool,
    surroundings: Surroundings,
    ask: A,
    told: mpsc::Receiver<()>,
    shown: mpsc::Sender<Shown>,
) -> std::io::Result<Launched>
where
    A: Fn(Need, Duration) -> F,
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let longest = steps.iter().map(|step| step.program.stop_timeout).max().unwrap_or_default();
    let keeper = Arc::new(Keeper::new(longest.max(LEAST_GRACE)));
    keeper.ready()?;
    let supervisor = Supervisor::new(steps, based);
    let orphans = Orphans::adopt(Arc::clone(&keeper));
    let deaths = signal(SignalKind::child())?;
    let (groups, tasks, unshown) = (HashMap::new(), JoinSet::new(), VecDeque::new());
    Ok(Launch { supervisor, groups, tasks, keeper, orphans, deaths, surroundings, ask, told, shown, unshown }
        .run()
        .await)
}

struct Launch<A> {
    supervisor: Supervisor,
    groups: HashMap<Id, Pid>,
    tasks: JoinSet<Done>,
    keeper: Arc<Keeper>,
    orphans: Orphans,
    /// Says that some process has ended.
    deaths: tokio::signal::unix::Signal,
    surroundings: Surroundings,
    ask: A,
    told: mpsc::Receiver<()>,
    shown: mpsc::Sender<Shown>,
    /// What is to be shown when there is room. Meanwhile nothing is taken note of that could make more of it, but for what whoever
    /// launched says, and what is due: so these are a few for each process.
    unshown: VecDeque<Told>,
}

/// What was waited for.
enum Done {
    Asked(usize, Result<(), String>),
    Ended(Id, Ended),
}

impl<A, F> Launch<A>
where
    A: Fn(Need, Duration) -> F,
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    async fn run(mut self) -> Launched {
        let (mut stopping, mut listened) = (false, true);
        loop {
            self.act();
            if !listened {
                self.unshown.clear();
            }
            if self.supervisor.is_over() {
                break;
            }
            let next = self.supervisor.next();
            let due = next.map_or_else(tokio::time::Instant::now, tokio::time::Instant::from_std);
            tokio::select! {
                Some(done) = self.tasks.join_next(), if self.unshown.is_empty() => match done {
                    Ok(Done::Asked(program, Ok(()))) => self.supervisor.met(program, now()),
                    Ok(Done::Asked(program, Err(why))) => self.supervisor.unmet(program, &why, now()),
                    Ok(Done::Ended(id, how)) => {
                        self.groups.remove(&id);
                        self.supervisor.ended(id, how, now());
                    }
                    Err(error) => std::panic::resume_unwind(error.into_panic()), // none is ever aborted
                },
                Some(()) = self.deaths.recv() => {
                    let groups = &self.groups;
                    self.orphans.reap(|child| groups.values().any(|group| *group == child));
                }
                Some(()) = self.told.recv() => {
                    if stopping { self.supervisor.kill(now()) } else { self.supervisor.stop(now()) }
                    stopping = true;
                }
                Ok(room) = self.shown.reserve(), if !self.unshown.is_empty() => {
                    if let Some(told) = self.unshown.pop_front() {
                        room.send(Shown::Told(told));
                    }
                }
                () = self.shown.closed(), if listened => {
                    listened = false;
                    self.supervisor.stop(now());
                }
                () = sleep_until(due), if next.is_some() => {}
            }
        }
        self.orphans.end().await;
        for told in self.unshown.drain(..) {
            let _ = self.shown.send(Shown::Told(told)).await; // or nobody looks
        }
        Launched { fates: self.supervisor.fates().collect(), failed: self.supervisor.has_failed() }
    }

    /// Does what is to be done now, until that is nothing.
    fn act(&mut self) {
        loop {
            let effects = self.supervisor.effects(now());
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match effect {
                    Effect::Await { program, need, timeout } => self.find_out(program, need, timeout),
                    Effect::Start(id) => self.start(id),
                    Effect::End(id) => self.signal(id, Signal::TERM),
                    Effect::Kill(id) => self.signal(id, Signal::KILL),
                    Effect::Tell(told) => self.unshown.push_back(told),
                }
            }
        }
    }

    fn find_out(&mut self, program: usize, need: Need, timeout: Duration) {
        let (asking, shown) = ((self.ask)(need.clone(), timeout), self.shown.clone());
        self.tasks.spawn(async move {
            let mut asking = std::pin::pin!(asking);
            let found = tokio::select! {
                found = &mut asking => found,
                () = sleep(NOTICE) => {
                    let _ = shown.send(Shown::Told(Told::Waits { program, need })).await; // or nobody looks
                    asking.await
                }
            };
            Done::Asked(program, found)
        });
    }

    fn start(&mut self, id: Id) {
        if !self.supervisor.wants(id) {
            return; // what was started just before has failed, which ends all
        }
        let program: &Program = self.supervisor.program(id.program);
        match Process::start(program, id.number, &self.surroundings, &self.keeper) {
            Ok(process) => {
                self.groups.insert(id, process.group);
                self.supervisor.started(id, process.pid(), now());
                self.tasks.spawn(attend(id, process, self.shown.clone()));
            }
            Err(why) => self.supervisor.not_started(id, why, now()),
        }
    }

    fn signal(&self, id: Id, signal: Signal) {
        if let Some(group) = self.groups.get(&id) {
            // It may have ended by itself: then there is nobody to tell.
            let _ = kill_process_group(*group, signal);
        }
    }
}

/// Shows what a process prints, until it and all that it started have ended.
async fn attend(id: Id, mut process: Process, shown: mpsc::Sender<Shown>) -> Done {
    let gone = CancellationToken::new();
    let (out, err) = (process.child.stdout.take(), process.child.stderr.take());
    let ended = async {
        let how = process.end().await;
        gone.cancel();
        how
    };
    let out = show(id, Stream::Out, out, gone.clone(), &shown);
    let err = show(id, Stream::Err, err, gone.clone(), &shown);
    let (how, (), ()) = tokio::join!(ended, out, err);
    Done::Ended(id, how)
}

async fn show<R: AsyncRead + Unpin>(
    id: Id,
    stream: Stream,
    from: Option<R>,
    gone: CancellationToken,
    shown: &mpsc::Sender<Shown>,
) {
    let Some(from) = from else { return };
    let mut lines = Lines::new(from, gone);
    while let Some(text) = lines.next().await {
        if shown.send(Shown::Lines { id, stream, text }).await.is_err() {
            return; // nobody looks: all end
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How long something may take to be there before that is said.
const NOTICE: Duration = Duration::from_secs(2);
/// The least time to end in order, if we are killed.
const LEAST_GRACE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::launch::kit::program;
    use crate::launch::{Job, Outcome};

    #[tokio::test]
    async fn what_was_to_start_together_with_one_whose_failure_ends_all_is_not_started() {
        let words = |words: &[&str]| Job::Words(words.iter().map(|word| (*word).to_owned()).collect());
        let main = Program { job: words(&["/no/such/program"]), ends_all: true, ..program("main") };
        let other = Program { job: words(&["sleep", "1000"]), ..program("other") };
        let step = |program| Step { program, after: Vec::new(), needs: Vec::new(), missing: Vec::new() };
        let ask = |_, _| std::future::ready(Ok(()));
        let ((_tell, told), (shown, mut shows)) = (mpsc::channel(1), mpsc::channel(64));
        tokio::spawn(async move { while shows.recv().await.is_some() {} });
        let all = run(vec![step(main), step(other)], false, Surroundings::default(), ask, told, shown);
        let launched = timeout(Duration::from_secs(10), all).await.unwrap().unwrap();
        let fates: Vec<_> = launched.fates.iter().map(|fate| (fate.outcome, fate.starts)).collect();
        assert_eq!(fates, [(Outcome::Failed, 0), (Outcome::Stopped, 0)]);
    }
}
