//! Page-out: hash, copy what has changed, unmap, release.
//!
//! Owns: the chunks on their way out, and the plan of those that follow. Does not own: how much is asked for (`account`), and
//! in which order chunks go (`table`).

use super::pass::Pass;
use super::staying::Staying;
use super::{Leave, Progress, Retry, Station, has_space, unmake};
use crate::log::{error, info, warning};
use crate::pager::allocate::Failure;
use crate::pager::device::Window;
use crate::pager::hashing::{Found, Hasher};
use crate::pager::places::Extent;
use crate::pager::table::{ChunkId, NotOut, Outward, State, Way};
use crate::pager::victims::{Next, Victims};
use crate::pager::{Books, PAGER, device};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Chunks dropped before the socket is looked at again.
const DROPS_AT_ONCE: usize = 8;
/// The trial of the hash kernel takes microseconds on a GPU that is idle; for so long a page-out waits for it.
const TRIAL: Duration = Duration::from_millis(20);
/// A chunk that cannot be copied out after so many tries stays.
const TRIES: u32 = 3;
const COPY: &str = "cuMemcpyDtoHAsync";

/// A chunk that could not go, and why.
type Failed = (Outward, Failure);

#[derive(Default)]
pub(super) struct Outbound {
    plan: Option<Victims>,
    flights: VecDeque<Flight>,
    bytes: u64,
    pass: Option<Pass>,
    /// Openings of the gate for which the chunks have been hashed.
    hashed: Option<u64>,
    /// Since when a page-out waits for the kernel's trial.
    trying: Option<Instant>,
    failures: u32,
    /// Since when a page-out waits for a place in the arena.
    placeless: Option<Instant>,
    staying: Staying,
}

struct Flight {
    outward: Outward,
    event: usize,
    window: Window,
    /// To be compared with what lies there: a scratch copy was made.
    compare: Option<(Vec<Extent>, Vec<Extent>)>,
}

impl Outbound {
    pub(super) fn is_moving(&self) -> bool {
        !self.flights.is_empty() || self.pass.is_some()
    }

    pub(super) fn is_planned(&self) -> bool {
        self.plan.is_some()
    }

    /// Nothing more is to go; what is under way ends.
    pub(super) fn stop(&mut self) {
        self.plan = None;
    }

    /// Their context is gone: with it, if it was the last, what was in memory.
    pub(super) fn abandon(&mut self, bereft: bool) {
        for flight in std::mem::take(&mut self.flights) {
            flight.give_scratch();
            flight.window.close();
            settle(&flight.outward, bereft);
        }
        self.bytes = 0;
        if let Some(mut pass) = self.pass.take() {
            pass.abandon();
        }
        self.plan = None;
        PAGER.changed.notify_all();
    }

    /// What has stayed is tried again now and then; says when.
    pub(super) fn try_again(&mut self, device: u32, leave: Leave) -> Option<Duration> {
        self.staying.try_again(device, leave)
    }

    /// All contexts are broken: what was in memory is lost, and the memory of use to others.
    pub(super) fn forsake(&mut self, device: u32) {
        self.plan = None;
        let victims = PAGER.books().table.victims(device);
        for (.., id) in victims {
            let mut books = PAGER.books();
            if books.table.account(device).owed() == 0 {
                return;
            }
            match books.table.hold(id) {
                Some(State::Resident) => {}
                Some(state) => {
                    books.table.release(id, state);
                    continue;
                }
                None => continue,
            }
            let Some(chunk) = books.table.chunk(id) else { continue };
            let (mappings, handle) = (chunk.mappings.clone(), chunk.handle);
            drop(books);
            let gone = crate::pager::allocate::unmake(device, &mappings, handle);
            let mut books = PAGER.books();
            match gone {
                Ok(()) => books.table.lose(id),
                Err(_) => books.table.release(id, State::Resident),
            }
            books.say();
            PAGER.changed.notify_all();
        }
        if PAGER.books().table.account(device).owed() > 0 {
            self.staying.told(
                device,
                "its CUDA context is broken, and the driver keeps the memory; end the program",
            );
        }
    }

    /// Nothing can be moved: says so.
    pub(super) fn refuse(&mut self, device: u32) {
        if PAGER.books().table.account(device).owed() > 0 {
            self.staying.told(
                device,
                "the program has no CUDA context through which its memory could be moved; end it if others need the room",
            );
        }
    }

    // ------------------------------------------------------------ beginning

