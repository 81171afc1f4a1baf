//! The program's own mapped memory: what it creates, maps, opens and exports.
//!
//! Owns: which of it the pager moves, and the driver's structures as it reads and writes them. Does not own: what moving takes
//! (`pager`), or the account of what is not moved (`memory`).
//!
//! Compressed memory, what lies elsewhere than on a device, and what other machines could be given (fabric handles) is the driver's
//! own, and stays. Memory that could be handed to other processes stays once it has been (`share`). Memory for RDMA is the driver's
//! own where a library is loaded that registers it with network cards, for no call of the driver would tell; elsewhere it is moved,
//! and made without the property, so that a registration that comes after all fails instead of going wrong.
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use super::memory::rounded;
use super::unasked;
use crate::memory::{Key, LEDGER};
use crate::pager::{EXPORTABLE, GRANULE, PAGER, has_rdma};
use crate::table::real;
use acb_cuda_abi::{CuResult, sys};
use std::ffi::*;

const PINNED: u32 = 1;
const ON_DEVICE: c_int = sys::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE as c_int;

/// CUmemAllocationProp as numbers: what may be newer than its enums here is no undefined behaviour.
#[derive(Clone, Copy)]
#[repr(C)]
struct Properties {
    kind: u32,
    handle_types: u32,
    location: [c_int; 2],
    metadata: u64,
    /// Compression, RDMA, usage and what is reserved.
    flags: u64,
}

const _: () = assert!(size_of::<Properties>() == size_of::<sys::CUmemAllocationProp>());

/// CU_MEM_ALLOC_GRANULARITY_MINIMUM.
const SMALLEST: u32 = 0;
/// The byte of `flags` that says that the memory is for RDMA.
const RDMA: u64 = 0xff00;
/// …and the one that asks for compression.
const COMPRESSION: u64 = 0xff;

impl Properties {
    /// The device, where the pager can move memory of this kind.
    fn movable(&self) -> Option<u32> {
        let rdma = self.flags & RDMA;
        let plain = self.kind == PINNED
            && self.handle_types & !EXPORTABLE == 0
            && self.flags == rdma
            && (rdma == 0 || !has_rdma());
        let on_device = self.location[0] == ON_DEVICE && PAGER.has_device(self.location[1]);
        (plain && on_device).then_some(self.location[1] as u32)
    }
}

pub(crate) unsafe fn cuMemCreate(
    handle: *mut u64,
    size: usize,
    prop: *const sys::CUmemAllocationProp,
    flags: u64,
) -> CuResult {
    // SAFETY: the program's own arguments.
    let call = || unsafe { real::cuMemCreate(handle, size, prop, flags) };
    if prop.is_null() || handle.is_null() {
        return call();
    }
    // SAFETY: not NULL, and of that size.
    let properties = unsafe { prop.cast::<Properties>().read_unaligned() };
    if flags == 0
        && size > 0
        && (size as u64).is_multiple_of(GRANULE)
        && let Some(device) = properties.movable()
    {
        // SAFETY: numbers of the same size.
        let kept = unsafe { std::mem::transmute::<Properties, [u64; 4]>(properties) };
        return match PAGER.create(device, size as u64, properties.handle_types, kept) {
            Ok(name) => {
                // SAFETY: not NULL.
                unsafe { handle.write(name) };
                CuResult::SUCCESS
            }
            Err(result) => result,
        };
    }
    let [kind, device] = properties.location;
    if kind != ON_DEVICE || is_crooked(size, prop) {
        return call();
    }
    let Some(promise) = LEDGER.reserve("cuMemCreate", device, rounded(size as u64)) else {
        return CuResult::OUT_OF_MEMORY;
    };
    let result = unasked::again("cuMemCreate", call);
    if result.is_success() {
        // SAFETY: the call succeeded, so the handle was written.
        let key = Key::Physical(unsafe { handle.read() });
        let compressed = properties.flags & COMPRESSION != 0 && PAGER.is_active();
        let promise = if compressed { promise.of_kind("compressed") } else { promise };
        LEDGER.allocated(promise, key, 0);
    } else {
        LEDGER.forget(promise);
    }
    result
}

/// Whether the driver will refuse this size, so that nobody has to wait for room for it.
fn is_crooked(size: usize, prop: *const sys::CUmemAllocationProp) -> bool {
    let mut unit = 0;
    // SAFETY: a local, and the program's properties, which are not NULL.
    let asked = unsafe { real::cuMemGetAllocationGranularity(&mut unit, prop, SMALLEST) };
    asked.is_success() && unit > 0 && (size == 0 || !size.is_multiple_of(unit))
}

/// Memory that is mapped, or has another handle, lives on after this.
pub(crate) unsafe fn cuMemRelease(handle: u64) -> CuResult {
    if let Some(result) = PAGER.release_name(handle) {
        return result;
    }
    // SAFETY: the program's own argument.
    let result = unsafe { real::cuMemRelease(handle) };
    if result.is_success() {
        LEDGER.dropped(handle);
    }
    result
}

