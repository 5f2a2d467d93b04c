//! One client of the local socket: what it asks, and what it is told.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;

use futures::poll;
use tokio::net::unix::OwnedReadHalf;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::channels::{Channels, What};
use super::control::{MAX_CLIENTS, Server};
use super::errands::{Errands, patient};
use super::failures::{NOT_OURS, TOO_LARGE, call_failure, listen_failure, misunderstood, send_failure, stopping};
use super::halt;
use super::offers::Offers;
use super::outbox::{Gone, Outbox};
use super::subscriptions::Subscriptions;
use crate::mesh::{self, Item, NodeId};
use crate::node::{Events, Node, SendOptions};
use crate::socket::{BlockReader, SocketError};
use crate::wire::control::{self as wire, Answer, Failure, FailureKind, Listen, Question, Reply, Request, Spoken};

/// One client and what it has: a node, subscriptions, services, requests that wait.
pub(super) struct Session {
    server: Arc<Server>,
    outbox: Outbox,
    /// What the client named itself, once it did.
    node: Option<Node>,
    subscriptions: Subscriptions,
    watching: Option<AbortOnDropHandle<()>>,
    offers: Offers,
    channels: Channels,
    errands: Errands,
}

impl Session {
    pub(super) fn new(server: Arc<Server>, outbox: Outbox) -> Self {
        Self {
            node: None,
            subscriptions: Subscriptions::new(outbox.clone()),
            watching: None,
            offers: Offers::new(outbox.clone()),
            channels: Channels::new(outbox.clone(), server.node.clone()),
            server,
            outbox,
            errands: Errands::default(),
        }
    }

