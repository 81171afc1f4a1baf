//! Graphs: built by hand, changed, copied, and run.

use std::ffi::{CString, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{any_of, open, same, why};
use crate::driver::Handle;
use crate::gpu::{Gpu, check, code};

const NON_BLOCKING: u32 = 1;
const RELAXED: u32 = 2;

/// `CUDA_KERNEL_NODE_PARAMS`, second version.
#[repr(C)]
pub(super) struct Kernel {
    function: Handle,
    shape: [u32; 6],
    shared: u32,
    list: *mut *mut c_void,
    extra: *mut *mut c_void,
    kernel: Handle,
    context: Handle,
}

/// `CUDA_MEMSET_NODE_PARAMS`
#[repr(C)]
#[derive(Debug, Default, PartialEq)]
struct Set {
    to: u64,
    pitch: usize,
    value: u32,
    element: u32,
    width: usize,
    height: usize,
}

/// One end of a `CUDA_MEMCPY3D`.
#[repr(C)]
#[derive(Default)]
pub(super) struct End {
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) z: usize,
    pub(super) level: usize,
    pub(super) kind: u32,
    pub(super) host: usize,
    pub(super) device: u64,
    pub(super) array: usize,
    pub(super) reserved: usize,
    pub(super) pitch: usize,
    pub(super) height: usize,
}

/// `CUDA_MEMCPY3D`
#[repr(C)]
#[derive(Default)]
pub(super) struct Copy {
    pub(super) from: End,
    pub(super) to: End,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) depth: usize,
}

/// `CUDA_HOST_NODE_PARAMS`
#[repr(C)]
struct Host {
    function: extern "C" fn(*mut c_void),
    data: *mut c_void,
}

/// A graph under construction.
pub(super) struct Plan<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) graph: Handle,
}

