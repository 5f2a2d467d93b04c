//! What can be typed about recordings.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ArgGroup, ValueHint};

use super::duration;
use crate::mesh::TopicFilter;

#[derive(ArgGroup, Debug)]
pub(in crate::cli) struct RecordArgs {
    /// What to record: topics, in which * stands for one part and ** for any number of parts
    #[arg(required = true, value_name = "FILTER")]
    pub(in crate::cli) filters: Vec<TopicFilter>,
    /// Where to [default: meshd-<date>-<time>.mcap]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(in crate::cli) output: Option<PathBuf>,
    /// Stop after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(in crate::cli) count: Option<u64>,
    /// Stop after this time
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
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, conflicts_with = "immediate")]
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
}

pub(super) const RECORD: &str = "";
pub(super) const PLAY: &str = "";
