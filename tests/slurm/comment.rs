//! Statistics in the job's comment.

use crate::stage;
use acb_tests::lab::{JobId, Lab, wait_until};
use anyhow::{Context, Result, ensure};

fn job(lab: &Lab, options: &[&str]) -> Result<(JobId, String)> {
    let user = stage::user()?;
    let phases = stage::program(lab, "phases");
    let script = format!("#!/bin/bash\n#SBATCH --acb --gres=gpu:1\nsrun {phases} --duration 600\n");
    let outcome = lab.submit_outcome(&user, &script, options)?;
    let job = JobId(outcome.checked()?.trim().parse()?);
    let node = stage::await_running(lab, job)?;
    stage::await_holder(lab, &user, &node, job)?;
    Ok((job, node))
}

fn end(lab: &Lab, job: JobId) -> Result<()> {
    ensure!(lab.run(&["scancel", &job.to_string()])?.success());
    lab.await_end(job, stage::PATIENCE)?;
    stage::assert_gone(lab, job)
}

/// A job without a comment gets one.
pub(crate) fn written(lab: &Lab) -> Result<()> {
    let (job, _) = self::job(lab, &[])?;
    let mut comment = String::new();
    wait_until("the comment is written", stage::PATIENCE, || {
        comment = lab.job_field(job, "Comment")?;
        Ok(!comment.is_empty() && comment != "(null)")
    })?;
    ensure!(comment.len() <= 1024 && comment.contains("acb"), "{comment}");
    end(lab, job)
}

/// A job with one keeps it: the assigner says in its log that it saw it.
pub(crate) fn kept(lab: &Lab) -> Result<()> {
    let (job, node) = self::job(lab, &["--comment=my own {\"x\":1}"])?;
    let log = stage::folder(lab, &node, job).join("assigner.log");
    wait_until("the assigner has seen the comment", stage::PATIENCE, || {
        Ok(std::fs::read_to_string(&log).is_ok_and(|text| text.contains("comment of its own")))
    })
    .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
    ensure!(lab.job_field(job, "Comment")? == "my own {\"x\":1}");
    end(lab, job)?;
    ensure!(lab.job_field(job, "Comment")? == "my own {\"x\":1}");
    Ok(())
}
