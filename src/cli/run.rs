//! `meshd run`: arguments into settings, notices into lines.

use serde::Serialize;

use super::Place;
use super::args::RunArgs;
use super::output::Output;
use super::trouble::{Exit, Trouble};
use crate::config::Layers;
use crate::daemon::{self, Notice, Settings};

/// The first line on stdout, once the daemon serves.
#[derive(Serialize)]
struct Ready<'a> {
    event: &'static str,
    mesh: &'a str,
    peer: String,
    addresses: &'a [String],
    socket: String,
}

pub(super) async fn run(place: Place, args: RunArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let settings = Settings { home: place.home.clone(), mesh: place.mesh.clone(), layers: layers(args) };
    let mut printed = Ok(());
    daemon::run(settings, |notice| match notice {
        Notice::NewKey { mesh, path } => {
            out.talk.say(&format!("made a new key for mesh '{mesh}': {}", path.display()));
            out.talk.say("another machine joins with a ticket:");
            out.talk.say(&format!("  here:   {}", place.command("invite")));
            out.talk.say("  there:  meshd join -    (and paste the ticket)");
        }
        Notice::Ready { mesh, peer, addresses, socket } => {
            let socket = socket.display().to_string();
            printed = if out.json {
                out.object(&Ready { event: "ready", mesh: mesh.as_str(), peer: peer.to_string(), addresses, socket })
            } else {
                out.line(&format!("ready mesh={mesh} peer={peer} socket={socket}"))
            }
            .and_then(|()| out.flush());
        }
    })
    .await?;
    printed.map(|()| Exit::Done)
}

fn layers(args: RunArgs) -> Layers {
    let mut layers = Layers::from_environment();
    if let Some(name) = args.name {
        layers.argument("--name", "name", name.as_str());
    }
    if !args.listen.is_empty() {
        layers.argument("--listen", "listen", args.listen);
    }
    if !args.bootstrap.is_empty() {
        layers.argument("--bootstrap", "bootstrap", args.bootstrap);
    }
    if args.no_mdns {
        layers.argument("--no-mdns", "discovery.mdns", false);
    }
    if args.no_local {
        layers.argument("--no-local", "discovery.local", false);
    }
    layers
}
