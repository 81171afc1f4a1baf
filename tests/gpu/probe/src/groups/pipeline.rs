//! Page-out of one process beside page-in of another: the switch that the pager is to make.
//!
//! Two processes of this program. The victim copies its chunks to the host, unmaps and frees each, and
//! says so in a line; the next holder takes each line as the credit for a chunk of its own: it maps one,
//! and copies its content in. Lines go from the victim's stdout to the holder's stdin. Both stamp the
//! host's clock, which they share.
//!
//! ```text
//! parent  ── "CHUNK" ──▶ victim ── "ready" "c" "c" … "end T0" ──▶ holder ── "ready" / result ──▶ parent
//! ```

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Lines, StdinLock, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::Context;

use super::link::SWITCHED;
use crate::bench::{Bench, GIB, MIB, Workbench, label};
use crate::driver::device::{Gpu, Pinned};
use crate::driver::mapped::Range;
use crate::host::monotonic_ns;
use crate::pace::Load;
use crate::parts::Parts;
use crate::reference::splitmix64;
use crate::row::Row;

/// Copies that are queued before the oldest is waited for.
const DEPTH: usize = 3;
const COLUMNS: [(&str, &str); 3] =
    [("switch_gb_per_s", "GB/s"), ("out_alone_gb_per_s", "GB/s"), ("switch_over_one_way", "ratio")];
const VICTIM_SEED: u64 = 5_000_000_000;
const HOLDER_SEED: u64 = 9_000_000_000;

/// Which end of the pipeline a process is.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// Pages out.
    Victim,
    /// Pages in.
    Holder,
}

/// Of a line: each round fills memory, copies it out alone and once more, in alone and once more, and looks at it.
const LOAD: Load = Load { fixed: 1.0, crossings: 16.0, handled: 8.0 };
/// Both processes start, and the holder's memory is filled.
const START: Load = Load { fixed: 2.0, crossings: 0.0, handled: 4.0 };

pub(crate) fn run(bench: &Bench, parts: &Parts) -> anyhow::Result<()> {
    let gpu = Gpu::open()?;
    let most = bench.device_bytes(&gpu, 4 * GIB, 0.25)?.min(bench.host_bytes(4 * GIB, 0.15));
    let chunks: Vec<(u64, String)> =
        SWITCHED.map(|chunk| (chunk, format!("pipeline@{}", label(chunk)))).to_vec();
    let mut pace = bench.sizes()?.pace(bench.simulated);
    let mut pair: Option<Pair> = None;
    let mut best: Option<(f64, String)> = None;
    for (chunk, part) in chunks {
        let place = |name: &str| format!("pipeline.{name}@{}", label(chunk));
        let measured = parts.run(&part, |limit| {
            // Two chunks, at least.
            let load = Load { fixed: LOAD.fixed + START.fixed, ..LOAD };
            let load = Load { handled: load.handled + START.handled, ..load };
            let least = (2 * chunk).max((64 * MIB).min(most) / chunk * chunk);
            anyhow::ensure!(least <= most, "too large for {}", label(most));
            // A slow machine measures less often before it measures less.
            let repeats = if pace.fitting(limit, load) < least { 1 } else { bench.pick(1, 3) };
            let bytes = pace.within(limit, load, least, most)?;
            let unit = if bytes >= 512 * MIB { 256 * MIB } else { chunk };
            let bytes = bytes / unit * unit;
            let begin = Instant::now();
            if pair.as_ref().is_none_or(|pair| pair.bytes != bytes) {
                drop(pair.take());
                pair = Some(Pair::start(bytes)?);
            }
            let pair = pair.as_mut().context("it was started above")?;
            let (mut switch, mut one_way, mut ratio, mut right) = (vec![], vec![], vec![], true);
            for repeat in 0..=repeats {
                let round = pair.round(chunk)?;
                right &= round.right;
                if repeat > 0 {
                    switch.push(bytes as f64 / round.switch_s / 1e9);
                    one_way.push(bytes as f64 / round.out_alone_s / 1e9);
                    ratio.push(round.switch_s / round.out_alone_s.max(round.in_alone_s));
                }
            }
            pace.learn(bytes, load, begin.elapsed().as_secs_f64());
            let row = Row::sample(bench.group, &place("switch_gb_per_s"), "GB/s", &switch);
            let rate = row.value;
            let note = format!("{} of one process out, as much of another in", label(bytes));
            bench.row(row.verified(right).note(note));
            bench.sample(&place("out_alone_gb_per_s"), "GB/s", &one_way);
            bench.sample(&place("switch_over_one_way"), "ratio", &ratio);
            if let Some(rate) = rate
                && best.as_ref().is_none_or(|(other, _)| rate > *other)
            {
                best = Some((rate, label(chunk)));
            }
            Ok(())
        });
        if let Err(error) = measured {
            drop(pair.take());
            for (column, unit) in COLUMNS {
                bench.missing(&place(column), unit, format!("{error:#}"));
            }
        }
    }
    if let Some(pair) = pair {
        pair.end()?;
    }
    if let Some((rate, chunk)) = best {
        bench.row(Row::value(bench.group, "pipeline_best_gb_per_s", "GB/s", rate).note(format!(
            "chunks of {chunk}; bytes of one side over the time of the whole switch"
        )));
    }
    Ok(())
}

