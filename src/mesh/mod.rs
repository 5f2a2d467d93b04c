//! What a mesh is: records, views, routes, balancing. No sockets, clock or dice.

mod balance;
mod changes;
pub(crate) mod channel;
pub(crate) mod delivery;
pub(crate) mod engine;
mod event;
pub(crate) mod exec;
mod failure;
mod filters;
mod id;
mod info;
#[cfg(test)]
pub(crate) mod kit;
mod name;
mod permissions;
mod record;
mod routes;
mod rules;
#[cfg(test)]
mod sim;
mod size;
mod topic;
mod transfer;
mod trie;
mod view;

pub(crate) use balance::Turns;
pub use balance::{Balance, Candidate, GroupBy, Policy};
pub use channel::Item;
pub use event::{DownReason, Event, What};
pub use exec::{ProcessExit, ProcessSignal};
#[cfg(test)]
pub(crate) use failure::MAX_FAILURE;
pub use failure::{Failure, RemoteFailure};
pub(crate) use filters::FilterTable;
pub(crate) use id::bytes32;
pub use id::{BadId, Identity, NodeId, PeerId};
pub use info::*;
pub use name::{BadName, MAX_MESH_NAME, MAX_NAME, MeshName, NodeName, ServiceName};
pub use permissions::{Action, AllowRule, NotAllowed, Who};
pub(crate) use permissions::{MAX_RULE, Permissions};
pub(crate) use record::*;
pub use record::{MAX_NAMES_PER_NODE, MAX_NODES_PER_PEER, MAX_RECORD};
pub(crate) use routes::{Group, GroupKey, Listening, Member, Route, Routes};
pub use rules::BalanceRule;
pub(crate) use rules::Rules;
pub(crate) use size::{MAX_SMALL, Size};
pub use topic::{Topic, TopicFilter};
pub(crate) use transfer::byte_string;
pub use transfer::{
    BadPath, FarPlace, FileDone, FileEvent, FileInfo, FileJob, FileKind, FilePlace, JobKind, ShareInfo, SharePath,
};
