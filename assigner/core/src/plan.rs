//! Who starts next: a walk over those who wait, in their order (`order`).
//!
//! ```text
//!  for every waiting client, first come, first:
//!      enough GPUs free that nobody waits for ──────────────────► grant
//!      … or kept for earlier ones, and it is done in time ──────► grant (backfill), to be given back
//!      else, if enough of its GPUs are not kept for earlier ones ► keep the soonest ones for it:
//!                                                                  a reservation; who holds them is
//!                                                                  told, and recalled in time (`recall`)
//! ```
//!
//! Guarantees, however wrong the estimates are: a client that is first in line on all GPUs it could
//! use starts when the last holder in its way gives back, and that holder is recalled no later than
//! promised when the reservation was made. Only a request within a guarantee or of a higher level, which
//! did not wait then, can take the promise away. Who needs no GPU that is kept is never held up.
//!
//! Only the part of the queue is looked at that the changed GPUs can concern: the *island* of GPUs
//! connected by clients that wait for several of them. And of that only as much as GPUs are open: each
//! client that cannot start closes those that are kept for it (which ones: `reserve`).

mod reserve;

use std::cmp::Reverse;

use crate::config::{Backfill, Policy};
use crate::event::{Action, Eligible};
use crate::few::Notes;
use crate::gang::{Member, Seat};
use crate::gpu_set::GpuSet;
use crate::ids::{ClientId, Epoch, Gpu, Time};
use crate::order::{Excess, Given, LaneKey, Next, Walk};
use crate::recall::{Claimant, NEVER};
use crate::scheduler::{Bypass, Client, Lease, Scheduler, Ticket, Tickets, Waiter};
use crate::span::Span;

/// So many clients are tried on GPUs that are kept for earlier ones; beyond it stand those who would hardly fit.
const BACKFILL_DEPTH: u32 = 64;

/// What the clients ahead in the queue wait for.
#[derive(Default)]
struct Ahead {
    gpus: GpuSet,
    everything: bool,
}

/// GPUs that a client can start on now.
struct Start {
    gpus: Notes<Gpu>,
    /// The earlier clients that it passes.
    passes: Tickets,
}

/// What is left to give out in a plan.
struct Open {
    /// GPUs that are not kept for anybody.
    fresh: usize,
    /// Free GPUs that are kept: for backfill.
    lent: usize,
    /// Clients that were tried when there was nothing fresh any more.
    tries: u32,
}

impl Open {
    fn is_over(&self) -> bool {
        self.fresh == 0 && (self.lent == 0 || self.tries >= BACKFILL_DEPTH)
    }
}

impl Lease {
    pub(crate) fn new(epoch: Epoch, gpus: &[Gpu], granted: Time) -> Lease {
        Lease {
            epoch,
            gpus: gpus.into(),
            granted,
            is_ready: true,
            lacked: 0,
            progress: granted,
            started: granted,
            least: Span::default(),
            spent: Span::default(),
            made_way: Tickets::default(),
            ticket: None,
            ends: NEVER,
            yields: NEVER,
            passed: Tickets::default(),
            promised: NEVER,
            bypass: Bypass::default(),
            is_told: true,
            is_again: false,
            is_due: false,
            wanted: false,
            recalled: None,
            cause: None,
            stuck: false,
            timer: None,
        }
    }

    /// GPUs that it covers.
    pub(crate) fn width(&self) -> u32 {
        u32::try_from(self.gpus.len()).expect("the number of GPUs fits")
    }
}

impl Scheduler {
    /// Grants what can be granted where something has changed, and keeps GPUs for who must wait. What is granted can
    /// change what others may do, where there are guarantees or limits: hence until nothing changes.
    pub(crate) fn plan(&mut self) {
        while let Some(island) = self.changed_island() {
            self.plan_island(&island);
        }
    }

