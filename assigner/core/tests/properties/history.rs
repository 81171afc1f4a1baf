//! Random histories: what may happen to a node, in terms of slots that clients come and go in.

use std::time::Duration;

use acb_core::{
    Backfill, Config, FairShare, Gpu, GpuConfig, Policy, Priority, QueueConfig, TenantConfig,
};
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
    /// Guarantee, limit beyond it, and weight of each tenant; none: any name is a tenant.
    pub(crate) tenants: Vec<(u32, Option<u32>, u32)>,
    /// Priority, GPUs and clients at once of each queue.
    pub(crate) queues: Vec<(i32, Option<u32>, Option<u32>)>,
    pub(crate) half_life_ms: Option<u64>,
    /// Bytes of the host for what leaves the GPUs.
    pub(crate) budget: Option<u64>,
    /// What of each GPU is kept free for drivers.
    pub(crate) headroom: u64,
}

/// What a client says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Who {
    pub(crate) gpus: u32,
    pub(crate) eligible: Option<Vec<Gpu>>,
    pub(crate) priority: i32,
    /// Position in [`Setup::tenants`] and [`Setup::queues`]; beyond them: nobody in particular.
    pub(crate) tenant: usize,
    pub(crate) queue: usize,
    /// Memory that it may have on each GPU.
    pub(crate) limit: Option<u64>,
}

impl Setup {
    /// What a tenant may hold at once, and what it is guaranteed.
    pub(crate) fn quota(&self, tenant: usize) -> (u32, Option<u32>) {
        let (guarantee, beyond, _) = self.tenants.get(tenant).copied().unwrap_or((0, None, 1));
        (guarantee, beyond.map(|beyond| guarantee + beyond))
    }

    pub(crate) fn queue_name(&self, queue: usize) -> String {
        if queue < self.queues.len() { format!("q{queue}") } else { String::new() }
    }

    /// `name` gives the tenants their names, in whatever order.
    pub(crate) fn config(&self, name: impl Fn(usize) -> String) -> Config {
        let gpus = vec![GpuConfig { memory: 100 }; self.gpus as usize];
        let mut config = Config::new(gpus, self.policy);
        config.backfill = self.backfill;
        config.quantum = Duration::from_millis(self.quantum_ms);
        config.drain = Duration::from_millis(400);
        config.max_bypass = self.max_bypass;
        config.max_bypass_time = Duration::from_millis(500);
        config.estimator.start_count = 2;
        config.estimator.interval = 1;
        config.memory.late = Duration::from_millis(100);
        config.memory.headroom = vec![self.headroom; self.gpus as usize];
        config.memory.host_budget = self.budget.unwrap_or(u64::MAX);
        let tenants = self.tenants.iter().enumerate().map(|(at, (guarantee, _, weight))| {
            let limit = self.quota(at).1;
            let guarantee = *guarantee;
            TenantConfig { guarantee, limit, weight: *weight, ..TenantConfig::new(name(at)) }
        });
        config.tenants = tenants.collect();
        config.tenants.sort_by(|one, other| one.name.cmp(&other.name));
        let queues = self.queues.iter().enumerate().map(|(at, (priority, max_gpus, clients))| {
            let priority = Priority::new(*priority).expect("drawn within the bounds");
            let (max_gpus, max_clients) = (*max_gpus, *clients);
            QueueConfig { priority, max_gpus, max_clients, ..QueueConfig::new(self.queue_name(at)) }
        });
        config.queues = queues.collect();
        config.fair_share = self.half_life_ms.map(|half_life| FairShare {
            half_life: Duration::from_millis(half_life),
            credit: Duration::from_millis(half_life / 8),
        });
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
        who: Who,
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
    /// Its driver has taken that.
    Grown {
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
    /// Something with paged memory.
    Memory(Deed),
    /// What is in use on a GPU is measured: so much of what was not found there is free again, and so much more is new.
    Measured {
        gpu: u32,
        freed: u64,
        new: u64,
    },
    /// The caller waits for the deadline, if there is one.
    Timer,
    /// The assigner starts again; everybody has to join again.
    Restart,
}

/// What a client does with paged memory.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Claim {
        gpu: u32,
        bytes: u64,
    },
    Unclaim {
        gpu: u32,
        bytes: u64,
    },
    /// It moves so much of what it was asked for.
    Evict {
        gpu: u32,
        bytes: u64,
    },
    /// It cannot.
    Fail {
        gpu: u32,
    },
    Ready,
    /// A page-in finds less than was credited: somebody outside has it.
    Short {
        gpu: u32,
        bytes: u64,
    },
    Pin {
        gpu: u32,
        movable: bool,
    },
    /// Its connection is lost.
    Away,
    Back,
}

