//! Freeing: at once after a drain, or later, when a stream has come so far or a capture has ended.
//!
//! Owns: what waits to be freed. Does not own: how it is freed (`allocate`).
//!
//! cuMemFreeAsync in a stream is an event in that stream; the memory goes, or its pool keeps it (`kept`), when the event has come. Until then an allocation
//! of the same size in the same stream gets it: work in a stream is in order.

use super::contexts::Carrier;
use super::device;
use super::ranges::Allocation;
use super::{Books, Pager};
use crate::log::debug;
use crate::work::{self, WORK};
use acb_cuda_abi::CuResult;
use std::time::Duration;

/// How often the link thread looks whether streams have come past what is freed in them.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
pub(super) struct Frees {
    pending: Vec<Pending>,
    /// Freed while something was being captured.
    captured: Vec<(u64, Allocation)>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    address: u64,
    allocation: Allocation,
    device: u32,
    stream: usize,
    /// Thread of a per-thread default stream, else 0.
    thread: u64,
    /// Where the event belongs; `None`: that context is gone, and all its work with it.
    context: Option<Carrier>,
    event: usize,
}

/// What became of a free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freed {
    Done(CuResult),
    /// It is no memory of the pager's.
    Unknown,
}

impl Frees {
    pub(super) const fn new() -> Self {
        Frees { pending: Vec::new(), captured: Vec::new() }
    }

    pub(super) fn context_gone(&mut self, id: u64) {
        for pending in &mut self.pending {
            if pending.context.is_some_and(|context| context.id == id) {
                pending.context = None;
            }
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }
}

impl Pager {
    /// Whether an address begins an allocation of the pager's.
    pub(crate) fn owns(&self, address: u64) -> bool {
        self.is_active() && self.books().ranges.at(address).is_some()
    }

    /// cuMemFree.
    pub(crate) fn free(&self, address: u64) -> Freed {
        if !self.is_active() || address == 0 {
            return Freed::Unknown;
        }
        let mut books = self.books();
        let Some(context) = books.ranges.at(address).map(|(_, range)| range.context) else {
            return Freed::Unknown;
        };
        let Some(allocation) = books.ranges.take(address) else { return Freed::Unknown };
        books.pools.freed(allocation.pool, allocation.bytes);
        if WORK.is_capturing() {
            books.frees.captured.push((address, allocation));
            return Freed::Done(CuResult::SUCCESS);
        }
        let handle = books.contexts.handle(context);
        drop(books);
        // As the driver does: nothing that was submitted before uses it any more.
        let drained = match handle {
            Some(handle) => work::with_context(handle, device::synchronize),
            None => CuResult::SUCCESS,
        };
        self.give(address, allocation);
        Freed::Done(drained)
    }

    /// cuMemFreeAsync, in a stream of the current context.
    pub(crate) fn free_in_stream(&self, address: u64, stream: usize, thread: u64) -> Freed {
        let device = match self.owns(address) {
            true => device::current_device(),
            false => return Freed::Unknown,
        };
        let handle = work::current_context();
        let Some(device) = device else { return Freed::Done(CuResult::INVALID_CONTEXT) };
        let event = device::event().and_then(|event| {
            device::record(event, stream).map(|()| event).inspect_err(|_| {
                device::destroy_event(event);
            })
        });
        let event = match event {
            Ok(event) => event,
            Err(result) if device::is_lost(result) => return Freed::Done(result),
            // Then with a drain.
            Err(_) => return self.free(address),
        };
        let mut books = self.books();
        let id = books.contexts.note(handle, device);
        let Some(allocation) = books.ranges.take(address) else {
            drop(books);
            device::destroy_event(event);
            return Freed::Done(CuResult::INVALID_VALUE);
        };
        books.pools.freed(allocation.pool, allocation.bytes);
        // Of which device the memory is, whatever the stream's.
        let device = books.ranges.range(allocation.range).map_or(device, |range| range.device);
        let context = Some(Carrier { handle, id });
        let pending = Pending { address, allocation, device, stream, thread, context, event };
        books.frees.pending.push(pending);
        Freed::Done(CuResult::SUCCESS)
    }

