//! A program that alternates between CPU and GPU phases, on the driver API: its rounds with times on the
//! clock of the host, and whether its data is right at the end.
//!
//! It says `ready` once its context and memory are there, begins when the file `go` exists, and prints
//! one JSON object at the end. tests/gpu/frameworks/alternating.py is the same on PyTorch.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bench::{MIB, Workbench};
use crate::host::monotonic_ns;
use crate::reference::splitmix64;

const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
const SALT: u64 = 1_442_695_040_888_963_407;
const SEED: u64 = 99;

/// What a program that alternates prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) rounds: Vec<Round>,
    /// Of the final data: the same for every run with the same work.
    pub(crate) digest: String,
    /// Whether the program's own check of its data held.
    pub(crate) right: bool,
}

/// One CPU phase and the GPU phase after it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) begin_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) cpu_s: f64,
    /// With the wait for the lease, if there is one.
    pub(crate) gpu_s: f64,
}

/// What `phases` is to do.
#[derive(clap::Args)]
pub(crate) struct Phases {
    /// Length of a CPU phase
    #[arg(long)]
    cpu_ms: u64,
    /// Length of a GPU phase
    #[arg(long)]
    gpu_ms: u64,
    #[arg(long)]
    rounds: u32,
    /// Begin when this file exists
    #[arg(long)]
    go: PathBuf,
    /// Compute in CPU phases, do not just wait
    #[arg(long)]
    burn: bool,
    /// Device memory
    #[arg(long, default_value_t = 64)]
    mib: u64,
    /// Kernels of a GPU phase, each of which changes all of the memory
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    kernels: u64,
}

/// Runs it.
pub(crate) fn run(phases: &Phases) -> anyhow::Result<()> {
    let work = Workbench::open()?;
    let memory = work.gpu.allocate(phases.mib * MIB)?;
    let words = memory.bytes / 8;
    work.fill(memory.at, memory.bytes, SEED)?;
    let step = work.kernel("acb_step")?;
    let each_ns = phases.gpu_ms * 1_000_000 / phases.kernels;
    println!("ready");
    wait_for(&phases.go);
    let mut rounds = Vec::new();
    for _ in 0..phases.rounds {
        let (begin_ns, begin) = (monotonic_ns(), Instant::now());
        let cpu = Duration::from_millis(phases.cpu_ms);
        if phases.burn {
            while begin.elapsed() < cpu {
                std::hint::black_box((0..1000).fold(begin_ns, |state, _| splitmix64(state)));
            }
        } else {
            std::thread::sleep(cpu);
        }
        let cpu_s = begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        for _ in 0..phases.kernels {
            step.launch(&work.stream, work.wide(), &[memory.at, words, SALT, each_ns])?;
        }
        work.stream.synchronize()?;
        let gpu_s = begin.elapsed().as_secs_f64();
        rounds.push(Round { begin_ns, end_ns: monotonic_ns(), cpu_s, gpu_s });
    }
    let (factor, summand) = steps(u64::from(phases.rounds) * phases.kernels);
    let expected = |i: u64| splitmix64(SEED + i).wrapping_mul(factor).wrapping_add(summand);
    let (right, digest) = work.compare(memory.at, words, expected)?;
    let report = Report { rounds, digest: format!("{digest:016x}"), right };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// `x -> x * MULTIPLIER + SALT`, `count` times, is `x -> x * factor + summand`.
fn steps(count: u64) -> (u64, u64) {
    (0..count).fold((1u64, 0u64), |(factor, summand), _| {
        (factor.wrapping_mul(MULTIPLIER), summand.wrapping_mul(MULTIPLIER).wrapping_add(SALT))
    })
}

fn wait_for(file: &Path) {
    while !file.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Rounds per second of several programs together, while all of them were at work: from the latest
/// first begin to the earliest last end.
pub(crate) fn rounds_per_s(reports: &[Report]) -> Option<f64> {
    let from = reports.iter().map(|r| r.rounds.first().map(|round| round.begin_ns)).max()??;
    let to = reports.iter().map(|r| r.rounds.last().map(|round| round.end_ns)).min()??;
    if to <= from {
        return None;
    }
    // A round that is cut counts by its part inside.
    let inside = |round: &Round| {
        let length = (round.end_ns - round.begin_ns).max(1) as f64;
        let part = round.end_ns.min(to).saturating_sub(round.begin_ns.max(from));
        part as f64 / length
    };
    let count: f64 = reports.iter().flat_map(|report| &report.rounds).map(inside).sum();
    Some(count / ((to - from) as f64 / 1e9))
}

/// The bound of scheduling: `n` programs that alternate `cpu` and `gpu` seconds, one GPU.
pub(crate) fn bound(n: f64, cpu: f64, gpu: f64) -> f64 {
    (n / (cpu + gpu)).min(1.0 / gpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ends_s: &[(f64, f64)]) -> Report {
        let round = |(begin, end): &(f64, f64)| Round {
            begin_ns: (begin * 1e9) as u64,
            end_ns: (end * 1e9) as u64,
            cpu_s: 0.0,
            gpu_s: 0.0,
        };
        Report { rounds: ends_s.iter().map(round).collect(), digest: String::new(), right: true }
    }

    #[test]
    fn throughput_is_that_of_the_common_time() {
        let one = report(&[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]);
        let late = report(&[(1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]);
        // From 1 to 3 both make two rounds.
        assert_eq!(rounds_per_s(&[one.clone(), late]), Some(2.0));
        assert_eq!(rounds_per_s(std::slice::from_ref(&one)), Some(1.0));
        assert_eq!(rounds_per_s(&[one, report(&[(5.0, 6.0)])]), None);
        assert_eq!(rounds_per_s(&[report(&[])]), None);
    }

    #[test]
    fn the_bound_has_two_sides() {
        assert_eq!(bound(2.0, 0.5, 0.5), 2.0);
        assert_eq!(bound(2.0, 0.1, 0.9), 1.0 / 0.9);
        assert_eq!(bound(1.0, 0.75, 0.25), 1.0);
    }

    #[test]
    fn many_steps_are_one() {
        let (factor, summand) = steps(7);
        let slow = (0..7).fold(5u64, |x, _| x.wrapping_mul(MULTIPLIER).wrapping_add(SALT));
        assert_eq!(5u64.wrapping_mul(factor).wrapping_add(summand), slow);
    }
}
