//! The network key of a mesh, and what is derived from it.

use std::fmt;
use std::hint::black_box;
use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use hkdf::Hkdf;
use rand::Rng;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::error::{BadKey, KeyError};
use super::file;
use super::line::Kind;
use crate::mesh::MeshName;

/// The secret that makes a mesh: 32 random bytes. Who holds it is a member.
///
/// Wiped from memory when dropped, compared in constant time, never printed.
#[derive(Clone)]
pub struct NetworkKey(Zeroizing<[u8; 32]>);

/// Which key: enough to tell keys apart, nothing that opens a door. Stays on this machine.
pub(crate) type KeyId = [u8; 8];

/// What one key gives one mesh.
#[derive(Clone)]
pub(crate) struct Secrets {
    /// Labels the connections that came in by this key.
    pub(crate) key_id: KeyId,
    /// Proves membership.
    pub(crate) proof: Zeroizing<[u8; 32]>,
    /// Names the mesh in discovery: 13 characters of base32, lowercase.
    pub(crate) tag: String,
}

impl NetworkKey {
    /// A new random key.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(&mut *bytes);
        Self(bytes)
    }

    /// The key that a passphrase stands for in one mesh. Takes about a tenth of a second and 64 MiB, on purpose.
    ///
    /// Every byte counts: strip the line ending of a passphrase that was read from a file.
    ///
    /// # Errors
    /// The passphrase has fewer than 8 characters or more than 1024 bytes.
    pub fn from_passphrase(passphrase: &str, mesh: &MeshName) -> Result<Self, KeyError> {
        if passphrase.chars().count() < MIN_PASSPHRASE {
            return Err(KeyError::PassphraseTooShort { min: MIN_PASSPHRASE });
        }
        let too_long = || KeyError::PassphraseTooLong { max: MAX_PASSPHRASE };
        if passphrase.len() > MAX_PASSPHRASE {
            return Err(too_long());
        }
        // The same on all machines, so that all derive the same key. The constant alone is longer than Argon2's minimum.
        let salt = [PASSPHRASE_SALT, mesh.as_str().as_bytes()].concat();
        let mut bytes = Zeroizing::new([0; 32]);
        // With these parameters and this salt, only the passphrase's length could still be refused.
        Params::new(ARGON2_KIB, ARGON2_PASSES, ARGON2_LANES, Some(bytes.len()))
            .map(|params| Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
            .and_then(|argon2| argon2.hash_password_into(passphrase.as_bytes(), &salt, &mut *bytes))
            .map_err(|_| too_long())?;
        Ok(Self(bytes))
    }

    /// The key in a file that [`write_new`](Self::write_new) made.
    ///
    /// # Errors
    /// The file is missing, open to other users, or holds no key; [`KeyError::hint`] says what to do.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        let bad = |source| KeyError::Bad { path: path.to_owned(), source };
        let text = file::read(path, MAX_FILE)?.ok_or_else(|| bad(BadKey::Garbage { form: KIND.form }))?;
        Self::parse_line(&text).map_err(bad)
    }

    /// Writes the key to a new file that only its owner may read.
    ///
    /// # Errors
    /// [`KeyError::Exists`] if there is such a file: it is left as it is.
    pub fn write_new(&self, path: impl AsRef<Path>) -> Result<(), KeyError> {
        file::create(path.as_ref(), &self.to_file())
    }

    /// The key in a line `meshd-key-1:<base32>`.
    ///
    /// # Errors
    /// Says whether the line is cut short, from a newer meshd, or something else.
    pub fn parse_line(line: &str) -> Result<Self, BadKey> {
        KIND.parse(line).map(Self)
    }

    /// The key whose bytes these are. They must be random.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A short text by which people can compare keys: `0123-4567-89ab-cdef`. Differs between meshes.
    #[must_use]
    pub fn fingerprint(&self, mesh: &MeshName) -> String {
        fingerprint(&self.key_id(mesh))
    }

    /// What this key gives a mesh.
    pub(crate) fn secrets(&self, mesh: &MeshName) -> Secrets {
        let proof = self.derive(mesh, PROOF_LABEL);
        let tag = BASE32_NOPAD.encode(&*self.derive::<TAG_BYTES>(mesh, TAG_LABEL));
        Secrets { key_id: self.key_id(mesh), proof, tag: tag[..TAG_LEN].to_ascii_lowercase() }
    }

    pub(crate) fn key_id(&self, mesh: &MeshName) -> KeyId {
        *self.derive(mesh, KEY_ID_LABEL)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn to_line(&self) -> Zeroizing<String> {
        KIND.write(&self.0)
    }

    /// The line and its end.
    pub(super) fn to_file(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}\n", *self.to_line()))
    }

    fn derive<const N: usize>(&self, mesh: &MeshName, label: &[u8]) -> Zeroizing<[u8; N]> {
        let salt = [MESH_SALT, mesh.as_str().as_bytes()].concat();
        let mut bytes = Zeroizing::new([0; N]);
        let derived = Hkdf::<Sha256>::new(Some(&salt), self.as_bytes()).expand(label, &mut *bytes);
        derived.expect("HKDF gives up to 8160 bytes, and no more than 32 are asked of it");
        bytes
    }
}

