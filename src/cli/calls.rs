//! `meshd call` and `meshd services`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IsTerminal, stdin};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use futures::FutureExt;
use serde::Serialize;
use serde_json::json;

use super::Place;
use super::args::CallArgs;
use super::client::{Client, ask};
use super::output::{Output, micros};
use super::payload::{Content, all_of_stdin, content, message};
use super::stop::Stop;
use super::trouble::{Exit, Trouble};
use crate::mesh::{Codec, NodeId, NodeName, ServiceInfo, ServiceName};
use crate::wire::control::{
    self, Answer, Answered, Callee, Failure, FailureKind, Outcome, Part, Reply, Request, Spoken,
};

pub(super) async fn call(place: Place, args: CallArgs, out: &mut Output) -> Result<Exit, Trouble> {
    let callee = match &args.to {
        None => Callee::Any,
        Some(to) => match to.parse::<NodeId>() {
            Ok(node) => Callee::Node(node),
            Err(_) => Callee::Group(NodeName::new(to.as_str())?.to_string()),
        },
    };
    let client = Client::connect(&place).await?;
    let data = match args.data {
        Some(data) if data != "-" => OsString::into_vec(data),
        None if stdin().is_terminal() => Vec::new(),
        _ => all_of_stdin().await?,
    };
    let (codec, payload) = message(data, args.format)?;
    let (service, idempotent) = (args.service.to_string(), args.idempotent);
    let call =
        control::Call { service, codec, payload, callee, timeout: args.timeout, idempotent, wait_when_busy: false };
    let wait = if args.no_wait { Duration::ZERO } else { args.wait };
    let mut caller = Caller { client, service: args.service, call };
    match () {
        () if args.all => caller.call_all(wait, out).await,
        () if args.stream => caller.call_stream(wait, out).await,
        () => caller.call_one(wait, out).await,
    }
}

struct Caller {
    client: Client,
    service: ServiceName,
    call: control::Call,
}

/// What one node answered, as `--json` prints it.
#[derive(Serialize)]
struct Line<'a> {
    service: &'a ServiceName,
    node: &'a NodeName,
    peer: String,
    latency_us: u64,
    #[serde(flatten)]
    content: Content,
}

/// One of many replies of one node, as `--json` prints it.
#[derive(Serialize)]
struct StreamLine<'a> {
    service: &'a ServiceName,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a NodeName>,
    peer: &'a str,
    #[serde(flatten)]
    content: Content,
}

/// Why there is no answer, as `--json` prints it.
#[derive(Serialize)]
struct Failed<'a> {
    service: &'a ServiceName,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a NodeName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    error: &'a str,
    kind: &'a str,
    causes: &'a [String],
}

impl Caller {
    async fn call_one(&mut self, wait: Duration, out: &mut Output) -> Result<Exit, Trouble> {
        let answered = match self.ask_when_offered(Request::Call(self.call.clone()), wait, out).await? {
            Reply::Answered(answered) => answered,
            other => return Err(super::client::unexpected(&other)),
        };
        if out.json {
            self.print_object(&answered, out)?;
        } else {
            let Answered { codec, payload, .. } = &answered;
            match (codec, content(*codec, payload)) {
                (Codec::Cbor, Content::Data(value)) => out.line(&out.foreign(&value.to_string()))?,
                _ => out.document(payload)?,
            }
        }
        out.flush()?;
        Ok(Exit::Done)
    }

