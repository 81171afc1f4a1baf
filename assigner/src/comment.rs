//! The job's comment: one line of statistics, where `squeue` and `scontrol` show it.
//!
//! Owns when it may be written: never over somebody else's words, and not often, for each writing
//! is work for the controller of the cluster. Runs `scontrol`, with a time limit; whatever happens
//! to it, nothing else waits.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::settings::{Job, Settings};

/// What our comments begin with.
const PREFIX: &str = "acb:";
/// The first pause before a writing. Short jobs should have one, and early ones are refused.
const FIRST_PAUSE: Duration = Duration::from_secs(3);
/// The longest pause between two writings.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long `scontrol` may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Where Slurm's programs are when PATH does not say so; daemons of Slurm have little of a PATH.
const USUAL_PATH: &str = "/usr/bin:/usr/local/bin:/opt/slurm/bin:/usr/sbin";

/// Writes the comment of one job.
pub struct Commenter(watch::Sender<String>);

impl Commenter {
    /// The commenter of this daemon, if it is to write comments. Needs a runtime.
    pub fn of(settings: &Settings) -> Option<Commenter> {
        let job = settings.job.clone().filter(|job| job.comment)?;
        let (sender, receiver) = watch::channel(String::new());
        tokio::spawn(write_for_ever(job, receiver));
        Some(Commenter(sender))
    }

    /// The line to write when it is time for it.
    pub fn offer(&mut self, line: &str) {
        let text = format!("{PREFIX} {line}");
        self.0.send_if_modified(|old| {
            let is_new = *old != text;
            *old = text;
            is_new
        });
    }
}

async fn write_for_ever(job: Job, mut lines: watch::Receiver<String>) {
    let slurm = Slurm { conf: job.slurm_conf };
    let mut pause = FIRST_PAUSE;
    let mut has_complained = false;
    loop {
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        if lines.changed().await.is_err() {
            return;
        }
        let text = lines.borrow_and_update().clone();
        match write(&slurm, job.id, &text).await {
            Ok(Written::Ours) => {}
            Ok(Written::Foreign) => {
                tracing::info!(
                    "job {} has a comment of its own; statistics are in stats.json alone",
                    job.id
                );
                return;
            }
            Err(error) => {
                // Early in a job it is refused until the accounting database knows the job.
                lines.mark_changed();
                if !has_complained {
                    tracing::warn!(
                        "the comment of job {} cannot be written: {error}; trying on",
                        job.id
                    );
                    has_complained = true;
                }
            }
        }
    }
}

enum Written {
    Ours,
    Foreign,
}

async fn write(slurm: &Slurm, job: u32, text: &str) -> Result<Written, CommentError> {
    let shown = slurm.scontrol(&["show", "job", &job.to_string()]).await?;
    let shown = JobShown::parse(&shown, job);
    if !is_ours(&shown.comment) {
        return Ok(Written::Foreign);
    }
    let (job, comment) = (format!("job={}", shown.address), format!("comment={text}"));
    slurm.scontrol(&["update", &job, &comment]).await?;
    Ok(Written::Ours)
}

fn is_ours(comment: &str) -> bool {
    comment.is_empty() || comment == "(null)" || comment.starts_with(PREFIX)
}

/// What `scontrol show job` says, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
struct JobShown {
    /// The id that names this job alone: an array's id would name all its tasks.
    address: String,
    comment: String,
}

impl JobShown {
    fn parse(text: &str, job: u32) -> JobShown {
        let first = text.lines().next().unwrap_or_default();
        let field = |name: &str| {
            first
                .split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let address = match (field("ArrayJobId"), field("ArrayTaskId")) {
            (Some(array), Some(task)) if task.parse::<u32>().is_ok() => format!("{array}_{task}"),
            _ => match (field("HetJobId"), field("HetJobOffset")) {
                (Some(het), Some(offset)) => format!("{het}+{offset}"),
                _ => job.to_string(),
            },
        };
        let comment = text.lines().find_map(|line| line.trim_start().strip_prefix("Comment="));
        JobShown { address, comment: comment.unwrap_or_default().to_owned() }
    }
}

struct Slurm {
    conf: Option<PathBuf>,
}

/// Why a comment was not written.
#[derive(Debug, thiserror::Error)]
enum CommentError {
    #[error("scontrol cannot be run: {0}")]
    Run(#[from] std::io::Error),
    #[error("scontrol does not answer within {} s", LIMIT.as_secs())]
    Slow,
    #[error("scontrol: {0}")]
    Refused(String),
}

impl Slurm {
    async fn scontrol(&self, arguments: &[&str]) -> Result<String, CommentError> {
        let mut command = Command::new("scontrol");
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:{USUAL_PATH}").trim_start_matches(':'));
        // The interposer has no business in Slurm's tools.
        command.env_remove("LD_PRELOAD");
        if let Some(conf) = &self.conf {
            command.env("SLURM_CONF", conf);
        }
        let output = timeout(LIMIT, command.output()).await.map_err(|_| CommentError::Slow)??;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(CommentError::Refused(words.lines().next().unwrap_or("failed").to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_of_an_array_is_addressed_alone() {
        let text = "JobId=124 ArrayJobId=120 ArrayTaskId=3 JobName=x\n   UserId=u(1)\n   Comment=acb: 1 GPU\n";
        let shown = JobShown::parse(text, 124);
        assert_eq!(shown, JobShown { address: "120_3".into(), comment: "acb: 1 GPU".into() });
        assert_eq!(
            JobShown::parse("JobId=7 HetJobId=6 HetJobOffset=1 JobName=x", 7).address,
            "6+1"
        );
        assert_eq!(JobShown::parse("JobId=9 JobName=x", 9).address, "9");
    }

    #[test]
    fn other_peoples_comments_are_left_alone() {
        for ours in ["", "(null)", "acb: 2 GPUs"] {
            assert!(is_ours(ours), "{ours}");
        }
        for theirs in ["JS1:abc", "{\"acb\":1}", "my run", " acb: no"] {
            assert!(!is_ours(theirs), "{theirs}");
        }
    }
}
