//! What the broker shows: status, history, statistics, and what a restart needs.

use std::collections::BTreeMap;
use std::time::Duration;

use acb_core::{ClientId, ClientSnapshot, ClientState, Expected, Gpu, Room, Scheduler, Snapshot};
use acb_wire::v1;
use serde::{Deserialize, Serialize};

use super::members::epoch_ns;
use super::{Broker, Client, Port};
use crate::commands::Shown;
use crate::gangs::wire;
use crate::state::{Departed as DepartedMembers, Gang, Place, Remembered, State};

/// Sums over the clients that have left.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Departed {
    clients: u64,
    grants: u64,
    wait_ns: u64,
}

impl Departed {
    pub(super) fn add(&mut self, record: &v1::ClientRecord) {
        self.clients += 1;
        self.grants += record.grants;
        self.wait_ns += record.wait_ns;
    }
}

/// Statistics since this life of the worker began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// GPUs that are handed out.
    pub gpus: usize,
    /// Clients that are here or have been.
    pub clients: u64,
    /// Leases granted.
    pub grants: u64,
    /// Time that clients have waited for leases, all together, nanoseconds.
    pub wait_ns: u64,
    /// Each GPU.
    pub per_gpu: Vec<GpuTotals>,
}

/// Statistics of a GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuTotals {
    /// As NVML counts.
    pub index: u32,
    /// Its UUID.
    pub uuid: String,
    /// Leases granted on it.
    pub grants: u64,
    /// Time in which somebody held it.
    pub held_ns: u64,
    /// Time in which holders had work on it, as they reported.
    pub busy_ns: u64,
}

impl Totals {
    /// These and those of earlier lives of the worker together.
    pub fn after(mut self, before: &Totals) -> Totals {
        self.clients += before.clients;
        self.grants += before.grants;
        self.wait_ns += before.wait_ns;
        for gpu in &mut self.per_gpu {
            if let Some(before) = before.per_gpu.iter().find(|before| before.uuid == gpu.uuid) {
                gpu.grants += before.grants;
                gpu.held_ns += before.held_ns;
                gpu.busy_ns += before.busy_ns;
            }
        }
        self
    }
}

impl Broker {
    fn snapshot(&self) -> Option<Snapshot> {
        self.scheduler.as_ref().map(|scheduler| scheduler.snapshot_at(self.clock.now()))
    }

    /// GPUs and clients, for [`v1::NodeStatus`]; the rest of it is not the broker's.
    pub fn status(&self) -> Shown {
        let Some(snapshot) = self.snapshot() else { return Default::default() };
        let gpus = snapshot.gpus.iter().zip(&self.gpus).zip(&self.busy);
        let gpus = gpus.map(|((state, device), busy)| v1::GpuStatus {
            index: device.index,
            uuid: device.uuid.clone(),
            name: device.name.clone(),
            memory: device.memory,
            room: state.room,
            holders: state.holders.iter().map(|holder| holder.0).collect(),
            held_ns: ns(state.held),
            grants: state.grants,
            busy_ns: ns(*busy),
            claimed: state.total.claimed,
            switch_ns: ns(state.switching),
            headroom: state.headroom,
            headroom_taken: state.headroom_taken,
        });
        let clients = snapshot.clients.iter().filter_map(|state| {
            let member = self.clients.get(&state.client)?;
            Some(self.client_status(state, member, snapshot.at.since(state.since)))
        });
        let mut notes = Vec::new();
        let count = |awaited: bool| {
            let late = snapshot.expected.iter().filter(|it| it.held.lease.is_some() == awaited);
            late.filter(|it| !it.held.bound.is_empty()).count()
        };
        match count(true) {
            0 => {}
            count => notes
                .push(format!("recovering: waiting for {count} clients from before the restart")),
        }
        match count(false) {
            0 => {}
            count => notes.push(format!(
                "{count} clients from before the restart are not back (stopped?); their memory stays on the GPUs"
            )),
        }
        notes.extend(self.cautions.iter().cloned());
        notes.extend(self.taken_notes(&snapshot));
        notes.extend(self.missing_notes());
        let (gpus, clients) = (gpus.collect(), clients.collect());
        Shown { gpus, clients, gangs: self.gang_status(), notes }
    }

