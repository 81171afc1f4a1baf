//! Submitting calls: through the gate to the driver.
//!
//! Owns: the way in and out, and what a call tells about the streams in use.
//! Does not own: the gate, or waiting for a lease (`link`).
#![allow(unsafe_code)] // FFI: looks at parameters by their C types.

use super::unasked;
use crate::environment;
use crate::link::LINK;
use crate::pager::SYNCHRONOUS;
use crate::table::real;
use crate::work::{LEGACY, PER_THREAD, WORK};
use acb_cuda_abi::{CuResult, StreamForm, sys};
use std::any::TypeId;
use std::sync::atomic::Ordering;

/// Runs a submitting call when a lease is held, else waits for one.
#[inline(always)]
pub(crate) fn pass(
    symbol: &'static str,
    asynchronous: bool,
    call: impl FnOnce() -> CuResult,
) -> CuResult {
    if !LINK.enter()
        && let Err(result) = LINK.wait_for_lease(symbol)
    {
        return result;
    }
    // What does not wait for the GPU has no place at which the thread could be cancelled.
    let _whole = (!asynchronous).then(environment::uncancelled);
    let mut result = call();
    if !asynchronous {
        if SYNCHRONOUS.load(Ordering::Relaxed) && result.is_success() {
            result = wait_for_memory_operation(symbol);
        }
        LINK.note_finished();
    }
    LINK.gate.leave();
    result
}

/// The same for what may need memory of the driver's own. `call` is copied: taken by reference, all parameters of a launch would
/// have to be put into memory for a second try that hardly ever comes.
#[inline(always)]
pub(crate) fn pass_growing(
    symbol: &'static str,
    asynchronous: bool,
    call: impl Fn() -> CuResult + Copy,
) -> CuResult {
    let result = pass(symbol, asynchronous, call);
    if result == CuResult::OUT_OF_MEMORY { pass_again(symbol, asynchronous, call) } else { result }
}

#[cold]
#[inline(never)]
fn pass_again(
    symbol: &'static str,
    asynchronous: bool,
    call: impl Fn() -> CuResult + Copy,
) -> CuResult {
    unasked::with_room(symbol, &|| pass(symbol, asynchronous, call))
}

/// Copies and fills without a stream are done when this returns.
#[cold]
fn wait_for_memory_operation(symbol: &str) -> CuResult {
    if !symbol.starts_with("cuMemcpy") && !symbol.starts_with("cuMemset") {
        return CuResult::SUCCESS;
    }
    let stream = if symbol.ends_with("_ptds") { PER_THREAD } else { LEGACY };
    // SAFETY: one of the default streams, by its number.
    unsafe { real::cuStreamSynchronize(stream as sys::CUstream) }
}

/// Whether a parameter says on which stream the work goes: then the call does not wait for it.
#[inline(always)]
pub(crate) fn is_stream<T: 'static>(_: &T) -> bool {
    TypeId::of::<T>() == TypeId::of::<sys::CUstream>()
        || TypeId::of::<T>() == TypeId::of::<*const sys::CUlaunchConfig>()
}

/// A function of the per-thread form may use the thread's own default stream.
#[inline(always)]
pub(crate) fn note_form(form: StreamForm) {
    if form == StreamForm::PerThread {
        WORK.note_per_thread();
    }
}

/// Looks for the kernel and for the per-thread default stream among the parameters. The types are known when this is
/// compiled: nothing is left of it for parameters that are no streams.
///
/// # Safety
/// `parameter` is a driver function's parameter as the program gave it.
#[inline(always)]
pub(crate) unsafe fn note_parameter<T: Copy + 'static>(parameter: &T) {
    if TypeId::of::<T>() == TypeId::of::<sys::CUfunction>() {
        // SAFETY: T is CUfunction.
        let function = unsafe { std::mem::transmute_copy::<T, sys::CUfunction>(parameter) };
        WORK.note_kernel(function as usize);
        return;
    }
    let stream = if TypeId::of::<T>() == TypeId::of::<sys::CUstream>() {
        // SAFETY: T is CUstream.
        unsafe { std::mem::transmute_copy::<T, sys::CUstream>(parameter) }
    } else if TypeId::of::<T>() == TypeId::of::<*const sys::CUlaunchConfig>() {
        // SAFETY: T is a pointer to a CUlaunchConfig.
        let config =
            unsafe { std::mem::transmute_copy::<T, *const sys::CUlaunchConfig>(parameter) };
        // SAFETY: NULL, or the configuration that the driver is about to read.
        match unsafe { config.as_ref() } {
            Some(config) => config.hStream,
            None => return,
        }
    } else {
        return;
    };
    if stream as usize == PER_THREAD {
        WORK.note_per_thread();
    }
}
