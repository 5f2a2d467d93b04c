//! `meshd exec`: programs that run on other nodes, as if they ran here.

mod session;
mod show;
mod targets;

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use bytes::Bytes;

use self::session::Session;
use self::show::Show;
use super::Place;
use super::args::ExecArgs;
use super::client::Client;
use super::output::Output;
use super::trouble::{Exit, Trouble};
use crate::mesh::exec::{ExecRequest, SentScript, Word, interpreter};

pub(super) async fn exec(place: Place, args: ExecArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let (request, script) = request(&args)?;
    let mut client = Client::connect(&place).await?;
    let targets = targets::find(&mut client, &args).await?;
    let program = args.command.first().filter(|_| args.script.is_none()).cloned();
    let program = program.or_else(|| request.command.first().cloned().map(OsString::from)).unwrap_or_default();
    let show =
        Show { program: program.to_string_lossy().into_owned(), apart: args.on.is_none(), messages: args.messages };
    Session::new(client, targets, request, script, show).run(out).await
}

/// What is asked of each node, and the program to be sent along.
fn request(args: &ExecArgs) -> Result<(ExecRequest, Option<Bytes>), Trouble> {
    let words = || args.command.iter().cloned().map(Word::from).collect();
    let (command, script, program) = match &args.script {
        None => (words(), None, None),
        Some(path) => {
            let program = fs::read(path)
                .map_err(|error| Trouble::failed(&format!("cannot read {}", path.display()), &error))
                .map_err(|trouble| trouble.hint("--script sends a file of this machine along"))?;
            let command = match &args.with {
                Some(with) => vec![with.as_str().into()],
                None => interpreter(&program).ok_or_else(|| unnamed(path))?,
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (command, Some(SentScript { name, args: words() }), Some(Bytes::from(program)))
        }
    };
    let mut request = ExecRequest {
        command,
        script,
        chdir: args.chdir.clone().map(|dir| dir.into_os_string().into()),
        timeout_ms: args.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        messages: args.messages,
        ..ExecRequest::default()
    };
    for variable in &args.env {
        let (name, value) = variable.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
            Trouble::new(Exit::Usage, format!("'{variable}' sets no variable")).hint("say --env NAME=VALUE")
        })?;
        request.env.insert(name.into(), value.into());
    }
    if !request.is_sound() {
        return Err(
            Trouble::new(Exit::Usage, "there is no program to run").hint("name it after --, as in: -- uname -a")
        );
    }
    Ok((request, program))
}

fn unnamed(path: &Path) -> Trouble {
    Trouble::new(Exit::Usage, format!("the first line of {} does not say what runs it", path.display()))
        .hint("begin it with a line such as #!/usr/bin/env python3, or say --with python3")
}
