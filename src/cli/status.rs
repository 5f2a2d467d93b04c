//! What the daemon knows: `status peers nodes topics watch ping config`.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Place;
use super::args::{PingArgs, WatchArgs};
use super::client::{Client, ask};
use super::output::{Output, micros, rfc3339};
use super::trouble::{Exit, Trouble};
use crate::config::Layers;
use crate::mesh::{DiscoveryInfo, Event, NodeInfo, NodeName, PeerInfo, Status, TopicInfo, What};
use crate::wire::control::{Answer, Reply, Request};

pub(super) async fn status(place: Place, out: &mut Output) -> Result<Exit, Trouble> {
    let mut client = Client::connect(&place).await?;
    let status = ask!(client, Request::Status => Reply::Status(status) => status);
    if out.json {
        let Status {
            mesh,
            peer,
            identity,
            host,
            version,
            uptime_s,
            addresses,
            peers,
            nodes,
            discovery,
            foreign,
            counts,
        } = status;
        out.object(&json!({
            "mesh": mesh, "peer": peer.to_string(), "identity": identity.to_string(), "host": host, "version": version,
            "uptime_s": uptime_s, "addresses": addresses, "peers": peers, "nodes": nodes, "discovery": discovery,
            "foreign": foreign, "refused": counts.refused,
        }))?;
        return Ok(Exit::Done);
    }
    let counts = status.counts;
    let mut facts = vec![
        ("mesh", status.mesh),
        ("peer", status.peer.to_string()),
        ("identity", status.identity.to_string()),
        ("host", status.host),
        ("version", status.version),
        ("up for", humantime::format_duration(Duration::from_secs(status.uptime_s)).to_string()),
        ("peers", status.peers.to_string()),
        ("nodes", status.nodes.to_string()),
        ("messages", format!("{} sent, {} received, {} dropped", counts.sent, counts.received, counts.dropped)),
    ];
    if counts.refused > 0 {
        facts.push(("refused", format!("{} times, by [[allow]]: see what and whom with: meshd watch", counts.refused)));
    }
    facts.extend(status.addresses.into_iter().map(|address| ("address", address)));
    facts.extend(status.discovery.into_iter().map(|way| ("discovery", discovery(&way))));
    if status.foreign.refused > 0 || !status.foreign.addresses.is_empty() {
        facts.push(("foreign", format!("{} connections refused", status.foreign.refused)));
        facts.extend(
            status.foreign.addresses.into_iter().map(|address| ("foreign", format!("another mesh at {address}"))),
        );
    }
    out.facts(&facts)?;
    Ok(Exit::Done)
}

fn discovery(way: &DiscoveryInfo) -> String {
    let last =
        way.last_s.map(|seconds| format!(", last {} ago", humantime::format_duration(Duration::from_secs(seconds))));
    format!("{}: {}, heard {}{}", way.source, way.state, way.heard, last.unwrap_or_default())
}

