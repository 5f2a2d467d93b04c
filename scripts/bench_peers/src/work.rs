//! What is measured, the same for every system: the messages, who counts them and when.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// One sender, one receiver, as fast as it goes.
    Flood64,
    #[serde(rename = "flood1k")]
    Flood1K,
    #[serde(rename = "flood64k")]
    Flood64K,
    #[serde(rename = "flood1m")]
    Flood1M,
    /// A message there and one back, one at a time.
    Trip,
    /// Calls: one at a time, then `IN_FLIGHT` at a time.
    Calls,
    /// One sender, 32 listeners in 4 processes.
    Fan,
    /// From the start of a participant to its first answer.
    Start,
}

impl Work {
    pub const ALL: [Self; 8] =
        [Self::Flood64, Self::Flood1K, Self::Flood64K, Self::Flood1M, Self::Trip, Self::Calls, Self::Fan, Self::Start];

    pub fn word(self) -> &'static str {
        match self {
            Self::Flood64 => "flood64",
            Self::Flood1K => "flood1k",
            Self::Flood64K => "flood64k",
            Self::Flood1M => "flood1m",
            Self::Trip => "trip",
            Self::Calls => "calls",
            Self::Fan => "fan",
            Self::Start => "start",
        }
    }

    pub fn read(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|work| work.word() == word)
    }

    /// Bytes of one message.
    pub fn size(self) -> usize {
        match self {
            Self::Flood1K => 1 << 10,
            Self::Flood64K => 64 << 10,
            Self::Flood1M => 1 << 20,
            _ => 64,
        }
    }

    /// Processes that receive, and listeners in each of them.
    pub fn listeners(self) -> (usize, usize) {
        if self == Self::Fan { (4, 8) } else { (1, 1) }
    }
}

pub const IN_FLIGHT: usize = 64;
/// For whatever should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How often a participant starts, one after the other.
pub const STARTS: usize = 10;

/// What both halves are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    pub system: String,
    pub work: Work,
    /// Seconds that are not counted, and that are.
    pub warm: f64,
    pub seconds: f64,
    /// A folder that both halves see, for this measurement alone.
    pub folder: std::path::PathBuf,
    /// A port of 127.0.0.1 for this half (0: none), and the number of the half.
    pub port: u16,
    pub half: usize,
    /// What the other halves said when they were ready.
    pub addresses: Vec<String>,
}

const DATA: u8 = 0;
const START: u8 = 1;
const END: u8 = 2;

/// The messages of a flood: all alike but for the first byte.
pub struct Payloads([Bytes; 3]);

impl Payloads {
    pub fn new(size: usize) -> Self {
        Self([DATA, START, END].map(|kind| {
            let mut bytes = vec![7; size];
            bytes[0] = kind;
            bytes.into()
        }))
    }

    pub fn of(&self, kind: Kind) -> &Bytes {
        &self.0[kind as usize]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Data = DATA as isize,
    /// What came before does not count. A pause follows, so that nothing of it is under way any more.
    Start = START as isize,
    /// The last; sent again until this process is ended, should it get lost.
    End = END as isize,
}

/// The pause between warm-up and what counts.
pub const PAUSE: Duration = Duration::from_millis(400);

/// How long a sender sends. Reads the clock so seldom that it does not show.
pub struct Pace {
    began: Instant,
    whole: Duration,
    stride: u64,
    pub sent: u64,
}

impl Pace {
    pub fn new(work: Work, seconds: f64) -> Self {
        let stride = if work.size() > 1 << 10 { 1 } else { 64 };
        Self { began: now(), whole: Duration::from_secs_f64(seconds), stride, sent: 0 }
    }

    /// Whether to send one more.
    #[inline]
    pub fn goes_on(&mut self) -> bool {
        if self.sent.is_multiple_of(self.stride) && self.began.elapsed() > self.whole {
            return false;
        }
        self.sent += 1;
        true
    }
}

/// What one listener received.
#[derive(Default)]
pub struct Tally {
    /// Since the start of what counts.
    received: u64,
    /// When the first of them came.
    began: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Counted {
    pub received: u64,
    pub per_second: f64,
}

impl Tally {
    /// Takes a message. At the last one: what it all was, from the first to the last.
    #[inline]
    pub fn take(&mut self, first_byte: u8) -> Option<Counted> {
        if first_byte == START {
            *self = Self::default();
            return None;
        }
        let began = *self.began.get_or_insert_with(now);
        if first_byte == END {
            let seconds = began.elapsed().as_secs_f64();
            let per_second = if seconds > 0.0 { self.received as f64 / seconds } else { 0.0 };
            return Some(Counted { received: self.received, per_second });
        }
        self.received += 1;
        None
    }
}

/// How long each of many repetitions took.
pub struct Trips {
    began: Instant,
    warm: Duration,
    whole: Duration,
    taken: Vec<Duration>,
}

impl Trips {
    pub fn new(setup: &Setup) -> Self {
        let warm = Duration::from_secs_f64(setup.warm);
        Self { began: now(), warm, whole: warm + Duration::from_secs_f64(setup.seconds), taken: Vec::new() }
    }

    /// Notes one that began then and ended now. Whether to go on.
    pub fn note(&mut self, began: Instant) -> bool {
        let ended = now();
        if ended - self.began > self.warm {
            self.taken.push(ended - began);
        }
        ended - self.began < self.whole
    }

    /// Microseconds that half of them, and 99 of 100, did not exceed.
    pub fn quantiles(mut self) -> (f64, f64) {
        quantiles(&mut self.taken)
    }
}

pub fn quantiles(taken: &mut [Duration]) -> (f64, f64) {
    taken.sort_unstable();
    let at = |part: f64| {
        let index = (taken.len() as f64 * part) as usize;
        taken.get(index.min(taken.len().saturating_sub(1))).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    };
    (at(0.5), at(0.99))
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}