pub(crate) fn setups() -> impl Strategy<Value = Setup> {
    let policy = prop_oneof![
        1 => Just(Policy::Simple),
        1 => Just(Policy::GpuSharing),
        4 => Just(Policy::GpuAffinity),
    ];
    let backfill = prop_oneof![1 => Just(Backfill::Off), 3 => Just(Backfill::ByEstimate)];
    let budget = prop::option::weighted(0.3, 0..500u64);
    let headroom = prop_oneof![1 => Just(0u64), 1 => 1..40u64];
    (1..5u32, policy, backfill, 1..300u64, 0..4u32, tenancies(), budget, headroom).prop_map(
        |(gpus, policy, backfill, quantum_ms, max_bypass, tenancy, budget, headroom)| {
            let (tenants, queues, half_life_ms) = tenancy;
            let mut left = gpus;
            let tenants = tenants.into_iter().map(|(guarantee, beyond, weight)| {
                let guarantee = guarantee.min(left);
                left -= guarantee;
                let beyond = beyond.filter(|beyond| guarantee + beyond > 0);
                (guarantee, beyond, weight)
            });
            Setup {
                gpus,
                policy,
                backfill,
                quantum_ms,
                max_bypass,
                tenants: tenants.collect(),
                queues,
                half_life_ms,
                budget,
                headroom,
            }
        },
    )
}

type Tenants = Vec<(u32, Option<u32>, u32)>;
type Queues = Vec<(i32, Option<u32>, Option<u32>)>;

/// A third of all nodes has neither tenants nor queues.
fn tenancies() -> impl Strategy<Value = (Tenants, Queues, Option<u64>)> {
    let tenant = (0..3u32, prop::option::weighted(0.3, 0..3u32), 1..4u32);
    let limit = || prop::option::weighted(0.3, 1..3u32);
    let queue = (prop_oneof![Just(0), -3..4i32], limit(), limit());
    let half_life = prop::option::of(prop_oneof![1..20u64, 100..100_000u64]);
    prop_oneof![
        1 => Just((Vec::new(), Vec::new(), None)),
        2 => (
            prop::collection::vec(tenant, 0..4),
            prop::collection::vec(queue, 0..3),
            half_life
        ),
    ]
}

pub(crate) fn histories() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(steps(), 1..120)
}

fn steps() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![4 => Just(0u64), 4 => 1..50u64, 1 => 50..2500u64];
    (wait, 0..SLOTS, whats()).prop_map(|(wait_ms, slot, what)| Step { wait_ms, slot, what })
}

fn whats() -> impl Strategy<Value = What> {
    let bytes = || prop_oneof![0..40u64, 40..130u64];
    prop_oneof![
        20 => people().prop_map(|who| What::Join { who }),
        12 => Just(What::Bind),
        30 => prop::option::of(prop_oneof![1..50u64, 50..2000u64])
            .prop_map(|expected_ms| What::Acquire { expected_ms }),
        4 => Just(What::Cancel),
        25 => Just(What::Release),
        1 => (0..40u64).prop_map(|epoch| What::ReleaseStale { epoch }),
        6 => Just(What::Leave),
        15 => (0..5u32, bytes()).prop_map(|(gpu, bytes)| What::Room { gpu, bytes }),
        6 => (0..5u32, 1..40u64).prop_map(|(gpu, bytes)| What::Grown { gpu, bytes }),
        3 => (0..3usize).prop_map(|nth| What::RoomCancel { nth }),
        8 => (0..5u32, bytes()).prop_map(|(gpu, bytes)| What::RoomReturn { gpu, bytes }),
        60 => deeds().prop_map(What::Memory),
        4 => (0..5u32, 0..60u64, prop_oneof![2 => Just(0u64), 1 => 0..30u64])
            .prop_map(|(gpu, freed, new)| What::Measured { gpu, freed, new }),
        10 => Just(What::Timer),
        1 => Just(What::Restart),
    ]
}

fn deeds() -> impl Strategy<Value = Deed> {
    let gpu = || prop_oneof![4 => Just(0u32), 1 => 1..5u32];
    let bytes = || prop_oneof![1..40u64, 40..110u64];
    prop_oneof![
        10 => (gpu(), bytes()).prop_map(|(gpu, bytes)| Deed::Claim { gpu, bytes }),
        4 => (gpu(), bytes()).prop_map(|(gpu, bytes)| Deed::Unclaim { gpu, bytes }),
        12 => (gpu(), bytes()).prop_map(|(gpu, bytes)| Deed::Evict { gpu, bytes }),
        1 => gpu().prop_map(|gpu| Deed::Fail { gpu }),
        8 => Just(Deed::Ready),
        4 => (gpu(), 1..60u64).prop_map(|(gpu, bytes)| Deed::Short { gpu, bytes }),
        1 => (gpu(), any::<bool>()).prop_map(|(gpu, movable)| Deed::Pin { gpu, movable }),
        1 => Just(Deed::Away),
        2 => Just(Deed::Back),
    ]
}

fn people() -> impl Strategy<Value = Who> {
    let eligible =
        prop::option::weighted(0.4, prop::collection::vec((0..5u32).prop_map(Gpu), 0..4));
    let priority = prop_oneof![3 => Just(0), 2 => -2..3i32, 1 => Just(100)];
    let limit = prop::option::weighted(0.2, 20..90u64);
    (1..4u32, eligible, priority, 0..4usize, 0..3usize, limit).prop_map(
        |(gpus, eligible, priority, tenant, queue, limit)| Who {
            gpus,
            eligible,
            priority,
            tenant,
            queue,
            limit,
        },
    )
}