/// A key id as people see it: 16 hex digits in groups of four.
pub(crate) fn fingerprint(key_id: &KeyId) -> String {
    key_id.chunks(2).map(|pair| HEXLOWER.encode(pair)).collect::<Vec<_>>().join("-")
}

impl PartialEq for NetworkKey {
    fn eq(&self, other: &Self) -> bool {
        let differing = self.0.iter().zip(other.0.iter()).fold(0, |bits, (a, b)| black_box(bits | (a ^ b)));
        differing == 0
    }
}

impl Eq for NetworkKey {}

impl fmt::Debug for NetworkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NetworkKey(…)")
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({}, …)", fingerprint(&self.key_id))
    }
}

/// A key as a byte string, for the two messages that carry one. The key itself is not `Serialize`, lest it slip into a third.
pub(super) mod bytes {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    use super::NetworkKey;

    pub(in crate::keys) fn serialize<S: Serializer>(key: &NetworkKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(key.as_bytes())
    }

    pub(in crate::keys) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NetworkKey, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = NetworkKey;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a key of 32 bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<NetworkKey, E> {
                bytes.try_into().map(NetworkKey::from_bytes).map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

const KIND: Kind = Kind { name: "meshd-key-", form: "meshd-key-1:<base32>" };
/// Bytes of a key file: one line of 64, and room for stray white space.
const MAX_FILE: usize = 256;

/// Changing any of these is a new format: the same passphrase would give another key.
const PASSPHRASE_SALT: &[u8] = b"meshd/passphrase/v1/";
const ARGON2_KIB: u32 = 64 * 1024;
const ARGON2_PASSES: u32 = 3;
const ARGON2_LANES: u32 = 1;
/// Characters. Below this, Argon2 does not help.
const MIN_PASSPHRASE: usize = 8;
/// Bytes. More than anyone types.
const MAX_PASSPHRASE: usize = 1024;

const MESH_SALT: &[u8] = b"meshd/mesh/v1/";
const PROOF_LABEL: &[u8] = b"meshd/auth/v1";
const KEY_ID_LABEL: &[u8] = b"meshd/key-id/v1";
const TAG_LABEL: &[u8] = b"meshd/mdns-tag/v1";
/// Characters of a tag, five bits each: with its prefix it fits the 15 characters of a DNS-SD service name.
const TAG_LEN: usize = 13;
/// Bytes that give at least [`TAG_LEN`] characters.
const TAG_BYTES: usize = 9;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mesh(name: &str) -> MeshName {
        MeshName::new(name).unwrap()
    }

    fn key(byte: u8) -> NetworkKey {
        NetworkKey::from_bytes([byte; 32])
    }

    /// The error that a file of this content gives.
    fn refused(content: &[u8]) -> KeyError {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        NetworkKey::read(&path).unwrap_err()
    }

    #[test]
    fn secrets_differ_between_meshes_and_between_keys() {
        let all = [
            key(1).secrets(&mesh("a")),
            key(1).secrets(&mesh("b")),
            key(2).secrets(&mesh("a")),
            NetworkKey::generate().secrets(&mesh("a")),
        ];
        for (i, one) in all.iter().enumerate() {
            assert_eq!(one.tag.len(), 13);
            assert!(one.tag.bytes().all(|c| matches!(c, b'a'..=b'z' | b'2'..=b'7')), "{}", one.tag);
            assert_ne!(one.proof[..8], one.key_id);
            for other in &all[i + 1..] {
                assert!(one.key_id != other.key_id && *one.proof != *other.proof && one.tag != other.tag);
            }
        }
        let again = key(1).secrets(&mesh("a"));
        assert!(again.key_id == all[0].key_id && *again.proof == *all[0].proof && again.tag == all[0].tag);
    }

    #[test]
    fn what_a_key_gives_is_fixed_for_all_versions() {
        let secrets = key(1).secrets(&mesh("default"));
        assert_eq!(fingerprint(&secrets.key_id), "14ed-3f83-995f-0413");
        assert_eq!(secrets.tag, "j7aqsbuxxft46");
        assert_eq!(
            HEXLOWER.encode(&*secrets.proof),
            "3c8f7f20e86b5b71723f1ad830e1e99a87ab920c0c3d5c0a629ab0e7b1c8ac7c"
        );
        assert_eq!(key(1).fingerprint(&mesh("default")), fingerprint(&secrets.key_id));
    }

    #[test]
    fn a_passphrase_gives_the_same_key_on_every_machine() {
        let key = NetworkKey::from_passphrase("correct horse", &mesh("default")).unwrap();
        assert_eq!(key.to_line().as_str(), "meshd-key-1:wje66rwxvzujx2olu7qqrnpjqth4xkglz46ch6svuh665ciave5q");
    }

    #[test]
    fn a_passphrase_that_can_be_guessed_is_refused() {
        for short in ["", "1234567", "\u{e9}\u{e9}\u{e9}\u{e9}"] {
            let refused = NetworkKey::from_passphrase(short, &mesh("a"));
            assert!(matches!(refused, Err(KeyError::PassphraseTooShort { min: 8 })), "{short}");
        }
        let long = "x".repeat(MAX_PASSPHRASE + 1);
        assert!(matches!(NetworkKey::from_passphrase(&long, &mesh("a")), Err(KeyError::PassphraseTooLong { .. })));
    }

    #[test]
    fn a_key_reads_back_as_written_and_is_never_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mesh/key");
        let key = NetworkKey::generate();
        key.write_new(&path).unwrap();
        assert_eq!(NetworkKey::read(&path).unwrap(), key);
        assert!(matches!(NetworkKey::generate().write_new(&path), Err(KeyError::Exists { .. })));
        assert_eq!(NetworkKey::read(&path).unwrap(), key);
        assert_eq!(
            NetworkKey::parse_line(&key.to_line().to_ascii_uppercase().replace("MESHD-KEY", "meshd-key")),
            Ok(key)
        );
    }

