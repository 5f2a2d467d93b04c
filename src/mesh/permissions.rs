//! Who may do what at this peer: `[[allow]]` in `config.toml`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::is_reserved;
use super::{BadId, Identity};

/// What needs permission. The peer that owns the resource decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Action {
    /// To send messages on a topic to nodes of this peer.
    Send,
    /// To get messages on a topic from nodes of this peer.
    Listen,
    /// To call, or open a channel to, a service of this peer.
    Call,
    /// To get the calls of a service that this peer makes.
    Serve,
    /// To read files of a share of this peer.
    Get,
    /// To write files of a share of this peer.
    Put,
    /// To run a program on this peer.
    Exec,
    /// To stop this peer.
    Stop,
}

/// Whom a rule is about. Never a name: anybody may use any name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Who {
    /// `*`: every member of the mesh.
    Everyone,
    /// The holder of this identity, as `meshd identity` prints it.
    One(Identity),
}

/// A permission: one `[[allow]]` in `config.toml`.
///
/// A rule is about the resources that its pattern selects: topics, services, `share/path`, programs. Where at least one rule is
/// about an action and a resource, only those may do it whom one of these rules names. Where none is, the default holds: what
/// concerns messages and services is open to all members, files and programs as far as `[[share]]` and `[exec]` open them, and
/// stopping to nobody. A peer may do to itself what it likes, and services of meshd's own (`meshd.`) are governed by what is done
/// over them: `get`, `put`, `exec`, `stop`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowRule {
    /// What the refused are told. None: `<action> <pattern>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whom it allows.
    pub who: Vec<Who>,
    /// What it allows.
    pub action: Vec<Action>,
    /// On which resources: parts between `/`, where `*` stands for one part and `**` for any number of parts, also none.
    pub pattern: String,
}

/// Why something is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("refused by the rule '{rule}'")]
pub struct NotAllowed {
    /// The name of the rule that does not name who asks.
    pub rule: String,
}

impl NotAllowed {
    /// What to do about it.
    pub const HINT: &str = "the rule is an [[allow]] in config.toml of the peer that refuses: it has to name the identity that \
                            `meshd identity` prints where this was tried";
}

/// All rules of a peer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Permissions(Vec<AllowRule>);

impl Permissions {
    pub(crate) fn new(rules: Vec<AllowRule>) -> Self {
        Self(rules)
    }

    /// Whether any rule is about this action: if none is, there is nothing to ask. To be asked where it is cheap to ask again:
    /// it looks through all rules.
    pub(crate) fn is_about(&self, action: Action) -> bool {
        self.0.iter().any(|rule| rule.action.contains(&action))
    }

    /// Whether somebody may do something. The identity is `None` if it is not known.
    ///
    /// # Errors
    /// Names the rule that would have to name them.
    pub(crate) fn check(&self, who: Option<Identity>, action: Action, resource: &str) -> Result<(), NotAllowed> {
        self.check_names(who, action, &[resource])
    }

    /// Whether somebody may do something with what has several names: a rule about one of them is about it.
    ///
    /// # Errors
    /// As for [`check`](Self::check).
    pub(crate) fn check_names(&self, who: Option<Identity>, action: Action, names: &[&str]) -> Result<(), NotAllowed> {
        if matches!(action, Action::Call | Action::Serve) && names.iter().all(|name| is_reserved(name)) {
            return Ok(()); // what is done over it is governed, not that it is used
        }
        let mut refusal = (action == Action::Stop).then(|| NOBODY_STOPS.to_owned());
        for rule in self.0.iter().filter(|rule| names.iter().any(|name| rule.is_about(action, name))) {
            if rule.names(who) {
                return Ok(());
            }
            refusal = Some(rule.name(action));
        }
        refusal.map_or(Ok(()), |rule| Err(NotAllowed { rule }))
    }
}

impl AllowRule {
    fn is_about(&self, action: Action, resource: &str) -> bool {
        self.action.contains(&action) && selects(&parts(&self.pattern), &parts(resource))
    }

    fn names(&self, who: Option<Identity>) -> bool {
        self.who.iter().any(|allowed| match allowed {
            Who::Everyone => true,
            Who::One(identity) => Some(*identity) == who,
        })
    }

