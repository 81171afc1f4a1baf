//! The memory of this host that a job may use.
//!
//! Owns where that is read: the cgroups that this process is in, Slurm's environment, and all that
//! the host has; the least of them counts. Does not own which share of it is for what.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of memory that this process and its siblings in the job may use.
pub(crate) fn memory() -> u64 {
    let slurm = |name: &str| std::env::var(name).ok();
    let limits = [
        total(Path::new("/proc/meminfo")),
        of_cgroup(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup")),
        of_slurm(
            slurm("SLURM_MEM_PER_NODE"),
            slurm("SLURM_MEM_PER_CPU"),
            slurm("SLURM_CPUS_ON_NODE"),
        ),
    ];
    limits.into_iter().flatten().min().unwrap_or(0)
}

fn total(meminfo: &Path) -> Option<u64> {
    let text = fs::read_to_string(meminfo).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What Slurm says, in MiB; 0 means that the job has all of the node.
fn of_slurm(node: Option<String>, cpu: Option<String>, cpus: Option<String>) -> Option<u64> {
    let number = |text: Option<String>| text?.parse::<u64>().ok().filter(|number| *number > 0);
    let mib = match number(node) {
        Some(node) => node,
        None => number(cpu)?.checked_mul(number(cpus)?)?,
    };
    mib.checked_mul(1 << 20)
}

/// The least limit of the cgroups from this process's up; a step's and a job's are above a task's.
fn of_cgroup(own: &Path, mount: &Path) -> Option<u64> {
    let text = fs::read_to_string(own).ok()?;
    let limits = text.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next(), parts.next(), parts.next());
        let (root, file) = match controllers {
            Some("") => (mount.to_owned(), "memory.max"),
            Some(list) if list.split(',').any(|name| name == "memory") => {
                (mount.join("memory"), "memory.limit_in_bytes")
            }
            _ => (PathBuf::new(), ""),
        };
        let path = path.unwrap_or_default().trim_start_matches('/').to_owned();
        let folders: Vec<PathBuf> = match file {
            "" => Vec::new(),
            _ => Path::new(&path).ancestors().map(|folder| root.join(folder)).collect(),
        };
        folders.into_iter().filter_map(move |folder| limit(&folder.join(file)))
    });
    limits.min()
}

/// `max`, or a number that a v1 cgroup rounds to near the end of all numbers, is no limit.
fn limit(file: &Path) -> Option<u64> {
    let number = fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()?;
    (number < 1 << 62).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("own", "0::/slurm/job_7/step_0/user/task_0\n");
        write("slurm/job_7/step_0/user/task_0/memory.max", "max\n");
        write("slurm/job_7/step_0/memory.max", "8589934592\n");
        write("slurm/job_7/memory.max", "4294967296\n");
        assert_eq!(of_cgroup(&root.join("own"), root), Some(4 << 30));
        write("own", "5:cpu:/x\n4:hugetlb,memory:/slurm/job_7\n");
        write("memory/slurm/job_7/memory.limit_in_bytes", "1073741824");
        write("memory/slurm/memory.limit_in_bytes", "9223372036854771712");
        assert_eq!(of_cgroup(&root.join("own"), root), Some(1 << 30));
        assert_eq!(of_cgroup(&root.join("none"), root), None);
    }

    #[test]
    fn slurm_counts_in_mib() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(of_slurm(text("4096"), None, None), Some(4 << 30));
        assert_eq!(of_slurm(text("0"), None, None), None);
        assert_eq!(of_slurm(None, text("1024"), text("4")), Some(4 << 30));
        assert_eq!(of_slurm(None, text("1024"), None), None);
    }

    #[test]
    fn every_host_has_memory() {
        assert!(memory() > 0);
        assert!(total(Path::new("/proc/meminfo")) >= Some(memory()));
    }
}
