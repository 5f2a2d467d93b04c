//! What can be typed. Help, completions and manual pages come from here.

mod exec;
mod files;
mod launch;
mod recording;
mod run;

use std::ffi::OsString;
use std::num::{IntErrorKind, ParseIntError};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ArgGroup, Parser, Subcommand, ValueEnum, ValueHint};

pub(super) use self::exec::{ExecArgs, StopArgs};
pub(super) use self::files::{GetArgs, LsArgs, PutArgs, SyncArgs};
pub(super) use self::launch::LaunchArgs;
pub(super) use self::recording::{InfoArgs, PlayArgs, RecordArgs};
pub(super) use self::run::RunArgs;
use crate::bench::PEER_VERB;
use crate::config::{LimitsConfig, bytes_text, duration as time, parse_bytes};
use crate::mesh::{Identity, MeshName, NodeName, ServiceName, Topic, TopicFilter};

/// Programs on many machines find each other and exchange messages: no coordinator, no broker, one shared key.
#[derive(Debug, Parser)]
#[command(name = "meshd", version, max_term_width = 100, disable_help_subcommand = true, after_help = START, after_long_help = EXITS)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What applies to every verb.
#[derive(ArgGroup, Debug)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// Which mesh [default: default]
    #[arg(long, global = true, value_name = "NAME", env = "MESHD_MESH", hide_env_values = true)]
    pub(super) mesh: Option<MeshName>,
    /// Where keys, settings and the socket are [default: ~/.local/share/meshd]
    #[arg(long, global = true, value_name = "DIR", env = "MESHD_HOME", hide_env_values = true, value_hint = ValueHint::DirPath)]
    pub(super) home: Option<PathBuf>,
    /// Print data as JSON, one object per line
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Tell more
    #[arg(short, long, global = true)]
    pub(super) verbose: bool,
    /// When to use colours
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true,
        help = "When to use colours: auto, always, never"
    )]
    pub(super) color: Colour,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Colour {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon, in the foreground
    #[command(after_help = run::HELP)]
    Run(RunArgs),
    /// Make, show or change the key of the mesh
    #[command(subcommand)]
    Key(KeyCommand),
    /// Print a ticket with which another machine joins
    #[command(after_help = INVITE)]
    Invite,
    /// Store a ticket, so that this machine joins its mesh
    #[command(after_help = JOIN)]
    Join(JoinArgs),
    /// Print the lasting identity of this home
    Identity,
    /// Tell how the daemon is doing
    Status,
    /// List the peers that are linked to this one
    Peers,
    /// List the nodes of the mesh
    Nodes,
    /// List what is listened to, and by whom
    Topics,
    /// Print events as they happen
    Watch(WatchArgs),
    /// Send messages to who listens
    #[command(after_help = SEND)]
    Send(SendArgs),
    /// Print messages as they arrive
    #[command(after_help = LISTEN)]
    Listen(ListenArgs),
    /// Call a service and print the reply
    #[command(after_help = CALL)]
    Call(CallArgs),
    /// Offer a service: each call runs a command
    #[command(after_help = SERVE)]
    Serve(ServeArgs),
    /// List the services, who offers them and what they have done
    Services,
    /// Measure round trips to a peer
    Ping(PingArgs),
    /// Measure how fast meshd is on this machine
    #[command(after_help = BENCH)]
    Bench(BenchArgs),
    /// A process that `bench` measures
    #[command(name = PEER_VERB, hide = true)]
    BenchPeer,
    /// List what nodes share, or the files of a share
    #[command(after_help = files::LS)]
    Ls(LsArgs),
    /// Get files from a node, or from all nodes of a group that have them
    #[command(after_help = files::GET)]
    Get(GetArgs),
    /// Put files on one node or several
    #[command(after_help = files::PUT)]
    Put(PutArgs),
    /// Make directories like another one, here or on nodes
    #[command(after_help = files::SYNC)]
    Sync(SyncArgs),
    /// Run a program on other nodes
    #[command(after_help = exec::EXEC)]
    Exec(ExecArgs),
    /// Start the programs of a file, and keep them running
    #[command(after_help = launch::LAUNCH)]
    Launch(LaunchArgs),
    /// Write messages into a file as they arrive
    #[command(after_help = recording::RECORD)]
    Record(RecordArgs),
    /// Send the messages of a file again
    #[command(after_help = recording::PLAY)]
    Play(PlayArgs),
    /// Tell what is in a file of messages
    #[command(after_help = recording::INFO)]
    Info(InfoArgs),
    /// Stop the daemon here, or another peer that allows it
    #[command(after_help = exec::STOP)]
    Stop(StopArgs),
    /// Print the settings in force and where each came from
    #[command(after_help = CONFIG)]
    Config,
    /// Print a completion script for a shell
    #[command(after_help = COMPLETIONS)]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man {
        /// Write the pages of all verbs into this directory instead
        #[arg(long, value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make the key of a new mesh
    New {
        /// Derive the key from a passphrase, read from the first line of stdin
        #[arg(long)]
        passphrase: bool,
    },
    /// Show which keys are in use, and by which key each peer came in
    Show {
        /// Print the key itself instead. Whoever sees it can join
        #[arg(long)]
        secret: bool,
    },
    /// Make a new key and hand it to the linked peers
    #[command(after_help = ROTATE)]
    Rotate {
        /// How long the previous key still opens the door [default: 7d, or 0 with --without]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        grace: Option<Duration>,
        /// Whom to shut out; may be given several times
        #[arg(long, value_name = "IDENTITY")]
        without: Vec<Identity>,
    },
    /// Print the key's fingerprint, by which people can compare keys
    Fingerprint,
}

