//! What can be typed about recordings.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ArgGroup, ValueHint};

use super::{duration, whole};
use crate::mesh::TopicFilter;

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct RecordArgs {
    /// What to record: topics, in which * stands for one part and ** for any number of parts
    #[arg(required = true, value_name = "FILTER")]
    pub(in crate::cli) filters: Vec<TopicFilter>,
    /// Where to [default: meshd-DATE-TIME.mcap]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(in crate::cli) output: Option<PathBuf>,
    /// Stop after so many messages
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, u64::MAX))]
    pub(in crate::cli) count: Option<u64>,
    /// Stop after this time; an error if --count was not reached
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) timeout: Option<Duration>,
    /// Replace the file if it is there
    #[arg(long)]
    pub(in crate::cli) force: bool,
}

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct PlayArgs {
    /// The file [default: the newest meshd-*.mcap here]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(in crate::cli) file: Option<PathBuf>,
    /// So many times as fast as it was recorded
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = factor, conflicts_with = "immediate")]
    pub(in crate::cli) rate: f64,
    /// As fast as it goes
    #[arg(long)]
    pub(in crate::cli) immediate: bool,
    /// Only these topics; may be given several times
    #[arg(long, value_name = "FILTER")]
    pub(in crate::cli) filter: Vec<TopicFilter>,
    /// Start again at the end, until stopped
    #[arg(long = "loop")]
    pub(in crate::cli) again: bool,
    /// How long to wait for a first listener
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration, conflicts_with = "no_wait")]
    pub(in crate::cli) wait: Duration,
    /// Do not wait for a listener
    #[arg(long)]
    pub(in crate::cli) no_wait: bool,
}

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct InfoArgs {
    /// The file [default: the newest meshd-*.mcap here]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(in crate::cli) file: Option<PathBuf>,
    /// Read all of it, and fail if not all can be played
    #[arg(long)]
    pub(in crate::cli) check: bool,
}

/// How many times as fast: more than 0, and a number.
fn factor(text: &str) -> Result<f64, String> {
    let factor: f64 = text.parse().map_err(|_| "write 2 or 0.5, say".to_owned())?;
    if factor.is_finite() && factor > 0.0 {
        Ok(factor)
    } else {
        Err("it is more than 0: write 2 or 0.5, say".to_owned())
    }
}

pub(super) const RECORD: &str = "\
Listens as a group of its own, so that nobody gets fewer messages because of it, and writes MCAP files, which \
Foxglove and others open too. Ctrl-C or SIGTERM ends it in order. Without messages there is no file. A file whose \
recorder was killed, or whose disk was full, holds all up to the last second or MiB.

Senders do not wait for a recorder that is too slow: what it misses is counted, told at the end and written into \
the file. The exit code is 4 if --timeout passes before --count messages came.

Examples:
  meshd record 'sensors/**'                      until Ctrl-C, into meshd-DATE-TIME.mcap
  meshd record 'frames/*' state -o run7.mcap --timeout 10m
  meshd record '**' --count 100 --json | jq .lost";

pub(super) const PLAY: &str = "\
Sends each message of a file on its topic, encoded as it was, in the order in which they were recorded and with the \
same time between them. They come from a node called play. The exit code is 3 if nobody listens. Of a \
file that is damaged or lacks its end, all up to there is played; then the exit code is 1. With --loop the \
first message follows the last one as messages follow each other on average.

Examples:
  meshd play                          the newest recording here
  meshd play run7.mcap --rate 0.5     half as fast
  meshd play run7.mcap --filter 'frames/*' --filter state --loop
  meshd play run7.mcap --immediate    as fast as it goes";

pub(super) const INFO: &str = "\
Looks at the index of a file, or reads all of it if there is none. With --check it reads all of it, verifies the checksums \
and says how many messages can be played; the exit code is 1 if those are not all, or if the file is damaged.

Examples:
  meshd info                          the newest recording here
  meshd info run7.mcap --check && meshd play run7.mcap";
