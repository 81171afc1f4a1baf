//! When work runs: the order of streams and events, the process's queues for the
//! engines, and the end of each operation. One step of it is `pump`; who calls it
//! when is `driver`'s business.
//!
//! ```text
//! submitted -> (waits for others) -> queued -> posted to the engine -> its time
//! is over -> effect -> gone; whoever waited for it may go on, from its end
//! ```

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use simcuda_device::engine::{EngineId, Progress};
use simcuda_device::layout::{ENGINES, EngineKind, GPUS_MAX};
use simcuda_device::{Charge, Nanos, State};

use crate::code::Outcome;
use crate::conditions;
use crate::handles::{Handle, Slab, Tag};
use crate::kernels::flag_is_set;
use crate::objects::{Context, EventState, Stream, StreamKind, Tables};
use crate::replay::Branch;
use crate::work::{HostCall, Ready, Work};

/// Work of this many bytes or less is done with the lock held.
const LIGHT: usize = 64 << 10;
/// How often the flags of endless kernels are looked at, and values and events of others that streams wait for.
const FLAG_INTERVAL: Nanos = 500_000;

/// Work to hand in.
#[derive(Clone)]
pub(crate) struct Submission {
    pub(crate) engine: Option<EngineKind>,
    pub(crate) gpu: usize,
    pub(crate) length: Nanos,
    pub(crate) work: Work,
}

/// Work handed in.
pub(crate) struct Op {
    context: Handle<Context>,
    stream: Handle<Stream>,
    submission: Submission,
    /// How many others it waits for.
    unmet: usize,
    /// When the last of these ended, or it was handed in.
    ready: Nanos,
    dependents: Vec<Handle<Op>>,
}

/// How work stands to what follows it in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seat {
    /// What follows waits for it.
    Behind,
    /// A part of a graph: what follows waits for the graph's end.
    Within,
}

#[derive(Default)]
struct Queue {
    waiting: BinaryHeap<Reverse<(Nanos, u64, Handle<Op>)>>,
    posted: Option<Handle<Op>>,
}

/// The process's work.
pub(crate) struct Timeline {
    ops: Slab<Op>,
    queues: [[Queue; ENGINES]; GPUS_MAX],
    /// Work that needs no engine and waits for nothing any more.
    due: VecDeque<Handle<Op>>,
    /// Work that waits for a value in memory, or for another process.
    watched: Vec<Handle<Op>>,
    /// Effects to do without the lock, and the moment of each.
    pub(crate) heavy: VecDeque<(Handle<Op>, Nanos, Ready)>,
    /// Functions of the program to call without the lock.
    pub(crate) hosts: VecDeque<(Handle<Op>, HostCall)>,
    sequence: u64,
    /// Counts operations that ended: whoever waits looks again when it moves.
    pub(crate) ended: u64,
    /// The earliest moment at which work handed in since the driver's thread
    /// looked may end.
    pub(crate) wake_by: Nanos,
}

impl Timeline {
    pub(crate) fn new() -> Timeline {
        Timeline {
            ops: Slab::new(Tag::Op),
            queues: Default::default(),
            due: VecDeque::new(),
            watched: Vec::new(),
            heavy: VecDeque::new(),
            hosts: VecDeque::new(),
            sequence: 0,
            ended: 0,
            wake_by: Nanos::MAX,
        }
    }

    /// Whether the operation has yet to end.
    pub(crate) fn is_pending(&self, op: Handle<Op>) -> bool {
        self.ops.contains(op)
    }

    /// Whether no work is left.
    pub(crate) fn is_idle(&self) -> bool {
        self.ops.iter().next().is_none()
    }

    fn queue(&mut self, id: EngineId) -> &mut Queue {
        &mut self.queues[id.gpu][id.kind as usize]
    }
}

/// The process's place at the engines.
pub(crate) struct Engines<'a> {
    pub(crate) state: &'a State,
    pub(crate) charge: Charge,
}

