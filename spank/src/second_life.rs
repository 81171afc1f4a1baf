//! A requeued job on a node that takes its second life for the first.
//!
//! slurmd remembers a job for a while after its end (`cred_expire`). A life that begins before that
//! gets neither prolog nor extern step there, and so neither spec nor assigner. Then the first step
//! that comes makes the spec and starts the assigner, as root in slurmstepd, in a cgroup of its own.
//!
//! Owns: how such a life is told from a job without `--acb`, and where a step finds what the prolog
//! would have been told. Does not own: the spec (`prolog`), the start (`extern_step`).
//!
//! ```text
//! step, root     init_post_opt    spec      before the tasks are forked: they must know it
//! step, root     task_post_fork   assigner  when they are, and wait: their cgroups exist now
//! ```
//! The proof that the job was submitted with `--acb` is its key. The batch step has it from sbatch;
//! to the steps on other nodes srun hands it on.

use crate::extern_step;
use crate::option;
use crate::plan::KEY_LEFT_BEHIND;
use crate::process::Identity;
use crate::prolog;
use crate::ready::Ready;
use crate::records::Records;
use crate::resources;
use crate::slurm::{self, Handle};
use crate::whereabouts::Whereabouts;
use crate::{account, args};
use acb_cluster_conf::{AcbOption, JobFacts, JobSpec, Key, Request};
use std::env;
use std::ffi::c_int;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// SLURM_BATCH_SCRIPT of slurm.h.
pub(crate) const BATCH_STEP: u32 = 0xffff_fffb;

/// Whether this step has made the spec.
static MADE: AtomicBool = AtomicBool::new(false);

/// init_post_opt of a step whose job has no records here: the spec, if it is an acb job after all.
pub(crate) fn begin(
    handle: &Handle<'_>,
    job_id: u32,
    node: &str,
) -> Option<Result<JobSpec, String>> {
    let step = handle.step_id().ok().filter(|step| *step != extern_step::EXTERN_STEP)?;
    let request = match option::heard()? {
        Ok(AcbOption::On(request)) => request,
        Ok(AcbOption::Off) | Err(_) => return None,
    };
    let variable = |name| handle.variable(name).ok().flatten();
    let key = match variable(KEY_LEFT_BEHIND).map(|key| Key::from_hex(&key)) {
        Some(Ok(key)) => key,
        // A job of its own accord, or its second life where the key is lost (--export=NONE).
        None | Some(Err(_)) => {
            let lost = step == BATCH_STEP || variable("SLURM_RESTART_COUNT").is_some();
            return lost.then(|| {
                Err(format!(
                    "job {job_id} was requeued before node {node} had forgotten its first life: Slurm has not run its \
                     prolog again, and its key did not reach this step. Requeue it once more, two minutes after its end"
                ))
            });
        }
    };
    // Slurm tells the batch step of the job's GPUs on its node, other steps of their own.
    let gpus = variable(if step == BATCH_STEP { "SLURM_JOB_GPUS" } else { "SLURM_STEP_GPUS" });
    let nodes = variable("SLURM_JOB_NODELIST").or_else(|| variable("SLURM_NODELIST"));
    let made = make(handle, job_id, node, &request, Found { key, gpus, nodes });
    MADE.store(made.is_ok(), Ordering::Relaxed);
    Some(made)
}

/// What stands in the step's environment.
struct Found {
    key: Key,
    gpus: Option<String>,
    nodes: Option<String>,
}

fn make(
    handle: &Handle<'_>,
    job_id: u32,
    node: &str,
    request: &Request,
    found: Found,
) -> Result<JobSpec, String> {
    let site = args::site().map_err(|error| format!("job {job_id} gets no assigner: {error}"))?;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let uid = handle.uid().map_err(|error| text(&error))?;
    let nodes = found.nodes.ok_or("the job's list of nodes is not in the step's environment")?;
    let (slurm_conf, gres) = prolog::slurm_conf();
    let facts = JobFacts {
        job_id,
        node: node.to_owned(),
        nodes: acb_cluster_conf::expand(&nodes).map_err(|error| text(&error))?,
        uid,
        gid: handle.gid().map_err(|error| text(&error))?,
        home: account::home(uid),
        key: found.key,
        gpus: resources::job_gpus(found.gpus.as_deref(), gres.as_deref(), node)?,
        slurm_conf,
    };
    let spec = JobSpec::plan(&site, request, facts).map_err(|error| text(&error))?;
    if let Err(error) = Whereabouts::of(node, job_id).note(&site.paths.run_dir) {
        slurm::error(&format!("job {job_id}: its run folder cannot be remembered: {error}"));
    }
    let records = Records::new(&site.paths.run_dir, node, job_id);
    records
        .write_spec(&spec)
        .map_err(|error| format!("job {job_id}: {}: {error}", records.spec().display()))?;
    Ok(spec)
}

/// task_post_fork of a step: starts the assigner of a spec that this step has made, and one that
/// ended with an earlier step, in whose cgroup it was.
pub(crate) fn start(handle: &Handle<'_>) -> c_int {
    // Slurm calls once for each task.
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, Ordering::Relaxed) && (MADE.load(Ordering::Relaxed) || is_lost(handle)) {
        extern_step::start_assigner(handle);
    }
    0
}

fn is_lost(handle: &Handle<'_>) -> bool {
    let requeued = handle.variable("SLURM_RESTART_COUNT").is_ok_and(|count| count.is_some());
    let (true, Ok(job_id), Ok(node)) = (requeued, handle.job_id(), env::var("SLURMD_NODENAME"))
    else {
        return false;
    };
    let daemon = Records::find(&node, job_id).ok().and_then(|records| records.daemon());
    daemon.is_some_and(|daemon| Identity::of(daemon.pid) != Some(daemon))
}

/// What the assigner says once it serves. Two steps may come to a node at once: the one that has not
/// made the spec waits for the other.
pub(crate) fn ready(spec: &JobSpec) -> io::Result<Ready> {
    let deadline = Instant::now() + Duration::from_secs(spec.ready_timeout_s.get().into());
    loop {
        match Ready::load(&spec.run_folder.ready()) {
            Err(error) if error.kind() == ErrorKind::NotFound && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// In srun, in a job that was requeued: the job's key for the steps on its other nodes. The user's
/// own copy of the spec has it.
pub(crate) fn key_for_steps() -> Option<Key> {
    env::var_os("SLURM_RESTART_COUNT")?;
    let socket = PathBuf::from(env::var_os("ACB_SOCKET")?);
    JobSpec::load(&socket.with_file_name("spec.toml")).ok().map(|spec| spec.key)
}
