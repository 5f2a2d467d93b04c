//! What is asked of who has the files, and the answers: the same here and over the mesh.
//!
//! On the way, the bytes come first, then the words in CBOR, then the length of these in four bytes: so bytes go from the disk to the
//! link, and from the link to the disk, without being moved in between.

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::partial::Version;
use super::trouble::{Kind, Trouble};
use super::walk::{Found, Pattern, Wanted};
use crate::mesh::{FileInfo, FileKind, SharePath, byte_string, bytes32};

/// By which calls come, and channels for lists.
pub(super) const SERVICE: &str = "meshd.files";
pub(super) const LISTS: &str = "meshd.files.list";

/// For what somebody looks at files: both need a permission of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    Get,
    Put,
}

/// What is asked of a share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) share: String,
    pub(super) ask: Ask,
}

/// What a list is asked for with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ListAsked {
    pub(super) share: String,
    pub(super) purpose: Purpose,
    pub(super) wanted: Wanted,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// All shares: of no share.
    Shares,
    /// What is there, by a path that a person wrote: links are followed, and a pattern may be in it.
    Look { path: SharePath, purpose: Purpose, through: bool },
    /// Small files, one after the other. Their bytes come with the answer.
    Read { paths: Vec<SharePath> },
    /// One chunk. Its bytes come with the answer.
    Chunk { path: SharePath, version: Version, index: u64 },
    /// Chaining values of chunks that are to be got.
    Values { path: SharePath, version: Version, first: u64, count: u64 },
    /// The hash of a file.
    Hash { path: SharePath, version: Version, purpose: Purpose },
    /// Small files, whose bytes come with it.
    Write { paths: Vec<SharePath>, records: Vec<Record> },
    /// Other changes, one after the other.
    Change { changes: Vec<Change> },
    /// A large file is to come: what of it is there?
    Begin { path: SharePath, version: Version },
    /// Chaining values of chunks that are there.
    Held { path: SharePath, version: Version, first: u64, count: u64 },
    /// One chunk, whose bytes come with it.
    Put {
        path: SharePath,
        version: Version,
        index: u64,
        #[serde(with = "bytes32")]
        value: [u8; 32],
    },
    /// All chunks are there.
    Finish {
        path: SharePath,
        version: Version,
        mode: u32,
        #[serde(with = "bytes32")]
        root: [u8; 32],
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Names and modes.
    Shares(Vec<(String, String)>),
    /// Where it is, passing no link; the pattern below that; what is there.
    Found {
        root: SharePath,
        pattern: Option<Pattern>,
        info: Option<FileInfo>,
    },
    Records(Vec<Record>),
    Value(#[serde(with = "bytes32")] [u8; 32]),
    Values(#[serde(with = "byte_string")] Vec<u8>),
    /// What of it is there, a bit for each chunk.
    Begun(#[serde(with = "byte_string")] Vec<u8>),
    /// Of many: how many things were changed by each.
    Done(Vec<Outcome>),
}

/// What is known of one of many files: its bytes are the next that many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    Read {
        bytes: u32,
        mode: u32,
        modified_ns: i64,
        #[serde(with = "bytes32")]
        hash: [u8; 32],
    },
    Not(u8, String),
}

/// What became of one of many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    Done(u64),
    Not(u8, String),
}

/// A change that needs no bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    Directory {
        path: SharePath,
    },
    Link {
        path: SharePath,
        #[serde(with = "byte_string")]
        to: Vec<u8>,
        modified_ns: i64,
    },
    Attributes {
        path: SharePath,
        mode: u32,
        modified_ns: i64,
    },
    /// With all that is below.
    Delete {
        path: SharePath,
    },
}

/// A part of a list, or its end: a channel also closes when who lists is stopped, and what was not told of by then is not gone.
/// Where who asks may not have something, it is said that there is something: else it would be taken to be gone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Page(Option<Vec<Line>>);

/// As in [`FileInfo`], without the names of its fields: there are many.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Line {
    #[serde(rename = "f")]
    File(SharePath, u64, i64, u32),
    #[serde(rename = "d")]
    Directory(SharePath, i64, u32),
    #[serde(rename = "l")]
    Link(SharePath, #[serde(with = "byte_string")] Vec<u8>, i64, u32),
    #[serde(rename = "u")]
    Unread(SharePath, String),
    #[serde(rename = "h")]
    Hidden,
}

impl Change {
    pub(super) fn path(&self) -> &SharePath {
        match self {
            Self::Directory { path }
            | Self::Link { path, .. }
            | Self::Attributes { path, .. }
            | Self::Delete { path } => path,
        }
    }
}

