//! The software GPU's state as a process sees it: its own entry, and what all
//! processes use together. Entries of processes that died are cleared whenever
//! somebody would wait or fail because of them.

use std::io;
use std::path::{Path, PathBuf};

use crate::Nanos;
use crate::config::Config;
use crate::engine::{self, EngineId, Progress};
use crate::identity::fnv;
use crate::layout::{ENGINES, EngineKind, Entry, GPUS_MAX, PROCESSES_MAX, Request, Share, Shared};
use crate::liveness::Process;
use crate::mapping::{Mapping, OpenError};

/// Where the shared files lie.
pub const FOLDER: &str = "/dev/shm";

/// The state, opened.
pub struct State {
    mapping: Mapping,
    memory: Vec<u64>,
    slices: Vec<Nanos>,
    half_duplex: Vec<bool>,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be opened.
    #[error("simcuda: cannot open the shared state {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is another user's.
    #[error(
        "simcuda: the shared state {path} belongs to user {uid}: remove it, or set another `state` in the file that SIMCUDA_CONFIG names"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// The file was made by another version.
    #[error(
        "simcuda: the shared state {path} was made by another version of the software GPU: remove it (`rm {path}`)"
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
    },
    /// Live processes use it with other GPUs.
    #[error(
        "simcuda: the shared state {path} is in use with another configuration: wait for the programs that use it, or set another `state` in the file that SIMCUDA_CONFIG names"
    )]
    OtherConfig {
        /// The file.
        path: PathBuf,
    },
    /// No entry is free.
    #[error("simcuda: {PROCESSES_MAX} processes use the shared state {path}: no more can")]
    Full {
        /// The file.
        path: PathBuf,
    },
}

/// A device is out of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory;

/// What one process uses of a GPU, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The process.
    pub pid: u32,
    /// Bytes, contexts included.
    pub memory: u64,
    /// Its contexts there.
    pub contexts: u32,
}

/// A process's entry: from now on its memory and requests count. Dropped or not,
/// it ends with the process.
#[derive(Debug, Clone, Copy)]
pub struct Charge(usize);

/// The file of the state called `name`, for the calling user.
#[must_use]
#[allow(unsafe_code)] // geteuid
pub fn path_of(name: &str) -> PathBuf {
    // SAFETY: geteuid has no preconditions.
    let uid = unsafe { libc::geteuid() };
    Path::new(FOLDER).join(format!("simcuda-{uid}-{name}"))
}

impl State {
    /// Opens the state that `config` names, or makes it.
    ///
    /// # Errors
    /// When its file cannot be opened or does not fit the configuration.
    pub fn open(config: &Config) -> Result<State, StateError> {
        let path = path_of(&config.state);
        let shape: Vec<u8> = config.gpus.iter().flat_map(|gpu| gpu.memory.to_le_bytes()).collect();
        let hash = fnv(&shape, config.gpus.len() as u64);
        let unused = |shared: &mut Shared| {
            sweep(shared);
            (0..shared.entries_used as usize).all(|at| shared.processes[at].owner.pid == 0)
        };
        let mapping = Mapping::open(&path, hash, unused).map_err(|error| match error {
            OpenError::Io(source) => StateError::Io { path: path.clone(), source },
            OpenError::Foreign { uid } => StateError::Foreign { path: path.clone(), uid },
            OpenError::OtherVersion => StateError::OtherVersion { path: path.clone() },
        })?;
        let Some(mapping) = mapping else {
            return Err(StateError::OtherConfig { path });
        };
        Ok(State {
            mapping,
            memory: config.gpus.iter().map(|gpu| gpu.memory).collect(),
            slices: config.gpus.iter().map(|gpu| gpu.time_slice_ns).collect(),
            half_duplex: config.gpus.iter().map(|gpu| !gpu.duplex).collect(),
        })
    }

    /// Takes an entry for the calling process.
    ///
    /// # Errors
    /// When all are taken by live processes.
    pub fn join(&self, config: &Config) -> Result<Charge, StateError> {
        let mut shared = self.mapping.lock();
        for attempt in 0..2 {
            let free = (0..PROCESSES_MAX).find(|&at| shared.processes[at].owner.pid == 0);
            if let Some(at) = free {
                shared.processes[at] = Entry {
                    owner: Process::this(),
                    gpus: [Share { memory: 0, contexts: 0, requests: [Request::EMPTY; ENGINES] };
                        GPUS_MAX],
                };
                shared.entries_used = shared.entries_used.max(at as u32 + 1);
                return Ok(Charge(at));
            }
            if attempt == 0 {
                sweep(&mut shared);
            }
        }
        Err(StateError::Full { path: path_of(&config.state) })
    }

