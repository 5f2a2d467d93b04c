//! `meshd ls`, `get`, `put` and `sync`.

mod bars;
mod listing;
mod show;
mod words;

use futures::FutureExt;

use self::show::Show;
use self::words::Way;
use super::Place;
use super::args::{GetArgs, LsArgs, PutArgs, SyncArgs};
use super::client::Client;
use super::output::Output;
use super::stop::Stop;
use super::trouble::{Exit, Trouble};
use crate::mesh::{FileJob, JobKind};
use crate::wire::control::{Answer, JobEvent, JobStarted, MoveFiles, NotDone, Reply, Request};

pub(super) async fn ls(place: Place, args: LsArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let mut client = Client::connect(&place).await?;
    listing::list(&mut client, args, out).await
}

pub(super) async fn get(place: Place, args: GetArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let way = words::of_get(&args.words)?;
    run(&place, way, JobKind::Copy, args.regex, out).await
}

pub(super) async fn put(place: Place, args: PutArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let way = words::of_put(&args.words)?;
    run(&place, way, JobKind::Copy, args.regex, out).await
}

pub(super) async fn sync(place: Place, args: SyncArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let way = words::of_sync(&args.from, &args.to)?;
    let kind = JobKind::Sync { delete: args.delete, dry_run: args.dry_run };
    run(&place, way, kind, args.regex, out).await
}

/// Has the daemon do a job, and tells how it goes.
async fn run(place: &Place, way: Way, kind: JobKind, regex: Option<String>, out: &mut Output) -> Result<Exit, Trouble> {
    let mut stop = Stop::new()?;
    let mut client = Client::connect(place).await?;
    let patterns = way.patterns().filter(|_| regex.is_none());
    let mut show = Show::new(matches!(kind, JobKind::Sync { dry_run: true, .. }), out);
    let job = FileJob { from: way.from, to: way.to, kind, regex };
    let request = Request::Transfer(MoveFiles { job, each: show.wants_each(out) });
    let wanted = client.begin(request).await?;
    loop {
        // Written together while more is there, at once when nothing is.
        let answer = match client.next().now_or_never() {
            Some(answer) => answer?,
            None => {
                out.flush().or_else(unless_unread)?;
                tokio::select! {
                    answer = client.next() => answer?,
                    () = stop.wanted() => {
                        drop(show); // the terminal is as it was
                        out.flush()?;
                        return stopped(client, wanted, stop).await;
                    }
                }
            }
        };
        match answer {
            Answer::JobStarted(JobStarted { id, targets }) if id == wanted => show.started(targets),
            Answer::Job(JobEvent { id, event }) if id == wanted => show.event(event, out)?,
            Answer::NotDone(NotDone { id, failure }) if id == wanted => show.not_done(failure, out)?,
            Answer::Reply { id, reply: Reply::Done } if id == wanted => match patterns {
                Some(patterns) if show.found_nothing() => return Err(words::no_match(&patterns)),
                _ => return Ok(show.exit()),
            },
            Answer::Failed { id, failure } if id == wanted => return Err(failure.into()),
            _ => {}
        }
    }
}

/// Who reads no more of what is printed does not want less done.
fn unless_unread(trouble: Trouble) -> Result<(), Trouble> {
    if trouble.exit == Exit::Done { Ok(()) } else { Err(trouble) }
}

/// Takes the job back. When this is done, nothing moves any more; who cannot wait for that asks a second time.
async fn stopped(mut client: Client, job: u64, mut stop: Stop) -> Result<Exit, Trouble> {
    tokio::select! {
        cancelled = client.call(Request::Cancel { id: job }) => drop(cancelled?),
        () = stop.wanted() => {} // the daemon takes it back when this client is gone
    }
    Err(Trouble::new(Exit::Failed, "stopped before it was done")
        .hint("what has come is kept: the same command goes on from there"))
}
