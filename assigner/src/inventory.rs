//! The GPUs of this node, as NVML shows them, and which of them are handed out.
//!
//! Owns the choice and its messages. Reads NVML once and lets go of it.

use std::path::{Path, PathBuf};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use serde::{Deserialize, Serialize};

use crate::selection::{GpuList, GpuName};

/// What the loader looks for when nobody names the library.
const NVML_NAME: &str = "libnvidia-ml.so.1";
/// Where the kernel shows the devices on the PCI bus.
const PCI: &str = "/sys/bus/pci/devices";

/// A GPU, or a MIG slice of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// As NVML counts; a MIG slice has its GPU's.
    pub index: u32,
    /// `GPU-…` or `MIG-…`.
    pub uuid: String,
    /// What it is sold as.
    pub name: String,
    /// Bytes.
    pub memory: u64,
    /// The nearest NUMA node, where the system knows it.
    #[serde(default)]
    pub numa_node: Option<u32>,
}

/// A device that NVML shows, with what is needed to choose it.
#[derive(Clone, Debug)]
struct Shown {
    device: Device,
    /// `N` of `/dev/nvidiaN`, which is how Slurm counts; NVML within a job's cgroup counts anew.
    minor: Option<u32>,
    /// UUID of the GPU of a MIG slice.
    parent: Option<String>,
}

/// Which GPUs are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What a user said.
    List(GpuList),
    /// Slurm's indices of a job's GPUs; empty: all that NVML shows.
    Job(Vec<u32>),
}

/// Why there is no list of GPUs.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The library is not there.
    #[error("NVML cannot be loaded from {}: {reason}; install the NVIDIA driver on this node, name the library with --nvml PATH (or `[driver] nvml` in the cluster file), or start with --gpu-list none", path.display())]
    NoLibrary {
        /// What was loaded.
        path: PathBuf,
        /// The loader's words.
        reason: String,
    },
    /// The library does not answer.
    #[error("NVML failed to {what}: {source}; check the driver with nvidia-smi")]
    Failed {
        /// What was asked.
        what: String,
        /// NVML's words.
        source: NvmlError,
    },
    /// A GPU that is not there.
    #[error("GPU {wanted} is not on this node; NVML shows {shown}; correct --gpu-list")]
    Missing {
        /// What was wanted.
        wanted: GpuName,
        /// What there is.
        shown: String,
    },
    /// Slurm's GPUs are not among NVML's.
    #[error(
        "the job's GPUs {wanted} are not among those that NVML shows ({shown}); compare gres.conf with nvidia-smi on this node"
    )]
    NotTheJobs {
        /// Slurm's indices.
        wanted: String,
        /// What there is.
        shown: String,
    },
}

/// The GPUs to hand out.
pub fn devices(library: Option<&Path>, wanted: &Wanted) -> Result<Vec<Device>, InventoryError> {
    if *wanted == Wanted::List(GpuList::None) {
        return Ok(Vec::new());
    }
    choose(shown(library.unwrap_or(Path::new(NVML_NAME)))?, wanted)
}

fn choose(shown: Vec<Shown>, wanted: &Wanted) -> Result<Vec<Device>, InventoryError> {
    let take = |shown: &Shown| shown.device.clone();
    match wanted {
        Wanted::List(GpuList::None) => Ok(Vec::new()),
        Wanted::List(GpuList::All) => Ok(shown.iter().map(take).collect()),
        Wanted::List(GpuList::Only(names)) => {
            let mut chosen = Vec::new();
            for name in names {
                let found: Vec<_> = shown.iter().filter(|shown| shown.is_called(name)).collect();
                if found.is_empty() {
                    return Err(InventoryError::Missing {
                        wanted: name.clone(),
                        shown: describe(&shown),
                    });
                }
                chosen.extend(found.into_iter().map(take));
            }
            Ok(chosen)
        }
        Wanted::Job(indices) if indices.is_empty() => Ok(shown.iter().map(take).collect()),
        Wanted::Job(indices) => {
            let is_the_jobs =
                |shown: &&Shown| indices.contains(&shown.minor.unwrap_or(shown.device.index));
            let of_the_job: Vec<Device> = shown.iter().filter(is_the_jobs).map(take).collect();
            if of_the_job.len() >= indices.len() {
                Ok(of_the_job)
            } else if shown.len() == indices.len() {
                // The cgroup shows the job's devices alone, under numbers of its own.
                Ok(shown.iter().map(take).collect())
            } else {
                let wanted: Vec<String> = indices.iter().map(u32::to_string).collect();
                let (wanted, shown) = (wanted.join(","), describe(&shown));
                Err(InventoryError::NotTheJobs { wanted, shown })
            }
        }
    }
}

impl Shown {
    fn is_called(&self, name: &GpuName) -> bool {
        match name {
            GpuName::Index(index) => self.device.index == *index,
            GpuName::Uuid(uuid) => self.device.uuid == *uuid || self.parent.as_ref() == Some(uuid),
        }
    }
}

fn describe(shown: &[Shown]) -> String {
    if shown.is_empty() {
        return "no GPU".to_owned();
    }
    let names: Vec<String> = shown
        .iter()
        .map(|shown| format!("{} ({})", shown.device.index, shown.device.uuid))
        .collect();
    names.join(", ")
}

/// The library of that path, or the usual one.
pub(crate) fn nvml(library: Option<&Path>) -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(library.unwrap_or(Path::new(NVML_NAME)).as_os_str()).init()
}

