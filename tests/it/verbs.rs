//! Services through the daemon: the verbs `call serve services`, and programs that speak the local protocol by hand.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use ciborium::Value as Cbor;
use ciborium::cbor;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::PATIENCE;
use crate::daemon::{Home, Running, keys, two_daemons, wait_until};

#[test]
fn a_command_answers_calls_from_another_machine() {
    // E-CLI.
    let (near, far) = two_daemons();
    let _wc = serve(&far.home, &["wc", "--exec", "wc -c"]);
    let _cat = serve(&far.home, &["cat", "--exec", "cat", "--name", "copier", "--jobs", "3"]);
    // As `meshd call wc < file`: byte for byte what the command printed.
    assert_eq!(piped(&near.home, &["call", "wc"], b"hello"), (0, b"5\n".to_vec()));
    assert_eq!(near.home.ok(&["call", "wc", "four"]), "4\n");
    assert_eq!(near.home.ok(&["call", "wc"]), "0\n", "an empty stdin is an empty request");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(piped(&near.home, &["call", "cat", "-"], &bytes), (0, bytes));
    let reply = near.home.json(&["call", "wc", "four"]);
    assert_eq!(keys(&reply), ["data", "latency_us", "node", "peer", "service"]);
    assert_eq!((&reply["data"], &reply["node"], &reply["service"]), (&"4\n".into(), &"wc".into(), &"wc".into()));
    assert_eq!(reply["peer"].as_str().unwrap(), far.peer());
    let (_, binary) = piped(&near.home, &["call", "cat", "--json"], b"\xff\x00");
    let binary: Value = serde_json::from_slice(&binary).unwrap();
    assert_eq!(keys(&binary), ["base64", "latency_us", "node", "peer", "service"]);
    let cbor = piped(&near.home, &["call", "cat", "--format", "cbor"], b"{\"a\": 1}");
    assert_eq!(cbor, (0, b"\xa1\x61a\x01".to_vec()), "the command gets what was sent");

    let services: Vec<Value> = lines(&near.home.ok(&["services", "--json"]));
    let names: Vec<&str> = services.iter().map(|service| service["service"].as_str().unwrap()).collect();
    assert_eq!(names, ["cat", "wc"]);
    let wc = &services[1];
    assert_eq!(keys(wc), ["calls", "errors", "nodes", "p50_us", "service"]);
    assert_eq!(keys(&wc["nodes"][0]), ["busy", "calls", "cancelled", "errors", "host", "id", "node", "p50_us"]);
    assert_eq!((&wc["calls"], &wc["errors"], &wc["nodes"][0]["node"]), (&4.into(), &0.into(), &"wc".into()));
    assert!(wc["p50_us"].as_u64().unwrap() > 100, "to start a process takes longer: {wc}");
    let table = near.home.ok(&["services"]);
    assert!(table.starts_with("SERVICE  NODE    HOST") && table.contains("copier"), "{table}");
}

#[test]
fn replies_are_marked_as_they_are_said_to_be() {
    let home = Home::new();
    let _daemon = home.run(&[]);
    let _json = serve(&home, &["json", "--exec", "cat", "--format", "json"]);
    let _cbor = serve(&home, &["cbor", "--exec", "cat", "--format", "cbor"]);
    assert_eq!(home.json(&["call", "json", "{\"a\": [1]}"])["data"], json!({ "a": [1] }));
    assert_eq!(home.ok(&["call", "cbor", "{\"a\": [1]}"]), "{\"a\":[1]}\n", "CBOR is shown as JSON");
    let (code, failed, _) = home.meshd(&["call", "json", "{", "--json"]);
    assert_eq!((code, &lines(&failed)[0]["kind"]), (1, &"bad-reply".into()));
    home.fails(&["call", "json", "{", "--format", "json"], 2, "not JSON");
}