    fn plan_island(&mut self, island: &GpuSet) {
        self.warm_plan(island);
        // Who holds and who is next decides who gets memory.
        self.memory.note_turns(island.iter());
        let before = island.iter().filter_map(|gpu| {
            let reserved = self.gpus[gpu.index()].reserved.take();
            reserved.map(|ticket| (gpu, ticket))
        });
        let before: Notes<(Gpu, Ticket)> = before.collect();
        // One that shares a GPU can start beside a holder that does not stop.
        let is_open = |gpu: &Gpu| !self.is_stuck(*gpu) || self.is_shared(*gpu);
        let fresh = island.iter().filter(is_open).count();
        let mut open = Open { fresh, lent: 0, tries: 0 };
        self.tenants.press_nobody();
        self.queues.press_nobody();
        let mut ahead = Ahead::default();
        let mut given = Given::default();
        let mut promises: Notes<ClientId> = Notes::new();
        let mut walk = self.walk(island.iter());
        while !open.is_over() {
            let Some(next) = self.next_of(&mut walk, &given) else { break };
            let Next { ticket, lane, entitled } = next;
            let client = self.queue[&ticket].client;
            let too_wide = lane.width as usize > open.fresh + open.lent;
            if too_wide && self.clients[&client].bound.is_empty() {
                // Nobody in this lane fits any more; whoever is behind has it ahead.
                walk.close_lane(lane);
                given.cannot_fit(lane.tenant);
                ahead.everything = true;
                continue;
            }
            open.tries += u32::from(open.fresh == 0);
            let excess = self.excess(lane, &given);
            let limited = !excess.is_none();
            let keeps = self.clients[&client].member.as_deref().is_some_and(Member::keeps);
            if !limited
                && !keeps
                && let Some(start) = self.start(&self.queue[&ticket])
            {
                let kept = |gpu: &&Gpu| self.gpus[gpu.index()].reserved.is_some();
                open.lent -= start.gpus.iter().filter(kept).count();
                self.outrank(&next, &start.gpus, &before, island);
                self.grant(ticket, start);
                continue;
            }
            let who = Claimant { client, lane, entitled };
            let kept = self.reserve(&who, ticket, &ahead, excess);
            if !kept.is_empty() {
                given.add(lane, lane.width);
                self.close(&kept, &who, &mut open, &mut walk);
            } else {
                if excess.queue == 0 || excess.tenant > 0 {
                    given.cannot_fit(lane.tenant); // what its queue lacks, others of its tenant may have elsewhere
                }
                self.press_limits(ticket, lane, &mut given);
            }
            if !limited || !kept.is_empty() {
                self.wait_behind(client, &mut ahead);
            }
            promises.push(client);
        }
        for client in promises {
            self.place_by_promise(client);
        }
        self.withdraw(&before, island);
        self.tell_holders(island);
    }

    /// Holders stand in the way of a client by what its tenant or its queue may hold, and it can do nothing about their
    /// GPUs: they are told, and what comes back counts for it before it does for those behind.
    fn press_limits(&mut self, ticket: Ticket, lane: LaneKey, given: &mut Given) {
        let Excess { tenant, queue } = self.excess(lane, &Given::default());
        if tenant > 0 && self.tenants.of(lane.tenant).pressed.is_none() {
            self.tenants.of_mut(lane.tenant).pressed = Some(ticket);
            given.add_to_tenant(lane.tenant, lane.width);
        }
        if queue > 0 && self.queues.of(lane.queue).pressed.is_none() {
            self.queues.of_mut(lane.queue).pressed = Some(ticket);
            given.add_to_queue(lane.queue, lane.width);
        }
    }

    /// True if a client that has just come to wait stands behind others wherever it could start: all its GPUs are held,
    /// and kept for those before it. Then there is nothing to plan, however many wait.
    pub(crate) fn changes_nothing(&self, id: ClientId) -> bool {
        let client = &self.clients[&id];
        let (Some(ticket), true) = (client.waiting, client.let_go) else { return false };
        if self.shares.is_some() || self.tenants.guarantees() || client.member.is_some() {
            return false; // where it stands depends on more than the two
        }
        let rank = |client: &Client, waiter: &Waiter| (Reverse(client.level), waiter.place);
        let own = rank(client, &self.queue[&ticket]);
        self.candidates(client).all(|gpu| {
            self.gpus[gpu.index()].reserved.is_some_and(|first| {
                let waiter = &self.queue[&first];
                rank(&self.clients[&waiter.client], waiter) < own
            }) && !self.is_free(gpu, client)
        })
    }

