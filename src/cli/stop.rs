//! Being told to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::trouble::Trouble;

/// Whether somebody wants this process to end: SIGTERM or SIGINT, which from now on do nothing else.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub(super) fn new() -> Result<Self, Trouble> {
        let trouble = |error: std::io::Error| Trouble::failed("cannot watch for signals", &error);
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(trouble)?,
            interrupt: signal(SignalKind::interrupt()).map_err(trouble)?,
        })
    }

    /// Waits until somebody does, each time anew.
    ///
    /// # Cancel safety
    /// No signal is lost.
    pub(super) async fn wanted(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
