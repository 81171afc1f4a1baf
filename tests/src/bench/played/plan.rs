//! What becomes of a scenario's clients when real programs play them: options of `pages` and of the assigner.
//!
//! Owns: which scenarios can be played, how times and memory are scaled, the scaled scenario that is simulated for comparison.
//! Pure. Does not own: running anything ([`super`]).

use std::time::Duration;

use acb_core::{Backfill, Eligible, Policy, Select};
use acb_sim::Scenario;
use acb_sim::random::{Family, Lengths};
use acb_sim::scenario::{Client, Expectation, Node, Release, Work};

use crate::bench::paging::gpu::CHUNK;

/// Blocks that a program allocates its memory in.
const BLOCKS: u64 = 4;
/// Shortest kernel that is played, of shorter ones there are fewer.
const SHORTEST_KERNEL: Duration = Duration::from_millis(1);
/// What a message takes where the scenario does not say.
const MESSAGE: Duration = Duration::from_micros(15);

/// Why a scenario cannot be played by programs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: simulate it (gpu_assigner simulate), or leave that out with --set")]
pub struct Unplayable(String);

fn no<T>(why: impl Into<String>) -> Result<T, Unplayable> {
    Err(Unplayable(why.into()))
}

/// How a scenario is made to fit a machine.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// All times are divided by this.
    pub time: f64,
    /// All memory is; 1 on real GPUs.
    pub memory: u64,
    /// GPU phases of each client.
    pub rounds: u64,
}

/// A scenario made smaller: what programs do and what is simulated for comparison.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The scenario, scaled, of so many rounds.
    pub scenario: Scenario,
}

impl Plan {
    /// Scales a scenario.
    ///
    /// # Errors
    /// It has something that no program here does.
    pub fn new(mut scenario: Scenario, scale: Scale) -> Result<Plan, Unplayable> {
        let [node] = &mut scenario.nodes[..] else { return no("there are several nodes") };
        if !scenario.faults.is_empty() {
            return no("there are faults");
        }
        let (config, shorter) = (&mut node.config, |time: Duration| time.div_f64(scale.time));
        if !config.tenants.is_empty() || !config.queues.is_empty() {
            return no("there are sections [[tenant]] or [[queue]]");
        }
        let topology = &config.topology;
        if !(topology.links.is_empty() && topology.distances.is_empty() && node.switch.is_zero()) {
            return no("`links`, `distances` and `switch_ms` are what GPUs have or have not");
        }
        if config.fair_share.is_some() || config.backfill == Backfill::Off {
            return no("there is fair share, or no backfill");
        }
        config.quantum = shorter(config.quantum).max(Duration::from_millis(1));
        config.max_bypass_time = shorter(config.max_bypass_time).max(Duration::from_secs(1));
        config.estimator.default = shorter(config.estimator.default);
        if config.memory.host_budget != u64::MAX {
            config.memory.host_budget /= scale.memory;
        }
        for gpu in &mut config.gpus {
            gpu.memory = smaller(gpu.memory, scale.memory);
        }
        node.link.bytes_per_s *= scale.time / scale.memory as f64;
        node.link.chunk = chunk(scale);
        if scenario.costs.message.mean.is_zero() {
            scenario.costs.message = Lengths::constant(MESSAGE);
        }
        (scenario.stop, scenario.due, scenario.steady) = (None, None, None);
        for client in &mut scenario.clients {
            shrink(client, scale)?;
        }
        let first = scenario.clients.first().map(|client| client.release);
        if scenario.clients.iter().any(|client| Some(client.release) != first) {
            return no("clients differ in `idle_us`, of which an assigner has one");
        }
        Ok(Plan { scenario })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.scenario.nodes[0]
    }

