//! Streams come and go: `work` must know them, or it could not tell when they are drained.
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use super::unasked;
use crate::greens::GREENS;
use crate::pager::PAGER;
use crate::table::real;
use crate::work::{WORK, current_context};
use acb_cuda_abi::{CuResult, sys};
use std::ffi::{c_int, c_uint};

pub(crate) unsafe fn cuStreamCreate(phStream: *mut sys::CUstream, Flags: c_uint) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe { created("cuStreamCreate", phStream, || real::cuStreamCreate(phStream, Flags)) }
}

pub(crate) unsafe fn cuStreamCreateWithPriority(
    phStream: *mut sys::CUstream,
    flags: c_uint,
    priority: c_int,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        created("cuStreamCreateWithPriority", phStream, || {
            real::cuStreamCreateWithPriority(phStream, flags, priority)
        })
    }
}

pub(crate) unsafe fn cuGreenCtxStreamCreate(
    phStream: *mut sys::CUstream,
    greenCtx: sys::CUgreenCtx,
    flags: c_uint,
    priority: c_int,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        created("cuGreenCtxStreamCreate", phStream, || {
            real::cuGreenCtxStreamCreate(phStream, greenCtx, flags, priority)
        })
    }
}

/// # Safety
/// `place` holds a stream if `call` says so.
unsafe fn created(
    symbol: &'static str,
    place: *mut sys::CUstream,
    call: impl Fn() -> CuResult,
) -> CuResult {
    let result = unasked::again(symbol, call);
    if result.is_success() {
        // SAFETY: the driver has just written there.
        let stream = unsafe { place.read() };
        WORK.add_stream(stream as usize, context_of(stream));
    }
    result
}

/// Context of a stream: what the driver says, else the current one.
fn context_of(stream: sys::CUstream) -> usize {
    let mut context: sys::CUcontext = std::ptr::null_mut();
    // SAFETY: a stream just made, and a place on this stack.
    let result = unsafe { real::cuStreamGetCtx(stream, &raw mut context) };
    if result.is_success() && !context.is_null() {
        GREENS.primary_of(context as usize)
    } else {
        current_context()
    }
}

pub(crate) unsafe fn cuStreamDestroy(hStream: sys::CUstream) -> CuResult {
    // SAFETY: the program's own argument.
    destroy(hStream, || unsafe { real::cuStreamDestroy(hStream) })
}

pub(crate) unsafe fn cuStreamDestroy_v2(hStream: sys::CUstream) -> CuResult {
    // SAFETY: the program's own argument.
    destroy(hStream, || unsafe { real::cuStreamDestroy_v2(hStream) })
}

fn destroy(stream: sys::CUstream, call: impl FnOnce() -> CuResult) -> CuResult {
    let leaving = WORK.remove_stream(stream as usize);
    let result = call();
    match result.is_success() {
        true => {
            WORK.end_capture(stream as usize, 0);
            PAGER.capture_ended();
        }
        false => leaving.restore(),
    }
    result
}
