//! Starting the assigner as the job's user, and signals to what was started.
//!
//! Owns: the way from root, inside slurmstepd, to a process of the user's that has nothing of
//! slurmstepd's: no descriptors, no signal dispositions, no protection from the out-of-memory
//! killer, no groups, no session. Does not own: what is started.
//!
//! slurmstepd has threads. So between fork and exec there are only calls that are safe after a
//! fork of a threaded program, on what was prepared before: nothing is allocated there.
//!
//! ```text
//! slurmstepd ── fork ── middle ── fork ── assigner: cgroups, session, limits, user, exec
//!      │                  └ ends: the assigner is not slurmstepd's child, no wait of it sees it
//!      └ reads its pid from one pipe, and the line that it serves from another
//! ```

// fork, exec and what stands between; pidfd.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// The descriptor at which the assigner finds the ready pipe, as its `--ready-fd` says it.
pub(crate) const READY_FD: &str = "3";

const READY_NUMBER: RawFd = 3;

/// The longest line that is read from the ready pipe.
const LINE_MAX: usize = 64 * 1024;

/// A program to be started.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: CString,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Standard output and error go there; made as the user.
    pub(crate) log: CString,
    /// Files to which the process writes itself.
    pub(crate) cgroups: Vec<CString>,
}

/// A program that was started.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    ready: File,
}

impl Launch {
    /// Starts it. What fails after the fork is told by [`Started::first_line`].
    pub(crate) fn start(&self) -> io::Result<Started> {
        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        let (ready, ready_write) = pipe()?;
        let (pid, pid_write) = pipe()?;
        // SAFETY: the child uses only what was prepared above, and calls that are safe after fork.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                // SAFETY: as above; the middle process does no more than fork again.
                let second = unsafe { libc::fork() };
                if second == 0 {
                    self.become_program(&arguments, &environment, ready_write, pid_write);
                }
                // SAFETY: ends the middle process; no handlers run.
                unsafe { libc::_exit(c_int::from(second < 0)) };
            }
            middle => {
                let mut status = 0;
                // SAFETY: waits for our own child and writes to `status`.
                while unsafe { libc::waitpid(middle, &raw mut status, 0) } < 0
                    && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
                {
                }
            }
        }
        drop((ready_write, pid_write));
        let mut bytes = [0; 4];
        File::from(pid).read_exact(&mut bytes)?;
        Ok(Started { pid: u32::from_ne_bytes(bytes), ready: File::from(ready) })
    }

    /// In the new process. Does not return, and does not allocate.
    fn become_program(
        &self,
        arguments: &[*const c_char],
        environment: &[*const c_char],
        ready: OwnedFd,
        pid: OwnedFd,
    ) -> ! {
        // SAFETY: getpid has no failure; the bytes are this frame's.
        unsafe {
            let own = libc::getpid().to_ne_bytes();
            libc::write(pid.as_raw_fd(), own.as_ptr().cast(), own.len());
        }
        // From here the ready pipe alone speaks.
        // SAFETY: plain system calls. `dup2` clears close-on-exec, but does nothing if the numbers
        // are equal, hence fcntl.
        unsafe {
            if ready.as_raw_fd() == READY_NUMBER {
                libc::fcntl(READY_NUMBER, libc::F_SETFD, 0);
            } else if libc::dup2(ready.as_raw_fd(), READY_NUMBER) < 0 {
                libc::_exit(1);
            }
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            for number in 0..READY_NUMBER {
                libc::dup2(null, number);
            }
            libc::syscall(libc::SYS_close_range, READY_NUMBER + 1, u32::MAX, 0);
        }
        for file in &self.cgroups {
            // Not to be there is no reason not to start: the epilog finds the process as well.
            write_file(file, b"0");
        }
        write_file(c"/proc/self/oom_score_adj", b"0");
        reset_signals();
        // SAFETY: plain system calls with prepared arguments; the first that fails ends the process.
        unsafe {
            libc::umask(0o077);
            libc::setsid();
            check(libc::chdir(c"/".as_ptr()), b"chdir /");
            check(libc::setgroups(self.groups.len(), self.groups.as_ptr()), b"setgroups");
            check(libc::setresgid(self.gid, self.gid, self.gid), b"setresgid");
            check(libc::setresuid(self.uid, self.uid, self.uid), b"setresuid");
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_NOFOLLOW;
            let log = libc::open(self.log.as_ptr(), flags, 0o600);
            check(log, b"open assigner.log");
            libc::dup2(log, 1);
            libc::dup2(log, 2);
            libc::close(log);
            libc::execve(self.program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
        }
        fail(b"it cannot be executed");
    }
}

