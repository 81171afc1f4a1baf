//! Who starts next: one pass over the queue, in order of arrival.
//!
//! ```text
//!  for every waiting client, first come, first:
//!      enough GPUs free that nobody waits for ──────────────────► grant
//!      … or kept for earlier ones, and it is done in time ──────► grant (backfill), to be given back
//!      else, if enough of its GPUs are not kept for earlier ones ► keep the soonest ones for it:
//!                                                                  a reservation; who holds them is
//!                                                                  told, and recalled in time
//! ```
//!
//! Guarantees, however wrong the estimates are: a client that is first in line on all GPUs it could
//! use starts when the last holder in its way gives back, and that holder is recalled no later than
//! promised when the reservation was made. Who needs no GPU that is kept is never held up.
//!
//! Only the part of the queue is looked at that the changed GPUs can concern: the *island* of GPUs
//! connected by clients that wait for several of them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::config::{Backfill, Policy};
use crate::event::{Action, Eligible};
use crate::ids::{ClientId, Epoch, Gpu, Time};
use crate::scheduler::{Lease, Reservation, Scheduler, Ticket, Waiter};

/// Part of the node that is planned on its own.
struct Island {
    gpus: BTreeSet<Gpu>,
    tickets: Vec<Ticket>,
}

/// What the clients ahead in the queue wait for.
#[derive(Default)]
struct Ahead {
    gpus: BTreeSet<Gpu>,
    everything: bool,
}

/// GPUs that a client can start on now.
struct Start {
    gpus: Vec<Gpu>,
    /// The earlier clients that it passes.
    passes: BTreeSet<Ticket>,
}

impl Lease {
    pub(crate) fn new(epoch: Epoch, gpus: Vec<Gpu>, granted: Time) -> Lease {
        Lease {
            epoch,
            gpus,
            granted,
            ends: None,
            yields: None,
            promised: None,
            wanted: false,
            recalled: None,
            stuck: false,
            timer: None,
        }
    }

    /// When it is recalled if somebody waits for it.
    pub(crate) fn latest_recall(&self, quantum: Duration) -> Time {
        let end = self.granted.after(quantum);
        self.yields.map_or(end, |yields| yields.min(end))
    }
}

impl Scheduler {
    /// Grants what can be granted where something has changed, and keeps GPUs for who must wait.
    pub(crate) fn plan(&mut self) {
        let Some(island) = self.changed_island() else { return };
        for gpu in &island.gpus {
            self.gpus[gpu.index()].reserved = None;
        }
        // GPUs on which a later client could still start, or that could be kept for it.
        let mut open = island.gpus.iter().filter(|gpu| !self.is_stuck(**gpu)).count();
        let mut ahead = Ahead::default();
        for ticket in island.tickets {
            if open == 0 {
                break;
            }
            if !self.clients[&self.queue[&ticket].client].let_go {
                continue;
            }
            if let Some(start) = self.start(&self.queue[&ticket]) {
                self.grant(ticket, &start);
                let kept = |gpu: &&Gpu| self.gpus[gpu.index()].reserved.is_some();
                open -= start.gpus.iter().filter(kept).count();
            } else {
                let kept = self.reserve(ticket, &ahead);
                open -= kept.iter().filter(|gpu| !self.is_free(**gpu)).count();
                self.wait_behind(ticket, &mut ahead);
            }
        }
        self.tell_holders(&island.gpus);
    }

