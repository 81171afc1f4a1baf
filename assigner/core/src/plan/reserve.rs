//! What is kept for a client that cannot start, and what is recalled for it at once.
//!
//! Owns: which GPUs come back first for it, and whether it can be promised a start. Does not own: whose turn it is (`plan`), what it may do
//! about a lease (`recall`).

use std::cmp::Reverse;

use super::Ahead;
use crate::event::Cause;
use crate::few::Notes;
use crate::gang::Member;
use crate::ids::{ClientId, Gpu};
use crate::order::{Excess, LaneKey};
use crate::recall::{Back, Claim, Claimant, NEVER, Outlook};
use crate::scheduler::{Reservation, Scheduler, Ticket};

impl Scheduler {
    /// Keeps GPUs for a client that cannot start: those that come back first. One that is limited takes its turn on
    /// what others of its tenant or queue hold, so much that it is within its limits then, and on nothing else: it could
    /// not start on it, and who had given way would take it again.
    pub(super) fn reserve(
        &mut self,
        who: &Claimant,
        ticket: Ticket,
        ahead: &Ahead,
        excess: Excess,
    ) -> Notes<Gpu> {
        let client = &self.clients[&who.client];
        let mut pool: Notes<Gpu> = self
            .candidates(client)
            .filter(|gpu| {
                self.gpus[gpu.index()].reserved.is_none()
                    && !self.is_stuck(*gpu)
                    && self.memory.could_fit(who.client, *gpu)
            })
            .collect();
        if client.bound.is_empty() && client.member.as_deref().is_some_and(Member::keeps) {
            pool.sort_by_cached_key(|gpu| {
                (self.outlook(who, *gpu, &[]), self.preference(client, *gpu))
            });
            pool = self.beside_siblings(who.client, &pool);
        }
        let kept = match pool.len() < client.width as usize {
            true => Notes::new(),
            false => self.soonest(who, ticket, pool, excess),
        };
        let gpus = kept.iter().map(|(gpu, _)| *gpu);
        if kept.is_empty() || !self.left_of(excess, who.lane, gpus, &[]).is_none() {
            let waiter = self.queue.get_mut(&ticket).expect("it was just walked over");
            if let Some(reservation) = &mut waiter.reservation {
                reservation.promised = None;
            }
            return Notes::new();
        }
        let first_in_line = excess.is_none()
            && !ahead.everything
            && self.candidates(client).all(|gpu| !ahead.gpus.contains(gpu));
        let outlook = kept.iter().map(|(_, outlook)| *outlook).reduce(Outlook::with);
        let outlook = outlook.expect("a client wants at least one GPU");
        let earlier = self.queue[&ticket].reservation;
        let before = earlier.and_then(|reservation| reservation.promised);
        let expects = || kept.iter().any(|(gpu, _)| self.expects_again(*gpu, who.lane));
        let is_sure = first_in_line && (before.is_some() || !expects());
        let promised = (is_sure && outlook.recalled < NEVER)
            .then(|| before.map_or(outlook.recalled, |before| before.min(outlook.recalled)));
        let reservation = Reservation {
            expected: promised.map_or(outlook.expected, |at| outlook.expected.min(at)),
            promised,
        };
        let waiter = self.queue.get_mut(&ticket).expect("it was just walked over");
        waiter.reservation = Some(reservation);
        waiter.kept_since = waiter.kept_since.min(self.now);
        waiter.entitled = who.entitled;
        let kept: Notes<Gpu> = kept.into_iter().map(|(gpu, _)| gpu).collect();
        for gpu in &kept {
            self.gpus[gpu.index()].reserved = Some(ticket);
        }
        if !matches!(outlook.back, Back::Later) {
            self.recall_now(who, &kept);
        }
        kept
    }

    /// True if who had to give a GPU back is about to ask again: by fair share it may be its turn before that of a lane. A
    /// program that was stopped between two kernels asks with the next one; who does not was done by chance.
    fn expects_again(&self, gpu: Gpu, lane: LaneKey) -> bool {
        let cut = self.gpus[gpu.index()].cut.and_then(|id| self.clients.get(&id));
        cut.is_some_and(|client| {
            client.level == lane.level
                && client.member.is_none()
                && client.waiting.is_none()
                && client.lease.is_none()
                && client.was_cut(self.now, self.config.quantum)
        })
    }

    /// Recalls what is in the way of a client that may have all of it at once.
    fn recall_now(&mut self, who: &Claimant, kept: &[Gpu]) {
        for (holder, cause) in self.takeable(who, kept) {
            self.recall_for(who.client, holder, cause);
            self.mark_waited_for(holder, Some(who.client));
        }
    }

