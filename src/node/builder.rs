//! From settings to a running node.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::{Host, ListenError, ListenOptions, Node};
use crate::config::{Config, ConfigError, Home, Layers};
use crate::keys::{IdentityKey, KeyError, KeyRing, NetworkKey};
use crate::mesh::{
    AllowRule, BadName, BalanceRule, GroupBy, MeshName, NodeName, Permissions, Policy, Rules, ServiceName, TopicFilter,
};
use crate::net::{self, Carried, LinkLimits, Links, NetConfig, NetError};
use crate::protocol::Protocols;
use crate::protocol::calls::Calls;
use crate::protocol::channel::Channels;
use crate::protocol::guard::Guard;
use crate::protocol::pubsub::{PubSub, SendTimes};

/// Describes a node, and starts it in a process of its own in the mesh.
///
/// It needs a network key: given, or found in a home.
#[derive(Clone, Debug)]
pub struct Builder {
    name: String,
    mesh: String,
    key: Option<NetworkKey>,
    home: Option<PathBuf>,
    config: Option<Config>,
    changes: Vec<Change>,
    balance: Vec<Result<BalanceRule, BadName>>,
    allow: Vec<AllowRule>,
}

#[derive(Clone, Debug)]
enum Change {
    Listen(Vec<String>),
    Bootstrap(Vec<String>),
    RuntimeDir(PathBuf),
    Local(bool),
    Mdns(bool),
    Kad(bool),
}

/// Why a node could not start. Nothing was left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The name of the node or mesh, or one in a rule of balancing, is not one.
    #[error(transparent)]
    Name(#[from] BadName),
    /// The settings in the home cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key cannot be read or stored.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No network key was given, and the home has none.
    #[error("no network key for the mesh {0}")]
    NoKey(MeshName),
    /// An address is nonsense or taken.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The node could not be hosted.
    #[error(transparent)]
    Host(#[from] ListenError),
}

impl StartError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => Some(error.hint()),
            Self::Key(error) => error.hint(),
            Self::Net(error) => error.hint(),
            Self::NoKey(_) => Some("make one with `meshd key new`, or join a mesh with `meshd join TICKET`".into()),
            Self::Name(_) | Self::Host(_) => None,
        }
    }
}

/// Whether a node could start by such settings, for all that they say of the network.
///
/// # Errors
/// An address is nonsense.
pub(crate) fn check(config: &Config) -> Result<(), StartError> {
    Ok(net::check(&config.listen, &config.bootstrap)?)
}

impl Builder {
    pub(super) fn new(name: String) -> Self {
        let (changes, balance, allow) = (Vec::new(), Vec::new(), Vec::new());
        Self { name, mesh: "default".into(), key: None, home: None, config: None, changes, balance, allow }
    }

    /// The mesh to join, `default` if not called. The same key with another name is another mesh.
    #[must_use]
    pub fn mesh(mut self, mesh: impl Into<String>) -> Self {
        self.mesh = mesh.into();
        self
    }

    /// The network key of the mesh.
    #[must_use]
    pub fn key(mut self, key: NetworkKey) -> Self {
        self.key = Some(key);
        self
    }

    /// A home as the daemon has it: `<home>/<mesh>/key` and `config.toml`, `<home>/identity`. Without one, the node keeps
    /// nothing on disk and has an identity for its lifetime.
    #[must_use]
    pub fn home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// All settings at once, instead of those of the home.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// Where to listen: `/ip4/0.0.0.0/tcp/0`, `192.168.1.7:4001`.
    #[must_use]
    pub fn listen<A: Into<String>>(self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.change(Change::Listen(addresses.into_iter().map(Into::into).collect()))
    }

    /// Peers to try first, where multicast does not reach.
    #[must_use]
    pub fn bootstrap<A: Into<String>>(self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.change(Change::Bootstrap(addresses.into_iter().map(Into::into).collect()))
    }

    /// Where peers of this host meet.
    #[must_use]
    pub fn runtime_dir(self, folder: impl Into<PathBuf>) -> Self {
        self.change(Change::RuntimeDir(folder.into()))
    }

    /// Whether to find peers of this host through the runtime directory.
    #[must_use]
    pub fn local(self, on: bool) -> Self {
        self.change(Change::Local(on))
    }

    /// Whether to find peers by multicast.
    #[must_use]
    pub fn mdns(self, on: bool) -> Self {
        self.change(Change::Mdns(on))
    }

    /// Whether to take part in the distributed hash table.
    #[must_use]
    pub fn kad(self, on: bool) -> Self {
        self.change(Change::Kad(on))
    }

    /// How messages that this process sends on the topics of a filter are balanced. What was said first wins, and all of it
    /// over what the settings say.
    #[must_use]
    pub fn balance_topics(mut self, filter: impl AsRef<str>, policy: Policy, group_by: GroupBy) -> Self {
        let filter = TopicFilter::new(filter);
        self.balance.push(filter.map(|filter| BalanceRule::Topics { filter, policy, group_by }));
        self
    }

