//! Bytes to values and back: what peers say to each other, and what programs say to the daemon. No I/O.
//!
//! Decoding is the only way to make a value from foreign bytes, and it checks everything that a value promises.

pub(crate) mod channel;
pub(crate) mod control;
mod fields;
pub(crate) mod frame;
pub(crate) mod message;
pub(crate) mod parts;

use std::ops::Range;

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

/// How many bytes at the front of what was received are whole blocks, and how many blocks that are.
///
/// # Errors
/// As for [`split_block`].
pub(crate) fn whole_blocks(received: &[u8], max: usize) -> Result<(usize, usize), TooLong> {
    let (mut at, mut blocks) = (0, 0);
    while let Some(prefix) = received[at..].first_chunk() {
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > max {
            return Err(TooLong { len, max });
        }
        if received.len() - at < LENGTH + len {
            break;
        }
        at += LENGTH + len;
        blocks += 1;
    }
    Ok((at, blocks))
}

/// Where the content of the next block stands. `rest` is where whole blocks are that were not looked at yet.
pub(crate) fn next_block(blocks: &[u8], rest: &mut Range<usize>) -> Option<Range<usize>> {
    let len = u32::from_be_bytes(*blocks[rest.clone()].first_chunk()?) as usize;
    let content = rest.start + LENGTH..rest.start + LENGTH + len;
    rest.start = content.end;
    Some(content)
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
    fn whole_blocks_are_found_where_they_stand() {
        let received = [0, 0, 0, 2, 7, 8, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0, 0, 0, 2, 1];
        assert_eq!(whole_blocks(&received, 10), Ok((15, 3)));
        let mut rest = 0..15;
        let found: Vec<_> = std::iter::from_fn(|| next_block(&received, &mut rest)).collect();
        assert_eq!(found, [4..6, 10..10, 14..15]);
        for end in 0..received.len() {
            let whole = [6, 10, 15].iter().filter(|len| **len <= end).count();
            assert_eq!(whole_blocks(&received[..end], 10).unwrap().1, whole);
        }
        assert_eq!(whole_blocks(&received, 1), Err(TooLong { len: 2, max: 1 }));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_come() {
        let mut received = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        assert_eq!(split_block(&mut received, 100), Err(TooLong { len: u32::MAX as usize, max: 100 }));
        assert!(received.capacity() < 1000);
    }
}
