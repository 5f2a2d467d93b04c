//! Peers of one mesh, in this process, on loopback, apart from everything else on the machine.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use meshd::{Builder, Message, NetworkKey, Node, Publisher, Subscription};
use tempfile::TempDir;
use tokio::time::timeout;

/// How long anything may take that should take milliseconds: for machines that are busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A mesh to start peers in.
pub struct Cluster {
    pub key: NetworkKey,
    runtime: TempDir,
}

impl Cluster {
    pub fn new() -> Self {
        // To see what peers do: MESHD_TEST_LOG=debug cargo test NAME
        if let Some(level) = std::env::var("MESHD_TEST_LOG").ok().and_then(|level| level.parse::<tracing::Level>().ok()) {
            let _ = tracing_subscriber::fmt().with_max_level(level).with_test_writer().try_init();
        }
        Self { key: NetworkKey::generate(), runtime: TempDir::new().unwrap() }
    }

    /// Another mesh of other keys whose peers look in the same places.
    pub fn runtime(&self) -> PathBuf {
        self.runtime.path().join("run") // which peers make for themselves, closed to others
    }

    pub fn builder(&self, name: &str) -> Builder {
        Node::builder(name)
            .mesh("test")
            .key(self.key.clone())
            .listen(["127.0.0.1:0"])
            .runtime_dir(self.runtime())
            .mdns(false)
    }

    /// A node in a peer of its own.
    pub async fn start(&self, name: &str) -> Node {
        self.builder(name).start().await.unwrap()
    }

    /// Nodes in peers of their own that all see each other.
    pub async fn start_all(&self, names: &[&str]) -> Vec<Node> {
        let mut nodes = Vec::new();
        for name in names {
            nodes.push(self.start(name).await);
        }
        see_each_other(&nodes).await;
        nodes
    }
}

/// Waits until every node sees at least as many nodes as there are here.
pub async fn see_each_other(nodes: &[Node]) {
    for node in nodes {
        until("all nodes are seen", || async { node.nodes().len() >= nodes.len() }).await;
    }
}

/// Waits until something is so, looking again whenever a little time has passed.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await; // looks again; the deadline is PATIENCE
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("within {PATIENCE:?}: {what}"));
}

/// The next message, which has to come.
pub async fn next(subscription: &mut Subscription) -> Message {
    timeout(PATIENCE, subscription.next()).await.expect("a message comes").expect("the mesh lives")
}

/// Waits until that many nodes listen.
pub async fn listened_by(publisher: &Publisher, count: usize) {
    assert!(publisher.wait_for_listeners(count, PATIENCE).await >= count, "{count} listen to {}", publisher.topic());
}
