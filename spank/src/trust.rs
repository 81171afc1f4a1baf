//! Whether root may act on what lies in a folder.
//!
//! Owns: the rule. Whoever can write a folder on the way can put another in the place of ours, even
//! where the cluster file names a run folder below /tmp.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The folder and all on the way to it belong to root (or to this process), and nobody else can
/// write them; on the way, where names cannot be taken from others, anybody may (`/tmp`).
pub(crate) fn check(folder: &Path) -> io::Result<()> {
    let own = fs::metadata("/proc/self")?.uid();
    let ours = |metadata: &Metadata| metadata.uid() == 0 || metadata.uid() == own;
    // As it is named, for the owners of links, and as it is.
    for path in [folder, &folder.canonicalize()?] {
        for step in path.ancestors() {
            let metadata = step.symlink_metadata()?;
            let closed = metadata.mode() & 0o022 == 0;
            let right = match step == path {
                true => metadata.is_dir() && closed,
                false => metadata.is_symlink() || closed || metadata.mode() & 0o1000 != 0,
            };
            if !right || !ours(&metadata) {
                return Err(io::Error::other(format!(
                    "{} must be a folder that root alone can write",
                    step.display()
                )));
            }
        }
    }
    Ok(())
}

/// The same for a folder of which the last parts may not exist yet: where they would be made.
pub(crate) fn check_place(folder: &Path) -> io::Result<()> {
    let exists = |path: &&Path| path.symlink_metadata().is_ok();
    match folder.ancestors().find(exists) {
        Some(path) if path == folder => check(folder),
        // Of what exists, the last may be one in which anybody can make a folder.
        Some(path) => check_way(path),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

fn check_way(path: &Path) -> io::Result<()> {
    let sticky = fs::metadata(path)?.mode() & 0o1000 != 0;
    match (sticky, path.parent()) {
        (true, Some(parent)) if !path.symlink_metadata()?.is_symlink() => check_way(parent),
        _ => check(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn open_to(folder: &Path, mode: u32) {
        fs::set_permissions(folder, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn every_folder_on_the_way_counts() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        assert!(check(&inner).is_ok());
        open_to(outer.path(), 0o777);
        assert!(check(&inner).is_err(), "anybody can rename a");
        open_to(outer.path(), 0o1777);
        assert!(check(&inner).is_ok(), "nobody else can rename a");
        open_to(&inner, 0o1777);
        assert!(check(&inner).is_err(), "anybody can make files in b");
    }

    #[test]
    fn links_count_by_their_owner_and_their_target() {
        let outer = tempfile::tempdir().unwrap();
        let (real, link) = (outer.path().join("real"), outer.path().join("link"));
        fs::create_dir_all(real.join("run")).unwrap();
        symlink(&real, &link).unwrap();
        assert!(check(&link.join("run")).is_ok());
        assert!(check(&link).is_err(), "the last is a link");
        open_to(&real, 0o777);
        assert!(check(&link.join("run")).is_err());
        open_to(&real, 0o755);
        if fs::metadata("/proc/self").unwrap().uid() == 0 {
            std::os::unix::fs::lchown(&link, Some(1234), None).unwrap();
            assert!(check(&link.join("run")).is_err(), "its owner can put another in its place");
        }
    }

    #[test]
    fn what_does_not_exist_yet_is_made_in_trusted_folders() {
        let outer = tempfile::tempdir().unwrap();
        let new = outer.path().join("a/b/c");
        assert!(check_place(&new).is_ok());
        open_to(outer.path(), 0o1777);
        assert!(check_place(&new).is_ok());
        open_to(outer.path(), 0o777);
        assert!(check_place(&new).is_err());
        // A link to nowhere in a folder of everybody: what is made through it would be elsewhere.
        open_to(outer.path(), 0o1777);
        symlink("/nowhere", outer.path().join("a")).unwrap();
        assert!(check_place(&new).is_err());
    }
}
