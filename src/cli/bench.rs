//! `meshd bench`: what is typed into a plan, figures into lines.

use std::time::Duration;

use super::args::{BenchArgs, Measured, Transport};
use super::output::{Output, micros};
use super::stop::Stop;
use super::trouble::{Exit, Trouble};
use crate::bench::{self, BUILD, Bench, BenchError, Figures, Load, Notice, Plan, Row};
use crate::config::bytes_text;
use crate::mesh::LinkKind;

pub(super) async fn bench(args: BenchArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let mut stop = Stop::new()?;
    let plan = plan(args);
    let talk = out.talk;
    if BUILD == "debug" {
        talk.say("THIS IS A DEBUG BUILD: its figures mean nothing. Build with: cargo build --release");
    }
    if out.json {
        talk.say(&bench::machine());
    } else {
        out.line(&bench::machine())?;
        out.flush()?;
    }
    let (mut rows, mut printed) = (Vec::new(), Ok(()));
    let ended = {
        let mut tell = |notice| {
            match notice {
                Notice::Doing(what) => talk.say(&what),
                Notice::LeftOut(what) => talk.say(&format!("left out: {what}")),
                Notice::Row(row) if out.json => printed = out.object(&row).and_then(|()| out.flush()),
                Notice::Row(row) => rows.push(row),
            }
            printed.is_ok()
        };
        tokio::select! {
            ended = bench::run(&plan, &mut tell) => Some(ended),
            () = stop.wanted() => None, // what it has started ends with it
        }
    };
    printed?;
    // Figures that are there hold, whatever came after them.
    Bench::ALL.into_iter().try_for_each(|bench| table(bench, &rows, out))?;
    match ended {
        Some(Ok(())) => Ok(Exit::Done),
        Some(Err(error)) => Err(trouble(&error)),
        None => Err(Trouble::new(Exit::Failed, "stopped before all was measured")
            .hint("--quick takes a quarter of the time, --only NAME measures less")),
    }
}

/// A process that is measured: started by `bench`, and told what to do on stdin.
pub(super) async fn peer(out: &mut Output) -> Result<Exit, Trouble> {
    let mut answers = bench::answers();
    while let Some(answer) = answers.recv().await {
        out.object(&answer)?;
        out.flush()?;
    }
    Ok(Exit::Done)
}

fn plan(args: BenchArgs) -> Plan {
    let (time, idle, starts) = if args.quick { (QUICK, 4, 3) } else { (FULL, 10, 10) };
    let links = match args.transport {
        Transport::Unix => vec![LinkKind::Unix],
        Transport::Tcp => vec![LinkKind::Tcp],
        Transport::Both => vec![LinkKind::Unix, LinkKind::Tcp],
    };
    let measured = |bench: &Bench| args.only.is_empty() || args.only.iter().any(|only| bench_of(*only) == *bench);
    Plan {
        links,
        leave_out: args.transport == Transport::Both,
        benches: Bench::ALL.into_iter().filter(measured).collect(),
        time: args.time.unwrap_or(time),
        count: args.count.unwrap_or(u64::MAX),
        in_flight: usize::from(args.in_flight),
        listeners: args.fan_out.iter().map(|listeners| usize::from(*listeners)).collect(),
        idle: usize::from(args.idle.unwrap_or(idle)),
        starts,
        rounds: usize::from(args.rounds),
        sizes: args.size,
    }
}

fn bench_of(measured: Measured) -> Bench {
    match measured {
        Measured::Topic => Bench::Topic,
        Measured::Echo => Bench::Echo,
        Measured::Call => Bench::Call,
        Measured::FanOut => Bench::FanOut,
        Measured::Start => Bench::Start,
        Measured::Idle => Bench::Idle,
    }
}

fn trouble(error: &BenchError) -> Trouble {
    Trouble::failed("the measurement ended", error).hint(error.hint())
}

/// All figures of one bench, under a heading that says what they are.
fn table(bench: Bench, rows: &[Row], out: &mut Output) -> Result<(), Trouble> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.bench == bench).collect();
    if rows.is_empty() {
        return Ok(());
    }
    out.line("")?;
    let heading = out.strong(heading(bench)).into_owned();
    out.line(&heading)?;
    match bench {
        Bench::Topic => out.table(["LINK", "SIZE", "MESSAGES/S", "MB/S", "LOST"], &cells(&rows, topic)),
        Bench::Echo => {
            let head = ["LINK", "SIZE", "LOAD", "P50", "P99", "P99.9", "MAX", "LOST"];
            out.table(head, &cells(&rows, echo))
        }
        Bench::Call => {
            let head = ["LINK", "SIZE", "IN FLIGHT", "CALLS/S", "P50", "P99", "P99.9", "MAX"];
            out.table(head, &cells(&rows, call))
        }
        Bench::FanOut => {
            let head = ["LINK", "SIZE", "LISTENERS", "SENT/S", "DELIVERED/S", "MB/S", "FRAMES/LINK", "LOST"];
            out.table(head, &cells(&rows, fan_out))
        }
        Bench::Start => out.table(["LINK", "STARTS", "MEDIAN", "MAX"], &cells(&rows, start)),
        Bench::Idle => out.table(["LINK", "PEERS", "RSS", "PSS", "CPU"], &cells(&rows, idle)),
    }
}

