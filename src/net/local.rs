//! Links over Unix sockets, between peers of one host and user.
//!
//! Each peer listens on a socket in the runtime directory. In its greeting, which crosses the encrypted connection, it hands
//! the other side a token; who comes to the socket with that token is the other side, and its data stream goes on there: no
//! encryption, no copies in between. Where the socket cannot be reached (another host, user, container), both stay with
//! the connection. A peer never names a path: each looks in its own runtime directory.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use rustix::process::geteuid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tracing::debug;

use super::discovery::local::{LocalError, claim};
use crate::mesh::PeerId;
use crate::wire::message::LocalToken;

/// This peer's socket, and the way to those of others. Dropping it takes the socket away; links that stand go on.
#[derive(Debug)]
pub(super) struct LocalLinks {
    folder: PathBuf,
    path: PathBuf,
    awaited: Arc<Awaited>,
    accepting: AbortHandle,
}

/// Who may come, by token.
#[derive(Debug, Default)]
struct Awaited(Mutex<HashMap<LocalToken, oneshot::Sender<UnixStream>>>);

/// A token that was handed out. Dropping it makes the token worthless.
#[derive(Debug)]
pub(super) struct Expected {
    token: LocalToken,
    awaited: Arc<Awaited>,
    /// `None` once it came, or cannot come any more.
    stream: Option<oneshot::Receiver<UnixStream>>,
}

impl LocalLinks {
    /// Listens in `<runtime>/links/`.
    ///
    /// # Errors
    /// The directory is not this user's alone, or the socket cannot be made.
    pub(super) fn open(runtime: &Path, me: PeerId) -> Result<Self, LocalError> {
        claim(runtime)?;
        let folder = runtime.join(FOLDER);
        let path = folder.join(name(me));
        let mut tries = 0;
        let listener = loop {
            claim(&folder)?;
            match listen(&path) {
                Ok(listener) => break listener,
                // A peer that left just now took the directory away.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => tries += 1,
                Err(source) => return Err(LocalError::Io { path, source }),
            }
        };
        let awaited = Arc::<Awaited>::default();
        let (swept, awaiting) = (folder.clone(), Arc::clone(&awaited));
        let accepting = async move { tokio::join!(accept(listener, awaiting), sweep(&swept)) };
        let accepting = tokio::spawn(accepting).abort_handle();
        Ok(Self { folder, path, awaited, accepting })
    }

    /// Makes a token for one peer.
    pub(super) fn expect(&self) -> Expected {
        let token = LocalToken(rand::random());
        let (arrived, stream) = oneshot::channel();
        self.awaited.all().insert(token, arrived);
        Expected { token, awaited: Arc::clone(&self.awaited), stream: Some(stream) }
    }

    /// Goes to a peer's socket with the token that it gave. `None` if that leads nowhere: the peer is elsewhere.
    pub(super) async fn connect(&self, peer: PeerId, token: LocalToken) -> Option<UnixStream> {
        let path = self.folder.join(name(peer));
        match timeout(PATIENCE, present(&path, token)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => None, // on another host, as a rule
            Ok(Err(error)) => {
                debug!(%peer, %error, "the peer's socket cannot be used: the link stays on the connection");
                None
            }
            Err(_) => {
                debug!(%peer, "nobody answers at the peer's socket: the link stays on the connection");
                None
            }
        }
    }
}

impl Drop for LocalLinks {
    fn drop(&mut self) {
        self.accepting.abort();
        drop(fs::remove_file(&self.path));
        drop(fs::remove_dir(&self.folder)); // goes with the last peer
    }
}

impl Expected {
    pub(super) fn token(&self) -> LocalToken {
        self.token
    }

    /// Waits for whoever brings the token. Pends for ever if nobody can any more. Cancelling it loses nothing.
    pub(super) async fn arrived(&mut self) -> UnixStream {
        if let Some(stream) = &mut self.stream {
            let came = stream.await;
            self.stream = None;
            if let Ok(stream) = came {
                return stream;
            }
        }
        std::future::pending().await
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.awaited.all().remove(&self.token);
    }
}

impl Awaited {
    fn all(&self) -> MutexGuard<'_, HashMap<LocalToken, oneshot::Sender<UnixStream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Binds a socket under another name first: it has its own once it listens, so that nobody meets one that does not yet.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let unnamed = path.with_extension("new");
    drop(fs::remove_file(&unnamed)); // nobody else has this peer's id
    let listener = UnixListener::bind(&unnamed)?;
    fs::set_permissions(&unnamed, Permissions::from_mode(0o600))?;
    fs::rename(&unnamed, path)?;
    Ok(listener)
}

/// Lets in who brings a token.
async fn accept(listener: UnixListener, awaited: Arc<Awaited>) {
    let pending = Arc::new(Semaphore::new(PENDING));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "cannot accept on the socket for links");
                tokio::time::sleep(AFTER_ERROR).await; // descriptors come back
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&pending).try_acquire_owned() else { continue }; // dropped: that peer stays with TCP
        let awaited = Arc::clone(&awaited);
        tokio::spawn(async move {
            if let Err(error) = timeout(LONGER, admit(stream, &awaited)).await.unwrap_or(Ok(())) {
                debug!(%error, "a connection to the socket for links came to nothing");
            }
            drop(permit);
        });
    }
}

