//! Names of the program's own physical memory, and where it has mapped it. Pure.
//!
//! Owns: which name means which chunk, how many handles the program has to it, and the addresses of its mappings.
//! Does not own: the mappings themselves, which the chunk keeps (`table`).
//!
//! What cuMemCreate gives a program is such a name, for the driver's handle changes whenever the chunk is moved. Names have their
//! high bits set as no address and no small number has.

use super::table::ChunkId;
use std::collections::BTreeMap;

/// No canonical address begins like this.
const TAG: u64 = 0xACB0_0000_0000_0000;

/// The driver's description of an allocation, as the program gave it.
pub(crate) type Properties = [u64; 4];

#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) chunk: ChunkId,
    pub(crate) bytes: u64,
    pub(crate) properties: Properties,
    handles: u32,
    mappings: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) address: u64,
    pub(crate) bytes: u64,
    pub(crate) name: u64,
    pub(crate) chunk: ChunkId,
}

/// Whether the last handle and the last mapping are gone, and the memory with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Some,
    Nothing(ChunkId),
}

#[derive(Debug, Default)]
pub(crate) struct Names {
    objects: BTreeMap<u64, Object>,
    placed: BTreeMap<u64, Placed>,
    made: u64,
}

impl Names {
    pub(crate) const fn new() -> Self {
        Names { objects: BTreeMap::new(), placed: BTreeMap::new(), made: 0 }
    }

    pub(crate) fn add(&mut self, chunk: ChunkId, bytes: u64, properties: Properties) -> u64 {
        self.made += 1;
        let name = TAG | self.made;
        let object = Object { chunk, bytes, properties, handles: 1, mappings: 0 };
        self.objects.insert(name, object);
        name
    }

    /// An object that the program still has a handle to.
    pub(crate) fn get(&self, name: u64) -> Option<&Object> {
        self.objects.get(&name).filter(|object| object.handles > 0)
    }

    /// One more handle.
    pub(crate) fn retain(&mut self, name: u64) {
        if let Some(object) = self.objects.get_mut(&name) {
            object.handles += 1;
        }
    }

    /// One less; `None`: there is no such handle.
    pub(crate) fn release(&mut self, name: u64) -> Option<Left> {
        let object = self.objects.get_mut(&name).filter(|object| object.handles > 0)?;
        object.handles -= 1;
        Some(self.left(name))
    }

    fn left(&mut self, name: u64) -> Left {
        match self.objects.get(&name) {
            Some(object) if object.handles == 0 && object.mappings == 0 => {
                let chunk = object.chunk;
                self.objects.remove(&name);
                Left::Nothing(chunk)
            }
            _ => Left::Some,
        }
    }

    /// Whether nothing of ours is mapped there.
    pub(crate) fn is_free(&self, address: u64, bytes: u64) -> bool {
        self.within(address, bytes).next().is_none() && self.at(address).is_none()
    }

    pub(crate) fn place(&mut self, address: u64, bytes: u64, name: u64) {
        let Some(object) = self.objects.get_mut(&name) else { return };
        object.mappings += 1;
        let chunk = object.chunk;
        self.placed.insert(address, Placed { address, bytes, name, chunk });
    }

    /// A mapping is gone.
    pub(crate) fn displace(&mut self, address: u64) -> Left {
        let Some(placed) = self.placed.remove(&address) else { return Left::Some };
        if let Some(object) = self.objects.get_mut(&placed.name) {
            object.mappings -= 1;
        }
        self.left(placed.name)
    }

    /// The mapping that contains an address.
    pub(crate) fn at(&self, address: u64) -> Option<Placed> {
        let (start, placed) = self.placed.range(..=address).next_back()?;
        (address - start < placed.bytes).then_some(*placed)
    }

    /// The mappings that begin in a range.
    pub(crate) fn within(&self, address: u64, bytes: u64) -> impl Iterator<Item = Placed> + '_ {
        self.placed.range(address..address.saturating_add(bytes)).map(|(_, placed)| *placed)
    }

    /// What of a range is not covered by our mappings.
    pub(crate) fn gaps(&self, address: u64, bytes: u64) -> Vec<(u64, u64)> {
        let end = address.saturating_add(bytes);
        let mut at = address;
        let mut gaps = Vec::new();
        for placed in self.within(address, bytes) {
            if placed.address > at {
                gaps.push((at, placed.address - at));
            }
            at = placed.address + placed.bytes;
        }
        if at < end {
            gaps.push((at, end - at));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::table::{State, Table};

    fn chunk() -> ChunkId {
        let mut table = Table::new();
        table.accounts = vec![Default::default()];
        table.account(0).need(8);
        table.add(0, 8, Vec::new(), State::Absent)
    }

    #[test]
    fn memory_lives_as_long_as_a_handle_or_a_mapping() {
        let mut names = Names::new();
        let chunk = chunk();
        let name = names.add(chunk, 8, [0; 4]);
        names.place(0x100, 8, name);
        names.place(0x200, 8, name);
        names.retain(name);
        assert_eq!(names.release(name), Some(Left::Some));
        assert_eq!(names.release(name), Some(Left::Some));
        assert_eq!(names.release(name), None, "not once more");
        assert!(names.get(name).is_none());
        assert_eq!(names.displace(0x100), Left::Some);
        assert_eq!(names.displace(0x200), Left::Nothing(chunk));
        assert_eq!(names.displace(0x200), Left::Some, "it is gone already");
    }

    #[test]
    fn ranges_are_found_with_their_gaps() {
        let mut names = Names::new();
        let name = names.add(chunk(), 0x10, [0; 4]);
        names.place(0x100, 0x10, name);
        names.place(0x120, 0x10, name);
        assert_eq!(names.at(0x10f).unwrap().address, 0x100);
        assert!(names.at(0x110).is_none());
        assert!(!names.is_free(0x108, 8) && names.is_free(0x110, 0x10));
        assert_eq!(names.within(0x100, 0x30).count(), 2);
        assert_eq!(names.gaps(0x100, 0x40), [(0x110, 0x10), (0x130, 0x10)]);
        assert!(names.gaps(0x100, 0x10).is_empty());
    }
}
