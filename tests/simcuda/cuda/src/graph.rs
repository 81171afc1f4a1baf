//! Graphs as data: their nodes, what these wait for, copies of graphs, and what
//! is instantiated of them. Nothing runs here (`replay`), and nothing records
//! (`capture`).

use std::collections::HashMap;
use std::sync::Arc;

use crate::code::{INVALID_VALUE, NOT_SUPPORTED, Outcome};
use crate::conditions::{self, ConditionId};
use crate::graph_memory::Allocation;
use crate::handles::Handle;
use crate::objects::{Event, Tables};
use crate::physical::Physical;
use crate::timeline::{Op, Submission};
use crate::unasked::Unasked;
use crate::work::Work;

/// A graph: of the program's, the inside of a node, or the copy that an
/// instance keeps.
#[derive(Default)]
pub(crate) struct Graph {
    /// In the order in which they were made.
    pub(crate) nodes: Vec<Handle<Node>>,
    /// Its node in another graph, if it is the inside of one.
    pub(crate) inside: bool,
}

/// A node.
pub(crate) struct Node {
    pub(crate) graph: Handle<Graph>,
    pub(crate) task: Task,
    /// What it waits for, within its graph.
    pub(crate) after: Vec<Handle<Node>>,
    /// The node that it is a copy of.
    pub(crate) original: Option<Handle<Node>>,
    /// Instances may leave nodes out.
    pub(crate) enabled: bool,
}

/// What a node does.
#[derive(Clone)]
pub(crate) enum Task {
    Empty,
    /// A kernel, copy, fill, function of the program's, or the end of an
    /// allocation.
    Run(Submission),
    Child(Handle<Graph>),
    Conditional(Conditional),
    Record(Handle<Event>),
    Wait(Handle<Event>),
    Allocate(Allocation),
}

/// A node whose bodies run as a condition says.
#[derive(Clone)]
pub(crate) struct Conditional {
    pub(crate) condition: ConditionId,
    pub(crate) branching: Branching,
    pub(crate) bodies: Vec<Handle<Graph>>,
    /// The bodies as the program is shown them, for as long as the node is there.
    #[allow(dead_code)]
    pub(crate) shown: Arc<[u64]>,
}

/// How the condition decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Branching {
    /// The first body, or the second one if it is zero.
    If,
    /// The only body, until it is zero.
    While,
    /// The body of its number.
    Switch,
}

impl Branching {
    /// The body that runs next, of so many.
    pub(crate) fn choose(self, value: u32, bodies: usize) -> Option<usize> {
        let body = match self {
            Branching::Switch => value as usize,
            Branching::If | Branching::While => usize::from(value == 0),
        };
        (body < bodies).then_some(body)
    }
}

impl Task {
    /// The graphs inside it.
    pub(crate) fn inner(&self) -> &[Handle<Graph>] {
        match self {
            Task::Child(child) => std::slice::from_ref(child),
            Task::Conditional(conditional) => &conditional.bodies,
            _ => &[],
        }
    }

    /// What a conditional node's bodies may have.
    fn may_be_conditional(&self) -> bool {
        matches!(self.kind(), 0 | 1 | 2 | 4 | 5 | 13)
    }

    /// `CUgraphNodeType`
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Task::Run(submission) => match submission.work {
                Work::Kernel(_) => 0,
                Work::Copy(_) => 1,
                Work::Set(_) => 2,
                Work::Host(_) => 3,
                Work::Free(_) => 11,
                Work::Nothing
                | Work::Event(_)
                | Work::Signal(..)
                | Work::Await(..)
                | Work::Begin(_)
                | Work::Branch(_)
                | Work::Map(..) => 5,
                Work::Wait(_) => 12,
            },
            Task::Child(_) => 4,
            Task::Empty => 5,
            Task::Wait(_) => 6,
            Task::Record(_) => 7,
            Task::Allocate(_) => 10,
            Task::Conditional(_) => 13,
        }
    }

    /// Whether it is about memory of the graph's own.
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.kind(), 10 | 11)
    }
}

