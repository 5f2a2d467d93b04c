//! Settings of a peer: plain data, with a default for everything.
//!
//! [`Config`] is what is in force. [`Layers`] says how it comes about: default, file, environment, argument. [`Home`]
//! knows where everything lies.

mod home;
mod layers;
mod units;
mod wording;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::mesh::{AllowRule, BalanceRule, NodeName};

pub use home::Home;
pub use layers::{Layers, Loaded, Setting, Source};
pub(crate) use units::bytes::{parse as parse_bytes, text as bytes_text};
pub(crate) use units::duration;
pub use units::multiaddress;
pub(crate) use wording::plain;

/// Everything that can be set. Read from `config.toml` by the field names; unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of the daemon's own node. None: the host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<NodeName>,
    /// Where to listen, as multiaddresses or `host:port`; port 0 takes a free one. More addresses make a peer reachable in
    /// more ways; a fixed port lets a firewall let it in and others name it as their bootstrap.
    #[serde(with = "units::addresses")]
    pub listen: Vec<String>,
    /// Peers to try first, as multiaddresses or `host:port`. One that answers is enough to meet all others. Needed only
    /// where multicast does not reach.
    #[serde(with = "units::addresses")]
    pub bootstrap: Vec<String>,
    /// Directory for what lasts no longer than the processes of this host: same-host discovery and link sockets. Peers with
    /// different ones meet over the network only.
    pub runtime_dir: PathBuf,
    /// How peers are found.
    pub discovery: DiscoveryConfig,
    /// How much is kept in memory.
    pub limits: LimitsConfig,
    /// How long things may take.
    pub times: TimesConfig,
    /// Who gets the messages of a topic and the calls of a service, where it is not to be the default. Only what this peer
    /// sends goes by it.
    pub balance: Vec<BalanceRule>,
    /// Directories whose files members may read or write. None: no file is ever touched for others.
    pub share: Vec<ShareConfig>,
    /// Which programs members may run here.
    pub exec: ExecConfig,
    /// Who may do what at this peer, where it is not to be the default.
    pub allow: Vec<AllowRule>,
}

/// A directory whose files members may read or write: one `[[share]]`. Nothing outside of it is ever touched through it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// By which name members address it: one part, without `/` and `:`.
    pub name: String,
    /// The directory. A relative one starts at the home's directory of the mesh.
    pub path: PathBuf,
    /// What members may do. `read` is the default.
    #[serde(default)]
    pub mode: ShareMode,
}

/// What members may do with the files of a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShareMode {
    /// List and get them.
    #[default]
    Read,
    /// Put, replace and delete them; not read them.
    Write,
    /// All that.
    Both,
}

/// Which programs members may run here. By default none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExecConfig {
    /// Names of programs that are found by `PATH`, or absolute paths. A program that runs others, such as `sh` or `python3`, is
    /// as good as all.
    pub allow: Vec<String>,
    /// Whatever they like, with the rights of the daemon's user.
    pub any: bool,
}

/// Ways of finding peers. Each one more finds peers that the others miss, and costs little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscoveryConfig {
    /// Peers of this host, through `runtime_dir`. Off: what is on one machine behaves as if it were on two.
    pub local: bool,
    /// Multicast DNS on every interface. Off: silent on the network; peers need a bootstrap address.
    pub mdns: bool,
    /// A distributed table of addresses, for what multicast does not reach. Off: a little less traffic; bootstrap then
    /// leads only to peers that the bootstrap peer knows.
    pub kad: bool,
    /// Addresses of the last run, tried at start. Off: nothing is written about other machines; a start without multicast
    /// needs a bootstrap address.
    pub cache: bool,
}

