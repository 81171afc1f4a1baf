//! Device memory, pinned host memory, pools, and questions about pointers.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use acb_cuda_abi::sys;
use simcuda_device::fault::FaultKind;

use super::{put, put_wanted};
use crate::code::{
    HOST_MEMORY_ALREADY_REGISTERED, HOST_MEMORY_NOT_REGISTERED, INVALID_VALUE, OUT_OF_MEMORY,
    Outcome,
};
use crate::driver::{self, Driver};
use crate::handles::Handle;
use crate::host_time;
use crate::objects::Context;
use crate::physical::{self, Physical};
use crate::space::{ALIGNMENT, Charged, HostKind, HostRange, RegionKind};

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
            RegionKind::Reservation
            | RegionKind::Global
            | RegionKind::Imported { .. }
            | RegionKind::Array => Err(INVALID_VALUE),
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
}

stream_calls! {
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
                RegionKind::Allocation { context, .. } | RegionKind::Imported { context } => {
                    context.bits()
                }
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
            15 => put(value.cast::<c_int>(), 0),
            16 => put(value.cast::<c_uint>(), 3),
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
    pub(super) fn reached_from(&self, context: Handle<Context>) -> u32 {
        self.contexts
            .iter()
            .filter(|(_, other)| other.peers.contains(&context))
            .fold(0, |gpus, (_, other)| gpus | 1 << other.gpu)
    }
}
