//! What a launch file says.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use crate::config::{duration, plain};
use crate::mesh::{MeshName, ServiceName, Topic};

/// A launch file, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LaunchFile {
    /// Which mesh, if nobody says otherwise.
    pub(crate) mesh: Option<MeshName>,
    /// Which home, if nobody says otherwise.
    pub(crate) home: Option<PathBuf>,
    pub(crate) daemon: DaemonPart,
    /// In the order of the file.
    pub(crate) programs: Vec<Program>,
}

/// The daemon that the programs speak with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DaemonPart {
    /// Whether it is started if none runs.
    pub(crate) start: bool,
    /// Arguments of `meshd run` for that.
    pub(crate) args: Vec<String>,
}

/// A program to be kept running.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) job: Job,
    /// How many of it.
    pub(crate) count: u16,
    pub(crate) env: BTreeMap<String, String>,
    /// Where it runs.
    pub(crate) chdir: PathBuf,
    /// On which hosts it runs. Empty: on all.
    pub(crate) on_host: Vec<String>,
    pub(crate) disabled: bool,
    /// What must be there before it starts.
    pub(crate) after: Vec<After>,
    /// How long that may take, for each.
    pub(crate) after_timeout: Duration,
    /// Time until it starts, once all that is there.
    pub(crate) start_delay: Duration,
    /// Time from its start until it counts as there.
    pub(crate) after_delay: Duration,
    pub(crate) restart: Restart,
    pub(crate) backoff: Backoff,
    /// Most restarts without having run well in between.
    pub(crate) max_restarts: Option<u32>,
    /// Time between being asked to end and being ended.
    pub(crate) stop_timeout: Duration,
    /// Whether all others end when it has ended for good.
    pub(crate) ends_all: bool,
}

/// What is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// A program and its arguments, each as it is.
    Words(Vec<String>),
    /// A line for `sh`.
    Shell(String),
}

/// What has to be there first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Another program of the file, started.
    Program(String),
    Need(Need),
}

/// What somebody who knows the mesh is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// So many nodes listen to this topic.
    Topic { topic: Topic, count: usize },
    /// So many nodes offer this service.
    Service { service: ServiceName, count: usize },
    /// The daemon serves.
    Daemon,
}

/// Whether a program that has ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Restart {
    Always,
    /// If its exit code is not 0, or a signal ended it.
    #[default]
    OnFailure,
    Never,
}

/// Time between an end and the next start: doubled each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Backoff {
    #[serde(deserialize_with = "duration::deserialize")]
    pub(crate) first: Duration,
    #[serde(deserialize_with = "duration::deserialize")]
    pub(crate) most: Duration,
    /// Who ran for so long ran well: the next time is the first again.
    #[serde(deserialize_with = "duration::deserialize")]
    pub(crate) reset_after: Duration,
}

/// Why a launch file is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A key means nothing.
    #[error("{}:{line}: unknown key '{key}'", path.display())]
    Unknown { path: PathBuf, line: usize, key: String, nearest: Option<String> },
    /// It is not TOML, or a value makes no sense.
    #[error("{}:{line}: {message}", path.display())]
    Value { path: PathBuf, line: usize, message: String },
}

impl LaunchFile {
    /// Reads a file. Relative paths in it start where it lies.
    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let failed = |source| FileError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let folder = std::path::absolute(path).map_err(failed)?.parent().map_or_else(PathBuf::new, Path::to_owned);
        Self::parse(&text, &folder).map_err(|bad| bad.at(path, &text))
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, Bad> {
        let document = DeTable::parse(text)?;
        if let Some(unknown) = unknown_key(document.get_ref()) {
            return Err(unknown);
        }
        let mut written: Written = toml::from_str(text)?;
        let mut programs = Vec::new();
        for (name, places) in places(document.get_ref()) {
            let Some(program) = written.program.remove(&name) else { continue };
            programs.push(program.checked(name, folder, &places)?);
        }
        let home = written.home.map(|home| folder.join(home));
        Ok(Self { mesh: written.mesh, home, daemon: written.daemon, programs })
    }
}

