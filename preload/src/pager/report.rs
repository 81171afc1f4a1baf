//! What the assigner is told for status: memory that is never moved, and how much has been moved.
//!
//! Owns: when it is told. Does not own: the figures.

use super::{Books, Moved, PAGER};
use crate::link::LINK;
use crate::memory::LEDGER;
use acb_wire::v1::{FixedMemory, MemoryReport, client_message::Kind};
use std::collections::BTreeMap;

/// The last report, so that only news is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reporter {
    moved: Moved,
    arena: u64,
    fixed: Vec<BTreeMap<&'static str, u64>>,
    /// For each device why nothing of this program can be moved; empty: it can.
    pinned: Vec<String>,
}

impl Reporter {
    /// Tells what has changed. What is moved is counted for all devices together, and told for the first.
    pub(crate) fn report(&mut self) {
        if !LINK.is_connected() {
            return;
        }
        let mut fixed = LEDGER.fixed();
        let (moved, arena, pinned) = {
            let books = PAGER.books();
            let staying = if PAGER.is_active() { books.staying() } else { Vec::new() };
            for (device, kinds) in fixed.iter_mut().zip(staying) {
                for (kind, bytes) in kinds {
                    *device.entry(kind).or_insert(0) += bytes;
                }
            }
            let pinned = (0..fixed.len()).map(|device| books.why_pinned(device as u32)).collect();
            (books.moved, books.table.places.total(), pinned)
        };
        let news = Reporter { moved, arena, fixed, pinned };
        if news == *self {
            return;
        }
        for (device, kinds) in news.fixed.iter().enumerate() {
            let kinds = kinds.iter();
            let fixed =
                kinds.map(|(kind, bytes)| FixedMemory { kind: (*kind).into(), bytes: *bytes });
            let mut report = MemoryReport {
                device: device as u32,
                fixed: fixed.collect(),
                pinned: news.pinned[device].clone(),
                ..MemoryReport::default()
            };
            if device == 0 {
                report.arena = arena;
                report.paged_out = moved.out;
                report.paged_in = moved.inward;
                report.clean = moved.clean;
                report.pin_in_switch_ns = moved.pin_ns;
                report.lies = moved.lies;
            }
            LINK.send(Kind::MemoryReport(report));
        }
        *self = news;
    }
}

impl Books {
    /// Why nothing of the memory on a device can be moved; empty: it can, or there is none.
    fn why_pinned(&self, device: u32) -> String {
        let Some(account) = self.table.accounts.get(device as usize) else {
            return self.off.to_owned();
        };
        let staying = self.staying_bytes(device);
        match staying > 0 && staying >= account.needed() {
            true => format!("shares its memory with others: {}", self.tell_staying(device)),
            false => String::new(),
        }
    }
}