/// A graph made ready to run.
pub(crate) struct Executable {
    /// Its own copy; the program's graph may change or go.
    pub(crate) graph: Handle<Graph>,
    pub(crate) of: Handle<Graph>,
    pub(crate) flags: u64,
    pub(crate) id: u64,
    /// The end of its last run: it does not run beside itself.
    pub(crate) last: Option<Handle<Op>>,
    /// What lies behind its allocations, from the first run on.
    pub(crate) memory: HashMap<u64, Arc<Physical>>,
    /// What the driver took for it.
    pub(crate) _taken: Unasked,
}

/// Why an instance cannot become another graph (`CUgraphExecUpdateResult`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Unlike {
    Topology = 2,
    NodeType = 3,
    NotSupported = 6,
}

impl Tables {
    /// A new node behind others of the same graph.
    pub(crate) fn add_node(
        &mut self,
        graph: Handle<Graph>,
        after: &[Handle<Node>],
        task: Task,
    ) -> Outcome<Handle<Node>> {
        self.graphs.get(graph).ok_or(INVALID_VALUE)?;
        let mut known = Vec::with_capacity(after.len());
        for &other in after {
            if self.nodes.get(other).ok_or(INVALID_VALUE)?.graph != graph || known.contains(&other)
            {
                return Err(INVALID_VALUE);
            }
            known.push(other);
        }
        let node =
            self.nodes.insert(Node { graph, task, after: known, original: None, enabled: true });
        if let Some(graph) = self.graphs.get_mut(graph) {
            graph.nodes.push(node);
        }
        Ok(node)
    }

    /// Takes a graph away with all that is in it.
    pub(crate) fn remove_graph(&mut self, graph: Handle<Graph>) {
        let Some(graph) = self.graphs.remove(graph) else { return };
        for node in graph.nodes {
            let node = self.nodes.remove(node);
            for inner in node.iter().flat_map(|node| node.task.inner()) {
                self.remove_graph(*inner);
            }
        }
    }

    /// Takes a node away; what waited for it no longer does.
    pub(crate) fn remove_node(&mut self, handle: Handle<Node>) -> Outcome {
        let node = self.nodes.get(handle).ok_or(INVALID_VALUE)?;
        let graph = node.graph;
        if node.task.is_memory() {
            return Err(NOT_SUPPORTED);
        }
        let node = self.nodes.remove(handle);
        for inner in node.iter().flat_map(|node| node.task.inner()) {
            self.remove_graph(*inner);
        }
        let Some(graph) = self.graphs.get_mut(graph) else { return Ok(()) };
        graph.nodes.retain(|&other| other != handle);
        for other in graph.nodes.clone() {
            if let Some(other) = self.nodes.get_mut(other) {
                other.after.retain(|&one| one != handle);
            }
        }
        Ok(())
    }

    /// Whether any node of a graph, or of graphs inside it, is so.
    fn any_task(&self, graph: Handle<Graph>, is_so: &dyn Fn(&Task) -> bool) -> bool {
        let nodes = self.graphs.get(graph).map_or(&[][..], |graph| &graph.nodes[..]);
        nodes.iter().filter_map(|&node| self.nodes.get(node)).any(|node| {
            is_so(&node.task) || node.task.inner().iter().any(|&inner| self.any_task(inner, is_so))
        })
    }

    /// Whether a graph has memory of its own.
    pub(crate) fn has_memory(&self, graph: Handle<Graph>) -> bool {
        self.any_task(graph, &Task::is_memory)
    }

    /// Whether nothing keeps a graph from being copied: memory of its own, or conditions.
    pub(crate) fn may_be_copied(&self, graph: Handle<Graph>) -> bool {
        !self.any_task(graph, &|task| task.is_memory() || task.kind() == 13)
    }

    /// Whether a graph is `outer`, or inside one of its nodes.
    pub(crate) fn is_within(&self, graph: Handle<Graph>, outer: Handle<Graph>) -> bool {
        graph == outer || self.any_task(outer, &|task| task.inner().contains(&graph))
    }

    /// The conditions of a graph's nodes, and whether their bodies have what they may have alone.
    pub(crate) fn conditions(&self, graph: Handle<Graph>) -> (Vec<ConditionId>, bool) {
        let found = std::cell::RefCell::new((Vec::new(), true));
        self.any_task(graph, &|task| {
            if let Task::Conditional(conditional) = task {
                let forbidden = |inner: &Task| !inner.may_be_conditional();
                let bodies = &conditional.bodies;
                let good = !bodies.iter().any(|&body| self.any_task(body, &forbidden));
                let mut found = found.borrow_mut();
                found.0.push(conditional.condition);
                found.1 &= good;
            }
            false
        });
        found.into_inner()
    }

