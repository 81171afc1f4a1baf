//! Opening a device's memory to others, and closing it again, on the program's own threads.
//!
//! Owns: what a change of peer access does to chunks that exist. Does not own: what is enabled (`peers`); memory that the program
//! has mapped itself, which it opens itself (`mapped`).

use super::Pager;
use super::device::{self, Answer};
use super::table::{Grant, State};
use crate::log::warning;
use crate::work;
use acb_cuda_abi::CuResult;

impl Pager {
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