    /// What the refused are told: no longer than what travels.
    fn name(&self, action: Action) -> String {
        let name = self.name.clone().unwrap_or_else(|| format!("{action} {}", self.pattern));
        let end = (0..=name.len().min(MAX_RULE)).rev().find(|end| name.is_char_boundary(*end));
        name[..end.unwrap_or(0)].to_owned()
    }
}

impl Action {
    /// By its number on the wire.
    pub(crate) fn new(number: u8) -> Option<Self> {
        let all = [Self::Send, Self::Listen, Self::Call, Self::Serve];
        all.into_iter().find(|action| *action as u8 == number)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::Listen => "listen",
            Self::Call => "call",
            Self::Serve => "serve",
            Self::Get => "get",
            Self::Put => "put",
            Self::Exec => "exec",
            Self::Stop => "stop",
        })
    }
}

impl FromStr for Who {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        if text == "*" { Ok(Self::Everyone) } else { text.parse().map(Self::One) }
    }
}

impl TryFrom<String> for Who {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<Who> for String {
    fn from(who: Who) -> Self {
        match who {
            Who::Everyone => "*".to_owned(),
            Who::One(identity) => identity.to_string(),
        }
    }
}

/// A leading `/`, as of a program's path, makes no part.
fn parts(text: &str) -> Vec<&str> {
    text.split('/').filter(|part| !part.is_empty()).collect()
}

/// Goes back to the last `**` alone when something does not fit: what an earlier one takes more, the last can take as well. So
/// the cost is bounded by both lengths, whatever names others make up.
fn selects(pattern: &[&str], resource: &[&str]) -> bool {
    let (mut at, mut next) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while next < resource.len() {
        match pattern.get(at) {
            Some(&"**") => {
                back = Some((at + 1, next));
                at += 1;
            }
            Some(part) if *part == "*" || *part == resource[next] => {
                at += 1;
                next += 1;
            }
            _ => {
                let Some((behind, taken)) = &mut back else { return false };
                *taken += 1;
                (at, next) = (*behind, *taken);
            }
        }
    }
    pattern[at..].iter().all(|part| *part == "**")
}

/// Bytes of a rule's name that are told.
pub(crate) const MAX_RULE: usize = 255;
/// Stopping needs a rule; where there is none, this is told in its place.
const NOBODY_STOPS: &str = "stop is allowed to nobody";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(name: Option<&str>, who: Vec<Who>, action: Action, pattern: &str) -> AllowRule {
        AllowRule { name: name.map(str::to_owned), who, action: vec![action], pattern: pattern.to_owned() }
    }

    fn identity(byte: u8) -> Identity {
        Identity::from_bytes([byte; 32])
    }

    #[test]
    fn what_no_rule_is_about_is_open_but_stopping() {
        let none = Permissions::default();
        assert_eq!(none.check(None, Action::Send, "a/b"), Ok(()));
        assert!(none.check(Some(identity(1)), Action::Stop, "").is_err());
        let rules = Permissions::new(vec![rule(None, vec![], Action::Call, "admin/**")]);
        assert_eq!(rules.check(Some(identity(1)), Action::Call, "add"), Ok(()));
        assert_eq!(rules.check(Some(identity(1)), Action::Send, "admin/x"), Ok(()));
    }

    #[test]
    fn who_is_not_named_is_told_the_rule() {
        let ops = rule(Some("ops only"), vec![Who::One(identity(1))], Action::Exec, "*");
        let backup = rule(None, vec![Who::One(identity(2))], Action::Get, "data/**");
        let rules = Permissions::new(vec![ops, backup, rule(None, vec![Who::Everyone], Action::Get, "data/open/**")]);
        assert_eq!(rules.check(Some(identity(1)), Action::Exec, "uname"), Ok(()));
        assert_eq!(rules.check(Some(identity(2)), Action::Exec, "uname").unwrap_err().rule, "ops only");
        assert_eq!(rules.check(None, Action::Get, "data/x/y").unwrap_err().rule, "get data/**");
        assert_eq!(rules.check(None, Action::Get, "data/open/x"), Ok(()), "one of the rules is enough");
        assert_eq!(rules.check(Some(identity(1)), Action::Exec, "/usr/bin/uname"), Ok(()), "not of one part");
    }

