//! Paged memory in the world: what clients claim, get credited and move away, and who may be asked to.

use std::collections::{BTreeMap, BTreeSet};

use acb_core::*;

use crate::history::{Deed, SLOTS};
use crate::world::World;

/// A client's paged memory, as it sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) gpus: BTreeMap<Gpu, Paged>,
    /// Order of its latest use of a GPU.
    pub(crate) used: u64,
    /// Its connection is lost.
    pub(crate) deaf: bool,
    pub(crate) arena: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Paged {
    pub(crate) claimed: u64,
    pub(crate) resident: u64,
    /// Asked for, and not yet moved.
    pub(crate) owed: u64,
    pub(crate) pinned: bool,
    /// Credit that is not used is to go back.
    pub(crate) withdrawn: bool,
    /// Could not be moved, until the next lease.
    pub(crate) failed: bool,
}

impl Paged {
    fn lacks(&self) -> bool {
        self.resident < self.claimed
    }
}

impl Memory {
    pub(crate) fn of(&self, gpu: Gpu) -> Paged {
        self.gpus.get(&gpu).copied().unwrap_or_default()
    }

    /// What was asked and told is forgotten on both sides.
    pub(crate) fn forget_asked(&mut self) {
        for paged in self.gpus.values_mut() {
            paged.owed = 0;
        }
        self.arena = 0;
    }
}

impl World {
    pub(crate) fn deed(&mut self, slot: usize, deed: &Deed) {
        let client = self.id(slot);
        if self.clients[slot].memory.deaf {
            if matches!(deed, Deed::Back | Deed::Away) {
                self.clients[slot].memory.deaf = false;
                self.back(slot);
            }
            return;
        }
        match *deed {
            Deed::Claim { gpu, bytes } => {
                let seq = self.clients[slot].next_seq;
                self.clients[slot].next_seq += 1;
                self.claims.insert((slot, seq), (Gpu(gpu), bytes));
                self.tell(Event::Claim { client, seq, gpu: Gpu(gpu), bytes });
                assert!(!self.claims.contains_key(&(slot, seq)), "a claim is answered at once");
            }
            Deed::Unclaim { gpu, bytes } => self.unclaim(slot, Gpu(gpu), bytes),
            Deed::Evict { gpu, bytes } => self.evict(slot, Gpu(gpu), bytes, Rest::Comes),
            Deed::Fail { gpu } => self.evict(slot, Gpu(gpu), 0, Rest::Stays),
            Deed::Ready => {
                let lease = self.clients[slot].lease.as_ref();
                if let Some(epoch) = lease.map(|lease| lease.epoch).filter(|_| !self.lacks(slot)) {
                    self.tell(Event::Ready { client, epoch });
                }
            }
            Deed::Short { gpu, bytes } => self.short(slot, Gpu(gpu), bytes),
            Deed::Pin { gpu, movable } => {
                let gpu = Gpu(gpu);
                if self.clients[slot].bound.contains(&gpu) {
                    let paged = self.clients[slot].memory.gpus.entry(gpu).or_default();
                    paged.pinned = !movable;
                    paged.owed = if movable { paged.owed } else { 0 };
                }
                self.tell(Event::Pinned { client, gpu, movable });
            }
            Deed::Away => {
                self.clients[slot].waiting = false;
                self.clients[slot].memory.deaf = true;
                self.clients[slot].memory.forget_asked();
                self.tell(Event::Away { client });
            }
            Deed::Back => self.back(slot),
        }
    }

    /// It has heard all that it was told of its lease, and is told again.
    fn back(&mut self, slot: usize) {
        let lease = self.clients[slot].lease.as_ref().map(|lease| lease.epoch);
        self.says_again = true;
        self.tell(Event::Back { client: self.id(slot), lease });
        self.says_again = false;
    }

    pub(crate) fn unclaim(&mut self, slot: usize, gpu: Gpu, bytes: u64) {
        let Some(paged) = self.clients[slot].memory.gpus.get_mut(&gpu) else { return };
        // How much credit is unused is the client's to know: any part of what is resident.
        let (bytes, resident) = match std::mem::take(&mut paged.withdrawn) {
            true => (0, bytes.min(paged.resident)),
            false => {
                let bytes = bytes.min(paged.claimed);
                // What is on the host is freed first.
                (bytes, paged.resident.saturating_sub(paged.claimed - bytes))
            }
        };
        paged.claimed -= bytes;
        paged.resident -= resident;
        paged.owed = paged.owed.min(paged.resident);
        let client = self.id(slot);
        self.tell(Event::ClaimReturn { client, gpu, bytes, resident });
    }

    /// Credit that cannot be used comes back: what is lacking there has somebody who is not known.
    fn short(&mut self, slot: usize, gpu: Gpu, bytes: u64) {
        let client = &mut self.clients[slot];
        let may_come = client.lease.is_some() || client.waiting;
        let Some(paged) = client.memory.gpus.get_mut(&gpu).filter(|_| may_come) else { return };
        let bytes = bytes.min(paged.resident);
        paged.resident -= bytes;
        paged.owed = paged.owed.min(paged.resident);
        *self.outside.entry(gpu).or_insert(0) += bytes;
        self.tell(Event::Short { client: self.id(slot), gpu, bytes });
    }

