//! `record`, `play` and `info`, through real daemons.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::now;
use crate::daemon::{Home, Running, keys, two_daemons, wait_until};

#[test]
fn two_messages_are_recorded_told_of_and_played_with_the_time_between_them() {
    // E-CLI.
    let (near, far) = two_daemons();
    let folder = TempDir::new().unwrap();
    let recorder = spawn_in(&far.home, &folder, &["record", "bag/*", "--count", "2", "--json"]);
    near.home.ok(&["send", "bag/a", "hello", "--repeat", "2", "--interval", "1s"]);
    let (code, recorded, errors) = ended(recorder);
    assert_eq!(code, 0, "{errors}");
    let recorded: Value = serde_json::from_str(&recorded).unwrap();
    assert_eq!(keys(&recorded), ["bytes", "duration_s", "file", "lost", "messages", "topics"]);
    assert_eq!((&recorded["messages"], &recorded["topics"], &recorded["lost"]), (&2.into(), &1.into(), &0.into()));
    let file = recorded["file"].as_str().unwrap();
    assert!(file.starts_with("meshd-2") && file.ends_with(".mcap"), "{file}");

    // The newest one here needs no name.
    let (_, told, _) = ended(spawn_in(&far.home, &folder, &["info"]));
    assert!(told.contains("\nbag/a  messages: 2 (100%), text"), "{told}");
    let (_, told, _) = ended(spawn_in(&far.home, &folder, &["info", "--json"]));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["messages"], &told["complete"], &told["filters"]), (&2.into(), &true.into(), &json!(["bag/*"])));
    assert_eq!((&told["topics"][0]["topic"], &told["topics"][0]["codec"]), (&"bag/a".into(), &"text".into()));
    assert_eq!(told["size"], fs::metadata(folder.path().join(file)).unwrap().len());
    // As they arrived: on a busy machine not quite as they were sent.
    let between = told["duration_s"].as_f64().unwrap();
    assert!(between > 0.05, "{told}");

    for (rate, expected) in [("1", between), ("3", between / 3.0)] {
        let listener = near.home.spawn(&["listen", "bag/*", "--count", "2", "--json"]);
        let (code, played, errors) = ended(spawn_in(&far.home, &folder, &["play", "--json", "--rate", rate]));
        assert_eq!(code, 0, "{errors}");
        let played: Value = serde_json::from_str(&played).unwrap();
        let (took, late) = (played["duration_s"].as_f64().unwrap(), played["late_max_us"].as_f64().unwrap() / 1e6);
        assert!(took >= expected && took < expected + late + 1.0, "{expected}: {played}");
        let heard: Vec<Value> = ended(listener).1.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(heard.len(), 2);
        assert!(heard.iter().all(|heard| heard["data"] == "hello" && heard["node"] == "play"), "{heard:?}");
    }
}

