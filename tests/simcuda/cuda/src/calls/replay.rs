//! Graphs made ready, changed, and run.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_char, c_uint, c_void};

use acb_cuda_abi::{StreamForm, sys};

use super::graph::put_no_node;
use super::node::{First, Second, copy_task, host_task, kernel, set_task};
use super::{put, put_wanted};
use crate::code::{GRAPH_EXEC_UPDATE_FAILURE, INVALID_VALUE, NOT_SUPPORTED, Outcome};
use crate::driver::{self, Driver};
use crate::graph::{Executable, Task};
use crate::handles::Handle;
use crate::objects::Tables;
use crate::unasked::Unasked;

/// Frees on launch, uploads, uses the nodes' priorities; launches from the device
/// are not there.
const KNOWN_FLAGS: u64 = 1 | 2 | 8;

calls! {
    fn cuGraphInstantiate(
        executable: *mut sys::CUgraphExec,
        graph: sys::CUgraph,
        error_node: *mut sys::CUgraphNode,
        log: *mut c_char,
        size: usize,
    ) {
        cuGraphInstantiate_v2(executable, graph, error_node, log, size)
    }

    fn cuGraphInstantiate_v2(
        executable: *mut sys::CUgraphExec,
        graph: sys::CUgraph,
        error_node: *mut sys::CUgraphNode,
        log: *mut c_char,
        size: usize,
    ) {
        put_no_node(error_node);
        if !log.is_null() && size > 0 {
            log.write(0);
        }
        instantiate(executable, graph, 0)
    }

    fn cuGraphInstantiateWithFlags(
        executable: *mut sys::CUgraphExec,
        graph: sys::CUgraph,
        flags: u64,
    ) {
        instantiate(executable, graph, flags)
    }

    fn cuGraphExecGetFlags(executable: sys::CUgraphExec, flags: *mut u64) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let found = tables.executables.get(Handle::from_bits(executable as u64));
        put(flags, found.ok_or(INVALID_VALUE)?.flags)
    }

    fn cuGraphExecGetId(executable: sys::CUgraphExec, id: *mut c_uint) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let found = tables.executables.get(Handle::from_bits(executable as u64));
        put(id, found.ok_or(INVALID_VALUE)?.id as c_uint)
    }

    fn cuGraphExecDestroy(executable: sys::CUgraphExec) {
        let driver = driver::get()?;
        let mut tables = driver.look(driver.lock());
        let handle = Handle::from_bits(executable as u64);
        // A run under way goes on.
        let found = tables.executables.remove(handle).ok_or(INVALID_VALUE)?;
        tables.remove_graph(found.graph);
        tables.graph_memory.keep_of(found.memory, found.last);
        tables.sweep_graph_memory();
        Ok(())
    }

    fn cuGraphExecKernelNodeSetParams(
        executable: sys::CUgraphExec,
        node: sys::CUgraphNode,
        parameters: *const c_void,
    ) {
        change(executable, node, 0, |driver, tables| {
            // SAFETY: the structure's first version, which the second begins with.
            unsafe { kernel(driver, tables, parameters.cast(), First) }
        })
    }

    fn cuGraphExecKernelNodeSetParams_v2(
        executable: sys::CUgraphExec,
        node: sys::CUgraphNode,
        parameters: *const sys::CUDA_KERNEL_NODE_PARAMS,
    ) {
        change(executable, node, 0, |driver, tables| {
            // SAFETY: null or the structure that it should be.
            unsafe { kernel(driver, tables, parameters, Second) }
        })
    }

    fn cuGraphExecMemcpyNodeSetParams(
        executable: sys::CUgraphExec,
        node: sys::CUgraphNode,
        shape: *const sys::CUDA_MEMCPY3D,
        context: sys::CUcontext,
    ) {
        change(executable, node, 1, |driver, tables| {
            // SAFETY: null or the structure that it should be.
            unsafe { copy_task(driver, tables, shape, context) }
        })
    }

    fn cuGraphExecMemsetNodeSetParams(
        executable: sys::CUgraphExec,
        node: sys::CUgraphNode,
        parameters: *const sys::CUDA_MEMSET_NODE_PARAMS,
        context: sys::CUcontext,
    ) {
        change(executable, node, 2, |driver, tables| {
            // SAFETY: null or the structure that it should be.
            unsafe { set_task(driver, tables, parameters, context) }
        })
    }

    fn cuGraphExecHostNodeSetParams(
        executable: sys::CUgraphExec,
        node: sys::CUgraphNode,
        parameters: *const sys::CUDA_HOST_NODE_PARAMS,
    ) {
        // SAFETY: null or the structure that it should be.
        change(executable, node, 3, |_, _| unsafe { host_task(parameters) })
    }

    fn cuGraphExecEventRecordNodeSetEvent(
        executable: sys::CUgraphExec,
        node: sys::CUgraphNode,
        event: sys::CUevent,
    ) {
        change(executable, node, 7, |_, tables| {
            let event = Handle::from_bits(event as u64);
            tables.event(event).map(|_| Task::Record(event))
        })
    }

    fn cuGraphExecEventWaitNodeSetEvent(
        executable: sys::CUgraphExec,
        node: sys::CUgraphNode,
        event: sys::CUevent,
    ) {
        change(executable, node, 6, |_, tables| {
            let event = Handle::from_bits(event as u64);
            tables.event(event).map(|_| Task::Wait(event))
        })
    }

    fn cuGraphNodeSetEnabled(
        executable: sys::CUgraphExec,
        node: sys::CUgraphNode,
        enabled: c_uint,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let own = own_node(&tables, executable, node)?;
        let node = tables.nodes.get_mut(own).ok_or(INVALID_VALUE)?;
        // Kernels, copies and fills can be left out.
        if node.task.kind() > 2 {
            return Err(INVALID_VALUE);
        }
        node.enabled = enabled != 0;
        Ok(())
    }

    fn cuGraphNodeGetEnabled(
        executable: sys::CUgraphExec,
        node: sys::CUgraphNode,
        enabled: *mut c_uint,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let own = own_node(&tables, executable, node)?;
        let node = tables.nodes.get(own).ok_or(INVALID_VALUE)?;
        if node.task.kind() > 2 {
            return Err(INVALID_VALUE);
        }
        put(enabled, c_uint::from(node.enabled))
    }

    fn cuGraphExecUpdate(
        executable: sys::CUgraphExec,
        graph: sys::CUgraph,
        error_node: *mut sys::CUgraphNode,
        result: *mut c_uint,
    ) {
        put_no_node(error_node);
        match update(executable, graph)? {
            Ok(()) => {
                put_wanted(result, 0);
                Ok(())
            }
            Err((unlike, node)) => {
                put_wanted(result, unlike);
                put_wanted(error_node, node as sys::CUgraphNode);
                Err(GRAPH_EXEC_UPDATE_FAILURE)
            }
        }
    }

    fn cuGraphExecUpdate_v2(
        executable: sys::CUgraphExec,
        graph: sys::CUgraph,
        info: *mut sys::CUgraphExecUpdateResultInfo,
    ) {
        if info.is_null() {
            return Err(INVALID_VALUE);
        }
        info.write_bytes(0, 1);
        match update(executable, graph)? {
            Ok(()) => Ok(()),
            Err((unlike, node)) => {
                info.cast::<c_uint>().write(unlike);
                (*info).errorNode = node as sys::CUgraphNode;
                Err(GRAPH_EXEC_UPDATE_FAILURE)
            }
        }
    }
}

