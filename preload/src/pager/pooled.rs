//! Memory in the order of streams, as the program's pools have it, on the program's own threads.
//!
//! Owns: which pool and which device an allocation is of. Does not own: the figures (`pools`), freeing (`frees`).

use super::contexts::Carrier;
use super::device::{self, Answer};
use super::pools::{Home, Level};
use super::{Books, Pager};
use crate::work;
use acb_cuda_abi::CuResult;

impl Pager {
    pub(crate) fn pool_made(&self, pool: u64, home: Home, limit: u64) {
        if self.is_active() {
            self.books().pools.note(pool, home, limit);
        }
    }

    pub(crate) fn pool_gone(&self, pool: u64) {
        if !self.is_active() {
            return;
        }
        self.drain_pool(pool, 0);
        let mut books = self.books();
        books.pools.remove(pool);
        let closed = books.peers.pool_gone(pool);
        drop(books);
        for device in closed {
            self.spread_quietly(device);
        }
    }

    /// Bytes of a pool that the pager has: used, and reserved.
    pub(crate) fn pool_levels(&self, pool: u64) -> Option<(Level, Level)> {
        if !self.is_active() {
            return None;
        }
        self.home(pool);
        self.books().pools.get(pool).map(|pool| (pool.used, pool.reserved))
    }

    pub(crate) fn forget_pool_highs(&self, pool: u64, used: bool) {
        if self.is_active() {
            self.books().pools.forget_highs(pool, used);
        }
    }

    /// Frees what streams have come past, and what the pool keeps beyond so much.
    pub(crate) fn trim(&self, pool: u64, bytes: u64) {
        if self.is_active() {
            self.reap();
            self.drain_pool(pool, bytes);
        }
    }

    /// The program has said how much a pool may keep.
    pub(crate) fn pool_threshold(&self, pool: u64, bytes: u64) {
        if self.is_active() {
            self.home(pool);
            self.books().pools.set_threshold(pool, bytes);
            self.drain_pool(pool, bytes);
        }
    }

    /// cuMemPoolSetAccess has succeeded.
    pub(crate) fn open_pool(&self, pool: u64, by: u32, open: bool) -> Answer<()> {
        if !self.is_active() {
            return Ok(());
        }
        let Home::Device(owner) = self.home(pool) else { return Ok(()) };
        self.books().peers.set_pool(pool, by, owner, open);
        self.spread(owner)
    }

    /// Whose a pool's memory is. One that was not made in this process's sight is a device's default pool, or the driver's.
    fn home(&self, pool: u64) -> Home {
        let (known, devices) = {
            let books = self.books();
            (books.pools.get(pool).map(|pool| pool.home), books.devices())
        };
        known.unwrap_or_else(|| {
            let device = (0..devices).find(|device| device::default_pool(*device) == Some(pool));
            let home = device.map_or(Home::Driver, Home::Device);
            self.books().pools.note(pool, home, 0);
            home
        })
    }

    /// The pool from which memory comes in a stream, and the pager's device; `None`: that memory is the driver's own.
    pub(crate) fn source(&self, pool: Option<u64>, stream: usize) -> Option<(u64, u32)> {
        let device = self.device_of_stream(stream)?;
        // Drivers without pools have none to name.
        let Some(pool) = pool.or_else(|| device::pool(device)) else { return Some((0, device)) };
        match self.home(pool) {
            Home::Device(device) => Some((pool, device)),
            Home::Driver => None,
        }
    }

    fn device_of_stream(&self, stream: usize) -> Option<u32> {
        let several = self.books().devices() > 1;
        let context = several.then(|| device::context_of(stream)).flatten();
        match context.and_then(|context| self.books().contexts.device(context)) {
            Some(device) => Some(device),
            None => device::current_device(),
        }
    }

    /// Memory of a pool, on a device that may not be the current one.
    pub(crate) fn allocate_in_pool(
        &self,
        call: &'static str,
        bytes: u64,
        (pool, device): (u64, u32),
    ) -> Answer<u64> {
        if !self.books().pools.has_space(pool, bytes) {
            self.reap();
            self.drain_pool(pool, 0);
        }
        let context = {
            let books = self.books();
            if !books.pools.has_space(pool, bytes) {
                return Err(CuResult::OUT_OF_MEMORY);
            }
            books.context_on(device)
        };
        let address = self.allocate_on(call, bytes, device, context)?;
        let mut books = self.books();
        let taken = books.ranges.tag(address, pool);
        books.pools.allocated(pool, taken);
        Ok(address)
    }
}

impl Books {
    /// The current context, if it is on a device, or any other there.
    fn context_on(&self, device: u32) -> usize {
        let current = work::current_context();
        match self.contexts.device(current) {
            Some(of) if of != device => {
                self.contexts.carrier(device).map_or(current, |Carrier { handle, .. }| handle)
            }
            _ => current,
        }
    }
}
