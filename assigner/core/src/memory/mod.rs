//! The ledger of device memory: who has what of each GPU, who gets more, who gives back.
//!
//! | file | is |
//! | --- | --- |
//! | `handle.rs` | what an event changes |
//! | `ledger.rs` | one GPU's accounts and their sums |
//! | `fixed.rs` | memory that cannot be moved: requests that wait, deadlocks |
//! | `claims.rs` | memory that can: claims, their returns, the budget of the host |
//! | `credit.rs` | who gets room on the GPU, whose memory is moved away for it, and when that is late |
//! | `arena.rs` | which clients need memory of the host |
//! | `fault.rs` | what must be true of it, for `sanity_check` |
//!
//! Does not own: leases and the queue, which say who holds and who is next (`plan`).
//!
//! For each GPU: capacity = Σ fixed + Σ resident + free. A client's paged memory is *claimed*, and
//! part of that is *resident*: on the GPU, or allowed to come there. Only who holds a lease, or is
//! the next one to, gets more of it resident.

mod arena;
mod claims;
mod credit;
mod fault;
mod fixed;
mod handle;
mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::MemoryConfig;
use crate::event::Room;
use crate::gpu_set::GpuSet;
use crate::ids::{ClientId, Gpu, Time};

pub use fault::RoomFault;
use fixed::Answer;
pub(crate) use fixed::Patience;
use ledger::{Anchor, Ledger};

/// The memory of all GPUs of a node.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    gpus: Vec<Ledger>,
    patience: Patience,
    /// Waiting requests of each client that has some, over all GPUs.
    waiters: BTreeMap<ClientId, u32>,
    arrivals: u64,
    /// Counts accounts opened and leases ended.
    uses: u64,
    /// Pinned host memory that clients have been told to have; those that need none are not here.
    arenas: BTreeMap<ClientId, u64>,
    /// When evictions are late: time, GPU, and the order of use of the account, so that names
    /// decide nothing.
    lateness: BTreeSet<(Time, Gpu, u64, ClientId)>,
    host_budget: u64,
    late: Duration,
    /// GPUs on which something has changed, of those that are in use.
    dirty: GpuSet,
    /// GPUs on which memory has been asked for or stated, and not all of that is gone. On others there is nothing to
    /// decide.
    in_use: GpuSet,
}

impl Memory {
    pub(crate) fn new(
        capacities: impl Iterator<Item = u64>,
        patience: Patience,
        config: &MemoryConfig,
    ) -> Memory {
        Memory {
            gpus: capacities
                .zip(config.headroom.iter().copied().chain(std::iter::repeat(0)))
                .map(|(capacity, headroom)| Ledger::new(capacity, headroom))
                .collect(),
            patience,
            waiters: BTreeMap::new(),
            arrivals: 0,
            uses: 0,
            arenas: BTreeMap::new(),
            lateness: BTreeSet::new(),
            host_budget: config.host_budget,
            late: config.late,
            dirty: GpuSet::default(),
            in_use: GpuSet::default(),
        }
    }

    /// Reads what a plan looks at (`warm`).
    pub(crate) fn warm(&self) -> u64 {
        let both = self.in_use.is_empty() ^ self.dirty.is_empty();
        u64::from(both) ^ self.lateness.len() as u64
    }

    /// Something has changed on a GPU.
    fn note(&mut self, gpu: Gpu) {
        self.in_use.insert(gpu);
        self.dirty.insert(gpu);
    }

    /// Who holds GPUs or is next there has changed.
    pub(crate) fn note_turns(&mut self, gpus: impl IntoIterator<Item = Gpu>) {
        let in_use = &self.in_use;
        self.dirty.extend(gpus.into_iter().filter(|gpu| in_use.contains(*gpu)));
    }

    fn ledger(&self, gpu: Gpu) -> &Ledger {
        &self.gpus[gpu.index()]
    }

    fn numbers(&self) -> impl Iterator<Item = Gpu> + use<> {
        (0..u32::try_from(self.gpus.len()).expect("the configuration limits the number")).map(Gpu)
    }

