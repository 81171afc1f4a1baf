//! The small figures: launch, grant, exec, regrant.
//!
//! Owns: how each is measured. Does not own: B1 ([`super::b1`]), what is simulated
//! ([`super::simulated`]), the list and the order (acb-bench).
//! Nothing here asserts a time: a crowded machine makes a worse figure, not a failure.

use std::process::Command;
use std::time::{Duration, Instant};

use acb_wire::v1::assigner_message::Kind as Said;
use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::clock;
use super::figure::{Figure, Sample};
use super::outside::{Outside, ZERO_COST_GPU};
use super::wire_client::WireClient;
use crate::lab::Prefix;

/// How often things are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// For a figure that counts.
    Full,
    /// To see that it works.
    Quick,
}

impl Effort {
    /// How often, of so often for a figure that counts.
    pub fn times(self, full: u32) -> u32 {
        match self {
            Effort::Full => full,
            Effort::Quick => (full / 10).max(10),
        }
    }
}

/// An intercepted launch while the lease is held, against a direct call.
///
/// # Errors
/// A program fails.
pub fn launch(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    #[derive(Deserialize)]
    struct Costs {
        interposed_ns: Vec<f64>,
        direct_ns: Vec<f64>,
    }
    let outside = Outside::start(prefix, ZERO_COST_GPU, &[])?;
    let output = outside
        .client(prefix.test_program("launch_cost"))
        .arg(prefix.test_program("sim/libcuda.so.1"))
        .args(["--pairs", &effort.times(3000).to_string()])
        .output()
        .context("run launch_cost")?;
    if !output.status.success() {
        bail!("launch_cost failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let costs: Costs = serde_json::from_slice(&output.stdout).context("launch_cost's output")?;
    let added: Vec<f64> = costs
        .interposed_ns
        .iter()
        .zip(&costs.direct_ns)
        .map(|(ours, theirs)| ours - theirs)
        .collect();
    let added = Sample::new(added).context("launch_cost measured nothing")?;
    let direct = Sample::new(costs.direct_ns).context("launch_cost measured nothing")?;
    Ok(vec![Figure {
        name: "launch_added_ns",
        value: added.median(),
        unit: "ns",
        how: format!(
            "pairs of batches in one process; direct {:.1}; added: {}",
            direct.median(),
            added.spread()
        ),
    }])
}

/// Release to grant between two processes: from before the releasing client writes its message to
/// after the first launch of a program that was waiting at its gate. The releasing side speaks the
/// protocol itself, so that the moment is known; the other is a program under the interposer.
///
/// The release is that of an idle client, which announces it as the interposer does. That of a
/// client whose time is over comes unannounced: it is measured too, and told beside.
///
/// # Errors
/// A program or the connection fails.
pub fn grant(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    let outside = Outside::start(prefix, ZERO_COST_GPU, &["--idle-us", "100"])?;
    let mut program = outside.on_request()?;
    let mut client = WireClient::join(&outside)?;
    let mut latency = |announced: bool| -> Result<f64> {
        let epoch = client.acquire()?;
        program.request("nop")?;
        client.until(|said| {
            matches!(said, Said::Wanted(wanted) if wanted.epoch == epoch).then_some(())
        })?;
        // The program has asked; let it and everybody fall asleep, as they are when a phase ends.
        std::thread::sleep(Duration::from_micros(500));
        if announced {
            client.release_soon(epoch)?;
        }
        let released = clock::monotonic_ns();
        client.release(epoch)?;
        let answer = program.answer()?;
        Ok((answer.got_ns as f64 - released as f64) / 1e3)
    };
    let (mut idle, mut recalled) = (vec![], vec![]);
    for _ in 0..effort.times(2000) {
        idle.push(latency(true)?);
        recalled.push(latency(false)?);
    }
    let sample = Sample::new(idle).context("nothing was measured")?;
    let recalled = Sample::new(recalled).context("nothing was measured")?;
    let figure = |name, value| Figure {
        name,
        value,
        unit: "us",
        how: format!(
            "release sent to waiting launch returned; {}; unannounced, as after a recall: median {:.1}",
            sample.spread(),
            recalled.median(),
        ),
    };
    Ok(vec![
        figure("grant_p50_us", sample.percentile(0.50)),
        figure("grant_p99_us", sample.percentile(0.99)),
    ])
}

/// What the environment of a client adds to the exec of a program that never uses CUDA.
///
/// # Errors
/// The program cannot be run.
pub fn exec(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    let outside = Outside::start(prefix, ZERO_COST_GPU, &[])?;
    let run = |mut command: Command| -> Result<f64> {
        let begin = Instant::now();
        let status = command.status().context("run /bin/true")?;
        let took = begin.elapsed();
        if !status.success() {
            bail!("/bin/true failed: {status}");
        }
        Ok(took.as_secs_f64() * 1e3)
    };
    let plain_command = || {
        let mut command = outside.plain("/bin/true");
        command.env_remove("LD_LIBRARY_PATH");
        command
    };
    let (mut added, mut plain) = (vec![], vec![]);
    for pair in 0..effort.times(1000) {
        let (without, with) = if pair % 2 == 0 {
            let without = run(plain_command())?;
            (without, run(outside.client("/bin/true"))?)
        } else {
            let with = run(outside.client("/bin/true"))?;
            (run(plain_command())?, with)
        };
        added.push(with - without);
        plain.push(without);
    }
    let added = Sample::new(added).context("nothing was measured")?;
    let plain = Sample::new(plain).context("nothing was measured")?;
    Ok(vec![Figure {
        name: "exec_added_ms",
        value: added.median(),
        unit: "ms",
        how: format!("/bin/true, pairs; plain {:.2}; added: {}", plain.median(), added.spread()),
    }])
}

/// From SIGKILL of a holder in the middle of a kernel to the first launch of the next in the queue.
///
/// # Errors
/// A program fails.
pub fn regrant(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    // The quantum is longer than the wait, so that nothing but the death ends the lease.
    let outside = Outside::start(prefix, ZERO_COST_GPU, &["--quantum-ms", "60000"])?;
    let mut next = outside.on_request()?;
    let mut latencies = vec![];
    for _ in 0..effort.times(200).max(100) {
        let mut holder = outside.on_request()?;
        holder.request("spin 30000000000")?;
        holder.answer()?;
        next.request("nop")?;
        // Time to get into the queue.
        std::thread::sleep(Duration::from_millis(10));
        let killed = clock::monotonic_ns();
        holder.kill()?;
        let answer = next.answer()?;
        if answer.got_ns < killed {
            bail!("the program in the queue got the GPU before its holder was killed");
        }
        latencies.push((answer.got_ns - killed) as f64 / 1e6);
    }
    let sample = Sample::new(latencies).context("nothing was measured")?;
    Ok(vec![Figure {
        name: "regrant_p99_ms",
        value: sample.percentile(0.99),
        unit: "ms",
        how: format!(
            "kill sent to waiting launch returned; median {:.2}, {}",
            sample.median(),
            sample.spread()
        ),
    }])
}
