//! job_epilog, as root, in a process of its own on each node: leaves nothing of the job's assigner.

use crate::records::Records;
use crate::slurm::{self, Handle};
use crate::{args, sweep};
use std::env;
use std::ffi::c_int;

/// Sweeps after a job that has records.
pub(crate) fn run(handle: &Handle<'_>) -> c_int {
    let (Ok(job_id), Ok(uid), Ok(node)) =
        (handle.job_id(), handle.uid(), env::var("SLURMD_NODENAME"))
    else {
        return 0;
    };
    let Ok(site) = args::site() else { return 0 };
    let records = Records::new(&site.paths.run_dir, &node, job_id);
    if !records.exist() && records.failure().is_none() {
        return 0;
    }
    if let Some(daemon) = records.daemon() {
        sweep::end(daemon, uid);
    }
    if let Err(error) = records.remove() {
        slurm::error(&format!("left behind by job {job_id}: {error}"));
    }
    0
}