/// How much is kept in memory, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Bytes of one message, at most 1 GiB. A larger limit lets one message take that much memory at each receiver.
    #[serde(with = "units::bytes")]
    pub message_bytes: NonZeroUsize,
    /// Frames waiting for one peer. More ride out longer stalls before `send` waits; what waits is lost if the link dies.
    pub link_queue_messages: NonZeroUsize,
    /// Bytes waiting for one peer, whichever limit is reached first: of small messages, of those over 64 KiB, and of those over
    /// 4 MiB each, one of which always fits. Times three and the number of peers, this is the memory that slow peers can take.
    #[serde(with = "units::bytes")]
    pub link_queue_bytes: NonZeroUsize,
    /// Messages waiting in one subscription. More ride out longer pauses of its reader before the overflow policy decides.
    pub subscription_messages: NonZeroUsize,
    /// Bytes waiting in one subscription, whichever limit is reached first.
    #[serde(with = "units::bytes")]
    pub subscription_bytes: NonZeroUsize,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimesConfig {
    /// How long a send waits for a full link or a full blocking subscription. Longer loses less to a slow receiver and holds
    /// the sender up longer; `0s` never waits.
    #[serde(with = "units::duration")]
    pub send_timeout: Duration,
    /// How long a call waits for its reply. Longer waits for slow services; shorter tells sooner that something is wrong.
    #[serde(with = "units::duration")]
    pub call_timeout: Duration,
    /// How long a send that is to be acknowledged waits for that. Longer waits for slow receivers; shorter tells sooner that
    /// something is wrong.
    #[serde(with = "units::duration")]
    pub ack_timeout: Duration,
    /// How long channels and acknowledged messages wait for a peer whose link was lost. Longer rides out longer outages;
    /// shorter hands a dead worker's messages on sooner. A process that is seen to have ended is not waited for.
    #[serde(with = "units::duration")]
    pub resume: Duration,
}

impl Config {
    /// The defaults, changed by what the file says. A missing file changes nothing.
    ///
    /// # Errors
    /// The file cannot be read, or holds an unknown key or an impossible value: says at which line.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        layers::read_file(path.as_ref()).map(|(config, _)| config)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            listen: vec!["/ip4/0.0.0.0/tcp/0".to_owned(), "/ip6/::/tcp/0".to_owned()],
            bootstrap: Vec::new(),
            runtime_dir: home::runtime_dir(),
            discovery: DiscoveryConfig::default(),
            limits: LimitsConfig::default(),
            times: TimesConfig::default(),
            balance: Vec::new(),
            share: Vec::new(),
            exec: ExecConfig::default(),
            allow: Vec::new(),
        }
    }
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self { local: true, mdns: true, kad: true, cache: true }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            message_bytes: size(64 * MIB),
            // About 4 ms of small messages at a million a second: enough to keep the writer busy, no more.
            link_queue_messages: size(4096),
            link_queue_bytes: size(8 * MIB),
            subscription_messages: size(1024),
            // One message of the largest size always fits.
            subscription_bytes: size(64 * MIB),
        }
    }
}

impl Default for TimesConfig {
    fn default() -> Self {
        Self {
            send_timeout: Duration::from_secs(1),
            call_timeout: Duration::from_secs(10),
            ack_timeout: Duration::from_secs(10),
            resume: Duration::from_secs(3),
        }
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is there but cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds a key that means nothing.
    #[error("{}:{line}: unknown key '{key}'", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// The file is not TOML, or holds an impossible value.
    #[error("{}:{line}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// An environment variable or argument holds an impossible value.
    #[error("{origin}: {message}")]
    Value {
        /// The variable or argument.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// Nothing says where the files are to be.
    #[error("no home directory: neither HOME nor XDG_DATA_HOME nor MESHD_HOME is set")]
    NoHome,
}

impl ConfigError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { path, .. } => format!("check the permissions of {}", path.display()),
            Self::Unknown { nearest: Some(nearest), .. } => format!("did you mean '{nearest}'?"),
            Self::Unknown { .. } => "see all keys with: meshd config".to_owned(),
            Self::File { path, .. } => format!("correct the line, or remove it: {}", path.display()),
            Self::Value { origin, .. } => format!("correct or leave out {origin}; see all values with: meshd config"),
            Self::NoHome => "say where with --home DIR".to_owned(),
        }
    }
}

