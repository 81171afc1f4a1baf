//! Fair share: tenants that always wait have used the same, but for what their latest leases took.
//!
//! The bound for one GPU, a quantum q and kernels of at most k: a grant goes to the tenant that has used least, and lasts q + k. But
//! the next start is promised when a lease begins, which counts as a quantum then: by what its kernel takes beyond that, the choice can
//! be wrong. Together: q + 2k. A turn can be longer than a quantum, but only until the tenant is even with another one that waits.
//!
//! Where a tenant has fewer clients than one that holds, one that waits and one that is about to ask again, or it is about clients, who has
//! used least may be away when the next start is promised. A turn lasts until its holder has used as much as who comes next (at least a
//! quantum), so only who gave back last but one can be behind who starts, by a grant (q + k) at most; and that one is before it by a
//! grant more when it ends: 2 · (q + k).
//!
//! For G > 1 GPUs: a grant goes to the tenant that has used least, running leases counted as whole quanta. So what a tenant has used or begun to use is at most q more than any other's, but for
//! G kernels that were still running when their leases were recalled, and for G starts that had been promised before.
//! Of what is begun, G quanta may be still to come. Together: (2G + 1) · (q + k), by weight. What was used decays, and so
//! does the difference.

use std::collections::BTreeSet;
use std::time::Duration;

use acb_core::{
    Action, ClientId, ClientSpec, Config, Eligible, Epoch, Event, FairShare, Gpu, GpuConfig,
    Policy, Scheduler, TenantConfig, Time,
};
use proptest::prelude::*;

/// A node and who waits there, always.
#[derive(Clone, Debug)]
struct Setup {
    gpus: u32,
    quantum: Duration,
    half_life: Duration,
    /// Weight of each tenant, and the kernels of its clients; where it is between clients, all are of one tenant.
    tenants: Vec<(u32, Vec<Duration>)>,
    between: Between,
    places: Places,
}

/// Who is to get the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Tenants,
    /// One of each tenant, which are one.
    Clients,
}

/// Where a client can run.
#[derive(Clone, Copy, Debug)]
enum Places {
    Anywhere,
    /// Each on one GPU.
    One,
}

fn setups() -> impl Strategy<Value = Setup> {
    let places = prop_oneof![Just(Places::Anywhere), Just(Places::One)];
    (1..5u32, 1..200u64, prop_oneof![1..100u64, 100..100_000u64], places).prop_flat_map(
        |(gpus, quantum_ms, half_life_ms, places)| {
            let kernel = (0..50u64).prop_map(Duration::from_millis);
            let kernels = prop::collection::vec(kernel, 3 * gpus as usize);
            prop::collection::vec((1..4u32, kernels), 2..5).prop_map(move |tenants| Setup {
                gpus,
                quantum: Duration::from_millis(quantum_ms),
                half_life: Duration::from_millis(half_life_ms),
                tenants,
                between: Between::Tenants,
                places,
            })
        },
    )
}

/// One GPU, and so few clients that each is away from the line whenever the next start is promised.
fn few(between: Between) -> impl Strategy<Value = Setup> {
    let half_lives = prop_oneof![1..100u64, 100..100_000u64];
    (1..200u64, half_lives, 1..3usize).prop_flat_map(move |(quantum_ms, half_life_ms, crowd)| {
        let (crowd, weights) = match between {
            Between::Tenants => (crowd, 1..4u32),
            Between::Clients => (1, 1..2u32),
        };
        let kernel = (0..50u64).prop_map(Duration::from_millis);
        let kernels = prop::collection::vec(kernel, crowd);
        prop::collection::vec((weights, kernels), 2..6).prop_map(move |tenants| Setup {
            gpus: 1,
            quantum: Duration::from_millis(quantum_ms),
            half_life: Duration::from_millis(half_life_ms),
            tenants,
            between,
            places: Places::Anywhere,
        })
    })
}

impl Setup {
    fn config(&self) -> Config {
        let gpus = vec![GpuConfig { memory: 1 }; self.gpus as usize];
        let mut config = Config::new(gpus, Policy::GpuAffinity);
        config.quantum = self.quantum;
        let tenants = self.tenants.iter().enumerate().map(|(at, (weight, _))| TenantConfig {
            weight: *weight,
            ..TenantConfig::new(at.to_string())
        });
        config.tenants = tenants.collect();
        if self.between == Between::Clients {
            config.tenants.truncate(1);
        }
        config.fair_share = Some(FairShare { half_life: self.half_life, credit: Duration::ZERO });
        config
    }

    /// In seconds.
    fn bound(&self) -> f64 {
        let kernels = self.tenants.iter().flat_map(|(_, kernels)| kernels);
        let (quantum, kernel) = (self.quantum, kernels.max().copied().unwrap_or_default());
        let grants = |most: u32| (quantum + kernel).as_secs_f64() * f64::from(most);
        let crowd = self.tenants[0].1.len();
        match (self.gpus, self.between) {
            (1, Between::Tenants) if crowd >= 3 => (quantum + 2 * kernel).as_secs_f64(),
            (1, _) => grants(2),
            (gpus, _) => grants(2 * gpus + 1),
        }
    }
}

struct Client {
    tenant: usize,
    kernel: Duration,
    lease: Option<(Epoch, Time)>,
}

