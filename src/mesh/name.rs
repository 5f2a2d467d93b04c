//! Names that people give: meshes, nodes, services.

/// Most bytes of UTF-8 in the name of a node or service, and in a topic or filter.
pub const MAX_NAME: usize = 255;
/// Most bytes in the name of a mesh: it names directories and sockets, whose paths are short.
pub const MAX_MESH_NAME: usize = 64;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadName {
    /// A name has at least one character.
    #[error("a {what} cannot be empty")]
    Empty {
        /// What it was to name.
        what: &'static str,
    },
    /// Longer than the limit.
    #[error("a {what} has at most {max} bytes, this one has {len}")]
    TooLong {
        /// What it was to name.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Holds a character that would garble a terminal or a log.
    #[error("a {what} cannot hold control characters: {text:?}")]
    Control {
        /// What it was to name.
        what: &'static str,
        /// The text.
        text: String,
    },
    /// The name of a mesh names a directory.
    #[error("a mesh name holds letters, digits, '.', '_' and '-', and starts with a letter or digit: {0:?}")]
    NotAMesh(String),
    /// A topic's parts are not empty.
    #[error("a {what} has no empty parts: {text:?} (parts stand between '/')")]
    EmptyPart {
        /// What it was to name.
        what: &'static str,
        /// The text.
        text: String,
    },
    /// Wildcards stand for whole parts, and only in filters.
    #[error("{text:?}: {hint}")]
    Wildcard {
        /// The text.
        text: String,
        /// What would be right.
        hint: &'static str,
    },
}

/// What every name is checked for.
pub(super) fn check(what: &'static str, text: &str) -> Result<(), BadName> {
    if text.is_empty() {
        return Err(BadName::Empty { what });
    }
    if text.len() > MAX_NAME {
        return Err(BadName::TooLong { what, len: text.len(), max: MAX_NAME });
    }
    if text.chars().any(char::is_control) {
        return Err(BadName::Control { what, text: text.to_owned() });
    }
    Ok(())
}

/// A checked name: cheap to clone, the same text in serde, `Display` and `FromStr`.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Checks a text and takes it.
            ///
            /// # Errors
            /// Says which rule the text breaks.
            pub fn new(text: impl AsRef<str>) -> Result<Self, BadName> {
                let text = text.as_ref();
                let check: fn(&str) -> Result<(), BadName> = $check;
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = BadName;
            fn try_from(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}
pub(super) use name;

name! {
    /// The name of a node, and so of the group of all nodes of that name: 1 to 255 bytes, no control characters.
    NodeName, |text| check("node name", text)
}
name! {
    /// The name of a service: 1 to 255 bytes, no control characters.
    ServiceName, |text| check("service name", text)
}
name! {
    /// The name of a mesh: 1 to 64 letters, digits, `.`, `_`, `-`; starts with a letter or digit.
    MeshName, check_mesh
}

impl ServiceName {
    /// Whether it is one of meshd's own, for files and the like: these begin with `meshd.` and are not listed.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        is_reserved(self.as_str())
    }
}

pub(super) fn is_reserved(service: &str) -> bool {
    service.starts_with(RESERVED)
}

fn check_mesh(text: &str) -> Result<(), BadName> {
    check("mesh name", text)?;
    if text.len() > MAX_MESH_NAME {
        return Err(BadName::TooLong { what: "mesh name", len: text.len(), max: MAX_MESH_NAME });
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !text.chars().all(fits) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(BadName::NotAMesh(text.to_owned()));
    }
    Ok(())
}

const RESERVED: &str = "meshd.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_over_the_limit_or_with_control_characters_are_refused() {
        assert!(NodeName::new("worker 1 \u{e9}").is_ok());
        assert!(matches!(NodeName::new(""), Err(BadName::Empty { .. })));
        assert!(NodeName::new("x".repeat(255)).is_ok());
        assert!(matches!(NodeName::new("x".repeat(256)), Err(BadName::TooLong { len: 256, max: 255, .. })));
        assert!(matches!(ServiceName::new("a\nb"), Err(BadName::Control { .. })));
    }

    #[test]
    fn a_mesh_name_can_name_a_directory() {
        for good in ["default", "lab-2", "a.b_c"] {
            assert!(MeshName::new(good).is_ok(), "{good}");
        }
        for bad in ["../x", ".x", "a/b", "\u{e9}", "", &"x".repeat(65)] {
            assert!(MeshName::new(bad).is_err(), "{bad}");
        }
    }
}
