//! Processes that outlive the one that started them.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::time::{Instant, sleep};

use crate::keeper::Keeper;

/// Processes whose parent is gone, as far as the system gives them to us instead of to its first process. Then they are known
/// when they end, and can be ended, wherever they went.
#[derive(Debug)]
pub(super) struct Orphans {
    /// What is not one: who keeps.
    keeper: Arc<Keeper>,
}

impl Orphans {
    /// From now on they are ours, if the system can do that and shows them to us.
    pub(super) fn adopt(keeper: Arc<Keeper>) -> Self {
        #[cfg(target_os = "linux")]
        // Where it is refused, the first process of the system has them, as ever.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        Self { keeper }
    }

    /// Takes note of the end of those that have ended, so that nothing is left of them. Those that are `known` are waited for
    /// elsewhere.
    pub(super) fn reap(&self, known: impl Fn(Pid) -> bool) {
        for child in self.children().into_iter().filter(|child| !known(*child)) {
            let _ = waitpid(Some(child), WaitOptions::NOHANG); // it runs on, or is gone
        }
    }

    /// Ends all that are left: those that went where their group's end did not reach them.
    pub(super) async fn end(&self) {
        let began = Instant::now();
        loop {
            self.reap(|_| false);
            let left = self.children();
            if left.is_empty() || began.elapsed() > 2 * GRACE {
                return;
            }
            let signal = if began.elapsed() < GRACE { Signal::TERM } else { Signal::KILL };
            for orphan in left {
                let _ = kill_process(orphan, signal); // or it is gone
            }
            sleep(LOOK).await; // then looks again, also for those that these leave; the deadline is 2 GRACE
        }
    }

    /// Those that may be orphans.
    fn children(&self) -> Vec<Pid> {
        let keeper = self.keeper.pid();
        children().into_iter().filter(|child| Some(*child) != keeper).collect()
    }
}

/// All processes that this one has to wait for.
fn children() -> Vec<Pid> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(pid).collect::<Vec<_>>()).collect()
}

fn pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}

/// Time to end in order, before they are ended without being asked; and then until nobody waits for them any more.
const GRACE: Duration = Duration::from_secs(1);
/// Between looks whether they are gone.
const LOOK: Duration = Duration::from_millis(20);