    /// Bytes of `gpu` that are promised: fixed, resident or credited.
    pub(crate) fn used(&self, gpu: Gpu) -> u64 {
        let sums = self.ledger(gpu).sums();
        sums.fixed + sums.resident
    }

    /// Bytes of `gpu` that clients have altogether: fixed and claimed.
    pub(crate) fn wanted(&self, gpu: Gpu) -> u64 {
        let sums = self.ledger(gpu).sums();
        sums.fixed.saturating_add(sums.claimed)
    }

    /// What all clients have of `gpu`.
    pub(crate) fn total(&self, gpu: Gpu) -> Room {
        let sums = self.ledger(gpu).sums();
        Room { fixed: sums.fixed, claimed: sums.claimed, resident: sums.resident }
    }

    /// What `client` has of `gpu`.
    pub(crate) fn of(&self, client: ClientId, gpu: Gpu) -> Room {
        self.ledger(gpu).room(client)
    }

    /// Requests that wait for room on `gpu`.
    pub(crate) fn waiting(&self, gpu: Gpu) -> usize {
        self.ledger(gpu).waiting.len()
    }

    /// Opens an account for a client that is bound to `gpu`.
    pub(crate) fn open(&mut self, client: ClientId, gpu: Gpu, limit: u64) {
        let used = self.next_use();
        self.gpus[gpu.index()].open(client, used, limit);
    }

    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// Strikes a client out; `gpus` are those that it was bound to.
    pub(crate) fn forget(&mut self, client: ClientId, gpus: impl Iterator<Item = Gpu>) {
        self.waiters.remove(&client);
        self.arenas.remove(&client);
        for gpu in gpus {
            self.gpus[gpu.index()].waiting.retain(|request| request.client != client);
            self.gpus[gpu.index()].close(client);
            self.note(gpu);
        }
    }

    /// Takes over what a client had when the earlier life of the assigner ended. As that may be out
    /// of date, nothing is promised on this GPU until the client is back, or is not awaited any more.
    pub(crate) fn guess(&mut self, client: ClientId, gpu: Gpu, room: Room) {
        self.open(client, gpu, u64::MAX);
        let ledger = &mut self.gpus[gpu.index()];
        ledger.guessed.insert(client, room.fixed.saturating_add(room.resident));
        ledger.settling = true;
        let fixed = room.fixed.min(ledger.left());
        ledger.change(client, |account| account.fixed = fixed);
        let resident = room.resident.min(ledger.left());
        let claimed = room.claimed.min(ledger.capacity - ledger.sums().fixed);
        ledger.change(client, |account| {
            account.anchors.insert(Anchor::Away);
            account.claimed = claimed.max(resident);
            account.resident = resident;
        });
        self.note(gpu);
    }

    /// Nobody is waited for any more. Who has not come back lives on, with the memory that it had: that is there still.
    pub(crate) fn end_settling(&mut self) {
        for gpu in self.numbers() {
            let ledger = &mut self.gpus[gpu.index()];
            if std::mem::take(&mut ledger.settling) {
                ledger.expect_most();
                self.note(gpu);
            }
        }
    }

    /// What of `room` does not fit on `gpu`, if it is true what a client says that it has; what is
    /// known of others by guess does not count.
    pub(crate) fn misfit(&self, gpu: Gpu, room: Room) -> Option<(u64, u64)> {
        let ledger = self.ledger(gpu);
        let sums = ledger.sums();
        let guessed = ledger.guessed.keys().map(|client| ledger.room(*client));
        let (mut fixed, mut resident) = (sums.fixed, sums.resident);
        for guess in guessed {
            fixed -= guess.fixed;
            resident -= guess.resident;
        }
        let known =
            ledger.accounts().map(|(client, _)| client).filter(|c| !ledger.guessed.contains_key(c));
        let claim = ledger.largest_claim_of(known);
        let free = ledger.capacity - fixed - resident;
        let here = room.fixed.saturating_add(room.resident);
        let reserve = ledger.capacity.saturating_sub(fixed);
        let all = room.fixed.saturating_add(room.claimed.max(claim));
        if here > free {
            Some((here, free))
        } else {
            (all > reserve).then_some((room.fixed.saturating_add(room.claimed), reserve))
        }
    }

