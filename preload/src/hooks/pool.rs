//! Pools of memory that is allocated in the order of streams: the driver has the pools, the pager their memory.
//!
//! Owns: what programs see of it. Does not own: allocating and freeing (`memory`).
//!
//! Pools elsewhere than on a device, and those whose memory is for other processes, have memory of the driver's own. That of
//! the latter counts as "pools" (`shared_pools`).
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use super::memory::{current_device, rounded};
use super::unasked;
use crate::memory::{Key, LEDGER};
use crate::pager::{Home, PAGER};
use crate::shared_pools::{Change, PoolId, SHARED_POOLS};
use crate::table::real;
use acb_cuda_abi::{CuResult, sys};
use std::collections::BTreeMap;
use std::ffi::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// As status calls it.
const SHARED: &str = "pools";
const PINNED: u32 = 1;
const ON_DEVICE: u32 = sys::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE as u32;

// CUmemPool_attribute
const RELEASE_THRESHOLD: c_uint = 4;
const RESERVED: c_uint = 5;
const RESERVED_HIGH: c_uint = 6;
const USED: c_uint = 7;
const USED_HIGH: c_uint = 8;

/// Pools whose memory is the driver's own, with their devices; `None`: the host.
static ELSEWHERE: Mutex<BTreeMap<u64, Option<c_int>>> = Mutex::new(BTreeMap::new());

fn elsewhere() -> MutexGuard<'static, BTreeMap<u64, Option<c_int>>> {
    ELSEWHERE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device that an allocation takes memory of, where the current one would do; `None`: it is on the host.
pub(super) fn device_of(pool: Option<u64>, current: Option<c_int>) -> Option<c_int> {
    let known = pool.and_then(|pool| elsewhere().get(&pool).copied());
    known.unwrap_or(current)
}

pub(crate) unsafe fn cuMemPoolCreate(
    pool: *mut sys::CUmemoryPool,
    poolProps: *const sys::CUmemPoolProps,
) -> CuResult {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuMemPoolCreate(pool, poolProps) };
    if result.is_success() {
        // SAFETY: the driver has read the one and written the other; kinds are read as numbers. The limit lies behind them and a
        // pointer.
        let (pool, [kind, types, location, id], limit) = unsafe {
            let fields = poolProps.cast::<[u32; 4]>().read_unaligned();
            (pool.read() as u64, fields, poolProps.cast::<u64>().add(3).read_unaligned())
        };
        let paged = kind == PINNED && types == 0 && location == ON_DEVICE;
        let home = match paged && PAGER.has_device(id as i32) {
            true => Home::Device(id),
            false => Home::Driver,
        };
        if home == Home::Driver {
            let device = (location == ON_DEVICE).then_some(id as c_int);
            elsewhere().insert(pool, device);
            if types != 0 && location == ON_DEVICE {
                SHARED_POOLS.made(pool, id);
            }
        }
        PAGER.pool_made(pool, home, limit);
    }
    result
}

/// What was allocated in it lives on.
pub(crate) unsafe fn cuMemPoolDestroy(pool: sys::CUmemoryPool) -> CuResult {
    // SAFETY: the program's own argument.
    let result = unsafe { real::cuMemPoolDestroy(pool) };
    if result.is_success() {
        elsewhere().remove(&(pool as u64));
        PAGER.pool_gone(pool as u64);
        return_memory(SHARED_POOLS.destroyed(pool as u64));
    }
    result
}

pub(crate) unsafe fn cuMemPoolGetAttribute(
    pool: sys::CUmemoryPool,
    attr: c_uint,
    value: *mut c_void,
) -> CuResult {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuMemPoolGetAttribute(pool, attr, value) };
    if result.is_success()
        && let Some(levels) = PAGER.pool_levels(pool as u64)
    {
        let (used, reserved) = levels;
        let more = match attr {
            RESERVED => reserved.now,
            RESERVED_HIGH => reserved.high,
            USED => used.now,
            USED_HIGH => used.high,
            _ => return result,
        };
        let place = value.cast::<u64>();
        // SAFETY: the driver has just written a number of 64 bits there.
        unsafe { place.write_unaligned(place.read_unaligned() + more) };
    }
    result
}

pub(crate) unsafe fn cuMemPoolSetAttribute(
    pool: sys::CUmemoryPool,
    attr: c_uint,
    value: *mut c_void,
) -> CuResult {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuMemPoolSetAttribute(pool, attr, value) };
    if result.is_success() && attr == RELEASE_THRESHOLD {
        // SAFETY: the driver has just read a number of 64 bits there.
        PAGER.pool_threshold(pool as u64, unsafe { value.cast::<u64>().read_unaligned() });
    }
    // The driver takes nothing but zero for these.
    if result.is_success() && matches!(attr, RESERVED_HIGH | USED_HIGH) {
        PAGER.forget_pool_highs(pool as u64, attr == USED_HIGH);
    }
    result
}

