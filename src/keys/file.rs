//! Private files: read with suspicion, create once, replace at one stroke.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::KeyError;

/// The text of a file that only its owner may touch; `None` if it is not text.
///
/// # Errors
/// The file cannot be read, is open to others, or is longer than `max` bytes.
pub(super) fn read(path: &Path, max: usize) -> Result<Option<Zeroizing<String>>, KeyError> {
    let file = File::open(path).map_err(KeyError::io("read", path))?;
    // Asked of the open file, not of the path: what is checked is what is read.
    let metadata = file.metadata().map_err(KeyError::io("read", path))?;
    if metadata.is_dir() {
        return Err(KeyError::io("read", path)(io::ErrorKind::IsADirectory.into()));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    // All the room at once: a string that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(max + 1));
    match file.take(max as u64 + 1).read_to_string(&mut text) {
        Ok(len) if len > max => Err(KeyError::TooLong { path: path.to_owned(), max }),
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(KeyError::io("read", path)(error)),
    }
}

/// Creates a file, whole or not at all, and never over another.
///
/// # Errors
/// [`KeyError::Exists`] if there is such a file; else what the system said.
pub(super) fn create(path: &Path, text: &str) -> Result<(), KeyError> {
    let scratch = Scratch::write(path, text).map_err(KeyError::io("write", path))?;
    // A hard link, unlike a rename, fails if the name is taken.
    match fs::hard_link(&scratch.0, path) {
        Ok(()) => sync_folder(path).map_err(KeyError::io("write", path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(KeyError::Exists { path: path.to_owned() }),
        Err(error) => Err(KeyError::io("write", path)(error)),
    }
}

/// Writes a file at one stroke: after a crash it is the old one or the new one.
///
/// # Errors
/// What the system said; the old file is then as it was.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), KeyError> {
    let scratch = Scratch::write(path, text).map_err(KeyError::io("write", path))?;
    fs::rename(&scratch.0, path).and_then(|()| sync_folder(path)).map_err(KeyError::io("write", path))
}

/// A file beside the one to be written. Goes when dropped, unless it was renamed.
struct Scratch(PathBuf);

impl Scratch {
    fn write(beside: &Path, text: &str) -> io::Result<Self> {
        let folder = folder(beside);
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let name = beside.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        let scratch = Self(folder.join(format!(".{name}.{:016x}", rand::random::<u64>())));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&scratch.0)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; in any other case the file that matters is safe already.
        let _ = fs::remove_file(&self.0);
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A new name is on disk only when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

/// The permission bits of group and others.
const OTHERS: u32 = 0o077;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_private_whole_and_leaves_no_scratch() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b/file");
        create(&path, "one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(create(&path, "two"), Err(KeyError::Exists { .. })));
        assert_eq!(read(&path, 3).unwrap().unwrap().as_str(), "one");
        replace(&path, "three").unwrap();
        assert_eq!(read(&path, 5).unwrap().unwrap().as_str(), "three");
        assert!(matches!(read(&path, 4), Err(KeyError::TooLong { max: 4, .. })));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let home = tempfile::tempdir().unwrap();
        assert!(matches!(read(home.path(), 9), Err(KeyError::Io { action: "read", .. })));
    }
}
