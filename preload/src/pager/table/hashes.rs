//! What hashes of chunks say: which have changed since the host had them, and which hold nothing but zeros.
//!
//! Owns: which chunks are hashed next, and for how long a hash counts. Does not own: the kernel (`hashing`), and what follows (`begin_out`).

use super::{Chunk, ChunkId, Table};
use acb_cuda_abi::hash::Hash128;

impl Table {
    pub(super) fn is_touched(&self, chunk: &Chunk) -> bool {
        chunk.opening != self.openings || chunk.host.as_ref().is_some_and(|host| !host.whole)
    }

    pub(super) fn hash_of(&self, chunk: &Chunk) -> Option<Hash128> {
        chunk.hash.filter(|(at, _)| *at == self.openings).map(|(_, hash)| hash)
    }

    pub(super) fn is_like_host(&self, chunk: &Chunk) -> bool {
        let host = chunk.host.as_ref().filter(|host| host.whole).and_then(|host| host.hash);
        host.is_some() && host == self.hash_of(chunk)
    }

    pub(super) fn is_zero(&self, chunk: &Chunk) -> bool {
        let zeros = self.zeros.get(&chunk.bytes);
        zeros.is_some() && zeros.copied() == self.hash_of(chunk)
    }

    /// Whether a hash that is on its way may show that nothing need be copied.
    pub(super) fn may_be_spared(&self, chunk: &Chunk) -> bool {
        // Who has been copied once was in use; whether it still is, the hash of its copy says.
        let is_new = chunk.host.is_none() && self.zeros.contains_key(&chunk.bytes);
        chunk.is_comparable() || is_new
    }

    /// A pass of the hash kernel begins over all chunks of a device that may have changed since the host had them; those for
    /// which the host has a hash to compare with come first, and of these the first to go.
    pub(crate) fn begin_hashing(&mut self, device: u32, most: usize) -> Vec<ChunkId> {
        let chunks = self.movable(device).filter(|(_, chunk)| {
            self.is_touched(chunk)
                && self.hash_of(chunk).is_none()
                && chunk.hashing.is_none()
                && chunk.address().is_some()
        });
        let mut chunks: Vec<(bool, u64, ChunkId)> =
            chunks.map(|(id, chunk)| (!chunk.is_comparable(), chunk.stamp, *id)).collect();
        chunks.sort_unstable();
        chunks.truncate(most);
        let openings = self.openings;
        let chunks: Vec<ChunkId> = chunks.into_iter().map(|(.., id)| id).collect();
        for id in &chunks {
            self.change(*id, |chunk| chunk.hashing = Some(openings));
        }
        chunks
    }

    /// It ends, for this chunk; with its hash, unless something went wrong. Once the gate has opened it says nothing any more.
    pub(crate) fn end_hashing(&mut self, id: ChunkId, hash: Option<Hash128>) {
        self.change(id, |chunk| {
            let begun = chunk.hashing.take();
            chunk.hash = begun.zip(hash);
        });
    }

    pub(crate) fn is_hashed_now(&self, id: ChunkId) -> bool {
        self.chunks.get(&id).is_some_and(|chunk| chunk.hashing.is_some())
    }
}
