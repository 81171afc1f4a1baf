//! The default pool of device 0.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use crate::client::{Cuda, Handle, NULL, function};
use std::ffi::{c_int, c_uint};

pub(super) fn pool_levels(cuda: &Cuda) {
    let pool = default_pool(cuda);
    let [reserved, reserved_high, used, used_high] = [5, 6, 7, 8].map(|attribute: c_uint| {
        let mut value = 0u64;
        // SAFETY: as declared.
        let result = unsafe {
            function!(cuda, "cuMemPoolGetAttribute", fn(Handle, c_uint, *mut u64))(
                pool,
                attribute,
                &raw mut value,
            )
        };
        assert_eq!(result, 0);
        value >> 20
    });
    println!("used={used}/{used_high} reserved={reserved}/{reserved_high}");
}

pub(super) fn trim(cuda: &Cuda, bytes: usize) -> c_int {
    // SAFETY: as declared.
    unsafe { function!(cuda, "cuMemPoolTrimTo", fn(Handle, usize))(default_pool(cuda), bytes) }
}

/// The pool may keep so much that is free.
pub(super) fn keep(cuda: &Cuda, bytes: usize) {
    let mut bytes = bytes as u64;
    let pool = default_pool(cuda);
    // SAFETY: as declared.
    let result = unsafe {
        function!(cuda, "cuMemPoolSetAttribute", fn(Handle, c_uint, *mut u64))(
            pool,
            4,
            &raw mut bytes,
        )
    };
    assert_eq!(result, 0);
}

fn default_pool(cuda: &Cuda) -> Handle {
    let mut pool = NULL;
    // SAFETY: as declared.
    let result = unsafe {
        function!(cuda, "cuDeviceGetDefaultMemPool", fn(*mut Handle, c_int))(&raw mut pool, 0)
    };
    assert_eq!(result, 0);
    pool
}
