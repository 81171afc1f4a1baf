//! Measures what the design of slurm-acb assumes of a GPU, on the GPU at hand: one JSON file, one table,
//! and the page docs/gpu-results.md made from the file.
//!
//! The driver is found at run time; no CUDA toolkit is needed. tests/gpu/run is the usual way in.

mod assigner;
mod bench;
mod catalogue;
mod child;
mod crowd;
mod driver;
mod elf;
mod groups;
mod host;
mod lease;
mod measure;
mod moved;
mod pace;
mod parts;
mod phases;
mod reference;
mod report;
mod row;
mod stats;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::bench::{Bench, Depth};
use crate::groups::Group;
use crate::measure::Request;
use crate::row::Results;

/// Measures what slurm-acb assumes of a GPU.
#[derive(Parser)]
#[command(name = "acb-gpu-probe", version, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 everything ran and every check held; 1 something failed, was wrong or found \
    no time (the table is printed, the file written); 2 bad arguments."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All groups, in the order in which the design needs them
    All(Options),
    /// Version, exported symbols, what cuGetProcAddress gives
    Driver(Options),
    /// Context size; cost of the virtual-memory calls by chunk size
    Memory(Options),
    /// Rate of page-locking host memory
    Pinned(Options),
    /// Copies out, in, both at once; page-out beside page-in between two processes
    Link(Options),
    /// Two programs with 95 % of the memory each, swapped in turns, by chunk size
    Swap(Options),
    /// 128-bit hash of device memory
    Hash(Options),
    /// Kernels on plain against mapped memory
    Kernels(Options),
    /// Nanoseconds of a launch, direct and through the interposer; grant latency
    Calls(Options),
    /// The driver's own checkpoint of a process
    Checkpoint(Options),
    /// Contract tests of the software GPU, on this driver
    Contract(Options),
    /// Every way to load the driver; NVML inside a client
    Paths(Options),
    /// Two programs with alternating phases on one GPU
    Sharing(Options),
    /// PyTorch, JAX, CuPy, Triton, Numba alone and under the interposer
    Frameworks(Options),
    /// Several groups: their names with commas between
    Some {
        /// For example memory,link
        #[arg(value_delimiter = ',', required = true)]
        groups: Vec<Group>,
        #[command(flatten)]
        options: Options,
    },
    /// Print the page docs/gpu-results.md for result files; without one, the page of what is not yet seen
    Report {
        /// Written by --json on one machine; groups of later files replace those of earlier ones
        json: Vec<PathBuf>,
    },
    /// Print the table of a result file
    Table {
        /// Written by --json
        json: PathBuf,
    },
    #[command(hide = true)]
    Group {
        group: Group,
        #[arg(long)]
        work: PathBuf,
        #[arg(long)]
        limit: f64,
        #[arg(long, default_value = "")]
        ended: String,
        #[arg(long)]
        sizes: Option<String>,
        #[command(flatten)]
        options: Options,
    },
    #[command(hide = true)]
    HoldContext,
    #[command(hide = true)]
    SizeUp,
    #[command(hide = true)]
    HoldPlain { bytes: u64 },
    #[command(hide = true)]
    Swapped { bytes: u64, seed: u64 },
    #[command(hide = true)]
    HoldMemory { bytes: u64 },
    #[command(hide = true)]
    PipelineEnd { role: groups::pipeline::Role, bytes: u64 },
    #[command(hide = true)]
    LaunchCost {
        #[arg(long)]
        quick: bool,
    },
    #[command(hide = true)]
    LeasePeer { rounds: u32 },
    #[command(hide = true)]
    Phases(phases::Phases),
}

#[derive(Args, Clone)]
struct Options {
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Folder with bin, lib/acb and libexec/acb-tests; needed for what is measured under the interposer
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
    /// Small sizes and few repeats: to see that everything runs
    #[arg(long)]
    quick: bool,
    /// The driver is the software GPU: every result is marked as simulated
    #[arg(long)]
    sim: bool,
    /// Seconds for all groups together
    #[arg(long, value_name = "SECONDS", default_value_t = 520)]
    budget: u64,
}

