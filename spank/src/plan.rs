//! What a task of an acb job is given, decided from facts alone.
//!
//! Owns: the environment of the tasks (docs/architecture.md, "Environment of a client"), and the
//! reasons why a task cannot run. Pure: no IO, no Slurm, no environment of its own.

use crate::library::Library;
use crate::ready::Ready;
use crate::resources::{Devices, bound_per_task, gpus_per_task, tres_per_task};
use acb_cluster_conf::{Conflict, JobSpec, Request};
use std::collections::BTreeMap;
use std::fmt::Display;

/// A change of the task's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Set(String, String),
    Unset(String),
}

/// Why a task of an acb job cannot run, with what its user can do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TaskError {
    #[error(
        "job {job_id} was not submitted with --acb: give it to sbatch or salloc, not to srun inside \
         the job, or start the program with agarun"
    )]
    NotAnAcbJob { job_id: u32 },
    #[error(
        "there is no GPU assigner for job {job_id} on node {node}: Slurm has no extern step here. \
         Ask the administrator to set PrologFlags=Contain in slurm.conf, or start the program with agarun"
    )]
    NoExternStep { job_id: u32, node: String },
    #[error(
        "the GPU assigner of job {job_id} did not start on node {node}: the log of slurmd there says why"
    )]
    NotStarted { job_id: u32, node: String },
    #[error(
        "--acb of a step can set all but policy and quantum, and `off`: those are the job's \
         (policy={policy}, quantum={quantum_ms}ms), set where it begins (sbatch, salloc)"
    )]
    PolicyIsTheJobs { policy: String, quantum_ms: u32 },
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error(
        "{wanted} GPUs per client are wanted ({origin}), but job {job_id} has {there} on node {node} \
         for this step: ask Slurm for more (--gres=gpu:N) or the assigner for less (--acb=gpus=N)"
    )]
    TooManyGpus { wanted: u32, origin: &'static str, there: usize, job_id: u32, node: String },
    #[error(
        "policy {policy} gives one GPU to each client, but {wanted} are wanted ({origin}): use \
         --acb=gpu-affinity, or --acb=gpus=1"
    )]
    PolicyGivesOne { policy: String, wanted: u32, origin: &'static str },
    #[error(
        "{file} is not there: programs would run without it, unmanaged. Install slurm-acb on node {node} \
         as everywhere else, or correct paths.lib_dir of the cluster file"
    )]
    NoInterposer { file: String, node: String },
    #[error("--acb=gang=step: Slurm does not say how many tasks the step has; use gang=NAME:SIZE")]
    NoTasks,
    #[error("SLURM_GPUS_PER_TASK is `{0}`, which is no number of GPUs; say it with --acb=gpus=N")]
    GpusPerTask(String),
}

/// What is known of a task.
#[derive(Debug, Clone)]
pub(crate) struct TaskFacts<'a> {
    pub(crate) spec: &'a JobSpec,
    pub(crate) ready: &'a Ready,
    /// Whether Slurm keeps a step from GPUs that are the job's but not its own.
    pub(crate) devices: Devices,
    /// What the step's own `--acb` says; empty when it has none.
    pub(crate) request: &'a Request,
    /// "batch", "interactive" or a number.
    pub(crate) step: String,
    pub(crate) rank: u32,
    /// Variables of the task's environment, those of [`READS`].
    pub(crate) environment: &'a BTreeMap<&'static str, String>,
}

/// The variables on which [`join`] and [`leave`] look.
pub(crate) const READS: [&str; 16] = [
    "ACB_ADDED",
    "ACB_SOCKET",
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "LD_AUDIT",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "NCCL_GRAPH_REGISTER",
    "SLURMD_TRES_BIND",
    "SLURM_GPUS_PER_TASK",
    "SLURM_JOB_ACCOUNT",
    "SLURM_JOB_GPUS",
    "SLURM_JOB_USER",
    "SLURM_RESTART_COUNT",
    "SLURM_STEP_GPUS",
    "SLURM_TRES_PER_TASK",
];

/// The job's key, which sbatch and salloc leave in the job's environment under this name. It has
/// done its work in the prolog: tasks, and what they write of their environment, need not have it.
pub(crate) const KEY_LEFT_BEHIND: &str = "SLURM_SPANK_ACB_KEY";

/// Set where the user has not, so that NCCL does not register graphs' buffers, which may move.
const NCCL: &str = "NCCL_GRAPH_REGISTER";

/// Names what was set beside our own variables and was not there: `off` takes it away again.
const ADDED: &str = "ACB_ADDED";

/// How many tasks a step has.
const STEP_TASKS: &str = "SLURM_STEP_NUM_TASKS";
/// The same, where Slurm does not say the first.
const TASKS: &str = "SLURM_NTASKS";

