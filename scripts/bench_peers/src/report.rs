//! SPEED.md and its chart, from what was measured. The words around the figures are in `SPEED.md.in`.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::results::{Cell, FIGURES, Figure, Results, Unit};
use crate::systems::{Class, SYSTEMS, System};
use crate::work::Work;
use crate::{Outcome, chart};

const TEMPLATE: &str = include_str!("../SPEED.md.in");

/// One cell while the run goes on.
pub fn line(cell: &Cell) -> String {
    let mut text = format!("{:9} {:12}", cell.work.word(), cell.system);
    for figure in FIGURES.iter().filter(|figure| figure.work == cell.work) {
        if let Some(value) = cell.figures.get(figure.key) {
            let scale = if figure.unit == Unit::BytesPerSecond { figure.work.size() as f64 } else { 1.0 };
            let _ = write!(text, "  {}", figure.unit.show(value * scale));
        }
    }
    if cell.sent > cell.received {
        let _ = write!(text, "  lost {} of {}", cell.sent - cell.received, cell.sent);
    }
    if let Some(link) = &cell.link {
        let _ = write!(text, "  by {link}");
    }
    if let Some(reason) = &cell.failed {
        let _ = write!(text, "  failed: {reason}");
    }
    text
}

/// Writes `SPEED.md` and `speed.svg`, and says where.
pub fn write(state: &Path, docs: &Path) -> Outcome<()> {
    let results = Results::read(&state.join("raw.jsonl"))?;
    fs::create_dir_all(docs)?;
    let facts = &results.facts;
    let versions: Vec<String> = facts.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let machine = format!("{}, {} cores, {}, {}", facts.cpu, facts.cores, facts.os, facts.kernel);
    let run = format!(
        "{}: {}, {:.1} s each, interleaved; {:.0} minutes in all",
        facts.date,
        if facts.rounds == 1 { "one round".to_owned() } else { format!("medians of {} rounds", facts.rounds) },
        facts.seconds,
        facts.minutes,
    );
    let parts = [
        ("{{machine}}", machine),
        ("{{run}}", run),
        ("{{versions}}", versions.join(", ")),
        ("{{overview}}", overview(&results)),
        ("{{goals}}", goals(&results)),
        ("{{better}}", better(&results)),
        ("{{tables}}", tables(&results)),
        ("{{missing}}", missing(&results)),
    ];
    let text = parts.iter().fold(TEMPLATE.to_owned(), |text, (mark, part)| text.replace(mark, part.trim_end()));
    fs::write(docs.join("SPEED.md"), text)?;
    fs::write(docs.join("speed.svg"), chart::draw(&results))?;
    eprintln!("{} and {}", docs.join("SPEED.md").display(), docs.join("speed.svg").display());
    Ok(())
}

/// What a row is called: meshd's by the link that it had.
pub fn name(results: &Results, work: Option<Work>, system: &System) -> String {
    match (system.word, results.link(work, system.word).as_deref()) {
        ("meshd-local", Some("unix")) => "meshd, one host (Unix link)".into(),
        ("meshd-local", Some(link)) => format!("meshd, one host ({link} link)"),
        ("meshd-tcp", Some(link)) if link != "tcp" => format!("meshd, by address ({link} link)"),
        _ => system.name.into(),
    }
}

fn rows(results: &Results) -> impl Iterator<Item = &'static System> + use<'_> {
    let there = |system: &&System| FIGURES.iter().any(|figure| results.figure(figure, system.word).is_some());
    SYSTEMS.iter().filter(there)
}

fn overview(results: &Results) -> String {
    let columns = [0, 1, 2, 3, 4, 6, 7, 8, 9].map(|index| &FIGURES[index]);
    let heads =
        ["64 B", "1 KiB", "64 KiB", "1 MiB", "round trip p50", "call p50", "64 calls in flight", "1 to 32", "start"];
    let mut text = format!("| | {} |\n|---|{}\n", heads.join(" | "), "--:|".repeat(heads.len()));
    for system in rows(results) {
        let cells = columns.map(|figure| {
            let spread = results.figure(figure, system.word);
            spread.map_or_else(String::new, |spread| figure.unit.show(spread.median) + lossy(spread.lost))
        });
        let name = emphasized(system, &name(results, None, system));
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    text
}

fn lossy(lost: u64) -> &'static str {
    if lost > 0 { " (lossy)" } else { "" }
}

