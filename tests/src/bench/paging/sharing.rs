//! Figures of programs that share a GPU which is too small for all of them.
//!
//! Owns: their phases and memory, and what they are compared with: the same program alone on the GPU,
//! without the interposer. Does not own: what follows from the records ([`crate::bench::analysis`]).

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::assigner;
use super::crowd::{self, Record};
use super::gpu::{OWN, Scaled};
use crate::bench::analysis::Comparison;
use crate::bench::figure::Figure;
use crate::bench::measure::Effort;
use crate::bench::outside::Outside;
use crate::lab::Prefix;

/// How long a lease is held that others wait for, on the original, seconds: longer than the phases.
const QUANTUM_S: f64 = 30.0;

/// Blocks that a program allocates its memory in.
const BLOCKS: u64 = 4;

/// Programs that alternate phases.
#[derive(Clone, Copy, Debug)]
struct Programs {
    clients: u32,
    bytes: u64,
    cpu: Duration,
    gpu: Duration,
    rounds: u32,
}

impl Programs {
    fn command(&self, outside: &Outside, prefix: &Prefix, client: Option<u32>) -> Command {
        let program = prefix.test_program("pages");
        let mut command = match client {
            Some(_) => outside.client(program),
            None => outside.plain(program),
        };
        let milliseconds = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
        command
            .args(["--name", &format!("client-{}", client.unwrap_or(0))])
            .args(["--seed", &(client.unwrap_or(0) * 1000 + 1).to_string()])
            .args(["--rounds", &self.rounds.to_string()])
            .args(["--bytes", &self.bytes.to_string(), "--blocks", &BLOCKS.to_string()])
            .args(["--cpu-ms", &milliseconds(self.cpu)])
            .args(["--gpu-ms", &milliseconds(self.gpu)])
            // Every chunk changes; how many of its bytes do makes no difference to the pager.
            .args(["--changing", "64K"]);
        command
    }

    fn alone(&self, outside: &Outside, prefix: &Prefix) -> Result<Record> {
        right(crowd::run(vec![self.command(outside, prefix, None)])?)
    }

    fn together(&self, outside: &Outside, prefix: &Prefix) -> Result<Record> {
        let commands = (0..self.clients).map(|c| self.command(outside, prefix, Some(c))).collect();
        right(crowd::run(commands).with_context(|| outside.log())?)
    }
}

fn right(record: Record) -> Result<Record> {
    if record.wrong > 0 {
        bail!("{} bytes of {} are wrong:\n{}", record.wrong, record.checked, record.complaints);
    }
    Ok(record)
}

/// Two programs of 95 % of the GPU's memory each, whose GPU phases are so many full switches long. A GPU of this size has no headroom
/// by itself; beside one of 1 % and two contexts that stand for 5 %, 95 % would not fit.
fn pair(
    prefix: &Prefix,
    name: &'static str,
    switches: f64,
    cpu_share: f64,
    rounds: u32,
) -> Result<Vec<Figure>> {
    let gpu = Scaled::of_16_gb(128, 32.0);
    let bytes = gpu.share(0.95, BLOCKS);
    let full = gpu.copy_time(bytes);
    let phase = full.mul_f64(switches);
    let programs = Programs {
        clients: 2,
        bytes,
        cpu: phase.mul_f64(cpu_share / (1.0 - cpu_share)),
        gpu: phase,
        rounds,
    };
    compare(prefix, (name, "x serial"), &gpu, programs)
}

/// What the programs complete at best, against one alone: (c + g) / (g + s), where s is the copy of what cannot be on the GPU
/// before its turn, and everything else is hidden.
fn ideal(gpu: &Scaled, programs: &Programs) -> f64 {
    let contexts = u64::from(programs.clients) * (gpu.context + OWN);
    let beside = gpu.memory.saturating_sub(contexts + programs.bytes);
    let exposed = gpu.copy_time(programs.bytes.saturating_sub(beside));
    (programs.cpu + programs.gpu).as_secs_f64() / (programs.gpu + exposed).as_secs_f64()
}