impl Started {
    /// What the program says first, without the line's end; empty when it closed the pipe instead.
    /// What failed before it was executed is said as the program would: `error: …`.
    pub(crate) fn first_line(mut self, patience: Duration) -> io::Result<String> {
        let deadline = Instant::now() + patience;
        let mut line = Vec::new();
        let mut byte = [0; 512];
        while !line.contains(&b'\n') && line.len() < LINE_MAX {
            let left = deadline.saturating_duration_since(Instant::now());
            if !wait_readable(self.ready.as_raw_fd(), left)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match self.ready.read(&mut byte) {
                Ok(0) => break,
                Ok(count) => line.extend_from_slice(&byte[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let text = String::from_utf8_lossy(&line);
        // An error may have several lines; `ready` has one.
        let text = text.trim_end();
        Ok(launch_failure(text).unwrap_or_else(|| text.to_owned()))
    }
}

/// What [`fail`] has written, for people.
fn launch_failure(line: &str) -> Option<String> {
    let (number, what) = line.strip_prefix(LAUNCH_FAILED)?.split_once(' ')?;
    let error = io::Error::from_raw_os_error(number.parse().ok()?);
    Some(format!("error: {what}: {error}"))
}

/// A process by descriptor: it means the same process for ever.
#[derive(Debug)]
pub(crate) struct ProcessFile(OwnedFd);

/// A way to end a process.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signal {
    Term,
    Kill,
}

impl ProcessFile {
    /// Opens a process that exists.
    pub(crate) fn open(pid: u32) -> Option<Self> {
        // SAFETY: takes numbers and returns a descriptor or -1.
        let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let number = RawFd::try_from(number).ok().filter(|number| *number >= 0)?;
        // SAFETY: the kernel has just given us this descriptor.
        Some(Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// Sends a signal; a process that has ended does not mind.
    pub(crate) fn signal(&self, signal: Signal) {
        let number = match signal {
            Signal::Term => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
        };
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null siginfo means that of kill(2).
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), number, none, 0) };
    }

    /// Waits until it has ended, or the time is over.
    pub(crate) fn await_end(&self, patience: Duration) {
        let _ = wait_readable(self.0.as_raw_fd(), patience);
    }
}

fn wait_readable(descriptor: RawFd, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
        let milliseconds = c_int::try_from(left.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: one pollfd, which lives for the call.
        match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
            0 => return Ok(false),
            count if count > 0 => return Ok(true),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors there.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: two new descriptors of ours alone.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// For exec: the strings' addresses, then a null.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Dispositions that slurmstepd ignores would be ignored by the program too, and so would what it
/// blocks.
fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the default is a valid disposition; for those that cannot be set it fails.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an empty set, made on this frame.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn write_file(path: &CStr, bytes: &[u8]) {
    // SAFETY: plain system calls on a path that ends with a NUL and bytes of known length.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, bytes.as_ptr().cast(), bytes.len());
            libc::close(file);
        }
    }
}

fn check(result: c_int, what: &[u8]) {
    if result < 0 {
        fail(what);
    }
}

/// Begins a line of [`fail`]; no program would begin its own so.
const LAUNCH_FAILED: &str = "\u{1}errno ";

/// Says on the ready pipe what failed and why, as a number: making a text of it could allocate.
fn fail(what: &[u8]) -> ! {
    let error = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    let mut digits = [0_u8; 10];
    let mut at = digits.len();
    let mut rest = error.unsigned_abs();
    while at == digits.len() || (rest > 0 && at > 0) {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    for part in [LAUNCH_FAILED.as_bytes(), &digits[at..], b" ", what, b"\n"] {
        // SAFETY: bytes of known length; nothing can be done if it fails.
        unsafe { libc::write(READY_NUMBER, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: ends this process without running slurmstepd's handlers.
    unsafe { libc::_exit(1) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slurm::c_string;

    fn own(file: &str) -> u32 {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(file).unwrap();
        metadata.uid()
    }

    fn launch(program: &str, words: &[&str], log: &std::path::Path) -> Launch {
        Launch {
            program: c_string(program),
            arguments: words.iter().map(|word| c_string(word)).collect(),
            environment: vec![c_string("A=b")],
            uid: own("/proc/self"),
            gid: {
                use std::os::unix::fs::MetadataExt;
                std::fs::metadata("/proc/self").unwrap().gid()
            },
            groups: vec![],
            log: c_string(&log.display().to_string()),
            cgroups: vec![],
        }
    }

    /// setgroups and the rest need root, as in slurmstepd.
    fn is_root() -> bool {
        own("/proc/self") == 0
    }

    #[test]
    fn a_program_starts_bare() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "ls /proc/self/fd | tr '\\n' ' '; env | sort; pwd; ps -o sid= $$ >/dev/null; \
                      cat /proc/self/oom_score_adj; echo ready >&3";
        let started = launch("/bin/sh", &["sh", "-c", script], &log).start().unwrap();
        assert!(started.pid > 1);
        assert_eq!(started.first_line(Duration::from_secs(20)).unwrap(), "ready");
        let said = std::fs::read_to_string(&log).unwrap();
        // 3 is the pipe, 4 the folder that ls reads.
        assert!(said.starts_with("0 1 2 3 4 "), "{said}");
        assert!(said.contains("A=b\n") && said.contains("\n/\n0\n"), "{said}");
        assert!(!said.contains("PATH=/root"), "{said}");
    }

    #[test]
    fn what_cannot_be_executed_is_told() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let started = launch("/nowhere", &["x"], &folder.path().join("log")).start().unwrap();
        let line = started.first_line(Duration::from_secs(20)).unwrap();
        assert_eq!(line, "error: it cannot be executed: No such file or directory (os error 2)");
    }

    #[test]
    fn a_process_that_says_nothing_times_out_and_ends() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let started = launch("/bin/sleep", &["sleep", "1000"], &log).start().unwrap();
        let pid = started.pid;
        let error = started.first_line(Duration::from_millis(10)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let file = ProcessFile::open(pid).unwrap();
        file.signal(Signal::Kill);
        file.await_end(Duration::from_secs(20));
    }
}