/// Reads a token and gives the stream to whoever awaits it.
async fn admit(mut stream: UnixStream, awaited: &Awaited) -> io::Result<()> {
    // The directory is closed to others; root gets everywhere, and is none of ours either.
    if stream.peer_cred()?.uid() != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut token = LocalToken([0; 32]);
    stream.read_exact(&mut token.0).await?;
    let Some(waiting) = awaited.all().remove(&token) else { return Ok(()) }; // closed without a word
    stream.write_all(&[WELCOME]).await?;
    // Who has given up meanwhile sends over the connection: then this stream must not be waited for.
    if stream.read_u8().await? != COMING {
        return Err(io::ErrorKind::InvalidData.into());
    }
    drop(waiting.send(stream)); // whose session is over wants none
    Ok(())
}

/// Connects, shows the token, and waits until it was accepted.
async fn present(path: &Path, token: LocalToken) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    if stream.peer_cred()?.uid() != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.write_all(&token.0).await?;
    if stream.read_u8().await? != WELCOME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    stream.write_all(&[COMING]).await?;
    Ok(stream)
}

/// Removes sockets that nobody listens on any more.
async fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.take(MAX_FILES).flatten() {
        let path = entry.path();
        let connected = timeout(PATIENCE, UnixStream::connect(&path)).await; // one that is frozen may let us wait
        let dead = matches!(connected, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused);
        // One that is being bound has another extension, and refuses too. That takes no time.
        let over = || {
            let age = entry.metadata().and_then(|socket| socket.modified()).map(|at| at.elapsed().unwrap_or_default());
            age.is_ok_and(|age| age > BINDING)
        };
        if dead && (path.extension().is_some_and(|extension| extension == EXTENSION) || over()) {
            drop(fs::remove_file(path));
        }
    }
}

/// A peer's socket. Short, because a socket's path may have some hundred bytes only; the token tells more.
fn name(peer: PeerId) -> String {
    let mut name = BASE32_NOPAD.encode(&peer.as_bytes()[..NAME]);
    name.make_ascii_lowercase();
    format!("{name}.{EXTENSION}")
}

const FOLDER: &str = "links";
const EXTENSION: &str = "s";
/// Bytes of a peer's id in its socket's name: 16 characters.
const NAME: usize = 10;
/// What is answered to a token that holds.
const WELCOME: u8 = 1;
/// What who was let in says, and then speaks over this stream.
const COMING: u8 = 2;
/// Connections without a token yet. Each is a peer of this user that is about to show one.
const PENDING: usize = 64;
/// Time for a token to be shown and accepted. That takes a fraction of a millisecond, unless the machine is overloaded.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time for who comes to be let in. Longer than its own patience: once it has said that it is coming, it does.
const LONGER: Duration = Duration::from_secs(4);
const AFTER_ERROR: Duration = Duration::from_millis(100);
const TRIES: usize = 10;
/// After this, a socket that was not finished will not be: its process has ended.
const BINDING: Duration = Duration::from_secs(60);
/// Files looked at when sweeping: as many as there may be peers.
const MAX_FILES: usize = 4096;

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 32])
    }

    fn open(runtime: &tempfile::TempDir, n: u8) -> LocalLinks {
        LocalLinks::open(&runtime.path().join("run"), peer(n)).unwrap()
    }

    #[tokio::test]
    async fn a_token_lets_one_in_once() {
        let runtime = tempfile::tempdir().unwrap();
        let (a, b) = (open(&runtime, 1), open(&runtime, 2));
        let mut expected = a.expect();
        let mut there = b.connect(peer(1), expected.token()).await.unwrap();
        let mut here = expected.arrived().await;
        there.write_all(b"hello").await.unwrap();
        let mut read = [0; 5];
        here.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
        assert!(b.connect(peer(1), expected.token()).await.is_none(), "it is used up");
        assert!(expected.arrived().now_or_never().is_none(), "nobody else comes, however often one asks");
        assert!(expected.arrived().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_token_that_was_let_go_is_worthless() {
        let runtime = tempfile::tempdir().unwrap();
        let (a, b) = (open(&runtime, 1), open(&runtime, 2));
        let token = a.expect().token();
        assert!(b.connect(peer(1), token).await.is_none());
        assert!(b.connect(peer(3), token).await.is_none(), "a peer without a socket");
        drop(a);
        assert!(b.connect(peer(1), token).await.is_none(), "a peer that left");
    }

    #[tokio::test]
    async fn who_goes_away_before_it_is_let_in_leaves_nothing_behind() {
        let runtime = tempfile::tempdir().unwrap();
        let a = open(&runtime, 1);
        let mut expected = a.expect();
        let mut there = UnixStream::connect(&a.path).await.unwrap();
        there.write_all(&expected.token().0).await.unwrap();
        assert_eq!(there.read_u8().await.unwrap(), WELCOME);
        drop(there);
        while !a.awaited.all().is_empty() {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            assert!(expected.arrived().now_or_never().is_none(), "and one may ask again");
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn names_of_sockets_are_short_and_differ() {
        assert_eq!(name(peer(1)).len(), 18);
        assert_ne!(name(peer(1)), name(peer(2)));
    }
}
