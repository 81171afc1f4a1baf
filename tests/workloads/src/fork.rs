//! Running a piece of a program in a forked child.
//!
//! Owns: fork and waiting for the child. For programs with one thread: the child may do anything.
#![allow(unsafe_code)] // FFI: fork, waitpid, _exit.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `child` in a forked child and returns its exit code; a child that a signal ended counts as
/// 128 + signal.
pub fn run_in_child(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the callers have one thread, so the child owns a consistent copy of the process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: `status` is writable and `pid` is our child, not waited for elsewhere.
            if unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
            if libc::WIFEXITED(status) {
                Ok(libc::WEXITSTATUS(status))
            } else {
                Ok(128 + libc::WTERMSIG(status))
            }
        }
    }
}
