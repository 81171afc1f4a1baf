//! Group `sharing`: two programs with alternating CPU and GPU phases on one GPU, under an assigner:
//! throughput against one after the other, and against the bound. On the driver API and on PyTorch; with memory for both, with
//! 95 % of it for each, so that every turn swaps, and so with as much memory as there is time for; and two PyTorch trainings that
//! use nothing but the GPU. Where turns are to swap, a run in which nothing was swapped is wrong.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::frameworks::Python;
use crate::assigner::Assigner;
use crate::bench::{Bench, GIB, MIB, about};
use crate::child;
use crate::crowd::Crowd;
use crate::host;
use crate::moved::{gib, while_watched};
use crate::pace::{Load, Pace};
use crate::parts::Parts;
use crate::phases::{Report, bound, rounds_per_s};
use crate::row::Row;
use crate::stats::Spread;

/// Programs that share.
const CLIENTS: usize = 2;

const COLUMNS: [(&str, &str); 10] = [
    ("cpu_s", "s"),
    ("gpu_s", "s"),
    ("serial_rounds_per_s", "1/s"),
    ("unmanaged_rounds_per_s", "1/s"),
    ("shared_rounds_per_s", "1/s"),
    ("bound_rounds_per_s", "1/s"),
    ("shared_over_serial", "ratio"),
    ("bound_over_serial", "ratio"),
    ("share_of_bound", "ratio"),
    ("results", "text"),
];

/// Of flavours in which memory is short.
const SWAPPED: (&str, &str) = ("swapped_gib", "GiB");

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let part = |name: &str| format!("sharing@{name}");
    let weight = |name: &str, room: Room| match room {
        _ if name.starts_with("pytorch") => 3.0,
        Room::Enough | Room::Short => 2.5,
        Room::Most => 4.0,
    };
    let weights = FLAVOURS.map(|(name, _, room)| (part(name), weight(name, room)));
    let parts = Parts::new(bench, weights);
    let mut pace = bench.sizes().map(|sizes| sizes.pace(bench.simulated)).ok();
    for (name, make, room) in FLAVOURS {
        let measured = parts.run(&part(name), |limit| {
            let until = Instant::now() + Duration::from_secs_f64(limit);
            attempt(bench, Flavour { name, make, room, limit, until }, pace.as_mut())
        });
        if let Err(error) = measured {
            let swapped = (room != Room::Enough).then_some(SWAPPED);
            for (column, unit) in COLUMNS.into_iter().chain(swapped) {
                bench.missing(&place(column, name), unit, format!("{error:#}"));
            }
        }
    }
    Ok(())
}

/// A line of the table, and the time for it.
#[derive(Clone, Copy)]
struct Flavour {
    name: &'static str,
    make: Make,
    room: Room,
    /// Seconds.
    limit: f64,
    until: Instant,
}

impl Flavour {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

type Make = fn(&Bench, Flavour, Option<Work>) -> anyhow::Result<Program>;

/// How much memory there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    /// More than both need.
    Enough,
    /// Each has 95 % of it.
    Short,
    /// Likewise, of as much as there is time for.
    Most,
}

/// What a program does whose memory is short.
#[derive(Clone, Copy)]
struct Work {
    /// Bytes of memory.
    each: u64,
    /// Length of a phase where the program can be told.
    phase_ms: u64,
    rounds: u64,
}

const FLAVOURS: [(&str, Make, Room); 6] = [
    ("driver-api", driver_program, Room::Enough),
    ("driver-api-95", driver_program, Room::Short),
    ("pytorch", torch_program, Room::Enough),
    ("pytorch-training-95", torch_training, Room::Short),
    ("pytorch-95", torch_program, Room::Short),
    ("driver-api-95-most", driver_program, Room::Most),
];

/// All of them, by name; or those in which turns are to swap.
pub(crate) fn flavours(short_of_memory: bool) -> Vec<&'static str> {
    let wanted = FLAVOURS.iter().filter(|(.., room)| !short_of_memory || *room != Room::Enough);
    wanted.map(|(name, ..)| *name).collect()
}

