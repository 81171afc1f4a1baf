//! CLOCK_MONOTONIC, whose values other processes can compare with theirs, and this thread's processor time.
//!
//! Owns: reading it. (`std::time::Instant` is the same clock, but does not show its value.)
#![allow(unsafe_code)] // FFI: clock_gettime.

/// Nanoseconds since the clock's origin.
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds that a processor has worked for this thread: what else the machine does is not in it.
pub fn thread_ns() -> u64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
