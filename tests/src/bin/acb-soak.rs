//! The program behind scripts/soak: plays scenarios made up from seeds, with every check, on all cores.
//!
//! Owns: threads, progress, the summary. Does not own: the scenarios and the checks ([`acb_sim::soak`]).

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use acb_sim::soak;
use anyhow::{Result, bail};
use clap::Parser;
use serde::Serialize;

/// Plays random scenarios in virtual time and looks for violated invariants
#[derive(Debug, Parser)]
#[command(name = "soak", bin_name = "scripts/soak", version)]
#[command(after_help = "Exit status: 0 no violation; 1 violations; 2 bad arguments.")]
struct Arguments {
    /// How many scenarios
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Events of each scenario's schedulers
    #[arg(long, value_name = "M", default_value_t = 1000,
          value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    first: u64,
    /// Play this seed alone, and print its log
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "first", "json"])]
    show: Option<u64>,
    /// Print one JSON document instead of the summary
    #[arg(long)]
    json: bool,
}

/// What came out of all scenarios.
#[derive(Debug, Default, Serialize)]
struct Summary {
    seeds: u64,
    events: u64,
    grants: u64,
    preemptions: u64,
    kills: u64,
    refused: u64,
    promises: u64,
    short: u64,
    seconds: f64,
    seeds_per_s: f64,
    seeds_violations: usize,
    /// Seed and first violation.
    violations: BTreeMap<u64, String>,
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: &acb_sim::Outcome) {
        self.seeds += 1;
        self.events += outcome.events;
        self.grants += outcome.grants;
        self.preemptions += outcome.preemptions;
        self.kills += outcome.kills;
        self.refused += outcome.refused.iter().flatten().count() as u64;
        self.promises += outcome.promises;
        self.short += outcome.short;
        if let Some(violation) = outcome.violations.first() {
            let seconds = violation.at.0 as f64 / 1e9;
            self.violations.insert(seed, format!("at {seconds:.6} s: {}", violation.what));
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.show {
        Some(seed) => show(seed, arguments.events),
        None => soak(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// One seed with everything about it; whether nothing is wrong.
fn show(seed: u64, events: u64) -> Result<bool> {
    let whole = soak::scenario(seed);
    let scenario = match soak::play(&whole, events).violations.is_empty() {
        true => whole,
        false => soak::shrink(&whole, events),
    };
    // What has to be done in the end is played to its end.
    let events = if scenario.due.is_some() { 0 } else { events };
    let mut log = String::new();
    let watch =
        acb_sim::Watch { log: Some(&mut log), check: true, events, ..acb_sim::Watch::default() };
    let outcome = acb_sim::run(&scenario, watch)?;
    print!("{}\n{log}", soak::describe(&scenario));
    for violation in &outcome.violations {
        println!("VIOLATED {}", violation.what);
    }
    Ok(outcome.violations.is_empty())
}

fn soak(arguments: &Arguments) -> Result<bool> {
    let Some(end) = arguments.first.checked_add(arguments.seeds) else {
        bail!("--first {} --seeds {} goes beyond the last seed", arguments.first, arguments.seeds);
    };
    let begin = Instant::now();
    let next = AtomicU64::new(arguments.first);
    let shared = Mutex::new((Summary::default(), begin));
    // Progress is for people who wait: often on a terminal, now and then in a log.
    let interval = Duration::from_millis(if stderr().is_terminal() { 500 } else { 30_000 });
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let outcome = soak::play(&soak::scenario(seed), arguments.events);
            let (summary, told) = &mut *shared.lock().expect("nobody panics with it in hand");
            summary.add(seed, &outcome);
            if told.elapsed() >= interval {
                *told = Instant::now();
                progress(summary, arguments.seeds, begin);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    if stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    let (mut summary, _) = shared.into_inner().expect("nobody panics with it in hand");
    summary.seconds = begin.elapsed().as_secs_f64();
    summary.seeds_per_s = summary.seeds as f64 / summary.seconds;
    summary.seeds_violations = summary.violations.len();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        report(&summary);
    }
    Ok(summary.violations.is_empty())
}

fn progress(summary: &Summary, seeds: u64, begin: Instant) {
    let rate = summary.seeds as f64 / begin.elapsed().as_secs_f64();
    let left = (seeds - summary.seeds) as f64 / rate;
    let line = format!(
        "{} of {seeds} seeds, {rate:.0} a second, {left:.0} s left, {} with violations",
        summary.seeds,
        summary.violations.len()
    );
    if stderr().is_terminal() { eprint!("\r\x1b[K{line}") } else { eprintln!("{line}") }
}

fn report(summary: &Summary) {
    println!(
        "{} seeds in {:.1} s ({:.0} a second): {} events, {} leases, {} preemptions, {} promises,\n\
         {} clients killed by the scenarios, {} requests refused, {} page-ins that found too little",
        summary.seeds,
        summary.seconds,
        summary.seeds_per_s,
        summary.events,
        summary.grants,
        summary.preemptions,
        summary.promises,
        summary.kills,
        summary.refused,
        summary.short,
    );
    for (seed, violation) in summary.violations.iter().take(20) {
        println!("  seed {seed}: {violation}");
    }
    if let Some((seed, _)) = summary.violations.first_key_value() {
        println!("Each can be seen, made as small as it still fails: scripts/soak --show {seed}");
    }
    println!("{} seeds with violations", summary.violations.len());
}
