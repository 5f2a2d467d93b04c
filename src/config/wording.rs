//! What is wrong with a value, in the words of whoever wrote it.

/// What a parser of TOML says, in one line and without the names that Rust has for things. What it does not know stays as it is:
/// most is said by types of our own, in words of their own.
pub(crate) fn plain(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    if let Some((found, wanted)) = parts(&message, &["invalid type: ", "invalid value: "], ", expected ") {
        return match (found, wanted) {
            _ if found.ends_with("` as i128") || found.ends_with("` as u128") => {
                format!("{} is too large", found_as(found))
            }
            ("map", "a sequence") => "there can be several: write [[..]] above it, not [..]".to_owned(),
            _ => format!("{} is not {}", found_as(found), wanted_as(wanted)),
        };
    }
    if let Some((found, known)) = parts(&message, &["unknown variant "], ", expected ") {
        let known = known.strip_prefix("one of ").unwrap_or(known);
        return format!("{} is not one of {}", found.replace('`', "\""), known.replace('`', "").replace(" or ", ", "));
    }
    if message == "wanted string or table" {
        return "a word in quotes is wanted".to_owned();
    }
    if let Some(key) = message.strip_prefix("missing field ") {
        return format!("{} is missing", key.replace('`', "'"));
    }
    message
}

fn parts<'a>(message: &'a str, beginnings: &[&str], between: &str) -> Option<(&'a str, &'a str)> {
    // What was found may hold anything; what is wanted does not.
    beginnings.iter().find_map(|beginning| message.strip_prefix(beginning))?.rsplit_once(between)
}

/// What serde calls "integer `3`".
fn found_as(found: &str) -> &str {
    let value = || found.split_once('`').and_then(|(_, value)| value.rsplit_once('`'));
    match found {
        "sequence" => "a list",
        "map" => "a table",
        _ => found.strip_prefix("string ").or_else(|| Some(value()?.0)).unwrap_or(found),
    }
}

fn wanted_as(wanted: &str) -> &str {
    match wanted {
        "a boolean" => "true or false",
        "a string" | "path string" | "string" => "a text in quotes",
        "a sequence" => "a list: write [..]",
        "a map" => "a table",
        "a nonzero u16" => "a whole number from 1 to 65535",
        "a nonzero u32" => "a whole number from 1 to 4294967295",
        "u32" => "a whole number from 0 to 4294967295",
        _ if wanted.starts_with("struct ") => "a table",
        _ if wanted.starts_with("a nonzero ") => "a whole number from 1 on",
        _ => wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_without_words_of_rust() {
        for (said, plainly) in [
            ("invalid value: integer `0`, expected a nonzero usize", "0 is not a whole number from 1 on"),
            ("invalid type: string \"abc\", expected a nonzero u16", "\"abc\" is not a whole number from 1 to 65535"),
            ("invalid type: floating point `1.5`, expected u32", "1.5 is not a whole number from 0 to 4294967295"),
            ("invalid type: string \"a\", expected a sequence", "\"a\" is not a list: write [..]"),
            ("invalid type: map, expected a sequence", "there can be several: write [[..]] above it, not [..]"),
            ("invalid type: integer `9` as i128, expected a number of bytes", "9 is too large"),
            ("wanted string or table", "a word in quotes is wanted"),
            ("invalid type: integer `3`, expected a string\n", "3 is not a text in quotes"),
            (
                "invalid type: string \"a, expected b`c`\", expected a boolean",
                "\"a, expected b`c`\" is not true or false",
            ),
            ("invalid type: integer `3`, expected struct DiscoveryConfig", "3 is not a table"),
            ("unknown variant `rw`, expected one of `read`, `write`", "\"rw\" is not one of read, write"),
            ("unknown variant `rw`, expected `read` or `write`", "\"rw\" is not one of read, write"),
            ("missing field `path`", "'path' is missing"),
            ("unclosed array, expected `]`", "unclosed array, expected `]`"),
        ] {
            assert_eq!(plain(said), plainly);
        }
    }
}
