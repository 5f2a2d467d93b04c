//! `meshd launch`: a file into programs that run, and what they print.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::args::{Global, LaunchArgs};
use super::client::Client;
use super::output::{Output, rfc3339};
use super::payload::Content;
use super::stop::Stop;
use super::trouble::{Exit, Trouble};
use super::{Place, quoted};
use crate::launch::{
    self, Backoff, Choice, DAEMON, Ended, Fate, FileError, Id, Job, LaunchFile, Launched, Need, Outcome, Plan,
    PlanError, Program, Restart, Shown, Step, Stream, Surroundings, Told,
};
use crate::mesh::Codec;
use crate::wire::control::{Reply, Request};

pub(super) async fn launch(global: &Global, args: LaunchArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let file = LaunchFile::read(&args.file)?;
    let place = Place::of(global.home.clone().or(file.home), global.mesh.clone().or(file.mesh))?;
    let choice = Choice { only: &args.only, except: &args.except };
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut plan = Plan::new(file.programs, &choice, &host)?;
    if args.dry_run {
        return dry_run(&plan, out);
    }
    tell_of_plan(&plan, out)?;
    if plan.steps.is_empty() {
        out.talk.say("nothing to start");
        return Ok(Exit::Done);
    }
    let program = std::env::current_exe().map_err(|error| Trouble::failed("cannot find this program", &error))?;
    let based = file.daemon.start && Client::find(&place).await?.is_none();
    if based {
        plan.steps.iter_mut().for_each(|step| step.after = step.after.iter().map(|at| at + 1).chain([0]).collect());
        plan.steps.insert(0, daemon(&place, &program, file.daemon.args)?);
    }
    let surroundings = surroundings(&place, &program)?;
    let screen = Screen::new(&plan.steps);
    let ask = move |need, within| there(place.clone(), need, within);
    let (shows, mut shown) = mpsc::channel(SHOWN);
    // Apart from printing: programs are watched over while nobody reads what they print.
    let launched = tokio::spawn(launch::run(plan.steps, based, surroundings, ask, told()?, shows));
    let printed = screen.print(&mut shown, out).await;
    drop(shown);
    let launched = launched.await.map_err(|error| Trouble::failed("launching broke off", &error))?;
    let launched = launched.map_err(|error| Trouble::failed("cannot start sh", &error).hint("is it in PATH?"))?;
    printed?;
    screen.sum_up(&launched, out)?;
    if launched.failed {
        out.talk.hint("see above what those that failed said last; `restart` in the file says who is tried again");
    }
    Ok(if launched.failed { Exit::Failed } else { Exit::Done })
}

impl From<FileError> for Trouble {
    fn from(error: FileError) -> Self {
        let hint = error.hint();
        let trouble = match &error {
            FileError::Read { source, .. } => Self::failed(&error.to_string(), source),
            _ => Self::new(Exit::Usage, &error),
        };
        Self { exit: Exit::Usage, ..trouble }.hint(hint)
    }
}

impl From<PlanError> for Trouble {
    fn from(error: PlanError) -> Self {
        Self::new(Exit::Usage, &error).hint(error.hint())
    }
}

/// What would be started, as `--json` prints it.
#[derive(Default, Serialize)]
struct Planned<'a> {
    program: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chdir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
}

fn dry_run(plan: &Plan, out: &mut Output) -> Result<Exit, Trouble> {
    let after = |step: &Step| {
        let others = step.after.iter().map(|at| plan.steps[*at].program.name.clone());
        others.chain(step.needs.iter().map(ToString::to_string)).collect::<Vec<_>>()
    };
    if out.json {
        for step in &plan.steps {
            let Program { name, count, env, chdir, .. } = &step.program;
            out.object(&Planned {
                program: name,
                count: Some(*count),
                command: Some(command(&step.program)),
                chdir: Some(chdir.display().to_string()),
                env: Some(env),
                after: Some(after(step)),
                ..Planned::default()
            })?;
        }
        for one in &plan.skipped {
            let skipped = Some(one.why.to_string());
            out.object(&Planned { program: &one.name, skipped, ..Planned::default() })?;
        }
        return Ok(Exit::Done);
    }
    let mut rows = Vec::new();
    for step in &plan.steps {
        let Program { name, count, env, chdir, .. } = &step.program;
        let variables = env.iter().map(|(name, value)| quoted(&format!("{name}={value}")) + " ");
        let variables = if env.is_empty() { String::new() } else { "env ".to_owned() + &variables.collect::<String>() };
        let (chdir, command) = (quoted(&chdir.display().to_string()), variables + &command(&step.program));
        rows.push([name.clone(), count.to_string(), after(step).join(", "), chdir, command]);
    }
    for one in &plan.skipped {
        let nothing = String::new;
        rows.push([one.name.clone(), "0".to_owned(), nothing(), nothing(), format!("({})", one.why)]);
    }
    out.table(["PROGRAM", "COUNT", "AFTER", "DIRECTORY", "COMMAND"], &rows)?;
    Ok(Exit::Done)
}

