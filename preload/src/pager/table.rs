//! The table of chunks: what is where, who moves it, what comes next. Pure.
//!
//! Owns: each chunk's state, the accounts (`account`) and the places on the host (`places`) that go with it.
//! Does not own: addresses of allocations (`ranges`), driver calls (`device`), the order of a move's steps (`mover`).
//!
//! ```text
//!              begin_in, hold               end_in
//!   Absent ───────────────────► Moving ───────────────► Resident
//!     ▲  ▲         fail_in, release │ ▲   begin_out, hold   │
//!     │  └──────────────────────────┘ └─────────────────────┘
//!     └───────── end_out ───────────┘      fail_out, release: back to Resident
//! ```
//! A chunk in Moving belongs to whoever moves it; all others wait.
//!
//! A chunk's content is on the GPU while it is resident, else in its host copy; neither: it has none. A host copy stays
//! when a chunk is paged in, so that an unchanged chunk need not be copied again.
//!
//! The host copy of a chunk that holds nothing but zeros takes no place: its hash says so, and it is cleared when it comes back. So
//! memory that a program has allocated and never used is neither copied nor kept.

use super::account::Account;
use super::places::{Extent, Places};
use acb_cuda_abi::hash::Hash128;
use std::collections::{BTreeMap, BTreeSet};

/// Number of a chunk, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkId(pub(super) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Absent,
    Moving,
    Resident,
}

/// Who may do what through a mapping: kind and number of a location, access flags.
pub(crate) type Grant = (u32, i32, u32);

/// Where a chunk is, or is to be, in the device's address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) address: u64,
    pub(crate) bytes: u64,
    pub(crate) offset: u64,
    /// `None`: read and written by its own device, and those that it is open to.
    pub(crate) access: Option<Vec<Grant>>,
}

/// A copy of a chunk on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostCopy {
    /// Empty: it is all zeros.
    extents: Vec<Extent>,
    /// Of the content, where it was computed when it was copied.
    hash: Option<Hash128>,
    /// False: a copy began and did not end well.
    whole: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) device: u32,
    pub(crate) bytes: u64,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) state: State,
    /// Physical memory, unless it is absent.
    pub(crate) handle: u64,
    /// Ways in which it may be handed to others one day.
    pub(crate) handle_types: u32,
    /// Why it is never moved.
    pub(crate) stays: Option<&'static str>,
    host: Option<HostCopy>,
    /// Its bytes are taken in the account.
    taken: bool,
    /// It is on its way to be freed: nothing waits for it.
    doomed: bool,
    /// Openings of the gate when its content was last known to be that of the host.
    opening: u64,
    /// When it was paged in.
    stamp: u64,
    /// Of its present content, with the openings when it was computed.
    hash: Option<(u64, Hash128)>,
    /// The kernel is at it, since so many openings of the gate: nobody may take its memory away.
    hashing: Option<u64>,
}

impl Chunk {
    fn is_wanted(&self) -> bool {
        !self.mappings.is_empty() && !self.doomed
    }

    fn is_unready(&self) -> bool {
        self.is_wanted() && self.state != State::Resident
    }

    fn is_comparable(&self) -> bool {
        self.host.as_ref().is_some_and(|host| host.whole && host.hash.is_some())
    }

    /// Its content, as the host has it.
    pub(crate) fn content(&self) -> Origin {
        match self.host.as_ref().filter(|host| host.whole) {
            None => Origin::Nothing,
            Some(host) if host.extents.is_empty() => Origin::Zeros,
            Some(host) => Origin::Places(host.extents.clone()),
        }
    }

    /// Where its own device reaches all of it.
    pub(crate) fn address(&self) -> Option<u64> {
        let own = super::device::read_write(self.device);
        let whole = self.mappings.iter().filter(|m| m.offset == 0 && m.bytes == self.bytes);
        let mut open = whole.filter(|m| m.access.as_ref().is_none_or(|a| a.contains(&own)));
        open.next().map(|mapping| mapping.address)
    }

    pub(crate) fn has_copy(&self) -> bool {
        self.host.as_ref().is_some_and(|host| host.whole)
    }
}

/// What is to be done for a page-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inward {
    pub(crate) id: ChunkId,
    pub(crate) bytes: u64,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) from: Origin,
}

/// Where the content of an absent chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It has none.
    Nothing,
    Zeros,
    Places(Vec<Extent>),
}

/// What is to be done for a page-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outward {
    pub(crate) id: ChunkId,
    pub(crate) bytes: u64,
    pub(crate) handle: u64,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) way: Way,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The host has it already, or there is nothing to have.
    Drop,
    /// The hashes say so: to be compared first.
    Compare(Vec<Extent>),
    Copy(Vec<Extent>),
}

