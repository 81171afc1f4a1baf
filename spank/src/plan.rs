//! What a task of an acb job is given, decided from facts alone.
//!
//! Owns: the environment of the tasks (docs/architecture.md, "Environment of a client"), and the
//! reasons why a task cannot run. Pure: no IO, no Slurm, no environment of its own.

use crate::ready::Ready;
use acb_cluster_conf::{JobSpec, Request};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

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
        "--acb of a step can set gpus and on_failure, and `off`: policy and quantum are the job's \
         (policy={policy}, quantum={quantum_ms}ms), set where it begins (sbatch, salloc)"
    )]
    PolicyIsTheJobs { policy: String, quantum_ms: u32 },
    #[error(
        "{wanted} GPUs per client are wanted ({origin}), but job {job_id} has {there} on node {node}: \
         ask Slurm for more (--gres=gpu:N) or the assigner for less (--acb=gpus=N)"
    )]
    TooManyGpus { wanted: u32, origin: &'static str, there: usize, job_id: u32, node: String },
    #[error(
        "policy {policy} gives one GPU to each client, but {wanted} are wanted ({origin}): use \
         --acb=gpu-affinity, or --acb=gpus=1"
    )]
    PolicyGivesOne { policy: String, wanted: u32, origin: &'static str },
    #[error("SLURM_GPUS_PER_TASK is `{0}`, which is no number of GPUs; say it with --acb=gpus=N")]
    GpusPerTask(String),
}

/// What is known of a task.
#[derive(Debug, Clone)]
pub(crate) struct TaskFacts<'a> {
    pub(crate) spec: &'a JobSpec,
    pub(crate) ready: &'a Ready,
    /// What the step's own `--acb` says; empty when it has none.
    pub(crate) request: &'a Request,
    /// "batch", "interactive" or a number.
    pub(crate) step: String,
    pub(crate) rank: u32,
    /// Variables of the task's environment, those of [`READS`].
    pub(crate) environment: &'a BTreeMap<&'static str, String>,
}

/// The variables on which [`join`] and [`leave`] look.
pub(crate) const READS: [&str; 7] = [
    "ACB_SOCKET",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "NCCL_GRAPH_REGISTER",
    "SLURM_GPUS_PER_TASK",
    "SLURM_JOB_GPUS",
];

/// Our own variables.
const OWN: [&str; 7] = [
    "ACB_SOCKET",
    "ACB_GPUS",
    "ACB_DRIVER",
    "ACB_ON_FAILURE",
    "ACB_GRACE_MS",
    "ACB_STEP",
    "ACB_RANK",
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
    let gpus = gpus(task)?;
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
    set("ACB_ON_FAILURE", &request.on_failure.unwrap_or(spec.on_failure));
    set("ACB_GRACE_MS", &spec.grace_ms);
    set("ACB_STEP", &task.step);
    set("ACB_RANK", &task.rank);
    let uuids: Vec<_> =
        ready.gpus.iter().take(gpus as usize).map(|gpu| gpu.uuid.as_str()).collect();
    set("CUDA_VISIBLE_DEVICES", &uuids.join(","));
    if there("NCCL_GRAPH_REGISTER").is_none() {
        set("NCCL_GRAPH_REGISTER", &0);
    }
    Ok(changes)
}

/// How many GPUs the task's program sees.
fn gpus(task: &TaskFacts<'_>) -> Result<u32, TaskError> {
    let spec = task.spec;
    let asked = task.request.gpus.or(spec.gpus_per_client).map(std::num::NonZeroU32::get);
    let (wanted, origin) = match asked {
        Some(wanted) => (wanted, "gpus= of --acb"),
        None => match task.environment.get("SLURM_GPUS_PER_TASK") {
            Some(text) => (gpus_per_task(text)?, "--gpus-per-task"),
            None => (1, "the default"),
        },
    };
    if wanted > 1 && !spec.policy.gives_several_gpus() {
        let policy = spec.policy.to_string();
        return Err(TaskError::PolicyGivesOne { policy, wanted, origin });
    }
    let there = task.ready.gpus.len();
    if wanted as usize > there {
        let (job_id, node) = (spec.job_id, spec.node.clone());
        return Err(TaskError::TooManyGpus { wanted, origin, there, job_id, node });
    }
    Ok(wanted)
}

/// `2`, `a100:2`, or `a100:1,h100:1`.
fn gpus_per_task(text: &str) -> Result<u32, TaskError> {
    text.split(',')
        .map(|part| part.rsplit(':').next().and_then(|count| count.parse::<u32>().ok()))
        .sum::<Option<u32>>()
        .filter(|count| *count > 0)
        .ok_or_else(|| TaskError::GpusPerTask(text.to_owned()))
}

