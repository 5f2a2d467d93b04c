//! What can go wrong for somebody at a terminal, and how scripts can tell.

use std::error::Error;
use std::io;

use crate::config::ConfigError;
use crate::daemon::DaemonError;
use crate::keys::{KeyError, TicketError};
use crate::mesh::BadName;
use crate::socket::SocketError;
use crate::wire::control::{Failure, FailureKind};

/// How a command ended, as scripts see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// It was done.
    Done,
    /// Something went wrong.
    Failed,
    /// What was typed makes no sense.
    Usage,
    /// No listener, provider, or such node.
    Nobody,
    /// Time was up.
    TimedOut,
    /// Busy, or not allowed.
    Refused,
    /// No daemon runs here.
    NoDaemon,
    /// As a program ended that ran on our behalf.
    Program(u8),
}

impl Exit {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Nobody => 3,
            Self::TimedOut => 4,
            Self::Refused => 5,
            Self::NoDaemon => 6,
            Self::Program(code) => code,
        }
    }
}

impl Exit {
    /// What both come to: several failures that are not alike are just failures.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Done, exit) | (exit, Self::Done) => exit,
            (one, other) if one == other => one,
            _ => Self::Failed,
        }
    }
}

/// Why a command was not done, and what to do about it.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) exit: Exit,
    /// Empty for what needs no words: who closed the pipe knows it.
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Trouble {
    pub(super) fn new(exit: Exit, message: impl ToString) -> Self {
        Self { exit, message: message.to_string(), hint: None }
    }

    /// What went wrong, with all that lies behind it.
    pub(super) fn failed(what: &str, error: &dyn Error) -> Self {
        Self::new(Exit::Failed, format!("{what}: {}", chain(error)))
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    fn hint_if_any(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }

    /// Whoever read our output has read enough: that is success.
    pub(super) fn writing(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Exit::Done, "");
        }
        Self::failed("cannot write", error).hint("is the disk full?")
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        let exit = match failure.kind {
            FailureKind::Failed => Exit::Failed,
            FailureKind::Usage => Exit::Usage,
            FailureKind::NobodyThere => Exit::Nobody,
            FailureKind::TimedOut => Exit::TimedOut,
            FailureKind::Refused => Exit::Refused,
            FailureKind::Stopping => Exit::NoDaemon,
        };
        Self::new(exit, failure.message).hint_if_any(failure.hint)
    }
}

impl From<DaemonError> for Trouble {
    fn from(error: DaemonError) -> Self {
        let exit = match error {
            DaemonError::AlreadyRuns { .. } => Exit::Refused,
            DaemonError::Config(_) | DaemonError::Share(_) | DaemonError::Address(_) => Exit::Usage,
            DaemonError::SocketPathTooLong { .. } => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, chain(&error)).hint_if_any(error.hint())
    }
}

impl From<ConfigError> for Trouble {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, chain(&error)).hint(error.hint())
    }
}

impl From<KeyError> for Trouble {
    fn from(error: KeyError) -> Self {
        let hint = error.hint();
        Self::new(Exit::Failed, chain(&error)).hint_if_any(hint)
    }
}

impl From<TicketError> for Trouble {
    fn from(error: TicketError) -> Self {
        Self::new(Exit::Usage, chain(&error)).hint_if_any(error.hint())
    }
}

impl From<BadName> for Trouble {
    fn from(error: BadName) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<SocketError> for Trouble {
    fn from(error: SocketError) -> Self {
        if let SocketError::Io(broken) = &error
            && matches!(broken.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
        {
            // Killed while we spoke, it had no time for an orderly end.
            return Self::new(Exit::NoDaemon, "the daemon has ended").hint("start it again with: meshd run");
        }
        Self::failed("talking to the daemon", &error).hint("see whether it runs with: meshd status")
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_failures_are_exit_codes() {
        for (kind, code) in [
            (FailureKind::Failed, 1),
            (FailureKind::Usage, 2),
            (FailureKind::NobodyThere, 3),
            (FailureKind::TimedOut, 4),
            (FailureKind::Refused, 5),
            (FailureKind::Stopping, 6),
        ] {
            assert_eq!(Trouble::from(Failure::new(kind, "x")).exit.code(), code);
        }
    }

    #[test]
    fn a_broken_pipe_is_success() {
        assert_eq!(Trouble::writing(&io::ErrorKind::BrokenPipe.into()).exit, Exit::Done);
        assert_eq!(Trouble::writing(&io::ErrorKind::StorageFull.into()).exit, Exit::Failed);
    }

    #[test]
    fn causes_are_told_once() {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = ConfigError::Read { path: "/x".into(), source };
        assert_eq!(Trouble::from(error).message, "cannot read /x: permission denied");
    }
}
