//! `libacb-audit.so`, for LD_AUDIT: wherever a program looks for the CUDA driver or for NVML by a path, the
//! dynamic linker finds slurm-acb's.
//!
//! A preloaded interposer answers whoever asks for the driver by its name. A path goes past it:
//! `dlopen("/usr/lib/…/libcuda.so.1")`. The dynamic linker asks this library about each name and
//! each path before it opens it; a path that ends in a name of one of the two becomes that of its stand-in,
//! which lies in the same folder as this file. The stand-ins themselves open the driver's libraries under
//! another name (`/proc/self/fd/N`), which passes.
//!
//! Owns: that answer. Does not own: whether the library is used, which is the user's choice
//! (`agarun --audit`, `--acb=audit=on`): the dynamic linker gives each audited process a second C
//! library, which costs every exec some time. Outside of a client it takes itself out at once.
#![allow(unsafe_code)] // FFI: functions that the dynamic linker calls, and strings of its own.

use std::ffi::{CStr, CString, c_char, c_uint};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The version of the dynamic linker's interface of which this library uses the oldest part.
const LAV_CURRENT: c_uint = 1;
/// What stands in for which libraries, those of this name and a version.
const STAND_INS: [(&str, &[u8]); 2] =
    [("libcuda.so.1", b"libcuda.so"), ("libnvidia-ml.so.1", b"libnvidia-ml.so")];

/// The files of the stand-ins; `None`: it is not there, and its library passes.
static PATHS: OnceLock<[Option<CString>; STAND_INS.len()]> = OnceLock::new();

/// The dynamic linker's first question. 0: this library is of no use here.
///
/// # Safety
/// Called by the dynamic linker.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn la_version(offered: c_uint) -> c_uint {
    let is_client = std::env::var_os("ACB_SOCKET").is_some();
    match is_client && PATHS.get_or_init(stand_ins).iter().any(Option::is_some) {
        true => offered.min(LAV_CURRENT),
        false => 0,
    }
}

/// Where to look for an object instead of `name`.
///
/// # Safety
/// Called by the dynamic linker, with a name that ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn la_objsearch(
    name: *const c_char,
    _cookie: *mut usize,
    _flag: c_uint,
) -> *const c_char {
    if name.is_null() {
        return name;
    }
    // SAFETY: not null, and a string by the dynamic linker's promise.
    let asked = unsafe { CStr::from_ptr(name) };
    let paths = PATHS.get().map(<[_; _]>::as_slice).unwrap_or_default();
    let found =
        STAND_INS.iter().zip(paths).find(|((_, library), _)| names(asked.to_bytes(), library));
    match found {
        Some((_, Some(path))) => path.as_ptr(),
        _ => name,
    }
}

/// Whether a path is one of a library: `libcuda.so`, `libcuda.so.1`, `libcuda.so.570.86.10`. Names without
/// a folder are answered by what is preloaded, or looked for in folders, and come back as paths.
fn names(path: &[u8], library: &[u8]) -> bool {
    let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { return false };
    match path[slash + 1..].strip_prefix(library) {
        Some(version) => version.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.'),
        None => false,
    }
}

/// Beside this file.
fn stand_ins() -> [Option<CString>; STAND_INS.len()] {
    let folder = folder();
    STAND_INS.map(|(name, _)| {
        let path = folder.as_deref()?.join(name);
        path.exists().then(|| CString::new(path.to_str()?).ok()).flatten()
    })
}

fn folder() -> Option<PathBuf> {
    // SAFETY: Dl_info is plain data, for which zeroes are a value.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    let own = la_version as unsafe extern "C" fn(c_uint) -> c_uint as *const libc::c_void;
    // SAFETY: dladdr takes any address; `info` is on this stack.
    let found = unsafe { libc::dladdr(own, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr succeeded, so the name is a string of the dynamic linker's.
    let own = unsafe { CStr::from_ptr(info.dli_fname) }.to_str().ok()?;
    Path::new(own).parent().map(Path::to_owned)
}
