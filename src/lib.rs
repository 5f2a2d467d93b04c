//! Programs on many machines find each other and exchange messages: no coordinator, no broker, no set-up beyond one shared
//! key.
//!
//! A [`Node`] is a named participant in a mesh. Nodes that hold the same [`NetworkKey`] and mesh name find each other, on one
//! machine, on a LAN or across networks; others neither join nor read. Nodes of one name are a group: a message on a topic
//! goes to one node of each group that listens.
//!
//! ```
//! # #[tokio::main(flavor = "multi_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use meshd::{NetworkKey, Node};
//!
//! let key = NetworkKey::generate(); // or NetworkKey::read(path)?
//! # let meeting = tempdir();
//! # let quiet = |builder: meshd::Builder| builder.mdns(false).listen(["127.0.0.1:0"]).runtime_dir(&meeting);
//! # let start = |name: &str| quiet(Node::builder(name).mesh("lab").key(key.clone())).start();
//! # /*
//! let viewer = Node::builder("viewer").mesh("lab").key(key.clone()).start().await?;
//! let camera = Node::builder("camera").mesh("lab").key(key).start().await?; // on any machine
//! # */
//! # let (viewer, camera) = (start("viewer").await?, start("camera").await?);
//!
//! let mut frames = viewer.listen("frames/*").await?;
//!
//! let left = camera.publisher("frames/left")?;
//! left.wait_for_listeners(1, std::time::Duration::from_secs(5)).await;
//! let report = left.send(&("a frame", 1)).await?;
//! assert_eq!(report.sent, 1);
//!
//! let message = frames.next().await.expect("the mesh lives");
//! assert_eq!(message.decode::<(String, u32)>()?, ("a frame".to_owned(), 1));
//! # camera.shutdown().await;
//! # viewer.shutdown().await;
//! # Ok(())
//! # }
//! # fn tempdir() -> std::path::PathBuf { std::env::temp_dir().join(format!("meshd-doc-{}", std::process::id())) }
//! ```
//!
//! | to | see |
//! |---|---|
//! | start and stop, look around, rotate keys | [`Node`], [`Builder`], [`Status`], [`Events`] |
//! | send | [`Node::send`], [`Publisher`], [`SendOptions`], [`Target`], [`SendReport`] |
//! | choose who gets it | [`Policy`], [`GroupBy`], [`Balance`], [`Builder::balance_topics`], [`Publisher::with_policy`] |
//! | know that a message was handled | [`SendOptions::acked`], [`SendOptions::redeliver`], [`Receipt`], [`Acknowledge`] |
//! | keep the last message for who comes later | [`Publisher::retain`] |
//! | receive | [`Node::listen`], [`Subscription`], [`Message`], [`ListenOptions`], [`Overflow`] |
//! | offer and call services | [`Node::serve`], [`Serving`], [`Node::call`], [`Service`], [`CallError`], [`Failure`] |
//! | speak with a node, both ways | [`Node::open`], [`Node::accept`], [`Channel`], [`ChannelHandle`], [`ChannelGroup`] |
//! | answer with a stream of replies | [`Node::serve_stream`], [`Node::call_stream`], [`ReplyStream`] |
//! | share, list and move files | [`Node::share`], [`Node::list_files`], [`Node::transfer`], [`FileJob`], [`FileEvent`], [`FileError`] |
//! | run programs at other nodes, and let others run them here | [`Node::exec`], [`Command`], [`Process`], [`Node::serve_exec`] |
//! | keep meshes apart | [`NetworkKey`], [`Ticket`], [`Identity`] |
//!
//! The daemon `meshd` is this library behind a Unix socket; programs in other languages use that.

mod bench;
#[doc(hidden)]
pub mod cli;
pub mod config;
mod daemon;
mod exec;
mod files;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod keeper;
mod keys;
mod launch;
mod memory;
mod mesh;
mod net;
mod node;
mod protocol;
mod recording;
mod socket;
mod wire;

pub use exec::{Command, ExecError, ExecService, NoInterpreter, Output, Process, ProcessInput, ProcessOutput};
pub use files::{FileError, Listing, ShareError, Sharing, Transfer};
pub use keys::{BadKey, IdentityKey, KeyError, NetworkKey, Ticket, TicketError};
pub use mesh::engine::LimitError;
pub use mesh::{
    Action, AllowRule, BadId, BadName, BadPath, Balance, BalanceRule, Candidate, Codec, Counts, DiscoveryInfo,
    DownReason, DropReason, Event, Failure, FarPlace, FileDone, FileEvent, FileInfo, FileJob, FileKind, FilePlace,
    ForeignInfo, GroupBy, Identity, Item, JobKind, KeyInfo, LinkKind, MAX_MESH_NAME, MAX_NAME, MAX_NAMES_PER_NODE,
    MAX_NODES_PER_PEER, MAX_RECORD, MeshName, Message, NodeId, NodeInfo, NodeName, NotAllowed, PeerId, PeerInfo,
    Policy, ProcessExit, ProcessSignal, RemoteFailure, SendReport, ServiceInfo, ServiceName, ServiceStats, ShareInfo,
    SharePath, Status, Target, Topic, TopicFilter, TopicInfo, What, Who,
};
pub use net::{Closed, NetError, RotateRefused, RotationError};
pub use node::{
    Acceptor, Acknowledge, AdoptError, Builder, CallError, CallOptions, CallReply, Callee, Channel, ChannelError,
    ChannelGroup, ChannelHandle, ChannelService, DecodeError, Events, ListenError, ListenOptions, Node, OpenError,
    OpenOptions, Overflow, PingError, Publisher, Receipt, Replies, ReplyStream, Request, SendError, SendOptions,
    ServeOptions, Service, Serving, StartError, Subscription, WhileListened,
};
