//! `job-history.log`: one JSON line for each run.
//!
//! Owns the line: what was asked for and what was got, with times in seconds since the Unix epoch.
//! What the assigner granted is asked from it after the run; a program that ends together with its
//! assigner leaves a line without it.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use acb_wire::v1::ClientRecord;
use serde::Serialize;

use super::contact::Contact;
use super::request::{Device, Request};
use crate::remote::{self, Remote};

/// One run.
#[derive(Debug, Serialize)]
pub struct Run {
    program: String,
    pid: u32,
    mode: &'static str,
    requested_device: &'static str,
    requested_gpus: u32,
    assigner: Option<String>,
    started: f64,
    ended: f64,
    exit_code: i32,
    clients: Vec<Got>,
    #[serde(skip)]
    step: String,
    #[serde(skip)]
    rank: u32,
}

/// What one process of the run got.
#[derive(Debug, Serialize)]
struct Got {
    pid: u32,
    program: String,
    gpus: Vec<String>,
    first_requested: Option<f64>,
    first_granted: Option<f64>,
    left: Option<f64>,
    grants: u64,
    waited: f64,
    held: f64,
}

impl Run {
    /// A run that is about to begin.
    pub fn begin(
        program: &OsStr,
        request: &Request,
        mode: &'static str,
        contact: Option<&Contact>,
    ) -> Run {
        Run {
            program: program.to_string_lossy().into_owned(),
            pid: std::process::id(),
            mode,
            requested_device: match request.device {
                Device::Any => "any",
                Device::Gpu => "cuda",
                Device::Cpu => "cpu",
            },
            requested_gpus: request.gpus,
            assigner: contact.map(|contact| contact.target.to_string()),
            started: 0.0,
            ended: 0.0,
            exit_code: 0,
            clients: Vec::new(),
            step: request.step.clone(),
            rank: request.rank,
        }
    }

    /// The run is over.
    pub fn end(&mut self, started: SystemTime, exit_code: i32, contact: Option<&Contact>) {
        self.started = seconds(started);
        self.ended = seconds(SystemTime::now());
        self.exit_code = exit_code;
        let Some(contact) = contact else { return };
        let step = self.step.clone();
        let target = remote::beside(&contact.client_socket);
        let asked = remote::run(async { Remote::connect(&target).await?.history(step).await });
        let Ok(reply) = asked else { return };
        // Several runs may share a step of a job: rank and time tell them apart.
        let since = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let ours = |record: &ClientRecord| {
            record.rank == self.rank && u128::from(record.joined_ns) >= since
        };
        self.clients = reply.clients.into_iter().filter(ours).map(Got::from).collect();
    }

    /// Appends the line, in one write, so that runs that end together do not mix.
    pub fn append(&self, path: &Path) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut line = serde_json::to_vec(self).map_err(io::Error::other)?;
        line.push(b'\n');
        OpenOptions::new().create(true).append(true).mode(0o600).open(path)?.write_all(&line)
    }
}

impl From<ClientRecord> for Got {
    fn from(record: ClientRecord) -> Got {
        let moment = |ns: u64| (ns != 0).then(|| ns as f64 / 1e9);
        Got {
            pid: record.pid,
            program: record.program,
            gpus: record.gpus,
            first_requested: moment(record.first_request_ns),
            first_granted: moment(record.first_grant_ns),
            left: moment(record.left_ns),
            grants: record.grants,
            waited: record.wait_ns as f64 / 1e9,
            held: record.held_ns as f64 / 1e9,
        }
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
