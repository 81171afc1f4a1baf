//! The supervisor: one thread that holds the sockets, keeps a worker running, and ends with it.
//!
//! Owns the worker's lives and the daemon's end. Does not own what a worker does; it forks without
//! exec, so that every life runs the program and the settings that the daemon was started with.
//!
//! ```text
//!  fork ──► starting ──ready──► serving ──dies──► back off ──► fork …
//!              │                   │                  │
//!              └── error, first ───┴─ SIGTERM, ends ──┴─ dies too often ──► remove sockets, end
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use crate::process::ProcessId;
use crate::settings::Settings;
use crate::sockets::Sockets;
use crate::sys::{self, Fork, SignalFd};
use crate::{pidfile, worker};

/// A worker that dies within this time has died quickly.
const QUICK: Duration = Duration::from_secs(10);
/// Quick deaths in a row after which nothing is tried any more.
const MAX_QUICK_DEATHS: u32 = 5;
/// The first pause before a restart; it doubles with every quick death.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// How long a worker may take to end by itself.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Who hears that the daemon serves, or that it cannot.
#[derive(Debug, Default)]
pub struct Report {
    pipe: Option<File>,
    say: Option<String>,
}

impl Report {
    /// Tells whoever reads from this pipe.
    pub fn to(pipe: OwnedFd) -> Report {
        Report { pipe: Some(File::from(pipe)), say: None }
    }

    /// Tells nobody.
    pub fn nobody() -> Report {
        Report::default()
    }

    /// Says this on standard output too, once the daemon serves.
    pub fn and_say(self, line: String) -> Report {
        Report { say: Some(line), ..self }
    }

    /// The daemon serves. Only the first call says anything.
    pub fn ready(&mut self) {
        self.line("ready");
        if let Some(line) = self.say.take() {
            let _ = writeln!(io::stdout(), "{line}");
        }
    }

    /// The daemon gives up.
    pub fn error(&mut self, message: &str) {
        let flat: Vec<&str> = message.lines().collect();
        self.line(&format!("error: {}", flat.join("; ")));
    }

    fn line(&mut self, line: &str) {
        if let Some(mut pipe) = self.pipe.take() {
            // A reader that has gone does not care.
            let _ = writeln!(pipe, "{line}");
        }
    }
}

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The worker could not start.
    #[error("{0}")]
    Start(String),
    /// The worker died again and again.
    #[error(
        "the worker died {MAX_QUICK_DEATHS} times in a row, each time soon after its start (the last time: {0}); see the log"
    )]
    DiesAgainAndAgain(String),
    /// The system refuses.
    #[error("cannot run the worker: {0}")]
    System(#[from] io::Error),
}

/// Runs a daemon until it is told to end. `report` hears of its start.
pub fn run(
    settings: &Settings,
    sockets: Sockets,
    mut report: Report,
) -> Result<(), SuperviseError> {
    let (process, started) = (ProcessId::own(), Instant::now());
    let mut supervisor = Supervisor { settings, sockets, process, started, restarts: 0 };
    let result = supervisor.run(&mut report);
    supervisor.sockets.remove();
    if let Some(path) = &settings.pid_file {
        pidfile::remove_own(path, std::process::id());
    }
    match &result {
        Ok(()) => tracing::info!("ended"),
        Err(error) => {
            tracing::error!("{error}");
            report.error(&error.to_string());
        }
    }
    result
}

struct Supervisor<'a> {
    settings: &'a Settings,
    sockets: Sockets,
    process: ProcessId,
    started: Instant,
    restarts: u32,
}

/// How a life of the worker ended.
enum End {
    /// As it was told.
    Clean,
    /// By itself.
    Died(String),
}

