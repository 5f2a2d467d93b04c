//! Where everything lies.

use std::env;
use std::path::{Path, PathBuf};

use super::{ConfigError, read_optional};
use crate::mesh::MeshName;

/// The directory that holds a user's identity and, in a folder per mesh, its key, settings and socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// A home in this directory. Nothing is created.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// The given one, else `MESHD_HOME`, else `$XDG_DATA_HOME/meshd`, else `~/.local/share/meshd`.
    ///
    /// # Errors
    /// [`ConfigError::NoHome`] if there is none of them.
    pub fn find(given: Option<PathBuf>) -> Result<Self, ConfigError> {
        let home = given
            .or_else(|| directory("MESHD_HOME"))
            .or_else(|| directory("XDG_DATA_HOME").map(|data| data.join("meshd")))
            .or_else(|| directory("HOME").map(|home| home.join(".local/share/meshd")));
        home.map(Self).ok_or(ConfigError::NoHome)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The identity key, shared by all meshes.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }

    /// The folder of one mesh.
    #[must_use]
    pub fn mesh(&self, mesh: &MeshName) -> PathBuf {
        self.0.join(mesh.as_str())
    }

    /// A mesh's settings.
    #[must_use]
    pub fn config(&self, mesh: &MeshName) -> PathBuf {
        self.mesh(mesh).join("config.toml")
    }

    /// The addresses that came with tickets, one in a line.
    #[must_use]
    pub fn bootstrap(&self, mesh: &MeshName) -> PathBuf {
        self.mesh(mesh).join("bootstrap")
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self, mesh: &MeshName) -> PathBuf {
        self.mesh(mesh).join("meshd.sock")
    }

    /// What a running daemon holds locked; it contains its process id.
    #[must_use]
    pub fn lock(&self, mesh: &MeshName) -> PathBuf {
        self.mesh(mesh).join("meshd.lock")
    }

    /// The addresses in [`bootstrap`](Self::bootstrap), at most 64; bad lines are skipped.
    pub(super) fn remembered(&self, mesh: &MeshName) -> Result<Vec<String>, ConfigError> {
        let text = read_optional(&self.bootstrap(mesh))?.unwrap_or_default();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(lines.filter_map(|line| super::multiaddress(line).ok()).take(MAX_REMEMBERED).collect())
    }
}

/// `MESHD_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/meshd`, else a directory of the user's own under the temporary one.
pub(super) fn runtime_dir() -> PathBuf {
    directory("MESHD_RUNTIME_DIR")
        .or_else(|| directory("XDG_RUNTIME_DIR").map(|runtime| runtime.join("meshd")))
        .unwrap_or_else(|| env::temp_dir().join(format!("meshd-{}", rustix::process::getuid().as_raw())))
}

/// A directory from the environment. An empty value is none, by convention.
fn directory(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Addresses read from the file of remembered ones: each is one dial at start.
const MAX_REMEMBERED: usize = 64;