    /// Takes promises back from those for whom nothing is kept any more: others of a higher rank have come.
    fn withdraw(&mut self, before: &[(Gpu, Ticket)], island: &GpuSet) {
        let mut before: Notes<Ticket> = before.iter().map(|(_, ticket)| *ticket).collect();
        before.sort_unstable();
        before.dedup();
        for ticket in &before {
            let mut kept = island.iter().filter_map(|gpu| self.gpus[gpu.index()].reserved);
            if kept.any(|kept| kept == *ticket) {
                continue;
            }
            let Some(waiter) = self.queue.get_mut(ticket) else { continue };
            if let Some(reservation) = &mut waiter.reservation {
                reservation.promised = None;
            }
            let client = waiter.client;
            self.place_by_promise(client);
        }
    }

    /// Somebody starts on GPUs that were kept for others until now. If it goes before them whatever they were promised,
    /// they get a new promise when it is their turn: by the old one, its lease would be recalled as soon as it has it.
    fn outrank(&mut self, who: &Next, gpus: &[Gpu], before: &[(Gpu, Ticket)], island: &GpuSet) {
        for (_, ticket) in before.iter().filter(|(gpu, _)| gpus.contains(gpu)) {
            let Some(waiter) = self.queue.get(ticket) else { continue };
            let theirs = (waiter.entitled, self.clients[&waiter.client].level);
            let goes_first = *ticket != who.ticket && (who.entitled, who.lane.level) > theirs;
            // Others are kept for it already.
            let mut kept = island.iter().map(|gpu| self.gpus[gpu.index()].reserved);
            if !goes_first || kept.any(|kept| kept == Some(*ticket)) {
                continue;
            }
            let waiter = self.queue.get_mut(ticket).expect("it was just there");
            if let Some(reservation) = &mut waiter.reservation {
                reservation.promised = None;
            }
        }
    }

    /// GPUs that are kept are not open any more, unless they are free and others may go before.
    fn close(&self, kept: &[Gpu], who: &Claimant, open: &mut Open, walk: &mut Walk) {
        let client = &self.clients[&who.client];
        for gpu in kept {
            open.fresh -= 1;
            let is_firm = client.member.as_ref().is_some_and(|it| it.seat == Seat::Firm);
            let lends = self.config.backfill == Backfill::ByEstimate && !is_firm;
            if lends && self.is_free(*gpu, client) {
                open.lent += 1;
            } else {
                walk.close_line(*gpu);
            }
        }
    }

