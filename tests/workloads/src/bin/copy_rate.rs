//! How fast plain copies between pinned host memory and the GPU are.
//!
//! Owns: the measurement that paging is compared with. Run it without the interposer.

use std::process::ExitCode;
use std::time::Duration;

use acb_workloads::clock;
use acb_workloads::driver::pinned::Pinned;
use acb_workloads::driver::queues::Queues;
use acb_workloads::driver::{Driver, DriverError};
use acb_workloads::quantities::bytes;
use clap::Parser;
use serde::Serialize;

/// Measures plain copies between pinned host memory and the GPU, and prints a line of JSON
#[derive(Parser)]
#[command(name = "copy_rate", version)]
struct Options {
    /// How much is copied at a time; K, M, G for powers of 1024
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = bytes)]
    bytes: u64,
    /// Size of each copy that this is split into
    #[arg(long, value_name = "BYTES", default_value = "2M", value_parser = bytes)]
    piece: u64,
    /// Times in each direction
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    copies: u32,
}

/// Bytes per second, the best time in each direction.
#[derive(Serialize)]
struct Rates {
    out_per_s: f64,
    in_per_s: f64,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("copy_rate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let driver = Driver::open("libcuda.so.1")?;
    driver.init()?;
    let context = driver.retain_primary(0)?;
    let piece = options.piece.max(1) as usize;
    let queues = Queues::of(&driver)?;
    let stream = queues.create()?;
    let memory = driver.alloc(options.bytes as usize)?;
    let pinned = Pinned::alloc(&driver, options.bytes as usize)?;
    let time = |copy: &dyn Fn() -> Result<(), DriverError>| -> anyhow::Result<Duration> {
        let begin = clock::monotonic();
        copy()?;
        queues.synchronize(stream)?;
        Ok(clock::monotonic() - begin)
    };
    let (mut fastest_out, mut fastest_in) = (Duration::MAX, Duration::MAX);
    // The first pair touches the pages.
    for _ in 0..=options.copies {
        fastest_in = fastest_in.min(time(&|| pinned.copy_in(memory, piece, stream))?);
        fastest_out = fastest_out.min(time(&|| pinned.copy_out(memory, piece, stream))?);
    }
    let rate = |time: Duration| options.bytes as f64 / time.as_secs_f64();
    let rates = Rates { out_per_s: rate(fastest_out), in_per_s: rate(fastest_in) };
    pinned.free()?;
    driver.free(memory)?;
    queues.destroy(stream)?;
    driver.release_primary(&context)?;
    println!("{}", serde_json::to_string(&rates)?);
    Ok(())
}
