//! `state.json`: what a worker must know of the lives before its own.
//!
//! Owns the file's form, and how little has to be in it. It is written when a client comes, is
//! bound, or goes, before one has more memory on a GPU than it says, and at most once a second for the rest, never for a
//! grant. That is enough:
//! - Epochs go on above every earlier one, because `epoch_limit` is written a million ahead of the
//!   epochs in use.
//! - A lease that was granted after the last writing is protected all the same: every bound client
//!   is expected back as one that *may* hold its GPUs. Who comes back with a lease proves that
//!   the others' are over, for its epoch is the highest; but for who slept when it was waited for: this is written before
//!   anybody else is granted.
//! - Memory is written as the most that a client can have until the file is written again (`ClientSnapshot::expected_back`): who does not
//!   come back (stopped, most likely) says nothing of what it has, and its memory must not be given to others.

use std::fs;
use std::io;
use std::path::Path;

use acb_core::gang::GangSpec;
use acb_core::{ClientId, Epoch, Expected, Gpu, Held, Room};
use serde::{Deserialize, Serialize};

use crate::inventory::Device;
use crate::process::ProcessId;

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// No epoch at or above this was granted.
    pub epoch_limit: u64,
    /// No client at or above this was numbered.
    pub next_client: u64,
    /// Who was there.
    pub clients: Vec<Remembered>,
    /// Gangs of which members had gone.
    #[serde(default)]
    pub departed: Vec<Departed>,
}

/// A client's gang.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gang {
    /// Its name.
    pub name: String,
    /// How many clients it has.
    pub size: u32,
}

/// Members of a gang that had gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departed {
    /// The gang.
    pub gang: Gang,
    /// How many.
    pub left: u32,
}

/// A client of an earlier life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its number.
    pub client: u64,
    /// Its process.
    pub process: ProcessId,
    /// Its name, for messages.
    pub program: String,
    /// The GPUs it was bound to, in its order.
    pub bound: Vec<Place>,
    /// The lease that it held when the file was written; 0: none then.
    pub epoch: u64,
    /// It slept when it was waited for: its lease is over, and it may not know that.
    #[serde(default)]
    pub lapsed: bool,
    /// Manual-mode clients say nothing after a restart: for them the file is written with every
    /// grant, and what it says holds.
    pub manual: bool,
    /// Its gang, if it is in one.
    #[serde(default)]
    pub gang: Option<Gang>,
    /// Of a manual-mode client: its priority. Others say it when they are back.
    #[serde(default)]
    pub priority: i32,
    /// Of a manual-mode client: its tenant.
    #[serde(default)]
    pub tenant: String,
    /// Of a manual-mode client: its queue.
    #[serde(default)]
    pub queue: String,
    /// Of a manual-mode client: how many GPUs it wants. It is bound to none.
    #[serde(default)]
    pub gpus: u32,
    /// Of a manual-mode client: how much memory its phase has, if it has said so.
    #[serde(default)]
    pub memory_hint: Option<u64>,
}

/// A GPU that a client was bound to, with its memory there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// UUID.
    pub gpu: String,
    /// Bytes that cannot be moved.
    pub fixed: u64,
    /// Bytes of paged memory.
    pub claimed: u64,
    /// What of those was on the GPU or credited, or could be before this is written again. A restart finds less: what the
    /// clients say then counts.
    pub resident: u64,
}

/// A client of an earlier life whose process still runs.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// What the scheduler is told.
    pub expected: Expected,
    /// Its process.
    pub process: ProcessId,
    /// What else is known of it, if it is a manual-mode client.
    pub manual: Option<Manual>,
}

/// A manual-mode client, which says nothing of itself after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manual {
    /// Its name.
    pub program: String,
    /// Its priority.
    pub priority: i32,
    /// Its tenant.
    pub tenant: String,
    /// Its queue.
    pub queue: String,
    /// How many GPUs it wants.
    pub gpus: u32,
    /// How much memory its phase has on each.
    pub memory_hint: Option<u64>,
}

