//! A scenario of the simulation, played by real programs under the real assigner and interposer: the same file, measured and
//! simulated side by side.
//!
//! Owns: the runs and what is compared. Does not own: what becomes of the clients ([`plan`]), what they run on (`stage`), the
//! simulation ([`acb_sim`]), the table ([`table`]).

pub mod plan;
mod stage;
pub mod switching;
pub mod table;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use acb_sim::{Report, Watch};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use self::plan::Plan;
use self::stage::Stage;
use super::analysis::{Window, steady_state};
use super::clock;
use super::outside;
use super::paging::crowd::{self, Record};
use super::record::Round;
use super::system::System;
use crate::lab::Prefix;

/// Rounds of a client that has the GPU alone, without the interposer.
const ALONE: u64 = 3;

/// How often the assigner is asked what switching took.
const BETWEEN: Duration = Duration::from_millis(500);

/// What the programs run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// Software GPUs with the scenario's memory and links.
    Software,
    /// The GPUs of this machine, with as much of their memory.
    Real(System),
}

/// A group of clients: measured and simulated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its clients.
    pub clients: usize,
    /// As the programs ran.
    pub measured: Figures,
    /// As simulated.
    pub simulated: Figures,
}

/// What is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// GPU phases done in an hour.
    pub per_hour: f64,
    /// From wanting a GPU to the end of the phase: median, seconds.
    pub latency_p50_s: f64,
    /// 99th percentile, seconds.
    pub latency_p99_s: f64,
}

/// A scenario that was played.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Played {
    /// The scenario's title.
    pub title: String,
    /// Its groups.
    pub groups: Vec<Group>,
    /// Share of the bound, both of the same run: measured.
    pub share_of_bound: f64,
    /// The same, simulated.
    pub simulated_share_of_bound: f64,
    /// Measured share of the bound of the lengths that the scenario says: without spread never more than 1, but for the phases that
    /// the window cuts.
    pub share_of_stated_bound: f64,
    /// Seconds in which holders waited for their memory, in the steady state.
    pub switch_s: f64,
    /// The share of the GPUs' time that this is.
    pub switching: f64,
    /// The same, simulated.
    pub simulated_switching: f64,
    /// Measured throughput against as many clients as GPUs, each alone.
    pub times_exclusive: f64,
    /// The same, simulated.
    pub simulated_times_exclusive: Option<f64>,
    /// Bytes that programs checked.
    pub checked: u64,
    /// Bytes of them that were wrong.
    pub wrong: u64,
}

/// Plays a scenario.
///
/// # Errors
/// A program fails, or an invariant of the simulation is violated. Wrong data is told, not an error.
pub fn play(prefix: &Prefix, plan: &Plan, on: On) -> Result<Played> {
    let Stage { outside, plan, own, .. } = &Stage::start(prefix, plan, on)?;
    let scenario = &plan.scenario;
    let outcome = acb_sim::run(scenario, Watch { check: true, ..Watch::default() })?;
    let report = Report::of(scenario, &outcome);
    if let Some(violation) = report.violations.first() {
        bail!("an invariant is violated {violation}");
    }
    let mut alone = BTreeMap::new();
    for (index, client) in scenario.clients.iter().enumerate() {
        if let std::collections::btree_map::Entry::Vacant(entry) = alone.entry(client.group) {
            let mut command = outside.plain(prefix.test_program("pages"));
            let visible = outside.status()?.context("the assigner does not answer")?.gpus;
            let visible = visible.iter().take(client.gpus as usize);
            let visible: Vec<&str> = visible.map(|gpu| gpu.uuid.as_str()).collect();
            command.args(plan.pages(index, Some(ALONE)));
            command.env("CUDA_VISIBLE_DEVICES", visible.join(","));
            let record = crowd::run_patiently(vec![command], plan.silence());
            let record = record.context("one client alone, without the interposer")?;
            entry.insert(means(&record.rounds));
        }
    }
    let commands = (0..scenario.clients.len()).map(|index| {
        let mut command: Command = outside.client(prefix.test_program("pages"));
        // Data of its own: what is another's must be wrong.
        let seed = (index as u64 * 1000 + scenario.seed).to_string();
        command.args(plan.pages(index, None)).args(["--seed", &seed]);
        command.envs(plan.environment(index, *own));
        // As many as it sees.
        command.env("CUDA_VISIBLE_DEVICES", outside::place_holders(scenario.clients[index].gpus));
        command
    });
    let (record, readings) =
        readings_during(outside, || crowd::run_patiently(commands.collect(), plan.silence()))?;
    let record = record.with_context(|| outside.log())?;
    let played = compare(plan, &report, &record, &alone)?;
    // Of a run that is too short for that all of it counts.
    let whole = Window { from: 0, to: u64::MAX };
    let (switch_s, switching) = switching(&readings, steady_state(&record.rounds)?)
        .or_else(|| switching(&readings, whole))
        .context("the assigner has hardly answered while the programs ran")?;
    Ok(Played { switch_s, switching, ..played })
}

/// What the assigner has said of the time that switching took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// When, on the clock of the programs' records.
    at_ns: u64,
    /// On all GPUs, since the assigner's start.
    switch_ns: u64,
    gpus: u64,
}

/// Does something while the assigner is asked again and again.
fn readings_during<T>(
    outside: &outside::Outside,
    work: impl FnOnce() -> T,
) -> Result<(T, Vec<Reading>)> {
    let (end, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let reading = scope.spawn(move || -> Result<Vec<Reading>> {
            let mut readings = Vec::new();
            loop {
                let over = ended.recv_timeout(BETWEEN) != Err(RecvTimeoutError::Timeout);
                let at_ns = clock::monotonic_ns();
                if let Some(status) = outside.status()? {
                    let switch_ns = status.gpus.iter().map(|gpu| gpu.switch_ns).sum();
                    readings.push(Reading { at_ns, switch_ns, gpus: status.gpus.len() as u64 });
                }
                if over {
                    return Ok(readings);
                }
            }
        });
        let done = work();
        drop(end);
        let readings = reading.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        Ok((done, readings?))
    })
}