/// The text of a small file that may be missing.
fn read_optional(path: &Path) -> Result<Option<String>, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

const fn size(bytes: usize) -> NonZeroUsize {
    NonZeroUsize::new(bytes).expect("a limit is not 0")
}

const MIB: usize = 1024 * 1024;
/// Bytes of the largest message that any configuration allows: 1 GiB.
pub const MAX_MESSAGE_BYTES: usize = crate::wire::control::MAX_PAYLOAD;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_and_no_file_are_the_defaults() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("config.toml");
        assert_eq!(Config::from_file(&path).unwrap(), Config::default());
        fs::write(&path, "").unwrap();
        assert_eq!(Config::from_file(&path).unwrap(), Config::default());
    }

    #[test]
    fn the_printed_defaults_read_back() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
        assert!(text.contains("message_bytes = \"64 MiB\""), "{text}");
        assert!(text.contains("send_timeout = \"1s\""), "{text}");
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_their_line() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("config.toml");
        for (text, says) in [
            ("name = \"\"", "cannot be empty"),
            ("\n[limits]\nmessage_bytes = 0", "at least 1"),
            ("[limits]\nmessage_bytes = \"2 GiB\"", "1 GiB"),
            ("[limits]\nlink_queue_messages = 0", "0 is not a whole number from 1 on"),
            ("[limits]\nlink_queue_bytes = \"many\"", "8 MiB"),
            ("[times]\nsend_timeout = 3", "config.toml:2: a time is a text such as \"300ms\", \"5s\" or \"2m\""),
            ("[times]\nsend_timeout = \"abc\"", "config.toml:2: 'abc' is no time: write 300ms, 5s or 2m, say"),
            ("[times]\nsend_timeout = \"-1\"", "'-1' is no time"),
            ("[times]\nresume = \"300000000000years\"", "at most 365 days"),
            ("[limits]\nmessage_bytes = -1", "a number of bytes is at least 1"),
            ("[limits]\nsubscription_messages = \"x\"", "\"x\" is not a whole number from 1 on"),
            ("name = 3", "config.toml:1: 3 is not a text in quotes"),
            ("runtime_dir = 3", "3 is not a text in quotes"),
            ("listen = \"a:1\"", "\"a:1\" is not a list: write [..]"),
            ("[exec]\nany = \"yes\"", "\"yes\" is not true or false"),
            ("[[share]]\nname = \"a\"", "'path' is missing"),
            ("[share]\nname = \"a\"\npath = \"b\"", "there can be several: write [[..]]"),
            ("[[share]]\nname = \"a\"\npath = \"b\"\nmode = \"rw\"", "\"rw\" is not one of read, write, both"),
            ("listen = [\"nonsense\"]", "host:port"),
            ("discovery = 3", "config.toml:1: 3 is not a table"),
            ("[[balance]]\ntopic = \"a\"", "config.toml:1: 'policy' is missing"),
            ("[[balance]]\npolicy = \"hash\"", "config.toml:1: a rule is for a topic or a service: add topic"),
            ("\n[[balance]]\ntopic = \"a\"\nservice = \"b\"\npolicy = \"hash\"", "config.toml:2: a rule is for"),
            ("[[balance]]\nservice = \"a\"\npolicy = \"hash\"\ngroup_by = \"host\"", "config.toml:1: group_by is for"),
            ("[[balance]]\ntopic = \"a\"\npolicy = \"fair\"", "config.toml:3: \"fair\" is not one of round_robin, "),
            ("[[balance]]\ntopic = \"a\"\npolicy = \"fair\"", "least_loaded, "),
            ("[[balance]]\ntopic = \"a/\"\npolicy = \"hash\"", "config.toml:2: a filter has no empty parts"),
            ("listen = [", "array"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Config::from_file(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let error = Config::from_file(home.path()).unwrap_err();
        assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    }
}
