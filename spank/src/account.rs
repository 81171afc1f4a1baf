//! What the node's user database says of a user.
//!
//! Owns: asking it. That can take as long as the site's directory service does, so it is asked in the
//! prolog, a process of its own.

// getpwuid_r.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The largest entry that is read.
const BYTES_MAX: usize = 1 << 20;

/// The user's home folder; `None` when the database has none, or no such user.
pub(crate) fn home(uid: u32) -> Option<PathBuf> {
    let mut buffer: Vec<c_char> = vec![0; 4096];
    loop {
        // SAFETY: a struct of numbers and pointers, all of which may be zero.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: the entry and the buffer, of that length, live until the texts have been copied.
        let code = unsafe {
            libc::getpwuid_r(uid, &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut found)
        };
        match code {
            libc::ERANGE if buffer.len() < BYTES_MAX => buffer.resize(buffer.len() * 4, 0),
            libc::EINTR => {}
            0 if !found.is_null() && !entry.pw_dir.is_null() => {
                // SAFETY: within the buffer, ended with a NUL.
                let home = unsafe { CStr::from_ptr(entry.pw_dir) };
                let home = PathBuf::from(OsStr::from_bytes(home.to_bytes()));
                // The spec is text.
                return (home.is_absolute() && home.to_str().is_some()).then_some(home);
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_a_home_and_strangers_have_none() {
        assert_eq!(home(0), Some("/root".into()));
        assert_eq!(home(u32::MAX - 7), None);
    }
}
