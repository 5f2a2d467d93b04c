//! When messages of a file are due.

use std::time::Duration;

/// The times of messages, one after the other, as times since the first one was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    rate: f64,
    last_ns: Option<u64>,
    due_ns: f64,
}

impl Pace {
    /// `rate` times as fast as they came.
    pub(crate) fn new(rate: f64) -> Self {
        Self { rate, last_ns: None, due_ns: 0.0 }
    }

    /// When a message is due that was received at that time. Where the clock went back, it is due with the one before it.
    pub(crate) fn due(&mut self, time_ns: u64) -> Duration {
        let since = self.last_ns.map_or(0, |last| time_ns.saturating_sub(last));
        self.last_ns = Some(time_ns);
        self.due_ns += since as f64 / self.rate;
        Duration::try_from_secs_f64(self.due_ns / 1e9).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacing_is_kept_at_any_rate() {
        let times = [1_000_000_000, 1_000_000_000, 1_500_000_000, 4_000_000_000];
        for (rate, due) in [(1.0, [0, 0, 500, 3000]), (2.0, [0, 0, 250, 1500]), (0.5, [0, 0, 1000, 6000])] {
            let mut pace = Pace::new(rate);
            assert_eq!(times.map(|time| pace.due(time).as_millis()), due, "{rate}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_or_lies_holds_up_nothing_that_it_need_not() {
        let mut pace = Pace::new(1.0);
        let due = [2_000_000_000, 1_000_000_000, 1_250_000_000].map(|time| pace.due(time).as_millis());
        assert_eq!(due, [0, 0, 250]);
        assert_eq!(Pace::new(f64::MIN_POSITIVE).due(u64::MAX), Duration::ZERO);
        let mut pace = Pace::new(f64::MIN_POSITIVE);
        pace.due(0);
        assert_eq!(pace.due(u64::MAX), Duration::MAX);
    }
}
