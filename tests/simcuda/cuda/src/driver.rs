//! The process's one instance of the driver: how it comes up and goes down, its
//! lock, who is waited for, and the thread that ends work while nobody waits.
//!
//! A fork leaves the child without a driver, as a real one does: every call there
//! fails. The parent's lock is never touched in the child.
#![allow(unsafe_code)] // pthread_atfork, atexit, prctl, signal masks

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use acb_cuda_abi::StreamForm;
use simcuda_device::fault::Faults;
use simcuda_device::{Charge, Config, GpuConfig, Nanos, State, clock, visible};

use crate::capture::{Caller, Mode};
use crate::code::{
    CONTEXT_IS_DESTROYED, DEINITIALIZED, INVALID_CONTEXT, INVALID_DEVICE, INVALID_HANDLE,
    NO_DEVICE, NOT_INITIALIZED, OPERATING_SYSTEM, Outcome,
};
use crate::graph::Task;
use crate::handles::Handle;
use crate::objects::{Context, Stream, Tables};
use crate::timeline::{Engines, Op, Submission};

/// Streams hold this much work; a call that would add more waits.
const QUEUE_DEPTH: usize = 1024;
/// While somebody waits for work, the thread leaves the ending of it to them.
const LEAVE_TO_WAITERS: Nanos = 300_000;

/// The driver.
pub(crate) struct Driver {
    pub(crate) config: Config,
    pub(crate) state: State,
    pub(crate) charge: Charge,
    /// The GPU of each device that the process sees.
    pub(crate) devices: Vec<usize>,
    pub(crate) faults: Faults,
    tables: Mutex<Tables>,
    /// Work ended.
    ended: Condvar,
    /// There is something for the thread to do.
    stir: Condvar,
    /// How many wait at `ended`.
    waiters: AtomicU64,
    /// Until when the thread sleeps.
    sleeps_until: AtomicU64,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();
static STATUS: AtomicU8 = AtomicU8::new(FRESH);
static COMING_UP: Mutex<()> = Mutex::new(());

const FRESH: u8 = 0;
const UP: u8 = 1;
const FORKED: u8 = 2;
const DOWN: u8 = 3;

thread_local! {
    static CURRENT: RefCell<Vec<Handle<Context>>> = const { RefCell::new(Vec::new()) };
    static THREAD: Cell<u64> = const { Cell::new(0) };
    static CAPTURE_MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

/// The driver, if `cuInit` brought it up in this process.
#[inline]
pub(crate) fn get() -> Outcome<&'static Driver> {
    match STATUS.load(Ordering::Acquire) {
        UP => DRIVER.get().ok_or(NOT_INITIALIZED),
        DOWN => Err(DEINITIALIZED),
        _ => Err(NOT_INITIALIZED),
    }
}

/// `cuInit`
pub(crate) fn bring_up() -> Outcome {
    match STATUS.load(Ordering::Acquire) {
        UP => return Ok(()),
        FORKED => return Err(NOT_INITIALIZED),
        DOWN => return Err(DEINITIALIZED),
        _ => {}
    }
    let _alone = COMING_UP.lock().unwrap_or_else(PoisonError::into_inner);
    if STATUS.load(Ordering::Acquire) == UP {
        return Ok(());
    }
    let config = Config::load().map_err(|error| complain(&error))?;
    let hidden = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let devices = visible::visible(hidden.as_deref(), &config.uuids());
    if devices.is_empty() {
        return Err(NO_DEVICE);
    }
    let state = State::open(&config).map_err(|error| complain(&error))?;
    let charge = state.join(&config).map_err(|error| complain(&error))?;
    let driver = Driver {
        faults: Faults::of_this_process(&config.faults),
        tables: Mutex::new(Tables::new(devices.len(), config.gpus.len())),
        devices,
        state,
        charge,
        config,
        ended: Condvar::new(),
        stir: Condvar::new(),
        waiters: AtomicU64::new(0),
        sleeps_until: AtomicU64::new(Nanos::MAX),
    };
    let driver = DRIVER.get_or_init(|| driver);
    if let Err(error) = start_thread(driver) {
        return Err(complain(&format!("simcuda: cannot start a thread: {error}")));
    }
    // SAFETY: both handlers only store to an atomic or lock the shared state.
    unsafe {
        libc::pthread_atfork(None, None, Some(forked));
        libc::atexit(going_down);
    }
    STATUS.store(UP, Ordering::Release);
    Ok(())
}

/// Tells people what programs do not: drivers have codes, not messages.
fn complain(error: &dyn std::fmt::Display) -> acb_cuda_abi::CuResult {
    say(&error.to_string());
    OPERATING_SYSTEM
}

/// One line on stderr.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    // A closed stderr is the program's choice.
    let _ = writeln!(std::io::stderr(), "{line}");
}

