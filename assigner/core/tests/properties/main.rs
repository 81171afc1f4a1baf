//! Properties of the scheduler under random histories: joins, binds, acquires, releases, deaths,
//! room, timers, restarts of the assigner. The invariants are checked after every event, and what
//! the clients see is compared with a model that knows nothing of how the scheduler works.
//!
//! Failing histories are kept in `proptest-regressions/`.

mod fairness;
mod history;
mod memory;
mod quota;
mod world;

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
