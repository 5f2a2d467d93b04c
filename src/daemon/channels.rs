//! The channels of one client: what is said to it is handed over, and what it says goes out in order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use super::errands::{MAX_WAITING, callee};
use super::failures::{adopt_failure, channel_failure, open_failure};
use super::outbox::{Gone, Outbox};
use crate::mesh::{self, Item, NodeId, NodeName};
use crate::node::{Acceptor, Channel, ChannelHandle, Node, OpenOptions, ServeOptions};
use crate::wire::control::{self as wire, Answer, Failure, FailureKind, Incoming, Reply, Secret, Spoken};

/// All channels of one client. When it goes, they close.
pub(super) struct Channels {
    desk: Arc<Desk>,
    accepting: HashMap<u64, Accepting>,
}

/// A service of the client that others open channels to.
pub(super) struct Accepting {
    acceptor: AbortOnDropHandle<()>,
    /// One for each channel that the client may have at a time.
    places: Arc<Semaphore>,
    most: usize,
}

/// What tasks reach the client's channels through.
pub(super) struct Desk {
    outbox: Outbox,
    node: Node,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Talk>,
    /// The client has gone: it gets no more channels.
    closed: bool,
}

/// One channel.
struct Talk {
    channel: Channel,
    say: mpsc::Sender<Say>,
    /// Hands over what comes, once the client knows of the channel.
    listener: Option<AbortOnDropHandle<()>>,
    /// Of the service that it belongs to.
    _place: Option<OwnedSemaphorePermit>,
}

/// What a client does in a channel, by request.
struct Say {
    id: u64,
    what: What,
    _place: OwnedSemaphorePermit,
}

pub(super) enum What {
    Item(Item),
    Finish,
    Close(Option<mesh::Failure>),
    HandOver,
}

/// A channel that the client does not know of yet. Closes when dropped.
struct Draft {
    desk: Arc<Desk>,
    number: u64,
    channel: Option<Channel>,
}

impl Channels {
    /// Of a client; the node is any of its process.
    pub(super) fn new(outbox: Outbox, node: Node) -> Self {
        let desk = Desk { outbox, node, table: Mutex::default() };
        Self { desk: Arc::new(desk), accepting: HashMap::new() }
    }

    pub(super) fn desk(&self) -> Arc<Desk> {
        Arc::clone(&self.desk)
    }

    /// Hands channels that others open to a service to the client, a few at a time.
    pub(super) fn accept(&mut self, serving: u64, acceptor: Acceptor, concurrency: Option<usize>) {
        let most = concurrency.unwrap_or_else(|| ServeOptions::default().concurrency).clamp(1, MAX_CHANNELS);
        let places = Arc::new(Semaphore::new(most));
        let task = tokio::spawn(accept(acceptor, serving, Arc::downgrade(&self.desk), Arc::clone(&places)));
        self.accepting.insert(serving, Accepting { acceptor: AbortOnDropHandle::new(task), places, most });
    }

    pub(super) fn remove(&mut self, serving: u64) -> Option<Accepting> {
        self.accepting.remove(&serving)
    }

    /// Lets a request have its turn in a channel: it is answered when it is done.
    pub(super) fn say(&self, id: u64, channel: u64, what: What, place: OwnedSemaphorePermit) -> Result<(), Failure> {
        let table = self.desk.table();
        let over = || match channel < table.next {
            true => Failure::new(FailureKind::Failed, "the channel is closed"),
            false => Failure::new(FailureKind::Usage, format!("there is no channel {channel}")),
        };
        let talk = table.open.get(&channel).ok_or_else(over)?;
        // Never full: each of them holds a place.
        talk.say.try_send(Say { id, what, _place: place }).map_err(|_| over())
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        let open = {
            let mut table = self.desk.table();
            table.closed = true;
            std::mem::take(&mut table.open)
        };
        for talk in open.into_values() {
            talk.channel.close_with(gone());
        }
    }
}

