//! Many swaps, and every byte right after each.
//!
//! Owns: the swaps, and counting them. Does not own: the checks (tests/workloads/src/memory.rs).

use anyhow::{Context, Result, bail};

use super::{assigner, crowd};
use crate::bench::figure::Figure;
use crate::bench::measure::Effort;
use crate::bench::paging::gpu::{CHUNK, Scaled};
use crate::bench::record::Round;
use crate::lab::Prefix;

/// Two programs on a GPU that holds one of them, one of which replays a graph in each phase. A swap is a GPU
/// phase that follows one of the other program.
///
/// # Errors
/// A program fails, or there were too few swaps.
pub fn soak(prefix: &Prefix, effort: Effort) -> Result<Vec<Figure>> {
    let wanted = if effort == Effort::Quick { 50 } else { 1000 };
    // Times do not matter here; so the link is as fast as the original's.
    let gpu = Scaled::of_16_gb(512, 1.0);
    let outside = assigner(prefix, &gpu, &["--idle-us".into(), "500".into()])?;
    let (changing, still) = (gpu.share(0.65, 2), 2 * CHUNK);
    let kinds: [&[&str]; 2] = [&["--graph"], &["--way", "mapped"]];
    let commands = kinds.iter().enumerate().map(|(client, kind)| {
        let mut command = outside.client(prefix.test_program("pages"));
        command
            .args([
                "--name",
                &format!("client-{client}"),
                "--seed",
                &(client * 1000 + 1).to_string(),
            ])
            .args(["--rounds", &(wanted * 4 / 5).to_string(), "--cpu-ms", "5", "--gpu-ms", "2"])
            .args(["--bytes", &changing.to_string(), "--still", &still.to_string()])
            .args(["--blocks", "2", "--small", "500000", "--compare-every", "25"])
            .args(*kind);
        command
    });
    let record = crowd::run(commands.collect()).with_context(|| outside.log())?;
    let swaps = swaps(record.rounds);
    if swaps < wanted {
        bail!("there were {swaps} swaps instead of {wanted}");
    }
    Ok(vec![Figure {
        name: "swap_soak_wrong_bytes",
        value: record.wrong as f64,
        unit: "bytes",
        how: format!(
            "{swaps} swaps, half of them to a program that replays a graph; {} GiB checked {}",
            record.checked >> 30,
            record.complaints
        ),
    }])
}

/// GPU phases that follow one of another program.
fn swaps(mut rounds: Vec<Round>) -> usize {
    rounds.sort_unstable_by_key(|round| round.gpu_got_ns);
    rounds.windows(2).filter(|pair| pair[0].name != pair[1].name).count()
}
