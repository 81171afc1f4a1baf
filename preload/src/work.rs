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

use crate::greens::GREENS;
use crate::table::real;
use acb_cuda_abi::{CuResult, sys};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Handle of a context or a stream, as a number.
pub(crate) type Handle = usize;

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`.
pub(crate) const LEGACY: Handle = 1;
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
    /// Events, with their contexts, after work in streams that were destroyed before it was done.
    leftovers: Vec<(Handle, Handle)>,
    /// Destructions under way: the driver may still be waiting for what they destroy.
    leaving: u32,
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
    /// The function launched last, 0 after anything that may have unloaded it.
    kernel: AtomicUsize,
}

pub(crate) static WORK: Work = Work::new();

impl Work {
    const fn new() -> Self {
        Work {
            register: Mutex::new(Register {
                contexts: BTreeMap::new(),
                streams: BTreeMap::new(),
                leftovers: Vec::new(),
                leaving: 0,
                capturing: BTreeSet::new(),
                asking: None,
                ended: false,
            }),
            answered: Condvar::new(),
            per_thread: AtomicBool::new(false),
            kernel: AtomicUsize::new(0),
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

    #[inline(always)]
    pub(crate) fn note_kernel(&self, function: Handle) {
        self.kernel.store(function, Ordering::Relaxed);
    }

    /// Functions may go: returns when nothing is being asked about them.
    pub(crate) fn forget_kernel(&self) {
        self.kernel.store(0, Ordering::Relaxed);
        self.wait(self.lock(), |_| true);
    }

    /// Name of the function launched last, where the driver says it (CUDA 12.3 and later).
    pub(crate) fn kernel_name(&self) -> Option<String> {
        let (&context, _) = self.lock().contexts.first_key_value()?;
        // Marked, so that whoever unloads the function waits; read only then.
        if !self.mark(context, LEGACY) {
            return None;
        }
        let function = self.kernel.load(Ordering::Relaxed);
        let name = (function != 0).then(|| name_of(function)).flatten();
        self.unmark();
        name
    }

    pub(crate) fn add_context(&self, context: Handle) {
        if context != 0 {
            self.lock().contexts.entry(context).or_default();
        }
    }

    /// Forgets a context and its streams, and returns when nothing is being asked about them: the
    /// context may be destroyed now. Until the answer is dropped, nothing counts as drained.
    pub(crate) fn remove_context(&'static self, context: Handle) -> Leaving {
        self.kernel.store(0, Ordering::Relaxed);
        let mut register = self.lock();
        register.leaving += 1;
        let streams: Vec<Handle> =
            register.streams.iter().filter(|(_, of)| **of == context).map(|(s, _)| *s).collect();
        register.streams.retain(|_, of| *of != context);
        let leaving = Leaving {
            work: self,
            context: register.contexts.remove(&context).map(|fence| (context, fence)),
            streams,
            leftovers: register.leftovers.extract_if(.., |(of, _)| *of == context).collect(),
        };
        self.wait(register, |_| true);
        leaving
    }

    pub(crate) fn add_stream(&self, stream: Handle, context: Handle) {
        let mut register = self.lock();
        register.contexts.entry(context).or_default();
        register.streams.insert(stream, context);
    }

    /// Forgets a stream; it may be destroyed now. What still runs in it is remembered by an event.
    pub(crate) fn remove_stream(&'static self, stream: Handle) -> Leaving {
        let mut register = self.lock();
        register.leaving += 1;
        let context = register.streams.remove(&stream);
        // In a capture nothing may be asked.
        let ask = !register.ended && register.capturing.is_empty();
        self.wait(register, |(_, asked)| asked == stream);
        if let Some(context) = context
            && ask
            && let Some(event) = event_after(context, stream)
        {
            self.lock().leftovers.push((context, event));
        }
        let streams = context.map_or(Vec::new(), |_| vec![stream]);
        let context = context.map(|context| (context, Fence::default()));
        Leaving { work: self, context, streams, leftovers: Vec::new() }
    }

    /// A capture is about to begin: no questions until it ends. False: it is under way already.
    pub(crate) fn begin_capture(&self, stream: Handle, thread: u64) -> bool {
        let mut register = self.lock();
        let new = register.capturing.insert((stream, thread));
        self.wait(register, |_| true);
        new
    }

    /// Whether anything is being captured.
    pub(crate) fn is_capturing(&self) -> bool {
        !self.lock().capturing.is_empty()
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

/// A context or a stream on its way out of the register.
pub(crate) struct Leaving {
    work: &'static Work,
    /// `None`: it was not known, and may well be gone already.
    context: Option<(Handle, Fence)>,
    streams: Vec<Handle>,
    leftovers: Vec<(Handle, Handle)>,
}

impl Leaving {
    /// It was not destroyed after all.
    pub(crate) fn restore(mut self) {
        let Some((context, fence)) = self.context.take() else { return };
        let mut register = self.work.lock();
        register.contexts.entry(context).or_insert(fence);
        register.streams.extend(self.streams.drain(..).map(|stream| (stream, context)));
        register.leftovers.append(&mut self.leftovers);
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.work.lock().leaving -= 1;
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
        let (mut questions, fences, leftovers) = {
            let register = work.lock();
            if register.ended || !register.capturing.is_empty() || register.leaving > 0 {
                return Drained::No;
            }
            let streams = register.streams.iter().map(|(stream, context)| (*context, *stream));
            let defaults = register.contexts.keys().map(|context| (*context, LEGACY));
            let questions: Vec<(Handle, Handle)> = streams.chain(defaults).collect();
            let fences: Vec<Handle> = match work.per_thread.load(Ordering::Relaxed) {
                true => register.contexts.keys().copied().collect(),
                false => Vec::new(),
            };
            (questions, fences, register.leftovers.clone())
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
        for (context, event) in leftovers {
            if !self.leftover_done(work, context, event) {
                return Drained::No;
            }
        }
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
            // Destroyed since, which may have left something, or in a capture: look again.
            return false;
        }
        // SAFETY: marked, so the program's destruction of either waits for `unmark`.
        let result =
            with_context(context, || unsafe { real::cuStreamQuery(stream as sys::CUstream) });
        work.unmark();
        // Any other error means that the context is broken or gone: nothing of it runs.
        result != CuResult::NOT_READY
    }

    fn leftover_done(&self, work: &Work, context: Handle, event: Handle) -> bool {
        if !work.mark(context, LEGACY) {
            return false;
        }
        let known = work.lock().leftovers.contains(&(context, event));
        let done = known
            && with_context(context, || {
                // SAFETY: an event made in this context, which cannot go while it is marked.
                let result = unsafe { real::cuEventQuery(event as sys::CUevent) };
                if result != CuResult::NOT_READY {
                    // SAFETY: as above; nobody else knows the event.
                    let _ = unsafe { real::cuEventDestroy_v2(event as sys::CUevent) };
                }
                result
            }) != CuResult::NOT_READY;
        if done {
            work.lock().leftovers.retain(|of| *of != (context, event));
        }
        work.unmark();
        done
    }

    fn fence_passed(&self, work: &Work, context: Handle, come: u32) -> bool {
        if !work.mark(context, LEGACY) {
            return false;
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
            match new_event() {
                Ok(event) => self.event = event as Handle,
                Err(result) => return result,
            }
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

/// Name of a CUfunction, or of a CUkernel that was launched as one.
fn name_of(function: Handle) -> Option<String> {
    let mut name: *mut c_char = std::ptr::null_mut();
    let place = (&raw mut name).cast_const();
    // SAFETY: a place on this stack, and a function that nobody unloads meanwhile.
    let mut result = unsafe { real::cuFuncGetName(place, function as sys::CUfunction) };
    if !result.is_success() {
        // SAFETY: as above.
        result = unsafe { real::cuKernelGetName(place, function as sys::CUkernel) };
    }
    if !result.is_success() || name.is_null() {
        return None;
    }
    // SAFETY: the driver's string, which lives as long as the function.
    let name = unsafe { CStr::from_ptr(name) };
    Some(name.to_string_lossy().chars().take(200).collect())
}

/// An event in the current context.
fn new_event() -> Result<sys::CUevent, CuResult> {
    let mut event: sys::CUevent = std::ptr::null_mut();
    let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
    // SAFETY: a place on this stack, under the current context.
    let made = unsafe { real::cuEventCreate(&raw mut event, flags) };
    if made.is_success() { Ok(event) } else { Err(made) }
}

/// An event that completes after what is in a stream now; `None`: nothing is.
fn event_after(context: Handle, stream: Handle) -> Option<Handle> {
    let mut left = None;
    let _ = with_context(context, || {
        let stream = stream as sys::CUstream;
        // SAFETY: a stream that its program is about to destroy, hence has not yet.
        let result = unsafe { real::cuStreamQuery(stream) };
        if result == CuResult::NOT_READY
            && let Ok(event) = new_event()
        {
            // SAFETY: as above, and an event of the same context.
            if unsafe { real::cuEventRecord(event, stream) }.is_success() {
                left = Some(event as Handle);
            }
        }
        result
    });
    left
}

/// Calls `ask` with a context current, and leaves this thread's stack of contexts as it was.
pub(crate) fn with_context(context: Handle, ask: impl FnOnce() -> CuResult) -> CuResult {
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

/// The calling thread's current context, 0 without one; of a green one the primary context.
pub(crate) fn current_context() -> Handle {
    let mut context: sys::CUcontext = std::ptr::null_mut();
    // SAFETY: a place on this stack.
    let result = unsafe { real::cuCtxGetCurrent(&raw mut context) };
    if result.is_success() { GREENS.primary_of(context as Handle) } else { 0 }
}