impl Accepting {
    /// Accepts no more: when this is done, the service can be offered anew.
    pub(super) async fn end(self) -> Drained {
        self.acceptor.abort();
        let _ = self.acceptor.await; // ended, one way or the other
        Drained { places: self.places, most: self.most }
    }
}

/// A service that accepts no more.
pub(super) struct Drained {
    places: Arc<Semaphore>,
    most: usize,
}

impl Drained {
    /// Waits until the channels that the client has of it are closed.
    pub(super) async fn closed(self) {
        let most = u32::try_from(self.most).unwrap_or(u32::MAX);
        let _ = self.places.acquire_many(most).await; // never closed
    }
}

impl Desk {
    /// Opens a channel, and tells the client of it.
    pub(super) async fn open(self: Arc<Self>, id: u64, node: Node, open: wire::Open) {
        let opened = async {
            let request = Item { codec: open.codec, payload: open.payload };
            let options = OpenOptions { callee: callee(&open.callee)?, timeout: open.timeout, request };
            node.open_with(&open.service, options).await.map_err(open_failure)
        };
        self.tell_opened(id, opened.await).await;
    }

    /// Takes over a channel, and tells the client of it.
    pub(super) async fn adopt(self: Arc<Self>, id: u64, node: Node, text: Secret) {
        let adopted = async {
            let bad = || Failure::new(FailureKind::Usage, "this is no handle of a channel");
            let cbor = data_encoding::BASE64URL_NOPAD.decode(text.reveal().as_bytes()).map_err(|_| bad())?;
            let handle: ChannelHandle = wire::decode(&Zeroizing::new(cbor)).map_err(|_| bad())?;
            node.adopt(handle).await.map_err(adopt_failure)
        };
        self.tell_opened(id, adopted.await).await;
    }

    async fn tell_opened(self: Arc<Self>, id: u64, opened: Result<Channel, Failure>) {
        let draft = opened.and_then(|channel| self.register(channel, None));
        let reply = draft.as_ref().map_err(Clone::clone).map(|draft| {
            let node = draft.channel.as_ref().map_or_else(|| self.node.id(), Channel::far);
            Reply::Opened { channel: draft.number, node, name: self.name(node) }
        });
        // If this is taken back meanwhile, or the client is gone, the channel closes.
        if self.outbox.reply(id, reply).await.is_ok()
            && let Ok(draft) = draft
        {
            draft.go(None);
        }
    }

    fn register(self: &Arc<Self>, channel: Channel, place: Option<OwnedSemaphorePermit>) -> Result<Draft, Failure> {
        let mut table = self.table();
        if table.closed || table.open.len() >= MAX_CHANNELS {
            channel.close_with(mesh::Failure::new(mesh::Failure::BUSY, "the program has too many channels"));
            let message = format!("the program has {MAX_CHANNELS} channels");
            return Err(Failure::new(FailureKind::Refused, message).hint("close some first"));
        }
        let number = table.next;
        table.next += 1;
        let (say, said) = mpsc::channel(MAX_WAITING);
        // Ends with the channel's entry in the table, when all that was said is answered.
        tokio::spawn(speak(channel.clone(), said, Arc::downgrade(self), self.outbox.clone()));
        table.open.insert(number, Talk { channel: channel.clone(), say, listener: None, _place: place });
        drop(table);
        Ok(Draft { desk: Arc::clone(self), number, channel: Some(channel) })
    }

