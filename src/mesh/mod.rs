//! What a mesh is: records, views, routes, balancing. No sockets, clock or dice.

mod balance;
pub(crate) mod engine;
mod event;
mod id;
mod info;
#[cfg(test)]
mod kit;
mod name;
mod record;
mod routes;
mod topic;
mod view;

pub use balance::Policy;
pub(crate) use balance::Turns;
pub use event::{DownReason, Event, What};
pub use id::{BadId, Identity, NodeId, PeerId};
pub use info::*;
pub use name::{BadName, MAX_MESH_NAME, MAX_NAME, MeshName, NodeName, ServiceName};
pub use record::*;
pub use routes::{Group, Member, Route, Routes};
pub use topic::{Topic, TopicFilter};
