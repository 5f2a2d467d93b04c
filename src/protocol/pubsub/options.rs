//! How a message is sent, and why it cannot be.

use std::time::Duration;

use bytes::Bytes;

use crate::mesh::Target;

/// How one message is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SendOptions {
    /// To whom it goes.
    pub target: Target,
    /// How long a full link or subscription may hold it up before it is dropped for that node. `None`: as configured,
    /// 1 s by default. Zero never waits. If it is to be acknowledged, that has to be done in this time too, by default 10 s.
    pub timeout: Option<Duration>,
    /// What [`Policy::Hash`](crate::Policy::Hash) goes by: messages of one key go to one node of each group. Does not travel.
    pub key: Option<Bytes>,
    /// Whether the report waits until each receiver has taken the message. If its link is lost meanwhile, it goes out again
    /// over the next, and still comes once.
    pub acked: bool,
    /// Whether a receiver that cannot take it is replaced by another of its group. Implies `acked`.
    pub redeliver: bool,
    /// For how long it is of use. Later it is not delivered any more, wherever it is. `None`: for ever.
    pub ttl: Option<Duration>,
}

impl SendOptions {
    /// With what [`Policy::Hash`](crate::Policy::Hash) goes by.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The send waits until every receiver has taken the message, and the report says who did.
    ///
    /// While a peer's link is down, the message waits for the next link, for `times.resume` (3 s); it comes at most once, and
    /// in order with all others that come.
    #[must_use]
    pub fn acked(mut self) -> Self {
        self.acked = true;
        self
    }

    /// A receiver that is gone, is full, hands the message back or does not listen any more is replaced by another of its
    /// group, and waited for if there is none, until time is up. Acknowledged too.
    ///
    /// So the message is handled at least once: twice if a worker ended after it had handled the message and before it said
    /// so, or was out of reach for longer than `times.resume`. What goes to another node comes out of order there.
    #[must_use]
    pub fn redeliver(mut self) -> Self {
        self.redeliver = true;
        self
    }

    /// After this time the message is not delivered any more: not sent from a queue, not taken out of a subscription.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    pub(super) fn is_acked(&self) -> bool {
        self.acked || self.redeliver
    }
}

/// Why a message was not sent to anybody.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// It is larger than the mesh takes. Nothing was sent.
    #[error("a message of {len} bytes, over the limit of {max}")]
    TooLarge {
        /// Its size in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The topic is not one. Nothing was sent.
    #[error(transparent)]
    Topic(#[from] crate::mesh::BadName),
    /// The value cannot be encoded. Nothing was sent.
    #[error("the value cannot be encoded: {0}")]
    Encode(String),
    /// The peer has shut down.
    #[error("the peer has shut down")]
    Closed,
}
