//! What came of a run: the figures.
//!
//! Owns: the steady state and what is counted in it. Does not own: how figures look.

use std::collections::BTreeMap;

use acb_core::{Policy, Time};
use serde::Serialize;

use crate::bound::{Source, exponential_busy, exposed_s, most_busy};
use crate::scenario::{Scenario, Work};
use crate::timeline::{GpuLane, Lane, Run, State};
use crate::world::{Doing, Done, Lag, Outcome};

/// The figures of a run. Times are in seconds where the name says nothing else.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was simulated.
    pub title: String,
    /// With which seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// GPUs of all nodes.
    pub gpus: usize,
    /// Clients.
    pub clients: usize,
    /// When the run ended.
    pub end_s: f64,
    /// When all clients were done, if they were.
    pub makespan_s: Option<f64>,
    /// The stretch that is counted.
    pub counted_from_s: f64,
    /// Its end.
    pub counted_to_s: f64,
    /// Why this stretch.
    pub counted: Counted,
    /// GPU phases done in an hour.
    pub per_hour: f64,
    /// How many times as many as if each GPU served one client; where all clients alternate phases on one GPU.
    pub times_exclusive: Option<f64>,
    /// Share of the GPUs' time in which they computed.
    pub busy: f64,
    /// Share of it in which a client held them while its memory was moved.
    pub switching: f64,
    /// The same of each GPU, node by node.
    pub switching_of: Vec<f64>,
    /// What the scenario allows of it, for clients that always want their GPU (`switch_share`).
    pub switch_share: f64,
    /// What a GPU loses at least between two phases of different clients, seconds: the most of all clients.
    pub switch_s: f64,
    /// Most of it that was possible: min(N/(c+g), G/(g+s)) as a share of the GPUs' time; where a whole run is counted, its work
    /// over the time that it takes at least.
    pub bound: f64,
    /// What was reached of that.
    pub share_of_bound: f64,
    /// What exponential phases allow, where all are exponential: the finite-source queue.
    pub exact: Option<f64>,
    /// What was reached of that.
    pub share_of_exact: Option<f64>,
    /// Jain's index of the clients' GPU time, the worst of the groups: 1 is even, 1/N is one for all.
    pub jain: f64,
    /// By how much GPU time tenants that always want the same GPU were apart at most, by weight; where there are such.
    pub fairness_lag: Option<FairnessLag>,
    /// The same of the clients of one tenant.
    pub fairness_lag_within: Option<FairnessLag>,
    /// Bytes moved to GPUs.
    pub bytes_in: u64,
    /// Bytes moved from GPUs.
    pub bytes_out: u64,
    /// Times that a GPU's next holder was another one.
    pub switches: u64,
    /// Leases granted.
    pub grants: u64,
    /// Leases asked back.
    pub recalls: u64,
    /// GPU phases interrupted between two kernels.
    pub preemptions: u64,
    /// Starts that had been promised.
    pub promises: u64,
    /// By how much the latest of them, its memory included, came after its promise, milliseconds.
    pub promise_late_ms: f64,
    /// …beyond the longest kernel and the swap that it may wait for.
    pub promise_beyond_ms: f64,
    /// Requests that their tenant's guarantee covered.
    pub reclaims: u64,
    /// By how much the slowest of them could compute later than after the longest kernel and the swap, milliseconds.
    pub reclaim_beyond_ms: f64,
    /// Clients that ended because their memory was denied.
    pub out_of_memory: u64,
    /// Clients killed: by the scenario alone.
    pub kills: u64,
    /// Clients refused.
    pub refused: u64,
    /// Events that the schedulers handled.
    pub events: u64,
    /// The groups of clients.
    pub groups: Vec<Group>,
    /// Invariants violated: when and which.
    pub violations: Vec<String>,
}

/// How far those were apart who should get the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FairnessLag {
    /// At most, seconds of GPU time.
    pub most_s: f64,
    /// What is allowed.
    pub bound_s: f64,
}

impl FairnessLag {
    fn of(lag: Lag) -> FairnessLag {
        FairnessLag { most_s: lag.most.as_secs_f64(), bound_s: lag.bound.as_secs_f64() }
    }
}

/// Why a stretch is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counted {
    /// The scenario says so.
    AsSaid,
    /// From the moment when every client had done a GPU phase to the end, or until the first client had done its last.
    SteadyState,
    /// All of it: no client does more than one GPU phase while all are there.
    WholeRun,
}

