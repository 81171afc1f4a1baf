//! The lab itself: whoever starts a private Slurm and is killed leaves nothing of it.

use crate::stage;
use acb_tests::lab::{processes_naming, wait_until};
use anyhow::{Context, Result, ensure};
use std::process::{Command, Stdio};

/// Names the file in which the owner of a lab notes the lab's folder. Its owner is this test, started
/// once more.
const NOTE: &str = "ACB_TEST_LAB_NOTE";

#[test]
fn a_killed_owner_leaves_nothing() -> Result<()> {
    match std::env::var_os(NOTE) {
        Some(note) => own_a_lab(note.as_ref()),
        None => kill_an_owner(),
    }
}

fn own_a_lab(note: &std::path::Path) -> Result<()> {
    let Some(lab) = stage::own(|options| options.nodes = 1)? else { return Ok(()) };
    // One process that Slurm can find, and one that it cannot.
    let script = "#!/bin/bash\nsetsid sleep 1000 &\nsrun sleep 1000\n";
    let job = lab.submit(&stage::user()?, script)?;
    stage::await_running(&lab, job)?;
    let new = note.with_extension("new");
    std::fs::write(&new, lab.folder().display().to_string())?;
    std::fs::rename(new, note)?;
    loop {
        std::thread::park();
    }
}

fn kill_an_owner() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let note = folder.path().join("note");
    let mut owner = Command::new(std::env::current_exe()?)
        .args(["--exact", "guard::a_killed_owner_leaves_nothing"])
        .env(NOTE, &note)
        .stdout(Stdio::null())
        .spawn()?;
    let mut ended = None;
    wait_until("the lab is there", stage::PATIENCE, || {
        ended = owner.try_wait()?;
        Ok(note.exists() || ended.is_some())
    })?;
    if let Some(status) = ended {
        // Where no lab can be, it has said so.
        ensure!(status.success(), "the owner of the lab failed");
        return Ok(());
    }
    let lab = std::fs::read_to_string(&note)?;
    owner.kill()?;
    owner.wait()?;
    let mut left = Vec::new();
    wait_until("nothing of the lab is left", stage::PATIENCE, || {
        left = processes_naming(&format!("{lab}/"));
        Ok(left.is_empty() && !std::path::Path::new(&lab).exists())
    })
    .with_context(|| format!("{left:?}"))
}
