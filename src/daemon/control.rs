//! The local socket's server: one session per client. Whatever a client does, it does to itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, warn};

use crate::RotationError;
use crate::config::Loaded;
use crate::mesh::{Message, NodeId, PeerId, Status};
use crate::node::{
    Events, ListenError, ListenOptions, Node, Overflow, PingError, SendError, SendOptions, Subscription,
};
use crate::socket::{BlockReader, SocketError};
use crate::wire::control::{
    self as wire, Answer, Call, Delivery, Failure, FailureKind, Listen, Reply, Request, Secret, Welcome,
};

/// What all sessions share.
#[derive(Debug)]
pub(super) struct Server {
    node: Node,
    welcome: Welcome,
    /// Key, value, source.
    settings: Vec<(String, String, String)>,
    limits: ListenOptions,
    max_block: usize,
    stop: CancellationToken,
}

impl Server {
    pub(super) fn new(node: Node, loaded: &Loaded, stop: CancellationToken, status: &Status) -> Self {
        let limits = &loaded.config.limits;
        Self {
            node,
            welcome: Welcome {
                version: wire::VERSION,
                software: status.version.clone(),
                mesh: status.mesh.clone(),
                peer: status.peer,
                pid: std::process::id(),
            },
            settings: loaded.settings.iter().cloned().map(|one| (one.key, one.value, one.source)).collect(),
            limits: ListenOptions {
                messages: limits.subscription_messages.get(),
                bytes: limits.subscription_bytes.get(),
                ..ListenOptions::default()
            },
            max_block: limits.message_bytes.get() + wire::BLOCK_OVERHEAD,
            stop,
        }
    }
}

/// Serves clients until told to stop; then tells them, and ends when they are gone.
pub(super) async fn serve(server: Arc<Server>, listener: UnixListener) {
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            () = server.stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let room = sessions.len() < MAX_CLIENTS;
                    sessions.spawn(session(Arc::clone(&server), stream, room));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: clients that go will free some. Spinning helps nobody.
                    warn!(%error, "cannot accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = sessions.join_next() => watch_for_panic(ended),
        }
    }
    drop(listener);
    while let Some(ended) = sessions.join_next().await {
        watch_for_panic(ended);
    }
}

fn watch_for_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a client's session panicked; the others go on");
    }
}

/// One client, from hello to goodbye.
async fn session(server: Arc<Server>, stream: UnixStream, room: bool) {
    let (from, to) = stream.into_split();
    let (outbox, writer) = Outbox::open(to);
    let stop = server.stop.clone();
    let mut session = Session::new(server, outbox.clone());
    let goodbye = tokio::select! {
        () = stop.cancelled() => Some(stopping()),
        () = outbox.queue.closed() => None,
        goodbye = session.run(from, room) => goodbye,
    };
    // Subscriptions and the node end here; what they had queued for the client still goes out.
    drop(session);
    let last_words = async {
        if let Some(failure) = goodbye {
            debug!(%failure, "ending a client's session");
            let _ = outbox.push(&Answer::Goodbye(failure)).await; // It may be gone itself.
        }
        drop(outbox);
        let _ = writer.await; // Likewise.
    };
    if timeout(GOODBYE, last_words).await.is_err() {
        debug!("a client did not read its last messages");
    }
}

struct Session {
    server: Arc<Server>,
    outbox: Outbox,
    /// What the client named itself, once it did.
    node: Option<Node>,
    subscriptions: HashMap<u64, AbortOnDropHandle<()>>,
    next_subscription: u64,
    watching: Option<AbortOnDropHandle<()>>,
    /// Requests that wait for others, at most [`MAX_WAITING`].
    waiting: JoinSet<()>,
}

impl Session {
    fn new(server: Arc<Server>, outbox: Outbox) -> Self {
        Self {
            server,
            outbox,
            node: None,
            subscriptions: HashMap::new(),
            next_subscription: 0,
            watching: None,
            waiting: JoinSet::new(),
        }
    }

