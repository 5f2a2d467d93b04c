//! The peer cache: addresses of the peers linked in the last run, tried at start.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use libp2p::Multiaddr;

use super::{is_dialable, without_peer, write_atomically};

/// The addresses in the file, in its order. A missing file is an empty one, and bad lines are skipped.
///
/// # Errors
/// The file is there but cannot be read.
pub(crate) fn load(path: &Path) -> io::Result<Vec<Multiaddr>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_BYTES).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(distinct(String::from_utf8_lossy(&bytes).lines().filter_map(|line| line.trim().parse().ok())))
}

/// Replaces the file by these addresses, the first [`MAX_CACHED`] of them.
///
/// # Errors
/// The file could not be written; the old one, if any, is still there.
pub(crate) fn save(path: &Path, addresses: impl IntoIterator<Item = Multiaddr>) -> io::Result<()> {
    let lines: String = distinct(addresses).iter().map(|address| format!("{address}\n")).collect();
    write_atomically(path, lines.as_bytes())
}

/// Addresses without the peer ids, which will not come back, and each once.
fn distinct(addresses: impl IntoIterator<Item = Multiaddr>) -> Vec<Multiaddr> {
    let mut seen = HashSet::new();
    let addresses = addresses.into_iter().map(without_peer);
    addresses.filter(|address| is_dialable(address) && seen.insert(address.clone())).take(MAX_CACHED).collect()
}

/// Most addresses in the file: each is one dial at start.
const MAX_CACHED: usize = 256;
/// What is read of the file: far more than 256 addresses need.
const MAX_BYTES: u64 = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_saved_is_loaded() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("peers");
        assert_eq!(load(&path).unwrap(), []);
        let a: Multiaddr = "/ip4/10.0.0.1/tcp/4001".parse().unwrap();
        let b: Multiaddr = "/dns4/host.example/tcp/4001".parse().unwrap();
        save(&path, [a.clone(), b.clone(), a.clone()]).unwrap();
        assert_eq!(load(&path).unwrap(), [a, b]);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn bad_lines_are_skipped() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("peers");
        fs::write(&path, b"nonsense\n\n/ip4/0.0.0.0/tcp/1\n\xff\xfe\n /ip4/10.0.0.1/tcp/4001 \n/ip4/10.0.0.2/t")
            .unwrap();
        assert_eq!(load(&path).unwrap(), ["/ip4/10.0.0.1/tcp/4001".parse().unwrap()]);
    }

    #[test]
    fn the_file_is_bounded() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("peers");
        save(&path, (1..=1000).map(|port| format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap())).unwrap();
        assert_eq!(load(&path).unwrap().len(), MAX_CACHED);
    }
}
