//! What this node says of itself, and a controller of the other nodes: the `StatusReply`.
//!
//! Owns the directory of executors. Shared by the tasks of the second thread.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use acb_wire::v1;
use tokio::sync::{mpsc, watch};

use crate::commands::{Command, Shown, ask};
use crate::gangs::{self, Calls, Hub};
use crate::settings::{Role, Settings};
use crate::worker::Life;

/// A report older than this is shown with a note.
const STALE: Duration = Duration::from_secs(5);

/// This node, and what it knows of others.
pub struct Node {
    /// The daemon's settings.
    pub settings: Settings,
    life: Life,
    changes: watch::Receiver<u64>,
    /// Counts changes of other nodes.
    others_changed: watch::Sender<u64>,
    others: Mutex<BTreeMap<String, Other>>,
    /// Who an executor reports to.
    controller: Mutex<String>,
    /// Where the gangs that span nodes are decided about, if this is the controller.
    pub gangs: Hub,
    calls: Mutex<Option<Calls>>,
}

struct Other {
    status: v1::NodeStatus,
    at: Instant,
    /// The connection that the report came by.
    connection: u64,
    is_connected: bool,
}

impl Node {
    /// A node that knows itself alone.
    pub fn new(settings: &Settings, life: Life, changes: watch::Receiver<u64>) -> Node {
        let (gangs, calls) = gangs::hub();
        Node {
            gangs,
            calls: Mutex::new(Some(calls)),
            settings: settings.clone(),
            life,
            changes,
            others_changed: watch::Sender::new(0),
            others: Mutex::default(),
            controller: Mutex::default(),
        }
    }

    /// What [`gangs::run`] needs; once.
    pub fn take_calls(&self) -> Option<Calls> {
        lock(&self.calls).take()
    }

    /// Whether an earlier worker of this daemon has died.
    pub fn is_restarted(&self) -> bool {
        self.life.restarts > 0
    }

    /// How long the daemon has run.
    pub fn uptime(&self) -> Duration {
        self.life.started.elapsed()
    }

    /// Counts changes on this node.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Counts changes on other nodes.
    pub fn others_changed(&self) -> watch::Receiver<u64> {
        self.others_changed.subscribe()
    }

    /// This node's own status; `None` when the broker is gone.
    pub async fn status(&self, broker: &mpsc::Sender<Command>) -> Option<v1::NodeStatus> {
        let Shown { gpus, clients, gangs, mut notes } = ask(broker, Command::Status).await?;
        let settings = &self.settings;
        let controller = lock(&self.controller).clone();
        if matches!(settings.role, Role::Executor { .. }) && controller.is_empty() {
            notes.push(
                "the controller does not answer yet; this node serves its own clients".into(),
            );
        }
        Some(v1::NodeStatus {
            node: settings.node.clone(),
            role: settings.role_name().to_owned(),
            pid: self.life.supervisor.pid,
            address: settings.address(),
            client_socket: settings.folder.client_socket().display().to_string(),
            policy: settings.scheduling.policy.to_string(),
            uptime_s: self.life.started.elapsed().as_secs(),
            gpus,
            clients,
            age_ms: 0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            quantum_ms: u64::try_from(settings.scheduling.quantum.as_millis()).unwrap_or(u64::MAX),
            restarts: self.life.restarts,
            controller,
            job: settings.job.as_ref().map(|job| job.id.to_string()).unwrap_or_default(),
            notes,
            gangs,
        })
    }

    /// The status of every node that is known here, this one first.
    pub async fn all(&self, broker: &mpsc::Sender<Command>) -> Option<v1::StatusReply> {
        let mut nodes = vec![self.status(broker).await?];
        for other in lock(&self.others).values() {
            let age = other.at.elapsed();
            let mut status = other.status.clone();
            status.age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            if !other.is_connected {
                status.notes.push(format!("not connected for {} s", age.as_secs()));
            } else if age > STALE {
                status.notes.push(format!("silent for {} s", age.as_secs()));
            }
            nodes.push(status);
        }
        Some(v1::StatusReply { nodes })
    }

    /// An executor reports.
    pub fn report(&self, status: v1::NodeStatus, connection: u64) {
        let other = Other { status, at: Instant::now(), connection, is_connected: true };
        let known = lock(&self.others).insert(other.status.node.clone(), other);
        if known.is_none_or(|known| !known.is_connected) {
            tracing::info!("an executor joined");
        }
        self.others_changed.send_modify(|count| *count += 1);
    }

    /// An executor's connection ended.
    pub fn disconnected(&self, connection: u64) {
        for other in lock(&self.others).values_mut() {
            if other.connection == connection {
                other.is_connected = false;
                tracing::warn!("executor {} is not connected any more", other.status.node);
            }
        }
        self.others_changed.send_modify(|count| *count += 1);
    }

    /// Who this executor reports to now; empty: nobody.
    pub fn set_controller(&self, controller: String) {
        *lock(&self.controller) = controller;
    }
}

/// No task panics with the lock held; and a directory of statuses cannot be half changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
