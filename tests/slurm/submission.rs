//! Ways to ask for slurm-acb, right ones and wrong ones.

use crate::stage;
use acb_tests::lab::{JobId, Lab};
use anyhow::{Result, ensure};

/// Refused before a job exists, by each of the three.
pub(crate) fn wrong_options(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    for (value, words) in [
        ("simpel", "did you mean `simple`"),
        ("gpus=0", "from 1 to 64"),
        ("gpus=99999999999999999999", "from 1 to 64"),
        ("simple,gpus=2", "gpu-affinity"),
        ("quantum=", "allowed is a time"),
        ("colour=red", "unknown key `colour`"),
        ("off,gpus=1", "`off` stands alone"),
        (",", "between the commas"),
        ("%s%n", "is not a policy"),
    ] {
        let option = format!("--acb={value}");
        for words_before in [["srun", &option, "hostname"], ["salloc", &option, "hostname"]] {
            let outcome = lab.run_as(&user, &words_before)?;
            ensure!(!outcome.success() && outcome.stderr.contains(words), "{words}: {outcome}");
        }
        let script = format!("#!/bin/bash\n#SBATCH {option}\nhostname\n");
        let outcome = lab.submit_outcome(&user, &script, &[])?;
        ensure!(!outcome.success() && outcome.stderr.contains(words), "{words}: {outcome}");
    }
    // Long, and not text.
    let long = format!("--acb={}", "x".repeat(100_000));
    let outcome = lab.run_as(&user, &["srun", &long, "hostname"])?;
    ensure!(!outcome.success());
    stage::nodes_are_well(lab)
}

/// Where Slurm counts GPUs, acb shares what the job has asked for.
pub(crate) fn no_gpu(lab: &Lab) -> Result<()> {
    let outcome = lab.run_as(&stage::user()?, &["srun", "--acb", "hostname"])?;
    ensure!(!outcome.success() && outcome.stderr.contains("--gres=gpu:N"), "{outcome}");
    Ok(())
}

/// A step comes too late to start an assigner.
pub(crate) fn step_of_a_plain_job(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let words = [
        "salloc",
        "--gres=gpu:1",
        "bash",
        "-c",
        "srun --acb hostname; [ $? = 1 ] && srun hostname",
    ];
    let outcome = lab.run_as(&user, &words)?;
    ensure!(
        outcome.success() && outcome.stderr.contains("was not submitted with --acb"),
        "{outcome}"
    );
    Ok(())
}

/// How many GPUs a program sees: what `--acb` says, else what Slurm gives each task, else one.
pub(crate) fn gpus_per_client(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let phases = stage::program(lab, "phases");
    for (options, gpus) in [
        (["--acb=gpus=2", "--gres=gpu:2", "--ntasks=1"], 2),
        (["--acb", "--gres=gpu:2", "--ntasks=1"], 1),
        (["--acb", "--gpus-per-task=1", "--ntasks=2"], 1),
        (["--acb", "--gpus-per-task=2", "--ntasks=1"], 2),
    ] {
        let sees = format!("--gpus={gpus}");
        let outcome = lab.run_as(
            &user,
            &[&["srun", "--nodes=1"], &options[..], &[&phases, &sees, "--rounds=2"]].concat(),
        )?;
        ensure!(outcome.success(), "{options:?}: {outcome}");
        let more = format!("--gpus={}", gpus + 1);
        let outcome = lab.run_as(
            &user,
            &[&["srun", "--nodes=1"], &options[..], &[&phases, &more, "--rounds=2"]].concat(),
        )?;
        ensure!(
            outcome.stderr.contains(&format!("the driver shows {gpus}")),
            "{options:?}: {outcome}"
        );
    }
    let script = format!(
        "#!/bin/bash\n#SBATCH --acb --nodes=1 --ntasks=1 --gpus-per-task=2\n\
         srun {phases} --gpus=2 --rounds=2\n"
    );
    let job = lab.submit(&user, &script)?;
    let state = lab.await_end(job, stage::PATIENCE)?;
    ensure!(state == "COMPLETED", "{state}: {}", lab.output(&user, job)?);
    // A step's own word counts more than the job's, and a program's own options are not srun's.
    let script = "#!/bin/bash
#SBATCH --acb --nodes=1 --ntasks=1 --gpus-per-task=2
srun --gpus-per-task=1 sh -c 'echo one $ACB_GPUS.'
srun sh -c 'echo two $ACB_GPUS.' sh --gpus-per-task=1
";
    let job = lab.submit(&user, script)?;
    lab.await_end(job, stage::PATIENCE)?;
    let output = lab.output(&user, job)?;
    ensure!(output.contains("one 1.") && output.contains("two 2."), "{output}");
    Ok(())
}

/// More per client than the job has.
pub(crate) fn too_many_gpus(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let outcome = lab.run_as(&user, &["srun", "--acb=gpus=2", "--gres=gpu:1", "hostname"])?;
    ensure!(!outcome.success() && outcome.stderr.contains("2 GPUs per client"), "{outcome}");
    Ok(())
}

/// The steps of an interactive allocation.
pub(crate) fn salloc(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let phases = stage::program(lab, "phases");
    let command = format!("srun {phases} --rounds 2 && srun --acb=off env");
    let outcome =
        lab.run_as(&user, &["salloc", "--acb", "--gres=gpu:1", "bash", "-c", &command])?;
    ensure!(outcome.success(), "{outcome}");
    ensure!(stage::rounds(&outcome.stdout).len() == 2 && !outcome.stdout.contains("ACB_SOCKET"));
    Ok(())
}

/// Every task of an array and every part of a het job is a job of its own to the nodes.
pub(crate) fn arrays_and_het_jobs(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let phases = stage::program(lab, "phases");
    let script = format!(
        "#!/bin/bash\n#SBATCH --acb --gres=gpu:1 --array=1-2 --output=array-%A-%a.out\n\
         srun {phases} --rounds 3\n"
    );
    let first = lab.submit(&user, &script)?;
    lab.await_end(first, stage::PATIENCE)?;
    for task in 1..=2 {
        let path = lab.home(&user)?.join(format!("array-{first}-{task}.out"));
        let output = std::fs::read_to_string(path)?;
        ensure!(stage::rounds(&output).len() == 3, "task {task}: {output}");
    }
    for job in [first, JobId(first.0 + 1)] {
        stage::assert_gone(lab, job)?;
    }
    let words = [
        "srun",
        "--acb",
        "--gres=gpu:1",
        &phases,
        "--rounds=3",
        ":",
        "--gres=gpu:1",
        &phases,
        "--rounds=3",
    ];
    let outcome = lab.run_as(&user, &words)?;
    ensure!(outcome.success() && stage::rounds(&outcome.stdout).len() == 6, "{outcome}");
    Ok(())
}