fn compare(
    prefix: &Prefix,
    (name, unit): (&'static str, &'static str),
    gpu: &Scaled,
    programs: Programs,
) -> Result<Vec<Figure>> {
    let quantum = gpu.scale_time(QUANTUM_S).as_millis().to_string();
    let outside = assigner(prefix, gpu, &["--quantum-ms".to_owned(), quantum.clone()])?;
    let alone = Programs { rounds: programs.rounds.min(4), ..programs }.alone(&outside, prefix)?;
    let together = programs.together(&outside, prefix)?;
    let comparison = Comparison::of(&alone.rounds, &together.rounds)?;
    Ok(vec![Figure {
        name,
        value: comparison.speedup(),
        unit,
        how: format!(
            "{} x {} MiB on {} MiB, phases {:.0} ms CPU, {:.0} ms GPU, quantum {quantum} ms: {:.0} rounds/h, alone {:.0}; \
             ideal with a copy of what does not fit beside {:.3}; GPU phase {:.0} ms alone, wait included {:.0} ms; {} rounds in {:.1} s; \
             {} GiB checked, all right",
            programs.clients,
            programs.bytes >> 20,
            gpu.memory >> 20,
            programs.cpu.as_secs_f64() * 1e3,
            programs.gpu.as_secs_f64() * 1e3,
            comparison.shared.per_hour,
            comparison.exclusive.per_hour,
            ideal(gpu, &programs),
            comparison.exclusive.gpu_and_wait_s * 1e3,
            comparison.shared.gpu_and_wait_s * 1e3,
            comparison.shared.rounds,
            comparison.shared.window.length() as f64 / 1e9,
            (alone.checked + together.checked) >> 30,
        ),
    }])
}

/// Half CPU, half GPU, phases of ten full switches.
///
/// # Errors
/// A program fails, or finds wrong data.
pub fn pair_50_50(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    pair(prefix, "pair_50_50", 10.0, 0.5, if effort == Effort::Quick { 3 } else { 8 })
}

/// A tenth CPU, GPU phases of thirty full switches.
///
/// # Errors
/// A program fails, or finds wrong data.
pub fn pair_90_10(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    pair(prefix, "pair_90_10", 30.0, 0.1, if effort == Effort::Quick { 3 } else { 6 })
}

/// B2, coarse: eight programs of 10 GB on 16 GB, c = 42 s, g = 18 s.
///
/// # Errors
/// A program fails, or finds wrong data.
pub fn b2_coarse(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    let gpu = Scaled::of_16_gb(128, 32.0);
    let programs = Programs {
        clients: 8,
        bytes: gpu.share(10.0 / 16.0, BLOCKS),
        cpu: gpu.scale_time(42.0),
        gpu: gpu.scale_time(18.0),
        rounds: if effort == Effort::Quick { 2 } else { 4 },
    };
    compare(prefix, ("b2_coarse", "x exclusive"), &gpu, programs)
}

/// Six programs of 25 GB on 40 GB, of every kind of memory; 1 if all their data is right.
///
/// # Errors
/// A program fails.
pub fn oversubscribed(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    const CLIENTS: u32 = 6;
    let gpu = Scaled::of_gb(40, 256, 16.0);
    let outside = assigner(prefix, &gpu, &[])?;
    let each = gpu.share(25.0 / 40.0, 1);
    let rounds = if effort == Effort::Quick { 2 } else { 6 };
    let kinds: [&[&str]; 3] = [&["--way", "plain"], &["--way", "async"], &["--way", "mapped"]];
    let commands = (0..CLIENTS).map(|client| {
        let mut command = outside.client(prefix.test_program("pages"));
        let (small, still, grow) = (each / 16, each / 4, each / 16);
        command
            .args([
                "--name",
                &format!("client-{client}"),
                "--seed",
                &(client * 1000 + 1).to_string(),
            ])
            .args([
                "--rounds",
                &rounds.to_string(),
                "--cpu-ms",
                "100",
                "--gpu-ms",
                "50",
                "--cv",
                "0.5",
            ])
            .args(["--bytes", &(each - small - still - grow).to_string()])
            .args(["--small", &small.to_string(), "--still", &still.to_string()])
            .args(["--grow", &grow.to_string()])
            .args(kinds[client as usize % kinds.len()])
            .args(["--streams", &(1 + client % 2).to_string()]);
        command
    });
    let record = crowd::run(commands.collect()).with_context(|| outside.log())?;
    Ok(vec![Figure {
        name: "oversub_150_on_40",
        value: f64::from(u8::from(record.wrong == 0)),
        unit: "1 if right",
        how: format!(
            "{CLIENTS} x {} MiB on {} MiB, {} rounds; {} of {} MiB checked wrong bytes {}",
            each >> 20,
            gpu.memory >> 20,
            record.rounds.len(),
            record.wrong,
            record.checked >> 20,
            record.complaints,
        ),
    }])
}
