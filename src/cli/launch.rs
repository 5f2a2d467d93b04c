//! `meshd launch`.

use super::Place;
use super::args::LaunchArgs;
use super::output::Output;
use super::trouble::{Exit, Trouble};

pub(super) async fn launch(_place: Place, args: LaunchArgs, _out: &mut Output) -> Result<Exit, Trouble> {
    unimplemented!("{args:?}")
}
