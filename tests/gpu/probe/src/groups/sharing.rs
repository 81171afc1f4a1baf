//! Group `sharing`: two programs with alternating CPU and GPU phases on one GPU, under an assigner:
//! throughput against one after the other, and against the bound. On the driver API and on PyTorch; with memory for both, and with
//! 95 % of it for each, so that every turn swaps; and two PyTorch trainings that use nothing but the GPU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;

use super::frameworks::Python;
use crate::assigner::Assigner;
use crate::bench::{Bench, GIB, MIB};
use crate::child;
use crate::crowd::{Crowd, Sizes};
use crate::host;
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

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    for (name, program, room) in FLAVOURS {
        if let Err(error) = attempt(bench, name, program, room) {
            for (column, unit) in COLUMNS {
                bench.missing(&place(column, name), unit, format!("{error:#}"));
            }
        }
    }
    Ok(())
}

type Make = fn(&Bench, Option<u64>) -> anyhow::Result<Program>;

/// How much memory there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    /// More than both need.
    Enough,
    /// Each has 95 % of it.
    Short,
}

const FLAVOURS: [(&str, Make, Room); 5] = [
    ("driver-api", driver_program, Room::Enough),
    ("driver-api-95", driver_program, Room::Short),
    ("pytorch", torch_program, Room::Enough),
    ("pytorch-training-95", torch_training, Room::Short),
    ("pytorch-95", torch_program, Room::Short),
];

fn attempt(bench: &Bench, name: &str, make: Make, room: Room) -> anyhow::Result<()> {
    anyhow::ensure!(bench.seconds_left() > 10.0, "no time was left");
    let run = |assigner: &Assigner, each: Option<u64>| {
        let program = make(bench, each)?;
        measure(bench, name, &program, assigner)
            .map_err(|error| anyhow::anyhow!("{error:#}; gpu_assigner: {}", assigner.log()))
    };
    if room == Room::Enough {
        return run(&Assigner::start(bench)?, None);
    }
    let (rest, chunk) = bench.pick((64 * MIB, 2 * MIB), (2 * GIB, 64 * MIB));
    // PyTorch has memory of its own beside what is asked for.
    let rest = if name.starts_with("pytorch") { rest + 2 * GIB } else { rest };
    let crowd = Crowd::gather(bench, Sizes::find()?, rest, CLIENTS as u64, chunk)?;
    run(&crowd.assigner, Some(crowd.each))
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
fn driver_program(bench: &Bench, each: Option<u64>) -> anyhow::Result<Program> {
    let (cpu, gpu, rounds) = match each {
        None => bench.pick((60, 40, 6), (300, 200, 16)),
        Some(_) => bench.pick((100, 100, 3), (1000, 1000, 5)),
    };
    let mut arguments: Vec<String> = ["phases".into()].to_vec();
    for (name, value) in [("--cpu-ms", cpu), ("--gpu-ms", gpu), ("--rounds", rounds)] {
        arguments.extend([name.to_owned(), value.to_string()]);
    }
    if let Some(each) = each {
        arguments.extend(["--mib".to_owned(), (each / MIB).to_string()]);
    } else if bench.simulated {
        // The software GPU computes on the host: with more memory that would be what is measured.
        arguments.extend(["--mib".to_owned(), "1".to_owned()]);
    }
    // With too few cores two computing programs would measure the cores.
    if host::cores() >= 2 * CLIENTS && !bench.simulated {
        arguments.push("--burn".into());
    }
    Ok(Program { program: std::env::current_exe()?, arguments, unmanaged: TIME_PASSES })
}

fn torch_training(bench: &Bench, each: Option<u64>) -> anyhow::Result<Program> {
    let mut program = torch(bench, each)?;
    let rounds = bench.pick(2, 4).to_string();
    // Next to no CPU phase: the bound is that of one after the other, less what overlaps of it.
    for (name, value) in [("--training", "1"), ("--cpu-work", "1"), ("--rounds", &rounds)] {
        program.arguments.extend([name.to_owned(), value.to_owned()]);
    }
    program.arguments.extend(["--gpu-work".to_owned(), bench.pick("5", "60").to_owned()]);
    Ok(program)
}

/// The Python with its script, and memory to fill.
fn torch(bench: &Bench, each: Option<u64>) -> anyhow::Result<Program> {
    anyhow::ensure!(!bench.simulated, "PyTorch needs a real driver");
    let python = Python::find(bench)?;
    anyhow::ensure!(python.has("torch"), "PyTorch is not installed for {}", python.path.display());
    let mut arguments = vec![python.script("alternating.py").display().to_string()];
    if let Some(each) = each {
        // Its libraries take some: workspaces, and what its allocator rounds up.
        let fill = each.saturating_sub(GIB) / MIB;
        arguments.extend(["--fill-mib".to_owned(), fill.to_string()]);
    }
    let unmanaged = if each.is_some() { NO_ROOM } else { "" };
    Ok(Program { program: python.path, arguments, unmanaged })
}

fn torch_program(bench: &Bench, each: Option<u64>) -> anyhow::Result<Program> {
    let mut program = torch(bench, each)?;
    anyhow::ensure!(
        host::cores() >= 2 * CLIENTS,
        "{} cores: CPU phases would wait for each other",
        host::cores()
    );
    let (seconds, rounds) = match each {
        None => bench.pick((0.1, 4), (0.3, 14)),
        // Long against a switch.
        Some(_) => bench.pick((0.5, 2), (2.0, 4)),
    };
    // How much work fills a phase, found once, so that every run does the same.
    let mut calibrate = Command::new(&program.program);
    calibrate.arg(&program.arguments[0]).arg("--calibrate").arg(seconds.to_string());
    let mut printed = String::new();
    let ending =
        child::run(&mut calibrate, Duration::from_secs(60), |line| printed = line.to_owned())?;
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
    flavour: &str,
    program: &Program,
    assigner: &Assigner,
) -> anyhow::Result<()> {
    let go = |name: &str| bench.work.join(format!("go-{flavour}-{name}"));
    let direct = || Command::new(&program.program);
    let alone = together(program, vec![direct()], &go("alone"))?;
    let unmanaged = if program.unmanaged.is_empty() {
        rounds_per_s(&together(
            program,
            (0..CLIENTS).map(|_| direct()).collect(),
            &go("unmanaged"),
        )?)
    } else {
        None
    };
    let shared_runs = (0..CLIENTS).map(|_| assigner.run(&program.program)).collect();
    let shared = together(program, shared_runs, &go("shared"))?;

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
    let word = if right { "same to the bit" } else { "WRONG" };
    bench.row(Row::text(bench.group, &place("results", flavour), word).verified(right));
    Ok(())
}

/// Runs programs that begin together, and returns what they report.
fn together(program: &Program, commands: Vec<Command>, go: &Path) -> anyhow::Result<Vec<Report>> {
    let count = commands.len();
    let (tell, hear) = mpsc::channel();
    let threads: Vec<_> = commands
        .into_iter()
        .map(|mut command| {
            command.args(&program.arguments).arg("--go").arg(go);
            let tell = tell.clone();
            std::thread::spawn(move || -> anyhow::Result<Report> {
                let mut last = String::new();
                let ending = child::run(&mut command, Duration::from_secs(60), |line| {
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
        if hear.recv_timeout(Duration::from_secs(40)).is_err() {
            break;
        }
    }
    std::fs::write(go, "").with_context(|| format!("writing {}", go.display()))?;
    threads
        .into_iter()
        .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
        .collect()
}
