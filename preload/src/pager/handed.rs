//! Memory that other processes open by handles of the old kind, as long as they have it.
//!
//! Owns: which chunks are lent to how many, and what becomes of them when they are freed meanwhile. Does not own: who has asked for
//! it (`ipc`), or that it stays (`pins`).
//!
//! Physical memory lives as long as it is mapped anywhere. So a chunk that is freed here while others have it open counts here until
//! they have closed it.

use super::device::{self, Answer};
use super::table::{ChunkId, State};
use super::{Books, Pager};
use crate::log::debug;
use rustix::fd::OwnedFd;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether chunks are made so that descriptors can be had of them: nobody can tell at once which will be shared.
static SHAREABLE: AtomicBool = AtomicBool::new(false);

/// Where the driver says that all devices can.
pub(super) fn look_for_descriptors(devices: u32) {
    let all = (0..devices).all(device::has_descriptors);
    SHAREABLE.store(all, Ordering::Relaxed);
    if !all {
        debug!("a GPU has no descriptors of memory: cuIpcGetMemHandle will be refused");
    }
}

/// Handle types of the pager's own chunks.
pub(super) fn types() -> u32 {
    if SHAREABLE.load(Ordering::Relaxed) { device::FILE_DESCRIPTOR } else { 0 }
}

/// Whether memory can be shared at all.
pub(crate) fn can_share() -> bool {
    types() != 0
}

/// What another process has open; given back with [`Pager::taken_back`].
#[derive(Debug, Default)]
pub(crate) struct Lent {
    chunks: Vec<ChunkId>,
}

impl Lent {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// An allocation in its chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) chunks: Vec<ChunkId>,
    /// Where in the first of them it begins.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// What is shared, and what others have open.
#[derive(Debug, Default)]
pub(super) struct Handed {
    /// Allocations of which there are handles: where they begin, by number.
    shared: BTreeMap<u64, u64>,
    /// How often chunks are open in other processes.
    lent: BTreeMap<ChunkId, u32>,
    /// Of these, chunks that this process has freed.
    freed: BTreeSet<ChunkId>,
}

impl Handed {
    pub(super) const fn new() -> Self {
        Handed { shared: BTreeMap::new(), lent: BTreeMap::new(), freed: BTreeSet::new() }
    }

    /// A chunk is freed; true: others have it open, and it counts on.
    pub(super) fn outlives(&mut self, chunk: ChunkId) -> bool {
        let open = self.lent.contains_key(&chunk);
        if open {
            self.freed.insert(chunk);
        }
        open
    }

    /// One of them has closed it; true: it was the last, and the chunk was freed.
    fn closed(&mut self, chunk: ChunkId) -> bool {
        let Some(times) = self.lent.get_mut(&chunk) else { return false };
        *times -= 1;
        if *times > 0 {
            return false;
        }
        self.lent.remove(&chunk);
        self.freed.remove(&chunk)
    }
}

impl Pager {
    /// The driver does not make a chunk of ours with a descriptor: none is, from now on. False: it was to have none, or is the
    /// program's own, which has asked for it.
    pub(super) fn without_descriptor(&self, chunk: ChunkId) -> bool {
        let mut books = self.books();
        let Some(found) = books.table.chunk(chunk) else { return false };
        let mut addresses = found.mappings.iter().map(|mapping| mapping.address);
        let ours = addresses.all(|address| books.names.at(address).is_none());
        if !ours || found.mappings.is_empty() || found.handle_types == 0 {
            return false;
        }
        books.table.change(chunk, |chunk| chunk.handle_types = 0);
        SHAREABLE.store(false, Ordering::Relaxed);
        debug!("the driver makes no memory with descriptors: cuIpcGetMemHandle will be refused");
        true
    }

    /// An allocation may be opened by others from now on.
    pub(crate) fn offer(&self, number: u64, start: u64) {
        self.books().handed.shared.insert(number, start);
    }

    /// The chunks of an allocation, for another process; `None`: it has been freed.
    pub(crate) fn lend(&self, number: u64, to: &mut Lent) -> Option<Part> {
        let mut books = self.books();
        let part = books.part(number);
        let Some(part) = part else {
            books.handed.shared.remove(&number);
            return None;
        };
        for chunk in &part.chunks {
            *books.handed.lent.entry(*chunk).or_insert(0) += 1;
        }
        to.chunks.clone_from(&part.chunks);
        Some(part)
    }

    /// They have closed it, or are no more.
    pub(crate) fn taken_back(&self, lent: Lent) {
        if lent.is_empty() {
            return;
        }
        let mut books = self.books();
        for chunk in lent.chunks {
            if books.handed.closed(chunk) && books.table.hold(chunk).is_some() {
                books.table.remove(chunk);
            }
        }
        self.changed.notify_all();
        books.say();
    }

    /// Size and descriptor of a chunk that stays.
    pub(crate) fn descriptor(&self, chunk: ChunkId) -> Result<(u64, OwnedFd), String> {
        let gone = || "it has been freed meanwhile".to_owned();
        let (books, state) = self.hold(chunk).ok_or_else(gone)?;
        let found = books.table.chunk(chunk).map(|it| (it.handle, it.bytes));
        drop(books);
        let made: Answer<_> = match found {
            Some((handle, bytes)) if state == State::Resident && handle != 0 => {
                device::descriptor(handle).map(|descriptor| Some((bytes, descriptor)))
            }
            _ => Ok(None),
        };
        self.books().table.release(chunk, state);
        self.changed.notify_all();
        let failed = |result| format!("cuMemExportToShareableHandle: {}", device::name(result));
        made.map_err(failed)?.ok_or_else(gone)
    }
}

impl Books {
    fn part(&self, number: u64) -> Option<Part> {
        let address = *self.handed.shared.get(&number)?;
        let (allocation, _) = self.ranges.at(address).filter(|(it, _)| it.number == number)?;
        let bytes_of = |id| self.table.chunk(id).map_or(0, |chunk| chunk.bytes);
        let end = address + allocation.requested.max(1);
        let chunks = self.ranges.chunks_within(address, end, bytes_of);
        let first = self.table.chunk(*chunks.first()?)?.mappings.first()?.address;
        Some(Part { chunks, offset: address - first, bytes: allocation.requested })
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Table;
    use super::*;

    #[test]
    fn a_chunk_counts_until_the_last_who_has_it_open_closes_it() {
        let mut table = Table::new();
        table.accounts = vec![Default::default()];
        table.account(0).need(16);
        let [one, other] = [0, 1].map(|_| table.add(0, 8, Vec::new(), State::Absent));
        let mut handed = Handed::new();
        assert!(!handed.outlives(one), "nobody has it");
        handed.lent = BTreeMap::from([(one, 2), (other, 1)]);
        assert!(!handed.closed(other), "it lives on here");
        assert!(!handed.closed(other), "not twice");
        assert!(handed.outlives(one));
        assert!(!handed.closed(one), "another has it still");
        assert!(handed.closed(one));
        assert!(!handed.outlives(one));
    }
}