#[test]
fn without_messages_there_is_no_file_and_without_a_file_nothing_to_play() {
    // E-CLI.
    let home = Home::new();
    let folder = TempDir::new().unwrap();
    for verb in ["play", "info"] {
        let (code, _, errors) = ended(spawn_in(&home, &folder, &[verb]));
        assert!(code == 1 && errors.contains("no recording here") && errors.contains("hint: "), "{code}: {errors}");
    }
    let _daemon = home.run(&[]);
    let (code, said, errors) = ended(spawn_in(&home, &folder, &["record", "a", "--timeout", "50ms"]));
    assert!(code == 0 && said.is_empty() && errors.contains("no messages: meshd-"), "{code}: {errors}");
    let (code, said, _) = ended(spawn_in(&home, &folder, &["record", "a", "--timeout", "50ms", "--json"]));
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["file"], &said["messages"]), (0, &Value::Null, &0.into()));
    let (code, _, errors) = ended(spawn_in(&home, &folder, &["record", "a", "--timeout", "50ms", "--count", "1"]));
    assert!(code == 4 && errors.contains("0 of 1"), "{code}: {errors}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    // Nor is one that was to be replaced lost; and what is no file is none.
    fs::write(folder.path().join("kept.mcap"), "kept").unwrap();
    let again = ["record", "a", "-o", "kept.mcap", "--force", "--timeout", "50ms"];
    let (code, _, errors) = ended(spawn_in(&home, &folder, &again));
    assert_eq!((code, &fs::read_to_string(folder.path().join("kept.mcap")).unwrap()[..]), (0, "kept"), "{errors}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    fs::create_dir(folder.path().join("dir.mcap")).unwrap();
    let (code, _, errors) = ended(spawn_in(&home, &folder, &["record", "a", "-o", "dir.mcap", "--force"]));
    assert!(code == 1 && errors.contains("is no file"), "{code}: {errors}");
}

#[test]
fn what_was_said_in_any_codec_is_said_again_in_order() {
    let (near, far) = two_daemons();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("x.mcap");
    let path = file.to_str().unwrap();
    // Several filters select the last topic: it is recorded once.
    let recorder = far.home.spawn(&["record", "said/**", "said/as/*", "-o", path, "--count", "5"]);
    near.home.ok(&["send", "said/as/text", "hi \u{1F600}"]);
    near.home.ok(&["send", "said/as/json", "{\"a\": [1, null]}", "--format", "json"]);
    near.home.ok(&["send", "said/as/cbor", "{\"a\": [1, null]}", "--format", "cbor"]);
    near.home.ok(&["send", "said/as/bytes", "\u{e9}", "--format", "bytes"]);
    near.home.ok(&["send", "said", ""]);
    assert_eq!(ended(recorder).0, 0);
    let told = far.home.ok(&["info", path]);
    for line in ["said/as/text  messages: 1 (20%), text", "said/as/cbor  messages: 1 (20%), cbor"] {
        assert!(told.contains(line), "{told}");
    }
    let heard = |args: &[&str], count: &str| {
        let listener = far.home.spawn(&["listen", "said/**", "--count", count, "--json"]);
        near.home.ok(&[&["play", path], args].concat());
        let lines = ended(listener).1;
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| format!("{} {}{}", line["topic"], line["data"], line["base64"])).collect::<Vec<_>>()
    };
    let all = [
        "\"said/as/text\" \"hi \u{1F600}\"null",
        "\"said/as/json\" {\"a\":[1,null]}null",
        "\"said/as/cbor\" {\"a\":[1,null]}null",
        "\"said/as/bytes\" null\"w6k=\"",
        "\"said\" \"\"null",
    ];
    assert_eq!(heard(&["--immediate"], "5"), all);
    assert_eq!(heard(&["--immediate", "--filter", "said/*/json", "--filter", "said"], "2"), [all[1], all[4]]);
    far.home.fails(&["play", path, "--filter", "other"], 1, "nothing to play");
    far.home.fails(&["play", path, "--wait", "50ms"], 3, "nobody listens");
    far.home.fails(&["play", path, "--no-wait", "--immediate"], 3, "nobody listens");
    for wrong in [&["--rate", "0"][..], &["--rate", "-1"], &["--rate", "nan"], &["--rate", "1", "--immediate"]] {
        far.home.fails(&[&["play", path], wrong].concat(), 2, "");
    }
}

#[test]
fn many_messages_come_back_in_order_and_none_is_missing() {
    let (near, far) = two_daemons();
    let folder = TempDir::new().unwrap();
    let [first, second] = ["1.mcap", "2.mcap"].map(|name| folder.path().join(name));
    let lines: String = (0..20_000).map(|n| format!("{n:0100}\n")).collect();
    let recorder = far.home.spawn(&["record", "many", "-o", text(&first), "--count", "20000"]);
    let (code, _, errors) = ended(near.home.spawn_with(&["send", "many", "--lines"], lines.as_bytes()));
    assert_eq!(code, 0, "{errors}");
    let (code, said, errors) = ended(recorder);
    assert!(code == 0 && said.contains("20000 messages on 1 topic") && said.contains(", 0 lost"), "{said}{errors}");
    let payloads: Vec<Vec<u8>> = lines.lines().map(|line| line.as_bytes().to_vec()).collect();
    assert!(messages(&first) == payloads);
    // Every one in turn is numbered, as it was.
    let bytes = fs::read(&first).unwrap();
    let seqs: Vec<u32> = mcap::MessageStream::new(&bytes).unwrap().map(|message| message.unwrap().sequence).collect();
    assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1));

    let recorder = near.home.spawn(&["record", "many", "-o", text(&second), "--count", "20000"]);
    let played = far.home.json(&["play", text(&first), "--immediate"]);
    assert_eq!((&played["messages"], &played["unheard"], &played["dropped"]), (&20_000.into(), &0.into(), &0.into()));
    assert_eq!(ended(recorder).0, 0);
    assert!(messages(&second) == payloads);
}

