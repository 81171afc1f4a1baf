//! The invariants, checked after every event in tests.
//!
//! Owns: what must be true of any state. Does not own: what must be true of a history (bounded
//! bypass, liveness, epochs that grow); the tests follow that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::event::Eligible;
use crate::ids::{ClientId, Epoch, Gpu};
use crate::rooms::RoomFault;
use crate::scheduler::Scheduler;

/// What is wrong with the state; each is a fault in the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SanityError {
    /// Two leases on a GPU that allows one, or one beside a claim from before a restart.
    #[error("{0} is held twice")]
    HeldTwice(Gpu),
    /// The holders that a GPU knows are not those with a lease on it.
    #[error("the holders of {0} are not those with a lease on it")]
    Holders(Gpu),
    /// The claims from before a restart are not those of the clients that are expected back.
    #[error("the claims on {0} are not those of the clients that are expected back")]
    Claims(Gpu),
    /// A lease with an epoch that is still to come, or that another lease has, too.
    #[error("{0} of {1} is not its own")]
    Epoch(Epoch, ClientId),
    /// A lease on other GPUs than the client may use.
    #[error("{0} has a lease on GPUs that are not its own")]
    Outside(ClientId),
    /// A client that both holds and waits, or an index of the queue that is wrong.
    #[error("{0} is not where the queue says")]
    Queue(ClientId),
    /// A client waits although it could start.
    #[error("{0} waits although its GPUs are free and kept for nobody else")]
    Idle(ClientId),
    /// A client waits first in line, but holders in its way have not been told.
    #[error("{0} waits, but the holder of {1} has not been told")]
    Untold(ClientId, Gpu),
    /// A recall is overdue, or its timer is missing.
    #[error("the recall of {0} is overdue or has no timer")]
    Timer(ClientId),
    /// A client is passed more often than allowed.
    #[error("{0} has been passed too often")]
    Bypassed(ClientId),
    /// The clients bound to a GPU, or their load, are not what the GPU knows.
    #[error("the clients bound to {0} are not those that it knows")]
    Bound(Gpu),
    /// The ledger of room is wrong.
    #[error("room on {0}: {1}")]
    Room(Gpu, RoomFault),
}

impl Scheduler {
    /// Checks every invariant of the state; for tests, as it looks at everything.
    pub fn sanity_check(&self) -> Result<(), SanityError> {
        self.check_leases()?;
        self.check_gpus()?;
        self.check_queue()?;
        self.check_waiting()?;
        match self.rooms.fault() {
            Some((gpu, fault)) => Err(SanityError::Room(gpu, fault)),
            None => Ok(()),
        }
    }

    fn check_leases(&self) -> Result<(), SanityError> {
        let mut epochs = BTreeSet::new();
        let mut timers = BTreeSet::new();
        for (id, client) in &self.clients {
            let Some(lease) = &client.lease else { continue };
            if lease.epoch >= self.next_epoch || !epochs.insert(lease.epoch) {
                return Err(SanityError::Epoch(lease.epoch, *id));
            }
            let eligible = match &client.eligible {
                _ if !client.bound.is_empty() => lease.gpus == client.bound,
                Eligible::All => true,
                Eligible::Only(gpus) => lease.gpus.iter().all(|gpu| gpus.contains(gpu)),
            };
            if !eligible || lease.gpus.len() != client.width as usize {
                return Err(SanityError::Outside(*id));
            }
            let drains = lease.recalled.is_some() && !lease.stuck;
            if lease.timer.is_some_and(|at| at <= self.now) || drains && lease.timer.is_none() {
                return Err(SanityError::Timer(*id));
            }
            timers.extend(lease.timer.map(|at| (at, lease.epoch, *id)));
        }
        if let Some((.., id)) = timers.symmetric_difference(&self.timers).next() {
            return Err(SanityError::Timer(*id));
        }
        Ok(())
    }