    #[test]
    fn a_key_file_that_others_can_touch_is_refused_with_the_command_that_mends_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key");
        key(1).write_new(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = NetworkKey::read(&path).unwrap_err();
            assert!(matches!(error, KeyError::Exposed { mode: found, .. } if found == mode), "{error}");
            assert_eq!(error.hint(), Some(format!("run `chmod 600 {}`", path.display())));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(NetworkKey::read(&path).unwrap(), key(1));
    }

    #[test]
    fn each_kind_of_bad_file_has_an_error_of_its_own() {
        let line = key(7).to_line();
        for len in [0, 5, 11, 12, 40, line.len() - 1] {
            let error = refused(&line.as_bytes()[..len]);
            let KeyError::Bad { source: BadKey::Truncated { found, expected: 64 }, .. } = error else {
                panic!("{len}: {error}")
            };
            assert_eq!(found, len);
        }
        for text in ["meshd-key-2:abcd", "meshd-key-12:"] {
            let error = refused(text.as_bytes());
            assert!(matches!(error, KeyError::Bad { source: BadKey::Newer { .. }, .. }), "{text}");
            assert!(error.hint().unwrap().contains("newer meshd"));
        }
        let wrong = [&line[..12], &"!".repeat(52)].concat();
        let two = [line.as_str(), "\n", line.as_str()].concat();
        let garbage: [&[u8]; 7] = [
            b"hello",
            b"meshd-key-0:a",
            b"meshd-key-x:a",
            b"\xff\xfe",
            wrong.as_bytes(),
            two.as_bytes(),
            b"meshd-ticket-1:a",
        ];
        for content in garbage {
            let error = refused(content);
            assert!(matches!(error, KeyError::Bad { source: BadKey::Garbage { .. }, .. }), "{error:?}");
        }
        assert!(matches!(refused(&[b'a'; 300]), KeyError::TooLong { .. }));
        let missing = NetworkKey::read("/nonexistent/key").unwrap_err();
        assert!(missing.hint().unwrap().contains("meshd key new"), "{missing}");
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", key(1)), "NetworkKey(…)");
        let secrets = key(1).secrets(&mesh("a"));
        assert_eq!(format!("{secrets:?}"), format!("Secrets({}, …)", key(1).fingerprint(&mesh("a"))));
        let error = format!("{:?}", refused(&key(1).to_line().as_bytes()[..50]));
        assert!(!error.contains(&key(1).to_line()[12..30]), "{error}");
    }
}