/// What one switch took.
struct Round {
    switch_s: f64,
    out_alone_s: f64,
    in_alone_s: f64,
    right: bool,
}

/// The two processes.
struct Pair {
    /// Of each process.
    bytes: u64,
    victim: Child,
    holder: Child,
    victim_in: ChildStdin,
    holder_out: BufReader<ChildStdout>,
}

impl Pair {
    fn start(bytes: u64) -> anyhow::Result<Self> {
        let exe = std::env::current_exe()?;
        let mut victim = Command::new(&exe)
            .args(["pipeline-end", "victim", &bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let credits = victim.stdout.take().expect("its stdout is piped");
        let mut holder = Command::new(&exe)
            .args(["pipeline-end", "holder", &bytes.to_string()])
            .stdin(Stdio::from(credits))
            .stdout(Stdio::piped())
            .spawn()?;
        let victim_in = victim.stdin.take().expect("its stdin is piped");
        let holder_out = BufReader::new(holder.stdout.take().expect("its stdout is piped"));
        Ok(Self { bytes, victim, holder, victim_in, holder_out })
    }

    fn round(&mut self, chunk: u64) -> anyhow::Result<Round> {
        writeln!(self.victim_in, "{chunk}")?;
        let line = self.line()?;
        anyhow::ensure!(line == "ready", "the holder said '{line}'");
        writeln!(self.victim_in, "go")?;
        let line = self.line()?;
        let words: Vec<f64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| line.clone())?;
        let [switch_s, out_alone_s, in_alone_s, right] = words[..] else {
            anyhow::bail!("the holder said '{line}'")
        };
        Ok(Round { switch_s, out_alone_s, in_alone_s, right: right == 1.0 })
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.holder_out.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "a process of the pipeline ended early");
        Ok(line.trim().to_owned())
    }

