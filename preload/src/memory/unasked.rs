//! The account of what the driver takes for itself without a call that says so: code, local memory, executable graphs.
//!
//! Owns: how much room is asked for when a call fails for want of it, and what of that stays booked. Does not own: which
//! calls those are (`hooks::unasked`), or measuring (`measuring`).

use super::measuring::Uncounted;
use super::{Books, Key, LEDGER, Ledger, MemoryKind, Portion, Promise};
use acb_wire::v1::RoomKind;

/// Such memory, as status calls it.
pub(super) const DRIVER: MemoryKind = "driver";

/// Nobody knows how much a call needs: such a part of the GPU is asked for, within these bounds, and less where that is denied.
const PART: u64 = 16;
const LEAST: u64 = 2 << 20;
const MOST: u64 = 1 << 30;

impl Ledger {
    /// Room for a call that has found none, and for what the driver is known to have taken before. `None`: nothing is counted;
    /// an error: the reason why there is none.
    pub(crate) fn reserve_unasked(
        &self,
        device: i32,
        known: Option<Uncounted>,
    ) -> Option<Result<Promise, String>> {
        let device = device as u32;
        let capacity = self.books().devices.get(device as usize)?.capacity;
        let known = known.map_or(0, Uncounted::bytes).next_multiple_of(LEAST);
        let mut bytes = (capacity / PART).clamp(LEAST, MOST).next_multiple_of(LEAST);
        loop {
            let all = bytes + known;
            match self.ask(device, all, RoomKind::Memory, Portion::Exact) {
                Ok(()) => {
                    let portion = Portion::Exact;
                    return Some(Ok(Promise { device, bytes: all, portion, kind: DRIVER }));
                }
                Err(_) if bytes > LEAST => bytes = (bytes / 4).max(LEAST),
                Err(reason) => return Some(Err(reason)),
            }
        }
    }

    /// The call has succeeded: what the driver has taken stays booked, or all if nobody can tell. How much that is.
    pub(crate) fn taken_unasked(&self, promise: Promise, left: Option<Uncounted>) -> u64 {
        let Promise { device, bytes, portion, .. } = promise;
        let unused = left.map_or(0, Uncounted::unused).min(bytes);
        let taken = bytes - unused;
        if taken > 0 {
            self.grown(Promise { bytes: taken, ..promise }, Key::Driver(device), 0);
        }
        if unused > 0 {
            self.give_back(&mut self.books(), device, unused, portion);
        }
        taken
    }

    /// A context is gone; with the last one on a device all that the driver had there is.
    pub(super) fn driver_gone(&self, books: &mut Books, device: u32) {
        if books.contexts.values().any(|(other, _)| *other == device) {
            return;
        }
        if let Some(gone) = books.holdings.remove(&Key::Driver(device)) {
            LEDGER.give_back(books, device, gone.bytes, gone.portion);
        }
    }
}
