//! Group `checkpoint`: the driver's own way to take a process off the GPU and bring it back, by the size
//! of the process: seconds each way, what stays on the GPU, and whether the data is right afterwards.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use crate::bench::{Bench, GIB, MIB, Workbench, label};
use crate::driver::device::{CheckpointStep, Gpu, checkpoint, checkpoint_state};
use crate::driver::table::DriverError;
use crate::host;
use crate::parts::Parts;
use crate::reference::splitmix64;
use crate::row::Row;

const SEED: u64 = 42_000_000_000;
const COLUMNS: [(&str, &str); 6] = [
    ("lock_s", "s"),
    ("checkpoint_s", "s"),
    ("restore_s", "s"),
    ("unlock_s", "s"),
    ("left_on_gpu_mib", "MiB"),
    ("data", "text"),
];

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    // A context of our own, to see what is free; the process that is checkpointed is another one.
    let gpu = Gpu::open()?;
    let missing = match checkpoint_state(gpu.driver, std::process::id()) {
        Err(DriverError::NoFunction(name)) => {
            Some(format!("this driver has no {name} (570 and later do)"))
        }
        _ => None,
    };
    // Seconds per byte so far, to know what the next size would take.
    let mut pace = 0f64;
    let sizes = [GIB, 8 * GIB, 32 * GIB].map(|size| bench.pick(size / 64, size));
    let part = |size: u64| format!("driver_checkpoint@{}", label(size));
    let parts = Parts::new(bench, sizes.map(part).into_iter().zip([1.0, 2.0, 4.0]));
    for size in sizes {
        let begin = Instant::now();
        let done = parts.run(&part(size), |limit| {
            let refusal = missing.clone().or_else(|| refusal(&gpu, size, pace, limit));
            refusal.map_or(Ok(()), |why| Err(anyhow::Error::msg(why)))?;
            cycle(bench, &gpu, size)
        });
        if let Err(why) = done {
            for (column, unit) in COLUMNS {
                bench.missing(&place(column, size), unit, format!("{why:#}"));
            }
        }
        pace = begin.elapsed().as_secs_f64() / size as f64;
    }
    Ok(())
}

fn place(column: &str, size: u64) -> String {
    format!("driver_checkpoint.{column}@{}", label(size))
}

fn refusal(gpu: &Gpu, size: u64, pace: f64, limit: f64) -> Option<String> {
    let gib = |bytes: u64| bytes as f64 / GIB as f64;
    let free = gpu.memory().map_or(0, |memory| memory.free);
    if size as f64 > free as f64 * 0.85 {
        return Some(format!("the GPU has {:.1} GiB free", gib(free)));
    }
    let available = host::available_memory();
    if size as f64 > available as f64 * 0.7 {
        return Some(format!("the host has {:.1} GiB available", gib(available)));
    }
    let expected = pace * size as f64 * 1.2;
    (expected > limit).then(|| format!("would take {expected:.0} s of {limit:.0}"))
}

fn cycle(bench: &Bench, gpu: &Gpu, size: u64) -> anyhow::Result<()> {
    let before = gpu.memory()?.free;
    let mut patient = Patient::start(size)?;
    let pid = patient.child.id();
    let step = |step: CheckpointStep| -> anyhow::Result<f64> {
        let begin = Instant::now();
        checkpoint(gpu.driver, pid, step)?;
        Ok(begin.elapsed().as_secs_f64())
    };
    let lock = step(CheckpointStep::Lock)?;
    let out = step(CheckpointStep::Checkpoint)?;
    let left = before.saturating_sub(gpu.memory()?.free);
    let restore = step(CheckpointStep::Restore)?;
    let unlock = step(CheckpointStep::Unlock)?;
    let right = patient.check()?;
    for (column, seconds) in COLUMNS.into_iter().zip([lock, out, restore, unlock]) {
        bench.value(&place(column.0, size), column.1, seconds);
    }
    bench.value(&place("left_on_gpu_mib", size), "MiB", left as f64 / MIB as f64);
    let word = if right { "right" } else { "WRONG" };
    bench.row(Row::text(bench.group, &place("data", size), word).verified(right));
    Ok(())
}

/// The process that is checkpointed.
struct Patient {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Patient {
    fn start(size: u64) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["hold-memory", &size.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().expect("its stdout is piped"));
        let mut patient = Self { child, lines };
        anyhow::ensure!(patient.line()? == "ready", "the process with memory did not get ready");
        Ok(patient)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "the process with memory ended: {}", self.child.wait()?);
        Ok(line.trim().to_owned())
    }

    fn check(&mut self) -> anyhow::Result<bool> {
        self.child.stdin.as_mut().expect("its stdin is piped").write_all(b"check\n")?;
        Ok(self.line()? == "right")
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `probe hold-memory BYTES`: fills memory, waits for a line, checks all of it.
pub(crate) fn hold_memory(bytes: u64) -> anyhow::Result<()> {
    let work = Workbench::open()?;
    let memory = work.gpu.allocate(bytes)?;
    work.fill(memory.at, bytes, SEED)?;
    let before = work.sum(memory.at, bytes)?;
    println!("ready");
    std::io::stdin().lines().next();
    let words = bytes / 8;
    let sampled = (0..256).map(|i| splitmix64(i) % words).chain([0, words - 1]).all(|i| {
        let word = work.gpu.read(memory.at + i * 8, 1);
        word.is_ok_and(|word| word[0] == splitmix64(SEED + i))
    });
    let right = sampled && work.sum(memory.at, bytes)? == before;
    println!("{}", if right { "right" } else { "WRONG" });
    Ok(())
}
