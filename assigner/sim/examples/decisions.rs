//! What a decision costs: nodes of 8 GPUs and 50 clients each, in one process and on one core. Prints a line for each
//! kind of clients and number of nodes: decisions a second, the growth of their cost from the first number of nodes on,
//! and memory.
//!
//! usage: decisions [KIND…] [NODES…]    (by default all kinds, and 10 and 1000 nodes)

use acb_sim::load::{Kind, Load};

/// Decisions of a node before the clock runs, so that all of its clients have had some.
const WARM_UP: u64 = 500;
/// Decisions on which the clock runs, over all nodes, in each of so many rounds.
const MEASURED: u64 = 100_000;
const ROUNDS: usize = 10;

/// Nanoseconds that a processor has worked for this thread: what else the machine does is not in it.
fn processor_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn main() -> anyhow::Result<()> {
    let (mut kinds, mut sizes) = (Vec::new(), Vec::new());
    for given in std::env::args().skip(1) {
        match Kind::named(&given) {
            Some(kind) => kinds.push(kind),
            None => sizes.push(given.parse::<u64>()?),
        }
    }
    if kinds.is_empty() {
        kinds.extend(Kind::ALL);
    }
    if sizes.is_empty() {
        sizes.extend([10, 1000]);
    }
    for kind in kinds {
        let mut loads = Vec::new();
        for &size in &sizes {
            let before = resident();
            let mut load = Load::new(kind, size as usize)?;
            load.run(size * WARM_UP, || 0);
            loads.push((load, resident().saturating_sub(before), Vec::new()));
        }
        // In turns, so that what else the machine does hits all.
        for _ in 0..ROUNDS {
            for (load, _, costs) in &mut loads {
                costs.push(load.run(MEASURED, processor_ns).each());
            }
        }
        let mut first = None;
        for (load, memory, costs) in &mut loads {
            costs.sort_by(f64::total_cmp);
            let median = costs[costs.len() / 2];
            println!(
                "{kind:?}: {} nodes: {:.0} decisions/s, {:.2} µs each (least {:.2}), growth {:.2}; {:.1} MB",
                load.nodes(),
                1e9 / median,
                median / 1e3,
                costs[0] / 1e3,
                median / *first.get_or_insert(median),
                *memory as f64 / 1e6,
            );
        }
    }
    Ok(())
}
