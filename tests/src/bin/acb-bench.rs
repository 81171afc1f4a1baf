//! The program behind scripts/bench: measures the figures of slurm-acb.
//!
//! Owns: the list of figures, the table, the JSON. Does not own: how each is measured
//! ([`acb_tests::bench::measure`], [`acb_tests::bench::quickstart`]).

use std::path::PathBuf;
use std::process::ExitCode;

use acb_tests::bench::analysis::Comparison;
use acb_tests::bench::b1::{B1, Interrupted};
use acb_tests::bench::figure::Figure;
use acb_tests::bench::interrupt;
use acb_tests::bench::measure::{self, Effort};
use acb_tests::bench::quickstart;
use acb_tests::bench::simulated;
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
}

type Measurement = fn(&Prefix, Effort) -> Result<Vec<Figure>>;

/// What is measured: the figures' names, and how they come about.
const MEASUREMENTS: [(&[&str], Measurement); 8] = [
    (&["b6_fifo_s", "b6_affinity_s"], |_, _| simulated::b6()),
    (&["b1_cv0", "b1_cv1"], |_, _| simulated::b1()),
    (&["b4_8"], |_, _| simulated::b4()),
    (&["launch_added_ns"], measure::launch),
    (&["grant_p50_us", "grant_p99_us"], measure::grant),
    (&["exec_added_ms"], measure::exec),
    (&["regrant_p99_ms"], measure::regrant),
    (&["b1_share"], b1),
];

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("Interrupted; everything is stopped and removed.");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let known: Vec<&str> = MEASUREMENTS.iter().flat_map(|(names, _)| *names).copied().collect();
    if let Some(unknown) = arguments.only.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("--only {unknown}: there is no such figure; there are {}", known.join(", "));
    }
    let prefix = match &arguments.prefix {
        Some(prefix) => {
            let whole = prefix.canonicalize();
            Prefix::new(whole.with_context(|| format!("--prefix {}", prefix.display()))?)
        }
        None => Prefix::from_env()?,
    };
    quickstart::check_prefix(&prefix)?;
    if let Some(file) = &arguments.json {
        quickstart::check_output(file)?;
    }
    let effort = if arguments.quick { Effort::Quick } else { Effort::Full };
    interrupt::watch();
    let mut figures = vec![];
    for (names, measurement) in MEASUREMENTS {
        let wanted =
            |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|n| n == name);
        if !names.iter().any(|name| wanted(name)) {
            continue;
        }
        eprintln!("{} …", names.join(", "));
        let measured = measurement(&prefix, effort).with_context(|| names.join(", "))?;
        figures.extend(measured.into_iter().filter(|figure| wanted(figure.name)));
        if interrupt::requested() {
            bail!(Interrupted);
        }
    }
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&figures)?;
        std::fs::write(file, json + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    println!("{}", table(&figures));
    Ok(())
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
