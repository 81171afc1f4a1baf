//! The start of a client, in cuInit; and its forks and end.
//!
//! ```text
//!   Fresh ──cuInit──> Starting ──> Ready        other threads wait in Starting
//!     ▲                  │
//!     └───── failed ─────┘
//! ```
//! Owns: contact with the assigner, CUDA_VISIBLE_DEVICES, the link thread's start.
//! Does not own: what the link does afterwards.
#![allow(unsafe_code)] // FFI: the driver's cuInit.

use crate::ipc;
use crate::link::{self, Connection, ContactError, LINK, Terms};
use crate::log::{error, info, warning};
use crate::memory::LEDGER;
use crate::pager::{OVERHEAD, PAGER, Rules};
use crate::paths;
use crate::settings::{OnFailure, Paging, Settings};
use crate::table::real;
use crate::visible::{self, Choice};
use crate::work::WORK;
use crate::{driver, environment, log, newer, nvml, table};
use acb_cuda_abi::CuResult;
use acb_wire::v1::{BoundGpu, RefusedCode};
use std::ffi::c_uint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, Once, PoisonError};
use std::time::Instant;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Fresh,
    Starting,
    Ready,
}

static PHASE: Mutex<Phase> = Mutex::new(Phase::Fresh);
static STARTED: Condvar = Condvar::new();
/// This process was forked from a client.
static DETACHED: AtomicBool = AtomicBool::new(false);
/// This process is a client, or about to become one: its children are not.
static CLIENT: AtomicBool = AtomicBool::new(false);

/// Whether this process was forked from a client after its cuInit: CUDA does not work here.
pub(crate) fn is_detached() -> bool {
    let detached = DETACHED.load(Ordering::Relaxed);
    if detached {
        table::tell_detached();
    }
    detached
}

/// The same, for those who do not want it told.
pub(crate) fn is_forked() -> bool {
    DETACHED.load(Ordering::Relaxed)
}

/// cuInit.
pub(crate) fn init(flags: c_uint) -> CuResult {
    if is_detached() {
        return CuResult::NOT_INITIALIZED;
    }
    log::read_environment();
    let settings = match Settings::read(|name| std::env::var(name).ok()) {
        Ok(Some(settings)) => settings,
        // SAFETY: the program's own argument.
        Ok(None) => return unsafe { real::cuInit(flags) },
        Err(bad) => {
            error!("{bad}");
            return CuResult::SYSTEM_NOT_READY;
        }
    };
    if driver::handle().is_none() {
        return CuResult::NO_DEVICE;
    }
    paths::begin();
    table::find_all();
    let mut phase = PHASE.lock().unwrap_or_else(PoisonError::into_inner);
    while *phase == Phase::Starting {
        phase = STARTED.wait(phase).unwrap_or_else(PoisonError::into_inner);
    }
    if *phase == Phase::Ready {
        drop(phase);
        // SAFETY: the program's own argument.
        return unsafe { real::cuInit(flags) };
    }
    *phase = Phase::Starting;
    drop(phase);
    // Whatever happens, even a panic, the others are not left waiting.
    let mut outcome = Outcome { phase: Phase::Fresh };
    let result = start(&settings, flags);
    if result.is_success() {
        outcome.phase = Phase::Ready;
    }
    result
}

struct Outcome {
    phase: Phase,
}

impl Drop for Outcome {
    fn drop(&mut self) {
        *PHASE.lock().unwrap_or_else(PoisonError::into_inner) = self.phase;
        STARTED.notify_all();
    }
}

fn start(settings: &Settings, flags: c_uint) -> CuResult {
    let value = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let choice = Choice::read(value.as_deref(), settings.gpus as usize);
    if choice == Choice::Hidden {
        info!(
            "CUDA_VISIBLE_DEVICES={} hides every GPU: nothing to schedule",
            value.unwrap_or_default()
        );
        // SAFETY: the program's own argument.
        return unsafe { real::cuInit(flags) };
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| environment::on_fork(paths::hold, paths::let_go, forked));
    CLIENT.store(true, Ordering::SeqCst);
    let result = start_under(&narrowed(settings, &choice), &choice, flags);
    CLIENT.store(result.is_success() && LINK.is_started(), Ordering::SeqCst);
    result
}

fn start_under(settings: &Settings, choice: &Choice, flags: c_uint) -> CuResult {
    match contact(settings) {
        Ok(contact) => start_client(settings, choice, contact, flags),
        Err(ContactError::Refused(refused)) => {
            error!(
                "the GPU assigner at {} refuses this program: {}",
                settings.socket.display(),
                refused.reason
            );
            match refused.code() {
                RefusedCode::Impossible => CuResult::NO_DEVICE,
                RefusedCode::Permission => CuResult::NOT_PERMITTED,
                _ => CuResult::SYSTEM_NOT_READY,
            }
        }
        Err(reason) => match settings.on_failure {
            OnFailure::Open => {
                warning!("{reason}. This program goes on without scheduling (ACB_ON_FAILURE=open)");
                init_driver(settings, &settings.uuids, flags)
            }
            OnFailure::Fail => {
                error!("{reason}. CUDA_ERROR_SYSTEM_NOT_READY is returned (ACB_ON_FAILURE=fail)");
                CuResult::SYSTEM_NOT_READY
            }
        },
    }
}

