//! When each program starts, starts again, and ends: decided here, done elsewhere.

use std::fmt;
use std::time::{Duration, Instant};

use super::file::{Need, Program, Restart};
use super::plan::Step;

/// What runs, and what is to happen next.
#[derive(Debug)]
pub(crate) struct Supervisor {
    watched: Vec<Watched>,
    stopping: bool,
    /// Whether something failed for good.
    failed: bool,
    /// How many processes were started.
    starts: u64,
    effects: Vec<Effect>,
}

/// One process of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    /// Which program, by its place in the plan.
    pub(crate) program: usize,
    /// Which of its processes, from 1.
    pub(crate) number: u16,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    /// Find out whether this is there, for at most so long; then say [`Supervisor::met`] or [`Supervisor::unmet`].
    Await { program: usize, need: Need, timeout: Duration },
    /// Start it; then say [`Supervisor::started`] or [`Supervisor::not_started`].
    Start(Id),
    /// Ask it and what it started to end; [`Supervisor::ended`] when all have.
    End(Id),
    /// End it and what it started.
    Kill(Id),
    /// Whoever watches may want to know.
    Tell(Told),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// A program waits for this.
    Waits {
        program: usize,
        need: Need,
    },
    Started {
        id: Id,
        pid: u32,
    },
    /// It has ended, and is started again after a while.
    Restarts {
        id: Id,
        how: Ended,
        after: Duration,
    },
    /// It has ended, and that is all.
    Ended {
        id: Id,
        how: Ended,
    },
    /// It was not started, or is not started again.
    GivenUp {
        id: Id,
        why: String,
    },
    /// All end now, because of this program or because of whoever launched.
    Stopping {
        because: Option<usize>,
    },
    /// It did not end when asked to.
    Killed {
        id: Id,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
}

/// What became of a process.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fate {
    pub(crate) id: Id,
    pub(crate) starts: u32,
    /// How it ended last, if it was ever started.
    pub(crate) last: Option<Ended>,
    /// How long it ran, in all.
    pub(crate) ran: Duration,
    pub(crate) outcome: Outcome,
}

/// How it came out for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is not over.
    Running,
    /// It ended by itself, in order.
    Done,
    /// It was told to end.
    Stopped,
    /// It failed, or was never started because something else did.
    Failed,
}

#[derive(Debug)]
struct Watched {
    step: Step,
    /// Whether the others need it until their end: the daemon.
    base: bool,
    stage: Stage,
    processes: Vec<Process>,
}

/// How far a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Programs that it waits for are not there.
    Early,
    /// So many things that it needs are not there.
    Asking(usize),
    /// Its processes have a time at which they start.
    Starting,
    /// It is started, and has to show that it serves.
    Proving,
    /// It counts as there from then on.
    ThereAt(Instant),
    There,
    /// It will not be there.
    Missing,
}

#[derive(Debug)]
struct Process {
    number: u16,
    state: State,
    starts: u32,
    /// Which start of all its last one was: they end in reverse order.
    turn: u64,
    /// How often it ended in a row without having run well.
    failures: u32,
    last: Option<Ended>,
    ran: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Due(Instant),
    Running {
        since: Instant,
    },
    /// Asked to end; ended at that time, unless it has been already.
    Ending {
        since: Instant,
        kill_at: Option<Instant>,
    },
    Over(Outcome),
}

impl Supervisor {
    /// For the steps of a plan, at the start of all. The first one is what the others need, if it is `base`d on that.
    pub(crate) fn new(steps: Vec<Step>, based: bool) -> Self {
        let watched = steps.into_iter().enumerate().map(|(at, step)| {
            let processes = (1..=step.program.count).map(Process::new).collect();
            Watched { base: based && at == 0, stage: Stage::Early, processes, step }
        });
        Self { watched: watched.collect(), stopping: false, failed: false, starts: 0, effects: Vec::new() }
    }

    /// What is to be done now. Empty: nothing until something happens, or until [`next`](Self::next).
    pub(crate) fn effects(&mut self, now: Instant) -> Vec<Effect> {
        self.advance(now);
        std::mem::take(&mut self.effects)
    }

