//! The daemon and the command line, end to end: the binary as people and scripts use it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use meshd::NetworkKey;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{PATIENCE, now};

#[test]
fn the_first_start_makes_a_key_and_says_how_others_join() {
    let home = Home::new();
    let daemon = home.run(&["--json"]);
    let ready: Value = serde_json::from_str(&daemon.ready).unwrap();
    assert_eq!(keys(&ready), ["addresses", "event", "mesh", "peer", "socket"]);
    assert_eq!((&ready["event"], &ready["mesh"]), (&"ready".into(), &"default".into()));
    assert!(ready["addresses"][0].as_str().unwrap().starts_with("/ip4/127.0.0.1/tcp/"));
    assert_eq!(mode(Path::new(ready["socket"].as_str().unwrap())), 0o600);
    for (path, wanted) in [("", 0o700), ("default", 0o700), ("default/key", 0o600), ("identity", 0o600)] {
        assert_eq!(mode(&home.path().join(path)), wanted, "{path}");
    }
    assert_eq!(daemon.peer(), ready["peer"].as_str().unwrap());
    let (status, _, errors) = daemon.stop();
    assert!(status.success() && errors.contains("made a new key") && errors.contains("invite"), "{errors}");
    let again = home.run(&[]);
    assert!(again.ready.starts_with("ready mesh=default peer=12D3KooW"), "{}", again.ready);
    assert!(!again.stop().2.contains("made a new key"));
}

#[test]
fn a_message_goes_from_one_daemon_to_another() {
    // E-CLI.
    let (near, far) = two_daemons();
    let listener = far.home.spawn(&["listen", "greetings/*", "--name", "readers", "--count", "3", "--json"]);
    let sent = near.home.json(&["send", "greetings/all", "hello"]);
    assert_eq!(sent, serde_json::json!({ "topic": "greetings/all", "matched": 1, "sent": 1, "dropped": [] }));
    near.home.ok(&["send", "greetings/all", "{\"a\": 1}", "--format", "json", "--to", "readers"]);
    near.home.ok(&["send", "greetings/all", "-", "--format", "bytes", "--all"]);
    let (status, lines, errors) = listener.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(keys(&lines[0]), ["data", "node", "peer", "seq", "time", "topic"]);
    assert_eq!(keys(&lines[2]), ["base64", "node", "peer", "seq", "time", "topic"]);
    assert_eq!((&lines[0]["data"], &lines[0]["topic"]), (&"hello".into(), &"greetings/all".into()));
    assert_eq!((&lines[1]["data"]["a"], &lines[1]["node"]), (&1.into(), &"near".into()));
    assert_eq!(lines[0]["peer"].as_str().unwrap(), near.peer());
}

#[test]
fn lines_of_stdin_arrive_one_by_one_and_in_order() {
    let (near, far) = two_daemons();
    let listener = far.home.spawn(&["listen", "log", "--count", "1000", "--raw"]);
    let lines: String = (0..1000).map(|n| format!("{n:04}\n")).collect();
    let (status, _, errors) = near.home.spawn_with(&["send", "log", "--lines"], lines.as_bytes()).wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    let (status, got, _) = listener.wait();
    assert_eq!((status.code(), got), (Some(0), lines.replace('\n', "")));
}

