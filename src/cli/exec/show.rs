//! How what programs print, and how they end, is shown.

use bytes::{Bytes, BytesMut};
use serde::Serialize;

use super::targets::Target;
use crate::cli::output::{Output, Printed};
use crate::cli::payload::{Content, content};
use crate::cli::trouble::{Exit, Trouble};
use crate::mesh::exec::{NOT_EXECUTABLE, NOT_FOUND, ProcessExit, REFUSED, TIMED_OUT};
use crate::mesh::{Codec, Failure};
use crate::wire::control;

/// How it is shown.
pub(super) struct Show {
    /// What is run, for hints.
    pub(super) program: String,
    /// Lines are labelled by node.
    pub(super) apart: bool,
    /// Lines are messages.
    pub(super) messages: bool,
}

/// What a program prints, of which a line may not be whole yet.
#[derive(Default)]
pub(super) struct Lines {
    out: BytesMut,
    err: BytesMut,
}

/// How it ended.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Ended(ProcessExit),
    /// It was not run, or not to its end: which is ours to say.
    Failed {
        exit: Exit,
        message: String,
        hint: Option<String>,
    },
}

/// A line, as `--json` prints it.
#[derive(Serialize)]
struct Line<'a> {
    node: &'a str,
    peer: String,
    stream: &'static str,
    #[serde(flatten)]
    content: Content,
}

/// An end, as `--json` prints it.
#[derive(Serialize)]
struct End<'a> {
    node: &'a str,
    peer: String,
    exit: Option<u8>,
    signal: Option<u8>,
    error: Option<&'a str>,
    millis: u64,
}

impl Show {
    /// What is to be written for what a program printed.
    pub(super) fn printed(
        &self,
        target: &Target,
        which: usize,
        lines: &mut Lines,
        printed: Printed,
        out: &Output,
    ) -> Vec<Printed> {
        if !self.apart && !out.json {
            return match printed {
                // A message is a line, whose end it does not hold.
                Printed::Stdout(line) if self.messages => vec![Printed::Stdout([&line[..], b"\n"].concat().into())],
                printed => vec![printed],
            };
        }
        let (data, kept, is_err) = match &printed {
            Printed::Stdout(data) => (data, &mut lines.out, false),
            Printed::Stderr(data) => (data, &mut lines.err, true),
        };
        kept.extend_from_slice(data);
        if self.messages && !is_err {
            kept.extend_from_slice(b"\n");
        }
        let mut shown = BytesMut::new();
        while let Some(line) = next_line(kept, self.messages && !is_err) {
            shown.extend_from_slice(&self.line(target, which, &line, is_err, out));
        }
        wrapped(shown, is_err && !out.json)
    }

    /// What is to be written for lines that never ended.
    pub(super) fn rest(&self, target: &Target, which: usize, lines: Lines, out: &Output) -> Vec<Printed> {
        let both = [(lines.out, false), (lines.err, true)].into_iter().filter(|(rest, _)| !rest.is_empty());
        both.flat_map(|(rest, is_err)| {
            let line = self.line(target, which, &rest, is_err, out);
            wrapped(BytesMut::from(&line[..]), is_err && !out.json)
        })
        .collect()
    }

    fn line(&self, target: &Target, which: usize, line: &[u8], is_err: bool, out: &Output) -> Vec<u8> {
        if out.json {
            let codec = if self.messages && !is_err { Codec::Json } else { Codec::Text };
            let content = match content(codec, line) {
                Content::Base64(_) => content(Codec::Text, line), // not JSON: as text, if it is any
                content => content,
            };
            let stream = if is_err { "stderr" } else { "stdout" };
            let line = Line { node: &target.name, peer: target.id.peer.to_string(), stream, content };
            return json(&line);
        }
        let label = if is_err { out.talk.source(&target.label, which) } else { out.label(&target.label, which) };
        let text = match std::str::from_utf8(line) {
            Ok(text) if is_err => out.talk.safe(text).into_owned().into_bytes(),
            Ok(text) => out.foreign(text).into_owned().into_bytes(),
            Err(_) => out.harmless(line, is_err),
        };
        [label.as_bytes(), b"  ", &text, b"\n"].concat()
    }

