//! Fair share: tenants that always wait have used the same, and so have the clients of a tenant, but for what their latest leases took.
//!
//! The bound for one GPU, a quantum q and kernels of at most k: a grant goes to the tenant that has used least. It is promised when the lease
//! before it has begun and all others are in line, and that counts as a quantum then. Is it of another tenant, who has used least is
//! before nobody when it starts, and by q + k when it ends. Is it of the same one, that can be before others by what its kernel takes
//! beyond the quantum, k; together q + 2k. A turn can be longer than that, but only until its tenant is even with the one that comes
//! next, which has used least of those that wait; or its holder with the fellow that does. So it is within a tenant: the grants
//! that the tenant gets go to the client that has used least.
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
use proptest::collection::SizeRange;
use proptest::prelude::*;

/// A node and who waits there, always.
#[derive(Clone, Debug)]
struct Setup {
    gpus: u32,
    quantum: Duration,
    half_life: Duration,
    tenants: Vec<Tenant>,
    places: Places,
}

#[derive(Clone, Debug)]
struct Tenant {
    weight: u32,
    /// Of each of its clients.
    kernels: Vec<Duration>,
}

/// Where a client can run.
#[derive(Clone, Copy, Debug)]
enum Places {
    Anywhere,
    /// Each on one GPU.
    One,
}

fn tenant(clients: impl Into<SizeRange>) -> impl Strategy<Value = Tenant> {
    let kernel = (0..50u64).prop_map(Duration::from_millis);
    let kernels = prop::collection::vec(kernel, clients);
    (1..4u32, kernels).prop_map(|(weight, kernels)| Tenant { weight, kernels })
}

/// Several GPUs, and always somebody of each tenant who waits.
fn many() -> impl Strategy<Value = Setup> {
    let places = prop_oneof![Just(Places::Anywhere), Just(Places::One)];
    (2..5u32, 1..200u64, half_life(), places).prop_flat_map(
        |(gpus, quantum_ms, half_life, places)| {
            let tenants = prop::collection::vec(tenant(3 * gpus as usize), 2..5);
            tenants.prop_map(move |tenants| Setup {
                gpus,
                quantum: Duration::from_millis(quantum_ms),
                half_life,
                tenants,
                places,
            })
        },
    )
}

/// One GPU, and tenants of any size: also such whose only client is away from the line whenever the next start is promised.
fn one() -> impl Strategy<Value = Setup> {
    let tenants = prop::collection::vec(tenant(1..5), 1..6);
    let tenants =
        tenants.prop_filter("somebody waits", |it| it.len() > 1 || it[0].kernels.len() > 1);
    (1..200u64, half_life(), tenants).prop_map(|(quantum_ms, half_life, tenants)| Setup {
        gpus: 1,
        quantum: Duration::from_millis(quantum_ms),
        half_life,
        tenants,
        places: Places::Anywhere,
    })
}

fn half_life() -> impl Strategy<Value = Duration> {
    prop_oneof![1..100u64, 100..100_000u64].prop_map(Duration::from_millis)
}

impl Setup {
    fn config(&self) -> Config {
        let gpus = vec![GpuConfig { memory: 1 }; self.gpus as usize];
        let mut config = Config::new(gpus, Policy::GpuAffinity);
        config.quantum = self.quantum;
        let tenants = self.tenants.iter().enumerate().map(|(at, tenant)| TenantConfig {
            weight: tenant.weight,
            ..TenantConfig::new(at.to_string())
        });
        config.tenants = tenants.collect();
        config.fair_share = Some(FairShare { half_life: self.half_life, credit: Duration::ZERO });
        config
    }

