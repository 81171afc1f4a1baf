//! Allocations and what is in them: patterns are written, and looked for. What is known of an address.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use crate::client::{Cuda, Handle, NULL, function};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};

/// Word `i` of a pattern.
pub(super) fn pattern(seed: u64, i: u64) -> u64 {
    // Pattern 0 is zeros.
    if seed == 0 { 0 } else { (seed << 40 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15) }
}

pub(super) fn allocate_in(cuda: &Cuda, bytes: usize, stream: Handle) -> (i32, u64) {
    let mut address = 0;
    // SAFETY: as declared.
    let result = unsafe {
        function!(cuda, "cuMemAllocAsync", fn(*mut u64, usize, Handle))(
            &raw mut address,
            bytes,
            stream,
        )
    };
    (result, address)
}

pub(super) fn free_in(cuda: &Cuda, address: u64, stream: Handle) -> c_int {
    // SAFETY: as declared.
    unsafe { function!(cuda, "cuMemFreeAsync", fn(u64, Handle))(address, stream) }
}

pub(super) fn write(cuda: &Cuda, address: u64, bytes: usize, seed: u64) {
    let words: Vec<u64> = (0..bytes as u64 / 8).map(|i| pattern(seed, i)).collect();
    // SAFETY: as declared; the vector has that many bytes.
    let result = unsafe {
        function!(cuda, "cuMemcpyHtoD_v2", fn(u64, *const c_void, usize))(
            address,
            words.as_ptr().cast(),
            words.len() * 8,
        )
    };
    println!("write={result}");
}

fn read(cuda: &Cuda, address: u64, bytes: usize) -> (c_int, Vec<u64>) {
    let mut words = vec![0u64; bytes / 8];
    // SAFETY: as declared; the vector has that many bytes.
    let result = unsafe {
        function!(cuda, "cuMemcpyDtoH_v2", fn(*mut c_void, u64, usize))(
            words.as_mut_ptr().cast(),
            address,
            words.len() * 8,
        )
    };
    (result, words)
}

pub(super) fn check(cuda: &Cuda, address: u64, bytes: usize, seed: u64) {
    let (result, words) = read(cuda, address, bytes);
    let wrong = words.iter().zip(0..).filter(|(word, i)| **word != pattern(seed, *i)).count();
    println!("read={result} wrong={wrong}");
}

pub(super) fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// What `acb_fill` leaves.
pub(super) fn check_fill(cuda: &Cuda, address: u64, bytes: usize, seed: u64) {
    let (result, words) = read(cuda, address, bytes);
    let wrong = words.iter().zip(0..).filter(|(word, i)| **word != splitmix64(seed + i)).count();
    println!("filled={result} wrong={wrong}");
}

pub(super) fn free_bytes(cuda: &Cuda) -> usize {
    let mut free = 0;
    // SAFETY: as declared.
    let result = unsafe {
        function!(cuda, "cuMemGetInfo_v2", fn(*mut usize, *mut usize))(&raw mut free, NULL.cast())
    };
    assert_eq!(result, 0);
    free
}

pub(super) fn total_bytes(cuda: &Cuda) -> usize {
    let mut bytes = 0;
    // SAFETY: as declared.
    let result =
        unsafe { function!(cuda, "cuDeviceTotalMem_v2", fn(*mut usize, c_int))(&raw mut bytes, 0) };
    assert_eq!(result, 0);
    bytes
}

/// Free and total MiB that NVML is to say of a GPU; `None`: what the driver's says.
pub(super) fn told_to_nvml(cuda: &Cuda, uuid: &str) -> Option<(u64, u64)> {
    let uuid = CString::new(uuid).expect("no NUL");
    let (mut free, mut total) = (0u64, 0u64);
    // SAFETY: as the interposer declares it, with a string and places of this stack.
    let result = unsafe {
        function!(cuda, "acb_memory_v1", fn(*const c_char, *mut u64, *mut u64))(
            uuid.as_ptr(),
            &raw mut free,
            &raw mut total,
        )
    };
    (result == 0).then_some((free >> 20, total >> 20))
}

/// Range, kind of memory and device, asked in the middle of it.
pub(super) fn ask(cuda: &Cuda, address: u64) {
    let (mut base, mut size) = (0u64, 0usize);
    let (mut kind, mut device) = (9u32, 9i32);
    // SAFETY: as declared; 2 and 9 are the memory's type and the device's ordinal.
    unsafe {
        let range = function!(cuda, "cuMemGetAddressRange_v2", fn(*mut u64, *mut usize, u64));
        assert_eq!(range(&raw mut base, &raw mut size, address + 1000), 0);
        let ask = function!(cuda, "cuPointerGetAttribute", fn(*mut c_void, c_uint, u64));
        assert_eq!(ask((&raw mut kind).cast(), 2, address + 1000), 0);
        assert_eq!(ask((&raw mut device).cast(), 9, address), 0);
        let (mut kinds, mut start) = (9u32, 0u64);
        let attributes: [c_uint; 2] = [2, 11];
        let places: [*mut c_void; 2] = [(&raw mut kinds).cast(), (&raw mut start).cast()];
        let all = function!(
            cuda,
            "cuPointerGetAttributes",
            fn(c_uint, *const c_uint, *const *mut c_void, u64)
        );
        assert_eq!(all(2, attributes.as_ptr(), places.as_ptr(), address + 1), 0);
        assert_eq!((kinds, start), (kind, address));
    }
    println!("size={size} kind={kind} device={device} same={}", base == address);
}

pub(super) fn synchronous(cuda: &Cuda, (address, bytes): (u64, usize), on: c_uint) {
    let mut told: c_uint = 9;
    // SAFETY: as declared; 6 says that copies and fills are waited for.
    unsafe {
        let set = function!(cuda, "cuPointerSetAttribute", fn(*const c_uint, c_uint, u64));
        assert_eq!(set(&raw const on, 6, address), 0);
        let ask = function!(cuda, "cuPointerGetAttribute", fn(*mut c_uint, c_uint, u64));
        assert_eq!(ask(&raw mut told, 6, address), 0);
        let fill = function!(cuda, "cuMemsetD8_v2", fn(u64, u8, usize));
        assert_eq!(fill(address, 7, bytes), 0);
        let query = function!(cuda, "cuStreamQuery", fn(Handle));
        println!("synchronous={told} query={}", query(NULL));
    }
    assert_eq!(cuda.synchronize(), 0);
}
