//! `meshd info`.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::super::args::InfoArgs;
use super::super::output::{Output, rfc3339};
use super::super::trouble::{Exit, Trouble};
use super::{RECOVER, chosen, seconds};
use crate::mesh::Codec;
use crate::recording::{Bytes, Contents, TopicContents};

/// What is in a file, as `--json` prints it.
#[derive(Serialize)]
struct Line<'a> {
    file: &'a Path,
    size: u64,
    software: &'a str,
    mesh: Option<&'a str>,
    filters: &'a [String],
    messages: u64,
    /// Only of a file that was checked: null if it has no index.
    #[serde(skip_serializing_if = "Option::is_none")]
    indexed: Option<Option<u64>>,
    lost: u64,
    begin: Option<String>,
    end: Option<String>,
    duration_s: f64,
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression: Option<&'a str>,
    topics: Vec<TopicLine<'a>>,
}

#[derive(Serialize)]
struct TopicLine<'a> {
    topic: &'a str,
    codec: &'static str,
    messages: u64,
    /// Per second.
    rate: Option<f64>,
    senders: usize,
}

pub(in crate::cli) fn info(args: &InfoArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let path = chosen(args.file.clone())?;
    let contents = if args.check { Contents::check(&path)? } else { Contents::of(&path)? };
    tell(&path, &contents, args.check, out)?;
    if args.check { verdict(&path, &contents) } else { Ok(Exit::Done) }
}

/// Whether all that a file says it has can be read.
fn verdict(path: &Path, contents: &Contents) -> Result<Exit, Trouble> {
    let Contents { messages, indexed, cut, .. } = contents;
    let path = path.display();
    let text = match (cut, indexed) {
        (Some(cut), Some(indexed)) => {
            format!("{messages} of the {indexed} messages of {path} can be read: it is cut short {cut}")
        }
        (Some(cut), None) => format!("{messages} messages of {path} can be read: it is cut short {cut}"),
        (None, Some(indexed)) if indexed != messages => {
            format!("all {messages} messages of {path} can be read, but its index counts {indexed}")
        }
        (None, _) => return Ok(Exit::Done),
    };
    Err(Trouble::new(Exit::Failed, text).hint(RECOVER))
}

fn tell(path: &Path, contents: &Contents, checked: bool, out: &mut Output) -> Result<(), Trouble> {
    let Contents { size, library, mesh, filters, messages, indexed, lost, span_ns, topics, compression, cut } =
        contents;
    let span = span_ns.map_or(Duration::ZERO, |(first, last)| Duration::from_nanos(last.saturating_sub(first)));
    let time = |ns| rfc3339(UNIX_EPOCH + Duration::from_nanos(ns));
    if out.json {
        let topics = topics.iter().map(|topic| TopicLine {
            topic: &topic.name,
            codec: codec_name(topic.codec),
            messages: topic.messages,
            rate: rate(topic, span),
            senders: topic.senders,
        });
        out.object(&Line {
            file: path,
            size: *size,
            software: library,
            mesh: mesh.as_deref(),
            filters,
            messages: *messages,
            indexed: checked.then_some(*indexed),
            lost: *lost,
            begin: span_ns.map(|(first, _)| time(first)),
            end: span_ns.map(|(_, last)| time(last)),
            duration_s: span.as_secs_f64(),
            complete: cut.is_none(),
            cut: cut.as_ref().map(|cut| &cut.why[..]),
            cut_at: cut.as_ref().map(|cut| cut.at),
            compression: compression.as_deref(),
            topics: topics.collect(),
        })?;
        return Ok(());
    }
    let mut facts = vec![("file", path.display().to_string()), ("size", Bytes(*size).to_string())];
    facts.push(("software", library.clone()));
    if let Some(mesh) = mesh {
        facts.push(("mesh", format!("{mesh}: {}", filters.join(" "))));
    }
    if let Some((first, last)) = *span_ns {
        facts.push(("time", format!("{} to {}", time(first), time(last))));
        facts.push(("duration", seconds(span)));
    }
    facts.push(("messages", messages.to_string()));
    facts.extend(checked.then_some(*indexed).flatten().map(|indexed| ("index", format!("counts {indexed} messages"))));
    facts.push(("lost", lost.to_string()));
    facts.extend(compression.as_ref().map(|name| ("compressed", format!("by {name}: meshd cannot play it"))));
    facts.extend(cut.as_ref().map(|cut| ("cut short", cut.to_string())));
    facts.extend((checked && cut.is_none()).then(|| ("checked", "all of it can be read".to_owned())));
    out.facts(&facts)?;
    for topic in topics {
        let share = 100.0 * topic.messages as f64 / (*messages).max(1) as f64;
        let rate = rate(topic, span).map_or_else(String::new, |rate| format!(", {rate:.1}/s"));
        let senders = match topic.senders {
            0 => String::new(),
            1 => ", 1 sender".to_owned(),
            many => format!(", {many} senders"),
        };
        let line = format!("messages: {} ({share:.0}%), {}{rate}{senders}", topic.messages, codec_name(topic.codec));
        let line = format!("{}  {line}", out.strong(&out.foreign(&topic.name)));
        out.line(&line)?;
    }
    Ok(())
}

/// Messages per second, if there is time between the first and the last.
fn rate(topic: &TopicContents, span: Duration) -> Option<f64> {
    (!span.is_zero()).then(|| topic.messages as f64 / span.as_secs_f64())
}

fn codec_name(codec: Codec) -> &'static str {
    match codec {
        Codec::Bytes => "bytes",
        Codec::Text => "text",
        Codec::Json => "json",
        Codec::Cbor => "cbor",
    }
}
