//! What the assigner is told for status: memory that is never moved, and how much has been moved.
//!
//! Owns: when it is told. Does not own: the figures.

use super::{Moved, PAGER};
use crate::link::LINK;
use crate::memory::LEDGER;
use acb_wire::v1::{FixedMemory, MemoryReport, client_message::Kind};
use std::collections::BTreeMap;

/// The last report, so that only news is told.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    moved: Moved,
    arena: u64,
    fixed: Vec<BTreeMap<&'static str, u64>>,
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
        // Plain pointers that the pager does not own are managed memory, or a graph's.
        let mut fixed = LEDGER.fixed("managed");
        for (device, kinds) in fixed.iter_mut().zip(PAGER.staying()) {
            for (kind, bytes) in kinds {
                *device.entry(kind).or_insert(0) += bytes;
            }
        }
        if moved == self.moved && arena == self.arena && fixed == self.fixed {
            return;
        }
        for (device, kinds) in fixed.iter().enumerate() {
            let kinds = kinds.iter();
            let fixed =
                kinds.map(|(kind, bytes)| FixedMemory { kind: (*kind).into(), bytes: *bytes });
            let mut report = MemoryReport {
                device: device as u32,
                fixed: fixed.collect(),
                ..MemoryReport::default()
            };
            if device == 0 {
                report.arena = arena;
                report.paged_out = moved.out;
                report.paged_in = moved.inward;
                report.clean = moved.clean;
                report.pin_in_switch_ns = moved.pin_ns;
            }
            LINK.send(Kind::MemoryReport(report));
        }
        *self = Reporter { moved, arena, fixed };
    }
}
