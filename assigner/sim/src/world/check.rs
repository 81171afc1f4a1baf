//! What must be true of the world, whatever the schedulers believe.
//!
//! Owns: exclusion, epochs, promises, liveness, and why leases are asked back. Does not own: the invariants of a
//! scheduler's own state (`Scheduler::sanity_check`); gangs (`apart`); that nobody takes GPUs back and forth, which shows
//! only where clients do nothing but quarrel (the properties of `acb-core`).

use std::time::Duration;

use acb_core::{Cause, Eligible, Epoch, Event, Priority, Time};

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
            Event::Release { client, .. } => {
                let client = &mut self.clients[index(*client)];
                (client.holds, client.leaves) = (false, false);
            }
            // What it brings along from before a restart is its own, as far as can be seen from here.
            Event::Join { client, spec } => {
                let holds = spec.held.as_ref().is_some_and(|held| held.lease.is_some());
                let client = &mut self.clients[index(*client)];
                (client.waits, client.holds, client.leaves) = (None, holds, false);
            }
            Event::Leave { client } | Event::Cancel { client } => {
                let client = &mut self.clients[index(*client)];
                (client.waits, client.holds) = (None, client.holds && client.lease.is_some());
                client.leaves &= client.holds;
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
        (self.clients[client].holds, self.clients[client].leaves) = (true, false);
        let Some((since, true)) = self.clients[client].waits.take() else { return };
        if self.now < self.nodes[node].excused {
            return;
        }
        self.outcome.reclaims += 1;
        let beyond = self.now.since(since).saturating_sub(self.stopping(node));
        self.outcome.reclaim_beyond = self.outcome.reclaim_beyond.max(beyond);
    }

    /// A lease is asked back. For a guarantee that is done only to a tenant that holds more than its own, so that what is
    /// borrowed gets less with every such recall; for a priority only while somebody of a higher level waits.
    pub(super) fn check_recall(&mut self, node: usize, victim: usize) {
        // What a gang has taken without telling its members cannot be seen from here.
        if self.watch.check && self.gangs.members.is_empty() {
            let number = super::node::number(victim);
            let snapshot =
                self.nodes[node].scheduler.as_ref().map(|scheduler| scheduler.snapshot());
            let clients = snapshot.map(|snapshot| snapshot.clients).unwrap_or_default();
            let cause =
                clients.iter().find(|it| it.client == number).and_then(|it| it.recalled_for);
            let waits = |other: &usize| {
                let number = super::node::number(*other);
                clients.iter().any(|it| it.client == number && it.position.is_some())
            };
            let all = 0..self.clients.len();
            let waiting: Vec<usize> = all.filter(waits).collect();
            let name = || self.name(victim).to_owned();
            let wrong = match cause {
                Some(Cause::Quota) if self.borrowed(node, victim) <= 0 => {
                    Some(format!("{} is recalled within its tenant's guarantee", name()))
                }
                Some(Cause::Priority)
                    if !waiting.iter().any(|it| self.level(*it) > self.level(victim)) =>
                {
                    Some(format!("{} is recalled, but nobody of a higher level waits", name()))
                }
                _ => None,
            };
            if let Some(wrong) = wrong {
                self.violated(wrong);
            }
        }
        self.clients[victim].leaves = true;
    }

    /// GPUs that a client's tenant holds beyond its guarantee, without those that it has been asked for.
    fn borrowed(&self, node: usize, client: usize) -> i64 {
        let spec = &self.scenario.clients[client];
        let clients = self.clients.iter().zip(&self.scenario.clients);
        let held = clients.filter(|(client, other)| {
            client.holds && !client.leaves && other.node == node && other.tenant == spec.tenant
        });
        let held: i64 = held.map(|(_, other)| i64::from(other.gpus)).sum();
        let tenants = &self.scenario.nodes[node].config.tenants;
        let tenant = tenants.iter().find(|tenant| tenant.name == spec.tenant);
        held - tenant.map_or(0, |tenant| i64::from(tenant.guarantee))
    }

    /// How urgent a client is: the priority of its queue, then its own.
    fn level(&self, client: usize) -> (Priority, Priority) {
        let spec = &self.scenario.clients[client];
        let queues = &self.scenario.nodes[spec.node].config.queues;
        let queue = queues.iter().find(|queue| queue.name == spec.queue);
        (queue.map_or(Priority::default(), |queue| queue.priority), spec.priority)
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
