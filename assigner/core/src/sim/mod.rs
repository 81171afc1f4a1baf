//! Whole nodes in virtual time: the real [`Scheduler`](crate::Scheduler) with made-up clients.
//!
//! Owns: what a scenario says and what a run reports, and the scenarios that have names. Does not
//! own: how a run goes on (`run`), any file format, any clock. The same scenario always gives the
//! same report.

mod run;

use std::time::Duration;

use crate::config::{Backfill, Config, GpuConfig, Policy};
use crate::event::{Eligible, Refusal};

pub use run::{SimError, run};

/// A node and what its clients do.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The node and how it is scheduled.
    pub config: Config,
    /// What a GPU loses when its next holder is not its latest one.
    pub switch: Duration,
    /// The clients; those that arrive at the same moment do so in this order.
    pub clients: Vec<SimClient>,
}

/// A made-up client.
#[derive(Clone, Debug)]
pub struct SimClient {
    /// GPUs that each of its leases covers.
    pub gpus: u32,
    /// Where it may run.
    pub eligible: Eligible,
    /// Whether it is bound to its GPUs.
    pub binding: Binding,
    /// When it appears.
    pub arrival: Duration,
    /// What it does then, one after the other.
    pub phases: Vec<Phase>,
    /// What it tells of the length of its GPU phases.
    pub expectation: Expectation,
    /// When it gives a lease back.
    pub release: Release,
    /// How long it takes to stop after a recall: its longest kernel.
    pub kernel: Duration,
}

impl SimClient {
    /// A client of one GPU that is there from the start, knows how long its phases take, is not
    /// bound, stops at once, and releases after every phase.
    #[must_use]
    pub fn new(phases: Vec<Phase>) -> SimClient {
        SimClient {
            gpus: 1,
            eligible: Eligible::All,
            binding: Binding::Free,
            arrival: Duration::ZERO,
            phases,
            expectation: Expectation::Exact,
            release: Release::AfterPhase,
            kernel: Duration::ZERO,
        }
    }
}

/// A CPU phase and the GPU phase after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Time without need of a GPU.
    pub cpu: Duration,
    /// Time of work on the GPUs.
    pub gpu: Duration,
}

/// Whether a client keeps to GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Any eligible GPU will do each time.
    Free,
    /// It is bound to GPUs when it arrives.
    AtArrival,
}

/// What a client tells of the length of its GPU phases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expectation {
    /// Nothing: the estimator has to know.
    Unknown,
    /// The truth.
    Exact,
    /// The truth times this.
    Times(f64),
}

/// When a client gives a lease back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// After every GPU phase.
    AfterPhase,
    /// After a GPU phase, once somebody waits; until then it keeps the lease through CPU phases.
    WhenWanted,
}

/// What came of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// When the last client was done.
    pub makespan: Duration,
    /// In the order of the scenario.
    pub clients: Vec<ClientReport>,
    /// In order of number.
    pub gpus: Vec<GpuReport>,
    /// Events that the scheduler handled.
    pub events: u64,
    /// Leases granted.
    pub grants: u64,
    /// Leases asked back at the end of their quantum.
    pub recalls: u64,
    /// By how much the latest start came after the promise of the reservation.
    pub promise_late: Duration,
}

/// What came of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientReport {
    /// When it was done; `None` if it was refused.
    pub finished: Option<Duration>,
    /// Why it was refused.
    pub refused: Option<Refusal>,
    /// From each request to its grant.
    pub waits: Vec<Duration>,
    /// Start and end of each of its GPU phases, as far as they ran in one piece.
    pub runs: Vec<(Duration, Duration)>,
}

/// What came of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuReport {
    /// Time of work.
    pub busy: Duration,
    /// Times that its holder changed.
    pub switches: u64,
}

/// Benchmark B6: two GPUs; A wants one of them for 100 s, B both for 50 s, C one for 100 s, D one
/// for 50 s, in this order, all at once. In strict order ([`Backfill::Off`]) C waits behind B, and
/// all is done after 250 s; with [`Backfill::ByEstimate`] C runs beside A, and it takes 200 s.
#[must_use]
pub fn b6(backfill: Backfill) -> Scenario {
    let gpus = vec![GpuConfig { memory: 16 << 30 }; 2];
    let mut config = Config::new(gpus, Policy::GpuAffinity);
    config.backfill = backfill;
    config.quantum = Duration::from_secs(1000); // phases run in one piece, as in the original
    let clients = [(1, 100), (2, 50), (1, 100), (1, 50)].map(|(gpus, seconds)| {
        let phase = Phase { cpu: Duration::ZERO, gpu: Duration::from_secs(seconds) };
        SimClient { gpus, ..SimClient::new(vec![phase]) }
    });
    Scenario { config, switch: Duration::ZERO, clients: clients.to_vec() }
}

/// The spread of phase times about their mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// All phases are alike (coefficient of variation 0).
    Constant,
    /// Exponentially distributed phases (coefficient of variation 1), drawn from this seed.
    Exponential(u64),
}