    /// Enters what a client that comes back says that it has; it is no [misfit](Self::misfit).
    /// Facts go before guesses.
    pub(crate) fn adopt(&mut self, client: ClientId, gpu: Gpu, room: Room) {
        let ledger = &mut self.gpus[gpu.index()];
        for guess in ledger.guessed.keys().copied().collect::<Vec<_>>() {
            let short = (room.fixed + room.resident).saturating_sub(ledger.left());
            ledger.change(guess, |account| {
                let less = short.min(account.resident);
                account.resident -= less;
                account.fixed -= (short - less).min(account.fixed);
            });
        }
        for guess in ledger.guessed.keys().copied().collect::<Vec<_>>() {
            let all = ledger.sums().fixed + room.fixed + ledger.largest_claim().max(room.claimed);
            let excess = all.saturating_sub(ledger.capacity);
            ledger.change(guess, |account| account.fixed -= excess.min(account.fixed));
        }
        for guess in ledger.guessed.keys().copied().collect::<Vec<_>>() {
            let most = ledger.capacity - ledger.sums().fixed - room.fixed;
            ledger.change(guess, |account| account.claimed = account.claimed.min(most));
        }
        ledger.change(client, |account| {
            account.fixed = room.fixed;
            account.claimed = room.claimed;
            account.resident = room.resident;
        });
        if room.resident > 0 && room.resident < room.claimed {
            ledger.paging.insert(client); // what of that is credit, nobody has written down
        }
        self.note(gpu);
    }

    /// A client got a lease: what was wrong with moving its memory is over. Whether that may let
    /// others have theirs.
    pub(crate) fn begin(&mut self, client: ClientId, gpu: Gpu, now: Time) -> bool {
        if !self.in_use.contains(gpu) {
            return false;
        }
        let before = self.ledger(gpu).sums().anchored;
        self.gpus[gpu.index()].change(client, |account| {
            account.anchors.remove(Anchor::Failed);
            if account.anchors.contains(Anchor::Late) {
                account.anchors.remove(Anchor::Late);
                account.progress = now; // if its eviction goes on, its time begins anew
            }
        });
        self.watch(client, gpu);
        self.note_turns([gpu]);
        self.ledger(gpu).sums().anchored < before
    }

    /// A client's lease is over. What it could not move before can have been said after that was granted; it is asked anew.
    pub(crate) fn end(&mut self, client: ClientId, gpu: Gpu) {
        if !self.in_use.contains(gpu) {
            return; // the order of use matters among those who have memory
        }
        let used = self.next_use();
        self.gpus[gpu.index()].change(client, |account| {
            account.used = used;
            account.anchors.remove(Anchor::Failed);
        });
        self.note_turns([gpu]);
    }

    /// A client gives credit back that it could not use: there is that much less than is known.
    fn miss(&mut self, client: ClientId, gpu: Gpu, bytes: u64) {
        let ledger = &mut self.gpus[gpu.index()];
        let bytes = ledger.change(client, |account| {
            let bytes = bytes.min(account.resident);
            account.resident -= bytes;
            bytes
        });
        ledger.missing += bytes.unwrap_or(0);
        self.note(gpu);
    }

    /// So many bytes of a GPU are in use in truth; whether more is free by that.
    fn found(&mut self, gpu: Gpu, used: u64) -> bool {
        let Some(ledger) = self.gpus.get_mut(gpu.index()) else { return false };
        let known = ledger.sums().fixed + ledger.sums().resident;
        let unknown = used.saturating_sub(known);
        // Who is about to go is seen once.
        let lasting = unknown.min(std::mem::replace(&mut ledger.unknown, unknown));
        let kept = ledger.reserve().saturating_add(ledger.missing).min(ledger.headroom);
        let missing = ledger.missing.min(unknown).max(lasting.min(kept));
        let is_new = ledger.missing != missing;
        let is_less = std::mem::replace(&mut ledger.missing, missing) > missing;
        if is_new {
            self.note(gpu);
        }
        is_less
    }