/// Our own variables.
const OWN: [&str; 17] = [
    "ACB_ADDED",
    "ACB_SOCKET",
    "ACB_ELIGIBLE",
    "ACB_GPUS",
    "ACB_DRIVER",
    "ACB_MEMORY",
    "ACB_NVML",
    "ACB_ON_FAILURE",
    "ACB_GRACE_MS",
    "ACB_STEP",
    "ACB_RANK",
    "ACB_PRIORITY",
    "ACB_QUEUE",
    "ACB_TENANT",
    "ACB_GANG",
    "ACB_GANG_SIZE",
    "ACB_UUIDS",
];

/// The environment of a task that shares the job's GPUs.
pub(crate) fn join(task: &TaskFacts<'_>) -> Result<Vec<Change>, TaskError> {
    let TaskFacts { spec, ready, request, .. } = *task;
    let other_policy = request.policy.is_some_and(|policy| policy != spec.policy);
    let other_quantum = request.quantum_ms.is_some_and(|quantum| quantum != spec.quantum_ms);
    if other_policy || other_quantum {
        return Err(TaskError::PolicyIsTheJobs {
            policy: spec.policy.to_string(),
            quantum_ms: spec.quantum_ms.get(),
        });
    }
    spec.knows(request)?;
    let eligible = eligible(task);
    let gpus = gpus(task, eligible.len())?;
    let library = Library::of(&spec.lib_dir);
    let there = |name| task.environment.get(name).map(String::as_str);

    let mut changes = Vec::new();
    let mut set = |name: &str, value: &dyn Display| {
        changes.push(Change::Set(name.to_owned(), value.to_string()));
    };
    for (name, value) in spec.environment.iter() {
        set(name, &value);
    }
    set("LD_PRELOAD", &library.preload(there("LD_PRELOAD")));
    set("LD_LIBRARY_PATH", &library.search(there("LD_LIBRARY_PATH")));
    set("ACB_SOCKET", &ready.client_socket.display());
    set("ACB_GPUS", &gpus);
    if let Some(driver) = &spec.driver.cuda {
        set("ACB_DRIVER", &driver.display());
    }
    if let Some(nvml) = &spec.driver.nvml {
        set("ACB_NVML", &nvml.display());
    }
    if let Some(limit) = request.memory.or(spec.memory_limit) {
        set("ACB_MEMORY", &limit.bytes());
    }
    set("ACB_ON_FAILURE", &request.on_failure.unwrap_or(spec.on_failure));
    set("ACB_GRACE_MS", &spec.grace_ms);
    set("ACB_STEP", &task.step);
    set("ACB_RANK", &task.rank);
    set("ACB_PRIORITY", &request.priority.unwrap_or(spec.priority));
    if let Some(queue) = request.queue.as_ref().or(spec.queue.as_ref()) {
        set("ACB_QUEUE", queue);
    }
    let people =
        ["SLURM_JOB_ACCOUNT", "SLURM_JOB_USER"].map(|name| there(name).unwrap_or_default());
    if let Some(tenant) = spec.tenant_of(request, &people) {
        set("ACB_TENANT", &tenant);
    }
    if let Some(gang) = request.gang.as_ref().or(spec.gang.as_ref()) {
        let tasks = there(STEP_TASKS).or_else(|| there(TASKS));
        let known = tasks.and_then(|tasks| tasks.parse().ok());
        let (name, size) = gang.of(&task.step.to_string(), known).ok_or(TaskError::NoTasks)?;
        set("ACB_GANG", &name);
        set("ACB_GANG_SIZE", &size);
    }
    if eligible.len() < ready.gpus.len() {
        set("ACB_ELIGIBLE", &eligible.join(","));
    }
    // Of tasks that see some of their GPUs alone, neighbours see different ones.
    let first = task.rank as usize * gpus as usize % eligible.len();
    let own: Vec<&str> = eligible.iter().cycle().skip(first).take(gpus as usize).copied().collect();
    set("ACB_UUIDS", &own.join(","));
    set("CUDA_VISIBLE_DEVICES", &ordinals(gpus));
    if there(NCCL).is_none() {
        set(NCCL, &0);
        set(ADDED, &NCCL);
    }
    if request.audit.unwrap_or(spec.audit) {
        set("LD_AUDIT", &library.audit(there("LD_AUDIT")));
    } else if let Some(had) = there("LD_AUDIT")
        && library.without_audit(had) != had
    {
        // A step without it, in a job with it.
        changes.push(set_or_unset("LD_AUDIT", library.without_audit(had)));
    }
    changes.push(Change::Unset(KEY_LEFT_BEHIND.to_owned()));
    Ok(changes)
}

