//! What one daemon does, settled before it starts: from ACB's options, from `multinode.toml`, or
//! from the spec of a Slurm job.
//!
//! Owns where the daemon's files lie and which addresses it uses. Does not touch any of them.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use acb_cluster_conf::SOCKET_PATH_MAX;
use acb_cluster_conf::{Headroom, JobSpec, Key, LoadError, Multinode, OnFailure, Role as HostRole};
use acb_core::{EstimatorConfig, PeakConfig, Policy, Select};

use acb_sim::terms;

use crate::cli::{Place, Start};
use crate::inventory::Wanted;
use crate::tenancy::{Tenancy, TenancyError};

/// ACB's address.
pub const DEFAULT_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
/// ACB's port.
pub const DEFAULT_PORT: u16 = 11234;

/// Everything that the daemon is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this node.
    pub node: String,
    /// The Slurm job that is served, if any.
    pub job: Option<Job>,
    /// What this daemon is to others.
    pub role: Role,
    /// Nodes that the daemons of its job, or of its `multinode.toml`, are on.
    pub nodes: u32,
    /// Sockets and state.
    pub folder: Folder,
    /// Where tools and manual-mode clients reach it by TCP.
    pub tcp: Option<SocketAddr>,
    /// The log.
    pub log: PathBuf,
    /// The pid file of a user's own daemon.
    pub pid_file: Option<PathBuf>,
    /// Whether every grant is logged.
    pub verbose: bool,
    /// Folder in which the daemon runs.
    pub working_directory: PathBuf,
    /// The GPUs.
    pub gpus: Wanted,
    /// NVML, if not in the usual places.
    pub nvml: Option<PathBuf>,
    /// How GPUs are handed out.
    pub scheduling: Scheduling,
    /// What clients are told.
    pub client: ClientTerms,
    /// How device memory is shared.
    pub memory: MemoryTerms,
    /// Manual-mode requests that are served at a time.
    pub max_requests: usize,
    /// The daemon stops by itself after that.
    pub lifetime: Option<Duration>,
}

/// How GPUs are handed out.
#[derive(Clone, Debug)]
pub struct Scheduling {
    /// The policy.
    pub policy: Policy,
    /// How long a contended lease is held.
    pub quantum: Duration,
    /// The head of the queue is bypassed at most so often…
    pub max_bypass: u32,
    /// …and at most for so long.
    pub max_bypass_time: Duration,
    /// Phase times.
    pub estimator: EstimatorConfig,
    /// Peak memory.
    pub peaks: PeakConfig,
    /// Who shares the GPUs with whom.
    pub tenancy: Tenancy,
}

/// What clients are told, and what is held against them.
#[derive(Clone, Debug)]
pub struct ClientTerms {
    /// How long a wanted lease must be idle before it is given back, microseconds.
    pub idle_us: u32,
    /// How long clients wait for a lost assigner, milliseconds.
    pub grace_ms: u32,
    /// What they do then.
    pub on_failure: OnFailure,
    /// Bytes of a CUDA context.
    pub context: u64,
}

/// How device memory is shared.
#[derive(Clone, Debug)]
pub struct MemoryTerms {
    /// Bytes that the pager moves at a time; 0: nothing is paged.
    pub chunk: u64,
    /// Bytes of the host that may be needed for what leaves the GPUs.
    pub host_budget: u64,
    /// Part of the time that switching may cost.
    pub switch_share: f64,
    /// What of each GPU is promised to nobody.
    pub headroom: Headroom,
    /// Whether pages are compared byte by byte where their hashes agree.
    pub compare: bool,
}

impl MemoryTerms {
    /// What of a GPU is promised to nobody. Where nothing is paged nobody could make room again, so that it would be lost for good.
    pub fn headroom(&self, gpu: &crate::inventory::Device) -> u64 {
        if self.chunk == 0 { 0 } else { self.headroom.of(gpu.memory) }
    }

    fn of_job(memory: &acb_cluster_conf::MemoryConfig) -> MemoryTerms {
        let share = (crate::host::memory() as f64 * memory.host_share.value()) as u64;
        MemoryTerms {
            chunk: if memory.pager { u64::from(memory.chunk_mib) << 20 } else { 0 },
            host_budget: memory.host_budget.map_or(share, |budget| budget.bytes().min(share)),
            switch_share: memory.switch_share.value(),
            headroom: memory.headroom,
            compare: memory.compare,
        }
    }
}

