//! Places in the arena: which bytes of which pinned region hold the host copies of chunks. Pure.
//!
//! Owns: the regions' addresses and what of them is free. Does not own: making and pinning regions (`arena`).

use super::holes::Holes;
use std::collections::BTreeMap;

/// Number of a region, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RegionId(u32);

/// A piece of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) region: RegionId,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// A stretch of host memory.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub(crate) address: usize,
    pub(crate) bytes: u64,
    /// The NUMA node that it prefers, plus one; 0: none.
    node: u32,
    /// Generation of the context in which it is pinned; `None`: it is not.
    pub(crate) pinned: Option<u64>,
    /// Nothing is to be put there any more.
    leaving: bool,
    holes: Holes,
}

/// All regions of the arena.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    regions: BTreeMap<RegionId, Region>,
    made: u32,
}

impl Places {
    pub(crate) const fn new() -> Self {
        Places { regions: BTreeMap::new(), made: 0 }
    }

    pub(crate) fn total(&self) -> u64 {
        self.regions.values().filter(|region| !region.leaving).map(|region| region.bytes).sum()
    }

    pub(crate) fn free(&self) -> u64 {
        let staying = self.regions.values().filter(|region| !region.leaving);
        staying.map(|region| region.holes.free()).sum()
    }

    pub(crate) fn add(
        &mut self,
        address: usize,
        bytes: u64,
        node: u32,
        pinned: Option<u64>,
    ) -> RegionId {
        self.made += 1;
        let id = RegionId(self.made);
        let holes = Holes::new(bytes);
        self.regions.insert(id, Region { address, bytes, node, pinned, leaving: false, holes });
        id
    }

    /// The node of the next region, for GPUs with these nodes and bytes of paged memory: the one that has the least beside what
    /// its GPUs call for.
    pub(crate) fn next_node(&self, gpus: &[(u32, u64)]) -> u32 {
        let sum = |node: u32| gpus.iter().filter(|gpu| gpu.0 == node).map(|gpu| gpu.1).sum::<u64>();
        let whole: u64 = gpus.iter().map(|gpu| gpu.1).sum();
        let behind = |node: u32| {
            let staying = self.regions.values().filter(|region| !region.leaving);
            let had: u64 = staying.filter(|region| region.node == node).map(|it| it.bytes).sum();
            // One byte more, so that the first region goes where the most is.
            i128::from(sum(node)) * i128::from(self.total() + 1)
                - i128::from(had) * i128::from(whole)
        };
        // Of several that are alike the first.
        let nodes = gpus.iter().rev().map(|gpu| gpu.0);
        nodes.max_by_key(|node| behind(*node)).unwrap_or(0)
    }

    /// Pieces of `bytes` together, on a node if it has so much, else anywhere: one where a hole is large enough, else several.
    /// `None`: there is not so much.
    pub(crate) fn take(&mut self, bytes: u64, node: u32) -> Option<Vec<Extent>> {
        self.take_where(bytes, |region| region.node == node)
            .or_else(|| self.take_where(bytes, |_| true))
    }

    fn take_where(&mut self, bytes: u64, fits: impl Fn(&Region) -> bool) -> Option<Vec<Extent>> {
        let staying = self.regions.iter_mut().filter(|(_, region)| !region.leaving && fits(region));
        let mut all: Vec<(&RegionId, &mut Region)> = staying.collect();
        for (region, state) in &mut all {
            if let Some(offset) = state.holes.take(bytes) {
                return Some(vec![Extent { region: **region, offset, bytes }]);
            }
        }
        if all.iter().map(|(_, state)| state.holes.free()).sum::<u64>() < bytes {
            return None;
        }
        let mut extents = Vec::new();
        let mut missing = bytes;
        for (region, state) in &mut all {
            while missing > 0
                && let Some((offset, bytes)) = state.holes.take_some(missing)
            {
                extents.push(Extent { region: **region, offset, bytes });
                missing -= bytes;
            }
        }
        Some(extents)
    }

    pub(crate) fn give(&mut self, extents: &[Extent]) {
        for extent in extents {
            if let Some(region) = self.regions.get_mut(&extent.region) {
                region.holes.give(extent.offset, extent.bytes);
            }
        }
    }

    /// Where an extent lies in the process's memory.
    pub(crate) fn address(&self, extent: &Extent) -> Option<usize> {
        self.regions.get(&extent.region).map(|region| region.address + extent.offset as usize)
    }

