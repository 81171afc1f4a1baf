//! What the scheduler takes at the size of a large cluster: decisions a second on one core, how their cost grows with the
//! number of nodes, and memory.
//!
//! Owns: the measurement. Does not own: the load ([`acb_sim::load`]). Every node decides alone, so a cluster is a scheduler
//! for each node; what could grow with their number is the cost of memory that no cache holds. Memory is that of this
//! process, so it must not have done anything else before (`acb-bench` sees to that).

use acb_sim::load::{CLIENTS, GPUS, Kind, Load};
use anyhow::{Context, Result};

use super::clock;
use super::figure::{Figure, Sample};
use super::measure::Effort;

const NODES: usize = 1000;
const FEW_NODES: usize = 10;

/// Decisions a second, the growth of their cost, and memory.
///
/// # Errors
/// The memory of this process cannot be read.
pub fn scale(effort: Effort) -> Result<Vec<Figure>> {
    let decisions = effort.times(100_000).into();
    let cost = |load: &mut Load| load.run(decisions, clock::thread_ns).each();
    let before = resident_bytes()?;
    let mut many = Load::new(Kind::Mixed, NODES)?;
    many.run(effort.times(1_000_000).into(), || 0); // until all clients have had some
    let memory = resident_bytes()?.saturating_sub(before);
    let mut few = Load::new(Kind::Mixed, FEW_NODES)?;
    cost(&mut few);
    // In turns, so that what else this machine does hits both.
    let rounds: Vec<(f64, f64)> = (0..10).map(|_| (cost(&mut many), cost(&mut few))).collect();
    let many_ns =
        Sample::new(rounds.iter().map(|(many, _)| *many).collect()).context("no rounds")?;
    let few_ns = Sample::new(rounds.iter().map(|(_, few)| *few).collect()).context("no rounds")?;
    let growth = many_ns.median() / few_ns.median();
    Ok(vec![
        Figure {
            name: "decisions_per_s",
            value: 1e9 / many_ns.median(),
            unit: "1/s",
            how: format!(
                "leases granted on {NODES} nodes of {GPUS} GPUs and {CLIENTS} clients, processor time of one core in the schedulers; ns each: {}",
                many_ns.spread()
            ),
        },
        Figure {
            name: "decision_cost_growth",
            value: growth,
            unit: "x",
            how: format!(
                "from {FEW_NODES} to {NODES} nodes; ns each with {FEW_NODES}: {}",
                few_ns.spread()
            ),
        },
        Figure {
            name: "core_mb",
            value: memory as f64 / 1e6,
            unit: "MB",
            how: "growth of resident memory in a process of its own, with the load's own, after a million decisions".into(),
        },
    ])
}

fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 =
        line.and_then(|line| line.split_whitespace().next()).context("VmRSS")?.parse()?;
    Ok(kib * 1024)
}