/// Who sees some of its GPUs alone is a client of these.
fn narrowed(settings: &Settings, choice: &Choice) -> Settings {
    let Choice::These(entries) = choice else { return settings.clone() };
    let uuids = choice.among(&settings.uuids);
    let eligible = match uuids.len() == entries.len() {
        true => uuids.clone(),
        // Nobody has said which they are.
        false => settings.eligible.clone(),
    };
    Settings { gpus: entries.len() as u32, eligible, uuids, ..settings.clone() }
}

/// The driver's cuInit, in which it is shown these GPUs. Programs, and their children, find what they have put there themselves.
fn init_driver(settings: &Settings, uuids: &[String], flags: c_uint) -> CuResult {
    // SAFETY: the program's own argument.
    let init = || unsafe { real::cuInit(flags) };
    if uuids.is_empty() {
        return init();
    }
    let (shown, otherwise) = (uuids.join(","), visible::ordinals(settings.gpus));
    environment::with_variable(c"CUDA_VISIBLE_DEVICES", &shown, &otherwise, init).unwrap_or_else(
        || {
            error!("CUDA_VISIBLE_DEVICES cannot be set to {shown}: out of memory");
            CuResult::OUT_OF_MEMORY
        },
    )
}

struct Contact {
    connection: Connection,
    terms: Terms,
    gpus: Vec<BoundGpu>,
}

fn contact(settings: &Settings) -> Result<Contact, ContactError> {
    let deadline = Instant::now() + settings.grace;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let (mut connection, terms) = Connection::open(settings, None, left)?;
        match connection.bind(settings.grace) {
            Ok(gpus) => return Ok(Contact { connection, terms, gpus }),
            // It restarts between two words: the new one knows nothing of this process.
            Err(error) if error.may_pass() && Instant::now() < deadline => {
                drop(connection);
                std::thread::sleep(link::FIRST_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

fn start_client(settings: &Settings, choice: &Choice, contact: Contact, flags: c_uint) -> CuResult {
    let Contact { connection, terms, gpus } = contact;
    let bound: Vec<String> = gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
    let visible = bound.join(",");
    info!("client {} of {}: GPUs {visible}", terms.client, settings.socket.display());

    LINK.start(&connection.socket);
    let capacities = gpus.iter().map(|gpu| gpu.memory).collect();
    LEDGER.start(capacities, terms.context_bytes, terms.measure);
    let result = init_driver(settings, &bound, flags);
    if !result.is_success() {
        error!(
            "the driver's cuInit failed with {} on the GPUs {visible}",
            result.name().map_or_else(|| result.0.to_string(), str::to_owned)
        );
        LEDGER.stop();
        LINK.abandon();
        return result;
    }
    if settings.paging == Paging::On {
        PAGER.start(Rules {
            chunk_bytes: terms.chunk_bytes,
            compare: terms.compare,
            numa_nodes: gpus.iter().map(|gpu| gpu.numa_node).collect(),
        });
        if PAGER.is_active() {
            LEDGER.enlarge_contexts(OVERHEAD);
        }
    } else {
        PAGER.stay_off("ACB_PAGER=off");
    }
    newer::tell();
    if std::env::var_os("NCCL_GRAPH_REGISTER").is_some_and(|value| value == "0") {
        info!(
            "NCCL_GRAPH_REGISTER=0, as slurm-acb sets it where it is not set: buffers that NCCL registers for graphs could not be moved"
        );
    }
    nvml::bound(&bound, choice);
    // After the driver's own cuInit, so that on exit this comes before the driver's farewell.
    static ONCE: Once = Once::new();
    ONCE.call_once(|| environment::on_exit(exiting));

    let settings = settings.clone();
    // The driver's own calls run on it; what is not touched of its stack costs nothing.
    let thread = environment::start_thread(c"acb-link", 2 << 20, move || {
        link::run(settings, connection, terms, bound);
    });
    match thread {
        Ok(_) => CuResult::SUCCESS,
        Err(cause) => {
            error!(
                "cannot start the link thread: {cause}; raise the limit of processes (ulimit -u)"
            );
            PAGER.stop();
            LEDGER.stop();
            LINK.abandon();
            CuResult::SYSTEM_NOT_READY
        }
    }
}

/// Runs in the child of every fork after or during cuInit. The other threads are not here, so neither locks
/// nor the link are of any use: everything is marked unusable, with plain stores.
extern "C" fn forked() {
    paths::let_go_in_child();
    if !CLIENT.load(Ordering::SeqCst) {
        return;
    }
    DETACHED.store(true, Ordering::SeqCst);
    table::detach();
    LINK.detach();
    ipc::close_inherited();
}

/// Runs at the end of every process that has the interposer, after its own exit handlers. A program
/// that has never come here may have used the driver all the same.
extern "C" fn unloading() {
    let untouched = !DETACHED.load(Ordering::SeqCst)
        && !LINK.is_started()
        && driver::opened().is_none()
        && std::env::var_os("ACB_SOCKET").is_some();
    if untouched {
        let _ = std::panic::catch_unwind(paths::end_untouched);
    }
}

#[used]
#[unsafe(link_section = ".fini_array")]
static ON_UNLOAD: extern "C" fn() = unloading;

/// Runs when the process exits: the driver is about to take itself apart.
extern "C" fn exiting() {
    if !DETACHED.load(Ordering::SeqCst) {
        let _ = std::panic::catch_unwind(|| {
            paths::look_again();
            WORK.end();
            ipc::end();
            PAGER.end();
        });
    }
}
