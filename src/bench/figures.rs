//! What comes of measuring.

use std::thread::available_parallelism;

use serde::Serialize;

use super::clock::Latency;
use crate::LinkKind;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Bench {
    Topic,
    Echo,
    Call,
    FanOut,
    Start,
    Idle,
}

impl Bench {
    pub(crate) const ALL: [Self; 6] = [Self::Topic, Self::Echo, Self::Call, Self::FanOut, Self::Start, Self::Idle];
}

/// One line of figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) bench: Bench,
    /// What the links were, as they said themselves.
    #[serde(serialize_with = "name")]
    pub(crate) transport: LinkKind,
    build: &'static str,
    #[serde(flatten)]
    pub(crate) figures: Figures,
}

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Figures {
    /// From one to one, as fast as it goes.
    Topic {
        size: usize,
        msg_per_s: f64,
        mb_per_s: f64,
        messages: u64,
        lost: u64,
    },
    Echo {
        size: usize,
        load: Load,
        #[serde(skip_serializing_if = "Option::is_none")]
        msg_per_s: Option<f64>,
        #[serde(flatten)]
        latency: Latency,
        lost: u64,
    },
    Call {
        size: usize,
        in_flight: usize,
        calls_per_s: f64,
        calls: u64,
        #[serde(flatten)]
        latency: Latency,
    },
    /// From one to many.
    FanOut {
        size: usize,
        listeners: usize,
        processes: usize,
        published_per_s: f64,
        delivered_per_s: f64,
        mb_per_s: f64,
        /// How often each message crossed a link, for each link that leads to listeners.
        frames_per_link: f64,
        messages: u64,
        lost: u64,
    },
    Start {
        starts: usize,
        median_ms: f64,
        max_ms: f64,
    },
    /// Of one peer, on average.
    Idle {
        peers: usize,
        rss_kib: u64,
        pss_kib: Option<u64>,
        cpu_percent: f64,
        seconds: f64,
    },
}

/// What else happens while latency is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Load {
    /// Nothing: one message goes there and back.
    Idle,
    /// Messages go one way at half of the rate that was reached; each counts, from when it was to be sent.
    Half,
}

impl Row {
    pub(super) fn new(bench: Bench, transport: LinkKind, figures: Figures) -> Self {
        Self { bench, transport, build: BUILD, figures }
    }
}

impl Figures {
    /// By which the median of several rounds is found.
    pub(super) fn key(&self) -> f64 {
        match self {
            Self::Topic { msg_per_s, .. } => *msg_per_s,
            Self::Echo { latency, .. } => latency.p50_us,
            Self::Call { calls_per_s, .. } => *calls_per_s,
            Self::FanOut { delivered_per_s, .. } => *delivered_per_s,
            Self::Start { median_ms, .. } => *median_ms,
            Self::Idle { cpu_percent, .. } => *cpu_percent,
        }
    }

    /// Messages that did not come.
    pub(super) fn lost(&mut self) -> Option<&mut u64> {
        match self {
            Self::Topic { lost, .. } | Self::Echo { lost, .. } | Self::FanOut { lost, .. } => Some(lost),
            Self::Call { .. } | Self::Start { .. } | Self::Idle { .. } => None,
        }
    }

    /// The median of several rounds, with what was lost in all of them.
    pub(super) fn median(mut rounds: Vec<Self>) -> Option<Self> {
        let lost: u64 = rounds.iter_mut().filter_map(|round| round.lost().copied()).sum();
        rounds.sort_by(|a, b| a.key().total_cmp(&b.key()));
        let middle = rounds.len() / 2;
        let mut median = rounds.into_iter().nth(middle)?;
        if let Some(all) = median.lost() {
            *all = lost;
        }
        Some(median)
    }
}

/// What figures depend on: program, processors, system.
pub(crate) fn machine() -> String {
    let system = rustix::system::uname();
    let said = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    format!(
        "meshd {} ({BUILD} build), {} processors, {} {} {}",
        env!("CARGO_PKG_VERSION"),
        available_parallelism().map_or_else(|_| "?".to_owned(), |processors| processors.to_string()),
        said(system.sysname()),
        said(system.release()),
        said(system.machine()),
    )
}

fn name<S: serde::Serializer>(kind: &LinkKind, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(kind.name())
}

/// How this program was built. Figures of a debug build say nothing.
pub(crate) const BUILD: &str = if cfg!(debug_assertions) { "debug" } else { "release" };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_hides_no_loss() {
        let round = |msg_per_s, lost| Figures::Topic { size: 1, msg_per_s, mb_per_s: 0.0, messages: 10, lost };
        let median = Figures::median(vec![round(3.0, 0), round(1.0, 5), round(2.0, 0)]).unwrap();
        assert!(matches!(median, Figures::Topic { lost: 5, .. }) && median.key() == 2.0, "{median:?}");
    }

    #[test]
    fn a_row_is_one_flat_object() {
        let latency = Latency { p50_us: 1.5, p99_us: 2.0, p999_us: 3.0, max_us: 4.0, samples: 9 };
        let figures = Figures::Echo { size: 64, load: Load::Idle, msg_per_s: None, latency, lost: 0 };
        let row = serde_json::to_value(Row::new(Bench::FanOut, LinkKind::Unix, figures)).unwrap();
        let wanted = serde_json::json!({
            "bench": "fan-out", "transport": "unix", "build": BUILD, "size": 64, "load": "idle", "p50_us": 1.5,
            "p99_us": 2.0, "p999_us": 3.0, "max_us": 4.0, "samples": 9, "lost": 0,
        });
        assert_eq!(row, wanted);
    }
}