    /// Options of the assigner.
    pub fn assigner(&self) -> Vec<String> {
        let config = &self.node().config;
        let policy = match config.policy {
            Policy::Simple => "simple",
            Policy::GpuSharing => "gpu-sharing",
            Policy::GpuAffinity => "gpu-affinity",
        };
        let select = match config.peaks.select {
            Select::Min => "min",
            Select::Max => "max",
        };
        let pairs = [
            ("--scheduler", policy.to_owned()),
            ("--quantum-ms", config.quantum.as_millis().to_string()),
            ("--chunk-mib", (self.node().link.chunk >> 20).to_string()),
            ("--max-bypass", config.max_bypass.to_string()),
            ("--max-bypass-s", config.max_bypass_time.as_secs().to_string()),
            ("--switch-share", config.switch_share.to_string()),
            ("--exe-est-start-count", config.estimator.start_count.to_string()),
            ("--exe-est-latest-count", config.estimator.latest_count.to_string()),
            ("--exe-est-interval", config.estimator.interval.to_string()),
            ("--exe-est-percentile", config.estimator.percentile.to_string()),
            ("--exe-est-default-execution-time", config.estimator.default.as_millis().to_string()),
            ("--mem-est-start-count", config.peaks.start_count.to_string()),
            ("--mem-est-data-max-len", config.peaks.latest_count.to_string()),
            ("--mem-est-interval", config.peaks.interval.to_string()),
            ("--mem-est-percentile", config.peaks.percentile.to_string()),
            ("--mem-est-fixed-ratio", config.peaks.ratio.to_string()),
            ("--mem-est-select-strategy", select.to_owned()),
        ];
        let budget = (config.memory.host_budget != u64::MAX)
            .then(|| ("--host-budget", format!("{}M", config.memory.host_budget >> 20)));
        let idle = match self.scenario.clients.first().map(|client| client.release) {
            Some(Release::WhenWanted(idle)) => Some(("--idle-us", idle.as_micros().to_string())),
            _ => None,
        };
        pairs
            .into_iter()
            .chain(budget)
            .chain(idle)
            .flat_map(|(option, value)| [option.to_owned(), value])
            .collect()
    }

    /// Arguments of the program `pages` that plays a client; `rounds` where it is not to do all of them.
    pub fn pages(&self, client: usize, rounds: Option<u64>) -> Vec<String> {
        let client = &self.scenario.clients[client];
        let Work::Rounds { cpu, gpu, rounds: all } = &client.work else {
            unreachable!("others are refused by Plan::new")
        };
        let milliseconds = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
        let kernels = gpu.mean.as_nanos().div_ceil(client.kernel.as_nanos().max(1));
        // What takes steps is in every piece that the pager moves; how much of a piece does makes no difference to it.
        let pairs = [
            ("--name", client.name.clone()),
            ("--rounds", rounds.or(*all).unwrap_or_default().to_string()),
            ("--cpu-ms", milliseconds(cpu.mean)),
            ("--gpu-ms", milliseconds(gpu.mean)),
            ("--cv", gpu.spread.to_string()),
            ("--kernels", kernels.clamp(1, 1_000_000).to_string()),
            ("--gpus", client.gpus.to_string()),
            ("--bytes", (client.memory - client.read_only).to_string()),
            ("--still", client.read_only.to_string()),
            ("--blocks", BLOCKS.to_string()),
            ("--changing", "64K".to_owned()),
            ("--start-offset", milliseconds(client.arrival)),
        ];
        pairs.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()
    }

    /// The same on GPUs of other memory, behind a link of another rate.
    ///
    /// # Errors
    /// Some client does not fit.
    pub fn on(mut self, memory: &[u64], bytes_per_s: f64) -> Result<Plan, Unplayable> {
        let node = &mut self.scenario.nodes[0];
        node.link.bytes_per_s = bytes_per_s;
        for (gpu, memory) in node.config.gpus.iter_mut().zip(memory) {
            gpu.memory = *memory;
        }
        let least = memory.iter().min().copied().unwrap_or(0);
        match self.scenario.clients.iter().find(|client| client.memory > least) {
            None => Ok(self),
            Some(Client { name, memory, .. }) => no(format!(
                "a GPU has {} MiB beside the contexts, but \"{name}\" has {} MiB",
                least >> 20,
                memory >> 20
            )),
        }
    }

    /// For how long all programs can be silent, at most: a round of each, one after the other, several times over.
    pub fn silence(&self) -> Duration {
        let round = |client: &Client| match &client.work {
            Work::Rounds { cpu, gpu, .. } => cpu.mean + gpu.mean,
            Work::Requests { .. } => Duration::ZERO,
        };
        self.scenario.clients.iter().map(round).sum::<Duration>() * 5
    }

    /// Mean CPU and GPU phase of each client as the scenario says, seconds: none is shorter, where there is no spread.
    pub fn phases(&self) -> Vec<Option<(f64, f64)>> {
        let phases = |client: &Client| match &client.work {
            Work::Rounds { cpu, gpu, .. } => Some((cpu.mean.as_secs_f64(), gpu.mean.as_secs_f64())),
            Work::Requests { .. } => None,
        };
        self.scenario.clients.iter().map(phases).collect()
    }

    /// The environment of a client, beyond what every client has; `own`: what contexts and the pager take of a limit.
    pub fn environment(&self, client: usize, own: u64) -> Vec<(&'static str, String)> {
        let client = &self.scenario.clients[client];
        let mut all = vec![
            ("ACB_GPUS", client.gpus.to_string()),
            ("ACB_PRIORITY", client.priority.number().to_string()),
        ];
        let limit = client.memory_limit.map(|limit| limit + own);
        all.extend(limit.map(|limit| ("ACB_MEMORY", limit.to_string())));
        if let Some(gang) = &client.gang {
            all.push(("ACB_GANG", gang.name.to_string()));
            all.push(("ACB_GANG_SIZE", gang.size.to_string()));
        }
        all
    }
}

