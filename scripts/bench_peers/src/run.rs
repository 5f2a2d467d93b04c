//! The run: round by round, work by work, system by system, each half in a process of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::part::Line;
use crate::report;
use crate::results::{Cell, Facts, Record};
use crate::systems::python::Python;
use crate::systems::{self, SYSTEMS, System};
use crate::work::{PATIENCE, Setup, Work, now};
use crate::{Outcome, USAGE};

/// What the command line says.
#[derive(Debug)]
pub struct Options {
    /// For raw figures and whatever is needed meanwhile.
    pub state: PathBuf,
    /// Where the report goes; without it, to the state.
    pub docs: Option<PathBuf>,
    rounds: usize,
    quick: bool,
    only: Vec<String>,
    nats_server: Option<PathBuf>,
    python: Option<PathBuf>,
    helpers: PathBuf,
}

impl Options {
    pub fn read(words: &[String]) -> Outcome<Self> {
        let mut options = Self {
            state: PathBuf::new(),
            docs: None,
            rounds: 0,
            quick: false,
            only: Vec::new(),
            nats_server: None,
            python: None,
            helpers: PathBuf::from("."),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word}: what?\n{USAGE}"));
            match word.as_str() {
                "--state" => options.state = value()?.into(),
                "--docs" => options.docs = Some(value()?.into()),
                "--rounds" => options.rounds = value()?.parse().map_err(|_| format!("--rounds: a number\n{USAGE}"))?,
                "--quick" => options.quick = true,
                "--only" => options.only.extend(value()?.split(',').map(str::to_owned)),
                "--nats-server" => options.nats_server = Some(value()?.into()),
                "--python" => options.python = Some(value()?.into()),
                "--helpers" => options.helpers = value()?.into(),
                _ => return Err(format!("{word}?\n{USAGE}").into()),
            }
        }
        if options.state.as_os_str().is_empty() {
            return Err(USAGE.into());
        }
        if options.rounds == 0 {
            options.rounds = if options.quick { 1 } else { 3 };
        }
        if let Some(word) = options.only.iter().find(|word| !is_work(word) && !is_system(word)) {
            let systems: Vec<&str> = SYSTEMS.iter().map(|system| system.word).collect();
            let works: Vec<&str> = Work::ALL.iter().map(|work| work.word()).collect();
            return Err(format!("--only {word}: one of {}, or {}", systems.join(" "), works.join(" ")).into());
        }
        Ok(options)
    }

    /// Words of works choose among works, those of systems among systems (`meshd` stands for all that begin so).
    fn wants(&self, system: &System, work: Work) -> bool {
        let works: Vec<&String> = self.only.iter().filter(|word| is_work(word)).collect();
        let systems: Vec<&String> = self.only.iter().filter(|word| !is_work(word)).collect();
        system.works.contains(&work)
            && (works.is_empty() || works.iter().any(|word| *word == work.word()))
            && (systems.is_empty() || systems.iter().any(|word| system.word.starts_with(word.as_str())))
    }
}

fn is_work(word: &str) -> bool {
    Work::read(word).is_some()
}

fn is_system(word: &str) -> bool {
    SYSTEMS.iter().any(|system| system.word.starts_with(word))
}

pub fn run(options: &Options) -> Outcome<()> {
    let began = now();
    fs::create_dir_all(&options.state)?;
    let raw = options.state.join("raw.jsonl");
    let mut raw_file = File::create(&raw)?;
    let mut run = Run::new(options)?;
    let mut cells = Vec::new();
    for round in 0..options.rounds {
        for work in Work::ALL {
            let mut systems: Vec<&System> = SYSTEMS.iter().filter(|system| options.wants(system, work)).collect();
            if !systems.is_empty() {
                // Nobody is always the first.
                let first = round * systems.len() / options.rounds;
                systems.rotate_left(first);
            }
            systems.retain(|system| run.has(system));
            for system in systems {
                let cell = run.cell(round, system, work);
                eprintln!("{:4.0} s  round {}  {}", began.elapsed().as_secs_f64(), round + 1, report::line(&cell));
                cells.push(cell);
            }
        }
    }
    run.facts.minutes = began.elapsed().as_secs_f64() / 60.0;
    for record in std::iter::once(Record::Facts(run.facts)).chain(cells.into_iter().map(Record::Cell)) {
        writeln!(raw_file, "{}", serde_json::to_string(&record)?)?;
    }
    drop(raw_file);
    report::write(&options.state, options.docs.as_deref().unwrap_or(&options.state))
}

struct Run<'a> {
    options: &'a Options,
    python: Option<Python>,
    facts: Facts,
    warm: f64,
    seconds: f64,
}

/// A process that ends when its input does.
struct Half {
    child: Child,
    input: Option<ChildStdin>,
}

