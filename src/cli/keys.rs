//! Who may come in: `key invite join identity`.

use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::json;
use zeroize::Zeroizing;

use super::Place;
use super::args::{JoinArgs, KeyCommand};
use super::client::{Client, ask};
use super::output::Output;
use super::trouble::{Exit, Trouble};
use crate::keys::{IdentityKey, KeyError, KeyRing, NetworkKey, Ticket};
use crate::mesh::{Identity, KeyInfo, MeshName, PeerInfo};
use crate::wire::control::{Reply, Request};

pub(super) async fn key(place: Place, command: KeyCommand, out: &mut Output) -> Result<Exit, Trouble> {
    match command {
        KeyCommand::New { passphrase } => new(&place, passphrase, out),
        KeyCommand::Show { secret: true } => secret(&place, out),
        KeyCommand::Show { secret: false } => show(&place, out).await,
        KeyCommand::Rotate { grace, without } => rotate(&place, grace, without, out).await,
        KeyCommand::Fingerprint => fingerprint(&place, out),
    }
}

fn new(place: &Place, passphrase: bool, out: &mut Output) -> Result<Exit, Trouble> {
    let key = if passphrase {
        out.talk.say("reading the passphrase from stdin");
        NetworkKey::from_passphrase(&first_line(MAX_PASSPHRASE_LINE)?, &place.mesh)?
    } else {
        NetworkKey::generate()
    };
    KeyRing::create(&place.home.mesh(&place.mesh), &place.mesh, key.clone())?;
    print_fingerprint(&key, place, out)?;
    out.talk.say(&format!("start the daemon with: {}", place.command("run")));
    Ok(Exit::Done)
}

fn secret(place: &Place, out: &mut Output) -> Result<Exit, Trouble> {
    let ring = stored(place)?;
    out.line(&ring.current().to_line())?;
    out.talk.say("whoever sees this can join the mesh");
    Ok(Exit::Done)
}

fn fingerprint(place: &Place, out: &mut Output) -> Result<Exit, Trouble> {
    print_fingerprint(stored(place)?.current(), place, out)?;
    Ok(Exit::Done)
}

fn print_fingerprint(key: &NetworkKey, place: &Place, out: &mut Output) -> Result<(), Trouble> {
    let fingerprint = key.fingerprint(&place.mesh);
    if out.json {
        out.object(&json!({ "mesh": place.mesh, "fingerprint": fingerprint }))
    } else {
        out.line(&fingerprint)
    }
}

async fn show(place: &Place, out: &mut Output) -> Result<Exit, Trouble> {
    let Some(mut client) = Client::find(place).await? else {
        let ring = stored(place)?;
        out.talk.say("no daemon runs here: this is what the files say");
        let fingerprint = ring.current().fingerprint(&place.mesh);
        let info = KeyInfo { fingerprint, epoch: ring.epoch(), previous: Vec::new() };
        return print_keys(&info, &[], place, out);
    };
    let info = ask!(client, Request::Keys => Reply::Keys(info) => info);
    let peers = ask!(client, Request::Peers => Reply::Peers(peers) => peers);
    print_keys(&info, &peers, place, out)
}

fn print_keys(info: &KeyInfo, peers: &[PeerInfo], place: &Place, out: &mut Output) -> Result<Exit, Trouble> {
    if out.json {
        let previous = info.previous.iter().map(|(key, left)| json!({ "fingerprint": key, "expires_s": left }));
        let peers = peers.iter().map(|peer| {
            let (id, identity) = (peer.peer.to_string(), peer.identity.to_string());
            json!({ "peer": id, "identity": identity, "host": peer.host, "fingerprint": peer.admitted_by, "epoch": peer.key_epoch })
        });
        out.object(&json!({
            "mesh": place.mesh, "fingerprint": info.fingerprint, "epoch": info.epoch,
            "previous": previous.collect::<Vec<_>>(), "peers": peers.collect::<Vec<_>>(),
        }))?;
        return Ok(Exit::Done);
    }
    let mut facts = vec![
        ("mesh", place.mesh.to_string()),
        ("key", info.fingerprint.clone()),
        ("rotations", info.epoch.to_string()),
    ];
    let previous = info.previous.iter().map(|(key, left)| {
        let left = humantime::format_duration(Duration::from_secs(*left));
        ("previous", format!("{key}, holds for another {left}"))
    });
    facts.extend(previous);
    let came_in =
        |peer: &PeerInfo| ("peer", format!("{} on {} came in by {}", peer.peer.short(), peer.host, peer.admitted_by));
    facts.extend(peers.iter().map(came_in));
    out.facts(&facts)?;
    Ok(Exit::Done)
}

