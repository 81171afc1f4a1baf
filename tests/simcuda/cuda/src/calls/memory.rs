//! Device memory, pinned host memory, pools, and questions about pointers.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use acb_cuda_abi::sys;
use simcuda_device::fault::FaultKind;

use super::{put, put_wanted};
use crate::code::{
    HOST_MEMORY_ALREADY_REGISTERED, HOST_MEMORY_NOT_REGISTERED, INVALID_HANDLE, INVALID_VALUE,
    OUT_OF_MEMORY, Outcome,
};
use crate::driver::{self, Driver};
use crate::handles::Handle;
use crate::host_time;
use crate::objects::{Context, Pool};
use crate::physical::{self, Physical};
use crate::space::{ALIGNMENT, Charged, HostKind, HostRange, RegionKind};
use crate::timeline::Submission;
use crate::work::Work;

/// Rows of pitched allocations begin at multiples of this.
const PITCH: usize = 512;

calls! {
    fn cuMemAlloc_v2(pointer: *mut u64, bytes: usize) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        if bytes == 0 || pointer.is_null() {
            return Err(INVALID_VALUE);
        }
        tables.check_unsafe(driver::caller())?;
        if driver.faults.strikes(FaultKind::OutOfMemory, None) {
            return Err(OUT_OF_MEMORY);
        }
        let (gpu, peers) = {
            let own = tables.context(context)?;
            (own.gpu, tables.reached_from(context))
        };
        let length = bytes.checked_next_multiple_of(ALIGNMENT).ok_or(OUT_OF_MEMORY)?;
        let memory = Physical::new(gpu, length)?;
        let start = tables.space.add(length, ALIGNMENT, RegionKind::Allocation { context, gpu })?;
        tables.space.map(start, length, memory, 0, peers | 1 << gpu)?;
        put(pointer, start)
    }

    fn cuMemAllocPitch_v2(
        pointer: *mut u64,
        pitch: *mut usize,
        width: usize,
        height: usize,
        element: c_uint,
    ) {
        driver::get()?;
        if width == 0 || height == 0 || !matches!(element, 4 | 8 | 16) {
            return Err(INVALID_VALUE);
        }
        let row = width.checked_next_multiple_of(PITCH).ok_or(OUT_OF_MEMORY)?;
        cuMemAlloc_v2(pointer, row.checked_mul(height).ok_or(OUT_OF_MEMORY)?)?;
        put(pitch, row)
    }

    fn cuMemFree_v2(pointer: u64) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        driver.current(&tables)?;
        if pointer == 0 {
            return Ok(());
        }
        tables.check_unsafe(driver::caller())?;
        if matches!(tables.space.host(pointer), Ok(range) if matches!(range.kind, HostKind::Managed(_))) {
            drop(tables);
            return free_host(driver, pointer, |kind| matches!(kind, HostKind::Managed(_)));
        }
        let region = tables.space.region(pointer).ok_or(INVALID_VALUE)?;
        match region.kind {
            RegionKind::Allocation { context, .. } => {
                tables.context(context)?;
                // Frees wait for the work of their context.
                let mut tables = driver.wait(tables, |tables| tables.is_drained(context));
                tables.space.remove(pointer).ok_or(INVALID_VALUE)?;
                tables.context(context).map(drop)
            }
            RegionKind::Pooled { .. } => {
                let context = driver.current(&tables)?;
                let mut tables = driver.wait(tables, |tables| tables.is_drained(context));
                tables.free_pooled(pointer);
                Ok(())
            }
            RegionKind::Graph { .. } => {
                tables.graph_memory_is_let_go(pointer)?;
                let context = driver.current(&tables)?;
                let mut tables = driver.wait(tables, |tables| tables.is_drained(context));
                tables.free_later(pointer);
                tables.sweep_graph_memory();
                Ok(())
            }
            RegionKind::Reservation | RegionKind::Global | RegionKind::Array => Err(INVALID_VALUE),
        }
    }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let driver = driver::get()?;
        let (gpu, ordinal) = {
            let tables = driver.lock();
            let context = driver.current(&tables)?;
            let context = tables.context(context)?;
            (context.gpu, context.ordinal)
        };
        let memory = driver.device(ordinal)?.memory;
        let used = driver.state.used(gpu);
        put_wanted(free, memory.saturating_sub(used) as usize);
        put_wanted(total, memory as usize);
        Ok(())
    }

    fn cuMemGetAddressRange_v2(base: *mut u64, size: *mut usize, pointer: u64) {
        let driver = driver::get()?;
        let tables = driver.lock();
        driver.current(&tables)?;
        let found = tables.space.region_of(pointer).map(|(start, region)| (start, region.length));
        let host = || tables.space.host_of(pointer).map(|(start, range)| (start, range.length));
        let (start, length) = found.or_else(host).ok_or(crate::code::NOT_FOUND)?;
        put_wanted(base, start);
        put_wanted(size, length);
        Ok(())
    }

    fn cuMemAllocManaged(pointer: *mut u64, bytes: usize, flags: c_uint) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let context = driver.current(&tables)?;
        if bytes == 0 || pointer.is_null() || !matches!(flags, 1 | 2) {
            return Err(INVALID_VALUE);
        }
        tables.check_unsafe(driver::caller())?;
        let gpu = tables.context(context)?.gpu;
        let length = bytes.checked_next_multiple_of(4096).ok_or(OUT_OF_MEMORY)?;
        driver.state.take(driver.charge, gpu, length as u64).map_err(|_| OUT_OF_MEMORY)?;
        let charged = Arc::new(Charged { gpu, bytes: length as u64 });
        let start = physical::host(length).ok_or(OUT_OF_MEMORY)?;
        let kind = HostKind::Managed(charged);
        tables.space.add_host(start, HostRange { length, kind, context, flags });
        put(pointer, start)
    }

    fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) {
        cuMemHostAlloc(pointer, bytes, 0)
    }

    fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: c_uint) {
        let driver = driver::get()?;
        let context = driver.current(&driver.lock())?;
        if bytes == 0 || pointer.is_null() || flags & !7 != 0 {
            return Err(INVALID_VALUE);
        }
        pin(driver, context, bytes)?;
        let length = bytes.checked_next_multiple_of(4096).ok_or(OUT_OF_MEMORY)?;
        let start = physical::host(length).ok_or(OUT_OF_MEMORY)?;
        let range = HostRange { length, kind: HostKind::Pinned, context, flags };
        driver.lock().space.add_host(start, range);
        put(pointer, start as *mut c_void)
    }

    fn cuMemFreeHost(pointer: *mut c_void) {
        let driver = driver::get()?;
        if pointer.is_null() {
            return Ok(());
        }
        free_host(driver, pointer as u64, |kind| matches!(kind, HostKind::Pinned))
    }

    fn cuMemHostRegister_v2(pointer: *mut c_void, bytes: usize, flags: c_uint) {
        let driver = driver::get()?;
        let context = driver.current(&driver.lock())?;
        if bytes == 0 || pointer.is_null() || flags & !15 != 0 {
            return Err(INVALID_VALUE);
        }
        if driver.lock().space.region_of(pointer as u64).is_some() {
            return Err(INVALID_VALUE);
        }
        pin(driver, context, bytes)?;
        let range = HostRange { length: bytes, kind: HostKind::Registered, context, flags };
        if driver.lock().space.add_host(pointer as u64, range) {
            Ok(())
        } else {
            Err(HOST_MEMORY_ALREADY_REGISTERED)
        }
    }

    fn cuMemHostRegister(pointer: *mut c_void, bytes: usize, flags: c_uint) {
        cuMemHostRegister_v2(pointer, bytes, flags)
    }

    fn cuMemHostUnregister(pointer: *mut c_void) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        driver.current(&tables)?;
        tables.check_unsafe(driver::caller())?;
        let range = tables.space.host(pointer as u64).map_err(|_| HOST_MEMORY_NOT_REGISTERED)?;
        if !matches!(range.kind, HostKind::Registered) {
            return Err(HOST_MEMORY_NOT_REGISTERED);
        }
        let context = range.context;
        let mut tables = driver.wait(tables, |tables| tables.is_drained(context));
        tables.space.remove_host(pointer as u64);
        Ok(())
    }

    fn cuMemHostGetDevicePointer_v2(device: *mut u64, pointer: *mut c_void, flags: c_uint) {
        let driver = driver::get()?;
        let tables = driver.lock();
        driver.current(&tables)?;
        if flags != 0 || tables.space.host_of(pointer as u64).is_none() {
            return Err(INVALID_VALUE);
        }
        put(device, pointer as u64)
    }

    fn cuMemHostGetFlags(flags: *mut c_uint, pointer: *mut c_void) {
        let driver = driver::get()?;
        let tables = driver.lock();
        driver.current(&tables)?;
        let (_, range) = tables.space.host_of(pointer as u64).ok_or(INVALID_VALUE)?;
        put(flags, range.flags | 2)
    }

    fn cuPointerGetAttribute(value: *mut c_void, attribute: c_uint, pointer: u64) {
        let driver = driver::get()?;
        let tables = driver.lock();
        driver.current(&tables)?;
        if value.is_null() {
            return Err(INVALID_VALUE);
        }
        pointer_attribute(&tables, value, attribute, pointer)
    }

    fn cuPointerGetAttributes(
        count: c_uint,
        attributes: *mut c_uint,
        values: *mut *mut c_void,
        pointer: u64,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        driver.current(&tables)?;
        if attributes.is_null() || values.is_null() {
            return Err(INVALID_VALUE);
        }
        for at in 0..count as usize {
            let (attribute, value) = (attributes.add(at).read(), values.add(at).read());
            if value.is_null() {
                return Err(INVALID_VALUE);
            }
            // Unlike the single form: what does not hold for a pointer is zero.
            if pointer_attribute(&tables, value, attribute, pointer).is_err() {
                match attribute {
                    1 | 3 | 4 | 5 | 10 | 11 | 13 | 16 | 17 => value.cast::<u64>().write(0),
                    9 => value.cast::<c_int>().write(-2),
                    _ => value.cast::<c_int>().write(0),
                }
            }
        }
        Ok(())
    }

    fn cuPointerSetAttribute(_value: *const c_void, attribute: c_uint, pointer: u64) {
        let driver = driver::get()?;
        let tables = driver.lock();
        driver.current(&tables)?;
        if attribute != 6 || tables.space.region_of(pointer).is_none() {
            return Err(INVALID_VALUE);
        }
        Ok(())
    }

    fn cuMemAdvise_v2(
        pointer: u64,
        _bytes: usize,
        _advice: c_uint,
        _location: sys::CUmemLocation,
    ) {
        managed(pointer)
    }

    fn cuMemAdvise(pointer: u64, _bytes: usize, _advice: c_uint, _device: c_int) {
        managed(pointer)
    }

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
        if fields.add(1).read() != 0 {
            // Memory to be handed to other processes.
            return Err(crate::code::NOT_SUPPORTED);
        }
        driver.gpu(dev).map_err(|_| INVALID_VALUE)?;
        let handle = driver.lock().pools.insert(Pool::new(dev as usize, false));
        put(pool, handle.bits() as sys::CUmemoryPool)
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
        tables.trim_pool(handle, 0);
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
        if tables.pools.get(handle).ok_or(INVALID_VALUE)?.ordinal != dev as usize {
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

    fn cuMemPrefetchAsync cuMemPrefetchAsync_ptsz [form] (
        pointer: u64,
        _bytes: usize,
        _device: c_int,
        stream: sys::CUstream,
    ) {
        let driver = driver::get()?;
        driver.stream(&mut driver.lock(), stream as u64, form)?;
        managed(pointer)
    }

    fn cuMemPrefetchAsync_v2 cuMemPrefetchAsync_v2_ptsz [form] (
        pointer: u64,
        _bytes: usize,
        _location: sys::CUmemLocation,
        _flags: c_uint,
        stream: sys::CUstream,
    ) {
        let driver = driver::get()?;
        driver.stream(&mut driver.lock(), stream as u64, form)?;
        managed(pointer)
    }
}

