//! One client of the local socket: what it asks, and what it is told.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::poll;
use tokio::net::unix::OwnedReadHalf;
use tokio_util::task::AbortOnDropHandle;

use super::control::{MAX_CLIENTS, Server};
use super::errands::{Errands, patient};
use super::failures::{NOT_OURS, TOO_LARGE, listen_failure, misunderstood, send_failure, stopping};
use super::offers::Offers;
use super::outbox::{Gone, Outbox};
use crate::mesh::{self, Message};
use crate::node::{Events, ListenOptions, Node, Overflow, SendOptions, Subscription};
use crate::socket::{BlockReader, SocketError};
use crate::wire::control::{self as wire, Answer, Delivery, Failure, FailureKind, Listen, Question, Reply, Request};

/// One client and what it has: a node, subscriptions, services, requests that wait.
pub(super) struct Session {
    server: Arc<Server>,
    outbox: Outbox,
    /// What the client named itself, once it did.
    node: Option<Node>,
    subscriptions: HashMap<u64, AbortOnDropHandle<()>>,
    next_subscription: u64,
    watching: Option<AbortOnDropHandle<()>>,
    offers: Offers,
    errands: Errands,
}

impl Session {
    pub(super) fn new(server: Arc<Server>, outbox: Outbox) -> Self {
        let offers = Offers::new(outbox.clone());
        Self {
            server,
            outbox,
            node: None,
            subscriptions: HashMap::new(),
            next_subscription: 0,
            watching: None,
            offers,
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
            | Request::Services => return self.wait(id, request).await,
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
        let options = SendOptions { target: send.target, timeout: send.timeout, ..SendOptions::default() };
        let report = self.oneself().publish(&send.topic, send.codec, send.payload, &options).await;
        report.map(Reply::Sent).map_err(send_failure)
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

    async fn unserve(&mut self, id: u64, serving: u64, drain: bool) -> Result<(), Gone> {
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

fn overflow(wanted: wire::Overflow) -> Overflow {
    match wanted {
        wire::Overflow::DropOldest => Overflow::DropOldest,
        wire::Overflow::DropNewest => Overflow::DropNewest,
        wire::Overflow::Block => Overflow::Block,
    }
}
