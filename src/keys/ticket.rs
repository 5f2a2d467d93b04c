//! What a new machine needs in order to join, as one line of text.

use data_encoding::BASE32_NOPAD_NOCASE;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::key::{self, NetworkKey};
use super::line::{self, Tagged};
use crate::mesh::MeshName;

/// An invitation: the mesh's name and key, and where to find it. **Holds the key**: as secret as that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket(Body);

/// A list on the wire, without field names: every byte is one and a half characters to copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Body(MeshName, #[serde(with = "key::bytes")] NetworkKey, u64, Vec<String>);

/// Why a text is not a ticket. Holds no part of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// Not even the beginning of one.
    #[error("this is not a ticket: a ticket starts with `meshd-ticket-1:`")]
    NotATicket,
    /// A format that this version does not know.
    #[error("the ticket was written by a newer meshd (format {version})")]
    Newer {
        /// The format's number.
        version: u32,
    },
    /// Mistyped, cut short, or with something added.
    #[error("the ticket is mistyped or cut short")]
    Damaged,
    /// Longer than any ticket.
    #[error("a ticket has at most {max} characters")]
    TooLong {
        /// The limit in bytes.
        max: usize,
    },
    /// Copied faithfully, but not made by meshd.
    #[error("the ticket holds what no ticket holds")]
    Invalid,
}

impl Ticket {
    /// An invitation to a mesh. `addresses` are hints, best first: the first 16 of up to 255 bytes are kept.
    #[must_use]
    pub fn new(mesh: MeshName, key: NetworkKey, epoch: u64, addresses: impl IntoIterator<Item = String>) -> Self {
        let addresses = addresses.into_iter().filter(|address| address.len() <= MAX_ADDRESS).take(MAX_ADDRESSES);
        Self(Body(mesh, key, epoch, addresses.collect()))
    }

    /// The mesh's name.
    #[must_use]
    pub const fn mesh(&self) -> &MeshName {
        &self.0.0
    }

    /// Its network key.
    #[must_use]
    pub const fn key(&self) -> &NetworkKey {
        &self.0.1
    }

    /// How often the key had been rotated.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.0.2
    }

    /// Where members were when the ticket was made.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.0.3
    }

    /// The ticket as a line of text.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<String> {
        // Room for the largest ticket: a vector that grows leaves copies of the key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_TEXT));
        ciborium::into_writer(&self.0, &mut *bytes).expect("a vector takes all bytes");
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        line::tagged(NAME, &bytes)
    }

    /// Reads a ticket. White space, as from a line that was wrapped, does not matter, nor does case after the `:`.
    ///
    /// # Errors
    /// The text is no ticket, was damaged on its way, or comes from a newer meshd.
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        if text.len() > MAX_TEXT {
            return Err(TicketError::TooLong { max: MAX_TEXT });
        }
        let mut line = Zeroizing::new(String::with_capacity(text.len()));
        line.extend(text.split_whitespace());
        let base32 = match line::untagged(NAME, &line) {
            Tagged::Ours(base32) => base32,
            Tagged::Newer(version) => return Err(TicketError::Newer { version }),
            Tagged::CutShort if !line.is_empty() => return Err(TicketError::Damaged),
            Tagged::CutShort | Tagged::Foreign => return Err(TicketError::NotATicket),
        };
        let bytes = BASE32_NOPAD_NOCASE.decode(base32.as_bytes()).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| TicketError::Damaged)?;
        let (mut body, found) = bytes.split_last_chunk().ok_or(TicketError::Damaged)?;
        if checksum(body) != *found {
            return Err(TicketError::Damaged);
        }
        let ticket: Body = ciborium::from_reader(&mut body).map_err(|_| TicketError::Invalid)?;
        let fits = ticket.3.len() <= MAX_ADDRESSES && ticket.3.iter().all(|address| address.len() <= MAX_ADDRESS);
        if fits && body.is_empty() { Ok(Self(ticket)) } else { Err(TicketError::Invalid) }
    }
}

impl TicketError {
    /// What to do about it, if there is something.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Newer { .. } => Some("install a newer meshd on this machine".to_owned()),
            Self::Damaged => Some("copy the ticket again, whole".to_owned()),
            Self::NotATicket | Self::TooLong { .. } | Self::Invalid => {
                Some("make a ticket on a machine of the mesh with `meshd invite`".to_owned())
            }
        }
    }
}

/// Against accidents, not attacks: whoever can change a ticket can make one.
fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    let mut hash = Sha256::new_with_prefix(NAME);
    hash.update(body);
    let [a, b, c, d, ..]: [u8; 32] = hash.finalize().into();
    [a, b, c, d]
}