impl Tables {
    /// Hands work in to a stream, after what that stream's rules say and after
    /// `others`. None: it is over already.
    pub(crate) fn submit(
        &mut self,
        engines: &Engines<'_>,
        stream: Handle<Stream>,
        submission: Submission,
        others: &[Handle<Op>],
        now: Nanos,
    ) -> Outcome<Option<Handle<Op>>> {
        let (context, kind, tail) = {
            let stream = self.streams.get(stream).ok_or(crate::code::INVALID_HANDLE)?;
            (stream.context, stream.kind, stream.tail)
        };
        let owner = self.context(context)?;
        let mut before: Vec<Handle<Op>> = Vec::new();
        if owner.pending > 0 {
            before.extend(tail);
            match kind {
                StreamKind::NonBlocking => {}
                StreamKind::Blocking => {
                    before.extend(self.streams.get(owner.legacy).and_then(|legacy| legacy.tail));
                }
                StreamKind::Legacy => before.extend(owner.streams.iter().filter_map(|&other| {
                    let other = self.streams.get(other)?;
                    (other.kind == StreamKind::Blocking).then_some(other.tail)?
                })),
            }
        }
        before.extend(others);
        self.enter(engines, (stream, Seat::Behind), context, submission, before, now)
    }

    /// Hands in work that waits for `before` and nothing else. None: it is over
    /// already.
    pub(crate) fn enter(
        &mut self,
        engines: &Engines<'_>,
        (stream, seat): (Handle<Stream>, Seat),
        context: Handle<Context>,
        submission: Submission,
        mut before: Vec<Handle<Op>>,
        now: Nanos,
    ) -> Outcome<Option<Handle<Op>>> {
        before.retain(|&op| self.timeline.is_pending(op));
        if before.is_empty() && self.runs_at_once(engines, &submission) {
            return self.run_at_once(context, submission, now).map(|()| None);
        }
        let op = Op { context, stream, submission, unmet: 0, ready: now, dependents: Vec::new() };
        let op = self.timeline.ops.insert(op);
        let mut unmet = 0;
        for other in before {
            if let Some(other) = self.timeline.ops.get_mut(other) {
                other.dependents.push(op);
                unmet += 1;
            }
        }
        if let Some(stream) = self.streams.get_mut(stream) {
            if seat == Seat::Behind {
                stream.tail = Some(op);
            }
            stream.pending += 1;
        }
        if let Some(context) = self.contexts.get_mut(context) {
            context.pending += 1;
        }
        if unmet == 0 {
            self.line_up(engines, op);
        } else if let Some(op) = self.timeline.ops.get_mut(op) {
            op.unmet = unmet;
        }
        Ok(Some(op))
    }

    /// What must end before all work so far of a stream has ended.
    pub(crate) fn tails(&self, stream: Handle<Stream>) -> Vec<Handle<Op>> {
        let Some(stream) = self.streams.get(stream) else { return Vec::new() };
        let mut tails: Vec<Handle<Op>> = stream.tail.into_iter().collect();
        if stream.kind == StreamKind::Legacy
            && let Some(context) = self.contexts.get(stream.context)
        {
            tails.extend(context.streams.iter().filter_map(|&other| {
                let other = self.streams.get(other)?;
                (other.kind == StreamKind::Blocking).then_some(other.tail)?
            }));
        }
        tails
    }

    /// Work that takes no time on an idle engine need not be queued.
    fn runs_at_once(&self, engines: &Engines<'_>, submission: &Submission) -> bool {
        let waits = matches!(
            submission.work,
            Work::Host(_) | Work::Wait(_) | Work::Await(..) | Work::Branch(_)
        );
        if submission.length != 0 || waits {
            return false;
        }
        let Some(kind) = submission.engine else { return true };
        let id = engines.state.engine(EngineId { gpu: submission.gpu, kind });
        let queue = &self.timeline.queues[id.gpu][id.kind as usize];
        queue.posted.is_none() && queue.waiting.is_empty() && !engines.state.busy(id)
    }

    fn run_at_once(
        &mut self,
        context: Handle<Context>,
        submission: Submission,
        now: Nanos,
    ) -> Outcome {
        match submission.work {
            Work::Nothing => {}
            Work::Event(event) => {
                if let Some(event) = self.events.get_mut(event) {
                    event.state = EventState::At(now);
                }
            }
            Work::Signal(event, number) => event.reach(number),
            Work::Begin(conditions) => conditions::begin(&conditions),
            Work::Free(address) => self.free_later(address),
            Work::Map(address, memory) => self.map_graph_memory(address, memory),
            Work::Kernel(ref call) if call.touches_nothing() => {}
            work => match work.prepare(&self.space, submission.gpu) {
                Ok(ready) => ready.run(),
                Err(code) => {
                    if let Some(context) = self.contexts.get_mut(context) {
                        context.broken = Some(code);
                    }
                }
            },
        }
        Ok(())
    }

