//! `meshd launch`: programs that are started, watched over and ended.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::{PATIENCE, now};
use crate::daemon::{Home, Running, keys, wait_until};

#[test]
fn five_programs_run_one_crashes_and_ctrl_c_leaves_no_process() {
    let place = Place::new(
        r#"
        [program.listener]
        command = ["meshd", "listen", "jobs/**"]
        [program.sender]
        shell = "while :; do meshd send jobs/a x; sleep 0.1; done"
        after = { topic = "jobs/x" }
        [program.parent]
        shell = "sleep 1000 & sleep 1001 & wait"
        [program.deaf]
        shell = "trap '' TERM; echo deaf; while :; do sleep 1; done"
        stop_timeout = "300ms"
        [program.crash]
        shell = "exit 3"
        backoff = { first = "20ms", most = "160ms" }
        "#,
    );
    let mut launch = place.launch(&["--json"]);
    let mut delays = Vec::new();
    let (mut heard, mut deaf) = (false, false);
    let began = now();
    while delays.len() < 6 || !heard || !deaf {
        assert!(began.elapsed() < PATIENCE, "{delays:?} {heard} {deaf}");
        let event = launch.event();
        let of = |program: &str| event["program"] == program;
        match event["event"].as_str().unwrap() {
            "restarts" if of("crash") => {
                assert_eq!(keys(&event), ["after_ms", "code", "event", "instance", "program", "time"]);
                assert_eq!(event["code"], 3);
                delays.push(event["after_ms"].as_u64().unwrap());
            }
            "line" => {
                heard |= of("listener");
                deaf |= of("deaf");
            }
            "started" => assert_eq!(keys(&event), ["event", "instance", "pid", "program", "time"]),
            other => panic!("{other}: {event}"),
        }
    }
    assert_eq!(delays[..6], [20, 40, 80, 160, 160, 160]);
    assert!(place.processes().len() >= 7, "{:?}", place.processes());
    launch.signal(Signal::INT);
    let (code, events, errors) = launch.end();
    assert_eq!(code, 0, "{errors}");
    place.assert_no_processes();
    let told: Vec<&Value> = events.iter().filter(|event| event["event"] == "killed").collect();
    assert_eq!((told.len(), &told[0]["program"]), (1, &"deaf".into()));
    let ends: Vec<&Value> = events.iter().filter(|event| event["event"] == "ended").collect();
    assert_eq!(ends.last().unwrap()["program"], "meshd", "the daemon ends last");
    let summaries = summaries(&events);
    let documented = ["code", "event", "instance", "outcome", "program", "ran_ms", "restarts", "starts"];
    assert_eq!(keys(summary(&summaries, "crash")), documented);
    assert_eq!(summaries.len(), 6);
    assert!(summaries.iter().all(|summary| summary["outcome"] == "stopped"), "{summaries:?}");
    assert!(summary(&summaries, "crash")["restarts"].as_u64().unwrap() >= 5);
    assert_eq!(summary(&summaries, "deaf")["signal"], 9);
    assert_eq!(summary(&summaries, "parent")["signal"], 15);
    assert_eq!(summary(&summaries, "meshd")["code"], 0);
}

#[test]
fn when_launch_is_killed_nothing_stays_behind() {
    let place = Place::new(
        r#"
        [program.parent]
        shell = "sleep 1000 & sleep 1001 & echo here; wait"
        stop_timeout = "1s"
        [program.deaf]
        shell = "trap '' TERM; echo here; while :; do sleep 1; done"
        stop_timeout = "1s"
        "#,
    );
    let mut launch = place.launch(&["--json"]);
    launch.until(|event| event["event"] == "line" && event["program"] == "parent");
    assert!(place.processes().len() >= 6, "{:?}", place.processes());
    launch.signal(Signal::KILL);
    place.assert_no_processes();
}