/// The figures of a group of clients.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its clients.
    pub clients: usize,
    /// GPU phases done in the counted stretch.
    pub phases: usize,
    /// GPU phases done in an hour.
    pub per_hour: f64,
    /// Share of all GPUs' time.
    pub busy: f64,
    /// Wait of a GPU phase for GPUs, interruptions included: median.
    pub wait_p50_s: f64,
    /// 99th percentile.
    pub wait_p99_s: f64,
    /// From wanting a GPU to the end of the phase: median.
    pub latency_p50_s: f64,
    /// 99th percentile.
    pub latency_p99_s: f64,
    /// Jain's index of its clients' GPU time.
    pub jain: f64,
}

impl Report {
    /// Counts what came of a scenario.
    #[must_use]
    pub fn of(scenario: &Scenario, outcome: &Outcome) -> Report {
        let (window, counted) = window(scenario, outcome);
        let length_s = (window.1 - window.0) as f64 / 1e9;
        let gpus: usize = scenario.nodes.iter().map(|node| node.config.gpus.len()).sum();
        let within =
            |done: &&Done| (window.0 < done.done.0 || window.0 == 0) && done.done.0 <= window.1;
        let done: Vec<&Done> = outcome.done.iter().filter(within).collect();
        let mut gpu_s = vec![0.0; scenario.clients.len()];
        for (client, from, to) in &outcome.busy {
            let overlap = to.0.min(window.1).saturating_sub(from.0.max(window.0));
            gpu_s[*client] += f64::from(scenario.clients[*client].gpus) * overlap as f64 / 1e9;
        }
        let switching_of: Vec<f64> =
            switching_s(scenario, outcome, window).iter().map(|s| s / length_s).collect();
        let groups = groups(scenario, &done, &gpu_s, length_s, gpus);
        let sources = sources(scenario, outcome);
        let busy = gpu_s.iter().sum::<f64>() / length_s / gpus as f64;
        let all_finished = outcome.finished.iter().all(Option::is_some);
        let bound = match counted {
            Counted::WholeRun if all_finished => {
                // As busy as in the shortest run that is possible.
                (busy * length_s / shortest_s(scenario, outcome)).min(1.0)
            }
            _ => bound(scenario, &sources) / gpus as f64,
        };
        let exact = exact(scenario, &sources).map(|exact| exact / gpus as f64);
        let per_second = done.len() as f64 / length_s;
        let last = outcome.finished.iter().flatten().max();
        Report {
            title: scenario.title.clone(),
            seed: scenario.seed,
            nodes: scenario.nodes.len(),
            gpus,
            clients: scenario.clients.len(),
            end_s: outcome.end.0 as f64 / 1e9,
            makespan_s: last.filter(|_| all_finished).map(|last| last.0 as f64 / 1e9),
            counted_from_s: window.0 as f64 / 1e9,
            counted_to_s: window.1 as f64 / 1e9,
            counted,
            per_hour: per_second * 3600.0,
            times_exclusive: exclusive(scenario, &sources).map(|alone| per_second / alone),
            busy,
            switching: switching_of.iter().sum::<f64>() / gpus as f64,
            switching_of,
            switch_share: scenario
                .nodes
                .iter()
                .map(|node| node.config.switch_share)
                .fold(0.0, f64::max),
            switch_s: sources.iter().flatten().map(|source| source.switch_s).fold(0.0, f64::max),
            bound,
            share_of_bound: busy / bound,
            exact,
            share_of_exact: exact.map(|exact| busy / exact),
            jain: groups.iter().map(|group| group.jain).fold(1.0, f64::min),
            fairness_lag: outcome.lag_between.map(FairnessLag::of),
            fairness_lag_within: outcome.lag_within.map(FairnessLag::of),
            bytes_in: outcome.moved.0,
            bytes_out: outcome.moved.1,
            switches: outcome.switches,
            grants: outcome.grants,
            recalls: outcome.recalls,
            preemptions: outcome.preemptions,
            promises: outcome.promises,
            promise_late_ms: outcome.promise_late.as_secs_f64() * 1e3,
            promise_beyond_ms: outcome.promise_beyond.as_secs_f64() * 1e3,
            reclaims: outcome.reclaims,
            reclaim_beyond_ms: outcome.reclaim_beyond.as_secs_f64() * 1e3,
            out_of_memory: outcome.out_of_memory,
            kills: outcome.kills,
            refused: outcome.refused.iter().flatten().count() as u64,
            events: outcome.events,
            groups,
            violations: outcome
                .violations
                .iter()
                .map(|violation| {
                    format!("at {:.6} s: {}", violation.at.0 as f64 / 1e9, violation.what)
                })
                .collect(),
        }
    }
}

