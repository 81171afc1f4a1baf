//! Nodes that do work: kernels, copies, fills, functions of the program's, and
//! memory; what they are told and what they tell.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_int, c_uint, c_void};

use acb_cuda_abi::sys;

use super::graph::add;
use super::launch::{Keep, Launch, prepare};
use super::{copy, put, set};
use crate::code::{INVALID_CONTEXT, INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, Outcome};
use crate::driver::{self, Driver};
use crate::graph::{Node, Task};
use crate::handles::Handle;
use crate::objects::Tables;
use crate::space::RegionKind;
use crate::timeline::Submission;
use crate::work::{Extent, HostCall, HostFunction, Pitch, SetShape, Side, Work};

calls! {
    fn cuGraphAddKernelNode(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        parameters: *const c_void,
    ) {
        add(node, graph, dependencies, count, |driver, tables| {
            // SAFETY: the structure's first version, which the second begins with.
            unsafe { kernel(driver, tables, parameters.cast(), First) }
        })
    }

    fn cuGraphAddKernelNode_v2(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        parameters: *const sys::CUDA_KERNEL_NODE_PARAMS,
    ) {
        add(node, graph, dependencies, count, |driver, tables| {
            // SAFETY: null or the structure that it should be.
            unsafe { kernel(driver, tables, parameters, Second) }
        })
    }

    fn cuGraphKernelNodeGetParams(node: sys::CUgraphNode, parameters: *mut c_void) {
        tell_kernel(node, parameters.cast(), First)
    }

    fn cuGraphKernelNodeGetParams_v2(
        node: sys::CUgraphNode,
        parameters: *mut sys::CUDA_KERNEL_NODE_PARAMS,
    ) {
        tell_kernel(node, parameters, Second)
    }

    fn cuGraphKernelNodeSetParams(node: sys::CUgraphNode, parameters: *const c_void) {
        change(node, 0, |driver, tables| {
            // SAFETY: as for the node's making.
            unsafe { kernel(driver, tables, parameters.cast(), First) }
        })
    }

    fn cuGraphKernelNodeSetParams_v2(
        node: sys::CUgraphNode,
        parameters: *const sys::CUDA_KERNEL_NODE_PARAMS,
    ) {
        change(node, 0, |driver, tables| {
            // SAFETY: as for the node's making.
            unsafe { kernel(driver, tables, parameters, Second) }
        })
    }

    fn cuGraphAddMemcpyNode(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        shape: *const sys::CUDA_MEMCPY3D,
        context: sys::CUcontext,
    ) {
        add(node, graph, dependencies, count, |driver, tables| {
            // SAFETY: null or the structure that it should be.
            unsafe { copy_task(driver, tables, shape, context) }
        })
    }

    fn cuGraphMemcpyNodeGetParams(node: sys::CUgraphNode, shape: *mut sys::CUDA_MEMCPY3D) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let Work::Copy(own) = work_of(&tables, node)? else { return Err(INVALID_VALUE) };
        if shape.is_null() {
            return Err(INVALID_VALUE);
        }
        shape.write_bytes(0, 1);
        let kind = |field: *mut sys::CUmemorytype, side: &Side| {
            let kind = if matches!(side, Side::Device { .. }) { 2 } else { 1 };
            field.cast::<c_uint>().write(kind);
        };
        kind(&raw mut (*shape).srcMemoryType, &own.from);
        kind(&raw mut (*shape).dstMemoryType, &own.to);
        match &own.from {
            Side::Device { address, .. } => (*shape).srcDevice = *address,
            Side::Host(address) => (*shape).srcHost = *address as *const c_void,
            Side::Staged(bytes) => (*shape).srcHost = bytes.as_ptr().cast(),
        }
        match &own.to {
            Side::Device { address, .. } => (*shape).dstDevice = *address,
            Side::Host(address) => (*shape).dstHost = *address as *mut c_void,
            Side::Staged(_) => {}
        }
        let rows = |pitch: Pitch| pitch.layer.checked_div(pitch.row).unwrap_or(0);
        (*shape).srcPitch = own.from_pitch.row;
        (*shape).srcHeight = rows(own.from_pitch);
        (*shape).dstPitch = own.to_pitch.row;
        (*shape).dstHeight = rows(own.to_pitch);
        (*shape).WidthInBytes = own.extent.bytes;
        (*shape).Height = own.extent.rows;
        (*shape).Depth = own.extent.layers;
        Ok(())
    }

    fn cuGraphMemcpyNodeSetParams(node: sys::CUgraphNode, shape: *const sys::CUDA_MEMCPY3D) {
        change(node, 1, |driver, tables| {
            // SAFETY: null or the structure that it should be.
            unsafe { copy_task(driver, tables, shape, std::ptr::null_mut()) }
        })
    }

    fn cuGraphAddMemsetNode(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        parameters: *const sys::CUDA_MEMSET_NODE_PARAMS,
        context: sys::CUcontext,
    ) {
        add(node, graph, dependencies, count, |driver, tables| {
            // SAFETY: null or the structure that it should be.
            unsafe { set_task(driver, tables, parameters, context) }
        })
    }

    fn cuGraphMemsetNodeGetParams(
        node: sys::CUgraphNode,
        parameters: *mut sys::CUDA_MEMSET_NODE_PARAMS,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let Work::Set(own) = work_of(&tables, node)? else { return Err(INVALID_VALUE) };
        let told = sys::CUDA_MEMSET_NODE_PARAMS {
            dst: own.address,
            pitch: own.pitch.row,
            value: own.value,
            elementSize: own.width as c_uint,
            width: own.extent.bytes / own.width,
            height: own.extent.rows,
        };
        put(parameters, told)
    }

    fn cuGraphMemsetNodeSetParams(
        node: sys::CUgraphNode,
        parameters: *const sys::CUDA_MEMSET_NODE_PARAMS,
    ) {
        change(node, 2, |driver, tables| {
            // SAFETY: null or the structure that it should be.
            unsafe { set_task(driver, tables, parameters, std::ptr::null_mut()) }
        })
    }

    fn cuGraphAddHostNode(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        parameters: *const sys::CUDA_HOST_NODE_PARAMS,
    ) {
        // SAFETY: null or the structure that it should be.
        add(node, graph, dependencies, count, |_, _| unsafe { host_task(parameters) })
    }

    fn cuGraphHostNodeGetParams(
        node: sys::CUgraphNode,
        parameters: *mut sys::CUDA_HOST_NODE_PARAMS,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let Work::Host(call) = work_of(&tables, node)? else { return Err(INVALID_VALUE) };
        let HostFunction::Plain(function) = call.function else { return Err(INVALID_VALUE) };
        let told =
            sys::CUDA_HOST_NODE_PARAMS { fn_: Some(function), userData: call.data as *mut c_void };
        put(parameters, told)
    }

    fn cuGraphHostNodeSetParams(
        node: sys::CUgraphNode,
        parameters: *const sys::CUDA_HOST_NODE_PARAMS,
    ) {
        // SAFETY: null or the structure that it should be.
        change(node, 3, |_, _| unsafe { host_task(parameters) })
    }

    fn cuGraphAddMemAllocNode(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        parameters: *mut sys::CUDA_MEM_ALLOC_NODE_PARAMS,
    ) {
        let mut address = 0;
        add(node, graph, dependencies, count, |driver, tables| {
            // SAFETY: null or the structure that it should be.
            let (bytes, dev) = unsafe { wanted_memory(parameters) }?;
            let gpu = driver.gpu(dev).map_err(|_| INVALID_VALUE)?;
            let allocation = tables.graph_allocation(bytes, dev as usize, gpu)?;
            address = allocation.address;
            Ok(Task::Allocate(allocation))
        })?;
        (*parameters).dptr = address;
        Ok(())
    }

    fn cuGraphMemAllocNodeGetParams(
        node: sys::CUgraphNode,
        parameters: *mut sys::CUDA_MEM_ALLOC_NODE_PARAMS,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let found = tables.node(node)?;
        let Task::Allocate(own) = &found.task else { return Err(INVALID_VALUE) };
        if parameters.is_null() {
            return Err(INVALID_VALUE);
        }
        parameters.write_bytes(0, 1);
        // type, handle types, location: type and id
        let properties = (&raw mut (*parameters).poolProps).cast::<c_uint>();
        properties.write(1);
        properties.add(2).write(1);
        properties.add(3).write(own.ordinal as c_uint);
        (*parameters).bytesize = own.bytes;
        (*parameters).dptr = own.address;
        Ok(())
    }

    fn cuGraphAddMemFreeNode(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        address: u64,
    ) {
        add(node, graph, dependencies, count, |_, tables| {
            let region = tables.space.region(address).ok_or(INVALID_VALUE)?;
            let RegionKind::Graph { gpu } = region.kind else { return Err(INVALID_VALUE) };
            let work = Work::Free(address);
            Ok(Task::Run(Submission { engine: None, gpu, length: 0, work }))
        })
    }

    fn cuGraphMemFreeNodeGetParams(node: sys::CUgraphNode, address: *mut u64) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let Work::Free(own) = work_of(&tables, node)? else { return Err(INVALID_VALUE) };
        put(address, *own)
    }

    fn cuDeviceGetGraphMemAttribute(dev: c_int, attribute: c_uint, value: *mut c_void) {
        let driver = driver::get()?;
        let gpu = driver.gpu(dev)?;
        let mut tables = driver.look(driver.lock());
        let (used, reserved) = tables.graph_memory_in(gpu);
        tables.note_graph_memory(gpu);
        let high = *tables.graph_memory.high(gpu);
        let value = value.cast::<u64>();
        match attribute {
            0 => put(value, used),
            1 => put(value, high.0),
            2 => put(value, reserved),
            3 => put(value, high.1),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuDeviceSetGraphMemAttribute(dev: c_int, attribute: c_uint, value: *mut c_void) {
        let driver = driver::get()?;
        let gpu = driver.gpu(dev)?;
        let mut tables = driver.look(driver.lock());
        // The high-water marks can only be set back.
        if value.is_null() || value.cast::<u64>().read() != 0 {
            return Err(INVALID_VALUE);
        }
        let (used, reserved) = tables.graph_memory_in(gpu);
        let high = tables.graph_memory.high(gpu);
        match attribute {
            1 => high.0 = used,
            3 => high.1 = reserved,
            _ => return Err(INVALID_VALUE),
        }
        Ok(())
    }

    fn cuDeviceGraphMemTrim(dev: c_int) {
        let driver = driver::get()?;
        let gpu = driver.gpu(dev)?;
        let mut tables = driver.look(driver.lock());
        tables.check_unsafe(driver::caller())?;
        tables.trim_graph_memory(gpu);
        Ok(())
    }
}

/// Versions of the kernel node's parameters: the second has two fields more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    First,
    Second,
}
pub(super) use Version::{First, Second};

