//! `meshd record`: messages go from the daemon's socket to a thread that writes them.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use serde::Serialize;
use tokio::sync::mpsc::{self, Permit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use super::super::Place;
use super::super::args::RecordArgs;
use super::super::client::{Client, ask};
use super::super::output::{Output, Talk};
use super::super::stop::Stop;
use super::super::trouble::{Exit, Trouble};
use super::{PREFIX, SUFFIX, seconds};
use crate::mesh::TopicFilter;
use crate::recording::{About, Arrived, Bytes, FileError, Sealed, Writer};
use crate::wire::control::{Acknowledge, Answer, Delivery, Listen, Overflow, Reply, Request};

pub(in crate::cli) async fn record(place: Place, args: RecordArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let mut stop = Stop::new()?;
    let mut client = Client::connect(&place).await?;
    let name = own_group();
    ask!(client, Request::Attach { name } => Reply::Attached { .. } => ());
    let mut filters: Vec<TopicFilter> = Vec::with_capacity(args.filters.len());
    for filter in args.filters {
        if !filters.contains(&filter) {
            filters.push(filter);
        }
    }
    let about = About { mesh: place.mesh.clone(), filters: filters.clone() };
    let (path, writer) = create(args.output, args.force, about)?;
    let began = Instant::now();
    let file = Thread::start(writer)?;
    let mut recorder =
        Recorder { client, subscriptions: Vec::new(), filters, file, batch: Batch::default(), taken: 0, lost: 0 };
    if let Err(trouble) = recorder.listen().await {
        recorder.finish().await?; // without messages, it goes away
        return Err(trouble);
    }
    out.talk.say(&format!("recording into {}", path.display()));
    let deadline = async {
        match args.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await, // raced against the messages
            None => pending().await,
        }
    };
    let mut progress = Progress { talk: out.talk, began, every: every(PROGRESS), last: 0 };
    let ended = tokio::select! {
        ended = recorder.run(args.count, &mut progress) => ended.map(|()| End::Counted),
        () = deadline => Ok(End::TimeIsUp),
        () = stop.wanted() => Ok(End::Stopped),
    };
    out.talk.status("");
    // What was sent before the end is recorded; told to stop twice, it ends at once.
    let drained = match &ended {
        Ok(End::Counted) | Err(_) => Ok(()),
        Ok(_) => tokio::select! {
            drained = timeout(PATIENCE, recorder.drain(args.count)) =>
                drained.unwrap_or_else(|_| Err(silent())),
            () = stop.wanted() => Ok(()),
        },
    };
    let taken = recorder.taken;
    let sealed = recorder.finish().await?;
    report(&path, sealed, began.elapsed(), out)?;
    out.flush()?;
    drained?;
    match (ended?, args.count) {
        (End::TimeIsUp, Some(count)) if taken < count => {
            Err(Trouble::new(Exit::TimedOut, format!("{taken} of {count} messages came in time"))
                .hint("wait longer with --timeout, or see who is there with: meshd nodes"))
        }
        _ => Ok(Exit::Done),
    }
}

enum End {
    Counted,
    TimeIsUp,
    Stopped,
}