/// The stretch that is counted, in nanoseconds.
fn window(scenario: &Scenario, outcome: &Outcome) -> ((u64, u64), Counted) {
    let end = outcome.end.0.max(1);
    if let Some((from, to)) = scenario.steady {
        let moment = |span| Time(0).after(span).0.min(end);
        return ((moment(from).min(end - 1), moment(to)), Counted::AsSaid);
    }
    let mut ends: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for done in &outcome.done {
        let (first, last) = ends.entry(done.client).or_insert((done.done.0, done.done.0));
        *first = (*first).min(done.done.0);
        *last = (*last).max(done.done.0);
    }
    let from = ends.values().map(|(first, _)| *first).max();
    let to = match scenario.stop {
        Some(_) => Some(end),
        None => ends.values().map(|(_, last)| *last).min(),
    };
    match (from, to) {
        (Some(from), Some(to)) if from < to => ((from, to), Counted::SteadyState),
        _ => ((0, end), Counted::WholeRun),
    }
}

/// Of each GPU, node by node: seconds of the stretch in which its holder could not use it yet.
fn switching_s(scenario: &Scenario, outcome: &Outcome, window: (u64, u64)) -> Vec<f64> {
    let mut all = Vec::new();
    let mut first = Vec::new();
    for node in &scenario.nodes {
        first.push(all.len());
        all.resize(all.len() + node.config.gpus.len(), 0.0);
    }
    for (client, gpus, from, to) in &outcome.switching {
        let overlap = to.0.min(window.1).saturating_sub(from.0.max(window.0));
        let first = first[scenario.clients[*client].node];
        gpus.iter().for_each(|gpu| all[first + gpu.0 as usize] += overlap as f64 / 1e9);
    }
    all
}

/// What a GPU loses at least before a phase of each client that follows another's, seconds.
fn switches_s(scenario: &Scenario) -> Vec<f64> {
    // The two smallest of each node: one of them is another client's.
    let mut least = vec![[None; 2]; scenario.nodes.len()];
    for (index, client) in scenario.clients.iter().enumerate() {
        let [a, b] = &mut least[client.node];
        let this = Some((client.memory, index));
        let smaller = |that: Option<(u64, usize)>| that.is_none_or(|that| this < Some(that));
        if smaller(*a) {
            *b = std::mem::replace(a, this);
        } else if smaller(*b) {
            *b = this;
        }
    }
    let of = |(index, client): (usize, &crate::scenario::Client)| {
        let node = &scenario.nodes[client.node];
        let other = least[client.node].iter().flatten().find(|(_, other)| *other != index);
        let capacity = node.config.gpus.iter().map(|gpu| gpu.memory).max().unwrap_or(0);
        other.filter(|_| !shares(node)).map_or(0.0, |(others, _)| {
            exposed_s(client.memory, *others, capacity, node.link.bytes_per_s)
                + node.switch.as_secs_f64()
        })
    };
    scenario.clients.iter().enumerate().map(of).collect()
}

/// What each client's phases were on average; `None` where it had none.
fn sources(scenario: &Scenario, outcome: &Outcome) -> Vec<Option<Source>> {
    let mut sums = vec![(0.0, 0.0, 0u64); scenario.clients.len()];
    for done in &outcome.done {
        let (cpu, gpu, count) = &mut sums[done.client];
        *cpu += done.cpu.as_secs_f64();
        *gpu += done.gpu.as_secs_f64();
        *count += 1;
    }
    type Sums = (f64, f64, u64);
    let source =
        |((client, (cpu, gpu, count)), switch_s): ((&crate::scenario::Client, Sums), f64)| {
            let (gpus, n) = (client.gpus, count as f64);
            match &client.work {
                _ if count == 0 => match &client.work {
                    // One that never ends a phase is one long phase.
                    Work::Rounds { cpu, gpu, .. } => Some(Source {
                        cpu_s: cpu.mean.as_secs_f64(),
                        gpu_s: gpu.mean.as_secs_f64(),
                        gpus,
                        switch_s,
                    }),
                    Work::Requests { .. } => None,
                },
                Work::Rounds { .. } => {
                    Some(Source { cpu_s: cpu / n, gpu_s: gpu / n, gpus, switch_s })
                }
                Work::Requests { every, .. } => {
                    let cpu_s = (every.mean.as_secs_f64() - gpu / n).max(0.0);
                    Some(Source { cpu_s, gpu_s: gpu / n, gpus, switch_s })
                }
            }
        };
    scenario.clients.iter().zip(sums).zip(switches_s(scenario)).map(source).collect()
}

