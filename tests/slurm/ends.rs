//! The ways in which a job ends before its programs do. Each leaves nothing behind.

use crate::stage;
use acb_tests::lab::{JobId, Lab};
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
    let user = stage::user()?;
    let phases = stage::program(lab, "phases");
    let command = format!(
        "if [ \"$SLURM_RESTART_COUNT\" ]; then srun {phases} --rounds 3; \
         else srun {phases} --duration 600; fi"
    );
    let (job, node) = busy(lab, "--requeue", &command)?;
    let ready = stage::folder(lab, &node, job).join("ready.json");
    let first_life = std::fs::read_to_string(&ready)?;
    ensure!(lab.run(&["scontrol", "requeue", &job.to_string()])?.success());
    stage::assert_gone(lab, job)?;
    // Slurm 22.05 counts the delay from the requeue, but the node forgets the first life's
    // credential only cred_expire (30 s, see the lab) after its end, and runs no prolog before that.
    let later = ["scontrol", "update", &format!("JobId={job}"), "StartTime=now+35"];
    ensure!(lab.run(&later)?.success());
    let state = lab.await_end(job, stage::PATIENCE)?;
    let output = lab.output(&user, job)?;
    ensure!(state == "COMPLETED", "{state}: {output}");
    let rounds = stage::rounds(&output);
    ensure!(rounds.iter().all(|round| round.ok) && rounds.len() >= 3, "{rounds:?}");
    ensure!(std::fs::read_to_string(&ready).unwrap_or_default() != first_life);
    stage::assert_gone(lab, job)
}
