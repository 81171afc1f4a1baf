//! What may still be running on the GPU: contexts, streams, captures.
//!
//! Owns: the register of them, and the question whether all of it is drained, asked of the driver
//! without ever synchronising and never while anything is being captured.
//! Does not own: when to ask (`link`).
//!
//! The link thread asks about handles that the program may destroy at any moment. So it marks the
//! handle it asks about, and a hook that destroys one takes it from the register first and then
//! waits until it is not the marked one. No lock is held during either call.
//!
//! A per-thread default stream has a handle only in its own thread. Where such streams are in use,
//! an event recorded on the legacy stream stands for them: by CUDA's rules it completes after all
//! work that was in the context's blocking streams, and these are such. It is recorded only when
//! the program has been quiet on its own side, and never twice for the same work.
#![allow(unsafe_code)] // FFI: questions to the driver.

use crate::table::real;
use acb_cuda_abi::{CuResult, sys};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Handle of a context or a stream, as a number.
pub(crate) type Handle = usize;

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`.
const LEGACY: Handle = 1;
pub(crate) const PER_THREAD: Handle = 2;

/// Whether the GPU has finished with this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    Yes,
    /// Something runs, or would have to be asked about in the middle of a capture.
    No,
}

#[derive(Default)]
struct Register {
    /// Each context with the event that stands for its per-thread streams.
    contexts: BTreeMap<Handle, Fence>,
    /// Each stream with its context.
    streams: BTreeMap<Handle, Handle>,
    /// Captures under way, by stream and, for per-thread default streams, thread.
    capturing: BTreeSet<(Handle, u64)>,
    /// Context and stream that the link thread is asking about.
    asking: Option<(Handle, Handle)>,
    /// The process ends: nothing is asked any more.
    ended: bool,
}

/// An event on the legacy stream of a context.
#[derive(Clone, Copy, Default)]
struct Fence {
    event: Handle,
    /// What the gate had counted when it was recorded.
    come: Option<u32>,
}

pub(crate) struct Work {
    register: Mutex<Register>,
    answered: Condvar,
    /// A per-thread default stream has been used.
    per_thread: AtomicBool,
}

pub(crate) static WORK: Work = Work::new();

impl Work {
    const fn new() -> Self {
        Work {
            register: Mutex::new(Register {
                contexts: BTreeMap::new(),
                streams: BTreeMap::new(),
                capturing: BTreeSet::new(),
                asking: None,
                ended: false,
            }),
            answered: Condvar::new(),
            per_thread: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Register> {
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline(always)]
    pub(crate) fn note_per_thread(&self) {
        if !self.per_thread.load(Ordering::Relaxed) {
            self.per_thread.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn add_context(&self, context: Handle) {
        if context != 0 {
            self.lock().contexts.entry(context).or_default();
        }
    }

    /// Forgets a context and its streams, and returns when nothing is being asked about them: the
    /// context may be destroyed now. Gives back its streams, in case it is not destroyed after all.
    pub(crate) fn remove_context(&self, context: Handle) -> Vec<Handle> {
        let mut register = self.lock();
        register.contexts.remove(&context);
        let streams: Vec<Handle> =
            register.streams.iter().filter(|(_, of)| **of == context).map(|(s, _)| *s).collect();
        register.streams.retain(|_, of| *of != context);
        self.wait(register, |(asked, _)| asked == context);
        streams
    }

    /// Undoes [`Work::remove_context`].
    pub(crate) fn restore_context(&self, context: Handle, streams: Vec<Handle>) {
        let mut register = self.lock();
        register.contexts.entry(context).or_default();
        register.streams.extend(streams.into_iter().map(|stream| (stream, context)));
    }

    pub(crate) fn add_stream(&self, stream: Handle, context: Handle) {
        let mut register = self.lock();
        register.contexts.entry(context).or_default();
        register.streams.insert(stream, context);
    }

    /// Forgets a stream; it may be destroyed now.
    pub(crate) fn remove_stream(&self, stream: Handle) -> Option<Handle> {
        let mut register = self.lock();
        let context = register.streams.remove(&stream);
        self.wait(register, |(_, asked)| asked == stream);
        context
    }

    /// A capture is about to begin: no questions until it ends.
    pub(crate) fn begin_capture(&self, stream: Handle, thread: u64) {
        let mut register = self.lock();
        register.capturing.insert((stream, thread));
        self.wait(register, |_| true);
    }

    pub(crate) fn end_capture(&self, stream: Handle, thread: u64) {
        self.lock().capturing.remove(&(stream, thread));
    }

    /// The process ends and the driver with it: nothing is asked any more.
    pub(crate) fn end(&self) {
        let mut register = self.lock();
        register.ended = true;
        self.wait(register, |_| true);
    }

    fn wait(
        &self,
        mut register: MutexGuard<'_, Register>,
        blocks: impl Fn((Handle, Handle)) -> bool,
    ) {
        while register.asking.is_some_and(&blocks) {
            register = self.answered.wait(register).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Marks what the link thread is going to ask about; false: it is gone, or may not be asked now.
    fn mark(&self, context: Handle, stream: Handle) -> bool {
        let mut register = self.lock();
        let known = register.contexts.contains_key(&context)
            && (stream <= PER_THREAD || register.streams.contains_key(&stream));
        if register.ended || !register.capturing.is_empty() || !known {
            return false;
        }
        register.asking = Some((context, stream));
        true
    }

    fn unmark(&self) {
        self.lock().asking = None;
        self.answered.notify_all();
    }
}

/// Asks the driver whether everything is drained; used by the link thread alone.
#[derive(Default)]
pub(crate) struct Inspector {
    relaxed: bool,
    /// What was busy last time: asked first, since most often it still is.
    busy: Option<(Handle, Handle)>,
}

impl Inspector {
    /// `come` is what the gate counts now, for fences.
    pub(crate) fn drained(&mut self, work: &Work, come: u32) -> Drained {
        let (mut questions, fences) = {
            let register = work.lock();
            if register.ended || !register.capturing.is_empty() {
                return Drained::No;
            }
            let streams = register.streams.iter().map(|(stream, context)| (*context, *stream));
            let defaults = register.contexts.keys().map(|context| (*context, LEGACY));
            let questions: Vec<(Handle, Handle)> = streams.chain(defaults).collect();
            let fences: Vec<Handle> = match work.per_thread.load(Ordering::Relaxed) {
                true => register.contexts.keys().copied().collect(),
                false => Vec::new(),
            };
            (questions, fences)
        };
        self.relax();
        if let Some(at) = self.busy.and_then(|busy| questions.iter().position(|q| *q == busy)) {
            questions.swap(0, at);
        }
        for (context, stream) in questions {
            if !self.stream_idle(work, context, stream) {
                self.busy = Some((context, stream));
                return Drained::No;
            }
        }
        self.busy = None;
        match fences.into_iter().all(|context| self.fence_passed(work, context, come)) {
            true => Drained::Yes,
            false => Drained::No,
        }
    }

    /// In the relaxed mode this thread's questions cannot spoil another thread's capture.
    fn relax(&mut self) {
        if !self.relaxed {
            let mut mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED as u32;
            // SAFETY: a mode to exchange, on this stack. Drivers before 10.1 lack it, and captures.
            let _ = unsafe { real::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
            self.relaxed = true;
        }
    }

    fn stream_idle(&self, work: &Work, context: Handle, stream: Handle) -> bool {
        if !work.mark(context, stream) {
            // Destroyed since: then it is idle. In a capture: then the next look will say so.
            return work.lock().capturing.is_empty();
        }
        // SAFETY: marked, so the program's destruction of either waits for `unmark`.
        let result =
            with_context(context, || unsafe { real::cuStreamQuery(stream as sys::CUstream) });
        work.unmark();
        // Any other error means that the context is broken or gone: nothing of it runs.
        result != CuResult::NOT_READY
    }

    fn fence_passed(&self, work: &Work, context: Handle, come: u32) -> bool {
        if !work.mark(context, LEGACY) {
            return work.lock().capturing.is_empty();
        }
        let mut fence = work.lock().contexts.get(&context).copied().unwrap_or_default();
        let result = with_context(context, || fence.ask(come));
        if let Some(kept) = work.lock().contexts.get_mut(&context) {
            *kept = fence;
        }
        work.unmark();
        result != CuResult::NOT_READY
    }
}

impl Fence {
    fn ask(&mut self, come: u32) -> CuResult {
        if self.event == 0 {
            let mut event: sys::CUevent = std::ptr::null_mut();
            let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: a place on this stack, under the current context.
            let made = unsafe { real::cuEventCreate(&raw mut event, flags) };
            if !made.is_success() {
                return made;
            }
            self.event = event as Handle;
        }
        let event = self.event as sys::CUevent;
        if self.come != Some(come) {
            // SAFETY: an event of the current context, which cannot go while it is marked.
            let recorded = unsafe { real::cuEventRecord(event, LEGACY as sys::CUstream) };
            if !recorded.is_success() {
                return recorded;
            }
            self.come = Some(come);
        }
        // SAFETY: as above.
        unsafe { real::cuEventQuery(event) }
    }
}

/// Calls `ask` with a context current, and leaves this thread's stack of contexts as it was.
fn with_context(context: Handle, ask: impl FnOnce() -> CuResult) -> CuResult {
    // SAFETY: a context of the register, marked by the caller.
    let pushed = unsafe { real::cuCtxPushCurrent_v2(context as sys::CUcontext) };
    if !pushed.is_success() {
        return pushed;
    }
    let result = ask();
    let mut popped: sys::CUcontext = std::ptr::null_mut();
    // SAFETY: pops what was pushed above.
    let _ = unsafe { real::cuCtxPopCurrent_v2(&raw mut popped) };
    result
}

/// The calling thread's current context, 0 without one.
pub(crate) fn current_context() -> Handle {
    let mut context: sys::CUcontext = std::ptr::null_mut();
    // SAFETY: a place on this stack.
    let result = unsafe { real::cuCtxGetCurrent(&raw mut context) };
    if result.is_success() { context as Handle } else { 0 }
}
