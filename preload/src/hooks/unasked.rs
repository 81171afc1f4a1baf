//! Memory that the driver takes for itself, unasked: where there is none, others make room and the call is made again.
//!
//! Owns: which calls those are, and the second try. Does not own: how much room is asked for, and what of it stays booked
//! (`memory::unasked`).
//!
//! Code that is loaded when it is first used, local memory of a large kernel, executable graphs, channels of streams: no call says
//! beforehand what they take. A GPU that is oversubscribed is full, so the holder would meet CUDA_ERROR_OUT_OF_MEMORY although
//! others' memory could be moved. A call that has failed so has done nothing, and the context is sound.

use super::memory::current_device;
use super::submit;
use crate::log::{info, warning};
use crate::memory::{LEDGER, size};
use crate::process;
use crate::work::WORK;
use acb_cuda_abi::CuResult;
use std::cell::Cell;

/// Submitting calls that may need such memory; what other files hook says so itself.
const GROWING: [&str; 6] = [
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuLaunchCooperativeKernel",
    "cuLaunchCooperativeKernelMultiDevice",
    "cuGraphLaunch",
    "cuGraphUpload",
];

/// Whether a symbol is one of them, in any form; known when this is compiled.
pub(crate) const fn grows(symbol: &str) -> bool {
    let mut at = 0;
    while at < GROWING.len() {
        if is_form_of(symbol.as_bytes(), GROWING[at].as_bytes()) {
            return true;
        }
        at += 1;
    }
    false
}

/// Whether `symbol` is `plain`, or that and a suffix.
const fn is_form_of(symbol: &[u8], plain: &[u8]) -> bool {
    if symbol.len() < plain.len() {
        return false;
    }
    let mut at = 0;
    while at < plain.len() {
        if symbol[at] != plain[at] {
            return false;
        }
        at += 1;
    }
    symbol.len() == plain.len() || symbol[plain.len()] == b'_'
}

/// A call, and once more if the driver had no memory for what it needed. Outside of the gate, and with no lock held. Calls that
/// pass the gate: [`submit::pass_growing`].
#[inline(always)]
pub(crate) fn again(symbol: &'static str, call: impl Fn() -> CuResult) -> CuResult {
    let result = call();
    if result == CuResult::OUT_OF_MEMORY { with_room(symbol, &call) } else { result }
}

/// A call that the driver had no memory for, once more; also an allocation for which there is room, as far as anybody knows.
#[cold]
#[inline(never)]
pub(crate) fn with_room(symbol: &'static str, call: &dyn Fn() -> CuResult) -> CuResult {
    const REFUSED: CuResult = CuResult::OUT_OF_MEMORY;
    // Nothing is asked of the driver while something is captured.
    if process::is_detached() || WORK.is_capturing() {
        return REFUSED;
    }
    let Some(device) = current_device() else { return REFUSED };
    let grown = inside(symbol, || LEDGER.uncounted(device));
    let promise = match LEDGER.reserve_unasked(device, grown) {
        None => return REFUSED,
        Some(Ok(promise)) => promise,
        Some(Err(reason)) => {
            warning!(
                "{symbol}: the driver needs memory of GPU {device} for itself and there is none, CUDA_ERROR_OUT_OF_MEMORY is \
                 returned: {reason}"
            );
            return REFUSED;
        }
    };
    let result = call();
    if !result.is_success() {
        if result == REFUSED {
            warning!(
                "{symbol}: the driver needs more memory of GPU {device} for itself than the {} that were made free, \
                 CUDA_ERROR_OUT_OF_MEMORY is returned: allocate less memory in this program, or end programs outside of slurm-acb \
                 on this GPU (nvidia-smi shows them)",
                size(promise.bytes())
            );
        }
        LEDGER.forget(promise);
        return result;
    }
    let taken = LEDGER.taken_unasked(promise, inside(symbol, || LEDGER.uncounted(device)));
    info!(
        "{symbol}: the driver has taken {} of GPU {device} for itself, others made room",
        size(taken)
    );
    result
}

/// Asks inside the gate, where no memory moves.
fn inside<T: Copy>(symbol: &'static str, ask: impl Fn() -> Option<T>) -> Option<T> {
    let answer = Cell::new(None);
    let _ = submit::pass(symbol, true, || {
        answer.set(ask());
        CuResult::SUCCESS
    });
    answer.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_in_all_forms_are_tried_again_and_copies_are_not() {
        for symbol in
            ["cuLaunchKernel", "cuLaunchKernel_ptsz", "cuLaunchKernelEx_ptsz", "cuGraphLaunch"]
        {
            assert!(grows(symbol), "{symbol}");
        }
        for symbol in ["cuLaunch", "cuLaunchHostFunc", "cuMemcpyHtoDAsync_v2", "cuGraphLaunchX"] {
            assert!(!grows(symbol), "{symbol}");
        }
    }
}
