//! Ctrl-C, so that a run can be stopped in order.
//!
//! Owns: noticing SIGINT, SIGTERM and SIGHUP, and the exit code after them. Does not own: what is stopped; whoever
//! runs something long asks [`check`] now and then.
#![allow(unsafe_code)] // FFI: signal handlers are set through libc.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The run was interrupted by the user.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

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

/// Fails when one of them has come.
///
/// # Errors
/// [`Interrupted`]
pub fn check() -> Result<(), Interrupted> {
    if REQUESTED.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
}

/// The end of a program.
pub fn end(program: &str, outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("Interrupted; everything is stopped and removed.");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
