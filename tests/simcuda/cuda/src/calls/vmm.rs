//! The program's own virtual memory management: ranges, memory, and which lies
//! where.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use acb_cuda_abi::{CuResult, sys};
use simcuda_device::fault::{Call, FaultKind};

use super::{ipc, put};
use crate::code::{INVALID_DEVICE, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, Outcome, UNKNOWN};
use crate::driver;
use crate::handles::Handle;
use crate::host_time;
use crate::objects::{Mapped, Tables};
use crate::physical::Physical;
use crate::space::{GRANULARITY, RegionKind};

const PINNED: c_uint = 1;
const ON_DEVICE: c_uint = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`
const FILE_DESCRIPTOR: c_uint = 1;
/// `CU_MEM_HANDLE_TYPE_FABRIC`
const FABRIC: c_uint = 8;
const READ: c_uint = 1;
const READ_WRITE: c_uint = 3;

calls! {
    fn cuMemAddressReserve(
        pointer: *mut u64,
        size: usize,
        alignment: usize,
        _wanted: u64,
        flags: u64,
    ) {
        let driver = driver::get()?;
        let fits = alignment == 0 || alignment.is_power_of_two();
        if size == 0 || !size.is_multiple_of(GRANULARITY) || !fits || flags != 0 || pointer.is_null() {
            return Err(INVALID_VALUE);
        }
        if driver.faults.strikes(FaultKind::ReserveFails, None) {
            return Err(OUT_OF_MEMORY);
        }
        let align = alignment.max(GRANULARITY);
        let start = driver.lock().space.add(size, align, RegionKind::Reservation)?;
        put(pointer, start)
    }

    fn cuMemAddressFree(pointer: u64, size: usize) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let region = tables.space.region(pointer).ok_or(INVALID_VALUE)?;
        if region.kind != RegionKind::Reservation || region.length != size {
            return Err(INVALID_VALUE);
        }
        if tables.space.mapped_within(pointer, size) {
            return Err(INVALID_VALUE);
        }
        tables.space.remove(pointer);
        Ok(())
    }

    fn cuMemGetAllocationGranularity(
        granularity: *mut usize,
        properties: *const sys::CUmemAllocationProp,
        option: c_uint,
    ) {
        driver::get()?;
        read_properties(properties)?;
        if option > 1 {
            return Err(INVALID_VALUE);
        }
        put(granularity, GRANULARITY)
    }

    fn cuMemCreate(
        handle: *mut u64,
        size: usize,
        properties: *const sys::CUmemAllocationProp,
        flags: u64,
    ) {
        let driver = driver::get()?;
        let dev = read_properties(properties)?;
        if size == 0 || !size.is_multiple_of(GRANULARITY) || flags != 0 || handle.is_null() {
            return Err(INVALID_VALUE);
        }
        let gpu = driver.gpu(dev)?;
        let struck = driver.faults.strikes(FaultKind::OutOfMemory, None);
        // Both count the call.
        if let Some(rule) = driver.faults.strike(FaultKind::CreateFails, Call::default()) {
            return Err(rule.error.map_or(OUT_OF_MEMORY, CuResult));
        }
        if struck {
            return Err(OUT_OF_MEMORY);
        }
        let handle_types = properties.cast::<c_uint>().add(1).read();
        let asked = properties.cast::<u64>().add(3).read_unaligned();
        let memory = Physical::new(gpu, size)?;
        let gpu_ordinal = dev as usize;
        let mapped = Mapped { memory, gpu_ordinal, handle_types, flags: asked, references: 1 };
        put(handle, driver.lock().mapped.insert(mapped).bits())
    }

    fn cuMemRelease(handle: u64) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        // An object of several GPUs has a handle of the same type.
        if tables.multicasts.remove(Handle::from_bits(handle)).is_some() {
            return Ok(());
        }
        let handle = Handle::from_bits(handle);
        let mapped = tables.mapped.get_mut(handle).ok_or(INVALID_VALUE)?;
        if driver.faults.strikes(FaultKind::ReleaseFails, None) {
            return Err(UNKNOWN);
        }
        mapped.references -= 1;
        if mapped.references == 0 {
            // Mapped memory stays until it is unmapped.
            tables.mapped.remove(handle);
        }
        Ok(())
    }

    fn cuMemMap(pointer: u64, size: usize, offset: usize, handle: u64, flags: u64) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let aligned = |value: usize| value.is_multiple_of(GRANULARITY);
        if size == 0 || flags != 0 || ![pointer as usize, size, offset].into_iter().all(aligned) {
            return Err(INVALID_VALUE);
        }
        let region = tables.space.region_of(pointer).ok_or(INVALID_VALUE)?.1;
        if region.kind != RegionKind::Reservation {
            return Err(INVALID_VALUE);
        }
        // An object of several GPUs has a handle of the same type.
        if let Some(object) = tables.multicasts.get(Handle::from_bits(handle)).map(Arc::clone) {
            return tables.space.map_multicast(pointer, size, object, offset);
        }
        let mapped = tables.mapped.get(Handle::from_bits(handle)).ok_or(INVALID_VALUE)?;
        let memory = Arc::clone(&mapped.memory);
        if offset != 0 {
            return Err(INVALID_VALUE);
        }
        if driver.faults.strikes(FaultKind::MapFails, None) {
            return Err(OUT_OF_MEMORY);
        }
        let gpu = memory.gpu();
        tables.space.map(pointer, size, memory, offset, 0)?;
        drop(tables);
        let config = &driver.config.gpus[gpu];
        host_time::pay(config.map_ns + per_mib(size, config.map_ns_per_mib));
        Ok(())
    }

    fn cuMemUnmap(pointer: u64, size: usize) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        if !tables.space.is_mapped(pointer) {
            return Err(INVALID_VALUE);
        }
        let gpu = tables.space.memory_at(pointer).map_or(0, |memory| memory.gpu());
        let region = tables.space.region_of(pointer).ok_or(INVALID_VALUE)?.1;
        if size == 0 || region.kind != RegionKind::Reservation {
            return Err(INVALID_VALUE);
        }
        if driver.faults.strikes(FaultKind::UnmapFails, None) {
            return Err(UNKNOWN);
        }
        // Work that uses the range is not waited for: it will fail.
        tables.space.unmap(pointer, size)?;
        drop(tables);
        let config = &driver.config.gpus[gpu];
        host_time::pay(config.unmap_ns + per_mib(size, config.unmap_ns_per_mib));
        Ok(())
    }

    fn cuMemSetAccess(
        pointer: u64,
        size: usize,
        descriptions: *const sys::CUmemAccessDesc,
        count: usize,
    ) {
        let driver = driver::get()?;
        if descriptions.is_null() || count == 0 || size == 0 {
            return Err(INVALID_VALUE);
        }
        if driver.faults.strikes(FaultKind::AccessFails, None) {
            return Err(UNKNOWN);
        }
        let mut tables = driver.lock();
        let mut cost = 0;
        for at in 0..count {
            let description = descriptions.add(at);
            // The flags lie behind the location: type, id, flags.
            let dev = read_location((&raw const (*description).location).cast())?;
            let flags = description.cast::<c_uint>().add(2).read();
            let (read, write) = match flags {
                0 => (false, false),
                READ => (true, false),
                READ_WRITE => (true, true),
                _ => return Err(INVALID_VALUE),
            };
            let gpu = driver.gpu(dev)?;
            let owner = tables.space.memory_at(pointer).map(|memory| memory.gpu());
            if owner.is_some_and(|owner| owner != gpu) && !driver.config.peers {
                return Err(INVALID_DEVICE);
            }
            tables.space.set_access(pointer, size, gpu, read, write)?;
            let config = &driver.config.gpus[gpu];
            cost += config.access_ns + per_mib(size, config.access_ns_per_mib);
        }
        drop(tables);
        host_time::pay(cost);
        Ok(())
    }

    fn cuMemGetAccess(flags: *mut u64, location: *const sys::CUmemLocation, pointer: u64) {
        let driver = driver::get()?;
        let gpu = driver.gpu(read_location(location.cast())?)?;
        let tables = driver.lock();
        let (read, write) = tables.space.access(pointer, gpu).ok_or(INVALID_VALUE)?;
        put(flags, u64::from(if write { READ_WRITE } else { c_uint::from(read) }))
    }

    fn cuMemGetAllocationPropertiesFromHandle(
        properties: *mut sys::CUmemAllocationProp,
        handle: u64,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let mapped = tables.mapped.get(Handle::from_bits(handle)).ok_or(INVALID_VALUE)?;
        if properties.is_null() {
            return Err(INVALID_VALUE);
        }
        properties.write_bytes(0, 1);
        // type, handle types, location: type and id
        let fields = properties.cast::<c_uint>();
        fields.write(PINNED);
        fields.add(1).write(mapped.handle_types);
        fields.add(2).write(ON_DEVICE);
        fields.add(3).write(mapped.gpu_ordinal as c_uint);
        properties.cast::<u64>().add(3).write_unaligned(mapped.flags);
        Ok(())
    }

    fn cuMemExportToShareableHandle(
        shareable: *mut c_void,
        handle: u64,
        kind: c_uint,
        flags: u64,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        // The file comes now, with what is there: nothing may be writing it.
        let drained = |tables: &Tables| {
            tables.contexts.iter().all(|(context, _)| tables.is_drained(context))
        };
        let tables = driver.wait(tables, drained);
        let mapped = tables.mapped.get(Handle::from_bits(handle)).ok_or(INVALID_VALUE)?;
        if shareable.is_null() || mapped.handle_types & kind == 0 || flags != 0 {
            return Err(INVALID_VALUE);
        }
        match kind {
            FILE_DESCRIPTOR => {
                mapped.memory.share()?;
                put(shareable.cast::<c_int>(), mapped.memory.descriptor()?)
            }
            FABRIC => ipc::write_fabric(shareable, &mapped.memory),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuMemImportFromShareableHandle(handle: *mut u64, shareable: *mut c_void, kind: c_uint) {
        let driver = driver::get()?;
        if handle.is_null() {
            return Err(INVALID_VALUE);
        }
        let memory = match kind {
            // The descriptor itself, in place of a pointer.
            FILE_DESCRIPTOR => Physical::import_descriptor(shareable as usize as c_int)?,
            FABRIC if !shareable.is_null() => ipc::read_fabric(shareable)?,
            _ => return Err(INVALID_VALUE),
        };
        let own = driver.devices.iter().position(|&gpu| gpu == memory.gpu());
        let gpu_ordinal = own.ok_or(INVALID_DEVICE)?;
        let (handle_types, flags, references) = (kind, 0, 1);
        let mapped = Mapped { memory, gpu_ordinal, handle_types, flags, references };
        put(handle, driver.lock().mapped.insert(mapped).bits())
    }

    fn cuMemRetainAllocationHandle(handle: *mut u64, pointer: *mut c_void) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let memory = tables.space.memory_at(pointer as u64).ok_or(INVALID_VALUE)?;
        let region = tables.space.region_of(pointer as u64).ok_or(INVALID_VALUE)?.1;
        if region.kind != RegionKind::Reservation {
            return Err(INVALID_VALUE);
        }
        let known = tables.mapped.iter().find(|(_, mapped)| Arc::ptr_eq(&mapped.memory, &memory));
        let known = known.map(|(known, _)| known);
        let found = match known {
            Some(known) => {
                if let Some(mapped) = tables.mapped.get_mut(known) {
                    mapped.references += 1;
                }
                known
            }
            None => {
                let own = driver.devices.iter().position(|&gpu| gpu == memory.gpu());
                let gpu_ordinal = own.ok_or(INVALID_DEVICE)?;
                let (handle_types, flags, references) = (0, 0, 1);
                let mapped = Mapped { memory, gpu_ordinal, handle_types, flags, references };
                tables.mapped.insert(mapped)
            }
        };
        put(handle, found.bits())
    }
}

/// What `size` bytes cost.
fn per_mib(size: usize, cost: u64) -> u64 {
    ((size as u128 * u128::from(cost)) >> 20) as u64
}

/// The device that memory is asked for on.
///
/// # Safety
/// `properties` is null or the structure that it should be.
unsafe fn read_properties(properties: *const sys::CUmemAllocationProp) -> Outcome<c_int> {
    if properties.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null; kinds are read as numbers, for a program may have written any.
    unsafe {
        let fields = properties.cast::<c_uint>();
        if fields.read() != PINNED {
            return Err(INVALID_VALUE);
        }
        if fields.add(1).read() & !(FILE_DESCRIPTOR | FABRIC) != 0 {
            // Handles of other systems.
            return Err(NOT_SUPPORTED);
        }
        read_location(fields.add(2).cast())
    }
}

/// # Safety
/// `location` is null or the structure that it should be.
unsafe fn read_location(location: *const c_void) -> Outcome<c_int> {
    if location.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null; a kind and a number.
    let (kind, id) =
        unsafe { (location.cast::<c_uint>().read(), location.cast::<c_int>().add(1).read()) };
    if kind == ON_DEVICE { Ok(id) } else { Err(INVALID_VALUE) }
}
