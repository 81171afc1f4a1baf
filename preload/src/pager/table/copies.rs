//! Copies of chunks on the host: where they lie, and which are given up for others.
//!
//! Owns: making way for a copy, and for the end of a region. Does not own: the arena (`places`, `arena`).

use super::{Chunk, ChunkId, State, Table};
use crate::pager::places::Extent;

impl Table {
    /// A place for a copy. Where there is none, copies of chunks that are on the GPU and have changed make way.
    pub(super) fn place(&mut self, bytes: u64, but: ChunkId) -> Option<Vec<Extent>> {
        if let Some(extents) = self.take(bytes, but) {
            return Some(extents);
        }
        let stale: Vec<ChunkId> = self
            .copied()
            .filter(|(id, chunk)| {
                **id != but && self.is_touched(chunk) && !self.is_like_host(chunk)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in stale {
            self.drop_copy(id);
            if let Some(extents) = self.take(bytes, but) {
                return Some(extents);
            }
        }
        None
    }

    /// Free places near a chunk's GPU, if there are some.
    pub(crate) fn take(&mut self, bytes: u64, id: ChunkId) -> Option<Vec<Extent>> {
        let device = self.chunks.get(&id).map(|chunk| chunk.device as usize);
        let node = device.and_then(|device| self.nodes.get(device)).copied().unwrap_or(0);
        self.places.take(bytes, node)
    }

    /// Chunks that are on the GPU and have a copy on the host.
    fn copied(&self) -> impl Iterator<Item = (&ChunkId, &Chunk)> {
        self.chunks.iter().filter(|(_, c)| c.state == State::Resident && c.host.is_some())
    }

    /// Gives up a copy: what is on the GPU counts as changed from now on.
    fn drop_copy(&mut self, id: ChunkId) -> u64 {
        let host = self.change(id, |chunk| {
            chunk.opening = chunk.opening.wrapping_sub(1);
            chunk.host.take()
        });
        let Some(host) = host.flatten() else { return 0 };
        self.places.give(&host.extents);
        host.extents.iter().map(|extent| extent.bytes).sum()
    }

    /// Gives up copies of what is on the GPU until so much of the arena is free, if there are so many.
    pub(crate) fn shed(&mut self, bytes: u64) {
        let mut lacking = bytes.saturating_sub(self.places.free());
        if lacking == 0 {
            return;
        }
        let copied: Vec<ChunkId> = self.copied().map(|(id, _)| *id).collect();
        for id in copied {
            if lacking == 0 {
                return;
            }
            lacking = lacking.saturating_sub(self.drop_copy(id));
        }
    }

    /// Comparing has shown that the hashes lie: it is copied after all.
    pub(crate) fn differs(&mut self, id: ChunkId) {
        self.change(id, |chunk| {
            chunk.hash = None;
            if let Some(host) = &mut chunk.host {
                host.whole = false;
                host.hash = None;
            }
        });
    }
}
