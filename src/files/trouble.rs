//! What goes wrong with one file, here or at another node: said in one way, so that both ends are treated alike.

use std::io;

use crate::files::FileError;
use crate::mesh::{BadPath, Failure, SharePath};

/// Why something was not done with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) kind: Kind,
    pub(super) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// By a rule, or by the mode of the share.
    Refused,
    /// There is no such share or file.
    NotThere,
    /// It is not what it was said to be: its size, its time or its content.
    Changed,
    /// Somebody else writes it just now.
    Busy,
    /// What was asked makes no sense.
    Bad,
    /// The disk, or the system.
    Failed,
    /// The node is gone.
    Lost,
    /// This peer has shut down.
    Closed,
}

impl Trouble {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What the system says of a file.
    pub(super) fn io(path: &SharePath, error: &io::Error) -> Self {
        let kind = if error.kind() == io::ErrorKind::NotFound { Kind::NotThere } else { Kind::Failed };
        let text = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                "a link, or what is no directory, is on the way".to_owned()
            }
            Some(errno) => errno.to_string().split(" (os error").next().unwrap_or_default().to_owned(),
            None => error.to_string(), // of cap-std: it leads out
        };
        Self::new(kind, if path.is_root() { text } else { format!("{path}: {text}") })
    }

    pub(super) fn from_failure(failure: Failure) -> Self {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == failure.kind).unwrap_or(Kind::Failed);
        Self::new(kind, failure.message)
    }

    /// As the whole of what was asked of a node.
    pub(super) fn of(self, node: String) -> FileError {
        match self.kind {
            Kind::Refused => FileError::Refused { node, why: self.message },
            Kind::NotThere => FileError::NotThere { node, what: self.message },
            Kind::Lost => FileError::Lost { node, waited: super::far::PATIENCE },
            Kind::Closed => FileError::Closed,
            Kind::Changed | Kind::Busy | Kind::Bad | Kind::Failed => FileError::Far { node, message: self.message },
        }
    }
}

impl Kind {
    const ALL: [Self; 6] = [Self::Refused, Self::NotThere, Self::Changed, Self::Busy, Self::Bad, Self::Failed];

    /// By which it is known on the way.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::NotThere => "not-there",
            Self::Changed => "changed",
            Self::Busy => "in-use",
            Self::Bad => Failure::BAD_REQUEST,
            Self::Failed | Self::Lost | Self::Closed => "failed",
        }
    }

    pub(super) fn of_name(name: u8) -> Self {
        Self::ALL.get(usize::from(name)).copied().unwrap_or(Self::Failed)
    }

    /// By which it is known in a table of many.
    pub(super) fn number(self) -> u8 {
        Self::ALL.iter().position(|kind| *kind == self).unwrap_or(Self::ALL.len() - 1) as u8
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::new(trouble.kind.name(), trouble.message)
    }
}

impl From<BadPath> for Trouble {
    fn from(bad: BadPath) -> Self {
        Self::new(Kind::Refused, bad.to_string())
    }
}
