//! A program whose record is read while it runs.
//!
//! Owns: the process, its record line by line, and what it said on stderr. Dropping it ends it. Does not own: what the
//! lines say.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

/// A running program.
pub struct Client {
    child: Child,
    errors: Option<JoinHandle<String>>,
}

impl Client {
    /// What it says on stdout goes to `lines`, until its end.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(mut command: Command, lines: Sender<String>) -> Result<Self> {
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
        Ok(Self { child, errors: Some(errors) })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// What it said on stderr, when it has ended; only once.
    pub fn said(&mut self) -> String {
        self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default()
    }

    /// Ends it.
    pub fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn both_of_its_streams_are_read_to_the_end() {
        let (send, lines) = mpsc::channel();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two; echo three >&2; exit 3"]);
        let mut client = Client::start(command, send).unwrap();
        assert_eq!(lines.iter().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(client.wait().unwrap().code(), Some(3));
        assert_eq!(client.said(), "three\n");
    }
}
