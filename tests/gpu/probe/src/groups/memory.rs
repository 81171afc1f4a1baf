//! Group `memory`: what a context takes, and what the driver's virtual-memory calls cost by chunk size,
//! idle and beside a running kernel, against plain allocations.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::Context;

use crate::bench::{Bench, GIB, MIB, Workbench, label};
use crate::driver::device::{Attribute, Gpu, Grid};
use crate::driver::mapped::{Range, granularity};
use crate::parts::Parts;
use crate::row::Row;

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let work = Workbench::open()?;
    context_size(bench, &work.gpu)?;
    let (least, recommended) = granularity(&work.gpu)?;
    bench.value("granularity_mib", "MiB", least as f64 / MIB as f64);
    bench.value("granularity_recommended_mib", "MiB", recommended as f64 / MIB as f64);
    if work.gpu.attribute(Attribute::MemoryManagement)? == 0 {
        anyhow::bail!("this device has no virtual memory management: the pager cannot work on it");
    }
    let budget = bench.device_bytes(&work.gpu, 4 * GIB, 0.4)?;
    let chunks = bench.chunks(budget);
    let part = |chunk: &u64| format!("memory@{}", label(*chunk));
    let parts = Parts::new(bench, chunks.iter().map(|chunk| (part(chunk), 1.0)));
    for chunk in chunks {
        let count = (budget / chunk).clamp(2, bench.pick(8, 64)) as usize;
        parts.run(&part(&chunk), |_| {
            for load in [Load::Idle, Load::Busy] {
                if let Err(error) = chunk_calls(bench, &work, chunk, count, load) {
                    let name = format!("{}.cycle_us@{}", load.matrix(), label(chunk));
                    bench.missing(&name, "us", format!("{error:#}"));
                }
            }
            plain_calls(bench, &work.gpu, chunk, count)
        })?;
    }
    Ok(())
}

/// What else the GPU does meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    Idle,
    Busy,
}

impl Load {
    fn matrix(self) -> &'static str {
        match self {
            Load::Idle => "mapped_idle",
            Load::Busy => "mapped_busy",
        }
    }
}

/// Times each call of the life of a chunk at an address that stays: what a pager does.
fn chunk_calls(
    bench: &Bench,
    work: &Workbench,
    chunk: u64,
    count: usize,
    load: Load,
) -> anyhow::Result<()> {
    let mut range = Range::reserve(&work.gpu, chunk * count as u64, chunk)?;
    let spin = work.kernel("acb_spin")?;
    let ended = work.gpu.event()?;
    let names = ["create_us", "map_us", "set_access_us", "unmap_us", "release_us"];
    let mut samples: [Vec<f64>; 5] = Default::default();
    let mut cycle = Vec::new();
    let mut batched = Vec::new();
    let (warm, repeats) = (1, bench.pick(2, 4));
    let mut outlived = 0;
    for repeat in 0..warm + repeats {
        let counts = repeat >= warm;
        if load == Load::Busy {
            spin.launch(&work.stream, Grid(1, 1, 32), &[250_000_000])?;
            ended.record(&work.stream)?;
        }
        let mut took = |call: usize, begin: Instant| {
            if counts {
                samples[call].push(begin.elapsed().as_secs_f64() * 1e6);
            }
        };
        let begin = Instant::now();
        for index in 0..count {
            let at = Instant::now();
            let handle = range.create()?;
            took(0, at);
            let at = Instant::now();
            range.map(index, handle)?;
            took(1, at);
            let at = Instant::now();
            range.open(index, 1)?;
            took(2, at);
        }
        for index in 0..count {
            let at = Instant::now();
            let handle = range.unmap(index)?;
            took(3, at);
            let at = Instant::now();
            range.release(handle)?;
            took(4, at);
        }
        if counts {
            cycle.push(begin.elapsed().as_secs_f64() * 1e6 / count as f64);
        }
        if load == Load::Busy {
            if ended.done()? && counts {
                outlived += 1;
            }
            work.stream.synchronize()?;
        }
        // One access call for all chunks at once, which is what growing an allocation could use.
        for index in 0..count {
            let handle = range.create()?;
            range.map(index, handle)?;
        }
        let at = Instant::now();
        range.open(0, count)?;
        if counts {
            batched.push(at.elapsed().as_secs_f64() * 1e6 / count as f64);
        }
        for index in 0..count {
            range.take(index)?;
        }
    }
    let place = |name: &str| format!("{}.{name}@{}", load.matrix(), label(chunk));
    for (name, sample) in names.iter().zip(&samples) {
        bench.sample(&place(name), "us", sample);
    }
    let row = Row::sample(bench.group, &place("cycle_us"), "us", &cycle);
    bench.row(match load {
        Load::Busy if outlived > 0 => row.note(format!(
            "in {outlived} of {repeats} repeats the kernel of 250 ms ended first: the calls are slow, or wait for it"
        )),
        _ => row,
    });
    let per_gib: Vec<f64> = cycle.iter().map(|us| us * (GIB as f64 / chunk as f64) / 1e3).collect();
    bench.sample(&place("cycle_ms_per_gib"), "ms/GiB", &per_gib);
    if load == Load::Idle {
        bench.sample(&place("set_access_batched_us"), "us", &batched);
    }
    Ok(())
}