    fn check_gpus(&self) -> Result<(), SanityError> {
        let mut holders: BTreeMap<Gpu, BTreeSet<ClientId>> = BTreeMap::new();
        let mut bound: BTreeMap<Gpu, BTreeSet<ClientId>> = BTreeMap::new();
        let mut loads: BTreeMap<Gpu, Duration> = BTreeMap::new();
        for (id, client) in &self.clients {
            for gpu in client.lease.iter().flat_map(|lease| &lease.gpus) {
                holders.entry(*gpu).or_default().insert(*id);
            }
            for gpu in &client.bound {
                bound.entry(*gpu).or_default().insert(*id);
                *loads.entry(*gpu).or_default() += client.held;
            }
        }
        let mut claimed: BTreeMap<Gpu, BTreeSet<ClientId>> = BTreeMap::new();
        for (id, held) in &self.expected {
            for (gpu, _) in &held.bound {
                bound.entry(*gpu).or_default().insert(*id);
                claimed.entry(*gpu).or_default().extend(held.lease.map(|_| *id));
            }
        }
        for (gpu, state) in (0..).map(Gpu).zip(&self.gpus) {
            if state.claimed != claimed.remove(&gpu).unwrap_or_default() {
                return Err(SanityError::Claims(gpu));
            }
            let claims = state.claimed.len();
            if self.config.policy.is_exclusive()
                && (state.holders.len() > 1 || !state.holders.is_empty() && claims > 0)
            {
                return Err(SanityError::HeldTwice(gpu));
            }
            let known: BTreeSet<ClientId> = state.holders.iter().copied().collect();
            let is_busy = state.busy_since.is_some();
            if known != holders.remove(&gpu).unwrap_or_default() || known.is_empty() == is_busy {
                return Err(SanityError::Holders(gpu));
            }
            if state.bound != bound.remove(&gpu).unwrap_or_default()
                || state.load != loads.remove(&gpu).unwrap_or_default()
            {
                return Err(SanityError::Bound(gpu));
            }
        }
        Ok(())
    }

    fn check_queue(&self) -> Result<(), SanityError> {
        for (ticket, waiter) in &self.queue {
            let id = waiter.client;
            let client = self.clients.get(&id).ok_or(SanityError::Queue(id))?;
            let floats = client.bound.is_empty();
            let indexed =
                client.bound.iter().all(|gpu| self.gpus[gpu.index()].waiting.contains(ticket));
            if client.waiting != Some(*ticket)
                || client.lease.is_some()
                || floats != self.floating.contains(ticket)
                || !indexed
            {
                return Err(SanityError::Queue(id));
            }
            if waiter.bypassed > self.config.max_bypass {
                return Err(SanityError::Bypassed(id));
            }
        }
        let waiting = self.clients.iter().filter(|(_, client)| client.waiting.is_some());
        let indexed = self.gpus.iter().map(|state| state.waiting.len()).sum::<usize>();
        let wide = |waiting: &crate::scheduler::Waiter| self.clients[&waiting.client].bound.len();
        if waiting.count() != self.queue.len()
            || indexed != self.queue.values().map(wide).sum::<usize>()
        {
            return Err(SanityError::Queue(ClientId(0)));
        }
        Ok(())
    }

    /// Work conservation, and that whoever is in the way knows.
    fn check_waiting(&self) -> Result<(), SanityError> {
        let mut ahead: BTreeSet<Gpu> = BTreeSet::new();
        for (ticket, waiter) in &self.queue {
            let client = &self.clients[&waiter.client];
            if !client.let_go {
                continue;
            }
            let idle = |gpu: &Gpu| {
                let kept = self.gpus[gpu.index()].reserved;
                self.is_free(*gpu) && kept.is_none_or(|kept| kept == *ticket)
            };
            let candidates: Vec<Gpu> = self.candidates(client).collect();
            let idle = candidates.iter().filter(|gpu| idle(gpu)).count();
            if idle >= client.width as usize {
                return Err(SanityError::Idle(waiter.client));
            }
            let first_in_line = candidates.iter().all(|gpu| !ahead.contains(gpu));
            ahead.extend(&candidates);
            let mut kept =
                (0..).map(Gpu).zip(&self.gpus).filter(|(_, state)| state.reserved == Some(*ticket));
            let stuck = candidates.iter().any(|gpu| self.is_stuck(*gpu));
            if first_in_line && !stuck && kept.clone().count() != client.width as usize {
                return Err(SanityError::Queue(waiter.client));
            }
            let told = |holder: &ClientId| {
                self.clients[holder]
                    .lease
                    .as_ref()
                    .is_some_and(|lease| lease.wanted && (lease.timer.is_some() || lease.stuck))
            };
            if let Some((gpu, _)) = kept.find(|(_, state)| !state.holders.iter().all(told)) {
                return Err(SanityError::Untold(waiter.client, gpu));
            }
        }
        Ok(())
    }
}
