//! What can be typed about files.

use std::ffi::OsString;

use clap::{Args as ArgGroup, ValueHint};

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct LsArgs {
    /// NODE for its shares, NODE:SHARE/PATH for files; NODE is a node's id, or a name for all nodes of it [default: the shares of all]
    #[arg(value_name = "NODE[:SHARE[/PATH]]")]
    pub(in crate::cli) what: Vec<OsString>,
    /// Everything below, not only what is directly in it
    #[arg(short, long)]
    pub(in crate::cli) recursive: bool,
    /// Only files whose path in the share matches this regular expression
    #[arg(long, value_name = "REGEX")]
    pub(in crate::cli) regex: Option<String>,
}

#[derive(ArgGroup, Debug)]
#[command(override_usage = "meshd get [OPTIONS] NODE:SHARE/PATH.. [TO]")]
pub(in crate::cli) struct GetArgs {
    /// What to get; then where to put it, unless that is here. * ? [..] and ** stand for names
    #[arg(required = true, value_name = "WORD", value_hint = ValueHint::AnyPath)]
    pub(in crate::cli) words: Vec<OsString>,
    /// Only files whose path, below what is named, matches this regular expression
    #[arg(long, value_name = "REGEX")]
    pub(in crate::cli) regex: Option<String>,
}

#[derive(ArgGroup, Debug)]
#[command(override_usage = "meshd put [OPTIONS] FILE.. NODE:SHARE[/PATH]..")]
pub(in crate::cli) struct PutArgs {
    /// Files and directories here, then one or several places for them
    #[arg(required = true, num_args = 2.., value_name = "WORD", value_hint = ValueHint::AnyPath)]
    pub(in crate::cli) words: Vec<OsString>,
    /// Only files whose path, below what is named, matches this regular expression
    #[arg(long, value_name = "REGEX")]
    pub(in crate::cli) regex: Option<String>,
}

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct SyncArgs {
    /// The directory to be like: here, or NODE:SHARE[/PATH]
    #[arg(value_name = "FROM", value_hint = ValueHint::DirPath)]
    pub(in crate::cli) from: OsString,
    /// Those that are to become like it: NODE:SHARE[/PATH], or one here
    #[arg(required = true, value_name = "TO", value_hint = ValueHint::DirPath)]
    pub(in crate::cli) to: Vec<OsString>,
    /// Delete what the first does not have
    #[arg(long)]
    pub(in crate::cli) delete: bool,
    /// Only say what would be done
    #[arg(short = 'n', long)]
    pub(in crate::cli) dry_run: bool,
    /// Only files whose path, below the directory, matches this regular expression; others are left as they are
    #[arg(long, value_name = "REGEX")]
    pub(in crate::cli) regex: Option<String>,
}

pub(super) const LS: &str = "\
Nodes share the directories that [[share]] in their config.toml names; without that, none. Prints mode, size, \
time and path of each file. Quote what holds * or ?, so that it reaches the node.

Examples:
  meshd ls                                what all nodes share
  meshd ls camera                         what the nodes named camera share
  meshd ls camera:photos/2026
  meshd ls 'camera:photos/**/*.jpg'
  meshd ls camera:photos -r --regex '\\.(jpg|png)$' --json";

pub(super) const GET: &str = "\
A word NODE:SHARE/PATH is a place on a node; all others are here: for one here that holds a colon write ./a:b. \
NODE is a node's id, or a name: what several nodes of that name have alike comes from all of them at once.

A file appears whole or not at all. What was interrupted, by Ctrl-C, a lost link or a crash, goes on from what \
had come when the same command is given again.

Examples:
  meshd get camera:photos/a.jpg                   into this directory
  meshd get camera:photos/a.jpg b.jpg             under another name
  meshd get 'camera:photos/2026-*' camera:notes ~/backup/
  meshd get camera:photos ~/backup/ --regex '\\.jpg$'";

pub(super) const PUT: &str = "\
Files and directories come first, then the places NODE:SHARE[/PATH] for them: all at once, each on its own. A \
name as NODE means all nodes of that name. For a file here that holds a colon write ./a:b.

A file appears whole or not at all. What was interrupted goes on from what had come when the same command is \
given again.

Examples:
  meshd put report.pdf server:inbox
  meshd put report.pdf server:inbox/march.pdf     under another name
  meshd put *.jpg notes/ server:inbox/2026/
  meshd put firmware.bin robots:updates backup:firmware";

pub(super) const SYNC: &str = "\
Makes directories like another one: from here to places on nodes, or from one there to here. Modes, times, \
symbolic links and empty directories are kept; files of the same size and time are left as they are. What the \
first does not have stays, unless --delete is given.

Examples:
  meshd sync site/ web:www --delete               all nodes named web
  meshd sync site/ web:www --delete --dry-run     says what it would do
  meshd sync camera:photos ~/photos";