#[test]
fn a_command_that_fails_says_why() {
    let (near, far) = two_daemons();
    let exec = "echo it is $MESHD_SERVICE for $MESHD_FROM in $MESHD_MESH >&2; echo part; exit 3";
    let _serve = serve(&far.home, &["bad", "--exec", exec]);
    let errors = near.home.fails(&["call", "bad", "x"], 1, "exit-3 at bad: it is bad for");
    let node = near.home.ok(&["nodes", "--json"]);
    let near_id = lines(&node).into_iter().find(|node| node["node"] == "near").unwrap();
    assert!(errors.contains(&format!("for {} in default", near_id["id"].as_str().unwrap())), "{errors}");
    let (code, failed, _) = near.home.meshd(&["call", "bad", "x", "--json"]);
    let failed = &lines(&failed)[0];
    assert_eq!((code, keys(failed)), (1, vec!["causes", "error", "kind", "node", "peer", "service"]));
    assert_eq!((&failed["kind"], &failed["node"]), (&"exit-3".into(), &"bad".into()));
    assert_eq!(lines(&near.home.ok(&["services", "--json"]))[0]["errors"], 2);
}

#[test]
fn exit_codes_of_call_say_what_happened() {
    let (near, far) = two_daemons();
    near.home.fails(&["call", "nobody", "x", "--no-wait"], 3, "no node offers");
    near.home.fails(&["call", "nobody", "x", "--wait", "50ms"], 3, "no node offers");
    let (code, failed, _) = near.home.meshd(&["call", "nobody", "x", "--no-wait", "--json"]);
    assert_eq!((code, keys(&lines(&failed)[0])), (3, vec!["causes", "error", "kind", "service"]));
    // A call that timed out ends the command, and what that has started.
    let scratch = TempDir::new().unwrap();
    let pids = scratch.path().join("pids");
    let exec = format!("sleep 1000 & echo $! $$ > {}.new; mv {0}.new {0}; wait", pids.display());
    let _serve = serve(&far.home, &["slow", "--exec", &exec]);
    near.home.fails(&["call", "slow", "x", "--timeout", "500ms"], 4, "may have run");
    ended(&pids);
    near.home.fails(&["call", "slow", "x", "--to", "nobody", "--no-wait"], 3, "no node nobody");
    near.home.fails(&["call", "slow", "x", "--to", "near", "--no-wait"], 3, "does not offer");
    let mut busy = Client::attached(&far.home, "busy");
    busy.serve("busy", 1, 0);
    let first = near.home.spawn(&["call", "busy", "x"]);
    let call = busy.called();
    near.home.fails(&["call", "busy", "x"], 5, "busy");
    busy.say(2, cbor!({ "Answer" => { "call" => call.0, "payload" => bytes(b"done") } }).unwrap());
    assert_eq!(first.wait().1, "done");
}

#[test]
fn a_call_goes_to_all_nodes_one_group_or_one_node() {
    let (near, far) = two_daemons();
    let _a = serve(&far.home, &["who", "--exec", "echo a", "--name", "a"]);
    let _b = serve(&near.home, &["who", "--exec", "echo b", "--name", "b"]);
    let _c = serve(&near.home, &["who", "--exec", "exit 1", "--name", "c"]);
    wait_until("all are there", || {
        lines(&near.home.ok(&["services", "--json"]))[0]["nodes"].as_array().unwrap().len() == 3
    });
    assert_eq!(near.home.ok(&["call", "who", "--to", "a"]), "a\n");
    assert_eq!(near.home.ok(&["call", "who", "--to", "b"]), "b\n");
    let nodes = lines(&near.home.ok(&["nodes", "--json"]));
    let a = nodes.iter().find(|node| node["node"] == "a").unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(near.home.ok(&["call", "who", "--to", &a]), "a\n");
    let (code, output, errors) = near.home.meshd(&["call", "who", "--all"]);
    let mut said: Vec<&str> = output.lines().collect();
    said.sort_unstable();
    assert_eq!((code, said), (1, vec!["a  a", "b  b"]), "{errors}");
    assert!(errors.contains("c: exit-1 at c"), "{errors}");
    let (code, output, _) = near.home.meshd(&["call", "who", "--all", "--json"]);
    let parts = lines(&output);
    assert_eq!((code, parts.len()), (1, 3));
    let failed = parts.iter().find(|part| part["node"] == "c").unwrap();
    assert_eq!(keys(failed), ["causes", "error", "kind", "node", "peer", "service"]);
    near.home.fails(&["call", "nobody", "--all", "--no-wait"], 3, "no node offers");
    // `--to` waits for a node that is not there yet.
    let early = near.home.spawn(&["call", "who", "--to", "late"]);
    let _late = serve(&near.home, &["who", "--exec", "echo late", "--name", "late"]);
    assert_eq!(early.wait().1, "late\n");
}

