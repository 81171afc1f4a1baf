//! Benchmark B1: programs like AlphaFold, long CPU phases and short GPU phases, on one GPU.
//!
//! Owns: its parameters, running it through a Slurm, and collecting the record. Does not own: the
//! Slurm ([`crate::lab`]), what follows from the record ([`super::analysis`]).

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::client::Client;
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
    /// [`interrupt::Interrupted`]; or a client failed, or nothing was heard of any client for long.
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
        let (send, lines) = mpsc::channel();
        // When it is ended, Slurm ends its tasks.
        let mut srun = Client::start(srun, send)?;
        let mut rounds = vec![];
        let mut heard = Instant::now();
        // A round of all clients one after the other, and time for a crowded machine.
        let turn = (CPU_S + GPU_S * f64::from(self.clients(mode))) / self.scale;
        let patience = Duration::from_secs_f64(60.0 + 4.0 * turn);
        loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
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
            interrupt::check()?;
            if heard.elapsed() > patience {
                srun.end();
                bail!(
                    "no client has completed a round for {} s; srun said:\n{}",
                    patience.as_secs(),
                    srun.said()
                );
            }
        }
        let status = srun.wait()?;
        if !status.success() {
            bail!("srun failed ({status}):\n{}", srun.said());
        }
        let wanted = (self.clients(mode) * self.rounds(mode)) as usize;
        if rounds.len() != wanted {
            bail!("{} rounds were recorded instead of {wanted}", rounds.len());
        }
        Ok(rounds)
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
