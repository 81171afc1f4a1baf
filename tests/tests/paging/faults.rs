//! What goes wrong in the middle of a switch: no byte is wrong after it, and nobody else suffers.

use acb_tests::bench::outside::OnRequest;
use anyhow::{Context, Result, ensure};

use crate::stage::{MOST, MOST_BYTES, Stage, is_right, signal};

/// The environment of the program that the fault is for.
pub(crate) const BROKEN: (&str, &str) = ("BROKEN", "1");

/// A fault that strikes it.
pub(crate) fn fault(kind: &str, at: u32, times: u32) -> String {
    format!("[[fault]]\nkind = \"{kind}\"\nenv = \"BROKEN=1\"\nat = {at}\ntimes = {times}\n")
}

/// A link so slow that a switch can be stopped in its middle.
pub(crate) const SLOW: &str = "link_out = \"20MB\"\nlink_in = \"20MB\"\n";

/// Waits until a program that was all on the GPU has left a part of it.
pub(crate) fn wait_for_the_middle(stage: &Stage, victim: &OnRequest) -> Result<()> {
    let partly = |resident: u64| (1 << 20..MOST_BYTES - (4 << 20)).contains(&resident);
    stage
        .wait_for("the victim is partly moved out", victim, |client| partly(client.resident))
        .map(drop)
}

/// One program in the middle of its page-out, which `next` waits for with that request. Both have data of their own.
fn in_mid_switch(request: &str) -> Result<(Stage, OnRequest, OnRequest)> {
    let stage = Stage::with(SLOW, &[])?;
    let mut next = stage.large("next")?;
    let victim = stage.large("victim")?;
    next.request(request)?;
    wait_for_the_middle(&stage, &victim)?;
    Ok((stage, next, victim))
}

/// Two programs that take turns over and over, of which one meets a fault; no byte of either is wrong.
fn take_turns(stage: &Stage) -> Result<()> {
    let mut broken = stage.large_with("broken", &[BROKEN])?;
    let mut other = stage.large("other")?;
    for _ in 0..3 {
        is_right(&mut broken)?;
        broken.ask("step")?;
        is_right(&mut other)?;
        other.ask("step")?;
    }
    is_right(&mut broken)
}

#[test]
fn a_mapping_that_fails_in_a_page_in_is_tried_again() -> Result<()> {
    // The first 24 and some mappings are the allocation's own.
    let stage = Stage::with(&fault("map_fails", 32, 3), &[])?;
    take_turns(&stage)?;
    stage.tells("broken", "cuMemMap", "CUDA_ERROR", "is tried again")
}

#[test]
fn memory_that_runs_out_in_a_page_in_is_waited_for() -> Result<()> {
    let stage = Stage::with(&fault("out_of_memory", 32, 3), &[])?;
    take_turns(&stage)?;
    stage.tells("broken", "cuMemCreate", "CUDA_ERROR_OUT_OF_MEMORY", "nvidia-smi")
}

/// Calls of a switch that fail three times; where that makes memory stay, it goes when it can, and nobody waits for ever.
#[test]
fn calls_that_fail_in_a_switch_are_named_and_tried_again() -> Result<()> {
    let kinds = [
        ("access_fails", "cuMemSetAccess"),
        ("unmap_fails", "cuMemUnmap"),
        ("release_fails", "cuMemRelease"),
        ("copy_refused", "cuMemcpy"),
    ];
    for (kind, call) in kinds {
        let stage = Stage::with(&fault(kind, 32, 3), &[])?;
        take_turns(&stage).with_context(|| kind)?;
        stage.tells("broken", call, "CUDA_ERROR_UNKNOWN", "is tried again")?;
    }
    Ok(())
}

/// Who waits for memory that stays hears whose it is, why, and what to do.
#[test]
fn memory_that_stays_is_named_to_who_waits_for_it() -> Result<()> {
    // The first 24 are those of its first page-out.
    let stage = Stage::with(&fault("unmap_fails", 26, 0), &[])?;
    let mut broken = stage.large_with("broken", &[BROKEN])?;
    let mut other = stage.large("other")?;
    is_right(&mut broken)?;
    other.request("check")?;
    stage.tells("broken", "cuMemUnmap", "CUDA_ERROR_UNKNOWN", "end the program")?;
    let pid = broken.pid().to_string();
    stage.tells("other", &pid, "cuMemUnmap fails (CUDA_ERROR_UNKNOWN)", "end the program")?;
    is_right(&mut broken)?;
    broken.kill()?;
    other.answer()?;
    is_right(&mut other)
}

#[test]
fn a_copy_that_fails_breaks_its_own_program_alone() -> Result<()> {
    let stage = Stage::with(&fault("copy_fails", 6, 0), &[])?;
    let mut broken = stage.large_with("broken", &[BROKEN])?;
    let mut other = stage.large("other")?;
    is_right(&mut other)?;
    // A copy that fails while it runs breaks the context, as on a real driver; the program is told so by its
    // next call, and nothing else is said to be right.
    broken.request("check")?;
    let answer = broken.reply()?;
    let error = answer.error.unwrap_or_else(|| "it succeeded".into());
    ensure!(error.contains("CUDA_ERROR"), "{error}");
    stage.tells("broken", "cuMemcpy", "CUDA_ERROR_ILLEGAL_ADDRESS", "start it anew")?;
    let mut third = stage.large("third")?;
    is_right(&mut third)?;
    is_right(&mut other)
}

