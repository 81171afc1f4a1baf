//! `ready.json`: what the assigner says of itself once it serves.
//!
//! Owns: reading it. The file is the user's: what stands there decides nothing on root's side.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// A GPU that the assigner hands out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ReadyGpu {
    /// As Slurm and NVML count.
    pub(crate) index: u32,
    pub(crate) uuid: String,
}

/// What the assigner says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Ready {
    pub(crate) gpus: Vec<ReadyGpu>,
    pub(crate) client_socket: PathBuf,
}

impl Ready {
    /// Reads the file.
    pub(crate) fn load(path: &Path) -> io::Result<Self> {
        serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
    }
}