    pub(super) fn begin(
        &mut self,
        device: u32,
        station: &mut Station,
        retry: &mut Retry,
    ) -> Progress {
        if PAGER.books().table.account(device).owed() <= self.bytes {
            self.plan = None;
            return Progress::Idle;
        }
        if !retry.is_due() {
            return Progress::Waiting;
        }
        if self.plan.is_none() {
            if !self.begin_pass(device, station) {
                return Progress::Waiting;
            }
            let victims = PAGER.books().table.victims(device);
            self.plan = Some(Victims::new(victims));
        }
        let launching = self.pass.as_mut().is_some_and(|pass| pass.launch(station));
        let waiting = if launching { Progress::More } else { Progress::Waiting };
        let mut dropped = 0;
        loop {
            let mut books = PAGER.books();
            let missing = books.table.account(device).owed().saturating_sub(self.bytes);
            if missing == 0 {
                self.plan = None;
                return Progress::Waiting;
            }
            if !has_space(self.flights.len(), self.bytes, books.rules.chunk_bytes) {
                return waiting;
            }
            let id = match self.plan.as_mut().map_or(Next::Nothing, |plan| plan.next(missing)) {
                Next::Take(id) => id,
                Next::Wait => return waiting,
                Next::Nothing => return self.plan_ended(device, books),
            };
            let trust = books.trust();
            match books.table.begin_out(id, trust) {
                Err(NotOut::Gone) => {}
                Err(NotOut::NoPlace(missing)) => {
                    let exhausted = books.arena.exhausted;
                    drop(books);
                    return self.wait_for_place(device, id, missing, exhausted);
                }
                Ok(outward) => {
                    drop(books);
                    self.note_place();
                    let is_drop = outward.way == Way::Drop;
                    let sent = match outward.way {
                        Way::Drop => {
                            dropped += 1;
                            self.drop_chunk(device, &outward)
                        }
                        _ => self.send(outward, station),
                    };
                    match sent {
                        Err(failure) => {
                            self.fail(device, failure, station, retry);
                            return Progress::Waiting;
                        }
                        Ok(()) if is_drop => self.left(device, retry),
                        Ok(()) => {}
                    }
                    if dropped == DROPS_AT_ONCE {
                        return Progress::More;
                    }
                }
            }
        }
    }

    /// Every chunk that can go is gone or on its way.
    fn plan_ended(&mut self, device: u32, mut books: std::sync::MutexGuard<'_, Books>) -> Progress {
        self.plan = None;
        if !self.flights.is_empty() {
            return Progress::Waiting;
        }
        if books.table.account(device).taken() > 0 {
            let staying = books.tell_staying(device);
            if staying.is_empty() {
                drop(books);
                self.staying.told(device, "what is left of its memory cannot be moved at present");
            } else {
                // It will as long as it is shared.
                let why = format!("the program shares its memory with others: {staying}");
                self.staying.is_shared(&mut books, device, why);
            }
        } else {
            books.table.account(device).forgive();
            self.staying = Staying::default();
        }
        Progress::Idle
    }

    /// Has the hash kernel run over everything that may have changed, once for each time that the gate was open. False: whether it
    /// can be used will be known in a moment.
    fn begin_pass(&mut self, device: u32, station: &Station) -> bool {
        let mut books = PAGER.books();
        let openings = books.table.openings();
        if self.pass.is_some() || self.hashed == Some(openings) {
            return true;
        }
        let context = station.carrier.id;
        let hasher = match books.hashers.find(context) {
            Found::Ready(hasher) => Some(hasher),
            Found::Nothing => None,
            Found::Trying(trial) => {
                drop(books);
                let since = *self.trying.get_or_insert_with(Instant::now);
                if !trial.has_come() {
                    PAGER.books().hashers.try_on(context, trial);
                    // Other programs may keep the GPU busy: then without hashes.
                    return since.elapsed() > TRIAL;
                }
                let hasher = trial.outcome();
                books = PAGER.books();
                books.hashers.tried(context, hasher);
                hasher
            }
        };
        self.trying = None;
        self.hashed = Some(openings);
        let Some(hasher) = hasher else { return true };
        let chunks = books.table.begin_hashing(device, Hasher::slots() as usize);
        drop(books);
        if !chunks.is_empty() {
            self.pass = Pass::begin(hasher, chunks, station);
        }
        true
    }

