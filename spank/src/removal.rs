//! Removes a folder that was a user's, whatever they have put there.
//!
//! Owns: that nothing outside it is touched, and that its depth costs neither stack nor descriptors.
//! Every name is reached through the descriptor of an opened folder (`/proc/self/fd`), so that no
//! symbolic link that appears meanwhile is followed; what lies deeper is moved up before it is
//! removed, so that only two folders are ever open.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A job's end waits for it no longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Removes the folder, if it is there; its parent is root's.
pub(crate) fn remove(folder: &Path) -> io::Result<()> {
    let top = match take(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let deadline = Instant::now() + PATIENCE;
    let mut moved = 0_u64;
    loop {
        let names = names(&top)?;
        if names.is_empty() {
            return fs::remove_dir(folder);
        }
        let mut progress = false;
        let mut failure = None;
        for name in names {
            match empty(&top, &within(&top, &name), &mut moved) {
                Ok(()) => progress = true,
                Err(error) => failure = Some(error),
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("it holds more than can be removed in 30 s"));
            }
        }
        if let (false, Some(error)) = (progress, failure) {
            return Err(error);
        }
    }
}

/// Removes a file, or a folder, whose own folders go up into `top`.
fn empty(top: &File, path: &Path, moved: &mut u64) -> io::Result<()> {
    if fs::remove_file(path).is_ok() {
        return Ok(());
    }
    let folder = take(path)?;
    let mut failure = Ok(());
    for name in names(&folder)? {
        let inner = within(&folder, &name);
        if fs::remove_file(&inner).is_err() {
            *moved += 1;
            failure =
                failure.and(fs::rename(&inner, within(top, &format!("{moved}.moved").into())));
        }
    }
    failure.and(fs::remove_dir(path))
}

/// Opens a folder that nobody else can change from then on, even if they are in it.
fn take(path: &Path) -> io::Result<File> {
    let folder = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path)?;
    let own = fs::metadata("/proc/self")?;
    fchown(&folder, Some(own.uid()), Some(own.gid()))?;
    folder.set_permissions(Permissions::from_mode(0o700))?;
    Ok(folder)
}

fn names(folder: &File) -> io::Result<Vec<OsString>> {
    fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect()
}

fn within(folder: &File, name: &OsString) -> PathBuf {
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    /// More levels than most processes have descriptors for; without a bound the stack would not do either.
    const DEEP: &str = "my $top = shift; chdir $top or die; \
        for (1 .. 5000) { mkdir 'd' or die; chdir 'd' or die } open my $f, '>', 'file' or die;";

    #[test]
    fn no_depth_is_too_deep() {
        let run = tempfile::tempdir().unwrap();
        let folder = run.path().join("7");
        fs::create_dir(&folder).unwrap();
        let made = Command::new("perl").args(["-e", DEEP]).arg(&folder).status().unwrap();
        assert!(made.success());
        remove(&folder).unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn only_what_is_inside_goes() {
        let run = tempfile::tempdir().unwrap();
        let (folder, outside) = (run.path().join("7"), run.path().join("outside"));
        fs::create_dir_all(folder.join("a/b/c")).unwrap();
        fs::create_dir_all(folder.join("1.moved/full")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "x").unwrap();
        fs::write(folder.join("a/b/file"), "x").unwrap();
        symlink(&outside, folder.join("link")).unwrap();
        symlink(&outside, folder.join("a/link")).unwrap();
        fs::set_permissions(folder.join("a"), Permissions::from_mode(0o000)).unwrap();
        remove(&folder).unwrap();
        assert!(!folder.exists() && outside.join("file").exists());
        assert!(remove(&folder).is_ok(), "it is gone already");
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let run = tempfile::tempdir().unwrap();
        fs::create_dir(run.path().join("outside")).unwrap();
        fs::write(run.path().join("outside/file"), "x").unwrap();
        symlink(run.path().join("outside"), run.path().join("7")).unwrap();
        assert!(remove(&run.path().join("7")).is_err());
        assert!(run.path().join("outside/file").exists());
    }
}
