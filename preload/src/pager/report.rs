//! What the assigner is told for status: memory that is never moved, and how much has been moved.
//!
//! Owns: when it is told. Does not own: the figures.

use super::{Moved, PAGER};
use crate::link::LINK;
use acb_wire::v1::{MemoryReport, client_message::Kind};

/// The last report, so that only news is told.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    moved: Moved,
    arena: u64,
}

impl Reporter {
    /// Tells what has changed. What is moved is counted for all devices together, and told for the first.
    pub(crate) fn report(&mut self) {
        if !PAGER.is_active() || !LINK.is_connected() {
            return;
        }
        let (moved, arena) = {
            let books = PAGER.books();
            (books.moved, books.table.places.total())
        };
        if moved == self.moved && arena == self.arena {
            return;
        }
        *self = Reporter { moved, arena };
        LINK.send(Kind::MemoryReport(MemoryReport {
            device: 0,
            arena,
            paged_out: moved.out,
            paged_in: moved.inward,
            clean: moved.clean,
            pin_in_switch_ns: moved.pin_ns,
            ..MemoryReport::default()
        }));
    }
}
