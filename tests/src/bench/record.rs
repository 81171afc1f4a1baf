//! The record that the program `phases` prints: one line of JSON a round.
//!
//! Owns: reading it. Does not own: writing it (tests/workloads/src/bin/phases.rs).

use serde::{Deserialize, Serialize};

/// One round of one client; times are CLOCK_MONOTONIC in nanoseconds, one clock for all clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// The client.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Number of the round, from 0.
    pub round: u64,
    /// The CPU phase began.
    pub cpu_start_ns: u64,
    /// The CPU phase was over.
    pub gpu_wanted_ns: u64,
    /// The first operation on the GPU was completed.
    pub gpu_got_ns: u64,
    /// The last operation was completed, and the results were on the host.
    pub gpu_done_ns: u64,
    /// The data was right.
    pub ok: bool,
}

impl Round {
    /// The round that a line of output is the record of; `None` for any other line.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim()).ok()
    }
}