    /// Asks when somebody offers the service, or when time is up.
    async fn ask_when_offered(&mut self, request: Request, wait: Duration, out: &mut Output) -> Result<Reply, Trouble> {
        let deadline = tokio::time::Instant::now() + wait;
        self.wait(wait).await?;
        loop {
            match self.client.ask(request.clone()).await? {
                Ok(reply) => return Ok(reply),
                // Others may offer it, but not who is meant. Nothing ran: it can be called again.
                Err(failure) if failure.kind == FailureKind::NobodyThere && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(RETRY).await; // then looks again; `deadline` ends it
                }
                Err(failure) => {
                    self.print_failure(None, &failure, out)?;
                    return Err(failure.into());
                }
            }
        }
    }

    /// Prints replies until the last, or until told to stop.
    async fn call_stream(&mut self, wait: Duration, out: &mut Output) -> Result<Exit, Trouble> {
        let mut stop = Stop::new()?;
        let control::Call { service, codec, payload, callee, timeout, .. } = self.call.clone();
        let open = Request::Open(control::Open { service, codec, payload, callee, timeout });
        let opened = tokio::select! {
            opened = self.ask_when_offered(open, wait, out) => opened?,
            () = stop.wanted() => return Ok(Exit::Done), // the daemon takes it back
        };
        let Reply::Opened { channel: wanted, node, name } = opened else {
            return Err(super::client::unexpected(&opened));
        };
        let peer = node.peer.to_string();
        loop {
            // Written together while more are there, at once when none is.
            let answer = match self.client.next().now_or_never() {
                Some(answer) => answer?,
                None => {
                    out.flush()?;
                    tokio::select! {
                        answer = self.client.next() => answer?,
                        () = stop.wanted() => break,
                    }
                }
            };
            match answer {
                Answer::Item(Spoken { channel, codec, payload }) if channel == wanted && out.json => {
                    let content = content(codec, &payload);
                    out.object(&StreamLine { service: &self.service, node: name.as_ref(), peer: &peer, content })?;
                }
                Answer::Item(Spoken { channel, codec, payload }) if channel == wanted => {
                    print_payload(codec, &payload, out)?;
                }
                Answer::Ended { channel } if channel == wanted => break, // it waits for what never comes
                Answer::Closed { channel, failure } if channel == wanted => {
                    let Some(failure) = failure else { return Ok(Exit::Done) };
                    self.print_failure(name.as_ref().map(|name| (node, name)), &failure, out)?;
                    return Err(failure.into());
                }
                _ => {}
            }
        }
        // Whoever replies stops.
        ask!(self.client, Request::CloseChannel { channel: wanted, failure: None } => Reply::Done => ());
        Ok(Exit::Done)
    }

    async fn call_all(&mut self, wait: Duration, out: &mut Output) -> Result<Exit, Trouble> {
        self.wait(wait).await?;
        let wanted = self.client.begin(Request::CallAll(self.call.clone())).await?;
        let mut exit = Exit::Done;
        loop {
            match self.client.next().await? {
                Answer::Part(Part { id, node, name, outcome }) if id == wanted => match outcome {
                    Outcome::Answered(answered) => self.print_part(&answered, out)?,
                    Outcome::Failed(failure) => {
                        exit = Exit::Failed;
                        self.print_failure(Some((node, &name)), &failure, out)?;
                        out.talk.say(&format!("{name}: {}", failure.message));
                    }
                },
                Answer::Reply { id, .. } if id == wanted => return Ok(exit),
                Answer::Failed { id, failure } if id == wanted => {
                    self.print_failure(None, &failure, out)?;
                    return Err(failure.into());
                }
                _ => {}
            }
            out.flush()?;
        }
    }

    /// Waits until somebody offers the service, or time is up.
    async fn wait(&mut self, wait: Duration) -> Result<(), Trouble> {
        if wait > Duration::ZERO {
            let request = Request::WaitForProviders { service: self.service.to_string(), count: 1, timeout: wait };
            ask!(self.client, request => Reply::Providers(count) => count);
        }
        Ok(())
    }

    fn print_part(&self, answered: &Answered, out: &mut Output) -> Result<(), Trouble> {
        if out.json {
            return self.print_object(answered, out);
        }
        let Answered { name, codec, payload, .. } = answered;
        let head = format!("{}  ", out.foreign(name.as_str()));
        out.bytes(head.as_bytes())?;
        print_payload(*codec, payload, out)
    }

    fn print_object(&self, answered: &Answered, out: &mut Output) -> Result<(), Trouble> {
        let Answered { node, name, codec, payload, latency_us } = answered;
        let (peer, content) = (node.peer.to_string(), content(*codec, payload));
        out.object(&Line { service: &self.service, node: name, peer, latency_us: *latency_us, content })
    }

    fn print_failure(
        &self,
        asked: Option<(NodeId, &NodeName)>,
        failure: &Failure,
        out: &mut Output,
    ) -> Result<(), Trouble> {
        if !out.json {
            return Ok(());
        }
        let remote = failure.remote.as_deref();
        let peer = asked.map(|(id, _)| id).or_else(|| remote.map(|remote| remote.node)).map(|id| id.peer.to_string());
        out.object(&Failed {
            service: &self.service,
            node: asked.map(|(_, name)| name).or_else(|| remote?.name.as_ref()),
            peer,
            error: remote.map_or(&failure.message, |remote| &remote.message),
            kind: remote.map_or_else(|| kind(failure.kind), |remote| &remote.kind),
            causes: remote.map(|remote| &remote.causes[..]).unwrap_or_default(),
        })
    }
}

