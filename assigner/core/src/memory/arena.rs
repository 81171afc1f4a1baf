//! Which clients need pinned memory of the host, and how much.
//!
//! As soon as more is claimed on a GPU than there is, each client there needs as much as it has
//! claimed: long before its turn to leave, for pinning is slow.

use super::Memory;
use crate::event::Action;
use crate::ids::{ClientId, Gpu};

impl Memory {
    /// Tells clients of `gpu` whose need has changed; `bound` says where a client has memory.
    pub(crate) fn settle_arenas(
        &mut self,
        gpu: Gpu,
        bound: impl Fn(ClientId) -> Vec<Gpu>,
    ) -> Vec<Action> {
        let ledger = &mut self.gpus[gpu.index()];
        let over = ledger.would_oversubscribe(0);
        let mut concerned = std::mem::take(&mut ledger.touched);
        if over != ledger.oversubscribed {
            ledger.oversubscribed = over;
            concerned = ledger.accounts().map(|(client, _)| client).collect();
        }
        if !over && self.arenas.is_empty() {
            return Vec::new();
        }
        let mut told: Vec<(u64, Action)> = Vec::new();
        for client in concerned {
            let before = self.arenas.get(&client).copied().unwrap_or(0);
            let Some(account) = self.ledger(gpu).account(client) else { continue };
            let used = account.used;
            let bytes = bound(client).into_iter().map(|gpu| self.arena_on(client, gpu, before));
            let bytes = bytes.fold(0, u64::saturating_add);
            if bytes != before {
                self.arenas.insert(client, bytes);
                told.push((used, Action::Arena { client, bytes }));
            }
            if bytes == 0 {
                self.arenas.remove(&client);
            }
        }
        told.sort_by_key(|(used, _)| *used); // so that names decide nothing
        told.into_iter().map(|(_, action)| action).collect()
    }

    /// What a client needs for one GPU. Where the GPU suffices again, it keeps what it has until
    /// its memory is back.
    fn arena_on(&self, client: ClientId, gpu: Gpu, before: u64) -> u64 {
        let ledger = self.ledger(gpu);
        let room = ledger.room(client);
        let is_out = before > 0 && room.resident < room.claimed;
        if ledger.oversubscribed || is_out { room.claimed } else { 0 }
    }

    /// A client that is back has forgotten what it was told.
    pub(crate) fn forget_arena(&mut self, client: ClientId, gpus: &[Gpu]) {
        self.arenas.remove(&client);
        for gpu in gpus {
            self.gpus[gpu.index()].touched.insert(client);
            self.note(*gpu);
        }
    }
}