    /// The driver says what is in use: what is known, what was not found and is not free yet, and what nobody has heard of.
    pub(crate) fn measured(&mut self, gpu: Gpu, freed: u64, new: u64) {
        let snapshot = self.scheduler.snapshot();
        let Some(known) = snapshot.gpus.iter().find(|other| other.gpu == gpu) else {
            return self.tell(Event::Used { gpu, bytes: new });
        };
        let outside = self.outside.entry(gpu).or_insert(0);
        *outside = outside.saturating_sub(freed);
        let bytes = known.room + *outside + new;
        self.tell(Event::Used { gpu, bytes });
    }

    pub(crate) fn evict(&mut self, slot: usize, gpu: Gpu, most: u64, rest: Rest) {
        let Some(paged) = self.clients[slot].memory.gpus.get_mut(&gpu) else { return };
        // Who has failed tries again by itself.
        let movable = if paged.failed { paged.resident } else { paged.owed };
        if movable == 0 {
            return;
        }
        let bytes = most.min(movable);
        paged.resident -= bytes;
        paged.owed = paged.owed.saturating_sub(bytes);
        paged.failed &= bytes == 0;
        if rest == Rest::Stays {
            (paged.owed, paged.failed) = (0, true);
        }
        let client = self.id(slot);
        self.tell(Event::Evicted { client, gpu, bytes, rest });
    }

    /// Whether something of a client is not where it may be.
    pub(crate) fn lacks(&self, slot: usize) -> bool {
        self.clients[slot].memory.gpus.values().any(Paged::lacks)
    }

    pub(crate) fn answer_claim(&mut self, slot: usize, seq: u64, verdict: &RoomVerdict) -> bool {
        let Some((gpu, bytes)) = self.claims.remove(&(slot, seq)) else { return false };
        self.log.push(format!("{slot} claim {seq} {verdict:?}"));
        let client = &mut self.clients[slot];
        let own = client.memory.of(gpu).claimed + client.room.get(&gpu).copied().unwrap_or(0);
        let limit = client.who.limit.unwrap_or(u64::MAX);
        let most = 100 - self.setup.headroom;
        match verdict {
            RoomVerdict::Granted => {
                assert!(own + bytes <= limit.min(most), "within the limit and the GPU");
                client.memory.gpus.entry(gpu).or_default().claimed += bytes;
            }
            RoomVerdict::Denied(RoomDenied::NotBound) => assert!(!client.bound.contains(&gpu)),
            RoomVerdict::Denied(RoomDenied::ExceedsLimit { .. }) => assert!(own + bytes > limit),
            RoomVerdict::Denied(RoomDenied::ExceedsGpu { .. }) => assert!(own + bytes > most),
            RoomVerdict::Denied(RoomDenied::OthersFixed { others, .. }) => {
                assert!(*others > 0 && own + bytes + others > most);
            }
            RoomVerdict::Denied(RoomDenied::HostBudget { needed, .. }) => {
                assert!(*needed > self.setup.budget.expect("there is one"));
            }
            other => panic!("no answer to a claim: {other:?}"),
        }
        true
    }

    pub(crate) fn obey_memory(&mut self, action: Action) {
        match action {
            Action::Evict { client, gpu, bytes } => {
                let slot = self.slot(client);
                self.log.push(format!("{slot} evict {gpu} {bytes}"));
                let client = &mut self.clients[slot];
                let holds = client.lease.as_ref().is_some_and(|lease| lease.gpus.contains(&gpu));
                assert!(!holds, "a holder is left alone");
                assert!(!client.memory.deaf && !client.away, "only who can hear is asked");
                let paged = client.memory.gpus.get_mut(&gpu).expect("it has memory there");
                assert!(!paged.pinned && !paged.failed, "only what can be moved is asked for");
                paged.owed += bytes;
                assert!(bytes > 0 && paged.owed <= paged.resident, "no more than is there");
                self.evictions.push((slot, gpu));
            }
            Action::Credit { client, gpu, bytes } => {
                let slot = self.slot(client);
                self.log.push(format!("{slot} credit {gpu} {bytes}"));
                let client = &mut self.clients[slot];
                assert!(!client.memory.deaf && !client.away, "only who can hear is credited");
                assert!(client.lease.is_some() || client.waiting, "only who computes, or will");
                let paged = client.memory.gpus.get_mut(&gpu).expect("it has claims there");
                paged.resident += bytes;
                assert!(bytes > 0 && paged.resident <= paged.claimed, "no more than is claimed");
            }
            Action::Withdraw { client, gpu } => {
                let slot = self.slot(client);
                self.log.push(format!("{slot} withdraw {gpu}"));
                let client = &mut self.clients[slot];
                let holds = client.lease.as_ref().is_some_and(|lease| lease.gpus.contains(&gpu));
                assert!(!holds, "a holder's page-in goes on");
                assert!(!client.memory.deaf && !client.away, "only who can hear is told");
                let paged = client.memory.gpus.get_mut(&gpu).expect("it had credit there");
                paged.withdrawn = true;
            }
            Action::Stay { client, gpu } => {
                let slot = self.slot(client);
                self.log.push(format!("{slot} stay {gpu}"));
                let client = &mut self.clients[slot];
                let holds = client.lease.as_ref().is_some_and(|lease| lease.gpus.contains(&gpu));
                assert!(holds, "only whose turn it is keeps what was asked for");
                assert!(!client.memory.deaf && !client.away, "only who can hear is told");
                let paged = client.memory.gpus.get_mut(&gpu).expect("it has memory there");
                assert!(paged.owed > 0, "it was asked");
                paged.owed = 0;
            }
            Action::Arena { client, bytes } => {
                let slot = self.slot(client);
                self.log.push(format!("{slot} arena {bytes}"));
                self.clients[slot].memory.arena = bytes;
            }
            Action::Blocked { client, gpu, by, bytes } => {
                let (slot, by) = (self.slot(client), self.slot(by));
                self.log.push(format!("{slot} blocked on {gpu} by {by}: {bytes}"));
                let memory = self.clients[by].memory.of(gpu);
                assert!(memory.failed || memory.owed >= bytes, "it was asked");
            }
            other => panic!("no action of memory: {other:?}"),
        }
    }

