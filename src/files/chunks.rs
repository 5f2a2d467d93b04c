//! Chunks: the parts of which a file is moved, which of them are there, and how their hashes make the file's.

use std::collections::BTreeMap;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Bytes of a chunk, but the last. A power of two, so that chunks are subtrees of the tree that BLAKE3 hashes a file by: each byte
/// is hashed once, for its chunk and for the file.
pub(super) const CHUNK: u64 = 1 << 20;
/// Bytes of the largest file: 16 TiB. What is kept for one that arrives is a bit per chunk.
pub(super) const MAX_FILE: u64 = 1 << 44;

/// How many chunks a file of that size has.
pub(super) fn count(size: u64) -> u64 {
    size.div_ceil(CHUNK)
}

/// Bytes of a chunk.
pub(super) fn length(size: u64, index: u64) -> usize {
    size.saturating_sub(index.saturating_mul(CHUNK)).min(CHUNK) as usize
}

/// The chaining value of a chunk of a file that has more than one.
pub(super) fn hash(index: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index * CHUNK);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// Which chunks are there.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    bits: Vec<u8>,
    held: u64,
}

/// The hash of a file out of those of its chunks, in any order. What comes too early is kept.
#[derive(Debug, Default)]
pub(super) struct Root {
    stack: Vec<ChainingValue>,
    last: Option<ChainingValue>,
    next: u64,
    early: BTreeMap<u64, ChainingValue>,
}

impl Held {
    pub(super) fn new(chunks: u64) -> Self {
        Self { bits: vec![0; chunks.div_ceil(8) as usize], held: 0 }
    }

    pub(super) fn from_bytes(bytes: &[u8], chunks: u64) -> Option<Self> {
        let fits = bytes.len() as u64 == chunks.div_ceil(8);
        let held = bytes.iter().map(|byte| u64::from(byte.count_ones())).sum();
        (fits && held <= chunks).then(|| Self { bits: bytes.to_owned(), held })
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.held
    }

    pub(super) fn has(&self, index: u64) -> bool {
        self.bits.get((index / 8) as usize).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }

    pub(super) fn set(&mut self, index: u64, held: bool) {
        let was = self.has(index);
        let Some(byte) = self.bits.get_mut((index / 8) as usize) else { return };
        match (was, held) {
            (false, true) => (*byte, self.held) = (*byte | (1 << (index % 8)), self.held + 1),
            (true, false) => (*byte, self.held) = (*byte & !(1 << (index % 8)), self.held - 1),
            _ => {}
        }
    }
}

impl Root {
    /// How many chunks from the first on are in it.
    pub(super) fn reached(&self) -> u64 {
        self.next
    }

    pub(super) fn add(&mut self, index: u64, value: ChainingValue) {
        self.early.insert(index, value);
        while let Some(value) = self.early.remove(&self.next) {
            if let Some(last) = self.last.replace(value) {
                self.complete(last);
            }
            self.next += 1;
        }
    }

    /// Another one follows this chunk: so all subtrees that it completes are whole.
    fn complete(&mut self, mut value: ChainingValue) {
        let mut chunks = self.next; // with this one
        while chunks & 1 == 0 {
            let Some(left) = self.stack.pop() else { break };
            value = merge_subtrees_non_root(&left, &value, Mode::Hash);
            chunks >>= 1;
        }
        self.stack.push(value);
    }

    /// The file's hash, if all of its chunks are in, and there are at least two.
    pub(super) fn finish(mut self, chunks: u64) -> Option<[u8; 32]> {
        if self.next != chunks || chunks < 2 {
            return None;
        }
        let mut value = self.last?;
        while let Some(left) = self.stack.pop() {
            if self.stack.is_empty() {
                return Some(*merge_subtrees_root(&left, &value, Mode::Hash).as_bytes());
            }
            value = merge_subtrees_non_root(&left, &value, Mode::Hash);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_hashes_of_chunks_make_the_files_in_any_order(
            chunks in 2_u64..20,
            last in 1..=CHUNK,
            order in any::<prop::sample::Index>(),
            seed in any::<u8>(),
        ) {
            let size = (chunks - 1) * CHUNK + last;
            let file: Vec<u8> = (0..size).map(|at| (at / 7) as u8 ^ seed).collect();
            let mut root = Root::default();
            let turn = order.index(chunks as usize) as u64;
            for index in (0..chunks).map(|index| (index + turn) % chunks) {
                let from = (index * CHUNK) as usize;
                root.add(index, hash(index, &file[from..from + length(size, index)]));
            }
            prop_assert_eq!(count(size), chunks);
            prop_assert_eq!(root.finish(chunks), Some(*blake3::hash(&file).as_bytes()));
        }

        #[test]
        fn what_is_held_is_what_was_set(chunks in 1_u64..200, set in prop::collection::vec((0_u64..220, any::<bool>()), 0..300)) {
            let mut held = Held::new(chunks);
            let mut model = std::collections::BTreeSet::new();
            for (index, on) in set {
                held.set(index, on);
                let _ = if on && index < chunks.div_ceil(8) * 8 { model.insert(index) } else { model.remove(&index) };
            }
            prop_assert_eq!(held.count(), model.len() as u64);
            prop_assert!((0..230).all(|index| held.has(index) == model.contains(&index)));
            let again = Held::from_bytes(held.as_bytes(), chunks);
            prop_assert_eq!(again.map(|again| again.count()), (held.count() <= chunks).then_some(held.count()));
        }
    }

    #[test]
    fn a_file_of_which_a_chunk_is_missing_has_no_hash() {
        let mut root = Root::default();
        root.add(0, [1; 32]);
        root.add(2, [1; 32]);
        assert_eq!(root.reached(), 1);
        assert_eq!(root.finish(3), None);
    }
}
