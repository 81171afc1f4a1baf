//! Who gets room on the GPU, and whose paged memory is moved away for it.
//!
//! ```text
//!  room of a GPU that is free goes
//!    1. to waiting requests of fixed memory that are admissible      (saved until it suffices)
//!    2. to holders, up to their claims
//!    3. when they are ready, to the next in turn                     (prefetch)
//!  but for the headroom, which is for what drivers take unasked
//!  what 1 and 2 still miss, and what drivers took of the headroom, is asked back, counting what is on its way, from clients without a lease:
//!       who does not wait for this GPU, least recently used first ─► who waits, last in turn first
//!  what 3 misses is asked back from those behind the next in turn alone
//!  what only other holders could give makes their leases contended
//! ```
//!
//! A holder is never asked, and what it was asked for before its turn came it may keep (`Stay`). A client is never asked in
//! favour of one behind it in the queue. Who neither holds the GPU nor is next has its credit withdrawn as soon as somebody
//! else's page-in needs the link: how late a promise can be depends on that. A holder that is ready and claims more has nothing
//! to copy in, for what is new has no content: nobody's credit is withdrawn for that, nor for what it left unused of it.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::Memory;
use super::ledger::{Account, Anchor};
use crate::event::{Action, Obstacle, RoomVerdict};
use crate::gpu_set::GpuSet;
use crate::ids::{ClientId, Gpu, Time};
use crate::order::Given;
use crate::scheduler::{Scheduler, Ticket};

/// When a client's memory may be asked back: the lower the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// It does not wait for this GPU; by order of use.
    Idle(u64),
    /// It waits; the last in the queue first.
    Waiting(Reverse<usize>),
    /// It is next.
    Next,
}

impl Scheduler {
    /// Does what follows from all changes of memory and of leases.
    pub(crate) fn settle_memory(&mut self) {
        while let Some(gpu) = self.memory.dirty.pop_first() {
            if self.memory.waiting(gpu) > 0 || self.memory.total(gpu).claimed > 0 {
                self.settle_gpu(gpu);
            } else if !self.memory.ledger(gpu).pressing.is_empty() {
                self.press(gpu, Default::default());
            }
            let clients = &self.clients;
            let bound = |client| clients.get(&client).map_or(Vec::new(), |it| it.bound.to_vec());
            let told = self.memory.settle_arenas(gpu, bound);
            self.actions.extend(told);
            self.memory.retire(gpu);
        }
    }

    fn settle_gpu(&mut self, gpu: Gpu) {
        let mut answers = self.memory.settle_requests(gpu, self.now);
        if answers.iter().any(|answer| answer.verdict == RoomVerdict::Granted) {
            self.replan_memory(gpu);
        }
        answers.extend(self.memory.break_deadlocks(self.now));
        self.answer(answers);
        let due = match self.memory.waiting(gpu) {
            0 => 0,
            _ => self.memory.due(gpu, self.now),
        };
        if !self.memory.ledger(gpu).settling {
            if due == 0 {
                self.let_stay(gpu);
            }
            let lack = self.credit_holders(gpu, due);
            let missing = self.ask_back(gpu, due + lack, None);
            if self.is_paging_in(gpu) {
                self.withdraw_credit(gpu, None);
            } else if due + lack == 0 {
                self.prefetch(gpu);
            }
            let pressing = match missing {
                0 => Default::default(),
                _ => self.lacking(gpu, due),
            };
            self.press(gpu, pressing);
        }
        if self.memory.waiting(gpu) > 0 {
            self.tell_waiting(gpu, due);
        }
    }

    /// What a holder was asked for before its turn came stays where it is: it would only have to come back.
    fn let_stay(&mut self, gpu: Gpu) {
        for at in 0..self.gpus[gpu.index()].holders.len() {
            let client = self.gpus[gpu.index()].holders[at];
            let ledger = &mut self.memory.gpus[gpu.index()];
            let asked = ledger.account(client).is_some_and(|account| {
                account.evicting > 0 && !account.anchors.contains(Anchor::Away)
            });
            if asked {
                ledger.change(client, |account| account.evicting = 0);
                self.actions.push_back(Action::Stay { client, gpu });
            }
        }
    }