#[test]
fn what_a_daemon_knows_is_printed_as_objects() {
    // E-CLI: lists.
    let (near, far) = two_daemons();
    let listener = far.home.spawn(&["listen", "a/*", "--name", "readers"]);
    near.home.ok(&["send", "a/b", "x"]); // so it listens
    let all = |args: &[&str]| -> Vec<Value> {
        let (code, lines, errors) = near.home.meshd(&[args, &["--json"]].concat());
        assert_eq!(code, 0, "{args:?}: {errors}");
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let status = &all(&["status"])[0];
    let documented = [
        "addresses",
        "discovery",
        "foreign",
        "host",
        "identity",
        "mesh",
        "nodes",
        "peer",
        "peers",
        "refused",
        "uptime_s",
        "version",
    ];
    assert_eq!(keys(status), documented);
    assert_eq!((&status["peers"], &status["nodes"]), (&1.into(), &3.into()));
    let peers = all(&["peers"]);
    assert_eq!(keys(&peers[0]), ["addresses", "host", "identity", "link", "nodes", "peer", "rtt_us", "version"]);
    assert_eq!((peers.len(), peers[0]["peer"].as_str().unwrap()), (1, &far.peer()[..]));
    let nodes = all(&["nodes"]);
    assert_eq!(keys(&nodes[0]), ["host", "id", "node", "peer", "services", "topics"]);
    let names: Vec<&str> = nodes.iter().map(|node| node["node"].as_str().unwrap()).collect();
    assert_eq!(names, ["far", "near", "readers"]);
    assert_eq!(all(&["topics"]), [serde_json::json!({ "topic": "a/*", "nodes": 1, "groups": ["readers"] })]);
    let identity = all(&["identity"]);
    assert_eq!(identity[0]["identity"], status["identity"]);
    let config = all(&["config"]);
    assert!(config.iter().any(|setting| setting.to_string().contains("--no-mdns")), "{config:?}");
    // The same for people.
    for verb in ["status", "peers", "nodes", "topics", "config", "identity"] {
        assert!(!near.home.ok(&[verb]).is_empty(), "{verb}");
    }
    drop(listener);
}

#[test]
fn exit_codes_say_what_happened() {
    let home = Home::new();
    for verb in [
        &["status"][..],
        &["peers"],
        &["send", "t", "x"],
        &["listen", "t"],
        &["watch"],
        &["ping", "x"],
        &["invite"],
        &["call", "s"],
        &["services"],
    ] {
        home.fails(verb, 6, "no daemon runs here");
    }
    let _daemon = home.run(&[]);
    home.ok(&["send", "t", "x", "--help"]);
    home.fails(&["send", "a*", "x"], 2, "wildcard");
    home.fails(&["sned"], 2, "send");
    home.fails(&["listen", "t", "--timeout", "soon"], 2, "300ms");
    home.fails(&["send", "t", "{", "--format", "json"], 2, "not JSON");
    home.fails(&["send", "t", "x", "--no-wait"], 3, "nobody listens");
    home.fails(&["send", "t", "x", "--wait", "50ms"], 3, "nobody listens");
    home.fails(&["ping", "nobody"], 3, "nobody");
    home.fails(&["listen", "t", "--count", "1", "--timeout", "50ms"], 4, "0 of 1");
    home.fails(&["key", "rotate", "--grace", "1h", "--without", home.ok(&["identity"]).trim()], 5, "grace");
    assert_eq!(home.meshd(&["listen", "t", "--timeout", "50ms"]).0, 0);
}

#[test]
fn watch_prints_events_as_they_happen() {
    let (near, far) = two_daemons();
    let mut watch = near.home.spawn(&["watch", "--count", "3", "--json"]);
    // Ready when it sees something: listeners come and go until it has.
    while watch.is_running() {
        far.home.meshd(&["listen", "t", "--name", "passing", "--timeout", "20ms"]);
    }
    let (status, lines, errors) = watch.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 3);
    for event in events {
        let name = event["event"].as_str().unwrap();
        assert!(["node-up", "node-down", "listening", "not-listening"].contains(&name), "{event}");
        assert!(event["time"].as_str().unwrap().ends_with('Z') && event["node"] == "passing", "{event}");
    }
}

#[test]
fn config_refuses_what_run_refuses() {
    let home = Home::new();
    home.ok(&["key", "new"]);
    let file = home.path().join("default/config.toml");
    let share = |name: &str| format!("[[share]]\nname = \"{name}\"\npath = \"x\"\n");
    for (text, said) in [
        (share("a") + &share("a"), "two shares are named 'a'"),
        (share("a/b"), "'a/b' names no share"),
        ("listen = [\"/nonsense\"]".to_owned(), "\"/nonsense\" is not an address"),
        ("listen = [\"/ip4/1.2.3.4/udp/5\"]".to_owned(), "hint: it names no TCP port"),
        ("listen = [\"/dns/localhost/tcp/5\"]".to_owned(), "only IP addresses can be listened on"),
        ("bootstrap = [\"/dnsaddr/a.b/tcp/5\"]".to_owned(), "hint: it begins with ip4"),
        ("[times]\nresume = \"300000000000years\"".to_owned(), "at most 365 days"),
    ] {
        fs::write(&file, &text).unwrap();
        for verb in [&["config"][..], &["run", "--no-mdns"]] {
            let errors = home.fails(verb, 2, said);
            assert!(errors.contains("hint: "), "{text}: {errors}");
        }
    }
    fs::write(&file, share("a") + &share("b")).unwrap();
    home.ok(&["config"]);
}