#[test]
fn what_had_arrived_when_the_recorder_is_told_to_stop_is_recorded() {
    let (near, far) = two_daemons();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("x.mcap");
    let recorder = far.home.spawn(&["record", "many", "-o", text(&file)]);
    near.home.ok(&["send", "many", "first"]);
    wait_until("it writes what it has every second", || told(&near.home, &file)["messages"] == 1);
    assert_eq!(told(&near.home, &file)["complete"], false, "it is still being written");
    signal(&recorder, Signal::STOP);
    // More than fits into sockets: the daemon keeps the rest.
    let lines: String = (0..20_000).map(|n| format!("{n:0100}\n")).collect();
    let (code, _, errors) = ended(near.home.spawn_with(&["send", "many", "--lines"], lines.as_bytes()));
    assert_eq!(code, 0, "{errors}");
    signal(&recorder, Signal::INT);
    signal(&recorder, Signal::CONT);
    let (code, said, errors) = ended(recorder);
    assert!(code == 0 && said.contains("20001 messages"), "{said}{errors}");
    assert_eq!(told(&near.home, &file)["complete"], true);
}

#[test]
fn messages_that_a_recorder_is_too_slow_for_are_counted_and_hold_up_nobody() {
    let (near, far) = two_daemons();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("x.mcap");
    let recorder = far.home.spawn(&["record", "big", "-o", text(&file), "--json"]);
    near.home.ok(&["send", "big", "first"]);
    signal(&recorder, Signal::STOP);
    let payload = vec![b'x'; 1 << 20];
    let began = now();
    let (code, _, errors) = ended(near.home.spawn_with(&["send", "big", "-", "--repeat", "100"], &payload));
    assert_eq!(code, 0, "{errors}");
    println!("sent in {:?}", began.elapsed());
    signal(&recorder, Signal::TERM);
    signal(&recorder, Signal::CONT);
    let (code, said, errors) = ended(recorder);
    let said: Value = serde_json::from_str(&said).unwrap();
    let (messages, lost) = (said["messages"].as_u64().unwrap(), said["lost"].as_u64().unwrap());
    assert!(code == 0 && lost > 0 && errors.contains("too slow"), "{said}: {errors}");
    assert_eq!(messages + lost, 101);
    assert_eq!(told(&near.home, &file)["lost"], lost);
}

#[test]
fn a_recorder_that_is_killed_leaves_a_file_that_can_be_played() {
    let (near, far) = two_daemons();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("x.mcap");
    let recorder = far.home.spawn(&["record", "many", "-o", text(&file)]);
    let sender = near.home.spawn(&["send", "many", &"x".repeat(10_000), "--repeat", "1000000"]);
    wait_until("some chunks are there", || fs::metadata(&file).is_ok_and(|file| file.len() > 5 << 20));
    drop(recorder); // killed
    drop(sender);
    let contents = told(&near.home, &file);
    let messages = contents["messages"].as_u64().unwrap();
    assert!(contents["complete"] == false && messages > 400, "{contents}");
    assert!(near.home.ok(&["info", text(&file)]).contains("cut short"));
    let again = folder.path().join("again.mcap");
    let recorder = near.home.spawn(&["record", "many", "-o", text(&again), "--count", &messages.to_string()]);
    let (code, _, errors) = far.home.meshd(&["play", text(&file), "--immediate"]);
    assert!(code == 1 && errors.contains("cut short") && errors.contains("its end is missing"), "{code}: {errors}");
    assert_eq!(ended(recorder).0, 0);
    assert_eq!(told(&near.home, &again)["messages"], messages);
}

