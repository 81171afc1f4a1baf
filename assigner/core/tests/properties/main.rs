//! Properties of the scheduler under random histories: joins, binds, acquires, releases, deaths,
//! room, timers, restarts of the assigner. The invariants are checked after every event, and what
//! the clients see is compared with a model that knows nothing of how the scheduler works.
//!
//! Failing histories are kept in `proptest-regressions/`, and played first from then on. A change of a strategy makes other
//! histories of its entries: what matters is to be written as a scenario, and what means nothing any more taken out.

mod fairness;
mod history;
mod memory;
mod quota;
mod world;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

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

/// The same cases every time, so that a test does not fail for what somebody else has changed; with `PROPTEST_CASES` or
/// `PROPTEST_RNG_SEED` others (`scripts/soak --properties`).
fn at_least(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    let explores = ["PROPTEST_CASES", "PROPTEST_RNG_SEED"].map(std::env::var_os);
    let rng_seed = match explores {
        [None, None] => RngSeed::Fixed(1),
        _ => config.rng_seed,
    };
    ProptestConfig { cases: config.cases.max(cases), rng_seed, ..config }
}

fn play(setup: &Setup, history: &[history::Step], names: Names) -> Vec<String> {
    let mut world = World::new(setup, names);
    for step in history {
        world.step(step);
    }
    world.log
}