    /// Gives the entry back, with all that counts for it.
    pub fn leave(&self, charge: Charge) {
        clear(&mut self.mapping.lock(), charge.0);
    }

    /// Takes `bytes` of GPU `gpu`.
    ///
    /// # Errors
    /// When that many are not free, dead processes' memory counted as free.
    pub fn take(&self, charge: Charge, gpu: usize, bytes: u64) -> Result<(), OutOfMemory> {
        let mut shared = self.mapping.lock();
        let room = self.memory[gpu];
        let fits =
            |shared: &Shared| used(shared, gpu).checked_add(bytes).is_some_and(|sum| sum <= room);
        if !fits(&shared) {
            sweep(&mut shared);
            if !fits(&shared) {
                return Err(OutOfMemory);
            }
        }
        shared.processes[charge.0].gpus[gpu].memory += bytes;
        Ok(())
    }

    /// Gives `bytes` of GPU `gpu` back.
    pub fn give_back(&self, charge: Charge, gpu: usize, bytes: u64) {
        let mut shared = self.mapping.lock();
        let memory = &mut shared.processes[charge.0].gpus[gpu].memory;
        *memory = memory.saturating_sub(bytes);
    }

    /// Counts contexts of the process on GPU `gpu`, for reports.
    pub fn note_contexts(&self, charge: Charge, gpu: usize, contexts: u32) {
        self.mapping.lock().processes[charge.0].gpus[gpu].contexts = contexts;
    }

    /// Bytes of GPU `gpu` that live processes use.
    #[must_use]
    pub fn used(&self, gpu: usize) -> u64 {
        let mut shared = self.mapping.lock();
        sweep(&mut shared);
        used(&shared, gpu)
    }

    /// The live processes that use GPU `gpu`.
    #[must_use]
    pub fn users(&self, gpu: usize) -> Vec<Usage> {
        let mut shared = self.mapping.lock();
        sweep(&mut shared);
        (0..shared.entries_used as usize)
            .map(|at| (shared.processes[at].owner, shared.processes[at].gpus[gpu]))
            .filter(|(owner, share)| owner.pid != 0 && (share.memory > 0 || share.contexts > 0))
            .map(|(owner, share)| Usage {
                pid: owner.pid,
                memory: share.memory,
                contexts: share.contexts,
            })
            .collect()
    }

    /// Modelled time in which the engine worked so far.
    #[must_use]
    pub fn worked(&self, id: EngineId, now: Nanos) -> Nanos {
        let id = self.engine(id);
        let mut shared = self.mapping.lock();
        engine::advance(&mut shared, id, self.slices[id.gpu], now);
        let engine = &shared.gpus[id.gpu].engines[id.kind as usize];
        let running = if engine.running == 0 { 0 } else { now.saturating_sub(engine.since) };
        engine.worked + running
    }

    /// Whether the engine has work of any process: a hint, cheap.
    #[must_use]
    pub fn busy(&self, id: EngineId) -> bool {
        let id = self.engine(id);
        self.mapping.busy(id.gpu, id.kind as usize)
    }

    /// The engine that serves requests to `id`: a link that is not duplex has
    /// one engine for both directions.
    #[must_use]
    pub fn engine(&self, id: EngineId) -> EngineId {
        if id.kind == EngineKind::Out && self.half_duplex[id.gpu] {
            EngineId { kind: EngineKind::In, ..id }
        } else {
            id
        }
    }

    /// Hands work to an engine; a process has one request there at a time.
    pub fn post(&self, charge: Charge, id: EngineId, ready: Nanos, length: Nanos, now: Nanos) {
        let slice = self.slices[id.gpu];
        let mut shared = self.mapping.lock();
        engine::post(&mut shared, id, charge.0, ready, length, slice, now);
    }

    /// How far that work is.
    pub fn collect(&self, charge: Charge, id: EngineId, now: Nanos) -> Progress {
        let slice = self.slices[id.gpu];
        let mut shared = self.mapping.lock();
        let mut progress = engine::collect(&mut shared, id, charge.0, slice, now);
        // Somebody else has the engine: make sure that it lives.
        while let Progress::NotBefore(_) = progress
            && let Some(holder) = engine::holder(&shared, id)
            && holder != charge.0
            && !shared.processes[holder].owner.lives()
        {
            clear(&mut shared, holder);
            progress = engine::collect(&mut shared, id, charge.0, slice, now);
        }
        if let Progress::NotBefore(moment) = progress
            && engine::holder(&shared, id) != Some(charge.0)
        {
            // Look again soon enough to notice a death.
            return Progress::NotBefore(moment.min(now + DEATH_NOTICED_WITHIN));
        }
        progress
    }

