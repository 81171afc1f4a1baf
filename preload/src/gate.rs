//! The gate: what every submitting call passes.
//!
//! Owns: one word that says whether the gate is open, how many calls are inside, and how many have
//! ever come; and the bell that wakes those who wait outside.
//! Does not own: why it is open or closed (`lease`).
//!
//! ```text
//! bit 0       open
//! bits 1–31   calls inside
//! bits 32–63  calls that have come, modulo 2^32: whoever sees the same number twice, with nobody
//!             inside, knows that nothing was submitted in between
//! ```
//! Coming in is one atomic addition, going out another. A call that finds the gate closed takes its
//! place inside back, waits for the bell, and tries again.

use rustix::thread::futex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const OPEN: u64 = 1;
const INSIDE: u64 = 1 << 1;
const COME: u64 = 1 << 32;

/// What can be read from the gate at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) open: bool,
    pub(crate) inside: u32,
    pub(crate) come: u32,
}

pub(crate) struct Gate {
    word: AtomicU64,
    /// How often the bell has rung, modulo 2^32. A word of the kernel's and no lock, for whoever waits may be
    /// interrupted by a signal handler that never returns.
    rings: AtomicU32,
    /// Calls that wait for the bell: where there are none, the kernel need not be asked to wake them.
    waiting: AtomicU32,
}

impl Gate {
    /// An open gate: as long as nobody closes it, it stops nobody.
    pub(crate) const fn new() -> Self {
        Gate { word: AtomicU64::new(OPEN), rings: AtomicU32::new(0), waiting: AtomicU32::new(0) }
    }

    /// Whether the call may go on; if so, [`Gate::leave`] must follow.
    #[inline(always)]
    pub(crate) fn enter(&self) -> bool {
        // Acquire: what the opener did before opening happens before the call.
        if self.word.fetch_add(COME | INSIDE, Ordering::Acquire) & OPEN != 0 {
            return true;
        }
        self.word.fetch_sub(INSIDE, Ordering::Release);
        false
    }

    /// The call has returned.
    #[inline(always)]
    pub(crate) fn leave(&self) {
        // Release: the call happens before whoever sees that nobody is inside.
        self.word.fetch_sub(INSIDE, Ordering::Release);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let word = self.word.load(Ordering::Acquire);
        Snapshot {
            open: word & OPEN != 0,
            inside: ((word & (COME - 1)) / INSIDE) as u32,
            come: (word / COME) as u32,
        }
    }

    pub(crate) fn open(&self) {
        self.word.fetch_or(OPEN, Ordering::Release);
        self.ring();
    }

    pub(crate) fn close(&self) {
        self.word.fetch_and(!OPEN, Ordering::AcqRel);
    }

    /// Closes the gate if nobody is inside and nobody came since `seen`.
    pub(crate) fn close_if_quiet(&self, seen: Snapshot) -> bool {
        let quiet = (u64::from(seen.come) * COME) | OPEN;
        self.word
            .compare_exchange(quiet, quiet & !OPEN, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Wakes everyone who waits: the gate has opened, or waiting has become pointless.
    pub(crate) fn ring(&self) {
        // Both before what follows, in one order for all: who is not seen waiting sees the new count.
        self.rings.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            // It fails only for addresses that are none.
            let _ = futex::wake(&self.rings, futex::Flags::PRIVATE, i32::MAX as u32);
        }
    }

    /// How often the bell has rung; to be read before the reason to wait is checked.
    pub(crate) fn rings(&self) -> u32 {
        self.rings.load(Ordering::SeqCst)
    }

    /// Waits until the bell has rung more than `heard` times.
    pub(crate) fn wait(&self, heard: u32) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while self.rings() == heard {
            // Woken by the bell, by a signal, or at once where it has rung: looked at again.
            let _ = futex::wait(&self.rings, futex::Flags::PRIVATE, heard, None);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, Barrier};

    #[test]
    fn open_lets_in_and_closed_does_not() {
        let gate = Gate::new();
        assert!(gate.enter());
        gate.close();
        assert!(!gate.enter());
        assert_eq!(gate.snapshot(), Snapshot { open: false, inside: 1, come: 2 });
        gate.leave();
        assert_eq!(gate.snapshot().inside, 0);
        gate.open();
        assert!(gate.enter());
    }

    #[test]
    fn a_call_since_the_snapshot_keeps_the_gate_open() {
        let gate = Gate::new();
        let before = gate.snapshot();
        assert!(gate.enter());
        assert!(!gate.close_if_quiet(gate.snapshot()), "somebody is inside");
        gate.leave();
        assert!(!gate.close_if_quiet(before), "somebody came");
        assert!(gate.close_if_quiet(gate.snapshot()));
        assert!(!gate.close_if_quiet(gate.snapshot()), "it is closed already");
    }

    #[test]
    fn the_count_wraps_without_touching_the_rest() {
        let gate = Gate::new();
        gate.word.store(OPEN | (u64::from(u32::MAX) * COME), Ordering::Relaxed);
        assert!(gate.enter());
        assert_eq!(gate.snapshot(), Snapshot { open: true, inside: 1, come: 0 });
    }

    /// Threads go in and out while another closes, checks that nobody is inside, and opens.
    #[test]
    fn nobody_is_inside_a_closed_and_drained_gate() {
        let gate = Arc::new(Gate::new());
        let drained = Arc::new(AtomicBool::new(false));
        let start = Arc::new(Barrier::new(4));
        let walkers: Vec<_> = (0..3)
            .map(|_| {
                let (gate, drained, start) = (gate.clone(), drained.clone(), start.clone());
                std::thread::spawn(move || {
                    start.wait();
                    for _ in 0..20_000 {
                        loop {
                            let heard = gate.rings();
                            if gate.enter() {
                                break;
                            }
                            if !gate.snapshot().open {
                                gate.wait(heard);
                            }
                        }
                        assert!(!drained.load(Ordering::SeqCst));
                        gate.leave();
                    }
                })
            })
            .collect();
        start.wait();
        while walkers.iter().any(|walker| !walker.is_finished()) {
            gate.close();
            while gate.snapshot().inside > 0 {
                std::thread::yield_now();
            }
            drained.store(true, Ordering::SeqCst);
            drained.store(false, Ordering::SeqCst);
            gate.open();
        }
        for walker in walkers {
            walker.join().unwrap();
        }
    }
}
