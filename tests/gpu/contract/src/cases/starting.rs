//! Coming up, contexts, and finding functions.
#![allow(unsafe_code)] // fork

use std::ffi::c_int;
use std::path::Path;

use super::{any_of, open, same, why};
use crate::driver::Driver;
use crate::gpu::code;

pub(super) fn nothing_works_before_init(path: &Path) -> Result<(), String> {
    let driver = Driver::open(path)?;
    let mut count: c_int = 0;
    same("count", driver.cuDeviceGetCount(&raw mut count), code::NOT_INITIALIZED)?;
    let mut pointer = 0;
    same("allocate", driver.cuMemAlloc_v2(&raw mut pointer, 64), code::NOT_INITIALIZED)?;
    let mut version: c_int = 0;
    same("version", driver.cuDriverGetVersion(&raw mut version), 0)?;
    same("at least CUDA 11", version >= 11000, true)?;
    same("flags", driver.cuInit(1), code::INVALID_VALUE)
}

pub(super) fn a_forked_child_has_no_driver(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    // SAFETY: the child only calls the driver and _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut pointer = 0;
        let code = gpu.driver.cuMemAlloc_v2(&raw mut pointer, 64);
        // SAFETY: ends the child without the parent's handlers.
        unsafe { libc::_exit(code as i32) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    same("the child's allocation", libc::WEXITSTATUS(status) as u32, code::NOT_INITIALIZED)?;
    gpu.alloc(64).map_err(why("the parent goes on"))?;
    Ok(())
}

pub(super) fn functions_are_found_by_name_and_version(path: &Path) -> Result<(), String> {
    let driver = Driver::open(path)?;
    same("init", driver.cuInit(0), 0)?;
    let find = |name: &std::ffi::CStr, version, flags| {
        let (mut function, mut status) = (std::ptr::null_mut(), 99);
        let code = driver.cuGetProcAddress_v2(
            name.as_ptr(),
            &raw mut function,
            version,
            flags,
            &raw mut status,
        );
        (code, function as usize, status)
    };
    let (code, legacy, status) = find(c"cuMemcpyHtoD", 12000, 0);
    same("found", (code, status, legacy != 0), (0, 0, true))?;
    let (code, per_thread, _) = find(c"cuMemcpyHtoD", 12000, 2);
    same("the per-thread form is another", (code, per_thread != legacy), (0, true))?;
    let (_, missing, status) = find(c"cuNoSuchFunction", 12000, 0);
    same("not found", (missing, status), (0, 1))?;
    let (_, missing, status) = find(c"cuMemAllocAsync", 9000, 0);
    same("too new", (missing, status), (0, 2))?;
    same("exported too", driver.exports("cuLaunchKernel_ptsz"), true)
}

pub(super) fn errors_have_names(path: &Path) -> Result<(), String> {
    let driver = Driver::open(path)?;
    let mut name = std::ptr::null();
    same("known", driver.cuGetErrorName(700, &raw mut name), 0)?;
    same("a name", name.is_null(), false)?;
    same("unknown", driver.cuGetErrorName(123_456, &raw mut name), code::INVALID_VALUE)
}

pub(super) fn without_a_context_nothing_is_allocated(path: &Path) -> Result<(), String> {
    let driver = Driver::open(path)?;
    same("init", driver.cuInit(0), 0)?;
    let mut pointer = 0;
    same("allocate", driver.cuMemAlloc_v2(&raw mut pointer, 64), code::INVALID_CONTEXT)?;
    same("synchronize", driver.cuCtxSynchronize(), code::INVALID_CONTEXT)
}

pub(super) fn contexts_are_pushed_and_popped(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let driver = &gpu.driver;
    let (mut popped, mut current) = (0, 0);
    same("push", driver.cuCtxPushCurrent_v2(gpu.context), 0)?;
    same("pop", driver.cuCtxPopCurrent_v2(&raw mut popped), 0)?;
    same("it is the one", popped, gpu.context)?;
    same("current", driver.cuCtxGetCurrent(&raw mut current), 0)?;
    same("still there", current, gpu.context)?;
    same("last pop", driver.cuCtxPopCurrent_v2(&raw mut popped), 0)?;
    same("none is current", driver.cuCtxGetCurrent(&raw mut current), 0)?;
    same("null", current, 0)?;
    same("nothing to pop", driver.cuCtxPopCurrent_v2(&raw mut popped), code::INVALID_CONTEXT)
}

/// As after cudaDeviceReset: what was in it is gone, and who retained it still has to release it.
pub(super) fn a_primary_context_is_made_anew_after_its_reset(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let driver = &gpu.driver;
    gpu.alloc(1 << 20).map_err(why("allocate"))?;
    same("reset", driver.cuDevicePrimaryCtxReset_v2(0), 0)?;
    let (mut flags, mut active) = (0, 1);
    driver.cuDevicePrimaryCtxGetState(0, &raw mut flags, &raw mut active);
    same("not active", active, 0)?;
    let mut again = 0;
    same("retain", driver.cuDevicePrimaryCtxRetain(&raw mut again, 0), 0)?;
    same("current", driver.cuCtxSetCurrent(again), 0)?;
    let memory = gpu.alloc(1 << 20).map_err(why("allocate anew"))?;
    gpu.write(memory, &[4711]).map_err(why("write"))?;
    same("data", gpu.read(memory, 1).map_err(why("read"))?, vec![4711])?;
    same("release", driver.cuDevicePrimaryCtxRelease_v2(0), 0)?;
    same("release the first", driver.cuDevicePrimaryCtxRelease_v2(0), 0)?;
    let one_too_many = driver.cuDevicePrimaryCtxRelease_v2(0);
    any_of("one too many", Err(one_too_many), &[code::INVALID_CONTEXT])
}

pub(super) fn primary_contexts_are_counted(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let driver = &gpu.driver;
    let mut again = 0;
    same("retain", driver.cuDevicePrimaryCtxRetain(&raw mut again, 0), 0)?;
    same("the same", again, gpu.context)?;
    let state = || {
        let (mut flags, mut active) = (0, 0);
        driver.cuDevicePrimaryCtxGetState(0, &raw mut flags, &raw mut active);
        active
    };
    same("release", driver.cuDevicePrimaryCtxRelease_v2(0), 0)?;
    same("still active", state(), 1)?;
    same("release", driver.cuDevicePrimaryCtxRelease_v2(0), 0)?;
    same("no longer", state(), 0)?;
    let one_too_many = driver.cuDevicePrimaryCtxRelease_v2(0);
    any_of("one too many", Err(one_too_many), &[code::INVALID_CONTEXT])
}
