//! What sees to it that no process group outlives us.

use std::io::{self, Write};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Pid;

/// A small process that ends all groups if we are gone without having done so, because we were killed.
#[derive(Debug)]
pub(crate) struct Keeper(Child);

impl Keeper {
    /// Starts one. Groups have `grace`, in whole seconds, to end in order; the last noted is asked first.
    pub(crate) fn start(grace: Duration) -> io::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", KEEP, "sh"]).arg(grace.as_secs().to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Not with us: what is typed at our terminal, or kills our group, is not for it.
        command.process_group(0).spawn().map(Self)
    }

    pub(super) fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.0.id()).ok()?)
    }

    /// A group runs.
    pub(crate) fn started(&self, group: Pid) {
        self.note("start", group);
    }

    /// A group has ended.
    pub(crate) fn ended(&self, group: Pid) {
        self.note("end", group);
    }

    fn note(&self, what: &str, group: Pid) {
        if let Some(mut to) = self.0.stdin.as_ref() {
            // Without it, what is left behind when we are killed stays.
            let _ = writeln!(to, "{what} {}", group.as_raw_pid());
        }
    }
}

/// What the keeper does: it notes which groups run, until the other end of its stdin is gone.
const KEEP: &str = r#"
trap '' INT TERM HUP
groups=' '
while read -r what group; do
    case $what in
        start) groups=" $group$groups" ;;
        end) groups="${groups%% $group *} ${groups#* $group }" ;;
    esac
done
set -- "$1" $groups
grace=$1
shift
[ $# -gt 0 ] || exit 0
for group do kill -s TERM -- "-$group"; done
while [ "$grace" -gt 0 ]; do
    sleep 1
    grace=$((grace - 1))
    left=
    for group do kill -s 0 -- "-$group" && left=yes; done
    [ "$left" ] || exit 0
done
for group do kill -s KILL -- "-$group"; done
"#;
