//! `meshd play`: a thread reads a file and says when its messages are due, they go out over the daemon's socket.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::super::Place;
use super::super::args::PlayArgs;
use super::super::client::{Client, ask};
use super::super::output::{Output, micros};
use super::super::stop::Stop;
use super::super::trouble::{Exit, Trouble};
use super::{RECOVER, chosen, seconds};
use crate::mesh::{SendReport, Target, Topic, TopicFilter};
use crate::recording::{Contents, Cut, Entry, FileError, Pace, Reader};
use crate::wire::control::{self, Answer, Failure, Reply, Request};

pub(in crate::cli) async fn play(place: Place, args: PlayArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let path = chosen(args.file)?;
    let contents = Contents::of(&path)?;
    if let Some(compression) = contents.compression {
        return Err(FileError::Compressed { path, compression }.into());
    }
    if let Some(cut) = &contents.cut {
        out.talk.say(&format!("{} is cut short {cut}", path.display()));
    }
    let rate = (!args.immediate).then_some(args.rate);
    let mut score = Score { path, filters: args.filter, rate, again: args.again, indexed: None };
    let topics = contents.topics.iter().filter_map(|topic| Some((topic.topic.clone()?, topic.messages)));
    let (topics, counts): (Vec<Topic>, Vec<u64>) = topics.filter(|(topic, _)| score.selects(topic)).unzip();
    score.indexed = contents.indexed.map(|_| counts.into_iter().fold(0, u64::saturating_add));
    if topics.is_empty() {
        return Err(Trouble::new(Exit::Failed, format!("there is nothing to play in {}", score.path.display()))
            .hint("see what is in it with: meshd info"));
    }
    let mut stop = Stop::new()?;
    let mut client = Client::connect(&place).await?;
    ask!(client, Request::Attach { name: NAME.to_owned() } => Reply::Attached { .. } => ());
    if !args.no_wait {
        let heard = tokio::select! {
            heard = somebody_listens(&mut client, &topics, args.wait) => heard?,
            () = stop.wanted() => return Ok(Exit::Done),
        };
        if !heard {
            return Err(nobody(&score.path));
        }
    }
    let path = score.path.clone();
    let (mut player, began) = (Player::new(client), Instant::now());
    let mut file = Thread::start(score)?;
    let played = player.run(&mut file, &mut stop).await;
    let read = file.finish().await;
    let exit = player.report(&path, read.as_ref().ok().and_then(Option::as_ref), began.elapsed(), out)?;
    out.flush()?;
    played?;
    match (exit, read?) {
        (Exit::Nobody, _) => Err(nobody(&path)),
        (_, Some(gap)) => Err(incomplete(&path, player.messages, &gap)),
        (exit, None) => Ok(exit),
    }
}

/// What is whole was played, and the rest is missing.
fn incomplete(path: &Path, played: u64, Gap { cut, missing }: &Gap) -> Trouble {
    let missing = match missing {
        Some(0) => "none is missing".to_owned(),
        Some(missing) => format!("{missing} are missing"),
        None => "what came after them is missing".to_owned(),
    };
    let path = path.display();
    Trouble::new(Exit::Failed, format!("{played} messages of {path} were played, {missing}: it is cut short {cut}"))
        .hint(RECOVER)
}

fn nobody(path: &Path) -> Trouble {
    Trouble::new(Exit::Nobody, format!("nobody listens to what is in {}", path.display()))
        .hint("see who listens to what with: meshd topics")
}

/// Waits until somebody listens to one of the topics. Whether somebody does.
async fn somebody_listens(client: &mut Client, topics: &[Topic], wait: Duration) -> Result<bool, Trouble> {
    let mut asked = Vec::new();
    for topic in topics.iter().take(MOST_WAITS) {
        let request = Request::WaitForListeners { topic: topic.to_string(), count: 1, timeout: wait };
        asked.push(client.begin(request).await?);
    }
    while !asked.is_empty() {
        match client.next().await? {
            Answer::Reply { id, reply: Reply::Listeners(count) } => {
                asked.retain(|waiting| *waiting != id);
                if count > 0 {
                    for id in asked {
                        ask!(client, Request::Cancel { id } => Reply::Done => ());
                    }
                    return Ok(true);
                }
            }
            Answer::Failed { failure, .. } => return Err(failure.into()),
            _ => {}
        }
    }
    Ok(false)
}

/// What to play, and how.
struct Score {
    path: PathBuf,
    filters: Vec<TopicFilter>,
    /// None: as fast as it goes.
    rate: Option<f64>,
    again: bool,
    /// How many messages there are, if the file has an index.
    indexed: Option<u64>,
}

/// That a file was not played to its end.
struct Gap {
    cut: Cut,
    /// Messages that its index counts besides those that could be read.
    missing: Option<u64>,
}

/// A message and when it is to go out.
struct Due {
    entry: Entry,
    topic: Topic,
    at: Option<Instant>,
}

