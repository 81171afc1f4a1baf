//! Proof that the interposer stands before the driver, and the name of what went past it.
//!
//! Owns: which copies of the driver this process has, seen from the dynamic linker and, where a
//! program has opened namespaces of its own (`dlmopen`), from the kernel.
//! The link thread looks, too, and must not wait there for a `dlopen` of the program's: its constructors may themselves wait for
//! what the link thread reads. So what needs the dynamic linker's great lock (`dladdr`, `dlsym`) is asked in cuInit; walking
//! the list of objects takes another lock, which is held for that alone.
//!
//! Does not own: preventing it. A program that opens the driver by its path is led here only by
//! the audit library (`preload/audit`); without that it is told, when it ends at the latest.
#![allow(unsafe_code)] // FFI: dladdr, dl_iterate_phdr, and the dynamic linker's state for debuggers.

use crate::driver;
use crate::log::{error, warning};
use std::ffi::{CStr, OsStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Whether the audit library leads paths of the driver here: then the driver must be opened under
/// another name. Asked for the first time on a thread of the program, for it reads the environment.
pub(crate) fn are_audited() -> bool {
    static AUDITED: OnceLock<bool> = OnceLock::new();
    *AUDITED.get_or_init(|| {
        std::env::var_os("LD_AUDIT").is_some_and(|list| {
            list.as_bytes().split(|byte| *byte == b':').any(|entry| {
                let name = Path::new(OsStr::from_bytes(entry)).file_name();
                name == Some(OsStr::new("libacb-audit.so"))
            })
        })
    })
}

/// The interposer's own file, the driver that it has opened, and the NVML that stands beside it.
struct Ours {
    own: PathBuf,
    driver: PathBuf,
    nvml: Option<PathBuf>,
}

impl Ours {
    fn now() -> Ours {
        let driver = driver::opened().map(PathBuf::from).unwrap_or_default();
        let own = own();
        let nvml = resolved(own.with_file_name("libnvidia-ml.so.1"));
        Ours { own: resolved(own), driver: resolved(driver), nvml: nvml.exists().then_some(nvml) }
    }

    fn is_foreign(&self, path: &Path) -> bool {
        is_driver(path) && {
            let path = resolved(path.to_owned());
            path != self.own && path != self.driver
        }
    }

    /// Says once that this process has NVML past ours, which would show it its own memory.
    fn tell_nvml(&self, loaded: &[PathBuf]) {
        static TOLD: AtomicBool = AtomicBool::new(false);
        // With the audit library ours is loaded under the other one's path.
        let Some(ours) = self.nvml.as_ref().filter(|_| !are_audited()) else { return };
        let all = || loaded.iter().filter(|path| names(path, b"libnvidia-ml.so"));
        // Where ours is loaded, it has the other one opened itself.
        let Some(path) = all().next() else { return };
        if all().any(|path| resolved(path.clone()) == *ours) || TOLD.swap(true, Ordering::Relaxed) {
            return;
        }
        warning!(
            "this program has opened NVML as {}, past slurm-acb: it is told there what all programs together use of a \
             GPU, not what cuMemGetInfo says. Have it open libnvidia-ml.so.1 by that name, or start it with `agarun --audit` or `--acb=audit=on`",
            path.display()
        );
    }
}

static OURS: OnceLock<Ours> = OnceLock::new();

/// In cuInit, once the driver is open: what the link thread needs to know, and a first look.
pub(crate) fn begin() {
    OURS.get_or_init(Ours::now);
    are_audited();
    tell_bypass(bypass(When::Running), When::Running);
}

/// At the end of a process that has never called cuInit here.
pub(crate) fn end_untouched() {
    tell_bypass(bypass(When::Ending), When::Ending);
}

/// The interposer's own file.
pub(crate) fn own() -> PathBuf {
    // SAFETY: Dl_info is plain data, for which zeroes are a value.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: dladdr takes any address; `info` is on this stack.
    let found = unsafe { libc::dladdr(own as *const c_void, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return PathBuf::new();
    }
    // SAFETY: dladdr succeeded, so the name is a string of the dynamic linker's.
    PathBuf::from(OsStr::from_bytes(unsafe { CStr::from_ptr(info.dli_fname) }.to_bytes()))
}

/// Says once which driver this process has opened past the interposer.
fn tell_bypass(path: Option<PathBuf>, when: When) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let Some(path) = path else { return };
    if TOLD.swap(true, Ordering::Relaxed) {
        return;
    }
    let outcome = match when {
        When::Running => {
            "what it does through that copy is not scheduled and may meet others on the GPU"
        }
        When::Ending => "its work was not scheduled and may have met others on the GPU",
    };
    let remedy = match are_audited() {
        // The dynamic linker does not ask about what is opened into a new namespace.
        true => "",
        false => ", or start it with `agarun --audit` or `--acb=audit=on`",
    };
    error!(
        "this program has opened the CUDA driver {} by its path, past slurm-acb: {outcome}. Have it open \
         libcuda.so.1 by that name{remedy}",
        path.display()
    );
}

/// Looks again, if the dynamic linker has loaded something since; for the link thread, now and then.
pub(crate) fn look_again() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let Some(ours) = OURS.get() else { return };
    let Some(loaded) = between_forks(|| {
        let loads = loads();
        (SEEN.swap(loads, Ordering::Relaxed) != loads).then(loaded)
    }) else {
        return;
    };
    let Some(loaded) = loaded else { return };
    tell_bypass(loaded.iter().find(|path| ours.is_foreign(path)).cloned(), When::Running);
    ours.tell_nvml(&loaded);
}