/// A file that is there from now on.
fn create(named: Option<PathBuf>, force: bool, about: About) -> Result<(PathBuf, Writer), Trouble> {
    if let Some(path) = named {
        if path.as_os_str() == "-" {
            let text = "a recording goes into a file, which is finished at its end: not into a pipe";
            return Err(Trouble::new(Exit::Usage, text)
                .hint("name a file with -o, or see messages as they come with `meshd listen --json`"));
        }
        let writer = Writer::create(&path, force, about)?;
        return Ok((path, writer));
    }
    // Two in one second are told apart.
    for number in 1..=MOST_AT_ONCE {
        let path = default_name(SystemTime::now(), number);
        match Writer::create(&path, false, about.clone()) {
            Err(FileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {}
            writer => return Ok((path, writer?)),
        }
    }
    Err(Trouble::new(Exit::Failed, "all names for a recording are taken").hint("name a file with -o"))
}

/// `meshd-2026-01-31-120000.mcap`, in UTC.
fn default_name(now: SystemTime, number: u32) -> PathBuf {
    let time = super::super::output::rfc3339(now);
    let (date, time) = (&time[..10], time[11..19].replace(':', ""));
    let number = if number > 1 { format!("-{number}") } else { String::new() };
    format!("{PREFIX}{date}-{time}{number}{SUFFIX}").into()
}

/// Takes messages from the daemon.
struct Recorder {
    client: Client,
    /// One for each filter.
    subscriptions: Vec<u64>,
    filters: Vec<TopicFilter>,
    file: Thread,
    batch: Batch,
    taken: u64,
    lost: u64,
}

/// Messages on their way to the file.
#[derive(Default)]
struct Batch {
    messages: Vec<Delivery>,
    bytes: usize,
    /// Messages that are missing among them.
    lost: u64,
}

impl Recorder {
    async fn listen(&mut self) -> Result<(), Trouble> {
        for filter in &self.filters {
            // Senders do not wait for who only looks on: what this cannot keep up with is counted.
            let (overflow, acknowledge) = (Overflow::DropOldest, Acknowledge::Taken);
            let (messages, bytes) = (Some(usize::MAX), Some(usize::MAX));
            let listen = Listen { filter: filter.to_string(), messages, bytes, overflow, acknowledge };
            let id = ask!(self.client, Request::Listen(listen) => Reply::Listening { subscription } => subscription);
            self.subscriptions.push(id);
        }
        Ok(())
    }

    /// Takes messages, `count` of them if that is said.
    ///
    /// # Cancel safety
    /// What was taken is kept for [`finish`](Self::finish).
    async fn run(&mut self, count: Option<u64>, progress: &mut Progress) -> Result<(), Trouble> {
        let mut tick = every(TICK);
        while count.is_none_or(|count| self.taken < count) {
            // Handed on together while more are there, at once when none is.
            let answer = match self.client.next().now_or_never() {
                Some(answer) => answer,
                None => {
                    self.hand_on().await?;
                    tokio::select! {
                        answer = self.client.next() => answer,
                        _ = tick.tick() => {
                            self.file.say(Work::Tick).await?;
                            continue;
                        }
                        _ = progress.every.tick() => {
                            progress.show(self.taken, self.lost);
                            continue;
                        }
                    }
                }
            };
            self.take(answer?);
            if self.batch.is_full() {
                self.hand_on().await?;
                // Nobody waits here while messages come without a pause.
                if tick.tick().now_or_never().is_some() {
                    self.file.say(Work::Tick).await?;
                }
                if progress.every.tick().now_or_never().is_some() {
                    progress.show(self.taken, self.lost);
                }
            }
        }
        Ok(())
    }

    /// Ends the listening, and takes what was sent before.
    async fn drain(&mut self, count: Option<u64>) -> Result<(), Trouble> {
        let mut open = Vec::with_capacity(self.subscriptions.len());
        for subscription in &self.subscriptions {
            open.push(self.client.begin(Request::Unlisten { subscription: *subscription, drain: true }).await?);
        }
        while !open.is_empty() && count.is_none_or(|count| self.taken < count) {
            match self.client.next().await? {
                Answer::Reply { id, .. } | Answer::Failed { id, .. } => open.retain(|waiting| *waiting != id),
                answer => self.take(answer),
            }
            if self.batch.is_full() {
                self.hand_on().await?;
            }
        }
        Ok(())
    }

    /// Ends the file.
    async fn finish(mut self) -> Result<Sealed, Trouble> {
        // If that fails, the thread says why.
        let _ = self.hand_on().await;
        self.file.finish().await
    }

    fn take(&mut self, answer: Answer) {
        let Answer::Message(delivery) = answer else { return };
        let Some(at) = self.subscriptions.iter().position(|id| *id == delivery.subscription) else { return };
        self.lost += delivery.lagged;
        self.batch.lost += delivery.lagged;
        if self.filters[..at].iter().any(|earlier| earlier.matches(&delivery.topic)) {
            return; // an earlier filter has it
        }
        self.taken += 1;
        self.batch.bytes += delivery.payload.len() + DELIVERY_BYTES;
        self.batch.messages.push(delivery);
    }

    async fn hand_on(&mut self) -> Result<(), Trouble> {
        if self.batch.messages.is_empty() && self.batch.lost == 0 {
            return Ok(());
        }
        // Room first: what waits for it is not lost with whoever waits.
        let (place, room) = self.file.room(self.batch.bytes).await?;
        place.send(Work::Write(std::mem::take(&mut self.batch), room));
        Ok(())
    }
}

impl Batch {
    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES
    }
}

/// The thread that writes the file: a slow disk holds up nothing else, until what waits for it is too much.
struct Thread {
    to: mpsc::Sender<Work>,
    /// For bytes that wait.
    room: Arc<Semaphore>,
    ended: oneshot::Receiver<Result<Sealed, FileError>>,
}

enum Work {
    Write(Batch, OwnedSemaphorePermit),
    Tick,
}

