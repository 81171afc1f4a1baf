//! Memory for other processes. A handle is given where a real driver gives one;
//! nobody can open it, as the pages behind device memory are this process's own.
#![allow(unsafe_code)] // C pointers

use std::ffi::c_uint;

use acb_cuda_abi::sys;

use crate::code::{INVALID_VALUE, NOT_SUPPORTED};
use crate::driver;
use crate::space::RegionKind;

calls! {
    fn cuIpcGetMemHandle(handle: *mut sys::CUipcMemHandle, pointer: u64) {
        let driver = driver::get()?;
        let tables = driver.lock();
        driver.current(&tables)?;
        let (start, region) = tables.space.region_of(pointer).ok_or(INVALID_VALUE)?;
        // Memory that the program mapped, and that of pools, has other ways.
        if handle.is_null() || !matches!(region.kind, RegionKind::Allocation { .. }) {
            return Err(INVALID_VALUE);
        }
        handle.write_bytes(0, 1);
        let fields = handle.cast::<u64>();
        fields.write_unaligned(u64::from(std::process::id()));
        fields.add(1).write_unaligned(start);
        fields.add(2).write_unaligned(region.length as u64);
        Ok(())
    }

    fn cuIpcOpenMemHandle_v2(
        _pointer: *mut u64,
        _handle: sys::CUipcMemHandle,
        _flags: c_uint,
    ) {
        driver::get()?;
        Err(NOT_SUPPORTED)
    }

    fn cuIpcCloseMemHandle(_pointer: u64) {
        driver::get()?;
        // None was opened.
        Err(INVALID_VALUE)
    }
}
