//! The other end of a [`Link`]: reads one data stream of a peer after the other.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::link::{HELLO_TIMEOUT, Link, LinkError};
use crate::wire::frame::{BadFrame, Frame};
use crate::wire::message::{DataHello, PROTOCOL, Received, decode, encode_block};
use crate::wire::parts::{self, Assembly, Taken, Whole};
use crate::wire::{next_block, split_block, whole_blocks};

/// What reads one peer's data streams, one behind the other, and counts what came.
#[derive(Debug, Default)]
pub(crate) struct Inlet(Mutex<InletState>);

#[derive(Debug, Default)]
struct InletState {
    epoch: u64,
    messages: u64,
    open: bool,
}

/// Where the frames of one data stream go. Dropped when the stream ends.
pub(crate) trait Receive: Send {
    /// A frame came; `link` is the way back.
    fn receive(&mut self, frame: Frame, link: &Link) -> Result<(), BadFrame>;

    /// Takes the frame whose body stands there in a block, if it is one of those that are handed on together. `false`: not
    /// taken.
    fn gather(&mut self, _block: &Bytes, _body: Range<usize>) -> Result<bool, BadFrame> {
        Ok(false)
    }

    /// Hands on what was gathered: nothing more of the block comes.
    fn flush(&mut self) {}
}

impl Inlet {
    /// Stops whoever reads now, and says how far it came: what the other side is told in the greeting.
    pub(crate) fn freeze(&self) -> Option<Received> {
        let mut state = self.state();
        state.open = false;
        (state.epoch > 0).then_some(Received { epoch: state.epoch, messages: state.messages })
    }

    /// Reads one data stream to its end, or until a newer one takes over.
    pub(crate) async fn read<S>(
        &self,
        mut stream: S,
        max_message: usize,
        link: &Link,
        receiver: &mut dyn Receive,
        heard: impl Fn(),
    ) -> Result<(), LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut received = BytesMut::new();
        let hello =
            timeout(HELLO_TIMEOUT, read_hello(&mut stream, &mut received)).await.map_err(|_| LinkError::Silent)??;
        if !self.open(hello.epoch) {
            return Err(LinkError::OldEpoch);
        }
        stream.write_all(&encode_block(&hello)).await?;
        stream.flush().await?;
        let max_frame = parts::max_frame(max_message);
        let mut assembly = Assembly::new(max_frame);
        let mut room = READ_FIRST;
        loop {
            if !self.dispatch(hello.epoch, &mut received, &mut assembly, max_frame, link, receiver)? {
                return Ok(());
            }
            if let Some(bytes) = assembly.report() {
                link.tell_came(bytes);
            }
            if assembly.open(&mut received, now)? {
                while let Some(mut rest) = assembly.rest() {
                    let read = stream.read_buf(&mut rest).await?;
                    if read == 0 {
                        return Err(LinkError::Cut);
                    }
                    heard();
                    if let Some(whole) = assembly.read(read)
                        && !self.dispatch_whole(hello.epoch, whole, link, receiver)?
                    {
                        return Ok(());
                    }
                }
                if let Some(bytes) = assembly.report() {
                    link.tell_came(bytes);
                }
                // What comes next is likely a part too, of which little more than the head is to be copied.
                room = READ_LEAST;
            }
            if is_large(&received) {
                room = READ_LARGE;
            }
            received.reserve(room);
            let read = stream.read_buf(&mut received).await?;
            if read == 0 {
                return if received.is_empty() { Ok(()) } else { Err(LinkError::Cut) };
            }
            // What is read stays in memory for as long as a part of it is held: little traffic takes small buffers.
            room = if read >= room {
                (room * 2).clamp(READ_LEAST, READ_MOST)
            } else {
                (room / 2).max(read).max(READ_LEAST)
            };
            heard();
        }
    }

    fn open(&self, epoch: u64) -> bool {
        let mut state = self.state();
        if epoch <= state.epoch {
            return false;
        }
        *state = InletState { epoch, messages: 0, open: true };
        true
    }

    /// Hands on all whole frames. `false` when a newer stream took over: then nothing was handed on.
    fn dispatch(
        &self,
        epoch: u64,
        received: &mut BytesMut,
        assembly: &mut Assembly,
        max_frame: usize,
        link: &Link,
        receiver: &mut dyn Receive,
    ) -> Result<bool, LinkError> {
        // Held while frames are handed on, so that two streams of one peer never deliver at the same time.
        let Some(mut state) = self.reading(epoch) else { return Ok(false) };
        let (len, frames) = whole_blocks(received, max_frame)?;
        if let Some(average) = len.checked_div(frames) {
            let block = received.split_to(len).freeze();
            let handed_on = state.hand_on_all(&block, average, assembly, link, receiver);
            receiver.flush();
            handed_on?;
        }
        Ok(true)
    }

    /// Hands on a frame that came in parts. `false` as for [`Inlet::dispatch`].
    fn dispatch_whole(
        &self,
        epoch: u64,
        whole: Whole,
        link: &Link,
        receiver: &mut dyn Receive,
    ) -> Result<bool, LinkError> {
        let Some(mut state) = self.reading(epoch) else { return Ok(false) };
        state.hand_on(parse_whole(whole)?, link, receiver)?;
        Ok(true)
    }

    /// The right to hand on what came on that stream. `None` when a newer one took over.
    fn reading(&self, epoch: u64) -> Option<MutexGuard<'_, InletState>> {
        Some(self.state()).filter(|state| state.epoch == epoch && state.open)
    }

    fn state(&self) -> MutexGuard<'_, InletState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InletState {
    /// Hands on the frames of a block, which have so many bytes on average.
    fn hand_on_all(
        &mut self,
        block: &Bytes,
        average: usize,
        assembly: &mut Assembly,
        link: &Link,
        receiver: &mut dyn Receive,
    ) -> Result<(), BadFrame> {
        let mut rest = 0..block.len();
        while let Some(body) = next_block(block, &mut rest) {
            if receiver.gather(block, body.clone())? {
                self.messages += 1;
                continue;
            }
            let mut body = match assembly.take(block.slice(body), now)? {
                Taken::Frame(body) => body,
                Taken::Part => continue,
                Taken::Whole(whole) => {
                    self.hand_on(parse_whole(whole)?, link, receiver)?;
                    continue;
                }
            };
            // A small frame among large ones whose payload waits for a slow reader would keep all of the buffer in memory.
            if body.len() < average / MUCH_LARGER {
                body = Bytes::copy_from_slice(&body);
            }
            self.hand_on(Frame::parse(body)?, link, receiver)?;
        }
        Ok(())
    }

    fn hand_on(&mut self, frame: Frame, link: &Link, receiver: &mut dyn Receive) -> Result<(), BadFrame> {
        self.messages += u64::from(matches!(frame, Frame::Message(_)));
        match frame {
            Frame::Ping { nonce } => link.ping(nonce, true),
            Frame::Came { bytes } => link.parts_came(bytes),
            frame => receiver.receive(frame, link)?,
        }
        Ok(())
    }
}

