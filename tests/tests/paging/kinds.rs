//! The ways in which programs have memory and use it.

use acb_tests::bench::status::ClientStatus;
use anyhow::{Result, ensure};

use crate::faults::{BROKEN, fault};
use crate::stage::{MOST_BYTES, Stage, is_right};

/// Two programs with memory of one kind, that take turns.
fn swapped(allocate: &str) -> Result<()> {
    let stage = Stage::new()?;
    let mut programs = [stage.program("one")?, stage.program("two")?];
    for program in &mut programs {
        program.ask(allocate)?;
        program.ask("fill")?;
        program.ask("step")?;
    }
    for _ in 0..3 {
        for program in &mut programs {
            program.ask("check")?;
            program.ask("step")?;
        }
    }
    programs.iter_mut().try_for_each(is_right)?;
    // A new life of the same addresses.
    for program in &mut programs {
        program.ask("free 0")?;
        program.ask(allocate)?;
        program.ask("fill")?;
    }
    programs.iter_mut().try_for_each(is_right)
}

#[test]
fn many_small_blocks() -> Result<()> {
    swapped("alloc 1000 40000")
}

#[test]
fn memory_in_the_order_of_a_stream() -> Result<()> {
    swapped("alloc 6 8M async")
}

#[test]
fn expandable_segments() -> Result<()> {
    swapped("alloc 3 16M mapped")
}

#[test]
fn blocks_that_are_no_multiple_of_a_chunk() -> Result<()> {
    swapped("alloc 5 7000008")
}

#[test]
fn graphs_replay_after_swaps() -> Result<()> {
    let stage = Stage::new()?;
    let mut one = stage.large("one")?;
    one.ask("capture")?;
    one.ask("replay")?;
    let mut two = stage.large("two")?;
    two.ask("capture")?;
    for _ in 0..10 {
        two.ask("replay")?;
        one.ask("replay")?;
    }
    is_right(&mut one)?;
    is_right(&mut two)?;
    let paged_in = |status: &acb_tests::bench::status::Status| {
        status.clients.iter().map(|client| client.memory().paged_in).sum::<u64>()
    };
    let swaps = "the swaps are reported";
    stage.outside.wait_for(swaps, |status| paged_in(status) >= 10 * MOST_BYTES / 2)?;
    Ok(())
}

#[test]
fn several_streams_and_all_kinds_at_once() -> Result<()> {
    let stage = Stage::new()?;
    let arguments = ["--rounds", "5", "--cpu-ms", "10", "--gpu-ms", "10", "--compare-every", "2"];
    let kinds: [&[&str]; 3] = [
        &["--bytes", "40M", "--streams", "4", "--small", "5M"],
        &["--bytes", "24M", "--way", "async", "--grow", "6M", "--still", "8M"],
        &["--bytes", "36M", "--way", "mapped", "--graph", "--small", "3M"],
    ];
    let names = ["a", "bb", "ccc"];
    let commands = names.iter().zip(kinds);
    let commands = commands.map(|(name, kind)| stage.pages(name, &[&arguments[..], kind].concat()));
    stage.run(commands.collect()).map(drop)
}

/// The GPU is wanted while all of it is under way: default streams of threads that have ended, streams that wait for events, functions
/// of the program's own.
#[test]
fn work_of_threads_events_and_functions_keeps_its_order() -> Result<()> {
    let stage = Stage::new()?;
    let mut programs = [stage.large("one")?, stage.large("two")?];
    for _ in 0..3 {
        for program in &mut programs {
            program.ask("wander")?;
        }
    }
    for program in &mut programs {
        is_right(program)?;
        let told = program.ask("told")?;
        ensure!(told.checked == 3 * 3, "functions that have run: {told:?}");
    }
    stage.outside.wait_for("memory was moved in between", |status| {
        status.clients.iter().all(|client| client.memory().paged_in >= MOST_BYTES)
    })?;
    Ok(())
}

