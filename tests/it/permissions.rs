//! Who may do what: rules that name identities, kept by the peer that owns the resource.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use meshd::{
    Action, AllowRule, CallError, CallOptions, Callee, Codec, DropReason, Event, Events, Node, NotAllowed, OpenError,
    Publisher, SendOptions, SendReport, ServeOptions, Service, Subscription, Target, What, Who,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, PATIENCE, address, happens, listened_by, next, see_each_other, stays, until, within};
use crate::daemon::{Daemon, Home, wait_until};
use crate::proxy::Proxy;

/// A mesh of peers with homes: each has an identity of its own.
struct Mesh {
    cluster: Cluster,
    homes: TempDir,
}

impl Mesh {
    fn new() -> Self {
        Self { cluster: Cluster::new(), homes: TempDir::new().unwrap() }
    }

    /// A node in a peer of its own, with the home of that name.
    async fn start(&self, home: &str, name: &str, rules: impl IntoIterator<Item = AllowRule>) -> Node {
        let builder = self.cluster.builder(name).home(self.homes.path().join(home));
        rules.into_iter().fold(builder, meshd::Builder::allow).start().await.unwrap()
    }
}

fn rule(name: &str, who: &[&Node], action: Action, pattern: &str) -> AllowRule {
    let who = who.iter().map(|node| Who::One(node.identity())).collect();
    AllowRule { name: Some(name.to_owned()), who, action: vec![action], pattern: pattern.to_owned() }
}

/// Three peers that see each other: one that a rule of the third names, one of the same name that no rule names, and the
/// third.
async fn three(mesh: &Mesh, action: Action, pattern: &str) -> [Node; 3] {
    let friend = mesh.start("friend", "same name", []).await;
    let other = mesh.start("other", "same name", []).await;
    let owner = mesh.start("owner", "owner", [rule("friends", &[&friend], action, pattern)]).await;
    assert_ne!(friend.identity(), other.identity());
    let all = [friend, other, owner];
    see_each_other(&all).await;
    all
}

fn refused(node: &Node, rule: &str) -> SendReport {
    let dropped = vec![(node.id(), DropReason::Refused(rule.to_owned()))];
    SendReport { matched: 1, dropped, ..SendReport::default() }
}

fn sent() -> SendReport {
    SendReport { matched: 1, sent: 1, ..SendReport::default() }
}

fn taken() -> SendReport {
    SendReport { acknowledged: 1, ..sent() }
}

async fn send(topic: &Publisher, text: &str, options: &SendOptions) -> SendReport {
    let payload = Bytes::copy_from_slice(text.as_bytes());
    within("a report", topic.publish(Codec::Text, payload, options)).await.unwrap()
}

async fn plain(topic: &Publisher, text: &str) -> SendReport {
    send(topic, text, &SendOptions::default()).await
}

async fn said(messages: &mut Subscription) -> String {
    String::from_utf8(next(messages).await.payload.to_vec()).unwrap()
}

/// Waits until that peer was refused something, or refused it, and gives what.
async fn refusal(events: &mut Events, of: &Node) -> (bool, Action, String, String) {
    let Event { what, .. } =
        happens(events, "a refusal", |what| matches!(what, What::Refused { peer, .. } if *peer == of.id().peer)).await;
    let What::Refused { here, action, resource, rule, .. } = what else { panic!("{what:?}") };
    (here, action, resource, rule)
}

async fn counted(node: &Node) -> u64 {
    node.status().await.unwrap().counts.refused
}

async fn serve_echo(node: &Node, service: &str) -> meshd::Serving {
    let handler = |request: meshd::Request| async move { Ok((request.codec, request.payload)) };
    node.serve_requests(service, ServeOptions::default(), handler).await.unwrap()
}