/// # Safety
/// `parameters` is null or the structure of this version.
pub(super) unsafe fn kernel(
    driver: &Driver,
    tables: &mut Tables,
    parameters: *const sys::CUDA_KERNEL_NODE_PARAMS,
    version: Version,
) -> Outcome<Task> {
    if parameters.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null; the fields up to `extra` are there in both versions, and
    // those behind it in the second.
    unsafe {
        let p = &raw const *parameters;
        let mut function = (*p).func as u64;
        let mut context = 0;
        if version == Second {
            if function == 0 {
                function = (*p).kern as u64;
            }
            context = (*p).ctx as u64;
        }
        let handle = if context == 0 || tables.functions.contains(Handle::from_bits(function)) {
            tables.launched(driver, function)?
        } else {
            tables.kernel_function(function, Handle::from_bits(context))?
        };
        let asked = Launch {
            function,
            shape: [
                (*p).gridDimX,
                (*p).gridDimY,
                (*p).gridDimZ,
                (*p).blockDimX,
                (*p).blockDimY,
                (*p).blockDimZ,
            ],
            shared: (*p).sharedMemBytes,
            list: (*p).kernelParams,
            extra: (*p).extra,
        };
        prepare(driver, tables, handle, &asked, Keep::Arguments).map(Task::Run)
    }
}

