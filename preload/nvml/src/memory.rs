//! nvmlDeviceGetMemoryInfo, as cuMemGetInfo has it in this process.
//!
//! Owns: asking the interposer, and putting its numbers into NVML's structures.
#![allow(unsafe_code)] // FFI: calls through addresses that the dynamic linker gave.

use crate::exports::Index;
use crate::library::target;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

pub(crate) const SUCCESS: c_int = 0;
/// NVML_DEVICE_UUID_V2_BUFFER_SIZE.
pub(crate) const UUID_SIZE: usize = 96;

/// `nvmlMemory_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryV2 {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// # Safety
/// `device` is NVML's or NULL, `to` a place or NULL.
pub(crate) unsafe fn info(device: *mut c_void, to: *mut Memory) -> c_int {
    type Call = unsafe extern "C" fn(*mut c_void, *mut Memory) -> c_int;
    // SAFETY: NVML's function of this name has this signature, or ignores its arguments.
    let call: Call =
        unsafe { std::mem::transmute(target(Index::nvmlDeviceGetMemoryInfo as usize)) };
    // SAFETY: the program's own arguments.
    let code = unsafe { call(device, to) };
    if code == SUCCESS
        && let Some((free, total)) = own(device)
    {
        // SAFETY: NVML has succeeded, so it has written there.
        unsafe { to.write(Memory { total, free, used: total - free }) };
    }
    code
}

/// # Safety
/// As for [`info`].
pub(crate) unsafe fn info_v2(device: *mut c_void, to: *mut MemoryV2) -> c_int {
    type Call = unsafe extern "C" fn(*mut c_void, *mut MemoryV2) -> c_int;
    // SAFETY: NVML's function of this name has this signature, or ignores its arguments.
    let call: Call =
        unsafe { std::mem::transmute(target(Index::nvmlDeviceGetMemoryInfo_v2 as usize)) };
    // SAFETY: the program's own arguments.
    let code = unsafe { call(device, to) };
    if code == SUCCESS
        && let Some((free, total)) = own(device)
    {
        // SAFETY: NVML has succeeded, so it has read the version and written the rest.
        let version = unsafe { (&raw const (*to).version).read() };
        let used = total - free;
        // SAFETY: as above. What the driver reserves is no part of what a program can have.
        unsafe { to.write(MemoryV2 { version, total, reserved: 0, free, used }) };
    }
    code
}

/// Free and total bytes of a GPU of this client's, from the interposer in this process.
pub(crate) fn own(device: *mut c_void) -> Option<(u64, u64)> {
    type Ask = unsafe extern "C" fn(*const c_char, *mut u64, *mut u64) -> c_int;
    // SAFETY: a search in what is loaded, by a name that ends with a NUL.
    let ask = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"acb_memory_v1".as_ptr()) };
    if ask.is_null() {
        return None;
    }
    let uuid = uuid(device)?;
    // SAFETY: the interposer declares it so; its name counts its versions.
    let ask: Ask = unsafe { std::mem::transmute(ask) };
    let (mut free, mut total) = (0, 0);
    // SAFETY: a string and two places on this stack.
    let answered = unsafe { ask(uuid.as_ptr().cast(), &raw mut free, &raw mut total) } == 0;
    (answered && free <= total).then_some((free, total))
}

pub(crate) fn uuid(device: *mut c_void) -> Option<[u8; UUID_SIZE]> {
    type Call = unsafe extern "C" fn(*mut c_void, *mut c_char, c_uint) -> c_int;
    // SAFETY: NVML's function of this name has this signature, or ignores its arguments.
    let call: Call = unsafe { std::mem::transmute(target(Index::nvmlDeviceGetUUID as usize)) };
    let mut uuid = [0_u8; UUID_SIZE];
    // SAFETY: the program's device, with which NVML has just worked, and a buffer of that length.
    let code = unsafe { call(device, uuid.as_mut_ptr().cast(), UUID_SIZE as c_uint) };
    (code == SUCCESS && CStr::from_bytes_until_nul(&uuid).is_ok()).then_some(uuid)
}
