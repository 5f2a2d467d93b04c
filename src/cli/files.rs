//! `meshd ls`, `get`, `put` and `sync`.

use super::Place;
use super::args::{GetArgs, LsArgs, PutArgs, SyncArgs};
use super::output::Output;
use super::trouble::{Exit, Trouble};

pub(super) async fn ls(_place: Place, args: LsArgs, _out: &mut Output) -> Result<Exit, Trouble> {
    unimplemented!("{args:?}")
}
pub(super) async fn get(_place: Place, args: GetArgs, _out: &mut Output) -> Result<Exit, Trouble> {
    unimplemented!("{args:?}")
}
pub(super) async fn put(_place: Place, args: PutArgs, _out: &mut Output) -> Result<Exit, Trouble> {
    unimplemented!("{args:?}")
}
pub(super) async fn sync(_place: Place, args: SyncArgs, _out: &mut Output) -> Result<Exit, Trouble> {
    unimplemented!("{args:?}")
}
