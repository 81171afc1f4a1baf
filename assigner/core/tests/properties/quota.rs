//! Guarantees of bound clients: how long one that is within its tenant's guarantee waits at most for its GPU.
//!
//! The bound, for a quantum q and kernels of at most k: a holder that has borrowed is recalled at once and stops within k.
//! One that is within its own tenant's guarantee keeps the GPU for its quantum, and stops within k after it; each client of
//! a tenant with a guarantee that is bound to the same GPU does so once at most, for then it stands behind. Together, with
//! n of these: k + n · (q + k).

use std::time::Duration;

use acb_core::{
    Action, ClientId, ClientSpec, Config, Eligible, Epoch, Event, Gpu, GpuConfig, Policy,
    Scheduler, TenantConfig, Time,
};
use proptest::prelude::*;

/// A node and its clients.
#[derive(Clone, Debug)]
struct Setup {
    gpus: u32,
    quantum: Duration,
    /// What each tenant is guaranteed.
    guarantees: Vec<u32>,
    clients: Vec<Habits>,
}

/// What a client does: it thinks, asks for its GPU, and uses it.
#[derive(Clone, Debug)]
struct Habits {
    tenant: usize,
    gpu: u32,
    think: Duration,
    phase: Duration,
    /// How long it takes to stop when it is recalled.
    kernel: Duration,
}

fn setups() -> impl Strategy<Value = Setup> {
    let time = |range: std::ops::Range<u64>| range.prop_map(Duration::from_millis);
    let habits = (0..3usize, 0..3u32, time(0..400), time(1..400), time(0..20));
    let habits = habits.prop_map(|(tenant, gpu, think, phase, kernel)| Habits {
        tenant,
        gpu,
        think,
        phase,
        kernel,
    });
    let clients = prop::collection::vec(habits, 2..10);
    let guarantees = prop::collection::vec(0..3u32, 3);
    (1..4u32, time(20..200), guarantees, clients).prop_map(
        |(gpus, quantum, guarantees, mut clients)| {
            let mut left = gpus;
            let guarantees = guarantees.into_iter().map(|guarantee| {
                let guarantee = guarantee.min(left);
                left -= guarantee;
                guarantee
            });
            let guarantees = guarantees.collect();
            for client in &mut clients {
                client.gpu %= gpus;
            }
            Setup { gpus, quantum, guarantees, clients }
        },
    )
}

impl Setup {
    fn config(&self) -> Config {
        let gpus = vec![GpuConfig { memory: 1 }; self.gpus as usize];
        let mut config = Config::new(gpus, Policy::GpuAffinity);
        config.quantum = self.quantum;
        let tenants = self.guarantees.iter().enumerate().map(|(at, guarantee)| TenantConfig {
            guarantee: *guarantee,
            ..TenantConfig::new(at.to_string())
        });
        config.tenants = tenants.collect();
        config
    }

    fn bound(&self, client: usize) -> Duration {
        let kernel = self.clients.iter().map(|other| other.kernel).max().unwrap_or_default();
        let others = self.clients.iter().enumerate().filter(|(at, other)| {
            *at != client
                && other.gpu == self.clients[client].gpu
                && self.guarantees[other.tenant] > 0
        });
        kernel + (self.quantum + kernel) * others.count() as u32
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Thinks {
        until: Time,
    },
    /// `guaranteed`: all that its tenant has held and asked for since was within the guarantee.
    Waits {
        since: Time,
        guaranteed: bool,
    },
    Holds {
        epoch: Epoch,
        until: Time,
    },
}

struct Run<'s> {
    setup: &'s Setup,
    scheduler: Scheduler,
    now: Time,
    clients: Vec<State>,
    /// How long each waits at most.
    bounds: Vec<Duration>,
    /// Waits that this was asserted of.
    judged: u32,
}