/// What would have to be done to take a chunk off the GPU: the earlier the cheaper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// Nobody can have changed it.
    Untouched,
    /// It has the hash of its host copy.
    Alike,
    /// The host does not have its content.
    Changed,
    /// Its hash is on its way, and the host has one to compare with.
    Unknown,
}

/// Why a page-out cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotOut {
    /// It is not there any more, or not resident.
    Gone,
    /// The arena lacks so many bytes.
    NoPlace(u64),
}

/// Whether hashes are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    Hash,
    Compare,
}

mod copies;
mod hashes;

#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) accounts: Vec<Account>,
    /// The NUMA node of each device, plus one; 0: none is known.
    pub(crate) nodes: Vec<u32>,
    pub(crate) places: Places,
    /// The hash of zeros, for each size of a chunk for which it is known.
    pub(crate) zeros: BTreeMap<u64, Hash128>,
    chunks: BTreeMap<ChunkId, Chunk>,
    made: u64,
    clock: u64,
    /// Openings of the gate.
    openings: u64,
    /// Chunks without which the gate must not open.
    unready: usize,
    /// Absent chunks that are wanted, by device; those with content first, for the copies of those take time.
    absent: BTreeSet<(u32, bool, ChunkId)>,
}

impl Table {
    pub(crate) const fn new() -> Self {
        Table {
            accounts: Vec::new(),
            nodes: Vec::new(),
            places: Places::new(),
            zeros: BTreeMap::new(),
            chunks: BTreeMap::new(),
            made: 0,
            clock: 0,
            openings: 0,
            unready: 0,
            absent: BTreeSet::new(),
        }
    }

    pub(crate) fn account(&mut self, device: u32) -> &mut Account {
        &mut self.accounts[device as usize]
    }

    pub(crate) fn chunk(&self, id: ChunkId) -> Option<&Chunk> {
        self.chunks.get(&id)
    }

    /// Whether the gate may open.
    pub(crate) fn is_ready(&self) -> bool {
        self.unready == 0
    }

    /// Whether chunks of a device wait for credit.
    pub(crate) fn has_absent(&self, device: u32) -> bool {
        self.absent
            .range((device, false, ChunkId(0))..)
            .next()
            .is_some_and(|first| first.0 == device)
    }

    /// The gate opens: from now on everything may change.
    pub(crate) fn opened(&mut self) {
        self.openings += 1;
    }

    pub(crate) fn openings(&self) -> u64 {
        self.openings
    }

    /// A new chunk without content. The bytes are in the account already.
    pub(crate) fn add(
        &mut self,
        device: u32,
        bytes: u64,
        mappings: Vec<Mapping>,
        state: State,
    ) -> ChunkId {
        self.made += 1;
        let id = ChunkId(self.made);
        let chunk = Chunk {
            device,
            bytes,
            mappings,
            state,
            handle: 0,
            handle_types: 0,
            stays: None,
            host: None,
            taken: false,
            doomed: false,
            opening: self.openings,
            stamp: 0,
            hash: None,
            hashing: None,
        };
        self.enter(id, &chunk);
        self.chunks.insert(id, chunk);
        id
    }

    fn enter(&mut self, id: ChunkId, chunk: &Chunk) {
        self.unready += usize::from(chunk.is_unready());
        if chunk.is_wanted() && chunk.state == State::Absent {
            self.absent.insert((chunk.device, !chunk.has_copy(), id));
        }
    }

    fn leave(&mut self, id: ChunkId, chunk: &Chunk) {
        self.unready -= usize::from(chunk.is_unready());
        self.absent.remove(&(chunk.device, !chunk.has_copy(), id));
    }

    /// Changes a chunk; every change goes through here, for the table's sums depend on it.
    pub(crate) fn change<T>(&mut self, id: ChunkId, f: impl FnOnce(&mut Chunk) -> T) -> Option<T> {
        let mut chunk = self.chunks.remove(&id)?;
        self.leave(id, &chunk);
        let result = f(&mut chunk);
        self.enter(id, &chunk);
        self.chunks.insert(id, chunk);
        Some(result)
    }

    // ------------------------------------------------------------ in

    /// The next page-in for which there is credit, of so many bytes at most.
    pub(crate) fn begin_next_in(
        &mut self,
        device: u32,
        metered: bool,
        most: u64,
    ) -> Option<Inward> {
        let credit = self.accounts[device as usize].credit();
        let mut absent = self
            .absent
            .range((device, false, ChunkId(0))..)
            .take_while(|(of, _, _)| *of == device)
            .map(|(_, _, id)| *id);
        // A smaller one may fit where the first does not.
        let limit = if metered { credit.min(most) } else { most };
        let fits = |id: &ChunkId| self.chunks[id].bytes <= limit;
        let id = absent.find(fits)?;
        self.begin_in(id, metered)
    }

