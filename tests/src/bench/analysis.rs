//! What a run of phases achieved, and what it could have achieved at best.
//!
//! Owns: the steady state, throughput, busy share, and the bound of scheduling: N clients that
//! alternate c seconds of CPU and g seconds of GPU on G GPUs complete at most
//! min(N / (c + g), G / g) rounds a second. Does not own: running or drawing.

use std::collections::BTreeMap;

use super::record::Round;

/// Nanoseconds of an hour.
const HOUR_NS: f64 = 3.6e12;

/// Why nothing can be said about a run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnalysisError {
    /// No line of any client.
    #[error("no client has completed a round")]
    Empty,
    /// The first client ended before the last one had its first GPU phase.
    #[error("there is no steady state in so few rounds; run more")]
    NoSteadyState,
    /// Wrong data.
    #[error("{name} found wrong data in round {round}")]
    WrongData {
        /// The client.
        name: String,
        /// The round.
        round: u64,
    },
}

/// A stretch of time, CLOCK_MONOTONIC in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its begin.
    pub from: u64,
    /// Its end.
    pub to: u64,
}

impl Window {
    /// How long it is.
    pub fn length(self) -> u64 {
        self.to - self.from
    }

    /// How much of `from..to` lies in it.
    fn overlap(self, from: u64, to: u64) -> u64 {
        to.min(self.to).saturating_sub(from.max(self.from))
    }
}

/// The steady state of a run: from the moment when every client had completed a GPU phase to the
/// moment when the first client completed its last one. Both are ends of GPU phases, so that
/// counting the phases that end in between counts whole phases.
pub fn steady_state(rounds: &[Round]) -> Result<Window, AnalysisError> {
    let mut ends: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for round in rounds {
        let done = round.gpu_done_ns;
        let (first, last) = ends.entry(&round.name).or_insert((done, done));
        *first = (*first).min(done);
        *last = (*last).max(done);
    }
    let from = ends.values().map(|(first, _)| *first).max().ok_or(AnalysisError::Empty)?;
    let to = ends.values().map(|(_, last)| *last).min().ok_or(AnalysisError::Empty)?;
    if to > from { Ok(Window { from, to }) } else { Err(AnalysisError::NoSteadyState) }
}

/// What a run achieved in its steady state.
#[derive(Clone, Debug, PartialEq)]
pub struct Achieved {
    /// The steady state.
    pub window: Window,
    /// Clients.
    pub clients: usize,
    /// Rounds completed in the steady state.
    pub rounds: usize,
    /// Rounds of all clients in an hour.
    pub per_hour: f64,
    /// Share of the time in which some client was in a GPU phase; one GPU.
    pub gpu_busy: f64,
    /// Mean CPU phase, seconds.
    pub cpu_s: f64,
    /// Mean time from wanting the GPU to the first operation completed, seconds.
    pub wait_s: f64,
    /// Mean time from wanting the GPU to the end of the GPU phase, seconds.
    pub gpu_and_wait_s: f64,
}

impl Achieved {
    /// Looks at the record of a run on one GPU.
    pub fn of(rounds: &[Round]) -> Result<Self, AnalysisError> {
        if let Some(wrong) = rounds.iter().find(|round| !round.ok) {
            return Err(AnalysisError::WrongData { name: wrong.name.clone(), round: wrong.round });
        }
        let window = steady_state(rounds)?;
        let counted: Vec<&Round> = rounds
            .iter()
            .filter(|round| (window.from + 1..=window.to).contains(&round.gpu_done_ns))
            .collect();
        let mean = |length: fn(&Round) -> u64| {
            let total: u64 = counted.iter().map(|round| length(round)).sum();
            total as f64 / counted.len() as f64 / 1e9
        };
        let names: std::collections::BTreeSet<&str> =
            rounds.iter().map(|round| round.name.as_str()).collect();
        Ok(Self {
            window,
            clients: names.len(),
            rounds: counted.len(),
            per_hour: counted.len() as f64 / window.length() as f64 * HOUR_NS,
            gpu_busy: busy_ns(rounds, window) as f64 / window.length() as f64,
            cpu_s: mean(|round| round.gpu_wanted_ns - round.cpu_start_ns),
            wait_s: mean(|round| round.gpu_got_ns - round.gpu_wanted_ns),
            gpu_and_wait_s: mean(|round| round.gpu_done_ns - round.gpu_wanted_ns),
        })
    }
}

/// Time of the window in which at least one client was in a GPU phase.
fn busy_ns(rounds: &[Round], window: Window) -> u64 {
    let mut phases: Vec<(u64, u64)> =
        rounds.iter().map(|round| (round.gpu_got_ns, round.gpu_done_ns)).collect();
    phases.sort_unstable();
    let (mut busy, mut counted_to) = (0, 0);
    for (from, to) in phases {
        busy += window.overlap(from.max(counted_to), to);
        counted_to = counted_to.max(to);
    }
    busy
}

