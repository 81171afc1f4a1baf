//! Group `link`: page-locked copies out, in, and both at once, by block size and number of streams;
//! then page-out of one process beside page-in of another (`groups::pipeline`).

use std::time::Instant;

use anyhow::Context;

use super::pipeline;
use crate::bench::{Bench, GIB, MIB, Workbench, label};
use crate::driver::device::{DeviceMemory, Event, Gpu, Pinned, Stream};
use crate::pace::{Load, Pace};
use crate::parts::Parts;
use crate::reference::splitmix64;
use crate::row::Row;

/// Blocks of a switch that are compared.
pub(crate) const SWITCHED: [u64; 5] = [2 * MIB, 8 * MIB, 32 * MIB, 64 * MIB, 256 * MIB];

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let gpu = Gpu::open()?;
    bench.text("pcie", pcie(&gpu));
    let size = size(bench, &gpu)?;
    let blocks = bench.chunks(2 * size);
    let copies = blocks.iter().map(|block| (format!("copy@{}", label(*block)), 1.0));
    let switches = SWITCHED.iter().map(|chunk| (format!("pipeline@{}", label(*chunk)), 1.0));
    let names = copies.chain([(DUPLEX.to_owned(), 1.0)]).chain(switches);
    let parts = Parts::new(bench, names);
    plain(bench, &parts, &blocks, size)?;
    pipeline::run(bench, &parts)
}

/// The part with both directions at once, after which all that was copied is compared.
const DUPLEX: &str = "duplex";

/// Bytes on both sides for each direction.
fn size(bench: &Bench, gpu: &Gpu) -> anyhow::Result<u64> {
    let device = bench.device_bytes(gpu, 2 * GIB, 0.3)? / 2;
    let size = device.min(bench.host_bytes(GIB, 0.2)).next_power_of_two();
    Ok(if size > device { size / 2 } else { size })
}

/// How often a block's line copies its volume: out, in, both, with one stream and with two.
const WAYS: u64 = 8;

/// What a line copies each time, and how often, so that it ends within its limit: a slow machine copies less, but every block once.
fn amount(bench: &Bench, pace: &Pace, limit: f64, block: u64, size: u64) -> (u64, usize) {
    let load = |repeats: usize| Load {
        fixed: 0.0,
        crossings: (WAYS * (repeats as u64 + 1)) as f64,
        handled: 0.0,
    };
    let most = bench.pick(size, size.max(2 * GIB));
    let fits = |repeats| pace.fitting(limit, load(repeats)).min(most) / block * block;
    let often = [bench.pick(2, 5), 2].into_iter().find(|repeats| fits(*repeats) >= 4 * block);
    often.map_or((block, 1), |repeats| (fits(repeats), repeats))
}

/// Speed and width of the GPU's link, as the kernel says.
fn pcie(gpu: &Gpu) -> String {
    let Ok(pci) = gpu.pci() else { return "unknown".into() };
    let read = |name: &str| {
        // CUDA writes eight digits for the domain, /sys four.
        let short = pci.get(pci.len().saturating_sub(12)..).unwrap_or(&pci);
        let file = format!("/sys/bus/pci/devices/{short}/{name}");
        std::fs::read_to_string(file).map_or("unknown".into(), |text| text.trim().to_owned())
    };
    format!(
        "{pci}: {} x{} (at most {} x{}), NUMA node {}",
        read("current_link_speed"),
        read("current_link_width"),
        read("max_link_speed"),
        read("max_link_width"),
        read("numa_node"),
    )
}

/// Memory on both sides for both directions.
struct Ends {
    host_out: Pinned,
    host_in: Pinned,
    device_out: DeviceMemory,
    device_in: DeviceMemory,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Device to host.
    Out,
    /// Host to device.
    In,
}