/// Most GPUs of a scenario that can be busy on average, with phases that were measured elsewhere: of each client its mean CPU and
/// GPU phase, seconds.
#[must_use]
pub fn bound_with(scenario: &Scenario, phases: &[Option<(f64, f64)>]) -> f64 {
    let clients = scenario.clients.iter().zip(switches_s(scenario)).zip(phases);
    let sources: Vec<Option<Source>> = clients
        .map(|((client, switch_s), phases)| {
            phases.map(|(cpu_s, gpu_s)| Source { cpu_s, gpu_s, gpus: client.gpus, switch_s })
        })
        .collect();
    bound(scenario, &sources)
}

/// Most GPUs busy on average: of each node those that its clients can use.
fn bound(scenario: &Scenario, sources: &[Option<Source>]) -> f64 {
    per_node(scenario, sources)
        .zip(holders(scenario))
        .map(|((gpus, sources), holders)| most_busy(sources.into_iter(), gpus * holders))
        .sum()
}

/// Of each node: how many can hold a GPU together. Where GPUs are shared, as many as fit by their limits, the smallest first.
fn holders(scenario: &Scenario) -> Vec<u32> {
    let mut sizes = vec![Vec::new(); scenario.nodes.len()];
    for client in &scenario.clients {
        sizes[client.node].push(client.memory_limit.unwrap_or(client.memory));
    }
    let of = |(node, sizes): (&crate::scenario::Node, &mut Vec<u64>)| {
        if !shares(node) {
            return 1;
        }
        sizes.sort_unstable();
        let most = node.config.gpus.iter().map(|gpu| gpu.memory).max().unwrap_or(0);
        let fit = sizes.iter().scan(0u64, |sum, size| {
            *sum = sum.saturating_add(*size);
            Some(*sum)
        });
        fit.take_while(|sum| *sum <= most).count().max(1) as u32
    };
    scenario.nodes.iter().zip(&mut sizes).map(of).collect()
}

/// Whether some clients of a node hold GPUs together.
fn shares(node: &crate::scenario::Node) -> bool {
    let config = &node.config;
    let of_queues = config.queues.iter().filter_map(|queue| queue.policy);
    of_queues.chain([config.policy]).any(|policy| policy == Policy::GpuSharing)
}

fn per_node(
    scenario: &Scenario,
    sources: &[Option<Source>],
) -> impl Iterator<Item = (u32, Vec<Source>)> {
    let mut nodes: Vec<(u32, Vec<Source>)> =
        scenario.nodes.iter().map(|node| (node.config.gpus.len() as u32, Vec::new())).collect();
    for (client, source) in scenario.clients.iter().zip(sources) {
        nodes[client.node].1.extend(source);
    }
    nodes.into_iter()
}

/// No run of the same work is shorter: on no node can its GPUs, nor its longest client, do theirs faster.
fn shortest_s(scenario: &Scenario, outcome: &Outcome) -> f64 {
    let mut work = vec![0.0; scenario.nodes.len()];
    let mut path: Vec<f64> =
        scenario.clients.iter().map(|client| client.arrival.as_secs_f64()).collect();
    for done in &outcome.done {
        let client = &scenario.clients[done.client];
        work[client.node] += f64::from(client.gpus) * done.gpu.as_secs_f64();
        path[done.client] += (done.cpu + done.gpu).as_secs_f64();
    }
    let gpus = scenario.nodes.iter().map(|node| node.config.gpus.len() as f64);
    let of_nodes = work.iter().zip(gpus).map(|(work, gpus)| work / gpus);
    of_nodes.chain(path).fold(f64::MIN_POSITIVE, f64::max)
}

/// GPUs busy on average with exponential phases, where every node's clients are alike and nothing is lost between them.
fn exact(scenario: &Scenario, sources: &[Option<Source>]) -> Option<f64> {
    let is_exponential = |client: &crate::scenario::Client| match &client.work {
        Work::Rounds { cpu, gpu, .. } => {
            let exponential = |lengths: &crate::random::Lengths| {
                lengths.spread == 1.0 && lengths.family == crate::random::Family::Gamma
            };
            client.gpus == 1 && exponential(cpu) && exponential(gpu) && !cpu.mean.is_zero()
        }
        Work::Requests { .. } => false,
    };
    let alike = scenario.groups.len() == 1 && scenario.clients.iter().all(is_exponential);
    let free = sources.iter().flatten().all(|source| source.switch_s == 0.0);
    (alike && free).then(|| {
        per_node(scenario, sources)
            .map(|(gpus, sources)| match sources.len() {
                0 => 0.0,
                count => {
                    let n = count as f64;
                    let cpu_s = sources.iter().map(|source| source.cpu_s).sum::<f64>() / n;
                    let gpu_s = sources.iter().map(|source| source.gpu_s).sum::<f64>() / n;
                    exponential_busy(count as u32, cpu_s, gpu_s, gpus)
                }
            })
            .sum()
    })
}