stream_calls! {
    fn cuGraphInstantiateWithParams cuGraphInstantiateWithParams_ptsz [form] (
        executable: *mut sys::CUgraphExec,
        graph: sys::CUgraph,
        parameters: *mut sys::CUDA_GRAPH_INSTANTIATE_PARAMS,
    ) {
        const UPLOADS: u64 = 2;
        const DONE: c_uint = 0;
        const FAILED: c_uint = 1;
        if parameters.is_null() {
            return Err(INVALID_VALUE);
        }
        let result = (&raw mut (*parameters).result_out).cast::<c_uint>();
        put_no_node(&raw mut (*parameters).hErrNode_out);
        let made = instantiate(executable, graph, (*parameters).flags);
        result.write(if made.is_ok() { DONE } else { FAILED });
        made?;
        if (*parameters).flags & UPLOADS != 0 {
            return upload(executable.read(), (*parameters).hUploadStream, form);
        }
        Ok(())
    }

    fn cuGraphUpload cuGraphUpload_ptsz [form] (
        executable: sys::CUgraphExec,
        stream: sys::CUstream,
    ) {
        upload(executable, stream, form)
    }

    fn cuGraphLaunch cuGraphLaunch_ptsz [form] (
        executable: sys::CUgraphExec,
        stream: sys::CUstream,
    ) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let stream = driver.stream(&mut tables, stream as u64, form)?;
        driver.launch_graph(tables, Handle::from_bits(executable as u64), stream)
    }
}

