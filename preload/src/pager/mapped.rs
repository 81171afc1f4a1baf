//! The program's own mapped memory (cuMemCreate, cuMemMap and their kin), on its own threads.
//!
//! Owns: what these calls do to chunks. Does not own: names and where they are mapped (`names`), moving (`mover`).
//!
//! Memory that is mapped nowhere cannot be touched and need not be on the GPU: a new object gets physical memory when it is
//! first mapped under a lease, or with the next one.

use super::allocate::unmake;
use super::device::{self, Answer};
use super::names::{Left, Placed, Properties};
use super::ranges::GRANULE;
use super::table::{ChunkId, Grant, Mapping, Origin, State};
use super::{Books, Pager};
use crate::link::LINK;
use crate::log::warning;
use crate::memory::size;
use acb_cuda_abi::CuResult;
use std::sync::MutexGuard;

impl Pager {
    /// cuMemCreate: a name.
    pub(crate) fn create(
        &self,
        device: u32,
        bytes: u64,
        handle_types: u32,
        properties: Properties,
    ) -> Answer<u64> {
        self.reap();
        let mut claimed = self.claim(device, bytes);
        if claimed.is_err() && self.drain_device(device) {
            claimed = self.claim(device, bytes);
        }
        if let Err(reason) = claimed {
            warning!(
                "cuMemCreate: {} on GPU {device} refused, CUDA_ERROR_OUT_OF_MEMORY is returned: {reason}",
                size(bytes)
            );
            return Err(CuResult::OUT_OF_MEMORY);
        }
        let mut books = self.books();
        let chunk = books.table.add(device, bytes, Vec::new(), State::Absent);
        books.table.change(chunk, |chunk| chunk.handle_types = handle_types);
        Ok(books.names.add(chunk, bytes, properties))
    }

    /// Whether a handle is one of ours.
    pub(crate) fn has_name(&self, name: u64) -> bool {
        self.is_active() && self.books().names.get(name).is_some()
    }

    /// Types of handles that can be made of an object; `None`: it is none of ours.
    pub(crate) fn handle_types(&self, name: u64) -> Option<u32> {
        if !self.is_active() {
            return None;
        }
        let books = self.books();
        books.table.chunk(books.names.get(name)?.chunk).map(|chunk| chunk.handle_types)
    }

    pub(crate) fn properties(&self, name: u64) -> Option<Properties> {
        self.books().names.get(name).map(|object| object.properties)
    }

    /// cuMemRelease; `None`: no name of ours.
    pub(crate) fn release_name(&self, name: u64) -> Option<CuResult> {
        if !self.is_active() {
            return None;
        }
        let left = self.books().names.release(name)?;
        self.settle(left);
        Some(CuResult::SUCCESS)
    }

    /// cuMemRetainAllocationHandle; `None`: no address of ours.
    pub(crate) fn retain(&self, address: u64) -> Option<Answer<u64>> {
        if !self.is_active() {
            return None;
        }
        let mut books = self.books();
        if let Some(placed) = books.names.at(address) {
            books.names.retain(placed.name);
            return Some(Ok(placed.name));
        }
        // Not made by cuMemCreate, as far as the program knows.
        books.ranges.find(address).map(|_| Err(CuResult::INVALID_VALUE))
    }

    /// cuMemMap of a name.
    pub(crate) fn map(&self, address: u64, bytes: u64, offset: u64, name: u64) -> CuResult {
        let chunk = {
            let books = self.books();
            let Some(object) = books.names.get(name) else { return CuResult::INVALID_VALUE };
            // What the driver would refuse later, and again and again, is refused now.
            let fits = offset == 0 && bytes > 0 && bytes <= object.bytes;
            let aligned = address.is_multiple_of(GRANULE) && bytes.is_multiple_of(GRANULE);
            let is_free =
                books.addresses.take(address, bytes) && books.names.is_free(address, bytes);
            if !fits || !aligned || !is_free {
                return CuResult::INVALID_VALUE;
            }
            object.chunk
        };
        let mapping = Mapping { address, bytes, offset, access: Some(Vec::new()) };
        loop {
            let (mut books, state) = match self.hold(chunk) {
                Some(held) => held,
                None => return CuResult::INVALID_VALUE,
            };
            if state == State::Resident {
                let handle = books.table.chunk(chunk).map_or(0, |chunk| chunk.handle);
                drop(books);
                let mapped = device::map(address, bytes, offset, handle);
                let mut books = self.books();
                if mapped.is_ok() {
                    books.add_mapping(chunk, mapping, name);
                }
                books.table.release(chunk, State::Resident);
                self.changed.notify_all();
                return mapped.err().unwrap_or(CuResult::SUCCESS);
            }
            books.table.release(chunk, State::Absent);
            self.changed.notify_all();
            if !LINK.gate.snapshot().open {
                // It opens under this mutex, and then waits for what is absent.
                books.add_mapping(chunk, mapping, name);
                return CuResult::SUCCESS;
            }
            drop(books);
            if LINK.gate.enter() {
                let brought = self.bring_unmapped(chunk);
                LINK.gate.leave();
                if let Err(result) = brought {
                    return result;
                }
            }
        }
    }

