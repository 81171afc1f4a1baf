//! Pools of memory that is allocated in the order of streams: the driver has the pools, the pager their memory.
//!
//! Owns: what programs see of it. Does not own: allocating and freeing (`memory`).
//!
//! Pools elsewhere than on a device, and those whose memory is for other processes, have memory of the driver's own.
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use crate::pager::{Home, PAGER};
use crate::table::real;
use acb_cuda_abi::{CuResult, sys};
use std::collections::BTreeMap;
use std::ffi::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

const PINNED: u32 = 1;
const ON_DEVICE: u32 = sys::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE as u32;

// CUmemPool_attribute
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
    // The driver takes nothing but zero for these.
    if result.is_success() && matches!(attr, RESERVED_HIGH | USED_HIGH) {
        PAGER.forget_pool_highs(pool as u64, attr == USED_HIGH);
    }
    result
}

/// What streams have come past goes at once, whatever is to be kept: freed memory is not kept in any case.
pub(crate) unsafe fn cuMemPoolTrimTo(pool: sys::CUmemoryPool, minBytesToKeep: usize) -> CuResult {
    PAGER.trim();
    // SAFETY: the program's own arguments.
    unsafe { real::cuMemPoolTrimTo(pool, minBytesToKeep) }
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
