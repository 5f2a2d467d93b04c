//! Files that are not whole yet. They stand hidden beside where they will be, so that they can be renamed, and a later run finds them.
//!
//! Small ones are written in one go, and have names of their own. Of a large one there is also a list of the chunks that arrived:
//! which file it is to be (`size`, time of change), then the chaining value of each chunk, zeros if it is not there.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use blake3::hazmat::ChainingValue;
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::chunks::{self, CHUNK, Held, Root};
use super::tree::{self, allowing_for};
use super::trouble::{Kind, Trouble};
use crate::mesh::SharePath;

/// Which content of a file is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) size: u64,
    pub(super) modified_ns: i64,
}

/// A large file that arrives. While it is open, nobody else writes it.
#[derive(Debug)]
pub(super) struct Partial {
    directory: Arc<OwnedFd>,
    path: SharePath,
    version: Version,
    data: OwnedFd,
    list: OwnedFd,
    /// Locked while a chunk and its value are written, and while it takes its place. `None`: it has.
    held: Mutex<Option<Held>>,
}

/// The large files that are open.
#[derive(Debug, Default)]
pub(super) struct Partials(Mutex<HashMap<(String, SharePath), Open>>);

#[derive(Debug)]
struct Open {
    /// Locked while it is opened: that takes as long as it takes to read what is there.
    slot: Arc<Mutex<Option<Arc<Partial>>>>,
    used: Instant,
}

impl Open {
    fn is_idle(&self) -> bool {
        let is_idle = |slot: MutexGuard<'_, Option<Arc<Partial>>>| {
            slot.as_ref().is_none_or(|partial| Arc::strong_count(partial) == 1)
        };
        Arc::strong_count(&self.slot) == 1 && self.slot.try_lock().is_ok_and(is_idle)
    }
}

impl Partials {
    /// The file that arrives there; opened, and what is there of it checked, if it is not.
    pub(super) fn open(
        &self,
        place: &str,
        path: &SharePath,
        version: Version,
        directory: impl FnOnce() -> Result<Arc<OwnedFd>, Trouble>,
    ) -> Result<Arc<Partial>, Trouble> {
        let slot = self.slot((place.to_owned(), path.clone()))?;
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = directory()?;
        if let Some(partial) = slot.as_ref().filter(|partial| partial.is_in(&directory)) {
            if partial.version == version {
                return Ok(Arc::clone(partial));
            }
            if Arc::strong_count(partial) > 1 {
                return Err(busy(path));
            }
        }
        *slot = None; // if it was another version, its lock goes with it
        let partial = Arc::new(Partial::open(directory, path, version)?);
        *slot = Some(Arc::clone(&partial));
        Ok(partial)
    }

    fn slot(&self, key: (String, SharePath)) -> Result<Arc<Mutex<Option<Arc<Partial>>>>, Trouble> {
        let mut open = self.lock();
        if !open.contains_key(&key) && open.len() >= MAX_OPEN {
            let idle = open.iter().filter(|(_, open)| open.is_idle());
            let oldest = idle.min_by_key(|(_, open)| open.used).map(|(key, _)| key.clone());
            let oldest = oldest.ok_or_else(|| Trouble::new(Kind::Busy, "too many files arrive at once"))?;
            open.remove(&oldest);
        }
        let known = open.entry(key).or_insert_with(|| Open { slot: Arc::default(), used: Instant::now() });
        known.used = Instant::now();
        Ok(Arc::clone(&known.slot))
    }

    pub(super) fn close(&self, place: &str, path: &SharePath) {
        self.lock().remove(&(place.to_owned(), path.clone()));
    }

