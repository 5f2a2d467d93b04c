//! Same host: a directory per mesh tag in the runtime directory, one file per peer. Works with no network interface up.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use libp2p::Multiaddr;
use rustix::io::Errno;
use rustix::process::{Pid, geteuid, test_kill_process};
use serde::{Deserialize, Serialize};
use tracing::debug;

use super::{Found, Source, is_dialable, write_atomically};
use crate::mesh::PeerId;

/// This peer among the peers of its host and user. Dropping it takes its files away.
#[derive(Debug)]
pub(crate) struct SameHost {
    me: PeerId,
    started: u64,
    runtime: PathBuf,
    folders: Vec<Folder>,
    addresses: Vec<Multiaddr>,
}

/// Why this host's peers cannot be found through the runtime directory. Other sources are not affected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalError {
    /// Something else has the name of the directory.
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    /// Who owns the directory could make this peer dial wherever they like.
    #[error("{0} belongs to another user")]
    NotOurs(PathBuf),
    /// Others could read or write what is in it.
    #[error("{0} is open to other users: chmod 700 {0}")]
    Open(PathBuf),
    /// The directory could not be made, read or written.
    #[error("cannot use {path}")]
    Io {
        /// Which directory or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What a peer says in its file.
#[derive(Debug, Serialize, Deserialize)]
struct Notice {
    pid: u32,
    /// Microseconds since the Unix epoch.
    started: u64,
    addresses: Vec<String>,
}

/// The directory of one tag, as of the last look.
#[derive(Debug)]
struct Folder {
    tag: String,
    path: PathBuf,
    /// When the directory had last changed; `None` if the next look has to read it.
    changed: Option<SystemTime>,
    /// Which version of each peer's file was read, and the process it names.
    read: HashMap<PeerId, (Version, u32)>,
}

/// Inode and time of change: a file that is replaced differs in the first, one written in place in the second.
type Version = (u64, i64, i64);

impl SameHost {
    /// Joins the directories `<runtime>/<tag>/`, making them if need be.
    ///
    /// # Errors
    /// A directory cannot be made, or another user has or had a hand in it.
    pub(crate) fn open(runtime: &Path, me: PeerId, started: u64, tags: &[String]) -> Result<Self, LocalError> {
        claim(runtime)?;
        let mut this = Self { me, started, runtime: runtime.to_owned(), folders: Vec::new(), addresses: Vec::new() };
        this.set_tags(tags)?;
        Ok(this)
    }

    /// Says where this peer listens, under every tag. Writes only if that is news.
    ///
    /// # Errors
    /// A file could not be written; others may not find this peer, and the next call tries again.
    pub(crate) fn announce(&mut self, addresses: &[Multiaddr]) -> Result<(), LocalError> {
        if self.addresses != addresses {
            let before = std::mem::replace(&mut self.addresses, addresses.to_vec());
            let written = self.folders.iter().try_for_each(|folder| self.write(folder));
            return written.inspect_err(|_| self.addresses = before);
        }
        Ok(())
    }

    /// Leaves the directories of tags that are not in the list, joins those that are new.
    ///
    /// # Errors
    /// As for [`open`](Self::open); the tags before the bad one hold.
    pub(crate) fn set_tags(&mut self, tags: &[String]) -> Result<(), LocalError> {
        let (kept, left) = std::mem::take(&mut self.folders).into_iter().partition(|folder| tags.contains(&folder.tag));
        self.folders = kept;
        left.iter().for_each(|folder| self.leave(folder));
        for tag in tags {
            if self.folders.iter().any(|folder| folder.tag == *tag) {
                continue;
            }
            let path = self.runtime.join(tag);
            claim(&path)?;
            let folder = Folder { tag: tag.clone(), path, changed: None, read: HashMap::new() };
            self.write(&folder)?;
            self.folders.push(folder);
        }
        Ok(())
    }

    /// The other peers whose files are new or changed since the last scan. One `stat` per tag if nothing changed.
    pub(crate) fn scan(&mut self) -> Vec<Found> {
        let mut found = Vec::new();
        let mut folders = std::mem::take(&mut self.folders);
        for folder in &mut folders {
            match folder.scan(self.me, &mut found) {
                Ok(mine) if mine || self.addresses.is_empty() => {}
                // Swept by somebody who cannot see this process (another container), or by a cleaner of temporary files.
                Ok(_) => {
                    if let Err(error) = self.write(folder) {
                        debug!(%error, "same-host file is gone and cannot be written again");
                    }
                }
                Err(error) => {
                    debug!(path = %folder.path.display(), %error, "cannot scan");
                    // Whole directories get cleaned away too.
                    if error.kind() == io::ErrorKind::NotFound && claim(&folder.path).is_ok() {
                        drop(self.write(folder));
                    }
                }
            }
        }
        self.folders = folders;
        found
    }

    fn write(&self, folder: &Folder) -> Result<(), LocalError> {
        if self.addresses.is_empty() {
            return Ok(()); // there is nothing to find yet
        }
        let addresses = self.addresses.iter().take(MAX_ADDRESSES).map(Multiaddr::to_string).collect();
        let notice = Notice { pid: std::process::id(), started: self.started, addresses };
        let path = folder.path.join(file_name(self.me));
        let bytes = serde_json::to_vec(&notice).expect("strings and numbers are JSON");
        write_atomically(&path, &bytes).map_err(|source| LocalError::Io { path, source })
    }

    fn leave(&self, folder: &Folder) {
        drop(fs::remove_file(folder.path.join(file_name(self.me))));
        drop(fs::remove_dir(&folder.path)); // goes with the last peer
    }
}

impl Drop for SameHost {
    fn drop(&mut self) {
        self.folders.iter().for_each(|folder| self.leave(folder));
    }
}

impl Folder {
    /// Adds what is new to `found`, sweeps what is stale, and tells whether the file of `me` is there.
    fn scan(&mut self, me: PeerId, found: &mut Vec<Found>) -> io::Result<bool> {
        let changed = fs::metadata(&self.path)?.modified()?;
        if self.changed == Some(changed) {
            return Ok(true);
        }
        let mut mine = false;
        let mut read = HashMap::new();
        for entry in fs::read_dir(&self.path)?.take(MAX_FILES).flatten() {
            let Some(peer) = peer_of(&entry.path()) else { continue };
            if peer == me {
                mine = true;
                continue;
            }
            let Ok(metadata) = entry.metadata() else { continue }; // removed meanwhile
            if !metadata.is_file() || metadata.len() > MAX_FILE {
                continue;
            }
            let version = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
            let known = self.read.get(&peer).filter(|(read, _)| *read == version);
            let news = if known.is_none() { notice(&entry.path()) } else { None };
            let Some(pid) = known.map(|(_, pid)| *pid).or_else(|| news.as_ref().map(|news| news.pid)) else { continue };
            if !is_alive(pid) {
                drop(fs::remove_file(entry.path()));
                continue;
            }
            read.insert(peer, (version, pid));
            found.extend(news.map(|news| news.found(peer)));
        }
        self.read = read;
        // A change in the same tick of the file system's clock would not show: a young time is no proof of quiet.
        let settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age > CLOCK_TICK);
        self.changed = settled.then_some(changed);
        Ok(mine)
    }
}

