//! The program behind scripts/bench: measures the figures of slurm-acb.
//!
//! Owns: the list of figures, the table, the JSON. Does not own: how each is measured
//! ([`acb_tests::bench::measure`], [`acb_tests::bench::quickstart`]).

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use acb_sim::read::Overrides;
use acb_tests::bench::analysis::Comparison;
use acb_tests::bench::apart;
use acb_tests::bench::b1::B1;
use acb_tests::bench::figure::Figure;
use acb_tests::bench::interrupt;
use acb_tests::bench::measure::{self, Effort};
use acb_tests::bench::paging;
use acb_tests::bench::played::plan::{Plan, Scale};
use acb_tests::bench::played::{self, On};
use acb_tests::bench::quickstart;
use acb_tests::bench::scale;
use acb_tests::bench::simulated;
use acb_tests::bench::system::System;
use acb_tests::bench::terminal::{self, ColorChoice};
use acb_tests::lab::Prefix;
use anyhow::{Context, Result, bail};
use clap::Parser;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, TableComponent, presets};

/// Measures the figures of slurm-acb on this machine, with simulated GPUs
#[derive(Debug, Parser)]
#[command(name = "bench", bin_name = "scripts/bench", version)]
struct Arguments {
    /// Write the figures to a file: a JSON list of {name, value, unit}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure this one alone; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Few repetitions and short phases: to see that it works
    #[arg(long)]
    quick: bool,
    /// Where slurm-acb is installed (scripts/install --with-tests)
    #[arg(long, value_name = "DIR", env = "ACB_PREFIX", hide_env_values = true)]
    prefix: Option<PathBuf>,
    /// Play a scenario of gpu_assigner simulate with real programs instead, and simulate it for comparison
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "quick"])]
    scenario: Option<PathBuf>,
    /// Another value of the scenario, such as client.NAME.count=8; may be given several times
    #[arg(long, value_name = "PATH=VALUE", requires = "scenario")]
    set: Vec<String>,
    /// All times of the scenario are divided by this
    #[arg(long, value_name = "N", requires = "scenario", default_value_t = 1.0, value_parser = factor)]
    faster: f64,
    /// All memory of the scenario is divided by this (software GPUs)
    #[arg(long, value_name = "N", requires = "scenario", default_value_t = 128,
          value_parser = clap::value_parser!(u64).range(1..=65_536))]
    smaller: u64,
    /// GPU phases of each client
    #[arg(long, value_name = "N", requires = "scenario", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    rounds: u64,
    /// On the GPUs of this machine instead of software GPUs: the first of CUDA_VISIBLE_DEVICES, or of all. Memory is not divided; what
    /// a GPU has more than the scenario is taken. The driver is where ACB_DRIVER and ACB_NVML say, or in the usual places
    #[arg(long, requires = "scenario", conflicts_with = "smaller")]
    real: bool,
    /// Make the measurement of this figure in this process, and tell the one that asked
    #[arg(long, value_name = "NAME", hide = true)]
    apart: Option<String>,
}

/// How figures come about.
#[derive(Clone, Copy)]
enum Measurement {
    /// In this process: the scheduler alone.
    Alone(fn(Effort) -> Result<Vec<Figure>>),
    /// The same in a process that does nothing else: its memory is a figure.
    Apart(fn(Effort) -> Result<Vec<Figure>>),
    /// With what is installed.
    Installed(fn(&Prefix, Effort) -> Result<Vec<Figure>>),
}

use Measurement::{Alone, Apart, Installed};

/// What is measured: the figures' names, and how they come about.
const MEASUREMENTS: [(&[&str], Measurement); 22] = [
    (&["b6_fifo_s", "b6_affinity_s"], Alone(|_| simulated::b6())),
    (&["b1_cv0", "b1_cv1"], Alone(|_| simulated::b1())),
    (&["b4_8"], Alone(|_| simulated::b4())),
    (&["b7_p99_ratio", "b7_hog_kept"], Alone(|_| simulated::b7())),
    (&["b8_reclaim_over_bound_ms", "b8_kills"], Alone(|_| simulated::b8())),
    (&["promise_late_ms"], Alone(|_| simulated::promise())),
    (&["seeds_violations"], Alone(simulated::seeds)),
    (&["decisions_per_s", "decision_cost_growth", "core_mb"], Apart(scale::scale)),
    (&["launch_added_ns"], Installed(measure::launch)),
    (&["grant_p50_us", "grant_p99_us"], Installed(measure::grant)),
    (&["exec_added_ms"], Installed(measure::exec)),
    (&["regrant_p99_ms"], Installed(measure::regrant)),
    (&["b1_share"], Installed(b1)),
    (
        &["page_out_share", "page_in_share", "switch_ratio", "pin_in_switch_ms"],
        Installed(paging::switch::switches),
    ),
    (&["clean_bytes", "clean_time_ratio"], Installed(paging::switch::unchanged)),
    (&["pair_50_50"], Installed(paging::sharing::pair_50_50)),
    (&["pair_90_10"], Installed(paging::sharing::pair_90_10)),
    (&["b2_coarse"], Installed(paging::sharing::b2_coarse)),
    (&["switch_time_share"], Installed(played::switching::switch_time_share)),
    (&["oversub_150_on_40"], Installed(paging::sharing::oversubscribed)),
    (&["swap_soak_wrong_bytes"], Installed(paging::soak::soak)),
    (&["solo_added_percent"], Installed(paging::solo::solo)),
];

