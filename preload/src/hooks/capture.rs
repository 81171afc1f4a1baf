//! Captures begin and end: while one is under way, nothing is asked of the driver and no lease
//! goes back, for either could spoil the graph.
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use crate::pager::PAGER;
use crate::table::real;
use crate::work::{PER_THREAD, WORK};
use acb_cuda_abi::{CuResult, StreamForm, sys};
use std::ffi::*;

macro_rules! begin {
    ($($symbol:ident $form:ident ($stream:ident $(, $parameter:ident: $kind:ty)*);)*) => {$(
        pub(crate) unsafe fn $symbol($stream: sys::CUstream $(, $parameter: $kind)*) -> CuResult {
            let (stream, thread) = key($stream, StreamForm::$form);
            let new = WORK.begin_capture(stream, thread);
            // SAFETY: the program's own arguments.
            let result = unsafe { real::$symbol($stream $(, $parameter)*) };
            if !result.is_success() && new {
                WORK.end_capture(stream, thread);
            }
            result
        }
    )*};
}

/// A capture is over even if its end fails.
macro_rules! end {
    ($($symbol:ident $form:ident ($stream:ident $(, $parameter:ident: $kind:ty)*);)*) => {$(
        pub(crate) unsafe fn $symbol($stream: sys::CUstream $(, $parameter: $kind)*) -> CuResult {
            let (stream, thread) = key($stream, StreamForm::$form);
            let recorded = super::graph::captured(stream);
            // SAFETY: the program's own arguments.
            let result = unsafe { real::$symbol($stream $(, $parameter)*) };
            WORK.end_capture(stream, thread);
            // What came of a capture that failed is gone.
            if let Some(graph) = recorded
                && !result.is_success()
            {
                super::graph::gone(graph);
            }
            PAGER.capture_ended();
            result
        }
    )*};
}

begin! {
    cuStreamBeginCapture Legacy (stream);
    cuStreamBeginCapture_ptsz PerThread (stream);
    cuStreamBeginCapture_v2 Legacy (stream, mode: c_uint);
    cuStreamBeginCapture_v2_ptsz PerThread (stream, mode: c_uint);
    cuStreamBeginCaptureToGraph Legacy (stream, graph: sys::CUgraph, dependencies: *const sys::CUgraphNode,
        data: *const sys::CUgraphEdgeData, count: usize, mode: c_uint);
    cuStreamBeginCaptureToGraph_ptsz PerThread (stream, graph: sys::CUgraph, dependencies: *const sys::CUgraphNode,
        data: *const sys::CUgraphEdgeData, count: usize, mode: c_uint);
    cuStreamBeginRecaptureToGraph Legacy (stream, mode: c_uint, graph: sys::CUgraph, callback: *mut c_void, data: *mut c_void);
    cuStreamBeginRecaptureToGraph_ptsz PerThread (stream, mode: c_uint, graph: sys::CUgraph, callback: *mut c_void, data: *mut c_void);
    cuStreamBeginCaptureToCig Legacy (stream, parameters: *mut c_void);
    cuStreamBeginCaptureToCig_ptsz PerThread (stream, parameters: *mut c_void);
}

end! {
    cuStreamEndCapture Legacy (stream, graph: *mut sys::CUgraph);
    cuStreamEndCapture_ptsz PerThread (stream, graph: *mut sys::CUgraph);
    cuStreamEndCaptureToCig Legacy (stream);
    cuStreamEndCaptureToCig_ptsz PerThread (stream);
}

/// Names a capture: by its stream, and for a per-thread default stream by its thread too.
fn key(stream: sys::CUstream, form: StreamForm) -> (usize, u64) {
    let handle = stream as usize;
    if handle == PER_THREAD || (handle == 0 && form == StreamForm::PerThread) {
        (PER_THREAD, rustix::thread::gettid().as_raw_nonzero().get() as u64)
    } else {
        (handle, 0)
    }
}
