//! Opening a device's memory to others, and closing it again, on the program's own threads.
//!
//! Owns: what a change of peer access does to chunks that exist, and which copies need contexts. Does not own: what is enabled (`peers`); memory that the program
//! has mapped itself, which it opens itself (`mapped`).

use super::device::{self, Answer};
use super::table::{ChunkId, Grant, Mapping, State};
use super::{Described, Pager};
use crate::log::{info, warning};
use crate::work;
use acb_cuda_abi::CuResult;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether there are devices in use of which one does not reach the other's memory.
pub(crate) static APART: AtomicBool = AtomicBool::new(false);

/// The ends of a copy that the current device cannot make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Apart {
    /// Contexts of the memory: to, and from.
    Devices(usize, usize),
    /// The other end is not the pager's: the context of this one.
    Host(usize),
}

impl Pager {
    /// A device has a context: it may be told to copy memory of others, which is open to it from now on.
    pub(super) fn arrived(&self, device: u32) {
        let open = {
            let mut books = self.books();
            let open = books.peers.arrive(device);
            APART.store(books.peers.are_apart(), Ordering::Relaxed);
            open
        };
        for owner in open {
            if self.spread(owner).is_err() && self.close_to_others(owner) {
                self.spread_quietly(owner);
            }
        }
    }

    /// The driver would not open a device's memory to others that can reach it: copies name contexts instead.
    pub(super) fn close_to_others(&self, owner: u32) -> bool {
        let mut books = self.books();
        let before = books.peers.grants(owner);
        let news = books.peers.close(owner) && books.peers.grants(owner) != before;
        APART.store(books.peers.are_apart(), Ordering::Relaxed);
        if news {
            info!("memory of GPU {owner} is not opened to others, as the driver refuses to");
        }
        news
    }

    /// The same for a chunk that the caller is making: what of its mappings is the pager's own is to be open to its device alone.
    pub(super) fn keep_to_itself(&self, chunk: ChunkId) -> bool {
        let Some((device, mappings)) =
            self.books().table.chunk(chunk).map(|it| (it.device, it.mappings.clone()))
        else {
            return false;
        };
        let own = mappings.iter().all(|mapping| self.books().names.at(mapping.address).is_none());
        let many = |mapping: &Mapping| mapping.access.as_ref().is_some_and(|all| all.len() > 1);
        if !own || !mappings.iter().any(many) {
            return false;
        }
        self.close_to_others(device);
        let mut books = self.books();
        let access = books.peers.grants(device);
        if mappings.iter().all(|mapping| mapping.access == access) {
            return false;
        }
        books.table.change(chunk, |chunk| {
            chunk.mappings.iter_mut().for_each(|mapping| mapping.access = access.clone());
        });
        true
    }

    /// Contexts for a copy that the current device cannot make; `None`: it can, or its memory is not the pager's own.
    pub(crate) fn apart(&self, to: u64, from: u64) -> Option<Apart> {
        let current = device::current_device()?;
        let own = |address| self.describe(address).filter(|found| found.context != 0);
        let ends = (own(to), own(from));
        let books = self.books();
        let out_of_reach = |end: &Described| !books.peers.reaches(current, end.device);
        match ends {
            (Some(to), Some(from)) if out_of_reach(&to) || out_of_reach(&from) => {
                Some(Apart::Devices(to.context, from.context))
            }
            (Some(one), None) | (None, Some(one)) if out_of_reach(&one) => {
                Some(Apart::Host(one.context))
            }
            _ => None,
        }
    }

    /// Whom a device's memory is open to, beside itself.
    pub(super) fn grants_of(&self, owner: u32) -> Option<Vec<Grant>> {
        self.is_active().then(|| self.books().peers.grants(owner)).flatten()
    }