    /// Queues the copies of a chunk; if that fails, it is to be settled what becomes of it.
    fn send(&mut self, outward: Outward, station: &mut Station) -> Result<(), Failed> {
        let (extents, compare) = match &outward.way {
            Way::Copy(extents) => (extents.clone(), None),
            Way::Compare(copy) => {
                let scratch = PAGER.books().table.take(outward.bytes, outward.id);
                match scratch {
                    Some(scratch) => (scratch.clone(), Some((copy.clone(), scratch))),
                    // No place to compare in: it is copied, which is right in any case.
                    None => {
                        PAGER.books().table.differs(outward.id);
                        (copy.clone(), None)
                    }
                }
            }
            Way::Drop => (Vec::new(), None),
        };
        match self.copy(&outward, &extents, station) {
            Ok((event, window)) => {
                self.bytes += outward.bytes;
                self.flights.push_back(Flight { outward, event, window, compare });
                Ok(())
            }
            Err(failure) => {
                if let Some((_, scratch)) = compare {
                    PAGER.books().table.places.give(&scratch);
                }
                Err((outward, failure))
            }
        }
    }

    fn copy(
        &self,
        outward: &Outward,
        extents: &[Extent],
        station: &mut Station,
    ) -> Result<(usize, Window), Failure> {
        let (device, pieces) = {
            let books = PAGER.books();
            let device = books.table.chunk(outward.id).map_or(0, |chunk| chunk.device);
            (device, books.pieces(extents))
        };
        let window = Window::to(device, outward.bytes, outward.handle, &outward.mappings)?;
        let mut from = window.address;
        let mut copied = Ok(());
        for (to, bytes) in pieces {
            copied = copied.and_then(|()| device::copy_out(to, from, bytes, station.outward()));
            from += bytes;
        }
        match copied.and_then(|()| station.mark(station.outward())) {
            Ok(event) => Ok((event, window)),
            Err(result) => {
                // Parts of it may be under way.
                device::drain(station.outward());
                window.close();
                Err((COPY, result))
            }
        }
    }

    // ------------------------------------------------------------ ending

    pub(super) fn finish(
        &mut self,
        device: u32,
        station: &mut Station,
        retry: &mut Retry,
    ) -> Progress {
        let mut progress = self.finish_pass(station);
        let mut done = 0;
        while let Some(flight) = self.flights.front() {
            let come = device::has_come(flight.event);
            // The kernel must be through with a chunk before its memory goes.
            if come == Ok(false) || PAGER.books().table.is_hashed_now(flight.outward.id) {
                return progress.max(Progress::Waiting);
            }
            let Some(flight) = self.flights.pop_front() else { break };
            self.bytes -= flight.outward.bytes;
            station.done_with(flight.event);
            let landed = match come {
                Ok(_) => {
                    flight.window.close();
                    self.land(device, flight.outward, flight.compare, station)
                }
                Err(result) => {
                    flight.give_scratch();
                    flight.window.close();
                    Err((flight.outward, (COPY, result)))
                }
            };
            match landed {
                Ok(()) => self.left(device, retry),
                Err(failed) => self.fail(device, failed, station, retry),
            }
            progress = Progress::More;
            done += 1;
            if done == DROPS_AT_ONCE {
                break;
            }
        }
        progress
    }

    /// A chunk has gone: what was wrong is over.
    fn left(&mut self, device: u32, retry: &mut Retry) {
        if std::mem::take(&mut self.failures) > 0 {
            retry.succeeded();
        }
        self.staying.over(device);
    }

    fn finish_pass(&mut self, station: &Station) -> Progress {
        let Some(pass) = &mut self.pass else { return Progress::Idle };
        if self.plan.is_none() {
            // Enough has gone, or the context is to go.
            pass.cut(station);
            self.hashed = None;
        }
        let mut known = pass.land();
        let over = pass.is_over();
        if over {
            // Also those of which nothing could be found out: they are copied.
            known = pass.all().to_vec();
        }
        if let Some(plan) = &mut self.plan {
            let books = PAGER.books();
            for id in &known {
                plan.learn(*id, books.table.fate(*id));
            }
        }
        if over {
            self.pass = None;
        }
        if known.is_empty() && !over { Progress::Waiting } else { Progress::More }
    }

