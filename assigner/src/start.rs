//! `gpu_assigner start`: checks, the way into the background, and what the user is told.
//!
//! Owns the exit codes of a start. Everything that can fail early fails here, before the terminal
//! is let go, so that the message reaches the user.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::process::{WaitOptions, setsid, umask, waitpid};

use crate::cli::{Place, Start};
use crate::output::print;
use crate::pidfile::{self, Recorded};
use crate::remote::{self, Target};
use crate::settings::{Settings, SettingsError};
use crate::sockets::{Sockets, SocketsError};
use crate::supervise::{self, Report};
use crate::sys::{self, Fork};

/// How long a daemon may take until it serves.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The exit codes of `gpu_assigner` (ACB's).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Failed to start, or another failure.
    Failed = 1,
    /// Bad arguments.
    Usage = 2,
    /// The pid file is unreadable or corrupt.
    PidFile = 65,
    /// No assigner is running.
    NotRunning = 69,
    /// `$HOME/.acb` cannot be made.
    NoAcbHome = 73,
    /// An assigner is running already.
    AlreadyRunning = 75,
}

/// A command that failed: what the user reads, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// The message.
    pub message: String,
}

impl Failure {
    /// A failure with this code.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Failure {
        Failure { exit, message: message.to_string() }
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Failure {
        let exit = match error {
            SettingsError::NoHome => Exit::NoAcbHome,
            SettingsError::EveryInterface(_) => Exit::Usage,
            _ => Exit::Failed,
        };
        Failure::new(exit, error)
    }
}

impl From<pidfile::PidFileError> for Failure {
    fn from(error: pidfile::PidFileError) -> Failure {
        Failure::new(Exit::PidFile, error)
    }
}

/// Starts a daemon. Returns in the user's own process when it serves, and in the daemon when it ends.
pub fn run(place: &Place, start: &Start) -> Result<(), Failure> {
    // A batch system or a shell may have blocked SIGTERM, or ignored SIGCHLD: the daemon needs both.
    sys::reset_signals();
    match &start.spec {
        Some(spec) => {
            let mut report = inherited_report(start)?;
            run_job(spec, start, &mut report).inspect_err(|failure| report.error(&failure.message))
        }
        None => run_own(place, start),
    }
}

fn inherited_report(start: &Start) -> Result<Report, Failure> {
    let Some(number) = start.ready_fd else { return Ok(Report::nobody()) };
    let fd = sys::take_inherited(number).map_err(|error| {
        Failure::new(Exit::Usage, format!("--ready-fd {number} is not an open descriptor: {error}"))
    })?;
    Ok(Report::to(fd))
}

fn run_job(spec: &Path, start: &Start, report: &mut Report) -> Result<(), Failure> {
    let settings = Settings::of_job(spec, start)?;
    let sockets = Sockets::open(&settings).map_err(|error| cannot_listen(&settings, &error))?;
    log_to(Some(&settings.log), settings.verbose)?;
    umask(Mode::RWXG | Mode::RWXO);
    supervise::run(&settings, sockets, std::mem::take(report))
        .map_err(|error| Failure::new(Exit::Failed, error))
}

fn run_own(place: &Place, start: &Start) -> Result<(), Failure> {
    let settings = Settings::of_user(place, start)?;
    make_folders(&settings)?;
    let pid_file = settings.pid_file.as_deref().expect("a user's own daemon has a pid file");
    if let Recorded::Running(pid) = pidfile::read(pid_file)? {
        return Err(already_running(&settings, Some(pid)));
    }
    check_folder(&settings.working_directory)?;
    let sockets = Sockets::open(&settings).map_err(|error| cannot_listen(&settings, &error))?;
    let started = format!("INFO: Successfully started GPU Assigner on {}", settings.address());
    let report = if start.foreground {
        let to_terminal = start.log_path.is_none();
        log_to((!to_terminal).then_some(settings.log.as_path()), settings.verbose)?;
        let report = inherited_report(start)?;
        report.and_say(started)
    } else {
        // Opened here, so that the user hears when it cannot be.
        let log = open_log(&settings.log)?;
        match into_background(&settings, log)? {
            Side::User(pipe) => {
                return wait_until_ready(pipe, &settings).map(|()| print(&format!("{started}\n")));
            }
            Side::Daemon(report) => {
                // Nobody is left to read a message of this process; the log and the user have it.
                let ended = supervise::run(&settings, sockets, report);
                std::process::exit(if ended.is_ok() { 0 } else { Exit::Failed as i32 });
            }
        }
    };
    supervise::run(&settings, sockets, report).map_err(|error| Failure::new(Exit::Failed, error))
}