    /// How it ended, for programs.
    pub(super) fn end(&self, target: &Target, outcome: &Outcome, millis: u64) -> Printed {
        let (exit, signal, error) = match outcome {
            Outcome::Ended(ProcessExit::Code(code)) => (Some(*code), None, None),
            Outcome::Ended(ProcessExit::Signal(signal)) => (None, Some(*signal), None),
            Outcome::Failed { message, .. } => (None, None, Some(&message[..])),
        };
        let end = End { node: &target.name, peer: target.id.peer.to_string(), exit, signal, error, millis };
        Printed::Stdout(json(&end).into())
    }

    /// Why a program was not run, or not to its end.
    pub(super) fn failed(&self, target: &Target, failure: control::Failure) -> Outcome {
        let name = &target.label;
        let Some(remote) = failure.remote.as_deref() else {
            let Trouble { exit, message, hint } = Trouble::from(failure);
            let hint = hint.or_else(|| Some("see who is there with: meshd nodes".to_owned()));
            return Outcome::Failed { exit, message: format!("{name}: {message}"), hint };
        };
        let program = &self.program;
        let (exit, hint) = match &remote.kind[..] {
            REFUSED if remote.message.contains("[[allow]]") => {
                (Exit::Refused, format!("have the owner of {name} name you in that rule: see `meshd identity`"))
            }
            REFUSED if !remote.message.contains("[exec] allow") => {
                (Exit::Refused, format!("leave the variable out, or have the owner of {name} set any = true"))
            }
            REFUSED if program.contains('/') && !program.starts_with('/') => {
                (Exit::Refused, "name it without a path, or by the whole path: no other is ever allowed".to_owned())
            }
            REFUSED => {
                let setting = format!("[exec] allow = [{:?}]", program);
                (
                    Exit::Refused,
                    format!("have the owner of {name} set it in config.toml there, and restart it: {setting}"),
                )
            }
            Failure::BUSY => (Exit::Refused, "try again when some have ended".to_owned()),
            TIMED_OUT => (Exit::TimedOut, "give it more time with --timeout".to_owned()),
            NOT_FOUND => (Exit::Program(127), "name one that is there, or send one along with --script".to_owned()),
            NOT_EXECUTABLE => (Exit::Program(126), "make it executable there, or run it by its interpreter".to_owned()),
            _ => (Exit::Failed, format!("see what the daemon of {name} logs")),
        };
        let kind = if exit == Exit::Refused { format!("{}: ", remote.kind) } else { String::new() };
        Outcome::Failed { exit, message: format!("{name}: {kind}{}", remote.message), hint: Some(hint) }
    }
}

impl Outcome {
    /// The node is not there any more, or says what means nothing.
    pub(super) fn lost(target: &Target, message: &str) -> Self {
        let hint = Some("see who is there with: meshd nodes".to_owned());
        Self::Failed { exit: Exit::Failed, message: format!("{}: {message}", target.label), hint }
    }

    /// As this process is to end, if this is all.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Ended(exit) => Exit::Program(exit.code()),
            Self::Failed { exit, .. } => *exit,
        }
    }

    /// For a table.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Ended(ProcessExit::Code(code)) => code.to_string(),
            Self::Ended(ProcessExit::Signal(signal)) => format!("signal {signal}"),
            Self::Failed { exit, .. } => format!("not run ({})", exit.code()),
        }
    }
}

impl From<Outcome> for Result<Exit, Trouble> {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ended(exit) => Ok(Exit::Program(exit.code())),
            Outcome::Failed { exit, message, hint } => Err(Trouble { exit, message, hint }),
        }
    }
}

fn json(object: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(object).unwrap_or_default(); // texts and numbers, all of them
    line.push(b'\n');
    line
}

fn wrapped(shown: BytesMut, is_err: bool) -> Vec<Printed> {
    let shown = shown.freeze();
    match (shown.is_empty(), is_err) {
        (true, _) => Vec::new(),
        (false, true) => vec![Printed::Stderr(shown)],
        (false, false) => vec![Printed::Stdout(shown)],
    }
}

/// The next line, without its end. One that is too long to wait for comes in parts, unless it is a message.
fn next_line(kept: &mut BytesMut, is_message: bool) -> Option<Bytes> {
    match kept.iter().position(|byte| *byte == b'\n') {
        Some(end) => Some(kept.split_to(end + 1).freeze().slice(..end)),
        None if kept.len() > MAX_PART && !is_message => Some(kept.split().freeze()),
        None => None,
    }
}

/// Bytes of a line that are waited for.
const MAX_PART: usize = 64 * 1024;
