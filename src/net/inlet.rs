//! The other end of a [`Link`]: reads one data stream of a peer after the other.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::link::{HELLO_TIMEOUT, Link, LinkError};
use crate::wire::frame::{self, BadFrame, Frame};
use crate::wire::message::{DataHello, PROTOCOL, Received, decode, encode_block};
use crate::wire::split_block;

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
        let max_frame = max_message + frame::overhead(frame::MAX_TARGETS);
        let mut room = READ_LEAST;
        loop {
            if !self.dispatch(hello.epoch, &mut received, max_frame, link, receiver)? {
                return Ok(());
            }
            received.reserve(room);
            let read = stream.read_buf(&mut received).await?;
            if read == 0 {
                return if received.is_empty() { Ok(()) } else { Err(LinkError::Cut) };
            }
            // What is read stays in memory for as long as a part of it is held: little traffic takes small buffers.
            room = if read >= room { (room * 2).min(READ_MOST) } else { (room / 2).max(read).max(READ_LEAST) };
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
        max_frame: usize,
        link: &Link,
        receiver: &mut dyn Receive,
    ) -> Result<bool, LinkError> {
        // Held while frames are handed on, so that two streams of one peer never deliver at the same time.
        let mut state = self.state();
        if state.epoch != epoch || !state.open {
            return Ok(false);
        }
        let mut bodies: SmallVec<[Bytes; FEW]> = SmallVec::new();
        while let Some(body) = split_block(received, max_frame)? {
            bodies.push(body);
        }
        let average = bodies.iter().map(Bytes::len).sum::<usize>() / bodies.len().max(1);
        for mut body in bodies {
            // A small frame among large ones whose payload waits for a slow reader would keep all of the buffer in memory.
            if body.len() < average / MUCH_LARGER {
                body = Bytes::copy_from_slice(&body);
            }
            let frame = Frame::parse(body)?;
            state.messages += u64::from(matches!(frame, Frame::Message(_)));
            if let Frame::Ping { nonce } = frame {
                link.ping(nonce, true);
            } else {
                receiver.receive(frame, link)?;
            }
        }
        Ok(true)
    }

    fn state(&self) -> MutexGuard<'_, InletState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

/// Frames that most reads bring at most.
const FEW: usize = 16;
/// How many times as large as a payload the frames around it are on average for it to be copied away from them.
const MUCH_LARGER: usize = 8;
/// Free space offered to each read: follows what comes.
const READ_LEAST: usize = 2 << 10;
const READ_MOST: usize = 64 << 10;
const MAX_HELLO: usize = 1 << 10;
