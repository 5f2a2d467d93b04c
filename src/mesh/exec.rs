//! What is said about running programs for others: the request, and what both ends say while it runs. Plain data.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is to be run, and how: what the channel to [`EXEC_SERVICE`] is opened with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecRequest {
    /// The program and its arguments.
    pub(crate) command: Vec<Word>,
    /// A program that is sent along: its file's name comes after the command, then these arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) script: Option<SentScript>,
    /// Variables besides those of whoever runs it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) env: BTreeMap<Word, Word>,
    /// The directory in which it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) chdir: Option<Word>,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
    /// Each item for stdin is a line, and each line of stdout is an item.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) messages: bool,
}

/// What is said of a program that is sent along. Its text follows in the channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SentScript {
    /// What its file is to be called: what it says of itself in messages.
    pub(crate) name: String,
    /// Its arguments.
    #[serde(default)]
    pub(crate) args: Vec<Word>,
}

/// A word of a command line: any bytes but 0. A text in CBOR if it is one, else a byte string.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Word(Vec<u8>);

/// What the caller says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExecSaid {
    /// Something for its stdin.
    Stdin(Bytes),
    /// Nothing more comes for its stdin.
    StdinEnd,
    /// A signal for it, and for all that it started.
    Signal(ProcessSignal),
    /// A part of the program that is sent along.
    Script(Bytes),
    /// That was all of it.
    ScriptEnd,
}

/// What whoever runs it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExecTold {
    /// It runs, by this process id.
    Started(u32),
    /// What it printed.
    Stdout(Bytes),
    /// What it printed as an error.
    Stderr(Bytes),
    /// It ended. Nothing follows.
    Ended(ProcessExit),
    /// So many bytes more may be sent for its stdin, after the first [`STDIN_ROOM`].
    Wants(u32),
    /// It has closed its stdin: nothing more is of use there.
    StdinClosed,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessExit {
    /// By itself, with this exit code. 0: all was well.
    Code(u8),
    /// By a signal of this number, on its machine.
    Signal(u8),
}

/// A signal that can be sent to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProcessSignal {
    /// SIGHUP: its terminal is gone.
    Hangup,
    /// SIGINT: what Ctrl-C sends.
    Interrupt,
    /// SIGQUIT: what Ctrl-\ sends.
    Quit,
    /// SIGKILL: ends it, whatever it does.
    Kill,
    /// SIGUSR1.
    User1,
    /// SIGUSR2.
    User2,
    /// SIGTERM: asks it to end.
    Terminate,
}

/// What was said means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message about a running program")]
pub(crate) struct NotExec;

impl ExecRequest {
    /// The request in CBOR.
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).expect("memory takes all bytes, and all our types are CBOR");
        bytes.into()
    }

    /// Words that a system takes: no byte 0 in them, a program there, and variables that have names.
    pub(crate) fn is_sound(&self) -> bool {
        let script = self.script.iter().flat_map(|script| &script.args);
        let words =
            self.command.iter().chain(script).chain(self.env.keys()).chain(self.env.values()).chain(&self.chdir);
        self.command.first().is_some_and(|program| !program.0.is_empty())
            && words.into_iter().all(|word| !word.0.contains(&0))
            && self.env.keys().all(|name| !name.0.is_empty() && !name.0.contains(&b'='))
    }
}

/// What runs a program that is sent along, by its first line: `#!/usr/bin/python3 -u` gives two words.
///
/// `#!/usr/bin/env NAME` gives the name: it is looked up where the program runs.
pub(crate) fn interpreter(script: &[u8]) -> Option<Vec<Word>> {
    let line = script.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.trim();
    // As systems do it: all that comes after the program is one argument.
    let (program, argument) = line.split_once([' ', '\t']).map_or((line, ""), |(first, rest)| (first, rest.trim()));
    let is_env = matches!(program, "/usr/bin/env" | "/bin/env");
    let plain = !argument.is_empty() && !argument.starts_with('-') && !argument.contains([' ', '\t', '=']);
    match (is_env, plain) {
        (true, true) => Some(vec![argument.into()]),
        _ if program.is_empty() => None,
        _ if argument.is_empty() => Some(vec![program.into()]),
        _ => Some(vec![program.into(), argument.into()]),
    }
}

impl Word {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&str> for Word {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<OsString> for Word {
    fn from(text: OsString) -> Self {
        Self(text.into_vec())
    }
}

impl From<Word> for OsString {
    fn from(word: Word) -> Self {
        Self::from_vec(word.0)
    }
}

/// As somebody could type it: quoted where it has to be, and nothing in it that a terminal or a log would take for its own.
impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(&self.0);
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,=".contains(c);
        if !text.is_empty() && text.chars().all(plain) { f.write_str(&text) } else { write!(f, "{text:?}") }
    }
}

