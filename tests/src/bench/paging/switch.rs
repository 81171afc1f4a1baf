//! Figures of a single switch: page-out, page-in, both at once, unchanged memory, pinning.
//!
//! Owns: who uses the GPU when, and what follows from the times that the programs themselves saw. Does not
//! own: the programs (tests/workloads/src/bin/on_request.rs, copy_rate.rs).

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::assigner;
use super::gpu::{CHUNK, OWN, Scaled};
use crate::bench::clock;
use crate::bench::figure::{Figure, Sample};
use crate::bench::measure::Effort;
use crate::bench::outside::{OnRequest, Outside};
use crate::bench::status::MemoryStatus;
use crate::bench::wire_client::WireClient;
use crate::lab::Prefix;

/// Of the GPU's memory, what each program has.
const SHARE: f64 = 0.95;
/// Blocks that a program allocates it in.
const BLOCKS: u64 = 8;

/// Bytes per second of plain copies between pinned memory and the GPU.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Plain {
    out_per_s: f64,
    in_per_s: f64,
}

impl Plain {
    /// Measured by a program that is alone on the GPU, without the interposer.
    fn measure(outside: &Outside, prefix: &Prefix) -> Result<Self> {
        let output =
            outside.plain(prefix.test_program("copy_rate")).output().context("run copy_rate")?;
        if !output.status.success() {
            bail!("copy_rate failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("copy_rate's output")
    }
}

/// What one pair of programs showed.
struct Pair {
    first: Moved,
    page_in: Moved,
    /// The GPU from one program to the other, both having written to all of their memory.
    switches: Vec<Moved>,
    /// Nanoseconds that both spent on pinning in a switch.
    pin_in_switch_ns: u64,
}

/// What a switch moved, as the programs' pagers report, in the time that the programs saw.
struct Moved {
    seconds: f64,
    out: u64,
    inward: u64,
}

impl Moved {
    fn out_per_s(&self) -> f64 {
        self.out as f64 / self.seconds
    }

    fn in_per_s(&self) -> f64 {
        self.inward as f64 / self.seconds
    }
}

impl std::fmt::Display for Moved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seconds, out, inward } = self;
        write!(f, "{} MiB out, {} MiB in, {:.0} ms", out >> 20, inward >> 20, seconds * 1e3)
    }
}

/// Page-out, page-in and switch of the whole GPU, and the pinning in them.
///
/// # Errors
/// A program fails, or finds wrong data.
pub fn switches(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    let gpu = Scaled::of_16_gb(64, 64.0);
    let outside = assigner(prefix, &gpu, &[])?;
    let plain = Plain::measure(&outside, prefix)?;
    let count = if effort == Effort::Quick { 1 } else { 3 };
    let pairs = (0..count)
        .map(|_| pair(&outside, &gpu))
        .collect::<Result<Vec<_>>>()
        .with_context(|| outside.log())?;
    let sample = |values: Vec<f64>| Sample::new(values).context("nothing was measured");
    let outs = sample(pairs.iter().map(|p| p.first.out_per_s() / plain.out_per_s).collect())?;
    let ins = sample(pairs.iter().map(|p| p.page_in.in_per_s() / plain.in_per_s).collect())?;
    let slower = plain.out_per_s.min(plain.in_per_s);
    let switches = pairs.iter().flat_map(|p| &p.switches);
    let ratios = sample(switches.map(|moved| slower / moved.out_per_s()).collect())?;
    let pinned: u64 = pairs.iter().map(|p| p.pin_in_switch_ns).sum();
    let compared = format!(
        "plain pinned copies out {:.1}, in {:.1} MB/s",
        plain.out_per_s / 1e6,
        plain.in_per_s / 1e6
    );
    let figure = |name, value, unit, how: String| Figure { name, value, unit, how };
    let first = &pairs[0];
    Ok(vec![
        figure(
            "page_out_share",
            outs.median(),
            "share",
            format!(
                "first switch of new programs, end of a kernel to the next program's first call: {}; {compared}; {}",
                first.first,
                outs.spread()
            ),
        ),
        figure(
            "page_in_share",
            ins.median(),
            "share",
            format!("call to return: {}; {compared}; {}", first.page_in, ins.spread()),
        ),
        figure(
            "switch_ratio",
            ratios.median(),
            "ratio",
            format!(
                "all of both changed, against a plain copy of what leaves: {}; {compared}; {}",
                first.switches[0],
                ratios.spread()
            ),
        ),
        figure(
            "pin_in_switch_ms",
            pinned as f64 / 1e6,
            "ms",
            format!("in {} switches, the first of each pair included", pairs.len() * 5),
        ),
    ])
}

