//! One connection that carries a link: the greeting, then the control stream, the beats, and the tasks that read and
//! write data.
//!
//! The peer of the lower id decides which of several connections is used: it opens the control stream there and greets.
//! The other answers on that stream. So both agree on one connection without negotiating.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use libp2p::Stream;
use libp2p::swarm::ConnectionId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf, split};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep_until, timeout};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use tracing::debug;

use super::Carried;
use super::inlet::{Inlet, Receive};
use super::link::{Link, LinkError, LinkLimits, Remains};
use super::local::{Expected, LocalLinks};
use super::streams::{ConnectionStreams, Lane, OpenError};
use crate::mesh::{DownReason, Edition, LinkKind, PeerId, SignedRecord, Topic};
use crate::wire::message::{
    BadMessage, Beat, Control, Echo, Hello, MAX_CONTROL, PROTOCOL, decode, encode_block, read_record,
};
use crate::wire::{TooLong, split_block};

/// What a session needs to know before it starts.
pub(super) struct Start {
    pub(super) peer: PeerId,
    pub(super) connection: ConnectionId,
    pub(super) streams: ConnectionStreams,
    /// Whether this side greets first.
    pub(super) leads: bool,
    pub(super) record: Bytes,
    pub(super) key_epoch: u64,
    pub(super) inlet: Arc<Inlet>,
    pub(super) epoch: u64,
    pub(super) limits: LinkLimits,
    pub(super) max_message: usize,
    pub(super) vitals: Arc<Vitals>,
    /// When this process began to beat: all its sessions beat together.
    pub(super) clock: Instant,
    /// The edition of our own record, for our beats.
    pub(super) edition: watch::Receiver<Edition>,
    pub(super) carried: Arc<dyn Carried>,
    /// The way to peers of the same host; `None` if there is none, or it failed with this one.
    pub(super) local: Option<Arc<LocalLinks>>,
    pub(super) events: mpsc::Sender<(ConnectionId, SessionEvent)>,
}

