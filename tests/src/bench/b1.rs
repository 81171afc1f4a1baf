//! Benchmark B1: programs like AlphaFold, long CPU phases and short GPU phases, on one GPU.
//!
//! Owns: its parameters, running it through a Slurm, and collecting the record. Does not own: the
//! Slurm ([`crate::lab`]), what follows from the record ([`super::analysis`]).

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::interrupt;
use super::record::Round;
use crate::lab::Lab;

/// Lengths of the phases, as published, seconds.
const CPU_S: f64 = 487.5;
const GPU_S: f64 = 112.5;

/// How B1 is run.
#[derive(Clone, Debug)]
pub struct B1 {
    /// Clients that share the GPU.
    pub clients: u32,
    /// Rounds of each of them.
    pub rounds: u32,
    /// Rounds of the client that has the GPU alone.
    pub exclusive_rounds: u32,
    /// All times are divided by this.
    pub scale: f64,
    /// The CPU phases compute instead of waiting.
    pub burn: bool,
    /// The GPUs are simulated.
    pub simulated: bool,
}

/// Which of the two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A job of one client, with the GPU to itself, without slurm-acb.
    Exclusive,
    /// A job of all clients on one GPU, with `srun --acb`.
    Shared,
}

/// The run was interrupted by the user.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl B1 {
    /// Clients of a run.
    pub fn clients(&self, mode: Mode) -> u32 {
        match mode {
            Mode::Exclusive => 1,
            Mode::Shared => self.clients,
        }
    }

    /// Rounds of each client of a run.
    pub fn rounds(&self, mode: Mode) -> u32 {
        match mode {
            Mode::Exclusive => self.exclusive_rounds,
            Mode::Shared => self.rounds,
        }
    }

    /// What the user would type; the program's path is shortened to its name.
    pub fn command_line(&self, mode: Mode) -> String {
        let words: Vec<String> =
            self.srun_arguments(mode).into_iter().chain(self.program_arguments(mode)).collect();
        let (srun, program) = words.split_at(self.srun_arguments(mode).len());
        format!("srun {} phases {}", srun.join(" "), program.join(" "))
    }

    fn srun_arguments(&self, mode: Mode) -> Vec<String> {
        let mut arguments = vec![];
        if mode == Mode::Shared {
            arguments.push("--acb".into());
        }
        arguments.extend(["-N1".into(), format!("-n{}", self.clients(mode))]);
        arguments.push("--gres=gpu:1".into());
        arguments
    }

    fn program_arguments(&self, mode: Mode) -> Vec<String> {
        let milliseconds = |seconds: f64| format!("{}", (seconds * 1e6 / self.scale).round() / 1e3);
        let mut arguments = vec![
            format!("--rounds={}", self.rounds(mode)),
            format!("--cpu-ms={}", milliseconds(CPU_S)),
            format!("--gpu-ms={}", milliseconds(GPU_S)),
            "--bytes=80M".into(),
        ];
        if self.burn {
            arguments.push("--burn".into());
        }
        arguments
    }

    /// Runs one side in a Slurm and returns its record; `progress` is told of every round.
    ///
    /// # Errors
    /// [`Interrupted`]; or a client failed, or nothing was heard of any client for long.
    pub fn run(
        &self,
        lab: &Lab,
        mode: Mode,
        mut progress: impl FnMut(&Round),
    ) -> Result<Vec<Round>> {
        let mut srun = lab.command("srun");
        // One failed client spoils the run: do not wait for the others.
        srun.args(self.srun_arguments(mode)).arg("--kill-on-bad-exit=1");
        srun.arg(lab.prefix().test_program("phases")).args(self.program_arguments(mode));
        if self.simulated && mode == Mode::Exclusive {
            // With --acb the cluster file says where the driver is; without, the user does.
            srun.env("LD_LIBRARY_PATH", lab.prefix().test_program("sim"));
            srun.env("SIMCUDA_CONFIG", lab.folder().join("simcuda.toml"));
        }
        let mut job = Job::start(srun)?;
        let mut rounds = vec![];
        let mut heard = Instant::now();
        // A round of all clients one after the other, and time for a crowded machine.
        let turn = (CPU_S + GPU_S * f64::from(self.clients(mode))) / self.scale;
        let patience = Duration::from_secs_f64(60.0 + 4.0 * turn);
        loop {
            match job.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    heard = Instant::now();
                    if let Some(round) = Round::parse(&line) {
                        progress(&round);
                        rounds.push(round);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if interrupt::requested() {
                bail!(Interrupted);
            }
            if heard.elapsed() > patience {
                bail!(
                    "no client has completed a round for {} s; srun said:\n{}",
                    patience.as_secs(),
                    job.complaint()
                );
            }
        }
        job.finish()?;
        let wanted = (self.clients(mode) * self.rounds(mode)) as usize;
        if rounds.len() != wanted {
            bail!("{} rounds were recorded instead of {wanted}", rounds.len());
        }
        Ok(rounds)
    }
}

/// A running srun. Dropping it ends it; its tasks are ended by Slurm.
struct Job {
    srun: Child,
    lines: mpsc::Receiver<String>,
    errors: Option<thread::JoinHandle<String>>,
}

impl Job {
    fn start(mut command: Command) -> Result<Self> {
        let mut srun = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C at the terminal is for this program, which then ends srun.
            .process_group(0)
            .spawn()
            .context("start srun")?;
        let stdout = BufReader::new(srun.stdout.take().context("srun has no stdout")?);
        let mut stderr = srun.stderr.take().context("srun has no stderr")?;
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
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
        Ok(Self { srun, lines, errors: Some(errors) })
    }

    /// Waits for srun; fails as it does.
    fn finish(&mut self) -> Result<()> {
        let status = self.srun.wait()?;
        if !status.success() {
            bail!("srun failed ({status}):\n{}", self.complaint());
        }
        Ok(())
    }

    /// Ends srun and returns what it said on stderr.
    fn complaint(&mut self) -> String {
        self.end();
        self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default()
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.srun.kill();
        let _ = self.srun.wait();
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_what_a_user_types() {
        let b1 = B1 {
            clients: 8,
            rounds: 10,
            exclusive_rounds: 4,
            scale: 100.0,
            burn: false,
            simulated: true,
        };
        assert_eq!(
            b1.command_line(Mode::Shared),
            "srun --acb -N1 -n8 --gres=gpu:1 phases --rounds=10 --cpu-ms=4875 --gpu-ms=1125 --bytes=80M"
        );
        assert!(!b1.command_line(Mode::Exclusive).contains("--acb"));
    }
}
