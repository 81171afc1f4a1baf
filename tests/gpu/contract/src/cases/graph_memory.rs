//! Memory that graphs allocate and free.

use std::ffi::c_void;
use std::path::Path;

use super::graphs::Plan;
use super::{any_of, open, same, why};
use crate::driver::Handle;
use crate::gpu::{Gpu, code};

const NON_BLOCKING: u32 = 1;
const RELAXED: u32 = 2;
const FREES_ON_LAUNCH: u64 = 1;
const SIZE: usize = 64 << 20;

/// `CUDA_MEM_ALLOC_NODE_PARAMS`, for pinned memory of device 0.
#[repr(C)]
struct Allocation {
    /// type, handle types, location: a device, number 0
    properties: [u32; 4],
    security: usize,
    reserved: [u64; 8],
    access: usize,
    count: usize,
    bytes: usize,
    pointer: u64,
}

fn allocate(plan: &Plan<'_>, after: &[Handle]) -> Result<(Handle, u64), String> {
    let mut wanted = Allocation {
        properties: [1, 0, 1, 0],
        security: 0,
        reserved: [0; 8],
        access: 0,
        count: 0,
        bytes: SIZE,
        pointer: 0,
    };
    let mut node = 0;
    let parameters: *mut c_void = (&raw mut wanted).cast();
    let (list, count) = (after.as_ptr(), after.len());
    let driver = &plan.gpu.driver;
    let made = driver.cuGraphAddMemAllocNode(&raw mut node, plan.graph, list, count, parameters);
    same("allocation node", made, 0)?;
    Ok((node, wanted.pointer))
}

fn free(plan: &Plan<'_>, after: Handle, pointer: u64) -> Result<Handle, String> {
    let mut node = 0;
    let driver = &plan.gpu.driver;
    let made =
        driver.cuGraphAddMemFreeNode(&raw mut node, plan.graph, &raw const after, 1, pointer);
    same("free node", made, 0).map(|()| node)
}

/// Used now, and reserved now.
fn attributes(gpu: &Gpu) -> Result<(u64, u64), String> {
    let (mut used, mut reserved) = (0, 0);
    same("used", gpu.driver.cuDeviceGetGraphMemAttribute(0, 0, &raw mut used), 0)?;
    same("reserved", gpu.driver.cuDeviceGetGraphMemAttribute(0, 2, &raw mut reserved), 0)?;
    Ok((used, reserved))
}

pub(super) fn it_is_there_while_its_graph_runs(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let sum = gpu.alloc(8).map_err(why("allocate"))?;
    gpu.write(sum, &[0]).map_err(why("write"))?;
    let (node, pointer) = allocate(&plan, &[])?;
    let fill = plan.kernel(&[node], "acb_fill", &[pointer, 1000, 1])?;
    let add = plan.kernel(&[fill], "acb_sum", &[pointer, 1000, sum])?;
    free(&plan, add, pointer)?;
    let executable = gpu.instantiate(plan.graph, 0).map_err(why("instantiate"))?;
    for _ in 0..3 {
        gpu.replay(executable, stream).map_err(why("run"))?;
    }
    gpu.wait(stream).map_err(why("wait"))?;
    let once = (0..1000).fold(0_u64, |sum, at| sum.wrapping_add(super::splitmix64(1 + at)));
    same("three times", gpu.read(sum, 1), Ok(vec![once.wrapping_mul(3)]))?;
    let refused = gpu.driver.cuGraphDestroyNode(node);
    any_of("its nodes stay", Err(refused), &[code::INVALID_VALUE, 801])?;
    let mut copy = 0;
    let copied = gpu.driver.cuGraphClone(&raw mut copy, plan.graph);
    any_of("it is not copied", Err(copied), &[code::INVALID_VALUE, 801])
}

pub(super) fn it_counts_until_it_is_trimmed(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let (node, pointer) = allocate(&plan, &[])?;
    let fill = plan.kernel(&[node], "acb_fill", &[pointer, 1000, 1])?;
    free(&plan, fill, pointer)?;
    let executable = gpu.instantiate(plan.graph, 0).map_err(why("instantiate"))?;
    same("nothing yet", attributes(&gpu)?.0, 0)?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    let (used, reserved) = attributes(&gpu)?;
    same("kept for the next run", (used, reserved >= SIZE as u64), (0, true))?;
    let (before, _) = gpu.memory().map_err(why("memory"))?;
    same("destroy", gpu.driver.cuGraphExecDestroy(executable), 0)?;
    same("trim", gpu.driver.cuDeviceGraphMemTrim(0), 0)?;
    same("given back", attributes(&gpu)?, (0, 0))?;
    let (after, _) = gpu.memory().map_err(why("memory"))?;
    same("on the GPU", after >= before + SIZE, true)
}

