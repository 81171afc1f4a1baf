//! Programs that end of themselves while they hold the GPU: lease and room are the next one's as soon as the process, or the
//! program in it, has gone; nothing waits for a time to be over.

use anyhow::{Result, ensure};

use crate::stage::{MOST, Stage, is_right};

/// What the assigner says of a client that has to be waited for.
const WAITED_FOR: &str = "lives on without a connection";

#[test]
fn a_program_that_exits_leaves_its_lease_and_its_room() -> Result<()> {
    for how in ["exit", "exit in thread"] {
        let stage = Stage::new()?;
        let mut next = stage.program("next")?;
        next.ask(MOST)?;
        let mut ends = stage.large("ends")?;
        // It cannot give the lease back for being idle.
        ends.ask("endless")?;
        next.request("fill")?;
        stage.wait_until_waiting(&next)?;
        let gone = ends.pid();
        ends.request(how)?;
        next.answer()?;
        is_right(&mut next)?;
        stage.wait_until_gone(gone)?;
        let log = stage.outside.log();
        ensure!(!log.contains(WAITED_FOR), "{how}: {log}");
    }
    Ok(())
}

#[test]
fn a_program_that_becomes_another_leaves_its_lease() -> Result<()> {
    let stage = Stage::new()?;
    let mut next = stage.program("next")?;
    let mut becomes = stage.program("becomes")?;
    becomes.ask("nop")?;
    stage.wait_for("it holds the GPU", &becomes, |client| client.state == "holding")?;
    becomes.request("exec")?;
    stage.wait_until_gone(becomes.pid())?;
    next.ask("nop")?;
    let log = stage.outside.log();
    ensure!(log.contains("runs another program now") && !log.contains(WAITED_FOR), "{log}");
    Ok(())
}
