//! Programs that do not fit together.

use std::cell::Cell;

use anyhow::{Result, ensure};

use crate::faults::SLOW;
use crate::stage::{GPU, MOST, MOST_BYTES, Stage, is_right};

#[test]
fn two_programs_that_do_not_fit_take_turns_and_keep_their_data() -> Result<()> {
    let stage = Stage::new()?;
    let mut one = stage.large("one")?;
    let mut two = stage.large("two")?;
    for _ in 0..3 {
        for program in [&mut one, &mut two] {
            program.ask("check")?;
            program.ask("step")?;
            program.ask("sync")?;
        }
    }
    is_right(&mut one)?;
    is_right(&mut two)?;
    let status = stage.outside.wait_for("both report their page-outs", |status| {
        status.clients.iter().all(|client| client.memory().paged_out >= MOST_BYTES / 2)
    })?;
    ensure!(status.gpus[0].claimed >= 2 * MOST_BYTES, "{status:#?}");
    let resident: u64 = status.clients.iter().map(|client| client.resident).sum();
    ensure!(resident <= GPU, "{status:#?}");
    Ok(())
}

/// Its memory would share the link with that of who has its turn.
#[test]
fn the_next_in_turn_has_its_memory_brought_in_once_the_link_is_free() -> Result<()> {
    const HALF: &str = "alloc 2 12M";
    let stage = Stage::with(SLOW, &[])?;
    let mut holder = stage.filled_with("holder", HALF)?;
    let mut next = stage.filled_with("next", HALF)?;
    let mut idle = stage.large("idle")?;
    let came_back = || Ok::<_, anyhow::Error>(stage.log_of("holder")?.matches("came back").count());
    let before = came_back()?;
    let left = stage.status()?.client(next.pid()).map_or(0, |client| client.resident);
    ensure!(left < 8 << 20, "most of it has gone: {left}");
    holder.request("endless")?;
    stage.wait_for("the holder has its turn", &holder, |client| client.state == "holding")?;
    next.request("check")?;
    stage.wait_until_waiting(&next)?;
    // The holder says Ready after it has said so in its log.
    let early = Cell::new(false);
    stage.wait_for("memory comes before its turn", &next, |client| {
        let comes = client.state.starts_with("waiting") && client.resident > left;
        early.set(early.get() || comes && came_back().is_ok_and(|now| now == before));
        comes
    })?;
    ensure!(!early.get(), "while the holder's was coming: {}", stage.outside.log());
    holder.answer()?;
    holder.ask("end")?;
    next.answer()?;
    for program in [&mut holder, &mut next, &mut idle] {
        program.ask("check")?;
    }
    Ok(())
}

#[test]
fn eight_programs_that_do_not_fit_together() -> Result<()> {
    // A third of it goes to contexts.
    let stage = Stage::on(1, 96 << 20, "", &[])?;
    let names: Vec<String> = (1..=8).map(|i| "x".repeat(i)).collect();
    let arguments = ["--rounds", "4", "--bytes", "30M", "--small", "2M", "--still", "6M"];
    let phases = ["--cpu-ms", "10", "--gpu-ms", "5", "--cv", "0.5", "--grow", "4M"];
    let commands =
        names.iter().map(|name| stage.pages(name, &[&arguments[..], &phases].concat())).collect();
    let record = stage.run(commands)?;
    ensure!(record.rounds.len() == 8 * 4, "{record:#?}");
    Ok(())
}

#[test]
fn memory_that_grows_moves_others_out() -> Result<()> {
    let stage = Stage::new()?;
    let mut idle = stage.large("idle")?;
    let mut growing = stage.program("growing")?;
    let mut claimed = 0;
    for _ in 0..4 {
        growing.ask("alloc 2 6M")?;
        growing.ask("fill")?;
        growing.ask("check")?;
        claimed += 12 << 20;
    }
    let status = stage.status()?;
    let resident = |pid| status.client(pid).map_or(0, |client| client.resident);
    ensure!(resident(growing.pid()) >= claimed, "{status:#?}");
    ensure!(resident(idle.pid()) <= GPU - claimed, "{status:#?}");
    is_right(&mut growing)?;
    is_right(&mut idle)?;
    Ok(())
}

#[test]
fn host_memory_is_pinned_while_the_program_still_computes() -> Result<()> {
    let stage = Stage::new()?;
    let mut second = stage.program("second")?;
    let mut first = stage.large("first")?;
    first.ask("spin 600000000000")?;
    second.ask(MOST)?;
    // What it has and its small blocks.
    stage.wait_for_log("first", "50.0 MiB of host memory are ready")?;
    first.kill()?;
    second.ask("fill")?;
    is_right(&mut second)
}

#[test]
fn what_a_program_frees_is_there_for_others_without_a_move() -> Result<()> {
    let stage = Stage::new()?;
    let mut one = stage.large("one")?;
    one.ask("free 0")?;
    let mut two = stage.large("two")?;
    is_right(&mut two)?;
    let status = stage.status()?;
    let moved = status.clients.iter().map(|client| client.memory().paged_out).sum::<u64>();
    ensure!(moved == 0, "{status:#?}");
    let claimed = status.client(one.pid()).map(|client| client.claimed);
    // What is left are the program's small blocks.
    ensure!(claimed.is_some_and(|claimed| claimed <= 4 << 20), "{status:#?}");
    Ok(())
}

#[test]
fn a_program_that_ends_leaves_its_room_to_others() -> Result<()> {
    let stage = Stage::new()?;
    let mut one = stage.large("one")?;
    let two = stage.large("two")?;
    let gone = two.pid();
    drop(two);
    stage.wait_until_gone(gone)?;
    is_right(&mut one)?;
    let status = stage.status()?;
    ensure!(status.clients.len() == 1, "{status:#?}");
    ensure!(status.gpus[0].claimed == status.clients[0].claimed, "{status:#?}");
    Ok(())
}

#[test]
fn programs_with_two_gpus_each_do_not_fit_on_them_together() -> Result<()> {
    let stage = Stage::on(2, GPU, "", &["--verbose"])?;
    let commands = ["a", "bb", "ccc"].map(|name| {
        let mut command =
            stage.outside.agarun(&["--gpus", "2"], stage.prefix.test_program("pages"));
        command.args(["--name", name, "--seed", &name.len().to_string(), "--gpus", "2"]);
        command.args(["--rounds", "4", "--bytes", "40M", "--small", "2M", "--cpu-ms", "10"]);
        command
    });
    let record = stage.run(commands.into())?;
    ensure!(record.rounds.len() == 3 * 4, "{record:#?}");
    // More came to each GPU than the programs have there: it has come back.
    let log = stage.outside.log();
    for gpu in ["GPU 0", "GPU 1"] {
        let credits = log.lines().filter_map(|line| {
            let (_, credit) = line.split_once(" is credited ")?;
            let (bytes, of) = credit.split_once(" bytes of ")?;
            (of == gpu).then(|| bytes.parse::<u64>().ok()).flatten()
        });
        let come: u64 = credits.sum();
        ensure!(come > 3 * (44 << 20) + (40 << 20), "{gpu}: {come} bytes\n{log}");
    }
    Ok(())
}