    /// How calls of a service by this process are balanced. Otherwise like [`Builder::balance_topics`].
    #[must_use]
    pub fn balance_service(mut self, service: impl AsRef<str>, policy: Policy) -> Self {
        self.balance.push(ServiceName::new(service).map(|service| BalanceRule::Service { service, policy }));
        self
    }

    /// Who may do what at this process: one more rule, besides those of the settings.
    #[must_use]
    pub fn allow(mut self, rule: AllowRule) -> Self {
        self.allow.push(rule);
        self
    }

    fn change(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }

    /// Starts the node. When this returns, it listens and looks for others; it need not have met any yet.
    ///
    /// # Errors
    /// See [`StartError`]. Ways of finding peers that do not work are no errors: [`Node::status`] tells of them.
    pub async fn start(self) -> Result<Node, StartError> {
        let (name, mesh) = (NodeName::new(&self.name)?, MeshName::new(&self.mesh)?);
        let balance = self.balance.into_iter().collect::<Result<Vec<_>, _>>()?;
        let folder = self.home.as_ref().map(|home| home.join(mesh.as_str()));
        let config = match (self.config, &self.home) {
            (Some(config), _) => config,
            (None, Some(home)) => Layers::default().load(&Home::new(home), &mesh)?.config,
            (None, None) => Config::default(),
        };
        let config = self.changes.into_iter().fold(config, |mut config, change| {
            match change {
                Change::Listen(addresses) => config.listen = addresses,
                Change::Bootstrap(addresses) => config.bootstrap = addresses,
                Change::RuntimeDir(folder) => config.runtime_dir = folder,
                Change::Local(on) => config.discovery.local = on,
                Change::Mdns(on) => config.discovery.mdns = on,
                Change::Kad(on) => config.discovery.kad = on,
            }
            config
        });
        let stored = folder.as_ref().map(|folder| KeyRing::load(folder, &mesh)).transpose()?.flatten();
        let ring = match (self.key, stored, &folder) {
            // A rotation after the key was handed to the program is stored in the home, and holds.
            (_, Some(ring), _) => ring,
            (Some(key), None, Some(folder)) => KeyRing::create(folder, &mesh, key)?,
            (Some(key), None, None) => KeyRing::new(mesh.clone(), key, 0),
            (None, None, _) => return Err(StartError::NoKey(mesh)),
        };
        let identity = match &self.home {
            Some(home) => IdentityKey::load_or_create(home.join("identity"))?,
            None => IdentityKey::generate(),
        };
        let identity_name = identity.identity();
        let limits = config.limits;
        let host_name = host_name();
        let links = Links::default();
        let max_message = limits.message_bytes.get();
        let rules = Rules::new(balance.into_iter().chain(config.balance));
        let times = SendTimes { room: config.times.send_timeout, acknowledgement: config.times.ack_timeout };
        let (unsettled, call) = (limits.link_queue_bytes.get(), config.times.call_timeout);
        let (noticed, notices) = mpsc::channel(NOTICES);
        let permissions = Permissions::new(self.allow.into_iter().chain(config.allow).collect());
        let guard = Arc::new(Guard::new(permissions, links.clone(), noticed));
        let (host, guards) = (|| host_name.clone(), || Arc::clone(&guard));
        let calls = Arc::new(Calls::new(host(), links.clone(), rules.clone(), guards(), max_message, call));
        let channels = Channels::new(host(), links.clone(), rules.clone(), guards(), max_message, call);
        let pubsub = PubSub::new(host(), links.clone(), rules, guards(), max_message, unsettled, times);
        let (pubsub, services) = (Arc::new(pubsub), Arc::default());
        let protocols = Arc::new(Protocols { pubsub, calls, services, channels, guard });
        let net_config = NetConfig {
            mesh: mesh.clone(),
            ring,
            identity,
            host: host_name,
            folder,
            listen: config.listen,
            bootstrap: config.bootstrap,
            runtime_dir: config.discovery.local.then_some(config.runtime_dir),
            mdns: config.discovery.mdns,
            kad: config.discovery.kad,
            cache: config.discovery.cache,
            limits: LinkLimits { frames: limits.link_queue_messages.get(), bytes: limits.link_queue_bytes.get() },
            max_message,
            resume: config.times.resume,
            carried: Arc::clone(&protocols) as Arc<dyn Carried>,
            notices,
        };
        let (net, event_loop) = net::start(net_config, links).await?;
        let listen_options = ListenOptions {
            messages: limits.subscription_messages.get(),
            bytes: limits.subscription_bytes.get(),
            ..ListenOptions::default()
        };
        let event_loop = Mutex::new(Some(event_loop));
        let host = Host {
            net,
            protocols,
            mesh,
            identity: identity_name,
            listen_options,
            event_loop,
            drained: AtomicBool::new(false),
        };
        Ok(Node::host(Arc::new(host), name).await?)
    }
}

/// Name of this machine: a label for people.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Notices of refusals that wait for the event loop. Beyond, who watches misses some; the counts have all.
const NOTICES: usize = 256;