/// `rounds` phases of mean length `cpu` and `gpu`.
#[must_use]
pub fn phases(cpu: Duration, gpu: Duration, rounds: usize, spread: Spread) -> Vec<Phase> {
    match spread {
        Spread::Constant => vec![Phase { cpu, gpu }; rounds],
        Spread::Exponential(seed) => {
            let mut state = seed;
            let mut draw = |mean: Duration| mean.mul_f64(exponential(&mut state));
            (0..rounds).map(|_| Phase { cpu: draw(cpu), gpu: draw(gpu) }).collect()
        }
    }
}

/// A number with exponential distribution and mean 1.
fn exponential(state: &mut u64) -> f64 {
    // splitmix64: enough for phase times, the same on every machine, and no dependency.
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bits = *state;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    let uniform = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigError;

    fn seconds(value: u64) -> Duration {
        Duration::from_secs(value)
    }

    #[test]
    fn b6_takes_250_s_in_strict_order_and_200_s_with_backfill() -> Result<(), SimError> {
        assert_eq!(run(&b6(Backfill::Off))?.makespan, seconds(250));
        assert_eq!(run(&b6(Backfill::ByEstimate))?.makespan, seconds(200));
        Ok(())
    }

    #[test]
    fn b6_backfill_does_not_delay_the_big_one() -> Result<(), SimError> {
        for backfill in [Backfill::Off, Backfill::ByEstimate] {
            let report = run(&b6(backfill))?;
            assert_eq!(report.clients[1].runs, [(seconds(100), seconds(150))], "{backfill:?}");
        }
        Ok(())
    }

    #[test]
    fn unknown_estimates_are_never_backfilled() -> Result<(), SimError> {
        let mut scenario = b6(Backfill::ByEstimate);
        for client in &mut scenario.clients {
            client.expectation = Expectation::Unknown;
        }
        assert_eq!(run(&scenario)?.makespan, seconds(250));
        Ok(())
    }

    #[test]
    fn wrong_estimates_of_others_do_not_delay_the_big_one() -> Result<(), SimError> {
        let mut scenario = b6(Backfill::ByEstimate);
        // C says that it will be done in 100 ms, and is asked to stop when B could start.
        scenario.clients[2].expectation = Expectation::Times(0.001);
        scenario.clients[2].phases[0].gpu = seconds(500);
        let report = run(&scenario)?;
        assert_eq!(report.clients[1].runs, [(seconds(100), seconds(150))]);
        assert_eq!(report.clients[2].runs[0], (seconds(0), seconds(100)));
        Ok(())
    }

    #[test]
    fn clients_that_alternate_fill_the_gpu_between_them() -> Result<(), SimError> {
        // 8 clients of 87.5 % CPU on one GPU: it can be busy all the time.
        let config = Config::new(vec![GpuConfig { memory: 1 }], Policy::Simple);
        let rounds = phases(seconds(7), seconds(1), 100, Spread::Constant);
        let client = SimClient { release: Release::WhenWanted, ..SimClient::new(rounds) };
        let client = SimClient { binding: Binding::AtArrival, ..client };
        let scenario = Scenario { config, switch: Duration::ZERO, clients: vec![client; 8] };
        let report = run(&scenario)?;
        assert_eq!(report.gpus[0].busy, seconds(800));
        assert_eq!(report.makespan, seconds(807)); // the first CPU phase of all
        Ok(())
    }

    #[test]
    fn a_recalled_client_gets_the_rest_later() -> Result<(), SimError> {
        let mut config = Config::new(vec![GpuConfig { memory: 1 }], Policy::Simple);
        config.quantum = seconds(10);
        let phase = |gpu| vec![Phase { cpu: Duration::ZERO, gpu: seconds(gpu) }];
        let clients = vec![SimClient::new(phase(25)), SimClient::new(phase(5))];
        let report = run(&Scenario { config, switch: Duration::ZERO, clients })?;
        let expected = [(seconds(0), seconds(10)), (seconds(15), seconds(30))];
        assert_eq!(report.clients[0].runs, expected);
        assert_eq!(report.recalls, 1);
        Ok(())
    }

    #[test]
    fn refused_clients_are_reported() -> Result<(), SimError> {
        let mut scenario = b6(Backfill::Off);
        scenario.clients[1].gpus = 3;
        let report = run(&scenario)?;
        let refusal = Refusal::TooManyGpus { wanted: 3, eligible: 2 };
        assert_eq!(report.clients[1].refused, Some(refusal));
        assert_eq!(report.makespan, seconds(150));
        Ok(())
    }

    #[test]
    fn a_scenario_without_gpus_is_refused() {
        let mut scenario = b6(Backfill::Off);
        scenario.config.gpus.clear();
        assert_eq!(run(&scenario), Err(SimError::Config(ConfigError::NoGpus)));
    }

    #[test]
    fn exponential_phases_have_their_mean() {
        let drawn = phases(seconds(4), seconds(1), 20_000, Spread::Exponential(1));
        let mean = |sum: Duration| sum.as_secs_f64() / drawn.len() as f64;
        assert!((mean(drawn.iter().map(|phase| phase.cpu).sum()) - 4.0).abs() < 0.1);
        assert!((mean(drawn.iter().map(|phase| phase.gpu).sum()) - 1.0).abs() < 0.025);
    }
}
