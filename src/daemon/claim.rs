//! One daemon per home and mesh: the lock and the socket.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tokio::net::{UnixListener, UnixStream};

use super::DaemonError;

/// Held as long as the daemon runs. The system releases it however the process ends.
#[derive(Debug)]
pub(super) struct Claim {
    _lock: File,
}

impl Claim {
    /// Locks the file and writes this process's id into it.
    ///
    /// # Errors
    /// [`DaemonError::AlreadyRuns`] if another process holds it.
    pub(super) fn take(path: &Path, home: &Path) -> Result<Self, DaemonError> {
        let mut options = OpenOptions::new();
        let mut lock = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // who holds it wrote its id there
            .mode(0o600)
            .open(path)
            .map_err(DaemonError::io("open", path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DaemonError::AlreadyRuns { home: home.to_owned(), pid: read_pid(&mut lock) });
            }
            Err(errno) => return Err(DaemonError::io("lock", path)(errno.into())),
        }
        write_pid(&mut lock).map_err(DaemonError::io("write", path))?;
        Ok(Self { _lock: lock })
    }
}

/// Whether a process holds the file. Looks for an instant only, in which nobody else can take it.
pub(super) fn is_held(path: &Path) -> bool {
    let Ok(lock) = File::open(path) else { return false };
    flock(&lock, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// Binds the daemon's socket. One that was left behind is removed: nobody answers there.
pub(super) async fn bind(path: &Path, home: &Path) -> Result<UnixListener, DaemonError> {
    match UnixStream::connect(path).await {
        Ok(_) => return Err(DaemonError::AlreadyRuns { home: home.to_owned(), pid: None }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(DaemonError::io("remove", path))?;
        }
        Err(error) => return Err(DaemonError::io("use", path)(error)),
    }
    // Between binding and listening the system refuses whoever connects. So the name is given when it listens: whoever
    // sees a living daemon's socket gets through. Its directory is for the owner alone, so nobody could come in earlier.
    let unnamed = path.with_file_name(UNNAMED);
    match fs::remove_file(&unnamed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(DaemonError::io("remove", &unnamed)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&unnamed).map_err(DaemonError::io("listen at", &unnamed))?;
    fs::set_permissions(&unnamed, Permissions::from_mode(0o600))
        .map_err(DaemonError::io("close to others", &unnamed))?;
    fs::rename(&unnamed, path).map_err(DaemonError::io("listen at", path))?;
    Ok(listener)
}

/// Refuses a path that the system would cut or refuse without saying why.
pub(super) fn check_length(path: &Path) -> Result<(), DaemonError> {
    let len = path.as_os_str().as_bytes().len();
    if len > MAX_SOCKET_PATH {
        return Err(DaemonError::SocketPathTooLong { path: path.to_owned(), len, max: MAX_SOCKET_PATH });
    }
    Ok(())
}

fn read_pid(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(MAX_PID).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.seek(SeekFrom::Start(0))?;
    writeln!(lock, "{}", std::process::id())
}

/// What the socket is called until it listens; no longer than its name.
const UNNAMED: &str = "meshd.new";
/// Bytes of a socket's path: `sun_path` has 108 on Linux, 104 elsewhere, one of them for the end.
const MAX_SOCKET_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };
/// Bytes of a process id in text.
const MAX_PID: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_learns_the_pid_of_the_first() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("meshd.lock");
        fs::write(&path, "999999999\nleft by one that crashed").unwrap();
        let first = Claim::take(&path, home.path()).unwrap();
        match Claim::take(&path, home.path()) {
            Err(DaemonError::AlreadyRuns { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        Claim::take(&path, home.path()).unwrap();
    }

    #[tokio::test]
    async fn only_a_socket_where_nobody_answers_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("meshd.sock");
        let listener = bind(&path, home.path()).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(bind(&path, home.path()).await, Err(DaemonError::AlreadyRuns { .. })));
        drop(listener);
        bind(&path, home.path()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_sees_the_socket_of_a_daemon_that_starts_gets_through() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("meshd.sock");
        for _ in 0..2000 {
            let watched = path.clone();
            let client = tokio::task::spawn_blocking(move || {
                let _ = (0..10_000_000).find(|_| watched.exists());
                std::os::unix::net::UnixStream::connect(watched).map(drop)
            });
            let listener = bind(&path, home.path()).await.unwrap();
            client.await.unwrap().unwrap();
            drop(listener);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_long_path_is_one_clear_error() {
        let path = Path::new("/").join("x".repeat(MAX_SOCKET_PATH));
        let error = check_length(&path).unwrap_err();
        assert!(error.hint().unwrap().contains("--home"), "{error}");
        check_length(&Path::new("/").join("x".repeat(MAX_SOCKET_PATH - 1))).unwrap();
    }
}
