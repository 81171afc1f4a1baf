//! Running the program: signals go on to it, its exit code comes back.
//!
//! Owns the child's life. A signal from the terminal reaches the child by itself; only what a
//! process sent to `agarun` alone is passed on.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, Signal, WaitOptions, getppid, kill_process, set_parent_process_death_signal, waitpid,
};

use super::environment::Change;
use super::program::Program;
use crate::sys::{self, Fork, SignalFd};

/// Signals that are passed on.
const PASSED_ON: [i32; 10] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGCONT,
    libc::SIGXCPU,
    libc::SIGWINCH,
];

/// Runs a program until it ends; the result is its exit code, or 128 and the number of the signal that ended it.
pub fn run(
    program: &Program,
    name: &OsStr,
    arguments: &[OsString],
    changes: &[Change],
) -> io::Result<i32> {
    let mut watched = PASSED_ON.to_vec();
    watched.push(libc::SIGCHLD);
    let mask = sys::block_signals(&watched);
    let signals = SignalFd::new(&watched)?;
    let parent = std::process::id();
    match sys::fork()? {
        Fork::Parent(pid) => wait(pid, &signals),
        Fork::Child => {
            mask.restore();
            let error = become_program(parent, program, name, arguments, changes);
            eprintln!("Error: program {} cannot be run: {error}", program.path.display());
            std::process::exit(1);
        }
    }
}

fn become_program(
    parent: u32,
    program: &Program,
    name: &OsStr,
    arguments: &[OsString],
    changes: &[Change],
) -> io::Error {
    // Whoever kills agarun with SIGKILL means the program.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    if getppid().is_none_or(|pid| u32::try_from(pid.as_raw_nonzero().get()) != Ok(parent)) {
        std::process::exit(1); // agarun died before it could be tied to it
    }
    let mut command = Command::new(&program.path);
    command.arg0(name).args(arguments);
    for (variable, value) in changes {
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
    }
    command.exec()
}

fn wait(pid: Pid, signals: &SignalFd) -> io::Result<i32> {
    loop {
        match poll(&mut [PollFd::new(signals, PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(received) = signals.next() {
            if received.signal != libc::SIGCHLD
                && !received.from_kernel
                && let Some(signal) = Signal::from_named_raw(received.signal)
            {
                let _ = kill_process(pid, signal);
            }
        }
        let Some((_, status)) = waitpid(Some(pid), WaitOptions::NOHANG)? else { continue };
        if let Some(code) = status.exit_status() {
            return Ok(code);
        }
        if let Some(signal) = status.terminating_signal() {
            return Ok(128 + signal);
        }
    }
}
