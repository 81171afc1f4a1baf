//! The environment of the tasks of an acb job.

use crate::stage;
use acb_tests::lab::Lab;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

fn variables(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}

/// What the user preloads comes after the interposer, and is really loaded.
pub(crate) fn preload_is_kept(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let library = ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64"]
        .into_iter()
        .map(|folder| Path::new(folder).join("libm.so.6"))
        .find(|path| path.exists())
        .context("some libm.so.6")?;
    // srun's own environment is what the task inherits.
    let output = lab
        .command_as(&user, "srun")?
        .args(["--acb", "--gres=gpu:1", "sh", "-c", "env; cat /proc/self/maps"])
        .env("LD_PRELOAD", &library)
        .env("LD_LIBRARY_PATH", "/users/own")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}{text}", String::from_utf8_lossy(&output.stderr));
    let variables = variables(&text);
    let ours = lab.prefix().library();
    let interposer = ours.join("libcuda.so.1");
    let preload = format!("{}:{}", interposer.display(), library.display());
    ensure!(variables.get("LD_PRELOAD") == Some(&preload.as_str()), "{text}");
    let search = format!("{}:/users/own", ours.display());
    ensure!(variables.get("LD_LIBRARY_PATH") == Some(&search.as_str()), "{text}");
    for file in [interposer, library] {
        let file = file.canonicalize()?.display().to_string();
        ensure!(text.contains(&file), "{file} is not loaded: {text}");
    }
    Ok(())
}

/// What `mem=` allows is all that a task's GPU seems to have: less is given, more is not.
pub(crate) fn memory_is_limited(lab: &Lab) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Answer {
        error: Option<String>,
        total: u64,
    }
    let user = stage::user()?;
    let mut child = lab
        .command_as(&user, "srun")?
        .args(["--acb=mem=1G", "--gres=gpu:1"])
        .arg(stage::program(lab, "on_request"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let requests = "info\nalloc 1 1G\nalloc 1 256M\nalloc 4 256M\ninfo\n";
    child.stdin.take().context("its input")?.write_all(requests.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}{text}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Answer> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context(text.to_string())?;
    let [_ready, info, all, some, more, again] = &answers[..] else { anyhow::bail!("{text}") };
    // The total is without what is set aside for a context.
    let limit = 1 << 30;
    ensure!(info.total <= limit && info.total >= limit / 2 && again.total == info.total, "{text}");
    let failed = |answer: &Answer| {
        answer.error.as_deref().is_some_and(|why| why.contains("CUDA_ERROR_OUT_OF_MEMORY"))
    };
    ensure!(failed(all) && some.error.is_none() && failed(more), "{text}");
    Ok(())
}

/// A step with `--acb=off`, started from a batch step that has it all.
pub(crate) fn off(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let script = "#!/bin/bash\n#SBATCH --acb --gres=gpu:1\nsrun --acb=off env\n";
    let job = lab.submit(&user, script)?;
    ensure!(lab.await_end(job, stage::PATIENCE)? == "COMPLETED");
    let output = lab.output(&user, job)?;
    let variables = variables(&output);
    let ours = variables
        .keys()
        .find(|name| ["ACB_", "LD_", "NCCL_"].iter().any(|begin| name.starts_with(begin)));
    ensure!(ours.is_none(), "{ours:?} in a step with --acb=off:\n{output}");
    // As Slurm has it: it sets both alike, and counts from 0 where devices are constrained.
    let visible = variables.get("CUDA_VISIBLE_DEVICES");
    ensure!(visible.is_some() && visible == variables.get("GPU_DEVICE_ORDINAL"), "{output}");
    stage::assert_gone(lab, job)
}

/// What the node's user database says.
fn passwd_home(name: &str) -> Result<String> {
    let entry = std::process::Command::new("getent").args(["passwd", name]).output()?;
    let entry = String::from_utf8(entry.stdout)?;
    entry.split(':').nth(5).map(str::to_owned).context("a home folder")
}

/// The job's key is in no task's environment, no command line, no log.
pub(crate) fn key_is_hidden(lab: &Lab) -> Result<()> {
    let user = stage::user()?;
    let script = "#!/bin/bash
#SBATCH --acb --gres=gpu:1 --nodes=1
env; srun env; cat /proc/[0-9]*/cmdline | tr '\\0' ' '
sed -n 's/^key = \"\\(.*\\)\"/\\1/p' $(dirname $ACB_SOCKET)/spec.toml > key.$SLURM_JOB_ID
sed -n 's/^home = \"\\(.*\\)\"/\\1/p' $(dirname $ACB_SOCKET)/spec.toml > home.$SLURM_JOB_ID
";
    let job = lab.submit(&user, script)?;
    ensure!(lab.await_end(job, stage::PATIENCE)? == "COMPLETED");
    let key = std::fs::read_to_string(lab.home(&user)?.join(format!("key.{job}")))?;
    let key = key.trim();
    ensure!(key.len() == 64, "the key is `{key}`");
    let home = std::fs::read_to_string(lab.home(&user)?.join(format!("home.{job}")))?;
    ensure!(!home.trim().is_empty() && home.trim() == passwd_home(&user.name)?, "home: `{home}`");
    ensure!(!lab.output(&user, job)?.contains(key), "the key is in the job's output");
    for log in ["slurmctld", "n1", "n2"] {
        ensure!(!lab.log(log).contains(key), "the key is in the log of {log}");
    }
    let shown = lab.run(&["scontrol", "show", "job", "-dd", &job.to_string()])?;
    ensure!(!shown.stdout.contains(key), "the key is in scontrol");
    Ok(())
}
