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
pub(crate) mod paths;
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
    /// Every way to load the driver; NVML inside a client
    Paths,
    /// Two programs with alternating phases on one GPU
    Sharing,
    /// PyTorch, JAX, CuPy, Triton, Numba alone and under the interposer
    Frameworks,
}

impl Group {
    /// In the order in which they are measured: what the design needs most comes first.
    pub(crate) const ALL: [Group; 13] = [
        Group::Driver,
        Group::Memory,
        Group::Pinned,
        Group::Link,
        Group::Hash,
        Group::Kernels,
        Group::Calls,
        Group::Swap,
        Group::Contract,
        Group::Paths,
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
            Group::Paths => "paths",
            Group::Sharing => "sharing",
            Group::Frameworks => "frameworks",
        }
    }

    /// Seconds after which the group is ended. Their sum is above the time for all, on purpose: most need
    /// far less. What is kept for the later ones (`kept_s`) no earlier one gets.
    pub(crate) fn limit_s(self) -> u64 {
        match self {
            Group::Driver => 25,
            Group::Memory => 70,
            Group::Pinned => 75,
            Group::Link => 80,
            Group::Swap => 150,
            Group::Hash => 30,
            Group::Kernels => 60,
            Group::Calls => 40,
            Group::Checkpoint => 90,
            Group::Contract => 60,
            Group::Paths => 60,
            Group::Sharing => 180,
            Group::Frameworks => 220,
        }
    }

    /// Of the 520 seconds for all, what is kept for the group however long those before it take. The driver's own checkpoint, which
    /// nothing of ours rests on, gets what is left.
    fn kept_s(self, simulated: bool) -> u64 {
        match self {
            // What the software GPU does not run is refused at once.
            Group::Kernels | Group::Frameworks if simulated => 5,
            Group::Driver => 10,
            Group::Memory | Group::Pinned => 15,
            Group::Hash | Group::Calls | Group::Kernels => 20,
            Group::Link | Group::Contract | Group::Paths => 30,
            Group::Swap => 60,
            Group::Sharing => 110,
            Group::Frameworks => 150,
            Group::Checkpoint => 0,
        }
    }

    /// Seconds for the first of these groups, when so many are left of so many for all.
    pub(crate) fn share_s(groups: &[Group], left: f64, budget: f64, simulated: bool) -> f64 {
        let Some((first, later)) = groups.split_first() else { return 0.0 };
        let scale = (budget / 520.0).min(1.0);
        let kept: u64 = later.iter().map(|group| group.kept_s(simulated)).sum();
        (left - kept as f64 * scale).min(first.limit_s() as f64).max(0.0)
    }

    /// Whether what it does depends on how large the GPU is and how fast its link.
    pub(crate) fn is_sized(self) -> bool {
        use Group::{Frameworks, Link, Paths, Sharing, Swap};
        matches!(self, Link | Swap | Paths | Sharing | Frameworks)
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
            Group::Paths => paths::run(bench),
            Group::Sharing => sharing::run(bench),
            Group::Frameworks => frameworks::run(bench),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_take_all_they_may_leave_the_later_ones_what_is_kept() {
        for (budget, simulated) in [(60.0, true), (200.0, false), (520.0, false), (520.0, true)] {
            let mut left = budget;
            for (at, group) in Group::ALL.iter().enumerate() {
                let share = Group::share_s(&Group::ALL[at..], left, budget, simulated);
                let kept = group.kept_s(simulated) as f64 * budget / 520.0;
                assert!(
                    share > kept.min(left) - 1e-6,
                    "{group:?}: {share} of {left}, {budget} for all"
                );
                left -= share;
            }
            assert!(left > -1e-6);
        }
        // One that is alone gets all it may have.
        assert_eq!(Group::share_s(&[Group::Sharing], 520.0, 520.0, false), 180.0);
    }
}
