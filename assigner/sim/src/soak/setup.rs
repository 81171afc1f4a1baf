//! What some scenarios have besides: queues with a policy each, little host memory, limits of memory, shared links,
//! distances between GPUs, early estimates of peak memory.
//!
//! In streams of their own: what a seed means without them stays as it is.

use acb_core::{Policy, QueueConfig, Select, Topology};

use crate::random::Random;
use crate::scenario::{Node, Scenario};

/// Whether the scenario of a seed has some of it.
pub(super) fn has_more(seed: u64) -> bool {
    seed % 4 < 2
}

/// Adds it.
pub(super) fn add(scenario: &mut Scenario) {
    let random = &mut Random::new(scenario.seed, 0x5e70);
    if random.chance(0.5) {
        add_queues(random, scenario);
    }
    let host = *random.one_of(&[u64::MAX, u64::MAX, 0, 2 << 30, 8 << 30]);
    let connected = random.chance(0.5);
    let peaks = random.chance(0.5);
    for node in &mut scenario.nodes {
        node.config.memory.host_budget = host;
        if connected {
            connect(random, node);
        }
        if peaks {
            let peaks = &mut node.config.peaks;
            peaks.start_count = random.between(1, 3) as u32;
            peaks.latest_count = random.between(1, 5) as u32;
            peaks.interval = random.between(1, 3) as u32;
            peaks.percentile = random.share();
            peaks.ratio = *random.one_of(&[0.5, 1.0, 1.1, 2.0]);
            peaks.select = *random.one_of(&[Select::Min, Select::Max]);
        }
    }
    if random.chance(0.3) {
        for client in scenario.clients.iter_mut().filter(|client| client.bound) {
            // Now and then less than it is going to claim: that is denied.
            let more = random.between(0, 2 << 30);
            client.memory_limit =
                random.chance(0.5).then(|| (client.memory + more).saturating_sub(1 << 28).max(1));
        }
    }
}

/// Queues with a policy each, for the clients that have none.
fn add_queues(random: &mut Random, scenario: &mut Scenario) {
    let policies = [Policy::Simple, Policy::GpuSharing, Policy::GpuAffinity];
    let count = random.between(1, 3);
    let queues: Vec<QueueConfig> = (0..count)
        .map(|number| QueueConfig {
            policy: random.chance(0.8).then(|| *random.one_of(&policies)),
            priority: super::any_priority(random),
            ..QueueConfig::new(format!("policy-{number}"))
        })
        .collect();
    for node in &mut scenario.nodes {
        node.config.queues.extend(queues.iter().cloned());
    }
    for client in scenario.clients.iter_mut().filter(|client| client.queue.is_empty()) {
        if random.chance(0.7) {
            client.queue.clone_from(&random.one_of(&queues).name);
        }
    }
}

/// GPUs in pairs or fours: those share a link, and are close.
fn connect(random: &mut Random, node: &mut Node) {
    let gpus = node.config.gpus.len() as u32;
    let (together, near, far) = (random.between(1, 4) as u32, random.between(0, 2) as u32, 4);
    let distance = |one: u32, other: u32| match (one == other, one / together == other / together) {
        (true, _) => 0,
        (_, true) => near,
        _ => far,
    };
    node.config.topology = Topology {
        distances: (0..gpus)
            .map(|one| (0..gpus).map(|other| distance(one, other)).collect())
            .collect(),
        links: (0..gpus).map(|gpu| gpu / together).collect(),
    };
}