    fn end(mut self) -> anyhow::Result<()> {
        writeln!(self.victim_in, "0")?;
        let (victim, holder) = (self.victim.wait()?, self.holder.wait()?);
        anyhow::ensure!(victim.success() && holder.success(), "pipeline: {victim}, {holder}");
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in [&mut self.victim, &mut self.holder] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `probe pipeline-end ROLE BYTES`.
pub(crate) fn end(role: Role, bytes: u64) -> anyhow::Result<()> {
    let work = Workbench::open()?;
    let arena = work.gpu.pinned(bytes)?;
    let lines = std::io::stdin().lock().lines();
    match role {
        Role::Victim => victim(&work, arena, lines, bytes),
        Role::Holder => holder(&work, arena, lines, bytes),
    }
}

type Input = Lines<StdinLock<'static>>;

fn next(lines: &mut Input) -> anyhow::Result<String> {
    Ok(lines.next().context("the other side of the pipeline ended")??)
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn victim(work: &Workbench, mut arena: Pinned, mut lines: Input, bytes: u64) -> anyhow::Result<()> {
    loop {
        let chunk: u64 = next(&mut lines)?.parse()?;
        say(&format!("chunk {chunk}"))?;
        if chunk == 0 {
            return Ok(());
        }
        let mut range = Range::filled(&work.gpu, bytes, chunk)?;
        work.fill(range.at, bytes, VICTIM_SEED)?;
        // The same copies alone: what a switch cannot beat.
        let alone = {
            let begin = monotonic_ns();
            for index in 0..range.count() {
                work.stream.copy_out(&arena, index as u64 * chunk, range.address(index), chunk)?;
            }
            work.stream.synchronize()?;
            monotonic_ns() - begin
        };
        // What is looked at afterwards must have come by the copies that are timed.
        let (words, step) = sampled(&mut arena);
        words.iter_mut().step_by(step).for_each(|word| *word = 0);
        say("ready")?;
        anyhow::ensure!(next(&mut lines)? == "go", "the victim waits for go");
        let begin = monotonic_ns();
        let mut queued = VecDeque::new();
        for index in 0..range.count() {
            work.stream.copy_out(&arena, index as u64 * chunk, range.address(index), chunk)?;
            let event = work.gpu.event()?;
            event.record(&work.stream)?;
            queued.push_back((index, event));
            if queued.len() == DEPTH {
                credit(&mut range, &mut queued)?;
            }
        }
        while !queued.is_empty() {
            credit(&mut range, &mut queued)?;
        }
        let words = arena.words();
        let step = (words.len() / 4096).max(1);
        let right =
            (0..words.len()).step_by(step).all(|i| words[i] == splitmix64(VICTIM_SEED + i as u64));
        say(&format!("end {begin} {alone} {}", u8::from(right)))?;
    }
}

/// The arena, and how far apart the words are that stand for all.
fn sampled(arena: &mut Pinned) -> (&mut [u64], usize) {
    let words = arena.words();
    let step = (words.len() / 65_536).max(1);
    (words, step)
}

/// Waits for the oldest copy, frees its chunk, and says so.
fn credit(
    range: &mut Range,
    queued: &mut VecDeque<(usize, crate::driver::device::Event)>,
) -> anyhow::Result<()> {
    let (index, event) = queued.pop_front().expect("called while something is queued");
    event.synchronize()?;
    range.take(index)?;
    say("c")
}

fn holder(work: &Workbench, mut arena: Pinned, mut lines: Input, bytes: u64) -> anyhow::Result<()> {
    let mut sum = 0u64;
    for (i, word) in arena.words().iter_mut().enumerate() {
        *word = splitmix64(HOLDER_SEED + i as u64);
        sum = sum.wrapping_add(*word);
    }
    loop {
        let line = next(&mut lines)?;
        let chunk: u64 = line.strip_prefix("chunk ").context("no chunk size")?.parse()?;
        if chunk == 0 {
            return Ok(());
        }
        // Copies in alone, to compare with.
        let alone = {
            let range = Range::filled(&work.gpu, bytes.min(GIB).max(chunk), chunk)?;
            let begin = monotonic_ns();
            for index in 0..range.count() {
                work.stream.copy_in(range.address(index), &arena, index as u64 * chunk, chunk)?;
            }
            work.stream.synchronize()?;
            (monotonic_ns() - begin) as f64 * (bytes as f64 / range.bytes as f64)
        };
        let mut range = Range::reserve(&work.gpu, bytes, chunk)?;
        anyhow::ensure!(next(&mut lines)? == "ready", "the victim is not ready");
        say("ready")?;
        for index in 0..range.count() {
            anyhow::ensure!(next(&mut lines)? == "c", "the victim gave no credit");
            range.put(index)?;
            work.stream.copy_in(range.address(index), &arena, index as u64 * chunk, chunk)?;
        }
        work.stream.synchronize()?;
        let finish = monotonic_ns();
        let line = next(&mut lines)?;
        let words: Vec<u64> = line
            .strip_prefix("end ")
            .context("the victim did not end")?
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [begin, out_alone, right] = words[..] else {
            anyhow::bail!("the victim said '{line}'")
        };
        let right = right == 1 && is_right(work, &range, bytes, sum)?;
        say(&format!(
            "{} {} {} {}",
            (finish - begin) as f64 / 1e9,
            out_alone as f64 / 1e9,
            alone / 1e9,
            u8::from(right)
        ))?;
    }
}

/// Compares the first words of every chunk, and all of them by their sum.
fn is_right(work: &Workbench, range: &Range, bytes: u64, sum: u64) -> anyhow::Result<bool> {
    let chunk = bytes / range.count() as u64;
    for index in 0..range.count() {
        let first = index as u64 * chunk / 8;
        let words = work.gpu.read(range.address(index), 16)?;
        if !words.iter().zip(first..).all(|(word, i)| *word == splitmix64(HOLDER_SEED + i)) {
            return Ok(false);
        }
    }
    Ok(work.sum(range.at, bytes)? == sum)
}