    /// When something is due without anything happening.
    pub(crate) fn next(&self) -> Option<Instant> {
        let processes = self.watched.iter().flat_map(|watched| &watched.processes);
        let due = processes.filter_map(|process| match process.state {
            State::Due(at) | State::Ending { kill_at: Some(at), .. } => Some(at),
            _ => None,
        });
        let there = self.watched.iter().filter_map(|watched| match watched.stage {
            Stage::ThereAt(at) => Some(at),
            _ => None,
        });
        due.chain(there).min()
    }

    /// Whether all is over.
    pub(crate) fn is_over(&self) -> bool {
        self.watched.iter().all(Watched::is_over)
    }

    /// Whether something failed that is not tried again.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// The program at this place of the plan.
    pub(crate) fn program(&self, at: usize) -> &Program {
        &self.watched[at].step.program
    }

    /// Something that a program needs is there.
    pub(crate) fn met(&mut self, program: usize, now: Instant) {
        let watched = &mut self.watched[program];
        watched.stage = match watched.stage {
            Stage::Asking(open) => Stage::Asking(open - 1),
            Stage::Proving => Stage::ThereAt(now + watched.step.program.after_delay),
            other => other,
        };
    }

    /// Something that a program needs did not come about.
    pub(crate) fn unmet(&mut self, program: usize, why: &str, now: Instant) {
        match self.watched[program].stage {
            Stage::Asking(_) => self.give_up(program, why, now),
            Stage::Proving => {
                self.watched[program].stage = Stage::Missing;
                self.failed = true;
                self.effects.push(Effect::Tell(Told::GivenUp { id: Id { program, number: 1 }, why: why.to_owned() }));
                self.stop_because(Some(program), now);
            }
            _ => {} // all is ending, or it did not come about for another reason
        }
    }

    /// Whether a process is still to be started: what happened since that was said may be the end of all.
    pub(crate) fn wants(&self, id: Id) -> bool {
        let processes = &self.watched[id.program].processes;
        processes[usize::from(id.number) - 1].state == State::Waiting
    }

    /// A process was started.
    pub(crate) fn started(&mut self, id: Id, pid: u32, now: Instant) {
        self.starts += 1;
        let turn = self.starts;
        let process = self.process(id);
        (process.state, process.turn) = (State::Running { since: now }, turn);
        process.starts += 1;
        self.effects.push(Effect::Tell(Told::Started { id, pid }));
    }

    /// A process could not be started. It would be no better the next time.
    pub(crate) fn not_started(&mut self, id: Id, why: String, now: Instant) {
        self.process(id).state = State::Over(Outcome::Failed);
        self.failed = true;
        self.effects.push(Effect::Tell(Told::GivenUp { id, why }));
        let watched = &mut self.watched[id.program];
        if watched.stage == Stage::Starting {
            watched.stage = Stage::Missing;
        }
        self.after_end_of(id.program, now);
    }

    /// A process has ended, and all that it had started.
    pub(crate) fn ended(&mut self, id: Id, how: Ended, now: Instant) {
        let process = self.process(id);
        let (since, told_to) = match process.state {
            State::Running { since } => (since, false),
            State::Ending { since, .. } => (since, true),
            State::Waiting | State::Due(_) | State::Over(_) => return,
        };
        let ran = now.saturating_duration_since(since);
        process.ran += ran;
        process.last = Some(how);
        if told_to {
            process.state = State::Over(Outcome::Stopped);
            self.effects.push(Effect::Tell(Told::Ended { id, how }));
        } else {
            self.ended_by_itself(id, how, ran, now);
        }
        self.after_end_of(id.program, now);
    }

    /// All are to end.
    pub(crate) fn stop(&mut self, now: Instant) {
        self.stop_because(None, now);
    }

    /// All are to end without being asked first; the base when nobody needs it any more.
    pub(crate) fn kill(&mut self, now: Instant) {
        self.stop(now);
        let base_alone = self.only_base_is_left();
        for (at, watched) in self.watched.iter_mut().enumerate().filter(|(_, watched)| watched.base == base_alone) {
            for process in &mut watched.processes {
                if let State::Ending { since, .. } = process.state {
                    process.state = State::Ending { since, kill_at: None };
                    self.effects.push(Effect::Kill(Id { program: at, number: process.number }));
                }
            }
        }
    }