    /// Credits holders from what is free and not due to others, in order of their leases; what
    /// they lack after that.
    fn credit_holders(&mut self, gpu: Gpu, due: u64) -> u64 {
        let mut lacking = 0;
        for at in 0..self.gpus[gpu.index()].holders.len() {
            let holder = self.gpus[gpu.index()].holders[at];
            let free = self.memory.ledger(gpu).free().saturating_sub(due);
            lacking += self.credit(holder, gpu, free);
        }
        lacking
    }

    /// Credits a client with what it lacks, `most` at most; what it lacks after that.
    fn credit(&mut self, client: ClientId, gpu: Gpu, most: u64) -> u64 {
        let lack = self.memory.ledger(gpu).account(client).map_or(0, Account::lack);
        let bytes = lack.min(most);
        if bytes > 0 {
            self.memory.gpus[gpu.index()].change(client, |account| account.resident += bytes);
            self.actions.push_back(Action::Credit { client, gpu, bytes });
            let is_ready = self.clients[&client].lease.as_ref().is_some_and(|it| it.is_ready);
            if !is_ready {
                self.memory.gpus[gpu.index()].paging.insert(client);
            }
            let state = self.clients.get_mut(&client).expect("accounts belong to clients");
            if let Some(lease) = &mut state.lease {
                lease.progress = self.now;
            }
        }
        lack - bytes
    }

    /// Has `wanted` bytes moved away, less what is free or on its way; what cannot be had so. With
    /// `next`, only from those behind it.
    fn ask_back(&mut self, gpu: Gpu, wanted: u64, next: Option<ClientId>) -> u64 {
        let ledger = self.memory.ledger(gpu);
        let wanted = wanted.saturating_add(ledger.overdraft());
        let mut missing = wanted.saturating_sub(ledger.free()).saturating_sub(ledger.sums().coming);
        if missing == 0 {
            return 0;
        }
        for client in self.victims(gpu, next) {
            let bytes = self.memory.ask(client, gpu, missing, self.now);
            missing -= bytes;
            self.actions.push_back(Action::Evict { client, gpu, bytes });
            if missing == 0 {
                break;
            }
        }
        missing
    }

    /// Who can be asked for memory, in order; with `next`, only those behind it.
    fn victims(&self, gpu: Gpu, next: Option<ClientId>) -> Vec<ClientId> {
        let queue = self.queue_on(gpu);
        let first = self.next_in_turn(gpu);
        let place = |client: ClientId| queue.iter().position(|other| *other == client);
        let limit = next.and_then(place);
        let turn = |client: ClientId, account: &Account| match place(client) {
            _ if Some(client) == first => Turn::Next,
            Some(place) => Turn::Waiting(Reverse(place)),
            None => Turn::Idle(account.used),
        };
        let state = &self.gpus[gpu.index()];
        let accounts = self.memory.ledger(gpu).accounts();
        let mut victims: Vec<(Turn, ClientId)> = accounts
            .filter(|(client, account)| account.movable() > 0 && !state.holders.contains(client))
            .map(|(client, account)| (turn(client, account), client))
            .filter(|(turn, _)| match (turn, limit) {
                (_, None) | (Turn::Idle(_), Some(_)) => true,
                (Turn::Waiting(Reverse(place)), Some(limit)) => *place > limit,
                (Turn::Next, Some(_)) => false,
            })
            .collect();
        victims.sort_unstable();
        victims.into_iter().map(|(_, client)| client).collect()
    }

    /// Who is granted `gpu` next, as far as anybody knows.
    pub fn next_in_turn(&self, gpu: Gpu) -> Option<ClientId> {
        let state = &self.gpus[gpu.index()];
        let reserved = state.reserved.filter(|ticket| state.waiting.contains(ticket));
        if let Some(ticket) = reserved {
            return Some(self.queue[&ticket].client);
        }
        let fits = |client: &ClientId| self.memory.could_fit(*client, gpu);
        self.queue_on(gpu).into_iter().find(fits)
    }