#[test]
fn a_daemon_that_is_told_to_stop_leaves_in_order() {
    let (near, far) = two_daemons();
    let listener = far.home.spawn(&["listen", "t"]);
    near.home.ok(&["send", "t", "x"]); // so it listens
    let socket = far.home.path().join("default/meshd.sock");
    let began = now();
    let (status, _, errors) = far.stop();
    println!("stopped after {:?}", began.elapsed());
    assert_eq!(status.code(), Some(0), "{errors}");
    assert!(!socket.exists());
    let (status, _, errors) = listener.wait();
    assert!(status.code() == Some(6) && errors.contains("stop"), "{status}: {errors}");
    assert_eq!(near.home.json(&["status"])["peers"], 0, "it said goodbye");
}

#[test]
fn a_daemon_that_is_killed_is_noticed_and_can_be_started_again() {
    let (near, far) = two_daemons();
    let home = far.home.clone();
    drop(far); // killed
    let watch = || near.home.json(&["status"])["peers"].as_u64().unwrap();
    wait_until("it is gone", || watch() == 0);
    assert!(home.path().join("default/meshd.sock").exists(), "it had no time to clean up");
    home.fails(&["status"], 6, "no daemon runs here");
    let _again = home.run(&[]);
    wait_until("it is back", || watch() == 1);
}

#[test]
fn a_second_daemon_names_the_first() {
    // E-NODE: a second start is an error.
    let home = Home::new();
    let daemon = home.run(&[]);
    let pid = daemon.running.child.id().to_string();
    let errors = home.fails(RUN, 5, "runs already");
    assert!(errors.contains(&format!("pid {pid}")) && errors.contains("hint:"), "{errors}");
    // Another mesh of the same home runs beside it.
    let other = home.run(&["--mesh", "other"]);
    assert_eq!(other.stop().0.code(), Some(0));
}

