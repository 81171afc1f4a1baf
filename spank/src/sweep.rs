//! Ends what is left of a job's assigner.
//!
//! Owns: which processes those are, and that they end. Decided from what root has recorded, never
//! from the user's files: a user could name there whom they like.

use crate::launch::ProcessFile;
use crate::launch::Signal;
use crate::process::{Identity, Process};
use crate::records::Records;
use std::time::{Duration, Instant};

/// For the assigner to write its last statistics.
const TERM_PATIENCE: Duration = Duration::from_secs(3);

/// For the kernel to end a killed process.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// The job's assigner: the process that was started, and whoever of the same user is in the
/// session that it began.
fn select(processes: &[Process], daemon: Identity, uid: u32) -> Vec<Identity> {
    // While a session has members the kernel gives its number to nobody else; a process that has it
    // and is not the recorded one has begun another session.
    let reused = processes
        .iter()
        .any(|process| process.identity.pid == daemon.pid && process.identity != daemon);
    if reused {
        return Vec::new();
    }
    processes
        .iter()
        .filter(|process| process.session == daemon.pid || process.identity == daemon)
        .filter(|process| process.uid == uid && process.identity.start_time >= daemon.start_time)
        .map(|process| process.identity)
        .collect()
}

/// Ends the assigner of a job and removes what is there of the job; errors are joined.
pub(crate) fn clear(records: &Records, uid: u32) -> Result<(), String> {
    if let Some(daemon) = records.daemon() {
        end(daemon, uid);
    }
    records.remove()
}

/// Ends the assigner; returns when it is gone, or after a bounded time.
pub(crate) fn end(daemon: Identity, uid: u32) {
    for (signal, patience) in [(Signal::Term, TERM_PATIENCE), (Signal::Kill, KILL_PATIENCE)] {
        let deadline = Instant::now() + patience;
        // Opened first and looked at afterwards: what is signalled is what was looked at.
        let files: Vec<_> = select(&Process::all(), daemon, uid)
            .into_iter()
            .filter_map(|identity| {
                let file = ProcessFile::open(identity.pid)?;
                (Identity::of(identity.pid) == Some(identity)).then_some(file)
            })
            .collect();
        if files.is_empty() {
            return;
        }
        for file in &files {
            file.signal(signal);
        }
        for file in &files {
            file.await_end(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, session: u32, uid: u32, start_time: u64) -> Process {
        Process { identity: Identity { pid, start_time }, parent: 1, session, uid }
    }

    const DAEMON: Identity = Identity { pid: 100, start_time: 50 };

    fn pids(processes: &[Process]) -> Vec<u32> {
        select(processes, DAEMON, 7).iter().map(|identity| identity.pid).collect()
    }

    #[test]
    fn supervisor_and_worker_are_ended() {
        let processes = [
            process(1, 1, 0, 0),
            process(100, 100, 7, 50),
            process(101, 100, 7, 51),
            process(200, 200, 7, 60),
        ];
        assert_eq!(pids(&processes), [100, 101]);
    }

    #[test]
    fn a_worker_alone_is_ended() {
        assert_eq!(pids(&[process(101, 100, 7, 51)]), [101]);
    }

    #[test]
    fn nobody_else_is() {
        assert_eq!(pids(&[process(100, 100, 7, 90)]), [0_u32; 0], "the pid was used again");
        assert_eq!(pids(&[process(101, 100, 8, 51)]), [0_u32; 0], "another user");
        assert_eq!(pids(&[process(101, 100, 7, 49)]), [0_u32; 0], "older than the assigner");
    }
}
