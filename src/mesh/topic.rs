//! Topics and the filters that select them.

use super::name::{BadName, check, name};

name! {
    /// A topic: parts between `/`, none empty, none with a wildcard; 1 to 255 bytes, no control characters.
    Topic, check_topic
}
name! {
    /// Which topics to listen to: a topic in which a part may be `*` (any one part) or `**` (any number of parts, also
    /// none).
    TopicFilter, check_filter
}

impl Topic {
    /// The parts between `/`.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.as_str().split('/')
    }
}

impl TopicFilter {
    /// Whether messages on `topic` go to who listens with this filter.
    #[must_use]
    pub fn matches(&self, topic: &Topic) -> bool {
        // The greedy match of shell globs, on parts: on a mismatch, let the last `**` take one part more.
        let (filter, topic) = (self.as_str(), topic.as_str());
        let (mut filter_rest, mut topic_rest) = (Some(filter), Some(topic));
        let mut retry: Option<(Option<&str>, &str)> = None; // the filter behind the last `**`, the topic it began at
        loop {
            match (head(filter_rest), head(topic_rest)) {
                (None, None) => return true,
                (Some((ANY_PARTS, behind)), _) => {
                    if behind.is_none() {
                        return true;
                    }
                    filter_rest = behind;
                    retry = topic_rest.map(|topic| (behind, topic));
                }
                (Some((wanted, filter_behind)), Some((part, topic_behind))) if wanted == ANY_PART || wanted == part => {
                    (filter_rest, topic_rest) = (filter_behind, topic_behind);
                }
                _ => {
                    let Some((behind, began)) = retry else { return false };
                    topic_rest = head(Some(began)).and_then(|(_, rest)| rest);
                    filter_rest = behind;
                    retry = topic_rest.map(|topic| (behind, topic));
                }
            }
        }
    }

    /// Whether it has a wildcard.
    pub(super) fn is_wild(&self) -> bool {
        self.as_str().contains('*')
    }

    /// The one topic that the filter selects, if it has no wildcard.
    #[must_use]
    pub fn as_topic(&self) -> Option<Topic> {
        Topic::new(self.as_str()).ok()
    }

    /// The parts between `/`.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.as_str().split('/')
    }
}

impl From<Topic> for TopicFilter {
    fn from(topic: Topic) -> Self {
        Self::new(topic.as_str()).unwrap_or_else(|_| unreachable!("every topic is a filter"))
    }
}

fn head(text: Option<&str>) -> Option<(&str, Option<&str>)> {
    text.map(|text| text.split_once('/').map_or((text, None), |(part, rest)| (part, Some(rest))))
}

fn check_topic(text: &str) -> Result<(), BadName> {
    check_parts("topic", text)?;
    if text.contains('*') {
        let hint = "a topic to send to has no wildcards ('*' and '**' belong in filters)";
        return Err(BadName::Wildcard { text: text.to_owned(), hint });
    }
    Ok(())
}

fn check_filter(text: &str) -> Result<(), BadName> {
    check_parts("filter", text)?;
    if text.split('/').any(|part| part.contains('*') && part != ANY_PART && part != ANY_PARTS) {
        let hint = "a wildcard stands for whole parts: 'a/*/c' or 'a/**', not 'a*'";
        return Err(BadName::Wildcard { text: text.to_owned(), hint });
    }
    Ok(())
}

fn check_parts(what: &'static str, text: &str) -> Result<(), BadName> {
    check(what, text)?;
    if text.split('/').any(str::is_empty) {
        return Err(BadName::EmptyPart { what, text: text.to_owned() });
    }
    Ok(())
}

/// The wildcard for one part.
pub(super) const ANY_PART: &str = "*";
/// The wildcard for any number of parts.
pub(super) const ANY_PARTS: &str = "**";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn filters_select_what_their_wildcards_say() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/*", "a/b", true),
            ("a/*", "a", false),
            ("a/*", "a/b/c", false),
            ("a/**", "a", true),
            ("a/**", "a/b/c", true),
            ("**", "x", true),
            ("**", "x/y/z", true),
            ("**/c", "c", true),
            ("**/c", "a/b/c", true),
            ("**/c", "a/c/d", false),
            ("a/**/d", "a/d", true),
            ("a/**/d", "a/b/c/d", true),
            ("a/**/d/**", "a/b/d/e/f", true),
            ("**/a/*/b", "a/a/x/b", true),
            ("*/**", "a", true),
            ("**/*", "a", true),
            ("**/*/*", "a", false),
        ] {
            let (filter, topic) = (TopicFilter::new(filter).unwrap(), Topic::new(topic).unwrap());
            assert_eq!(filter.matches(&topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn badly_formed_topics_and_filters_are_refused() {
        for bad in ["", "/a", "a/", "a//b", "a/*", "a*", "a\u{7}"] {
            assert!(Topic::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "/", "a/b*", "***", "a/**b", "*a/c"] {
            assert!(TopicFilter::new(bad).is_err(), "{bad:?}");
        }
    }

    /// The definition, word for word: slow and obviously right.
    fn matches_by_definition(filter: &[&str], topic: &[&str]) -> bool {
        match filter.split_first() {
            None => topic.is_empty(),
            Some((&ANY_PARTS, rest)) => (0..=topic.len()).any(|taken| matches_by_definition(rest, &topic[taken..])),
            Some((wanted, rest)) => topic.split_first().is_some_and(|(part, topic)| {
                (*wanted == ANY_PART || wanted == part) && matches_by_definition(rest, topic)
            }),
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_definition(filter in "(a|b|\\*|\\*\\*)(/(a|b|\\*|\\*\\*)){0,5}", topic in "[ab](/[ab]){0,5}") {
            let by_definition = matches_by_definition(&filter.split('/').collect::<Vec<_>>(), &topic.split('/').collect::<Vec<_>>());
            prop_assert_eq!(TopicFilter::new(&filter).unwrap().matches(&Topic::new(&topic).unwrap()), by_definition);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,300}") {
            let _ = (Topic::new(&text), TopicFilter::new(&text));
        }
    }
}
