//! Streams, what is allocated in their order, and graphs.
//!
//! Owns: these calls. Does not own: what is captured.
#![allow(unsafe_code)] // FFI: calls of the driver.

use std::ffi::{c_uint, c_void};
use std::ptr;

use super::{DevicePtr, Driver, DriverError, Stream};

functions! {
    create = "cuStreamCreate"(*mut *mut c_void, c_uint);
    destroy = "cuStreamDestroy_v2"(*mut c_void);
    synchronize = "cuStreamSynchronize"(*mut c_void);
    alloc = "cuMemAllocAsync"(*mut DevicePtr, usize, *mut c_void);
    free = "cuMemFreeAsync"(DevicePtr, *mut c_void);
    begin = "cuStreamBeginCapture_v2"(*mut c_void, c_uint);
    end = "cuStreamEndCapture"(*mut c_void, *mut *mut c_void);
    instantiate = "cuGraphInstantiateWithFlags"(*mut *mut c_void, *mut c_void, u64);
    launch = "cuGraphLaunch"(*mut c_void, *mut c_void);
    destroy_graph = "cuGraphDestroy"(*mut c_void);
    destroy_exec = "cuGraphExecDestroy"(*mut c_void);
}

/// `CU_STREAM_NON_BLOCKING`
const NON_BLOCKING: c_uint = 1;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`
const THREAD_LOCAL: c_uint = 1;

/// The calls.
#[derive(Clone, Copy)]
pub struct Queues<'a> {
    driver: &'a Driver,
    table: Table,
}

/// A graph that can be launched.
#[derive(Clone, Copy, Debug)]
pub struct Graph {
    exec: *mut c_void,
}

impl<'a> Queues<'a> {
    /// Finds them.
    pub fn of(driver: &'a Driver) -> Result<Self, DriverError> {
        Ok(Self { driver, table: Table::load(&driver.library)? })
    }

    fn error(&self, call: &'static str, code: u32) -> DriverError {
        self.driver.error(call, code)
    }

    /// A stream that does not wait for the default stream.
    pub fn create(&self) -> Result<Stream, DriverError> {
        let mut handle = ptr::null_mut();
        call!(self, create(&mut handle, NON_BLOCKING))?;
        Ok(Stream { handle })
    }

    /// `cuStreamDestroy`.
    pub fn destroy(&self, stream: Stream) -> Result<(), DriverError> {
        call!(self, destroy(stream.handle))
    }

    /// `cuStreamSynchronize`.
    pub fn synchronize(&self, stream: Stream) -> Result<(), DriverError> {
        call!(self, synchronize(stream.handle))
    }

    /// `cuMemAllocAsync`.
    pub fn alloc(&self, stream: Stream, bytes: usize) -> Result<DevicePtr, DriverError> {
        let mut pointer = 0;
        call!(self, alloc(&mut pointer, bytes, stream.handle))?;
        Ok(pointer)
    }

    /// `cuMemFreeAsync`.
    pub fn free(&self, stream: Stream, pointer: DevicePtr) -> Result<(), DriverError> {
        call!(self, free(pointer, stream.handle))
    }

    /// Captures what `submit` does on the stream, which is not the default one.
    pub fn capture<E: From<DriverError>>(
        &self,
        stream: Stream,
        submit: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        call!(self, begin(stream.handle, THREAD_LOCAL))?;
        let submitted = submit();
        let mut graph = ptr::null_mut();
        // Also after an error: the stream is not to stay in capture.
        let ended = call!(self, end(stream.handle, &mut graph));
        submitted?;
        ended?;
        let mut exec = ptr::null_mut();
        call!(self, instantiate(&mut exec, graph, 0))?;
        call!(self, destroy_graph(graph))?;
        Ok(Graph { exec })
    }

    /// `cuGraphLaunch`.
    pub fn replay(&self, graph: Graph, stream: Stream) -> Result<(), DriverError> {
        call!(self, launch(graph.exec, stream.handle))
    }

    /// `cuGraphExecDestroy`.
    pub fn forget(&self, graph: Graph) -> Result<(), DriverError> {
        call!(self, destroy_exec(graph.exec))
    }
}