pub(super) async fn peers(place: Place, out: &mut Output) -> Result<Exit, Trouble> {
    let mut client = Client::connect(&place).await?;
    let peers = ask!(client, Request::Peers => Reply::Peers(peers) => peers);
    if out.json {
        for peer in peers {
            let PeerInfo { peer, identity, host, addresses, link, rtt_us, nodes, version, .. } = peer;
            out.object(&json!({
                "peer": peer.to_string(), "identity": identity.to_string(), "host": host, "addresses": addresses,
                "link": link.name(), "rtt_us": rtt_us, "nodes": nodes, "version": version,
            }))?;
        }
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = peers
        .into_iter()
        .map(|peer| {
            let rtt = peer.rtt_us.map_or_else(|| "-".to_owned(), micros);
            [
                peer.peer.short(),
                peer.host,
                peer.link.name().to_owned(),
                rtt,
                names(&peer.nodes),
                peer.version,
                peer.connected_to,
            ]
        })
        .collect();
    out.table(["PEER", "HOST", "LINK", "RTT", "NODES", "VERSION", "ADDRESS"], &rows)?;
    Ok(Exit::Done)
}

pub(super) async fn nodes(place: Place, out: &mut Output) -> Result<Exit, Trouble> {
    let mut client = Client::connect(&place).await?;
    let nodes = ask!(client, Request::Nodes => Reply::Nodes(nodes) => nodes);
    if out.json {
        for NodeInfo { id, name, host, filters, services } in nodes {
            out.object(&json!({
                "node": name, "id": id.to_string(), "peer": id.peer.to_string(), "host": host, "topics": filters,
                "services": services,
            }))?;
        }
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = nodes
        .into_iter()
        .map(|node| {
            let topics = list(node.filters.iter().map(ToString::to_string));
            let services = list(node.services.iter().map(ToString::to_string));
            [node.name.to_string(), node.host, format!("{}/{}", node.id.peer.short(), node.id.index), topics, services]
        })
        .collect();
    out.table(["NODE", "HOST", "PEER", "TOPICS", "SERVICES"], &rows)?;
    Ok(Exit::Done)
}

pub(super) async fn topics(place: Place, out: &mut Output) -> Result<Exit, Trouble> {
    let mut client = Client::connect(&place).await?;
    let topics = ask!(client, Request::Topics => Reply::Topics(topics) => topics);
    if out.json {
        for TopicInfo { filter, groups, nodes } in topics {
            out.object(&json!({ "topic": filter, "nodes": nodes, "groups": groups }))?;
        }
        return Ok(Exit::Done);
    }
    let row = |topic: TopicInfo| [topic.filter.to_string(), topic.nodes.to_string(), names(&topic.groups)];
    let rows: Vec<_> = topics.into_iter().map(row).collect();
    out.table(["TOPIC", "NODES", "GROUPS"], &rows)?;
    Ok(Exit::Done)
}

pub(super) async fn watch(place: Place, args: &WatchArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let mut client = Client::connect(&place).await?;
    ask!(client, Request::Watch => Reply::Done => ());
    let mut printed = 0;
    let watching = async {
        while args.count.is_none_or(|count| printed < count) {
            match client.next().await? {
                Answer::Event(event) => {
                    print_event(&event, out)?;
                    printed += 1;
                }
                Answer::EventsMissed(missed) if out.json => {
                    out.object(&json!({ "event": "missed", "count": missed }))?;
                }
                Answer::EventsMissed(missed) => {
                    out.talk.say(&format!("missed {missed} events: this reader was too slow"));
                }
                _ => {}
            }
            out.flush()?;
        }
        Ok(())
    };
    let Some(timeout) = args.timeout else { return watching.await.map(|()| Exit::Done) };
    match tokio::time::timeout(timeout, watching).await {
        Ok(ended) => ended.map(|()| Exit::Done),
        Err(_) if args.count.is_some() => Ok(Exit::TimedOut),
        Err(_) => Ok(Exit::Done),
    }
}

fn print_event(event: &Event, out: &mut Output) -> Result<(), Trouble> {
    let facts = facts(&event.what);
    if out.json {
        let mut object = Map::from_iter([
            ("event".to_owned(), Value::from(event.what.name())),
            ("time".to_owned(), Value::from(rfc3339(event.time))),
        ]);
        object.extend(facts.into_iter().map(|(name, value)| (name.to_owned(), value)));
        return out.object(&object);
    }
    let mut line = format!("{}  {}", rfc3339(event.time), out.strong(event.what.name()));
    for (name, value) in facts {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        line = format!("{line}  {name}={}", out.foreign(&value));
    }
    out.line(&line)
}

/// What is to be said of an event, besides its name and time.
fn facts(what: &What) -> Vec<(&'static str, Value)> {
    let text = |text: &dyn ToString| Value::from(text.to_string());
    match what {
        What::PeerUp { peer, host } => vec![("peer", text(peer)), ("host", text(host))],
        What::PeerDown { peer, host, reason } => {
            vec![("peer", text(peer)), ("host", text(host)), ("reason", reason.name().into())]
        }
        What::NodeUp { node, name } | What::NodeDown { node, name } => vec![("node", text(name)), ("id", text(node))],
        What::Listening { node, name, filter } | What::NotListening { node, name, filter } => {
            vec![("node", text(name)), ("id", text(node)), ("topic", text(filter))]
        }
        What::Serving { node, name, service } | What::NotServing { node, name, service } => {
            vec![("node", text(name)), ("id", text(node)), ("service", text(service))]
        }
        What::Foreign { address } => vec![("address", text(address))],
        What::MessagesLost { peer, unsent, in_flight, exact } => vec![
            ("peer", text(peer)),
            ("unsent", (*unsent).into()),
            ("in_flight", (*in_flight).into()),
            ("exact", (*exact).into()),
        ],
        What::Refused { peer, here, action, resource, rule } => vec![
            ("peer", text(peer)),
            ("by", if *here { "this peer" } else { "the other peer" }.into()),
            ("action", text(action)),
            ("resource", text(resource)),
            ("rule", text(rule)),
        ],
        What::KeyRotated { epoch } => vec![("epoch", (*epoch).into())],
    }
}

pub(super) async fn ping(place: Place, args: PingArgs, out: &mut Output) -> Result<Exit, Trouble> {
    #[derive(Serialize)]
    struct Pong {
        peer: String,
        rtt_us: u64,
    }
    let mut client = Client::connect(&place).await?;
    for round in 0..args.count {
        if round > 0 {
            tokio::time::sleep(args.interval).await; // the pace that was asked for
        }
        let request = Request::Ping { target: args.target.clone(), timeout: args.timeout };
        let (peer, rtt_us) = ask!(client, request => Reply::Pong { peer, rtt_us } => (peer, rtt_us));
        if out.json {
            out.object(&Pong { peer: peer.to_string(), rtt_us })?;
        } else {
            out.line(&format!("{}  {}", peer.short(), micros(rtt_us)))?;
        }
        out.flush()?;
    }
    Ok(Exit::Done)
}

pub(super) async fn config(place: Place, out: &mut Output) -> Result<Exit, Trouble> {
    // First what is written: a mistake there is what whoever calls this wants to know.
    let written = crate::daemon::settings(&Layers::from_environment(), &place.home, &place.mesh)?;
    let settings = match Client::find(&place).await? {
        Some(mut client) => ask!(client, Request::Config => Reply::Config(settings) => settings),
        None => {
            out.talk.say(&format!("no daemon runs here: this is what `{}` would use", place.command("run")));
            written.settings.into_iter().map(|setting| (setting.key, setting.value, setting.source)).collect()
        }
    };
    if out.json {
        for (key, value, source) in settings {
            out.object(&json!({ "key": key, "value": value, "source": source }))?;
        }
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = settings.into_iter().map(<[String; 3]>::from).collect();
    out.table(["KEY", "VALUE", "SOURCE"], &rows)?;
    Ok(Exit::Done)
}

fn names(names: &[NodeName]) -> String {
    list(names.iter().map(ToString::to_string))
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
