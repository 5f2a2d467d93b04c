//! `meshd record`, `play` and `info`.

mod info;
mod play;
mod record;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, io};

pub(super) use self::info::info;
pub(super) use self::play::play;
pub(super) use self::record::record;
use super::trouble::{Exit, Trouble};
use crate::recording::FileError;

/// The file that was named, else the newest recording here.
fn chosen(named: Option<PathBuf>) -> Result<PathBuf, Trouble> {
    match named {
        Some(path) => Ok(path),
        None => newest(Path::new(".")),
    }
}

fn newest(folder: &Path) -> Result<PathBuf, Trouble> {
    let failed = |error: io::Error| Trouble::failed("cannot look for recordings here", &error);
    let mut newest: Option<(SystemTime, PathBuf)> = None;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if !is_ours(&name) {
            continue;
        }
        // One that is gone by now is not the newest.
        let Ok(modified) = entry.metadata().and_then(|file| file.modified()) else { continue };
        let found = (modified, PathBuf::from(name));
        // Of the same time, the later name: it tells the time.
        if newest.as_ref().is_none_or(|newest| *newest < found) {
            newest = Some(found);
        }
    }
    newest.map(|(_, path)| path).ok_or_else(|| {
        Trouble::new(Exit::Failed, "there is no recording here: no file is called meshd-*.mcap")
            .hint("name the file, or make one with: meshd record 'topic/**'")
    })
}

fn is_ours(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

impl From<FileError> for Trouble {
    fn from(error: FileError) -> Self {
        let trouble = Self::new(Exit::Failed, super::trouble::chain(&error));
        match &error {
            FileError::Io { what: "write", source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                trouble.hint("give another name with -o, or replace it with --force")
            }
            FileError::Io { what: "write", source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                trouble.hint("make room; what was recorded before can be played")
            }
            FileError::Io { .. } => trouble.hint("see whether the file is there and may be used: ls -l"),
            FileError::NotMcap(_) => trouble.hint("files of messages are made with: meshd record"),
            FileError::Compressed { path, .. } => trouble.hint(format!(
                "unpack it with the mcap command: mcap compress --compression none {} -o plain.mcap",
                super::quoted(&path.display().to_string())
            )),
            FileError::TooManyTopics(_) => trouble.hint("record fewer topics at a time"),
            FileError::Damaged { .. } => trouble.hint(RECOVER),
        }
    }
}

/// A time span for people.
fn seconds(span: Duration) -> String {
    match span.as_secs() {
        0..60 => format!("{:.1} s", span.as_secs_f64()),
        long => humantime::format_duration(Duration::from_secs(long)).to_string(),
    }
}

/// What to do about a file that is not whole.
const RECOVER: &str = "the mcap command may get more out of it: mcap recover";
/// Names of files that are found without being named.
const PREFIX: &str = "meshd-";
const SUFFIX: &str = ".mcap";

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn the_newest_recording_is_found_and_nothing_else() {
        let folder = TempDir::new().unwrap();
        let none = newest(folder.path()).unwrap_err();
        assert!(none.exit == Exit::Failed && none.hint.is_some(), "{none:?}");
        let day = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * n);
        for (name, modified) in [
            ("meshd-2026-01-01-000000.mcap", day(3)),
            ("meshd-2026-01-02-000000.mcap", day(1)),
            ("meshd-2026-01-01-000001.mcap", day(3)),
            ("other.mcap", day(9)),
            ("meshd-2026.log", day(9)),
        ] {
            File::create(folder.path().join(name)).unwrap().set_modified(modified).unwrap();
        }
        assert_eq!(newest(folder.path()).unwrap(), Path::new("meshd-2026-01-01-000001.mcap"));
    }

    #[test]
    fn spans_read_well() {
        assert_eq!(seconds(Duration::from_millis(2_560)), "2.6 s");
        assert_eq!(seconds(Duration::from_millis(3_725_500)), "1h 2m 5s");
    }
}
