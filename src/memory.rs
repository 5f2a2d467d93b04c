//! How the allocator treats what is large.

use std::hint::black_box;
use std::sync::Once;
use std::thread;

use bytes::Bytes;

/// Lets the allocator keep what is freed, up to 16 MiB per arena, for what comes next. For who begins with large messages.
///
/// That of glibc gives blocks of 128 KiB and more back to the system when they are freed, until the process has freed a larger
/// one: from then on it keeps what is smaller (`M_MMAP_THRESHOLD` in mallopt(3)). Without that, each large message costs hundreds
/// of page faults, which take a quarter of the rate. One block, never touched, is enough. Other allocators take no notice.
pub(crate) fn keep_freed() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(black_box(Vec::<u8>::with_capacity(KEPT))));
}

/// The same bytes. Where their last owner drops them, and they are very many, a thread of their own gives them back to the system,
/// which takes a fifth of a second for 1 GiB: to a worker thread, that is a fifth of a second in which it does nothing else.
pub(crate) fn freed_apart(block: Bytes) -> Bytes {
    if block.len() < LONG { block } else { Bytes::from_owner(FreedApart(block)) }
}

struct FreedApart(Bytes);

impl AsRef<[u8]> for FreedApart {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for FreedApart {
    fn drop(&mut self) {
        let block = std::mem::take(&mut self.0);
        let _ = thread::Builder::new().name("freeing".to_owned()).spawn(|| drop(block)); // no thread: it is freed here
    }
}

/// Bytes whose freeing takes far longer than the start of a thread: some milliseconds.
const LONG: usize = 32 << 20;
/// As much as waits for one peer.
const KEPT: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_apart_is_the_same_until_then() {
        for len in [0, 1, LONG - 1, LONG] {
            let mut block = vec![0; len];
            block.fill(7);
            let bytes = freed_apart(block.clone().into());
            let end = bytes.slice(len / 2..);
            drop(bytes);
            assert_eq!(&end[..], &block[len / 2..]);
        }
    }
}