/// A job, to be pasted into a shell.
fn command(program: &Program) -> String {
    match &program.job {
        Job::Shell(line) => format!("sh -c {}", quoted(line)),
        Job::Words(words) => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    }
}

/// Says what is not started, and who does not wait for it.
fn tell_of_plan(plan: &Plan, out: &mut Output) -> Result<(), Trouble> {
    for skipped in &plan.skipped {
        if out.json {
            let why = Some(skipped.why.to_string());
            out.object(&Happened { why, ..Happened::new("skipped", &skipped.name, None) })?;
        } else {
            out.talk.say(&format!("{} is not started: {}", skipped.name, skipped.why));
        }
    }
    for step in plan.steps.iter().filter(|step| !step.missing.is_empty()) {
        let missing = step.missing.join(", ");
        out.talk.say(&format!("{} does not wait for what is not started here: {missing}", step.program.name));
    }
    Ok(())
}

/// The daemon, as the program that all others need.
fn daemon(place: &Place, program: &Path, args: Vec<String>) -> Result<Step, Trouble> {
    let text = |path: &Path| {
        let usage = || Trouble::new(Exit::Usage, format!("{} is no text", path.display())).hint("take another --home");
        path.to_str().map(str::to_owned).ok_or_else(usage)
    };
    let mut words = vec![text(program)?, "--home".to_owned(), text(&home(place)?)?];
    words.extend(["--mesh", place.mesh.as_str(), "run"].map(str::to_owned));
    words.extend(args);
    let program = Program {
        name: DAEMON.to_owned(),
        job: Job::Words(words),
        count: 1,
        env: BTreeMap::new(),
        chdir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")), // where it is of no interest
        on_host: Vec::new(),
        disabled: false,
        after: Vec::new(),
        after_timeout: DAEMON_PATIENCE,
        start_delay: Duration::ZERO,
        after_delay: Duration::ZERO,
        restart: Restart::OnFailure,
        backoff: Backoff::default(),
        max_restarts: None,
        stop_timeout: DAEMON_GRACE,
        ends_all: true,
    };
    Ok(Step { program, after: Vec::new(), needs: vec![Need::Daemon], missing: Vec::new() })
}

/// What programs find in their environment: what leads to the daemon, and to this program when nothing else is called `meshd`.
fn surroundings(place: &Place, program: &Path) -> Result<Surroundings, Trouble> {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    if let Some(folder) = program.parent() {
        path.push(":");
        path.push(folder);
    }
    let home = home(place)?.into_os_string();
    let all = [("MESHD_HOME", home), ("MESHD_MESH", place.mesh.as_str().into()), ("PATH", path)];
    Ok(Surroundings(all.map(|(name, value)| (name.into(), value)).to_vec()))
}

/// The home, wherever somebody is.
fn home(place: &Place) -> Result<PathBuf, Trouble> {
    std::path::absolute(place.home.dir()).map_err(|error| Trouble::failed("cannot tell where the home is", &error))
}

/// Says when whoever launched wants it to end. Then it is no use for signals to do anything else.
fn told() -> Result<mpsc::Receiver<()>, Trouble> {
    let mut stop = Stop::new()?;
    let hangup = signal(SignalKind::hangup());
    let mut hangup = hangup.map_err(|error| Trouble::failed("cannot watch for signals", &error))?;
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.wanted() => {}
                _ = hangup.recv() => {}
            }
            if tell.send(()).await.is_err() {
                return; // all is over
            }
        }
    });
    Ok(told)
}

/// Waits until something is there, for at most so long. Says what is not.
async fn there(place: Place, need: Need, within: Duration) -> Result<(), String> {
    let deadline = Instant::now() + within;
    let took = humantime::format_duration(within);
    let mut last = format!("no daemon serves mesh '{}'", place.mesh);
    loop {
        // The daemon may be on its way, or be started again just now.
        match timeout_at(deadline, look(&place, &need, deadline)).await {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(said))) | Ok(Err(Trouble { exit: Exit::NoDaemon, message: said, .. })) => last = said,
            Ok(Err(trouble)) => return Err(trouble.message),
            Err(_) => return Err(format!("{last}, after {took}")),
        }
        if timeout_at(deadline, sleep(LOOK)).await.is_err() {
            return Err(format!("{last}, after {took}"));
        }
    }
}

