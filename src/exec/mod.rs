//! Running programs for others, and having others run them: each run is a channel to the service `meshd.exec`.
//!
//! `policy` decides what may run, `serving` answers requests, `refusals` bounds what is logged of those in vain, `run` is one
//! program from its start to the end of all that it started, `process` is the caller's side.

mod policy;
mod process;
mod refusals;
mod run;
mod serving;

pub use self::process::{Command, ExecError, NoInterpreter, Output, Process, ProcessInput, ProcessOutput};
pub use self::serving::ExecService;
