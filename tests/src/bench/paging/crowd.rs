//! Several clients at a time, their records, and how they ended.
//!
//! Owns: the processes. Dropping a crowd ends it. Does not own: what the records say.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::bench::b1::Interrupted;
use crate::bench::interrupt;
use crate::bench::record::Round;

/// No client says anything for that long: something hangs.
const PATIENCE: Duration = Duration::from_secs(300);
/// Exit code of a workload that found wrong data.
const WRONG_DATA: i32 = 3;

/// What clients left.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Rounds of all clients.
    pub rounds: Vec<Round>,
    /// Bytes that were checked.
    pub checked: u64,
    /// Bytes that were wrong.
    pub wrong: u64,
    /// What clients said about that.
    pub complaints: String,
}

/// What `pages` adds to the line of a round, and the line of its end.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Checked {
    checked: u64,
    wrong: u64,
    end_checked: u64,
    end_wrong: u64,
}

/// Runs the clients to their ends. Wrong data is told, not an error.
///
/// # Errors
/// A client fails, or is silent for long; [`Interrupted`].
pub fn run(commands: Vec<Command>) -> Result<Record> {
    run_patiently(commands, PATIENCE)
}

/// The same for clients that may all be silent for longer.
///
/// # Errors
/// As [`run`].
pub fn run_patiently(commands: Vec<Command>, patience: Duration) -> Result<Record> {
    let patience = patience.max(PATIENCE);
    let (send, lines) = mpsc::channel();
    let mut crowd = Crowd::default();
    for command in commands {
        crowd.start(command, &send)?;
    }
    drop(send);
    let mut record = Record::default();
    let mut heard = Instant::now();
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                heard = Instant::now();
                let checked: Checked = serde_json::from_str(&line).unwrap_or_default();
                record.checked += checked.checked + checked.end_checked;
                record.wrong += checked.wrong + checked.end_wrong;
                record.rounds.extend(Round::parse(&line));
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if interrupt::requested() {
            bail!(Interrupted);
        }
        if heard.elapsed() > patience {
            bail!(
                "no client has said anything for {} s:\n{}",
                patience.as_secs(),
                crowd.complaint()
            );
        }
    }
    for client in &mut crowd.clients {
        let status = client.child.wait()?;
        if status.success() {
            continue;
        }
        let said = client.said();
        if status.code() != Some(WRONG_DATA) {
            bail!("a client failed ({status}):\n{said}");
        }
        record.complaints += &said;
    }
    Ok(record)
}

#[derive(Default)]
struct Crowd {
    clients: Vec<Client>,
}

struct Client {
    child: Child,
    errors: Option<JoinHandle<String>>,
}

impl Crowd {
    fn start(&mut self, mut command: Command, lines: &mpsc::Sender<String>) -> Result<()> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C at the terminal is for this program, which then ends its clients.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let stdout = BufReader::new(child.stdout.take().context("a client has no stdout")?);
        let mut stderr = child.stderr.take().context("a client has no stderr")?;
        let lines = lines.clone();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        let errors = thread::spawn(move || {
            let mut bytes = vec![];
            // What was read before an error is all there is.
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        self.clients.push(Client { child, errors: Some(errors) });
        Ok(())
    }

    fn complaint(&mut self) -> String {
        self.clients.iter_mut().for_each(Client::end);
        self.clients.iter_mut().map(Client::said).collect()
    }
}

impl Client {
    fn said(&mut self) -> String {
        self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default()
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.clients.iter_mut().for_each(Client::end);
    }
}