fn attempt(bench: &Bench, flavour: Flavour, pace: Option<&mut Pace>) -> anyhow::Result<()> {
    if flavour.room == Room::Enough {
        let assigner = Assigner::start(bench)?;
        let program = (flavour.make)(bench, flavour, None)?;
        return measure(bench, flavour, flavour.name, &program, &assigner)
            .map_err(|error| assigner.explain(error));
    }
    let sizes = bench.sizes()?;
    let pace = pace.context("how fast this machine's link is could not be measured")?;
    let begin = Instant::now();
    let plan = Plan::new(bench, flavour, pace, sizes.most(CLIENTS as u64))?;
    let chunk = bench.pick(2 * MIB, 64 * MIB);
    let crowd = Crowd::gather(bench, sizes, plan.rest, CLIENTS as u64, chunk)?;
    let work = Work { each: crowd.each, phase_ms: plan.phase_ms, rounds: plan.rounds };
    let program = (flavour.make)(bench, flavour, Some(work))?;
    let name = format!("{}-{}", flavour.name, about(crowd.rest));
    let measured = measure(bench, flavour, &name, &program, &crowd.assigner)
        .map_err(|error| crowd.assigner.explain(error));
    pace.learn(plan.rest, plan.load, begin.elapsed().as_secs_f64());
    measured
}

/// A line in which memory is short: how much there is, and what is done with it.
#[derive(Clone, Copy)]
struct Plan {
    /// Bytes to fight for.
    rest: u64,
    phase_ms: u64,
    rounds: u64,
    load: Load,
}

impl Plan {
    /// As much as there is time for: of little memory with phases of half a second, or of most of it with phases that are long
    /// against a switch.
    fn new(bench: &Bench, flavour: Flavour, pace: &Pace, most: u64) -> anyhow::Result<Self> {
        if flavour.name.starts_with("pytorch") {
            // PyTorch has memory of its own beside what is asked for; its phases are its own.
            let load = Load { fixed: 15.0, crossings: 12.0, handled: 5.0 };
            let rest = pace.within(flavour.limit, load, 3 * GIB, 4 * GIB)?;
            return Ok(Self { rest, phase_ms: 0, rounds: 0, load });
        }
        let (rounds, least_ms, largest) = match flavour.room {
            Room::Most => (2, 100, bench.pick(128 * MIB, most)),
            Room::Short | Room::Enough => (3, bench.pick(100, 500), bench.pick(64 * MIB, 2 * GIB)),
        };
        // A run alone has two phases a round; a shared one at most three, and its switches. A phase is as long as four switches.
        // Three programs fill and compare their memory, and two pin it.
        let phases = 5.0 * rounds as f64;
        let fixed = 4.0 + phases * least_ms as f64 / 1e3;
        let load = Load { fixed, crossings: phases * 5.0, handled: 5.0 };
        let rest =
            pace.within(flavour.limit, load, bench.pick(64 * MIB, 128 * MIB), largest.min(most))?;
        let phase_ms = (4e3 * pace.crossing(rest)) as u64;
        Ok(Self { rest, phase_ms: phase_ms.max(least_ms), rounds, load })
    }
}

fn place(column: &str, flavour: &str) -> String {
    format!("sharing.{column}@{flavour}")
}

/// A program that alternates, with its work set.
struct Program {
    program: PathBuf,
    arguments: Vec<String>,
    /// Why two of them without an assigner tell nothing; empty: they do.
    unmanaged: &'static str,
}

const TIME_PASSES: &str =
    "its kernels take time, not the GPU: without an assigner they would seem to run at once";
const NO_ROOM: &str = "without an assigner the memory of both would have to fit";