    /// What became of each process so far, in the order of the plan.
    pub(crate) fn fates(&self) -> impl Iterator<Item = Fate> {
        self.watched.iter().enumerate().flat_map(|(program, watched)| {
            watched.processes.iter().map(move |process| Fate {
                id: Id { program, number: process.number },
                starts: process.starts,
                last: process.last,
                ran: process.ran,
                outcome: match process.state {
                    State::Over(outcome) => outcome,
                    _ => Outcome::Running,
                },
            })
        })
    }

    /// Starts and kills what is due, and lets programs come after others.
    fn advance(&mut self, now: Instant) {
        // Others than those before it in the plan do not matter to a program.
        for at in 0..self.watched.len() {
            self.advance_stage(at, now);
            self.do_what_is_due(at, now);
        }
        if self.only_base_is_left() {
            self.end(true, now);
        }
    }

    fn advance_stage(&mut self, at: usize, now: Instant) {
        if self.stopping {
            return;
        }
        if self.watched[at].stage == Stage::Early {
            let after = &self.watched[at].step.after;
            if let Some(missing) = after.iter().find(|earlier| self.watched[**earlier].stage == Stage::Missing) {
                let why = format!("{} is not there", self.watched[*missing].step.program.name);
                return self.give_up(at, &why, now);
            }
            if after.iter().any(|earlier| self.watched[*earlier].stage != Stage::There) {
                return;
            }
            let needs = self.watched[at].step.needs.clone();
            let timeout = self.watched[at].step.program.after_timeout;
            // What the base needs is the proof that it serves.
            let needs = if self.watched[at].base { Vec::new() } else { needs };
            self.watched[at].stage = Stage::Asking(needs.len());
            self.effects.extend(needs.into_iter().map(|need| Effect::Await { program: at, need, timeout }));
        }
        let Watched { step, base, stage, processes } = &mut self.watched[at];
        if *stage == Stage::Asking(0) {
            *stage = Stage::Starting;
            let due = now + step.program.start_delay;
            processes.iter_mut().for_each(|process| process.state = State::Due(due));
        }
        if *stage == Stage::Starting && processes.iter().all(|process| process.starts > 0) {
            *stage = if *base && !step.needs.is_empty() {
                let (needs, timeout) = (step.needs.clone(), step.program.after_timeout);
                self.effects.extend(needs.into_iter().map(|need| Effect::Await { program: at, need, timeout }));
                Stage::Proving
            } else {
                Stage::ThereAt(now + step.program.after_delay)
            };
        }
        match *stage {
            Stage::ThereAt(time) if time <= now => {
                let failed = processes.iter().all(|process| process.state == State::Over(Outcome::Failed));
                *stage = if failed { Stage::Missing } else { Stage::There };
            }
            _ => {}
        }
    }

    fn do_what_is_due(&mut self, at: usize, now: Instant) {
        for process in &mut self.watched[at].processes {
            let id = Id { program: at, number: process.number };
            match process.state {
                State::Due(due) if due <= now => {
                    process.state = State::Waiting; // for the word that it is started
                    self.effects.push(Effect::Start(id));
                }
                State::Ending { since, kill_at: Some(due) } if due <= now => {
                    process.state = State::Ending { since, kill_at: None };
                    self.effects.push(Effect::Tell(Told::Killed { id }));
                    self.effects.push(Effect::Kill(id));
                }
                _ => {}
            }
        }
    }

