//! Fair share where it has a bound: one GPU on each node, which all clients always want, and nothing but what they have used decides.

use std::time::Duration;

use acb_core::{Eligible, FairShare, Policy, Priority, TenantConfig};

use crate::random::Random;
use crate::scenario::{Release, Scenario, Work};

/// Whether the scenario of a seed is one.
pub(super) fn is_fair(seed: u64) -> bool {
    seed % 32 == 6
}

/// Makes it one: how long kernels and phases take, memory, links, messages and wrong estimates stay.
pub(super) fn add(scenario: &mut Scenario) {
    let random = &mut Random::new(scenario.seed, 0xfa1e);
    scenario.faults.clear();
    let tenants = (0..random.between(1, 3)).map(|number| TenantConfig {
        weight: random.between(1, 4) as u32,
        ..TenantConfig::new(format!("tenant-{number}"))
    });
    let tenants: Vec<TenantConfig> = tenants.collect();
    let half_life = Duration::from_millis(random.between(1000, 1_000_000));
    for node in &mut scenario.nodes {
        let config = &mut node.config;
        config.gpus.truncate(1);
        config.policy = *random.one_of(&[Policy::Simple, Policy::GpuAffinity]);
        config.quantum = config.quantum.max(Duration::from_millis(200));
        config.switch_share = config.switch_share.clamp(0.1, 0.9);
        config.drain = config.drain.max(Duration::from_secs(10));
        config.max_bypass_time = Duration::from_secs(86_400);
        config.queues.clear();
        config.tenants.clone_from(&tenants);
        config.fair_share = Some(FairShare { half_life, ..FairShare::default() });
    }
    for client in &mut scenario.clients {
        client.gpus = 1;
        client.eligible = Eligible::All;
        client.bound = true;
        client.priority = Priority::default();
        client.tenant.clone_from(&random.one_of(&tenants).name);
        client.queue.clear();
        client.arrival = Duration::ZERO;
        client.release = Release::WhenWanted(Duration::from_micros(random.between(0, 5000)));
        if let Work::Requests { gpu, .. } = client.work {
            client.work = Work::Rounds { cpu: gpu, gpu, rounds: None };
        }
        if let Work::Rounds { cpu, gpu, rounds } = &mut client.work {
            cpu.mean = Duration::ZERO;
            gpu.mean = gpu.mean.max(Duration::from_millis(1));
            *rounds = None;
        }
    }
}
