//! Contexts come and go: each takes memory of the GPU, more if the program wants, and holds streams that must be drained.
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use super::memory::current_device;
use super::module;
use crate::ipc;
use crate::memory::{Key, LEDGER};
use crate::pager::PAGER;
use crate::table::real;
use crate::work::{WORK, current_context};
use acb_cuda_abi::{CuResult, sys};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

macro_rules! create {
    ($($symbol:ident (pctx: *mut sys::CUcontext $(, $parameter:ident: $kind:ty)*) on $device:ident;)*) => {$(
        pub(crate) unsafe fn $symbol(pctx: *mut sys::CUcontext $(, $parameter: $kind)*) -> CuResult {
            if !LEDGER.reserve_context(stringify!($symbol), $device) {
                return CuResult::OUT_OF_MEMORY;
            }
            let Some(libraries) = module::for_context($device) else {
                LEDGER.return_context($device);
                return CuResult::OUT_OF_MEMORY;
            };
            // SAFETY: the program's own arguments.
            let result = unsafe { real::$symbol(pctx $(, $parameter)*) };
            match result.is_success() {
                true => {
                    // SAFETY: the driver has just written there.
                    let context = unsafe { pctx.read() };
                    made(context, $device);
                    libraries.count_context(context as usize);
                }
                false => {
                    libraries.forget();
                    LEDGER.return_context($device);
                }
            }
            result
        }
    )*};
}

create! {
    cuCtxCreate(pctx: *mut sys::CUcontext, flags: c_uint, dev: c_int) on dev;
    cuCtxCreate_v2(pctx: *mut sys::CUcontext, flags: c_uint, dev: c_int) on dev;
    cuCtxCreate_v3(pctx: *mut sys::CUcontext, params: *mut sys::CUexecAffinityParam, count: c_int, flags: c_uint, dev: c_int) on dev;
    cuCtxCreate_v4(pctx: *mut sys::CUcontext, params: *mut sys::CUctxCreateParams, flags: c_uint, dev: c_int) on dev;
    cuGLCtxCreate(pctx: *mut sys::CUcontext, flags: c_uint, device: c_int) on device;
    cuGLCtxCreate_v2(pctx: *mut sys::CUcontext, flags: c_uint, device: c_int) on device;
    cuVDPAUCtxCreate(pctx: *mut sys::CUcontext, flags: c_uint, device: c_int, vdp: c_uint, find: *mut c_void) on device;
    cuVDPAUCtxCreate_v2(pctx: *mut sys::CUcontext, flags: c_uint, device: c_int, vdp: c_uint, find: *mut c_void) on device;
}

/// Mapped memory is opened to other devices piece by piece, and what is mapped later too.
pub(crate) unsafe fn cuCtxEnablePeerAccess(peerContext: sys::CUcontext, Flags: c_uint) -> CuResult {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuCtxEnablePeerAccess(peerContext, Flags) };
    if !result.is_success() {
        return result;
    }
    let (from, to) = (current_context(), peerContext as usize);
    match PAGER.enable_peer(from, to) {
        Ok(()) => result,
        Err(refused) => {
            PAGER.disable_peer(from, to);
            // SAFETY: enabled above.
            let _ = unsafe { real::cuCtxDisablePeerAccess(peerContext) };
            refused
        }
    }
}

pub(crate) unsafe fn cuCtxDisablePeerAccess(peerContext: sys::CUcontext) -> CuResult {
    // SAFETY: the program's own argument.
    let result = unsafe { real::cuCtxDisablePeerAccess(peerContext) };
    if result.is_success() {
        PAGER.disable_peer(current_context(), peerContext as usize);
    }
    result
}

fn made(context: sys::CUcontext, device: c_int) {
    WORK.add_context(context as usize);
    LEDGER.context_made(context as usize, device);
    LEDGER.measure_context(context as usize, device);
    PAGER.context_made(context as usize, device);
}

pub(crate) unsafe fn cuCtxDestroy(ctx: sys::CUcontext) -> CuResult {
    // SAFETY: the program's own argument.
    destroy(ctx, || unsafe { real::cuCtxDestroy(ctx) })
}

pub(crate) unsafe fn cuCtxDestroy_v2(ctx: sys::CUcontext) -> CuResult {
    // SAFETY: the program's own argument.
    destroy(ctx, || unsafe { real::cuCtxDestroy_v2(ctx) })
}

/// How often contexts were attached beyond their making.
static ATTACHED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn attached() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    ATTACHED.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) unsafe fn cuCtxAttach(pctx: *mut sys::CUcontext, flags: c_uint) -> CuResult {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuCtxAttach(pctx, flags) };
    if result.is_success() {
        *attached().entry(current_context()).or_default() += 1;
    }
    result
}

/// The last one to detach a context destroys it.
pub(crate) unsafe fn cuCtxDetach(ctx: sys::CUcontext) -> CuResult {
    // SAFETY: the program's own argument.
    let call = || unsafe { real::cuCtxDetach(ctx) };
    if !attached().contains_key(&(ctx as usize)) {
        return destroy(ctx, call);
    }
    let result = call();
    if result.is_success()
        && let Entry::Occupied(mut times) = attached().entry(ctx as usize)
    {
        *times.get_mut() -= 1;
        if *times.get() == 0 {
            times.remove();
        }
    }
    result
}

fn destroy(context: sys::CUcontext, call: impl FnOnce() -> CuResult) -> CuResult {
    let leaving = WORK.remove_context(context as usize);
    PAGER.retire_context(context as usize);
    let result = call();
    match result.is_success() {
        true => {
            attached().remove(&(context as usize));
            LEDGER.context_gone(context as usize);
            PAGER.context_gone(context as usize);
            ipc::context_gone(context as usize);
        }
        false => {
            leaving.restore();
            PAGER.restore_context(context as usize);
        }
    }
    result
}