    fn ended_by_itself(&mut self, id: Id, how: Ended, ran: Duration, now: Instant) {
        let watched = &mut self.watched[id.program];
        let program = &watched.step.program;
        let process = &mut watched.processes[usize::from(id.number) - 1];
        if ran >= program.backoff.reset_after {
            process.failures = 0;
        }
        let again = match program.restart {
            Restart::Always => true,
            Restart::OnFailure => !how.is_success(),
            Restart::Never => false,
        };
        // Who cannot start what all others need says why: they cannot wait for it to get better.
        let proved = !watched.base || matches!(watched.stage, Stage::ThereAt(_) | Stage::There);
        let worn_out = program.max_restarts.is_some_and(|most| process.failures >= most);
        if again && proved && !worn_out {
            let after = program.backoff.delay(process.failures);
            process.failures = process.failures.saturating_add(1);
            process.state = State::Due(now + after);
            self.effects.push(Effect::Tell(Told::Restarts { id, how, after }));
            return;
        }
        let done = how.is_success() && proved;
        process.state = State::Over(if done { Outcome::Done } else { Outcome::Failed });
        self.failed |= !done;
        self.effects.push(Effect::Tell(Told::Ended { id, how }));
        if again && proved && !done {
            let why = format!("it was started again {} times", process.failures);
            self.effects.push(Effect::Tell(Told::GivenUp { id, why }));
        }
    }

    /// A program is not started at all.
    fn give_up(&mut self, at: usize, why: &str, now: Instant) {
        self.failed = true;
        let watched = &mut self.watched[at];
        watched.stage = Stage::Missing;
        for process in &mut watched.processes {
            process.state = State::Over(Outcome::Failed);
            let id = Id { program: at, number: process.number };
            self.effects.push(Effect::Tell(Told::GivenUp { id, why: why.to_owned() }));
        }
        self.after_end_of(at, now);
    }

    /// A process of this program is over, or is to be started again.
    fn after_end_of(&mut self, at: usize, now: Instant) {
        let watched = &self.watched[at];
        if watched.is_over() && (watched.base || watched.step.program.ends_all) {
            self.stop_because(Some(at), now);
        }
    }

    fn stop_because(&mut self, because: Option<usize>, now: Instant) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        if self.watched.iter().any(|watched| !watched.base && !watched.is_over()) {
            self.effects.push(Effect::Tell(Told::Stopping { because }));
        }
        self.end(false, now);
    }

    /// Asks the base, or all others, to end: the last started first. What does not run is over.
    fn end(&mut self, base: bool, now: Instant) {
        let mut running = Vec::new();
        for (at, watched) in self.watched.iter_mut().enumerate().filter(|(_, watched)| watched.base == base) {
            let kill_at = Some(now + watched.step.program.stop_timeout);
            for process in &mut watched.processes {
                match process.state {
                    State::Running { since } => {
                        process.state = State::Ending { since, kill_at };
                        running.push((process.turn, Id { program: at, number: process.number }));
                    }
                    State::Waiting | State::Due(_) => process.state = State::Over(Outcome::Stopped),
                    State::Ending { .. } | State::Over(_) => {}
                }
            }
        }
        running.sort_unstable_by(|a, b| b.cmp(a));
        self.effects.extend(running.into_iter().map(|(_, id)| Effect::End(id)));
    }

    fn only_base_is_left(&self) -> bool {
        self.watched.first().is_some_and(|first| first.base)
            && self.watched.iter().filter(|watched| !watched.base).all(Watched::is_over)
    }

    fn process(&mut self, id: Id) -> &mut Process {
        &mut self.watched[id.program].processes[usize::from(id.number) - 1]
    }
}

impl Watched {
    fn is_over(&self) -> bool {
        self.processes.iter().all(|process| matches!(process.state, State::Over(_)))
    }
}

impl Process {
    fn new(number: u16) -> Self {
        Self { number, state: State::Waiting, starts: 0, turn: 0, failures: 0, last: None, ran: Duration::ZERO }
    }
}

impl Ended {
    pub(crate) fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::launch::file::Backoff;
    use crate::launch::kit::program;
    use crate::mesh::Topic;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Instant {
        #[expect(clippy::disallowed_methods, reason = "times in tests are relative to one moment")]
        static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
        *BEGAN + Duration::from_secs(seconds)
    }

    fn step(program: Program, after: &[usize]) -> Step {
        Step { program, after: after.to_vec(), needs: Vec::new(), missing: Vec::new() }
    }

    fn id(program: usize) -> Id {
        Id { program, number: 1 }
    }

