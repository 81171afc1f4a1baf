//! Group `pinned`: how fast host memory is page-locked and given back, by the driver's own allocation
//! and by registering pages that several threads have touched before.

use std::time::Instant;

use crate::bench::{Bench, GIB, MIB, label};
use crate::driver::device::Gpu;
use crate::host::{self, Pages, Region};
use crate::parts::Parts;
use crate::row::Row;

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let gpu = Gpu::open()?;
    let pages = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    bench.text("transparent_huge_pages", pages.as_deref().unwrap_or("unknown").trim());
    // Seconds per byte of the slowest way so far, to know what the next size would take.
    let mut pace = 0f64;
    let sizes = [GIB, 4 * GIB, 16 * GIB].map(|size| bench.pick(size / 64, size));
    let part = |size: u64| format!("pin@{}", label(size));
    let weights = sizes.map(part).into_iter().zip([1.0, 1.0, 3.0]);
    let parts = Parts::new(bench, weights.chain([(PIECES.to_owned(), 1.0)]));
    for size in sizes {
        let repeats = if size <= GIB { bench.pick(1, 3) } else { 1 };
        let measured = parts.run(&part(size), |limit| {
            anyhow::ensure!(
                size <= GIB || !bench.simulated,
                "the software GPU pins nothing: more of it shows nothing"
            );
            possible(size, pace, limit)?;
            let begin = Instant::now();
            allocated(bench, &gpu, size, repeats)?;
            registered(bench, &gpu, size, repeats)?;
            pace = begin.elapsed().as_secs_f64() / (size * repeats as u64) as f64;
            Ok(())
        });
        if let Err(error) = measured {
            for name in ["allocate", "free", "touch", "register", "prepare", "unregister"] {
                bench.missing(&place(name, size), "GiB/s", format!("{error:#}"));
            }
        }
    }
    parts.run(PIECES, |_| {
        small_pages(bench, &gpu, bench.pick(64 * MIB, GIB))?;
        pieces(bench, &gpu, bench.pick(64 * MIB, GIB))
    })
}

/// The part with small pages, and with pieces.
const PIECES: &str = "pieces";

fn place(name: &str, size: u64) -> String {
    format!("pin.{name}_gib_per_s@{}", label(size))
}

/// That a size fits the host, and the time.
fn possible(size: u64, pace: f64, limit: f64) -> anyhow::Result<()> {
    let available = host::available_memory();
    let gib = available as f64 / GIB as f64;
    anyhow::ensure!(size as f64 <= available as f64 * 0.45, "the host has {gib:.1} GiB available");
    let expected = pace * size as f64 * 1.3;
    anyhow::ensure!(expected <= limit, "would take {expected:.0} s of {limit:.0}");
    Ok(())
}

fn rates(size: u64, seconds: &[f64]) -> Vec<f64> {
    seconds.iter().map(|s| size as f64 / GIB as f64 / s).collect()
}

fn allocated(bench: &Bench, gpu: &Gpu, size: u64, repeats: usize) -> anyhow::Result<()> {
    let (mut allocate, mut free) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        let at = Instant::now();
        let memory = gpu.pinned(size)?;
        allocate.push(at.elapsed().as_secs_f64());
        let at = Instant::now();
        memory.free()?;
        free.push(at.elapsed().as_secs_f64());
    }
    bench.sample(&place("allocate", size), "GiB/s", &rates(size, &allocate));
    bench.sample(&place("free", size), "GiB/s", &rates(size, &free));
    Ok(())
}

fn registered(bench: &Bench, gpu: &Gpu, size: u64, repeats: usize) -> anyhow::Result<()> {
    let threads = host::cores().min(16);
    let (mut touch, mut register, mut prepare, mut unregister) = (vec![], vec![], vec![], vec![]);
    for _ in 0..repeats {
        let begin = Instant::now();
        let mut region = Region::map(size, Pages::Huge)?;
        region.touch(threads);
        touch.push(begin.elapsed().as_secs_f64());
        let at = Instant::now();
        region.register(gpu.driver)?;
        register.push(at.elapsed().as_secs_f64());
        prepare.push(begin.elapsed().as_secs_f64());
        let at = Instant::now();
        region.unregister(gpu.driver)?;
        unregister.push(at.elapsed().as_secs_f64());
    }
    let touched = Row::sample(bench.group, &place("touch", size), "GiB/s", &rates(size, &touch));
    bench.row(touched.note(format!("{threads} threads, huge pages")));
    bench.sample(&place("register", size), "GiB/s", &rates(size, &register));
    bench.sample(&place("prepare", size), "GiB/s", &rates(size, &prepare));
    bench.sample(&place("unregister", size), "GiB/s", &rates(size, &unregister));
    Ok(())
}

/// The same with 4 KiB pages, touched by one thread: what huge pages and threads are worth.
fn small_pages(bench: &Bench, gpu: &Gpu, size: u64) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut region = Region::map(size, Pages::Small)?;
    region.touch(1);
    let touch = begin.elapsed().as_secs_f64();
    let at = Instant::now();
    region.register(gpu.driver)?;
    let register = at.elapsed().as_secs_f64();
    region.unregister(gpu.driver)?;
    bench.sample("small_pages_touch_gib_per_s", "GiB/s", &rates(size, &[touch]));
    bench.sample("small_pages_register_gib_per_s", "GiB/s", &rates(size, &[register]));
    Ok(())
}

/// The same in pieces of 64 MiB: how an arena would grow.
fn pieces(bench: &Bench, gpu: &Gpu, size: u64) -> anyhow::Result<()> {
    let piece = 64 * MIB;
    let threads = host::cores().min(16);
    let mut regions = Vec::new();
    let mut register = Vec::new();
    for _ in 0..size / piece {
        let mut region = Region::map(piece, Pages::Huge)?;
        region.touch(threads);
        let at = Instant::now();
        region.register(gpu.driver)?;
        register.push(at.elapsed().as_secs_f64());
        regions.push(region);
    }
    for region in &mut regions {
        region.unregister(gpu.driver)?;
    }
    bench.sample("register_in_64mib_gib_per_s", "GiB/s", &rates(piece, &register));
    Ok(())
}
