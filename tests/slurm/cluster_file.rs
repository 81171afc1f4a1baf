//! A cluster file that is missing or wrong: the user reads why, and the node does not suffer.

use crate::stage;
use acb_tests::lab::{Cluster, Lab, SIMULATED};
use anyhow::{Context, Result, ensure};

const WRONG: &str = "[scheduler]\npolcy = \"simple\"\n";

fn plain_jobs_run(lab: &Lab) -> Result<()> {
    let outcome = lab.run_as(&stage::user()?, &["srun", "-N2", "hostname"])?;
    ensure!(outcome.success(), "{outcome}");
    lab.await_idle()
}

#[test]
fn a_missing_file_is_told_at_submission() -> Result<()> {
    let Some(lab) = stage::own(|options| options.cluster = Cluster::Missing)? else {
        return Ok(());
    };
    let user = stage::user()?;
    let path = lab.cluster_file().display().to_string();
    for words in [["srun", "--acb", "hostname"], ["salloc", "--acb", "hostname"]] {
        let outcome = lab.run_as(&user, &words)?;
        ensure!(!outcome.success() && outcome.stderr.contains(&path), "{outcome}");
    }
    let outcome = lab.submit_outcome(&user, "#!/bin/bash\n#SBATCH --acb\nhostname\n", &[])?;
    ensure!(!outcome.success() && outcome.stderr.contains(&path), "{outcome}");
    // What the nodes would not use is not checked; whoever has set it is told.
    let output = lab
        .command_as(&user, "srun")?
        .args(["--acb", "hostname"])
        .env("ACB_CONF", "/dev/null")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains(&path), "{said}");
    ensure!(said.contains("ACB_CONF=/dev/null is not asked here"), "{said}");
    plain_jobs_run(&lab)
}

#[test]
fn an_invalid_file_is_told_with_its_place() -> Result<()> {
    let Some(lab) = stage::own(|options| options.cluster = Cluster::Text(WRONG.into()))? else {
        return Ok(());
    };
    let outcome = lab.run_as(&stage::user()?, &["srun", "--acb", "hostname"])?;
    let place = format!("{}:2:1", lab.cluster_file().display());
    ensure!(!outcome.success(), "{outcome}");
    for words in [place.as_str(), "polcy", "^^^^^", "policy"] {
        ensure!(outcome.stderr.contains(words), "{words}: {outcome}");
    }
    plain_jobs_run(&lab)
}

/// Between submission and start, or on one node alone, the file can break.
#[test]
fn a_file_that_breaks_later_is_told_by_the_task() -> Result<()> {
    let Some(lab) = stage::own(|options| options.cluster = Cluster::Text(SIMULATED.into()))? else {
        return Ok(());
    };
    let user = stage::user()?;
    let script = "#!/bin/bash\n#SBATCH --acb --gres=gpu:1\nhostname\n";
    let outcome = lab.submit_outcome(&user, script, &["--hold"])?;
    let job = acb_tests::lab::JobId(outcome.checked()?.trim().parse()?);
    for broken in [Some(WRONG), None] {
        match broken {
            Some(text) => std::fs::write(lab.cluster_file(), text)?,
            None => std::fs::remove_file(lab.cluster_file())?,
        }
        if broken.is_some() {
            ensure!(lab.run(&["scontrol", "release", &job.to_string()])?.success());
            ensure!(lab.await_end(job, stage::PATIENCE)? == "FAILED");
            let output = lab.output(&user, job)?;
            let place = format!("{}:2:1", lab.cluster_file().display());
            ensure!(output.contains(&place) && output.contains("polcy"), "{output}");
        }
        plain_jobs_run(&lab)?;
    }
    stage::nodes_are_well(&lab)
}

/// The file breaks while a job runs: the job is swept all the same, and its next step runs as ever.
#[test]
fn a_job_is_swept_without_the_file() -> Result<()> {
    let Some(lab) = stage::own(|options| options.cluster = Cluster::Text(SIMULATED.into()))? else {
        return Ok(());
    };
    let user = stage::user()?;
    let good = std::fs::read_to_string(lab.cluster_file())?;
    let phases = stage::program(&lab, "phases");
    let script =
        format!("#!/bin/bash\n#SBATCH --acb --gres=gpu:1 -N1\nsrun {phases} --duration 600\n");
    let run_dir = lab.run_dir().display().to_string();
    let elsewhere = good.replace(&run_dir, &format!("{run_dir}2"));
    ensure!(elsewhere != good);
    for broken in [Some(WRONG), Some(elsewhere.as_str()), None] {
        std::fs::write(lab.cluster_file(), &good)?;
        let job = lab.submit(&user, &script)?;
        let node = stage::await_running(&lab, job)?;
        stage::await_holder(&lab, &user, &node, job)?;
        match broken {
            Some(text) => std::fs::write(lab.cluster_file(), text)?,
            None => std::fs::remove_file(lab.cluster_file())?,
        }
        ensure!(!stage::traces(&lab, job).is_empty());
        ensure!(lab.run(&["scancel", &job.to_string()])?.success());
        lab.await_end(job, stage::PATIENCE)?;
        stage::assert_gone(&lab, job).with_context(|| format!("cluster file: {broken:?}"))?;
        plain_jobs_run(&lab)?;
    }
    stage::nodes_are_well(&lab)
}

/// ld.so would only warn, and the program would run unmanaged.
#[test]
fn a_missing_installation_is_told_by_the_task() -> Result<()> {
    for (there, gone) in [("/lib/acb\"", "/nowhere\""), ("/bin\"", "/nowhere\"")] {
        let text = SIMULATED.replace(there, gone);
        let Some(lab) = stage::own(|options| options.cluster = Cluster::Text(text))? else {
            return Ok(());
        };
        let words = ["srun", "--acb", "--gres=gpu:1", "--ntasks=3", "hostname"];
        let outcome = lab.run_as(&stage::user()?, &words)?;
        ensure!(!outcome.success() && outcome.stdout.is_empty(), "{outcome}");
        ensure!(outcome.stderr.matches("/nowhere/").count() == 1, "said once: {outcome}");
        plain_jobs_run(&lab)?;
    }
    Ok(())
}
