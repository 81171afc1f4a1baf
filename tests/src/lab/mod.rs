//! A private Slurm on this machine: munged, slurmctld and N slurmds of its own, with GPUs.
//!
//! Owns: the life of these daemons and of their folder. A [`Lab`] that is dropped, whose owner
//! panics, is interrupted or is killed leaves nothing behind: see `guard`.
//! Does not own: what runs in it. Nothing outside the lab's folder is read or changed, except for
//! the accounts of `account` and, with [`Proctrack::Cgroup`], Slurm's own cgroups.
//!
//! ```no_run
//! use acb_tests::lab::{Lab, Options, Prefix};
//! let lab = Lab::start(&Options::new(Prefix::from_env()?))?;
//! let outcome = lab.run(&["srun", "--acb", "hostname"])?;
//! assert!(outcome.success(), "{outcome}");
//! # anyhow::Ok(())
//! ```

mod account;
mod conf;
mod guard;
mod jobs;
mod machine;
mod outcome;
mod prefix;

pub use account::Account;
pub use conf::{Cluster, ExternStep, Gpus, PlugStack, Proctrack, SIMULATED};
pub use jobs::JobId;
pub use machine::{missing, processes_naming};
pub use outcome::{Outcome, wait_until};
pub use prefix::Prefix;

use anyhow::{Context, Result, bail};
use guard::Guard;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a daemon may take to come up, and a command to end: far more than either takes, even
/// on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a lab is to be like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where slurm-acb is installed.
    pub prefix: Prefix,
    /// Nodes; they are called n1, n2, ….
    pub nodes: usize,
    /// CPUs that Slurm believes each node to have.
    pub cpus: usize,
    /// The GPUs of the nodes.
    pub gpus: Gpus,
    /// How Slurm keeps track of a job's processes.
    pub proctrack: Proctrack,
    /// Whether jobs have an extern step.
    pub extern_step: ExternStep,
    /// Whether Slurm loads the plugin.
    pub plugstack: PlugStack,
    /// The site's cluster file.
    pub cluster: Cluster,
    /// The software GPU's configuration (`SIMCUDA_CONFIG`), the lab's `simcuda.toml`; `{state}` in it
    /// is a name by which the lab's end finds and removes the GPUs' state. `None`: no such file.
    pub simcuda: Option<String>,
    /// More lines for slurm.conf.
    pub slurm_conf: String,
}

impl Options {
    /// Two nodes with two software GPUs each, linuxproc, the plugin loaded.
    pub fn new(prefix: Prefix) -> Self {
        Self {
            prefix,
            nodes: 2,
            cpus: 16,
            gpus: Gpus::Fake { per_node: 2 },
            proctrack: Proctrack::LinuxProc,
            extern_step: ExternStep::Yes,
            plugstack: PlugStack::Acb,
            cluster: Cluster::Simulated,
            simcuda: Some(conf::SIMCUDA.into()),
            slurm_conf: String::new(),
        }
    }
}

/// A running private Slurm. Dropping it stops it and removes its folder.
#[derive(Debug)]
pub struct Lab {
    folder: PathBuf,
    prefix: Prefix,
    nodes: Vec<String>,
    daemons: Vec<Daemon>,
    guard: Guard,
}

/// One of the lab's own daemons, a child of this process.
#[derive(Debug)]
struct Daemon {
    name: String,
    child: Child,
}

impl Lab {
    /// Starts a Slurm and waits until its nodes take jobs.
    ///
    /// # Errors
    /// Names what the machine lacks, or the daemon that did not come up, with the end of its log.
    pub fn start(options: &Options) -> Result<Self> {
        let missing = machine::missing(options.proctrack);
        if !missing.is_empty() {
            bail!("no private Slurm can run here: {}", missing.join("; "));
        }
        if options.nodes == 0 {
            bail!("a lab has at least one node");
        }
        options.prefix.check()?;

        let folder = tempfile::Builder::new().prefix("acb-").tempdir_in("/tmp")?.keep();
        let guard = Guard::start(&folder).context("start the lab's guard")?;
        let nodes = (1..=options.nodes).map(|n| format!("n{n}")).collect();
        let mut lab =
            Self { folder, prefix: options.prefix.clone(), nodes, daemons: vec![], guard };
        lab.lay_out(options).context("write the lab's folder")?;
        lab.start_daemons()?;
        Ok(lab)
    }

    /// The lab's folder. Everybody may enter it; `home/USER` in it belongs to the user.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The run folder of slurm-acb (`RUN` of docs/architecture.md).
    pub fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// Where slurm-acb is installed.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// The cluster file that the plugin reads.
    pub fn cluster_file(&self) -> PathBuf {
        self.folder.join("cluster.toml")
    }

