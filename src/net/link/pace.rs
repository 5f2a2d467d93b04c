//! How much of what goes out in parts may be on its way.
//!
//! What is below a link takes in tens of megabytes before it makes a writer wait, and a small frame waits behind all of that.
//! So the receiver says what came, and no more is on its way than it takes in within a round trip and [`QUEUED`], or
//! [`LEAST`] if that is more: on a path below 200 MB/s, that many bytes are what a small frame waits for. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::wire::parts::REPORT_EVERY;

#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes of parts that were sent, and that the receiver says came.
    sent: u64,
    came: u64,
    /// Parts of which it did not say so.
    marks: VecDeque<Mark>,
    /// Most bytes on their way.
    window: u64,
    /// The shortest way there and back, as long as there is something on its way.
    trip: Option<Duration>,
    /// Bytes per second that come.
    rate: f64,
}

/// A part that was sent.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Bytes sent with it, when, and how many had come then.
    sent: u64,
    at: Instant,
    came: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { sent: 0, came: 0, marks: VecDeque::new(), window: LEAST, trip: None, rate: 0.0 }
    }
}

impl Pace {
    /// Whether one more part may go out.
    pub(super) fn is_open(&self) -> bool {
        self.sent - self.came < self.window
    }

    /// A part goes out.
    pub(super) fn send(&mut self, bytes: usize, now: Instant) {
        if self.sent - self.came <= REPORT_EVERY as u64 {
            (self.trip, self.rate) = (None, 0.0); // after a rest the way may be another
        }
        self.sent += bytes as u64;
        self.marks.push_back(Mark { sent: self.sent, at: now, came: self.came });
    }

    /// The receiver says how many bytes have come, all in all.
    pub(super) fn hear(&mut self, came: u64, now: Instant) {
        let came = came.min(self.sent);
        let mut last = None;
        while self.marks.front().is_some_and(|mark| mark.sent <= came) {
            last = self.marks.pop_front();
        }
        self.came = self.came.max(came);
        let Some(mark) = last else { return };
        let took = now.saturating_duration_since(mark.at).max(Duration::from_micros(1));
        let trip = self.trip.map_or(took, |trip| trip.min(took));
        self.trip = Some(trip);
        // What came while this part was on its way. A stall of either side tells nothing, so the rate falls slowly.
        let rate = self.came.saturating_sub(mark.came) as f64 / took.as_secs_f64();
        self.rate = rate.max(self.rate * 0.95);
        self.window = ((self.rate * (trip + QUEUED).as_secs_f64()) as u64).clamp(LEAST, MOST);
    }
}

/// How long a small frame may wait behind what is on its way, besides the way itself.
const QUEUED: Duration = Duration::from_millis(5);
/// Bytes that may always be on their way, and that may at most.
const LEAST: u64 = 1 << 20;
const MOST: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends for a second through a path of so many bytes per millisecond and so many milliseconds there and back. Gives the
    /// bytes that came, and for how many milliseconds bytes wait at the end.
    fn run(rate: u64, trip: u64) -> (u64, u64) {
        const PART: usize = 64 << 10;
        let (mut pace, began) = (Pace::default(), Instant::now());
        let (mut waiting, mut came) = (0u64, 0);
        let mut reports = VecDeque::new();
        for ms in 0..2000 {
            let now = began + Duration::from_millis(ms);
            while pace.is_open() {
                pace.send(PART, now);
                waiting += PART as u64;
            }
            let through = waiting.min(rate);
            waiting -= through;
            came += through;
            reports.push_back((ms + trip, came));
            while let Some((at, came)) = reports.pop_front() {
                if at > ms {
                    reports.push_front((at, came));
                    break;
                }
                pace.hear(came, now + Duration::from_micros(500));
            }
        }
        (came, waiting / rate)
    }

    #[test]
    fn a_path_is_filled_and_little_waits_in_it() {
        for (rate, trip) in [(1_000_000, 1), (400_000, 0), (100_000, 40), (1_000_000, 20)] {
            let (came, waits) = run(rate, trip);
            assert!(came > rate * 1500, "{rate} B/ms, {trip} ms: {came} came");
            assert!(waits <= 15, "{rate} B/ms, {trip} ms: bytes wait for {waits} ms");
        }
        let (came, waits) = run(1000, 1);
        assert!(came > 1000 * 1900 && waits * 1000 <= LEAST + (64 << 10), "a slow one: {came}, {waits}");
    }

    #[test]
    fn who_says_that_more_came_than_was_sent_is_not_believed() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.hear(u64::MAX, now);
        (0..16).for_each(|_| pace.send(64 << 10, now));
        assert!(!pace.is_open());
        pace.hear(u64::MAX, now + Duration::from_millis(1));
        pace.hear(3, now + Duration::from_millis(2));
        assert!(pace.is_open() && pace.sent == pace.came && pace.marks.is_empty());
    }
}
