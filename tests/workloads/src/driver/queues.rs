//! Streams, what is allocated in their order, graphs, events, and functions of the program's own.
//!
//! Owns: these calls. Does not own: what is captured.
#![allow(unsafe_code)] // FFI: calls of the driver.

use std::ffi::{c_uint, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

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
    create_event = "cuEventCreate"(*mut *mut c_void, c_uint);
    record = "cuEventRecord"(*mut c_void, *mut c_void);
    wait = "cuStreamWaitEvent"(*mut c_void, *mut c_void, c_uint);
    destroy_event = "cuEventDestroy_v2"(*mut c_void);
    host_function = "cuLaunchHostFunc"(*mut c_void, extern "C" fn(*mut c_void), *mut c_void);
}

/// `CU_STREAM_NON_BLOCKING`
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`
const WITHOUT_TIMES: c_uint = 2;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`
const THREAD_LOCAL: c_uint = 1;

/// Functions that ran when so many had run before them, and those that did not.
static TOLD: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// How many functions have run in their order, and how many out of it.
pub fn told() -> (u64, u64) {
    (TOLD[0].load(Ordering::SeqCst), TOLD[1].load(Ordering::SeqCst))
}

extern "C" fn tell(turn: *mut c_void) {
    let turn = turn.addr() as u64;
    let in_order = TOLD[0].compare_exchange(turn, turn + 1, Ordering::SeqCst, Ordering::SeqCst);
    if in_order.is_err() {
        TOLD[1].fetch_add(1, Ordering::SeqCst);
    }
}

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

    /// What is submitted to `later` from now on waits for what is in `earlier`: `cuEventRecord`, `cuStreamWaitEvent`.
    pub fn join(&self, earlier: Stream, later: Stream) -> Result<(), DriverError> {
        let mut event = ptr::null_mut();
        call!(self, create_event(&mut event, WITHOUT_TIMES))?;
        call!(self, record(event, earlier.handle))?;
        call!(self, wait(later.handle, event, 0))?;
        // The driver keeps it as long as somebody waits for it.
        call!(self, destroy_event(event))
    }

    /// A function of the program runs in the stream, as the `turn`th of all.
    pub fn tell(&self, stream: Stream, turn: u64) -> Result<(), DriverError> {
        call!(self, host_function(stream.handle, tell, ptr::without_provenance_mut(turn as usize)))
    }
}
