//! Functions: their attributes, and how many blocks of them fit.
#![allow(unsafe_code)] // C pointers

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use acb_cuda_abi::sys;

use super::{put, put_wanted};
use crate::code::{INVALID_HANDLE, INVALID_VALUE, Outcome};
use crate::driver::{self};
use crate::handles::Handle;

calls! {
    fn cuFuncGetParamInfo(
        function: sys::CUfunction,
        index: usize,
        offset: *mut usize,
        size: *mut usize,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let function = Handle::from_bits(function as u64);
        let function = tables.functions.get(function).ok_or(INVALID_HANDLE)?;
        let parameter = function.parameters.get(index).ok_or(INVALID_VALUE)?;
        put(offset, parameter.offset)?;
        put_wanted(size, parameter.size);
        Ok(())
    }

    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: sys::CUfunction) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let dynamic = tables.launched(driver, function as u64)?;
        let dynamic = tables.functions.get(dynamic).ok_or(INVALID_HANDLE)?.dynamic_shared;
        put(value, function_attribute(attribute, dynamic)?)
    }

    fn cuFuncSetAttribute(function: sys::CUfunction, attribute: c_uint, value: c_int) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let handle = tables.launched(driver, function as u64)?;
        let function = tables.functions.get_mut(handle).ok_or(INVALID_HANDLE)?;
        match attribute {
            8 => {
                let bytes = u32::try_from(value).map_err(|_| INVALID_VALUE)?;
                if bytes > LARGEST_SHARED {
                    return Err(INVALID_VALUE);
                }
                function.dynamic_shared = bytes;
                Ok(())
            }
            9..=15 => Ok(()),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuFuncSetCacheConfig(function: sys::CUfunction, _config: c_uint) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64).map(drop)
    }

    fn cuFuncSetSharedMemConfig(function: sys::CUfunction, _config: c_uint) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64).map(drop)
    }

    fn cuFuncGetModule(module: *mut sys::CUmodule, function: sys::CUfunction) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let function = tables.functions.get(Handle::from_bits(function as u64));
        put(module, function.ok_or(INVALID_HANDLE)?.module.bits() as sys::CUmodule)
    }

    fn cuFuncGetName(name: *const *mut c_char, function: sys::CUfunction) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let function = tables.functions.get(Handle::from_bits(function as u64));
        let text = lasting(&function.ok_or(INVALID_HANDLE)?.name);
        put(name.cast_mut(), text.as_ptr().cast_mut())
    }

    fn cuFuncIsLoaded(state: *mut c_uint, function: sys::CUfunction) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        put(state, 1)
    }

    fn cuFuncLoad(function: sys::CUfunction) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64).map(drop)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int,
        function: sys::CUfunction,
        threads: c_int,
        dynamic: usize,
    ) {
        cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, dynamic, 0)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int,
        function: sys::CUfunction,
        threads: c_int,
        dynamic: usize,
        _flags: c_uint,
    ) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        if threads <= 0 {
            return Err(INVALID_VALUE);
        }
        let by_threads = if threads > 1024 { 0 } else { (2048 / threads).min(32) };
        let by_memory = (228_usize << 10).checked_div(dynamic).unwrap_or(32);
        put(blocks, by_threads.min(by_memory as c_int))
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut c_int,
        block: *mut c_int,
        function: sys::CUfunction,
        _dynamic_of: *mut c_void,
        _dynamic: usize,
        limit: c_int,
    ) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        let threads = if limit > 0 { limit.min(1024) } else { 1024 };
        put(grid, 132 * (2048 / threads.max(64)))?;
        put(block, threads)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut c_int,
        block: *mut c_int,
        function: sys::CUfunction,
        dynamic_of: *mut c_void,
        dynamic: usize,
        limit: c_int,
        _flags: c_uint,
    ) {
        cuOccupancyMaxPotentialBlockSize(grid, block, function, dynamic_of, dynamic, limit)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: *mut usize,
        function: sys::CUfunction,
        blocks: c_int,
        threads: c_int,
    ) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        if blocks <= 0 || threads <= 0 {
            return Err(INVALID_VALUE);
        }
        put(bytes, (228 << 10) / blocks as usize - (1 << 10))
    }

    fn cuOccupancyMaxActiveClusters(
        clusters: *mut c_int,
        function: sys::CUfunction,
        _config: *const sys::CUlaunchConfig,
    ) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        put(clusters, 132)
    }

    fn cuOccupancyMaxPotentialClusterSize(
        size: *mut c_int,
        function: sys::CUfunction,
        _config: *const sys::CUlaunchConfig,
    ) {
        let driver = driver::get()?;
        driver.lock().launched(driver, function as u64)?;
        put(size, 8)
    }
}

/// The most shared memory that a block may have.
pub(crate) const LARGEST_SHARED: u32 = 227 << 10;

pub(super) fn function_attribute(attribute: c_uint, dynamic: u32) -> Outcome<c_int> {
    Ok(match attribute {
        0 => 1024,
        // static shared, constant and local memory
        1..=3 => 0,
        4 => 32,
        5 | 6 => 90,
        7 => 0,
        8 => dynamic.max(48 << 10) as c_int,
        9 => -1,
        10..=15 => 0,
        _ => return Err(INVALID_VALUE),
    })
}

/// A C string that is never freed; one per name.
pub(super) fn lasting(name: &str) -> &'static CStr {
    static NAMES: std::sync::Mutex<Vec<&'static CStr>> = std::sync::Mutex::new(Vec::new());
    let mut names = NAMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = names.iter().find(|known| known.to_bytes() == name.as_bytes()) {
        return known;
    }
    let owned = std::ffi::CString::new(name).unwrap_or_default();
    let leaked: &'static CStr = Box::leak(owned.into_boxed_c_str());
    names.push(leaked);
    leaked
}
