//! Paged memory comes and goes, on the program's own threads.
//!
//! Owns: the order of claim, addresses, chunks and books. Does not own: when chunks are moved (`mover`).

use super::device::{self, Answer};
use super::handed;
use super::making::Made;
use super::pins::{RDMA, Why, has_rdma};
use super::ranges::{GRANULE, NewRange, Range, SMALL, split};
use super::table::{ChunkId, Mapping, State};
use super::{Books, Pager};
use crate::hooks::unasked;
use crate::link::LINK;
use crate::log::{debug, warning};
use crate::memory::size;
use crate::work;
use acb_cuda_abi::CuResult;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long an allocation with room in hand waits for a GPU that is full of others' memory.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);
/// So many chunks of an allocation are made together, where there is credit for them.
const TOGETHER: usize = 64;
/// The assigner is told after so many chunks have been freed.
const SAY_EACH: usize = 16;

impl Pager {
    /// Memory in the current context, as cuMemAlloc gives it.
    pub(crate) fn allocate(&self, call: &'static str, bytes: u64) -> Answer<u64> {
        let handle = work::current_context();
        let device = device::current_device().ok_or(CuResult::INVALID_CONTEXT)?;
        if device >= self.books().devices() {
            return Err(CuResult::INVALID_DEVICE);
        }
        self.allocate_on(call, bytes, device, handle)
    }

    /// Memory on a device, of a context there.
    pub(super) fn allocate_on(
        &self,
        call: &'static str,
        bytes: u64,
        device: u32,
        handle: usize,
    ) -> Answer<u64> {
        let (context, new) = {
            let mut books = self.books();
            (books.contexts.note(handle, device), !books.peers.is_present(device))
        };
        if new {
            self.arrived(device);
        }
        let place = Place { call, device, context };
        if bytes >= SMALL {
            let whole = bytes.checked_next_multiple_of(GRANULE).ok_or(CuResult::OUT_OF_MEMORY)?;
            return self.add_range(place, whole, Some(bytes));
        }
        loop {
            let mut books = self.books();
            if let Some(address) = books.ranges.cut(device, context, bytes) {
                return Ok(address);
            }
            let shared = books.ranges.next_shared(device, context);
            drop(books);
            match self.add_range(place, shared, None) {
                // As small as it can be, then.
                Err(CuResult::OUT_OF_MEMORY) if shared > GRANULE => {
                    self.add_range(place, GRANULE, None)?
                }
                other => other?,
            };
        }
    }

    /// A range of addresses with chunks behind it; `requested`: for one allocation, else to be shared.
    fn add_range(&self, place: Place, bytes: u64, requested: Option<u64>) -> Answer<u64> {
        let Place { call, device, context } = place;
        self.reap();
        let mut claimed = self.claim(device, bytes);
        if claimed.is_err() {
            let reaped = self.reap_waiting(device);
            if self.drain_device(device) || reaped {
                claimed = self.claim(device, bytes);
            }
        }
        if let Err(reason) = claimed {
            warning!(
                "{call}: {} on GPU {device} refused, CUDA_ERROR_OUT_OF_MEMORY is returned: {reason}",
                size(bytes)
            );
            return Err(CuResult::OUT_OF_MEMORY);
        }
        let start = match device::reserve(bytes) {
            Ok(start) => start,
            Err(result) => {
                self.unclaim(device, bytes);
                warning!(
                    "{call}: cuMemAddressReserve of {} failed ({}), which is returned: look at this process's limit of \
                     virtual memory (ulimit -v), or set ACB_PAGER=off",
                    size(bytes),
                    device::name(result)
                );
                return Err(result);
            }
        };
        let stays = self.why_all_stays();
        let (sizes, access) = {
            let books = self.books();
            let sizes: Vec<u64> = match stays {
                Some(_) => vec![bytes],
                None => split(bytes, books.rules.chunk_bytes).collect(),
            };
            (sizes, books.peers.grants(device))
        };
        let mut address = start;
        let pieces: Vec<(u64, Vec<Mapping>)> = sizes
            .into_iter()
            .map(|bytes| {
                let mapping = Mapping { address, bytes, offset: 0, access: access.clone() };
                address += bytes;
                (bytes, vec![mapping])
            })
            .collect();
        let chunks =
            self.place_twice(call, device, &pieces, stays).map_err(|(failed, result)| {
                let _ = device::free_addresses(start, bytes);
                warning!(
                    "{call}: {failed} of {} on GPU {device} failed ({}), which is returned: {}",
                    size(bytes),
                    device::name(result),
                    remedy(result)
                );
                result
            })?;
        let range = NewRange { bytes, device, context, chunks };
        let mut books = self.books();
        match requested {
            Some(requested) => books.ranges.add_whole(start, range, requested),
            None => books.ranges.add_shared(start, range),
        }
        let changed = books.peers.grants(device) != access;
        drop(books);
        if changed {
            self.spread_quietly(device);
        }
        Ok(start)
    }