    /// Answers requests until the client goes, or is sent away with a goodbye.
    pub(super) async fn run(&mut self, from: OwnedReadHalf, room: bool) -> Option<Failure> {
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
                Ok(Some(question)) => self.handle(question).await.ok()?,
                Ok(None) => return None,
                Err(SocketError::Io(_)) => return None,
                Err(error @ SocketError::TooLong(_)) => return Some(misunderstood(&error, TOO_LARGE)),
                Err(error) => return Some(misunderstood(&error, NOT_OURS)),
            }
        }
    }

    async fn greet(&self, Question { id, request }: Question) -> Result<(), Option<Failure>> {
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
    async fn handle(&mut self, Question { id, request }: Question) -> Result<(), Gone> {
        if self.server.is_draining() && begins_something(&request) {
            return self.outbox.reply(id, Err(stopping())).await;
        }
        let node = &self.server.node;
        let answer = match request {
            Request::Hello { .. } => Err(Failure::new(FailureKind::Usage, "hello was said already")),
            Request::Status => node.status().await.map(Reply::Status).map_err(|_| stopping()),
            Request::Peers => node.peers().await.map(Reply::Peers).map_err(|_| stopping()),
            Request::Nodes => Ok(Reply::Nodes(node.nodes())),
            Request::WhoOffers { service } => self.who_offers(&service),
            Request::Topics => Ok(Reply::Topics(node.topics())),
            Request::Keys => node.keys().await.map(Reply::Keys).map_err(|_| stopping()),
            Request::Config => Ok(Reply::Config(self.server.settings.clone())),
            Request::Attach { name } => self.attach(name).await,
            Request::Listen(listen) => return self.listen(id, listen).await,
            Request::Unlisten { subscription, drain: false } => self.subscriptions.unlisten(subscription).await,
            Request::Unlisten { subscription, drain: true } => match self.subscriptions.drain(subscription) {
                Ok(drained) => {
                    let outbox = self.outbox.clone();
                    let errand = async move {
                        drained.await;
                        let _ = outbox.reply(id, Ok(Reply::Done)).await; // A client that is gone needs no reply.
                    };
                    return self.errands.run(id, errand).await;
                }
                Err(failure) => Err(failure),
            },
            Request::Acknowledge { subscription, acks } => {
                self.subscriptions.acknowledge(subscription, &acks);
                return Ok(());
            }
            Request::Send(send) => return self.send(id, send).await,
            Request::Watch => return self.watch(id).await,
            Request::Serve(serve) => return self.serve(id, serve).await,
            Request::Unserve { serving, drain } => return self.unserve(id, serving, drain).await,
            Request::Answer { call, codec, payload } => {
                self.offers.answer(call, Ok((codec, payload)));
                return Ok(());
            }
            Request::Fail { call, kind, message, causes } => {
                self.offers.answer(call, Err(mesh::Failure { kind, message, causes }));
                return Ok(());
            }
            Request::Item(Spoken { channel, codec, payload }) => {
                return self.say(id, channel, What::Item(Item { codec, payload })).await;
            }
            Request::Finish { channel } => return self.say(id, channel, What::Finish).await,
            Request::CloseChannel { channel, failure } => return self.say(id, channel, What::Close(failure)).await,
            Request::Handle { channel } => return self.say(id, channel, What::HandOver).await,
            Request::Open(open) => {
                let (desk, node) = (self.channels.desk(), self.oneself().clone());
                return self.errands.run(id, desk.open(id, node, open)).await;
            }
            Request::Adopt { handle } => {
                let (desk, node) = (self.channels.desk(), self.oneself().clone());
                return self.errands.run(id, desk.adopt(id, node, handle)).await;
            }
            Request::Stop { target } => {
                let (node, here, wanted) = (self.oneself().clone(), self.server.node.id(), self.server.halt.clone());
                let outbox = self.outbox.clone();
                let errand = async move {
                    let answer = halt::stop(&node, here, target.as_deref()).await;
                    let meant = matches!(&answer, Ok(Reply::Stopping { node, .. }) if node.peer == here.peer);
                    let _ = outbox.reply(id, answer).await; // A client that is gone needs no reply.
                    if meant {
                        info!("a program of this machine wants this daemon to stop");
                        wanted.cancel(); // after the reply: the end comes quickly
                    }
                };
                return self.errands.run(id, errand).await;
            }
            Request::Cancel { id } => {
                self.errands.cancel(id).await;
                Ok(Reply::Done)
            }
            Request::Rotate { .. }
            | Request::Invite
            | Request::Ping { .. }
            | Request::WaitForListeners { .. }
            | Request::Call(_)
            | Request::CallAll(_)
            | Request::WaitForProviders { .. }
            | Request::Services
            | Request::Shares { .. }
            | Request::Files(_)
            | Request::Transfer(_) => return self.wait(id, request).await,
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
        self.subscriptions.listen(id, node, listen, &self.server.limits).await
    }

    /// Sends, in this task: what a client sends goes out in the order in which it was sent. That it is acknowledged is waited
    /// for elsewhere.
    async fn send(&mut self, id: u64, send: wire::Send) -> Result<(), Gone> {
        let wire::Send { topic, codec, payload, target, timeout, acked, redeliver, ttl, key, retain } = send;
        let options = SendOptions { target, timeout, key, acked, redeliver, ttl };
        let publisher = match self.oneself().publisher(&topic) {
            Ok(publisher) => publisher,
            Err(error) => return self.outbox.reply(id, Err(send_failure(error))).await,
        };
        if let Some(retain) = retain {
            publisher.retain(retain); // the node has it for as long as it lives
        }
        if !(acked || redeliver) {
            let report = publisher.publish(codec, payload, &options).await;
            return self.outbox.reply(id, report.map(Reply::Sent).map_err(send_failure)).await;
        }
        match publisher.submit(codec, payload, &options).await {
            Ok(receipt) => {
                let outbox = self.outbox.clone();
                let errand = async move {
                    let _ = outbox.reply(id, Ok(Reply::Sent(receipt.await))).await; // A client that is gone needs no reply.
                };
                self.errands.run(id, errand).await
            }
            Err(error) => self.outbox.reply(id, Err(send_failure(error))).await,
        }
    }

    fn who_offers(&self, service: &str) -> Result<Reply, Failure> {
        let service = self.oneself().service(service).map_err(|error| call_failure(error, &[]))?;
        let providers: HashSet<NodeId> = service.providers().into_iter().map(|(node, _)| node).collect();
        let nodes = self.server.node.nodes();
        Ok(Reply::Nodes(nodes.into_iter().filter(|node| providers.contains(&node.id)).collect()))
    }

    async fn watch(&mut self, id: u64) -> Result<(), Gone> {
        let events = self.server.node.events();
        self.outbox.reply(id, Ok(Reply::Done)).await?;
        self.watching = Some(AbortOnDropHandle::new(tokio::spawn(forward_events(events, self.outbox.clone()))));
        Ok(())
    }

    /// What the client is: its node, else the daemon's own.
    fn oneself(&self) -> &Node {
        self.node.as_ref().unwrap_or(&self.server.node)
    }

    /// Does in a task of its own what may take its time.
    async fn wait(&mut self, id: u64, request: Request) -> Result<(), Gone> {
        let (node, outbox) = (self.oneself().clone(), self.outbox.clone());
        self.errands
            .run(id, async move {
                let answer = patient(&node, id, request, &outbox).await;
                let _ = outbox.reply(id, answer).await; // A client that is gone needs no reply.
            })
            .await
    }

    async fn serve(&mut self, id: u64, serve: wire::Serve) -> Result<(), Gone> {
        let Some(node) = &self.node else {
            let failure = Failure::new(FailureKind::Usage, "only a node serves").hint("attach first");
            return self.outbox.reply(id, Err(failure)).await;
        };
        if serve.channels {
            return match node.accept(&serve.service).await {
                Ok(acceptor) => {
                    let serving = self.offers.number();
                    self.outbox.reply(id, Ok(Reply::Serving { serving })).await?;
                    self.channels.accept(serving, acceptor, serve.concurrency);
                    Ok(())
                }
                Err(error) => self.outbox.reply(id, Err(listen_failure(error))).await,
            };
        }
        match self.offers.offer(node, serve).await {
            Ok(offer) => {
                // The client hears of the service before it is called.
                let serving = offer.number();
                self.outbox.reply(id, Ok(Reply::Serving { serving })).await?;
                self.offers.open(offer);
                Ok(())
            }
            Err(error) => self.outbox.reply(id, Err(listen_failure(error))).await,
        }
    }

    /// Lets a request have its turn in a channel.
    async fn say(&mut self, id: u64, channel: u64, what: What) -> Result<(), Gone> {
        let place = self.errands.place().await?;
        match self.channels.say(id, channel, what, place) {
            Ok(()) => Ok(()), // answered in its turn
            Err(failure) => self.outbox.reply(id, Err(failure)).await,
        }
    }

    async fn unserve(&mut self, id: u64, serving: u64, drain: bool) -> Result<(), Gone> {
        if let Some(accepting) = self.channels.remove(serving) {
            let (drained, outbox) = (accepting.end().await, self.outbox.clone());
            let errand = async move {
                if drain {
                    drained.closed().await;
                }
                let _ = outbox.reply(id, Ok(Reply::Done)).await; // A client that is gone needs no reply.
            };
            return self.errands.run(id, errand).await;
        }
        let Some(offer) = self.offers.remove(serving) else {
            let failure = Failure::new(FailureKind::Usage, format!("there is no service {serving}"));
            return self.outbox.reply(id, Err(failure)).await;
        };
        if !drain {
            offer.turn_away();
        }
        let outbox = self.outbox.clone();
        let errand = async move {
            let mut drained = pin!(offer.drain());
            // Begins at once: when the client is told, the service can be offered anew.
            let ended = poll!(drained.as_mut()).is_ready();
            if drain && !ended {
                drained.as_mut().await;
            }
            let _ = outbox.reply(id, Ok(Reply::Done)).await; // A client that is gone needs no reply.
            if !drain && !ended {
                drained.await; // what runs can still be cancelled
            }
        };
        self.errands.run(id, errand).await
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

/// What a daemon that is about to leave does not begin any more.
fn begins_something(request: &Request) -> bool {
    matches!(
        request,
        Request::Attach { .. }
            | Request::Listen(_)
            | Request::Send(_)
            | Request::Serve(_)
            | Request::Call(_)
            | Request::CallAll(_)
            | Request::Open(_)
            | Request::Adopt { .. }
            | Request::Files(_)
            | Request::Transfer(_)
            | Request::WaitForListeners { .. }
            | Request::WaitForProviders { .. }
    )
}
