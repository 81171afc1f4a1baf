//! What an assigner has written down when it dies: what the daemon's `state.json` would say.
//!
//! It is written when a client comes, is bound, or goes, when one that nothing binds is granted or gives back, before one has
//! more memory than it says, and once a second for the rest. So leases and what has left the GPUs are as old as that.

use std::collections::BTreeMap;

use acb_core::gang::GangSpec;
use acb_core::{ClientId, ClientSnapshot, Epoch, Event, Expected, Gpu, Held, Room, Snapshot, Time};

use super::World;
use super::node::{Node, index};
use crate::scenario::FaultKind;

/// What is on disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Written {
    /// No epoch from this one on was granted.
    pub(super) epoch_limit: u64,
    /// Who was there.
    pub(super) clients: Vec<Expected>,
    /// Members of gangs that had gone.
    pub(super) departed: Vec<(GangSpec, u32)>,
}

/// What an assigner knows of what it has written down.
#[derive(Clone, Debug, Default)]
pub(super) struct Writer {
    pub(super) written: Written,
    /// Since when that is not all.
    changed: Option<Time>,
    /// Clients of the earlier life, as they were written down then.
    earlier: Vec<Expected>,
    /// This cannot wait for the next second.
    is_urgent: bool,
    /// Who held a lease when the assigner died, as it and the client saw it.
    holders: BTreeMap<ClientId, Epoch>,
    /// Until when the next life waits for them.
    settles: Time,
    /// It did so when its scheduler was last asked.
    waits: bool,
}

impl World<'_, '_> {
    /// Nobody reads what an assigner writes that is never restarted.
    pub(super) fn writes(&self, node: usize) -> bool {
        let mut faults = self.scenario.faults.iter();
        faults.any(|fault| matches!(fault.what, FaultKind::Restart(at, _) if at == node))
    }

    /// Time has gone on: the second in which something had changed may be over.
    pub(super) fn write_in_time(&mut self, node: usize) {
        let second = |time: Time| time.0 / 1_000_000_000;
        let now = second(self.now);
        if self.nodes[node].writer.changed.is_some_and(|changed| second(changed) < now) {
            self.write(node);
        }
    }

    /// Before an assigner says this to a client that is bound by nothing, or lets it know where it is bound, it is written.
    pub(super) fn write_before_telling(&mut self, node: usize) {
        self.nodes[node].writer.is_urgent = true;
    }

    /// A client is told of more memory.
    pub(super) fn write_before_memory(&mut self, node: usize, client: ClientId) {
        let node = &mut self.nodes[node];
        let Some(scheduler) = &node.scheduler else { return };
        let known = node.writer.written.clients.iter().find(|it| it.client == client);
        let known = known.map_or(&[][..], |known| &known.held.bound);
        let covers = |gpu: Gpu| {
            let written = known.iter().find(|(on, _)| *on == gpu);
            written.map_or(Room::default(), |it| it.1).covers(scheduler.room(client, gpu))
        };
        let gpus = (0..).map(Gpu).take(node.gpus.len());
        if !gpus.into_iter().all(covers) {
            node.writer.is_urgent = true;
        }
    }

    /// An assigner has handled an event.
    pub(super) fn write_after(&mut self, node: usize, event: &Event) {
        if !self.writes(node) {
            return;
        }
        let state = &mut self.nodes[node];
        let waits = state.scheduler.as_ref().is_some_and(acb_core::Scheduler::is_settling);
        let is_settled = std::mem::replace(&mut state.writer.waits, waits) && !waits;
        let is_urgent = std::mem::take(&mut state.writer.is_urgent) || is_settled;
        let matters = match event {
            Event::Join { .. } | Event::Leave { .. } => true,
            Event::Release { client, .. } => !self.scenario.clients[index(*client)].bound,
            _ => false,
        };
        if is_urgent || matters {
            self.write(node);
        } else {
            let changed = &mut self.nodes[node].writer.changed;
            *changed = changed.or(Some(self.now));
        }
    }

    /// An assigner is going to die: whose leases must outlive it.
    pub(super) fn note_holders(&mut self, node: usize) {
        let Some(scheduler) = &self.nodes[node].scheduler else { return };
        let holds = |client: &ClientSnapshot| {
            let truth = self.clients[index(client.client)].lease.as_ref()?;
            (client.epoch == Some(truth.epoch)).then_some((client.client, truth.epoch))
        };
        let holders = scheduler.snapshot().clients.iter().filter_map(holds).collect();
        self.nodes[node].writer.holders = holders;
    }

    /// Who comes back in time with the lease that it had has it still.
    pub(super) fn check_kept(&mut self, node: usize, event: &Event) {
        let Event::Join { client, spec } = event else { return };
        let Node { writer, scheduler: Some(scheduler), .. } = &self.nodes[node] else { return };
        let had = writer.holders.get(client).copied();
        let says = spec.held.as_ref().and_then(|held| held.lease);
        if had.is_none() || had != says || self.now >= writer.settles {
            return;
        }
        let clients = scheduler.snapshot().clients;
        if !clients.iter().any(|it| it.client == *client && it.epoch == had) {
            let name = self.name(index(*client)).to_owned();
            self.violated(format!("{name} has lost its lease by a restart"));
        }
    }

    /// An assigner begins with what an earlier one had written down.
    pub(super) fn write_first(&mut self, node: usize) {
        self.nodes[node].writer.settles = self.now.after(self.scenario.costs.settle);
        let writer = &mut self.nodes[node].writer;
        writer.earlier = writer.written.clients.clone();
        writer.waits = true;
        self.write(node);
    }

    fn write(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        state.writer.changed = None;
        let Some(snapshot) = state.scheduler.as_ref().map(acb_core::Scheduler::snapshot) else {
            return;
        };
        let writer = &mut state.writer;
        writer.written = Written::of(&snapshot, writer);
    }
}

impl Written {
    fn of(snapshot: &Snapshot, writer: &Writer) -> Written {
        let earlier = writer.earlier.iter().filter_map(|it| {
            let awaited = snapshot.expected.iter().find(|other| other.client == it.client)?;
            let lease = it.held.lease.filter(|_| awaited.held.lease.is_some());
            Some(Expected { held: Held { lease, ..it.held.clone() }, ..it.clone() })
        });
        let here = snapshot.clients.iter().map(ClientSnapshot::expected_back);
        Written {
            epoch_limit: snapshot.epoch_limit(),
            clients: here.chain(earlier).collect(),
            departed: snapshot.departed.clone(),
        }
    }
}
