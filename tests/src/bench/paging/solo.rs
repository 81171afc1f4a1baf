//! What paged memory costs a program that has the GPU alone.
//!
//! Owns: the comparison of three ways to run it, in turns. Does not own: the program
//! (tests/workloads/src/bin/pages.rs).

use std::process::Command;

use anyhow::{Context, Result};

use super::{assigner, crowd};
use crate::bench::figure::{Figure, Sample};
use crate::bench::measure::Effort;
use crate::bench::paging::gpu::Scaled;
use crate::lab::Prefix;

/// The time of all rounds, interposed over bare, in turns; and the same with plain memory.
///
/// # Errors
/// A program fails, or finds wrong data.
pub fn solo(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    // Nothing is scaled but the memory: launches, mapping and copies cost what they cost on the original.
    let gpu = Scaled::of_16_gb(64, 1.0);
    let outside = assigner(prefix, &gpu, &[])?;
    let program = prefix.test_program("pages");
    let run = |mut command: Command| -> Result<f64> {
        command.args(["--rounds", "20", "--cpu-ms", "5", "--gpu-ms", "50", "--kernels", "200"]);
        command.args(["--bytes", "64M", "--small", "4M", "--grow", "4M", "--check-every", "5"]);
        command.args(["--changing", "64K"]);
        let record = crowd::run(vec![command]).with_context(|| outside.log())?;
        let begin = record.rounds.iter().map(|round| round.cpu_start_ns).min();
        let end = record.rounds.iter().map(|round| round.gpu_done_ns).max();
        Ok((end.zip(begin).map(|(end, begin)| end - begin)).context("no rounds")? as f64 / 1e6)
    };
    let plain_memory = || {
        let mut command = outside.client(&program);
        command.env("ACB_PAGER", "off");
        command
    };
    let (mut bare, mut added, mut added_plain) = (vec![], vec![], vec![]);
    for turn in 0..(if effort == Effort::Quick { 2 } else { 8 }) {
        // Whoever comes first may find another machine: take turns.
        let mut times = [0.0; 3];
        for place in 0..3 {
            let way = (turn + place) % 3;
            times[way] = run(match way {
                0 => outside.plain(&program),
                1 => outside.client(&program),
                _ => plain_memory(),
            })?;
        }
        bare.push(times[0]);
        added.push((times[1] / times[0] - 1.0) * 100.0);
        added_plain.push((times[2] / times[0] - 1.0) * 100.0);
    }
    let sample = |values| Sample::new(values).context("nothing was measured");
    let (bare, added, added_plain) = (sample(bare)?, sample(added)?, sample(added_plain)?);
    Ok(vec![Figure {
        name: "solo_added_percent",
        value: added.median(),
        unit: "%",
        how: format!(
            "20 rounds with 200 launches and an allocation of 4 MiB each, bare {:.0} ms; {}; with ACB_PAGER=off {:.2}",
            bare.median(),
            added.spread(),
            added_plain.median()
        ),
    }])
}
