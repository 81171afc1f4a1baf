//! Page-in: physical memory, mapping, and the content from the host.
//!
//! Owns: the chunks on their way in. Does not own: credit, and which chunk is next (`table`).

use super::{Progress, Retry, Station, has_space};
use crate::link::LINK;
use crate::log::{info, warning};
use crate::pager::allocate::unmake;
use crate::pager::device::Window;
use crate::pager::table::{ChunkId, Inward};
use crate::pager::{PAGER, device};
use acb_cuda_abi::CuResult;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

/// Chunks mapped before the socket is looked at again.
const AT_ONCE: usize = 8;

#[derive(Default)]
pub(super) struct Inbound {
    flights: VecDeque<Flight>,
    bytes: u64,
}

struct Flight {
    id: ChunkId,
    bytes: u64,
    handle: u64,
    event: usize,
    window: Window,
}

impl Inbound {
    pub(super) fn is_moving(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Their context is gone, and their content with it; the memory is there.
    pub(super) fn abandon(&mut self) {
        for flight in self.flights.drain(..) {
            PAGER.books().table.end_in(flight.id, flight.handle, false);
        }
        self.bytes = 0;
        PAGER.changed.notify_all();
    }

    /// Takes in what has arrived.
    pub(super) fn finish(&mut self, station: &mut Station) -> Progress {
        let mut progress = Progress::Idle;
        while let Some(flight) = self.flights.front() {
            let come = device::has_come(flight.event);
            if come == Ok(false) {
                return progress.max(Progress::Waiting);
            }
            let Some(flight) = self.flights.pop_front() else { break };
            self.bytes -= flight.bytes;
            if let Err(result) = come
                && !device::is_lost(result)
            {
                warning!("copying memory back to the GPU failed: {}", device::name(result));
            }
            station.done_with(flight.event);
            flight.window.close();
            let mut books = PAGER.books();
            let open = LINK.gate.snapshot().open;
            books.table.end_in(flight.id, flight.handle, open);
            books.moved.inward += flight.bytes;
            PAGER.changed.notify_all();
            progress = Progress::More;
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
            if let Err((call, result)) = self.bring(&inward, station) {
                PAGER.books().table.fail_in(inward.id);
                PAGER.changed.notify_all();
                tell(retry, device, call, result, inward.bytes);
                retry.failed();
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
                Err(result) if !device::is_lost(result) => {
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

    fn bring(
        &mut self,
        inward: &Inward,
        station: &mut Station,
    ) -> Result<(), (&'static str, CuResult)> {
        let handle = PAGER.make(inward.id).map_err(|result| ("cuMemCreate or cuMemMap", result))?;
        if inward.from.is_empty() {
            let mut books = PAGER.books();
            let open = LINK.gate.snapshot().open;
            books.table.end_in(inward.id, handle, open);
            PAGER.changed.notify_all();
            return Ok(());
        }
        let device = PAGER.books().table.chunk(inward.id).map_or(0, |chunk| chunk.device);
        let window = Window::to(device, inward.bytes, handle, &inward.mappings)
            .inspect_err(|_| {
                unmake(&inward.mappings, handle);
            })
            .map_err(|result| ("cuMemSetAccess", result))?;
        match self.copy(inward, window.address, station) {
            Ok(event) => {
                self.flights.push_back(Flight {
                    id: inward.id,
                    bytes: inward.bytes,
                    handle,
                    event,
                    window,
                });
                self.bytes += inward.bytes;
                Ok(())
            }
            // The program will see its own error; it must not wait for content that cannot come.
            Err(result) if device::is_lost(result) => {
                window.close();
                PAGER.books().table.end_in(inward.id, handle, true);
                PAGER.changed.notify_all();
                Ok(())
            }
            Err(result) => {
                // Parts of it may be under way.
                device::drain(station.inward());
                window.close();
                unmake(&inward.mappings, handle);
                Err(("cuMemcpyHtoDAsync", result))
            }
        }
    }

    fn copy(&self, inward: &Inward, address: u64, station: &mut Station) -> device::Answer<usize> {
        let pieces = PAGER.books().pieces(&inward.from);
        let mut to = address;
        for (from, bytes) in pieces {
            device::copy_in(to, from, bytes, station.inward())?;
            to += bytes;
        }
        station.mark(station.inward())
    }
}

/// Says once what the program waits for.
fn tell(retry: &mut Retry, device: u32, call: &str, result: CuResult, bytes: u64) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let again = TOLD.swap(true, Ordering::Relaxed);
    if std::mem::replace(&mut retry.told, true) {
        return;
    }
    if again {
        info!("{call} on GPU {device} failed again ({}); trying again", device::name(result));
        return;
    }
    warning!(
        "{call} of {} on GPU {device} failed ({}) although the GPU assigner has given room: programs outside of slurm-acb \
         may hold its memory. This program waits and tries again; end the others (nvidia-smi shows them)",
        crate::memory::size(bytes),
        device::name(result)
    );
}
