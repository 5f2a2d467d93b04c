//! The program `meshd`: the daemon and everything that one does with it.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshd::cli::main()
}
