//! The last message on a topic, kept at its sender for who comes later.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::delivery::Content;
use super::{Outlet, PubSub, State, Way};
use crate::mesh::NodeId;

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

    fn last(&self) -> Option<Arc<Content>> {
        self.last.clone()
    }
}

impl PubSub {
    /// Keeps the last message of an outlet for who comes later, or does so no more.
    pub(crate) fn retain(self: &Arc<Self>, outlet: &Arc<Outlet>, retain: bool) {
        if outlet.retains.swap(retain, Ordering::AcqRel) || !retain {
            return;
        }
        let (pubsub, outlet, mut routes) = (Arc::clone(self), Arc::downgrade(outlet), outlet.routes.clone());
        // Ends with the outlet, with the routes, or when nothing is kept any more.
        tokio::spawn(async move {
            while routes.changed().await.is_ok() {
                let Some(outlet) = outlet.upgrade().filter(|outlet| outlet.is_retaining()) else { return };
                let mut state = outlet.state.lock().await;
                pubsub.refresh(&outlet, &mut state.plan, outlet.group_by);
                pubsub.catch_up(&outlet, &mut state);
            }
        });
    }

    /// Gives the message that is kept to all that came since, before any newer one.
    pub(super) fn catch_up(&self, outlet: &Outlet, state: &mut State) {
        let State { plan, retained, .. } = state;
        let Some(retained) = retained else { return };
        if !retained.is_behind(plan.generation) {
            return;
        }
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
        let Some(last) = retained.last().filter(|last| !lacking.is_empty() && !last.is_over()) else { return };
        for (member, way) in listening().filter(|(member, _)| lacking.contains(&member.id)) {
            match way {
                Way::Here => {
                    let inboxes = self.inboxes.matching(member.id.index, &outlet.topic);
                    for inbox in &inboxes {
                        inbox.force(last.message());
                    }
                }
                // Refused by a link that is down: it comes with the next.
                Way::Link { link, alias } => drop(link.push_again(&last.outgoing(*alias, None, &[member.id.index]))),
                Way::Down => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::PeerId;

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
}
