//! task_post_fork of the extern step, as root: starts the job's assigner and waits until it serves.
//!
//! slurmd waits for this callback, so the assigner is there before any task. Returns no error: see
//! `prolog`.

use crate::launch::{self, Launch};
use crate::process::{Identity, Process};
use crate::records::Records;
use crate::slurm::{self, Handle, c_string};
use crate::{cgroup, sweep};
use acb_cluster_conf::JobSpec;
use std::env;
use std::ffi::c_int;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// SLURM_EXTERN_CONT of slurm.h.
pub(crate) const EXTERN_STEP: u32 = 0xffff_fffc;

/// Starts the assigner of a job that has a spec.
pub(crate) fn run(handle: &Handle<'_>) -> c_int {
    if handle.step_id() == Ok(EXTERN_STEP) {
        start_assigner(handle);
    }
    0
}

/// Starts it from this step; what fails is remembered for the job's tasks.
pub(crate) fn start_assigner(handle: &Handle<'_>) {
    let (Ok(job_id), Ok(node)) = (handle.job_id(), env::var("SLURMD_NODENAME")) else { return };
    // What is wrong with the cluster file, the prolog has told.
    let Ok(records) = Records::find(&node, job_id) else { return };
    if !records.exist() {
        return;
    }
    if let Err(why) = start(handle, &records) {
        let why = format!("the GPU assigner of job {job_id} did not start on node {node}: {why}");
        slurm::error(&why);
        if let Err(error) = records.write_failure(&why) {
            slurm::error(&format!("job {job_id}: {}: {error}", records.spec().display()));
        }
    }
}

fn start(handle: &Handle<'_>, records: &Records) -> Result<(), String> {
    let spec = JobSpec::load(records.spec()).map_err(|error| error.to_string())?;
    let folder = records.folder();
    // An assigner that was there before has left it, and clients know its socket.
    if records.daemon().is_none() {
        make_folder(folder.path(), &folder.spec(), &spec)
            .map_err(|error| format!("{}: {error}", folder.path().display()))?;
    }

    let program = spec.bin_dir.join("gpu_assigner");
    let launch = Launch {
        program: path_string(&program),
        arguments: [
            c_string("gpu_assigner"),
            c_string("start"),
            c_string("--foreground"),
            c_string("--spec"),
            path_string(&folder.spec()),
            c_string("--ready-fd"),
            c_string(launch::READY_FD),
        ]
        .into(),
        environment: environment(&spec).iter().map(|entry| c_string(entry)).collect(),
        uid: spec.uid,
        gid: spec.gid,
        groups: handle.groups().map_err(|error| error.to_string())?,
        log: path_string(&folder.log()),
        cgroups: step_cgroups().iter().map(|file| path_string(file)).collect(),
    };
    let started = launch.start().map_err(|error| format!("{}: {error}", program.display()))?;
    let daemon = Identity::of(started.pid);
    let outcome = match daemon {
        Some(daemon) => records
            .write_daemon(daemon)
            .map_err(|error| error.to_string())
            .and_then(|()| await_ready(started, &spec, &program)),
        // It has ended already: what it said tells more than that.
        None => await_ready(started, &spec, &program),
    };
    if outcome.is_err()
        && let Some(daemon) = daemon
    {
        sweep::end(daemon, spec.uid);
    }
    outcome
}

/// Where the step's one process is, a `sleep` that slurmstepd has started. Slurm calls it no task.
fn step_cgroups() -> Vec<PathBuf> {
    let own = std::process::id();
    Process::all()
        .iter()
        .find(|process| process.parent == own)
        .map(|process| cgroup::of_process(process.identity.pid))
        .unwrap_or_default()
}

/// The folder is the user's only when all that root writes there is written.
fn make_folder(folder: &Path, copy: &Path, spec: &JobSpec) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(copy)?;
    file.write_all(spec.to_toml().as_bytes())?;
    std::os::unix::fs::fchown(&file, Some(spec.uid), Some(spec.gid))?;
    chown(folder, Some(spec.uid), Some(spec.gid))?;
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))
}

/// All that the assigner sees: nothing of slurmd's own environment, but what names the node.
fn environment(spec: &JobSpec) -> Vec<String> {
    let mut entries = vec![
        "PATH=/usr/local/bin:/usr/bin:/bin".to_owned(),
        "LANG=C.UTF-8".to_owned(),
        format!("SLURMD_NODENAME={}", spec.node),
        format!("SLURM_JOB_ID={}", spec.job_id),
    ];
    let optional = [
        ("HOME", spec.home.as_deref()),
        ("SLURM_CONF", spec.slurm_conf.as_deref()),
        ("ACB_NVML", spec.driver.nvml.as_deref()),
        ("ACB_DRIVER", spec.driver.cuda.as_deref()),
    ];
    for (name, value) in optional {
        entries.extend(value.map(|value| format!("{name}={}", value.display())));
    }
    entries.extend(spec.environment.iter().map(|(name, value)| format!("{name}={value}")));
    entries
}

fn await_ready(started: launch::Started, spec: &JobSpec, program: &Path) -> Result<(), String> {
    let patience = Duration::from_secs(spec.ready_timeout_s.get().into());
    let log = spec.run_folder.log();
    match started.first_line(patience) {
        Ok(line) if line == "ready" => Ok(()),
        Ok(line) if line.is_empty() => Err(format!(
            "{} ended without a word; the end of {}:\n{}",
            program.display(),
            log.display(),
            end_of(&log, spec.uid)
        )),
        Ok(line) => {
            let why = line.strip_prefix("error: ").unwrap_or(&line);
            Err(format!("{}: {why}", program.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(format!(
            "it was not ready after {} s (failure.ready_timeout_s of the cluster file); the end of {}:\n{}",
            patience.as_secs(),
            log.display(),
            end_of(&log, spec.uid)
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// The last lines of the assigner's log. It lies in the user's folder and may be anything by now:
/// a link or a pipe is not opened, and a large file not read.
fn end_of(log: &Path, uid: u32) -> String {
    const BYTES: u64 = 2048;
    let text = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(log)
        .and_then(|mut file| {
            use io::{Read, Seek};
            let metadata = file.metadata()?;
            // Another name of somebody else's file is not the user's to read either.
            if !metadata.is_file() || metadata.uid() != uid {
                return Ok(Vec::new());
            }
            file.seek(io::SeekFrom::Start(metadata.len().saturating_sub(BYTES)))?;
            let mut bytes = Vec::new();
            file.take(BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        })
        .unwrap_or_default();
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

fn path_string(path: &Path) -> std::ffi::CString {
    c_string(&String::from_utf8_lossy(path.as_os_str().as_bytes()))
}