/// # Safety
/// `parameters` is null or has room for the structure of this version.
unsafe fn tell_kernel(
    node: sys::CUgraphNode,
    parameters: *mut sys::CUDA_KERNEL_NODE_PARAMS,
    version: Version,
) -> Outcome {
    let driver = driver::get()?;
    let tables = driver.lock();
    let Work::Kernel(call) = work_of(&tables, node)? else { return Err(INVALID_VALUE) };
    let asked = call.asked.as_ref().ok_or(INVALID_HANDLE)?;
    if parameters.is_null() {
        return Err(INVALID_VALUE);
    }
    let is_function = tables.functions.contains(Handle::from_bits(asked.function));
    // SAFETY: not null, with the room that the caller vouches for.
    unsafe {
        let p = &raw mut *parameters;
        let plain = is_function || version == First;
        (*p).func = if plain { asked.function as sys::CUfunction } else { std::ptr::null_mut() };
        [
            (*p).gridDimX,
            (*p).gridDimY,
            (*p).gridDimZ,
            (*p).blockDimX,
            (*p).blockDimY,
            (*p).blockDimZ,
        ] = asked.shape;
        (*p).sharedMemBytes = asked.shared;
        (*p).kernelParams = asked.list().cast::<*mut c_void>().cast_mut();
        (*p).extra = std::ptr::null_mut();
        if version == Second {
            let kernel = if plain { 0 } else { asked.function };
            (*p).kern = kernel as sys::CUkernel;
            (*p).ctx = std::ptr::null_mut();
        }
    }
    Ok(())
}