#[test]
fn when_serve_is_killed_its_callers_know_and_nothing_stays_behind() {
    let (near, far) = two_daemons();
    let scratch = TempDir::new().unwrap();
    let pids = scratch.path().join("pids");
    let exec = format!("sleep 1000 & echo $! $$ > {}.new; mv {0}.new {0}; wait", pids.display());
    let server = serve(&far.home, &["slow", "--exec", &exec]);
    let caller = near.home.spawn(&["call", "slow", "x", "--timeout", "1m", "--json"]);
    wait_until("it runs", || pids.exists());
    drop(server); // killed
    let (status, output, errors) = caller.wait();
    assert_eq!((status.code(), &lines(&output)[0]["kind"]), (Some(1), &"disconnected".into()), "{errors}");
    assert!(errors.contains("may have run"), "{errors}");
    ended(&pids);
    // A call that may run twice goes on to another node.
    fs::remove_file(&pids).unwrap();
    let server = serve(&far.home, &["slow", "--exec", &exec]);
    let caller = near.home.spawn(&["call", "slow", "x", "--timeout", "1m", "--idempotent"]);
    wait_until("it runs", || pids.exists());
    let _other = serve(&near.home, &["slow", "--exec", "echo other"]);
    drop(server);
    assert_eq!(caller.wait().1, "other\n");
}

#[test]
fn serve_that_is_told_to_stop_finishes_what_runs() {
    let (near, far) = two_daemons();
    let scratch = TempDir::new().unwrap();
    let (runs, go) = (scratch.path().join("runs"), scratch.path().join("go"));
    let exec = format!("touch {}; while [ ! -e {} ]; do sleep 0.05; done; echo finished", runs.display(), go.display());
    let mut server = serve(&far.home, &["slow", "--exec", &exec]);
    let caller = near.home.spawn(&["call", "slow", "x"]);
    wait_until("it runs", || runs.exists());
    kill_process(Pid::from_child(&server.child), Signal::TERM).unwrap();
    wait_until("others know", || offers(&near.home, "slow") == 0);
    near.home.fails(&["call", "slow", "x", "--no-wait"], 3, "no node offers");
    assert!(server.is_running());
    fs::write(&go, "").unwrap();
    assert_eq!(caller.wait().1, "finished\n");
    let (status, output, errors) = server.wait();
    assert_eq!((status.code(), &output[..], &errors[..]), (Some(0), "", ""));
}

