//! Settings of GPUs that are in the way of sharing them, as NVML tells.
//!
//! Owns: which those are, and what to do about each. Does not own: which GPUs are handed out (`inventory`).

use std::path::Path;

use nvml_wrapper::enum_wrappers::device::ComputeMode;

use crate::inventory::{self, Device};

/// What people should know before they wonder; an error where nothing could run at all. Where NVML does not tell, nothing is said.
pub fn cautions(library: Option<&Path>, gpus: &[Device]) -> Result<Vec<String>, String> {
    let Ok(nvml) = inventory::nvml(library) else { return Ok(Vec::new()) };
    let mut cautions = Vec::new();
    for gpu in gpus {
        let mode = nvml.device_by_uuid(gpu.uuid.as_str()).and_then(|device| device.compute_mode());
        let index = gpu.index;
        let remedy = format!("`nvidia-smi -i {index} -c DEFAULT` (as root) lets several share it");
        match mode {
            Ok(ComputeMode::Prohibited) => {
                return Err(format!(
                    "GPU {index} is in compute mode PROHIBITED, so that no program can use it; {remedy}"
                ));
            }
            Ok(ComputeMode::ExclusiveProcess | ComputeMode::ExclusiveThread) => {
                cautions.push(format!(
                    "GPU {index} is in compute mode EXCLUSIVE_PROCESS: while one program has a context there, others get \
                     CUDA_ERROR_DEVICE_UNAVAILABLE; {remedy}"
                ));
            }
            Ok(ComputeMode::Default) | Err(_) => {}
        }
    }
    let confidential = gpus.first().is_some_and(|gpu| {
        let device = nvml.device_by_uuid(gpu.uuid.as_str());
        device.and_then(|it| it.check_confidential_compute_status()).unwrap_or(false)
    });
    if confidential {
        cautions.push(
            "the GPUs are in confidential computing mode, in which no host memory is pinned: memory that leaves a GPU moves slowly. \
             Give programs that share one so much that all fits (--acb=…,mem=), or turn the mode off (nvidia-smi conf-compute)"
                .to_owned(),
        );
    }
    Ok(cautions)
}
