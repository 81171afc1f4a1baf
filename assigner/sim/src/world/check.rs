//! What must be true of the world, whatever the schedulers believe.
//!
//! Owns: exclusion, epochs, promises, liveness. Does not own: the invariants of a scheduler's own state
//! (`Scheduler::sanity_check`).

use std::time::Duration;

use acb_core::{Eligible, Epoch, Event, Time};

use super::client::Client;
use super::node::index;
use super::{Lease, World};
use crate::world::client::Life;

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

    /// A lease was granted: its epoch is new, and it is no later than promised.
    pub(super) fn check_grant(&mut self, node: usize, client: usize, epoch: Epoch, gpus: &[usize]) {
        self.check_guarantee(node, client);
        // A gang takes its leases before its members are told: others can be granted later ones meanwhile, elsewhere.
        let exclusive = self.scenario.nodes[node].config.policy.is_exclusive();
        let latest = match self.scenario.clients[client].gang {
            None => self.nodes[node].latest_epoch,
            Some(_) if exclusive => {
                gpus.iter().filter_map(|gpu| self.nodes[node].gpus[*gpu].granted).max()
            }
            Some(_) => None,
        };
        if latest.is_some_and(|latest| epoch <= latest) {
            self.violated(format!("{epoch} of {} is not new", self.name(client)));
        }
        let truth = &mut self.nodes[node];
        truth.latest_epoch = truth.latest_epoch.max(Some(epoch));
        for gpu in gpus {
            truth.gpus[*gpu].granted = truth.gpus[*gpu].granted.max(Some(epoch));
        }
        let wanted = self.scenario.clients[client].gpus as usize;
        if gpus.len() != wanted {
            self.violated(format!("{} wants {wanted} GPUs and got {gpus:?}", self.name(client)));
        }
        let scheduler = self.nodes[node].scheduler.as_ref();
        let promised = scheduler.and_then(|s| s.promised_start(super::node::number(client)));
        let Some(promised) = promised else { return };
        self.outcome.promises += 1;
        let late = self.now.since(promised);
        if self.now < self.nodes[node].excused {
            return; // it was promised of clients that behave
        }
        self.outcome.promise_late = self.outcome.promise_late.max(late);
        let beyond = late.saturating_sub(self.stopping(node));
        self.outcome.promise_beyond = self.outcome.promise_beyond.max(beyond);
    }

    /// How long it may take from a recall until the lease is back: a kernel and two messages.
    fn stopping(&self, node: usize) -> Duration {
        let message = &self.scenario.costs.message;
        // Of exponential delays one in e^25 is longer.
        let message = message.mean.mul_f64(1.0 + 25.0 * message.spread * message.spread.max(1.0));
        self.nodes[node].kernel + 2 * message
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
                if !self.clients[index].holds && self.clients[index].waits.is_none() {
                    let guaranteed = self.is_guaranteed(index);
                    self.clients[index].waits = Some((self.now, guaranteed));
                }
            }
            Event::Release { client, .. } => self.clients[index(*client)].holds = false,
            Event::Leave { client } | Event::Cancel { client } | Event::Join { client, .. } => {
                let client = &mut self.clients[index(*client)];
                (client.waits, client.holds) = (None, client.holds && client.lease.is_some());
            }
            _ => {}
        }
    }

    /// Whether all that a client's tenant wants now, this request included, is within its guarantee.
    fn is_guaranteed(&self, asking: usize) -> bool {
        let spec = &self.scenario.clients[asking];
        let tenants = &self.scenario.nodes[spec.node].config.tenants;
        let Some(tenant) = tenants.iter().find(|tenant| tenant.name == spec.tenant) else {
            return false;
        };
        let anywhere = !spec.bound && spec.eligible == Eligible::All && spec.gpus == 1;
        let wanted = |(at, client): (usize, &Client)| {
            let other = &self.scenario.clients[at];
            let counts = other.node == spec.node && other.tenant == spec.tenant;
            let wants = at == asking || client.holds || client.waits.is_some();
            if counts && wants { other.gpus } else { 0 }
        };
        anywhere && self.clients.iter().enumerate().map(wanted).sum::<u32>() <= tenant.guarantee
    }

    /// A request was granted: if it was guaranteed, how long that took.
    fn check_guarantee(&mut self, node: usize, client: usize) {
        self.clients[client].holds = true;
        let Some((since, true)) = self.clients[client].waits.take() else { return };
        if self.now < self.nodes[node].excused {
            return;
        }
        self.outcome.reclaims += 1;
        let beyond = self.now.since(since).saturating_sub(self.stopping(node));
        self.outcome.reclaim_beyond = self.outcome.reclaim_beyond.max(beyond);
    }

    /// A client begins to compute under a lease.
    pub(super) fn check_start(&mut self, node: usize, client: usize, lease: &Lease) {
        let config = &self.scenario.nodes[node].config;
        let mut wrong = Vec::new();
        for gpu in &lease.gpus {
            let truth = &self.nodes[node].gpus[gpu.0 as usize];
            if config.policy.is_exclusive()
                && let Some(other) = truth.running.first()
            {
                let (one, two) = (self.name(client), self.name(*other));
                wrong.push(format!("{one} and {two} compute on {gpu} at a time"));
            }
            if config.policy.is_exclusive() && truth.epoch > Some(lease.epoch) {
                let name = self.name(client);
                wrong
                    .push(format!("{name} computes on {gpu} under {}, which is over", lease.epoch));
            }
        }
        for wrong in wrong {
            self.violated(wrong);
        }
    }

    /// All should have been done by now.
    pub(super) fn overdue(&mut self, due: Duration) {
        let mut clients = self.clients.iter().zip(&self.scenario.clients);
        let late =
            clients.position(|(client, spec)| client.life != Life::Over && spec.arrival <= due);
        if let Some(client) = late {
            let name = self.name(client).to_owned();
            self.violated(format!("{name} is not done after {} s", due.as_secs_f64()));
        }
    }

    /// Nothing will happen any more.
    pub(super) fn stuck(&mut self) {
        let waiting = self.clients.iter().position(|client| client.life == Life::Here);
        if let Some(client) = waiting {
            let name = self.name(client).to_owned();
            self.violated(format!("nothing happens any more, but {name} is not done"));
        }
    }
}
