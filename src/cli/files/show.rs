//! What is said of a job while it runs, and at its end.

use std::time::Duration;

use serde_json::{Value, json};

use super::bars::Bars;
use super::listing::{amount, path_fields};
use super::unless_unread;
use crate::cli::output::Output;
use crate::cli::trouble::{Exit, Trouble};
use crate::mesh::{FileDone, FileEvent, SharePath};
use crate::wire::control::Failure;

/// Prints the events of one job.
#[derive(Debug)]
pub(super) struct Show {
    bars: Option<Bars>,
    dry_run: bool,
    /// Lines say which target they are about.
    several: bool,
    /// By target: the node at the far end, and bytes to be moved.
    targets: Vec<(String, u64)>,
    /// The worst that happened.
    exit: Exit,
    /// There was something to do, or to be left as it was.
    found: bool,
}

/// What came of one target.
struct Closing {
    files: u64,
    bytes: u64,
    resumed: u64,
    unchanged: u64,
    deleted: u64,
    failed: u64,
    took: Duration,
}

impl Show {
    pub(super) fn new(dry_run: bool, out: &Output) -> Self {
        let bars = (!out.json && !dry_run && out.talk.is_terminal()).then(Bars::new);
        Self { bars, dry_run, several: false, targets: Vec::new(), exit: Exit::Done, found: false }
    }

    /// Whether each file is to be told.
    pub(super) fn wants_each(&self, out: &Output) -> bool {
        out.json || out.verbose || self.dry_run
    }

    /// How it ended, if it ended by itself.
    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    pub(super) fn started(&mut self, targets: u32) {
        self.several = targets > 1;
    }

    /// Whether all went well, and nothing was there.
    pub(super) fn found_nothing(&self) -> bool {
        self.exit == Exit::Done && !self.found
    }

    /// One node did not do its part.
    pub(super) fn not_done(&mut self, failure: Failure, out: &mut Output) -> Result<(), Trouble> {
        if out.json {
            out.object(&json!({ "event": "failed", "error": failure.message }))?;
        }
        let trouble = Trouble::from(failure);
        self.fails(trouble.exit);
        match &self.bars {
            Some(bars) => bars.beside(|| out.talk.trouble(trouble)),
            None => out.talk.trouble(trouble),
        };
        Ok(())
    }

    fn fails(&mut self, exit: Exit) {
        self.exit = self.exit.and(exit);
    }

    /// Tells of an event. Who reads no more of it does not want less done.
    pub(super) fn event(&mut self, event: FileEvent, out: &mut Output) -> Result<(), Trouble> {
        self.tell(event, out).or_else(unless_unread)
    }

    fn tell(&mut self, event: FileEvent, out: &mut Output) -> Result<(), Trouble> {
        if out.json {
            out.object(&object(&event))?;
        }
        match event {
            FileEvent::Planned { target, node, bytes, resumed, .. } => {
                self.plan(target as usize, node.to_string(), bytes);
                if let Some(bars) = &mut self.bars {
                    bars.plan(target as usize, out.talk.safe(node.as_str()).into_owned(), bytes);
                    bars.advance(target as usize, resumed);
                }
            }
            FileEvent::Progress { target, bytes, .. } => {
                if let Some(bars) = &self.bars {
                    bars.advance(target as usize, bytes);
                }
            }
            FileEvent::Begun { target, path, .. } => {
                if let Some(bars) = &self.bars {
                    bars.tell(target as usize, out.talk.safe(&named(&path)).into_owned());
                }
            }
            FileEvent::Done { target, path, what, .. } => self.done(target, &path, what, out)?,
            FileEvent::Failed { target, path, message } => {
                self.fails(Exit::Failed);
                self.say(target, &format!("{}: {message}", named(&path)), out);
            }
            FileEvent::Waiting { target, node } => {
                let text = format!("the link to {node} is lost: waits for it, with what has come");
                self.say(target, &text, out);
            }
            FileEvent::Finished { target, files, bytes, resumed, unchanged, deleted, failed, millis } => {
                let took = Duration::from_millis(millis);
                if failed > 0 {
                    self.fails(Exit::Failed);
                }
                self.found |= files + unchanged + deleted + failed > 0;
                if let Some(bars) = &mut self.bars {
                    bars.end(target as usize);
                }
                // What would be moved was not.
                let planned = self.targets.get(target as usize).map_or(0, |(_, bytes)| *bytes);
                let bytes = if self.dry_run { planned } else { bytes };
                let closing = Closing { files, bytes, resumed, unchanged, deleted, failed, took };
                self.say(target, &closing.line(self.dry_run), out);
            }
        }
        Ok(())
    }

