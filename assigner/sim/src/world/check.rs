//! What must be true of the world, whatever the schedulers believe.
//!
//! Owns: exclusion, epochs, promises, liveness. Does not own: the invariants of a scheduler's own state
//! (`Scheduler::sanity_check`).

use acb_core::{Epoch, Time};

use super::Lease;
use super::World;
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

    fn name(&self, client: usize) -> &str {
        &self.scenario.clients[client].name
    }

    /// A lease was granted: its epoch is new, and it is no later than promised.
    pub(super) fn check_grant(&mut self, node: usize, client: usize, epoch: Epoch, gpus: &[usize]) {
        let latest = self.nodes[node].latest_epoch.replace(epoch);
        if latest.is_some_and(|latest| epoch <= latest) {
            self.violated(format!("{epoch} of {} is not new", self.name(client)));
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
        self.outcome.promise_late = self.outcome.promise_late.max(late);
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

    /// Nothing will happen any more.
    pub(super) fn stuck(&mut self) {
        let waiting = self.clients.iter().position(|client| client.life == Life::Here);
        if let Some(client) = waiting {
            let name = self.name(client).to_owned();
            self.violated(format!("nothing happens any more, but {name} is not done"));
        }
    }
}
