//! The only place that prints. Data goes to stdout, talk to stderr; nothing from elsewhere reaches a terminal unescaped.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::args::{Colour, Global};
use super::trouble::{Exit, Trouble};
use crate::launch::Stream;

/// Data, on stdout.
#[derive(Debug)]
pub(super) struct Output {
    to: BufWriter<Stdout>,
    /// Whether a person reads along, whose terminal would obey control characters.
    terminal: bool,
    coloured: bool,
    pub(super) json: bool,
    pub(super) verbose: bool,
    pub(super) talk: Talk,
}

/// Talk, on stderr.
#[derive(Clone, Copy, Debug)]
pub(super) struct Talk {
    terminal: bool,
    coloured: bool,
}

impl Output {
    pub(super) fn new(global: &Global, talk: Talk) -> Self {
        let terminal = io::stdout().is_terminal();
        let coloured = coloured(global.color, terminal);
        let to = BufWriter::new(io::stdout());
        Self { to, terminal, coloured, json: global.json, verbose: global.verbose, talk }
    }

    /// One JSON object, as one line.
    pub(super) fn object(&mut self, object: &impl Serialize) -> Result<(), Trouble> {
        let line = serde_json::to_string(object).map_err(|error| Trouble::failed("cannot write JSON", &error))?;
        self.line(&line)
    }

    /// One line of text. What of it comes from elsewhere went through [`foreign`](Self::foreign).
    pub(super) fn line(&mut self, text: &str) -> Result<(), Trouble> {
        self.bytes(text.as_bytes())?;
        self.bytes(b"\n")
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.to.write_all(bytes).map_err(|error| Trouble::writing(&error))
    }

    /// Lets go of what was written. Until then it may be kept, to be written with more.
    pub(super) fn flush(&mut self) -> Result<(), Trouble> {
        self.to.flush().map_err(|error| Trouble::writing(&error))
    }

    /// A text from elsewhere: harmless on a terminal, as it is in a pipe.
    pub(super) fn foreign<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.terminal { escape(text) } else { Cow::Borrowed(text) }
    }

    /// A payload from elsewhere: text as text; other bytes in base64 on a terminal, as they are in a pipe.
    pub(super) fn foreign_bytes(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        if !self.terminal {
            return self.bytes(bytes);
        }
        let shown = match std::str::from_utf8(bytes) {
            Ok(text) => escape(text),
            Err(_) => Cow::Owned(data_encoding::BASE64.encode(bytes)),
        };
        self.bytes(shown.as_bytes())
    }

    /// Bytes from elsewhere that are no text, within a line of data or talk: base64 on a terminal, as they are in a pipe.
    pub(super) fn harmless(&self, bytes: &[u8], talk: bool) -> Vec<u8> {
        let terminal = if talk { self.talk.terminal } else { self.terminal };
        if terminal { data_encoding::BASE64.encode(bytes).into_bytes() } else { bytes.to_vec() }
    }

    /// A whole text or file from elsewhere: in a pipe byte for byte; on a terminal its lines, harmless, or base64.
    pub(super) fn document(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        if !self.terminal {
            return self.bytes(bytes);
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => text.lines().try_for_each(|line| self.line(&escape(line))),
            Err(_) => self.line(&data_encoding::BASE64.encode(bytes)),
        }
    }

    /// Lines of a program that we run, each behind a label: ours, so they go as they are, to where the program wrote them.
    pub(super) fn labelled(&mut self, label: &str, hue: usize, stream: Stream, lines: &[u8]) -> Result<(), Trouble> {
        let coloured = match stream {
            Stream::Out => self.coloured,
            Stream::Err => self.talk.coloured,
        };
        let label = paint(label, HUES[hue % HUES.len()], coloured);
        let mut text = Vec::with_capacity(lines.len() + label.len() + 4);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            text.extend_from_slice(label.as_bytes());
            text.extend_from_slice(line);
            if !line.ends_with(b"\n") {
                text.push(b'\n');
            }
        }
        match stream {
            Stream::Out => self.bytes(&text),
            Stream::Err => {
                self.flush()?; // what came before stands before it, where both go to one place
                let _ = io::stderr().write_all(&text); // who has closed stderr does not want it
                Ok(())
            }
        }
    }

    /// What stands out, such as a heading.
    pub(super) fn strong<'a>(&self, text: &'a str) -> Cow<'a, str> {
        paint(text, BOLD, self.coloured)
    }

    /// Rows in columns, under a heading. Every cell may come from elsewhere.
    pub(super) fn table<const N: usize>(&mut self, head: [&str; N], rows: &[[String; N]]) -> Result<(), Trouble> {
        let lines = table(head, rows, self.terminal);
        for (at, line) in lines.iter().enumerate() {
            let line = if at == 0 { self.strong(line).into_owned() } else { line.clone() };
            self.line(&line)?;
        }
        Ok(())
    }

    /// What says where a line comes from: one of several, told apart by colour.
    pub(super) fn label(&self, text: &str, which: usize) -> String {
        paint(&self.foreign(text), HUES[which % HUES.len()], self.coloured).into_owned()
    }

    /// Names and values, one in a line. Every value may come from elsewhere.
    pub(super) fn facts(&mut self, facts: &[(&str, String)]) -> Result<(), Trouble> {
        let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in facts {
            let line = format!("{}  {}", self.strong(&format!("{name:width$}")), self.foreign(value));
            self.line(line.trim_end())?;
        }
        Ok(())
    }
}