fn emphasized(system: &System, name: &str) -> String {
    match system.class {
        Class::Meshd => format!("**{name}**"),
        Class::Floor => format!("*{name}*"),
        Class::Encrypted | Class::Plain => name.to_owned(),
    }
}

fn tables(results: &Results) -> String {
    let mut text = String::new();
    for figure in FIGURES {
        let median = |system: &str| results.figure(figure, system).map(|spread| spread.median);
        let (local, tcp) = (median("meshd-local"), median("meshd-tcp"));
        let mut lines = String::new();
        for system in rows(results) {
            let Some(spread) = results.figure(figure, system.word) else { continue };
            let show = |value| figure.unit.show(value);
            let times = |meshd: Option<f64>| {
                meshd.map_or_else(String::new, |meshd| format!("{:.2}", figure.unit.better(meshd, spread.median)))
            };
            let lost = match spread.lost {
                _ if spread.sent == 0 => String::new(),
                0 => "none".into(),
                lost => format!("{:.1} %", lost as f64 / spread.sent as f64 * 100.0),
            };
            let _ = writeln!(
                lines,
                "| {} | {} | {} .. {} | {} | {} | {lost} |",
                emphasized(system, &name(results, Some(figure.work), system)),
                show(spread.median),
                show(spread.least),
                show(spread.most),
                times(local),
                times(tcp),
            );
        }
        if !lines.is_empty() {
            let _ = write!(
                text,
                "### {}\n\n| | median | rounds | meshd on one host is .. times it | meshd by encrypted TCP is .. times it | \
                 lost |\n|---|--:|--:|--:|--:|--:|\n{lines}\n",
                capital(figure.title),
            );
        }
    }
    text
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// Each place where something that carries messages was faster.
fn better(results: &Results) -> String {
    let mut text = String::from("| | than meshd on one host | than meshd by encrypted TCP |\n|---|---|---|\n");
    for figure in FIGURES {
        let cells = ["meshd-local", "meshd-tcp"].map(|meshd| match results.figure(figure, meshd) {
            Some(own) => faster(results, figure, own.median),
            None => "not measured".into(),
        });
        if cells.iter().any(|cell| !cell.is_empty()) {
            let _ = writeln!(
                text,
                "| {} | {} |",
                figure.title,
                cells.map(|cell| if cell.is_empty() { "nothing".into() } else { cell }).join(" | ")
            );
        }
    }
    text
}

fn faster(results: &Results, figure: &Figure, own: f64) -> String {
    let systems = SYSTEMS.iter().filter(|system| matches!(system.class, Class::Plain | Class::Encrypted));
    let mut ahead: Vec<(f64, &str)> = systems
        .filter_map(|system| {
            let times = figure.unit.better(results.figure(figure, system.word)?.median, own);
            (times > 1.0).then_some((times, system.name))
        })
        .collect();
    ahead.sort_by(|one, other| other.0.total_cmp(&one.0));
    let ahead: Vec<String> = ahead.into_iter().map(|(times, name)| format!("{name}: {times:.2} times")).collect();
    ahead.join("; ")
}

/// What was aimed at: a figure of meshd, and what it is held against.
struct Goal {
    words: &'static str,
    meshd: &'static str,
    work: Work,
    key: &'static str,
    /// The best of these, times this.
    against: &'static [&'static str],
    times: f64,
    /// Or a figure as such.
    fixed: Option<f64>,
}

