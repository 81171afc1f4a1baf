//! An assigner with a small GPU, and what the tests of paging look at.
//!
//! Owns: sizes, and the waits for conditions. Does not own: the programs ([`acb_tests::bench::outside`]).

use std::fs;
use std::process::Command;
use std::time::Duration;

use acb_tests::bench::outside::{OnRequest, Outside};
use acb_tests::bench::paging::crowd::{self, Record};
use acb_tests::bench::status::{ClientStatus, Status};
use acb_tests::lab::{Prefix, wait_until};
use anyhow::{Context, Result, ensure};

/// Memory of the small GPU.
pub(crate) const GPU: u64 = 64 << 20;
/// What is set aside for a context, and for what the pager needs in it.
pub(crate) const CONTEXT: u64 = 2 << 20;
/// More than half of the memory.
pub(crate) const MOST: &str = "alloc 4 12M";
/// Bytes of [`MOST`].
pub(crate) const MOST_BYTES: u64 = 48 << 20;

const PATIENCE: Duration = Duration::from_secs(180);

/// A running assigner.
pub(crate) struct Stage {
    pub(crate) prefix: Prefix,
    pub(crate) outside: Outside,
}

impl Stage {
    /// One GPU of 64 MiB.
    pub(crate) fn new() -> Result<Self> {
        Self::with("", &[])
    }

    /// The same with more lines in the software GPU's configuration, and options of the assigner.
    pub(crate) fn with(configuration: &str, options: &[&str]) -> Result<Self> {
        Self::on(1, GPU, configuration, options)
    }

    /// So many GPUs of that size.
    pub(crate) fn on(
        gpus: usize,
        memory: u64,
        configuration: &str,
        options: &[&str],
    ) -> Result<Self> {
        let prefix = Prefix::from_env()?;
        let gpu = "[[gpu]]\nname = \"Simulated GPU\"\n".repeat(gpus);
        let simcuda = format!("memory = {memory}\ncontext_bytes = 1048576\n{configuration}\n{gpu}");
        let mut all = vec!["--context-mib", "2", "--chunk-mib", "2"];
        all.extend_from_slice(options);
        let outside = Outside::start(&prefix, &simcuda, &all)?;
        Ok(Self { prefix, outside })
    }

    /// A program that does what it is asked to; its interposer's log goes to a file of that name.
    pub(crate) fn program(&self, name: &str) -> Result<OnRequest> {
        self.program_with(name, &[])
    }

    /// The same with variables in its environment.
    pub(crate) fn program_with(
        &self,
        name: &str,
        environment: &[(&str, &str)],
    ) -> Result<OnRequest> {
        let log = self.outside.folder().join(format!("{name}.log")).display().to_string();
        let mut all = vec![("ACB_LOG_FILE", log.as_str()), ("ACB_LOG", "debug")];
        all.extend_from_slice(environment);
        self.outside.on_request_with(&all)
    }

