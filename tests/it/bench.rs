//! `meshd bench`: figures that can be believed, and no process that outlives it.

use std::fs;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

#[cfg(target_os = "linux")]
use crate::daemon::wait_until;
use crate::daemon::{Home, keys};

/// A machine to measure on: nothing but what `bench` puts there is in its temporary directory.
struct Machine {
    home: Home,
    scratch: TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { home: Home::new(), scratch: TempDir::new().unwrap() }
    }

    fn bench(&self, args: &[&str]) -> Command {
        let mut command = self.home.command(&[&["bench"], args].concat());
        command.env("TMPDIR", self.scratch.path());
        command
    }

    /// Exit code, rows and talk of a bench that runs to its end.
    fn rows(&self, args: &[&str]) -> (Option<i32>, Vec<Value>, String) {
        let output = self.bench(&[args, &["--json"]].concat()).output().unwrap();
        let rows = String::from_utf8(output.stdout).unwrap();
        let rows = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (output.status.code(), rows, String::from_utf8(output.stderr).unwrap())
    }

    fn is_clean(&self) -> bool {
        fs::read_dir(self.scratch.path()).unwrap().next().is_none() && !self.home.path().exists()
    }
}

#[test]
fn figures_are_objects_that_say_what_was_measured() {
    let machine = Machine::new();
    let few = ["--quick", "--time", "40ms", "--count", "60", "--fan-out", "5", "--idle", "2", "--rounds", "2"];
    let (code, rows, errors) = machine.rows(&[&few[..], &["--transport", "tcp", "--size", "100"]].concat());
    assert_eq!(code, Some(0), "{errors}");
    let benches: Vec<&str> = rows.iter().map(|row| row["bench"].as_str().unwrap()).collect();
    assert_eq!(benches, ["topic", "echo", "echo", "call", "call", "fan-out", "start", "idle"]);
    for row in &rows {
        assert_eq!((&row["transport"], &row["build"]), (&"tcp".into(), &"debug".into()), "{row}");
    }
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));

    let topic = &rows[0];
    let common = ["bench", "build", "lost", "mb_per_s", "messages", "msg_per_s", "size", "transport"];
    assert_eq!(keys(topic), common);
    assert_eq!((&topic["size"], &topic["messages"], &topic["lost"]), (&100.into(), &60.into(), &0.into()));
    let rate = number(topic, "msg_per_s");
    assert!(rate > 60.0, "{topic}");
    assert!((number(topic, "mb_per_s") - rate * 100.0 / 1e6).abs() < 0.06, "both are rounded: {topic}");

    for (row, load) in [(&rows[1], "idle"), (&rows[2], "half")] {
        assert_eq!((&row["load"], &row["lost"]), (&load.into(), &0.into()), "{row}");
        assert!(row["samples"].as_u64().is_some_and(|samples| (1..=60).contains(&samples)), "{row}");
    }
    // It keeps to its pace unless the machine is too busy: never faster.
    assert!(number(&rows[2], "msg_per_s") < rate, "{rows:?}");
    for (row, in_flight) in [(&rows[3], 1), (&rows[4], 64)] {
        assert_eq!(row["in_flight"], in_flight);
        assert_eq!(row["calls"], 60, "{row}");
        assert!(number(row, "calls_per_s") > 1.0, "{row}");
    }
    for row in &rows[1..5] {
        let quantiles = ["p50_us", "p99_us", "p999_us", "max_us"].map(|key| number(row, key));
        assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{row}");
    }
    // One at a time: the time of a call and their number are two sides of one thing.
    assert!(number(&rows[3], "calls_per_s") * number(&rows[3], "p50_us") / 1e6 < 2.0, "{}", rows[3]);

    let fan_out = &rows[5];
    assert_eq!((&fan_out["listeners"], &fan_out["processes"]), (&5.into(), &4.into()));
    assert_eq!(
        (&fan_out["messages"], &fan_out["lost"], &fan_out["frames_per_link"]),
        (&300.into(), &0.into(), &1.0.into())
    );
    let per_message = number(fan_out, "delivered_per_s") / number(fan_out, "published_per_s");
    assert!((per_message - 5.0).abs() < 0.01, "{fan_out}");

    let start = &rows[6];
    assert_eq!(keys(start), ["bench", "build", "max_ms", "median_ms", "starts", "transport"]);
    assert!(start["starts"] == 3 && number(start, "median_ms") > 1.0, "{start}");
    assert!(number(start, "max_ms") >= number(start, "median_ms"), "{start}");
    let idle = &rows[7];
    let common = ["bench", "build", "cpu_percent", "peers", "pss_kib", "rss_kib", "seconds", "transport"];
    assert_eq!((keys(idle), &idle["peers"]), (common.to_vec(), &2.into()));
    assert!(number(idle, "rss_kib") > 1000.0 && number(idle, "cpu_percent") < 100.0, "{idle}");
    assert!(machine.is_clean(), "it leaves nothing, and makes no home");
    #[cfg(target_os = "linux")]
    assert!(machine.peers().is_empty());
}

