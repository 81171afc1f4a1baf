//! Work that has an end, and has to be done in the end: so who waits for ever is found.

use std::time::Duration;

use crate::random::Random;
use crate::scenario::{Client, Scenario, Work};

/// When all must be done. Nothing that is made up here takes a tenth of that.
const DUE: Duration = Duration::from_secs(100_000);

/// Whether all work of a seed's scenario has an end, though it has no gangs.
pub(super) fn has_end(seed: u64) -> bool {
    seed % 4 == 1
}

/// Makes all work finite, and switches worth their while.
pub(super) fn add(random: &mut Random, scenario: &mut Scenario) {
    for node in &mut scenario.nodes {
        node.config.quantum = node.config.quantum.max(Duration::from_millis(100));
        node.config.switch_share = node.config.switch_share.min(0.5);
    }
    for client in &mut scenario.clients {
        finite(random, client);
    }
    scenario.stop = None;
    scenario.due = Some(DUE);
}

/// A client ends by itself.
fn finite(random: &mut Random, client: &mut Client) {
    let few = random.between(1, 8);
    match &mut client.work {
        Work::Rounds { rounds, gpu, cpu } => {
            *rounds = Some(few);
            gpu.spread = gpu.spread.min(1.0);
            cpu.spread = cpu.spread.min(1.0);
        }
        Work::Requests { requests, gpu, .. } => {
            *requests = Some(few * 10);
            gpu.spread = gpu.spread.min(1.0);
        }
    }
}
