//! The program's pools, as far as they have memory of the pager's. Pure.
//!
//! Owns: where a pool's memory is, and how much of it is in use. Does not own: the pools, which are the driver's, with their
//! settings; memory of theirs that is the driver's own.
//!
//! Memory that is freed in a stream is reserved until the stream has come past; then it stays where the pool has no more than its
//! release threshold (`kept`), else it goes.

use std::collections::BTreeMap;

/// Who has a pool's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// The pager, on this device.
    Device(u32),
    /// The driver: it is not on a device, or made to be handed to other processes.
    Driver,
}

/// Bytes of a pool: now, and the most since that was set back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) now: u64,
    pub(crate) high: u64,
}

impl Level {
    fn rise(&mut self, bytes: u64) {
        self.now += bytes;
        self.high = self.high.max(self.now);
    }

    fn fall(&mut self, bytes: u64) {
        self.now = self.now.saturating_sub(bytes);
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    pub(crate) home: Home,
    /// Bytes that it may have at most; 0: no limit.
    limit: u64,
    /// Bytes that it may keep.
    threshold: u64,
    pub(crate) used: Level,
    pub(crate) reserved: Level,
}

#[derive(Debug, Default)]
pub(crate) struct Pools {
    pools: BTreeMap<u64, Pool>,
}

impl Pools {
    pub(crate) const fn new() -> Self {
        Pools { pools: BTreeMap::new() }
    }

    pub(crate) fn note(&mut self, pool: u64, home: Home, limit: u64) {
        let (used, reserved) = (Level::default(), Level::default());
        self.pools.insert(pool, Pool { home, limit, threshold: 0, used, reserved });
    }

    pub(crate) fn get(&self, pool: u64) -> Option<&Pool> {
        self.pools.get(&pool)
    }

    pub(crate) fn remove(&mut self, pool: u64) {
        self.pools.remove(&pool);
    }

    /// Whether a pool may have so much more.
    pub(crate) fn has_space(&self, pool: u64, bytes: u64) -> bool {
        let left = |pool: &Pool| pool.limit.saturating_sub(pool.reserved.now);
        self.pools.get(&pool).is_none_or(|pool| pool.limit == 0 || bytes <= left(pool))
    }

    /// CU_MEMPOOL_ATTR_RELEASE_THRESHOLD.
    pub(crate) fn set_threshold(&mut self, pool: u64, bytes: u64) {
        self.with(pool, |pool| pool.threshold = bytes);
    }

    /// Whether what has been freed may stay.
    pub(crate) fn keeps(&self, pool: u64) -> bool {
        self.pools.get(&pool).is_some_and(|pool| pool.reserved.now <= pool.threshold)
    }

    /// New memory.
    pub(crate) fn allocated(&mut self, pool: u64, bytes: u64) {
        self.with(pool, |pool| {
            pool.used.rise(bytes);
            pool.reserved.rise(bytes);
        });
    }

    /// Memory that had been freed is in use again.
    pub(crate) fn used_again(&mut self, pool: u64, bytes: u64) {
        self.with(pool, |pool| pool.used.rise(bytes));
    }

    /// The program has freed it.
    pub(crate) fn freed(&mut self, pool: u64, bytes: u64) {
        self.with(pool, |pool| pool.used.fall(bytes));
    }

    /// It is gone.
    pub(crate) fn given(&mut self, pool: u64, bytes: u64) {
        self.with(pool, |pool| pool.reserved.fall(bytes));
    }

    /// Sets the high-water marks back.
    pub(crate) fn forget_highs(&mut self, pool: u64, used: bool) {
        self.with(pool, |pool| {
            let level = if used { &mut pool.used } else { &mut pool.reserved };
            level.high = level.now;
        });
    }

    fn with(&mut self, pool: u64, f: impl FnOnce(&mut Pool)) {
        if let Some(pool) = self.pools.get_mut(&pool) {
            f(pool);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_is_reserved_until_it_is_gone() {
        let mut pools = Pools::new();
        pools.note(7, Home::Device(0), 100);
        pools.allocated(7, 60);
        assert!(pools.has_space(7, 40) && !pools.has_space(7, 41));
        pools.freed(7, 60);
        let pool = pools.get(7).unwrap();
        assert_eq!((pool.used, pool.reserved), (level(0, 60), level(60, 60)));
        assert!(!pools.has_space(7, 41), "it is still there");
        pools.used_again(7, 60);
        pools.freed(7, 60);
        pools.given(7, 60);
        pools.forget_highs(7, true);
        let pool = pools.get(7).unwrap();
        assert_eq!((pool.used, pool.reserved), (level(0, 0), level(0, 60)));
        pools.forget_highs(7, false);
        assert_eq!(pools.get(7).unwrap().reserved, level(0, 0));
    }

    #[test]
    fn a_pool_keeps_what_its_threshold_says() {
        let mut pools = Pools::new();
        pools.note(7, Home::Device(0), 0);
        pools.allocated(7, 60);
        assert!(!pools.keeps(7) && !pools.keeps(8));
        pools.set_threshold(7, 60);
        assert!(pools.keeps(7));
        pools.allocated(7, 1);
        assert!(!pools.keeps(7));
    }

    fn level(now: u64, high: u64) -> Level {
        Level { now, high }
    }

    #[test]
    fn an_unknown_pool_has_no_limit() {
        let mut pools = Pools::new();
        assert!(pools.has_space(9, u64::MAX));
        pools.allocated(9, 5);
        assert!(pools.get(9).is_none());
    }
}