impl FileError {
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "name the file: meshd launch FILE; `meshd launch --help` shows one".to_owned()
            }
            Self::Read { path, .. } => format!("check the permissions of {}", path.display()),
            Self::Unknown { nearest: Some(nearest), .. } => format!("did you mean '{nearest}'?"),
            Self::Unknown { .. } => "docs/CLI.md lists all keys".to_owned(),
            Self::Value { path, .. } => format!("correct the line: {}", path.display()),
        }
    }
}

impl Default for DaemonPart {
    fn default() -> Self {
        Self { start: true, args: Vec::new() }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        let (first, most) = (Duration::from_millis(500), Duration::from_secs(30));
        Self { first, most, reset_after: Duration::from_secs(10) }
    }
}

impl Backoff {
    /// How long to wait after the so many-th failure in a row, from 0.
    pub(crate) fn delay(self, failures: u32) -> Duration {
        self.first.saturating_mul(2_u32.saturating_pow(failures)).min(self.most)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic { topic, count: 1 } => write!(f, "a listener of {topic}"),
            Self::Topic { topic, count } => write!(f, "{count} listeners of {topic}"),
            Self::Service { service, count: 1 } => write!(f, "somebody who offers {service}"),
            Self::Service { service, count } => write!(f, "{count} who offer {service}"),
            Self::Daemon => write!(f, "the daemon"),
        }
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    mesh: Option<MeshName>,
    home: Option<PathBuf>,
    #[serde(default)]
    daemon: DaemonPart,
    #[serde(default)]
    program: BTreeMap<String, WrittenProgram>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenProgram {
    command: Option<Vec<String>>,
    shell: Option<String>,
    count: Option<NonZeroU16>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    chdir: Option<PathBuf>,
    on_host: Option<toml::Value>,
    #[serde(default)]
    disabled: bool,
    after: Option<toml::Value>,
    #[serde(default = "after_timeout", deserialize_with = "duration::deserialize")]
    after_timeout: Duration,
    #[serde(default, deserialize_with = "duration::deserialize")]
    start_delay: Duration,
    #[serde(default, deserialize_with = "duration::deserialize")]
    after_delay: Duration,
    #[serde(default)]
    restart: Restart,
    #[serde(default)]
    backoff: Backoff,
    max_restarts: Option<u32>,
    #[serde(default = "stop_timeout", deserialize_with = "duration::deserialize")]
    stop_timeout: Duration,
    #[serde(default)]
    ends_all: bool,
}

/// Something other than a program that must be there, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenNeed {
    topic: Option<Topic>,
    service: Option<ServiceName>,
    count: Option<NonZeroU32>,
}