    /// Who waits for `gpu` and is bound to it, in the order in which they come to it. Those whose gang
    /// is not ready come last.
    fn queue_on(&self, gpu: Gpu) -> Vec<ClientId> {
        let state = &self.gpus[gpu.index()];
        if state.waiting.is_empty() {
            return Vec::new();
        }
        let mut walk = self.walk(std::iter::once(gpu));
        let next = || self.next_of(&mut walk, &Given::default());
        let ready: Vec<Ticket> = std::iter::from_fn(next)
            .map(|next| next.ticket)
            .filter(|ticket| state.waiting.contains(ticket))
            .collect();
        let rest = state.waiting.iter().filter(|ticket| !ready.contains(ticket));
        ready.iter().chain(rest).map(|ticket| self.queue[ticket].client).collect()
    }

    /// Whether the memory of somebody who holds a GPU is still coming there.
    fn is_paging_in(&self, gpu: Gpu) -> bool {
        let mut holders = self.gpus[gpu.index()].holders.iter();
        holders.any(|holder| !self.lease(*holder).is_ready)
    }

    /// Ends the page-ins of all who neither hold a GPU nor are `next` there: they would slow down those whose turn it is,
    /// over the same link.
    fn withdraw_credit(&mut self, gpu: Gpu, next: Option<ClientId>) {
        let ledger = self.memory.ledger(gpu);
        let holders = &self.gpus[gpu.index()].holders;
        let can_hear = |client: &ClientId| {
            ledger.account(*client).is_some_and(|account| !account.anchors.contains(Anchor::Away))
        };
        let ends = |client: &ClientId| {
            !holders.contains(client) && Some(*client) != next && can_hear(client)
        };
        let ended: Vec<ClientId> = ledger.paging.iter().copied().filter(ends).collect();
        for client in ended {
            self.memory.gpus[gpu.index()].paging.remove(&client);
            self.actions.push_back(Action::Withdraw { client, gpu });
        }
    }

    /// Lets the next in turn have what nobody else needs before it, once the page-ins of those who hold the GPU are over.
    fn prefetch(&mut self, gpu: Gpu) {
        let Some(next) = self.next_in_turn(gpu) else { return };
        self.withdraw_credit(gpu, Some(next));
        let free = self.memory.ledger(gpu).free();
        let lack = self.credit(next, gpu, free);
        if lack > 0 {
            self.ask_back(gpu, lack, Some(next));
        }
    }

    /// Who lacks memory on `gpu`: holders, and who waits for fixed memory that is due.
    fn lacking(&self, gpu: Gpu, due: u64) -> BTreeSet<ClientId> {
        let ledger = self.memory.ledger(gpu);
        let lacks =
            |client: &&ClientId| ledger.account(**client).is_some_and(|account| account.lack() > 0);
        let holders = self.gpus[gpu.index()].holders.iter().filter(lacks).copied();
        let requests = ledger.waiting.iter().filter(|_| due > 0).map(|request| request.client);
        holders.chain(requests).collect()
    }

    /// Notes who needs what other holders have; their leases are contended from then on.
    fn press(&mut self, gpu: Gpu, pressing: BTreeSet<ClientId>) {
        let ledger = &mut self.memory.gpus[gpu.index()];
        if ledger.pressing != pressing {
            ledger.pressing = pressing;
            self.tell_holders(&GpuSet::from_iter([gpu]));
        }
    }

    /// Tells who waits for fixed memory what it waits for, once.
    fn tell_waiting(&mut self, gpu: Gpu, due: u64) {
        let ledger = self.memory.ledger(gpu);
        let mut holders: Vec<(u64, u64, ClientId)> = ledger
            .accounts()
            .map(|(client, account)| (account.fixed + account.resident, account.used, client))
            .filter(|(bytes, ..)| *bytes > 0)
            .collect();
        holders.sort_unstable_by_key(|(bytes, used, _)| (Reverse(*bytes), *used));
        let holders: Vec<(ClientId, u64)> =
            holders.into_iter().map(|(bytes, _, client)| (client, bytes)).collect();
        let obstacle = if ledger.settling {
            Obstacle::Restart
        } else if due > 0 && ledger.pressing.is_empty() {
            Obstacle::Moving
        } else if due > 0 {
            Obstacle::Lease
        } else if ledger.largest_claim() > 0 {
            Obstacle::Claims
        } else {
            Obstacle::Fixed
        };
        let free = ledger.free();
        let mut wanted = 0u64;
        for request in &mut self.memory.gpus[gpu.index()].waiting {
            wanted = wanted.saturating_add(request.bytes);
            if !std::mem::replace(&mut request.told, true) {
                let missing = wanted.saturating_sub(free);
                let verdict = RoomVerdict::Waiting { missing, holders: holders.clone(), obstacle };
                let (client, seq) = (request.client, request.seq);
                self.actions.push_back(Action::Room { client, seq, verdict });
            }
        }
    }