    /// Answers requests until the client goes, or is sent away with a goodbye.
    async fn run(&mut self, from: OwnedReadHalf, room: bool) -> Option<Failure> {
        if !room {
            return Some(Failure::new(FailureKind::Refused, format!("{MAX_CLIENTS} programs are attached already")));
        }
        let mut reader = BlockReader::new(from, wire::MAX_HELLO);
        let hello = match reader.next().await {
            Ok(hello) => hello?,
            Err(error) => return Some(misunderstood(&error, NOT_OURS)),
        };
        if let Err(goodbye) = self.greet(hello).await {
            return goodbye;
        }
        reader.set_max(self.server.max_block);
        loop {
            match reader.next().await {
                Ok(Some(call)) => self.handle(call).await.ok()?,
                Ok(None) => return None,
                Err(SocketError::Io(_)) => return None,
                Err(error @ SocketError::TooLong(_)) => return Some(misunderstood(&error, TOO_LARGE)),
                Err(error) => return Some(misunderstood(&error, NOT_OURS)),
            }
        }
    }

    async fn greet(&self, Call { id, request }: Call) -> Result<(), Option<Failure>> {
        let Request::Hello { version } = request else {
            return Err(Some(Failure::new(FailureKind::Usage, "the first request says hello")));
        };
        if version != wire::VERSION {
            let software = &self.server.welcome.software;
            let message = format!(
                "the daemon (meshd {software}) speaks version {} of the local protocol, not {version}",
                wire::VERSION
            );
            let failure = Failure::new(FailureKind::Refused, message);
            return Err(Some(failure.hint("restart the daemon, so that both are of one version")));
        }
        let welcome = Reply::Welcome(self.server.welcome.clone());
        self.outbox.reply(id, Ok(welcome)).await.map_err(|Gone| None)
    }

    /// Does what is asked and answers, except that what waits for others is answered when it is done.
    async fn handle(&mut self, Call { id, request }: Call) -> Result<(), Gone> {
        let node = &self.server.node;
        let answer = match request {
            Request::Hello { .. } => Err(Failure::new(FailureKind::Usage, "hello was said already")),
            Request::Status => node.status().await.map(Reply::Status).map_err(|_| stopping()),
            Request::Peers => node.peers().await.map(Reply::Peers).map_err(|_| stopping()),
            Request::Nodes => Ok(Reply::Nodes(node.nodes())),
            Request::Topics => Ok(Reply::Topics(node.topics())),
            Request::Keys => node.keys().await.map(Reply::Keys).map_err(|_| stopping()),
            Request::Config => Ok(Reply::Config(self.server.settings.clone())),
            Request::Attach { name } => self.attach(name).await,
            Request::Listen(listen) => return self.listen(id, listen).await,
            Request::Unlisten { subscription } => self.unlisten(subscription).await,
            // In this task: what a client sends goes out in the order in which it was sent.
            Request::Send(send) => self.send(send).await,
            Request::Watch => return self.watch(id).await,
            Request::Rotate { .. } | Request::Invite | Request::Ping { .. } | Request::WaitForListeners { .. } => {
                self.wait(id, request).await;
                return Ok(());
            }
        };
        self.outbox.reply(id, answer).await
    }

    async fn attach(&mut self, name: String) -> Result<Reply, Failure> {
        if self.node.is_some() {
            return Err(Failure::new(FailureKind::Usage, "this connection is a node already")
                .hint("open a connection for each node"));
        }
        let node = self.server.node.sibling(name).await.map_err(listen_failure)?;
        let id = node.id();
        self.node = Some(node);
        Ok(Reply::Attached { node: id })
    }

    async fn listen(&mut self, id: u64, listen: Listen) -> Result<(), Gone> {
        let Some(node) = &self.node else {
            let failure = Failure::new(FailureKind::Usage, "only a node listens").hint("attach first");
            return self.outbox.reply(id, Err(failure)).await;
        };
        let limits = &self.server.limits;
        let options = ListenOptions {
            messages: listen.messages.unwrap_or(usize::MAX).clamp(1, limits.messages),
            bytes: listen.bytes.unwrap_or(usize::MAX).clamp(1, limits.bytes),
            overflow: overflow(listen.overflow),
            ..ListenOptions::default()
        };
        let messages = match node.listen_with(&listen.filter, options).await {
            Ok(messages) => messages,
            Err(error) => return self.outbox.reply(id, Err(listen_failure(error))).await,
        };
        let subscription = self.next_subscription;
        self.next_subscription += 1;
        // The client hears of the subscription before it hears from it.
        self.outbox.reply(id, Ok(Reply::Listening { subscription })).await?;
        let forwarder = tokio::spawn(forward(messages, subscription, self.outbox.clone()));
        self.subscriptions.insert(subscription, AbortOnDropHandle::new(forwarder));
        Ok(())
    }