/// With a little memory, or with so many bytes and phases that are long against a switch.
fn driver_program(bench: &Bench, _: Flavour, work: Option<Work>) -> anyhow::Result<Program> {
    let (cpu, gpu, rounds) = match work {
        None => bench.pick((60, 40, 6), (300, 200, 12)),
        Some(work) => (work.phase_ms, work.phase_ms, work.rounds),
    };
    let mut arguments: Vec<String> = ["phases".into()].to_vec();
    for (name, value) in [("--cpu-ms", cpu), ("--gpu-ms", gpu), ("--rounds", rounds)] {
        arguments.extend([name.to_owned(), value.to_string()]);
    }
    if let Some(work) = work {
        arguments.extend(["--mib".to_owned(), (work.each / MIB).to_string()]);
        if bench.simulated {
            // The software GPU computes on the host: with more kernels that would be what is measured.
            arguments.extend(["--kernels".to_owned(), "1".to_owned()]);
        }
    } else if bench.simulated {
        // Likewise with more memory.
        arguments.extend(["--mib".to_owned(), "1".to_owned()]);
    }
    // With too few cores two computing programs would measure the cores.
    if host::cores() >= 2 * CLIENTS && !bench.simulated {
        arguments.push("--burn".into());
    }
    Ok(Program { program: std::env::current_exe()?, arguments, unmanaged: TIME_PASSES })
}

fn torch_training(bench: &Bench, _: Flavour, work: Option<Work>) -> anyhow::Result<Program> {
    let mut program = torch(bench, work)?;
    let rounds = bench.pick(2, 4).to_string();
    // Next to no CPU phase: the bound is that of one after the other, less what overlaps of it.
    for (name, value) in [("--training", "1"), ("--cpu-work", "1"), ("--rounds", &rounds)] {
        program.arguments.extend([name.to_owned(), value.to_owned()]);
    }
    program.arguments.extend(["--gpu-work".to_owned(), bench.pick("5", "60").to_owned()]);
    Ok(program)
}

/// The Python with its script, and memory to fill.
fn torch(bench: &Bench, work: Option<Work>) -> anyhow::Result<Program> {
    anyhow::ensure!(!bench.simulated, "PyTorch needs a real driver");
    let python = Python::find(bench)?;
    anyhow::ensure!(python.has("torch"), "PyTorch is not installed for {}", python.path.display());
    let mut arguments = vec![python.script("alternating.py").display().to_string()];
    if let Some(work) = work {
        // Its libraries take some: workspaces, and what its allocator rounds up.
        let fill = work.each.saturating_sub(GIB) / MIB;
        arguments.extend(["--fill-mib".to_owned(), fill.to_string()]);
    }
    let unmanaged = if work.is_some() { NO_ROOM } else { "" };
    Ok(Program { program: python.path, arguments, unmanaged })
}

fn torch_program(bench: &Bench, flavour: Flavour, work: Option<Work>) -> anyhow::Result<Program> {
    let mut program = torch(bench, work)?;
    anyhow::ensure!(
        host::cores() >= 2 * CLIENTS,
        "{} cores: CPU phases would wait for each other",
        host::cores()
    );
    let (seconds, rounds) = match work {
        None => bench.pick((0.1, 4), (0.3, 14)),
        // Long against a switch.
        Some(_) => bench.pick((0.5, 2), (2.0, 4)),
    };
    // How much work fills a phase, found once, so that every run does the same.
    let mut calibrate = Command::new(&program.program);
    calibrate.arg(&program.arguments[0]).arg("--calibrate").arg(seconds.to_string());
    let mut printed = String::new();
    let ending = child::run(&mut calibrate, flavour.left(), |line| printed = line.to_owned())?;
    anyhow::ensure!(ending.is_success(), "calibrating the PyTorch program: {}", ending.why());
    let (cpu, gpu) =
        printed.split_once(' ').with_context(|| format!("calibration printed '{printed}'"))?;
    for (name, value) in
        [("--cpu-work", cpu), ("--gpu-work", gpu), ("--rounds", &rounds.to_string())]
    {
        program.arguments.extend([name.to_owned(), value.to_owned()]);
    }
    Ok(program)
}