fn plain(bench: &Bench, parts: &Parts, blocks: &[u64], size: u64) -> anyhow::Result<()> {
    let work = Workbench::open()?;
    let mut ends = Ends {
        host_out: work.gpu.pinned(size)?,
        host_in: work.gpu.pinned(size)?,
        device_out: work.gpu.allocate(size)?,
        device_in: work.gpu.allocate(size)?,
    };
    for (i, word) in ends.host_in.words().iter_mut().enumerate() {
        *word = splitmix64(i as u64);
    }
    work.fill(ends.device_out.at, size, 77)?;
    let streams = [work.gpu.stream()?, work.gpu.stream()?, work.gpu.stream()?, work.gpu.stream()?];
    let mut pace = bench.sizes()?.pace(bench.simulated);
    for block in blocks.iter().copied() {
        let kinds: [(&str, &[Way], usize); 6] = [
            ("out_1", &[Way::Out], 1),
            ("in_1", &[Way::In], 1),
            ("both_1", &[Way::Out, Way::In], 1),
            ("out_2", &[Way::Out], 2),
            ("in_2", &[Way::In], 2),
            ("both_2", &[Way::Out, Way::In], 2),
        ];
        let column = |name: &str| format!("copy.{name}_gb_per_s@{}", label(block));
        let measured = parts.run(&format!("copy@{}", label(block)), |limit| {
            let begin = Instant::now();
            let (volume, repeats) = amount(bench, &pace, limit, block, size);
            for (name, ways, count) in kinds {
                let mut rates = Vec::new();
                for repeat in 0..=repeats {
                    let shape = Shape { block, volume, streams: count };
                    let seconds = copies(&work.gpu, &streams, &ends, ways, shape)?;
                    if repeat > 0 {
                        rates.push((volume * ways.len() as u64) as f64 / seconds / 1e9);
                    }
                }
                let note = format!("{} each way at a time", label(volume));
                bench.row(Row::sample(bench.group, &column(name), "GB/s", &rates).note(note));
            }
            let crossings = (WAYS * (repeats as u64 + 1)) as f64;
            let load = Load { fixed: 0.0, crossings, handled: 0.0 };
            pace.learn(volume, load, begin.elapsed().as_secs_f64());
            Ok(())
        });
        if let Err(error) = measured {
            for (name, ..) in kinds {
                bench.missing(&column(name), "GB/s", format!("{error:#}"));
            }
        }
    }
    let both = parts.run(DUPLEX, |limit| {
        // Of each direction there is at least the whole, to be compared.
        let load = Load { fixed: 1.0, crossings: bench.pick(3.0, 6.0), handled: 2.0 };
        let volume = pace.fitting(limit, load).clamp(size, size.max(2 * GIB)) / size * size;
        duplex(bench, &work.gpu, &streams, &ends, size, bench.pick(size, volume))
    });
    if let Err(error) = both {
        for name in ["duplex_out_gb_per_s", "duplex_in_gb_per_s"] {
            bench.missing(name, "GB/s", format!("{error:#}"));
        }
        bench.missing("copied_bytes", "text", format!("{error:#}"));
        return Ok(());
    }
    if bench.ended.contains(DUPLEX) {
        return Ok(());
    }
    // What the copies left must be what the other side had.
    let right_out = ends
        .host_out
        .words()
        .iter()
        .enumerate()
        .all(|(i, word)| *word == splitmix64(77 + i as u64));
    let back = work.gpu.read(ends.device_in.at, size / 8)?;
    let right_in = back.iter().zip(ends.host_in.words().iter()).all(|(a, b)| a == b);
    bench.row(
        Row::text(
            bench.group,
            "copied_bytes",
            if right_out && right_in { "right" } else { "WRONG" },
        )
        .verified(right_out && right_in)
        .note(format!("{} each way compared word by word", label(size))),
    );
    Ok(())
}

#[derive(Clone, Copy)]
struct Shape {
    block: u64,
    volume: u64,
    /// Streams of each direction.
    streams: usize,
}

/// Device seconds for `volume` bytes in each of the directions, all streams started by one event.
fn copies(
    gpu: &Gpu,
    streams: &[Stream; 4],
    ends: &Ends,
    ways: &[Way],
    shape: Shape,
) -> anyhow::Result<f64> {
    let begin = gpu.event()?;
    begin.record(&streams[0])?;
    let mut finish = Vec::new();
    for (w, way) in ways.iter().enumerate() {
        for s in 0..shape.streams {
            let stream = &streams[2 * w + s];
            stream.wait(&begin)?;
        }
        for piece in 0..shape.volume / shape.block {
            queue(
                &streams[2 * w + piece as usize % shape.streams],
                ends,
                *way,
                piece,
                shape.block,
            )?;
        }
        for s in 0..shape.streams {
            let event = gpu.event()?;
            event.record(&streams[2 * w + s])?;
            finish.push(event);
        }
    }
    latest(&begin, &finish)
}

fn queue(stream: &Stream, ends: &Ends, way: Way, piece: u64, block: u64) -> anyhow::Result<()> {
    let at = piece * block % ends.host_in.bytes;
    match way {
        Way::In => stream.copy_in(ends.device_in.at + at, &ends.host_in, at, block)?,
        Way::Out => stream.copy_out(&ends.host_out, at, ends.device_out.at + at, block)?,
    }
    Ok(())
}

fn latest(begin: &Event, events: &[Event]) -> anyhow::Result<f64> {
    let mut seconds = 0f64;
    for event in events {
        event.synchronize()?;
        seconds = seconds.max(event.seconds_since(begin)?);
    }
    Ok(seconds)
}

/// Rate of each direction while both are busy: only what is done before the faster one ends counts.
fn duplex(
    bench: &Bench,
    gpu: &Gpu,
    streams: &[Stream; 4],
    ends: &Ends,
    size: u64,
    volume: u64,
) -> anyhow::Result<()> {
    let block = (16 * MIB).min(size / 16).max(MIB);
    let (mut out, mut within) = (Vec::new(), Vec::new());
    for repeat in 0..=bench.pick(2, 5) {
        let begin = gpu.event()?;
        begin.record(&streams[0])?;
        let mut done: [Vec<Event>; 2] = Default::default();
        for stream in [&streams[0], &streams[2]] {
            stream.wait(&begin)?;
        }
        for piece in 0..volume / block {
            for (w, way) in [Way::Out, Way::In].into_iter().enumerate() {
                queue(&streams[2 * w], ends, way, piece, block)?;
                let event = gpu.event()?;
                event.record(&streams[2 * w])?;
                done[w].push(event);
            }
        }
        let mut times: [Vec<f64>; 2] = Default::default();
        for w in 0..2 {
            for event in &done[w] {
                event.synchronize()?;
                times[w].push(event.seconds_since(&begin)?);
            }
        }
        let end = |w: usize| times[w].last().copied().context("no block was copied");
        let both = end(0)?.min(end(1)?);
        let rate = |w: usize| {
            let blocks = times[w].iter().filter(|time| **time <= both).count();
            (blocks as u64 * block) as f64 / both / 1e9
        };
        if repeat > 0 {
            out.push(rate(0));
            within.push(rate(1));
        }
    }
    bench.sample("duplex_out_gb_per_s", "GB/s", &out);
    bench.sample("duplex_in_gb_per_s", "GB/s", &within);
    Ok(())
}