#[test]
fn a_program_in_any_language_serves_and_calls() {
    let (near, far) = two_daemons();
    let (mut server, mut client) = (Client::attached(&far.home, "server"), Client::attached(&near.home, "client"));
    server.serve("add", 64, 1024);
    let wait = cbor!({ "WaitForProviders" => { "service" => "add", "count" => 1, "timeout_ms" => 20_000 } }).unwrap();
    assert_eq!(client.ask(5, wait), cbor!({ "Reply" => { "id" => 5, "reply" => { "Providers" => 1 } } }).unwrap());
    client.say(6, call("add", b"1 2"));
    let (number, payload) = server.called();
    assert_eq!(payload, b"1 2");
    server.say(7, cbor!({ "Answer" => { "call" => number, "codec" => "Text", "payload" => bytes(b"3") } }).unwrap());
    let answer = client.hear();
    let answered = field(field(field(&answer, "Reply"), "reply"), "Answered");
    assert_eq!((field(answered, "payload"), field(answered, "name")), (&bytes(b"3"), &Cbor::from("server")));
    assert!(field(answered, "latency_us").as_integer().is_some());
    // A failure arrives as the server told it.
    client.say(7, call("add", b"x"));
    let (number, _) = server.called();
    let failure = cbor!({ "Fail" => { "call" => number, "kind" => "not-a-number", "message" => "x", "causes" => ["bad digit"] } });
    server.say(8, failure.unwrap());
    let failed = client.hear();
    let failure = field(field(&failed, "Failed"), "failure");
    let remote = field(failure, "remote");
    assert_eq!((field(failure, "kind"), field(remote, "kind")), (&"Failed".into(), &"not-a-number".into()));
    assert_eq!(field(remote, "causes"), &cbor!(["bad digit"]).unwrap());
    // To all, and what makes no sense.
    let all = cbor!({ "CallAll" => { "service" => "add", "payload" => bytes(b"1 1") } }).unwrap();
    client.say(8, all);
    let (number, _) = server.called();
    server.say(9, cbor!({ "Answer" => { "call" => number, "payload" => bytes(b"2") } }).unwrap());
    let part = client.hear();
    let part = field(&part, "Part");
    assert_eq!((field(part, "id"), field(part, "name")), (&8.into(), &"server".into()));
    assert_eq!(field(field(field(part, "outcome"), "Answered"), "payload"), &bytes(b"2"));
    assert_eq!(client.hear(), cbor!({ "Reply" => { "id" => 8, "reply" => "Done" } }).unwrap());
    for (id, nonsense) in [
        (10, cbor!({ "Call" => { "service" => "", "payload" => bytes(b"") } })),
        (11, cbor!({ "Unserve" => { "serving" => 9 } })),
        (12, cbor!({ "Serve" => { "service" => "a\n" } })),
    ] {
        let answer = client.ask(id, nonsense.unwrap());
        assert_eq!(field(field(field(&answer, "Failed"), "failure"), "kind"), &"Usage".into(), "{answer:?}");
    }
    // An answer that nobody waits for is ignored.
    client.say(13, cbor!({ "Answer" => { "call" => 999, "payload" => bytes(b"") } }).unwrap());
    // Ended with its calls answered.
    client.say(14, call("add", b"last"));
    let (number, _) = server.called();
    server.say(10, cbor!({ "Unserve" => { "serving" => 0, "drain" => true } }).unwrap());
    wait_until("it is gone", || offers(&near.home, "add") == 0);
    server.say(11, cbor!({ "Answer" => { "call" => number, "payload" => bytes(b"it") } }).unwrap());
    assert_eq!(field(field(&client.hear(), "Reply"), "id"), &14.into());
    assert_eq!(server.hear(), cbor!({ "Reply" => { "id" => 10, "reply" => "Done" } }).unwrap());
    // Without waiting for them: it can be offered anew at once, and what runs is still answered.
    let again = cbor!({ "Serve" => { "service" => "add" } }).unwrap();
    server.ask(12, again.clone());
    client.wait_for("add");
    client.say(15, call("add", b"one more"));
    let (number, _) = server.called();
    let done = server.ask(13, cbor!({ "Unserve" => { "serving" => 1 } }).unwrap());
    assert_eq!(done, cbor!({ "Reply" => { "id" => 13, "reply" => "Done" } }).unwrap());
    let serving = server.ask(14, again);
    assert_eq!(field(field(field(field(&serving, "Reply"), "reply"), "Serving"), "serving"), &2.into());
    server.say(15, cbor!({ "Answer" => { "call" => number, "payload" => bytes(b"it") } }).unwrap());
    assert_eq!(field(field(&client.hear(), "Reply"), "id"), &15.into());
}