    /// What is kept free on `gpu` for what drivers take, and what of that they have taken.
    pub(crate) fn headroom(&self, gpu: Gpu) -> (u64, u64) {
        let ledger = self.ledger(gpu);
        (ledger.headroom, ledger.headroom - ledger.headroom.min(ledger.left()))
    }

    /// What page-ins did not find on `gpu`, and nobody has who is known.
    pub(crate) fn missing(&self, gpu: Gpu) -> u64 {
        self.ledger(gpu).missing
    }

    /// All memory of a client is on a GPU.
    fn arrived(&mut self, client: ClientId, gpu: Gpu) {
        self.gpus[gpu.index()].paging.remove(&client);
    }

    /// Whether a client's page-in may be under way on one of `gpus`.
    pub(crate) fn is_paging(&self, client: ClientId, gpus: &[Gpu]) -> bool {
        gpus.iter().any(|gpu| self.ledger(*gpu).paging.contains(&client))
    }

    /// Says whether a client's memory can be moved, as far as `anchor` goes.
    fn anchor(&mut self, client: ClientId, gpu: Gpu, anchor: Anchor, holds: Holds) {
        self.gpus[gpu.index()].change(client, |account| {
            match holds {
                Holds::Yes => account.anchors.insert(anchor),
                Holds::No => account.anchors.remove(anchor),
            };
            if anchor != Anchor::Late && holds == Holds::Yes {
                account.evicting = 0; // nothing comes of what it was asked for
            }
        });
        self.note(gpu);
    }

    /// Whether a client could have all of its memory on `gpu` if nobody held a lease there.
    pub(crate) fn could_fit(&self, client: ClientId, gpu: Gpu) -> bool {
        self.fits_beside(client, gpu, 0)
    }

    /// Whether all memory of a client fits on `gpu` beside that of the holders.
    pub(crate) fn fits(&self, client: ClientId, gpu: Gpu, holders: &[ClientId]) -> bool {
        if !self.in_use.contains(gpu) {
            return true;
        }
        let ledger = self.ledger(gpu);
        let theirs = holders.iter().filter(|holder| **holder != client).map(|holder| {
            let Some(account) = ledger.account(*holder) else { return 0 };
            let here = account.claimed.max(account.resident);
            // What cannot be moved is counted by `immovable`.
            if account.anchors.is_empty() { here } else { here - account.resident }
        });
        self.fits_beside(client, gpu, theirs.fold(0, u64::saturating_add))
    }

    fn fits_beside(&self, client: ClientId, gpu: Gpu, others: u64) -> bool {
        if !self.in_use.contains(gpu) {
            return true;
        }
        let ledger = self.ledger(gpu);
        let claimed = ledger.room(client).claimed;
        let sum = ledger.immovable(client).saturating_add(others).saturating_add(claimed);
        claimed == 0 || sum <= ledger.capacity - ledger.reserve()
    }

    /// Whether there is paged memory on `gpu` that cannot be moved now.
    pub(crate) fn has_anchored(&self, gpu: Gpu) -> bool {
        self.in_use.contains(gpu) && self.ledger(gpu).sums().anchored > 0
    }

    /// Whether a client has paged memory on one of `gpus`, so that a lease may begin with a switch.
    pub(crate) fn pages(&self, client: ClientId, gpus: &[Gpu]) -> bool {
        let pages =
            |gpu: Gpu| self.in_use.contains(gpu) && self.ledger(gpu).room(client).claimed > 0;
        gpus.iter().any(|gpu| pages(*gpu))
    }

    /// What of a client's claims is not on its GPUs.
    pub(crate) fn lack(&self, client: ClientId, gpus: &[Gpu]) -> u64 {
        let in_use = gpus.iter().filter(|gpu| self.in_use.contains(**gpu));
        in_use
            .filter_map(|gpu| self.ledger(*gpu).account(client))
            .map(|account| account.lack())
            .fold(0, u64::saturating_add)
    }

    /// Whether somebody else than `client` lacks memory on `gpu` that holders have.
    pub(crate) fn presses(&self, client: ClientId, gpu: Gpu) -> bool {
        self.in_use.contains(gpu) && self.ledger(gpu).pressing.iter().any(|other| *other != client)
    }
}

/// Whether something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
}
