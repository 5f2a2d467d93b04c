//! Programs at the local socket, and the verbs that do the same: acknowledged messages, channels, and a daemon that drains.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc;

use ciborium::Value as Cbor;
use ciborium::cbor;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::{Home, keys, two_daemons, wait_until};
use crate::verbs::{Client, bytes, call, field, find, lines, serve};

#[test]
fn a_send_that_is_acknowledged_is_answered_when_it_is_and_holds_up_nothing() {
    let (near, far) = two_daemons();
    let (mut worker, mut sender) = (Client::attached(&far.home, "worker"), Client::attached(&near.home, "sender"));
    let subscription = listen(&mut worker, "jobs", "Handled");
    heard_by(&mut sender, "jobs", 1);
    sender.say(10, cbor!({ "Send" => { "topic" => "jobs", "payload" => bytes(b"one"), "acked" => true } }).unwrap());
    sender.say(11, cbor!({ "Send" => { "topic" => "jobs", "payload" => bytes(b"two") } }).unwrap());
    sender.say(12, cbor!({ "Send" => { "topic" => "jobs", "payload" => bytes(b"three"), "acked" => true } }).unwrap());
    let report = replied(&sender.hear(), 11, "Sent").clone();
    assert_eq!((field(&report, "sent"), field(&report, "acknowledged")), (&1.into(), &0.into()));
    let [one, two, three] = [(); 3].map(|()| message(&mut worker));
    assert_eq!(
        [&one, &two, &three].map(|message| field(message, "payload").clone()),
        [b"one" as &[u8], b"two", b"three"].map(bytes)
    );
    assert_eq!(find(&two, "ack"), None, "its sender does not wait");
    acknowledge(&mut worker, subscription, &[&three]);
    let report = replied(&sender.hear(), 12, "Sent").clone();
    assert_eq!((field(&report, "acknowledged"), field(&report, "redelivered")), (&1.into(), &0.into()));
    acknowledge(&mut worker, subscription, &[&three, &one]);
    assert_eq!(field(replied(&sender.hear(), 10, "Sent"), "acknowledged"), &1.into());
}

#[test]
fn what_a_program_had_not_handled_when_it_went_goes_to_another() {
    let (near, far) = two_daemons();
    let mut lost = Client::attached(&far.home, "workers");
    listen(&mut lost, "jobs", "Handled");
    let sent = near.home.spawn(&["send", "jobs", "x", "--redeliver", "--timeout", "30s", "--json"]);
    message(&mut lost);
    let mut other = Client::attached(&near.home, "workers");
    let subscription = listen(&mut other, "jobs", "Handled");
    drop(lost);
    let again = message(&mut other);
    assert_eq!(field(&again, "payload"), &bytes(b"x"));
    acknowledge(&mut other, subscription, &[&again]);
    let (status, report, errors) = sent.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    let report = &lines(&report)[0];
    assert_eq!(keys(report), ["acknowledged", "dropped", "matched", "redelivered", "sent", "topic"]);
    assert_eq!((&report["acknowledged"], &report["redelivered"]), (&1.into(), &1.into()));
}

#[test]
fn exit_codes_of_send_say_what_became_of_an_acknowledged_message() {
    let (near, far) = two_daemons();
    let mut worker = Client::attached(&far.home, "worker");
    listen(&mut worker, "jobs", "Handled");
    near.home.ok(&["send", "jobs", "x"]); // so it listens
    message(&mut worker);
    let (code, _, errors) = near.home.meshd(&["send", "jobs", "x", "--acked", "--timeout", "200ms"]);
    assert!(code == 4 && errors.contains("not acknowledged by") && errors.contains("no answer"), "{code}: {errors}");
    let sent = near.home.spawn(&["send", "jobs", "x", "--acked", "--timeout", "30s"]);
    message(&mut worker);
    message(&mut worker);
    drop(worker);
    let (status, _, errors) = sent.wait();
    assert!(status.code() == Some(1) && errors.contains("handed back"), "{status}: {errors}");
    let _printing = far.home.spawn(&["listen", "jobs", "--name", "printer"]);
    near.home.ok(&["send", "jobs", "x"]);
    let said = near.home.ok(&["send", "jobs", "x", "--acked", "-v"]);
    assert_eq!(said, "sent jobs to 1 of 1, acknowledged by 1\n");
}