impl Supervisor<'_> {
    fn run(&mut self, report: &mut Report) -> Result<(), SuperviseError> {
        for signal in [libc::SIGHUP, libc::SIGINT] {
            sys::ignore_signal(signal);
        }
        let watched = [libc::SIGCHLD, libc::SIGTERM];
        let mask = sys::block_signals(&watched);
        let signals = SignalFd::new(&watched)?;
        if let Some(path) = &self.settings.pid_file {
            pidfile::write(path, std::process::id()).map_err(|error| {
                SuperviseError::Start(format!(
                    "pid file {} cannot be written: {error}; name another with --pid-file-path",
                    path.display()
                ))
            })?;
        }
        let mut quick_deaths = 0;
        loop {
            let born = Instant::now();
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(io::Error::from)?;
            let pid = match sys::fork()? {
                Fork::Parent(pid) => pid,
                Fork::Child => {
                    drop((reader, signals, std::mem::take(report)));
                    mask.restore();
                    let life = worker::Life {
                        supervisor: self.process,
                        started: self.started,
                        restarts: self.restarts,
                    };
                    let code = worker::run(self.settings, &self.sockets, life, File::from(writer));
                    std::process::exit(code);
                }
            };
            drop(writer);
            let mut life = Life { pid, news: News::new(reader), served: false, signals: &signals };
            match life.watch(report)? {
                End::Clean => return Ok(()),
                End::Died(_) if !life.served && self.restarts == 0 && life.news.error.is_some() => {
                    return Err(SuperviseError::Start(life.news.error.unwrap_or_default()));
                }
                End::Died(how) => {
                    quick_deaths = if born.elapsed() < QUICK { quick_deaths + 1 } else { 1 };
                    let how = life.news.error.unwrap_or(how);
                    tracing::error!("the worker (pid {}) died: {how}", pid.as_raw_nonzero());
                    if quick_deaths >= MAX_QUICK_DEATHS {
                        return Err(SuperviseError::DiesAgainAndAgain(how));
                    }
                }
            }
            if pause(&signals, FIRST_PAUSE * (1 << (2 * (quick_deaths - 1))))? == Pause::Ended {
                return Ok(());
            }
            self.restarts += 1;
            tracing::info!("starting the worker again ({} restarts so far)", self.restarts);
        }
    }
}

/// One life of the worker, seen from outside.
struct Life<'a> {
    pid: Pid,
    news: News,
    served: bool,
    signals: &'a SignalFd,
}

impl Life<'_> {
    fn watch(&mut self, report: &mut Report) -> io::Result<End> {
        let mut must_end_by: Option<Instant> = None;
        loop {
            let mut wait_for = vec![PollFd::new(self.signals, PollFlags::IN)];
            if let Some(pipe) = &self.news.pipe {
                wait_for.push(PollFd::new(pipe, PollFlags::IN));
            }
            let limit = must_end_by.map(|at| at.saturating_duration_since(Instant::now()));
            poll_for(&mut wait_for, limit)?;
            if self.news.read() && !self.served {
                self.served = true;
                report.ready();
            }
            while let Some(received) = self.signals.next() {
                if received.signal == libc::SIGTERM && must_end_by.is_none() {
                    must_end_by = Some(Instant::now() + END_LIMIT);
                    let _ = kill_process(self.pid, Signal::TERM);
                }
            }
            if must_end_by.is_some_and(|at| at <= Instant::now()) {
                tracing::warn!("the worker does not end; killing it");
                let _ = kill_process(self.pid, Signal::KILL);
                must_end_by = Some(Instant::now() + END_LIMIT);
            }
            let Some((_, status)) = waitpid(Some(self.pid), WaitOptions::NOHANG)? else { continue };
            // What it said last is still in the pipe.
            self.served |= self.news.read();
            return Ok(match status.exit_status() {
                Some(0) => End::Clean,
                _ if must_end_by.is_some() => End::Clean,
                _ => End::Died(describe(status)),
            });
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "unknown end".to_owned(),
    }
}

/// What the worker says through its pipe: `ready`, or `error: …` before it ends.
struct News {
    pipe: Option<File>,
    text: Vec<u8>,
    error: Option<String>,
}

impl News {
    fn new(pipe: OwnedFd) -> News {
        let _ = rustix::io::ioctl_fionbio(&pipe, true);
        News { pipe: Some(File::from(pipe)), text: Vec::new(), error: None }
    }

    /// Reads what is there; true if the worker serves.
    fn read(&mut self) -> bool {
        let mut ready = false;
        let mut part = [0; 1024];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut part) {
                Ok(0) => self.pipe = None,
                Ok(count) => self.text.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.pipe = None,
            }
        }
        while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.text.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            match line.trim_end().strip_prefix("error: ") {
                Some(error) => self.error = Some(error.to_owned()),
                None => ready |= line.trim_end() == "ready",
            }
        }
        ready
    }
}

#[derive(PartialEq, Eq)]
enum Pause {
    Over,
    Ended,
}

/// Waits, but not through a SIGTERM.
fn pause(signals: &SignalFd, length: Duration) -> io::Result<Pause> {
    let until = Instant::now() + length;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Pause::Over);
        }
        poll_for(&mut [PollFd::new(signals, PollFlags::IN)], Some(left))?;
        while let Some(received) = signals.next() {
            if received.signal == libc::SIGTERM {
                return Ok(Pause::Ended);
            }
        }
    }
}

fn poll_for(what: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(what, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