    /// Closes those that nobody has sent anything for in a while: what they hold stays.
    pub(super) fn close_idle(&self) {
        self.lock().retain(|_, open| !open.is_idle() || open.used.elapsed() < IDLE);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, SharePath), Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Partial {
    fn open(directory: Arc<OwnedFd>, path: &SharePath, version: Version) -> Result<Self, Trouble> {
        let io = |error: io::Error| Trouble::io(path, &error);
        if version.size > chunks::MAX_FILE {
            return Err(Trouble::new(Kind::Bad, format!("{path}: a file has at most {} bytes", chunks::MAX_FILE)));
        }
        let (part, have) = names(path);
        let open = |name: &[u8]| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            allowing_for(&directory, || rustix::fs::openat(&directory, name, flags, PRIVATE))
        };
        let list = loop {
            let list = open(&have).map_err(io)?;
            match rustix::fs::flock(&list, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Err(busy(path)),
                locked => locked.map_err(|error| io(error.into()))?,
            }
            // Whoever had it may have finished just before it was locked: then it is nobody's any more.
            if rustix::fs::fstat(&list).map_err(|error| io(error.into()))?.st_nlink > 0 {
                break list;
            }
        };
        let data = open(&part).map_err(io)?;
        for file in [&list, &data] {
            let stat = rustix::fs::fstat(file).map_err(|error| io(error.into()))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Trouble::new(Kind::Failed, format!("{path}: what is to become it is no file")));
            }
        }
        let held = Mutex::default();
        let partial = Self { directory, path: path.clone(), version, data, list, held };
        let mut head = [0; HEAD];
        let known = read_at(&partial.list, &mut head, 0).map_err(io)? == HEAD && head == partial.head();
        let held = if known { partial.check() } else { partial.reset() };
        *partial.held() = Some(held.map_err(io)?);
        Ok(partial)
    }

    /// Whether that directory is the one that it is in, and it still is: both may have been deleted or moved meanwhile.
    fn is_in(&self, directory: &OwnedFd) -> bool {
        let stat = |file: &OwnedFd| rustix::fs::fstat(file).ok();
        let is_named = |file| stat(file).is_some_and(|stat| stat.st_nlink > 0);
        let place = |directory| stat(directory).map(|stat| (stat.st_dev, stat.st_ino));
        place(directory) == place(&self.directory) && is_named(&self.list) && is_named(&self.data)
    }

    fn head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..MAGIC.len()].copy_from_slice(MAGIC);
        head[16..24].copy_from_slice(&self.version.size.to_be_bytes());
        head[24..].copy_from_slice(&self.version.modified_ns.to_be_bytes());
        head
    }

    /// Nothing is there.
    fn reset(&self) -> io::Result<Held> {
        rustix::fs::ftruncate(&self.list, 0)?;
        rustix::fs::ftruncate(&self.data, 0)?;
        rustix::fs::ftruncate(&self.data, self.version.size)?;
        write_at(&self.list, &self.head(), 0)?;
        Ok(Held::new(chunks::count(self.version.size)))
    }

    /// Reads again what is said to be there: the machine may have stopped before all was on the disk.
    fn check(&self) -> io::Result<Held> {
        let mut chunk = vec![0; CHUNK as usize];
        let mut held = Held::new(chunks::count(self.version.size));
        for index in 0..chunks::count(self.version.size) {
            let Some(value) = self.value(index)? else { continue };
            let bytes = &mut chunk[..chunks::length(self.version.size, index)];
            let whole = read_at(&self.data, bytes, index * CHUNK)? == bytes.len();
            if whole && chunks::hash(index, bytes) == value {
                held.set(index, true);
            } else {
                write_at(&self.list, &[0; 32], HEAD as u64 + index * 32)?;
            }
        }
        rustix::fs::ftruncate(&self.data, self.version.size)?;
        Ok(held)
    }

    fn value(&self, index: u64) -> io::Result<Option<ChainingValue>> {
        let mut value = [0; 32];
        let read = read_at(&self.list, &mut value, HEAD as u64 + index * 32)?;
        Ok((read == 32 && value != [0; 32]).then_some(value))
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which chunks are there, a bit each.
    pub(super) fn bits(&self) -> Vec<u8> {
        self.held().as_ref().map(|held| held.as_bytes().to_owned()).unwrap_or_default()
    }

    /// The chaining values of some chunks, zeros for those that are not there.
    pub(super) fn values(&self, first: u64, count: u64) -> Result<Vec<u8>, Trouble> {
        let mut values = vec![0; (count * 32) as usize];
        read_at(&self.list, &mut values, HEAD as u64 + first * 32).map_err(|error| Trouble::io(&self.path, &error))?;
        Ok(values)
    }

    /// A chunk has come.
    pub(super) fn put(&self, index: u64, value: ChainingValue, bytes: &[u8]) -> Result<(), Trouble> {
        let size = self.version.size;
        let fits = index < chunks::count(size) && bytes.len() == chunks::length(size, index);
        if !fits || chunks::hash(index, bytes) != value {
            return Err(Trouble::new(Kind::Changed, format!("{}: a chunk is not what it is said to be", self.path)));
        }
        let io = |error: io::Error| Trouble::io(&self.path, &error);
        let mut held = self.held();
        let held = held.as_mut().ok_or_else(|| self.over())?;
        write_at(&self.data, bytes, index * CHUNK).map_err(io)?;
        write_at(&self.list, &value, HEAD as u64 + index * 32).map_err(io)?;
        held.set(index, true);
        Ok(())
    }

    fn over(&self) -> Trouble {
        Trouble::new(Kind::Changed, format!("{}: it has its place already", self.path))
    }

    /// All has come: it takes its place if it is what was meant, and is begun anew if not.
    pub(super) fn finish(&self, mode: u32, root: [u8; 32]) -> Result<(), Trouble> {
        let io = |error: io::Error| Trouble::io(&self.path, &error);
        let chunks = chunks::count(self.version.size);
        let mut held = self.held();
        if held.as_ref().ok_or_else(|| self.over())?.count() != chunks {
            return Err(Trouble::new(Kind::Changed, format!("{}: chunks are missing", self.path)));
        }
        let mut whole = Root::default();
        for first in (0..chunks).step_by(BLOCK as usize) {
            let values = self.values(first, BLOCK.min(chunks - first))?;
            for (value, index) in values.as_chunks::<32>().0.iter().zip(first..) {
                whole.add(index, *value);
            }
        }
        if whole.finish(chunks) != Some(root) {
            *held = Some(self.reset().map_err(io)?);
            return Err(Trouble::new(Kind::Changed, format!("{}: it is not what was sent", self.path)));
        }
        let (part, have) = names(&self.path);
        finish(&self.directory, &self.data, &part, &self.path, mode, self.version.modified_ns).map_err(io)?;
        *held = None;
        let _ = rustix::fs::unlinkat(&self.directory, &have, AtFlags::empty()); // else it is swept one day
        Ok(())
    }
}