#[test]
fn taken_means_that_it_was_written_to_the_program() {
    let home = Home::new();
    let _daemon = home.run(&[]);
    let mut reader = Client::attached(&home, "reader");
    listen(&mut reader, "t", "Taken");
    // More than a socket holds: it is not written until it is read.
    let large = vec![7; 3_000_000];
    let mut sender = Client::attached(&home, "sender");
    let send = |timeout: u32| cbor!({ "Send" => { "topic" => "t", "payload" => bytes(&large), "acked" => true, "timeout_ms" => timeout } });
    let report = sender.ask(10, send(200).unwrap());
    let report = replied(&report, 10, "Sent");
    assert_eq!((field(report, "sent"), field(report, "acknowledged")), (&1.into(), &0.into()));
    sender.say(11, send(60_000).unwrap());
    for _ in 0..2 {
        assert_eq!(find(&message(&mut reader), "ack"), None);
    }
    assert_eq!(field(replied(&sender.hear(), 11, "Sent"), "acknowledged"), &1.into());
}

#[test]
fn a_program_that_acknowledges_nothing_holds_a_thousand_messages_at_most() {
    let home = Home::new();
    let _daemon = home.run(&[]);
    let (mut worker, mut sender) = (Client::attached(&home, "worker"), Client::attached(&home, "sender"));
    let subscription = listen(&mut worker, "t", "Handled");
    // Those whose senders wait no more are in its hands all the same.
    for round in 0..1500_u64 {
        let send =
            cbor!({ "Send" => { "topic" => "t", "payload" => bytes(b"x"), "acked" => true, "timeout_ms" => 0 } });
        replied(&sender.ask(10 + round, send.unwrap()), 10 + round, "Sent");
    }
    let held: Vec<Cbor> = (0..1024).map(|_| message(&mut worker)).collect();
    worker.say(9000, cbor!({ "Ping" => { "target" => "worker", "timeout_ms" => 1000 } }).unwrap());
    replied(&worker.hear(), 9000, "Pong"); // and no message before it
    acknowledge(&mut worker, subscription, &held.iter().collect::<Vec<_>>());
    message(&mut worker);
}

#[test]
fn a_listener_that_is_told_to_stop_has_printed_what_it_took() {
    let done = jobs_of_two(Signal::TERM);
    assert_eq!(done, (0..3000).collect::<Vec<_>>(), "each once");
}

#[test]
fn a_listener_that_is_killed_loses_no_job() {
    let mut done = jobs_of_two(Signal::KILL);
    let all = done.len();
    done.dedup();
    assert_eq!(done, (0..3000).collect::<Vec<_>>());
    assert!(all <= 3000 + 1024, "only what it had not acknowledged comes again: {all}");
}

/// 3000 jobs for two listeners, of which one gets a signal in the middle: those that were printed, sorted.
fn jobs_of_two(signal: Signal) -> Vec<u32> {
    let (near, far) = two_daemons();
    let mut first = far.home.spawn(&["listen", "jobs", "--name", "workers"]);
    let (printed, enough) = mpsc::sync_channel(1);
    let output = first.child.stdout.take().unwrap();
    let reading = std::thread::spawn(move || {
        let (mut output, mut text) = (BufReader::new(output), String::new());
        for _ in 0..100 {
            output.read_line(&mut text).unwrap();
        }
        printed.send(()).unwrap();
        output.read_to_string(&mut text).unwrap();
        text
    });
    near.home.ok(&["send", "jobs", "0", "--acked"]); // so it listens
    let second = near.home.spawn(&["listen", "jobs", "--name", "workers"]);
    let jobs: String = (1..3000).map(|n| format!("{n}\n")).collect();
    wait_until("both listen", || near.home.json(&["topics"])["nodes"] == 2);
    let args = ["send", "jobs", "--lines", "--redeliver", "--timeout", "60s"];
    let sent = near.home.spawn_with(&args, jobs.as_bytes());
    enough.recv().unwrap();
    kill_process(Pid::from_child(&first.child), signal).unwrap();
    let (status, _, errors) = first.wait();
    assert_eq!(status.code(), (signal == Signal::TERM).then_some(0), "{errors}");
    let (status, _, errors) = sent.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    kill_process(Pid::from_child(&second.child), Signal::INT).unwrap();
    let (status, others, errors) = second.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    let mut done: Vec<u32> = Vec::new();
    for text in [reading.join().unwrap(), others] {
        let (whole, _) = text.rsplit_once('\n').unwrap(); // one that is killed may have printed part of a line
        done.extend(whole.lines().map(|line| line.split_whitespace().last().unwrap().parse::<u32>().unwrap()));
    }
    done.sort_unstable();
    done
}