/// Seconds of switching, and their share of the GPUs' time, in the steady state alone: before it programs come one after the
/// other and fill their memory, and after it those that are done compare theirs, in leases that are as short as that takes.
fn switching(readings: &[Reading], window: Window) -> Option<(f64, f64)> {
    let mut inside = readings.iter().filter(|r| (window.from..=window.to).contains(&r.at_ns));
    let first = inside.next()?;
    let last = inside.next_back()?;
    let switch_s = last.switch_ns.saturating_sub(first.switch_ns) as f64 / 1e9;
    let length_s = (last.at_ns - first.at_ns) as f64 / 1e9 * first.gpus.max(1) as f64;
    (length_s > 0.0).then(|| (switch_s, switch_s / length_s))
}

/// Mean CPU phase and mean time from wanting the GPU to the end of the GPU phase, seconds.
fn means(rounds: &[Round]) -> (f64, f64) {
    let mean = |length: fn(&Round) -> u64| {
        let sum: u64 = rounds.iter().map(length).sum();
        sum as f64 / rounds.len().max(1) as f64 / 1e9
    };
    (mean(|r| r.gpu_wanted_ns - r.cpu_start_ns), mean(|r| r.gpu_done_ns - r.gpu_wanted_ns))
}

fn compare(
    plan: &Plan,
    report: &Report,
    record: &Record,
    alone: &BTreeMap<usize, (f64, f64)>,
) -> Result<Played> {
    let scenario = &plan.scenario;
    let window = steady_state(&record.rounds)?;
    let names: BTreeMap<&str, usize> =
        scenario.clients.iter().map(|client| (client.name.as_str(), client.group)).collect();
    let counted =
        |round: &&Round| window.from < round.gpu_done_ns && round.gpu_done_ns <= window.to;
    let of_group = |group: usize| -> Vec<&Round> {
        let own = |round: &&Round| names.get(round.name.as_str()) == Some(&group);
        record.rounds.iter().filter(counted).filter(own).collect()
    };
    let groups = report.groups.iter().enumerate().map(|(at, simulated)| Group {
        name: simulated.name.clone(),
        clients: simulated.clients,
        measured: figures(&of_group(at), window),
        simulated: Figures {
            per_hour: simulated.per_hour,
            latency_p50_s: simulated.latency_p50_s,
            latency_p99_s: simulated.latency_p99_s,
        },
    });
    let phases: Vec<Option<(f64, f64)>> =
        scenario.clients.iter().map(|client| alone.get(&client.group).copied()).collect();
    let length_s = window.length() as f64 / 1e9;
    let share = |phases: &[Option<(f64, f64)>]| {
        let busy = scenario.clients.iter().zip(phases).map(|(client, phases)| {
            let own = |round: &&Round| round.name == client.name;
            let done = record.rounds.iter().filter(counted).filter(own).count();
            done as f64 * f64::from(client.gpus) * phases.map_or(0.0, |(_, gpu_s)| gpu_s)
        });
        busy.sum::<f64>() / length_s / acb_sim::report::bound_with(scenario, phases)
    };
    let gpus = plan.node().config.gpus.len() as f64;
    let per_round_s: f64 = phases.iter().flatten().map(|(cpu_s, gpu_s)| cpu_s + gpu_s).sum();
    let alone_per_s = gpus * phases.len() as f64 / per_round_s;
    let rounds = record.rounds.iter().filter(counted).count() as f64;
    Ok(Played {
        title: scenario.title.clone(),
        groups: groups.collect(),
        share_of_bound: share(&phases),
        simulated_share_of_bound: report.share_of_bound,
        share_of_stated_bound: share(&plan.phases()),
        switch_s: 0.0,
        switching: 0.0,
        simulated_switching: report.switching,
        times_exclusive: rounds / length_s / alone_per_s,
        simulated_times_exclusive: report.times_exclusive,
        checked: record.checked,
        wrong: record.wrong,
    })
}

fn figures(rounds: &[&Round], window: Window) -> Figures {
    let mut latencies: Vec<f64> =
        rounds.iter().map(|round| (round.gpu_done_ns - round.gpu_wanted_ns) as f64 / 1e9).collect();
    latencies.sort_by(f64::total_cmp);
    Figures {
        per_hour: rounds.len() as f64 / (window.length() as f64 / 1e9) * 3600.0,
        latency_p50_s: acb_sim::report::percentile(&latencies, 0.5),
        latency_p99_s: acb_sim::report::percentile(&latencies, 0.99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switching_before_and_after_the_steady_state_does_not_count() {
        let reading = |second: u64, switch_ms: u64| Reading {
            at_ns: second * 1_000_000_000,
            switch_ns: switch_ms * 1_000_000,
            gpus: 2,
        };
        // All come, 0.1 s of each second, all go.
        let readings = [
            reading(1, 900),
            reading(2, 1800),
            reading(4, 2000),
            reading(6, 2200),
            reading(7, 3100),
        ];
        let window = Window { from: 1_500_000_000, to: 6_500_000_000 };
        let (seconds, share) = switching(&readings, window).unwrap();
        assert!((seconds - 0.4).abs() < 1e-9 && (share - 0.05).abs() < 1e-9, "{seconds} {share}");
        assert_eq!(switching(&readings[..2], window), None);
    }
}