    /// Physical memory for a chunk that is mapped nowhere, with its content, inside the gate. It may not come: then the gate has
    /// closed.
    pub(super) fn bring_unmapped(&self, chunk: ChunkId) -> Answer<()> {
        let Some((books, state)) = self.hold(chunk) else { return Err(CuResult::INVALID_VALUE) };
        drop(books);
        if state == State::Resident || !self.wait_for_credit(chunk) {
            self.books().table.release(chunk, state);
            self.changed.notify_all();
            return Ok(());
        }
        let made = self.make_patiently(chunk).map_err(|(_, result)| result);
        let outcome = made.and_then(|handle| {
            self.fill_unmapped(chunk, handle).inspect_err(|_| {
                // It has no mappings, which would have to be made anew.
                let _ = unmake(0, &[], handle);
            })?;
            Ok(handle)
        });
        let mut books = self.books();
        match outcome {
            Ok(handle) => books.table.end_in(chunk, handle, true),
            Err(_) => books.table.fail_in(chunk),
        }
        self.changed.notify_all();
        outcome.map(|_| ())
    }

    /// Copies the content in through addresses of our own.
    fn fill_unmapped(&self, chunk: ChunkId, handle: u64) -> Answer<()> {
        let (device, bytes, pieces) = {
            let books = self.books();
            let Some(state) = books.table.chunk(chunk) else { return Ok(()) };
            let pieces = match state.content() {
                Origin::Nothing => return Ok(()),
                Origin::Zeros => None,
                Origin::Places(extents) => Some(books.pieces(&extents)),
            };
            (state.device, state.bytes, pieces)
        };
        let window =
            device::Window::scratch(device, bytes, handle).map_err(|(_, result)| result)?;
        let stream = device::stream()?;
        let mut copied = match pieces {
            None => device::clear(window.address, bytes, stream),
            Some(_) => Ok(()),
        };
        let mut to = window.address;
        for (from, bytes) in pieces.unwrap_or_default() {
            copied = copied.and_then(|()| device::copy_in(to, from, bytes, stream));
            to += bytes;
        }
        device::drain(stream);
        device::destroy_stream(stream);
        window.close();
        copied
    }

    /// cuMemUnmap of a range; `None`: nothing there is ours. The driver's own mappings in it are its business: `rest`.
    pub(crate) fn unmap(
        &self,
        address: u64,
        bytes: u64,
        rest: impl Fn(u64, u64) -> CuResult,
    ) -> Option<CuResult> {
        let ours = match self.ours_in(address, bytes, rest)? {
            Ok(ours) => ours,
            Err(result) => return Some(result),
        };
        for placed in ours {
            let Some((books, state)) = self.hold(placed.chunk) else { continue };
            drop(books);
            if state == State::Resident
                && let Err(result) = device::unmap(placed.address, placed.bytes)
            {
                self.books().table.release(placed.chunk, state);
                self.changed.notify_all();
                return Some(result);
            }
            let mut books = self.books();
            books.table.change(placed.chunk, |chunk| {
                chunk.mappings.retain(|mapping| mapping.address != placed.address);
            });
            books.table.release(placed.chunk, state);
            let left = books.names.displace(placed.address);
            self.changed.notify_all();
            drop(books);
            self.settle(left);
        }
        Some(CuResult::SUCCESS)
    }

    /// cuMemSetAccess of a range; `None`: nothing there is ours.
    pub(crate) fn set_access(
        &self,
        address: u64,
        bytes: u64,
        grants: &[Grant],
        rest: impl Fn(u64, u64) -> CuResult,
    ) -> Option<CuResult> {
        let ours = match self.ours_in(address, bytes, rest)? {
            Ok(ours) => ours,
            Err(result) => return Some(result),
        };
        for placed in ours {
            let Some((books, state)) = self.hold(placed.chunk) else { continue };
            let owner = books.table.chunk(placed.chunk).map_or(0, |chunk| chunk.device);
            let able = grants.iter().all(|grant| books.peers.may_be_granted(owner, *grant));
            drop(books);
            let opened = match state {
                State::Resident => device::open(placed.address, placed.bytes, grants),
                // What the driver would say when the memory comes, which would then be too late.
                _ if !able => Err(CuResult::INVALID_DEVICE),
                _ => Ok(()),
            };
            let mut books = self.books();
            if opened.is_ok() {
                books.table.change(placed.chunk, |chunk| {
                    let mapping = chunk.mappings.iter_mut().find(|m| m.address == placed.address);
                    if let Some(mapping) = mapping {
                        merge(mapping.access.get_or_insert_default(), grants);
                    }
                });
            }
            books.table.release(placed.chunk, state);
            self.changed.notify_all();
            if let Err(result) = opened {
                return Some(result);
            }
        }
        Some(CuResult::SUCCESS)
    }