struct Run<'s> {
    setup: &'s Setup,
    scheduler: Scheduler,
    now: Time,
    clients: Vec<Client>,
    /// Who gives back when.
    releases: BTreeSet<(Time, usize)>,
    /// What each tenant has used in leases that are over, in seconds by weight, as of the present moment.
    used: Vec<f64>,
    grants: u32,
}

impl Run<'_> {
    fn tell(&mut self, event: Event) {
        self.scheduler.handle(event, self.now);
        while let Some(action) = self.scheduler.poll_action() {
            match action {
                Action::Grant { client, epoch, .. } => {
                    self.grants += 1;
                    self.clients[client.0 as usize].lease = Some((epoch, self.now));
                }
                Action::Recall { client, .. } => {
                    let client = client.0 as usize;
                    let at = self.now.after(self.clients[client].kernel);
                    self.releases.insert((at, client));
                }
                _ => {}
            }
        }
        self.scheduler.sanity_check().expect("the invariants hold");
    }

    fn go_to(&mut self, at: Time) {
        let half_lives = at.since(self.now).as_secs_f64() / self.setup.half_life.as_secs_f64();
        for used in &mut self.used {
            *used *= (-half_lives).exp2();
        }
        self.now = at;
    }

    fn release(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let (epoch, since) = client.lease.take().expect("only holders are recalled");
        let span = self.now.since(since).as_secs_f64();
        self.used[client.tenant] += span / f64::from(self.setup.tenants[client.tenant].0);
        let client = ClientId(index as u64);
        self.tell(Event::Release { client, epoch, busy: None });
        self.tell(Event::Acquire { client, expected: None });
    }

    /// By how much the tenant that has used most is before the one that has used least.
    fn lag(&self) -> f64 {
        let mut used = self.used.clone();
        for client in &self.clients {
            if let Some((_, since)) = client.lease {
                let span = self.now.since(since).as_secs_f64();
                used[client.tenant] += span / f64::from(self.setup.tenants[client.tenant].0);
            }
        }
        let most = used.iter().copied().fold(0.0, f64::max);
        most - used.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

proptest! {
    #![proptest_config(super::at_least(300))]

    #[test]
    fn tenants_that_always_wait_use_the_same(setup in setups()) {
        play(&setup, setup.config())?;
    }

    #[test]
    fn so_do_tenants_of_a_client_or_two(setup in few(Between::Tenants)) {
        play(&setup, setup.config())?;
    }

    #[test]
    fn so_do_the_clients_of_a_tenant(setup in few(Between::Clients)) {
        play(&setup, setup.config())?;
    }
}

/// What the bound is good for: in order of arrival a tenant of weight 3 has no more than one of weight 1.
#[test]
fn without_fair_share_they_do_not() {
    let kernels = vec![Duration::ZERO; 3];
    let setup = Setup {
        gpus: 1,
        quantum: Duration::from_millis(10),
        half_life: Duration::from_secs(100),
        tenants: vec![(1, kernels.clone()), (3, kernels)],
        between: Between::Tenants,
        places: Places::Anywhere,
    };
    play(&setup, setup.config()).expect("the lag is within the bound");
    let config = Config { fair_share: None, ..setup.config() };
    assert!(matches!(play(&setup, config), Err(TestCaseError::Fail(_))));
}

fn play(setup: &Setup, config: Config) -> Result<(), TestCaseError> {
    let mut run = Run {
        setup,
        scheduler: Scheduler::new(config).expect("the configuration is valid"),
        now: Time(0),
        clients: Vec::new(),
        releases: BTreeSet::new(),
        used: vec![0.0; setup.tenants.len()],
        grants: 0,
    };
    // A tenant asks for the second time when all have asked once: who was promised a start before others came keeps it.
    for at in 0..setup.tenants[0].1.len() {
        for (tenant, (_, kernels)) in setup.tenants.iter().enumerate() {
            let client = ClientId(run.clients.len() as u64);
            run.clients.push(Client { tenant, kernel: kernels[at], lease: None });
            let eligible = match setup.places {
                Places::Anywhere => Eligible::All,
                Places::One => Eligible::Only(vec![Gpu(at as u32 % setup.gpus)]),
            };
            let tenant = match setup.between {
                Between::Tenants => tenant.to_string(),
                Between::Clients => "0".to_owned(),
            };
            run.tell(Event::Join {
                client,
                spec: ClientSpec { eligible, tenant, ..ClientSpec::default() },
            });
            run.tell(Event::Acquire { client, expected: None });
        }
    }
    for _ in 0..400 {
        let deadline = run.scheduler.poll_deadline();
        match run.releases.first().copied() {
            Some((at, client)) if deadline.is_none_or(|deadline| at <= deadline) => {
                run.releases.remove(&(at, client));
                run.go_to(at);
                run.release(client);
            }
            _ => {
                run.go_to(deadline.expect("somebody waits, and somebody holds"));
                run.tell(Event::Timer);
            }
        }
        let (lag, bound) = (run.lag(), setup.bound());
        prop_assert!(lag <= bound + 1e-9, "{lag} s apart at {:?}, but at most {bound} s", run.now);
    }
    prop_assert!(run.grants > 20, "leases changed hands: {}", run.grants);
    Ok(())
}
