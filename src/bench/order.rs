//! What the one that measures says to its peer processes, and what they answer: lines of JSON, on their stdin and stdout.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::Latency;
use super::stream::{Flood, Sent, Take, Taken};
use crate::LinkKind;

/// What a peer process is to do. Each is answered before the next is begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Starts a node: the first order. Answered by [`Answer::Joined`].
    Join(Join),
    /// Waits until so many peers are linked, and a little for the links to be of this kind. Answered by [`Answer::Links`].
    Meet { peers: usize, link: LinkKind },
    /// Echoes messages and offers a service, from now on. Answered by [`Answer::Ready`].
    Serve { in_flight: usize },
    /// Listens. Answered by [`Answer::Ready`], and by [`Answer::Taken`] after the last message.
    Take(Take),
    /// Sends. Answered by [`Answer::Sent`].
    Flood(Flood),
    /// Sends a message and waits for its echo, over and over. Answered by [`Answer::Echoed`].
    Trips(Work),
    /// Calls, so many at a time. Answered by [`Answer::Called`].
    Calls { work: Work, in_flight: usize },
    /// Listens for one message. Answered by [`Answer::Ready`], and by [`Answer::Arrived`] when it came.
    Await { topic: String },
    /// Sends one message as soon as somebody listens. Answered by [`Answer::Done`].
    Announce { topic: String },
    /// Answered by [`Answer::Usage`].
    Usage,
    /// Leaves the mesh and ends. Answered by [`Answer::Done`].
    Leave,
}

/// How a peer gets into the mesh of this measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Join {
    pub(super) name: String,
    pub(super) key: [u8; 32],
    pub(super) link: LinkKind,
    /// Where peers with Unix links meet. Cleared when the bench is over.
    pub(super) folder: PathBuf,
    /// Whom peers with TCP links try first.
    pub(super) bootstrap: Vec<String>,
}

/// Something that is done over and over.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Work {
    /// Bytes of payload.
    pub(super) size: usize,
    /// For how long, before anything is measured.
    pub(super) warm: Duration,
    /// For how long it is measured.
    pub(super) time: Duration,
    /// At most so many times.
    pub(super) count: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// With where the node listens.
    Joined(Vec<String>),
    /// Of which kind each link is.
    Links(Vec<LinkKind>),
    Ready,
    Taken(Taken),
    Sent(Sent),
    Echoed {
        latency: Latency,
        lost: u64,
    },
    Called {
        calls: u64,
        nanos: u64,
        latency: Latency,
    },
    /// When, by the clock of the machine.
    Arrived {
        at: u64,
    },
    /// `None`: this system does not tell.
    Usage(Option<Usage>),
    Done,
    /// Why it could not be done.
    Failed(String),
}

/// What a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Usage {
    /// Nanoseconds of processors so far.
    pub(super) cpu: u64,
    /// Memory in KiB: all that is resident, and with what is shared divided by who shares it.
    pub(super) rss: u64,
    pub(super) pss: Option<u64>,
}
