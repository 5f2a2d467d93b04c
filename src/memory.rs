//! How the allocator treats what is large.

use std::hint::black_box;
use std::sync::Once;

/// Lets the allocator keep what is freed, up to 16 MiB per arena, for what comes next. For who begins with large messages.
///
/// That of glibc gives blocks of 128 KiB and more back to the system when they are freed, until the process has freed a larger
/// one: from then on it keeps what is smaller (`M_MMAP_THRESHOLD` in mallopt(3)). Without that, each large message costs hundreds
/// of page faults, which take a quarter of the rate. One block, never touched, is enough. Other allocators take no notice.
pub(crate) fn keep_freed() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(black_box(Vec::<u8>::with_capacity(KEPT))));
}

/// As much as waits for one peer.
const KEPT: usize = 8 << 20;
