//! The last message on a topic, kept at its sender for who comes later.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::super::delivery::Content;
use super::{Origin, Outlet, PubSub, State, Way};
use crate::mesh::{NodeId, Routes};
use crate::net::{Link, Refused};

/// What one node keeps on one topic, and who has it.
#[derive(Debug, Default)]
pub(super) struct Retained {
    last: Option<Arc<Content>>,
    /// Who listened when this was last looked at, and how.
    known: HashMap<NodeId, Listens>,
    generation: Option<u64>,
}

/// How a node listens: when this changes, it may lack the last message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listens {
    /// Which link leads to it; 0 in this process.
    link: u64,
    /// How many of its filters select the topic.
    filters: u32,
}

impl Retained {
    /// From now on this is the last message.
    pub(super) fn keep(&mut self, content: Arc<Content>) {
        self.last = Some(content);
    }

    /// Whether routes changed since they were last looked at.
    fn is_behind(&self, generation: Option<u64>) -> bool {
        self.generation != generation
    }

    /// Who lacks the last message, given who listens now. What is not newer is dropped by subscriptions that have it, so one
    /// time too many does no harm.
    fn lacking(&mut self, generation: Option<u64>, listening: impl Iterator<Item = (NodeId, Listens)>) -> Vec<NodeId> {
        self.generation = generation;
        let known = std::mem::take(&mut self.known);
        let mut lacking = Vec::new();
        for (node, now) in listening {
            let had = known.get(&node).is_some_and(|then| then.link == now.link && then.filters >= now.filters);
            if !had {
                lacking.push(node);
            }
            self.known.insert(node, now);
        }
        lacking
    }

    /// A node could not take the last message just now: it is tried again.
    fn still_lacks(&mut self, node: NodeId) {
        self.known.remove(&node);
        self.generation = None;
    }

    fn last(&self) -> Option<Arc<Content>> {
        self.last.clone()
    }
}

impl PubSub {
    /// Keeps the last message of an outlet, and of all made of it, for who comes later, or does so no more.
    pub(crate) fn retain(self: &Arc<Self>, outlet: &Outlet, retain: bool) {
        let origin = &outlet.origin;
        let mut keeper = origin.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if outlet.is_retaining() == retain {
            return;
        }
        // Ends with what it keeps for, with the routes, or when nothing is kept any more.
        let keep = || keep_up(Arc::clone(self), Arc::downgrade(origin), origin.routes.clone());
        *keeper = retain.then(|| AbortOnDropHandle::new(tokio::spawn(keep())));
        origin.retains.store(retain, Ordering::Release);
    }

    /// Gives the message that is kept to all that came since, before any newer one. Who has no room for it now gets what is
    /// the last one later: gives the links to wait for.
    pub(super) fn catch_up(&self, origin: &Origin, state: &mut State) -> Vec<Link> {
        let State { plan, retained, .. } = state;
        let Some(retained) = retained.as_mut().filter(|retained| retained.is_behind(plan.generation)) else {
            return Vec::new();
        };
        let listening = || {
            let groups = plan.route.groups.iter().zip(&plan.ways);
            groups.flat_map(|(group, ways)| group.members.iter().zip(ways))
        };
        let there = listening().filter_map(|(member, way)| {
            let link = match way {
                Way::Here => 0,
                Way::Link { link, .. } => link.epoch(),
                Way::Down => return None,
            };
            Some((member.id, Listens { link, filters: member.filters }))
        });
        let lacking = retained.lacking(plan.generation, there);
        let Some(last) = retained.last().filter(|last| !lacking.is_empty() && !last.is_over()) else {
            return Vec::new();
        };
        let mut full: Vec<Link> = Vec::new();
        for (member, way) in listening().filter(|(member, _)| lacking.contains(&member.id)) {
            match way {
                Way::Here => {
                    let inboxes = self.inboxes.matching(member.id.index, &origin.topic);
                    for inbox in &inboxes {
                        inbox.force(last.message());
                    }
                }
                Way::Link { link, alias } => {
                    match link.try_push(&last.outgoing(*alias, None, &[member.id.index])) {
                        // To a link that is down: it comes with the next.
                        Ok(()) | Err(Refused::Closed | Refused::TooLarge | Refused::NotAllowed) => {}
                        Err(Refused::Full | Refused::Paused) => {
                            retained.still_lacks(member.id);
                            if !full.iter().any(|known| known.is(link)) {
                                full.push(link.clone());
                            }
                        }
                    }
                }
                Way::Down => {}
            }
        }
        full
    }
}