impl WrittenProgram {
    fn checked(self, name: String, folder: &Path, places: &Places) -> Result<Program, Bad> {
        let bad = |key: &str, message: String| {
            let at = places.get(key).or_else(|| places.get("")).copied().unwrap_or_default();
            Bad::Value { at, message: format!("program.{name}: {message}") }
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
            return Err(bad("", format!("a name has up to {MAX_NAME} letters, digits, '.', '-' and '_'")));
        }
        if name == DAEMON {
            return Err(bad("", "that is what the daemon is called here: take another name".to_owned()));
        }
        let job = match (self.command, self.shell) {
            (Some(words), None) if words.iter().any(|word| word.contains('\0')) => {
                return Err(bad("command", "a word cannot hold the byte 0".to_owned()));
            }
            (Some(words), None) if words.first().is_some_and(|word| !word.is_empty()) => Job::Words(words),
            (Some(_), None) => return Err(bad("command", "names no program: write [\"PROGRAM\", \"ARG\", ..]".into())),
            (None, Some(line)) if line.trim().is_empty() => return Err(bad("shell", "says nothing".to_owned())),
            (None, Some(line)) if line.contains('\0') => {
                return Err(bad("shell", "a line cannot hold the byte 0".to_owned()));
            }
            (None, Some(line)) => Job::Shell(line),
            (None, None) => return Err(bad("", "wants a command = [\"PROGRAM\", ..] or a shell = \"..\"".to_owned())),
            (Some(_), Some(_)) => return Err(bad("shell", "has a command already: leave one of them out".to_owned())),
        };
        let count = self.count.map_or(1, NonZeroU16::get);
        if count > MAX_COUNT {
            return Err(bad("count", format!("at most {MAX_COUNT}")));
        }
        let named = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
        if !self.env.iter().all(|(name, value)| named(name) && !value.contains('\0')) {
            return Err(bad("env", "no such variable can be set".to_owned()));
        }
        let on_host = match self.on_host {
            None => Vec::new(),
            Some(toml::Value::String(host)) => vec![host],
            Some(hosts) => hosts.try_into().map_err(|_| bad("on_host", "write one name or a list of them".into()))?,
        };
        let after = match self.after {
            None => Vec::new(),
            Some(toml::Value::Array(list)) => list,
            Some(one) => vec![one],
        };
        let after = after.into_iter().map(|one| need(one).map_err(|says| bad("after", says)));
        let after = after.collect::<Result<_, _>>()?;
        if self.backoff.first > self.backoff.most {
            return Err(bad("backoff", "first is more than most".to_owned()));
        }
        Ok(Program {
            name: name.clone(),
            job,
            count,
            env: self.env,
            chdir: self.chdir.map_or_else(|| folder.to_owned(), |chdir| folder.join(chdir)),
            on_host,
            disabled: self.disabled,
            after,
            after_timeout: self.after_timeout,
            start_delay: self.start_delay,
            after_delay: self.after_delay,
            restart: self.restart,
            backoff: self.backoff,
            max_restarts: self.max_restarts,
            stop_timeout: self.stop_timeout,
            ends_all: self.ends_all,
        })
    }
}

fn need(value: toml::Value) -> Result<After, String> {
    let form = "write \"PROGRAM\", { topic = \"..\" } or { service = \"..\" }";
    match value {
        toml::Value::String(program) => Ok(After::Program(program)),
        toml::Value::Table(table) => {
            let written: WrittenNeed = table.try_into().map_err(|error| plain(error.message()))?;
            let count = written.count.map_or(1, |count| count.get() as usize);
            match (written.topic, written.service) {
                (Some(topic), None) => Ok(After::Need(Need::Topic { topic, count })),
                (None, Some(service)) => Ok(After::Need(Need::Service { service, count })),
                _ => Err(form.to_owned()),
            }
        }
        _ => Err(form.to_owned()),
    }
}

/// What is wrong, and where in the text.
enum Bad {
    Unknown { at: usize, key: String },
    Value { at: usize, message: String },
}

impl Bad {
    fn at(self, path: &Path, text: &str) -> FileError {
        let line = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        match self {
            Self::Unknown { at, key } => {
                FileError::Unknown { path: path.to_owned(), line: line(at), nearest: nearest(&key), key }
            }
            Self::Value { at, message } => FileError::Value { path: path.to_owned(), line: line(at), message },
        }
    }
}

impl From<toml::de::Error> for Bad {
    fn from(error: toml::de::Error) -> Self {
        let at = error.span().map_or(0, |span| span.start);
        Self::Value { at, message: plain(error.message()) }
    }
}

/// Where the keys of one program stand in the text; itself by the empty one.
type Places = HashMap<String, usize>;

/// The programs in the order of the text.
fn places(document: &DeTable<'_>) -> Vec<(String, Places)> {
    let programs = document.iter().filter(|(key, _)| key.get_ref() == "program");
    let programs = programs.filter_map(|(_, value)| value.get_ref().as_table()).flatten();
    let mut found: Vec<(usize, String, Places)> = programs
        .map(|(name, value)| {
            let keys = value.get_ref().as_table().into_iter().flatten();
            let mut places: Places = keys.map(|(key, _)| (key.get_ref().to_string(), key.span().start)).collect();
            places.insert(String::new(), name.span().start);
            // A name may stand in the heading of `env` first; what counts is where the program begins.
            (places.values().copied().min().unwrap_or_default(), name.get_ref().to_string(), places)
        })
        .collect();
    found.sort_by_key(|(at, ..)| *at);
    found.into_iter().map(|(_, name, places)| (name, places)).collect()
}