#[derive(ArgGroup, Debug)]
pub(super) struct JoinArgs {
    /// The ticket, or - to read it from stdin
    pub(super) ticket: String,
    /// Replace another key of that mesh; the old one is kept beside it
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(ArgGroup, Debug)]
pub(super) struct WatchArgs {
    /// Stop after so many events
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, u64::MAX))]
    pub(super) count: Option<u64>,
    /// Stop after this time
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) timeout: Option<Duration>,
}

#[derive(ArgGroup, Debug)]
pub(super) struct SendArgs {
    /// Where to send, such as frames/left
    pub(super) topic: Topic,
    /// What to send, or - to read it from stdin; nothing sends an empty message
    pub(super) data: Option<OsString>,
    /// Send each line of stdin as a message
    #[arg(long, conflicts_with_all = ["repeat"])]
    pub(super) lines: bool,
    /// Send the message so many times
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true, value_parser = whole::<u64>(1, u64::MAX))]
    pub(super) repeat: u64,
    /// Time between messages
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) interval: Option<Duration>,
    /// How the data is encoded: json is checked, cbor is made from JSON [default: text, or bytes if it is no text]
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<Format>,
    /// Only to this node (by id), or to one node of this group (by name)
    #[arg(long, value_name = "NODE|GROUP", conflicts_with = "all")]
    pub(super) to: Option<String>,
    /// To every node that listens, not to one of each group
    #[arg(long)]
    pub(super) all: bool,
    /// Wait until each receiver has handled the message
    #[arg(long)]
    pub(super) acked: bool,
    /// If one cannot, give it to another of its group; implies --acked
    #[arg(long)]
    pub(super) redeliver: bool,
    /// How long to wait for room, and for acknowledgements [default: 1s, and 10s if acked, or as configured]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) timeout: Option<Duration>,
    /// How long the message is of use: later it is not delivered any more
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) ttl: Option<Duration>,
    /// Messages of one key go to one node of each group, where the balancing is by key
    #[arg(long, value_name = "KEY")]
    pub(super) key: Option<OsString>,
    /// Have the daemon keep the last message for who comes later, as long as it runs; does not wait for a listener
    #[arg(long)]
    pub(super) retain: bool,
    /// How long to wait for a first listener
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration, conflicts_with = "no_wait")]
    pub(super) wait: Duration,
    /// Do not wait for a listener
    #[arg(long)]
    pub(super) no_wait: bool,
}

/// How data is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
    Cbor,
    Bytes,
}

