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

pub(super) const LAUNCH: &str = "";
