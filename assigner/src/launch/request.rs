//! What the environment asks for: ACB's variables, and what a Slurm job has set.
//!
//! Owns their names, defaults, and the message for a value that cannot be used.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use acb_cluster_conf::{Name, Priority};

use super::cli::Cli;
use crate::settings::{DEFAULT_ADDRESS, DEFAULT_PORT};

/// What is to run where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Automatic mode, by the interposer; otherwise the program asks for GPUs itself.
    pub is_auto: bool,
    /// Name or address of a user's own assigner.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// What the program wants.
    pub device: Device,
    /// GPUs that it sees.
    pub gpus: u32,
    /// What `--priority`, `--queue` and `--tenant` say; without them the environment stays as it is.
    pub standing: Standing,
    /// Bytes of memory that it may have of each GPU.
    pub memory: Option<u64>,
    /// The client socket of the Slurm job around us.
    pub job_socket: Option<PathBuf>,
    /// How the assigner knows the program: step and rank.
    pub step: String,
    /// See `step`.
    pub rank: u32,
    home: Option<PathBuf>,
}

/// Where a program stands among others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Among those of its queue.
    pub priority: Option<Priority>,
    /// Where it waits.
    pub queue: Option<Name>,
    /// Whose quota and share it counts for.
    pub tenant: Option<Name>,
    /// Its gang, and how many programs that has.
    pub gang: Option<(Name, NonZeroU32)>,
}

/// `AGA_REQUEST_DEVICE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A GPU, or the CPU where there is none.
    Any,
    /// A GPU.
    Gpu,
    /// The CPU.
    Cpu,
}

/// A variable that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is `{value}`; it must be {allowed}")]
pub struct RequestError {
    /// Its name.
    pub variable: &'static str,
    /// Its value.
    pub value: String,
    /// What it can be.
    pub allowed: &'static str,
}

impl Request {
    /// Reads the environment of this process.
    pub fn read(cli: &Cli) -> Result<Request, RequestError> {
        Request::from(cli, |name| std::env::var_os(name))
    }

    fn from(
        cli: &Cli,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Request, RequestError> {
        let text = |name: &str| {
            variable(name)
                .map(|value| value.to_string_lossy().into_owned())
                .filter(|text| !text.is_empty())
        };
        let wrong = |variable, value: &str, allowed| RequestError {
            variable,
            value: value.to_owned(),
            allowed,
        };
        let is_auto = match text("AGA_ENABLE_AUTO").as_deref() {
            None | Some("1") => true,
            Some("0") => false,
            Some(other) => return Err(wrong("AGA_ENABLE_AUTO", other, "1 or 0")),
        };
        let device = match text("AGA_REQUEST_DEVICE").as_deref() {
            None | Some("any") => Device::Any,
            Some("cuda" | "gpu") => Device::Gpu,
            Some("cpu") => Device::Cpu,
            Some(other) => return Err(wrong("AGA_REQUEST_DEVICE", other, "any, cuda, gpu or cpu")),
        };
        let port = match text("AGA_GPU_ALLOC_SERVER_PORT") {
            None => DEFAULT_PORT,
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
                wrong("AGA_GPU_ALLOC_SERVER_PORT", &port, "a port from 1 to 65535")
            })?,
        };
        let gpus = match (cli.gpus, text("ACB_GPUS")) {
            (Some(gpus), _) => gpus,
            (None, None) => 1,
            (None, Some(gpus)) => gpus
                .parse()
                .ok()
                .filter(|gpus| (1..=64).contains(gpus))
                .ok_or_else(|| wrong("ACB_GPUS", &gpus, "a number from 1 to 64"))?,
        };
        let memory = match (cli.mem, text("ACB_MEMORY")) {
            (Some(limit), _) => Some(limit.bytes()),
            (None, None) => None,
            (None, Some(bytes)) => {
                let parsed = bytes.parse().ok().filter(|bytes| *bytes > 0);
                Some(parsed.ok_or_else(|| wrong("ACB_MEMORY", &bytes, "a number of bytes"))?)
            }
        };
        Ok(Request {
            is_auto,
            memory,
            address: text("AGA_GPU_ALLOC_SERVER_ADDRESS").unwrap_or(DEFAULT_ADDRESS.to_string()),
            port,
            device,
            gpus,
            standing: Standing {
                priority: cli.priority,
                queue: cli.queue.clone(),
                tenant: cli.tenant.clone(),
                gang: cli.gang.clone(),
            },
            job_socket: text("ACB_SOCKET").map(PathBuf::from),
            step: text("ACB_STEP").unwrap_or_else(|| format!("agarun-{}", std::process::id())),
            rank: text("ACB_RANK").and_then(|rank| rank.parse().ok()).unwrap_or(0),
            home: text("HOME").map(PathBuf::from),
        })
    }

    /// Where the history is written; `None` where there is no home folder to write it to.
    pub fn history_path(&self, cli: &Cli) -> Option<PathBuf> {
        let by_default =
            || self.home.as_deref().map(|home: &Path| home.join(".acb/job-history.log"));
        cli.history_path.clone().or_else(by_default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn read(variables: &[(&str, &str)]) -> Result<Request, RequestError> {
        let cli = Cli::parse_from(["agarun", "program"]);
        Request::from(&cli, |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn without_variables_everything_is_acbs_default() {
        let request = read(&[]).unwrap();
        assert!(request.is_auto);
        assert_eq!((request.address.as_str(), request.port), ("127.0.0.1", 11234));
        assert_eq!((request.device, request.gpus), (Device::Any, 1));
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_allowed() {
        for (name, value) in [
            ("AGA_ENABLE_AUTO", "yes"),
            ("AGA_REQUEST_DEVICE", "tpu"),
            ("AGA_GPU_ALLOC_SERVER_PORT", "0"),
            ("AGA_GPU_ALLOC_SERVER_PORT", "http"),
            ("ACB_GPUS", "-1"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert_eq!((error.variable, error.value.as_str()), (name, value));
        }
    }
}
