//! Contexts that break or go while their memory is elsewhere or on its way: the room comes back, and nobody else notices.

use acb_tests::bench::status::ClientStatus;
use anyhow::{Result, ensure};

use crate::faults::{BROKEN, SLOW, fault, wait_for_the_middle};
use crate::stage::{MOST, MOST_BYTES, Stage, is_right};

const FAULTY_SPIN: &str = "kernel = \"acb_spin\"\n";

#[test]
fn a_kernel_that_fails_costs_its_own_program_alone() -> Result<()> {
    let stage = Stage::with(&(fault("launch_fails", 1, 0) + FAULTY_SPIN), &[])?;
    let mut broken = stage.large_with("broken", &[BROKEN])?;
    broken.ask("spin 1M")?;
    let mut says = |request: &str| -> Result<String> {
        broken.request(request)?;
        Ok(broken.reply()?.error.unwrap_or_else(|| "it succeeded".into()))
    };
    for _ in 0..2 {
        let error = says("sync")?;
        ensure!(error.contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    }
    // Its memory is in the way, and there is nothing to save.
    let mut other = stage.large("other")?;
    is_right(&mut other)?;
    // What has gone does not come back; the program is told of its error, and does not wait for it.
    let error = says("check")?;
    ensure!(error.contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    is_right(&mut other)?;
    let gone = broken.pid();
    broken.kill()?;
    stage.wait_until_gone(gone)?;
    let mut third = stage.large("third")?;
    is_right(&mut third)?;
    is_right(&mut other)?;
    let status = stage.status()?;
    ensure!(status.gpus[0].claimed < 3 * MOST_BYTES, "{status:#?}");
    Ok(())
}

/// A driver that loads code waits for the program's kernels, and lets nobody in meanwhile; here one runs that does not end.
#[test]
fn nothing_is_loaded_while_a_program_computes() -> Result<()> {
    let stage = Stage::with("load_waits = true", &[])?;
    let mut program = stage.large("program")?;
    let mut other = stage.program("other")?;
    program.ask("check")?;
    program.ask("endless")?;
    other.ask(MOST)?;
    stage.wait_for("its memory has a place on the host", &program, |client| {
        client.memory().arena >= MOST_BYTES
    })?;
    program.ask("alloc 1 2M")?;
    program.ask("end")?;
    program.ask("free 1")?;
    other.ask("fill")?;
    for _ in 0..2 {
        is_right(&mut program)?;
        is_right(&mut other)?;
    }
    let hashed = |client: &ClientStatus| client.memory().clean > 0;
    stage.wait_for("what has not changed is known", &program, hashed).map(drop)
}

#[test]
fn a_reset_with_memory_on_the_host_gives_everything_back() -> Result<()> {
    let stage = Stage::new()?;
    let mut reset = stage.large("reset")?;
    let mut other = stage.large("other")?;
    stage.wait_for("the first one's memory leaves", &reset, |client| {
        client.resident < MOST_BYTES - (8 << 20)
    })?;
    reset.ask("reset")?;
    stage.wait_for("its claims are given back", &reset, |client| {
        client.claimed < MOST_BYTES && client.resident <= client.claimed
    })?;
    reset.ask(MOST)?;
    reset.ask("fill")?;
    is_right(&mut reset)?;
    is_right(&mut other)?;
    is_right(&mut reset)
}

#[test]
fn a_reset_in_mid_page_out_waits_for_what_is_moving() -> Result<()> {
    let stage = Stage::with(SLOW, &[])?;
    let mut next = stage.program("next")?;
    next.ask(MOST)?;
    let mut reset = stage.large("reset")?;
    next.request("fill")?;
    wait_for_the_middle(&stage, &reset)?;
    reset.ask("reset")?;
    next.answer()?;
    next.ask("step")?;
    is_right(&mut next)?;
    reset.ask(MOST)?;
    reset.ask("fill")?;
    is_right(&mut reset)?;
    is_right(&mut next)
}
