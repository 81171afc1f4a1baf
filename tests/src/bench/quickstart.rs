//! The quickstart: B1 in a private Slurm, once alone and once with `--acb`, and what came out.
//!
//! Owns: the order of events, the table, the JSON. Does not own: the runs ([`super::b1`]), the
//! figures ([`super::analysis`]), the picture ([`super::timeline`]).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, TableComponent, presets};
use serde::{Deserialize, Serialize};

use super::analysis::Comparison;
use super::b1::{B1, Mode};
use super::machine::{self, RealGpus};
use super::record::Round;
use super::terminal::Progress;
use super::timeline::{self, Look, Run};
use crate::lab::{Cluster, Gpus, Lab, Options, Prefix};

/// What `gpu` says when there is none.
pub const SIMULATED: &str = "simulated";

/// The records of both runs: all that the table and the picture are made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Records {
    /// Name of the GPU, or [`SIMULATED`].
    pub gpu: String,
    /// One client with the GPU to itself.
    pub exclusive: Vec<Round>,
    /// All clients on one GPU.
    pub shared: Vec<Round>,
}

/// What `--json` writes.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Summary {
    gpu: String,
    exclusive_per_hour: f64,
    acb_per_hour: f64,
    speedup: f64,
    bound_per_hour: f64,
    /// Throughput with --acb over the bound.
    pub share_of_bound: f64,
    gpu_busy: f64,
}

impl Summary {
    /// The figures of a comparison.
    pub fn of(gpu: &str, comparison: &Comparison) -> Self {
        Self {
            gpu: gpu.to_owned(),
            exclusive_per_hour: comparison.exclusive.per_hour,
            acb_per_hour: comparison.shared.per_hour,
            speedup: comparison.speedup(),
            bound_per_hour: comparison.bound_per_hour,
            share_of_bound: comparison.share_of_bound(),
            gpu_busy: comparison.shared.gpu_busy,
        }
    }
}

/// The GPUs that a quickstart uses.
pub fn choose_gpus(simulate: bool) -> Option<RealGpus> {
    if simulate { None } else { machine::real_gpus() }
}

/// Whether slurm-acb is installed there, with the programs of the tests.
///
/// # Errors
/// It is not; the error says how to install it.
pub fn check_prefix(prefix: &Prefix) -> Result<()> {
    for program in [prefix.program("gpu_assigner"), prefix.test_program("phases")] {
        if !program.is_file() {
            bail!(
                "{} is missing: install with `scripts/install --prefix {} --with-tests`",
                program.display(),
                prefix.root().display()
            );
        }
    }
    Ok(())
}

/// Whether a file can be written, before minutes are spent on what goes into it.
///
/// # Errors
/// Its folder is missing or not writable.
pub fn check_output(file: &Path) -> Result<()> {
    let existed = file.exists();
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .with_context(|| format!("{} cannot be written", file.display()))?;
    if !existed {
        fs::remove_file(file)?;
    }
    Ok(())
}

/// Starts a private Slurm, runs both sides, and stops it again.
///
/// # Errors
/// The Slurm does not start, a run fails, or the user interrupts.
pub fn measure(b1: &B1, prefix: Prefix, real: Option<RealGpus>, look: Look) -> Result<Records> {
    let mut options = Options::new(prefix);
    let gpu = match real {
        Some(real) => {
            // Two nodes need two GPUs.
            options.nodes = real.files.len().min(2);
            eprintln!("GPU: {} (a real one)", real.name);
            options.gpus = Gpus::Files(real.files);
            options.cluster = Cluster::Real;
            options.simcuda = None;
            real.name
        }
        None => {
            eprintln!(
                "GPU: simulated. No NVIDIA driver is used; the length of a kernel is modelled."
            );
            SIMULATED.to_owned()
        }
    };
    options.cpus = options.cpus.max(b1.clients as usize);
    eprintln!("Starting a private Slurm with {} …", nodes(options.nodes));
    let lab = Lab::start(&options).context("the private Slurm did not start")?;
    let side = |mode, what: &str| -> Result<Vec<Round>> {
        eprintln!("{what}\n  $ {}", b1.command_line(mode));
        let total = u64::from(b1.clients(mode) * b1.rounds(mode));
        let mut progress = Progress::start(what.split(':').next().unwrap_or(what), total, look);
        b1.run(&lab, mode, |_| progress.step())
    };
    let exclusive = side(Mode::Exclusive, "1 of 2: one program with a GPU to itself")?;
    let shared = side(
        Mode::Shared,
        &format!("2 of 2: {} programs on one GPU, shared by slurm-acb", b1.clients),
    )?;
    eprintln!("Removing the private Slurm …");
    drop(lab);
    Ok(Records { gpu, exclusive, shared })
}

fn nodes(count: usize) -> String {
    if count == 1 { "1 node".into() } else { format!("{count} nodes") }
}

