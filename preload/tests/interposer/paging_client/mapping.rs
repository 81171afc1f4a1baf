//! The program's own virtual memory: objects, addresses, mappings, and handing them to others.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use crate::client::{Cuda, function};
use std::ffi::{c_int, c_uint, c_void};

/// Types of handles, and flags.
pub(super) fn create(
    cuda: &Cuda,
    device: c_int,
    bytes: usize,
    (types, flags): (c_int, c_int),
) -> u64 {
    // CUmemAllocationProp: pinned, on a device; the rest is zero.
    let properties: [c_int; 16] = [1, types, 1, device, 0, 0, flags, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut handle = 0;
    // SAFETY: as declared.
    unsafe {
        let create = function!(cuda, "cuMemCreate", fn(*mut u64, usize, *const c_int, u64));
        assert_eq!(create(&raw mut handle, bytes, properties.as_ptr(), 0), 0);
        let mut told = [9u32; 8];
        let ask = function!(cuda, "cuMemGetAllocationPropertiesFromHandle", fn(*mut u32, u64));
        assert_eq!(ask(told.as_mut_ptr(), handle), 0);
        assert_eq!(told[..4], [1, types as u32, 1, device as u32]);
    }
    handle
}

pub(super) fn reserve(cuda: &Cuda, bytes: usize) -> u64 {
    let mut address = 0;
    // SAFETY: as declared.
    unsafe {
        let reserve = function!(cuda, "cuMemAddressReserve", fn(*mut u64, usize, usize, u64, u64));
        assert_eq!(reserve(&raw mut address, bytes, 0, 0, 0), 0);
    }
    address
}

pub(super) fn map(cuda: &Cuda, device: c_int, address: u64, bytes: usize, handle: u64) {
    // CUmemAccessDesc: the device reads and writes.
    let access: [c_int; 3] = [1, device, 3];
    let location: [c_int; 2] = [1, device];
    let (mut flags, mut again) = (0u64, 0u64);
    // SAFETY: as declared.
    unsafe {
        let map = function!(cuda, "cuMemMap", fn(u64, usize, usize, u64, u64));
        assert_eq!(map(address, bytes, 0, handle, 0), 0);
        let open = function!(cuda, "cuMemSetAccess", fn(u64, usize, *const c_int, usize));
        assert_eq!(open(address, bytes, access.as_ptr(), 1), 0);
        let ask = function!(cuda, "cuMemGetAccess", fn(*mut u64, *const c_int, u64));
        assert_eq!(ask(&raw mut flags, location.as_ptr(), address), 0);
        let retain = function!(cuda, "cuMemRetainAllocationHandle", fn(*mut u64, *mut c_void));
        assert_eq!(retain(&raw mut again, (address + 4096) as *mut c_void), 0);
    }
    assert_eq!((flags, again), (3, handle));
    assert_eq!(release(cuda, again), 0);
}

pub(super) fn unmap(cuda: &Cuda, address: u64, bytes: usize) -> c_int {
    // SAFETY: as declared.
    unsafe { function!(cuda, "cuMemUnmap", fn(u64, usize))(address, bytes) }
}

pub(super) fn release(cuda: &Cuda, handle: u64) -> c_int {
    // SAFETY: as declared.
    unsafe { function!(cuda, "cuMemRelease", fn(u64))(handle) }
}

pub(super) fn open_to(cuda: &Cuda, address: u64, bytes: usize, device: c_int) -> c_int {
    let access: [c_int; 3] = [1, device, 3];
    // SAFETY: as declared.
    unsafe {
        function!(cuda, "cuMemSetAccess", fn(u64, usize, *const c_int, usize))(
            address,
            bytes,
            access.as_ptr(),
            1,
        )
    }
}

/// Exports an object as a descriptor, and looks at the same memory through it.
pub(super) fn export(cuda: &Cuda, (address, bytes): (u64, usize), handle: u64) {
    let mut descriptor: c_int = -1;
    let (mut imported, mut word) = (0u64, [0u64; 2]);
    // SAFETY: as declared.
    unsafe {
        let export =
            function!(cuda, "cuMemExportToShareableHandle", fn(*mut c_int, u64, c_uint, u64));
        let result = export(&raw mut descriptor, handle, 1, 0);
        println!("exported={result}");
        if result != 0 {
            return;
        }
        let import =
            function!(cuda, "cuMemImportFromShareableHandle", fn(*mut u64, *mut c_void, c_uint));
        assert_eq!(import(&raw mut imported, descriptor as usize as *mut c_void, 1), 0);
        assert_eq!(libc::close(descriptor), 0);
        let other = reserve(cuda, bytes);
        let map = function!(cuda, "cuMemMap", fn(u64, usize, usize, u64, u64));
        assert_eq!(map(other, bytes, 0, imported, 0), 0);
        assert_eq!(open_to(cuda, other, bytes, 0), 0);
        let read = function!(cuda, "cuMemcpyDtoH_v2", fn(*mut c_void, u64, usize));
        for (place, from) in word.iter_mut().zip([address, other]) {
            assert_eq!(read(std::ptr::from_mut(place).cast(), from + bytes as u64 - 8, 8), 0);
        }
    }
    println!("same={}", word[0] == word[1]);
}

pub(super) fn ipc(cuda: &Cuda, address: u64) -> c_int {
    let mut handle = [0u64; 8];
    // SAFETY: as declared; a handle has 64 bytes.
    unsafe { function!(cuda, "cuIpcGetMemHandle", fn(*mut u64, u64))(handle.as_mut_ptr(), address) }
}

/// What the driver refuses: parts of objects, of mappings and of reservations, and what is none of them.
pub(super) fn refusals(cuda: &Cuda, device: c_int, bytes: usize) {
    let unit = bytes / 2;
    let handle = create(cuda, device, bytes, (0, 0));
    let start = reserve(cuda, 2 * bytes);
    let at = |parts: usize| start + (parts * unit) as u64;
    // SAFETY: as declared.
    unsafe {
        let map = function!(cuda, "cuMemMap", fn(u64, usize, usize, u64, u64));
        let give = function!(cuda, "cuMemAddressFree", fn(u64, usize));
        let open = |from, length| open_to(cuda, from, length, device);
        let refused = [
            map(at(0), unit / 2, 0, handle, 0),
            map(at(0) + unit as u64 / 2, unit, 0, handle, 0),
            map(at(0), unit, unit, handle, 0),
            map(at(0), bytes + unit, 0, handle, 0),
            map(at(3), bytes, 0, handle, 0),
            map(at(4), bytes, 0, handle, 0),
        ];
        println!("not mapped={refused:?}");
        println!("mapped={}", map(at(0), bytes, 0, handle, 0));
        let refused = [
            map(at(1), bytes, 0, handle, 0),
            open(at(0), unit),
            open(at(1), unit),
            open(at(0), 2 * bytes),
            unmap(cuda, at(0), unit),
            unmap(cuda, at(1), unit),
            unmap(cuda, at(0), 2 * bytes),
            give(at(0), 2 * bytes),
        ];
        println!("not in part={refused:?}");
        let done = [open(at(0), bytes), unmap(cuda, at(0), bytes), give(at(0), 2 * bytes)];
        println!("whole={done:?}");
        println!("no address={}", map(at(0), bytes, 0, handle, 0));
    }
    assert_eq!(release(cuda, handle), 0);
}