#[test]
fn a_damaged_file_is_played_as_far_as_it_is_whole_and_that_is_a_failure() {
    // E-CLI.
    let home = Home::new();
    let daemon = home.run(&[]);
    let _listener = daemon.listener("a", "readers");
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("x.mcap");
    let (whole, end) = thirty_messages();
    // Ten messages are in a chunk.
    let amid = find(&whole, b"message 15 ");
    let flipped = [&whole[..amid], b"M", &whole[amid + 1..]].concat();
    let zeroed = [&whole[..amid], &vec![0; whole.len() - amid]].concat();
    let cut = whole[..amid].to_vec();
    for (what, bytes, played, missing) in [
        ("flipped", flipped, 10, Some(20)),
        ("zeroed", zeroed, 10, None),
        ("cut amid a chunk", cut, 10, None),
        ("cut before the end of the data", whole[..end].to_vec(), 30, None),
    ] {
        fs::write(&file, bytes).unwrap();
        let (code, said, errors) = home.meshd(&["play", text(&file), "--immediate", "--json"]);
        let said: Value = serde_json::from_str(&said).unwrap();
        assert!(code == 1 && errors.contains("cut short") && errors.contains("hint: "), "{what}: {code}: {errors}");
        assert_eq!((&said["messages"], &said["complete"]), (&played.into(), &false.into()), "{what}: {said}");
        assert_eq!(said.get("missing").and_then(Value::as_u64), missing, "{what}: {said}");
        let at = said["cut_at"].as_u64().unwrap();
        assert!(at > 0 && at <= amid.max(end) as u64, "{what}: {said}");
    }
    // Again and again, each time up to there.
    fs::write(&file, [&whole[..amid], b"M", &whole[amid + 1..]].concat()).unwrap();
    let listener = home.spawn(&["listen", "a", "--count", "25"]);
    let player = home.spawn(&["play", text(&file), "--loop", "--rate", "0.000001"]);
    let heard = ended(listener).1;
    let expected: Vec<String> = (0..25).map(|n| format!("message {} of thirty", n % 10)).collect();
    assert!(heard.lines().zip(&expected).all(|(line, expected)| line.contains(expected)), "{heard}");
    signal(&player, Signal::INT);
    let (code, _, errors) = ended(player);
    assert!(code == 1 && errors.contains("20 are missing"), "{code}: {errors}");
    // Without its index, all is there still.
    for bytes in [&whole[..], &whole[..end + DATA_END], &whole[..whole.len() - 1]] {
        fs::write(&file, bytes).unwrap();
        let said = home.json(&["play", text(&file), "--immediate"]);
        assert_eq!((&said["messages"], &said["complete"]), (&30.into(), &true.into()), "{said}");
        assert!(said.get("cut").is_none() && said.get("missing").is_none(), "{said}");
    }
}