    #[test]
    fn a_rule_about_one_of_several_names_is_about_all_of_them() {
        let rules = Permissions::new(vec![rule(None, vec![Who::One(identity(1))], Action::Exec, "uname")]);
        let names = ["/usr/bin/uname", "uname"];
        assert_eq!(rules.check_names(Some(identity(1)), Action::Exec, &names), Ok(()));
        assert!(rules.check_names(Some(identity(2)), Action::Exec, &names).is_err());
        assert_eq!(rules.check_names(Some(identity(2)), Action::Exec, &["/usr/bin/env"]), Ok(()));
    }

    #[test]
    fn services_of_meshds_own_are_governed_by_what_is_done_over_them() {
        let nobody = [Action::Call, Action::Serve, Action::Get].map(|action| rule(None, vec![], action, "**"));
        let rules = Permissions::new(nobody.into());
        for action in [Action::Call, Action::Serve] {
            assert_eq!(rules.check(None, action, "meshd.files"), Ok(()));
            assert!(rules.check(None, action, "meshd").is_err());
        }
        assert!(rules.check(None, Action::Get, "meshd.files").is_err());
    }

    #[test]
    fn a_rules_name_is_told_as_far_as_it_travels() {
        let long = rule(Some(&"\u{e9}".repeat(200)), vec![], Action::Call, "**");
        assert_eq!(Permissions::new(vec![long]).check(None, Action::Call, "x").unwrap_err().rule.len(), MAX_RULE - 1);
    }

    #[test]
    fn many_wildcards_cost_no_more_than_what_they_are_held_against() {
        let (pattern, resource) = ("**/a/".repeat(40) + "b", "a/".repeat(120) + "a");
        assert!(!selects(&parts(&pattern), &parts(&resource)));
    }

    /// As the documentation says it, at any cost.
    fn plainly(pattern: &[&str], resource: &[&str]) -> bool {
        match pattern {
            [] => resource.is_empty(),
            ["**", rest @ ..] => (0..=resource.len()).any(|skipped| plainly(rest, &resource[skipped..])),
            [part, rest @ ..] => resource
                .split_first()
                .is_some_and(|(first, others)| (*part == "*" || part == first) && plainly(rest, others)),
        }
    }

    proptest! {
        #[test]
        fn patterns_select_what_the_documentation_says(
            pattern in prop::collection::vec(prop::sample::select(vec!["a", "b", "*", "**"]), 0..7),
            resource in prop::collection::vec(prop::sample::select(vec!["a", "b"]), 0..7),
        ) {
            prop_assert_eq!(selects(&pattern, &resource), plainly(&pattern, &resource));
        }

        #[test]
        fn who_is_allowed_by_any_rule_is_allowed_and_others_only_where_no_rule_is(
            rules in prop::collection::vec((0_u8..4, prop::sample::select(vec!["a", "a/*", "**", "b/**"])), 0..5),
            who in 1_u8..4,
            resource in prop::sample::select(vec!["a", "a/x", "b", "b/c/d", "c"]),
        ) {
            let who_of = |byte| if byte == 0 { Who::Everyone } else { Who::One(identity(byte)) };
            let all = rules.iter().map(|(byte, pattern)| rule(None, vec![who_of(*byte)], Action::Send, pattern)).collect();
            let permissions = Permissions::new(all);
            let about: Vec<u8> = rules
                .iter()
                .filter(|(_, pattern)| plainly(&parts(pattern), &parts(resource)))
                .map(|(byte, _)| *byte)
                .collect();
            let allowed = about.is_empty() || about.contains(&0) || about.contains(&who);
            prop_assert_eq!(permissions.check(Some(identity(who)), Action::Send, resource).is_ok(), allowed);
            let anybody = about.is_empty() || about.contains(&0);
            prop_assert_eq!(permissions.check(None, Action::Send, resource).is_ok(), anybody);
            prop_assert_eq!(permissions.check(None, Action::Call, resource), Ok(()));
        }
    }

    #[test]
    fn patterns_select_by_parts() {
        for (pattern, resource, selected) in [
            ("**", "a/b", true),
            ("**", "", true),
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", false),
            ("a/**/d", "a/b/c/d", true),
            ("a/**", "a", true),
            ("/usr/bin/*", "/usr/bin/env", true),
            ("a", "ab", false),
        ] {
            assert_eq!(selects(&parts(pattern), &parts(resource)), selected, "{pattern} {resource}");
        }
    }
}
