//! What is said about moving files: places, jobs, and what became of them. Plain data.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{NodeId, NodeName};

/// A path within a share or a directory: parts between `/`, none of them empty, `.` or `..`. So it cannot lead out by itself;
/// links on its way can, and are refused where the file is opened. Any bytes but 0 and `/` are in a part. The empty path is the
/// share itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "PathBytes", into = "PathBytes")]
pub struct SharePath(Vec<u8>);

/// Why a text is no path within a share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadPath {
    /// It starts with `/`.
    #[error("'{0}' is absolute: paths start at the share")]
    Absolute(String),
    /// It has a part `..`.
    #[error("'{0}' leads out of the share")]
    LeadsOut(String),
    /// It has an empty part, a part `.`, or a byte 0.
    #[error("'{0}' is no path: parts between '/' are not empty, '.' or '..'")]
    Malformed(String),
    /// It is longer than any system takes.
    #[error("a path has at most {MAX_PATH} bytes, not {0}")]
    TooLong(usize),
}

/// A path as CBOR has it: a byte string, since file names need not be text.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct PathBytes(#[serde(with = "byte_string")] Vec<u8>);

/// Where files are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum FilePlace {
    /// On this machine: an absolute path of the one who runs the job.
    Here(#[serde(with = "byte_string")] Vec<u8>),
    /// In a share.
    There(FarPlace),
}

/// A place in a share of a node, or of all nodes of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FarPlace {
    /// A node's id, or a name: then all nodes of that name.
    pub node: String,
    /// The name of the share.
    pub share: String,
    /// Where in it. When something is got, a part may hold `*`, `?` and `[..]`, and be `**`; a file of exactly that name comes
    /// first. What such a pattern finds keeps its path below the parts before the first of these.
    pub path: SharePath,
    /// It was written with a `/` at its end: what is put there goes into it, as into a directory.
    #[serde(default)]
    pub within: bool,
}

/// Something to be done with files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileJob {
    /// From where. All are here, or all are there.
    pub from: Vec<FilePlace>,
    /// To where: the other side. One if that is here, else any number.
    pub to: Vec<FilePlace>,
    /// What to do.
    pub kind: JobKind,
    /// Only files whose path, below what `from` names, matches this regular expression.
    #[serde(default)]
    pub regex: Option<String>,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobKind {
    /// Puts each of `from` into `to`, as `cp -a` does: under its name if `to` is a directory or ends with `/`, else as `to`.
    Copy,
    /// Makes each of `to` a directory like `from`.
    Sync {
        /// Delete what `from` does not have.
        delete: bool,
        /// Only say what would be done.
        dry_run: bool,
    },
}

/// A file or directory of a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Where it is in the share.
    pub path: SharePath,
    /// What it is.
    pub kind: FileKind,
    /// Bytes of a file, else 0.
    pub bytes: u64,
    /// When it was last changed, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// Permissions, as of `chmod`.
    pub mode: u32,
}

/// What a file is. Anything else (sockets, devices) is left out everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, and what it says.
    Link(#[serde(with = "byte_string")] Vec<u8>),
}

/// A share of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareInfo {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// The name of the share.
    pub share: String,
    /// `read`, `write` or `both`.
    pub mode: String,
}

/// What happens in a job. `target` counts through the places of `to`, or the nodes that one of them means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileEvent {
    /// A target is known, and what is to be done there. Comes first for each, and again whenever more was found: it begins
    /// before all is compared.
    Planned {
        /// Which.
        target: u32,
        /// The node at the far end: where files are put, or where they are got from (the first of several).
        node: NodeName,
        /// Files, links and directories that differ.
        files: u64,
        /// Bytes to be moved.
        bytes: u64,
        /// Bytes of these that are there already, from a transfer that was interrupted.
        resumed: u64,
    },
    /// How far it is: at most ten times a second.
    Progress {
        /// Which target.
        target: u32,
        /// Bytes that arrived and were verified, the resumed ones included.
        bytes: u64,
        /// Files that are done.
        files: u64,
    },
    /// A file is begun that takes its time: one of more than a chunk. Several may be under way.
    Begun {
        /// Which target.
        target: u32,
        /// Where, below the target.
        path: SharePath,
        /// Its bytes.
        bytes: u64,
    },
    /// One file, link or directory is as it should be, or would be.
    Done {
        /// Which target.
        target: u32,
        /// Where, below the target.
        path: SharePath,
        /// Its bytes.
        bytes: u64,
        /// What was done.
        what: FileDone,
    },
    /// One file could not be moved. Others go on.
    Failed {
        /// Which target.
        target: u32,
        /// Where, below the target.
        path: SharePath,
        /// Why.
        message: String,
    },
    /// The link to the node is lost: it waits for it, with what it has.
    Waiting {
        /// Which target.
        target: u32,
        /// For whom.
        node: NodeName,
    },
    /// A target is done.
    Finished {
        /// Which.
        target: u32,
        /// Files, links and directories that were changed.
        files: u64,
        /// Bytes that were moved.
        bytes: u64,
        /// Bytes that were there already, from a transfer that was interrupted.
        resumed: u64,
        /// Files that were as they should be.
        unchanged: u64,
        /// What was deleted.
        deleted: u64,
        /// What could not be moved.
        failed: u64,
        /// How long it took.
        millis: u64,
    },
}

