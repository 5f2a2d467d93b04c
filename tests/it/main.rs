//! Real peers on loopback, found through a runtime directory of their own; one binary, because linking takes long.
//!
//! Behaviours that other systems of this kind promise, or fail to keep, have ids such as `E-LB`; the test that covers one
//! names it.
#![expect(clippy::unwrap_used, reason = "tests")]

mod attached;
mod balancing;
mod calls;
mod channels;
mod cluster;
mod daemon;
mod delivery;
mod keys;
mod membership;
mod proxy;
mod sending;
mod strangers;
mod subscriptions;
mod tidy;
mod verbs;