    async fn unlisten(&mut self, subscription: u64) -> Result<Reply, Failure> {
        let Some(forwarder) = self.subscriptions.remove(&subscription) else {
            return Err(Failure::new(FailureKind::Usage, format!("there is no subscription {subscription}")));
        };
        forwarder.abort();
        // When it has ended, nothing more can come behind the reply.
        let _ = forwarder.await;
        Ok(Reply::Done)
    }

    async fn send(&self, send: wire::Send) -> Result<Reply, Failure> {
        let node = self.node.as_ref().unwrap_or(&self.server.node);
        let options = SendOptions { target: send.target, timeout: send.timeout, ..SendOptions::default() };
        let report = node.publish(&send.topic, send.codec, send.payload, &options).await;
        report.map(Reply::Sent).map_err(send_failure)
    }

    async fn watch(&mut self, id: u64) -> Result<(), Gone> {
        let events = self.server.node.events();
        self.outbox.reply(id, Ok(Reply::Done)).await?;
        self.watching = Some(AbortOnDropHandle::new(tokio::spawn(forward_events(events, self.outbox.clone()))));
        Ok(())
    }

    /// Does in a task of its own what may take its time. A client that asks too much at once waits for itself.
    async fn wait(&mut self, id: u64, request: Request) {
        while self.waiting.try_join_next().is_some() {}
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.join_next().await;
        }
        let (node, outbox) = (self.server.node.clone(), self.outbox.clone());
        self.waiting.spawn(async move {
            let answer = patient(&node, request).await;
            let _ = outbox.reply(id, answer).await; // A client that is gone needs no reply.
        });
    }
}

/// The requests that wait for others.
async fn patient(node: &Node, request: Request) -> Result<Reply, Failure> {
    match request {
        Request::Rotate { grace, without } => {
            node.rotate_key(grace, &without).await.map(Reply::Keys).map_err(rotate_failure)
        }
        Request::Invite => {
            let ticket = node.invite().await.map_err(|_| stopping())?;
            Ok(Reply::Ticket(Secret::new(ticket.encode())))
        }
        Request::Ping { target, timeout } => {
            let peer = find_peer(node, &target).ok_or_else(|| nobody(&target))?;
            match node.ping(peer, timeout).await {
                Ok(rtt) => Ok(Reply::Pong { peer, rtt_us: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX) }),
                Err(error @ PingError::NotLinked(_)) => {
                    Err(Failure::new(FailureKind::NobodyThere, error).hint(SEE_NODES))
                }
                Err(PingError::TimedOut(_)) => {
                    let message = format!("no answer from {target} within {}", humantime::format_duration(timeout));
                    let hint = "see whether it is still linked with: meshd peers";
                    Err(Failure::new(FailureKind::TimedOut, message).hint(hint))
                }
            }
        }
        Request::WaitForListeners { topic, count, timeout } => {
            let publisher = node.publisher(&topic).map_err(send_failure)?;
            Ok(Reply::Listeners(publisher.wait_for_listeners(count, timeout).await))
        }
        other => Err(Failure::new(FailureKind::Usage, format!("{other:?} does not wait"))),
    }
}

/// The peer that is meant by its id, by the id or name of one of its nodes, or by the end of its id that lists show.
fn find_peer(node: &Node, target: &str) -> Option<PeerId> {
    let by_id = target.parse::<PeerId>().ok().or_else(|| target.parse::<NodeId>().ok().map(|node| node.peer));
    by_id.or_else(|| {
        let nodes = node.nodes();
        let named = nodes.iter().find(|node| node.name.as_str() == target);
        named.or_else(|| nodes.iter().find(|node| node.id.peer.short() == target)).map(|node| node.id.peer)
    })
}

async fn forward(mut messages: Subscription, subscription: u64, outbox: Outbox) {
    while let Some(message) = messages.next().await {
        if outbox.push(&Answer::Message(delivery(subscription, message))).await.is_err() {
            return;
        }
    }
}

async fn forward_events(mut events: Events, outbox: Outbox) {
    while let Some(event) = events.next().await {
        let answer = event.map_or_else(Answer::EventsMissed, Answer::Event);
        if outbox.push(&answer).await.is_err() {
            return;
        }
    }
}

fn delivery(subscription: u64, message: Message) -> Delivery {
    let Message { topic, from, from_name, seq, codec, payload, lagged, .. } = message;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    Delivery { subscription, topic, from, from_name, seq, codec, payload, lagged, time_us }
}