#[test]
fn what_is_wrong_with_the_files_is_said_in_one_line_with_a_hint() {
    let home = Home::new();
    home.ok(&["key", "new"]);
    home.fails(&["key", "new"], 1, "exists already");
    let (key, config) = (home.path().join("default/key"), home.path().join("default/config.toml"));
    let good = fs::read_to_string(&key).unwrap();

    fs::write(&config, "[discovery]\nmdsn = true\n").unwrap();
    assert!(home.fails(RUN, 2, "config.toml:2: unknown key").contains("did you mean 'discovery.mdns'?"));
    fs::write(&config, "listen = 7\n").unwrap();
    home.fails(RUN, 2, "config.toml:1:");
    fs::remove_file(&config).unwrap();

    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(home.fails(RUN, 1, "open to other users (mode 644)").contains("chmod 600"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    for (text, said) in [
        (&good[..30], "cut short"),
        (&good.replace("meshd-key-1:", "meshd-key-2:")[..], "newer meshd (format 2)"),
        ("hello\n", "holds no usable key"),
        ("", "holds no usable key"),
    ] {
        fs::write(&key, text).unwrap();
        let errors = home.fails(RUN, 1, said);
        assert!(
            !errors.contains(good.trim()) && !errors.contains(&good[12..30]),
            "no part of the key is shown: {errors}"
        );
    }
    fs::write(&key, &good).unwrap();
    drop(home.run(&[]));
}

#[test]
fn a_port_that_is_taken_and_a_path_that_is_too_long_are_said() {
    // E-SRV.
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let errors =
        home.fails(&["run", "--no-mdns", "--listen", &address], 1, &taken.local_addr().unwrap().port().to_string());
    assert!(errors.contains("use"), "{errors}");
    home.fails(&["run", "--no-mdns", "--listen", "nonsense"], 2, "nonsense");
    let long = home.path().join("x".repeat(120));
    let errors = home.fails(&["--home", long.to_str().unwrap(), "run", "--no-mdns"], 2, "too long");
    assert!(errors.contains("--home") && !long.exists(), "{errors}");
}

#[test]
fn a_key_is_rotated_at_all_daemons() {
    let (near, far) = two_daemons();
    let before = near.home.ok(&["key", "fingerprint"]);
    let rotated = near.home.json(&["key", "rotate", "--grace", "1h"]);
    assert_eq!(rotated["epoch"], 1);
    let fingerprint = rotated["fingerprint"].as_str().unwrap();
    assert_ne!(before.trim(), fingerprint);
    wait_until("the other has it", || far.home.json(&["key", "show"])["fingerprint"] == fingerprint);
    let shown = far.home.json(&["key", "show"]);
    assert_eq!(keys(&shown), ["epoch", "fingerprint", "mesh", "peers", "previous"]);
    assert_eq!(shown["previous"][0]["fingerprint"].as_str().unwrap(), before.trim());
    // It is in the files: a restart keeps it.
    for home in [&near.home, &far.home] {
        assert_eq!(home.ok(&["key", "fingerprint"]).trim(), fingerprint);
    }
    assert!(near.home.ok(&["key", "show", "--secret"]).starts_with("meshd-key-1:"));
}

#[test]
fn a_ticket_is_all_that_another_machine_needs() {
    let (here, there) = (Home::new(), Home::new());
    let daemon = here.run(&["--mesh", "lab", "--name", "near"]);
    let ticket = here.ok(&["--mesh", "lab", "invite"]);
    assert_eq!(ticket.lines().count(), 1);
    let (status, joined, errors) = there.spawn_with(&["join", "-", "--json"], ticket.as_bytes()).wait();
    assert!(status.success() && errors.contains("'lab'"), "{errors}");
    let joined: Value = serde_json::from_str(&joined).unwrap();
    assert_eq!(keys(&joined), ["addresses", "fingerprint", "mesh"]);
    assert!(joined["addresses"][0].as_str().unwrap_or_default().starts_with("/ip4/127.0.0.1/tcp/"), "{joined}");
    there.fails(&["join", "meshd-ticket-1:abcd"], 2, "mistyped or cut short");
    there.fails(&["--mesh", "other", "join", ticket.trim()], 2, "for mesh 'lab'");
    // Its runtime directory is another: the address in the ticket leads there.
    let guest = there.run(&["--mesh", "lab"]);
    wait_until("they are linked", || there.json(&["--mesh", "lab", "status"])["peers"] == 1);
    let pong = there.json(&["--mesh", "lab", "ping", "near", "--count", "1"]);
    assert_eq!(keys(&pong), ["peer", "rtt_us"]);
    assert!(pong["rtt_us"].as_u64().unwrap() > 0 && daemon.ready.contains(pong["peer"].as_str().unwrap()));
    drop(guest);
}

#[test]
fn a_reader_that_has_read_enough_ends_the_listening_with_success() {
    let home = Home::new();
    let _daemon = home.run(&[]);
    let mut listener = home.spawn(&["listen", "t", "--raw"]);
    home.ok(&["send", "t", "first"]);
    let mut pipe = listener.child.stdout.take().unwrap();
    let mut first = [0; 5];
    pipe.read_exact(&mut first).unwrap();
    drop(pipe); // as `head -c 5` does
    wait_until("it ends", || {
        home.meshd(&["send", "t", "more", "--no-wait"]);
        !listener.is_running()
    });
    let (status, _, errors) = listener.wait();
    assert_eq!((status.code(), &errors[..], &first), (Some(0), "", b"first"));
}

#[test]
fn what_does_not_speak_the_protocol_is_cut_off_and_the_daemon_goes_on() {
    // E-SRV: who speaks nonsense is cut off, alone.
    let home = Home::new();
    let daemon = home.run(&[]);
    let hello = |version: u8| {
        let body = [b"\xa2\x62id\x01\x67request\xa1\x65Hello\xa1\x67version", &[version][..]].concat();
        [&(body.len() as u32).to_be_bytes()[..], &body].concat()
    };
    let cases: [(&str, Vec<u8>); 7] = [
        ("garbage", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a first block of 4 GiB", vec![0xff; 4]),
        ("a block that is no CBOR", vec![0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]),
        ("another version", hello(9)),
        ("a block of 4 GiB after the hello", [hello(1), vec![0xff; 8]].concat()),
        ("garbage after the hello", [hello(1), vec![0, 0, 0, 1, 0xff]].concat()),
        ("hello, then lists in lists without end", [hello(1), vec![0, 1, 0, 0], vec![0x81; 65536]].concat()),
    ];
    for (what, bytes) in cases {
        let mut stream = UnixStream::connect(home.path().join("default/meshd.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(&bytes); // it may be cut off before it has said all
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap_or_else(|error| panic!("{what}: not cut off: {error}"));
        assert!(answer.windows(7).any(|part| part == b"Goodbye"), "{what}: without a goodbye");
    }
    // One that stops in the middle holds up nobody.
    let mut half = UnixStream::connect(home.path().join("default/meshd.sock")).unwrap();
    half.write_all(&hello(1)[..10]).unwrap();
    assert_eq!(home.json(&["status"])["peer"], *daemon.peer());
    assert_eq!(daemon.stop().0.code(), Some(0));
}

#[test]
fn a_client_that_does_not_read_loses_its_own_messages_only() {
    let home = Home::new();
    let _daemon = home.run(&[]);
    let stuck = home.spawn(&["listen", "t", "--name", "stuck", "--raw"]);
    let payload = "x".repeat(100_000);
    home.ok(&["send", "t", &payload[..1000]]);
    // Its pipe is not read here: 60 MB stop somewhere on their way, and nothing else does.
    home.ok(&["send", "t", &payload, "--repeat", "600"]);
    let reader = home.spawn(&["listen", "t", "--name", "reader", "--count", "1", "--raw"]);
    home.ok(&["send", "t", "hello", "--to", "reader"]);
    assert_eq!(reader.wait().1, "hello");
    drop(stuck);
}

/// Two daemons, `near` and `far`, on what for them is one host, linked.
pub(crate) fn two_daemons() -> (Daemon, Daemon) {
    let near = Home::new();
    near.ok(&["key", "new"]);
    let far = near.beside();
    fs::create_dir_all(far.path().join("default")).unwrap();
    fs::copy(near.path().join("default/key"), far.path().join("default/key")).unwrap();
    let (near, far) = (near.run(&["--name", "near"]), far.run(&["--name", "far"]));
    wait_until("they are linked", || [&near, &far].iter().all(|daemon| daemon.home.json(&["status"])["peers"] == 1));
    (near, far)
}

/// What one user has on one machine, apart from the user's own. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Home {
    dir: Arc<TempDir>,
    /// What the homes of one machine share.
    machine: Arc<TempDir>,
}

/// A running daemon, killed when dropped.
pub(crate) struct Daemon {
    pub(crate) home: Home,
    pub(crate) running: Running,
    ready: String,
}

/// A command that runs, killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    errors: Option<JoinHandle<String>>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { dir: Arc::new(TempDir::new().unwrap()), machine: Arc::new(TempDir::new().unwrap()) }
    }

    /// Another one on the same machine.
    pub(crate) fn beside(&self) -> Self {
        Self { dir: Arc::new(TempDir::new().unwrap()), machine: Arc::clone(&self.machine) }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Settings of the mesh `default`.
    pub(crate) fn config(&self, text: &str) {
        let folder = self.path().join("default");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("config.toml"), text).unwrap();
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshd"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MESHD_")) {
            command.env_remove(name);
        }
        command.env("MESHD_HOME", self.path()).env("MESHD_RUNTIME_DIR", self.machine.path().join("run")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Running {
        Running::new(&mut self.command(args))
    }

    /// With something on stdin.
    pub(crate) fn spawn_with(&self, args: &[&str], input: &[u8]) -> Running {
        let mut running = Running::new(self.command(args).stdin(Stdio::piped()));
        let (mut pipe, input) = (running.child.stdin.take().unwrap(), input.to_vec());
        std::thread::spawn(move || pipe.write_all(&input)); // the command may end before it has read all
        running
    }

    /// Exit code, stdout and stderr of a command.
    pub(crate) fn meshd(&self, args: &[&str]) -> (i32, String, String) {
        let (status, output, errors) = self.spawn(args).wait();
        (status.code().unwrap_or(-1), output, errors)
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let (code, output, errors) = self.meshd(args);
        assert_eq!(code, 0, "{args:?}: {errors}");
        output
    }

    /// The one object that a command prints.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{args:?}: {error}: {output}"))
    }

    /// What a command says when it fails as it should: with a hint, unless it is the parser of arguments that speaks.
    pub(crate) fn fails(&self, args: &[&str], code: i32, said: &str) -> String {
        let (got, _, errors) = self.meshd(args);
        assert_eq!(got, code, "{args:?}: {errors}");
        assert!(errors.contains(said), "{args:?}: {said:?} is not in: {errors}");
        assert!(code == 2 || errors.contains("hint: "), "{args:?}: no hint: {errors}");
        errors
    }

    /// Starts a daemon, and waits until it serves.
    pub(crate) fn run(&self, args: &[&str]) -> Daemon {
        let mut running = self.spawn(&[RUN, args].concat());
        let mut output = BufReader::new(running.child.stdout.take().unwrap());
        let (ready, is_ready) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            ready.send(line).unwrap();
            output.read_to_string(&mut String::new()) // so that it can go on printing
        });
        let ready = is_ready.recv_timeout(PATIENCE).expect("a daemon starts");
        assert!(!ready.is_empty(), "{}", running.wait().2);
        Daemon { home: self.clone(), running, ready }
    }
}