pub(crate) unsafe fn cuMemRetainAllocationHandle(handle: *mut u64, addr: *mut c_void) -> CuResult {
    if !handle.is_null()
        && let Some(retained) = PAGER.retain(addr as u64)
    {
        return match retained {
            Ok(name) => {
                // SAFETY: not NULL.
                unsafe { handle.write(name) };
                CuResult::SUCCESS
            }
            Err(result) => result,
        };
    }
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuMemRetainAllocationHandle(handle, addr) };
    if result.is_success() {
        // SAFETY: the call succeeded, so the handle was written.
        LEDGER.shared(unsafe { handle.read() });
    }
    result
}

pub(crate) unsafe fn cuMemMap(
    ptr: u64,
    size: usize,
    offset: usize,
    handle: u64,
    flags: u64,
) -> CuResult {
    if PAGER.has_name(handle) {
        return match flags {
            0 => PAGER.map(ptr, size as u64, offset as u64, handle),
            _ => CuResult::INVALID_VALUE,
        };
    }
    if PAGER.has_mapped(ptr, size as u64) {
        return CuResult::INVALID_VALUE;
    }
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuMemMap(ptr, size, offset, handle, flags) };
    if result.is_success() {
        PAGER.mapped_by_driver(ptr, size as u64);
        LEDGER.mapped(ptr, handle);
    }
    result
}

pub(crate) unsafe fn cuMemUnmap(ptr: u64, size: usize) -> CuResult {
    let driver = |ptr: u64, size: u64| {
        // SAFETY: the program's own arguments, or a part of its range.
        let result = unsafe { real::cuMemUnmap(ptr, size as usize) };
        if result.is_success() {
            PAGER.unmapped_by_driver(ptr, size);
            LEDGER.unmapped(ptr, size);
        }
        result
    };
    PAGER.unmap(ptr, size as u64, driver).unwrap_or_else(|| driver(ptr, size as u64))
}

pub(crate) unsafe fn cuMemSetAccess(
    ptr: u64,
    size: usize,
    desc: *const sys::CUmemAccessDesc,
    count: usize,
) -> CuResult {
    // SAFETY: the program's own arguments, or a part of its range.
    let driver =
        |ptr: u64, size: u64| unsafe { real::cuMemSetAccess(ptr, size as usize, desc, count) };
    if desc.is_null() || count == 0 {
        return driver(ptr, size as u64);
    }
    // Kind and number of a location, flags, as numbers.
    let grants: Vec<(u32, i32, u32)> = (0..count)
        .map(|at| {
            // SAFETY: the program says that there are so many.
            let [kind, id, flags] = unsafe { desc.add(at).cast::<[u32; 3]>().read_unaligned() };
            (kind, id as i32, flags)
        })
        .collect();
    PAGER.set_access(ptr, size as u64, &grants, driver).unwrap_or_else(|| driver(ptr, size as u64))
}

pub(crate) unsafe fn cuMemGetAccess(
    flags: *mut u64,
    location: *const sys::CUmemLocation,
    ptr: u64,
) -> CuResult {
    if !flags.is_null() && !location.is_null() {
        // SAFETY: not NULL; kind and number.
        let [kind, id] = unsafe { location.cast::<[u32; 2]>().read_unaligned() };
        if let Some(granted) = PAGER.access(ptr, kind, id as i32) {
            // SAFETY: not NULL.
            unsafe { flags.write(granted.into()) };
            return CuResult::SUCCESS;
        }
    }
    // SAFETY: the program's own arguments.
    unsafe { real::cuMemGetAccess(flags, location, ptr) }
}

pub(crate) unsafe fn cuMemGetAllocationPropertiesFromHandle(
    prop: *mut sys::CUmemAllocationProp,
    handle: u64,
) -> CuResult {
    if PAGER.has_name(handle) {
        return match PAGER.properties(handle) {
            Some(properties) if !prop.is_null() => {
                // SAFETY: not NULL, and of that size.
                unsafe { prop.cast::<[u64; 4]>().write_unaligned(properties) };
                CuResult::SUCCESS
            }
            _ => CuResult::INVALID_VALUE,
        };
    }
    // SAFETY: the program's own arguments.
    unsafe { real::cuMemGetAllocationPropertiesFromHandle(prop, handle) }
}

/// The driver refuses to free addresses with something mapped there, and does not know of what is absent.
pub(crate) unsafe fn cuMemAddressFree(ptr: u64, size: usize) -> CuResult {
    if PAGER.has_mapped(ptr, size as u64) {
        return CuResult::INVALID_VALUE;
    }
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuMemAddressFree(ptr, size) };
    if result.is_success() {
        PAGER.unreserved(ptr);
    }
    result
}

pub(crate) unsafe fn cuMemAddressReserve(
    ptr: *mut u64,
    size: usize,
    alignment: usize,
    addr: u64,
    flags: u64,
) -> CuResult {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuMemAddressReserve(ptr, size, alignment, addr, flags) };
    if result.is_success() {
        // SAFETY: the call succeeded, so the address was written.
        PAGER.reserved(unsafe { ptr.read() }, size as u64);
    }
    result
}
