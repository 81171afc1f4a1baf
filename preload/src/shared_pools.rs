//! Pools whose memory can be handed to other processes: how much of the GPU each has, and until when.
//!
//! Owns: what is allocated in which pool, and what was counted for it. Does not own: the account (`memory`), the calls
//! (`hooks::pool`).
//!
//! The driver gives nothing of such a pool back before the pool's end, whatever is freed in it or trimmed. So a pool counts with what
//! the driver has reserved for it, until it is destroyed; what is allocated then counts until it is freed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// This process's own such pools. Imported ones count where they were made.
pub(crate) static SHARED_POOLS: SharedPools = SharedPools(Mutex::new(Register::new()));

pub(crate) struct SharedPools(Mutex<Register>);

/// A pool for as long as its memory counts; handles are given out anew before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PoolId(pub(crate) u64);

struct Register {
    last: u64,
    /// Those that exist still, by their handles.
    names: BTreeMap<u64, PoolId>,
    pools: BTreeMap<PoolId, Pool>,
    allocations: BTreeMap<u64, (PoolId, u64)>,
}

struct Pool {
    device: u32,
    /// Bytes of the account.
    counted: u64,
    used: u64,
    /// Allocations that the driver is being asked for.
    pending: u32,
    is_destroyed: bool,
}

/// What is to be done to the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    More(u64),
    Less(u64),
}

/// An allocation that is being freed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Freeing {
    address: u64,
    pool: PoolId,
    bytes: u64,
}

impl SharedPools {
    fn register(&self) -> MutexGuard<'_, Register> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn made(&self, handle: u64, device: u32) {
        let mut register = self.register();
        register.last += 1;
        let id = PoolId(register.last);
        let (counted, used, pending, is_destroyed) = (0, 0, 0, false);
        register.pools.insert(id, Pool { device, counted, used, pending, is_destroyed });
        register.names.insert(handle, id);
    }

    pub(crate) fn are_none(&self) -> bool {
        self.register().names.is_empty()
    }

    /// A pool, and its device.
    pub(crate) fn find(&self, handle: u64) -> Option<(PoolId, u32)> {
        let register = self.register();
        let id = *register.names.get(&handle)?;
        Some((id, register.pools.get(&id)?.device))
    }

    /// So much is about to be allocated; by how much more of the GPU.
    pub(crate) fn begin(&self, id: PoolId, bytes: u64) -> u64 {
        self.with(id, |pool| {
            let spare = pool.counted.saturating_sub(pool.used);
            let growth = bytes.saturating_sub(spare);
            pool.counted += growth;
            pool.used += bytes;
            pool.pending += 1;
            growth
        })
        .unwrap_or(bytes)
    }

    /// It was not.
    pub(crate) fn failed(&self, id: PoolId, bytes: u64, growth: u64) {
        self.with(id, |pool| {
            pool.counted -= growth;
            pool.used -= bytes;
            pool.pending -= 1;
        });
    }

    /// It was.
    pub(crate) fn allocated(&self, id: PoolId, address: u64, bytes: u64) {
        self.with(id, |pool| pool.pending -= 1);
        self.register().allocations.insert(address, (id, bytes));
    }

    /// The driver says what it has reserved for a pool; that is what counts from now on.
    pub(crate) fn settle(&self, id: PoolId, reserved: u64) -> Change {
        self.with(id, |pool| {
            // What somebody is being given is not reserved yet.
            let target = if pool.pending > 0 { reserved.max(pool.counted) } else { reserved };
            let change = match target {
                more if more > pool.counted => Change::More(more - pool.counted),
                less if less < pool.counted => Change::Less(pool.counted - less),
                _ => Change::None,
            };
            pool.counted = target;
            change
        })
        .unwrap_or(Change::None)
    }

    /// There was no room for that.
    pub(crate) fn not_more(&self, id: PoolId, bytes: u64) {
        self.with(id, |pool| pool.counted = pool.counted.saturating_sub(bytes));
    }

    /// An allocation is about to be freed: another thread may be given the same address at once.
    pub(crate) fn take(&self, address: u64) -> Option<Freeing> {
        let (pool, bytes) = self.register().allocations.remove(&address)?;
        Some(Freeing { address, pool, bytes })
    }

    pub(crate) fn put_back(&self, freeing: Freeing) {
        let Freeing { address, pool, bytes } = freeing;
        self.register().allocations.insert(address, (pool, bytes));
    }

    /// It is freed; what goes with it, if its pool is gone.
    pub(crate) fn freed(&self, freeing: Freeing) -> Option<(PoolId, u64)> {
        let Freeing { pool: id, bytes, .. } = freeing;
        let mut register = self.register();
        let pool = register.pools.get_mut(&id)?;
        pool.used = pool.used.saturating_sub(bytes);
        register.settle_destroyed(id).map(|back| (id, back))
    }

    /// A pool is destroyed; what goes with it.
    pub(crate) fn destroyed(&self, handle: u64) -> Option<(PoolId, u64)> {
        let mut register = self.register();
        let id = register.names.remove(&handle)?;
        let pool = register.pools.get_mut(&id)?;
        pool.is_destroyed = true;
        register.settle_destroyed(id).map(|back| (id, back))
    }

    fn with<T>(&self, id: PoolId, f: impl FnOnce(&mut Pool) -> T) -> Option<T> {
        self.register().pools.get_mut(&id).map(f)
    }
}

