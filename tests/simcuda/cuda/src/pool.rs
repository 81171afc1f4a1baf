//! Memory that is allocated and freed in stream order: pools, what they keep, and
//! what is given back.

use std::sync::Arc;

use crate::code::{INVALID_VALUE, Outcome};
use crate::driver::Driver;
use crate::handles::Handle;
use crate::objects::{Pool, Tables};
use crate::physical::Physical;
use crate::space::{ALIGNMENT, GRANULARITY, RegionKind};

impl Pool {
    /// A pool of a device.
    pub(crate) fn new(ordinal: usize, default: bool) -> Pool {
        Pool {
            ordinal,
            default,
            handle_types: 0,
            origin: None,
            file: None,
            open_to: 0,
            release_threshold: 0,
            reuse: [1; 3],
            used: 0,
            used_high: 0,
            kept: Vec::new(),
            reserved: 0,
            reserved_high: 0,
        }
    }
}

impl Tables {
    /// The default pool of a device, and the one that is in use there.
    pub(crate) fn device_pool(&mut self, ordinal: usize) -> (Handle<Pool>, Handle<Pool>) {
        while self.device_pools.len() <= ordinal {
            let pool = self.pools.insert(Pool::new(self.device_pools.len(), true));
            self.device_pools.push((pool, pool));
        }
        self.device_pools[ordinal]
    }

    /// Takes memory from a pool: what it keeps first.
    pub(crate) fn allocate_pooled(
        &mut self,
        driver: &Driver,
        handle: Handle<Pool>,
        bytes: usize,
    ) -> Outcome<u64> {
        let pool = self.pools.get_mut(handle).ok_or(INVALID_VALUE)?;
        if pool.origin.is_some() {
            // What is another process's has what that allocates.
            return Err(INVALID_VALUE);
        }
        let shareable = pool.handle_types != 0;
        let gpu = *driver.devices.get(pool.ordinal).ok_or(INVALID_VALUE)?;
        // Small blocks share what would be one block of the driver's; here they
        // count by themselves.
        let unit = if bytes >= GRANULARITY { GRANULARITY } else { ALIGNMENT };
        let length = bytes.checked_next_multiple_of(unit).ok_or(crate::code::OUT_OF_MEMORY)?;
        let memory = match pool.kept.iter().position(|kept| kept.length() == length) {
            Some(at) => pool.kept.swap_remove(at),
            None => {
                let make = || match shareable {
                    true => Physical::new_shareable(gpu, length),
                    false => Physical::new(gpu, length),
                };
                let new = make().or_else(|_| {
                    // What is kept for others may make room.
                    for (_, handle) in self.device_pools.clone() {
                        self.trim_pool(handle, 0);
                    }
                    self.trim_pool(handle, 0);
                    make()
                })?;
                let pool = self.pools.get_mut(handle).ok_or(INVALID_VALUE)?;
                pool.reserved += length as u64;
                pool.reserved_high = pool.reserved_high.max(pool.reserved);
                new
            }
        };
        let start = self.space.add(length, unit, RegionKind::Pooled { pool: handle, gpu })?;
        let open_to = self.pools.get(handle).map_or(0, |pool| pool.open_to);
        self.space.map(start, length, memory, 0, open_to | 1 << gpu)?;
        if let Some(pool) = self.pools.get_mut(handle) {
            pool.used += length as u64;
            pool.used_high = pool.used_high.max(pool.used);
        }
        Ok(start)
    }

    /// Lets another GPU reach the allocations of a pool, also those to come; or
    /// shuts it out.
    pub(crate) fn open_pool(&mut self, handle: Handle<Pool>, gpu: usize, open: bool) {
        let Some(pool) = self.pools.get_mut(handle) else { return };
        pool.open_to = if open { pool.open_to | 1 << gpu } else { pool.open_to & !(1 << gpu) };
        let own: Vec<(u64, usize)> = self
            .space
            .regions()
            .filter(|(_, region)| {
                matches!(region.kind, RegionKind::Pooled { pool, .. } if pool == handle)
            })
            .map(|(start, region)| (start, region.length))
            .collect();
        for (start, length) in own {
            // An allocation is one mapping as long as its region.
            let _ = self.space.set_access(start, length, gpu, open, open);
        }
    }

    /// Gives an allocation back to its pool.
    pub(crate) fn free_pooled(&mut self, start: u64) {
        let Some(memory) = self.space.memory_at(start) else { return };
        let Some(region) = self.space.remove(start) else { return };
        let RegionKind::Pooled { pool: handle, .. } = region.kind else { return };
        let Some(pool) = self.pools.get_mut(handle) else { return };
        pool.used -= region.length as u64;
        if pool.origin.is_some() {
            // It goes on where it is from.
            pool.reserved -= region.length as u64;
            return;
        }
        pool.kept.push(memory);
        let threshold = pool.release_threshold;
        self.trim_pool(handle, threshold);
    }

    /// Puts an allocation of another process's into the pool that was imported for it.
    pub(crate) fn import_pooled(
        &mut self,
        handle: Handle<Pool>,
        memory: Arc<Physical>,
    ) -> Outcome<u64> {
        let (gpu, length) = (memory.gpu(), memory.length());
        let start = self.space.add(length, ALIGNMENT, RegionKind::Pooled { pool: handle, gpu })?;
        let pool = self.pools.get_mut(handle).ok_or(INVALID_VALUE)?;
        pool.used += length as u64;
        pool.reserved += length as u64;
        pool.used_high = pool.used_high.max(pool.used);
        pool.reserved_high = pool.reserved_high.max(pool.reserved);
        let open_to = pool.open_to | 1 << gpu;
        self.space.map(start, length, memory, 0, open_to)?;
        Ok(start)
    }

    /// Gives back what the pool keeps unused, as far as it holds more than `keep`. Pools for other processes give nothing back
    /// before their end, whatever their threshold.
    pub(crate) fn trim_pool(&mut self, handle: Handle<Pool>, keep: u64) {
        let Some(pool) = self.pools.get_mut(handle).filter(|pool| pool.handle_types == 0) else {
            return;
        };
        while pool.reserved > keep
            && let Some(memory) = pool.kept.pop()
        {
            pool.reserved -= memory.length() as u64;
        }
    }
}
