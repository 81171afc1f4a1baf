//! The invariants, checked after every event in tests.
//!
//! Owns: what must be true of any state. Does not own: what must be true of a history (bounded
//! bypass, liveness, epochs that grow); the tests follow that.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::Eligible;
use crate::gang::{GangName, Member, Stage};
use crate::ids::{ClientId, Epoch, Gpu};
use crate::memory::RoomFault;
use crate::order::{Given, Line};
use crate::recall::{Claim, Claimant};
use crate::scheduler::{Scheduler, Ticket};
use crate::span::Span;

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
    /// A client could have what is kept for it recalled at once, but waits.
    #[error("{0} may have all of its GPUs recalled at once, but {1} is spared")]
    Spared(ClientId, ClientId),
    /// A request that has made way for another one twice: they could go on for ever.
    #[error("one request has made way for that of {0} twice")]
    Twice(ClientId),
    /// A gang holds on although others wait and all of its members have had their turn.
    #[error("{0} holds on: others wait, and all of its members here have had their turn")]
    Overstays(GangName),
    /// A GPU is kept for a lower level.
    #[error("{1} is kept for somebody of a lower level than {0}, which waits for it")]
    Outranked(ClientId, Gpu),
    /// What a tenant holds is not what it counts, or more than its limit.
    #[error("tenant \"{0}\" holds other GPUs than are counted, or more than it may")]
    Tenant(String),
    /// What a queue holds is not what it counts, or more than its limit.
    #[error("queue \"{0}\" holds other GPUs or clients than are counted, or more than it may")]
    NamedQueue(String),
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
        self.check_counts()?;
        self.check_waiting()?;
        self.check_made_way()?;
        self.check_turns()?;
        match self.memory_fault() {
            Some((gpu, fault)) => Err(SanityError::Room(gpu, fault)),
            None => Ok(()),
        }
    }

    fn check_leases(&self) -> Result<(), SanityError> {
        let mut epochs = BTreeSet::new();
        let mut timers = BTreeSet::new();
        for (id, client) in self.clients.iter() {
            let Some(lease) = &client.lease else { continue };
            if lease.epoch >= self.next_epoch || !epochs.insert(lease.epoch) {
                return Err(SanityError::Epoch(lease.epoch, *id));
            }
            let eligible = match &client.eligible {
                _ if !client.bound.is_empty() => *lease.gpus == *client.bound,
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
        if let Some((.., id)) =
            timers.symmetric_difference(&self.timers.iter().copied().collect()).next()
        {
            return Err(SanityError::Timer(*id));
        }
        Ok(())
    }

    fn check_gpus(&self) -> Result<(), SanityError> {
        let mut holders: BTreeMap<Gpu, BTreeSet<ClientId>> = BTreeMap::new();
        let mut bound: BTreeMap<Gpu, BTreeSet<ClientId>> = BTreeMap::new();
        let mut loads: BTreeMap<Gpu, Span> = BTreeMap::new();
        for (id, client) in self.clients.iter() {
            for gpu in client.lease.iter().flat_map(|lease| lease.gpus.iter()) {
                holders.entry(*gpu).or_default().insert(*id);
            }
            for gpu in &client.bound {
                bound.entry(*gpu).or_default().insert(*id);
                *loads.entry(*gpu).or_default() += client.held;
            }
        }
        let mut claimed: BTreeMap<Gpu, BTreeSet<ClientId>> = BTreeMap::new();
        for (id, held) in &self.expected {
            for (gpu, _) in &held.0.bound {
                bound.entry(*gpu).or_default().insert(*id);
                claimed.entry(*gpu).or_default().extend(held.0.lease.map(|_| *id));
            }
        }
        if self.unheld != self.gpus.iter().filter(|gpu| gpu.holders.is_empty()).count() {
            return Err(SanityError::Holders(Gpu(0)));
        }
        for (gpu, state) in (0..).map(Gpu).zip(&self.gpus) {
            let known: BTreeSet<ClientId> = state.claimed.iter().copied().collect();
            if known != claimed.remove(&gpu).unwrap_or_default() {
                return Err(SanityError::Claims(gpu));
            }
            let claims = state.claimed.len();
            let alone = |id: &ClientId| self.policy_of(&self.clients[id]).is_exclusive();
            if state.holders.iter().any(alone) && state.holders.len() + claims > 1 {
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
        let (mut in_lines, mut by_arrival, mut wide) = (0, 0, 0);
        for (ticket, waiter) in self.queue.iter() {
            let id = waiter.client;
            let client = self.clients.get(&id).ok_or(SanityError::Queue(id))?;
            let (lane, place) = (client.lane(), waiter.place);
            let bound = client.bound.iter().map(|gpu| &self.gpus[gpu.index()]);
            let stands = |line: &Line| line.contains(lane, &place) == client.let_go;
            let indexed =
                bound.clone().all(|gpu| gpu.waiting.contains(ticket) && stands(&gpu.line));
            let floats = self.floating.contains(lane, &place);
            let asks = waiter.asks_at.is_some_and(|at| self.askers.contains(&(at, *ticket)));
            if client.waiting != Some(*ticket)
                || place.ticket != *ticket
                || client.lease.is_some()
                || floats != (client.bound.is_empty() && client.let_go)
                || floats != asks
                || !indexed
            {
                return Err(SanityError::Queue(id));
            }
            by_arrival += client.bound.len();
            if client.let_go {
                in_lines += client.bound.len().max(1);
                wide += if client.width > 1 { client.bound.len() } else { 0 };
            }
            if waiter.bypassed > self.config.max_bypass {
                return Err(SanityError::Bypassed(id));
            }
        }
        let waiting = self.clients.values().filter(|client| client.waiting.is_some());
        let lines = self.gpus.iter().map(|gpu| gpu.line.len()).sum::<usize>() + self.floating.len();
        if waiting.count() != self.queue.len()
            || self.gpus.iter().map(|gpu| gpu.waiting.len()).sum::<usize>() != by_arrival
            || self.gpus.iter().map(|gpu| gpu.wide.len()).sum::<usize>() != wide
            || lines != in_lines
            || self.askers.len() != self.floating.len()
        {
            return Err(SanityError::Queue(ClientId(0)));
        }
        Ok(())
    }

    /// What tenants and queues hold, and that nobody holds more than it may.
    fn check_counts(&self) -> Result<(), SanityError> {
        for (id, tenant) in self.tenants.iter() {
            let clients = || self.clients.values().filter(|client| client.tenant == id);
            let leases = || clients().filter_map(|client| client.lease.as_ref());
            let held: u32 = leases().map(|lease| lease.width()).sum();
            let recalled = leases().filter(|lease| lease.recalled.is_some());
            let active = clients().filter(|c| c.waiting.is_some() || c.lease.is_some()).count();
            if tenant.held != held
                || tenant.leaving != recalled.map(|lease| lease.width()).sum::<u32>()
                || tenant.active as usize != active
                // Leases from before a restart were granted by another configuration, perhaps.
                || tenant.limit.is_some_and(|limit| held > limit && !self.is_adopting())
            {
                return Err(SanityError::Tenant(tenant.name.clone()));
            }
        }
        for (id, queue) in self.queues.iter() {
            let clients = || self.clients.values().filter(|client| client.queue == id);
            let leases = clients().filter_map(|client| client.lease.as_ref());
            let held: u32 = leases.map(|lease| lease.width()).sum();
            if queue.held != held
                || queue.clients as usize != clients().count()
                || queue.max_gpus.is_some_and(|limit| held > limit && !self.is_adopting())
            {
                return Err(SanityError::NamedQueue(queue.name.clone()));
            }
        }
        Ok(())
    }

    fn is_adopting(&self) -> bool {
        self.clients
            .values()
            .any(|client| client.lease.as_ref().is_some_and(|lease| lease.ticket.is_none()))
    }

    /// Work conservation, that whoever is in the way knows, and that nobody has a GPU kept before a higher one.
    fn check_waiting(&self) -> Result<(), SanityError> {
        let reserved: BTreeSet<Ticket> = self.gpus.iter().filter_map(|gpu| gpu.reserved).collect();
        let kept_for = |ticket: Ticket| {
            (0..).map(Gpu).zip(&self.gpus).filter(move |(_, state)| state.reserved == Some(ticket))
        };
        for (ticket, waiter) in self.queue.iter() {
            let client = &self.clients[&waiter.client];
            let lane = client.lane();
            if !client.let_go {
                if kept_for(*ticket).next().is_some() {
                    return Err(SanityError::Queue(waiter.client));
                }
                continue;
            }
            let candidates: Vec<Gpu> = self.candidates(client).collect();
            let idle = |gpu: &&Gpu| {
                let kept = self.gpus[gpu.index()].reserved;
                self.is_free(**gpu, client) && kept.is_none_or(|kept| kept == *ticket)
            };
            let width = client.width as usize;
            // What is kept for others counts against their limits: they came first.
            let mut given = Given::default();
            for other in reserved.iter().filter(|other| *other != ticket) {
                let other = self.clients[&self.queue[other].client].lane();
                given.add(other, other.width);
            }
            for (id, tenant) in self.tenants.iter() {
                let first = tenant.pressed.filter(|first| first != ticket);
                let first = first.map(|first| self.clients[&self.queue[&first].client].width);
                given.add_to_tenant(id, first.unwrap_or(0));
            }
            for (id, queue) in self.queues.iter() {
                let first = queue.pressed.filter(|first| first != ticket);
                let first = first.map(|first| self.clients[&self.queue[&first].client].width);
                given.add_to_queue(id, first.unwrap_or(0));
            }
            let limited = !self.excess(lane, &given).is_none();
            let keeps = client.member.as_deref().is_some_and(Member::keeps);
            if !limited && !keeps && candidates.iter().filter(idle).count() >= width {
                return Err(SanityError::Idle(waiter.client));
            }
            let kept = kept_for(*ticket).count();
            if kept != 0 && kept != width {
                return Err(SanityError::Queue(waiter.client));
            }
            let kept_gpus: Vec<Gpu> = kept_for(*ticket).map(|(gpu, _)| gpu).collect();
            self.check_told(*ticket, &kept_gpus)?;
            self.check_spared(*ticket, &kept_gpus)?;
            if kept == 0 && !limited {
                self.check_not_outranked(*ticket, &candidates)?;
            }
        }
        Ok(())
    }

    /// Holders of GPUs that are kept have been told; those that can be recalled will be.
    fn check_told(&self, ticket: Ticket, kept: &[Gpu]) -> Result<(), SanityError> {
        let waiter = &self.queue[&ticket];
        let lane = self.clients[&waiter.client].lane();
        let who = Claimant { client: waiter.client, lane, entitled: waiter.entitled };
        for gpu in kept {
            let told = |holder: &ClientId| {
                let lease = self.lease(*holder);
                let recallable = self.claim(&who, *holder, &[]) != Claim::Never
                    && !self.keeps_beside(&self.clients[&who.client], *gpu);
                // A gang stops as a whole, once all of its members have had their turn.
                let gang = self.clients[holder].member.as_ref().map(|member| &member.gang);
                let is_due = lease.is_due && gang.is_some_and(|it| self.gangs.node.is_due(it));
                lease.wanted && (lease.timer.is_some() || lease.stuck || is_due || !recallable)
            };
            if !self.gpus[gpu.index()].holders.iter().all(told) {
                return Err(SanityError::Untold(waiter.client, *gpu));
            }
        }
        Ok(())
    }

    /// Nobody is spared whom a guarantee, a level or a promise may recall at once, if that lets the other one start.
    fn check_spared(&self, ticket: Ticket, kept: &[Gpu]) -> Result<(), SanityError> {
        let waiter = &self.queue[&ticket];
        let lane = self.clients[&waiter.client].lane();
        let who = Claimant { client: waiter.client, lane, entitled: waiter.entitled };
        match self.takeable(&who, kept).first() {
            Some((spared, _)) => Err(SanityError::Spared(waiter.client, *spared)),
            None => Ok(()),
        }
    }

    /// No request has made way for another one twice: what keeps them from taking GPUs from each other for ever.
    fn check_made_way(&self) -> Result<(), SanityError> {
        let waiting = self.queue.iter().map(|(_, waiter)| (waiter.client, &waiter.made_way));
        let leases =
            self.clients.iter().filter_map(|(id, client)| Some((*id, client.lease.as_ref()?)));
        for (id, made_way) in waiting.chain(leases.map(|(id, lease)| (id, &lease.made_way))) {
            let distinct: BTreeSet<&Ticket> = made_way.iter().collect();
            if distinct.len() != made_way.len() {
                return Err(SanityError::Twice(id));
            }
        }
        Ok(())
    }

    /// Work conservation in a round: the GPU of a member that is idle stays its gang's, and so can be idle while others wait.
    /// That is a reservation, and this is its bound: a round is due `slack` after somebody waits and a member is idle, and
    /// then ends here as soon as those that asked have had their turn. So it is a quantum at most, from when the memory of
    /// the last of them was there (and over nodes what the slowest node says, and the network). To end it before that
    /// would let the first that is idle end it for all, again and again.
    fn check_turns(&self) -> Result<(), SanityError> {
        for gang in self.gangs.node.snapshot() {
            let Stage::Holding { served: false, due: true, .. } = gang.stage else { continue };
            let leases = gang.members.iter().filter_map(|id| self.clients[id].known_lease());
            let mut turns = leases
                .filter(|lease| lease.recalled.is_none())
                .map(|lease| lease.latest_recall(&self.config));
            if turns.all(|end| end <= self.now) {
                return Err(SanityError::Overstays(gang.name));
            }
        }
        Ok(())
    }

    /// Who waits for one GPU, and has none kept, sees none of its own kept for a lower level.
    fn check_not_outranked(&self, ticket: Ticket, candidates: &[Gpu]) -> Result<(), SanityError> {
        let waiter = &self.queue[&ticket];
        let client = &self.clients[&waiter.client];
        for gpu in candidates.iter().filter(|_| client.width == 1) {
            let Some(other) = self.gpus[gpu.index()].reserved else { continue };
            let other = &self.queue[&other];
            let lower = self.clients[&other.client].level < client.level;
            // Memory that cannot be moved for it counts as not being its GPU.
            let lower = lower && self.memory.could_fit(waiter.client, *gpu);
            if lower && !other.entitled && !self.is_stuck(*gpu) {
                return Err(SanityError::Outranked(waiter.client, *gpu));
            }
        }
        Ok(())
    }
}