/// What waits to be written to one client. When it is full, who has something to say waits: a forwarder, whose
/// subscription then overflows by its own policy, or the session itself.
#[derive(Clone, Debug)]
struct Outbox {
    queue: mpsc::Sender<(Bytes, OwnedSemaphorePermit)>,
    budget: Arc<Semaphore>,
}

/// The client reads no more.
#[derive(Debug)]
struct Gone;

impl Outbox {
    /// The outbox, and the task that empties it, which ends when all handles of the outbox are gone.
    fn open(to: OwnedWriteHalf) -> (Self, AbortOnDropHandle<()>) {
        let (queue, blocks) = mpsc::channel(OUTBOX_BLOCKS);
        let writer = tokio::spawn(write_blocks(blocks, to));
        (Self { queue, budget: Arc::new(Semaphore::new(OUTBOX_BYTES)) }, AbortOnDropHandle::new(writer))
    }

    async fn reply(&self, id: u64, answer: Result<Reply, Failure>) -> Result<(), Gone> {
        let answer = match answer {
            Ok(reply) => Answer::Reply { id, reply },
            Err(failure) => Answer::Failed { id, failure },
        };
        self.push(&answer).await
    }

    async fn push(&self, answer: &Answer) -> Result<(), Gone> {
        let block = match wire::encode(answer) {
            Ok(block) => block,
            Err(error) => {
                // The limits of messages and records are far lower.
                warn!(%error, "an answer was not sent");
                return Ok(());
            }
        };
        let cost = u32::try_from(block.len().min(OUTBOX_BYTES)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget).acquire_many_owned(cost).await.map_err(|_| Gone)?;
        self.queue.send((block, permit)).await.map_err(|_| Gone)
    }
}

/// Writes blocks, small ones many at a time.
async fn write_blocks(mut blocks: mpsc::Receiver<(Bytes, OwnedSemaphorePermit)>, mut to: OwnedWriteHalf) {
    let (mut batch, mut joined) = (Vec::new(), Vec::with_capacity(JOIN_BYTES));
    while blocks.recv_many(&mut batch, OUTBOX_BLOCKS).await > 0 {
        for (block, permit) in batch.drain(..) {
            if joined.len() + block.len() > JOIN_BYTES && !flush(&mut joined, &mut to).await {
                return;
            }
            if block.len() > JOIN_BYTES {
                if to.write_all(&block).await.is_err() {
                    return;
                }
            } else {
                joined.extend_from_slice(&block);
            }
            drop(permit);
        }
        if !flush(&mut joined, &mut to).await {
            return;
        }
    }
    let _ = to.shutdown().await; // It is being dropped anyway.
}

/// False if the client is gone.
async fn flush(joined: &mut Vec<u8>, to: &mut OwnedWriteHalf) -> bool {
    let written = to.write_all(joined).await;
    joined.clear();
    written.is_ok()
}

fn overflow(wanted: wire::Overflow) -> Overflow {
    match wanted {
        wire::Overflow::DropOldest => Overflow::DropOldest,
        wire::Overflow::DropNewest => Overflow::DropNewest,
        wire::Overflow::Block => Overflow::Block,
    }
}

fn stopping() -> Failure {
    Failure::new(FailureKind::Stopping, "the daemon is stopping").hint("start it again with: meshd run")
}

fn misunderstood(error: &SocketError, hint: &str) -> Failure {
    let kind = if matches!(error, SocketError::TooLong(_)) { FailureKind::Refused } else { FailureKind::Usage };
    Failure::new(kind, error).hint(hint)
}

fn nobody(target: &str) -> Failure {
    Failure::new(FailureKind::NobodyThere, format!("there is no peer or node {target}")).hint(SEE_NODES)
}

fn listen_failure(error: ListenError) -> Failure {
    match error {
        ListenError::Name(error) => Failure::new(FailureKind::Usage, error),
        ListenError::Limit(error) => Failure::new(FailureKind::Refused, error),
        ListenError::Closed(_) => stopping(),
    }
}

fn send_failure(error: SendError) -> Failure {
    match error {
        SendError::Topic(error) => Failure::new(FailureKind::Usage, error),
        SendError::TooLarge { .. } => Failure::new(FailureKind::Refused, error).hint(TOO_LARGE),
        SendError::Closed => stopping(),
        SendError::Encode(_) => Failure::new(FailureKind::Failed, error),
    }
}

