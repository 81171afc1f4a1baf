//! The texts of a lab's configuration files.
//!
//! Owns: slurm.conf, gres.conf, cgroup.conf, plugstack.conf, cluster.toml, and the device files of
//! GPUs that are not there. Does not own: where they are written, and starting anything.

use super::Options;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How Slurm keeps track of a job's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proctrack {
    /// proctrack/linuxproc: by their parents. A daemon that detaches itself is lost to Slurm.
    LinuxProc,
    /// proctrack/cgroup and task/cgroup with cgroup v1, devices constrained.
    Cgroup,
}

/// Whether Slurm loads the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlugStack {
    /// plugstack.conf names acb_spank.so.
    Acb,
    /// plugstack.conf is empty.
    Empty,
}

/// Whether every job has an extern step, in which the plugin starts the assigner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExternStep {
    /// PrologFlags=Contain.
    Yes,
    /// Slurm's default.
    No,
}

/// The GPUs of a lab's nodes, as Slurm sees them.
#[derive(Debug, Clone)]
pub enum Gpus {
    /// Device files that only look like GPUs, `lab/dev/gpu0`, ….
    Fake {
        /// How many each node has; every node has the same files.
        per_node: usize,
    },
    /// Device files that exist (`/dev/nvidia0`, …), dealt out to the nodes in equal parts.
    Files(Vec<PathBuf>),
}

/// The site's cluster file.
#[derive(Debug, Clone)]
pub enum Cluster {
    /// The software GPU of PREFIX/libexec/acb-tests/sim.
    Simulated,
    /// The machine's own driver.
    Real,
    /// This text; `{lab}`, `{prefix}` and `{nodes}` in it are replaced. The last is a `[[node]]` for
    /// each node, for their names have no addresses.
    Text(String),
    /// There is no such file.
    Missing,
}

/// Two GPUs of 16 GB per node. The nodes of a lab run on one machine: the variable makes theirs differ.
pub(super) const SIMCUDA: &str = r#"state = "{state}"
state_env = "SLURMD_NODENAME"

[[gpu]]
name = "Simulated GPU"
memory = "16GiB"

[[gpu]]
name = "Simulated GPU"
memory = "16GiB"
"#;

impl Gpus {
    /// Per node the files that stand for its GPUs.
    pub(super) fn device_files(&self, lab: &Path, nodes: usize) -> Result<Vec<Vec<PathBuf>>> {
        match self {
            Self::Fake { per_node } => {
                let files: Vec<_> =
                    (0..*per_node).map(|n| lab.join(format!("dev/gpu{n}"))).collect();
                for (minor, file) in files.iter().enumerate() {
                    make_device(file, minor)?;
                }
                Ok(vec![files; nodes])
            }
            Self::Files(files) => {
                let share = files.len() / nodes;
                if share == 0 {
                    bail!("{} GPUs are too few for {nodes} nodes", files.len());
                }
                Ok(files.chunks(share).take(nodes).map(<[PathBuf]>::to_vec).collect())
            }
        }
    }
}

/// A character device of a number that is set aside for experiments: nothing answers there, and a
/// device cgroup that denies it denies nothing else. Where none can be made, an empty file does:
/// Slurm takes no more than the name's number and, for cgroups, the device number.
fn make_device(file: &Path, minor: usize) -> Result<()> {
    let made = Command::new("mknod")
        .arg(file)
        .args(["c", "240", &minor.to_string()])
        .output()
        .context("run mknod")?;
    if !made.status.success() {
        std::fs::write(file, "")?;
    }
    Ok(())
}

/// All that the files' texts depend on.
pub(super) struct Files<'a> {
    pub(super) lab: &'a Path,
    pub(super) host: String,
    pub(super) nodes: &'a [String],
    /// One for slurmctld, then one per node.
    pub(super) ports: Vec<u16>,
    pub(super) devices: Vec<Vec<PathBuf>>,
    pub(super) options: &'a Options,
}

