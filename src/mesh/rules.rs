//! Which topics and services are balanced how.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{GroupBy, Policy, ServiceName, Topic, TopicFilter};

/// A rule of balancing: one `[[balance]]` in `config.toml`. The first that matches wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum BalanceRule {
    /// For messages on the topics that a filter selects. Without a rule: [`Policy::RoundRobin`] by [`GroupBy::Name`].
    Topics {
        /// Which topics.
        filter: TopicFilter,
        /// How one node of each group is chosen.
        policy: Policy,
        /// What makes a group.
        group_by: GroupBy,
    },
    /// For calls of one service. Without a rule: [`Policy::LeastLoaded`].
    Service {
        /// Which service.
        service: ServiceName,
        /// How one of the nodes that offer it is chosen.
        policy: Policy,
    },
}

/// A rule as it stands in a file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic: Option<TopicFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service: Option<ServiceName>,
    policy: Policy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group_by: Option<GroupBy>,
}

/// All rules of a peer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    topics: Vec<(TopicFilter, Policy, GroupBy)>,
    services: HashMap<ServiceName, Policy>,
}

impl Rules {
    /// Rules in the order in which they are to be tried.
    pub(crate) fn new(rules: impl IntoIterator<Item = BalanceRule>) -> Self {
        let mut all = Self::default();
        for rule in rules {
            match rule {
                BalanceRule::Topics { filter, policy, group_by } => all.topics.push((filter, policy, group_by)),
                BalanceRule::Service { service, policy } => drop(all.services.entry(service).or_insert(policy)),
            }
        }
        all
    }

    /// How messages on a topic are balanced.
    pub(crate) fn for_topic(&self, topic: &Topic) -> (Policy, GroupBy) {
        let rule = self.topics.iter().find(|(filter, ..)| filter.matches(topic));
        rule.map(|(_, policy, group_by)| (policy.clone(), *group_by)).unwrap_or_default()
    }

    /// How calls of a service are balanced.
    pub(crate) fn for_service(&self, service: &ServiceName) -> Policy {
        self.services.get(service).cloned().unwrap_or(Policy::LeastLoaded)
    }
}

impl TryFrom<Written> for BalanceRule {
    type Error = &'static str;

    fn try_from(rule: Written) -> Result<Self, Self::Error> {
        let Written { topic, service, policy, group_by } = rule;
        match (topic, service) {
            (Some(filter), None) => Ok(Self::Topics { filter, policy, group_by: group_by.unwrap_or_default() }),
            (None, Some(_)) if group_by.is_some() => {
                Err("group_by is for topics: the nodes that offer a service are one group; leave it out")
            }
            (None, Some(service)) => Ok(Self::Service { service, policy }),
            (Some(_), Some(_)) => Err("a rule is for a topic or a service, not both: make it two rules"),
            (None, None) => Err("a rule is for a topic or a service: add topic = \"jobs/**\" or service = \"resize\""),
        }
    }
}

impl From<BalanceRule> for Written {
    fn from(rule: BalanceRule) -> Self {
        match rule {
            BalanceRule::Topics { filter, policy, group_by } => {
                Self { topic: Some(filter), service: None, policy, group_by: Some(group_by) }
            }
            BalanceRule::Service { service, policy } => {
                Self { topic: None, service: Some(service), policy, group_by: None }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kit::topic;
    use super::*;

    fn rules(text: &str) -> Rules {
        Rules::new(serde_json::from_str::<Vec<BalanceRule>>(text).unwrap())
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        let rules = rules(
            r#"[{"topic": "jobs/big", "policy": "least_loaded"},
                {"topic": "jobs/**", "policy": "hash", "group_by": "host"},
                {"topic": "**", "policy": "random", "group_by": "name_and_host"},
                {"service": "resize", "policy": "local_first"},
                {"service": "resize", "policy": "hash"}]"#,
        );
        for (text, policy, group_by) in [
            ("jobs/big", Policy::LeastLoaded, GroupBy::Name),
            ("jobs", Policy::Hash, GroupBy::Host),
            ("other", Policy::Random, GroupBy::NameAndHost),
        ] {
            assert_eq!(rules.for_topic(&topic(text)), (policy, group_by), "{text}");
        }
        assert_eq!(rules.for_service(&ServiceName::new("resize").unwrap()), Policy::LocalFirst);
    }

    #[test]
    fn without_a_rule_topics_go_in_turns_and_calls_to_who_is_free() {
        let rules = rules("[]");
        assert_eq!(rules.for_topic(&topic("t")), (Policy::RoundRobin, GroupBy::Name));
        assert_eq!(rules.for_service(&ServiceName::new("s").unwrap()), Policy::LeastLoaded);
    }
}