#[test]
fn words_reach_programs_as_they_are_and_lines_go_to_sh() {
    // E-CLI: quoting of list and string commands. Z-PROC: arguments reach the child.
    let place = Place::without_daemon(
        r#"
        [program.words]
        command = ["printf", "<%s>\\n", "a b", "it's", "$HOME", "*", "", "\"x\""]
        [program.line]
        shell = "printf '<%s>\\n' \"$MESHD_PROGRAM $MESHD_INSTANCE $A\" \"it's\" a b | cat; pwd"
        env = { A = "x  y" }
        chdir = "/"
        [program.local]
        command = ["./here.sh", "one"]
        "#,
    );
    place.script("here.sh", "echo $0 $1 at $PWD; echo mesh $MESHD_MESH; exit 0");
    let (code, output, errors) = place.run(&[]);
    assert_eq!(code, 0, "{errors}");
    let of = |name: &str| -> Vec<String> {
        let lines = output.lines().filter_map(|line| line.split_once(" | "));
        lines.filter(|(label, _)| label.trim() == name).map(|(_, line)| line.to_owned()).collect()
    };
    let words = ["<a b>", "<it's>", "<$HOME>", "<*>", "<>", "<\"x\">"];
    assert_eq!(of("words"), words);
    assert_eq!(of("line"), ["<line 1 x  y>", "<it's>", "<a>", "<b>", "/"]);
    let folder = place.folder.path().canonicalize().unwrap();
    assert_eq!(of("local")[0], format!("{}/./here.sh one at {}", place.folder.path().display(), folder.display()));
    assert_eq!(of("local")[1], "mesh default");
}

