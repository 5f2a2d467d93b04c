//! The local socket's client.

use std::collections::VecDeque;
use std::io;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::Place;
use super::trouble::{Exit, Trouble};
use crate::mesh::PeerId;
use crate::socket::{BlockReader, SocketError};
use crate::wire::control::{self, Answer, Failure, Question, Reply, Request};

/// A connection to the daemon of one place.
#[derive(Debug)]
pub(super) struct Client {
    from: BlockReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
    next_id: u64,
    /// Requests, or the rest of one, that are to be written.
    unwritten: BytesMut,
    /// What came unasked while a reply was awaited. The daemon is ours, and such waits are short.
    unasked: VecDeque<Answer>,
    /// Bytes of the largest payload that the daemon takes.
    pub(super) message_bytes: usize,
    /// The daemon's peer and process.
    pub(super) peer: Option<PeerId>,
    pub(super) pid: u32,
}

impl Client {
    /// Connects to the daemon.
    ///
    /// # Errors
    /// [`Exit::NoDaemon`] if none runs.
    pub(super) async fn connect(place: &Place) -> Result<Self, Trouble> {
        Self::find(place).await?.ok_or_else(|| {
            Trouble::new(Exit::NoDaemon, format!("no daemon runs here for mesh '{}'", place.mesh))
                .hint(format!("start one with: {}", place.command("run")))
        })
    }

    /// Connects to the daemon, if one runs.
    pub(super) async fn find(place: &Place) -> Result<Option<Self>, Trouble> {
        let path = place.home.socket(&place.mesh);
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => {
                let trouble = Trouble::failed(&format!("cannot reach the daemon at {}", path.display()), &error);
                return Err(trouble.hint("only the user who runs the daemon can use it; or give another --home"));
            }
        };
        let (from, to) = stream.into_split();
        let from = BlockReader::new(from, control::MAX_BLOCK);
        let mut client = Self {
            from,
            to,
            next_id: 0,
            unwritten: BytesMut::new(),
            unasked: VecDeque::new(),
            message_bytes: 0,
            peer: None,
            pid: 0,
        };
        // A daemon that is frozen, or has no descriptor left, takes the connection and says nothing.
        let greeted = timeout(PATIENCE, client.call(Request::Hello { version: control::VERSION })).await;
        let greeted = greeted.map_err(|_| {
            Trouble::new(Exit::TimedOut, format!("the daemon of mesh '{}' does not answer", place.mesh))
                .hint("see what it logs: it may be frozen, or out of file descriptors (`ulimit -n`)")
        })??;
        let Reply::Welcome(welcome) = greeted else { return Err(unexpected(&greeted)) };
        client.message_bytes = welcome.message_bytes;
        (client.peer, client.pid) = (Some(welcome.peer), welcome.pid);
        Ok(Some(client))
    }

    /// Asks and waits for the reply.
    pub(super) async fn call(&mut self, request: Request) -> Result<Reply, Trouble> {
        Ok(self.ask(request).await??)
    }

    /// Asks and waits for the reply, or for why there is none.
    pub(super) async fn ask(&mut self, request: Request) -> Result<Result<Reply, Failure>, Trouble> {
        let wanted = self.begin(request).await?;
        loop {
            match self.receive().await? {
                Answer::Reply { id, reply } if id == wanted => return Ok(Ok(reply)),
                Answer::Failed { id, failure } if id == wanted => return Ok(Err(failure)),
                Answer::Reply { .. } | Answer::Failed { .. } => {} // We ask one thing at a time.
                unasked => self.unasked.push_back(unasked),
            }
        }
    }

    /// Asks. What is said to that, by the id that this gives, comes from [`next`](Self::next).
    pub(super) async fn begin(&mut self, request: Request) -> Result<u64, Trouble> {
        let id = self.enqueue(request)?;
        match self.to.write_all_buf(&mut self.unwritten).await {
            Ok(()) => Ok(id),
            Err(error) => Err(self.last_words().await.unwrap_or_else(|| SocketError::from(error).into())),
        }
    }

    /// Puts a request where [`exchange`](Self::exchange) writes it from.
    pub(super) fn enqueue(&mut self, request: Request) -> Result<u64, Trouble> {
        self.next_id += 1;
        let id = self.next_id;
        let block = control::encode(&Question { id, request }).map_err(SocketError::from)?;
        self.unwritten.extend_from_slice(&block);
        Ok(id)
    }

    /// How many bytes wait to be written.
    pub(super) fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// Writes some of what is enqueued, or gives what the daemon says next: what can be done first. So neither waits for the
    /// other.
    ///
    /// # Cancel safety
    /// Nothing is lost if this is dropped.
    pub(super) async fn exchange(&mut self) -> Result<Option<Answer>, Trouble> {
        self.exchange_if(true).await
    }

    /// As [`exchange`](Self::exchange), but does not give what the daemon says unless there is room for it: that waits, while
    /// what is enqueued goes out.
    ///
    /// # Cancel safety
    /// Nothing is lost if this is dropped.
    pub(super) async fn exchange_if(&mut self, room: bool) -> Result<Option<Answer>, Trouble> {
        if room && let Some(answer) = self.unasked.pop_front() {
            return Ok(Some(answer));
        }
        let written = tokio::select! {
            biased;
            written = self.to.write_buf(&mut self.unwritten), if !self.unwritten.is_empty() => written,
            answer = self.from.next(), if room => return heard(answer?).map(Some),
            () = std::future::pending() => return Ok(None),
        };
        match written {
            Ok(_) => Ok(None),
            Err(error) => Err(self.last_words().await.unwrap_or_else(|| SocketError::from(error).into())),
        }
    }

    /// What the daemon says next.
    ///
    /// # Cancel safety
    /// Nothing is lost if this is dropped.
    pub(super) async fn next(&mut self) -> Result<Answer, Trouble> {
        match self.unasked.pop_front() {
            Some(answer) => Ok(answer),
            None => self.receive().await,
        }
    }

    async fn receive(&mut self) -> Result<Answer, Trouble> {
        heard(self.from.next().await?)
    }

    /// Why the daemon reads no more, if it said so before it closed.
    async fn last_words(&mut self) -> Option<Trouble> {
        loop {
            match self.from.next().await {
                Ok(Some(Answer::Goodbye(failure))) => return Some(failure.into()),
                Ok(Some(_)) => {}
                Ok(None) | Err(SocketError::Io(_) | SocketError::Garbage(_) | SocketError::TooLong(_)) => return None,
            }
        }
    }
}

/// What was heard, unless that is the end.
fn heard(answer: Option<Answer>) -> Result<Answer, Trouble> {
    match answer {
        Some(Answer::Goodbye(failure)) => Err(failure.into()),
        Some(answer) => Ok(answer),
        None => Err(Trouble::new(Exit::NoDaemon, "the daemon has ended").hint("start it again with: meshd run")),
    }
}

/// Asks a [`Client`] for one kind of reply: `ask!(client, Request::Peers => Reply::Peers(peers) => peers)`.
macro_rules! ask {
    ($client:expr, $request:expr => $reply:pat => $value:expr) => {
        match $client.call($request).await? {
            $reply => $value,
            other => return Err($crate::cli::client::unexpected(&other)),
        }
    };
}
pub(super) use ask;

/// A reply to another question than the one asked.
pub(super) fn unexpected(reply: &Reply) -> Trouble {
    Trouble::new(Exit::Failed, format!("the daemon gave an unexpected reply: {reply:?}"))
        .hint("restart the daemon, so that both are of one version")
}

/// How long a daemon may take to greet.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
