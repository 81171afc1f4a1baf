//! Page-in: physical memory, mapping, and the content from the host.
//!
//! Owns: the chunks on their way in. Does not own: credit, and which chunk is next (`table`).

use super::{FEW, MANY, Progress, Retry, Station, has_space};
use crate::link::LINK;
use crate::log::{info, warning};
use crate::pager::allocate::{Failure, unmake};
use crate::pager::device::Window;
use crate::pager::table::{ChunkId, Inward, Origin};
use crate::pager::{PAGER, device};
use acb_cuda_abi::CuResult;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

/// Chunks mapped before the socket is looked at again.
const AT_ONCE: usize = 8;
/// Chunks that are made together.
const GROUP: usize = 8;
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
        let mut begun = 0;
        while begun < AT_ONCE {
            let group = match self.next_group(device) {
                Ok(group) => group,
                Err(progress) => return progress,
            };
            begun += group.len();
            if let Err(progress) = self.bring_all(device, group, station, retry) {
                return progress;
            }
            if retry.told {
                info!("there is room on GPU {device} now");
            }
            retry.succeeded();
        }
        Progress::More
    }

    /// Chunks to be brought together: no more than one of full size, and where nothing is on its way the first alone, for the link
    /// waits for it.
    fn next_group(&self, device: u32) -> Result<Vec<Inward>, Progress> {
        let mut books = PAGER.books();
        let chunk = books.rules.chunk_bytes;
        if !has_space(self.flights.len(), self.bytes, chunk) || !self.is_time(chunk) {
            return Err(Progress::Waiting);
        }
        let metered = books.metered;
        let (mut group, mut left): (Vec<Inward>, _) = (Vec::new(), u64::MAX);
        let is_alone = |first: &Inward| !self.is_moving() && first.from != Origin::Nothing;
        while group.len() < GROUP && !group.first().is_some_and(is_alone) {
            let Some(inward) = books.table.begin_next_in(device, metered, left) else { break };
            left = left.min(chunk).saturating_sub(inward.bytes);
            group.push(inward);
        }
        match (group.is_empty(), self.is_moving()) {
            (false, _) => Ok(group),
            (true, true) => Err(Progress::Waiting),
            (true, false) => Err(Progress::Idle),
        }
    }

    /// Small chunks are not brought one by one as others arrive.
    fn is_time(&self, chunk: u64) -> bool {
        self.flights.len() < FEW || self.bytes <= chunk && self.flights.len() <= MANY - GROUP
    }

    /// Makes chunks, opens neighbours together, and queues their copies. An error: what to do now; those that follow are absent again.
    fn bring_all(
        &mut self,
        device: u32,
        group: Vec<Inward>,
        station: &mut Station,
        retry: &mut Retry,
    ) -> Result<(), Progress> {
        let (mut made, mut handles, mut trouble) = (Vec::new(), BTreeMap::new(), None);
        for inward in &group {
            match PAGER.make_closed(inward.id) {
                Ok(one) => made.push(one),
                Err(failure) => {
                    trouble = Some((inward.bytes, failure));
                    break;
                }
            }
        }
        for (id, opened) in PAGER.open_all(made) {
            match opened {
                Ok(handle) => {
                    handles.insert(id, handle);
                }
                Err(failure) => {
                    let bytes = group.iter().find(|it| it.id == id).map_or(0, |it| it.bytes);
                    trouble.get_or_insert((bytes, failure));
                }
            }
        }
        let mut absent = Vec::new();
        for inward in &group {
            let handle = handles.get(&inward.id).copied();
            let filled = handle.map(|handle| self.fill(device, inward, handle, station));
            match filled {
                Some(Ok(())) => {}
                Some(Err(failure)) => {
                    trouble.get_or_insert((inward.bytes, failure));
                    absent.push((inward.id, handle.unwrap_or(0)));
                }
                None => absent.push((inward.id, 0)),
            }
        }
        let Some((bytes, (call, result))) = trouble else { return Ok(()) };
        let bereft = PAGER.failed_in(station.carrier, device, call, result);
        for (id, handle) in absent {
            settle(id, handle, bereft);
        }
        if result == CuResult::OUT_OF_MEMORY && !bereft {
            PAGER.short(device, bytes, device::free_memory());
        }
        if !device::is_lost(result) {
            tell(retry, device, (call, result), bytes);
            retry.failed();
        }
        Err(Progress::Waiting)
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
            let Some(inward) = books.table.begin_next_in(device, metered, u64::MAX) else {
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

    /// Queues what comes into a chunk that is there.
    fn fill(
        &mut self,
        device: u32,
        inward: &Inward,
        handle: u64,
        station: &mut Station,
    ) -> Result<(), Failure> {
        if inward.from == Origin::Nothing {
            let mut books = PAGER.books();
            let open = LINK.gate.snapshot().open;
            books.table.end_in(inward.id, handle, open);
            PAGER.changed.notify_all();
            return Ok(());
        }
        let window = Window::to(device, inward.bytes, handle, &inward.mappings)?;
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
                Err((call, result))
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
