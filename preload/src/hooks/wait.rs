//! Waiting calls: they pass through, and when they return the GPU has just finished something.

use crate::graphs::leaving;
use crate::link::LINK;
use acb_cuda_abi::CuResult;

#[inline(always)]
pub(crate) fn pass(call: impl FnOnce() -> CuResult) -> CuResult {
    let result = call();
    LINK.note_finished();
    // Not in a forked child, whose parent may have held the lock.
    if result.is_success() {
        leaving::settle();
    }
    result
}
