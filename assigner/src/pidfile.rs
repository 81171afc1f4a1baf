//! The pid file of a user's own assigner.
//!
//! Owns its format (a decimal pid and a line feed, as ACB writes it and scripts read it) and the
//! question whether the process that it names is an assigner. Does not own the exit codes that follow.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::process::{name_of, uid_of};

/// Name of the daemon's processes.
pub const PROCESS_NAME: &str = "gpu_assigner";

/// A pid file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// It exists, but cannot be read.
    #[error("pid file {} cannot be read: {source}; make it readable or name another with --pid-file-path", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not hold a pid.
    #[error("pid file {} is corrupt: it holds no process id; check with `pgrep gpu_assigner` that no assigner runs, and remove it", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
    },
}

/// What a pid file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// There is no file.
    Nothing,
    /// The process is gone, or is no assigner of this user: the file is left over, or of another node.
    Stale,
    /// An assigner of this user on this node.
    Running(u32),
}

/// Reads a pid file and looks for the process.
pub fn read(path: &Path) -> Result<Recorded, PidFileError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Recorded::Nothing),
        Err(source) => return Err(PidFileError::Unreadable { path: path.to_owned(), source }),
    };
    let pid = std::str::from_utf8(&text)
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .filter(|pid| (1..=i32::MAX as u32).contains(pid))
        .ok_or_else(|| PidFileError::Corrupt { path: path.to_owned() })?;
    let ours = name_of(pid).as_deref() == Some(PROCESS_NAME)
        && uid_of(pid) == Some(rustix::process::geteuid().as_raw());
    Ok(if ours { Recorded::Running(pid) } else { Recorded::Stale })
}

/// Writes a pid file, whole or not at all.
pub fn write(path: &Path, pid: u32) -> io::Result<()> {
    crate::files::replace(path, format!("{pid}\n").as_bytes())
}

/// Removes a pid file if it still names this process: another node may share the home folder.
pub fn remove_own(path: &Path, pid: u32) {
    if fs::read_to_string(path).is_ok_and(|text| text.trim() == pid.to_string()) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_nothing_stale_or_corrupt() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        assert_eq!(read(&path).unwrap(), Recorded::Nothing);
        // This test's process is alive, but no assigner.
        write(&path, std::process::id()).unwrap();
        assert_eq!(read(&path).unwrap(), Recorded::Stale);
        for text in ["", "abc", "-4", "0", "12 13", "99999999999"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(read(&path), Err(PidFileError::Corrupt { .. })), "{text:?}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(read(&path), Err(PidFileError::Unreadable { .. })));
    }

    #[test]
    fn only_the_own_pid_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        write(&path, 12).unwrap();
        remove_own(&path, 13);
        assert!(path.exists());
        remove_own(&path, 12);
        assert!(!path.exists());
    }
}
