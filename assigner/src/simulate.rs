//! `gpu_assigner simulate`: reads a scenario, plays it, shows what came of it.
//!
//! Owns: files, terminal and threads around [`acb_sim`], and the table. Does not own: the simulation, the figures.

mod table;

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write as _, stderr, stdout};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use acb_cluster_conf::Style;
use acb_sim::read::{Overrides, SetError};
use acb_sim::timeline::{self, Look};
use acb_sim::{Report, Scenario, Watch, report};

use crate::cli::{ColorWhen, Simulate};
use crate::output::print;

/// Why there is nothing to show.
#[derive(Debug)]
pub enum Problem {
    /// The scenario cannot be used: the whole report of it.
    Scenario(String),
    /// A file or an option cannot be used.
    Input(String),
}

/// An invariant was violated.
pub const VIOLATED: u8 = 1;
/// The scenario, a file or an option cannot be used.
pub const BAD_INPUT: u8 = 2;

/// Plays a scenario; the exit code.
pub fn run(options: &Simulate) -> u8 {
    match simulate(options) {
        Ok(violated) => u8::from(violated) * VIOLATED,
        Err(Problem::Scenario(report)) => {
            eprintln!("{report}");
            BAD_INPUT
        }
        Err(Problem::Input(message)) => {
            eprintln!("ERROR: {message}");
            BAD_INPUT
        }
    }
}

/// True if an invariant was violated.
fn simulate(options: &Simulate) -> Result<bool, Problem> {
    let look = look(options.color, options.ascii);
    let mut text = read_text(&options.file)?;
    for assignment in &options.set {
        text = match acb_sim::read::set(&text, assignment) {
            Ok(text) => text,
            Err(SetError::Syntax) => break, // reading it tells where
            Err(error) => return Err(Problem::Input(format!("--set {assignment}: {error}"))),
        };
    }
    let name = options.file.display().to_string();
    let errors = stderr().is_terminal() && look_of_stderr(options.color);
    let scenario = |seed: Option<u64>| -> Result<Scenario, Problem> {
        let overrides = Overrides { seed, spread: options.spread };
        acb_sim::read(&name, &text, overrides).map_err(|error| {
            Problem::Scenario(error.render(if errors { Style::Terminal } else { Style::Plain }))
        })
    };
    let first = scenario(options.seed)?;
    match options.seeds {
        Some(count) if count > 1 => many(options, &scenario, first.seed, count, look),
        _ => one(options, &first, look),
    }
}

/// One run, with everything that can be written of it.
fn one(options: &Simulate, scenario: &Scenario, look: Look) -> Result<bool, Problem> {
    let mut log = options.log.as_deref().map(TextFile::create).transpose()?;
    let watch = Watch {
        log: log.as_mut().map(|log| log as &mut dyn fmt::Write),
        spans: options.timeline || options.svg.is_some(),
        check: true,
        events: 0,
    };
    let outcome =
        acb_sim::run(scenario, watch).map_err(|error| Problem::Input(error.to_string()))?;
    if let (Some(log), Some(path)) = (log, &options.log) {
        log.finish().map_err(|error| unwritable(path, &error))?;
    }
    let report = Report::of(scenario, &outcome);
    if let Some(path) = &options.svg {
        let svg = acb_sim::svg::draw(&report::picture(scenario, &outcome, &report));
        std::fs::write(path, svg).map_err(|error| unwritable(path, &error))?;
    }
    if options.json {
        print(&json(&report));
    } else {
        if options.timeline {
            let picture = report::picture(scenario, &outcome, &report);
            print(&(timeline::draw(&[picture], look).join("\n") + "\n\n"));
        }
        print(&table::report(&report, look));
    }
    Ok(!report.violations.is_empty())
}

/// The same scenario with many seeds, on all cores.
fn many(
    options: &Simulate,
    scenario: &(impl Fn(Option<u64>) -> Result<Scenario, Problem> + Sync),
    first: u64,
    count: u64,
    look: Look,
) -> Result<bool, Problem> {
    if options.log.is_some() || options.timeline || options.svg.is_some() {
        let message =
            "--log, --timeline and --svg show one run; leave out --seeds, and give --seed";
        return Err(Problem::Input(message.to_owned()));
    }
    let next = AtomicU64::new(0);
    let reports = Mutex::new(Vec::new());
    let progress = stderr().is_terminal();
    let work = || -> Result<(), Problem> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            let scenario = scenario(Some(first.wrapping_add(number)))?;
            let watch = Watch { check: true, ..Watch::default() };
            let outcome = acb_sim::run(&scenario, watch)
                .map_err(|error| Problem::Input(error.to_string()))?;
            let mut reports = reports.lock().expect("nobody panics with the list in hand");
            reports.push(Report::of(&scenario, &outcome));
            if progress {
                eprint!("\r{} of {count} seeds", reports.len());
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<Result<(), Problem>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a run does not panic")).collect()
    });
    if progress {
        eprint!("\r\x1b[K");
    }
    results.into_iter().collect::<Result<(), Problem>>()?;
    let mut reports = reports.into_inner().expect("nobody panics with the list in hand");
    reports.sort_by_key(|report| report.seed.wrapping_sub(first));
    if options.json {
        print(&json(&reports));
    } else {
        print(&table::seeds(&reports, look));
    }
    Ok(reports.iter().any(|report| !report.violations.is_empty()))
}

fn read_text(path: &Path) -> Result<String, Problem> {
    let read = if path.as_os_str() == "-" {
        io::read_to_string(io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    read.map_err(|error| {
        Problem::Input(format!(
            "{} cannot be read: {error}; give a scenario (TOML), see gpu_assigner(1)",
            path.display()
        ))
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("figures have text keys") + "\n"
}

fn unwritable(path: &Path, error: &io::Error) -> Problem {
    Problem::Input(format!("{} cannot be written: {error}", path.display()))
}

fn look(color: ColorWhen, ascii: bool) -> Look {
    let width = || comfy_table::Table::new().width().unwrap_or(100);
    let terminal = stdout().is_terminal().then(width);
    Look::of(color.forced(), ascii, terminal, |name| std::env::var_os(name))
}

/// Whether colours are wanted in what is said on stderr.
fn look_of_stderr(color: ColorWhen) -> bool {
    Look::of(color.forced(), false, Some(80), |name| std::env::var_os(name)).color
}

/// A file that text is written into; its first error is kept.
struct TextFile {
    out: BufWriter<File>,
    error: Option<io::Error>,
}

impl TextFile {
    fn create(path: &Path) -> Result<TextFile, Problem> {
        let file = File::create(path).map_err(|error| unwritable(path, &error))?;
        Ok(TextFile { out: BufWriter::new(file), error: None })
    }

    fn finish(mut self) -> io::Result<()> {
        match self.error.take() {
            Some(error) => Err(error),
            None => self.out.flush(),
        }
    }
}

impl fmt::Write for TextFile {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.error.is_none() {
            self.error = self.out.write_all(text.as_bytes()).err();
        }
        Ok(())
    }
}
