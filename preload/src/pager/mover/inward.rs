//! Page-in: physical memory, mapping, and the content from the host.
//!
//! Owns: the chunks on their way in. Does not own: credit, and which chunk is next (`table`).

use super::{Progress, Retry, Station, has_space};
use crate::link::LINK;
use crate::log::{info, warning};
use crate::pager::allocate::{Failure, unmake};
use crate::pager::device::Window;
use crate::pager::table::{ChunkId, Inward, Origin};
use crate::pager::{PAGER, device};
use acb_cuda_abi::CuResult;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

/// Chunks mapped before the socket is looked at again.
const AT_ONCE: usize = 8;
const COPY: &str = "cuMemcpyHtoDAsync";
const CLEAR: &str = "cuMemsetD8Async";

#[derive(Default)]
pub(super) struct Inbound {
    flights: VecDeque<Flight>,
    bytes: u64,
}

struct Flight {
    id: ChunkId,
    bytes: u64,
    /// What of them comes over the link.
    copied: u64,
    handle: u64,
    event: usize,
    window: Window,
}

impl Inbound {
    pub(super) fn is_moving(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Their context is gone, and what was to come with it, unless there is another: the host has it still.
    pub(super) fn abandon(&mut self, bereft: bool) {
        for flight in std::mem::take(&mut self.flights) {
            flight.window.close();
            settle(flight.id, flight.handle, bereft);
        }
        self.bytes = 0;
    }

    /// Takes in what has arrived.
    pub(super) fn finish(
        &mut self,
        device: u32,
        station: &mut Station,
        retry: &mut Retry,
    ) -> Progress {
        let mut progress = Progress::Idle;
        while let Some(flight) = self.flights.front() {
            let come = device::has_come(flight.event);
            if come == Ok(false) {
                return progress.max(Progress::Waiting);
            }
            let Some(flight) = self.flights.pop_front() else { break };
            self.bytes -= flight.bytes;
            station.done_with(flight.event);
            flight.window.close();
            progress = Progress::More;
            if let Err(result) = come {
                let bereft = PAGER.failed_in(station.carrier, device, COPY, result);
                settle(flight.id, flight.handle, bereft);
                if !device::is_lost(result) {
                    tell(retry, device, (COPY, result), flight.bytes);
                    retry.failed();
                }
                continue;
            }
            let mut books = PAGER.books();
            let open = LINK.gate.snapshot().open;
            books.table.end_in(flight.id, flight.handle, open);
            books.moved.inward += flight.copied;
            PAGER.changed.notify_all();
        }
        progress
    }

    /// Begins what there is credit for.
    pub(super) fn begin(
        &mut self,
        device: u32,
        station: &mut Station,
        retry: &mut Retry,
    ) -> Progress {
        if !retry.is_due() {
            return Progress::Waiting;
        }
        for _ in 0..AT_ONCE {
            let next = {
                let mut books = PAGER.books();
                let chunk = books.rules.chunk_bytes;
                if !has_space(self.flights.len(), self.bytes, chunk) {
                    return Progress::Waiting;
                }
                let metered = books.metered;
                books.table.begin_next_in(device, metered)
            };
            let Some(inward) = next else {
                return if self.is_moving() { Progress::Waiting } else { Progress::Idle };
            };
            if let Err((made, (call, result))) = self.bring(device, &inward, station) {
                let bereft = PAGER.failed_in(station.carrier, device, call, result);
                settle(inward.id, made, bereft);
                if result == CuResult::OUT_OF_MEMORY && !bereft {
                    PAGER.short(device, inward.bytes, device::free_memory());
                }
                if !device::is_lost(result) {
                    tell(retry, device, (call, result), inward.bytes);
                    retry.failed();
                }
                return Progress::Waiting;
            }
            if retry.told {
                info!("there is room on GPU {device} now");
            }
            retry.succeeded();
        }
        Progress::More
    }

    /// All contexts are broken: memory comes without its content, or in name alone, so that the program is told of its own error
    /// and does not wait.
    pub(super) fn pretend(&mut self, device: u32, retry: &mut Retry) -> Progress {
        if !retry.is_due() {
            return Progress::Waiting;
        }
        for _ in 0..AT_ONCE {
            let mut books = PAGER.books();
            let metered = books.metered;
            let Some(inward) = books.table.begin_next_in(device, metered) else {
                return Progress::Idle;
            };
            drop(books);
            let handle = match PAGER.make(inward.id) {
                Err((_, result)) if !device::is_lost(result) => {
                    PAGER.books().table.fail_in(inward.id);
                    PAGER.changed.notify_all();
                    retry.failed();
                    return Progress::Waiting;
                }
                made => made.unwrap_or(0),
            };
            PAGER.books().table.end_in(inward.id, handle, true);
            PAGER.changed.notify_all();
        }
        Progress::More
    }

    /// The handle of what was made before it failed, and why it did.
    fn bring(
        &mut self,
        device: u32,
        inward: &Inward,
        station: &mut Station,
    ) -> Result<(), (u64, Failure)> {
        let handle = PAGER.make(inward.id).map_err(|failure| (0, failure))?;
        if inward.from == Origin::Nothing {
            let mut books = PAGER.books();
            let open = LINK.gate.snapshot().open;
            books.table.end_in(inward.id, handle, open);
            PAGER.changed.notify_all();
            return Ok(());
        }
        let window = Window::to(device, inward.bytes, handle, &inward.mappings)
            .map_err(|failure| (handle, failure))?;
        match self.copy(inward, window.address, station) {
            Ok(event) => {
                let (id, bytes) = (inward.id, inward.bytes);
                let copied = if inward.from == Origin::Zeros { 0 } else { bytes };
                self.flights.push_back(Flight { id, bytes, copied, handle, event, window });
                self.bytes += inward.bytes;
                Ok(())
            }
            Err(result) => {
                // Parts of it may be under way.
                device::drain(station.inward());
                window.close();
                let call = if inward.from == Origin::Zeros { CLEAR } else { COPY };
                Err((handle, (call, result)))
            }
        }
    }

    fn copy(&self, inward: &Inward, address: u64, station: &mut Station) -> device::Answer<usize> {
        let pieces = match &inward.from {
            Origin::Places(extents) => PAGER.books().pieces(extents),
            _ => {
                device::clear(address, inward.bytes, station.inward())?;
                Vec::new()
            }
        };
        let mut to = address;
        for (from, bytes) in pieces {
            device::copy_in(to, from, bytes, station.inward())?;
            to += bytes;
        }
        station.mark(station.inward())
    }
}

/// What becomes of a chunk whose content did not come: it is absent, and the host has the content still. Only where no context
/// works any more it is there without: the program will see its own error, and must not wait for what cannot come.
fn settle(id: ChunkId, handle: u64, bereft: bool) {
    let (device, mappings) = {
        let mut books = PAGER.books();
        let Some(chunk) = books.table.chunk(id) else { return };
        let known = (chunk.device, chunk.mappings.clone());
        if bereft {
            books.table.end_in(id, handle, true);
            PAGER.changed.notify_all();
            return;
        }
        known
    };
    if let Err((call, result)) = unmake(device, &mappings, handle) {
        let cause = device::name(result);
        warning!(
            "{call} of memory that could not be filled failed ({cause}): GPU {device} keeps it until the program ends"
        );
    }
    PAGER.books().table.fail_in(id);
    PAGER.changed.notify_all();
}

/// Says once what the program waits for.
fn tell(retry: &mut Retry, device: u32, (call, result): Failure, bytes: u64) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let again = TOLD.swap(true, Ordering::Relaxed);
    if std::mem::replace(&mut retry.told, true) {
        return;
    }
    let cause = device::name(result);
    if again {
        info!("{call} on GPU {device} failed again ({cause}); trying again");
        return;
    }
    let remedy = match result {
        CuResult::OUT_OF_MEMORY => {
            "although the GPU assigner has given room: programs outside of slurm-acb may hold its memory; others are asked to make room, \
             but end such programs (nvidia-smi shows them)"
        }
        _ => {
            "and the program waits for its memory: look for Xid errors of this GPU (dmesg), and end the program if it goes on"
        }
    };
    warning!(
        "{call} of {} on GPU {device} failed ({cause}) {remedy}. It is tried again",
        crate::memory::size(bytes)
    );
}
