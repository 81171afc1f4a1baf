//! Runs what was instantiated of graphs: each node becomes work in the timeline
//! that waits for what its node waits for, and the whole stands in the stream
//! like one operation.

use std::collections::HashMap;
use std::sync::Arc;

use simcuda_device::fault::FaultKind;
use simcuda_device::{Nanos, clock};

use crate::code::{INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, Outcome};
use crate::conditions::{self, ConditionId};
use crate::driver::{Driver, Locked};
use crate::graph::{Branching, Conditional, Executable, Graph, Node, Task};
use crate::handles::Handle;
use crate::objects::{Context, EventState, Stream, Tables};
use crate::physical::Physical;
use crate::timeline::{Engines, Op, Seat, Submission};
use crate::work::Work;

/// `CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH`
const FREES_ON_LAUNCH: u64 = 1;

/// A node as it is run: what it does, and which steps it follows.
#[derive(Clone)]
pub(crate) struct Step {
    task: Task,
    after: Vec<usize>,
}

/// A conditional node as it is run.
pub(crate) struct Branch {
    condition: ConditionId,
    branching: Branching,
    bodies: Vec<Vec<Step>>,
}

impl Branch {
    /// The body whose turn it is.
    pub(crate) fn next(&self) -> Option<Vec<Step>> {
        let value = conditions::value(self.condition);
        let body = self.branching.choose(value, self.bodies.len())?;
        Some(self.bodies[body].clone())
    }

    /// Whether it looks at its condition again.
    pub(crate) fn repeats(&self) -> bool {
        self.branching == Branching::While
    }
}

/// Whether a step waits for an earlier one, be it through others.
fn follows(steps: &[Step], step: usize, earlier: usize) -> bool {
    let mut open = vec![step];
    let mut seen = vec![false; steps.len()];
    while let Some(at) = open.pop() {
        for &before in &steps[at].after {
            if before == earlier {
                return true;
            }
            if before > earlier && !std::mem::replace(&mut seen[before], true) {
                open.push(before);
            }
        }
    }
    false
}

impl Driver {
    /// Launches an instance into a stream; into one that captures, as a node.
    pub(crate) fn launch_graph(
        &self,
        mut tables: Locked<'_>,
        handle: Handle<Executable>,
        stream: Handle<Stream>,
    ) -> Outcome {
        let graph = tables.executables.get(handle).ok_or(INVALID_VALUE)?.graph;
        tables.check_legacy(stream)?;
        if let Some(capture) = tables.recording(stream)? {
            if !tables.may_be_copied(graph) {
                tables.spoil(capture);
                return Err(NOT_SUPPORTED);
            }
            let inside = tables.copy_graph(graph, true)?;
            return tables.record(stream, capture, Task::Child(inside)).map(drop);
        }
        let mut steps = Vec::new();
        tables.flatten(graph, &[], &mut steps);
        tables.take_graph_memory(handle, &steps)?;
        let freed = tables.settle_graph_memory(handle, &steps)?;
        self.run(&mut tables, handle, stream, steps, freed)?;
        self.stir(&tables);
        Ok(())
    }

    /// Scripted faults, and the word about kernels that are not known.
    fn strike(&self, step: &mut Step) {
        let Task::Run(submission) = &mut step.task else { return };
        match &mut submission.work {
            Work::Kernel(call) => {
                call.meet_faults(&self.faults);
                submission.length = call.length(&self.config.gpus[submission.gpu]);
            }
            Work::Copy(shape) => {
                shape.fails = self.faults.strike(FaultKind::CopyFails, shape.as_call()).is_some();
            }
            _ => {}
        }
    }

