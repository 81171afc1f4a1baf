//! What must be true of the world, whatever the schedulers believe.
//!
//! Owns: exclusion and epochs (`grant`), conservation (`conserved`), that no GPU is idle while one is wanted (`idle`),
//! promises and guarantees (`due`, `guarantee`), fairness (`lag`), liveness (`live`), ends of turns (`turns`). Does not own:
//! the invariants of a scheduler's own state (`Scheduler::sanity_check`); gangs (`apart`); why leases are asked back (`recalls`).

mod conserved;
mod due;
mod grant;
mod guarantee;
mod idle;
mod lag;
mod live;
mod turns;

use std::time::Duration;

use acb_core::{Event, Gpu, Time};

pub(super) use self::due::Due;
pub(super) use self::grant::Passed;
pub use self::lag::Lag;
pub(super) use self::lag::{Shares, Use};
pub(super) use self::turns::{Starves, Turn};
use super::World;
use super::node::index;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When it was seen.
    pub at: Time,
    /// What is wrong.
    pub what: String,
}

impl World<'_, '_> {
    pub(super) fn violated(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.log(|_| format!("VIOLATION: {what}"));
        self.outcome.violations.push(Violation { at: self.now, what });
    }

    pub(super) fn name(&self, client: usize) -> &str {
        &self.scenario.clients[client].name
    }

    /// True if a client's leases are on GPUs that nobody else has meanwhile.
    pub(super) fn is_alone(&self, client: usize) -> bool {
        let spec = &self.scenario.clients[client];
        let config = &self.scenario.nodes[spec.node].config;
        let queue = config.queues.iter().find(|queue| queue.name == spec.queue);
        queue.and_then(|queue| queue.policy).unwrap_or(config.policy).is_exclusive()
    }

    /// The GPUs that a client is bound to; one that was let in with a lease after a restart, to those of it.
    fn bound_to(&self, client: usize) -> &[Gpu] {
        let client = &self.clients[client];
        if client.bound.is_empty() { &client.adopted } else { &client.bound }
    }

    /// Whether its tenant or its queue may not hold all GPUs that there are.
    fn is_limited(&self, client: usize) -> bool {
        let spec = &self.scenario.clients[client];
        let config = &self.scenario.nodes[spec.node].config;
        let tenants = config.tenants.iter().filter(|tenant| tenant.name == spec.tenant);
        let queues = config.queues.iter().filter(|queue| queue.name == spec.queue);
        tenants
            .filter_map(|tenant| tenant.limit)
            .chain(queues.filter_map(|it| it.max_gpus))
            .next()
            .is_some()
    }

    /// Something went wrong on a node that lasts so long: until its clients have been waited out, nothing was promised.
    pub(super) fn excuse(&mut self, node: usize, lasts: Duration) {
        let config = &self.scenario.nodes[node].config;
        let settle = self.scenario.costs.settle + self.scenario.costs.death;
        let until = self.now.after(lasts + settle + config.drain + 2 * config.quantum);
        self.nodes[node].excused = self.nodes[node].excused.max(until);
    }

    /// Follows what a scheduler is told of its clients.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Acquire { client, .. } => {
                let index = index(*client);
                self.note_use(index, Use::Asked);
                let client = &self.clients[index];
                if !client.refused && !client.holds && client.waits.is_none() {
                    let guaranteed = self.guaranteed(index);
                    self.clients[index].gave_way = false;
                    self.come_before(index);
                    self.clients[index].waits = Some((self.now, guaranteed));
                    self.clients[index].outrun = 0;
                }
            }
            Event::Ready { client, epoch } => {
                self.check_ready(index(*client));
                self.make_turn_ready(index(*client), *epoch);
            }
            Event::Release { client, .. } => {
                self.note_use(index(*client), Use::Ends);
                let client = &mut self.clients[index(*client)];
                (client.holds, client.leaves, client.due) = (false, false, None);
            }
            // What it brings along from before a restart is its own, as far as can be seen from here.
            Event::Join { client, spec } => {
                let lease = spec.held.as_ref().and_then(|held| Some((held.lease?, &held.bound)));
                if let Some((epoch, bound)) = lease {
                    let is_ready = bound.iter().all(|(_, room)| room.resident >= room.claimed);
                    let gpus = bound.iter().map(|(gpu, _)| *gpu).collect();
                    self.begin_turn(index(*client), epoch, gpus, is_ready);
                }
                let client = &mut self.clients[index(*client)];
                (client.waits, client.holds, client.leaves) = (None, lease.is_some(), false);
                (client.due, client.refused) = (None, false);
            }
            Event::Leave { client } | Event::Cancel { client } => {
                let client = &mut self.clients[index(*client)];
                (client.waits, client.holds) = (None, client.holds && client.lease.is_some());
                client.leaves &= client.holds;
                client.due = client.due.filter(|_| client.holds);
            }
            _ => {}
        }
    }
}
