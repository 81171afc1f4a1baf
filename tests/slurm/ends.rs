//! The ways in which a job ends before its programs do. Each leaves nothing behind.

use crate::stage;
use acb_tests::lab::{JobId, Lab, wait_until};
use anyhow::{Result, ensure};

/// A job in mid-phase, and the node of its assigner.
fn busy(lab: &Lab, options: &str, command: &str) -> Result<(JobId, String)> {
    let user = stage::user()?;
    let script = format!("#!/bin/bash\n#SBATCH --acb --gres=gpu:1 {options}\n{command}\n");
    let job = lab.submit(&user, &script)?;
    let node = stage::await_running(lab, job)?;
    stage::await_holder(lab, &user, &node, job)?;
    Ok((job, node))
}

/// The user ends it.
pub(crate) fn scancel(lab: &Lab) -> Result<()> {
    let phases = stage::program(lab, "phases");
    let (job, _) = busy(lab, "", &format!("srun {phases} --gpu-ms 2000 --duration 600"))?;
    ensure!(lab.run(&["scancel", &job.to_string()])?.success());
    ensure!(lab.await_end(job, stage::PATIENCE)? == "CANCELLED");
    stage::assert_gone(lab, job)
}

/// Slurm ends it, and the tasks do not want to.
pub(crate) fn time_limit(lab: &Lab) -> Result<()> {
    let phases = stage::program(lab, "phases");
    let stubborn =
        format!("srun bash -c 'trap \"\" TERM; {phases} --duration 600 & while :; do wait; done'");
    let (job, _) = busy(lab, "--time=1", &stubborn)?;
    // A minute, and then Slurm's own rounding.
    ensure!(lab.await_end(job, stage::PATIENCE * 3)? == "TIMEOUT");
    stage::assert_gone(lab, job)
}

/// The administrator puts it back into the queue: the second life has the same number, and an
/// assigner of its own.
pub(crate) fn requeue(lab: &Lab) -> Result<()> {
    let phases = stage::program(lab, "phases");
    second_life(lab, "", &format!("srun {phases} --rounds 3"), 3)
}

/// The same on two nodes: the batch step has the assigner of its node, and each step on the other
/// node finds one there.
pub(crate) fn requeue_of_two_nodes(lab: &Lab) -> Result<()> {
    let phases = stage::program(lab, "phases");
    let step = format!("srun {phases} --rounds 3");
    second_life(lab, "--nodes=2 --ntasks-per-node=1", &format!("{step} && {step}"), 12)
}

/// slurmd looks for credentials to forget every two seconds at most, when it has to do with any. Where
/// other jobs have just made it look, it takes the second life for the first, and runs neither prolog
/// nor extern step.
fn second_life(lab: &Lab, options: &str, command: &str, rounds: usize) -> Result<()> {
    let user = stage::user()?;
    let phases = stage::program(lab, "phases");
    let command = format!(
        "if [ \"$SLURM_RESTART_COUNT\" ]; then {command}; else srun {phases} --duration 600; fi"
    );
    let (job, node) = busy(lab, &format!("--requeue {options}"), &command)?;
    let ready = stage::folder(lab, &node, job).join("ready.json");
    let first_life = std::fs::read_to_string(&ready)?;
    ensure!(lab.run(&["scontrol", "requeue", &job.to_string()])?.success());
    stage::assert_gone(lab, job)?;
    // A credential of the second in which the first life ended would be refused.
    let soon = ["scontrol", "update", &format!("JobId={job}"), "StartTime=now+3"];
    ensure!(lab.run(&soon)?.success());
    wait_until("the second life starts, among others", stage::PATIENCE, || {
        let nodes = format!("--nodelist={}", lab.nodes().join(","));
        lab.run(&["srun", "--quiet", "--immediate=1", &nodes, "true"])?;
        Ok(lab.job_state(job)? != "PENDING")
    })?;
    let state = lab.await_end(job, stage::PATIENCE)?;
    let output = lab.output(&user, job)?;
    ensure!(state == "COMPLETED", "{state}: {output}");
    let done = stage::rounds(&output);
    ensure!(done.iter().all(|round| round.ok) && done.len() >= rounds, "{output}");
    ensure!(std::fs::read_to_string(&ready).unwrap_or_default() != first_life);
    stage::assert_gone(lab, job)
}