    /// Passes over clients that were asked for memory and do not move any, and tells who waits.
    pub(crate) fn fire_lateness(&mut self) {
        for (client, gpu, bytes) in self.memory.pop_late(self.now) {
            self.dirty.gpus.insert(gpu);
            self.tell_blocked(client, gpu, bytes);
        }
    }

    /// Tells who waits for memory that `by` does not move so many bytes: who lacks them, and who is first in the queue.
    pub(super) fn tell_blocked(&mut self, by: ClientId, gpu: Gpu, bytes: u64) {
        let due = self.memory.due(gpu, self.now);
        let mut told: Vec<ClientId> = self.lacking(gpu, due).into_iter().collect();
        let next = self.queue_on(gpu).into_iter().find(|next| *next != by);
        told.extend(next.filter(|next| !told.contains(next)));
        let order = |client: &ClientId| {
            self.memory.ledger(gpu).account(*client).map_or(0, |account| account.used)
        };
        told.sort_by_key(order);
        told.retain(|waiting| *waiting != by);
        let tell = |waiting| Action::Blocked { client: waiting, gpu, by, bytes };
        self.actions.extend(told.into_iter().map(tell));
    }
}

impl Memory {
    /// Asks a client for up to `bytes`; how many it was asked for.
    fn ask(&mut self, client: ClientId, gpu: Gpu, bytes: u64, now: Time) -> u64 {
        let asked = self.gpus[gpu.index()].change(client, |account| {
            let asked = bytes.min(account.movable());
            if account.evicting == 0 {
                account.progress = now;
            }
            account.evicting += asked;
            asked
        });
        self.watch(client, gpu);
        asked.expect("victims have accounts")
    }

    /// Sees to it that an eviction under way is missed when nothing comes of it.
    pub(super) fn watch(&mut self, client: ClientId, gpu: Gpu) {
        let late = self.late;
        let entry = self.gpus[gpu.index()].change(client, |account| {
            let is_new = account.evicting > 0 && !account.watched;
            account.watched |= is_new;
            is_new.then(|| (account.progress.after(late), gpu, account.used, client))
        });
        self.lateness.extend(entry.flatten());
    }

    /// Nothing is to be decided on a GPU on which nobody has or wants memory.
    fn retire(&mut self, gpu: Gpu) {
        let ledger = self.ledger(gpu);
        let is_idle = ledger.is_idle() && self.arenas.is_empty();
        if is_idle && !self.dirty.contains(gpu) {
            self.in_use.remove(gpu);
        }
    }

    /// When the next eviction is late, unless it makes progress.
    pub(crate) fn late_at(&self) -> Option<Time> {
        self.lateness.first().map(|(at, ..)| *at)
    }

    /// Clients whose evictions are late from now on, with what is missing of them.
    fn pop_late(&mut self, now: Time) -> Vec<(ClientId, Gpu, u64)> {
        let mut late = Vec::new();
        while let Some(&(at, gpu, _, client)) = self.lateness.first() {
            if at > now {
                break;
            }
            self.lateness.pop_first();
            let patience = self.late;
            let evicting = self.gpus[gpu.index()].change(client, |account| {
                account.watched = false;
                let is_late = account.evicting > 0 && account.progress.after(patience) <= now;
                is_late.then(|| {
                    account.anchors.insert(Anchor::Late);
                    account.evicting
                })
            });
            match evicting.flatten() {
                Some(bytes) => {
                    late.push((client, gpu, bytes));
                    self.note(gpu);
                }
                None => self.watch(client, gpu),
            }
        }
        late
    }
}
