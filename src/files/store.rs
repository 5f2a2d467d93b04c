//! What answers what is asked about files: the same for a share, where somebody else asks, and for a directory of who moves files.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::chunks::{self, CHUNK, Root};
use super::partial::{self, Partials, Version, read_at, read_into};
use super::tree::{self, Tree, Ways, allowing_for};
use super::trouble::{Kind, Trouble};
use super::walk::{Found, Pattern, Walk, Wanted};
use super::words::{Answer, Ask, Change, HEADROOM, Outcome, Purpose, Record};
use crate::config::ShareMode;
use crate::mesh::{Action, FileKind, PeerId, SharePath};
use crate::node::Node;

/// A directory, who asks, and what arrives in it.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) tree: Tree,
    pub(super) guard: Guard,
    pub(super) partials: Arc<Partials>,
}

/// What somebody may do with a directory.
#[derive(Debug)]
pub(super) enum Guard {
    /// All: it is who runs the job.
    Own,
    /// What the share and the rules of its node allow that peer.
    Share { share: String, mode: ShareMode, node: Node, peer: PeerId },
}

impl Guard {
    /// # Errors
    /// Names what would have to allow it.
    pub(super) fn allows(&self, purpose: Purpose, path: &SharePath) -> Result<(), Trouble> {
        let Self::Share { share, mode, node, peer } = self else { return Ok(()) };
        let (action, open) = match purpose {
            Purpose::Get => (Action::Get, *mode != ShareMode::Write),
            Purpose::Put => (Action::Put, *mode != ShareMode::Read),
        };
        if !open {
            let (is, needs) = if purpose == Purpose::Get { ("write", "read") } else { ("read", "write") };
            let text = format!("the share '{share}' has mode = \"{is}\": {action} needs \"{needs}\" or \"both\"");
            return Err(Trouble::new(Kind::Refused, text));
        }
        let allowed = node.permits(*peer, action, &format!("{share}/{path}"));
        allowed.map_err(|refused| Trouble::new(Kind::Refused, format!("{share}/{path}: {refused}")))
    }

    fn place(&self) -> &str {
        match self {
            Self::Own => "",
            Self::Share { share, .. } => share,
        }
    }
}

impl Store {
    /// Does what is asked. Blocks; stops when told so, where it would take long.
    pub(super) fn answer(&self, ask: Ask, data: &Bytes, stop: &AtomicBool) -> Result<(Answer, Bytes), Trouble> {
        let words = |answer| Ok((answer, Bytes::new()));
        match ask {
            Ask::Shares => Err(Trouble::new(Kind::Bad, "shares are asked for without naming one")),
            Ask::Look { path, purpose, through } => words(self.look(&path, purpose, through)?),
            Ask::Read { paths } => self.read(&paths),
            Ask::Chunk { path, version, index } => self.chunk(&path, version, index),
            Ask::Values { path, version, first, count } => {
                words(Answer::Values(self.values(&path, version, first, count)?))
            }
            Ask::Hash { path, version, purpose } => {
                self.may(purpose, &path)?;
                words(Answer::Value(self.hash(&path, version, stop)?))
            }
            Ask::Write { paths, records } => words(Answer::Done(self.write(&paths, records, data)?)),
            Ask::Change { changes } => {
                let mut ways = Ways::new(&self.tree);
                many(changes.len())?;
                let done = changes.into_iter().map(|change| self.change(&mut ways, &change).into()).collect();
                words(Answer::Done(done))
            }
            Ask::Begin { path, version } => words(Answer::Begun(self.partial(&path, version)?.bits())),
            Ask::Held { path, version, first, count } => {
                let count = some(version, first, count)?;
                words(Answer::Values(self.partial(&path, version)?.values(first, count)?))
            }
            Ask::Put { path, version, index, value } => {
                self.partial(&path, version)?.put(index, value, data)?;
                words(Answer::Done(Vec::new()))
            }
            Ask::Finish { path, version, mode, root } => {
                self.finish(&path, version, mode, root)?;
                words(Answer::Done(Vec::new()))
            }
        }
    }

    /// A list of what is there. Of a share, what who asks may not have is to be left out.
    ///
    /// # Errors
    /// There is no such place, or it is refused.
    pub(super) fn walk(&self, purpose: Purpose, wanted: Wanted) -> Result<Walk, Trouble> {
        self.may(purpose, &wanted.root)?;
        Walk::new(&self.tree, Wanted { sweeps: purpose == Purpose::Put, ..wanted })
    }

    pub(super) fn shows(&self, purpose: Purpose, root: &SharePath, found: &Found) -> bool {
        matches!(self.guard, Guard::Own) || self.guard.allows(purpose, &root.join(found.path())).is_ok()
    }