/// Asks the daemon whether something is there until the deadline; what is not.
async fn look(place: &Place, need: &Need, deadline: Instant) -> Result<Option<String>, Trouble> {
    let mut client = Client::connect(place).await?;
    // It answers in time to be heard.
    let timeout = deadline.saturating_duration_since(Instant::now()).saturating_sub(LOOK);
    let (request, wanted) = match need {
        Need::Daemon => return Ok(None),
        Need::Topic { topic, count } => {
            (Request::WaitForListeners { topic: topic.to_string(), count: *count, timeout }, count)
        }
        Need::Service { service, count } => {
            (Request::WaitForProviders { service: service.to_string(), count: *count, timeout }, count)
        }
    };
    let found = match client.call(request).await? {
        Reply::Listeners(found) | Reply::Providers(found) => found,
        other => return Err(super::client::unexpected(&other)),
    };
    Ok((found < *wanted).then(|| match found {
        0 => format!("there is not {need}"),
        _ => format!("there is not {need}, but {found}"),
    }))
}

/// What is shown of programs.
struct Screen {
    programs: Vec<(String, u16)>,
    width: usize,
}

/// Something that happened, as `--json` prints it.
#[derive(Serialize)]
struct Happened<'a> {
    event: &'static str,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(flatten)]
    how: Option<How>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_ms: Option<u128>,
}

/// What a program printed, as `--json` prints it.
#[derive(Serialize)]
struct Printed<'a> {
    event: &'static str,
    time: &'a str,
    program: &'a str,
    instance: u16,
    stream: &'static str,
    #[serde(flatten)]
    content: Content,
}

/// What became of a process, as `--json` prints it.
#[derive(Serialize)]
struct Summary<'a> {
    event: &'static str,
    program: &'a str,
    instance: u16,
    outcome: &'static str,
    starts: u32,
    restarts: u32,
    #[serde(flatten)]
    how: Option<How>,
    ran_ms: u128,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum How {
    Code(i32),
    Signal(i32),
}

impl Screen {
    fn new(steps: &[Step]) -> Self {
        let programs: Vec<_> = steps.iter().map(|step| (step.program.name.clone(), step.program.count)).collect();
        let mut screen = Self { programs, width: 0 };
        let last = |(program, (_, count)): (usize, &(String, u16))| screen.name(Id { program, number: *count }).len();
        screen.width = screen.programs.iter().enumerate().map(last).max().unwrap_or_default();
        screen
    }

    /// Prints until there is no more, letting go of it whenever nothing more waits.
    async fn print(&self, shown: &mut mpsc::Receiver<Shown>, out: &mut Output) -> Result<(), Trouble> {
        while let Some(next) = shown.recv().await {
            match next {
                Shown::Lines { id, stream, text } => self.lines(id, stream, &text, out)?,
                Shown::Told(told) if out.json => self.object(&told, out)?,
                Shown::Told(told) => self.say(&told, out)?,
            }
            if shown.is_empty() {
                out.flush()?;
            }
        }
        out.flush()
    }

    /// One line for each process, at the end.
    fn sum_up(&self, launched: &Launched, out: &mut Output) -> Result<(), Trouble> {
        let fates = || launched.fates.iter().map(|fate| (fate, fate.starts.saturating_sub(1), outcome(fate.outcome)));
        if out.json {
            for (fate, restarts, outcome) in fates() {
                let (program, instance, how) = (self.program(fate.id), fate.id.number, fate.last.map(How::from));
                let (event, starts, ran_ms) = ("summary", fate.starts, fate.ran.as_millis());
                out.object(&Summary { event, program, instance, outcome, starts, restarts, how, ran_ms })?;
            }
            return out.flush();
        }
        let row = |(fate, restarts, outcome): (&Fate, u32, &str)| {
            let last = fate.last.map_or_else(|| "-".to_owned(), |how| how.to_string());
            let ran = format!("{:.1} s", fate.ran.as_secs_f64());
            [self.name(fate.id), outcome.to_owned(), fate.starts.to_string(), restarts.to_string(), last, ran]
        };
        let rows: Vec<_> = fates().map(row).collect();
        out.talk.table(["PROGRAM", "OUTCOME", "STARTS", "RESTARTS", "LAST", "RAN"], &rows);
        Ok(())
    }