    fn land(
        &mut self,
        device: u32,
        outward: Outward,
        compare: Option<(Vec<Extent>, Vec<Extent>)>,
        station: &mut Station,
    ) -> Result<(), Failed> {
        if let Some((copy, scratch)) = compare {
            let alike = PAGER.are_alike(&copy, &scratch);
            PAGER.books().table.places.give(&scratch);
            if alike {
                return self.drop_chunk(device, &outward);
            }
            error!(
                "a chunk of {} has the hash of its host copy but differs from it: it is copied. Please report this",
                crate::memory::size(outward.bytes)
            );
            {
                let mut books = PAGER.books();
                books.moved.lies += 1;
                books.table.differs(outward.id);
            }
            return self.send(Outward { way: Way::Copy(copy), ..outward }, station);
        }
        if let Err(failure) = unmake(device, &outward) {
            return Err((outward, failure));
        }
        let mut books = PAGER.books();
        books.moved.out += outward.bytes;
        books.table.end_out(outward.id);
        books.say();
        PAGER.changed.notify_all();
        Ok(())
    }

    /// The host has the content already, or there is none.
    fn drop_chunk(&mut self, device: u32, outward: &Outward) -> Result<(), Failed> {
        unmake(device, outward).map_err(|failure| (outward.clone(), failure))?;
        let mut books = PAGER.books();
        if books.table.chunk(outward.id).is_some_and(|chunk| chunk.has_copy()) {
            books.moved.clean += outward.bytes;
        }
        books.table.end_out(outward.id);
        books.say();
        PAGER.changed.notify_all();
        Ok(())
    }

    // ------------------------------------------------------------ trouble

    /// A chunk could not go. It stays, for its content is there, and is to be tried like the others: through another context, if
    /// there is one. Only without any that works its content is lost.
    fn fail(
        &mut self,
        device: u32,
        (outward, (call, result)): Failed,
        station: &Station,
        retry: &mut Retry,
    ) {
        self.plan = None;
        let bereft = PAGER.failed_in(station.carrier, device, call, result);
        settle(&outward, bereft);
        if device::is_lost(result) {
            return;
        }
        retry.failed();
        self.failures += 1;
        let cause = device::name(result);
        let told = format!(
            "{call} on GPU {device} failed ({cause}): the memory stays, and is tried again"
        );
        match self.failures {
            1 if !self.staying.is_told() => warning!("{told}"),
            _ => info!("{told}"),
        }
        if self.failures >= TRIES {
            self.failures = 0;
            let why = format!(
                "its memory cannot be moved to the host: {call} fails ({cause}); look for Xid errors of this GPU (dmesg), and \
                 end the program if others need the room"
            );
            self.staying.told(device, &why);
        }
    }

    fn wait_for_place(
        &mut self,
        device: u32,
        id: ChunkId,
        missing: u64,
        exhausted: bool,
    ) -> Progress {
        if let Some(plan) = &mut self.plan {
            plan.put_back(id);
        }
        if exhausted {
            if self.flights.is_empty() {
                self.plan = None;
                self.note_place();
                self.staying.told(
                    device,
                    "there is no host memory for what would have to move; ask for more with the job (--mem)",
                );
            }
            return Progress::Waiting;
        }
        self.placeless.get_or_insert_with(Instant::now);
        PAGER.demand(missing.max(1));
        Progress::Waiting
    }

    fn note_place(&mut self) {
        if let Some(since) = self.placeless.take() {
            let waited = since.elapsed();
            PAGER.books().moved.pin_ns += waited.as_nanos() as u64;
            info!("a page-out waited {:.1} ms for pinned host memory", waited.as_secs_f64() * 1e3);
        }
    }
}

impl Flight {
    fn give_scratch(&self) {
        if let Some((_, scratch)) = &self.compare {
            PAGER.books().table.places.give(scratch);
        }
    }
}

/// What becomes of a chunk that could not be copied: it stays, unless nothing can reach its content any more.
fn settle(outward: &Outward, bereft: bool) {
    let device = PAGER.books().table.chunk(outward.id).map_or(0, |chunk| chunk.device);
    let gone = bereft && unmake(device, outward).is_ok();
    let mut books = PAGER.books();
    match gone {
        true => books.table.lose(outward.id),
        false => books.table.fail_out(outward.id),
    }
    books.say();
    PAGER.changed.notify_all();
}

impl crate::pager::Pager {
    fn are_alike(&self, a: &[Extent], b: &[Extent]) -> bool {
        let (a, b) = {
            let books = self.books();
            (books.pieces(a), books.pieces(b))
        };
        device::are_alike(&a, &b)
    }
}