    fn look(&self, path: &SharePath, purpose: Purpose, through: bool) -> Result<Answer, Trouble> {
        let resolve = |path: &SharePath, through| {
            let resolved = self.tree.resolve(path, through);
            resolved.map_err(|error| match error.kind() {
                // Of cap-std, which tells it by this kind alone.
                io::ErrorKind::PermissionDenied if error.raw_os_error().is_none() => {
                    Trouble::new(Kind::Refused, format!("{path}: it leads out of the share"))
                }
                _ => Trouble::io(path, &error),
            })
        };
        let plain = resolve(path, through).and_then(|plain| {
            let info = self.tree.look(&plain).map_err(|error| Trouble::io(path, &error))?;
            Ok((plain, info))
        });
        let (root, pattern, info) = match (plain, Pattern::split(path)) {
            (Ok((root, Some(info))), _) => (root, None, Some(info)),
            (_, Some((start, pattern))) if purpose == Purpose::Get => {
                pattern.check().map_err(|why| Trouble::new(Kind::Bad, why))?;
                let root = resolve(&start, true)?;
                let info = self.tree.look(&root).map_err(|error| Trouble::io(path, &error))?;
                (root, Some(pattern), info)
            }
            (plain, _) => (plain?.0, None, None),
        };
        self.may(purpose, &root)?;
        if info.is_none() && purpose == Purpose::Get {
            return Err(Trouble::new(Kind::NotThere, format!("there is no '{path}'")));
        }
        Ok(Answer::Found { root, pattern, info })
    }

    // Reading.

    fn read(&self, paths: &[SharePath]) -> Result<(Answer, Bytes), Trouble> {
        many(paths.len())?;
        let mut ways = Ways::new(&self.tree);
        let mut data = Vec::with_capacity(CHUNK as usize + HEADROOM);
        let one = |path| self.read_one(&mut ways, path, &mut data).unwrap_or_else(Record::from);
        let records = paths.iter().map(one).collect();
        Ok((Answer::Records(records), data.into()))
    }

    fn read_one(&self, ways: &mut Ways<'_>, path: &SharePath, data: &mut Vec<u8>) -> Result<Record, Trouble> {
        self.may(Purpose::Get, path)?;
        let (file, version, mode) = open(ways, path)?;
        if version.size > CHUNK || data.len() as u64 + version.size > MOST_AT_ONCE {
            return Err(Trouble::new(Kind::Changed, format!("{path}: it has grown")));
        }
        let from = data.len();
        let read = read_into(&file, data, version.size as usize, 0).map_err(|error| Trouble::io(path, &error));
        let whole = read.and_then(|()| unchanged(&file, path, version)).and_then(|()| {
            let is_whole = (data.len() - from) as u64 == version.size;
            if is_whole { Ok(()) } else { Err(changed(path)) }
        });
        if let Err(trouble) = whole {
            data.truncate(from);
            return Err(trouble);
        }
        let hash = *blake3::hash(&data[from..]).as_bytes();
        Ok(Record::Read { bytes: version.size as u32, mode, modified_ns: version.modified_ns, hash })
    }

    fn chunk(&self, path: &SharePath, version: Version, index: u64) -> Result<(Answer, Bytes), Trouble> {
        self.may(Purpose::Get, path)?;
        let file = open_version(&self.tree, path, version)?;
        let length = chunks::length(version.size, index);
        if length == 0 {
            return Err(Trouble::new(Kind::Bad, format!("{path}: it has no chunk {index}")));
        }
        let mut bytes = Vec::with_capacity(length + HEADROOM);
        read_into(&file, &mut bytes, length, index * CHUNK).map_err(|error| Trouble::io(path, &error))?;
        unchanged(&file, path, version)?;
        if bytes.len() != length {
            return Err(changed(path));
        }
        Ok((Answer::Value(chunks::hash(index, &bytes)), bytes.into()))
    }

    fn values(&self, path: &SharePath, version: Version, first: u64, count: u64) -> Result<Vec<u8>, Trouble> {
        self.may(Purpose::Get, path)?;
        let count = some(version, first, count)?;
        let file = open_version(&self.tree, path, version)?;
        let mut bytes = vec![0; CHUNK as usize];
        let mut values = Vec::with_capacity(count as usize * 32);
        for index in first..first + count {
            let bytes = &mut bytes[..chunks::length(version.size, index)];
            read_at(&file, bytes, index * CHUNK).map_err(|error| Trouble::io(path, &error))?;
            values.extend_from_slice(&chunks::hash(index, bytes));
        }
        unchanged(&file, path, version)?;
        Ok(values)
    }

