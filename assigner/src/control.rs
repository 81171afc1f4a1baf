//! `gpu_assigner status` and `stop`.
//!
//! Owns how a running daemon is found: by its pid file, as ACB does, and by asking at its address,
//! which also finds it where several nodes share the home folder with the pid file.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use acb_wire::v1;
use rustix::process::{Pid, Signal, kill_process};
use tokio_stream::StreamExt;

use crate::cli::{Place, Status};
use crate::json;
use crate::output::print;
use crate::pidfile::{self, Recorded};
use crate::process::ProcessId;
use crate::remote::{self, Remote, RemoteError, Target};
use crate::settings::{Folder, locate};
use crate::start::{Exit, Failure};
use crate::table::{self, Paint};

/// How long a daemon may take to end.
const END_LIMIT: Duration = Duration::from_secs(15);
/// How often its end is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Time between two tables of `--watch`.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// A daemon, as far as it was found.
struct Found {
    target: Target,
    pid: u32,
    /// `None`: its process is there, but it does not answer at this address.
    reply: Option<v1::StatusReply>,
}

/// Shows the daemon.
pub fn status(place: &Place, options: &Status) -> Result<(), Failure> {
    let found = find(place, Implicit::JobsDaemon)?;
    let line = format!("INFO: GPU assigner is running on {} (pid={})", found.target, found.pid);
    let Some(reply) = &found.reply else {
        print(&format!("{line}\n"));
        eprintln!(
            "WARNING: it does not answer on {}; was it started with another --address or --port?",
            found.target
        );
        return Ok(());
    };
    if options.watch {
        return watch(&found.target, options.json);
    }
    if options.json {
        print(&format!("{}\n", json::reply(reply)));
    } else {
        print(&format!("{line}\n{}", table::nodes(&reply.nodes, paint())));
    }
    Ok(())
}

/// Stops the daemon.
pub fn stop(place: &Place) -> Result<(), Failure> {
    let found = find(place, Implicit::Nothing)?;
    let (target, pid) = (&found.target, found.pid);
    let failed = |message: String| Failure::new(Exit::Failed, message);
    let process = ProcessId::of(pid).ok_or_else(|| not_running(target))?;
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| not_running(target))?;
    kill_process(raw, Signal::TERM).map_err(|error| {
        failed(format!("GPU assigner (pid={pid}) cannot be told to end: {error}"))
    })?;
    let until = Instant::now() + END_LIMIT;
    while process.is_alive() {
        if Instant::now() > until {
            return Err(failed(format!(
                "GPU assigner (pid={pid}) does not end within {} s; kill -9 {pid} ends it by force",
                END_LIMIT.as_secs()
            )));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    print(&format!(
        "INFO: Successfully killed GPU assigner process running on {target} (pid={pid})\n"
    ));
    Ok(())
}

/// Which daemon is meant when nothing was said.
#[derive(PartialEq, Eq)]
enum Implicit {
    /// Within a job, the job's.
    JobsDaemon,
    /// The user's own one.
    Nothing,
}

fn find(place: &Place, implicit: Implicit) -> Result<Found, Failure> {
    if let Some(folder) = &place.socket_dir {
        return ask(Target::Socket(Folder(folder.clone()).tools_socket()));
    }
    if implicit == Implicit::JobsDaemon
        && place.is_default()
        && let Some(socket) = std::env::var_os("ACB_SOCKET").filter(|socket| !socket.is_empty())
    {
        return ask(remote::beside(Path::new(&socket)));
    }
    let located = locate(place)?;
    let target = Target::Tcp(located.tcp);
    let recorded = pidfile::read(&located.pid_file)?;
    match (remote::status(&target), recorded) {
        (Ok(reply), _) => Ok(found(target, reply)),
        (Err(_), Recorded::Running(pid)) => Ok(Found { target, pid, reply: None }),
        (Err(error), Recorded::Nothing | Recorded::Stale) => Err(no_answer(&target, &error)),
    }
}

fn ask(target: Target) -> Result<Found, Failure> {
    let reply = remote::status(&target).map_err(|error| no_answer(&target, &error))?;
    Ok(found(target, reply))
}

fn found(target: Target, reply: v1::StatusReply) -> Found {
    let pid = reply.nodes.first().map_or(0, |node| node.pid);
    Found { target, pid, reply: Some(reply) }
}

fn no_answer(target: &Target, error: &RemoteError) -> Failure {
    match error {
        RemoteError::NoAnswer { .. } => not_running(target),
        _ => Failure::new(Exit::Failed, error),
    }
}

fn not_running(target: &Target) -> Failure {
    let remedy = match target {
        Target::Tcp(_) => "; start one with: gpu_assigner start",
        Target::Socket(_) => "",
    };
    Failure::new(
        Exit::NotRunning,
        format!("no GPU assigner of yours is running on {target}{remedy}"),
    )
}

fn paint() -> Paint {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if unwanted || !std::io::stdout().is_terminal() { Paint::Plain } else { Paint::Coloured }
}

fn watch(target: &Target, as_json: bool) -> Result<(), Failure> {
    let is_terminal = std::io::stdout().is_terminal();
    let watched = remote::run(async {
        let mut replies = Remote::connect(target).await?.watch(WATCH_EVERY).await?;
        while let Some(Ok(reply)) = replies.next().await {
            let text = match as_json {
                true => format!("{}\n", json::reply(&reply)),
                // Home, and clear what was there.
                false if is_terminal => {
                    format!("\x1b[H\x1b[2J{}", table::nodes(&reply.nodes, paint()))
                }
                false => table::nodes(&reply.nodes, paint()),
            };
            let mut out = std::io::stdout().lock();
            if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
                break; // the reader, a pager or head, has gone
            }
        }
        Ok(())
    });
    watched.map_err(|error| no_answer(target, &error))
}