const NAME: &str = "meshd-ticket-";
/// Bytes. One mistyped ticket in four billion passes.
const CHECKSUM: usize = 4;
/// Addresses in a ticket: a few interfaces of a few machines.
const MAX_ADDRESSES: usize = 16;
/// Bytes of an address: longer than any host name can be.
const MAX_ADDRESS: usize = 255;
/// Bytes of text: the largest ticket has about 6800.
const MAX_TEXT: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(addresses: &[String]) -> Ticket {
        let key = NetworkKey::from_bytes([9; 32]);
        Ticket::new(MeshName::new("lab").unwrap(), key, 3, addresses.iter().cloned())
    }

    fn encoded(body: &Body) -> Zeroizing<String> {
        Ticket(body.clone()).encode()
    }

    #[test]
    fn a_ticket_reads_back_as_written() {
        let ticket = ticket(&["/ip4/10.0.0.1/tcp/4001".to_owned(), "/dns/a.example/tcp/4001".to_owned()]);
        let line = ticket.encode();
        assert!(line.starts_with("meshd-ticket-1:"), "{}", line.as_str());
        assert_eq!(Ticket::parse(&line), Ok(ticket.clone()));
        let wrapped: String = line.chars().flat_map(|c| [Some(c), (c == 'a').then_some('\n')]).flatten().collect();
        assert_eq!(Ticket::parse(&format!("  {wrapped}\r\n")), Ok(ticket.clone()));
        let (name, base32) = line.split_once(':').unwrap();
        assert_eq!(Ticket::parse(&format!("{name}:{}", base32.to_ascii_uppercase())), Ok(ticket.clone()));
        assert_eq!((ticket.mesh().as_str(), ticket.epoch(), ticket.addresses().len()), ("lab", 3, 2));
        assert_eq!(*ticket.key(), NetworkKey::from_bytes([9; 32]));
    }

    #[test]
    fn every_typo_and_every_cut_is_noticed() {
        let line = ticket(&["/ip4/10.0.0.1/tcp/4001".to_owned()]).encode();
        let start = line.find(':').unwrap() + 1;
        for at in start..line.len() {
            let mut typo = line.to_string();
            let other = if typo.as_bytes()[at] == b'q' { "r" } else { "q" };
            typo.replace_range(at..=at, other);
            assert_eq!(Ticket::parse(&typo), Err(TicketError::Damaged), "typo at {at}");
            assert_eq!(Ticket::parse(&line[..at]), Err(TicketError::Damaged), "cut at {at}");
        }
        assert_eq!(Ticket::parse(&line[..10]), Err(TicketError::Damaged));
        assert_eq!(Ticket::parse(&format!("{}aaaaaaaa", *line)), Err(TicketError::Damaged));
    }

    #[test]
    fn other_versions_and_other_texts_are_told_apart() {
        assert_eq!(Ticket::parse("meshd-ticket-2:abc"), Err(TicketError::Newer { version: 2 }));
        for text in ["", "hello", "meshd-ticket-x:abc", "meshd-key-1:abc"] {
            assert_eq!(Ticket::parse(text), Err(TicketError::NotATicket), "{text}");
        }
        assert_eq!(Ticket::parse(&"a".repeat(MAX_TEXT + 1)), Err(TicketError::TooLong { max: MAX_TEXT }));
    }

    #[test]
    fn the_largest_ticket_fits_and_larger_ones_are_refused() {
        let mesh = MeshName::new("m".repeat(64)).unwrap();
        let key = NetworkKey::generate();
        let addresses = vec!["x".repeat(MAX_ADDRESS); MAX_ADDRESSES];
        let largest = Body(mesh.clone(), key.clone(), u64::MAX, addresses.clone());
        assert_eq!(Ticket::parse(&encoded(&largest)), Ok(Ticket(largest)));
        let many = Body(mesh.clone(), key.clone(), 0, vec![String::new(); MAX_ADDRESSES + 1]);
        assert_eq!(Ticket::parse(&encoded(&many)), Err(TicketError::Invalid));
        let long = Body(mesh.clone(), key.clone(), 0, vec!["x".repeat(MAX_ADDRESS + 1)]);
        assert_eq!(Ticket::parse(&encoded(&long)), Err(TicketError::Invalid));
        let hints = addresses.into_iter().chain(["y".repeat(MAX_ADDRESS + 1), "z".to_owned()]);
        assert_eq!(Ticket::new(mesh, key, 0, hints).addresses().len(), MAX_ADDRESSES);
    }

    #[test]
    fn debug_shows_no_key() {
        let shown = format!("{:?}", ticket(&[]));
        assert!(shown.contains("NetworkKey(…)") && !shown.contains("9, 9"), "{shown}");
    }
}
