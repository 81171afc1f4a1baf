//! What the process is: its environment as C sees it, its name and start, its signals and forks.
//!
//! Owns: the calls into libc that need unsafe for it. Does not own: what follows from them.
#![allow(unsafe_code)] // FFI: getenv, setenv, pthread_create, pthread_sigmask, pthread_atfork, atexit, clock_gettime.

use std::ffi::{CStr, CString, c_void};
use std::panic::AssertUnwindSafe;

/// A clock that runs on while this process is stopped. Coarse, for every submitting call asks it.
#[inline(always)]
pub(crate) fn milliseconds() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the one struct that it is given; it cannot fail for a clock that every Linux has.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Runs `during` with another value of a variable for everyone who asks the C library; then it has its old value again, or
/// `otherwise` where it had none. `None`: there is no memory for it.
///
/// setenv is safe against a getenv of another thread where the variable is there: glibc changes one pointer, and never frees values.
pub(crate) fn with_variable<T>(
    name: &CStr,
    value: &str,
    otherwise: &str,
    during: impl FnOnce() -> T,
) -> Option<T> {
    let (value, otherwise) = (CString::new(value).ok()?, CString::new(otherwise).ok()?);
    // SAFETY: getenv returns NULL or a string of the environment.
    let old = unsafe { libc::getenv(name.as_ptr()) };
    let old = match old.is_null() {
        true => otherwise,
        // SAFETY: not NULL, so it is a string that ends in NUL.
        false => unsafe { CStr::from_ptr(old) }.to_owned(),
    };
    // SAFETY: both are strings that end in NUL.
    if unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) } != 0 {
        return None;
    }
    let answer = during();
    // SAFETY: as above. glibc has met this value before, or the memory for it is all that could be missing.
    unsafe { libc::setenv(name.as_ptr(), old.as_ptr(), 1) };
    Some(answer)
}

/// Name of the program without its folder.
pub(crate) fn program() -> String {
    let line = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = first.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    String::from_utf8_lossy(name).chars().take(64).collect()
}

/// Clock ticks from boot to the start of this process: with the pid it names it for ever.
pub(crate) fn start_time() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    start_time_in(&stat).unwrap_or(0)
}

/// Field 22; the second field is a name in parentheses that may contain anything.
fn start_time_in(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// Starts a thread of the interposer's, which takes no signal. A panic ends it alone.
///
/// Not by `std::thread`: what that keeps for a thread has a destructor, to register one takes the dynamic linker's great lock, and a
/// thread that begins while another is in `dlopen` would wait for the end of that.
pub(crate) fn start_thread(
    name: &'static CStr,
    stack: usize,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    struct Start {
        name: &'static CStr,
        run: Box<dyn FnOnce() + Send>,
    }
    extern "C" fn begin(start: *mut c_void) -> *mut c_void {
        // SAFETY: the box that `start_thread` gave away, once.
        let start = unsafe { Box::from_raw(start.cast::<Start>()) };
        // SAFETY: this thread's own name, of at most 15 characters.
        unsafe { libc::pthread_setname_np(libc::pthread_self(), start.name.as_ptr()) };
        let _ = std::panic::catch_unwind(AssertUnwindSafe(start.run));
        std::ptr::null_mut()
    }
    let _signals = signals_blocked();
    let start = Box::into_raw(Box::new(Start { name, run: Box::new(run) }));
    // SAFETY: storage for pthread_attr_init to fill.
    let mut attributes: libc::pthread_attr_t = unsafe { std::mem::zeroed() };
    let mut thread: libc::pthread_t = 0;
    // SAFETY: attributes that were initialised, and a start routine that takes the box.
    let failed = unsafe {
        libc::pthread_attr_init(&raw mut attributes);
        libc::pthread_attr_setstacksize(&raw mut attributes, stack);
        libc::pthread_attr_setdetachstate(&raw mut attributes, libc::PTHREAD_CREATE_DETACHED);
        let failed =
            libc::pthread_create(&raw mut thread, &raw const attributes, begin, start.cast());
        libc::pthread_attr_destroy(&raw mut attributes);
        failed
    };
    if failed == 0 {
        return Ok(());
    }
    // SAFETY: no thread was started that could have taken it.
    drop(unsafe { Box::from_raw(start) });
    Err(std::io::Error::from_raw_os_error(failed))
}

/// As long as it lives, this thread takes no signal but while it waits: a handler may never return,
/// and must not find a lock held.
#[must_use]
pub(crate) struct SignalsBlocked(libc::sigset_t);

pub(crate) fn signals_blocked() -> SignalsBlocked {
    // SAFETY: an all-zero sigset_t is valid storage for the calls below to fill.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: both point to sets on this stack.
    unsafe {
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
    }
    SignalsBlocked(before)
}

impl SignalsBlocked {
    /// Runs `wait`, in which no lock is held, with the program's own signals.
    pub(crate) fn while_waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.let_in();
        let waited = wait();
        let _ = std::mem::ManuallyDrop::new(signals_blocked());
        waited
    }

    fn let_in(&self) {
        // SAFETY: the set that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        self.let_in();
    }
}

