//! Captures and graphs.
#![allow(unsafe_code)] // FFI: a CUDA program calls C functions.

use crate::client::{Cuda, Handle, NULL, function};
use std::ffi::{c_int, c_uint};

/// Begins or ends a capture in the relaxed mode.
pub(super) fn capture(cuda: &Cuda, stream: Handle, begin: bool) {
    // SAFETY: as declared.
    let result = unsafe {
        if begin {
            function!(cuda, "cuStreamBeginCapture_v2", fn(Handle, c_uint))(stream, 2)
        } else {
            let mut graph = NULL;
            function!(cuda, "cuStreamEndCapture", fn(Handle, *mut Handle))(stream, &raw mut graph)
        }
    };
    println!("{}={result}", if begin { "capturing" } else { "captured" });
}

/// An executable graph of one copy.
pub(super) fn copying_graph(cuda: &Cuda, (from, bytes): (u64, usize), to: u64) -> Handle {
    // CUDA_MEMCPY3D: two sides of eleven words, then width, height and depth.
    let side = |address: u64| [0, 0, 0, 0, 2, 0, address, 0, 0, 0, 0];
    let shape: Vec<u64> =
        side(from).into_iter().chain(side(to)).chain([bytes as u64, 1, 1]).collect();
    let (mut graph, mut node, mut executable) = (NULL, NULL, NULL);
    let mut context = NULL;
    // SAFETY: as declared.
    unsafe {
        assert_eq!(function!(cuda, "cuCtxGetCurrent", fn(*mut Handle))(&raw mut context), 0);
        let make = function!(cuda, "cuGraphCreate", fn(*mut Handle, c_uint));
        assert_eq!(make(&raw mut graph, 0), 0);
        let add = function!(
            cuda,
            "cuGraphAddMemcpyNode",
            fn(*mut Handle, Handle, *const Handle, usize, *const u64, Handle)
        );
        println!(
            "node={}",
            add(&raw mut node, graph, std::ptr::null(), 0, shape.as_ptr(), context)
        );
        let instantiate =
            function!(cuda, "cuGraphInstantiateWithFlags", fn(*mut Handle, Handle, u64));
        println!("instantiated={}", instantiate(&raw mut executable, graph, 0));
    }
    executable
}

pub(super) fn run_graph(cuda: &Cuda, graph: Handle) -> c_int {
    // SAFETY: as declared.
    let result = unsafe { function!(cuda, "cuGraphLaunch", fn(Handle, Handle))(graph, NULL) };
    result.max(cuda.synchronize())
}
