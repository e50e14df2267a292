//! The chunks sent last, in memory, up to a number of bytes.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use muster_shared::ids::Digest;

/// Chunks by their digests; the one not asked for the longest goes first.
#[derive(Debug)]
pub(crate) struct ChunkCache {
    capacity_bytes: usize,
    held_bytes: usize,
    next_use: u64,
    chunks: HashMap<Digest, (u64, Bytes)>,
    by_use: BTreeMap<u64, Digest>,
}

impl ChunkCache {
    /// An empty cache.
    pub(crate) fn new(capacity_bytes: usize) -> Self {
        Self { capacity_bytes, held_bytes: 0, next_use: 0, chunks: HashMap::new(), by_use: BTreeMap::new() }
    }

    fn tick(&mut self) -> u64 {
        self.next_use += 1;
        self.next_use
    }

    /// The chunk with this digest.
    pub(crate) fn get(&mut self, digest: &Digest) -> Option<Bytes> {
        let now = self.tick();
        let (used, bytes) = self.chunks.get_mut(digest)?;
        self.by_use.remove(used);
        self.by_use.insert(now, *digest);
        *used = now;
        Some(bytes.clone())
    }

    /// Keeps a chunk, and lets others go for it.
    pub(crate) fn put(&mut self, digest: Digest, bytes: Bytes) {
        if bytes.len() > self.capacity_bytes || self.get(&digest).is_some() {
            return;
        }
        self.held_bytes += bytes.len();
        let now = self.tick();
        self.by_use.insert(now, digest);
        self.chunks.insert(digest, (now, bytes));
        while self.held_bytes > self.capacity_bytes {
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            if let Some((_, bytes)) = self.chunks.remove(&oldest) {
                self.held_bytes -= bytes.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_least_used_goes_first() {
        let mut cache = ChunkCache::new(10);
        let chunk = |n: u8| (Digest::of(&[n]), Bytes::from(vec![n; 4]));
        let [(a, bytes_a), (b, bytes_b), (c, bytes_c)] = [chunk(1), chunk(2), chunk(3)];
        cache.put(a, bytes_a.clone());
        cache.put(b, bytes_b);
        assert_eq!(cache.get(&a), Some(bytes_a));
        cache.put(c, bytes_c);
        assert_eq!(cache.get(&b), None);
        assert!(cache.get(&a).is_some() && cache.get(&c).is_some());
    }

    proptest! {
        #[test]
        fn the_bound_holds(steps in prop::collection::vec((any::<bool>(), 0u8..20, 0usize..60), 0..200)) {
            let mut cache = ChunkCache::new(100);
            for (put, name, length) in steps {
                let digest = Digest::of(&[name]);
                if put {
                    cache.put(digest, Bytes::from(vec![name; length]));
                } else {
                    let _ = cache.get(&digest);
                }
                prop_assert!(cache.held_bytes <= 100);
                prop_assert_eq!(cache.held_bytes, cache.chunks.values().map(|(_, b)| b.len()).sum::<usize>());
                prop_assert_eq!(cache.chunks.len(), cache.by_use.len());
            }
        }
    }
}
