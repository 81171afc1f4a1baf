//! Stream capture begins, ends, and is asked about.
#![allow(unsafe_code)] // C pointers

use std::ffi::c_uint;

use acb_cuda_abi::{StreamForm, sys};

use super::{nodes_of, put, put_wanted};
use crate::capture::Mode;
use crate::code::{INVALID_VALUE, Outcome, STREAM_CAPTURE_IMPLICIT};
use crate::driver;
use crate::handles::Handle;

/// `CUstreamCaptureStatus`
const NONE: c_uint = 0;
const ACTIVE: c_uint = 1;
const INVALIDATED: c_uint = 2;

calls! {
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) {
        driver::get()?;
        if mode.is_null() {
            return Err(INVALID_VALUE);
        }
        let before = driver::exchange_capture_mode(Mode::from_bits(mode.read())?);
        put(mode, before as c_uint)
    }
}

stream_calls! {
    fn cuStreamBeginCapture cuStreamBeginCapture_ptsz [form] (stream: sys::CUstream) {
        begin(stream, form, 0, None)
    }

    fn cuStreamBeginCapture_v2 cuStreamBeginCapture_v2_ptsz [form] (
        stream: sys::CUstream,
        mode: c_uint,
    ) {
        begin(stream, form, mode, None)
    }

    fn cuStreamBeginCaptureToGraph cuStreamBeginCaptureToGraph_ptsz [form] (
        stream: sys::CUstream,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        _edges: *const sys::CUgraphEdgeData,
        count: usize,
        mode: c_uint,
    ) {
        let behind = nodes_of(dependencies, count)?;
        begin(stream, form, mode, Some((Handle::from_bits(graph as u64), behind)))
    }

    fn cuStreamEndCapture cuStreamEndCapture_ptsz [form] (
        stream: sys::CUstream,
        graph: *mut sys::CUgraph,
    ) {
        let driver = driver::get()?;
        put(graph, std::ptr::null_mut())?;
        let mut tables = driver.lock();
        let stream = driver.stream(&mut tables, stream as u64, form)?;
        let handle = tables.end_capture(stream, driver::caller())?;
        put(graph, handle.bits() as sys::CUgraph)
    }

    fn cuStreamIsCapturing cuStreamIsCapturing_ptsz [form] (
        stream: sys::CUstream,
        status: *mut c_uint,
    ) {
        use std::ptr::null_mut;
        ask(stream, form, status, null_mut(), null_mut(), null_mut(), null_mut())
    }

    fn cuStreamGetCaptureInfo cuStreamGetCaptureInfo_ptsz [form] (
        stream: sys::CUstream,
        status: *mut c_uint,
        id: *mut u64,
    ) {
        use std::ptr::null_mut;
        ask(stream, form, status, id, null_mut(), null_mut(), null_mut())
    }

    fn cuStreamGetCaptureInfo_v2 cuStreamGetCaptureInfo_v2_ptsz [form] (
        stream: sys::CUstream,
        status: *mut c_uint,
        id: *mut u64,
        graph: *mut sys::CUgraph,
        dependencies: *const *mut sys::CUgraphNode,
        count: *mut usize,
    ) {
        ask(stream, form, status, id, graph, dependencies.cast_mut(), count)
    }

    fn cuStreamGetCaptureInfo_v3 cuStreamGetCaptureInfo_v3_ptsz [form] (
        stream: sys::CUstream,
        status: *mut c_uint,
        id: *mut u64,
        graph: *mut sys::CUgraph,
        dependencies: *const *mut sys::CUgraphNode,
        edges: *const *mut sys::CUgraphEdgeData,
        count: *mut usize,
    ) {
        // All edges are plain ones.
        put_wanted(edges.cast_mut(), std::ptr::null_mut());
        ask(stream, form, status, id, graph, dependencies.cast_mut(), count)
    }

    fn cuStreamUpdateCaptureDependencies cuStreamUpdateCaptureDependencies_ptsz [form] (
        stream: sys::CUstream,
        dependencies: *mut sys::CUgraphNode,
        count: usize,
        flags: c_uint,
    ) {
        update(stream, form, dependencies, count, flags)
    }

    fn cuStreamUpdateCaptureDependencies_v2 cuStreamUpdateCaptureDependencies_v2_ptsz [form] (
        stream: sys::CUstream,
        dependencies: *mut sys::CUgraphNode,
        _edges: *const sys::CUgraphEdgeData,
        count: usize,
        flags: c_uint,
    ) {
        update(stream, form, dependencies, count, flags)
    }
}

fn begin(
    stream: sys::CUstream,
    form: StreamForm,
    mode: c_uint,
    into: Option<(Handle<crate::graph::Graph>, Vec<Handle<crate::graph::Node>>)>,
) -> Outcome {
    let driver = driver::get()?;
    let mode = Mode::from_bits(mode)?;
    let mut tables = driver.lock();
    let stream = driver.stream(&mut tables, stream as u64, form)?;
    tables.begin_capture(stream, driver::caller(), mode, into)
}

/// # Safety
/// The pointers are null or may be written.
unsafe fn ask(
    stream: sys::CUstream,
    form: StreamForm,
    status: *mut c_uint,
    id: *mut u64,
    graph: *mut sys::CUgraph,
    dependencies: *mut *mut sys::CUgraphNode,
    count: *mut usize,
) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let stream = driver.stream(&mut tables, stream as u64, form)?;
    if tables.legacy_is_barred(stream) {
        return Err(STREAM_CAPTURE_IMPLICIT);
    }
    let capture = tables.streams.get(stream).and_then(|s| Some(s.part.as_ref()?.capture));
    let capture = capture.and_then(|capture| tables.captures.get(capture));
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        let Some(capture) = capture else {
            put_wanted(count, 0);
            return put(status, NONE);
        };
        put(status, if capture.invalid { INVALIDATED } else { ACTIVE })?;
        if capture.invalid {
            return Ok(());
        }
        put_wanted(id, capture.id);
        put_wanted(graph, capture.graph.bits() as sys::CUgraph);
        if let Some(part) = tables.streams.get_mut(stream).and_then(|s| s.part.as_mut()) {
            part.shown = part.behind.iter().map(|node| node.bits()).collect();
            put_wanted(count, part.shown.len());
            put_wanted(dependencies, part.shown.as_ptr() as *mut sys::CUgraphNode);
        }
    }
    Ok(())
}

/// # Safety
/// There are `count` dependencies.
unsafe fn update(
    stream: sys::CUstream,
    form: StreamForm,
    dependencies: *const sys::CUgraphNode,
    count: usize,
    flags: c_uint,
) -> Outcome {
    let driver = driver::get()?;
    if flags > 1 {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller vouches for the list.
    let nodes = unsafe { nodes_of(dependencies, count) }?;
    let mut tables = driver.lock();
    let stream = driver.stream(&mut tables, stream as u64, form)?;
    tables.set_behind(stream, nodes, flags == 0)
}
