//! The command line: what was typed, what was meant, the work. Described in docs/CLI.md.

mod args;
mod bench;
mod calls;
mod client;
mod exec;
mod files;
mod halt;
mod jobs;
mod keys;
mod launch;
mod listen;
mod manual;
mod output;
mod payload;
mod recording;
mod run;
mod send;
mod serve;
mod status;
mod stop;
mod trouble;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::args::{Args, Command, Global};
use self::output::{Output, Talk};
use self::trouble::{Exit, Trouble};
use crate::config::{ConfigError, Home};
use crate::mesh::MeshName;

/// Parses the arguments of this process, does what they say and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let Args { global, command } = match Args::read() {
        Ok(args) => args,
        Err(error) => {
            let shown = error.print(); // Help and version are errors too, for clap; they go to stdout.
            let code = if shown.is_ok() { error.exit_code() } else { 0 };
            return ExitCode::from(u8::try_from(code).unwrap_or(2));
        }
    };
    let talk = Talk::new(global.color);
    start_logging(&global, &command, talk);
    let exit = work(&global, command, talk).unwrap_or_else(|trouble| talk.trouble(trouble));
    ExitCode::from(exit.code())
}

fn work(global: &Global, command: Command, talk: Talk) -> Result<Exit, Trouble> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // What is measured is what programs get that take tokio as it comes.
    if !matches!(command, Command::Bench(_) | Command::BenchPeer) {
        runtime.worker_threads(workers());
    }
    let runtime = runtime.enable_all().build().map_err(|error| Trouble::failed("cannot start", &error))?;
    let exit = runtime.block_on(async {
        let mut out = Output::new(global, talk);
        let exit = perform(global, command, &mut out).await;
        let flushed = out.flush(); // What was printed before something went wrong is data too.
        exit.and_then(|exit| flushed.map(|()| exit))
    });
    // A read from a terminal cannot be interrupted: do not wait for it.
    runtime.shutdown_background();
    exit
}

/// A worker for every two cores. A link's tasks hand each other what they have in small pieces, which is a quarter faster on one
/// core than across two; and the other half is for the programs on this machine, and for files, which threads of their own read.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

async fn perform(global: &Global, command: Command, out: &mut Output) -> Result<Exit, Trouble> {
    let place = || Place::find(global);
    match command {
        Command::Run(args) => run::run(place()?, args, out).await,
        Command::Key(command) => keys::key(place()?, command, out).await,
        Command::Invite => keys::invite(place()?, out).await,
        Command::Join(args) => keys::join(place()?, global.mesh.as_ref(), &args, out).await,
        Command::Identity => keys::identity(&place()?, out),
        Command::Status => status::status(place()?, out).await,
        Command::Peers => status::peers(place()?, out).await,
        Command::Nodes => status::nodes(place()?, out).await,
        Command::Topics => status::topics(place()?, out).await,
        Command::Watch(args) => status::watch(place()?, &args, out).await,
        Command::Ping(args) => status::ping(place()?, args, out).await,
        Command::Bench(args) => bench::bench(args, out).await,
        Command::BenchPeer => bench::peer(out).await,
        Command::Config => status::config(place()?, out).await,
        Command::Send(args) => send::send(place()?, args, out).await,
        Command::Listen(args) => listen::listen(place()?, args, out).await,
        Command::Call(args) => calls::call(place()?, args, out).await,
        Command::Serve(args) => serve::serve(place()?, args, out).await,
        Command::Services => calls::services(place()?, out).await,
        Command::Ls(args) => files::ls(place()?, args, out).await,
        Command::Get(args) => files::get(place()?, args, out).await,
        Command::Put(args) => files::put(place()?, args, out).await,
        Command::Sync(args) => files::sync(place()?, args, out).await,
        Command::Exec(args) => exec::exec(place()?, args, out).await,
        Command::Launch(args) => launch::launch(global, args, out).await,
        Command::Record(args) => recording::record(place()?, args, out).await,
        Command::Play(args) => recording::play(place()?, args, out).await,
        Command::Info(args) => recording::info(&args, out),
        Command::Stop(args) => halt::stop(place()?, args, out).await,
        Command::Completions { shell } => manual::completions(shell, out),
        Command::Man { dir } => manual::man(dir.as_deref(), out),
    }
}

/// Which mesh of which home: what a daemon serves.
#[derive(Clone, Debug)]
struct Place {
    home: Home,
    mesh: MeshName,
    /// How to say so on a command line: nothing for what is so anyway.
    options: String,
}

