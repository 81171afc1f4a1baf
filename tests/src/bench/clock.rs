//! CLOCK_MONOTONIC, whose values other processes can compare with theirs.
//!
//! Owns: reading it. (`std::time::Instant` is the same clock, but does not show its value.)
#![allow(unsafe_code)] // FFI: clock_gettime.

/// Nanoseconds since the clock's origin.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
