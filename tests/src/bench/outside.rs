//! A user's own assigner, outside Slurm, on software GPUs or those of the machine, and clients of it.
//!
//! Owns: the daemon, its folder, the environment of its clients (docs/architecture.md, "Environment
//! of a client"). Dropping it stops the daemon and removes the folder. Does not own: what runs there.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tempfile::TempDir;

use super::status::Status;
use super::system::System;
use crate::lab::{Prefix, wait_until};

/// How long a daemon may take to come up, or anything to become so, even on a crowded machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long a request to a program may take, with the turns of many others before it: less than that is no hang.
const ANSWERS: Duration = Duration::from_secs(300);

/// A GPU that costs nothing: what remains is ours.
pub const ZERO_COST_GPU: &str = r#"launch_ns = 0
copy_ns = 0

[[gpu]]
name = "Simulated GPU"
memory = "16GiB"
"#;

/// What stands in `CUDA_VISIBLE_DEVICES` for so many GPUs.
pub fn place_holders(gpus: u32) -> String {
    (0..gpus).map(|gpu| gpu.to_string()).collect::<Vec<_>>().join(",")
}

/// A running assigner.
#[derive(Debug)]
pub struct Outside {
    folder: TempDir,
    prefix: Prefix,
    port: u16,
    daemon: Child,
    socket: PathBuf,
    on: Gpus,
}

/// Which GPUs an assigner hands out.
#[derive(Debug)]
enum Gpus {
    Software,
    Real(System),
}

impl Outside {
    /// Starts an assigner for the GPUs of a software GPU's configuration.
    ///
    /// # Errors
    /// It does not come up; the error has its log.
    pub fn start(prefix: &Prefix, simcuda: &str, options: &[&str]) -> Result<Self> {
        Self::launch(prefix, Gpus::Software, simcuda, options)
    }

    /// Starts an assigner for the GPUs of this machine.
    ///
    /// # Errors
    /// It does not come up; the error has its log.
    pub fn on_real_gpus(prefix: &Prefix, system: System, options: &[&str]) -> Result<Self> {
        Self::launch(prefix, Gpus::Real(system), "", options)
    }

    fn launch(prefix: &Prefix, on: Gpus, simcuda: &str, options: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("acb-out-").tempdir_in("/tmp")?;
        // The GPUs' shared state has the folder's name, and goes with it.
        let simcuda = format!("state = \"{}\"\n{simcuda}", state_of(&folder));
        fs::write(folder.path().join("simcuda.toml"), simcuda)?;
        let log = File::create(folder.path().join("out"))?;
        // A port that was free a moment ago.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new(prefix.program("gpu_assigner"));
        bare(&mut command);
        match &on {
            Gpus::Software => command
                .env("SIMCUDA_CONFIG", folder.path().join("simcuda.toml"))
                .env("ACB_NVML", prefix.test_program("sim/libnvidia-ml.so.1")),
            Gpus::Real(system) => system.hand_to(&mut command, None),
        };
        command
            .env("HOME", folder.path())
            .args(["--port", &port.to_string(), "start", "--foreground"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal is for the caller.
            .process_group(0);
        let daemon = command.spawn().context("start gpu_assigner")?;
        let mut outside =
            Self { folder, prefix: prefix.clone(), port, daemon, socket: PathBuf::new(), on };
        wait_until("gpu_assigner serves", PATIENCE, || {
            if let Some(status) = outside.daemon.try_wait()? {
                bail!("it ended: {status}");
            }
            let Some(status) = outside.status()? else { return Ok(false) };
            outside.socket = status.client_socket.into();
            Ok(true)
        })
        .with_context(|| format!("gpu_assigner said:\n{}", outside.log()))?;
        Ok(outside)
    }

    /// What the daemon says; `None` while it does not serve.
    ///
    /// # Errors
    /// `gpu_assigner status` cannot be run, or says what nobody understands.
    pub fn status(&self) -> Result<Option<Status>> {
        let output = Command::new(self.prefix.program("gpu_assigner"))
            .env("HOME", self.folder.path())
            .args(["--port", &self.port.to_string(), "status", "--json"])
            .output()
            .context("run gpu_assigner status")?;
        match output.status.success() {
            true => Ok(Status::parse(&output.stdout).context("gpu_assigner status --json")?),
            false => Ok(None),
        }
    }

    /// Waits until the daemon says that something is so.
    ///
    /// # Errors
    /// It does not become so; the error has what was said last, and the log.
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Status) -> bool) -> Result<Status> {
        let mut last = None;
        wait_until(what, PATIENCE, || {
            last = self.status()?;
            Ok(last.as_ref().is_some_and(&condition))
        })
        .with_context(|| format!("{last:#?}\n{}", self.log()))?;
        last.context("the condition was met by something")
    }

