//! What a scenario is played on: an assigner, and GPUs with as much memory as the scenario says.
//!
//! Owns: software GPUs of that size; on real ones, what takes the rest of their memory. Does not own: the programs that play.

use acb_sim::scenario::Client;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::On;
use super::plan::Plan;
use crate::bench::outside::{self, OnRequest, Outside};
use crate::bench::paging::gpu::OWN;
use crate::bench::system::System;
use crate::lab::Prefix;

/// What a context takes on a software GPU.
const CONTEXT: u64 = 1 << 20;
/// What a context takes where nobody knows.
const UNKNOWN_CONTEXT_MIB: u64 = 512;
/// What `pages` has for its sums: the first range of small allocations.
const SUMS: u64 = 2 << 20;
/// Memory is taken in pieces of this.
const PIECE: u64 = 2 << 20;

/// Where a scenario is played.
pub(super) struct Stage {
    /// What takes the memory that the scenario does not have; before the assigner that it needs to its end.
    _rest: Vec<OnRequest>,
    pub(super) outside: Outside,
    /// With the memory and the link that there are.
    pub(super) plan: Plan,
    /// What each program has on a GPU beyond the memory of the scenario.
    pub(super) own: u64,
}

/// What `copy_rate` prints.
#[derive(Deserialize)]
struct Rates {
    out_per_s: f64,
    in_per_s: f64,
}

impl Stage {
    pub(super) fn start(prefix: &Prefix, plan: &Plan, on: On) -> Result<Self> {
        match on {
            On::Software => Self::software(prefix, plan),
            On::Real(system) => Self::real(prefix, plan, system),
        }
    }

    fn software(prefix: &Prefix, plan: &Plan) -> Result<Self> {
        let (options, own) = (plan.assigner(), CONTEXT + OWN + SUMS);
        let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
        all.extend(["--context-mib", "1", "--headroom", "0"]);
        let (node, clients) = (plan.node(), plan.scenario.clients.len() as u64);
        // What clients have beyond the memory of the scenario is no part of it.
        let memory = node.config.gpus[0].memory + clients * own;
        let link = node.link.bytes_per_s as u64;
        let mut simcuda = format!(
            "memory = {memory}\ncontext_bytes = {CONTEXT}\nlink_out = {link}\nlink_in = {link}\nduplex = {}\n\
             launch_ns = 3000\ncopy_ns = 5000\n",
            node.link.duplex
        );
        node.config.gpus.iter().for_each(|_| simcuda += "\n[[gpu]]\nname = \"Simulated GPU\"\n");
        let outside = Outside::start(prefix, &simcuda, &all)?;
        Ok(Self { _rest: Vec::new(), outside, plan: plan.clone(), own })
    }

    fn real(prefix: &Prefix, plan: &Plan, system: System) -> Result<Self> {
        system.check()?;
        let wanted = &plan.node().config.gpus;
        let list = system.gpu_list(wanted.len())?;
        let lacks = || {
            format!(
                "--real plays on {} of this machine's GPUs; NVIDIA's driver is looked for in the usual places, or where ACB_DRIVER \
                 and ACB_NVML say",
                wanted.len()
            )
        };
        let context_mib = context_mib(prefix, &system, &list).with_context(lacks)?;
        let own = (context_mib << 20) + OWN + SUMS;
        let mut options = plan.assigner();
        options.extend(["--gpu-list".to_owned(), list]);
        options.extend(["--context-mib".to_owned(), context_mib.to_string()]);
        let all: Vec<&str> = options.iter().map(String::as_str).collect();
        let outside = Outside::on_real_gpus(prefix, system, &all).with_context(lacks)?;
        let gpus = outside.status()?.context("the assigner does not answer")?.gpus;
        ensure!(
            gpus.len() == wanted.len(),
            "the scenario has {} GPUs, but {} are handed out; name whole GPUs or single MIG slices in CUDA_VISIBLE_DEVICES",
            wanted.len(),
            gpus.len()
        );
        let rate = link(prefix, &outside, &gpus[0].uuid)?;
        let mut rest = Vec::new();
        for gpu in &gpus {
            let variables = [("ACB_PAGER", "off"), ("ACB_ELIGIBLE", gpu.uuid.as_str())];
            rest.push(outside.on_request_with(&variables).context("a program on a GPU")?);
        }
        let bound: u64 =
            plan.scenario.clients.iter().map(|client: &Client| u64::from(client.gpus)).sum();
        let each = bound.div_ceil(gpus.len() as u64);
        let mut memory = Vec::new();
        for ((gpu, wanted), program) in gpus.iter().zip(wanted).zip(&mut rest) {
            // One more context: that of the program that takes the rest.
            let there = gpu.memory.saturating_sub((each + 1) * own);
            let beyond = there.saturating_sub(wanted.memory) / PIECE * PIECE;
            if beyond > 0 {
                program.ask(&format!("alloc 1 {beyond}")).context("take what is left")?;
            }
            memory.push(there - beyond);
        }
        let plan = plan.clone().on(&memory, rate)?;
        Ok(Self { _rest: rest, outside, plan, own })
    }
}

/// What a context takes on the first of these GPUs, in whole MiB, as NVML says of a program that has one. Where it cannot tell (in
/// some containers), what an assigner takes for granted.
fn context_mib(prefix: &Prefix, system: &System, gpus: &str) -> Result<u64> {
    let first = gpus.split(',').next().unwrap_or_default();
    let mut command = outside::on_system(system, prefix.test_program("on_request"));
    command.env("CUDA_VISIBLE_DEVICES", first);
    let mut program = OnRequest::start(command)?;
    program.request(&format!("nvml {}", system.nvml().display()))?;
    let lists = program.reply()?.processes;
    let own = lists.iter().flatten().filter(|(pid, _)| *pid == program.pid());
    // A number beyond all memory means that it is not known.
    let bytes = own.map(|(_, bytes)| *bytes).filter(|bytes| (1..1 << 40).contains(bytes)).max();
    Ok(bytes.map_or(UNKNOWN_CONTEXT_MIB, |bytes| bytes.div_ceil(1 << 20)))
}

/// Bytes a second over the link of a GPU, in the slower direction.
fn link(prefix: &Prefix, outside: &Outside, gpu: &str) -> Result<f64> {
    let mut command = outside.plain(prefix.test_program("copy_rate"));
    let output = command.env("CUDA_VISIBLE_DEVICES", gpu).output().context("start copy_rate")?;
    ensure!(
        output.status.success(),
        "the GPU {gpu} does not copy: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    let rates: Rates = serde_json::from_slice(&output.stdout).context("what copy_rate says")?;
    Ok(rates.out_per_s.min(rates.in_per_s))
}
