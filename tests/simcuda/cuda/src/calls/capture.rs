//! Stream capture, which the software GPU does not have: no stream ever captures,
//! and beginning it (like all of graphs) answers CUDA_ERROR_NOT_SUPPORTED.
#![allow(unsafe_code)] // C pointers

use std::ffi::c_uint;

use acb_cuda_abi::sys;

use super::{put, put_wanted};
use crate::code::INVALID_VALUE;
use crate::driver;

/// `CU_STREAM_CAPTURE_STATUS_NONE`
const NONE: c_uint = 0;

calls! {
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) {
        driver::get()?;
        if mode.is_null() || mode.read() > 2 {
            return Err(INVALID_VALUE);
        }
        let before = driver::exchange_capture_mode(mode.read());
        put(mode, before)
    }
}

stream_calls! {
    fn cuStreamIsCapturing cuStreamIsCapturing_ptsz [form] (
        stream: sys::CUstream,
        status: *mut c_uint,
    ) {
        let driver = driver::get()?;
        driver.stream(&mut driver.lock(), stream as u64, form)?;
        put(status, NONE)
    }

    fn cuStreamGetCaptureInfo cuStreamGetCaptureInfo_ptsz [form] (
        stream: sys::CUstream,
        status: *mut c_uint,
        _id: *mut u64,
    ) {
        let driver = driver::get()?;
        driver.stream(&mut driver.lock(), stream as u64, form)?;
        put(status, NONE)
    }

    fn cuStreamGetCaptureInfo_v2 cuStreamGetCaptureInfo_v2_ptsz [form] (
        stream: sys::CUstream,
        status: *mut c_uint,
        _id: *mut u64,
        _graph: *mut sys::CUgraph,
        _dependencies: *const *mut sys::CUgraphNode,
        count: *mut usize,
    ) {
        let driver = driver::get()?;
        driver.stream(&mut driver.lock(), stream as u64, form)?;
        put_wanted(count, 0);
        put(status, NONE)
    }

    fn cuStreamGetCaptureInfo_v3 cuStreamGetCaptureInfo_v3_ptsz [form] (
        stream: sys::CUstream,
        status: *mut c_uint,
        _id: *mut u64,
        _graph: *mut sys::CUgraph,
        _dependencies: *const *mut sys::CUgraphNode,
        _edges: *const *mut sys::CUgraphEdgeData,
        count: *mut usize,
    ) {
        let driver = driver::get()?;
        driver.stream(&mut driver.lock(), stream as u64, form)?;
        put_wanted(count, 0);
        put(status, NONE)
    }
}
