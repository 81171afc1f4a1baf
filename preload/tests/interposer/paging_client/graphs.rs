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

/// An allocation in a busy stream, beside a capture that forbids everybody's unsafe calls. Memory that was freed in the stream is waited for by
/// then.
pub(super) fn allocate_beside_capture(
    cuda: &Cuda,
    stream: Handle,
    (freed, length): (u64, usize),
    bytes: usize,
) -> u64 {
    let other = cuda.stream();
    let (mut address, mut graph) = (0, NULL);
    // SAFETY: as declared.
    unsafe {
        let fill = function!(cuda, "cuMemsetD8Async", fn(u64, u8, usize, Handle));
        assert_eq!(fill(freed, 1, length, stream), 0);
        assert_eq!(function!(cuda, "cuMemFreeAsync", fn(u64, Handle))(freed, stream), 0);
        let begin = function!(cuda, "cuStreamBeginCapture_v2", fn(Handle, c_uint));
        assert_eq!(begin(other, 0), 0);
        let allocate = function!(cuda, "cuMemAllocAsync", fn(*mut u64, usize, Handle));
        println!("allocate={}", allocate(&raw mut address, bytes, stream));
        let end = function!(cuda, "cuStreamEndCapture", fn(Handle, *mut Handle));
        println!("captured={}", end(other, &raw mut graph));
        assert_eq!(function!(cuda, "cuStreamDestroy_v2", fn(Handle))(other), 0);
    }
    address
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
