//! `meshd record`, `play` and `info`.

use super::Place;
use super::args::{InfoArgs, PlayArgs, RecordArgs};
use super::output::Output;
use super::trouble::{Exit, Trouble};

pub(super) async fn record(_place: Place, args: RecordArgs, _out: &mut Output) -> Result<Exit, Trouble> {
    unimplemented!("{args:?}")
}
pub(super) async fn play(_place: Place, args: PlayArgs, _out: &mut Output) -> Result<Exit, Trouble> {
    unimplemented!("{args:?}")
}
pub(super) fn info(args: &InfoArgs, _out: &mut Output) -> Result<Exit, Trouble> {
    unimplemented!("{args:?}")
}