    fn hash(&self, path: &SharePath, version: Version, stop: &AtomicBool) -> Result<[u8; 32], Trouble> {
        let file = open_version(&self.tree, path, version)?;
        let mut bytes = vec![0; CHUNK.min(version.size) as usize];
        let (mut root, count) = (Root::default(), chunks::count(version.size));
        for index in 0..count {
            if stop.load(Ordering::Relaxed) {
                return Err(Trouble::new(Kind::Failed, "nobody waits for it any more"));
            }
            let bytes = &mut bytes[..chunks::length(version.size, index)];
            read_at(&file, bytes, index * CHUNK).map_err(|error| Trouble::io(path, &error))?;
            if count == 1 {
                break;
            }
            root.add(index, chunks::hash(index, bytes));
        }
        unchanged(&file, path, version)?;
        Ok(root.finish(count).unwrap_or_else(|| *blake3::hash(&bytes).as_bytes()))
    }

    // Writing.

    /// Nobody reads or writes by its name what is not whole yet: the rules are about the name that it will have.
    fn may(&self, purpose: Purpose, path: &SharePath) -> Result<(), Trouble> {
        if path.parts().any(partial::is_partial) {
            return Err(Trouble::new(Kind::Refused, format!("{path}: names of files that are not whole yet")));
        }
        self.guard.allows(purpose, path)
    }

    fn write(&self, paths: &[SharePath], records: Vec<Record>, data: &Bytes) -> Result<Vec<Outcome>, Trouble> {
        many(paths.len())?;
        let mut ways = Ways::new(&self.tree);
        let mut at = 0;
        let mut one = |(path, record): (&SharePath, Record)| -> Result<u64, Trouble> {
            let (bytes, mode, modified_ns, hash) = match record {
                Record::Read { bytes, mode, modified_ns, hash } => (bytes as usize, mode, modified_ns, hash),
                Record::Not(kind, message) => return Err(Trouble::new(Kind::of_name(kind), message)),
            };
            let content = data.get(at..at + bytes).filter(|content| *blake3::hash(content).as_bytes() == hash);
            at += bytes;
            let content =
                content.ok_or_else(|| Trouble::new(Kind::Changed, format!("{path}: it is not what was sent")))?;
            self.may(Purpose::Put, path)?;
            let io = |error: io::Error| Trouble::io(path, &error);
            let (directory, _) = ways.make(path).map_err(io)?;
            partial::write(&directory, path, content, mode, modified_ns).map_err(io)?;
            Ok(1)
        };
        Ok(paths.iter().zip(records).map(|both| one(both).into()).collect())
    }

    fn change(&self, ways: &mut Ways<'_>, change: &Change) -> Result<u64, Trouble> {
        let path = change.path();
        self.may(Purpose::Put, path)?;
        let io = |error: io::Error| Trouble::io(path, &error);
        match change {
            Change::Directory { .. } if path.is_root() => Ok(0),
            Change::Directory { .. } => {
                let (parent, name) = ways.make(path).map_err(io)?;
                // Closed to others until it is whole: its mode is set at the end.
                let made = allowing_for(&parent, || match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                    Err(Errno::EXIST) => Ok(0),
                    made => made.map(|()| 1),
                });
                made.map_err(io)
            }
            Change::Link { to, modified_ns, .. } => {
                let (parent, _) = ways.make(path).map_err(io)?;
                partial::link(&parent, path, to, *modified_ns).map_err(io)?;
                Ok(1)
            }
            Change::Attributes { mode, modified_ns, .. } => {
                let file = match path.is_root() {
                    true => self.tree.directory(path).map_err(io)?,
                    false => {
                        let (parent, name) = ways.to(path).map_err(io)?;
                        any_way(&parent, name).map_err(io)?
                    }
                };
                // First the time: a file that may not be written may still be given one by its owner, but not by others.
                rustix::fs::futimens(&file, &tree::times(*modified_ns)).map_err(|error| io(error.into()))?;
                let mode = Mode::from_bits_truncate(mode & tree::KEPT_MODES);
                rustix::fs::fchmod(&file, mode).map_err(|error| io(error.into()))?;
                Ok(1)
            }
            Change::Delete { .. } => match ways.to(path) {
                Ok((parent, name)) => self.delete(&parent, name, path, 0),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
                Err(error) => Err(io(error)),
            },
        }
    }

    /// Deletes what is there, links themselves, and counts what would be listed of it.
    fn delete(&self, parent: &OwnedFd, name: &[u8], path: &SharePath, depth: usize) -> Result<u64, Trouble> {
        self.guard.allows(Purpose::Put, path)?;
        let io = |error: io::Error| Trouble::io(path, &error);
        match allowing_for(parent, || rustix::fs::unlinkat(parent, name, AtFlags::empty())) {
            Ok(()) => return Ok(1),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) if is_directory(parent, name) && depth < MAX_DEPTH => drop(error),
            Err(error) => return Err(io(error)),
        }
        let flags = tree::DIRECTORY;
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(|error| io(error.into()))?;
        let mut count = 0;
        let entries = rustix::fs::Dir::read_from(&directory).map_err(|error| io(error.into()))?;
        for entry in entries {
            let entry = entry.map_err(|error| io(error.into()))?;
            let below = entry.file_name().to_bytes();
            if let Some(path) = path.child(below) {
                let is_counted = tree::may_be_listed(entry.file_type()) && !partial::is_partial(below);
                count += self.delete(&directory, below, &path, depth + 1)? * u64::from(is_counted);
            }
        }
        let removed = allowing_for(parent, || rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR));
        removed.map_err(io)?;
        Ok(count + 1)
    }

    fn partial(&self, path: &SharePath, version: Version) -> Result<Arc<partial::Partial>, Trouble> {
        self.may(Purpose::Put, path)?;
        self.partials.open(self.guard.place(), path, version, || {
            let io = |error: io::Error| Trouble::io(path, &error);
            Ok(Ways::new(&self.tree).make(path).map_err(io)?.0)
        })
    }

    fn finish(&self, path: &SharePath, version: Version, mode: u32, root: [u8; 32]) -> Result<(), Trouble> {
        let finished = self.partial(path, version)?.finish(mode, root);
        if finished.is_ok() {
            self.partials.close(self.guard.place(), path);
        }
        finished
    }
}