    /// The leases in the way of a client that may have all of them recalled at once, and why, in the order of `claim`;
    /// none if one of them must be waited for.
    pub(crate) fn takeable(&self, who: &Claimant, kept: &[Gpu]) -> Notes<(ClientId, Cause)> {
        let mut recalls: Notes<(ClientId, Cause)> = Notes::new();
        if kept.iter().any(|gpu| !self.gpus[gpu.index()].claimed.is_empty()) {
            return recalls; // who is expected back cannot be recalled
        }
        let client = &self.clients[&who.client];
        let needed = kept.iter().filter(|gpu| !self.keeps_beside(client, **gpu));
        let taken = self.holders_of(kept);
        for holder in needed.flat_map(|gpu| &self.gpus[gpu.index()].holders) {
            let lease = self.lease(*holder);
            if lease.recalled.is_some() || recalls.iter().any(|(id, _)| id == holder) {
                continue;
            }
            if !lease.is_ready {
                return Notes::new(); // not in the middle of its page-in
            }
            match self.claim(who, *holder, &taken) {
                Claim::Now(cause) => recalls.push((*holder, cause)),
                // Its tenant would fall below its guarantee by what else is taken from it.
                Claim::AtQuantum | Claim::Never => return Notes::new(),
            }
        }
        recalls.sort_by_key(|(id, cause)| {
            (*cause != Cause::Promise, self.clients[id].width, self.lease(*id).epoch)
        });
        recalls
    }

    /// The GPUs of a pool that come back first, and when. Of those that come back about as soon, such as are close.
    fn soonest(
        &self,
        who: &Claimant,
        ticket: Ticket,
        mut pool: Notes<Gpu>,
        excess: Excess,
    ) -> Notes<(Gpu, Outlook)> {
        let client = &self.clients[&who.client];
        let width = client.width as usize;
        if !client.bound.is_empty() || pool.len() == width {
            let taken = self.holders_of(&pool);
            let all = pool.iter().map(|gpu| (*gpu, self.outlook(who, *gpu, &taken)));
            return all.collect();
        }
        let mut taken: Notes<ClientId> = Notes::new();
        if width == 1 && excess.is_none() {
            // The usual case: what comes back when decides, the rest only between equals.
            let beside = |gpu: Gpu| &self.gpus[gpu.index()].holders;
            let all = pool.iter().map(|gpu| (*gpu, self.outlook(who, *gpu, beside(*gpu))));
            let least = all.reduce(|best, other| {
                let before = |(gpu, _): &(Gpu, Outlook)| self.preference(client, *gpu);
                let ordered = other.1.cmp(&best.1).then_with(|| before(&other).cmp(&before(&best)));
                if ordered.is_lt() { other } else { best }
            });
            return least.into_iter().collect();
        }
        let mut chosen: Notes<Gpu> = Notes::new();
        let promised = self.queue[&ticket].reservation.and_then(|reservation| reservation.promised);
        let slack = self.worth_of_closeness();
        let mut excess = excess;
        while chosen.len() < width {
            let left = |gpu: Gpu| self.left_of(excess, who.lane, [gpu].into_iter(), &taken);
            let key = |gpu: Gpu| {
                let helps = Reverse(excess.helped_by(left(gpu)));
                (helps, self.outlook(who, gpu, &taken), self.preference(client, gpu))
            };
            let keys: Notes<_> = pool.iter().map(|gpu| key(*gpu)).collect();
            let best = *keys.iter().min().expect("the pool is as large as what is wanted");
            let about = |at: &usize| {
                let (helps, outlook, _) = keys[*at];
                keys[*at] == best || (helps == best.0 && outlook.is_about(&best.1, slack, promised))
            };
            let far = |gpu: Gpu| -> u32 {
                chosen.iter().map(|other| self.config.topology.distance(gpu, *other)).sum()
            };
            let near = (0..pool.len()).filter(about).min_by_key(|at| (far(pool[*at]), keys[*at]));
            let at = near.expect("the best one is as soon as itself");
            let gpu = pool.swap_remove(at);
            chosen.push(gpu);
            excess = left(gpu);
            self.take(&mut taken, gpu);
        }
        // One that alone could be taken may be protected by what else is.
        chosen.into_iter().map(|gpu| (gpu, self.outlook(who, gpu, &taken))).collect()
    }

    /// Those who hold GPUs, each once.
    fn holders_of(&self, gpus: &[Gpu]) -> Notes<ClientId> {
        let mut holders = Notes::new();
        for gpu in gpus {
            self.take(&mut holders, *gpu);
        }
        holders
    }

    /// Adds the holders of a GPU to those from whom something is taken: each lease once, however many GPUs it covers.
    fn take(&self, taken: &mut Notes<ClientId>, gpu: Gpu) {
        for holder in &self.gpus[gpu.index()].holders {
            if !taken.contains(holder) {
                taken.push(*holder);
            }
        }
    }

    /// What is left of an excess when the holders of GPUs have given back; those of `taken` count already.
    fn left_of(
        &self,
        excess: Excess,
        lane: LaneKey,
        gpus: impl Iterator<Item = Gpu>,
        taken: &[ClientId],
    ) -> Excess {
        if excess.is_none() {
            return excess; // the usual case
        }
        let mut counted: Notes<ClientId> = Notes::from_slice(taken);
        let mut left = excess;
        for holder in gpus.flat_map(|gpu| &self.gpus[gpu.index()].holders) {
            if !counted.contains(holder) {
                counted.push(*holder);
                let holder = &self.clients[holder];
                let counts = |shared: bool| if shared { holder.width } else { 0 };
                left = left.without(
                    counts(holder.tenant == lane.tenant),
                    counts(holder.queue == lane.queue),
                );
            }
        }
        left
    }
}
