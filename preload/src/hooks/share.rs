//! Memory is handed to others: other processes, other GPUs at once, arrays, network cards.
//!
//! Owns: the driver's handles in place of the names that programs have, and which calls make memory stay.
//! Does not own: what it takes that it stays (`pager`).
//!
//! These calls pass the gate, for what they name must be on the GPU.
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use super::submit;
use crate::ipc;
use crate::log::warning;
use crate::pager::{self, PAGER, Pinned, Why};
use crate::table::real;
use acb_cuda_abi::{CuResult, StreamForm, sys};
use std::ffi::*;

const EXPORTED: Why = "exported";
const MULTICAST: Why = "multicast";
const SPARSE: Why = "sparse arrays";
const DMA_BUF: Why = "dma-buf";
const ENDPOINT: Why = "logical endpoint";
const IPC: Why = "ipc";

/// Makes memory stay, inside the gate, and then the call with the driver's handle.
fn pinned(
    symbol: &'static str,
    pin: impl Fn() -> Result<Pinned, CuResult>,
    call: impl Fn(u64) -> CuResult,
) -> CuResult {
    loop {
        let mut again = false;
        let result = submit::pass(symbol, false, || match pin() {
            Ok(Pinned::There(handle)) => call(handle),
            Ok(Pinned::NotYet) => {
                again = true;
                CuResult::SUCCESS
            }
            Err(result) => result,
        });
        if !again {
            return result;
        }
    }
}

/// The call with the driver's handle in place of a name; what is no name passes through.
fn named(symbol: &'static str, handle: u64, why: Why, call: impl Fn(u64) -> CuResult) -> CuResult {
    match PAGER.has_name(handle) {
        true => pinned(symbol, || PAGER.pin(handle, why), call),
        false => call(handle),
    }
}

/// The call once all of the pager's memory in a range stays.
pub(super) fn in_range(
    symbol: &'static str,
    (address, bytes): (u64, usize),
    why: Why,
    call: impl Fn() -> CuResult,
) -> CuResult {
    match PAGER.describe(address) {
        Some(_) => pinned(symbol, || PAGER.pin_range(address, bytes as u64, why), |_| call()),
        None => call(),
    }
}

pub(crate) unsafe fn cuMemExportToShareableHandle(
    shareableHandle: *mut c_void,
    handle: u64,
    handleType: c_uint,
    flags: u64,
) -> CuResult {
    // Only a type that it was made for can be had.
    if PAGER.handle_types(handle).is_some_and(|types| types & handleType == 0) {
        return CuResult::INVALID_VALUE;
    }
    // SAFETY: the program's own arguments.
    named("cuMemExportToShareableHandle", handle, EXPORTED, |handle| unsafe {
        real::cuMemExportToShareableHandle(shareableHandle, handle, handleType, flags)
    })
}

/// The second versions name the device too.
macro_rules! bind {
    ($($memory:ident, $address:ident ($($dev:ident)?);)*) => {$(
        pub(crate) unsafe fn $memory(
            mcHandle: u64,
            $($dev: c_int,)?
            mcOffset: usize,
            memHandle: u64,
            memOffset: usize,
            size: usize,
            flags: u64,
        ) -> CuResult {
            // SAFETY: the program's own arguments.
            named("cuMulticastBindMem", memHandle, MULTICAST, |handle| unsafe {
                real::$memory(mcHandle, $($dev,)? mcOffset, handle, memOffset, size, flags)
            })
        }

        pub(crate) unsafe fn $address(
            mcHandle: u64,
            $($dev: c_int,)?
            mcOffset: usize,
            memptr: u64,
            size: usize,
            flags: u64,
        ) -> CuResult {
            // SAFETY: the program's own arguments.
            in_range("cuMulticastBindAddr", (memptr, size), MULTICAST, || unsafe {
                real::$address(mcHandle, $($dev,)? mcOffset, memptr, size, flags)
            })
        }
    )*};
}

bind! {
    cuMulticastBindMem, cuMulticastBindAddr ();
    cuMulticastBindMem_v2, cuMulticastBindAddr_v2 (dev);
}

pub(crate) unsafe fn cuLogicalEndpointBindMem(
    leId: c_uint,
    dev: c_int,
    offset: u64,
    memHandle: u64,
    memOffset: u64,
    size: u64,
    flags: u64,
) -> CuResult {
    // SAFETY: the program's own arguments.
    named("cuLogicalEndpointBindMem", memHandle, ENDPOINT, |handle| unsafe {
        real::cuLogicalEndpointBindMem(leId, dev, offset, handle, memOffset, size, flags)
    })
}

pub(crate) unsafe fn cuLogicalEndpointBindAddr(
    leId: c_uint,
    dev: c_int,
    offset: u64,
    ptr: *mut c_void,
    size: u64,
    flags: u64,
) -> CuResult {
    // SAFETY: the program's own arguments.
    in_range("cuLogicalEndpointBindAddr", (ptr as u64, size as usize), ENDPOINT, || unsafe {
        real::cuLogicalEndpointBindAddr(leId, dev, offset, ptr, size, flags)
    })
}

