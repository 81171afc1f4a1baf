//! What must be true of the ledger after every event; for tests.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::{Account, Anchor, Ledger};
use crate::ids::{ClientId, Gpu};
use crate::scheduler::Scheduler;

/// What can be wrong with a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoomFault {
    /// The sums are not those of the accounts.
    #[error("the accounts do not add up")]
    Sum,
    /// More is promised than there is.
    #[error("more is promised than there is")]
    Overcommitted,
    /// Fixed memory and the largest claim exceed the GPU: that client's turn could never come.
    #[error("the largest claim does not fit beside the fixed memory")]
    Hopeless,
    /// A client has more than its limit.
    #[error("a client has more than its limit")]
    Limit,
    /// More is asked back than is there, or it is asked of a client that cannot give it, or nobody
    /// watches whether it comes.
    #[error("an eviction is under way that cannot be")]
    Eviction,
    /// The first waiting request fits, but was not served.
    #[error("the first waiting request fits, but was not served")]
    Unserved,
    /// Room is free that a holder lacks.
    #[error("a holder lacks room that is free")]
    Uncredited,
    /// A holder lacks room that others could give, but were not asked for.
    #[error("a holder lacks room, and not all was asked back that can be")]
    Unasked,
    /// The count of waiting requests is wrong.
    #[error("the count of waiting requests is wrong")]
    Waiters,
    /// Clients wait for each other.
    #[error("clients wait for each other's room")]
    Deadlock,
}

impl Scheduler {
    /// What is wrong with the memory: the GPU and a description.
    pub(crate) fn memory_fault(&self) -> Option<(Gpu, RoomFault)> {
        let memory = &self.memory;
        let mut waiters: BTreeMap<ClientId, u32> = BTreeMap::new();
        for gpu in memory.numbers() {
            let ledger = memory.ledger(gpu);
            let fault = ledger.fault().or_else(|| self.unserved(gpu));
            if let Some(fault) = fault {
                return Some((gpu, fault));
            }
            let watched: BTreeSet<ClientId> = memory
                .lateness
                .iter()
                .filter(|(_, on, ..)| *on == gpu)
                .map(|(.., client)| *client)
                .collect();
            let is_missed = |client: &ClientId, account: &Account| {
                account.evicting > 0
                    && !account.anchors.contains(Anchor::Late)
                    && !watched.contains(client)
            };
            if ledger.accounts().any(|(client, account)| is_missed(&client, account)) {
                return Some((gpu, RoomFault::Eviction));
            }
            for request in &ledger.waiting {
                *waiters.entry(request.client).or_insert(0) += 1;
            }
        }
        if waiters != memory.waiters {
            return Some((Gpu(0), RoomFault::Waiters));
        }
        memory.has_deadlock().then_some((Gpu(0), RoomFault::Deadlock))
    }

    /// Work conservation: nobody lacks what is there.
    fn unserved(&self, gpu: Gpu) -> Option<RoomFault> {
        let ledger = self.memory.ledger(gpu);
        if ledger.settling {
            return None; // nothing is promised until all are back
        }
        let first = ledger.waiting.front();
        if first.is_some_and(|first| first.bytes <= ledger.free() && ledger.admits(first.bytes)) {
            return Some(RoomFault::Unserved);
        }
        let holders = &self.gpus[gpu.index()].holders;
        let accounts = holders.iter().filter_map(|holder| ledger.account(*holder));
        let lack: u64 = accounts.map(|account| account.lack()).sum();
        let due = self.memory.due(gpu, self.now);
        if lack > 0 && ledger.free() > due {
            return Some(RoomFault::Uncredited);
        }
        let others = ledger.accounts().filter(|(client, _)| !holders.contains(client));
        let movable: u64 = others.map(|(_, account)| account.movable()).sum();
        let coming = ledger.sums().coming.saturating_add(ledger.free());
        let wanted = (due + lack).saturating_add(ledger.overdraft());
        (movable > 0 && wanted > coming).then_some(RoomFault::Unasked)
    }
}

impl Ledger {
    fn fault(&self) -> Option<RoomFault> {
        let sums = self.sums();
        if !self.adds_up() {
            return Some(RoomFault::Sum);
        }
        if sums.fixed + sums.resident > self.capacity {
            return Some(RoomFault::Overcommitted);
        }
        if sums.fixed + self.largest_claim() > self.capacity {
            return Some(RoomFault::Hopeless);
        }
        for (_, account) in self.accounts() {
            if account.fixed + account.claimed > account.limit {
                return Some(RoomFault::Limit);
            }
            let is_deaf = [Anchor::Pinned, Anchor::Failed, Anchor::Away]
                .into_iter()
                .any(|anchor| account.anchors.contains(anchor));
            if account.evicting > account.resident || is_deaf && account.evicting > 0 {
                return Some(RoomFault::Eviction);
            }
        }
        None
    }
}