pub(super) fn what_a_graph_has_freed_it_uses_again(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let sum = gpu.alloc(8).map_err(why("allocate"))?;
    gpu.write(sum, &[0]).map_err(why("write"))?;
    let mut last = Vec::new();
    for seed in 1..4 {
        let (node, pointer) = allocate(&plan, &last)?;
        let fill = plan.kernel(&[node], "acb_fill", &[pointer, 1000, seed])?;
        let add = plan.kernel(&[fill], "acb_sum", &[pointer, 1000, sum])?;
        last = vec![free(&plan, add, pointer)?];
    }
    let executable = gpu.instantiate(plan.graph, 0).map_err(why("instantiate"))?;
    for _ in 0..2 {
        gpu.replay(executable, stream).map_err(why("run"))?;
    }
    gpu.wait(stream).map_err(why("wait"))?;
    let (_, reserved) = attributes(&gpu)?;
    same("less than for all at once", reserved < 2 * SIZE as u64, true)?;
    let words = (1..4).flat_map(|seed| (0..1000).map(move |at| super::splitmix64(seed + at)));
    let once = words.fold(0_u64, u64::wrapping_add);
    same("twice", gpu.read(sum, 1), Ok(vec![once.wrapping_mul(2)]))
}

pub(super) fn what_a_run_leaves_is_the_programs(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let (node, pointer) = allocate(&plan, &[])?;
    plan.kernel(&[node], "acb_fill", &[pointer, 1000, 1])?;
    let executable = gpu.instantiate(plan.graph, 0).map_err(why("instantiate"))?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    // What follows in the stream may use it.
    let pinned = gpu.pinned(1).map_err(why("pin"))?;
    let at = pointer + 999 * 8;
    same("copy", gpu.driver.cuMemcpyDtoHAsync_v2(pinned.pointer(), at, 8, stream), 0)?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("its words", pinned.get(0), super::splitmix64(1 + 999))?;
    same("in use", attributes(&gpu)?.0 >= SIZE as u64, true)?;
    any_of("again", gpu.replay(executable, stream), &[code::INVALID_VALUE])?;
    same("free", gpu.driver.cuMemFreeAsync(pointer, stream), 0)?;
    gpu.replay(executable, stream).map_err(why("run again"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    gpu.free(pointer).map_err(why("free"))?;
    same("not in use", attributes(&gpu)?.0, 0)
}

pub(super) fn instances_can_free_what_was_left(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let (node, pointer) = allocate(&plan, &[])?;
    plan.kernel(&[node], "acb_fill", &[pointer, 1000, 1])?;
    let executable = gpu.instantiate(plan.graph, FREES_ON_LAUNCH).map_err(why("instantiate"))?;
    for _ in 0..3 {
        gpu.replay(executable, stream).map_err(why("run"))?;
    }
    gpu.wait(stream).map_err(why("wait"))?;
    same("free", gpu.driver.cuMemFreeAsync(pointer, stream), 0)?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("not in use", attributes(&gpu)?.0, 0)
}

pub(super) fn captured_allocations_become_nodes(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let pinned = gpu.pinned(1).map_err(why("pin"))?;
    gpu.begin(stream, RELAXED).map_err(why("begin"))?;
    let mut pointer = 0;
    same("allocate", gpu.driver.cuMemAllocAsync(&raw mut pointer, SIZE, stream), 0)?;
    gpu.launch(stream, "acb_fill", &[pointer, 1000, 4]).map_err(why("launch"))?;
    same("copy", gpu.driver.cuMemcpyDtoHAsync_v2(pinned.pointer(), pointer, 8, stream), 0)?;
    same("free", gpu.driver.cuMemFreeAsync(pointer, stream), 0)?;
    let graph = gpu.end(stream).map_err(why("end"))?;
    let mut nodes = [0; 4];
    let mut count = 4;
    same("nodes", gpu.driver.cuGraphGetNodes(graph, nodes.as_mut_ptr(), &raw mut count), 0)?;
    let mut kinds = Vec::new();
    for node in nodes {
        let mut kind = 0;
        same("kind", gpu.driver.cuGraphNodeGetType(node, &raw mut kind), 0)?;
        kinds.push(kind);
    }
    kinds.sort_unstable();
    same("kernel, copy, allocation, free", (count, kinds), (4, vec![0, 1, 10, 11]))?;
    let executable = gpu.instantiate(graph, 0).map_err(why("instantiate"))?;
    for _ in 0..2 {
        pinned.set(0, 0);
        gpu.replay(executable, stream).map_err(why("run"))?;
        gpu.wait(stream).map_err(why("wait"))?;
        same("its words", pinned.get(0), super::splitmix64(4))?;
    }
    Ok(())
}
