//! One message on its way out: to whom there is room for at once, then to the others as they have room.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::select;
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use super::super::delivery::{Content, NotPosted, Slot};
use super::super::subscription::{Inbox, Put};
use super::{FEW, Outlet, PubSub, Receivers, Way};
use crate::mesh::delivery::{Claim, Claimed};
use crate::mesh::{Codec, DropReason, Message, NodeId, PeerId, Route, SendReport};
use crate::net::{Link, Outgoing, Refused};
use crate::wire::frame;

/// A message that is being sent.
pub(super) struct Sending<'a> {
    pub(super) pubsub: &'a PubSub,
    pub(super) outlet: &'a Outlet,
    pub(super) seq: u64,
    pub(super) codec: Codec,
    pub(super) payload: &'a Bytes,
    /// When its time is over.
    pub(super) until: Option<Instant>,
    pub(super) retains: bool,
    /// Set if it is to be acknowledged, with who it is under way to.
    pub(super) content: Option<Arc<Content>>,
    pub(super) slots: Vec<Slot>,
    /// Where to find another of the group for who cannot take it.
    pub(super) others: Option<Arc<Route>>,
    pub(super) report: SendReport,
    pub(super) waiting: Vec<Waiting>,
}

/// Nodes for which the message found no room yet.
pub(super) struct Waiting {
    via: Via,
    targets: Vec<u32>,
    peer: PeerId,
    why: DropReason,
}

/// What came of another try.
enum Again {
    Given,
    Not(DropReason),
    /// Something changed: try again.
    Wait(DropReason),
}

enum Via {
    Link(Link, u32),
    /// Subscriptions of one node of this process.
    Inboxes(Vec<Arc<Inbox>>),
    /// What is to be acknowledged.
    Lane,
}

