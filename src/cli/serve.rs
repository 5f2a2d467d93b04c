//! `meshd serve`: each call runs a command.

use std::thread::available_parallelism;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Place;
use super::args::ServeArgs;
use super::client::{Client, ask};
use super::jobs::{Job, Jobs};
use super::output::Output;
use super::payload::message;
use super::stop::Stop;
use super::trouble::{Exit, Trouble};
use crate::mesh::Failure;
use crate::wire::control::{self, Answer, Reply, Request};

pub(super) async fn serve(place: Place, args: ServeArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let stop = Stop::new()?;
    let mut client = Client::connect(&place).await?;
    let jobs = match args.jobs {
        Some(jobs) => usize::from(jobs),
        None => available_parallelism().map_or(1, usize::from),
    };
    let name = args.name.as_ref().map_or_else(|| args.service.to_string(), ToString::to_string);
    ask!(client, Request::Attach { name } => Reply::Attached { .. } => ());
    let service = args.service.to_string();
    let serve = control::Serve { service, concurrency: Some(jobs), waiting: None, channels: false };
    let serving = ask!(client, Request::Serve(serve) => Reply::Serving { serving } => serving);
    if out.verbose {
        out.talk.say(&format!("serving {}, {jobs} at a time", args.service));
    }
    let jobs = Jobs::new(args.exec.clone(), place.mesh.to_string(), client.message_bytes)?;
    let mut server = Server { client, serving, jobs, args, stop };
    let ended = server.run(out).await;
    server.jobs.end().await; // whatever still runs, nobody waits for it
    ended
}

struct Server {
    client: Client,
    serving: u64,
    jobs: Jobs,
    args: ServeArgs,
    stop: Stop,
}

impl Server {
    /// Serves until told to stop, and until what runs then is done.
    async fn run(&mut self, out: &mut Output) -> Result<Exit, Trouble> {
        let mut last: Option<(u64, Instant)> = None;
        loop {
            let deadline = last.map_or_else(Instant::now, |(_, deadline)| deadline);
            tokio::select! {
                answer = self.client.next() => match answer? {
                    Answer::Called(called) => self.jobs.start(called),
                    Answer::Cancelled { call } => self.jobs.cancel(call),
                    // All calls are answered.
                    Answer::Reply { id, .. } if last.is_some_and(|(unserve, _)| unserve == id) => return Ok(Exit::Done),
                    _ => {}
                },
                Some(job) = self.jobs.next() => self.answer(job, out).await?,
                () = self.stop.wanted() => {
                    if last.is_some() {
                        return Ok(Exit::Done); // told twice: at once
                    }
                    let unserve = Request::Unserve { serving: self.serving, drain: true };
                    last = Some((self.client.begin(unserve).await?, Instant::now() + DRAIN));
                }
                () = sleep_until(deadline), if last.is_some() => {
                    out.talk.say("commands that still ran were ended");
                    return Ok(Exit::Done);
                }
            }
        }
    }

    async fn answer(&mut self, job: Job, out: &mut Output) -> Result<(), Trouble> {
        let Job { call, from, took, result } = job;
        let Some(result) = result else { return Ok(()) }; // cancelled
        let format = self.args.format;
        let reply = result.and_then(|reply| {
            message(reply, format).map_err(|trouble| Failure::new(Failure::BAD_REPLY, trouble.message))
        });
        if out.verbose {
            let took = humantime::format_duration(Duration::from_millis(took.as_millis() as u64));
            let ended = reply.as_ref().err().map_or_else(|| "done".to_owned(), |failure| failure.kind.clone());
            out.talk.say(&format!("call of {from}: {ended} after {took}"));
        }
        let request = match reply {
            Ok((codec, payload)) => Request::Answer { call, codec, payload },
            Err(Failure { kind, message, causes }) => Request::Fail { call, kind, message, causes },
        };
        self.client.begin(request).await?;
        Ok(())
    }
}

/// How long commands may still run when `serve` is told to stop.
const DRAIN: Duration = Duration::from_secs(5);
