//! What a launch costs through the library that answers `libcuda.so.1`, against the driver itself.
//!
//! Owns: the measurement. Run under the interposer, with the driver's own path as argument: both
//! libraries are then in one process and work on the same context, so that batches of launches can
//! alternate between them, and what else the machine does falls on both alike.

use std::process::ExitCode;

use acb_workloads::driver::Driver;
use acb_workloads::kernels;
use anyhow::ensure;
use clap::Parser;
use serde::Serialize;

/// Compares the cost of a launch through libcuda.so.1 with that through the driver at a path
#[derive(Parser)]
#[command(name = "launch_cost", version)]
struct Options {
    /// Absolute path of the driver itself
    driver: String,
    /// Pairs of batches
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Launches in a batch
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
}

/// Per pair of batches, the mean cost of a launch in nanoseconds.
#[derive(Serialize)]
struct Costs {
    interposed: String,
    direct: String,
    interposed_ns: Vec<f64>,
    direct_ns: Vec<f64>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("launch_cost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let interposed = Driver::open("libcuda.so.1")?;
    let direct = Driver::open(&options.driver)?;
    ensure!(
        interposed.path() != direct.path(),
        "libcuda.so.1 is {} itself: run this under the interposer",
        direct.path()
    );
    interposed.init()?;
    let context = interposed.retain_primary(0)?;
    let module = interposed.load_kernels()?;
    let nop = interposed.kernel(&module, kernels::NOP)?;
    let mut costs = Costs {
        interposed: interposed.path(),
        direct: direct.path(),
        interposed_ns: vec![],
        direct_ns: vec![],
    };
    let batch = |driver: &Driver| -> anyhow::Result<f64> {
        let took = driver.time_launches(&nop, options.batch)?;
        interposed.synchronize()?;
        Ok(took.as_secs_f64() * 1e9 / f64::from(options.batch))
    };
    // Caches, branch predictors, and the lease.
    for _ in 0..10 {
        batch(&interposed)?;
        batch(&direct)?;
    }
    for pair in 0..options.pairs {
        // Whoever comes second may find the caches warmer: take turns.
        if pair % 2 == 0 {
            costs.interposed_ns.push(batch(&interposed)?);
            costs.direct_ns.push(batch(&direct)?);
        } else {
            costs.direct_ns.push(batch(&direct)?);
            costs.interposed_ns.push(batch(&interposed)?);
        }
    }
    interposed.release_primary(&context)?;
    println!("{}", serde_json::to_string(&costs)?);
    Ok(())
}
