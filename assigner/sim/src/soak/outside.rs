//! Memory that programs outside have, of which no scheduler is told: page-ins do not find it.
//!
//! In a stream of its own, and drawn last: what a seed means else stays as it is, but for more clients with memory.

use std::time::Duration;

use acb_core::Gpu;

use crate::random::Random;
use crate::scenario::{Fault, FaultKind, Scenario};

/// Whether the scenario of a seed has some. Of the four kinds of seeds each has its share.
pub(super) fn is_missing(seed: u64) -> bool {
    seed.is_multiple_of(9) && !super::fair::is_fair(seed)
}

/// Adds it.
pub(super) fn add(scenario: &mut Scenario) {
    let random = &mut Random::new(scenario.seed, 0x0075_1de5);
    let headroom = random.chance(0.3).then(|| random.between(64, 512) << 20);
    for node in &mut scenario.nodes {
        node.config.memory.headroom = vec![headroom.unwrap_or(0); node.config.gpus.len()];
        // What moves for memory that is missing is in no budget: nobody knew when it was claimed.
        node.config.memory.host_budget = u64::MAX;
    }
    for client in scenario.clients.iter_mut().filter(|it| it.bound && it.memory == 0) {
        if random.chance(0.7) {
            client.memory = random.between(4, 15) << 28;
            client.read_only = client.memory / 4 * random.between(0, 4);
        }
    }
    for _ in 0..random.between(2, 12) {
        let node = random.between(0, scenario.nodes.len() as u64 - 1) as usize;
        let gpus = scenario.nodes[node].config.gpus.len() as u64;
        let most = *random.one_of(&[1000, 10_000, 60_000]);
        scenario.faults.push(Fault {
            at: Duration::from_millis(random.between(0, most)),
            what: FaultKind::Outside {
                node,
                gpu: Gpu(random.between(0, gpus - 1) as u32),
                bytes: random.between(1, 16) << 28,
                lasts: Duration::from_millis(random.between(100, 20_000)),
            },
        });
    }
}