impl Score {
    fn selects(&self, topic: &Topic) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| filter.matches(topic))
    }

    /// Reads the file, and lets its messages go when they are due, until the end or until nobody takes them. What they come
    /// from tells when they are to end while this waits.
    fn read(&self, to: &mpsc::Sender<Vec<Due>>, stop: &Receiver<()>) -> Result<Option<Gap>, FileError> {
        let mut begin = Instant::now();
        let mut gap = None;
        loop {
            let mut reader = Reader::open(&self.path)?;
            let mut pace = self.rate.map(Pace::new);
            let (mut batch, mut bytes, mut count, mut last) = (Vec::new(), 0, 0_u64, Duration::ZERO);
            while let Some(entry) = reader.next()? {
                let Some(topic) = entry.origin.topic.clone().filter(|topic| self.selects(topic)) else { continue };
                count += 1;
                let due = pace.as_mut().map(|pace| pace.due(entry.time_ns));
                last = due.unwrap_or_default();
                let at = due.map(|due| later(begin, due));
                let early = at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
                if !early.is_zero() || bytes >= BATCH_BYTES || batch.len() >= BATCH {
                    bytes = 0;
                    if !batch.is_empty() && to.blocking_send(std::mem::take(&mut batch)).is_err() {
                        return Ok(gap);
                    }
                }
                if !early.is_zero() && stop.recv_timeout(early) != Err(RecvTimeoutError::Timeout) {
                    return Ok(gap);
                }
                bytes += entry.payload.len();
                batch.push(Due { entry, topic, at });
            }
            let missing = || self.indexed.map(|all| all.saturating_sub(count));
            gap = reader.cut().map(|cut| Gap { cut: cut.clone(), missing: missing() });
            if !batch.is_empty() && to.blocking_send(batch).is_err() {
                return Ok(gap);
            }
            if !self.again || count == 0 {
                return Ok(gap);
            }
            if pace.is_some() {
                // The first message comes after the last one as others come after each other.
                let pauses = u32::try_from(count - 1).unwrap_or(u32::MAX);
                begin = later(begin, last + last.checked_div(pauses).unwrap_or(ALONE));
            }
        }
    }
}

fn later(begin: Instant, by: Duration) -> Instant {
    begin.checked_add(by).unwrap_or_else(|| begin + FOREVER)
}

/// The thread that reads.
struct Thread {
    from: mpsc::Receiver<Vec<Due>>,
    /// Dropped, it ends.
    _stop: SyncSender<()>,
    ended: oneshot::Receiver<Result<Option<Gap>, FileError>>,
}

impl Thread {
    fn start(score: Score) -> Result<Self, Trouble> {
        let (to, from) = mpsc::channel(BATCHES);
        let (done, ended) = oneshot::channel();
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::Builder::new().name("file".to_owned());
        let spawned = thread.spawn(move || done.send(score.read(&to, &stopped)));
        spawned.map_err(|error| Trouble::failed("cannot start a thread", &error))?;
        Ok(Self { from, _stop: stop, ended })
    }

    async fn finish(self) -> Result<Option<Gap>, Trouble> {
        let Self { from, _stop, ended } = self;
        drop((from, _stop));
        let trouble =
            |_| Trouble::new(Exit::Failed, "the file was not read to its end").hint("look at it with: meshd info");
        Ok(ended.await.map_err(trouble)??)
    }
}

/// Sends messages, and keeps what became of them.
struct Player {
    client: Client,
    /// Requests that are not answered.
    under_way: usize,
    /// When those were due that are not written yet.
    unwritten: VecDeque<Instant>,
    messages: u64,
    unheard: u64,
    dropped: u64,
    too_large: u64,
    /// Microseconds between when messages were due and when they were written.
    late: Histogram<u64>,
}

impl Player {
    fn new(client: Client) -> Self {
        let late = Histogram::new_with_bounds(1, MOST_LATE_US, 3).expect("bounds that are bounds");
        Self {
            client,
            under_way: 0,
            unwritten: VecDeque::new(),
            messages: 0,
            unheard: 0,
            dropped: 0,
            too_large: 0,
            late,
        }
    }