/// A Slurm job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its number.
    pub id: u32,
    /// Whether statistics go to its comment.
    pub comment: bool,
    /// Slurm's configuration, for the tools that are run.
    pub slurm_conf: Option<PathBuf>,
}

/// What a daemon is to the others of its job.
#[derive(Clone, Debug)]
pub enum Role {
    /// There are no others.
    Standalone,
    /// The others report to it, at the first free one of these addresses.
    Controller {
        /// Where it listens; empty: the tools' address serves the others too.
        listen: Vec<SocketAddr>,
        /// How they know each other.
        trust: Trust,
    },
    /// It reports to the controller, at one of these addresses.
    Executor {
        /// Where the controller may listen.
        controller: Vec<HostPort>,
        /// How they know each other.
        trust: Trust,
    },
}

/// How the daemons of a job know each other.
#[derive(Clone, Debug)]
pub enum Trust {
    /// By the job's key.
    Key(Key),
    /// Not at all: ACB's `multinode.toml` knows no secret.
    Nothing,
}

/// A place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The folder of a daemon's sockets and state (docs/architecture.md, "Run folder").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(pub PathBuf);

impl Folder {
    /// Socket of the clients.
    pub fn client_socket(&self) -> PathBuf {
        self.0.join("client.sock")
    }
    /// Socket of the tools.
    pub fn tools_socket(&self) -> PathBuf {
        self.0.join("tools.sock")
    }
    /// Who serves, and which GPUs.
    pub fn ready(&self) -> PathBuf {
        self.0.join("ready.json")
    }
    /// What the next life needs to know.
    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }
    /// Statistics that survive a kill.
    pub fn stats(&self) -> PathBuf {
        self.0.join("stats.json")
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// `$HOME` is not known.
    #[error(
        "HOME is not set, so that $HOME/.acb cannot be made; set it, or give --pid-file-path, --log-path and --socket-dir"
    )]
    NoHome,
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] LoadError),
    /// There is no `multinode.toml`.
    #[error(
        "--multinode needs {}, which does not exist; make it, with a table for each host: [HOST], type = \"controller\" or \"executor\", ipaddr, port", .0.display()
    )]
    NoMultinode(PathBuf),
    /// This host is not in `multinode.toml`.
    #[error("this host, {host}, has no table in {}; add [{host}] with type, ipaddr and port", path.display())]
    NotInMultinode {
        /// The host.
        host: String,
        /// The file.
        path: PathBuf,
    },
    /// An address of the network.
    #[error("the address of {name}, `{address}`, is not known: {reason}")]
    Address {
        /// Whose.
        name: String,
        /// What was given.
        address: String,
        /// The resolver's words.
        reason: String,
    },
    /// All interfaces.
    #[error(
        "--address {0} means every network of this host; give 127.0.0.1 or one address of this host"
    )]
    EveryInterface(IpAddr),
    /// Too long for a socket.
    #[error("{} is too long for a socket ({length} bytes, {SOCKET_PATH_MAX} at most); give a shorter folder with --socket-dir", path.display())]
    SocketPath {
        /// The longest socket's path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// Tenants and queues that make no sense.
    #[error("{0}")]
    Tenancy(#[from] TenancyError),
    /// The spec is another user's.
    #[error("the spec is for uid {wanted}, but this process runs as uid {own}")]
    NotTheJobsUser {
        /// The job's user.
        wanted: u32,
        /// This process's.
        own: u32,
    },
}

/// Which daemon the options mean.
#[derive(Clone, Debug)]
pub struct Located {
    /// Where it listens, if it does.
    pub tcp: SocketAddr,
    /// Its pid file.
    pub pid_file: PathBuf,
    /// Its log, unless `start` says otherwise.
    pub log: PathBuf,
    /// `$HOME/.acb`, if something lies there by default.
    pub acb_home: Option<PathBuf>,
    /// What `multinode.toml` says.
    pub role: Role,
    /// Its hosts; 1 without it.
    pub nodes: u32,
}

fn count(nodes: usize) -> u32 {
    u32::try_from(nodes).unwrap_or(u32::MAX)
}

/// Finds a user's own daemon from the options before the command.
pub fn locate(place: &Place) -> Result<Located, SettingsError> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let acb_home = home.map(|home| Path::new(&home).join(".acb"));
    let default = |given: Option<PathBuf>, name: &str| match given {
        Some(path) => Ok(path),
        None => acb_home.as_ref().map(|home| home.join(name)).ok_or(SettingsError::NoHome),
    };
    let mut address = place.address.unwrap_or(DEFAULT_ADDRESS);
    let mut port = place.port.unwrap_or(DEFAULT_PORT);
    let (mut pid_file, mut log) = (place.pid_file_path.clone(), None);
    let (mut role, mut nodes) = (Role::Standalone, 1);
    if place.multinode {
        let path = default(None, "multinode.toml")?;
        if !path.exists() {
            return Err(SettingsError::NoMultinode(path));
        }
        let hosts = Multinode::load(&path)?;
        let name = host_name();
        let short = name.split('.').next().unwrap_or(&name);
        let host = hosts
            .host(&name)
            .or_else(|| hosts.host(short))
            .ok_or(SettingsError::NotInMultinode { host: name.clone(), path })?;
        address = resolve(&host.name, &host.address, host.port)?.ip();
        port = host.port;
        pid_file = pid_file.or_else(|| host.pid_file.clone());
        log = host.log_file.clone();
        nodes = count(hosts.executors().len() + 1);
        role = match host.role {
            HostRole::Controller => Role::Controller { listen: Vec::new(), trust: Trust::Nothing },
            HostRole::Executor => {
                let controller = hosts.controller();
                let place = HostPort { host: controller.address.clone(), port: controller.port };
                Role::Executor { controller: vec![place], trust: Trust::Nothing }
            }
        };
    }
    if address.is_unspecified() {
        return Err(SettingsError::EveryInterface(address));
    }
    Ok(Located {
        tcp: SocketAddr::new(address, port),
        pid_file: default(pid_file, "gpu-assigner.pid")?,
        log: default(log, "gpu-assigner.log")?,
        acb_home,
        role,
        nodes,
    })
}