const GOALS: &[Goal] = &[
    goal(
        "64 B on one host: 1.2 times Zenoh plaintext",
        "meshd-local",
        Work::Flood64,
        "per_second",
        &["zenoh-tcp"],
        1.2,
    ),
    goal("64 B by encrypted TCP: NATS plaintext", "meshd-tcp", Work::Flood64, "per_second", &["nats-tcp"], 1.0),
    goal(
        "round trip p50 on one host: half of Zenoh's and NATS's",
        "meshd-local",
        Work::Trip,
        "trip_p50",
        &["zenoh-tcp", "nats-tcp"],
        2.0,
    ),
    goal(
        "round trip p50 by encrypted TCP: below Zenoh's and NATS's",
        "meshd-tcp",
        Work::Trip,
        "trip_p50",
        &["zenoh-tcp", "nats-tcp"],
        1.0,
    ),
    goal("64 calls in flight on one host: 4 times NATS", "meshd-local", Work::Calls, "calls", &["nats-tcp"], 4.0),
    goal("64 calls in flight by encrypted TCP: 2 times NATS", "meshd-tcp", Work::Calls, "calls", &["nats-tcp"], 2.0),
    goal("64 KiB on one host: 2 times execnet", "meshd-local", Work::Flood64K, "per_second", &["execnet"], 2.0),
    goal(
        "64 KiB on one host: above Zenoh without shared memory",
        "meshd-local",
        Work::Flood64K,
        "per_second",
        &["zenoh-tcp"],
        1.0,
    ),
    goal("64 KiB by encrypted TCP: NATS plaintext", "meshd-tcp", Work::Flood64K, "per_second", &["nats-tcp"], 1.0),
    Goal {
        fixed: Some(3e9),
        ..goal("1 MiB on one host: 3 GB/s", "meshd-local", Work::Flood1M, "per_second", &[], 1.0)
    },
    goal(
        "1 MiB by encrypted TCP: 85 % of a bare libp2p stream",
        "meshd-tcp",
        Work::Flood1M,
        "per_second",
        &["libp2p"],
        0.85,
    ),
    Goal {
        fixed: Some(50_000.0),
        ..goal("start to first message on one host: 50 ms", "meshd-local", Work::Start, "start_p50", &[], 1.0)
    },
];

const fn goal(
    words: &'static str,
    meshd: &'static str,
    work: Work,
    key: &'static str,
    against: &'static [&'static str],
    times: f64,
) -> Goal {
    Goal { words, meshd, work, key, against, times, fixed: None }
}

/// Boxes that a bar has when its goal is met.
const WHOLE: usize = 20;

fn goals(results: &Results) -> String {
    let mut text = String::from("| goal | needed | reached | | |\n|---|--:|--:|---|---|\n");
    for goal in GOALS {
        let Some(figure) = FIGURES.iter().find(|figure| (figure.work, figure.key) == (goal.work, goal.key)) else {
            continue;
        };
        let (reached, needed) = (reached(results, figure, goal), needed(results, figure, goal));
        let show =
            |value: Option<f64>| value.map_or_else(|| "not measured".to_owned(), |value| figure.unit.show(value));
        let (bar, words) = match (reached, needed) {
            (Some(reached), Some(needed)) => {
                let part = figure.unit.better(reached, needed);
                let full = ((part * WHOLE as f64) as usize).min(WHOLE);
                let bar = "█".repeat(full) + &"░".repeat(WHOLE - full);
                (
                    bar,
                    if part >= 1.0 {
                        format!("met ({part:.2} of it)")
                    } else {
                        format!("**{:.0} %** of it", part * 100.0)
                    },
                )
            }
            _ => Default::default(),
        };
        let _ = writeln!(text, "| {} | {} | {} | `{bar}` | {words} |", goal.words, show(needed), show(reached));
    }
    text.replace("| `` |", "| |")
}

fn reached(results: &Results, figure: &Figure, goal: &Goal) -> Option<f64> {
    results.figure(figure, goal.meshd).map(|spread| spread.median)
}

fn needed(results: &Results, figure: &Figure, goal: &Goal) -> Option<f64> {
    if goal.fixed.is_some() {
        return goal.fixed;
    }
    let others = goal.against.iter().map(|system| results.figure(figure, system).map(|spread| spread.median));
    let others: Vec<f64> = others.collect::<Option<_>>()?;
    let best =
        others.into_iter().reduce(|one, other| if figure.unit.better(one, other) > 1.0 { one } else { other })?;
    Some(if figure.unit == Unit::Microseconds { best / goal.times } else { best * goal.times })
}

fn missing(results: &Results) -> String {
    let absent = results.facts.absent.iter().map(|(name, reason)| format!("- {name}: skipped: {reason}.\n"));
    let mut text: String = absent.collect();
    for system in SYSTEMS {
        for work in Work::ALL {
            if let Some(reason) = results.failure(work, system.word) {
                let _ = writeln!(text, "- {} at {}: {reason}.", system.name, work.word());
            }
        }
    }
    if text.is_empty() { "Nothing was skipped, and nothing failed.\n".into() } else { text }
}