    /// Sends all, or until it is told to stop.
    async fn run(&mut self, file: &mut Thread, stop: &mut Stop) -> Result<(), Trouble> {
        let mut ended = false;
        while !ended || self.under_way > 0 || self.client.unwritten() > 0 {
            let room = !ended && self.under_way < WINDOW && self.client.unwritten() < BATCH_BYTES;
            let busy = self.under_way > 0 || self.client.unwritten() > 0;
            tokio::select! {
                biased;
                () = stop.wanted() => {
                    if ended {
                        return Ok(()); // told twice
                    }
                    ended = true;
                }
                batch = file.from.recv(), if room => match batch {
                    Some(batch) => self.begin(batch)?,
                    None => ended = true,
                },
                answer = exchange(&mut self.client, ended), if busy => {
                    if let Some(answer) = answer? {
                        self.note(answer)?;
                    }
                    self.written();
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, batch: Vec<Due>) -> Result<(), Trouble> {
        for Due { entry, topic, at } in batch {
            if entry.payload.len() > self.client.message_bytes {
                self.too_large += 1;
                continue;
            }
            self.client.enqueue(Request::Send(control::Send {
                topic: topic.to_string(),
                codec: entry.origin.codec,
                payload: entry.payload,
                target: Target::EachGroup,
                timeout: None,
                acked: false,
                redeliver: false,
                ttl: None,
                key: None,
                retain: None,
            }))?;
            self.under_way += 1;
            self.messages += 1;
            self.unwritten.extend(at);
        }
        Ok(())
    }

    /// Notes how late messages are, once they are with the daemon.
    fn written(&mut self) {
        if self.client.unwritten() == 0 && !self.unwritten.is_empty() {
            let now = Instant::now();
            for due in self.unwritten.drain(..) {
                let late = now.saturating_duration_since(due).as_micros();
                self.late.saturating_record(u64::try_from(late).unwrap_or(u64::MAX));
            }
        }
    }

    fn note(&mut self, answer: Answer) -> Result<(), Trouble> {
        match answer {
            Answer::Reply { reply: Reply::Sent(SendReport { matched, dropped, .. }), .. } => {
                self.under_way = self.under_way.saturating_sub(1);
                self.unheard += u64::from(matched == 0);
                self.dropped += u64::from(!dropped.is_empty());
                Ok(())
            }
            Answer::Failed { failure, .. } => Err(Failure::into(failure)),
            _ => Ok(()),
        }
    }

    fn report(&self, path: &Path, gap: Option<&Gap>, took: Duration, out: &mut Output) -> Result<Exit, Trouble> {
        let Self { messages, unheard, dropped, too_large, late, .. } = self;
        for (count, what) in [
            (unheard, "nobody listened to"),
            (dropped, "a node that listens did not get"),
            (too_large, "the daemon does not take, by limits.message_bytes,"),
        ] {
            if *count > 0 {
                out.talk.say(&format!("{what} {count} messages"));
            }
        }
        let quantile = |q| (!late.is_empty()).then(|| late.value_at_quantile(q));
        let (p50, p99, max) = (quantile(0.5), quantile(0.99), quantile(1.0));
        if out.json {
            out.object(&Played {
                file: path,
                messages: *messages,
                duration_s: took.as_secs_f64(),
                unheard: *unheard,
                dropped: *dropped,
                too_large: *too_large,
                late_p50_us: p50,
                late_p99_us: p99,
                late_max_us: max,
                complete: gap.is_none(),
                cut: gap.map(|gap| &gap.cut.why[..]),
                cut_at: gap.map(|gap| gap.cut.at),
                missing: gap.and_then(|gap| gap.missing),
            })?;
        } else {
            let late = match (p50, p99, max) {
                (Some(p50), Some(p99), Some(max)) => {
                    format!(", late by {} (p50), {} (p99), {} (most)", micros(p50), micros(p99), micros(max))
                }
                _ => String::new(),
            };
            let path = path.display().to_string();
            let line = format!("{}: {messages} messages in {}{late}", out.foreign(&path), seconds(took));
            out.line(&line)?;
        }
        Ok(match () {
            () if *messages > 0 && unheard == messages => Exit::Nobody,
            () if *dropped > 0 || *too_large > 0 => Exit::Failed,
            () => Exit::Done,
        })
    }
}

/// What the daemon says next. At the end, it has to say something soon.
async fn exchange(client: &mut Client, ended: bool) -> Result<Option<Answer>, Trouble> {
    if !ended {
        return client.exchange().await;
    }
    let silent =
        |_| Trouble::new(Exit::TimedOut, "the daemon does not answer").hint("see whether it runs with: meshd status");
    timeout(PATIENCE, client.exchange()).await.map_err(silent)?
}

/// What was played, as `--json` prints it.
#[derive(Serialize)]
struct Played<'a> {
    file: &'a Path,
    messages: u64,
    duration_s: f64,
    unheard: u64,
    dropped: u64,
    too_large: u64,
    late_p50_us: Option<u64>,
    late_p99_us: Option<u64>,
    late_max_us: Option<u64>,
    /// Whether the file has no damage, as far as it was read.
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<u64>,
}

/// What the node is called.
const NAME: &str = "play";
/// Topics whose listeners are waited for: more than that say nothing that these do not.
const MOST_WAITS: usize = 512;
/// Messages, and bytes, that go to the sending side at once.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 64 * 1024;
/// Batches that wait for it.
const BATCHES: usize = 8;
/// Messages whose reports are awaited at a time.
const WINDOW: usize = 1024;
/// The latest that is told apart: a minute.
const MOST_LATE_US: u64 = 60_000_000;
/// Between the rounds of a file with one message.
const ALONE: Duration = Duration::from_secs(1);
/// For times that no clock can tell.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// How long the daemon may take for what it was sent.
const PATIENCE: Duration = Duration::from_secs(10);
