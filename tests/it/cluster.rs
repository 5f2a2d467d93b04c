//! Peers of one mesh, in this process, on loopback, apart from everything else on the machine.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Once;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meshd::{
    Builder, Codec, Event, Events, Message, NetworkKey, Node, Publisher, SendOptions, Subscription, Target, What,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::time::timeout;

/// How long anything may take that should take milliseconds: for machines that are busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A mesh to start peers in.
pub(crate) struct Cluster {
    pub(crate) key: NetworkKey,
    runtime: TempDir,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        // To see what peers do: MESHD_TEST_LOG=debug cargo test NAME
        if let Some(level) = std::env::var("MESHD_TEST_LOG").ok().and_then(|level| level.parse::<tracing::Level>().ok())
        {
            let _ = tracing_subscriber::fmt().with_max_level(level).with_test_writer().try_init();
        }
        allow_many_files();
        Self { key: NetworkKey::generate(), runtime: TempDir::new().unwrap() }
    }

    /// Where peers of this host meet. They make it for themselves, closed to others.
    pub(crate) fn runtime(&self) -> PathBuf {
        self.runtime.path().join("run")
    }

    pub(crate) fn builder(&self, name: &str) -> Builder {
        Node::builder(name)
            .mesh(MESH)
            .key(self.key.clone())
            .listen(["127.0.0.1:0"])
            .runtime_dir(self.runtime())
            .mdns(false)
    }

    /// A node in a peer of its own.
    pub(crate) async fn start(&self, name: &str) -> Node {
        self.builder(name).start().await.unwrap()
    }

    /// Nodes in peers of their own that all see each other.
    pub(crate) async fn start_all<const N: usize>(&self, names: [&str; N]) -> [Node; N] {
        let mut nodes = Vec::new();
        for name in names {
            nodes.push(self.start(name).await);
        }
        see_each_other(&nodes).await;
        nodes.try_into().unwrap()
    }
}

/// All peers of a test are in one process: a full mesh of 30 has 870 sockets, more than some systems allow at first.
fn allow_many_files() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    });
}

/// Waits until every node sees at least as many nodes as there are here.
pub(crate) async fn see_each_other(nodes: &[Node]) {
    for node in nodes {
        until("all nodes are seen", async || node.nodes().len() >= nodes.len()).await;
    }
}

/// Waits until something is so, looking again whenever a little time has passed.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await; // looks again; the deadline is PATIENCE
        }
    };
    within(what, wait).await;
}

/// Watches that something stays so for that long: what must not happen has no event to wait for.
pub(crate) async fn stays(span: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = now();
    while began.elapsed() < span {
        assert!(holds().await, "after {:?}, no longer: {what}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await; // looks again until the span is over
    }
}

/// What comes of something that takes no longer than [`PATIENCE`].
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// For measuring and for deadlines.
#[expect(clippy::disallowed_methods, reason = "tests measure on the real clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The next message, which has to come.
pub(crate) async fn next(subscription: &mut Subscription) -> Message {
    within("a message comes", subscription.next()).await.expect("the mesh lives")
}

/// Says to everybody that listens to the topic that nothing more comes. What was sent before comes before.
pub(crate) async fn end(publisher: &Publisher) {
    let options = SendOptions { target: Target::All, timeout: Some(PATIENCE), ..SendOptions::default() };
    let report = publisher.publish(Codec::Text, Bytes::from_static(END), &options).await.unwrap();
    assert_eq!(report.dropped, [], "the end reaches everybody");
}

/// All messages up to the [`end`], of one topic.
pub(crate) async fn to_the_end(subscription: &mut Subscription) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        let message = next(subscription).await;
        if message.payload == END {
            return messages;
        }
        messages.push(message);
    }
}

/// Waits until that many nodes listen.
pub(crate) async fn listened_by(publisher: &Publisher, count: usize) {
    assert!(publisher.wait_for_listeners(count, PATIENCE).await >= count, "{count} listen to {}", publisher.topic());
}

/// Where a node's peer listens, as a multiaddress.
pub(crate) async fn address(node: &Node) -> String {
    until("it listens", async || !node.status().await.unwrap().addresses.is_empty()).await;
    node.status().await.unwrap().addresses.remove(0)
}

/// Waits for something to happen, and gives when it did.
pub(crate) async fn happens(events: &mut Events, what: &str, mut wanted: impl FnMut(&What) -> bool) -> Event {
    let find = async {
        loop {
            let event = events.next().await.expect("the mesh lives").expect("no event is missed");
            if wanted(&event.what) {
                return event;
            }
        }
    };
    within(what, find).await
}

/// The mesh of all clusters. What keeps them apart is the key.
pub(crate) const MESH: &str = "default";
const END: &[u8] = b"the end";