/// Most rounds in an hour that N clients with phases of c and g seconds can complete on G GPUs.
pub fn bound_per_hour(clients: usize, cpu_s: f64, gpu_s: f64, gpus: usize) -> f64 {
    let by_clients = clients as f64 / (cpu_s + gpu_s);
    let by_gpus = gpus as f64 / gpu_s;
    by_clients.min(by_gpus) * 3600.0
}

/// A run with the GPU shared, against one that had it alone. The phases' lengths, and so the bound,
/// are those that the exclusive run measured.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// One client with the GPU to itself.
    pub exclusive: Achieved,
    /// Several clients that share it.
    pub shared: Achieved,
    /// Most rounds per hour that the sharing clients could complete.
    pub bound_per_hour: f64,
}

impl Comparison {
    /// Compares the records of the two runs.
    pub fn of(exclusive: &[Round], shared: &[Round]) -> Result<Self, AnalysisError> {
        let exclusive = Achieved::of(exclusive)?;
        let shared = Achieved::of(shared)?;
        let bound_per_hour =
            bound_per_hour(shared.clients, exclusive.cpu_s, exclusive.gpu_and_wait_s, 1);
        Ok(Self { exclusive, shared, bound_per_hour })
    }

    /// Throughput, shared over exclusive.
    pub fn speedup(&self) -> f64 {
        self.shared.per_hour / self.exclusive.per_hour
    }

    /// Throughput, shared over bound.
    pub fn share_of_bound(&self) -> f64 {
        self.shared.per_hour / self.bound_per_hour
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Clients that take turns on a GPU without any loss, first come, first served.
    pub(in crate::bench) fn perfect(clients: usize, rounds: u64, cpu: u64, gpu: u64) -> Vec<Round> {
        const ORIGIN: u64 = 7_000_000_000;
        let mut free_at = 0;
        let mut wanted: Vec<(u64, usize, u64)> = (0..clients).map(|c| (cpu, c, 0)).collect();
        let mut record = vec![];
        while !wanted.is_empty() {
            let next = (0..wanted.len()).min_by_key(|i| wanted[*i]).expect("not empty");
            let (at, client, round) = wanted.swap_remove(next);
            let got = at.max(free_at);
            free_at = got + gpu;
            record.push(Round {
                name: format!("client-{client}"),
                pid: client as u32 + 1,
                round,
                cpu_start_ns: ORIGIN + at - cpu,
                gpu_wanted_ns: ORIGIN + at,
                gpu_got_ns: ORIGIN + got,
                gpu_done_ns: ORIGIN + free_at,
                ok: true,
            });
            if round + 1 < rounds {
                wanted.push((free_at + cpu, client, round + 1));
            }
        }
        record
    }

    #[test]
    fn turns_without_loss_reach_the_bound() {
        let (cpu, gpu) = (4_875_000_000, 1_125_000_000);
        let comparison =
            Comparison::of(&perfect(1, 4, cpu, gpu), &perfect(8, 10, cpu, gpu)).unwrap();
        assert!((comparison.exclusive.per_hour - 600.0).abs() < 1e-6);
        assert!((comparison.bound_per_hour - 3200.0).abs() < 1e-6);
        assert!((comparison.share_of_bound() - 1.0).abs() < 1e-9, "{comparison:?}");
        assert!((comparison.shared.gpu_busy - 1.0).abs() < 1e-9);
        assert!((comparison.exclusive.gpu_busy - 0.1875).abs() < 1e-9);
        assert_eq!(comparison.shared.rounds, 65);
    }

    #[test]
    fn few_clients_are_bounded_by_themselves() {
        assert_eq!(bound_per_hour(2, 9.0, 1.0, 1), 720.0);
        assert_eq!(bound_per_hour(8, 9.0, 3.0, 2), 2400.0);
        let comparison = Comparison::of(
            &perfect(1, 5, 9_000_000_000, 1_000_000_000),
            &perfect(2, 20, 9_000_000_000, 1_000_000_000),
        )
        .unwrap();
        assert!((comparison.share_of_bound() - 1.0).abs() < 0.03, "{comparison:?}");
    }

    #[test]
    fn overlapping_phases_count_once() {
        let mut rounds = perfect(2, 3, 10, 100);
        let window = Window { from: rounds[0].gpu_got_ns, to: rounds[5].gpu_done_ns };
        let busy = busy_ns(&rounds, window);
        assert_eq!(busy, 600);
        // A phase that was interrupted: it began while another was under way.
        rounds[3].gpu_got_ns -= 100;
        assert_eq!(busy_ns(&rounds, window), 600);
    }

    #[test]
    fn too_few_rounds_and_wrong_data_are_errors() {
        assert_eq!(Achieved::of(&[]), Err(AnalysisError::Empty));
        assert_eq!(Achieved::of(&perfect(2, 1, 5, 5)), Err(AnalysisError::NoSteadyState));
        let mut rounds = perfect(2, 4, 5, 5);
        rounds[3].ok = false;
        assert!(matches!(Achieved::of(&rounds), Err(AnalysisError::WrongData { .. })));
    }
}
