//! What nodes do together, one thing a file, both halves in it. Knows links, not what carries them.
//!
//! | frame | protocol |
//! |---|---|
//! | topic, node, message | [`pubsub`] sends to groups of listeners, [`arrivals`] receives, [`subscription`] holds what arrived |
//! | ack | [`delivery`]: what became of messages, and what goes out again; [`pubsub::receipt`]: what the sender learns of it |
//! | call, cancel | [`services`]: what this peer's nodes offer |
//! | answer | [`calls`]: what this peer's nodes have asked |
//! | those of channels | [`channel`]: two nodes that speak with each other for as long as they like |
//! | ping, pong | [`ping`]: the round trip of a link |
//! | came | the link itself |
//! | refused | [`guard`]: what rules do not let a peer do |

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

pub(crate) mod arrivals;
pub(crate) mod calls;
pub(crate) mod channel;
pub(crate) mod delivery;
pub(crate) mod guard;
pub(crate) mod ping;
pub(crate) mod pubsub;
pub(crate) mod services;
pub(crate) mod subscription;

use self::arrivals::Arrivals;
use self::calls::{Calls, Pending};
use self::channel::{Channels, Ends};
use self::guard::Guard;
use self::pubsub::PubSub;
use self::services::{Callers, Services};
use crate::mesh::{Action, Identity, PeerId, Topic};
use crate::net::{Carried, Link, Receive};
use crate::wire::frame::{BadFrame, Frame};

/// All that the nodes of one peer do with others.
#[derive(Debug)]
pub(crate) struct Protocols {
    pub(crate) pubsub: Arc<PubSub>,
    pub(crate) calls: Arc<Calls>,
    pub(crate) services: Arc<Services>,
    pub(crate) channels: Arc<Channels>,
    pub(crate) guard: Arc<Guard>,
}

/// What reads one peer's frames: each kind goes to the protocol that it belongs to.
struct Dispatch {
    peer: PeerId,
    arrivals: Arrivals,
    pubsub: Arc<PubSub>,
    answers: Arc<Pending>,
    callers: Callers,
    services: Arc<Services>,
    ends: Ends,
    guard: Arc<Guard>,
}

impl Carried for Protocols {
    fn receiver(&self, peer: PeerId, identity: Option<Identity>) -> Box<dyn Receive> {
        let visitor = self.guard.visitor(peer, identity);
        Box::new(Dispatch {
            peer,
            arrivals: Arrivals::new(Arc::clone(&self.pubsub), visitor.clone()),
            pubsub: Arc::clone(&self.pubsub),
            answers: self.calls.pending(peer),
            callers: Callers::new(Arc::clone(&self.services), visitor.clone()),
            services: Arc::clone(&self.services),
            ends: Ends::new(Arc::clone(&self.channels), visitor),
            guard: Arc::clone(&self.guard),
        })
    }

    fn up(&self, peer: PeerId, link: &Link) {
        self.pubsub.lanes().up(peer, link);
        self.channels.up(peer, link);
    }

    fn down(&self, peer: PeerId, link: &Link) {
        self.calls.down(peer, link);
        self.pubsub.lanes().down(peer);
        self.channels.down(peer, link);
    }

    fn gone(&self, peer: PeerId) {
        self.pubsub.lanes().gone(peer);
        self.channels.gone(peer);
    }

    fn forgotten(&self, peer: PeerId) {
        self.guard.forget(peer);
        self.calls.forget(peer);
        self.pubsub.lanes().forget(peer);
    }
}

impl Receive for Dispatch {
    fn receive(&mut self, frame: Frame, link: &Link) -> Result<(), BadFrame> {
        self.arrivals.flush(); // what came before is there before
        match frame {
            Frame::Message(message) => self.arrivals.message(message, link)?,
            Frame::Topic { alias, topic } => self.arrivals.topic(alias, topic)?,
            Frame::Node { index, name } => self.arrivals.node(index, name),
            Frame::Ack { id, node, verdict } => self.pubsub.lanes().get(self.peer).hear(id, node, verdict),
            Frame::Call(call) => self.callers.call(call, link),
            Frame::Cancel { call } => self.callers.cancel(call),
            Frame::Answer(answer) => self.answers.answered(answer),
            Frame::Pong { nonce } => self.pubsub.pings().answered(nonce),
            Frame::Ping { nonce } => link.ping(nonce, true),
            Frame::Came { bytes } => link.parts_came(bytes),
            Frame::Refused(refused) => {
                self.guard.refused_there(self.peer, &refused);
                if refused.action == Action::Send {
                    link.set_refused(Topic::new(&refused.resource)?, refused.rule);
                }
            }
            Frame::Channel(frame) => self.ends.receive(frame, link, |node, name| self.services.is_called(node, name)),
        }
        Ok(())
    }

    fn gather(&mut self, block: &Bytes, body: Range<usize>) -> Result<bool, BadFrame> {
        self.arrivals.gather(block, body)
    }

    fn flush(&mut self) {
        self.arrivals.flush();
    }
}
