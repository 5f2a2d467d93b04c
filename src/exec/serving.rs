//! Running programs for others: who may, how many at once, and what is told of it here.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::policy::Policy;
use super::refusals::{MINUTE, Refusals};
use super::run::{GRACE, Run};
use crate::config::ExecConfig;
use crate::keeper::Keeper;
use crate::mesh::exec::{
    EXEC_SERVICE, ExecRequest, ExecSaid, NO_DIRECTORY, NOT_EXECUTABLE, NOT_FOUND, REFUSED, SentScript, Word,
};
use crate::mesh::{Action, Failure, NodeId};
use crate::node::{Channel, ChannelService, ListenError, Node};

/// A node that runs programs for others. Dropping it ends them all: they are asked to, and have 5 s.
#[derive(Debug)]
pub struct ExecService {
    runner: Arc<Runner>,
    _service: ChannelService,
    _minutes: AbortOnDropHandle<()>,
}

/// What all programs that run here share.
#[derive(Debug)]
struct Runner {
    node: Node,
    policy: Policy,
    keeper: Arc<Keeper>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    refusals: Arc<Refusals>,
}

/// A program that was sent along, while it is needed.
struct Script(PathBuf);

impl Node {
    /// Runs programs for other members, as far as the settings and the rules about the action `exec` allow: by default none,
    /// and whoever asks is told which setting that is.
    ///
    /// Each runs in a process group of its own, with the rights of this process. When its caller goes, when its time is up, or
    /// when this process ends or is killed, all that it started is ended: SIGTERM, and 5 s later SIGKILL. 256 run at once;
    /// who wants more is told that the node is busy. Who ran what is logged, and who was refused, as a number beyond ten times a
    /// minute.
    ///
    /// # Errors
    /// This node does it already, or the process has left the mesh.
    pub async fn serve_exec(&self, config: ExecConfig) -> Result<ExecService, ListenError> {
        let runner = Arc::new(Runner {
            node: self.clone(),
            policy: Policy::new(config),
            keeper: Arc::new(Keeper::new(GRACE)),
            places: Arc::new(Semaphore::new(MAX_RUNNING)),
            stop: CancellationToken::new(),
            refusals: Arc::default(),
        });
        let refusals = Arc::clone(&runner.refusals);
        let shared = Arc::clone(&runner);
        let serve = move |channel| {
            let runner = Arc::clone(&shared);
            async move { runner.serve(channel).await }
        };
        let service = self.serve_channels(EXEC_SERVICE, serve).await?;
        let minutes = tokio::spawn(async move {
            loop {
                sleep(MINUTE).await; // as long as programs are run for others
                refusals.sum_up();
            }
        });
        Ok(ExecService { runner, _service: service, _minutes: AbortOnDropHandle::new(minutes) })
    }
}

impl ExecService {
    /// Ends all programs in order, and waits until they are gone. Takes a little over 5 s at most, if none is deaf.
    ///
    /// # Cancel safety
    /// Dropped, what is left is ended without this process.
    pub async fn end(self) {
        self.runner.stop.cancel();
        let _ = self.runner.places.acquire_many(MAX_RUNNING as u32).await; // never closed
        self.runner.refusals.sum_up();
    }
}

impl Runner {
    async fn serve(&self, channel: Channel) -> Result<(), Failure> {
        let from = channel.far();
        let request = channel.request().cloned().unwrap_or_default();
        let request: ExecRequest = request.decode().map_err(|error| bad(error.to_string()))?;
        if !request.is_sound() {
            return Err(bad("a command of words without a byte 0 in them, and variables with names".to_owned()));
        }
        let (who, command) = (self.who(from), shown(&request));
        let place = Arc::clone(&self.places).try_acquire_owned();
        let found = self.find(from, &request).and_then(|found| match place {
            _ if self.stop.is_cancelled() => Err(Failure::new(Failure::BUSY, "it is about to stop")),
            Err(_) => Err(Failure::new(Failure::BUSY, format!("{MAX_RUNNING} programs run there already"))),
            Ok(place) => Ok((found, place)),
        });
        let ((program, chdir), _place) = found.inspect_err(|failure| {
            if self.refusals.is_logged(from.peer, &who) {
                info!(who, node = %from, command, why = failure.message, "the program was not run");
            }
        })?;
        info!(who, node = %from, command, "runs a program for another");
        let began = Instant::now();
        match self.run(&channel, request, &program, chdir.as_deref()).await {
            Ok(exit) => {
                info!(who, node = %from, command, %exit, took = ?began.elapsed(), "the program has ended");
                Ok(())
            }
            Err(failure) => {
                info!(who, node = %from, command, why = failure.message, "the program was not run to its end");
                Err(failure)
            }
        }
    }

