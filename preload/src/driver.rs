//! Finds the real driver and opens it by absolute path.
//!
//! Owns: the places that are searched, the refusal to open the interposer itself, the handle.
//! Does not own: its functions (`table`).
#![allow(unsafe_code)] // FFI: dlopen.

use crate::log::{debug, error, info};
use crate::paths;
use std::ffi::{CStr, CString, OsStr, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

const NAME: &str = "libcuda.so.1";

/// Where drivers are installed, in the order of a guess; asked after everything that says so itself.
const USUAL_PLACES: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
];

/// The driver, opened for as long as the process lives.
pub(crate) struct Handle {
    raw: usize,
    pub(crate) path: String,
}

impl Handle {
    pub(crate) fn raw(&self) -> *mut c_void {
        self.raw as *mut c_void
    }
}

/// The real driver; `None` on a machine without one.
pub(crate) fn handle() -> Option<&'static Handle> {
    HANDLE.get_or_init(find).as_ref()
}

static HANDLE: OnceLock<Option<Handle>> = OnceLock::new();

/// The driver's path, if it has been opened here.
pub(crate) fn opened() -> Option<&'static str> {
    HANDLE.get().and_then(Option::as_ref).map(|handle| handle.path.as_str())
}

fn find() -> Option<Handle> {
    if let Some(path) = std::env::var_os("ACB_DRIVER").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return match open(&path) {
            Ok(handle) => Some(handle),
            Err(reason) => {
                error!(
                    "ACB_DRIVER={}: {reason}; set it to the path of the driver's {NAME}, or unset it",
                    path.display()
                );
                None
            }
        };
    }
    let candidates = library_path().into_iter().chain(cached()).chain(usual());
    let mut reasons = Vec::new();
    for path in candidates.filter(|path| path.exists()) {
        match open(&path) {
            Ok(handle) => return Some(handle),
            Err(Unusable::Interposer) => debug!("{}: {}", path.display(), Unusable::Interposer),
            Err(reason) => reasons.push(format!("{}: {reason}", path.display())),
        }
    }
    match reasons.is_empty() {
        true => info!(
            "no {NAME} found: this machine has no NVIDIA driver; set ACB_DRIVER if it is in an unusual place"
        ),
        false => error!(
            "no usable {NAME}: {}; set ACB_DRIVER to the path of the right one",
            reasons.join("; ")
        ),
    }
    None
}

fn library_path() -> Vec<PathBuf> {
    let folders = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let absolute = std::env::split_paths(&folders).filter(|folder| folder.is_absolute());
    absolute.map(|folder| folder.join(NAME)).collect()
}

/// What the dynamic linker's cache has under the driver's name. The cache is a binary file whose
/// strings end in NUL, and that is all that need be known of it.
fn cached() -> Vec<PathBuf> {
    let cache = std::fs::read("/etc/ld.so.cache").unwrap_or_default();
    paths_in_cache(&cache)
}

fn paths_in_cache(cache: &[u8]) -> Vec<PathBuf> {
    let suffix = [b"/", NAME.as_bytes()].concat();
    let mut paths: Vec<PathBuf> = cache
        .split(|byte| *byte == 0)
        .filter(|text| text.starts_with(b"/") && text.ends_with(&suffix))
        .map(|text| PathBuf::from(OsStr::from_bytes(text)))
        .collect();
    paths.dedup();
    paths
}

fn usual() -> Vec<PathBuf> {
    USUAL_PLACES.iter().map(|folder| Path::new(folder).join(NAME)).collect()
}

/// Why a file cannot be the driver.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("not an absolute path")]
    Relative,
    #[error("that is the interposer of slurm-acb itself")]
    Interposer,
    #[error("not a CUDA driver: it has no cuInit")]
    NoDriver,
    #[error("{0}")]
    Linker(String),
}

fn open(path: &Path) -> Result<Handle, Unusable> {
    if !path.is_absolute() {
        return Err(Unusable::Relative);
    }
    static OPENED: AtomicUsize = AtomicUsize::new(0);
    // Under its own name the audit library would lead the driver's path back here. The descriptor is
    // open for as long as the dynamic linker looks at it, which takes two files of one name for the same:
    // the next candidate has the same descriptor, and so another name.
    let audited = match paths::are_audited() {
        true => Some(File::open(path).map_err(|error| Unusable::Linker(error.to_string()))?),
        false => None,
    };
    let name = match &audited {
        Some(file) => {
            let again = "./".repeat(OPENED.fetch_add(1, Ordering::Relaxed));
            format!("/proc/self/fd/{again}{}", file.as_raw_fd()).into_bytes()
        }
        None => path.as_os_str().as_bytes().to_vec(),
    };
    let name =
        CString::new(name).map_err(|_| Unusable::Linker("a path cannot contain NUL".into()))?;
    // SAFETY: opening runs the file's constructors, which is what loading a driver means; the path
    // comes from the administrator, the user's own environment, or the system's folders.
    let raw = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if raw.is_null() {
        // SAFETY: after a failed dlopen, dlerror returns a string that lives until this thread's
        // next call into the dynamic linker.
        let text = unsafe { CStr::from_ptr(libc::dlerror()) };
        return Err(Unusable::Linker(text.to_string_lossy().into_owned()));
    }
    if has(raw, c"acb_interposer") {
        return Err(Unusable::Interposer);
    }
    if !has(raw, c"cuInit") {
        return Err(Unusable::NoDriver);
    }
    debug!("the interposer {} stands before the driver {}", paths::own().display(), path.display());
    Ok(Handle { raw: raw as usize, path: path.display().to_string() })
}

fn has(handle: *mut c_void, symbol: &CStr) -> bool {
    // SAFETY: the handle is open, the name ends in NUL.
    !unsafe { libc::dlsym(handle, symbol.as_ptr()) }.is_null()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_gives_the_driver_and_nothing_like_it() {
        let cache =
            b"glibc-ld.so.cache1.1\x03\0\0\0libcuda.so.1\0/usr/lib/x86_64-linux-gnu/libcuda.so.1\0\
                      libcudart.so.1\0/opt/libcudart.so.1\0/opt/cuda/libcuda.so.1\0";
        assert_eq!(
            paths_in_cache(cache),
            [
                Path::new("/usr/lib/x86_64-linux-gnu/libcuda.so.1"),
                Path::new("/opt/cuda/libcuda.so.1")
            ]
        );
        assert!(paths_in_cache(b"").is_empty());
    }

    #[test]
    fn what_is_no_driver_is_refused_with_a_reason() {
        assert!(matches!(open(Path::new("libcuda.so.1")), Err(Unusable::Relative)));
        assert!(matches!(open(Path::new("/nonexistent/libcuda.so.1")), Err(Unusable::Linker(_))));
        assert!(matches!(
            open(Path::new("/lib/x86_64-linux-gnu/libc.so.6")),
            Err(Unusable::NoDriver)
        ));
    }
}