fn heading(bench: Bench) -> &'static str {
    match bench {
        Bench::Topic => "topic: one sender, one listener; messages that arrived, as the listener counts them",
        Bench::Echo => {
            "echo: load idle: there and back; load half: one way at half the rate of topic, from when each was due"
        }
        Bench::Call => "call: one caller, one provider",
        Bench::FanOut => {
            "fan-out: one sender, listeners in 4 processes; all deliveries together, and how often a message crossed a link"
        }
        Bench::Start => "start: from the start of a process until its first message is there, in a mesh that runs",
        Bench::Idle => "idle: of one peer that has nothing to do, on average",
    }
}

fn cells<const N: usize>(rows: &[&Row], one: impl Fn(&str, &Figures) -> Option<[String; N]>) -> Vec<[String; N]> {
    rows.iter().filter_map(|row| one(row.transport.name(), &row.figures)).collect()
}

fn topic(link: &str, figures: &Figures) -> Option<[String; 5]> {
    let Figures::Topic { size, msg_per_s, mb_per_s, lost, .. } = figures else { return None };
    Some([link.into(), bytes(*size), number(*msg_per_s), number(*mb_per_s), lost.to_string()])
}

fn echo(link: &str, figures: &Figures) -> Option<[String; 8]> {
    let Figures::Echo { size, load, msg_per_s, latency, lost } = figures else { return None };
    let load = match (load, msg_per_s) {
        (Load::Idle, _) => "idle".to_owned(),
        (Load::Half, rate) => format!("half: {}/s", number(rate.unwrap_or_default())),
    };
    let [p50, p99, p999, max] = [latency.p50_us, latency.p99_us, latency.p999_us, latency.max_us].map(time);
    Some([link.into(), bytes(*size), load, p50, p99, p999, max, lost.to_string()])
}

fn call(link: &str, figures: &Figures) -> Option<[String; 8]> {
    let Figures::Call { size, in_flight, calls_per_s, latency, .. } = figures else { return None };
    let [p50, p99, p999, max] = [latency.p50_us, latency.p99_us, latency.p999_us, latency.max_us].map(time);
    Some([link.into(), bytes(*size), in_flight.to_string(), number(*calls_per_s), p50, p99, p999, max])
}

fn fan_out(link: &str, figures: &Figures) -> Option<[String; 8]> {
    let Figures::FanOut { size, listeners, published_per_s, delivered_per_s, mb_per_s, frames_per_link, lost, .. } =
        figures
    else {
        return None;
    };
    let rates = [published_per_s, delivered_per_s, mb_per_s].map(|rate| number(*rate));
    let [published, delivered, megabytes] = rates;
    let frames = frames_per_link.to_string();
    Some([link.into(), bytes(*size), listeners.to_string(), published, delivered, megabytes, frames, lost.to_string()])
}

fn start(link: &str, figures: &Figures) -> Option<[String; 4]> {
    let Figures::Start { starts, median_ms, max_ms } = figures else { return None };
    Some([link.into(), starts.to_string(), time(median_ms * 1e3), time(max_ms * 1e3)])
}

fn idle(link: &str, figures: &Figures) -> Option<[String; 5]> {
    let Figures::Idle { peers, rss_kib, pss_kib, cpu_percent, .. } = figures else { return None };
    let memory = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    let pss = pss_kib.map_or_else(|| "-".to_owned(), memory);
    Some([link.into(), peers.to_string(), memory(*rss_kib), pss, format!("{cpu_percent} %")])
}

fn bytes(size: usize) -> String {
    let text = bytes_text(size);
    if text.ends_with('B') { text } else { format!("{text} B") }
}

/// A number as people read it: `1,234,567`, and `1.2` below 100.
fn number(number: f64) -> String {
    if number < 100.0 {
        return format!("{number:.1}");
    }
    let digits = format!("{number:.0}");
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn time(us: f64) -> String {
    if us < 100.0 { format!("{us:.1} us") } else { micros(us.round() as u64) }
}

/// How long each figure is measured.
const FULL: Duration = Duration::from_secs(2);
const QUICK: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (value, text) in
            [(0.25, "0.2"), (99.94, "99.9"), (100.0, "100"), (1234.5, "1,234"), (1_234_567.0, "1,234,567")]
        {
            assert_eq!(number(value), text);
        }
        assert_eq!([time(12.34), time(1500.0)], ["12.3 us", "1.5 ms"]);
        assert_eq!([bytes(64), bytes(65536)], ["64 B", "64 KiB"]);
    }
}
