//! What a service says when it cannot do what was asked.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::NodeId;

/// Why a service did not do what was asked: what a handler returns, and what its caller is told.
///
/// Any error becomes one with `?`: its type is the kind, its text the message, and what it says of its sources the causes.
/// Like other types that any error becomes, it is no [`Error`] itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure it is, for programs: chosen by the service, or the name of a Rust type.
    pub kind: String,
    /// What went wrong, for people.
    pub message: String,
    /// What it came of, the nearest cause first.
    #[serde(default)]
    pub causes: Vec<String>,
}

/// A service ran at that node and failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFailure {
    /// The node that ran it.
    pub node: NodeId,
    /// What it says.
    pub failure: Failure,
}

impl Failure {
    /// A failure of a kind of the service's own choice.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: kind.into(), message: message.into(), causes: Vec::new() }
    }

    /// The handler panicked.
    pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Self::new(Self::PANICKED, text.unwrap_or_else(|| "the handler panicked".into()))
    }

    /// As much of it as travels: at most [`MAX_FAILURE`] bytes encoded. First what programs look at, then what people read:
    /// the kind, the message, as many causes as fit.
    pub(crate) fn shortened(&self) -> Self {
        let mut room = MAX_FAILURE - FRAME;
        let mut fit = |text: &str, most: usize| {
            let text = start_of(text, most.min(room.saturating_sub(HEAD)));
            room -= (text.len() + HEAD).min(room);
            text.to_owned()
        };
        let (kind, message) = (fit(&self.kind, MAX_KIND), fit(&self.message, MAX_FAILURE));
        let fits = |cause: &&String| {
            let cost = cause.len() + HEAD;
            let fits = cost <= room;
            room -= if fits { cost } else { room };
            fits
        };
        Self { kind, message, causes: self.causes.iter().take_while(fits).cloned().collect() }
    }

    /// The kind of a failure whose handler panicked.
    pub const PANICKED: &'static str = "panicked";
    /// The kind by which a handler says that it did nothing and has no time: the caller tries another node.
    pub const BUSY: &'static str = "busy";
    /// The kind by which a handler says that it lost what had the call: it may have run. The caller is told
    /// [`CallError::Disconnected`](crate::CallError::Disconnected).
    pub const DISCONNECTED: &'static str = "disconnected";
    /// The kind by which a handler says that the caller may not do that: its message names the rule or the setting.
    pub const REFUSED: &'static str = "refused";
    /// The kind of a failure whose request is not what the handler takes.
    pub const BAD_REQUEST: &'static str = "bad-request";
    /// The kind of a failure whose reply could not be sent: too large for the caller, or not to be encoded.
    pub const BAD_REPLY: &'static str = "bad-reply";
    /// The kind of a failure that ends a channel because an item is larger than the other end takes.
    pub const TOO_LARGE: &'static str = "too-large";
    /// The kind of a failure that ends a channel whose other end does not keep to the protocol.
    pub const PROTOCOL: &'static str = "protocol";
}

/// The first bytes of a text, at most so many: whole characters.
fn start_of(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let causes = std::iter::successors(error.source(), |cause: &&dyn Error| (*cause).source());
        Self {
            kind: std::any::type_name::<E>().to_owned(),
            message: error.to_string(),
            causes: causes.map(ToString::to_string).collect(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl fmt::Display for RemoteFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.failure.kind, self.node, self.failure)
    }
}

impl Error for RemoteFailure {}

/// Bytes of an encoded failure: far less than any peer takes in one frame besides a payload.
pub(crate) const MAX_FAILURE: usize = 4 << 10;
/// Bytes of its kind.
const MAX_KIND: usize = 512;
/// Bytes that the encoding takes besides the texts, and for each of them.
const FRAME: usize = 32;
const HEAD: usize = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the map")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn an_error_keeps_its_kind_message_and_causes() {
        let failure = Failure::from(Outer("x".parse::<i32>().unwrap_err()));
        assert!(failure.kind.ends_with("Outer"), "{failure:?}");
        assert_eq!(failure.message, "cannot read the map");
        assert_eq!(failure.causes, ["invalid digit found in string"]);
        assert_eq!(failure.to_string(), "cannot read the map: invalid digit found in string");
    }

    #[test]
    fn a_panic_keeps_its_text() {
        let panic = std::panic::catch_unwind(|| panic!("no {}", "way")).unwrap_err();
        assert_eq!(Failure::panicked(&*panic), Failure::new(Failure::PANICKED, "no way"));
    }

    fn encoded(failure: &Failure) -> usize {
        let mut out = Vec::new();
        ciborium::into_writer(failure, &mut out).unwrap();
        out.len()
    }

    proptest! {
        #[test]
        fn what_is_shortened_fits_and_what_fits_is_not_shortened(
            (kind, message) in ("[aé]{0,800}", "[aé]{0,5000}"),
            causes in prop::collection::vec("[aé]{0,300}", 0..60),
        ) {
            let failure = Failure { kind, message, causes };
            let short = failure.shortened();
            prop_assert!(encoded(&short) <= MAX_FAILURE, "{} bytes", encoded(&short));
            prop_assert!(failure.kind.starts_with(&short.kind) && failure.message.starts_with(&short.message));
            prop_assert!(failure.causes.starts_with(&short.causes));
            if failure.kind.len() <= MAX_KIND && encoded(&failure) + 4 * FRAME + HEAD * failure.causes.len() <= MAX_FAILURE {
                prop_assert_eq!(&short, &failure);
            }
            prop_assert_eq!(short.shortened(), short);
        }
    }

    #[test]
    fn of_many_causes_as_many_are_kept_as_fit() {
        let failure = Failure { causes: vec![String::new(); 10_000], ..Failure::new("k", "m") };
        let short = failure.shortened();
        assert!(short.causes.len() > 1000 && encoded(&short) <= MAX_FAILURE, "{} causes", short.causes.len());
    }
}
