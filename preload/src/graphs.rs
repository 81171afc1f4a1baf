//! Memory that graphs allocate when they run: how much of it each needs at once, and until when.
//!
//! Owns: which graph allocates and frees what, and what is executable of it. Does not own: the account (`memory`), the calls
//! (`hooks::graph`).
//!
//! The driver uses memory again that a graph has freed, and keeps it between runs. So a graph counts with the most that is allocated
//! between its nodes in the order in which they were made, until it and all that was instantiated of it are destroyed.
//! A graph with such memory cannot be copied, but it can be moved into another, with which it goes then.

pub(crate) mod leaving;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The driver's handle of a graph, or of an executable one.
pub(crate) type Handle = usize;

/// The graphs of this process that allocate.
pub(crate) static GRAPHS: Graphs = Graphs(Mutex::new(Register::new()));

pub(crate) struct Graphs(Mutex<Register>);

/// A graph for as long as its memory counts; handles are given out anew before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GraphId(pub(crate) u64);

struct Register {
    last: u64,
    /// Those that exist still, by their handles.
    names: BTreeMap<Handle, GraphId>,
    graphs: BTreeMap<GraphId, Graph>,
    instances: BTreeMap<Handle, GraphId>,
    /// Where memory is that a graph allocates.
    allocations: BTreeMap<u64, Allocation>,
}

#[derive(Default)]
struct Graph {
    is_destroyed: bool,
    instances: u32,
    /// Graphs that were moved into it.
    children: Vec<GraphId>,
    levels: BTreeMap<u32, Level>,
}

#[derive(Clone, Copy, Default)]
struct Level {
    now: u64,
    most: u64,
}

struct Allocation {
    graph: GraphId,
    device: u32,
    bytes: u64,
}

impl Graphs {
    fn register(&self) -> MutexGuard<'_, Register> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By how much a graph needs more with an allocation of so many bytes.
    pub(crate) fn growth(&self, graph: Handle, device: u32, bytes: u64) -> u64 {
        let register = self.register();
        let known = register.names.get(&graph).and_then(|id| register.graphs.get(id));
        let level = known.and_then(|graph| graph.levels.get(&device)).copied().unwrap_or_default();
        level.now.saturating_add(bytes).saturating_sub(level.most)
    }

    /// It has that allocation.
    pub(crate) fn allocates(
        &self,
        graph: Handle,
        device: u32,
        address: u64,
        bytes: u64,
    ) -> GraphId {
        let mut register = self.register();
        let id = register.named(graph);
        let level = register.graphs.entry(id).or_default().levels.entry(device).or_default();
        level.now = level.now.saturating_add(bytes);
        level.most = level.most.max(level.now);
        register.allocations.insert(address, Allocation { graph: id, device, bytes });
        id
    }

    /// A graph frees memory; it is used again if the same graph has allocated it.
    pub(crate) fn frees(&self, graph: Handle, address: u64) {
        let mut register = self.register();
        let Some(id) = register.names.get(&graph).copied() else { return };
        let Some(Allocation { device, bytes, .. }) =
            register.allocations.get(&address).filter(|allocation| allocation.graph == id)
        else {
            return;
        };
        let (device, bytes) = (*device, *bytes);
        register.allocations.remove(&address);
        let level = register.graphs.get_mut(&id).and_then(|graph| graph.levels.get_mut(&device));
        if let Some(level) = level {
            level.now = level.now.saturating_sub(bytes);
        }
    }

    /// A graph has become executable.
    pub(crate) fn instantiated(&self, graph: Handle, instance: Handle) {
        let mut register = self.register();
        let Some(id) = register.names.get(&graph).copied() else { return };
        if let Some(graph) = register.graphs.get_mut(&id) {
            graph.instances += 1;
            register.instances.insert(instance, id);
        }
    }

    /// A graph is another's from now on: it goes with that one, and its handle too.
    pub(crate) fn moved(&self, child: Handle, parent: Handle) {
        let mut register = self.register();
        let Some(child) = register.names.remove(&child) else { return };
        let parent = register.named(parent);
        register.graphs.entry(parent).or_default().children.push(child);
    }

    /// A graph is destroyed; which need no memory any more, and on which devices they had it.
    pub(crate) fn destroyed(&self, graph: Handle) -> Vec<(GraphId, u32)> {
        let mut register = self.register();
        let Some(id) = register.names.remove(&graph) else { return Vec::new() };
        if let Some(graph) = register.graphs.get_mut(&id) {
            graph.is_destroyed = true;
        }
        register.gone(id)
    }

