//! Conditional nodes: graphs inside of a graph that run as often as a value says which kernels set.
#![allow(unsafe_code)] // C pointers

use std::ffi::c_uint;

use acb_cuda_abi::sys;

use super::graph::add;
use super::put;
use crate::code::{INVALID_CONTEXT, INVALID_VALUE, Outcome};
use crate::conditions;
use crate::driver;
use crate::graph::{Branching, Conditional, Graph, Task};
use crate::handles::Handle;

/// `CU_GRAPH_COND_ASSIGN_DEFAULT`
const ASSIGN_DEFAULT: c_uint = 1;

/// `CUDA_CONDITIONAL_NODE_PARAMS`, with kinds as numbers.
#[repr(C)]
pub(super) struct Parameters {
    handle: u64,
    kind: c_uint,
    size: c_uint,
    graphs: *const u64,
    context: u64,
}

calls! {
    fn cuGraphConditionalHandleCreate(
        handle: *mut u64,
        graph: sys::CUgraph,
        context: sys::CUcontext,
        default: c_uint,
        flags: c_uint,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let graph = Handle::from_bits(graph as u64);
        tables.graphs.get(graph).ok_or(INVALID_VALUE)?;
        if context.is_null() {
            driver.current(&tables)?;
        } else {
            tables.context(Handle::from_bits(context as u64)).map_err(|_| INVALID_CONTEXT)?;
        }
        if handle.is_null() || flags & !ASSIGN_DEFAULT != 0 {
            return Err(INVALID_VALUE);
        }
        let id = tables.next_id();
        let default = (flags & ASSIGN_DEFAULT != 0).then_some(default);
        put(handle, conditions::make(graph, id, default))
    }
}

/// # Safety
/// `node` is null or may be written, there are `count` dependencies, and `parameters` is the structure that it should be.
pub(super) unsafe fn add_conditional(
    node: *mut sys::CUgraphNode,
    graph: sys::CUgraph,
    dependencies: *const sys::CUgraphNode,
    count: usize,
    parameters: *mut Parameters,
) -> Outcome {
    // SAFETY: the caller vouches for it; kinds are read as numbers, for a program may have written any.
    let (condition, kind, size) =
        unsafe { ((*parameters).handle, (*parameters).kind, (*parameters).size) };
    let branching = match (kind, size) {
        (0, 1 | 2) => Branching::If,
        (1, 1) => Branching::While,
        (2, 1..) => Branching::Switch,
        _ => return Err(INVALID_VALUE),
    };
    let mut places = std::ptr::null();
    // SAFETY: the caller vouches for them.
    unsafe {
        add(node, graph, dependencies, count, |_, tables| {
            let own = conditions::graph_of(condition).ok_or(INVALID_VALUE)?;
            if !tables.is_within(Handle::from_bits(graph as u64), own) {
                return Err(INVALID_VALUE);
            }
            conditions::take(condition);
            let inside = || Graph { inside: true, ..Graph::default() };
            let bodies: Vec<_> = (0..size).map(|_| tables.graphs.insert(inside())).collect();
            let shown: std::sync::Arc<[u64]> = bodies.iter().map(|body| body.bits()).collect();
            places = shown.as_ptr();
            Ok(Task::Conditional(Conditional { condition, branching, bodies, shown }))
        })?;
        (&raw mut (*parameters).graphs).write(places);
    }
    Ok(())
}
