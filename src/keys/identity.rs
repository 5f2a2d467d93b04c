//! Keys that sign: the lasting one of a home, and the one of a run.

use std::fmt;
use std::path::Path;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand::Rng;
use zeroize::Zeroizing;

use super::error::{BadKey, KeyError};
use super::file;
use super::line::Kind;
use crate::mesh::{Identity, PeerId};

/// The lasting Ed25519 key of a home. Wiped from memory when dropped, never printed.
#[derive(Clone)]
pub struct IdentityKey(SigningKey);

/// The Ed25519 key of one run of one process: the peer id's. Wiped from memory when dropped, never printed.
pub(crate) struct RunKey(SigningKey);

impl IdentityKey {
    /// A new identity, which lasts as long as this value.
    #[must_use]
    pub fn generate() -> Self {
        Self(random())
    }

    /// The identity in a file, made on first use. Processes that start at once get the same one.
    ///
    /// # Errors
    /// The file cannot be read or made, is open to other users, or holds no identity; [`KeyError::hint`] says what to do.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        match Self::read(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            read => return read,
        }
        let new = Self::generate();
        let line = Zeroizing::new(format!("{}\n", *KIND.write(new.0.as_bytes())));
        match file::create(path, &line) {
            Ok(()) => Ok(new),
            // Another process was quicker: its identity is the home's.
            Err(KeyError::Exists { .. }) => Self::read(path),
            Err(error) => Err(error),
        }
    }

    /// The public half.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// Signs a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    fn read(path: &Path) -> Result<Self, KeyError> {
        let bad = |source| KeyError::Bad { path: path.to_owned(), source };
        let text = file::read(path, MAX_FILE)?.ok_or_else(|| bad(BadKey::Garbage { form: KIND.form }))?;
        KIND.parse(&text).map(|bytes| Self(SigningKey::from_bytes(&bytes))).map_err(bad)
    }
}

impl RunKey {
    /// A new key, for this run.
    pub(crate) fn generate() -> Self {
        Self(random())
    }

    /// The public half.
    pub(crate) fn peer_id(&self) -> PeerId {
        PeerId::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// Signs a message.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The secret half, for the transport, which signs its handshakes by it.
    pub(crate) fn secret_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }
}

/// Whether the holder of a public key signed this message. Keys of small order, which fit any message, are refused.
pub(crate) fn verify(public: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    let signature = Signature::from_bytes(signature);
    VerifyingKey::from_bytes(public).is_ok_and(|public| public.verify_strict(message, &signature).is_ok())
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({}, …)", self.identity())
    }
}

impl fmt::Debug for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunKey({}, …)", self.peer_id())
    }
}

fn random() -> SigningKey {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::rng().fill_bytes(&mut *bytes);
    SigningKey::from_bytes(&bytes)
}

const KIND: Kind = Kind { name: "meshd-identity-", form: "meshd-identity-1:<base32>" };
/// Bytes of an identity file: one line of 69, and room for stray white space.
const MAX_FILE: usize = 256;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    #[test]
    fn a_home_keeps_its_identity() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("identity");
        let first = IdentityKey::load_or_create(&path).unwrap().identity();
        assert_eq!(IdentityKey::load_or_create(&path).unwrap().identity(), first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(IdentityKey::generate().identity(), first);
    }

    #[test]
    fn processes_that_start_at_once_agree_on_one_identity() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("identity");
        let start = Barrier::new(8);
        let identities: BTreeSet<_> = thread::scope(|scope| {
            let create = || {
                start.wait();
                IdentityKey::load_or_create(&path).unwrap().identity()
            };
            let all: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(identities.len(), 1);
    }

    #[test]
    fn a_damaged_or_exposed_identity_is_refused_not_replaced() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("identity");
        IdentityKey::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(IdentityKey::load_or_create(&path), Err(KeyError::Exposed { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for (text, why) in [
            ("meshd-identity-1:abc", BadKey::Truncated { found: 20, expected: 69 }),
            ("meshd-identity-2:abc", BadKey::Newer { version: 2 }),
            ("meshd-key-1:abc", BadKey::Garbage { form: KIND.form }),
        ] {
            fs::write(&path, text).unwrap();
            let error = IdentityKey::load_or_create(&path).unwrap_err();
            assert!(matches!(error, KeyError::Bad { source, .. } if source == why), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn signatures_hold_for_their_key_and_message_only() {
        let (identity, run) = (IdentityKey::generate(), RunKey::generate());
        let signature = identity.sign(b"hello");
        assert!(verify(identity.identity().as_bytes(), b"hello", &signature));
        assert!(!verify(identity.identity().as_bytes(), b"hullo", &signature));
        assert!(!verify(run.peer_id().as_bytes(), b"hello", &signature));
        assert!(verify(run.peer_id().as_bytes(), b"hello", &run.sign(b"hello")));
        // The neutral element as key, and a signature that plain verification takes for any message.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut forged = [0; 64];
        forged[0] = 1;
        assert!(!verify(&neutral, b"hello", &forged));
    }

    #[test]
    fn debug_shows_no_key() {
        let run = RunKey(SigningKey::from_bytes(&[77; 32]));
        let identity = IdentityKey(SigningKey::from_bytes(&[77; 32]));
        assert_eq!(format!("{run:?}"), format!("RunKey({}, …)", run.peer_id()));
        assert_eq!(format!("{identity:?}"), format!("IdentityKey({}, …)", identity.identity()));
        assert_eq!(*run.secret_bytes(), [77; 32]);
    }
}