#[test]
fn a_message_that_several_filters_select_is_acknowledged_when_it_is_printed() {
    let home = Home::new();
    let _daemon = home.run(&[]);
    let listener = home.spawn(&["listen", "a/*", "**", "a/b", "--count", "300"]);
    home.ok(&["send", "a/b", "x", "--acked"]);
    home.ok(&["send", "a/b", "x", "--acked", "--repeat", "299"]);
    let (status, printed, errors) = listener.wait();
    assert_eq!((status.code(), printed.lines().count()), (Some(0), 300), "{errors}");
}

#[test]
fn what_is_kept_is_there_for_who_listens_later() {
    let (near, far) = two_daemons();
    near.home.ok(&["send", "state", "first", "--retain"]);
    assert_eq!(far.home.ok(&["listen", "state", "--count", "1", "--raw"]), "first");
    near.home.ok(&["send", "state", "second", "--no-wait", "--retain"]);
    assert_eq!(far.home.ok(&["listen", "state", "--count", "1", "--raw"]), "second");
    // A program's own node keeps it too, and no longer than it is told to.
    let mut program = Client::attached(&near.home, "program");
    let send = |retain: bool| cbor!({ "Send" => { "topic" => "mine", "payload" => bytes(b"x"), "retain" => retain } });
    program.ask(10, send(true).unwrap());
    assert_eq!(far.home.ok(&["listen", "mine", "--count", "1", "--raw"]), "x");
    drop(program);
    wait_until("it is gone", || !near.home.ok(&["nodes"]).contains("program"));
    assert_eq!(far.home.meshd(&["listen", "mine", "--count", "1", "--timeout", "200ms"]).0, 4);
}

#[test]
fn reports_of_lines_come_in_order_and_before_what_ends_them() {
    let home = Home::new();
    let _daemon = home.run(&[]);
    let listener = home.spawn(&["listen", "log", "--count", "3001", "--raw"]);
    home.ok(&["send", "log", "x"]);
    let input: String = (0..3000).map(|n| format!("{n}\n")).chain(["no JSON\n".to_owned()]).collect();
    let args = ["send", "log", "--lines", "--format", "json", "--acked", "--json"];
    let (status, reports, errors) = home.spawn_with(&args, input.as_bytes()).wait();
    assert!(status.code() == Some(2) && errors.contains("not JSON"), "{status}: {errors}");
    let reports: Vec<Value> = lines(&reports);
    assert_eq!(reports.len(), 3000);
    assert!(reports.iter().all(|report| report["acknowledged"] == 1 && report["topic"] == "log"));
    let expected: String = (0..3000).map(|n| n.to_string()).collect();
    assert_eq!(listener.wait().1, format!("x{expected}"));
}

#[test]
fn two_programs_speak_over_a_channel() {
    let (near, far) = two_daemons();
    let (mut server, mut client) = (Client::attached(&far.home, "server"), Client::attached(&near.home, "client"));
    let (here, there) = open(&mut server, &mut client);
    // Several in flight keep their order, and each is answered.
    for n in 0..50_u8 {
        client.say(100 + u64::from(n), item(&here, &[n]));
    }
    for n in 0..50_u8 {
        assert_eq!(server.hear(), heard(&there, &[n]));
        assert_eq!(client.hear(), done(100 + u64::from(n)));
    }
    assert_eq!(server.ask(9, item(&there, b"back")), done(9));
    assert_eq!(client.hear(), heard(&here, b"back"));
    // One end has no more to say, and hears on.
    client.say(10, cbor!({ "Finish" => { "channel" => here } }).unwrap());
    assert_eq!(client.hear(), done(10));
    assert_eq!(server.hear(), cbor!({ "Ended" => { "channel" => there } }).unwrap());
    server.say(10, item(&there, b"last"));
    let close =
        cbor!({ "CloseChannel" => { "channel" => there, "failure" => { "kind" => "tired", "message" => "no more" } } });
    server.say(11, close.unwrap());
    let told: Vec<Cbor> = (0..3).map(|_| server.hear()).collect();
    assert!(told.contains(&done(10)) && told.contains(&done(11)), "{told:?}");
    assert!(told.contains(&cbor!({ "Closed" => { "channel" => there } }).unwrap()), "{told:?}");
    assert_eq!(client.hear(), heard(&here, b"last"));
    let closed = client.hear();
    let failure = field(field(&closed, "Closed"), "failure");
    let remote = field(failure, "remote");
    assert_eq!((field(remote, "kind"), field(remote, "name")), (&"tired".into(), &"server".into()));
    let answer = client.ask(12, item(&here, b"too late"));
    assert_eq!(field(field(field(&answer, "Failed"), "failure"), "kind"), &"Failed".into());
    // The program at the other end goes.
    let (here, _) = open_again(&mut server, &mut client);
    drop(server);
    let closed = client.hear();
    assert_eq!(field(field(&closed, "Closed"), "channel"), &here);
    let remote = field(field(field(&closed, "Closed"), "failure"), "remote");
    assert_eq!(field(remote, "kind"), &"disconnected".into());
}

