//! Whether the members of a gang can have what they need at the same time: GPUs, and their share of a limit.
//!
//! Owns: the answer, and that who is in the way under a limit makes place. Does not own: the rounds.

use super::*;
use crate::few::Notes;

impl Scheduler {
    /// Of GPUs in the order of preference, those for a member that is not bound: the first that leave its gang's other
    /// members theirs. One that took the GPU of a bound one would keep its gang from starting, again and again.
    pub(crate) fn beside_siblings(&self, id: ClientId, pool: &[Gpu]) -> Notes<Gpu> {
        let client = &self.clients[&id];
        let mut chosen = Notes::new();
        for gpu in pool {
            if chosen.len() == client.width as usize {
                break;
            }
            chosen.push(*gpu);
            if !self.leaves_room(client, &chosen) {
                chosen.pop();
            }
        }
        // If there is none now, it waits for what it could use like everybody else.
        if chosen.len() < client.width as usize { Notes::from_slice(pool) } else { chosen }
    }

    /// True if all members of a client's gang for which nothing is kept yet can have GPUs beside these.
    fn leaves_room(&self, client: &Client, taken: &[Gpu]) -> bool {
        let Some(member) = &client.member else { return true };
        let members = self.members_of(&member.gang);
        // One that has just gone may not have been struck out yet.
        let others = members.iter().filter_map(|id| self.clients.get(id));
        let others = || others.clone().filter(|it| it.id != client.id);
        let kept_for = |gpu: &Gpu| self.gpus[gpu.index()].reserved;
        let is_siblings = |gpu: &Gpu| {
            kept_for(gpu).is_some_and(|ticket| others().any(|it| it.waiting == Some(ticket)))
        };
        let has_some = |it: &Client| {
            self.candidates(it).any(|gpu| it.waiting.is_some() && kept_for(&gpu) == it.waiting)
        };
        let lacking = others().filter(|it| !has_some(it));
        let wishes: Vec<(BTreeSet<Gpu>, u32)> = lacking
            .map(|it| {
                let free = |gpu: &Gpu| !taken.contains(gpu) && !is_siblings(gpu);
                (self.candidates(it).filter(free).collect(), it.width)
            })
            .collect();
        let each = wishes.iter().flat_map(|(gpus, width)| vec![gpus; *width as usize]);
        let each: Vec<&BTreeSet<Gpu>> = each.collect();
        placed(&each) == each.len()
    }

    /// True if all GPUs are kept for members that their gang needs here.
    pub(super) fn can_have(&self, members: &[ClientId], had: Had) -> bool {
        members.iter().all(|id| {
            let client = &self.clients[id];
            let Some(ticket) = client.waiting else { return false };
            let is_there = |gpu: &Gpu| {
                let state = &self.gpus[gpu.index()];
                let lent = |holder: &ClientId| self.lease(*holder).passed.contains(&ticket);
                let has = self.is_free(*gpu, client)
                    || had == Had::OrLent
                        && state.claimed.is_empty()
                        && state.holders.iter().all(lent);
                state.reserved == Some(ticket) && has
            };
            self.candidates(client).filter(is_there).count() == client.width as usize
        })
    }

    /// Tenants and queues of members that have limits: GPUs that would be held beyond them if all members held theirs.
    pub(super) fn gang_excess(&self, members: &[ClientId]) -> Vec<(Bounded, u32)> {
        let mut wanted: Vec<(Bounded, u32)> = Vec::new();
        for client in members.iter().map(|id| &self.clients[id]) {
            for bounded in [Bounded::Tenant(client.tenant), Bounded::Queue(client.queue)] {
                match wanted.iter_mut().find(|(it, _)| *it == bounded) {
                    Some((_, width)) => *width += client.width,
                    None => wanted.push((bounded, client.width)),
                }
            }
        }
        let excess = wanted.into_iter().filter_map(|(bounded, wanted)| {
            let (held, most) = match bounded {
                Bounded::Tenant(id) => (self.tenants.of(id).held, self.tenants.of(id).limit?),
                Bounded::Queue(id) => (self.queues.of(id).held, self.queues.of(id).max_gpus?),
            };
            Some((bounded, (held + wanted).saturating_sub(most)))
        });
        excess.collect()
    }

    /// All GPUs are there for gangs, but limits are reached by others: they give way as they would have to for one request
    /// under the same limit. True if something has to be planned again for it.
    pub(super) fn press_for_gangs(&mut self) -> bool {
        let open = self.gangs.open.iter().filter(|(_, open)| **open == Open::Kept);
        let open: Vec<GangName> = open.map(|(name, _)| name.clone()).collect();
        let mut pressing = Vec::new();
        for name in open {
            let members = self.members_of(&name);
            if !self.can_have(&members, Had::Free) {
                continue;
            }
            for (bounded, excess) in self.gang_excess(&members).into_iter().filter(|it| it.1 > 0) {
                // Of the members that the limit is about: by theirs the others may have them recalled again.
                let concerned = members.iter().filter(|id| bounded.holds(&self.clients[id]));
                let Some(&first) = concerned.max_by_key(|id| self.clients[id].level) else {
                    continue;
                };
                pressing.extend(self.clients[&first].waiting.map(|ticket| (bounded, ticket)));
                self.make_room(first, bounded, excess);
            }
        }
        let is_new = pressing != self.gangs.pressing;
        self.gangs.pressing = pressing;
        self.dirty.all |= is_new;
        is_new
    }

    /// Those who hold under a limit of a member give way to it at once if it may have that, the latest first.
    fn make_room(&mut self, member: ClientId, bounded: Bounded, excess: u32) {
        let who = Claimant { client: member, lane: self.clients[&member].lane(), entitled: false };
        let mut excess = excess;
        let mut holders = Vec::new();
        for (id, client) in self.clients.iter() {
            let Some(lease) = client.lease.as_ref().filter(|_| bounded.holds(client)) else {
                continue;
            };
            if lease.recalled.is_some() {
                excess = excess.saturating_sub(client.width);
            } else {
                holders.push((lease.epoch, *id, client.width));
            }
        }
        holders.sort_unstable_by_key(|(epoch, ..)| *epoch);
        while let Some((_, id, width)) = holders.pop().filter(|_| excess > 0) {
            // What has been taken before from its tenant may protect it now.
            if let Claim::Now(cause) = self.claim(&who, id, &[]) {
                excess = excess.saturating_sub(width);
                self.recall_for(member, id, cause);
            }
        }
    }

    /// The members of gangs that wait for what the tenant or the queue of a holder has.
    pub(crate) fn pressing_gangs(&self, holder: &Client) -> impl Iterator<Item = Ticket> {
        let pressing = self.gangs.pressing.iter();
        pressing.filter(|(bounded, _)| bounded.holds(holder)).map(|(_, ticket)| *ticket)
    }
}

/// What can have a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bounded {
    Tenant(TenantId),
    Queue(QueueId),
}

impl Bounded {
    fn holds(self, client: &Client) -> bool {
        match self {
            Bounded::Tenant(tenant) => client.tenant == tenant,
            Bounded::Queue(queue) => client.queue == queue,
        }
    }
}

/// What of a gang's GPUs counts as there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Had {
    Free,
    OrLent,
}