/// What a session tells the event loop.
#[derive(Debug)]
pub(super) enum SessionEvent {
    /// Both greeted: frames can be queued.
    Up { hello: Box<Hello>, record: SignedRecord, link: Link, kind: LinkKind, control: ControlSender },
    /// The peer says something.
    Heard(Box<Control>),
    /// A beat came: the peer's record has this edition.
    Edition(Edition),
    /// It is over.
    Ended { why: Ended, remains: Option<Remains> },
}

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the peer says: {0}")]
    Bye(String),
    #[error("silent for {SILENCE:?}")]
    Silent,
    #[error("it does not read what it is told")]
    Deaf,
    #[error("no greeting within {GREETING:?}")]
    NoGreeting,
    #[error("version {theirs} of the protocol there, {PROTOCOL} here: {SAME_RELEASE}")]
    Version { theirs: u32 },
    #[error("a greeting with somebody else's record")]
    WrongRecord,
    #[error("the connection closed")]
    Closed,
    #[error("could not open a stream")]
    Open(#[from] OpenError),
    #[error("the control stream failed")]
    Io(#[from] std::io::Error),
    #[error("a message that breaks the protocol")]
    Bad(#[from] BadMessage),
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("the data stream failed")]
    Data(#[from] LinkError),
    #[error("the Unix socket failed")]
    Local(#[source] Option<LinkError>),
    #[error("a task of the link panicked")]
    Panicked,
}

impl Ended {
    /// What a peer says against the rules is not the socket's fault.
    fn of_local(error: LinkError) -> Self {
        match error {
            LinkError::Io(_) | LinkError::Cut => Self::Local(Some(error)),
            error => Self::Data(error),
        }
    }

    pub(super) fn reason(&self) -> DownReason {
        match self {
            Self::Silent | Self::Deaf | Self::NoGreeting => DownReason::Silent,
            _ => DownReason::Closed,
        }
    }
}

/// Signs of life of one peer, and how far it is, as its sessions measure it.
#[derive(Debug, Default)]
pub(super) struct Vitals {
    /// Milliseconds since the session began until something was last heard.
    heard: AtomicU64,
    /// Microseconds of the last round trip; 0 before the first.
    rtt: AtomicU64,
}

impl Vitals {
    pub(super) fn rtt(&self) -> Option<u64> {
        Some(self.rtt.load(Ordering::Relaxed)).filter(|rtt| *rtt > 0)
    }
}

/// Says things to one peer on its control stream. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ControlSender {
    blocks: mpsc::Sender<Bytes>,
    pauses: Arc<Pauses>,
}

/// Changes of pauses that are not told yet: only the last per node and topic counts, so no queue is needed.
#[derive(Debug, Default)]
struct Pauses {
    changed: Mutex<HashMap<(u32, Topic), bool>>,
    there: Notify,
}

impl Pauses {
    fn take(&self) -> HashMap<(u32, Topic), bool> {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ControlSender {
    /// Queues a message. `false`: the peer has not read for so long that the queue is full; its session should end.
    pub(super) fn say(&self, message: &Control) -> bool {
        !matches!(self.blocks.try_send(encode_block(message)), Err(mpsc::error::TrySendError::Full(_)))
    }

    /// Whether the writer has taken all that was to be said.
    pub(super) fn is_idle(&self) -> bool {
        self.blocks.capacity() == self.blocks.max_capacity()
    }

    /// Asks the peer to pause sending on a topic to one of our nodes, or to go on. Never lost, never waits.
    pub(crate) fn set_paused(&self, node: u32, topic: Topic, paused: bool) {
        self.pauses.changed.lock().unwrap_or_else(PoisonError::into_inner).insert((node, topic), paused);
        self.pauses.there.notify_one();
    }
}

/// Runs a session to its end and reports it. Aborting the task is another way to end it.
pub(super) async fn run(start: Start) {
    let (connection, events) = (start.connection, start.events.clone());
    let mut link = None;
    let Err(why) = live(start, &mut link).await;
    let remains = link.map(|link| link.close());
    // The event loop is gone only at shutdown, when nobody wants to know.
    let _ = events.send((connection, SessionEvent::Ended { why, remains })).await;
}

async fn live(start: Start, up: &mut Option<Link>) -> Result<std::convert::Infallible, Ended> {
    let Start { peer, connection, mut streams, leads, inlet, vitals, events, local, .. } = start;
    let mut expected = local.as_ref().map(|local| local.expect());
    let greeting = || {
        // Composing the greeting ends the reading of any older stream: what we say we received stays true.
        let received = inlet.freeze();
        Control::Hello(Hello {
            protocol: PROTOCOL,
            record: start.record.clone(),
            key_epoch: start.key_epoch,
            max_message: start.max_message as u64,
            received,
            local: expected.as_ref().map(Expected::token),
        })
    };
    let greet = async {
        if leads {
            let mut lane = ControlLane::new(streams.opener.open(Lane::Control).await?);
            lane.write(&encode_block(&greeting())).await?;
            let hello = lane.hello().await?;
            Ok::<_, Ended>((lane, hello))
        } else {
            let mut lane = loop {
                match streams.incoming.recv().await.ok_or(Ended::Closed)? {
                    (Lane::Control, stream) => break ControlLane::new(*stream),
                    (Lane::Data, _) => debug!(%peer, "a data stream before the greeting: dropped"),
                }
            };
            let hello = lane.hello().await?;
            lane.write(&encode_block(&greeting())).await?;
            Ok((lane, hello))
        }
    };
    let (lane, hello) = timeout(GREETING, greet).await.map_err(|_| Ended::NoGreeting)??;
    let record = read_record(&hello.record)?;
    if record.peer() != peer {
        return Err(Ended::WrongRecord);
    }

    let began = now();
    let link = Link::new(start.epoch, start.limits, usize::try_from(hello.max_message).unwrap_or(usize::MAX));
    *up = Some(link.clone());
    let (blocks, outbox) = mpsc::channel(OUTBOX);
    let control = ControlSender { blocks, pauses: Arc::default() };
    let mut tasks: JoinSet<Result<(), Ended>> = JoinSet::new();
    let short_way = match (local, hello.local) {
        (Some(local), Some(token)) => local.connect(peer, token).await,
        _ => None,
    };
    let kind = if short_way.is_some() { LinkKind::Unix } else { LinkKind::Tcp };
    let (opener, writing) = (streams.opener.clone(), link.clone());
    tasks.spawn(async move {
        if let Some(stream) = short_way {
            return writing.write_to(stream).await.map_err(Ended::of_local);
        }
        let stream = async { opener.open(Lane::Data).await.map(Stream::compat).map_err(std::io::Error::other) };
        Ok(writing.write(stream).await?)
    });
    let ControlLane { stream, mut received } = lane;
    let (mut reader, stream) = split(stream);
    let pulse = Arc::new(Pulse { began, clock: start.clock, first_trip: Notify::new(), vitals: Arc::clone(&vitals) });
    let pauses = Arc::clone(&control.pauses);
    let writer = Writer { stream, outbox, pauses, pulse: Arc::clone(&pulse), edition: start.edition.clone(), leads };
    tasks.spawn(writer.run());
    // Known from the greeting on, before anything is read: what the peer may do rests on it.
    let mut receiver = Some(start.carried.receiver(peer, Some(record.record().identity)));
    let reading = Reading { inlet, link: link.clone(), pulse: Arc::clone(&pulse), max_message: start.max_message };
    let mut known = record.edition();
    let answers = control.clone();
    pulse.heard();
    let event = SessionEvent::Up { hello: Box::new(hello), record, link: link.clone(), kind, control };
    events.send((connection, event)).await.map_err(|_| Ended::Closed)?;

    let silence = sleep_until((began + SILENCE).into());
    tokio::pin!(silence);
    let mut pardoned = false;
    loop {
        tokio::select! {
            block = read_block(&mut reader, &mut received) => {
                pulse.heard();
                match decode(&block?)? {
                    Control::Beat(Beat { time, rtt, edition }) if !leads => {
                        if let Some(rtt) = rtt {
                            vitals.rtt.store(rtt, Ordering::Relaxed);
                        }
                        if !answers.say(&Control::Echo(Echo { time, edition: *start.edition.borrow() })) {
                            return Err(Ended::Deaf);
                        }
                        note_edition(&mut known, edition, connection, &events).await?;
                    }
                    Control::Echo(Echo { time, edition }) if leads => {
                        let first = vitals.rtt().is_none();
                        vitals.rtt.store(micros(began).saturating_sub(time).max(1), Ordering::Relaxed);
                        if first {
                            pulse.first_trip.notify_one(); // so that the other side knows the round trip as well
                        }
                        note_edition(&mut known, edition, connection, &events).await?;
                    }
                    Control::Pause { node, topic } => link.set_paused(node, topic, true),
                    Control::Resume { node, topic } => link.set_paused(node, topic, false),
                    Control::Bye { reason } => return Err(Ended::Bye(reason)),
                    other => {
                        let event = SessionEvent::Heard(Box::new(other));
                        events.send((connection, event)).await.map_err(|_| Ended::Closed)?;
                    }
                }
                if received.is_empty() {
                    received = BytesMut::new(); // what is quiet most of the time keeps no buffer
                }
            }
            stream = streams.incoming.recv() => match stream {
                Some((Lane::Data, stream)) => {
                    // One data stream per session and direction.
                    let Some(receiver) = receiver.take() else { return Err(Ended::Data(LinkError::OldEpoch)) };
                    tasks.spawn(reading.clone().read(stream.compat(), receiver, Ended::Data));
                }
                Some((Lane::Control, _)) => debug!(%peer, "a second control stream: dropped"),
                None => return Err(Ended::Closed),
            },
            stream = arrived(&mut expected), if receiver.is_some() => {
                let Some(receiver) = receiver.take() else { return Err(Ended::Data(LinkError::OldEpoch)) };
                let reading = reading.clone().read(stream, receiver, Ended::of_local);
                // Who ends a session says so on the connection, and then all of it ends.
                tasks.spawn(async { reading.await.and(Err(Ended::Local(None))) });
            }
            () = silence.as_mut() => {
                let deadline = Duration::from_millis(vitals.heard.load(Ordering::Relaxed)) + SILENCE;
                let late = now().saturating_duration_since(began).saturating_sub(deadline);
                if late == Duration::ZERO {
                    pardoned = false;
                    silence.as_mut().reset((began + deadline).into());
                } else if late > STALL && !pardoned {
                    // It is us who were frozen, and what the peer said meanwhile may not be read yet.
                    pardoned = true;
                    silence.as_mut().reset((now() + STALL).into());
                } else {
                    return Err(Ended::Silent);
                }
            }
            ended = tasks.join_next(), if !tasks.is_empty() => task_ended(ended)?,
        }
    }
}

/// Who comes to the socket with the token that the peer was given.
async fn arrived(expected: &mut Option<Expected>) -> UnixStream {
    match expected {
        Some(expected) => expected.arrived().await,
        None => std::future::pending().await,
    }
}

/// What reads the peer's data stream, whatever carries it.
#[derive(Clone)]
struct Reading {
    inlet: Arc<Inlet>,
    link: Link,
    pulse: Arc<Pulse>,
    max_message: usize,
}

impl Reading {
    async fn read(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        mut receiver: Box<dyn Receive>,
        failed: fn(LinkError) -> Ended,
    ) -> Result<(), Ended> {
        let heard = || self.pulse.heard();
        self.inlet.read(stream, self.max_message, &self.link, &mut *receiver, heard).await.map_err(failed)
    }
}

/// What beats and signs of life are measured by.
struct Pulse {
    /// When the session began.
    began: Instant,
    /// When the process did.
    clock: Instant,
    /// A round trip was measured for the first time.
    first_trip: Notify,
    vitals: Arc<Vitals>,
}

impl Pulse {
    /// The peer gave a sign of life.
    fn heard(&self) {
        self.vitals.heard.store(millis(self.began), Ordering::Relaxed);
    }

    /// When all sessions of this process beat next: together, which wakes the process once.
    fn next_beat(&self) -> Instant {
        let beats = micros(self.clock) / BEAT.as_micros() as u64 + 1;
        self.clock + BEAT * u32::try_from(beats).unwrap_or(u32::MAX)
    }
}

/// What writes the control stream. Apart from what reads it: two peers that both have much to say must not wait for each
/// other.
struct Writer {
    stream: WriteHalf<Compat<Stream>>,
    outbox: mpsc::Receiver<Bytes>,
    pauses: Arc<Pauses>,
    pulse: Arc<Pulse>,
    edition: watch::Receiver<Edition>,
    leads: bool,
}

impl Writer {
    async fn run(mut self) -> Result<(), Ended> {
        let mut next_beat = self.pulse.began;
        loop {
            tokio::select! {
                block = self.outbox.recv() => match block {
                    Some(block) => self.write(&block).await?,
                    None => return Ok(()),
                },
                () = self.pauses.there.notified() => {
                    for ((node, topic), paused) in self.pauses.take() {
                        let message =
                            if paused { Control::Pause { node, topic } } else { Control::Resume { node, topic } };
                        self.write(&encode_block(&message)).await?;
                    }
                }
                () = self.pulse.first_trip.notified() => self.beat().await?,
                () = sleep_until(next_beat.into()), if self.leads => {
                    next_beat = self.pulse.next_beat();
                    self.beat().await?;
                }
            }
        }
    }

    async fn beat(&mut self) -> Result<(), Ended> {
        let (time, rtt) = (micros(self.pulse.began), self.pulse.vitals.rtt());
        let beat = Beat { time, rtt, edition: *self.edition.borrow() };
        self.write(&encode_block(&Control::Beat(beat))).await
    }

    async fn write(&mut self, block: &[u8]) -> Result<(), Ended> {
        write_block(&mut self.stream, block).await
    }
}

/// Passes on which edition of its record the peer has, if that is news.
async fn note_edition(
    known: &mut Edition,
    edition: Edition,
    connection: ConnectionId,
    events: &mpsc::Sender<(ConnectionId, SessionEvent)>,
) -> Result<(), Ended> {
    if std::mem::replace(known, edition) != edition {
        events.send((connection, SessionEvent::Edition(edition))).await.map_err(|_| Ended::Closed)?;
    }
    Ok(())
}

fn task_ended(ended: Option<Result<Result<(), Ended>, JoinError>>) -> Result<(), Ended> {
    match ended {
        Some(Ok(Ok(()))) | None => Err(Ended::Closed),
        Some(Ok(Err(why))) => Err(why),
        Some(Err(_)) => Err(Ended::Panicked),
    }
}

/// The control stream, in blocks.
struct ControlLane {
    stream: Compat<Stream>,
    received: BytesMut,
}

impl ControlLane {
    fn new(stream: Stream) -> Self {
        Self { stream: stream.compat(), received: BytesMut::new() }
    }

    /// The next block. Nothing is lost when this is cancelled.
    async fn read(&mut self) -> Result<Bytes, Ended> {
        read_block(&mut self.stream, &mut self.received).await
    }

    async fn hello(&mut self) -> Result<Hello, Ended> {
        match decode(&self.read().await?)? {
            Control::Hello(hello) if hello.protocol == PROTOCOL => Ok(hello),
            Control::Hello(hello) => {
                let why = Ended::Version { theirs: hello.protocol };
                // Who greeted first has not been told our version yet.
                let reason =
                    format!("version {PROTOCOL} of the protocol here, {} there: {SAME_RELEASE}", hello.protocol);
                let _ = self.write(&encode_block(&Control::Bye { reason })).await; // it may be gone already
                Err(why)
            }
            Control::Bye { reason } => Err(Ended::Bye(reason)),
            _ => Err(Ended::Bad(BadMessage::Malformed("no greeting".into()))),
        }
    }

    async fn write(&mut self, block: &[u8]) -> Result<(), Ended> {
        write_block(&mut self.stream, block).await
    }
}

async fn write_block<S: AsyncWrite + Unpin>(stream: &mut S, block: &[u8]) -> Result<(), Ended> {
    let write = async {
        stream.write_all(block).await?;
        stream.flush().await
    };
    // A peer that does not read its control stream is as good as dead.
    Ok(timeout(PATIENCE, write).await.map_err(|_| Ended::Deaf)??)
}

async fn read_block<S: AsyncRead + Unpin>(stream: &mut S, received: &mut BytesMut) -> Result<Bytes, Ended> {
    loop {
        if let Some(block) = split_block(received, MAX_CONTROL)? {
            return Ok(block);
        }
        if stream.read_buf(received).await? == 0 {
            return Err(Ended::Closed);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "round trips and silence are measured where frames come in")]
fn now() -> Instant {
    Instant::now()
}

fn millis(since: Instant) -> u64 {
    now().saturating_duration_since(since).as_millis() as u64
}

fn micros(since: Instant) -> u64 {
    now().saturating_duration_since(since).as_micros() as u64
}

/// Time between beats. The lower id beats, the other answers. One may be lost and the next late before a peer is given up.
const BEAT: Duration = Duration::from_secs(1);
/// Silence after which a peer is gone: a dead host is noticed within three seconds.
const SILENCE: Duration = Duration::from_millis(2700);
/// When the check for silence itself comes so late, this process was frozen or starved, not the peer.
const STALL: Duration = Duration::from_millis(500);
/// Time for one message to be taken. Longer than silence: who reads slowly still lives.
const PATIENCE: Duration = Duration::from_secs(10);
const SAME_RELEASE: &str = "run the same release of meshd on both machines";
/// Time for both greetings.
const GREETING: Duration = Duration::from_secs(4);
/// Messages that wait for one control stream. A digest exchange with the largest view needs some dozens.
const OUTBOX: usize = 1024;
