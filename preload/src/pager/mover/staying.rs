//! Memory that stays on the GPU although others want it: who is told, and when it is tried again.
//!
//! Owns: the pauses. Does not own: why it stays, or how it goes (`outward`).
//!
//! The assigner asks who has failed for nothing more until its next lease, so the client tries by itself whether what was in
//! the way is over: with one chunk, after a second, and then ever more seldom; never while it is given a lease, whose memory
//! comes meanwhile.

use super::Leave;
use crate::link::LINK;
use crate::log::{info, warning};
use crate::pager::{Books, GRANULE, PAGER};
use acb_wire::v1::{Evicted, client_message::Kind};
use std::time::{Duration, Instant};

/// It is tried again, at first so soon, at last so seldom.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(30);

/// When what has stayed is tried again.
#[derive(Default)]
pub(super) struct Staying {
    at: Option<Instant>,
    /// Zero: nothing has stayed.
    pause: Duration,
    /// A chunk is owed because of this, and not because somebody asked for it.
    own: bool,
    /// Why memory that is not tried again was said to stay.
    shared: Option<String>,
}

/// Whether people hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Say {
    Aloud,
    Quietly,
}

impl Staying {
    /// Memory stays although it was asked for: says why.
    pub(super) fn told(&mut self, device: u32, why: &str) {
        let say = if self.is_told() { Say::Quietly } else { Say::Aloud };
        self.own = false;
        self.pause = (self.pause * 2).clamp(FIRST, LAST);
        self.at = Some(Instant::now() + self.pause);
        let why = format!("{why}. It is tried again now and then");
        PAGER.books().refuse(device, &why, say);
    }

    /// People have heard that memory stays, and not yet that it goes again.
    pub(super) fn is_told(&self) -> bool {
        !self.pause.is_zero()
    }

    /// Memory stays as long as it is shared: says so, once for each reason.
    pub(super) fn is_shared(&mut self, books: &mut Books, device: u32, why: String) {
        let say = if self.shared.as_ref() == Some(&why) { Say::Quietly } else { Say::Aloud };
        books.refuse(device, &why, say);
        self.shared = Some(why);
    }

    /// Some has left.
    pub(super) fn over(&mut self, device: u32) {
        if !std::mem::take(self).pause.is_zero() {
            warning!("GPU {device}: memory that could not be moved there is moved again");
        }
    }

    /// Has one chunk leave when it is time; says how long until then.
    pub(super) fn try_again(&mut self, device: u32, leave: Leave) -> Option<Duration> {
        if leave == Leave::MustNot {
            // From this lease's end on the assigner asks again.
            if std::mem::take(self).own {
                PAGER.let_off(device, GRANULE);
            }
            return None;
        }
        let left = self.at?.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.at = None;
            if PAGER.books().table.account(device).credit() > 0 {
                // What comes in would go back instead, which proves nothing.
                self.at = Some(Instant::now() + self.pause);
            } else {
                self.own = true;
                PAGER.evict(device, GRANULE);
            }
        }
        Some(left)
    }
}

impl Books {
    /// The assigner hears why what it asked for does not come.
    pub(super) fn refuse(&mut self, device: u32, reason: &str, say: Say) {
        self.table.account(device).forgive();
        if LINK.is_connected() {
            match say {
                Say::Aloud => warning!(
                    "GPU {device}: memory stays there although others wait for it: {reason}"
                ),
                Say::Quietly => info!("GPU {device}: memory stays there still: {reason}"),
            }
            LINK.send(Kind::Evicted(Evicted { device, bytes: 0, failed: reason.to_owned() }));
        }
    }
}