#[test]
fn figures_are_only_of_links_of_the_kind_that_they_are_said_to_be() {
    let machine = Machine::new();
    let few = ["--only", "call", "--time", "20ms", "--count", "5", "--in-flight", "1"];
    let of = |rows: &[Value]| -> Vec<String> {
        rows.iter().map(|row| row["transport"].as_str().unwrap().to_owned()).collect()
    };
    let (code, both, errors) = machine.rows(&few);
    assert_eq!(code, Some(0), "{errors}");
    let (code, unix, refusal) = machine.rows(&[&few[..], &["--transport", "unix"]].concat());
    if errors.contains("left out: unix") {
        // What cannot be had is left out of what is there, and is an error where it was asked for.
        assert_eq!((of(&both), code, of(&unix)), (vec!["tcp".to_owned()], Some(1), Vec::new()));
        assert!(refusal.contains("tcp here, not unix") && refusal.contains("hint: "), "{refusal}");
    } else {
        assert_eq!((of(&both), code), (vec!["unix".to_owned(), "tcp".to_owned()], Some(0)), "{refusal}");
        assert_eq!(of(&unix), ["unix"]);
    }
}

#[test]
fn the_mesh_goes_on_when_one_that_was_started_in_it_leaves() {
    let (code, rows, errors) = Machine::new().rows(&["--quick", "--only", "start"]);
    assert_eq!(code, Some(0), "{errors}");
    for row in rows {
        // Who does not find the others at once looks again after 2 s.
        assert!(row["starts"] == 3 && row["max_ms"].as_f64().unwrap() < 1900.0, "{row}");
    }
}

#[test]
fn people_read_what_it_is_measured_on_and_tables() {
    let machine = Machine::new();
    let few = ["--transport", "tcp", "--only", "topic,call", "--time", "20ms", "--count", "5", "--size", "1KiB"];
    let output = machine.bench(&few).output().unwrap();
    let (text, talk) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(text.starts_with("meshd ") && text.lines().next().unwrap().contains("debug build"), "{text}");
    assert!(talk.contains("DEBUG BUILD"), "{talk}");
    assert!(text.contains("LINK  SIZE   MESSAGES/S") && text.contains("tcp   1 KiB  64"), "{text}");
}

#[test]
fn bad_arguments_are_told() {
    let home = Home::new();
    home.fails(&["bench", "--size", "0"], 2, "at least 1");
    home.fails(&["bench", "--size", "1GiB"], 2, "at most 64 MiB");
    home.fails(&["bench", "--time", "soon"], 2, "write 300ms");
    home.fails(&["bench", "--only", "everything"], 2, "fan-out");
}

#[test]
fn where_there_is_no_room_for_a_folder_it_says_so() {
    let machine = Machine::new();
    let output = machine.bench(&[]).env("TMPDIR", machine.scratch.path().join("none")).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("cannot make a directory") && errors.contains("hint: is the temporary directory"),
        "{errors}"
    );
}

#[test]
fn a_peer_without_anybody_who_measures_ends() {
    assert_eq!(Home::new().ok(&["bench-peer"]), "");
}

