//! Where the records of a job lie, remembered outside of the cluster file: that can break, or name
//! another run folder, while the job runs, and the job is swept all the same.
//!
//! Owns: `/run/acb-jobs/NODE-JOBID-HASH`, root's symbolic links to run folders; the hash is that of
//! the cluster file's path, by which clusters on one machine are told apart. Never followed as a
//! link, only read.

use crate::{args, trust};
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

const PLACE: &str = "/run/acb-jobs";

/// Those of one job on this node.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    place: PathBuf,
    link: PathBuf,
}

impl Whereabouts {
    pub(crate) fn of(node: &str, job_id: u32) -> Self {
        Self::in_place(Path::new(PLACE), &args::conf().unwrap_or_default(), node, job_id)
    }

    fn in_place(place: &Path, cluster_file: &Path, node: &str, job_id: u32) -> Self {
        let hash = fnv(cluster_file.as_os_str().as_bytes());
        Self { place: place.to_owned(), link: place.join(format!("{node}-{job_id}-{hash:016x}")) }
    }

    /// Remembers the run folder.
    pub(crate) fn note(&self, run_dir: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.place)?;
        trust::check(&self.place)?;
        self.forget()?;
        symlink(run_dir, &self.link)
    }

    /// The run folder; `None` when nothing is remembered.
    pub(crate) fn read(&self) -> Option<PathBuf> {
        let run_dir = fs::read_link(&self.link).ok()?;
        trust::check(&self.place).ok().map(|()| run_dir)
    }

    /// The job is over.
    pub(crate) fn forget(&self) -> io::Result<()> {
        match fs::remove_file(&self.link) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// FNV-1a: the same in every build of the plugin, which may be replaced while jobs run.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn they_are_remembered_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("jobs");
        let of = |file: &str, node, job| Whereabouts::in_place(&place, file.as_ref(), node, job);
        let job = of("/etc/a.toml", "n1", 7);
        assert_eq!(job.read(), None);
        assert!(job.forget().is_ok());
        job.note("/run/one".as_ref()).unwrap();
        job.note("/run/two".as_ref()).unwrap();
        assert_eq!(job.read(), Some("/run/two".into()));
        for other in
            [of("/etc/b.toml", "n1", 7), of("/etc/a.toml", "n2", 7), of("/etc/a.toml", "n1", 8)]
        {
            assert_eq!(other.read(), None);
        }
        // Where others can write, nothing is believed.
        fs::set_permissions(&place, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(job.read(), None);
        assert!(job.note("/run/three".as_ref()).is_err());
        fs::set_permissions(&place, Permissions::from_mode(0o700)).unwrap();
        job.forget().unwrap();
        assert_eq!(job.read(), None);
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