impl Notice {
    fn found(self, peer: PeerId) -> Found {
        let addresses = self.addresses.iter().filter_map(|text| text.parse().ok()).filter(is_dialable);
        let addresses = addresses.take(MAX_ADDRESSES).collect();
        Found { peer: Some(peer), addresses, source: Source::Local, started: self.started }
    }
}

/// Makes a directory of mode 0700, or checks that the one that is there is ours alone.
pub(in crate::net) fn claim(path: &Path) -> Result<(), LocalError> {
    let io = |source| LocalError::Io { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()), // a file, or a link to nowhere: told apart below
        _ => Err(io(error)),
    })?;
    // Not followed: a link in a shared directory is somebody else's choice of place.
    let metadata = fs::symlink_metadata(path).map_err(io)?;
    if !metadata.is_dir() {
        return Err(LocalError::NotADirectory(path.to_owned()));
    }
    if metadata.uid() != geteuid().as_raw() {
        return Err(LocalError::NotOurs(path.to_owned()));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(LocalError::Open(path.to_owned()));
    }
    Ok(())
}

fn file_name(peer: PeerId) -> String {
    format!("{peer}{SUFFIX}")
}

fn peer_of(path: &Path) -> Option<PeerId> {
    path.file_name()?.to_str()?.strip_suffix(SUFFIX)?.parse().ok()
}

fn notice(path: &Path) -> Option<Notice> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whether a process of this number runs, whoever owns it. Several peers may share one process, ours included.
fn is_alive(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    test_kill_process(pid) != Err(Errno::SRCH)
}