#[test]
fn a_check_of_a_file_reads_all_of_it_and_counts_what_can_be_played() {
    // E-CLI.
    let home = Home::new();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("x.mcap");
    let (whole, end) = thirty_messages();
    let amid = find(&whole, b"message 15 ");
    fs::write(&file, &whole).unwrap();
    let told = home.json(&["info", text(&file), "--check"]);
    assert_eq!((&told["messages"], &told["indexed"], &told["complete"]), (&30.into(), &30.into(), &true.into()));
    assert!(home.ok(&["info", text(&file), "--check"]).contains("all of it can be read"));

    fs::write(&file, [&whole[..amid], b"M", &whole[amid + 1..]].concat()).unwrap();
    assert_eq!(home.json(&["info", text(&file)])["messages"], 30, "its index says so");
    let (code, told, errors) = home.meshd(&["info", text(&file), "--check", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert!(code == 1 && errors.contains("10 of the 30 messages") && errors.contains("hint: "), "{code}: {errors}");
    assert_eq!((&told["messages"], &told["indexed"], &told["complete"]), (&10.into(), &30.into(), &false.into()));
    assert_eq!(told["topics"][0]["messages"], 10);
    let at = told["cut_at"].as_u64().unwrap();
    assert!(at > 0 && at < amid as u64 && told["cut"].is_string(), "{told}");
    let (code, told, _) = home.meshd(&["info", text(&file), "--check"]);
    assert!(code == 1 && told.contains(&format!("byte {at}")), "{told}");

    fs::write(&file, &whole[..amid]).unwrap();
    let (code, told, errors) = home.meshd(&["info", text(&file), "--check", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert!(code == 1 && errors.contains("10 messages"), "{code}: {errors}");
    assert_eq!((&told["messages"], &told["indexed"]), (&10.into(), &Value::Null));
    fs::write(&file, &whole[..end + DATA_END]).unwrap();
    assert_eq!(home.json(&["info", text(&file), "--check"])["complete"], true);
}

#[test]
fn a_recording_ends_whole_when_its_daemon_does() {
    let (near, far) = two_daemons();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("x.mcap");
    let recorder = far.home.spawn(&["record", "a", "-o", text(&file)]);
    near.home.ok(&["send", "a", "x"]);
    far.stop();
    let (code, said, errors) = ended(recorder);
    assert!(code == 6 && said.contains(": 1 messages on 1 topic"), "{code}: {said}{errors}");
    assert_eq!(told(&near.home, &file)["complete"], true);
}

#[test]
fn playing_again_and_again_ends_when_it_is_told_to() {
    let (near, far) = two_daemons();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("x.mcap");
    let recorder = far.home.spawn(&["record", "a", "-o", text(&file), "--count", "3"]);
    near.home.ok(&["send", "a", "x", "--repeat", "3", "--interval", "100ms"]);
    assert_eq!(ended(recorder).0, 0);
    let listener = near.home.spawn(&["listen", "a", "--count", "10", "--json"]);
    let player = far.home.spawn(&["play", text(&file), "--loop", "--json"]);
    assert_eq!(ended(listener).1.lines().count(), 10);
    signal(&player, Signal::INT);
    let (code, played, errors) = ended(player);
    let played: Value = serde_json::from_str(&played).unwrap();
    assert!(code == 0 && played["messages"].as_u64().unwrap() >= 10, "{played}: {errors}");
    // Three rounds, each with a pause behind it that is half as long.
    let span = told(&near.home, &file)["duration_s"].as_f64().unwrap();
    assert!(span > 0.0 && played["duration_s"].as_f64().unwrap() >= 4.5 * span, "{span}: {played}");
    // A long pause does not keep it either.
    let _listener = near.listener("a", "readers");
    let player = far.home.spawn(&["play", text(&file), "--rate", "0.00001", "--json"]);
    wait_until("it plays", || near.home.ok(&["nodes"]).contains("play"));
    let began = now();
    signal(&player, Signal::TERM);
    assert_eq!(ended(player).0, 0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_file_that_is_there_is_replaced_only_by_force() {
    let home = Home::new();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("x.mcap");
    fs::write(&file, "precious").unwrap();
    home.fails(&["record", "a", "-o", text(&file)], 6, "no daemon");
    let _daemon = home.run(&[]);
    let errors = home.fails(&["record", "a", "-o", text(&file)], 1, "x.mcap");
    assert!(errors.contains("--force"), "{errors}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    home.fails(&["info", text(&file)], 1, "no MCAP file");
    home.fails(&["play", text(&file)], 1, "no MCAP file");
    home.fails(&["play", "none.mcap"], 1, "none.mcap");
    home.fails(&["record", "a", "-o", "/none/x.mcap"], 1, "/none/x.mcap");
    home.fails(&["record", "a", "-o", "-"], 2, "not into a pipe");
    let recorder = home.spawn(&["record", "a", "-o", text(&file), "--force", "--count", "1"]);
    home.ok(&["send", "a", "x"]);
    assert_eq!(ended(recorder).0, 0);
    assert_eq!(messages(&file), [b"x"]);
}

/// A file of thirty messages on topic `a` in three chunks, and how long it is without what follows its data.
fn thirty_messages() -> (Vec<u8>, usize) {
    let mut bytes = Cursor::new(Vec::new());
    let options = mcap::WriteOptions::new().compression(None).chunk_size(None);
    let mut writer = options.create(&mut bytes).unwrap();
    let channel_id = writer.add_channel(0, "a", "x-text", &Default::default()).unwrap();
    for sequence in 0..30 {
        let (log_time, publish_time) = (u64::from(sequence), u64::from(sequence));
        let header = mcap::records::MessageHeader { channel_id, sequence, log_time, publish_time };
        writer.write_to_known_channel(&header, format!("message {sequence} of thirty").as_bytes()).unwrap();
        if sequence % 10 == 9 {
            writer.flush().unwrap(); // ends the chunk
        }
    }
    writer.finish().unwrap();
    drop(writer);
    let bytes = bytes.into_inner();
    let footer = mcap::read::footer(&bytes).unwrap();
    (bytes, usize::try_from(footer.summary_start).unwrap() - DATA_END)
}

fn find(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).position(|window| window == wanted).unwrap()
}

/// In a folder of its own, where files without a name go.
fn spawn_in(home: &Home, folder: &TempDir, args: &[&str]) -> Running {
    Running::new(home.command(args).current_dir(folder.path()))
}

/// Exit code, stdout and stderr.
fn ended(running: Running) -> (i32, String, String) {
    let (status, output, errors) = running.wait();
    (status.code().unwrap_or(-1), output, errors)
}

fn told(home: &Home, file: &Path) -> Value {
    home.json(&["info", text(file)])
}

/// The payloads of a file, as MCAP's own reader gives them.
fn messages(file: &PathBuf) -> Vec<Vec<u8>> {
    let bytes = fs::read(file).unwrap();
    mcap::MessageStream::new(&bytes).unwrap().map(|message| message.unwrap().data.to_vec()).collect()
}

fn signal(running: &Running, signal: Signal) {
    kill_process(Pid::from_child(&running.child), signal).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes of the record that ends the data of a file.
const DATA_END: usize = 9 + 4;