    fn run(
        &self,
        tables: &mut Tables,
        handle: Handle<Executable>,
        stream: Handle<Stream>,
        steps: Vec<Step>,
        freed: Vec<u64>,
    ) -> Outcome {
        let engines = self.engines();
        let now = clock::now();
        let gpu = tables.gpu_of(stream)?;
        let context = tables.streams.get(stream).ok_or(INVALID_VALUE)?.context;
        let nothing = |work| Submission { engine: None, gpu, length: 0, work };
        for address in freed {
            tables.submit(&engines, stream, nothing(Work::Free(address)), &[], now)?;
        }
        let last = tables.executables.get(handle).ok_or(INVALID_VALUE)?.last;
        let before: Vec<Handle<Op>> = last.into_iter().collect();
        let graph = tables.executables.get(handle).ok_or(INVALID_VALUE)?.graph;
        let begin = match tables.conditions(graph).0 {
            none if none.is_empty() => Work::Nothing,
            conditions => Work::Begin(conditions.into()),
        };
        let head = tables.submit(&engines, stream, nothing(begin), &before, now)?;
        let memory = tables.executables.get(handle).map(|one| one.memory.clone());
        let memory = memory.unwrap_or_default();
        let place = (stream, context);
        let all = tables.enter_steps(&engines, place, gpu, steps, (head, &memory), now)?;
        let end = tables.submit(&engines, stream, nothing(Work::Nothing), &all, now)?;
        if let Some(executable) = tables.executables.get_mut(handle) {
            executable.last = end;
        }
        Ok(())
    }
}

impl Tables {
    /// A body of a conditional node runs; what is not over yet of it.
    pub(crate) fn run_steps(
        &mut self,
        engines: &Engines<'_>,
        (stream, context): (Handle<Stream>, Handle<Context>),
        gpu: usize,
        steps: Vec<Step>,
        now: Nanos,
    ) -> Vec<Handle<Op>> {
        let nothing = (None, &HashMap::new());
        // A context that is gone or broken runs nothing more.
        let ops = self.enter_steps(engines, (stream, context), gpu, steps, nothing, now);
        let ops = ops.unwrap_or_default();
        ops.into_iter().filter(|&op| self.timeline.is_pending(op)).collect()
    }

    /// Hands in a graph's work, behind `head` all of it.
    fn enter_steps(
        &mut self,
        engines: &Engines<'_>,
        (stream, context): (Handle<Stream>, Handle<Context>),
        gpu: usize,
        steps: Vec<Step>,
        (head, memory): (Option<Handle<Op>>, &HashMap<u64, Arc<Physical>>),
        now: Nanos,
    ) -> Outcome<Vec<Handle<Op>>> {
        let tables = self;
        let driver = crate::driver::get()?;
        let nothing = |work| Submission { engine: None, gpu, length: 0, work };
        let mut ops: Vec<Option<Handle<Op>>> = Vec::with_capacity(steps.len());
        for mut step in steps {
            driver.strike(&mut step);
            let mut before: Vec<Handle<Op>> =
                step.after.iter().filter_map(|&other| ops[other]).collect();
            // After what has ended already, the head still is what to wait for.
            before.extend(head);
            let mut record = None;
            let submission = match step.task {
                Task::Run(submission) => submission,
                Task::Record(event) => {
                    record = Some(event);
                    nothing(tables.recording_work(event))
                }
                Task::Wait(event) => {
                    let event = tables.events.get(event);
                    if let Some(EventState::Pending(op)) = event.map(|event| &event.state) {
                        before.push(*op);
                    }
                    match event.and_then(|event| event.shared.as_ref()) {
                        Some(shared) => nothing(Work::Await(Arc::clone(shared), shared.latest())),
                        None => nothing(Work::Nothing),
                    }
                }
                Task::Allocate(allocation) => match memory.get(&allocation.address) {
                    Some(memory) => nothing(Work::Map(allocation.address, Arc::clone(memory))),
                    None => nothing(Work::Nothing),
                },
                Task::Empty | Task::Child(_) | Task::Conditional(_) => nothing(Work::Nothing),
            };
            let seat = (stream, Seat::Within);
            let op = tables.enter(engines, seat, context, submission, before, now)?;
            if let Some(event) = record {
                tables.is_recorded(event, op);
            }
            ops.push(op);
        }
        Ok(ops.into_iter().flatten().collect())
    }

    /// A conditional node, with its bodies as they are now.
    fn branch(&self, conditional: &Conditional) -> Task {
        let bodies = conditional.bodies.iter().map(|&body| {
            let mut steps = Vec::new();
            self.flatten(body, &[], &mut steps);
            steps
        });
        let branch = Branch {
            condition: conditional.condition,
            branching: conditional.branching,
            bodies: bodies.collect(),
        };
        let work = Work::Branch(Arc::new(branch));
        Task::Run(Submission { engine: None, gpu: 0, length: 0, work })
    }