/// A new pair of programs: the first has the GPU, the second comes while it computes.
fn pair(outside: &Outside, gpu: &Scaled) -> Result<Pair> {
    let bytes = gpu.share(SHARE, BLOCKS);
    let allocate = format!("alloc {BLOCKS} {}", bytes / BLOCKS);
    let mut second = outside.on_request()?;
    let mut first = outside.on_request()?;
    first.ask(&allocate)?;
    first.ask("fill")?;
    first.ask("step")?;
    // The arena of the first is pinned while it computes, as phases of the original do.
    let computing = gpu.pin_time(bytes) + Duration::from_secs(1);
    first.ask(&format!("spin {}", computing.as_nanos()))?;
    second.ask(&allocate)?;
    second.request("fill")?;
    // At least what does not fit beside the other's.
    let least = 2 * bytes - gpu.memory;
    let change = Change { outside, least };
    let first_switch = change.hand_over(&mut first, &mut second)?;

    second.ask("step")?;
    let mut switches = vec![];
    for turn in 0..3 {
        let (from, to) = match turn % 2 {
            0 => (&mut second, &mut first),
            _ => (&mut first, &mut second),
        };
        from.ask("spin 100M")?;
        to.request("nop")?;
        switches.push(change.hand_over(from, to)?);
        to.ask("check")?;
        to.ask("step")?;
    }
    // The first program has everything; the second takes the GPU, and gives all of its memory back.
    first.ask("spin 100M")?;
    second.request("nop")?;
    change.hand_over(&mut first, &mut second)?;
    second.ask("check")?;
    second.ask("free 0")?;
    second.ask("sync")?;
    first.request("nop")?;
    let page_in = change.come_in(&mut first)?;
    first.ask("compare")?;
    let pin_in_switch_ns =
        moved(outside, &first)?.pin_in_switch_ns + moved(outside, &second)?.pin_in_switch_ns;
    Ok(Pair { first: first_switch, page_in, switches, pin_in_switch_ns })
}

/// Watches the GPU go from program to program.
struct Change<'a> {
    outside: &'a Outside,
    /// Bytes that a switch moves at least.
    least: u64,
}

impl Change<'_> {
    /// From the end of what `from` computes until `to`, which has asked for the GPU, has it.
    fn hand_over(&self, from: &mut OnRequest, to: &mut OnRequest) -> Result<Moved> {
        let (out, inward) =
            (moved(self.outside, from)?.paged_out, moved(self.outside, to)?.paged_in);
        let done = from.ask("sync")?.got_ns;
        let got = to.answer()?.got_ns;
        if got < done {
            bail!("two programs had the GPU at a time");
        }
        let after = reported(self.outside, from, |memory| memory.paged_out >= out + self.least)?;
        // What comes in is reported by the time that it is on its way out again.
        let inward = moved(self.outside, to)?.paged_in - inward;
        Ok(Moved { seconds: (got - done) as f64 / 1e9, out: after.paged_out - out, inward })
    }

    /// From the call of a program, on a GPU that has room for it, until the call returns.
    fn come_in(&self, program: &mut OnRequest) -> Result<Moved> {
        let before = moved(self.outside, program)?.paged_in;
        let seconds = program.answer()?.took().as_secs_f64();
        let after = reported(self.outside, program, |m| m.paged_in >= before + self.least)?;
        Ok(Moved { seconds, out: 0, inward: after.paged_in - before })
    }
}