/// `$HOME/.acb`, and the folders of files that the user named.
fn make_folders(settings: &Settings) -> Result<(), Failure> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".acb"));
    let paths = [
        Some(settings.log.as_path()),
        settings.pid_file.as_deref(),
        Some(settings.folder.0.as_path()),
    ];
    if let Some(home) =
        home.filter(|home| paths.iter().flatten().any(|path| path.starts_with(home)))
    {
        DirBuilder::new().recursive(true).mode(0o700).create(&home).map_err(|error| {
            Failure::new(
                Exit::NoAcbHome,
                format!("{} cannot be made: {error}; make the folder, or set HOME to one that can be written", home.display()),
            )
        })?;
    }
    Ok(())
}

fn check_folder(path: &Path) -> Result<(), Failure> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err("it is not a folder".to_owned()),
        Err(error) => Err(error.to_string()),
    }
    .map_err(|why| {
        let path = path.display();
        Failure::new(
            Exit::Failed,
            format!("--gpu-assigner-working-directory {path} cannot be used: {why}"),
        )
    })
}

fn already_running(settings: &Settings, pid: Option<u32>) -> Failure {
    let pid = pid.map(|pid| format!(" (pid={pid})")).unwrap_or_default();
    Failure::new(
        Exit::AlreadyRunning,
        format!(
            "GPU assigner is already running on {}{pid}; end it with: gpu_assigner stop",
            settings.address()
        ),
    )
}

fn cannot_listen(settings: &Settings, error: &SocketsError) -> Failure {
    match error {
        SocketsError::InUse(_) => already_running(settings, None),
        SocketsError::Tcp { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
            match remote::status(&Target::Tcp(*address)) {
                Ok(reply) => already_running(settings, reply.nodes.first().map(|node| node.pid)),
                Err(_) => Failure::new(Exit::Failed, error),
            }
        }
        _ => Failure::new(Exit::Failed, error),
    }
}

fn open_log(path: &Path) -> Result<File, Failure> {
    let open = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    open.map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!(
                "log {} cannot be written: {error}; name another with --log-path",
                path.display()
            ),
        )
    })
}

fn log_to(path: Option<&Path>, verbose: bool) -> Result<(), Failure> {
    let level = if verbose { tracing::Level::DEBUG } else { tracing::Level::INFO };
    let builder =
        tracing_subscriber::fmt().with_target(false).with_max_level(level).with_ansi(false);
    match path {
        Some(path) => {
            let file = open_log(path)?;
            builder.with_writer(std::sync::Mutex::new(file)).init();
        }
        None => builder.with_writer(io::stderr).init(),
    }
    Ok(())
}

enum Side {
    /// The process that the user started; the daemon reports through this pipe.
    User(OwnedFd),
    /// The daemon.
    Daemon(Report),
}

/// Forks twice: the daemon is nobody's child, leads no session, and has no terminal.
fn into_background(settings: &Settings, log: File) -> Result<Side, Failure> {
    let failed = |error: io::Error| {
        Failure::new(Exit::Failed, format!("cannot go into the background: {error}"))
    };
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| failed(error.into()))?;
    if let Fork::Parent(child) = sys::fork().map_err(failed)? {
        drop(writer);
        waitpid(Some(child), WaitOptions::empty()).map_err(|error| failed(error.into()))?;
        return Ok(Side::User(reader));
    }
    drop(reader);
    let mut report = Report::to(writer);
    match go_alone(settings, log) {
        Ok(()) => Ok(Side::Daemon(report)),
        Err(error) => {
            report.error(&format!("cannot go into the background: {error}"));
            std::process::exit(Exit::Failed as i32);
        }
    }
}

fn go_alone(settings: &Settings, log: File) -> io::Result<()> {
    setsid()?;
    if let Fork::Parent(_) = sys::fork()? {
        std::process::exit(0);
    }
    umask(Mode::RWXG | Mode::RWXO);
    std::env::set_current_dir(&settings.working_directory)?;
    let nothing = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&log)?;
    rustix::stdio::dup2_stderr(&log)?;
    log_to(Some(&settings.log), settings.verbose)
        .map_err(|failure| io::Error::other(failure.message))
}

/// Waits in the user's process for the daemon's word.
fn wait_until_ready(pipe: OwnedFd, settings: &Settings) -> Result<(), Failure> {
    let see = format!("see {}", settings.log.display());
    let failed = |message: String| Failure::new(Exit::Failed, message);
    let until = Instant::now() + READY_LIMIT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&left)) {
            Ok(0) => {
                let limit = READY_LIMIT.as_secs();
                return Err(failed(format!("the daemon does not serve after {limit} s; {see}")));
            }
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(format!("cannot wait for the daemon: {error}"))),
        }
    }
    let mut line = String::new();
    // The line is written at once, so that it does not block.
    let _ = BufReader::new(File::from(pipe)).read_line(&mut line);
    match line.trim_end() {
        "ready" => Ok(()),
        "" => Err(failed(format!("the daemon ended without a word; {see}"))),
        line => Err(failed(line.strip_prefix("error: ").unwrap_or(line).to_owned())),
    }
}
