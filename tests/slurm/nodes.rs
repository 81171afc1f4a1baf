//! Jobs of two nodes.

use crate::stage;
use acb_tests::lab::Lab;
use anyhow::{Result, ensure};
use serde_json::Value;

/// The first node's assigner is the controller, the other joins, and the status shows both.
pub(crate) fn join(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let phases = stage::program(lab, "phases");
    let script = format!(
        "#!/bin/bash\n#SBATCH --acb --gres=gpu:1 --nodes=2 --ntasks-per-node=1\n\
         srun {phases} --duration 600\n"
    );
    let job = lab.submit(&user, &script)?;
    let node = stage::await_running(lab, job)?;
    ensure!(node == lab.nodes()[0], "the job's first node is {node}");
    stage::await_status(lab, &user, &node, job, "both nodes are in the status", |status| {
        let Some(nodes) = status["nodes"].as_array() else { return false };
        let role = |name: &str| {
            nodes.iter().find(|node| node["node"] == name).and_then(|node| node["role"].as_str())
        };
        let busy = |name: &str| {
            nodes.iter().filter(|node| node["node"] == name).any(|node| {
                node["clients"].as_array().is_some_and(|clients| {
                    clients.iter().any(|client| client["grants"].as_u64().unwrap_or(0) > 0)
                })
            })
        };
        role("n1") == Some("controller")
            && role("n2") == Some("executor")
            && busy("n1")
            && busy("n2")
    })?;
    ensure!(lab.run(&["scancel", &job.to_string()])?.success());
    ensure!(lab.await_end(job, stage::PATIENCE)? == "CANCELLED");
    stage::assert_gone(lab, job)
}

/// The two ranks of a gang hold their GPUs on two nodes at the same time, beside a step that wants one of them; all get to
/// the end of their work.
pub(crate) fn gang(lab: &Lab) -> Result<()> {
    const ROUNDS: usize = 20;
    let user = stage::user()?;
    let phases = stage::program(lab, "phases");
    let script = format!(
        "#!/bin/bash
#SBATCH --acb --gres=gpu:1 --nodes=2 --ntasks-per-node=1
srun --acb=gang=train:2 {phases} --name rank --rounds {ROUNDS} > ranks.$SLURM_JOB_ID &
gang=$!
srun --nodes=1 --ntasks=1 -w $SLURMD_NODENAME {phases} --name rival --rounds {ROUNDS} > rival.$SLURM_JOB_ID &
wait $gang && wait $!
"
    );
    let job = lab.submit(&user, &script)?;
    let node = stage::await_running(lab, job)?;
    stage::await_status(lab, &user, &node, job, "both nodes hold for the gang", |status| {
        let Some(nodes) = status["nodes"].as_array() else { return false };
        let holds = |node: &Value| {
            let gangs = node["gangs"].as_array().into_iter().flatten();
            gangs.into_iter().any(|gang| gang["gang"] == "train" && gang["stage"] == "holding")
        };
        nodes.len() == 2 && nodes.iter().all(holds)
    })?;
    ensure!(lab.await_end(job, stage::PATIENCE)? == "COMPLETED");
    let home = lab.home(&user)?;
    for (name, tasks) in [("ranks", 2), ("rival", 1)] {
        let text = std::fs::read_to_string(home.join(format!("{name}.{job}")))?;
        let rounds = stage::rounds(&text);
        ensure!(rounds.len() == tasks * ROUNDS, "{name} did {} rounds:\n{text}", rounds.len());
        ensure!(rounds.iter().all(|round| round.ok), "wrong data in {name}:\n{text}");
    }
    stage::assert_gone(lab, job)
}
