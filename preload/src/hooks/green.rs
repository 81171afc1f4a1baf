//! Green contexts come and go. The driver keeps the device's primary context for as long as there is one.
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use super::context;
use super::submit;
use crate::greens::{GREENS, Green};
use crate::log::info;
use crate::memory::{Key, LEDGER, size};
use crate::table::real;
use crate::work::WORK;
use acb_cuda_abi::{CuResult, sys};
use std::ffi::*;

/// The primary context is counted as others are, and the green one with what it takes besides.
pub(crate) unsafe fn cuGreenCtxCreate(
    phCtx: *mut sys::CUgreenCtx,
    desc: sys::CUdevResourceDesc,
    dev: c_int,
    flags: c_uint,
) -> CuResult {
    let mut primary: sys::CUcontext = std::ptr::null_mut();
    // SAFETY: a place on this stack.
    let retained = unsafe { context::cuDevicePrimaryCtxRetain(&raw mut primary, dev) };
    if !retained.is_success() {
        return retained;
    }
    // SAFETY: the program's own arguments.
    let result = measured(dev, || unsafe { real::cuGreenCtxCreate(phCtx, desc, dev, flags) });
    let result = match result {
        // SAFETY: the driver has just written there.
        Ok(bytes) => counted(unsafe { phCtx.read() }, primary as usize, dev, bytes),
        Err(result) => result,
    };
    match result.is_success() {
        // The green context keeps it.
        // SAFETY: retained above.
        true => drop(unsafe { real::cuDevicePrimaryCtxRelease_v2(dev) }),
        // SAFETY: as above.
        false => drop(unsafe { context::cuDevicePrimaryCtxRelease_v2(dev) }),
    }
    result
}

/// Makes one inside the gate, where no memory moves meanwhile; the bytes that it takes, 0 where nobody can tell.
fn measured(device: c_int, call: impl FnOnce() -> CuResult) -> Result<u64, CuResult> {
    let mut taken = None;
    let result = submit::pass("cuGreenCtxCreate", false, || {
        let before = LEDGER.uncounted(device);
        let result = call();
        let after = before.filter(|_| result.is_success()).and_then(|_| LEDGER.uncounted(device));
        taken = before.zip(after).map(|(before, after)| after.since(before));
        result
    });
    if result.is_success() { Ok(taken.unwrap_or(0)) } else { Err(result) }
}

fn counted(green: sys::CUgreenCtx, primary: usize, device: c_int, bytes: u64) -> CuResult {
    let handle = green as usize;
    if bytes > 0 {
        info!("a green context takes {} of GPU {device}, as measured", size(bytes));
        let Some(promise) = LEDGER.reserve_exactly("cuGreenCtxCreate", device, bytes) else {
            // SAFETY: it has just been made, and nobody has it.
            let _ = unsafe { real::cuGreenCtxDestroy(green) };
            return CuResult::OUT_OF_MEMORY;
        };
        LEDGER.allocated(promise.of_kind("contexts"), Key::Green(handle), primary);
    }
    GREENS.made(handle, Green { device, primary, context: 0 });
    CuResult::SUCCESS
}

pub(crate) unsafe fn cuGreenCtxDestroy(hCtx: sys::CUgreenCtx) -> CuResult {
    // SAFETY: the program's own argument.
    let call = || unsafe { real::cuGreenCtxDestroy(hCtx) };
    let handle = hCtx as usize;
    let Some(green) = GREENS.remove(handle) else { return call() };
    let leaving = WORK.remove_context(green.context);
    let taken = LEDGER.take(Key::Green(handle));
    // The last one takes the primary context along.
    let result = context::release(green.device, call);
    match result.is_success() {
        true => taken.into_iter().for_each(|taken| LEDGER.freed(taken)),
        false => {
            leaving.restore();
            taken.into_iter().for_each(|taken| LEDGER.put_back(taken));
            GREENS.made(handle, green);
        }
    }
    result
}

pub(crate) unsafe fn cuCtxFromGreenCtx(
    pContext: *mut sys::CUcontext,
    hCtx: sys::CUgreenCtx,
) -> CuResult {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuCtxFromGreenCtx(pContext, hCtx) };
    if result.is_success() {
        // SAFETY: the driver has just written there.
        GREENS.named(hCtx as usize, unsafe { pContext.read() } as usize);
    }
    result
}