/// GPU phases a second if each GPU served one client.
fn exclusive(scenario: &Scenario, sources: &[Option<Source>]) -> Option<f64> {
    let known: Option<Vec<Source>> = sources.iter().copied().collect();
    let alternate = |client: &crate::scenario::Client| {
        matches!(client.work, Work::Rounds { .. }) && client.gpus == 1
    };
    let sources = known.filter(|_| scenario.clients.iter().all(alternate))?;
    let round_s = sources.iter().map(|source| source.cpu_s + source.gpu_s).sum::<f64>();
    let gpus: usize = scenario.nodes.iter().map(|node| node.config.gpus.len()).sum();
    Some(gpus as f64 * sources.len() as f64 / round_s)
}

fn groups(
    scenario: &Scenario,
    done: &[&Done],
    gpu_s: &[f64],
    length_s: f64,
    gpus: usize,
) -> Vec<Group> {
    #[derive(Clone, Default)]
    struct Sums {
        waits: Vec<f64>,
        latencies: Vec<f64>,
        time: Vec<f64>,
    }
    let mut all = vec![Sums::default(); scenario.groups.len()];
    for done in done {
        let sums = &mut all[scenario.clients[done.client].group];
        let latency = done.done.since(done.wanted);
        sums.latencies.push(latency.as_secs_f64());
        sums.waits.push(latency.saturating_sub(done.gpu).as_secs_f64());
    }
    for (client, gpu_s) in scenario.clients.iter().zip(gpu_s) {
        all[client.group].time.push(*gpu_s);
    }
    let group = |(name, mut sums): (&String, Sums)| {
        sums.waits.sort_by(f64::total_cmp);
        sums.latencies.sort_by(f64::total_cmp);
        Group {
            name: name.clone(),
            clients: sums.time.len(),
            phases: sums.waits.len(),
            per_hour: sums.waits.len() as f64 / length_s * 3600.0,
            busy: sums.time.iter().sum::<f64>() / length_s / gpus as f64,
            wait_p50_s: percentile(&sums.waits, 0.5),
            wait_p99_s: percentile(&sums.waits, 0.99),
            latency_p50_s: percentile(&sums.latencies, 0.5),
            latency_p99_s: percentile(&sums.latencies, 0.99),
            jain: jain(&sums.time),
        }
    };
    scenario.groups.iter().zip(all).map(group).collect()
}

/// The smallest value that this share of a sorted sample does not exceed; 0 of an empty one.
#[must_use]
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    match sorted.len() {
        0 => 0.0,
        count => sorted[rank.clamp(1, count) - 1],
    }
}

/// Jain's index of fairness: (Σx)² / (n Σx²); 1 where nobody got anything.
fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    if squares == 0.0 { 1.0 } else { sum * sum / (values.len() as f64 * squares) }
}

/// The run as a picture: needs [`Watch::spans`](crate::Watch::spans).
#[must_use]
pub fn picture(scenario: &Scenario, outcome: &Outcome, report: &Report) -> Run {
    let mut lanes: Vec<Lane> = scenario
        .clients
        .iter()
        .map(|client| Lane { name: client.name.clone(), phases: Vec::new() })
        .collect();
    for span in &outcome.spans {
        let state = match span.doing {
            Doing::Cpu => State::Cpu,
            Doing::Waiting | Doing::Moving => State::Waiting,
            Doing::Gpu => State::Gpu,
        };
        lanes[span.client].phases.push((span.from.0, span.to.0, state));
    }
    let one_node = scenario.nodes.len() == 1;
    let (mut gpus, mut first) = (Vec::new(), Vec::new());
    for node in &scenario.nodes {
        first.push(gpus.len());
        for gpu in 0..node.config.gpus.len() {
            let name = if one_node { format!("GPU {gpu}") } else { format!("{}:{gpu}", node.name) };
            gpus.push(GpuLane { name, holders: Vec::new() });
        }
    }
    for (client, on, from, to) in &outcome.held {
        let first = first[scenario.clients[*client].node];
        for gpu in on {
            gpus[first + gpu.0 as usize].holders.push((from.0, to.0, *client));
        }
    }
    Run {
        title: report.title.clone(),
        clients: lanes,
        gpus,
        counted: (report.counted != Counted::WholeRun)
            .then_some(((report.counted_from_s * 1e9) as u64, (report.counted_to_s * 1e9) as u64)),
    }
}