    /// cuMemGetAccess; `None`: not ours.
    pub(crate) fn access(&self, address: u64, kind: u32, id: i32) -> Option<u32> {
        if !self.is_active() {
            return None;
        }
        let books = self.books();
        let placed = books.names.at(address)?;
        let mapping = books.table.chunk(placed.chunk)?.mappings.iter();
        let mapping = mapping.into_iter().find(|m| m.address == placed.address)?;
        let granted = mapping.access.as_ref()?.iter().find(|(k, i, _)| (*k, *i) == (kind, id));
        Some(granted.map_or(0, |(_, _, flags)| *flags))
    }

    /// The program has reserved addresses.
    pub(crate) fn reserved(&self, address: u64, bytes: u64) {
        if self.is_active() {
            self.books().addresses.reserve(address, bytes);
        }
    }

    /// …and given them back.
    pub(crate) fn unreserved(&self, address: u64) {
        if self.is_active() {
            self.books().addresses.give(address);
        }
    }

    /// The driver has mapped memory of its own.
    pub(crate) fn mapped_by_driver(&self, address: u64, bytes: u64) {
        if self.is_active() {
            self.books().addresses.map(address, bytes);
        }
    }

    /// …and unmapped a range of it.
    pub(crate) fn unmapped_by_driver(&self, address: u64, bytes: u64) {
        if self.is_active() {
            self.books().addresses.unmap(address, bytes);
        }
    }

    /// Whether the program has memory of ours mapped in a range.
    pub(crate) fn has_mapped(&self, address: u64, bytes: u64) -> bool {
        self.is_active() && !self.books().names.is_free(address, bytes)
    }

    /// Our mappings in a range, when the driver has done what they leave of it: `rest`; `None`: nothing there is ours. As with the driver it
    /// is an error if one lies there in part.
    fn ours_in(
        &self,
        address: u64,
        bytes: u64,
        rest: impl Fn(u64, u64) -> CuResult,
    ) -> Option<Answer<Vec<Placed>>> {
        if !self.is_active() {
            return None;
        }
        let books = self.books();
        if books.names.is_free(address, bytes) {
            return None;
        }
        let ours: Vec<Placed> = books.names.within(address, bytes).collect();
        let end = address.saturating_add(bytes);
        let first = books.names.at(address).is_none_or(|placed| placed.address == address);
        let last = ours.last().is_some_and(|placed| placed.address + placed.bytes <= end);
        if !first || !last {
            return Some(Err(CuResult::INVALID_VALUE));
        }
        let gaps = books.names.gaps(address, bytes);
        drop(books);
        // First what the driver may refuse.
        let others = each(gaps, rest);
        Some(if others.is_success() { Ok(ours) } else { Err(others) })
    }

    /// Takes a chunk from everyone else, waiting for it; `None`: it is gone.
    pub(super) fn hold(&self, chunk: ChunkId) -> Option<(MutexGuard<'_, Books>, State)> {
        let mut books = self.books();
        loop {
            if let Some(state) = books.table.hold(chunk) {
                return Some((books, state));
            }
            if books.table.chunk(chunk).is_none() || books.ended {
                return None;
            }
            books = self.wait(books);
        }
    }

    /// Frees memory of which nothing is left.
    fn settle(&self, left: Left) {
        if let Left::Nothing(chunk) = left {
            self.dispose_chunk(chunk);
            self.books().say();
        }
    }
}

impl Books {
    fn add_mapping(&mut self, chunk: ChunkId, mapping: Mapping, name: u64) {
        self.names.place(mapping.address, mapping.bytes, name);
        self.table.change(chunk, |chunk| chunk.mappings.push(mapping));
    }
}

/// The driver's part of a range, piece by piece.
fn each(gaps: Vec<(u64, u64)>, call: impl Fn(u64, u64) -> CuResult) -> CuResult {
    let results = gaps.into_iter().map(|(address, bytes)| call(address, bytes));
    results.fold(CuResult::SUCCESS, |sum, result| if sum.is_success() { result } else { sum })
}

/// Later grants to a location replace earlier ones.
fn merge(access: &mut Vec<Grant>, grants: &[Grant]) {
    for (kind, id, flags) in grants {
        match access.iter_mut().find(|(k, i, _)| (k, i) == (kind, id)) {
            Some(known) => known.2 = *flags,
            None => access.push((*kind, *id, *flags)),
        }
    }
}
