//! What the client's `libnvidia-ml.so.1` (`preload/nvml`) asks: a GPU's memory as cuMemGetInfo has it, and its number.
//!
//! Owns: which GPUs are this client's, and the exported functions by which they are asked about.
//! Their names carry a version: the two libraries may be replaced one after the other.
#![allow(unsafe_code)] // FFI: an exported C function.

use crate::hooks::memory;
use crate::process;
use crate::table::real;
use crate::visible::Choice;
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::panic::catch_unwind;
use std::sync::OnceLock;

/// A GPU of this client's.
struct Own {
    uuid: String,
    /// By which the program knows it in `CUDA_VISIBLE_DEVICES`.
    ordinal: Option<usize>,
}

/// In the program's own device order; once it is a client.
static BOUND: OnceLock<Vec<Own>> = OnceLock::new();

/// The process has become a client.
pub(crate) fn bound(uuids: &[String], choice: &Choice) {
    let own = uuids
        .iter()
        .enumerate()
        .map(|(device, uuid)| Own { uuid: uuid.clone(), ordinal: choice.ordinal(device) });
    let _ = BOUND.set(own.collect());
}

/// 0, and the UUID of the GPU that the program knows by this ordinal; another number where there is none.
///
/// # Safety
/// `uuid` has room for `size` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn acb_ordinal_v1(ordinal: c_uint, uuid: *mut c_char, size: usize) -> c_int {
    let own = BOUND.get().filter(|_| !process::is_forked()).and_then(|own| {
        own.iter().find(|own| own.ordinal.is_some_and(|known| known == ordinal as usize))
    });
    let Some(own) = own.filter(|own| own.uuid.len() < size) else { return 1 };
    // SAFETY: the text and its NUL fit, by the caller's promise.
    unsafe {
        std::ptr::copy_nonoverlapping(own.uuid.as_ptr().cast(), uuid, own.uuid.len());
        uuid.add(own.uuid.len()).write(0);
    }
    0
}

/// 0, and free and total bytes; another number where the GPU is none of this client's.
///
/// # Safety
/// `uuid` is a string, `free` and `total` are places.
#[unsafe(no_mangle)]
unsafe extern "C" fn acb_memory_v1(uuid: *const c_char, free: *mut u64, total: *mut u64) -> c_int {
    // SAFETY: a string by the caller's promise.
    let uuid = unsafe { CStr::from_ptr(uuid) };
    match catch_unwind(|| answer(uuid)) {
        Ok(Some((own_free, own_total))) => {
            // SAFETY: a place by the caller's promise.
            unsafe { free.write(own_free) };
            // SAFETY: as above.
            unsafe { total.write(own_total) };
            0
        }
        Ok(None) | Err(_) => 1,
    }
}

fn answer(uuid: &CStr) -> Option<(u64, u64)> {
    if process::is_forked() {
        return None;
    }
    let device = BOUND.get()?.iter().position(|own| own.uuid.as_bytes() == uuid.to_bytes())?;
    let device = c_int::try_from(device).ok()?;
    let mut total = 0_usize;
    // SAFETY: a place on this stack; BOUND is set after cuInit.
    let result = unsafe { real::cuDeviceTotalMem_v2(&raw mut total, device) };
    let shown = result.is_success().then(|| memory::shown(device, total)).flatten();
    shown.map(|(free, total)| (free as u64, total as u64))
}
