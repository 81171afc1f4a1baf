//! Nodes of any kind, by one structure for all: each goes the way of its own kind.
#![allow(unsafe_code)] // C pointers

use std::ffi::c_uint;

use acb_cuda_abi::sys;

use super::all::*;
use crate::code::{INVALID_VALUE, NOT_SUPPORTED, Outcome};
use crate::driver;

calls! {
    fn cuGraphAddNode(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        parameters: *mut sys::CUgraphNodeParams,
    ) {
        let kind = kind_of(parameters)?;
        let p = &raw mut (*parameters).__bindgen_anon_1;
        match kind {
            // What it has more than the second version is for devices of one kind.
            0 => cuGraphAddKernelNode_v2(node, graph, dependencies, count, (&raw const (*p).kernel).cast()),
            1 => {
                let (shape, context) = copy_of(p);
                cuGraphAddMemcpyNode(node, graph, dependencies, count, shape, context)
            }
            2 => {
                let context = (*p).memset.ctx;
                cuGraphAddMemsetNode(node, graph, dependencies, count, (&raw const (*p).memset).cast(), context)
            }
            3 => cuGraphAddHostNode(node, graph, dependencies, count, (&raw const (*p).host).cast()),
            4 => {
                // Its ownership is read as a number: a program may have written any.
                let ownership = (&raw const (*p).graph).cast::<u8>().add(8).cast::<c_uint>().read();
                let child = (*p).graph.graph;
                match ownership {
                    0 => cuGraphAddChildGraphNode(node, graph, dependencies, count, child),
                    1 => move_child(node, graph, dependencies, count, child),
                    _ => Err(INVALID_VALUE),
                }
            }
            5 => cuGraphAddEmptyNode(node, graph, dependencies, count),
            6 => cuGraphAddEventWaitNode(node, graph, dependencies, count, (*p).eventWait.event),
            7 => cuGraphAddEventRecordNode(node, graph, dependencies, count, (*p).eventRecord.event),
            10 => cuGraphAddMemAllocNode(node, graph, dependencies, count, (&raw mut (*p).alloc).cast()),
            11 => cuGraphAddMemFreeNode(node, graph, dependencies, count, (*p).free.dptr),
            13 => super::conditional::add_conditional(node, graph, dependencies, count, p.cast()),
            _ => Err(NOT_SUPPORTED),
        }
    }

    fn cuGraphAddNode_v2(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        data: *const sys::CUgraphEdgeData,
        count: usize,
        parameters: *mut sys::CUgraphNodeParams,
    ) {
        // Edges of other kinds than the usual have something to say.
        let words = |at: usize| data.add(at).cast::<u64>().read_unaligned();
        if !data.is_null() && (0..count).any(|at| words(at) != 0) {
            return Err(NOT_SUPPORTED);
        }
        cuGraphAddNode(node, graph, dependencies, count, parameters)
    }

    fn cuGraphNodeSetParams(node: sys::CUgraphNode, parameters: *mut sys::CUgraphNodeParams) {
        let kind = kind_of(parameters)?;
        let p = &raw mut (*parameters).__bindgen_anon_1;
        match kind {
            0 => cuGraphKernelNodeSetParams_v2(node, (&raw const (*p).kernel).cast()),
            1 => cuGraphMemcpyNodeSetParams(node, copy_of(p).0),
            2 => cuGraphMemsetNodeSetParams(node, (&raw const (*p).memset).cast()),
            3 => cuGraphHostNodeSetParams(node, (&raw const (*p).host).cast()),
            _ => Err(NOT_SUPPORTED),
        }
    }
}

/// Its number; a program may have written any.
///
/// # Safety
/// `parameters` is null or the structure that it should be.
unsafe fn kind_of(parameters: *const sys::CUgraphNodeParams) -> Outcome<c_uint> {
    driver::get()?;
    if parameters.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null; the kind comes first.
    Ok(unsafe { parameters.cast::<c_uint>().read() })
}

/// # Safety
/// `p` is the structure's part for its kind, which is a copy.
unsafe fn copy_of(
    p: *const sys::CUgraphNodeParams_st__bindgen_ty_1,
) -> (*const sys::CUDA_MEMCPY3D, sys::CUcontext) {
    // SAFETY: the caller vouches for it.
    unsafe { (&raw const (*p).memcpy.copyParams, (*p).memcpy.copyCtx) }
}
