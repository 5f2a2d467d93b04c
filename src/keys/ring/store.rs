//! The two files of a ring: `key`, one line with the current key, and `key.ring`, all the rest.

use std::io;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use super::super::error::{BadKey, KeyError};
use super::super::file;
use super::super::ticket::Ticket;
use super::{KeyRing, MAX_EXCLUDED, MAX_TIME, NetworkKey, Previous};
use crate::mesh::{Identity, MeshName};

impl KeyRing {
    /// The ring in a folder; `None` if no key is there.
    pub(crate) fn load(dir: &Path, mesh: &MeshName) -> Result<Option<Self>, KeyError> {
        let key = match NetworkKey::read(dir.join(KEY_FILE)) {
            Ok(key) => key,
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let stored = Stored::read(&dir.join(RING_FILE))?;
        Ok(Some(match stored {
            Some(ring) if ring.belongs_to(&key, mesh) => ring.into_ring(mesh),
            // No rotation yet, or somebody put another key in place of the one that the ring is about.
            _ => Self::new(mesh.clone(), key, 0),
        }))
    }

    /// A new ring in a folder that holds no key yet.
    ///
    /// # Errors
    /// [`KeyError::Exists`] if it holds one: it is left as it is.
    pub(crate) fn create(dir: &Path, mesh: &MeshName, key: NetworkKey) -> Result<Self, KeyError> {
        Self::new(mesh.clone(), key, 0).create_in(dir)
    }

    /// The ring of a ticket, in a folder that holds no key yet.
    ///
    /// # Errors
    /// [`KeyError::Exists`] if it holds one: it is left as it is.
    pub(crate) fn join(dir: &Path, ticket: &Ticket) -> Result<Self, KeyError> {
        Self::new(ticket.mesh().clone(), ticket.key().clone(), ticket.epoch()).create_in(dir)
    }

    fn create_in(self, dir: &Path) -> Result<Self, KeyError> {
        self.current.write_new(dir.join(KEY_FILE))?;
        self.write_ring(dir, None)?;
        Ok(self)
    }

    /// Stores the ring. At every moment in between, what stands there loads as the old ring or as this one.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), KeyError> {
        let path = dir.join(KEY_FILE);
        match NetworkKey::read(&path) {
            Ok(key) if key == self.current => {}
            // Two files cannot change at one stroke. The ring says which key file it overrules until that is replaced too.
            Ok(key) => {
                self.write_ring(dir, Some(&key))?;
                file::replace(&path, &self.current.to_file())?;
            }
            Err(KeyError::Io { source, .. }) if source.kind() != io::ErrorKind::NotFound => {
                return Err(KeyError::io("read", &path)(source));
            }
            // Missing, damaged or exposed: the key that is in force mends it.
            Err(_) => file::replace(&path, &self.current.to_file())?,
        }
        self.write_ring(dir, None)
    }

    fn write_ring(&self, dir: &Path, overrules: Option<&NetworkKey>) -> Result<(), KeyError> {
        let stored = Stored {
            version: VERSION,
            epoch: self.epoch,
            current: self.current.clone(),
            overrules: overrules.map(|key| key.fingerprint(&self.mesh)),
            previous_until: self.previous_until,
            without: self.without.iter().map(Identity::to_string).collect(),
            previous: self.previous.clone(),
        };
        stored.write(&dir.join(RING_FILE))
    }
}

/// The file beside the key file.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    epoch: u64,
    /// The key that all this is about, so that a key file replaced by hand is noticed.
    #[serde(with = "as_line")]
    current: NetworkKey,
    /// The fingerprint of the key file that is about to be replaced by `current`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overrules: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous_until: Option<u64>,
    #[serde(default)]
    without: Vec<String>,
    #[serde(default)]
    previous: Vec<Previous>,
}

impl Stored {
    fn read(path: &Path) -> Result<Option<Self>, KeyError> {
        let text = match file::read(path, MAX_FILE) {
            Ok(text) => text.unwrap_or_default(),
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        match toml::from_str(&text) {
            Ok(Versioned { version }) if version > VERSION => {
                return Err(KeyError::Bad { path: path.to_owned(), source: BadKey::Newer { version } });
            }
            Ok(_) => {}
            Err(error) => return Err(bad_ring(path, &text, &error)),
        }
        toml::from_str(&text).map(Some).map_err(|error| bad_ring(path, &text, &error))
    }

    fn write(&self, path: &Path) -> Result<(), KeyError> {
        let text = toml::to_string(self).map(Zeroizing::new);
        let text = text.expect("a struct of numbers and strings, each number far below TOML's limit, is TOML");
        file::replace(path, &Zeroizing::new(format!("{HEADER}{}", *text)))
    }

    fn belongs_to(&self, key: &NetworkKey, mesh: &MeshName) -> bool {
        self.current == *key || self.overrules.as_ref() == Some(&key.fingerprint(mesh))
    }

    /// Takes what fits: the file is ours, so what does not was put there by hand.
    fn into_ring(self, mesh: &MeshName) -> KeyRing {
        let mut ring = KeyRing::new(mesh.clone(), self.current, self.epoch);
        ring.previous_until = self.previous_until.map(|until| until.min(MAX_TIME));
        ring.previous = self.previous;
        ring.limit_previous();
        ring.without = self.without.iter().filter_map(|text| text.parse().ok()).take(MAX_EXCLUDED).collect();
        ring
    }
}

/// Where the file is damaged, without the parser's message, which quotes the text, keys and all.
fn bad_ring(path: &Path, text: &str, error: &toml::de::Error) -> KeyError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    KeyError::BadRing { path: path.to_owned(), line: before.matches('\n').count() + 1 }
}

