//! Ranges of device addresses and the allocations in them: large ones have a range of their own, small ones are cut from
//! shared ones. Pure.
//!
//! Owns: which address belongs to which allocation, and its chunks. Does not own: whether there is memory behind it
//! (`table`).

use super::holes::Holes;
use super::table::ChunkId;
use std::collections::BTreeMap;

/// What the driver maps in.
pub(crate) const GRANULE: u64 = 2 << 20;
/// Allocations below this are cut from shared ranges.
pub(crate) const SMALL: u64 = 1 << 20;
/// Where such begin; the driver promises 256.
pub(crate) const ALIGNMENT: u64 = 512;
/// The largest shared range.
const LARGEST_SHARED: u64 = 32 << 20;

/// A range of addresses with chunks behind it, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) bytes: u64,
    pub(crate) device: u32,
    pub(crate) context: u64,
    pub(crate) chunks: Vec<ChunkId>,
    /// A shared one: what of it is free.
    shared: Option<Holes>,
}

/// One allocation of the program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// Where its range begins.
    pub(crate) range: u64,
    /// What the program asked for.
    pub(crate) requested: u64,
    /// Of no other allocation.
    pub(crate) number: u64,
    /// What its place takes.
    pub(crate) bytes: u64,
    /// The pool that it is of, or 0.
    pub(crate) pool: u64,
}

impl Allocation {
    /// Whether its place is that of an allocation of so many bytes.
    pub(crate) fn holds(&self, bytes: u64) -> bool {
        let unit = if bytes >= SMALL { GRANULE } else { ALIGNMENT };
        bytes.checked_next_multiple_of(unit) == Some(self.bytes)
    }