    /// The context of memory that the current device does not reach.
    pub(crate) fn owner_out_of_reach(&self, address: u64) -> Option<usize> {
        let current = device::current_device()?;
        let found = self.describe(address).filter(|found| found.context != 0)?;
        (!self.books().peers.reaches(current, found.device)).then_some(found.context)
    }

    /// cuCtxEnablePeerAccess has succeeded: context `from` reaches the memory of `to`.
    pub(crate) fn enable_peer(&self, from: usize, to: usize) -> Answer<()> {
        let Some((by, owner)) = self.device_of(from).zip(self.device_of(to)) else { return Ok(()) };
        self.books().peers.enable(from, to, by, owner);
        self.spread(owner)
    }

    pub(crate) fn disable_peer(&self, from: usize, to: usize) {
        if !self.is_active() {
            return;
        }
        let owner = self.books().peers.disable(from, to);
        if let Some(owner) = owner {
            self.spread_quietly(owner);
        }
    }

    fn device_of(&self, context: usize) -> Option<u32> {
        if !self.is_active() {
            return None;
        }
        let known = self.books().contexts.device(context);
        known.or_else(|| {
            let _ = work::with_context(context, || {
                self.note_context(context);
                CuResult::SUCCESS
            });
            self.books().contexts.device(context)
        })
    }

    /// Brings all chunks of a device's allocations to what is enabled now.
    pub(super) fn spread(&self, device: u32) -> Answer<()> {
        let mut outcome = Ok(());
        let chunks = self.books().ranges.chunks_of(device);
        for chunk in chunks {
            let Some((books, state)) = self.hold(chunk) else { continue };
            // Asked for each anew: another thread may have changed it meanwhile.
            let access = books.peers.grants(device);
            let mappings = books.table.chunk(chunk).map_or(Vec::new(), |c| c.mappings.clone());
            drop(books);
            let mut opened = Ok(());
            for mapping in mappings.iter().filter(|_| state == State::Resident) {
                let difference = difference(mapping.access.as_deref(), access.as_deref());
                if !difference.is_empty() {
                    let this = device::open(mapping.address, mapping.bytes, &difference);
                    opened = opened.and(this);
                }
            }
            let mut books = self.books();
            if opened.is_ok() {
                books.table.change(chunk, |chunk| {
                    chunk.mappings.iter_mut().for_each(|mapping| mapping.access = access.clone());
                });
            }
            books.table.release(chunk, state);
            self.changed.notify_all();
            outcome = outcome.and(opened);
        }
        outcome
    }

    /// The same where nobody can be told but the user.
    pub(super) fn spread_quietly(&self, device: u32) {
        if let Err(result) = self.spread(device) {
            warning!(
                "cuMemSetAccess failed ({}): other GPUs may not reach all memory of GPU {device} although the program has \
                 enabled it, or may still. Start the program with ACB_PAGER=off",
                device::name(result)
            );
        }
    }
}

/// What must be granted and taken so that `old` becomes `new`; an own device always reaches its memory.
fn difference(old: Option<&[Grant]>, new: Option<&[Grant]>) -> Vec<Grant> {
    let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
    let own = new.first().or(old.first());
    let gone = old.iter().filter(|grant| !new.contains(grant) && Some(*grant) != own);
    let come = new.iter().filter(|grant| !old.contains(grant) && Some(*grant) != own);
    come.copied().chain(gone.map(|(kind, id, _)| (*kind, *id, 0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::device::read_write;

    #[test]
    fn only_what_has_changed_is_granted_or_taken() {
        let [own, a, b] = [0, 1, 2].map(read_write);
        assert_eq!(difference(None, Some(&[own, a])), [a]);
        assert_eq!(difference(Some(&[own, a]), Some(&[own, a, b])), [b]);
        assert_eq!(difference(Some(&[own, a, b]), Some(&[own, b])), [(a.0, a.1, 0)]);
        assert_eq!(difference(Some(&[own, a]), None), [(a.0, a.1, 0)]);
        assert!(difference(None, None).is_empty());
    }
}