/// What the pager moves at a time.
fn chunk(scale: Scale) -> u64 {
    if scale.memory == 1 { 64 << 20 } else { CHUNK }
}

/// Memory that has been divided, in whole pieces of each block.
fn smaller(bytes: u64, divisor: u64) -> u64 {
    let piece = BLOCKS * CHUNK;
    if bytes == 0 { 0 } else { (bytes / divisor / piece).max(1) * piece }
}

fn shrink(client: &mut Client, scale: Scale) -> Result<(), Unplayable> {
    let Client { name, .. } = client;
    if !client.bound {
        return no(format!("\"{name}\" is bound to no GPU; programs are"));
    }
    if client.eligible != Eligible::All {
        return no(format!("\"{name}\" may run on some GPUs only"));
    }
    if client.expectation != Expectation::Unknown {
        return no(format!("\"{name}\" says how long its phases are; programs do not"));
    }
    if client.release == Release::AfterPhase {
        return no(format!("\"{name}\" gives its GPU back unasked; programs do not"));
    }
    let Work::Rounds { cpu, gpu, rounds } = &mut client.work else {
        return no(format!("\"{name}\" gets requests; programs here go through rounds"));
    };
    for lengths in [cpu, &mut *gpu] {
        let spread = [0.0, 0.5, 1.0].contains(&lengths.spread);
        if lengths.family != Family::Gamma || !spread {
            return no(format!("\"{name}\" has phases of a spread other than 0, 0.5 and 1"));
        }
        lengths.mean = lengths.mean.div_f64(scale.time);
    }
    *rounds = Some(rounds.unwrap_or(scale.rounds).min(scale.rounds));
    client.kernel = client.kernel.div_f64(scale.time).max(SHORTEST_KERNEL).min(gpu.mean);
    client.arrival = client.arrival.div_f64(scale.time);
    let written = smaller(client.memory - client.read_only, scale.memory);
    client.read_only = smaller(client.read_only, scale.memory);
    client.memory = written + client.read_only;
    client.memory_limit = client.memory_limit.map(|limit| smaller(limit, scale.memory));
    Ok(())
}

#[cfg(test)]
mod tests {
    use acb_sim::read::Overrides;

    use super::*;

    fn plan(text: &str, time: f64, memory: u64) -> Result<Plan, Unplayable> {
        let scenario = acb_sim::read("scenario", text, Overrides::default()).expect("it is right");
        Plan::new(scenario, Scale { time, memory, rounds: 20 })
    }

    #[test]
    fn times_and_memory_keep_their_shares() {
        let b2 = include_str!("../../../scenarios/b2.toml");
        let original = acb_sim::read("b2", b2, Overrides::default()).unwrap();
        let plan = plan(b2, 60.0, 128).unwrap();
        let (there, here) = (&original.clients[0], &plan.scenario.clients[0]);
        let copy = |client: &Client, node: &Node| client.memory as f64 / node.link.bytes_per_s;
        let ratio = copy(there, &original.nodes[0]) / copy(here, plan.node());
        assert!((ratio - 60.0).abs() < 1e-6, "a copy takes a sixtieth: {ratio}");
        assert_eq!(plan.node().config.gpus[0].memory, 128 << 20);
        assert_eq!(here.memory, 80 << 20);
        let options = plan.pages(0, None).join(" ");
        assert_eq!(
            options,
            "--name fold-0 --rounds 20 --cpu-ms 700.000 --gpu-ms 300.000 --cv 0 --kernels 300 --gpus 1 \
             --bytes 83886080 --still 0 --blocks 4 --changing 64K --start-offset 0.000"
        );
        assert!(
            plan.assigner().join(" ").starts_with("--scheduler gpu-affinity --quantum-ms 1000 ")
        );
    }

    #[test]
    fn what_no_program_does_is_refused_by_name() {
        let why = |file: &str| plan(file, 10.0, 128).map(|_| ()).unwrap_err().to_string();
        let b7 = include_str!("../../../scenarios/b7.toml");
        assert!(why(b7).starts_with("\"requests\" gets requests"), "{}", why(b7));
        let b9 = include_str!("../../../scenarios/b9.toml");
        assert!(why(b9).starts_with("there are several nodes"), "{}", why(b9));
        let b6 = include_str!("../../../scenarios/b6.toml");
        assert!(why(b6).starts_with("\"A\" is bound to no GPU"), "{}", why(b6));
        let b8 = include_str!("../../../scenarios/b8_bound.toml");
        assert!(why(b8).starts_with("there are sections [[tenant]]"), "{}", why(b8));
    }
}