extern "C" fn forked() {
    if STATUS.load(Ordering::Relaxed) != FRESH {
        STATUS.store(FORKED, Ordering::Release);
    }
}

extern "C" fn going_down() {
    if STATUS.swap(DOWN, Ordering::AcqRel) != UP {
        // A forked child: the entry is its parent's.
        return;
    }
    if let Some(driver) = DRIVER.get() {
        driver.state.leave(driver.charge);
    }
}

fn start_thread(driver: &'static Driver) -> std::io::Result<()> {
    // The program's signals are for the program's threads.
    // SAFETY: plain signal set calls on local, initialised memory.
    let before = unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    };
    let started = std::thread::Builder::new()
        .name("simcuda".to_owned())
        .stack_size(512 << 10)
        .spawn(move || driver.serve());
    // SAFETY: restores what was there.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
    }
    started.map(drop)
}

/// Lets sleeps of the calling thread end on time; `false` puts the usual back.
fn punctual(on: bool) {
    // SAFETY: concerns the calling thread's timers alone; 0 is its default.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, u64::from(on)) };
}

/// A number of the calling thread.
pub(crate) fn thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if THREAD.get() == 0 {
        THREAD.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    THREAD.get()
}

/// The calling thread's stack of contexts.
pub(crate) fn with_stack<T>(use_it: impl FnOnce(&mut Vec<Handle<Context>>) -> T) -> T {
    CURRENT.with_borrow_mut(use_it)
}

/// Sets the calling thread's capture mode; what it was.
pub(crate) fn exchange_capture_mode(mode: Mode) -> Mode {
    CAPTURE_MODE.replace(mode)
}

/// The calling thread, to captures.
pub(crate) fn caller() -> Caller {
    Caller { thread: thread(), mode: CAPTURE_MODE.get() }
}

/// What calls work with while they hold the lock.
pub(crate) type Locked<'a> = MutexGuard<'a, Tables>;

