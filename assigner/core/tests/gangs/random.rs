//! Gangs under random histories: delays, reordering, doubled and lost messages, deaths, partitions, restarts.
//!
//! After every step: no GPU has two holders, members hold only in a round that had all of its GPUs on all nodes, and no
//! deadline stays due. When the faults stop, every client gets its turn.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::world::{Setup, World};

proptest! {
    #![proptest_config(at_least(300))]

    #[test]
    fn all_hold_or_none_and_all_are_served_in_the_end(
        setup in setups(),
        history in prop::collection::vec(any::<u32>(), 0..300),
    ) {
        let mut world = World::new(&setup);
        for choice in history {
            world.step(choice, true);
        }
        world.calm_down();
    }

    #[test]
    fn without_faults_the_same(
        setup in setups(),
        history in prop::collection::vec(any::<u32>(), 0..300),
    ) {
        let mut world = World::new(&setup);
        for choice in history {
            world.step(choice, false);
        }
        world.calm_down();
    }
}

/// The same cases every time; with `PROPTEST_CASES` or `PROPTEST_RNG_SEED` others (`scripts/soak --properties`).
fn at_least(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    let explores = ["PROPTEST_CASES", "PROPTEST_RNG_SEED"].map(std::env::var_os);
    let rng_seed = match explores {
        [None, None] => RngSeed::Fixed(1),
        _ => config.rng_seed,
    };
    ProptestConfig { cases: config.cases.max(cases), rng_seed, ..config }
}

/// One to three nodes of one to three GPUs; gangs with members on different GPUs.
fn setups() -> impl Strategy<Value = Setup> {
    prop::collection::vec(1_u32..=3, 1..=3).prop_flat_map(|nodes| {
        let places: Vec<(usize, usize)> = nodes
            .iter()
            .enumerate()
            .flat_map(|(node, gpus)| (0..*gpus as usize).map(move |gpu| (node, gpu)))
            .collect();
        let most = places.len();
        let gang = prop::sample::subsequence(places.clone(), 1..=most);
        let gangs = prop::collection::vec(gang, 1..=3);
        let singles = prop::collection::vec(prop::sample::select(places), 0..=3);
        (Just(nodes), gangs, singles).prop_map(|(nodes, gangs, singles)| Setup {
            nodes,
            gangs,
            singles,
        })
    })
}
