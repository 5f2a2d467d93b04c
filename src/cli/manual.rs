//! `meshd completions` and `meshd man`: from the same definitions as the help.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Args;
use super::output::Output;
use super::trouble::{Exit, Trouble};

pub(super) fn completions(shell: Shell, out: &mut Output) -> Result<Exit, Trouble> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "meshd", &mut script);
    out.bytes(&script)?;
    Ok(Exit::Done)
}

pub(super) fn man(dir: Option<&Path>, out: &mut Output) -> Result<Exit, Trouble> {
    match dir {
        Some(dir) => {
            let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Args::command(), dir));
            let failed = |error| Trouble::failed(&format!("cannot write to {}", dir.display()), &error);
            written.map_err(|error| failed(error).hint("name a directory that can be made or written to"))?;
        }
        None => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Args::command()).render(&mut page);
            rendered.map_err(|error| Trouble::failed("cannot make the page", &error))?;
            out.bytes(&page)?;
        }
    }
    Ok(Exit::Done)
}
