//! Work that has an end, and has to be done in the end: so who waits for ever is found.

use std::collections::BTreeMap;
use std::time::Duration;

use acb_core::gang::GangName;

use crate::random::Random;
use crate::scenario::{Client, FaultKind, Scenario, Work};

/// How often as long as the bound all may take.
const FACTOR: u32 = 2;

/// Whether all work of a seed's scenario has an end, though it has no gangs.
pub(super) fn has_end(seed: u64) -> bool {
    seed % 4 == 1
}

/// Makes all work finite, and switches worth their while. When it is due is said last ([`due`]).
pub(super) fn add(random: &mut Random, scenario: &mut Scenario) {
    for node in &mut scenario.nodes {
        node.config.quantum = node.config.quantum.max(Duration::from_millis(100));
        node.config.switch_share = node.config.switch_share.min(0.5);
    }
    for client in &mut scenario.clients {
        finite(random, client);
    }
    scenario.stop = None;
    scenario.due = Some(Duration::MAX);
}

/// When all must be done, as if one thing happened after the other: each phase with a switch for it and one for a lease that it
/// has recalled; as much again, for switching takes half of the time at most where quanta end leases; what goes wrong, and what
/// gangs wait. [`FACTOR`] is for all that this leaves out.
pub(super) fn due(scenario: &Scenario) -> Duration {
    let arrivals = scenario.clients.iter().map(|client| client.arrival).max();
    let work = (0..).zip(&scenario.clients).map(|(stream, client)| {
        let (phases, takes) = work(client, &mut Random::new(scenario.seed, stream));
        takes + phases * switch(scenario, client)
    });
    let work: Duration = work.sum();
    let faults: Duration = scenario.faults.iter().map(|fault| lasts(scenario, &fault.what)).sum();
    FACTOR * (arrivals.unwrap_or_default() + 2 * work + faults + gangs(scenario))
}

/// How many GPU phases a client has, and what all of its phases take: it draws the same ones.
fn work(client: &Client, random: &mut Random) -> (u32, Duration) {
    let (pause, gpu, count) = match &client.work {
        Work::Rounds { cpu, gpu, rounds } => (cpu, gpu, rounds),
        Work::Requests { every, gpu, requests } => (every, gpu, requests),
    };
    let count = count.unwrap_or_default();
    let takes = (0..count).map(|_| pause.draw(random) + gpu.draw(random)).sum();
    (count as u32, takes)
}

/// What it takes to hand a client its GPUs: memory of others out and its own in, a kernel of somebody else's, messages.
fn switch(scenario: &Scenario, client: &Client) -> Duration {
    let node = &scenario.nodes[client.node];
    let memory = node.config.gpus.iter().map(|gpu| gpu.memory).sum::<u64>() as f64;
    let moves = Duration::from_secs_f64(2.0 * memory / node.link.bytes_per_s);
    let kernel = scenario.clients.iter().map(|other| other.kernel).max().unwrap_or_default();
    let message = scenario.costs.message.mean * 10;
    moves + node.switch + kernel + message
}

/// How long something that goes wrong keeps others waiting.
fn lasts(scenario: &Scenario, fault: &FaultKind) -> Duration {
    let costs = &scenario.costs;
    let lasts = match fault {
        FaultKind::Kill(_) => Duration::ZERO,
        FaultKind::Outside { lasts, .. }
        | FaultKind::Stop(_, lasts)
        | FaultKind::Restart(_, lasts)
        | FaultKind::Controller(lasts)
        | FaultKind::Cut(_, lasts)
        | FaultKind::Crash(_, lasts) => *lasts,
    };
    let drain = scenario.nodes.iter().map(|node| node.config.drain).max().unwrap_or_default();
    lasts + costs.settle + costs.death + costs.detect + drain
}

/// What gangs wait: in each of their rounds as long as GPUs are kept for them in vain.
fn gangs(scenario: &Scenario) -> Duration {
    let waits = scenario.clients.iter().filter_map(|client| {
        let timing = scenario.nodes[client.node].config.gangs.timing;
        let Work::Rounds { rounds: Some(rounds), .. } = client.work else { return None };
        let round = timing.patience + timing.pause + timing.slack + timing.lost;
        Some((&client.gang.as_ref()?.name, (rounds as u32 + 1) * round))
    });
    let waits: BTreeMap<&GangName, Duration> = waits.collect(); // its members are alike
    waits.into_values().sum()
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
