//! The groups of measurements: their names, time limits, and what runs them. Each runs in a process of
//! its own, so that one that fails, hangs or breaks its context does not spoil the others.

pub(crate) mod calls;
pub(crate) mod checkpoint;
pub(crate) mod contract;
pub(crate) mod driver;
pub(crate) mod frameworks;
pub(crate) mod hash;
pub(crate) mod kernels;
pub(crate) mod link;
pub(crate) mod memory;
pub(crate) mod pinned;
pub(crate) mod pipeline;
pub(crate) mod sharing;
pub(crate) mod swap;

use crate::bench::Bench;

/// A group of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Group {
    /// Version, exported symbols, what cuGetProcAddress gives
    Driver,
    /// Context size; cost of the virtual-memory calls by chunk size
    Memory,
    /// Rate of page-locking host memory
    Pinned,
    /// Copies out, in, both at once; page-out beside page-in between two processes
    Link,
    /// Two programs with 95 % of the memory each, swapped in turns, by chunk size
    Swap,
    /// 128-bit hash of device memory
    Hash,
    /// Kernels on plain against mapped memory
    Kernels,
    /// Nanoseconds of a launch, direct and through the interposer; grant latency
    Calls,
    /// The driver's own checkpoint of a process
    Checkpoint,
    /// Contract tests of the software GPU, on this driver
    Contract,
    /// Two programs with alternating phases on one GPU
    Sharing,
    /// PyTorch, JAX, CuPy, Triton, Numba alone and under the interposer
    Frameworks,
}

impl Group {
    /// In the order in which they are measured: what the design needs most comes first.
    pub(crate) const ALL: [Group; 12] = [
        Group::Driver,
        Group::Memory,
        Group::Pinned,
        Group::Link,
        Group::Hash,
        Group::Kernels,
        Group::Calls,
        Group::Swap,
        Group::Contract,
        Group::Sharing,
        Group::Frameworks,
        Group::Checkpoint,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Group::Driver => "driver",
            Group::Memory => "memory",
            Group::Pinned => "pinned",
            Group::Link => "link",
            Group::Swap => "swap",
            Group::Hash => "hash",
            Group::Kernels => "kernels",
            Group::Calls => "calls",
            Group::Checkpoint => "checkpoint",
            Group::Contract => "contract",
            Group::Sharing => "sharing",
            Group::Frameworks => "frameworks",
        }
    }

    /// Seconds after which the group is ended. Their sum is above the time for all, on purpose: most need
    /// far less, and the last ones get what is left.
    pub(crate) fn limit_s(self) -> u64 {
        match self {
            Group::Driver => 25,
            Group::Memory => 70,
            Group::Pinned => 75,
            Group::Link => 80,
            Group::Swap => 90,
            Group::Hash => 30,
            Group::Kernels => 60,
            Group::Calls => 40,
            Group::Checkpoint => 90,
            Group::Contract => 60,
            Group::Sharing => 150,
            Group::Frameworks => 220,
        }
    }

    /// Measures it in this process.
    pub(crate) fn run(self, bench: &Bench) -> anyhow::Result<()> {
        match self {
            Group::Driver => driver::run(bench),
            Group::Memory => memory::run(bench),
            Group::Pinned => pinned::run(bench),
            Group::Link => link::run(bench),
            Group::Swap => swap::run(bench),
            Group::Hash => hash::run(bench),
            Group::Kernels => kernels::run(bench),
            Group::Calls => calls::run(bench),
            Group::Checkpoint => checkpoint::run(bench),
            Group::Contract => contract::run(bench),
            Group::Sharing => sharing::run(bench),
            Group::Frameworks => frameworks::run(bench),
        }
    }
}
