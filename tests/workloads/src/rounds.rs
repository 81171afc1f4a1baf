//! What programs that work in rounds have in common: the options, the driver, the record of a round, the end.
//!
//! Owns: the one line of JSON a round on stdout, and the exit codes. Does not own: what is done in a
//! round, or the distribution of lengths ([`timing`](crate::timing)).

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::driver::Driver;
use crate::quantities::{milliseconds, seconds};
use crate::timing::{Spread, Times};

/// Exit code when the data is not what the kernels should have left behind.
const WRONG_DATA: u8 = 3;

/// The exit codes, for a help text.
pub const EXIT_CODES: &str =
    "Exit code: 0 all data right; 1 a CUDA call failed; 2 wrong options; 3 wrong data.";

/// How many rounds, and how long their phases are.
#[derive(Debug, Args)]
pub struct Pace {
    /// Rounds to run (default: 10, or no limit with --duration)
    #[arg(long, value_name = "N")]
    pub rounds: Option<u64>,
    /// Start no round after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Option<Duration>,
    /// Start further rounds until this file is there
    #[arg(long, value_name = "FILE")]
    pub until: Option<PathBuf>,
    /// Mean length of a CPU phase
    #[arg(long, value_name = "MS", default_value = "50", value_parser = milliseconds)]
    pub cpu_ms: Duration,
    /// Mean length of the computation in a GPU phase; copies and sums come on top
    #[arg(long, value_name = "MS", default_value = "20", value_parser = milliseconds)]
    pub gpu_ms: Duration,
    /// Spread of both lengths, standard deviation over mean: 0, 0.5 or 1
    #[arg(long, value_name = "CV", default_value = "0")]
    pub cv: Spread,
    /// Seed of the data and of the lengths; the task's rank is added to it
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Wait so long before the first CPU phase
    #[arg(long, value_name = "MS", default_value = "0", value_parser = milliseconds)]
    pub start_offset: Duration,
    /// GPUs to use at the same time
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub gpus: u32,
    /// Name in the record (default: client-RANK, with Slurm's rank of the task)
    #[arg(long)]
    name: Option<String>,
}

impl Pace {
    /// The name in the record.
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("client-{}", rank()))
    }

    /// The seed of this task.
    pub fn seed(&self) -> u64 {
        self.seed.wrapping_add(rank())
    }

    /// The lengths of this task's phases.
    pub fn times(&self) -> Times {
        Times::new(self.seed(), self.cv)
    }

    /// The driver, which has as many GPUs as are wanted.
    ///
    /// # Errors
    /// There is none, or it has fewer.
    pub fn driver(&self) -> anyhow::Result<Driver> {
        let driver = Driver::open("libcuda.so.1")?;
        driver.init()?;
        let found = driver.device_count()?;
        anyhow::ensure!(found >= self.gpus, "--gpus {}: the driver shows {found}", self.gpus);
        Ok(driver)
    }

    /// Whether no round of this number is to begin, so long after the first one.
    pub fn is_over(&self, round: u64, elapsed: Duration) -> bool {
        if self.until.as_ref().is_some_and(|file| !file.exists()) {
            return false;
        }
        match (self.rounds, self.duration) {
            (Some(rounds), _) if round >= rounds => true,
            (_, Some(duration)) => elapsed >= duration,
            (None, None) => round >= 10,
            _ => false,
        }
    }
}

/// Slurm's rank of the task; 0 outside of one.
fn rank() -> u64 {
    std::env::var("SLURM_PROCID").ok().and_then(|rank| rank.parse().ok()).unwrap_or(0)
}

/// When a round did what, as CLOCK_MONOTONIC says.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    /// The CPU phase began.
    pub cpu_start: Duration,
    /// The first operation for a GPU was submitted.
    pub wanted: Duration,
    /// The first operation on every GPU was completed.
    pub got: Duration,
    /// Everything on every GPU was.
    pub done: Duration,
}

/// The record of one round; times are CLOCK_MONOTONIC in nanoseconds.
#[derive(Debug, Serialize)]
pub struct Round<'a> {
    name: &'a str,
    pid: u32,
    round: u64,
    cpu_start_ns: u64,
    gpu_wanted_ns: u64,
    gpu_got_ns: u64,
    gpu_done_ns: u64,
    ok: bool,
}

impl<'a> Round<'a> {
    /// `ok`: the data was right.
    pub fn new(name: &'a str, round: u64, at: Moments, ok: bool) -> Self {
        Self {
            name,
            pid: std::process::id(),
            round,
            cpu_start_ns: nanoseconds(at.cpu_start),
            gpu_wanted_ns: nanoseconds(at.wanted),
            gpu_got_ns: nanoseconds(at.got),
            gpu_done_ns: nanoseconds(at.done),
            ok,
        }
    }
}

/// Prints a record. One write a line: several clients share a pipe.
///
/// # Errors
/// stdout cannot be written.
pub fn print(record: &impl Serialize) -> anyhow::Result<()> {
    let line = serde_json::to_string(record)? + "\n";
    io::stdout().write_all(line.as_bytes())?;
    io::stdout().flush()?;
    Ok(())
}

/// The end of a program; `outcome`: whether all data was right.
pub fn end(program: &str, name: &str, outcome: anyhow::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(WRONG_DATA),
        Err(error) => {
            eprintln!("{program}: {name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos() as u64
}