/// The GPUs that the task can open. Numbers that are none of the assigner's mean nothing.
fn eligible<'a>(task: &TaskFacts<'a>) -> Vec<&'a str> {
    let all = &task.ready.gpus;
    let own: Vec<u32> = match (task.devices, task.environment.get("SLURM_STEP_GPUS")) {
        (Devices::OfTheStep, Some(list)) => {
            list.split(',').filter_map(|index| index.trim().parse().ok()).collect()
        }
        _ => Vec::new(),
    };
    let uuids = |wanted: &dyn Fn(u32) -> bool| -> Vec<&'a str> {
        all.iter().filter(|gpu| wanted(gpu.index)).map(|gpu| gpu.uuid.as_str()).collect()
    };
    match uuids(&|index| own.contains(&index)) {
        none if none.is_empty() => uuids(&|_| true),
        some => some,
    }
}

/// How many GPUs the task's program sees, of so many that are there.
fn gpus(task: &TaskFacts<'_>, there: usize) -> Result<u32, TaskError> {
    let spec = task.spec;
    let asked = task.request.gpus.or(spec.gpus_per_client).map(std::num::NonZeroU32::get);
    let per_task = task.environment.get("SLURM_GPUS_PER_TASK");
    // Where that variable does not arrive (--export=NONE), a binding or a newer Slurm's may say it.
    let said = |name, read: fn(&str) -> Option<u32>| {
        task.environment.get(name).and_then(|text| read(text))
    };
    let bound = || {
        said("SLURMD_TRES_BIND", bound_per_task)
            .or_else(|| said("SLURM_TRES_PER_TASK", tres_per_task))
    };
    let (wanted, origin) = match (asked, per_task) {
        (Some(wanted), _) => (wanted, "gpus= of --acb"),
        (None, Some(text)) => {
            let wanted = gpus_per_task(text).ok_or_else(|| TaskError::GpusPerTask(text.clone()))?;
            (wanted, "--gpus-per-task")
        }
        (None, None) => bound().map_or((1, "the default"), |wanted| (wanted, "--gpus-per-task")),
    };
    if wanted > 1 && !spec.policy.gives_several_gpus() {
        let policy = spec.policy.to_string();
        return Err(TaskError::PolicyGivesOne { policy, wanted, origin });
    }
    if wanted as usize > there {
        let (job_id, node) = (spec.job_id, spec.node.clone());
        return Err(TaskError::TooManyGpus { wanted, origin, there, job_id, node });
    }
    Ok(wanted)
}

/// What programs find in place of the GPUs that they get: as many numbers.
fn ordinals(gpus: u32) -> String {
    (0..gpus).map(|ordinal| ordinal.to_string()).collect::<Vec<_>>().join(",")
}

fn set_or_unset(name: &str, value: String) -> Change {
    match value.is_empty() {
        false => Change::Set(name.to_owned(), value),
        true => Change::Unset(name.to_owned()),
    }
}

/// The environment of a step with `--acb=off`: that of a job without slurm-acb. It may have
/// inherited ours from the batch step, in which srun was started.
pub(crate) fn leave(spec: &JobSpec, environment: &BTreeMap<&'static str, String>) -> Vec<Change> {
    let mut changes = vec![Change::Unset(KEY_LEFT_BEHIND.to_owned())];
    if !environment.contains_key("ACB_SOCKET") {
        return changes;
    }
    let library = Library::of(&spec.lib_dir);
    changes.extend(OWN.iter().map(|name| Change::Unset((*name).to_owned())));
    if environment.get(ADDED).is_some_and(|added| added == NCCL) {
        changes.push(Change::Unset(NCCL.to_owned()));
    }
    let mut restore = |name: &str, rest: Option<String>| {
        changes.push(set_or_unset(name, rest.unwrap_or_default()));
    };
    if let Some(value) = environment.get("LD_AUDIT") {
        restore("LD_AUDIT", Some(library.without_audit(value)));
    }
    if let Some(value) = environment.get("LD_PRELOAD") {
        restore("LD_PRELOAD", Some(library.without_preload(value)));
    }
    if let Some(value) = environment.get("LD_LIBRARY_PATH") {
        restore("LD_LIBRARY_PATH", Some(library.without_search(value)));
    }
    // A step with GPUs of its own has got Slurm's numbers by now; another has inherited our
    // place-holder, and the job's numbers take its place.
    let is_placeholder =
        |value: &String| *value == ordinals(value.split(',').count().try_into().unwrap_or(0));
    let is_inherited = !environment.contains_key("SLURM_STEP_GPUS");
    let slurms = environment
        .get("GPU_DEVICE_ORDINAL")
        .or_else(|| environment.get("SLURM_JOB_GPUS").filter(|_| is_inherited));
    if environment.get("CUDA_VISIBLE_DEVICES").is_some_and(is_placeholder)
        && let Some(slurms) = slurms
    {
        restore("CUDA_VISIBLE_DEVICES", Some(slurms.clone()));
    }
    changes
}

#[cfg(test)]
mod tests;