/// The GPU of a context that a node names; null is the current one.
fn gpu_of(driver: &Driver, tables: &Tables, context: sys::CUcontext) -> Outcome<usize> {
    let context =
        if context.is_null() { driver.current(tables)? } else { Handle::from_bits(context as u64) };
    tables.context(context).map(|context| context.gpu).map_err(|_| INVALID_CONTEXT)
}

/// # Safety
/// `shape` is null or the structure that it should be.
pub(super) unsafe fn copy_task(
    driver: &Driver,
    tables: &Tables,
    shape: *const sys::CUDA_MEMCPY3D,
    context: sys::CUcontext,
) -> Outcome<Task> {
    let gpu = gpu_of(driver, tables, context)?;
    // SAFETY: the caller vouches for it.
    unsafe { copy::node(driver, &tables.space, gpu, shape) }.map(Task::Run)
}

/// # Safety
/// `parameters` is null or the structure that it should be.
pub(super) unsafe fn set_task(
    driver: &Driver,
    tables: &Tables,
    parameters: *const sys::CUDA_MEMSET_NODE_PARAMS,
    context: sys::CUcontext,
) -> Outcome<Task> {
    if parameters.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null.
    let p = unsafe { parameters.read() };
    let gpu = gpu_of(driver, tables, context)?;
    if !matches!(p.elementSize, 1 | 2 | 4) {
        return Err(INVALID_VALUE);
    }
    let width = p.elementSize as usize;
    let bytes = p.width.checked_mul(width).ok_or(INVALID_VALUE)?;
    let extent = Extent { bytes, rows: p.height, layers: 1 };
    if extent.total() == 0 {
        return Err(INVALID_VALUE);
    }
    let pitch = Pitch { row: p.pitch, layer: 0 };
    let shape = SetShape { address: p.dst, gpu, value: p.value, width, pitch, extent };
    set::shaped(driver, &tables.space, shape).map(Task::Run)
}

/// # Safety
/// `parameters` is null or the structure that it should be.
pub(super) unsafe fn host_task(parameters: *const sys::CUDA_HOST_NODE_PARAMS) -> Outcome<Task> {
    if parameters.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null.
    let p = unsafe { parameters.read() };
    let function = HostFunction::Plain(p.fn_.ok_or(INVALID_VALUE)?);
    let work = Work::Host(HostCall { function, data: p.userData as usize });
    Ok(Task::Run(Submission { engine: None, gpu: 0, length: 0, work }))
}

/// Bytes and device that an allocation node asks for.
///
/// # Safety
/// `parameters` is null or the structure that it should be.
unsafe fn wanted_memory(
    parameters: *const sys::CUDA_MEM_ALLOC_NODE_PARAMS,
) -> Outcome<(usize, c_int)> {
    if parameters.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null; kinds are read as numbers, for a program may have written any.
    unsafe {
        let properties = (&raw const (*parameters).poolProps).cast::<c_uint>();
        let (kind, exported) = (properties.read(), properties.add(1).read());
        let (location, dev) = (properties.add(2).read(), properties.add(3).cast::<c_int>().read());
        if kind != 1 || location != 1 || (*parameters).bytesize == 0 {
            return Err(INVALID_VALUE);
        }
        if exported != 0 {
            return Err(NOT_SUPPORTED);
        }
        Ok(((*parameters).bytesize, dev))
    }
}

fn work_of(tables: &Tables, node: sys::CUgraphNode) -> Outcome<&Work> {
    let node = tables.node(node)?;
    match &node.task {
        Task::Run(submission) => Ok(&submission.work),
        _ => Err(INVALID_VALUE),
    }
}

/// Gives a node of kind `kind` another task of the same kind.
pub(super) fn change(
    node: sys::CUgraphNode,
    kind: u32,
    task: impl FnOnce(&'static Driver, &mut Tables) -> Outcome<Task>,
) -> Outcome {
    let driver = driver::get()?;
    let mut tables = driver.lock();
    let node: Handle<Node> = Handle::from_bits(node as u64);
    if tables.nodes.get(node).ok_or(INVALID_VALUE)?.task.kind() != kind {
        return Err(INVALID_VALUE);
    }
    let task = task(driver, &mut tables)?;
    if let Some(node) = tables.nodes.get_mut(node) {
        node.task = task;
    }
    Ok(())
}
