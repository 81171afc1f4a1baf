//! Paged memory: what clients claim and return, what has left the GPU, what the host must hold.
//!
//! A claim never waits. It is granted if the client could have all of its claims on the GPU at its
//! turn, and if the host could hold what would have to leave meanwhile. What others cannot move at
//! present is no reason to deny it: that passes.

use super::Memory;
use super::ledger::{Anchor, Ledger};
use crate::event::RoomDenied;
use crate::ids::{ClientId, Gpu, Time};

impl Memory {
    /// A client claims paged memory.
    pub(crate) fn claim(
        &mut self,
        client: ClientId,
        gpu: Gpu,
        bytes: u64,
    ) -> Result<(), RoomDenied> {
        let ledger = self.ledger(gpu);
        let room = ledger.room(client);
        let denied = ledger
            .exceeds(client, bytes)
            .or_else(|| {
                let others = ledger.immovable_for_good(client);
                let total = (room.fixed + room.claimed).saturating_add(bytes);
                let capacity = ledger.most();
                let fits = total.saturating_add(others) <= capacity;
                (!fits).then_some(RoomDenied::OthersFixed { total, capacity, others })
            })
            .or_else(|| self.over_budget(gpu, 0, bytes));
        if let Some(denied) = denied {
            return Err(denied);
        }
        self.gpus[gpu.index()].change(client, |account| account.claimed += bytes);
        self.note(gpu);
        Ok(())
    }

    /// A client gives up claims, and with them what of them was resident or credited; more than it
    /// has counts as all of it.
    ///
    /// A credit may have crossed with it. Then more is resident than is claimed, until the client
    /// has seen the credit and gives it back.
    pub(crate) fn unclaim(&mut self, client: ClientId, gpu: Gpu, bytes: u64, resident: u64) {
        self.gpus[gpu.index()].change(client, |account| {
            account.claimed = account.claimed.saturating_sub(bytes);
            account.resident = account.resident.saturating_sub(resident);
        });
        self.note(gpu);
    }

    /// A client gives fixed memory back; more than it has counts as all of it.
    pub(crate) fn give_back(&mut self, client: ClientId, gpu: Gpu, bytes: u64) {
        self.gpus[gpu.index()]
            .change(client, |account| account.fixed = account.fixed.saturating_sub(bytes));
        self.note(gpu);
    }

    /// Paged memory of a client has left the GPU.
    pub(crate) fn evicted(&mut self, client: ClientId, gpu: Gpu, bytes: u64, now: Time) {
        self.gpus[gpu.index()].change(client, |account| {
            account.resident = account.resident.saturating_sub(bytes);
            account.evicting = account.evicting.saturating_sub(bytes);
            account.progress = now;
            account.anchors.remove(Anchor::Late);
            if bytes > 0 {
                account.anchors.remove(Anchor::Failed); // it could, after all
            }
        });
        self.watch(client, gpu);
        self.note(gpu);
    }

    /// What of the host's memory is spoken for: all claims on GPUs where more is claimed than there
    /// is, for each of these clients must be able to leave entirely.
    pub(crate) fn host_used(&self) -> u64 {
        let over = self.gpus.iter().filter(|ledger| ledger.would_oversubscribe(0));
        over.map(|ledger| ledger.sums().claimed).fold(0, u64::saturating_add)
    }

    /// Whether the host could not hold what would have to leave `gpu` with so much more on it.
    pub(crate) fn over_budget(&self, gpu: Gpu, fixed: u64, claim: u64) -> Option<RoomDenied> {
        let ledger = self.ledger(gpu);
        let claimed = ledger.sums().claimed.saturating_add(claim);
        if claimed == 0 || !ledger.would_oversubscribe(fixed.saturating_add(claim)) {
            return None;
        }
        let used = self.host_used();
        let here = if ledger.would_oversubscribe(0) { ledger.sums().claimed } else { 0 };
        let needed = (used - here).saturating_add(claimed);
        let budget = self.host_budget;
        (needed > budget && needed > used).then_some(RoomDenied::HostBudget {
            budget,
            used,
            needed,
        })
    }
}

impl Ledger {
    /// Whether a client alone would exceed its limit or the GPU.
    pub(crate) fn exceeds(&self, client: ClientId, bytes: u64) -> Option<RoomDenied> {
        let room = self.room(client);
        let total = (room.fixed + room.claimed).saturating_add(bytes);
        let limit = self.account(client).map_or(u64::MAX, |account| account.limit);
        let capacity = self.most();
        if total > limit {
            return Some(RoomDenied::ExceedsLimit { total, limit });
        }
        (total > capacity).then_some(RoomDenied::ExceedsGpu { total, capacity })
    }
}