impl<'a> Run<'a> {
    fn new(options: &'a Options) -> Outcome<Self> {
        let python = options.python.clone().map(|program| Python { program, helpers: options.helpers.clone() });
        let (warm, seconds) = if options.quick { (0.1, 0.4) } else { (0.2, 1.0) };
        let mut facts = Facts { rounds: options.rounds, seconds, ..machine() };
        let nats = options.nats_server.as_deref().and_then(|program| output(program, &["--version"]));
        let nats =
            nats.map(|text| text.rsplit(' ').next().unwrap_or_default().trim().trim_start_matches('v').to_owned());
        facts.versions = versions();
        match nats {
            Some(version) => facts.versions.push(("nats-server".into(), version)),
            None => facts.absent.push(("nats".into(), "no nats-server could be had".into())),
        }
        for name in ["execnet", "rosy"] {
            let ask = format!("import importlib.metadata as m, {name}; print(m.version('{name}'))");
            match python.as_ref().and_then(|python| output(&python.program, &["-c", &ask])) {
                Some(version) => facts.versions.push((name.into(), version)),
                None => facts.absent.push((name.into(), "the Python package could not be had".into())),
            }
        }
        if let Some(version) = python.as_ref().and_then(|python| output(&python.program, &["--version"])) {
            facts.versions.push(("Python".into(), version.replace("Python ", "")));
        }
        Ok(Self { options, python, facts, warm, seconds })
    }

    fn has(&self, system: &System) -> bool {
        !self.facts.absent.iter().any(|(name, _)| system.word.starts_with(name.as_str()))
    }

    fn cell(&mut self, round: usize, system: &System, work: Work) -> Cell {
        let (sent, received, figures) = Default::default();
        let mut cell =
            Cell { round, system: system.word.into(), work, figures, sent, received, link: None, failed: None };
        // Once in a while a system does not come up; that is no figure of its speed.
        for _ in 0..2 {
            cell.failed = None;
            match self.measure(system, work, &mut cell) {
                Ok(()) => break,
                Err(error) => cell.failed = Some(error.to_string()),
            }
        }
        cell
    }

    fn measure(&self, system: &System, work: Work, cell: &mut Cell) -> Outcome<()> {
        let folder = tempfile::Builder::new().prefix("bench-peers-").tempdir()?;
        let folder = folder.path();
        let mut server = None;
        let mut port = 0;
        if system.word.ends_with("-tls") {
            certificates(folder)?;
        }
        match system.word.split('-').next() {
            Some("meshd") => systems::meshd::prepare(folder)?,
            Some("nats") => {
                port = free_port()?;
                let program = self.options.nats_server.as_deref().ok_or("no nats-server")?;
                let config = systems::nats::configure(folder, port, system.word == "nats-tls")?;
                server = Some(guarded(program, &["-c".into(), config.to_string_lossy().into()], folder)?);
                connected(port)?;
            }
            _ => {}
        }
        let seconds = if work == Work::Calls { self.seconds * 1.5 } else { self.seconds };
        let mut setup = Setup {
            system: system.word.into(),
            work,
            warm: self.warm,
            seconds,
            folder: folder.into(),
            port,
            half: 0,
            addresses: Vec::new(),
        };
        let (say, hear) = channel();
        let mut halves = Vec::new();
        let (processes, each) = work.listeners();
        if system.word != "execnet" {
            for half in 0..processes {
                setup.half = half;
                if server.is_none() {
                    setup.port = free_port()?;
                }
                halves.push(self.half(system, true, &setup, half, say.clone())?);
            }
            let mut addresses: Vec<(usize, String)> = Vec::new();
            while addresses.len() < processes {
                if let (half, Line::Ready(address)) = heard(&hear, PATIENCE)? {
                    addresses.push((half, address));
                }
            }
            setup.addresses =
                addresses.into_iter().map(|(_, address)| address).filter(|address| !address.is_empty()).collect();
        }
        halves.push(self.half(system, false, &setup, processes, say)?);
        // Whatever the second half says, and the tallies of the listeners.
        let tallies = if matches!(work, Work::Trip | Work::Calls | Work::Start) { 0 } else { processes * each };
        let patience = Duration::from_secs_f64(self.warm + self.seconds * 2.0) + PATIENCE * 2;
        let until = now() + patience;
        let (mut counted, mut per_second, mut sent, mut done) = (0, 0.0, None, false);
        (cell.sent, cell.received) = (0, 0);
        cell.figures.clear();
        while !(if tallies > 0 { counted == tallies && sent.is_some() } else { done }) {
            let (half, line) = heard(&hear, until.saturating_duration_since(now()))?;
            let mut note = |key: &str, value: f64| cell.figures.insert(key.into(), value);
            match line {
                Line::Trip { p50, p99 } => {
                    note("trip_p50", p50);
                    note("trip_p99", p99);
                }
                Line::Call { p50, p99 } => {
                    note("call_p50", p50);
                    note("call_p99", p99);
                }
                Line::Calls { per_second, made, failed } => {
                    note("calls", per_second);
                    (cell.sent, cell.received) = (made, made - failed);
                }
                Line::Start { p50 } => {
                    note("start_p50", p50);
                }
                Line::Link(kind) => cell.link = Some(kind),
                Line::Sent(count) => sent = Some(count),
                Line::Counted(count) => {
                    counted += 1;
                    cell.received += count.received;
                    per_second += count.per_second;
                }
                Line::Done => done = half == processes,
                Line::Skip(reason) => return Err(reason.into()),
                Line::Ready(_) => {}
            }
        }
        if tallies > 0 {
            cell.sent = sent.unwrap_or_default() * tallies as u64;
            cell.figures.insert("per_second".into(), per_second);
        }
        // The sender first: it has nobody to send to from then on.
        while halves.pop().is_some() {}
        drop(server);
        if system.word == "zenoh-shm" {
            systems::zenoh::clean();
        }
        Ok(())
    }