fn rotate_failure(error: RotationError) -> Failure {
    let kind = match error {
        RotationError::Closed => return stopping(),
        RotationError::Refused(_) | RotationError::Oneself => FailureKind::Refused,
        RotationError::Keys(_) | RotationError::NoHome => FailureKind::Failed,
    };
    Failure { hint: error.hint(), ..Failure::new(kind, error) }
}

const SEE_NODES: &str = "see who is there with: meshd nodes";
const NOT_OURS: &str = "docs/LOCAL.md describes what the daemon understands";
const TOO_LARGE: &str = "send less at once, or raise limits.message_bytes in config.toml on both sides";
/// Programs attached at once: each may hold an outbox and a node.
const MAX_CLIENTS: usize = 1024;
/// Requests of one client that wait for others at once.
const MAX_WAITING: usize = 64;
/// Blocks waiting to be written to one client.
const OUTBOX_BLOCKS: usize = 256;
/// Bytes waiting to be written to one client. A larger block waits until it has the outbox for itself.
const OUTBOX_BYTES: usize = 1024 * 1024;
/// Bytes up to which blocks are joined into one write: beyond that, copying costs more than another call.
const JOIN_BYTES: usize = 32 * 1024;
/// How long a client may take to read its last messages.
const GOODBYE: Duration = Duration::from_secs(1);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::wire::control::decode;

    fn message(len: usize) -> Answer {
        Answer::Message(Delivery {
            subscription: 0,
            topic: crate::mesh::Topic::new("a").expect("a topic"),
            from: NodeId { peer: PeerId::from_bytes([1; 32]), index: 0 },
            from_name: crate::mesh::NodeName::new("n").expect("a name"),
            seq: 1,
            codec: crate::mesh::Codec::Bytes,
            payload: Bytes::from(vec![0; len]),
            lagged: 0,
            time_us: 0,
        })
    }

    /// Whether there is room for one more, now that all others had their turns.
    async fn takes(outbox: &Outbox, answer: &Answer) -> bool {
        let mut push = Box::pin(outbox.push(answer));
        for _ in 0..TURNS {
            if let Some(pushed) = (&mut push).now_or_never() {
                return pushed.is_ok();
            }
            tokio::task::yield_now().await;
        }
        false
    }
    const TURNS: usize = 1000;

    #[tokio::test]
    async fn an_outbox_that_is_not_read_fills_up_and_goes_on_when_it_is_read() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (_from, to) = near.into_split();
        let (outbox, writer) = Outbox::open(to);
        let mut pushed = 0;
        while takes(&outbox, &message(100_000)).await {
            pushed += 1;
            assert!(pushed < 100, "the outbox has no end");
        }
        assert!(pushed >= OUTBOX_BYTES / 200_000, "{pushed}");

        drop(outbox);
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        writer.await.unwrap();
        let block = wire::encode(&message(100_000)).unwrap();
        assert_eq!(read.len(), pushed * block.len());
        assert_eq!(decode::<Answer>(&read[4..block.len()]).unwrap(), message(100_000));
    }

    #[tokio::test]
    async fn blocks_of_all_sizes_go_out_in_order() {
        let (near, far) = UnixStream::pair().unwrap();
        let (_from, to) = near.into_split();
        let (outbox, writer) = Outbox::open(to);
        let sizes = [0, 1, JOIN_BYTES - 1, JOIN_BYTES, 10, 2 * OUTBOX_BYTES, 3, 4];
        let reading = tokio::spawn(async move {
            let (from, _to) = far.into_split();
            let mut reader = BlockReader::new(from, wire::MAX_BLOCK);
            let mut read = Vec::new();
            while let Some(answer) = reader.next::<Answer>().await.unwrap() {
                let Answer::Message(delivery) = answer else { panic!("{answer:?}") };
                read.push(delivery.payload.len());
            }
            read
        });
        for size in sizes {
            outbox.push(&message(size)).await.unwrap();
        }
        drop(outbox);
        writer.await.unwrap();
        assert_eq!(reading.await.unwrap(), sizes);
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_noticed() {
        let (near, far) = UnixStream::pair().unwrap();
        let (_from, to) = near.into_split();
        let (outbox, _writer) = Outbox::open(to);
        drop(far);
        while outbox.push(&message(10)).await.is_ok() {}
        outbox.queue.closed().await;
    }
}