#[test]
fn a_victim_that_is_killed_in_mid_page_out_leaves_its_room() -> Result<()> {
    let stage = Stage::with(SLOW, &[])?;
    let mut next = stage.program("next")?;
    next.ask(MOST)?;
    let mut victim = stage.large("victim")?;
    next.request("fill")?;
    wait_for_the_middle(&stage, &victim)?;
    let gone = victim.pid();
    victim.kill()?;
    next.answer()?;
    next.ask("step")?;
    is_right(&mut next)?;
    drop(victim);
    stage.wait_until_gone(gone)?;
    let status = stage.status()?;
    ensure!(status.gpus[0].claimed == status.clients[0].claimed, "{status:#?}");
    let mut another = stage.large("another")?;
    is_right(&mut another)?;
    is_right(&mut next)
}

#[test]
fn a_program_that_is_killed_in_mid_page_in_leaves_its_room() -> Result<()> {
    let (stage, mut next, mut victim) = in_mid_switch("nop")?;
    next.kill()?;
    is_right(&mut victim)?;
    let mut another = stage.large("another")?;
    is_right(&mut another)?;
    is_right(&mut victim)
}

#[test]
fn an_assigner_that_is_killed_in_mid_switch_comes_back_and_the_switch_goes_on() -> Result<()> {
    let (stage, mut next, mut victim) = in_mid_switch("check")?;
    stage.kill_assigner()?;
    next.answer()?;
    is_right(&mut next)?;
    is_right(&mut victim)?;
    is_right(&mut next)?;
    let status = stage.status()?;
    ensure!(status.restarts == 1, "{status:#?}");
    for program in ["next", "victim"] {
        stage.tells(program, "the GPU assigner", "closed the connection", "reconnecting")?;
    }
    ensure!(status.gpus[0].claimed >= 2 * MOST_BYTES, "{status:#?}");
    Ok(())
}

/// In its GPU phase; its assigner starts again and lets another have the GPU, for the memory of both fits.
#[test]
fn a_holder_that_is_stopped_through_a_restart_meets_nobody_and_loses_nothing() -> Result<()> {
    let stage = Stage::on(1, 112 << 20, "", &[])?;
    let mut other = stage.large("other")?;
    let mut sleeper = stage.large("sleeper")?;
    signal(sleeper.pid(), "STOP")?;
    sleeper.request("step")?;
    stage.kill_assigner()?;
    is_right(&mut other)?;
    signal(sleeper.pid(), "CONT")?;
    sleeper.answer()?;
    is_right(&mut sleeper)?;
    is_right(&mut other)?;
    let log = stage.outside.log();
    ensure!(log.contains("others have had its GPU since its lease"), "{log}");
    ensure!(stage.log_of("sleeper")?.contains("no call passes the gate any more"));
    Ok(())
}

#[test]
fn an_endless_kernel_keeps_its_memory_until_its_program_ends() -> Result<()> {
    let stage = Stage::with("", &["--quantum-ms", "100"])?;
    let mut next = stage.large("next")?;
    let mut endless = stage.large("endless")?;
    endless.ask("endless")?;
    next.request("check")?;
    stage.wait_until_waiting(&next)?;
    stage.wait_for("the endless program is asked for the GPU", &endless, |client| {
        client.state == "recalled" && client.resident >= MOST_BYTES
    })?;
    let pid = format!("(pid {})", endless.pid());
    stage.tells("endless", "does not end", "acb_endless", "end this program")?;
    stage.tells("next", &pid, "acb_endless", "End that program")?;
    endless.kill()?;
    next.answer()?;
    is_right(&mut next)
}

#[test]
fn a_victim_that_is_stopped_is_passed_over() -> Result<()> {
    let stage = Stage::on(1, 112 << 20, "", &[])?;
    let mut stopped = stage.large("stopped")?;
    let mut willing = stage.large("willing")?;
    // The stopped one is asked first: it has not used the GPU for the longest time.
    signal(stopped.pid(), "STOP")?;
    let mut next = stage.program("next")?;
    next.ask(MOST)?;
    next.ask("fill")?;
    is_right(&mut next)?;
    signal(stopped.pid(), "CONT")?;
    is_right(&mut willing)?;
    is_right(&mut stopped)?;
    is_right(&mut next)
}

#[test]
fn a_stopped_program_whose_room_is_needed_is_waited_for_by_name() -> Result<()> {
    let stage = Stage::new()?;
    let mut stopped = stage.large("stopped")?;
    let mut next = stage.program("next")?;
    signal(stopped.pid(), "STOP")?;
    next.request(MOST)?;
    stage.wait_for_log("next", &stopped.pid().to_string())?;
    signal(stopped.pid(), "CONT")?;
    next.answer()?;
    next.ask("fill")?;
    is_right(&mut next)?;
    is_right(&mut stopped)
}