    fn half(&self, system: &System, first: bool, setup: &Setup, number: usize, say: Sender<Heard>) -> Outcome<Half> {
        let setup = serde_json::to_string(setup)?;
        let words = match system.word {
            "execnet" | "rosy" => self.python.as_ref().ok_or("no Python")?.command(system.word, first, &setup),
            _ => {
                let own = std::env::current_exe()?.to_string_lossy().into_owned();
                vec![own, "part".into(), if first { "first" } else { "second" }.into(), setup]
            }
        };
        let mut child =
            Command::new(&words[0]).args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        std::thread::spawn(move || {
            for text in lines.map_while(Result::ok) {
                match serde_json::from_str(&text) {
                    Ok(line) => drop(say.send(Ok((number, line)))),
                    Err(_) => eprintln!("{text}"),
                }
            }
            let _ = say.send(Err(()));
        });
        Ok(Half { child, input })
    }
}

/// A line of one of the halves, or that one has ended.
type Heard = Result<(usize, Line), ()>;

fn heard(hear: &Receiver<Heard>, patience: Duration) -> Outcome<(usize, Line)> {
    match hear.recv_timeout(patience) {
        Ok(Ok(said)) => Ok(said),
        Ok(Err(())) => Err("one half ended too early".into()),
        Err(_) => Err("not done in time".into()),
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        drop(self.input.take());
        let began = now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server, which ends with this process too.
fn guarded(program: &Path, words: &[String], folder: &Path) -> Outcome<Guarded> {
    let log = File::create(folder.join("server.log"))?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("guard")
        .arg(program)
        .args(words)
        .stdin(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let input = child.stdin.take();
    Ok(Guarded { child, input })
}

struct Guarded {
    child: Child,
    input: Option<ChildStdin>,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.input.take()); // the guard ends the server
        let _ = self.child.wait();
    }
}

fn connected(port: u16) -> Outcome<()> {
    let began = now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if began.elapsed() > PATIENCE {
            return Err("the server does not listen".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// An authority, and a certificate of it for 127.0.0.1.
fn certificates(folder: &Path) -> Outcome<()> {
    let authority_key = rcgen::KeyPair::generate()?;
    let mut authority = rcgen::CertificateParams::new(Vec::new())?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "bench");
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()])?;
    let certificate = certificate.signed_by(&key, &issuer)?;
    fs::write(folder.join("ca.pem"), authority_pem)?;
    fs::write(folder.join("cert.pem"), certificate.pem())?;
    Ok(fs::write(folder.join("key.pem"), key.serialize_pem())?)
}

fn output(program: &Path, words: &[&str]) -> Option<String> {
    let output = Command::new(program).args(words).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn machine() -> Facts {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str, separator: char| {
        let mut lines = text.lines().filter_map(|line| line.split_once(separator));
        lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().trim_matches('"').to_owned())
    };
    let unknown = || "unknown".to_owned();
    let uname = |what: &str| output(Path::new("uname"), &[what]);
    Facts {
        date: output(Path::new("date"), &["-u", "+%Y-%m-%d"]).unwrap_or_else(unknown),
        cpu: field(&read("/proc/cpuinfo"), "model name", ':').unwrap_or_else(|| uname("-m").unwrap_or_else(unknown)),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        kernel: format!("{} {}", uname("-s").unwrap_or_else(unknown), uname("-r").unwrap_or_else(unknown)),
        os: field(&read("/etc/os-release"), "PRETTY_NAME", '=').unwrap_or_else(unknown),
        ..Facts::default()
    }
}

/// Versions of what is built in, from the lock file that it was built with.
fn versions() -> Vec<(String, String)> {
    let lock = include_str!("../Cargo.lock");
    let version = |name: &str| {
        let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
        Some((name.to_owned(), rest.split_once('"')?.0.to_owned()))
    };
    let mut found: Vec<_> =
        ["meshd", "zenoh", "async-nats", "libp2p", "tokio"].into_iter().filter_map(version).collect();
    let (major, minor, patch) = zmq::version();
    found.push(("libzmq".into(), format!("{major}.{minor}.{patch}")));
    found
}