    /// Whether it was right to ask those who were asked by the latest event.
    pub(crate) fn judge_evictions(&mut self) {
        let evictions = std::mem::take(&mut self.evictions);
        if evictions.is_empty() {
            return;
        }
        let snapshot = self.scheduler.snapshot();
        let place = |slot: usize| {
            let client = self.id(slot);
            snapshot.clients.iter().find(|other| other.client == client)?.position
        };
        let here = |slot: &usize| {
            let client = &self.clients[*slot];
            client.present && !client.away && !client.memory.deaf
        };
        for (slot, gpu) in evictions {
            let lacking = |other: &usize| self.clients[*other].memory.of(gpu).lacks();
            let holds = |other: &usize| {
                let lease = self.clients[*other].lease.as_ref();
                lease.is_some_and(|lease| lease.gpus.contains(&gpu))
            };
            let wants =
                |other: &usize| self.clients[*other].requests.values().any(|(on, _)| *on == gpu);
            let taken = snapshot.gpus[gpu.0 as usize].headroom_taken > 0;
            let urgent =
                taken || (0..SLOTS).filter(here).any(|s| holds(&s) && lacking(&s) || wants(&s));
            let bound = |other: &usize| self.clients[*other].bound.contains(&gpu);
            let waits = |other: &usize| self.clients[*other].waiting && bound(other);
            if waits(&slot) {
                let before = (0..SLOTS)
                    .filter(here)
                    .any(|other| waits(&other) && lacking(&other) && place(other) < place(slot));
                assert!(urgent || before, "nobody is asked in favour of one behind it");
                continue;
            }
            // Nobody who was here longer ago has been left alone.
            let spared = (0..SLOTS).filter(here).find(|other| {
                let memory = &self.clients[*other].memory;
                let paged = memory.of(gpu);
                !waits(other)
                    && !holds(other)
                    && memory.used < self.clients[slot].memory.used
                    && paged.resident > 0
                    && paged.owed == 0
                    && !paged.pinned
                    && !paged.failed
            });
            assert_eq!(spared, None, "the least recently used goes first");
        }
    }

    /// What the scheduler says of memory is what clients think, and nobody has more than there is.
    pub(crate) fn compare_memory(&self, snapshot: &Snapshot) {
        let mut on: BTreeMap<Gpu, u64> = BTreeMap::new();
        for theirs in &snapshot.clients {
            let ours = &self.clients[self.slot(theirs.client)];
            for (gpu, room) in &theirs.room {
                let paged = ours.memory.of(*gpu);
                assert_eq!((room.claimed, room.resident), (paged.claimed, paged.resident));
                *on.entry(*gpu).or_insert(0) += room.fixed + room.resident;
            }
        }
        for gpu in &snapshot.gpus {
            assert!(on.get(&gpu.gpu).copied().unwrap_or(0) <= gpu.room, "all is counted");
            let (claims, memory) = (gpu.total.claimed + gpu.total.fixed, gpu.memory - gpu.headroom);
            let bound: BTreeSet<ClientId> = gpu.bound.iter().copied().collect();
            for theirs in snapshot.clients.iter().filter(|client| bound.contains(&client.client)) {
                let ours = &self.clients[self.slot(theirs.client)].memory;
                let claimed = ours.of(gpu.gpu).claimed;
                assert!(ours.deaf || claims <= memory || ours.arena >= claimed, "room on the host");
            }
        }
        let (used, budget) = snapshot.host;
        // Of those that have not come back it is known how much they can have at most, not what they have.
        let is_guess = self.clients.iter().any(|client| client.present && client.away);
        assert!(used <= budget || is_guess, "{used} of the host's {budget}");
    }
}
