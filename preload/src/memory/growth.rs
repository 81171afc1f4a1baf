//! What the driver has taken for itself, measured again: code, local memory and graphs come after the context was measured.
//!
//! Owns: when NVML is asked, and booking what nothing explains. Does not own: asking when a call fails for want of memory
//! (`unasked`), or what a context takes (`contexts`).
//!
//! Done by the link thread while nothing moves, in steps that never wait. An answer counts only if nothing was allocated, freed or moved
//! since the question.
//! ```text
//!  due, and work was submitted ──► asked ──► right ──► booked at once, or given back
//!                                    │         └─────► room is asked for ──► granted: booked
//!                                    └► something changed: next time            └──► waits or is denied: told; next time
//! ```

use super::unasked::DRIVER;
use super::{Key, LEDGER, Ledger, Portion, Promise, Verdict, size};
use crate::link::LINK;
use crate::log::{info, warning};
use crate::pager::PAGER;
use acb_wire::v1::RoomKind;
use std::time::{Duration, Instant};

/// Less than this is what measuring is good for.
const NOTHING: u64 = 1 << 20;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// The link thread's measuring, one GPU at a time.
#[derive(Default)]
pub(crate) struct Growth {
    last: Option<Instant>,
    /// What the gate had counted then.
    come: u32,
    /// Devices that are still to be measured.
    left: Vec<u32>,
    step: Option<Step>,
    told: bool,
}

struct Step {
    device: u32,
    seq: u64,
    since: Instant,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// How much there is, and what was counted at that moment.
    Asked { counted: u64 },
    /// Room for so much that the driver has already.
    Booking { bytes: u64 },
    /// That would have had to wait.
    Withdrawn,
}

impl Growth {
    /// Does one step, if there is one to do.
    pub(crate) fn look(&mut self) {
        match self.step.take() {
            Some(step) => self.step = self.go_on(step),
            None => self.begin(),
        }
    }

    fn begin(&mut self) {
        if self.left.is_empty() {
            let now = Instant::now();
            let every = LEDGER.measure_every();
            let last = *self.last.get_or_insert(now);
            let come = LINK.gate.snapshot().come;
            if every.is_zero() || now - last < every || come == self.come {
                return;
            }
            (self.last, self.come) = (Some(now), come);
            self.left = LEDGER.contexts().into_iter().map(|(_, device)| device as u32).collect();
            self.left.sort_unstable();
            self.left.dedup();
        }
        let Some(device) = self.left.pop() else { return };
        let counted = LEDGER.counted(device);
        if let Some(seq) = LEDGER.begin_question(device, 0, RoomKind::ProcessSize) {
            let kind = Kind::Asked { counted };
            self.step = Some(Step { device, seq, since: Instant::now(), kind });
        }
    }

    fn go_on(&mut self, step: Step) -> Option<Step> {
        let Step { device, seq, since, kind } = step;
        let late = since.elapsed() > ANSWER;
        let (verdict, bytes) = LEDGER.heard(seq)?;
        match (kind, verdict) {
            (Kind::Withdrawn, _) if late => {
                LEDGER.end_withdrawn(seq, device);
                None
            }
            (Kind::Withdrawn, _) => Some(step),
            (_, Verdict::Open) if !late => Some(step),
            (Kind::Asked { counted }, Verdict::Granted) => {
                LEDGER.end_question(seq);
                if bytes == 0 || LEDGER.counted(device) != counted {
                    return None;
                }
                self.set_right(device, bytes as i64 - counted as i64)
            }
            (Kind::Booking { bytes }, Verdict::Granted) => {
                LEDGER.end_question(seq);
                self.book(device, bytes);
                None
            }
            (Kind::Booking { bytes }, Verdict::Waiting(reason) | Verdict::Denied(reason)) => {
                if !std::mem::replace(&mut self.told, true) {
                    warning!(
                        "the driver has taken {} of GPU {device} for this program that do not fit beside what programs claim there: \
                         some of their memory may find no place ({reason}). A memory limit (mem=, agarun --mem) for the largest of \
                         them would leave room",
                        size(bytes)
                    );
                }
                LEDGER.withdraw_question(seq);
                Some(Step { since: Instant::now(), kind: Kind::Withdrawn, ..step })
            }
            _ => {
                LEDGER.end_question(seq);
                None
            }
        }
    }

    /// The books and the GPU differ by so much.
    fn set_right(&mut self, device: u32, difference: i64) -> Option<Step> {
        let bytes = difference.unsigned_abs();
        if bytes < NOTHING {
            return None;
        }
        if difference < 0 {
            LEDGER.shrunk(Key::Driver(device), bytes);
            return None;
        }
        let missing = LEDGER.lacking(device, bytes);
        if missing == 0 {
            self.book(device, bytes);
            return None;
        }
        let seq = LEDGER.begin_question(device, missing, RoomKind::Taken)?;
        Some(Step { device, seq, since: Instant::now(), kind: Kind::Booking { bytes } })
    }

    fn book(&mut self, device: u32, bytes: u64) {
        if LEDGER.book_driver(device, bytes) {
            self.told = false;
            info!("the driver has taken {} of GPU {device} for itself", size(bytes));
        }
    }
}

impl Ledger {
    fn measure_every(&self) -> Duration {
        self.books().measure
    }

    /// What is counted on a device in all, fixed and paged.
    fn counted(&self, device: u32) -> u64 {
        let fixed = self.books().devices.get(device as usize).map_or(0, |device| device.used);
        fixed + PAGER.resident(device)
    }

    /// Room that must be asked for before so much can be booked.
    fn lacking(&self, device: u32, bytes: u64) -> u64 {
        let books = self.books();
        let state = books.devices.get(device as usize);
        state.map_or(0, |state| state.used.saturating_add(bytes).saturating_sub(state.room))
    }

    /// Asks without waiting for the answer; its number.
    fn begin_question(&self, device: u32, bytes: u64, kind: RoomKind) -> Option<u64> {
        if !LINK.is_connected() {
            return None;
        }
        let mut books = self.books();
        let seq = books.open(device, bytes, kind);
        LINK.send(books.message(seq));
        Some(seq)
    }

    fn heard(&self, seq: u64) -> Option<(Verdict, u64)> {
        let books = self.books();
        books.requests.get(&seq).map(|request| (request.verdict.clone(), request.bytes))
    }

    fn withdraw_question(&self, seq: u64) {
        self.books().withdraw(seq);
    }

    fn end_question(&self, seq: u64) {
        self.books().requests.remove(&seq);
    }

    /// The same of one that was withdrawn; what was granted all the same goes back.
    fn end_withdrawn(&self, seq: u64, device: u32) {
        let mut books = self.books();
        books.requests.remove(&seq);
        self.give_back(&mut books, device, 0, Portion::Exact);
    }

    /// The driver has so much; false: the room that was asked for it has gone to others meanwhile.
    fn book_driver(&self, device: u32, bytes: u64) -> bool {
        let mut books = self.books();
        let Some(state) = books.devices.get_mut(device as usize) else { return false };
        if state.used + bytes > state.room {
            return false;
        }
        state.used += bytes;
        drop(books);
        let portion = Portion::Exact;
        self.grown(Promise { device, bytes, portion, kind: DRIVER }, Key::Driver(device), 0);
        true
    }
}
