//! A CUDA program for the tests of paging: it does what a line of words says, and knows every byte of its memory.
//!
//! `a64` allocates 64 MiB (`a3k`: KiB), `A64` in a stream, `w0:7` writes pattern 7 into the first allocation, `c0:7` checks
//! it, `f0` and `F0` free it (in a stream), `p0` prints where it is, `q0` asks the driver about it, `s` synchronises, `?` asks
//! what is free, `[` and `]` begin and end a capture, `!` destroys the context, `.` pauses. `m32` creates and maps 32 MiB,
//! `u0` unmaps them, `n0` maps them anew, `x0` unmaps and releases them.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use crate::client::{Cuda, Handle, NULL, function, pause};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};

/// Word `i` of a pattern.
fn pattern(seed: u64, i: u64) -> u64 {
    (seed << 40 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

pub(crate) fn play(words: &str) {
    let cuda = Cuda::start();
    let stream = cuda.stream();
    let mut held: Vec<(u64, usize)> = Vec::new();
    let mut handles: BTreeMap<usize, u64> = BTreeMap::new();
    for word in words.split(' ') {
        let (what, rest) = word.split_at(1);
        match what {
            "a" | "A" => {
                let bytes = size(rest);
                let (result, address) = match what {
                    "a" => cuda.allocate(bytes),
                    _ => allocate_in(&cuda, bytes, stream),
                };
                println!("allocate={result}");
                held.push((address, bytes));
            }
            "w" | "c" => {
                let (index, seed) = rest.split_once(':').expect("which, and the pattern");
                let (address, bytes) = held[index.parse::<usize>().expect("an index")];
                let seed = seed.parse().expect("a number");
                match what {
                    "w" => write(&cuda, address, bytes, seed),
                    _ => check(&cuda, address, bytes, seed),
                }
            }
            "f" => println!("free={}", cuda.free(held[rest.parse::<usize>().unwrap()].0)),
            "F" => {
                let address = held[rest.parse::<usize>().unwrap()].0;
                // SAFETY: as declared.
                let result =
                    unsafe { function!(cuda, "cuMemFreeAsync", fn(u64, Handle))(address, stream) };
                println!("free={result}");
            }
            "p" => println!("at={:#x}", held[rest.parse::<usize>().unwrap()].0),
            "q" => ask(&cuda, held[rest.parse::<usize>().unwrap()].0),
            "m" => {
                let bytes = size(rest);
                let (handle, address) = (create(&cuda, bytes), reserve(&cuda, bytes));
                map(&cuda, address, bytes, handle);
                handles.insert(held.len(), handle);
                held.push((address, bytes));
            }
            "u" | "n" | "x" => {
                let index: usize = rest.parse().unwrap();
                let (address, bytes) = held[index];
                if what == "n" {
                    map(&cuda, address, bytes, handles[&index]);
                } else {
                    println!("unmapped={}", unmap(&cuda, address, bytes));
                }
                if what == "x" {
                    println!("released={}", release(&cuda, handles[&index]));
                }
            }
            "[" => capture(&cuda, stream, true),
            "]" => capture(&cuda, stream, false),
            "!" => destroy(&cuda),
            "s" => println!("synchronize={}", cuda.synchronize()),
            "?" => println!("info={}", free_bytes(&cuda) >> 20),
            "." => pause(),
            other => panic!("no word {other}"),
        }
    }
    println!("end");
}

fn size(text: &str) -> usize {
    match text.strip_suffix('k') {
        Some(number) => number.parse::<usize>().expect("a size") << 10,
        None => text.parse::<usize>().expect("a size") << 20,
    }
}

fn allocate_in(cuda: &Cuda, bytes: usize, stream: Handle) -> (i32, u64) {
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

fn write(cuda: &Cuda, address: u64, bytes: usize, seed: u64) {
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

fn check(cuda: &Cuda, address: u64, bytes: usize, seed: u64) {
    let mut words = vec![0u64; bytes / 8];
    // SAFETY: as declared; the vector has that many bytes.
    let result = unsafe {
        function!(cuda, "cuMemcpyDtoH_v2", fn(*mut c_void, u64, usize))(
            words.as_mut_ptr().cast(),
            address,
            words.len() * 8,
        )
    };
    let wrong = words.iter().zip(0..).filter(|(word, i)| **word != pattern(seed, *i)).count();
    println!("read={result} wrong={wrong}");
}

fn free_bytes(cuda: &Cuda) -> usize {
    let mut free = 0;
    // SAFETY: as declared.
    let result = unsafe {
        function!(cuda, "cuMemGetInfo_v2", fn(*mut usize, *mut usize))(&raw mut free, NULL.cast())
    };
    assert_eq!(result, 0);
    free
}

fn create(cuda: &Cuda, bytes: usize) -> u64 {
    // CUmemAllocationProp: pinned, on device 0; the rest is zero.
    let properties: [c_int; 16] = [1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut handle = 0;
    // SAFETY: as declared.
    unsafe {
        let create = function!(cuda, "cuMemCreate", fn(*mut u64, usize, *const c_int, u64));
        assert_eq!(create(&raw mut handle, bytes, properties.as_ptr(), 0), 0);
        let mut told = [9u32; 8];
        let ask = function!(cuda, "cuMemGetAllocationPropertiesFromHandle", fn(*mut u32, u64));
        assert_eq!(ask(told.as_mut_ptr(), handle), 0);
        assert_eq!(told[..4], [1, 0, 1, 0]);
    }
    handle
}

fn reserve(cuda: &Cuda, bytes: usize) -> u64 {
    let mut address = 0;
    // SAFETY: as declared.
    unsafe {
        let reserve = function!(cuda, "cuMemAddressReserve", fn(*mut u64, usize, usize, u64, u64));
        assert_eq!(reserve(&raw mut address, bytes, 0, 0, 0), 0);
    }
    address
}

fn map(cuda: &Cuda, address: u64, bytes: usize, handle: u64) {
    // CUmemAccessDesc: device 0 reads and writes.
    let access: [c_int; 3] = [1, 0, 3];
    let location: [c_int; 2] = [1, 0];
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

fn unmap(cuda: &Cuda, address: u64, bytes: usize) -> c_int {
    // SAFETY: as declared.
    unsafe { function!(cuda, "cuMemUnmap", fn(u64, usize))(address, bytes) }
}

fn release(cuda: &Cuda, handle: u64) -> c_int {
    // SAFETY: as declared.
    unsafe { function!(cuda, "cuMemRelease", fn(u64))(handle) }
}

/// Range, kind of memory and device, asked in the middle of it.
fn ask(cuda: &Cuda, address: u64) {
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

/// Begins or ends a capture in the relaxed mode.
fn capture(cuda: &Cuda, stream: Handle, begin: bool) {
    // SAFETY: as declared.
    let result = unsafe {
        if begin {
            function!(cuda, "cuStreamBeginCapture_v2", fn(Handle, c_uint))(stream, 2)
        } else {
            let mut graph = NULL;
            function!(cuda, "cuStreamEndCapture", fn(Handle, *mut Handle))(stream, &raw mut graph)
        }
    };
    println!("{}={result}", if begin { "capturing" } else { "captured" });
}

fn destroy(cuda: &Cuda) {
    let mut context = NULL;
    // SAFETY: as declared.
    unsafe {
        assert_eq!(function!(cuda, "cuCtxGetCurrent", fn(*mut Handle))(&raw mut context), 0);
        println!("destroyed={}", function!(cuda, "cuCtxDestroy_v2", fn(Handle))(context));
    }
}
