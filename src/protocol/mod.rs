//! What nodes do together, one thing a file, both halves in it. Knows links, not what carries them.
//!
//! | frame | protocol |
//! |---|---|
//! | topic, node, message | [`pubsub`] sends to groups of listeners, [`arrivals`] receives, [`subscription`] holds what arrived |
//! | ping, pong | [`ping`]: the round trip of a link |

pub(crate) mod arrivals;
pub(crate) mod ping;
pub(crate) mod pubsub;
pub(crate) mod subscription;