    /// What is to be done now, but for telling; what is to be started is.
    fn act(supervisor: &mut Supervisor, now: Instant) -> Vec<Effect> {
        let effects = supervisor.effects(now);
        for effect in &effects {
            if let Effect::Start(id) = effect {
                supervisor.started(*id, 1, now);
            }
        }
        let told = |effect: &Effect| !matches!(effect, Effect::Tell(_));
        let mut done: Vec<Effect> = effects.into_iter().filter(told).collect();
        if done.iter().any(|effect| matches!(effect, Effect::Start(_))) {
            done.extend(act(supervisor, now));
        }
        done
    }

    fn outcomes(supervisor: &Supervisor) -> Vec<Outcome> {
        supervisor.fates().map(|fate| fate.outcome).collect()
    }

    #[test]
    fn programs_start_in_turn_and_end_the_other_way_round() {
        let late = Program { start_delay: SECOND, after_delay: 2 * SECOND, count: 2, ..program("late") };
        let steps = vec![step(program("first"), &[]), step(late, &[0]), step(program("last"), &[1])];
        let mut all = Supervisor::new(steps, false);
        assert_eq!(act(&mut all, at(0)), [Effect::Start(id(0))]);
        assert_eq!(act(&mut all, at(0)), []);
        assert_eq!(all.next(), Some(at(1)));
        let second = Id { program: 1, number: 2 };
        assert_eq!(act(&mut all, at(1)), [Effect::Start(id(1)), Effect::Start(second)]);
        assert_eq!((act(&mut all, at(2)), all.next()), (vec![], Some(at(3))));
        assert_eq!(act(&mut all, at(3)), [Effect::Start(id(2))]);
        all.stop(at(4));
        assert_eq!(act(&mut all, at(4)), [id(2), second, id(1), id(0)].map(Effect::End));
        for id in [id(0), id(1), id(2), second] {
            assert!(!all.is_over());
            all.ended(id, Ended::Signal(15), at(5));
        }
        assert!(all.is_over() && !all.has_failed());
        assert_eq!(outcomes(&all), [Outcome::Stopped; 4]);
        assert_eq!(all.fates().map(|fate| fate.ran.as_secs()).collect::<Vec<_>>(), [5, 4, 4, 2]);
    }

    #[test]
    fn who_crashes_is_started_again_later_and_later_until_it_runs_well() {
        // Z-PROC: a restart.
        let backoff = Backoff { first: SECOND, most: 4 * SECOND, reset_after: 10 * SECOND };
        let mut all = Supervisor::new(vec![step(Program { backoff, ..program("a") }, &[])], false);
        act(&mut all, at(0));
        let mut now = 0;
        for delay in [1, 2, 4, 4] {
            all.ended(id(0), Ended::Code(3), at(now));
            let told = all.effects(at(now));
            let after = delay * SECOND;
            assert_eq!(told, [Effect::Tell(Told::Restarts { id: id(0), how: Ended::Code(3), after })]);
            assert_eq!(all.next(), Some(at(now) + after));
            now += u64::from(delay);
            assert_eq!(act(&mut all, at(now)), [Effect::Start(id(0))]);
        }
        now += 10;
        all.ended(id(0), Ended::Signal(9), at(now));
        assert_eq!(all.next(), Some(at(now + 1)), "it ran well for 10 s");
        let fate = all.fates().next().unwrap();
        assert_eq!((fate.starts, fate.last, fate.ran.as_secs()), (5, Some(Ended::Signal(9)), 10));
    }

    #[test]
    fn the_policy_says_who_is_started_again() {
        for (restart, how, again, outcome) in [
            (Restart::Always, Ended::Code(0), true, Outcome::Running),
            (Restart::Always, Ended::Code(1), true, Outcome::Running),
            (Restart::OnFailure, Ended::Code(0), false, Outcome::Done),
            (Restart::OnFailure, Ended::Code(1), true, Outcome::Running),
            (Restart::OnFailure, Ended::Signal(11), true, Outcome::Running),
            (Restart::Never, Ended::Code(0), false, Outcome::Done),
            (Restart::Never, Ended::Code(1), false, Outcome::Failed),
        ] {
            let mut all = Supervisor::new(vec![step(Program { restart, ..program("a") }, &[])], false);
            act(&mut all, at(0));
            all.ended(id(0), how, at(1));
            assert_eq!((!all.is_over(), outcomes(&all)), (again, vec![outcome]), "{restart:?} {how}");
            assert_eq!(all.has_failed(), outcome == Outcome::Failed);
        }
    }

