//! On which nodes a program is to run.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cli::args::ExecArgs;
use crate::cli::client::{Client, ask};
use crate::cli::trouble::{Exit, Trouble};
use crate::mesh::exec::EXEC_SERVICE;
use crate::mesh::{NodeId, NodeInfo, PeerId};
use crate::wire::control::{Reply, Request};

/// A node that runs programs for others.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) id: NodeId,
    pub(super) name: String,
    /// Its name, and whatever else it takes to tell it from the others.
    pub(super) label: String,
}

/// Finds them. One that is not there is waited for, since it may be on its way.
pub(super) async fn find(client: &mut Client, args: &ExecArgs) -> Result<Vec<Target>, Trouble> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = Request::WhoOffers { service: EXEC_SERVICE.to_owned() };
        let runners = ask!(client, request => Reply::Nodes(nodes) => nodes);
        let nodes = ask!(client, Request::Nodes => Reply::Nodes(nodes) => nodes);
        let found = match (&args.on, &args.group) {
            (Some(on), _) => one(on, &runners, &nodes),
            (None, Some(group)) => several(group, &runners, &nodes),
            (None, None) => all(client, &runners).await,
        };
        match found {
            Err(trouble) if trouble.exit == Exit::Nobody && Instant::now() < deadline => sleep(RETRY).await, // then looks again
            found => return found,
        }
    }
}

fn one(on: &str, runners: &[NodeInfo], nodes: &[NodeInfo]) -> Result<Vec<Target>, Trouble> {
    let id = on.parse::<NodeId>().ok();
    let peer = on.parse::<PeerId>().ok();
    let is_meant = |node: &NodeInfo| node.name.as_str() == on || Some(node.id) == id || Some(node.id.peer) == peer;
    let found = meant(runners, nodes, is_meant);
    match &found[..] {
        [] => Err(nobody(&format!("node {on}"), nodes.iter().any(is_meant))),
        [_] => Ok(found),
        several => {
            let ids = several.iter().map(|target| target.id.to_string()).collect::<Vec<_>>().join(", ");
            Err(Trouble::new(Exit::Usage, format!("{} nodes have the name {on}: {ids}", several.len()))
                .hint(format!("name one by its id, or all of them with: --group {on}")))
        }
    }
}

fn several(group: &str, runners: &[NodeInfo], nodes: &[NodeInfo]) -> Result<Vec<Target>, Trouble> {
    let is_meant = |node: &NodeInfo| node.name.as_str() == group;
    let found = meant(runners, nodes, is_meant);
    if found.is_empty() { Err(nobody(&format!("group {group}"), nodes.iter().any(is_meant))) } else { Ok(found) }
}

/// All but this machine, if it runs nothing for others: that would be no answer to anything.
async fn all(client: &mut Client, runners: &[NodeInfo]) -> Result<Vec<Target>, Trouble> {
    let settings = ask!(client, Request::Config => Reply::Config(settings) => settings);
    let says = |key: &str, nothing: &str| settings.iter().any(|(name, said, _)| name == key && said != nothing);
    let own = match says("exec.any", "false") || says("exec.allow", "") {
        true => None,
        false => Some(ask!(client, Request::Status => Reply::Status(status) => status.peer)),
    };
    let found: Vec<&NodeInfo> = runners.iter().filter(|node| Some(node.id.peer) != own).collect();
    if found.is_empty() { Err(nobody("other node", false)) } else { Ok(targets(&found)) }
}

/// The nodes that are meant and run programs; for one that does not, whoever does so for its peer.
fn meant(runners: &[NodeInfo], nodes: &[NodeInfo], is_meant: impl Fn(&NodeInfo) -> bool) -> Vec<Target> {
    let direct: Vec<&NodeInfo> = runners.iter().filter(|node| is_meant(node)).collect();
    if !direct.is_empty() {
        return targets(&direct);
    }
    let peers: Vec<PeerId> = nodes.iter().filter(|node| is_meant(node)).map(|node| node.id.peer).collect();
    targets(&runners.iter().filter(|node| peers.contains(&node.id.peer)).collect::<Vec<_>>())
}

fn targets(nodes: &[&NodeInfo]) -> Vec<Target> {
    let mut named: HashMap<&str, usize> = HashMap::new();
    for node in nodes {
        *named.entry(node.name.as_str()).or_default() += 1;
    }
    let label = |node: &NodeInfo| match named.get(node.name.as_str()) {
        Some(1) | None => node.name.to_string(),
        Some(_) => format!("{}@{}", node.name, node.id.peer.short()),
    };
    nodes.iter().map(|node| Target { id: node.id, name: node.name.to_string(), label: label(node) }).collect()
}

fn nobody(whom: &str, is_there: bool) -> Trouble {
    let message =
        if is_there { format!("no peer of {whom} runs programs for others") } else { format!("there is no {whom}") };
    Trouble::new(Exit::Nobody, message).hint("see who is there with: meshd nodes")
}

/// How long to wait for a node that is not there.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between looks for it.
const RETRY: Duration = Duration::from_millis(50);