    /// Its folder, and its user's home.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its socket for clients.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it said.
    pub fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.folder().join(name)).unwrap_or_default();
        read("out") + &read(".acb/gpu-assigner.log")
    }

    /// A program of this user, not interposed; it finds the software GPU where there is one.
    pub fn plain(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        bare(&mut command);
        command.env("HOME", self.folder());
        match &self.on {
            Gpus::Software => command
                .env("SIMCUDA_CONFIG", self.folder().join("simcuda.toml"))
                .env("LD_LIBRARY_PATH", self.prefix.test_program("sim")),
            Gpus::Real(system) => system.hand_to(&mut command, system.folder()),
        };
        command
    }

    /// A program under the interposer, joined to this assigner.
    pub fn client(&self, program: impl AsRef<Path>) -> Command {
        let library = self.prefix.library();
        let mut command = self.plain(program);
        command
            .env("LD_PRELOAD", library.join("libcuda.so.1"))
            .env("ACB_SOCKET", self.socket())
            .env("ACB_GPUS", "1")
            .env("CUDA_VISIBLE_DEVICES", "0");
        match &self.on {
            Gpus::Software => command
                .env("LD_LIBRARY_PATH", library)
                .env("ACB_DRIVER", self.prefix.test_program("sim/libcuda.so.1")),
            Gpus::Real(system) => system.hand_to(&mut command, Some(&library)),
        };
        command
    }

    /// A program as a user starts it: `agarun OPTION… -- program`.
    pub fn agarun(&self, options: &[&str], program: impl AsRef<Path>) -> Command {
        let mut command = self.plain(self.prefix.program("agarun"));
        match &self.on {
            Gpus::Software => command
                .env_remove("LD_LIBRARY_PATH")
                .env("ACB_DRIVER", self.prefix.test_program("sim/libcuda.so.1")),
            Gpus::Real(system) => system.hand_to(&mut command, None),
        };
        command
            .env("AGA_GPU_ALLOC_SERVER_PORT", self.port.to_string())
            .args(options)
            .arg("--")
            .arg(program.as_ref());
        command
    }

    /// Starts the program `on_request` under the interposer and waits until it is ready.
    ///
    /// # Errors
    /// It fails.
    pub fn on_request(&self) -> Result<OnRequest> {
        self.on_request_with(&[])
    }

    /// The same with variables in its environment.
    ///
    /// # Errors
    /// It fails.
    pub fn on_request_with(&self, environment: &[(&str, &str)]) -> Result<OnRequest> {
        let mut command = self.client(self.prefix.test_program("on_request"));
        command.envs(environment.iter().copied());
        OnRequest::start(command)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let stopped = Command::new(self.prefix.program("gpu_assigner"))
            .env("HOME", self.folder.path())
            .args(["--port", &self.port.to_string(), "stop"])
            .output()
            .is_ok_and(|output| output.status.success());
        if !stopped {
            // It may have ended by itself.
            let _ = self.daemon.kill();
        }
        let _ = self.daemon.wait();
        // Whoever used the GPUs has ended, or will find that they are gone.
        let state = format!("-{}", state_of(&self.folder));
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("simcuda-") && name.ends_with(&state) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// A program on this machine's GPUs, not interposed.
pub(super) fn on_system(system: &System, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    bare(&mut command);
    system.hand_to(&mut command, system.folder());
    command
}

/// The name of the software GPUs' shared state.
fn state_of(folder: &TempDir) -> String {
    folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Takes everything out of a command's environment that another job may have put there.
fn bare(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let foreign = ["SLURM", "ACB_", "AGA_", "SIMCUDA", "LD_", "CUDA_"];
        if foreign.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
}

/// A running `on_request`; killed when dropped.
#[derive(Debug)]
pub struct OnRequest {
    child: Child,
    requests: ChildStdin,
    answers: mpsc::Receiver<String>,
}

/// When it asked for the GPU, when the call had returned, and what came of it; times are CLOCK_MONOTONIC in
/// nanoseconds.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    /// Before the call.
    pub wanted_ns: u64,
    /// After it.
    pub got_ns: u64,
    /// The call that failed, and how.
    pub error: Option<String>,
    /// Bytes that were checked.
    pub checked: u64,
    /// Bytes of them that are wrong.
    pub wrong: u64,
    /// Where.
    pub first: Option<String>,
    /// Free memory, as the driver or NVML says.
    pub free: u64,
    /// Memory in all, as the driver or NVML says.
    pub total: u64,
    /// Memory in use, as NVML says.
    pub used: u64,
    /// Processes and their bytes, as each form of NVML's list says.
    pub processes: [Vec<(u32, u64)>; 3],
}

impl Answer {
    /// How long the request took.
    pub fn took(&self) -> Duration {
        Duration::from_nanos(self.got_ns - self.wanted_ns)
    }
}

impl OnRequest {
    /// Starts a command that runs `on_request`, and waits until it is ready.
    ///
    /// # Errors
    /// It fails.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start on_request")?;
        let requests = child.stdin.take().context("on_request has no stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("on_request has no stdout")?);
        let (send, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut started = Self { child, requests, answers };
        started.answer().context("on_request did not start")?;
        Ok(started)
    }

    /// Sends a request without waiting for the answer.
    ///
    /// # Errors
    /// The program is gone.
    pub fn request(&mut self, text: &str) -> Result<()> {
        self.requests.write_all(format!("{text}\n").as_bytes()).context("ask on_request")
    }

    /// Waits for the answer to the oldest request.
    ///
    /// # Errors
    /// The program is gone, the request failed, or wrong data was found.
    pub fn answer(&mut self) -> Result<Answer> {
        let answer = self.reply()?;
        if let Some(error) = answer.error {
            bail!("on_request: {error}");
        }
        if let Some(first) = answer.first {
            bail!("on_request: {} of {} bytes are wrong: {first}", answer.wrong, answer.checked);
        }
        Ok(answer)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// As [`OnRequest::answer`].
    pub fn ask(&mut self, text: &str) -> Result<Answer> {
        self.request(text)?;
        self.answer().with_context(|| text.to_owned())
    }

    /// Waits for the answer to the oldest request, which may be that it failed.
    ///
    /// # Errors
    /// The program is gone.
    pub fn reply(&mut self) -> Result<Answer> {
        let line = match self.answers.recv_timeout(ANSWERS) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                bail!("on_request has not answered for {} s", ANSWERS.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("on_request ended: {}", self.child.wait()?)
            }
        };
        serde_json::from_str(&line).with_context(|| format!("on_request said {line:?}"))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill on_request")
    }
}

impl Drop for OnRequest {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