impl Daemon {
    /// A member of the mesh `default`, of which others are in this process.
    pub(crate) fn with_key(key: &NetworkKey, bootstrap: &str) -> Self {
        let home = Home::new();
        let folder = home.path().join("default");
        fs::create_dir_all(&folder).unwrap();
        key.write_new(folder.join("key")).unwrap();
        home.run(&["--bootstrap", bootstrap])
    }

    /// What a command that is asked of this daemon prints.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        self.home.json(args)
    }

    /// How many files, sockets included, its process has open.
    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.running.child.id())).unwrap().count()
    }

    /// What its process has used of processors.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.running.child.id())).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        let ticks: u64 =
            after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10) // 100 in a second
    }

    /// A program of its machine that listens, until the value is dropped.
    pub(crate) fn listener(&self, filter: &str, group: &str) -> impl Drop + use<> {
        self.home.spawn(&["listen", filter, "--name", group])
    }

    /// Stops its process in the middle of whatever it does, or lets it go on.
    pub(crate) fn freeze(&self, frozen: bool) {
        let pid = Pid::from_child(&self.running.child);
        kill_process(pid, if frozen { Signal::STOP } else { Signal::CONT }).unwrap();
    }

    pub(crate) fn peer(&self) -> String {
        self.json(&["status"])["peer"].as_str().unwrap().to_owned()
    }

    /// Exit status, stdout and stderr of one that ends by itself.
    pub(crate) fn ended(self) -> (ExitStatus, String, String) {
        self.running.wait()
    }

    /// Ends it as service managers do.
    pub(crate) fn stop(self) -> (ExitStatus, String, String) {
        let pid = Pid::from_child(&self.running.child);
        kill_process(pid, Signal::TERM).unwrap();
        self.running.wait()
    }
}

impl Running {
    pub(crate) fn new(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stderr.take().unwrap();
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).unwrap();
            text
        });
        Self { child, errors: Some(errors) }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Exit status, stdout and stderr, at the end.
    pub(crate) fn wait(mut self) -> (ExitStatus, String, String) {
        let output = self.child.stdout.take().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                pipe.read_to_end(&mut bytes).unwrap();
                String::from_utf8(bytes).unwrap()
            })
        });
        wait_until("it ends", || !self.is_running());
        let output = output.map_or_else(String::new, |output| output.join().unwrap());
        let errors = self.errors.take().unwrap().join().unwrap();
        (self.child.wait().unwrap(), output, errors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// Waits until something is so, looking again whenever a little time has passed.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5)); // looks again; the deadline is PATIENCE
    }
}

/// The keys of an object, in order.
pub(crate) fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

const RUN: &[&str] = &["run", "--no-mdns", "--listen", "127.0.0.1:0"];