    /// The operation waits for nothing but its engine.
    fn line_up(&mut self, engines: &Engines<'_>, handle: Handle<Op>) {
        let Some(op) = self.timeline.ops.get(handle) else { return };
        let ready = op.ready;
        let gpu = op.submission.gpu;
        match op.submission.engine {
            None => {
                self.timeline.due.push_back(handle);
                self.timeline.wake_by = 0;
            }
            Some(kind) => {
                let id = engines.state.engine(EngineId { gpu, kind });
                self.timeline.sequence += 1;
                let sequence = self.timeline.sequence;
                self.timeline.queue(id).waiting.push(Reverse((ready, sequence, handle)));
                self.post_next(engines, id, simcuda_device::clock::now());
            }
        }
    }

    fn post_next(&mut self, engines: &Engines<'_>, id: EngineId, now: Nanos) {
        let queue = self.timeline.queue(id);
        if queue.posted.is_some() {
            return;
        }
        let Some(Reverse((ready, _, handle))) = queue.waiting.pop() else { return };
        queue.posted = Some(handle);
        if let Some(op) = self.timeline.ops.get(handle) {
            let length = op.submission.length;
            engines.state.post(engines.charge, id, ready, length, now);
            let timeline = &mut self.timeline;
            timeline.wake_by = timeline.wake_by.min(ready.saturating_add(length));
        }
    }

    /// Ends what is over by now. The earliest moment at which more may be.
    pub(crate) fn pump(&mut self, engines: &Engines<'_>) -> Option<Nanos> {
        loop {
            let mut moved = false;
            let mut next: Option<Nanos> = None;
            for op in std::mem::take(&mut self.timeline.watched) {
                self.finish(engines, op, simcuda_device::clock::now());
                moved |= !self.timeline.is_pending(op);
            }
            while let Some(op) = self.timeline.due.pop_front() {
                let ready = self.timeline.ops.get(op).map_or(0, |op| op.ready);
                self.finish(engines, op, ready);
                moved = true;
            }
            let now = simcuda_device::clock::now();
            for gpu in 0..self.gpus {
                for kind in EngineKind::ALL {
                    let id = EngineId { gpu, kind };
                    let Some(op) = self.timeline.queue(id).posted else { continue };
                    let flagged = self.look_at_flag(engines, id, op, now);
                    match engines.state.collect(engines.charge, id, now) {
                        Progress::Done { end, .. } => {
                            self.timeline.queue(id).posted = None;
                            self.finish(engines, op, end);
                            self.post_next(engines, id, now);
                            moved = true;
                        }
                        Progress::NotBefore(moment) => {
                            let moment = flagged.map_or(moment, |again| again.min(moment));
                            next = Some(next.map_or(moment, |earlier| earlier.min(moment)));
                        }
                    }
                }
            }
            if !moved {
                if !self.timeline.watched.is_empty() {
                    let again = now + FLAG_INTERVAL;
                    next = Some(next.map_or(again, |earlier| earlier.min(again)));
                }
                return next;
            }
        }
    }

    /// Ends an endless kernel whose flag is set; otherwise when to look again.
    fn look_at_flag(
        &mut self,
        engines: &Engines<'_>,
        id: EngineId,
        op: Handle<Op>,
        now: Nanos,
    ) -> Option<Nanos> {
        let op = self.timeline.ops.get(op)?;
        let Work::Kernel(call) = &op.submission.work else { return None };
        if !call.is_endless() {
            return None;
        }
        let gone = self.contexts.get(op.context).is_none_or(|context| context.broken.is_some());
        let over = gone
            || match call.needs() {
                Err(_) => true,
                Ok(needs) => needs.first().is_some_and(|need| {
                    let run = self.space.segments(id.gpu, need.address, need.length, need.access);
                    // A flag that cannot be read ends the kernel with an error.
                    run.is_none_or(|run| flag_is_set(&run))
                }),
            };
        let over = over && (gone || call.fault == crate::kernels::LaunchFault::None);
        if over {
            engines.state.finish(engines.charge, id, now);
        }
        Some(now + FLAG_INTERVAL)
    }