    fn changed_island(&mut self) -> Option<Island> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.gpus.is_empty() && !dirty.all {
            return None;
        }
        if dirty.all || !self.floating.is_empty() {
            // Who waits without being bound connects everything.
            let gpus = (0..self.gpus.len() as u32).map(Gpu).collect();
            return Some(Island { gpus, tickets: self.queue.keys().copied().collect() });
        }
        let mut pending: Vec<Gpu> = dirty.gpus.iter().copied().collect();
        let (mut gpus, mut tickets) = (dirty.gpus, BTreeSet::new());
        while let Some(gpu) = pending.pop() {
            for ticket in &self.gpus[gpu.index()].waiting {
                if tickets.insert(*ticket) {
                    let client = &self.clients[&self.queue[ticket].client];
                    pending.extend(client.bound.iter().filter(|gpu| gpus.insert(**gpu)));
                }
            }
        }
        Some(Island { gpus, tickets: tickets.into_iter().collect() })
    }

    /// True if a lease on the GPU can be granted now.
    pub(crate) fn is_free(&self, gpu: Gpu) -> bool {
        let state = &self.gpus[gpu.index()];
        state.claimed.is_empty() && state.holders.is_empty() || !self.config.policy.is_exclusive()
    }

    /// True if a holder of the GPU does not stop; nobody knows when it will be free.
    pub(crate) fn is_stuck(&self, gpu: Gpu) -> bool {
        self.leases_on(gpu).any(|lease| lease.stuck)
    }

    /// The GPUs that a waiting client can start on now.
    fn start(&self, waiter: &Waiter) -> Option<Start> {
        let client = &self.clients[&waiter.client];
        let mut usable: Vec<Gpu> =
            self.candidates(client).filter(|gpu| self.is_usable(*gpu, waiter)).collect();
        let width = client.width as usize;
        if usable.len() < width {
            return None;
        }
        if client.bound.is_empty() {
            usable.sort_by_key(|&gpu| {
                (self.gpus[gpu.index()].reserved.is_some(), self.preference(client, gpu))
            });
            usable.truncate(width);
        }
        let passes = usable.iter().filter_map(|gpu| self.gpus[gpu.index()].reserved).collect();
        Some(Start { gpus: usable, passes })
    }

    fn is_usable(&self, gpu: Gpu, waiter: &Waiter) -> bool {
        self.is_free(gpu)
            && self.gpus[gpu.index()].reserved.is_none_or(|earlier| self.may_pass(waiter, earlier))
    }

    /// True if `waiter` is done before the earlier client would start, as far as anybody knows, and
    /// the earlier one has not been passed too often.
    fn may_pass(&self, waiter: &Waiter, earlier: Ticket) -> bool {
        let passed = &self.queue[&earlier];
        let Some(reservation) = passed.reservation else { return false };
        self.config.policy == Policy::GpuAffinity
            && self.config.backfill == Backfill::ByEstimate
            && passed.bypassed < self.config.max_bypass
            && self.now < reservation.since.after(self.config.max_bypass_time)
            && waiter
                .estimate
                .is_some_and(|estimate| self.now.after(estimate) <= reservation.expected)
    }

    fn grant(&mut self, ticket: Ticket, start: &Start) {
        let client = self.queue[&ticket].client;
        let waiter = self.unqueue(client);
        let epoch = self.next_epoch;
        self.next_epoch = epoch.next();
        let mut lease = Lease::new(epoch, start.gpus.clone(), self.now);
        lease.ends = waiter.estimate.map(|estimate| self.now.after(estimate));
        lease.promised = waiter.reservation.and_then(|reservation| reservation.promised);
        for earlier in &start.passes {
            let passed = self.queue.get_mut(earlier).expect("GPUs are kept for waiting clients");
            passed.bypassed += 1;
            let expected = passed.reservation.map(|reservation| reservation.expected);
            lease.yields = lease.yields.into_iter().chain(expected).min();
        }
        self.install(client, lease);
        for gpu in &start.gpus {
            self.gpus[gpu.index()].grants += 1;
        }
        self.clients.get_mut(&client).expect("a waiting client is known").grants += 1;
        self.actions.push_back(Action::Grant { client, epoch, gpus: start.gpus.clone() });
    }

    /// Keeps GPUs for a client that cannot start: those that come back first.
    fn reserve(&mut self, ticket: Ticket, ahead: &Ahead) -> Vec<Gpu> {
        let waiter = &self.queue[&ticket];
        let client = &self.clients[&waiter.client];
        let mut kept: Vec<Gpu> = self
            .candidates(client)
            .filter(|gpu| self.gpus[gpu.index()].reserved.is_none() && !self.is_stuck(*gpu))
            .collect();
        let width = client.width as usize;
        if kept.len() < width {
            let waiter = self.queue.get_mut(&ticket).expect("it was just read");
            if let Some(reservation) = &mut waiter.reservation {
                reservation.promised = None; // only what is stuck can take it away
            }
            return Vec::new();
        }
        if client.bound.is_empty() {
            kept.sort_by_cached_key(|&gpu| (self.soonest(gpu), self.preference(client, gpu)));
            kept.truncate(width);
        }
        let latest = |time: fn(&Scheduler, Gpu) -> Time| {
            kept.iter().map(|gpu| time(self, *gpu)).max().unwrap_or(self.now)
        };
        let (expected, recalled) =
            (latest(Scheduler::expected_back), latest(Scheduler::recalled_by));
        let first_in_line =
            !ahead.everything && self.candidates(client).all(|gpu| !ahead.gpus.contains(&gpu));
        let earlier = waiter.reservation;
        let promised = match earlier.and_then(|reservation| reservation.promised) {
            Some(promised) => Some(promised.min(recalled)),
            None => first_in_line.then_some(recalled),
        };
        let reservation = Reservation {
            since: earlier.map_or(self.now, |reservation| reservation.since),
            expected: promised.map_or(expected, |promised| expected.min(promised)),
            promised,
        };
        self.queue.get_mut(&ticket).expect("it was just read").reservation = Some(reservation);
        for gpu in &kept {
            self.gpus[gpu.index()].reserved = Some(ticket);
        }
        kept
    }

    /// Notes what a client that waits wants, so that those behind it know.
    fn wait_behind(&self, ticket: Ticket, ahead: &mut Ahead) {
        let client = &self.clients[&self.queue[&ticket].client];
        if client.bound.is_empty() && client.eligible == Eligible::All {
            ahead.everything = true;
        } else {
            ahead.gpus.extend(self.candidates(client));
        }
    }

    /// Among GPUs to keep, the lower the better. What is free comes first, and among recalled ones
    /// the one recalled first: a promise relies on them, and they must not be let go for others.
    fn soonest(&self, gpu: Gpu) -> (bool, Time, Time, Time) {
        let recalled = self.leases_on(gpu).filter_map(|lease| lease.recalled).max();
        let recalled = recalled.unwrap_or(Time(u64::MAX));
        (!self.is_free(gpu), self.expected_back(gpu), self.recalled_by(gpu), recalled)
    }

    /// When a GPU will be free if the estimates are right. A holder beyond its estimate may be done
    /// at any moment; one without an estimate holds until it is recalled.
    fn expected_back(&self, gpu: Gpu) -> Time {
        let recalled = self.recalled_by(gpu);
        let ends = self.leases_on(gpu).filter_map(|lease| lease.ends).max();
        ends.map_or(recalled, |ends| ends.min(recalled)).max(self.now)
    }

    /// When a GPU's holder is recalled at the latest, or would be if somebody waited for it.
    fn recalled_by(&self, gpu: Gpu) -> Time {
        let quantum = self.config.quantum;
        // Who is expected back may come at the last moment, and then has a quantum.
        let settles = (!self.gpus[gpu.index()].claimed.is_empty())
            .then(|| self.config.settle.until.after(quantum));
        let recalled = self.leases_on(gpu).filter(|lease| lease.recalled.is_none());
        let recalled = recalled.map(|lease| lease.latest_recall(quantum));
        settles.into_iter().chain(recalled).max().unwrap_or(self.now).max(self.now)
    }

    fn leases_on(&self, gpu: Gpu) -> impl Iterator<Item = &Lease> {
        let holders = self.gpus[gpu.index()].holders.iter();
        holders.filter_map(|holder| self.clients[holder].lease.as_ref())
    }

    /// Tells the holders of GPUs that somebody waits for them, and sees to their recall.
    fn tell_holders(&mut self, gpus: &BTreeSet<Gpu>) {
        let leases = gpus.iter().flat_map(|gpu| {
            self.gpus[gpu.index()].holders.iter().map(|id| (self.lease(*id).epoch, *id))
        });
        let leases: BTreeSet<(Epoch, ClientId)> = leases.collect();
        for (epoch, id) in leases {
            let recall_at = self.recall_time(self.lease(id));
            let client = self.clients.get_mut(&id).expect("a holder is known");
            let lease = client.lease.as_mut().expect("a holder has a lease");
            if recall_at.is_some() && !lease.wanted {
                lease.wanted = true;
                self.actions.push_back(Action::Wanted { client: id, epoch });
            }
            if lease.recalled.is_none() {
                self.set_timer(id, recall_at);
            }
        }
    }

    /// When a lease must be recalled for those who wait for its GPUs; `None` when nobody does.
    fn recall_time(&self, lease: &Lease) -> Option<Time> {
        let kept = lease.gpus.iter().filter_map(|gpu| self.gpus[gpu.index()].reserved);
        let promises = kept.map(|ticket| {
            let reservation = self.queue[&ticket].reservation;
            reservation.and_then(|reservation| reservation.promised).unwrap_or(Time(u64::MAX))
        });
        Some(promises.min()?.min(lease.latest_recall(self.config.quantum)))
    }

    fn lease(&self, holder: ClientId) -> &Lease {
        self.clients[&holder].lease.as_ref().expect("a holder has a lease")
    }

    fn set_timer(&mut self, holder: ClientId, at: Option<Time>) {
        let client = self.clients.get_mut(&holder).expect("a holder is known");
        let lease = client.lease.as_mut().expect("a holder has a lease");
        let before = std::mem::replace(&mut lease.timer, at);
        if before != at {
            if let Some(before) = before {
                self.timers.remove(&(before, lease.epoch, holder));
            }
            self.timers.extend(at.map(|at| (at, lease.epoch, holder)));
        }
    }

    /// Recalls the contended leases whose time is over, and gives up on those recalled long ago.
    pub(crate) fn fire_timers(&mut self) {
        while let Some(&(at, epoch, id)) = self.timers.first() {
            if at > self.now {
                return;
            }
            let drained = self.now.after(self.config.drain);
            let client = self.clients.get_mut(&id).expect("timers belong to holders");
            let lease = client.lease.as_mut().expect("timers belong to holders");
            if lease.recalled.is_some() {
                lease.stuck = true;
                self.dirty.gpus.extend(&lease.gpus);
                self.set_timer(id, None);
            } else {
                lease.recalled = Some(self.now);
                self.actions.push_back(Action::Recall { client: id, epoch });
                self.set_timer(id, Some(drained));
            }
        }
    }
}