    /// Network cards reach one piece of memory that stays where it is, once it is registered with them; no call of the driver tells
    /// when that is.
    fn why_all_stays(&self) -> Option<Why> {
        static TOLD: AtomicBool = AtomicBool::new(false);
        let stays = has_rdma().then_some(RDMA)?;
        if !TOLD.swap(true, Ordering::Relaxed) {
            warning!(
                "memory that this program allocates stays on the GPU (rdma), as libibverbs is loaded, through which network \
                 cards may reach it: what other programs need is not taken from there. Give it less of the GPU (`--acb=…,mem=`, \
                 `agarun --mem`); or, if it needs no network card, keep libibverbs out of it (for NCCL: NCCL_IB_DISABLE=1)"
            );
        }
        Some(stays)
    }

    /// The same once more, where the driver had no memory although there is room: it has grown itself, and others make room for that.
    fn place_twice(
        &self,
        call: &'static str,
        device: u32,
        pieces: &[(u64, Vec<Mapping>)],
        stays: Option<Why>,
    ) -> Result<Vec<ChunkId>, Failure> {
        let first = self.place(device, pieces, stays);
        let Err((failed, CuResult::OUT_OF_MEMORY)) = first else { return first };
        let bytes = pieces.iter().map(|(bytes, _)| *bytes).sum();
        let second = Cell::new(Err((failed, CuResult::OUT_OF_MEMORY)));
        let _ = unasked::with_room(call, &|| {
            // The claim has gone with the chunks.
            if self.claim(device, bytes).is_err() {
                return CuResult::OUT_OF_MEMORY;
            }
            let placed = self.place(device, pieces, stays);
            let result = placed.as_ref().err().map_or(CuResult::SUCCESS, |(_, result)| *result);
            second.set(placed);
            result
        });
        second.into_inner()
    }

    /// Chunks for pieces that are claimed: on the GPU at once where a lease is held, else absent until the next one.
    fn place(
        &self,
        device: u32,
        pieces: &[(u64, Vec<Mapping>)],
        stays: Option<Why>,
    ) -> Result<Vec<ChunkId>, Failure> {
        let add = |books: &mut Books, state| -> Vec<ChunkId> {
            let new = pieces.iter();
            let chunks: Vec<ChunkId> = new
                .map(|(bytes, mappings)| books.table.add(device, *bytes, mappings.clone(), state))
                .collect();
            for id in &chunks {
                books.table.change(*id, |chunk| chunk.handle_types = handed::types());
            }
            if stays.is_some() {
                for id in &chunks {
                    books.table.change(*id, |chunk| chunk.stays = stays);
                    books.pins += 1;
                }
            }
            chunks
        };
        loop {
            if LINK.gate.enter() {
                let chunks = add(&mut self.books(), State::Moving);
                let mapped = self.map_inside(&chunks);
                LINK.gate.leave();
                return match mapped {
                    Ok(()) => Ok(chunks),
                    Err(failure) => {
                        self.abandon(&chunks);
                        Err(failure)
                    }
                };
            }
            let mut books = self.books();
            // It opens under this mutex: closed now, it stays so until the chunks are in the books.
            if !LINK.gate.snapshot().open {
                return Ok(add(&mut books, State::Absent));
            }
        }
    }

