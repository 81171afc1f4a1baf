//! One life of the worker: the broker on this thread, everything that may take its time on another.
//!
//! Owns the runtimes and the order of a start: GPUs, state, sockets, `ready.json`, ready.
//!
//! ```text
//!   this thread: client socket ⇄ broker ◄──commands── second thread: gRPC, other nodes,
//!                                                     stats.json, job comment
//! ```

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use crate::broker::Broker;
use crate::inventory::{self, Device};
use crate::node::Node;
use crate::process::ProcessId;
use crate::settings::Settings;
use crate::sockets::{self, Sockets};
use crate::state::State;
use crate::{cautions, clients, commands, outside, pidfile, strangers};

/// Exit code of a worker that could not start.
const FAILED: i32 = 1;
/// Exit code after a panic, as Rust has it.
const PANICKED: i32 = 101;
/// How often changes are written down that need not be written at once.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What a worker is told of the daemon that it is a part of.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// The supervisor.
    pub supervisor: ProcessId,
    /// When the daemon started.
    pub started: Instant,
    /// Workers before this one.
    pub restarts: u32,
}

/// Runs until it is told to end; the result is the exit code of the process.
pub fn run(settings: &Settings, sockets: &Sockets, life: Life, mut news: File) -> i32 {
    exit_on_panic();
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        tracing::warn!("the worker will outlive its supervisor: {error}");
    }
    let outcome = serve(settings, sockets, life, &mut news);
    if supervisor_is_gone(life) {
        // Nobody else tidies up.
        tracing::info!("the supervisor is gone; ended");
        sockets::remove(&settings.folder);
        if let Some(path) = &settings.pid_file {
            pidfile::remove_own(path, life.supervisor.pid);
        }
    }
    match outcome {
        Ok(()) => 0,
        Err(message) => {
            let flat: Vec<&str> = message.lines().collect();
            let _ = writeln!(news, "error: {}", flat.join("; "));
            FAILED
        }
    }
}

fn supervisor_is_gone(life: Life) -> bool {
    getppid().is_none_or(|pid| u32::try_from(pid.as_raw_nonzero().get()) != Ok(life.supervisor.pid))
}

/// A panic in a task would leave the broker half changed: the next life begins from what is written.
fn exit_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        tracing::error!("internal error, the worker ends: {info}");
        std::process::exit(PANICKED);
    }));
}

fn serve(
    settings: &Settings,
    sockets: &Sockets,
    life: Life,
    news: &mut File,
) -> Result<(), String> {
    let settings = Rc::new(settings.clone());
    let gpus = inventory::devices(settings.nvml.as_deref(), &settings.gpus)
        .map_err(|error| error.to_string())?;
    log_gpus(&gpus);
    let cautions = cautions::cautions(settings.nvml.as_deref(), &gpus)?;
    for caution in &cautions {
        tracing::warn!("{caution}");
    }
    let state = State::read(&settings.folder.state());
    let (broker, survivors) = Broker::new(Rc::clone(&settings), gpus.clone(), &state)
        .map_err(|error| error.to_string())?;
    let broker = Rc::new(RefCell::new(broker));
    broker.borrow_mut().caution(cautions);
    let system = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| system("cannot start the runtime", error))?;
    let (sender, receiver) = mpsc::channel(commands::QUEUE);
    let node = Arc::new(Node::new(&settings, life, broker.borrow().changes()));
    let listener = sockets
        .client
        .try_clone()
        .map_err(|error| system("cannot take the client socket", error))?;
    let (gang_reports, reported) = mpsc::unbounded_channel();
    broker.borrow_mut().report_gangs_to(gang_reports);
    outside::spawn(Arc::clone(&node), sockets, sender, reported)
        .map_err(|error| system("cannot start the second thread", error))?;

    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let listener = tokio::net::UnixListener::from_std(listener)
            .map_err(|error| system("cannot take the client socket", error))?;
        let mut end = signal(SignalKind::terminate())
            .map_err(|error| system("cannot wait for SIGTERM", error))?;
        if supervisor_is_gone(life) {
            return Ok(()); // before the kernel was asked to say so
        }
        spawn_local(clients::serve(Rc::clone(&broker), listener));
        spawn_local(commands::serve(Rc::clone(&broker), receiver));
        spawn_local(keep_time(Rc::clone(&broker)));
        let vigil = broker.borrow().vigil();
        spawn_local(async move { vigil.keep().await });
        spawn_local(keep_house(Rc::clone(&broker)));
        spawn_local(strangers::watch(Rc::clone(&broker)));
        for (client, process) in survivors {
            spawn_local(clients::watch(Rc::clone(&broker), client, process));
        }
        write_ready(&settings, life, &gpus)?;
        tracing::info!("serving on {}", settings.address());
        writeln!(news, "ready")
            .map_err(|error| system("cannot report to the supervisor", error))?;
        tokio::select! {
            _ = end.recv() => tracing::info!("told to end"),
            () = lifetime(&settings, life) => tracing::info!("the execution time is over"),
        }
        Ok(())
    })
}

fn log_gpus(gpus: &[Device]) {
    for gpu in gpus {
        tracing::info!("GPU {} {} {} {} bytes", gpu.index, gpu.uuid, gpu.name, gpu.memory);
    }
    if gpus.is_empty() {
        tracing::warn!("no GPU to hand out: manual-mode clients will run on the CPU");
    }
}

async fn lifetime(settings: &Settings, life: Life) {
    match settings.lifetime {
        Some(lifetime) => tokio::time::sleep_until((life.started + lifetime).into()).await,
        None => std::future::pending().await,
    }
}

/// Sends the scheduler its timer events.
async fn keep_time(broker: Rc<RefCell<Broker>>) {
    let moved = broker.borrow().timer();
    loop {
        let deadline = broker.borrow_mut().deadline();
        match deadline {
            None => moved.notified().await,
            Some(deadline) => tokio::select! {
                () = tokio::time::sleep_until(deadline.into()) => broker.borrow_mut().tick(),
                () = moved.notified() => {}
            },
        }
    }
}

async fn keep_house(broker: Rc<RefCell<Broker>>) {
    let mut clock = tokio::time::interval(HOUSEKEEPING);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        broker.borrow_mut().save_if_changed();
    }
}

/// The content of `ready.json`.
#[derive(Serialize)]
struct Ready<'a> {
    pid: u32,
    start_time: u64,
    gpus: Vec<ReadyGpu<'a>>,
    client_socket: String,
}

#[derive(Serialize)]
struct ReadyGpu<'a> {
    index: u32,
    uuid: &'a str,
    memory: u64,
}

fn write_ready(settings: &Settings, life: Life, gpus: &[Device]) -> Result<(), String> {
    let ready = Ready {
        pid: life.supervisor.pid,
        start_time: life.supervisor.start_time,
        gpus: gpus
            .iter()
            .map(|gpu| ReadyGpu { index: gpu.index, uuid: &gpu.uuid, memory: gpu.memory })
            .collect(),
        client_socket: settings.folder.client_socket().display().to_string(),
    };
    let path = settings.folder.ready();
    let text = serde_json::to_vec(&ready).expect("numbers and strings become JSON");
    crate::files::replace(&path, &text)
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))
}