impl Talk {
    pub(super) fn new(colour: Colour) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { terminal, coloured: coloured(colour, terminal) }
    }

    pub(super) fn is_coloured(self) -> bool {
        self.coloured
    }

    /// Whether a person reads along.
    pub(super) fn is_terminal(self) -> bool {
        self.terminal
    }

    /// Something that a person may want to know.
    pub(super) fn say(self, text: &str) {
        print(&self.safe(text));
    }

    /// How far something is, on a terminal: in a line that the next one replaces. An empty one ends that.
    pub(super) fn status(self, text: &str) {
        if self.terminal {
            // Who has closed stderr wants no talk.
            let _ = write!(io::stderr(), "\r\x1b[K{}", self.safe(text));
        }
    }

    /// What went wrong and what to do about it.
    pub(super) fn trouble(self, trouble: Trouble) -> Exit {
        if !trouble.message.is_empty() {
            print(&format!("{} {}", self.label("meshd:", RED), self.safe(&trouble.message)));
        }
        if let Some(hint) = &trouble.hint {
            self.hint(hint);
        }
        trouble.exit
    }

    pub(super) fn hint(self, hint: &str) {
        print(&format!("{} {}", self.label("hint:", CYAN), self.safe(hint)));
    }

    /// Rows in columns, under a heading. Every cell may come from elsewhere.
    pub(super) fn table<const N: usize>(self, head: [&str; N], rows: &[[String; N]]) {
        for (at, line) in table(head, rows, self.terminal).iter().enumerate() {
            print(&paint(line, BOLD, self.coloured && at == 0));
        }
    }

    /// As [`Output::label`], for lines of talk.
    pub(super) fn source(self, text: &str, which: usize) -> String {
        paint(&self.safe(text), HUES[which % HUES.len()], self.coloured).into_owned()
    }

    /// A text from elsewhere: harmless on a terminal, as it is in a pipe.
    pub(super) fn safe(self, text: &str) -> Cow<'_, str> {
        if self.terminal { escape(text) } else { Cow::Borrowed(text) }
    }

    fn label(self, text: &str, colour: &str) -> String {
        paint(text, colour, self.coloured).into_owned()
    }
}

/// Where a program that runs elsewhere prints, as if it ran here: byte for byte.
#[derive(Debug)]
pub(super) enum Printed {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// Writes what comes, so that whoever has it can do other things meanwhile. Ends when all is written.
///
/// # Errors
/// Nobody reads stdout any more, or it cannot be written.
pub(super) async fn print_all(mut from: mpsc::Receiver<Printed>) -> io::Result<()> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(printed) = from.recv().await {
        match printed {
            Printed::Stdout(bytes) => {
                out.write_all(&bytes).await?;
                out.flush().await?;
            }
            Printed::Stderr(bytes) => {
                // Who has closed stderr wants no talk.
                let _ = err.write_all(&bytes).await;
                let _ = err.flush().await;
            }
        }
    }
    Ok(())
}

