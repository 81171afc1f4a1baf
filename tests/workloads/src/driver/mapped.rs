//! The program's own virtual memory management, as allocators with expandable segments use it.
//!
//! Owns: these calls. Does not own: what lies in the memory.
#![allow(unsafe_code)] // FFI: calls of the driver.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;

use super::{Context, DevicePtr, Driver, DriverError};

/// Sizes and addresses are multiples of this.
pub const GRANULARITY: u64 = 2 << 20;

/// `CUmemAllocationProp`
#[repr(C)]
struct Properties {
    /// `CU_MEM_ALLOCATION_TYPE_PINNED`
    kind: c_uint,
    exportable: c_uint,
    location: Location,
    windows: *const c_void,
    flags: [u8; 8],
}

/// `CUmemLocation`
#[repr(C)]
#[derive(Clone, Copy)]
struct Location {
    /// `CU_MEM_LOCATION_TYPE_DEVICE`
    kind: c_uint,
    id: c_int,
}

/// `CUmemAccessDesc`
#[repr(C)]
struct Access {
    location: Location,
    /// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`
    flags: c_uint,
}

functions! {
    reserve = "cuMemAddressReserve"(*mut DevicePtr, usize, usize, DevicePtr, u64);
    unreserve = "cuMemAddressFree"(DevicePtr, usize);
    create = "cuMemCreate"(*mut u64, usize, *const Properties, u64);
    release = "cuMemRelease"(u64);
    map = "cuMemMap"(DevicePtr, usize, usize, u64, u64);
    unmap = "cuMemUnmap"(DevicePtr, usize);
    set_access = "cuMemSetAccess"(DevicePtr, usize, *const Access, usize);
}

/// The calls.
#[derive(Clone, Copy)]
pub struct Mappings<'a> {
    driver: &'a Driver,
    table: Table,
}

/// A range of addresses that grows from its begin: an expandable segment.
#[derive(Debug)]
pub struct Segment {
    begin: DevicePtr,
    /// Addresses.
    reserved: u64,
    /// Sizes of the pieces of memory in it, in order.
    pieces: Vec<u64>,
    location: c_int,
}

impl<'a> Mappings<'a> {
    /// Finds them.
    pub fn of(driver: &'a Driver) -> Result<Self, DriverError> {
        Ok(Self { driver, table: Table::load(&driver.library)? })
    }

    fn error(&self, call: &'static str, code: u32) -> DriverError {
        self.driver.error(call, code)
    }

    /// Reserves addresses for a context's device.
    pub fn reserve(&self, context: &Context, bytes: u64) -> Result<Segment, DriverError> {
        let reserved = bytes.next_multiple_of(GRANULARITY);
        let mut begin = 0;
        call!(self, reserve(&mut begin, reserved as usize, 0, 0, 0))?;
        Ok(Segment { begin, reserved, pieces: vec![], location: context.device })
    }

    /// Puts memory behind the next addresses and returns where it begins.
    pub fn grow(&self, segment: &mut Segment, bytes: u64) -> Result<DevicePtr, DriverError> {
        let bytes = bytes.next_multiple_of(GRANULARITY);
        let at = segment.end();
        let location = Location { kind: 1, id: segment.location };
        let properties =
            Properties { kind: 1, exportable: 0, location, windows: ptr::null(), flags: [0; 8] };
        let mut memory = 0;
        call!(self, create(&mut memory, bytes as usize, &properties, 0))?;
        let mapped = call!(self, map(at, bytes as usize, 0, memory, 0));
        // The mapping keeps the memory, as PyTorch's allocator has it.
        call!(self, release(memory))?;
        mapped?;
        segment.pieces.push(bytes);
        let access = Access { location, flags: 3 };
        call!(self, set_access(at, bytes as usize, &access, 1))?;
        Ok(at)
    }

    /// Takes all memory out and gives the addresses back.
    pub fn free(&self, segment: &Segment) -> Result<(), DriverError> {
        let mut at = segment.begin;
        for bytes in &segment.pieces {
            call!(self, unmap(at, *bytes as usize))?;
            at += bytes;
        }
        call!(self, unreserve(segment.begin, segment.reserved as usize))
    }
}

impl Segment {
    /// Where the next piece goes.
    fn end(&self) -> DevicePtr {
        self.begin + self.pieces.iter().sum::<u64>()
    }
}
