//! What is made once per topic, and kept for the next that asks.

use std::collections::HashMap;

use crate::mesh::Topic;

/// Values by topic: bounded, but for those in use.
#[derive(Debug)]
pub(crate) struct Kept<V> {
    by_topic: HashMap<Topic, V>,
    /// As many are there when it is next looked which are in use.
    full: usize,
}

impl<V> Default for Kept<V> {
    fn default() -> Self {
        Self { by_topic: HashMap::new(), full: MOST }
    }
}

impl<V: Clone> Kept<V> {
    pub(crate) fn get(&self, topic: &str) -> Option<V> {
        self.by_topic.get(topic).cloned()
    }

    /// The value of a topic, made if there is none. Those that are not in use may go for it.
    pub(crate) fn of(&mut self, topic: &Topic, in_use: impl Fn(&V) -> bool, make: impl FnOnce() -> V) -> V {
        if let Some(value) = self.get(topic.as_str()) {
            return value;
        }
        if self.by_topic.len() >= self.full {
            self.by_topic.retain(|_, value| in_use(value));
            // So that many that are all in use are not gone through for each that comes.
            self.full = MOST.max(2 * self.by_topic.len());
        }
        let value = make();
        self.by_topic.insert(topic.clone(), value.clone());
        value
    }
}

/// Values that are kept though they are not in use.
const MOST: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_in_use_stays_and_is_not_gone_through_for_each_that_comes() {
        let (mut kept, looks) = (Kept::<Arc<()>>::default(), Cell::new(0));
        let in_use = |value: &Arc<()>| {
            looks.set(looks.get() + 1);
            Arc::strong_count(value) > 1
        };
        let mut of = |n: usize| kept.of(&Topic::new(n.to_string()).unwrap(), in_use, Arc::default);
        let used: Vec<_> = (0..3 * MOST).map(&mut of).collect();
        assert!(looks.get() <= 2 * used.len(), "{} looks", looks.get());
        (0..10 * MOST).for_each(|n| drop(of(used.len() + n)));
        assert!(looks.get() <= 20 * MOST, "{} looks", looks.get());
        assert!(used.iter().enumerate().all(|(n, value)| Arc::ptr_eq(&of(n), value)));
        drop((used, of));
        assert!(kept.by_topic.len() <= 6 * MOST, "{}", kept.by_topic.len());
    }
}