/// What streams have come past goes at once, beyond what is to be kept.
pub(crate) unsafe fn cuMemPoolTrimTo(pool: sys::CUmemoryPool, minBytesToKeep: usize) -> CuResult {
    PAGER.trim(pool as u64, minBytesToKeep as u64);
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuMemPoolTrimTo(pool, minBytesToKeep) };
    if let Some((id, _)) = SHARED_POOLS.find(pool as u64) {
        settle("cuMemPoolTrimTo", pool as u64, id);
    }
    result
}

/// The pool for other processes that an allocation comes from, if it does; without a pool it comes from the device's.
fn shared_source(pool: Option<u64>) -> Option<(u64, PoolId, u32)> {
    if SHARED_POOLS.are_none() {
        return None;
    }
    let pool = match pool {
        Some(pool) => pool,
        None => {
            let mut current = std::ptr::null_mut();
            // SAFETY: a place on this stack.
            let result = unsafe { real::cuDeviceGetMemPool(&raw mut current, current_device()?) };
            result.is_success().then_some(current as u64)?
        }
    };
    SHARED_POOLS.find(pool).map(|(id, device)| (pool, id, device))
}

/// An allocation in a pool for other processes; `None`: it is in none.
///
/// # Safety
/// `place` is where `call` puts the address when it succeeds.
pub(super) unsafe fn allocate_shared(
    symbol: &'static str,
    bytes: u64,
    place: *const u64,
    pool: Option<u64>,
    call: impl Fn() -> CuResult,
) -> Option<CuResult> {
    let (pool, id, device) = shared_source(pool)?;
    let bytes = rounded(bytes);
    let growth = SHARED_POOLS.begin(id, bytes);
    let Some(promise) = LEDGER.reserve_exactly(symbol, device as c_int, growth) else {
        SHARED_POOLS.failed(id, bytes, growth);
        return Some(CuResult::OUT_OF_MEMORY);
    };
    let result = unasked::again(symbol, call);
    if !result.is_success() {
        LEDGER.forget(promise);
        SHARED_POOLS.failed(id, bytes, growth);
        return Some(result);
    }
    // SAFETY: the call succeeded.
    let address = unsafe { place.read_unaligned() };
    LEDGER.grown(promise.of_kind(SHARED), key(id), 0);
    SHARED_POOLS.allocated(id, address, bytes);
    if settle(symbol, pool, id) {
        return Some(result);
    }
    // The driver took more than there is room for.
    // SAFETY: what has just been allocated, and nobody knows yet.
    let _ = free_shared(address, || unsafe { real::cuMemFree_v2(address) });
    Some(CuResult::OUT_OF_MEMORY)
}

/// The end of such an allocation; `None`: it is none.
pub(super) fn free_shared(address: u64, call: impl FnOnce() -> CuResult) -> Option<CuResult> {
    let freeing = SHARED_POOLS.take(address)?;
    let result = call();
    match result.is_success() {
        true => return_memory(SHARED_POOLS.freed(freeing)),
        false => SHARED_POOLS.put_back(freeing),
    }
    Some(result)
}

fn key(PoolId(id): PoolId) -> Key {
    Key::Pool(id)
}

fn return_memory(gone: Option<(PoolId, u64)>) {
    if let Some((id, bytes)) = gone
        && bytes > 0
    {
        LEDGER.shrunk(key(id), bytes);
    }
}

/// Counts what the driver has reserved for a pool; false: there is no room for that, and the reason has been told.
fn settle(symbol: &str, pool: u64, id: PoolId) -> bool {
    let mut reserved = 0_u64;
    // SAFETY: a pool that exists, and a place on this stack for a number of 64 bits.
    let result = unsafe {
        let place = (&raw mut reserved).cast();
        real::cuMemPoolGetAttribute(pool as sys::CUmemoryPool, RESERVED, place)
    };
    if !result.is_success() {
        return true;
    }
    match SHARED_POOLS.settle(id, reserved) {
        Change::None => true,
        Change::Less(bytes) => {
            LEDGER.shrunk(key(id), bytes);
            true
        }
        Change::More(bytes) => {
            let device = SHARED_POOLS.find(pool).map_or(0, |(_, device)| device);
            match LEDGER.reserve_exactly(symbol, device as c_int, bytes) {
                Some(promise) => LEDGER.grown(promise.of_kind(SHARED), key(id), 0),
                None => {
                    SHARED_POOLS.not_more(id, bytes);
                    return false;
                }
            }
            true
        }
    }
}

pub(crate) unsafe fn cuMemPoolSetAccess(
    pool: sys::CUmemoryPool,
    map: *const sys::CUmemAccessDesc,
    count: usize,
) -> CuResult {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuMemPoolSetAccess(pool, map, count) };
    if result.is_success() {
        for at in 0..count {
            // SAFETY: the driver has just read so many: kind and number of a location, flags.
            let [kind, id, flags] = unsafe { map.add(at).cast::<[u32; 3]>().read_unaligned() };
            if kind == ON_DEVICE
                && let Err(result) = PAGER.open_pool(pool as u64, id, flags != 0)
            {
                return result;
            }
        }
    }
    result
}
