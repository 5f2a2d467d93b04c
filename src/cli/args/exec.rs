//! What can be typed about running programs elsewhere, and about stopping.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ArgGroup, ValueHint};

use super::duration;

#[derive(ArgGroup, Debug)]
#[group(id = "where", required = true, multiple = false, args = ["on", "group", "all"])]
pub(in crate::cli) struct ExecArgs {
    /// On this node: its name, or its id if several have that name
    #[arg(long, value_name = "NODE")]
    pub(in crate::cli) on: Option<String>,
    /// On all nodes of this name
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) group: Option<String>,
    /// On every node that runs programs for others
    #[arg(long)]
    pub(in crate::cli) all: bool,
    /// Send this program along, and run it there; nothing is left behind
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(in crate::cli) script: Option<PathBuf>,
    /// What runs the script there [default: what its first line says, after #!]
    #[arg(long, value_name = "INTERPRETER", requires = "script")]
    pub(in crate::cli) with: Option<String>,
    /// Lines are messages: each line of stdin is handed over as a whole, and each that it prints comes back as one
    #[arg(long)]
    pub(in crate::cli) messages: bool,
    /// Set a variable of its environment; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub(in crate::cli) env: Vec<String>,
    /// The directory in which it runs there
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) chdir: Option<PathBuf>,
    /// End it after this time
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) timeout: Option<Duration>,
    /// The program and its arguments; with --script its arguments only
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "script")]
    pub(in crate::cli) command: Vec<OsString>,
}

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct StopArgs {
    /// Whom to stop: a node's or peer's id, or a node's name [default: the daemon here]
    #[arg(value_name = "NODE|PEER")]
    pub(in crate::cli) target: Option<String>,
}

pub(super) const EXEC: &str = "";
pub(super) const STOP: &str = "\
Examples:
  meshd stop                     stop the daemon here, in order: as SIGTERM does
  meshd stop camera-1            ask the daemon whose own node has that name
  meshd stop 12D3KooW...         the same by the id of its peer

A daemon elsewhere stops only for whom its config.toml names:
  [[allow]]
  action = [\"stop\"]
  who = [\"id1-...\"]             as `meshd identity` prints there; never names
  pattern = \"**\"

Here, it is waited until the daemon has ended, 10 s at most. Elsewhere, until it says that it stops.";