#[test]
fn a_dry_run_shows_what_would_be_started_where_and_with_which_variables() {
    // E-CLI: --dry-run.
    let place = Place::without_daemon(
        r#"
        [program.line]
        shell = "printf '<%s>\\n' \"$A\" \"it's\"; pwd"
        env = { A = "x  y's", B = "" }
        chdir = "/"
        [program.words]
        command = ["printf", "<%s>\\n", "a b", "it's", "$HOME", "*", "", "\"x\""]
        [program.local]
        command = ["./here.sh"]
        chdir = "sub dir"
        after = ["words"]
        "#,
    );
    let folder = place.folder.path().to_str().unwrap();
    let (code, planned, _) = place.run(&["--dry-run", "--json"]);
    let planned = objects(&planned);
    let all = vec!["after", "chdir", "command", "count", "env", "program"];
    assert!(code == 0 && planned.iter().all(|one| keys(one) == all), "{planned:?}");
    assert_eq!((&planned[0]["chdir"], &planned[0]["env"]), (&json!("/"), &json!({ "A": "x  y's", "B": "" })));
    assert_eq!((&planned[1]["chdir"], &planned[1]["env"]), (&json!(folder), &json!({})));
    assert_eq!(planned[2]["chdir"], format!("{folder}/sub dir"));
    // What is shown can be pasted into a shell.
    let (code, shown, _) = place.run(&["-n"]);
    assert_eq!(code, 0);
    assert_eq!(shown.lines().next().unwrap().split_whitespace().last(), Some("COMMAND"));
    let line = |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap();
    let command = |name: &str, first: &str| line(name)[line(name).find(first).unwrap()..].to_owned();
    let pasted = |command: &str| {
        let output = Command::new("sh").arg("-c").arg(command).current_dir("/").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(pasted(&command("line", "env ")), "<x  y's>\n<it's>\n/\n", "{shown}");
    assert_eq!(pasted(&command("words", "printf ")), "<a b>\n<it's>\n<$HOME>\n<*>\n<>\n<\"x\">\n", "{shown}");
    assert_eq!(pasted(planned[0]["command"].as_str().unwrap()), "<>\n<it's>\n/\n", "without variables");
    assert!(line("local").contains(&format!("'{folder}/sub dir'  ./here.sh")), "{shown}");
    assert!(line("line").contains("  /  "), "{shown}");
}

#[test]
fn what_is_disabled_elsewhere_or_not_chosen_is_not_started() {
    // E-CLI: disabled and on_host.
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let program = |name: &str, more: &str| format!("[program.{name}]\nshell = \"echo runs\"\n{more}\n");
    let text = [
        program("plain", ""),
        program("here", &format!("on_host = [\"nowhere\", \"{host}\"]")),
        program("there", "on_host = \"nowhere\""),
        program("off", &format!("disabled = true\non_host = \"{host}\"")),
        program("last", "after = [\"there\", \"here\"]"),
    ];
    let place = Place::without_daemon(&text.concat());
    let ran = |args: &[&str]| {
        let (code, output, errors) = place.run(args);
        assert_eq!(code, 0, "{errors}");
        let mut ran: Vec<String> = output.lines().map(|line| line.split_once(" | ").unwrap().0.trim().into()).collect();
        ran.sort_unstable();
        (ran, errors)
    };
    let (all, errors) = ran(&[]);
    assert_eq!(all, ["here", "last", "plain"]);
    for said in [
        "there is not started: runs on nowhere",
        "off is not started: disabled",
        "last does not wait for what is not started here: there",
    ] {
        assert!(errors.contains(said), "{said}: {errors}");
    }
    assert_eq!(ran(&["--only", "plain", "--only", "there"]).0, ["plain"]);
    assert_eq!(ran(&["-e", "plain", "-e", "last"]).0, ["here"]);
    let (all, errors) = ran(&["--only", "off"]);
    assert!(all.is_empty() && errors.contains("nothing to start"), "{errors}");
    let (_, planned, _) = place.run(&["--dry-run"]);
    assert!(planned.contains("(disabled)") && planned.contains("(runs on nowhere)"), "{planned}");
    let last = |line: &str| line.starts_with("last     1      here   ") && line.ends_with("  sh -c 'echo runs'");
    assert!(planned.lines().any(last), "{planned}");
    assert!(!planned.contains("  runs"), "nothing runs: {planned}");
}

#[test]
fn what_is_wrong_with_the_file_is_said_with_a_hint() {
    for (text, said, hint) in [
        ("[program.a]\nshel = \"x\"", "mesh.toml:2: unknown key 'program.a.shel'", "did you mean 'program.a.shell'?"),
        ("[program.a]\nshell = \"x\"\nafter = \"b\"", "'after' of a names program 'b'", "--dry-run"),
        ("[program.a]\nshell = \"x\"\nafter = \"a\"", "wait for each other: a after a", "remove one"),
        ("[program.a]", "mesh.toml:1: program.a: wants a command", "correct the line"),
        ("[program.meshd]\nshell = \"x\"", "that is what the daemon is called", "correct the line"),
    ] {
        let place = Place::empty();
        fs::write(place.file(), text).unwrap();
        let errors = place.home.fails(&["launch", place.file().to_str().unwrap()], 2, said);
        assert!(errors.contains(hint) && errors.contains("hint: "), "{errors}");
    }
    let place = Place::empty();
    let errors = place.home.fails(&["launch", "/nonexistent/mesh.toml"], 2, "cannot read /nonexistent/mesh.toml");
    assert!(errors.contains("hint: name the file"), "{errors}");
    fs::write(place.file(), "[program.camera]\nshell = \"x\"").unwrap();
    let errors = place.home.fails(&["launch", place.file().to_str().unwrap(), "-e", "camra"], 2, "--except names");
    assert!(errors.contains("did you mean 'camera'?"), "{errors}");
}

#[test]
fn programs_wait_for_topics_services_and_each_other() {
    let place = Place::new(
        r#"
        [program.last]
        shell = "echo last; meshd call wc 12345 --no-wait; meshd send jobs/a x --no-wait"
        after = [{ topic = "jobs/x", count = 2 }, { service = "wc" }, "middle"]
        ends_all = true
        [program.middle]
        shell = "echo middle; sleep 1000"
        after = "first"
        [program.first]
        shell = "echo first; sleep 1000"
        after_delay = "200ms"
        [program.listener]
        command = ["meshd", "listen", "jobs/**", "--name", "all"]
        count = 2
        start_delay = "300ms"
        [program.wc]
        command = ["meshd", "serve", "wc", "--exec", "wc -c"]
        start_delay = "300ms"
        "#,
    );
    let (code, output, errors) = place.run(&["--json"]);
    assert_eq!(code, 0, "{errors}");
    let events = objects(&output);
    let started: Vec<&str> = names(&events, "started");
    let at = |name: &str| started.iter().position(|started| *started == name).unwrap();
    assert_eq!((at("meshd"), at("last")), (0, started.len() - 1), "{started:?}");
    assert!(at("first") < at("middle"), "{started:?}");
    assert!(events.iter().any(|event| event["program"] == "last" && event["data"] == "5"), "{output}");
    place.assert_no_processes();
    let summaries = summaries(&events);
    assert_eq!(summary(&summaries, "last")["outcome"], "done");
    assert_eq!(summary(&summaries, "wc")["outcome"], "stopped");
    let text = |event: &Value| event["event"] == "stopping" && event["program"] == "last";
    assert!(events.iter().any(text), "{output}");
}

#[test]
fn who_waits_in_vain_fails_and_says_for_what() {
    // Z-PROC: a start that takes longer than it may.
    let place = Place::new(
        r#"
        [program.needy]
        shell = "echo never"
        after = { service = "resize" }
        after_timeout = "2500ms"
        [program.later]
        shell = "echo never"
        after = "needy"
        [program.missing]
        command = ["no-such-program"]
        [program.nowhere]
        shell = "echo never"
        chdir = "no/such/folder"
        "#,
    );
    let (code, output, errors) = place.run(&[]);
    assert_eq!(code, 1, "{errors}");
    assert!(!output.contains("never"), "{output}");
    for said in [
        "needy   * waits for somebody who offers resize",
        "needy   * failed for good: there is not somebody who offers resize, after 2s 500ms",
        "later   * failed for good: needy is not there",
        "missing * failed for good: cannot run no-such-program: No such file",
        "nowhere * failed for good: it cannot run in",
        "hint: ",
    ] {
        assert!(errors.contains(said), "{said}: {errors}");
    }
}

#[test]
fn a_daemon_that_runs_is_used_and_left_and_who_is_killed_is_there_again() {
    // Z-PROC: start and stop, a second start at the same address.
    let place = Place::new("[program.wc]\ncommand = [\"meshd\", \"serve\", \"wc\", \"--exec\", \"wc -c\"]\n");
    let daemon = place.home.run(&[]);
    let mut launch = place.launch(&["--json"]);
    let started = launch.until(|event| event["event"] == "started");
    assert_eq!(started["program"], "wc", "the daemon is not");
    assert_eq!(place.home.ok(&["call", "wc", "four"]), "4\n");
    let pid = Pid::from_raw(started["pid"].as_i64().unwrap() as i32).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let again = launch.until(|event| event["event"] == "started");
    assert_ne!(started["pid"], again["pid"]);
    assert_eq!(place.home.ok(&["call", "wc", "four", "--idempotent"]), "4\n");
    launch.signal(Signal::TERM);
    let (code, events, errors) = launch.end();
    assert_eq!((code, summaries(&events)[0]["restarts"].as_u64()), (0, Some(1)), "{errors}");
    assert!(daemon.peer().starts_with("12D3Koo"), "it runs on");
    assert!(daemon.stop().0.success());
}

#[test]
fn what_is_told_to_stop_before_it_starts_never_does_and_twice_changes_nothing() {
    // Z-PROC: shutdown before start; double shutdown.
    let place = Place::without_daemon(
        "[program.late]\nshell = \"echo never\"\nstart_delay = \"1h\"\n[program.now]\nshell = \"trap '' TERM; echo now; while :; do sleep 1; done\"\n",
    );
    let mut launch = place.launch(&["--json"]);
    launch.until(|event| event["event"] == "line");
    launch.signal(Signal::TERM);
    launch.until(|event| event["event"] == "stopping");
    launch.signal(Signal::TERM); // it would take 10 s else, which is less than PATIENCE: the signal that ended it tells
    let (code, events, errors) = launch.end();
    assert_eq!(code, 0, "{errors}");
    let summaries = summaries(&events);
    let late = summary(&summaries, "late");
    assert_eq!((&late["starts"], &late["outcome"], late.get("code")), (&0.into(), &"stopped".into(), None));
    let now = summary(&summaries, "now");
    assert_eq!((&now["signal"], &now["outcome"]), (&9.into(), &"stopped".into()));
    assert!(now["ran_ms"].as_u64().unwrap() < 9000, "{now}");
    place.assert_no_processes();
}

#[test]
fn exit_codes_tell_whether_a_program_failed_for_good() {
    for (program, code, outcome, starts) in [
        ("shell = \"exit 0\"", 0, "done", 1),
        ("shell = \"exit 7\"\nrestart = \"never\"", 1, "failed", 1),
        ("shell = \"exit 7\"\nmax_restarts = 2\nbackoff = { first = \"1ms\" }", 1, "failed", 3),
        ("shell = \"exit 0\"\nrestart = \"always\"\nmax_restarts = 2\nbackoff = { first = \"1ms\" }", 0, "done", 3),
        ("shell = \"test $MESHD_INSTANCE = 1\"\nrestart = \"never\"\ncount = 2", 1, "done", 1),
    ] {
        let place = Place::without_daemon(&format!("[program.a]\n{program}\n"));
        let (got, output, errors) = place.run(&["--json"]);
        let summaries = summaries(&objects(&output));
        assert_eq!(got, code, "{program}: {errors}");
        assert_eq!((&summaries[0]["outcome"], &summaries[0]["starts"]), (&outcome.into(), &starts.into()), "{program}");
    }
    let place = Place::without_daemon("[program.a]\nshell = \"exit 7\"\nrestart = \"never\"\n");
    let (_, output, errors) = place.run(&[]);
    let row = errors.lines().find(|line| line.starts_with("a        failed   1       0         exit code 7"));
    assert!(output.is_empty() && row.is_some(), "{errors}");
    // The daemon cannot be started.
    let place = Place::empty();
    fs::write(place.file(), "[daemon]\nargs = [\"--listen\", \"x\"]\n[program.a]\nshell = \"echo never\"\n").unwrap();
    let (code, output, errors) = place.run(&[]);
    assert!(code == 1 && output.is_empty() && errors.contains("--listen: 'x' is no address"), "{code} {errors}");
}

#[test]
fn what_programs_print_does_not_mix_and_is_shown_as_it_is() {
    let long = "head -c 100000 /dev/zero | tr '\\\\0' x";
    let place = Place::without_daemon(&format!(
        "[program.many]\nshell = \"for i in 1 2 3 4 5 6 7 8 9; do printf 'part of '; sleep 0.01; echo a line; done\"\n\
         count = 10\n\
         [program.long]\nshell = \"{long}\"\n\
         [program.binary]\nshell = \"printf '\\\\377\\\\000\\\\n\\\\033[1mbold'\"\n\
         [program.err]\nshell = \"echo wrong >&2\"\n"
    ));
    let mut launch = place.home.spawn(&["launch", place.file().to_str().unwrap()]);
    let mut output = Vec::new();
    launch.child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    let errors = launch.wait().2;
    let lines: Vec<&[u8]> = output.split(|byte| *byte == b'\n').collect();
    let is = |line: &[u8], start: &str| line.starts_with(start.as_bytes());
    for number in 1..=10 {
        let label = format!("{:7} | ", format!("many.{number}"));
        let of = lines.iter().filter(|line| is(line, &label));
        assert!(of.clone().all(|line| line.ends_with(b" | part of a line")), "{label}");
        assert_eq!(of.count(), 9, "{label}");
    }
    let pieces: Vec<_> = lines.iter().filter(|line| is(line, "long    | x")).collect();
    assert!(pieces.len() > 2 && pieces.iter().all(|piece| piece.len() < 50_000));
    assert_eq!(pieces.iter().map(|piece| piece.len() - 10).sum::<usize>(), 100_000);
    assert!(lines.contains(&&b"binary  | \xff\0"[..]) && lines.contains(&&b"binary  | \x1b[1mbold"[..]));
    assert!(errors.contains("err     | wrong\n"), "{errors}");
    let (_, output, _) = place.run(&["--json", "--only", "binary"]);
    let printed: Vec<Value> = objects(&output).into_iter().filter(|event| event["event"] == "line").collect();
    assert_eq!(keys(&printed[0]), ["base64", "event", "instance", "program", "stream", "time"]);
    assert_eq!((&printed[0]["base64"], &printed[1]["data"]), (&"/wA=".into(), &"\u{1b}[1mbold".into()));
    let (_, output, _) = place.run(&["--color", "always", "--only", "many"]);
    assert!(output.contains("\x1b[36mmany.3  | \x1b[0mpart of a line\n"), "{output:?}");
}

#[test]
fn who_floods_waits_for_a_slow_reader_and_can_be_stopped_meanwhile() {
    let place = Place::without_daemon("[program.flood]\nshell = \"yes\"\nstop_timeout = \"1s\"\n");
    let mut launch = Running::new(&mut place.command(&[]));
    let flood = || place.processes().into_iter().find(|(_, words)| words.starts_with("yes"));
    wait_until("it runs", || flood().is_some());
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", launch.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    // It stands still, as the processor time that it uses shows.
    let time = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().skip(11).take(2).collect::<Vec<_>>().join(" "))
    };
    let (pid, mut last, mut same) = (flood().unwrap().0, None, 0);
    wait_until("it waits", || {
        let now = time(pid);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same > 50
    });
    assert!(memory() < 100_000, "{} KiB", memory());
    let pid = Pid::from_child(&launch.child);
    kill_process(pid, Signal::TERM).unwrap();
    wait_until("it is gone, though nobody reads", || flood().is_none());
    let mut output = Vec::new();
    launch.child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    assert!(output.starts_with(b"flood | y\n"));
    assert_eq!(launch.wait().0.code(), Some(0));
}