impl Serialize for Word {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => out.serialize_str(text),
            Err(_) => out.serialize_bytes(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Word;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a byte string")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Word, E> {
                Ok(text.into())
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Word, E> {
                Ok(Word(bytes.to_vec()))
            }
        }
        from.deserialize_any(Either)
    }
}

impl ExecSaid {
    /// As an item of the channel.
    pub(crate) fn encode(&self) -> Bytes {
        match self {
            Self::Stdin(data) => tagged(STDIN, data),
            Self::StdinEnd => tagged(STDIN_END, &[]),
            Self::Signal(signal) => tagged(SIGNAL, &[signal.number()]),
            Self::Script(data) => tagged(SCRIPT, data),
            Self::ScriptEnd => tagged(SCRIPT_END, &[]),
        }
    }

    pub(crate) fn decode(mut item: Bytes) -> Result<Self, NotExec> {
        let tag = take_tag(&mut item)?;
        match (tag, &item[..]) {
            (STDIN, _) => Ok(Self::Stdin(item)),
            (STDIN_END, []) => Ok(Self::StdinEnd),
            (SIGNAL, [number]) => ProcessSignal::of(*number).map(Self::Signal).ok_or(NotExec),
            (SCRIPT, _) => Ok(Self::Script(item)),
            (SCRIPT_END, []) => Ok(Self::ScriptEnd),
            _ => Err(NotExec),
        }
    }
}

impl ExecTold {
    /// As an item of the channel.
    pub(crate) fn encode(&self) -> Bytes {
        match self {
            Self::Started(pid) => tagged(STARTED, &pid.to_be_bytes()),
            Self::Stdout(data) => tagged(STDOUT, data),
            Self::Stderr(data) => tagged(STDERR, data),
            Self::Ended(ProcessExit::Code(code)) => tagged(EXITED, &[*code]),
            Self::Ended(ProcessExit::Signal(signal)) => tagged(SIGNALLED, &[*signal]),
            Self::Wants(bytes) => tagged(WANTS, &bytes.to_be_bytes()),
            Self::StdinClosed => tagged(STDIN_CLOSED, &[]),
        }
    }

    pub(crate) fn decode(mut item: Bytes) -> Result<Self, NotExec> {
        let tag = take_tag(&mut item)?;
        match (tag, &item[..]) {
            (STARTED, [a, b, c, d]) => Ok(Self::Started(u32::from_be_bytes([*a, *b, *c, *d]))),
            (STDOUT, _) => Ok(Self::Stdout(item)),
            (STDERR, _) => Ok(Self::Stderr(item)),
            (EXITED, [code]) => Ok(Self::Ended(ProcessExit::Code(*code))),
            (SIGNALLED, [signal]) => Ok(Self::Ended(ProcessExit::Signal(*signal))),
            (WANTS, [a, b, c, d]) => Ok(Self::Wants(u32::from_be_bytes([*a, *b, *c, *d]))),
            (STDIN_CLOSED, []) => Ok(Self::StdinClosed),
            _ => Err(NotExec),
        }
    }
}

fn tagged(tag: u8, data: &[u8]) -> Bytes {
    let mut item = BytesMut::with_capacity(1 + data.len());
    item.put_u8(tag);
    item.put_slice(data);
    item.freeze()
}

fn take_tag(item: &mut Bytes) -> Result<u8, NotExec> {
    if item.is_empty() { Err(NotExec) } else { Ok(item.split_to(1)[0]) }
}

impl ProcessExit {
    /// Whether it ended by itself with 0.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }

    /// As shells say it: the exit code, or 128 and the number of the signal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

impl fmt::Display for ProcessExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl ProcessSignal {
    /// How it is written: the number that Linux and most others use.
    const fn number(self) -> u8 {
        match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Quit => 3,
            Self::Kill => 9,
            Self::User1 => 10,
            Self::User2 => 12,
            Self::Terminate => 15,
        }
    }

