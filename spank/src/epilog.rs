//! job_epilog, as root, in a process of its own on each node: leaves nothing of the job's assigner.

use crate::records::Records;
use crate::slurm::{self, Handle};
use crate::sweep;
use crate::whereabouts::Whereabouts;
use std::env;
use std::ffi::c_int;

/// Sweeps after a job that has records.
pub(crate) fn run(handle: &Handle<'_>) -> c_int {
    let (Ok(job_id), Ok(uid), Ok(node)) =
        (handle.job_id(), handle.uid(), env::var("SLURMD_NODENAME"))
    else {
        return 0;
    };
    // What is wrong with the cluster file, the prolog has told, and nothing was begun.
    let Ok(records) = Records::find(&node, job_id) else { return 0 };
    let outcome = sweep::clear(&records, uid)
        .and_then(|()| Whereabouts::of(&node, job_id).forget().map_err(|error| error.to_string()));
    if let Err(error) = outcome {
        slurm::error(&format!("left behind by job {job_id}: {error}"));
    }
    0
}
