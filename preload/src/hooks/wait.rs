//! Waiting calls: they pass through, and when they return the GPU has just finished something.

use crate::graphs::leaving;
use crate::link::LINK;
use acb_cuda_abi::CuResult;

#[inline(always)]
pub(crate) fn pass(call: impl FnOnce() -> CuResult) -> CuResult {
    let result = call();
    LINK.note_finished();
    leaving::settle();
    result
}
