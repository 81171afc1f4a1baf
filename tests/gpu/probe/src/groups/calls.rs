//! Group `calls`: what a launch costs, direct and through the interposer with the lease held; from one
//! process's release to the grant of the next one.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::assigner::Assigner;
use crate::bench::{Bench, MIB, Workbench};
use crate::child;
use crate::driver::device::Grid;
use crate::lease;
use crate::parts::Parts;
use crate::row::Row;
use crate::stats::{Spread, quantile};

/// What `launch-cost` prints.
#[derive(Serialize, Deserialize)]
struct Cost {
    /// Where `libcuda.so.1` came from: the interposer or the driver.
    library: PathBuf,
    launch_ns: Spread,
    synchronize_ns: Spread,
    copy_8_bytes_ns: Spread,
    allocate_free_us: Spread,
}

/// The parts of the group.
const LAUNCHES: &str = "launches";
const GRANTS: &str = "grants";

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let parts = Parts::new(bench, [(LAUNCHES.to_owned(), 2.0), (GRANTS.to_owned(), 1.0)]);
    parts.run(LAUNCHES, |_| launches(bench))?;
    parts.run(GRANTS, |_| match Assigner::start(bench) {
        Ok(assigner) => grants(bench, &assigner),
        Err(error) => {
            for name in ["grant_us", "grant_p50_us", "grant_p99_us"] {
                bench.missing(name, "us", format!("{error:#}"));
            }
            Ok(())
        }
    })
}

fn launches(bench: &Bench) -> anyhow::Result<()> {
    let exe = std::env::current_exe()?;
    let direct = |limit: u64| cost(Command::new(&exe), bench, limit);
    let assigner = match Assigner::start(bench) {
        Ok(assigner) => assigner,
        Err(error) => {
            only_direct(bench, direct(20)?, &format!("{error:#}"));
            return Ok(());
        }
    };
    let (mut plain, mut shimmed, mut added) = (vec![], vec![], vec![]);
    let mut last = None;
    for _ in 0..bench.pick(1, 3) {
        let without = direct(20)?;
        let with =
            match cost(assigner.run(&exe), bench, 20).and_then(|cost| interposed(bench, cost)) {
                Ok(with) => with,
                Err(error) => {
                    only_direct(bench, without, &assigner.explain(error).to_string());
                    return Ok(());
                }
            };
        plain.push(without.launch_ns.median);
        shimmed.push(with.launch_ns.median);
        added.push(with.launch_ns.median - without.launch_ns.median);
        last = Some((without, with));
    }
    let process = "median of each process's medians, by turns";
    let group = bench.group;
    bench.row(Row::sample(group, "launch_direct_ns", "ns", &plain).note(process));
    bench.row(Row::sample(group, "launch_interposed_ns", "ns", &shimmed).note(process));
    bench.row(Row::sample(group, "launch_added_ns", "ns", &added).note("lease held, nobody waits"));
    let (without, with) = last.context("no pair of processes was measured")?;
    pairs(bench, &without, Some(&with));
    let unaided =
        cost(assigner.run_unaided(&exe), bench, 20).and_then(|cost| interposed(bench, cost));
    bench.row(match unaided {
        Ok(_) => Row::text(group, "interposer_finds_driver", "yes"),
        Err(error) => Row::text(group, "interposer_finds_driver", "no").note(format!("{error:#}")),
    });
    Ok(())
}

fn only_direct(bench: &Bench, direct: Cost, why: &str) {
    bench.row(Row::spread(bench.group, "launch_direct_ns", "ns", Some(direct.launch_ns)));
    pairs(bench, &direct, None);
    for name in ["launch_interposed_ns", "launch_added_ns"] {
        bench.missing(name, "ns", why);
    }
}

fn pairs(bench: &Bench, direct: &Cost, interposed: Option<&Cost>) {
    type Field = fn(&Cost) -> Spread;
    let fields: [(&str, &str, Field); 3] = [
        ("synchronize", "ns", |cost| cost.synchronize_ns),
        ("copy_8_bytes", "ns", |cost| cost.copy_8_bytes_ns),
        ("allocate_free_2mib", "us", |cost| cost.allocate_free_us),
    ];
    for (name, unit, field) in fields {
        let place = |kind: &str| format!("{name}_{kind}_{unit}");
        bench.row(Row::spread(bench.group, &place("direct"), unit, Some(field(direct))));
        if let Some(cost) = interposed {
            bench.row(Row::spread(bench.group, &place("interposed"), unit, Some(field(cost))));
        }
    }
}

