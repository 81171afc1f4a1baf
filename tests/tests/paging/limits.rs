//! What a program cannot have: more than the GPU, more than its limit, more than the host can hold.

use acb_tests::bench::outside::OnRequest;
use acb_tests::bench::status::{ClientStatus, Status};
use anyhow::{Context, Result, ensure};

use crate::bounds::{self, within};
use crate::stage::{CONTEXT, GPU, MOST, Stage, is_right};

/// The request fails with out-of-memory.
fn out_of_memory(program: &mut OnRequest, request: &str) -> Result<()> {
    program.request(request)?;
    let answer = program.reply()?;
    let error = answer.error.unwrap_or_else(|| "it succeeded".into());
    ensure!(error.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{request}: {error}");
    Ok(())
}

#[test]
fn more_than_the_gpu_is_out_of_memory_and_harms_nobody() -> Result<()> {
    let stage = Stage::new()?;
    let mut other = stage.large("other")?;
    let mut greedy = stage.large("greedy")?;
    for way in ["plain", "async", "mapped"] {
        out_of_memory(&mut greedy, &format!("alloc 1 80M {way}"))?;
        out_of_memory(&mut greedy, &format!("alloc 8 8M {way}"))?;
    }
    // What fits still does, and nothing of the failed requests is left.
    greedy.ask("sync")?;
    let allocated = greedy.ask("alloc 1 4M");
    allocated.with_context(|| stage.log_of("greedy").unwrap_or_default())?;
    greedy.ask("fill")?;
    is_right(&mut greedy)?;
    is_right(&mut other)
}

#[test]
fn memory_information_is_that_of_a_gpu_of_its_own() -> Result<()> {
    let stage = Stage::new()?;
    let mut one = stage.large("one")?;
    let mut two = stage.program("two")?;
    let info = two.ask("info")?;
    ensure!(info.total <= GPU && info.total >= GPU - CONTEXT, "{info:?}");
    ensure!(info.free > GPU - (8 << 20) && info.free < GPU, "{info:?}");
    two.ask(MOST)?;
    let after = two.ask("info")?;
    let taken = info.free - after.free;
    ensure!((48 << 20..=52 << 20).contains(&taken), "{info:?} {after:?}");
    is_right(&mut one)
}

#[test]
fn a_limit_is_a_smaller_gpu() -> Result<()> {
    let stage = Stage::new()?;
    let limit = 20 << 20;
    let mut limited = stage.program_with("limited", &[("ACB_MEMORY", &limit.to_string())])?;
    let info = limited.ask("info")?;
    ensure!(info.total <= limit && info.total >= limit - CONTEXT, "{info:?}");
    ensure!(info.free <= info.total, "{info:?}");
    for way in ["plain", "async", "mapped"] {
        out_of_memory(&mut limited, &format!("alloc 1 30M {way}"))?;
    }
    limited.ask("alloc 1 10M")?;
    out_of_memory(&mut limited, "alloc 1 10M")?;
    limited.ask("fill")?;
    let mut other = stage.large("other")?;
    is_right(&mut limited)?;
    is_right(&mut other)
}

/// 80 slices of 1 GB on a GPU of 80 GB, which has a little less than that, by 64.
#[test]
fn eighty_programs_fill_their_slices_of_a_gpu() -> Result<()> {
    // A context with what the pager needs in it, the program's small buffers, and six blocks.
    const SLICE: u64 = 17 << 20;
    const TAKEN: u64 = 5 << 20;
    let stage = Stage::on(1, 79 * SLICE, "", &[])?;
    let limit = SLICE.to_string();
    let start = |number| {
        let mut program =
            stage.program_with(&format!("client-{number}"), &[("ACB_MEMORY", &limit)])?;
        let mut has = TAKEN;
        loop {
            program.request("alloc 1 2M")?;
            match program.reply()?.error {
                None => has += 2 << 20,
                Some(error) if error.contains("CUDA_ERROR_OUT_OF_MEMORY") => break,
                Some(error) => anyhow::bail!("client-{number} with {has} bytes: {error}"),
            }
            ensure!(has <= SLICE, "client-{number} has {has} bytes of a slice of {SLICE}");
        }
        ensure!(has + (2 << 20) > SLICE, "client-{number} got {has} bytes of {SLICE} only");
        Ok(program)
    };
    let mut programs = (0..80).map(start).collect::<Result<Vec<_>>>()?;
    // All want their turn at once.
    for turn in ["fill", "step", "check", "step", "compare"] {
        for program in &mut programs {
            program.request(turn)?;
        }
        for (number, program) in programs.iter_mut().enumerate() {
            program.answer().with_context(|| format!("{turn} of client-{number}"))?;
        }
    }
    let moved = |status: &Status| -> u64 {
        status.clients.iter().map(|client| client.memory().paged_out).sum()
    };
    let status = stage.outside.wait_for("memory has been moved", |status| moved(status) > 0)?;
    ensure!(status.clients.len() == 80, "{status:?}");
    Ok(())
}

#[test]
fn a_host_without_room_fails_the_allocation_and_names_the_budget() -> Result<()> {
    let stage = Stage::with("", &["--host-budget", "60M"])?;
    let mut first = stage.large("first")?;
    let mut second = stage.program("second")?;
    // Both together could need 96 MiB of host memory.
    within(&bounds::HOST_BUDGET, || out_of_memory(&mut second, MOST))?;
    let cause = "CUDA_ERROR_OUT_OF_MEMORY is returned: the budget of host memory";
    stage.tells("second", "cuMemAlloc", cause, "host_budget in [memory] of the cluster file")?;
    is_right(&mut first)?;
    // Room on the GPU that nobody has to leave is not the host's business.
    second.ask("alloc 1 8M")?;
    second.ask("fill")?;
    is_right(&mut second)?;
    is_right(&mut first)
}

#[test]
fn a_context_is_counted_with_what_it_takes() -> Result<()> {
    let stage = Stage::with("", &[])?;
    // 2 MiB are set aside; the software GPU takes 1. The pager has 2 for itself.
    let taken = |client: &ClientStatus| {
        let fixed = &client.memory().fixed;
        fixed.iter().any(|fixed| fixed.kind == "contexts" && fixed.bytes == 3 << 20)
    };
    let first = stage.program("first")?;
    stage.wait_for("the context is measured", &first, taken)?;
    stage.wait_for_log("first", "a context takes 3.0 MiB of GPU 0; 4.0 MiB were set aside")?;
    // Others know it from the start.
    let second = stage.program("second")?;
    stage.wait_for("the context is counted", &second, taken)?;
    stage.wait_for_log("second", "3.0 MiB were set aside").map(drop)
}
