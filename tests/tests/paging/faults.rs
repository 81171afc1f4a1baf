//! What goes wrong in the middle of a switch: no byte is wrong after it, nobody else suffers, who has to know is told by call,
//! cause and remedy, and it ends within what docs/architecture.md states (`bounds`).

use acb_tests::bench::outside::OnRequest;
use anyhow::{Context, Result, ensure};

use crate::bounds::{self, within};
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

/// Two programs that take turns over and over, of which one meets a fault; no byte of either is wrong, and no turn takes longer than
/// the fault may.
fn take_turns(stage: &Stage, bound: &bounds::Bound) -> Result<()> {
    let mut broken = stage.large_with("broken", &[BROKEN])?;
    let mut other = stage.large("other")?;
    for _ in 0..3 {
        for program in [&mut broken, &mut other] {
            within(bound, || is_right(program))?;
            program.ask("step")?;
        }
    }
    within(bound, || is_right(&mut broken))
}

#[test]
fn a_mapping_that_fails_in_a_page_in_is_tried_again() -> Result<()> {
    // The first 24 and some mappings are the allocation's own.
    let stage = Stage::with(&fault("map_fails", 32, 3), &[])?;
    take_turns(&stage, &bounds::PAGE_IN)?;
    stage.tells("broken", "cuMemMap", "CUDA_ERROR", "is tried again")
}

#[test]
fn memory_that_runs_out_in_a_page_in_is_waited_for() -> Result<()> {
    let stage = Stage::with(&fault("out_of_memory", 32, 3), &[])?;
    take_turns(&stage, &bounds::RUNS_OUT)?;
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
        take_turns(&stage, &bounds::PAGE_OUT).with_context(|| kind)?;
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
    let pid = broken.pid().to_string();
    within(&bounds::PAGE_OUT, || {
        stage.tells("broken", "cuMemUnmap", "CUDA_ERROR_UNKNOWN", "end the program")?;
        stage.tells("other", &pid, "cuMemUnmap fails (CUDA_ERROR_UNKNOWN)", "end the program")
    })?;
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
    let answer = within(&bounds::LAST_CONTEXT, || {
        broken.request("check")?;
        broken.reply()
    })?;
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
    within(&bounds::KILLED, || next.answer())?;
    next.ask("step")?;
    is_right(&mut next)?;
    drop(victim);
    within(&bounds::KILLED, || stage.wait_until_gone(gone))?;
    let who = format!("(pid {gone})");
    stage.assigner_tells(&who, "has ended", "are free for others")?;
    stage.assigner_tells(&who, "of its memory were moved out", "GPU 0")?;
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
    within(&bounds::KILLED, || is_right(&mut victim))?;
    let mut another = stage.large("another")?;
    is_right(&mut another)?;
    is_right(&mut victim)
}

#[test]
fn an_assigner_that_is_killed_in_mid_switch_comes_back_and_the_switch_goes_on() -> Result<()> {
    let (stage, mut next, mut victim) = in_mid_switch("check")?;
    stage.kill_assigner()?;
    within(&bounds::ASSIGNER, || next.answer())?;
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
    within(&bounds::ENDLESS, || {
        stage.tells("endless", "does not end", "acb_endless", "end this program")?;
        stage.tells("next", &pid, "acb_endless", "End that program")
    })?;
    endless.kill()?;
    within(&bounds::KILLED, || next.answer())?;
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
    within(&bounds::STOPPED, || next.ask(MOST))?;
    within(&bounds::STOPPED, || next.ask("fill"))?;
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
    within(&bounds::STOPPED, || stage.wait_for_log("next", &stopped.pid().to_string()))?;
    signal(stopped.pid(), "CONT")?;
    next.answer()?;
    next.ask("fill")?;
    is_right(&mut next)?;
    is_right(&mut stopped)
}

/// A copy of the software GPU's driver in which `cuProfilerStop` has another name: a function of the list is missing, and one is there
/// that the list does not have.
fn renamed_driver(stage: &Stage) -> Result<String> {
    // The dynamic linker's hash of both is the same, so that the driver still finds it itself.
    let (from, to) = ("cuProfilerStop", RENAMED);
    let mut library = std::fs::read(stage.prefix.test_program("sim/libcuda.so.1"))?;
    let quoted = |name: &str| [b"\0", name.as_bytes(), b"\0"].concat();
    let (from, to) = (quoted(from), quoted(to));
    let places: Vec<usize> =
        (0..library.len() - from.len()).filter(|at| library[*at..].starts_with(&from)).collect();
    ensure!(!places.is_empty(), "the driver has no such name");
    for at in places {
        library[at..at + to.len()].copy_from_slice(&to);
    }
    let path = stage.outside.folder().join("libcuda.so.renamed");
    std::fs::write(&path, library)?;
    Ok(path.display().to_string())
}

const RENAMED: &str = "cuProfilerStpO";

#[test]
fn a_symbol_that_the_driver_lacks_fails_alone() -> Result<()> {
    let stage = Stage::new()?;
    let driver = renamed_driver(&stage)?;
    let mut other = stage.large("other")?;
    let mut on_it = stage.large_with("on_it", &[("ACB_DRIVER", &driver)])?;
    let script = "import ctypes\ncuda = ctypes.CDLL('libcuda.so.1')\n\
        print(cuda.cuInit(0), cuda.cuProfilerStop(), cuda.cuProfilerStart())";
    let log = stage.outside.folder().join("asks.log");
    let output = within(&bounds::NO_SYMBOL, || {
        let mut asks = stage.outside.client("python3");
        asks.args(["-c", script]).env("ACB_DRIVER", &driver).env("ACB_LOG_FILE", &log);
        Ok(asks.output()?)
    })?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(told.trim() == "0 801 0", "{output:?}");
    stage.tells("asks", "cuProfilerStop", "is not in the driver", "update the driver")?;
    is_right(&mut on_it)?;
    is_right(&mut other)?;
    is_right(&mut on_it)
}

#[test]
fn a_driver_newer_than_the_list_is_named_and_works() -> Result<()> {
    let stage = Stage::with("driver_version = 99010", &[])?;
    let driver = renamed_driver(&stage)?;
    let mut other = stage.large("other")?;
    let mut newer =
        within(&bounds::NEWER, || stage.program_with("newer", &[("ACB_DRIVER", &driver)]))?;
    within(&bounds::NEWER, || newer.ask(MOST))?;
    let first = format!("the first is {RENAMED}");
    stage.tells("newer", "is of CUDA 99.1", &first, "update slurm-acb")?;
    for request in ["fill", "step", "sync"] {
        newer.ask(request)?;
    }
    is_right(&mut newer)?;
    is_right(&mut other)?;
    is_right(&mut newer)
}