/// The lines of a table, its heading first.
fn table<const N: usize>(head: [&str; N], rows: &[[String; N]], terminal: bool) -> Vec<String> {
    let safe = |cell: &'_ String| if terminal { escape(cell).into_owned() } else { cell.clone() };
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(safe)).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or_default()
    });
    std::iter::once(columns(&head, &widths)).chain(rows.iter().map(|row| columns(row, &widths))).collect()
}

fn print(line: &str) {
    // Who has closed stderr wants no talk.
    let _ = writeln!(io::stderr(), "{line}");
}

/// A time for people and programs: `2026-01-31T12:00:00.000Z`.
pub(super) fn rfc3339(time: SystemTime) -> String {
    // A clock can be wrong by more than the format can say.
    let time = time.clamp(UNIX_EPOCH, UNIX_EPOCH + YEAR_9999);
    humantime::format_rfc3339_millis(time).to_string()
}

/// Microseconds as people read them.
pub(super) fn micros(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} us"),
        1000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// Cells in columns of these widths; nothing behind the last one.
fn columns<const N: usize>(cells: &[impl AsRef<str>; N], widths: &[usize; N]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        let cell = cell.as_ref();
        let gap = width - cell.chars().count() + COLUMN_GAP;
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', gap));
    }
    line.truncate(line.trim_end().len());
    line
}

/// The text without what a terminal would obey: control characters, and those that reorder or hide text.
fn escape(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            c if harmful(c) => {
                let _ = write!(safe, "\\u{{{:x}}}", u32::from(c)); // A string takes everything.
            }
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

fn coloured(colour: Colour, terminal: bool) -> bool {
    match colour {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    }
}

fn paint<'a>(text: &'a str, code: &str, coloured: bool) -> Cow<'a, str> {
    if coloured { Cow::Owned(format!("\x1b[{code}m{text}\x1b[0m")) } else { Cow::Borrowed(text) }
}

const BOLD: &str = "1";
const RED: &str = "1;31";
const CYAN: &str = "36";
/// Of what comes from several places: those that can be read on dark and on light.
const HUES: [&str; 6] = ["36", "33", "32", "35", "34", "31"];
/// From 1970 until the last second that RFC 3339 can tell.
const YEAR_9999: Duration = Duration::from_secs(253_402_300_799);
/// Spaces between columns.
const COLUMN_GAP: usize = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_spelled_out() {
        for (text, shown) in [
            ("plain \u{e9}\u{1F600}", "plain \u{e9}\u{1F600}"),
            ("\x1b[2Jgone", r"\u{1b}[2Jgone"),
            ("a\nb\r\tc\u{7f}", r"a\nb\r\tc\u{7f}"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("abc\u{202e}cba", r"abc\u{202e}cba"),
        ] {
            assert_eq!(escape(text), shown);
        }
    }

    #[test]
    fn the_wildest_clock_is_printed() {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(1500)), "1970-01-01T00:00:01.500Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_micros(u64::MAX)), "9999-12-31T23:59:59.000Z");
    }

    #[test]
    fn times_read_well() {
        for (us, text) in [(45, "45 us"), (1500, "1.5 ms"), (2_500_000, "2.5 s")] {
            assert_eq!(micros(us), text);
        }
    }

    #[test]
    fn columns_line_up_and_have_no_tail() {
        assert_eq!(columns(&["a", "b", ""], &[3, 4, 2]), "a    b");
        assert_eq!(columns(&["abc", "\u{e9}", "z"], &[3, 2, 1]), "abc  \u{e9}   z");
    }

    proptest! {
        #[test]
        fn nothing_harmful_is_left(text in any::<String>()) {
            let safe = escape(&text).into_owned();
            prop_assert!(!safe.contains(char::is_control));
            prop_assert_eq!(escape(&safe), &safe[..]);
        }
    }
}