#[derive(ArgGroup, Debug)]
pub(super) struct ListenArgs {
    /// What to listen to: topics, in which * stands for one part and ** for any number of parts
    #[arg(required = true, value_name = "FILTER")]
    pub(super) filters: Vec<TopicFilter>,
    /// Name of the node, and so of its group: of several in a group, one gets each message [default: a group of its own]
    #[arg(long, value_name = "GROUP")]
    pub(super) name: Option<NodeName>,
    /// Stop after so many messages
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, u64::MAX))]
    pub(super) count: Option<u64>,
    /// Stop after this time; an error if --count was not reached
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) timeout: Option<Duration>,
    /// Print the payloads only, byte for byte
    #[arg(long, conflicts_with = "json")]
    pub(super) raw: bool,
}

#[derive(ArgGroup, Debug)]
pub(super) struct CallArgs {
    /// Which service
    pub(super) service: ServiceName,
    /// What to ask, or - to read it from stdin [default: stdin, unless that is a terminal]
    pub(super) data: Option<OsString>,
    /// Only this node (by id), or one of this group (by name)
    #[arg(long, value_name = "NODE|GROUP", conflicts_with = "all")]
    pub(super) to: Option<String>,
    /// Call every node that offers it, and print a line for each
    #[arg(long)]
    pub(super) all: bool,
    /// Print each reply of a service that gives several, as it comes
    #[arg(long, conflicts_with_all = ["all", "idempotent"])]
    pub(super) stream: bool,
    /// How long to wait for the reply, or for a stream of them to begin [default: 10s, or as configured]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) timeout: Option<Duration>,
    /// How the data is encoded: json is checked, cbor is made from JSON [default: text, or bytes if it is no text]
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<Format>,
    /// It may run more than once: go to another node if one is lost while it has the call
    #[arg(long)]
    pub(super) idempotent: bool,
    /// How long to wait for somebody who offers it
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration, conflicts_with = "no_wait")]
    pub(super) wait: Duration,
    /// Do not wait for somebody who offers it
    #[arg(long)]
    pub(super) no_wait: bool,
}

#[derive(ArgGroup, Debug)]
pub(super) struct ServeArgs {
    /// What it is called by
    pub(super) service: ServiceName,
    /// What to run for each call, by sh: the request is its stdin, the reply its stdout
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub(super) exec: OsString,
    /// Name of the node [default: the service's]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<NodeName>,
    /// Most commands at a time; further calls wait [default: one per processor]
    #[arg(long, value_name = "N", value_parser = whole::<u16>(1, 1024))]
    pub(super) jobs: Option<u16>,
    /// How replies are encoded: json is checked, cbor is made from JSON [default: text, or bytes if it is no text]
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<Format>,
}

#[derive(ArgGroup, Debug)]
pub(super) struct PingArgs {
    /// A peer's id, a node's id or a node's name
    #[arg(value_name = "PEER|NODE")]
    pub(super) target: String,
    /// How many times
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole::<u64>(1, u64::MAX))]
    pub(super) count: u64,
    /// Time between two
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = duration)]
    pub(super) interval: Duration,
    /// How long to wait for each
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration)]
    pub(super) timeout: Duration,
}

#[derive(ArgGroup, Debug)]
pub(super) struct BenchArgs {
    /// Which links: unix, as between peers of one machine; tcp, encrypted, as between machines; both
    #[arg(long, value_name = "KIND", default_value = "both", hide_possible_values = true)]
    pub(super) transport: Transport,
    /// Measure these only: topic, echo, call, fan-out, start, idle; several with commas [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',', hide_possible_values = true)]
    pub(super) only: Vec<Measured>,
    /// Bytes of each message, such as 64 or 1MiB; several with commas [default: 64, 1KiB, 64KiB and 1MiB for topic, 64 for the rest]
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = message_bytes)]
    pub(super) size: Vec<usize>,
    /// How long each figure is measured [default: 2s, or 300ms with --quick]
    #[arg(long, value_name = "DURATION", value_parser = some_duration)]
    pub(super) time: Option<Duration>,
    /// At most so many messages, round trips or calls for each figure [default: as many as go in that time]
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, u64::MAX))]
    pub(super) count: Option<u64>,
    /// Measure each figure so many times, and print the median
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<u16>(1, 100))]
    pub(super) rounds: u16,
    /// Calls at a time; call measures one at a time too
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = whole::<u16>(1, 4096))]
    pub(super) in_flight: u16,
    /// Nodes that listen to one sender, in up to 4 processes; several with commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [4, 32], value_parser = whole::<u16>(1, 1000))]
    pub(super) fan_out: Vec<u16>,
    /// Peers that do nothing, each a process [default: 10, or 4 with --quick]
    #[arg(long, value_name = "N", value_parser = whole::<u16>(2, 200))]
    pub(super) idle: Option<u16>,
    /// Take seconds instead of a minute: rougher figures
    #[arg(long)]
    pub(super) quick: bool,
}

