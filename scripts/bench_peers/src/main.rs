//! meshd beside other ways for programs to exchange messages, in one run on one machine. Run by `scripts/bench_peers.sh`.
//!
//! `run` measures and writes the report. It starts each half of each measurement as a process of its own (`part`), and servers
//! under a guard (`guard`): all of them end when their standard input does, so nothing outlives the run, however it ends.

mod chart;
mod part;
mod report;
mod results;
mod run;
mod systems;
mod work;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// What can go wrong here ends the measurement that it happens in.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str =
    "usage: bench_peers run --state FOLDER [--docs FOLDER] [--rounds N] [--quick] [--only WORD[,WORD]..]
                       [--nats-server FILE] [--python FILE] [--helpers FOLDER]
       bench_peers report --state FOLDER [--docs FOLDER]
       bench_peers clean";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.first().map(String::as_str) {
        Some("run") => run::Options::read(&words[1..]).and_then(|options| run::run(&options)),
        Some("report") => run::Options::read(&words[1..])
            .and_then(|options| report::write(&options.state, options.docs.as_deref().unwrap_or(&options.state))),
        Some("part") => part::main(&words[1..]),
        Some("guard") => guard(&words[1..]),
        Some("clean") => {
            systems::zenoh::clean();
            Ok(())
        }
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a program for as long as standard input is open.
fn guard(words: &[String]) -> Outcome<()> {
    let (program, arguments) = words.split_first().ok_or(USAGE)?;
    let mut child = std::process::Command::new(PathBuf::from(program))
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    child.kill()?;
    child.wait()?;
    Ok(())
}
