//! Graphs come and go: their memory is the driver's, comes when they run and stays until they are gone.
//!
//! Owns: the calls. Does not own: how much a graph needs (`graphs`), the account (`memory`).
#![allow(unsafe_code, non_snake_case)] // FFI: the driver's functions under their own names.
#![allow(clippy::missing_safety_doc)] // Each is called by its export, with the program's arguments.

use super::memory::{current_device, is_captured, rounded};
use super::submit;
use crate::graphs::{GRAPHS, GraphId, Handle, leaving};
use crate::memory::{Key, LEDGER};
use crate::table::real;
use crate::work::current_context;
use acb_cuda_abi::{CuResult, StreamForm, sys};
use std::ffi::*;

/// CU_GRAPH_NODE_TYPE_GRAPH, …_MEM_ALLOC, …_MEM_FREE
const HAS_CHILD: u32 = 4;
const ALLOCATES: u32 = 10;
const FREES: u32 = 11;
/// CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE
const MOVED: u32 = 1;

/// The graph that a stream is captured into.
pub(super) fn captured(stream: Handle) -> Option<Handle> {
    if !is_captured(stream) {
        return None;
    }
    let (mut status, mut graph): (c_uint, sys::CUgraph) = (0, std::ptr::null_mut());
    // SAFETY: the program's own stream, places on this stack, and what is not wanted.
    let result = unsafe {
        real::cuStreamGetCaptureInfo_v2(
            stream as sys::CUstream,
            &raw mut status,
            std::ptr::null_mut(),
            &raw mut graph,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    (result.is_success() && !graph.is_null()).then_some(graph as Handle)
}

/// An allocation in the current context's device that a graph makes when it runs.
///
/// # Safety
/// `place` is where `call` puts the address when it succeeds.
pub(super) unsafe fn allocate(
    symbol: &str,
    graph: Handle,
    bytes: u64,
    place: *const u64,
    call: impl FnOnce() -> CuResult,
) -> CuResult {
    match current_device() {
        // SAFETY: the caller vouches for it.
        Some(device) => unsafe { allocate_on(symbol, graph, (device, bytes), place, call) },
        None => call(),
    }
}

/// # Safety
/// As above.
unsafe fn allocate_on(
    symbol: &str,
    graph: Handle,
    (device, bytes): (c_int, u64),
    place: *const u64,
    call: impl FnOnce() -> CuResult,
) -> CuResult {
    leaving::settle();
    let bytes = rounded(bytes);
    let growth = GRAPHS.growth(graph, device as u32, bytes);
    let Some(promise) = LEDGER.reserve_exactly(symbol, device, growth) else {
        return CuResult::OUT_OF_MEMORY;
    };
    let result = call();
    match result.is_success() {
        true => {
            // SAFETY: the call succeeded.
            let address = unsafe { place.read_unaligned() };
            let GraphId(id) = GRAPHS.allocates(graph, device as u32, address, bytes);
            LEDGER.grown(promise, Key::Graph(id, device as u32), current_context());
        }
        false => LEDGER.forget(promise),
    }
    result
}

/// A free that a graph makes when it runs.
pub(super) fn free(graph: Handle, address: u64, call: impl FnOnce() -> CuResult) -> CuResult {
    let result = call();
    if result.is_success() {
        GRAPHS.frees(graph, address);
    }
    result
}

/// A graph is destroyed.
pub(super) fn gone(graph: Handle) {
    leaving::add(GRAPHS.destroyed(graph));
}

pub(crate) unsafe fn cuGraphAddMemAllocNode(
    phGraphNode: *mut sys::CUgraphNode,
    hGraph: sys::CUgraph,
    dependencies: *const sys::CUgraphNode,
    numDependencies: usize,
    nodeParams: *mut sys::CUDA_MEM_ALLOC_NODE_PARAMS,
) -> CuResult {
    // SAFETY: the program's own arguments.
    let call = || unsafe {
        real::cuGraphAddMemAllocNode(phGraphNode, hGraph, dependencies, numDependencies, nodeParams)
    };
    // SAFETY: NULL or the node's parameters.
    match unsafe { Wanted::read(nodeParams.cast()) } {
        // SAFETY: the driver writes the address there.
        Some(wanted) => unsafe { wanted.allocate("cuGraphAddMemAllocNode", hGraph, call) },
        None => call(),
    }
}

pub(crate) unsafe fn cuGraphAddMemFreeNode(
    phGraphNode: *mut sys::CUgraphNode,
    hGraph: sys::CUgraph,
    dependencies: *const sys::CUgraphNode,
    numDependencies: usize,
    dptr: u64,
) -> CuResult {
    // SAFETY: the program's own arguments.
    free(hGraph as Handle, dptr, || unsafe {
        real::cuGraphAddMemFreeNode(phGraphNode, hGraph, dependencies, numDependencies, dptr)
    })
}

/// What an allocation node asks for.
struct Wanted {
    device: c_int,
    bytes: u64,
    /// Where the driver puts the address.
    place: *const u64,
}

impl Wanted {
    /// # Safety
    /// `parameters` is NULL or a CUDA_MEM_ALLOC_NODE_PARAMS, of either version.
    unsafe fn read(parameters: *const u8) -> Option<Self> {
        // SAFETY: not NULL; kinds are read as numbers: those of the allocation and of its handles, kind and number of the location.
        // Behind it, and what is reserved, are the devices that may use it, how many they are, the bytes, the address.
        unsafe {
            let [_, _, _, device] = parameters.cast::<[u32; 4]>().as_ref().copied()?;
            let bytes = parameters.add(104).cast::<u64>().read_unaligned();
            Some(Wanted { device: device as c_int, bytes, place: parameters.add(112).cast() })
        }
    }

    /// # Safety
    /// `call` puts the address in its place when it succeeds.
    unsafe fn allocate(
        self,
        symbol: &str,
        graph: sys::CUgraph,
        call: impl FnOnce() -> CuResult,
    ) -> CuResult {
        let Wanted { device, bytes, place } = self;
        // SAFETY: the caller vouches for it.
        unsafe { allocate_on(symbol, graph as Handle, (device, bytes), place, call) }
    }
}

/// A node of any kind: inside the gate, for it may name memory.
///
/// # Safety
/// `parameters` is NULL or a CUgraphNodeParams, which `call` reads and writes.
unsafe fn add_node(
    graph: sys::CUgraph,
    parameters: *const sys::CUgraphNodeParams,
    call: impl Fn() -> CuResult,
) -> CuResult {
    let fields: *const u8 = parameters.cast();
    // SAFETY: NULL, or it begins with the node's kind.
    match unsafe { fields.cast::<u32>().as_ref() } {
        // SAFETY: such parameters begin behind 16 bytes; the driver puts the address there.
        Some(&ALLOCATES) => match unsafe { Wanted::read(fields.add(16)) } {
            // SAFETY: as above.
            Some(wanted) => unsafe { wanted.allocate("cuGraphAddNode", graph, call) },
            None => call(),
        },
        Some(&FREES) => {
            // SAFETY: likewise: an address.
            let address = unsafe { fields.add(16).cast::<u64>().read_unaligned() };
            free(graph as Handle, address, call)
        }
        Some(&HAS_CHILD) => {
            // SAFETY: likewise: the child, and how it is taken.
            let (child, taken) = unsafe {
                (fields.add(16).cast::<usize>().read(), fields.add(24).cast::<u32>().read())
            };
            let result = submit::pass("cuGraphAddNode", false, call);
            if result.is_success() && taken == MOVED {
                GRAPHS.moved(child, graph as Handle);
            }
            result
        }
        _ => submit::pass("cuGraphAddNode", false, call),
    }
}

pub(crate) unsafe fn cuGraphAddNode(
    phGraphNode: *mut sys::CUgraphNode,
    hGraph: sys::CUgraph,
    dependencies: *const sys::CUgraphNode,
    numDependencies: usize,
    nodeParams: *mut sys::CUgraphNodeParams,
) -> CuResult {
    // SAFETY: the program's own arguments.
    unsafe {
        add_node(hGraph, nodeParams, || {
            real::cuGraphAddNode(phGraphNode, hGraph, dependencies, numDependencies, nodeParams)
        })
    }
}

macro_rules! add_node_with_edges {
    ($($symbol:ident)*) => {$(
        pub(crate) unsafe fn $symbol(
            phGraphNode: *mut sys::CUgraphNode,
            hGraph: sys::CUgraph,
            dependencies: *const sys::CUgraphNode,
            dependencyData: *const sys::CUgraphEdgeData,
            numDependencies: usize,
            nodeParams: *mut sys::CUgraphNodeParams,
        ) -> CuResult {
            // SAFETY: the program's own arguments.
            unsafe {
                add_node(hGraph, nodeParams, || {
                    real::$symbol(phGraphNode, hGraph, dependencies, dependencyData, numDependencies, nodeParams)
                })
            }
        }
    )*};
}

add_node_with_edges! { cuGraphAddNode_v2 cuGraphAddNode_v3 }

macro_rules! instantiate {
    ($($symbol:ident $form:ident ($($parameter:ident: $kind:ty),*);)*) => {$(
        pub(crate) unsafe fn $symbol(
            phGraphExec: *mut sys::CUgraphExec,
            hGraph: sys::CUgraph
            $(, $parameter: $kind)*
        ) -> CuResult {
            submit::note_form(StreamForm::$form);
            let result = submit::pass_growing(stringify!($symbol), false, || {
                // SAFETY: the program's own arguments.
                unsafe { real::$symbol(phGraphExec, hGraph $(, $parameter)*) }
            });
            if result.is_success() {
                // SAFETY: the driver has just written there.
                GRAPHS.instantiated(hGraph as Handle, unsafe { phGraphExec.read() } as Handle);
            }
            result
        }
    )*};
}

instantiate! {
    cuGraphInstantiate Legacy (phErrorNode: *mut sys::CUgraphNode, logBuffer: *mut c_char, bufferSize: usize);
    cuGraphInstantiate_v2 Legacy (phErrorNode: *mut sys::CUgraphNode, logBuffer: *mut c_char, bufferSize: usize);
    cuGraphInstantiateWithFlags Legacy (flags: u64);
    cuGraphInstantiateWithParams Legacy (instantiateParams: *mut sys::CUDA_GRAPH_INSTANTIATE_PARAMS);
    cuGraphInstantiateWithParams_ptsz PerThread (instantiateParams: *mut sys::CUDA_GRAPH_INSTANTIATE_PARAMS);
}

pub(crate) unsafe fn cuGraphDestroy(hGraph: sys::CUgraph) -> CuResult {
    // SAFETY: the program's own argument.
    let result = unsafe { real::cuGraphDestroy(hGraph) };
    if result.is_success() {
        gone(hGraph as Handle);
    }
    result
}

pub(crate) unsafe fn cuGraphExecDestroy(hGraphExec: sys::CUgraphExec) -> CuResult {
    // SAFETY: the program's own argument.
    let result = unsafe { real::cuGraphExecDestroy(hGraphExec) };
    if result.is_success() {
        leaving::add(GRAPHS.instance_destroyed(hGraphExec as Handle));
    }
    result
}
