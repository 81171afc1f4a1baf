//! Properties of the scheduler under random histories: joins, binds, acquires, releases, deaths,
//! room, timers, restarts of the assigner. The invariants are checked after every event, and what
//! the clients see is compared with a model that knows nothing of how the scheduler works.
//!
//! Failing histories are kept in `proptest-regressions/`.

mod history;
mod memory;
mod world;

use std::time::Duration;

use acb_core::sim::{self, Binding, Expectation, Phase, Release, Scenario, SimClient};
use acb_core::{Backfill, Config, Eligible, Gpu, GpuConfig, Policy};
use proptest::prelude::*;

use history::{Setup, histories, setups};
use world::{Gives, Names, World};

proptest! {
    #![proptest_config(at_least(1500))]

    #[test]
    fn invariants_hold_after_every_event(setup in setups(), history in histories()) {
        let mut world = World::new(&setup, Names::Forward);
        for step in &history {
            world.step(step);
        }
    }

    #[test]
    fn when_all_behave_all_are_served(setup in setups(), history in histories()) {
        let mut world = World::new(&setup, Names::Forward);
        for step in &history {
            world.step(step);
        }
        world.calm_down(Gives::AfterPhase);
    }

    #[test]
    fn whoever_is_in_the_way_is_told(setup in setups(), history in histories()) {
        let mut world = World::new(&setup, Names::Forward);
        for step in &history {
            world.step(step);
        }
        world.calm_down(Gives::WhenWanted);
    }

    #[test]
    fn nobody_takes_gpus_back_and_forth(setup in setups(), history in histories()) {
        let mut world = World::new(&setup, Names::Forward);
        for step in &history {
            world.step(step);
        }
        world.quarrel();
    }

    #[test]
    fn the_same_history_gives_the_same_actions(setup in setups(), history in histories()) {
        prop_assert_eq!(play(&setup, &history, Names::Forward), play(&setup, &history, Names::Forward));
    }

    #[test]
    fn other_names_change_nothing_but_names(setup in setups(), history in histories()) {
        prop_assert_eq!(play(&setup, &history, Names::Forward), play(&setup, &history, Names::Backward));
    }
}

/// Other cases every time; `PROPTEST_RNG_SEED` plays the same ones again, and `PROPTEST_CASES` more of them.
fn at_least(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.max(cases), ..config }
}

fn play(setup: &Setup, history: &[history::Step], names: Names) -> Vec<String> {
    let mut world = World::new(setup, names);
    for step in history {
        world.step(step);
    }
    world.log
}

proptest! {
    #![proptest_config(at_least(400))]

    #[test]
    fn promises_are_kept_however_wrong_the_estimates_are(scenario in scenarios()) {
        let report = sim::run(&scenario).expect("everybody is served in the end");
        let longest = scenario.clients.iter().map(|client| client.kernel).max().unwrap_or_default();
        prop_assert!(
            report.promise_late <= longest,
            "{:?} late, but the longest kernel is {longest:?}", report.promise_late
        );
        let work: Duration = scenario
            .clients
            .iter()
            .map(|client| client.phases.iter().map(|phase| phase.gpu).sum::<Duration>() * client.gpus)
            .sum();
        let busy: Duration = report.gpus.iter().map(|gpu| gpu.busy).sum();
        prop_assert!(busy >= work, "{busy:?} of work done, but {work:?} were to do");
    }
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    let backfill = prop_oneof![Just(Backfill::Off), Just(Backfill::ByEstimate)];
    (1..5u32, backfill, 1..40u64, 0..4u32).prop_flat_map(|(gpus, backfill, quantum, bypass)| {
        prop::collection::vec(sim_clients(gpus), 1..10).prop_map(move |clients| {
            let mut config =
                Config::new(vec![GpuConfig { memory: 1 }; gpus as usize], Policy::GpuAffinity);
            config.backfill = backfill;
            config.quantum = Duration::from_millis(quantum * 25);
            config.max_bypass = bypass;
            Scenario { config, switch: Duration::ZERO, clients }
        })
    })
}

fn sim_clients(gpus: u32) -> impl Strategy<Value = SimClient> {
    let phase = (0..1000u64, 1..1000u64).prop_map(|(cpu, gpu)| Phase {
        cpu: Duration::from_millis(cpu),
        gpu: Duration::from_millis(gpu),
    });
    let expectation = prop_oneof![
        Just(Expectation::Unknown),
        Just(Expectation::Exact),
        Just(Expectation::Times(0.001)),
        Just(Expectation::Times(1000.0)),
    ];
    let eligible = prop_oneof![
        3 => Just(Eligible::All),
        1 => prop::collection::vec((0..gpus).prop_map(Gpu), 1..4).prop_map(Eligible::Only),
    ];
    let release = prop_oneof![Just(Release::AfterPhase), Just(Release::WhenWanted)];
    let binding = prop_oneof![Just(Binding::Free), Just(Binding::AtArrival)];
    let phases = prop::collection::vec(phase, 1..8);
    (1..=gpus, eligible, binding, release, expectation, phases, 0..500u64, 0..60u64).prop_map(
        move |(wanted, eligible, binding, release, expectation, phases, arrival, kernel)| {
            let most = match &eligible {
                Eligible::All => gpus,
                Eligible::Only(list) => {
                    let distinct: std::collections::BTreeSet<&Gpu> = list.iter().collect();
                    distinct.len() as u32
                }
            };
            SimClient {
                gpus: wanted.min(most),
                eligible,
                binding,
                arrival: Duration::from_millis(arrival),
                expectation,
                release,
                kernel: Duration::from_millis(kernel),
                ..SimClient::new(phases)
            }
        },
    )
}
