//! What can be typed about files.

use clap::{Args as ArgGroup, ValueHint};

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct LsArgs {
    /// NODE for its shares, NODE:SHARE/PATH for files; NODE is a node's id, or a name for all nodes of it [default: the shares of all]
    #[arg(value_name = "NODE[:SHARE[/PATH]]")]
    pub(in crate::cli) what: Vec<String>,
    /// Everything below, not only what is directly in it
    #[arg(short, long)]
    pub(in crate::cli) recursive: bool,
    /// Only files whose path in the share matches this regular expression
    #[arg(long, value_name = "REGEX")]
    pub(in crate::cli) regex: Option<String>,
}

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct GetArgs {
    /// What to get; then, if there are several words, where to put it. * ? [..] and ** stand for names
    #[arg(required = true, value_name = "NODE:SHARE/PATH", value_hint = ValueHint::AnyPath)]
    pub(in crate::cli) words: Vec<String>,
    /// Only files whose path in the share matches this regular expression
    #[arg(long, value_name = "REGEX")]
    pub(in crate::cli) regex: Option<String>,
}

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct PutArgs {
    /// Files and directories here, then one or several places for them
    #[arg(required = true, num_args = 2.., value_name = "FILE.. NODE:SHARE[/PATH]", value_hint = ValueHint::AnyPath)]
    pub(in crate::cli) words: Vec<String>,
    /// Only files whose path matches this regular expression
    #[arg(long, value_name = "REGEX")]
    pub(in crate::cli) regex: Option<String>,
}

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct SyncArgs {
    /// The directory to be like: here, or NODE:SHARE/PATH
    #[arg(value_name = "FROM", value_hint = ValueHint::DirPath)]
    pub(in crate::cli) from: String,
    /// Those that are to become like it: NODE:SHARE/PATH, or one here
    #[arg(required = true, value_name = "TO", value_hint = ValueHint::DirPath)]
    pub(in crate::cli) to: Vec<String>,
    /// Delete what the first does not have
    #[arg(long)]
    pub(in crate::cli) delete: bool,
    /// Only say what would be done
    #[arg(short = 'n', long)]
    pub(in crate::cli) dry_run: bool,
    /// Only files whose path matches this regular expression
    #[arg(long, value_name = "REGEX")]
    pub(in crate::cli) regex: Option<String>,
}

pub(super) const LS: &str = "";
pub(super) const GET: &str = "";
pub(super) const PUT: &str = "";
pub(super) const SYNC: &str = "";
