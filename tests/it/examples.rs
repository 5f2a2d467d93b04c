//! Every example works, and says what it is there to show.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use meshd::NetworkKey;
use tempfile::TempDir;

use crate::cluster::PATIENCE;
use crate::daemon::Running;
use crate::launch::Place;

/// Examples that end by themselves, and what a reader has to find in what they print, in this order.
const SHOWN: &[(&str, &[&str])] = &[
    ("cache", &["the origin looks Turku up\nTurku has 50000 people\nTurku has 50000 people\n", "Turku has 50000"]),
    ("call", &["6 * 7 = 42\n", "42 / 6 = 7\n", "1 / 0 failed there: 1 divided by 0\n"]),
    (
        "chained",
        &["the camera rests\n", "the viewer sees", "the camera rests\n", "for the time 2\n", "the viewer sees"],
    ),
    ("chat", &["alice hears: Hello", "Carol has taken over", "carol hears: Please hurry.\n", "Bob has hung up"]),
    ("embed", &["sent to 1 of 1 nodes\n", "thermometer says: Reading { sensor: \"attic\"", "as Node("]),
    ("farm", &["tasks done by each worker: ["]),
    ("feedback", &["the goal was 18 degrees and is 18 now\n", "heated with", "is 21 now\n", "it is 20."]),
    ("proxy", &["not -> NOT\n", "nothing to shout\n", "loud -> LOUD\n", "4 calls went through, 1 failed\n"]),
    (
        "readings",
        &["  21.0 degrees\n", "the reader is done with the attic\n", "cellar rests)\n", "the wind took the sensor\n"],
    ),
    ("redelivery", &["Ann dies, with job ", "8 of 8 jobs are done, "]),
    ("workers", &["took 100 jobs, in order: true", "took 300 jobs, in order: true"]),
];

const CONFIG: &str = "listen = [\"127.0.0.1:0\"]\n[discovery]\nmdns = false\n";

/// The others: two that run until they are stopped, and a measurement.
const ENDLESS: [&str; 3] = ["listener", "sender", "steady"];

/// Launch files, or folders with one; what somebody has to print in this order; and so many lines of whom.
const LAUNCHED: [(&str, &[&str], &str, usize); 3] = [
    ("mesh.toml", &["listener  | greetings/mars", "hello from greeter"], "listener  | greetings/mars", 2),
    ("robot", &["pilot   | wheels: ahead\n", "pilot   | the wall is at ", "pilot   | wheels: stop\n"], "pilot   | ", 3),
    ("task-farm", &["farmer   | worker ", "farmer   | all tasks are done\n"], "farmer   | worker ", 10),
];

#[test]
fn launch_files_start_what_they_say_and_end_it() {
    for (name, shown, label, count) in LAUNCHED {
        let place = Place::empty();
        place.home.config(CONFIG);
        let mut file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        if file.is_dir() {
            file.push("mesh.toml");
        }
        let (status, output, errors) = Running::new(&mut place.command_of(&file, &[])).wait();
        assert_eq!(status.code(), Some(0), "{name}:\n{output}\n{errors}");
        println!("{name}:\n{output}\n{errors}");
        let mut rest = output.as_str();
        for line in shown {
            let at = rest.find(line).unwrap_or_else(|| panic!("{name}: {line:?} is not there in its turn:\n{output}"));
            rest = &rest[at + line.len()..];
        }
        assert_eq!(output.lines().filter(|line| line.starts_with(label)).count(), count, "{name}:\n{output}");
        match name {
            "task-farm" => {
                let working = (1..=4).filter(|worker| output.contains(&format!("worker {worker}: "))).count();
                assert!(working > 1, "they share the work: {output}");
                assert!(output.contains(": 7 * 7 = 49\n"), "{output}");
            }
            "robot" => assert!(output.contains("display | sensors/distance"), "{output}"),
            _ => {}
        }
        place.assert_no_processes();
    }
}