/// A small file, at once.
pub(super) fn write(
    directory: &OwnedFd,
    path: &SharePath,
    bytes: &[u8],
    mode: u32,
    modified_ns: i64,
) -> io::Result<()> {
    let name = fresh();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = allowing_for(directory, || rustix::fs::openat(directory, &name, flags, PRIVATE))?;
    let written = write_at(&file, bytes, 0);
    let done = written.and_then(|()| finish(directory, &file, &name, path, mode, modified_ns));
    if done.is_err() {
        let _ = rustix::fs::unlinkat(directory, &name, AtFlags::empty()); // the error is what counts
        return done;
    }
    // A larger one that was to be here before.
    let (part, have) = names(path);
    if rustix::fs::unlinkat(directory, have, AtFlags::empty()).is_ok() {
        let _ = rustix::fs::unlinkat(directory, part, AtFlags::empty()); // as above
    }
    Ok(())
}

/// A symbolic link, in one step.
pub(super) fn link(directory: &OwnedFd, path: &SharePath, to: &[u8], modified_ns: i64) -> io::Result<()> {
    let name = fresh();
    allowing_for(directory, || rustix::fs::symlinkat(to, directory, &name))?;
    let placed = place(directory, &name, path);
    if placed.is_err() {
        let _ = rustix::fs::unlinkat(directory, &name, AtFlags::empty()); // the error is what counts
        return placed;
    }
    let leaf = path.split().map_or(&b""[..], |(_, name)| name);
    let _ = rustix::fs::utimensat(directory, leaf, &tree::times(modified_ns), AtFlags::SYMLINK_NOFOLLOW); // not everywhere
    Ok(())
}

fn finish(
    directory: &OwnedFd,
    file: &OwnedFd,
    name: &[u8],
    path: &SharePath,
    mode: u32,
    modified_ns: i64,
) -> io::Result<()> {
    rustix::fs::fchmod(file, Mode::from_bits_truncate(mode & tree::KEPT_MODES))?;
    rustix::fs::futimens(file, &tree::times(modified_ns))?;
    place(directory, name, path)
}

fn place(directory: &OwnedFd, name: &[u8], path: &SharePath) -> io::Result<()> {
    let leaf = path.split().map_or(&b""[..], |(_, name)| name);
    Ok(rustix::fs::renameat(directory, name, directory, leaf)?)
}

/// Whether a file is one of those here. No such name is listed, or written for somebody.
pub(super) fn is_partial(name: &[u8]) -> bool {
    name.starts_with(PREFIX) && (name.ends_with(PART) || name.ends_with(HAVE))
}

/// Removes a small file that was left behind by a process that is gone, and a large one that nobody has gone on with for long.
pub(super) fn sweep(directory: &OwnedFd, name: &[u8]) {
    let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let age = now.saturating_sub(Duration::from_nanos(u64::try_from(tree::modified(&stat)).unwrap_or_default()));
    let middle = &name[PREFIX.len()..name.len() - PART.len()];
    let process = std::str::from_utf8(middle).ok().and_then(|middle| middle.split_once('-')?.0.parse().ok());
    let over = match process.map(rustix::process::Pid::from_raw) {
        Some(Some(process)) => {
            let gone = rustix::process::test_kill_process(process) == Err(Errno::SRCH);
            gone || age > SMALL_TAKES
        }
        _ => age > ABANDONED,
    };
    if over {
        let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty()); // somebody else may have swept it
    }
}