    /// A copy of a graph, its nodes knowing what they are copies of.
    pub(crate) fn copy_graph(
        &mut self,
        graph: Handle<Graph>,
        inside: bool,
    ) -> Outcome<Handle<Graph>> {
        let nodes = self.graphs.get(graph).ok_or(INVALID_VALUE)?.nodes.clone();
        let copy = self.graphs.insert(Graph { nodes: Vec::with_capacity(nodes.len()), inside });
        let mut known = HashMap::with_capacity(nodes.len());
        for &handle in &nodes {
            let Some(node) = self.nodes.get(handle) else { continue };
            let (enabled, mut task) = (node.enabled, node.task.clone());
            match &mut task {
                Task::Child(child) => *child = self.copy_graph(*child, true)?,
                Task::Conditional(conditional) => {
                    for body in &mut conditional.bodies {
                        *body = self.copy_graph(*body, true)?;
                    }
                }
                _ => {}
            }
            let original = Some(handle);
            let node = Node { graph: copy, task, after: Vec::new(), original, enabled };
            let node = self.nodes.insert(node);
            known.insert(handle, node);
            if let Some(copy) = self.graphs.get_mut(copy) {
                copy.nodes.push(node);
            }
        }
        for (original, copied) in &known {
            let Some(after) = self.nodes.get(*original).map(|node| node.after.clone()) else {
                continue;
            };
            if let Some(node) = self.nodes.get_mut(*copied) {
                node.after = after.iter().filter_map(|other| known.get(other).copied()).collect();
            }
        }
        Ok(copy)
    }

    /// The node of a copy that stands for `original`.
    pub(crate) fn copied(
        &self,
        graph: Handle<Graph>,
        original: Handle<Node>,
    ) -> Outcome<Handle<Node>> {
        let nodes = &self.graphs.get(graph).ok_or(INVALID_VALUE)?.nodes;
        let stands = |node: &&Handle<Node>| {
            self.nodes.get(**node).is_some_and(|node| node.original == Some(original))
        };
        nodes.iter().find(stands).copied().ok_or(INVALID_VALUE)
    }

    /// The nodes, each after what it waits for; none if they wait for each other.
    pub(crate) fn ordered(&self, graph: Handle<Graph>) -> Option<Vec<Handle<Node>>> {
        let nodes = &self.graphs.get(graph)?.nodes;
        let mut left: HashMap<Handle<Node>, usize> = HashMap::with_capacity(nodes.len());
        let mut dependents: HashMap<Handle<Node>, Vec<Handle<Node>>> = HashMap::new();
        let mut free = std::collections::VecDeque::new();
        for &handle in nodes {
            let after = &self.nodes.get(handle)?.after;
            left.insert(handle, after.len());
            if after.is_empty() {
                free.push_back(handle);
            }
            for &other in after {
                dependents.entry(other).or_default().push(handle);
            }
        }
        let mut ordered = Vec::with_capacity(nodes.len());
        while let Some(handle) = free.pop_front() {
            ordered.push(handle);
            for &dependent in dependents.get(&handle).into_iter().flatten() {
                let count = left.get_mut(&dependent)?;
                *count -= 1;
                if *count == 0 {
                    free.push_back(dependent);
                }
            }
        }
        (ordered.len() == nodes.len()).then_some(ordered)
    }

    /// All edges, as pairs of the earlier and the later node.
    pub(crate) fn edges(&self, graph: Handle<Graph>) -> Outcome<Vec<(Handle<Node>, Handle<Node>)>> {
        let nodes = &self.graphs.get(graph).ok_or(INVALID_VALUE)?.nodes;
        Ok(nodes
            .iter()
            .filter_map(|&to| Some((to, self.nodes.get(to)?)))
            .flat_map(|(to, node)| node.after.iter().map(move |&from| (from, to)))
            .collect())
    }

