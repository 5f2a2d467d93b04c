//! One process of a program: a process group of its own.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::file::{Job, Program};
use super::supervisor::Ended;
use crate::keeper::Keeper;

/// What all programs find in their environment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings(pub(crate) Vec<(OsString, OsString)>);

/// A process that was started.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Child,
    pub(super) group: Pid,
    stop_timeout: Duration,
    keeper: Arc<Keeper>,
}

impl Process {
    /// Starts the process of this number.
    ///
    /// # Errors
    /// Says what could not be done, with what.
    pub(super) fn start(
        program: &Program,
        number: u16,
        surroundings: &Surroundings,
        keeper: &Arc<Keeper>,
    ) -> Result<Self, String> {
        let mut command = match &program.job {
            Job::Shell(line) => {
                let mut command = Command::new("sh");
                command.arg("-c").arg(line);
                command
            }
            Job::Words(words) => {
                let (name, args) = words.split_first().map_or(("", words.as_slice()), |(name, args)| (name, args));
                let mut command = Command::new(located(name, &program.chdir));
                command.args(args);
                command
            }
        };
        command.envs(surroundings.0.iter().map(|(name, value)| (name, value)));
        command.env("MESHD_PROGRAM", &program.name).env("MESHD_INSTANCE", number.to_string()).envs(&program.env);
        command.current_dir(&program.chdir).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| why_not(program, &error))?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let group = group.ok_or("it has no process id")?;
        keeper.started(group);
        Ok(Self { child, group, stop_timeout: program.stop_timeout, keeper: Arc::clone(keeper) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.group.as_raw_pid().unsigned_abs()
    }

    /// Waits until it has ended, and sees to it that all that it had started does too.
    pub(super) async fn end(&mut self) -> Ended {
        let status = self.child.wait().await.unwrap_or_else(|_| ExitStatus::from_raw(1 << 8)); // nobody else waits for it
        if !is_gone(self.group) {
            // It may be gone by now: then there is nobody to tell.
            let _ = kill_process_group(self.group, Signal::TERM);
            if timeout(self.stop_timeout, gone(self.group)).await.is_err() {
                let _ = kill_process_group(self.group, Signal::KILL);
                // What is left then is dead, and waits for somebody to take note.
                let _ = timeout(BURIAL, gone(self.group)).await;
            }
        }
        self.keeper.ended(self.group);
        match status.signal() {
            Some(signal) => Ended::Signal(signal),
            None => Ended::Code(status.code().unwrap_or(1)),
        }
    }
}

/// Where a program that is named with a `/` is: such a name starts where the program runs.
fn located(name: &str, chdir: &Path) -> OsString {
    if name.contains('/') { chdir.join(name).into_os_string() } else { OsStr::new(name).to_owned() }
}

fn why_not(program: &Program, error: &io::Error) -> String {
    if !program.chdir.is_dir() {
        return format!("it cannot run in {}, which is no directory", program.chdir.display());
    }
    match &program.job {
        Job::Words(words) => format!("cannot run {}: {error}", words.first().map_or("", String::as_str)),
        Job::Shell(_) => format!("cannot run sh: {error}"),
    }
}

async fn gone(group: Pid) {
    while !is_gone(group) {
        sleep(LOOK).await; // the system tells of no process but our own
    }
}

fn is_gone(group: Pid) -> bool {
    test_kill_process_group(group).is_err()
}

/// How long the system may take to end what was killed.
const BURIAL: Duration = Duration::from_secs(1);
/// Between looks whether a group is gone.
const LOOK: Duration = Duration::from_millis(20);