    /// Between tenants, and between the clients of one, in seconds.
    fn bounds(&self) -> (f64, f64) {
        let kernels = self.tenants.iter().flat_map(|tenant| &tenant.kernels);
        let (quantum, kernel) = (self.quantum, kernels.max().copied().unwrap_or_default());
        match (self.gpus, self.places) {
            (1, _) => [(quantum + 2 * kernel).as_secs_f64(); 2].into(),
            (gpus, places) => {
                let grants = (quantum + kernel).as_secs_f64() * f64::from(2 * gpus + 1);
                // Where each has a GPU of its own, others are in line for it.
                (grants, if matches!(places, Places::One) { f64::INFINITY } else { grants })
            }
        }
    }
}

struct Client {
    tenant: usize,
    kernel: Duration,
    lease: Option<(Epoch, Time)>,
    /// What it has used in leases that are over, in seconds as of the present moment.
    used: f64,
}

struct Run<'s> {
    setup: &'s Setup,
    scheduler: Scheduler,
    now: Time,
    clients: Vec<Client>,
    /// Who gives back when.
    releases: BTreeSet<(Time, usize)>,
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
        for client in &mut self.clients {
            client.used *= (-half_lives).exp2();
        }
        self.now = at;
    }

    fn release(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let (epoch, since) = client.lease.take().expect("only holders are recalled");
        client.used += self.now.since(since).as_secs_f64();
        let client = ClientId(index as u64);
        self.tell(Event::Release { client, epoch, busy: None });
        self.tell(Event::Acquire { client, expected: None });
    }

    /// How far the tenants are apart, and the clients of a tenant at most.
    fn lags(&self) -> (f64, f64) {
        let tenants = self.setup.tenants.iter().enumerate().map(|(at, tenant)| {
            let own = self.clients.iter().filter(|client| client.tenant == at);
            let used = own.map(|client| {
                let running =
                    client.lease.map_or(Duration::ZERO, |(_, since)| self.now.since(since));
                client.used + running.as_secs_f64()
            });
            let used: Vec<f64> = used.collect();
            (used.iter().sum::<f64>() / f64::from(tenant.weight), apart(used))
        });
        let (tenants, fellows): (Vec<f64>, Vec<f64>) = tenants.unzip();
        (apart(tenants), fellows.into_iter().fold(0.0, f64::max))
    }
}

/// By how much the one that has used most is before the one that has used least.
fn apart(used: Vec<f64>) -> f64 {
    let most = used.iter().copied().fold(0.0, f64::max);
    most - used.into_iter().fold(f64::INFINITY, f64::min)
}

proptest! {
    #![proptest_config(super::at_least(300))]

    #[test]
    fn tenants_that_always_wait_use_the_same(setup in many()) {
        play(&setup, setup.config())?;
    }

    #[test]
    fn so_do_they_and_their_clients_on_one_gpu(setup in one()) {
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
        tenants: [1, 3].map(|weight| Tenant { weight, kernels: kernels.clone() }).to_vec(),
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
        grants: 0,
    };
    // A tenant asks for the second time when all have asked once: who was promised a start before others came keeps it.
    for at in 0..setup.tenants.iter().map(|tenant| tenant.kernels.len()).max().unwrap_or_default() {
        for (tenant, Tenant { kernels, .. }) in setup.tenants.iter().enumerate() {
            let Some(kernel) = kernels.get(at).copied() else { continue };
            let client = ClientId(run.clients.len() as u64);
            run.clients.push(Client { tenant, kernel, lease: None, used: 0.0 });
            let eligible = match setup.places {
                Places::Anywhere => Eligible::All,
                Places::One => Eligible::Only(vec![Gpu(at as u32 % setup.gpus)]),
            };
            let tenant = tenant.to_string();
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
        let ((tenants, fellows), (between, within)) = (run.lags(), setup.bounds());
        let at = run.now;
        prop_assert!(
            tenants <= between + 1e-9,
            "tenants are {tenants} s apart at {at:?}, of {between} s"
        );
        prop_assert!(
            fellows <= within + 1e-9,
            "fellows are {fellows} s apart at {at:?}, of {within} s"
        );
    }
    prop_assert!(run.grants > 20, "leases changed hands: {}", run.grants);
    Ok(())
}