#[test]
fn a_reader_that_has_read_enough_ends_all_with_success() {
    let place = Place::without_daemon("[program.flood]\nshell = \"yes\"\n");
    let mut launch = Running::new(&mut place.command(&[]));
    let mut output = BufReader::new(launch.child.stdout.take().unwrap());
    output.read_line(&mut String::new()).unwrap();
    drop(output);
    let (status, _, errors) = launch.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    place.assert_no_processes();
}

#[test]
#[cfg(target_os = "linux")]
fn what_left_its_group_ends_with_all_others() {
    let place = Place::without_daemon(
        "[program.away]\nshell = \"setsid sh -c 'trap \\\"\\\" TERM; echo away; while :; do sleep 1; done' & sleep 0.2; echo over\"\n",
    );
    let (code, output, errors) = place.run(&[]);
    assert_eq!(code, 0, "{errors}");
    assert!(output.contains("away | away\n") && output.contains("away | over\n"), "{output}");
    place.assert_no_processes();
}

/// A launch file in a folder of its own, and a home for its daemon.
pub(crate) struct Place {
    pub(crate) home: Home,
    folder: TempDir,
}

impl Place {
    pub(crate) fn empty() -> Self {
        Self { home: Home::new(), folder: TempDir::new().unwrap() }
    }