async fn offered(node: &Node, service: &str, by: usize) -> Service {
    let service = node.service(service).unwrap();
    assert_eq!(service.wait_for_providers(by, PATIENCE).await.len(), by, "{} is offered", service.name());
    service.with(CallOptions { timeout: Some(PATIENCE), ..CallOptions::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_call_is_told_the_rule_and_who_may_is_answered_whatever_their_names() {
    let mesh = Mesh::new();
    let [friend, other, owner] = three(&mesh, Action::Call, "admin/**").await;
    let (mut here, mut there) = (owner.events(), other.events());
    let _services = (serve_echo(&owner, "admin/add").await, serve_echo(&owner, "open").await);
    for (service, may) in [("admin/add", false), ("open", true)] {
        for (node, may) in [(&friend, true), (&other, may), (&owner, true)] {
            let service = offered(node, service, 1).await;
            // So many that they are answered where the link is read.
            for n in 0..200_u32 {
                let reply: Result<u32, CallError> = service.call(&n).await;
                match reply {
                    Ok(reply) => assert!(may && reply == n),
                    Err(CallError::Refused { node, rule }) => {
                        assert!(!may && node == owner.id() && rule == "friends", "{rule}");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
    let what = (Action::Call, "admin/add".to_owned(), "friends".to_owned());
    assert_eq!(refusal(&mut here, &other).await, (true, what.0, what.1.clone(), what.2.clone()));
    assert_eq!(refusal(&mut there, &owner).await, (false, what.0, what.1, what.2));
    assert_eq!((counted(&owner).await, counted(&other).await), (200, 0));
    let stats = owner.services(PATIENCE).await;
    let admin = stats.iter().find(|info| info.service.as_str() == "admin/add").unwrap();
    assert_eq!(admin.stats.as_ref().unwrap().calls, 400, "what was refused did not run");
    assert!(!CallError::TimedOut(PATIENCE).did_not_run());
    assert!(CallError::Refused { node: owner.id(), rule: String::new() }.did_not_run());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_one_provider_refuses_goes_to_another_unless_that_one_is_meant() {
    let mesh = Mesh::new();
    let [_friend, other, owner] = three(&mesh, Action::Call, "**").await;
    let open = mesh.start("open", "open", []).await;
    until("all are seen", async || other.nodes().len() == 4).await;
    let _services = (serve_echo(&owner, "s").await, serve_echo(&open, "s").await);
    let service = offered(&other, "s", 2).await;
    for n in 0..50_u32 {
        assert_eq!(within("a reply", service.call::<u32, u32>(&n)).await.unwrap(), n);
    }
    let meant = service.clone().with(CallOptions { callee: Callee::Node(owner.id()), ..CallOptions::default() });
    let error = within("an answer", meant.call::<u32, u32>(&1)).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { node, .. } if node == owner.id()), "{error}");
    let replies: Vec<_> = within("all replies", service.call_all(&1_u32).unwrap().collect::<Vec<_>>()).await;
    for (node, reply) in replies {
        assert_eq!(reply.is_ok(), node == open.id(), "{reply:?}");
    }
    // Who waits while all are busy does not wait for who refuses.
    drop(_services.1);
    until("it is gone", async || service.providers().len() == 1).await;
    let patient = CallOptions { wait_when_busy: true, timeout: Some(PATIENCE), ..CallOptions::default() };
    let error = within("an answer", service.with(patient).call::<u32, u32>(&1)).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_call_opens_no_channel_and_gets_no_stream() {
    let mesh = Mesh::new();
    let [friend, other, owner] = three(&mesh, Action::Call, "*").await;
    let numbers = |count: u32| futures::stream::iter((0..count).map(Ok::<u32, meshd::Failure>));
    let _stream = owner.serve_stream("numbers", numbers).await.unwrap();
    for node in [&friend, &owner] {
        offered(node, "numbers", 1).await;
        let replies = node.call_stream::<u32, u32>("numbers", &3).await.unwrap();
        let replies: Vec<u32> = within("replies", replies.map(Result::unwrap).collect()).await;
        assert_eq!(replies, [0, 1, 2]);
    }
    offered(&other, "numbers", 1).await;
    let mut there = other.events();
    let error = within("an answer", other.open("numbers")).await.unwrap_err();
    assert!(matches!(&error, OpenError::Refused { node, rule } if *node == owner.id() && rule == "friends"), "{error}");
    let error = within("an answer", other.call_stream::<u32, u32>("numbers", &3)).await.unwrap_err();
    assert!(matches!(error, OpenError::Refused { .. }), "{error}");
    let what = (false, Action::Call, "numbers".to_owned(), "friends".to_owned());
    assert_eq!(refusal(&mut there, &owner).await, what);
    assert_eq!(counted(&owner).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_who_may_not_send_are_dropped_and_their_sender_knows_why_from_the_second_on() {
    let mesh = Mesh::new();
    let [friend, other, owner] = three(&mesh, Action::Send, "orders/**").await;
    let (mut here, mut there) = (owner.events(), other.events());
    let mut messages = owner.listen("**").await.unwrap();
    let (to_friend, to_other) = (friend.publisher("orders/1").unwrap(), other.publisher("orders/1").unwrap());
    for topic in [&to_friend, &to_other] {
        listened_by(topic, 1).await;
    }
    assert_eq!(plain(&to_other, "refused").await, sent(), "nobody said otherwise yet");
    let what = |here| (here, Action::Send, "orders/1".to_owned(), "friends".to_owned());
    assert_eq!(refusal(&mut here, &other).await, what(true));
    assert_eq!(refusal(&mut there, &owner).await, what(false));
    until("the sender knows", async || plain(&to_other, "refused").await == refused(&owner, "friends")).await;
    let before = counted(&owner).await;
    assert_eq!(plain(&to_other, "refused").await, refused(&owner, "friends"));
    // Too large for one frame, on a topic that is new.
    let large = other.publisher("orders/large").unwrap();
    listened_by(&large, 1).await;
    assert_eq!(plain(&large, &"x".repeat(3 << 20)).await, sent());
    until("it is refused", async || counted(&owner).await == before + 1).await;
    // What is allowed is not disturbed: those that may, other topics, oneself.
    let open = other.publisher("open").unwrap();
    listened_by(&open, 1).await;
    for n in 0..100 {
        assert_eq!(plain(&to_friend, &format!("friend {n}")).await, sent());
        assert_eq!(said(&mut messages).await, format!("friend {n}"));
        assert_eq!(plain(&open, &format!("open {n}")).await, sent());
        assert_eq!(said(&mut messages).await, format!("open {n}"));
    }
    assert_eq!(plain(&owner.publisher("orders/1").unwrap(), "mine").await, sent());
    assert_eq!(said(&mut messages).await, "mine");
    assert_eq!(counted(&owner).await, before + 1, "what is known to be refused is not sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_message_is_refused_with_the_rule_at_once() {
    let mesh = Mesh::new();
    let [friend, other, owner] = three(&mesh, Action::Send, "**").await;
    let mut messages = owner.listen("t").await.unwrap();
    for node in [&friend, &other] {
        listened_by(&node.publisher("t").unwrap(), 1).await;
    }
    let acked = SendOptions::default().acked();
    let topic = other.publisher("t").unwrap();
    let report = send(&topic, "first", &acked).await;
    assert_eq!(report, SendReport { sent: 1, ..refused(&owner, "friends") });
    let report = send(&topic, "second", &acked).await;
    assert_eq!(report, refused(&owner, "friends"), "it is known before it goes out");
    let theirs = friend.publisher("t").unwrap();
    let (report, message) = tokio::join!(send(&theirs, "friend", &acked), next(&mut messages));
    assert_eq!((report, &message.payload[..]), (taken(), &b"friend"[..]));
}

/// Order, acknowledgement and handing on within a group of which one member refuses.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_of_a_group_refuses_goes_to_another_of_it_in_order_and_once() {
    let mesh = Mesh::new();
    let sender = mesh.start("sender", "sender", []).await;
    let nobody = rule("nobody", &[], Action::Send, "jobs");
    let closed = mesh.start("closed", "worker", [nobody]).await;
    let open = mesh.start("open", "worker", []).await;
    see_each_other(&[sender.clone(), closed.clone(), open.clone()]).await;
    let mut never = closed.listen("jobs").await.unwrap();
    let mut jobs = open.listen("jobs").await.unwrap();
    let topic = sender.publisher("jobs").unwrap();
    listened_by(&topic, 2).await;
    let redeliver = SendOptions { timeout: Some(PATIENCE), ..SendOptions::default().redeliver() };
    let mut redelivered = 0;
    for n in 0..20 {
        let text = n.to_string();
        let (report, job) = tokio::join!(send(&topic, &text, &redeliver), said(&mut jobs));
        assert_eq!((report.acknowledged, &report.dropped[..], job), (1, &[][..], text.clone()));
        redelivered += report.redelivered;
    }
    assert!(redelivered <= 1, "{redelivered}: then the one that refuses is passed over");
    // Plain ones are passed on as well, once it is known.
    for n in 0..20 {
        assert_eq!(plain(&topic, &n.to_string()).await, sent());
        assert_eq!(said(&mut jobs).await, n.to_string());
    }
    // To all: each for itself.
    let report = send(&topic, "all", &SendOptions { target: Target::All, ..SendOptions::default() }).await;
    let dropped = vec![(closed.id(), DropReason::Refused("nobody".into()))];
    assert_eq!(report, SendReport { matched: 2, sent: 1, dropped, ..SendReport::default() });
    assert_eq!(said(&mut jobs).await, "all");
    // When only those are left that refuse, that is known without waiting.
    drop(jobs);
    until("one is left", async || topic.listeners() == 1).await;
    let report = send(&topic, "refused", &redeliver).await;
    assert_eq!(report, refused(&closed, "nobody"));
    stays(Duration::from_millis(100), "nothing came", async || never.try_next().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_kept_is_not_given_to_who_may_not_listen_nor_forced_on_who_refuses_it() {
    let mesh = Mesh::new();
    let [friend, other, owner] = three(&mesh, Action::Listen, "**").await;
    let topic = owner.publisher("state").unwrap();
    topic.retain(true);
    assert_eq!(plain(&topic, "kept").await, SendReport::default());
    let mut never = other.listen("state").await.unwrap();
    let mut messages = friend.listen("state").await.unwrap();
    assert_eq!(said(&mut messages).await, "kept");
    stays(Duration::from_millis(200), "nothing came", async || never.try_next().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_listen_is_left_out_and_told_by_its_own_filter() {
    let mesh = Mesh::new();
    let [friend, other, owner] = three(&mesh, Action::Listen, "secret/**").await;
    let mut never = other.listen("**").await.unwrap();
    let mut messages = friend.listen("secret/*").await.unwrap();
    until("both listen", async || owner.topics().len() == 2).await;
    let (mut here, mut there) = (owner.events(), other.events());
    let topic = owner.publisher("secret/plan").unwrap();
    // Of one name, and so of one group: it goes to the one that may, always.
    for n in 0..20 {
        assert_eq!(plain(&topic, &n.to_string()).await, sent());
        assert_eq!(said(&mut messages).await, n.to_string());
    }
    let what = |here| (here, Action::Listen, "**".to_owned(), "friends".to_owned());
    assert_eq!(refusal(&mut here, &other).await, what(true));
    assert_eq!(refusal(&mut there, &owner).await, what(false));
    assert_eq!(counted(&owner).await, 1);
    // As far as it may be told, nobody listens.
    drop(messages);
    until("it is gone", async || topic.listeners() == 0).await;
    let all = SendOptions { target: Target::All, ..SendOptions::default().redeliver() };
    for options in [SendOptions::default(), all, SendOptions::default().acked()] {
        assert_eq!(send(&topic, "secret", &options).await, SendReport::default());
    }
    let to_it = SendOptions { target: Target::Node(other.id()), ..SendOptions::default() };
    assert_eq!(send(&topic, "secret", &to_it).await, SendReport::default());
    // Other topics, and other senders, are as open as ever.
    for (node, topic) in [(&owner, "open"), (&friend, "secret/plan")] {
        let topic = node.publisher(topic).unwrap();
        listened_by(&topic, 1).await;
        assert_eq!(plain(&topic, "open").await, sent());
        assert_eq!(said(&mut never).await, "open", "and nothing before it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_serve_gets_no_calls_of_the_peer_that_says_so() {
    let mesh = Mesh::new();
    let [friend, other, owner] = three(&mesh, Action::Serve, "bank").await;
    let mut there = other.events();
    let wrong = serve_echo(&other, "bank").await;
    let right = serve_echo(&friend, "bank").await;
    assert_eq!(offered(&friend, "bank", 2).await.providers().len(), 2, "others call both");
    let service = offered(&owner, "bank", 1).await;
    until("both offer it", async || owner.services(PATIENCE).await.len() == 2).await;
    for n in 0..50_u32 {
        assert_eq!(within("a reply", service.call::<u32, u32>(&n)).await.unwrap(), n);
    }
    assert_eq!((wrong.stats().calls, right.stats().calls), (0, 50));
    let what = (false, Action::Serve, "bank".to_owned(), "friends".to_owned());
    assert_eq!(refusal(&mut there, &owner).await, what);
    drop(right);
    until("it is gone", async || service.providers().is_empty()).await;
    let error = within("an answer", service.call::<u32, u32>(&1)).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused { node, rule } if *node == other.id() && rule == "friends"), "{error}");
    let meant = service.with(CallOptions { callee: Callee::Node(other.id()), ..CallOptions::default() });
    let error = within("an answer", meant.call::<u32, u32>(&1)).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { .. }), "{error}");
    let error = within("an answer", owner.open("bank")).await.unwrap_err();
    assert!(matches!(error, OpenError::Refused { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_open_without_rules_and_a_star_is_everybody() {
    let mesh = Mesh::new();
    let all = Action::Send;
    let star =
        AllowRule { name: None, who: vec![Who::Everyone], action: vec![all, Action::Call], pattern: "a/**".into() };
    let nobody = rule("nobody", &[], Action::Send, "a/b");
    for (n, rules) in [vec![], vec![star.clone()], vec![nobody, star]].into_iter().enumerate() {
        let open = mesh.start(&format!("open {n}"), "open", rules).await;
        let stranger = mesh.start(&format!("stranger {n}"), "stranger", []).await;
        see_each_other(&[open.clone(), stranger.clone()]).await;
        let mut messages = open.listen("a/b").await.unwrap();
        let _echo = serve_echo(&open, "a/b").await;
        let topic = stranger.publisher("a/b").unwrap();
        listened_by(&topic, 1).await;
        let options = SendOptions { target: Target::Node(open.id()), ..SendOptions::default() };
        for n in 0..10_u32 {
            assert_eq!(send(&topic, &n.to_string(), &options).await, sent());
            assert_eq!(said(&mut messages).await, n.to_string());
        }
        offered(&stranger, "a/b", 1).await;
        assert_eq!(stranger.call::<u32, u32>("a/b", &7).await.unwrap(), 7);
        assert_eq!(counted(&open).await, 0);
        // What is done over a service of meshd's own is another question than whether it is used.
        assert_eq!(open.permits(stranger.id().peer, Action::Get, "share/file"), Ok(()));
        let stop = open.permits(stranger.id().peer, Action::Stop, "open");
        assert_eq!(stop, Err(NotAllowed { rule: "stop is allowed to nobody".into() }));
        assert_eq!(open.permits(open.id().peer, Action::Stop, "open"), Ok(()));
    }
}

/// A peer is who its identity is: not what it is called, where it is, or when it came.
#[tokio::test(flavor = "multi_thread")]
async fn rules_hold_over_links_that_are_cut_and_for_who_comes_back_with_its_home() {
    let mesh = Mesh::new();
    let friend = mesh.start("friend", "friend", []).await;
    let owner = mesh.start("owner", "owner", [rule("friends", &[&friend], Action::Send, "t")]).await;
    let proxy = Proxy::to(&address(&owner).await).await;
    let builder = mesh.cluster.builder("other").local(false).kad(false).bootstrap([proxy.address()]);
    let other = builder.start().await.unwrap();
    see_each_other(&[friend.clone(), owner.clone()]).await;
    let mut messages = owner.listen("t").await.unwrap();
    let topic = other.publisher("t").unwrap();
    listened_by(&topic, 1).await;
    let acked = SendOptions { timeout: Some(PATIENCE), ..SendOptions::default().acked() };
    let report = send(&topic, "first", &acked).await;
    assert_eq!(report.dropped, refused(&owner, "friends").dropped);
    let mut events = other.events();
    proxy.cut();
    happens(&mut events, "the link is lost", |what| matches!(what, What::PeerDown { .. })).await;
    listened_by(&topic, 1).await;
    let report = send(&topic, "after the cut", &acked).await;
    assert_eq!(report.dropped, refused(&owner, "friends").dropped);
    friend.shutdown().await;
    let again = mesh.start("friend", "other", []).await; // with the other's name
    let theirs = again.publisher("t").unwrap();
    listened_by(&theirs, 1).await;
    let (report, message) = tokio::join!(send(&theirs, "I am back", &acked), next(&mut messages));
    assert_eq!((report, &message.payload[..]), (taken(), &b"I am back"[..]), "and nothing came before it");
}

// Daemons.

/// What stands in a `config.toml`, given an identity.
type Config<'a> = &'a dyn Fn(&str) -> String;

/// Daemons of one mesh on one machine, with these settings, that see each other: the name of each, and its
/// settings given the identity of the first.
fn daemons<const N: usize>(settings: [(&str, Config<'_>); N]) -> [Daemon; N] {
    let first = Home::new();
    first.ok(&["key", "new"]);
    let friend = first.ok(&["identity"]);
    let mut daemons = Vec::new();
    for (name, config) in settings {
        let home = if daemons.is_empty() { first.clone() } else { first.beside() };
        fs::create_dir_all(home.path().join("default")).unwrap();
        if !daemons.is_empty() {
            fs::copy(first.path().join("default/key"), home.path().join("default/key")).unwrap();
        }
        fs::write(home.path().join("default/config.toml"), config(friend.trim())).unwrap();
        daemons.push(home.run(&["--name", name]));
    }
    for daemon in &daemons {
        wait_until("all are linked", || daemon.json(&["status"])["peers"] == N - 1);
    }
    daemons.try_into().unwrap_or_else(|_| unreachable!())
}

fn nothing(_: &str) -> String {
    String::new()
}

fn lets_it(action: &str, pattern: &str) -> impl Fn(&str) -> String {
    let (action, pattern) = (action.to_owned(), pattern.to_owned());
    move |friend| {
        format!(
            "[[allow]]\nname = \"ops only\"\nwho = [\"{friend}\"]\naction = [\"{action}\"]\npattern = \"{pattern}\"\n"
        )
    }
}

#[test]
fn a_refused_command_says_the_rule_and_ends_with_5() {
    let call = lets_it("call", "wc");
    let send = lets_it("send", "orders");
    let rules = |friend: &str| format!("{}{}", call(friend), send(friend));
    let [friend, stranger, owner] = daemons([("a", &nothing), ("a", &nothing), ("owner", &rules)]);
    let _serve = crate::verbs::serve(&owner.home, &["wc", "--exec", "wc -c"]);
    let _listener = owner.listener("orders", "readers");
    assert_eq!(friend.home.ok(&["call", "wc", "four"]), "4\n");
    let errors = stranger.home.fails(&["call", "wc", "four"], 5, "refused by the rule 'ops only'");
    assert!(errors.contains("hint: ") && errors.contains("[[allow]]"), "{errors}");
    let (code, failed, _) = stranger.home.meshd(&["call", "wc", "four", "--json"]);
    let failed: Value = serde_json::from_str(&failed).unwrap();
    assert_eq!((code, &failed["kind"]), (5, &"refused".into()));
    stranger.home.fails(&["call", "wc", "four", "--stream"], 5, "refused by the rule 'ops only'");
    let (code, _, errors) = stranger.home.meshd(&["call", "wc", "four", "--all"]);
    assert!(code != 0 && errors.contains("ops only"), "{code}: {errors}");
    friend.home.ok(&["send", "orders", "x", "--acked"]);
    let errors = stranger.home.fails(&["send", "orders", "x", "--acked"], 5, "refused by the rule 'ops only'");
    assert!(errors.contains("meshd identity"), "{errors}");
    let (code, report, _) = stranger.home.meshd(&["send", "orders", "x", "--json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((code, &report["dropped"][0]["reason"]), (5, &"refused".into()));
    assert_eq!(report["dropped"][0]["rule"], "ops only");
    assert!(owner.json(&["status"])["refused"].as_u64().unwrap() >= 4);
    assert!(owner.home.ok(&["status"]).contains("refused"));
    assert_eq!(friend.json(&["status"])["refused"], 0);
}

#[test]
fn watch_tells_on_both_sides_who_was_refused_what() {
    let [_, stranger, owner] = daemons([("a", &nothing), ("b", &nothing), ("owner", &lets_it("listen", "secret/*"))]);
    let mut watches = [&stranger, &owner].map(|daemon| daemon.home.spawn(&["watch", "--json", "--timeout", "3s"]));
    // Each filter is told of once: others follow for as long as they watch, so that some come when both have begun to.
    for n in 0.. {
        if !watches.iter_mut().all(crate::daemon::Running::is_running) {
            break;
        }
        let topic = format!("secret/{n}");
        let _listener = stranger.listener(&topic, "readers");
        wait_until("it listens", || owner.home.ok(&["topics"]).contains(&topic));
        owner.home.fails(&["send", &topic, "x", "--no-wait"], 3, "nobody listens");
    }
    let lines = watches.map(|watch| watch.wait().1);
    let refused = lines.map(|lines| {
        let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.into_iter().find(|event| event["event"] == "refused").unwrap_or_else(|| panic!("{lines}"))
    });
    for (event, (peer, by)) in refused.iter().zip([(owner.peer(), "the other peer"), (stranger.peer(), "this peer")]) {
        assert_eq!((event["peer"].as_str().unwrap(), event["by"].as_str().unwrap()), (&peer[..], by));
        let what = ["action", "rule"].map(|key| event[key].as_str().unwrap());
        assert_eq!(what, ["listen", "ops only"]);
        assert!(event["resource"].as_str().unwrap().starts_with("secret/"), "{event}");
    }
}

/// E, roadmap: a command that ends a node.
#[test]
fn the_daemon_here_is_stopped_in_order_and_the_next_can_start_at_once() {
    let home = Home::new();
    home.fails(&["stop"], 6, "no daemon runs here");
    for json in [false, true] {
        let daemon = home.run(&["--name", "camera"]);
        let listener = home.spawn(&["listen", "t"]);
        home.ok(&["send", "t", "x"]); // so it listens
        if json {
            let peer = daemon.peer();
            let stopped = home.json(&["stop"]);
            assert_eq!(stopped, serde_json::json!({ "node": "camera", "peer": peer, "ended": true }));
        } else {
            assert_eq!(home.ok(&["stop"]), "camera has stopped\n");
        }
        assert!(!home.path().join("default/meshd.sock").exists());
        let (status, _, errors) = listener.wait();
        assert!(status.code() == Some(6) && errors.contains("stop"), "{status}: {errors}");
        let (status, _, errors) = daemon.ended();
        assert!(status.success() && errors.contains("stopping"), "{errors}");
    }
    home.fails(&["stop"], 6, "no daemon runs here");
    home.fails(&["stop", "camera"], 6, "no daemon runs here");
}

/// P, defect: pynetwork's gateway is shut down by any client. E, roadmap: a command that ends one node. A daemon stops for whom its settings name, whatever others call themselves.
#[test]
fn a_daemon_elsewhere_stops_for_whom_it_names_and_for_nobody_else() {
    let [friend, stranger, open, closed] =
        daemons([("ops", &nothing), ("ops", &nothing), ("open", &lets_it("stop", "open")), ("closed", &nothing)]);
    for (daemon, target) in [(&friend, "closed"), (&stranger, "closed"), (&stranger, "open")] {
        for target in [target.to_owned(), if target == "open" { open.peer() } else { closed.peer() }] {
            let errors = daemon.home.fails(&["stop", &target], 5, "refused by the rule '");
            assert!(errors.contains("action = [\"stop\"]") && errors.contains("who = [\"id1-"), "{errors}");
        }
    }
    let errors = stranger.home.fails(&["stop", "open"], 5, "refused by the rule 'ops only'");
    assert!(errors.contains(stranger.home.ok(&["identity"]).trim()), "what to write there: {errors}");
    friend.home.fails(&["stop", "nobody"], 3, "nobody");
    friend.home.fails(&["stop", "ops"], 2, "2 peers are called ops");
    let attached = open.listener("t", "readers");
    wait_until("it is seen", || friend.home.ok(&["nodes"]).contains("readers"));
    let errors = friend.home.fails(&["stop", "readers"], 2, "readers is a program beside open");
    assert!(errors.contains("meshd stop open"), "{errors}");
    drop(attached);
    for daemon in [&friend, &stranger, &open, &closed] {
        assert_eq!(daemon.json(&["status"])["peers"], 3, "nobody has stopped");
        assert!(!daemon.home.ok(&["services"]).contains("meshd."), "it is not listed");
    }
    let identity = friend.home.ok(&["identity"]);
    assert_eq!(friend.home.ok(&["stop", "open"]), "open stops\n");
    let (status, _, errors) = open.ended();
    assert!(
        status.success() && errors.contains("wants this daemon to stop") && errors.contains(identity.trim()),
        "{errors}"
    );
    wait_until("it said goodbye", || friend.json(&["status"])["peers"] == 2);
    friend.home.fails(&["stop", "open"], 3, "open");
    // By its own name, or id, it is the daemon here.
    let peer = friend.peer();
    assert_eq!(friend.home.ok(&["stop", &peer]), "ops has stopped\n");
    assert!(friend.ended().0.success());
}

/// The same for a program that speaks with the daemon over the mesh, by itself; and a node within a program ends with it alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_cannot_stop_a_daemon_either_nor_be_stopped_by_one() {
    let cluster = Cluster::new();
    let node = cluster.start("embedded").await;
    let daemon = Daemon::with_key(&cluster.key, &address(&node).await);
    until("they see each other", async || node.nodes().len() == 2).await;
    let service = node.service("meshd.stop").unwrap();
    assert_eq!(service.wait_for_providers(1, PATIENCE).await.len(), 1, "it can be asked");
    match within("an answer", service.call::<(), ()>(&())).await {
        Err(CallError::Remote(failed)) => {
            assert_eq!(failed.failure.kind, meshd::Failure::REFUSED);
            assert!(failed.failure.message.contains("stop is allowed to nobody"), "{failed}");
        }
        other => panic!("{other:?}"),
    }
    let stop = tokio::task::spawn_blocking(move || {
        daemon.home.fails(&["stop", "embedded"], 3, "no daemon");
        daemon
    });
    let daemon = within("an answer", stop).await.unwrap();
    assert_eq!(daemon.json(&["status"])["peers"], 1, "it runs");
    assert_eq!(daemon.json(&["status"])["refused"], 1);
}

#[test]
fn what_is_wrong_with_a_rule_is_said_with_its_line() {
    let home = Home::new();
    home.ok(&["key", "new"]);
    let config = home.path().join("default/config.toml");
    let whole = "[[allow]]\nwho = [\"*\"]\naction = [\"call\"]\npattern = \"**\"\n";
    fs::write(&config, whole).unwrap();
    home.ok(&["config"]);
    for (right, wrong, said) in [
        ("\"call\"", "\"fly\"", "config.toml:3: \"fly\" is not one of send, listen, call"),
        ("\"*\"", "\"camera-1\"", "config.toml:2: "),
        ("\"*\"", "\"id1-x\"", "config.toml:2: "),
        ("pattern = \"**\"", "", "config.toml:1: 'pattern' is missing"),
        ("pattern", "pattenr", "config.toml:4: unknown"),
    ] {
        fs::write(&config, whole.replace(right, wrong)).unwrap();
        let errors = home.fails(&["config"], 2, said);
        assert!(errors.contains("hint: "), "{errors}");
    }
}
