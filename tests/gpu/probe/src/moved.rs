//! How much memory of which programs an assigner has had moved out, as its status says: without that a row of forced swaps
//! would prove nothing.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::assigner::Assigner;
use crate::bench::GIB;

/// How long after the last turn the programs' reports may still be on their way.
const LATE: Duration = Duration::from_secs(2);

/// How often the status is looked at while programs come and go.
const EVERY: Duration = Duration::from_millis(100);

/// Bytes by process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved(BTreeMap<u64, u64>);

impl Moved {
    pub(crate) fn read(status: &Value) -> Self {
        let clients = status["nodes"][0]["clients"].as_array().into_iter().flatten();
        let bytes = |memory: &Value| {
            ["paged_out", "clean"].iter().filter_map(|key| memory[key].as_u64()).sum::<u64>()
        };
        let of = |client: &Value| {
            client["memory"].as_array().into_iter().flatten().map(bytes).sum::<u64>()
        };
        Self(clients.filter_map(|client| Some((client["pid"].as_u64()?, of(client)))).collect())
    }

    /// The larger figure of each process: those that have ended are in no later status.
    fn take_in(&mut self, later: Self) {
        for (pid, bytes) in later.0 {
            let most = self.0.entry(pid).or_default();
            *most = bytes.max(*most);
        }
    }

    /// Of one process.
    pub(crate) fn of(&self, pid: u32) -> u64 {
        self.0.get(&pid.into()).copied().unwrap_or(0)
    }

    /// Of all processes but one.
    pub(crate) fn but(&self, pid: u32) -> u64 {
        self.0.iter().filter(|(other, _)| **other != u64::from(pid)).map(|(_, bytes)| bytes).sum()
    }

    /// Processes of which something was moved.
    pub(crate) fn count(&self) -> usize {
        self.0.values().filter(|bytes| **bytes > 0).count()
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// What has been moved out of each of these by now; waits a little for reports of those of which nothing is known.
pub(crate) fn of_all(assigner: &Assigner, pids: &[u32]) -> anyhow::Result<Moved> {
    let deadline = Instant::now() + LATE;
    loop {
        let moved = Moved::read(&assigner.status()?);
        if pids.iter().all(|pid| moved.of(*pid) > 0) || Instant::now() > deadline {
            return Ok(moved);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Does some work, and says what has been moved meanwhile, also of programs that have ended by then.
pub(crate) fn while_watched<T>(assigner: &Assigner, work: impl FnOnce() -> T) -> (T, Moved) {
    let (ends, end) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watcher = scope.spawn(move || {
            let mut moved = Moved::default();
            loop {
                let goes_on = end.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout);
                if let Ok(status) = assigner.status() {
                    moved.take_in(Moved::read(&status));
                }
                if !goes_on {
                    return moved; // with what came last
                }
            }
        });
        let result = work();
        drop(ends);
        (result, watcher.join().unwrap_or_default())
    })
}

pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_moved_is_counted_by_process() {
        let status = json!({ "nodes": [{ "clients": [
            { "pid": 7, "memory": [{ "paged_out": 100, "clean": 1 }] },
            { "pid": 8, "memory": [{ "paged_out": 20, "clean": 3 }, { "paged_out": 4 }] },
            { "pid": 9 }
        ] }] });
        let mut moved = Moved::read(&status);
        assert_eq!((moved.of(7), moved.of(8), moved.of(9), moved.of(10)), (101, 27, 0, 0));
        assert_eq!((moved.but(7), moved.total(), moved.count()), (27, 128, 2));
        assert_eq!(Moved::read(&json!({})), Moved::default());
        // 7 has ended since, 8 goes on.
        let later =
            json!({ "nodes": [{ "clients": [{ "pid": 8, "memory": [{ "paged_out": 50 }] }] }] });
        moved.take_in(Moved::read(&later));
        assert_eq!((moved.of(7), moved.of(8)), (101, 50));
    }
}
