//! The names of the files in a job's folder (docs/architecture.md, "Run folder").
//!
//! Owns the names. Does not make, own or remove the files.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Bytes of a Unix socket's path, without the NUL that ends it.
pub const SOCKET_PATH_MAX: usize = 107;

/// Longest name of a socket in a job's folder.
const LONGEST_SOCKET: usize = "client.sock".len();

/// Root's spec of a job on a node: `RUN/NODE/spec/JOBID.toml`.
pub fn spec_file(run_dir: &Path, node: &str, job_id: u32) -> PathBuf {
    run_dir.join(node).join("spec").join(format!("{job_id}.toml"))
}

/// The folder of a job on a node, `RUN/NODE/JOBID`, which only the job's user can enter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobFolder(PathBuf);

impl JobFolder {
    /// The folder of this job on this node.
    pub fn new(run_dir: &Path, node: &str, job_id: u32) -> Self {
        JobFolder(run_dir.join(node).join(job_id.to_string()))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The user's copy of the job spec.
    pub fn spec(&self) -> PathBuf {
        self.0.join("spec.toml")
    }

    /// Socket of the clients.
    pub fn client_socket(&self) -> PathBuf {
        self.0.join("client.sock")
    }

    /// Socket of the tools, gRPC.
    pub fn tools_socket(&self) -> PathBuf {
        self.0.join("tools.sock")
    }

    /// Who serves, and which GPUs.
    pub fn ready(&self) -> PathBuf {
        self.0.join("ready.json")
    }

    /// The assigner's log.
    pub fn log(&self) -> PathBuf {
        self.0.join("assigner.log")
    }

    /// What the assigner's next life needs to know.
    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Statistics that survive a kill.
    pub fn stats(&self) -> PathBuf {
        self.0.join("stats.json")
    }

    /// Length of the longest socket path in the folder.
    pub fn longest_socket(&self) -> usize {
        self.0.as_os_str().len() + 1 + LONGEST_SOCKET
    }
}

/// Length of the longest socket path that a run folder leads to, for a node name of that length.
pub(crate) fn longest_socket(run_dir: &str, node_length: usize) -> usize {
    let job_id = u32::MAX.to_string().len();
    run_dir.trim_end_matches('/').len() + 1 + node_length + 1 + job_id + 1 + LONGEST_SOCKET
}
