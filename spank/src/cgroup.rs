//! The cgroups that the assigner joins.
//!
//! Owns: finding them. slurmstepd itself sits outside the extern step's cgroups (v1) or in a leaf of
//! its own (v2), and so would its children: Slurm would neither count nor end them. The step's own
//! process shows where they belong.

use std::fs;
use std::path::{Path, PathBuf};

/// The `cgroup.procs` of every cgroup that a process is in and this one is not.
pub(crate) fn of_process(pid: u32) -> Vec<PathBuf> {
    let read = |path: String| fs::read_to_string(path).unwrap_or_default();
    differing(
        &read(format!("/proc/{pid}/cgroup")),
        &read("/proc/self/cgroup".into()),
        &read("/proc/self/mountinfo".into()),
    )
}

fn differing(theirs: &str, own: &str, mounts: &str) -> Vec<PathBuf> {
    let own: Vec<_> = own.lines().collect();
    theirs
        .lines()
        .filter(|line| !own.contains(line))
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            let path = fields.next()?;
            mounts.lines().find_map(|mount| folder(mount, controllers, path))
        })
        .map(|folder| folder.join("cgroup.procs"))
        .collect()
}

/// Where a line of mountinfo shows a cgroup, if it is of that hierarchy.
fn folder(mount: &str, controllers: &str, path: &str) -> Option<PathBuf> {
    let (mount, file_system) = mount.split_once(" - ")?;
    let mut file_system = file_system.split(' ');
    let kind = file_system.next()?;
    let options: Vec<_> = file_system.nth(1)?.split(',').collect();
    let right = match controllers {
        "" => kind == "cgroup2",
        list => kind == "cgroup" && list.split(',').all(|name| options.contains(&name)),
    };
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    // Below the root of the mount; in a container that is not the hierarchy's.
    let below = Path::new(path).strip_prefix(root).ok()?;
    right.then(|| Path::new(point).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 23 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup rw
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 /docker/1 /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
34 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd";

    #[test]
    fn only_what_differs_is_joined() {
        let own = "9:name=systemd:/s\n6:freezer:/docker/1/slurm\n1:cpu,cpuacct:/\n0::/\n";
        let theirs = "9:name=systemd:/s\n6:freezer:/docker/1/slurm/job_1/step_extern\n\
                      1:cpu,cpuacct:/slurm/job_1\n0::/user\n";
        assert_eq!(
            differing(theirs, own, MOUNTS),
            [
                "/sys/fs/cgroup/freezer/slurm/job_1/step_extern/cgroup.procs",
                "/sys/fs/cgroup/cpu,cpuacct/slurm/job_1/cgroup.procs",
                "/sys/fs/cgroup/unified/user/cgroup.procs",
            ]
            .map(PathBuf::from)
        );
        assert_eq!(differing(own, own, MOUNTS), Vec::<PathBuf>::new());
        assert_eq!(differing("garbage\n:\n1:x:/y", own, MOUNTS), Vec::<PathBuf>::new());
    }
}
