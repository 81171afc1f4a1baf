//! What the scenarios share: the labs, a job's assigner seen from outside, and what must be gone.

use acb_tests::bench::record::Round;
use acb_tests::lab::{
    Account, JobId, Lab, Options, Prefix, Proctrack, missing, processes_naming, wait_until,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// Far more than anything here takes, on a machine with other things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// One lab for all scenarios of a proctrack. Statics are not dropped: the lab's guard ends it with
/// this process.
pub(crate) fn shared(proctrack: Proctrack, scenario: fn(&Lab) -> Result<()>) -> Result<()> {
    static LABS: [OnceLock<Result<Option<Lab>, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let cell = match proctrack {
        Proctrack::LinuxProc => &LABS[0],
        Proctrack::Cgroup => &LABS[1],
    };
    let lab = cell.get_or_init(|| start(proctrack).map_err(|error| format!("{error:#}")));
    match lab {
        Err(why) => bail!("{why}"),
        Ok(None) => Ok(()),
        Ok(Some(lab)) => {
            scenario(lab)?;
            nodes_are_well(lab)
        }
    }
}

/// A lab of the test's own; `None` where none can be, which is said.
pub(crate) fn own(change: impl FnOnce(&mut Options)) -> Result<Option<Lab>> {
    if cannot(Proctrack::LinuxProc)? {
        return Ok(None);
    }
    let mut options = Options::new(Prefix::from_env()?);
    change(&mut options);
    Lab::start(&options).map(Some)
}

fn start(proctrack: Proctrack) -> Result<Option<Lab>> {
    if cannot(proctrack)? {
        return Ok(None);
    }
    let mut options = Options::new(Prefix::from_env()?);
    options.proctrack = proctrack;
    Lab::start(&options).map(Some)
}

/// Whether these tests are left out, which is said: an unprivileged user cannot run them, and a
/// machine without cgroup v1 not those of proctrack/cgroup. What root could install is an error.
fn cannot(proctrack: Proctrack) -> Result<bool> {
    let basic = missing(Proctrack::LinuxProc);
    let all = missing(proctrack);
    if all.is_empty() {
        return Ok(false);
    }
    let why = all.join("; ");
    if !basic.is_empty() && !basic.iter().any(|what| what.contains("needs root")) {
        bail!("the tests on a real Slurm cannot run: {why}");
    }
    eprintln!("left out: {why}");
    Ok(true)
}

/// No node was drained, every slurmd answers.
pub(crate) fn nodes_are_well(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let state = lab.node_state(node)?;
        ensure!(
            !["drain", "down", "fail", "unknown"].iter().any(|bad| state.contains(bad)),
            "{node} is {state}: {}",
            lab.run(&["sinfo", "-N", "-o", "%N %T %E"])?.stdout
        );
    }
    Ok(())
}

/// The user of most scenarios.
pub(crate) fn user() -> Result<Account> {
    Account::test(1)
}

/// Path of a program of the installation's tests.
pub(crate) fn program(lab: &Lab, name: &str) -> String {
    lab.prefix().test_program(name).display().to_string()
}

/// The user's folder of a job on a node.
pub(crate) fn folder(lab: &Lab, node: &str, job: JobId) -> PathBuf {
    lab.run_dir().join(node).join(job.to_string())
}

/// The job's first node.
pub(crate) fn first_node(lab: &Lab, job: JobId) -> Result<String> {
    let list = lab.job_field(job, "NodeList")?;
    let names = acb_cluster_conf::expand(&list).with_context(|| format!("NodeList={list}"))?;
    names.into_iter().next().context("a running job has a node")
}

/// Waits until a job runs; its first node.
pub(crate) fn await_running(lab: &Lab, job: JobId) -> Result<String> {
    wait_until(&format!("job {job} runs"), PATIENCE, || Ok(lab.job_state(job)? == "RUNNING"))?;
    first_node(lab, job)
}

/// `gpu_assigner status --json` of a job's assigner, as its user; `None` when it does not answer.
pub(crate) fn status(
    lab: &Lab,
    account: &Account,
    node: &str,
    job: JobId,
) -> Result<Option<Value>> {
    let assigner = lab.prefix().program("gpu_assigner").display().to_string();
    let folder = folder(lab, node, job).display().to_string();
    let words = [assigner.as_str(), "--socket-dir", &folder, "status", "--json"];
    let outcome = lab.run_as(account, &words)?;
    if !outcome.success() {
        return Ok(None);
    }
    serde_json::from_str(&outcome.stdout).map(Some).with_context(|| outcome.to_string())
}

/// Waits until a job's status has what is wanted.
pub(crate) fn await_status(
    lab: &Lab,
    account: &Account,
    node: &str,
    job: JobId,
    what: &str,
    mut wanted: impl FnMut(&Value) -> bool,
) -> Result<Value> {
    let mut last = None;
    let waited = wait_until(what, PATIENCE, || {
        last = status(lab, account, node, job)?;
        Ok(last.as_ref().is_some_and(&mut wanted))
    });
    match (waited, last) {
        (Ok(()), Some(status)) => Ok(status),
        (waited, last) => {
            waited.with_context(|| {
                let log = folder(lab, node, job).join("assigner.log");
                format!(
                    "job {job} is {:?}\n--- its output\n{}\n--- last status\n{last:?}\n--- {}\n{}",
                    lab.job_state(job),
                    lab.output(account, job).unwrap_or_default(),
                    log.display(),
                    std::fs::read_to_string(&log).unwrap_or_default()
                )
            })?;
            bail!("no status")
        }
    }
}

/// The clients of the first node in a status.
pub(crate) fn clients(status: &Value) -> Vec<&Value> {
    status["nodes"][0]["clients"].as_array().map(|list| list.iter().collect()).unwrap_or_default()
}

/// Waits until some client of a job holds a GPU.
pub(crate) fn await_holder(lab: &Lab, account: &Account, node: &str, job: JobId) -> Result<Value> {
    await_status(lab, account, node, job, "a client holds a GPU", |status| {
        clients(status).iter().any(|client| client["grants"].as_u64().unwrap_or(0) > 0)
    })
}

/// The record in a program's output.
pub(crate) fn rounds(output: &str) -> Vec<Round> {
    output.lines().filter_map(Round::parse).collect()
}

/// Waits until nothing of a job is left on any node: processes, folders, records, cgroups.
pub(crate) fn assert_gone(lab: &Lab, job: JobId) -> Result<()> {
    let mut left = Vec::new();
    wait_until(&format!("nothing of job {job} is left"), PATIENCE, || {
        left = traces(lab, job);
        left.extend(lab.nodes().iter().flat_map(|node| cgroups(node, job)));
        Ok(left.is_empty())
    })
    .with_context(|| left.join("\n"))
}

/// What slurm-acb has of a job now: processes, folders, records.
pub(crate) fn traces(lab: &Lab, job: JobId) -> Vec<String> {
    let mut traces = Vec::new();
    for node in lab.nodes() {
        let folder = folder(lab, node, job);
        traces.extend(
            processes_naming(&format!("{}/", folder.display()))
                .into_iter()
                .map(|(pid, command)| format!("process {pid}: {command}")),
        );
        let spec = lab.run_dir().join(node).join("spec");
        traces.extend(
            ["toml", "failed", "daemon", "new"]
                .map(|kind| spec.join(format!("{job}.{kind}")))
                .into_iter()
                .chain([folder])
                .filter(|path| path.symlink_metadata().is_ok())
                .map(|path| path.display().to_string()),
        );
        traces.extend(whereabouts(lab, node, job));
    }
    traces
}

/// What root remembers of where the job's records are. Other labs have the same nodes and jobs.
fn whereabouts(lab: &Lab, node: &str, job: JobId) -> Vec<String> {
    let begin = format!("{node}-{job}-");
    std::fs::read_dir("/run/acb-jobs")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&begin))
        .map(|entry| entry.path())
        .filter(|path| std::fs::read_link(path).is_ok_and(|run_dir| run_dir == lab.run_dir()))
        .map(|path| path.display().to_string())
        .collect()
}

/// The job's cgroups of a node.
fn cgroups(node: &str, job: JobId) -> Vec<String> {
    let name = format!("job_{job}");
    let read = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    read("/sys/fs/cgroup".into())
        .flat_map(|hierarchy| read(hierarchy.path().join(format!("slurm_{node}"))))
        .flat_map(|user| read(user.path()))
        .filter(|entry| entry.file_name().to_str() == Some(&name))
        .map(|entry| entry.path().display().to_string())
        .collect()
}