/// The environment of a step with `--acb=off`: that of a job without slurm-acb. It may have
/// inherited ours from the batch step, in which srun was started.
pub(crate) fn leave(
    spec: &JobSpec,
    ready: Option<&Ready>,
    environment: &BTreeMap<&'static str, String>,
) -> Vec<Change> {
    if !environment.contains_key("ACB_SOCKET") {
        return Vec::new();
    }
    let library = Library::of(&spec.lib_dir);
    let mut changes: Vec<_> = OWN.iter().map(|name| Change::Unset((*name).to_owned())).collect();
    let mut restore = |name: &str, rest: Option<String>| {
        changes.push(match rest.filter(|rest| !rest.is_empty()) {
            Some(rest) => Change::Set(name.to_owned(), rest),
            None => Change::Unset(name.to_owned()),
        });
    };
    if let Some(value) = environment.get("LD_PRELOAD") {
        restore("LD_PRELOAD", Some(library.without_preload(value)));
    }
    if let Some(value) = environment.get("LD_LIBRARY_PATH") {
        restore("LD_LIBRARY_PATH", Some(library.without_search(value)));
    }
    // A step with GPUs of its own has got Slurm's numbers by now; another has inherited our
    // place-holder, and the job's numbers take its place.
    let placeholder = |value: &String| {
        ready.is_some_and(|ready| {
            value.split(',').all(|part| ready.gpus.iter().any(|gpu| gpu.uuid == part))
        })
    };
    if environment.get("CUDA_VISIBLE_DEVICES").is_some_and(placeholder) {
        restore("CUDA_VISIBLE_DEVICES", environment.get("SLURM_JOB_GPUS").cloned());
    }
    changes
}

/// The interposer, and how it stands in lists of libraries and folders.
struct Library {
    file: String,
    folder: String,
}

impl Library {
    fn of(folder: &Path) -> Self {
        Self {
            file: folder.join("libcuda.so.1").display().to_string(),
            folder: folder.display().to_string(),
        }
    }

    /// In front of what the user had, once. ld.so takes blanks and colons between names.
    fn preload(&self, had: Option<&str>) -> String {
        match self.without_preload(had.unwrap_or_default()) {
            rest if rest.is_empty() => self.file.clone(),
            rest => format!("{}:{rest}", self.file),
        }
    }

    fn without_preload(&self, had: &str) -> String {
        if !had.contains(&self.file) {
            return had.to_owned();
        }
        let rest: Vec<_> =
            had.split([' ', ':']).filter(|name| !name.is_empty() && *name != self.file).collect();
        rest.join(":")
    }

    /// In front of what the user had, once. An empty element would mean the current folder.
    fn search(&self, had: Option<&str>) -> String {
        match self.without_search(had.unwrap_or_default()) {
            rest if rest.is_empty() => self.folder.clone(),
            rest => format!("{}:{rest}", self.folder),
        }
    }

    fn without_search(&self, had: &str) -> String {
        if !had.contains(&self.folder) {
            return had.to_owned();
        }
        had.split(':').filter(|folder| *folder != self.folder).collect::<Vec<_>>().join(":")
    }
}

/// The GPUs of a job on a node, from the prolog's `SLURM_JOB_GPUS`; empty means all of the node's.
///
/// Where Slurm counts GPUs, a job that has asked for none gets none. Where it does not, because
/// whole nodes are handed out, the job has them all.
pub(crate) fn job_gpus(
    given: Option<&str>,
    slurm_conf: Option<&str>,
    node: &str,
) -> Result<Vec<u32>, String> {
    match given {
        Some(list) => list
            .split(',')
            .map(|index| index.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|_| format!("SLURM_JOB_GPUS is `{list}`: not a list of GPU numbers")),
        None if slurm_conf.is_none_or(counts_gpus) => Err(format!(
            "the job has no GPU on node {node}: --acb shares the job's GPUs, ask for some with --gres=gpu:N"
        )),
        None => Ok(Vec::new()),
    }
}

/// Whether slurm.conf makes GPUs a countable resource.
fn counts_gpus(slurm_conf: &str) -> bool {
    slurm_conf.lines().any(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let Some((name, value)) = line.split_once('=') else { return false };
        name.trim().eq_ignore_ascii_case("GresTypes")
            && value.split(',').any(|kind| kind.trim().eq_ignore_ascii_case("gpu"))
    })
}
