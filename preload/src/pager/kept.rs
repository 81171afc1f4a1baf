//! Memory of pools that is free and stays, up to the pool's release threshold.
//!
//! Owns: what is kept, and which of it an allocation gets. Does not own: the thresholds (`pools`), waiting for streams (`frees`).
//!
//! All streams have come past what is kept, so any stream may have it. It is claimed and on the GPU like all other memory, but others
//! need not wait for it: what the assigner asks back is taken from here first, and so is what an allocation lacks.

use super::device;
use super::ranges::Allocation;
use super::{Books, Pager};

/// What nobody uses, in the order in which it was freed.
#[derive(Debug, Default)]
pub(super) struct Kept {
    blocks: Vec<Block>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) address: u64,
    pub(super) allocation: Allocation,
    pub(super) device: u32,
}

impl Kept {
    pub(super) const fn new() -> Self {
        Kept { blocks: Vec::new() }
    }

    fn add(&mut self, block: Block) {
        self.blocks.push(block);
    }

    /// The closest in size that an allocation fits in; of several the latest, which the caches know best.
    fn take(&mut self, bytes: u64, pool: u64, device: u32) -> Option<Block> {
        let fits = |block: &Block| {
            (block.allocation.pool, block.device) == (pool, device) && block.allocation.fits(bytes)
        };
        let found = self.blocks.iter().enumerate().rev().filter(|(_, block)| fits(block));
        let (at, _) = found.min_by_key(|(_, block)| block.allocation.bytes)?;
        Some(self.blocks.remove(at))
    }

    /// The oldest of a kind.
    fn drop_first(&mut self, is_one: impl Fn(&Block) -> bool) -> Option<Block> {
        let at = self.blocks.iter().position(is_one)?;
        Some(self.blocks.remove(at))
    }

    /// A context is gone, with all that was allocated in it; what of that was kept.
    pub(super) fn forget(&mut self, is_gone: impl Fn(&Allocation) -> bool) -> Vec<Allocation> {
        let gone = self.blocks.extract_if(.., |block| is_gone(&block.allocation));
        gone.map(|block| block.allocation).collect()
    }
}

impl Pager {
    /// Keeps memory that streams have come past, if its pool may have so much; false: it is to go.
    pub(super) fn keep(&self, address: u64, allocation: Allocation, device: u32) -> bool {
        let mut books = self.books();
        // What others wait for is not kept.
        let keeps = books.pools.keeps(allocation.pool)
            && !books.ended
            && books.ranges.range(allocation.range).is_some()
            && books.table.account(device).owed() == 0;
        if keeps {
            books.kept.add(Block { address, allocation, device });
        }
        keeps
    }

    /// Memory that a pool has kept, for any stream.
    pub(crate) fn use_again(&self, bytes: u64, (pool, device): (u64, u32)) -> Option<u64> {
        let mut books = self.books();
        let Block { address, allocation, .. } = books.kept.take(bytes, pool, device)?;
        let allocation = Allocation { requested: bytes, ..allocation };
        books.ranges.put_back(address, allocation);
        books.pools.used_again(pool, allocation.bytes);
        Some(address)
    }

    /// Gives up what a pool keeps, until it has no more than so much.
    pub(super) fn drain_pool(&self, pool: u64, bytes: u64) {
        self.drain(|books| {
            let reserved = books.pools.get(pool).map_or(0, |pool| pool.reserved.now);
            let block = (reserved > bytes)
                .then(|| books.kept.drop_first(|block| block.allocation.pool == pool));
            block.flatten()
        });
    }

    /// Gives up all that is kept on a device. True: there was something.
    pub(crate) fn drain_device(&self, device: u32) -> bool {
        self.is_active() && self.drain(|books| books.kept.drop_first(|it| it.device == device))
    }

    /// Gives up what the assigner has asked back, on the link thread: what that moves or has hashed is left for later.
    pub(super) fn drain_owed(&self) {
        self.drain(|books| {
            let devices = 0..books.devices();
            let owing = devices.filter(|device| books.table.account(*device).owed() > 0);
            let owing: Vec<u32> = owing.collect();
            if owing.is_empty() {
                return None;
            }
            let can_go = |block: &Block| {
                owing.contains(&block.device) && !books.is_worked_on(block.allocation.range)
            };
            let at = books.kept.blocks.iter().position(can_go)?;
            Some(books.kept.blocks.remove(at))
        });
    }

    fn drain(&self, mut next: impl FnMut(&mut Books) -> Option<Block>) -> bool {
        let mut some = false;
        loop {
            let mut books = self.books();
            let Some(block) = next(&mut books) else { return some };
            drop(books);
            some = true;
            device::relaxed(|| self.give(block.address, block.allocation));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn block(address: u64, bytes: u64, pool: u64) -> Block {
        let allocation = Allocation { range: address, requested: bytes, number: 1, bytes, pool };
        Block { address, allocation, device: 0 }
    }

    #[test]
    fn an_allocation_gets_the_closest_in_size_and_none_that_is_much_too_large() {
        let mut kept = Kept::new();
        for (address, mib) in [(1, 16), (2, 8), (3, 8), (4, 6)] {
            kept.add(block(address, mib * MIB, 7));
        }
        let mut take = |mib: u64, pool| kept.take(mib * MIB, pool, 0).map(|block| block.address);
        assert_eq!(take(7, 8), None, "another pool's");
        assert_eq!(take(7, 7), Some(3));
        assert_eq!(take(5, 7), Some(4));
        assert_eq!(take(2, 7), None);
        assert_eq!(take(5, 7), Some(2));
        assert_eq!(take(17, 7), None);
        assert_eq!(take(16, 7), Some(1));
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut kept = Kept::new();
        for address in 1..4 {
            kept.add(block(address, MIB, address % 2));
        }
        let mut oldest = |pool| kept.drop_first(|it| it.allocation.pool == pool).map(|b| b.address);
        assert_eq!((oldest(1), oldest(1), oldest(1), oldest(0)), (Some(1), Some(3), None, Some(2)));
        kept.add(block(5, MIB, 1));
        assert_eq!(kept.forget(|allocation| allocation.range == 5).len(), 1);
        assert!(kept.blocks.is_empty());
    }
}