impl Thread {
    fn start(writer: Writer) -> Result<Self, Trouble> {
        let (to, from) = mpsc::channel(QUEUE);
        let (done, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("file".to_owned());
        let spawned = thread.spawn(move || done.send(write(writer, from)));
        spawned.map_err(|error| Trouble::failed("cannot start a thread", &error))?;
        Ok(Self { to, room: Arc::new(Semaphore::new(QUEUE_BYTES)), ended })
    }

    /// Waits until so many bytes may wait for the disk. A larger batch waits until it is alone.
    async fn room(&self, bytes: usize) -> Result<(Permit<'_, Work>, OwnedSemaphorePermit), Trouble> {
        let bytes = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(bytes).await.map_err(|_| unwritten())?;
        let place = self.to.reserve().await.map_err(|_| unwritten())?;
        Ok((place, room))
    }

    /// An error says only that there is one: [`finish`](Self::finish) says which.
    async fn say(&self, work: Work) -> Result<(), Trouble> {
        self.to.send(work).await.map_err(|_| unwritten())
    }

    async fn finish(self) -> Result<Sealed, Trouble> {
        drop(self.to);
        Ok(self.ended.await.map_err(|_| unwritten())??)
    }
}

fn write(mut writer: Writer, mut from: mpsc::Receiver<Work>) -> Result<Sealed, FileError> {
    while let Some(work) = from.blocking_recv() {
        match work {
            Work::Tick => writer.tick()?,
            Work::Write(batch, room) => {
                writer.lost(batch.lost);
                for delivery in batch.messages {
                    let Delivery { topic, codec, from, from_name, seq, time_us, payload, .. } = delivery;
                    let time_ns = time_us.saturating_mul(1000);
                    let payload = &payload[..];
                    writer.write(Arrived { topic, codec, from, from_name: &from_name, seq, time_ns, payload })?;
                }
                drop(room);
            }
        }
    }
    writer.finish()
}

fn silent() -> Trouble {
    Trouble::new(Exit::TimedOut, "the daemon does not answer").hint("see whether it runs with: meshd status")
}

fn unwritten() -> Trouble {
    Trouble::new(Exit::Failed, "the file cannot be written").hint("is the disk full?")
}

/// What a person at a terminal sees meanwhile.
struct Progress {
    talk: Talk,
    began: Instant,
    every: Interval,
    last: u64,
}

impl Progress {
    fn show(&mut self, taken: u64, lost: u64) {
        let (rate, since) = (taken - self.last, seconds(Duration::from_secs(self.began.elapsed().as_secs())));
        self.last = taken;
        let lost = if lost > 0 { format!(", {lost} lost") } else { String::new() };
        self.talk.status(&format!("{taken} messages, {rate}/s, {since}{lost}"));
    }
}

/// What was recorded, as `--json` prints it.
#[derive(Serialize)]
struct Recorded<'a> {
    /// None: there were no messages, so it was removed.
    file: Option<&'a Path>,
    messages: u64,
    topics: usize,
    bytes: u64,
    duration_s: f64,
    lost: u64,
}

fn report(path: &Path, sealed: Sealed, took: Duration, out: &mut Output) -> Result<(), Trouble> {
    let Sealed { messages, topics, lost, bytes } = sealed;
    if lost > 0 {
        out.talk.say(&format!("{lost} messages were lost: this machine was too slow for them"));
        out.talk.hint("record fewer topics, or on a faster disk");
    }
    if messages == 0 {
        out.talk.say(&format!("no messages: {} was not kept", path.display()));
    }
    if out.json {
        let (file, duration_s) = ((messages > 0).then_some(path), took.as_secs_f64());
        return out.object(&Recorded { file, messages, topics, bytes, duration_s, lost });
    }
    if messages == 0 {
        return Ok(());
    }
    let path = path.display().to_string();
    let path = out.foreign(&path);
    let kinds = if topics == 1 { "topic" } else { "topics" };
    let line =
        format!("{path}: {messages} messages on {topics} {kinds}, {}, in {}, {lost} lost", Bytes(bytes), seconds(took));
    out.line(&line)
}

/// The name of a group that nobody else is in.
fn own_group() -> String {
    let letters: String = (0..8).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    format!("record-{letters}")
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Between calls of [`Writer::tick`], as it says.
const TICK: Duration = Duration::from_secs(1);
/// Between signs of life for a person.
const PROGRESS: Duration = Duration::from_secs(1);
/// Bytes to hand to the thread at once, by estimate of what they take in memory.
const BATCH_BYTES: usize = 256 * 1024;
/// What a message takes in memory besides its payload.
const DELIVERY_BYTES: usize = 200;
/// Batches that wait for the disk.
const QUEUE: usize = 1024;
/// Bytes that wait for it, ten seconds of a slow one's time. Then messages wait in the daemon, and get lost when that is full.
const QUEUE_BYTES: usize = 64 << 20;
/// How long the daemon may take to hand over what had arrived.
const PATIENCE: Duration = Duration::from_secs(10);
/// Recordings that may begin in one second and folder without being named.
const MOST_AT_ONCE: u32 = 100;

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn names_tell_the_time() {
        let time = UNIX_EPOCH + Duration::from_millis(1_769_860_801_500);
        assert_eq!(default_name(time, 1), Path::new("meshd-2026-01-31-120001.mcap"));
        assert_eq!(default_name(time, 2), Path::new("meshd-2026-01-31-120001-2.mcap"));
    }
}
