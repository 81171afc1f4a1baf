//! Memory that leaves the pager's hands: what others were given of it must stay what it is.
//!
//! Owns: bringing such chunks to the GPU for good, and why. Does not own: the calls that hand memory out (`hooks::share`), or
//! how chunks that stay are passed over (`table`).
//!
//! A chunk that stays is claimed and resident as before, so it is counted; it is reported with its reason, and the assigner, when
//! it asks for the memory, hears that reason.

use super::device::{self, Answer};
use super::table::{ChunkId, State};
use super::{Books, Pager};
use crate::log::warning;
use crate::memory::size;
use crate::paths::{Seen, has_loaded_since};
use acb_cuda_abi::CuResult;
use std::collections::BTreeMap;

/// Why memory stays, as status shows it.
pub(crate) type Why = &'static str;

/// Network cards reach it.
pub(crate) const RDMA: Why = "rdma";

/// Physical memory that stays from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pinned {
    /// The driver's handle.
    There(u64),
    /// The gate has closed before it came: to be tried again.
    NotYet,
}

impl Pager {
    /// The driver's handle of a program's own object, which is never moved again. Inside the gate.
    pub(crate) fn pin(&self, name: u64, why: Why) -> Answer<Pinned> {
        let chunk = self.books().names.get(name).map(|object| object.chunk);
        self.pin_chunk(chunk.ok_or(CuResult::INVALID_VALUE)?, why)
    }

    /// All of the pager's memory in a range of addresses. Inside the gate.
    pub(crate) fn pin_range(&self, address: u64, bytes: u64, why: Why) -> Answer<Pinned> {
        let chunks = match self.is_active() {
            true => self.books().chunks_within(address, bytes),
            false => Vec::new(),
        };
        for chunk in chunks {
            match self.pin_chunk(chunk, why)? {
                Pinned::There(_) => {}
                Pinned::NotYet => return Ok(Pinned::NotYet),
            }
        }
        Ok(Pinned::There(0))
    }

    fn pin_chunk(&self, chunk: ChunkId, why: Why) -> Answer<Pinned> {
        for _ in 0..2 {
            let Some((mut books, state)) = self.hold(chunk) else {
                return Err(CuResult::INVALID_VALUE);
            };
            let mut pinned = Pinned::NotYet;
            if state == State::Resident {
                let new = books.table.change(chunk, |chunk| {
                    pinned = Pinned::There(chunk.handle);
                    chunk.stays.replace(why).is_none().then_some((chunk.device, chunk.bytes))
                });
                if let Some((device, bytes)) = new.flatten() {
                    books.pins += 1;
                    warning!(
                        "{} of memory stays on GPU {device} from now on, as others may use it ({why}): what other programs \
                         need is not taken from there",
                        size(bytes)
                    );
                }
            }
            books.table.release(chunk, state);
            self.changed.notify_all();
            drop(books);
            if pinned != Pinned::NotYet {
                return Ok(pinned);
            }
            // Mapped nowhere, or it would be there.
            self.bring_unmapped(chunk)?;
        }
        Ok(Pinned::NotYet)
    }
}

impl Books {
    /// For each device what of its memory stays, in bytes by reason.
    pub(super) fn staying(&self) -> Vec<BTreeMap<Why, u64>> {
        let mut devices = vec![BTreeMap::new(); self.table.accounts.len()];
        // Seldom is anything; then all of the chunks need not be looked at.
        if self.pins == 0 {
            return devices;
        }
        for (device, why, bytes) in self.table.staying() {
            *devices[device as usize].entry(why).or_insert(0) += bytes;
        }
        devices
    }

    pub(super) fn staying_bytes(&self, device: u32) -> u64 {
        self.staying().swap_remove(device as usize).values().sum()
    }

    /// What of a device's memory stays, for people; empty: nothing.
    pub(super) fn tell_staying(&self, device: u32) -> String {
        let reasons = self.staying().swap_remove(device as usize);
        let parts: Vec<String> =
            reasons.into_iter().map(|(why, bytes)| format!("{} ({why})", size(bytes))).collect();
        parts.join(", ")
    }

    fn chunks_within(&self, address: u64, bytes: u64) -> Vec<ChunkId> {
        let end = address.saturating_add(bytes.max(1));
        let mut chunks: Vec<ChunkId> = self
            .ranges
            .chunks_within(address, end, |id| self.table.chunk(id).map_or(0, |chunk| chunk.bytes));
        let mapped =
            self.names.at(address).into_iter().chain(self.names.within(address, end - address));
        chunks.extend(mapped.map(|placed| placed.chunk));
        chunks.dedup();
        chunks
    }
}

/// Whether a library is in this process through which memory is registered with devices that no call of the driver tells of.
pub(crate) fn has_rdma() -> bool {
    static SEEN: Seen = Seen::new();
    has_loaded_since(&SEEN, b"libibverbs.so")
}

/// Handle types that a chunk can have from the start, for a later export: files. Others depend on the machine, and are the
/// driver's own.
pub(crate) const EXPORTABLE: u32 = device::FILE_DESCRIPTOR;