    fn gang_status(&self) -> Vec<v1::GangStatus> {
        let gangs = self.scheduler.as_ref().map(Scheduler::gangs).unwrap_or_default();
        let shown = gangs.into_iter().map(|gang| v1::GangStatus {
            gang: gang.name.0.to_string(),
            size: gang.size,
            members: gang.members.iter().map(|client| client.0).collect(),
            stage: wire::stage(gang.stage).into(),
            local: gang.is_local,
        });
        shown.collect()
    }

    fn client_status(
        &self,
        state: &ClientSnapshot,
        member: &Client,
        since: Duration,
    ) -> v1::ClientStatus {
        let room = |of: fn(&Room) -> u64| state.room.iter().map(|(_, room)| of(room)).sum();
        v1::ClientStatus {
            client: state.client.0,
            pid: member.pid(),
            program: member.program.clone(),
            step: member.step.clone(),
            rank: member.rank,
            state: match state.state {
                ClientState::Idle => v1::ClientState::Idle,
                ClientState::Waiting => v1::ClientState::Waiting,
                ClientState::Holding => v1::ClientState::Holding,
                ClientState::Recalled => v1::ClientState::Recalled,
                ClientState::WaitingForRoom => v1::ClientState::WaitingForRoom,
            }
            .into(),
            gpus: state.gpus.iter().map(|gpu| self.gpu(*gpu).index).collect(),
            epoch: state.epoch.map_or(0, |epoch| epoch.0),
            room: room(|room| room.fixed + room.resident),
            claimed: room(|room| room.claimed),
            resident: room(|room| room.resident),
            memory_limit: member.memory_limit.unwrap_or(0),
            memory: member.memory.values().cloned().collect(),
            grants: state.grants,
            state_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            wait_ns: ns(state.waited),
            held_ns: ns(state.held),
            queue_position: state.position.map_or(0, |at| u32::try_from(at).unwrap_or(u32::MAX)),
            manual: matches!(member.port, Port::Manual(_)),
            priority: member.priority.number(),
            tenant: member.tenant.clone(),
            queue: member.queue.clone(),
            ..v1::ClientStatus::default()
        }
    }

    /// What the clients of a step asked for and got; an empty step means all.
    pub fn history(&self, step: &str) -> Vec<v1::ClientRecord> {
        let present = self.clients.keys().filter_map(|client| self.record(*client));
        let wanted = |record: &v1::ClientRecord| step.is_empty() || record.step == step;
        self.history.iter().cloned().chain(present).filter(wanted).collect()
    }

    /// One client's account until now.
    pub(super) fn record(&self, client: ClientId) -> Option<v1::ClientRecord> {
        let member = self.clients.get(&client)?;
        let snapshot = self.snapshot();
        let state = snapshot.as_ref().and_then(|snapshot| {
            let at = snapshot.clients.binary_search_by_key(&client, |state| state.client).ok()?;
            snapshot.clients.get(at)
        });
        Some(v1::ClientRecord {
            client: client.0,
            pid: member.pid(),
            program: member.program.clone(),
            step: member.step.clone(),
            rank: member.rank,
            gpus_wanted: member.gpus_wanted,
            gpus: member.given.iter().map(|gpu| self.gpu(*gpu).uuid.clone()).collect(),
            joined_ns: epoch_ns(member.joined),
            first_request_ns: member.first_request.map_or(0, epoch_ns),
            first_grant_ns: member.first_grant.map_or(0, epoch_ns),
            left_ns: 0,
            grants: state.map_or(0, |state| state.grants),
            wait_ns: state.map_or(0, |state| ns(state.waited)),
            held_ns: state.map_or(0, |state| ns(state.held)),
            manual: matches!(member.port, Port::Manual(_)),
        })
    }