/// Gives what is kept to all that come, and to who had no room for it.
async fn keep_up(pubsub: Arc<PubSub>, origin: Weak<Origin>, mut routes: watch::Receiver<Arc<Routes>>) {
    let give = async || {
        let origin = origin.upgrade()?;
        let mut state = origin.state.lock().await;
        let group_by = state.plan.group_by; // whatever it is: all groups have all that listen
        pubsub.refresh(&origin, &mut state.plan, group_by);
        Some(pubsub.catch_up(&origin, &mut state))
    };
    let mut full: Vec<Link> = Vec::new();
    loop {
        // Room that comes from here on is not missed; what came before is found.
        let mut room: FuturesUnordered<_> = full.iter().map(Link::changed).collect();
        let Some(now) = give().await else { return };
        if now.iter().all(|link| full.iter().any(|waited| waited.is(link))) {
            tokio::select! {
                changed = routes.changed() => if changed.is_err() { return },
                Some(()) = room.next() => {}
            }
        }
        drop(room);
        full = now;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::runtime::Handle;
    use tokio::task::yield_now;

    use super::super::{SendOptions, SendTimes};
    use super::*;
    use crate::mesh::{Codec, GroupBy, PeerId, Policy, Rules, kit};
    use crate::net::{LinkLimits, Links};

    fn node(index: u32) -> NodeId {
        NodeId { peer: PeerId::from_bytes([1; 32]), index }
    }

    fn listens(link: u64, filters: u32) -> Listens {
        Listens { link, filters }
    }

    #[test]
    fn who_is_new_or_came_back_or_listens_once_more_lacks_the_last_message() {
        let mut retained = Retained::default();
        let mut lacking = |listening: &[(NodeId, Listens)]| retained.lacking(Some(1), listening.iter().copied());
        assert_eq!(lacking(&[(node(1), listens(1, 1))]), [node(1)]);
        assert_eq!(lacking(&[(node(1), listens(1, 1)), (node(2), listens(1, 1))]), [node(2)]);
        assert_eq!(lacking(&[(node(1), listens(1, 2)), (node(2), listens(2, 1))]), [node(1), node(2)]);
        assert_eq!(lacking(&[(node(1), listens(1, 1))]), []);
        assert_eq!(lacking(&[(node(1), listens(1, 2)), (node(2), listens(2, 1))]), [node(1), node(2)]);
    }

    /// A node that sends on `t`, and another peer's nodes that listen to it, over a link that nobody writes.
    struct Scene {
        pubsub: Arc<PubSub>,
        link: Link,
        routes: watch::Sender<Arc<Routes>>,
        outlet: Outlet,
    }

    impl Scene {
        fn new(frames: usize) -> Self {
            let (links, link) = (Links::default(), Link::new(1, LinkLimits { frames, bytes: 1 << 20 }, 1000));
            links.insert(kit::peer(2), link.clone(), None);
            let second = Duration::from_secs(1);
            let times = SendTimes { room: second, acknowledgement: second };
            let pubsub =
                Arc::new(PubSub::new("host-1".into(), links, Rules::default(), Arc::default(), 1000, 1000, times));
            let (routes, seen) = watch::channel(Arc::new(Routes::default()));
            let from = NodeId { peer: kit::peer(1), index: 0 };
            let outlet = pubsub.outlet(kit::topic("t"), from, kit::node_name("n"), seen);
            Self { pubsub, link, routes, outlet }
        }

        /// From now on so many nodes listen, each with that many filters.
        async fn listen(&self, nodes: u32, filters: usize) {
            let generation = self.routes.borrow().generation() + 1;
            let nodes = (0..nodes).map(|index| kit::listener(index, "l", &vec!["t"; filters]));
            self.routes.send_replace(Arc::new(kit::routes_to(kit::record_with(2, nodes), generation)));
            settle().await;
        }

        async fn send(&self) {
            let options = SendOptions::default();
            self.pubsub.send(&self.outlet, Codec::Bytes, &Bytes::from_static(b"x"), &options).await.unwrap();
        }

        /// Messages that wait on the link, which has one topic and one name to tell before them.
        fn queued(&self) -> usize {
            self.link.queued().saturating_sub(2)
        }
    }

    /// Lets all tasks of a runtime of one thread go on as far as they can.
    async fn settle() {
        for _ in 0..20 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_task_gives_what_is_kept_however_often_it_was_asked_for_and_through_whichever_publisher() {
        let scene = Scene::new(100);
        for _ in 0..10 {
            scene.pubsub.retain(&scene.outlet, true);
            scene.pubsub.retain(&scene.outlet, false);
        }
        scene.pubsub.retain(&scene.outlet.balanced(Policy::Random, GroupBy::Name), true);
        scene.pubsub.retain(&scene.outlet, true);
        settle().await;
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
        scene.send().await;
        scene.listen(1, 1).await;
        assert_eq!(scene.queued(), 1);
        drop(scene.outlet);
        settle().await;
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    }

    #[tokio::test]
    async fn a_node_that_flaps_behind_a_full_link_fills_no_memory() {
        let scene = Scene::new(10);
        scene.pubsub.retain(&scene.outlet, true);
        scene.send().await;
        for n in 0..100 {
            scene.listen(3, 1 + n % 2).await;
        }
        assert_eq!(scene.link.queued(), 10);
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
    }

    #[tokio::test]
    async fn who_could_take_nothing_gets_the_last_message_when_it_can() {
        let scene = Scene::new(100);
        scene.pubsub.retain(&scene.outlet, true);
        scene.send().await;
        scene.link.set_paused(1, kit::topic("t"), true);
        scene.listen(3, 1).await;
        assert_eq!(scene.queued(), 2);
        scene.link.set_paused(7, kit::topic("t"), false); // a change that makes no room for it
        settle().await;
        assert_eq!(scene.queued(), 2);
        scene.link.set_paused(1, kit::topic("t"), false);
        settle().await;
        assert_eq!(scene.queued(), 3, "without a change of routes, and to nobody else");
    }
}