    fn plan(&mut self, target: usize, node: String, bytes: u64) {
        // Numbers count up; the daemon is ours, but what it says is no reason to take all memory.
        if target < MAX_TARGETS {
            self.targets.resize(self.targets.len().max(target + 1), (String::new(), 0));
            self.targets[target] = (node, bytes);
        }
    }

    fn done(&mut self, target: u32, path: &SharePath, what: FileDone, out: &mut Output) -> Result<(), Trouble> {
        if out.json || !(out.verbose || self.dry_run) {
            return Ok(());
        }
        let word = word(what, self.dry_run);
        let line = format!("{}{word} {}", self.label(target), named(path));
        let line = out.foreign(&line).into_owned();
        match &self.bars {
            Some(bars) => bars.beside(|| out.line(&line).and_then(|()| out.flush())),
            None => out.line(&line),
        }
    }

    /// Talk, which does not disturb the bars. With `--json` all of it is in the objects.
    fn say(&self, target: u32, text: &str, out: &mut Output) {
        if out.json {
            return;
        }
        let text = format!("{}{text}", self.label(target));
        match &self.bars {
            Some(bars) => bars.beside(|| out.talk.say(&text)),
            None => out.talk.say(&text),
        }
    }

    /// Which target a line is about, where there are several.
    fn label(&self, target: u32) -> String {
        match self.targets.get(target as usize) {
            Some((node, _)) if self.several => format!("{node}: "),
            _ => String::new(),
        }
    }
}

impl Closing {
    fn line(&self, dry_run: bool) -> String {
        let Self { files, bytes, resumed, unchanged, deleted, failed, took } = self;
        let count = |count: u64| if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
        let mut line = if dry_run {
            format!("would change {}, {}", count(*files), amount(*bytes))
        } else {
            let seconds = took.as_secs_f64();
            let time = if seconds < 1.0 { format!("{} ms", took.as_millis()) } else { format!("{seconds:.1} s") };
            match bytes {
                0 => format!("{} in {time}", count(*files)),
                // Bytes a second mean nothing for what is done in no time.
                _ if seconds < 0.001 => format!("{}, {} in {time}", count(*files), amount(*bytes)),
                _ => {
                    let rate = amount((*bytes as f64 / seconds) as u64);
                    format!("{}, {} in {time} ({rate}/s)", count(*files), amount(*bytes))
                }
            }
        };
        for (figure, text) in [
            ((*resumed > 0).then(|| amount(*resumed)), "were there already"),
            ((*deleted > 0).then(|| deleted.to_string()), if dry_run { "to be deleted" } else { "deleted" }),
            ((*unchanged > 0).then(|| unchanged.to_string()), "unchanged"),
            ((*failed > 0).then(|| failed.to_string()), "failed"),
        ] {
            if let Some(figure) = figure {
                line = format!("{line}, {figure} {text}");
            }
        }
        line
    }
}