#[test]
fn who_does_not_read_a_channel_slows_down_who_writes_it() {
    let (near, far) = two_daemons();
    let (mut server, mut client) = (Client::attached(&far.home, "server"), Client::attached(&near.home, "client"));
    let (here, there) = open(&mut server, &mut client);
    let payload = vec![1; 100_000];
    for n in 0..100 {
        client.say(100 + n, item(&here, &payload)); // 10 MB: more than is under way and in sockets
    }
    let (mut taken, mut asked) = (0, 0);
    // When others have been answered twenty times and no item was taken since, none is.
    let mut since = 0;
    while since < 20 {
        client.say(1000 + asked, cbor!({ "Ping" => { "target" => "server", "timeout_ms" => 5000 } }).unwrap());
        loop {
            let answer = client.hear();
            if field(field(&answer, "Reply"), "id") == &(1000 + asked).into() {
                break;
            }
            taken += 1;
            since = 0;
        }
        asked += 1;
        since += 1;
    }
    assert!((10..60).contains(&taken), "{taken} of 100 were taken");
    for _ in 0..100 {
        assert_eq!(server.hear(), heard(&there, &payload));
    }
    for _ in taken..100 {
        find(&client.hear(), "Reply").unwrap();
    }
}

#[test]
fn an_end_of_a_channel_is_handed_to_another_program() {
    let (near, far) = two_daemons();
    let (mut server, mut client) = (Client::attached(&far.home, "server"), Client::attached(&near.home, "client"));
    let (here, there) = open(&mut server, &mut client);
    assert_eq!(client.ask(10, item(&here, b"before")), done(10));
    client.say(11, cbor!({ "Handle" => { "channel" => here } }).unwrap());
    let told = [client.hear(), client.hear()];
    assert!(told.contains(&cbor!({ "Closed" => { "channel" => here } }).unwrap()), "{told:?}");
    let reply = told.iter().find_map(|answer| find(answer, "Reply")).unwrap();
    let handle = field(field(reply, "reply"), "Handle").as_text().unwrap().to_owned();
    let mut heir = Client::attached(&near.home, "heir");
    let adopted = heir.ask(10, cbor!({ "Adopt" => { "handle" => handle.clone() } }).unwrap());
    let mine = field(replied(&adopted, 10, "Opened"), "channel").clone();
    assert_eq!(heir.ask(11, item(&mine, b"after")), done(11));
    assert_eq!([server.hear(), server.hear()], [heard(&there, b"before"), heard(&there, b"after")]);
    server.say(12, item(&there, b"back"));
    assert_eq!(heir.hear(), heard(&mine, b"back"));
    // It is good for once, and nothing else is.
    for (handle, kind) in [(&handle[..], "NobodyThere"), ("nonsense", "Usage"), ("AAAA", "Usage")] {
        let answer = client.ask(13, cbor!({ "Adopt" => { "handle" => handle } }).unwrap());
        assert_eq!(field(field(field(&answer, "Failed"), "failure"), "kind"), &kind.into(), "{handle}");
    }
}

