//! `meshd stop`.

use super::Place;
use super::args::StopArgs;
use super::output::Output;
use super::trouble::{Exit, Trouble};

pub(super) async fn stop(_place: Place, args: StopArgs, _out: &mut Output) -> Result<Exit, Trouble> {
    unimplemented!("{args:?}")
}