    /// Ends an endless request.
    pub fn finish(&self, charge: Charge, id: EngineId, now: Nanos) {
        let slice = self.slices[id.gpu];
        let mut shared = self.mapping.lock();
        engine::finish(&mut shared, id, charge.0, slice, now);
    }
}

const DEATH_NOTICED_WITHIN: Nanos = 10_000_000;

fn used(shared: &Shared, gpu: usize) -> u64 {
    (0..shared.entries_used as usize).map(|at| shared.processes[at].gpus[gpu].memory).sum()
}

/// Clears the entries of processes that died.
fn sweep(shared: &mut Shared) {
    for at in 0..shared.entries_used as usize {
        let owner = shared.processes[at].owner;
        if owner.pid != 0 && !owner.lives() {
            clear(shared, at);
        }
    }
}

fn clear(shared: &mut Shared, at: usize) {
    let now = crate::clock::now();
    for gpu in 0..GPUS_MAX {
        for kind in EngineKind::ALL {
            engine::withdraw(shared, EngineId { gpu, kind }, at, now);
        }
        shared.processes[at].gpus[gpu].memory = 0;
        shared.processes[at].gpus[gpu].contexts = 0;
    }
    // Last: a kill in the middle leaves an entry that is cleared again.
    shared.processes[at].owner = Process { pid: 0, start: 0 };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str) -> Config {
        Config { state: format!("unit-{}-{name}", std::process::id()), ..Config::default() }
    }

    struct Remove(PathBuf);
    impl Drop for Remove {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn capacity_holds_over_all_entries() {
        let config = config("capacity");
        let _remove = Remove(path_of(&config.state));
        let one = State::open(&config).unwrap();
        let two = State::open(&config).unwrap();
        let (a, b) = (one.join(&config).unwrap(), two.join(&config).unwrap());
        one.take(a, 0, 10 << 30).unwrap();
        assert_eq!(two.take(b, 0, 7 << 30), Err(OutOfMemory));
        assert_eq!(two.take(b, 0, u64::MAX), Err(OutOfMemory));
        two.take(b, 0, 6 << 30).unwrap();
        assert_eq!(two.used(0), 16 << 30);
        one.leave(a);
        assert_eq!(two.used(0), 6 << 30);
    }

    #[test]
    fn the_dead_use_nothing() {
        let config = config("dead");
        let _remove = Remove(path_of(&config.state));
        let state = State::open(&config).unwrap();
        let dead = state.join(&config).unwrap();
        state.take(dead, 0, 16 << 30).unwrap();
        let id = EngineId { gpu: 0, kind: EngineKind::Compute };
        let now = crate::clock::now();
        state.post(dead, id, now, engine::ENDLESS, now);
        state.mapping.lock().processes[dead.0].owner.start += 1;
        let live = state.join(&config).unwrap();
        state.post(live, id, now, 1000, now);
        loop {
            match state.collect(live, id, crate::clock::now()) {
                Progress::Done { .. } => break,
                Progress::NotBefore(_) => std::thread::yield_now(),
            }
        }
        state.take(live, 0, 16 << 30).unwrap();
        assert_eq!(state.used(0), 16 << 30);
    }

    #[test]
    fn a_holder_of_the_lock_that_ends_blocks_nobody() {
        let config = config("lock");
        let _remove = Remove(path_of(&config.state));
        let state = State::open(&config).unwrap();
        std::thread::scope(|scope| {
            // To the system, a thread that ends with the lock is a process killed with it.
            scope.spawn(|| std::mem::forget(state.mapping.lock()));
        });
        assert_eq!(state.used(0), 0);
        assert_eq!(state.used(0), 0);
    }

    #[test]
    fn other_gpus_under_the_same_name_are_refused_while_in_use() {
        let mut config = config("shape");
        let _remove = Remove(path_of(&config.state));
        let state = State::open(&config).unwrap();
        let entry = state.join(&config).unwrap();
        config.gpus[0].memory /= 2;
        assert!(matches!(State::open(&config), Err(StateError::OtherConfig { .. })));
        state.leave(entry);
        State::open(&config).unwrap();
    }
}
