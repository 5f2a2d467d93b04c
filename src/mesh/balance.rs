//! Which node of a group gets the next message.

use std::collections::HashMap;

use rand::{Rng, RngExt};

use super::NodeName;
use super::routes::Group;

/// How one node of a group is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// One after the other, from a random start; counted for each topic and group alone, so shares differ by one at most.
    #[default]
    RoundRobin,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Rules;
impl Rules {
    pub(crate) fn for_service(&self, _service: &super::ServiceName) -> Policy {
        Policy::RoundRobin
    }
}

/// Where one topic's groups are in their turns.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    next: HashMap<NodeName, usize>,
}

impl Turns {
    /// The position among the group's members of who gets the next message. The group has members.
    pub(crate) fn pick(
        &mut self,
        policy: &Policy,
        group: &Group,
        _load: impl Fn(usize) -> usize,
        _key: Option<&[u8]>,
        rng: &mut impl Rng,
    ) -> usize {
        let members = group.members.len();
        match policy {
            Policy::RoundRobin => {
                // Two look-ups at the first pick, so that all others clone no name.
                let Some(next) = self.next.get_mut(&group.name) else {
                    let first = rng.random_range(0..members);
                    self.next.insert(group.name.clone(), first + 1);
                    return first;
                };
                let turn = *next % members;
                *next = turn + 1;
                turn
            }
        }
    }

    /// Drops the turns of groups that no longer listen.
    pub(crate) fn retain(&mut self, groups: &[Group]) {
        if self.next.len() > groups.len() {
            self.next.retain(|name, _| groups.iter().any(|group| group.name == *name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kit::{dice, group};
    use super::*;

    /// How often each member was picked.
    fn spread(turns: &mut Turns, group: &Group, sends: usize) -> Vec<usize> {
        let mut rng = dice(7);
        let mut sent = vec![0; group.members.len()];
        (0..sends).for_each(|_| sent[turns.pick(&Policy::RoundRobin, group, |_| 0, None, &mut rng)] += 1);
        sent
    }

    #[test]
    fn shares_differ_by_at_most_one() {
        for members in 1..=5 {
            let sent = spread(&mut Turns::default(), &group("g", members), 1000);
            assert!(sent.iter().max().unwrap() - sent.iter().min().unwrap() <= 1, "{sent:?}");
        }
    }

    #[test]
    fn two_groups_of_two_take_turns_apart() {
        let (mut turns, a, b) = (Turns::default(), group("a", 2), group("b", 2));
        let mut rng = dice(1);
        let mut sent = [[0; 2]; 2];
        for _ in 0..1000 {
            sent[0][turns.pick(&Policy::RoundRobin, &a, |_| 0, None, &mut rng)] += 1;
            sent[1][turns.pick(&Policy::RoundRobin, &b, |_| 0, None, &mut rng)] += 1;
        }
        assert_eq!(sent, [[500; 2]; 2]);
    }

    #[test]
    fn a_group_that_shrinks_goes_on_with_who_is_left() {
        let mut turns = Turns::default();
        spread(&mut turns, &group("g", 5), 4);
        assert_eq!(spread(&mut turns, &group("g", 1), 10), [10]);
        turns.retain(&[]);
        assert!(turns.next.is_empty());
    }
}