/// The time that a message had left when it began to come has gone on since.
fn parse_whole(Whole { body, began }: Whole) -> Result<Frame, BadFrame> {
    let mut frame = Frame::parse(body)?;
    if let Frame::Message(message) = &mut frame
        && let Some(left) = &mut message.head.left
    {
        let took = u32::try_from(now().saturating_duration_since(began).as_millis()).unwrap_or(u32::MAX);
        *left = left.saturating_sub(took);
    }
    Ok(frame)
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Whether the frame of which a part is there is a large one: others like it follow, as a rule.
fn is_large(received: &[u8]) -> bool {
    received.first_chunk().is_some_and(|prefix| u32::from_be_bytes(*prefix) as usize >= READ_MOST / 4)
}

/// The greeting on a data stream.
pub(super) async fn read_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
    received: &mut BytesMut,
) -> Result<DataHello, LinkError> {
    loop {
        if let Some(block) = split_block(received, MAX_HELLO)? {
            let hello: DataHello = decode(&block)?;
            if hello.protocol != PROTOCOL {
                return Err(LinkError::Version { theirs: hello.protocol });
            }
            return Ok(hello);
        }
        if stream.read_buf(received).await? == 0 {
            return Err(LinkError::Cut);
        }
    }
}

/// How many times as large as a payload the frames around it are on average for it to be copied away from them.
const MUCH_LARGER: usize = 8;
/// Free space offered to each read: follows what comes.
const READ_FIRST: usize = 256; // most links are idle, and hold that
const READ_LEAST: usize = 2 << 10;
const READ_MOST: usize = 64 << 10;
const READ_LARGE: usize = 256 << 10;
const MAX_HELLO: usize = 1 << 10;
