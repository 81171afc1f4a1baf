//! What this machine must have for a private Slurm, and what runs on it.

use super::{Account, Proctrack};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// What is missing here for a lab, each with its remedy; empty: nothing.
pub fn missing(proctrack: Proctrack) -> Vec<String> {
    let mut missing = Vec::new();
    if effective_uid() != Some(0) {
        missing.push("it needs root, for slurmd starts jobs as their users".to_owned());
    }
    for (name, package) in [
        ("slurmctld", "slurm-wlm"),
        ("slurmd", "slurm-wlm"),
        ("srun", "slurm-wlm"),
        ("munged", "munge"),
    ] {
        if program(name).is_err() {
            missing.push(format!("{name} is not installed (apt-get install {package})"));
        }
    }
    if proctrack == Proctrack::Cgroup {
        missing.extend(["freezer", "devices", "memory", "cpuset"].iter().filter_map(|controller| {
            let folder = Path::new("/sys/fs/cgroup").join(controller);
            let probe = folder.join(format!("acb-probe-{}", std::process::id()));
            let why = match fs::create_dir(&probe) {
                Ok(()) => {
                    let tasks = probe.join("tasks").exists();
                    let _ = fs::remove_dir(&probe);
                    (!tasks).then(|| "is no cgroup v1 hierarchy".to_owned())
                }
                Err(error) => Some(format!("cannot be written ({error})")),
            };
            why.map(|why| {
                format!(
                    "proctrack/cgroup needs cgroup v1, and {} {why} \
                     (boot with systemd.unified_cgroup_hierarchy=0, or give the container its cgroups)",
                    folder.display()
                )
            })
        }));
    }
    missing
}

/// Absolute path of a program, in the folders of the system.
pub(super) fn program(name: &str) -> Result<&'static str> {
    FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
        .map(|path| &*Box::leak(path.display().to_string().into_boxed_str()))
        .with_context(|| format!("{name} is in none of {}", FOLDERS.join(", ")))
}

/// munged refuses keys and folders that are not its own user's.
pub(super) fn munge_account() -> Result<Account> {
    match Account::named("munge")? {
        Some(account) => Ok(account),
        None => Account::named("root")?.context("no root in /etc/passwd"),
    }
}

pub(super) fn host_name() -> Result<String> {
    let output = Command::new("hostname").output().context("run hostname")?;
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // Slurm takes the short form.
    Ok(name.split('.').next().unwrap_or_default().to_owned())
}

/// Processes that name `text` in their command line or environment: pid and command line.
pub fn processes_naming(text: &str) -> Vec<(u32, String)> {
    let own = std::process::id();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok().filter(|pid| *pid != own)?;
            let [command, environment] =
                ["cmdline", "environ"].map(|file| read(entry.path().join(file)));
            (command.contains(text) || environment.contains(text)).then_some((pid, command))
        })
        .collect()
}

fn read(path: PathBuf) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\0', " ")
}

fn effective_uid() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