/// Somebody walks the dynamic linker's list: a fork at this moment would leave its lock taken in the child.
static LOOKING: AtomicBool = AtomicBool::new(false);
/// Forks under way.
static FORKS: AtomicU32 = AtomicU32::new(0);
/// A walk takes microseconds, unless the machine has no processor for it; no fork waits longer.
const WALK: Duration = Duration::from_millis(10);

/// Calls `walk`, unless a fork is under way or somebody else is at it.
fn between_forks<T>(walk: impl FnOnce() -> T) -> Option<T> {
    if LOOKING.swap(true, Ordering::SeqCst) {
        return None;
    }
    // Either this sees the fork, or the fork sees this.
    let walked = (FORKS.load(Ordering::SeqCst) == 0).then(walk);
    LOOKING.store(false, Ordering::SeqCst);
    walked
}

/// Before a fork: nobody begins a walk, and who is at it ends. Forks may lie in each other, through handlers of signals.
pub(crate) extern "C" fn hold() {
    FORKS.fetch_add(1, Ordering::SeqCst);
    let since = Instant::now();
    while LOOKING.load(Ordering::SeqCst) && since.elapsed() < WALK {
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// After it, in the parent.
pub(crate) extern "C" fn let_go() {
    FORKS.fetch_sub(1, Ordering::SeqCst);
}

/// After it, in the child: whoever else forked or looked is not here.
pub(crate) fn let_go_in_child() {
    FORKS.store(0, Ordering::SeqCst);
    LOOKING.store(false, Ordering::SeqCst);
}

/// How many objects have been loaded so far.
fn loads() -> u64 {
    unsafe extern "C" fn note(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        loads: *mut c_void,
    ) -> c_int {
        // SAFETY: the dynamic linker's own record, and the number that `loads` passes.
        unsafe { *loads.cast::<u64>() = (*info).dlpi_adds };
        1 // each record says the same
    }
    let mut loads = 0u64;
    // SAFETY: the callback above, with a number that outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut loads).cast()) };
    loads
}

/// When it is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// In cuInit, or later in a client.
    Running,
    /// At the end of a process that has never called cuInit here.
    Ending,
}

fn bypass(when: When) -> Option<PathBuf> {
    let now;
    let ours = match OURS.get() {
        Some(ours) => ours,
        None => {
            now = Ours::now();
            &now
        }
    };
    let here = loaded().into_iter().find(|path| ours.is_foreign(path));
    // Only then are there objects that the dynamic linker does not show.
    if here.is_some() || when == When::Running || !has_namespaces() {
        return here;
    }
    let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
    let mapped = mapped(&maps);
    // A second copy of the interposer, in another namespace, has opened the driver there.
    let copies = mapped.iter().filter(|(start, path)| *start && resolved(path.clone()) == ours.own);
    match copies.count() {
        0 | 1 => mapped.into_iter().map(|(_, path)| path).find(|path| ours.is_foreign(path)),
        _ => None,
    }
}

/// Whether the program's own namespace has a library whose file name begins like this.
///
/// The objects are looked at only when others have been loaded since `seen`, where the last answer is.
pub(crate) fn has_loaded_since(seen: &Seen, name: &[u8]) -> bool {
    let loads = loads();
    let before = seen.0.load(Ordering::Relaxed);
    if before >> 1 == loads {
        return before & 1 == 1;
    }
    let found = has_loaded(name);
    seen.0.store(loads << 1 | u64::from(found), Ordering::Relaxed);
    found
}

/// How many objects had been loaded, and whether one was among them.
pub(crate) struct Seen(AtomicU64);

impl Seen {
    pub(crate) const fn new() -> Self {
        Seen(AtomicU64::new(0))
    }
}

fn has_loaded(name: &[u8]) -> bool {
    let named = |path: &PathBuf| path.file_name().is_some_and(|n| n.as_bytes().starts_with(name));
    loaded().iter().any(named)
}

fn resolved(path: PathBuf) -> PathBuf {
    path.canonicalize().unwrap_or(path)
}

/// `libcuda.so`, `libcuda.so.1`, `libcuda.so.570.86.10`.
fn is_driver(path: &Path) -> bool {
    names(path, b"libcuda.so")
}

/// Whether a path is that of a library, with or without a version.
fn names(path: &Path, library: &[u8]) -> bool {
    let name = path.file_name().unwrap_or_default().as_bytes();
    name.strip_prefix(library)
        .is_some_and(|version| version.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.'))
}

/// The objects of the program's own namespace.
pub(crate) fn loaded() -> Vec<PathBuf> {
    unsafe extern "C" fn note(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        paths: *mut c_void,
    ) -> c_int {
        // SAFETY: the dynamic linker's own record, for the time of this call.
        let name = unsafe { (*info).dlpi_name };
        if !name.is_null() {
            // SAFETY: a string of the dynamic linker's.
            let name = unsafe { CStr::from_ptr(name) }.to_bytes();
            // SAFETY: the vector that `loaded` passes, which nobody else has.
            let paths = unsafe { &mut *paths.cast::<Vec<PathBuf>>() };
            paths.push(PathBuf::from(OsStr::from_bytes(name)));
        }
        0
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    // SAFETY: the callback above, with a vector that outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut paths).cast()) };
    paths
}

/// Whether the program has more than one namespace: glibc numbers its record for debuggers 2 then.
fn has_namespaces() -> bool {
    // SAFETY: a search in what is loaded, by a name that ends with a NUL.
    let record = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_r_debug".as_ptr()) }.cast::<c_int>();
    // SAFETY: link.h declares `extern struct r_debug _r_debug`, which begins with `int r_version`.
    !record.is_null() && unsafe { record.read_volatile() } > 1
}

/// The files in a map of memory, each with whether the mapping is of its beginning.
fn mapped(maps: &[u8]) -> Vec<(bool, PathBuf)> {
    maps.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let path = line.iter().position(|byte| *byte == b'/').map(|at| &line[at..])?;
            let offset = line.split(|byte| *byte == b' ').nth(2)?;
            let start = offset.iter().all(|digit| *digit == b'0');
            Some((start, PathBuf::from(OsStr::from_bytes(path))))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_known_by_their_names() {
        for name in ["/a/libcuda.so", "/a/libcuda.so.1", "libcuda.so.570.86.10"] {
            assert!(is_driver(Path::new(name)), "{name}");
        }
        for name in
            ["/a/libcudart.so.12", "/a/libcuda.so.1.bak", "/libcuda.so.1/x", "", "/proc/self/fd/7"]
        {
            assert!(!is_driver(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn maps_name_files_and_their_beginnings() {
        let maps = b"7f10-7f20 r--p 00000000 08:01 12 /a b/libcuda.so.1\n\
            7f20-7f30 r-xp 00001000 08:01 12 /a b/libcuda.so.1\n7f30-7f40 rw-p 00000000 00:00 0 [heap]\n";
        let path = PathBuf::from("/a b/libcuda.so.1");
        assert_eq!(mapped(maps), [(true, path.clone()), (false, path)]);
    }

    #[test]
    fn nobody_walks_while_a_fork_is_under_way() {
        assert_eq!(between_forks(|| between_forks(|| 1)), Some(None));
        hold();
        // One in a handler of a signal, in the midst of the other.
        hold();
        let_go();
        assert_eq!(between_forks(|| 1), None);
        let_go();
        assert_eq!(between_forks(|| 1), Some(1));
        // Bounded, whoever looks.
        assert!(between_forks(|| hold()).is_some());
        let_go_in_child();
        assert_eq!(between_forks(|| 1), Some(1));
    }

    #[test]
    fn a_program_without_another_driver_has_none() {
        assert!(has_loaded(b"libc.so") && !has_loaded(b"libibverbs.so"));
        assert_eq!(bypass(When::Ending), None);
    }
}