    /// A page-in of this chunk; `None`: no credit, or it is not absent.
    pub(crate) fn begin_in(&mut self, id: ChunkId, metered: bool) -> Option<Inward> {
        let chunk = self.chunks.get(&id).filter(|chunk| chunk.state == State::Absent)?;
        let (device, bytes) = (chunk.device, chunk.bytes);
        if !self.take_credit(device, bytes, metered) {
            return None;
        }
        self.change(id, |chunk| {
            chunk.state = State::Moving;
            chunk.taken = true;
            Inward { id, bytes, mappings: chunk.mappings.clone(), from: chunk.content() }
        })
    }

    /// Credit for a chunk that its owner moves.
    pub(crate) fn take_for(&mut self, id: ChunkId, metered: bool) -> bool {
        let Some((device, bytes)) = self.chunks.get(&id).map(|c| (c.device, c.bytes)) else {
            return false;
        };
        let taken = self.take_credit(device, bytes, metered);
        if taken {
            self.change(id, |chunk| chunk.taken = true);
        }
        taken
    }

    fn take_credit(&mut self, device: u32, bytes: u64, metered: bool) -> bool {
        match metered {
            true => self.account(device).take(bytes),
            false => {
                self.account(device).take_unmetered(bytes);
                true
            }
        }
    }

    /// It is there. `open`: under an open gate, where the program may change it from now on.
    pub(crate) fn end_in(&mut self, id: ChunkId, handle: u64, open: bool) {
        self.clock += 1;
        let (stamp, openings) = (self.clock, self.openings);
        self.change(id, |chunk| {
            chunk.state = State::Resident;
            chunk.handle = handle;
            chunk.stamp = stamp;
            chunk.opening = if open { openings.wrapping_sub(1) } else { openings };
            chunk.hash = None;
        });
    }

    /// It could not be made; its bytes are credit again.
    pub(crate) fn fail_in(&mut self, id: ChunkId) {
        let Some((device, bytes, taken)) = self.change(id, |chunk| {
            chunk.state = State::Absent;
            chunk.handle = 0;
            (chunk.device, chunk.bytes, std::mem::take(&mut chunk.taken))
        }) else {
            return;
        };
        if taken {
            self.account(device).untake(bytes);
        }
    }

    // ------------------------------------------------------------ out

    fn movable(&self, device: u32) -> impl Iterator<Item = (&ChunkId, &Chunk)> {
        self.chunks.iter().filter(move |(_, chunk)| {
            chunk.device == device && chunk.state == State::Resident && chunk.stays.is_none()
        })
    }

    /// What is known of a chunk that may have to go.
    pub(crate) fn fate(&self, id: ChunkId) -> Fate {
        self.chunks.get(&id).map_or(Fate::Changed, |chunk| self.fate_of(chunk))
    }

    fn fate_of(&self, chunk: &Chunk) -> Fate {
        if !self.is_touched(chunk) {
            Fate::Untouched
        } else if self.is_like_host(chunk) || self.is_zero(chunk) {
            Fate::Alike
        } else if chunk.hashing == Some(self.openings) && self.may_be_spared(chunk) {
            Fate::Unknown
        } else {
            Fate::Changed
        }
    }

