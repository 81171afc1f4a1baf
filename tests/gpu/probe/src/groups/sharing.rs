//! Group `sharing`: two programs with alternating CPU and GPU phases on one GPU, under an assigner:
//! throughput against one after the other, and against the bound. Once on the driver API, once on PyTorch.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;

use super::frameworks::Python;
use crate::assigner::Assigner;
use crate::bench::Bench;
use crate::child;
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
    type Make = fn(&Bench) -> anyhow::Result<Program>;
    let flavours: [(&str, Make); 2] = [("driver-api", driver_program), ("pytorch", torch_program)];
    let assigner = Assigner::start(bench);
    for (name, program) in flavours {
        let measured = match &assigner {
            Ok(assigner) => program(bench).and_then(|program| {
                measure(bench, name, &program, assigner)
                    .map_err(|error| anyhow::anyhow!("{error:#}; gpu_assigner: {}", assigner.log()))
            }),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        if let Err(error) = measured {
            for (column, unit) in COLUMNS {
                bench.missing(&place(column, name), unit, format!("{error:#}"));
            }
        }
    }
    Ok(())
}

fn place(column: &str, flavour: &str) -> String {
    format!("sharing.{column}@{flavour}")
}

/// A program that alternates, with its work set.
struct Program {
    program: PathBuf,
    arguments: Vec<String>,
    /// Its GPU phase is work that other programs' work slows down, not time that passes.
    real_work: bool,
}

fn driver_program(bench: &Bench) -> anyhow::Result<Program> {
    let (cpu, gpu, rounds) = bench.pick((60, 40, 6), (300, 200, 16));
    let mut arguments: Vec<String> = ["phases".into()].to_vec();
    for (name, value) in [("--cpu-ms", cpu), ("--gpu-ms", gpu), ("--rounds", rounds)] {
        arguments.extend([name.to_owned(), value.to_string()]);
    }
    if bench.simulated {
        // The software GPU computes on the host: with more memory that would be what is measured.
        arguments.extend(["--mib".to_owned(), "1".to_owned()]);
    }
    // With too few cores two computing programs would measure the cores.
    if host::cores() >= 2 * CLIENTS && !bench.simulated {
        arguments.push("--burn".into());
    }
    Ok(Program { program: std::env::current_exe()?, arguments, real_work: false })
}

fn torch_program(bench: &Bench) -> anyhow::Result<Program> {
    anyhow::ensure!(!bench.simulated, "PyTorch needs a real driver");
    let python = Python::find(bench)?;
    let script = python.script("alternating.py");
    anyhow::ensure!(python.has("torch"), "PyTorch is not installed for {}", python.path.display());
    anyhow::ensure!(
        host::cores() >= 2 * CLIENTS,
        "{} cores: CPU phases would wait for each other",
        host::cores()
    );
    let (seconds, rounds) = bench.pick((0.1, 4), (0.3, 14));
    // How much work fills a phase, found once, so that every run does the same.
    let mut calibrate = Command::new(&python.path);
    calibrate.arg(&script).arg("--calibrate").arg(seconds.to_string());
    let mut printed = String::new();
    let ending =
        child::run(&mut calibrate, Duration::from_secs(60), |line| printed = line.to_owned())?;
    anyhow::ensure!(ending.is_success(), "calibrating the PyTorch program: {}", ending.why());
    let (cpu, gpu) =
        printed.split_once(' ').with_context(|| format!("calibration printed '{printed}'"))?;
    let mut arguments = vec![script.display().to_string()];
    for (name, value) in
        [("--cpu-work", cpu), ("--gpu-work", gpu), ("--rounds", &rounds.to_string())]
    {
        arguments.extend([name.to_owned(), value.to_owned()]);
    }
    Ok(Program { program: python.path, arguments, real_work: true })
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
    let unmanaged = if program.real_work {
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
        None => bench.missing(
            &place("unmanaged_rounds_per_s", flavour),
            "1/s",
            "its kernels take time, not the GPU: without an assigner they would seem to run at once",
        ),
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
