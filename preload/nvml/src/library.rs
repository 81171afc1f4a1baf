//! The real NVML, opened by absolute path, and the addresses of its functions.
//!
//! Owns: the places that are searched, one slot a function, what is called where there is nothing.
#![allow(unsafe_code)] // FFI: dlopen, dlsym.

use crate::exports::NAMES;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

const NAME: &str = "libnvidia-ml.so.1";

/// Where drivers are installed; asked after everything that says so itself.
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

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the trampolines are written for Linux on x86-64 alone");

/// Address to call for each function of [`NAMES`]; 0: not resolved yet.
pub(crate) static SLOTS: [AtomicUsize; NAMES.len()] = [const { AtomicUsize::new(0) }; NAMES.len()];

/// Address to call for the function at `index`: NVML's, or one that returns an error.
pub(crate) fn target(index: usize) -> usize {
    match SLOTS[index].load(Ordering::Acquire) {
        0 => resolve(index),
        address => address,
    }
}

/// Fills a slot. Two threads may do so at once; they write the same.
#[cold]
pub(crate) fn resolve(index: usize) -> usize {
    let name = NAMES[index];
    let found = handle().and_then(|handle| symbol(handle, name));
    let address = found.unwrap_or_else(|| match (name.to_bytes(), handle()) {
        (b"nvmlErrorString", _) => error_string as *const () as usize,
        (_, Some(_)) => no_function as *const () as usize,
        (_, None) => no_library as *const () as usize,
    });
    SLOTS[index].store(address, Ordering::Release);
    address
}

/// NVML_ERROR_FUNCTION_NOT_FOUND.
extern "C" fn no_function() -> c_int {
    13
}

/// NVML_ERROR_LIBRARY_NOT_FOUND.
extern "C" fn no_library() -> c_int {
    12
}

/// The one function that returns no number.
extern "C" fn error_string(_code: c_int) -> *const c_char {
    c"NVIDIA's libnvidia-ml.so.1 is not found; set ACB_NVML to its path".as_ptr()
}

fn symbol(handle: *mut c_void, name: &CStr) -> Option<usize> {
    // SAFETY: the handle is open and never closed, the name ends in NUL.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!address.is_null()).then_some(address as usize)
}

fn handle() -> Option<*mut c_void> {
    static HANDLE: OnceLock<usize> = OnceLock::new();
    let raw = *HANDLE.get_or_init(|| find().map_or(0, |handle| handle as usize));
    (raw != 0).then_some(raw as *mut c_void)
}

fn find() -> Option<*mut c_void> {
    if let Some(path) = std::env::var_os("ACB_NVML").filter(|path| !path.is_empty()) {
        return open(Path::new(&path));
    }
    let folders = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let searched: Vec<PathBuf> =
        std::env::split_paths(&folders).map(|folder| folder.join(NAME)).collect();
    let cache = std::fs::read("/etc/ld.so.cache").unwrap_or_default();
    let usual = USUAL_PLACES.iter().map(|folder| Path::new(folder).join(NAME));
    searched
        .into_iter()
        .chain(in_cache(&cache))
        .chain(usual)
        .filter(|path| path.is_absolute() && path.exists())
        .find_map(|path| open(&path))
}

/// What the dynamic linker's cache has under NVML's name: a binary file whose strings end in NUL.
fn in_cache(cache: &[u8]) -> Vec<PathBuf> {
    let suffix = [b"/", NAME.as_bytes()].concat();
    cache
        .split(|byte| *byte == 0)
        .filter(|text| text.starts_with(b"/") && text.ends_with(&suffix))
        .map(|text| PathBuf::from(OsStr::from_bytes(text)))
        .collect()
}

fn open(path: &Path) -> Option<*mut c_void> {
    static OPENED: AtomicUsize = AtomicUsize::new(0);
    // Under its own name the audit library would lead NVML's path back here. The descriptor is open for
    // as long as the dynamic linker looks at it, which takes two files of one name for the same: descriptors
    // have the numbers of earlier ones, so each has a name of its own, and the interposer's have others.
    let audited = if are_audited() { Some(File::open(path).ok()?) } else { None };
    let name = match &audited {
        Some(file) => {
            let again = "./".repeat(OPENED.fetch_add(1, Ordering::Relaxed));
            CString::new(format!("/proc/self/./fd/{again}{}", file.as_raw_fd())).ok()?
        }
        None => CString::new(path.as_os_str().as_bytes()).ok()?,
    };
    // SAFETY: opening runs the file's constructors, which is what loading NVML means; the path comes
    // from the administrator, the user's own environment, or the system's folders.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    let is_nvml = !handle.is_null()
        && symbol(handle, c"acb_nvml").is_none()
        && symbol(handle, c"nvmlInit_v2").is_some();
    is_nvml.then_some(handle)
}

/// Whether paths of NVML are led here by `libacb-audit.so`.
fn are_audited() -> bool {
    let list = std::env::var_os("LD_AUDIT").unwrap_or_default();
    list.as_bytes().split(|byte| *byte == b':').any(|entry| entry.ends_with(b"/libacb-audit.so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_gives_nvml_and_nothing_like_it() {
        let cache =
            b"glibc\0libnvidia-ml.so.1\0/usr/lib/libnvidia-ml.so.1\0/usr/lib/libnvidia-ml.so\0";
        assert_eq!(in_cache(cache), [Path::new("/usr/lib/libnvidia-ml.so.1")]);
    }

    #[test]
    fn what_is_no_nvml_is_not_taken() {
        assert!(open(Path::new("/nonexistent/libnvidia-ml.so.1")).is_none());
        assert!(open(Path::new("/lib/x86_64-linux-gnu/libc.so.6")).is_none());
    }
}
