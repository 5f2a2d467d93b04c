//! The writing of a link: what was queued, into the stream.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::super::inlet::read_hello;
use super::queue::{JOIN_UP_TO, Segment};
use super::turns::{Piece, milliseconds};
use super::{HELLO_TIMEOUT, Link, LinkError};
use crate::wire::frame;
use crate::wire::message::{DataHello, PROTOCOL, encode_block};

/// What was taken from the queue, on its way into the stream.
pub(super) struct Writing {
    stream: Pin<Box<dyn AsyncWrite + Send>>,
    segments: VecDeque<Segment>,
    /// What comes behind them.
    piece: Option<Piece>,
    /// Bytes of the first segment that are written; bytes written that are not given back as room yet.
    offset: usize,
    untold: usize,
    /// Something is written and not flushed.
    dirty: bool,
}

impl Writing {
    /// Turns the first segment, a message whose time is limited, into what is written now. Gives the bytes that are not.
    fn open_timed(&mut self) -> usize {
        let Some(Segment::Timed { mut head, payload, until }) = self.segments.pop_front() else { return 0 };
        let left = milliseconds(until, Instant::now());
        frame::set_left(&mut head, left);
        let over = if left == 0 { payload.len() } else { 0 };
        if left > 0 && payload.len() <= JOIN_UP_TO {
            head.extend_from_slice(&payload);
        } else if left > 0 {
            self.segments.push_front(Segment::Payload(payload));
        }
        self.segments.push_front(Segment::Joined { joined: head, frames: 1, messages: 1 });
        over
    }

    /// Whether something of it is not written or not flushed yet.
    fn is_at_it(&self) -> bool {
        self.dirty || !self.segments.is_empty() || self.piece.is_some()
    }
}

/// The stream is open while its writer runs.
struct Open<'a>(&'a Link);

impl Open<'_> {
    fn take(&self) -> Option<Writing> {
        self.0.writing().take()
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.take();
    }
}

