//! There is no assigner, or it is killed while programs use the GPU.

use crate::stage;
use acb_tests::lab::{ExternStep, JobId, Lab, wait_until};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Command;

/// Two programs share a GPU for so many rounds each and until it is [`enough`]; the job's first node once both do.
fn sharing(lab: &Lab) -> Result<(JobId, String)> {
    let user = stage::user()?;
    let phases = stage::program(lab, "phases");
    let script = format!(
        "#!/bin/bash\n#SBATCH --acb --gres=gpu:1 --nodes=1 --ntasks=2\n\
         srun {phases} --rounds 60 --until enough.$SLURM_JOB_ID --cpu-ms 60 --gpu-ms 40\n"
    );
    let job = lab.submit(&user, &script)?;
    let node = stage::await_running(lab, job)?;
    stage::await_status(lab, &user, &node, job, "both have had the GPU", |status| {
        let clients = stage::clients(status);
        clients.len() == 2
            && clients.iter().all(|client| client["grants"].as_u64().unwrap_or(0) > 1)
    })?;
    Ok((job, node))
}

/// What was to happen to the programs of a job has happened: they come to their end.
fn enough(lab: &Lab, job: JobId) -> Result<()> {
    let home = lab.home(&stage::user()?)?;
    Ok(std::fs::write(home.join(format!("enough.{job}")), "")?)
}

fn all_rounds_are_right(lab: &Lab, job: JobId) -> Result<()> {
    enough(lab, job)?;
    let state = lab.await_end(job, stage::PATIENCE)?;
    let output = lab.output(&stage::user()?, job)?;
    ensure!(state == "COMPLETED", "{state}: {output}");
    let rounds = stage::rounds(&output);
    ensure!(rounds.len() >= 120 && rounds.iter().all(|round| round.ok), "{output}");
    stage::assert_gone(lab, job)
}

/// The supervisor of a job's assigner, and its worker.
fn processes(lab: &Lab, node: &str, job: JobId) -> Result<(u32, Vec<u32>)> {
    let ready = std::fs::read_to_string(stage::folder(lab, node, job).join("ready.json"))?;
    let ready: Value = serde_json::from_str(&ready)?;
    let pid = ready["pid"].as_u64().context("ready.json has a pid")?;
    let supervisor = u32::try_from(pid)?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok((supervisor, children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()))
}

fn kill(pid: u32) -> Result<()> {
    let killed = Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
    ensure!(killed.success(), "kill {pid}");
    Ok(())
}

/// The worker: its supervisor brings it back, and nobody loses a byte.
pub(crate) fn daemon_is_killed(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let (job, node) = sharing(lab)?;
    let (_, workers) = processes(lab, &node, job)?;
    ensure!(workers.len() == 1, "workers: {workers:?}");
    kill(workers[0])?;
    stage::await_status(lab, &user, &node, job, "the worker is back", |status| {
        status["nodes"][0]["restarts"].as_u64().unwrap_or(0) >= 1
    })?;
    all_rounds_are_right(lab, job)
}

/// Both: nobody is left to schedule, and the programs go on without.
pub(crate) fn daemon_and_supervisor_are_killed(lab: &Lab) -> Result<()> {
    let (job, node) = sharing(lab)?;
    let (supervisor, workers) = processes(lab, &node, job)?;
    kill(supervisor)?;
    for worker in workers {
        // It may have gone with its supervisor.
        let _ = kill(worker);
    }
    let user = stage::user()?;
    wait_until("the assigner is gone", stage::PATIENCE, || {
        Ok(stage::status(lab, &user, &node, job)?.is_none())
    })?;
    all_rounds_are_right(lab, job)
}

#[test]
fn without_an_extern_step_the_user_reads_what_is_missing() -> Result<()> {
    let Some(lab) = stage::own(|options| options.extern_step = ExternStep::No)? else {
        return Ok(());
    };
    let user = stage::user()?;
    let outcome = lab.run_as(&user, &["srun", "--acb", "--gres=gpu:1", "hostname"])?;
    ensure!(!outcome.success(), "{outcome}");
    for word in ["PrologFlags=Contain", "agarun"] {
        ensure!(outcome.stderr.contains(word), "{word}: {outcome}");
    }
    lab.await_idle()?;
    for node in lab.nodes() {
        let spec = lab.run_dir().join(node).join("spec");
        ensure!(std::fs::read_dir(spec).map_or(0, Iterator::count) == 0, "{node} keeps records");
    }
    Ok(())
}