    /// Marks a region that holds nothing as on its way out, if the total stays at `keep` at least.
    pub(crate) fn retire(&mut self, keep: u64) -> Option<(RegionId, Region)> {
        let total = self.total();
        let empty = |region: &Region| !region.leaving && region.holes.free() == region.bytes;
        let (id, region) = self
            .regions
            .iter_mut()
            .rev()
            .find(|(_, region)| empty(region) && total - region.bytes >= keep)?;
        region.leaving = true;
        Some((*id, region.clone()))
    }

    /// It could not go.
    pub(crate) fn keep(&mut self, id: RegionId) {
        if let Some(region) = self.regions.get_mut(&id) {
            region.leaving = false;
        }
    }

    pub(crate) fn remove(&mut self, id: RegionId) {
        self.regions.remove(&id);
    }

    /// The pinning of that context is no more.
    pub(crate) fn unpin(&mut self, generation: u64) {
        for region in self.regions.values_mut().filter(|r| r.pinned == Some(generation)) {
            region.pinned = None;
        }
    }

    /// A region that is to be pinned again.
    pub(crate) fn unpinned(&self) -> Option<(RegionId, Region)> {
        let found = self.regions.iter().find(|(_, r)| r.pinned.is_none() && !r.leaving);
        found.map(|(id, region)| (*id, region.clone()))
    }

    pub(crate) fn pinned(&mut self, id: RegionId, generation: u64) {
        if let Some(region) = self.regions.get_mut(&id) {
            region.pinned = Some(generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_one_piece_where_that_is_possible() {
        let mut places = Places::new();
        places.add(0x1000, 64, 0, Some(1));
        places.add(0x2000, 64, 0, Some(1));
        let a = places.take(48, 0).unwrap();
        let b = places.take(48, 0).unwrap();
        assert_eq!((a.len(), b.len()), (1, 1));
        let pieces = places.take(32, 0).unwrap();
        assert_eq!(pieces.iter().map(|extent| extent.bytes).collect::<Vec<_>>(), [16, 16]);
        assert_eq!(places.address(&pieces[1]), Some(0x2000 + 48));
        assert!(places.take(1, 0).is_none());
        places.give(&b);
        places.give(&pieces);
        assert_eq!(places.free(), 80);
    }

    #[test]
    fn only_what_is_empty_and_not_wanted_goes() {
        let mut places = Places::new();
        places.add(0x1000, 64, 0, Some(1));
        places.add(0x2000, 64, 0, Some(1));
        let held = places.take(10, 0).unwrap();
        assert!(places.retire(65).is_none(), "65 are wanted");
        let (id, region) = places.retire(64).unwrap();
        assert_eq!(region.address, 0x2000);
        assert!(places.take(64, 0).is_none(), "nothing goes there any more");
        places.keep(id);
        assert_eq!(places.free(), 64 + 54);
        let (id, _) = places.retire(64).unwrap();
        places.remove(id);
        assert!(places.retire(0).is_none(), "the other is in use");
        places.give(&held);
        assert!(places.retire(0).is_some());
    }

    #[test]
    fn a_place_is_on_the_gpus_node_if_there_is_one() {
        let mut places = Places::new();
        let near = |places: &mut Places, bytes| places.take(bytes, 2).unwrap();
        let far = places.add(0x1000, 64, 1, Some(1));
        let own = places.add(0x2000, 64, 2, Some(1));
        let of = |extents: &[Extent]| extents.iter().map(|it| it.region).collect::<Vec<_>>();
        assert_eq!(of(&near(&mut places, 40)), [own]);
        // Elsewhere in one piece, rather than in pieces or not at all.
        assert_eq!(of(&near(&mut places, 40)), [far]);
        assert_eq!(of(&near(&mut places, 24)), [own]);
        assert_eq!(of(&near(&mut places, 24)), [far]);
        assert!(places.take(1, 2).is_none());
    }

    #[test]
    fn regions_are_made_where_the_gpus_are() {
        let mut places = Places::new();
        assert_eq!(places.next_node(&[]), 0);
        assert_eq!(places.next_node(&[(3, 0), (2, 0)]), 3, "nothing is known");
        let gpus = [(1, 100), (2, 150), (2, 150)];
        let made: Vec<u32> = (0..8)
            .map(|at| {
                let node = places.next_node(&gpus);
                places.add(0x1000 * (at + 1), 10, node, Some(1));
                node
            })
            .collect();
        assert_eq!(made.iter().filter(|node| **node == 1).count(), 2, "{made:?}");
        assert_eq!(made[0], 2, "{made:?}");
        assert_eq!(places.next_node(&[(1, 100)]), 1);
    }
}
