//! Filters as a tree of their parts, so that a topic finds its filters without looking at the others.

use std::collections::HashSet;
use std::sync::Arc;

use smallvec::SmallVec;

use super::topic::{ANY_PART, ANY_PARTS};
use super::trie::{Keep, Trie};
use super::{Topic, TopicFilter};

/// A list of values for each filter. A copy shares all that is not changed later.
#[derive(Clone, Debug)]
pub(crate) struct FilterTable<V> {
    /// Whole filters without a wildcard: most are, and one look-up finds them.
    exact: Trie<Arc<str>, List<V>>,
    wild: Branch<V>,
}

/// The values of one filter.
pub(crate) type List<V> = Arc<Vec<V>>;

#[derive(Clone, Debug)]
struct Branch<V> {
    here: Option<List<V>>,
    parts: Trie<Arc<str>, Arc<Self>>,
    any_part: Option<Arc<Self>>,
    any_parts: Option<Arc<Self>>,
}

/// The lists of all filters that select one topic, each once, none empty. Always in the same order.
pub(crate) type Lists<V> = SmallVec<[List<V>; 2]>;

impl<V> Default for FilterTable<V> {
    fn default() -> Self {
        Self { exact: Trie::default(), wild: Branch::default() }
    }
}

impl<V> Default for Branch<V> {
    fn default() -> Self {
        Self { here: None, parts: Trie::default(), any_part: None, any_parts: None }
    }
}

impl<V: Clone> FilterTable<V> {
    /// Changes the list of one filter. It is another list from then on, as [`Arc::ptr_eq`] tells.
    pub(crate) fn update(&mut self, filter: &TopicFilter, change: impl FnOnce(&mut Vec<V>)) {
        if filter.is_wild() {
            self.wild.update(filter.as_str(), 0, change);
        } else {
            self.exact.update(
                filter.as_str(),
                || (filter.as_str().into(), List::default()),
                |list| {
                    change(Arc::make_mut(list));
                    if list.is_empty() { Keep::No } else { Keep::Yes }
                },
            );
        }
    }

    /// Adds a value to the list of one filter.
    pub(crate) fn insert(&mut self, filter: &TopicFilter, value: V) {
        self.update(filter, |list| list.push(value));
    }

    /// What stands for the filters that select the topic. Costs what matches.
    pub(crate) fn matching(&self, topic: &Topic) -> Lists<V> {
        self.walk(topic).found
    }

    fn walk<'a>(&'a self, topic: &'a Topic) -> Walk<'a, V> {
        let mut walk = Walk {
            topic: topic.as_str(),
            seen: HashSet::new(),
            found: Lists::new(),
            #[cfg(test)]
            visits: 0,
        };
        walk.found.extend(self.exact.get(topic.as_str()).cloned());
        if !self.wild.is_empty() {
            walk.from(&self.wild, 0, false);
        }
        walk
    }
}

impl<V: Clone> Branch<V> {
    /// Changes the list of the filter whose rest begins there. Says whether nothing is left here.
    fn update(&mut self, filter: &str, at: usize, change: impl FnOnce(&mut Vec<V>)) -> bool {
        let Some((part, next)) = part(filter, at) else {
            let list = self.here.get_or_insert_default();
            change(Arc::make_mut(list));
            if list.is_empty() {
                self.here = None;
            }
            return self.is_empty();
        };
        let wildcard = match part {
            ANY_PART => &mut self.any_part,
            ANY_PARTS => &mut self.any_parts,
            part => {
                self.parts.update(
                    part,
                    || (part.into(), Arc::default()),
                    |branch| {
                        if Arc::make_mut(branch).update(filter, next, change) { Keep::No } else { Keep::Yes }
                    },
                );
                return self.is_empty();
            }
        };
        if Arc::make_mut(wildcard.get_or_insert_default()).update(filter, next, change) {
            *wildcard = None;
        }
        self.is_empty()
    }

    fn is_leaf(&self) -> bool {
        self.parts.is_empty() && self.any_part.is_none() && self.any_parts.is_none()
    }

    fn is_empty(&self) -> bool {
        self.here.is_none() && self.is_leaf()
    }
}

/// One search. A branch below a `**` is visited once per position, so filters of many `**` cost no more than their size
/// times the topic's. Others are reached on one way only.
struct Walk<'a, V> {
    topic: &'a str,
    seen: HashSet<(*const Branch<V>, usize)>,
    found: Lists<V>,
    #[cfg(test)]
    visits: usize,
}