/// An event as `--json` prints it.
fn object(event: &FileEvent) -> Value {
    match event {
        FileEvent::Planned { target, node, files, bytes, resumed } => {
            json!({ "event": "planned", "target": target, "node": node, "files": files, "bytes": bytes, "resumed": resumed })
        }
        FileEvent::Progress { target, bytes, files } => {
            json!({ "event": "progress", "target": target, "bytes": bytes, "files": files })
        }
        FileEvent::Begun { target, path, bytes } => {
            with_path(json!({ "event": "begun", "target": target, "bytes": bytes }), path)
        }
        FileEvent::Done { target, path, bytes, what } => {
            let object = json!({ "event": "done", "target": target, "bytes": bytes, "what": what });
            with_path(object, path)
        }
        FileEvent::Failed { target, path, message } => {
            with_path(json!({ "event": "failed", "target": target, "error": message }), path)
        }
        FileEvent::Waiting { target, node } => json!({ "event": "waiting", "target": target, "node": node }),
        FileEvent::Finished { target, files, bytes, resumed, unchanged, deleted, failed, millis } => json!({
            "event": "finished", "target": target, "files": files, "bytes": bytes, "resumed": resumed,
            "unchanged": unchanged, "deleted": deleted, "failed": failed, "millis": millis,
        }),
    }
}

fn with_path(mut object: Value, path: &SharePath) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.extend(path_fields(path.as_bytes()));
    }
    object
}

/// A path below a target; the target itself has none.
fn named(path: &SharePath) -> String {
    if path.is_root() { ".".to_owned() } else { path.to_string() }
}

fn word(what: FileDone, would_be: bool) -> &'static str {
    match (what, would_be) {
        (FileDone::Created, true) => "create",
        (FileDone::Created, false) => "created",
        (FileDone::Replaced, true) => "replace",
        (FileDone::Replaced, false) => "replaced",
        (FileDone::Touched, true) => "touch",
        (FileDone::Touched, false) => "touched",
        (FileDone::Deleted, true) => "delete",
        (FileDone::Deleted, false) => "deleted",
    }
}

/// Targets of one job that are told apart.
const MAX_TARGETS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_an_object_that_says_which() {
        let (path, node) = (SharePath::new("a/b").unwrap(), crate::mesh::NodeName::new("n").unwrap());
        let what = FileDone::Created;
        for (event, wanted) in [
            (
                FileEvent::Done { target: 1, path: path.clone(), bytes: 2, what },
                json!({ "event": "done", "target": 1, "path": "a/b", "bytes": 2, "what": "created" }),
            ),
            (
                FileEvent::Failed { target: 1, path, message: "no".to_owned() },
                json!({ "event": "failed", "target": 1, "path": "a/b", "error": "no" }),
            ),
            (FileEvent::Waiting { target: 0, node }, json!({ "event": "waiting", "target": 0, "node": "n" })),
        ] {
            assert_eq!(object(&event), wanted);
        }
    }

    fn closing(files: u64, bytes: u64, millis: u64) -> Closing {
        let took = Duration::from_millis(millis);
        Closing { files, bytes, resumed: 0, unchanged: 0, deleted: 0, failed: 0, took }
    }

    #[test]
    fn the_closing_line_says_what_came_of_it() {
        assert_eq!(closing(1, 0, 0).line(false), "1 file in 0 ms");
        assert_eq!(closing(2, 1 << 20, 250).line(false), "2 files, 1.0 MiB in 250 ms (4.0 MiB/s)");
        let some = Closing { resumed: 400 << 20, ..closing(3, 1200 << 20, 2000) };
        assert_eq!(some.line(false), "3 files, 1.2 GiB in 2.0 s (600 MiB/s), 400 MiB were there already");
        let all = Closing { unchanged: 2, deleted: 3, failed: 4, ..closing(0, 0, 1) };
        assert_eq!(all.line(false), "0 files in 1 ms, 3 deleted, 2 unchanged, 4 failed");
        assert_eq!(all.line(true), "would change 0 files, 0 B, 3 to be deleted, 2 unchanged, 4 failed");
    }
}
