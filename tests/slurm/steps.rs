//! Steps beside each other in one job.

use crate::stage;
use acb_tests::bench::record::Round;
use acb_tests::lab::{JobId, Lab, processes_naming};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;

/// Two parallel sruns of a batch job share its GPU.
pub(crate) fn share(lab: &Lab) -> Result<()> {
    two_sruns(lab, "ALL")
}

/// The same, where srun inherits nothing of the user's environment.
pub(crate) fn share_without_the_environment(lab: &Lab) -> Result<()> {
    two_sruns(lab, "NONE")
}

fn two_sruns(lab: &Lab, export: &str) -> Result<()> {
    let user = stage::user()?;
    let phases = stage::program(lab, "phases");
    let script = format!(
        "#!/bin/bash
#SBATCH --acb --export={export}
#SBATCH --nodes=1 --ntasks=2 --gres=gpu:1
rm -f done
srun --ntasks=1 --gres=gpu:1 {phases} --name a --duration 600 > a.$SLURM_JOB_ID &
srun --ntasks=1 --gres=gpu:1 {phases} --name b --duration 600 > b.$SLURM_JOB_ID &
wait
"
    );
    let job = lab.submit(&user, &script)?;
    let node = stage::await_running(lab, job)?;
    stage::await_status(lab, &user, &node, job, "both steps have had the GPU", |status| {
        let clients = stage::clients(status);
        let steps: BTreeSet<_> = clients
            .iter()
            .filter(|client| client["grants"].as_u64().unwrap_or(0) > 2)
            .filter_map(|client| client["step"].as_str())
            .collect();
        steps.contains("0") && steps.contains("1")
    })?;
    ensure!(assigners(lab, &node, job)? == 1, "more than one assigner");
    ensure!(lab.run(&["scancel", &job.to_string()])?.success());
    lab.await_end(job, stage::PATIENCE)?;

    let home = lab.home(&user)?;
    let read = |name: &str| -> Result<Vec<Round>> {
        let rounds = stage::rounds(&std::fs::read_to_string(home.join(format!("{name}.{job}")))?);
        ensure!(rounds.iter().all(|round| round.ok), "wrong data in {name}");
        Ok(rounds)
    };
    let (a, b) = (read("a")?, read("b")?);
    ensure!(beside(&a, &b), "the steps ran one after the other");
    ensure!(apart(&a, &b), "two GPU phases at once on one GPU\n{a:#?}\n{b:#?}");
    stage::assert_gone(lab, job)
}

/// How many assigners the job has on the node: a supervisor and its worker are in one session.
fn assigners(lab: &Lab, node: &str, job: JobId) -> Result<usize> {
    let spec = stage::folder(lab, node, job).join("spec.toml").display().to_string();
    let sessions: BTreeSet<_> = processes_naming(&spec)
        .into_iter()
        .filter_map(|(pid, _)| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(')')?.1.split_whitespace().nth(3).map(str::to_owned)
        })
        .collect();
    Ok(sessions.len())
}

/// Some time belongs to both.
fn beside(a: &[Round], b: &[Round]) -> bool {
    let span = |rounds: &[Round]| Some((rounds.first()?.cpu_start_ns, rounds.last()?.gpu_done_ns));
    match (span(a), span(b)) {
        (Some(a), Some(b)) => a.0 < b.1 && b.0 < a.1,
        _ => false,
    }
}

/// No two GPU phases overlap.
fn apart(a: &[Round], b: &[Round]) -> bool {
    a.iter()
        .all(|a| b.iter().all(|b| a.gpu_done_ns <= b.gpu_got_ns || b.gpu_done_ns <= a.gpu_got_ns))
}

#[test]
fn overlaps_are_seen() -> Result<()> {
    let round = |got, done| {
        let line = format!(
            r#"{{"name":"a","pid":1,"round":0,"cpu_start_ns":0,"gpu_wanted_ns":0,"gpu_got_ns":{got},"gpu_done_ns":{done},"ok":true}}"#
        );
        Round::parse(&line).context("a record")
    };
    ensure!(!apart(&[round(1, 5)?], &[round(4, 6)?]) && apart(&[round(1, 5)?], &[round(5, 6)?]));
    Ok(())
}