/// As long as it lives, pthread_cancel of this thread waits: a cancelled thread unwinds past what is
/// to be done after a call, and through frames that must not be unwound.
#[must_use]
pub(crate) struct Uncancelled(libc::c_int);

/// Makes pthread_cancel wait for the end of what this thread is doing.
#[inline(always)]
pub(crate) fn uncancelled() -> Uncancelled {
    let mut before = 0;
    // SAFETY: a state that pthread.h names, and a place on this stack.
    unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &raw mut before) };
    Uncancelled(before)
}

impl Drop for Uncancelled {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the state that this thread had; the old one is not wanted.
        unsafe { pthread_setcancelstate(self.0, std::ptr::null_mut()) };
    }
}

const PTHREAD_CANCEL_DISABLE: libc::c_int = 1;

unsafe extern "C" {
    fn pthread_setcancelstate(state: libc::c_int, before: *mut libc::c_int) -> libc::c_int;
}

/// Has `before` run before each fork, and then `parent`, and `child` in the child.
pub(crate) fn on_fork(before: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    let [before, parent, child] = [before, parent, child].map(|f| Some(as_unsafe(f)));
    // SAFETY: functions of a library that is never unloaded.
    unsafe { libc::pthread_atfork(before, parent, child) };
}

/// Has `exit` run when the process ends.
pub(crate) fn on_exit(exit: extern "C" fn()) {
    // SAFETY: a function of a library that is never unloaded.
    unsafe { libc::atexit(exit) };
}

fn as_unsafe(function: extern "C" fn()) -> unsafe extern "C" fn() {
    function
}

/// Closes a descriptor by its number, if the inode says that it is the one that is meant.
pub(crate) fn close_descriptor_if(number: i32, inode: u64) {
    // SAFETY: an all-zero stat is valid storage for the call below to fill.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: any number may be asked about; the structure is on this stack.
    let found = unsafe { libc::fstat(number, &mut stat) } == 0;
    if found && stat.st_ino == inode {
        // SAFETY: called in a forked child with a socket that the interposer alone has opened and
        // that no object of the child will close or use again.
        unsafe { libc::close(number) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let fields = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(start_time_in(&format!("77 (a) b) {fields}")), Some(22));
        assert_eq!(start_time_in("77 (a"), None);
        assert!(start_time() > 0);
    }

    #[test]
    fn a_variable_has_its_old_value_again() {
        let get = || std::env::var("ACB_TEST_PLACE").ok();
        let during = || with_variable(c"ACB_TEST_PLACE", "GPU-1111", "0,1", get);
        assert_eq!(during(), Some(Some("GPU-1111".to_owned())));
        assert_eq!(get().as_deref(), Some("0,1"), "it had none");
        // SAFETY: tests of this crate set this name nowhere else.
        unsafe { std::env::set_var("ACB_TEST_PLACE", "1") };
        assert_eq!(during(), Some(Some("GPU-1111".to_owned())));
        assert_eq!(get().as_deref(), Some("1"));
    }
}