#[cfg(target_os = "linux")]
mod processes {
    use std::fs;
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Child, ExitStatus, Stdio};
    use std::sync::mpsc;

    use rustix::process::{Pid, Signal, kill_process};

    use super::{Machine, wait_until};
    use crate::cluster::PATIENCE;

    impl Machine {
        /// A bench that goes on for as long as one lets it, once it measures.
        fn endless(&self, only: &str) -> Endless {
            let args = ["--transport", "tcp", "--only", only, "--time", "1h"];
            let mut child = self.bench(&args).stdout(Stdio::null()).spawn().unwrap();
            let mut errors = BufReader::new(child.stderr.take().unwrap());
            let (begun, has_begun) = mpsc::sync_channel(1);
            let marker = format!("tcp: {only}");
            let talk = std::thread::spawn(move || {
                let mut talk = String::new();
                while !talk.contains(&marker) && errors.read_line(&mut talk).unwrap() > 0 {}
                begun.send(()).unwrap();
                errors.read_to_string(&mut talk).unwrap();
                talk
            });
            has_begun.recv_timeout(PATIENCE).expect("a bench begins");
            Endless { child, talk: Some(talk) }
        }

        /// The peer processes that a bench of this machine has started and that live.
        pub(super) fn peers(&self) -> Vec<i32> {
            let scratch = format!("TMPDIR={}", self.scratch.path().display());
            let processes = fs::read_dir("/proc").unwrap().flatten();
            let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
            let ours = |pid: &i32| {
                let read = |what: &str| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
                let has = |text: &[u8], word: &str| text.split(|byte| *byte == 0).any(|part| part == word.as_bytes());
                has(&read("cmdline"), "bench-peer") && has(&read("environ"), &scratch)
            };
            pids.filter(ours).collect()
        }
    }

    struct Endless {
        child: Child,
        talk: Option<std::thread::JoinHandle<String>>,
    }

    impl Drop for Endless {
        fn drop(&mut self) {
            let _ = self.child.kill(); // it has ended, unless the test failed
        }
    }

    impl Endless {
        fn wait(mut self) -> (ExitStatus, String) {
            let mut ended = None;
            wait_until("the bench ends", || {
                ended = self.child.try_wait().unwrap();
                ended.is_some()
            });
            (ended.unwrap(), self.talk.take().unwrap().join().unwrap())
        }
    }

    fn kill(pid: i32, signal: Signal) {
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// What a process has used of processors, in hundredths of a second.
    fn ticks(pid: i32) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    #[test]
    fn however_it_ends_it_takes_its_peers_with_it() {
        for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
            let machine = Machine::new();
            let bench = machine.endless("topic");
            assert_eq!(machine.peers().len(), 2);
            kill(bench.child.id().try_into().unwrap(), signal);
            let (status, talk) = bench.wait();
            if signal != Signal::KILL {
                assert!(status.code() == Some(1) && talk.contains("stopped before all was measured"), "{talk}");
            }
            wait_until("its peers end", || machine.peers().is_empty());
            wait_until("nothing is left of it", || machine.is_clean());
        }
    }

    #[test]
    fn a_peer_that_is_killed_or_hangs_is_an_error() {
        for (only, number, signal) in [
            ("topic", 0, Signal::KILL),
            ("topic", 1, Signal::KILL),
            ("call", 1, Signal::KILL),
            ("topic", 1, Signal::STOP),
        ] {
            let machine = Machine::new();
            let bench = machine.endless(only);
            let mut peers = machine.peers();
            peers.sort_unstable();
            if signal == Signal::STOP {
                // To start takes a tenth of that: it is at it. Before, others wait for it longer.
                wait_until("it receives", || ticks(peers[number]) > 50);
            }
            kill(peers[number], signal);
            let (status, talk) = bench.wait();
            assert_eq!(status.code(), Some(1), "{talk}");
            assert!(talk.contains("meshd: the measurement ended: peer process") && talk.contains("hint: "), "{talk}");
            if signal == Signal::KILL {
                assert!(talk.contains(&format!("peer process {number} ended: signal: 9")), "{talk}");
            }
            wait_until("the other peer ends", || machine.peers().is_empty());
            assert!(machine.is_clean());
        }
    }
}