    #[test]
    fn who_crashes_too_often_in_a_row_is_given_up() {
        let mut all = Supervisor::new(vec![step(Program { max_restarts: Some(2), ..program("a") }, &[])], false);
        let mut starts = 0;
        for now in [0, 100, 200] {
            starts += act(&mut all, at(now)).len();
            all.ended(id(0), Ended::Code(1), at(now));
        }
        assert_eq!((starts, all.is_over(), all.has_failed()), (3, true, true));
    }

    #[test]
    fn who_does_not_end_is_killed_when_its_time_is_up() {
        // E-CLI: SIGTERM, then SIGKILL after 10 s.
        let mut all = Supervisor::new(vec![step(program("deaf"), &[])], false);
        act(&mut all, at(0));
        all.stop(at(1));
        assert_eq!(act(&mut all, at(1)), [Effect::End(id(0))]);
        assert_eq!((act(&mut all, at(10)), all.next()), (vec![], Some(at(11))));
        assert_eq!(act(&mut all, at(11)), [Effect::Kill(id(0))]);
        assert_eq!((act(&mut all, at(12)), all.next()), (vec![], None));
        all.ended(id(0), Ended::Signal(9), at(12));
        assert!(all.is_over() && !all.has_failed());
        // Told twice: at once.
        let mut all = Supervisor::new(vec![step(program("deaf"), &[])], false);
        act(&mut all, at(0));
        all.stop(at(1));
        all.kill(at(2));
        assert_eq!(act(&mut all, at(2)), [Effect::End(id(0)), Effect::Kill(id(0))]);
    }

    #[test]
    fn what_is_told_to_stop_before_it_starts_never_does() {
        // Z-PROC: shutdown before start.
        let late = Program { start_delay: SECOND, ..program("late") };
        let mut all = Supervisor::new(vec![step(late, &[]), step(program("later"), &[0])], false);
        act(&mut all, at(0));
        all.stop(at(0));
        assert_eq!((act(&mut all, at(2)), all.is_over(), all.has_failed()), (vec![], true, false));
        assert!(all.fates().all(|fate| fate.starts == 0 && fate.last.is_none()));
        all.stop(at(3));
        assert!(!all.has_failed(), "a second stop changes nothing");
    }

    #[test]
    fn what_a_program_needs_is_asked_for_and_without_it_nothing_after_it_starts() {
        // Z-PROC: a start that takes longer than it may.
        let need = Need::Topic { topic: Topic::new("a").unwrap(), count: 1 };
        let steps = || {
            let needy = Step { needs: vec![need.clone()], ..step(program("needy"), &[0]) };
            vec![step(program("first"), &[]), needy, step(program("last"), &[1])]
        };
        let asked = Effect::Await { program: 1, need: need.clone(), timeout: 60 * SECOND };
        let mut all = Supervisor::new(steps(), false);
        assert_eq!(act(&mut all, at(0)), [Effect::Start(id(0)), asked]);
        all.met(1, at(5));
        assert_eq!(act(&mut all, at(5)), [id(1), id(2)].map(Effect::Start));
        let mut all = Supervisor::new(steps(), false);
        act(&mut all, at(0));
        all.unmet(1, "nobody listens", at(60));
        assert_eq!(act(&mut all, at(60)), []);
        assert_eq!(outcomes(&all), [Outcome::Running, Outcome::Failed, Outcome::Failed]);
        all.ended(id(0), Ended::Code(0), at(61));
        assert!(all.is_over() && all.has_failed());
    }

