//! Whether this process may have slept (SIGSTOP, SIGCONT) through the end of its lease.
//!
//! Owns: when it was last certain that no assigner had given it up, and the question whether that is long ago.
//! Does not own: finding out (`thread`, `turn`), or what follows.
//!
//! A process that is stopped hears nothing. If its assigner starts again meanwhile, it is waited for 2 s (the settle time), and
//! then others have its GPU. When it goes on, its threads may come to the gate, which is still open, before the link thread sees that
//! the connection is gone. So each call looks at the clock: who has not been certain for [`TRUST_MS`] waits until the link thread is.
//!
//! It is certain of a moment if the connection was whole then, or if no assigner answered yet: one that comes later waits for it for
//! the whole settle time. The moment is taken *before* that is looked at, for the process may be stopped in between.

use crate::environment::milliseconds;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long nothing need be heard. Half of what an assigner waits for its clients after a restart.
const TRUST_MS: u64 = 1000;
/// How often the link thread makes certain.
pub(crate) const BEAT: Duration = Duration::from_millis(400);
/// Without an assigner there is nothing to be certain of.
const FOR_EVER: u64 = u64::MAX;

pub(crate) struct Pulse {
    /// The last moment that was certain.
    certain_ms: AtomicU64,
    /// Calls wait for the next one.
    awaited: AtomicBool,
}

/// A moment, to be handed to [`Pulse::beat`] once it has turned out to be certain.
#[derive(Clone, Copy)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment(milliseconds())
    }
}

impl Pulse {
    pub(crate) const fn new() -> Self {
        Pulse { certain_ms: AtomicU64::new(FOR_EVER), awaited: AtomicBool::new(false) }
    }

    /// From now on there is an assigner.
    pub(crate) fn start(&self) {
        self.certain_ms.store(milliseconds(), Ordering::SeqCst);
    }

    /// From now on there is none.
    pub(crate) fn end(&self) {
        self.certain_ms.store(FOR_EVER, Ordering::SeqCst);
    }

    /// That moment was certain. True: calls were waiting for it, and must be woken.
    pub(crate) fn beat(&self, at: Moment) -> bool {
        self.certain_ms.fetch_max(at.0, Ordering::SeqCst);
        self.is_fresh()
            && self.awaited.load(Ordering::SeqCst)
            && self.awaited.swap(false, Ordering::SeqCst)
    }

    /// Whether a call may trust that its lease is its own.
    #[inline(always)]
    pub(crate) fn is_fresh(&self) -> bool {
        milliseconds().saturating_sub(self.certain_ms.load(Ordering::Relaxed)) <= TRUST_MS
    }

    /// A call is going to wait for the next beat. False: it need not.
    pub(crate) fn awaits_beat(&self) -> bool {
        self.awaited.store(true, Ordering::SeqCst);
        !self.is_fresh()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_certain_long_ago_is_not_trusted_until_the_next_beat() {
        let pulse = Pulse::new();
        assert!(pulse.is_fresh(), "no assigner, nothing to sleep through");
        pulse.start();
        assert!(pulse.is_fresh());
        let past = milliseconds() - TRUST_MS - 100;
        pulse.certain_ms.store(past, Ordering::SeqCst);
        assert!(!pulse.is_fresh() && pulse.awaits_beat());
        assert!(!pulse.beat(Moment(past)), "it was stopped after it had looked");
        assert!(!pulse.is_fresh());
        assert!(pulse.beat(Moment::now()), "somebody waits");
        assert!(pulse.is_fresh() && !pulse.beat(Moment::now()));
        assert!(!pulse.awaits_beat(), "it is certain already");
        pulse.end();
        assert!(pulse.is_fresh());
    }
}