    /// An executable graph is destroyed; as above.
    pub(crate) fn instance_destroyed(&self, instance: Handle) -> Vec<(GraphId, u32)> {
        let mut register = self.register();
        let Some(id) = register.instances.remove(&instance) else { return Vec::new() };
        if let Some(graph) = register.graphs.get_mut(&id) {
            graph.instances -= 1;
        }
        register.gone(id)
    }
}

impl Register {
    const fn new() -> Self {
        Register {
            last: 0,
            names: BTreeMap::new(),
            graphs: BTreeMap::new(),
            instances: BTreeMap::new(),
            allocations: BTreeMap::new(),
        }
    }

    fn named(&mut self, graph: Handle) -> GraphId {
        let last = &mut self.last;
        *self.names.entry(graph).or_insert_with(|| {
            *last += 1;
            GraphId(*last)
        })
    }

    /// What is gone if this graph is.
    fn gone(&mut self, id: GraphId) -> Vec<(GraphId, u32)> {
        let can_run = |graph: &Graph| !graph.is_destroyed || graph.instances > 0;
        if self.graphs.get(&id).is_none_or(can_run) {
            return Vec::new();
        }
        let mut gone = Vec::new();
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            let Some(graph) = self.graphs.remove(&id) else { continue };
            self.allocations.retain(|_, allocation| allocation.graph != id);
            gone.extend(graph.levels.keys().map(|device| (id, *device)));
            open.extend(graph.children);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graphs() -> Graphs {
        Graphs(Mutex::new(Register::new()))
    }

    #[test]
    fn a_graph_needs_what_it_has_allocated_at_once() {
        let graphs = graphs();
        assert_eq!(graphs.growth(1, 0, 10), 10);
        graphs.allocates(1, 0, 100, 10);
        assert_eq!(graphs.growth(1, 0, 5), 5);
        graphs.frees(1, 100);
        assert_eq!(graphs.growth(1, 0, 10), 0);
        graphs.allocates(1, 0, 200, 12);
        assert_eq!(graphs.growth(1, 0, 1), 1);
        assert_eq!(graphs.growth(1, 1, 1), 1);
        assert_eq!(graphs.growth(2, 0, 1), 1);
    }

    #[test]
    fn what_another_graph_frees_is_not_used_again_by_this_one() {
        let graphs = graphs();
        graphs.allocates(1, 0, 100, 10);
        graphs.allocates(2, 0, 200, 10);
        graphs.frees(2, 100);
        assert_eq!(graphs.growth(1, 0, 1), 1);
        assert_eq!(graphs.growth(2, 0, 1), 1);
    }

    #[test]
    fn memory_goes_with_the_last_that_could_run() {
        let graphs = graphs();
        let id = graphs.allocates(1, 3, 100, 10);
        graphs.instantiated(1, 70);
        graphs.instantiated(1, 71);
        assert_eq!(graphs.instance_destroyed(70), []);
        assert_eq!(graphs.destroyed(1), []);
        // Its handle may be another graph's by now.
        let other = graphs.allocates(1, 0, 100, 10);
        assert_ne!(other, id);
        assert_eq!(graphs.instance_destroyed(71), [(id, 3)]);
        assert_eq!(graphs.instance_destroyed(71), []);
        assert_eq!(graphs.destroyed(1), [(other, 0)]);
        assert_eq!(graphs.destroyed(1), []);
    }

    #[test]
    fn what_was_moved_into_another_goes_with_it() {
        let graphs = graphs();
        let inner = graphs.allocates(1, 0, 100, 10);
        let middle = graphs.allocates(2, 1, 200, 10);
        graphs.moved(1, 2);
        graphs.moved(2, 3);
        graphs.instantiated(3, 70);
        assert_eq!(graphs.destroyed(3), []);
        // Their handles are others' by now.
        let other = graphs.allocates(1, 0, 300, 10);
        assert_eq!(graphs.instance_destroyed(70), [(middle, 1), (inner, 0)]);
        assert_eq!(graphs.destroyed(1), [(other, 0)]);
        // One without memory makes no difference.
        graphs.moved(8, 9);
        assert_eq!(graphs.destroyed(9), []);
    }
}
