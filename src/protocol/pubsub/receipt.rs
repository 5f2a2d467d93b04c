//! What becomes of an acknowledged message: followed to its end, and to another node of the group if need be.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::delivery::{Content, Slot};
use super::sending::Sending;
use super::{Outlet, PubSub, SendError, SendOptions, deadline};
use crate::mesh::{Codec, DropReason, Group, GroupKey, Member, NodeId, SendReport, Target};

/// What will have become of a message that was sent: a future of its [`SendReport`], which is there when every receiver has
/// taken the message or never will, or when time is up. So many sends can be under way at once.
///
/// Dropping it gives up the report, not the message.
#[derive(Debug)]
#[must_use = "a future that does nothing unless it is awaited; the message is under way without"]
pub struct Receipt(Reports);

#[derive(Debug)]
enum Reports {
    Known(SendReport),
    /// With what is known so far, in case the runtime ends before the rest is.
    Follows(oneshot::Receiver<SendReport>, SendReport),
}

impl Future for Receipt {
    type Output = SendReport;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<SendReport> {
        Poll::Ready(match &mut self.0 {
            Reports::Known(report) => std::mem::take(report),
            Reports::Follows(follows, so_far) => {
                ready!(Pin::new(follows).poll(context)).unwrap_or_else(|_| std::mem::take(so_far))
            }
        })
    }
}

impl PubSub {
    /// Sends one message, and gives what will tell what became of it. Waits for room as [`PubSub::send`] does.
    pub(crate) async fn submit(
        self: &Arc<Self>,
        outlet: &Arc<Outlet>,
        codec: Codec,
        payload: &Bytes,
        options: &SendOptions,
    ) -> Result<Receipt, SendError> {
        if !options.is_acked() {
            return self.send(outlet, codec, payload, options).await.map(Receipt::known);
        }
        self.check(outlet, payload)?;
        let deadline = deadline(options.timeout.unwrap_or(self.times.acknowledgement));
        let mut state = outlet.origin.state.lock().await;
        let mut sending = self.begin(outlet, &mut state, codec, payload, options);
        if !sending.waiting.is_empty() {
            sending.finish(deadline).await;
        }
        let Sending { content: Some(content), slots, mut report, .. } = sending else {
            return Ok(Receipt::known(self.count(sending.report)));
        };
        let mut at: Vec<Result<Slot, (NodeId, DropReason)>> = slots.into_iter().map(Ok).collect();
        if options.redeliver {
            at.extend(report.dropped.drain(..).map(Err));
        }
        if at.is_empty() {
            return Ok(Receipt::known(self.count(report)));
        }
        report.sent = 0; // counted as each of them goes on
        let group = |at: &Result<Slot, (NodeId, DropReason)>| {
            let node = at.as_ref().map_or_else(|(node, _)| *node, |slot| slot.node);
            let mut groups = state.plan.route.groups.iter().filter(|_| options.redeliver);
            groups.find(|group| group.members.iter().any(|member| member.id == node)).map(|group| group.key.clone())
        };
        let under_way = at.into_iter().map(|at| UnderWay { group: group(&at), at }).collect();
        let redeliver = options.redeliver.then(|| options.target.clone());
        let (pubsub, outlet) = (Arc::clone(self), Arc::clone(outlet));
        Ok(Receipt::follow(
            Following { pubsub, outlet, content, report, deadline, redeliver, key: options.key.clone() },
            under_way,
        ))
    }
}

impl Receipt {
    fn known(report: SendReport) -> Self {
        Self(Reports::Known(report))
    }

    /// Follows a message from now on. The task ends at the deadline at the latest.
    fn follow(following: Following, under_way: Vec<UnderWay>) -> Self {
        let (tell, report) = oneshot::channel();
        let so_far = following.report.clone();
        tokio::spawn(async move {
            let _ = tell.send(following.finish(under_way).await); // nobody may want to know
        });
        Self(Reports::Follows(report, so_far))
    }
}

/// A message that is followed.
#[derive(Debug)]
struct Following {
    pubsub: Arc<PubSub>,
    outlet: Arc<Outlet>,
    content: Arc<Content>,
    /// What is known already.
    report: SendReport,
    /// When nobody waits any more.
    deadline: Instant,
    /// Set if it may go to others.
    redeliver: Option<Target>,
    key: Option<Bytes>,
}

/// A message for one receiver.
#[derive(Debug)]
struct UnderWay {
    /// The group that the receiver was chosen from.
    group: Option<GroupKey>,
    /// Where it is, or why it is nowhere.
    at: Result<Slot, (NodeId, DropReason)>,
}

/// What became of it for one receiver.
struct Fate {
    sent: bool,
    redelivered: bool,
    /// At which node it failed, and why.
    failed: Option<(NodeId, DropReason)>,
}