    #[test]
    fn who_cannot_be_started_is_not_tried_again() {
        let mut all = Supervisor::new(vec![step(program("a"), &[]), step(program("b"), &[0])], false);
        assert_eq!(all.effects(at(0)), [Effect::Start(id(0))]);
        all.not_started(id(0), "no such file".to_owned(), at(0));
        assert_eq!((act(&mut all, at(0)), outcomes(&all)), (vec![], vec![Outcome::Failed; 2]));
        assert!(all.is_over() && all.has_failed());
    }

    #[test]
    fn who_fails_for_good_before_it_counts_as_there_keeps_what_waits_for_it_from_starting() {
        let early = |how| {
            let first = Program { after_delay: 2 * SECOND, restart: Restart::Never, ..program("first") };
            let mut all = Supervisor::new(vec![step(first, &[]), step(program("second"), &[0])], false);
            act(&mut all, at(0));
            all.ended(id(0), how, at(1));
            (act(&mut all, at(2)), all.is_over())
        };
        assert_eq!(early(Ended::Code(1)), (vec![], true));
        assert_eq!(early(Ended::Code(0)), (vec![Effect::Start(id(1))], false), "what it had to do is done");
    }

    #[test]
    fn the_end_of_one_ends_all() {
        let steps = vec![step(Program { ends_all: true, ..program("main") }, &[]), step(program("helper"), &[])];
        let mut all = Supervisor::new(steps, false);
        act(&mut all, at(0));
        all.ended(id(0), Ended::Code(0), at(1));
        assert_eq!(act(&mut all, at(1)), [Effect::End(id(1))]);
        all.ended(id(1), Ended::Code(1), at(2));
        assert!(all.is_over() && !all.has_failed(), "it was told to end");
    }

    #[test]
    fn the_base_serves_before_all_others_and_ends_after_them() {
        // Z-PROC: what a program lives in is entered before it starts, and left after it has ended.
        let base = || Step { needs: vec![Need::Daemon], ..step(program("meshd"), &[]) };
        let mut all = Supervisor::new(vec![base(), step(program("a"), &[0])], true);
        let proof = Effect::Await { program: 0, need: Need::Daemon, timeout: 60 * SECOND };
        assert_eq!(act(&mut all, at(0)), [Effect::Start(id(0)), proof]);
        all.met(0, at(1));
        assert_eq!(act(&mut all, at(1)), [Effect::Start(id(1))]);
        all.stop(at(2));
        assert_eq!(act(&mut all, at(2)), [Effect::End(id(1))]);
        all.kill(at(2));
        assert_eq!(act(&mut all, at(2)), [Effect::Kill(id(1))]);
        all.ended(id(1), Ended::Signal(15), at(3));
        assert_eq!(act(&mut all, at(3)), [Effect::End(id(0))]);
        all.kill(at(4));
        assert_eq!(act(&mut all, at(4)), [Effect::Kill(id(0))]);
        // All others have ended by themselves.
        let mut all = Supervisor::new(vec![base(), step(program("a"), &[0])], true);
        act(&mut all, at(0));
        all.met(0, at(1));
        act(&mut all, at(1));
        all.ended(id(1), Ended::Code(0), at(3));
        assert_eq!(act(&mut all, at(3)), [Effect::End(id(0))]);
        // It ends before it serves: that is not tried again. Later it is.
        let mut all = Supervisor::new(vec![base(), step(program("a"), &[0])], true);
        act(&mut all, at(0));
        all.ended(id(0), Ended::Code(2), at(1));
        assert!(all.is_over() && all.has_failed());
        let mut all = Supervisor::new(vec![base(), step(program("a"), &[0])], true);
        act(&mut all, at(0));
        all.met(0, at(1));
        act(&mut all, at(1));
        all.ended(id(0), Ended::Signal(9), at(20));
        assert_eq!(act(&mut all, at(30)), [Effect::Start(id(0))]);
        // It does not come to serve.
        let mut all = Supervisor::new(vec![base(), step(program("a"), &[0])], true);
        act(&mut all, at(0));
        all.unmet(0, "it does not serve", at(60));
        assert_eq!((act(&mut all, at(60)), all.has_failed()), (vec![Effect::End(id(0))], true));
    }
}
