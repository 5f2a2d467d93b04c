//! Bytes to values and back: what peers say to each other, and what programs say to the daemon. No I/O.
//!
//! Decoding is the only way to make a value from foreign bytes, and it checks everything that a value promises.

pub(crate) mod channel;
pub(crate) mod control;
mod fields;
pub(crate) mod frame;
pub(crate) mod message;
pub(crate) mod parts;

use bytes::{Buf, Bytes, BytesMut};

/// Cuts the next length-prefixed block off the front of what was received, if it is there whole.
///
/// # Errors
/// The announced length is over `max`: refused before anything is kept for it.
pub(crate) fn split_block(received: &mut BytesMut, max: usize) -> Result<Option<Bytes>, TooLong> {
    let Some(prefix) = received.first_chunk() else { return Ok(None) };
    let len = u32::from_be_bytes(*prefix) as usize;
    if len > max {
        return Err(TooLong { len, max });
    }
    if received.len() < LENGTH + len {
        received.reserve(LENGTH + len - received.len());
        return Ok(None);
    }
    received.advance(LENGTH);
    Ok(Some(received.split_to(len).freeze()))
}

/// A block announces more bytes than this side takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a block of {len} bytes, over the limit of {max}")]
pub(crate) struct TooLong {
    pub(crate) len: usize,
    pub(crate) max: usize,
}

/// Bytes of the length before each block: a big-endian `u32` that does not count itself.
pub(crate) const LENGTH: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_whole_or_not_yet() {
        let mut received = BytesMut::from(&[0, 0, 0, 2, 7, 8, 0, 0, 0, 1][..]);
        assert_eq!(split_block(&mut received, 10), Ok(Some(Bytes::from_static(&[7, 8]))));
        assert_eq!(split_block(&mut received, 10), Ok(None));
        received.extend_from_slice(&[9]);
        assert_eq!(split_block(&mut received, 10), Ok(Some(Bytes::from_static(&[9]))));
        assert_eq!(split_block(&mut received, 10), Ok(None));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_come() {
        let mut received = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        assert_eq!(split_block(&mut received, 100), Err(TooLong { len: u32::MAX as usize, max: 100 }));
        assert!(received.capacity() < 1000);
    }
}