impl Settings {
    /// A user's own daemon.
    pub fn of_user(place: &Place, start: &Start) -> Result<Settings, SettingsError> {
        let located = locate(place)?;
        let node = host_name();
        let folder = match (&place.socket_dir, &located.acb_home) {
            (Some(folder), _) => folder.clone(),
            (None, Some(home)) => {
                // Home folders are shared between nodes, sockets are not.
                let place = format!("{}-{}", located.tcp.ip(), located.tcp.port());
                home.join(&node).join(place.replace(':', "_"))
            }
            (None, None) => return Err(SettingsError::NoHome),
        };
        let estimator = &start.estimator;
        let failure = acb_cluster_conf::Failure::default();
        Settings {
            node,
            job: None,
            role: located.role,
            nodes: located.nodes,
            folder: Folder(absolute(folder)),
            tcp: Some(located.tcp),
            log: absolute(start.log_path.clone().unwrap_or(located.log)),
            pid_file: Some(absolute(located.pid_file)),
            verbose: start.verbose,
            working_directory: start
                .gpu_assigner_working_directory
                .clone()
                .unwrap_or_else(|| PathBuf::from("/")),
            gpus: Wanted::List(start.gpu_list.clone()),
            nvml: start.nvml.clone(),
            scheduling: Scheduling {
                policy: start.scheduler.into(),
                quantum: Duration::from_millis(start.quantum_ms),
                peaks: PeakConfig {
                    start_count: start.memory.mem_est_start_count,
                    latest_count: start.memory.mem_est_data_max_len,
                    interval: start.memory.mem_est_interval,
                    percentile: start.memory.mem_est_percentile,
                    ratio: start.memory.mem_est_fixed_ratio,
                    select: match start.memory.mem_est_select_strategy {
                        crate::cli::SelectStrategy::Min => Select::Min,
                        crate::cli::SelectStrategy::Max => Select::Max,
                    },
                },
                max_bypass: start.max_bypass,
                max_bypass_time: Duration::from_secs(start.max_bypass_s.into()),
                tenancy: Tenancy {
                    queues: start.sharing.queue.clone(),
                    tenants: start.sharing.tenant.clone(),
                    half_life: Duration::from_secs(start.sharing.fair_share_half_life_s.into()),
                    credit: Duration::from_secs(start.sharing.fair_share_credit_s.into()),
                }
                .checked()?,
                estimator: EstimatorConfig {
                    start_count: estimator.exe_est_start_count,
                    latest_count: estimator.exe_est_latest_count,
                    interval: estimator.exe_est_interval,
                    percentile: estimator.exe_est_percentile,
                    default: Duration::from_millis(estimator.exe_est_default_execution_time),
                },
            },
            client: ClientTerms {
                idle_us: start.idle_us,
                grace_ms: failure.grace_ms,
                on_failure: failure.on_failure,
                context: u64::from(start.context_mib) << 20,
            },
            memory: start.paging.terms(),
            max_requests: start.gpu_assigner_max_workers as usize,
            lifetime: Some(start.gpu_assigner_execution_time)
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
        }
        .checked()
    }