#[test]
fn a_stream_of_replies_is_printed_as_it_comes() {
    let (near, far) = two_daemons();
    let mut server = Client::attached(&far.home, "server");
    accept(&mut server);
    let called = near.home.spawn(&["call", "talk", "hello", "--stream"]);
    let incoming = server.hear();
    let incoming = field(&incoming, "Incoming");
    assert_eq!(field(incoming, "payload"), &bytes(b"hello"));
    let channel = field(incoming, "channel").clone();
    for (id, text) in [(10, "one"), (11, "two\n"), (12, "three")] {
        assert_eq!(server.ask(id, item(&channel, text.as_bytes())), done(id));
    }
    server.say(13, cbor!({ "CloseChannel" => { "channel" => channel } }).unwrap());
    let (status, printed, errors) = called.wait();
    assert_eq!((status.code(), &printed[..]), (Some(0), "one\ntwo\nthree\n"), "{errors}");
    while find(&server.hear(), "Closed").is_none() {}
    // As objects; the failure that it ends with is one too.
    let called = near.home.spawn(&["call", "talk", "hello", "--stream", "--json"]);
    let channel = field(field(&server.hear(), "Incoming"), "channel").clone();
    assert_eq!(server.ask(14, item(&channel, b"x")), done(14));
    let close =
        cbor!({ "CloseChannel" => { "channel" => channel, "failure" => { "kind" => "tired", "message" => "no" } } });
    server.say(15, close.unwrap());
    let (status, printed, errors) = called.wait();
    let printed = lines(&printed);
    assert!(status.code() == Some(1) && errors.contains("tired at server: no"), "{errors}");
    assert_eq!(keys(&printed[0]), ["base64", "node", "peer", "service"]);
    assert_eq!((&printed[0]["node"], &printed[1]["kind"]), (&"server".into(), &"tired".into()));
    while find(&server.hear(), "Closed").is_none() {}
    // Ctrl-C ends it at both ends.
    let mut called = near.home.spawn(&["call", "talk", "hello", "--stream"]);
    let channel = field(field(&server.hear(), "Incoming"), "channel").clone();
    assert_eq!(server.ask(16, item(&channel, b"x\n")), done(16));
    let mut first = [0; 2];
    called.child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    kill_process(Pid::from_child(&called.child), Signal::INT).unwrap();
    assert_eq!(server.hear(), cbor!({ "Closed" => { "channel" => channel } }).unwrap());
    assert_eq!(called.wait().0.code(), Some(0));
    near.home.fails(&["call", "talk", "x"], 2, "meshd call --stream talk");
    let _echo = serve(&far.home, &["echo", "--exec", "cat"]);
    near.home.fails(&["call", "echo", "x", "--stream"], 2, "meshd call echo");
    near.home.fails(&["call", "nobody", "x", "--stream", "--no-wait"], 3, "no node offers");
}

#[test]
fn a_service_of_channels_ends_when_they_do() {
    let home = Home::new();
    let _daemon = home.run(&[]);
    let (mut server, mut client) = (Client::attached(&home, "server"), Client::attached(&home, "client"));
    let (here, there) = open(&mut server, &mut client);
    server.say(20, cbor!({ "Unserve" => { "serving" => 0, "drain" => true } }).unwrap());
    wait_until("it is offered no more", || !home.ok(&["services"]).contains("talk"));
    let answer = client.ask(20, cbor!({ "Open" => { "service" => "talk" } }).unwrap());
    assert_eq!(field(field(field(&answer, "Failed"), "failure"), "kind"), &"NobodyThere".into());
    client.say(21, item(&here, b"still"));
    assert_eq!(client.hear(), done(21));
    assert_eq!(server.hear(), heard(&there, b"still"));
    client.say(22, cbor!({ "CloseChannel" => { "channel" => here } }).unwrap());
    assert_eq!(server.hear(), cbor!({ "Closed" => { "channel" => there } }).unwrap());
    assert_eq!(server.hear(), done(20));
}