    /// Maps chunks that this thread moves, inside the gate, as credit comes. If the gate closes meanwhile, the rest is left
    /// absent: nothing can be submitted that would touch it.
    fn map_inside(&self, chunks: &[ChunkId]) -> Result<(), Failure> {
        let mut left = chunks;
        while let Some(first) = left.first() {
            if !self.wait_for_credit(*first) {
                let mut books = self.books();
                for id in left {
                    if books.table.chunk(*id).is_some_and(|chunk| chunk.state == State::Moving) {
                        books.table.fail_in(*id);
                    }
                }
                self.changed.notify_all();
                return Ok(());
            }
            // What there is credit for already comes with it.
            let more = {
                let mut books = self.books();
                let metered = books.metered;
                let rest = left[1..].iter().take(TOGETHER - 1);
                rest.take_while(|id| books.table.take_for(**id, metered)).count()
            };
            let (now, later) = left.split_at(1 + more);
            self.make_together(now)?;
            left = later;
        }
        Ok(())
    }

    /// Makes chunks for which there is credit, and says that they are there.
    fn make_together(&self, chunks: &[ChunkId]) -> Result<(), Failure> {
        let (mut made, mut outcome): (Vec<Made>, _) = (Vec::new(), Ok(()));
        for id in chunks {
            match patiently(|| self.make_closed(*id)) {
                Ok(one) => made.push(one),
                Err(failure) => {
                    outcome = Err(failure);
                    break;
                }
            }
        }
        let opened = self.open_all(made);
        let mut books = self.books();
        for (id, opened) in opened {
            match opened {
                Ok(handle) => books.table.end_in(id, handle, true),
                Err(failure) => outcome = outcome.and(Err(failure)),
            }
        }
        outcome
    }

    /// With room in hand, but on a GPU that others may fill.
    pub(super) fn make_patiently(&self, id: ChunkId) -> Result<u64, Failure> {
        patiently(|| self.make(id))
    }

    /// Gives up chunks that this thread was making; nobody else has touched them.
    fn abandon(&self, chunks: &[ChunkId]) {
        let mut books = self.books();
        for id in chunks {
            books.table.doom(*id);
            if books.table.chunk(*id).is_some_and(|chunk| chunk.state == State::Moving) {
                books.table.fail_in(*id);
            }
        }
        drop(books);
        for id in chunks {
            self.dispose_chunk(*id);
        }
        self.books().say();
    }

    /// True: credit is taken. False: the gate has closed.
    pub(super) fn wait_for_credit(&self, id: ChunkId) -> bool {
        let mut books = self.books();
        loop {
            let metered = books.metered;
            if books.table.take_for(id, metered) {
                return true;
            }
            if !LINK.gate.snapshot().open || books.ended {
                return false;
            }
            books = self.wait(books);
        }
    }

    // ------------------------------------------------------------ freeing

    /// A range has left the books: its chunks and addresses go too.
    pub(super) fn dispose(&self, start: u64, range: Range) {
        for id in &range.chunks {
            self.books().table.doom(*id);
        }
        for some in range.chunks.chunks(SAY_EACH) {
            for id in some {
                self.dispose_chunk(*id);
            }
            self.books().say();
        }
        if let Err(result) = device::free_addresses(start, range.bytes) {
            debug!("cuMemAddressFree failed: {}", device::name(result));
        }
    }

