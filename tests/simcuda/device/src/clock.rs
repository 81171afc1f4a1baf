//! The clock of modelled time: `CLOCK_MONOTONIC`, the same in all processes of
//! a machine.
#![allow(unsafe_code)] // clock_gettime has no safe form that gives the raw value

use crate::Nanos;

/// The present moment.
#[must_use]
pub fn now() -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec, and CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