const SUFFIX: &str = ".json";
/// Bytes of a peer's file: ten times what 16 addresses need.
const MAX_FILE: u64 = 16 * 1024;
/// Files looked at per scan and tag: as many as there may be peers.
const MAX_FILES: usize = 4096;
/// Addresses taken from one file: as many as the dialer keeps per peer.
const MAX_ADDRESSES: usize = 16;
/// Well above the resolution of file times, which is one tick of the kernel (at most 10 ms).
const CLOCK_TICK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    const TAG: &str = "abcdefghijklm";

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            fs::set_permissions(host.0.path(), fs::Permissions::from_mode(0o700)).unwrap();
            host
        }

        fn peer(&self, n: u8) -> SameHost {
            SameHost::open(self.0.path(), peer(n), u64::from(n), &[TAG.to_owned()]).unwrap()
        }

        fn files(&self, tag: &str) -> usize {
            fs::read_dir(self.0.path().join(tag)).map_or(0, Iterator::count)
        }
    }

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 32])
    }

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    fn found(n: u8, port: u16) -> Found {
        Found { peer: Some(peer(n)), addresses: vec![address(port)], source: Source::Local, started: u64::from(n) }
    }

    #[test]
    fn peers_of_one_host_find_each_other_but_not_themselves() {
        let host = Host::new();
        let (mut a, mut b) = (host.peer(1), host.peer(2));
        a.announce(&[address(1)]).unwrap();
        assert_eq!(a.scan(), []);
        b.announce(&[address(2)]).unwrap();
        assert_eq!(a.scan(), [found(2, 2)]);
        assert_eq!(b.scan(), [found(1, 1)]);
        assert_eq!(b.scan(), [], "only news");
        a.announce(&[address(3)]).unwrap();
        assert_eq!(b.scan(), [found(1, 3)]);
    }

    #[test]
    fn who_leaves_takes_the_file_along() {
        let host = Host::new();
        let mut a = host.peer(1);
        a.announce(&[address(1)]).unwrap();
        assert_eq!(host.files(TAG), 1);
        drop(a);
        assert!(!host.0.path().join(TAG).exists());
    }

    #[test]
    fn files_of_dead_processes_are_swept() {
        let host = Host::new();
        let mut a = host.peer(1);
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let dead = Notice { pid, started: 1, addresses: vec![address(9).to_string()] };
        let path = host.0.path().join(TAG).join(file_name(peer(9)));
        fs::write(&path, serde_json::to_vec(&dead).unwrap()).unwrap();
        assert_eq!(a.scan(), []);
        assert!(!path.exists());
        assert!(is_alive(1), "a process of another user is alive");
        assert!(!is_alive(0) && !is_alive(u32::MAX), "not process groups");
    }

    #[test]
    fn garbage_and_giants_are_ignored() {
        let host = Host::new();
        let mut a = host.peer(1);
        let folder = host.0.path().join(TAG);
        fs::write(folder.join("readme.json"), "{}").unwrap();
        fs::write(folder.join(file_name(peer(3))), b"\x00{").unwrap();
        let pid = std::process::id();
        let giant = format!(r#"{{"pid":{pid},"started":1,"addresses":["{}"]}}"#, "x".repeat(20_000));
        fs::write(folder.join(file_name(peer(4))), giant).unwrap();
        let odd = format!(r#"{{"pid":{pid},"started":5,"addresses":["x","/ip4/0.0.0.0/tcp/1","{}"]}}"#, address(5));
        fs::write(folder.join(file_name(peer(5))), odd).unwrap();
        fs::create_dir(folder.join(file_name(peer(6)))).unwrap();
        assert_eq!(a.scan(), [found(5, 5)]);
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let host = Host::new();
        let folder = host.0.path().join(TAG);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let open = || SameHost::open(host.0.path(), peer(1), 1, &[TAG.to_owned()]);
        let error = open().unwrap_err();
        assert!(matches!(error, LocalError::Open(_)) && error.to_string().contains("chmod 700"), "{error}");
        fs::remove_dir(&folder).unwrap();
        std::os::unix::fs::symlink("/tmp", &folder).unwrap();
        assert!(matches!(open(), Err(LocalError::NotADirectory(_))));
    }

    #[test]
    fn tags_come_and_go() {
        let host = Host::new();
        let (mut a, mut b) = (host.peer(1), host.peer(2));
        a.announce(&[address(1)]).unwrap();
        let (old, new) = (TAG.to_owned(), "nopqrstuvwxyz".to_owned());
        b.set_tags(std::slice::from_ref(&new)).unwrap();
        assert_eq!(b.scan(), []);
        a.set_tags(&[new.clone(), old.clone()]).unwrap();
        assert_eq!(b.scan(), [found(1, 1)]);
        a.set_tags(std::slice::from_ref(&new)).unwrap();
        assert_eq!((host.files(&old), host.files(&new)), (0, 1));
    }

    #[test]
    fn a_file_that_was_cleaned_away_comes_back() {
        let host = Host::new();
        let mut a = host.peer(1);
        a.announce(&[address(1)]).unwrap();
        a.scan();
        fs::remove_file(host.0.path().join(TAG).join(file_name(peer(1)))).unwrap();
        a.scan();
        assert_eq!(host.files(TAG), 1);
        fs::remove_dir_all(host.0.path().join(TAG)).unwrap();
        a.scan();
        assert_eq!(host.files(TAG), 1);
    }
}
