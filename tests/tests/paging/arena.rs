//! Host memory for what leaves the GPU: not to be had, not to be pinned, not needed any more.

use std::process::Command;

use acb_tests::bench::outside::OnRequest;
use anyhow::{Context, Result, ensure};

use crate::bounds::{self, within};
use crate::faults::{BROKEN, fault};
use crate::stage::{MOST, Stage, is_right};

#[test]
fn memory_that_cannot_be_pinned_is_moved_all_the_same() -> Result<()> {
    let stage = Stage::with(&fault("pin_fails", 1, 0), &[])?;
    let mut broken = stage.large_with("broken", &[BROKEN])?;
    let mut other = stage.large("other")?;
    for _ in 0..2 {
        is_right(&mut broken)?;
        broken.ask("step")?;
        is_right(&mut other)?;
        other.ask("step")?;
    }
    is_right(&mut broken)?;
    let log = stage.log_of("broken")?;
    ensure!(log.matches("cuMemHostRegister failed").count() == 1, "it is told once:\n{log}");
    Ok(())
}

#[test]
fn host_memory_goes_back_when_the_gpu_is_large_enough_again() -> Result<()> {
    let stage = Stage::new()?;
    let mut stays = stage.large("stays")?;
    let mut ends = stage.large("ends")?;
    is_right(&mut stays)?;
    is_right(&mut ends)?;
    stage.wait_for("host memory is there", &stays, |client| client.memory().arena > 0)?;
    let gone = ends.pid();
    ends.kill()?;
    stage.wait_until_gone(gone)?;
    is_right(&mut stays)?;
    stage.wait_for("it goes back", &stays, |client| client.memory().arena == 0)?;
    is_right(&mut stays)?;
    // And it comes again.
    let mut another = stage.large("another")?;
    is_right(&mut another)?;
    is_right(&mut stays)?;
    is_right(&mut another)
}

#[test]
fn host_memory_that_cannot_be_had_is_asked_for_again() -> Result<()> {
    let stage = Stage::new()?;
    let mut poor = stage.large("poor")?;
    limit_addresses(&poor, Some(1 << 20))?;
    let mut next = stage.program("next")?;
    next.request(MOST)?;
    within(&bounds::NO_HOST_MEMORY, || {
        stage.wait_for_log("poor", "of host memory for what is to be moved from the GPU")?;
        stage.wait_for_log("poor", "there is no host memory for what would have to move")
    })?;
    // What found no place is where it was.
    stage.wait_for("not all has gone", &poor, |client| client.resident > 0)?;
    limit_addresses(&poor, None)?;
    // Once it has had the GPU, it is asked again.
    is_right(&mut poor)?;
    next.answer()?;
    next.ask("fill")?;
    is_right(&mut next)?;
    is_right(&mut poor)
}

/// Lets a program map so many bytes more than it has; `None`: as many as it likes.
fn limit_addresses(program: &OnRequest, more: Option<u64>) -> Result<()> {
    let pid = program.pid();
    let limit = match more {
        Some(more) => {
            let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
            let pages: u64 = statm.split(' ').next().context("statm is empty")?.parse()?;
            (pages * 4096 + more).to_string()
        }
        None => "unlimited".into(),
    };
    let arguments = [format!("--pid={pid}"), format!("--as={limit}:unlimited")];
    let status = Command::new("prlimit").args(arguments).status().context("prlimit")?;
    ensure!(status.success(), "prlimit: {status}");
    Ok(())
}
