//! Which GPUs: for a client that is bound for good, and for one that takes what comes.
//!
//! Owns: the orders of preference. Does not own: which GPUs may be used at all (`plan`). The place
//! for topology and for the cost of moving memory is here.

use std::time::Duration;

use crate::event::Eligible;
use crate::few::Notes;
use crate::ids::Gpu;
use crate::scheduler::{Client, Scheduler};
use crate::span::Span;

/// Who is bound to a GPU with whom a client shares or contests guarantees. The order is that of preference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Company {
    /// Its own tenant's clients, which are not on as many GPUs yet as their guarantee: it is used on several only so.
    repeats: bool,
    /// Clients of tenants with a guarantee: each that is within it keeps the GPU for a quantum.
    guaranteed: usize,
    /// Those of other tenants: its own tenant's guarantee does not help it against them.
    others: usize,
}

/// Bytes a second between a GPU and the host, until switches have been measured (PCIe 4.0, 16 lanes).
const USUAL_RATE: f64 = 25e9;

impl Scheduler {
    /// The GPUs that a client may run on: those it is bound to, else all that are eligible.
    pub(crate) fn candidates<'a>(
        &self,
        client: &'a Client,
    ) -> impl Iterator<Item = Gpu> + Clone + use<'a> {
        let (all, listed) = match (&client.bound[..], &client.eligible) {
            ([], Eligible::All) => (self.config.gpus.len(), &[][..]),
            ([], Eligible::Only(gpus)) => (0, &gpus[..]),
            (bound, _) => (0, bound),
        };
        (0..).take(all).map(Gpu).chain(listed.iter().copied())
    }

    /// True if a lease on the GPU can be granted to a client now. All memory of those who hold a GPU fits on it.
    pub(crate) fn is_free(&self, gpu: Gpu, client: &Client) -> bool {
        let state = &self.gpus[gpu.index()];
        let alone = state.claimed.is_empty() && state.holders.is_empty();
        (alone || self.shares_all(gpu, client)) && self.memory.fits(client.id, gpu, &state.holders)
    }

    /// True if a client and all that hold the GPU are of the policy that shares.
    fn shares_all(&self, gpu: Gpu, client: &Client) -> bool {
        let shares = |client: &Client| !self.policy_of(client).is_exclusive();
        let state = &self.gpus[gpu.index()];
        // Of whom holds it from before a restart nobody knows in which queue it is.
        (state.claimed.is_empty() || self.shares_everywhere())
            && shares(client)
            && state.holders.iter().all(|holder| shares(&self.clients[holder]))
            && self.peaks_fit(gpu, client)
    }

    /// True if the node's policy shares, and that of each queue.
    fn shares_everywhere(&self) -> bool {
        let queues = self.config.queues.iter().filter_map(|queue| queue.policy);
        queues.chain([self.config.policy]).all(|policy| !policy.is_exclusive())
    }

    /// True if what a client and those that hold the GPU are going to have fits on it: rather wait for the lease than
    /// for memory in the middle of a phase.
    fn peaks_fit(&self, gpu: Gpu, client: &Client) -> bool {
        let holders = self.gpus[gpu.index()].holders.iter().map(|holder| &self.clients[holder]);
        let mut others = holders.filter(|holder| holder.id != client.id).peekable();
        if others.peek().is_none() {
            return true; // alone it has what there is
        }
        let sum = others
            .fold(self.peak(client, gpu), |sum, other| sum.saturating_add(self.peak(other, gpu)));
        sum <= self.config.gpus[gpu.index()].memory
    }

    /// What a client is going to have on a GPU: its limit, else what its latest phases had; what it has at least.
    fn peak(&self, client: &Client, gpu: Gpu) -> u64 {
        let room = self.memory.of(client.id, gpu);
        let now = room.fixed.saturating_add(room.claimed);
        client
            .memory_limit
            .or_else(|| client.peaks.as_ref().and_then(|peaks| peaks.estimate()))
            .map_or(now, |peak| peak.max(now))
    }

    /// True if all that hold the GPU are of the policy that shares.
    pub(crate) fn is_shared(&self, gpu: Gpu) -> bool {
        let mut holders = self.gpus[gpu.index()].holders.iter();
        holders.all(|holder| !self.policy_of(&self.clients[holder]).is_exclusive())
    }

    /// The policy that a client is scheduled by: that of its queue.
    pub(crate) fn policy_of(&self, client: &Client) -> crate::config::Policy {
        self.queues.of(client.queue).policy
    }

    /// Of GPUs that a client could start on now, as many as it wants: such as nobody waits for, close to each other,
    /// and preferred.
    pub(crate) fn choose(&self, client: &Client, mut usable: Notes<Gpu>) -> Notes<Gpu> {
        let is_kept = |gpu: Gpu| self.gpus[gpu.index()].reserved.is_some();
        let rank = |gpu: &Gpu| (is_kept(*gpu), self.preference(client, *gpu));
        if client.width == 1 {
            return usable.into_iter().min_by_key(rank).into_iter().collect();
        }
        usable.sort_by_cached_key(rank);
        self.close_together(&usable, client.width as usize, |gpu| usize::from(is_kept(gpu)))
    }

    /// For GPUs that are closer to each other a client waits so much longer: closeness may cost the share of a quantum that
    /// switching may.
    pub(crate) fn worth_of_closeness(&self) -> Duration {
        self.config.quantum.mul_f64(self.config.switch_share)
    }

    /// Of GPUs in an order of preference so many that are close to each other; first comes a low `rating`.
    fn close_together(
        &self,
        gpus: &[Gpu],
        width: usize,
        rating: impl Fn(Gpu) -> usize,
    ) -> Notes<Gpu> {
        let topology = &self.config.topology;
        if gpus.len() == width || topology.distances.is_empty() {
            return Notes::from_slice(&gpus[..width]);
        }
        // From each GPU on, always the next closest: the best of these.
        let grown = (0..gpus.len()).map(|seed| {
            let mut rest: Vec<usize> = (0..gpus.len()).filter(|at| *at != seed).collect();
            let (mut chosen, mut far) = (vec![seed], 0);
            while chosen.len() < width {
                let reach = |at: usize| -> u32 {
                    chosen.iter().map(|c| topology.distance(gpus[*c], gpus[at])).sum()
                };
                let key = |at: usize| (rating(gpus[at]), reach(at), at);
                let next = (0..rest.len()).min_by_key(|i| key(rest[*i]));
                let next = rest.swap_remove(next.expect("there are more than are wanted"));
                far += reach(next);
                chosen.push(next);
            }
            chosen.sort_unstable();
            (chosen.iter().map(|at| rating(gpus[*at])).sum::<usize>(), far, chosen)
        });
        let (.., chosen) = grown.min().expect("there is at least one GPU");
        chosen.into_iter().map(|at| gpus[at]).collect()
    }

    /// Chooses the GPUs that a client is bound to: the least loaded; where memory would have to move, those on which waiting and
    /// moving together take the least.
    pub(crate) fn place(&self, client: &Client) -> Vec<Gpu> {
        let mut gpus: Vec<Gpu> = self.candidates(client).collect();
        let width = client.width as usize;
        if gpus.len() == width {
            return gpus; // who names just as many has them in that order
        }
        // Two members of a gang on one GPU could never hold it at the same time.
        let apart = gpus.iter().filter(|gpu| self.siblings(client, **gpu) == 0).count();
        if apart >= width {
            gpus.retain(|gpu| self.siblings(client, *gpu) == 0);
        }
        let moves = gpus.iter().any(|gpu| self.overflow(client, *gpu) > 0);
        gpus.sort_by_cached_key(|&gpu| {
            let cost = if moves { self.turn(client, gpu) } else { Duration::ZERO };
            (self.company(client, gpu), cost, self.load(gpu))
        });
        if width > 1 && !self.config.topology.distances.is_empty() {
            // As close as can be, unless waiting for those GPUs takes longer than closeness is worth.
            let turn = |gpu: &Gpu| (self.company(client, *gpu), self.turn(client, *gpu));
            let turns: Vec<(Company, Duration)> = gpus.iter().map(turn).collect();
            let mut soonest = turns.clone();
            soonest.sort_unstable();
            let (company, turn) = soonest[width - 1];
            let latest = (company, turn.saturating_add(self.worth_of_closeness()));
            let near = gpus.iter().zip(turns).filter(|(_, turn)| *turn <= latest);
            let near: Vec<Gpu> = near.map(|(gpu, _)| *gpu).collect();
            let rank = |gpu| {
                let own = self.company(client, gpu);
                soonest.partition_point(|(other, _)| *other < own)
            };
            gpus = self.close_together(&near, width, rank).into_vec();
        }
        gpus.truncate(width);
        gpus.sort();
        gpus
    }

    /// Bytes that would not fit on a GPU beside what the clients bound to it are going to have.
    fn overflow(&self, client: &Client, gpu: Gpu) -> u64 {
        let bound = self.gpus[gpu.index()].bound.iter().filter_map(|id| self.clients.get(id));
        let all = bound
            .fold(self.peak(client, gpu), |sum, other| sum.saturating_add(self.peak(other, gpu)));
        all.saturating_sub(self.config.gpus[gpu.index()].memory)
    }

    /// How long a client waits for its turn on a GPU when all who hold it or are bound to it want theirs, with what has to be moved
    /// out and in for it. A phase of which nothing is known counts as a quantum: no more than that is waited for.
    fn turn(&self, client: &Client, gpu: Gpu) -> Duration {
        let state = &self.gpus[gpu.index()];
        let visitors = state.holders.iter().filter(|holder| !state.bound.contains(holder));
        let users = state.bound.iter().chain(visitors).filter(|id| **id != client.id);
        let users = users.filter_map(|id| self.clients.get(id));
        let quantum = self.config.quantum;
        let phase = |other: &Client| other.estimator.estimate(&self.config.estimator);
        let waiting = users
            .map(|other| phase(other).map_or(quantum, |phase| phase.min(quantum)))
            .fold(Duration::ZERO, Duration::saturating_add);
        let rate = match (state.moved, Duration::from(state.switching).as_secs_f64()) {
            (moved @ 1.., took) if took > 0.0 => moved as f64 / took,
            _ => USUAL_RATE,
        };
        let moving = 2.0 * self.overflow(client, gpu) as f64 / rate;
        waiting.saturating_add(Duration::try_from_secs_f64(moving).unwrap_or(Duration::MAX))
    }

    /// Who of tenants with a guarantee is bound to a GPU already, for a client of such a tenant.
    fn company(&self, client: &Client, gpu: Gpu) -> Company {
        let guarantee = self.tenants.of(client.tenant).guarantee as usize;
        if guarantee == 0 {
            return Company::default();
        }
        let bound = |gpu: usize| self.gpus[gpu].bound.iter().filter_map(|id| self.clients.get(id));
        let is_fellow = |other: &Client| other.id != client.id && other.tenant == client.tenant;
        let used = (0..self.gpus.len()).filter(|gpu| bound(*gpu).any(is_fellow)).count();
        let fellows = bound(gpu.index()).filter(|other| is_fellow(other)).count();
        let others = bound(gpu.index()).filter(|other| {
            other.tenant != client.tenant && self.tenants.of(other.tenant).guarantee > 0
        });
        let others = others.count();
        Company { repeats: used < guarantee && fellows > 0, guaranteed: fellows + others, others }
    }

    /// How loaded a GPU is: clients that are bound to it or hold it, and those on GPUs that share its link, over which
    /// they would move their memory; time the bound ones have used it, room; the number breaks ties.
    fn load(&self, gpu: Gpu) -> (usize, usize, Span, u64, Gpu) {
        let state = &self.gpus[gpu.index()];
        let visitors = state.holders.iter().filter(|holder| !state.bound.contains(holder)).count();
        let on_link = self.link_mates(gpu).map(|mate| self.gpus[mate.index()].bound.len()).sum();
        (state.bound.len() + visitors, on_link, state.load, self.memory.wanted(gpu), gpu)
    }

    /// The other GPUs on the link of a GPU.
    fn link_mates(&self, gpu: Gpu) -> impl Iterator<Item = Gpu> {
        let links = &self.config.topology.links;
        let own = links.get(gpu.index());
        let others = (0..).map(Gpu).zip(links).filter(move |(other, _)| *other != gpu);
        others.filter(move |(_, link)| Some(*link) == own).map(|(other, _)| other)
    }

    /// True if memory is being moved over the link of a GPU for another one's holder.
    fn is_link_busy(&self, gpu: Gpu) -> bool {
        let holders = self.link_mates(gpu).flat_map(|mate| &self.gpus[mate.index()].holders);
        holders.into_iter().any(|holder| !self.lease(*holder).is_ready)
    }

    /// Among GPUs that a client could start on now, the lower the better: where it was last, where nothing is moved over
    /// the same link, where fewer hold and are bound.
    pub(crate) fn preference(&self, client: &Client, gpu: Gpu) -> (bool, bool, usize, usize, Gpu) {
        let state = &self.gpus[gpu.index()];
        let busy = self.is_link_busy(gpu);
        (!client.last.contains(&gpu), busy, state.holders.len(), state.bound.len(), gpu)
    }
}