impl Driver {
    /// Takes the lock.
    pub(crate) fn lock(&self) -> Locked<'_> {
        // A panic is caught at the border and leaves tables that still hold.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process's place at the engines.
    pub(crate) fn engines(&self) -> Engines<'_> {
        Engines { state: &self.state, charge: self.charge }
    }

    /// How device `ordinal` is configured.
    pub(crate) fn device(&self, ordinal: usize) -> Outcome<&GpuConfig> {
        let gpu = self.devices.get(ordinal).ok_or(INVALID_DEVICE)?;
        Ok(&self.config.gpus[*gpu])
    }

    /// The GPU of device `ordinal`.
    pub(crate) fn gpu(&self, ordinal: i32) -> Outcome<usize> {
        let at = usize::try_from(ordinal).map_err(|_| INVALID_DEVICE)?;
        self.devices.get(at).copied().ok_or(INVALID_DEVICE)
    }

    /// The calling thread's context.
    pub(crate) fn current(&self, tables: &Tables) -> Outcome<Handle<Context>> {
        let top = with_stack(|stack| stack.last().copied()).ok_or(INVALID_CONTEXT)?;
        let context = tables.contexts.get(top).ok_or(CONTEXT_IS_DESTROYED)?;
        context.broken.map_or(Ok(top), Err)
    }

    /// The stream that a program means.
    pub(crate) fn stream(
        &self,
        tables: &mut Tables,
        bits: u64,
        form: StreamForm,
    ) -> Outcome<Handle<Stream>> {
        match (bits, form) {
            (1, _) | (0, StreamForm::Legacy) => {
                let context = self.current(tables)?;
                Ok(tables.context(context)?.legacy)
            }
            (2, _) | (0, StreamForm::PerThread) => {
                let context = self.current(tables)?;
                Ok(tables.per_thread_stream(context, thread()))
            }
            _ => {
                let stream = Handle::from_bits(bits);
                let owner = tables.streams.get(stream).ok_or(INVALID_HANDLE)?.context;
                tables.context(owner)?;
                Ok(stream)
            }
        }
    }

    /// Hands work in and lets it run by itself; in a stream that captures it
    /// becomes a node.
    pub(crate) fn submit<'a>(
        &'a self,
        mut tables: Locked<'a>,
        stream: Handle<Stream>,
        submission: Submission,
        others: &[Handle<Op>],
    ) -> Outcome<Option<Handle<Op>>> {
        if tables.captures.any() {
            tables.check_legacy(stream)?;
            if let Some(capture) = tables.recording(stream)? {
                return tables.record(stream, capture, Task::Run(submission)).map(|_| None);
            }
        }
        if tables.streams.get(stream).is_some_and(|stream| stream.pending >= QUEUE_DEPTH) {
            tables = self.wait(tables, |tables| {
                tables.streams.get(stream).is_none_or(|stream| stream.pending < QUEUE_DEPTH)
            });
        }
        let op = tables.submit(&self.engines(), stream, submission, others, clock::now())?;
        if op.is_some() {
            self.stir(&tables);
        }
        Ok(op)
    }

    /// Hands work in and waits until it is over.
    pub(crate) fn submit_and_wait<'a>(
        &'a self,
        mut tables: Locked<'a>,
        stream: Handle<Stream>,
        submission: Submission,
    ) -> Outcome {
        let context = tables.streams.get(stream).ok_or(INVALID_HANDLE)?.context;
        tables.check_waitable(stream)?;
        let op = tables.submit(&self.engines(), stream, submission, &[], clock::now())?;
        if let Some(op) = op {
            tables = self.wait(tables, |tables| !tables.timeline.is_pending(op));
        }
        tables.context(context).map(drop)
    }

    /// Wakes the thread if there is something to do before it would look.
    pub(crate) fn stir(&self, tables: &Tables) {
        if tables.timeline.wake_by < self.sleeps_until.load(Ordering::Relaxed) {
            self.stir.notify_one();
        }
    }

    /// Waits until `over` holds, ending work meanwhile.
    pub(crate) fn wait<'a>(
        &'a self,
        mut tables: Locked<'a>,
        over: impl Fn(&Tables) -> bool,
    ) -> Locked<'a> {
        if over(&tables) {
            return tables;
        }
        self.waiters.fetch_add(1, Ordering::Relaxed);
        punctual(true);
        loop {
            let next;
            (tables, next) = self.settle(tables);
            if over(&tables) {
                break;
            }
            tables = sleep(&self.ended, tables, next);
        }
        punctual(false);
        // What the thread left to this one, it must look at itself again.
        if self.waiters.fetch_sub(1, Ordering::Relaxed) == 1 {
            tables.timeline.wake_by = 0;
            if !tables.timeline.is_idle() {
                self.stir(&tables);
            }
        }
        tables
    }

    /// Ends what is over by now, but for what takes the processor long: that is left to the thread, for who asks does not wait.
    pub(crate) fn look<'a>(&'a self, mut tables: Locked<'a>) -> Locked<'a> {
        if tables.timeline.is_idle() {
            return tables;
        }
        let ended = tables.timeline.ended;
        tables.pump(&self.engines());
        self.tell_of_ended(&tables, ended);
        if !tables.timeline.heavy.is_empty() {
            self.stir.notify_one();
        }
        tables
    }

    fn tell_of_ended(&self, tables: &Tables, before: u64) {
        if tables.timeline.ended != before && self.waiters.load(Ordering::Relaxed) > 0 {
            self.ended.notify_all();
        }
        if !tables.timeline.hosts.is_empty() {
            self.stir.notify_one();
        }
    }

    /// Ends what is over; when there will be more.
    fn settle<'a>(&'a self, mut tables: Locked<'a>) -> (Locked<'a>, Option<Nanos>) {
        let ended = tables.timeline.ended;
        let next = loop {
            let next = tables.pump(&self.engines());
            let Some((op, end, effect)) = tables.timeline.heavy.pop_front() else { break next };
            drop(tables);
            effect.run();
            drop(effect);
            tables = self.lock();
            tables.end(&self.engines(), op, end);
        };
        self.tell_of_ended(&tables, ended);
        (tables, next)
    }

    /// The thread's life.
    fn serve(&self) {
        punctual(true);
        let mut tables = self.lock();
        loop {
            let next;
            (tables, next) = self.settle(tables);
            if let Some((op, call)) = tables.timeline.hosts.pop_front() {
                let skip = tables.is_broken(op);
                drop(tables);
                if !skip {
                    call.call();
                }
                tables = self.lock();
                tables.end(&self.engines(), op, clock::now());
                self.ended.notify_all();
                continue;
            }
            let left = self.waiters.load(Ordering::Relaxed) > 0;
            let next = next.map(|next| if left { next + LEAVE_TO_WAITERS } else { next });
            self.sleeps_until.store(next.unwrap_or(Nanos::MAX), Ordering::Relaxed);
            tables.timeline.wake_by = Nanos::MAX;
            tables = sleep(&self.stir, tables, next);
            self.sleeps_until.store(0, Ordering::Relaxed);
        }
    }
}

fn sleep<'a>(at: &Condvar, tables: Locked<'a>, until: Option<Nanos>) -> Locked<'a> {
    match until {
        None => at.wait(tables).unwrap_or_else(PoisonError::into_inner),
        Some(until) => {
            let length = Duration::from_nanos(until.saturating_sub(clock::now()));
            at.wait_timeout(tables, length).unwrap_or_else(PoisonError::into_inner).0
        }
    }
}