pub(super) fn read_at(file: &OwnedFd, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match rustix::io::pread(file, &mut bytes[read..], at + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(read)
}

/// Reads so many bytes, or up to the end of the file, behind those that are there. Room for them is not cleared first.
pub(super) fn read_into(file: &OwnedFd, bytes: &mut Vec<u8>, length: usize, at: u64) -> io::Result<()> {
    let from = bytes.len();
    bytes.reserve(length);
    while bytes.len() < from + length {
        let read = (bytes.len() - from) as u64;
        match rustix::io::pread(file, spare_capacity(bytes), at + read) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(from + length);
    Ok(())
}

fn write_at(file: &OwnedFd, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::pwrite(file, &bytes[written..], at + written as u64) {
            Ok(more) => written += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The names of a large file that is not whole, and of the list of its chunks.
fn names(path: &SharePath) -> (Vec<u8>, Vec<u8>) {
    let leaf = path.split().map_or(&b""[..], |(_, name)| name);
    let hash = &blake3::hash(leaf).to_hex()[..16];
    ([PREFIX, hash.as_bytes(), PART].concat(), [PREFIX, hash.as_bytes(), HAVE].concat())
}

fn fresh() -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (process, next) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    [PREFIX, format!("{process}-{next}").as_bytes(), PART].concat()
}

fn busy(path: &SharePath) -> Trouble {
    Trouble::new(Kind::Busy, format!("{path}: another transfer writes it"))
}

const PREFIX: &[u8] = b".meshd-";
const PART: &[u8] = b".part";
const HAVE: &[u8] = b".have";
const MAGIC: &[u8] = b"meshd-have-1";
const HEAD: usize = 32;
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Values that are read at a time.
const BLOCK: u64 = 1024;
/// Large files that are open for writing: two descriptors each.
const MAX_OPEN: usize = 256;
/// Who waits for a node that was lost comes back within this.
const IDLE: Duration = Duration::from_secs(90);
/// Far longer than a mebibyte takes.
const SMALL_TAKES: Duration = Duration::from_secs(600);
/// A week.
const ABANDONED: Duration = Duration::from_secs(7 * 86_400);

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(folder: &tempfile::TempDir, version: Version) -> Result<Partial, Trouble> {
        let directory = Arc::new(OwnedFd::from(fs::File::open(folder.path()).unwrap()));
        Partial::open(directory, &SharePath::new("film").unwrap(), version)
    }

    #[test]
    fn what_was_verified_is_there_the_next_time_and_what_was_damaged_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file: Vec<u8> = (0..3 * CHUNK + 5).map(|at| (at / 1000) as u8).collect();
        let version = Version { size: file.len() as u64, modified_ns: 1_000_000_007 };
        let chunk = |index: u64| {
            let from = (index * CHUNK) as usize;
            &file[from..from + chunks::length(version.size, index)]
        };
        let partial = open(&folder, version).unwrap();
        for index in [0, 2, 3] {
            partial.put(index, chunks::hash(index, chunk(index)), chunk(index)).unwrap();
        }
        let wrong = partial.put(1, chunks::hash(1, chunk(1)), chunk(2)).unwrap_err();
        assert_eq!(wrong.kind, Kind::Changed);
        assert_eq!(open(&folder, version).unwrap_err().kind, Kind::Busy, "one at a time");
        drop(partial);

        let (part, _) = names(&SharePath::new("film").unwrap());
        let part = folder.path().join(String::from_utf8(part).unwrap());
        let mut damaged = fs::read(&part).unwrap();
        damaged[2 * CHUNK as usize + 17] ^= 1;
        fs::write(&part, damaged).unwrap();
        let partial = open(&folder, version).unwrap();
        assert_eq!(partial.bits(), [0b1001], "the damaged one has to come again");
        let root = *blake3::hash(&file).as_bytes();
        assert_eq!(partial.finish(0o640, root).unwrap_err().kind, Kind::Changed);
        for index in [1, 2] {
            partial.put(index, chunks::hash(index, chunk(index)), chunk(index)).unwrap();
        }
        partial.finish(0o640, root).unwrap();
        assert_eq!(fs::read(folder.path().join("film")).unwrap(), file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn nothing_is_written_to_a_file_that_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let version = Version { size: 2 * CHUNK, modified_ns: 1_000_000_007 };
        let (ours, theirs) = (vec![7; CHUNK as usize], vec![8; CHUNK as usize]);
        let partial = open(&folder, version).unwrap();
        for index in 0..2 {
            partial.put(index, chunks::hash(index, &ours), &ours).unwrap();
        }
        partial.finish(0o640, *blake3::hash(&[&ours[..], &ours].concat()).as_bytes()).unwrap();
        let late = partial.put(0, chunks::hash(0, &theirs), &theirs);
        assert!(fs::read(folder.path().join("film")).unwrap() == [&ours[..], &ours].concat());
        assert_eq!(late.unwrap_err().kind, Kind::Changed);
    }

    /// Many who have not the same, at the same time: what is on the disk is what it is said to be.
    #[test]
    fn a_chunk_and_its_value_come_from_one_sender() {
        let folder = tempfile::tempdir().unwrap();
        let partial = open(&folder, Version { size: CHUNK + 4096, modified_ns: 1 }).unwrap();
        let (turn, mixed) = (std::sync::Barrier::new(8), std::sync::atomic::AtomicBool::new(false));
        std::thread::scope(|scope| {
            for seed in 0..8 {
                let (partial, turn, mixed) = (&partial, &turn, &mixed);
                scope.spawn(move || {
                    let bytes = vec![seed; 4096];
                    let value = chunks::hash(1, &bytes);
                    for _ in 0..20_000 {
                        turn.wait();
                        partial.put(1, value, &bytes).unwrap();
                        if turn.wait().is_leader() {
                            let mut there = [0; 4096];
                            read_at(&partial.data, &mut there, CHUNK).unwrap();
                            mixed.fetch_or(
                                partial.value(1).unwrap() != Some(chunks::hash(1, &there)),
                                Ordering::Relaxed,
                            );
                        }
                    }
                });
            }
        });
        assert!(!mixed.into_inner());
    }

    /// A directory that was deleted or moved away meanwhile is not written to by its old name.
    #[test]
    fn what_arrives_goes_where_it_is_said_to_go_now() {
        let folder = tempfile::tempdir().unwrap();
        let (into, away) = (folder.path().join("into"), folder.path().join("away"));
        let version = Version { size: 2 * CHUNK, modified_ns: 1 };
        let (bytes, partials) = (vec![7; CHUNK as usize], Partials::default());
        let open = || {
            let directory = || Ok(Arc::new(OwnedFd::from(fs::File::open(&into).unwrap())));
            partials.open("data", &SharePath::new("film").unwrap(), version, directory).unwrap()
        };
        for moves in [false, true] {
            fs::create_dir(&into).unwrap();
            open().put(0, chunks::hash(0, &bytes), &bytes).unwrap();
            assert_eq!(open().bits(), [1]);
            if moves {
                fs::rename(&into, &away).unwrap();
            } else {
                fs::remove_dir_all(&into).unwrap();
            }
            fs::create_dir(&into).unwrap();
            assert_eq!(open().bits(), [0]);
            for index in 0..2 {
                open().put(index, chunks::hash(index, &bytes), &bytes).unwrap();
            }
            open().finish(0o640, *blake3::hash(&[&bytes[..], &bytes].concat()).as_bytes()).unwrap();
            assert!(into.join("film").exists() && !away.join("film").exists());
            fs::remove_dir_all(&into).unwrap();
        }
    }

    #[test]
    fn another_version_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let version = Version { size: 2 * CHUNK, modified_ns: 1 };
        let bytes = vec![7; CHUNK as usize];
        let partial = open(&folder, version).unwrap();
        partial.put(0, chunks::hash(0, &bytes), &bytes).unwrap();
        drop(partial);
        assert_eq!(open(&folder, version).unwrap().bits(), [1]);
        assert_eq!(open(&folder, Version { modified_ns: 2, ..version }).unwrap().bits(), [0]);
        assert_eq!(open(&folder, Version { size: u64::MAX, ..version }).unwrap_err().kind, Kind::Bad);
    }

    #[test]
    fn what_a_dead_process_left_is_swept_and_what_a_live_one_writes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (dead, live) = (".meshd-999999999-0.part", format!(".meshd-{}-0.part", std::process::id()));
        for name in [dead, &live, ".meshd-0123456789abcdef.part"] {
            fs::write(folder.path().join(name), "").unwrap();
            assert!(is_partial(name.as_bytes()));
            let directory = OwnedFd::from(fs::File::open(folder.path()).unwrap());
            sweep(&directory, name.as_bytes());
            assert_eq!(folder.path().join(name).exists(), name != dead, "{name}");
        }
    }
}
