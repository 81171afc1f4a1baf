//! Random histories: what may happen to a node, in terms of slots that clients come and go in.

use std::time::Duration;

use acb_core::{Backfill, Config, Gpu, GpuConfig, Policy};
use proptest::prelude::*;

/// Clients that can be there at the same time.
pub(crate) const SLOTS: usize = 7;

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) gpus: u32,
    pub(crate) policy: Policy,
    pub(crate) backfill: Backfill,
    pub(crate) quantum_ms: u64,
    pub(crate) max_bypass: u32,
}

impl Setup {
    pub(crate) fn config(&self) -> Config {
        let gpus = vec![GpuConfig { memory: 100 }; self.gpus as usize];
        let mut config = Config::new(gpus, self.policy);
        config.backfill = self.backfill;
        config.quantum = Duration::from_millis(self.quantum_ms);
        config.drain = Duration::from_millis(400);
        config.max_bypass = self.max_bypass;
        config.max_bypass_time = Duration::from_millis(500);
        config.estimator.start_count = 2;
        config.estimator.interval = 1;
        config
    }
}

/// Something that happens after a while.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) wait_ms: u64,
    pub(crate) slot: usize,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Join {
        gpus: u32,
        eligible: Option<Vec<Gpu>>,
    },
    Bind,
    Acquire {
        expected_ms: Option<u64>,
    },
    Cancel,
    Release,
    ReleaseStale {
        epoch: u64,
    },
    Leave,
    Room {
        gpu: u32,
        bytes: u64,
    },
    RoomCancel {
        nth: usize,
    },
    RoomReturn {
        gpu: u32,
        bytes: u64,
    },
    /// The caller waits for the deadline, if there is one.
    Timer,
    /// The assigner starts again; everybody has to join again.
    Restart,
}

pub(crate) fn setups() -> impl Strategy<Value = Setup> {
    let policy = prop_oneof![
        1 => Just(Policy::Simple),
        1 => Just(Policy::GpuSharing),
        4 => Just(Policy::GpuAffinity),
    ];
    let backfill = prop_oneof![1 => Just(Backfill::Off), 3 => Just(Backfill::ByEstimate)];
    (1..5u32, policy, backfill, 1..300u64, 0..4u32).prop_map(
        |(gpus, policy, backfill, quantum_ms, max_bypass)| Setup {
            gpus,
            policy,
            backfill,
            quantum_ms,
            max_bypass,
        },
    )
}

pub(crate) fn histories() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(steps(), 1..120)
}

fn steps() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![4 => Just(0u64), 4 => 1..50u64, 1 => 50..2500u64];
    (wait, 0..SLOTS, whats()).prop_map(|(wait_ms, slot, what)| Step { wait_ms, slot, what })
}

fn whats() -> impl Strategy<Value = What> {
    let eligible =
        prop::option::weighted(0.4, prop::collection::vec((0..5u32).prop_map(Gpu), 0..4));
    let bytes = || prop_oneof![0..40u64, 40..130u64];
    prop_oneof![
        20 => (1..4u32, eligible).prop_map(|(gpus, eligible)| What::Join { gpus, eligible }),
        12 => Just(What::Bind),
        30 => prop::option::of(prop_oneof![1..50u64, 50..2000u64])
            .prop_map(|expected_ms| What::Acquire { expected_ms }),
        4 => Just(What::Cancel),
        25 => Just(What::Release),
        1 => (0..40u64).prop_map(|epoch| What::ReleaseStale { epoch }),
        6 => Just(What::Leave),
        15 => (0..5u32, bytes()).prop_map(|(gpu, bytes)| What::Room { gpu, bytes }),
        3 => (0..3usize).prop_map(|nth| What::RoomCancel { nth }),
        8 => (0..5u32, bytes()).prop_map(|(gpu, bytes)| What::RoomReturn { gpu, bytes }),
        10 => Just(What::Timer),
        1 => Just(What::Restart),
    ]
}
