//! How fast meshd is on this machine: measured with processes of its own, through the public library.
//!
//! [`run`] starts peer processes ([`peer`]), tells them what to do ([`order`]) and takes no part itself. They have a key, a mesh
//! and a folder of their own, and end with it.

mod asking;
mod clock;
mod crew;
mod figures;
mod measure;
mod order;
mod peer;
mod stream;

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

pub(crate) use self::figures::{BUILD, Bench, Figures, Load, Row, machine};
pub(crate) use self::measure::run;
pub(crate) use self::peer::answers;
use crate::LinkKind;

/// What is measured, and how thoroughly.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Over which kinds of links.
    pub(crate) links: Vec<LinkKind>,
    /// Whether a kind that links here are not of is left out, with a word; else it is an error.
    pub(crate) leave_out: bool,
    pub(crate) benches: Vec<Bench>,
    /// Bytes of payload. Empty: those that each bench has by itself.
    pub(crate) sizes: Vec<usize>,
    /// How long each figure is measured.
    pub(crate) time: Duration,
    /// At most so many messages, round trips or calls for each figure.
    pub(crate) count: u64,
    /// Calls at a time.
    pub(crate) in_flight: usize,
    /// How many nodes listen to one sender.
    pub(crate) listeners: Vec<usize>,
    /// How many idle peers there are.
    pub(crate) idle: usize,
    /// How many processes are started, one after the other.
    pub(crate) starts: usize,
    /// How often each figure is measured; the median counts.
    pub(crate) rounds: usize,
}

/// What there is to tell meanwhile.
#[derive(Debug)]
pub(crate) enum Notice {
    /// What is being done, for who waits.
    Doing(String),
    /// Something that was asked for and is not measured, and why.
    LeftOut(String),
    /// A figure.
    Row(Row),
}

/// Why there are no more figures. No process is left behind.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("cannot make a directory for the peers to meet in")]
    Folder(#[source] io::Error),
    #[error("cannot start a peer process")]
    Start(#[source] io::Error),
    #[error("peer process {peer} ended: {status}{}", .said.lines().last().map(|line| format!(": {line}")).unwrap_or_default())]
    Ended { peer: usize, status: ExitStatus, said: String },
    #[error("peer process {peer} did not answer within {patience:?}")]
    Silent { peer: usize, patience: Duration },
    #[error("peer process {peer} could not go on: {why}")]
    Failed { peer: usize, why: String },
    #[error("links between peers of this machine are {} here, not {}", .found.name(), .wanted.name())]
    OtherLinks { wanted: LinkKind, found: LinkKind },
    /// Nobody reads on.
    #[error("nobody wants to know")]
    Unwanted,
}

impl BenchError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Folder(_) => "is the temporary directory (TMPDIR) writable?",
            Self::Start(_) => "is the program still where it was started from, and may this user start more processes?",
            Self::Ended { .. } => "was it killed, for want of memory for example? Try a smaller --size or --idle",
            Self::Silent { .. } | Self::Failed { .. } => {
                "a machine that is very busy may need --quick, or a smaller --size"
            }
            Self::OtherLinks { .. } => {
                "measure what there is: --transport tcp; `meshd peers` shows what carries a link"
            }
            Self::Unwanted => "",
        }
    }
}

/// The hidden verb that a peer process is started with.
pub(crate) const PEER_VERB: &str = "bench-peer";
/// Listeners of a fan-out are spread over so many processes.
pub(crate) const PROCESSES: usize = 4;

const GONE: &str = "the listener is gone";
/// Until peers that are linked know what each listens to and offers. It takes milliseconds.
const MEETING: Duration = Duration::from_secs(10);
/// How long anything may take besides what is measured.
const PATIENCE: Duration = Duration::from_secs(20);