    /// A log of the lab: `slurmctld`, `munged`, or a node's name.
    pub fn log(&self, name: &str) -> String {
        let path = self.folder.join(format!("log/{name}.log"));
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    /// A command that talks to this Slurm, as root.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // The caller may itself run in a job, or under cargo, which sets LD_LIBRARY_PATH: nothing
        // of that must leak into ours.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if [
                "SLURM", "SBATCH", "SALLOC", "SRUN", "SPANK", "ACB", "AGA_", "SIMCUDA", "CARGO",
                "LD_",
            ]
            .iter()
            .any(|prefix| text.starts_with(prefix))
            {
                command.env_remove(&name);
            }
        }
        command
            .env("SLURM_CONF", self.folder.join("slurm.conf"))
            .current_dir(self.folder.join("home/root"));
        command
    }

    /// The same, as an unprivileged user, in a home folder of the lab's.
    ///
    /// # Errors
    /// The home folder cannot be made.
    pub fn command_as(&self, account: &Account, program: &str) -> Result<Command> {
        let home = self.home(account)?;
        let mut command = self.command(program);
        command.uid(account.uid).gid(account.gid).env("HOME", &home).current_dir(home);
        command.env("USER", &account.name).env("LOGNAME", &account.name);
        Ok(command)
    }

    /// The user's folder in the lab, made on first use.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn home(&self, account: &Account) -> Result<PathBuf> {
        let home = self.folder.join("home").join(&account.name);
        if !home.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&home)?;
            chown(&home, Some(account.uid), Some(account.gid))?;
        }
        Ok(home)
    }

    /// Runs a command as root until it ends.
    ///
    /// # Errors
    /// It cannot be started, or takes more than a minute.
    pub fn run(&self, words: &[&str]) -> Result<Outcome> {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        outcome::finish(&mut command, PATIENCE)
    }

    /// Runs a command as an unprivileged user until it ends.
    ///
    /// # Errors
    /// It cannot be started, or takes more than a minute.
    pub fn run_as(&self, account: &Account, words: &[&str]) -> Result<Outcome> {
        let mut command = self.command_as(account, words[0])?;
        command.args(&words[1..]);
        outcome::finish(&mut command, PATIENCE)
    }

    fn lay_out(&self, options: &Options) -> Result<()> {
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o755))?;
        for name in ["log", "state", "home/root", "run", "dev"] {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(self.folder.join(name))?;
        }
        let munge = self.folder.join("munge");
        fs::DirBuilder::new().mode(0o755).create(&munge)?;
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(munge.join("key"))
            .and_then(|mut file| std::io::copy(&mut random(1024)?, &mut file))?;
        let owner = machine::munge_account()?;
        for path in [munge.join("key"), munge.clone()] {
            chown(path, Some(owner.uid), Some(owner.gid))?;
        }

        let files = conf::Files {
            lab: &self.folder,
            host: machine::host_name()?,
            nodes: &self.nodes,
            ports: free_ports(1 + self.nodes.len())?,
            devices: options.gpus.device_files(&self.folder, self.nodes.len())?,
            options,
        };
        for (name, text) in files.all() {
            fs::write(self.folder.join(name), text)?;
        }
        Ok(())
    }

    fn start_daemons(&mut self) -> Result<()> {
        let munge = self.folder.join("munge");
        let owner = machine::munge_account()?;
        let mut munged = self.command(machine::program("munged")?);
        munged.uid(owner.uid).gid(owner.gid).arg("--foreground").arg("--num-threads=2");
        for (option, file) in
            [("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("seed-file", "seed")]
        {
            munged.arg(format!("--{option}={}", munge.join(file).display()));
        }
        munged.arg(format!("--log-file={}", munge.join("munged.log").display()));
        self.spawn("munged", munged)?;
        let socket = munge.join("socket");
        self.await_daemon("munged", || Ok(socket.exists()))?;

        let mut slurmctld = self.command(machine::program("slurmctld")?);
        slurmctld.arg("-D");
        self.spawn("slurmctld", slurmctld)?;
        self.await_daemon("slurmctld", || Ok(self.run(&["scontrol", "ping"])?.success()))?;

        for node in self.nodes.clone() {
            let mut slurmd = self.command(machine::program("slurmd")?);
            slurmd.args(["-D", "-N", &node]);
            self.spawn(&node, slurmd)?;
        }
        for node in &self.nodes {
            self.await_daemon(node, || {
                let state = self.node_state(node)?;
                if state.contains("drain") || state.contains("down") {
                    // Slurm drains nodes that have fewer CPUs than it was told.
                    self.run(&["scontrol", "update", &format!("nodename={node}"), "state=resume"])?;
                }
                Ok(state == "idle")
            })?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = fs::File::create(self.folder.join(format!("log/{name}.log")))?;
        let child = command
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal is for the caller; the guard ends the daemons in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        self.guard.watch(name, child.id())?;
        self.daemons.push(Daemon { name: name.into(), child });
        Ok(())
    }

    fn await_daemon(&self, name: &str, ready: impl FnMut() -> Result<bool>) -> Result<()> {
        wait_until(&format!("{name} is up"), PATIENCE, ready).with_context(|| {
            let log = self.log(name);
            let last: Vec<_> = log.lines().rev().take(15).collect();
            format!(
                "{name} did not come up; the end of its log:\n{}",
                last.into_iter().rev().collect::<Vec<_>>().join("\n")
            )
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for daemon in &self.daemons {
                eprintln!("--- the end of the log of {}:", daemon.name);
                let log = self.log(&daemon.name);
                for line in log.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev() {
                    eprintln!("{line}");
                }
            }
        }
        self.guard.release();
        // Reaped while the guard stops them: it would otherwise see zombies.
        for daemon in &mut self.daemons {
            let _ = daemon.child.wait();
        }
        self.guard.wait();
    }
}

fn random(bytes: u64) -> std::io::Result<impl std::io::Read> {
    use std::io::Read;
    Ok(fs::File::open("/dev/urandom")?.take(bytes))
}

/// Ports that were free a moment ago. All are held until the last is found, so that they differ.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()?;
    Ok(listeners.iter().map(|l| l.local_addr().map(|a| a.port())).collect::<Result<_, _>>()?)
}
