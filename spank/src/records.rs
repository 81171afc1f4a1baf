//! Root's files about the jobs of a node: `RUN/NODE/spec/JOBID.*`, which nobody else can read.
//!
//! Owns: their names and forms.
//!
//! | file | holds |
//! | --- | --- |
//! | `JOBID.toml` | the job spec; the job is an acb job while it exists |
//! | `JOBID.daemon` | pid and start time of the assigner |
//! | `JOBID.failed` | why there is none, for the job's tasks to tell |

use crate::process::Identity;
use crate::whereabouts::Whereabouts;
use crate::{args, removal, trust};
use acb_cluster_conf::{JobFolder, JobSpec, LoadError, spec_file};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The records of one job on this node.
#[derive(Debug)]
pub(crate) struct Records {
    spec: PathBuf,
    folder: JobFolder,
}

impl Records {
    /// Those of a job; nothing is made.
    pub(crate) fn new(run_dir: &Path, node: &str, job_id: u32) -> Self {
        Self {
            spec: spec_file(run_dir, node, job_id),
            folder: JobFolder::new(run_dir, node, job_id),
        }
    }

    /// Those of a job that has begun, wherever they were made; without the cluster file if it must
    /// be.
    pub(crate) fn find(node: &str, job_id: u32) -> Result<Self, LoadError> {
        let run_dir = match Whereabouts::of(node, job_id).read() {
            Some(run_dir) => run_dir,
            None => args::site()?.paths.run_dir.to_path_buf(),
        };
        Ok(Self::new(&run_dir, node, job_id))
    }

    /// The job spec's file.
    pub(crate) fn spec(&self) -> &Path {
        &self.spec
    }

    /// The user's folder.
    pub(crate) fn folder(&self) -> &JobFolder {
        &self.folder
    }

    /// Whether the job is an acb job.
    pub(crate) fn exist(&self) -> bool {
        self.trusted() && self.spec.exists()
    }

    /// What others could have written is nobody's record.
    fn trusted(&self) -> bool {
        self.spec.parent().is_some_and(|folder| trust::check(folder).is_ok())
    }

    /// Whether there could be any: the prolog makes none in a folder of others.
    pub(crate) fn possible(&self) -> io::Result<()> {
        self.spec.parent().map_or(Ok(()), trust::check_place)
    }

    fn read(&self, file: &Path) -> Option<String> {
        self.trusted().then(|| fs::read_to_string(file).ok()).flatten()
    }

    /// Makes `RUN/NODE`, which everybody may enter, and `RUN/NODE/spec`, which root alone may.
    fn make_folders(&self) -> io::Result<()> {
        let records = self.spec.parent().ok_or(ErrorKind::InvalidInput)?;
        let node = records.parent().ok_or(ErrorKind::InvalidInput)?;
        trust::check_place(node)?;
        DirBuilder::new().recursive(true).mode(0o755).create(node)?;
        for folder in [node, node.parent().ok_or(ErrorKind::InvalidInput)?] {
            trust::check(folder)?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(records)?;
        trust::check(records)?;
        // slurmd's umask may be anything.
        fs::set_permissions(node, Permissions::from_mode(0o755))?;
        fs::set_permissions(records, Permissions::from_mode(0o700))
    }

    /// Writes the job spec.
    pub(crate) fn write_spec(&self, spec: &JobSpec) -> io::Result<()> {
        self.make_folders()?;
        write(&self.spec, &spec.to_toml())
    }

    /// Remembers why the job has no assigner here.
    pub(crate) fn write_failure(&self, why: &str) -> io::Result<()> {
        self.make_folders()?;
        write(&self.failure_file(), why)
    }

    /// Why the job has no assigner here.
    pub(crate) fn failure(&self) -> Option<String> {
        self.read(&self.failure_file())
    }

    /// Remembers the assigner's process.
    pub(crate) fn write_daemon(&self, daemon: Identity) -> io::Result<()> {
        write(&self.daemon_file(), &format!("{} {}\n", daemon.pid, daemon.start_time))
    }

    /// The assigner's process.
    pub(crate) fn daemon(&self) -> Option<Identity> {
        let text = self.read(&self.daemon_file())?;
        let (pid, start_time) = text.trim().split_once(' ')?;
        Some(Identity { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? })
    }

    /// Removes everything of the job, the user's folder as well; errors are joined.
    pub(crate) fn remove(&self) -> Result<(), String> {
        if !self.trusted() {
            return Ok(());
        }
        let folder = removal::remove(self.folder.path());
        let files = [self.spec.clone(), self.failure_file(), self.daemon_file()];
        let errors: Vec<_> = std::iter::once((self.folder.path().to_owned(), folder))
            .chain(files.map(|file| (file.clone(), fs::remove_file(&file))))
            .filter_map(|(path, result)| match result {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Some(format!("{}: {error}", path.display()))
                }
                _ => None,
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    fn failure_file(&self) -> PathBuf {
        self.spec.with_extension("failed")
    }

    fn daemon_file(&self) -> PathBuf {
        self.spec.with_extension("daemon")
    }
}

/// Root's alone from its first byte on, and whole or not there.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    drop(file);
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_others_are_not_taken() {
        let run = tempfile::tempdir().unwrap();
        fs::set_permissions(run.path(), Permissions::from_mode(0o777)).unwrap();
        let error = Records::new(run.path(), "n1", 7).write_failure("x").unwrap_err();
        assert!(error.to_string().contains("root alone can write"), "{error}");

        let run = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), run.path().join("n1")).unwrap();
        assert!(Records::new(run.path(), "n1", 7).write_failure("x").is_err());
        assert!(fs::read_dir(elsewhere.path()).unwrap().next().is_none());
    }

    #[test]
    fn records_come_and_go() {
        let run = tempfile::tempdir().unwrap();
        let records = Records::new(run.path(), "n1", 7);
        assert!(!records.exist());
        assert_eq!(records.remove(), Ok(()));
        records.write_failure("no GPU\n").unwrap();
        let daemon = Identity { pid: 12, start_time: 3456 };
        records.write_daemon(daemon).unwrap();
        assert_eq!(records.failure().as_deref(), Some("no GPU\n"));
        assert_eq!(records.daemon(), Some(daemon));
        let spec_folder = run.path().join("n1/spec");
        assert_eq!(fs::metadata(&spec_folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(
            fs::metadata(spec_folder.join("7.failed")).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::create_dir(run.path().join("n1/7")).unwrap();
        std::os::unix::fs::symlink(&spec_folder, run.path().join("n1/7/link")).unwrap();
        assert_eq!(records.remove(), Ok(()));
        assert_eq!(records.failure(), None);
        assert!(spec_folder.exists());
        assert!(!run.path().join("n1/7").exists());
    }
}
