//! Real peers on loopback, found through a runtime directory of their own; one binary, because linking takes long.
//!
//! Behaviours that other systems of this kind promise, or fail to keep, have ids such as `E-LB`; the test that covers one
//! names it, and `docs/CONFORMANCE.md` lists all.
#![expect(clippy::unwrap_used, reason = "tests")]

mod attached;
mod balancing;
mod bench;
mod calls;
mod channels;
mod cluster;
mod conformance;
mod daemon;
mod delivery;
mod examples;
mod exec;
mod file_verbs;
mod files;
mod gateway;
mod keys;
mod launch;
mod membership;
mod permissions;
mod proxy;
mod recording;
mod sending;
mod strangers;
mod subscriptions;
mod tidy;
#[cfg(target_os = "linux")] // looks its own sockets up in /proc
mod unix_links;
mod verbs;