    /// The operation's time is over: its effect, at once or soon.
    fn finish(&mut self, engines: &Engines<'_>, handle: Handle<Op>, end: Nanos) {
        let Some(op) = self.timeline.ops.get_mut(handle) else { return };
        let context = op.context;
        let gpu = op.submission.gpu;
        let work = std::mem::replace(&mut op.submission.work, Work::Nothing);
        let broken = self.contexts.get(context).is_none_or(|context| context.broken.is_some());
        match work {
            Work::Nothing => {}
            Work::Event(event) => {
                if let Some(event) = self.events.get_mut(event)
                    && event.state == EventState::Pending(handle)
                {
                    event.state = EventState::At(end);
                }
            }
            Work::Signal(event, number) => event.reach(number),
            Work::Begin(conditions) => conditions::begin(&conditions),
            Work::Free(address) => self.free_later(address),
            Work::Map(address, memory) => self.map_graph_memory(address, memory),
            Work::Host(call) => {
                self.timeline.hosts.push_back((handle, call));
                return;
            }
            _ if broken => {}
            Work::Branch(branch) => {
                if self.go_into(engines, handle, &branch, end) {
                    return;
                }
            }
            Work::Await(ref event, number) => {
                if !event.has_reached(number) {
                    if let Some(op) = self.timeline.ops.get_mut(handle) {
                        op.submission.work = work;
                    }
                    self.timeline.watched.push(handle);
                    return;
                }
            }
            Work::Wait(shape) => match shape.has_come(&self.space) {
                Some(true) => {}
                Some(false) => {
                    if let Some(op) = self.timeline.ops.get_mut(handle) {
                        op.submission.work = Work::Wait(shape);
                    }
                    self.timeline.watched.push(handle);
                    return;
                }
                None => {
                    if let Some(context) = self.contexts.get_mut(context) {
                        context.broken = Some(crate::code::ILLEGAL_ADDRESS);
                    }
                }
            },
            Work::Kernel(ref call) if call.touches_nothing() => {}
            work => match work.prepare(&self.space, gpu) {
                Ok(ready) if ready.weight() <= LIGHT => ready.run(),
                Ok(ready) => {
                    self.timeline.heavy.push_back((handle, end, ready));
                    return;
                }
                Err(code) => {
                    if let Some(context) = self.contexts.get_mut(context) {
                        context.broken = Some(code);
                    }
                }
            },
        }
        self.end(engines, handle, end);
    }

    /// Runs the body of a conditional node that is its turn, before what waits for the node; false: none is.
    fn go_into(
        &mut self,
        engines: &Engines<'_>,
        handle: Handle<Op>,
        branch: &Arc<Branch>,
        now: Nanos,
    ) -> bool {
        let Some(body) = branch.next() else { return false };
        let Some(op) = self.timeline.ops.get(handle) else { return false };
        let place = (op.stream, op.context);
        let (gpu, again) = (op.submission.gpu, branch.repeats());
        let before = self.run_steps(engines, place, gpu, body, now);
        let Some(op) = self.timeline.ops.get_mut(handle) else { return false };
        if again {
            op.submission.work = Work::Branch(Arc::clone(branch));
        }
        op.unmet = before.len();
        let over = before.is_empty();
        for other in before {
            if let Some(other) = self.timeline.ops.get_mut(other) {
                other.dependents.push(handle);
            }
        }
        match (over, again) {
            // All of it took no time: what it set is looked at once more.
            (true, true) => self.timeline.due.push_back(handle),
            (true, false) => return false,
            (false, _) => {}
        }
        true
    }

    /// Whether the operation's context is broken, so that it does nothing.
    pub(crate) fn is_broken(&self, handle: Handle<Op>) -> bool {
        let context = self.timeline.ops.get(handle).and_then(|op| self.contexts.get(op.context));
        context.is_none_or(|context| context.broken.is_some())
    }

    /// The operation is over, and what waited for it may go on.
    pub(crate) fn end(&mut self, engines: &Engines<'_>, handle: Handle<Op>, end: Nanos) {
        let Some(op) = self.timeline.ops.remove(handle) else { return };
        self.timeline.ended += 1;
        if let Some(stream) = self.streams.get_mut(op.stream) {
            stream.pending -= 1;
            if stream.tail == Some(handle) {
                stream.tail = None;
            }
        }
        if let Some(context) = self.contexts.get_mut(op.context) {
            context.pending -= 1;
        }
        for dependent in op.dependents {
            let Some(waiting) = self.timeline.ops.get_mut(dependent) else { continue };
            waiting.unmet -= 1;
            waiting.ready = waiting.ready.max(end);
            if waiting.unmet == 0 {
                self.line_up(engines, dependent);
            }
        }
    }
}