/// A key in a private file, as the line that people know.
pub(super) mod as_line {
    use super::{Deserialize, Deserializer, NetworkKey, Serializer, Zeroizing, de};

    pub(in crate::keys::ring) fn serialize<S: Serializer>(key: &NetworkKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&key.to_line())
    }

    pub(in crate::keys::ring) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<NetworkKey, D::Error> {
        let line = Zeroizing::new(String::deserialize(deserializer)?);
        NetworkKey::parse_line(&line).map_err(de::Error::custom)
    }
}

const KEY_FILE: &str = "key";
const RING_FILE: &str = "key.ring";
const HEADER: &str = "# Kept by meshd. Holds the keys of this mesh: as secret as the file `key`.\n";
/// Of the ring file.
const VERSION: u32 = 1;
/// Bytes of a ring file: 1024 identities of 60 and three keys have about 65,000.
const MAX_FILE: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::super::tests::{HOUR, accepts, at, identity, key, mesh, same};
    use super::*;

    #[test]
    fn a_ring_reads_back_as_saved() {
        let home = TempDir::new().unwrap();
        let dir = home.path().join("lab");
        assert!(KeyRing::load(&dir, &mesh()).unwrap().is_none());
        let mut ring = KeyRing::create(&dir, &mesh(), key(1)).unwrap();
        assert!(matches!(KeyRing::create(&dir, &mesh(), key(2)), Err(KeyError::Exists { .. })));
        assert!(same(&KeyRing::load(&dir, &mesh()).unwrap().unwrap(), &ring));
        ring.rotate(Duration::ZERO, &[identity(1), identity(2)], at(0)).unwrap();
        ring.rotate(HOUR, &[], at(1)).unwrap();
        ring.save(&dir).unwrap();
        let loaded = KeyRing::load(&dir, &mesh()).unwrap().unwrap();
        assert!(same(&loaded, &ring));
        assert_eq!(accepts(&loaded, at(2)), accepts(&ring, at(2)));
        assert_eq!(NetworkKey::read(dir.join("key")).unwrap(), *ring.current());
        for file in fs::read_dir(&dir).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }

    #[test]
    fn a_save_cut_off_anywhere_loses_no_key() {
        let home = TempDir::new().unwrap();
        let dir = home.path();
        let mut ring = KeyRing::create(dir, &mesh(), key(1)).unwrap();
        ring.rotate(Duration::ZERO, &[], at(0)).unwrap();
        // Cut off after the first of its three writes.
        ring.write_ring(dir, Some(&key(1))).unwrap();
        assert!(same(&KeyRing::load(dir, &mesh()).unwrap().unwrap(), &ring));
        // After the second.
        file::replace(&dir.join("key"), &ring.current().to_file()).unwrap();
        assert!(same(&KeyRing::load(dir, &mesh()).unwrap().unwrap(), &ring));
        ring.save(dir).unwrap();
        // Not to be mistaken for it: somebody put the old key back by hand.
        file::replace(&dir.join("key"), &key(1).to_file()).unwrap();
        let restored = KeyRing::load(dir, &mesh()).unwrap().unwrap();
        assert_eq!((restored.current(), restored.epoch()), (&key(1), 0));
    }

    #[test]
    fn a_joined_ring_has_the_epoch_of_its_ticket() {
        let home = TempDir::new().unwrap();
        let ticket = Ticket::new(mesh(), key(4), 6, []);
        let ring = KeyRing::join(home.path(), &ticket).unwrap();
        assert_eq!((ring.epoch(), ring.mesh(), ring.current()), (6, &mesh(), &key(4)));
        assert!(same(&KeyRing::load(home.path(), &mesh()).unwrap().unwrap(), &ring));
    }

    #[test]
    fn a_damaged_ring_file_is_an_error_that_shows_no_key() {
        let home = TempDir::new().unwrap();
        let path = home.path().join("key.ring");
        KeyRing::create(home.path(), &mesh(), key(1)).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let line = key(1).to_line();
        let load = || KeyRing::load(home.path(), &mesh()).unwrap_err();
        for damaged in [
            good.replace("current", "currant"),
            good.replace(&*line, &line[..50]),
            good.replace("epoch = 0", &format!("epoch = \"{}\"", *line)),
            good.replace('"', ""),
            String::new(),
        ] {
            fs::write(&path, &damaged).unwrap();
            let error = load();
            assert!(matches!(error, KeyError::BadRing { .. }), "{error:?}");
            let shown = format!("{error} {error:?} {:?}", error.hint());
            assert!(!shown.contains(&line[12..30]), "{shown}");
        }
        fs::write(&path, "version = 2\n").unwrap();
        assert!(matches!(load(), KeyError::Bad { source: BadKey::Newer { version: 2 }, .. }));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(), KeyError::Exposed { mode: 0o640, .. }));
    }
}
