//! Graphs as programs build and look at them: nodes of no device's, edges, copies.
//! `node` has the nodes that do work, `replay` what runs them.
#![allow(unsafe_code)] // C pointers

use std::ffi::{c_char, c_uint};
use std::fmt::Write;

use acb_cuda_abi::sys;

use super::{nodes_of, put, put_wanted, text};
use crate::code::{INVALID_VALUE, NOT_SUPPORTED, OPERATING_SYSTEM, Outcome};
use crate::driver;
use crate::graph::{Graph, Node, Task};
use crate::handles::Handle;
use crate::objects::Tables;
use crate::work::Work;

calls! {
    fn cuGraphCreate(graph: *mut sys::CUgraph, flags: c_uint) {
        let driver = driver::get()?;
        if flags != 0 || graph.is_null() {
            return Err(INVALID_VALUE);
        }
        let handle = driver.lock().graphs.insert(Graph::default());
        put(graph, handle.bits() as sys::CUgraph)
    }

    fn cuGraphDestroy(graph: sys::CUgraph) {
        let driver = driver::get()?;
        let mut tables = driver.look(driver.lock());
        let graph = Handle::from_bits(graph as u64);
        if tables.graphs.get(graph).ok_or(INVALID_VALUE)?.inside {
            return Err(INVALID_VALUE);
        }
        tables.remove_graph(graph);
        tables.sweep_graph_memory();
        Ok(())
    }

    fn cuGraphClone(copy: *mut sys::CUgraph, graph: sys::CUgraph) {
        let driver = driver::get()?;
        let mut tables = driver.lock();
        let graph = Handle::from_bits(graph as u64);
        if !tables.may_be_copied(graph) {
            return Err(NOT_SUPPORTED);
        }
        let handle = tables.copy_graph(graph, false)?;
        put(copy, handle.bits() as sys::CUgraph)
    }

    fn cuGraphNodeFindInClone(
        node: *mut sys::CUgraphNode,
        original: sys::CUgraphNode,
        copy: sys::CUgraph,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let (copy, original) = (Handle::from_bits(copy as u64), Handle::from_bits(original as u64));
        put(node, tables.copied(copy, original)?.bits() as sys::CUgraphNode)
    }

    fn cuGraphAddEmptyNode(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
    ) {
        add(node, graph, dependencies, count, |_, _| Ok(Task::Empty))
    }

    fn cuGraphAddChildGraphNode(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        child: sys::CUgraph,
    ) {
        add(node, graph, dependencies, count, |_, tables| {
            let child = Handle::from_bits(child as u64);
            if !tables.may_be_copied(child) {
                return Err(NOT_SUPPORTED);
            }
            tables.copy_graph(child, true).map(Task::Child)
        })
    }

    /// No function of the driver's: what cuGraphAddNode does with a child that is not copied.
    fn move_child(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        child: sys::CUgraph,
    ) {
        let parent = Handle::from_bits(graph as u64);
        add(node, graph, dependencies, count, |_, tables| {
            let child = Handle::from_bits(child as u64);
            let is_free = tables.graphs.get(child).is_some_and(|graph| !graph.inside);
            if !is_free || child == parent {
                return Err(INVALID_VALUE);
            }
            if let Some(graph) = tables.graphs.get_mut(child) {
                graph.inside = true;
            }
            Ok(Task::Child(child))
        })
    }

    fn cuGraphChildGraphNodeGetGraph(node: sys::CUgraphNode, graph: *mut sys::CUgraph) {
        let driver = driver::get()?;
        let tables = driver.lock();
        match tables.node(node)?.task {
            Task::Child(child) => put(graph, child.bits() as sys::CUgraph),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuGraphAddEventRecordNode(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        event: sys::CUevent,
    ) {
        add(node, graph, dependencies, count, |_, tables| {
            let event = Handle::from_bits(event as u64);
            tables.event(event).map(|_| Task::Record(event))
        })
    }

    fn cuGraphAddEventWaitNode(
        node: *mut sys::CUgraphNode,
        graph: sys::CUgraph,
        dependencies: *const sys::CUgraphNode,
        count: usize,
        event: sys::CUevent,
    ) {
        add(node, graph, dependencies, count, |_, tables| {
            let event = Handle::from_bits(event as u64);
            tables.event(event).map(|_| Task::Wait(event))
        })
    }

    fn cuGraphEventRecordNodeGetEvent(node: sys::CUgraphNode, event: *mut sys::CUevent) {
        let driver = driver::get()?;
        let tables = driver.lock();
        match tables.node(node)?.task {
            Task::Record(own) => put(event, own.bits() as sys::CUevent),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuGraphEventWaitNodeGetEvent(node: sys::CUgraphNode, event: *mut sys::CUevent) {
        let driver = driver::get()?;
        let tables = driver.lock();
        match tables.node(node)?.task {
            Task::Wait(own) => put(event, own.bits() as sys::CUevent),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuGraphAddDependencies(
        graph: sys::CUgraph,
        from: *const sys::CUgraphNode,
        to: *const sys::CUgraphNode,
        count: usize,
    ) {
        let driver = driver::get()?;
        let pairs = pairs(from, to, count)?;
        let mut tables = driver.lock();
        let graph = Handle::from_bits(graph as u64);
        tables.check_pairs(graph, &pairs)?;
        for &(from, to) in &pairs {
            if tables.nodes.get(to).is_none_or(|node| node.after.contains(&from)) {
                return Err(INVALID_VALUE);
            }
        }
        for (from, to) in pairs {
            if let Some(node) = tables.nodes.get_mut(to) {
                node.after.push(from);
            }
        }
        Ok(())
    }

    fn cuGraphAddDependencies_v2(
        graph: sys::CUgraph,
        from: *const sys::CUgraphNode,
        to: *const sys::CUgraphNode,
        _edges: *const sys::CUgraphEdgeData,
        count: usize,
    ) {
        cuGraphAddDependencies(graph, from, to, count)
    }

    fn cuGraphRemoveDependencies(
        graph: sys::CUgraph,
        from: *const sys::CUgraphNode,
        to: *const sys::CUgraphNode,
        count: usize,
    ) {
        let driver = driver::get()?;
        let pairs = pairs(from, to, count)?;
        let mut tables = driver.lock();
        let graph = Handle::from_bits(graph as u64);
        tables.check_pairs(graph, &pairs)?;
        if tables.has_memory(graph) {
            return Err(NOT_SUPPORTED);
        }
        for &(from, to) in &pairs {
            if tables.nodes.get(to).is_none_or(|node| !node.after.contains(&from)) {
                return Err(INVALID_VALUE);
            }
        }
        for (from, to) in pairs {
            if let Some(node) = tables.nodes.get_mut(to) {
                node.after.retain(|&other| other != from);
            }
        }
        Ok(())
    }

    fn cuGraphRemoveDependencies_v2(
        graph: sys::CUgraph,
        from: *const sys::CUgraphNode,
        to: *const sys::CUgraphNode,
        _edges: *const sys::CUgraphEdgeData,
        count: usize,
    ) {
        cuGraphRemoveDependencies(graph, from, to, count)
    }

    fn cuGraphDestroyNode(node: sys::CUgraphNode) {
        let driver = driver::get()?;
        driver.lock().remove_node(Handle::from_bits(node as u64))
    }

    fn cuGraphGetNodes(
        graph: sys::CUgraph,
        nodes: *mut sys::CUgraphNode,
        count: *mut usize,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let graph = tables.graphs.get(Handle::from_bits(graph as u64)).ok_or(INVALID_VALUE)?;
        list(&graph.nodes, nodes, count)
    }

    fn cuGraphGetRootNodes(
        graph: sys::CUgraph,
        nodes: *mut sys::CUgraphNode,
        count: *mut usize,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let graph = tables.graphs.get(Handle::from_bits(graph as u64)).ok_or(INVALID_VALUE)?;
        let is_root = |node: &Handle<Node>| {
            tables.nodes.get(*node).is_some_and(|node| node.after.is_empty())
        };
        let roots: Vec<_> = graph.nodes.iter().copied().filter(is_root).collect();
        list(&roots, nodes, count)
    }

    fn cuGraphGetEdges(
        graph: sys::CUgraph,
        from: *mut sys::CUgraphNode,
        to: *mut sys::CUgraphNode,
        count: *mut usize,
    ) {
        let driver = driver::get()?;
        if count.is_null() || from.is_null() != to.is_null() {
            return Err(INVALID_VALUE);
        }
        let edges = driver.lock().edges(Handle::from_bits(graph as u64))?;
        let (earlier, later): (Vec<_>, Vec<_>) = edges.into_iter().unzip();
        let mut room = count.read();
        list(&earlier, from, &raw mut room)?;
        list(&later, to, count)
    }

    fn cuGraphGetEdges_v2(
        graph: sys::CUgraph,
        from: *mut sys::CUgraphNode,
        to: *mut sys::CUgraphNode,
        edges: *mut sys::CUgraphEdgeData,
        count: *mut usize,
    ) {
        plain_edges(edges, count);
        cuGraphGetEdges(graph, from, to, count)
    }

    fn cuGraphNodeGetDependencies(
        node: sys::CUgraphNode,
        dependencies: *mut sys::CUgraphNode,
        count: *mut usize,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let node = tables.node(node)?;
        list(&node.after, dependencies, count)
    }

    fn cuGraphNodeGetDependencies_v2(
        node: sys::CUgraphNode,
        dependencies: *mut sys::CUgraphNode,
        edges: *mut sys::CUgraphEdgeData,
        count: *mut usize,
    ) {
        plain_edges(edges, count);
        cuGraphNodeGetDependencies(node, dependencies, count)
    }

    fn cuGraphNodeGetDependentNodes(
        node: sys::CUgraphNode,
        dependents: *mut sys::CUgraphNode,
        count: *mut usize,
    ) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let node = Handle::from_bits(node as u64);
        let graph = tables.nodes.get(node).ok_or(INVALID_VALUE)?.graph;
        let edges = tables.edges(graph)?;
        let found: Vec<_> =
            edges.into_iter().filter(|(from, _)| *from == node).map(|(_, to)| to).collect();
        list(&found, dependents, count)
    }

    fn cuGraphNodeGetDependentNodes_v2(
        node: sys::CUgraphNode,
        dependents: *mut sys::CUgraphNode,
        edges: *mut sys::CUgraphEdgeData,
        count: *mut usize,
    ) {
        plain_edges(edges, count);
        cuGraphNodeGetDependentNodes(node, dependents, count)
    }

    fn cuGraphNodeGetType(node: sys::CUgraphNode, kind: *mut c_uint) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let node = tables.node(node)?;
        put(kind, node.task.kind())
    }

    fn cuGraphNodeGetContainingGraph(node: sys::CUgraphNode, graph: *mut sys::CUgraph) {
        let driver = driver::get()?;
        let tables = driver.lock();
        let node = tables.node(node)?;
        put(graph, node.graph.bits() as sys::CUgraph)
    }

    fn cuGraphDebugDotPrint(graph: sys::CUgraph, path: *const c_char, _flags: c_uint) {
        let driver = driver::get()?;
        let path = text(path)?;
        let drawn = driver.lock().drawn(Handle::from_bits(graph as u64))?;
        std::fs::write(path, drawn).map_err(|_| OPERATING_SYSTEM)
    }
}

/// Adds a node; `task` says what it does, with the tables at hand.
///
/// # Safety
/// `node` is null or may be written, and there are `count` dependencies.
pub(super) unsafe fn add(
    node: *mut sys::CUgraphNode,
    graph: sys::CUgraph,
    dependencies: *const sys::CUgraphNode,
    count: usize,
    task: impl FnOnce(&'static driver::Driver, &mut Tables) -> Outcome<Task>,
) -> Outcome {
    let driver = driver::get()?;
    if node.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller vouches for the list.
    let after = unsafe { nodes_of(dependencies, count) }?;
    let graph = Handle::from_bits(graph as u64);
    let mut tables = driver.lock();
    tables.graphs.get(graph).ok_or(INVALID_VALUE)?;
    let task = task(driver, &mut tables)?;
    let handle = tables.add_node(graph, &after, task)?;
    // SAFETY: the caller vouches for it.
    unsafe { put(node, handle.bits() as sys::CUgraphNode) }
}

/// # Safety
/// Both lists are null or have `count` elements.
unsafe fn pairs(
    from: *const sys::CUgraphNode,
    to: *const sys::CUgraphNode,
    count: usize,
) -> Outcome<Vec<(Handle<Node>, Handle<Node>)>> {
    // SAFETY: the caller vouches for both.
    unsafe { Ok(nodes_of(from, count)?.into_iter().zip(nodes_of(to, count)?).collect()) }
}

/// The driver's way with lists: without a place, how many there are; with one, as
/// many as fit, the rest of it zeroes.
///
/// # Safety
/// `to` is null or has the room that `count` says.
unsafe fn list<T>(all: &[Handle<T>], to: *mut sys::CUgraphNode, count: *mut usize) -> Outcome {
    if count.is_null() {
        return Err(INVALID_VALUE);
    }
    if to.is_null() {
        // SAFETY: not null.
        unsafe { count.write(all.len()) };
        return Ok(());
    }
    // SAFETY: not null, and the caller vouches for the room.
    unsafe {
        for at in 0..count.read() {
            let bits = all.get(at).map_or(0, |handle| handle.bits());
            to.add(at).write(bits as sys::CUgraphNode);
        }
        count.write(count.read().min(all.len()));
    }
    Ok(())
}

/// All edges are plain ones.
///
/// # Safety
/// `edges` is null or has the room that `count` says.
unsafe fn plain_edges(edges: *mut sys::CUgraphEdgeData, count: *mut usize) {
    if !edges.is_null() && !count.is_null() {
        // SAFETY: the caller vouches for the room.
        unsafe { edges.write_bytes(0, count.read()) };
    }
}

impl Tables {
    /// A node that a program names.
    pub(super) fn node(&self, node: sys::CUgraphNode) -> Outcome<&Node> {
        self.nodes.get(Handle::from_bits(node as u64)).ok_or(INVALID_VALUE)
    }

    /// Both ends of each edge are nodes of the graph, and not the same.
    fn check_pairs(&self, graph: Handle<Graph>, pairs: &[(Handle<Node>, Handle<Node>)]) -> Outcome {
        self.graphs.get(graph).ok_or(INVALID_VALUE)?;
        let inside = |node| self.nodes.get(node).is_some_and(|node| node.graph == graph);
        let fits = pairs.iter().all(|&(from, to)| from != to && inside(from) && inside(to));
        if fits { Ok(()) } else { Err(INVALID_VALUE) }
    }

    /// The graph in the language of `dot`.
    fn drawn(&self, graph: Handle<Graph>) -> Outcome<String> {
        let mut text = String::from("digraph dot {\n");
        let nodes = &self.graphs.get(graph).ok_or(INVALID_VALUE)?.nodes;
        for (at, &handle) in nodes.iter().enumerate() {
            let Some(node) = self.nodes.get(handle) else { continue };
            let label = match &node.task {
                Task::Run(submission) => match &submission.work {
                    Work::Kernel(call) => format!("KERNEL {}", call.name),
                    Work::Copy(_) => "MEMCPY".to_owned(),
                    Work::Set(_) => "MEMSET".to_owned(),
                    Work::Host(_) => "HOST".to_owned(),
                    Work::Free(address) => format!("MEM_FREE {address:#x}"),
                    Work::Nothing
                    | Work::Event(_)
                    | Work::Signal(..)
                    | Work::Await(..)
                    | Work::Begin(_)
                    | Work::Branch(_)
                    | Work::Map(..) => "EMPTY".to_owned(),
                    Work::Wait(_) => "BATCH_MEM_OP".to_owned(),
                },
                Task::Empty => "EMPTY".to_owned(),
                Task::Child(_) => "GRAPH".to_owned(),
                Task::Conditional(_) => "CONDITIONAL".to_owned(),
                Task::Record(_) => "EVENT_RECORD".to_owned(),
                Task::Wait(_) => "WAIT_EVENT".to_owned(),
                Task::Allocate(allocation) => format!("MEM_ALLOC {:#x}", allocation.address),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  \"{:#x}\" [label=\"{at}: {label}\"];", handle.bits());
        }
        for (from, to) in self.edges(graph)? {
            let _ = writeln!(text, "  \"{:#x}\" -> \"{:#x}\";", from.bits(), to.bits());
        }
        text.push_str("}\n");
        Ok(text)
    }
}

/// What a program may leave null is left so.
///
/// # Safety
/// As for `put_wanted`.
pub(super) unsafe fn put_no_node(to: *mut sys::CUgraphNode) {
    // SAFETY: the caller vouches for it.
    unsafe { put_wanted(to, std::ptr::null_mut()) };
}