impl Link {
    /// Writes what is queued until the link is closed. `stream` gives a fresh stream when the first frame is there.
    pub(crate) async fn write<S>(&self, stream: impl Future<Output = io::Result<S>>) -> Result<(), LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if !self.anything_to_write().await {
            return Ok(());
        }
        self.write_to(stream.await?).await
    }

    /// Greets on a stream that stands, and writes what is queued until the link is closed.
    pub(crate) async fn write_to<S>(&self, mut stream: S) -> Result<(), LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let hello = DataHello { protocol: PROTOCOL, epoch: self.0.epoch };
        timeout(HELLO_TIMEOUT, greet(&mut stream, hello)).await.map_err(|_| LinkError::Silent)??;
        let stream = Box::pin(stream);
        let (segments, piece) = Default::default();
        *self.writing() = Some(Writing { stream, segments, piece, offset: 0, untold: 0, dirty: false });
        let open = Open(self);
        while self.anything_to_write().await {
            poll_fn(|context| self.pump(context)).await?;
        }
        if let Some(mut last) = open.take() {
            last.stream.shutdown().await?;
        }
        Ok(())
    }

    /// Writes until nothing is queued and all is flushed.
    fn pump(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.writing() {
            Some(writing) => self.pump_into(writing, true, context),
            None => Poll::Ready(Ok(())),
        }
    }

    /// `turns_too`: also what is written in parts, which is the writer's alone: a sender writes no more than what is small.
    fn pump_into(&self, writing: &mut Writing, turns_too: bool, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Some(segment) = writing.segments.front() else {
                if writing.piece.is_some() {
                    ready!(self.pump_piece(writing, context))?;
                    continue;
                }
                let mut queue = self.queue();
                (writing.segments, writing.piece) = queue.take(turns_too);
                let more = queue.has_turn();
                drop(queue);
                if let Some(piece) = &mut writing.piece
                    && !writing.stream.is_write_vectored()
                {
                    piece.join(HEADED); // the copy costs less than a write of the head alone
                }
                if !writing.segments.is_empty() || writing.piece.is_some() {
                    self.0.idle.store(false, Ordering::Relaxed);
                    continue;
                }
                if more {
                    debug_assert!(!turns_too, "the writer finds somebody whose turn it is");
                    return Poll::Pending; // for the writer, which is told
                }
                if writing.dirty {
                    ready!(writing.stream.as_mut().poll_flush(context))?;
                    writing.dirty = false;
                    continue; // more may have come meanwhile
                }
                self.0.idle.store(true, Ordering::Relaxed);
                self.0.drained.notify_waiters();
                return Poll::Ready(Ok(()));
            };
            let (all, frames) = match segment {
                Segment::Joined { joined, frames, .. } => (&joined[..], *frames),
                Segment::Payload(payload) => (&payload[..], 0),
                Segment::Timed { .. } => {
                    self.wrote(0, writing.open_timed());
                    continue;
                }
            };
            let Some(rest) = all.get(writing.offset..).filter(|rest| !rest.is_empty()) else {
                writing.offset -= all.len();
                writing.segments.pop_front();
                self.wrote(frames, std::mem::take(&mut writing.untold));
                continue;
            };
            // Room is given back as it is made, not when all is written: on a slow path that takes seconds.
            if writing.untold >= PART {
                self.wrote(0, std::mem::take(&mut writing.untold));
            }
            let stream = writing.stream.as_mut();
            let written = match writing.segments.get(1) {
                // A head and its payload.
                Some(Segment::Payload(payload)) if stream.is_write_vectored() => {
                    stream.poll_write_vectored(context, &[IoSlice::new(rest), IoSlice::new(payload)])
                }
                _ => stream.poll_write(context, rest),
            };
            let written = ready!(written)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            writing.offset += written;
            writing.untold += written;
            writing.dirty = true;
        }
    }

    /// Writes what one turn brought.
    fn pump_piece(&self, writing: &mut Writing, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(piece) = &mut writing.piece else { return Poll::Ready(Ok(())) };
        let is_vectored = writing.stream.is_write_vectored();
        while !(piece.head.is_empty() && piece.payload.is_empty()) {
            let stream = writing.stream.as_mut();
            let written = if piece.head.is_empty() {
                stream.poll_write(context, &piece.payload)
            } else if is_vectored {
                stream.poll_write_vectored(context, &[IoSlice::new(&piece.head), IoSlice::new(&piece.payload)])
            } else {
                stream.poll_write(context, &piece.head)
            };
            let written = ready!(written)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(piece.head.len());
            piece.head.advance(of_head);
            piece.payload.advance(written - of_head);
            writing.dirty = true;
        }
        let frames = writing.piece.take().map_or(0, |piece| piece.frames);
        self.0.stalled.store(false, Ordering::Relaxed);
        self.queue().frames_in_turn -= frames;
        self.0.drained.notify_waiters();
        Poll::Ready(Ok(()))
    }

    /// A frame is there. On a link where frames come one by one, with rests between them, it is written here and now, which
    /// spares a change of tasks; otherwise by the writer, which joins what comes meanwhile.
    pub(super) fn wake_writer(&self) {
        if self.rests()
            && let Ok(mut writing) = self.0.writing.try_lock()
            && let Some(writing) = &mut *writing
            // Otherwise the writer waits for the stream, which must go on to wake it.
            && !writing.is_at_it()
            && let Poll::Ready(Ok(())) = self.pump_into(writing, false, &mut Context::from_waker(Waker::noop()))
        {
            return;
        }
        self.0.filled.notify_one(); // the writer goes on where this stopped, and meets what went wrong
    }

    /// Whether the last two frames came after a rest each, and notes that one comes now. The first of a burst comes after a
    /// rest too, but the last of the burst before did not.
    fn rests(&self) -> bool {
        let now = self.0.began.elapsed().as_micros() as u64;
        let last = self.0.last_wake.swap(now, Ordering::Relaxed);
        let rested = now.saturating_sub(last) > RESTS_AFTER_US;
        self.0.rested.swap(rested, Ordering::Relaxed) && rested
    }

    /// Waits for frames. `false` when the link is closed.
    async fn anything_to_write(&self) -> bool {
        loop {
            {
                let queue = self.queue();
                if queue.closed || !queue.rests() {
                    return !queue.closed;
                }
            }
            if self.writing().as_ref().is_some_and(Writing::is_at_it) {
                return true;
            }
            self.0.filled.notified().await;
        }
    }

    pub(super) fn writing(&self) -> MutexGuard<'_, Option<Writing>> {
        self.0.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrote(&self, frames: usize, bytes: usize) {
        self.0.stalled.store(false, Ordering::Relaxed);
        let mut queue = self.queue();
        queue.queued.frames -= frames;
        queue.queued.bytes -= bytes;
        drop(queue);
        self.0.drained.notify_waiters();
    }
}

/// Greets on a data stream and waits for the answer: only then does the other side surely read it.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, hello: DataHello) -> Result<(), LinkError> {
    stream.write_all(&encode_block(&hello)).await?;
    stream.flush().await?;
    let answer = read_hello(stream, &mut BytesMut::new()).await?;
    if answer == hello { Ok(()) } else { Err(LinkError::OldEpoch) }
}

/// A link to which nothing was queued for so long rests. In a flood, frames come far closer, and joining them is worth more.
const RESTS_AFTER_US: u64 = 30;
/// Bytes of a part that are written together with its head: as much as streams of a connection send at once.
const HEADED: usize = 16 << 10;
/// Bytes of a payload after which room is given back.
const PART: usize = 256 << 10;
