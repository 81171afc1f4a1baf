//! What this process has of a GPU, as NVML says: for what nobody can tell beforehand.
//!
//! Owns: the question to the assigner, which has NVML open, and what of the answer the books cannot explain.
//! Does not own: what the answer is for (`contexts`, `hooks::module`).

use super::{Ledger, Verdict};
use crate::link::LINK;
use crate::pager::PAGER;
use acb_wire::v1::RoomKind;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How long a call may wait for the assigner's answer.
const ANSWER: Duration = Duration::from_secs(2);

/// What the process had of a GPU at a moment beyond what was counted. It may be negative: not all that is counted is there yet.
#[derive(Clone, Copy)]
pub(crate) struct Uncounted(i64);

impl Uncounted {
    /// What is there and not counted.
    pub(crate) fn bytes(self) -> u64 {
        u64::try_from(self.0).unwrap_or(0)
    }

    /// What is counted and not there.
    pub(crate) fn unused(self) -> u64 {
        u64::try_from(-self.0).unwrap_or(0)
    }

    /// How much more it is than at an earlier moment.
    pub(crate) fn since(self, earlier: Uncounted) -> u64 {
        u64::try_from(self.0 - earlier.0).unwrap_or(0)
    }
}

impl Ledger {
    /// What is on a GPU of this process and in nobody's books; `None`: nobody can tell. Inside the gate, so that no memory
    /// moves meanwhile.
    pub(crate) fn uncounted(&self, device: i32) -> Option<Uncounted> {
        let device = device as u32;
        let bytes = self.ask_bytes(device, RoomKind::ProcessSize)?;
        let fixed = self.books().devices.get(device as usize)?.used;
        Some(Uncounted(bytes as i64 - (fixed + PAGER.resident(device)) as i64))
    }

    /// The bytes of the process; `None`: nobody can tell.
    pub(super) fn ask_bytes(&self, device: u32, kind: RoomKind) -> Option<u64> {
        if !LINK.is_connected() {
            return None;
        }
        let mut books = self.books();
        let seq = books.open(device, 0, kind);
        LINK.send(books.message(seq));
        let deadline = Instant::now() + ANSWER;
        loop {
            let open = books.requests.get(&seq)?.verdict == Verdict::Open;
            let left = deadline.saturating_duration_since(Instant::now());
            if !open || left.is_zero() {
                break;
            }
            let waited = self.replied.wait_timeout(books, left);
            books = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let answer = books.requests.remove(&seq)?;
        (answer.verdict == Verdict::Granted && answer.bytes > 0).then_some(answer.bytes)
    }
}