    fn lines(&self, id: Id, stream: Stream, text: &[u8], out: &mut Output) -> Result<(), Trouble> {
        if !out.json {
            let label = format!("{:width$} | ", self.name(id), width = self.width);
            return out.labelled(&label, id.program, stream, text);
        }
        let time = rfc3339(SystemTime::now());
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let content = super::payload::content(Codec::Text, line);
            let stream = if stream == Stream::Out { "stdout" } else { "stderr" };
            let (event, program, instance) = ("line", self.program(id), id.number);
            out.object(&Printed { event, time: &time, program, instance, stream, content })?;
        }
        Ok(())
    }

    fn object(&self, told: &Told, out: &mut Output) -> Result<(), Trouble> {
        let of = |event, id: &Id| Happened::new(event, self.program(*id), Some(id.number));
        out.object(&match told {
            Told::Waits { program, need } => {
                Happened { why: Some(need.to_string()), ..Happened::new("waits", &self.programs[*program].0, None) }
            }
            Told::Started { id, pid } => Happened { pid: Some(*pid), ..of("started", id) },
            Told::Restarts { id, how, after } => {
                Happened { how: Some((*how).into()), after_ms: Some(after.as_millis()), ..of("restarts", id) }
            }
            Told::Ended { id, how } => Happened { how: Some((*how).into()), ..of("ended", id) },
            Told::GivenUp { id, why } => Happened { why: Some(why.clone()), ..of("given-up", id) },
            Told::Stopping { because } => {
                Happened { program: because.map(|at| &self.programs[at].0[..]), ..Happened::new("stopping", "", None) }
            }
            Told::Killed { id } => of("killed", id),
        })
    }

    fn say(&self, told: &Told, out: &mut Output) -> Result<(), Trouble> {
        let (id, text) = match told {
            Told::Waits { program, need } => (Id { program: *program, number: 1 }, format!("waits for {need}")),
            Told::Started { .. } if !out.verbose => return Ok(()),
            Told::Started { id, pid } => (*id, format!("started, process {pid}")),
            Told::Restarts { id, how, after } => {
                (*id, format!("ended with {how}; again in {}", humantime::format_duration(*after)))
            }
            Told::Ended { id, how } => (*id, format!("ended with {how}")),
            Told::GivenUp { id, why } => (*id, format!("failed for good: {why}")),
            Told::Stopping { because: None } => {
                out.flush()?;
                out.talk.say("told to stop; once more kills");
                return Ok(());
            }
            Told::Stopping { because: Some(program) } => {
                (Id { program: *program, number: self.programs[*program].1 }, "is over, which ends all".to_owned())
            }
            Told::Killed { id } => (*id, "did not end when told to, and was killed".to_owned()),
        };
        let label = format!("{:width$} * ", self.name(id), width = self.width);
        out.labelled(&label, id.program, Stream::Err, text.as_bytes())
    }

    fn program(&self, id: Id) -> &str {
        &self.programs[id.program].0
    }

    /// With the number, where there are several.
    fn name(&self, id: Id) -> String {
        match &self.programs[id.program] {
            (name, 1) => name.clone(),
            (name, _) => format!("{name}.{}", id.number),
        }
    }
}

impl<'a> Happened<'a> {
    fn new(event: &'static str, program: &'a str, instance: Option<u16>) -> Self {
        let (time, program) = (rfc3339(SystemTime::now()), Some(program));
        Self { event, time, program, instance, pid: None, why: None, how: None, after_ms: None }
    }
}

impl From<Ended> for How {
    fn from(how: Ended) -> Self {
        match how {
            Ended::Code(code) => Self::Code(code),
            Ended::Signal(signal) => Self::Signal(signal),
        }
    }
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Running => "running",
        Outcome::Done => "done",
        Outcome::Stopped => "stopped",
        Outcome::Failed => "failed",
    }
}

/// Pieces of output that wait to be printed. When so many do, programs wait with printing.
const SHOWN: usize = 64;
/// Between looks for what is not there.
const LOOK: Duration = Duration::from_millis(50);
/// How long the daemon may take to serve.
const DAEMON_PATIENCE: Duration = Duration::from_secs(30);
/// How long the daemon may take to leave: a little more than it says it takes.
const DAEMON_GRACE: Duration = Duration::from_secs(10);
