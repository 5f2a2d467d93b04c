//! Keys and the files they live in: the network key of a mesh, its predecessors, tickets, identities.
//!
//! A [`NetworkKey`] makes a mesh; nothing here goes over a wire but what `Secrets` are used to prove, and a `NewKey` or
//! [`Ticket`] that is handed to a member on purpose. No key is `Copy`, shows in `Debug` or in an error, or is written to a
//! file that others can read.
//!
//! | file | holds |
//! |---|---|
//! | `key.rs` | [`NetworkKey`] and what is derived from it |
//! | `ring/mod.rs` | the current key, its predecessors, and how a rotation spreads |
//! | `ring/store.rs` | the two files of a ring, which change at one stroke |
//! | `ticket.rs` | [`Ticket`]: what a new machine needs in order to join |
//! | `identity.rs` | [`IdentityKey`], which lasts, and the key of one run |
//! | `line.rs` | keys as one line of text |
//! | `file.rs` | private files: read, create once, replace |
//! | `error.rs` | [`KeyError`], [`BadKey`] |

mod error;
mod file;
mod identity;
mod key;
mod line;
mod ring;
mod ticket;

pub use error::{BadKey, KeyError};
pub use identity::IdentityKey;
pub(crate) use identity::{RunKey, verify};
pub use key::NetworkKey;
pub(crate) use key::{KeyId, Secrets, fingerprint};
pub(crate) use ring::{KeyRing, NewKey, RotateError};
pub use ticket::{Ticket, TicketError};