fn managed(pointer: u64) -> Outcome {
    let driver = driver::get()?;
    let tables = driver.lock();
    match tables.space.host_of(pointer) {
        Some((_, range)) if matches!(range.kind, HostKind::Managed(_)) => Ok(()),
        _ => Err(INVALID_VALUE),
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

/// The time that pinning takes, or its failure.
fn pin(driver: &Driver, context: Handle<Context>, bytes: usize) -> Outcome {
    driver.lock().check_unsafe(driver::caller())?;
    if driver.faults.strikes(FaultKind::PinFails, None) {
        return Err(OUT_OF_MEMORY);
    }
    let gpu = driver.lock().context(context)?.gpu;
    let per_mib = driver.config.gpus[gpu].pin_ns_per_mib;
    host_time::pay(((bytes as u128 * u128::from(per_mib)) >> 20) as u64);
    Ok(())
}

fn free_host(driver: &Driver, pointer: u64, fits: impl Fn(&HostKind) -> bool) -> Outcome {
    let mut tables = driver.lock();
    driver.current(&tables)?;
    tables.check_unsafe(driver::caller())?;
    let range = tables.space.host(pointer).map_err(|_| INVALID_VALUE)?;
    if !fits(&range.kind) {
        return Err(INVALID_VALUE);
    }
    let context = range.context;
    let mut tables = driver.wait(tables, |tables| tables.is_drained(context));
    let range = tables.space.remove_host(pointer).ok_or(INVALID_VALUE)?;
    physical::unmap(pointer, range.length);
    Ok(())
}

/// # Safety
/// `value` has room for the attribute.
unsafe fn pointer_attribute(
    tables: &crate::objects::Tables,
    value: *mut c_void,
    attribute: c_uint,
    pointer: u64,
) -> Outcome {
    const HOST: c_uint = 1;
    const DEVICE: c_uint = 2;
    let space = &tables.space;
    let (start, length, context, kind, host) =
        if let Some((start, region)) = space.region_of(pointer) {
            let context = match region.kind {
                RegionKind::Allocation { context, .. } => context.bits(),
                RegionKind::Pooled { .. }
                | RegionKind::Graph { .. }
                | RegionKind::Reservation
                | RegionKind::Global
                | RegionKind::Array => 0,
            };
            (start, region.length, context, DEVICE, None)
        } else if let Some((start, range)) = space.host_of(pointer) {
            let managed = matches!(range.kind, HostKind::Managed(_));
            let kind = if managed { DEVICE } else { HOST };
            (start, range.length, range.context.bits(), kind, Some(managed))
        } else {
            return Err(INVALID_VALUE);
        };
    let region = space.region(start).map(|region| region.kind);
    let ordinal = match (space.memory_at(pointer), tables.contexts.get(Handle::from_bits(context)))
    {
        (_, Some(context)) => context.ordinal as c_int,
        (Some(memory), None) => {
            let driver = driver::get()?;
            let own = driver.devices.iter().position(|&gpu| gpu == memory.gpu());
            own.map_or(-2, |own| own as c_int)
        }
        (None, None) => -2,
    };
    // SAFETY: the caller vouches for the room.
    unsafe {
        match attribute {
            1 => put(value.cast(), context),
            2 => put(value.cast(), kind),
            3 => put(value.cast(), pointer),
            4 if host.is_some() => put(value.cast(), pointer),
            4 => Err(INVALID_VALUE),
            6 => put(value.cast::<c_int>(), 0),
            7 => put(value.cast::<u64>(), start),
            8 => put(value.cast::<c_uint>(), c_uint::from(host == Some(true))),
            9 => put(value.cast::<c_int>(), ordinal),
            10 => put(value.cast::<c_int>(), 0),
            11 => put(value.cast::<u64>(), start),
            12 => put(value.cast::<usize>(), length),
            13 => put(
                value.cast::<c_int>(),
                c_int::from(space.memory_at(pointer).is_some() || host.is_some()),
            ),
            14 => put(value.cast::<u64>(), 0),
            15 => put(value.cast::<u64>(), 3),
            16 => put(value.cast::<c_int>(), 0),
            17 => match region {
                Some(RegionKind::Pooled { pool, .. }) => put(value.cast::<u64>(), pool.bits()),
                _ => put(value.cast::<u64>(), 0),
            },
            _ => Err(INVALID_VALUE),
        }
    }
}

impl crate::objects::Tables {
    /// The GPUs of contexts that reach into this one's memory.
    fn reached_from(&self, context: Handle<Context>) -> u32 {
        self.contexts
            .iter()
            .filter(|(_, other)| other.peers.contains(&context))
            .fold(0, |gpus, (_, other)| gpus | 1 << other.gpu)
    }
}