    /// Memory of that size that was freed in the same stream: whatever used it is done before what comes next there.
    pub(crate) fn reuse_in_stream(
        &self,
        bytes: u64,
        (pool, device): (u64, u32),
        stream: usize,
        thread: u64,
    ) -> Option<u64> {
        let mut books = self.books();
        if !books.frees.is_waiting() {
            return None;
        }
        let handle = work::current_context();
        let at = books.frees.pending.iter().rposition(|pending| {
            pending.stream == stream
                && pending.thread == thread
                && pending.context.is_some_and(|context| context.handle == handle)
                && pending.allocation.holds(bytes)
                && (pending.allocation.pool, pending.device) == (pool, device)
        })?;
        let pending = books.frees.pending.remove(at);
        let allocation = Allocation { requested: bytes, ..pending.allocation };
        books.ranges.put_back(pending.address, allocation);
        books.pools.used_again(pool, allocation.bytes);
        drop(books);
        device::destroy_event(pending.event);
        Some(pending.address)
    }

    /// Frees what streams have come past. On a thread of the program's: somebody may capture, in a mode that forbids such questions.
    pub(super) fn reap(&self) {
        let waiting = self.books().frees.pending.clone();
        if waiting.is_empty() {
            return;
        }
        device::relaxed(|| {
            for pending in waiting {
                if self.has_come(&pending) {
                    self.finish(pending);
                }
            }
        });
    }

    /// The same for the link thread, which waits for no chunk: what it moves or has hashed is left for later. When to look again.
    pub(super) fn reap_between_moves(&self) -> Option<Duration> {
        self.drain_owed();
        let waiting = self.books().frees.pending.clone();
        for pending in waiting {
            if self.has_come(&pending) && !self.books().is_worked_on(pending.allocation.range) {
                self.finish(pending);
            }
        }
        self.books().frees.is_waiting().then_some(LOOK_AGAIN)
    }

    fn has_come(&self, pending: &Pending) -> bool {
        let Some(context) = pending.context else { return true };
        if !self.enter(context) {
            return false;
        }
        let mut come = false;
        let _ = work::with_context(context.handle, || {
            // A broken context runs nothing any more.
            come = device::has_come(pending.event).unwrap_or(true);
            CuResult::SUCCESS
        });
        self.leave(context);
        come
    }

    /// Waits for the streams in which memory of a device is being freed, and frees it. True: something was.
    pub(super) fn reap_waiting(&self, device: u32) -> bool {
        let waiting = self.books().frees.pending.clone();
        let mut some = false;
        for pending in waiting.into_iter().filter(|pending| pending.device == device) {
            if let Some(context) = pending.context.filter(|context| self.enter(*context)) {
                let wait = || device::relaxed(|| device::wait_for(pending.event));
                let _ = work::with_context(context.handle, wait);
                self.leave(context);
            }
            some |= self.finish(pending);
        }
        some
    }

    /// False: somebody else was faster.
    fn finish(&self, done: Pending) -> bool {
        let mut books = self.books();
        let pending = &mut books.frees.pending;
        let Some(at) = pending.iter().position(|other| other.event == done.event) else {
            return false;
        };
        pending.remove(at);
        drop(books);
        if done.context.is_some() {
            device::destroy_event(done.event);
        }
        if !self.keep(done.address, done.allocation, done.device) {
            self.give(done.address, done.allocation);
        }
        true
    }

    /// A capture has ended: what was freed during it goes, if there is no other.
    pub(crate) fn capture_ended(&self) {
        if !self.is_active() || WORK.is_capturing() {
            return;
        }
        let captured = std::mem::take(&mut self.books().frees.captured);
        for (address, allocation) in captured {
            let range = allocation.range;
            let handle = self.books().handle_of_range(range);
            if let Some(handle) = handle {
                let result = work::with_context(handle, device::synchronize);
                if !result.is_success() {
                    debug!("draining before a free failed: {}", device::name(result));
                }
            }
            self.give(address, allocation);
        }
    }

    pub(super) fn give(&self, address: u64, allocation: Allocation) {
        let empty = {
            let mut books = self.books();
            books.pools.given(allocation.pool, allocation.bytes);
            books.ranges.give(address, allocation)
        };
        if let Some((start, range)) = empty {
            self.dispose(start, range);
        }
    }
}

impl Books {
    pub(super) fn is_worked_on(&self, range: u64) -> bool {
        let chunks = self.ranges.range(range).map_or(&[][..], |range| &range.chunks);
        chunks.iter().any(|id| self.table.is_worked_on(*id))
    }

    fn handle_of_range(&self, range: u64) -> Option<usize> {
        let context = self.ranges.range(range)?.context;
        self.contexts.handle(context)
    }
}
