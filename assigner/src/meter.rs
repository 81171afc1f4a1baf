//! What a process has of a GPU, as NVML says.
//!
//! Owns: NVML, opened when it is first asked. Does not own: when that is (`clients`), or what follows (`broker`).

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;

/// Asks NVML about processes.
pub struct Meter {
    library: Option<PathBuf>,
    nvml: OnceLock<Option<Nvml>>,
}

impl Meter {
    /// With the library of that path, or the usual one.
    pub fn new(library: Option<&Path>) -> Meter {
        Meter { library: library.map(Path::to_owned), nvml: OnceLock::new() }
    }

    /// Bytes that a process has of a GPU. `None`: NVML does not tell, or does not know the process, as from inside of
    /// some containers. This can take milliseconds.
    pub fn bytes_of(&self, pid: u32, uuid: &str) -> Option<u64> {
        let path = self.library.as_deref().unwrap_or(Path::new("libnvidia-ml.so.1"));
        let open = || Nvml::builder().lib_path(path.as_os_str()).init().ok();
        let gpu = self.nvml.get_or_init(open).as_ref()?.device_by_uuid(uuid).ok()?;
        let processes = gpu.running_compute_processes().ok()?;
        let process = processes.into_iter().find(|process| process.pid == pid)?;
        match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        }
    }
}
