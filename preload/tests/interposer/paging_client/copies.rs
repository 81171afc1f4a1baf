//! Copies that name no contexts: addresses tell where memory is.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use super::content::{check, write};
use crate::client::{Cuda, Handle, NULL, function};
use std::ffi::c_int;

/// Each call copies another pattern, which the other end is to have then. Sources are written and targets read from here, too.
pub(super) fn each_way(cuda: &Cuda, (from, bytes): (u64, usize), to: u64) {
    for way in 0..8 {
        let seed = 11 + way;
        write(cuda, from, bytes, seed);
        println!("copied={}", copy(cuda, way, to, (from, bytes)).max(cuda.synchronize()));
        check(cuda, to, bytes, seed);
    }
}

fn copy(cuda: &Cuda, way: u64, to: u64, (from, bytes): (u64, usize)) -> c_int {
    let (flat, deep) = (flat(to, from, bytes), deep(to, from, bytes));
    // SAFETY: as declared; the ends are as long as is said, and the shapes live through the call.
    unsafe {
        match way {
            0 => function!(cuda, "cuMemcpyDtoD_v2", fn(u64, u64, usize))(to, from, bytes),
            1 => function!(cuda, "cuMemcpy", fn(u64, u64, usize))(to, from, bytes),
            2 => function!(cuda, "cuMemcpyDtoDAsync_v2", fn(u64, u64, usize, Handle))(
                to, from, bytes, NULL,
            ),
            3 => {
                function!(cuda, "cuMemcpyAsync", fn(u64, u64, usize, Handle))(to, from, bytes, NULL)
            }
            4 => function!(cuda, "cuMemcpy2D_v2", fn(*const u64))(flat.as_ptr()),
            5 => function!(cuda, "cuMemcpy2DAsync_v2", fn(*const u64, Handle))(flat.as_ptr(), NULL),
            6 => function!(cuda, "cuMemcpy3D_v2", fn(*const u64))(deep.as_ptr()),
            _ => function!(cuda, "cuMemcpy3DAsync_v2", fn(*const u64, Handle))(deep.as_ptr(), NULL),
        }
    }
}

const ROW: u64 = 4096;

/// CUDA_MEMCPY2D: two sides of seven words, then width and height.
fn flat(to: u64, from: u64, bytes: usize) -> Vec<u64> {
    // Unified addressing on one side, a device on the other.
    let side = |kind: u64, at: u64| [0, 0, kind, 0, at, 0, ROW];
    let sides = side(4, from).into_iter().chain(side(2, to));
    sides.chain([ROW, bytes as u64 / ROW]).collect()
}

/// CUDA_MEMCPY3D: two sides of eleven words, then width, height and depth.
fn deep(to: u64, from: u64, bytes: usize) -> Vec<u64> {
    let rows = bytes as u64 / ROW / 2;
    let side = |at: u64| [0, 0, 0, 0, 2, 0, at, 0, 0, ROW, rows];
    side(from).into_iter().chain(side(to)).chain([ROW, rows, 2]).collect()
}
