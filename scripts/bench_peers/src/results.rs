//! What was measured, one line of JSON each, and what the tables show of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::work::Work;

/// Where it was measured, and with what.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    pub date: String,
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub os: String,
    pub rounds: usize,
    pub seconds: f64,
    pub minutes: f64,
    pub versions: Vec<(String, String)>,
    /// Systems that are not there, and why.
    pub absent: Vec<(String, String)>,
}

/// One system at one work in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    pub round: usize,
    pub system: String,
    pub work: Work,
    /// `per_second`, `trip_p50`, .. : see [`FIGURES`].
    #[serde(default)]
    pub figures: BTreeMap<String, f64>,
    /// What the receivers should have got, and got.
    #[serde(default)]
    pub sent: u64,
    #[serde(default)]
    pub received: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    Facts(Facts),
    Cell(Cell),
}

/// One column of figures.
#[derive(Debug, PartialEq)]
pub struct Figure {
    pub work: Work,
    pub key: &'static str,
    pub title: &'static str,
    pub unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    PerSecond,
    BytesPerSecond,
    Microseconds,
}

pub const FIGURES: &[Figure] = &[
    Figure { work: Work::Flood64, key: "per_second", title: "64 B, one to one", unit: Unit::PerSecond },
    Figure { work: Work::Flood1K, key: "per_second", title: "1 KiB, one to one", unit: Unit::PerSecond },
    Figure { work: Work::Flood64K, key: "per_second", title: "64 KiB, one to one", unit: Unit::BytesPerSecond },
    Figure { work: Work::Flood1M, key: "per_second", title: "1 MiB, one to one", unit: Unit::BytesPerSecond },
    Figure { work: Work::Trip, key: "trip_p50", title: "64 B round trip, p50", unit: Unit::Microseconds },
    Figure { work: Work::Trip, key: "trip_p99", title: "64 B round trip, p99", unit: Unit::Microseconds },
    Figure { work: Work::Calls, key: "call_p50", title: "64 B call, one at a time, p50", unit: Unit::Microseconds },
    Figure { work: Work::Calls, key: "calls", title: "64 B calls, 64 in flight", unit: Unit::PerSecond },
    Figure {
        work: Work::Fan,
        key: "per_second",
        title: "64 B to 32 listeners in 4 processes, delivered",
        unit: Unit::PerSecond,
    },
    Figure { work: Work::Start, key: "start_p50", title: "start to first answer, p50", unit: Unit::Microseconds },
];

/// All rounds of a figure of a system.
#[derive(Clone, Debug)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
    /// Messages sent and not delivered, of all rounds, and all sent.
    pub lost: u64,
    pub sent: u64,
}

#[derive(Debug, Default)]
pub struct Results {
    pub facts: Facts,
    pub cells: Vec<Cell>,
}

impl Results {
    pub fn read(path: &Path) -> Outcome<Self> {
        let mut results = Self::default();
        for line in fs::read_to_string(path)?.lines() {
            match serde_json::from_str(line)? {
                Record::Facts(facts) => results.facts = facts,
                Record::Cell(cell) => results.cells.push(cell),
            }
        }
        Ok(results)
    }

    pub fn figure(&self, figure: &Figure, system: &str) -> Option<Spread> {
        let cells = || self.cells.iter().filter(|cell| cell.work == figure.work && cell.system == system);
        // The calls that are counted are those in flight.
        let counted = || cells().filter(|_| matches!(figure.key, "per_second" | "calls"));
        let mut values: Vec<f64> = cells().filter_map(|cell| cell.figures.get(figure.key).copied()).collect();
        values.sort_by(f64::total_cmp);
        let scale = if figure.unit == Unit::BytesPerSecond { figure.work.size() as f64 } else { 1.0 };
        Some(Spread {
            median: middle(&values)? * scale,
            least: values.first()? * scale,
            most: values.last()? * scale,
            lost: counted().map(|cell| cell.sent.saturating_sub(cell.received)).sum(),
            sent: counted().map(|cell| cell.sent).sum(),
        })
    }

    /// What carried the messages of a system, as it said itself: at one work, or at all but `Start`, which may end before a
    /// link is what it will be.
    pub fn link(&self, work: Option<Work>, system: &str) -> Option<String> {
        let asked = |cell: &&Cell| work.map_or(cell.work != Work::Start, |work| cell.work == work);
        let cells = self.cells.iter().filter(|cell| cell.system == system).filter(asked);
        let mut kinds: Vec<&str> = cells.filter_map(|cell| cell.link.as_deref()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        (!kinds.is_empty()).then(|| kinds.join(" and "))
    }

    /// Why a system has no figure.
    pub fn failure(&self, work: Work, system: &str) -> Option<&str> {
        let mut cells = self.cells.iter().filter(|cell| cell.work == work && cell.system == system);
        cells.find_map(|cell| cell.failed.as_deref())
    }
}

fn middle(sorted: &[f64]) -> Option<f64> {
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    Some(if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[half - 1], upper) } else { upper })
}

impl Unit {
    /// How many times better the first is.
    pub fn better(self, one: f64, other: f64) -> f64 {
        if self == Self::Microseconds { other / one } else { one / other }
    }

    pub fn show(self, value: f64) -> String {
        match self {
            Self::PerSecond if value >= 1e6 => format!("{:.2} M/s", value / 1e6),
            Self::PerSecond if value >= 1e5 => format!("{:.0} k/s", value / 1e3),
            Self::PerSecond if value >= 1e3 => format!("{:.1} k/s", value / 1e3),
            Self::PerSecond => format!("{value:.0}/s"),
            Self::BytesPerSecond if value >= 1e9 => format!("{:.2} GB/s", value / 1e9),
            Self::BytesPerSecond => format!("{:.0} MB/s", value / 1e6),
            Self::Microseconds if value >= 1e4 => format!("{:.0} ms", value / 1e3),
            Self::Microseconds if value >= 1e3 => format!("{:.1} ms", value / 1e3),
            Self::Microseconds if value < 100.0 => format!("{value:.1} us"),
            Self::Microseconds => format!("{value:.0} us"),
        }
    }
}
