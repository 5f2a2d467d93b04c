//! Running programs on other nodes: through the binary, as people do, and through the library.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use ciborium::cbor;
use meshd::config::ExecConfig;
use meshd::{
    Callee, Command, ExecError, Failure, Item, Node, NodeName, OpenOptions, Process, ProcessExit, ProcessSignal,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

use crate::cluster::{Cluster, PATIENCE, address, now, see_each_other, until, within};
use crate::daemon::{Daemon, Home, Running, keys, wait_until};
use crate::proxy::Proxy;
use crate::verbs::lines;

const ANY: &str = "[exec]\nany = true\n";

/// A daemon without settings, and one with these.
fn pair(settings: &str) -> (Daemon, Daemon) {
    let near = Home::new();
    near.ok(&["key", "new"]);
    let far = member(&near, settings);
    let (near, far) = (near.run(&["--name", "near"]), far.run(&["--name", "far"]));
    wait_until("they are linked", || [&near, &far].iter().all(|daemon| daemon.home.json(&["status"])["peers"] == 1));
    (near, far)
}

/// A home of the same mesh and machine.
fn member(of: &Home, settings: &str) -> Home {
    let home = of.beside();
    fs::create_dir_all(home.path().join("default")).unwrap();
    fs::copy(of.path().join("default/key"), home.path().join("default/key")).unwrap();
    fs::write(home.path().join("default/config.toml"), settings).unwrap();
    home
}

fn on_far<'a>(options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [&["exec", "--on", "far"], options, &["--"], command].concat()
}