async fn rotate(
    place: &Place,
    grace: Option<Duration>,
    without: Vec<Identity>,
    out: &mut Output,
) -> Result<Exit, Trouble> {
    // Who is to be shut out holds the old key.
    let grace = grace.unwrap_or(if without.is_empty() { GRACE } else { Duration::ZERO });
    if let Some(mut client) = Client::find(place).await? {
        let info = ask!(client, Request::Rotate { grace, without } => Reply::Keys(info) => info);
        out.talk.say("the linked peers have the new key; who is away gets it when they come in by the old one in time");
        return print_keys(&info, &[], place, out);
    }
    let dir = place.home.mesh(&place.mesh);
    let mut ring = stored(place)?;
    ring.rotate(grace, &without, SystemTime::now())
        .map_err(|error| Trouble::new(Exit::Refused, &error).hint(error.hint()))?;
    ring.save(&dir)?;
    print_fingerprint(ring.current(), place, out)?;
    out.talk.say(
        "no daemon runs here, so no other machine was told: they hear of it when this one's daemon is linked to them",
    );
    Ok(Exit::Done)
}

pub(super) async fn invite(place: Place, out: &mut Output) -> Result<Exit, Trouble> {
    let mut client = Client::connect(&place).await?;
    let ticket = ask!(client, Request::Invite => Reply::Ticket(ticket) => ticket);
    if out.json {
        out.object(&json!({ "mesh": place.mesh, "ticket": ticket.reveal() }))?;
    } else {
        out.line(ticket.reveal())?;
    }
    out.flush()?;
    out.talk.say("this ticket holds the key of the mesh: whoever sees it can join");
    out.talk.say("on the other machine: meshd join -    (and paste it), then: meshd run");
    Ok(Exit::Done)
}

pub(super) async fn join(
    place: Place,
    wanted: Option<&MeshName>,
    args: &JoinArgs,
    out: &mut Output,
) -> Result<Exit, Trouble> {
    let text = if args.ticket == "-" { all_of_stdin()? } else { Zeroizing::new(args.ticket.clone()) };
    let ticket = Ticket::parse(&text)?;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != ticket.mesh()) {
        // The name is part of what keys are derived from: under another name this would be a mesh of one.
        let message = format!("this ticket is for mesh '{}', not '{wanted}'", ticket.mesh());
        return Err(
            Trouble::new(Exit::Usage, message).hint("leave --mesh and MESHD_MESH out: the ticket names the mesh")
        );
    }
    let place = place.with_mesh(wanted, ticket.mesh());
    let dir = place.home.mesh(&place.mesh);
    let known = match KeyRing::load(&dir, &place.mesh) {
        Ok(ring) => ring.is_some_and(|ring| ring.current() == ticket.key()),
        // A key that cannot be used is none, if it may be replaced.
        Err(_) if args.force => false,
        Err(error) => return Err(error.into()),
    };
    if !known {
        if args.force {
            put_aside(&dir.join(KEY_FILE)).map_err(|error| Trouble::failed("cannot put the old key aside", &error))?;
        }
        KeyRing::join(&dir, &ticket).map_err(|error| match error {
            KeyError::Exists { .. } => {
                let message = format!("there is another key for mesh '{}' already", place.mesh);
                Trouble::new(Exit::Refused, message).hint("replace it with --force, or join under another --home")
            }
            error => error.into(),
        })?;
    }
    remember(&place.home.bootstrap(&place.mesh), ticket.addresses())
        .map_err(|error| Trouble::failed("cannot store the ticket's addresses", &error))?;

    if out.json {
        let fingerprint = ticket.key().fingerprint(&place.mesh);
        out.object(&json!({ "mesh": place.mesh, "fingerprint": fingerprint, "addresses": ticket.addresses() }))?;
    }
    let again = if known { " already; its addresses were added" } else { "" };
    out.talk.say(&format!("this machine holds the key of mesh '{}'{again}", place.mesh));
    if Client::find(&place).await.is_ok_and(|client| client.is_some()) {
        out.talk.say("a daemon runs: it takes this up when it is started again");
    } else {
        out.talk.say(&format!("start the daemon with: {}", place.command("run")));
    }
    Ok(Exit::Done)
}

