//! Messages in files: [MCAP](https://mcap.dev), written and read. What stands where is described in docs/RECORDING.md.

mod contents;
mod pace;
mod reader;
mod writer;

use std::path::PathBuf;
use std::{fmt, io};

use mcap::McapError;

pub(crate) use self::contents::{Contents, TopicContents};
pub(crate) use self::pace::Pace;
pub(crate) use self::reader::{Cut, Entry, Reader};
pub(crate) use self::writer::{About, Arrived, Sealed, Writer};
use crate::mesh::Codec;

/// Why a file cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The system says no. What was written before can be read.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It does not begin as MCAP files do.
    #[error("{} is no MCAP file", .0.display())]
    NotMcap(PathBuf),
    /// It has chunks that only others can read.
    #[error("{} is compressed by {compression}, which meshd cannot read", path.display())]
    Compressed { path: PathBuf, compression: String },
    /// A file takes 65,535 topics. What was written before can be read.
    #[error("{} has as many topics as a file can have", .0.display())]
    TooManyTopics(PathBuf),
    /// The file is not made as the format says.
    #[error("{} is not made as MCAP files are: {said}", path.display())]
    Damaged { path: PathBuf, said: String },
}

impl FileError {
    fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { what, path: path.into(), source }
    }

    fn mcap(what: &'static str, path: impl Into<PathBuf>, error: McapError) -> Self {
        let path = path.into();
        match error {
            McapError::Io(source) => Self::Io { what, path, source },
            McapError::BadMagic => Self::NotMcap(path),
            McapError::UnsupportedCompression(compression) => Self::Compressed { path, compression },
            McapError::TooManyChannels => Self::TooManyTopics(path),
            other => Self::Damaged { path, said: other.to_string() },
        }
    }
}

/// How a payload is encoded, as a file says it. Those that MCAP knows have its names, so that other programs open them.
fn encoding(codec: Codec) -> &'static str {
    match codec {
        Codec::Json => "json",
        Codec::Cbor => "cbor",
        Codec::Text => "x-text",
        Codec::Bytes => "x-bytes",
    }
}

/// How a message of a file is sent. What other programs have written is bytes, if it is neither JSON nor CBOR.
fn codec(encoding: &str) -> Codec {
    match encoding {
        "json" => Codec::Json,
        "cbor" => Codec::Cbor,
        "x-text" => Codec::Text,
        _ => Codec::Bytes,
    }
}

/// Bytes as people read them: `999 B`, `1.5 MB`.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{} B", self.0),
            1_000..999_950 => write!(f, "{:.1} KB", bytes / 1e3),
            999_950..999_950_000 => write!(f, "{:.1} MB", bytes / 1e6),
            _ => write!(f, "{:.1} GB", bytes / 1e9),
        }
    }
}

/// Where a channel of a file tells which node sends on it.
const FROM: &str = "meshd.from";
/// That node's name.
const FROM_NAME: &str = "meshd.name";
/// The upper half of its numbers: MCAP's have 32 bits. Missing while it is 0.
const SEQ_HIGH: &str = "meshd.seq_high";
/// Name of the records in which a file tells of itself: the last one holds.
const ABOUT: &str = "meshd";
const FILTERS: &str = "filters";
const MESH: &str = "mesh";
const LOST: &str = "lost";

#[cfg(test)]
mod tests;
