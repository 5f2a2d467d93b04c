//! What nodes do together, one thing a file, both halves in it. Knows links, not what carries them.
//!
//! | frame | protocol |
//! |---|---|
//! | topic, node, message | [`pubsub`] sends to groups of listeners, [`arrivals`] receives, [`subscription`] holds what arrived |
//! | call, cancel | [`services`]: what this peer's nodes offer |
//! | answer | [`calls`]: what this peer's nodes have asked |
//! | ping, pong | [`ping`]: the round trip of a link |

use std::sync::Arc;

pub(crate) mod arrivals;
pub(crate) mod calls;
pub(crate) mod ping;
pub(crate) mod pubsub;
pub(crate) mod services;
pub(crate) mod subscription;

use self::arrivals::Arrivals;
use self::calls::{Calls, Pending};
use self::pubsub::PubSub;
use self::services::{Callers, Services};
use crate::mesh::PeerId;
use crate::net::{Carried, Link, Receive};
use crate::wire::frame::{BadFrame, Frame};

/// All that the nodes of one peer do with others.
#[derive(Debug)]
pub(crate) struct Protocols {
    pub(crate) pubsub: Arc<PubSub>,
    pub(crate) calls: Arc<Calls>,
    pub(crate) services: Arc<Services>,
}

/// What reads one peer's frames: each kind goes to the protocol that it belongs to.
struct Dispatch {
    arrivals: Arrivals,
    pubsub: Arc<PubSub>,
    answers: Arc<Pending>,
    callers: Callers,
}

impl Carried for Protocols {
    fn receiver(&self, peer: PeerId) -> Box<dyn Receive> {
        Box::new(Dispatch {
            arrivals: Arrivals::new(Arc::clone(&self.pubsub), peer),
            pubsub: Arc::clone(&self.pubsub),
            answers: self.calls.pending(peer),
            callers: Callers::new(Arc::clone(&self.services), peer),
        })
    }

    fn up(&self, _peer: PeerId, _link: &Link) {}

    fn down(&self, peer: PeerId, link: &Link) {
        self.calls.down(peer, link);
    }

    fn gone(&self, _peer: PeerId) {}

    fn forgotten(&self, peer: PeerId) {
        self.calls.forget(peer);
    }
}

impl Receive for Dispatch {
    fn receive(&mut self, frame: Frame, link: &Link) -> Result<(), BadFrame> {
        match frame {
            Frame::Message(message) => self.arrivals.message(message)?,
            Frame::Topic { alias, topic } => self.arrivals.topic(alias, topic)?,
            Frame::Node { index, name } => self.arrivals.node(index, name),
            Frame::Call(call) => self.callers.call(call, link),
            Frame::Cancel { call } => self.callers.cancel(call),
            Frame::Answer(answer) => self.answers.answered(answer),
            Frame::Pong { nonce } => self.pubsub.pings().answered(nonce),
            Frame::Ping { nonce } => link.ping(nonce, true),
            Frame::Channel(_) => {}
        }
        Ok(())
    }
}