impl Outcome {
    pub(super) fn into_result(self) -> Result<u64, Trouble> {
        match self {
            Self::Done(count) => Ok(count),
            Self::Not(kind, message) => Err(Trouble::new(Kind::of_name(kind), message)),
        }
    }
}

impl From<Result<u64, Trouble>> for Outcome {
    fn from(result: Result<u64, Trouble>) -> Self {
        result.map_or_else(|trouble| Self::Not(trouble.kind.number(), trouble.message), Self::Done)
    }
}

impl From<Trouble> for Record {
    fn from(trouble: Trouble) -> Self {
        Self::Not(trouble.kind.number(), trouble.message)
    }
}

impl From<Vec<Option<Found>>> for Page {
    fn from(found: Vec<Option<Found>>) -> Self {
        let line = |found| match found {
            None => Line::Hidden,
            Some(Found::Unread(path, why)) => Line::Unread(path, why),
            Some(Found::File(FileInfo { path, kind, bytes, modified_ns, mode })) => match kind {
                FileKind::File => Line::File(path, bytes, modified_ns, mode),
                FileKind::Directory => Line::Directory(path, modified_ns, mode),
                FileKind::Link(to) => Line::Link(path, to, modified_ns, mode),
            },
        };
        Self(Some(found.into_iter().map(line).collect()))
    }
}

impl Page {
    pub(super) const END: Self = Self(None);

    /// What it tells of, and `None` for something that is hidden there. No page at the end.
    pub(super) fn found(self) -> Option<Vec<Option<Found>>> {
        let found = |line| {
            let (path, kind, bytes, modified_ns, mode) = match line {
                Line::Hidden => return None,
                Line::Unread(path, why) => return Some(Found::Unread(path, why)),
                Line::File(path, bytes, modified_ns, mode) => (path, FileKind::File, bytes, modified_ns, mode),
                Line::Directory(path, modified_ns, mode) => (path, FileKind::Directory, 0, modified_ns, mode),
                Line::Link(path, to, modified_ns, mode) => (path, FileKind::Link(to), 0, modified_ns, mode),
            };
            Some(Found::File(FileInfo { path, kind, bytes, modified_ns, mode }))
        };
        Some(self.0?.into_iter().map(found).collect())
    }
}

/// Bytes, and words about them. If nobody else holds the bytes, they stay where they are.
pub(super) fn pack(data: Bytes, words: &impl Serialize) -> Result<Bytes, Trouble> {
    let mut packed = data.try_into_mut().unwrap_or_else(|shared| {
        let mut own = BytesMut::with_capacity(shared.len() + HEADROOM);
        own.extend_from_slice(&shared);
        own
    });
    let head = encode(words)?;
    packed.extend_from_slice(&head);
    packed.extend_from_slice(&(head.len() as u32).to_be_bytes());
    Ok(packed.freeze())
}

/// The words, and the bytes that came with them.
pub(super) fn unpack<W: DeserializeOwned>(mut packed: Bytes) -> Result<(W, Bytes), Trouble> {
    let bad = || Trouble::new(Kind::Bad, "a payload that ends amid its words");
    let at = packed.len().checked_sub(4).ok_or_else(bad)?;
    let length = packed.split_off(at);
    let length = u32::from_be_bytes(length[..].try_into().map_err(|_| bad())?) as usize;
    let at = packed.len().checked_sub(length).ok_or_else(bad)?;
    let words = packed.split_off(at);
    Ok((decode(&words)?, packed))
}

pub(super) fn encode(words: &impl Serialize) -> Result<Vec<u8>, Trouble> {
    let mut out = Vec::new();
    ciborium::into_writer(words, &mut out).map_err(|error| Trouble::new(Kind::Bad, error.to_string()))?;
    Ok(out)
}

pub(super) fn decode<W: DeserializeOwned>(bytes: &[u8]) -> Result<W, Trouble> {
    ciborium::from_reader(bytes).map_err(|error| Trouble::new(Kind::Bad, format!("no words about files: {error}")))
}

/// Room for words after the bytes of a chunk: a path is 4096 bytes at most.
pub(super) const HEADROOM: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_bytes_come_apart_as_they_were_put_together() {
        let words = ("a".to_owned(), 7_u32);
        for data in [&b""[..], b"bytes"] {
            let packed = pack(Bytes::copy_from_slice(data), &words).unwrap();
            let (read, rest) = unpack::<(String, u32)>(packed.clone()).unwrap();
            assert_eq!((read, &rest[..]), (words.clone(), data));
            for cut in 0..packed.len() {
                assert!(unpack::<(String, u32)>(packed.slice(cut + 1..)).is_err() || cut < data.len());
            }
        }
        assert!(unpack::<u32>(Bytes::from_static(b"\xff\xff\xff\xff")).is_err());
    }
}
