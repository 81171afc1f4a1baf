//! What lies in the shared file: plain data, the same for every process. All of
//! it is read and written under the file's lock, but for `Engine::busy`.
//!
//! Memory in use is no stored sum: it is added up over the processes when it is
//! asked for, so that a process that dies in the middle of a change leaves nothing
//! wrong but its own entry. Engines are repaired (`engine::repair`).

use std::sync::atomic::AtomicU32;

use crate::Nanos;
use crate::liveness::Process;

/// GPUs that one state can have.
pub const GPUS_MAX: usize = 16;
/// Processes that can use one state at a time.
pub const PROCESSES_MAX: usize = 512;
/// Engines of a GPU.
pub const ENGINES: usize = 3;

/// The three engines of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// Runs kernels, fills, and copies inside the GPU.
    Compute = 0,
    /// Copies from the host.
    In = 1,
    /// Copies to the host.
    Out = 2,
}

impl EngineKind {
    /// All three.
    pub const ALL: [EngineKind; ENGINES] = [EngineKind::Compute, EngineKind::In, EngineKind::Out];
}

/// The whole of it.
#[repr(C)]
pub struct Shared {
    /// The GPUs' engines.
    pub gpus: [Gpu; GPUS_MAX],
    /// One entry per process.
    pub processes: [Entry; PROCESSES_MAX],
    /// Entries from here on were never used.
    pub entries_used: u32,
}

/// One GPU.
#[repr(C)]
pub struct Gpu {
    /// Its engines.
    pub engines: [Engine; ENGINES],
}

/// What serves one request at a time.
#[repr(C)]
pub struct Engine {
    /// Requests that wait or run; also read without the lock, as a hint.
    pub busy: AtomicU32,
    /// The entry whose request runs, plus one; 0 when idle.
    pub running: u32,
    /// Since when it runs without a break.
    pub since: Nanos,
    /// Everything before this moment is decided.
    pub decided: Nanos,
    /// Modelled time in which it worked, up to `decided`.
    pub worked: Nanos,
}

/// What one process uses.
#[repr(C)]
pub struct Entry {
    /// Whose it is; free when its pid is 0.
    pub owner: Process,
    /// Per GPU.
    pub gpus: [Share; GPUS_MAX],
}

/// What one process uses of one GPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Share {
    /// Bytes of device memory, contexts included.
    pub memory: u64,
    /// Its contexts.
    pub contexts: u32,
    /// Its request to each engine; one at a time.
    pub requests: [Request; ENGINES],
}

/// Work for an engine.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// One of the constants below.
    pub state: u32,
    /// Since when it waits.
    pub ready: Nanos,
    /// When it first ran.
    pub started: Nanos,
    /// What is left of it; when done, when that was.
    pub left: Nanos,
}

impl Request {
    /// No request.
    pub const NONE: u32 = 0;
    /// Waits for the engine.
    pub const WAITING: u32 = 1;
    /// Has the engine.
    pub const RUNNING: u32 = 2;
    /// Is over.
    pub const DONE: u32 = 3;
    /// An entry without one.
    pub const EMPTY: Request = Request { state: Request::NONE, ready: 0, started: 0, left: 0 };
}
