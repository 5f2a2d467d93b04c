//! `meshd stop`.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use super::Place;
use super::args::StopArgs;
use super::client::{Client, ask};
use super::output::Output;
use super::trouble::{Exit, Trouble};
use crate::daemon;
use crate::wire::control::{Reply, Request};

pub(super) async fn stop(place: Place, args: StopArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let mut client = Client::connect(&place).await?;
    let request = Request::Stop { target: args.target };
    let (node, name) = ask!(client, request => Reply::Stopping { node, name } => (node, name));
    let here = client.peer == Some(node.peer);
    if here {
        ended(client, &place).await?;
    }
    let name = name.map_or_else(|| node.peer.short(), |name| name.to_string());
    if out.json {
        out.object(&json!({ "node": name, "peer": node.peer.to_string(), "ended": here }))?;
    } else {
        out.line(&format!("{} {}", out.foreign(&name), if here { "has stopped" } else { "stops" }))?;
    }
    Ok(Exit::Done)
}

/// Waits until the daemon here has let go of all: its socket, and the home, so that another can start.
async fn ended(mut client: Client, place: &Place) -> Result<(), Trouble> {
    let deadline = Instant::now() + PATIENCE;
    let said_goodbye = timeout_at(deadline, async { while client.next().await.is_ok() {} }).await.is_ok();
    while said_goodbye && daemon::runs(&place.home, &place.mesh) && Instant::now() < deadline {
        sleep(LOOK).await; // then looks again; `deadline` ends it
    }
    if !said_goodbye || daemon::runs(&place.home, &place.mesh) {
        let message = format!("the daemon has not ended within {}", humantime::format_duration(PATIENCE));
        return Err(Trouble::new(Exit::TimedOut, message).hint(format!("end it with: kill -9 {}", client.pid)));
    }
    Ok(())
}

/// A daemon takes 5 s at most to leave.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);