/// Opens a file, passing no link.
fn open(ways: &mut Ways<'_>, path: &SharePath) -> Result<(OwnedFd, Version, u32), Trouble> {
    let io = |error: io::Error| Trouble::io(path, &error);
    let (parent, name) = ways.to(path).map_err(io)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(|error| io(error.into()))?;
    let stat = rustix::fs::fstat(&file).map_err(|error| io(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Trouble::new(Kind::Changed, format!("{path}: it is no file")));
    }
    let version = tree::info(SharePath::default(), FileKind::File, &stat);
    Ok((file, Version { size: version.bytes, modified_ns: version.modified_ns }, version.mode))
}

fn open_version(tree: &Tree, path: &SharePath, version: Version) -> Result<OwnedFd, Trouble> {
    let (file, found, _) = open(&mut Ways::new(tree), path)?;
    if found == version { Ok(file) } else { Err(changed(path)) }
}

/// Whether a file is still what it was before it was read.
fn unchanged(file: &OwnedFd, path: &SharePath, version: Version) -> Result<(), Trouble> {
    let stat = rustix::fs::fstat(file).map_err(|error| Trouble::io(path, &error.into()))?;
    let now = tree::info(SharePath::default(), FileKind::File, &stat);
    let same = Version { size: now.bytes, modified_ns: now.modified_ns } == version;
    if same { Ok(()) } else { Err(changed(path)) }
}

fn changed(path: &SharePath) -> Trouble {
    Trouble::new(Kind::Changed, format!("{path}: it changes while it is read"))
}

/// Opens a file or directory to change its attributes: for reading or for writing, as it lets.
fn any_way(parent: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags | OFlags::RDONLY, Mode::empty()) {
        Err(Errno::ACCESS) => Ok(rustix::fs::openat(parent, name, flags | OFlags::WRONLY, Mode::empty())?),
        opened => Ok(opened?),
    }
}

fn is_directory(parent: &OwnedFd, name: &[u8]) -> bool {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn many(count: usize) -> Result<(), Trouble> {
    let fits = count <= MOST_OF_MANY;
    if fits {
        Ok(())
    } else {
        Err(Trouble::new(Kind::Bad, format!("{count} files at once, of at most {MOST_OF_MANY}")))
    }
}

/// As many of some chunks as there are.
fn some(version: Version, first: u64, count: u64) -> Result<u64, Trouble> {
    let chunks = chunks::count(version.size);
    if version.size > chunks::MAX_FILE || first >= chunks || count > MOST_VALUES {
        return Err(Trouble::new(
            Kind::Bad,
            format!("no chunks {first} to {} of {chunks}", first.saturating_add(count)),
        ));
    }
    Ok(count.min(chunks - first))
}

/// Files or changes of one call.
pub(super) const MOST_OF_MANY: usize = 1024;
/// Chaining values of one call: for as many chunks are read.
pub(super) const MOST_VALUES: u64 = 64;
/// Bytes of one answer: what was meant to be a mebibyte may have grown meanwhile.
const MOST_AT_ONCE: u64 = 4 << 20;
/// How deep something may be that is deleted.
const MAX_DEPTH: usize = 200;
