//! The host's side: its clock, its memory, pages that are touched before they are pinned.
// The system's calls for pages and clocks.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use crate::driver::table::{Driver, DriverError};

/// Size of an ordinary page.
const PAGE: u64 = 4096;

/// Nanoseconds of the clock that all processes of the host share.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live local; this clock always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Bytes that can still be taken: of the machine, and of the control group if that allows less.
/// `ACB_HOST_GIB` says otherwise, for virtual machines whose memory grows as it is used.
pub(crate) fn available_memory() -> u64 {
    if let Some(gib) = std::env::var("ACB_HOST_GIB").ok().and_then(|text| text.parse::<u64>().ok())
    {
        return gib << 30;
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = meminfo_bytes(&meminfo, "MemAvailable:").unwrap_or(0);
    let number = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok()
    };
    match (number("memory.max"), number("memory.current")) {
        (Some(limit), Some(used)) => machine.min(limit.saturating_sub(used)),
        _ => machine,
    }
}

fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with(key))?;
    Some(line[key.len()..].split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How the kernel is to back a region.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// 2 MiB pages where there are any.
    Huge,
    /// 4 KiB pages.
    Small,
}

/// Anonymous memory, nothing behind it until it is touched.
pub(crate) struct Region {
    at: *mut u8,
    bytes: u64,
}

impl Region {
    pub(crate) fn map(bytes: u64, pages: Pages) -> io::Result<Self> {
        let huge = 2 << 20;
        // Room to start at a multiple of 2 MiB, without which the first and last pages would be small.
        // SAFETY: a fresh anonymous mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (bytes + huge) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let skip = (huge - at as u64 % huge) % huge;
        // SAFETY: pieces of the mapping above that are not used.
        unsafe {
            let start = at.cast::<u8>().add(skip as usize);
            if skip > 0 {
                libc::munmap(at, skip as usize);
            }
            libc::munmap(start.add(bytes as usize).cast(), (huge - skip) as usize);
            let region = Self { at: start, bytes };
            let advice = match pages {
                Pages::Huge => libc::MADV_HUGEPAGE,
                Pages::Small => libc::MADV_NOHUGEPAGE,
            };
            // Advice only: a kernel without huge pages says no, and the row shows the rate.
            libc::madvise(start.cast(), bytes as usize, advice);
            Ok(region)
        }
    }

    /// Writes to every page from several threads.
    pub(crate) fn touch(&mut self, threads: usize) {
        let share = (self.bytes / threads as u64).next_multiple_of(PAGE);
        std::thread::scope(|scope| {
            for thread in 0..threads as u64 {
                let (from, to) = (thread * share, ((thread + 1) * share).min(self.bytes));
                let at = Place(self.at);
                scope.spawn(move || {
                    let at = at;
                    for offset in (from..to).step_by(PAGE as usize) {
                        // SAFETY: within the mapping, and no other thread has this page.
                        unsafe { at.0.add(offset as usize).write_volatile(1) };
                    }
                });
            }
        });
    }

    /// Pins it.
    pub(crate) fn register(&mut self, driver: &Driver) -> Result<(), DriverError> {
        // SAFETY: this mapping; portable (1). It is unregistered before it is unmapped.
        unsafe { driver.cuMemHostRegister_v2(self.at.cast(), self.bytes as usize, 1) }
    }

    pub(crate) fn unregister(&mut self, driver: &Driver) -> Result<(), DriverError> {
        // SAFETY: this mapping, registered before; otherwise the driver says so.
        unsafe { driver.cuMemHostUnregister(self.at.cast()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: this mapping, given up here once.
        unsafe { libc::munmap(self.at.cast::<c_void>(), self.bytes as usize) };
    }
}

/// An address that goes to another thread.
struct Place(*mut u8);
// SAFETY: each thread writes to pages of its own of a mapping that outlives the scope.
unsafe impl Send for Place {}

/// Ends a process group that this program made.
pub(crate) fn end_group(leader: u32) {
    // SAFETY: a plain system call; the group is gone or ours, as its leader has not been waited for.
    unsafe { libc::kill(-(leader as libc::pid_t), libc::SIGKILL) };
}

/// Ends one process of this run.
pub(crate) fn end_process(pid: u32) {
    // SAFETY: a plain system call.
    unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
}

/// Set once a signal has come that ends this program.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Does not return once a signal has come: what ends then did not end by itself, and must not be reported so.
pub(crate) fn wait_if_ending() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Where the signal handler writes the signal's number.
static WAKE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: write is allowed in a handler; a byte of this stack.
    unsafe { libc::write(WAKE.load(Ordering::SeqCst), (&raw const byte).cast(), 1) };
}

/// Calls `clean` when the user or a batch system ends this program, then ends. A handler, not a blocked
/// signal: programs started later would inherit that, and daemons among them could not be stopped.
pub(crate) fn at_termination(clean: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut ends = [0; 2];
    // SAFETY: an array of two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let [read, write] = ends;
    WAKE.store(write, Ordering::SeqCst);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: a handler that only writes to a pipe; what was ignored (nohup) stays so.
        unsafe {
            let before = libc::signal(signal, on_signal as *const () as libc::sighandler_t);
            if before == libc::SIG_IGN {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
    }
    std::thread::spawn(move || {
        let mut signal = 0u8;
        // SAFETY: the pipe from above, which is never closed; a byte of this stack.
        while unsafe { libc::read(read, (&raw mut signal).cast(), 1) } != 1 {}
        ENDING.store(true, Ordering::SeqCst);
        clean();
        std::process::exit(128 + i32::from(signal));
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_kibibytes() {
        let text = "MemTotal:  100 kB\nMemAvailable:   42 kB\n";
        assert_eq!(meminfo_bytes(text, "MemAvailable:"), Some(42 * 1024));
        assert_eq!(meminfo_bytes(text, "Swap:"), None);
    }

    #[test]
    fn a_region_can_be_touched_to_its_end() {
        for pages in [Pages::Huge, Pages::Small] {
            let mut region = Region::map(5 << 20, pages).unwrap();
            assert_eq!(region.at as usize % (2 << 20), 0);
            region.touch(3);
        }
    }

    #[test]
    fn the_clock_goes_on() {
        let before = monotonic_ns();
        assert!(monotonic_ns() >= before);
    }
}
