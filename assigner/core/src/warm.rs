//! Fetching ahead: what an event is going to look at is asked of memory all at once.
//!
//! At a thousand nodes a node's records are in no cache when something happens there, and each is found by what another one
//! says: a plan would wait for a hundred lines of memory, one after the other. So they are read here before they are needed,
//! as soon as it is known where they are: first what the scheduler itself leads to, then what that leads to, and so on. Reads
//! that do not depend on each other are under way together, and what they yield is not used.
//!
//! Nothing here decides anything: a record that is left out costs time, and one too many nearly none.

use std::hint::black_box;

use crate::event::Event;
use crate::gpu_set::GpuSet;
use crate::ids::{ClientId, Gpu};
use crate::scheduler::{Client, Lease, Scheduler};

/// So many records at most are followed in each direction.
const MOST: usize = 16;

impl Scheduler {
    /// Reads what every event leads to, and the records of the client that it is about.
    pub(crate) fn warm_event(&self, event: &Event) {
        let mut seen = self.config.warm() ^ self.memory.warm();
        seen ^= self.clients.warm_index() ^ self.queue.warm_index();
        for gpu in &self.gpus {
            seen ^= gpu.holders.len() as u64;
        }
        seen ^= self.queue.some().take(MOST).fold(0, |seen, waiter| seen ^ waiter.client.0);
        seen ^= self.timers.first().map_or(0, |(at, ..)| at.0);
        seen ^= self.askers.first().map_or(0, |(at, _)| at.0);
        seen ^= self.tenants.warm() ^ self.queues.warm();
        let due = self.timers.first().filter(|(at, ..)| *at <= self.now).map(|(.., id)| *id);
        if let Some(due) = due.and_then(|id| self.clients.get(&id)) {
            seen ^= due.lease.as_deref().map_or(0, Lease::warm);
        }
        if let Some(client) = event.client().and_then(|id| self.clients.get(&id)) {
            seen ^= client.warm() ^ client.grants ^ client.memory_limit.unwrap_or(0);
            seen ^= client.lease.as_deref().map_or(0, Lease::warm);
            for gpu in client.bound.iter().chain(&client.last) {
                let gpu = &self.gpus[gpu.index()];
                seen ^= gpu.waiting.len() as u64 ^ gpu.grants;
            }
        }
        black_box(seen);
    }

    /// Reads what a plan of these GPUs leads to.
    pub(crate) fn warm_plan(&self, island: &GpuSet) {
        let mut seen = self.warm_holders(island.iter()) ^ self.warm_waiters();
        let lines = island.iter().map(|gpu| &self.gpus[gpu.index()].line).chain([&self.floating]);
        for line in lines.clone() {
            seen ^= line.warm_lanes();
        }
        for line in lines {
            seen ^= line.warm_places();
        }
        black_box(seen);
    }

    /// Reads who holds GPUs, and the leases.
    pub(crate) fn warm_holders(&self, gpus: impl Iterator<Item = Gpu>) -> u64 {
        let holders = gpus.flat_map(|gpu| &self.gpus[gpu.index()].holders);
        let mut records = [None; MOST];
        for (place, id) in records.iter_mut().zip(holders) {
            *place = self.clients.get(id);
        }
        // Each of these reads waits for the record.
        let leases = records.iter().flatten().filter_map(|client| client.lease.as_deref());
        leases.fold(0, |seen, lease| seen ^ lease.warm())
    }

    /// Reads some of those who wait.
    fn warm_waiters(&self) -> u64 {
        let waiters = self.queue.some().take(MOST);
        let records = waiters.filter_map(|waiter| self.clients.get(&waiter.client));
        records.fold(0, |seen, client| seen ^ client.warm())
    }
}

impl Event {
    /// Whom it is about, if it is one of those that come often.
    fn client(&self) -> Option<ClientId> {
        match self {
            Event::Acquire { client, .. }
            | Event::Cancel { client }
            | Event::Release { client, .. }
            | Event::Ready { client, .. } => Some(*client),
            _ => None,
        }
    }
}

impl Client {
    /// Reads what a plan looks at.
    fn warm(&self) -> u64 {
        u64::from(self.width) ^ self.bound.len() as u64
    }
}

impl Lease {
    /// Reads what a plan looks at.
    fn warm(&self) -> u64 {
        u64::from(self.wanted) ^ self.granted.0
    }
}
