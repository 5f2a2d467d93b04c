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
    stream: oneshot::Receiver<UnixStream>,
}

impl LocalLinks {
    /// Listens in `<runtime>/links/`.
    ///
    /// # Errors
    /// The directory is not this user's alone, or the socket cannot be made.
    pub(super) fn open(runtime: &Path, me: PeerId) -> Result<Self, LocalError> {
        claim(runtime)?;
        let folder = runtime.join(FOLDER);
        claim(&folder)?;
        let path = folder.join(name(me));
        let listener = listen(&path).map_err(|source| LocalError::Io { path: path.clone(), source })?;
        let awaited = Arc::<Awaited>::default();
        let swept = folder.clone();
        drop(tokio::task::spawn_blocking(move || sweep(&swept))); // a peer that is frozen may let one wait
        let accepting = tokio::spawn(accept(listener, Arc::clone(&awaited))).abort_handle();
        Ok(Self { folder, path, awaited, accepting })
    }

    /// Makes a token for one peer.
    pub(super) fn expect(&self) -> Expected {
        let token = LocalToken(rand::random());
        let (arrived, stream) = oneshot::channel();
        self.awaited.all().insert(token, arrived);
        Expected { token, awaited: Arc::clone(&self.awaited), stream }
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
        match (&mut self.stream).await {
            Ok(stream) => stream,
            Err(_) => std::future::pending().await,
        }
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
            if let Err(error) = timeout(PATIENCE, admit(stream, &awaited)).await.unwrap_or(Ok(())) {
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
    Ok(stream)
}

/// Removes sockets that nobody listens on any more.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.take(MAX_FILES).flatten() {
        let path = entry.path();
        let dead = std::os::unix::net::UnixStream::connect(&path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        // One that is being bound has the other extension: it refuses too.
        if dead && path.extension().is_some_and(|extension| extension == EXTENSION) {
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
/// Connections without a token yet. Each is a peer of this user that is about to show one.
const PENDING: usize = 64;
/// Time for a token to be shown and accepted. On one host that takes a fraction of a millisecond.
const PATIENCE: Duration = Duration::from_millis(500);
const AFTER_ERROR: Duration = Duration::from_millis(100);
/// Files looked at when sweeping: as many as there may be peers.
const MAX_FILES: usize = 4096;
