//! What the interposer says to people: lines `acb[PID]: …` on stderr or in `ACB_LOG_FILE`.
//!
//! Owns: the level (`ACB_LOG`), the destination, one write(2) a line. Never stdout, never a lock:
//! a line may be written in a forked child whose parent held any lock at all.

use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Error = 1,
    Warn = 2,
    Info = 3,
    Debug = 4,
}

impl Level {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "error" => Level::Error,
            "warn" => Level::Warn,
            "info" => Level::Info,
            "debug" => Level::Debug,
            _ => return None,
        })
    }
}

/// The chosen level as a number; 0: the environment has not been read yet.
static LEVEL: AtomicU8 = AtomicU8::new(0);

pub(crate) fn enabled(level: Level) -> bool {
    let mut chosen = LEVEL.load(Ordering::Relaxed);
    if chosen == 0 {
        let word = std::env::var("ACB_LOG").unwrap_or_default();
        let parsed = Level::parse(&word);
        chosen = parsed.unwrap_or(Level::Warn) as u8;
        LEVEL.store(chosen, Ordering::Relaxed);
        if parsed.is_none() && !word.is_empty() {
            write(
                Level::Warn,
                format_args!("ACB_LOG={word}: use error, warn, info or debug; warn is used"),
            );
        }
    }
    level as u8 <= chosen
}

/// `ACB_LOG_FILE`; read once, for the program may change its environment while the link thread writes.
static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();

fn file() -> Option<&'static PathBuf> {
    FILE.get_or_init(|| std::env::var_os("ACB_LOG_FILE").map(PathBuf::from)).as_ref()
}

/// Reads the environment now, in the program's own thread.
pub(crate) fn read_environment() {
    enabled(Level::Error);
    file();
}

/// Writes one line, if its level is wanted.
pub(crate) fn write(level: Level, text: fmt::Arguments<'_>) {
    if !enabled(level) {
        return;
    }
    let line = format!("acb[{}]: {text}\n", std::process::id());
    match file() {
        Some(path) => {
            use std::io::Write as _;
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            match file.and_then(|mut file| file.write_all(line.as_bytes())) {
                Ok(()) => {}
                Err(error) => {
                    static TOLD: AtomicBool = AtomicBool::new(false);
                    if !TOLD.swap(true, Ordering::Relaxed) {
                        to_stderr(&format!(
                            "acb[{}]: ACB_LOG_FILE={}: {error}; writing to stderr\n",
                            std::process::id(),
                            path.display()
                        ));
                    }
                    to_stderr(&line);
                }
            }
        }
        None => to_stderr(&line),
    }
}

/// Never waits: behind a stderr that nobody reads, a line is lost rather than a GPU held. A pipe
/// that is ready takes 4 KiB at once, and a line is shorter. A program may have closed its stderr;
/// then there is nobody to tell.
fn to_stderr(line: &str) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stderr = rustix::stdio::stderr();
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut fds, Some(&at_once)) == Ok(1) && fds[0].revents().contains(PollFlags::OUT) {
        let _ = rustix::io::write(stderr, line.as_bytes());
    }
}

macro_rules! error {
    ($($text:tt)*) => { $crate::log::write($crate::log::Level::Error, format_args!($($text)*)) };
}
macro_rules! warning {
    ($($text:tt)*) => { $crate::log::write($crate::log::Level::Warn, format_args!($($text)*)) };
}
macro_rules! info {
    ($($text:tt)*) => { $crate::log::write($crate::log::Level::Info, format_args!($($text)*)) };
}
macro_rules! debug {
    ($($text:tt)*) => { $crate::log::write($crate::log::Level::Debug, format_args!($($text)*)) };
}
pub(crate) use {debug, error, info, warning};
