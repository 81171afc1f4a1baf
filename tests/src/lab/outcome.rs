//! Commands that end, and conditions that come true, before a deadline.

use anyhow::{Context, Result, bail};
use std::fmt;
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How a command ended and what it said.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
    command: String,
}

impl Outcome {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Its standard output when it exited with 0.
    ///
    /// # Errors
    /// It did not; the error shows all of it.
    pub fn checked(self) -> Result<String> {
        if !self.success() {
            bail!("{self}");
        }
        Ok(self.stdout)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}\n--- stdout\n{}--- stderr\n{}",
            self.command, self.status, self.stdout, self.stderr
        )
    }
}

/// Runs a command to its end, or kills it when the time is over.
pub(super) fn finish(command: &mut Command, patience: Duration) -> Result<Outcome> {
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {words}"))?;
    let stdout = child.stdout.take().map(|pipe| thread::spawn(move || collect(pipe)));
    let stderr = child.stderr.take().map(|pipe| thread::spawn(move || collect(pipe)));
    let deadline = Instant::now() + patience;
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break Ok(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break Err(patience);
        }
        thread::sleep(Duration::from_millis(5));
    };
    let [stdout, stderr] =
        [stdout, stderr].map(|reader| reader.and_then(|r| r.join().ok()).unwrap_or_default());
    match ended {
        Ok(status) => Ok(Outcome { status, stdout, stderr, command: words }),
        Err(patience) => bail!(
            "{words}: not over after {} s\n--- stdout\n{stdout}--- stderr\n{stderr}",
            patience.as_secs()
        ),
    }
}

fn collect(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a condition.
///
/// # Errors
/// It has not come true in time, or `condition` fails.
pub fn wait_until(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !condition()? {
        if Instant::now() > deadline {
            bail!("after {} s it is still not so that {what}", patience.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