#[test]
fn a_call_that_is_taken_back_is_taken_back_where_it_runs() {
    let (near, far) = two_daemons();
    let (mut server, mut client) = (Client::attached(&far.home, "server"), Client::attached(&near.home, "client"));
    server.serve("slow", 1, 1024);
    client.wait_for("slow");
    client.say(6, call("slow", b"first"));
    let (first, _) = server.called();
    client.say(7, call("slow", b"second"));
    client.say(8, cbor!({ "Cancel" => { "id" => 6 } }).unwrap());
    assert_eq!(client.hear(), cbor!({ "Reply" => { "id" => 8, "reply" => "Done" } }).unwrap());
    // It is told so, and has room for the next: in either order.
    let told = [server.hear(), server.hear()];
    let cancelled = cbor!({ "Cancelled" => { "call" => first } }).unwrap();
    assert!(told.contains(&cancelled), "{told:?}");
    let called = told.iter().find(|answer| **answer != cancelled).unwrap();
    assert_eq!(field(field(called, "Called"), "payload"), &bytes(b"second"));
    let second = field(field(called, "Called"), "call").clone();
    server.say(5, cbor!({ "Answer" => { "call" => first, "payload" => bytes(b"too late") } }).unwrap());
    server.say(6, cbor!({ "Answer" => { "call" => second, "payload" => bytes(b"in time") } }).unwrap());
    let answer = client.hear();
    assert_eq!(field(field(&answer, "Reply"), "id"), &7.into(), "nothing is said of the one taken back");
    assert_eq!(field(field(field(field(&answer, "Reply"), "reply"), "Answered"), "payload"), &bytes(b"in time"));
}

#[test]
fn when_a_program_goes_what_waited_for_it_goes_to_others() {
    let (near, far) = two_daemons();
    let mut first = Client::attached(&far.home, "first");
    first.serve("work", 1, 1024);
    let mut client = Client::attached(&near.home, "client");
    client.wait_for("work");
    for id in 10..15 {
        client.say(id, call("work", b""));
    }
    first.called(); // one is handed to it, four wait
    let running = || far.home.ok(&["services", "--json"]);
    wait_until("all are there", || {
        let ask = cbor!("Services").unwrap();
        let mut other = Client::attached(&far.home, "asker");
        let answer = other.ask(9, ask);
        let list = field(field(field(&answer, "Reply"), "reply"), "Services").as_array().unwrap().clone();
        list.iter().any(|one| field(field(one, "stats"), "waiting") == &4.into())
    });
    let _second = serve(&near.home, &["work", "--exec", "echo second", "--name", "second"]);
    wait_until("the other is there", || running().contains("second"));
    drop(first);
    let (mut answered, mut lost) = (0, 0);
    for _ in 0..5 {
        let answer = client.hear();
        if let Some(failed) = find(&answer, "Failed") {
            let failure = field(failed, "failure");
            assert_eq!((field(failure, "kind"), find(failure, "remote")), (&"Failed".into(), None));
            lost += 1;
        } else {
            answered += 1;
        }
    }
    assert_eq!((answered, lost), (4, 1), "only the one that it had may have run");
}

#[test]
fn the_example_of_the_local_protocol_works() {
    let home = Home::new();
    let _daemon = home.run(&[]);
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/LOCAL.md")).unwrap();
    let example =
        docs.split_once("\n## Example\n").unwrap().1.split_once("```python\n").unwrap().1.split_once("```").unwrap().0;
    let python = Command::new("python3").args(["-c", example]).env("MESHD_HOME", home.path()).output();
    let Ok(output) = python else {
        println!("skipped: there is no python3 here");
        return;
    };
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "greetings/all python hello\nadder says 42\n", "{errors}");
}

#[test]
fn serve_that_is_told_twice_to_stop_stops_at_once() {
    let home = Home::new();
    let _daemon = home.run(&[]);
    let scratch = TempDir::new().unwrap();
    let pids = scratch.path().join("pids");
    let exec = format!("sleep 1000 & echo $! $$ > {}.new; mv {0}.new {0}; wait", pids.display());
    let mut server = serve(&home, &["slow", "--exec", &exec]);
    let caller = home.spawn(&["call", "slow", "x", "--timeout", "1m"]);
    wait_until("it runs", || pids.exists());
    kill_process(Pid::from_child(&server.child), Signal::TERM).unwrap();
    wait_until("it stops", || offers(&home, "slow") == 0);
    assert!(server.is_running());
    kill_process(Pid::from_child(&server.child), Signal::INT).unwrap();
    let (status, _, errors) = server.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    assert_eq!(caller.wait().0.code(), Some(1));
    ended(&pids);
}

