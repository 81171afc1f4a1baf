//! A job of two nodes.

use crate::stage;
use acb_tests::lab::Lab;
use anyhow::{Result, ensure};

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