#[test]
fn unchanged_memory_is_not_copied_again() -> Result<()> {
    let stage = Stage::new()?;
    let mut one = stage.large("one")?;
    let mut two = stage.large("two")?;
    one.ask("compare")?;
    // Of the second, which has to make room for the first: copied, for it was on no host before. All of that is in the report, and not
    // only what the first part of it came to.
    let before = stage.wait_for("page-outs are reported", &two, |client| {
        let moved = client.memory().paged_out + client.memory().clean;
        moved >= MOST_BYTES / 2 && moved + client.resident >= client.claimed
    })?;
    let before = before.client(two.pid()).map(|client| client.memory()).unwrap_or_default();
    two.ask("compare")?;
    one.ask("compare")?;
    let least = before.paged_out + before.clean + MOST_BYTES / 2;
    let after = stage.wait_for("the second page-out is reported", &two, |client| {
        client.memory().paged_out + client.memory().clean >= least
    })?;
    let after = after.client(two.pid()).map(|client| client.memory()).unwrap_or_default();
    ensure!(after.paged_out == before.paged_out, "{before:?} {after:?}");
    is_right(&mut two)?;
    is_right(&mut one)
}

/// With `--compare` nobody's hash is believed: one that lies harms nothing, and who looks at status sees it.
#[test]
fn a_hash_that_lies_is_found_out_where_memory_is_compared() -> Result<()> {
    // The first time it is tried.
    let stage = Stage::with(&fault("hash_lies", 2, 0), &["--compare"])?;
    let mut liar = stage.large_with("liar", &[BROKEN])?;
    let mut honest = stage.large("honest")?;
    for _ in 0..3 {
        for program in [&mut liar, &mut honest] {
            is_right(program)?;
            program.ask("step")?;
        }
    }
    is_right(&mut liar)?;
    stage.wait_for("lies are reported", &liar, |client| client.memory().lies > 0)?;
    stage.wait_for_log("liar", "has the hash of its host copy but differs from it")?;
    // What is alike is found alike: unchanged memory of the other is not copied.
    for _ in 0..2 {
        is_right(&mut honest)?;
        is_right(&mut liar)?;
    }
    let compared = |client: &ClientStatus| client.memory().clean > 0;
    let status = stage.wait_for("unchanged memory is known", &honest, compared)?;
    let lies = status.client(honest.pid()).map(|client| client.memory().lies);
    ensure!(lies == Some(0), "{status:#?}");
    Ok(())
}

#[test]
fn a_child_forked_by_a_program_that_was_swapped_gets_an_error() -> Result<()> {
    let stage = Stage::new()?;
    let mut one = stage.large("one")?;
    let mut two = stage.large("two")?;
    one.ask("fork")?;
    is_right(&mut one)?;
    is_right(&mut two)?;
    two.ask("fork")?;
    is_right(&mut one)
}

#[test]
fn plain_memory_stays_and_others_move_for_it() -> Result<()> {
    let stage = Stage::new()?;
    let mut paged = [stage.program("one")?, stage.program("two")?];
    for program in &mut paged {
        program.ask("alloc 2 12M")?;
        program.ask("fill")?;
    }
    let mut plain = stage.program_with("plain", &[("ACB_PAGER", "off")])?;
    plain.ask("alloc 2 6M")?;
    plain.ask("fill")?;
    for program in &mut paged {
        is_right(program)?;
    }
    is_right(&mut plain)?;
    let status = stage.outside.wait_for("page-outs are reported", |status| {
        status.clients.iter().map(|client| client.memory().paged_out).sum::<u64>() > 0
    })?;
    let client = status.client(plain.pid()).cloned().unwrap_or_default();
    ensure!(client.claimed == 0 && client.memory().paged_out == 0, "{status:#?}");
    // What stays is told, with its reason.
    stage.wait_for("plain memory is reported", &plain, |client| {
        let memory = client.memory();
        let plain = memory.fixed.iter().find(|fixed| fixed.kind == "plain");
        plain.is_some_and(|fixed| fixed.bytes >= 12 << 20) && memory.pinned == "ACB_PAGER=off"
    })?;
    let paged = stage.status()?.client(paged[0].pid()).cloned().unwrap_or_default().memory();
    ensure!(
        paged.pinned.is_empty() && paged.fixed.iter().all(|it| it.kind == "contexts"),
        "{paged:#?}"
    );
    Ok(())
}
