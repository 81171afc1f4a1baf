//! Coming up, versions, errors, and finding functions.
#![allow(unsafe_code)] // C pointers

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use acb_cuda_abi::{StreamForm, sys};

use super::{put, put_wanted, text};
use crate::code::{INVALID_VALUE, NOT_FOUND, describe};
use crate::driver;

const PER_THREAD_DEFAULT_STREAM: u64 = 2;
const FOUND: c_uint = 0;
const NO_SUCH_SYMBOL: c_uint = 1;
const VERSION_TOO_OLD: c_uint = 2;

calls! {
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        driver::bring_up()
    }

    fn cuDriverGetVersion(version: *mut c_int) {
        let known = driver::get().map(|driver| driver.config.driver_version);
        let version_of = || simcuda_device::Config::load().map_or(13000, |c| c.driver_version);
        put(version, known.unwrap_or_else(|_| version_of()))
    }

    fn cuGetErrorName(error: c_uint, name: *const *mut c_char) {
        describe_to(name, describe(error).map(|(name, _)| name))
    }

    fn cuGetErrorString(error: c_uint, string: *const *mut c_char) {
        describe_to(string, describe(error).map(|(_, string)| string))
    }

    fn cuGetProcAddress(
        symbol: *const c_char,
        function: *mut *mut c_void,
        version: c_int,
        flags: u64,
    ) {
        cuGetProcAddress_v2(symbol, function, version, flags, std::ptr::null_mut())
    }

    fn cuGetProcAddress_v2(
        symbol: *const c_char,
        function: *mut *mut c_void,
        version: c_int,
        flags: u64,
        status: *mut c_uint,
    ) {
        let name = text(symbol)?;
        let version = u32::try_from(version).map_err(|_| INVALID_VALUE)?;
        put(function, std::ptr::null_mut())?;
        if flags > PER_THREAD_DEFAULT_STREAM {
            return Err(INVALID_VALUE);
        }
        let form = if flags == PER_THREAD_DEFAULT_STREAM {
            StreamForm::PerThread
        } else {
            StreamForm::Legacy
        };
        let found = acb_cuda_abi::resolve(name, version, form);
        if let Some(address) = found.and_then(crate::exports::address) {
            put_wanted(status, FOUND);
            return put(function, address);
        }
        let later = acb_cuda_abi::resolve(name, u32::MAX, form).is_some();
        put_wanted(status, if later { VERSION_TOO_OLD } else { NO_SUCH_SYMBOL });
        Err(NOT_FOUND)
    }

    fn cuGetExportTable(table: *const *mut c_void, id: *const sys::CUuuid) {
        // The runtime library's private tables: not imitated.
        let _ = id;
        put(table.cast_mut(), std::ptr::null_mut())?;
        Err(NOT_FOUND)
    }

    fn cuProfilerStart() {
        driver::get().map(drop)
    }

    fn cuProfilerStop() {
        driver::get().map(drop)
    }
}

/// # Safety
/// As for `put`.
unsafe fn describe_to(
    to: *const *mut c_char,
    known: Option<&'static CStr>,
) -> crate::code::Outcome {
    let text = known.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the caller vouches for `to`.
    unsafe { put(to.cast_mut(), text.cast_mut()) }?;
    known.map(drop).ok_or(INVALID_VALUE)
}