/// As one line.
fn print_payload(codec: Codec, payload: &[u8], out: &mut Output) -> Result<(), Trouble> {
    match (codec, content(codec, payload)) {
        (Codec::Cbor, Content::Data(value)) => out.foreign_bytes(value.to_string().as_bytes())?,
        // What commands print ends with the end of a line, and so does ours.
        _ => out.foreign_bytes(payload.strip_suffix(b"\n").unwrap_or(payload))?,
    }
    out.bytes(b"\n")
}

/// Why a call did not end with a reply, if not the service says so.
fn kind(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Failed => "disconnected",
        FailureKind::Usage => "usage",
        FailureKind::NobodyThere => "nobody-there",
        FailureKind::TimedOut => "timed-out",
        FailureKind::Refused => "refused",
        FailureKind::Stopping => "stopping",
    }
}

pub(super) async fn services(place: Place, out: &mut Output) -> Result<Exit, Trouble> {
    let mut client = Client::connect(&place).await?;
    let services = ask!(client, Request::Services => Reply::Services(services) => services);
    if out.json {
        let mut by_name: BTreeMap<ServiceName, Vec<ServiceInfo>> = BTreeMap::new();
        for one in services {
            by_name.entry(one.service.clone()).or_default().push(one);
        }
        return by_name.iter().try_for_each(|(service, nodes)| print_service(service, nodes, out)).map(|()| Exit::Done);
    }
    let rows: Vec<_> = services
        .into_iter()
        .map(|ServiceInfo { service, node, name, host, stats }| {
            let figure = |figure: Option<u64>| figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string());
            let stats = stats.as_ref();
            [
                service.to_string(),
                name.to_string(),
                host,
                format!("{}/{}", node.peer.short(), node.index),
                figure(stats.map(|stats| stats.calls)),
                figure(stats.map(|stats| stats.errors)),
                figure(stats.map(|stats| stats.busy)),
                figure(stats.map(|stats| stats.cancelled)),
                stats.and_then(|stats| stats.p50_us).map_or_else(|| "-".to_owned(), micros),
            ]
        })
        .collect();
    out.table(["SERVICE", "NODE", "HOST", "PEER", "CALLS", "ERRORS", "BUSY", "CANCELLED", "P50"], &rows)?;
    Ok(Exit::Done)
}

/// One service with all nodes that offer it. Its `p50_us` is that of the slowest of them: none takes longer for half its calls.
fn print_service(service: &ServiceName, nodes: &[ServiceInfo], out: &mut Output) -> Result<(), Trouble> {
    let stats = || nodes.iter().filter_map(|node| node.stats.as_ref());
    let (calls, errors): (u64, u64) = (stats().map(|stats| stats.calls).sum(), stats().map(|stats| stats.errors).sum());
    let p50_us = stats().filter_map(|stats| stats.p50_us).max();
    let nodes: Vec<_> = nodes
        .iter()
        .map(|one| {
            let stats = one.stats.as_ref();
            json!({
                "node": one.name, "id": one.node.to_string(), "host": one.host,
                "calls": stats.map(|stats| stats.calls), "errors": stats.map(|stats| stats.errors),
                "busy": stats.map(|stats| stats.busy), "cancelled": stats.map(|stats| stats.cancelled), "p50_us": stats.and_then(|stats| stats.p50_us),
            })
        })
        .collect();
    out.object(&json!({ "service": service, "nodes": nodes, "calls": calls, "errors": errors, "p50_us": p50_us }))
}

/// Time between tries to reach a node or group that does not offer the service yet.
const RETRY: Duration = Duration::from_millis(50);