    /// With a daemon that is found by nobody.
    fn new(programs: &str) -> Self {
        Self::written(&format!("[daemon]\nargs = [\"--no-mdns\", \"--listen\", \"127.0.0.1:0\"]\n{programs}"))
    }

    fn without_daemon(programs: &str) -> Self {
        Self::written(&format!("[daemon]\nstart = false\n{programs}"))
    }

    fn written(text: &str) -> Self {
        let place = Self::empty();
        fs::write(place.file(), text).unwrap();
        place
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("mesh.toml")
    }

    fn script(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// To launch it, and mark all processes that come of it.
    fn command(&self, args: &[&str]) -> Command {
        self.command_of(&self.file(), args)
    }

    pub(crate) fn command_of(&self, file: &std::path::Path, args: &[&str]) -> Command {
        let mut command = self.home.command(&[&["launch", file.to_str().unwrap()], args].concat());
        command.env("LAUNCHED_AT", self.folder.path());
        command
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let (status, output, errors) = Running::new(&mut self.command(args)).wait();
        (status.code().unwrap_or(-1), output, errors)
    }

    fn launch(&self, args: &[&str]) -> Launch {
        let mut running = Running::new(&mut self.command(args));
        let output = BufReader::new(running.child.stdout.take().unwrap());
        let (hears, lines) = mpsc::sync_channel(100_000);
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| hears.send(line)));
        Launch { running, lines }
    }

    /// Processes that come of it: ids and what they run.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let token = format!("LAUNCHED_AT={}\0", self.folder.path().display());
        let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let ours = processes.filter(|process| {
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            environment.windows(token.len()).any(|part| part == token.as_bytes())
        });
        let described = ours.filter_map(|process| {
            let words = fs::read(process.join("cmdline")).ok()?;
            let id = process.file_name()?.to_str()?.parse().ok()?;
            Some((id, String::from_utf8_lossy(&words).replace('\0', " ")))
        });
        described.collect()
    }

    pub(crate) fn assert_no_processes(&self) {
        wait_until("all are gone", || self.processes().is_empty());
    }
}

/// A launch that runs.
struct Launch {
    running: Running,
    lines: mpsc::Receiver<String>,
}

impl Launch {
    fn event(&mut self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE).expect("something happens");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    fn until(&mut self, is: impl Fn(&Value) -> bool) -> Value {
        loop {
            let event = self.event();
            if is(&event) {
                return event;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.running.child), signal).unwrap();
    }

    /// Exit code, what else happened, and what was said.
    fn end(self) -> (i32, Vec<Value>, String) {
        let (status, _, errors) = self.running.wait();
        let rest: Vec<String> = self.lines.iter().collect();
        (status.code().unwrap_or(-1), objects(&rest.join("\n")), errors)
    }
}

fn objects(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn names<'a>(events: &'a [Value], event: &str) -> Vec<&'a str> {
    let events = events.iter().filter(|one| one["event"] == event);
    events.map(|one| one["program"].as_str().unwrap()).collect()
}

fn summaries(events: &[Value]) -> Vec<Value> {
    events.iter().filter(|event| event["event"] == "summary").cloned().collect()
}

fn summary<'a>(summaries: &'a [Value], program: &str) -> &'a Value {
    summaries.iter().find(|summary| summary["program"] == program).unwrap()
}
