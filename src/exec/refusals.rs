//! What is logged of those who ask in vain: so much of each, and how often they did besides. Whoever is in the mesh can ask as
//! often as it likes, and the log lies on a disk.

use std::collections::HashMap;
use std::mem;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::info;

use crate::mesh::PeerId;

/// Who asked in vain in this minute.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Minute>);

#[derive(Debug, Default)]
struct Minute {
    of: HashMap<PeerId, Asked>,
    /// How often those did of whom nothing is kept.
    others: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Asked {
    who: String,
    logged: u32,
    left_out: u64,
}

impl Refusals {
    /// Counts a request that came to nothing. Whether it is to be logged: else it is part of what [`sum_up`](Self::sum_up) says.
    pub(super) fn is_logged(&self, peer: PeerId, who: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).count(peer, who)
    }

    /// Logs how often somebody asked besides what was logged, and begins a new minute.
    pub(super) fn sum_up(&self) {
        let minute = mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for (peer, Asked { who, left_out, .. }) in minute.of.into_iter().filter(|(_, asked)| asked.left_out > 0) {
            info!(who, %peer, left_out, "programs were not run for another, more often than is logged");
        }
        if minute.others > 0 {
            info!(left_out = minute.others, "programs were not run for others, more often than is logged");
        }
    }
}

impl Minute {
    fn count(&mut self, peer: PeerId, who: &str) -> bool {
        if self.of.len() >= MAX_PEERS && !self.of.contains_key(&peer) {
            self.others += 1;
            return false;
        }
        let asked = self.of.entry(peer).or_insert_with(|| Asked { who: who.to_owned(), logged: 0, left_out: 0 });
        let is_logged = asked.logged < MAX_LOGGED;
        match is_logged {
            true => asked.logged += 1,
            false => asked.left_out += 1,
        }
        is_logged
    }
}

/// Between two sums.
pub(super) const MINUTE: Duration = Duration::from_secs(60);
/// Lines about one peer in that time: enough to see what it is after.
const MAX_LOGGED: u32 = 10;
/// Peers of whom anything is logged in that time: with the above, this bounds the log at about 2 MiB a minute.
const MAX_PEERS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::kit::peer;

    #[test]
    fn so_much_of_each_is_logged_and_the_rest_is_counted() {
        let mut minute = Minute::default();
        let logged =
            |minute: &mut Minute, peer, times: usize| (0..times).filter(|_| minute.count(peer, "id1-x")).count();
        assert_eq!(logged(&mut minute, peer(1), 1000), 10);
        assert_eq!(logged(&mut minute, peer(2), 3), 3, "who floods hides nobody else");
        assert_eq!(minute.of[&peer(1)], Asked { who: "id1-x".to_owned(), logged: 10, left_out: 990 });
        assert_eq!(minute.of[&peer(2)].left_out, 0);
    }

    #[test]
    fn what_is_kept_of_many_peers_is_bounded() {
        let mut minute = Minute::default();
        let logged = (0..=255).filter(|n| minute.count(peer(*n), "")).count();
        assert_eq!((logged, minute.of.len(), minute.others), (MAX_PEERS, MAX_PEERS, 256 - MAX_PEERS as u64));
        assert!(minute.count(peer(0), ""), "who is known is known");
    }

    #[test]
    fn after_a_sum_everybody_is_logged_again() {
        let refusals = Refusals::default();
        while refusals.is_logged(peer(1), "") {}
        refusals.sum_up();
        assert!(refusals.is_logged(peer(1), ""));
    }
}
