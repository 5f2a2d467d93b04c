//! What can be typed about running programs elsewhere, and about stopping.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ArgGroup, ValueHint};

use super::duration;

#[derive(ArgGroup, Debug)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("where").required(true).args(["on", "group", "all"])))]
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
    #[arg(trailing_var_arg = true, value_name = "COMMAND", required_unless_present = "script")]
    pub(in crate::cli) command: Vec<OsString>,
}

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct StopArgs {
    /// Whom to stop: a node's or peer's id, or a node's name [default: the daemon here]
    #[arg(value_name = "NODE|PEER")]
    pub(in crate::cli) target: Option<String>,
}

pub(super) const EXEC: &str = "\
What it prints, and its exit code, come here; stdin, Ctrl-C and other signals go there. When this command ends, \
so does all that it started there. Whoever owns the other node has to allow it: [exec] in config.toml there.

With --group and --all, each line begins with the name of its node, and the worst exit code is the one given. \
What went wrong with meshd itself is said in a line that begins with `meshd:`: 1 the node was lost, 3 there is no \
such node, 4 time was up, 5 refused or busy, 126 and 127 there is no such program.

Examples:
  meshd exec --on camera -- uname -a
  tar c photos | meshd exec --on attic --chdir /backup -- tar x
  meshd exec --all -- df -h /
  meshd exec --group workers --script setup.sh
  meshd exec --on gpu --script train.py --with python3 --env EPOCHS=3 --timeout 1h
  printf '1\\n2\\n' | meshd exec --on far --messages --json --script double.py";
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
