//! Several clients at a time, their records, and how they ended.
//!
//! Owns: what they record together, and when they are given up. Does not own: the processes ([`crate::bench::client`]).

use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::bench::client::Client;
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
/// A client fails, or is silent for long; [`interrupt::Interrupted`].
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
    let start = |command| Client::start(command, send.clone());
    let mut clients = commands.into_iter().map(start).collect::<Result<Vec<_>>>()?;
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
        interrupt::check()?;
        if heard.elapsed() > patience {
            clients.iter_mut().for_each(Client::end);
            let said: String = clients.iter_mut().map(Client::said).collect();
            bail!("no client has said anything for {} s:\n{said}", patience.as_secs());
        }
    }
    for client in &mut clients {
        let status = client.wait()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn wrong_data_is_told_and_any_other_failure_is_an_error() {
        let right = shell(r#"echo '{"checked": 8}'; echo '{"end_checked": 8}'"#);
        let wrong = shell(r#"echo '{"checked": 8, "wrong": 2}'; echo oh >&2; exit 3"#);
        let record = run(vec![right, wrong]).unwrap();
        assert_eq!((record.checked, record.wrong, record.complaints.as_str()), (24, 2, "oh\n"));
        let error = run(vec![shell("echo no >&2; exit 1")]).unwrap_err().to_string();
        assert!(error.ends_with(":\nno\n"), "{error}");
    }
}