macro_rules! adopt {
    ($($symbol:ident;)*) => {$(
        pub(crate) unsafe fn $symbol(ctx: sys::CUcontext) -> CuResult {
            // SAFETY: the program's own argument.
            let result = unsafe { real::$symbol(ctx) };
            if result.is_success() {
                WORK.add_context(ctx as usize);
            }
            result
        }
    )*};
}

// Contexts that were made on ways unknown here are known from the moment they are used.
adopt! {
    cuCtxSetCurrent;
    cuCtxPushCurrent;
    cuCtxPushCurrent_v2;
}

pub(crate) unsafe fn cuDevicePrimaryCtxRetain(pctx: *mut sys::CUcontext, dev: c_int) -> CuResult {
    let before = primary_active(dev);
    if !before && !LEDGER.reserve_context("cuDevicePrimaryCtxRetain", dev) {
        return CuResult::OUT_OF_MEMORY;
    }
    let libraries = match before {
        true => module::Promises::default(),
        false => match module::for_context(dev) {
            Some(libraries) => libraries,
            None => {
                LEDGER.return_context(dev);
                return CuResult::OUT_OF_MEMORY;
            }
        },
    };
    // SAFETY: the program's own arguments.
    let result = unsafe { real::cuDevicePrimaryCtxRetain(pctx, dev) };
    if result.is_success() {
        // SAFETY: the driver has just written there.
        let context = unsafe { pctx.read() } as usize;
        WORK.add_context(context);
        if !before && !LEDGER.primary_made(context, dev) {
            // Another thread was first: one context, counted once.
            LEDGER.return_context(dev);
            libraries.forget();
        } else {
            libraries.count_context(context);
            if !before {
                LEDGER.measure_context(context, dev);
            }
        }
        PAGER.context_made(context, dev);
    } else if !before {
        LEDGER.return_context(dev);
        libraries.forget();
    }
    result
}

/// CU_LIMIT_STACK_SIZE, CU_LIMIT_PRINTF_FIFO_SIZE, CU_LIMIT_MALLOC_HEAP_SIZE
const STACK: c_uint = 0;
const PRINTF: c_uint = 1;
const HEAP: c_uint = 2;
/// CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, …_MAX_THREADS_PER_MULTIPROCESSOR
const MULTIPROCESSORS: c_uint = 16;
const THREADS: c_uint = 39;

/// Memory that kernels find in their context. What a context begins with is part of the context's size.
pub(crate) unsafe fn cuCtxSetLimit(limit: c_uint, value: usize) -> CuResult {
    // SAFETY: the program's own arguments.
    let call = || unsafe { real::cuCtxSetLimit(limit, value) };
    let Some(device) = current_device() else { return call() };
    let each = match limit {
        // A stack for each thread that can be there at once.
        STACK => attribute(MULTIPROCESSORS, device) * attribute(THREADS, device),
        PRINTF | HEAP => 1,
        _ => return call(),
    };
    let mut before = 0;
    // SAFETY: a place on this stack.
    if !unsafe { real::cuCtxGetLimit(&raw mut before, limit) }.is_success() {
        return call();
    }
    let key = Key::Limit(current_context(), limit);
    let bytes = |values: usize| (values as u64).saturating_mul(each);
    if value <= before {
        let result = call();
        if result.is_success() {
            LEDGER.shrunk(key, bytes(before - value));
        }
        return result;
    }
    let Some(promise) = LEDGER.reserve_exactly("cuCtxSetLimit", device, bytes(value - before))
    else {
        return CuResult::OUT_OF_MEMORY;
    };
    let result = call();
    match result.is_success() {
        true => LEDGER.grown(promise, key, current_context()),
        false => LEDGER.forget(promise),
    }
    result
}

fn attribute(attribute: c_uint, device: c_int) -> u64 {
    let mut value: c_int = 0;
    // SAFETY: a place on this stack.
    let result = unsafe { real::cuDeviceGetAttribute(&raw mut value, attribute, device) };
    if result.is_success() { value.max(0) as u64 } else { 0 }
}

fn primary_active(device: c_int) -> bool {
    let (mut flags, mut active) = (0, 0);
    // SAFETY: two places on this stack.
    let result =
        unsafe { real::cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active) };
    result.is_success() && active != 0
}

/// A call that lets go of a device's primary context, which may go with it.
pub(super) fn release(device: c_int, call: impl FnOnce() -> CuResult) -> CuResult {
    let Some(context) = LEDGER.primary(device) else { return call() };
    let leaving = WORK.remove_context(context);
    PAGER.retire_context(context);
    let result = call();
    // Retained elsewhere still, or the call failed: then it lives on.
    match primary_active(device) {
        true => {
            leaving.restore();
            PAGER.restore_context(context);
        }
        false => {
            LEDGER.context_gone(context);
            PAGER.context_gone(context);
            ipc::context_gone(context);
        }
    }
    result
}

macro_rules! release {
    ($($symbol:ident;)*) => {$(
        pub(crate) unsafe fn $symbol(dev: c_int) -> CuResult {
            // SAFETY: the program's own argument.
            release(dev, || unsafe { real::$symbol(dev) })
        }
    )*};
}

release! {
    cuDevicePrimaryCtxRelease;
    cuDevicePrimaryCtxRelease_v2;
    cuDevicePrimaryCtxReset;
    cuDevicePrimaryCtxReset_v2;
}
