//! A private assigner for groups that need the interposer: started in the run's own folder, stopped
//! with it; and programs under `agarun` that join it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::bench::Bench;
use crate::child;
use crate::driver::device;

/// Marks the processes of a run, so that none is left behind.
pub(crate) const MARK: &str = "ACB_GPU_PROBE_RUN";

/// Between an error of programs under an assigner and what that has said.
pub(crate) const SAID: &str = "; gpu_assigner: ";

/// A running assigner.
pub(crate) struct Assigner {
    program: PathBuf,
    agarun: PathBuf,
    home: PathBuf,
    port: u16,
    /// The real driver, for the interposer.
    driver: Option<PathBuf>,
}

impl Assigner {
    /// Starts one for GPU 0. The error says what to install, or what the daemon said.
    pub(crate) fn start(bench: &Bench) -> anyhow::Result<Self> {
        Self::start_with(bench, &[])
    }

    /// The same with more options.
    pub(crate) fn start_with(bench: &Bench, options: &[(&str, String)]) -> anyhow::Result<Self> {
        let (Some(program), Some(agarun)) =
            (bench.installed("bin/gpu_assigner"), bench.installed("bin/agarun"))
        else {
            anyhow::bail!(
                "needs gpu_assigner and agarun: give --prefix DIR, made by tests/gpu/build or scripts/install"
            );
        };
        // A group may start several, one after the other or at once.
        let port = free_port()?;
        let home = bench.work.join(format!("home-{}-{port}", bench.group));
        std::fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
        let driver = device::driver()?.path();
        let assigner = Self { program, agarun, home, port, driver };
        let mut start = assigner.tool();
        start.args(["start", "--gpu-list", "0", "--log-path"]).arg(assigner.home.join("log"));
        for (option, value) in options {
            start.args([option, value.as_str()]);
        }
        let ending = child::run_in_place(&mut start, Duration::from_secs(20), |_| {})?;
        anyhow::ensure!(ending.is_success(), "gpu_assigner start: {}", ending.why());
        Ok(assigner)
    }

    /// `gpu_assigner` with the options that name this one.
    fn tool(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--port")
            .arg(self.port.to_string())
            .arg("--pid-file-path")
            .arg(self.home.join("pid"))
            .env("HOME", &self.home);
        command
    }

    /// A program under the interposer.
    pub(crate) fn run(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.run_unaided(program);
        if let Some(driver) = &self.driver {
            command.env("ACB_DRIVER", driver);
        }
        command
    }

    /// A program under the interposer that may have so much memory.
    pub(crate) fn run_within(&self, bytes: u64, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.agarun(&["--mem", &format!("{}M", bytes >> 20)], program);
        if let Some(driver) = &self.driver {
            command.env("ACB_DRIVER", driver);
        }
        command
    }

    /// A program under the interposer and the audit library.
    pub(crate) fn run_audited(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.agarun(&["--audit"], program);
        if let Some(driver) = &self.driver {
            command.env("ACB_DRIVER", driver);
        }
        command
    }

    /// What the assigner says of itself, as JSON.
    pub(crate) fn status(&self) -> anyhow::Result<serde_json::Value> {
        let mut text = String::new();
        let mut tool = self.tool();
        let ending =
            child::run_in_place(tool.args(["status", "--json"]), Duration::from_secs(5), |line| {
                text.push_str(line);
                text.push('\n');
            })?;
        anyhow::ensure!(ending.is_success(), "gpu_assigner status: {}", ending.why());
        serde_json::from_str(&text)
            .with_context(|| format!("gpu_assigner status printed '{}'", text.trim()))
    }

    /// Bytes of its GPU that it promises to nobody.
    pub(crate) fn headroom(&self) -> anyhow::Result<u64> {
        let status = self.status()?;
        let headroom = status["nodes"][0]["gpus"][0]["headroom"].as_u64();
        headroom.with_context(|| format!("gpu_assigner status names no headroom: {status}"))
    }

    /// The same, but the interposer must find the driver by itself.
    pub(crate) fn run_unaided(&self, program: impl AsRef<OsStr>) -> Command {
        self.agarun(&[], program)
    }

    fn agarun(&self, options: &[&str], program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.agarun);
        command
            .args(options)
            .arg("--history-path")
            .arg(self.home.join("history.log"))
            .arg("--")
            .arg(program)
            .env("AGA_GPU_ALLOC_SERVER_PORT", self.port.to_string());
        command
    }

    /// An error of programs that ran under it, with what it has said last.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        anyhow::anyhow!("{error:#}{SAID}{}", self.log())
    }

    /// The end of the daemon's log, for messages.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.home.join("log")).unwrap_or_default();
        text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Assigner {
    fn drop(&mut self) {
        // If it does not stop, the end of the run ends it.
        let _ = child::run_in_place(self.tool().arg("stop"), Duration::from_secs(10), |_| {});
    }
}

/// A port that nobody listens on now.
fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Ends whatever of this run is still there: daemons, programs of a group that was ended.
pub(crate) fn end_left_behind(work: &Path) {
    let mark = [MARK.as_bytes(), b"=", work.as_os_str().as_encoded_bytes(), b"\0"].concat();
    let own = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if pid != own && environment.windows(mark.len()).any(|part| part == mark) {
            crate::host::end_process(pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn what_bears_the_mark_is_ended_and_nothing_else() {
        let work = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let sleeper = |work: &Path| {
            let mut command = Command::new("sleep");
            command.arg("1000").env(MARK, work).stdin(Stdio::null()).spawn().unwrap()
        };
        let (mut ours, mut theirs) = (sleeper(work.path()), sleeper(other.path()));
        // Until exec is done, the environment is still that of this process.
        while !std::fs::read(format!("/proc/{}/environ", ours.id())).unwrap().starts_with(b"ACB")
            && !String::from_utf8_lossy(
                &std::fs::read(format!("/proc/{}/environ", ours.id())).unwrap(),
            )
            .contains(work.path().to_str().unwrap())
        {
            std::thread::yield_now();
        }
        end_left_behind(work.path());
        assert!(!ours.wait().unwrap().success());
        assert!(theirs.try_wait().unwrap().is_none());
        theirs.kill().unwrap();
        theirs.wait().unwrap();
    }
}