    fn changed_island(&mut self) -> Option<GpuSet> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.gpus.is_empty() && !dirty.all {
            return None;
        }
        if dirty.all || !self.floating.is_empty() || self.tenants.bounds() || self.queues.bounds() {
            // Who waits without being bound connects everything, and so do guarantees and limits: what is kept for one
            // counts for others that wait elsewhere.
            return Some(GpuSet::first(self.gpus.len()));
        }
        let mut pending: Notes<Gpu> = dirty.gpus.iter().collect();
        let mut gpus = dirty.gpus;
        while let Some(gpu) = pending.pop() {
            for ticket in self.gpus[gpu.index()].wide.iter() {
                let client = &self.clients[&self.queue[ticket].client];
                pending.extend(client.bound.iter().copied().filter(|gpu| gpus.insert(*gpu)));
            }
        }
        Some(gpus)
    }

    /// True if a holder of the GPU does not stop; nobody knows when it will be free.
    pub(crate) fn is_stuck(&self, gpu: Gpu) -> bool {
        self.gpus[gpu.index()].holders.iter().any(|holder| self.lease(*holder).stuck)
    }

    /// The GPUs that a waiting client can start on now.
    fn start(&self, waiter: &Waiter) -> Option<Start> {
        let client = &self.clients[&waiter.client];
        let width = client.width as usize;
        if self.policy_of(client).is_exclusive() && self.unheld < width {
            return None; // the usual case, and there is no need to look at each
        }
        let usable = self.candidates(client).filter(|gpu| self.is_usable(*gpu, waiter));
        let gpus = if client.bound.is_empty() {
            let usable: Notes<Gpu> = usable.collect();
            if usable.len() < width {
                return None;
            }
            self.choose(client, usable)
        } else {
            if usable.count() < width {
                return None;
            }
            Notes::from_slice(&client.bound)
        };
        let mut passes = Tickets::default();
        for earlier in gpus.iter().filter_map(|gpu| self.gpus[gpu.index()].reserved) {
            if !passes.contains(&earlier) {
                passes.push(earlier);
            }
        }
        Some(Start { gpus, passes })
    }

    fn is_usable(&self, gpu: Gpu, waiter: &Waiter) -> bool {
        self.is_free(gpu, &self.clients[&waiter.client])
            && self.gpus[gpu.index()].reserved.is_none_or(|earlier| self.may_pass(waiter, earlier))
    }

    /// True if `waiter` is done before the earlier client would start, as far as anybody knows, and
    /// the earlier one has not been passed too often.
    fn may_pass(&self, waiter: &Waiter, earlier: Ticket) -> bool {
        let passed = &self.queue[&earlier];
        let Some(reservation) = passed.reservation else { return false };
        let backfills = self.policy_of(&self.clients[&waiter.client]) == Policy::GpuAffinity
            && self.config.backfill == Backfill::ByEstimate;
        match &self.clients[&passed.client].member {
            // It is given back as soon as the gang's other GPUs are there.
            Some(member) if member.seat == Seat::Keeping => return backfills,
            Some(member) if member.seat == Seat::Firm => return false,
            _ => {}
        }
        backfills
            && passed.bypassed < self.config.max_bypass
            && self.now < passed.kept_since.after(self.config.max_bypass_time)
            && waiter
                .estimate
                .is_some_and(|estimate| self.now.after(estimate) <= reservation.expected)
    }

    fn grant(&mut self, ticket: Ticket, start: Start) {
        let client = self.queue[&ticket].client;
        let waiter = self.unqueue(client);
        let epoch = self.next_epoch;
        self.next_epoch = epoch.next();
        let mut lease = Lease::new(epoch, &start.gpus, self.now);
        lease.is_ready = !self.memory.pages(client, &lease.gpus);
        lease.lacked = self.memory.lack(client, &lease.gpus);
        lease.ticket = Some(ticket);
        lease.spent = waiter.spent;
        lease.ends = waiter.estimate.map_or(NEVER, |estimate| self.now.after(estimate));
        lease.promised = waiter.reservation.and_then(|it| it.promised).unwrap_or(NEVER);
        lease.bypass = waiter.bypass();
        lease.made_way = waiter.made_way;
        for earlier in &start.passes {
            let passed = self.queue.get_mut(earlier).expect("GPUs are kept for waiting clients");
            if self.clients[&passed.client].member.as_deref().is_some_and(Member::keeps) {
                continue; // its gang waits for others, not for this lease
            }
            passed.bypassed += 1;
            let expected = passed.reservation.map(|reservation| reservation.expected);
            lease.yields = lease.yields.min(expected.unwrap_or(NEVER));
        }
        lease.passed = start.passes;
        for gpu in &lease.gpus {
            self.gpus[gpu.index()].grants += 1;
        }
        let (gpus, is_ready) = (start.gpus.into_vec(), lease.is_ready);
        self.install(client, lease);
        self.clients.get_mut(&client).expect("a waiting client is known").grants += 1;
        self.actions.push_back(Action::Grant { client, epoch, gpus, is_ready });
    }

    /// Notes what a client that waits wants, so that those behind it know.
    fn wait_behind(&self, client: ClientId, ahead: &mut Ahead) {
        let client = &self.clients[&client];
        if client.bound.is_empty() && client.eligible == Eligible::All {
            ahead.everything = true;
        } else {
            ahead.gpus.extend(self.candidates(client));
        }
    }
}
