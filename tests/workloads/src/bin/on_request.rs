//! A client that uses the GPU when it is told to, and says when it got it.
//!
//! Owns: that conversation, for benchmarks that must know who wants the GPU when. Does not own: the
//! benchmarks.
//!
//! Lines on stdin: `nop` launches a kernel of no length, `spin NS` one of NS nanoseconds; neither
//! waits for it. `sync` waits. Each is answered by a line of JSON; the first such line, before any
//! request, says that the program is ready.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use acb_workloads::driver::{Driver, DriverError};
use acb_workloads::{clock, kernels};
use anyhow::{Context, bail};
use serde::Serialize;

/// The answer; times are CLOCK_MONOTONIC in nanoseconds.
#[derive(Serialize)]
struct Answer {
    pid: u32,
    /// Before the call.
    wanted_ns: u64,
    /// After it.
    got_ns: u64,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("on_request: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let driver = Driver::open("libcuda.so.1")?;
    driver.init()?;
    let context = driver.retain_primary(0)?;
    let module = driver.load_kernels()?;
    let nop = driver.kernel(&module, kernels::NOP)?;
    let spin = driver.kernel(&module, kernels::SPIN)?;
    driver.launch(&nop, 1, 1, &[])?;
    driver.synchronize()?;
    answer(|| Ok(()))?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["nop"] => answer(|| driver.launch(&nop, 1, 1, &[]))?,
            ["spin", ns] => {
                let ns = ns.parse().with_context(|| format!("'{line}': NS is a number"))?;
                answer(|| driver.launch(&spin, 1, 1, &[ns]))?;
            }
            ["sync"] => answer(|| driver.synchronize())?,
            _ => bail!("'{line}' is none of: nop, spin NS, sync"),
        }
    }
    driver.release_primary(&context)?;
    Ok(())
}

fn answer(request: impl FnOnce() -> Result<(), DriverError>) -> anyhow::Result<()> {
    let wanted = clock::monotonic();
    request()?;
    let got = clock::monotonic();
    let answer = Answer {
        pid: std::process::id(),
        wanted_ns: wanted.as_nanos() as u64,
        got_ns: got.as_nanos() as u64,
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&answer)?)?;
    out.flush()?;
    Ok(())
}
