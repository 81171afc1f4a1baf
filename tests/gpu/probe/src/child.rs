//! A process with a time limit, its output line by line, and its whole process group ended with it.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host;

/// How much of what a process says on stderr is kept: the end.
const KEPT: usize = 4000;
/// How long output is waited for after the end of the process that was to write it.
const LINGER: Duration = Duration::from_millis(200);

/// How a process ended, and what it said.
pub(crate) struct Ending {
    /// None: it was ended at its time limit.
    pub(crate) status: Option<ExitStatus>,
    /// The end of its stderr.
    pub(crate) stderr: String,
    pub(crate) seconds: f64,
}

impl Ending {
    pub(crate) fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Why it is no success, with the last line of what it said.
    pub(crate) fn why(&self) -> String {
        let last =
            self.stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
        let how = match self.status {
            None => format!("ended after its {:.0} s", self.seconds),
            Some(status) => status.to_string(),
        };
        if last.is_empty() { how } else { format!("{how}: {last}") }
    }
}

/// Runs a command for at most `limit`, calling `line` for every line of its stdout as it comes. It
/// leads a process group of its own, all of which ends with it.
pub(crate) fn run(
    command: &mut Command,
    limit: Duration,
    line: impl FnMut(&str),
) -> std::io::Result<Ending> {
    run_until(command, &Cell::new(Instant::now() + limit), line)
}

/// The same with a limit that `line` may set anew.
pub(crate) fn run_until(
    command: &mut Command,
    until: &Cell<Instant>,
    line: impl FnMut(&str),
) -> std::io::Result<Ending> {
    let child = piped(command).process_group(0).spawn()?;
    attend(child, until, line, |child| host::end_group(child.id()))
}

/// The same in the group of this process, for programs that leave a daemon: only the program itself
/// is ended, and only when it overruns.
pub(crate) fn run_in_place(
    command: &mut Command,
    limit: Duration,
    line: impl FnMut(&str),
) -> std::io::Result<Ending> {
    attend(piped(command).spawn()?, &Cell::new(Instant::now() + limit), line, |_| ())
}

fn piped(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

fn attend(
    mut child: Child,
    until: &Cell<Instant>,
    mut line: impl FnMut(&str),
    end_rest: impl Fn(&Child),
) -> std::io::Result<Ending> {
    let begin = Instant::now();
    let (send, lines) = mpsc::channel();
    let stdout = child.stdout.take().expect("its stdout is piped");
    let stderr = child.stderr.take().expect("its stderr is piped");
    let out: JoinHandle<()> = std::thread::spawn(move || {
        for text in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if send.send(String::from_utf8_lossy(&text).into_owned()).is_err() {
                return;
            }
        }
    });
    let said = Arc::new(Mutex::new(Vec::new()));
    let err = std::thread::spawn({
        let said = Arc::clone(&said);
        move || keep_tail(stderr, &said)
    });
    let mut ended = false;
    let overran = loop {
        let left = until.get().saturating_duration_since(Instant::now());
        match lines.recv_timeout(LINGER.min(left)) {
            Ok(text) => line(&text),
            Err(mpsc::RecvTimeoutError::Disconnected) => break false,
            Err(mpsc::RecvTimeoutError::Timeout) if Instant::now() >= until.get() => break true,
            // A daemon may have kept the pipe of a program that has ended.
            Err(mpsc::RecvTimeoutError::Timeout) if ended => break false,
            Err(mpsc::RecvTimeoutError::Timeout) => ended = child.try_wait()?.is_some(),
        }
    };
    let status = if overran { None } else { wait_until(&mut child, until.get())? };
    // Also what it started and left behind, which would keep the GPU and the pipes.
    end_rest(&child);
    if status.is_none() {
        child.kill()?;
    }
    child.wait()?;
    let patience = Instant::now() + LINGER;
    while !(out.is_finished() && err.is_finished()) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
    for text in lines.try_iter() {
        line(&text);
    }
    let kept = said.lock().unwrap_or_else(PoisonError::into_inner);
    let stderr = String::from_utf8_lossy(&kept).into_owned();
    Ok(Ending { status, stderr, seconds: begin.elapsed().as_secs_f64() })
}

/// Waits for the end of a process whose stdout is closed already.
fn wait_until(child: &mut Child, deadline: Instant) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn keep_tail(mut from: impl Read, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0u8; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > 2 * KEPT {
            let drop = kept.len() - KEPT;
            kept.drain(..drop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_and_status_come_back() {
        let mut lines = Vec::new();
        let ending = run(
            &mut shell("echo a; echo b; echo sorry >&2; exit 3"),
            Duration::from_secs(60),
            |line| {
                lines.push(line.to_owned());
            },
        )
        .unwrap();
        assert_eq!(lines, ["a", "b"]);
        assert!(!ending.is_success());
        assert_eq!(ending.why(), "exit status: 3: sorry");
    }

    #[test]
    fn one_that_overruns_is_ended_with_its_children_and_keeps_its_lines() {
        let mut lines = Vec::new();
        let script = "echo $$; sleep 1000 & echo $!; wait";
        let ending = run(&mut shell(script), Duration::from_millis(500), |line| {
            lines.push(line.to_owned());
        })
        .unwrap();
        assert!(ending.status.is_none());
        assert_eq!(lines.len(), 2);
        let deadline = Instant::now() + Duration::from_secs(30);
        while lines.iter().any(|pid| is_running(pid)) {
            assert!(Instant::now() < deadline, "a process outlived its group");
            std::thread::yield_now();
        }
    }

    /// Zombies that nobody has waited for yet do not run.
    fn is_running(pid: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
    }

    #[test]
    fn a_daemon_that_keeps_the_pipes_is_not_waited_for() {
        let mut lines = Vec::new();
        let ending = run_in_place(
            &mut shell("sleep 1000 & echo $!; echo told >&2"),
            Duration::from_secs(100),
            |line| lines.push(line.to_owned()),
        )
        .unwrap();
        assert!(ending.is_success() && ending.stderr == "told\n");
        assert!(is_running(&lines[0]));
        host::end_process(lines[0].parse().unwrap());
    }

    #[test]
    fn a_child_that_closes_stdout_and_stays_is_ended() {
        let ending =
            run(&mut shell("exec >&- 2>&-; sleep 1000"), Duration::from_millis(300), |_| {})
                .unwrap();
        assert!(ending.status.is_none());
    }
}
