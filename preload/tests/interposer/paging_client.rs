//! A CUDA program for the tests of paging: it does what a line of words says, and knows every byte of its memory.
//!
//! `a64` allocates 64 MiB (`a3k`: KiB), `A64` in a stream, `w0:7` writes pattern 7 into the first allocation, `c0:7` checks
//! it, `f0` and `F0` free it (in a stream), `p0` prints where it is, `s` synchronises, `?` asks what is free, `.` pauses.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use crate::client::{Cuda, Handle, NULL, function, pause};
use std::ffi::c_void;

/// Word `i` of a pattern.
fn pattern(seed: u64, i: u64) -> u64 {
    (seed << 40 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

pub(crate) fn play(words: &str) {
    let cuda = Cuda::start();
    let stream = cuda.stream();
    let mut held: Vec<(u64, usize)> = Vec::new();
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