fn shown(library: &Path) -> Result<Vec<Shown>, InventoryError> {
    let nvml = nvml(Some(library)).map_err(|source| match source {
        NvmlError::LibloadingError(reason) => {
            InventoryError::NoLibrary { path: library.to_owned(), reason: reason.to_string() }
        }
        source => InventoryError::Failed { what: "start".to_owned(), source },
    })?;
    let failed = |what: String| move |source| InventoryError::Failed { what, source };
    let count = nvml.device_count().map_err(failed("count the GPUs".to_owned()))?;
    let mut all = Vec::new();
    for index in 0..count {
        let gpu = nvml.device_by_index(index).map_err(failed(format!("open GPU {index}")))?;
        // A MIG slice has no place of its own on the bus.
        let numa_node = gpu.pci_info().ok().and_then(|pci| numa_node(Path::new(PCI), &pci.bus_id));
        let read = |gpu: &nvml_wrapper::Device<'_>| -> Result<Device, NvmlError> {
            let memory = gpu.memory_info()?;
            Ok(Device {
                numa_node,
                index,
                uuid: gpu.uuid()?,
                name: gpu.name()?,
                // What the driver and the firmware keep no program can have.
                memory: memory.total.saturating_sub(memory.reserved),
            })
        };
        // Drivers and GPUs without these calls say NotSupported; what is not known is not used.
        let minor = gpu.minor_number().ok();
        let slices = match gpu.mig_mode() {
            Ok(mode) if mode.current == 1 => gpu.mig_device_count().unwrap_or(0),
            _ => 0,
        };
        let whole = read(&gpu).map_err(failed(format!("read GPU {index}")))?;
        if slices == 0 {
            all.push(Shown { device: whole, minor, parent: None });
            continue;
        }
        for slice in 0..slices {
            // Slots that no slice was made in answer NotFound.
            let Ok(slice) = gpu.mig_device_by_index(slice) else { continue };
            let device =
                read(&slice).map_err(failed(format!("read a MIG slice of GPU {index}")))?;
            all.push(Shown { device, minor, parent: Some(whole.uuid.clone()) });
        }
    }
    Ok(all)
}

/// The NUMA node of a device on the bus, as the kernel says; on a machine with one node it says none.
fn numa_node(devices: &Path, bus_id: &str) -> Option<u32> {
    // NVML writes eight digits of the domain, the kernel four, and in small letters.
    let (domain, rest) = bus_id.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    let folder = format!("{domain:04x}:{}", rest.to_ascii_lowercase());
    let text = std::fs::read_to_string(devices.join(folder).join("numa_node")).ok()?;
    // -1 where the firmware does not tell.
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32, minor: Option<u32>) -> Shown {
        let uuid = format!("GPU-{index}");
        Shown {
            device: Device { index, uuid, name: "T".into(), memory: 1 << 30, numa_node: None },
            minor,
            parent: None,
        }
    }

    fn slice(index: u32, uuid: &str) -> Shown {
        let mut shown = gpu(index, Some(index));
        shown.parent = Some(std::mem::replace(&mut shown.device.uuid, uuid.to_owned()));
        shown
    }

    fn uuids(chosen: Result<Vec<Device>, InventoryError>) -> Vec<String> {
        chosen.unwrap().into_iter().map(|device| device.uuid).collect()
    }

    #[test]
    fn a_users_list_keeps_its_order_and_takes_the_slices_of_a_gpu() {
        let shown = vec![gpu(0, None), gpu(1, None), slice(2, "MIG-a"), slice(2, "MIG-b")];
        let list = |text: &str| Wanted::List(text.parse().unwrap());
        assert_eq!(uuids(choose(shown.clone(), &list("1,GPU-0"))), ["GPU-1", "GPU-0"]);
        assert_eq!(uuids(choose(shown.clone(), &list("2"))), ["MIG-a", "MIG-b"]);
        assert_eq!(uuids(choose(shown.clone(), &list("MIG-b"))), ["MIG-b"]);
        let error = choose(shown, &list("7")).unwrap_err().to_string();
        assert!(error.contains("GPU 7") && error.contains("1 (GPU-1)"), "{error}");
    }

    #[test]
    fn a_jobs_gpus_are_found_by_minor_number_or_by_what_its_cgroup_shows() {
        let all = vec![gpu(0, Some(1)), gpu(1, Some(0)), gpu(2, None)];
        assert_eq!(uuids(choose(all.clone(), &Wanted::Job(vec![1]))), ["GPU-0"]);
        assert_eq!(uuids(choose(all.clone(), &Wanted::Job(vec![2]))), ["GPU-2"]);
        assert_eq!(uuids(choose(all.clone(), &Wanted::Job(vec![]))).len(), 3);
        assert!(choose(all, &Wanted::Job(vec![5])).is_err());
        let constrained = vec![gpu(0, None), gpu(1, None)];
        assert_eq!(uuids(choose(constrained, &Wanted::Job(vec![2, 3]))), ["GPU-0", "GPU-1"]);
    }

    #[test]
    fn the_kernel_says_which_numa_node_a_gpu_is_near() {
        let devices = tempfile::tempdir().unwrap();
        for (name, node) in [("0000:3b:00.0", "1\n"), ("10000:af:00.0", "-1\n")] {
            std::fs::create_dir(devices.path().join(name)).unwrap();
            std::fs::write(devices.path().join(name).join("numa_node"), node).unwrap();
        }
        let node = |bus_id| numa_node(devices.path(), bus_id);
        assert_eq!(node("00000000:3B:00.0"), Some(1));
        assert_eq!(node("00010000:AF:00.0"), None, "not told");
        assert_eq!(node("00000000:5E:00.0"), None, "not there");
        assert_eq!(node("3B"), None);
    }

    #[test]
    fn a_missing_library_says_what_to_do() {
        let error = devices(Some(Path::new("/nowhere/libnvidia-ml.so.1")), &Wanted::Job(vec![]));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("/nowhere/libnvidia-ml.so.1") && text.contains("--nvml"), "{text}");
    }
}
