//! A program that is linked with NVML: what it says of the first GPU, and what cuMemGetInfo says.
//!
//! Included by `nvml_linked` and `nvml_rpath`, which differ in their linker flags alone (build.rs).
//! Prints one line of JSON, a part of what `nvml_ctypes.py` prints. 1 GiB is allocated before.
#![allow(unsafe_code)] // FFI: calls through the link.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use acb_workloads::driver::Driver;
use anyhow::{Result, ensure};

#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

unsafe extern "C" {
    fn nvmlInit_v2() -> c_int;
    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut *mut c_void) -> c_int;
    fn nvmlDeviceGetUUID(device: *mut c_void, uuid: *mut c_char, length: c_uint) -> c_int;
    fn nvmlDeviceGetMemoryInfo(device: *mut c_void, memory: *mut Memory) -> c_int;
}

pub(crate) fn main() -> Result<()> {
    let driver = Driver::open("libcuda.so.1")?;
    driver.init()?;
    driver.retain_primary(0)?;
    driver.alloc(1 << 30)?;
    let (free, total) = driver.memory_info()?;
    let mut device = std::ptr::null_mut();
    let mut uuid = [0_u8; 96];
    let mut memory = Memory::default();
    // SAFETY: NVML's functions with places and a buffer of this stack, in the order that it wants.
    let codes = unsafe {
        [
            nvmlInit_v2(),
            nvmlDeviceGetHandleByIndex_v2(0, &raw mut device),
            nvmlDeviceGetUUID(device, uuid.as_mut_ptr().cast(), uuid.len() as c_uint),
            nvmlDeviceGetMemoryInfo(device, &raw mut memory),
        ]
    };
    ensure!(codes == [0; 4], "NVML failed: {codes:?}");
    let uuid = CStr::from_bytes_until_nul(&uuid)?.to_str()?;
    let answer = serde_json::json!({
        "own": uuid,
        "cuda": [free, total],
        "after": [{ "uuid": uuid, "v1": [memory.free, memory.total, memory.used] }],
    });
    println!("{answer}");
    Ok(())
}