    /// Chunks that are never moved: device, why, bytes.
    pub(crate) fn staying(&self) -> impl Iterator<Item = (u32, &'static str, u64)> + '_ {
        self.chunks.values().filter_map(|c| Some((c.device, c.stays?, c.bytes)))
    }

    /// In which order chunks are to go: unchanged ones first, then the least recently paged in.
    pub(crate) fn victims(&self, device: u32) -> Vec<(Fate, u64, ChunkId)> {
        let mut victims: Vec<(Fate, u64, u64, ChunkId)> = self
            .movable(device)
            .map(|(id, chunk)| (self.fate_of(chunk), chunk.stamp, chunk.bytes, *id))
            .collect();
        victims.sort_unstable();
        victims.into_iter().map(|(fate, _, bytes, id)| (fate, bytes, id)).collect()
    }

    pub(crate) fn begin_out(&mut self, id: ChunkId, trust: Trust) -> Result<Outward, NotOut> {
        let chunk = self.chunks.get(&id).filter(|chunk| chunk.state == State::Resident);
        let chunk = chunk.filter(|chunk| chunk.stays.is_none()).ok_or(NotOut::Gone)?;
        let own = chunk.host.as_ref().map(|host| host.extents.clone());
        let own = own.filter(|extents| !extents.is_empty());
        let hash = self.hash_of(chunk);
        let zeros = trust == Trust::Hash && self.is_touched(chunk) && self.is_zero(chunk);
        let way = if !self.is_touched(chunk) || zeros {
            Way::Drop
        } else if let (true, Some(own)) = (self.is_like_host(chunk), &own) {
            match trust {
                Trust::Hash => Way::Drop,
                Trust::Compare => Way::Compare(own.clone()),
            }
        } else {
            let bytes = chunk.bytes;
            let extents = match own {
                Some(extents) => extents,
                None => self
                    .place(bytes, id)
                    .ok_or_else(|| NotOut::NoPlace(bytes.saturating_sub(self.places.free())))?,
            };
            Way::Copy(extents)
        };
        let mut given_up = None;
        let out = self.change(id, |chunk| {
            chunk.state = State::Moving;
            if let Way::Copy(extents) = &way {
                chunk.host = Some(HostCopy { extents: extents.clone(), hash: None, whole: false });
            }
            if zeros {
                let copy = HostCopy { extents: Vec::new(), hash, whole: true };
                given_up = chunk.host.replace(copy);
            }
            let mappings = chunk.mappings.clone();
            Outward { id, bytes: chunk.bytes, handle: chunk.handle, mappings, way }
        });
        if let Some(copy) = given_up {
            self.places.give(&copy.extents);
        }
        out.ok_or(NotOut::Gone)
    }

    /// It is on the host, and its physical memory is gone.
    pub(crate) fn end_out(&mut self, id: ChunkId) {
        let openings = self.openings;
        let Some((device, bytes)) = self.change(id, |chunk| {
            let hash = chunk.hash.filter(|(at, _)| *at == openings).map(|(_, hash)| hash);
            if let Some(host) = chunk.host.as_mut().filter(|host| !host.whole) {
                host.whole = true;
                host.hash = hash;
            }
            chunk.state = State::Absent;
            chunk.handle = 0;
            chunk.taken = false;
            (chunk.device, chunk.bytes)
        }) else {
            return;
        };
        self.account(device).evicted(bytes);
    }

    /// Its context is broken: its content is lost, its memory is free.
    pub(crate) fn lose(&mut self, id: ChunkId) {
        let host = self.change(id, |chunk| chunk.host.take()).flatten();
        if let Some(host) = host {
            self.places.give(&host.extents);
        }
        self.end_out(id);
    }

    /// It stays where it is.
    pub(crate) fn fail_out(&mut self, id: ChunkId) {
        self.change(id, |chunk| chunk.state = State::Resident);
    }

    // ------------------------------------------------------------ by hand

    /// Whether somebody moves it, or the hash kernel is at it.
    pub(crate) fn is_worked_on(&self, id: ChunkId) -> bool {
        let at_it = |chunk: &Chunk| chunk.state == State::Moving || chunk.hashing.is_some();
        self.chunks.get(&id).is_some_and(at_it)
    }

    /// Takes a chunk from everyone else. `None`: somebody is at it.
    pub(crate) fn hold(&mut self, id: ChunkId) -> Option<State> {
        let state = self.chunks.get(&id)?.state;
        if self.is_worked_on(id) {
            return None;
        }
        self.change(id, |chunk| chunk.state = State::Moving);
        Some(state)
    }

    /// Gives it back as it was.
    pub(crate) fn release(&mut self, id: ChunkId, state: State) {
        self.change(id, |chunk| chunk.state = state);
    }

    /// Its owner frees it: nothing waits for it any more.
    pub(crate) fn doom(&mut self, id: ChunkId) {
        self.change(id, |chunk| chunk.doomed = true);
    }

    /// It is gone; whoever says so has moved it.
    pub(crate) fn remove(&mut self, id: ChunkId) {
        let Some(chunk) = self.chunks.remove(&id) else { return };
        self.leave(id, &chunk);
        if let Some(host) = &chunk.host {
            self.places.give(&host.extents);
        }
        let account = self.account(chunk.device);
        if chunk.taken {
            account.untake(chunk.bytes);
        }
        account.unneed(chunk.bytes);
    }

    /// Everything holds that must.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        for (device, account) in self.accounts.iter().enumerate() {
            account.check();
            let of = || self.chunks.values().filter(move |chunk| chunk.device as usize == device);
            let taken: u64 = of().filter(|chunk| chunk.taken).map(|chunk| chunk.bytes).sum();
            assert_eq!(taken, account.taken());
            assert!(of().all(|chunk| chunk.state != State::Resident || chunk.taken));
            assert!(of().all(|chunk| chunk.state != State::Absent || !chunk.taken));
        }
        assert_eq!(self.unready, self.chunks.values().filter(|chunk| chunk.is_unready()).count());
        let absent =
            self.chunks.values().filter(|c| c.is_wanted() && c.state == State::Absent).count();
        assert_eq!(self.absent.len(), absent);
        let held: u64 = self
            .chunks
            .values()
            .filter_map(|chunk| chunk.host.as_ref())
            .flat_map(|host| &host.extents)
            .map(|extent| extent.bytes)
            .sum();
        assert_eq!(self.places.total() - self.places.free(), held);
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