    /// Makes a graph ready to run.
    pub(crate) fn instantiate(
        &mut self,
        of: Handle<Graph>,
        flags: u64,
        taken: Unasked,
    ) -> Outcome<Handle<Executable>> {
        if self.graphs.get(of).ok_or(INVALID_VALUE)?.inside {
            return Err(INVALID_VALUE);
        }
        self.ordered(of).ok_or(INVALID_VALUE)?;
        if self.has_memory(of) && self.executables.iter().any(|(_, other)| other.of == of) {
            // Its addresses can be used by one at a time.
            return Err(NOT_SUPPORTED);
        }
        let (_, good) = self.conditions(of);
        if !good || conditions::is_loose(of) {
            return Err(INVALID_VALUE);
        }
        let graph = self.copy_graph(of, true)?;
        let id = self.next_id();
        let memory = HashMap::new();
        Ok(self.executables.insert(Executable {
            graph,
            of,
            flags,
            id,
            last: None,
            memory,
            _taken: taken,
        }))
    }

    /// Gives an instance the tasks of another graph of the same shape.
    pub(crate) fn update(
        &mut self,
        executable: Handle<Executable>,
        graph: Handle<Graph>,
    ) -> Outcome<Result<(), (Unlike, Handle<Node>)>> {
        let none = Handle::from_bits(0);
        let own = self.executables.get(executable).ok_or(INVALID_VALUE)?.graph;
        self.graphs.get(graph).ok_or(INVALID_VALUE)?;
        if self.has_memory(own) || self.has_memory(graph) {
            return Ok(Err((Unlike::NotSupported, none)));
        }
        if let Err(unlike) = self.alike(own, graph) {
            return Ok(Err(unlike));
        }
        self.take_tasks(own, graph)?;
        Ok(Ok(()))
    }

    fn alike(
        &self,
        own: Handle<Graph>,
        other: Handle<Graph>,
    ) -> Result<(), (Unlike, Handle<Node>)> {
        let none = Handle::from_bits(0);
        let nodes = |graph| self.graphs.get(graph).map_or(&[][..], |graph| &graph.nodes[..]);
        let (own, other) = (nodes(own), nodes(other));
        if own.len() != other.len() {
            return Err((Unlike::Topology, none));
        }
        let place = |nodes: &[Handle<Node>]| -> HashMap<Handle<Node>, usize> {
            nodes.iter().enumerate().map(|(at, &node)| (node, at)).collect()
        };
        let (own_place, other_place) = (place(own), place(other));
        for (&mine, &theirs) in own.iter().zip(other) {
            let (Some(a), Some(b)) = (self.nodes.get(mine), self.nodes.get(theirs)) else {
                return Err((Unlike::Topology, theirs));
            };
            if a.task.kind() != b.task.kind() {
                return Err((Unlike::NodeType, theirs));
            }
            let sorted = |node: &Node, place: &HashMap<Handle<Node>, usize>| {
                let mut after: Vec<_> = node.after.iter().map(|one| place.get(one)).collect();
                after.sort_unstable();
                after.into_iter().map(|one| one.copied()).collect::<Vec<_>>()
            };
            if sorted(a, &own_place) != sorted(b, &other_place) {
                return Err((Unlike::Topology, theirs));
            }
            if let (Task::Conditional(a), Task::Conditional(b)) = (&a.task, &b.task)
                && (a.condition, a.branching, a.bodies.len())
                    != (b.condition, b.branching, b.bodies.len())
            {
                return Err((Unlike::NotSupported, theirs));
            }
            for (a, b) in a.task.inner().iter().zip(b.task.inner()) {
                self.alike(*a, *b)?;
            }
        }
        Ok(())
    }

    fn take_tasks(&mut self, own: Handle<Graph>, other: Handle<Graph>) -> Outcome {
        let own = self.graphs.get(own).ok_or(INVALID_VALUE)?.nodes.clone();
        let other = self.graphs.get(other).ok_or(INVALID_VALUE)?.nodes.clone();
        for (mine, theirs) in own.into_iter().zip(other) {
            let task = self.nodes.get(theirs).ok_or(INVALID_VALUE)?.task.clone();
            let old = self.nodes.get(mine).map_or(Vec::new(), |node| node.task.inner().to_vec());
            for (inner, new) in old.iter().zip(task.inner()) {
                self.take_tasks(*inner, *new)?;
            }
            if let Some(node) = self.nodes.get_mut(mine).filter(|_| task.inner().is_empty()) {
                node.task = task;
            }
        }
        Ok(())
    }
}
