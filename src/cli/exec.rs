//! `meshd exec`.

use super::Place;
use super::args::ExecArgs;
use super::output::Output;
use super::trouble::{Exit, Trouble};

pub(super) async fn exec(_place: Place, args: ExecArgs, _out: &mut Output) -> Result<Exit, Trouble> {
    unimplemented!("{args:?}")
}
