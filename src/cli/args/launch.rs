//! What can be typed about launching.

use std::path::PathBuf;

use clap::{Args as ArgGroup, ValueHint};

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct LaunchArgs {
    /// The file that says what to start
    #[arg(value_name = "FILE", default_value = "mesh.toml", value_hint = ValueHint::FilePath)]
    pub(in crate::cli) file: PathBuf,
    /// Only these programs of it; may be given several times
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) only: Vec<String>,
    /// Not these programs of it; may be given several times
    #[arg(short, long, value_name = "NAME")]
    pub(in crate::cli) except: Vec<String>,
    /// Only say what would be started
    #[arg(short = 'n', long)]
    pub(in crate::cli) dry_run: bool,
}

pub(super) const LAUNCH: &str = "\
A file names programs of this machine:

  [program.camera]
  command = [\"camera\", \"--rate\", \"30\"]     or shell = \"camera | meshd send frames/left --lines\"

  [program.viewer]
  shell = \"meshd listen 'frames/**'\"
  after = [\"camera\"]                      or { topic = \"..\" }, { service = \"..\" }
  restart = \"always\"                      on_failure (as if not said), never

Each line that a program prints is shown behind its name. The daemon is started too, if none runs, and ends last. \
Ctrl-C and SIGTERM end all, the last started first: SIGTERM, after 10 s SIGKILL; a second Ctrl-C kills at once. The exit \
code is 1 if a program failed and is not tried again. docs/CLI.md lists all keys.

Examples:
  meshd launch
  meshd launch robot/mesh.toml --except camera
  meshd launch --dry-run                 what would be started here
  meshd launch --json | jq 'select(.event != \"line\")'";
