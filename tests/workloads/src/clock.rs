//! Clocks whose values other processes can compare with theirs.
//!
//! Owns: reading them. (`std::time::Instant` is the same clock, but does not show its value.)
#![allow(unsafe_code)] // FFI: clock_gettime.

use std::time::Duration;

/// CLOCK_MONOTONIC: one clock for all processes of a machine.
pub fn monotonic() -> Duration {
    read(libc::CLOCK_MONOTONIC)
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(id, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