impl State {
    /// Reads the file. Without one, or with one that is no state, everything begins anew.
    pub fn read(path: &Path) -> State {
        let fresh = State { epoch_limit: 1, next_client: 1, ..State::default() };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("{} cannot be read ({error}); starting afresh", path.display());
                }
                return fresh;
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!("{} is no state ({error}); starting afresh", path.display());
            fresh
        })
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) {
        let text = serde_json::to_vec(self).expect("numbers and strings become JSON");
        if let Err(error) = crate::files::replace(path, &text) {
            tracing::warn!("{} cannot be written: {error}", path.display());
        }
    }

    /// The clients that are still there, as the scheduler expects them back.
    pub fn survivors(&self, gpus: &[Device]) -> Vec<Survivor> {
        let alive = self.clients.iter().filter(|client| client.process.is_alive());
        let survivor = |client: &Remembered| {
            Some(Survivor {
                expected: client.expected(gpus)?,
                process: client.process,
                manual: client.manual.then(|| Manual {
                    program: client.program.clone(),
                    priority: client.priority,
                    tenant: client.tenant.clone(),
                    queue: client.queue.clone(),
                    gpus: client.gpus,
                    memory_hint: client.memory_hint,
                }),
            })
        };
        alive.filter_map(survivor).collect()
    }

    /// Members of gangs that have gone: so many of each. Who has died since the file was written is one.
    pub fn departed(&self) -> Vec<(GangSpec, u32)> {
        let dead = self.clients.iter().filter(|client| !client.process.is_alive());
        let dead = dead.filter_map(|client| Some((client.gang.as_ref()?.spec(), 1)));
        self.departed.iter().map(|it| (it.gang.spec(), it.left)).chain(dead).collect()
    }
}

impl Gang {
    /// As the file says it.
    pub fn of(spec: &GangSpec) -> Gang {
        Gang { name: spec.name.0.to_string(), size: spec.size }
    }

    fn spec(&self) -> GangSpec {
        GangSpec { name: self.name.as_str().into(), size: self.size }
    }
}

impl Remembered {
    fn expected(&self, gpus: &[Device]) -> Option<Expected> {
        let place = |place: &Place| {
            let position = gpus.iter().position(|gpu| gpu.uuid == place.gpu)?;
            let Place { fixed, claimed, resident, .. } = *place;
            Some((Gpu(u32::try_from(position).ok()?), Room { fixed, claimed, resident }))
        };
        let bound: Option<Vec<_>> = self.bound.iter().map(place).collect();
        let Some(bound) = bound else {
            tracing::warn!(
                "{} (pid {}) is bound to a GPU that is gone",
                self.program,
                self.process.pid
            );
            return None;
        };
        // Epoch 0 is below every real one: "may hold something".
        let may_hold = if self.manual { self.epoch != 0 } else { !bound.is_empty() };
        let lease = (may_hold && !self.lapsed).then_some(Epoch(self.epoch));
        let gang = self.gang.as_ref().map(Gang::spec);
        Some(Expected { client: ClientId(self.client), held: Held { bound, lease }, gang })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(uuid: &str) -> Device {
        Device { index: 0, uuid: uuid.into(), name: "T".into(), memory: 1, numa_node: None }
    }

    fn remembered(client: u64, process: ProcessId, bound: &[&str]) -> Remembered {
        let place =
            |uuid: &&str| Place { gpu: (*uuid).to_owned(), fixed: 5, claimed: 9, resident: 7 };
        let bound = bound.iter().map(place).collect();
        let gang = Some(Gang { name: "g".into(), size: 4 });
        let (program, name) = ("p".to_owned(), String::new());
        let (tenant, queue) = (name.clone(), name);
        let (epoch, lapsed, manual, priority) = (0, false, false, 0);
        Remembered {
            client,
            process,
            program,
            bound,
            epoch,
            lapsed,
            manual,
            gang,
            priority,
            tenant,
            queue,
            gpus: 1,
            memory_hint: None,
        }
    }

    #[test]
    fn only_the_living_on_gpus_that_are_there_are_expected_back() {
        let own = ProcessId::own();
        let dead = ProcessId { start_time: own.start_time + 1, ..own };
        let state = State {
            epoch_limit: 9,
            next_client: 4,
            clients: vec![
                remembered(1, own, &["b", "a"]),
                remembered(2, dead, &["a"]),
                remembered(3, own, &["gone"]),
            ],
            departed: vec![Departed { gang: Gang { name: "g".into(), size: 4 }, left: 1 }],
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        state.write(&path);
        let read = State::read(&path);
        assert_eq!(read, state);
        let survivors = read.survivors(&[gpu("a"), gpu("b")]);
        assert_eq!(survivors.len(), 1);
        assert_eq!(survivors[0].expected.client, ClientId(1));
        let room = Room { fixed: 5, claimed: 9, resident: 7 };
        assert_eq!(survivors[0].expected.held.bound, [(Gpu(1), room), (Gpu(0), room)]);
        assert_eq!(survivors[0].expected.held.lease, Some(Epoch(0)));
        let gang = GangSpec { name: "g".into(), size: 4 };
        assert_eq!(survivors[0].expected.gang.as_ref(), Some(&gang));
        assert_eq!(read.departed(), [(gang.clone(), 1), (gang, 1)], "one before, and the dead one");
    }

    #[test]
    fn a_broken_file_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert_eq!(State::read(&path).epoch_limit, 1);
        fs::write(&path, "{\"epoch_limit\":").unwrap();
        assert_eq!(State::read(&path).epoch_limit, 1);
    }
}
