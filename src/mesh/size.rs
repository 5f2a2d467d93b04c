//! Three sizes of what is sent: the large must not take the room of the small.

/// How large a payload is. What waits, or is kept, is limited for each size by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Written in one piece.
    Small,
    /// Written in parts.
    Medium,
    /// In parts too, and not before what else is large is written, as far as the receiver has no room for both.
    Large,
}

impl Size {
    pub(crate) fn of(bytes: usize) -> Self {
        if bytes <= MAX_SMALL {
            Self::Small
        } else if bytes <= MAX_MEDIUM {
            Self::Medium
        } else {
            Self::Large
        }
    }
}

/// Payloads up to this many bytes go out whole; a part of what is larger has as many.
pub(crate) const MAX_SMALL: usize = 64 << 10;
/// Half of what a receiver holds of medium messages that have begun, so that two always go on beside each other.
const MAX_MEDIUM: usize = 4 << 20;