fn cost(mut command: Command, bench: &Bench, limit: u64) -> anyhow::Result<Cost> {
    command.arg("launch-cost");
    if bench.pick(true, false) {
        command.arg("--quick");
    }
    let mut printed = String::new();
    let ending =
        child::run(&mut command, Duration::from_secs(limit), |line| printed = line.to_owned())?;
    anyhow::ensure!(ending.is_success(), "launch-cost: {}", ending.why());
    serde_json::from_str(&printed).with_context(|| format!("launch-cost printed '{printed}'"))
}

/// The cost, if it was the interposer's.
fn interposed(bench: &Bench, cost: Cost) -> anyhow::Result<Cost> {
    let folder = bench.installed("lib/acb").context("there is no lib/acb under --prefix")?;
    let folder = std::fs::canonicalize(folder)?;
    let library = std::fs::canonicalize(&cost.library)?;
    anyhow::ensure!(
        library.starts_with(&folder),
        "the interposer is not in place under agarun: libcuda.so.1 is {}",
        library.display()
    );
    Ok(cost)
}

/// `probe launch-cost`: host time of calls that do next to nothing on the device.
pub(crate) fn launch_cost(quick: bool) -> anyhow::Result<()> {
    let work = Workbench::open()?;
    let nop = work.kernel("acb_nop")?;
    let block = work.gpu.allocate(4096)?;
    let (batches, batch) = if quick { (20, 50) } else { (400, 100) };
    let (mut launch, mut synchronize, mut copy, mut memory) = (vec![], vec![], vec![], vec![]);
    // The first batches load the kernel and fill caches.
    let warm = batches / 10;
    for repeat in 0..warm + batches {
        let begin = Instant::now();
        for _ in 0..batch {
            nop.launch(&work.stream, Grid(1, 1, 32), &[])?;
        }
        let each = begin.elapsed().as_nanos() as f64 / f64::from(batch);
        work.stream.synchronize()?;
        let begin = Instant::now();
        work.stream.synchronize()?;
        let idle = begin.elapsed().as_nanos() as f64;
        let begin = Instant::now();
        work.gpu.write(block.at, &[1])?;
        let small = begin.elapsed().as_nanos() as f64;
        if repeat >= warm {
            launch.push(each);
            synchronize.push(idle);
            copy.push(small);
        }
    }
    for _ in 0..batches / 4 {
        let begin = Instant::now();
        work.gpu.allocate(2 * MIB)?.free()?;
        memory.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    let spread = |sample: &[f64]| Spread::of(sample).context("no measurement");
    let cost = Cost {
        library: work.gpu.driver.path().context("dladdr does not know cuInit")?,
        launch_ns: spread(&launch)?,
        synchronize_ns: spread(&synchronize)?,
        copy_8_bytes_ns: spread(&copy)?,
        allocate_free_us: spread(&memory)?,
    };
    println!("{}", serde_json::to_string(&cost)?);
    Ok(())
}

/// Two clients that speak the protocol themselves take turns at the lease.
fn grants(bench: &Bench, assigner: &Assigner) -> anyhow::Result<()> {
    match grant_latencies(bench, assigner) {
        Ok(mut us) => {
            us.sort_by(f64::total_cmp);
            let group = bench.group;
            bench
                .row(Row::sample(group, "grant_us", "us", &us).note(
                    "one process releases, another that waits is granted; both on this host",
                ));
            bench.value("grant_p50_us", "us", quantile(&us, 0.5));
            bench.value("grant_p99_us", "us", quantile(&us, 0.99));
        }
        Err(error) => {
            let why = assigner.explain(error);
            for name in ["grant_us", "grant_p50_us", "grant_p99_us"] {
                bench.missing(name, "us", &why);
            }
        }
    }
    Ok(())
}

fn grant_latencies(bench: &Bench, assigner: &Assigner) -> anyhow::Result<Vec<f64>> {
    let rounds = bench.pick(100, 2000);
    let exe = std::env::current_exe()?;
    let peer = || {
        let mut command = assigner.run(&exe);
        std::thread::spawn(move || -> anyhow::Result<Vec<lease::Turn>> {
            command.arg("lease-peer").arg(rounds.to_string());
            let mut turns = Vec::new();
            let ending = child::run(&mut command, Duration::from_secs(20), |line| {
                turns.extend(line.parse::<lease::Turn>());
            })?;
            anyhow::ensure!(ending.is_success(), "a client: {}", ending.why());
            Ok(turns)
        })
    };
    let (one, other) = (peer(), peer());
    let join = |thread: std::thread::JoinHandle<anyhow::Result<Vec<lease::Turn>>>| {
        thread.join().unwrap_or_else(|_| anyhow::bail!("a client's thread panicked"))
    };
    let latencies = lease::latencies_us(&join(one)?, &join(other)?);
    anyhow::ensure!(!latencies.is_empty(), "the two clients never waited for each other");
    Ok(latencies)
}