#[test]
fn a_daemon_that_is_told_to_stop_lets_programs_finish_and_begins_nothing() {
    let (near, far) = two_daemons();
    let scratch = TempDir::new().unwrap();
    let started = scratch.path().join("started");
    let exec = format!("touch {}; sleep 1; echo done", started.display());
    let serving = serve(&far.home, &["slow", "--exec", &exec]);
    let listener = far.home.spawn(&["listen", "log", "--raw"]);
    let mut worker = Client::attached(&far.home, "worker");
    let subscription = listen(&mut worker, "jobs", "Handled");
    let mut other = Client::attached(&far.home, "other");
    let caller = near.home.spawn(&["call", "slow", "x"]);
    near.home.ok(&["send", "log", "printed", "--acked"]);
    let sent = near.home.spawn(&["send", "jobs", "x", "--acked", "--json"]);
    let job = message(&mut worker);
    wait_until("it runs", || started.exists());
    let stopping = std::thread::spawn(move || far.stop());
    let mut id = 100;
    let refused = loop {
        id += 1;
        let answer = other.ask(id, cbor!({ "Send" => { "topic" => "t", "payload" => bytes(b"x") } }).unwrap());
        if let Some(failed) = find(&answer, "Failed") {
            break failed.clone();
        }
    };
    assert_eq!(field(field(&refused, "failure"), "kind"), &"Stopping".into());
    for request in [call("slow", b"x"), cbor!({ "Serve" => { "service" => "new" } }).unwrap()] {
        let answer = other.ask(1, request);
        assert_eq!(field(field(field(&answer, "Failed"), "failure"), "kind"), &"Stopping".into());
    }
    acknowledge(&mut worker, subscription, &[&job]);
    let (status, report, errors) = sent.wait();
    assert_eq!((status.code(), &lines(&report)[0]["acknowledged"]), (Some(0), &1.into()), "{errors}");
    let (status, reply, errors) = caller.wait();
    assert_eq!((status.code(), &reply[..]), (Some(0), "done\n"), "{errors}");
    assert!(find(&other.hear(), "Goodbye").is_some());
    let (status, _, errors) = stopping.join().unwrap();
    assert_eq!(status.code(), Some(0), "{errors}");
    assert_eq!(serving.wait().0.code(), Some(6));
    let (status, printed, _) = listener.wait();
    assert_eq!((status.code(), &printed[..]), (Some(6), "printed"));
}

/// Listens, and gives the number of the subscription.
fn listen(client: &mut Client, filter: &str, acknowledge: &str) -> u64 {
    let listen = cbor!({ "Listen" => { "filter" => filter, "acknowledge" => acknowledge } });
    let answer = client.ask(3, listen.unwrap());
    field(replied(&answer, 3, "Listening"), "subscription").as_integer().unwrap().try_into().unwrap()
}

fn heard_by(client: &mut Client, topic: &str, count: u64) {
    let wait = cbor!({ "WaitForListeners" => { "topic" => topic, "count" => count, "timeout_ms" => 20_000 } });
    assert_eq!(replied(&client.ask(4, wait.unwrap()), 4, "Listeners"), &count.into());
}

fn message(client: &mut Client) -> Cbor {
    field(&client.hear(), "Message").clone()
}

fn acknowledge(client: &mut Client, subscription: u64, messages: &[&Cbor]) {
    let acks: Vec<Cbor> = messages.iter().map(|message| field(message, "ack").clone()).collect();
    let acks = Cbor::Array(acks);
    client.say(5, cbor!({ "Acknowledge" => { "subscription" => subscription, "acks" => acks } }).unwrap());
}

/// What the reply to a request says.
fn replied<'a>(answer: &'a Cbor, id: u64, kind: &str) -> &'a Cbor {
    let reply = field(answer, "Reply");
    assert_eq!(field(reply, "id"), &id.into());
    field(field(reply, "reply"), kind)
}

fn done(id: u64) -> Cbor {
    cbor!({ "Reply" => { "id" => id, "reply" => "Done" } }).unwrap()
}

fn item(channel: &Cbor, payload: &[u8]) -> Cbor {
    cbor!({ "Item" => { "channel" => channel, "payload" => bytes(payload) } }).unwrap()
}

fn heard(channel: &Cbor, payload: &[u8]) -> Cbor {
    cbor!({ "Item" => { "channel" => channel, "codec" => "Bytes", "payload" => bytes(payload) } }).unwrap()
}

fn accept(server: &mut Client) {
    let answer = server.ask(3, cbor!({ "Serve" => { "service" => "talk", "channels" => true } }).unwrap());
    assert_eq!(field(replied(&answer, 3, "Serving"), "serving"), &0.into());
}

/// Opens a channel of the service `talk`: what each end calls it.
fn open(server: &mut Client, client: &mut Client) -> (Cbor, Cbor) {
    accept(server);
    client.wait_for("talk");
    open_again(server, client)
}

fn open_again(server: &mut Client, client: &mut Client) -> (Cbor, Cbor) {
    let open = cbor!({ "Open" => { "service" => "talk", "codec" => "Text", "payload" => bytes(b"hello") } });
    let opened = client.ask(5, open.unwrap());
    let opened = replied(&opened, 5, "Opened");
    assert_eq!(field(opened, "name"), &"server".into());
    let incoming = server.hear();
    let incoming = field(&incoming, "Incoming");
    assert_eq!((field(incoming, "codec"), field(incoming, "payload")), (&"Text".into(), &bytes(b"hello")));
    (field(opened, "channel").clone(), field(incoming, "channel").clone())
}