#[test]
fn a_program_that_does_not_read_its_calls_harms_nobody_else() {
    let (near, far) = two_daemons();
    let mut stuck = Client::attached(&far.home, "stuck");
    stuck.serve("stuck", 8, 4);
    let _cat = serve(&far.home, &["cat", "--exec", "cat"]);
    let mut client = Client::attached(&near.home, "client");
    client.wait_for("stuck");
    // 200 calls of 1 MB, each for a tenth of a second: eight at a time are handed over, four wait, the others are refused.
    let megabyte = vec![7; 1_000_000];
    let mut kinds = Vec::new();
    for _ in 0..5 {
        for id in 100..140 {
            let call =
                cbor!({ "Call" => { "service" => "stuck", "payload" => bytes(&megabyte), "timeout_ms" => 100 } });
            client.say(id, call.unwrap());
        }
        for _ in 100..140 {
            let answer = client.hear();
            kinds.push(field(field(field(&answer, "Failed"), "failure"), "kind").as_text().unwrap().to_owned());
        }
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert!(kinds.iter().all(|kind| ["Refused", "TimedOut"].contains(&&kind[..])), "{kinds:?}");
    assert_eq!(near.home.ok(&["call", "cat", "still here"]), "still here");
    // When it reads on, it hears of calls and that nobody waits for them any more; and it can be called again.
    let last = cbor!({ "service" => "stuck", "payload" => bytes(b"at last"), "timeout_ms" => 60_000, "wait_when_busy" => true });
    client.say(300, cbor!({ "Call" => last.unwrap() }).unwrap());
    let mut open: Vec<Cbor> = Vec::new();
    let last = loop {
        let answer = stuck.hear();
        if let Some(called) = find(&answer, "Called") {
            if field(called, "payload") == &bytes(b"at last") {
                break field(called, "call").clone();
            }
            open.push(field(called, "call").clone());
            assert!(open.len() <= 8, "more calls than it takes");
        } else {
            let call = field(field(&answer, "Cancelled"), "call");
            let at = open.iter().position(|open| open == call).expect("a call that it has");
            open.remove(at);
        }
    };
    stuck.say(9, cbor!({ "Answer" => { "call" => last, "payload" => bytes(b"well") } }).unwrap());
    let answer = client.hear();
    assert_eq!(field(field(field(field(&answer, "Reply"), "reply"), "Answered"), "payload"), &bytes(b"well"));
}

#[test]
fn many_calls_share_one_connection() {
    let (near, far) = two_daemons();
    let _serve = serve(&far.home, &["cat", "--exec", "cat", "--jobs", "4"]);
    let mut client = Client::attached(&near.home, "client");
    client.wait_for("cat");
    for id in 100..300 {
        client.say(id, call("cat", id.to_string().as_bytes()));
    }
    let mut heard = Vec::new();
    for _ in 100..300 {
        let answer = client.hear();
        let reply = field(&answer, "Reply");
        let id: u64 = field(reply, "id").as_integer().unwrap().try_into().unwrap();
        assert_eq!(field(field(field(reply, "reply"), "Answered"), "payload"), &bytes(id.to_string().as_bytes()));
        heard.push(id);
    }
    heard.sort_unstable();
    assert_eq!(heard, (100..300).collect::<Vec<u64>>());
    // An id can be used again when it is answered.
    for _ in 0..50 {
        let answer = client.ask(7, call("cat", b"again"));
        assert_eq!(field(field(field(field(&answer, "Reply"), "reply"), "Answered"), "payload"), &bytes(b"again"));
    }
}

/// Runs `meshd serve` until it is offered.
pub(crate) fn serve(home: &Home, args: &[&str]) -> Running {
    let before = offers(home, args[0]);
    let serving = home.spawn(&[&["serve"], args].concat());
    wait_until("it is offered", || offers(home, args[0]) > before);
    serving
}

fn offers(home: &Home, service: &str) -> usize {
    let services = lines(&home.ok(&["services", "--json"]));
    let found = services.iter().find(|one| one["service"] == service);
    found.map_or(0, |one| one["nodes"].as_array().unwrap().len())
}

/// Exit code and stdout, with bytes on stdin.
fn piped(home: &Home, args: &[&str], input: &[u8]) -> (i32, Vec<u8>) {
    let mut child = home.command(args).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    (output.status.code().unwrap(), output.stdout)
}

pub(crate) fn lines(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until all processes that are named in the file have ended.
pub(crate) fn ended(pids: &Path) {
    let text = fs::read_to_string(pids).unwrap();
    let pids: Vec<Pid> = text.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect();
    assert_eq!(pids.len(), 2);
    // Whoever has them now may not have noticed yet.
    let is_dead = |pid: &Pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        test_kill_process(*pid).is_err() || stat.contains(") Z ")
    };
    wait_until("they are gone", || pids.iter().all(is_dead));
}

/// A program that speaks the local protocol by hand.
pub(crate) struct Client(UnixStream);

impl Client {
    pub(crate) fn attached(home: &Home, name: &str) -> Self {
        let stream = UnixStream::connect(home.path().join("default/meshd.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self(stream);
        client.ask(1, cbor!({ "Hello" => { "version" => 1 } }).unwrap());
        client.ask(2, cbor!({ "Attach" => { "name" => name } }).unwrap());
        client
    }

    fn serve(&mut self, service: &str, concurrency: u32, waiting: u32) {
        let serve = cbor!({ "Serve" => { "service" => service, "concurrency" => concurrency, "waiting" => waiting } });
        let answer = self.ask(3, serve.unwrap());
        assert_eq!(
            answer,
            cbor!({ "Reply" => { "id" => 3, "reply" => { "Serving" => { "serving" => 0 } } } }).unwrap()
        );
    }

    pub(crate) fn wait_for(&mut self, service: &str) {
        let wait = cbor!({ "WaitForProviders" => { "service" => service, "count" => 1, "timeout_ms" => 20_000 } });
        assert_eq!(field(field(field(&self.ask(4, wait.unwrap()), "Reply"), "reply"), "Providers"), &1.into());
    }

    pub(crate) fn say(&mut self, id: u64, request: Cbor) {
        let mut body = Vec::new();
        ciborium::into_writer(&cbor!({ "id" => id, "request" => request }).unwrap(), &mut body).unwrap();
        self.0.write_all(&[&(body.len() as u32).to_be_bytes()[..], &body].concat()).unwrap();
    }

    pub(crate) fn hear(&mut self) -> Cbor {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).unwrap();
        ciborium::from_reader(&body[..]).unwrap()
    }

    pub(crate) fn ask(&mut self, id: u64, request: Cbor) -> Cbor {
        self.say(id, request);
        self.hear()
    }

    /// The next call: its number, and what is asked.
    pub(crate) fn called(&mut self) -> (Cbor, Vec<u8>) {
        let answer = self.hear();
        let called = field(&answer, "Called");
        (field(called, "call").clone(), field(called, "payload").as_bytes().unwrap().clone())
    }
}

pub(crate) fn call(service: &str, payload: &[u8]) -> Cbor {
    cbor!({ "Call" => { "service" => service, "payload" => bytes(payload), "timeout_ms" => 60_000 } }).unwrap()
}

pub(crate) fn bytes(bytes: &[u8]) -> Cbor {
    Cbor::Bytes(bytes.to_vec())
}

pub(crate) fn field<'a>(map: &'a Cbor, name: &str) -> &'a Cbor {
    find(map, name).unwrap_or_else(|| panic!("no {name} in {map:?}"))
}

pub(crate) fn find<'a>(map: &'a Cbor, name: &str) -> Option<&'a Cbor> {
    map.as_map()?.iter().find(|(key, _)| key.as_text() == Some(name)).map(|(_, value)| value)
}
