//! A directory that nothing leads out of: the only way to files, on both sides.
//!
//! What a person names is resolved once by cap-std, which follows links as long as they stay inside. All else is opened part by
//! part, and no link is followed at all: so it does not matter what is put in the way meanwhile.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use crate::mesh::{FileInfo, FileKind, SharePath};

/// A directory and what is in it.
#[derive(Debug)]
pub(super) struct Tree {
    root: Dir,
}

/// Opens directories of a tree, and keeps the last one open: files that follow each other are mostly neighbours.
#[derive(Debug)]
pub(super) struct Ways<'a> {
    tree: &'a Tree,
    last: Option<(SharePath, Arc<OwnedFd>)>,
}

impl Tree {
    /// # Errors
    /// It is no directory, or cannot be opened.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { root: Dir::open_ambient_dir(path, ambient_authority())? })
    }

    /// The path by which no link is passed. The last part may be a link, unless `through` it is to be looked; parts at the end
    /// need not exist.
    ///
    /// # Errors
    /// It leads out of the tree, or a part cannot be read.
    pub(super) fn resolve(&self, path: &SharePath, through: bool) -> io::Result<SharePath> {
        let Some((parent, name)) = path.split() else { return Ok(SharePath::default()) };
        if through {
            match self.root.canonicalize(OsStr::from_bytes(path.as_bytes())) {
                Ok(found) => return plain(found),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // A link that is broken, or not to be looked through, is itself.
        self.resolve(&parent, true)?.child(name).ok_or_else(|| Errno::NAMETOOLONG.into())
    }

    /// Opens a directory, passing no link.
    pub(super) fn directory(&self, path: &SharePath) -> io::Result<OwnedFd> {
        // What cap-std holds can neither be read nor changed itself.
        let mut directory = rustix::fs::openat(&self.root, c".", DIRECTORY, Mode::empty())?;
        for part in path.parts() {
            directory = rustix::fs::openat(&directory, part, DIRECTORY, Mode::empty())?;
        }
        Ok(directory)
    }

    /// What is there. `None`: nothing, or what is neither file, directory nor link.
    pub(super) fn look(&self, path: &SharePath) -> io::Result<Option<FileInfo>> {
        let Some((parent, name)) = path.split() else {
            let stat = rustix::fs::fstat(&self.root)?;
            return Ok(Some(info(SharePath::default(), FileKind::Directory, &stat)));
        };
        let found = self.directory(&parent).and_then(|parent| look_at(&parent, name, path.clone()));
        match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found,
        }
    }
}

impl<'a> Ways<'a> {
    pub(super) fn new(tree: &'a Tree) -> Self {
        Self { tree, last: None }
    }

    /// The directory that holds a file, and the file's name there.
    ///
    /// # Errors
    /// There is none, or a link is on the way. What a tree is itself is in nothing.
    pub(super) fn to<'p>(&mut self, path: &'p SharePath) -> io::Result<(Arc<OwnedFd>, &'p [u8])> {
        let Some((parent, name)) = path.split() else { return Err(Errno::ISDIR.into()) };
        if let Some((known, directory)) = &self.last
            && *known == parent
        {
            return Ok((Arc::clone(directory), name));
        }
        let directory = Arc::new(self.tree.directory(&parent)?);
        self.last = Some((parent, Arc::clone(&directory)));
        Ok((directory, name))
    }

    /// As [`Ways::to`], and makes the directories on the way.
    pub(super) fn make<'p>(&mut self, path: &'p SharePath) -> io::Result<(Arc<OwnedFd>, &'p [u8])> {
        match self.to(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let Some((parent, _)) = path.split() else { return Err(Errno::ISDIR.into()) };
        let mut directory = self.tree.directory(&SharePath::default())?;
        for part in parent.parts() {
            directory = match rustix::fs::openat(&directory, part, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => {
                    allowing_for(&directory, || {
                        match rustix::fs::mkdirat(&directory, part, Mode::from_bits_truncate(0o777)) {
                            Err(Errno::EXIST) => Ok(()), // by somebody else, just now
                            made => made,
                        }
                    })?;
                    rustix::fs::openat(&directory, part, DIRECTORY, Mode::empty())?
                }
                opened => opened?,
            };
        }
        self.to(path)
    }
}

/// Tries again with a directory that can be written, if that is what is in the way. Its mode is set right at the end.
pub(super) fn allowing_for<T>(directory: &OwnedFd, mut change: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    match change() {
        Err(Errno::ACCESS) => {
            let mode = rustix::fs::fstat(directory)?.st_mode;
            rustix::fs::fchmod(directory, Mode::from_raw_mode(mode & ALL_MODES | 0o700))?;
            Ok(change()?)
        }
        done => Ok(done?),
    }
}

/// What is in a directory by that name.
pub(super) fn look_at(directory: impl AsFd, name: &[u8], path: SharePath) -> io::Result<Option<FileInfo>> {
    let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Link(rustix::fs::readlinkat(&directory, name, Vec::new())?.into_bytes()),
        _ => return Ok(None),
    };
    Ok(Some(info(path, kind, &stat)))
}

/// Whether something is neither socket nor device, as far as that is known.
pub(super) fn may_be_listed(file_type: FileType) -> bool {
    use FileType::{Directory, RegularFile, Symlink, Unknown};
    matches!(file_type, RegularFile | Directory | Symlink | Unknown)
}

pub(super) fn info(path: SharePath, kind: FileKind, stat: &Stat) -> FileInfo {
    let bytes = if kind == FileKind::File { u64::try_from(stat.st_size).unwrap_or_default() } else { 0 };
    FileInfo { path, bytes, modified_ns: modified(stat), mode: mode(stat), kind }
}

/// Permissions. What runs a program as somebody else is not carried over the mesh.
#[expect(clippy::useless_conversion, reason = "16 bits on some systems")]
pub(super) fn mode(stat: &Stat) -> u32 {
    u32::from(stat.st_mode) & KEPT_MODES
}

/// When it was changed, in nanoseconds since 1970: a moment between 1677 and 2262.
#[expect(clippy::unnecessary_cast, reason = "the fields have other types on other systems")]
pub(super) fn modified(stat: &Stat) -> i64 {
    (stat.st_mtime as i64).saturating_mul(NS).saturating_add(stat.st_mtime_nsec as i64)
}

/// Only the time of change.
pub(super) fn times(modified_ns: i64) -> Timestamps {
    let modified = Timespec { tv_sec: modified_ns.div_euclid(NS), tv_nsec: modified_ns.rem_euclid(NS) };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: modified }
}

fn plain(path: std::path::PathBuf) -> io::Result<SharePath> {
    let bytes = path.into_os_string().into_vec();
    if bytes == b"." {
        return Ok(SharePath::default());
    }
    SharePath::new(bytes).map_err(|bad| io::Error::new(io::ErrorKind::InvalidInput, bad.to_string()))
}

pub(super) const KEPT_MODES: u32 = 0o777;
const ALL_MODES: u32 = 0o7777;
const NS: i64 = 1_000_000_000;
pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
