//! Why there is no key.

use std::io;
use std::path::{Path, PathBuf};

/// Why a key could not be read, written or derived. No variant holds any part of a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The system refused. Nothing was changed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `read`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than the owner may read or write the file, so what it holds is no secret. It was not read.
    #[error("{} is open to other users (mode {mode:03o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is there already. It was left as it is.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file holds more than any key. It was not read to its end.
    #[error("{} is longer than {max} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        max: usize,
    },
    /// The file was read and holds no usable key.
    #[error("{} holds no usable key", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with its text.
        source: BadKey,
    },
    /// The list of previous keys is damaged. The current key is in a file of its own.
    #[error("the list of previous keys in {} is damaged at line {line}", path.display())]
    BadRing {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A passphrase this short is guessed.
    #[error("a passphrase has at least {min} characters")]
    PassphraseTooShort {
        /// The limit in characters.
        min: usize,
    },
    /// No passphrase is this long; a wrong file, perhaps.
    #[error("a passphrase has at most {max} bytes")]
    PassphraseTooLong {
        /// The limit in bytes.
        max: usize,
    },
}

/// What is wrong with a text that was to be a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadKey {
    /// The text ends early.
    #[error("it is cut short: {found} of {expected} characters")]
    Truncated {
        /// Characters found.
        found: usize,
        /// Characters of a whole key.
        expected: usize,
    },
    /// A format that this version does not know.
    #[error("it was written by a newer meshd (format {version})")]
    Newer {
        /// The format's number.
        version: u32,
    },
    /// Something else.
    #[error("it is not a line of the form `{form}`")]
    Garbage {
        /// What a key looks like.
        form: &'static str,
    },
}

impl KeyError {
    /// What to do about it, if there is something.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { action: "read", source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("make a key with `meshd key new`, or join a mesh with `meshd join TICKET`".to_owned())
            }
            Self::Io { .. } => None,
            Self::Exposed { path, .. } => Some(format!("run `chmod 600 {}`", quoted(path))),
            Self::Exists { path } => Some(format!("move {} away first", quoted(path))),
            Self::TooLong { .. } => Some("check that this is the right file".to_owned()),
            Self::Bad { source: BadKey::Newer { .. }, .. } => Some("install a newer meshd on this machine".to_owned()),
            Self::Bad { .. } => Some("copy the file again from a machine where it works".to_owned()),
            Self::BadRing { path, .. } => {
                Some(format!("move {} away: the current key stays, previous keys are forgotten", quoted(path)))
            }
            Self::PassphraseTooShort { .. } => {
                Some("take four or more random words, or make a key with `meshd key new`".to_owned())
            }
            Self::PassphraseTooLong { .. } => None,
        }
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// The path as one word of a POSIX shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_can_be_pasted_into_a_shell() {
        let hint = |path: &str| KeyError::Exposed { path: path.into(), mode: 0o644 }.hint().unwrap();
        assert_eq!(hint("/home/a/key"), "run `chmod 600 /home/a/key`");
        assert_eq!(hint("/it's a/key"), r"run `chmod 600 '/it'\''s a/key'`");
    }
}