    fn name(&self, id: NodeId) -> Option<NodeName> {
        self.node.nodes().into_iter().find(|node| node.id == id).map(|node| node.name)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Draft {
    /// The client knows of the channel, or hears of it by this before it hears from it.
    fn go(mut self, first: Option<Answer>) {
        let Some(channel) = self.channel.take() else { return };
        let mut table = self.desk.table();
        if let Some(talk) = table.open.get_mut(&self.number) {
            let (desk, outbox) = (Arc::downgrade(&self.desk), self.desk.outbox.clone());
            let listener = tokio::spawn(listen(channel, self.number, desk, outbox, first));
            talk.listener = Some(AbortOnDropHandle::new(listener));
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.take() {
            channel.close_with(gone());
            self.desk.table().open.remove(&self.number);
        }
    }
}

async fn accept(mut acceptor: Acceptor, serving: u64, desk: Weak<Desk>, places: Arc<Semaphore>) {
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Some(channel) = acceptor.next().await else { return };
        let Some(desk) = desk.upgrade() else { return };
        let (from, Item { codec, payload }) = (channel.far(), channel.request().cloned().unwrap_or_default());
        if let Ok(draft) = desk.register(channel, Some(place)) {
            let channel = draft.number;
            draft.go(Some(Answer::Incoming(Incoming { serving, channel, from, codec, payload })));
        }
    }
}

/// Says what the client wants to say, one after the other.
async fn speak(channel: Channel, mut said: mpsc::Receiver<Say>, desk: Weak<Desk>, outbox: Outbox) {
    while let Some(Say { id, what, _place }) = said.recv().await {
        let answer = match what {
            What::Item(item) => match channel.send_item(item).await {
                Ok(()) => Ok(Reply::Done),
                Err(error) => Err(channel_failure(error, |id| desk.upgrade()?.name(id))),
            },
            What::Finish => {
                channel.finish();
                Ok(Reply::Done)
            }
            What::Close(failure) => {
                match failure {
                    Some(failure) => channel.close_with(failure),
                    None => channel.close(),
                }
                Ok(Reply::Done)
            }
            What::HandOver => handle_text(&channel.clone().into_handle()),
        };
        if outbox.reply(id, answer).await.is_err() {
            return;
        }
    }
}

fn handle_text(handle: &ChannelHandle) -> Result<Reply, Failure> {
    let mut cbor = Zeroizing::new(Vec::new());
    ciborium::into_writer(handle, &mut *cbor).map_err(|error| Failure::new(FailureKind::Failed, error))?;
    Ok(Reply::Handle(Secret::new(Zeroizing::new(data_encoding::BASE64URL_NOPAD.encode(&cbor)))))
}

/// Hands over what the other end says, one item at a time, and then how it ended: so that end waits when the client does not
/// read.
async fn listen(channel: Channel, number: u64, desk: Weak<Desk>, outbox: Outbox, first: Option<Answer>) {
    let heard = hear(&channel, number, &desk, &outbox, first).await;
    if let (Ok(()), Some(desk)) = (heard, desk.upgrade()) {
        desk.table().open.remove(&number); // the last thing that this task does: it ends with it
    }
}

async fn hear(
    channel: &Channel,
    number: u64,
    desk: &Weak<Desk>,
    outbox: &Outbox,
    first: Option<Answer>,
) -> Result<(), Gone> {
    if let Some(first) = first {
        outbox.push(&first).await?;
    }
    let end = loop {
        match channel.next().await {
            Ok(Some(Item { codec, payload })) => {
                outbox.push(&Answer::Item(Spoken { channel: number, codec, payload })).await?;
            }
            Ok(None) => match channel.closed().now_or_never() {
                Some(end) => break end,
                None => {
                    outbox.push(&Answer::Ended { channel: number }).await?;
                    break channel.closed().await;
                }
            },
            Err(error) => break Err(error),
        }
    };
    let failure = end.err().map(|error| channel_failure(error, |id| desk.upgrade()?.name(id)));
    outbox.push(&Answer::Closed { channel: number, failure }).await
}

/// What the other end is told when the client has gone.
fn gone() -> mesh::Failure {
    mesh::Failure::new(mesh::Failure::DISCONNECTED, "the program that spoke has gone")
}

/// Channels that a client can have at a time.
const MAX_CHANNELS: usize = 1024;
