//! Which process is which, and when one is gone.
//!
//! Owns the identity of a process (pid and start time) and the wait for its end. Does not own what
//! its end means.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::sys::watch_readable;

/// A process, named for ever: pids come again, a pid with the same start time does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid in this process's pid namespace.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: u32) -> Option<ProcessId> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(ProcessId { pid, start_time: stat_field(&stat, 22)?.parse().ok()? })
    }

    /// This process.
    pub fn own() -> ProcessId {
        let pid = std::process::id();
        ProcessId::of(pid).unwrap_or(ProcessId { pid, start_time: 0 })
    }

    /// Whether it still runs. A zombie does not: its memory and its descriptors are gone.
    pub fn is_alive(self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        let start = stat_field(&stat, 22).and_then(|field| field.parse().ok());
        start == Some(self.start_time) && !matches!(stat_field(&stat, 3), Some("Z" | "X"))
    }

    /// What it runs, as far as that can be seen: exec leaves pid and start time as they are, but not where the stack begins.
    /// `None`: it cannot be seen, or an exec is under way.
    pub fn program(self) -> Option<Program> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let start_of_stack = stat_field(&stat, 28)?.parse().ok()?;
        (start_of_stack != 0).then_some(Program { start_of_stack })
    }
}

/// A program that a process runs; another one differs, unless addresses are not randomised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    start_of_stack: u64,
}

/// Field of `/proc/PID/stat`, counted from 1; not the first two, for the second may hold spaces.
fn stat_field(stat: &str, number: usize) -> Option<&str> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(number.checked_sub(3)?)
}

/// The short name of a process, as `pkill` compares it.
pub fn name_of(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// The process that has started it, or has taken it over.
pub fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat_field(&stat, 4)?.parse().ok().filter(|parent| *parent != 0)
}

/// The user that a process runs as.
pub fn uid_of(pid: u32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}")).ok().map(|metadata| metadata.uid())
}

/// Waits for the end of a process: all its threads, and with them its descriptors, are gone.
#[derive(Debug)]
pub enum ProcessWatch {
    /// The kernel tells.
    Pidfd(AsyncFd<std::os::fd::OwnedFd>),
    /// Kernels before 5.3 have no pidfd: look now and then.
    Poll(ProcessId),
}

/// How often a process that has closed its connection is asked whether that was exec, which is quick.
const EXEC_INTERVAL: Duration = Duration::from_millis(2);

/// How often a kernel without pidfds is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

impl ProcessWatch {
    /// Watches a process; fails with `NotFound` if it is gone already.
    pub fn new(process: ProcessId) -> io::Result<ProcessWatch> {
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let watch = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => ProcessWatch::Pidfd(watch_readable(fd)?),
            Err(rustix::io::Errno::INVAL) => match pidfd_open(pid, PidfdFlags::empty()) {
                // NONBLOCK came with 5.10; it makes no difference for polling.
                Ok(fd) => ProcessWatch::Pidfd(watch_readable(fd)?),
                Err(error) => return Err(error.into()),
            },
            Err(rustix::io::Errno::SRCH) => return Err(io::ErrorKind::NotFound.into()),
            Err(_) => ProcessWatch::Poll(process),
        };
        // The pid may have come again between the look at its start time and the pidfd.
        if process.is_alive() { Ok(watch) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Returns when the process runs another program than that; never, if it is not known what it ran.
    pub async fn replaced(process: ProcessId, program: Option<Program>) {
        let Some(program) = program else { return std::future::pending().await };
        while process.program().is_none_or(|now| now == program) {
            tokio::time::sleep(EXEC_INTERVAL).await;
        }
    }

    /// Returns when the process is gone. Can be dropped and called again.
    pub async fn gone(&self) {
        match self {
            ProcessWatch::Pidfd(fd) => {
                if fd.readable().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            ProcessWatch::Poll(process) => {
                while process.is_alive() {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_brackets_do_not_shift_the_fields() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(stat_field(stat, 3), Some("S"));
        assert_eq!(stat_field(stat, 22), Some("4711"));
    }

    #[test]
    fn a_process_is_alive_until_it_is_waited_for_or_a_zombie() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        assert!(process.is_alive());
        assert!(!ProcessId { start_time: process.start_time + 1, ..process }.is_alive());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let watch = ProcessWatch::new(process).unwrap();
            child.kill().unwrap();
            watch.gone().await;
        });
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