    /// Where the program is and where it is to run, if it may.
    fn find(&self, from: NodeId, request: &ExecRequest) -> Result<(PathBuf, Option<PathBuf>), Failure> {
        let chdir = request.chdir.as_ref().map(|dir| PathBuf::from(OsStr::from_bytes(dir.as_bytes())));
        let here = env::current_dir().unwrap_or_else(|_| "/".into());
        let place = chdir.as_ref().map_or_else(|| here.clone(), |dir| here.join(dir));
        let allowed = self.policy.check(request, &place)?;
        let names: Vec<&str> = allowed.names.iter().map(String::as_str).collect();
        self.node.permits_by_any_name(from.peer, Action::Exec, &names).map_err(|why| {
            let message = format!("{why} of config.toml of that node ([[allow]] with action exec)");
            Failure::new(REFUSED, message)
        })?;
        let program = allowed.program?;
        if !place.is_dir() {
            return Err(Failure::new(NO_DIRECTORY, format!("there is no directory {} there", place.display())));
        }
        Ok((program, chdir.map(|_| place)))
    }

    async fn run(
        &self,
        channel: &Channel,
        request: ExecRequest,
        program: &Path,
        chdir: Option<&Path>,
    ) -> Result<crate::mesh::ProcessExit, Failure> {
        let ExecRequest { command: words, script, env, timeout_ms, messages, .. } = request;
        let mut words = words.into_iter().map(OsString::from);
        let mut command = Command::new(program);
        if let Some(name) = words.next() {
            command.arg0(name);
        }
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let _script = match script {
            Some(sent) => {
                let script = tokio::select! {
                    script = self.receive(channel, &sent) => script?,
                    () = self.stop.cancelled() => return Err(Failure::new(Failure::DISCONNECTED, "it is about to stop")),
                };
                let args = sent.args;
                command.arg(&script.0).args(args.into_iter().map(OsString::from));
                Some(script)
            }
            None => None,
        };
        if let Some(chdir) = chdir {
            command.current_dir(chdir);
        }
        if messages {
            command.env("PYTHONUNBUFFERED", "1"); // a message that is kept in a buffer is none
        }
        command.envs(env.into_iter().map(|(name, value)| (OsString::from(name), OsString::from(value))));
        // Last: who asks is not for who asks to say.
        command.env("MESHD_MESH", self.node.mesh().as_str()).env("MESHD_FROM", channel.far().to_string());
        let patience = timeout_ms.map(Duration::from_millis);
        let run = Run::start(command, channel.clone(), messages, patience, &self.keeper, self.stop.child_token());
        let run = run.map_err(|error| {
            let kind = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
            Failure::new(kind, format!("{} cannot be started there: {error}", program.display()))
        })?;
        run.finish().await
    }

    /// Takes a program that is sent along into a file that nobody else sees.
    async fn receive(&self, channel: &Channel, sent: &SentScript) -> Result<Script, Failure> {
        let io = |error: std::io::Error| {
            Failure::new(NOT_EXECUTABLE, format!("the program cannot be stored there: {error}"))
        };
        // Its name is only its name.
        let name = Path::new(&sent.name).file_name().unwrap_or_else(|| OsStr::new("program"));
        let script = Script(self.keeper.directory().map_err(io)?.join(name));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(&script.0).map_err(io)?;
        let mut file = tokio::fs::File::from_std(file);
        let mut len = 0;
        loop {
            let item = channel.next().await.ok().flatten();
            let item =
                item.ok_or_else(|| Failure::new(Failure::DISCONNECTED, "the caller has gone: nothing was run"))?;
            match ExecSaid::decode(item.payload) {
                Ok(ExecSaid::Script(part)) => {
                    len += part.len() as u64;
                    if len > MAX_SCRIPT {
                        return Err(Failure::new(
                            Failure::TOO_LARGE,
                            format!("a program of more than {MAX_SCRIPT} bytes"),
                        ));
                    }
                    file.write_all(&part).await.map_err(io)?;
                }
                Ok(ExecSaid::ScriptEnd) => break,
                _ => return Err(Failure::new(Failure::PROTOCOL, "the program comes first")),
            }
        }
        file.flush().await.map_err(io)?;
        Ok(script)
    }

    /// Who asks, for the log.
    fn who(&self, from: NodeId) -> String {
        self.node.identity_of(from.peer).map_or_else(|| "unknown".to_owned(), |identity| identity.to_string())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Some(place) = self.0.parent() {
            let _ = std::fs::remove_dir_all(place); // the keeper removes what is left
        }
    }
}

/// A command line, for the log. Never what goes in by stdin, nor values of variables.
fn shown(request: &ExecRequest) -> String {
    let script = request.script.as_ref();
    let name = script.map(|script| format!("<{}>", Word::from(script.name.as_str())));
    let args = script.into_iter().flat_map(|script| &script.args).map(ToString::to_string);
    let words = request.command.iter().map(ToString::to_string).chain(name).chain(args);
    let mut line = words.collect::<Vec<_>>().join(" ");
    if line.len() > MAX_SHOWN {
        line.truncate((0..=MAX_SHOWN).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0));
        line.push_str(" ...");
    }
    line
}

fn bad(message: String) -> Failure {
    Failure::new(Failure::BAD_REQUEST, message)
}

/// Programs that run at once: each takes three pipes, and up to three items of output in memory.
const MAX_RUNNING: usize = 256;
/// Bytes of a program that is sent along: it lies in a temporary directory, which may be memory.
const MAX_SCRIPT: u64 = 1 << 30;
/// Bytes of a command line in the log.
const MAX_SHOWN: usize = 1000;