impl Files<'_> {
    /// Name and text of every file, except for a cluster file that is to be missing.
    pub(super) fn all(&self) -> Vec<(&'static str, String)> {
        let mut files = vec![
            ("slurm.conf", self.slurm()),
            ("gres.conf", self.gres()),
            ("plugstack.conf", self.plugstack()),
        ];
        files.extend(self.cluster().map(|text| ("cluster.toml", text)));
        let state = self.lab.file_name().unwrap_or_default().to_string_lossy();
        let simcuda = self.options.simcuda.as_ref().map(|text| text.replace("{state}", &state));
        files.extend(simcuda.map(|text| ("simcuda.toml", text)));
        if self.options.proctrack == Proctrack::Cgroup {
            files.push(("cgroup.conf", CGROUP.into()));
        }
        files
    }

    fn slurm(&self) -> String {
        let (lab, host) = (self.lab.display(), &self.host);
        // Unique per lab: cgroups of two labs on one machine are told apart by the job id.
        let unique = u32::from(self.ports[0]);
        let (proctrack, task) = match self.options.proctrack {
            Proctrack::LinuxProc => ("linuxproc", "none"),
            Proctrack::Cgroup => ("cgroup", "cgroup"),
        };
        let mut text = format!(
            "ClusterName=lab{unique}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={lab}/munge/socket,cred_expire={CRED_EXPIRE_S}
SlurmctldPort={}
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool-%n
SlurmctldPidFile={lab}/slurmctld.pid
SlurmdPidFile={lab}/slurmd-%n.pid
PlugStackConfig={lab}/plugstack.conf
FirstJobId={}
MaxJobId=4000000
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/{task}
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
KillWait=2
MpiDefault=none
",
            self.ports[0],
            unique * 50,
        );
        if self.options.extern_step == ExternStep::Yes {
            text.push_str("PrologFlags=Contain\n");
        }
        text.push_str(&self.options.slurm_conf);
        for ((node, port), devices) in self.nodes.iter().zip(&self.ports[1..]).zip(&self.devices) {
            let gres = match devices.len() {
                0 => String::new(),
                count => format!("Gres=gpu:{count} "),
            };
            let _ = writeln!(
                text,
                "\nNodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={} \
                 RealMemory=4000 {gres}State=UNKNOWN",
                self.options.cpus
            );
        }
        text.push_str(
            "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES\n",
        );
        text
    }

    fn gres(&self) -> String {
        let mut text = String::new();
        for (node, devices) in self.nodes.iter().zip(&self.devices) {
            for device in devices {
                let _ =
                    writeln!(text, "NodeName={node} Name=gpu Count=1 File={}", device.display());
            }
        }
        text
    }

    fn plugstack(&self) -> String {
        match self.options.plugstack {
            PlugStack::Empty => String::new(),
            PlugStack::Acb => format!(
                "optional {} conf={}/cluster.toml\n",
                self.options.prefix.plugin().display(),
                self.lab.display()
            ),
        }
    }

    fn cluster(&self) -> Option<String> {
        let (lab, prefix) =
            (self.lab.display().to_string(), self.options.prefix.root().display().to_string());
        let text = match &self.options.cluster {
            Cluster::Missing => return None,
            Cluster::Text(text) => text,
            Cluster::Simulated => SIMULATED,
            Cluster::Real => REAL,
        };
        let nodes: String = self
            .nodes
            .iter()
            .map(|node| format!("[[node]]\nname = \"{node}\"\naddress = \"127.0.0.1\"\n\n"))
            .collect();
        Some(text.replace("{lab}", &lab).replace("{prefix}", &prefix).replace("{nodes}", &nodes))
    }
}

/// A requeued job waits for so long before it can start again, because its nodes would take it for
/// one that they know. Slurm's default is two minutes.
const CRED_EXPIRE_S: u32 = 30;

/// The cluster file of [`Cluster::Simulated`]; a test that needs another can start from it.
pub const SIMULATED: &str = r#"[paths]
run_dir = "{lab}/run"
bin_dir = "{prefix}/bin"
lib_dir = "{prefix}/lib/acb"

[driver]
cuda = "{prefix}/libexec/acb-tests/sim/libcuda.so.1"
nvml = "{prefix}/libexec/acb-tests/sim/libnvidia-ml.so.1"

[environment]
SIMCUDA_CONFIG = "{lab}/simcuda.toml"

{nodes}"#;

const REAL: &str = r#"[paths]
run_dir = "{lab}/run"
bin_dir = "{prefix}/bin"
lib_dir = "{prefix}/lib/acb"

{nodes}"#;

const CGROUP: &str = "CgroupAutomount=no
CgroupPlugin=cgroup/v1
ConstrainDevices=yes
ConstrainCores=no
ConstrainRAMSpace=no
";