/// What was done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileDone {
    /// It was not there.
    Created,
    /// It was there, otherwise.
    Replaced,
    /// Only its permissions or times were changed.
    Touched,
    /// It was deleted.
    Deleted,
}

impl SharePath {
    /// A path within a share. A trailing `/` is left off.
    ///
    /// # Errors
    /// It leads out, or is none.
    pub fn new(path: impl Into<Vec<u8>>) -> Result<Self, BadPath> {
        let mut path = path.into();
        let text = || String::from_utf8_lossy(&path).into_owned();
        if path.len() > MAX_PATH {
            return Err(BadPath::TooLong(path.len()));
        }
        if path.starts_with(b"/") {
            return Err(BadPath::Absolute(text()));
        }
        if path.contains(&0) {
            return Err(BadPath::Malformed(text()));
        }
        if path.ends_with(b"/") {
            path.pop();
        }
        if path.is_empty() {
            return Ok(Self::default());
        }
        let text = || String::from_utf8_lossy(&path).into_owned();
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b".." => return Err(BadPath::LeadsOut(text())),
                b"" | b"." => return Err(BadPath::Malformed(text())),
                _ => {}
            }
        }
        Ok(Self(path))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the share itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The parts, from the share on.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    /// The path of what is named so in it. `None` if that is no name of one file.
    pub(crate) fn child(&self, name: &[u8]) -> Option<Self> {
        let is_part = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0);
        let fits = self.0.len() + 1 + name.len() <= MAX_PATH;
        (is_part && fits).then(|| self.join(&Self(name.to_owned())))
    }

    /// Where it is, and its name there. `None` for the share itself.
    #[must_use]
    pub fn split(&self) -> Option<(Self, &[u8])> {
        let start = self.0.iter().rposition(|byte| *byte == b'/');
        match start {
            Some(at) => Some((Self(self.0[..at].to_owned()), &self.0[at + 1..])),
            None => (!self.is_root()).then(|| (Self::default(), &self.0[..])),
        }
    }

    /// In which order files are listed: by parts, what a directory holds after it and before its next neighbour.
    pub(crate) fn in_order(&self, other: &Self) -> std::cmp::Ordering {
        self.parts().cmp(other.parts())
    }

    /// Whether it is the other one, or below it.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        other.is_root() || (self.0.starts_with(&other.0) && matches!(self.0.get(other.0.len()), None | Some(b'/')))
    }

    /// The path of something below.
    #[must_use]
    pub fn join(&self, below: &Self) -> Self {
        match (self.is_root(), below.is_root()) {
            (true, _) => below.clone(),
            (_, true) => self.clone(),
            _ => Self([&self.0[..], b"/", &below.0].concat()),
        }
    }
}

impl fmt::Display for SharePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(&self.0))
    }
}

impl TryFrom<PathBytes> for SharePath {
    type Error = BadPath;

    fn try_from(PathBytes(path): PathBytes) -> Result<Self, BadPath> {
        Self::new(path)
    }
}

impl From<SharePath> for PathBytes {
    fn from(SharePath(path): SharePath) -> Self {
        Self(path)
    }
}

/// Bytes as one CBOR byte string, not as a list of numbers.
pub(crate) mod byte_string {
    use std::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string or a text")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
                Ok(text.as_bytes().to_vec())
            }
        }
        deserializer.deserialize_any(Bytes)
    }
}

/// Bytes of the longest path: as of Linux.
const MAX_PATH: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_lead_out() {
        for bad in ["/etc/passwd", "..", "a/../b", "a/..", "a//b", "./a", "a/.", "//", "a\0b", &"x".repeat(4097)] {
            assert!(SharePath::new(bad).is_err(), "{bad}");
        }
        for good in ["", "a", "a/b c/..d/...", "a/"] {
            assert!(SharePath::new(good).is_ok(), "{good}");
        }
        assert_eq!(SharePath::new("a/").unwrap(), SharePath::new("a").unwrap());
        assert_eq!(SharePath::new("a/b").unwrap().parts().count(), 2);
        assert_eq!(SharePath::default().parts().count(), 0);
    }

    #[test]
    fn it_reads_back_from_cbor_and_is_checked_there() {
        let path = SharePath::new(&b"a/\xff"[..]).unwrap();
        let mut cbor = Vec::new();
        ciborium::into_writer(&path, &mut cbor).unwrap();
        assert_eq!(ciborium::from_reader::<SharePath, _>(&cbor[..]).unwrap(), path);
        assert!(ciborium::from_reader::<SharePath, _>(&b"\x42.."[..]).is_err());
    }
}
