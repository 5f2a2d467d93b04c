//! What the core costs as a mesh grows: the same work at several sizes, so that growth shows. `scripts/micro.sh` runs it and
//! prints a table.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use meshd::internals::{Choice, Mesh, Message, Subscriptions, decode};
use meshd::{Policy, Topic, TopicFilter};

/// Filters in the view, or at a node.
const FILTERS: [usize; 3] = [10, 1000, 100_000];
/// A record holds 10,000 names at most.
const PER_PEER: usize = 10_000;

fn topic(text: &str) -> Topic {
    Topic::new(text).expect("a topic")
}

fn filter(text: &str) -> TopicFilter {
    TopicFilter::new(text).expect("a filter")
}

/// That many filters, by peer. One selects `sensor/7/temperature`.
fn filters(count: usize, make: impl Fn(usize) -> String) -> Vec<Vec<String>> {
    let all: Vec<String> = (0..count).map(make).collect();
    all.chunks(PER_PEER).map(<[String]>::to_vec).collect()
}

fn exact(n: usize) -> String {
    format!("sensor/{n}/temperature")
}

fn wild(n: usize) -> String {
    match n % 3 {
        0 => format!("*/{n}/temperature"),
        1 => format!("sensor/{n}/*"),
        _ => format!("**/place-{n}"),
    }
}

/// Peers of a thousand filters each, of which one selects what is sent.
fn peers(count: usize) -> Vec<Vec<String>> {
    (0..count).map(|peer| (0..1000).map(|n| format!("sensor/{}/temperature", peer * 1000 + n)).collect()).collect()
}

fn routes(c: &mut Criterion) {
    let sent = topic("sensor/7/temperature");
    let mut group = c.benchmark_group("route");
    for count in FILTERS {
        let mesh = Mesh::linked(&filters(count, exact));
        group.bench_function(BenchmarkId::new("exact filters", count), |b| b.iter(|| mesh.resolve(&sent)));
        let mesh = Mesh::linked(&filters(count, wild));
        assert_eq!(mesh.resolve(&sent), 1);
        group.bench_function(BenchmarkId::new("wildcard filters", count), |b| b.iter(|| mesh.resolve(&sent)));
    }
    for count in [1, 10, 100] {
        let mesh = Mesh::linked(&peers(count));
        let name = "peers of 1000 filters";
        group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| mesh.resolve(&sent)));
    }
    group.finish();
}

fn changes(c: &mut Criterion) {
    let more = filter("sensor/more");
    let mut group = c.benchmark_group("change");
    for count in [1, 10, 100] {
        let mut mesh = Mesh::linked(&peers(count));
        let name = "one filter of 1000 at one peer, of peers";
        group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| mesh.change(0, &more)));
        let name = "an own filter, beside peers of 1000";
        group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| mesh.listen(&more)));
    }
    for count in [1, 100, 4000] {
        let lists: Vec<Vec<String>> = (0..count).map(|n| vec![exact(n)]).collect();
        let mut mesh = Mesh::linked(&lists);
        let name = "one filter of one, of linked peers";
        group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| mesh.change(0, &more)));
        let mut mesh = Mesh::heard_of(&lists);
        let name = "a newer record, among records";
        group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| mesh.change(0, &more)));
        let name = "a known record, among records";
        group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| mesh.repeat(0)));
    }
    group.finish();
}

fn senders(c: &mut Criterion) {
    let payload = Bytes::from_static(&[7; 64]);
    let mut group = c.benchmark_group("publisher");
    for count in [1, 10, 100] {
        let mut mesh = Mesh::linked(&peers(count));
        let sender = mesh.sender(&topic("sensor/7/temperature"));
        assert_eq!(sender.listeners(), 2);
        let name = "same routes, peers of 1000 filters";
        group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| sender.listeners()));
        let before = mesh.snapshot();
        mesh.change(0, &filter("sensor/more"));
        let after = mesh.snapshot();
        let name = "unrelated change, peers of 1000 filters";
        group.bench_function(BenchmarkId::new(name, count), |b| {
            let mut turn = false;
            b.iter(|| {
                turn = !turn;
                sender.see(if turn { &after } else { &before });
                sender.listeners()
            });
        });
        let here = mesh.sender(&topic("here"));
        assert_eq!(here.listeners(), 1);
        let name = "send to itself, peers of 1000 filters";
        group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| here.send(&payload)));
    }
    group.finish();
}

fn picks(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    let policies = [
        ("round_robin", Policy::RoundRobin),
        ("random", Policy::Random),
        ("least_loaded", Policy::LeastLoaded),
        ("local_first", Policy::LocalFirst),
        ("hash", Policy::Hash),
    ];
    for (name, policy) in policies {
        for members in [1, 10, 1000] {
            let mut choice = Choice::new(policy.clone(), members);
            group.bench_function(BenchmarkId::new(name, members), |b| b.iter(|| choice.pick(Some(black_box(b"key")))));
        }
    }
    group.finish();
}

fn frames(c: &mut Criterion) {
    let sent = topic("sensor/7/temperature");
    let mut group = c.benchmark_group("frame");
    for (what, inline, targets) in [("alias", false, 1), ("topic inline", true, 1), ("32 targets", false, 32)] {
        for size in [64, 1 << 10, 64 << 10] {
            let mut message = Message::new(&sent, inline, targets, size);
            let name = format!("encode, {what}");
            group.bench_function(BenchmarkId::new(name, size), |b| b.iter(|| message.encode()));
            let bytes = message.bytes();
            let name = format!("decode, {what}");
            group.bench_function(BenchmarkId::new(name, size), |b| b.iter(|| decode(black_box(&bytes))));
        }
    }
    group.finish();
}

fn subscriptions(c: &mut Criterion) {
    let sent = topic("sensor/0/temperature");
    let mut group = c.benchmark_group("inbox");
    for count in [1, 1000, 100_000] {
        for (name, make) in [("exact filters", exact as fn(usize) -> String), ("wildcard filters", wild)] {
            let all: Vec<String> = (0..count).map(make).collect();
            let subscriptions = Subscriptions::new(&all);
            assert_eq!(subscriptions.matching(&sent), 1);
            group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| subscriptions.matching(&sent)));
        }
    }
    group.finish();
}

criterion_group! {
    name = core;
    config = Criterion::default()
        .without_plots()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .sample_size(20);
    targets = routes, changes, senders, picks, frames, subscriptions
}
criterion_main!(core);