pub(super) fn identity(place: &Place, out: &mut Output) -> Result<Exit, Trouble> {
    let identity = IdentityKey::load_or_create(place.home.identity())?.identity().to_string();
    if out.json {
        out.object(&json!({ "identity": identity }))?;
    } else {
        out.line(&identity)?;
    }
    Ok(Exit::Done)
}

/// The keys in the files.
fn stored(place: &Place) -> Result<KeyRing, Trouble> {
    KeyRing::load(&place.home.mesh(&place.mesh), &place.mesh)?.ok_or_else(|| {
        Trouble::new(Exit::Failed, format!("mesh '{}' has no key here", place.mesh))
            .hint(format!("make one with: {}, or join a mesh with: meshd join TICKET", place.command("key new")))
    })
}

/// Adds addresses to a file that [`run`](super::run) reads, each once.
fn remember(path: &Path, addresses: &[String]) -> io::Result<()> {
    let known = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let mut file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let new = addresses.iter().filter(|address| !known.lines().any(|line| line == *address));
    new.map(|address| format!("{address}\n")).try_for_each(|line| file.write_all(line.as_bytes()))
}

/// Renames a file, so that it is not lost: `key.1`, `key.2` and so on.
fn put_aside(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let free = (1_u32..).map(|number| path.with_extension(number.to_string())).find(|path| !path.exists());
    free.map_or(Ok(()), |aside| fs::rename(path, aside))
}

/// A line of stdin, without its end.
fn first_line(max: u64) -> Result<Zeroizing<String>, Trouble> {
    let mut line = Zeroizing::new(String::with_capacity(max as usize));
    let read = io::stdin().lock().take(max).read_line(&mut line);
    read.map_err(|error| Trouble::failed("cannot read stdin", &error))?;
    let len = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(len);
    Ok(line)
}

fn all_of_stdin() -> Result<Zeroizing<String>, Trouble> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_TICKET as usize + 1));
    let read = io::stdin().lock().take(MAX_TICKET + 1).read_to_string(&mut text);
    read.map_err(|error| Trouble::failed("cannot read the ticket from stdin", &error))?;
    Ok(text)
}

const KEY_FILE: &str = "key";
/// How long the previous key holds by default: a machine that is away for a week's holiday still gets the new one.
const GRACE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Bytes read for a passphrase: more than any may have, so that one too long is noticed.
const MAX_PASSPHRASE_LINE: u64 = 4096;
/// Bytes read for a ticket: more than any may have.
const MAX_TICKET: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_remembered_once() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("bootstrap");
        remember(&path, &["a".to_owned(), "b".to_owned()]).unwrap();
        remember(&path, &["b".to_owned(), "c".to_owned()]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\nc\n");
    }

    #[test]
    fn what_is_put_aside_is_not_lost() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key");
        put_aside(&path).unwrap();
        for text in ["one", "two"] {
            fs::write(&path, text).unwrap();
            put_aside(&path).unwrap();
        }
        assert_eq!(fs::read_to_string(home.path().join("key.1")).unwrap(), "one");
        assert_eq!(fs::read_to_string(home.path().join("key.2")).unwrap(), "two");
    }
}
