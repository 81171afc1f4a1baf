//! A scenario of the simulation, played by real programs under the real assigner and interposer: the same file, measured and
//! simulated side by side.
//!
//! Owns: the runs and what is compared. Does not own: what becomes of the clients ([`plan`]), the simulation ([`acb_sim`]),
//! the table ([`table`]).

pub mod plan;
pub mod table;

use std::collections::BTreeMap;
use std::process::Command;

use acb_sim::{Report, Watch};
use anyhow::{Context, Result, bail};
use serde::Serialize;

use self::plan::Plan;
use super::analysis::{Window, steady_state};
use super::outside::{self, Outside};
use super::paging::crowd::{self, Record};
use super::paging::gpu::OWN;
use super::record::Round;
use crate::lab::Prefix;

/// What a context takes on a software GPU.
const CONTEXT: u64 = 1 << 20;
/// Rounds of a client that has the GPU alone, without the interposer.
const ALONE: u64 = 3;

/// What the programs run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Software GPUs with the scenario's memory and links.
    Software,
    /// The GPUs of this machine.
    Real,
}

/// A group of clients: measured and simulated.
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// GPU phases done in an hour.
    pub per_hour: f64,
    /// From wanting a GPU to the end of the phase: median, seconds.
    pub latency_p50_s: f64,
    /// 99th percentile, seconds.
    pub latency_p99_s: f64,
}

/// A scenario that was played.
#[derive(Clone, Debug, Serialize)]
pub struct Played {
    /// The scenario's title.
    pub title: String,
    /// Its groups.
    pub groups: Vec<Group>,
    /// Share of the bound, both of the same run: measured.
    pub share_of_bound: f64,
    /// The same, simulated.
    pub simulated_share_of_bound: f64,
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
    let scenario = &plan.scenario;
    let outcome = acb_sim::run(scenario, Watch { check: true, ..Watch::default() })?;
    let report = Report::of(scenario, &outcome);
    if let Some(violation) = report.violations.first() {
        bail!("an invariant is violated {violation}");
    }
    let outside = start(prefix, plan, on)?;
    let mut alone = BTreeMap::new();
    for (index, client) in scenario.clients.iter().enumerate() {
        if let std::collections::btree_map::Entry::Vacant(entry) = alone.entry(client.group) {
            let mut command = outside.plain(prefix.test_program("pages"));
            command.args(plan.pages(index, Some(ALONE)));
            let record = crowd::run(vec![command]).context("one client alone")?;
            entry.insert(means(&record.rounds));
        }
    }
    let commands = (0..scenario.clients.len()).map(|index| {
        let mut command: Command = outside.client(prefix.test_program("pages"));
        // Data of its own: what is another's must be wrong.
        let seed = (index as u64 * 1000 + scenario.seed).to_string();
        command.args(plan.pages(index, None)).args(["--seed", &seed]);
        command.envs(plan.environment(index));
        // As many as it sees.
        command.env("CUDA_VISIBLE_DEVICES", outside::place_holders(scenario.clients[index].gpus));
        command
    });
    let record = crowd::run(commands.collect()).with_context(|| outside.log())?;
    compare(plan, &report, &record, &alone)
}

fn start(prefix: &Prefix, plan: &Plan, on: On) -> Result<Outside> {
    let options = plan.assigner();
    let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
    if on == On::Real {
        return Outside::on_real_gpus(prefix, &all);
    }
    all.extend(["--context-mib", "1"]);
    let (node, clients) = (plan.node(), plan.scenario.clients.len() as u64);
    // What clients have beyond the memory of the scenario is no part of it.
    let memory = node.config.gpus[0].memory + clients * (CONTEXT + OWN);
    let link = node.link.bytes_per_s as u64;
    let mut simcuda = format!(
        "memory = {memory}\ncontext_bytes = {CONTEXT}\nlink_out = {link}\nlink_in = {link}\nduplex = {}\n\
         launch_ns = 3000\ncopy_ns = 5000\n",
        node.link.duplex
    );
    node.config.gpus.iter().for_each(|_| simcuda += "\n[[gpu]]\nname = \"Simulated GPU\"\n");
    Outside::start(prefix, &simcuda, &all)
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
    let busy: f64 = scenario
        .clients
        .iter()
        .zip(&phases)
        .map(|(client, phases)| {
            let own = |round: &&Round| round.name == client.name;
            let done = record.rounds.iter().filter(counted).filter(own).count();
            done as f64 * f64::from(client.gpus) * phases.map_or(0.0, |(_, gpu_s)| gpu_s)
        })
        .sum();
    let gpus = plan.node().config.gpus.len() as f64;
    let per_round_s: f64 = phases.iter().flatten().map(|(cpu_s, gpu_s)| cpu_s + gpu_s).sum();
    let alone_per_s = gpus * phases.len() as f64 / per_round_s;
    let rounds = record.rounds.iter().filter(counted).count() as f64;
    Ok(Played {
        title: scenario.title.clone(),
        groups: groups.collect(),
        share_of_bound: busy / length_s / acb_sim::report::bound_with(scenario, &phases),
        simulated_share_of_bound: report.share_of_bound,
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