fn measure(
    bench: &Bench,
    line: Flavour,
    flavour: &str,
    program: &Program,
    assigner: &Assigner,
) -> anyhow::Result<()> {
    let go = |name: &str| bench.work.join(format!("go-{flavour}-{name}"));
    let direct = || Command::new(&program.program);
    let together = |commands, go: PathBuf| together(program, commands, &go, line);
    let alone = together(vec![direct()], go("alone"))?;
    let unmanaged = if program.unmanaged.is_empty() {
        rounds_per_s(&together((0..CLIENTS).map(|_| direct()).collect(), go("unmanaged"))?)
    } else {
        None
    };
    let shared_runs = (0..CLIENTS).map(|_| assigner.run(&program.program)).collect();
    let run = || together(shared_runs, go("shared"));
    let (shared, moved) = match line.room {
        Room::Enough => (run()?, None),
        Room::Short | Room::Most => {
            let (shared, moved) = while_watched(assigner, run);
            (shared?, Some(moved))
        }
    };

    let median = |phase: fn(&crate::phases::Round) -> f64| {
        let sample: Vec<f64> = alone[0].rounds.iter().map(phase).collect();
        Spread::of(&sample).context("no rounds")
    };
    let (cpu, gpu) = (median(|round| round.cpu_s)?, median(|round| round.gpu_s)?);
    let serial = rounds_per_s(&alone).context("no time alone")?;
    let rate = rounds_per_s(&shared).context("the programs did not run at the same time")?;
    let best = bound(CLIENTS as f64, cpu.median, gpu.median);
    let spreads = [("cpu_s", cpu), ("gpu_s", gpu)];
    for (column, spread) in spreads {
        bench.row(Row::spread(bench.group, &place(column, flavour), "s", Some(spread)));
    }
    let values = [
        ("serial_rounds_per_s", "1/s", serial),
        ("shared_rounds_per_s", "1/s", rate),
        ("bound_rounds_per_s", "1/s", best),
        ("shared_over_serial", "ratio", rate / serial),
        ("bound_over_serial", "ratio", best / serial),
        ("share_of_bound", "ratio", rate / best),
    ];
    for (column, unit, value) in values {
        bench.value(&place(column, flavour), unit, value);
    }
    match unmanaged {
        Some(value) => bench.value(&place("unmanaged_rounds_per_s", flavour), "1/s", value),
        None => bench.missing(&place("unmanaged_rounds_per_s", flavour), "1/s", program.unmanaged),
    }
    let right = alone.iter().chain(&shared).all(|r| r.right && r.digest == alone[0].digest);
    let swapped = moved.as_ref().is_none_or(|moved| moved.count() >= CLIENTS);
    if let Some(moved) = &moved {
        let row =
            Row::value(bench.group, &place(SWAPPED.0, flavour), SWAPPED.1, gib(moved.total()));
        let note = format!("of {} programs, as status said last", moved.count());
        bench.row(row.verified(swapped).note(note));
    }
    let word = match (right, swapped) {
        (true, true) => "same to the bit",
        (false, _) => "WRONG",
        (true, false) => "same, but NOT ALL WERE SWAPPED",
    };
    bench.row(Row::text(bench.group, &place("results", flavour), word).verified(right && swapped));
    Ok(())
}

/// Runs programs that begin together, and returns what they report.
fn together(
    program: &Program,
    commands: Vec<Command>,
    go: &Path,
    line: Flavour,
) -> anyhow::Result<Vec<Report>> {
    let count = commands.len();
    let (tell, hear) = mpsc::channel();
    let threads: Vec<_> = commands
        .into_iter()
        .map(|mut command| {
            command.args(&program.arguments).arg("--go").arg(go);
            let tell = tell.clone();
            std::thread::spawn(move || -> anyhow::Result<Report> {
                let mut last = String::new();
                let ending = child::run(&mut command, line.left(), |line| {
                    if line == "ready" {
                        // The receiver may have gone on without this one.
                        let _ = tell.send(());
                    }
                    last = line.to_owned();
                })?;
                anyhow::ensure!(ending.is_success(), "a program that alternates: {}", ending.why());
                serde_json::from_str(&last).with_context(|| format!("it printed '{last}'"))
            })
        })
        .collect();
    drop(tell);
    // If one ends before it is ready, the channel closes early or the wait runs out: the others end by then.
    for _ in 0..count {
        if hear.recv_timeout(line.left()).is_err() {
            break;
        }
    }
    std::fs::write(go, "").with_context(|| format!("writing {}", go.display()))?;
    threads
        .into_iter()
        .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
        .collect()
}