/// What carries the frames of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Transport {
    Unix,
    Tcp,
    Both,
}

/// What `bench` measures.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Measured {
    Topic,
    Echo,
    Call,
    FanOut,
    Start,
    Idle,
}

fn message_bytes(text: &str) -> Result<usize, String> {
    let bytes = parse_bytes(text).ok_or("write 64, 4KiB or 1MiB, say")?;
    // What a peer takes without being told otherwise.
    let most = LimitsConfig::default().message_bytes.get();
    usize::try_from(bytes).ok().filter(|bytes| (1..=most).contains(bytes)).ok_or_else(|| {
        format!("at least 1, and at most {}, which is the largest message unless configured", bytes_text(most))
    })
}

/// A duration in which something can happen.
fn some_duration(text: &str) -> Result<Duration, String> {
    let span = duration(text)?;
    if span < SHORTEST || span > LONGEST { Err("at least 1ms, and at most 1h".into()) } else { Ok(span) }
}

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(3600);

fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    time::parse(text)
}

/// A number within bounds.
fn whole<N: TryFrom<u64>>(least: u64, most: u64) -> impl Fn(&str) -> Result<N, String> + Clone {
    move |text| {
        let bounds = || match most {
            u64::MAX => format!("write a whole number from {least} on"),
            _ => format!("write a whole number from {least} to {most}"),
        };
        let number = text.parse().map_err(|error: ParseIntError| match error.kind() {
            IntErrorKind::PosOverflow if most == u64::MAX => format!("at most {most}"),
            _ => bounds(),
        })?;
        if !(least..=most).contains(&number) {
            return Err(bounds());
        }
        N::try_from(number).map_err(|_| bounds())
    }
}

const START: &str = "\
Start:
  meshd run                       on this machine; it prints how others join
  meshd listen 'greetings/**'     in one terminal, on any machine
  meshd send greetings/all hello  in another";

const EXITS: &str = "\
Start:
  meshd run                       on this machine; it prints how others join
  meshd listen 'greetings/**'     in one terminal, on any machine
  meshd send greetings/all hello  in another

Exit codes:
  0  done
  1  failed
  2  bad usage
  3  nobody there (no listener, provider, such node)
  4  timed out
  5  refused (busy, not allowed)
  6  no daemon runs here

Environment:
  MESHD_MESH, MESHD_HOME  as --mesh and --home
  MESHD_RUNTIME_DIR       sockets and same-host discovery
  MESHD_<KEY>             any setting: see `meshd config`
  NO_COLOR                no colours";

const INVITE: &str = "\
The ticket holds the key of the mesh: whoever sees it can join.

Example:
  meshd invite | ssh other-machine meshd join -";

const JOIN: &str = "\
An argument is visible to all users of this machine while the command runs; stdin is not.

Examples:
  meshd join -                    then paste the ticket, and end with Ctrl-D
  ssh member meshd invite | meshd join -";

const SEND: &str = "\
A message goes to one node of each group that listens. The exit code is 3 if nobody listens, and 1 if the \
message was dropped for a node that does. With --acked it is 0 only if all receivers have handled the message, \
and 4 if some just did not say so in time.

With --retain the daemon's own node keeps the last message on the topic, for whoever listens later, until it \
ends: also those that follow without --retain.