    /// Statistics of this life.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            gpus: self.gpus.len(),
            clients: self.departed.clients + self.clients.len() as u64,
            grants: self.departed.grants,
            wait_ns: self.departed.wait_ns,
            per_gpu: Vec::new(),
        };
        let Some(snapshot) = self.snapshot() else { return totals };
        for state in &snapshot.clients {
            totals.grants += state.grants;
            totals.wait_ns += ns(state.waited);
        }
        let gpus = snapshot.gpus.iter().zip(&self.gpus).zip(&self.busy);
        totals.per_gpu = gpus
            .map(|((state, device), busy)| GpuTotals {
                index: device.index,
                uuid: device.uuid.clone(),
                grants: state.grants,
                held_ns: ns(state.held),
                busy_ns: ns(*busy),
            })
            .collect();
        totals
    }

    /// Writes down what the next life must know.
    pub(super) fn save(&mut self) {
        self.dirty = false;
        let Some(snapshot) = self.snapshot() else { return };
        let states: BTreeMap<ClientId, &ClientSnapshot> =
            snapshot.clients.iter().map(|state| (state.client, state)).collect();
        let mut written = BTreeMap::new();
        let remembered = self.clients.iter().filter_map(|(client, member)| {
            let state = states.get(client)?;
            let bound = state.expected_back().held.bound;
            written.extend(bound.iter().map(|(gpu, room)| ((*client, *gpu), *room)));
            let place = |(gpu, room): &(Gpu, Room)| Place {
                gpu: self.gpu(*gpu).uuid.clone(),
                fixed: room.fixed,
                claimed: room.claimed,
                resident: room.resident,
            };
            Some(Remembered {
                client: client.0,
                process: member.process?,
                program: member.program.clone(),
                bound: bound.iter().map(place).collect(),
                epoch: state.epoch.map_or(0, |epoch| epoch.0),
                lapsed: false,
                manual: matches!(member.port, Port::Manual(_)),
                gang: state.gang.as_ref().map(Gang::of),
                priority: member.priority.number(),
                tenant: member.tenant.clone(),
                queue: member.queue.clone(),
                gpus: member.gpus_wanted,
                memory_hint: member.memory_hint,
            })
        });
        let state = State {
            epoch_limit: snapshot.epoch_limit(),
            next_client: self.next_client,
            clients: remembered.chain(self.not_yet_back(&snapshot.expected)).collect(),
            departed: snapshot
                .departed
                .iter()
                .map(|(spec, left)| DepartedMembers { gang: Gang::of(spec), left: *left })
                .collect(),
        };
        state.write(&self.settings.folder.state());
        self.written = written;
    }

    /// Clients of an earlier life outlive a second restart too.
    fn not_yet_back(&self, expected: &[Expected]) -> Vec<Remembered> {
        let of = |it: &Remembered| expected.iter().find(|other| other.client.0 == it.client);
        let earlier = self.earlier.iter();
        let earlier = earlier.filter(|it| self.expected.contains_key(&ClientId(it.client)));
        let now = |it: &Remembered| {
            let lapsed = of(it).is_some_and(|expected| expected.held.lease.is_none());
            Remembered { lapsed, ..it.clone() }
        };
        earlier.map(now).collect()
    }

    /// Called once a second: writes what has changed since.
    pub fn save_if_changed(&mut self) {
        // Who has not come back in time is forgotten by the scheduler too.
        if let Some(snapshot) = self.snapshot() {
            let awaited: Vec<ClientId> = snapshot.expected.iter().map(|it| it.client).collect();
            self.expected.retain(|client, _| awaited.contains(client));
        }
        if self.dirty {
            self.save();
        }
    }
}

fn ns(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