impl Options {
    fn depth(&self) -> Depth {
        if self.quick { Depth::Quick } else { Depth::Full }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("acb-gpu-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::All(options) => return measure(Group::ALL.to_vec(), options),
        Command::Driver(options) => return measure(vec![Group::Driver], options),
        Command::Memory(options) => return measure(vec![Group::Memory], options),
        Command::Pinned(options) => return measure(vec![Group::Pinned], options),
        Command::Link(options) => return measure(vec![Group::Link], options),
        Command::Swap(options) => return measure(vec![Group::Swap], options),
        Command::Hash(options) => return measure(vec![Group::Hash], options),
        Command::Kernels(options) => return measure(vec![Group::Kernels], options),
        Command::Calls(options) => return measure(vec![Group::Calls], options),
        Command::Checkpoint(options) => return measure(vec![Group::Checkpoint], options),
        Command::Contract(options) => return measure(vec![Group::Contract], options),
        Command::Paths(options) => return measure(vec![Group::Paths], options),
        Command::Sharing(options) => return measure(vec![Group::Sharing], options),
        Command::Frameworks(options) => return measure(vec![Group::Frameworks], options),
        Command::Some { groups, options } => return measure(groups, options),
        Command::Report { json } => {
            let runs = json.iter().map(load).collect::<anyhow::Result<_>>()?;
            print!("{}", report::page(measure::merge(runs)?.as_ref()));
        }
        Command::Table { json } => print!("{}", table::render(&load(&json)?)),
        Command::Group { group, work, limit, ended, sizes, options } => {
            let bench = Bench {
                group: group.name(),
                depth: options.depth(),
                simulated: options.sim,
                prefix: options.prefix,
                work,
                deadline: Instant::now() + Duration::from_secs_f64(limit.clamp(0.0, 1e6)),
                ended: ended
                    .split(',')
                    .filter(|part| !part.is_empty())
                    .map(str::to_owned)
                    .collect(),
                sizes: sizes.map(|text| serde_json::from_str(&text)).transpose()?,
            };
            group.run(&bench)?;
        }
        Command::HoldContext => groups::memory::hold_context()?,
        Command::SizeUp => crowd::size_up()?,
        Command::HoldPlain { bytes } => crowd::hold_plain(bytes)?,
        Command::Swapped { bytes, seed } => crowd::swapped(bytes, seed)?,
        Command::HoldMemory { bytes } => groups::checkpoint::hold_memory(bytes)?,
        Command::PipelineEnd { role, bytes } => groups::pipeline::end(role, bytes)?,
        Command::LaunchCost { quick } => groups::calls::launch_cost(quick)?,
        Command::LeasePeer { rounds } => lease::peer(rounds)?,
        Command::Phases(phases) => phases::run(&phases)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(groups: Vec<Group>, options: Options) -> anyhow::Result<ExitCode> {
    let prefix = match &options.prefix {
        None => None,
        Some(prefix) => Some(
            std::fs::canonicalize(prefix)
                .with_context(|| format!("--prefix {}", prefix.display()))?,
        ),
    };
    let request = Request {
        groups,
        depth: options.depth(),
        simulated: options.sim,
        prefix,
        budget: Duration::from_secs(options.budget),
        json: options.json,
        command: std::env::var("ACB_GPU_COMMAND")
            .unwrap_or_else(|_| std::env::args().collect::<Vec<_>>().join(" ")),
    };
    let results = measure::run(&request)?;
    print!("{}", table::render(&results));
    print!("{}", table::unanswered(&measure::unanswered(&results)));
    let wrong = measure::wrong(&results);
    for line in &wrong {
        eprintln!("acb-gpu-probe: {line}");
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn load(path: &PathBuf) -> anyhow::Result<Results> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let results: Results = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a result file of this program", path.display()))?;
    anyhow::ensure!(
        results.schema <= row::SCHEMA,
        "{} has schema {}, this program knows {}",
        path.display(),
        results.schema,
        row::SCHEMA
    );
    Ok(results)
}