impl Run<'_> {
    fn tell(&mut self, event: Event) -> Result<(), TestCaseError> {
        self.scheduler.handle(event, self.now);
        while let Some(action) = self.scheduler.poll_action() {
            match action {
                Action::Grant { client, epoch, .. } => self.granted(client.0 as usize, epoch)?,
                Action::Recall { client, .. } => {
                    let client = client.0 as usize;
                    let stops = self.now.after(self.setup.clients[client].kernel);
                    if let State::Holds { until, .. } = &mut self.clients[client] {
                        *until = stops.min(*until);
                    }
                }
                _ => {}
            }
        }
        self.scheduler.sanity_check().expect("the invariants hold");
        Ok(())
    }

    fn granted(&mut self, client: usize, epoch: Epoch) -> Result<(), TestCaseError> {
        let State::Waits { since, guaranteed } = self.clients[client] else {
            return Err(TestCaseError::fail(format!("{client} did not wait")));
        };
        let (waited, bound) = (self.now.since(since), self.bounds[client]);
        if guaranteed {
            prop_assert!(
                waited <= bound,
                "client {client} waited for {waited:?} until {:?}, but {bound:?} at most",
                self.now
            );
            self.judged += 1;
        }
        let until = self.now.after(self.setup.clients[client].phase);
        self.clients[client] = State::Holds { epoch, until };
        Ok(())
    }

    /// Who asks for more than its tenant is guaranteed takes that from its fellows, too: which request goes first is the
    /// tenant's own matter.
    fn note_demand(&mut self) {
        for (tenant, guarantee) in self.setup.guarantees.iter().enumerate() {
            let own = |at: &usize| self.setup.clients[*at].tenant == tenant;
            let all: Vec<usize> = (0..self.clients.len()).filter(own).collect();
            let wants = |at: &&usize| !matches!(self.clients[**at], State::Thinks { .. });
            if all.iter().filter(wants).count() > *guarantee as usize {
                for at in all {
                    if let State::Waits { guaranteed, .. } = &mut self.clients[at] {
                        *guaranteed = false;
                    }
                }
            }
        }
    }

    fn step(&mut self) -> Result<(), TestCaseError> {
        let next = self.clients.iter().enumerate().filter_map(|(at, state)| match state {
            State::Thinks { until } | State::Holds { until, .. } => Some((*until, at)),
            State::Waits { .. } => None,
        });
        let deadline = self.scheduler.poll_deadline();
        match next.min() {
            Some((at, client)) if deadline.is_none_or(|deadline| at <= deadline) => {
                self.now = self.now.max(at);
                let id = ClientId(client as u64);
                if let State::Holds { epoch, .. } = self.clients[client] {
                    let until = self.now.after(self.setup.clients[client].think);
                    self.clients[client] = State::Thinks { until };
                    self.tell(Event::Release { client: id, epoch, busy: None })
                } else {
                    self.clients[client] = State::Waits { since: self.now, guaranteed: true };
                    self.note_demand();
                    self.tell(Event::Acquire { client: id, expected: None })
                }
            }
            _ => {
                self.now = deadline.expect("somebody thinks, holds or is recalled").max(self.now);
                self.tell(Event::Timer)
            }
        }
    }
}

fn play(setup: &Setup, bound: impl Fn(usize) -> Duration) -> Result<u32, TestCaseError> {
    let mut run = Run {
        setup,
        scheduler: Scheduler::new(setup.config()).expect("the configuration is valid"),
        now: Time(0),
        clients: Vec::new(),
        bounds: (0..setup.clients.len()).map(bound).collect(),
        judged: 0,
    };
    for (at, habits) in setup.clients.iter().enumerate() {
        let client = ClientId(at as u64);
        run.clients.push(State::Thinks { until: Time(0).after(habits.think) });
        let spec = ClientSpec {
            eligible: Eligible::Only(vec![Gpu(habits.gpu)]),
            tenant: habits.tenant.to_string(),
            ..ClientSpec::default()
        };
        run.tell(Event::Join { client, spec })?;
        run.tell(Event::Bind { client })?;
    }
    for _ in 0..300 {
        run.step()?;
    }
    Ok(run.judged)
}

proptest! {
    #![proptest_config(super::at_least(500))]

    #[test]
    fn a_bound_client_within_its_guarantee_waits_for_guaranteed_ones_alone(setup in setups()) {
        play(&setup, |client| setup.bound(client))?;
    }
}

/// What the bound is good for: without the quanta of those that are within their guarantees it does not hold.
#[test]
fn others_within_their_guarantees_keep_it_for_a_quantum() {
    let ms = Duration::from_millis;
    let habits =
        |tenant, think| Habits { tenant, gpu: 0, think: ms(think), phase: ms(1000), kernel: ms(5) };
    let clients = vec![habits(0, 7), habits(1, 11), habits(2, 3)];
    let setup = Setup { gpus: 2, quantum: ms(100), guarantees: vec![1, 1, 0], clients };
    let judged = play(&setup, |client| setup.bound(client)).expect("the bound holds");
    assert!(judged > 20, "{judged} waits were judged");
    assert!(matches!(play(&setup, |_| ms(104)), Err(TestCaseError::Fail(_))));
    // Without the other guaranteed one it is a kernel alone.
    let borrower = Setup { guarantees: vec![1, 0, 0], ..setup };
    assert_eq!(borrower.bound(0), ms(5));
    play(&borrower, |client| borrower.bound(client)).expect("the bound holds");
}
