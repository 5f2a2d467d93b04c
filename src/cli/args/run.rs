//! What can be typed about running the daemon.

use std::env;

use clap::{Args as ArgGroup, Parser, Subcommand};

use super::{Args, Command, Global};
use crate::mesh::NodeName;

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct RunArgs {
    /// Name of the daemon's own node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) name: Option<NodeName>,
    /// Where to listen: host:port or a multiaddress; may be given several times [default: any port on all interfaces]
    #[arg(long, value_name = "ADDR")]
    pub(in crate::cli) listen: Vec<String>,
    /// A peer to try first, for where multicast does not reach; may be given several times
    #[arg(long, value_name = "ADDR")]
    pub(in crate::cli) bootstrap: Vec<String>,
    /// Do not find or announce peers by multicast DNS
    #[arg(long)]
    pub(in crate::cli) no_mdns: bool,
    /// Treat peers of this host like those of others: found and linked over the network alone
    #[arg(long)]
    pub(in crate::cli) no_local: bool,
}

/// The daemon's command line alone. What defines all the other verbs would stay in memory for as long as it runs.
#[derive(Debug, Parser)]
struct DaemonArgs {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: DaemonCommand,
}

#[derive(Debug, Subcommand)]
enum DaemonCommand {
    Run(RunArgs),
}

impl Args {
    /// Parses the arguments of this process.
    pub(in crate::cli) fn read() -> Result<Self, clap::Error> {
        if env::args_os().any(|argument| argument == "run")
            && let Ok(DaemonArgs { global, command: DaemonCommand::Run(run) }) = DaemonArgs::try_parse()
        {
            return Ok(Self { global, command: Command::Run(run) });
        }
        Self::try_parse() // which says what is wrong in the words of all verbs, too
    }
}

pub(super) const HELP: &str = "\
The first start makes a key: this is then a mesh of one. On another machine, `meshd join -` with a ticket \
from `meshd invite` stores the same key, and `meshd run` finds this one.

Once it serves, it prints one line that begins with `ready` (an object with --json). SIGTERM and SIGINT end \
it in order; SIGHUP makes it read its keys again.

Examples:
  meshd run
  meshd run --name camera-1 --listen 0.0.0.0:4001
  meshd --mesh lab run --bootstrap gateway.example:4001 --no-mdns";
