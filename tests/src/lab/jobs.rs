//! Jobs and nodes of a lab, as Slurm's own commands show them.

use super::{Account, Lab, Outcome, PATIENCE, wait_until};
use anyhow::{Context, Result, bail};
use std::time::Duration;

/// Number of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobId(pub u32);

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Lab {
    /// Submits a batch script as `account`; `script` is the text, `#!` line included. Its output goes
    /// to `slurm-JOBID.out` in the user's home.
    ///
    /// # Errors
    /// sbatch refuses it.
    pub fn submit(&self, account: &Account, script: &str) -> Result<JobId> {
        let outcome = self.submit_outcome(account, script, &[])?;
        if !outcome.success() {
            bail!("sbatch failed: {outcome}");
        }
        let id = outcome.stdout.trim().split(';').next().unwrap_or_default();
        Ok(JobId(id.parse().with_context(|| format!("sbatch printed {:?}", outcome.stdout))?))
    }

    /// The same with more options of sbatch, and what it says.
    ///
    /// # Errors
    /// The script cannot be written, or sbatch cannot be run.
    pub fn submit_outcome(
        &self,
        account: &Account,
        script: &str,
        options: &[&str],
    ) -> Result<Outcome> {
        let mut file = tempfile::NamedTempFile::new_in(self.folder())?;
        std::io::Write::write_all(&mut file, script.as_bytes())?;
        std::os::unix::fs::chown(file.path(), Some(account.uid), Some(account.gid))?;
        let path = file.path().display().to_string();
        let mut words = vec!["sbatch", "--parsable"];
        words.extend(options);
        words.push(&path);
        self.run_as(account, &words)
    }

    /// What a batch job has written so far.
    ///
    /// # Errors
    /// The user's home cannot be made.
    pub fn output(&self, account: &Account, job: JobId) -> Result<String> {
        let path = self.home(account)?.join(format!("slurm-{job}.out"));
        Ok(String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned())
    }

    /// State of a job as `squeue` names it, for instance "RUNNING".
    ///
    /// # Errors
    /// Slurm does not know the job.
    pub fn job_state(&self, job: JobId) -> Result<String> {
        self.job_field(job, "JobState")
    }

    /// A field of `scontrol show job`, for instance "Comment"; empty when the job has none.
    ///
    /// # Errors
    /// Slurm does not know the job.
    pub fn job_field(&self, job: JobId, name: &str) -> Result<String> {
        let outcome = self.run(&["scontrol", "show", "job", &job.to_string()])?;
        if !outcome.success() {
            bail!("scontrol show job {job}: {outcome}");
        }
        let key = format!("{name}=");
        Ok(outcome
            .stdout
            .lines()
            .find_map(|line| {
                let line = line.trim();
                match line.strip_prefix(&key) {
                    // The first field of a line may hold blanks when it is the only one.
                    Some(value) if name == "Comment" => Some(value.to_owned()),
                    Some(value) => value.split(' ').next().map(str::to_owned),
                    None => line.split(' ').find_map(|w| w.strip_prefix(&key)).map(str::to_owned),
                }
            })
            .unwrap_or_default())
    }

    /// Waits until a job is over and its nodes are free of it; returns its last state.
    ///
    /// # Errors
    /// It is not over when the time is.
    pub fn await_end(&self, job: JobId, patience: Duration) -> Result<String> {
        let mut state = String::new();
        wait_until(&format!("job {job} is over"), patience, || {
            state = self.job_state(job)?;
            let over = !["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING"]
                .contains(&state.as_str());
            // A requeued job's nodes may be busy with its first life.
            let queued = self.run(&["squeue", "--noheader", "--jobs", &job.to_string()])?;
            Ok(over && queued.stdout.trim().is_empty())
        })
        .with_context(|| format!("its last state: {state}"))?;
        Ok(state)
    }

    /// State of a node, in lower case: "idle", "mixed", "drained", ….
    ///
    /// # Errors
    /// Slurm does not answer.
    pub fn node_state(&self, node: &str) -> Result<String> {
        let outcome = self.run(&["sinfo", "--noheader", "--nodes", node, "--format=%T"])?;
        if !outcome.success() {
            bail!("sinfo: {outcome}");
        }
        // Slurm marks states: `*` not responding, `+` completing, `~` asleep, ….
        let state = outcome.stdout.trim().trim_end_matches(|c: char| !c.is_alphabetic());
        Ok(state.to_lowercase())
    }

    /// Waits until every node is idle.
    ///
    /// # Errors
    /// One is not, with its state and reason.
    pub fn await_idle(&self) -> Result<()> {
        wait_until("all nodes are idle", PATIENCE, || {
            Ok(self
                .nodes()
                .iter()
                .map(|node| self.node_state(node))
                .collect::<Result<Vec<_>>>()?
                .iter()
                .all(|state| state == "idle"))
        })
        .with_context(|| {
            self.run(&["sinfo", "-N", "-o", "%N %T %E"]).map_or(String::new(), |o| o.stdout)
        })
    }
}
