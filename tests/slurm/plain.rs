//! Jobs without `--acb` pass through the plugin untouched.

use crate::stage;
use acb_tests::lab::{Lab, PlugStack, wait_until};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;

const SCRIPT: &str = "#!/bin/bash
#SBATCH --gres=gpu:1 --output=slurm-%j.out
echo batch; env
echo step; srun --gres=gpu:1 env
";

/// Looks while it runs, and afterwards.
pub(crate) fn leaves_no_trace(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let script = "#!/bin/bash
#SBATCH --gres=gpu:1 --nodes=2
touch running.$SLURM_JOB_ID
while [ -e running.$SLURM_JOB_ID ]; do sleep 0.1; done
env; srun env
";
    let job = lab.submit(&user, script)?;
    let running = lab.home(&user)?.join(format!("running.{job}"));
    wait_until("the script runs", stage::PATIENCE, || Ok(running.exists()))?;
    let traces = stage::traces(lab, job);
    std::fs::remove_file(running)?;
    ensure!(traces.is_empty(), "while it runs: {traces:?}");
    ensure!(lab.await_end(job, stage::PATIENCE)? == "COMPLETED");
    let output = lab.output(&user, job)?;
    for word in ["ACB_", "LD_PRELOAD", "LD_LIBRARY_PATH", "SIMCUDA", "NCCL", "SPANK", "OVERLAP"] {
        ensure!(!output.contains(word), "{word} in the environment of a plain job:\n{output}");
    }
    stage::assert_gone(lab, job)
}

#[test]
fn a_plain_jobs_environment_is_that_of_a_slurm_without_the_plugin() -> Result<()> {
    let mut names = Vec::new();
    for plugstack in [PlugStack::Acb, PlugStack::Empty] {
        let Some(lab) = stage::own(|options| {
            options.nodes = 1;
            options.plugstack = plugstack;
        })?
        else {
            return Ok(());
        };
        let user = stage::user()?;
        let job = lab.submit(&user, SCRIPT)?;
        ensure!(lab.await_end(job, stage::PATIENCE)? == "COMPLETED");
        let output = lab.output(&user, job)?;
        let set: BTreeSet<_> =
            output.lines().filter_map(|line| Some(line.split_once('=')?.0.to_owned())).collect();
        ensure!(set.contains("SLURM_JOB_ID") && set.contains("CUDA_VISIBLE_DEVICES"), output);
        ensure!(std::fs::read_dir(lab.run_dir())?.next().is_none(), "something in the run folder");
        names.push(set);
    }
    ensure!(names[0] == names[1], "{:?}", names[0].symmetric_difference(&names[1]));
    Ok(())
}