impl Following {
    async fn finish(self, under_way: Vec<UnderWay>) -> SendReport {
        let fates = join_all(under_way.into_iter().map(|one| self.follow(one))).await;
        let mut report = self.report;
        for Fate { sent, redelivered, failed } in fates {
            report.sent += usize::from(sent);
            report.redelivered += usize::from(redelivered);
            report.acknowledged += usize::from(failed.is_none());
            report.dropped.extend(failed);
        }
        self.pubsub.count(report)
    }

    async fn follow(&self, UnderWay { group, at }: UnderWay) -> Fate {
        let (mut at, mut fate) = (at, Fate { sent: false, redelivered: false, failed: None });
        let mut tries = 0;
        loop {
            let (node, why) = match at {
                Err(failed) => failed,
                Ok(mut slot) => {
                    fate.sent = true;
                    match timeout_at(self.deadline, &mut slot.verdict).await {
                        Ok(Ok(Ok(()))) => return fate,
                        Ok(Ok(Err(DropReason::Refused(_)))) => {
                            let rule = self.refusal(slot.node).unwrap_or_default();
                            (slot.node, DropReason::Refused(rule))
                        }
                        Ok(Ok(Err(why))) => (slot.node, why),
                        Ok(Err(_)) => (slot.node, DropReason::Gone),
                        Err(_) => {
                            slot.give_up();
                            (slot.node, DropReason::NoAnswer)
                        }
                    }
                }
            };
            let may_go_on = !matches!(why, DropReason::Expired | DropReason::NoAnswer | DropReason::TooLarge);
            let next = match &self.redeliver {
                Some(target) if may_go_on => self.elsewhere(target, group.as_ref(), node, tries).await,
                _ => None,
            };
            let Some(slot) = next else {
                let expired = self.content.until.is_some_and(|until| Instant::now() >= until);
                let why = if expired && self.redeliver.is_some() { DropReason::Expired } else { why };
                fate.failed = Some((node, why));
                return fate;
            };
            fate.redelivered |= slot.node != node;
            tries += 1;
            at = Ok(slot);
        }
    }

    /// By which rule the peer of a node takes no messages on the topic, as far as it said so.
    fn refusal(&self, node: NodeId) -> Option<String> {
        self.pubsub.links().get(node.peer)?.refusal(self.outlet.topic())
    }

    /// Gives the message to another node of the group; to the same if there is no other, after a pause. Waits for one to
    /// appear. `None`: time is up.
    async fn elsewhere(&self, target: &Target, group: Option<&GroupKey>, failed: NodeId, tries: u32) -> Option<Slot> {
        let deadline = self.content.until.map_or(self.deadline, |until| until.min(self.deadline));
        let mut routes = self.outlet.routes().clone();
        // A message that nobody can handle goes round, but not in haste.
        let mut pause = if tries == 0 { Duration::ZERO } else { (PAUSE * 2u32.pow(tries.min(6))).min(LONGEST_PAUSE) };
        let mut rng = SmallRng::from_rng(&mut rand::rng());
        while Instant::now() < deadline {
            if !pause.is_zero() {
                sleep_until(deadline.min(Instant::now() + pause)).await;
            }
            let now = Arc::clone(&routes.borrow_and_update());
            let route = self.pubsub.resolve(&self.outlet.origin, &now, self.outlet.grouping(target));
            let (mut others, mut same) = (None, false);
            for candidates in route.groups {
                same |= candidates.members.iter().any(|member| member.id == failed);
                let goes_round = matches!(target, Target::EachGroup | Target::Group(_));
                if goes_round && group == Some(&candidates.key) {
                    let takes = |member: &Member| member.id != failed && self.refusal(member.id).is_none();
                    let members = candidates.members.into_iter().filter(takes).collect();
                    others = Some(Group { members, ..candidates }).filter(|others: &Group| !others.members.is_empty());
                }
            }
            let node = match others {
                Some(others) => self.outlet.pick_again(&others, self.key.as_deref(), &mut rng),
                // Nothing is to be hoped for there, nor is anybody else there now.
                None if same && self.refusal(failed).is_some() => return None,
                None if same && !pause.is_zero() => failed,
                None if same => {
                    pause = PAUSE;
                    continue;
                }
                None => {
                    pause = Duration::ZERO;
                    timeout_at(deadline, routes.changed()).await.ok()?.ok()?;
                    continue;
                }
            };
            match self.pubsub.post(&self.content, node.peer, &[node.index]) {
                Ok(mut slots) => return slots.pop(),
                Err(_) => pause = PAUSE, // as much is under way to it as may be
            }
        }
        None
    }
}

/// Before a node gets the same message again, and before a full one is tried again.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