impl Place {
    fn find(global: &Global) -> Result<Self, ConfigError> {
        Self::of(global.home.clone(), global.mesh.clone())
    }

    /// This home and mesh, or those by default.
    fn of(home: Option<PathBuf>, mesh: Option<MeshName>) -> Result<Self, ConfigError> {
        let mesh = mesh.unwrap_or_else(default_mesh);
        Ok(Self { options: options(home.as_deref(), &mesh), home: Home::find(home)?, mesh })
    }

    /// A command that concerns this place, to be pasted into a shell.
    fn command(&self, verb: &str) -> String {
        format!("meshd{} {verb}", self.options)
    }

    /// The same home, another mesh.
    fn with_mesh(&self, global_mesh: Option<&MeshName>, mesh: &MeshName) -> Self {
        let options = match (global_mesh, *mesh == default_mesh()) {
            (None, false) => format!("{} --mesh {mesh}", self.options),
            _ => self.options.clone(),
        };
        Self { home: self.home.clone(), mesh: mesh.clone(), options }
    }
}

fn default_mesh() -> MeshName {
    MeshName::new(DEFAULT_MESH).expect("a plain name")
}

fn options(home: Option<&Path>, mesh: &MeshName) -> String {
    // What comes from the environment holds for the next command too.
    let said = |variable: &str, value: &OsStr| std::env::var_os(variable).is_none_or(|inherited| inherited != value);
    let home = home.filter(|home| said("MESHD_HOME", home.as_os_str()));
    let home = home.map(|home| format!(" --home {}", quoted(&home.display().to_string())));
    let mesh = (mesh.as_str() != DEFAULT_MESH && said("MESHD_MESH", mesh.as_str().as_ref()))
        .then(|| format!(" --mesh {mesh}"));
    format!("{}{}", home.unwrap_or_default(), mesh.unwrap_or_default())
}

/// A text as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// What the daemon logs is of interest; what happens behind a verb only if it goes wrong.
fn start_logging(global: &Global, command: &Command, talk: Talk) {
    let ours = match (global.verbose, command) {
        (true, _) => LevelFilter::DEBUG,
        (false, Command::Run(_)) => LevelFilter::INFO,
        (false, _) => LevelFilter::WARN,
    };
    // What we build on warns of what is routine for us, such as a network without others in it yet.
    let theirs = if global.verbose { LevelFilter::WARN } else { LevelFilter::ERROR };
    let filter = Targets::new().with_default(theirs).with_target("meshd", ours);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(talk.is_coloured());
    tracing_subscriber::registry().with(filter).with(lines).init();
}

