//! Moving chunks: what the link thread does between two looks at its socket.
//!
//! Owns: for each GPU a lane with its streams and what is under way in them. Does not own: which chunk is next (`table`), or
//! when the gate opens (`link`).
//!
//! Nothing here waits: copies are queued, a few chunks ahead, and asked about; mapping and unmapping is done while copies of
//! other chunks run, a little at a time, so that the link thread is never long away from its socket.

mod inward;
mod outward;
mod pass;
mod station;
mod staying;

use super::allocate::Failure;
use super::report::Reporter;
use super::{PAGER, device};
use crate::lease::Lease;
use crate::memory::Growth;
use crate::work;
use acb_cuda_abi::CuResult;
use inward::Inbound;
use outward::Outbound;
use station::Station;
use std::time::{Duration, Instant};

/// Pauses between two looks at copies under way.
const SHORTEST: Duration = Duration::from_micros(30);
const LONGEST: Duration = Duration::from_micros(500);
/// Copies queued ahead in one direction: at least so many chunks, and more while they are small.
const FEW: usize = 3;
const MANY: usize = 32;
/// Copies under way end sooner, unless the GPU hangs.
const SETTLE: Duration = Duration::from_secs(2);
/// After a failure it is tried again, at first so soon, at last so late.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_millis(250);

/// Whether chunks may leave the GPU now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    May,
    /// A lease is held, or its work is not drained.
    MustNot,
}

/// How much more a lane has to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    /// Nothing at all, until something comes from outside.
    Idle,
    /// Something is under way: look again.
    Waiting,
    /// There is more to do right now.
    More,
}

pub(crate) struct Mover {
    lanes: Vec<Lane>,
    pause: Duration,
    reporter: Reporter,
    growth: Growth,
}

/// One GPU's moves.
struct Lane {
    device: u32,
    station: Option<Station>,
    inbound: Inbound,
    outbound: Outbound,
    retry: Retry,
    /// Nothing new is begun.
    settling: bool,
}

/// When to try again what has failed, and whether that was told.
#[derive(Default)]
struct Retry {
    at: Option<Instant>,
    pause: Duration,
    told: bool,
}

impl Retry {
    fn is_due(&self) -> bool {
        self.at.is_none_or(|at| Instant::now() >= at)
    }

    fn failed(&mut self) {
        self.pause = (self.pause * 2).clamp(FIRST_RETRY, LAST_RETRY);
        self.at = Some(Instant::now() + self.pause);
    }

    fn succeeded(&mut self) {
        *self = Retry::default();
    }
}

impl Mover {
    pub(crate) fn new() -> Self {
        Mover {
            lanes: Vec::new(),
            pause: SHORTEST,
            reporter: Reporter::default(),
            growth: Growth::default(),
        }
    }

    /// Does what can be done now, and says when to look again; `None`: not before a message comes.
    pub(crate) fn look(&mut self, lease: Lease) -> Option<Duration> {
        if !PAGER.is_active() {
            self.growth.look();
            self.reporter.report();
            return None;
        }
        let leave = match lease {
            Lease::None | Lease::Asked | Lease::Filling { .. } => Leave::May,
            _ => Leave::MustNot,
        };
        let devices = {
            let books = PAGER.books();
            if books.ended {
                drop(books);
                self.lanes.iter_mut().for_each(Lane::leave);
                return None;
            }
            if leave == Leave::May && books.kernel_is_lacking().is_some() {
                PAGER.changed.notify_all();
            }
            books.devices()
        };
        if self.lanes.is_empty() {
            self.lanes = (0..devices).map(Lane::new).collect();
        }
        let again = PAGER.reap_between_moves();
        // What comes in for a lease does not go out for a trial.
        let trial = match lease {
            Lease::Filling { .. } => Leave::MustNot,
            _ => leave,
        };
        let proofs = self.lanes.iter_mut().filter_map(|lane| lane.try_again(trial));
        let again = again.into_iter().chain(proofs).min();
        let progress = self.lanes.iter_mut().map(|lane| lane.look(leave)).max();
        match progress.unwrap_or(Progress::Idle) {
            Progress::More => {
                self.pause = SHORTEST;
                Some(Duration::ZERO)
            }
            Progress::Waiting => {
                let pause = self.pause;
                self.pause = (self.pause * 2).min(LONGEST);
                Some(pause)
            }
            Progress::Idle => {
                self.pause = SHORTEST;
                self.growth.look();
                self.reporter.report();
                again
            }
        }
    }

    /// Ends what is under way and begins nothing: this thread is going to be elsewhere for a while, and others may wait for
    /// chunks and contexts that it works on.
    pub(crate) fn settle(&mut self) {
        let deadline = Instant::now() + SETTLE;
        self.lanes.iter_mut().for_each(|lane| lane.settling = true);
        while self.lanes.iter().any(Lane::is_moving) && Instant::now() < deadline {
            for lane in &mut self.lanes {
                lane.look(Leave::MustNot);
            }
            std::thread::sleep(SHORTEST);
        }
        self.lanes.iter_mut().for_each(|lane| lane.settling = false);
    }
}

