//! Memory that two programs have, by a handle of the old kind, while a third needs the GPU: it stays where it is, everything else moves.

use acb_tests::bench::outside::OnRequest;
use anyhow::{Result, ensure};

use crate::stage::{Stage, is_right};

const BYTES: u64 = 4 << 20;

/// Who offers memory, who has opened it, and one whose memory does not fit beside theirs.
fn sharing(stage: &Stage) -> Result<[OnRequest; 3]> {
    let handle = stage.outside.folder().join("handle").display().to_string();
    let mut one = stage.filled_with("one", "alloc 3 10M")?;
    one.ask(&format!("offer {handle} {BYTES}"))?;
    one.ask("write 7")?;
    let mut other = stage.filled_with("other", "alloc 2 10M")?;
    other.ask(&format!("open {handle} {BYTES}"))?;
    other.ask("look 7")?;
    let rival = stage.filled_with("rival", "alloc 4 10M")?;
    Ok([one, other, rival])
}

/// What a program has of it, as status shows.
fn counts(stage: &Stage, program: &OnRequest, bytes: u64) -> Result<()> {
    stage
        .wait_for("shared memory is counted", program, |client| {
            let memory = client.memory();
            let ipc = memory.fixed.iter().filter(|fixed| fixed.kind == "ipc");
            ipc.map(|fixed| fixed.bytes).sum::<u64>() == bytes
        })
        .map(drop)
}

#[test]
fn memory_of_two_programs_stays_while_others_take_turns() -> Result<()> {
    let stage = Stage::new()?;
    let [mut one, mut other, mut rival] = sharing(&stage)?;
    counts(&stage, &one, BYTES)?;
    counts(&stage, &other, 0)?;
    for word in 8..12 {
        let (writes, reads) = match word % 2 {
            0 => (&mut one, &mut other),
            _ => (&mut other, &mut one),
        };
        writes.ask(&format!("write {word}"))?;
        is_right(&mut rival)?;
        reads.ask(&format!("look {word}"))?;
        is_right(writes)?;
        rival.ask("step")?;
        is_right(reads)?;
    }
    is_right(&mut rival)?;
    let moved = stage.outside.wait_for("memory was moved", |status| {
        status.clients.iter().all(|client| client.memory().paged_in > 0)
    })?;
    ensure!(moved.clients.len() == 3, "{moved:#?}");
    Ok(())
}

#[test]
fn memory_of_a_program_that_was_killed_lives_on_where_it_is_open() -> Result<()> {
    let stage = Stage::new()?;
    let [mut one, mut other, mut rival] = sharing(&stage)?;
    is_right(&mut rival)?;
    one.kill()?;
    stage.wait_until_gone(one.pid())?;
    counts(&stage, &other, BYTES)?;
    is_right(&mut rival)?;
    other.ask("look 7")?;
    is_right(&mut other)?;
    other.ask("close")?;
    counts(&stage, &other, 0)?;
    is_right(&mut rival)?;
    is_right(&mut other)
}

#[test]
fn who_has_opened_memory_and_is_killed_leaves_it_to_its_owner() -> Result<()> {
    let stage = Stage::new()?;
    let [mut one, mut other, mut rival] = sharing(&stage)?;
    other.kill()?;
    stage.wait_until_gone(other.pid())?;
    is_right(&mut rival)?;
    one.ask("look 7")?;
    is_right(&mut one)?;
    counts(&stage, &one, BYTES)
}