const DEFAULT_MESH: &str = "default";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn parse(line: &str) -> (Global, Command) {
        let args = Args::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        (args.global, args.command)
    }

    #[test]
    fn hints_name_what_is_not_the_default() {
        let command = |line: &str| Place::find(&parse(line).0).unwrap().command("run");
        assert_eq!(command("meshd --home /h status"), "meshd --home /h run");
        assert_eq!(command("meshd --home /h --mesh lab status"), "meshd --home /h --mesh lab run");
        assert_eq!(command("meshd --home /it's --mesh default status"), r"meshd --home '/it'\''s' run");
    }

    #[test]
    fn the_definitions_are_sound() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn what_is_no_number_or_time_is_told_what_to_write() {
        for (line, said) in [
            ("meshd watch --count=N", "write a whole number from 1 on"),
            ("meshd send a --repeat=N", "write a whole number from 1 on"),
            ("meshd listen a --count=N", "write a whole number from 1 on"),
            ("meshd serve a --exec x --jobs=N", "write a whole number from 1 to 1024"),
            ("meshd ping a --count=N", "write a whole number from 1 on"),
            ("meshd record a --count=N", "write a whole number from 1 on"),
            ("meshd bench --count=N", "write a whole number from 1 on"),
            ("meshd bench --rounds=N", "write a whole number from 1 to 100"),
            ("meshd bench --in-flight=N", "write a whole number from 1 to 4096"),
            ("meshd bench --fan-out=N", "write a whole number from 1 to 1000"),
            ("meshd bench --idle=N", "write a whole number from 2 to 200"),
        ] {
            for number in ["0", "-1", "abc", "1.5", "1e9"] {
                let error = Args::try_parse_from(line.replace('N', number).split(' ')).unwrap_err().to_string();
                let first = error.lines().next().unwrap();
                assert!(first.contains(number) && first.ends_with(said), "{line} {number}: {error}");
            }
        }
        let error =
            Args::try_parse_from(["meshd", "watch", "--count", "99999999999999999999"]).unwrap_err().to_string();
        assert!(error.lines().next().unwrap().ends_with(": at most 18446744073709551615"), "{error}");
        for option in ["listen a --timeout", "send a --ttl", "exec --on a --timeout", "key rotate --grace"] {
            for (time, said) in [
                ("-1", ": write 300ms, 5s or 2m, say"),
                ("abc", ": write 300ms, 5s or 2m, say"),
                ("5", ": write 300ms, 5s or 2m, say"),
                ("99999999999999999999999", ": write 300ms, 5s or 2m, say"),
                ("300000000000years", ": at most 365 days"),
            ] {
                let line = format!("meshd {option}={time}");
                let error = Args::try_parse_from(line.split(' ')).unwrap_err().to_string();
                assert!(error.lines().next().unwrap().ends_with(said), "{line}: {error}");
            }
        }
    }

    #[test]
    fn verbs_parse_as_documented() {
        for line in [
            "meshd run --name a --listen 0.0.0.0:4001 --listen /ip6/::/tcp/0 --bootstrap h:1 --no-mdns --no-local --json",
            "meshd key new",
            "meshd key show --secret",
            "meshd key rotate --grace 7d",
            "meshd key rotate --without id1-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "meshd --mesh lab invite",
            "meshd join - --force",
            "meshd watch --json",
            "meshd send a/b hello --to workers --wait 3s",
            "meshd send a/b - --lines --all --no-wait",
            "meshd send a/b {} --format json --repeat 3 --interval 10ms",
            "meshd send a/b {} --acked --redeliver --ttl 1m --key k --retain --timeout 3s",
            "meshd call follow --stream --to workers --timeout 3s",
            "meshd listen a/** b --name g --count 3 --timeout 1m --raw",
            "meshd call wc",
            "meshd call wc - --to workers --timeout 3s --idempotent --wait 1s",
            "meshd call wc {} --all --format json --no-wait --json",
            "meshd serve wc --exec wc",
            "meshd serve wc --exec wc --name counters --jobs 3 --format json -v",
            "meshd services",
            "meshd info x.mcap --check --json",
            "meshd ls",
            "meshd ls camera camera:photos/a -r --regex a+ --json",
            "meshd get n:s/a n:s/b /tmp --regex a+",
            "meshd put a b n:s m:s/c",
            "meshd sync a n:s m:s --delete --dry-run",
            "meshd sync -n n:s a",
            "meshd ping camera --count 1",
            "meshd bench --quick --json",
            "meshd bench --transport tcp --size 64 --size 1MiB --only topic,call --only fan-out --count 10 --rounds 3",
            "meshd bench --time 500ms --in-flight 16 --fan-out 4,32 --idle 50",
            "meshd exec --on far -- uname -a",
            "meshd exec --on far uname -a --on nowhere",
            "meshd exec --all --timeout 1m --env A=b --env C= --chdir /tmp -- sh -c x",
            "meshd exec --group workers --script x.py --with python3 --messages --json",
            "meshd exec --on far --script x.sh -- --its --own",
            "meshd launch",
            "meshd launch robot/mesh.toml --only a --only b -e c -n --json",
            "meshd completions bash",
            "meshd man --dir /tmp",
        ] {
            parse(line);
        }
        for line in [
            "meshd",
            "meshd send",
            "meshd send a* x",
            "meshd listen",
            "meshd listen a*",
            "meshd --mesh a/b status",
            "meshd send a b --to x --all",
            "meshd send a b --wait 3s --no-wait",
            "meshd call",
            "meshd call a b --to x --all",
            "meshd call a b --stream --all",
            "meshd serve a",
            "meshd get",
            "meshd put a",
            "meshd sync a",
            "meshd serve a --exec b --jobs 0",
            "meshd listen a --timeout soon",
            "meshd key rotate --without me",
            "meshd exec -- uname",
            "meshd exec --on far",
            "meshd exec --on far --all -- uname",
            "meshd exec --on far --with sh -- uname",
            "meshd exec --on far --timout 1m uname",
            "meshd launch a b",
            "meshd bench --transport wire",
            "meshd bench --size 0",
            "meshd bench --size 2GiB",
            "meshd bench --only ping",
            "meshd bench --time 0",
            "meshd bench --in-flight 0",
            "meshd bench --fan-out 0",
            "meshd bench --idle 1",
        ] {
            assert_eq!(
                Args::try_parse_from(line.split(' ')).unwrap_err().exit_code(),
                i32::from(Exit::Usage.code()),
                "{line}"
            );
        }
    }
}
