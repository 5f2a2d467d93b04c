//! The last message on a topic, kept at its sender for who comes later.

use std::collections::HashMap;
use std::sync::Arc;

use super::delivery::Content;
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
pub(super) struct Listens {
    /// Which link leads to it; 0 in this process.
    pub(super) link: u64,
    /// How many of its filters select the topic.
    pub(super) filters: u32,
}

impl Retained {
    /// From now on this is the last message.
    pub(super) fn keep(&mut self, content: Arc<Content>) {
        self.last = Some(content);
    }

    /// Whether routes changed since they were last looked at.
    pub(super) fn is_behind(&self, generation: Option<u64>) -> bool {
        self.generation != generation
    }

    /// Who lacks the last message, given who listens now. What is not newer is dropped by subscriptions that have it, so one
    /// time too many does no harm.
    pub(super) fn lacking(
        &mut self,
        generation: Option<u64>,
        listening: impl Iterator<Item = (NodeId, Listens)>,
    ) -> Vec<NodeId> {
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

    pub(super) fn last(&self) -> Option<Arc<Content>> {
        self.last.clone()
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
