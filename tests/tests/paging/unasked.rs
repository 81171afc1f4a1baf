//! Memory that the driver takes for itself, which no call announces: others make room for it, and it is counted.

use acb_tests::bench::outside::OnRequest;
use acb_tests::bench::status::{ClientStatus, Status};
use anyhow::{Result, ensure};

use crate::stage::{Stage, is_right};

/// More than what is set aside for contexts and not used.
const GRAPH: u64 = 5 << 20;

/// What the driver has taken for itself in a program, as status shows it.
fn of_driver(client: &ClientStatus) -> u64 {
    let fixed = client.memory().fixed;
    fixed.iter().filter(|fixed| fixed.kind == "driver").map(|fixed| fixed.bytes).sum()
}

fn client<'a>(status: &'a Status, program: &OnRequest) -> &'a ClientStatus {
    status.client(program.pid()).expect("the assigner knows the program")
}

#[test]
fn a_graph_that_needs_memory_of_a_full_gpu_finds_room() -> Result<()> {
    let stage = Stage::with(&format!("graph_bytes = {GRAPH}"), &[])?;
    let mut victim = stage.filled_with("victim", "alloc 3 12M")?;
    let mut holder = stage.filled_with("holder", "alloc 3 12M")?;
    // Both together have more than there is: nothing is free when the graph is made.
    holder.ask("capture")?;
    holder.ask("replay")?;
    let status = stage
        .wait_for("what the driver has taken is shown", &holder, |client| of_driver(client) > 0)?;
    ensure!(of_driver(client(&status, &holder)) <= GRAPH, "{status:#?}");
    ensure!(of_driver(client(&status, &victim)) == 0, "{status:#?}");
    stage.tells("holder", "cuGraphInstantiate", "the driver has taken", "others made room")?;
    for program in [&mut victim, &mut holder] {
        is_right(program)?;
    }
    Ok(())
}

#[test]
fn what_the_driver_takes_comes_out_of_the_headroom_and_others_make_up_for_it() -> Result<()> {
    const HEADROOM: u64 = 8 << 20;
    let stage = Stage::with(&format!("graph_bytes = {GRAPH}"), &["--headroom", "8M"])?;
    let mut victim = stage.filled_with("victim", "alloc 3 12M")?;
    let mut holder = stage.filled_with("holder", "alloc 3 12M")?;
    let headroom =
        |status: &Status| status.gpus.first().map(|gpu| (gpu.headroom, gpu.headroom_taken));
    let before = stage.status()?;
    ensure!(headroom(&before) == Some((HEADROOM, 0)), "{before:#?}");
    let resident = client(&before, &victim).resident;
    holder.ask("capture")?;
    holder.ask("replay")?;
    // Nobody needs room, and all the same it is there again.
    let after = stage.wait_for("what the driver has taken is made up for", &victim, |client| {
        client.resident < resident
    })?;
    ensure!(of_driver(client(&after, &holder)) > 0, "{after:#?}");
    stage.wait_for("the headroom is whole", &victim, |_| {
        stage.status().is_ok_and(|status| headroom(&status) == Some((HEADROOM, 0)))
    })?;
    let log = stage.log_of("holder")?;
    ensure!(!log.contains("OUT_OF_MEMORY") && !log.contains("others made room"), "{log}");
    for program in [&mut victim, &mut holder] {
        is_right(program)?;
    }
    // A program that wants all of the GPU is told what it can have.
    let mut large = stage.program("large")?;
    large.request("alloc 1 58M")?;
    let refused = large.reply()?.error.unwrap_or_else(|| "it succeeded".into());
    ensure!(refused.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{refused}");
    stage.tells(
        "large",
        "cuMemAlloc",
        "programs can have 56.0 MiB of the GPU",
        "headroom in [memory]",
    )
}

#[test]
fn what_the_driver_takes_is_measured_again() -> Result<()> {
    const FUNCTION: u64 = 4 << 20;
    let stage = Stage::with(&format!("function_bytes = {FUNCTION}"), &[])?;
    let mut program = stage.filled_with("program", "alloc 1 2M")?;
    is_right(&mut program)?;
    // The kernels that fill, change and sum up, one of no length, and the pager's; less what was set aside with the context.
    let status = stage.wait_for("what the driver has taken is counted", &program, |client| {
        of_driver(client) > 3 * FUNCTION
    })?;
    ensure!(of_driver(client(&status, &program)) <= 5 * FUNCTION, "{status:#?}");
    // What others may claim is so much less.
    let mut other = stage.program("other")?;
    other.request("alloc 1 48M")?;
    let refused = other.reply()?.error.unwrap_or_else(|| "it succeeded".into());
    ensure!(refused.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{refused}");
    is_right(&mut program)
}

#[test]
fn others_move_where_a_program_outside_has_the_memory() -> Result<()> {
    let stage = Stage::new()?;
    let mut program = stage.filled_with("program", "alloc 3 12M")?;
    let mut victim = stage.filled_with("victim", "alloc 3 12M")?;
    for request in ["alloc 1 10M", "fill", "step", "sync"] {
        victim.ask(request)?;
    }
    // Most of the program's memory is on the host now; what becomes free here is another's.
    victim.ask("free 1")?;
    let mut stranger =
        OnRequest::start(stage.outside.plain(stage.prefix.test_program("on_request")))?;
    for request in ["alloc 1 8M", "fill"] {
        stranger.ask(request)?;
    }
    program.ask("step")?;
    stage.tells("program", "cuMemCreate", "CUDA_ERROR_OUT_OF_MEMORY", "outside of slurm-acb")?;
    let log = stage.outside.log();
    ensure!(log.contains("has less free memory than it should"), "{log}");
    is_right(&mut program)?;
    is_right(&mut stranger)?;
    drop(stranger);
    for program in [&mut victim, &mut program] {
        program.ask("step")?;
        is_right(program)?;
    }
    Ok(())
}