/// The first key that means nothing.
fn unknown_key(document: &DeTable<'_>) -> Option<Bad> {
    let mut unknown = Vec::new();
    strange(document, "", KEYS, &mut unknown);
    for (key, value) in document {
        let Some(inner) = value.get_ref().as_table() else { continue };
        match key.get_ref().as_ref() {
            "daemon" => strange(inner, "daemon.", DAEMON_KEYS, &mut unknown),
            "program" => {
                for (name, program) in inner {
                    let Some(program) = program.get_ref().as_table() else { continue };
                    let path = format!("program.{}.", name.get_ref());
                    strange(program, &path, PROGRAM_KEYS, &mut unknown);
                    for (key, value) in program {
                        let known = match key.get_ref().as_ref() {
                            "after" => AFTER_KEYS,
                            "backoff" => BACKOFF_KEYS,
                            _ => continue,
                        };
                        let path = format!("{path}{}.", key.get_ref());
                        tables(value.get_ref()).for_each(|table| strange(table, &path, known, &mut unknown));
                    }
                }
            }
            _ => {}
        }
    }
    unknown.into_iter().min_by_key(|(at, _)| *at).map(|(at, key)| Bad::Unknown { at, key })
}

fn strange(table: &DeTable<'_>, path: &str, known: &[&str], found: &mut Vec<(usize, String)>) {
    let strange = table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
    found.extend(strange.map(|key| (key.span().start, format!("{path}{}", key.get_ref()))));
}

/// A table, or those in a list.
fn tables<'a, 'i>(value: &'a DeValue<'i>) -> impl Iterator<Item = &'a DeTable<'i>> {
    let list = value.as_array().into_iter().flat_map(|list| list.iter().filter_map(|one| one.get_ref().as_table()));
    value.as_table().into_iter().chain(list)
}

/// The known key that resembles this one most, if any does: where it stands, or elsewhere.
fn nearest(key: &str) -> Option<String> {
    let (path, last) = key.rsplit_once('.').map_or(("", key), |(path, last)| (path, last));
    let parts: Vec<&str> = path.split('.').collect();
    let here = match parts[..] {
        ["daemon"] => DAEMON_KEYS,
        ["program", _] => PROGRAM_KEYS,
        ["program", _, "after"] => AFTER_KEYS,
        ["program", _, "backoff"] => BACKOFF_KEYS,
        _ => KEYS,
    };
    let elsewhere = [("", KEYS), ("daemon.", DAEMON_KEYS), ("program.NAME.", PROGRAM_KEYS)];
    let elsewhere = elsewhere.into_iter().chain([("program.NAME.backoff.", BACKOFF_KEYS)]);
    let likeness = |known: &str| strsim::jaro_winkler(last, known);
    let path = if path.is_empty() { String::new() } else { format!("{path}.") };
    let here = here.iter().map(|known| (likeness(known), format!("{path}{known}")));
    let others = elsewhere
        .flat_map(|(path, keys)| keys.iter().map(move |known| (likeness(known) - ELSEWHERE, format!("{path}{known}"))));
    let best = here.chain(others).max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= ALIKE).then_some(best.1)
}

fn after_timeout() -> Duration {
    Duration::from_secs(60)
}

fn stop_timeout() -> Duration {
    Duration::from_secs(10)
}

