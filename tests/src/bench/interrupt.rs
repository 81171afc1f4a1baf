//! Ctrl-C, so that a run can be stopped in order.
//!
//! Owns: noticing SIGINT, SIGTERM and SIGHUP. Does not own: what is stopped; whoever runs something
//! long asks [`requested`] now and then.
#![allow(unsafe_code)] // FFI: signal handlers are set through libc.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From now on these signals do not end the program but are noticed.
pub fn watch() {
    extern "C" fn note(_signal: libc::c_int) {
        REQUESTED.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// Whether one of them has come.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