impl Register {
    const fn new() -> Self {
        Register {
            last: 0,
            names: BTreeMap::new(),
            pools: BTreeMap::new(),
            allocations: BTreeMap::new(),
        }
    }

    /// What is counted and not used goes, of a pool that is destroyed.
    fn settle_destroyed(&mut self, id: PoolId) -> Option<u64> {
        let pool = self.pools.get_mut(&id).filter(|pool| pool.is_destroyed)?;
        let back = pool.counted.saturating_sub(pool.used);
        pool.counted -= back;
        if pool.used == 0 && pool.pending == 0 {
            self.pools.remove(&id);
        }
        Some(back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools() -> (SharedPools, PoolId) {
        let pools = SharedPools(Mutex::new(Register::new()));
        pools.made(7, 3);
        let (id, device) = pools.find(7).unwrap();
        assert_eq!(device, 3);
        (pools, id)
    }

    #[test]
    fn what_is_freed_stays_with_the_pool_and_is_used_again() {
        let (pools, id) = pools();
        assert_eq!(pools.begin(id, 60), 60);
        pools.allocated(id, 100, 60);
        assert_eq!(pools.settle(id, 64), Change::More(4));
        let freeing = pools.take(100).unwrap();
        assert_eq!(pools.take(100), None);
        assert_eq!(pools.freed(freeing), None);
        assert_eq!(pools.settle(id, 64), Change::None);
        assert_eq!(pools.begin(id, 70), 6);
        pools.failed(id, 70, 6);
        assert_eq!(pools.begin(id, 64), 0);
        pools.allocated(id, 100, 64);
        assert_eq!(pools.destroyed(7), Some((id, 0)));
        let freeing = pools.take(100).unwrap();
        assert_eq!(pools.freed(freeing), Some((id, 64)));
        assert!(pools.are_none() && pools.register().pools.is_empty());
    }

    #[test]
    fn what_another_thread_is_being_given_is_not_taken_back() {
        let (pools, id) = pools();
        assert_eq!(pools.begin(id, 10), 10);
        assert_eq!(pools.begin(id, 20), 20);
        pools.allocated(id, 100, 10);
        assert_eq!(pools.settle(id, 12), Change::None);
        pools.allocated(id, 200, 20);
        assert_eq!(pools.settle(id, 28), Change::Less(2));
        assert_eq!(pools.settle(id, 31), Change::More(3));
        pools.not_more(id, 3);
        assert_eq!(pools.settle(id, 28), Change::None);
    }

    #[test]
    fn a_pool_goes_with_what_nobody_uses_in_it() {
        let (pools, id) = pools();
        pools.begin(id, 10);
        pools.allocated(id, 100, 10);
        let freeing = pools.take(100).unwrap();
        pools.put_back(freeing);
        let freeing = pools.take(100).unwrap();
        assert_eq!(pools.freed(freeing), None);
        assert_eq!(pools.destroyed(7), Some((id, 10)));
        assert_eq!(pools.destroyed(7), None);
    }
}
