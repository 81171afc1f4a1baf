//! What a process has of a GPU, as NVML says.
//!
//! Owns: NVML, opened when it is first asked. Does not own: when that is (`clients`), or what follows (`broker`).

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;

use crate::inventory;

/// A process on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// As NVML numbers it.
    pub pid: u32,
    /// What it has there; 0 where nobody can tell.
    pub bytes: u64,
}

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

    /// Bytes of a GPU that are in use, by whomever; what no program can have is not. `None`: NVML does not tell.
    pub fn used(&self, uuid: &str) -> Option<u64> {
        let memory = self.nvml()?.device_by_uuid(uuid).ok()?.memory_info().ok()?;
        Some(memory.used)
    }

    fn nvml(&self) -> Option<&Nvml> {
        self.nvml.get_or_init(|| inventory::nvml(self.library.as_deref()).ok()).as_ref()
    }

    /// Bytes that a process has of a GPU. `None`: NVML does not tell, or does not know the process, as from inside of
    /// some containers. This can take milliseconds.
    pub fn bytes_of(&self, pid: u32, uuid: &str) -> Option<u64> {
        let process = self.processes(uuid)?.into_iter().find(|process| process.pid == pid)?;
        match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        }
    }

    /// Everybody who computes on a GPU; nobody where NVML does not tell.
    pub fn users_of(&self, uuid: &str) -> Vec<User> {
        let bytes = |used| match used {
            UsedGpuMemory::Used(bytes) => bytes,
            UsedGpuMemory::Unavailable => 0,
        };
        let processes = self.processes(uuid).unwrap_or_default().into_iter();
        processes.map(|it| User { pid: it.pid, bytes: bytes(it.used_gpu_memory) }).collect()
    }

    fn processes(&self, uuid: &str) -> Option<Vec<ProcessInfo>> {
        let gpu = self.nvml()?.device_by_uuid(uuid).ok()?;
        gpu.running_compute_processes().ok()
    }
}
