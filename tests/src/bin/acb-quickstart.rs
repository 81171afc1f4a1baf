//! The program behind scripts/quickstart, which builds it and says what to install.
//!
//! Owns: the command line. Does not own: what happens ([`acb_tests::bench::quickstart`]).

use std::path::PathBuf;
use std::process::ExitCode;

use acb_tests::bench::analysis::Comparison;
use acb_tests::bench::b1::B1;
use acb_tests::bench::interrupt;
use acb_tests::bench::quickstart::{self, Records, Summary};
use acb_tests::bench::terminal::{self, ColorChoice};
use acb_tests::bench::timeline::Look;
use acb_tests::lab::Prefix;
use anyhow::{Context, Result};
use clap::Parser;

/// Runs eight programs that alternate CPU and GPU phases on one GPU under a private Slurm, with
/// `srun --acb`, and compares them with one program that has the GPU to itself
#[derive(Debug, Parser)]
#[command(name = "quickstart", bin_name = "scripts/quickstart", version)]
struct Arguments {
    /// Write the figures to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compute in the CPU phases instead of waiting (measures this machine's cores, too)
    #[arg(long)]
    burn: bool,
    /// Programs that share the GPU
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    clients: u32,
    /// Rounds of each of them
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    rounds: u32,
    /// Rounds of the program that has the GPU to itself
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    exclusive_rounds: u32,
    /// Divide the benchmark's times (487.5 s CPU, 112.5 s GPU) by this
    #[arg(long, value_name = "FACTOR", default_value = "100", value_parser = factor)]
    scale: f64,
    /// Simulate the GPUs even where there are real ones
    #[arg(long)]
    simulate: bool,
    /// Colours: auto (on a terminal, unless NO_COLOR is set), always, never
    #[arg(long, value_enum, value_name = "WHEN", default_value_t, hide_possible_values = true)]
    color: ColorChoice,
    /// Draw with plain characters
    #[arg(long)]
    ascii: bool,
    /// Keep the record of both runs
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Run nothing; show a record that --save kept
    #[arg(long, value_name = "FILE", conflicts_with = "save")]
    show: Option<PathBuf>,
    /// Where slurm-acb is installed (scripts/install --with-tests)
    #[arg(long, value_name = "DIR", env = "ACB_PREFIX", hide_env_values = true)]
    prefix: Option<PathBuf>,
}

fn main() -> ExitCode {
    interrupt::end("quickstart", run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let look = terminal::look_of_stdout(arguments.color, arguments.ascii);
    for file in [&arguments.json, &arguments.save].into_iter().flatten() {
        quickstart::check_output(file)?;
    }
    let records = match &arguments.show {
        Some(file) => quickstart::load(file)?,
        None => measure(arguments, look)?,
    };
    if let Some(file) = &arguments.save {
        quickstart::save(&records, file)?;
    }
    let comparison = Comparison::of(&records.exclusive, &records.shared)?;
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&Summary::of(&records.gpu, &comparison))?;
        std::fs::write(file, json + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    print!("\n{}", quickstart::show(&records, &comparison, look));
    Ok(())
}

fn measure(arguments: &Arguments, look: Look) -> Result<Records> {
    let prefix = match &arguments.prefix {
        Some(prefix) => {
            let whole = prefix.canonicalize();
            Prefix::new(whole.with_context(|| format!("--prefix {}", prefix.display()))?)
        }
        None => Prefix::from_env()?,
    };
    quickstart::check_prefix(&prefix)?;
    let real = quickstart::choose_gpus(arguments.simulate);
    let b1 = B1 {
        clients: arguments.clients,
        rounds: arguments.rounds,
        exclusive_rounds: arguments.exclusive_rounds,
        scale: arguments.scale,
        burn: arguments.burn,
        simulated: real.is_none(),
    };
    interrupt::watch();
    quickstart::measure(&b1, prefix, real, look)
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (1.0..=10_000.0).contains(&factor) => Ok(factor),
        _ => Err("a number from 1 to 10000 is wanted".into()),
    }
}
