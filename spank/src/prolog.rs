//! job_prolog, as root, in a process of its own on each node: writes the job's spec.
//!
//! Returns no error, because Slurm would drain the node: what goes wrong is remembered for the
//! job's tasks, which tell the user.

use crate::records::Records;
use crate::slurm::{self, Handle};
use crate::whereabouts::Whereabouts;
use crate::{account, args, option, resources, sweep};
use acb_cluster_conf::{AcbOption, JobFacts, JobSpec, Key, Request, SiteConfig};
use std::env;
use std::ffi::c_int;
use std::fs;
use std::path::PathBuf;

/// Writes the spec of a job with `--acb`.
pub(crate) fn run(handle: &Handle<'_>) -> c_int {
    let request = match option::given(handle) {
        None | Some(Ok(AcbOption::Off)) => return 0,
        Some(Ok(AcbOption::On(request))) => Ok(request),
        Some(Err(error)) => Err(error.to_string()),
    };
    if let Err(why) = record(handle, request) {
        slurm::error(&why);
    }
    0
}

fn record(handle: &Handle<'_>, request: Result<Request, String>) -> Result<(), String> {
    let job_id = handle.job_id().map_err(|error| error.to_string())?;
    let site = args::site().map_err(|error| format!("job {job_id} gets no assigner: {error}"))?;
    let node = variable("SLURMD_NODENAME")?;
    let records = Records::new(&site.paths.run_dir, &node, job_id);
    // Left from an earlier life of the job, whose epilog did not run. The run folder may have been
    // another then.
    let uid = handle.uid().map_err(|error| error.to_string())?;
    let whereabouts = Whereabouts::of(&node, job_id);
    let earlier = whereabouts.read().map(|run_dir| Records::new(&run_dir, &node, job_id));
    for records in earlier.iter().chain([&records]) {
        sweep::clear(records, uid)
            .map_err(|error| format!("of an earlier job {job_id}: {error}"))?;
    }
    if let Err(error) = whereabouts.note(&site.paths.run_dir) {
        // Not needed as long as the cluster file stays as it is.
        slurm::error(&format!("job {job_id}: its run folder cannot be remembered: {error}"));
    }
    let spec = request.and_then(|request| {
        let facts = facts(handle, job_id, node).map_err(|error| error.to_string())?;
        plan_spec(&site, &request, facts)
    });
    let written = match spec {
        Ok(spec) => records.write_spec(&spec),
        Err(why) => {
            slurm::error(&format!("job {job_id}: {why}"));
            records.write_failure(&why)
        }
    };
    written.map_err(|error| format!("job {job_id}: {}: {error}", records.spec().display()))
}

fn plan_spec(site: &SiteConfig, request: &Request, facts: JobFacts) -> Result<JobSpec, String> {
    JobSpec::plan(site, request, facts).map_err(|error| error.to_string())
}

fn facts(handle: &Handle<'_>, job_id: u32, node: String) -> Result<JobFacts, String> {
    // The name since 23.02, and the one before.
    let nodes = variable("SLURM_JOB_NODELIST").or_else(|_| variable("SLURM_NODELIST"))?;
    let nodes = acb_cluster_conf::expand(&nodes).map_err(|error| error.to_string())?;
    let uid = handle.uid().map_err(|error| error.to_string())?;
    let key = variable("SPANK_ACB_KEY")
        .and_then(|key| Key::from_hex(&key).map_err(|error| error.to_string()))
        .map_err(|error| format!("the job's key did not arrive: {error}"))?;
    let (slurm_conf, gres) = slurm_conf();
    Ok(JobFacts {
        job_id,
        gpus: resources::job_gpus(
            env::var("SLURM_JOB_GPUS").ok().as_deref(),
            gres.as_deref(),
            &node,
        )?,
        node,
        nodes,
        uid,
        gid: handle.gid().map_err(|error| error.to_string())?,
        home: account::home(uid),
        key,
        slurm_conf,
    })
}

/// What slurmd itself was started with, or where packages and configless Slurm put it; and its text.
pub(crate) fn slurm_conf() -> (Option<PathBuf>, Option<String>) {
    let path = env::var_os("SLURM_CONF").map(PathBuf::from).or_else(|| {
        ["/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf"]
            .map(PathBuf::from)
            .into_iter()
            .find(|path| path.exists())
    });
    let text = path.as_deref().map(fs::read_to_string).and_then(Result::ok);
    (path, text)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("variable {name} of the prolog: {error}"))
}