    /// Adds a graph's nodes as steps that follow the steps `entry`; the steps
    /// that its end is made of.
    fn flatten(&self, graph: Handle<Graph>, entry: &[usize], steps: &mut Vec<Step>) -> Vec<usize> {
        let mut ends: HashMap<Handle<Node>, Vec<usize>> = HashMap::new();
        let mut last: Vec<usize> = entry.to_vec();
        for handle in self.ordered(graph).unwrap_or_default() {
            let Some(node) = self.nodes.get(handle) else { continue };
            let mut after: Vec<usize> =
                node.after.iter().filter_map(|other| ends.get(other)).flatten().copied().collect();
            if node.after.is_empty() {
                after = entry.to_vec();
            }
            last.retain(|step| !after.contains(step));
            let end = match &node.task {
                Task::Child(child) => self.flatten(*child, &after, steps),
                task => {
                    let task = match task {
                        _ if !node.enabled => Task::Empty,
                        Task::Conditional(conditional) => self.branch(conditional),
                        task => task.clone(),
                    };
                    steps.push(Step { task, after });
                    vec![steps.len() - 1]
                }
            };
            last.extend(&end);
            ends.insert(handle, end);
        }
        last
    }

    /// Makes sure that there is memory behind all that a run allocates. What it has freed before an
    /// allocation of the same size is used again for that.
    fn take_graph_memory(&mut self, handle: Handle<Executable>, steps: &[Step]) -> Outcome {
        let mut freed: Vec<(usize, Arc<Physical>)> = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            let executable = self.executables.get(handle).ok_or(INVALID_VALUE)?;
            let allocation = match &step.task {
                Task::Run(Submission { work: Work::Free(address), .. }) => {
                    let memory = executable.memory.get(address).map(Arc::clone);
                    freed.extend(memory.map(|memory| (at, memory)));
                    continue;
                }
                Task::Allocate(allocation) => allocation,
                _ => continue,
            };
            let known = executable.memory.get(&allocation.address);
            let (gpu, length) = (allocation.gpu, allocation.length());
            let again = freed.iter().position(|(free, memory)| match known {
                Some(known) => Arc::ptr_eq(memory, known),
                None => {
                    (memory.gpu(), memory.length()) == (gpu, length) && follows(steps, at, *free)
                }
            });
            let again = again.map(|found| freed.swap_remove(found).1);
            if known.is_some() {
                continue;
            }
            let memory = match again.map_or_else(|| self.graph_piece(gpu, length), Ok) {
                Err(OUT_OF_MEMORY) => {
                    // What pools keep for others may make room.
                    for (pool, _) in self.device_pools.clone() {
                        self.trim_pool(pool, 0);
                    }
                    Physical::new(gpu, length)?
                }
                other => other?,
            };
            if let Some(executable) = self.executables.get_mut(handle) {
                executable.memory.insert(allocation.address, memory);
            }
            self.note_graph_memory(gpu);
        }
        Ok(())
    }

    /// Keeps account of what a run leaves allocated; what it must free first.
    fn settle_graph_memory(
        &mut self,
        handle: Handle<Executable>,
        steps: &[Step],
    ) -> Outcome<Vec<u64>> {
        let flags = self.executables.get(handle).ok_or(INVALID_VALUE)?.flags;
        let allocated: Vec<u64> = steps
            .iter()
            .filter_map(|step| match &step.task {
                Task::Allocate(allocation) => Some(allocation.address),
                _ => None,
            })
            .collect();
        let left: Vec<u64> =
            allocated.iter().copied().filter(|&at| self.graph_memory.is_live(at)).collect();
        if !left.is_empty() && flags & FREES_ON_LAUNCH == 0 {
            return Err(INVALID_VALUE);
        }
        let frees: Vec<u64> = steps
            .iter()
            .filter_map(|step| match &step.task {
                Task::Run(Submission { work: Work::Free(address), .. }) => Some(*address),
                _ => None,
            })
            .collect();
        // What another graph's run left must be there.
        if frees.iter().any(|at| {
            let foreign = matches!(
                self.space.region(*at).map(|region| region.kind),
                Some(crate::space::RegionKind::Graph { .. })
            ) && !allocated.contains(at);
            foreign && !self.graph_memory.is_live(*at)
        }) {
            return Err(INVALID_VALUE);
        }
        for at in &left {
            self.graph_memory.let_go(*at);
        }
        for at in &frees {
            self.graph_memory.let_go(*at);
        }
        for at in allocated.into_iter().filter(|at| !frees.contains(at)) {
            self.graph_memory.keep(at);
        }
        Ok(left)
    }
}