/// What the daemon is called among the programs.
pub(crate) const DAEMON: &str = "meshd";
const KEYS: &[&str] = &["mesh", "home", "daemon", "program"];
const DAEMON_KEYS: &[&str] = &["start", "args"];
const PROGRAM_KEYS: &[&str] = &[
    "command",
    "shell",
    "count",
    "env",
    "chdir",
    "on_host",
    "disabled",
    "after",
    "after_timeout",
    "start_delay",
    "after_delay",
    "restart",
    "backoff",
    "max_restarts",
    "stop_timeout",
    "ends_all",
];
const AFTER_KEYS: &[&str] = &["topic", "service", "count"];
const BACKOFF_KEYS: &[&str] = &["first", "most", "reset_after"];
/// Bytes of a program's name: it stands before each line.
const MAX_NAME: usize = 64;
/// Processes of one program.
const MAX_COUNT: u16 = 1000;
/// Jaro-Winkler likeness above which a key is worth suggesting, as for settings.
const ALIKE: f64 = 0.8;
/// What a key loses by standing in another table than the one written.
const ELSEWHERE: f64 = 0.05;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<LaunchFile, FileError> {
        LaunchFile::parse(text, Path::new("/folder")).map_err(|bad| bad.at(Path::new("mesh.toml"), text))
    }

    #[test]
    fn all_that_can_be_written_is_read() {
        let file = read(
            "mesh = \"lab\"\nhome = \"state\"\n[daemon]\nstart = false\nargs = [\"--no-mdns\"]\n\
             [program.zebra]\ncommand = [\"zebra\", \"a b\"]\ncount = 3\nenv = { A = \"b\" }\nchdir = \"z\"\n\
             on_host = \"one\"\ndisabled = true\nafter = [\"ant\", { topic = \"a/b\", count = 2 }]\n\
             after_timeout = \"1s\"\nstart_delay = \"2s\"\nafter_delay = \"3s\"\nrestart = \"always\"\n\
             backoff = { first = \"1s\", most = \"4s\", reset_after = \"5s\" }\nmax_restarts = 7\n\
             stop_timeout = \"6s\"\nends_all = true\n\
             [program.ant]\nshell = \"ls | wc\"\non_host = [\"one\", \"two\"]\nafter = { service = \"wc\" }\n",
        )
        .unwrap();
        assert_eq!((file.mesh.unwrap().as_str(), file.home.unwrap()), ("lab", "/folder/state".into()));
        assert_eq!(file.daemon, DaemonPart { start: false, args: vec!["--no-mdns".to_owned()] });
        let [zebra, ant] = &file.programs[..] else { panic!("two programs") };
        assert_eq!(
            (&zebra.name[..], zebra.count, zebra.max_restarts),
            ("zebra", 3, Some(7)),
            "in the order of the file"
        );
        assert_eq!(zebra.job, Job::Words(vec!["zebra".to_owned(), "a b".to_owned()]));
        assert_eq!((&zebra.chdir, &zebra.on_host), (&"/folder/z".into(), &vec!["one".to_owned()]));
        let topic = Need::Topic { topic: Topic::new("a/b").unwrap(), count: 2 };
        assert_eq!(zebra.after, [After::Program("ant".to_owned()), After::Need(topic)]);
        let times =
            [zebra.after_timeout, zebra.start_delay, zebra.after_delay, zebra.backoff.first, zebra.backoff.most];
        assert_eq!(times.map(|time| time.as_secs()), [1, 2, 3, 1, 4]);
        assert_eq!((zebra.restart, zebra.stop_timeout.as_secs()), (Restart::Always, 6));
        assert!(zebra.ends_all && zebra.disabled && zebra.env["A"] == "b");
        assert_eq!((&ant.job, ant.on_host.len()), (&Job::Shell("ls | wc".to_owned()), 2));
        let offered = Need::Service { service: ServiceName::new("wc").unwrap(), count: 1 };
        assert_eq!(ant.after, [After::Need(offered)]);
        assert_eq!((ant.restart, ant.stop_timeout.as_secs(), ant.count), (Restart::OnFailure, 10, 1));
        assert_eq!(ant.chdir, Path::new("/folder"));
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_known_one() {
        for (text, line, key, suggestion) in [
            ("\nmehs = \"a\"", 2, "mehs", Some("mesh")),
            ("[daemon]\narg = []", 2, "daemon.arg", Some("daemon.args")),
            ("[program.a]\ncomand = []", 2, "program.a.comand", Some("program.a.command")),
            (
                "[program.a]\nshell = \"x\"\nafter = { topik = \"a\" }",
                3,
                "program.a.after.topik",
                Some("program.a.after.topic"),
            ),
            (
                "[program.a]\nafter = [\"b\", { servic = \"a\" }]",
                2,
                "program.a.after.servic",
                Some("program.a.after.service"),
            ),
            ("[program.a.backoff]\nfrist = \"1s\"", 2, "program.a.backoff.frist", Some("program.a.backoff.first")),
            ("restart = \"never\"", 1, "restart", Some("program.NAME.restart")),
            ("[programs.a]\nshell = \"x\"", 1, "programs", Some("program")),
            ("zzz = 1", 1, "zzz", None),
        ] {
            match read(text) {
                Err(FileError::Unknown { line: at, key: found, nearest, .. }) => {
                    assert_eq!((at, found.as_str(), nearest.as_deref()), (line, key, suggestion), "{text}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_their_line() {
        for (text, says) in [
            ("[program.a]\n", "mesh.toml:1: program.a: wants a command"),
            ("[program.a]\ncommand = []", ":2: program.a: names no program"),
            ("[program.a]\nshell = \" \"", ":2: program.a: says nothing"),
            ("[program.a]\ncommand = [\"a\"]\nshell = \"a\"", ":3: program.a: has a command already"),
            ("[program.a]\ncommand = \"a b\"", ":2: \"a b\" is not a list: write [..]"),
            ("[program.a]\nshell = \"a\"\ncount = 0", ":3: 0 is not a whole number from 1 to 65535"),
            ("[program.a]\nshell = \"a\"\ncount = 1001", ":3: program.a: at most 1000"),
            (
                "[program.a]\nshell = \"a\"\nrestart = \"often\"",
                ":3: \"often\" is not one of always, on_failure, never",
            ),
            ("[program.a]\nshell = \"a\"\nstart_delay = \"soon\"", ":3: 'soon' is no time: write 300ms"),
            ("[program.a]\nshell = \"a\"\nstart_delay = \"2y\"", "at most 365 days"),
            ("[program.a]\nshell = \"a\"\nmax_restarts = -1", ":3: -1 is not a whole number from 0 to 4294967295"),
            ("[program.a]\nshell = \"a\"\nafter = { topic = \"a\", count = 0 }", "0 is not a whole number from 1"),
            ("[program.a]\nshell = \"a\"\nafter = 3", ":3: program.a: write \"PROGRAM\", {"),
            ("[program.a]\nshell = \"a\"\nafter = {}", ":3: program.a: write \"PROGRAM\", {"),
            ("[program.a]\nshell = \"a\"\nafter = { topic = \"a/*\" }", ":3: program.a: "),
            ("[program.a]\nshell = \"a\"\non_host = 3", ":3: program.a: write one name"),
            ("[program.a]\nshell = \"a\"\nbackoff = { first = \"1m\" }", ":3: program.a: first is more"),
            ("[program.a]\nshell = \"a\"\nenv = { \"A=B\" = \"c\" }", ":3: program.a: no such variable"),
            ("[program.\"a b\"]\nshell = \"a\"", ":1: program.a b: a name has"),
            ("\n[program.meshd]\nshell = \"a\"", ":2: program.meshd: that is what the daemon"),
            ("[program.a]\nshell = \"a\"\n[program.a]\n", ":3: "),
            ("mesh = \"a/b\"", ":1: "),
            ("[program", "mesh.toml:1: "),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn the_time_between_restarts_grows_up_to_its_most() {
        let backoff = Backoff { most: Duration::from_secs(3), ..Backoff::default() };
        let delays: Vec<u128> = (0..5).map(|failures| backoff.delay(failures).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 3000, 3000]);
        assert_eq!(backoff.delay(u32::MAX), backoff.most);
    }
}