impl<'a> Plan<'a> {
    pub(super) fn new(gpu: &'a Gpu) -> Result<Plan<'a>, String> {
        let mut graph = 0;
        same("graph", gpu.driver.cuGraphCreate(&raw mut graph, 0), 0)?;
        Ok(Plan { gpu, graph })
    }

    pub(super) fn kernel(
        &self,
        after: &[Handle],
        name: &str,
        arguments: &[u64],
    ) -> Result<Handle, String> {
        let mut node = 0;
        let list = after.as_ptr();
        let made = with_kernel(self.gpu, name, arguments, |kernel| {
            let graph = self.graph;
            self.gpu.driver.cuGraphAddKernelNode_v2(&raw mut node, graph, list, after.len(), kernel)
        })?;
        same("kernel node", made, 0).map(|()| node)
    }

    fn empty(&self, after: &[Handle]) -> Result<Handle, String> {
        let mut node = 0;
        let (list, count) = (after.as_ptr(), after.len());
        let made = self.gpu.driver.cuGraphAddEmptyNode(&raw mut node, self.graph, list, count);
        same("empty node", made, 0).map(|()| node)
    }
}

fn with_kernel(
    gpu: &Gpu,
    name: &str,
    arguments: &[u64],
    call: impl FnOnce(*const c_void) -> u32,
) -> Result<u32, String> {
    let function = gpu.function(name).map_err(why("function"))?;
    let mut list: Vec<*mut c_void> =
        arguments.iter().map(|argument| (&raw const *argument).cast_mut().cast()).collect();
    let list = if list.is_empty() { std::ptr::null_mut() } else { list.as_mut_ptr() };
    let kernel = Kernel {
        function,
        shape: [2, 1, 1, 64, 1, 1],
        shared: 0,
        list,
        extra: std::ptr::null_mut(),
        kernel: 0,
        context: 0,
    };
    Ok(call((&raw const kernel).cast()))
}

fn step(word: u64, salt: u64) -> u64 {
    word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(salt)
}

extern "C" fn note(to: *mut c_void) {
    let steps = to.cast::<AtomicU64>();
    super::atomic(steps).fetch_add(1, Ordering::SeqCst);
}

pub(super) fn nodes_run_in_the_order_of_their_edges(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(800).map_err(why("allocate"))?;
    let pinned = gpu.pinned(100).map_err(why("pin"))?;
    let steps = AtomicU64::new(0);
    let (driver, graph) = (&gpu.driver, plan.graph);
    let (mut set, mut copy, mut host) = (0, 0, 0);
    // Made in an order that is not that of their edges.
    let second = plan.kernel(&[], "acb_step", &[a, 100, 5, 0])?;
    let first = plan.kernel(&[], "acb_step", &[a, 100, 3, 0])?;
    let fill = Set { to: a, pitch: 0, value: 0x0101_0101, element: 4, width: 200, height: 1 };
    let none = std::ptr::null();
    let parameters = (&raw const fill).cast();
    let made = driver.cuGraphAddMemsetNode(&raw mut set, graph, none, 0, parameters, gpu.context);
    same("memset node", made, 0)?;
    let shape = Copy {
        from: End { kind: 2, device: a, ..End::default() },
        to: End { kind: 1, host: pinned.pointer() as usize, ..End::default() },
        width: 800,
        height: 1,
        depth: 1,
    };
    let shape = (&raw const shape).cast();
    let made =
        driver.cuGraphAddMemcpyNode(&raw mut copy, graph, &raw const second, 1, shape, gpu.context);
    same("memcpy node", made, 0)?;
    let function = Host { function: note, data: (&raw const steps).cast_mut().cast() };
    let function = (&raw const function).cast();
    let made = driver.cuGraphAddHostNode(&raw mut host, graph, &raw const copy, 1, function);
    same("host node", made, 0)?;
    let (from, to) = ([set, first], [first, second]);
    let linked = driver.cuGraphAddDependencies(graph, from.as_ptr(), to.as_ptr(), 2);
    same("edges", linked, 0)?;
    let executable = gpu.instantiate(graph, 0).map_err(why("instantiate"))?;
    for run in 1..=3 {
        pinned.set(99, 0);
        gpu.replay(executable, stream).map_err(why("run"))?;
        gpu.wait(stream).map_err(why("wait"))?;
        let wanted = step(step(0x0101_0101_0101_0101, 3), 5);
        same("in order", (pinned.get(0), pinned.get(99)), (wanted, wanted))?;
        same("the program's function", steps.load(Ordering::SeqCst), run)?;
    }
    same("destroy", driver.cuGraphExecDestroy(executable), 0)?;
    same("destroy", driver.cuGraphDestroy(graph), 0)
}

pub(super) fn nodes_tell_what_they_are(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let driver = &gpu.driver;
    let a = gpu.alloc(800).map_err(why("allocate"))?;
    let kernel = plan.kernel(&[], "acb_fill", &[a, 100, 9])?;
    let empty = plan.empty(&[kernel])?;
    let fill = Set { to: a, pitch: 0, value: 7, element: 1, width: 64, height: 1 };
    let mut set = 0;
    let parameters = (&raw const fill).cast();
    let (graph, context) = (plan.graph, gpu.context);
    let made =
        driver.cuGraphAddMemsetNode(&raw mut set, graph, &raw const empty, 1, parameters, context);
    same("memset node", made, 0)?;
    for (node, kind) in [(kernel, 0), (set, 2), (empty, 5)] {
        let mut got = 99;
        same("asked", driver.cuGraphNodeGetType(node, &raw mut got), 0)?;
        same("kind", got, kind)?;
    }
    let mut nodes = [0; 3];
    let mut count = 3;
    same("nodes", driver.cuGraphGetNodes(graph, nodes.as_mut_ptr(), &raw mut count), 0)?;
    nodes.sort_unstable();
    let mut wanted = [kernel, empty, set];
    wanted.sort_unstable();
    same("all", (count, nodes), (3, wanted))?;
    count = 1;
    let mut root = 0;
    same("roots", driver.cuGraphGetRootNodes(graph, &raw mut root, &raw mut count), 0)?;
    same("the first", (count, root), (1, kernel))?;
    let (mut from, mut to) = ([0; 2], [0; 2]);
    count = 2;
    let asked = driver.cuGraphGetEdges(graph, from.as_mut_ptr(), to.as_mut_ptr(), &raw mut count);
    same("edges", asked, 0)?;
    let mut edges = [(from[0], to[0]), (from[1], to[1])];
    edges.sort_unstable();
    let mut wanted = [(kernel, empty), (empty, set)];
    wanted.sort_unstable();
    same("edges", (count, edges), (2, wanted))?;
    count = 1;
    let mut before = 0;
    let asked = driver.cuGraphNodeGetDependencies(set, &raw mut before, &raw mut count);
    same("dependencies", (asked, count, before), (0, 1, empty))?;
    let mut told = Set::default();
    same("told", driver.cuGraphMemsetNodeGetParams(set, (&raw mut told).cast()), 0)?;
    same("the fill", (told.to, told.value, told.element, told.width), (a, 7, 1, 64))?;
    let mut told = super::zeroed::<Kernel>();
    same("told", driver.cuGraphKernelNodeGetParams_v2(kernel, (&raw mut told).cast()), 0)?;
    let arguments = super::arguments::<3>(told.list);
    same("the kernel", (told.shape, arguments), ([2, 1, 1, 64, 1, 1], [a, 100, 9]))?;
    let wrong = driver.cuGraphMemcpyNodeGetParams(kernel, (&raw mut told).cast());
    any_of("a kernel is no copy", check(wrong), &[code::INVALID_VALUE, code::INVALID_HANDLE])
}

pub(super) fn a_graph_runs_in_the_order_of_its_stream(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    let pinned = gpu.pinned(2).map_err(why("pin"))?;
    pinned.set(0, 17);
    let slow = plan.kernel(&[], "acb_spin", &[20_000_000])?;
    plan.kernel(&[slow], "acb_step", &[a, 1, 4, 0])?;
    let executable = gpu.instantiate(plan.graph, 0).map_err(why("instantiate"))?;
    gpu.write(a, &[0]).map_err(why("write"))?;
    let held = gpu.hold(stream).map_err(why("hold"))?;
    let (driver, host) = (&gpu.driver, pinned.pointer());
    same("before", driver.cuMemcpyHtoDAsync_v2(a, host, 8, stream), 0)?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    let behind = host.wrapping_byte_add(8);
    same("after", driver.cuMemcpyDtoHAsync_v2(behind, a, 8, stream), 0)?;
    same("nothing waits", gpu.query(stream), Err(code::NOT_READY))?;
    held.let_go();
    gpu.wait(stream).map_err(why("wait"))?;
    same("in order", pinned.get(1), step(step(17, 4), 4))
}

pub(super) fn a_thousand_runs_lose_nothing(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let streams = [
        gpu.stream(NON_BLOCKING).map_err(why("stream"))?,
        gpu.stream(NON_BLOCKING).map_err(why("stream"))?,
    ];
    let a = gpu.alloc(64).map_err(why("allocate"))?;
    gpu.write(a, &[1; 8]).map_err(why("write"))?;
    let mut last = plan.kernel(&[], "acb_step", &[a, 8, 1, 1000])?;
    for salt in 2..5 {
        last = plan.kernel(&[last], "acb_step", &[a, 8, salt, 1000])?;
    }
    let executable = gpu.instantiate(plan.graph, 0).map_err(why("instantiate"))?;
    let mut wanted = 1;
    for run in 0..1000 {
        // It never runs beside itself, whatever the stream.
        gpu.replay(executable, streams[run % 2]).map_err(why("run"))?;
        for salt in 1..5 {
            wanted = step(wanted, salt);
        }
    }
    gpu.synchronize().map_err(why("synchronize"))?;
    same("every run counted", gpu.read(a, 8), Ok(vec![wanted; 8]))
}

pub(super) fn instances_outlive_their_graph(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    plan.kernel(&[], "acb_fill", &[a, 1, 6])?;
    let executable = gpu.instantiate(plan.graph, 0).map_err(why("instantiate"))?;
    same("destroy", gpu.driver.cuGraphDestroy(plan.graph), 0)?;
    same("upload", gpu.driver.cuGraphUpload(executable, stream), 0)?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    // Its last run goes on.
    same("destroy", gpu.driver.cuGraphExecDestroy(executable), 0)?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("it ran", gpu.read(a, 1), Ok(vec![super::splitmix64(6)]))
}

pub(super) fn instances_record_events(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let driver = &gpu.driver;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let (start, end) = (gpu.event().map_err(why("event"))?, gpu.event().map_err(why("event"))?);
    let record = |after: &[Handle], event| {
        let mut node = 0;
        let (list, count) = (after.as_ptr(), after.len());
        let graph = plan.graph;
        let made = driver.cuGraphAddEventRecordNode(&raw mut node, graph, list, count, event);
        same("event node", made, 0).map(|()| node)
    };
    let held = gpu.held().map_err(why("pin"))?;
    let waits = plan.kernel(&[], "acb_endless", &[held.flag()])?;
    let first = record(&[waits], start)?;
    let slow = plan.kernel(&[first], "acb_spin", &[20_000_000])?;
    record(&[slow], end)?;
    // flags, a stream to upload in, the node that is wrong, what became of it
    let mut wanted = [0_u64, stream as u64, 0, 0];
    let mut executable = 0;
    let wanted = wanted.as_mut_ptr().cast();
    let made = driver.cuGraphInstantiateWithParams(&raw mut executable, plan.graph, wanted);
    same("instantiate", made, 0)?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    same("not yet", driver.cuEventQuery(end), code::NOT_READY)?;
    held.let_go();
    same("wait", driver.cuEventSynchronize(end), 0)?;
    let time = gpu.elapsed(start, end).map_err(why("elapsed"))?;
    same("20 ms, as the GPU counts", (19.9..25.0).contains(&time), true)
}

pub(super) fn instances_are_changed(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let driver = &gpu.driver;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(16).map_err(why("allocate"))?;
    gpu.write(a, &[0, 0]).map_err(why("write"))?;
    let node = plan.kernel(&[], "acb_fill", &[a, 1, 1])?;
    let old = gpu.instantiate(plan.graph, 0).map_err(why("instantiate"))?;
    let changed = with_kernel(&gpu, "acb_fill", &[a + 8, 1, 2], |kernel| {
        driver.cuGraphExecKernelNodeSetParams_v2(old, node, kernel)
    })?;
    same("the instance", changed, 0)?;
    gpu.replay(old, stream).map_err(why("run"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("the new one", gpu.read(a, 2), Ok(vec![0, super::splitmix64(2)]))?;
    // The graph itself still says what it said, until it is changed.
    let new = gpu.instantiate(plan.graph, 0).map_err(why("instantiate"))?;
    let changed = with_kernel(&gpu, "acb_fill", &[a, 1, 3], |kernel| {
        driver.cuGraphKernelNodeSetParams_v2(node, kernel)
    })?;
    same("the graph", changed, 0)?;
    gpu.replay(new, stream).map_err(why("run"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("as it was", gpu.read(a, 1), Ok(vec![super::splitmix64(1)]))?;
    let newest = gpu.instantiate(plan.graph, 0).map_err(why("instantiate"))?;
    gpu.replay(newest, stream).map_err(why("run"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("as it is", gpu.read(a, 1), Ok(vec![super::splitmix64(3)]))
}

pub(super) fn instances_follow_graphs_of_their_shape(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    let captured = |seeds: &[u64]| {
        gpu.begin(stream, RELAXED).map_err(why("begin"))?;
        for &seed in seeds {
            gpu.launch(stream, "acb_fill", &[a, 1, seed]).map_err(why("launch"))?;
        }
        gpu.end(stream).map_err(why("end"))
    };
    let executable = gpu.instantiate(captured(&[1, 2])?, 0).map_err(why("instantiate"))?;
    // result, error node, the node that it comes from
    let mut info = [0_u64; 3];
    let update = |graph, info: &mut [u64; 3]| {
        check(gpu.driver.cuGraphExecUpdate_v2(executable, graph, info.as_mut_ptr().cast()))
    };
    same("the same shape", update(captured(&[3, 4])?, &mut info), Ok(()))?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("the new one", gpu.read(a, 1), Ok(vec![super::splitmix64(4)]))?;
    let longer = update(captured(&[5, 6, 7])?, &mut info);
    same("another shape", longer, Err(code::UPDATE_FAILURE))?;
    same("why", info[0] as u32 != 0, true)?;
    gpu.replay(executable, stream).map_err(why("it still runs"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("unchanged", gpu.read(a, 1), Ok(vec![super::splitmix64(4)]))
}

pub(super) fn graphs_are_copied(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let driver = &gpu.driver;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    let first = plan.kernel(&[], "acb_fill", &[a, 1, 1])?;
    plan.kernel(&[first], "acb_step", &[a, 1, 2, 0])?;
    let (mut copy, mut found) = (0, 0);
    same("copy", driver.cuGraphClone(&raw mut copy, plan.graph), 0)?;
    same("find", driver.cuGraphNodeFindInClone(&raw mut found, first, copy), 0)?;
    same("another node", found != first, true)?;
    same("remove", driver.cuGraphDestroyNode(first), 0)?;
    same("destroy", driver.cuGraphDestroy(plan.graph), 0)?;
    let executable = gpu.instantiate(copy, 0).map_err(why("instantiate"))?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("the copy is whole", gpu.read(a, 1), Ok(vec![step(super::splitmix64(1), 2)]))
}

pub(super) fn graphs_lie_in_graphs(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let driver = &gpu.driver;
    let (inner, outer) = (Plan::new(&gpu)?, Plan::new(&gpu)?);
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    let one = inner.kernel(&[], "acb_spin", &[2_000_000])?;
    inner.kernel(&[one], "acb_step", &[a, 1, 2, 0])?;
    let first = outer.kernel(&[], "acb_fill", &[a, 1, 1])?;
    let mut child = 0;
    let made = driver.cuGraphAddChildGraphNode(
        &raw mut child,
        outer.graph,
        &raw const first,
        1,
        inner.graph,
    );
    same("child node", made, 0)?;
    outer.kernel(&[child], "acb_step", &[a, 1, 3, 0])?;
    same("destroy", driver.cuGraphDestroy(inner.graph), 0)?;
    let executable = gpu.instantiate(outer.graph, 0).map_err(why("instantiate"))?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    // A graph that is launched into a capture becomes a node.
    gpu.begin(stream, RELAXED).map_err(why("begin"))?;
    gpu.replay(executable, stream).map_err(why("captured"))?;
    gpu.launch(stream, "acb_step", &[a, 1, 4, 0]).map_err(why("launch"))?;
    let whole = gpu.end(stream).map_err(why("end"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    let once = step(step(super::splitmix64(1), 2), 3);
    same("in order", gpu.read(a, 1), Ok(vec![once]))?;
    let executable = gpu.instantiate(whole, 0).map_err(why("instantiate"))?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("with what followed", gpu.read(a, 1), Ok(vec![step(once, 4)]))
}

pub(super) fn circles_are_refused(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let (a, b) = (plan.empty(&[])?, plan.empty(&[])?);
    let driver = &gpu.driver;
    let link = |from: Handle, to: Handle| {
        check(driver.cuGraphAddDependencies(plan.graph, &raw const from, &raw const to, 1))
    };
    link(a, b).map_err(why("there"))?;
    any_of("twice", link(a, b), &[code::INVALID_VALUE])?;
    // Some drivers notice the circle here, others when it is to run.
    if link(b, a).is_ok() {
        any_of("instantiate", gpu.instantiate(plan.graph, 0).map(drop), &[code::INVALID_VALUE])?;
    }
    Ok(())
}

pub(super) fn nodes_can_be_left_out(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    let a = gpu.alloc(8).map_err(why("allocate"))?;
    let first = plan.kernel(&[], "acb_fill", &[a, 1, 1])?;
    let second = plan.kernel(&[first], "acb_step", &[a, 1, 2, 0])?;
    plan.kernel(&[second], "acb_step", &[a, 1, 3, 0])?;
    let executable = gpu.instantiate(plan.graph, 0).map_err(why("instantiate"))?;
    same("off", gpu.driver.cuGraphNodeSetEnabled(executable, second, 0), 0)?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("without it", gpu.read(a, 1), Ok(vec![step(super::splitmix64(1), 3)]))?;
    same("on", gpu.driver.cuGraphNodeSetEnabled(executable, second, 1), 0)?;
    gpu.replay(executable, stream).map_err(why("run"))?;
    gpu.wait(stream).map_err(why("wait"))?;
    same("with it", gpu.read(a, 1), Ok(vec![step(step(super::splitmix64(1), 2), 3)]))
}

pub(super) fn graphs_are_drawn(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let first = plan.kernel(&[], "acb_nop", &[])?;
    plan.empty(&[first])?;
    let file = std::env::temp_dir().join(format!("contract-{}.dot", std::process::id()));
    let name = CString::new(file.to_string_lossy().as_bytes()).map_err(|e| e.to_string())?;
    let drawn = gpu.driver.cuGraphDebugDotPrint(plan.graph, name.as_ptr(), 0);
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let _ = std::fs::remove_file(&file);
    same("draw", drawn, 0)?;
    same("a graph", text.contains("digraph") && text.contains("->"), true)
}

pub(super) fn one_call_adds_nodes_of_all_kinds(path: &Path) -> Result<(), String> {
    let gpu = open(path)?;
    let plan = Plan::new(&gpu)?;
    let mut context = 0;
    same("context", gpu.driver.cuCtxGetCurrent(&raw mut context), 0)?;
    let (a, b) = (gpu.alloc(64).map_err(why("a"))?, gpu.alloc(64).map_err(why("b"))?);
    gpu.write(b, &[7; 8]).map_err(why("write"))?;
    // CUgraphNodeParams: the kind in 16 bytes, what is of that kind in 232, and 8 more.
    let add = |after: &[Handle], kind: u64, words: &[u64]| {
        let mut parameters = [0_u64; 32];
        parameters[0] = kind;
        parameters[2..2 + words.len()].copy_from_slice(words);
        let mut node = 0;
        let (list, count) = (after.as_ptr(), after.len());
        let parameters = parameters.as_mut_ptr().cast();
        let made = gpu.driver.cuGraphAddNode(&raw mut node, plan.graph, list, count, parameters);
        same("node", made, 0).map(|()| node)
    };
    // A fill of eight elements of four bytes, with its context.
    let fill = add(&[], 2, &[a, 0, 3 | 4 << 32, 8, 1, context as u64])?;
    let nothing = add(&[fill], 5, &[])?;
    // A copy: flags, the context, both sides, and how much.
    let side = |at: u64| [0, 0, 0, 0, 2, 0, at, 0, 0, 0, 0];
    let copy: Vec<u64> =
        [0, context as u64].into_iter().chain(side(a)).chain(side(b)).chain([32, 1, 1]).collect();
    add(&[nothing], 1, &copy)?;
    let mut executable = 0;
    let made = gpu.driver.cuGraphInstantiateWithFlags(&raw mut executable, plan.graph, 0);
    same("instantiate", made, 0)?;
    let stream = gpu.stream(NON_BLOCKING).map_err(why("stream"))?;
    same("launch", gpu.driver.cuGraphLaunch(executable, stream), 0)?;
    same("wait", gpu.driver.cuStreamSynchronize(stream), 0)?;
    let three = 3 | 3 << 32;
    let words = gpu.read(b, 8).map_err(why("read"))?;
    same("copied", words, vec![three, three, three, three, 7, 7, 7, 7])?;
    let none = gpu.driver.cuGraphAddNode(
        std::ptr::null_mut(),
        plan.graph,
        std::ptr::null(),
        0,
        std::ptr::null_mut(),
    );
    any_of("no parameters", Err(none), &[code::INVALID_VALUE])
}