Examples:
  meshd send greetings/all hello
  meshd send jobs '{\"id\": 7}' --format json --to workers
  tail -f log | meshd send logs/web --lines
  meshd send jobs 'resize 7' --redeliver --timeout 1m    exit code 0: a worker has handled it
  meshd send state/door open --retain                    also for who listens later
  meshd send files/report - < report.pdf";

const LISTEN: &str = "\
Prints topic, node and data of each message; see --json for the rest. The exit code is 4 if --timeout passes \
before --count messages came. Senders that want to know are told that a message was handled once it is printed; \
what is not when this ends, by Ctrl-C, SIGTERM or SIGKILL, is handed back to them.

Examples:
  meshd listen 'frames/**'
  meshd listen jobs --name workers            shares the messages with others of that name
  meshd listen 'sensors/*/temperature' --json | jq .data
  meshd listen files/report --count 1 --raw > report.pdf";

const CALL: &str = "\
One node that offers the service answers, by default the less busy of two; what it says is printed as it is, \
CBOR as JSON. The exit code is 3 if nobody offers it, 4 if no reply came in time, 5 if all are busy, and 1 if \
it ran and failed.

Examples:
  meshd call wc < report.txt
  meshd call multiply '[6, 7]' --format cbor
  meshd call render - --to gpu-box --timeout 2m < scene.json > scene.png
  meshd call load --all                       a line for each node that offers it
  meshd call follow log --stream              each reply as it comes, until Ctrl-C";

const SERVE: &str = "\
Each call runs the command by `sh -c`, in a process group of its own: what is asked is on its stdin, what it \
prints is the reply. An exit code other than 0 is a failure, with the end of its stderr as the message. A call \
that is cancelled or timed out ends the group by SIGTERM, then SIGKILL. Ctrl-C or SIGTERM lets running commands \
finish, for 5 s at most. The environment has MESHD_SERVICE, MESHD_FROM (the caller's node id), MESHD_CODEC (text, \
json, cbor or bytes) and MESHD_MESH.

Whoever is in the mesh can call it: what they send is data, so do not let the command run it as code.

Examples:
  meshd serve wc --exec 'wc -c'
  meshd serve load --exec uptime --name $(hostname)
  meshd serve thumbnail --exec 'convert - -resize 128 png:-' --jobs 4
  meshd serve sum --exec 'jq add' --format json";

const BENCH: &str = "\
Starts processes of its own, in a mesh of their own, on this machine only: no other mesh, home or daemon is \
touched. All of them end with it. Everything is warmed up first. Each figure is of links that the peers say are \
of that kind; a kind that they do not have here is left out, or an error if it was asked for.

  topic    one sender, one listener: messages/s and MB/s (10^6 bytes) that arrived, counted by the listener; lost
  echo     latency of a message: there and back while nothing else goes on (load: idle); and one way, at half of \
the rate that topic reached, from when it was due to be sent (load: half)
  call     calls/s and the time of a call: one at a time, and --in-flight of them
  fan-out  one sender, --fan-out listeners: messages/s that were sent, and that arrived at all of them together; \
how often a message crosses a link
  start    time from the start of a process until its first message has arrived, in a mesh that runs
  idle     memory (resident; and with shared pages divided) and share of one processor, of each of --idle peers

Examples:
  meshd bench --quick
  meshd bench --only topic,call --transport tcp --size 64,1MiB
  meshd bench --rounds 5 --time 5s --json > figures.jsonl";

const CONFIG: &str = "\
Values come from config.toml in the mesh's folder, from the environment and from arguments of `meshd run`; \
later ones win. Every key can be set in the environment: discovery.mdns is MESHD_DISCOVERY_MDNS.";

const COMPLETIONS: &str = "\
Examples:
  meshd completions bash > ~/.local/share/bash-completion/completions/meshd
  meshd completions zsh > ~/.zfunc/_meshd
  meshd completions fish > ~/.config/fish/completions/meshd.fish";

const ROTATE: &str = "\
To shut a machine out, name its identity (see `meshd peers --json`). It holds the old key, so that must cease \
to hold at once: machines that are away then need a new ticket.

Examples:
  meshd key rotate
  meshd key rotate --grace 0
  meshd key rotate --without id1-…";
