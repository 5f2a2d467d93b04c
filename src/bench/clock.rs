//! Time that all processes of a machine agree on, and how long things took.

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Nanoseconds of a clock that only goes forward and is one for all processes: `Instant` does not leave its process.
pub(super) fn now() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Nanoseconds that this process has used of processors, all of its threads together.
pub(super) fn processor_time() -> u64 {
    nanoseconds(ClockId::ProcessCPUTime)
}

pub(super) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Events per second.
pub(super) fn per_second(events: u64, nanoseconds: u64) -> f64 {
    tenths(events as f64 * 1e9 / nanoseconds.max(1) as f64)
}

/// As many digits as a figure is worth.
pub(super) fn tenths(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

/// How long something took, over and over.
#[derive(Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(super) fn new() -> Self {
        // Three digits, up to ten minutes: nothing here may take longer.
        Self(Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("bounds in order"))
    }

    pub(super) fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the same bounds");
    }

    /// `None` if there was nothing to measure.
    pub(super) fn summary(&self) -> Option<Latency> {
        let micros = |nanoseconds: u64| tenths(nanoseconds as f64 / 1e3);
        let at = |quantile| micros(self.0.value_at_quantile(quantile));
        (!self.0.is_empty()).then(|| Latency {
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: micros(self.0.max()),
            samples: self.0.len(),
        })
    }
}

/// How long something took, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Half took no longer.
    pub(crate) p50_us: f64,
    /// 99 of 100 took no longer.
    pub(crate) p99_us: f64,
    /// 999 of 1000 took no longer.
    pub(crate) p999_us: f64,
    /// The longest.
    pub(crate) max_us: f64,
    /// How many were measured.
    pub(crate) samples: u64,
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64 // since the start of the machine or process: positive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_summed_up() {
        let (mut a, mut b) = (Latencies::new(), Latencies::new());
        assert_eq!(a.summary(), None);
        (1..=990).for_each(|_| a.record(1_000));
        (1..=10).for_each(|_| b.record(2_000_000));
        a.add(&b);
        let latency = a.summary().unwrap();
        assert_eq!((latency.p50_us, latency.p99_us, latency.samples), (1.0, 1.0, 1000));
        assert!((latency.p999_us - 2000.0).abs() < 4.0 && latency.max_us >= 2000.0, "{latency:?}");
    }

    #[test]
    fn the_clock_goes_forward() {
        let before = now();
        assert!(now() >= before && before > 0);
        assert_eq!(per_second(500, 1_000_000_000), 500.0);
    }
}
