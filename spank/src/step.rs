//! In slurmstepd, for the steps that run programs: as root, what only root can see; as the user, in
//! each task before its program starts, the task's environment.
//!
//! A failure of task_init reaches the user and fails the task, and nothing else; so every error on
//! a node is told from here. Slurm ignores the result of plugins that are `optional`, hence the
//! task ends itself.

use crate::library::Library;
use crate::option;
use crate::plan::{self, Change, TaskError, TaskFacts};
use crate::ready::Ready;
use crate::records::Records;
use crate::resources::{self, Devices};
use crate::second_life::{self, BATCH_STEP};
use crate::slurm::{self, Handle};
use acb_cluster_conf::{AcbOption, JobSpec, Request};
use std::collections::BTreeMap;
use std::env;
use std::ffi::c_int;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// SLURM_INTERACTIVE_STEP of slurm.h.
const INTERACTIVE_STEP: u32 = 0xffff_fffa;

/// What root knows of the step's job on this node. The tasks are forked from the process that
/// knows, and keep it until their program starts.
#[derive(Debug, Clone)]
enum Job {
    /// The cluster file, or the run folder, cannot be used.
    Unknown(String),
    /// Not an acb job.
    Plain,
    /// It gets no assigner.
    Failed(String),
    /// The assigner of this spec was to be started.
    Acb(Box<JobSpec>, Devices),
}

impl Job {
    fn planned(spec: Result<JobSpec, String>) -> Self {
        match spec {
            Ok(spec) => {
                let devices = devices(&spec);
                Self::Acb(Box::new(spec), devices)
            }
            Err(why) => Self::Failed(why),
        }
    }
}

static JOB: Mutex<Option<Job>> = Mutex::new(None);

/// init_post_opt, as root.
pub(crate) fn look_as_root(handle: &Handle<'_>) -> c_int {
    let (Ok(job_id), Ok(node)) = (handle.job_id(), env::var("SLURMD_NODENAME")) else { return 0 };
    let job = match Records::find(&node, job_id) {
        Err(error) => Job::Unknown(error.to_string()),
        Ok(records) => match records.failure() {
            Some(why) => Job::Failed(why),
            None if !records.exist() => match records.possible() {
                Ok(()) => {
                    second_life::begin(handle, job_id, &node).map_or(Job::Plain, Job::planned)
                }
                Err(error) => Job::Unknown(error.to_string()),
            },
            None => Job::planned(JobSpec::load(records.spec()).map_err(|error| error.to_string())),
        },
    };
    *JOB.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
    0
}

/// From cgroup.conf, which lies beside slurm.conf.
fn devices(spec: &JobSpec) -> Devices {
    let slurm_conf = spec.slurm_conf.as_deref().unwrap_or(Path::new("/etc/slurm/slurm.conf"));
    let text = fs::read_to_string(slurm_conf.with_file_name("cgroup.conf")).unwrap_or_default();
    resources::devices(&text)
}

/// task_init, as the user.
pub(crate) fn prepare_task(handle: &Handle<'_>) -> c_int {
    let job = JOB.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or(Job::Plain);
    match environment(handle, job) {
        Ok(changes) => apply(handle, &changes),
        Err(why) => fail(handle, &why),
    }
}

/// task_init did not come to its end. A task of an acb job would run unmanaged: it ends, and its user
/// has been told. Others are none of ours.
pub(crate) fn refuse_after_panic() -> c_int {
    match *JOB.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(Job::Acb(..) | Job::Failed(_)) => slurm::end_task(),
        Some(Job::Plain | Job::Unknown(_)) | None => 0,
    }
}

fn environment(handle: &Handle<'_>, job: Job) -> Result<Vec<Change>, String> {
    let given = option::given(handle).transpose().map_err(|error| error.to_string())?;
    let (spec, devices) = match (job, &given) {
        (Job::Acb(spec, devices), _) => (spec, devices),
        (Job::Plain | Job::Unknown(_), None) | (_, Some(AcbOption::Off)) => return Ok(vec![]),
        (Job::Unknown(why) | Job::Failed(why), _) => return Err(why),
        (Job::Plain, Some(AcbOption::On(_))) => {
            let job_id = handle.job_id().map_err(|error| error.to_string())?;
            return Err(TaskError::NotAnAcbJob { job_id }.to_string());
        }
    };
    let mut variables = BTreeMap::new();
    for name in plan::READS {
        variables.extend(handle.variable(name)?.map(|value| (name, value)));
    }
    let ready = match variables.contains_key("SLURM_RESTART_COUNT") {
        true => second_life::ready(&spec),
        false => Ready::load(&spec.run_folder.ready()),
    };
    let request = match given {
        Some(AcbOption::Off) => return Ok(plan::leave(&spec, &variables)),
        Some(AcbOption::On(request)) => request,
        // srun --export=NONE in a job's script does not hand the option on; the job is one all the same.
        None => Request::default(),
    };
    let ready = ready.map_err(|error| match spec.run_folder.path().exists() {
        false if variables.contains_key("SLURM_RESTART_COUNT") => {
            TaskError::NotStarted { job_id: spec.job_id, node: spec.node.clone() }.to_string()
        }
        false => {
            TaskError::NoExternStep { job_id: spec.job_id, node: spec.node.clone() }.to_string()
        }
        true => format!("{}: {error}", spec.run_folder.ready().display()),
    })?;
    // ld.so would only warn, and the program would take the GPU for its own.
    let library = Library::of(&spec.lib_dir);
    if !Path::new(library.file()).exists() {
        let (file, node) = (library.file().to_owned(), spec.node.clone());
        return Err(TaskError::NoInterposer { file, node }.to_string());
    }
    let step = match handle.step_id().map_err(|error| error.to_string())? {
        BATCH_STEP => "batch".to_owned(),
        INTERACTIVE_STEP => "interactive".to_owned(),
        number => number.to_string(),
    };
    let rank = handle.task_rank().map_err(|error| error.to_string())?;
    let facts = TaskFacts {
        spec: &spec,
        ready: &ready,
        devices,
        request: &request,
        step,
        rank,
        environment: &variables,
    };
    plan::join(&facts).map_err(|error| error.to_string())
}

fn apply(handle: &Handle<'_>, changes: &[Change]) -> c_int {
    for change in changes {
        let result = match change {
            Change::Set(name, value) => handle.set_variable(name, value),
            Change::Unset(name) => handle.unset_variable(name),
        };
        if let Err(error) = result {
            fail(handle, &format!("{change:?}: {error}"));
        }
    }
    0
}

/// All tasks of a node fail alike, so one of them says it.
fn fail(handle: &Handle<'_>, why: &str) -> ! {
    if handle.local_task().unwrap_or(0) == 0 {
        slurm::error(why);
    }
    slurm::end_task()
}