    /// What the interposer of such a program has said.
    pub(crate) fn log_of(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(self.outside.folder().join(format!("{name}.log")))?)
    }

    /// A command of `pages` under the interposer.
    pub(crate) fn pages(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.outside.client(self.prefix.test_program("pages"));
        // Data of its own: what is another's must be wrong.
        let seed = name.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(257) + u64::from(byte));
        command.args(["--name", name, "--seed", &seed.to_string()]).args(arguments);
        command
    }

    /// Runs programs to their ends. All of their data must be right.
    pub(crate) fn run(&self, commands: Vec<Command>) -> Result<Record> {
        let record = crowd::run(commands).with_context(|| self.outside.log())?;
        ensure!(record.wrong == 0 && record.checked > 0, "{record:#?}\n{}", self.outside.log());
        Ok(record)
    }

    /// What the assigner says.
    pub(crate) fn status(&self) -> Result<Status> {
        self.outside.status()?.context("the assigner does not answer")
    }

    /// Waits until the assigner says something about a program.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        program: &OnRequest,
        condition: impl Fn(&ClientStatus) -> bool,
    ) -> Result<Status> {
        let pid = program.pid();
        self.outside.wait_for(what, |status| status.client(pid).is_some_and(&condition))
    }

    /// Waits until a program waits for its turn.
    pub(crate) fn wait_until_waiting(&self, program: &OnRequest) -> Result<()> {
        let waits = |client: &ClientStatus| client.state.starts_with("waiting");
        self.wait_for("the program waits", program, waits).map(drop)
    }

    /// Waits until the assigner no longer knows a program.
    pub(crate) fn wait_until_gone(&self, pid: u32) -> Result<()> {
        self.outside
            .wait_for("the program is gone", |status| status.client(pid).is_none())
            .map(drop)
    }

    /// Kills the process that serves; its supervisor starts another.
    pub(crate) fn kill_assigner(&self) -> Result<()> {
        let supervisor = self.status()?.pid;
        let children =
            fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
        let worker = children.split_whitespace().next().context("the assigner has no worker")?;
        signal(worker.parse()?, "KILL")
    }

    /// Waits until a program has said something in its log.
    pub(crate) fn wait_for_log(&self, name: &str, text: &str) -> Result<()> {
        wait_until(&format!("the log of {name} says '{text}'"), PATIENCE, || {
            Ok(self.log_of(name).is_ok_and(|log| log.contains(text)))
        })
        .with_context(|| self.log_of(name).unwrap_or_default())
    }

    /// Waits until one line of a program's log names call, cause and remedy.
    pub(crate) fn tells(&self, name: &str, call: &str, cause: &str, remedy: &str) -> Result<()> {
        let told = |line: &str| [call, cause, remedy].iter().all(|part| line.contains(part));
        let what = format!("a line of {name} names '{call}', '{cause}' and '{remedy}'");
        wait_until(&what, PATIENCE, || Ok(self.log_of(name).is_ok_and(|log| log.lines().any(told))))
            .with_context(|| self.log_of(name).unwrap_or_default())
    }

    /// The same of the assigner's log.
    pub(crate) fn assigner_tells(&self, who: &str, cause: &str, remedy: &str) -> Result<()> {
        let told = |line: &str| [who, cause, remedy].iter().all(|part| line.contains(part));
        let what = format!("a line of the assigner names '{who}', '{cause}' and '{remedy}'");
        wait_until(&what, PATIENCE, || Ok(self.outside.log().lines().any(told)))
            .with_context(|| self.outside.log())
    }

    /// A program with [`MOST`] of the memory, filled and changed.
    pub(crate) fn large(&self, name: &str) -> Result<OnRequest> {
        self.large_with(name, &[])
    }

    /// The same with variables in its environment.
    pub(crate) fn large_with(&self, name: &str, environment: &[(&str, &str)]) -> Result<OnRequest> {
        fill(self.program_with(name, environment)?, MOST)
    }

    /// The same with other memory.
    pub(crate) fn filled_with(&self, name: &str, allocation: &str) -> Result<OnRequest> {
        fill(self.program(name)?, allocation)
    }
}

fn fill(mut program: OnRequest, allocation: &str) -> Result<OnRequest> {
    for request in [allocation, "fill", "step", "sync"] {
        program.ask(request)?;
    }
    Ok(program)
}

/// Sends a signal to a process that this test started.
pub(crate) fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status()?;
    ensure!(status.success(), "kill -{name} {pid}: {status}");
    Ok(())
}

/// Every byte of a program's memory, on the GPU and on the host, is right.
pub(crate) fn is_right(program: &mut OnRequest) -> Result<()> {
    let summed = program.ask("check")?;
    let compared = program.ask("compare")?;
    ensure!(summed.checked > 0 && compared.checked == summed.checked, "{summed:?} {compared:?}");
    Ok(())
}