impl Lane {
    fn new(device: u32) -> Self {
        Lane {
            device,
            station: None,
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            retry: Retry::default(),
            settling: false,
        }
    }

    fn is_moving(&self) -> bool {
        self.inbound.is_moving() || self.outbound.is_moving()
    }

    fn try_again(&mut self, leave: Leave) -> Option<Duration> {
        self.outbound.try_again(self.device, leave)
    }

    /// Gives up everything under way: the process ends.
    fn leave(&mut self) {
        if let Some(station) = &mut self.station {
            station.leave();
        }
        self.station = None;
    }

    fn look(&mut self, leave: Leave) -> Progress {
        let wanted = {
            let mut books = PAGER.books();
            let inward = books.table.has_absent(self.device)
                && (!books.metered || books.table.account(self.device).credit() > 0);
            let outward = leave == Leave::May && books.table.account(self.device).owed() > 0;
            inward || outward || self.outbound.is_planned()
        };
        if !self.is_moving() {
            if !wanted {
                return Progress::Idle;
            }
            if !self.retry.is_due() {
                return Progress::Waiting;
            }
            if !self.board() {
                return self.look_without_context(leave);
            }
        }
        let Some(carrier) = self.station.as_ref().map(|station| station.carrier) else {
            return Progress::Idle;
        };
        let mut progress = Progress::Waiting;
        let entered = work::with_context(carrier.handle, || {
            progress = self.work(leave);
            CuResult::SUCCESS
        });
        if !entered.is_success() {
            // Destroyed on a way unknown here, and what was under way in it is not: the memory is there.
            PAGER.break_down(carrier, self.device, "cuCtxPushCurrent", entered);
            let bereft = PAGER.books().contexts.is_bereft(self.device);
            self.inbound.abandon(bereft);
            self.outbound.abandon(bereft);
            progress = Progress::Waiting;
        }
        if !self.is_moving() {
            if let Some(station) = &mut self.station {
                station.leave();
            }
            if progress == Progress::Waiting && !self.outbound.is_planned() && self.retry.is_due() {
                progress = Progress::More;
            }
        }
        progress
    }

    fn work(&mut self, leave: Leave) -> Progress {
        let Some(station) = &mut self.station else { return Progress::Idle };
        let leaving = self.settling || PAGER.books().contexts.is_leaving(station.carrier);
        if leaving {
            // What has begun ends, and no more of it: somebody waits for that.
            self.outbound.stop();
        }
        let mut progress = self.inbound.finish(self.device, station, &mut self.retry);
        progress = progress.max(self.outbound.finish(self.device, station, &mut self.retry));
        if leaving {
            return progress;
        }
        match leave {
            Leave::May => {
                progress = progress.max(self.outbound.begin(self.device, station, &mut self.retry));
            }
            Leave::MustNot => self.outbound.stop(),
        }
        // What is leaving does not come back at the same time.
        if !self.outbound.is_moving() && !self.outbound.is_planned() {
            progress = progress.max(self.inbound.begin(self.device, station, &mut self.retry));
        }
        progress
    }

    /// Enters a context in which to work; false: there is none.
    fn board(&mut self) -> bool {
        let carrier = PAGER.books().contexts.carrier(self.device);
        let Some(carrier) = carrier else { return false };
        if self.station.as_ref().is_none_or(|station| station.carrier != carrier) {
            self.station = Some(Station::new(carrier));
        }
        let Some(station) = &mut self.station else { return false };
        if !station.enter() {
            return false;
        }
        // Streams that were made once answer well as long as their context works.
        let known = station.is_built();
        let built = work::with_context(carrier.handle, || station.build());
        if built.is_success() {
            return true;
        }
        station.leave();
        if known || device::is_fault(built) {
            PAGER.break_down(carrier, self.device, "cuStreamQuery", built);
        } else {
            PAGER.books().contexts.doubt(carrier);
            self.retry.failed();
        }
        false
    }

    /// Without any context there is nothing to copy in or out, but chunks without content can be mapped. Where all contexts are
    /// broken, no chunk has content any more.
    fn look_without_context(&mut self, leave: Leave) -> Progress {
        if PAGER.books().contexts.is_bereft(self.device) {
            if leave == Leave::May {
                self.outbound.forsake(self.device);
            }
            return match self.inbound.pretend(self.device, &mut self.retry) {
                Progress::Idle => Progress::Waiting,
                other => other,
            };
        }
        if leave == Leave::May {
            self.outbound.refuse(self.device);
        }
        let mut unused = Station::new(super::contexts::Carrier { handle: 0, id: 0 });
        match self.inbound.begin(self.device, &mut unused, &mut self.retry) {
            Progress::Idle => Progress::Waiting,
            other => other,
        }
    }
}

/// Whether one more chunk should be queued behind `queued` of `bytes` together.
fn has_space(queued: usize, bytes: u64, chunk: u64) -> bool {
    queued < FEW || (queued < MANY && bytes < 2 * chunk)
}

/// Physical memory of a chunk that the caller moves goes.
fn unmake(device: u32, outward: &super::table::Outward) -> Result<(), Failure> {
    super::allocate::unmake(device, &outward.mappings, outward.handle)
}
