//! Blocks of the local protocol over a Unix socket, for both ends of it: the daemon and its clients.

use std::io;

use bytes::BytesMut;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use crate::wire::control::{self, Garbage};
use crate::wire::{TooLong, split_block};

/// Reads blocks. What was read of the next one is kept, so a reader that is interrupted loses nothing.
#[derive(Debug)]
pub(crate) struct BlockReader<R> {
    from: R,
    received: BytesMut,
    max: usize,
}

/// Why no more blocks come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The connection broke, or ended within a block.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The other end speaks another language.
    #[error(transparent)]
    Garbage(#[from] Garbage),
    /// The other end says too much at once.
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

impl<R: AsyncRead + Unpin> BlockReader<R> {
    /// Reads from `from`; blocks of more than `max` bytes are an error.
    pub(crate) fn new(from: R, max: usize) -> Self {
        Self { from, received: BytesMut::new(), max }
    }

    /// Changes the limit for the blocks to come.
    pub(crate) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// The next value; `None` when the other end has closed.
    ///
    /// # Cancel safety
    /// Nothing is lost if this is dropped.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, SocketError> {
        loop {
            if let Some(body) = split_block(&mut self.received, self.max)? {
                let size = body.len();
                let decode = || {
                    let decoded = control::decode(&body);
                    drop(body);
                    decoded
                };
                return Ok(Some(apart(size, decode)?));
            }
            if self.received.capacity() - self.received.len() < READ_ROOM {
                self.received.reserve(READ_ROOM);
            }
            if self.from.read_buf(&mut self.received).await? == 0 {
                let cut = !self.received.is_empty();
                return if cut { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) } else { Ok(None) };
            }
        }
    }
}

/// Does what copies, or frees, so many bytes. A worker thread that copies hundreds of megabytes does nothing else for a tenth of a second, and
/// messages, beats and timers wait for it; so from some size on, another thread does its work meanwhile.
pub(crate) fn apart<T>(bytes: usize, copy: impl FnOnce() -> T) -> T {
    let others_can = || Handle::try_current().is_ok_and(|here| here.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes >= LONG && others_can() { block_in_place(copy) } else { copy() }
}

/// Bytes that are copied in a millisecond or two: handing the other work over takes some ten microseconds.
const LONG: usize = 4 << 20;
/// Bytes to make room for before each read: many small blocks come in one.
const READ_ROOM: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::wire::control::{Question, Request};

    fn question(id: u64) -> Question {
        Question { id, request: Request::Status }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn other_tasks_go_on_while_one_copies_much() {
        let (other, waits) = std::sync::mpsc::channel();
        let copying = tokio::spawn(async move { apart(LONG, || waits.recv_timeout(Duration::from_secs(20))) });
        tokio::spawn(async move { other.send(()) });
        copying.await.unwrap().expect("the other task has had its turn");
    }

    #[tokio::test]
    async fn blocks_arrive_in_order_until_the_end() {
        let (mut near, far) = tokio::io::duplex(7); // smaller than a block: reads come in pieces
        let writer = tokio::spawn(async move {
            for id in 0..10 {
                near.write_all(&control::encode(&question(id)).unwrap()).await.unwrap();
            }
        });
        let mut reader = BlockReader::new(far, 100);
        for id in 0..10 {
            assert_eq!(reader.next::<Question>().await.unwrap(), Some(question(id)));
        }
        assert_eq!(reader.next::<Question>().await.unwrap(), None);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_block_that_is_too_long_cut_or_garbage_is_an_error() {
        for (bytes, expected) in [
            (&[0, 0, 1, 0][..], "over the limit of 100"),
            (&[0, 0, 0, 5, 1, 2], "connection broke"),
            (&[0, 0, 0, 1, 0xff], "not a message"),
        ] {
            let mut reader = BlockReader::new(bytes, 100);
            let error = reader.next::<Question>().await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
