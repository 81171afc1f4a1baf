//! The process's device addresses: which ranges exist, what memory is mapped
//! where, and which host memory GPUs can reach. An address stays reserved as long
//! as its range exists; what is mapped there may come and go.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::code::{INVALID_VALUE, NOT_FOUND, OUT_OF_MEMORY, Outcome};
use crate::handles::Handle;
use crate::objects::{Context, Multicast, Pool};
use crate::physical::{self, Physical, Segment};

/// The unit in which programs map memory themselves.
pub(crate) const GRANULARITY: usize = 2 << 20;
/// Allocations begin at multiples of this, and count in such units.
pub(crate) const ALIGNMENT: usize = 512;

/// A range of device addresses.
pub(crate) struct Region {
    pub(crate) length: usize,
    pub(crate) kind: RegionKind,
}

/// Where a range came from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RegionKind {
    /// An allocation of a context.
    Allocation { context: Handle<Context>, gpu: usize },
    /// An allocation of a pool.
    Pooled { pool: Handle<Pool>, gpu: usize },
    /// An allocation of a graph's, with memory behind it while the graph says so.
    Graph { gpu: usize },
    /// A program's own reservation.
    Reservation,
    /// A module's variable.
    Global,
    /// Memory that another process shares.
    Imported { context: Handle<Context> },
    /// An array, whose address programs are not told.
    Array,
}

/// Memory at an address.
struct Mapping {
    length: usize,
    backing: Backing,
    offset: usize,
    /// One bit per GPU.
    readable: u32,
    writable: u32,
}

/// What is behind a mapping.
enum Backing {
    Memory(Arc<Physical>),
    /// Nothing can be read there, and all of its memory is written at once.
    Multicast(Arc<Multicast>),
}

impl Backing {
    fn memory(&self) -> Option<&Arc<Physical>> {
        match self {
            Backing::Memory(memory) => Some(memory),
            Backing::Multicast(_) => None,
        }
    }
}

/// Host memory that GPUs can reach under its own address.
#[derive(Debug, Clone)]
pub(crate) struct HostRange {
    pub(crate) length: usize,
    pub(crate) kind: HostKind,
    pub(crate) context: Handle<Context>,
    pub(crate) flags: u32,
}

/// How it came to be reachable.
#[derive(Debug, Clone)]
pub(crate) enum HostKind {
    /// Allocated by the driver.
    Pinned,
    /// The program's own.
    Registered,
    /// Managed memory; it counts as the GPU's.
    Managed(#[allow(dead_code)] Arc<Charged>),
}

/// Managed memory's part of a GPU, given back with it.
#[derive(Debug)]
pub(crate) struct Charged {
    pub(crate) gpu: usize,
    pub(crate) bytes: u64,
}

impl Drop for Charged {
    fn drop(&mut self) {
        if let Ok(driver) = crate::driver::get() {
            driver.state.give_back(driver.charge, self.gpu, self.bytes);
        }
    }
}

/// What an access wants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Access {
    Read,
    Write,
    /// To the memory of several GPUs at once.
    Multicast,
}

/// All of it.
#[derive(Default)]
pub(crate) struct Space {
    /// Reserved addresses that no region has, by start.
    holes: BTreeMap<u64, usize>,
    regions: BTreeMap<u64, Region>,
    mappings: BTreeMap<u64, Mapping>,
    hosts: BTreeMap<u64, HostRange>,
}

impl Space {
    /// A new region of `length` bytes.
    pub(crate) fn add(&mut self, length: usize, align: usize, kind: RegionKind) -> Outcome<u64> {
        let align = align.max(ALIGNMENT) as u64;
        let length = length.next_multiple_of(ALIGNMENT);
        for attempt in 0..2 {
            let found = self.holes.iter().find_map(|(&start, &size)| {
                let at = start.next_multiple_of(align);
                (at + length as u64 <= start + size as u64).then_some((start, size, at))
            });
            if let Some((start, size, at)) = found {
                self.holes.remove(&start);
                self.add_hole(start, (at - start) as usize);
                let end = at + length as u64;
                self.add_hole(end, (start + size as u64 - end) as usize);
                self.regions.insert(at, Region { length, kind });
                return Ok(at);
            }
            if attempt == 0 {
                let wanted = length.checked_add(align as usize).ok_or(OUT_OF_MEMORY)?;
                // Large steps keep the number of mappings small; they cost nothing.
                let start = [64 << 30, 0].into_iter().find_map(|step: usize| {
                    let size = wanted.max(step).next_multiple_of(GRANULARITY);
                    physical::reserve(size).map(|start| (start, size))
                });
                let (start, size) = start.ok_or(OUT_OF_MEMORY)?;
                self.add_hole(start, size);
            }
        }
        Err(OUT_OF_MEMORY)
    }

    /// Takes a region away, with whatever is mapped in it.
    pub(crate) fn remove(&mut self, start: u64) -> Option<Region> {
        let region = self.regions.remove(&start)?;
        let inside: Vec<u64> =
            self.mappings.range(start..start + region.length as u64).map(|(&at, _)| at).collect();
        for at in inside {
            self.mappings.remove(&at);
        }
        self.add_hole(start, region.length);
        Some(region)
    }