    /// Frees a chunk, waiting until nobody else moves it. Never called by the link thread for a chunk that it moves.
    pub(super) fn dispose_chunk(&self, id: ChunkId) {
        let mut books = self.books();
        while books.table.hold(id).is_none() {
            if books.table.chunk(id).is_none() || books.ended {
                return;
            }
            books = self.wait(books);
        }
        let Some(chunk) = books.table.chunk(id) else { return };
        let (device, bytes, handle) = (chunk.device, chunk.bytes, chunk.handle);
        let mappings = chunk.mappings.clone();
        drop(books);
        let gone = unmake(device, &mappings, handle);
        let mut books = self.books();
        match gone {
            // Nobody's here, but in use elsewhere.
            Ok(()) if books.handed.outlives(id) => {
                books.table.change(id, |chunk| {
                    chunk.handle = 0;
                    chunk.mappings.clear();
                });
                books.table.release(id, State::Resident);
            }
            Ok(()) => books.table.remove(id),
            // Nobody's, but there.
            Err((call, result)) => {
                warning!(
                    "{call} of {} on GPU {device} failed ({}): the driver keeps this memory, which counts as the program's \
                     until that ends; end it if others need the room",
                    size(bytes),
                    device::name(result)
                );
                books.table.change(id, |chunk| chunk.stays = Some("kept by the driver"));
                books.table.release(id, State::Resident);
                books.pins += 1;
            }
        }
        self.changed.notify_all();
    }
}

fn patiently<T>(make: impl Fn() -> Result<T, Failure>) -> Result<T, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match make() {
            Err((_, CuResult::OUT_OF_MEMORY)) if Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            made => return made,
        }
    }
}

/// A call that has failed, and its answer.
pub(super) type Failure = (&'static str, CuResult);

/// What can be done about an allocation that the driver refuses.
fn remedy(result: CuResult) -> &'static str {
    match result {
        CuResult::OUT_OF_MEMORY => {
            "programs outside of slurm-acb may hold the GPU's memory; end them (nvidia-smi shows them)"
        }
        _ => "look for Xid errors of this GPU (dmesg), and start the program anew",
    }
}

/// Where and for whom memory is allocated.
#[derive(Clone, Copy)]
struct Place {
    call: &'static str,
    device: u32,
    context: u64,
}

fn map_one(device: u32, handle: u64, mapping: &Mapping) -> Result<(), Failure> {
    device::map(mapping.address, mapping.bytes, mapping.offset, handle)
        .map_err(|result| ("cuMemMap", result))?;
    let own = [device::read_write(device)];
    let grants = mapping.access.as_deref().unwrap_or(&own);
    let opened = match grants.is_empty() {
        true => Ok(()),
        false => device::open(mapping.address, mapping.bytes, grants),
    };
    opened.map_err(|result| {
        let _ = device::unmap(mapping.address, mapping.bytes);
        ("cuMemSetAccess", result)
    })
}

/// Unmap, release. Where the driver refuses, all is as it was: mapped and accessible. It may keep memory of a broken context until
/// the process ends.
pub(super) fn unmake(device: u32, mappings: &[Mapping], handle: u64) -> Result<(), Failure> {
    // A chunk of a broken context may be there in name alone.
    if handle == 0 {
        return Ok(());
    }
    let again = |gone: &[Mapping]| {
        for mapping in gone {
            if let Err((call, result)) = map_one(device, handle, mapping) {
                warning!(
                    "{call} of memory that the driver would not let go failed ({}): the program cannot reach it any more, and a \
                     call that uses it fails; start it anew",
                    device::name(result)
                );
            }
        }
    };
    for (done, mapping) in mappings.iter().enumerate() {
        if let Err(result) = device::unmap(mapping.address, mapping.bytes) {
            again(&mappings[..done]);
            return Err(("cuMemUnmap", result));
        }
    }
    device::release(handle).map_err(|result| {
        again(mappings);
        ("cuMemRelease", result)
    })
}