/// Scripts, which the tests of the verbs run.
const SCRIPTS: [&str; 2] = ["backup", "hot_sync"];
/// By the tests of what they show.
const RUN_ELSEWHERE: [&str; 1] = ["remote_filter"];

#[test]
fn examples_show_what_they_are_there_for() {
    for (name, shown) in SHOWN {
        let place = TempDir::new().unwrap();
        // A home for the one that has one. It listens on loopback alone.
        let home = place.path().join("meshd");
        fs::create_dir_all(home.join("default")).unwrap();
        fs::write(home.join("default/config.toml"), CONFIG).unwrap();
        let (status, output, errors) = run(name, &place, &[home.to_str().unwrap()]).wait();
        assert!(status.success(), "{name}: {status}\n{output}\n{errors}");
        assert_eq!(errors, "", "{name}");
        let mut rest = output.as_str();
        for line in *shown {
            let at = rest.find(line).unwrap_or_else(|| panic!("{name}: {line:?} is not there in its turn:\n{output}"));
            rest = &rest[at + line.len()..];
        }
        println!("{name}:\n{output}");
        match *name {
            "cache" => assert_eq!(output.matches("the origin looks").count(), 2, "each town is looked up once"),
            "farm" => check_farm(&output),
            "readings" => assert!(output.contains("attic rests)\n"), "who reads no more stops the sensor:\n{output}"),
            "redelivery" => assert!(!output.ends_with(" 0 of them by another worker than the first\n"), "{output}"),
            _ => {}
        }
    }
}

/// The first worker is eight times as fast as the last.
fn check_farm(output: &str) {
    let (_, shares) = output.rsplit_once('[').unwrap();
    let shares: Vec<u32> = shares.trim_end().trim_end_matches(']').split(", ").map(|n| n.parse().unwrap()).collect();
    assert_eq!((shares.len(), shares.iter().sum()), (4, 30), "{output}");
    assert!(shares[0] > shares[2] && shares[0] > shares[3], "faster workers take more: {output}");
}

#[test]
fn a_sender_and_a_listener_meet() {
    let place = TempDir::new().unwrap();
    let key = place.path().join("key");
    NetworkKey::generate().write_new(&key).unwrap();
    let mut listener = run("listener", &place, &["greetings/*"]);
    let mut sender = run("sender", &place, &["greetings/you"]);
    let printed = BufReader::new(listener.child.stdout.take().unwrap());
    let (hears, heard) = mpsc::sync_channel(1);
    std::thread::spawn(move || hears.send(printed.lines().nth(1).unwrap().unwrap()));
    let greeting = heard.recv_timeout(PATIENCE).expect("it hears a greeting");
    assert!(greeting.starts_with("greetings/you from sender, number "), "{greeting}");
    assert!(sender.is_running() && listener.is_running());
}

#[test]
fn every_example_is_run_or_known_to_run_for_ever() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut there: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let launched = LAUNCHED.map(|(name, ..)| name.trim_end_matches(".toml"));
    let mut known: Vec<&str> = SHOWN
        .iter()
        .map(|(name, _)| *name)
        .chain(ENDLESS)
        .chain(SCRIPTS)
        .chain(RUN_ELSEWHERE)
        .chain(launched)
        .collect();
    there.sort_unstable();
    known.sort_unstable();
    assert_eq!(there, known);
}

/// Starts an example where it meets nobody but what else is started there.
fn run(name: &str, place: &TempDir, args: &[&str]) -> Running {
    let mut command = Command::new(built(name));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MESHD_")) {
        command.env_remove(name);
    }
    let at = |part: &str| place.path().join(part);
    command.env("HOME", at("home")).env("MESHD_RUNTIME_DIR", at("run")).env("MESHD_KEY_FILE", at("key"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::new(&mut command)
}

/// Examples stand beside the folder of the test's own program.
fn built(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(path.exists(), "no {}: `cargo test` builds the examples, `cargo test --test it` does not", path.display());
    path
}