    /// The daemon of a Slurm job on this node.
    pub fn of_job(path: &Path, start: &Start) -> Result<Settings, SettingsError> {
        let spec = JobSpec::load(path)?;
        let own = rustix::process::geteuid().as_raw();
        if spec.uid != own {
            return Err(SettingsError::NotTheJobsUser { wanted: spec.uid, own });
        }
        let trust = Trust::Key(spec.key.clone());
        let role = if spec.nodes.len() == 1 {
            Role::Standalone
        } else if spec.is_controller() {
            let ports = spec.candidate_ports.iter();
            let listen = ports.map(|port| resolve(&spec.node, spec.controller_address(), *port));
            Role::Controller { listen: listen.collect::<Result<_, _>>()?, trust }
        } else {
            let host = spec.controller_address();
            let place = |port: &u16| HostPort { host: host.to_owned(), port: *port };
            Role::Executor { controller: spec.candidate_ports.iter().map(place).collect(), trust }
        };
        Settings {
            node: spec.node.clone(),
            role,
            nodes: count(spec.nodes.len()),
            folder: Folder(spec.run_folder.path().to_owned()),
            tcp: None,
            log: spec.run_folder.log(),
            pid_file: None,
            verbose: start.verbose,
            working_directory: PathBuf::from("/"),
            gpus: Wanted::Job(spec.gpus.clone()),
            nvml: spec.driver.nvml.clone().map(PathBuf::from).or_else(|| start.nvml.clone()),
            scheduling: Scheduling {
                policy: terms::policy(spec.policy),
                quantum: Duration::from_millis(spec.quantum_ms.get().into()),
                max_bypass: spec.max_bypass,
                max_bypass_time: Duration::from_secs(spec.max_bypass_s.into()),
                estimator: terms::phases(&spec.estimator),
                peaks: terms::peaks(&spec.peaks),
                tenancy: Tenancy {
                    queues: spec.queues.clone(),
                    tenants: spec.tenants.clone(),
                    half_life: Duration::from_secs(spec.fair_share_half_life_s.into()),
                    credit: Duration::from_secs(spec.fair_share_credit_s.into()),
                }
                .checked()?,
            },
            client: ClientTerms {
                idle_us: spec.idle_us,
                grace_ms: spec.grace_ms,
                on_failure: spec.on_failure,
                context: u64::from(spec.context_mib) << 20,
            },
            memory: MemoryTerms::of_job(&spec.memory),
            max_requests: start.gpu_assigner_max_workers as usize,
            lifetime: None,
            job: Some(Job {
                id: spec.job_id,
                comment: spec.comment_enabled && spec.is_controller(),
                slurm_conf: spec.slurm_conf,
            }),
        }
        .checked()
    }

    fn checked(self) -> Result<Settings, SettingsError> {
        let path = self.folder.client_socket();
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(SettingsError::SocketPath { path, length });
        }
        Ok(self)
    }

    /// Where the daemon is, for messages.
    pub fn address(&self) -> String {
        match self.tcp {
            Some(address) => address.to_string(),
            None => self.folder.tools_socket().display().to_string(),
        }
    }

    /// The name of the role, as `status` shows it.
    pub fn role_name(&self) -> &'static str {
        match self.role {
            Role::Standalone => "standalone",
            Role::Controller { .. } => "controller",
            Role::Executor { .. } => "executor",
        }
    }
}

fn resolve(name: &str, address: &str, port: u16) -> Result<SocketAddr, SettingsError> {
    let wrong = |reason: String| SettingsError::Address {
        name: name.to_owned(),
        address: address.to_owned(),
        reason,
    };
    let mut found = (address, port).to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("the resolver gives no address".to_owned()))
}

/// A daemon changes its folder; its paths must not change with it.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// The name of this host.
pub fn host_name() -> String {
    let name: OsString = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| OsString::from(name.trim()))
        .unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}
