//! Real peers on loopback, found through a runtime directory of their own; one binary, because linking takes long.
#![expect(clippy::unwrap_used, reason = "tests")]

mod cluster;
mod sending;