fn plain_calls(bench: &Bench, gpu: &Gpu, size: u64, count: usize) -> anyhow::Result<()> {
    let (mut allocate, mut free) = (Vec::new(), Vec::new());
    for repeat in 0..bench.pick(2, 5) {
        let mut blocks = Vec::new();
        for _ in 0..count {
            let at = Instant::now();
            blocks.push(gpu.allocate(size)?);
            if repeat > 0 {
                allocate.push(at.elapsed().as_secs_f64() * 1e6);
            }
        }
        for block in blocks {
            let at = Instant::now();
            block.free()?;
            if repeat > 0 {
                free.push(at.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    bench.sample(&format!("plain.allocate_us@{}", label(size)), "us", &allocate);
    bench.sample(&format!("plain.free_us@{}", label(size)), "us", &free);
    Ok(())
}

/// A process of its own makes a context, then loads kernels; this one sees what is gone from the GPU.
fn context_size(bench: &Bench, gpu: &Gpu) -> anyhow::Result<()> {
    let (mut context, mut loaded, mut init, mut create) = (vec![], vec![], vec![], vec![]);
    for _ in 0..bench.pick(1, 3) {
        let before = gpu.memory()?.free;
        let mut holder = Holder::start()?;
        let line = holder.next_line()?;
        let mut times = line.split_whitespace().map(|word| word.parse::<f64>());
        init.push(times.next().context("the holder's first line is empty")??);
        create.push(times.next().context("the holder's first line is short")??);
        context.push((before.saturating_sub(gpu.memory()?.free)) as f64 / MIB as f64);
        holder.go()?;
        holder.next_line()?;
        loaded.push((before.saturating_sub(gpu.memory()?.free)) as f64 / MIB as f64);
        holder.go()?;
        holder.child.wait()?;
    }
    bench.sample("context_mib", "MiB", &context);
    bench.sample("context_with_kernels_mib", "MiB", &loaded);
    bench.sample("init_ms", "ms", &init);
    bench.sample("context_create_ms", "ms", &create);
    Ok(())
}

/// The process that `hold_context` runs in.
pub(crate) struct Holder {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Holder {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("hold-context")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().expect("its stdout is piped"));
        Ok(Self { child, lines })
    }

    pub(crate) fn next_line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        anyhow::ensure!(
            !line.is_empty(),
            "the process that holds a context ended: {}",
            self.child.wait()?
        );
        Ok(line)
    }

    pub(crate) fn go(&mut self) -> anyhow::Result<()> {
        self.child.stdin.as_mut().expect("its stdin is piped").write_all(b"go\n")?;
        Ok(())
    }

    pub(crate) fn end(&mut self) -> anyhow::Result<()> {
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `probe hold-context`: a context, then kernels, a line after each; waits for a line after each.
pub(crate) fn hold_context() -> anyhow::Result<()> {
    let mut input = std::io::stdin().lines();
    let begin = Instant::now();
    crate::driver::device::driver()?;
    let init = begin.elapsed();
    let begin = Instant::now();
    Gpu::open()?;
    println!("{} {}", init.as_secs_f64() * 1e3, begin.elapsed().as_secs_f64() * 1e3);
    input.next();
    let work = Workbench::open()?;
    let block = work.gpu.allocate(2 * MIB)?;
    work.fill(block.at, block.bytes, 1)?;
    block.free()?;
    println!("loaded");
    input.next();
    Ok(())
}