    fn add_hole(&mut self, mut start: u64, mut length: usize) {
        if length == 0 {
            return;
        }
        if let Some((&before, &size)) = self.holes.range(..start).next_back()
            && before + size as u64 == start
        {
            self.holes.remove(&before);
            start = before;
            length += size;
        }
        if let Some(size) = self.holes.remove(&(start + length as u64)) {
            length += size;
        }
        self.holes.insert(start, length);
    }

    /// The region that begins at `start`.
    pub(crate) fn region(&self, start: u64) -> Option<&Region> {
        self.regions.get(&start)
    }

    /// The region that holds `address`, with its start.
    pub(crate) fn region_of(&self, address: u64) -> Option<(u64, &Region)> {
        let (&start, region) = self.regions.range(..=address).next_back()?;
        (address < start + region.length as u64).then_some((start, region))
    }

    /// All regions.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (u64, &Region)> {
        self.regions.iter().map(|(&start, region)| (start, region))
    }

    /// Puts memory at an address; `gpus` may use it from the start.
    pub(crate) fn map(
        &mut self,
        start: u64,
        length: usize,
        memory: Arc<Physical>,
        offset: usize,
        gpus: u32,
    ) -> Outcome {
        if offset.checked_add(length).is_none_or(|end| end > memory.length()) {
            return Err(INVALID_VALUE);
        }
        self.put(
            start,
            Mapping {
                length,
                backing: Backing::Memory(memory),
                offset,
                readable: gpus,
                writable: gpus,
            },
        )
    }

    /// Puts an object of several GPUs there.
    pub(crate) fn map_multicast(
        &mut self,
        start: u64,
        length: usize,
        object: Arc<Multicast>,
        offset: usize,
    ) -> Outcome {
        if offset.checked_add(length).is_none_or(|end| end > object.size) {
            return Err(INVALID_VALUE);
        }
        let backing = Backing::Multicast(object);
        self.put(start, Mapping { length, backing, offset, readable: 0, writable: 0 })
    }

    fn put(&mut self, start: u64, mapping: Mapping) -> Outcome {
        let length = mapping.length;
        let (region_start, region) = self.region_of(start).ok_or(INVALID_VALUE)?;
        if start + length as u64 > region_start + region.length as u64 {
            return Err(INVALID_VALUE);
        }
        if self.mapped_within(start, length) {
            return Err(INVALID_VALUE);
        }
        self.mappings.insert(start, mapping);
        Ok(())
    }

    /// Whether anything is mapped in a range.
    pub(crate) fn mapped_within(&self, start: u64, length: usize) -> bool {
        let end = start + length as u64;
        let before = self.mappings.range(..end).next_back();
        before.is_some_and(|(&at, mapping)| at + mapping.length as u64 > start)
    }

    /// Whether a range is covered by whole mappings, each of them inside it.
    fn covered(&self, start: u64, length: usize) -> Option<Vec<u64>> {
        let end = start.checked_add(length as u64)?;
        let mut at = start;
        let mut starts = Vec::new();
        while at < end {
            let mapping = self.mappings.get(&at)?;
            starts.push(at);
            at += mapping.length as u64;
        }
        (at == end).then_some(starts)
    }

    /// Takes the memory away from a range that is mapped in whole mappings.
    pub(crate) fn unmap(&mut self, start: u64, length: usize) -> Outcome {
        let starts = self.covered(start, length).ok_or(INVALID_VALUE)?;
        for at in starts {
            self.mappings.remove(&at);
        }
        Ok(())
    }

    /// Says what a GPU may do in a range.
    pub(crate) fn set_access(
        &mut self,
        start: u64,
        length: usize,
        gpu: usize,
        read: bool,
        write: bool,
    ) -> Outcome {
        let starts = self.covered(start, length).ok_or(INVALID_VALUE)?;
        let bit = 1 << gpu;
        // An object of several GPUs is open to these alone.
        let foreign = |at: &u64| match self.mappings.get(at).map(|mapping| &mapping.backing) {
            Some(Backing::Multicast(object)) => !object.members().added.contains(&gpu),
            _ => false,
        };
        if starts.iter().any(foreign) {
            return Err(INVALID_VALUE);
        }
        for at in starts {
            if let Some(mapping) = self.mappings.get_mut(&at) {
                mapping.readable =
                    if read { mapping.readable | bit } else { mapping.readable & !bit };
                mapping.writable =
                    if write { mapping.writable | bit } else { mapping.writable & !bit };
            }
        }
        Ok(())
    }

    /// What a GPU may do at an address: whether to read and to write.
    pub(crate) fn access(&self, address: u64, gpu: usize) -> Option<(bool, bool)> {
        let mapping = self.mapping_at(address)?.1;
        Some((mapping.readable >> gpu & 1 == 1, mapping.writable >> gpu & 1 == 1))
    }

    /// The memory at an address.
    pub(crate) fn memory_at(&self, address: u64) -> Option<Arc<Physical>> {
        self.mapping_at(address)?.1.backing.memory().map(Arc::clone)
    }

    /// Whether anything is mapped at an address.
    pub(crate) fn is_mapped(&self, address: u64) -> bool {
        self.mapping_at(address).is_some()
    }

    /// The bytes of each GPU behind a part of an object of several, as GPU `gpu` would write them.
    pub(crate) fn multicast_segments(
        &self,
        gpu: usize,
        start: u64,
        length: usize,
    ) -> Option<Vec<Vec<Segment>>> {
        let (begin, mapping) = self.mapping_at(start)?;
        let Backing::Multicast(object) = &mapping.backing else { return None };
        let inside = (start - begin) as usize;
        if mapping.writable >> gpu & 1 == 0 || inside.checked_add(length)? > mapping.length {
            return None;
        }
        let from = mapping.offset + inside;
        let members = object.members();
        let of_one = |gpu: &usize| {
            let binding = members.bindings.iter().find(|one| {
                let end = one.offset + one.size;
                one.gpu == *gpu && one.offset <= from && from + length <= end
            });
            binding.map(|binding| binding.segments(from, length))
        };
        members.added.iter().map(of_one).collect()
    }

    fn mapping_at(&self, address: u64) -> Option<(u64, &Mapping)> {
        let (&at, mapping) = self.mappings.range(..=address).next_back()?;
        (address < at + mapping.length as u64).then_some((at, mapping))
    }

    /// The bytes behind a range that must lie in one region or one piece of host
    /// memory, as GPU `gpu` would reach them.
    pub(crate) fn segments(
        &self,
        gpu: usize,
        start: u64,
        length: usize,
        access: Access,
    ) -> Option<Vec<Segment>> {
        let end = start.checked_add(length as u64)?;
        if let Some((host, range)) = self.host_of(start) {
            return (end <= host + range.length as u64)
                .then(|| vec![Segment::of_host(start, length)]);
        }
        let (region_start, region) = self.region_of(start)?;
        if end > region_start + region.length as u64 {
            return None;
        }
        let mut segments = Vec::with_capacity(1);
        let mut at = start;
        while at < end {
            let (begin, mapping) = self.mapping_at(at)?;
            let allowed = match access {
                Access::Read => mapping.readable,
                Access::Write => mapping.writable,
                Access::Multicast => return None,
            };
            if allowed >> gpu & 1 == 0 {
                return None;
            }
            let inside = (at - begin) as usize;
            let take = (mapping.length - inside).min((end - at) as usize);
            segments.push(mapping.backing.memory()?.at(mapping.offset + inside, take));
            at += take as u64;
        }
        Some(segments)
    }

    /// The memory behind a range, which must lie in one region; in whole pieces, and where in the first one it begins.
    pub(crate) fn memories(
        &self,
        start: u64,
        length: usize,
    ) -> Option<(Vec<Arc<Physical>>, usize)> {
        let end = start.checked_add(length as u64)?;
        let (region_start, region) = self.region_of(start)?;
        if end > region_start + region.length as u64 {
            return None;
        }
        let mut memories = Vec::with_capacity(1);
        let (first, mapping) = self.mapping_at(start)?;
        let inside = mapping.offset + (start - first) as usize;
        let mut at = start;
        while at < end {
            let (begin, mapping) = self.mapping_at(at)?;
            memories.push(Arc::clone(mapping.backing.memory()?));
            at = begin + mapping.length as u64;
        }
        Some((memories, inside))
    }

    /// Makes host memory reachable.
    pub(crate) fn add_host(&mut self, start: u64, range: HostRange) -> bool {
        let end = start + range.length as u64;
        let before = self.hosts.range(..end).next_back();
        if before.is_some_and(|(&at, other)| at + other.length as u64 > start) {
            return false;
        }
        self.hosts.insert(start, range);
        true
    }

    /// The host memory that begins at `start`.
    pub(crate) fn host(&self, start: u64) -> Outcome<&HostRange> {
        self.hosts.get(&start).ok_or(NOT_FOUND)
    }

    /// No longer reachable.
    pub(crate) fn remove_host(&mut self, start: u64) -> Option<HostRange> {
        self.hosts.remove(&start)
    }

    /// The reachable host memory that holds `address`, with its start.
    pub(crate) fn host_of(&self, address: u64) -> Option<(u64, &HostRange)> {
        let (&start, range) = self.hosts.range(..=address).next_back()?;
        (address < start + range.length as u64).then_some((start, range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap_and_their_addresses_come_back() {
        let mut space = Space::default();
        let mut starts: Vec<u64> = (0..100)
            .map(|at| space.add(at * 100 + 1, 512, RegionKind::Reservation).unwrap())
            .collect();
        starts.sort_unstable();
        for pair in starts.windows(2) {
            assert!(pair[0] + space.region(pair[0]).unwrap().length as u64 <= pair[1]);
        }
        let large = space.add(8 << 30, GRANULARITY, RegionKind::Reservation).unwrap();
        assert_eq!(large % GRANULARITY as u64, 0);
        for start in starts {
            space.remove(start).unwrap();
        }
        space.remove(large).unwrap();
        assert_eq!(space.holes.len(), 1);
        assert!(space.remove(large).is_none());
    }
}
