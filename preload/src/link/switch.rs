//! From Granted to the open gate: memory comes in, then the gate opens, then the assigner hears Ready.
//!
//! Owns: when that is. Does not own: the moving (`pager`), or when the lease goes back (`watch`).

use super::watch::Watch;
use super::{LINK, Link};
use crate::lease::{Epoch, Lease};
use crate::log::info;
use crate::pager::{Moved, Mover, Opening, PAGER};
use acb_wire::v1::{Ready, client_message::Kind};
use std::time::{Duration, Instant};

/// How often it is looked whether program threads are done with what they were doing to memory.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

pub(super) struct Switch {
    mover: Mover,
    granted: Option<Instant>,
    /// What had been moved when Ready was last said.
    before: Moved,
}

impl Switch {
    pub(super) fn new() -> Self {
        Switch { mover: Mover::new(), granted: None, before: Moved::default() }
    }

    /// A lease has come, and memory with it or after it. The caller holds the lease's lock.
    /// `resident`: the assigner knows that nothing of it has to come.
    pub(super) fn granted(&mut self, lease: &mut Lease, resident: bool, watch: &mut Watch) {
        let now = Instant::now();
        if !LINK.open_if_filled(lease) {
            self.granted = Some(now);
        } else if resident {
            self.taken(now, watch);
        } else {
            self.granted = Some(now);
            watch.granted(now, Duration::ZERO);
            self.ready(lease.epoch(), now);
        }
    }

    /// The gate is open, and Ready said or not waited for. What was moved before is
    /// told with the next one of this thread.
    pub(super) fn taken(&mut self, at: Instant, watch: &mut Watch) {
        self.granted = None;
        watch.granted(at, Duration::ZERO);
    }

    /// Moves what is to be moved, opens the gate when all is there, and says when to look again.
    pub(super) fn look(&mut self, watch: &mut Watch) -> Option<Duration> {
        let lease = *LINK.lease();
        let again = self.mover.look(lease);
        if matches!(lease, Lease::Filling { .. } | Lease::Regaining) {
            let mut lease = LINK.lease();
            if !LINK.open_if_filled(&mut lease) {
                return Some(again.map_or(LOOK_AGAIN, |again| again.min(LOOK_AGAIN)));
            }
            let epoch = lease.epoch();
            drop(lease);
            let now = Instant::now();
            let since = self.granted.map_or(Duration::ZERO, |since| now - since);
            watch.granted(now, since);
            self.ready(epoch, now);
        }
        again
    }

    /// The connection is lost, and getting another may take long.
    pub(super) fn settle(&mut self) {
        self.mover.settle();
    }

    fn ready(&mut self, epoch: Epoch, at: Instant) {
        let moved = PAGER.moved();
        let bytes_in = moved.inward - std::mem::replace(&mut self.before, moved).inward;
        let since = self.granted.take();
        let switch = since.map_or(Duration::ZERO, |since| at.saturating_duration_since(since));
        if bytes_in > 0 {
            info!(
                "{} of memory came back to the GPU; the gate opened {:.1} ms after the grant",
                crate::memory::size(bytes_in),
                switch.as_secs_f64() * 1e3
            );
        }
        if epoch != 0 {
            let switch_ns = switch.as_nanos() as u64;
            LINK.send(Kind::Ready(Ready { epoch, switch_ns, bytes_in }));
        }
    }

    /// Without an assigner: works until everything is on the GPU.
    pub(super) fn regain(&mut self, watch: &mut Watch) {
        while *LINK.lease() == Lease::Regaining {
            let pause = self.look(watch).unwrap_or(LOOK_AGAIN);
            std::thread::sleep(pause.min(LOOK_AGAIN));
        }
    }
}

impl Link {
    /// Opens the gate of a lease if all memory is there. The caller holds the lease's lock.
    pub(super) fn open_if_filled(&self, lease: &mut Lease) -> bool {
        let open = PAGER.open_gate(&self.gate, Opening::Lease);
        if open {
            lease.filled();
        }
        open
    }
}
