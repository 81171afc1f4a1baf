//! How a program finds the driver's functions, and how it starts.
//!
//! cuGetProcAddress asks the real driver first, with the same arguments. Only what it found is
//! replaced, by the hook that belongs to name, version and stream form together.
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use crate::log::{debug, warning};
use crate::table::{self, real};
use crate::{driver, exports, process};
use acb_cuda_abi::{Class, CuResult, FUNCTIONS, StreamForm, resolve};
use std::ffi::*;
use std::sync::OnceLock;

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD: u64 = 2;

pub(crate) unsafe fn cuInit(Flags: c_uint) -> CuResult {
    process::init(Flags)
}

pub(crate) unsafe fn cuGetProcAddress(
    symbol: *const c_char,
    pfn: *mut *mut c_void,
    cudaVersion: c_int,
    flags: u64,
) -> CuResult {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuGetProcAddress(symbol, pfn, cudaVersion, flags) };
    if result.is_success() {
        // SAFETY: the driver succeeded, so the name is a string and the place was written.
        unsafe { substitute(symbol, pfn, cudaVersion, flags) };
    }
    result
}

pub(crate) unsafe fn cuGetProcAddress_v2(
    symbol: *const c_char,
    pfn: *mut *mut c_void,
    cudaVersion: c_int,
    flags: u64,
    symbolStatus: *mut c_uint,
) -> CuResult {
    // SAFETY: the program's own arguments.
    let result =
        unsafe { real::cuGetProcAddress_v2(symbol, pfn, cudaVersion, flags, symbolStatus) };
    if result.is_success() {
        // SAFETY: the driver succeeded, so the name is a string and the place was written.
        unsafe { substitute(symbol, pfn, cudaVersion, flags) };
    }
    result
}

/// # Safety
/// `symbol` is a string or NULL, `pfn` a place that holds an address or NULL, or NULL itself.
unsafe fn substitute(symbol: *const c_char, pfn: *mut *mut c_void, version: c_int, flags: u64) {
    if symbol.is_null() || pfn.is_null() {
        return;
    }
    // SAFETY: not NULL.
    let found = unsafe { pfn.read() };
    // SAFETY: not NULL.
    let Ok(name) = unsafe { CStr::from_ptr(symbol) }.to_str() else { return };
    if found.is_null() {
        return;
    }
    let form = if flags & PER_THREAD != 0 { StreamForm::PerThread } else { StreamForm::Legacy };
    let Some(index) = identify(name, version, form, found) else { return };
    let Some(hook) = exports::hook(index) else { return };
    // A driver whose own symbols are looked up like everyone's answers with the hook itself.
    if found as usize == hook {
        return;
    }
    table::learn(index, found);
    // SAFETY: not NULL, and the driver has just written there.
    unsafe { pfn.write(hook as *mut c_void) };
}

/// Which symbol the driver has answered with.
///
/// It answers with the newest form that is not newer than what was asked for, nor than itself.
/// Where that is newer than the list, an address that the driver exports under a known name is
/// still that function; anything else passes through, for its signature is not known.
fn identify(name: &str, version: c_int, form: StreamForm, found: *mut c_void) -> Option<usize> {
    let version = u32::try_from(version).ok()?.min(driver_version());
    let newest_known = FUNCTIONS.iter().map(|function| function.version).max()?;
    if version <= newest_known {
        return resolve(name, version, form);
    }
    let index = resolve(name, version, form)?;
    let by_address = FUNCTIONS.iter().enumerate().filter(|(_, f)| f.name == name).find(|(_, f)| {
        driver::handle().and_then(|h| table::driver_symbol(h, f.symbol)) == Some(found as usize)
    });
    if by_address.is_none() && FUNCTIONS[index].class != Class::Pass {
        // Most functions never change again, and their names say nothing of it.
        debug!("cuGetProcAddress({name}, {version}) is newer than the interposer's list");
        if !has_newer_form(name, found) {
            return Some(index);
        }
        warning!(
            "{name} of CUDA {version} is newer than this version of slurm-acb knows: it passes through \
             unmanaged; update slurm-acb"
        );
        return None;
    }
    by_address.map(|(at, _)| at).or(Some(index))
}

/// Whether the driver answers differently when asked for the newest version that the list knows:
/// then the function has a form that the list does not have.
fn has_newer_form(name: &str, found: *mut c_void) -> bool {
    let Ok(name) = CString::new(name) else { return true };
    let newest = FUNCTIONS.iter().map(|function| function.version).max().unwrap_or(0);
    let mut known: *mut c_void = std::ptr::null_mut();
    // SAFETY: a string and a place on this stack.
    let result = unsafe {
        real::cuGetProcAddress_v2(
            name.as_ptr(),
            &raw mut known,
            newest as c_int,
            0,
            std::ptr::null_mut(),
        )
    };
    let mut known_per_thread: *mut c_void = std::ptr::null_mut();
    // SAFETY: a string and a place on this stack.
    let _ = unsafe {
        real::cuGetProcAddress_v2(
            name.as_ptr(),
            &raw mut known_per_thread,
            newest as c_int,
            PER_THREAD,
            std::ptr::null_mut(),
        )
    };
    !(result.is_success() && (known == found || known_per_thread == found))
}

/// The driver's version as it numbers itself; 0 where it does not say.
pub(crate) fn driver_version() -> u32 {
    static VERSION: OnceLock<u32> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let mut version: c_int = 0;
        // SAFETY: a place on this stack; this function may be called before cuInit.
        let result = unsafe { real::cuDriverGetVersion(&raw mut version) };
        if result.is_success() { version.try_into().unwrap_or(0) } else { u32::MAX }
    })
}
