//! The lists of processes that use a GPU: what this process has there is what cuMemGetInfo says.
//!
//! Owns: both forms of an entry, and this process's own among them. Does not own: what others have, which
//! stays as NVML says it.
#![allow(unsafe_code)] // FFI: calls through addresses that the dynamic linker gave.

use crate::exports::Index;
use crate::library::target;
use crate::memory::{SUCCESS, own};
use std::ffi::{c_int, c_uint, c_void};

/// `nvmlProcessInfo_v1_t`, of the functions without a version.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessV1 {
    pid: c_uint,
    used: u64,
}

/// `nvmlProcessInfo_v2_t`, which is also the third version's.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessV2 {
    pid: c_uint,
    used: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// An entry of either form.
pub(crate) trait Process {
    fn pid(&self) -> c_uint;
    fn uses(&mut self, bytes: u64);
}

macro_rules! process {
    ($($form:ident)*) => {$(
        impl Process for $form {
            fn pid(&self) -> c_uint {
                self.pid
            }

            fn uses(&mut self, bytes: u64) {
                self.used = bytes;
            }
        }
    )*};
}

process!(ProcessV1 ProcessV2);

/// # Safety
/// `device` is NVML's or NULL, `count` a place or NULL, `entries` room for as many of the form that this
/// function has, or NULL.
pub(crate) unsafe fn running<P: Process>(
    function: Index,
    device: *mut c_void,
    count: *mut c_uint,
    entries: *mut P,
) -> c_int {
    type Call = unsafe extern "C" fn(*mut c_void, *mut c_uint, *mut c_void) -> c_int;
    // SAFETY: NVML's functions of these names have this signature, or ignore their arguments.
    let call: Call = unsafe { std::mem::transmute(target(function as usize)) };
    // SAFETY: the program's own arguments.
    let code = unsafe { call(device, count, entries.cast()) };
    if code != SUCCESS || count.is_null() || entries.is_null() {
        return code;
    }
    // SAFETY: NVML has succeeded, so it has written there how many entries there are.
    let count = unsafe { count.read() } as usize;
    // SAFETY: as above, and has filled so many; the program lends them for this call.
    let entries = unsafe { std::slice::from_raw_parts_mut(entries, count) };
    let own_pid = std::process::id();
    if let Some(entry) = entries.iter_mut().find(|entry| entry.pid() == own_pid)
        && let Some((free, total)) = own(device)
    {
        entry.uses(total - free);
    }
    code
}
