//! Frames that come from a peer, each to the end that it is for; and channels that it opens.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::super::guard::Visitor;
use super::{Answer, Channels, Far, Incoming, Phase, Speaker, Talk, answer, gone};
use crate::mesh::channel::{Lost, Say, Standing, WINDOW};
use crate::mesh::{Action, NodeId, PeerId, ServiceName};
use crate::net::Link;
use crate::wire::channel::{Accepted, ChannelFrame, Open, Refusal};

/// What reads the frames of one peer's data stream.
pub(in crate::protocol) struct Ends {
    channels: Arc<Channels>,
    peer: PeerId,
    visitor: Visitor,
}

impl Ends {
    pub(in crate::protocol) fn new(channels: Arc<Channels>, visitor: Visitor) -> Self {
        Self { channels, peer: visitor.peer(), visitor }
    }

    /// A frame came; `is_called` says whether a node offers a service for calls.
    pub(in crate::protocol) fn receive(
        &self,
        frame: ChannelFrame,
        link: &Link,
        is_called: impl FnOnce(u32, &ServiceName) -> bool,
    ) {
        match frame {
            ChannelFrame::Said { to, end, say } => self.said(to, end, say, link),
            ChannelFrame::Open(open) => {
                let end = open.end;
                if let Err(why) = self.open(open, link, is_called) {
                    answer(link, &ChannelFrame::Refused { to: end, why });
                }
            }
            ChannelFrame::Adopt(adopt) => match self.channels.find(adopt.to) {
                Some(talk) => talk.adopt(adopt, self.peer, link),
                None => answer(link, &ChannelFrame::Refused { to: adopt.end, why: Refusal::NotThere }),
            },
            ChannelFrame::Accepted(accepted) => {
                let known = self.channels.find(accepted.to);
                if !known.is_some_and(|talk| talk.accepted(&accepted, self.peer, link)) {
                    answer(link, &gone(accepted.end, accepted.to));
                }
            }
            ChannelFrame::Refused { to, why } => {
                if let Some(talk) = self.channels.find(to) {
                    talk.answered(self.peer, Answer::Refused(why));
                }
            }
        }
    }

    fn said(&self, to: u64, end: u64, say: Say, link: &Link) {
        let wants_answer = !matches!(say, Say::Credit { .. } | Say::Done | Say::Gone);
        let known = self.channels.find(to).is_some_and(|talk| talk.hear(self.peer, end, say, link));
        if !known && wants_answer {
            answer(link, &gone(end, to));
        }
    }

    /// A node wants to speak with one of this peer's.
    fn open(&self, open: Open, link: &Link, is_called: impl FnOnce(u32, &ServiceName) -> bool) -> Result<(), Refusal> {
        let Open { end, node, from, window, token: theirs, service, request } = open;
        if let Some(rule) = self.visitor.refusal(Action::Call, service.as_str()) {
            self.visitor.refused(Action::Call, service.as_str(), &rule);
            return Err(Refusal::NotAllowed(rule));
        }
        let line = {
            let offers = self.channels.offers.read().unwrap_or_else(PoisonError::into_inner);
            offers.get(&(node, service.clone())).filter(|line| !line.is_closed()).cloned()
        };
        let Some(line) = line else {
            return Err(if is_called(node, &service) { Refusal::Called } else { Refusal::NotOffered });
        };
        if self.channels.draining.load(Ordering::Relaxed) {
            return Err(Refusal::Busy);
        }
        let permit = line.try_reserve().map_err(|_| Refusal::Busy)?;
        self.channels.seat(self.peer, false).ok_or(Refusal::Busy)?;
        let id = self.channels.next.fetch_add(1, Ordering::Relaxed);
        let (far_node, token) = (NodeId { peer: self.peer, index: from }, rand::random());
        let talk = Arc::new(Talk::new(&self.channels.me, id, node, far_node, token, Phase::Open));
        // Said before the end can be: the opener hears first that there is one.
        let standing = Standing::default();
        let accepted = Accepted { to: end, end: id, node, window: WINDOW as u32, token, standing };
        answer(link, &ChannelFrame::Accepted(accepted));
        {
            let mut state = talk.state();
            state.open(Far { peer: self.peer, end, token: theirs }, link);
            state.end.open(window as usize);
        }
        self.channels.insert(Arc::clone(&talk), self.peer, false);
        if link.is_closed() {
            talk.lose(Lost::Disconnected); // perhaps nobody tells it any more; the opener knows
        }
        permit.send(Incoming { speaker: Speaker(talk), request });
        Ok(())
    }
}