/// Memory that was read and not written: what its page-out copies, and how long it takes. Who takes the room
/// speaks the protocol itself and has nothing to map or to copy: the time is that of the page-out alone.
///
/// # Errors
/// A program fails, or finds wrong data.
pub fn unchanged(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    // The hash kernel runs on a processor here: so slow a GPU that one core keeps up with its memory.
    let gpu = Scaled::of_16_gb(64, 192.0);
    let outside = assigner(prefix, &gpu, &[])?;
    let bytes = gpu.share(0.9, BLOCKS);
    let mut taker = WireClient::join(&outside)?;
    let mut owner = outside.on_request()?;
    let mut other = outside.on_request()?;
    let allocate = format!("alloc {BLOCKS} {}", bytes / BLOCKS);
    owner.ask(&allocate)?;
    owner.ask("fill")?;
    // Another claim, which is never used: so the owner's arena is pinned before anything is paged out.
    let computing = gpu.pin_time(bytes) + Duration::from_secs(1);
    owner.ask(&format!("spin {}", computing.as_nanos()))?;
    other.ask(&allocate)?;
    reported(&outside, &owner, |memory| memory.arena >= bytes)?;
    owner.ask("sync")?;
    // All but what the contexts take. A chunk or two may stay.
    let room = (gpu.memory - 2 * (gpu.context + OWN)) / CHUNK * CHUNK;
    let least = bytes - 2 * CHUNK;
    let mut evict = |owner: &OnRequest| -> Result<(f64, u64)> {
        let before = moved(&outside, owner)?;
        let epoch = taker.acquire()?;
        let begin = clock::monotonic_ns();
        taker.claim(room)?;
        let took = (clock::monotonic_ns() - begin) as f64 / 1e9;
        let least = before.paged_out + before.clean + least;
        let after = reported(&outside, owner, |m| m.paged_out + m.clean >= least)?;
        taker.give_up(room)?;
        taker.release(epoch)?;
        Ok((took, after.paged_out - before.paged_out))
    };
    let (full, copied) = evict(&owner)?;
    if copied < least {
        bail!(
            "of memory that was never on the host, {copied} bytes were copied instead of {bytes}"
        );
    }
    let (mut times, mut copied) = (vec![], 0);
    let count = if effort == Effort::Quick { 1 } else { 4 };
    for _ in 0..count {
        // Reads all of it; sums would be written somewhere.
        owner.ask("compare")?;
        let (took, bytes) = evict(&owner)?;
        times.push(took);
        copied += bytes;
    }
    owner.ask("compare")?;
    let ratios = Sample::new(times.iter().map(|time| time / full).collect());
    let ratios = ratios.context("nothing was measured")?;
    let how = format!(
        "{} MiB, read after their page-in; full page-out {:.0} ms; {}",
        bytes >> 20,
        full * 1e3,
        ratios.spread()
    );
    let figure = |name, value, unit| Figure { name, value, unit, how: how.clone() };
    Ok(vec![
        figure("clean_bytes", copied as f64, "bytes"),
        figure("clean_time_ratio", ratios.median(), "ratio"),
    ])
}

/// What a program has moved so far, once it is so much.
fn reported(
    outside: &Outside,
    program: &OnRequest,
    enough: impl Fn(&MemoryStatus) -> bool,
) -> Result<MemoryStatus> {
    // The report comes after the last chunk.
    let status = outside.wait_for("the move is reported", |status| {
        status.client(program.pid()).is_some_and(|client| enough(&client.memory()))
    })?;
    let client = status.client(program.pid()).context("the program is gone")?;
    Ok(client.memory())
}

/// What a program has moved so far.
fn moved(outside: &Outside, program: &OnRequest) -> Result<MemoryStatus> {
    let status = outside.status()?.context("the assigner does not answer")?;
    let client = status.client(program.pid()).context("the assigner does not know the program")?;
    Ok(client.memory())
}