impl<V: Clone> Walk<'_, V> {
    /// Goes on at a branch, with the part of the topic that begins there.
    fn from(&mut self, branch: &Branch<V>, at: usize, below_any: bool) {
        #[cfg(test)]
        {
            self.visits += 1;
        }
        if below_any && !self.seen.insert((std::ptr::from_ref(branch), at)) {
            return;
        }
        if let Some((part, next)) = part(self.topic, at) {
            if let Some(branch) = branch.parts.get(part) {
                self.from(branch, next, below_any);
            }
            if let Some(branch) = &branch.any_part {
                self.from(branch, next, below_any);
            }
        } else {
            self.found.extend(branch.here.clone());
        }
        if let Some(branch) = &branch.any_parts {
            let mut at = at;
            // Where the filter ends, it selects the rest, whatever that is.
            while let Some((_, next)) = part(self.topic, at)
                && !branch.is_leaf()
            {
                self.from(branch, at, true);
                at = next;
            }
            self.from(branch, self.topic.len() + 1, true);
        }
    }
}

/// The part that begins there, and where the next one begins; `None` behind the last.
fn part(text: &str, at: usize) -> Option<(&str, usize)> {
    let rest = text.get(at..)?;
    let part = rest.split_once('/').map_or(rest, |(part, _)| part);
    Some((part, at + part.len() + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kit::topic;
    use super::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::new(text).unwrap()
    }

    fn table<'a>(filters: impl IntoIterator<Item = &'a TopicFilter>) -> FilterTable<u32> {
        let mut table = FilterTable::default();
        filters.into_iter().zip(0..).for_each(|(filter, value)| table.insert(filter, value));
        table
    }

    fn values(table: &FilterTable<u32>, text: &str) -> Vec<u32> {
        let mut found: Vec<u32> = table.matching(&topic(text)).iter().flat_map(|list| list.iter().copied()).collect();
        found.sort_unstable();
        found
    }

    fn visits(table: &FilterTable<u32>, text: &str) -> usize {
        table.walk(&topic(text)).visits
    }

    #[test]
    fn a_topic_costs_what_matches_and_not_what_exists() {
        let few = |n: usize| -> Vec<TopicFilter> {
            (0..n)
                .flat_map(|n| {
                    [format!("a/{n}"), format!("a/{n}/*"), format!("a/*/{n}"), format!("*/{n}/**"), format!("**/{n}/x")]
                })
                .map(|text| filter(&text))
                .collect()
        };
        let (small, large) = (table(&few(10)), table(&few(10_000)));
        for text in ["a/7", "a/7/x", "b/c/d/e", "a/b/7", "other"] {
            assert_eq!(values(&small, text).len(), values(&large, text).len(), "{text}");
            assert_eq!(visits(&small, text), visits(&large, text), "{text}");
        }
        let exact: Vec<TopicFilter> = (0..10_000).map(|n| filter(&format!("a/{n}"))).collect();
        assert_eq!(visits(&table(&exact), "a/7"), 0, "without wildcards, there is no tree to go through");
    }

    #[test]
    fn a_change_leaves_all_other_lists_as_they_are() {
        let mut table = table(&["a/b", "a/*", "**", "x/y", "x/*/z", "a/b/c"].map(filter));
        let same = |one: &Lists<u32>, other: &Lists<u32>| {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        let (before, copy) = (table.matching(&topic("a/b")), table.clone());
        assert_eq!(before.len(), 3);
        for other in ["x/y", "x/*", "a/*/z", "**/z", "a/c", "a/b/*"] {
            table.insert(&filter(other), 9);
            assert!(same(&before, &table.matching(&topic("a/b"))), "{other}");
        }
        for mine in ["a/b", "a/*", "**", "*/b", "**/b"] {
            let before = table.matching(&topic("a/b"));
            table.insert(&filter(mine), 9);
            assert!(!same(&before, &table.matching(&topic("a/b"))), "{mine}");
        }
        assert!(same(&before, &copy.matching(&topic("a/b"))), "a copy stays as it was");
    }

    proptest! {
        #[test]
        fn the_table_finds_what_each_filter_matches(
            filters in prop::collection::vec("(a|b|\\*|\\*\\*)(/(a|b|\\*|\\*\\*)){0,4}", 0..20),
            gone in prop::collection::vec(any::<bool>(), 20),
            text in "[ab](/[ab]){0,4}",
        ) {
            let filters: Vec<_> = filters.iter().map(|text| filter(text)).collect();
            let mut table = table(&filters);
            for ((filter, value), _) in filters.iter().zip(0..).zip(&gone).filter(|(_, gone)| **gone) {
                table.update(filter, |list| list.retain(|known| *known != value));
            }
            let expected = filters.iter().zip(0..).zip(&gone).filter(|((filter, _), gone)| !**gone && filter.matches(&topic(&text)));
            prop_assert_eq!(values(&table, &text), expected.map(|((_, value), _)| value).collect::<Vec<_>>());
            for (filter, value) in filters.iter().zip(0..) {
                table.update(filter, |list| list.retain(|known| *known != value));
            }
            prop_assert!(table.exact.is_empty() && table.wild.is_empty(), "what is gone leaves nothing behind");
        }
    }
}