impl Sending<'_> {
    /// Groups the receivers by peer, so that the message crosses each link once.
    pub(super) fn give_all(&mut self, mut receivers: Receivers<'_>) {
        receivers.sort_unstable_by_key(|(id, _)| *id);
        let mut rest = &receivers[..];
        while let Some((first, way)) = rest.first() {
            let same = rest.iter().take_while(|(id, _)| id.peer == first.peer).count().min(frame::MAX_TARGETS);
            let targets: SmallVec<[u32; FEW]> = rest[..same].iter().map(|(id, _)| id.index).collect();
            self.give(way, first.peer, &targets);
            rest = &rest[same..];
        }
    }

    /// Gives the message to nodes of one peer, or notes that it has to wait.
    pub(super) fn give(&mut self, way: &Way, peer: PeerId, targets: &[u32]) {
        if let Some(content) = &self.content {
            if targets.len() > 1 && peer == content.from.peer {
                return targets.iter().for_each(|target| self.give(way, peer, &[*target]));
            }
            match self.pubsub.post(content, peer, targets) {
                Ok(slots) => {
                    self.report.sent += slots.len();
                    self.slots.extend(slots);
                }
                // One node's pause is not the others'.
                Err(_) if targets.len() > 1 => targets.iter().for_each(|target| self.give(way, peer, &[*target])),
                Err(NotPosted::Never(why)) => self.drop_for(peer, targets, why),
                Err(_) if self.post_to_another(peer, targets) => self.report.sent += 1,
                Err(NotPosted::Wait(why)) => self.wait(Via::Lane, targets, peer, why),
            }
            return;
        }
        match way {
            Way::Here => targets.iter().for_each(|target| self.give_here(*target)),
            Way::Down => self.drop_for(peer, targets, DropReason::LinkDown),
            Way::Link { link, alias } => match self.push(link, *alias, targets) {
                Ok(()) => self.report.sent += targets.len(),
                Err(Refused::Closed) => self.drop_for(peer, targets, DropReason::LinkDown),
                // One node's pause is not the others'.
                Err(Refused::Paused) if targets.len() > 1 => {
                    targets.iter().for_each(|target| self.give(way, peer, &[*target]));
                }
                Err(Refused::TooLarge) => self.drop_for(peer, targets, DropReason::TooLarge),
                Err(Refused::NotAllowed) => self.drop_for(peer, targets, self.refused_by(link)),
                // A send has waited in vain already: a stuck receiver costs the others that once.
                Err(Refused::Full) if link.is_stalled() => self.drop_for(peer, targets, DropReason::LinkFull),
                Err(refused) => {
                    let why =
                        if refused == Refused::Full { DropReason::LinkFull } else { DropReason::SubscriptionFull };
                    self.wait(Via::Link(link.clone(), *alias), targets, peer, why);
                }
            },
        }
    }

    fn give_here(&mut self, node: u32) {
        let peer = self.outlet.origin.from.peer;
        let mut full = Vec::new();
        for inbox in self.pubsub.inboxes.matching(node, &self.outlet.origin.topic) {
            match inbox.offer(self.message()) {
                Put::Full => full.push(inbox),
                Put::Dropped => drop(self.pubsub.dropped.fetch_add(1, Ordering::Relaxed)),
                Put::Taken | Put::Closed => {}
            }
        }
        if full.is_empty() {
            self.report.sent += 1;
        } else {
            self.wait(Via::Inboxes(full), &[node], peer, DropReason::SubscriptionFull);
        }
    }

    fn wait(&mut self, via: Via, targets: &[u32], peer: PeerId, why: DropReason) {
        self.waiting.push(Waiting { via, targets: targets.to_vec(), peer, why });
    }

    fn push(&self, link: &Link, alias: u32, targets: &[u32]) -> Result<(), Refused> {
        link.try_push(&Outgoing {
            topic: &self.outlet.origin.topic,
            alias,
            from: self.outlet.origin.from.index,
            from_name: &self.outlet.origin.from_name,
            seq: self.seq,
            codec: self.codec,
            targets,
            payload: self.payload,
            delivery: None,
            until: self.until,
            retains: self.retains,
        })
    }

    fn message(&self) -> Message {
        Message {
            topic: self.outlet.origin.topic.clone(),
            from: self.outlet.origin.from,
            from_name: self.outlet.origin.from_name.clone(),
            seq: self.seq,
            codec: self.codec,
            payload: self.payload.clone(),
            lagged: 0,
            retains: self.retains,
            claimed: timed(self.until),
        }
    }

    /// The message, as it is kept.
    pub(super) fn content(&self) -> Content {
        Content {
            topic: self.outlet.origin.topic.clone(),
            from: self.outlet.origin.from,
            from_name: self.outlet.origin.from_name.clone(),
            seq: self.seq,
            codec: self.codec,
            payload: self.payload.clone(),
            until: self.until,
            retains: self.retains,
        }
    }

    /// Waits for room, for all that wait together no longer than to the deadline.
    pub(super) async fn finish(&mut self, deadline: Instant) {
        if deadline <= Instant::now() {
            return self.give_up();
        }
        let deadline = self.until.map_or(deadline, |until| until.min(deadline));
        for Waiting { mut via, targets, peer, mut why } in std::mem::take(&mut self.waiting) {
            let given = loop {
                match self.again(&mut via, peer, &targets, deadline).await {
                    Again::Given => break true,
                    Again::Not(reason) => {
                        why = reason;
                        break false;
                    }
                    Again::Wait(reason) => why = reason,
                }
            };
            if given {
                self.report.sent += targets.len();
            } else {
                if let (Via::Link(link, _), DropReason::LinkFull) = (&via, &why) {
                    link.set_stalled();
                }
                let over = self.until.is_some_and(|until| until <= Instant::now());
                let why = if over { DropReason::Expired } else { why };
                self.drop_for(peer, &targets, why);
            }
        }
    }

    /// Tries once more, and waits for a change if there is no room yet.
    async fn again(&mut self, via: &mut Via, peer: PeerId, targets: &[u32], deadline: Instant) -> Again {
        match via {
            Via::Link(link, alias) => {
                let mut changed = pin!(link.changed());
                changed.as_mut().enable();
                let why = match self.push(link, *alias, targets) {
                    Ok(()) => return Again::Given,
                    Err(Refused::Closed) => return Again::Not(DropReason::LinkDown),
                    Err(Refused::TooLarge) => return Again::Not(DropReason::TooLarge),
                    Err(Refused::NotAllowed) => return Again::Not(self.refused_by(link)),
                    Err(Refused::Full) => DropReason::LinkFull,
                    Err(Refused::Paused) => DropReason::SubscriptionFull,
                };
                if timeout_at(deadline, changed).await.is_err() { Again::Not(why) } else { Again::Wait(why) }
            }
            Via::Lane => self.post_again(peer, targets, deadline).await,
            Via::Inboxes(full) => {
                let Some(inbox) = full.last().cloned() else { return Again::Given };
                let mut room = pin!(inbox.room());
                room.as_mut().enable();
                if inbox.offer(self.message()) != Put::Full {
                    full.pop();
                    return Again::Wait(DropReason::SubscriptionFull);
                }
                if timeout_at(deadline, room).await.is_err() {
                    return Again::Not(DropReason::SubscriptionFull);
                }
                Again::Wait(DropReason::SubscriptionFull)
            }
        }
    }

    /// Gives the message to another of the group that has room, if it may go to any.
    fn post_to_another(&mut self, peer: PeerId, targets: &[u32]) -> bool {
        let (Some(route), Some(content), [index]) = (&self.others, &self.content, targets) else { return false };
        let full = NodeId { peer, index: *index };
        let mut groups = route.groups.iter().map(|group| &group.members);
        let Some(members) = groups.find(|members| members.iter().any(|member| member.id == full)) else { return false };
        let mut others = members.iter().map(|member| member.id).filter(|id| *id != full);
        let posted = others.find_map(|id| self.pubsub.post(content, id.peer, &[id.index]).ok());
        let Some(slots) = posted else { return false };
        self.slots.extend(slots);
        true
    }

    /// Tries once more to send what is to be acknowledged.
    async fn post_again(&mut self, peer: PeerId, targets: &[u32], deadline: Instant) -> Again {
        let Some(content) = &self.content else { return Again::Given };
        let (lane, link) = (self.pubsub.lanes.get(peer), self.pubsub.links.get(peer));
        let (settled, changed) = (lane.room(), link.as_ref().map(Link::changed)); // nothing that happens from here on is missed
        let why = match self.pubsub.post(content, peer, targets) {
            Ok(slots) => {
                self.slots.extend(slots);
                return Again::Given;
            }
            Err(NotPosted::Never(why)) => return Again::Not(why),
            Err(NotPosted::Wait(why)) => why,
        };
        if self.post_to_another(peer, targets) {
            return Again::Given;
        }
        let waits = async {
            match changed {
                Some(changed) => {
                    select(pin!(settled), pin!(changed)).await;
                }
                None => settled.await,
            }
        };
        // Another of the group may have room before this one has.
        let until = if self.others.is_some() { deadline.min(Instant::now() + ASK_OTHERS) } else { deadline };
        let waited = timeout_at(until, waits).await;
        if waited.is_err() && until == deadline { Again::Not(why) } else { Again::Wait(why) }
    }

    pub(super) fn give_up(&mut self) {
        for Waiting { targets, peer, why, .. } in std::mem::take(&mut self.waiting) {
            self.drop_for(peer, &targets, why);
        }
    }

    /// By which rule the peer at the other end takes no message on the topic.
    fn refused_by(&self, link: &Link) -> DropReason {
        DropReason::Refused(link.refusal(&self.outlet.origin.topic).unwrap_or_default())
    }

    fn drop_for(&mut self, peer: PeerId, targets: &[u32], why: DropReason) {
        self.report.dropped.extend(targets.iter().map(|index| (NodeId { peer, index: *index }, why.clone())));
    }
}

/// What goes with a message of limited time.
fn timed(until: Option<Instant>) -> Claimed {
    Claimed(until.map(|until| Arc::new(Claim::new(Some(until.into_std()), None))))
}

/// How often all of a group are asked for room while all are full.
const ASK_OTHERS: Duration = Duration::from_millis(20);
