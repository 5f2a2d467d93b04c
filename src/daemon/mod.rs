//! The daemon: a node of its own, a socket for the programs of this machine, and an orderly start and end.

mod channels;
mod claim;
mod control;
mod errands;
mod failures;
mod files;
mod halt;
mod offers;
mod outbox;
mod session;
mod subscriptions;

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::claim::{Claim, bind};
use self::control::{Ending, Server};
use crate::Closed;
use crate::config::{ConfigError, Home, Layers, Loaded};
use crate::exec::ExecService;
use crate::files::ShareError;
use crate::keys::{KeyError, KeyRing, NetworkKey};
use crate::mesh::{MeshName, NodeName, PeerId};
use crate::node::{ListenError, Node, StartError};

/// What a daemon is to be.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where its files are.
    pub(crate) home: Home,
    /// Which mesh.
    pub(crate) mesh: MeshName,
    /// Arguments and environment; the file is read from the home, and again at SIGHUP.
    pub(crate) layers: Layers,
}

/// What a daemon has to say to whoever started it. Printing is the caller's.
#[derive(Debug)]
pub(crate) enum Notice<'a> {
    /// There was no key; a new one was made. This is a mesh of one so far.
    NewKey { mesh: &'a MeshName, path: &'a Path },
    /// It serves.
    Ready { mesh: &'a MeshName, peer: PeerId, addresses: &'a [String], socket: &'a Path },
}

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error("a daemon runs already for {}{}", home.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    AlreadyRuns { home: PathBuf, pid: Option<u32> },
    #[error("the path of the socket is too long: {} has {len} bytes of at most {max}", path.display())]
    SocketPathTooLong { path: PathBuf, len: usize, max: usize },
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the shares in config.toml cannot be")]
    Share(#[from] ShareError),
    #[error(transparent)]
    Address(StartError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Offer(#[from] ListenError),
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// The settings by which a daemon would run.
///
/// # Errors
/// It would not run by them. Nothing is left that only shows when it starts, but for what others have taken.
pub(crate) fn settings(layers: &Layers, home: &Home, mesh: &MeshName) -> Result<Loaded, DaemonError> {
    let loaded = layers.load(home, mesh)?;
    claim::check_length(&home.socket(mesh))?;
    crate::files::check(&loaded.config.share)?;
    crate::node::check(&loaded.config).map_err(DaemonError::Address)?;
    Ok(loaded)
}

/// Runs a daemon until SIGTERM or SIGINT, or until somebody who may wants it to stop.
///
/// # Errors
/// It could not start. Nothing is left running.
pub(crate) async fn run(settings: Settings, mut notify: impl FnMut(Notice<'_>)) -> Result<(), DaemonError> {
    let Settings { home, mesh, layers } = settings;
    let (dir, socket) = (home.mesh(&mesh), home.socket(&mesh));
    // Before anything is changed: everything that can be wrong with what was said.
    let loaded = self::settings(&layers, &home, &mesh)?;
    let mut signals = Signals::new().map_err(DaemonError::Signals)?;

    private_dir(home.dir())?;
    private_dir(&dir)?;
    let claim = Claim::take(&home.lock(&mesh), home.dir())?;
    if KeyRing::load(&dir, &mesh)?.is_none() {
        KeyRing::create(&dir, &mesh, NetworkKey::generate())?;
        notify(Notice::NewKey { mesh: &mesh, path: &dir.join("key") });
    }
    let name = loaded.config.name.clone().unwrap_or_else(host_name);
    let node =
        Node::builder(name.as_str()).mesh(mesh.as_str()).home(home.dir()).config(loaded.config.clone()).start().await?;
    // Always: whoever may run nothing is told which setting that takes.
    let programs = node.serve_exec(loaded.config.exec.clone()).await?;
    let sharing = files::share(&node, &loaded.config.share, &dir).await?;
    let listener = bind(&socket, home.dir()).await?;
    let status = node.status().await?;

    let (halt, ending) = (CancellationToken::new(), Ending::default());
    let _stopping = halt::offer(&node, halt.clone()).await.map_err(StartError::from)?;
    let server = Arc::new(Server::new(node.clone(), &loaded, halt.clone(), ending.clone(), &status));
    let serving = tokio::spawn(control::serve(server, listener));
    notify(Notice::Ready { mesh: &mesh, peer: status.peer, addresses: &status.addresses, socket: &socket });

    loop {
        let wish = tokio::select! {
            wish = signals.next() => wish,
            () = halt.cancelled() => Wish::Stop,
        };
        match wish {
            Wish::Stop => break,
            Wish::Reload => reload(&node, &layers, &loaded, &home, &mesh).await,
        }
    }
    info!("stopping");
    shutdown(node, programs, ending, serving, &socket, &mut signals).await;
    drop(sharing);
    drop(claim);
    Ok(())
}

impl DaemonError {
    /// What to do about it, if there is something.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::AlreadyRuns { pid, .. } => Some(match pid {
                Some(pid) => format!("use it, or end it with: kill {pid}; another mesh or home can run beside it"),
                None => "use it; another mesh (--mesh) or home (--home) can run beside it".to_owned(),
            }),
            Self::SocketPathTooLong { .. } => {
                Some("take a home with a shorter path: --home DIR or MESHD_HOME".to_owned())
            }
            Self::Io { path, .. } => {
                Some(format!("check the permissions of {}, and that its disk is not full", path.display()))
            }
            Self::Config(error) => Some(error.hint()),
            Self::Key(error) => error.hint(),
            Self::Address(error) | Self::Start(error) => error.hint(),
            Self::Share(_) => Some("correct [[share]] in config.toml: each has a name of its own".to_owned()),
            Self::Signals(_) | Self::Offer(_) | Self::Closed(_) => None,
        }
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// The end, in order. Takes no longer than [`SHUTDOWN`].
async fn shutdown(
    node: Node,
    programs: ExecService,
    ending: Ending,
    serving: tokio::task::JoinHandle<()>,
    socket: &Path,
    signals: &mut Signals,
) {
    let programs = programs.end(); // those that run for others, beside all the rest
    let in_order = async {
        ending.drain.cancel(); // 1. nothing is begun any more; what attached programs have in hand they finish
        tokio::select! {
            () = node.drain() => {}
            () = signals.stop() => info!("stopping at once"),
        }
        ending.stop.cancel(); // 2. no new clients; those attached are told and let go, and their nodes with them
        if serving.await.is_err_and(|error| error.is_panic()) {
            warn!("the control socket's task panicked");
        }
        node.shutdown().await; // 3. queued messages go out, the mesh is told
    };
    if timeout(SHUTDOWN, async { tokio::join!(programs, in_order) }).await.is_err() {
        warn!("not everything was sent, or has ended, in {SHUTDOWN:?}");
    }
    // 4. from here on the socket is nobody's
    if let Err(error) = fs::remove_file(socket) {
        warn!(%error, "could not remove the socket");
    }
}

/// Takes over what was changed in the files, as far as that can be done while running.
async fn reload(node: &Node, layers: &Layers, running: &Loaded, home: &Home, mesh: &MeshName) {
    match node.reload_keys().await {
        Ok(()) => info!("keys were read again"),
        Err(error) => warn!(%error, "the keys stay as they are"),
    }
    match settings(layers, home, mesh) {
        Ok(loaded) => {
            let changed = loaded.settings.iter().zip(&running.settings).filter(|(new, old)| new.value != old.value);
            for (new, old) in changed {
                warn!(
                    key = new.key,
                    old = old.value,
                    new = new.value,
                    "changed in the file; takes effect at the next start"
                );
            }
        }
        Err(error) => warn!(%error, "the configuration stays as it is"),
    }
}

/// What a signal asks for.
enum Wish {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn stop(&mut self) {
        while matches!(self.next().await, Wish::Reload) {}
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }
}

/// Whether a daemon holds the home: it runs, or has not quite ended.
pub(crate) fn runs(home: &Home, mesh: &MeshName) -> bool {
    claim::is_held(&home.lock(mesh))
}

/// Makes a directory that is for its owner only.
fn private_dir(path: &Path) -> Result<(), DaemonError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(DaemonError::io("create", path))?;
    // It may have been there before, open to others. Whoever can enter it could reach the socket before it is closed to them.
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(DaemonError::io("close to others", path))
}

/// The name of this machine, for want of another.
fn host_name() -> NodeName {
    let system = rustix::system::uname();
    let name = NodeName::new(system.nodename().to_string_lossy());
    name.unwrap_or_else(|_| NodeName::new("localhost").expect("a plain name"))
}

/// How long leaving may take: service managers kill after 10 s or more.
const SHUTDOWN: Duration = Duration::from_millis(4700);