    fn of(number: u8) -> Option<Self> {
        let all = [Self::Hangup, Self::Interrupt, Self::Quit, Self::Kill, Self::User1, Self::User2, Self::Terminate];
        all.into_iter().find(|signal| signal.number() == number)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

/// The service that runs programs.
pub(crate) const EXEC_SERVICE: &str = "meshd.exec";
/// Bytes for a program's stdin that may be sent before it takes any, and one item more: so signals never wait behind what a
/// program does not read.
pub(crate) const STDIN_ROOM: usize = 128 * 1024;
/// Bytes of output or input in one item: what a pipe holds.
pub(crate) const EXEC_CHUNK: usize = 64 * 1024;
/// Bytes of a line where lines are messages.
pub(crate) const MAX_LINE: usize = 16 << 20;

/// Kinds of failures that end the channel. Not allowed: nothing ran.
pub(crate) const REFUSED: &str = "refused";
/// There is no such program.
pub(crate) const NOT_FOUND: &str = "not-found";
/// There is one, but it cannot be run.
pub(crate) const NOT_EXECUTABLE: &str = "not-executable";
/// The directory in which it is to run is none.
pub(crate) const NO_DIRECTORY: &str = "no-directory";
/// Time was up: it was ended.
pub(crate) const TIMED_OUT: &str = "timed-out";

const STDIN: u8 = 0;
const STDIN_END: u8 = 1;
const SIGNAL: u8 = 2;
const SCRIPT: u8 = 3;
const SCRIPT_END: u8 = 4;
const STARTED: u8 = 16;
const STDOUT: u8 = 17;
const STDERR: u8 = 18;
const EXITED: u8 = 19;
const SIGNALLED: u8 = 20;
const WANTS: u8 = 21;
const STDIN_CLOSED: u8 = 22;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let data = Bytes::from_static(b"\x00\xff");
        let signals = [ProcessSignal::Interrupt, ProcessSignal::Kill, ProcessSignal::User2].map(ExecSaid::Signal);
        let said =
            [ExecSaid::Stdin(data.clone()), ExecSaid::StdinEnd, ExecSaid::Script(data.clone()), ExecSaid::ScriptEnd];
        for said in said.into_iter().chain(signals) {
            assert_eq!(ExecSaid::decode(said.encode()), Ok(said));
        }
        for told in [
            ExecTold::Started(70_000),
            ExecTold::Stdout(data.clone()),
            ExecTold::Stderr(data),
            ExecTold::Ended(ProcessExit::Code(255)),
            ExecTold::Ended(ProcessExit::Signal(9)),
            ExecTold::Wants(65_536),
            ExecTold::StdinClosed,
        ] {
            assert_eq!(ExecTold::decode(told.encode()), Ok(told));
        }
    }

    #[test]
    fn words_are_texts_where_they_can_be() {
        let mut request = ExecRequest { command: vec!["uname".into()], ..ExecRequest::default() };
        assert_eq!(&request.encode()[..], b"\xa1\x67command\x81\x65uname");
        request.command.push(OsString::from_vec(vec![0xff]).into());
        request.env.insert("A".into(), "b c".into());
        request.script = Some(SentScript { name: "x".to_owned(), args: vec!["".into()] });
        assert_eq!(ciborium::from_reader::<ExecRequest, _>(&request.encode()[..]).unwrap(), request);
        assert!(request.is_sound());
        for unsound in [
            ExecRequest::default(),
            ExecRequest { command: vec!["a\0".into()], ..ExecRequest::default() },
            ExecRequest { env: [("A=B".into(), "".into())].into(), ..request.clone() },
            ExecRequest { chdir: Some("\0".into()), ..request.clone() },
        ] {
            assert!(!unsound.is_sound(), "{unsound:?}");
        }
    }

    #[test]
    fn the_first_line_says_what_runs_a_program() {
        for (script, words) in [
            ("#!/bin/sh\necho", Some(&["/bin/sh"][..])),
            ("#! /usr/bin/python3 -u -B\r\n", Some(&["/usr/bin/python3", "-u -B"])),
            ("#!/usr/bin/env python3\n", Some(&["python3"])),
            ("#!/usr/bin/env -S python3 -u\n", Some(&["/usr/bin/env", "-S python3 -u"])),
            ("#!\n", None),
            ("print(1)\n", None),
            ("", None),
        ] {
            let expected = words.map(|words| words.iter().map(|word| Word::from(*word)).collect::<Vec<_>>());
            assert_eq!(interpreter(script.as_bytes()), expected, "{script}");
        }
    }

    #[test]
    fn a_word_in_a_log_stays_in_its_line() {
        assert_eq!(Word::from("/usr/bin/env").to_string(), "/usr/bin/env");
        assert_eq!(Word::from("a b\n\x1b[2J").to_string(), r#""a b\n\u{1b}[2J""#);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(item in proptest::collection::vec(any::<u8>(), 0..20)) {
            let item = Bytes::from(item);
            let _ = (ExecSaid::decode(item.clone()), ExecTold::decode(item.clone()));
            let _ = interpreter(&item);
        }
    }
}
