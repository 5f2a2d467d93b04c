//! What sees to it that nothing is left running or lying about when this process is killed.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use rustix::process::Pid;
use tokio::process::Command;
use tracing::warn;

/// A small process of its own that knows which process groups run. When we end, in whatever way, it ends them, and removes the
/// directory with the programs that were sent along. It starts with the first one.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Where programs that are sent along lie, if there is one.
    scripts: PathBuf,
    to: Mutex<Option<File>>,
}

impl Keeper {
    pub(super) fn new() -> Self {
        let name = format!("meshd-exec-{}-{:016x}", std::process::id(), rand::random::<u64>());
        Self { scripts: std::env::temp_dir().join(name), to: Mutex::default() }
    }

    /// A new directory for one program, closed to others. The keeper removes it at the latest.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn directory(&self) -> io::Result<PathBuf> {
        self.ready()?; // before there is something to remove
        let mut private = DirBuilder::new();
        private.mode(0o700);
        match private.create(&self.scripts) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let place = self.scripts.join(format!("{:016x}", rand::random::<u64>()));
        private.create(&place)?;
        Ok(place)
    }

    /// Has the keeper running, so that it can be told of what is started next.
    ///
    /// # Errors
    /// It cannot be started: then nothing else should be.
    pub(super) fn ready(&self) -> io::Result<()> {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keeper) = to.as_mut()
            && writeln!(keeper, "there?").is_ok()
        {
            return Ok(());
        }
        *to = Some(start(&self.scripts)?);
        Ok(())
    }

    /// A group runs.
    pub(super) fn started(&self, group: Pid) {
        self.note("start", group);
    }

    /// A group is gone.
    pub(super) fn ended(&self, group: Pid) {
        self.note("end", group);
    }

    /// Nobody is there any more who would end this group.
    pub(super) fn left(&self, group: Pid) {
        self.note("left", group);
    }

    fn note(&self, what: &str, group: Pid) {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        // Short lines into a pipe that is read at once.
        let told = to.as_mut().map(|keeper| writeln!(keeper, "{what} {}", group.as_raw_pid()));
        if !matches!(told, Some(Ok(()))) {
            warn!(%group, what, "who ends programs when this process is killed is gone itself");
        }
    }
}

fn start(scripts: &Path) -> io::Result<File> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(KEEP).arg("meshd-keeper").arg(scripts).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // Not with us: what is typed at our terminal, or kills our group, is not for it.
    let mut child = command.process_group(0).spawn()?;
    let stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    Ok(File::from(stdin.into_owned_fd()?)) // from here on, writes block: for short lines to who reads at once
}

/// What the keeper does. 50 times 0.1 s is the grace that `run` gives too.
const KEEP: &str = r#"
trap '' INT TERM HUP QUIT
end() {
    kill -s TERM -- "-$1" 2>/dev/null || return 0
    n=0
    while [ $n -lt 50 ] && kill -s 0 -- "-$1" 2>/dev/null; do sleep 0.1; n=$((n + 1)); done
    kill -s KILL -- "-$1" 2>/dev/null
}
groups=' '
while read -r what group; do
    case $what in
        start) groups="$groups$group " ;;
        end) groups="${groups%% $group *} ${groups#* $group }" ;;
        left) groups="${groups%% $group *} ${groups#* $group }"; end "$group" & ;;
    esac
done
for group in $groups; do end "$group" & done
wait
rm -rf -- "$1"
"#;

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn deaf() -> tokio::process::Child {
        Command::new("sleep").arg("1000").process_group(0).spawn().unwrap()
    }

    fn group(child: &tokio::process::Child) -> Pid {
        Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn what_runs_when_its_owner_is_gone_is_ended_and_what_lies_there_removed() {
        let keeper = Keeper::new();
        let place = keeper.directory().unwrap();
        let scripts = keeper.scripts.clone();
        std::fs::write(place.join("program"), "").unwrap();
        let (mut one, mut two, mut three) = (deaf(), deaf(), deaf());
        for child in [&one, &two, &three] {
            keeper.started(group(child));
        }
        keeper.ended(group(&two));
        keeper.left(group(&three));
        let soon = Duration::from_secs(10);
        assert_eq!(timeout(soon, three.wait()).await.unwrap().unwrap().signal(), Some(15));
        assert!(one.try_wait().unwrap().is_none(), "it has an owner");
        drop(keeper);
        assert_eq!(timeout(soon, one.wait()).await.unwrap().unwrap().signal(), Some(15));
        assert!(two.try_wait().unwrap().is_none(), "it was said to be gone");
        two.kill().await.unwrap();
        let gone = async {
            while scripts.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await; // looks again; the deadline is `soon`
            }
        };
        timeout(soon, gone).await.unwrap();
    }
}
