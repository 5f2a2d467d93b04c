//! Starting programs and keeping them running: `meshd launch`.
//!
//! `file` says what is written, `plan` what is started here and in which order, `supervisor` what is to happen next: plain
//! functions and values, with the time as an argument. `process` and `lines` are one process and what it prints, `orphans` sees
//! to it that none is left behind, and `run` carries out what the supervisor decides. What is in the mesh is asked through a function.

mod file;
mod lines;
mod orphans;
mod plan;
mod process;
mod run;
mod supervisor;

pub(crate) use file::{Backoff, DAEMON, FileError, Job, LaunchFile, Need, Program, Restart};
pub(crate) use plan::{Choice, Plan, PlanError, Step};
pub(crate) use process::Surroundings;
pub(crate) use run::{Launched, Shown, Stream, run};
pub(crate) use supervisor::{Ended, Fate, Id, Outcome, Told};

#[cfg(test)]
pub(crate) mod kit {
    //! Programs for tests.

    use std::time::Duration;

    use super::*;

    /// A program with what a file that says no more gives it.
    pub(crate) fn program(name: &str) -> Program {
        Program {
            name: name.to_owned(),
            job: Job::Words(vec!["true".to_owned()]),
            count: 1,
            env: std::collections::BTreeMap::new(),
            chdir: "/".into(),
            on_host: Vec::new(),
            disabled: false,
            after: Vec::new(),
            after_timeout: Duration::from_secs(60),
            start_delay: Duration::ZERO,
            after_delay: Duration::ZERO,
            restart: Restart::OnFailure,
            backoff: Backoff::default(),
            max_restarts: None,
            stop_timeout: Duration::from_secs(10),
            ends_all: false,
        }
    }
}