pub(crate) unsafe fn cuMemGetHandleForAddressRange(
    handle: *mut c_void,
    dptr: u64,
    size: usize,
    handleType: c_uint,
    flags: u64,
) -> CuResult {
    // SAFETY: the program's own arguments.
    in_range("cuMemGetHandleForAddressRange", (dptr, size), DMA_BUF, || unsafe {
        real::cuMemGetHandleForAddressRange(handle, dptr, size, handleType, flags)
    })
}

/// The driver has such handles for memory of its own allocation alone; for the pager's they are ours (`ipc`). As with the driver's, a
/// handle means the whole allocation, wherever in it the address is.
pub(crate) unsafe fn cuIpcGetMemHandle(pHandle: *mut sys::CUipcMemHandle, dptr: u64) -> CuResult {
    let Some(found) = PAGER.describe(dptr) else {
        // SAFETY: the program's own arguments.
        return unsafe { real::cuIpcGetMemHandle(pHandle, dptr) };
    };
    // What the program has mapped itself, and what is a pool's, has other ways.
    if pHandle.is_null() || found.context == 0 || found.pool != 0 {
        return CuResult::INVALID_VALUE;
    }
    if !pager::can_share() {
        warning!(
            "cuIpcGetMemHandle: the driver has no file descriptors of memory on this system, CUDA_ERROR_NOT_SUPPORTED is returned. \
             Start the program with ACB_PAGER=off"
        );
        return CuResult::NOT_SUPPORTED;
    }
    in_range("cuIpcGetMemHandle", (found.start, found.bytes as usize), IPC, || {
        PAGER.offer(found.number, found.start);
        match ipc::handle_of(found.number) {
            Ok(bytes) => {
                const { assert!(size_of::<sys::CUipcMemHandle>() == ipc::HANDLE_BYTES) };
                // SAFETY: not NULL, and as long.
                unsafe { pHandle.cast::<[u8; ipc::HANDLE_BYTES]>().write(bytes) };
                CuResult::SUCCESS
            }
            Err(result) => result,
        }
    })
}

macro_rules! open {
    ($($symbol:ident;)*) => {$(
        pub(crate) unsafe fn $symbol(
            pdptr: *mut u64,
            handle: sys::CUipcMemHandle,
            Flags: c_uint,
        ) -> CuResult {
            // SAFETY: as many bytes, of which any will do.
            let bytes = unsafe { (&raw const handle).cast::<[u8; ipc::HANDLE_BYTES]>().read() };
            if !pdptr.is_null() && let Some(opened) = ipc::open(&bytes, Flags) {
                return match opened {
                    Ok(address) => {
                        // SAFETY: a place of the program's.
                        unsafe { pdptr.write(address) };
                        CuResult::SUCCESS
                    }
                    Err(result) => result,
                };
            }
            // SAFETY: the program's own arguments.
            unsafe { real::$symbol(pdptr, handle, Flags) }
        }
    )*};
}

open! {
    cuIpcOpenMemHandle;
    cuIpcOpenMemHandle_v2;
}

pub(crate) unsafe fn cuIpcCloseMemHandle(dptr: u64) -> CuResult {
    // SAFETY: the program's own argument.
    ipc::close(dptr).unwrap_or_else(|| unsafe { real::cuIpcCloseMemHandle(dptr) })
}

/// The call with a copy of the list in which the driver's handles stand in place of names.
unsafe fn map_arrays(
    symbol: &'static str,
    list: *mut sys::CUarrayMapInfo,
    count: c_uint,
    call: impl Fn(*mut sys::CUarrayMapInfo) -> CuResult,
) -> CuResult {
    if list.is_null() || count == 0 {
        return call(list);
    }
    let mut all: Vec<std::mem::MaybeUninit<sys::CUarrayMapInfo>> = (0..count as usize)
        // SAFETY: the program says that there are so many; they are copied as bytes.
        .map(|at| unsafe { list.cast::<std::mem::MaybeUninit<_>>().add(at).read_unaligned() })
        .collect();
    let handles: Vec<*mut u64> = all
        .iter_mut()
        // SAFETY: a place inside the copy; the handle is a number of 64 bits.
        .map(|info| unsafe { (&raw mut (*info.as_mut_ptr()).memHandle).cast::<u64>() })
        .collect();
    // Names of ours begin as no handle of the driver's does, also where the field means nothing.
    for place in handles {
        // SAFETY: as above.
        let handle = unsafe { place.read_unaligned() };
        if PAGER.has_name(handle) {
            let result = named(symbol, handle, SPARSE, |handle| {
                // SAFETY: as above.
                unsafe { place.write_unaligned(handle) };
                CuResult::SUCCESS
            });
            if !result.is_success() {
                return result;
            }
        }
    }
    submit::pass(symbol, true, || call(all.as_mut_ptr().cast()))
}

macro_rules! map {
    ($($symbol:ident $form:ident;)*) => {$(
        pub(crate) unsafe fn $symbol(
            mapInfoList: *mut sys::CUarrayMapInfo,
            count: c_uint,
            hStream: sys::CUstream,
        ) -> CuResult {
            submit::note_form(StreamForm::$form);
            // SAFETY: the program's own arguments, or a copy of them.
            unsafe {
                map_arrays("cuMemMapArrayAsync", mapInfoList, count, |list| {
                    real::$symbol(list, count, hStream)
                })
            }
        }
    )*};
}

map! {
    cuMemMapArrayAsync Legacy;
    cuMemMapArrayAsync_ptsz PerThread;
}