    /// Whether an allocation of so many bytes may have its place: it is large enough, and at most twice that.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        let unit = if bytes >= SMALL { GRANULE } else { ALIGNMENT };
        let needed = bytes.checked_next_multiple_of(unit);
        needed.is_some_and(|needed| needed <= self.bytes && self.bytes / 2 <= needed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Ranges {
    ranges: BTreeMap<u64, Range>,
    allocations: BTreeMap<u64, Allocation>,
    /// Shared ranges by device and context, in the order in which they were made.
    shared: BTreeMap<(u32, u64), Vec<u64>>,
    made: u64,
}

impl Ranges {
    pub(crate) const fn new() -> Self {
        Ranges {
            ranges: BTreeMap::new(),
            allocations: BTreeMap::new(),
            shared: BTreeMap::new(),
            made: 0,
        }
    }

    /// A range for one allocation.
    pub(crate) fn add_whole(&mut self, start: u64, range: NewRange, requested: u64) {
        let bytes = range.bytes;
        self.ranges.insert(start, range.into_range(None));
        self.made += 1;
        let number = self.made;
        let allocation = Allocation { range: start, requested, number, bytes, pool: 0 };
        self.allocations.insert(start, allocation);
    }

    /// A range that many share.
    pub(crate) fn add_shared(&mut self, start: u64, range: NewRange) {
        self.shared.entry((range.device, range.context)).or_default().push(start);
        let holes = Holes::new(range.bytes);
        self.ranges.insert(start, range.into_range(Some(holes)));
    }

    /// How large the next shared range should be: as large as all before it together, within bounds.
    pub(crate) fn next_shared(&self, device: u32, context: u64) -> u64 {
        let starts = self.shared.get(&(device, context)).map_or(&[][..], |starts| starts);
        let total: u64 = starts.iter().map(|start| self.ranges[start].bytes).sum();
        total.next_power_of_two().clamp(GRANULE, LARGEST_SHARED)
    }

    /// Cuts a small allocation from a shared range.
    pub(crate) fn cut(&mut self, device: u32, context: u64, requested: u64) -> Option<u64> {
        let bytes = requested.next_multiple_of(ALIGNMENT);
        // The latest are the largest and the emptiest.
        for start in self.shared.get(&(device, context))?.iter().rev() {
            let holes = self.ranges.get_mut(start).and_then(|range| range.shared.as_mut());
            if let Some(at) = holes.and_then(|holes| holes.take(bytes)) {
                let address = start + at;
                self.made += 1;
                let number = self.made;
                let allocation = Allocation { range: *start, requested, number, bytes, pool: 0 };
                self.allocations.insert(address, allocation);
                return Some(address);
            }
        }
        None
    }

    /// The allocation that contains an address, with where it begins, and its range.
    pub(crate) fn find(&self, address: u64) -> Option<(u64, &Allocation, &Range)> {
        let (start, allocation) = self.allocations.range(..=address).next_back()?;
        let inside = address - start < allocation.requested.max(1);
        let range = self.ranges.get(&allocation.range)?;
        inside.then_some((*start, allocation, range))
    }

    /// The allocation that begins at an address.
    pub(crate) fn at(&self, address: u64) -> Option<(&Allocation, &Range)> {
        let allocation = self.allocations.get(&address)?;
        Some((allocation, self.ranges.get(&allocation.range)?))
    }

    pub(crate) fn range(&self, start: u64) -> Option<&Range> {
        self.ranges.get(&start)
    }

    /// Says of which pool an allocation is; what its place takes.
    pub(crate) fn tag(&mut self, address: u64, pool: u64) -> u64 {
        let Some(allocation) = self.allocations.get_mut(&address) else { return 0 };
        allocation.pool = pool;
        allocation.bytes
    }

    /// What pools have in a context: pool and bytes.
    pub(crate) fn pooled_in(&self, context: u64) -> Vec<(u64, u64)> {
        let of = |a: &&Allocation| {
            a.pool != 0 && self.ranges.get(&a.range).is_some_and(|range| range.context == context)
        };
        self.allocations.values().filter(of).map(|a| (a.pool, a.bytes)).collect()
    }

    /// Takes an allocation out of the books: it cannot be freed twice.
    pub(crate) fn take(&mut self, address: u64) -> Option<Allocation> {
        self.allocations.remove(&address)
    }

    /// It was not freed after all.
    pub(crate) fn put_back(&mut self, address: u64, allocation: Allocation) {
        self.allocations.insert(address, allocation);
    }

    /// Its place is free. Where its range has become empty, the range leaves the books.
    pub(crate) fn give(&mut self, address: u64, allocation: Allocation) -> Option<(u64, Range)> {
        let start = allocation.range;
        let range = self.ranges.get_mut(&start)?;
        if let Some(holes) = &mut range.shared {
            holes.give(address - start, allocation.bytes);
            // The last of the smallest stays, or allocating and freeing in turns would map each time.
            let key = (range.device, range.context);
            let alone = self.shared.get(&key).is_some_and(|starts| starts.len() == 1);
            if holes.free() < range.bytes || (alone && range.bytes == GRANULE) {
                return None;
            }
        }
        self.remove(start)
    }

    fn remove(&mut self, start: u64) -> Option<(u64, Range)> {
        let range = self.ranges.remove(&start)?;
        if range.shared.is_some()
            && let Some(starts) = self.shared.get_mut(&(range.device, range.context))
        {
            starts.retain(|other| *other != start);
        }
        Some((start, range))
    }

    /// The chunks of a device's ranges.
    pub(crate) fn chunks_of(&self, device: u32) -> Vec<ChunkId> {
        let ranges = self.ranges.values().filter(|range| range.device == device);
        ranges.flat_map(|range| range.chunks.iter().copied()).collect()
    }

    /// The chunks that lie, in part at least, between two addresses.
    pub(crate) fn chunks_within(
        &self,
        from: u64,
        to: u64,
        bytes: impl Fn(ChunkId) -> u64,
    ) -> Vec<ChunkId> {
        let first = self.ranges.range(..=from).next_back().map_or(from, |(start, _)| *start);
        let mut found = Vec::new();
        for (start, range) in self.ranges.range(first..to) {
            let mut at = *start;
            for id in &range.chunks {
                let end = at + bytes(*id);
                if at < to && end > from {
                    found.push(*id);
                }
                at = end;
            }
        }
        found
    }

    /// Everything of a context leaves the books.
    pub(crate) fn take_context(&mut self, context: u64) -> Vec<(u64, Range)> {
        let starts: Vec<u64> =
            self.ranges.iter().filter(|(_, r)| r.context == context).map(|(s, _)| *s).collect();
        self.allocations.retain(|_, allocation| !starts.contains(&allocation.range));
        starts.into_iter().filter_map(|start| self.remove(start)).collect()
    }
}

/// A range that has just been reserved.
pub(crate) struct NewRange {
    pub(crate) bytes: u64,
    pub(crate) device: u32,
    pub(crate) context: u64,
    pub(crate) chunks: Vec<ChunkId>,
}

impl NewRange {
    fn into_range(self, shared: Option<Holes>) -> Range {
        let NewRange { bytes, device, context, chunks } = self;
        Range { bytes, device, context, chunks, shared }
    }
}

/// Sizes of the chunks of a range: whole ones, then what is left.
pub(crate) fn split(bytes: u64, chunk: u64) -> impl Iterator<Item = u64> {
    let whole = bytes / chunk;
    let tail = bytes % chunk;
    (0..whole).map(move |_| chunk).chain((tail > 0).then_some(tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(bytes: u64) -> NewRange {
        NewRange { bytes, device: 0, context: 1, chunks: Vec::new() }
    }

    #[test]
    fn small_allocations_share_a_range_and_do_not_overlap() {
        let mut ranges = Ranges::new();
        assert_eq!(ranges.cut(0, 1, 100), None);
        assert_eq!(ranges.next_shared(0, 1), GRANULE);
        ranges.add_shared(1 << 30, range(GRANULE));
        let a = ranges.cut(0, 1, 100).unwrap();
        let b = ranges.cut(0, 1, 513).unwrap();
        let c = ranges.cut(0, 1, 1).unwrap();
        assert_eq!((b - a, c - b), (512, 1024));
        assert_eq!(ranges.cut(0, 2, 1), None, "another context");
        assert_eq!(ranges.find(b + 512).unwrap().0, b);
        assert!(ranges.find(b + 513).is_none(), "behind what was asked for");
        assert_eq!(ranges.next_shared(0, 1), GRANULE);
    }

    #[test]
    fn shared_ranges_grow_to_a_bound() {
        let mut ranges = Ranges::new();
        let mut sizes = Vec::new();
        for n in 0..7u64 {
            let bytes = ranges.next_shared(0, 1);
            sizes.push(bytes >> 20);
            ranges.add_shared((n + 1) << 30, range(bytes));
        }
        assert_eq!(sizes, [2, 2, 4, 8, 16, 32, 32]);
    }

    #[test]
    fn an_empty_range_goes_but_the_last_small_one_stays() {
        let mut ranges = Ranges::new();
        ranges.add_shared(1 << 30, range(GRANULE));
        let a = ranges.cut(0, 1, 100).unwrap();
        let taken = ranges.take(a).unwrap();
        assert!(ranges.take(a).is_none(), "not twice");
        assert!(ranges.give(a, taken).is_none());
        ranges.add_shared(2 << 30, range(GRANULE));
        let b = ranges.cut(0, 1, 100).unwrap();
        assert_eq!(b, 2 << 30);
        let taken = ranges.take(b).unwrap();
        assert_eq!(ranges.give(b, taken).unwrap().0, 2 << 30);
        ranges.add_whole(3 << 30, range(64 << 20), 50 << 20);
        assert!(ranges.find((3 << 30) + (51 << 20)).is_none());
        let taken = ranges.take(3 << 30).unwrap();
        assert_eq!(ranges.give(3 << 30, taken).unwrap().1.bytes, 64 << 20);
    }

    #[test]
    fn a_context_takes_its_ranges_along() {
        let mut ranges = Ranges::new();
        ranges.add_shared(1 << 30, range(GRANULE));
        ranges.cut(0, 1, 100).unwrap();
        ranges.add_whole(3 << 30, range(64 << 20), 50 << 20);
        assert!(ranges.take_context(2).is_empty());
        assert_eq!(ranges.take_context(1).len(), 2);
        assert!(ranges.find(1 << 30).is_none());
        assert_eq!(ranges.cut(0, 1, 100), None);
    }

    #[test]
    fn ranges_are_split_into_whole_chunks_and_a_tail() {
        assert_eq!(split(130, 64).collect::<Vec<_>>(), [64, 64, 2]);
        assert_eq!(split(64, 64).collect::<Vec<_>>(), [64]);
        assert_eq!(split(2, 64).collect::<Vec<_>>(), [2]);
    }
}
