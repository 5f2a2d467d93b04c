//! What sees to it that nothing is left running or lying about when this process is killed.

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Pid;
use tracing::warn;

/// A small process of its own that knows which process groups run. When we end, in whatever way, it asks them to end, the last
/// started first, kills those that have not after a grace, and removes the directory with the programs that were sent along.
///
/// It starts when it is needed first, and again if it is gone itself.
#[derive(Debug)]
pub(crate) struct Keeper {
    grace: Duration,
    /// Where programs that are sent along lie, if there is one.
    scripts: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    process: Option<Child>,
    /// What runs: whoever takes the place of a keeper that is gone has to know.
    groups: Vec<Pid>,
}

impl Keeper {
    /// Groups have `grace`, in tenths of a second, to end in order.
    pub(crate) fn new(grace: Duration) -> Self {
        let name = format!("meshd-exec-{}-{:016x}", std::process::id(), rand::random::<u64>());
        Self { grace, scripts: std::env::temp_dir().join(name), kept: Mutex::default() }
    }

    /// A new directory for one program, closed to others. The keeper removes it at the latest.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn directory(&self) -> io::Result<PathBuf> {
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
    pub(crate) fn ready(&self) -> io::Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        self.say(&mut kept, "there?\n")
    }

    /// Its process, if there is one.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        Pid::from_raw(i32::try_from(kept.process.as_ref()?.id()).ok()?)
    }

    /// A group runs.
    pub(crate) fn started(&self, group: Pid) {
        self.note("start", group);
    }

    /// A group is gone.
    pub(crate) fn ended(&self, group: Pid) {
        self.note("end", group);
    }

    /// Nobody is there any more who would end this group.
    pub(crate) fn left(&self, group: Pid) {
        self.note("left", group);
    }

    fn note(&self, what: &str, group: Pid) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let said = self.say(&mut kept, &format!("{what} {}\n", group.as_raw_pid()));
        match what {
            "start" => kept.groups.push(group),
            _ => kept.groups.retain(|known| *known != group),
        }
        if let Err(error) = said {
            warn!(%group, what, %error, "who ends programs when this process is killed is gone itself");
        }
    }

    /// Says a line: to a new keeper, which is told what runs first, if there is none or it is gone.
    fn say(&self, kept: &mut Kept, line: &str) -> io::Result<()> {
        // Short lines, each at one stroke, into a pipe that is read at once.
        let told = |keeper: &mut Child, lines: &str| match keeper.stdin.as_mut() {
            Some(stdin) => stdin.write_all(lines.as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        if let Some(keeper) = &mut kept.process
            && matches!(keeper.try_wait(), Ok(None))
            && told(keeper, line).is_ok()
        {
            return Ok(());
        }
        let keeper = kept.process.insert(start(&self.scripts, self.grace)?);
        kept.groups.iter().try_for_each(|group| told(keeper, &format!("start {}\n", group.as_raw_pid())))?;
        told(keeper, line)
    }
}

fn start(scripts: &Path, grace: Duration) -> io::Result<Child> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(KEEP).arg("meshd-keeper").arg(scripts).arg((grace.as_millis() / 100).to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // Not with us: what is typed at our terminal, or kills our group, is not for it.
    command.current_dir("/").process_group(0).spawn()
}

/// What the keeper does, until the other end of its stdin is gone.
const KEEP: &str = r#"
trap '' INT TERM HUP QUIT
grace=$2
end() {
    for group do kill -s TERM -- "-$group"; done
    left=$grace
    while [ "$left" -gt 0 ]; do
        some=
        for group do kill -s 0 -- "-$group" && some=yes; done
        [ "$some" ] || return 0
        sleep 0.1
        left=$((left - 1))
    done
    for group do kill -s KILL -- "-$group"; done
}
forget() {
    case $groups in *" $1 "*) groups="${groups%% $1 *} ${groups#* $1 }" ;; esac
}
groups=' '
while read -r what group; do
    case $what in
        start) groups=" $group$groups" ;;
        end) forget "$group" ;;
        left) forget "$group"; end "$group" & ;;
    esac
done
end $groups
wait
rm -rf -- "$1"
"#;

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use rustix::process::{Signal, kill_process, kill_process_group};
    use tokio::io::AsyncReadExt;
    use tokio::process::{Child, Command};
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn sleeps() -> Child {
        Command::new("sleep").arg("1000").process_group(0).spawn().unwrap()
    }

    fn group(child: &Child) -> Pid {
        Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn what_runs_when_its_owner_is_gone_is_ended_and_what_lies_there_removed() {
        let keeper = Keeper::new(SOON);
        let place = keeper.directory().unwrap();
        let scripts = keeper.scripts.clone();
        std::fs::write(place.join("program"), "").unwrap();
        let (mut one, mut two, mut three) = (sleeps(), sleeps(), sleeps());
        for child in [&one, &two, &three] {
            keeper.started(group(child));
        }
        keeper.ended(group(&two));
        keeper.left(group(&three));
        assert_eq!(timeout(SOON, three.wait()).await.unwrap().unwrap().signal(), Some(15));
        assert!(one.try_wait().unwrap().is_none(), "it has an owner");
        drop(keeper);
        assert_eq!(timeout(SOON, one.wait()).await.unwrap().unwrap().signal(), Some(15));
        assert!(two.try_wait().unwrap().is_none(), "it was said to be gone");
        two.kill().await.unwrap();
        let gone = async {
            while scripts.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await; // looks again; the deadline is SOON
            }
        };
        timeout(SOON, gone).await.unwrap();
    }

    #[tokio::test]
    async fn who_does_not_end_when_its_owner_is_gone_is_killed_after_a_grace() {
        let mut command = Command::new("sh");
        command.arg("-c").arg("trap '' TERM; echo on; while :; do sleep 1; done").process_group(0);
        let mut deaf = command.stdout(Stdio::piped()).spawn().unwrap();
        deaf.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).await.unwrap(); // it is deaf now
        let keeper = Keeper::new(Duration::from_millis(300));
        keeper.started(group(&deaf));
        drop(keeper);
        assert_eq!(timeout(SOON, deaf.wait()).await.unwrap().unwrap().signal(), Some(9));
    }

    #[tokio::test]
    async fn a_keeper_that_is_killed_is_followed_by_one_that_knows_what_runs() {
        let keeper = Keeper::new(SOON);
        let (mut one, mut two, mut three) = (sleeps(), sleeps(), sleeps());
        keeper.started(group(&one));
        keeper.started(group(&two));
        keeper.ended(group(&two));
        keeper.ended(group(&two)); // said twice, it is gone all the same
        let first = keeper.pid().unwrap();
        kill_process(first, Signal::KILL).unwrap();
        let gone = async {
            while keeper.pid() == Some(first) {
                keeper.ready().unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await; // looks again; the deadline is SOON
            }
        };
        timeout(SOON, gone).await.unwrap();
        keeper.started(group(&three));
        drop(keeper);
        for child in [&mut one, &mut three] {
            assert_eq!(timeout(SOON, child.wait()).await.unwrap().unwrap().signal(), Some(15));
        }
        assert!(two.try_wait().unwrap().is_none());
        kill_process_group(group(&two), Signal::KILL).unwrap();
        two.wait().await.unwrap();
    }
}