/// # Safety
/// `executable` is null or may be written.
unsafe fn instantiate(
    executable: *mut sys::CUgraphExec,
    graph: sys::CUgraph,
    flags: u64,
) -> Outcome {
    let driver = driver::get()?;
    if executable.is_null() {
        return Err(INVALID_VALUE);
    }
    if flags & !KNOWN_FLAGS != 0 {
        return Err(if flags == 4 { NOT_SUPPORTED } else { INVALID_VALUE });
    }
    let mut tables = driver.lock();
    // Where it runs, a graph does not say before it has nodes; without a context nothing is taken.
    let gpu = driver.current(&tables).and_then(|context| Ok(tables.context(context)?.gpu));
    let taken = match gpu {
        Ok(gpu) => Unasked::take(gpu, driver.config.gpus[gpu].graph_bytes)?,
        Err(_) => Unasked::take(0, 0)?,
    };
    let handle = tables.instantiate(Handle::from_bits(graph as u64), flags, taken)?;
    drop(tables);
    // SAFETY: the caller vouches for it.
    unsafe { put(executable, handle.bits() as sys::CUgraphExec) }
}

/// There is nothing to bring anywhere; it only must be there.
fn upload(executable: sys::CUgraphExec, stream: sys::CUstream, form: StreamForm) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let stream = driver.stream(&mut tables, stream as u64, form)?;
    tables.check_waitable(stream)?;
    let known = tables.executables.contains(Handle::from_bits(executable as u64));
    if known { Ok(()) } else { Err(INVALID_VALUE) }
}

fn own_node(
    tables: &Tables,
    executable: sys::CUgraphExec,
    node: sys::CUgraphNode,
) -> Outcome<Handle<crate::graph::Node>> {
    let executable: Handle<Executable> = Handle::from_bits(executable as u64);
    let graph = tables.executables.get(executable).ok_or(INVALID_VALUE)?.graph;
    tables.copied(graph, Handle::from_bits(node as u64))
}

fn change(
    executable: sys::CUgraphExec,
    node: sys::CUgraphNode,
    kind: u32,
    task: impl FnOnce(&'static Driver, &mut Tables) -> Outcome<Task>,
) -> Outcome {
    let own = {
        let driver = driver::get()?;
        own_node(&driver.lock(), executable, node)?
    };
    super::node::change(own.bits() as sys::CUgraphNode, kind, task)
}

/// What the program is told when the two are not alike: the code and the node.
type Told = Result<(), (c_uint, u64)>;

fn update(executable: sys::CUgraphExec, graph: sys::CUgraph) -> Outcome<Told> {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let executable = Handle::from_bits(executable as u64);
    let graph = Handle::from_bits(graph as u64);
    let outcome = tables.update(executable, graph)?;
    Ok(outcome.map_err(|(unlike, node)| (unlike as c_uint, node.bits())))
}
