//! What happens in the mesh.

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::mesh::Event;

/// What happens from the moment of [`Node::events`](super::Node::events) on. Bounded: who is 1024 events behind is told how
/// many it missed.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    pub(super) fn new(receiver: broadcast::Receiver<Event>) -> Self {
        Self(receiver)
    }

    /// The next event; `Err(n)` if `n` were missed because this reader was slow; `None` when the process has left the mesh.
    ///
    /// # Cancel safety
    /// No event is lost when this is dropped.
    pub async fn next(&mut self) -> Option<Result<Event, u64>> {
        match self.0.recv().await {
            Ok(event) => Some(Ok(event)),
            Err(RecvError::Lagged(missed)) => Some(Err(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}
