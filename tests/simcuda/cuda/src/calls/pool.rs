//! Pools, and allocations in stream order.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_int, c_uint, c_void};

use acb_cuda_abi::sys;
use simcuda_device::fault::FaultKind;

use super::memory::cuMemFree_v2;
use super::put;
use crate::code::{
    INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, Outcome,
};
use crate::driver;
use crate::handles::Handle;
use crate::objects::Pool;
use crate::space::RegionKind;
use crate::timeline::Submission;
use crate::work::Work;

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`
const FILE_DESCRIPTOR: c_uint = 1;

calls! {
    fn cuMemPoolCreate(pool: *mut sys::CUmemoryPool, properties: *const sys::CUmemPoolProps) {
        let driver = driver::get()?;
        if properties.is_null() {
            return Err(INVALID_VALUE);
        }
        let location = (&raw const (*properties).location.type_).cast::<c_uint>().read();
        let dev = (&raw const (*properties).location).cast::<c_int>().add(1).read();
        // type, handle types
        let fields = properties.cast::<c_uint>();
        if location != 1 || fields.read() != 1 {
            return Err(INVALID_VALUE);
        }
        let handle_types = fields.add(1).read();
        if handle_types & !FILE_DESCRIPTOR != 0 {
            // Handles of other systems and machines.
            return Err(NOT_SUPPORTED);
        }
        driver.gpu(dev).map_err(|_| INVALID_VALUE)?;
        let made = Pool { handle_types, ..Pool::new(dev as usize, false) };
        put(pool, driver.lock().pools.insert(made).bits() as sys::CUmemoryPool)
    }

    fn cuMemPoolDestroy(pool: sys::CUmemoryPool) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = Handle::from_bits(pool as u64);
        let found = tables.pools.get(handle).ok_or(INVALID_VALUE)?;
        if found.default {
            return Err(INVALID_VALUE);
        }
        let ordinal = found.ordinal;
        // What is allocated lives on, what is kept does not.
        tables.pools.remove(handle);
        let (default, current) = tables.device_pool(ordinal);
        if current == handle {
            tables.device_pools[ordinal].1 = default;
        }
        Ok(())
    }

    fn cuMemPoolTrimTo(pool: sys::CUmemoryPool, keep: usize) {
        let driver = driver::get()?;
        let mut tables = driver.look(driver.lock());
        let handle = Handle::from_bits(pool as u64);
        tables.pools.get(handle).ok_or(INVALID_VALUE)?;
        tables.trim_pool(handle, keep as u64);
        Ok(())
    }

    fn cuMemPoolGetAttribute(pool: sys::CUmemoryPool, attribute: c_uint, value: *mut c_void) {
        let driver = driver::get()?;
        let tables = driver.look(driver.lock());
        let pool = tables.pools.get(Handle::from_bits(pool as u64)).ok_or(INVALID_VALUE)?;
        match attribute {
            1..=3 => put(value.cast::<c_int>(), pool.reuse[attribute as usize - 1]),
            4 => put(value.cast::<u64>(), pool.release_threshold),
            5 => put(value.cast::<u64>(), pool.reserved),
            6 => put(value.cast::<u64>(), pool.reserved_high),
            7 => put(value.cast::<u64>(), pool.used),
            8 => put(value.cast::<u64>(), pool.used_high),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuMemPoolSetAttribute(pool: sys::CUmemoryPool, attribute: c_uint, value: *mut c_void) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let pool = tables.pools.get_mut(Handle::from_bits(pool as u64)).ok_or(INVALID_VALUE)?;
        if value.is_null() {
            return Err(INVALID_VALUE);
        }
        match attribute {
            1..=3 => pool.reuse[attribute as usize - 1] = value.cast::<c_int>().read(),
            4 => pool.release_threshold = value.cast::<u64>().read(),
            // The high-water marks can only be set back.
            6 if value.cast::<u64>().read() == 0 => pool.reserved_high = pool.reserved,
            8 if value.cast::<u64>().read() == 0 => pool.used_high = pool.used,
            _ => return Err(INVALID_VALUE),
        }
        Ok(())
    }

    fn cuMemPoolSetAccess(
        pool: sys::CUmemoryPool,
        descriptions: *const sys::CUmemAccessDesc,
        count: usize,
    ) {
        let driver = driver::get()?;
        if descriptions.is_null() || count == 0 {
            return Err(INVALID_VALUE);
        }
        let mut tables = driver.lock();
        let handle = Handle::from_bits(pool as u64);
        let own = tables.pools.get(handle).ok_or(INVALID_VALUE)?.ordinal;
        for at in 0..count {
            // location: type and id; flags
            let fields = descriptions.add(at).cast::<c_uint>();
            let (kind, flags) = (fields.read(), fields.add(2).read());
            let dev = fields.add(1).cast::<c_int>().read();
            let gpu = driver.gpu(dev).map_err(|_| INVALID_VALUE)?;
            // The pool's own device cannot be shut out.
            if kind != 1 || !matches!(flags, 0 | 3) || (dev as usize == own && flags == 0) {
                return Err(INVALID_VALUE);
            }
            if dev as usize != own && !driver.config.peers {
                return Err(INVALID_DEVICE);
            }
            tables.open_pool(handle, gpu, flags == 3);
        }
        Ok(())
    }

    fn cuMemPoolGetAccess(
        flags: *mut c_uint,
        pool: sys::CUmemoryPool,
        location: *mut sys::CUmemLocation,
    ) {
        let driver = driver::get()?;
        if location.is_null() {
            return Err(INVALID_VALUE);
        }
        let kind = location.cast::<c_uint>().read();
        let gpu = driver.gpu(location.cast::<c_int>().add(1).read()).map_err(|_| INVALID_VALUE)?;
        let tables = driver.lock();
        let pool = tables.pools.get(Handle::from_bits(pool as u64)).ok_or(INVALID_VALUE)?;
        if kind != 1 {
            return Err(INVALID_VALUE);
        }
        let own = driver.devices.get(pool.ordinal) == Some(&gpu);
        put(flags, if own || pool.open_to >> gpu & 1 == 1 { 3 } else { 0 })
    }

    fn cuDeviceGetDefaultMemPool(pool: *mut sys::CUmemoryPool, dev: c_int) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        put(pool, driver.lock().device_pool(dev as usize).0.bits() as sys::CUmemoryPool)
    }

    fn cuDeviceGetMemPool(pool: *mut sys::CUmemoryPool, dev: c_int) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        put(pool, driver.lock().device_pool(dev as usize).1.bits() as sys::CUmemoryPool)
    }

    fn cuDeviceSetMemPool(dev: c_int, pool: sys::CUmemoryPool) {
        let driver = driver::get()?;
        driver.gpu(dev)?;
        let mut tables = driver.lock();
        let handle = Handle::from_bits(pool as u64);
        let found = tables.pools.get(handle).ok_or(INVALID_VALUE)?;
        if found.ordinal != dev as usize || found.origin.is_some() {
            return Err(INVALID_VALUE);
        }
        tables.device_pool(dev as usize);
        tables.device_pools[dev as usize].1 = handle;
        Ok(())
    }
}

stream_calls! {
    fn cuMemAllocAsync cuMemAllocAsync_ptsz [form] (
        pointer: *mut u64,
        bytes: usize,
        stream: sys::CUstream,
    ) {
        allocate_later(pointer, bytes, None, stream as u64, form)
    }

    fn cuMemAllocFromPoolAsync cuMemAllocFromPoolAsync_ptsz [form] (
        pointer: *mut u64,
        bytes: usize,
        pool: sys::CUmemoryPool,
        stream: sys::CUstream,
    ) {
        let pool = Handle::from_bits(pool as u64);
        allocate_later(pointer, bytes, Some(pool), stream as u64, form)
    }

    fn cuMemFreeAsync cuMemFreeAsync_ptsz [form] (pointer: u64, stream: sys::CUstream) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let stream = driver.stream(&mut tables, stream as u64, form)?;
        if pointer == 0 {
            return Ok(());
        }
        match tables.space.region(pointer).map(|region| region.kind) {
            Some(RegionKind::Pooled { .. }) => {}
            Some(RegionKind::Graph { .. }) => {
                // In a capture it becomes a node, and counts when that runs.
                if tables.recording(stream)?.is_none() {
                    tables.graph_memory_is_let_go(pointer)?;
                }
            }
            Some(RegionKind::Allocation { .. }) => {
                drop(tables);
                return cuMemFree_v2(pointer);
            }
            _ => return Err(INVALID_VALUE),
        }
        let gpu = tables.gpu_of(stream)?;
        let submission = Submission { engine: None, gpu, length: 0, work: Work::Free(pointer) };
        driver.submit(tables, stream, submission, &[]).map(drop)
    }
}

/// # Safety
/// `pointer` is null or may be written.
unsafe fn allocate_later(
    pointer: *mut u64,
    bytes: usize,
    pool: Option<Handle<Pool>>,
    stream: u64,
    form: acb_cuda_abi::StreamForm,
) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let stream = driver.stream(&mut tables, stream, form)?;
    if bytes == 0 || pointer.is_null() {
        return Err(INVALID_VALUE);
    }
    let context = tables.streams.get(stream).ok_or(INVALID_HANDLE)?.context;
    let (ordinal, gpu) = {
        let context = tables.context(context)?;
        (context.ordinal, context.gpu)
    };
    if tables.captures.any() {
        tables.check_legacy(stream)?;
        if let Some(capture) = tables.recording(stream)? {
            let allocation = match pool {
                Some(pool) => {
                    let ordinal = tables.pools.get(pool).ok_or(INVALID_VALUE)?.ordinal;
                    tables.graph_allocation(bytes, ordinal, driver.devices[ordinal])?
                }
                None => tables.graph_allocation(bytes, ordinal, gpu)?,
            };
            tables.record(stream, capture, crate::graph::Task::Allocate(allocation))?;
            // SAFETY: the caller vouches for it.
            return unsafe { put(pointer, allocation.address) };
        }
    }
    if driver.faults.strikes(FaultKind::OutOfMemory, None) {
        return Err(OUT_OF_MEMORY);
    }
    let pool = pool.unwrap_or_else(|| tables.device_pool(ordinal).1);
    tables = driver.look(tables);
    let start = match tables.allocate_pooled(driver, pool, bytes) {
        Err(OUT_OF_MEMORY) => {
            // What is on its way back may make room.
            tables = driver.wait(tables, |tables| tables.is_drained(context));
            tables.allocate_pooled(driver, pool, bytes)?
        }
        other => other?,
    };
    // SAFETY: the caller vouches for it.
    unsafe { put(pointer, start) }
}