fn main() -> ExitCode {
    interrupt::end("bench", run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let effort = if arguments.quick { Effort::Quick } else { Effort::Full };
    if let Some(name) = &arguments.apart {
        let mut all = MEASUREMENTS.into_iter();
        let found = all.find(|(names, _)| names.contains(&name.as_str()));
        let Some((_, Apart(measure))) = found else { bail!("--apart {name}") };
        return apart::tell(measure(effort)?);
    }
    if let Some(file) = &arguments.scenario {
        return scenario(arguments, file);
    }
    let known: Vec<&str> = MEASUREMENTS.iter().flat_map(|(names, _)| *names).copied().collect();
    if let Some(unknown) = arguments.only.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("--only {unknown}: there is no such figure; there are {}", known.join(", "));
    }
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|n| n == name);
    let chosen: Vec<(&[&str], Measurement)> = MEASUREMENTS
        .into_iter()
        .filter(|(names, _)| names.iter().any(|name| wanted(name)))
        .collect();
    let prefix = match chosen.iter().any(|(_, how)| matches!(how, Installed(_))) {
        true => Some(installed(arguments)?),
        false => None,
    };
    if let Some(file) = &arguments.json {
        quickstart::check_output(file)?;
    }
    interrupt::watch();
    let mut figures = vec![];
    for (names, measurement) in chosen {
        eprintln!("{} …", names.join(", "));
        let measured = match (measurement, &prefix) {
            (Alone(measure), _) => measure(effort),
            (Apart(_), _) => apart::measure(names, effort),
            (Installed(measure), Some(prefix)) => measure(prefix, effort),
            (Installed(_), None) => unreachable!("the prefix was looked for"),
        };
        let measured = measured.with_context(|| names.join(", "))?;
        figures.extend(measured.into_iter().filter(|figure| wanted(figure.name)));
        interrupt::check()?;
    }
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&figures)?;
        std::fs::write(file, json + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    println!("{}", table(&figures));
    Ok(())
}

fn factor(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok().filter(|n| (1e-3..=1e6).contains(n));
    number.ok_or_else(|| "a number from 0.001 to 1000000 is needed".to_owned())
}

/// A scenario, played by programs and simulated.
fn scenario(arguments: &Arguments, file: &Path) -> Result<()> {
    let name = file.display().to_string();
    let mut text = std::fs::read_to_string(file).with_context(|| name.clone())?;
    for value in &arguments.set {
        text = acb_sim::read::set(&text, value).with_context(|| format!("--set {value}"))?;
    }
    let scenario = acb_sim::read(&name, &text, Overrides::default())?;
    let (memory, on) = match arguments.real {
        true => (1, On::Real(System::of_environment())),
        false => (arguments.smaller, On::Software),
    };
    let scale = Scale { time: arguments.faster, memory, rounds: arguments.rounds };
    let plan = Plan::new(scenario, scale).with_context(|| name.clone())?;
    let prefix = installed(arguments)?;
    if let Some(file) = &arguments.json {
        quickstart::check_output(file)?;
    }
    interrupt::watch();
    let played = played::play(&prefix, &plan, on)?;
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&played)?;
        std::fs::write(file, json + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    println!("{}", played::table::table(&played));
    if played.wrong > 0 {
        bail!("{} of {} bytes were wrong", played.wrong, played.checked);
    }
    Ok(())
}

/// Where slurm-acb is installed.
fn installed(arguments: &Arguments) -> Result<Prefix> {
    let prefix = match &arguments.prefix {
        Some(prefix) => {
            let whole = prefix.canonicalize();
            Prefix::new(whole.with_context(|| format!("--prefix {}", prefix.display()))?)
        }
        None => Prefix::from_env()?,
    };
    quickstart::check_prefix(&prefix)?;
    Ok(prefix)
}

/// B1 as the quickstart runs it: through a real Slurm.
fn b1(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    let b1 = B1 {
        clients: 8,
        rounds: 10,
        exclusive_rounds: 4,
        scale: if effort == Effort::Quick { 500.0 } else { 100.0 },
        burn: false,
        simulated: true,
    };
    let look = terminal::look_of_stdout(ColorChoice::Auto, false);
    let records = quickstart::measure(&b1, prefix.clone(), None, look)?;
    let comparison = Comparison::of(&records.exclusive, &records.shared)?;
    Ok(vec![Figure {
        name: "b1_share",
        value: comparison.share_of_bound(),
        unit: "share",
        how: format!(
            "{:.0} of {:.0} rounds/h; alone {:.0}; {} rounds in {:.1} s",
            comparison.shared.per_hour,
            comparison.bound_per_hour,
            comparison.exclusive.per_hour,
            comparison.shared.rounds,
            comparison.shared.window.length() as f64 / 1e9,
        ),
    }])
}

fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_style(TableComponent::HeaderLines, '─')
        .set_style(TableComponent::MiddleHeaderIntersections, '─')
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(vec!["figure", "value", "unit", "how"]);
    for figure in figures {
        table.add_row(vec![
            Cell::new(figure.name),
            Cell::new(format!("{:.4}", figure.value)).set_alignment(CellAlignment::Right),
            Cell::new(figure.unit),
            Cell::new(&figure.how),
        ]);
    }
    table
}