/// The table and the picture.
pub fn show(records: &Records, comparison: &Comparison, look: Look) -> String {
    let mut text = String::new();
    let exclusive = &comparison.exclusive;
    let shared = &comparison.shared;
    let runs = [
        Run {
            title: format!("One program has the GPU to itself: {:.0} rounds/h", exclusive.per_hour),
            rounds: &records.exclusive,
            steady: exclusive.window,
        },
        Run {
            title: format!(
                "{} programs share it with srun --acb: {:.0} rounds/h",
                shared.clients, shared.per_hour
            ),
            rounds: &records.shared,
            steady: shared.window,
        },
    ];
    for line in timeline::draw(&runs, look) {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "\n{}\n", table(records, comparison, look));
    let _ = writeln!(text, "{}", footnotes(records, comparison));
    text
}

fn table(records: &Records, comparison: &Comparison, look: Look) -> Table {
    let (exclusive, shared) = (&comparison.exclusive, &comparison.shared);
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_style(TableComponent::HeaderLines, if look.unicode { '─' } else { '-' })
        .set_style(TableComponent::MiddleHeaderIntersections, if look.unicode { '─' } else { '-' })
        .set_content_arrangement(ContentArrangement::Disabled);
    let gpu = if records.gpu == SIMULATED { "simulated GPU" } else { records.gpu.as_str() };
    let number = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    table.set_header(vec![
        Cell::new(gpu),
        number("alone".into()),
        number("srun --acb".into()),
        number("at best".into()),
    ]);
    let rows: [(&str, [String; 3]); 5] = [
        (
            "rounds per hour",
            [
                format!("{:.0}", exclusive.per_hour),
                format!("{:.0}", shared.per_hour),
                format!("{:.0}", comparison.bound_per_hour),
            ],
        ),
        (
            "against one program alone",
            [
                "1.00 x".into(),
                format!("{:.2} x", comparison.speedup()),
                format!("{:.2} x", comparison.bound_per_hour / exclusive.per_hour),
            ],
        ),
        ("share of the bound", [String::new(), percent(comparison.share_of_bound()), percent(1.0)]),
        ("GPU busy", [percent(exclusive.gpu_busy), percent(shared.gpu_busy), String::new()]),
        (
            "mean wait for the GPU",
            [
                format!("{:.2} s", exclusive.wait_s),
                format!("{:.2} s", shared.wait_s),
                String::new(),
            ],
        ),
    ];
    for (name, values) in rows {
        let mut row = vec![Cell::new(name)];
        row.extend(values.into_iter().map(number));
        table.add_row(row);
    }
    table
}

/// How the figures were made.
fn footnotes(records: &Records, comparison: &Comparison) -> String {
    let (exclusive, shared) = (&comparison.exclusive, &comparison.shared);
    let seconds = |ns: u64| ns as f64 / 1e9;
    format!(
        "Counted: from the moment when every program had completed a GPU phase to the moment when the\n\
         first one completed its last: {} rounds in {:.1} s, {} in {:.1} s alone.\n\
         Bound: min(N/(c+g), G/g) with N = {}, G = 1, and c = {:.3} s, g = {:.3} s measured alone.\n\
         All {} rounds checked their data, word by word: right.",
        shared.rounds,
        seconds(shared.window.length()),
        exclusive.rounds,
        seconds(exclusive.window.length()),
        shared.clients,
        exclusive.cpu_s,
        exclusive.gpu_and_wait_s,
        records.exclusive.len() + records.shared.len(),
    )
}

/// Keeps the records, so that they can be shown again.
///
/// # Errors
/// The file cannot be written.
pub fn save(records: &Records, file: &Path) -> Result<()> {
    fs::write(file, serde_json::to_string(records)? + "\n")
        .with_context(|| format!("write {}", file.display()))
}

/// Reads records that [`save`] kept.
///
/// # Errors
/// The file cannot be read, or is something else.
pub fn load(file: &Path) -> Result<Records> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is no file that --save wrote", file.display()))
}

#[cfg(test)]
mod tests {
    use super::super::analysis::tests::perfect;
    use super::*;

    fn records() -> Records {
        Records {
            gpu: SIMULATED.into(),
            exclusive: perfect(1, 4, 4_875_000_000, 1_125_000_000),
            shared: perfect(8, 10, 4_875_000_000, 1_125_000_000),
        }
    }

    #[test]
    fn the_json_has_the_agreed_keys() -> Result<()> {
        let records = records();
        let comparison = Comparison::of(&records.exclusive, &records.shared)?;
        let json = serde_json::to_value(Summary::of(&records.gpu, &comparison))?;
        let keys: Vec<&str> =
            json.as_object().expect("an object").keys().map(String::as_str).collect();
        for key in [
            "gpu",
            "exclusive_per_hour",
            "acb_per_hour",
            "speedup",
            "bound_per_hour",
            "share_of_bound",
            "gpu_busy",
        ] {
            assert!(keys.contains(&key), "{key}");
        }
        assert_eq!(keys.len(), 7);
        Ok(())
    }

    #[test]
    fn saved_records_give_the_same_page() -> Result<()> {
        let records = records();
        let file = tempfile::NamedTempFile::new()?;
        save(&records, file.path())?;
        let look = Look { width: 100, color: false, unicode: false };
        let page = |records: &Records| -> Result<String> {
            Ok(show(records, &Comparison::of(&records.exclusive, &records.shared)?, look))
        };
        assert_eq!(page(&load(file.path())?)?, page(&records)?);
        assert!(page(&records)?.is_ascii());
        assert!(load(Path::new("/proc/version")).is_err());
        Ok(())
    }
}
