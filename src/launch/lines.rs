//! What a process prints, cut into lines.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Reads what a process prints, and gives whole lines, several at a time.
#[derive(Debug)]
pub(super) struct Lines<R> {
    from: R,
    read: BytesMut,
    /// How many bytes at the beginning of `read` hold no end of a line.
    searched: usize,
    ended: bool,
    /// Cancelled when the process is gone, and all that it had started.
    gone: CancellationToken,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(from: R, gone: CancellationToken) -> Self {
        Self { from, read: BytesMut::new(), searched: 0, ended: false, gone }
    }

    /// The next lines, each with its end; a line of more than [`MAX_LINE`] bytes comes in pieces, and one that does not end is
    /// given at the end of all. `None`: there are no more.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(end) = self.read[self.searched..].iter().rposition(|byte| *byte == b'\n') {
                let end = self.searched + end + 1;
                self.searched = 0;
                return Some(self.read.split_to(end).freeze());
            }
            self.searched = self.read.len();
            if self.read.len() >= MAX_LINE || self.ended && !self.read.is_empty() {
                self.searched = 0;
                return Some(self.read.split().freeze());
            }
            if self.ended {
                return None;
            }
            self.read.reserve(MAX_LINE);
            self.ended = tokio::select! {
                biased; // what it has printed comes before its end
                read = self.from.read_buf(&mut self.read) => !read.is_ok_and(|read| read > 0),
                // Somebody else holds the pipe open, who is not ours to end.
                () = quiet(&self.gone) => true,
            };
        }
    }
}

async fn quiet(gone: &CancellationToken) {
    gone.cancelled().await;
    sleep(LAST_WORDS).await;
}

/// Bytes of a line that are kept until its end comes.
pub(super) const MAX_LINE: usize = 16 * 1024;
/// How long output may take to come out of a pipe after the last process that is known to write to it is gone.
const LAST_WORDS: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn lines_come_whole() {
        let (mut to, from) = duplex(64);
        let mut lines = Lines::new(from, CancellationToken::new());
        to.write_all(b"one\ntwo\nthr").await.unwrap();
        assert_eq!(lines.next().await.unwrap(), "one\ntwo\n");
        to.write_all(b"ee\n\xff\x00").await.unwrap();
        assert_eq!(lines.next().await.unwrap(), "three\n");
        drop(to);
        assert_eq!(lines.next().await.unwrap(), &b"\xff\x00"[..], "the last line may have no end");
        assert_eq!(lines.next().await, None);
    }

    #[tokio::test]
    async fn a_line_without_end_comes_in_pieces() {
        let (mut to, from) = duplex(1 << 20);
        let mut lines = Lines::new(from, CancellationToken::new());
        to.write_all(&vec![b'x'; 100_000]).await.unwrap();
        drop(to);
        let mut total = 0;
        while let Some(piece) = lines.next().await {
            assert!(piece.len() < 3 * MAX_LINE, "{}", piece.len());
            total += piece.len();
        }
        assert_eq!(total, 100_000);
    }

    #[tokio::test]
    async fn a_pipe_that_somebody_else_holds_open_is_let_go() {
        let (mut to, from) = duplex(64);
        let gone = CancellationToken::new();
        let mut lines = Lines::new(from, gone.clone());
        to.write_all(b"last").await.unwrap();
        gone.cancel();
        assert_eq!(lines.next().await.unwrap(), "last");
        assert_eq!(lines.next().await, None);
    }
}