/// Exit code, stdout and stderr of a program on the far machine.
fn exec(near: &Home, options: &[&str], command: &[&str], input: &[u8]) -> (i32, Vec<u8>, String) {
    let mut child = near.command(&on_far(options, command)).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = feeding.join(); // it may have ended before it read all
    (output.status.code().unwrap(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn sh(near: &Home, script: &str) -> (i32, String, String) {
    let (code, output, errors) = exec(near, &[], &["sh", "-c", script], b"");
    (code, String::from_utf8(output).unwrap(), errors)
}

/// Waits for a file with process ids, and gives them.
fn pids(file: &Path) -> Vec<Pid> {
    wait_until("it runs", || file.exists());
    let text = fs::read_to_string(file).unwrap();
    text.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
}

/// Whether it has ended; whoever has it now may not have noticed yet.
fn is_gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    test_kill_process(pid).is_err() || stat.contains(") Z ")
}

fn all_gone(pids: &[Pid]) {
    wait_until("they are gone", || pids.iter().all(|pid| is_gone(*pid)));
}

/// A program that starts others and says who they are, in a file that is whole when it is there.
fn family(file: &Path, first: &str) -> String {
    format!("{first} sleep 1000 & sleep 1001 & echo $$ $! > {0}.new; mv {0}.new {0}; wait; wait", file.display())
}

fn signal(running: &Running, signal: Signal) {
    kill_process(Pid::from_child(&running.child), signal).unwrap();
}

#[test]
fn a_program_of_another_machine_runs_as_if_it_ran_here() {
    // X-GW: set-up is correct; writing anything to 1 and 2 cannot corrupt the protocol.
    let (near, _far) = pair(ANY);
    let near = &near.home;
    assert_eq!(sh(near, "echo out; echo err >&2; exit 3"), (3, "out\n".to_owned(), "err\n".to_owned()));
    assert_eq!(sh(near, "exit 0").0, 0);
    assert_eq!(sh(near, "kill -9 $$").0, 128 + 9);
    assert_eq!(sh(near, "kill -TERM $$").0, 128 + 15);
    let (code, _, errors) = exec(near, &[], &["no-such-program"], b"");
    assert!(code == 127 && errors.starts_with("meshd: far: there is no program"), "{code} {errors}");
    let (code, _, errors) = exec(near, &[], &["/etc/passwd"], b"");
    assert!(code == 126 && errors.contains("hint: "), "{code} {errors}");
    // Every byte, and what looks like our own.
    let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    assert_eq!(exec(near, &[], &["cat"], &bytes), (0, bytes, String::new()));
    let both = "printf '\\023\\000\\025'; printf '\\024\\377x' >&2";
    let (_, output, errors) = exec(near, &[], &["sh", "-c", both], b"");
    assert_eq!((&output[..], &errors[..]), (&b"\x13\x00\x15"[..], "\x14\u{fffd}x"));
    // Words arrive as they are.
    let (_, output, _) = exec(near, &[], &["printf", "%s|", "a b", "", "$HOME", "é\n'\""], b"");
    assert_eq!(output, "a b||$HOME|é\n'\"|".as_bytes());
    let (_, output, _) =
        exec(near, &["--env", "A=b=c", "--chdir", "/usr"], &["sh", "-c", "pwd; echo $A $MESHD_MESH"], b"");
    assert_eq!(output, b"/usr\nb=c default\n");
    let (code, _, errors) = exec(near, &["--chdir", "/no/such/place"], &["pwd"], b"");
    assert!(code == 1 && errors.contains("there is no directory /no/such/place"), "{errors}");
    near.fails(&["exec", "--on", "nobody", "--", "uname"], 3, "there is no node nobody");
    near.fails(&["exec", "--on", "nobody", "uname", "--all", "--env"], 3, "there is no node nobody");
    near.fails(&["exec", "--on", "far", "--env", "x", "--", "uname"], 2, "sets no variable");
    near.fails(&["exec", "--on", "far", "--group", "far", "--", "uname"], 2, "cannot be used");
    near.fails(&["exec", "--", "uname"], 2, "--on");
    let far = near.json(&["peers"])["peer"].as_str().unwrap().to_owned();
    assert_eq!(near.ok(&["exec", "--on", &far, "--", "echo", "by its id"]), "by its id\n");
    assert_eq!(near.ok(&["exec", "--on", &format!("{far}/0"), "--", "echo", "by its id"]), "by its id\n");
}

#[test]
fn megabytes_go_through_a_program_and_come_back_whole() {
    let (near, _far) = pair(ANY);
    for mib in [1, 10, 100] {
        let bytes: Vec<u8> = (0..mib << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let began = now();
        let (code, output, errors) = exec(&near.home, &[], &["cat"], &bytes);
        assert!((code, output == bytes) == (0, true), "{mib} MiB: {code}: {errors}");
        println!("{mib} MiB there and back in {:?}", began.elapsed());
    }
}

#[test]
fn who_is_not_allowed_is_told_which_setting_that_takes() {
    let (near, far) = pair("[exec]\nallow = [\"echo\", \"/bin/sh\"]\n");
    assert_eq!(near.home.ok(&on_far(&[], &["echo", "yes"])), "yes\n");
    for command in ["uname", "/bin/uname", "./echo", "../bin/echo", "/tmp/echo", "no-such-program"] {
        let errors = near.home.fails(&on_far(&[], &[command]), 5, "[exec] allow");
        assert!(errors.starts_with("meshd: far: refused: ") && errors.contains("config.toml"), "{errors}");
    }
    for (options, command, hint) in [
        (&[][..], "uname", "[exec] allow = [\"uname\"]"),
        (&[], "./echo", "hint: name it without a path, or by the whole path"),
        (&["--env", "PATH=/tmp"], "echo", "hint: leave the variable out, or"),
    ] {
        let errors = near.home.fails(&on_far(options, &[command]), 5, "[exec]");
        assert!(errors.contains(hint), "{errors}");
    }
    near.home.fails(&on_far(&["--env", "LD_PRELOAD=/tmp/x.so"], &["echo"]), 5, "LD_PRELOAD");
    assert_eq!(near.home.ok(&on_far(&["--env", "LANG=C"], &["echo", "fine"])), "fine\n");
    // What runs a script has to be allowed, not the script.
    let scratch = TempDir::new().unwrap();
    let script = scratch.path().join("script");
    fs::write(&script, "#!/bin/sh\necho sent\n").unwrap();
    let script = script.to_str().unwrap();
    assert_eq!(near.home.ok(&["exec", "--on", "far", "--script", script]), "sent\n");
    near.home.fails(&["exec", "--on", "far", "--script", script, "--with", "bash"], 5, "'bash'");
    // The other way nothing is allowed at all.
    let errors = far.home.fails(&["exec", "--on", "near", "--", "echo"], 5, "[exec] allow");
    assert!(errors.contains("hint: "), "{errors}");
}

#[test]
fn rules_say_who_may_run_what_and_names_count_for_nothing() {
    let near = Home::new();
    near.ok(&["key", "new"]);
    let friend = near.ok(&["identity"]).trim().to_owned();
    let rules = format!(
        "{ANY}[[allow]]\nname = \"friends\"\nwho = [\"{friend}\"]\naction = [\"exec\"]\npattern = \"echo\"\n\
         [[allow]]\nname = \"nobody\"\nwho = []\naction = [\"exec\"]\npattern = \"uname\"\n"
    );
    let far = member(&near, &rules);
    let other = member(&near, "");
    // Who is called like a friend is none.
    let daemons = [near.run(&["--name", "near"]), far.run(&["--name", "far"]), other.run(&["--name", "near"])];
    wait_until("they are linked", || daemons.iter().all(|daemon| daemon.home.json(&["status"])["peers"] == 2));
    assert_eq!(near.ok(&on_far(&[], &["echo", "hello"])), "hello\n");
    other.fails(&on_far(&[], &["echo", "hello"]), 5, "'friends'");
    other.fails(&on_far(&[], &["/bin/echo", "hello"]), 5, "'friends'");
    near.fails(&on_far(&[], &["uname"]), 5, "'nobody'");
    near.fails(&on_far(&[], &["/usr/bin/uname"]), 5, "[[allow]]");
    assert_eq!(other.ok(&on_far(&[], &["printf", "free"])), "free");
}

#[test]
fn who_ran_what_is_logged_and_nothing_that_is_secret() {
    let (near, far) = pair("[exec]\nallow = [\"sh\"]\n");
    let identity = near.home.ok(&["identity"]).trim().to_owned();
    let (code, ..) = exec(&near.home, &["--env", "TOKEN=hush"], &["sh", "-c", "cat >/dev/null; exit 3"], b"whisper\n");
    assert_eq!(code, 3);
    near.home.fails(&on_far(&[], &["forbidden\nline"]), 5, "refused");
    let (_, _, log) = far.stop();
    let ran: Vec<&str> = log.lines().filter(|line| line.contains(&identity)).collect();
    assert!(ran.iter().any(|line| line.contains("runs a program") && line.contains("cat >/dev/null")), "{log}");
    assert!(ran.iter().any(|line| line.contains("has ended") && line.contains("exit code 3")), "{log}");
    assert!(ran.iter().any(|line| line.contains("forbidden\\nline") || line.contains("forbidden\\\\nline")), "{log}");
    assert!(!log.contains("hush") && !log.contains("whisper") && !log.contains("\nline"), "{log}");
}

#[test]
fn who_asks_in_vain_again_and_again_does_not_fill_the_log() {
    let (near, far) =
        pair("[exec]\nallow = [\"true\"]\n[[allow]]\nwho = []\naction = [\"exec\"]\npattern = \"true\"\n");
    for _ in 0..20 {
        near.home.fails(&on_far(&[], &["uname"]), 5, "refused"); // by the setting
        near.home.fails(&on_far(&[], &["true"]), 5, "refused"); // by the rule
    }
    let (_, _, log) = far.stop();
    let identity = near.home.ok(&["identity"]);
    let said = |what: &str| log.lines().filter(|line| line.contains(what)).collect::<Vec<_>>();
    assert_eq!(said("the program was not run").len(), 10, "{log}");
    let left_out = said("left_out=30");
    assert!(left_out.len() == 1 && left_out[0].contains(identity.trim()), "{log}");
}

#[test]
fn nothing_that_a_caller_says_makes_another_program_of_an_allowed_name() {
    let scratch = TempDir::new().unwrap();
    let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(at("evil/usr/bin")).unwrap();
    for name in ["evil/uname", "evil/usr/bin/uname"] {
        fs::write(at(name), "#!/bin/sh\necho evil\n").unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let uname = ["/usr/bin/uname", "/bin/uname"].into_iter().find(|path| Path::new(path).exists()).unwrap();
    symlink(uname, at("link")).unwrap();
    symlink(uname, at("evil/true")).unwrap();
    symlink(at("evil/uname"), at("uname")).unwrap();
    let (near, _far) = pair("[exec]\nallow = [\"uname\"]\n");
    let system = near.home.ok(&on_far(&[], &["uname"]));
    assert!(!system.contains("evil"), "{system}");
    // It is the same one wherever it is to run, and by the path that its name leads to.
    let (evil, place) = (at("evil"), at(""));
    for (options, command) in [
        (&["--chdir", &evil][..], "uname"),
        (&["--chdir", &place], "uname"),
        (&["--chdir", "/"], "uname"),
        (&[], uname),
        (&["--chdir", &evil], uname),
    ] {
        assert_eq!(near.home.ok(&on_far(options, &[command])), system, "{options:?} {command}");
    }
    // Anything else by that name, and anything that could lead elsewhere, is refused.
    let (link, linked, other) = (at("link"), at("uname"), at("evil/uname"));
    let around = format!("/usr/bin/..{uname}");
    for (options, command) in [
        (&["--chdir", &evil][..], "./uname"),
        (&["--chdir", &evil], "usr/bin/uname"),
        (&["--chdir", &evil], "../usr/bin/uname"),
        (&["--chdir", "/"], "./usr/bin/uname"),
        (&["--chdir", "/usr"], "../usr/bin/uname"),
        (&[], &link),
        (&[], &linked),
        (&[], &other),
        (&[], &around),
        (&[], "UNAME"),
        (&[], "uname "),
        (&[], "uname/"),
    ] {
        near.home.fails(&on_far(options, &[command]), 5, "[exec] allow");
    }
    for variable in [
        &format!("PATH={evil}")[..],
        "PATH=",
        "LD_PRELOAD=/x.so",
        "LD_LIBRARY_PATH=/x",
        "LD_AUDIT=/x.so",
        "BASH_ENV=/x",
        "ENV=/x",
        "GCONV_PATH=/x",
        "PYTHONPATH=/x",
        "BASH_FUNC_uname%%=() { echo evil; }",
        "ANY=() { :; }; echo evil",
    ] {
        let name = variable.split(['=', '%']).next().unwrap();
        near.home.fails(&on_far(&["--env", variable], &["uname"]), 5, name);
    }
    assert_eq!(near.home.ok(&on_far(&["--env", "Path=/x", "--env", "A=PATH=/x"], &["uname"])), system);
}

#[test]
fn a_flood_to_who_does_not_read_waits() {
    // X, a defect of its own: what nobody reads is accepted without bounds.
    let (near, far) = pair(ANY);
    let scratch = TempDir::new().unwrap();
    let count = scratch.path().join("count");
    let flood = format!(
        "i=0; while [ $i -lt 256 ]; do head -c 1048576 /dev/zero; i=$((i + 1)); echo $i > {0}.new; mv {0}.new {0}; done",
        count.display()
    );
    let mut child = near.home.command(&on_far(&[], &["sh", "-c", &flood])).spawn().unwrap();
    let so_far = || fs::read_to_string(&count).ok().and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(0);
    let before = [memory(&near), memory(&far)];
    wait_until("it floods", || so_far() > 0);
    // It comes to a stand: what does not happen has no event.
    let (mut stands_since, mut last) = (now(), so_far());
    wait_until("it waits", || {
        if so_far() != last {
            (stands_since, last) = (now(), so_far());
        }
        stands_since.elapsed() > Duration::from_millis(500)
    });
    assert!(last < 16, "{last} MiB are on their way to nobody");
    let mut all = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut all).unwrap();
    assert!(child.wait().unwrap().success() && all.len() == 256 << 20 && all.iter().all(|byte| *byte == 0));
    for (daemon, before) in [&near, &far].into_iter().zip(before) {
        let grown = memory(daemon).saturating_sub(before);
        println!("{last} MiB waited; memory grew by {grown} KiB");
        assert!(grown < 32 << 10, "{grown} KiB more");
    }
}

/// KiB that a daemon has had at most.
fn memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.running.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn stdin_that_is_not_wanted_holds_up_nobody() {
    let (near, _far) = pair(ANY);
    let endless = |command: &[&str]| {
        let mut running = Running::new(near.home.command(&on_far(&[], command)).stdin(Stdio::piped()));
        let mut stdin = running.child.stdin.take().unwrap();
        std::thread::spawn(move || while stdin.write_all(&[b'y'; 65536]).is_ok() {});
        running
    };
    let (status, output, _) = endless(&["head", "-c", "5"]).wait();
    assert_eq!((status.code(), &output[..]), (Some(0), "yyyyy"));
    let (status, output, _) = endless(&["sh", "-c", "exec 0<&-; sleep 0.3; echo done; exit 4"]).wait();
    assert_eq!((status.code(), &output[..]), (Some(4), "done\n"));
    // Signals get past what it does not read.
    let mut deaf = endless(&["sh", "-c", "trap 'echo got; exit 9' USR1; echo on; while :; do sleep 0.05; done"]);
    let mut output = BufReader::new(deaf.child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    std::thread::sleep(Duration::from_millis(300)); // so that stdin fills: nobody tells when it is full
    signal(&deaf, Signal::USR1);
    output.read_line(&mut line).unwrap();
    assert_eq!((deaf.wait().0.code(), &line[..]), (Some(9), "on\ngot\n"));
    // A stdin that nobody types into is no reason to wait.
    let mut silent = near.home.command(&on_far(&[], &["echo", "here"])).stdin(Stdio::piped()).spawn().unwrap();
    let held = silent.stdin.take();
    wait_until("it ends", || silent.try_wait().unwrap().is_some());
    drop(held);
    assert!(silent.wait().unwrap().success());
}

#[test]
fn nothing_is_left_when_the_caller_or_its_daemon_is_killed() {
    // X-TERM: no stray process after the end.
    let (near, far) = pair(ANY);
    let scratch = TempDir::new().unwrap();
    let file = scratch.path().join("one");
    let caller = near.home.spawn(&on_far(&[], &["sh", "-c", &family(&file, "")]));
    let ran = pids(&file);
    assert!(ran.iter().all(|pid| !is_gone(*pid)));
    drop(caller); // killed
    all_gone(&ran);
    let file = scratch.path().join("two");
    let caller = near.home.spawn(&on_far(&[], &["sh", "-c", &family(&file, "")]));
    let ran = pids(&file);
    let home = near.home.clone();
    drop(near); // killed
    let (status, _, errors) = caller.wait();
    assert!(status.code() == Some(6) && errors.contains("meshd: "), "{errors}");
    all_gone(&ran);
    drop((home, far));
}

#[test]
fn nothing_is_left_when_the_daemon_that_runs_it_is_killed_or_stopped() {
    // X-TERM, X-GW: remote kill. The caller hears of it at once.
    for killed in [true, false] {
        let (near, far) = pair(ANY);
        let scratch = TempDir::new().unwrap();
        let file = scratch.path().join("pids");
        let script = scratch.path().join("family");
        fs::write(&script, format!("#!/bin/sh\necho $0 > {}/name\n{}", scratch.path().display(), family(&file, "")))
            .unwrap();
        let caller = near.home.spawn(&["exec", "--on", "far", "--script", script.to_str().unwrap()]);
        let ran = pids(&file);
        let sent = fs::read_to_string(scratch.path().join("name")).unwrap();
        assert!(Path::new(sent.trim()).exists(), "{sent}");
        let began = now();
        if killed {
            drop(far);
        } else {
            assert!(far.stop().0.success());
        }
        let (status, _, errors) = caller.wait();
        println!("the caller ended {:?} after it began", began.elapsed());
        assert!(status.code() == Some(1) && errors.contains("meshd: far: ") && errors.contains("hint: "), "{errors}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        all_gone(&ran);
        wait_until("what was sent is gone", || !Path::new(sent.trim()).exists());
    }
}

#[test]
fn a_program_that_ignores_sigterm_is_killed_after_five_seconds() {
    let (near, _far) = pair(ANY);
    let scratch = TempDir::new().unwrap();
    let file = scratch.path().join("pids");
    let caller = near.home.spawn(&on_far(&[], &["sh", "-c", &family(&file, "trap '' TERM;")]));
    let ran = pids(&file);
    let began = now();
    drop(caller);
    wait_until("all are gone", || ran.iter().all(|pid| is_gone(*pid)));
    let took = began.elapsed();
    assert!((4..8).contains(&took.as_secs()), "{took:?}");
    // The same when time is up, which the caller is told.
    let file = scratch.path().join("late");
    let began = now();
    near.home.fails(
        &on_far(&["--timeout", "300ms"], &["sh", "-c", &family(&file, "trap '' TERM;")]),
        4,
        "longer than 300ms",
    );
    assert!((5..9).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    all_gone(&pids(&file));
    let began = now();
    near.home.fails(&on_far(&["--timeout", "300ms"], &["sleep", "1000"]), 4, "longer than 300ms");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn what_a_program_leaves_behind_ends_with_it_and_nobody_waits_for_its_pipes() {
    let (near, _far) = pair(ANY);
    let began = now();
    let (code, output, _) = sh(&near.home, "sleep 1000 & echo $!");
    assert_eq!(code, 0);
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    all_gone(&[Pid::from_raw(output.trim().parse().unwrap()).unwrap()]);
    // One that left on purpose may stay, and hold the pipe.
    let began = now();
    let (code, output, _) = sh(&near.home, "setsid sh -c 'echo $$; exec sleep 1000' & sleep 0.3; exit 5");
    let stray = Pid::from_raw(output.trim().parse().unwrap()).unwrap();
    assert!(code == 5 && began.elapsed() < Duration::from_secs(9), "{code} {:?}", began.elapsed());
    kill_process(stray, Signal::KILL).unwrap();
    // What follows within a moment is not lost.
    assert_eq!(sh(&near.home, "(sleep 0.2; echo late) & echo early").1, "early\nlate\n");
}

#[test]
fn ctrl_c_goes_to_the_program_and_a_second_one_ends_the_caller() {
    // Z-PROC: told to end, it ends with its exit code; told again, at once.
    let (near, _far) = pair(ANY);
    let begin = |trap: &str| {
        let script = format!("trap {trap} INT; echo $$; while :; do sleep 0.05; done");
        let mut running = near.home.spawn(&on_far(&[], &["sh", "-c", &script]));
        let mut output = BufReader::new(running.child.stdout.take().unwrap());
        let mut pid = String::new();
        output.read_line(&mut pid).unwrap();
        (running, output, Pid::from_raw(pid.trim().parse().unwrap()).unwrap())
    };
    let (running, mut output, _) = begin("'echo cleared up; exit 7'");
    signal(&running, Signal::INT);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((running.wait().0.code(), &rest[..]), (Some(7), "cleared up\n"));
    let (running, mut output, pid) = begin("'echo no'");
    signal(&running, Signal::INT);
    let mut heard = String::new();
    output.read_line(&mut heard).unwrap();
    assert_eq!(heard, "no\n");
    signal(&running, Signal::INT);
    assert_eq!(running.wait().0.code(), Some(130));
    all_gone(&[pid]);
    for (sent, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::QUIT, 131), (Signal::USR2, 140)] {
        let (running, _output, pid) = begin("''");
        signal(&running, sent);
        assert_eq!(running.wait().0.code(), Some(code), "as the program ended");
        all_gone(&[pid]);
    }
}

#[test]
fn a_script_is_sent_along_and_nothing_stays_there() {
    // X-GW: a program's source may vanish here; sent again, it is the new one; what it says of itself names its file and line.
    let (near, _far) = pair(ANY);
    let scratch = TempDir::new().unwrap();
    let path = scratch.path().join("my program.py");
    let run = |options: &[&str], args: &[&str]| {
        let all = [&["exec", "--on", "far", "--script", path.to_str().unwrap()], options, &["--"], args].concat();
        near.home.meshd(&all)
    };
    let say = |text: &str| fs::write(&path, text).unwrap();
    say(
        "#!/usr/bin/env python3\nimport os, sys\nprint(sys.argv[1:], oct(os.stat(sys.argv[0]).st_mode), sys.argv[0])\n",
    );
    let (code, output, errors) = run(&[], &["a b", "--on"]);
    assert!(code == 0 && output.starts_with("['a b', '--on'] 0o100700 "), "{output} {errors}");
    let sent = output.trim().split_once("0o100700 ").unwrap().1;
    assert!(sent.ends_with("/my program.py"), "{sent}");
    wait_until("what was sent is gone", || !Path::new(sent).exists()); // its end is told as soon as it has ended
    assert_eq!(
        fs::metadata(Path::new(sent).parent().unwrap().parent().unwrap()).unwrap().permissions().mode() & 0o777,
        0o700
    );
    say("import sys\nsys.exit(sys.stdin.read() + ' no')\n");
    let (code, _, errors) = run(&[], &[]);
    assert!(code == 2 && errors.contains("--with"), "{code} {errors}");
    let (code, _, errors) = run(&["--with", "python3"], &[]);
    assert_eq!((code, &errors[..]), (1, " no\n"), "SystemExit: its text and its code");
    say("#!/usr/bin/env python3\n\nraise ValueError('here')\n");
    let (code, _, errors) = run(&[], &[]);
    assert!(code == 1 && errors.contains("my program.py\", line 3") && errors.contains("ValueError: here"), "{errors}");
    say("#!/usr/bin/env python3\ndef f(:\n");
    let (code, _, errors) = run(&[], &[]);
    assert!(code == 1 && errors.contains("SyntaxError"), "{errors}");
    // One that takes many items, and one that is gone here while it runs there.
    let large = format!("#!/bin/sh\n: {}\necho whole\n", "x".repeat(3 << 20));
    say(&large);
    assert_eq!(run(&[], &[]).1, "whole\n");
    say("#!/bin/sh\nread line\necho $line $(wc -l < \"$0\")\n");
    let mut running = Running::new(
        near.home.command(&["exec", "--on", "far", "--script", path.to_str().unwrap()]).stdin(Stdio::piped()),
    );
    let mut stdin = running.child.stdin.take().unwrap();
    fs::rename(&path, scratch.path().join("elsewhere")).ok();
    // It may have been read before, or not at all: then this is no test of anything, and is said.
    stdin.write_all(b"go\n").unwrap();
    drop(stdin);
    let (_, output, errors) = running.wait();
    assert!(output == "go 3\n" || errors.contains("cannot read"), "{output} {errors}");
    near.home.fails(&["exec", "--on", "far", "--script", "/no/such/file"], 1, "cannot read /no/such/file");
}

#[test]
fn lines_are_messages_both_ways() {
    // X-CH by way of programs: a function multiplier; each message is answered before the next one goes.
    let (near, _far) = pair(ANY);
    let scratch = TempDir::new().unwrap();
    let path = scratch.path().join("times");
    let text = "import json, sys\nfactor = int(sys.argv[1])\nfor line in sys.stdin:\n    print(json.dumps({'out': factor * json.loads(line)}))\n";
    fs::write(&path, text).unwrap();
    let options = ["--messages", "--json", "--script", path.to_str().unwrap(), "--with", "python3"];
    let mut running = Running::new(near.home.command(&on_far(&options, &["10"])).stdin(Stdio::piped()));
    let (mut stdin, stdout) = (running.child.stdin.take().unwrap(), running.child.stdout.take().unwrap());
    let mut answers = BufReader::new(stdout).lines();
    for number in 0..5 {
        writeln!(stdin, "{number}").unwrap();
        let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        assert_eq!(keys(&answer), ["data", "node", "peer", "stream"]);
        assert_eq!(answer["data"], json!({ "out": 10 * number }));
    }
    drop(stdin);
    let end: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
    assert_eq!((&end["exit"], &end["node"], &end["error"]), (&0.into(), &"far".into(), &Value::Null));
    assert!(running.wait().0.success());
    let (_, output, _) = exec(&near.home, &["--messages"], &["tr", "a-z", "A-Z"], b"one\n\ntwo");
    assert_eq!(output, b"ONE\n\nTWO\n");
    let long = [&[b'x'; 1 << 20][..], b"\n", &[b'y'; 200_000]].concat();
    let (_, output, _) = exec(&near.home, &["--messages"], &["cat"], &long);
    assert!(output == [&long[..], b"\n"].concat(), "{}", output.len());
}

#[test]
fn many_nodes_run_it_and_the_worst_code_counts() {
    let near = Home::new();
    near.ok(&["key", "new"]);
    let homes = [member(&near, ANY), member(&near, ANY), member(&near, "")];
    let daemons = [
        near.run(&["--name", "near"]),
        homes[0].run(&["--name", "worker"]),
        homes[1].run(&["--name", "worker"]),
        homes[2].run(&["--name", "closed"]),
    ];
    wait_until("they are linked", || daemons.iter().all(|daemon| daemon.home.json(&["status"])["peers"] == 3));
    let ids: Vec<String> = daemons.iter().map(|daemon| format!("{}/0", daemon.peer())).collect();
    let errors = near.fails(&["exec", "--on", "worker", "--", "uname"], 2, "2 nodes have the name worker");
    assert!(errors.contains(&ids[1]) && errors.contains(&ids[2]) && errors.contains("--group worker"), "{errors}");
    assert_eq!(near.ok(&["exec", "--on", &ids[1], "--", "echo", "one"]), "one\n");
    near.fails(&["exec", "--group", "nobody", "--", "uname"], 3, "there is no group nobody");

    let (code, output, errors) =
        near.meshd(&["exec", "--group", "worker", "--", "sh", "-c", "echo a; echo e >&2; echo b"]);
    let mut said: Vec<&str> = output.lines().collect();
    assert_eq!((code, said.len()), (0, 4), "{output}{errors}");
    assert!(said.iter().all(|line| line.starts_with("worker@")), "{output}");
    said.sort_unstable_by_key(|line| line.rsplit_once("  ").unwrap().1);
    assert!(said[0].ends_with("  a") && said[3].ends_with("  b"), "{output}");
    assert_eq!(
        errors.lines().filter(|line| line.starts_with("worker@") && line.ends_with("  e")).count(),
        2,
        "{errors}"
    );
    assert!(errors.contains("NODE    PEER"), "{errors}");

    // One refuses; this machine runs nothing for others, and is not asked.
    let (code, output, errors) = near.meshd(&["exec", "--all", "--", "sh", "-c", "exit 3"]);
    assert_eq!((code, &output[..]), (5, ""), "{errors}");
    assert!(errors.contains("meshd: closed: refused: [exec] allow") && !errors.contains("near"), "{errors}");
    let table: Vec<&str> = errors.lines().skip_while(|line| !line.starts_with("NODE")).collect();
    assert_eq!(table.len(), 4, "{errors}");
    assert_eq!(near.meshd(&["exec", "--all", "--", "sh", "-c", "exit 9"]).0, 9);
    let (code, output, _) =
        near.meshd(&["exec", "--all", "--json", "--", "sh", "-c", "echo x; printf '\\377' >&2; exit 2"]);
    let said = lines(&output);
    assert_eq!((code, said.len()), (5, 2 * 3 + 1), "{output}");
    let ends: Vec<&Value> = said.iter().filter(|line| line.get("millis").is_some()).collect();
    assert_eq!(ends.len(), 3);
    assert!(ends.iter().all(|end| keys(end) == ["error", "exit", "millis", "node", "peer", "signal"]), "{output}");
    let refused = ends.iter().find(|end| end["node"] == "closed").unwrap();
    assert!(refused["exit"].is_null() && refused["error"].as_str().unwrap().contains("[exec] allow"), "{refused}");
    assert_eq!(
        said.iter().filter(|line| line["stream"] == "stderr" && line["base64"] == "/w==").count(),
        2,
        "{output}"
    );

    // stdin goes to all of them.
    let all = near.spawn_with(&["exec", "--group", "worker", "--", "wc", "-c"], &[7; 300_000]);
    let (status, output, errors) = all.wait();
    assert!(status.success(), "{errors}");
    assert_eq!(output.lines().filter(|line| line.ends_with("  300000")).count(), 2, "{output}");
}

#[test]
fn fifty_run_at_once() {
    // X-GW: many at once.
    let (near, _far) = pair(ANY);
    let all: Vec<Running> = (0..50)
        .map(|number| {
            let script = format!("sleep 0.5; cat; exit {number}");
            near.home.spawn_with(&on_far(&[], &["sh", "-c", &script]), format!("input {number}").as_bytes())
        })
        .collect();
    for (number, running) in all.into_iter().enumerate() {
        let (status, output, errors) = running.wait();
        assert_eq!((status.code(), output), (Some(number as i32), format!("input {number}")), "{errors}");
    }
}

#[test]
fn when_the_reader_has_read_enough_that_is_success() {
    let (near, _far) = pair(ANY);
    let scratch = TempDir::new().unwrap();
    let pid = scratch.path().join("pid");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec yes", pid.display());
    let mut child = near.home.command(&on_far(&[], &["sh", "-c", &script])).spawn().unwrap();
    let mut some = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap(); // and no more: it is closed here
    wait_until("it ends", || child.try_wait().unwrap().is_some());
    assert_eq!((&some, child.wait().unwrap().code()), (b"y\ny\n", Some(0)));
    all_gone(&pids(&pid));
}

#[test]
fn a_script_runs_a_program_over_the_local_socket_as_the_docs_say() {
    let home = Home::new();
    fs::create_dir_all(home.path().join("default")).unwrap();
    fs::write(home.path().join("default/config.toml"), ANY).unwrap();
    let _daemon = home.run(&[]);
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/LOCAL.md")).unwrap();
    let block = |heading: &str| {
        let (_, section) = docs.split_once(&format!("\n## {heading}\n")).unwrap();
        section.split_once("```python\n").unwrap().1.split_once("```").unwrap().0.to_owned()
    };
    let attach = "python = Mesh(\"python\")\n";
    let (client, _) =
        block("Example").split_once(attach).map(|(client, rest)| (client.to_owned(), rest.len())).unwrap();
    let program = [&client, attach, &block("Running programs")].concat();
    let mut python = std::process::Command::new("python3");
    let output = python.args(["-c", &program]).env("MESHD_HOME", home.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "5\n\nexit code 0\n", "{errors}");
}

// The library.

fn any() -> ExecConfig {
    ExecConfig { any: true, ..ExecConfig::default() }
}

fn shell(script: &str) -> Command {
    Command::new("sh").arg("-c").arg(script)
}

async fn offered(node: &Node) {
    let service = node.service("meshd.exec").unwrap();
    assert_eq!(service.wait_for_providers(1, PATIENCE).await.len(), 1);
}

async fn line(process: &mut Process) -> String {
    let mut line = String::new();
    let stdout = process.stdout.as_mut().unwrap();
    let read = async {
        while !line.ends_with('\n') {
            let mut byte = [0];
            stdout.read_exact(&mut byte).await.unwrap();
            line.push(byte[0].into());
        }
    };
    within("it prints a line", read).await;
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_a_value_with_pipes_an_end_and_an_exit() {
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let _serving = there.serve_exec(any()).await.unwrap();
    offered(&here).await;
    let all = here.exec(Callee::Any, shell("cat; echo err >&2; exit 3")).await.unwrap();
    assert_eq!(all.node(), there.id());
    let output = within("it ends", all.output()).await.unwrap();
    assert_eq!((output.exit, &output.stdout[..], &output.stderr[..]), (ProcessExit::Code(3), &b""[..], &b"err\n"[..]));

    let group = Callee::Group(NodeName::new("there").unwrap());
    let mut cat = here.exec(group.clone(), Command::new("cat").messages()).await.unwrap();
    cat.stdin.as_mut().unwrap().write_all(b"one\ntwo\n").await.unwrap();
    assert_eq!((line(&mut cat).await, line(&mut cat).await), ("one\n".to_owned(), "two\n".to_owned()));
    assert_eq!(within("it ends", cat.wait()).await, Ok(ProcessExit::Code(0)), "waiting closes its stdin");
    assert_eq!(within("again", cat.wait()).await, Ok(ProcessExit::Code(0)));
    assert!(cat.signal(ProcessSignal::Hangup).await.is_err());

    let script = "#!/bin/sh\necho \"$@\" $A; pwd\n";
    let sent = Command::script("s", script).unwrap().args(["x", "y"]).env("A", "b").chdir("/");
    let output = within("it ends", here.exec(Callee::Any, sent).await.unwrap().output()).await.unwrap();
    assert_eq!(output.stdout, "x y b\n/\n");
    assert!(Command::script("s", "echo").is_err());
    let sent = Command::script_with("sh", "s", "exit 4");
    assert_eq!(within("it ends", here.exec(Callee::Any, sent).await.unwrap().wait()).await, Ok(ProcessExit::Code(4)));

    let mut deaf =
        here.exec(Callee::Any, shell("trap '' TERM INT; echo on; while :; do sleep 0.1; done")).await.unwrap();
    line(&mut deaf).await;
    deaf.signal(ProcessSignal::Interrupt).await.unwrap();
    deaf.kill().await.unwrap();
    assert_eq!(within("it ends", deaf.wait()).await, Ok(ProcessExit::Signal(9)));

    let late = here.exec(Callee::Any, shell("sleep 1000").timeout(Duration::from_millis(100))).await.unwrap();
    assert!(matches!(within("it ends", late.output()).await, Err(ExecError::TimedOut(_))));
    let refused = |command| here.exec(Callee::Any, command);
    assert!(matches!(refused(Command::new("no-such-program")).await, Err(ExecError::NotFound(_))));
    assert!(matches!(refused(Command::new("/etc/passwd")).await, Err(ExecError::NotExecutable(_))));
    assert!(matches!(refused(Command::new("a\0b")).await, Err(ExecError::Failed(_))));
    let nobody = Callee::Group(NodeName::new("nobody").unwrap());
    assert!(matches!(here.exec(nobody, Command::new("true")).await, Err(ExecError::NotOpened(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drops_a_program_ends_it_and_who_stops_running_programs_ends_all() {
    // X-TERM: the end of a blocked one takes less than 5 s, and its caller is told.
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let serving = there.serve_exec(any()).await.unwrap();
    offered(&here).await;
    let family = "sleep 1000 & sleep 1001 & echo $$ $!; wait; wait";
    let mut one = here.exec(Callee::Any, shell(family)).await.unwrap();
    let parse = |line: String| -> Vec<Pid> {
        line.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
    };
    let ran = parse(line(&mut one).await);
    assert_eq!(u32::try_from(ran[0].as_raw_pid()).unwrap(), one.id());
    drop(one);
    until("it is gone", async || ran.iter().all(|pid| is_gone(*pid))).await;

    let mut two = here.exec(Callee::Any, shell(family)).await.unwrap();
    let ran = parse(line(&mut two).await);
    let began = now();
    let ending = tokio::spawn(serving.end());
    assert!(matches!(within("it ends", two.wait()).await, Err(ExecError::Lost(_))));
    within("all end", ending).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5) && ran.iter().all(|pid| is_gone(*pid)), "{:?}", began.elapsed());

    let mut serving = None;
    until("the service of before is gone", async || {
        serving = there.serve_exec(any()).await.ok();
        serving.is_some()
    })
    .await;
    let mut three = None;
    until("others know of the new one", async || {
        three = here.exec(Callee::Any, shell(family)).await.ok();
        three.is_some()
    })
    .await;
    let mut three = three.unwrap();
    let ran = parse(line(&mut three).await);
    drop(serving);
    until("it is gone", async || ran.iter().all(|pid| is_gone(*pid))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_link_that_is_cut_for_a_second_a_program_goes_on() {
    let cluster = Cluster::new();
    let apart = |name| cluster.builder(name).local(false).kad(false);
    let there = apart("there").start().await.unwrap();
    let proxy = Proxy::to(&address(&there).await).await;
    let here = apart("here").bootstrap([proxy.address()]).start().await.unwrap();
    see_each_other(&[here.clone(), there.clone()]).await;
    let _serving = there.serve_exec(any()).await.unwrap();
    offered(&here).await;
    let count = "i=0; while [ $i -lt 40 ]; do i=$((i + 1)); echo $i; sleep 0.05; done; cat; exit 6";
    let mut process = here.exec(Callee::Any, shell(count)).await.unwrap();
    let mut stdin = process.stdin.take().unwrap();
    assert_eq!(line(&mut process).await, "1\n");
    proxy.set_flows(false);
    proxy.cut();
    stdin.write_all(b"said meanwhile\n").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await; // how long the link is gone
    proxy.set_flows(true);
    drop(stdin);
    let output = within("it ends", process.output()).await.unwrap();
    let expected: String =
        (2..=40).map(|number| format!("{number}\n")).chain(["said meanwhile\n".to_owned()]).collect();
    assert_eq!((output.exit, &output.stdout[..]), (ProcessExit::Code(6), expected.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_keep_to_what_was_agreed_is_told_and_runs_nothing_more() {
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let _serving = there.serve_exec(any()).await.unwrap();
    offered(&here).await;
    let open = async |request: Vec<u8>| {
        let request = Item { codec: meshd::Codec::Cbor, payload: request.into() };
        here.open_with("meshd.exec", OpenOptions { request, ..OpenOptions::default() }).await.unwrap()
    };
    let end = async |channel: meshd::Channel| loop {
        match within("it ends", channel.next()).await {
            Ok(Some(_)) => {}
            Ok(None) => break "closed".to_owned(),
            Err(meshd::ChannelError::Failed(failed)) => break failed.failure.kind,
            Err(error) => break error.to_string(),
        }
    };
    let request = |value: ciborium::Value| {
        let mut bytes = Vec::new();
        ciborium::into_writer(&value, &mut bytes).unwrap();
        bytes
    };
    let cat = || request(cbor!({ "command" => ["cat"] }).unwrap());
    for garbage in [
        b"".to_vec(),
        b"\xff".to_vec(),
        request(cbor!({}).unwrap()),
        request(cbor!({ "command" => [] }).unwrap()),
        request(cbor!({ "command" => ["cat"], "unknown" => 1 }).unwrap()),
        request(cbor!({ "command" => ["cat"], "env" => { "A=B" => "" } }).unwrap()),
    ] {
        assert_eq!(end(open(garbage.clone()).await).await, Failure::BAD_REQUEST, "{garbage:?}");
    }
    for said in [&b""[..], b"\x07", b"\x01x", b"\x02", b"\x02\x63", b"\x03script"] {
        let channel = open(cat()).await;
        channel.send_bytes(said.to_vec()).await.unwrap();
        assert_eq!(end(channel).await, Failure::PROTOCOL, "{said:?}");
    }
    // More for stdin than there is room for, to one that reads nothing.
    let channel = open(request(cbor!({ "command" => ["sleep", "1000"] }).unwrap())).await;
    for _ in 0..5 {
        let _ = channel.send_bytes([&[0][..], &[7; 65_536]].concat()).await; // it may be over
    }
    assert_eq!(end(channel).await, Failure::PROTOCOL);
    // A name that would lead elsewhere is only a name.
    let script = cbor!({ "command" => ["sh"], "script" => { "name" => "../../../tmp/x/..", "args" => [] } });
    let channel = open(request(script.unwrap())).await;
    channel.send_bytes(&b"\x03echo $0"[..]).await.unwrap();
    channel.send_bytes(&b"\x04"[..]).await.unwrap();
    let mut said = Vec::new();
    while let Ok(Some(item)) = within("it ends", channel.next()).await {
        said.push(item.payload);
    }
    let name = said.iter().find(|item| item[0] == 17).expect("it says its name");
    assert!(String::from_utf8_lossy(name).contains("/meshd-exec-"), "{name:?}");
    // And the node goes on.
    let process = here.exec(Callee::Any, Command::new("true")).await.unwrap();
    assert!(within("it ends", process.output()).await.unwrap().exit.is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_lines_come_in_order_while_a_second_program_is_not_read() {
    // X, a defect of its own: a slow reader holds up the others.
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let _serving = there.serve_exec(any()).await.unwrap();
    offered(&here).await;
    let _unread = here.exec(Callee::Any, Command::new("yes")).await.unwrap();
    let mut seq = here.exec(Callee::Any, Command::new("seq").arg("1000")).await.unwrap();
    let mut lines = tokio::io::BufReader::new(seq.stdout.take().unwrap()).lines();
    for number in 1..=1000 {
        let line = within("a line comes", lines.next_line()).await.unwrap();
        assert_eq!(line, Some(number.to_string()));
    }
    assert_eq!(within("it ends", seq.wait()).await, Ok(ProcessExit::Code(0)));
}

// An example.

#[test]
fn a_file_is_worked_on_by_a_program_at_another_node() {
    // The talk on execnet: data_in, data_out.
    let (near, _far) = pair("[exec]\nallow = [\"python3\"]\n");
    let scratch = TempDir::new().unwrap();
    let data = scratch.path().join("data");
    let text: String = (0..50_000).map(|number| format!("line {number} of many\n")).collect();
    fs::write(&data, &text).unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/remote_filter.sh");
    let mut search = vec![Path::new(env!("CARGO_BIN_EXE_meshd")).parent().unwrap().to_owned()];
    search.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    let meshd = near.home.command(&[]); // for its environment
    let mut command = std::process::Command::new(example);
    command.args(["far".as_ref(), data.as_os_str()]).env("PATH", std::env::join_paths(search).unwrap());
    command.envs(meshd.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), text.to_uppercase());
    assert!(errors.starts_with("200000 words, checksum "), "{errors}");
}

/// A program that was asked for by hand.
async fn asked(node: &Node, request: &ciborium::Value) -> meshd::Channel {
    let mut bytes = Vec::new();
    ciborium::into_writer(request, &mut bytes).unwrap();
    let request = Item { codec: meshd::Codec::Cbor, payload: bytes.into() };
    node.open_with("meshd.exec", OpenOptions { request, ..OpenOptions::default() }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_reads_keeps_nothing_running_and_holds_up_no_end() {
    // X-TERM: what was left behind is ended although nobody takes the exit code.
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let serving = there.serve_exec(any()).await.unwrap();
    offered(&here).await;
    let scratch = TempDir::new().unwrap();
    let file = scratch.path().join("pids");
    // Deaf, and without a hold on the pipes. What is printed then fills the channel to the last byte.
    let script = format!(
        "(trap '' TERM; exec sleep 1000) >/dev/null 2>&1 </dev/null & echo $$ $! > {0}.new; mv {0}.new {0}; \
         head -c 262144 /dev/zero",
        file.display()
    );
    let unread = asked(&here, &cbor!({ "command" => ["sh", "-c", &script[..]] }).unwrap()).await;
    let mut ran = Vec::new();
    until("it runs", async || {
        ran = fs::read_to_string(&file).unwrap_or_default().split_whitespace().flat_map(str::parse).collect();
        ran.len() == 2
    })
    .await;
    until("all are gone", async || ran.iter().all(|pid| is_gone(Pid::from_raw(*pid).unwrap()))).await;
    within("the end of all", serving.end()).await;
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_begins_to_send_a_program_along_holds_up_no_end() {
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let serving = there.serve_exec(any()).await.unwrap();
    offered(&here).await;
    let request = cbor!({ "command" => ["sh"], "script" => { "name" => "never-sent-whole", "args" => [] } }).unwrap();
    let unsent = asked(&here, &request).await;
    let ours = format!("meshd-exec-{}-", std::process::id());
    until("its file is there", async || {
        let folders = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        let folders = folders.filter(|folder| folder.file_name().to_string_lossy().starts_with(&ours));
        let places = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
        places.into_iter().any(|place| place.path().join("never-sent-whole").exists())
    })
    .await;
    within("the end of all", serving.end()).await;
    assert!(within("it is told", unsent.next()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_line_that_is_larger_than_all_room_the_next_ones_wait_for_room_again() {
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let _serving = there.serve_exec(any()).await.unwrap();
    offered(&here).await;
    let scratch = TempDir::new().unwrap();
    let go = scratch.path().join("go");
    let script =
        format!("head -c 1048577 > /dev/null; echo got; while [ ! -e {} ]; do sleep 0.02; done; wc -c", go.display());
    let mut process = here.exec(Callee::Any, shell(&script).messages()).await.unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(&[&[b'x'; 1 << 20][..], b"\n"].concat()).await.unwrap();
    assert_eq!(line(&mut process).await, "got\n");
    let mut writing = tokio::spawn(async move {
        let small = [&[b'y'; 1023][..], b"\n"].concat();
        for _ in 0..800 {
            stdin.write_all(&small).await.unwrap();
        }
    });
    // It comes to a stand: what does not happen has no event.
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut writing).await.is_err(), "nobody reads it");
    fs::write(&go, "").unwrap();
    assert_eq!(within("it prints", process.output()).await.unwrap().stdout, "819200\n");
    writing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_too_long_is_the_end_of_stdin() {
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let _serving = there.serve_exec(any()).await.unwrap();
    offered(&here).await;
    let mut process = here.exec(Callee::Any, shell("cat; exit 4").messages()).await.unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(b"short\n").await.unwrap();
    let long = vec![b'x'; (16 << 20) + (1 << 20)];
    assert!(within("it is not taken", stdin.write_all(&long)).await.is_err());
    let output = within("it ends", process.output()).await.unwrap();
    assert_eq!((output.exit, &output.stdout[..]), (ProcessExit::Code(4), &b"short\n"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_runs_a_program_in_the_name_of_another() {
    let cluster = Cluster::new();
    let [here, there] = cluster.start_all(["here", "there"]).await;
    let _serving = there.serve_exec(any()).await.unwrap();
    offered(&here).await;
    let ask = shell("echo $MESHD_FROM $MESHD_MESH").env("MESHD_FROM", "root").env("MESHD_MESH", "another");
    let output = here.exec(Callee::Any, ask).await.unwrap().output().await.unwrap();
    let expected = format!("{} {}\n", here.id(), here.mesh());
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}
