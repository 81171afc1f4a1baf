//! The few calls that no safe crate wraps: fork, signals, and descriptors by number.
//!
//! Owns every `unsafe` block of this crate. Does not own what is done with a child or a signal.

// fork, sigprocmask and signalfd have no safe equivalent in std, tokio or rustix.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which side of a [`fork`] this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one; the new one has this id.
    Parent(Pid),
}

/// Forks. Refuses in a process with several threads, where the child could find locks that nobody opens again.
pub fn fork() -> io::Result<Fork> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("fork in a process with several threads"));
    }
    // SAFETY: this process has one thread, as was just seen, so the child is a whole copy of it.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

fn signal_set(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, and sigaddset then adds to it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// The signal mask as it was, to be put back.
#[derive(Clone, Copy)]
pub struct SignalMask(libc::sigset_t);

impl SignalMask {
    /// Makes this the mask of the calling thread.
    pub fn restore(self) {
        // SAFETY: the set was filled in by sigprocmask; the old mask is not wanted.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Blocks signals in the calling thread and returns the mask that held before.
pub fn block_signals(signals: &[i32]) -> SignalMask {
    let set = signal_set(signals);
    let mut old = signal_set(&[]);
    // SAFETY: both point to initialised sets.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, &raw mut old) };
    SignalMask(old)
}

/// Has the process ignore a signal; what it starts inherits that.
pub fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN is a valid disposition, and no handler is replaced that anybody relies on.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Undoes what this process inherited: blocked signals are open again, ignored ones act as they do
/// by default. But for SIGPIPE, which every Rust program ignores. Handlers are never inherited.
pub fn reset_signals() {
    SignalMask(signal_set(&[])).restore();
    let kept = [libc::SIGPIPE, libc::SIGKILL, libc::SIGSTOP];
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| !kept.contains(signal)) {
        let mut now = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null action only asks; the answer goes to a buffer of the right type.
        if unsafe { libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) } != 0 {
            continue; // one of those that the C library keeps for itself
        }
        // SAFETY: the buffer was zeroed and then filled in, and any bytes are a valid sigaction.
        if unsafe { now.assume_init() }.sa_sigaction == libc::SIG_IGN {
            // SAFETY: SIG_DFL is a valid disposition, and an ignored signal has no handler to lose.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// A descriptor from which blocked signals are read.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

/// A signal that was taken from a [`SignalFd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// True when the kernel sent it by itself (a key on the terminal), false when a process did.
    pub from_kernel: bool,
}

impl SignalFd {
    /// A non-blocking descriptor for these signals; [`block_signals`] them first.
    pub fn new(signals: &[i32]) -> io::Result<SignalFd> {
        let set = signal_set(signals);
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(SignalFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal, or `None` when there is none.
    pub fn next(&self) -> Option<Received> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer has room for one record.
        let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if usize::try_from(read) != Ok(size) {
            return None;
        }
        // SAFETY: the kernel filled in the whole record.
        let info = unsafe { info.assume_init() };
        Some(Received { signal: info.ssi_signo as i32, from_kernel: info.ssi_code > 0 })
    }
}

impl std::os::fd::AsFd for SignalFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes over a descriptor that this process inherited, by its number. Fails if there is none.
/// Call it at most once for a number, before anything else is opened.
pub fn take_inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call only looks at the descriptor's flags.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open; the caller was given it, and takes it once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Registers a descriptor with the runtime, to wait until it is readable.
pub fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor until it is dropped, and AsyncFd drops it
    // after its registration.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Registers a descriptor with the runtime, to wait until it is writable.
pub fn watch_writable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as in `watch_readable`.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::WRITABLE) }?)
}
