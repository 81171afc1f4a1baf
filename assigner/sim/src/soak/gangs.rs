//! Gangs in scenarios that are made up: of every fourth seed, on a network that loses, doubles and reorders.
//!
//! All work is finite there, and has to be done in the end: who waits for ever is found so, whether in a gang or not.

use std::time::Duration;

use acb_core::Eligible;
use acb_core::gang::{GangName, GangSpec, Timing};

use crate::random::{Family, Lengths, Random};
use crate::scenario::{Fault, FaultKind, Node, Scenario, Work};

/// Whether the scenario of a seed has gangs.
pub(super) fn has_gangs(seed: u64) -> bool {
    seed % 4 == 3
}

/// Adds gangs, a network and its faults; makes all work finite.
pub(super) fn add(scenario: &mut Scenario) {
    // A stream of its own: what the scenario has else stays as it is.
    let random = &mut Random::new(scenario.seed, 0x6a46);
    if random.chance(0.5) {
        let node = scenario.nodes[0].clone();
        scenario.nodes.push(Node { name: format!("node-{}", scenario.nodes.len()), ..node });
    }
    let alone = scenario.nodes.len() == 1;
    let timing = match random.between(0, 2) {
        0 => Timing::default(),
        _ => timing(random),
    };
    for node in &mut scenario.nodes {
        node.config.gangs.alone = alone;
        node.config.gangs.timing = timing;
    }
    super::finish::add(random, scenario);
    for number in 0..random.between(1, 3) {
        add_gang(random, scenario, number);
    }
    let network = &mut scenario.costs;
    network.network = Lengths {
        mean: Duration::from_micros(*random.one_of(&[0, 100, 20_000, 300_000])),
        spread: *random.one_of(&[0.0, 1.0, 2.0]),
        family: Family::Gamma,
    };
    network.network_loss = *random.one_of(&[0.0, 0.0, 0.05, 0.2]);
    // Four messages one after the other make a round, and each may have to be said again.
    let way = network.network.mean.mul_f64(1.0 + network.network.spread);
    for node in &mut scenario.nodes {
        let timing = &mut node.config.gangs.timing;
        timing.patience = timing.patience.max(8 * way + 4 * timing.retry);
    }
    let network = &mut scenario.costs;
    network.detect = Duration::from_millis(*random.one_of(&[10, 1000, 10_000]));
    if random.chance(0.6) {
        for _ in 0..random.between(1, 4) {
            let fault = fault(random, scenario.nodes.len());
            scenario.faults.push(fault);
        }
    }
}

fn timing(random: &mut Random) -> Timing {
    let mut span = |least: u64, most: u64| Duration::from_millis(random.between(least, most));
    Timing {
        slack: span(1, 2000),
        patience: span(1000, 60_000),
        pause: span(1, 2000),
        lost: span(100, 10_000),
        retry: span(50, 500),
    }
}

/// Some members on random nodes, alike but for where they are and how long their phases take.
fn add_gang(random: &mut Random, scenario: &mut Scenario, number: u64) {
    let name = GangName::from(format!("gang-{number}").as_str());
    let count = scenario.clients.len();
    let rounds = random.between(1, 5);
    let members = random.between(1, 5) as usize;
    let together = random.chance(0.3).then(|| random.between(0, scenario.nodes.len() as u64 - 1));
    for member in 0..members {
        let nodes = scenario.nodes.len() as u64;
        let node = together.unwrap_or_else(|| random.between(0, nodes - 1)) as usize;
        let mut client = super::client(random, count + member, &scenario.nodes[node..=node]);
        client.node = node;
        client.name = format!("member-{number}-{member}");
        client.eligible = Eligible::All;
        if random.chance(0.8) {
            client.gpus = 1;
        }
        client.gang = Some(GangSpec { name: name.clone(), size: members as u32 });
        client.work = Work::Rounds {
            cpu: Lengths::exponential(Duration::from_millis(random.between(0, 2000))),
            gpu: Lengths::exponential(Duration::from_millis(random.between(1, 2000))),
            rounds: Some(rounds),
        };
        scenario.clients.push(client);
    }
}

fn fault(random: &mut Random, nodes: usize) -> Fault {
    let at = Duration::from_millis(random.between(0, 60_000));
    let lasts = Duration::from_millis(*random.one_of(&[100, 2000, 30_000]));
    let node = random.between(0, nodes as u64 - 1) as usize;
    let what = match random.between(0, 6) {
        0 => FaultKind::Crash(node, lasts),
        1 | 2 => FaultKind::Controller(lasts),
        _ => FaultKind::Cut(node, lasts),
    };
    Fault { at, what }
}
